// INT4, symmetric, 32 columns to a bf16 scale: the routed experts of Kimi-K2-Thinking, K2.5 and K2.6.
//
// Byte b of a row holds column 2b in its low nibble and column 2b + 1 in its high one, offset by 8. A whole number up
// to 8 times a bf16 is exact in fp32, so the one rounding to bf16 is the publisher's own.
#pragma once

#include "matrix.h"

namespace {

template <class T>
struct Int4Group32 {
  static void panel(const Stored& m, int64_t row, int64_t first, int64_t n_tiles, uint32_t* words) {
    const int64_t rows = at_most(m.rows - row, tile_rows);
    const uint8_t* from = m.codes + row * m.row_bytes + first * 16;
    const uint8_t* scales = m.scales + row * m.scale_bytes + first * 2;
    alignas(64) uint8_t staged_scales[16 * 16];
    const bool whole_scales = rows == tile_rows && n_tiles == panel_tiles;
    if (!whole_scales) stage(scales, m.scale_bytes, rows, n_tiles * 2, staged_scales, 16);
    typename T::I scale_pairs[4];  // of tiles 2i and 2i + 1
    T::transpose4(whole_scales ? scales : staged_scales, whole_scales ? m.scale_bytes : 16, scale_pairs);
    for (int64_t t = 0; t < n_tiles; ++t, from += 16, words += tile_words) {
      alignas(64) uint8_t staged[16 * 16];
      if (rows < tile_rows) stage(from, m.row_bytes, rows, 16, staged, 16);
      const bool whole = rows == tile_rows;
      const typename T::I pair = scale_pairs[t / 2];
      const typename T::F scale = t % 2 == 0 ? T::lower(pair) : T::upper(pair);
      tile(whole ? from : staged, whole ? m.row_bytes : 16, scale, words);
    }
  }

 private:
  // Rows that are absent have the scale zero.
  static void tile(const uint8_t* from, int64_t stride, typename T::F scale, uint32_t* words) {
    typename T::I codes[4];
    T::transpose4(from, stride, codes);
    for (int64_t w = 0; w < 4; ++w) {
      typename T::I rest = codes[w];
      for (int64_t pair = 0; pair < 4; ++pair) {
        const typename T::F even = T::mul(T::offset_nibble(rest), scale);
        const typename T::F odd = T::mul(T::offset_nibble(T::template right<4>(rest)), scale);
        T::store(words + (w * 4 + pair) * 16, T::round_pair(even, odd));
        rest = T::template right<8>(rest);
      }
    }
  }
};

}  // namespace
