/* SPDX-License-Identifier: Apache-2.0 */
/* Projections for one kind of CPU. project.c includes it for each, with
 *
 *   PROJECT(name)       a name of this kind's own
 *   PROJECT_TARGET      the attribute that allows its instructions
 *   LANES               floats in one of its vectors
 *   ROWS, RANKS, WIDTH  sums in registers: ROWS · RANKS vectors, and RANKS · WIDTH; RANKS is 4
 *   QUARTERS(of)        of(q) for the first lane q of each four
 *
 * Such a tile takes ROWS + RANKS loads for ROWS · RANKS multiply-adds. */

typedef float PROJECT(vector) __attribute__((vector_size(LANES * sizeof(float))));

PROJECT_TARGET static DLXI_ALWAYS_INLINE PROJECT(vector) PROJECT(load)(const float *x) {
    PROJECT(vector) v;
    memcpy(&v, x, sizeof v);
    return v;
}

PROJECT_TARGET static DLXI_ALWAYS_INLINE float PROJECT(sum)(PROJECT(vector) v) {
    float lanes[LANES];
    memcpy(lanes, &v, sizeof v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

/* sums[k] ← the sum of v[k], for RANKS vectors at once: what is added lies in quarters of one. */
PROJECT_TARGET static DLXI_ALWAYS_INLINE void PROJECT(sums)(float sums[RANKS],
                                                            const PROJECT(vector) v[RANKS]) {
    const PROJECT(vector) left = __builtin_shufflevector(v[0], v[1], QUARTERS(LOW)) +
                                 __builtin_shufflevector(v[0], v[1], QUARTERS(HIGH));
    const PROJECT(vector) right = __builtin_shufflevector(v[2], v[3], QUARTERS(LOW)) +
                                  __builtin_shufflevector(v[2], v[3], QUARTERS(HIGH));
    const PROJECT(vector) all = __builtin_shufflevector(left, right, QUARTERS(FIRST)) +
                                __builtin_shufflevector(left, right, QUARTERS(SECOND));
    float lanes[LANES];
    memcpy(lanes, &all, sizeof all);
    for (int half = LANES / 2; half >= RANKS; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    memcpy(sums, lanes, RANKS * sizeof *sums);
}

/* p[k][r] += row r of m times column k of q, over `width` values. */
PROJECT_TARGET static DLXI_ALWAYS_INLINE void
PROJECT(tile_of_rows)(float *restrict p, const float *restrict m, const float *restrict q,
                      const shape *s, int64_t width, int rows, int ranks) {
    PROJECT(vector) sum[ROWS][RANKS] = {{{0.0f}}};
    int64_t j = 0;
    for (; j + LANES <= width; j += LANES) {
        PROJECT(vector) column[RANKS];
        for (int k = 0; k < ranks; k++) column[k] = PROJECT(load)(q + k * s->q_stride + j);
        for (int r = 0; r < rows; r++) {
            const PROJECT(vector) row = PROJECT(load)(m + r * s->cols + j);
            for (int k = 0; k < ranks; k++) sum[r][k] += row * column[k];
        }
    }
    for (int r = 0; r < rows; r++) {
        float totals[RANKS];
        if (ranks == RANKS)
            PROJECT(sums)(totals, sum[r]);
        else
            totals[0] = PROJECT(sum)(sum[r][0]);
        for (int k = 0; k < ranks; k++) {
            float total = totals[k];
            for (int64_t i = j; i < width; i++)
                total += m[r * s->cols + i] * q[k * s->q_stride + i];
            p[k * s->p_stride + r] += total;
        }
    }
}

PROJECT_TARGET static DLXI_ALWAYS_INLINE void
PROJECT(band_of_rows)(float *restrict p, const float *restrict m, const float *restrict q,
                      const shape *s, int64_t width, int rows) {
    int k = 0;
    for (; k + RANKS <= s->rank; k += RANKS)
        PROJECT(tile_of_rows)(p + k * s->p_stride, m, q + k * s->q_stride, s, width, rows, RANKS);
    for (; k < s->rank; k++)
        PROJECT(tile_of_rows)(p + k * s->p_stride, m, q + k * s->q_stride, s, width, rows, 1);
}

PROJECT_TARGET static void PROJECT(rows)(float *restrict p, const float *restrict m,
                                         const float *restrict q, const shape *s) {
    for (int64_t first = 0; first < s->cols; first += BLOCK) {
        const int64_t width = min(BLOCK, s->cols - first);
        int64_t i = 0;
        for (; i + ROWS <= s->rows; i += ROWS)
            PROJECT(band_of_rows)(p + i, m + i * s->cols + first, q + first, s, width, ROWS);
        for (; i < s->rows; i++)
            PROJECT(band_of_rows)(p + i, m + i * s->cols + first, q + first, s, width, 1);
    }
}

/* q[k][j] += Σ_i p[k][i] m[i][j], over `length` rows, for `width` vectors of j, which is all that
 * the rows of m have. */
PROJECT_TARGET static DLXI_ALWAYS_INLINE void
PROJECT(tile_of_columns)(float *restrict q, const float *restrict m, const float *restrict p,
                         const shape *s, int64_t length, int width, int ranks) {
    PROJECT(vector) sum[RANKS][WIDTH];
    for (int k = 0; k < ranks; k++)
        for (int w = 0; w < width; w++) sum[k][w] = PROJECT(load)(q + k * s->q_stride + w * LANES);
    for (int64_t i = 0; i < length; i++) {
        PROJECT(vector) row[WIDTH];
        for (int w = 0; w < width; w++) row[w] = PROJECT(load)(m + (i * width + w) * LANES);
        for (int k = 0; k < ranks; k++)
            for (int w = 0; w < width; w++) sum[k][w] += p[k * s->p_stride + i] * row[w];
    }
    for (int k = 0; k < ranks; k++)
        for (int w = 0; w < width; w++)
            memcpy(q + k * s->q_stride + w * LANES, &sum[k][w], sizeof sum[k][w]);
}

/* Copies the rows of a panel side by side first: where they lie, a multiple of 4 KiB apart, a cache
 * holds few of them. */
PROJECT_TARGET static DLXI_ALWAYS_INLINE void
PROJECT(panel_of_columns)(float *restrict q, const float *restrict m, const float *restrict p,
                          const shape *s, int64_t length, int width) {
    float panel[PANEL_ROWS * WIDTH * LANES];
    for (int64_t i = 0; i < length; i++)
        memcpy(panel + i * width * LANES, m + i * s->cols, (size_t)(width * LANES) * sizeof *panel);
    int k = 0;
    for (; k + RANKS <= s->rank; k += RANKS) PROJECT(tile_of_columns)
    (q + k * s->q_stride, panel, p + k * s->p_stride, s, length, width, RANKS);
    for (; k < s->rank; k++) PROJECT(tile_of_columns)
    (q + k * s->q_stride, panel, p + k * s->p_stride, s, length, width, 1);
}

PROJECT_TARGET static void PROJECT(columns)(float *restrict q, const float *restrict m,
                                            const float *restrict p, const shape *s) {
    for (int64_t first = 0; first < s->rows; first += PANEL_ROWS) {
        const int64_t length = min(PANEL_ROWS, s->rows - first);
        const float *block = m + first * s->cols, *factor = p + first;
        int64_t j = 0;
        for (; j + WIDTH * LANES <= s->cols; j += WIDTH * LANES)
            PROJECT(panel_of_columns)(q + j, block + j, factor, s, length, WIDTH);
        for (; j + LANES <= s->cols; j += LANES)
            PROJECT(panel_of_columns)(q + j, block + j, factor, s, length, 1);
        for (int k = 0; k < s->rank; k++)
            for (int64_t i = 0; i < length; i++)
                for (int64_t c = j; c < s->cols; c++)
                    q[k * s->q_stride + c] += factor[k * s->p_stride + i] * block[i * s->cols + c];
    }
}

#undef PROJECT
#undef PROJECT_TARGET
#undef LANES
#undef ROWS
#undef RANKS
#undef WIDTH
#undef QUARTERS
