// A stored matrix, and what a format must offer: panels of 16 rows decoded to pairs of bf16.
//
// A tile is 16 rows by 32 columns, stored as [16 pairs of columns][16 rows] words, the even column in the lower half of
// a word: the form in which matrix units take their second operand. Rows and columns beyond the matrix are zero.
// Formats and ops are compiled once an instruction set. They live in an unnamed namespace so that the linker can never
// merge a copy built for AVX-512 into the portable instance; for the same reason they call no inline function of the
// standard library.
#pragma once

#include <cstdint>
#include <cstring>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Checkpoints are little-endian, and these formats are read in place."
#endif

namespace {

constexpr int64_t tile_rows = 16;
constexpr int64_t tile_cols = 32;
constexpr int64_t tile_words = 256;
constexpr int64_t panel_tiles = 8;  // the most tiles of a panel that are decoded at once: 256 columns, 8 KB

// bf16 stored by columns: a format that only the library itself names, beside ES_BF16 and so on.
constexpr int32_t bf16_by_columns = -1;

struct Stored {
  int32_t format;  // ES_BF16 and so on, or bf16_by_columns
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t rows, cols;
  int64_t row_bytes;    // from one row of codes to the next; for a transposed matrix from one column to the next
  int64_t scale_bytes;  // from one row of scales to the next
  int64_t scale_rows;   // rows of the matrix that share one row of scales
};

// Decodes tiles first, first + 1, ... of the 16 rows from `row`: words [n_tiles][16][16].
using Panel = void (*)(const Stored& matrix, int64_t row, int64_t first, int64_t n_tiles, uint32_t* words);

// Copies `width` bytes of each of up to 16 rows into a zeroed [16][stride] buffer, for what would reach past the end.
inline void stage(const uint8_t* from, int64_t from_stride, int64_t rows, int64_t width, uint8_t* to, int64_t stride) {
  for (int64_t r = 0; r < tile_rows; ++r) {
    const int64_t copied = r < rows ? width : 0;
    if (copied > 0) std::memcpy(to + r * stride, from + r * from_stride, static_cast<size_t>(copied));
    std::memset(to + r * stride + copied, 0, static_cast<size_t>(stride - copied));
  }
}

inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Every nan becomes 0x7fc00000: rounding to bf16 would carry the lowest bits of another into its sign.
template <class T>
typename T::F one_nan(typename T::F x) {
  const typename T::I magnitude = T::both(T::as_int(x), T::broadcast_int(0x7fffffff));
  return T::select_below(magnitude, 0x7f800001, x, T::broadcast(float_from_bits(0x7fc00000u)));
}

}  // namespace
