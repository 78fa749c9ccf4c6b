#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <cstdint>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace earthshine {

#if defined(__x86_64__)
namespace {

struct Features { bool avx2, avx512, avx512_bf16, amx, amx_enabled; };

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool ask_for_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features found = {};
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return found;
  const bool fma = (c >> 12 & 1) != 0, xsave = (c >> 27 & 1) != 0;
  const uint64_t state = xsave ? enabled_state() : 0;
  uint32_t a7, b7, c7, d7, a71 = 0, unused;
  if (__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7) == 0) return found;
  if (a7 >= 1) __get_cpuid_count(7, 1, &a71, &unused, &unused, &unused);
  const auto bit = [](uint32_t value, int index) { return (value >> index & 1) != 0; };
  found.avx2 = fma && bit(b7, 5) && (state & 0x6) == 0x6;
  found.avx512 = found.avx2 && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31) && (state & 0xe6) == 0xe6;
  found.avx512_bf16 = found.avx512 && bit(a71, 5) && bit(c7, 1);  // Cooper Lake alone has no VBMI
  found.amx = found.avx512_bf16 && bit(d7, 22) && bit(d7, 24);
  found.amx_enabled = found.amx && (state & 0x60000) == 0x60000;
  return found;
}

const Features& features() {
  static const Features found = detect();
  return found;
}

}  // namespace

const char* avx2_refusal() { return features().avx2 ? "" : "This processor has no AVX2 with FMA."; }
const char* avx512_refusal() { return features().avx512 ? "" : "This processor has no AVX-512 F, BW, DQ and VL."; }
const char* avx512_bf16_refusal() {
  return features().avx512_bf16 ? "" : "This processor has no AVX512_BF16 with VBMI.";
}
const char* amx_refusal() {
  if (!features().amx) return "This processor has no AMX for bf16.";
  static const bool permitted = features().amx_enabled && ask_for_tiles();
  return permitted ? "" : "This processor has AMX, but the operating system does not permit its use.";
}
#else
const char* avx2_refusal() { return "This processor is not x86-64."; }
const char* avx512_refusal() { return "This processor is not x86-64."; }
const char* avx512_bf16_refusal() { return "This processor is not x86-64."; }
const char* amx_refusal() { return "This processor is not x86-64."; }
#endif

}  // namespace earthshine
