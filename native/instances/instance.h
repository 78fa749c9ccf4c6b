// What an instruction set offers: one function an operation, compiled with that set's flags.
#pragma once

#include <cstdint>

#include "../ops/calls.h"
#include "earthshine.h"

namespace earthshine {

struct Instance {
  const char* name;
  bool (*linear)(const es_matrix&, const uint16_t* x, int64_t m, void* y, bool to_fp32);
  bool (*linear_by_head)(const es_heads&, const uint8_t* codes, const uint16_t* x, int64_t m, uint16_t* y);
  void (*decode)(const es_matrix&, uint16_t* out);
  bool (*moe_ffn)(const es_expert*, int64_t n_experts, const int64_t* begin, const uint16_t* x, const int32_t* token,
                  int64_t hidden, int64_t intermediate, float* each);
  void (*moe_sum)(const float* each, const int32_t* token, const float* weight, int64_t pairs, int64_t hidden,
                  float* total);
  bool (*paged_attention)(const es_attention&, const es_sequence*, int64_t n_sequences, const uint16_t* q,
                          const uint16_t* pool, uint16_t* out);
  void (*rms_norm)(const NormCall&);
  void (*gated_norm)(const GatedNormCall&);
  void (*rotate)(const RotateCall&);
  void (*swiglu)(const SwigluCall&);
  void (*route)(const RouteCall&);
  void (*kda)(const KdaCall&);
  uint64_t (*read)(const uint8_t* memory, int64_t bytes);
};

extern const Instance portable;
extern const Instance avx2;  // only in builds for x86-64, like those below
extern const Instance avx512;
extern const Instance avx512_bf16;
extern const Instance amx;

}  // namespace earthshine
