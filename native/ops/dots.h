// The product where a processor multiplies pairs within rows: both operands are read along their rows, as they lie.
//
// For tiles with `in_rows` (AVX512_BF16) and formats that decode along a row. Weights in bf16 are not rearranged at
// all, and a few rows are read from one end to the other, which a processor's own prefetcher follows.
// The order of summation, for one row and one column of the result: columns in chunks of 1024; within a chunk 16 sums,
// of pairs 16 apart; these are added as a tree, and chunks one after the other. It depends on nothing else.
#pragma once

#include "../formats/matrix.h"
#include "earthshine.h"

namespace {

template <class T>
struct RowOfBf16 {
  const uint8_t* codes;

  RowOfBf16() = default;
  RowOfBf16(const Stored& m, int64_t row) : codes(m.codes + row * m.row_bytes) {}
  void prefetch(int64_t, int64_t) const {}
  typename T::I block(int64_t b) const { return T::load_int(codes + b * 64); }
};

// Every group has one scale, so its sixteen values are multiplied and rounded once, and its codes are looked up.
template <class T>
struct RowOfInt4 {
  const uint8_t* codes;
  const uint8_t* scales;

  RowOfInt4() = default;
  RowOfInt4(const Stored& m, int64_t row)
      : codes(m.codes + row * m.row_bytes), scales(m.scales + row * m.scale_bytes) {}
  // Asks for what lies `ahead` bytes further on. Rows of codes are short, and a processor's own prefetcher begins anew
  // with each: 10 to 14 GB/s a thread became 18 to 19 while memory was slow, and nothing changed while it was fast.
  void prefetch(int64_t b, int64_t ahead) const {
    if (b % 4 == 0) __builtin_prefetch(codes + b * 16 + ahead);
    if (b % 32 == 0) __builtin_prefetch(scales + b * 2 + ahead / 8);
  }
  typename T::I block(int64_t b) const {
    uint16_t half;
    std::memcpy(&half, scales + b * 2, sizeof half);
    const typename T::F scale = T::broadcast(float_from_bits(static_cast<uint32_t>(half) << 16));
    return T::choose(T::twice(T::mul(T::offset_codes(), scale)), T::nibbles(codes + b * 16));
  }
};

template <class T>
struct Dots {
  using A = typename T::A;
  static constexpr int64_t chunk_blocks = 32;
  static constexpr int64_t together = 16;  // rows of the matrix that are decoded at once for many rows of a

  static bool takes(const Stored& w) {
    return w.cols % tile_cols == 0 && (w.format == ES_BF16 || w.format == ES_INT4_GROUP32);
  }

  // As Product::strip; a's rows are w.cols long.
  static void strip(const Stored& w, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    if (w.format == ES_BF16) run<RowOfBf16<T>>(w, row, width, a, m, sums);
    else run<RowOfInt4<T>>(w, row, width, a, m, sums);
    for (int64_t c = w.rows - row; c < width; ++c) {  // which repeat the last row so far
      for (int64_t r = 0; r < m; ++r) sums[r * width + c] = 0.0f;
    }
  }

 private:
  template <class Row>
  static void run(const Stored& w, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    switch (m) {
      case 1: return few<1, 8, Row>(w, row, width, a, sums);
      case 2: return few<2, 8, Row>(w, row, width, a, sums);
      case 3: return few<3, 4, Row>(w, row, width, a, sums);
      case 4: return few<4, 4, Row>(w, row, width, a, sums);
      default: return many<Row>(w, row, width, a, m, sums);
    }
  }

  template <class Row>
  static Row row_at(const Stored& w, int64_t row) {
    return Row(w, row < w.rows ? row : w.rows - 1);  // beyond the last one the result is not used
  }

  template <int rows, int columns, class Row>
  static void few(const Stored& w, int64_t row, int64_t width, const A* a, float* sums) {
    for (int64_t part = 0; part < width && row + part < w.rows; part += columns) {
      Row mine[columns];
      for (int c = 0; c < columns; ++c) mine[c] = row_at<Row>(w, row + part + c);
      for (int64_t first = 0; first < w.cols / tile_cols; first += chunk_blocks) {
        const int64_t n = at_most(w.cols / tile_cols - first, chunk_blocks);
        block<rows, columns>(a + first * tile_cols, w.cols, mine, first, n, sums + part, width, columns * w.row_bytes);
      }
    }
  }

  template <class Row>
  static void many(const Stored& w, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    alignas(64) uint16_t decoded[together][chunk_blocks * tile_cols];
    for (int64_t first = 0; first < w.cols / tile_cols; first += chunk_blocks) {
      const int64_t n = at_most(w.cols / tile_cols - first, chunk_blocks);
      for (int64_t part = 0; part < width && row + part < w.rows; part += together) {
        RowOfBf16<T> mine[together];
        for (int64_t c = 0; c < together; ++c) {
          const Row from = row_at<Row>(w, row + part + c);
          mine[c].codes = from.codes + first * 64;
          if (w.format == ES_BF16) continue;
          for (int64_t b = 0; b < n; ++b) {
            T::store(reinterpret_cast<uint32_t*>(decoded[c] + b * tile_cols), from.block(first + b));
          }
          mine[c].codes = reinterpret_cast<const uint8_t*>(decoded[c]);
        }
        rows_of(m, a + first * tile_cols, w.cols, mine, n, sums + part, width);
      }
    }
  }

  static void rows_of(int64_t m, const A* a, int64_t stride, const RowOfBf16<T>* mine, int64_t n, float* sums,
                      int64_t width) {
    int64_t r = 0;
    for (; r + 4 <= m; r += 4) {
      for (int c = 0; c < together; c += 4) {
        block<4, 4>(a + r * stride, stride, mine + c, 0, n, sums + r * width + c, width);
      }
    }
    for (; r < m; ++r) {
      for (int c = 0; c < together; c += 8) {
        block<1, 8>(a + r * stride, stride, mine + c, 0, n, sums + r * width + c, width);
      }
    }
  }

  // sums[r][c] += the dot product of n blocks of a's row r and the matrix's row c, from block `first` of the latter.
  template <int rows, int columns, class Row>
  static void block(const A* a, int64_t stride, const Row* w, int64_t first, int64_t n, float* sums, int64_t width,
                    int64_t ahead = 0) {
    typename T::F sum[rows][columns];
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) sum[r][c] = T::zero();
    }
    for (int64_t b = 0; b < n; ++b) {
      typename T::I x[rows];
      for (int r = 0; r < rows; ++r) x[r] = T::load_int(a + r * stride + b * tile_cols);
      for (int c = 0; c < columns; ++c) {
        w[c].prefetch(first + b, ahead);
        const typename T::I values = w[c].block(first + b);
        for (int r = 0; r < rows; ++r) sum[r][c] = T::dot(sum[r][c], x[r], values);
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; c += 4) T::add_totals(sum[r] + c, sums + r * width + c);
    }
  }
};

}  // namespace
