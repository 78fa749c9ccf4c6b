// INT8, symmetric, 128 columns of a row to an fp32 scale: Earthshine's own form of a quantised trunk.
#pragma once

#include "matrix.h"

namespace {

template <class T>
struct Int8Group128 {
  static void panel(const Stored& m, int64_t row, int64_t first, int64_t n_tiles, uint32_t* words) {
    const int64_t rows = at_most(m.rows - row, tile_rows);
    const uint8_t* from = m.codes + row * m.row_bytes + first * 32;
    for (int64_t t = 0; t < n_tiles; ++t, from += 32, words += tile_words) {
      alignas(64) float scale[16] = {};
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(scale + r, m.scales + (row + r) * m.scale_bytes + (first + t) / 4 * 4, sizeof(float));
      }
      const int64_t width = at_most(m.cols - (first + t) * tile_cols, tile_cols);
      alignas(64) uint8_t staged[16 * 32];
      const bool whole = rows == tile_rows && width == tile_cols;
      if (!whole) stage(from, m.row_bytes, rows, width, staged, 32);
      tile(whole ? from : staged, whole ? m.row_bytes : 32, one_nan<T>(T::load(scale)), words);
    }
  }

 private:
  static void tile(const uint8_t* from, int64_t stride, typename T::F scale, uint32_t* words) {
    for (int64_t half = 0; half < 2; ++half) {
      typename T::I codes[4];
      T::transpose4(from + half * 16, stride, codes);
      for (int64_t w = 0; w < 4; ++w, words += 32) {
        T::store(words, T::round_pair(widen<0>(codes[w], scale), widen<8>(codes[w], scale)));
        T::store(words + 16, T::round_pair(widen<16>(codes[w], scale), widen<24>(codes[w], scale)));
      }
    }
  }

  template <int from>
  static typename T::F widen(typename T::I codes, typename T::F scale) {
    return T::mul(T::from_int(T::template right_signed<24>(T::template left<24 - from>(codes))), scale);
  }
};

}  // namespace
