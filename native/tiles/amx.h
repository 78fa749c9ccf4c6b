// AMX: TDPBF16PS multiplies a tile of 16 rows by 32 columns with a tile of 16 panel rows, in the order of fused.h.
//
// With EARTHSHINE_EMULATE_AMX the tile instructions are computed from their definition in Intel's manual, so that this
// file can be tested where there is no AMX.
#pragma once

#include "pairs.h"

#if defined(EARTHSHINE_EMULATE_AMX)
#include "amx_emulated.h"
#endif

namespace {

struct AmxTile : PairLanes {
  static constexpr bool in_rows = false;
  static void begin() {
    flush_subnormals();
    alignas(64) static const struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    _tile_loadconfig(&configuration);
  }
  static void end() {
    _tile_release();
    restore();
  }

  // As Fused::multiply, but that rows come in sixteens: a and c reach up to the next multiple of 16.
  static void multiply(int64_t m, const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words,
                       int64_t n_panels, int64_t n_tiles, float* c, int64_t c_stride) {
    for (int64_t row = 0; row < m; row += 32) {
      for (int64_t panel = 0; panel < n_panels; panel += 2) {
        const A* rows = a + row * a_stride;
        const uint32_t* panels = words + panel * panel_words;
        float* out = c + row * c_stride + panel * 16;
        const bool two_rows = row + 16 < m, two_panels = panel + 1 < n_panels;
        if (two_rows && two_panels) block<true, true>(rows, a_stride, panels, panel_words, n_tiles, out, c_stride);
        else if (two_rows) block<true, false>(rows, a_stride, panels, panel_words, n_tiles, out, c_stride);
        else if (two_panels) block<false, true>(rows, a_stride, panels, panel_words, n_tiles, out, c_stride);
        else block<false, false>(rows, a_stride, panels, panel_words, n_tiles, out, c_stride);
      }
    }
  }

 private:
  template <bool two_rows, bool two_panels>
  static void block(const A* a, int64_t a_stride, const uint32_t* words, int64_t panel_words, int64_t n_tiles, float* c,
                    int64_t c_stride) {
    const A* a2 = a + 16 * a_stride;
    float* c2 = c + 16 * c_stride;
    _tile_loadd(0, c, c_stride * 4);
    if constexpr (two_panels) _tile_loadd(1, c + 16, c_stride * 4);
    if constexpr (two_rows) _tile_loadd(2, c2, c_stride * 4);
    if constexpr (two_rows && two_panels) _tile_loadd(3, c2 + 16, c_stride * 4);
    for (int64_t t = 0; t < n_tiles; ++t, a += tile_cols, a2 += tile_cols, words += tile_words) {
      _tile_loadd(4, a, a_stride * 2);
      _tile_loadd(6, words, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (two_panels) {
        _tile_loadd(7, words + panel_words, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (two_rows) {
        _tile_loadd(5, a2, a_stride * 2);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (two_rows && two_panels) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride * 4);
    if constexpr (two_panels) _tile_stored(1, c + 16, c_stride * 4);
    if constexpr (two_rows) _tile_stored(2, c2, c_stride * 4);
    if constexpr (two_rows && two_panels) _tile_stored(3, c2 + 16, c_stride * 4);
  }
};

}  // namespace
