/* SPDX-License-Identifier: Apache-2.0 */
/* Low-rank products: projections of a matrix on a basis (site-local), and the expansion of factors
 * (replicated). Factors are stored by columns (codec.h). */
#include "codec/codec.h"
#include "codec/half.h"

static inline int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void padding_clear(float *factor, int64_t length, int rank, int64_t stride) {
    for (int k = 0; k < rank; k++)
        for (int64_t i = length; i < stride; i++) factor[k * stride + i] = 0.0f;
}

/* ---- site-local ------------------------------------------------------------------------------ */

enum { LANES = 16, RANKS = 4, ROWS = 8, TILE_COLUMNS = 256 };

/* dst[k] = m[0..cols) · q[k], for RANKS columns of q at once, each summed in LANES partial sums. */
static DLXI_ALWAYS_INLINE void project_row(float dst[RANKS], const float *restrict m,
                                           const float *restrict q, int64_t cols, int64_t stride) {
    float sum[RANKS][LANES] = {{0.0f}};
    int64_t whole = cols / LANES * LANES;
    for (int64_t j = 0; j < whole; j += LANES)
        for (int k = 0; k < RANKS; k++)
            for (int l = 0; l < LANES; l++) sum[k][l] += m[j + l] * q[k * stride + j + l];
    for (int k = 0; k < RANKS; k++) {
        dst[k] = 0.0f;
        for (int l = 0; l < LANES; l++) dst[k] += sum[k][l];
        for (int64_t j = whole; j < cols; j++) dst[k] += m[j] * q[k * stride + j];
    }
}

DLXI_CLONES static void project_rows(float *restrict p, const float *restrict m,
                                     const float *restrict q, int64_t rows, int64_t cols, int rank,
                                     int64_t p_stride, int64_t q_stride) {
    for (int64_t i = 0; i < rows; i++) {
        const float *row = m + i * cols;
        int k = 0;
        for (; k + RANKS <= rank; k += RANKS) {
            float products[RANKS];
            project_row(products, row, q + k * q_stride, cols, q_stride);
            for (int r = 0; r < RANKS; r++) p[(k + r) * p_stride + i] = products[r];
        }
        for (; k < rank; k++) {
            float sum = 0.0f;
            for (int64_t j = 0; j < cols; j++) sum += row[j] * q[k * q_stride + j];
            p[k * p_stride + i] = sum;
        }
    }
}

void dlxi_project_rows(float *p, const float *m, const float *q, int64_t rows, int64_t cols,
                       int rank, int group) {
    int64_t p_stride = dlxi_factor_stride(rows, group);
    project_rows(p, m, q, rows, cols, rank, p_stride, dlxi_factor_stride(cols, group));
    padding_clear(p, rows, rank, p_stride);
}

/* q[0..width) += Σ_i p[i] · m[i][0..width), for `rows` ≤ ROWS rows. */
static DLXI_ALWAYS_INLINE void rows_add(float *restrict q, const float *restrict m,
                                        const float *restrict p, int64_t rows, int64_t cols,
                                        int64_t width) {
    if (rows == ROWS) {
        for (int64_t j = 0; j < width; j++) {
            float sum = q[j];
            for (int i = 0; i < ROWS; i++) sum += p[i] * m[i * cols + j];
            q[j] = sum;
        }
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++) q[j] += p[i] * m[i * cols + j];
}

DLXI_CLONES static void project_columns(float *restrict q, const float *restrict m,
                                        const float *restrict p, int64_t rows, int64_t cols,
                                        int rank, int64_t q_stride, int64_t p_stride) {
    for (int64_t first = 0; first < cols; first += TILE_COLUMNS) {
        int64_t width = min(TILE_COLUMNS, cols - first);
        for (int k = 0; k < rank; k++)
            for (int64_t j = 0; j < width; j++) q[k * q_stride + first + j] = 0.0f;
        for (int64_t i = 0; i < rows; i += ROWS)
            for (int k = 0; k < rank; k++)
                rows_add(q + k * q_stride + first, m + i * cols + first, p + k * p_stride + i,
                         min(ROWS, rows - i), cols, width);
    }
}

void dlxi_project_columns(float *q, const float *m, const float *p, int64_t rows, int64_t cols,
                          int rank, int group) {
    int64_t q_stride = dlxi_factor_stride(cols, group);
    project_columns(q, m, p, rows, cols, rank, q_stride, dlxi_factor_stride(rows, group));
    padding_clear(q, cols, rank, q_stride);
}

/* ---- replicated ------------------------------------------------------------------------------ */

enum { EXPAND_RANKS = 4 }; /* products added to a sum between its load and its store */

DLXI_FIXED_ORDER static void expand_row(float *restrict dst, const float *restrict p,
                                        const float *restrict q, int64_t p_stride, int64_t q_stride,
                                        int64_t cols, int rank) {
    for (int64_t first = 0; first < cols; first += TILE_COLUMNS) {
        int64_t width = min(TILE_COLUMNS, cols - first);
        float *sums = dst + first;
        for (int64_t j = 0; j < width; j++) sums[j] = 0.0f;
        int k = 0;
        for (; k + EXPAND_RANKS <= rank; k += EXPAND_RANKS) {
            const float *column = q + k * q_stride + first, *factor = p + k * p_stride;
            for (int64_t j = 0; j < width; j++) {
                float sum = sums[j];
                for (int r = 0; r < EXPAND_RANKS; r++)
                    sum += factor[r * p_stride] * column[r * q_stride + j];
                sums[j] = sum;
            }
        }
        for (; k < rank; k++) {
            float factor = p[k * p_stride];
            for (int64_t j = 0; j < width; j++) sums[j] += factor * q[k * q_stride + first + j];
        }
    }
}

void dlxi_expand_row(float *dst, const float *p, const float *q, int64_t row, int64_t rows,
                     int64_t cols, int rank, int group) {
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    expand_row(dst, p + row, q, dlxi_factor_stride(rows, group), dlxi_factor_stride(cols, group),
               cols, rank);
    dlxi_arithmetic_leave(&saved);
}
