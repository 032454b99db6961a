/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of a training step: one table of operations, filled by `ref` (plain C, frozen,
 * reads like the formula) and by `fast` (oneDNN, and our own vector loops).
 *
 * All arrays are f32, row-major; token rows N = B·T. Forward operations overwrite their outputs.
 * Backward operations overwrite gradients of activations (d of x, q, k, v) and *add to* gradients
 * of parameters (dweight, dbias, dgain), so micro-batches accumulate.
 *
 * A `dlxi_kernels` keeps scratch memory and cached primitives from the first call of a shape: no
 * allocation after the first step. One thread at a time may use it; `threads` caps every pool it
 * uses. Operations return DLX_OK, DLX_MEMORY or DLX_SYSTEM. */
#ifndef DLXI_KERNELS_H
#define DLXI_KERNELS_H

#include "base/error.h"

typedef struct dlxi_kernels dlxi_kernels;

typedef enum dlxi_precision {
    DLXI_PRECISION_AUTO, /* bf16 if the CPU has AVX-512-BF16, or f32 */
    DLXI_PRECISION_F32,
    DLXI_PRECISION_BF16 /* products of factors rounded to bf16, accumulated in f32 */
} dlxi_precision;

/* GELU in the tanh form of GPT-2. */
typedef enum dlxi_activation { DLXI_GELU, DLXI_RELU } dlxi_activation;

/* AdamW with decoupled decay (Loshchilov & Hutter 2019, algorithm 2); step counts from 1. */
typedef struct dlxi_adamw {
    float learning_rate, beta1, beta2, epsilon, weight_decay;
    float gradient_scale; /* multiplies the gradient first: clipping and the micro-batch mean */
    int64_t step;
} dlxi_adamw;

typedef struct dlxi_operations {
    const char *name;
    bool (*has_bf16)(void); /* whether this CPU can; NULL: f32 only */
    dlx_status (*open)(dlxi_kernels *k, dlx_error *error); /* fills k->state */
    void (*close)(dlxi_kernels *k);                        /* takes a half-opened one */

    /* y[N,O] = x[N,I] · weight[O,I]ᵀ + bias[O]; bias may be NULL. */
    dlx_status (*linear_forward)(dlxi_kernels *k, float *y, const float *x, const float *weight,
                                 const float *bias, int64_t N, int64_t I, int64_t O);
    /* dx[N,I] = dy[N,O] · weight; dweight[O,I] += dyᵀ · x; dbias[O] += Σ_n dy. dx and dbias may be
     * NULL. */
    dlx_status (*linear_backward)(dlxi_kernels *k, float *dx, float *dweight, float *dbias,
                                  const float *dy, const float *x, const float *weight, int64_t N,
                                  int64_t I, int64_t O);
    /* Drops converted copies of a weight of linear_* that has changed or is about to be freed;
     * NULL: of all. Call after every optimiser step and outer step. */
    void (*weights_changed)(dlxi_kernels *k, const float *weight);

    /* c[M,N] = alpha · a' · b' + beta · c, with a' = a[M,K] or a[K,M]ᵀ and b' = b[K,N] or
     * b[N,K]ᵀ. */
    dlx_status (*product)(dlxi_kernels *k, float *c, const float *a, const float *b,
                          bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K,
                          float alpha, float beta);

    /* c[M,M] = a[M,K] · b[M,K]ᵀ, or transposed: a[K,M]ᵀ · b[K,M]. The result must be
     * symmetric: only a half is computed, the other is its mirror image. f32 at any precision. */
    dlx_status (*symmetric_product)(dlxi_kernels *k, float *c, const float *a, const float *b,
                                    bool transposed, int64_t M, int64_t K);

    /* y[N,C] = table[token[n], :] + position[n mod T, :]; position may be NULL. */
    dlx_status (*embedding_forward)(dlxi_kernels *k, float *y, const uint32_t *token,
                                    const float *table, const float *position, int64_t N, int64_t T,
                                    int64_t C);
    dlx_status (*embedding_backward)(dlxi_kernels *k, float *dtable, float *dposition,
                                     const float *dy, const uint32_t *token, int64_t N, int64_t T,
                                     int64_t C);

    /* y = (x − mean) · rstd · gain + bias; mean[N], rstd[N] are kept for backward. */
    dlx_status (*layernorm_forward)(dlxi_kernels *k, float *y, float *mean, float *rstd,
                                    const float *x, const float *gain, const float *bias, int64_t N,
                                    int64_t C, float epsilon);
    dlx_status (*layernorm_backward)(dlxi_kernels *k, float *dx, float *dgain, float *dbias,
                                     const float *dy, const float *x, const float *mean,
                                     const float *rstd, const float *gain, int64_t N, int64_t C);
    /* y = x · rstd · gain, rstd[N] = 1/sqrt(mean(x²) + epsilon). */
    dlx_status (*rmsnorm_forward)(dlxi_kernels *k, float *y, float *rstd, const float *x,
                                  const float *gain, int64_t N, int64_t C, float epsilon);
    dlx_status (*rmsnorm_backward)(dlxi_kernels *k, float *dx, float *dgain, const float *dy,
                                   const float *x, const float *rstd, const float *gain, int64_t N,
                                   int64_t C);

    dlx_status (*activation_forward)(dlxi_kernels *k, float *y, const float *x,
                                     dlxi_activation kind, int64_t count);
    /* dx may be dy. */
    dlx_status (*activation_backward)(dlxi_kernels *k, float *dx, const float *dy, const float *x,
                                      dlxi_activation kind, int64_t count);
    /* y = silu(gate) · up */
    dlx_status (*swiglu_forward)(dlxi_kernels *k, float *y, const float *gate, const float *up,
                                 int64_t count);
    dlx_status (*swiglu_backward)(dlxi_kernels *k, float *dgate, float *dup, const float *dy,
                                  const float *gate, const float *up, int64_t count);

    /* y += x */
    dlx_status (*add)(dlxi_kernels *k, float *y, const float *x, int64_t count);

    /* Rotary embedding in place on x[N,heads,D], position n mod T, base theta; pairs (d, d + D/2)
     * as in Hugging Face's Llama. inverse: the backward pass. */
    dlx_status (*rope)(dlxi_kernels *k, float *x, int64_t N, int64_t T, int64_t heads, int64_t D,
                       float theta, bool inverse);

    /* Causal attention with scale 1/sqrt(D). q, out [B,T,heads,D]; key, value [B,T,kv_heads,D];
     * heads is a multiple of kv_heads and query head h reads kv head h / (heads / kv_heads).
     * lse[B,heads,T] = log Σ exp of the scaled scores, kept for backward. */
    dlx_status (*attention_forward)(dlxi_kernels *k, float *out, float *lse, const float *q,
                                    const float *key, const float *value, int64_t B, int64_t T,
                                    int64_t heads, int64_t kv_heads, int64_t D);
    dlx_status (*attention_backward)(dlxi_kernels *k, float *dq, float *dkey, float *dvalue,
                                     const float *dout, const float *out, const float *lse,
                                     const float *q, const float *key, const float *value,
                                     int64_t B, int64_t T, int64_t heads, int64_t kv_heads,
                                     int64_t D);

    /* loss_sum += Σ_n −log softmax(logits[n])[target[n]], in f64. gradient: logits[N,V] ←
     * gradient_scale · (softmax − onehot), which saves a second [N,V] array. */
    dlx_status (*cross_entropy)(dlxi_kernels *k, double *loss_sum, float *logits,
                                const uint32_t *target, int64_t N, int64_t V, bool gradient,
                                float gradient_scale);

    dlx_status (*adamw)(dlxi_kernels *k, float *parameter, float *m, float *v,
                        const float *gradient, int64_t count, const dlxi_adamw *settings);
    /* Σ x² in f64. */
    double (*sum_of_squares)(dlxi_kernels *k, const float *x, int64_t count);
} dlxi_operations;

struct dlxi_kernels {
    const dlxi_operations *op; /* k->op->linear_forward(k, …) */
    dlxi_precision precision;  /* F32 or BF16 */
    int threads;
    struct dlxi_kernels_state *state; /* the backend's */
};

/* The names that dlxi_kernels_open takes, "auto" (the fastest) first; ends with NULL. */
extern const char *const dlxi_kernels_backends[];

/* threads ≥ 1. On success *out is the caller's, closed with dlxi_kernels_close. DLX_CONFIG if the
 * backend is unknown, or the CPU or the backend lacks the precision. */
dlx_status dlxi_kernels_open(dlxi_kernels **out, const char *backend, dlxi_precision precision,
                             int threads, dlx_error *error);
void dlxi_kernels_close(dlxi_kernels **kernels);

/* flop/s of a 1024³ product by oneDNN, factors of bf16 converted beforehand: the best of 5 runs. */
dlx_status dlxi_kernels_product_rate(double *flops_per_s, dlxi_precision precision, int threads,
                                     dlx_error *error);
/* byte/s of y += x with 128 MiB each, read and written by k's threads: the best of 5 runs. */
dlx_status dlxi_kernels_memory_rate(double *bytes_per_s, dlxi_kernels *k, dlx_error *error);

#endif
