// INT4, symmetric, 32 columns to a bf16 scale: the routed experts of Kimi-K2-Thinking, K2.5 and K2.6.
//
// Byte b of a row holds column 2b in its low nibble and column 2b + 1 in its high one, offset by 8.
#pragma once

#include "bf16.h"

namespace {

struct Int4Group32 {
  static constexpr int64_t block_rows = 1;
  static constexpr int64_t block_cols = 32;
  static constexpr int64_t bits = 4;
  static constexpr int64_t scale_bytes = 2;

  // codes: [cols / 2] bytes; scales: [cols / 32] bf16; cols: a multiple of 32; out: [cols] bf16.
  static void decode_row(const uint8_t* codes, const uint8_t* scales, int64_t cols, uint16_t* out) {
    const int64_t groups = cols / block_cols;
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4) {
      strip<4>(codes + g * 16, scales + g * scale_bytes, out + g * block_cols);
    }
    for (; g < groups; ++g) {
      strip<1>(codes + g * 16, scales + g * scale_bytes, out + g * block_cols);
    }
  }

 private:
  // Four groups are one AVX-512 vector of codes. GCC 12 gives a single group vectors of 16 bytes only, and decoding
  // is then half as fast. A code becomes a 32-bit word of two bf16, so that every lane is 32 bits wide.
  template <int64_t groups>
  static void strip(const uint8_t* __restrict codes, const uint8_t* __restrict scales, uint16_t* __restrict out) {
    float scale[groups * 16];
    uint32_t pair[groups * 16];
    for (int64_t g = 0; g < groups; ++g) {
      const float of_group = Bf16::load(scales + g * scale_bytes);
      for (int64_t b = 0; b < 16; ++b) {
        scale[g * 16 + b] = of_group;
      }
    }
    for (int64_t b = 0; b < groups * 16; ++b) {
      const uint32_t code = codes[b];
      pair[b] = product(code & 15u, scale[b]) | product(code >> 4, scale[b]) << 16;
    }
    std::memcpy(out, pair, sizeof pair);
  }

  // An integer below 9 times a bf16 is exact in fp32, so the one rounding is the publisher's own.
  static uint32_t product(uint32_t nibble, float scale) {
    return Bf16::round(static_cast<float>(static_cast<int32_t>(nibble) - 8) * scale);
  }
};

}  // namespace
