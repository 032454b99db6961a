/* SPDX-License-Identifier: Apache-2.0 */
/* Low rank: projections, orthonormal columns, spectrum, bases, and a matrix through the whole
 * exchange. */
#include "test_allreduce_mover.h"

#include <math.h>

enum { GROUP = 64 };

static float *new_factor(int64_t length, int rank) {
    float *factor = calloc((size_t)(dlxi_factor_stride(length, GROUP) * rank), sizeof *factor);
    assert_non_null(factor);
    return factor;
}

static float *random_factor(int64_t length, int rank, uint64_t stream) {
    int64_t stride = dlxi_factor_stride(length, GROUP);
    float *factor = new_factor(length, rank);
    for (int k = 0; k < rank; k++)
        for (int64_t i = 0; i < length; i++)
            factor[k * stride + i] = dlxi_rng_normal(11, stream, (uint64_t)(k * stride + i));
    return factor;
}

static double dot(const float *a, const float *b, int64_t length) {
    double sum = 0.0;
    for (int64_t i = 0; i < length; i++) sum += (double)a[i] * (double)b[i];
    return sum;
}

static void check_padding(const float *factor, int64_t length, int rank) {
    int64_t stride = dlxi_factor_stride(length, GROUP);
    for (int k = 0; k < rank; k++)
        for (int64_t i = length; i < stride; i++) assert_true(factor[k * stride + i] == 0.0f);
}

/* Products are those of the identity. */
static void check_orthonormal(const float *factor, int64_t length, int rank) {
    int64_t stride = dlxi_factor_stride(length, GROUP);
    for (int k = 0; k < rank; k++)
        for (int j = 0; j <= k; j++) {
            double product = dot(factor + k * stride, factor + j * stride, length);
            if (fabs(product - (j == k ? 1.0 : 0.0)) > 2e-6)
                fail_msg("columns %d, %d: %g", j, k, product);
        }
}

/* ---- products -------------------------------------------------------------------------------- */

static const struct {
    int64_t rows, cols;
    int rank;
} shapes[] = {{1, 1, 1},     {1, 65, 3},    {33, 7, 5},   {64, 64, 4},
              {100, 300, 9}, {67, 521, 16}, {40, 128, 17}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static void projections_are_the_products(void **state) {
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        int64_t rows = shapes[s].rows, cols = shapes[s].cols;
        int rank = shapes[s].rank;
        int64_t p_stride = dlxi_factor_stride(rows, GROUP),
                q_stride = dlxi_factor_stride(cols, GROUP);
        float *m = malloc((size_t)(rows * cols) * sizeof *m), *p = new_factor(rows, rank),
              *q = new_factor(cols, rank);
        float *basis = random_factor(cols, rank, 1), *left = random_factor(rows, rank, 2);
        assert_non_null(m);
        for (int64_t i = 0; i < rows * cols; i++) m[i] = dlxi_rng_normal(12, 0, (uint64_t)i);
        for (int64_t i = 0; i < p_stride * rank; i++) p[i] = NAN; /* all of it is written */
        for (int64_t i = 0; i < q_stride * rank; i++) q[i] = NAN;
        dlxi_project_rows(p, m, basis, rows, cols, rank, GROUP);
        dlxi_project_columns(q, m, left, rows, cols, rank, GROUP);
        check_padding(p, rows, rank);
        check_padding(q, cols, rank);
        for (int k = 0; k < rank; k++) {
            for (int64_t i = 0; i < rows; i++) {
                double expected = dot(m + i * cols, basis + k * q_stride, cols);
                assert_true(fabs((double)p[k * p_stride + i] - expected) <
                            1e-5 * (1.0 + sqrt((double)cols)));
            }
            for (int64_t j = 0; j < cols; j++) {
                double expected = 0.0;
                for (int64_t i = 0; i < rows; i++)
                    expected += (double)m[i * cols + j] * (double)left[k * p_stride + i];
                assert_true(fabs((double)q[k * q_stride + j] - expected) <
                            1e-5 * (1.0 + sqrt((double)rows)));
            }
        }
        free(m), free(p), free(q), free(basis), free(left);
    }
}

/* To the bit: k ascending, from zero, each product and each sum rounded. */
static void expansion_has_one_order(void **state) {
    (void)state;
    for (size_t s = 0; s < SHAPES; s++) {
        int64_t rows = shapes[s].rows, cols = shapes[s].cols;
        int rank = shapes[s].rank;
        int64_t p_stride = dlxi_factor_stride(rows, GROUP),
                q_stride = dlxi_factor_stride(cols, GROUP);
        float *p = random_factor(rows, rank, 3), *q = random_factor(cols, rank, 4);
        float *all = malloc((size_t)(rows * cols + 1) * sizeof *all);
        assert_non_null(all);
        all[rows * cols] = 123.0f;
        int64_t first = rows / 3; /* any part, of any length */
        dlxi_expand_rows(all, p, q, 0, first, rows, cols, rank, GROUP);
        dlxi_expand_rows(all + first * cols, p, q, first, rows - first, rows, cols, rank, GROUP);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++) {
                volatile float sum = 0.0f;
                for (int k = 0; k < rank; k++) {
                    volatile float product = p[k * p_stride + i] * q[k * q_stride + j];
                    sum = sum + product;
                }
                assert_true(all[i * cols + j] == sum);
            }
        assert_true(all[rows * cols] == 123.0f);
        free(p), free(q), free(all);
    }
}

/* ---- orthonormal columns --------------------------------------------------------------------- */

static void columns_become_orthonormal(void **state) {
    (void)state;
    const float scales[] = {1.0f, 1e-12f, 1e-40f, 1e30f};
    for (size_t s = 0; s < 4; s++) {
        const int64_t length = 200;
        int64_t stride = dlxi_factor_stride(length, GROUP);
        const int rank = 80; /* more than are removed with one rounding */
        float *factor = random_factor(length, rank, 5), *before = new_factor(length, rank);
        /* each is nearly the one before: one pass would not suffice */
        for (int k = 1; k < rank; k++)
            for (int64_t i = 0; i < length; i++)
                factor[k * stride + i] =
                    factor[(k - 1) * stride + i] + 1e-3f * factor[k * stride + i];
        for (int64_t i = 0; i < stride * rank; i++) factor[i] *= scales[s];
        factor[length] = 9.0f; /* a peer's padding is cleared */
        memcpy(before, factor, (size_t)(stride * rank) * sizeof *factor);
        dlxi_orthonormalise(factor, length, rank, GROUP);
        /* denormals have too few digits to be independent */
        if (s != 2) check_orthonormal(factor, length, rank);
        check_padding(factor, length, rank);
        /* the first keeps its direction */
        double norm = sqrt(dot(before, before, length));
        for (int64_t i = 0; i < length; i++)
            assert_true(fabs((double)before[i] / norm - (double)factor[i]) < 1e-6);
        free(factor), free(before);
    }
}

static void dependent_columns_become_zero(void **state) {
    (void)state;
    const int64_t length = 90, stride = 128;
    float *factor = random_factor(length, 6, 6);
    for (int64_t i = 0; i < length; i++) {
        factor[2 * stride + i] = factor[i] - 2.0f * factor[stride + i];
        factor[3 * stride + i] = 0.0f;
        factor[5 * stride + i] = -3.0f * factor[i];
    }
    dlxi_orthonormalise(factor, length, 6, GROUP);
    const bool zero[] = {false, false, true, true, false, true};
    for (int k = 0; k < 6; k++) {
        assert_true(fabs(dot(factor + k * stride, factor + k * stride, length) -
                         (zero[k] ? 0.0 : 1.0)) < 1e-6);
        for (int j = 0; j < k; j++)
            assert_true(fabs(dot(factor + k * stride, factor + j * stride, length)) < 1e-6);
        if (zero[k])
            for (int64_t i = 0; i < stride; i++) assert_true(factor[k * stride + i] == 0.0f);
    }
    free(factor);
    float more[3 * 64] = {0.0f}; /* more columns than there are dimensions */
    more[0] = 1.0f, more[64] = more[65] = 1.0f, more[128] = 5.0f, more[129] = -2.0f;
    dlxi_orthonormalise(more, 2, 3, GROUP);
    assert_true(more[0] == 1.0f && more[64] == 0.0f && more[65] == 1.0f && more[128] == 0.0f &&
                more[129] == 0.0f);
}

/* ---- spectrum and bases ---------------------------------------------------------------------- */

/* q = V · diag(σ) · W with orthonormal V and W has the singular values σ. */
static void spectrum_of_known_values(void **state) {
    (void)state;
    enum { RANK = 12 };
    const int64_t length = 150, stride = 192;
    const double known[RANK] = {100.0, 40.0, 40.0, 10.0, 3.0, 1.0, 1.0, 1e-1, 1e-2, 1e-3, 0.0, 0.0};
    for (int scaled = 0; scaled < 3; scaled++) {
        double scale = scaled == 0 ? 1.0 : scaled == 1 ? 1e-18 : 1e30;
        float *v = random_factor(length, RANK, 7), *w = random_factor(RANK, RANK, 8),
              *q = new_factor(length, RANK);
        dlxi_orthonormalise(v, length, RANK, GROUP);
        dlxi_orthonormalise(w, RANK, RANK, GROUP);
        for (int k = 0; k < RANK; k++)
            for (int64_t i = 0; i < length; i++) {
                double sum = 0.0;
                for (int j = 0; j < RANK; j++) /* values in mixed order */
                    sum +=
                        (double)v[j * stride + i] * known[j * 5 % RANK] * (double)w[k * GROUP + j];
                q[k * stride + i] = (float)(sum * scale);
            }
        double values[RANK], scratch[RANK * RANK];
        dlxi_spectrum(values, scratch, q, length, RANK, GROUP);
        for (int k = 0; k < RANK; k++)
            assert_true(fabs(values[k] / scale - known[k]) < 100.0 * 2e-6);
        for (int k = 1; k < RANK; k++) assert_true(values[k] <= values[k - 1] && values[k] >= 0.0);
        free(v), free(w), free(q);
    }
    float zero[3 * GROUP] = {0.0f};
    double values[3], scratch[9];
    dlxi_spectrum(values, scratch, zero, 40, 3, GROUP);
    assert_true(values[0] == 0.0 && values[2] == 0.0);
}

static void filled_columns_are_signs_of_their_own(void **state) {
    (void)state;
    enum { RANK = 5, LENGTH = 130, STRIDE = 192 };
    float *q = new_factor(LENGTH, RANK), *other = new_factor(LENGTH, RANK);
    for (int i = 0; i < RANK * STRIDE; i++) q[i] = 7.0f;
    dlxi_basis_fill(q, LENGTH, 2, RANK, GROUP, 1, 9, 4);
    for (int i = 0; i < 2 * STRIDE; i++) assert_true(q[i] == 7.0f); /* earlier columns stay */
    check_padding(q + 2 * STRIDE, LENGTH, RANK - 2);
    for (int k = 2; k < RANK; k++)
        for (int i = 0; i < LENGTH; i++) assert_true(fabsf(q[k * STRIDE + i]) == 1.0f);
    for (int k = 2; k < RANK; k++)
        for (int j = 2; j < k; j++)
            assert_true(fabs(dot(q + k * STRIDE, q + j * STRIDE, LENGTH)) < 60.0);
    const struct {
        uint64_t seed;
        uint32_t tensor;
        uint64_t round;
    } differ[] = {{1, 9, 4}, {2, 9, 4}, {1, 8, 4}, {1, 9, 5}, {1, 4, 9}};
    for (int d = 0; d < 5; d++) {
        dlxi_basis_fill(other, LENGTH, 0, RANK, GROUP, differ[d].seed, differ[d].tensor,
                        differ[d].round);
        double product = dot(q + 2 * STRIDE, other + 2 * STRIDE, LENGTH);
        assert_true(d == 0 ? product == 130.0 : fabs(product) < 60.0);
    }
    free(q), free(other);
}

static void the_next_basis_leads_with_the_largest(void **state) {
    (void)state;
    enum { RANK = 5, LENGTH = 70, STRIDE = 128 };
    float *q = random_factor(LENGTH, RANK, 10), *basis = new_factor(LENGTH, RANK),
          *scratch = new_factor(LENGTH, RANK);
    dlxi_orthonormalise(q, LENGTH, RANK, GROUP);
    float *unit = new_factor(LENGTH, RANK);
    memcpy(unit, q, RANK * STRIDE * sizeof *q);
    const float norms[RANK] = {0.5f, 4.0f, 0.0f, 64.0f, 0.25f};
    const int order[RANK] = {3, 1, 0, 4, 2};
    for (int k = 0; k < RANK; k++)
        for (int i = 0; i < LENGTH; i++) q[k * STRIDE + i] *= norms[k];
    dlxi_basis_from(basis, q, scratch, LENGTH, RANK, GROUP);
    for (int k = 0; k < RANK; k++)
        for (int i = 0; i < LENGTH; i++) {
            float expected = order[k] == 2 ? 0.0f : unit[order[k] * STRIDE + i];
            assert_true(fabsf(basis[k * STRIDE + i] - expected) < 2e-6f);
        }
    check_padding(basis, LENGTH, RANK);
    /* the smallest stride; ties keep their order */
    float tied[2 * 2] = {0.0f, 3.0f, 3.0f, 0.0f}, sorted[2 * 2], space[2 * 2];
    dlxi_basis_from(sorted, tied, space, 2, 2, 2);
    assert_true(sorted[0] == 0.0f && sorted[1] == 1.0f && sorted[2] == 1.0f && sorted[3] == 0.0f);
    free(q), free(basis), free(scratch), free(unit);
}

/* A column fills whole groups: one that is 1e4 times smaller than its neighbours loses nothing. */
static void a_group_never_mixes_ranks(void **state) {
    (void)state;
    const dlxi_quantiser quantiser = {.bits = 4, .group = GROUP};
    const int64_t length = 70, stride = dlxi_factor_stride(length, GROUP);
    assert_int_equal(stride, 128);
    float *factor = random_factor(length, 3, 13), *decoded = new_factor(length, 3);
    for (int64_t i = 0; i < length; i++) factor[stride + i] *= 1e-4f;
    uint8_t codes[6 * 34];
    assert_int_equal(dlxi_quantise(codes, factor, 6, quantiser), DLX_OK);
    dlxi_dequantise(decoded, codes, 6, quantiser);
    double error = 0.0, size = 0.0;
    for (int64_t i = 0; i < length; i++) {
        error += pow((double)decoded[stride + i] - (double)factor[stride + i], 2.0);
        size += pow((double)factor[stride + i], 2.0);
    }
    assert_true(error < 0.03 * size);
    free(factor), free(decoded);
}

/* ---- exchange -------------------------------------------------------------------------------- */

/* AllReduce of one factor per member, in place. */
static void reduce(mover *m, float **factors, int64_t length, int rank, uint64_t seed) {
    size_t count = (size_t)(dlxi_factor_stride(length, GROUP) * rank);
    const dlxi_segment segment = {4, (uint32_t)(count / GROUP)};
    float *values = malloc(m->members * count * sizeof *values);
    assert_non_null(values);
    for (uint32_t i = 0; i < m->members; i++)
        memcpy(values + i * count, factors[i], count * sizeof *values);
    mover_begin(m, &segment, 1, (dlxi_quantiser){.bits = 32, .group = GROUP}, values, count);
    mover_finish(m, seed);
    for (uint32_t i = 0; i < m->members; i++) dlxi_allreduce_result(m->member[i], factors[i]);
    free(values);
}

/* The sites' matrices share column and row spaces of rank 5: ranks 5 and 8 give their weighted
 * mean. */
static void enough_rank_gives_the_mean(void **state) {
    (void)state;
    enum { ROWS = 50, COLS = 130, TRUE_RANK = 5, P_STRIDE = 64, Q_STRIDE = 192 };
    for (uint32_t members = 1; members <= 3; members += 2)
        for (int rank = TRUE_RANK; rank <= 8; rank += 3) {
            mover *m = mover_open(members);
            float *matrix[3], *p[3], *q[3], row[COLS];
            float *left = random_factor(ROWS, TRUE_RANK, 20),
                  *right = random_factor(COLS, TRUE_RANK, 21);
            float *basis = new_factor(COLS, rank);
            double mean[ROWS][COLS] = {{0.0}}, largest = 0.0;
            dlxi_basis_fill(basis, COLS, 0, rank, GROUP, 3, 4, 0);
            dlxi_orthonormalise(basis, COLS, rank, GROUP);
            for (uint32_t s = 0; s < members; s++) {
                matrix[s] = calloc(ROWS * COLS, sizeof **matrix);
                assert_non_null(matrix[s]);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < COLS; j++) {
                        double sum = 0.0;
                        for (int k = 0; k < TRUE_RANK; k++)
                            sum += (double)dlxi_rng_normal(22, s, (uint64_t)k) *
                                   (double)left[k * P_STRIDE + i] * (double)right[k * Q_STRIDE + j];
                        matrix[s][i * COLS + j] = (float)sum;
                        mean[i][j] += (double)m->weights[s] * sum;
                    }
                p[s] = new_factor(ROWS, rank), q[s] = new_factor(COLS, rank);
                dlxi_project_rows(p[s], matrix[s], basis, ROWS, COLS, rank, GROUP);
            }
            reduce(m, p, ROWS, rank, 1);
            for (uint32_t s = 0; s < members; s++) {
                dlxi_orthonormalise(p[s], ROWS, rank, GROUP);
                dlxi_project_columns(q[s], matrix[s], p[s], ROWS, COLS, rank, GROUP);
            }
            reduce(m, q, COLS, rank, 2);
            for (uint32_t s = 0; s < members; s++) {
                assert_memory_equal(p[s], p[0], (size_t)rank * P_STRIDE * sizeof **p);
                assert_memory_equal(q[s], q[0], (size_t)rank * Q_STRIDE * sizeof **q);
            }
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < COLS; j++) largest = fmax(largest, fabs(mean[i][j]));
            for (int i = 0; i < ROWS; i++) {
                dlxi_expand_rows(row, p[0], q[0], i, 1, ROWS, COLS, rank, GROUP);
                for (int j = 0; j < COLS; j++)
                    assert_true(fabs((double)row[j] - mean[i][j]) < 1e-5 * largest);
            }
            for (uint32_t s = 0; s < members; s++) free(matrix[s]), free(p[s]), free(q[s]);
            free(left), free(right), free(basis);
            mover_close(m);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(projections_are_the_products),
        cmocka_unit_test(expansion_has_one_order),
        cmocka_unit_test(columns_become_orthonormal),
        cmocka_unit_test(dependent_columns_become_zero),
        cmocka_unit_test(spectrum_of_known_values),
        cmocka_unit_test(filled_columns_are_signs_of_their_own),
        cmocka_unit_test(the_next_basis_leads_with_the_largest),
        cmocka_unit_test(a_group_never_mixes_ranks),
        cmocka_unit_test(enough_rank_gives_the_mean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
