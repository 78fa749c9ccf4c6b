// What an instruction set offers: one function an operation and format, compiled with that set's flags.
#pragma once

#include <cstdint>

namespace earthshine {

struct Instance {
  const char* name;
  // codes, scales, rows, cols, out: as in ops/decode.h
  void (*decode_int4)(const void*, const void*, int64_t, int64_t, uint16_t*);
  void (*decode_fp8)(const void*, const void*, int64_t, int64_t, uint16_t*);
};

extern const Instance portable;
extern const Instance avx2;    // only in builds for x86-64
extern const Instance avx512;  // only in builds for x86-64

}  // namespace earthshine
