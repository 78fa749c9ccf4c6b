// Sixteen lanes in plain C++, for every processor. GCC and Clang make vectors of what they can.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "fused.h"

namespace {

struct PortableLanes {
  struct F { float v[16]; };
  struct I { uint32_t v[16]; };

  template <class R, class Function>
  static R each(Function function) {
    R out;
    for (int i = 0; i < 16; ++i) out.v[i] = function(i);
    return out;
  }

  // clang-format off: one line per operation
  static F load(const float* from) { F out; std::memcpy(&out, from, sizeof out); return out; }
  static I load_int(const void* from) { I out; std::memcpy(&out, from, sizeof out); return out; }
  static I load16(const void* from) {
    uint16_t halves[16];
    std::memcpy(halves, from, sizeof halves);
    return each<I>([&](int i) { return halves[i]; });
  }
  static void store(float* to, F a) { std::memcpy(to, &a, sizeof a); }
  static void store(uint32_t* to, I a) { std::memcpy(to, &a, sizeof a); }
  static void store16(uint16_t* to, I a) {  // the lower half of each lane
    for (int i = 0; i < 16; ++i) to[i] = static_cast<uint16_t>(a.v[i]);
  }

  static F zero() { return broadcast(0.0f); }
  static F broadcast(float a) { return each<F>([&](int) { return a; }); }
  static I broadcast_int(uint32_t a) { return each<I>([&](int) { return a; }); }
  static F add(F a, F b) { return each<F>([&](int i) { return a.v[i] + b.v[i]; }); }
  static F sub(F a, F b) { return each<F>([&](int i) { return a.v[i] - b.v[i]; }); }
  static F mul(F a, F b) { return each<F>([&](int i) { return a.v[i] * b.v[i]; }); }
  static F div(F a, F b) { return each<F>([&](int i) { return a.v[i] / b.v[i]; }); }
  static F max(F a, F b) { return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
  static F sqrt(F a) { return each<F>([&](int i) { return __builtin_sqrtf(a.v[i]); }); }
  static F fma(F a, F b, F c) { return each<F>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); }); }

  static F as_float(I a) { F out; std::memcpy(&out, &a, sizeof out); return out; }
  static I as_int(F a) { I out; std::memcpy(&out, &a, sizeof out); return out; }
  static F from_int(I a) { return each<F>([&](int i) { return static_cast<float>(static_cast<int32_t>(a.v[i])); }); }
  static I both(I a, I b) { return each<I>([&](int i) { return a.v[i] & b.v[i]; }); }
  static I either(I a, I b) { return each<I>([&](int i) { return a.v[i] | b.v[i]; }); }
  static I plus(I a, I b) { return each<I>([&](int i) { return a.v[i] + b.v[i]; }); }
  template <int n> static I left(I a) { return each<I>([&](int i) { return a.v[i] << n; }); }
  template <int n> static I right(I a) { return each<I>([&](int i) { return a.v[i] >> n; }); }
  // clang-format on
  template <int n> static I right_signed(I a) {
    return each<I>([&](int i) { return static_cast<uint32_t>(static_cast<int32_t>(a.v[i]) >> n); });
  }
  static F select_below(I a, int32_t bound, F yes, F no) {
    return each<F>([&](int i) { return static_cast<int32_t>(a.v[i]) < bound ? yes.v[i] : no.v[i]; });
  }
  static F select_less(F a, F b, F yes, F no) {
    return each<F>([&](int i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
  }

  static F lower(I pairs) { return as_float(left<16>(pairs)); }
  static F upper(I pairs) { return as_float(both(pairs, broadcast_int(0xffff0000u))); }
  static I pair(I even, I odd) { return either(even, left<16>(odd)); }
  static F offset_nibble(I a) {
    return each<F>([&](int i) { return static_cast<float>(static_cast<int32_t>(a.v[i] & 15u) - 8); });
  }
  // To bf16, nearest, ties to even, in the lower half of each lane. A nan stays one: none here has low bits set.
  static I round(F a) {
    const I bits = as_int(a);
    const I even = both(right<16>(bits), broadcast_int(1));
    return right<16>(plus(plus(bits, broadcast_int(0x7fff)), even));
  }
  static I round_pair(F even, F odd) { return pair(round(even), round(odd)); }

  // 16 rows of 16 bytes to 4 words of 16 lanes: lane r of out[j] is word j of row r.
  static void transpose4(const uint8_t* from, int64_t stride, I* out) {
    for (int r = 0; r < 16; ++r) {
      uint32_t row[4];
      std::memcpy(row, from + r * stride, sizeof row);
      for (int j = 0; j < 4; ++j) out[j].v[r] = row[j];
    }
  }

  // A bf16 for each of the 256 bytes: `halves` has those of 0 to 127, the highest bit turns the sign.
  struct Table { uint16_t v[256]; };
  static Table table(const I* halves) {
    Table out;
    for (int i = 0; i < 256; ++i) {
      out.v[i] = static_cast<uint16_t>(halves[i % 128 / 16].v[i % 16] ^ (i < 128 ? 0u : 0x8000u));
    }
    return out;
  }
  // Four bytes a lane to two pairs.
  static void look_up(const Table& t, I bytes, I* pairs) {
    for (int i = 0; i < 16; ++i) {
      const uint32_t b = bytes.v[i];
      pairs[0].v[i] = t.v[b & 255u] | static_cast<uint32_t>(t.v[b >> 8 & 255u]) << 16;
      pairs[1].v[i] = t.v[b >> 16 & 255u] | static_cast<uint32_t>(t.v[b >> 24]) << 16;
    }
  }

  static void interleave(F even, F odd, float* to) {
    for (int i = 0; i < 16; ++i) {
      to[2 * i] = even.v[i];
      to[2 * i + 1] = odd.v[i];
    }
  }

#if defined(__x86_64__)
  static inline thread_local uint32_t saved = 0;
  static void flush_subnormals() {
    saved = _mm_getcsr();
    _mm_setcsr(saved | 0x8040);  // results and operands
  }
  static void restore() { _mm_setcsr(saved); }
#else
  static void flush_subnormals() {}
  static void restore() {}
#endif
};

using PortableTile = Fused<PortableLanes, 4, 1>;

}  // namespace
