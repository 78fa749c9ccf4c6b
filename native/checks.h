// What the arguments of the C interface must be, for the files that serve it.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "earthshine.h"

namespace {

// 2^48 elements are beyond any memory, and keep every byte count below 2^63, those of padded workspaces included.
constexpr int64_t most = int64_t{1} << 48;

// Values of a kv head: 576 in K2.6. Workspaces are sized by it.
constexpr int64_t most_width = 16384;

inline bool fits(int64_t rows, int64_t cols) { return rows >= 0 && cols >= 0 && (rows == 0 || cols <= most / rows); }

inline int32_t check(const es_matrix* matrix) {
  if (matrix == nullptr) return ES_NULL_POINTER;
  if (!fits(matrix->rows, matrix->cols)) return ES_BAD_SHAPE;
  if (matrix->format < ES_BF16 || matrix->format > ES_INT8_GROUP128) return ES_BAD_SHAPE;
  if (matrix->format == ES_INT4_GROUP32 && matrix->cols % 32 != 0) return ES_BAD_SHAPE;
  const bool empty = matrix->rows == 0 || matrix->cols == 0;
  const bool missing = matrix->codes == nullptr || (matrix->format != ES_BF16 && matrix->scales == nullptr);
  return missing && !empty ? ES_NULL_POINTER : ES_OK;
}

inline bool is(const es_matrix& matrix, int64_t rows, int64_t cols) {
  return matrix.rows == rows && matrix.cols == cols;
}

inline int32_t check(const es_expert& expert, int64_t hidden, int64_t intermediate) {
  for (const es_matrix* matrix : {&expert.gate, &expert.up, &expert.down}) {
    if (const int32_t status = check(matrix)) return status;
  }
  const bool right = is(expert.gate, intermediate, hidden) && is(expert.up, intermediate, hidden) &&
                     is(expert.down, hidden, intermediate);
  return right ? ES_OK : ES_BAD_SHAPE;
}

inline bool within(const int32_t* values, int64_t n, int64_t limit) {
  for (int64_t i = 0; i < n; ++i) {
    if (values[i] < 0 || values[i] >= limit) return false;
  }
  return true;
}

// Rows of `cols` elements, `stride` apart. Rows that are written may not overlap; those that are read may be one row.
inline bool strided(int64_t rows, int64_t cols, int64_t stride, bool written) {
  return cols >= 0 && cols <= most && fits(rows, stride) && (rows < 2 || !written || stride >= cols);
}

// The same of rows [n_heads][dim] whose heads have a stride of their own.
inline bool by_head(int64_t rows, int64_t n_heads, int64_t dim, int64_t row, int64_t head, bool written) {
  return dim >= 0 && fits(rows, dim) && fits(n_heads, dim) && fits(rows, n_heads * dim) &&
         strided(rows, dim, row, written) && strided(n_heads, dim, head, written);
}

inline int32_t check(const es_attention& shape, int64_t tokens) {
  const int64_t n_heads = shape.n_heads, n_kv_heads = shape.n_kv_heads;
  if (n_heads < 1 || n_kv_heads < 1 || n_heads % n_kv_heads != 0 || !fits(tokens, n_heads)) return ES_BAD_SHAPE;
  for (const int64_t size : {shape.key_dim, shape.value_dim}) {
    if (size < 1 || size > most_width || !fits(tokens * n_heads, size)) return ES_BAD_SHAPE;
  }
  if (shape.value_offset < 0 || shape.value_offset > most_width - shape.value_dim) return ES_BAD_SHAPE;
  if (shape.page_tokens < 1 || !fits(shape.n_pool_pages, shape.page_tokens)) return ES_BAD_SHAPE;
  const int64_t rows = shape.n_pool_pages * shape.page_tokens;
  if (!fits(rows, n_kv_heads) || !fits(rows * n_kv_heads, most_width)) return ES_BAD_SHAPE;
  return shape.scale > 0.0f && shape.scale < 1e30f ? ES_OK : ES_BAD_SHAPE;
}

// `end` is where the rows of the sequence before end.
inline int32_t check(const es_sequence& sequence, const es_attention& shape, int64_t tokens, int64_t end) {
  if (sequence.first < end || sequence.rows < 0 || sequence.rows > tokens || sequence.first > tokens - sequence.rows ||
      sequence.start < 0 || sequence.start > most || !fits(sequence.n_pages, shape.page_tokens)) {
    return ES_BAD_INDEX;
  }
  if (sequence.n_pages * shape.page_tokens < sequence.start + sequence.rows) return ES_BAD_INDEX;
  if (sequence.n_pages > 0 && sequence.pages == nullptr) return ES_NULL_POINTER;
  return within(sequence.pages, sequence.n_pages, shape.n_pool_pages) ? ES_OK : ES_BAD_INDEX;
}

// Sequences in the order of their rows. `rows`: how many they have together.
inline int32_t check(const es_sequence* sequences, int64_t n, const es_attention& shape, int64_t tokens,
                     int64_t* rows) {
  int64_t end = 0;
  *rows = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (const int32_t status = check(sequences[i], shape, tokens, end)) return status;
    end = sequences[i].first + sequences[i].rows;
    *rows += sequences[i].rows;
  }
  return ES_OK;
}

}  // namespace
