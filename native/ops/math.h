// exp and what is made of it, on lanes: the same operations in the same order whatever the instruction set is.
#pragma once

#include "../formats/matrix.h"

namespace {

template <class T>
struct Math {
  using F = typename T::F;

  // Within 2 units in the last place; 0 below -86, near fp32's smallest normal number; inf above 88.73.
  static F exp(F x) {
    const F shift = T::broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const F lowest = T::broadcast(-86.0f);
    const F bounded = T::select_less(T::broadcast(89.0f), x, T::broadcast(89.0f), T::select_less(x, lowest, lowest, x));
    const F shifted = T::fma(bounded, T::broadcast(1.44269504f), shift);
    const F n = T::sub(shifted, shift);
    F r = T::fma(n, T::broadcast(-0.693359375f), bounded);
    r = T::fma(n, T::broadcast(2.12194440e-4f), r);
    F p = T::broadcast(1.9875691500e-4f);  // minimax on [-ln2 / 2, ln2 / 2]: Cephes' expf
    p = T::fma(p, r, T::broadcast(1.3981999507e-3f));
    p = T::fma(p, r, T::broadcast(8.3334519073e-3f));
    p = T::fma(p, r, T::broadcast(4.1665795894e-2f));
    p = T::fma(p, r, T::broadcast(1.6666665459e-1f));
    p = T::fma(p, r, T::broadcast(5.0000001201e-1f));
    p = T::add(T::fma(p, T::mul(r, r), r), T::broadcast(1.0f));
    // 2^n in two factors, since 2^128 has no exponent of its own.
    const F half = T::as_float(T::template left<23>(T::plus(T::as_int(shifted), T::broadcast_int(126u - 0x4b400000u))));
    const F value = T::mul(T::mul(p, half), T::broadcast(2.0f));
    return T::select_less(x, lowest, T::zero(), value);
  }

  static F sigmoid(F x) {
    const F one = T::broadcast(1.0f);
    return T::div(one, T::add(one, exp(T::sub(T::zero(), x))));
  }

  // log(1 + exp(x)) = max(x, 0) + log1p(z) with z = exp(-|x|), where log1p(z) = 2 atanh(z / (2 + z)): a series in the
  // square of at most 1/3, whose first term left out is below 2^-32 of the whole.
  static F softplus(F x) {
    const F none = T::zero(), z = exp(T::sub(none, T::max(T::sub(none, x), x)));
    const F s = T::div(z, T::add(z, T::broadcast(2.0f))), square = T::mul(s, s);
    F p = T::broadcast(1.0f / 17);
    constexpr float terms[] = {1.0f / 15, 1.0f / 13, 1.0f / 11, 1.0f / 9, 1.0f / 7, 1.0f / 5, 1.0f / 3, 1.0f};
    for (const float term : terms) p = T::fma(p, square, T::broadcast(term));
    return T::add(T::select_less(none, x, x, none), T::mul(T::mul(s, p), T::broadcast(2.0f)));
  }

  static F silu(F x) {
    const F one = T::broadcast(1.0f);
    return T::div(x, T::add(one, exp(T::sub(T::zero(), x))));
  }
};

}  // namespace
