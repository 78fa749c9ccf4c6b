// Decoding of a stored matrix to bf16, over any format of ../formats.
//
// A format states its block (the rows and columns that share a scale), its bits a weight, the bytes of a scale, and
// how one row becomes bf16. The caller has checked the shape.
#pragma once

#include <cstdint>

namespace {

// codes: [rows, cols] of Format::bits; scales: [ceil(rows / block_rows), ceil(cols / block_cols)]; out: [rows, cols].
template <class Format>
void decode(const void* codes, const void* scales, int64_t rows, int64_t cols, uint16_t* out) {
  const int64_t row_bytes = cols * Format::bits / 8;
  const int64_t blocks = cols / Format::block_cols + (cols % Format::block_cols != 0);
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* code = static_cast<const uint8_t*>(codes) + r * row_bytes;
    const uint8_t* scale = static_cast<const uint8_t*>(scales) + r / Format::block_rows * blocks * Format::scale_bytes;
    Format::decode_row(code, scale, cols, out + r * cols);
  }
}

}  // namespace
