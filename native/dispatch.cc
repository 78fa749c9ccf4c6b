// The choice of the instance that serves: made once, at the first call, from what can run here; it can be forced.
#include "dispatch.h"

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <iterator>

#include "processor.h"

namespace earthshine {
namespace {

const char* always() { return ""; }

const char* amx_or_why_not();

struct Candidate {
  const Instance* instance;
  const char* (*refusal)();
};

// Best first. AMX is faster than VDPBF16PS wherever both exist.
// clang-format off: one candidate per line
const Candidate candidates[] = {
#if defined(EARTHSHINE_X86_64)
    {&amx, amx_or_why_not},
    {&avx512_bf16, avx512_bf16_refusal},
    {&avx512, avx512_refusal},
    {&avx2, avx2_refusal},
#endif
    {&portable, always},
};
// clang-format on

#if defined(EARTHSHINE_X86_64)
// Whether tiles add in the order that the manual gives and that the other instances follow.
bool amx_keeps_the_order() {
  constexpr int64_t m = 17, rows = 40, cols = 96;
  uint16_t x[m * cols], w[rows * cols];
  uint32_t state = 1;
  for (uint16_t* values : {x, w}) {
    for (int64_t i = 0; i < (values == x ? m : rows) * cols; ++i) {
      state = state * 1664525u + 1013904223u;
      values[i] = static_cast<uint16_t>((state >> 16 & 0x83ffu) | 0x3c00u);  // 2^-7 to 2, either sign
    }
  }
  const es_matrix matrix = {ES_BF16, rows, cols, w, nullptr};
  float ours[m * rows], theirs[m * rows];
  return amx.linear(matrix, x, m, ours, true) && portable.linear(matrix, x, m, theirs, true) &&
         std::memcmp(ours, theirs, sizeof ours) == 0;
}

const char* amx_or_why_not() {
#if defined(EARTHSHINE_EMULATE_AMX)
  return avx512_bf16_refusal();
#else
  static const char* const refusal = [] {
    const char* missing = amx_refusal();
    if (*missing != 0) return missing;
    return amx_keeps_the_order() ? "" : "This processor's AMX adds in an order that Intel's manual does not give.";
  }();
  return refusal;
#endif
}
#endif

std::atomic<const Instance*> chosen{nullptr};
std::atomic<const Candidate*> first_seen{std::begin(candidates)};  // those before it are hidden

const char* refusal_of(const Candidate& candidate) {
  if (&candidate < first_seen.load(std::memory_order_acquire)) {
    return "It is hidden, since the processor's features are narrowed.";
  }
  return candidate.refusal();
}

}  // namespace

const Instance* runnable(int32_t index) {
  for (const Candidate& candidate : candidates) {
    if (*refusal_of(candidate) == 0 && index-- == 0) return candidate.instance;
  }
  return nullptr;
}

const Instance& serving() {
  const Instance* instance = chosen.load(std::memory_order_acquire);
  if (instance == nullptr) {
    const Instance* none = nullptr;
    instance = runnable(0);
    if (!chosen.compare_exchange_strong(none, instance)) instance = none;  // another thread chose, or forced, meanwhile
  }
  return *instance;
}

const char* refusal(const char* name) {
  for (const Candidate& candidate : candidates) {
    if (std::strcmp(name, candidate.instance->name) == 0) return refusal_of(candidate);
  }
  return nullptr;
}

bool force(const char* name) {
  const bool best = std::strcmp(name, "auto") == 0;
  for (int32_t index = 0; const Instance* instance = runnable(index); ++index) {
    if (best || std::strcmp(name, instance->name) == 0) {
      chosen.store(instance, std::memory_order_release);
      return true;
    }
  }
  return false;
}

bool narrow(const char* name) {
  const bool all = std::strcmp(name, "auto") == 0;
  for (const Candidate& candidate : candidates) {
    if (!all && std::strcmp(name, candidate.instance->name) != 0) continue;
    if (!all && *candidate.refusal() != 0) return false;
    first_seen.store(&candidate, std::memory_order_release);
    chosen.store(nullptr, std::memory_order_release);
    return true;
  }
  return false;
}

}  // namespace earthshine
