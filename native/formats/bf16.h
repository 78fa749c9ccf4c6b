// bf16: the upper half of an fp32, row-major, and the same stored by columns.
#pragma once

#include "matrix.h"

namespace {

template <class T>
struct Bf16 {
  static void panel(const Stored& m, int64_t row, int64_t first, int64_t n_tiles, uint32_t* words) {
    const uint8_t* from = m.codes + row * m.row_bytes + first * 64;
    const int64_t rows = at_most(m.rows - row, tile_rows);
    for (int64_t t = 0; t < n_tiles; ++t, from += 64, words += tile_words) {
      const int64_t width = at_most(m.cols * 2 - (first + t) * 64, 64);
      alignas(64) uint8_t staged[16 * 64];
      const bool whole = rows == tile_rows && width == 64;
      if (!whole) stage(from, m.row_bytes, rows, width, staged, 64);
      const uint8_t* base = whole ? from : staged;
      const int64_t stride = whole ? m.row_bytes : 64;
      for (int64_t quarter = 0; quarter < 4; ++quarter) {
        typename T::I pairs[4];
        T::transpose4(base + quarter * 16, stride, pairs);
        for (int64_t j = 0; j < 4; ++j) T::store(words + (quarter * 4 + j) * 16, pairs[j]);
      }
    }
  }
};

// The matrix [rows, cols] lies as [cols, rows]: row_bytes is from one column to the next.
template <class T>
struct Bf16ByColumns {
  static void panel(const Stored& m, int64_t row, int64_t first, int64_t n_tiles, uint32_t* words) {
    const int64_t rows = at_most(m.rows - row, tile_rows);
    for (int64_t t = 0; t < n_tiles; ++t) {
      for (int64_t pair = 0; pair < 16; ++pair, words += 16) {
        const int64_t col = (first + t) * tile_cols + pair * 2;
        T::store(words, T::pair(column(m, row, col, rows), column(m, row, col + 1, rows)));
      }
    }
  }

 private:
  static typename T::I column(const Stored& m, int64_t row, int64_t col, int64_t rows) {
    const uint8_t* from = m.codes + col * m.row_bytes + row * 2;
    if (col < m.cols && rows == tile_rows) return T::load16(from);
    alignas(32) uint8_t staged[32] = {};
    if (col < m.cols) std::memcpy(staged, from, static_cast<size_t>(rows * 2));
    return T::load16(staged);
  }
};

}  // namespace
