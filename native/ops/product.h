// The product under every operation: packed rows by a strip of a stored matrix, decoded a few columns at a time.
#pragma once

#include "../formats/bf16.h"
#include "../formats/fp8_block128.h"
#include "../formats/int4_group32.h"
#include "../formats/int8_group128.h"
#include "../pool.h"
#include "dots.h"
#include "earthshine.h"

namespace {

template <class T>
Panel panel_of(int32_t format) {
  switch (format) {
    case ES_BF16: return Bf16<T>::panel;
    case ES_FP8_BLOCK128: return Fp8Block128<T>::panel;
    case ES_INT4_GROUP32: return Int4Group32<T>::panel;
    case ES_INT8_GROUP128: return Int8Group128<T>::panel;
    default: return Bf16ByColumns<T>::panel;
  }
}

inline int64_t up_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline Stored stored(const es_matrix& matrix) {
  const uint8_t* codes = static_cast<const uint8_t*>(matrix.codes);
  const uint8_t* scales = static_cast<const uint8_t*>(matrix.scales);
  const int64_t rows = matrix.rows, cols = matrix.cols;
  switch (matrix.format) {
    case ES_FP8_BLOCK128: return {matrix.format, codes, scales, rows, cols, cols, (cols + 127) / 128 * 4, 128};
    case ES_INT4_GROUP32: return {matrix.format, codes, scales, rows, cols, cols / 2, cols / 32 * 2, 1};
    case ES_INT8_GROUP128: return {matrix.format, codes, scales, rows, cols, cols, (cols + 127) / 128 * 4, 1};
    default: return {matrix.format, codes, nullptr, rows, cols, cols * 2, 0, 1};
  }
}

// Widths of a strip. A narrow one gives every thread work when there are few rows; a wide one reads the packed rows
// from the outer caches less often when there are many.
constexpr int64_t narrow = 64, wide = 128;
constexpr int64_t many_rows = 256;  // rows packed at once: a chunk of 1024 columns of bf16 is half of an L2 cache

// Up to this many rows memory, not arithmetic, is the bound.
constexpr int64_t few_rows = 8;

constexpr int64_t most_fetched = 512 * 1024;  // half of a second-level cache

inline int64_t strip_width(int64_t rows) { return rows <= 32 ? narrow : wide; }

// Room for a strip's results: rows come in sixteens for AMX, and of a few rows strips may be longer.
struct Sums { alignas(64) float value[many_rows * wide]; };

template <class Tile>
struct Product : Tile {
  using T = Tile;
  using A = typename Tile::A;

  // Packs a row of n columns, padded with zeros, for products with matrices of this format.
  static void pack(int32_t format, const uint16_t* from, int64_t n, A* to, int64_t padded) {
    T::pack(from, n, to, padded);
    if constexpr (Tile::in_rows) {
      if (Dots<Tile>::arranges(format)) Dots<Tile>::arrange(to, padded);
    }
  }

  // Whether what is packed for one format serves another.
  static bool same_order(int32_t format, int32_t other) {
    if constexpr (Tile::in_rows) return Dots<Tile>::arranges(format) == Dots<Tile>::arranges(other);
    return true;
  }

  // sums: [m up to sixteens][width] = a [m][cols padded to 32] times rows from `row` of the matrix, transposed.
  static void strip(const Stored& w, Panel panel, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    if constexpr (Tile::in_rows) {
      if (Dots<Tile>::takes(w)) {
        std::memset(sums, 0, static_cast<size_t>(m * width) * sizeof(float));
        return Dots<Tile>::strip(w, row, width, a, m, sums);
      }
    }
    const int64_t padded = up_to(w.cols, tile_cols), tiles = padded / tile_cols;
    std::memset(sums, 0, static_cast<size_t>(up_to(m, 16) * width) * sizeof(float));
    // Four panels at once for few rows, so that there are enough chains of sums to hide the latency of each.
    const int64_t together = m <= few_rows ? 4 : 2;
    if (m <= few_rows && w.scales != nullptr) {
      const int64_t rows = at_most(w.rows - row, width);
      fetch(w.codes + row * w.row_bytes, at_most(rows * w.row_bytes, most_fetched));
      if (w.scale_rows == 1) fetch(w.scales + row * w.scale_bytes, rows * w.scale_bytes);
    }
    alignas(64) uint32_t words[4 * panel_tiles * tile_words];
    for (int64_t first = 0; first < tiles; first += panel_tiles) {
      const int64_t n_tiles = at_most(tiles - first, panel_tiles);
      for (int64_t part = 0; part < width && row + part < w.rows; part += together * 16) {
        const int64_t n_panels = at_most((w.rows - row - part + 15) / 16, together);
        for (int64_t p = 0; p < n_panels; ++p) {
          panel(w, row + part + p * 16, first, n_tiles, words + p * panel_tiles * tile_words);
        }
        T::multiply(m, a + first * tile_cols, padded, words, panel_tiles * tile_words, n_panels, n_tiles, sums + part,
                    width);
      }
    }
  }

  // Reads one byte of every cache line of some rows, in order: a processor's own prefetcher follows this, but not the
  // short pieces of many rows that quantised formats are decoded from (docs/log.md).
  static void fetch(const uint8_t* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) {
      const uint8_t value = *static_cast<const volatile uint8_t*>(from + i);
      static_cast<void>(value);
    }
  }

  // Rounds n sums to bf16.
  static void round_row(const float* from, int64_t n, uint16_t* to) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) T::store16(to + i, T::round(T::load(from + i)));
    if (i < n) {
      alignas(64) float rest[16] = {};
      uint16_t rounded[16];
      std::memcpy(rest, from + i, static_cast<size_t>(n - i) * sizeof(float));
      T::store16(rounded, T::round(T::load(rest)));
      std::memcpy(to + i, rounded, static_cast<size_t>(n - i) * 2);
    }
  }
};

inline thread_local Sums sums_of_thread;
inline thread_local Sums more_sums_of_thread;

}  // namespace
