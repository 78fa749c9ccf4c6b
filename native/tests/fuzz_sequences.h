// The fuzzer's calls over the tokens of several sequences.
#pragma once

#include <vector>

#include "fuzz.h"

namespace {

uint64_t attention(Random& random, Breaks* broken) {
  es_attention s = {};
  const bool large = random.chance(4);  // of the operations, this one takes most of the time
  s.n_kv_heads = random.from(1, large ? 4 : 2), s.n_heads = s.n_kv_heads * random.from(1, large ? 9 : 5);
  s.key_dim = random.size(130);
  s.value_dim = random.size(130), s.value_offset = random.below(2) * random.below(s.key_dim + 20);
  s.page_tokens = random.from(1, 20), s.n_pool_pages = random.from(1, 40), s.scale = 0.1f;
  const int64_t end = s.value_offset + s.value_dim, width = s.key_dim < end ? end : s.key_dim;
  const int64_t n_sequences = random.from(1, 3);
  std::vector<Heap<int32_t>> pages;
  Heap<es_sequence> sequences(n_sequences);
  int64_t tokens = 0;
  for (int64_t i = 0; i < n_sequences; ++i) {
    const int64_t n_pages = random.from(1, 25), room = n_pages * s.page_tokens;
    const int64_t most = large ? 30 : 12, rows = random.from(1, room < most ? room : most);
    const int64_t first = tokens + random.below(2);
    pages.emplace_back(n_pages);
    for (int64_t p = 0; p < n_pages; ++p) pages.back().data()[p] = static_cast<int32_t>(random.below(s.n_pool_pages));
    sequences.data()[i] = {first, rows, random.from(0, room - rows), pages.back().data(), n_pages};
    tokens = first + rows;
  }
  const Heap<uint16_t> q = random_bf16(random, tokens * s.n_heads * s.key_dim);
  const Heap<uint16_t> pool = random_bf16(random, s.n_pool_pages * s.page_tokens * s.n_kv_heads * width);
  const Heap<uint16_t> out = filled<uint16_t>(tokens * s.n_heads * s.value_dim);
  const auto call = [&](const es_attention& shape, int64_t n, int64_t batch) {
    return es_paged_attention(&shape, sequences.data(), n, q.data(), batch, pool.data(), out.data());
  };
  if (broken != nullptr) {
    using A = es_attention;
    int64_t A::* const sizes[] = {&A::n_heads,   &A::n_kv_heads,  &A::key_dim,     &A::value_offset,
                                  &A::value_dim, &A::page_tokens, &A::n_pool_pages};
    es_attention bad = s;
    bad.*sizes[random.below(7)] = broken->absurd();
    broken->refuse("an absurd size", [&] { return call(bad, n_sequences, tokens); });
    bad = s, bad.n_heads = s.n_kv_heads + 1, bad.n_kv_heads = s.n_kv_heads + 2;
    broken->refuse("heads that share nothing", [&] { return call(bad, n_sequences, tokens); });
    bad = s, bad.scale = random.chance(2) ? __builtin_nanf("") : -1.0f;
    broken->refuse("a scale that is none", [&] { return call(bad, n_sequences, tokens); });
    broken->refuse("absurdly many tokens", [&] { return call(s, n_sequences, broken->absurd()); });
    broken->refuse("a negative number of sequences", [&] { return call(s, -1, tokens); });
    broken->refuse("rows outside the batch", [&] { return call(s, n_sequences, tokens - 1); });
    es_sequence& one = sequences.data()[random.below(n_sequences)];
    const es_sequence right = one;
    (random.chance(2) ? one.first : one.rows) = broken->absurd();
    broken->refuse("absurd rows", [&] { return call(s, n_sequences, tokens); });
    one = right, (random.chance(2) ? one.start : one.n_pages) = broken->absurd();
    broken->refuse("an absurd context", [&] { return call(s, n_sequences, tokens); });
    one = right, one.start = one.n_pages * s.page_tokens - one.rows + 1;
    broken->refuse("fewer pages than positions", [&] { return call(s, n_sequences, tokens); });
    one = right, one.pages = nullptr;
    broken->refuse("no pages", [&] { return call(s, n_sequences, tokens); });
    one = right;
    const_cast<int32_t*>(one.pages)[0] = static_cast<int32_t>(random.chance(2) ? -1 : s.n_pool_pages);
    broken->refuse("a page outside the pool", [&] { return call(s, n_sequences, tokens); });
    return 0;
  }
  want_ok("es_paged_attention", call(s, n_sequences, tokens));
  return hash(out);
}

uint64_t kda(Random& random, Breaks* broken) {
  es_kda_shape s = {random.from(1, 3),
                    16 * random.from(1, random.chance(3) ? 16 : 4),
                    random.from(1, 8),
                    static_cast<int32_t>(random.below(2)),
                    static_cast<int32_t>(random.below(2)),
                    static_cast<int32_t>(random.below(2)),
                    -5.0f};
  const int64_t width = s.n_heads * s.head_dim, n_sequences = random.from(1, 3);
  std::vector<Heap<float>> states;
  std::vector<Heap<uint16_t>> tails;
  Heap<es_recurrent> sequences(n_sequences);
  int64_t tokens = 0;
  for (int64_t i = 0; i < n_sequences; ++i) {
    const int64_t first = tokens + random.below(2), rows = random.from(0, random.chance(3) ? 40 : 4);
    states.push_back(random_floats(random, width * s.head_dim));
    tails.push_back(random_bf16(random, (s.kernel - 1) * 3 * width));
    sequences.data()[i] = {first, rows, states.back().data(), tails.back().data()};
    tokens = first + rows;
  }
  const Heap<uint16_t> qkv = random_bf16(random, tokens * 3 * width);
  const Heap<uint16_t> gate = random_bf16(random, tokens * width * (s.gate_is_fp32 + 1));
  const Heap<uint16_t> beta = random_bf16(random, tokens * s.n_heads * (s.beta_is_fp32 + 1));
  const Heap<float> conv = random_floats(random, 3 * width * s.kernel), a_log = random_floats(random, s.n_heads);
  const Heap<float> dt_bias = random_floats(random, width), out = filled<float>(tokens * width);
  const auto call = [&](const es_kda_shape& shape, int64_t n, int64_t batch) {
    return es_kda(&shape, sequences.data(), n, qkv.data(), gate.data(), beta.data(), batch, conv.data(), a_log.data(),
                  dt_bias.data(), out.data());
  };
  if (broken != nullptr) {
    int64_t es_kda_shape::* const sizes[] = {&es_kda_shape::n_heads, &es_kda_shape::head_dim, &es_kda_shape::kernel};
    es_kda_shape bad = s;
    bad.*sizes[random.below(3)] = broken->absurd();
    broken->refuse("an absurd size", [&] { return call(bad, n_sequences, tokens); });
    bad = s, bad.head_dim += random.chance(2) ? random.from(1, 15) : 256;
    broken->refuse("heads that fit no vectors", [&] { return call(bad, n_sequences, tokens); });
    bad = s, bad.kernel = random.chance(2) ? 0 : random.from(9, 1 << 20);
    broken->refuse("a kernel that is none", [&] { return call(bad, n_sequences, tokens); });
    bad = s, bad.is_bounded = 1, bad.lower_bound = random.chance(2) ? __builtin_nanf("") : 1.0f;
    broken->refuse("a bound that is none", [&] { return call(bad, n_sequences, tokens); });
    broken->refuse("absurdly many tokens", [&] { return call(s, n_sequences, broken->absurd()); });
    broken->refuse("a negative number of sequences", [&] { return call(s, -1, tokens); });
    es_recurrent& one = sequences.data()[random.below(n_sequences)];
    const es_recurrent right = one;
    (random.chance(2) ? one.first : one.rows) = broken->absurd();
    broken->refuse("absurd rows", [&] { return call(s, n_sequences, tokens); });
    one = right, one.rows = tokens - one.first + 1;
    broken->refuse("rows outside the batch", [&] { return call(s, n_sequences, tokens); });
    one = right, one.state = nullptr;
    broken->refuse("no state", [&] { return call(s, n_sequences, tokens); });
    one = right;
    if (n_sequences > 1) {
      sequences.data()[0].state = sequences.data()[1].state;
      broken->refuse("a state that two share", [&] { return call(s, n_sequences, tokens); });
    }
    return 0;
  }
  want_ok("es_kda", call(s, n_sequences, tokens));
  uint64_t found = hash(out);
  for (const Heap<float>& state : states) found = found * 31 + hash(state);
  for (const Heap<uint16_t>& tail : tails) found = found * 31 + hash(tail);
  return found;
}

}  // namespace
