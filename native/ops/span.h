// Attention of some rows over one span of keys: scores, softmax, and the weighted sum of the values.
//
// A row is one head of one query. The heads that share a kv head go through its keys together: all of them in absorbed
// MLA, whose values are a part of the keys; n_heads / n_kv_heads of them in grouped-query attention. A span is 512
// positions from a multiple of 512 and has its own softmax: its maximum, its sum, its mixture. What a span gives a row
// depends on the positions that the row sees and on nothing else of the call.
#pragma once

#include "math.h"
#include "product.h"

namespace {

constexpr int64_t span_keys = 512;
constexpr int64_t block_keys = 64;     // keys whose scores are computed together: 74 KB of K2.6's latents
constexpr int64_t few_rows_keys = 32;  // the same for at most 16 rows, whose pace memory sets
constexpr int64_t most_rows = 128;     // rows computed together: their scores over a span are 256 KB
constexpr int64_t strip_dims = 32;     // values mixed together: their panels are 16 KB and stay in the nearest cache
constexpr int64_t value_tiles = 8;     // of 32 keys, decoded together
constexpr int64_t score_tiles = 9;     // of 32 columns, multiplied together: two panels of queries are 18 KB

// One call, arguments checked.
struct AttentionCall {
  const es_attention* shape;
  const uint8_t* q;     // [tokens * n_heads, key_dim]
  const uint8_t* pool;  // [n_pool_pages * page_tokens, n_kv_heads, width]
  uint16_t* out;        // [tokens * n_heads, value_dim]
  int64_t width;        // of one kv head of one token, which holds its key and its value
  int64_t group;        // query heads that share a kv head
};

// Consecutive rows of one sequence and one kv head that are computed together.
struct RowBlock {
  const es_sequence* sequence;
  int64_t kv_head;
  int64_t offset, n;  // rows, counted from the first head of the group in the sequence's first query
  int64_t n_keys;     // that the last row sees
};

inline int64_t position(const AttentionCall& call, const RowBlock& rows, int64_t row) {
  return rows.sequence->start + (rows.offset + at_most(row, rows.n - 1)) / call.group;
}

// Where a row of the block lies among the rows of q and out.
inline int64_t row_of(const AttentionCall& call, const RowBlock& rows, int64_t row) {
  const int64_t token = (rows.offset + row) / call.group, member = (rows.offset + row) % call.group;
  return (rows.sequence->first + token) * call.shape->n_heads + rows.kv_head * call.group + member;
}

// What a task needs to itself.
template <class A>
struct Scratch {
  uint32_t* queries;   // panels of the rows: [panels][tiles of key_dim][16][16]
  uint8_t* gathered;   // [16][key_dim] bf16: rows of a panel that do not lie one after the other
  float* scores;       // [span_keys][rows up to sixteens]
  A* shares;           // [rows up to sixteens][span_keys], softmax before its division
  A* keys;             // [block_keys][key_dim up to tiles], for blocks that can't be read where they lie
  float* mixed;        // [rows up to sixteens][value_dim up to strips], over the spans so far
  const uint8_t** at;  // [span_keys]: where each key of the span lies
};

// Softmax before its division, a row a lane: the greatest score, the sum of shares. -inf and 0 where nothing is seen.
struct Softmax {
  alignas(64) float most[most_rows];
  alignas(64) float sum[most_rows];
};

template <class Tile>
struct Span : Tile {
  using T = Tile;
  using A = typename Tile::A;
  using F = typename Tile::F;
  using I = typename Tile::I;

  static void decode_queries(const AttentionCall& call, const RowBlock& rows, const Scratch<A>& to) {
    const int64_t key_dim = call.shape->key_dim, row_bytes = key_dim * 2;
    const int64_t tiles = up_to(key_dim, tile_cols) / tile_cols;
    for (int64_t row = 0; row < rows.n; row += 16) {
      const int64_t n = at_most(rows.n - row, 16);
      const uint8_t* from = call.q + row_of(call, rows, row) * row_bytes;
      if (call.group < call.shape->n_heads) {
        for (int64_t r = 0; r < n; ++r) {
          std::memcpy(to.gathered + r * row_bytes, call.q + row_of(call, rows, row + r) * row_bytes,
                      static_cast<size_t>(row_bytes));
        }
        from = to.gathered;
      }
      const Stored q = {ES_BF16, from, nullptr, n, key_dim, row_bytes, 0, 1};
      Bf16<T>::panel(q, 0, 0, tiles, to.queries + row / 16 * tiles * tile_words);
    }
  }

  // Scores and softmax of span `index`; returns how many of its keys matter, in whole tiles.
  static int64_t look(const AttentionCall& call, const RowBlock& rows, int64_t index, const Scratch<A>& s,
                      Softmax* soft) {
    const int64_t first = index * span_keys, n = at_most(rows.n_keys - first, span_keys), padded = up_to(n, tile_cols);
    find(call, rows, first, n, s.at);
    score(call, rows, n, s);
    for (int64_t row = 0; row < rows.n; row += 16) {
      int32_t last[16];  // the last key of the span that each row sees
      for (int64_t lane = 0; lane < 16; ++lane) {
        const int64_t seen = position(call, rows, row + lane) - first;
        last[lane] = static_cast<int32_t>(seen < 0 ? -1 : at_most(seen, span_keys));
      }
      soften(call, up_to(rows.n, 16), row, padded, last, s, soft);
    }
    return padded;
  }

  // to: [rows up to sixteens][strip_dims] with `stride` = shares times 32 values from `dim`: even ones, then odd ones.
  static void mix(const AttentionCall& call, const RowBlock& rows, int64_t dim, int64_t n_keys, const Scratch<A>& s,
                  float* to, int64_t stride) {
    alignas(64) uint32_t words[2 * value_tiles * tile_words];
    for (int64_t row = 0; row < up_to(rows.n, 16); ++row) std::memset(to + row * stride, 0, strip_dims * sizeof(float));
    for (int64_t key = 0; key < n_keys; key += value_tiles * tile_cols) {
      const int64_t tiles = at_most(n_keys - key, value_tiles * tile_cols) / tile_cols;
      decode_values(call, s.at + key, dim, tiles, words);
      T::multiply(up_to(rows.n, 4), s.shares + key, span_keys, words, value_tiles * tile_words, 2, tiles, to, stride);
    }
  }

 private:
  // Where the keys lie. The span's first fills the last tile: no row sees it there, and a share of 0 of it is nothing.
  static void find(const AttentionCall& call, const RowBlock& rows, int64_t first, int64_t n, const uint8_t** to) {
    const int64_t page_tokens = call.shape->page_tokens, token_bytes = call.shape->n_kv_heads * call.width * 2;
    const uint8_t* pool = call.pool + rows.kv_head * call.width * 2;
    int64_t page = first / page_tokens, slot = first % page_tokens;
    for (int64_t key = 0; key < n; ++key) {
      to[key] = pool + (rows.sequence->pages[page] * page_tokens + slot) * token_bytes;
      if (++slot == page_tokens) ++page, slot = 0;
    }
    for (int64_t key = n; key < up_to(n, tile_cols); ++key) to[key] = to[0];
  }

  static void score(const AttentionCall& call, const RowBlock& rows, int64_t n, const Scratch<A>& s) {
    const int64_t key_dim = call.shape->key_dim, tiles = up_to(key_dim, tile_cols) / tile_cols;
    const int64_t panels = up_to(rows.n, 16) / 16;
    const int64_t parts = panels == 1 ? 1 : (tiles + score_tiles - 1) / score_tiles;
    const int64_t part = (tiles + parts - 1) / parts, block = panels == 1 ? few_rows_keys : block_keys;
    for (int64_t key = 0; key < n; key += block) {
      const int64_t count = at_most(up_to(n, tile_cols) - key, block);
      int64_t stride = call.shape->n_kv_heads * call.width;
      const A* a = lying(call, s.at + key, count);
      if (a == nullptr) {
        stride = tiles * tile_cols;
        for (int64_t k = 0; k < count; ++k) {
          T::pack(reinterpret_cast<const uint16_t*>(s.at[key + k]), key_dim, s.keys + k * stride, stride);
        }
        a = s.keys;
      }
      float* to = s.scores + key * panels * 16;
      std::memset(to, 0, static_cast<size_t>(count * panels * 16) * sizeof(float));
      const int64_t next = key + block, coming = at_most(n - next, block);
      for (int64_t tile = 0; tile < tiles; tile += part) {
        const int64_t from = tile * tile_cols, end = tile + part < tiles ? from + part * tile_cols : call.width;
        fetch(s.at + next, coming, from * 2, (end - from) * 2);
        T::multiply(count, a + tile * tile_cols, stride, s.queries + tile * tile_words, tiles * tile_words, panels,
                    at_most(tiles - tile, part), to, panels * 16);
      }
    }
  }

  // Asks for columns of the keys to come, and for the values behind them: a processor's own prefetcher does not follow
  // rows that are read side by side.
  static void fetch(const uint8_t* const* keys, int64_t n, int64_t from, int64_t bytes) {
    for (int64_t key = 0; key < n; ++key) {
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(keys[key] + from + i, 0, 3);
    }
  }

  // The keys as a first operand where they are one already: bf16, in whole tiles, token after token.
  static const A* lying(const AttentionCall& call, const uint8_t* const* keys, int64_t count) {
    if constexpr (sizeof(A) == 2) {
      const int64_t token_bytes = call.shape->n_kv_heads * call.width * 2;
      bool in_order = call.shape->key_dim % tile_cols == 0;
      for (int64_t key = 1; key < count; ++key) in_order &= keys[key] - keys[key - 1] == token_bytes;
      if (in_order) return reinterpret_cast<const A*>(keys[0]);
    }
    return nullptr;
  }

  // Softmax of 16 rows over n_keys scores each, to shares in bf16. The sum is that of the rounded shares.
  static void soften(const AttentionCall& call, int64_t stride, int64_t row, int64_t n_keys, const int32_t* last,
                     const Scratch<A>& s, Softmax* soft) {
    const F most = greatest(s.scores + row, stride, n_keys, last);
    const F scale = T::broadcast(call.shape->scale), lowest = T::broadcast(-3.0e38f);
    const F scaled = T::mul(most, scale);
    const F base = T::sub(T::zero(), T::select_less(most, lowest, T::zero(), scaled));
    F even = T::zero(), odd = T::zero();
    for (int64_t tile = 0; tile < n_keys; tile += tile_cols) {
      alignas(64) uint32_t words[tile_words];
      for (int64_t pair = 0; pair < 16; ++pair) {
        const float* at = s.scores + (tile + pair * 2) * stride + row;
        const I both = T::round_pair(Math<T>::exp(T::fma(T::load(at), scale, base)),
                                     Math<T>::exp(T::fma(T::load(at + stride), scale, base)));
        even = T::add(even, T::lower(both));
        odd = T::add(odd, T::upper(both));
        T::store(words + pair * 16, both);
      }
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        I turned[4];
        T::transpose4(reinterpret_cast<const uint8_t*>(words) + quarter * 16, 64, turned);
        for (int64_t j = 0; j < 4; ++j) T::unpack(turned[j], s.shares + (row + quarter * 4 + j) * span_keys + tile);
      }
    }
    T::store(soft->most + row, scaled);
    T::store(soft->sum + row, T::add(even, odd));
  }

  // The greatest score that each of 16 rows sees; scores that it does not see become -inf.
  static F greatest(float* scores, int64_t stride, int64_t n_keys, const int32_t* last) {
    const F none = T::broadcast(-__builtin_inff());
    F most[4] = {none, none, none, none};
    int64_t key = 0, common = n_keys;
    for (int64_t lane = 0; lane < 16; ++lane) common = at_most(common, last[lane] + 1);
    for (; key + 4 <= common; key += 4) {
      for (int64_t j = 0; j < 4; ++j) most[j] = T::max(most[j], T::load(scores + (key + j) * stride));
    }
    const I seen = T::load_int(last);
    for (; key < n_keys; ++key) {
      const F score = T::select_below(seen, static_cast<int32_t>(key), none, T::load(scores + key * stride));
      T::store(scores + key * stride, score);
      most[0] = T::max(most[0], score);
    }
    return T::max(T::max(most[0], most[1]), T::max(most[2], most[3]));
  }

  // Two panels of `tiles` tiles: the even ones of 32 values from `dim`, and the odd ones. What lies behind the values
  // gives columns that nobody reads.
  static void decode_values(const AttentionCall& call, const uint8_t* const* keys, int64_t dim, int64_t tiles,
                            uint32_t* words) {
    const int64_t first = call.shape->value_offset + dim;
    const bool whole = first + strip_dims <= call.width;
    const I lower = T::broadcast_int(0xffffu), upper = T::broadcast_int(0xffff0000u);
    for (int64_t pair = 0; pair < tiles * 16; ++pair, words += 16) {
      const uint8_t *even = keys[pair * 2] + first * 2, *odd = keys[pair * 2 + 1] + first * 2;
      const I a = whole ? T::load_int(even) : rest(even, call.width - first);
      const I b = whole ? T::load_int(odd) : rest(odd, call.width - first);
      T::store(words, T::either(T::both(a, lower), T::template left<16>(b)));
      T::store(words + value_tiles * tile_words, T::either(T::template right<16>(a), T::both(b, upper)));
    }
  }

  static I rest(const uint8_t* values, int64_t n) {
    alignas(64) uint8_t staged[64] = {};
    std::memcpy(staged, values, static_cast<size_t>(n * 2));
    return T::load_int(staged);
  }
};

}  // namespace
