/* SPDX-License-Identifier: Apache-2.0 */
/* The vector loops: fast against ref on the same input, over odd lengths, with 1 thread and 3. */
#include "kernel_test.h"

#include <math.h>

/* C and N up to 65 stay on one thread; the last shapes are split among three. */
static const int64_t shapes[][2] = {{1, 1},  {3, 1},  {1, 3},   {3, 17},   {17, 3},    {33, 33},
                                    {65, 5}, {5, 65}, {17, 64}, {64, 256}, {67, 1023}, {301, 257}};
enum { SHAPES = sizeof shapes / sizeof *shapes };
static const int64_t lengths[] = {1, 3, 15, 16, 17, 33, 65, 1000, 100003};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

/* Gradients of parameters are f32 sums of N terms ~ 1: they reach ~ sqrt(N), and N roundings to
 * half a unit of that add up to ~ sqrt(N) · sqrt(N) · 2^-24. */
static double sum_tolerance(int64_t N) {
    return ldexp(8.0 + 2.0 * (double)N, -24);
}

static void check_layernorm(const pair *p, int64_t N, int64_t C) {
    case_label("layernorm N=%d C=%d threads %d", (int)N, (int)C, p->k[FAST]->threads);
    float *x = buffer(N * C, -1, 3), *gain = buffer(C, 0, 2), *bias = buffer(C, -1, 1),
          *dy = buffer(N * C, -1, 1);
    float *y[2], *mean[2], *rstd[2], *dx[2], *dgain[2], *dbias[2];
    dgain[REF] = buffer(C, -1, 1);
    dbias[REF] = buffer(C, -1, 1);
    dgain[FAST] = buffer_copy(dgain[REF], C);
    dbias[FAST] = buffer_copy(dbias[REF], C);
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        y[i] = buffer_nan(N * C);
        mean[i] = buffer_nan(N);
        rstd[i] = buffer_nan(N);
        dx[i] = buffer_nan(N * C);
        OK(op->layernorm_forward(p->k[i], y[i], mean[i], rstd[i], x, gain, bias, N, C, 1e-5f));
        OK(op->layernorm_backward(p->k[i], dx[i], dgain[i], dbias[i], dy, x, mean[i], rstd[i], gain,
                                  N, C));
    }
    /* a row of one element has variance 0 and rstd 316; of three, a variance can be small too */
    const double amplified = C < 5 ? 1e-3 : 1e-5;
    expect_close("y", y[FAST], y[REF], N * C, amplified, 1e-5);
    expect_close("mean", mean[FAST], mean[REF], N, 1e-6, 1e-6);
    expect_close("rstd", rstd[FAST], rstd[REF], N, 0.0, amplified);
    expect_close("dx", dx[FAST], dx[REF], N * C, amplified, amplified);
    expect_close("dgain", dgain[FAST], dgain[REF], C, sum_tolerance(N) + (C < 5 ? 1e-3 : 1e-5),
                 1e-5);
    expect_close("dbias", dbias[FAST], dbias[REF], C, sum_tolerance(N), 0.0);
    case_end();
}

static void check_rmsnorm(const pair *p, int64_t N, int64_t C) {
    case_label("rmsnorm N=%d C=%d threads %d", (int)N, (int)C, p->k[FAST]->threads);
    float *x = buffer(N * C, 0.1, 2), *gain = buffer(C, 0, 2), *dy = buffer(N * C, -1, 1);
    float *y[2], *rstd[2], *dx[2], *dgain[2];
    dgain[REF] = buffer(C, -1, 1);
    dgain[FAST] = buffer_copy(dgain[REF], C);
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        y[i] = buffer_nan(N * C);
        rstd[i] = buffer_nan(N);
        dx[i] = buffer_nan(N * C);
        OK(op->rmsnorm_forward(p->k[i], y[i], rstd[i], x, gain, N, C, 1e-5f));
        OK(op->rmsnorm_backward(p->k[i], dx[i], dgain[i], dy, x, rstd[i], gain, N, C));
    }
    expect_close("y", y[FAST], y[REF], N * C, 0.0, 2e-6);
    expect_close("rstd", rstd[FAST], rstd[REF], N, 0.0, 2e-6);
    expect_close("dx", dx[FAST], dx[REF], N * C, 2e-5, 2e-5);
    expect_close("dgain", dgain[FAST], dgain[REF], C, sum_tolerance(N), 2e-6);
    case_end();
}

static void check_activation(const pair *p, int64_t count, dlxi_activation kind) {
    case_label("activation %d count %d threads %d", kind, (int)count, p->k[FAST]->threads);
    float *x = buffer(count, -12, 12), *dy = buffer(count, -2, 2), *y[2], *dx[2], *in_place[2];
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        y[i] = buffer_nan(count);
        dx[i] = buffer_nan(count);
        in_place[i] = buffer_copy(dy, count);
        OK(op->activation_forward(p->k[i], y[i], x, kind, count));
        OK(op->activation_backward(p->k[i], dx[i], dy, x, kind, count));
        OK(op->activation_backward(p->k[i], in_place[i], in_place[i], x, kind, count));
    }
    /* ref's 1 + tanh cancels to 0 if GELU is below 1e-15; the slope's two terms cancel near
     * −0.75 */
    expect_close("y", y[FAST], y[REF], count, 1e-9, 4e-6);
    expect_close("dx", dx[FAST], dx[REF], count, 4e-6, 4e-6);
    expect_close("dx in place", in_place[FAST], dx[FAST], count, 0.0, 0.0);
    expect_close("dx in place", in_place[REF], dx[REF], count, 0.0, 0.0);
    case_end();
}

static void check_swiglu(const pair *p, int64_t count) {
    case_label("swiglu count %d threads %d", (int)count, p->k[FAST]->threads);
    float *gate = buffer(count, -20, 20), *up = buffer(count, -2, 2), *dy = buffer(count, -2, 2);
    float *y[2], *dgate[2], *dup[2];
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        y[i] = buffer_nan(count);
        dgate[i] = buffer_nan(count);
        dup[i] = buffer_nan(count);
        OK(op->swiglu_forward(p->k[i], y[i], gate, up, count));
        OK(op->swiglu_backward(p->k[i], dgate[i], dup[i], dy, gate, up, count));
    }
    expect_close("y", y[FAST], y[REF], count, 1e-12, 2e-6);
    /* 1 + g (1 − s) cancels near g = −1.28 */
    expect_close("dgate", dgate[FAST], dgate[REF], count, 4e-6, 2e-6);
    expect_close("dup", dup[FAST], dup[REF], count, 1e-12, 2e-6);
    case_end();
}

static void check_add_and_squares(const pair *p, int64_t count) {
    case_label("add, sum_of_squares count %d threads %d", (int)count, p->k[FAST]->threads);
    float *x = buffer(count, -2, 2), *y[2];
    y[REF] = buffer(count, -2, 2);
    y[FAST] = buffer_copy(y[REF], count);
    double squares[2];
    for (int i = 0; i < 2; i++) {
        OK(p->k[i]->op->add(p->k[i], y[i], x, count));
        squares[i] = p->k[i]->op->sum_of_squares(p->k[i], x, count);
    }
    expect_close("y", y[FAST], y[REF], count, 0.0, 0.0);
    assert_true(fabs(squares[FAST] - squares[REF]) <= 1e-13 * (double)count * squares[REF]);
    case_end();
}

static void check_rope(const pair *p, int64_t N, int64_t T, int64_t heads, int64_t D) {
    case_label("rope N=%d T=%d heads=%d D=%d threads %d", (int)N, (int)T, (int)heads, (int)D,
               p->k[FAST]->threads);
    float *x = buffer(N * heads * D, -1, 1), *y[2];
    for (int i = 0; i < 2; i++) y[i] = buffer_copy(x, N * heads * D);
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < 2; i++)
            OK(p->k[i]->op->rope(p->k[i], y[i], N, T, heads, D, 1e4f, turn == 1));
        expect_close(turn == 0 ? "rotated" : "rotated back", y[FAST], y[REF], N * heads * D, 4e-7,
                     0.0);
    }
    expect_close("rotated there and back", y[FAST], x, N * heads * D, 4e-7, 0.0);
    case_end();
}

static void check_embedding(const pair *p, int64_t N, int64_t T, int64_t C, bool with_position) {
    enum { VOCABULARY = 5 }; /* so small that tokens repeat */
    case_label("embedding N=%d T=%d C=%d position %d threads %d", (int)N, (int)T, (int)C,
               with_position, p->k[FAST]->threads);
    uint32_t *token = buffer_tokens(N, VOCABULARY);
    float *table = buffer(VOCABULARY * C, -1, 1), *position = buffer(T * C, -1, 1),
          *dy = buffer(N * C, -1, 1);
    float *y[2], *dtable[2], *dposition[2];
    dtable[REF] = buffer(VOCABULARY * C, -1, 1);
    dposition[REF] = buffer(T * C, -1, 1);
    dtable[FAST] = buffer_copy(dtable[REF], VOCABULARY * C);
    dposition[FAST] = buffer_copy(dposition[REF], T * C);
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        y[i] = buffer_nan(N * C);
        OK(op->embedding_forward(p->k[i], y[i], token, table, with_position ? position : NULL, N, T,
                                 C));
        OK(op->embedding_backward(p->k[i], dtable[i], with_position ? dposition[i] : NULL, dy,
                                  token, N, T, C));
    }
    expect_close("y", y[FAST], y[REF], N * C, 0.0, 0.0);
    expect_close("dtable", dtable[FAST], dtable[REF], VOCABULARY * C, sum_tolerance(N), 0.0);
    expect_close("dposition", dposition[FAST], dposition[REF], T * C, sum_tolerance(N), 0.0);
    case_end();
}

/* Logits are within ± spread; at 200, exp overflows unless the row's maximum is subtracted. */
static void check_cross_entropy(const pair *p, int64_t N, int64_t V, bool gradient, double spread) {
    case_label("cross_entropy N=%d V=%d gradient %d spread %g threads %d", (int)N, (int)V, gradient,
               spread, p->k[FAST]->threads);
    const float scale = 0.125f;
    float *original = buffer(N * V, -spread, spread), *logits[2];
    uint32_t *target = buffer_tokens(N, (uint32_t)V);
    double loss[2] = {1.5, 1.5};
    for (int i = 0; i < 2; i++) {
        logits[i] = buffer_copy(original, N * V);
        OK(p->k[i]->op->cross_entropy(p->k[i], &loss[i], logits[i], target, N, V, gradient, scale));
    }
    assert_true(fabs(loss[FAST] - loss[REF]) <= 1e-6 * (fabs(loss[REF]) + 1.0));
    /* a probability's relative error is the exponent's error, about spread · 2^-23 */
    expect_close("logits", logits[FAST], logits[REF], N * V, 1e-8, 1e-6 + spread * 1e-6);
    if (!gradient) expect_close("kept logits", logits[FAST], original, N * V, 0.0, 0.0);
    case_end();
}

static void check_adamw(const pair *p, int64_t count, int64_t step) {
    case_label("adamw count %d step %d threads %d", (int)count, (int)step, p->k[FAST]->threads);
    const dlxi_adamw settings = {2e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.25f, step};
    float *gradient = buffer(count, -1, 1), *parameter[2], *m[2], *v[2];
    parameter[REF] = buffer(count, -1, 1);
    m[REF] = buffer(count, -0.1, 0.1);
    v[REF] = buffer(count, 0, 0.1);
    parameter[FAST] = buffer_copy(parameter[REF], count);
    m[FAST] = buffer_copy(m[REF], count);
    v[FAST] = buffer_copy(v[REF], count);
    for (int i = 0; i < 2; i++)
        OK(p->k[i]->op->adamw(p->k[i], parameter[i], m[i], v[i], gradient, count, &settings));
    expect_close("parameter", parameter[FAST], parameter[REF], count, 2e-7, 2e-7);
    expect_close("m", m[FAST], m[REF], count, 2e-8, 2e-7);
    expect_close("v", v[FAST], v[REF], count, 0.0, 4e-7);
    case_end();
}

static void test_norms(void **state) {
    const pair *p = *state;
    for (int i = 0; p[i].k[FAST] != NULL; i++)
        for (int s = 0; s < SHAPES; s++) {
            check_layernorm(&p[i], shapes[s][0], shapes[s][1]);
            check_rmsnorm(&p[i], shapes[s][0], shapes[s][1]);
        }
}

static void test_pointwise(void **state) {
    const pair *p = *state;
    for (int i = 0; p[i].k[FAST] != NULL; i++)
        for (int l = 0; l < LENGTHS; l++) {
            check_activation(&p[i], lengths[l], DLXI_GELU);
            check_activation(&p[i], lengths[l], DLXI_RELU);
            check_swiglu(&p[i], lengths[l]);
            check_add_and_squares(&p[i], lengths[l]);
            check_adamw(&p[i], lengths[l], 1 + l * 3);
        }
}

static void test_embeddings(void **state) {
    const pair *p = *state;
    for (int i = 0; p[i].k[FAST] != NULL; i++)
        for (int s = 0; s < SHAPES; s++) {
            const int64_t N = shapes[s][0] * 3, C = shapes[s][1];
            check_embedding(&p[i], N, shapes[s][0], C, s % 2 == 0);
            check_rope(&p[i], N, shapes[s][0], 1 + s % 3, 2 * (1 + s * 5));
            /* the table must grow */
            check_rope(&p[i], 2 * N, 2 * shapes[s][0], 1 + s % 3, 2 * (1 + s * 5));
        }
}

static void test_cross_entropy(void **state) {
    const pair *p = *state;
    for (int i = 0; p[i].k[FAST] != NULL; i++)
        for (int s = 0; s < SHAPES; s++)
            for (int variant = 0; variant < 4; variant++)
                check_cross_entropy(&p[i], shapes[s][0], shapes[s][1], variant % 2 == 0,
                                    variant < 2 ? 4.0 : 200.0);
}

/* A diverged run shows: NaN is not hidden. */
static void test_nan_is_not_hidden(void **state) {
    const pair *p = *state;
    enum { COUNT = 40 };
    for (int i = 0; p[i].k[FAST] != NULL; i++) {
        dlxi_kernels *k = p[i].k[FAST];
        case_label("NaN");
        float *x = buffer(COUNT, -1, 1), *y = buffer(COUNT, -1, 1);
        const uint32_t target = 3;
        double loss = 0.0;
        x[21] = NAN;
        OK(k->op->activation_forward(k, y, x, DLXI_GELU, COUNT));
        assert_true(isnan(y[21]) && !isnan(y[20]));
        OK(k->op->swiglu_forward(k, y, x, x, COUNT));
        assert_true(isnan(y[21]) && !isnan(y[20]));
        assert_true(isnan(k->op->sum_of_squares(k, x, COUNT)));
        OK(k->op->cross_entropy(k, &loss, x, &target, 1, COUNT, false, 1.0f));
        assert_true(isnan(loss));
        case_end();
    }
}

static pair opened[PAIRS + 1];
static int opened_count;

static int set_up(void **state) {
    opened_count = open_pairs(opened);
    *state = opened;
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    close_pairs(opened, opened_count);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_pointwise),
        cmocka_unit_test(test_embeddings),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_nan_is_not_hidden),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
