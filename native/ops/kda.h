// Kimi Delta Attention: a layer's recurrence over the tokens of several sequences (arXiv 2510.26692; the decay with a
// lower bound is Kimi-K3's).
//
// For each token and head, all in fp32: q, k, v = silu(convolution); q and k over their L2 norms, q times
// head_dim^-0.5; S = diag(decay) S; S += k (beta (v - S^T k))^T; out = S^T q. Tokens follow each other in prefill as in
// decode, so bits do not depend on how a prompt is cut. A task is a head of a sequence. Columns of S, one a value, do
// not meet: some of them go through a chunk of tokens while they lie in the nearest cache, and what updates S for one
// token also decays it for the next, so each token reads and writes it once. Sums over keys are fused multiply-adds,
// ascending, from zero; those of norms as in `squares`. The same bits on every instruction set.
#pragma once

#include "elementwise.h"

namespace {

template <class T>
struct Kda : Lanes16<T> {
  using L = Lanes16<T>;
  using F = typename T::F;
  using I = typename T::I;
  static constexpr int64_t most_dim = earthshine::most_kda_dim, most_kernel = earthshine::most_kda_kernel;
  static constexpr int64_t chunk = 32;  // tokens: 64 KB of q, k, v and decays at 128 values a head
  static constexpr int64_t ahead = 16;  // tokens, whose inputs are asked for so early
  // Vectors of columns that go together: their sums fill AVX-512's registers, or AVX2's.
  static constexpr int together = alignof(F) == 64 ? 4 : 1;

  static void run(const earthshine::KdaCall& call) {
    earthshine::parallel(call.n_sequences * call.shape->n_heads, [&](int64_t index) {
      T::flush_subnormals();
      const int64_t heads = call.shape->n_heads;
      if (call.shape->gate_is_fp32 != 0) one_head<float>(call, call.sequences[index / heads], index % heads);
      else one_head<uint16_t>(call, call.sequences[index / heads], index % heads);
      T::restore();
    });
    earthshine::parallel(call.n_sequences, [&](int64_t index) { keep_tail(call, call.sequences[index]); });
  }

 private:
  // What the recurrence needs of the tokens of a chunk: [chunk][head_dim] each.
  struct Tokens {
    alignas(64) float q[chunk * most_dim];
    alignas(64) float k[chunk * most_dim];
    alignas(64) float v[chunk * most_dim];
    alignas(64) float decay[chunk * most_dim];
    float beta[chunk];
  };

  // A head's convolution, by tap: [kernel][q, k, v][head_dim].
  struct Taps { alignas(64) float of[most_kernel * 3 * most_dim]; };

  template <class Gate>
  static void one_head(const earthshine::KdaCall& call, const es_recurrent& sequence, int64_t head) {
    const int64_t heads = call.shape->n_heads, dim = call.shape->head_dim;
    if (sequence.rows == 0) return;
    Taps taps;
    Tokens tokens;
    for (int64_t part = 0; part < 3; ++part) sort_taps(call, (part * heads + head) * dim, part * dim, &taps);
    const F rate = Math<T>::exp(T::broadcast(call.a_log[head]));
    float* state = sequence.state + head * dim * dim;
    for (int64_t first = 0; first < sequence.rows; first += chunk) {
      const int64_t n = at_most(sequence.rows - first, chunk), token = sequence.first + first;
      for (int64_t t = 0; t < n; ++t) {
        if (first + t + ahead < sequence.rows) fetch(call, token + t + ahead, head);
        convolve(call, sequence, head, first + t, taps, t, &tokens);
        normalize(dim, 1.0f, tokens.k + t * dim);
        normalize(dim, call.query_scale, tokens.q + t * dim);
        const Gate* gate = static_cast<const Gate*>(call.gate) + ((token + t) * heads + head) * dim;
        decays(call, gate, call.dt_bias + head * dim, rate, tokens.decay + t * dim);
        tokens.beta[t] = beta(call, (token + t) * heads + head);
      }
      float* out = call.out + (token * heads + head) * dim;
      int64_t column = 0;
      for (; column + together * 16 <= dim; column += together * 16) {
        recur<together>(tokens, n, dim, column, state + column, out, heads * dim);
      }
      for (; column < dim; column += 16) recur<1>(tokens, n, dim, column, state + column, out, heads * dim);
    }
  }

  // conv's rows [kernel] of head_dim channels from `channel`, to columns from `to` of each tap.
  static void sort_taps(const earthshine::KdaCall& call, int64_t channel, int64_t to, Taps* taps) {
    const int64_t kernel = call.shape->kernel, dim = call.shape->head_dim;
    const float* from = call.conv + channel * kernel;
    for (int64_t i = 0; kernel == 4 && i < dim; i += 16) {
      I four[4];
      T::transpose4(reinterpret_cast<const uint8_t*>(from + i * 4), 16, four);
      for (int64_t j = 0; j < 4; ++j) T::store(taps->of + j * 3 * dim + to + i, T::as_float(four[j]));
    }
    for (int64_t i = 0; kernel != 4 && i < dim; ++i) {
      for (int64_t j = 0; j < kernel; ++j) taps->of[j * 3 * dim + to + i] = from[i * kernel + j];
    }
  }

  // Asks for a token's inputs, and for the place of its result: a head's part of each row lies far from the one before,
  // where no processor's own prefetcher follows. A prompt of 2048 took 1.6 times as long without. Inlined: GCC takes a
  // function that only prefetches for one without effect, and leaves its calls out.
  [[gnu::always_inline]] static inline void fetch(const earthshine::KdaCall& call, int64_t token, int64_t head) {
    const int64_t dim = call.shape->head_dim, heads = call.shape->n_heads, at = (token * heads + head) * dim;
    const int64_t gate_bytes = call.shape->gate_is_fp32 != 0 ? 4 : 2;
    for (int64_t part = 0; part < 3; ++part) {
      touch(call.qkv + ((token * 3 + part) * heads + head) * dim, dim * 2);
    }
    touch(static_cast<const uint8_t*>(call.gate) + at * gate_bytes, dim * gate_bytes);
    touch(call.out + at, dim * 4);
  }

  [[gnu::always_inline]] static inline void touch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const uint8_t*>(from) + i);
  }

  // q, k and v of the sequence's token `row`, as the t-th of the chunk. The last tap is the token's own input.
  static void convolve(const earthshine::KdaCall& call, const es_recurrent& sequence, int64_t head, int64_t row,
                       const Taps& taps, int64_t t, Tokens* tokens) {
    const int64_t dim = call.shape->head_dim, kernel = call.shape->kernel, width = call.shape->n_heads * dim;
    const uint16_t* input[most_kernel];
    for (int64_t j = 0; j < kernel; ++j) {
      const int64_t at = row + j - (kernel - 1);
      const uint16_t* from = at < 0 ? sequence.tail + (at + kernel - 1) * 3 * width
                                    : call.qkv + (sequence.first + at) * 3 * width;
      input[j] = from + head * dim;
    }
    float* const to[3] = {tokens->q + t * dim, tokens->k + t * dim, tokens->v + t * dim};
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t i = 0; i < dim; i += 16) {
        F sum = T::zero();
        for (int64_t j = 0; j < kernel; ++j) {
          sum = T::fma(T::load(taps.of + (j * 3 + part) * dim + i), L::whole(input[j] + part * width + i), sum);
        }
        T::store(to[part] + i, Math<T>::silu(sum));
      }
    }
  }

  // x *= scale / sqrt(sum of squares + 1e-6). Value i adds to lane i % 16, ascending; then L::total.
  static void normalize(int64_t dim, float scale, float* x) {
    F squares = T::zero();
    for (int64_t i = 0; i < dim; i += 16) squares = T::fma(T::load(x + i), T::load(x + i), squares);
    const F length = T::sqrt(T::broadcast(L::total(squares) + 1e-6f)), factor = T::div(T::broadcast(scale), length);
    for (int64_t i = 0; i < dim; i += 16) T::store(x + i, T::mul(T::load(x + i), factor));
  }

  // exp(-rate * softplus(gate + bias)), or exp(lower_bound * sigmoid(rate * (gate + bias))).
  template <class Gate>
  static void decays(const earthshine::KdaCall& call, const Gate* gate, const float* bias, F rate, float* to) {
    const F bound = T::broadcast(call.shape->lower_bound);
    for (int64_t i = 0; i < call.shape->head_dim; i += 16) {
      const F x = T::add(L::whole(gate + i), T::load(bias + i));
      const F exponent = call.shape->is_bounded != 0 ? T::mul(bound, Math<T>::sigmoid(T::mul(rate, x)))
                                                     : T::sub(T::zero(), T::mul(rate, Math<T>::softplus(x)));
      T::store(to + i, Math<T>::exp(exponent));
    }
  }

  static float beta(const earthshine::KdaCall& call, int64_t at) {
    const float logit = call.shape->beta_is_fp32 != 0
                            ? static_cast<const float*>(call.beta)[at]
                            : float_from_bits(static_cast<uint32_t>(static_cast<const uint16_t*>(call.beta)[at]) << 16);
    alignas(64) float lane[16];
    T::store(lane, Math<T>::sigmoid(T::broadcast(logit)));
    return lane[0];
  }

  template <int n>
  struct Columns {
    F of[n];
  };

  // The chunk's tokens over 16 * n columns of S; out: [token][head_dim] with `stride`. Several tokens work on a copy
  // without gaps: pieces of rows 512 bytes apart use half of the nearest cache's sets, and the copy makes a prompt 1.44
  // times as fast on Emerald Rapids.
  template <int n>
  static void recur(const Tokens& tokens, int64_t count, int64_t dim, int64_t column, float* state, float* out,
                    int64_t stride) {
    if (count == 1) return advance<n>(tokens, count, dim, column, state, dim, out, stride);
    alignas(64) float copy[most_dim * n * 16];
    for (int64_t i = 0; i < dim; ++i) std::memcpy(copy + i * n * 16, state + i * dim, n * 64);
    advance<n>(tokens, count, dim, column, copy, n * 16, out, stride);
    for (int64_t i = 0; i < dim; ++i) std::memcpy(state + i * dim, copy + i * n * 16, n * 64);
  }

  template <int n>
  static void advance(const Tokens& tokens, int64_t count, int64_t dim, int64_t column, float* state, int64_t state_row,
                      float* out, int64_t stride) {
    Columns<n> delta, result, seen;
    pass<n, false, true>(tokens, -1, dim, state, state_row, delta, &result, &seen);
    for (int64_t t = 0; t < count; ++t) {
      for (int c = 0; c < n; ++c) {
        const F value = T::load(tokens.v + t * dim + column + c * 16);
        delta.of[c] = T::mul(T::broadcast(tokens.beta[t]), T::sub(value, seen.of[c]));
      }
      if (t + 1 < count) pass<n, true, true>(tokens, t, dim, state, state_row, delta, &result, &seen);
      else pass<n, true, false>(tokens, t, dim, state, state_row, delta, &result, &seen);
      for (int c = 0; c < n; ++c) T::store(out + t * stride + column + c * 16, result.of[c]);
    }
  }

  // Once over the columns, rows of S `state_row` apart: `updates` adds token t's k delta^T and gives S^T q; `looks`
  // decays them for token t + 1 and gives what its key sees, S^T k.
  template <int n, bool updates, bool looks>
  static void pass(const Tokens& tokens, int64_t t, int64_t dim, float* state, int64_t state_row,
                   const Columns<n>& delta, Columns<n>* result, Columns<n>* seen) {
    const int64_t now = updates ? t * dim : 0, next = (t + 1) * dim;
    const float *k = tokens.k + now, *q = tokens.q + now;
    const float *next_k = tokens.k + next, *next_decay = tokens.decay + next;
    Columns<n> mixed, found;
    for (int c = 0; c < n; ++c) mixed.of[c] = found.of[c] = T::zero();
    for (int64_t i = 0; i < dim; ++i, state += state_row) {
      for (int c = 0; c < n; ++c) {
        F s = T::load(state + c * 16);
        if constexpr (updates) {
          s = T::fma(T::broadcast(k[i]), delta.of[c], s);
          mixed.of[c] = T::fma(T::broadcast(q[i]), s, mixed.of[c]);
        }
        if constexpr (looks) {
          s = T::mul(T::broadcast(next_decay[i]), s);
          found.of[c] = T::fma(T::broadcast(next_k[i]), s, found.of[c]);
        }
        T::store(state + c * 16, s);
      }
    }
    *result = mixed, *seen = found;
  }

  // The last kernel - 1 inputs, for the tokens to come; only now, since heads have read the ones before.
  static void keep_tail(const earthshine::KdaCall& call, const es_recurrent& sequence) {
    const int64_t width = 3 * call.shape->n_heads * call.shape->head_dim, kept = call.shape->kernel - 1;
    const int64_t old = sequence.rows < kept ? kept - sequence.rows : 0;  // rows of the tail that stay
    if (kept == 0 || sequence.rows == 0) return;
    std::memmove(sequence.tail, sequence.tail + (kept - old) * width, static_cast<size_t>(old * width) * 2);
    std::memcpy(sequence.tail + old * width, call.qkv + (sequence.first + sequence.rows - (kept - old)) * width,
                static_cast<size_t>((kept - old) * width) * 2);
  }
};

}  // namespace
