// Sixteen lanes in two AVX2 registers, with FMA3.
#pragma once

#include <immintrin.h>

#include "fused.h"

namespace {

struct Avx2Lanes {
  struct F { __m256 a, b; };
  struct I { __m256i a, b; };

  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static I load_int(const void* p) {
    const __m256i* from = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
  }
  static I load16(const void* p) {
    const __m128i* from = static_cast<const __m128i*>(p);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(from)), _mm256_cvtepu16_epi32(_mm_loadu_si128(from + 1))};
  }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
  static void store(uint32_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, x.b);
  }
  static void store16(uint16_t* p, I x) {
    const I low = both(x, broadcast_int(0xffff));
    const __m256i packed = _mm256_packus_epi32(low.a, low.b);  // in 64-bit pieces 0 2 1 3
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
  }

  static F zero() { return broadcast(0.0f); }
  static F broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static I broadcast_int(uint32_t x) {
    const __m256i all = _mm256_set1_epi32(static_cast<int32_t>(x));
    return {all, all};
  }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }

  static F as_float(I x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
  static I as_int(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
  static F from_int(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static I both(I x, I y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
  static I either(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
  static I plus(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  template <int n> static I left(I x) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
  template <int n> static I right(I x) { return {_mm256_srli_epi32(x.a, n), _mm256_srli_epi32(x.b, n)}; }
  template <int n> static I right_signed(I x) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
  static F select_below(I x, int32_t bound, F yes, F no) {
    const __m256i limit = _mm256_set1_epi32(bound);
    return select(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, x.a)),
                  _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, x.b)), yes, no);
  }
  static F select_less(F x, F y, F yes, F no) {
    return select(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ), yes, no);
  }

  static F lower(I pairs) { return as_float(left<16>(pairs)); }
  static F upper(I pairs) { return as_float(both(pairs, broadcast_int(0xffff0000u))); }
  static I pair(I even, I odd) { return either(even, left<16>(odd)); }
  static F offset_nibble(I x) { return from_int(plus(both(x, broadcast_int(15)), broadcast_int(~7u))); }
  static I round(F x) {
    const I bits = as_int(x);
    const I even = both(right<16>(bits), broadcast_int(1));
    return right<16>(plus(plus(bits, broadcast_int(0x7fff)), even));
  }
  static I round_pair(F even, F odd) { return pair(round(even), round(odd)); }

  static void transpose4(const uint8_t* from, int64_t stride, I* out) {
    __m256i half[2][4];
    for (int h = 0; h < 2; ++h) {
      __m256i rows[4];  // row i of the half, and row i + 4 above it
      for (int i = 0; i < 4; ++i) {
        const __m128i* low = reinterpret_cast<const __m128i*>(from + (8 * h + i) * stride);
        const __m128i* high = reinterpret_cast<const __m128i*>(from + (8 * h + i + 4) * stride);
        rows[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
      }
      const __m256i p = _mm256_unpacklo_epi32(rows[0], rows[1]), q = _mm256_unpackhi_epi32(rows[0], rows[1]);
      const __m256i s = _mm256_unpacklo_epi32(rows[2], rows[3]), t = _mm256_unpackhi_epi32(rows[2], rows[3]);
      half[h][0] = _mm256_unpacklo_epi64(p, s);
      half[h][1] = _mm256_unpackhi_epi64(p, s);
      half[h][2] = _mm256_unpacklo_epi64(q, t);
      half[h][3] = _mm256_unpackhi_epi64(q, t);
    }
    for (int j = 0; j < 4; ++j) out[j] = {half[0][j], half[1][j]};
  }

  // 128 bf16 by the lower seven bits of a byte: VPSHUFB takes four bits from tables of sixteen bytes, three blend.
  struct Table { alignas(16) uint8_t low[128], high[128]; };
  static Table table(const I* halves) {
    Table out;
    for (int i = 0; i < 8; ++i) {
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves[i].a, halves[i].b), 0xd8);
      store_bytes(out.low + i * 16, _mm256_and_si256(words, _mm256_set1_epi16(0xff)));
      store_bytes(out.high + i * 16, _mm256_srli_epi16(words, 8));
    }
    return out;
  }
  static void look_up(const Table& t, I bytes, I* pairs) {
    look_up8(t, bytes.a, &pairs[0].a, &pairs[1].a);
    look_up8(t, bytes.b, &pairs[0].b, &pairs[1].b);
  }

  static void interleave(F even, F odd, float* to) {
    interleave8(even.a, odd.a, to);
    interleave8(even.b, odd.b, to + 16);
  }

  static inline thread_local uint32_t saved = 0;
  static void flush_subnormals() {
    saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040);  // results and operands
  }
  static void restore() { _mm_setcsr(saved); }

 private:
  static F select(__m256 a, __m256 b, F yes, F no) {
    return {_mm256_blendv_ps(no.a, yes.a, a), _mm256_blendv_ps(no.b, yes.b, b)};
  }
  static void store_bytes(uint8_t* to, __m256i words) {
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(to), bytes);
  }
  static void look_up8(const Table& t, __m256i bytes, __m256i* first, __m256i* second) {
    const __m256i low = look_up_bytes(t.low, bytes), sign = _mm256_and_si256(bytes, _mm256_set1_epi8(-0x80));
    const __m256i high = _mm256_xor_si256(look_up_bytes(t.high, bytes), sign);
    const __m256 p = _mm256_castsi256_ps(_mm256_unpacklo_epi8(low, high));
    const __m256 q = _mm256_castsi256_ps(_mm256_unpackhi_epi8(low, high));
    *first = _mm256_castps_si256(_mm256_shuffle_ps(p, q, 0x88));
    *second = _mm256_castps_si256(_mm256_shuffle_ps(p, q, 0xdd));
  }
  static __m256i look_up_bytes(const uint8_t* table, __m256i bytes) {
    const __m256i index = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    __m256i found[8];
    for (int i = 0; i < 8; ++i) {
      const __m128i part = _mm_load_si128(reinterpret_cast<const __m128i*>(table + i * 16));
      found[i] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(part), index);
    }
    const __m256i bit4 = _mm256_slli_epi16(bytes, 3), bit5 = _mm256_slli_epi16(bytes, 2);
    for (int i = 0; i < 4; ++i) found[i] = _mm256_blendv_epi8(found[2 * i], found[2 * i + 1], bit4);
    for (int i = 0; i < 2; ++i) found[i] = _mm256_blendv_epi8(found[2 * i], found[2 * i + 1], bit5);
    return _mm256_blendv_epi8(found[0], found[1], _mm256_slli_epi16(bytes, 1));
  }
  static void interleave8(__m256 even, __m256 odd, float* to) {
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
};

using Avx2Tile = Fused<Avx2Lanes, 2, 1>;

}  // namespace
