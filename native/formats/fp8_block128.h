// FP8 e4m3fn, 128 x 128 weights to an fp32 scale: DeepSeek-V3 and Kimi-K2-Instruct.
//
// e4m3fn: sign, four exponent bits of bias 7, three mantissa bits; subnormals; no infinity; magnitude 0x7f is nan.
#pragma once

#include "bf16.h"

namespace {

struct Fp8Block128 {
  static constexpr int64_t block_rows = 128;
  static constexpr int64_t block_cols = 128;
  static constexpr int64_t bits = 8;
  static constexpr int64_t scale_bytes = 4;

  // codes: [cols]; scales: [ceil(cols / 128)] fp32; out: [cols] bf16.
  static void decode_row(const uint8_t* codes, const uint8_t* scales, int64_t cols, uint16_t* out) {
    const int64_t whole = cols / block_cols;
    for (int64_t b = 0; b < whole; ++b) {
      strip(codes + b * block_cols, scales + b * scale_bytes, block_cols, out + b * block_cols);
    }
    if (cols % block_cols != 0) {
      const int64_t start = whole * block_cols;
      strip(codes + start, scales + whole * scale_bytes, cols - start, out + start);
    }
  }

 private:
  static void strip(const uint8_t* __restrict codes, const uint8_t* at, int64_t cols, uint16_t* __restrict out) {
    float scale;
    std::memcpy(&scale, at, sizeof scale);
    for (int64_t c = 0; c < cols; ++c) {
      out[c] = Bf16::round(widen(codes[c]) * scale);
    }
  }

  // Exact. Both cases are computed and one is chosen, which a compiler turns into a blend instead of a branch.
  static float widen(uint8_t code) {
    const uint32_t magnitude = code & 0x7fu;
    const float normal = float_from_bits((magnitude << 20) + (120u << 23));  // exponent bias 7 becomes 127
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
    const float value = magnitude < 8 ? subnormal : normal;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = magnitude == 0x7fu ? 0x7fc00000u : bits;
    return float_from_bits(bits | (static_cast<uint32_t>(code & 0x80u) << 24));
  }
};

}  // namespace
