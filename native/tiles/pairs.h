// A first operand that stays bf16: rows are copied as they are and padded with zeros to whole tiles.
#pragma once

#include "avx512.h"

namespace {

struct PairLanes : Avx512Lanes {
  using A = uint16_t;

  static I round_pair(F even, F odd) {  // both halves in one register, then their lanes interleaved
    const I order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                     23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, reinterpret_cast<I>(_mm512_cvtne2ps_pbh(odd, even)));
  }

  // As Avx512Lanes's, with VBMI: VPERMI2B takes all seven bits, from a table of lower and one of upper bytes.
  struct Table { I low[2], high[2]; };
  static Table table(const I* halves) {
    const Avx512Lanes::Table words = Avx512Lanes::table(halves);
    Table out;
    for (int i = 0; i < 2; ++i) {
      const I p = words.part[2 * i], q = words.part[2 * i + 1];
      out.low[i] = lower_bytes(p, q);
      out.high[i] = lower_bytes(_mm512_srli_epi16(p, 8), _mm512_srli_epi16(q, 8));
    }
    return out;
  }
  static void look_up(const Table& t, I bytes, I* pairs) {
    const I low = _mm512_permutex2var_epi8(t.low[0], bytes, t.low[1]);
    const I high = _mm512_permutex2var_epi8(t.high[0], bytes, t.high[1]);
    const I turned = _mm512_ternarylogic_epi32(high, bytes, _mm512_set1_epi8(-0x80), 0x78);  // high ^ (bytes & 0x80)
    const __m512 p = as_float(_mm512_unpacklo_epi8(low, turned)), q = as_float(_mm512_unpackhi_epi8(low, turned));
    pairs[0] = as_int(_mm512_shuffle_ps(p, q, 0x88));
    pairs[1] = as_int(_mm512_shuffle_ps(p, q, 0xdd));
  }

  static void pack(const uint16_t* from, int64_t n, A* to, int64_t padded) {
    std::memcpy(to, from, static_cast<size_t>(n * 2));
    std::memset(to + n, 0, static_cast<size_t>((padded - n) * 2));
  }
  static void unpack(I pairs, A* to) { _mm512_storeu_si512(to, pairs); }

 private:
  static I lower_bytes(I p, I q) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi16_epi8(p)), _mm512_cvtepi16_epi8(q), 1);
  }
};

}  // namespace
