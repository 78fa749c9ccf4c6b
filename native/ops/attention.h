// Causal attention over the rows of pages, prefill and decode alike: absorbed MLA (arXiv 2405.04434, section 2.1) and
// grouped-query attention (arXiv 2305.13245).
//
// Rows go through the spans of their context in ascending order, and each span's softmax joins what came before by one
// formula. Where rows are many, a task does that for a block of them; where they are few, tasks are spans, whose
// results are kept and joined afterwards by the same formula in the same order. So both give the same bits, and so do
// any division of a context into calls, any batch, and any number of threads.
#pragma once

#include "../carver.h"
#include "span.h"

namespace {

constexpr int64_t most_kept = 32 * 1024 * 1024;  // bytes of spans' results kept at once

template <class Tile>
struct PagedAttention : Tile {
  using T = Tile;
  using A = typename Tile::A;
  using F = typename Tile::F;
  using I = typename Tile::I;
  using S = Span<Tile>;

  // Softmax and mixture of some rows, over one span or over several.
  struct State {
    Softmax* soft;
    float* mixed;  // [rows up to sixteens][dims]: 32 at a time, the even ones of them first
  };

  struct Plan {
    AttentionCall call;
    int64_t dims;  // value_dim up to strips
    int64_t rows;  // of the largest block, up to sixteens
    int64_t n_blocks, n_slots;
    int64_t window;  // spans kept at once; 0 where tasks are blocks
    RowBlock* blocks;
    int32_t* busy;        // [n_slots]
    Scratch<A>* scratch;  // [n_slots]
    State* sums;          // [n_blocks], with a window
    State* kept;          // [n_blocks][window]
  };

  static bool run(const es_attention& shape, const es_sequence* sequences, int64_t n_sequences, const uint16_t* q,
                  const uint16_t* pool, uint16_t* out) {
    earthshine::Exclusive lock;
    Plan plan = {};
    const int64_t values_end = shape.value_offset + shape.value_dim;
    plan.call = {&shape,
                 reinterpret_cast<const uint8_t*>(q),
                 reinterpret_cast<const uint8_t*>(pool),
                 out,
                 shape.key_dim < values_end ? values_end : shape.key_dim,
                 shape.n_heads / shape.n_kv_heads};
    plan.dims = up_to(shape.value_dim, strip_dims);
    const int64_t longest = measure(sequences, n_sequences, &plan);
    if (plan.n_blocks == 0) return true;
    Carver count = {nullptr};
    carve(&plan, &count);
    uint8_t* memory = static_cast<uint8_t*>(earthshine::workspace(count.used));
    if (memory == nullptr) return false;
    Carver carver = {memory};
    carve(&plan, &carver);
    list_blocks(sequences, n_sequences, plan);
    if (plan.window == 0) by_block(plan);
    else by_span(plan, (longest + span_keys - 1) / span_keys);
    return true;
  }

 private:
  // How many blocks there are, and how they are computed; returns the length of the longest context.
  static int64_t measure(const es_sequence* sequences, int64_t n_sequences, Plan* plan) {
    int64_t longest = 0;
    for (int64_t i = 0; i < n_sequences; ++i) {
      const int64_t rows = sequences[i].rows * plan->call.group, keys = sequences[i].start + sequences[i].rows;
      if (rows == 0) continue;
      plan->n_blocks += (rows + most_rows - 1) / most_rows * plan->call.shape->n_kv_heads;
      plan->rows = rows < plan->rows ? plan->rows : up_to(at_most(rows, most_rows), 16);
      longest = keys > longest ? keys : longest;
    }
    const int64_t spans = (longest + span_keys - 1) / span_keys;
    const int64_t kept = plan->rows * plan->dims * static_cast<int64_t>(sizeof(float));  // of a block over a span
    plan->window = spans < 2 || plan->n_blocks == 0 ? 0 : at_most(most_kept / kept / plan->n_blocks, spans);
    const int64_t tasks = plan->n_blocks * (plan->window == 0 ? 1 : plan->window);
    plan->n_slots = at_most(earthshine::n_threads(), tasks);
    return longest;
  }

  static void carve(Plan* plan, Carver* from) {
    const int64_t key_dim = plan->call.shape->key_dim, tiles = up_to(key_dim, tile_cols) / tile_cols;
    const int64_t panels = plan->rows / 16;
    plan->blocks = from->take<RowBlock>(plan->n_blocks);
    plan->busy = from->take<int32_t>(plan->n_slots);
    plan->scratch = from->take<Scratch<A>>(plan->n_slots);
    plan->sums = from->take<State>(plan->window == 0 ? 0 : plan->n_blocks);
    plan->kept = from->take<State>(plan->n_blocks * plan->window);
    const bool real = from->base != nullptr;
    if (real) std::memset(plan->busy, 0, static_cast<size_t>(plan->n_slots) * sizeof(int32_t));
    for (int64_t slot = 0; slot < plan->n_slots; ++slot) {
      const Scratch<A> mine = {from->take<uint32_t>(panels * tiles * tile_words),
                               from->take<uint8_t>(16 * key_dim * 2),
                               from->take<float>(span_keys * plan->rows),
                               from->take<A>(plan->rows * span_keys),
                               from->take<A>(block_keys * tiles * tile_cols),
                               from->take<float>(plan->window == 0 ? plan->rows * plan->dims : 0),
                               from->take<const uint8_t*>(span_keys)};
      if (real) plan->scratch[slot] = mine;
    }
    for (int64_t i = 0; plan->window > 0 && i < plan->n_blocks * (plan->window + 1); ++i) {
      const State state = {from->take<Softmax>(1), from->take<float>(plan->rows * plan->dims)};
      if (real) (i < plan->n_blocks ? plan->sums[i] : plan->kept[i - plan->n_blocks]) = state;
    }
  }

  // The longest context of a sequence comes last, and a task that is long should begin early: blocks in reverse.
  static void list_blocks(const es_sequence* sequences, int64_t n_sequences, const Plan& plan) {
    int64_t left = plan.n_blocks;
    for (int64_t i = 0; i < n_sequences; ++i) {
      const es_sequence& sequence = sequences[i];
      const int64_t group = plan.call.group, rows = sequence.rows * group;
      for (int64_t offset = 0; offset < rows; offset += most_rows) {
        const int64_t n = at_most(rows - offset, most_rows), n_keys = sequence.start + (offset + n - 1) / group + 1;
        for (int64_t head = 0; head < plan.call.shape->n_kv_heads; ++head) {
          plan.blocks[--left] = {&sequence, head, offset, n, n_keys};
        }
      }
    }
  }

  // A place that no other task uses; there are as many as threads.
  static int64_t claim(const Plan& plan) {
    for (int64_t slot = 0;; slot = slot + 1 == plan.n_slots ? 0 : slot + 1) {
      if (__atomic_exchange_n(plan.busy + slot, 1, __ATOMIC_ACQUIRE) == 0) return slot;
    }
  }

  static void free(const Plan& plan, int64_t slot) { __atomic_store_n(plan.busy + slot, 0, __ATOMIC_RELEASE); }

  static void by_block(const Plan& plan) {
    earthshine::parallel(plan.n_blocks, [&](int64_t index) {
      T::begin();
      const int64_t slot = claim(plan);
      const Scratch<A>& s = plan.scratch[slot];
      const RowBlock& rows = plan.blocks[index];
      Softmax sums;
      const State all = {&sums, s.mixed};
      clear(all, plan.dims, 0, rows.n);
      S::decode_queries(plan.call, rows, s);
      for (int64_t span = 0; span * span_keys < rows.n_keys; ++span) {
        Softmax soft;
        const int64_t n_keys = S::look(plan.call, rows, span, s, &soft);
        weigh(all.soft, &soft, 0, rows.n);
        for (int64_t dim = 0; dim < plan.dims; dim += strip_dims) {
          alignas(64) float strip[most_rows * strip_dims];
          S::mix(plan.call, rows, dim, n_keys, s, strip, strip_dims);
          for (int64_t row = 0; row < rows.n; ++row) {
            join(soft, row, strip + row * strip_dims, strip_dims, all.mixed + row * plan.dims + dim);
          }
        }
      }
      finish(plan, rows, all, 0, rows.n);
      free(plan, slot);
      T::end();
    });
  }

  static void by_span(const Plan& plan, int64_t spans) {
    for (int64_t first = 0; first < spans; first += plan.window) {
      earthshine::parallel(plan.n_blocks * plan.window, [&](int64_t index) {
        const RowBlock& rows = plan.blocks[index % plan.n_blocks];
        const int64_t place = index / plan.n_blocks;
        if ((first + place) * span_keys >= rows.n_keys) return;
        T::begin();
        const int64_t slot = claim(plan);
        const Scratch<A>& s = plan.scratch[slot];
        const State& to = plan.kept[index % plan.n_blocks * plan.window + place];
        S::decode_queries(plan.call, rows, s);
        const int64_t n_keys = S::look(plan.call, rows, first + place, s, to.soft);
        for (int64_t dim = 0; dim < plan.dims; dim += strip_dims) {
          S::mix(plan.call, rows, dim, n_keys, s, to.mixed + dim, plan.dims);
        }
        free(plan, slot);
        T::end();
      });
      earthshine::parallel(plan.n_blocks * (plan.rows / 16), [&](int64_t index) {
        T::begin();
        const int64_t block = index / (plan.rows / 16), row = index % (plan.rows / 16) * 16;
        gather(plan, block, row, first);
        T::end();
      });
    }
  }

  // Joins the spans kept for 16 rows of a block; after the last of its context it writes the result.
  static void gather(const Plan& plan, int64_t block, int64_t row, int64_t first) {
    const RowBlock& rows = plan.blocks[block];
    const int64_t end = at_most(row + 16, rows.n);
    if (row >= rows.n || first * span_keys >= rows.n_keys) return;
    const State& all = plan.sums[block];
    if (first == 0) clear(all, plan.dims, row, end);
    for (int64_t place = 0; place < plan.window && (first + place) * span_keys < rows.n_keys; ++place) {
      const State& one = plan.kept[block * plan.window + place];
      weigh(all.soft, one.soft, row, end);
      for (int64_t r = row; r < end; ++r) {
        join(*one.soft, r, one.mixed + r * plan.dims, plan.dims, all.mixed + r * plan.dims);
      }
    }
    if ((first + plan.window) * span_keys >= rows.n_keys) finish(plan, rows, all, row, end);
  }

  static void clear(const State& state, int64_t dims, int64_t row, int64_t end) {
    for (int64_t r = row; r < up_to(end, 16); r += 16) {
      T::store(state.soft->most + r, T::broadcast(-__builtin_inff()));
      T::store(state.soft->sum + r, T::zero());
    }
    std::memset(state.mixed + row * dims, 0, static_cast<size_t>((end - row) * dims) * sizeof(float));
  }

  // Joins the softmax of a span to that of the spans before, and leaves the factors of both mixtures in the span's:
  // of what came before in `most`, of the span in `sum`. Every row sees a key of the first span, so the greatest is
  // finite; a later span of which a row sees nothing has the factor 0.
  static void weigh(Softmax* all, Softmax* one, int64_t row, int64_t end) {
    for (int64_t r = row; r < end; r += 16) {
      const F before = T::load(all->most + r), here = T::load(one->most + r), most = T::max(before, here);
      const F old = Math<T>::exp(T::sub(before, most)), now = Math<T>::exp(T::sub(here, most));
      T::store(all->sum + r, T::fma(T::load(one->sum + r), now, T::mul(T::load(all->sum + r), old)));
      T::store(all->most + r, most);
      T::store(one->most + r, old);
      T::store(one->sum + r, now);
    }
  }

  // to[dims] = to * old + from * now.
  static void join(const Softmax& factors, int64_t row, const float* from, int64_t dims, float* to) {
    if (factors.most[row] == 1.0f && factors.sum[row] == 0.0f) return;
    const F old = T::broadcast(factors.most[row]), now = T::broadcast(factors.sum[row]);
    for (int64_t i = 0; i < dims; i += 16) {
      T::store(to + i, T::fma(T::load(from + i), now, T::mul(T::load(to + i), old)));
    }
  }

  // The mixtures over their sums, in bf16. Zeros are positive: whether an underflow was negative may depend on keys
  // that weigh nothing.
  static void finish(const Plan& plan, const RowBlock& rows, const State& all, int64_t row, int64_t end) {
    const int64_t dims = plan.call.shape->value_dim;
    for (int64_t r = row; r < end; ++r) {
      uint16_t* out = plan.call.out + row_of(plan.call, rows, r) * dims;
      const F share = T::div(T::broadcast(1.0f), T::broadcast(all.soft->sum[r]));
      for (int64_t dim = 0; dim < dims; dim += strip_dims) {
        const float* from = all.mixed + r * plan.dims + dim;
        const F even = T::add(T::mul(T::load(from), share), T::zero());
        const F odd = T::add(T::mul(T::load(from + 16), share), T::zero());
        alignas(64) uint32_t words[16];
        T::store(words, T::round_pair(even, odd));
        std::memcpy(out + dim, words, static_cast<size_t>(at_most(dims - dim, strip_dims)) * 2);
      }
    }
  }
};

}  // namespace
