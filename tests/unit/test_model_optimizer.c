/* SPDX-License-Identifier: Apache-2.0 */
/* The inner optimisers against their formulas in f64, clipping, and the schedule. */
#include "model/optimizer.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROWS = 5, COLS = 7, COUNT = ROWS * COLS, VECTOR = 9 };

/* A matrix of a block and a vector. */
typedef struct fixture {
    float data[2][COUNT], gradient[2][COUNT];
    dlxi_parameter parameter[2];
    dlxi_kernels *kernels;
} fixture;

static void draw(float *dst, int count, uint64_t stream, float scale) {
    for (int i = 0; i < count; i++) dst[i] = scale * dlxi_rng_normal(3, stream, (uint64_t)i);
}

static void set_up(fixture *f) {
    *f = (fixture){0};
    f->parameter[0] = (dlxi_parameter){
        .tensor = {.rows = ROWS, .cols = COLS, .hidden_matrix = true, .decay = true},
        .data = f->data[0],
        .gradient = f->gradient[0],
        .count = COUNT};
    f->parameter[1] = (dlxi_parameter){.tensor = {.rows = 1, .cols = VECTOR, .vector = true},
                                       .data = f->data[1],
                                       .gradient = f->gradient[1],
                                       .count = VECTOR};
    draw(f->data[0], COUNT, 0, 1.0f);
    draw(f->data[1], VECTOR, 1, 1.0f);
    assert_int_equal(dlxi_kernels_open(&f->kernels, "ref", DLXI_PRECISION_F32, 1, NULL), DLX_OK);
}

static dlxi_optimizer *open(fixture *f, dlxi_optimizer_kind kind, float clip_norm) {
    dlxi_optimizer *optimizer = NULL;
    dlxi_optimizer_options options = dlxi_optimizer_options_default(kind);
    options.clip_norm = clip_norm;
    assert_int_equal(dlxi_optimizer_open(&optimizer, &options, f->parameter, 2, f->kernels, NULL),
                     DLX_OK);
    return optimizer;
}

static void close_all(fixture *f, dlxi_optimizer *optimizer) {
    dlxi_optimizer_close(&optimizer);
    dlxi_kernels_close(&f->kernels);
}

/* Loshchilov & Hutter 2019, algorithm 2, in f64; decay on the matrix only; gradients scaled by
 * 0.25. */
static void test_adamw(void **unused) {
    (void)unused;
    fixture f;
    set_up(&f);
    dlxi_optimizer *optimizer = open(&f, DLXI_OPTIMIZER_ADAMW, 0.0f);
    double p[2][COUNT], m[2][COUNT] = {{0}}, v[2][COUNT] = {{0}};
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < f.parameter[t].count; i++) p[t][i] = (double)f.data[t][i];
    for (int step = 1; step <= 5; step++) {
        double rate = 0.01 * step;
        for (int t = 0; t < 2; t++) {
            draw(f.gradient[t], (int)f.parameter[t].count, (uint64_t)(10 * step + t), 1.0f);
            for (int i = 0; i < f.parameter[t].count; i++) {
                double g = 0.25 * (double)f.gradient[t][i];
                m[t][i] = 0.9 * m[t][i] + 0.1 * g;
                v[t][i] = 0.95 * v[t][i] + 0.05 * g * g;
                double direction = m[t][i] / (1.0 - pow(0.9, step)) /
                                   (sqrt(v[t][i] / (1.0 - pow(0.95, step))) + 1e-8);
                p[t][i] -= rate * (direction + (t == 0 ? 0.1 : 0.0) * p[t][i]);
            }
        }
        assert_int_equal(dlxi_optimizer_step(optimizer, (float)rate, 0.25f, NULL, NULL), DLX_OK);
    }
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < f.parameter[t].count; i++)
            assert_true(fabs((double)f.data[t][i] - p[t][i]) < 1e-5);
    close_all(&f, optimizer);
}

/* Clipping to 2 against the same gradients scaled by hand. In between, a step with an infinite
 * gradient changes nothing. */
static void test_clipping(void **unused) {
    (void)unused;
    static const float scales[] = {1.0f, 0.1f, 3.0f}; /* the second is not clipped */
    fixture f, by_hand;
    set_up(&f);
    set_up(&by_hand);
    dlxi_optimizer *optimizer = open(&f, DLXI_OPTIMIZER_ADAMW, 2.0f),
                   *other = open(&by_hand, DLXI_OPTIMIZER_ADAMW, 0.0f);
    for (int step = 1; step <= 3; step++) {
        double squares = 0.0, norm;
        for (int t = 0; t < 2; t++) {
            draw(f.gradient[t], (int)f.parameter[t].count, (uint64_t)(10 * step + t),
                 scales[step - 1]);
            for (int i = 0; i < f.parameter[t].count; i++)
                squares += (double)f.gradient[t][i] * (double)f.gradient[t][i];
        }
        memcpy(by_hand.gradient, f.gradient, sizeof f.gradient);
        double expected = 0.5 * sqrt(squares), clip = expected > 2.0 ? 2.0 / expected : 1.0;
        assert_true((clip == 1.0) == (step == 2));
        assert_int_equal(dlxi_optimizer_step(optimizer, 0.1f, 0.5f, &norm, NULL), DLX_OK);
        assert_true(fabs(norm - expected) < 1e-12);
        assert_int_equal(dlxi_optimizer_step(other, 0.1f, (float)(0.5 * clip), NULL, NULL), DLX_OK);
        for (int t = 0; t < 2; t++)
            for (int i = 0; i < f.parameter[t].count; i++)
                assert_true(fabsf(f.data[t][i] - by_hand.data[t][i]) < 1e-6f);
        if (step > 1) continue;
        dlx_error error = {0};
        f.gradient[0][0] = INFINITY;
        assert_int_equal(dlxi_optimizer_step(optimizer, 0.1f, 1.0f, &norm, &error), DLX_NUMERIC);
        assert_string_equal(error.message,
                            "the gradient's norm is not finite at inner step 2; try a lower "
                            "train.learning_rate or a longer warm-up");
    }
    close_all(&by_hand, other);
    close_all(&f, optimizer);
}

/* x ← x − 2 h (hᵀ x) / hᵀh for the columns of x[rows,cols], with a fixed h. */
static void reflect(double *x, int rows, int cols) {
    double h[64], squares = 0.0;
    for (int i = 0; i < rows; i++) {
        h[i] = cos(1.0 + 3.0 * i);
        squares += h[i] * h[i];
    }
    for (int j = 0; j < cols; j++) {
        double along = 0.0;
        for (int i = 0; i < rows; i++) along += h[i] * x[i * cols + j];
        for (int i = 0; i < rows; i++) x[i * cols + j] -= 2.0 * along / squares * h[i];
    }
}

static void transpose(double *dst, const double *src, int rows, int cols) {
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) dst[j * rows + i] = src[i * cols + j];
}

/* x[rows,cols] ← H x H' with reflections H, H': its own inverse. */
static void turn(double *x, int rows, int cols) {
    double other[48 * 64];
    reflect(x, rows, cols);
    transpose(other, x, rows, cols);
    reflect(other, cols, rows);
    transpose(x, other, cols, rows);
}

/* X = H Σ H' with known singular values becomes H f(Σ) H': the values from 0.0083 of the largest
 * on go to [0.69, 1.06]; those below grow by 100 at least. */
static void test_orthogonalize(void **unused) {
    (void)unused;
    enum { SHORT = 40, LONG = 56, ALL = SHORT * LONG };
    static const float sizes[] = {1.0f, 1e-6f, 1e6f};
    fixture f;
    set_up(&f);
    float *src = calloc(ALL, sizeof *src), *dst = calloc(ALL, sizeof *dst);
    float *scratch = calloc((size_t)dlxi_muon_scratch_count(SHORT, LONG), sizeof *scratch);
    for (int t = 0; t < 6; t++) {
        const int rows = t % 2 == 0 ? SHORT : LONG, cols = t % 2 == 0 ? LONG : SHORT;
        double x[ALL] = {0.0}, sigma[SHORT];
        for (int i = 0; i < SHORT; i++)
            x[i * cols + i] = sigma[i] = i < 8 ? 2e-4 * i : pow(0.0083, (SHORT - 1.0 - i) / 31.0);
        turn(x, rows, cols);
        for (int i = 0; i < ALL; i++) src[i] = sizes[t / 2] * (float)x[i];
        assert_int_equal(dlxi_muon_orthogonalize(f.kernels, dst, src, rows, cols, scratch), DLX_OK);
        for (int i = 0; i < ALL; i++) x[i] = (double)dst[i];
        turn(x, rows, cols);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++) {
                const double value = x[i * cols + j];
                const bool large = i >= 8, in = value > 0.69 && value < 1.06;
                if (i != j) assert_true(fabs(value) < 1e-2); /* A is rounded to f32 */
                if (i == j && large) assert_true(in);
                if (i == j && !large)
                    assert_true(fabs(value) < 1.06 && value > 100.0 * sigma[i] - 1e-2);
            }
    }
    memset(src, 0, ALL * sizeof *src);
    assert_int_equal(dlxi_muon_orthogonalize(f.kernels, dst, src, SHORT, LONG, scratch), DLX_OK);
    for (int i = 0; i < ALL; i++) assert_true(dst[i] == 0.0f);
    free(src);
    free(dst);
    free(scratch);
    close_all(&f, NULL);
}

/* p ← (1 − lr · decay) p − lr · 0.2 · sqrt(7) · X(g + μ m) with m ← μ m + g; the vector gets
 * AdamW. */
static void test_muon_step(void **unused) {
    (void)unused;
    fixture f;
    set_up(&f);
    dlxi_optimizer *optimizer = open(&f, DLXI_OPTIMIZER_MUON, 0.0f);
    float before[COUNT], direction[COUNT], momentum[COUNT] = {0}, lookahead[COUNT];
    float vector_before = f.data[1][3];
    float *scratch = calloc((size_t)dlxi_muon_scratch_count(ROWS, COLS), sizeof *scratch);
    for (uint64_t step = 0; step < 2; step++) {
        memcpy(before, f.data[0], sizeof before);
        draw(f.gradient[0], COUNT, 20 + step, 1.0f);
        draw(f.gradient[1], VECTOR, 30, 1.0f);
        for (int i = 0; i < COUNT; i++) {
            momentum[i] = 0.95f * momentum[i] + 2.0f * f.gradient[0][i];
            lookahead[i] = 2.0f * f.gradient[0][i] + 0.95f * momentum[i];
        }
        assert_int_equal(
            dlxi_muon_orthogonalize(f.kernels, direction, lookahead, ROWS, COLS, scratch), DLX_OK);
        assert_int_equal(dlxi_optimizer_step(optimizer, 0.1f, 2.0f, NULL, NULL), DLX_OK);
        for (int i = 0; i < COUNT; i++) {
            double expected =
                0.99 * (double)before[i] - 0.1 * 0.2 * sqrt(7.0) * (double)direction[i];
            assert_true(fabs((double)f.data[0][i] - expected) < 1e-5);
        }
    }
    /* with one gradient, each of AdamW's steps is the rate, against the sign */
    float sign = f.gradient[1][3] > 0.0f ? 1.0f : -1.0f;
    assert_true(fabsf(f.data[1][3] - (vector_before - 0.2f * sign)) < 1e-4f);
    free(scratch);
    close_all(&f, optimizer);
}

static void near(float value, double expected) {
    assert_true(fabs((double)value - expected) < 1e-7);
}

static void test_schedule(void **unused) {
    (void)unused;
    dlxi_schedule schedule = {
        .peak = 0.01f, .final_share = 0.1f, .warmup_tokens = 100, .total_tokens = 1100};
    near(dlxi_schedule_rate(&schedule, -5), 0.0);
    near(dlxi_schedule_rate(&schedule, 0), 0.0);
    near(dlxi_schedule_rate(&schedule, 25), 0.0025);
    near(dlxi_schedule_rate(&schedule, 75), 0.0075);
    near(dlxi_schedule_rate(&schedule, 100), 0.01);
    near(dlxi_schedule_rate(&schedule, 350), 0.001 + 0.009 * 0.5 * (1.0 + sqrt(0.5)));
    near(dlxi_schedule_rate(&schedule, 600), 0.0055);
    near(dlxi_schedule_rate(&schedule, 1100), 0.001);
    near(dlxi_schedule_rate(&schedule, 5000), 0.001);
    dlxi_schedule plain = {.peak = 0.01f, .final_share = 1.0f, .total_tokens = 10};
    near(dlxi_schedule_rate(&plain, 0), 0.01);
    near(dlxi_schedule_rate(&plain, 7), 0.01);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),         cmocka_unit_test(test_clipping),
        cmocka_unit_test(test_orthogonalize), cmocka_unit_test(test_muon_step),
        cmocka_unit_test(test_schedule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
