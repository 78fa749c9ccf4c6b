// The fuzzer's calls of parts of layers.
#pragma once

#include <vector>

#include "fuzz.h"

namespace {

// Some sequences over pages of a pool, and everything of a batch but the pool.
struct Step {
  std::vector<Heap<int32_t>> pages;
  Heap<es_sequence> sequences;
  Heap<float> cos, sin;
  es_batch batch;
};

Step random_step(Random& random, int64_t rope_dim, bool rotates) {
  const int64_t n = random.from(1, 3), page_tokens = random.from(1, 20), n_pool = random.from(1, 40);
  Step step = {{}, Heap<es_sequence>(n), Heap<float>(0), Heap<float>(0), {}};
  int64_t tokens = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t n_pages = random.from(1, 25), room = n_pages * page_tokens;
    const int64_t rows = random.from(1, room < 5 ? room : 5);
    step.pages.emplace_back(n_pages);
    for (int64_t p = 0; p < n_pages; ++p) step.pages.back().data()[p] = static_cast<int32_t>(random.below(n_pool));
    step.sequences.data()[i] = {tokens, rows, random.from(0, room - rows), step.pages.back().data(), n_pages};
    tokens += rows;
  }
  step.cos = random_floats(random, tokens * rope_dim / 2), step.sin = random_floats(random, tokens * rope_dim / 2);
  step.batch = {step.sequences.data(),
                n,
                tokens,
                rotates ? step.cos.data() : nullptr,
                rotates ? step.sin.data() : nullptr,
                nullptr,
                page_tokens,
                n_pool};
  return step;
}

int32_t random_format(Random& random) {
  static constexpr int32_t formats[] = {ES_BF16, ES_FP8_BLOCK128, ES_INT8_GROUP128};
  return formats[random.below(3)];
}

// What must be refused of any layer over a batch. `call` takes the batch.
template <class Call>
void break_batch(Breaks* broken, Random& random, const Step& step, const Call& call) {
  int64_t es_batch::* const sizes[] = {&es_batch::n_sequences, &es_batch::tokens, &es_batch::page_tokens,
                                       &es_batch::n_pool_pages};
  es_batch bad = step.batch;
  bad.*sizes[random.below(4)] = broken->absurd();
  broken->refuse("an absurd size of a batch", [&] { return call(bad); });
  bad = step.batch, bad.tokens += random.chance(2) ? 1 : -1;
  broken->refuse("a token of no sequence, or too few of them", [&] { return call(bad); });
  bad = step.batch, bad.pool = nullptr;
  broken->refuse("no pool", [&] { return call(bad); });
  bad = step.batch, bad.sequences = nullptr;
  broken->refuse("no sequences", [&] { return call(bad); });
  es_sequence& one = step.sequences.data()[0];
  const es_sequence right = one;
  one.start = one.n_pages * step.batch.page_tokens - one.rows + 1;
  broken->refuse("fewer pages than positions", [&] { return call(step.batch); });
  one = right;
  step.pages[0].data()[0] = static_cast<int32_t>(random.chance(2) ? -1 : step.batch.n_pool_pages);
  broken->refuse("a page outside the pool", [&] { return call(step.batch); });
}

uint64_t mla_layer(Random& random, Breaks* broken) {
  es_mla s = {};
  s.n_heads = random.from(1, 5), s.kv_lora_rank = random.size(80), s.nope_dim = random.size(40);
  s.rope_dim = 2 * random.size(20), s.v_dim = random.size(40), s.eps = s.latent_eps = 1e-6f, s.scale = 0.1f;
  const int64_t hidden = random.size(150), low = random.below(2) * random.size(60), rank = s.kv_lora_rank;
  const bool rotates = random.chance(2) || broken != nullptr;
  Step step = random_step(random, s.rope_dim, rotates);
  const int64_t n = step.batch.tokens;
  const Stored q_a = random_matrix(random, random_format(random), low, hidden);
  const Stored q = random_matrix(random, random_format(random), s.n_heads * (s.nope_dim + s.rope_dim),
                                 low == 0 ? hidden : low);
  const Stored kv_a = random_matrix(random, random_format(random), rank + s.rope_dim, hidden);
  const Stored o = random_matrix(random, random_format(random), hidden, s.n_heads * s.v_dim);
  const Heap<uint16_t> norm = random_bf16(random, hidden), q_a_norm = random_bf16(random, low);
  const Heap<uint16_t> kv_a_norm = random_bf16(random, rank), x = random_bf16(random, n * hidden);
  const Heap<uint16_t> kv_b = random_bf16(random, s.n_heads * (s.nope_dim + s.v_dim) * rank);
  const Heap<uint16_t> out = filled<uint16_t>(n * hidden);
  const Heap<uint16_t> pool = random_bf16(random,
                                          step.batch.n_pool_pages * step.batch.page_tokens * (rank + s.rope_dim));
  s.norm = norm.data(), s.q_a_norm = q_a_norm.data(), s.kv_a_norm = kv_a_norm.data(), s.kv_b = kv_b.data();
  s.q_a = q_a.matrix, s.q = q.matrix, s.kv_a = kv_a.matrix, s.o = o.matrix, step.batch.pool = pool.data();
  if (broken != nullptr) {
    int64_t es_mla::* const sizes[] = {&es_mla::n_heads, &es_mla::kv_lora_rank, &es_mla::nope_dim, &es_mla::rope_dim,
                                       &es_mla::v_dim};
    const auto call = [&](const es_mla& layer) { return es_mla_layer(&layer, &step.batch, x.data(), out.data()); };
    es_mla bad = s;
    bad.*sizes[random.below(5)] = broken->absurd();
    broken->refuse("an absurd size", [&] { return call(bad); });
    bad = s, bad.*sizes[random.below(5)] += 2;
    broken->refuse("a size that does not fit", [&] { return call(bad); });
    es_matrix es_mla::* const matrices[] = {&es_mla::q, &es_mla::kv_a, &es_mla::o};
    bad = s, (bad.*matrices[random.below(3)]).codes = nullptr;
    broken->refuse("a matrix without codes", [&] { return call(bad); });
    bad = s, (random.chance(2) ? bad.norm : bad.kv_b) = nullptr;
    broken->refuse("a weight that is not there", [&] { return call(bad); });
    bad = s, bad.scale = -1.0f;
    broken->refuse("a scale that is none", [&] { return call(bad); });
    broken->refuse("no x", [&] { return es_mla_layer(&s, &step.batch, nullptr, out.data()); });
    es_batch half = step.batch;
    half.sin = nullptr;
    broken->refuse("half of the angles", [&] { return es_mla_layer(&s, &half, x.data(), out.data()); });
    break_batch(broken, random, step, [&](const es_batch& b) { return es_mla_layer(&s, &b, x.data(), out.data()); });
    return 0;
  }
  want_ok("es_mla_layer", es_mla_layer(&s, &step.batch, x.data(), out.data()));
  return hash(out) ^ hash(pool);
}

uint64_t gqa_layer(Random& random, Breaks* broken) {
  es_gqa s = {};
  s.n_kv_heads = random.from(1, 3), s.n_heads = s.n_kv_heads * random.from(1, 4), s.head_dim = 2 * random.size(40);
  s.rope_dim = 2 * random.from(1, s.head_dim / 2), s.eps = s.head_eps = 1e-6f, s.scale = 0.1f;
  const int64_t hidden = random.size(150), keys = s.n_kv_heads * s.head_dim;
  Step step = random_step(random, s.rope_dim, true);
  const int64_t n = step.batch.tokens;
  const Stored q = random_matrix(random, random_format(random), s.n_heads * s.head_dim, hidden);
  const Stored k = random_matrix(random, random_format(random), keys, hidden);
  const Stored v = random_matrix(random, random_format(random), keys, hidden);
  const Stored o = random_matrix(random, random_format(random), hidden, s.n_heads * s.head_dim);
  const Heap<uint16_t> norm = random_bf16(random, hidden), q_norm = random_bf16(random, s.head_dim);
  const Heap<uint16_t> k_norm = random_bf16(random, s.head_dim), x = random_bf16(random, n * hidden);
  const Heap<uint16_t> out = filled<uint16_t>(n * hidden);
  const Heap<uint16_t> pool = random_bf16(random, step.batch.n_pool_pages * step.batch.page_tokens * 2 * keys);
  s.norm = norm.data(), s.q_norm = q_norm.data(), s.k_norm = k_norm.data(), step.batch.pool = pool.data();
  s.q = q.matrix, s.k = k.matrix, s.v = v.matrix, s.o = o.matrix;
  const auto call = [&](const es_gqa& layer) { return es_gqa_layer(&layer, &step.batch, x.data(), out.data()); };
  if (broken != nullptr) {
    int64_t es_gqa::* const sizes[] = {&es_gqa::n_heads, &es_gqa::n_kv_heads, &es_gqa::head_dim, &es_gqa::rope_dim};
    es_gqa bad = s;
    bad.*sizes[random.below(4)] = broken->absurd();
    broken->refuse("an absurd size", [&] { return call(bad); });
    bad = s, bad.rope_dim = random.chance(2) ? s.rope_dim - 1 : s.head_dim + 2;
    broken->refuse("an angle too many or too few", [&] { return call(bad); });
    bad = s, (random.chance(2) ? bad.k : bad.v).rows += s.head_dim;
    broken->refuse("a key too many", [&] { return call(bad); });
    bad = s, (random.chance(2) ? bad.norm : bad.k_norm) = nullptr;
    broken->refuse("a norm that is not there", [&] { return call(bad); });
    es_batch half = step.batch;
    half.cos = nullptr;
    broken->refuse("half of the angles", [&] { return es_gqa_layer(&s, &half, x.data(), out.data()); });
    break_batch(broken, random, step, [&](const es_batch& b) { return es_gqa_layer(&s, &b, x.data(), out.data()); });
    return 0;
  }
  want_ok("es_gqa_layer", call(s));
  return hash(out) ^ hash(pool);
}

uint64_t ffn_layer(Random& random, Breaks* broken) {
  const int64_t n = random.from(1, ES_LAYER_TOKENS), hidden = random.size(150), inner = random.size(90);
  const bool routes = !random.chance(4), shares = !routes || random.chance(2);
  const int64_t groups = random.from(1, 3), n_experts = routes ? groups * random.from(2, 6) : 0;
  es_ffn s = {};
  s.eps = 1e-6f, s.scale = 2.5f, s.scoring = static_cast<int32_t>(random.below(2)), s.normalize = random.chance(2);
  s.top_k = routes ? random.from(1, n_experts) : 0, s.n_groups = groups, s.groups_kept = random.from(1, groups);
  std::vector<Stored> stored;
  const auto expert = [&](int64_t width) {
    for (int part = 0; part < 2; ++part) stored.push_back(random_matrix(random, random_format(random), width, hidden));
    stored.push_back(random_matrix(random, random_format(random), hidden, width));
    const Stored* last = &stored.back();
    return es_expert{last[-2].matrix, last[-1].matrix, last->matrix};
  };
  Heap<es_expert> experts(n_experts);
  for (int64_t i = 0; i < n_experts; ++i) experts.data()[i] = expert(inner);
  if (shares) s.shared = expert(random.size(90));
  const Stored router = random_matrix(random, ES_BF16, n_experts, hidden);
  const Heap<uint16_t> norm = random_bf16(random, hidden), added = random_bf16(random, n * hidden);
  const Heap<uint16_t> x = random_bf16(random, n * hidden);
  const Heap<float> bias = random_floats(random, n_experts);
  if (routes) s.router = router.matrix, s.bias = random.chance(2) ? bias.data() : nullptr;
  s.norm = norm.data();
  int64_t used = -1;
  const auto call = [&](const es_ffn& layer, int64_t tokens) {
    return es_ffn_layer(&layer, experts.data(), x.data(), added.data(), tokens, &used);
  };
  if (broken != nullptr) {
    broken->refuse("absurdly many tokens", [&] { return call(s, broken->absurd()); });
    broken->refuse("more tokens than few", [&] { return call(s, ES_LAYER_TOKENS + 1); });
    es_ffn bad = s;
    bad.router.rows = bad.shared.gate.rows = 0;
    broken->refuse("no network", [&] { return call(bad, n); });
    if (shares) {
      bad = s, (random.chance(2) ? bad.shared.up : bad.shared.gate).rows += 1;
      broken->refuse("another width", [&] { return call(bad, n); });
    }
    if (routes) {
      bad = s, bad.top_k = random.chance(2) ? n_experts + 1 : 0;
      broken->refuse("more experts than there are", [&] { return call(bad, n); });
      bad = s, bad.router.rows = broken->absurd();
      broken->refuse("absurdly many experts", [&] { return call(bad, n); });
      broken->refuse("no experts", [&] { return es_ffn_layer(&s, nullptr, x.data(), added.data(), n, &used); });
    }
    bad = s, bad.norm = nullptr;
    broken->refuse("no norm", [&] { return call(bad, n); });
    broken->refuse("no x", [&] { return es_ffn_layer(&s, experts.data(), nullptr, added.data(), n, &used); });
    broken->refuse("nowhere to count",
                   [&] { return es_ffn_layer(&s, experts.data(), x.data(), added.data(), n, nullptr); });
    return 0;
  }
  if (!shares) {
    const Heap<uint16_t> before = filled<uint16_t>(n * hidden);
    std::memcpy(before.data(), x.data(), x.bytes());
    want_ok("es_ffn_layer", call(s, n));
    const uint64_t right = hash(x);
    std::memcpy(x.data(), before.data(), x.bytes());
    s.shared.down.rows = 1;  // its gate has no rows, so there is no such network, and nothing may be sized by it
    want_ok("es_ffn_layer", call(s, n));
    if (hash(x) != right) fail("es_ffn_layer is sized by a network that is not there");
  } else {
    want_ok("es_ffn_layer", call(s, n));
  }
  if (used < (routes ? s.top_k : 0) || used > n * s.top_k || used > n_experts) fail("es_ffn_layer counts wrongly");
  return hash(x);
}

}  // namespace
