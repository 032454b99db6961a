/* SPDX-License-Identifier: Apache-2.0 */
/* LayerNorm and RMSNorm. Formulas as in ref.c; sums in f32 lanes. */
#include "kernels/fast.h"

#include "base/simd.h"

#include <math.h>
#include <string.h>

/* ---- gradients of parameters ----------------------------------------------------------------- */

/* *out ← [ranges,2C] zeros, for each range's dgain[C] and dbias[C]; NULL for a single range, which
 * adds directly. */
static dlx_status partial_sums_reserve(dlxi_kernels *k, float **out, int ranges, int64_t C) {
    *out = NULL;
    if (ranges == 1) return DLX_OK;
    DLX_TRY(dlxi_scratch_reserve(&k->state->partial, (size_t)(ranges * 2 * C), sizeof(float)));
    *out = k->state->partial.data;
    memset(*out, 0, (size_t)(ranges * 2 * C) * sizeof(float));
    return DLX_OK;
}

static void partial_sums_join(float *dgain, float *dbias, const float *partial, int ranges,
                              int64_t C) {
    for (int r = 0; partial != NULL && r < ranges; r++) {
        for (int64_t c = 0; c < C; c++) dgain[c] += partial[r * 2 * C + c];
        for (int64_t c = 0; dbias != NULL && c < C; c++) dbias[c] += partial[(r * 2 + 1) * C + c];
    }
}

/* ---- LayerNorm ------------------------------------------------------------------------------- */

DLXI_CLONES static void layernorm_rows(float *y, float *mean, float *rstd, const float *x,
                                       const float *gain, const float *bias, int64_t begin,
                                       int64_t end, int64_t C, float epsilon) {
    for (int64_t n = begin; n < end; n++) {
        const float *row = x + n * C;
        float *out = y + n * C;
        float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) sum += row[c];
        const float centre = sum / (float)C;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < C; c++) squares += (row[c] - centre) * (row[c] - centre);
        const float scale = 1.0f / sqrtf(squares / (float)C + epsilon);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) out[c] = (row[c] - centre) * scale * gain[c] + bias[c];
        mean[n] = centre;
        rstd[n] = scale;
    }
}

dlx_status dlxi_fast_layernorm_forward(dlxi_kernels *k, float *y, float *mean, float *rstd,
                                       const float *x, const float *gain, const float *bias,
                                       int64_t N, int64_t C, float epsilon) {
    const int ranges = dlxi_ranges(k, N, C);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        layernorm_rows(y, mean, rstd, x, gain, bias, dlxi_range_begin(N, r, ranges),
                       dlxi_range_begin(N, r + 1, ranges), C, epsilon);
    return DLX_OK;
}

DLXI_CLONES static void layernorm_backward_rows(float *dx, float *dgain, float *dbias,
                                                const float *dy, const float *x, const float *mean,
                                                const float *rstd, const float *gain, int64_t begin,
                                                int64_t end, int64_t C) {
    for (int64_t n = begin; n < end; n++) {
        const float *row = x + n * C, *up = dy + n * C;
        float *out = dx + n * C;
        const float centre = mean[n], scale = rstd[n];
        float sum_g = 0.0f, sum_gh = 0.0f;
#pragma omp simd reduction(+ : sum_g, sum_gh)
        for (int64_t c = 0; c < C; c++) {
            float h = (row[c] - centre) * scale, g = up[c] * gain[c];
            sum_g += g;
            sum_gh += g * h;
            dgain[c] += up[c] * h;
            dbias[c] += up[c];
        }
        const float mean_g = sum_g / (float)C, mean_gh = sum_gh / (float)C;
#pragma omp simd
        for (int64_t c = 0; c < C; c++) {
            float h = (row[c] - centre) * scale;
            out[c] = scale * (up[c] * gain[c] - mean_g - h * mean_gh);
        }
    }
}

dlx_status dlxi_fast_layernorm_backward(dlxi_kernels *k, float *dx, float *dgain, float *dbias,
                                        const float *dy, const float *x, const float *mean,
                                        const float *rstd, const float *gain, int64_t N,
                                        int64_t C) {
    const int ranges = dlxi_ranges(k, N, C);
    float *partial = NULL;
    DLX_TRY(partial_sums_reserve(k, &partial, ranges, C));
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++) {
        float *gains = partial != NULL ? partial + r * 2 * C : dgain;
        float *biases = partial != NULL ? gains + C : dbias;
        layernorm_backward_rows(dx, gains, biases, dy, x, mean, rstd, gain,
                                dlxi_range_begin(N, r, ranges), dlxi_range_begin(N, r + 1, ranges),
                                C);
    }
    partial_sums_join(dgain, dbias, partial, ranges, C);
    return DLX_OK;
}

/* ---- RMSNorm --------------------------------------------------------------------------------- */

DLXI_CLONES static void rmsnorm_rows(float *y, float *rstd, const float *x, const float *gain,
                                     int64_t begin, int64_t end, int64_t C, float epsilon) {
    for (int64_t n = begin; n < end; n++) {
        const float *row = x + n * C;
        float *out = y + n * C;
        float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
        for (int64_t c = 0; c < C; c++) squares += row[c] * row[c];
        const float scale = 1.0f / sqrtf(squares / (float)C + epsilon);
#pragma omp simd
        for (int64_t c = 0; c < C; c++) out[c] = row[c] * scale * gain[c];
        rstd[n] = scale;
    }
}

dlx_status dlxi_fast_rmsnorm_forward(dlxi_kernels *k, float *y, float *rstd, const float *x,
                                     const float *gain, int64_t N, int64_t C, float epsilon) {
    const int ranges = dlxi_ranges(k, N, C);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        rmsnorm_rows(y, rstd, x, gain, dlxi_range_begin(N, r, ranges),
                     dlxi_range_begin(N, r + 1, ranges), C, epsilon);
    return DLX_OK;
}

DLXI_CLONES static void rmsnorm_backward_rows(float *dx, float *dgain, const float *dy,
                                              const float *x, const float *rstd, const float *gain,
                                              int64_t begin, int64_t end, int64_t C) {
    for (int64_t n = begin; n < end; n++) {
        const float *row = x + n * C, *up = dy + n * C;
        float *out = dx + n * C;
        const float scale = rstd[n];
        float sum_gh = 0.0f;
#pragma omp simd reduction(+ : sum_gh)
        for (int64_t c = 0; c < C; c++) {
            float h = row[c] * scale;
            sum_gh += up[c] * gain[c] * h;
            dgain[c] += up[c] * h;
        }
        const float mean_gh = sum_gh / (float)C;
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
            out[c] = scale * (up[c] * gain[c] - row[c] * scale * mean_gh);
    }
}

dlx_status dlxi_fast_rmsnorm_backward(dlxi_kernels *k, float *dx, float *dgain, const float *dy,
                                      const float *x, const float *rstd, const float *gain,
                                      int64_t N, int64_t C) {
    const int ranges = dlxi_ranges(k, N, C);
    float *partial = NULL;
    DLX_TRY(partial_sums_reserve(k, &partial, ranges, C));
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        rmsnorm_backward_rows(dx, partial != NULL ? partial + r * 2 * C : dgain, dy, x, rstd, gain,
                              dlxi_range_begin(N, r, ranges), dlxi_range_begin(N, r + 1, ranges),
                              C);
    partial_sums_join(dgain, NULL, partial, ranges, C);
    return DLX_OK;
}
