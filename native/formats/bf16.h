// bf16: the upper half of an fp32. The form in which scales are read and every decoded weight is written.
//
// Formats and ops are compiled once an instruction set. They live in an unnamed namespace so that the linker can
// never merge a copy built for AVX-512 into the portable instance; for the same reason they call no inline function
// of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Checkpoints are little-endian, and these formats are read in place."
#endif

namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct Bf16 {
  static float load(const uint8_t* at) {
    uint16_t upper;
    std::memcpy(&upper, at, sizeof upper);
    return float_from_bits(static_cast<uint32_t>(upper) << 16);
  }

  // To nearest, ties to even. Every nan becomes 0x7fc0: rounding could carry a nan's mantissa into infinity.
  static uint16_t round(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
};

}  // namespace
