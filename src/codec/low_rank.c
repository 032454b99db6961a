/* SPDX-License-Identifier: Apache-2.0 */
/* The expansion of low-rank factors, which are stored by columns (codec.h). */
#include "codec/codec.h"
#include "codec/half.h"

static inline int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* EXPAND_RANKS products are added to a sum between its load and its store. */
enum { TILE_COLUMNS = 256, EXPAND_RANKS = 4 };

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
