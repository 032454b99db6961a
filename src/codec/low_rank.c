/* SPDX-License-Identifier: Apache-2.0 */
/* The expansion of low-rank factors, which are stored by columns (codec.h). */
#include "codec/codec.h"
#include "codec/half.h"

/* Sums of TILE_ROWS · TILE_COLUMNS values stay in registers until all ranks are added. */
enum { TILE_ROWS = 4, TILE_COLUMNS = 16 };

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi" /* of vectors in calls, but all of these are inlined */
#endif
typedef float tile_row __attribute__((vector_size(TILE_COLUMNS * sizeof(float))));

typedef struct shape {
    int64_t p_stride, q_stride, cols;
    int rank;
} shape;

/* `rows` rows of one tile. */
static DLXI_ALWAYS_INLINE void tile(float *restrict dst, const float *restrict p,
                                    const float *restrict q, const shape *s, int rows) {
    tile_row sum[TILE_ROWS] = {{0.0f}};
    for (int k = 0; k < s->rank; k++) {
        tile_row column;
        memcpy(&column, q + k * s->q_stride, sizeof column);
        for (int r = 0; r < rows; r++) sum[r] += p[k * s->p_stride + r] * column;
    }
    for (int r = 0; r < rows; r++) memcpy(dst + r * s->cols, &sum[r], sizeof sum[r]);
}

/* The tile's part of q is read for all rows before the next, so that it stays in cache. */
DLXI_FIXED_ORDER static void expand_rows(float *restrict dst, const float *restrict p,
                                         const float *restrict q, const shape *s, int64_t count) {
    int64_t j = 0;
    for (; j + TILE_COLUMNS <= s->cols; j += TILE_COLUMNS) {
        int64_t row = 0;
        for (; row + TILE_ROWS <= count; row += TILE_ROWS)
            tile(dst + row * s->cols + j, p + row, q + j, s, TILE_ROWS);
        for (; row < count; row++) tile(dst + row * s->cols + j, p + row, q + j, s, 1);
    }
    for (; j < s->cols; j++)
        for (int64_t row = 0; row < count; row++) {
            float sum = 0.0f;
            for (int k = 0; k < s->rank; k++)
                sum += p[k * s->p_stride + row] * q[k * s->q_stride + j];
            dst[row * s->cols + j] = sum;
        }
}

void dlxi_expand_rows(float *dst, const float *p, const float *q, int64_t first, int64_t count,
                      int64_t rows, int64_t cols, int rank, int group) {
    const shape s = {dlxi_factor_stride(rows, group), dlxi_factor_stride(cols, group), cols, rank};
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    expand_rows(dst, p + first, q, &s, count);
    dlxi_arithmetic_leave(&saved);
}
