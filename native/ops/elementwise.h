// What lies between the products, row by row: RMS norm, rotary embedding, SwiGLU.
//
// Every nan that leaves is 0x7fc0: which of two operands' nans a sum keeps is the compiler's choice. Subnormals count
// as zero, as in the products; the tiles of AMX are not touched, so only the flushing is switched on.
#pragma once

#include <type_traits>

#include "../pool.h"
#include "calls.h"
#include "math.h"

namespace {

// Work of one task: 5 to 20 us, several times what waking a worker costs. A few tokens of decode are one task, which
// the calling thread does itself.
constexpr int64_t task_elements = 65536;

// Calls function(row) for every row, in tasks of as many rows as task_elements holds.
template <class T, class Function>
void over_rows(int64_t rows, int64_t row_elements, const Function& function) {
  const int64_t fitting = task_elements / row_elements, each = fitting < 1 ? 1 : fitting;
  earthshine::parallel((rows + each - 1) / each, [&](int64_t index) {
    T::flush_subnormals();
    const int64_t last = at_most(rows, (index + 1) * each);
    for (int64_t row = index * each; row < last; ++row) function(row);
    T::restore();
  });
}

template <class T>
struct Lanes16 {
  using F = typename T::F;
  using I = typename T::I;

  static F whole(const uint16_t* from) { return T::as_float(T::template left<16>(T::load16(from))); }
  static F whole(const float* from) { return T::load(from); }

  // The first n of sixteen, then zeros.
  template <class V>
  static F load(const V* from, int64_t n) {
    if (n >= 16) return whole(from);
    alignas(64) V staged[16] = {};
    std::memcpy(staged, from, static_cast<size_t>(n) * sizeof(V));
    return whole(staged);
  }

  // The sum of the lanes: each with the one 8 further, then 4, 2 and 1.
  static float total(F x) {
    alignas(64) float lane[16];
    T::store(lane, x);
    for (int n = 8; n > 0; n /= 2) {
      for (int j = 0; j < n; ++j) lane[j] += lane[j + n];
    }
    return lane[0];
  }

  static I round(F x) { return T::round(one_nan<T>(x)); }  // to bf16, in the lower half of each lane
  static F rounded(F x) { return T::as_float(T::template left<16>(round(x))); }

  static void store(uint16_t* to, int64_t n, F x) {
    if (n >= 16) return T::store16(to, round(x));
    uint16_t staged[16];
    T::store16(staged, round(x));
    std::memcpy(to, staged, static_cast<size_t>(n) * 2);
  }
  static void store(float* to, int64_t n, F x) {
    if (n >= 16) return T::store(to, x);
    alignas(64) float staged[16];
    T::store(staged, x);
    std::memcpy(to, staged, static_cast<size_t>(n) * 4);
  }
};

template <class T>
struct Elementwise : Lanes16<T> {
  using L = Lanes16<T>;
  using F = typename T::F;
  using I = typename T::I;

  static void rms_norm(const earthshine::NormCall& call) {
    if (call.wide) norm_rows<float>(call);
    else norm_rows<uint16_t>(call);
  }

  static void gated_norm(const earthshine::GatedNormCall& call) {
    over_rows<T>(call.rows, call.dim, [&](int64_t row) {
      const float* x = call.x + row * call.dim;
      const uint16_t* gate = call.gate + row * call.gate_row;
      const F factor = norm_factor(x, nullptr, call.dim, call.eps);
      for (int64_t i = 0; i < call.dim; i += 16) {
        const int64_t n = at_most(call.dim - i, 16);
        const F scaled = T::mul(L::load(call.weight + i, n), T::mul(L::load(x + i, n), factor));
        L::store(call.out + row * call.dim + i, n, T::mul(scaled, Math<T>::sigmoid(L::load(gate + i, n))));
      }
    });
  }

  static void rotate(const earthshine::RotateCall& call) {
    const int64_t pairs = call.dim / 2;
    over_rows<T>(call.rows, call.n_heads * call.dim, [&](int64_t row) {
      for (int64_t head = 0; head < call.n_heads; ++head) {
        const uint16_t* x = call.x + row * call.x_row + head * call.x_head;
        uint16_t* out = call.out + row * call.out_row + head * call.out_head;
        const float *cos = call.cos + row * pairs, *sin = call.sin + row * pairs;
        if (call.interleaved) rotate_neighbours(x, cos, sin, pairs, out);
        else rotate_halves(x, cos, sin, pairs, out);
      }
    });
  }

  static void swiglu(const earthshine::SwigluCall& call) {
    if (call.wide) swiglu_rows<float>(call);
    else swiglu_rows<uint16_t>(call);
  }

 private:
  template <class V>
  static void norm_rows(const earthshine::NormCall& call) {
    over_rows<T>(call.rows, call.n_heads * call.dim, [&](int64_t row) {
      for (int64_t head = 0; head < call.n_heads; ++head) {
        norm(call, static_cast<V*>(call.x) + row * call.x_row + head * call.x_head,
             call.added == nullptr ? nullptr : call.added + row * call.added_row,
             call.out + row * call.out_row + head * call.out_head);
      }
    });
  }

  template <class V>
  static void norm(const earthshine::NormCall& call, V* x, const uint16_t* added, uint16_t* out) {
    const F factor = norm_factor(x, added, call.dim, call.eps);
    for (int64_t i = 0; i < call.dim; i += 16) {
      const int64_t n = at_most(call.dim - i, 16);
      const F scaled = L::rounded(T::mul(L::load(x + i, n), factor));
      L::store(out + i, n, T::mul(L::load(call.weight + i, n), scaled));
    }
  }

  template <class V>
  static F norm_factor(V* x, const uint16_t* added, int64_t dim, float eps) {
    const float mean = sum_of_squares(x, added, dim) / static_cast<float>(dim);
    return T::div(T::broadcast(1.0f), T::sqrt(T::broadcast(mean + eps)));
  }

  // Column i adds to lane i % 64, in four registers: one alone would wait for each addition. Then a fixed tree.
  template <class V>
  static float sum_of_squares(V* x, const uint16_t* added, int64_t dim) {
    F sums[4] = {T::zero(), T::zero(), T::zero(), T::zero()};
    int64_t i = 0;
    for (; i + 64 <= dim; i += 64) {
      for (int64_t part = 0; part < 4; ++part) {
        add_square(x + i + part * 16, added == nullptr ? nullptr : added + i + part * 16, 16, &sums[part]);
      }
    }
    for (int64_t part = 0; i < dim; i += 16, ++part) {
      add_square(x + i, added == nullptr ? nullptr : added + i, at_most(dim - i, 16), &sums[part]);
    }
    return L::total(T::add(T::add(sums[0], sums[1]), T::add(sums[2], sums[3])));
  }

  // With `added`, x becomes the sum, rounded to its own type.
  template <class V>
  static void add_square(V* x, const uint16_t* added, int64_t n, F* sum) {
    if constexpr (!std::is_const_v<V>) {
      if (added != nullptr) L::store(x, n, T::add(L::load(x, n), L::load(added, n)));
    }
    const F value = L::load(x, n);
    *sum = T::fma(value, value, *sum);
  }

  static void rotate_neighbours(const uint16_t* x, const float* cos, const float* sin, int64_t pairs, uint16_t* out) {
    for (int64_t i = 0; i < pairs; i += 16) {
      const int64_t n = at_most(pairs - i, 16);
      alignas(64) uint32_t staged[16] = {};
      if (n < 16) std::memcpy(staged, x + 2 * i, static_cast<size_t>(n) * 4);
      const I both = n < 16 ? T::load_int(staged) : T::load_int(x + 2 * i);
      const F even = T::lower(both), odd = T::upper(both);
      F first, second;
      turn(even, odd, L::load(cos + i, n), L::load(sin + i, n), &first, &second);
      T::store(staged, T::pair(L::round(first), L::round(second)));
      if (n < 16) std::memcpy(out + 2 * i, staged, static_cast<size_t>(n) * 4);
      else std::memcpy(out + 2 * i, staged, sizeof staged);
    }
  }

  static void rotate_halves(const uint16_t* x, const float* cos, const float* sin, int64_t pairs, uint16_t* out) {
    for (int64_t i = 0; i < pairs; i += 16) {
      const int64_t n = at_most(pairs - i, 16);
      F first, second;
      turn(L::load(x + i, n), L::load(x + pairs + i, n), L::load(cos + i, n), L::load(sin + i, n), &first, &second);
      L::store(out + i, n, first);
      L::store(out + pairs + i, n, second);
    }
  }

  static void turn(F a, F b, F cos, F sin, F* first, F* second) {
    *first = T::sub(T::mul(a, cos), T::mul(b, sin));
    *second = T::add(T::mul(a, sin), T::mul(b, cos));
  }

  template <class V>
  static void swiglu_rows(const earthshine::SwigluCall& call) {
    over_rows<T>(call.rows, call.cols, [&](int64_t row) {
      const V* gate = static_cast<const V*>(call.gate) + row * call.gate_row;
      const V* up = static_cast<const V*>(call.up) + row * call.up_row;
      uint16_t* out = call.out + row * call.cols;
      for (int64_t i = 0; i < call.cols; i += 16) {
        const int64_t n = at_most(call.cols - i, 16);
        L::store(out + i, n, T::mul(Math<T>::silu(L::load(gate + i, n)), L::load(up + i, n)));
      }
    });
  }
};

}  // namespace
