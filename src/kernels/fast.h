/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the fast backend share: oneDNN's products and our own vector loops.
 *
 * An operation splits its rows into ranges, one per thread; the loop over a range is a plain
 * function compiled for several CPUs (DLXI_CLONES). Sums within a row are reordered (`omp simd
 * reduction`), so the last bits differ between CPUs: nothing here is replicated arithmetic. */
#ifndef DLXI_KERNELS_FAST_H
#define DLXI_KERNELS_FAST_H

#include "kernels/internal.h"
#include "kernels/onednn.h"

/* A weight's bf16 copy; the memory is kept and refilled after the weight changes. */
typedef struct dlxi_converted {
    const float *weight;
    uint16_t *data;
    int64_t count;
    bool valid;
} dlxi_converted;

/* One thread's own part of attention. */
typedef struct dlxi_lane {
    dlxi_onednn *products;
    dlxi_scratch memory;
    dlx_status status;
} dlxi_lane;

struct dlxi_kernels_state {
    dlxi_onednn *products;
    dlxi_lane *lanes; /* [threads] */
    dlxi_converted *converted;
    int64_t converted_count, converted_capacity;
    dlxi_scratch factor_a, factor_b; /* activations in bf16 */
    dlxi_scratch partial;            /* [ranges,2,C]: sums over a range's rows */
    dlxi_scratch rope_table;         /* [positions,D]: D/2 cosines, then D/2 sines */
    int64_t rope_positions, rope_D;
    float rope_theta;
};

enum { DLXI_RANGES_MAX = 64 };

/* The number of ranges worth splitting `items` rows of `width` elements into: 1 … k->threads, at
 * most DLXI_RANGES_MAX. */
int dlxi_ranges(const dlxi_kernels *k, int64_t items, int64_t width);

/* The first item of range r; range r ends where r + 1 begins. */
static inline int64_t dlxi_range_begin(int64_t items, int r, int ranges) {
    return items * r / ranges;
}

/* dst[rows,width] = bf16(scale · src), rounded to nearest even; rows of src are `stride` apart. */
void dlxi_to_bf16(uint16_t *dst, const float *src, int64_t rows, int64_t width, int64_t stride,
                  float scale);

dlx_status dlxi_fast_linear_forward(dlxi_kernels *k, float *y, const float *x, const float *weight,
                                    const float *bias, int64_t N, int64_t I, int64_t O);
dlx_status dlxi_fast_linear_backward(dlxi_kernels *k, float *dx, float *dweight, float *dbias,
                                     const float *dy, const float *x, const float *weight,
                                     int64_t N, int64_t I, int64_t O);
void dlxi_fast_weights_changed(dlxi_kernels *k, const float *weight);
dlx_status dlxi_fast_product(dlxi_kernels *k, float *c, const float *a, const float *b,
                             bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K,
                             float alpha, float beta);
dlx_status dlxi_fast_symmetric_product(dlxi_kernels *k, float *c, const float *a, const float *b,
                                       bool transposed, int64_t M, int64_t K);
dlx_status dlxi_fast_embedding_forward(dlxi_kernels *k, float *y, const uint32_t *token,
                                       const float *table, const float *position, int64_t N,
                                       int64_t T, int64_t C);
dlx_status dlxi_fast_embedding_backward(dlxi_kernels *k, float *dtable, float *dposition,
                                        const float *dy, const uint32_t *token, int64_t N,
                                        int64_t T, int64_t C);
dlx_status dlxi_fast_layernorm_forward(dlxi_kernels *k, float *y, float *mean, float *rstd,
                                       const float *x, const float *gain, const float *bias,
                                       int64_t N, int64_t C, float epsilon);
dlx_status dlxi_fast_layernorm_backward(dlxi_kernels *k, float *dx, float *dgain, float *dbias,
                                        const float *dy, const float *x, const float *mean,
                                        const float *rstd, const float *gain, int64_t N, int64_t C);
dlx_status dlxi_fast_rmsnorm_forward(dlxi_kernels *k, float *y, float *rstd, const float *x,
                                     const float *gain, int64_t N, int64_t C, float epsilon);
dlx_status dlxi_fast_rmsnorm_backward(dlxi_kernels *k, float *dx, float *dgain, const float *dy,
                                      const float *x, const float *rstd, const float *gain,
                                      int64_t N, int64_t C);
dlx_status dlxi_fast_activation_forward(dlxi_kernels *k, float *y, const float *x,
                                        dlxi_activation kind, int64_t count);
dlx_status dlxi_fast_activation_backward(dlxi_kernels *k, float *dx, const float *dy,
                                         const float *x, dlxi_activation kind, int64_t count);
dlx_status dlxi_fast_swiglu_forward(dlxi_kernels *k, float *y, const float *gate, const float *up,
                                    int64_t count);
dlx_status dlxi_fast_swiglu_backward(dlxi_kernels *k, float *dgate, float *dup, const float *dy,
                                     const float *gate, const float *up, int64_t count);
dlx_status dlxi_fast_add(dlxi_kernels *k, float *y, const float *x, int64_t count);
dlx_status dlxi_fast_rope(dlxi_kernels *k, float *x, int64_t N, int64_t T, int64_t heads, int64_t D,
                          float theta, bool inverse);
dlx_status dlxi_fast_attention_forward(dlxi_kernels *k, float *out, float *lse, const float *q,
                                       const float *key, const float *value, int64_t B, int64_t T,
                                       int64_t heads, int64_t kv_heads, int64_t D);
dlx_status dlxi_fast_attention_backward(dlxi_kernels *k, float *dq, float *dkey, float *dvalue,
                                        const float *dout, const float *out, const float *lse,
                                        const float *q, const float *key, const float *value,
                                        int64_t B, int64_t T, int64_t heads, int64_t kv_heads,
                                        int64_t D);
dlx_status dlxi_fast_cross_entropy(dlxi_kernels *k, double *loss_sum, float *logits,
                                   const uint32_t *target, int64_t N, int64_t V, bool gradient,
                                   float gradient_scale);
dlx_status dlxi_fast_adamw(dlxi_kernels *k, float *parameter, float *m, float *v,
                           const float *gradient, int64_t count, const dlxi_adamw *settings);
double dlxi_fast_sum_of_squares(dlxi_kernels *k, const float *x, int64_t count);

#endif
