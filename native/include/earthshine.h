/* Earthshine's native library: the whole interface, in C.
 *
 * Pointers state their shape as [rows, cols], row-major and without gaps unless strides are given. Stored matrices need
 * no alignment; activations and outputs need that of their type. No output may overlap an input. Every function returns
 * a status, keeps no pointer and throws nothing. Numbers are little-endian, as checkpoints store them. bf16 travels as
 * uint16_t. A row's result depends on that row alone: not on other rows of the call, and not on the number of threads.
 */
#ifndef EARTHSHINE_H
#define EARTHSHINE_H

#include <stdint.h>

#define ES_ABI_VERSION 8

#if defined(_WIN32)
#define ES_API __declspec(dllexport)
#else
#define ES_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Statuses. es_status_text() says each in a sentence. */
#define ES_OK 0
#define ES_NULL_POINTER 1 /* a pointer is null although the shape is not empty */
#define ES_BAD_SHAPE 2    /* a size is negative, too large, or not a multiple of the format's group */
#define ES_UNSUPPORTED 3  /* no such instruction set in this build, or the processor lacks it */
#define ES_NO_MEMORY 4    /* the workspace can't be had */
#define ES_BAD_INDEX 5    /* a token, page or boundary points outside its array */

/* ES_ABI_VERSION at the time of building. It changes when a signature or a meaning does. */
ES_API int32_t es_abi_version(void);

/* A sentence for a status; never null. */
ES_API const char* es_status_text(int32_t status);

/* The instruction sets of this build that this processor and operating system can run: the index-th, best first,
 * and null past the last one. "portable" is always there. */
ES_API const char* es_instruction_set_at(int32_t index);

/* The instruction set that serves calls: the best one, chosen at the first call, unless one is forced. */
ES_API const char* es_instruction_set(void);

/* Forces one of es_instruction_set_at()'s names for the whole process, or the best one again with "auto".
 * Results are the same bits whichever serves, except avx512_bf16, whose instruction adds in an order of its own.
 * ES_NULL_POINTER, ES_UNSUPPORTED. */
ES_API int32_t es_force_instruction_set(const char* name);

/* Hides every instruction set better than `name` from the whole process, as if the processor lacked it; "auto" hides
 * none. The best one left serves. It never adds: ES_UNSUPPORTED for a set that can't run here. ES_NULL_POINTER. */
ES_API int32_t es_narrow(const char* name);

/* Why an instruction set can't run here, in a sentence; empty where it can; null for a name that this build lacks. */
ES_API const char* es_refusal(const char* name);

/* The threads that share an operation, the caller's among them; 1 at first. ES_BAD_SHAPE outside 1 to 512. */
ES_API int32_t es_set_threads(int32_t n_threads);
ES_API int32_t es_threads(void);

/* A stored matrix [rows, cols], that is [out, in]. */
#define ES_BF16 0          /* codes: bf16 [rows, cols]; scales: null */
#define ES_FP8_BLOCK128 1  /* codes: e4m3fn [rows, cols]; scales: fp32 [ceil(rows / 128), ceil(cols / 128)] */
#define ES_INT4_GROUP32 2  /* codes: nibbles plus 8, lower first, [rows, cols / 2]; scales: bf16 [rows, cols / 32] */
#define ES_INT8_GROUP128 3 /* codes: int8 [rows, cols]; scales: fp32 [rows, ceil(cols / 128)] */
typedef struct {
  int32_t format;
  int64_t rows, cols;
  const void* codes;
  const void* scales;
} es_matrix;

/* out[r, c] = bf16(code * scale), the product in fp32, rounded to nearest even. */
ES_API int32_t es_decode(const es_matrix* matrix, uint16_t* out /* [rows, cols], bf16 */);

/* y = x W^T: products of bf16 (weights decoded as es_decode does), sums in fp32. */
ES_API int32_t es_linear(const es_matrix* matrix, const uint16_t* x /* [m, cols], bf16 */, int64_t m,
                         void* y /* [m, rows], fp32 where to_fp32 is not 0, else bf16 */, int32_t to_fp32);

/* A bf16 matrix a head: y[t][h] = x[t][h] W_h^T. Strides in elements. */
typedef struct {
  int64_t n_heads, rows, cols; /* each W_h is [rows, cols] */
  int32_t by_columns;          /* not 0: W_h is stored as [cols, rows] */
  int64_t head_bytes;          /* from one head's matrix to the next */
  int64_t x_row, x_head;       /* x: [m][n_heads][cols] */
  int64_t y_row, y_head;       /* y: [m][n_heads][rows], bf16 */
} es_heads;
ES_API int32_t es_linear_by_head(const es_heads* shape, const uint8_t* matrices, const uint16_t* x, int64_t m,
                                 uint16_t* y);

/* One routed expert: gate and up are [intermediate, hidden], down is [hidden, intermediate]. */
typedef struct { es_matrix gate, up, down; } es_expert;

/* each[p] = down(bf16(silu(gate x) * up x)) with x = x[token[p]], for the pairs begin[i] <= p < begin[i + 1] of expert
 * i. gate x and up x are fp32. Unweighted: es_moe_sum weighs. */
ES_API int32_t es_moe_ffn(const es_expert* experts, int64_t n_experts, const int64_t* begin /* [n_experts + 1] */,
                          const uint16_t* x /* [tokens, hidden], bf16 */, int64_t tokens,
                          const int32_t* token /* [begin[n_experts]] */, int64_t hidden, int64_t intermediate,
                          float* each /* [begin[n_experts], hidden] */);

/* total[token[p]] = fma(weight[p], each[p], total[token[p]]) for p ascending. */
ES_API int32_t es_moe_sum(const float* each /* [pairs, hidden] */, const int32_t* token, const float* weight,
                          int64_t pairs, int64_t tokens, int64_t hidden, float* total /* [tokens, hidden] */);

/* out = bf16(weight * bf16(x / sqrt(mean(x^2) + eps))) of each of n_heads times `dim` values of each row. x is bf16, or
 * fp32 where x_is_fp32 is not 0. Where `added` is not null, x += added comes first, rounded to x's type and kept in x;
 * n_heads is then 1, and x's rows may not overlap. Strides in elements. `out` may be x itself where x is bf16 and the
 * strides are equal. */
ES_API int32_t es_rms_norm(void* x /* [rows][n_heads][dim] */, int32_t x_is_fp32, int64_t x_row, int64_t x_head,
                           const uint16_t* added, int64_t added_row, const uint16_t* weight /* [dim] */, float eps,
                           int64_t rows, int64_t n_heads, int64_t dim, uint16_t* out, int64_t out_row,
                           int64_t out_head);

/* Each pair of each head turns by the row's i-th angle: (x[2i], x[2i + 1]), or (x[i], x[i + dim / 2]) where
 * `interleaved` is 0. Strides in elements; `out` may be x itself, with equal strides. */
ES_API int32_t es_rotate(const uint16_t* x /* [rows][n_heads][dim] */, int64_t x_row, int64_t x_head,
                         const float* cos /* [rows, dim / 2] */, const float* sin, int32_t interleaved, int64_t rows,
                         int64_t n_heads, int64_t dim, uint16_t* out, int64_t out_row, int64_t out_head);

/* out = bf16(silu(gate) * up). gate and up are bf16, or fp32 where is_fp32 is not 0; row strides in elements. */
ES_API int32_t es_swiglu(const void* gate, int64_t gate_row, const void* up, int64_t up_row, int32_t is_fp32,
                         int64_t rows, int64_t cols, uint16_t* out /* [rows, cols] */);

/* The top_k experts of each token by score + bias (null for none), the greatest first and of equal ones the lower
 * expert, and their weights: the scores without bias, where `normalize` is not 0 divided by their sum plus 1e-20, times
 * scale. A score is the logit's sigmoid, or its share in the softmax over all experts. Only the groups_kept groups
 * whose two best sum highest take part. nan comes before all numbers, and one logit of nan or inf makes every share of
 * a softmax nan, so that experts 0 to top_k - 1 are chosen. At most 4096 experts. */
#define ES_SIGMOID 0
#define ES_SOFTMAX 1
ES_API int32_t es_route(const float* logits /* [tokens, n_experts] */, int32_t scoring,
                        const float* bias /* [n_experts] */, int64_t tokens, int64_t n_experts, int64_t top_k,
                        int64_t n_groups, int64_t groups_kept, int32_t normalize, float scale,
                        int64_t* chosen /* [tokens, top_k] */, float* weight /* [tokens, top_k] */);

/* Query rows first to first + rows of a batch: tokens of one conversation at positions start, start + 1, ... Position p
 * lies in slot p % page_tokens of page pages[p / page_tokens] of the pool. */
typedef struct {
  int64_t first, rows, start;
  const int32_t* pages; /* [n_pages] */
  int64_t n_pages;
} es_sequence;

typedef struct {
  int64_t n_heads, n_kv_heads;              /* n_heads / n_kv_heads query heads in a row share a kv head */
  int64_t key_dim, value_offset, value_dim; /* of a kv head's width = max(key_dim, value_offset + value_dim) values the
                                               first key_dim are the key, value_dim from value_offset the value */
  int64_t page_tokens, n_pool_pages;
  float scale; /* of scores, before softmax: above zero */
} es_attention;

/* Causal attention: out[t][h] = the values of h's kv head, weighted by softmax over positions 0 to t's own of
 * scale * q[t][h] . key. Absorbed MLA has one kv head whose value is a part of its key (576, 0, 512 for DeepSeek-V3);
 * grouped-query attention has the value behind the key (128, 128, 128). Positions of this call must be in the pool
 * already; what lies beyond the last of them may be anything. Sequences' rows ascend; rows of no sequence are left as
 * they are. ES_BAD_SHAPE for more than 16384 values a kv head. ES_BAD_INDEX for rows outside the batch, pages outside
 * the pool, or fewer pages than positions. */
ES_API int32_t es_paged_attention(const es_attention* shape, const es_sequence* sequences, int64_t n_sequences,
                                  const uint16_t* q /* [tokens, n_heads, key_dim], bf16 */, int64_t tokens,
                                  const uint16_t* pool /* [n_pool_pages, page_tokens, n_kv_heads, width], bf16 */,
                                  uint16_t* out /* [tokens, n_heads, value_dim], bf16 */);

/* out = bf16(weight * (x / sqrt(mean(x^2) + eps)) * sigmoid(gate)) of each row of `dim`, in fp32 until then. */
ES_API int32_t es_gated_rms_norm(const float* x /* [rows, dim] */, const uint16_t* gate /* [rows][dim], bf16 */,
                                 int64_t gate_row, const float* weight /* [dim] */, float eps, int64_t rows,
                                 int64_t dim, uint16_t* out /* [rows, dim], bf16 */);

/* Rows first to first + rows of a batch: the next tokens of one sequence, and what it keeps, which they update. */
typedef struct {
  int64_t first, rows;
  float* state;   /* [n_heads, head_dim, head_dim]: a row a key channel, a column a value */
  uint16_t* tail; /* [kernel - 1, 3 * n_heads * head_dim], bf16: the last inputs of the convolution, oldest first */
} es_recurrent;

typedef struct {
  int64_t n_heads, head_dim, kernel;  /* head_dim: a multiple of 16, at most 256; kernel: 1 to 8 */
  int32_t gate_is_fp32, beta_is_fp32; /* or bf16 */
  int32_t is_bounded;                 /* not 0: the decay is exp(lower_bound * sigmoid(exp(a_log) (gate + dt_bias))) */
  float lower_bound;
} es_kda_shape;

/* Kimi Delta Attention. Per token and head, in fp32: q, k, v = silu of a causal convolution by channel; q and k over
 * sqrt(sum of squares + 1e-6), q times head_dim^-0.5; state = diag(decay) state with decay =
 * exp(-exp(a_log) * softplus(gate + dt_bias)); state += k (sigmoid(beta) (v - state^T k))^T; out = state^T q.
 * Sequences' rows ascend, and no two share a state or a tail. ES_BAD_INDEX for rows outside the batch or shared states.
 */
ES_API int32_t es_kda(const es_kda_shape* shape, const es_recurrent* sequences, int64_t n_sequences,
                      const uint16_t* qkv /* [tokens, 3, n_heads, head_dim], bf16: q, then k, then v */,
                      const void* gate /* [tokens, n_heads, head_dim] */, const void* beta /* [tokens, n_heads] */,
                      int64_t tokens, const float* conv /* [3 * n_heads * head_dim, kernel] */,
                      const float* a_log /* [n_heads] */, const float* dt_bias /* [n_heads, head_dim] */,
                      float* out /* [tokens, n_heads, head_dim] */);

/* Parts of a layer for a few tokens in one call: the functions above one after the other, to their bits, since what
 * lies between calls costs more than small operations do. At most ES_LAYER_TOKENS tokens, else ES_BAD_SHAPE. */
#define ES_LAYER_TOKENS 16

/* A step's tokens: their sequences, as es_paged_attention takes them, none empty and no token left out; the angles of
 * their positions, null where nothing rotates; and the pool, to which a token's row is written before rows are read. */
typedef struct {
  const es_sequence* sequences;
  int64_t n_sequences, tokens;
  const float *cos, *sin; /* [tokens, rope_dim / 2] */
  uint16_t* pool;         /* [n_pool_pages, page_tokens, width], bf16; width: values that a token keeps */
  int64_t page_tokens, n_pool_pages;
} es_batch;

/* Multi-head latent attention, absorbed. A token keeps kv_lora_rank values, then rope_dim. Vectors are bf16. */
typedef struct {
  int64_t n_heads, kv_lora_rank, nope_dim, rope_dim, v_dim;
  float eps, latent_eps, scale;
  const uint16_t* norm;      /* [hidden] */
  es_matrix q_a;             /* [q_lora_rank, hidden], or no rows: then q takes what q_a would */
  const uint16_t* q_a_norm;  /* [q_lora_rank] */
  es_matrix q;               /* [n_heads * (nope_dim + rope_dim), q_lora_rank or hidden] */
  es_matrix kv_a;            /* [kv_lora_rank + rope_dim, hidden] */
  const uint16_t* kv_a_norm; /* [kv_lora_rank] */
  const uint16_t* kv_b;      /* [n_heads, nope_dim + v_dim, kv_lora_rank], bf16 */
  es_matrix o;               /* [hidden, n_heads * v_dim] */
} es_mla;

/* out = attention(norm(x)). */
ES_API int32_t es_mla_layer(const es_mla* layer, const es_batch* batch, const uint16_t* x /* [tokens, hidden], bf16 */,
                            uint16_t* out /* [tokens, hidden], bf16 */);

/* Grouped-query attention with norms by head. A token keeps the key and then the value of each kv head. */
typedef struct {
  int64_t n_heads, n_kv_heads, head_dim, rope_dim; /* the first rope_dim values of a head rotate, by halves */
  float eps, head_eps, scale;
  const uint16_t* norm;   /* [hidden] */
  es_matrix q;            /* [n_heads * head_dim, hidden] */
  const uint16_t* q_norm; /* [head_dim] */
  es_matrix k;            /* [n_kv_heads * head_dim, hidden], as v */
  const uint16_t* k_norm; /* [head_dim] */
  es_matrix v;
  es_matrix o; /* [hidden, n_heads * head_dim] */
} es_gqa;
ES_API int32_t es_gqa_layer(const es_gqa* layer, const es_batch* batch, const uint16_t* x, uint16_t* out);

/* A feed-forward layer: routed experts, or none (a router without rows); and a network for all tokens, or none. */
typedef struct {
  float eps;
  const uint16_t* norm; /* [hidden] */
  es_matrix router;     /* [n_experts, hidden]; what follows is as es_route takes it */
  const float* bias;
  int32_t scoring, normalize;
  int64_t top_k, n_groups, groups_kept;
  float scale;
  es_expert shared; /* gate without rows: none */
} es_ffn;

/* x += added, then x += bf16(bf16(chosen experts of norm(x), weighed) + shared(norm(x))). used: how many of the experts
 * were chosen. */
ES_API int32_t es_ffn_layer(const es_ffn* layer, const es_expert* experts /* [n_experts] */,
                            uint16_t* x /* [tokens, hidden], bf16 */, const uint16_t* added, int64_t tokens,
                            int64_t* used);

/* Reads `bytes` of memory once with all threads: out[0] = the exclusive or of its 64-bit words, the last one filled up
 * with zeros. For measuring how fast that goes. */
ES_API int32_t es_read(const uint8_t* memory, int64_t bytes, uint64_t* out);

#ifdef __cplusplus
}
#endif
#endif
