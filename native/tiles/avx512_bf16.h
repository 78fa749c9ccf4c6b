// AVX512_BF16: VDPBF16PS adds two products a lane. It rounds in an order of its own, so these are not the bits of the
// other instruction sets; it is twice as fast as fused multiply-adds on Zen 5 (docs/log.md).
#pragma once

#include "pairs.h"

namespace {

struct Avx512Bf16Tile : PairLanes {
  static constexpr bool in_rows = true;  // ops/dots.h
  static void begin() { flush_subnormals(); }
  static void end() { restore(); }

  // As Fused::multiply.
  static void multiply(int64_t m, const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words,
                       int64_t n_panels, int64_t n_tiles, float* c, int64_t c_stride) {
    int64_t panel = 0;
    for (; m <= 4 && panel + 4 <= n_panels; panel += 4) {
      all_rows<4, 4>(m, a, a_stride, words + panel * panel_words, panel_words, n_tiles, c + panel * 16, c_stride);
    }
    for (; panel + 2 <= n_panels; panel += 2) {
      all_rows<12, 2>(m, a, a_stride, words + panel * panel_words, panel_words, n_tiles, c + panel * 16, c_stride);
    }
    if (panel < n_panels) {
      all_rows<16, 1>(m, a, a_stride, words + panel * panel_words, panel_words, n_tiles, c + panel * 16, c_stride);
    }
  }

  // For ops/dots.h. Words are bf16 in the order of columns.
  static F dot(F sum, I a, I b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static F offset_codes() { return _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7); }
  static I halves(F x, F y) { return reinterpret_cast<I>(_mm512_cvtne2ps_pbh(y, x)); }
  static I choose(I table, I words) { return _mm512_permutexvar_epi16(words, table); }  // by a word's lowest five bits
  static I nibbles(const uint8_t* from) {  // byte i becomes words 2i and 2i + 1, whose lowest four bits are its nibbles
    const I bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0024002000040000), bytes);
  }
  // Two groups of 32 nibbles, from a table of sixteen words for each: those in the lower halves of bytes, then in the
  // upper ones.
  static void choose_nibbles(I table, const uint8_t* from, I* values) {
    const I group = _mm512_set_epi64(0x0010001000100010, 0x0010001000100010, 0x0010001000100010, 0x0010001000100010,  //
                                     0, 0, 0, 0);
    const I bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const I lower = _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi16(15), group, 0xea);  // bytes & 15 | group
    values[0] = choose(table, lower);
    values[1] = choose(table, either(_mm512_srli_epi16(bytes, 4), group));
  }
  // Of 64 columns.
  static void even_first(A* columns) {
    const I even = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,  //
                                    30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const I p = load_int(columns), q = load_int(columns + 32);
    _mm512_storeu_si512(columns, _mm512_permutex2var_epi16(p, even, q));
    _mm512_storeu_si512(columns + 32, _mm512_permutex2var_epi16(p, either(even, _mm512_set1_epi16(1)), q));
  }
  // to[i] += the total of the i-th of four.
  static void add_totals(F w, F x, F y, F z, float* to) {
    const F wx = add(_mm512_unpacklo_ps(w, x), _mm512_unpackhi_ps(w, x));
    const F yz = add(_mm512_unpacklo_ps(y, z), _mm512_unpackhi_ps(y, z));
    const __m512d p = _mm512_castps_pd(wx), q = _mm512_castps_pd(yz);
    const F all = add(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 total = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), total));
  }

 private:
  template <int most_rows, int panels>
  static void all_rows(int64_t m, const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words,
                       int64_t n_tiles, float* c, int64_t c_stride) {
    int64_t row = 0;
    for (; row + most_rows <= m; row += most_rows) {
      block<most_rows, panels>(a + row * a_stride, a_stride, words, panel_words, n_tiles, c + row * c_stride, c_stride);
    }
    for (; most_rows > 4 && row + 4 <= m; row += 4) {
      block<4, panels>(a + row * a_stride, a_stride, words, panel_words, n_tiles, c + row * c_stride, c_stride);
    }
    for (; row < m; ++row) {
      block<1, panels>(a + row * a_stride, a_stride, words, panel_words, n_tiles, c + row * c_stride, c_stride);
    }
  }

  template <int rows, int panels>
  static void block(const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words, int64_t n_tiles, float* c,
                    int64_t c_stride) {
    F sum[rows][panels];
    for (int r = 0; r < rows; ++r) {
      for (int p = 0; p < panels; ++p) sum[r][p] = load(c + r * c_stride + p * 16);
    }
    for (int64_t pair = 0; pair < n_tiles * 16; ++pair) {
      __m512bh word[panels];
      for (int p = 0; p < panels; ++p) {
        word[p] = reinterpret_cast<__m512bh>(load_int(words + p * panel_words + pair * 16));
      }
      for (int r = 0; r < rows; ++r) {
        int32_t two;
        std::memcpy(&two, a + r * a_stride + pair * 2, sizeof two);
        const __m512bh both_columns = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
        for (int p = 0; p < panels; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], both_columns, word[p]);
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int p = 0; p < panels; ++p) store(c + r * c_stride + p * 16, sum[r][p]);
    }
  }
};

}  // namespace
