/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products by oneDNN, whose API only onednn.c uses: version 3 changed it. */
#ifndef DLXI_KERNELS_ONEDNN_H
#define DLXI_KERNELS_ONEDNN_H

#include "kernels/kernels.h"

typedef struct dlxi_onednn dlxi_onednn;

/* c[M,N] = alpha · a' · b' + bias[N] + beta · c, with a' = a[M,K] or a[K,M]ᵀ and b' = b[K,N] or
 * b[N,K]ᵀ. The factors are bf16 or f32; c and bias are f32. With a bias alpha is 1. Rows as they
 * lie in memory are a_stride, b_stride and c_stride elements apart; 0: as many as they have. */
typedef struct dlxi_product {
    int64_t M, N, K;
    int64_t a_stride, b_stride, c_stride;
    float alpha, beta;
    bool transpose_a, transpose_b;
    bool bf16;
    bool bias;
} dlxi_product;

/* Whether this CPU multiplies bf16 into f32 sums, and oneDNN is allowed to use it. */
bool dlxi_onednn_has_bf16(void);

/* Caches a primitive per product, and scratch memory. One thread at a time; runs on at most
 * `threads`. */
dlx_status dlxi_onednn_open(dlxi_onednn **out, int threads, dlx_error *error);
void dlxi_onednn_close(dlxi_onednn **o);

dlx_status dlxi_onednn_run(dlxi_onednn *o, const dlxi_product *product, float *c, const void *a,
                           const void *b, const float *bias);

#endif
