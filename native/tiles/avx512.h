// Sixteen lanes in one AVX-512 register (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include "fused.h"

namespace {

struct Avx512Lanes {
  using F = __m512;
  using I = __m512i;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static I load16(const void* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store(uint32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static void store16(uint16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(x));
  }

  static F zero() { return _mm512_setzero_ps(); }
  static F broadcast(float x) { return _mm512_set1_ps(x); }
  static I broadcast_int(uint32_t x) { return _mm512_set1_epi32(static_cast<int32_t>(x)); }
  static F add(F x, F y) { return _mm512_add_ps(x, y); }
  static F sub(F x, F y) { return _mm512_sub_ps(x, y); }
  static F mul(F x, F y) { return _mm512_mul_ps(x, y); }
  static F div(F x, F y) { return _mm512_div_ps(x, y); }
  static F max(F x, F y) { return _mm512_max_ps(x, y); }
  static F sqrt(F x) { return _mm512_sqrt_ps(x); }
  static F fma(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }

  static F as_float(I x) { return _mm512_castsi512_ps(x); }
  static I as_int(F x) { return _mm512_castps_si512(x); }
  static F from_int(I x) { return _mm512_cvtepi32_ps(x); }
  static I both(I x, I y) { return _mm512_and_si512(x, y); }
  static I either(I x, I y) { return _mm512_or_si512(x, y); }
  static I plus(I x, I y) { return _mm512_add_epi32(x, y); }
  template <int n> static I left(I x) { return _mm512_slli_epi32(x, n); }
  template <int n> static I right(I x) { return _mm512_srli_epi32(x, n); }
  template <int n> static I right_signed(I x) { return _mm512_srai_epi32(x, n); }
  static F select_below(I x, int32_t bound, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(x, _mm512_set1_epi32(bound)), no, yes);
  }
  static F select_less(F x, F y, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), no, yes);
  }

  static F lower(I pairs) { return as_float(left<16>(pairs)); }
  static F upper(I pairs) { return as_float(both(pairs, broadcast_int(0xffff0000u))); }
  static I pair(I even, I odd) { return either(even, left<16>(odd)); }
  static F offset_nibble(I x) {  // a table of sixteen, by the lowest four bits of each lane
    const F table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(x, table);
  }
  static I round(F x) {
    const I bits = as_int(x);
    const I even = both(right<16>(bits), broadcast_int(1));
    return right<16>(plus(plus(bits, broadcast_int(0x7fff)), even));
  }
  static I round_pair(F even, F odd) { return pair(round(even), round(odd)); }

  static void transpose4(const uint8_t* from, int64_t stride, I* out) {
    I rows[4];  // rows i, i + 4, i + 8 and i + 12
    for (int i = 0; i < 4; ++i) {
      const uint8_t* at = from + i * stride;
      rows[i] = _mm512_castsi128_si512(load4(at));
      rows[i] = _mm512_inserti32x4(rows[i], load4(at + 4 * stride), 1);
      rows[i] = _mm512_inserti32x4(rows[i], load4(at + 8 * stride), 2);
      rows[i] = _mm512_inserti32x4(rows[i], load4(at + 12 * stride), 3);
    }
    const I p = _mm512_unpacklo_epi32(rows[0], rows[1]), q = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const I s = _mm512_unpacklo_epi32(rows[2], rows[3]), t = _mm512_unpackhi_epi32(rows[2], rows[3]);
    out[0] = _mm512_unpacklo_epi64(p, s);
    out[1] = _mm512_unpackhi_epi64(p, s);
    out[2] = _mm512_unpacklo_epi64(q, t);
    out[3] = _mm512_unpackhi_epi64(q, t);
  }

  // 128 bf16 by the lower seven bits of a byte. VPERMI2W takes the lower six, the seventh blends.
  struct Table { I part[4]; };
  static Table table(const I* halves) {
    Table out;
    for (int i = 0; i < 4; ++i) {
      const __m256i low = _mm512_cvtepi32_epi16(halves[2 * i]), high = _mm512_cvtepi32_epi16(halves[2 * i + 1]);
      out.part[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    return out;
  }
  static void look_up(const Table& t, I bytes, I* pairs) {
    const I even = look_up_words(t, bytes, _mm512_slli_epi16(bytes, 8));
    const I odd = look_up_words(t, _mm512_srli_epi16(bytes, 8), bytes);
    pairs[0] = _mm512_mask_blend_epi16(0xaaaaaaaau, even, left<16>(odd));
    pairs[1] = _mm512_mask_blend_epi16(0xaaaaaaaau, right<16>(even), odd);
  }

  static void interleave(F even, F odd, float* to) {
    const I low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const I high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(even, low, odd));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(even, high, odd));
  }

  static inline thread_local uint32_t saved = 0;
  static void flush_subnormals() {
    saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040);  // results and operands
  }
  static void restore() { _mm_setcsr(saved); }

 private:
  static I look_up_words(const Table& t, I index, I sign) {
    const I low = _mm512_permutex2var_epi16(t.part[0], index, t.part[1]);
    const I high = _mm512_permutex2var_epi16(t.part[2], index, t.part[3]);
    const I found = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(index, _mm512_set1_epi16(0x40)), low, high);
    return _mm512_ternarylogic_epi32(found, sign, _mm512_set1_epi16(-0x8000), 0x78);  // found ^ (sign & 0x8000)
  }
  static __m128i load4(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
};

using Avx512Tile = Fused<Avx512Lanes, 6, 2>;

}  // namespace
