/* SPDX-License-Identifier: Apache-2.0 */
/* Projections for every kind of CPU that this one can be, against their formula in f64. */
#include "codec/project.c"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { GROUP = 6, ROWS_MAX = 300, COLS_MAX = 1100, RANK_MAX = 9, STRIDE_MAX = COLS_MAX + GROUP };

static float m[ROWS_MAX * COLS_MAX], p[RANK_MAX * STRIDE_MAX], q[RANK_MAX * STRIDE_MAX];
static float result[RANK_MAX * STRIDE_MAX];

static void fill(float *dst, size_t count, uint64_t stream) {
    for (size_t i = 0; i < count; i++) dst[i] = dlxi_rng_normal(21, stream, i);
}

/* Each sum has at most its terms' rounding; normal factors make it of size sqrt(terms). */
static void check(float got, double expected, int64_t terms) {
    assert_true(fabs((double)got - expected) < 1e-6 * (double)terms + 1e-5);
}

static void check_shape(projection *rows, projection *columns, const shape *s) {
    memset(result, 0, sizeof result);
    rows(result, m, q, s);
    for (int k = 0; k < s->rank; k++)
        for (int64_t i = 0; i < s->p_stride; i++) {
            double sum = 0.0;
            for (int64_t j = 0; i < s->rows && j < s->cols; j++)
                sum += (double)m[i * s->cols + j] * (double)q[k * s->q_stride + j];
            check(result[k * s->p_stride + i], sum, s->cols);
        }
    memset(result, 0, sizeof result);
    columns(result, m, p, s);
    for (int k = 0; k < s->rank; k++)
        for (int64_t j = 0; j < s->q_stride; j++) {
            double sum = 0.0;
            for (int64_t i = 0; j < s->cols && i < s->rows; i++)
                sum += (double)m[i * s->cols + j] * (double)p[k * s->p_stride + i];
            check(result[k * s->q_stride + j], sum, s->rows);
        }
}

/* Tiles that are whole and not, in each direction; more than a block, and than a panel. */
static void check_kind(projection *rows, projection *columns) {
    static const int64_t of_rows[] = {1, 2, 5, 130, 300}, of_cols[] = {1, 7, 16, 63, 100, 1100};
    static const int of_ranks[] = {1, 4, 9};
    for (size_t r = 0; r < sizeof of_rows / sizeof *of_rows; r++)
        for (size_t c = 0; c < sizeof of_cols / sizeof *of_cols; c++)
            for (size_t k = 0; k < sizeof of_ranks / sizeof *of_ranks; k++) {
                const shape s = shape_of(of_rows[r], of_cols[c], of_ranks[k], GROUP);
                check_shape(rows, columns, &s);
            }
}

static void every_kind_gives_the_products(void **state) {
    (void)state;
    fill(m, sizeof m / sizeof *m, 0);
    fill(p, sizeof p / sizeof *p, 1);
    fill(q, sizeof q / sizeof *q, 2);
    check_kind(plain_rows, plain_columns);
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        check_kind(avx2_rows, avx2_columns);
    if (__builtin_cpu_supports("avx512f")) check_kind(avx512_rows, avx512_columns);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_kind_gives_the_products)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
