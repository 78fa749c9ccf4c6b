// The product where a processor multiplies pairs within rows: both operands are read along their rows, as they lie.
//
// For tiles with `in_rows` (AVX512_BF16) and formats that decode along a row. Weights in bf16 are not rearranged at
// all, and few rows of a meet four rows of the matrix from one end to the other.
// The order of summation, for one row and one column of the result: columns in chunks of 1024; within a chunk 16 sums,
// of pairs 16 apart, the columns of INT4 in the order of `arrange`; these are added as a tree, and chunks one after the
// other. It depends on nothing else.
#pragma once

#include "../formats/matrix.h"
#include "earthshine.h"

namespace {

constexpr int64_t chunk_blocks = 32;  // of 32 columns

// Four rows of a matrix. `begin` names a chunk: n blocks of 32 columns, from the first-th on. `take` then gives some of
// its blocks, `at_once` from a multiple of that on, and `one` a block that is left.
template <class T>
struct Bf16Rows {
  static constexpr bool decodes = false;
  static constexpr int at_once = 1;    // two, where nothing is decoded, make 5 to 8% less for many rows of a
  static constexpr int together = 16;  // rows of the matrix that stay in the first cache for many rows of a
  const uint8_t* codes[4];
  int64_t at = 0;

  Bf16Rows(const Stored& m, int64_t row) {
    for (int c = 0; c < 4; ++c) codes[c] = m.codes + at_most(row + c, m.rows - 1) * m.row_bytes;
  }
  void begin(int64_t first, int64_t) { at = first * 64; }
  void take(int c, int64_t b, typename T::I* values) const { values[0] = one(c, b); }
  typename T::I one(int c, int64_t b) const { return T::load_int(codes[c] + at + b * 64); }
};

// A group has one scale, so its sixteen values are multiplied and rounded once, and codes are looked up: those of two
// groups at once, first their even columns, then their odd ones, which saves spreading bytes twice. Activations are
// arranged likewise, once for all rows of the matrix.
template <class T>
struct Int4Rows {
  static constexpr bool decodes = true;
  static constexpr int at_once = 2;
  static constexpr int together = 8;
  const uint8_t* codes[4];
  const uint8_t* scales[4];
  int64_t at = 0, ahead;
  alignas(64) float scale[4][chunk_blocks];

  Int4Rows(const Stored& m, int64_t row) : ahead(4 * m.row_bytes) {
    for (int c = 0; c < 4; ++c) {
      codes[c] = m.codes + at_most(row + c, m.rows - 1) * m.row_bytes;
      scales[c] = m.scales + at_most(row + c, m.rows - 1) * m.scale_bytes;
    }
  }
  void begin(int64_t first, int64_t n) {
    at = first * 16;
    for (int c = 0; c < 4; ++c) {
      const uint8_t* from = scales[c] + first * 2;
      __builtin_prefetch(from + ahead / 8);
      int64_t b = 0;
      for (; b + 16 <= n; b += 16) T::store(scale[c] + b, T::as_float(T::template left<16>(T::load16(from + b * 2))));
      for (; b < n; ++b) {
        uint16_t half;
        std::memcpy(&half, from + b * 2, sizeof half);
        scale[c][b] = float_from_bits(static_cast<uint32_t>(half) << 16);
      }
    }
  }
  // Rows of codes are short, and a processor's own prefetcher starts again with each, so the next four are prefetched:
  // 17 GB/s a thread became 35.
  void take(int c, int64_t b, typename T::I* values) const {
    const uint8_t* from = codes[c] + at + b * 16;
    __builtin_prefetch(from + ahead);
    T::choose_nibbles(T::halves(scaled(c, b), scaled(c, b + 1)), from, values);
  }
  typename T::I one(int c, int64_t b) const {
    return T::choose(T::halves(scaled(c, b), scaled(c, b)), T::nibbles(codes[c] + at + b * 16));
  }

 private:
  typename T::F scaled(int c, int64_t b) const { return T::mul(T::offset_codes(), T::broadcast(scale[c][b])); }
};

// Rows whose values are kept as they are decoded.
template <class T, class Rows>
struct Kept : Rows {
  uint16_t (*to)[chunk_blocks * tile_cols];

  void take(int c, int64_t b, typename T::I* values) const {
    Rows::take(c, b, values);
    for (int i = 0; i < 2; ++i) keep(c, b + i, values[i]);
  }
  typename T::I one(int c, int64_t b) const {
    const typename T::I values = Rows::one(c, b);
    keep(c, b, values);
    return values;
  }

 private:
  void keep(int c, int64_t b, typename T::I values) const {
    T::store(reinterpret_cast<uint32_t*>(to[c] + b * tile_cols), values);
  }
};

template <class T>
struct Dots {
  using A = typename T::A;

  static bool takes(const Stored& w) {
    return w.cols % tile_cols == 0 && (w.format == ES_BF16 || w.format == ES_INT4_GROUP32);
  }

  static bool arranges(int32_t format) { return format == ES_INT4_GROUP32; }

  // Puts the columns of a packed row in the order in which Int4Rows gives them: of each whole 64 the even ones first.
  static void arrange(A* row, int64_t cols) {
    for (int64_t c = 0; c + 2 * tile_cols <= cols; c += 2 * tile_cols) T::even_first(row + c);
  }

  // As Product::strip; a's rows are w.cols long.
  static void strip(const Stored& w, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    if (w.format == ES_BF16) run<Bf16Rows<T>>(w, row, width, a, m, sums);
    else run<Int4Rows<T>>(w, row, width, a, m, sums);
    for (int64_t c = w.rows - row; c < width; ++c) {  // which repeat the last row so far
      for (int64_t r = 0; r < m; ++r) sums[r * width + c] = 0.0f;
    }
  }

 private:
  template <class Rows>
  static void run(const Stored& w, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    switch (m) {
      case 1: return few<1, Rows>(w, row, width, a, sums);
      case 2: return few<2, Rows>(w, row, width, a, sums);
      case 3: return few<3, Rows>(w, row, width, a, sums);
      case 4: return few<4, Rows>(w, row, width, a, sums);
      default: return many<Rows>(w, row, width, a, m, sums);
    }
  }

  template <int rows, class Rows>
  static void few(const Stored& w, int64_t row, int64_t width, const A* a, float* sums) {
    for (int64_t part = 0; part < width && row + part < w.rows; part += 4) {
      Rows mine(w, row + part);
      for (int64_t first = 0; first < w.cols / tile_cols; first += chunk_blocks) {
        const int64_t n = at_most(w.cols / tile_cols - first, chunk_blocks);
        mine.begin(first, n);
        block<rows>(a + first * tile_cols, w.cols, mine, n, sums + part, width);
      }
    }
  }

  // The first four of many rows of a decode the matrix, the others meet what these have kept.
  template <class Rows>
  static void many(const Stored& w, int64_t row, int64_t width, const A* a, int64_t m, float* sums) {
    constexpr int together = Rows::together;
    alignas(64) [[maybe_unused]] uint16_t decoded[together][chunk_blocks * tile_cols];
    for (int64_t first = 0; first < w.cols / tile_cols; first += chunk_blocks) {
      const int64_t n = at_most(w.cols / tile_cols - first, chunk_blocks);
      const A* x = a + first * tile_cols;
      for (int64_t part = 0; part < width && row + part < w.rows; part += together) {
        if constexpr (Rows::decodes) {
          for (int c = 0; c < together; c += 4) {
            Kept<T, Rows> mine = {{w, row + part + c}, decoded + c};
            mine.begin(first, n);
            block<4>(x, w.cols, mine, n, sums + part + c, width);
          }
          const uint8_t* codes = reinterpret_cast<const uint8_t*>(decoded);
          const Stored kept = {ES_BF16, codes, nullptr, together, w.cols, sizeof decoded[0], 0, 1};
          rest<together>(kept, 0, n, x, w.cols, 4, m, sums + part, width);
        } else {
          const Stored here = {ES_BF16, w.codes + first * 64, nullptr, w.rows, w.cols, w.row_bytes, 0, 1};
          rest<together>(here, row + part, n, x, w.cols, 0, m, sums + part, width);
        }
      }
    }
  }

  // n blocks of rows r to m of a with `together` rows of a bf16 matrix.
  template <int together>
  static void rest(const Stored& w, int64_t row, int64_t n, const A* a, int64_t stride, int64_t r, int64_t m,
                   float* sums, int64_t width) {
    for (; r + 4 <= m; r += 4) some<4, together>(w, row, n, a + r * stride, stride, sums + r * width, width);
    a += r * stride, sums += r * width;
    if (m - r == 3) some<3, together>(w, row, n, a, stride, sums, width);
    if (m - r == 2) some<2, together>(w, row, n, a, stride, sums, width);
    if (m - r == 1) some<1, together>(w, row, n, a, stride, sums, width);
  }

  template <int rows, int together>
  static void some(const Stored& w, int64_t row, int64_t n, const A* a, int64_t stride, float* sums, int64_t width) {
    for (int c = 0; c < together; c += 4) block<rows>(a, stride, Bf16Rows<T>(w, row + c), n, sums + c, width);
  }

  // sums[r][c] += the dot product of n blocks of a's row r and the c-th of four rows of the matrix. Inlined: each call
  // costs a twentieth of its work, in saving registers.
  template <int rows, class Rows>
  [[gnu::always_inline]] static inline void block(const A* a, int64_t stride, const Rows& w, int64_t n, float* sums,
                                                  int64_t width) {
    typename T::F sum[rows][4];
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < 4; ++c) sum[r][c] = T::zero();
    }
    int64_t b = 0;
    for (; b + Rows::at_once <= n; b += Rows::at_once) {
      typename T::I values[4][Rows::at_once];
      for (int c = 0; c < 4; ++c) w.take(c, b, values[c]);
      for (int i = 0; i < Rows::at_once; ++i) {
        for (int r = 0; r < rows; ++r) {
          const typename T::I x = T::load_int(a + r * stride + (b + i) * tile_cols);
          for (int c = 0; c < 4; ++c) sum[r][c] = T::dot(sum[r][c], x, values[c][i]);
        }
      }
    }
    for (int c = 0; b < n && c < 4; ++c) {
      const typename T::I values = w.one(c, b);
      for (int r = 0; r < rows; ++r) {
        sum[r][c] = T::dot(sum[r][c], T::load_int(a + r * stride + b * tile_cols), values);
      }
    }
    for (int r = 0; r < rows; ++r) {
      T::add_totals(sum[r][0], sum[r][1], sum[r][2], sum[r][3], sums + r * width);
    }
  }
};

}  // namespace
