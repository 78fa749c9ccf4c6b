// y = x W^T for a matrix in any format, for one matrix or for one a head.
#pragma once

#include "product.h"

namespace {

template <class Tile>
struct Linear : Product<Tile> {
  using P = Product<Tile>;
  using A = typename Tile::A;

  // y: [m, rows], bf16 or, where `to_fp32`, fp32. False where memory is short.
  static bool run(const es_matrix& matrix, const uint16_t* x, int64_t m, void* y, bool to_fp32) {
    earthshine::Exclusive lock;
    const Stored w = stored(matrix);
    const Panel panel = panel_of<Tile>(matrix.format);
    const int64_t padded = up_to(w.cols, tile_cols);
    A* packed = static_cast<A*>(earthshine::workspace(up_to(at_most(m, many_rows), 16) * padded * sizeof(A)));
    if (packed == nullptr) return false;
    for (int64_t first = 0; first < m; first += many_rows) {
      const int64_t rows = at_most(m - first, many_rows);
      pack_rows(w, x + first * w.cols, rows, packed, padded);
      const int64_t width = strip_width(rows), strips = (w.rows + width - 1) / width;
      earthshine::parallel(strips, [&](int64_t index) {
        Tile::begin();
        const int64_t row = index * width, n = at_most(w.rows - row, width);
        float* sums = sums_of_thread.value;
        P::strip(w, panel, row, width, packed, rows, sums);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = (first + r) * w.rows + row;
          if (to_fp32) std::memcpy(static_cast<float*>(y) + at, sums + r * width, static_cast<size_t>(n) * 4);
          else P::round_row(sums + r * width, n, static_cast<uint16_t*>(y) + at);
        }
        Tile::end();
      });
    }
    return true;
  }

  // A bf16 matrix a head: y[t][h] = x[t][h] W_h^T. A head is one task, since its rows are packed for it alone.
  static bool by_head(const es_heads& shape, const uint8_t* codes, const uint16_t* x, int64_t m, uint16_t* y) {
    earthshine::Exclusive lock;
    const bool transposed = shape.by_columns != 0;
    const int32_t format = transposed ? bf16_by_columns : ES_BF16;
    const Panel panel = panel_of<Tile>(format);
    const int64_t padded = up_to(shape.cols, tile_cols);
    const int64_t chunk = at_most(m, many_rows / 4), rows_padded = up_to(chunk, 16);
    A* packed = static_cast<A*>(earthshine::workspace(shape.n_heads * rows_padded * padded * sizeof(A)));
    if (packed == nullptr) return false;
    for (int64_t first = 0; first < m; first += chunk) {
      const int64_t rows = at_most(m - first, chunk);
      const int64_t width = strip_width(rows), strips = (shape.rows + width - 1) / width;
      earthshine::parallel(shape.n_heads, [&](int64_t head) {
        Tile::begin();
        A* mine = packed + head * rows_padded * padded;
        const uint16_t* from = x + first * shape.x_row + head * shape.x_head;
        for (int64_t r = 0; r < rows; ++r) Tile::pack(from + r * shape.x_row, shape.cols, mine + r * padded, padded);
        const int64_t row_bytes = (transposed ? shape.rows : shape.cols) * 2;
        const uint8_t* lies = codes + head * shape.head_bytes;
        const Stored w = {format, lies, nullptr, shape.rows, shape.cols, row_bytes, 0, 1};
        float* sums = sums_of_thread.value;
        if (rows <= few_rows) P::fetch(lies, shape.rows * shape.cols * 2);
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t row = strip * width, n = at_most(shape.rows - row, width);
          P::strip(w, panel, row, width, mine, rows, sums);
          uint16_t* to = y + first * shape.y_row + head * shape.y_head + row;
          for (int64_t r = 0; r < rows; ++r) P::round_row(sums + r * width, n, to + r * shape.y_row);
        }
        Tile::end();
      });
    }
    return true;
  }

  // The matrix itself, bf16 [rows, cols].
  static void decode(const es_matrix& matrix, uint16_t* out) {
    const Stored w = stored(matrix);
    const Panel panel = panel_of<Tile>(matrix.format);
    const int64_t tiles = up_to(w.cols, tile_cols) / tile_cols;
    earthshine::parallel((w.rows + 15) / 16, [&](int64_t index) {
      alignas(64) uint32_t words[panel_tiles * tile_words];
      const int64_t row = index * 16, rows = at_most(w.rows - row, 16);
      for (int64_t first = 0; first < tiles; first += panel_tiles) {
        panel(w, row, first, at_most(tiles - first, panel_tiles), words);
        const int64_t cols = at_most(w.cols - first * tile_cols, panel_tiles * tile_cols);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            out[(row + r) * w.cols + first * tile_cols + c] = static_cast<uint16_t>(words[c / 2 * 16 + r] >>
                                                                                    (c % 2 * 16));
          }
        }
      }
    });
  }

  // Rows are few or wide: a task takes eight.
  static void pack_rows(const Stored& w, const uint16_t* x, int64_t rows, A* to, int64_t padded) {
    earthshine::parallel((rows + 7) / 8, [&](int64_t index) {
      for (int64_t r = index * 8; r < at_most(rows, index * 8 + 8); ++r) {
        P::pack(w.format, x + r * w.cols, w.cols, to + r * padded, padded);
      }
    });
  }
};

}  // namespace
