// The functions of one instance, over the tile that the including file has named.
#pragma once

#include "instance.h"

#include "../ops/attention.h"
#include "../ops/kda.h"
#include "../ops/linear.h"
#include "../ops/moe_ffn.h"
#include "../ops/read.h"
#include "../ops/route.h"

namespace {

// `Exact`: decodes, with subnormal numbers; AVX512_BF16's conversion has none.
template <class Tile, class Exact = Tile>
constexpr earthshine::Instance table(const char* name) {
  return {
      name,
      Linear<Tile>::run,
      Linear<Tile>::by_head,
      Linear<Exact>::decode,
      // clang-format off: a lambda's head on lines of its own
      [](const es_expert* experts, int64_t n_experts, const int64_t* begin, const uint16_t* x, const int32_t* token,
         int64_t hidden, int64_t intermediate, float* each) {
        return MoeFfn<Tile>::run({experts, x, token, hidden, intermediate, each}, n_experts, begin);
      },
      // clang-format on
      MoeFfn<Tile>::sum,
      PagedAttention<Tile>::run,
      Elementwise<Tile>::rms_norm,
      Elementwise<Tile>::gated_norm,
      Elementwise<Tile>::rotate,
      Elementwise<Tile>::swiglu,
      Route<Tile>::run,
      Kda<Tile>::run,
      read_memory,
  };
}

}  // namespace
