// The tile instructions that amx.h uses, from their definition (Intel SDM, TDPBF16PS), for tests without AMX.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct EmulatedTiles { uint8_t tile[8][16][64]; };
inline thread_local EmulatedTiles emulated = {};

inline void emulated_load(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(emulated.tile[tile][r], static_cast<const uint8_t*>(from) + r * stride, 64);
}

inline void emulated_store(int tile, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<uint8_t*>(to) + r * stride, emulated.tile[tile][r], 64);
}

// For each row m and column n: two chains of fused multiply-adds from zero over k, their sum added to the result.
inline void emulated_multiply(int c, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float chain[2] = {0.0f, 0.0f};
      for (int k = 0; k < 16; ++k) {
        for (int half = 0; half < 2; ++half) {
          uint32_t left = 0, right = 0;
          std::memcpy(reinterpret_cast<uint8_t*>(&left) + 2, emulated.tile[a][m] + 4 * k + 2 * half, 2);
          std::memcpy(reinterpret_cast<uint8_t*>(&right) + 2, emulated.tile[b][k] + 4 * n + 2 * half, 2);
          float x, y;
          std::memcpy(&x, &left, 4);
          std::memcpy(&y, &right, 4);
          chain[half] = __builtin_fmaf(x, y, chain[half]);
        }
      }
      float sum;
      std::memcpy(&sum, emulated.tile[c][m] + 4 * n, 4);
      sum += chain[0] + chain[1];
      std::memcpy(emulated.tile[c][m] + 4 * n, &sum, 4);
    }
  }
}

}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(configuration) static_cast<void>(configuration)
#define _tile_release() static_cast<void>(0)
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(c, a, b) emulated_multiply(c, a, b)
