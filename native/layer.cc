// Parts of a layer for a few tokens: each is a list of the interface's own operations, which check their arguments.
//
// The order of operations, and where values are rounded to bf16, is that of `models` in Python, so the bits are too.
#include <cstring>

#include "carver.h"
#include "checks.h"
#include "pool.h"

namespace {

// Of one axis of a layer. The buffers here hold at most ES_LAYER_TOKENS times two axes, so their bytes stay below 2^63.
// A product of three sizes may exceed it, so operations with three check theirs.
constexpr int64_t most_size = int64_t{1} << 24;

template <class... Sizes>
bool sized(Sizes... sizes) {
  return ((sizes >= 1 && sizes <= most_size) && ...);
}

// Calls carve(Carver*) twice: to count, and to place. False where memory is short.
template <class Carve>
bool place(const Carve& carve) {
  Carver count = {nullptr};
  carve(&count);
  Carver carver = {static_cast<uint8_t*>(earthshine::workspace(count.used, earthshine::Workspace::layer))};
  if (carver.base == nullptr) return false;
  carve(&carver);
  return true;
}

int32_t check_all(std::initializer_list<const es_matrix*> matrices) {
  for (const es_matrix* matrix : matrices) {
    if (const int32_t status = check(matrix)) return status;
  }
  return ES_OK;
}

// The norm of rows [n][dim], from and to any place.
int32_t norm(const uint16_t* x, const uint16_t* weight, float eps, int64_t n, int64_t dim, uint16_t* out,
             int64_t row = 0) {
  if (row == 0) row = dim;
  return es_rms_norm(const_cast<uint16_t*>(x), 0, row, dim, nullptr, 0, weight, eps, n, 1, dim, out, row, dim);
}

int32_t check(const es_batch& batch, const es_attention& shape) {
  const int64_t n = batch.tokens;
  if (n < 0 || n > ES_LAYER_TOKENS || batch.n_sequences < 0 || batch.n_sequences > n) return ES_BAD_SHAPE;
  if (const int32_t status = check(shape, n)) return status;
  if (n > 0 && (batch.sequences == nullptr || batch.pool == nullptr)) return ES_NULL_POINTER;
  int64_t rows;
  if (const int32_t status = check(batch.sequences, batch.n_sequences, shape, n, &rows)) return status;
  return rows == n ? ES_OK : ES_BAD_INDEX;
}

// Each token's row [width] to where its position lies in the pool. The batch was checked.
void write_rows(const es_batch& batch, const uint16_t* rows, int64_t width) {
  for (int64_t i = 0; i < batch.n_sequences; ++i) {
    const es_sequence& sequence = batch.sequences[i];
    for (int64_t row = 0; row < sequence.rows; ++row) {
      const int64_t position = sequence.start + row, page = sequence.pages[position / batch.page_tokens];
      uint16_t* to = batch.pool + (page * batch.page_tokens + position % batch.page_tokens) * width;
      std::memcpy(to, rows + (sequence.first + row) * width, static_cast<size_t>(width) * 2);
    }
  }
}

// Copies [rows][n_heads][dim] from one distance of heads to another; rows follow one another.
void copy_heads(const uint16_t* from, int64_t from_head, uint16_t* to, int64_t to_head, int64_t heads, int64_t dim) {
  for (int64_t head = 0; head < heads; ++head) {
    std::memcpy(to + head * to_head, from + head * from_head, static_cast<size_t>(dim) * 2);
  }
}

float wide(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// To the nearest bf16, to the even one of two; every nan becomes 0x7fc0.
uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0u : nearest);
}

int32_t check(const es_mla& s, const es_batch& batch, es_attention* shape) {
  if (const int32_t status = check_all({&s.q_a, &s.q, &s.kv_a, &s.o})) return status;
  if (!sized(s.n_heads, s.kv_lora_rank, s.nope_dim, s.v_dim, s.o.rows) || s.rope_dim < 0 || s.rope_dim > most_size) {
    return ES_BAD_SHAPE;
  }
  const int64_t hidden = s.o.rows, rank = s.kv_lora_rank, low = s.q_a.rows;
  if (low > most_size || !is(s.o, hidden, s.n_heads * s.v_dim) || !is(s.kv_a, rank + s.rope_dim, hidden) ||
      !is(s.q, s.n_heads * (s.nope_dim + s.rope_dim), low == 0 ? hidden : low) || (low != 0 && s.q_a.cols != hidden)) {
    return ES_BAD_SHAPE;
  }
  if (s.norm == nullptr || s.kv_a_norm == nullptr || s.kv_b == nullptr || (low != 0 && s.q_a_norm == nullptr)) {
    return ES_NULL_POINTER;
  }
  *shape = {s.n_heads, 1, rank + s.rope_dim, 0, rank, batch.page_tokens, batch.n_pool_pages, s.scale};
  return check(batch, *shape);
}

int32_t check(const es_gqa& s, const es_batch& batch, es_attention* shape) {
  if (const int32_t status = check_all({&s.q, &s.k, &s.v, &s.o})) return status;
  if (!sized(s.n_heads, s.n_kv_heads, s.head_dim, s.o.rows) || s.rope_dim > s.head_dim) return ES_BAD_SHAPE;
  const int64_t hidden = s.o.rows, keys = s.n_kv_heads * s.head_dim;
  if (!is(s.o, hidden, s.n_heads * s.head_dim) || !is(s.q, s.n_heads * s.head_dim, hidden) || !is(s.k, keys, hidden) ||
      !is(s.v, keys, hidden)) {
    return ES_BAD_SHAPE;
  }
  if (s.norm == nullptr || s.q_norm == nullptr || s.k_norm == nullptr) return ES_NULL_POINTER;
  *shape = {s.n_heads,  s.n_kv_heads,      s.head_dim,         s.head_dim,
            s.head_dim, batch.page_tokens, batch.n_pool_pages, s.scale};
  return check(batch, *shape);
}

// What passes between the operations of a feed-forward layer, for n tokens.
struct Routed {
  uint16_t *normed, *sum;
  float *logits, *weight, *share, *each, *total;
  int64_t *chosen, *begin, *next;
  int32_t* token;
  es_expert* used;

  void carve(Carver* from, const es_ffn& s, int64_t n, int64_t hidden) {
    const int64_t experts = s.router.rows, pairs = experts > 0 ? n * s.top_k : 0;
    normed = from->take<uint16_t>(n * hidden), sum = from->take<uint16_t>(n * hidden);
    logits = from->take<float>(n * experts), weight = from->take<float>(pairs), share = from->take<float>(pairs);
    each = from->take<float>((pairs > n ? pairs : n) * hidden), total = from->take<float>(n * hidden);
    chosen = from->take<int64_t>(pairs), begin = from->take<int64_t>(pairs + 2), next = from->take<int64_t>(experts);
    token = from->take<int32_t>(pairs > n ? pairs : n), used = from->take<es_expert>(pairs);
  }
};

// The choices by expert, then by token: expert i of those that were chosen has the pairs begin[i] to begin[i + 1].
// Returns how many were chosen.
int64_t group(const Routed& r, const es_expert* experts, int64_t n_experts, int64_t pairs, int64_t top_k) {
  std::memset(r.next, 0, static_cast<size_t>(n_experts) * sizeof(int64_t));
  for (int64_t pair = 0; pair < pairs; ++pair) ++r.next[r.chosen[pair]];
  int64_t n_used = 0, end = 0;
  for (int64_t expert = 0; expert < n_experts; ++expert) {
    const int64_t count = r.next[expert];
    if (count == 0) continue;
    r.used[n_used] = experts[expert];
    r.begin[n_used++] = r.next[expert] = end;
    end += count;
  }
  r.begin[n_used] = end;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t at = r.next[r.chosen[pair]]++;
    r.token[at] = static_cast<int32_t>(pair / top_k);
    r.share[at] = r.weight[pair];
  }
  return n_used;
}

// sum = the routed experts' part.
int32_t routed(const es_ffn& s, const es_expert* experts, int64_t n, int64_t hidden, const Routed& r, int64_t* used) {
  const int64_t n_experts = s.router.rows, pairs = n * s.top_k;
  if (const int32_t bad = es_linear(&s.router, r.normed, n, r.logits, 1)) return bad;
  if (const int32_t bad = es_route(r.logits, s.scoring, s.bias, n, n_experts, s.top_k, s.n_groups, s.groups_kept,
                                   s.normalize, s.scale, r.chosen, r.weight)) {
    return bad;
  }
  *used = group(r, experts, n_experts, pairs, s.top_k);
  const int64_t inner = r.used[0].gate.rows;
  if (const int32_t bad = es_moe_ffn(r.used, *used, r.begin, r.normed, n, r.token, hidden, inner, r.each)) return bad;
  std::memset(r.total, 0, static_cast<size_t>(n * hidden) * sizeof(float));
  if (const int32_t bad = es_moe_sum(r.each, r.token, r.share, pairs, n, hidden, r.total)) return bad;
  for (int64_t i = 0; i < n * hidden; ++i) r.sum[i] = rounded(r.total[i]);
  return ES_OK;
}

// sum = the part of the network for all tokens, added to what is there where `adds`.
int32_t shared(const es_ffn& s, int64_t n, int64_t hidden, const Routed& r, bool adds) {
  const int64_t all[] = {0, n}, inner = s.shared.gate.rows;
  for (int64_t i = 0; i < n; ++i) r.token[i] = static_cast<int32_t>(i);
  if (const int32_t bad = es_moe_ffn(&s.shared, 1, all, r.normed, n, r.token, hidden, inner, r.each)) return bad;
  for (int64_t i = 0; i < n * hidden; ++i) {
    const uint16_t own = rounded(r.each[i]);
    r.sum[i] = adds ? rounded(wide(r.sum[i]) + wide(own)) : own;
  }
  return ES_OK;
}

}  // namespace

int32_t es_mla_layer(const es_mla* layer, const es_batch* batch, const uint16_t* x, uint16_t* out) {
  if (layer == nullptr || batch == nullptr) return ES_NULL_POINTER;
  const es_mla& s = *layer;
  es_attention shape;
  if (const int32_t bad = check(s, *batch, &shape)) return bad;
  const int64_t n = batch->tokens, hidden = s.o.rows, low = s.q_a.rows, rank = s.kv_lora_rank, heads = s.n_heads;
  const int64_t latent = rank + s.rope_dim, qk = s.nope_dim + s.rope_dim, per_head = s.nope_dim + s.v_dim;
  if (n == 0) return ES_OK;
  if (x == nullptr || out == nullptr) return ES_NULL_POINTER;
  earthshine::Exclusive lock;
  uint16_t *normed, *q_low, *q, *row, *absorbed, *mixed, *values;
  const bool fits = place([&](Carver* from) {
    normed = from->take<uint16_t>(n * hidden), q_low = from->take<uint16_t>(n * low);
    q = from->take<uint16_t>(n * heads * qk), row = from->take<uint16_t>(n * latent);
    absorbed = from->take<uint16_t>(n * heads * latent), mixed = from->take<uint16_t>(n * heads * rank);
    values = from->take<uint16_t>(n * heads * s.v_dim);
  });
  if (!fits) return ES_NO_MEMORY;
  if (const int32_t bad = norm(x, s.norm, s.eps, n, hidden, normed)) return bad;
  if (low > 0) {
    if (const int32_t bad = es_linear(&s.q_a, normed, n, q_low, 0)) return bad;
    if (const int32_t bad = norm(q_low, s.q_a_norm, s.latent_eps, n, low, q_low)) return bad;
  }
  if (const int32_t bad = es_linear(&s.q, low > 0 ? q_low : normed, n, q, 0)) return bad;
  if (const int32_t bad = es_linear(&s.kv_a, normed, n, row, 0)) return bad;
  if (const int32_t bad = norm(row, s.kv_a_norm, s.latent_eps, n, rank, row, latent)) return bad;
  if (batch->cos != nullptr) {
    if (const int32_t bad = es_rotate(row + rank, latent, s.rope_dim, batch->cos, batch->sin, 1, n, 1, s.rope_dim,
                                      row + rank, latent, s.rope_dim)) {
      return bad;
    }
    if (const int32_t bad = es_rotate(q + s.nope_dim, heads * qk, qk, batch->cos, batch->sin, 1, n, heads, s.rope_dim,
                                      absorbed + rank, heads * latent, latent)) {
      return bad;
    }
  } else {
    copy_heads(q + s.nope_dim, qk, absorbed + rank, latent, n * heads, s.rope_dim);
  }
  const uint8_t* matrices = reinterpret_cast<const uint8_t*>(s.kv_b);
  const es_heads in = {heads, rank, s.nope_dim, 1, 2 * per_head * rank, heads * qk, qk, heads * latent, latent};
  if (const int32_t bad = es_linear_by_head(&in, matrices, q, n, absorbed)) return bad;
  write_rows(*batch, row, latent);
  if (const int32_t bad = es_paged_attention(&shape, batch->sequences, batch->n_sequences, absorbed, n, batch->pool,
                                             mixed)) {
    return bad;
  }
  const es_heads back = {heads, s.v_dim, rank, 0, 2 * per_head * rank, heads * rank, rank, heads * s.v_dim, s.v_dim};
  if (const int32_t bad = es_linear_by_head(&back, matrices + 2 * s.nope_dim * rank, mixed, n, values)) return bad;
  return es_linear(&s.o, values, n, out, 0);
}

int32_t es_gqa_layer(const es_gqa* layer, const es_batch* batch, const uint16_t* x, uint16_t* out) {
  if (layer == nullptr || batch == nullptr) return ES_NULL_POINTER;
  const es_gqa& s = *layer;
  es_attention shape;
  if (const int32_t bad = check(s, *batch, &shape)) return bad;
  const int64_t n = batch->tokens, hidden = s.o.rows, heads = s.n_heads, kv_heads = s.n_kv_heads, dim = s.head_dim;
  const int64_t queries = heads * dim, keys = kv_heads * dim, width = 2 * keys;
  if (n == 0) return ES_OK;
  if (x == nullptr || out == nullptr) return ES_NULL_POINTER;
  earthshine::Exclusive lock;
  uint16_t *normed, *q, *k, *v, *row, *values;
  const bool fits = place([&](Carver* from) {
    normed = from->take<uint16_t>(n * hidden), q = from->take<uint16_t>(n * queries);
    k = from->take<uint16_t>(n * keys), v = from->take<uint16_t>(n * keys);
    row = from->take<uint16_t>(n * width), values = from->take<uint16_t>(n * queries);
  });
  if (!fits) return ES_NO_MEMORY;
  if (const int32_t bad = norm(x, s.norm, s.eps, n, hidden, normed)) return bad;
  if (const int32_t bad = es_linear(&s.q, normed, n, q, 0)) return bad;
  if (const int32_t bad = es_linear(&s.k, normed, n, k, 0)) return bad;
  if (const int32_t bad = es_linear(&s.v, normed, n, v, 0)) return bad;
  if (const int32_t bad = norm(q, s.q_norm, s.head_eps, n * heads, dim, q)) return bad;
  if (const int32_t bad = es_rms_norm(k, 0, keys, dim, nullptr, 0, s.k_norm, s.head_eps, n, kv_heads, dim, row, width,
                                      2 * dim)) {
    return bad;
  }
  const float *cos = batch->cos, *sin = batch->sin;
  if (const int32_t bad = es_rotate(q, queries, dim, cos, sin, 0, n, heads, s.rope_dim, q, queries, dim)) return bad;
  if (const int32_t bad = es_rotate(row, width, 2 * dim, cos, sin, 0, n, kv_heads, s.rope_dim, row, width, 2 * dim)) {
    return bad;
  }
  copy_heads(v, dim, row + dim, 2 * dim, n * kv_heads, dim);
  write_rows(*batch, row, width);
  if (const int32_t bad = es_paged_attention(&shape, batch->sequences, batch->n_sequences, q, n, batch->pool, values)) {
    return bad;
  }
  return es_linear(&s.o, values, n, out, 0);
}

int32_t es_ffn_layer(const es_ffn* layer, const es_expert* experts, uint16_t* x, const uint16_t* added, int64_t n,
                     int64_t* used) {
  if (layer == nullptr || used == nullptr) return ES_NULL_POINTER;
  const es_ffn& s = *layer;
  const bool routes = s.router.rows != 0, shares = s.shared.gate.rows != 0;
  const int64_t hidden = shares ? s.shared.down.rows : s.router.cols;
  if (n < 0 || n > ES_LAYER_TOKENS || !sized(hidden) || s.router.rows < 0 || (!routes && !shares)) return ES_BAD_SHAPE;
  if (routes && (!sized(s.router.rows, s.top_k) || s.top_k > s.router.rows || s.router.cols != hidden)) {
    return ES_BAD_SHAPE;
  }
  *used = 0;
  if (n == 0) return ES_OK;
  if (x == nullptr || added == nullptr || s.norm == nullptr || (routes && experts == nullptr)) return ES_NULL_POINTER;
  earthshine::Exclusive lock;
  Routed r;
  if (!place([&](Carver* from) { r.carve(from, s, n, hidden); })) return ES_NO_MEMORY;
  if (const int32_t bad = es_rms_norm(x, 0, hidden, hidden, added, hidden, s.norm, s.eps, n, 1, hidden, r.normed,
                                      hidden, hidden)) {
    return bad;
  }
  if (routes) {
    if (const int32_t bad = routed(s, experts, n, hidden, r, used)) return bad;
  }
  if (shares) {
    if (const int32_t bad = shared(s, n, hidden, r, routes)) return bad;
  }
  for (int64_t i = 0; i < n * hidden; ++i) x[i] = rounded(wide(x[i]) + wide(r.sum[i]));
  return ES_OK;
}
