/* Earthshine's native library: the whole interface, in C.
 *
 * Pointers state their shape as [rows, cols], row-major and without gaps. Inputs need no alignment; outputs need that
 * of their type. No output may overlap an input. Every function returns a status, keeps no pointer, allocates nothing
 * and throws nothing. Numbers are little-endian, as checkpoints store them. bf16 travels as uint16_t.
 */
#ifndef EARTHSHINE_H
#define EARTHSHINE_H

#include <stdint.h>

#define ES_ABI_VERSION 1

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
 * Results are the same bits whichever serves. ES_NULL_POINTER, ES_UNSUPPORTED. */
ES_API int32_t es_force_instruction_set(const char* name);

/* INT4 in groups of 32 (compressed-tensors `pack-quantized`, symmetric):
 * out[r, c] = bf16((nibble - 8) * scale[r, c / 32]), rounded to nearest even; nan where the product is nan. */
ES_API int32_t es_decode_int4(const int32_t* packed, /* [rows, cols / 8], eight nibbles a word, lowest first */
                              const uint16_t* scale, /* [rows, cols / 32], bf16 */
                              int64_t rows, int64_t cols, /* cols: a multiple of 32 */
                              uint16_t* out);        /* [rows, cols], bf16 */

/* FP8 e4m3fn in blocks of 128 x 128 (DeepSeek-V3), the blocks at the lower and right edge cropped:
 * out[r, c] = bf16(fp32(weight[r, c]) * scale_inv[r / 128, c / 128]): an fp32 product, rounded to nearest even. */
ES_API int32_t es_decode_fp8(const uint8_t* weight,  /* [rows, cols], e4m3fn; 0x7f and 0xff are nan */
                             const float* scale_inv, /* [ceil(rows / 128), ceil(cols / 128)] */
                             int64_t rows, int64_t cols,
                             uint16_t* out);         /* [rows, cols], bf16 */

#ifdef __cplusplus
}
#endif
#endif
