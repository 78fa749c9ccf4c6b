// What the fuzzer's operations are made of: a deterministic generator, exactly sized buffers, calls to be refused.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>

#include "earthshine.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

struct Random {
  uint64_t state;
  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  int64_t from(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(int64_t one_in) { return below(one_in) == 0; }
  // Sizes that meet the edges of tiles and blocks more often than chance would.
  int64_t size(int64_t most) {
    static constexpr int64_t edges[] = {1, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 255, 256, 257, 300};
    const int64_t value = chance(2) ? edges[below(15)] : from(1, 300);
    return value > most ? from(1, most) : value;
  }
};

// n values at the end of an allocation of their own. Where `shift` is not 0 they are misaligned by that many bytes.
template <class Value>
class Heap {
 public:
  explicit Heap(int64_t n, int64_t shift = 0)
      : n_(n),
        memory_(std::malloc(static_cast<size_t>(n) * sizeof(Value) + static_cast<size_t>(shift)), std::free),
        data_(reinterpret_cast<Value*>(static_cast<char*>(memory_.get()) + shift)) {}
  Value* data() const { return data_; }
  int64_t size() const { return n_; }
  size_t bytes() const { return static_cast<size_t>(n_) * sizeof(Value); }

 private:
  int64_t n_;
  std::shared_ptr<void> memory_;
  Value* data_;
};

Heap<uint8_t> random_bytes(Random& random, int64_t n) {
  Heap<uint8_t> out(n, random.below(4));
  for (int64_t i = 0; i < n; ++i) out.data()[i] = static_cast<uint8_t>(random.next());
  return out;
}

// bf16 between 2^-7 and 2 with either sign, or, where wild, any bits.
Heap<uint16_t> random_bf16(Random& random, int64_t n, bool wild = false) {
  Heap<uint16_t> out(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = static_cast<uint16_t>(random.next());
    out.data()[i] = wild ? bits : static_cast<uint16_t>((bits & 0x83ffu) | 0x3c00u);
  }
  return out;
}

Heap<float> random_floats(Random& random, int64_t n, bool wild = false) {
  Heap<float> out(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.next());
    const uint32_t tame = (bits & 0x83ffffffu) | 0x3c000000u;
    std::memcpy(out.data() + i, wild ? &bits : &tame, 4);
  }
  return out;
}

struct Stored {
  Heap<uint8_t> codes, scales;
  es_matrix matrix;
};

Stored random_matrix(Random& random, int32_t format, int64_t rows, int64_t cols) {
  const int64_t codes = format == ES_BF16 ? 2 * rows * cols : format == ES_INT4_GROUP32 ? rows * cols / 2 : rows * cols;
  int64_t scales = 0;
  if (format == ES_FP8_BLOCK128) scales = (rows + 127) / 128 * ((cols + 127) / 128) * 4;
  if (format == ES_INT4_GROUP32) scales = rows * (cols / 32) * 2;
  if (format == ES_INT8_GROUP128) scales = rows * ((cols + 127) / 128) * 4;
  Stored out = {random_bytes(random, codes), random_bytes(random, scales), {}};
  // Exponents near one: the highest byte of each scale, and of each bf16, is 0x3e or 0xbe. No code of fp8 is nan.
  const int64_t width = format == ES_INT4_GROUP32 ? 2 : 4;
  for (int64_t i = width - 1; i < scales; i += width) out.scales.data()[i] = (out.scales.data()[i] & 0x80) | 0x3e;
  for (int64_t i = 1; format == ES_BF16 && i < codes; i += 2) out.codes.data()[i] = (out.codes.data()[i] & 0x80) | 0x3e;
  for (int64_t i = 0; format == ES_FP8_BLOCK128 && i < codes; ++i) out.codes.data()[i] &= 0xbf;
  out.matrix = {format, rows, cols, out.codes.data(), format == ES_BF16 ? nullptr : out.scales.data()};
  return out;
}

int64_t fitting(int32_t format, int64_t cols) { return format == ES_INT4_GROUP32 ? (cols + 31) / 32 * 32 : cols; }

template <class Value>
uint64_t hash(const Heap<Value>& values) {
  uint64_t out = 0xcbf29ce484222325u;
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.bytes(); ++i) out = (out ^ bytes[i]) * 0x100000001b3u;
  return out;
}

template <class Value>
Heap<Value> filled(int64_t n) {
  Heap<Value> out(n);
  std::memset(static_cast<void*>(out.data()), 0x3c, out.bytes());
  return out;
}

void want_ok(const char* name, int32_t status) {
  if (status != ES_OK) fail(std::string(name) + " refused a valid call: " + es_status_text(status));
}

// Breaks are named; each is a call that must not succeed.
struct Breaks {
  Random& random;
  const char* name;
  int count = 0;
  void refuse(const char* what, const std::function<int32_t()>& call) {
    ++count;
    const int32_t status = call();
    if (status == ES_OK) fail(std::string(name) + " accepted " + what);
    if (*es_status_text(status) == 0) fail("a status has no text");
  }
  // No size: negative, or beyond any memory.
  int64_t absurd() {
    static constexpr int64_t values[] = {-1, INT64_MIN, INT64_MAX, (int64_t{1} << 60) + 1, int64_t{1} << 62, -300};
    return values[random.below(6)];
  }
};

}  // namespace
