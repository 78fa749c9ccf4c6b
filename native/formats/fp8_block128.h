// FP8 e4m3fn, 128 x 128 weights to an fp32 scale: DeepSeek-V3 and Kimi-K2-Instruct.
//
// e4m3fn: sign, four exponent bits of bias 7, three mantissa bits; subnormals; no infinity; magnitude 0x7f is nan.
// A block has one scale, so its 128 magnitudes are multiplied and rounded, and codes are looked up. Beside arithmetic
// on every code that is 2.4 times as fast with AVX-512, 1.4 times with AVX2 and no faster in plain C++ (Zen 5, one row,
// weights in cache). Rounding is symmetric: the sign is turned afterwards.
#pragma once

#include "matrix.h"

namespace {

struct Magnitudes {
  alignas(64) float value[128];

  constexpr Magnitudes() : value() {
    for (int code = 0; code < 127; ++code) {
      const int exponent = code < 8 ? 1 : code / 8;
      float power = 0x1p-10f;  // 2^(exponent - 7) of an eighth
      for (int i = 0; i < exponent; ++i) power *= 2.0f;
      value[code] = static_cast<float>(code < 8 ? code : 8 + code % 8) * power;
    }
    value[127] = __builtin_nanf("");
  }
};
inline constexpr Magnitudes e4m3_magnitudes;

template <class T>
struct Fp8Block128 {
  static void panel(const Stored& m, int64_t row, int64_t first, int64_t n_tiles, uint32_t* words) {
    const int64_t rows = at_most(m.rows - row, tile_rows);
    const uint8_t* from = m.codes + row * m.row_bytes + first * 32;
    const uint8_t* scales = m.scales + row / 128 * m.scale_bytes;  // 16 rows from a multiple of 16 lie in one block
    typename T::Table table;
    for (int64_t t = 0; t < n_tiles; ++t, from += 32, words += tile_words) {
      if (t % 4 == 0) table = scaled(scales + (first + t) / 4 * 4);  // panels begin at multiples of 256 columns
      const int64_t width = at_most(m.cols - (first + t) * tile_cols, tile_cols);
      alignas(64) uint8_t staged[16 * 32];
      const bool whole = rows == tile_rows && width == tile_cols;
      if (!whole) stage(from, m.row_bytes, rows, width, staged, 32);
      tile(whole ? from : staged, whole ? m.row_bytes : 32, table, words);
    }
  }

 private:
  static typename T::Table scaled(const uint8_t* from) {
    float scale;
    std::memcpy(&scale, from, sizeof scale);
    if (scale != scale) scale = float_from_bits(0x7fc00000u);  // rounding would carry the bits of another into its sign
    typename T::I halves[8];
    for (int i = 0; i < 8; ++i) {
      halves[i] = T::round(T::mul(T::load(e4m3_magnitudes.value + i * 16), T::broadcast(scale)));
    }
    return T::table(halves);
  }

  static void tile(const uint8_t* from, int64_t stride, const typename T::Table& table, uint32_t* words) {
    for (int64_t half = 0; half < 2; ++half) {
      typename T::I codes[4];
      T::transpose4(from + half * 16, stride, codes);
      for (int64_t w = 0; w < 4; ++w, words += 32) {
        typename T::I pairs[2];
        T::look_up(table, codes[w], pairs);
        T::store(words, pairs[0]);
        T::store(words + 16, pairs[1]);
      }
    }
  }
};

}  // namespace
