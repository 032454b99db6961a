/* SPDX-License-Identifier: Apache-2.0 */
/* Muon's direction: a quintic Newton–Schulz iteration that drives a matrix's singular values
 * towards 1 (Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers"). */
#include "model/optimizer.h"

#include <math.h>
#include <string.h>

enum { STEPS = 5 };
static const float quintic[3] = {3.4445f, -4.7750f, 2.0315f};

/* X, its successor [short, long], and two [short, short]. */
int64_t dlxi_muon_scratch_count(int64_t rows, int64_t cols) {
    int64_t shorter = rows < cols ? rows : cols;
    return 2 * rows * cols + 2 * shorter * shorter;
}

/* dst[cols, rows] ← scale · src[rows, cols]ᵀ, in tiles that stay in cache. */
static void transpose(float *restrict dst, const float *restrict src, int64_t rows, int64_t cols,
                      float scale) {
    enum { TILE = 32 };
    for (int64_t r0 = 0; r0 < rows; r0 += TILE) {
        int64_t r1 = r0 + TILE < rows ? r0 + TILE : rows;
        for (int64_t c0 = 0; c0 < cols; c0 += TILE) {
            int64_t c1 = c0 + TILE < cols ? c0 + TILE : cols;
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++) dst[c * rows + r] = scale * src[r * cols + c];
        }
    }
}

/* X ← a X + (b A + c A²) X with A = X Xᵀ; swaps X and its successor. */
static dlx_status iterate(dlxi_kernels *k, float **x, float **next, float *gram, float *polynomial,
                          int64_t rows, int64_t cols) {
    DLX_TRY(k->op->product(k, gram, *x, *x, false, true, rows, rows, cols, 1.0f, 0.0f));
    memcpy(polynomial, gram, (size_t)(rows * rows) * sizeof *gram);
    DLX_TRY(k->op->product(k, polynomial, gram, gram, false, false, rows, rows, rows, quintic[2],
                           quintic[1]));
    memcpy(*next, *x, (size_t)(rows * cols) * sizeof **x);
    DLX_TRY(
        k->op->product(k, *next, polynomial, *x, false, false, rows, cols, rows, 1.0f, quintic[0]));
    float *swap = *x;
    *x = *next;
    *next = swap;
    return DLX_OK;
}

dlx_status dlxi_muon_orthogonalize(dlxi_kernels *kernels, float *dst, const float *src,
                                   int64_t rows, int64_t cols, float *scratch) {
    int64_t count = rows * cols;
    bool tall = rows > cols;
    int64_t shorter = tall ? cols : rows, longer = tall ? rows : cols;
    float *next = scratch, *x = scratch + count;
    float *gram = scratch + 2 * count, *polynomial = gram + shorter * shorter;
    float scale = (float)(1.0 / (sqrt(kernels->op->sum_of_squares(kernels, src, count)) + 1e-7));
    if (tall) {
        transpose(x, src, rows, cols, scale);
    } else {
        for (int64_t i = 0; i < count; i++) x[i] = scale * src[i];
    }
    for (int step = 0; step < STEPS; step++)
        DLX_TRY(iterate(kernels, &x, &next, gram, polynomial, shorter, longer));
    if (tall) {
        transpose(dst, x, shorter, longer, 1.0f);
    } else {
        memcpy(dst, x, (size_t)count * sizeof *dst);
    }
    return DLX_OK;
}
