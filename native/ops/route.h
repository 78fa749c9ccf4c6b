// The router after its product: scores, groups, the best experts and their weights (DeepSeek-V3, equations 12 to 16;
// Qwen3-MoE for the softmax).
//
// Scores are ordered as whole numbers, so that nan has a place (before all others, as in torch's sort) and equal scores
// fall to the lower expert.
#pragma once

#include "elementwise.h"

namespace {

// Greater numbers for greater values; nan is the greatest, both zeros are one.
inline uint32_t rank_of(float value) {
  if (value != value) return 0xffffffffu;
  const float plain = value + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &plain, sizeof bits);
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

// The n greatest of `count` values, greatest first, as (rank, ~index): so equal values are in ascending order.
inline void greatest(const float* values, int64_t count, int64_t n, uint64_t* found) {
  int64_t held = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = static_cast<uint64_t>(rank_of(values[i])) << 32 | (0xffffffffu - static_cast<uint32_t>(i));
    if (held == n && key < found[n - 1]) continue;
    int64_t at = held < n ? held++ : n - 1;
    for (; at > 0 && found[at - 1] < key; --at) found[at] = found[at - 1];
    found[at] = key;
  }
}

inline int64_t index_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

template <class T>
struct Route {
  using L = Lanes16<T>;
  static constexpr int64_t most = earthshine::most_experts;

  static void run(const earthshine::RouteCall& call) {
    over_rows<T>(call.tokens, call.n_experts * 8, [&](int64_t token) { one(call, token); });
  }

 private:
  static void one(const earthshine::RouteCall& call, int64_t token) {
    alignas(64) float scores[most], choice[most];
    uint64_t found[most];
    const float* logits = call.logits + token * call.n_experts;
    if (call.softmax) softmax(logits, call.n_experts, scores);
    else sigmoid(logits, call.n_experts, scores);
    for (int64_t i = 0; i < call.n_experts; i += 16) {
      const int64_t n = at_most(call.n_experts - i, 16);
      const typename T::F score = one_nan<T>(T::load(scores + i));
      T::store(scores + i, score);
      T::store(choice + i, call.bias == nullptr ? score : T::add(score, L::load(call.bias + i, n)));
    }
    if (call.n_groups > 1) keep_groups(call, choice, found);
    greatest(choice, call.n_experts, call.top_k, found);
    weigh(call, scores, found, call.chosen + token * call.top_k, call.weight + token * call.top_k);
  }

  static void sigmoid(const float* logits, int64_t n_experts, float* scores) {
    for (int64_t i = 0; i < n_experts; i += 16) {
      T::store(scores + i, Math<T>::sigmoid(L::load(logits + i, at_most(n_experts - i, 16))));
    }
  }

  // Expert i adds to lane i % 16 of the sum, ascending; then L::total.
  static void softmax(const float* logits, int64_t n_experts, float* scores) {
    const float none = -__builtin_inff();
    std::memcpy(scores, logits, static_cast<size_t>(n_experts) * sizeof(float));
    for (int64_t i = n_experts; i % 16 != 0; ++i) scores[i] = none;
    typename T::F greatest = T::broadcast(none), sum = T::zero();
    for (int64_t i = 0; i < n_experts; i += 16) greatest = T::max(greatest, T::load(scores + i));
    alignas(64) float lane[16];
    T::store(lane, greatest);
    for (int j = 1; j < 16; ++j) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
    const typename T::F most = T::broadcast(lane[0]);
    for (int64_t i = 0; i < n_experts; i += 16) {
      const typename T::F share = Math<T>::exp(T::sub(T::load(scores + i), most));
      T::store(scores + i, share);
      sum = T::add(sum, share);
    }
    const typename T::F total = T::broadcast(L::total(sum));
    for (int64_t i = 0; i < n_experts; i += 16) T::store(scores + i, T::div(T::load(scores + i), total));
  }

  // A group counts by the sum of its two best; the experts of groups that are not kept fall to -inf.
  static void keep_groups(const earthshine::RouteCall& call, float* choice, uint64_t* found) {
    const int64_t members = call.n_experts / call.n_groups;
    float sums[most / 2];
    bool kept[most / 2] = {};
    for (int64_t group = 0; group < call.n_groups; ++group) {
      const float* mine = choice + group * members;
      greatest(mine, members, 2, found);
      sums[group] = mine[index_of(found[0])] + mine[index_of(found[1])];
    }
    greatest(sums, call.n_groups, call.groups_kept, found);
    for (int64_t i = 0; i < call.groups_kept; ++i) kept[index_of(found[i])] = true;
    for (int64_t expert = 0; expert < call.n_experts; ++expert) {
      if (!kept[expert / members]) choice[expert] = float_from_bits(0xff800000u);
    }
  }

  static void weigh(const earthshine::RouteCall& call, const float* scores, const uint64_t* found, int64_t* chosen,
                    float* weight) {
    float total = 0.0f;
    for (int64_t k = 0; k < call.top_k; ++k) {
      chosen[k] = index_of(found[k]);
      weight[k] = scores[chosen[k]];
      total += weight[k];
    }
    for (int64_t k = 0; k < call.top_k; ++k) {
      const float share = call.normalize ? weight[k] / (total + 1e-20f) : weight[k];
      weight[k] = share * call.scale;
    }
  }
};

}  // namespace
