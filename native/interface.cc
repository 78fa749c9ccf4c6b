// The C interface: checks arguments and passes them on.
#include "earthshine.h"

#include <cmath>
#include <initializer_list>

#include "checks.h"
#include "dispatch.h"
#include "pool.h"

namespace {

int32_t check(const es_kda_shape& shape, int64_t tokens) {
  const int64_t heads = shape.n_heads, dim = shape.head_dim;
  const bool sizes = heads > 0 && dim > 0 && dim % 16 == 0 && dim <= earthshine::most_kda_dim && shape.kernel > 0 &&
                     shape.kernel <= earthshine::most_kda_kernel;
  if (!sizes || !fits(heads, 3 * dim * dim) || !fits(tokens, heads * 3 * dim)) return ES_BAD_SHAPE;
  return shape.is_bounded == 0 || (shape.lower_bound < 0.0f && shape.lower_bound > -1e30f) ? ES_OK : ES_BAD_SHAPE;
}

// `before` sequences come earlier, and the last of them ends at row `end`.
int32_t check(const es_recurrent* sequences, int64_t before, int64_t tokens, int64_t end, bool has_tail) {
  const es_recurrent& one = sequences[before];
  if (one.first < end || one.rows < 0 || one.rows > tokens || one.first > tokens - one.rows) return ES_BAD_INDEX;
  if (one.state == nullptr || (has_tail && one.tail == nullptr)) return ES_NULL_POINTER;
  for (int64_t i = 0; i < before; ++i) {
    if (sequences[i].state == one.state || (has_tail && sequences[i].tail == one.tail)) return ES_BAD_INDEX;
  }
  return ES_OK;
}

int32_t done(bool succeeded) { return succeeded ? ES_OK : ES_NO_MEMORY; }

}  // namespace

int32_t es_abi_version(void) { return ES_ABI_VERSION; }

const char* es_status_text(int32_t status) {
  switch (status) {
    case ES_OK: return "The call succeeded.";
    case ES_NULL_POINTER: return "A pointer is null although the shape is not empty.";
    case ES_BAD_SHAPE: return "A size is negative, too large, or does not fit the format or the other sizes.";
    case ES_UNSUPPORTED: return "This build has no such instruction set, or the processor lacks it.";
    case ES_NO_MEMORY: return "There is not enough memory for the kernel's workspace.";
    case ES_BAD_INDEX: return "A token, page or boundary points outside its array, or two sequences share a state.";
    default: return "This status is not one of the library's.";
  }
}

const char* es_instruction_set_at(int32_t index) {
  const earthshine::Instance* instance = index < 0 ? nullptr : earthshine::runnable(index);
  return instance == nullptr ? nullptr : instance->name;
}

const char* es_instruction_set(void) { return earthshine::serving().name; }

int32_t es_force_instruction_set(const char* name) {
  if (name == nullptr) return ES_NULL_POINTER;
  return earthshine::force(name) ? ES_OK : ES_UNSUPPORTED;
}

int32_t es_narrow(const char* name) {
  if (name == nullptr) return ES_NULL_POINTER;
  return earthshine::narrow(name) ? ES_OK : ES_UNSUPPORTED;
}

const char* es_refusal(const char* name) { return name == nullptr ? nullptr : earthshine::refusal(name); }

int32_t es_set_threads(int32_t n_threads) {
  if (n_threads < 1 || n_threads > earthshine::max_threads) return ES_BAD_SHAPE;
  earthshine::set_threads(n_threads);
  return ES_OK;
}

int32_t es_threads(void) { return earthshine::n_threads(); }

int32_t es_decode(const es_matrix* matrix, uint16_t* out) {
  const int32_t status = check(matrix);
  if (status != ES_OK || matrix->rows == 0 || matrix->cols == 0) return status;
  if (out == nullptr) return ES_NULL_POINTER;
  earthshine::serving().decode(*matrix, out);
  return ES_OK;
}

int32_t es_linear(const es_matrix* matrix, const uint16_t* x, int64_t m, void* y, int32_t to_fp32) {
  const int32_t status = check(matrix);
  if (status != ES_OK) return status;
  if (matrix->cols == 0 || !fits(m, matrix->cols) || !fits(m, matrix->rows)) return ES_BAD_SHAPE;
  if (m == 0 || matrix->rows == 0) return ES_OK;
  if (x == nullptr || y == nullptr) return ES_NULL_POINTER;
  return done(earthshine::serving().linear(*matrix, x, m, y, to_fp32 != 0));
}

int32_t es_linear_by_head(const es_heads* shape, const uint8_t* matrices, const uint16_t* x, int64_t m, uint16_t* y) {
  if (shape == nullptr) return ES_NULL_POINTER;
  const es_heads& s = *shape;
  if (s.n_heads < 0 || s.rows < 0 || s.cols < 1 || m < 0 || !fits(s.rows, s.cols) || !fits(m, s.n_heads) ||
      !fits(s.n_heads, s.head_bytes) || !fits(m, s.x_row) || !fits(s.n_heads, s.x_head) || s.x_head < s.cols ||
      !fits(m, s.y_row) || !fits(s.n_heads, s.y_head) || s.y_head < s.rows) {
    return ES_BAD_SHAPE;
  }
  if (m == 0 || s.n_heads == 0 || s.rows == 0) return ES_OK;
  if (matrices == nullptr || x == nullptr || y == nullptr) return ES_NULL_POINTER;
  return done(earthshine::serving().linear_by_head(s, matrices, x, m, y));
}

int32_t es_moe_ffn(const es_expert* experts, int64_t n_experts, const int64_t* begin, const uint16_t* x, int64_t tokens,
                   const int32_t* token, int64_t hidden, int64_t intermediate, float* each) {
  if (n_experts < 0 || hidden < 1 || intermediate < 1 || !fits(tokens, hidden)) return ES_BAD_SHAPE;
  if (n_experts == 0) return ES_OK;
  if (experts == nullptr || begin == nullptr) return ES_NULL_POINTER;
  for (int64_t i = 0; i < n_experts; ++i) {
    if (begin[i] < 0 || begin[i + 1] < begin[i]) return ES_BAD_INDEX;
    if (const int32_t status = check(experts[i], hidden, intermediate)) return status;
  }
  if (!fits(begin[n_experts], hidden)) return ES_BAD_SHAPE;
  if (begin[n_experts] == begin[0]) return ES_OK;
  if (x == nullptr || token == nullptr || each == nullptr) return ES_NULL_POINTER;
  if (!within(token + begin[0], begin[n_experts] - begin[0], tokens)) return ES_BAD_INDEX;
  return done(earthshine::serving().moe_ffn(experts, n_experts, begin, x, token, hidden, intermediate, each));
}

int32_t es_moe_sum(const float* each, const int32_t* token, const float* weight, int64_t pairs, int64_t tokens,
                   int64_t hidden, float* total) {
  if (!fits(pairs, hidden) || !fits(tokens, hidden)) return ES_BAD_SHAPE;
  if (pairs == 0 || hidden == 0) return ES_OK;
  if (each == nullptr || token == nullptr || weight == nullptr || total == nullptr) return ES_NULL_POINTER;
  if (!within(token, pairs, tokens)) return ES_BAD_INDEX;
  earthshine::serving().moe_sum(each, token, weight, pairs, hidden, total);
  return ES_OK;
}

int32_t es_rms_norm(void* x, int32_t x_is_fp32, int64_t x_row, int64_t x_head, const uint16_t* added, int64_t added_row,
                    const uint16_t* weight, float eps, int64_t rows, int64_t n_heads, int64_t dim, uint16_t* out,
                    int64_t out_row, int64_t out_head) {
  const bool adds = added != nullptr;
  if (!by_head(rows, n_heads, dim, x_row, x_head, adds) || !by_head(rows, n_heads, dim, out_row, out_head, true)) {
    return ES_BAD_SHAPE;
  }
  if (adds && (n_heads > 1 || !strided(rows, dim, added_row, false))) return ES_BAD_SHAPE;
  if (rows == 0 || n_heads == 0 || dim == 0) return ES_OK;
  if (x == nullptr || weight == nullptr || out == nullptr) return ES_NULL_POINTER;
  earthshine::serving().rms_norm(
      {x, x_is_fp32 != 0, x_row, x_head, added, added_row, weight, eps, rows, n_heads, dim, out, out_row, out_head});
  return ES_OK;
}

int32_t es_rotate(const uint16_t* x, int64_t x_row, int64_t x_head, const float* cos, const float* sin,
                  int32_t interleaved, int64_t rows, int64_t n_heads, int64_t dim, uint16_t* out, int64_t out_row,
                  int64_t out_head) {
  if (dim % 2 != 0 || !by_head(rows, n_heads, dim, x_row, x_head, false) ||
      !by_head(rows, n_heads, dim, out_row, out_head, true)) {
    return ES_BAD_SHAPE;
  }
  if (rows == 0 || n_heads == 0 || dim == 0) return ES_OK;
  if (x == nullptr || cos == nullptr || sin == nullptr || out == nullptr) return ES_NULL_POINTER;
  earthshine::serving().rotate(
      {x, x_row, x_head, cos, sin, interleaved != 0, rows, n_heads, dim, out, out_row, out_head});
  return ES_OK;
}

int32_t es_swiglu(const void* gate, int64_t gate_row, const void* up, int64_t up_row, int32_t is_fp32, int64_t rows,
                  int64_t cols, uint16_t* out) {
  if (!fits(rows, cols) || !strided(rows, cols, gate_row, false) || !strided(rows, cols, up_row, false)) {
    return ES_BAD_SHAPE;
  }
  if (rows == 0 || cols == 0) return ES_OK;
  if (gate == nullptr || up == nullptr || out == nullptr) return ES_NULL_POINTER;
  earthshine::serving().swiglu({gate, up, is_fp32 != 0, gate_row, up_row, rows, cols, out});
  return ES_OK;
}

int32_t es_route(const float* logits, int32_t scoring, const float* bias, int64_t tokens, int64_t n_experts,
                 int64_t top_k, int64_t n_groups, int64_t groups_kept, int32_t normalize, float scale, int64_t* chosen,
                 float* weight) {
  if (scoring != ES_SIGMOID && scoring != ES_SOFTMAX) return ES_BAD_SHAPE;
  if (n_experts < 1 || n_experts > earthshine::most_experts || !fits(tokens, n_experts)) return ES_BAD_SHAPE;
  if (top_k < 1 || top_k > n_experts || n_groups < 1 || n_groups > n_experts) return ES_BAD_SHAPE;
  if (n_groups > 1 && (n_experts % n_groups != 0 || n_experts / n_groups < 2)) return ES_BAD_SHAPE;
  if (groups_kept < 1 || groups_kept > n_groups) return ES_BAD_SHAPE;
  if (tokens == 0) return ES_OK;
  if (logits == nullptr || chosen == nullptr || weight == nullptr) return ES_NULL_POINTER;
  earthshine::serving().route({logits, scoring == ES_SOFTMAX, bias, tokens, n_experts, top_k, n_groups, groups_kept,
                               normalize != 0, scale, chosen, weight});
  return ES_OK;
}

int32_t es_paged_attention(const es_attention* shape, const es_sequence* sequences, int64_t n_sequences,
                           const uint16_t* q, int64_t tokens, const uint16_t* pool, uint16_t* out) {
  if (shape == nullptr) return ES_NULL_POINTER;
  if (n_sequences < 0) return ES_BAD_SHAPE;
  if (const int32_t status = check(*shape, tokens)) return status;
  if (n_sequences == 0) return ES_OK;
  if (sequences == nullptr) return ES_NULL_POINTER;
  int64_t rows;
  if (const int32_t status = check(sequences, n_sequences, *shape, tokens, &rows)) return status;
  if (rows > 0 && (q == nullptr || pool == nullptr || out == nullptr)) return ES_NULL_POINTER;
  return done(earthshine::serving().paged_attention(*shape, sequences, n_sequences, q, pool, out));
}

int32_t es_gated_rms_norm(const float* x, const uint16_t* gate, int64_t gate_row, const float* weight, float eps,
                          int64_t rows, int64_t dim, uint16_t* out) {
  if (!fits(rows, dim) || !strided(rows, dim, gate_row, false)) return ES_BAD_SHAPE;
  if (rows == 0 || dim == 0) return ES_OK;
  if (x == nullptr || gate == nullptr || weight == nullptr || out == nullptr) return ES_NULL_POINTER;
  earthshine::serving().gated_norm({x, gate, gate_row, weight, eps, rows, dim, out});
  return ES_OK;
}

int32_t es_kda(const es_kda_shape* shape, const es_recurrent* sequences, int64_t n_sequences, const uint16_t* qkv,
               const void* gate, const void* beta, int64_t tokens, const float* conv, const float* a_log,
               const float* dt_bias, float* out) {
  if (shape == nullptr) return ES_NULL_POINTER;
  if (n_sequences < 0) return ES_BAD_SHAPE;
  if (const int32_t status = check(*shape, tokens)) return status;
  if (n_sequences == 0) return ES_OK;
  if (sequences == nullptr) return ES_NULL_POINTER;
  int64_t end = 0;
  for (int64_t i = 0; i < n_sequences; ++i) {
    if (const int32_t status = check(sequences, i, tokens, end, shape->kernel > 1)) return status;
    end = sequences[i].first + sequences[i].rows;
  }
  if (end == 0) return ES_OK;
  for (const void* part :
       {static_cast<const void*>(qkv), gate, beta, static_cast<const void*>(conv), static_cast<const void*>(a_log),
        static_cast<const void*>(dt_bias), static_cast<const void*>(out)}) {
    if (part == nullptr) return ES_NULL_POINTER;
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape->head_dim));
  earthshine::serving().kda({shape, sequences, n_sequences, qkv, gate, beta, conv, a_log, dt_bias, scale, out});
  return ES_OK;
}

int32_t es_read(const uint8_t* memory, int64_t bytes, uint64_t* out) {
  if (bytes < 0 || bytes > most) return ES_BAD_SHAPE;
  if (out == nullptr || (memory == nullptr && bytes > 0)) return ES_NULL_POINTER;
  *out = earthshine::serving().read(memory, bytes);
  return ES_OK;
}
