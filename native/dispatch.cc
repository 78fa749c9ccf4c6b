// The C interface: checks arguments, chooses the instance that serves, and nothing else.
//
// The choice is made once, at the first call, from what the processor and the operating system offer, and can be
// forced. It cannot change a result: every instance computes the same bits.
#include <atomic>
#include <cstring>

#include "earthshine.h"
#include "instances/instance.h"

namespace {

using earthshine::Instance;

// The compiler's runtime reads cpuid, and xgetbv for what the operating system saves when it switches tasks.
const Instance* runnable(int32_t index) {
  const Instance* found[3];
  int32_t count = 0;
#if defined(EARTHSHINE_X86_64)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    found[count++] = &earthshine::avx512;
  }
  if (__builtin_cpu_supports("avx2")) {
    found[count++] = &earthshine::avx2;
  }
#endif
  found[count++] = &earthshine::portable;
  return index >= 0 && index < count ? found[index] : nullptr;
}

std::atomic<const Instance*> chosen{nullptr};

const Instance& serving() {
  const Instance* instance = chosen.load(std::memory_order_acquire);
  if (instance == nullptr) {
    const Instance* none = nullptr;
    instance = runnable(0);
    if (!chosen.compare_exchange_strong(none, instance)) {
      instance = none;  // another thread chose, or forced, in between
    }
  }
  return *instance;
}

// 2^60 elements are beyond any memory, and keep every byte count below 2^63.
constexpr int64_t max_elements = int64_t{1} << 60;

int32_t check(const void* codes, const void* scales, int64_t rows, int64_t cols, const void* out, int64_t multiple) {
  if (rows < 0 || cols < 0 || cols % multiple != 0 || (rows > 0 && cols > max_elements / rows)) {
    return ES_BAD_SHAPE;
  }
  const bool empty = rows == 0 || cols == 0;
  const bool missing = codes == nullptr || scales == nullptr || out == nullptr;
  return missing && !empty ? ES_NULL_POINTER : ES_OK;
}

}  // namespace

int32_t es_abi_version(void) { return ES_ABI_VERSION; }

const char* es_status_text(int32_t status) {
  switch (status) {
    case ES_OK: return "The call succeeded.";
    case ES_NULL_POINTER: return "A pointer is null although the shape is not empty.";
    case ES_BAD_SHAPE: return "A size is negative, too large, or not a multiple of the format's group.";
    case ES_UNSUPPORTED: return "This build has no such instruction set, or the processor lacks it.";
    default: return "This status is not one of the library's.";
  }
}

const char* es_instruction_set_at(int32_t index) {
  const Instance* instance = runnable(index);
  return instance == nullptr ? nullptr : instance->name;
}

const char* es_instruction_set(void) { return serving().name; }

int32_t es_force_instruction_set(const char* name) {
  if (name == nullptr) {
    return ES_NULL_POINTER;
  }
  const bool best = std::strcmp(name, "auto") == 0;
  for (int32_t index = 0; const Instance* instance = runnable(index); ++index) {
    if (best || std::strcmp(name, instance->name) == 0) {
      chosen.store(instance, std::memory_order_release);
      return ES_OK;
    }
  }
  return ES_UNSUPPORTED;
}

int32_t es_decode_int4(const int32_t* packed, const uint16_t* scale, int64_t rows, int64_t cols, uint16_t* out) {
  const int32_t status = check(packed, scale, rows, cols, out, 32);
  if (status == ES_OK) {
    serving().decode_int4(packed, scale, rows, cols, out);
  }
  return status;
}

int32_t es_decode_fp8(const uint8_t* weight, const float* scale_inv, int64_t rows, int64_t cols, uint16_t* out) {
  const int32_t status = check(weight, scale_inv, rows, cols, out, 1);
  if (status == ES_OK) {
    serving().decode_fp8(weight, scale_inv, rows, cols, out);
  }
  return status;
}
