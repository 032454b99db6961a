/* SPDX-License-Identifier: Apache-2.0 */
/* Matrix products by oneDNN. The only files that know oneDNN are this one and onednn.c: version 3
 * changed its C API. */
#ifndef DLXI_KERNELS_ONEDNN_H
#define DLXI_KERNELS_ONEDNN_H

#include "kernels/kernels.h"

typedef struct dlxi_onednn dlxi_onednn;

/* c[M,N] = alpha · a' · b' + bias[N] + beta · c, with a' = a[M,K] or a[K,M]ᵀ, b' = b[K,N] or
 * b[N,K]ᵀ, all dense. The factors are bf16 or f32; c and bias are f32. alpha is 1 where there is a
 * bias. */
typedef struct dlxi_product {
    int64_t M, N, K;
    float alpha, beta;
    bool transpose_a, transpose_b;
    bool bf16;
    bool bias;
} dlxi_product;

/* Whether this CPU has instructions for products of bf16 that sum in f32, and oneDNN is allowed to
 * use them. */
bool dlxi_onednn_has_bf16(void);

/* An object caches a primitive per product and keeps scratch memory; one thread at a time may use
 * it, and it runs on at most `threads`. On success *out is the caller's. */
dlx_status dlxi_onednn_open(dlxi_onednn **out, int threads, dlx_error *error);
void dlxi_onednn_close(dlxi_onednn **o);

dlx_status dlxi_onednn_run(dlxi_onednn *o, const dlxi_product *product, float *c, const void *a,
                           const void *b, const float *bias);

#endif
