/* SPDX-License-Identifier: Apache-2.0 */
/* Times the operations of the kernels at the shapes of a training step, and the low-rank codec.
 *
 * bench_kernels [backend] [precision: auto|f32|bf16] [threads]
 *
 * Prints the best of several runs: GFLOP/s of products, GB/s of memory of elementwise passes. */
#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"
#include "codec/codec.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 25, BUFFERS = 8 };

typedef struct bench {
    dlxi_kernels *k;
    float *buffer[BUFFERS];
    uint32_t *token;
    int64_t N, I, O;            /* linear */
    int64_t B, T, heads, kv, D; /* attention */
    int64_t count;              /* elementwise */
} bench;

typedef dlx_status (*operation)(bench *b);

static void must(dlx_status status, const char *what) {
    if (status == DLX_OK) return;
    fprintf(stderr, "bench_kernels: %s: %s\n", what, dlx_status_text(status));
    exit(1);
}

/* Seconds of the fastest run, each of at least 4 ms. */
static double best_s(bench *b, operation run, const char *what) {
    double best = 1e9;
    must(run(b), what);
    double start = dlxi_clock_s();
    must(run(b), what);
    int repeats = 1 + (int)(0.004 / (dlxi_clock_s() - start + 1e-9));
    for (int i = 0; i < RUNS; i++) {
        start = dlxi_clock_s();
        for (int r = 0; r < repeats; r++) must(run(b), what);
        double one = (dlxi_clock_s() - start) / repeats;
        if (one < best) best = one;
    }
    return best;
}

static void fill(bench *b, int64_t count) {
    for (int i = 0; i < BUFFERS; i++) {
        free(b->buffer[i]);
        must(DLXI_NEW(&b->buffer[i], count, NULL), "memory");
        const float lowest = i == 2 ? 0.0f : -0.5f; /* 2 is AdamW's second moment */
        for (int64_t j = 0; j < count; j++)
            b->buffer[i][j] = dlxi_rng_uniform(1, (uint64_t)i, (uint64_t)j) + lowest;
    }
    free(b->token);
    must(DLXI_NEW(&b->token, count, NULL), "memory");
    b->k->op->weights_changed(b->k, NULL);
}

static int64_t largest(int64_t a, int64_t b, int64_t c) {
    return a > b ? (a > c ? a : c) : (b > c ? b : c);
}

/* ---- operations ------------------------------------------------------------------------------ */

static dlx_status linear_forward(bench *b) {
    return b->k->op->linear_forward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], NULL, b->N,
                                    b->I, b->O);
}

static dlx_status linear_backward(bench *b) {
    return b->k->op->linear_backward(b->k, b->buffer[3], b->buffer[4], NULL, b->buffer[0],
                                     b->buffer[1], b->buffer[2], b->N, b->I, b->O);
}

static dlx_status linear_step(bench *b) {
    b->k->op->weights_changed(b->k, NULL);
    DLX_TRY(linear_forward(b));
    return linear_backward(b);
}

static dlx_status attention_forward(bench *b) {
    return b->k->op->attention_forward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->buffer[3],
                                       b->buffer[4], b->B, b->T, b->heads, b->kv, b->D);
}

static dlx_status attention_backward(bench *b) {
    return b->k->op->attention_backward(
        b->k, b->buffer[5], b->buffer[6], b->buffer[7], b->buffer[2], b->buffer[0], b->buffer[1],
        b->buffer[2], b->buffer[3], b->buffer[4], b->B, b->T, b->heads, b->kv, b->D);
}

static dlx_status adamw(bench *b) {
    const dlxi_adamw settings = {1e-3f, 0.9f, 0.99f, 1e-8f, 0.1f, 1.0f, 10};
    return b->k->op->adamw(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->buffer[3], b->count,
                           &settings);
}

static dlx_status sum_of_squares(bench *b) {
    return b->k->op->sum_of_squares(b->k, b->buffer[0], b->count) >= 0.0 ? DLX_OK : DLX_NUMERIC;
}

static dlx_status copy(bench *b) {
    memcpy(b->buffer[0], b->buffer[1], (size_t)b->count * sizeof(float));
    return DLX_OK;
}

static dlx_status add(bench *b) {
    return b->k->op->add(b->k, b->buffer[0], b->buffer[1], b->count);
}

static dlx_status gelu_forward(bench *b) {
    return b->k->op->activation_forward(b->k, b->buffer[0], b->buffer[1], DLXI_GELU, b->count);
}

static dlx_status gelu_backward(bench *b) {
    return b->k->op->activation_backward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], DLXI_GELU,
                                         b->count);
}

static dlx_status swiglu_forward(bench *b) {
    return b->k->op->swiglu_forward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->count);
}

static dlx_status swiglu_backward(bench *b) {
    return b->k->op->swiglu_backward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->buffer[3],
                                     b->buffer[4], b->count);
}

static dlx_status rmsnorm_forward(bench *b) {
    return b->k->op->rmsnorm_forward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->buffer[3],
                                     b->count / 256, 256, 1e-5f);
}

static dlx_status rmsnorm_backward(bench *b) {
    return b->k->op->rmsnorm_backward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->buffer[3],
                                      b->buffer[4], b->buffer[5], b->count / 256, 256);
}

static dlx_status layernorm_forward(bench *b) {
    return b->k->op->layernorm_forward(b->k, b->buffer[0], b->buffer[1], b->buffer[2], b->buffer[3],
                                       b->buffer[4], b->buffer[5], b->count / 256, 256, 1e-5f);
}

static dlx_status layernorm_backward(bench *b) {
    return b->k->op->layernorm_backward(b->k, b->buffer[0], b->buffer[1], b->buffer[2],
                                        b->buffer[3], b->buffer[4], b->buffer[5], b->buffer[6],
                                        b->buffer[7], b->count / 256, 256);
}

static dlx_status rope(bench *b) {
    return b->k->op->rope(b->k, b->buffer[0], b->count / 256, 256, 8, 32, 1e4f, false);
}

/* The gradient overwrites the logits of the next run: values do not change the time. */
static dlx_status cross_entropy(bench *b) {
    double loss = 0.0;
    return b->k->op->cross_entropy(b->k, &loss, b->buffer[0], b->token, b->count / b->O, b->O, true,
                                   1.0f);
}

static dlx_status symmetric_product(bench *b) {
    return b->k->op->symmetric_product(b->k, b->buffer[0], b->buffer[1], b->buffer[1], false, b->N,
                                       b->I);
}

enum { RANK = 64, GROUP = 64, EXPANDED = 32 };

static dlx_status project_rows(bench *b) {
    dlxi_project_rows(b->buffer[0], b->buffer[1], b->buffer[2], b->N, b->I, RANK, GROUP);
    return DLX_OK;
}

static dlx_status project_columns(bench *b) {
    dlxi_project_columns(b->buffer[0], b->buffer[1], b->buffer[2], b->N, b->I, RANK, GROUP);
    return DLX_OK;
}

static dlx_status expand(bench *b) {
    for (int64_t i = 0; i < b->N; i += EXPANDED) /* as an exchange does */
        dlxi_expand_rows(b->buffer[3], b->buffer[0], b->buffer[2], i,
                         b->N - i < EXPANDED ? b->N - i : EXPANDED, b->N, b->I, RANK, GROUP);
    return DLX_OK;
}

static dlx_status orthonormalise(bench *b) {
    dlxi_orthonormalise(b->buffer[4], b->N, RANK, GROUP);
    return DLX_OK;
}

/* ---- tables ---------------------------------------------------------------------------------- */

static void bench_linear(bench *b, int64_t N, int64_t I, int64_t O) {
    b->N = N;
    b->I = I;
    b->O = O;
    fill(b, largest(N * I, N * O, I * O));
    double flops = 2e-9 * (double)N * (double)I * (double)O;
    double forward = best_s(b, linear_forward, "linear_forward"),
           backward = best_s(b, linear_backward, "linear_backward");
    double step = best_s(b, linear_step, "linear step");
    printf("linear [%lld,%lld]x[%lld,%lld]: forward %.1f, backward %.1f, both with new weights "
           "%.1f GFLOP/s\n",
           (long long)N, (long long)I, (long long)O, (long long)I, flops / forward,
           2.0 * flops / backward, 3.0 * flops / step);
}

static void bench_symmetric_product(bench *b, int64_t M, int64_t K) {
    b->N = M;
    b->I = K;
    fill(b, largest(M * K, M * M, 1));
    double s = best_s(b, symmetric_product, "symmetric_product");
    printf("symmetric product [%lld,%lld], f32: %.3f ms, %.1f GFLOP/s of the whole product\n",
           (long long)M, (long long)K, 1e3 * s, 2e-9 * (double)(M * M * K) / s);
}

/* One thread, f32. */
static void bench_low_rank(bench *b, int64_t rows, int64_t cols) {
    b->N = rows;
    b->I = cols;
    fill(b, largest(rows * cols, RANK * (rows + GROUP), RANK * (cols + GROUP)));
    const double flops = 2e-9 * (double)(rows * cols * RANK);
    const double r = best_s(b, project_rows, "rows"), c = best_s(b, project_columns, "columns"),
                 e = best_s(b, expand, "expand"), o = best_s(b, orthonormalise, "orthonormalise");
    printf("rank %d of [%lld,%lld]: rows %.1f, columns %.1f, expansion %.1f GFLOP/s; orthonormal "
           "columns %.3f ms\n",
           RANK, (long long)rows, (long long)cols, flops / r, flops / c, flops / e, 1e3 * o);
}

static void bench_attention(bench *b, int64_t B, int64_t T, int64_t heads, int64_t kv, int64_t D) {
    b->B = B;
    b->T = T;
    b->heads = heads;
    b->kv = kv;
    b->D = D;
    fill(b, B * T * heads * D);
    /* causal half, two products */
    double flops = 2e-9 * (double)(B * heads) * (double)T * (double)(T + 1) * (double)D;
    double forward = best_s(b, attention_forward, "attention_forward");
    double backward = best_s(b, attention_backward, "attention_backward");
    printf("attention B=%lld T=%lld heads=%lld kv=%lld D=%lld: forward %.3f ms (%.1f GFLOP/s), "
           "backward %.3f ms (%.1f GFLOP/s)\n",
           (long long)B, (long long)T, (long long)heads, (long long)kv, (long long)D, forward * 1e3,
           flops / forward, backward * 1e3, 2.5 * flops / backward);
}

/* passes: f32 arrays of `count` elements that are read or written. */
static void bench_elementwise(bench *b, const char *name, operation run, int passes) {
    double s = best_s(b, run, name);
    printf("%-20s %10lld elements: %8.3f ms, %6.2f GB/s\n", name, (long long)b->count, s * 1e3,
           4e-9 * (double)b->count * passes / s);
}

static void bench_all_elementwise(bench *b, int64_t count) {
    b->count = count;
    fill(b, count);
    bench_elementwise(b, "memcpy", copy, 2);
    bench_elementwise(b, "adamw", adamw, 7);
    bench_elementwise(b, "sum_of_squares", sum_of_squares, 1);
    bench_elementwise(b, "add", add, 3);
    fill(b, count);
    bench_elementwise(b, "gelu forward", gelu_forward, 2);
    bench_elementwise(b, "gelu backward", gelu_backward, 3);
    bench_elementwise(b, "swiglu forward", swiglu_forward, 3);
    bench_elementwise(b, "swiglu backward", swiglu_backward, 5);
    bench_elementwise(b, "rmsnorm forward", rmsnorm_forward, 2);
    bench_elementwise(b, "rmsnorm backward", rmsnorm_backward, 3);
    bench_elementwise(b, "layernorm forward", layernorm_forward, 2);
    bench_elementwise(b, "layernorm backward", layernorm_backward, 3);
    bench_elementwise(b, "rope", rope, 2);
    b->O = 256;
    bench_elementwise(b, "cross_entropy 256", cross_entropy, 2);
}

int main(int argc, char **argv) {
    const char *backend = argc > 1 ? argv[1] : "auto", *precision = argc > 2 ? argv[2] : "auto";
    dlxi_precision wanted = DLXI_PRECISION_AUTO;
    if (strcmp(precision, "f32") == 0) wanted = DLXI_PRECISION_F32;
    if (strcmp(precision, "bf16") == 0) wanted = DLXI_PRECISION_BF16;
    bench b = {0};
    dlx_error error = {0};
    if (dlxi_kernels_open(&b.k, backend, wanted, argc > 3 ? atoi(argv[3]) : 1, &error) != DLX_OK) {
        fprintf(stderr, "bench_kernels: %s\n", error.message);
        return 1;
    }
    printf("backend %s, %s, %d threads\n", b.k->op->name,
           b.k->precision == DLXI_PRECISION_BF16 ? "bf16" : "f32", b.k->threads);
    bench_linear(&b, 1024, 1024, 1024);
    bench_linear(&b, 256, 768, 3072);
    bench_linear(&b, 256, 768, 50304);
    bench_linear(&b, 2048, 256, 704);
    bench_linear(&b, 2048, 64, 192);
    bench_attention(&b, 8, 256, 8, 4, 32);
    bench_attention(&b, 8, 64, 4, 2, 16);
    bench_attention(&b, 4, 64, 12, 12, 64);
    bench_attention(&b, 4, 512, 8, 8, 64);
    bench_symmetric_product(&b, 256, 256);
    bench_symmetric_product(&b, 256, 704);
    bench_symmetric_product(&b, 768, 768);
    bench_low_rank(&b, 256, 704);
    bench_low_rank(&b, 768, 768);
    bench_low_rank(&b, 3072, 768);
    bench_low_rank(&b, 768, 3072);
    bench_all_elementwise(&b, 1 << 19);
    bench_all_elementwise(&b, 1 << 24);
    b.O = 50304;
    b.count = 256 * b.O;
    fill(&b, b.count);
    bench_elementwise(&b, "cross_entropy 50304", cross_entropy, 2);
    for (int i = 0; i < BUFFERS; i++) free(b.buffer[i]);
    free(b.token);
    dlxi_kernels_close(&b.k);
    return 0;
}
