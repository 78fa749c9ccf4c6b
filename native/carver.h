// Many arrays in one piece of memory.
#pragma once

#include <cstdint>

namespace {

// The parts of a piece of memory, each aligned to a cache line; from null it only counts.
struct Carver {
  uint8_t* base;
  int64_t used = 0;
  template <class Value>
  Value* take(int64_t n) {
    uint8_t* at = base == nullptr ? nullptr : base + used;
    used += (n * static_cast<int64_t>(sizeof(Value)) + 63) / 64 * 64;
    return reinterpret_cast<Value*>(at);
  }
};

}  // namespace
