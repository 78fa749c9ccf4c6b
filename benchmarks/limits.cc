// What bounds an engine on this machine: bf16 and fp32 multiply-adds a second, and bytes read from memory a second.
//
// A shared library for limits.py:
//
//   c++ -O3 -march=native -pthread -shared -fPIC limits.cc -o limits.so
//
// Each figure is the best of several tries: a limit is what the machine can do.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <functional>
#include <thread>
#include <vector>

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

volatile float sink;

// Seconds until `work(thread)` has returned on every thread.
double timed(int n_threads, const std::function<void(int)>& work) {
  const double began = now();
  std::vector<std::thread> threads;
  for (int i = 0; i < n_threads; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  return now() - began;
}

double best_rate(int n_threads, double amount, const std::function<void(int)>& work) {
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double rate = amount / timed(n_threads, work);
    best = rate > best ? rate : best;
  }
  return best;
}

// The best of five tries of the calling thread, by its processor time: what others do on the machine counts little.
double best_of_thread(double amount, const std::function<void()>& work) {
  const auto spent = [] {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double began = spent();
    work();
    const double rate = amount / (spent() - began);
    best = rate > best ? rate : best;
  }
  return best;
}

#if defined(__AVX512F__)
void fused(long rounds) {
  __m512 sums[16], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
  for (__m512& sum : sums) sum = x;
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sums[i] = _mm512_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < 16; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
}
constexpr double fused_flops = 16 * 32;
#elif defined(__FMA__)
void fused(long rounds) {
  __m256 sums[12], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
  for (__m256& sum : sums) sum = x;
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sums[i] = _mm256_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < 12; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  sink = _mm256_cvtss_f32(sums[0]);
}
constexpr double fused_flops = 12 * 16;
#endif

#if defined(__AVX512BF16__)
void pairs(long rounds) {
  __m512 sums[16];
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f003f00));
  for (__m512& sum : sums) sum = _mm512_set1_ps(1.0f);
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
  }
  for (int i = 1; i < 16; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
}
#endif

#if defined(__AMX_BF16__)
bool tiles_permitted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

void tiles(long rounds) {
  alignas(64) uint8_t configuration[64] = {1};
  for (int i = 0; i < 8; ++i) {
    configuration[16 + 2 * i] = 64;
    configuration[48 + i] = 16;
  }
  asm volatile("" : "+m"(configuration));  // GCC's intrinsic says that it reads 8 bytes, and the rest would be dropped
  _tile_loadconfig(configuration);
  // Statements, since GCC's are macros of asm.
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (long r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#endif

uint64_t read_all(const uint8_t* from, long bytes) {
  uint64_t sums[8] = {};
  for (long i = 0; i < bytes; i += 64) {
    uint64_t line[8];
    std::memcpy(line, from + i, sizeof line);
    for (int j = 0; j < 8; ++j) sums[j] ^= line[j];
  }
  for (int j = 1; j < 8; ++j) sums[0] ^= sums[j];
  return sums[0];
}

}  // namespace

extern "C" {

// Multiply-adds of bf16, by the fastest unit, as FLOP/s; `name` receives the unit.
double bf16_rate(int n_threads, const char** name) {
  constexpr long rounds = 20'000'000;
#if defined(__AMX_BF16__)
  if (tiles_permitted()) {
    *name = "AMX";
    return best_rate(n_threads, n_threads * 4.0 * 16 * 16 * 64 * (rounds / 10), [](int) { tiles(rounds / 10); });
  }
#endif
#if defined(__AVX512BF16__)
  *name = "VDPBF16PS";
  return best_rate(n_threads, n_threads * 16.0 * 64 * rounds, [](int) { pairs(rounds); });
#elif defined(__AVX512F__) || defined(__FMA__)
  *name = "fused multiply-add";
  return best_rate(n_threads, n_threads * fused_flops * rounds, [](int) { fused(rounds); });
#else
  *name = "none";
  return 0;
#endif
}

// Multiply-adds of fp32 by one thread's vector unit, as FLOP per second of processor time.
double fused_rate() {
#if defined(__AVX512F__) || defined(__FMA__)
  constexpr long rounds = 10'000'000;
  return best_of_thread(fused_flops * rounds, [] { fused(rounds); });
#else
  return 0;
#endif
}

// Bytes, those read and those written, that one thread moves per second of processor time when it changes each word.
double update_rate(uint8_t* memory, long bytes) {
  return best_of_thread(2.0 * bytes, [&] {
    uint64_t* words = reinterpret_cast<uint64_t*>(memory);
    for (long i = 0; i < bytes / 8; ++i) words[i] ^= 1;
  });
}

// Bytes a second at which `n_threads` read `bytes` from `memory`, each a part of its own.
double read_rate(int n_threads, const uint8_t* memory, long bytes) {
  const long share = bytes / n_threads / 64 * 64;
  return best_rate(n_threads, 1.0 * n_threads * share, [&](int i) { sink = read_all(memory + i * share, share); });
}
}
