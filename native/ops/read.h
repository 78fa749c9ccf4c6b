// Memory read by all threads: what bounds every product by few rows, and so the limit that they are compared with.
#pragma once

#include <cstdint>
#include <cstring>

#include "../pool.h"

namespace {

constexpr int64_t read_chunk = 4 << 20;  // a task: long enough that threads meet rarely, and each streams

// The exclusive or of a chunk's 64-bit words; a last word that is not whole is filled with zeros.
uint64_t fold(const uint8_t* from, int64_t bytes) {
  uint64_t lanes[32] = {};
  int64_t at = 0;
  for (; at + 256 <= bytes; at += 256) {
    uint64_t words[32];
    std::memcpy(words, from + at, sizeof words);
    for (int i = 0; i < 32; ++i) lanes[i] ^= words[i];
  }
  for (; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, from + at, static_cast<size_t>(bytes - at < 8 ? bytes - at : 8));
    lanes[0] ^= word;
  }
  for (int i = 1; i < 32; ++i) lanes[0] ^= lanes[i];
  return lanes[0];
}

// The same of all bytes: an exclusive or is the same whichever thread comes first.
uint64_t read_memory(const uint8_t* memory, int64_t bytes) {
  uint64_t folded = 0;
  earthshine::parallel((bytes + read_chunk - 1) / read_chunk, [&](int64_t index) {
    const int64_t first = index * read_chunk, left = bytes - first;
    __atomic_fetch_xor(&folded, fold(memory + first, left < read_chunk ? left : read_chunk), __ATOMIC_RELAXED);
  });
  return folded;
}

}  // namespace
