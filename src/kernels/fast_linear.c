/* SPDX-License-Identifier: Apache-2.0 */
/* Linear layers and plain products: which factors are rounded to bf16, and the weights' copies. */
#include "kernels/fast.h"

#include "base/memory.h"
#include "base/simd.h"

#include <stdlib.h>

/* Rounding a factor costs as much as about 25 multiply-adds per element save: thin products stay
 * f32. */
static bool worth_bf16(const dlxi_kernels *k, int64_t columns_a, int64_t columns_b) {
    return k->precision == DLXI_PRECISION_BF16 && columns_a >= 32 && columns_b >= 32;
}

static void bf16_convert(const dlxi_kernels *k, uint16_t *dst, const float *src, int64_t count) {
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++) {
        int64_t begin = dlxi_range_begin(count, r, ranges),
                length = dlxi_range_begin(count, r + 1, ranges) - begin;
        dlxi_to_bf16(dst + begin, src + begin, 1, length, length, 1.0f);
    }
}

/* *out ← x, or its bf16 copy in scratch. */
static dlx_status factor_prepare(dlxi_kernels *k, const void **out, dlxi_scratch *scratch,
                                 const float *x, int64_t count, bool bf16) {
    *out = x;
    if (!bf16) return DLX_OK;
    DLX_TRY(dlxi_scratch_reserve(scratch, (size_t)count, sizeof(uint16_t)));
    bf16_convert(k, scratch->data, x, count);
    *out = scratch->data;
    return DLX_OK;
}

/* ---- converted weights ----------------------------------------------------------------------- */

static dlx_status converted_append(struct dlxi_kernels_state *s, const float *weight,
                                   int64_t count) {
    if (s->converted_count == s->converted_capacity) {
        dlxi_converted *larger = NULL;
        DLX_TRY(DLXI_NEW(&larger, 2 * s->converted_capacity + 32, NULL));
        for (int64_t i = 0; i < s->converted_count; i++) larger[i] = s->converted[i];
        free(s->converted);
        s->converted = larger;
        s->converted_capacity = 2 * s->converted_capacity + 32;
    }
    dlxi_converted *c = &s->converted[s->converted_count];
    DLX_TRY(DLXI_NEW(&c->data, count, NULL));
    c->weight = weight;
    c->count = count;
    s->converted_count++;
    return DLX_OK;
}

/* The entry of the weight, or an invalid one of equal size, or a new one. A weight of another size
 * at the same address is another weight. */
static dlx_status converted_find(struct dlxi_kernels_state *s, dlxi_converted **out,
                                 const float *weight, int64_t count) {
    for (int64_t i = 0; i < s->converted_count; i++) {
        *out = &s->converted[i];
        if ((*out)->weight == weight && (*out)->count == count) return DLX_OK;
    }
    for (int64_t i = 0; i < s->converted_count; i++) {
        *out = &s->converted[i];
        if (!(*out)->valid && (*out)->count == count) {
            (*out)->weight = weight;
            return DLX_OK;
        }
    }
    DLX_TRY(converted_append(s, weight, count));
    *out = &s->converted[s->converted_count - 1];
    return DLX_OK;
}

static dlx_status weight_factor(dlxi_kernels *k, const void **out, const float *weight,
                                int64_t count, bool bf16) {
    *out = weight;
    if (!bf16) return DLX_OK;
    dlxi_converted *c = NULL;
    DLX_TRY(converted_find(k->state, &c, weight, count));
    if (!c->valid) bf16_convert(k, c->data, weight, count);
    c->valid = true;
    *out = c->data;
    return DLX_OK;
}

void dlxi_fast_weights_changed(dlxi_kernels *k, const float *weight) {
    for (int64_t i = 0; i < k->state->converted_count; i++)
        if (weight == NULL || k->state->converted[i].weight == weight)
            k->state->converted[i].valid = false;
}

/* ---- linear ---------------------------------------------------------------------------------- */

dlx_status dlxi_fast_linear_forward(dlxi_kernels *k, float *y, const float *x, const float *weight,
                                    const float *bias, int64_t N, int64_t I, int64_t O) {
    const bool bf16 = worth_bf16(k, I, O);
    const void *a = NULL, *b = NULL;
    DLX_TRY(factor_prepare(k, &a, &k->state->factor_a, x, N * I, bf16));
    DLX_TRY(weight_factor(k, &b, weight, O * I, bf16));
    const dlxi_product xw = {.M = N,
                             .N = O,
                             .K = I,
                             .alpha = 1.0f,
                             .transpose_b = true,
                             .bf16 = bf16,
                             .bias = bias != NULL};
    return dlxi_onednn_run(k->state->products, &xw, y, a, b, bias);
}

/* sums[o] += Σ_n dy[n,o] for o in [begin, end); dy is [N,O]. */
DLXI_CLONES static void column_sums_add(float *sums, const float *dy, int64_t N, int64_t O,
                                        int64_t begin, int64_t end) {
    enum { BLOCK = 256 };
    for (int64_t first = begin; first < end; first += BLOCK) {
        float block[BLOCK] = {0};
        int64_t width = end - first < BLOCK ? end - first : BLOCK;
        for (int64_t n = 0; n < N; n++) {
            const float *row = dy + n * O + first;
#pragma omp simd
            for (int64_t o = 0; o < width; o++) block[o] += row[o];
        }
        for (int64_t o = 0; o < width; o++) sums[first + o] += block[o];
    }
}

dlx_status dlxi_fast_linear_backward(dlxi_kernels *k, float *dx, float *dweight, float *dbias,
                                     const float *dy, const float *x, const float *weight,
                                     int64_t N, int64_t I, int64_t O) {
    const bool bf16 = worth_bf16(k, I, O);
    const void *d = NULL, *a = NULL, *b = NULL;
    DLX_TRY(factor_prepare(k, &d, &k->state->factor_a, dy, N * O, bf16));
    if (dx != NULL) {
        DLX_TRY(weight_factor(k, &b, weight, O * I, bf16));
        const dlxi_product dyw = {.M = N, .N = I, .K = O, .alpha = 1.0f, .bf16 = bf16};
        DLX_TRY(dlxi_onednn_run(k->state->products, &dyw, dx, d, b, NULL));
    }
    DLX_TRY(factor_prepare(k, &a, &k->state->factor_b, x, N * I, bf16));
    const dlxi_product dyx = {
        .M = O, .N = I, .K = N, .alpha = 1.0f, .beta = 1.0f, .transpose_a = true, .bf16 = bf16};
    DLX_TRY(dlxi_onednn_run(k->state->products, &dyx, dweight, d, a, NULL));
    if (dbias == NULL) return DLX_OK;

    const int ranges = dlxi_ranges(k, O, N);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        column_sums_add(dbias, dy, N, O, dlxi_range_begin(O, r, ranges),
                        dlxi_range_begin(O, r + 1, ranges));
    return DLX_OK;
}

dlx_status dlxi_fast_product(dlxi_kernels *k, float *c, const float *a, const float *b,
                             bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K,
                             float alpha, float beta) {
    const bool bf16 = worth_bf16(k, M, N);
    const void *left = NULL, *right = NULL;
    DLX_TRY(factor_prepare(k, &left, &k->state->factor_a, a, M * K, bf16));
    DLX_TRY(factor_prepare(k, &right, &k->state->factor_b, b, K * N, bf16));
    const dlxi_product ab = {.M = M,
                             .N = N,
                             .K = K,
                             .alpha = alpha,
                             .beta = beta,
                             .transpose_a = transpose_a,
                             .transpose_b = transpose_b,
                             .bf16 = bf16};
    return dlxi_onednn_run(k->state->products, &ab, c, left, right, NULL);
}

/* ---- symmetric products ---------------------------------------------------------------------- */

/* c[j,i] ← c[i,j] for rows i of [begin, end) and j > i; in tiles, whose columns stay in cache. */
DLXI_CLONES static void rows_mirror(float *c, int64_t M, int64_t begin, int64_t end) {
    enum { TILE = 16 };
    for (int64_t first = begin; first < M; first += TILE) {
        const int64_t last = first + TILE < M ? first + TILE : M;
        for (int64_t j = first; j < last; j++) {
            const int64_t rows = j < end ? j : end;
            for (int64_t i = begin; i < rows; i++) c[j * M + i] = c[i * M + j];
        }
    }
}

/* Blocks of rows, each from the diagonal on: n blocks save (n − 1) / 2n of the work, and thin ones
 * are slow. */
dlx_status dlxi_fast_symmetric_product(dlxi_kernels *k, float *c, const float *a, const float *b,
                                       bool transposed, int64_t M, int64_t K) {
    enum { THINNEST = 64, BLOCKS = 4, MIRRORED = 16 };
    const int64_t quarter = (M + BLOCKS - 1) / BLOCKS,
                  block = quarter > THINNEST ? quarter : THINNEST;
    const int64_t stride = transposed ? M : K, step = transposed ? 1 : K;
    for (int64_t first = 0; first < M; first += block) {
        const dlxi_product rows = {.M = M - first < block ? M - first : block,
                                   .N = M - first,
                                   .K = K,
                                   .a_stride = stride,
                                   .b_stride = stride,
                                   .c_stride = M,
                                   .alpha = 1.0f,
                                   .transpose_a = transposed,
                                   .transpose_b = !transposed};
        DLX_TRY(dlxi_onednn_run(k->state->products, &rows, c + first * (M + 1), a + first * step,
                                b + first * step, NULL));
    }
    const int64_t bands = (M + MIRRORED - 1) / MIRRORED;
    const int threads = dlxi_ranges(k, bands, MIRRORED * M);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static, 1)
    for (int64_t band = 0; band < bands; band++) {
        const int64_t end = (band + 1) * MIRRORED;
        rows_mirror(c, M, band * MIRRORED, end < M ? end : M);
    }
    return DLX_OK;
}
