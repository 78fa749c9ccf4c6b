// The routed experts of a batch: gate and up, SwiGLU, down, for every (token, expert) pair; and their weighted sum.
#pragma once

#include "math.h"
#include "product.h"

namespace {

// Rows of one expert that are computed together.
struct Segment {
  int64_t expert, first, count;  // pairs first to first + count
  int64_t packed;                // where its rows begin among the packed ones, a multiple of 16
};

template <class Tile>
struct MoeFfn : Product<Tile> {
  using T = Tile;
  using P = Product<Tile>;
  using A = typename Tile::A;
  static constexpr int64_t most_segments = 64;

  struct Call {
    const es_expert* experts;
    const uint16_t* x;     // [tokens, hidden]
    const int32_t* token;  // [pairs]
    int64_t hidden, intermediate;
    float* each;  // [pairs, hidden]
  };

  // Packed rows: what gate takes, what up takes, the same unless an expert mixes formats, and what down takes.
  struct Rows { A *gate, *up, *down; };

  static bool run(const Call& call, int64_t n_experts, const int64_t* begin) {
    earthshine::Exclusive lock;
    const int64_t inputs = up_to(call.hidden, tile_cols), inner = up_to(call.intermediate, tile_cols);
    const int64_t rows = at_most(up_to(begin[n_experts] - begin[0], 16) + 16 * at_most(n_experts, most_segments),
                                 many_rows + 16 * most_segments);
    const int64_t for_up = one_order(call.experts, n_experts) ? 0 : rows * inputs;
    const int64_t values = rows * (inputs + inner) + for_up;
    A* packed = static_cast<A*>(earthshine::workspace(values * static_cast<int64_t>(sizeof(A))));
    if (packed == nullptr) return false;
    const Rows places = {packed, packed + for_up, packed + for_up + rows * inputs};
    Segment segments[most_segments];
    int64_t expert = 0, next = begin[0];
    while (expert < n_experts) {
      int64_t n = 0, used = 0;
      for (; expert < n_experts && n < most_segments && used < many_rows;) {
        const int64_t count = at_most(begin[expert + 1] - next, many_rows - used);
        if (count > 0) {
          segments[n++] = {expert, next, count, used};
          used += up_to(count, 16);
          next += count;
        }
        if (next == begin[expert + 1]) ++expert;
      }
      group(call, segments, n, places, inputs, inner);
    }
    return true;
  }

  // total[token[p]] += weight[p] * each[p], pairs in order; columns are divided among threads.
  static void sum(const float* each, const int32_t* token, const float* weight, int64_t pairs, int64_t hidden,
                  float* total) {
    constexpr int64_t width = 256;
    earthshine::parallel((hidden + width - 1) / width, [&](int64_t index) {
      T::begin();
      const int64_t from = index * width, n = at_most(hidden - from, width);
      for (int64_t p = 0; p < pairs; ++p) {
        const float* source = each + p * hidden + from;
        float* to = total + token[p] * hidden + from;
        const typename T::F share = T::broadcast(weight[p]);
        int64_t i = 0;
        for (; i + 16 <= n; i += 16) T::store(to + i, T::fma(share, T::load(source + i), T::load(to + i)));
        for (; i < n; ++i) to[i] = __builtin_fmaf(weight[p], source[i], to[i]);
      }
      T::end();
    });
  }

 private:
  // Whether gate and up of every expert take packed rows in the same order.
  static bool one_order(const es_expert* experts, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (!P::same_order(experts[i].gate.format, experts[i].up.format)) return false;
    }
    return true;
  }

  // A long strip of a few rows' work is a long piece of memory in order: INT4 comes a quarter faster than by 64 rows.
  static constexpr int64_t longest = 256;
  static int64_t width_for(int64_t rows, int64_t all_rows) {
    return rows <= few_rows && all_rows >= 32 * longest ? longest : strip_width(rows);
  }

  static void group(const Call& call, const Segment* segments, int64_t n, const Rows& rows, int64_t inputs,
                    int64_t inner) {
    int64_t most = 0, all = 0;
    for (int64_t s = 0; s < n; ++s) {
      most = segments[s].count > most ? segments[s].count : most;
      all += segments[s].count;
    }
    earthshine::parallel(all <= 16 ? 1 : n, [&](int64_t index) {
      for (int64_t s = all <= 16 ? 0 : index; s < (all <= 16 ? n : index + 1); ++s) {
        const es_expert& expert = call.experts[segments[s].expert];
        for (int64_t r = 0; r < segments[s].count; ++r) {
          const uint16_t* row = call.x + call.token[segments[s].first + r] * call.hidden;
          const int64_t to = (segments[s].packed + r) * inputs;
          P::pack(expert.gate.format, row, call.hidden, rows.gate + to, inputs);
          if (rows.up != rows.gate) P::pack(expert.up.format, row, call.hidden, rows.up + to, inputs);
        }
      }
    });
    const int64_t width = width_for(most, n * call.intermediate);
    const int64_t inner_strips = (inner + width - 1) / width, strips = (call.hidden + width - 1) / width;
    earthshine::parallel(n * inner_strips, [&](int64_t index) {
      const Segment& segment = segments[index / inner_strips];
      T::begin();
      gate_and_up(call, segment, index % inner_strips * width, width, rows, inputs, inner);
      T::end();
    });
    earthshine::parallel(n * strips, [&](int64_t index) {
      const Segment& segment = segments[index / strips];
      T::begin();
      down(call, segment, index % strips * width, width, rows.down + segment.packed * inner);
      T::end();
    });
  }

  static void gate_and_up(const Call& call, const Segment& segment, int64_t row, int64_t width, const Rows& rows,
                          int64_t inputs, int64_t inner) {
    const es_expert& expert = call.experts[segment.expert];
    float* gate = sums_of_thread.value;
    float* up = more_sums_of_thread.value;
    const int64_t from = segment.packed * inputs;
    const auto product = [&](const es_matrix& matrix, const A* a, float* sums) {
      P::strip(stored(matrix), panel_of<Tile>(matrix.format), row, width, a + from, segment.count, sums);
    };
    product(expert.gate, rows.gate, gate);
    product(expert.up, rows.up, up);
    A* to = rows.down + segment.packed * inner + row;
    const int64_t n = at_most(inner - row, width);  // a multiple of 32; beyond the matrix both are zero
    for (int64_t r = 0; r < segment.count; ++r) {
      for (int64_t i = 0; i < n; i += 16) {
        float* at = gate + r * width + i;
        T::store(at, T::mul(Math<T>::silu(T::load(at)), T::load(up + r * width + i)));
      }
      uint16_t rounded[longest];
      P::round_row(gate + r * width, n, rounded);
      P::pack(expert.down.format, rounded, n, to + r * inner, n);
    }
  }

  static void down(const Call& call, const Segment& segment, int64_t row, int64_t width, const A* rows) {
    const es_matrix& matrix = call.experts[segment.expert].down;
    float* sums = sums_of_thread.value;
    P::strip(stored(matrix), panel_of<Tile>(matrix.format), row, width, rows, segment.count, sums);
    const int64_t n = at_most(call.hidden - row, width);
    for (int64_t r = 0; r < segment.count; ++r) {
      std::memcpy(call.each + (segment.first + r) * call.hidden + row, sums + r * width, static_cast<size_t>(n) * 4);
    }
  }
};

}  // namespace
