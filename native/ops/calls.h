// The arguments of row operations, checked by interface.cc. Strides are in elements.
#pragma once

#include <cstdint>

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

constexpr int64_t most_experts = 4096;  // room for one token's scores on the stack

}  // namespace earthshine
