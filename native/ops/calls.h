// The arguments of row operations, checked by interface.cc. Strides are in elements.
#pragma once

#include <cstdint>

#include "earthshine.h"

namespace earthshine {

struct NormCall {
  void* x;  // bf16, or fp32 where `wide`
  bool wide;
  int64_t x_row, x_head;
  const uint16_t* added;  // null for none
  int64_t added_row;
  const uint16_t* weight;
  float eps;
  int64_t rows, n_heads, dim;
  uint16_t* out;
  int64_t out_row, out_head;
};

struct RotateCall {
  const uint16_t* x;
  int64_t x_row, x_head;
  const float* cos;
  const float* sin;
  bool interleaved;
  int64_t rows, n_heads, dim;
  uint16_t* out;
  int64_t out_row, out_head;
};

struct SwigluCall {
  const void* gate;  // bf16, or fp32 where `wide`
  const void* up;
  bool wide;
  int64_t gate_row, up_row, rows, cols;
  uint16_t* out;
};

struct GatedNormCall {
  const float* x;
  const uint16_t* gate;
  int64_t gate_row;
  const float* weight;
  float eps;
  int64_t rows, dim;
  uint16_t* out;
};

struct KdaCall {
  const es_kda_shape* shape;
  const es_recurrent* sequences;
  int64_t n_sequences;
  const uint16_t* qkv;
  const void* gate;  // bf16 or fp32, as the shape says
  const void* beta;
  const float* conv;
  const float* a_log;
  const float* dt_bias;
  float query_scale;  // head_dim^-0.5
  float* out;
};

struct RouteCall {
  const float* logits;
  bool softmax;       // or sigmoid
  const float* bias;  // null for none
  int64_t tokens, n_experts, top_k, n_groups, groups_kept;
  bool normalize;
  float scale;
  int64_t* chosen;
  float* weight;
};

// Room for one token's scores on the stack.
constexpr int64_t most_experts = 4096;
// Room for a chunk of tokens on the stack.
constexpr int64_t most_kda_dim = 256, most_kda_kernel = 8;

}  // namespace earthshine
