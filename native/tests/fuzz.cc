// Calls every function of earthshine.h with random arguments, to run under AddressSanitizer and UBSan.
//
// Valid calls get heap buffers of exactly the size that the header states, so that any access beyond is caught, on
// every instruction set and on 1 and 3 threads; results must be the same bits on both, and on all instruction sets but
// avx512_bf16. Broken calls differ from a valid one in one argument that can be recognised, and must be refused.
// Usage: fuzz SEED ROUNDS. The generator is deterministic: the same seed makes the same calls. "over-read" in place of
// a seed makes one call that lies about a buffer, which must end the program.
#include <cinttypes>
#include <vector>

#include "fuzz_layers.h"
#include "fuzz_sequences.h"

namespace {

uint64_t linear(Random& random, Breaks* broken) {
  const int32_t format = static_cast<int32_t>(random.below(4));
  const int64_t rows = random.size(300), cols = fitting(format, random.size(600));
  const int64_t m = random.chance(3) ? random.from(1, 8) : random.chance(8) ? random.from(500, 530) : random.size(70);
  const Stored w = random_matrix(random, format, rows, cols);
  const Heap<uint16_t> x = random_bf16(random, m * cols);
  const bool wide = random.chance(2);
  const Heap<uint8_t> y = filled<uint8_t>(m * rows * (wide ? 4 : 2));
  const Heap<uint16_t> decoded = filled<uint16_t>(rows * cols);
  if (broken != nullptr) {
    const auto call = [&](es_matrix a, int64_t n) { return es_linear(&a, x.data(), n, y.data(), wide); };
    es_matrix bad = w.matrix;
    (random.chance(2) ? bad.rows : bad.cols) = broken->absurd();
    broken->refuse("an absurd matrix", [&] { return call(bad, m); });
    broken->refuse("an absurd matrix to decode", [&] { return es_decode(&bad, decoded.data()); });
    broken->refuse("absurdly many rows", [&] { return call(w.matrix, broken->absurd()); });
    bad = w.matrix;
    bad.format = static_cast<int32_t>(random.chance(2) ? random.from(4, INT32_MAX) : -random.from(1, INT32_MAX));
    broken->refuse("an unknown format", [&] { return call(bad, m); });
    bad = w.matrix, bad.format = ES_INT4_GROUP32, bad.cols = 33, bad.scales = bad.codes;
    broken->refuse("half a group", [&] { return call(bad, m); });
    bad = w.matrix, bad.codes = nullptr;
    broken->refuse("no codes", [&] { return call(bad, m); });
    broken->refuse("no matrix", [&] { return es_linear(nullptr, x.data(), m, y.data(), 0); });
    broken->refuse("no x", [&] { return es_linear(&w.matrix, nullptr, m, y.data(), 0); });
    broken->refuse("no y", [&] { return es_linear(&w.matrix, x.data(), m, nullptr, 1); });
    broken->refuse("nowhere to decode", [&] { return es_decode(&w.matrix, nullptr); });
    bad = {ES_INT8_GROUP128, 1, int64_t{1} << 47, w.codes.data(), w.codes.data()};
    broken->refuse("more columns than memory holds", [&] { return call(bad, 1); });
    return 0;
  }
  want_ok("es_linear", es_linear(&w.matrix, x.data(), m, y.data(), wide));
  want_ok("es_decode", es_decode(&w.matrix, decoded.data()));
  return hash(y) ^ hash(decoded);
}

uint64_t linear_by_head(Random& random, Breaks* broken) {
  es_heads s = {};
  s.n_heads = random.from(1, 5), s.rows = random.size(140), s.cols = random.size(140);
  const int64_t m = random.size(random.chance(6) ? 140 : 20);
  s.by_columns = static_cast<int32_t>(random.below(2));
  s.head_bytes = s.rows * s.cols * 2 + random.below(7);
  s.x_head = s.cols + random.below(5), s.x_row = s.n_heads * s.x_head + random.below(5);
  s.y_head = s.rows + random.below(5), s.y_row = s.n_heads * s.y_head + random.below(5);
  const Heap<uint16_t> values = random_bf16(random, (s.n_heads * s.head_bytes + 1) / 2);
  const Heap<uint8_t> matrices((s.n_heads - 1) * s.head_bytes + s.rows * s.cols * 2, random.below(2));
  std::memcpy(matrices.data(), values.data(), matrices.bytes());
  const bool odd = s.head_bytes % 2 != 0;  // then the halves of values are mixed, and any value may come
  const Heap<uint16_t> x = random_bf16(random, (m - 1) * s.x_row + (s.n_heads - 1) * s.x_head + s.cols);
  const Heap<uint16_t> y = filled<uint16_t>((m - 1) * s.y_row + (s.n_heads - 1) * s.y_head + s.rows);
  const auto call = [&](const es_heads& shape, int64_t n) {
    return es_linear_by_head(&shape, matrices.data(), x.data(), n, y.data());
  };
  if (broken != nullptr) {
    int64_t es_heads::* const sizes[] = {&es_heads::n_heads, &es_heads::rows,   &es_heads::cols,  &es_heads::head_bytes,
                                         &es_heads::x_row,   &es_heads::x_head, &es_heads::y_row, &es_heads::y_head};
    es_heads bad = s;
    bad.*sizes[random.below(8)] = -random.from(1, 1 << 30);
    broken->refuse("a negative size", [&] { return call(bad, m); });
    bad = s, bad.*sizes[random.below(8)] = INT64_MAX - random.below(1000);
    broken->refuse("a huge size", [&] { return call(bad, m); });
    broken->refuse("absurdly many rows", [&] { return call(s, broken->absurd()); });
    bad = s, bad.y_head = s.rows - 1;
    broken->refuse("heads that overlap", [&] { return call(bad, m); });
    broken->refuse("no shape", [&] { return es_linear_by_head(nullptr, matrices.data(), x.data(), m, y.data()); });
    broken->refuse("no x", [&] { return es_linear_by_head(&s, matrices.data(), nullptr, m, y.data()); });
    broken->refuse("no y", [&] { return es_linear_by_head(&s, matrices.data(), x.data(), m, nullptr); });
    return 0;
  }
  want_ok("es_linear_by_head", call(s, m));
  return odd ? 0 : hash(y);
}

uint64_t moe(Random& random, Breaks* broken) {
  const int64_t n_experts = random.from(1, 6), tokens = random.from(1, 40);
  const int32_t format = static_cast<int32_t>(random.below(4)), down = static_cast<int32_t>(random.below(4));
  const int64_t hidden = fitting(format, random.size(200)), inner = fitting(down, random.size(200));
  std::vector<Stored> stored;
  Heap<es_expert> experts(n_experts);
  Heap<int64_t> begin(n_experts + 1);
  begin.data()[0] = random.chance(4) ? 3 : 0;
  for (int64_t i = 0; i < n_experts; ++i) {
    for (int part = 0; part < 2; ++part) stored.push_back(random_matrix(random, format, inner, hidden));
    stored.push_back(random_matrix(random, down, hidden, inner));
    const Stored* last = &stored.back();
    experts.data()[i] = {last[-2].matrix, last[-1].matrix, last->matrix};
    begin.data()[i + 1] = begin.data()[i] + (random.chance(4) ? 0 : random.from(1, 20));
  }
  const int64_t pairs = begin.data()[n_experts];
  Heap<int32_t> token(pairs);
  for (int64_t p = 0; p < pairs; ++p) token.data()[p] = static_cast<int32_t>(random.below(tokens));
  const Heap<uint16_t> x = random_bf16(random, tokens * hidden);
  const Heap<float> each = filled<float>(pairs * hidden), weight = random_floats(random, pairs);
  const Heap<float> total = filled<float>(tokens * hidden);
  const auto ffn = [&](int64_t n, int64_t n_tokens, int64_t width) {
    return es_moe_ffn(experts.data(), n, begin.data(), x.data(), n_tokens, token.data(), width, inner, each.data());
  };
  const auto sum = [&](int64_t n, int64_t n_tokens, int64_t width) {
    return es_moe_sum(each.data(), token.data(), weight.data(), n, n_tokens, width, total.data());
  };
  if (broken != nullptr) {
    const int64_t absurd = broken->absurd();
    if (pairs > begin.data()[0]) {
      broken->refuse("absurdly many tokens", [&] { return ffn(n_experts, absurd, hidden); });
      const int64_t at = random.from(begin.data()[0], pairs - 1);
      const int32_t right = token.data()[at];
      const int64_t beyond = random.below(1 << 30);
      token.data()[at] = static_cast<int32_t>(random.chance(2) ? tokens + beyond : -1 - beyond);
      broken->refuse("a token outside the batch", [&] { return ffn(n_experts, tokens, hidden); });
      broken->refuse("a pair's token outside the batch", [&] { return sum(pairs, tokens, hidden); });
      token.data()[at] = right;
    }
    if (pairs > 0) {
      broken->refuse("absurdly many pairs", [&] { return sum(absurd, tokens, hidden); });
      broken->refuse("an absurd width of sums", [&] { return sum(pairs, tokens, absurd); });
    }
    broken->refuse("a negative number of experts", [&] { return ffn(-1, tokens, hidden); });
    broken->refuse("an absurd width", [&] { return ffn(n_experts, tokens, absurd); });
    broken->refuse("another width", [&] { return ffn(n_experts, tokens, hidden + 32); });
    const int64_t last = random.below(n_experts);
    begin.data()[last + 1] = begin.data()[last] - random.from(1, 100);
    broken->refuse("boundaries that descend", [&] { return ffn(n_experts, tokens, hidden); });
    experts.data()[0].up.codes = nullptr;
    broken->refuse("an expert without codes", [&] { return ffn(n_experts, tokens, hidden); });
    return 0;
  }
  want_ok("es_moe_ffn", ffn(n_experts, tokens, hidden));
  for (int64_t i = 0; i < begin.data()[0] * hidden; ++i) each.data()[i] = 1.0f;  // not any expert's
  want_ok("es_moe_sum", sum(pairs, tokens, hidden));
  return hash(each) ^ hash(total);
}

uint64_t rms_norm(Random& random, Breaks* broken) {
  const bool wide = random.chance(2), adds = random.chance(2), wild = random.chance(4);
  const int64_t rows = random.size(40), heads = adds ? 1 : random.from(1, 4), dim = random.size(300);
  const int64_t x_head = dim + random.below(4), x_row = heads * x_head + random.below(9);
  const int64_t out_head = dim + random.below(4), out_row = heads * out_head + random.below(9);
  const int64_t n = (rows - 1) * x_row + (heads - 1) * x_head + dim;
  const int64_t added_row = random.chance(3) ? 0 : dim + random.below(3);
  const Heap<uint16_t> narrow = random_bf16(random, wide ? 0 : n, wild);
  const Heap<float> floats = random_floats(random, wide ? n : 0, wild);
  const Heap<uint16_t> added = random_bf16(random, (rows - 1) * added_row + dim);
  const Heap<uint16_t> weight = random_bf16(random, dim, wild);
  const Heap<uint16_t> out = filled<uint16_t>((rows - 1) * out_row + (heads - 1) * out_head + dim);
  void* x = wide ? static_cast<void*>(floats.data()) : narrow.data();
  const uint16_t* more = adds ? added.data() : nullptr;
  int64_t inner = out_head;
  const auto call = [&](int64_t r, int64_t d, int64_t stride, int64_t to, uint16_t* at) {
    return es_rms_norm(x, wide, stride, x_head, more, added_row, weight.data(), 1e-6f, r, heads, d, at, to, inner);
  };
  if (broken != nullptr) {
    broken->refuse("absurdly many rows", [&] { return call(broken->absurd(), dim, x_row, out_row, out.data()); });
    broken->refuse("an absurd width", [&] { return call(rows, broken->absurd(), x_row, out_row, out.data()); });
    broken->refuse("an absurd stride", [&] { return call(rows, dim, broken->absurd(), out_row, out.data()); });
    broken->refuse("results that overlap", [&] { return call(rows + 1, dim, x_row, dim - 1, out.data()); });
    broken->refuse("no out", [&] { return call(rows, dim, x_row, out_row, nullptr); });
    x = nullptr;
    broken->refuse("no x", [&] { return call(rows, dim, x_row, out_row, out.data()); });
    return 0;
  }
  want_ok("es_rms_norm", call(rows, dim, x_row, out_row, out.data()));
  inner = x_head;
  if (!wide) want_ok("es_rms_norm in place", call(rows, dim, x_row, x_row, narrow.data()));
  return wild ? 0 : hash(out) ^ hash(narrow) ^ hash(floats);
}

uint64_t gated_norm(Random& random, Breaks* broken) {
  const int64_t rows = random.size(40), dim = random.size(300), gate_row = dim + random.below(9);
  const bool wild = random.chance(4);
  const Heap<float> x = random_floats(random, rows * dim, wild), weight = random_floats(random, dim);
  const Heap<uint16_t> gate = random_bf16(random, (rows - 1) * gate_row + dim, wild);
  const Heap<uint16_t> out = filled<uint16_t>(rows * dim);
  const auto call = [&](int64_t r, int64_t d, int64_t stride, uint16_t* to) {
    return es_gated_rms_norm(x.data(), gate.data(), stride, weight.data(), 1e-6f, r, d, to);
  };
  if (broken != nullptr) {
    broken->refuse("absurdly many rows", [&] { return call(broken->absurd(), dim, gate_row, out.data()); });
    broken->refuse("an absurd width", [&] { return call(rows, broken->absurd(), gate_row, out.data()); });
    broken->refuse("an absurd stride", [&] { return call(rows, dim, broken->absurd(), out.data()); });
    broken->refuse("no out", [&] { return call(rows, dim, gate_row, nullptr); });
    return 0;
  }
  want_ok("es_gated_rms_norm", call(rows, dim, gate_row, out.data()));
  return wild ? 0 : hash(out);
}

uint64_t rotate(Random& random, Breaks* broken) {
  const int64_t rows = random.size(40), heads = random.from(1, 5), dim = 2 * random.size(70);
  const int64_t x_head = dim + random.below(5), x_row = heads * x_head + random.below(5);
  const int64_t out_head = dim + random.below(5), out_row = heads * out_head + random.below(5);
  const bool wild = random.chance(4), pairs = random.chance(2);
  const Heap<uint16_t> x = random_bf16(random, (rows - 1) * x_row + (heads - 1) * x_head + dim, wild);
  const Heap<float> cos = random_floats(random, rows * dim / 2, wild), sin = random_floats(random, rows * dim / 2);
  const Heap<uint16_t> out = filled<uint16_t>((rows - 1) * out_row + (heads - 1) * out_head + dim);
  const auto call = [&](int64_t r, int64_t h, int64_t d, int64_t stride, uint16_t* at) {
    return es_rotate(x.data(), stride, x_head, cos.data(), sin.data(), pairs, r, h, d, at, out_row, out_head);
  };
  if (broken != nullptr) {
    broken->refuse("absurdly many rows", [&] { return call(broken->absurd(), heads, dim, x_row, out.data()); });
    broken->refuse("absurdly many heads", [&] { return call(rows, broken->absurd(), dim, x_row, out.data()); });
    broken->refuse("an absurd width", [&] { return call(rows, heads, broken->absurd(), x_row, out.data()); });
    broken->refuse("an absurd stride", [&] { return call(rows, heads, dim, broken->absurd(), out.data()); });
    broken->refuse("half a pair", [&] { return call(rows, heads, dim - 1, x_row, out.data()); });
    broken->refuse("no out", [&] { return call(rows, heads, dim, x_row, nullptr); });
    return 0;
  }
  want_ok("es_rotate", call(rows, heads, dim, x_row, out.data()));
  want_ok("es_rotate in place",
          es_rotate(x.data(), x_row, x_head, cos.data(), sin.data(), pairs, rows, heads, dim, x.data(), x_row, x_head));
  return wild ? 0 : hash(out) ^ hash(x);
}

uint64_t swiglu(Random& random, Breaks* broken) {
  const int64_t rows = random.size(20), cols = random.size(300), gate_row = cols + random.below(9);
  const bool wide = random.chance(2), wild = random.chance(4);
  const int64_t n = (rows - 1) * gate_row + cols;
  const Heap<uint16_t> narrow = random_bf16(random, wide ? 0 : n, wild);
  const Heap<uint16_t> narrow_up = random_bf16(random, wide ? 0 : cols);
  const Heap<float> floats = random_floats(random, wide ? n : 0, wild), up = random_floats(random, wide ? cols : 0);
  const Heap<uint16_t> out = filled<uint16_t>(rows * cols);
  const void* a = wide ? static_cast<void*>(floats.data()) : narrow.data();
  const void* b = wide ? static_cast<void*>(up.data()) : narrow_up.data();
  const auto call = [&](int64_t r, int64_t c, int64_t stride, uint16_t* to) {
    return es_swiglu(a, stride, b, 0, wide, r, c, to);
  };
  if (broken != nullptr) {
    broken->refuse("absurdly many rows", [&] { return call(broken->absurd(), cols, gate_row, out.data()); });
    broken->refuse("an absurd width", [&] { return call(rows, broken->absurd(), gate_row, out.data()); });
    broken->refuse("an absurd stride", [&] { return call(rows, cols, broken->absurd(), out.data()); });
    broken->refuse("no out", [&] { return call(rows, cols, gate_row, nullptr); });
    return 0;
  }
  want_ok("es_swiglu", call(rows, cols, gate_row, out.data()));
  return wild ? 0 : hash(out);
}

uint64_t route(Random& random, Breaks* broken) {
  const int64_t groups = random.from(1, 8), experts = groups * random.from(2, 40), tokens = random.from(1, 60);
  const int64_t top_k = random.from(1, experts), kept = random.from(1, groups);
  const bool wild = random.chance(3), normalize = random.chance(2), biased = random.chance(2);
  int32_t scoring = static_cast<int32_t>(random.below(2));
  const Heap<float> logits = random_floats(random, tokens * experts, wild), bias = random_floats(random, experts, wild);
  const Heap<int64_t> chosen = filled<int64_t>(tokens * top_k);
  const Heap<float> weight = filled<float>(tokens * top_k);
  const auto call = [&](int64_t t, int64_t n, int64_t k, int64_t g, int64_t of_groups) {
    return es_route(logits.data(), scoring, biased ? bias.data() : nullptr, t, n, k, g, of_groups, normalize, 2.5f,
                    chosen.data(), weight.data());
  };
  if (broken != nullptr) {
    broken->refuse("absurdly many tokens", [&] { return call(broken->absurd(), experts, top_k, groups, kept); });
    broken->refuse("absurdly many experts", [&] { return call(tokens, broken->absurd(), top_k, groups, kept); });
    broken->refuse("too many experts", [&] { return call(tokens, random.from(4097, 1 << 30), top_k, 1, 1); });
    broken->refuse("more than all", [&] { return call(tokens, experts, random.chance(2) ? 0 : experts + 1, 1, 1); });
    broken->refuse("absurd groups", [&] { return call(tokens, experts, top_k, broken->absurd(), kept); });
    broken->refuse("no group", [&] { return call(tokens, experts, top_k, groups, random.chance(2) ? 0 : groups + 1); });
    scoring = random.chance(2) ? -1 : 2;
    broken->refuse("a scoring that is none", [&] { return call(tokens, experts, top_k, groups, kept); });
    scoring = ES_SIGMOID;
    broken->refuse("groups of one", [&] { return call(tokens, experts, top_k, experts, 1); });
    return 0;
  }
  want_ok("es_route", call(tokens, experts, top_k, groups, kept));
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    if (chosen.data()[i] < 0 || chosen.data()[i] >= experts) fail("es_route chose an expert that is not there");
  }
  return wild ? hash(chosen) : hash(chosen) ^ hash(weight);
}

uint64_t read(Random& random, Breaks* broken) {
  const int64_t bytes = random.chance(8) ? random.from(4 << 20, (4 << 20) + 300) : random.size(3000);
  const Heap<uint8_t> memory = random_bytes(random, bytes);
  uint64_t found = 0, expected = 0;
  if (broken != nullptr) {
    broken->refuse("an absurd size", [&] { return es_read(memory.data(), broken->absurd(), &found); });
    broken->refuse("no memory", [&] { return es_read(nullptr, bytes, &found); });
    broken->refuse("nowhere to write", [&] { return es_read(memory.data(), bytes, nullptr); });
    return 0;
  }
  for (int64_t i = 0; i < bytes; ++i) expected ^= static_cast<uint64_t>(memory.data()[i]) << (i % 8 * 8);
  want_ok("es_read", es_read(memory.data(), bytes, &found));
  if (found != expected) fail("es_read did not read every byte once");
  return expected;
}

uint64_t choice(Random& random, Breaks* broken) {
  if (es_abi_version() != ES_ABI_VERSION) fail("the library has another interface version");
  const int32_t any = static_cast<int32_t>(random.next());
  if (*es_status_text(any) == 0) fail("a status has no text");
  if (any < 0 && es_instruction_set_at(any) != nullptr) fail("there is an instruction set before the first");
  if (es_instruction_set_at(100 + (any & 1023)) != nullptr) fail("there is an instruction set past the last");
  if (es_refusal("avx1024") != nullptr || es_refusal(nullptr) != nullptr) fail("an unknown name has a refusal");
  if (broken == nullptr) return 0;
  broken->refuse("no name", [] { return es_force_instruction_set(nullptr); });
  broken->refuse("an unknown name", [] { return es_force_instruction_set("avx1024"); });
  broken->refuse("no threads", [&] { return es_set_threads(any > 0 ? any / 2 + 513 : any); });
  return 0;
}

struct Operation {
  const char* name;
  uint64_t (*call)(Random&, Breaks*);
};

const Operation operations[] = {{"linear", linear},
                                {"linear_by_head", linear_by_head},
                                {"moe", moe},
                                {"rms_norm", rms_norm},
                                {"gated_norm", gated_norm},
                                {"rotate", rotate},
                                {"swiglu", swiglu},
                                {"route", route},
                                {"attention", attention},
                                {"kda", kda},
                                {"mla_layer", mla_layer},
                                {"gqa_layer", gqa_layer},
                                {"ffn_layer", ffn_layer},
                                {"read", read},
                                {"choice", choice}};

Random of_call(uint64_t seed, int64_t round, const Operation& operation) {
  return {seed * 1000003u + static_cast<uint64_t>(round) * 101u + static_cast<uint64_t>(&operation - operations)};
}

std::vector<uint64_t> valid_calls(uint64_t seed, int64_t rounds) {
  std::vector<uint64_t> found;
  for (int64_t round = 0; round < rounds; ++round) {
    for (const Operation& operation : operations) {
      Random random = of_call(seed, round, operation);
      found.push_back(operation.call(random, nullptr));
    }
  }
  return found;
}

void same(const std::vector<uint64_t>& a, const std::vector<uint64_t>& b, const std::string& what) {
  constexpr size_t n = sizeof operations / sizeof *operations;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) fail(what + ": other bits in " + operations[i % n].name + ", round " + std::to_string(i / n));
  }
}

int broken_calls(uint64_t seed, int64_t rounds) {
  int count = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    for (const Operation& operation : operations) {
      Random random = of_call(seed + 1, round, operation);
      Breaks breaks = {random, operation.name};
      operation.call(random, &breaks);
      count += breaks.count;
    }
  }
  return count;
}

// x has one column too few.
void over_read() {
  Random random = {1};
  const Stored w = random_matrix(random, ES_BF16, 16, 64);
  const Heap<uint16_t> x = random_bf16(random, 63);
  const Heap<float> y = filled<float>(16);
  es_linear(&w.matrix, x.data(), 1, y.data(), 1);
}

}  // namespace

// A refusal for want of memory is a result here, not the end.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1:detect_leaks=0"; }

int main(int argc, char** argv) {
  if (argc != 3) fail("usage: fuzz SEED ROUNDS");
  if (std::strcmp(argv[1], "over-read") == 0) return over_read(), 0;
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  const int64_t rounds = std::strtoll(argv[2], nullptr, 10);
  std::printf("seed %" PRIu64 ", %" PRId64 " rounds\n", seed, rounds);
  std::vector<std::string> names;
  while (const char* name = es_instruction_set_at(static_cast<int32_t>(names.size()))) names.push_back(name);
  std::vector<uint64_t> first;  // of the last instruction set: portable
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    want_ok("es_force_instruction_set", es_force_instruction_set(name->c_str()));
    if (*name != es_instruction_set()) fail("another instruction set serves");
    want_ok("es_set_threads", es_set_threads(1));
    const std::vector<uint64_t> alone = valid_calls(seed, rounds);
    want_ok("es_set_threads", es_set_threads(3));
    same(alone, valid_calls(seed, rounds), *name + " on 3 threads");
    if (first.empty()) first = alone;
    if (*name != "avx512_bf16") same(first, alone, *name + " beside portable");
    std::printf("%s: %zu calls\n", name->c_str(), 2 * alone.size());
  }
  std::printf("broken: %d calls refused\n", broken_calls(seed, rounds));
  want_ok("es_set_threads", es_set_threads(1));
  return 0;
}
