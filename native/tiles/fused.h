// Multiplication with fused multiply-adds on any lanes, in one order of summation that is the same on every processor.
//
// The order is that of Intel's TDPBF16PS (its manual gives it): for each 32 columns the products of even columns are
// chained from zero by fused multiply-adds, those of odd columns likewise, both chains are added, and their sum is
// added to the result. So this and AMX give the same bits. bf16 products are exact in fp32; subnormals count as zero.
#pragma once

#include "../formats/matrix.h"

namespace {

// L: lanes. `most_rows` rows by `most_panels` panels of accumulators fit in the registers.
template <class L, int most_rows, int most_panels>
struct Fused : L {
  static constexpr bool in_rows = false;
  using A = float;  // the first operand, widened once for all columns that it meets
  using F = typename L::F;

  static void begin() { L::flush_subnormals(); }
  static void end() { L::restore(); }

  static void pack(const uint16_t* from, int64_t n, A* to, int64_t padded) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) L::store(to + i, L::as_float(L::template left<16>(L::load16(from + i))));
    for (; i < padded; ++i) to[i] = i < n ? float_from_bits(static_cast<uint32_t>(from[i]) << 16) : 0.0f;
  }

  // Sixteen pairs of bf16 as a row of A.
  static void unpack(typename L::I pairs, A* to) { L::interleave(L::lower(pairs), L::upper(pairs), to); }

  // c[m][16 * n_panels] += a[m][32 * n_tiles] times the panels' tiles, words [n_panels][panel_words].
  static void multiply(int64_t m, const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words,
                       int64_t n_panels, int64_t n_tiles, float* c, int64_t c_stride) {
    int64_t panel = 0;
    for (; m == 1 && panel + 2 * most_panels <= n_panels; panel += 2 * most_panels) {
      block<1, 2 * most_panels>(a, a_stride, words + panel * panel_words, panel_words, n_tiles, c + panel * 16,
                                c_stride);
    }
    for (; panel + most_panels <= n_panels; panel += most_panels) {
      all_rows<most_panels>(m, a, a_stride, words + panel * panel_words, panel_words, n_tiles, c + panel * 16,
                            c_stride);
    }
    for (; panel < n_panels; ++panel) {
      all_rows<1>(m, a, a_stride, words + panel * panel_words, panel_words, n_tiles, c + panel * 16, c_stride);
    }
  }

 private:
  template <int panels>
  static void all_rows(int64_t m, const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words,
                       int64_t n_tiles, float* c, int64_t c_stride) {
    int64_t row = 0;
    for (; row + most_rows <= m; row += most_rows) {
      block<most_rows, panels>(a + row * a_stride, a_stride, words, panel_words, n_tiles, c + row * c_stride, c_stride);
    }
    for (; row < m; ++row) {
      block<1, panels>(a + row * a_stride, a_stride, words, panel_words, n_tiles, c + row * c_stride, c_stride);
    }
  }

  template <int rows, int panels>
  static void block(const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words, int64_t n_tiles, float* c,
                    int64_t c_stride) {
    for (int64_t t = 0; t < n_tiles; ++t, a += tile_cols, words += tile_words) {
      F even[rows][panels], odd[rows][panels];
      for (int r = 0; r < rows; ++r) {
        for (int p = 0; p < panels; ++p) even[r][p] = odd[r][p] = L::zero();
      }
      for (int64_t pair = 0; pair < 16; ++pair) {
        F lower[panels], upper[panels];
        for (int p = 0; p < panels; ++p) {
          const typename L::I word = L::load_int(words + p * panel_words + pair * 16);
          lower[p] = L::lower(word);
          upper[p] = L::upper(word);
        }
        for (int r = 0; r < rows; ++r) {
          const F first = L::broadcast(a[r * a_stride + pair * 2]);
          const F second = L::broadcast(a[r * a_stride + pair * 2 + 1]);
          for (int p = 0; p < panels; ++p) {
            even[r][p] = L::fma(first, lower[p], even[r][p]);
            odd[r][p] = L::fma(second, upper[p], odd[r][p]);
          }
        }
      }
      for (int r = 0; r < rows; ++r) {
        for (int p = 0; p < panels; ++p) {
          float* at = c + r * c_stride + p * 16;
          L::store(at, L::add(L::load(at), L::add(even[r][p], odd[r][p])));
        }
      }
    }
  }
};

}  // namespace
