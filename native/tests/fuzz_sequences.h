// The fuzzer's calls over the tokens of several sequences.
#pragma once

#include <vector>

#include "fuzz.h"

namespace {

uint64_t attention(Random& random, Breaks* broken) {
  es_attention s = {};
  s.n_kv_heads = random.from(1, 4), s.n_heads = s.n_kv_heads * random.from(1, 9), s.key_dim = random.size(130);
  s.value_dim = random.size(130), s.value_offset = random.below(2) * random.below(s.key_dim + 20);
  s.page_tokens = random.from(1, 20), s.n_pool_pages = random.from(1, 40), s.scale = 0.1f;
  const int64_t end = s.value_offset + s.value_dim, width = s.key_dim < end ? end : s.key_dim;
  const int64_t n_sequences = random.from(1, 3);
  std::vector<Heap<int32_t>> pages;
  Heap<es_sequence> sequences(n_sequences);
  int64_t tokens = 0;
  for (int64_t i = 0; i < n_sequences; ++i) {
    const int64_t n_pages = random.from(1, 25), room = n_pages * s.page_tokens;
    const int64_t rows = random.from(1, room < 30 ? room : 30), first = tokens + random.below(2);
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
    int64_t A::*const sizes[] = {&A::n_heads,   &A::n_kv_heads,  &A::key_dim,     &A::value_offset,
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

}  // namespace
