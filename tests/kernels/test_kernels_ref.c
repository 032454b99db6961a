/* SPDX-License-Identifier: Apache-2.0 */
/* The reference: against values from PyTorch in f64, and every backward pass against central
 * differences of its forward pass. */
#include "kernel_test.h"

#include <math.h>
#include <string.h>

static dlxi_kernels *k; /* ref */

/* ---- known values: torch 1.13.1, float64 ----------------------------------------------------- */

static void known(const char *what, const float *value, const double *expected, int count) {
    for (int i = 0; i < count; i++)
        if (!(fabs((double)value[i] - expected[i]) <= 2e-7 * (1.0 + fabs(expected[i]))))
            fail_msg("%s[%d] is %.9g, not %.9g", what, i, (double)value[i], expected[i]);
}

static void test_known_pointwise(void **state) {
    (void)state;
    const float x[] = {-3.0f, -0.75f, -0.1f, 0.0f, 0.5f, 2.0f, 6.0f};
    const double gelu[] = {-0.0036373920817729943, -0.17003944483437966, -0.04601724895456484, 0.0,
                           0.34571400982514394,    1.954597694087775,    5.9999999999156035};
    const double relu[] = {0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 6.0};
    const float gate[] = {-4.0f, -1.0f, 0.25f, 3.0f}, up[] = {2.0f, -1.0f, 0.5f, 1.5f};
    const double swiglu[] = {-0.14388967969673247, 0.2689414213699951, 0.07027206261072476,
                             4.28658357070095};
    float y[7];
    OK(k->op->activation_forward(k, y, x, DLXI_GELU, 7));
    known("gelu", y, gelu, 7);
    OK(k->op->activation_forward(k, y, x, DLXI_RELU, 7));
    known("relu", y, relu, 7);
    OK(k->op->swiglu_forward(k, y, gate, up, 4));
    known("swiglu", y, swiglu, 4);
}

static void test_known_norms_and_loss(void **state) {
    (void)state;
    const float x[] = {1.0f, 2.0f, 4.0f, -1.0f, 0.5f, 0.25f}, gain[] = {1.0f, 2.0f, -1.0f},
                bias[] = {0.0f, 0.5f, 1.0f};
    const double layernorm[] = {-1.069041531450298,  -0.03452076572514917, -0.3363019143128718,
                                -1.3969851740426587, 2.2779811305997475,   0.492005391257215};
    const double rmsnorm[] = {0.3779642030348929, 1.5118568121395717, -1.5118568121395717,
                              -1.511840613957195, 1.511840613957195,  -0.37796015348929873};
    const uint32_t target[] = {2, 0};
    float y[6], mean[2], rstd[2], logits[6];
    OK(k->op->layernorm_forward(k, y, mean, rstd, x, gain, bias, 2, 3, 1e-5f));
    known("layernorm", y, layernorm, 6);
    OK(k->op->rmsnorm_forward(k, y, rstd, x, gain, 2, 3, 1e-5f));
    known("rmsnorm", y, rmsnorm, 6);
    double loss = 1.0;
    memcpy(logits, x, sizeof logits);
    OK(k->op->cross_entropy(k, &loss, logits, target, 2, 3, false, 1.0f));
    assert_true(fabs(loss - 1.0 - 2.3639582059582) < 1e-12);
}

static void test_known_attention(void **state) {
    (void)state;
    const float q[] = {1.0f, 2.0f, -1.0f, 0.5f, 0.25f, -2.0f},
                key[] = {0.5f, 1.0f, 2.0f, -1.0f, -0.5f, 0.25f};
    const float value[] = {1.0f, -1.0f, 2.0f, 0.0f, 3.0f, 5.0f};
    const double expected[] = {
        1.0, -1.0, 1.1458202499936194, -0.8541797500063807, 2.055748772391823, 0.43575163378288784};
    const double expected_lse[] = {1.7677669529663687, 0.1576136272402476, 1.9119291191918668};
    float out[6], lse[3];
    OK(k->op->attention_forward(k, out, lse, q, key, value, 1, 3, 1, 1, 2));
    known("out", out, expected, 6);
    known("lse", lse, expected_lse, 3);
}

static void test_known_adamw(void **state) {
    (void)state;
    const float gradients[2][3] = {{0.1f, -0.2f, 0.3f}, {0.05f, 0.4f, -0.1f}};
    const double expected[2][3] = {{0.989000001, -1.9880000005, 0.4895000003333333},
                                   {0.978618071513434, -1.9896457398902383, 0.4849674334972932}};
    float parameter[] = {1.0f, -2.0f, 0.5f}, m[3] = {0}, v[3] = {0}, doubled[3];
    for (int step = 0; step < 2; step++) {
        const dlxi_adamw settings = {1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, step + 1};
        /* gradient_scale halves it again */
        for (int i = 0; i < 3; i++) doubled[i] = 2.0f * gradients[step][i];
        OK(k->op->adamw(k, parameter, m, v, doubled, 3, &settings));
        known("parameter", parameter, expected[step], 3);
    }
}

/* Products, positions and rotation by hand. */
static void test_known_by_hand(void **state) {
    (void)state;
    float y[6];
    const float x[] = {1, 2, 3, 4, 5, 6}, weight[] = {1, 0, -1, 2, 2, 2}, bias[] = {10, 20};
    OK(k->op->linear_forward(k, y, x, weight, bias, 2, 3, 2));
    known("linear", y, (const double[]){8, 32, 8, 50}, 4);

    /* a' = {{1,3},{2,4}}, b' = {{1,-1},{0,2}}, a'b' = {{1,5},{2,6}} */
    float c[] = {1, 2, 3, 4};
    const float a[] = {1, 2, 3, 4}, b[] = {1, 0, -1, 2};
    OK(k->op->product(k, c, a, b, true, true, 2, 2, 2, 3.0f, 8.0f));
    known("product", c, (const double[]){3 + 8, 15 + 16, 6 + 24, 18 + 32}, 4);

    const uint32_t token[] = {1, 0, 1};
    const float table[] = {4, 5, 2, 3}, narrow[] = {4, 2}, places[] = {10, 20};
    OK(k->op->embedding_forward(k, y, token, table, NULL, 3, 2, 2));
    known("embedding", y, (const double[]){2, 3, 4, 5, 2, 3}, 6);
    OK(k->op->embedding_forward(k, y, token, narrow, places, 3, 2, 1));
    known("embedding with positions", y, (const double[]){12, 24, 12}, 3);

    /* one head of D = 4, theta 100: at position 1, pair (0,2) rotates by 1 and pair (1,3) by 0.1 */
    float rotated[] = {1, 2, 3, 4, 1, 2, 3, 4};
    const double rope[] = {1,
                           2,
                           3,
                           4,
                           cos(1) - 3 * sin(1),
                           2 * cos(0.1) - 4 * sin(0.1),
                           sin(1) + 3 * cos(1),
                           2 * sin(0.1) + 4 * cos(0.1)};
    OK(k->op->rope(k, rotated, 2, 2, 1, 4, 100.0f, false));
    known("rope", rotated, rope, 8);
}

/* ---- central differences --------------------------------------------------------------------- */

enum { INPUTS_MAX = 3 };

/* An operation y = f(inputs) and its backward pass from dy. */
typedef struct problem {
    const char *name;
    int inputs;
    float *input[INPUTS_MAX];
    int64_t count[INPUTS_MAX];
    bool parameter[INPUTS_MAX]; /* its gradient accumulates */
    int64_t y_count;
    float *y, *dy;
    void (*forward)(const struct problem *p);
    void (*backward)(const struct problem *p, float *const *gradient);
    int64_t shape[5];
    dlxi_activation kind;
    float *kept[2]; /* between forward and backward */
} problem;

static double loss_at(const problem *p, float *x, double value) {
    const float before = *x;
    *x = (float)value;
    p->forward(p);
    *x = before;
    double loss = 0.0;
    for (int64_t i = 0; i < p->y_count; i++) loss += (double)p->dy[i] * (double)p->y[i];
    return loss;
}

/* Σ dy·y differentiated by *x: two central differences, extrapolated (Richardson). The step is
 * large against the rounding of y (2^-24 · |y| / 2^-5 ~ 2e-6 per term), and the error is only
 * step⁴. */
static double difference(const problem *p, float *x) {
    const double step = ldexp(1.0, -4);
    double slope[2];
    for (int i = 0; i < 2; i++) {
        const double h = i == 0 ? step : step / 2, at = (double)*x;
        const double high = (double)(float)(at + h), low = (double)(float)(at - h);
        slope[i] = (loss_at(p, x, high) - loss_at(p, x, low)) / (high - low);
    }
    return (4.0 * slope[1] - slope[0]) / 3.0;
}

static void check(problem *p) {
    case_label("%s", p->name);
    p->y = buffer_nan(p->y_count);
    if (p->dy == NULL) p->dy = buffer(p->y_count, -1, 1);
    float *gradient[INPUTS_MAX], *before[INPUTS_MAX];
    for (int i = 0; i < p->inputs; i++) {
        before[i] = buffer(p->count[i], -3, 3);
        gradient[i] =
            p->parameter[i] ? buffer_copy(before[i], p->count[i]) : buffer_nan(p->count[i]);
    }
    p->forward(p);
    p->backward(p, gradient);
    for (int i = 0; i < p->inputs; i++)
        for (int64_t j = 0; j < p->count[i]; j++) {
            const double expected =
                difference(p, &p->input[i][j]) + (p->parameter[i] ? (double)before[i][j] : 0.0);
            if (!(fabs((double)gradient[i][j] - expected) <= 2e-4 * (1.0 + fabs(expected))))
                fail_msg("%s: gradient of input %d at %lld is %.7g, difference says %.7g", p->name,
                         i, (long long)j, (double)gradient[i][j], expected);
        }
    case_end();
}

static void add_input(problem *p, float *input, int64_t count, bool parameter) {
    p->input[p->inputs] = input;
    p->count[p->inputs] = count;
    p->parameter[p->inputs] = parameter;
    p->inputs++;
}

static void linear_y(const problem *p) {
    OK(k->op->linear_forward(k, p->y, p->input[0], p->input[1], p->input[2], p->shape[0],
                             p->shape[1], p->shape[2]));
}

static void linear_d(const problem *p, float *const *g) {
    OK(k->op->linear_backward(k, g[0], g[1], g[2], p->dy, p->input[0], p->input[1], p->shape[0],
                              p->shape[1], p->shape[2]));
}

static void test_linear(void **state) {
    (void)state;
    problem p = {.name = "linear",
                 .shape = {3, 5, 4},
                 .y_count = 12,
                 .forward = linear_y,
                 .backward = linear_d};
    add_input(&p, buffer(15, -1, 1), 15, false);
    add_input(&p, buffer(20, -1, 1), 20, true);
    add_input(&p, buffer(4, -1, 1), 4, true);
    check(&p);
}

static void layernorm_y(const problem *p) {
    OK(k->op->layernorm_forward(k, p->y, p->kept[0], p->kept[1], p->input[0], p->input[1],
                                p->input[2], p->shape[0], p->shape[1], 1e-5f));
}

static void layernorm_d(const problem *p, float *const *g) {
    OK(k->op->layernorm_backward(k, g[0], g[1], g[2], p->dy, p->input[0], p->kept[0], p->kept[1],
                                 p->input[1], p->shape[0], p->shape[1]));
}

static void rmsnorm_y(const problem *p) {
    OK(k->op->rmsnorm_forward(k, p->y, p->kept[1], p->input[0], p->input[1], p->shape[0],
                              p->shape[1], 1e-5f));
}

static void rmsnorm_d(const problem *p, float *const *g) {
    OK(k->op->rmsnorm_backward(k, g[0], g[1], p->dy, p->input[0], p->kept[1], p->input[1],
                               p->shape[0], p->shape[1]));
}

static void test_norms(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        problem p = {.name = i == 0 ? "layernorm" : "rmsnorm",
                     .shape = {3, 9},
                     .y_count = 27,
                     .kept = {buffer_nan(3), buffer_nan(3)},
                     .forward = i == 0 ? layernorm_y : rmsnorm_y,
                     .backward = i == 0 ? layernorm_d : rmsnorm_d};
        add_input(&p, buffer(27, -2, 2), 27, false);
        add_input(&p, buffer(9, -1, 1), 9, true);
        if (i == 0) add_input(&p, buffer(9, -1, 1), 9, true);
        check(&p);
    }
}

static void activation_y(const problem *p) {
    OK(k->op->activation_forward(k, p->y, p->input[0], p->kind, p->y_count));
}

static void activation_d(const problem *p, float *const *g) {
    OK(k->op->activation_backward(k, g[0], p->dy, p->input[0], p->kind, p->y_count));
}

static void swiglu_y(const problem *p) {
    OK(k->op->swiglu_forward(k, p->y, p->input[0], p->input[1], p->y_count));
}

static void swiglu_d(const problem *p, float *const *g) {
    OK(k->op->swiglu_backward(k, g[0], g[1], p->dy, p->input[0], p->input[1], p->y_count));
}

static void test_pointwise(void **state) {
    (void)state;
    problem gelu = {.name = "gelu",
                    .y_count = 40,
                    .kind = DLXI_GELU,
                    .forward = activation_y,
                    .backward = activation_d};
    add_input(&gelu, buffer(40, -4, 4), 40, false);
    check(&gelu);
    problem relu = {.name = "relu",
                    .y_count = 40,
                    .kind = DLXI_RELU,
                    .forward = activation_y,
                    .backward = activation_d};
    add_input(&relu, buffer(40, -4, 4), 40, false);
    for (int i = 0; i < 40; i++)
        if (fabsf(relu.input[0][i]) < 0.1f) relu.input[0][i] = 0.5f; /* no step crosses the kink */
    check(&relu);
    problem swiglu = {.name = "swiglu", .y_count = 40, .forward = swiglu_y, .backward = swiglu_d};
    add_input(&swiglu, buffer(40, -4, 4), 40, false);
    add_input(&swiglu, buffer(40, -2, 2), 40, false);
    check(&swiglu);
}

static void rope_y(const problem *p) {
    memcpy(p->y, p->input[0], (size_t)p->y_count * sizeof(float));
    OK(k->op->rope(k, p->y, p->shape[0], p->shape[1], p->shape[2], p->shape[3], 100.0f, false));
}

static void rope_d(const problem *p, float *const *g) {
    memcpy(g[0], p->dy, (size_t)p->y_count * sizeof(float));
    OK(k->op->rope(k, g[0], p->shape[0], p->shape[1], p->shape[2], p->shape[3], 100.0f, true));
}

static const uint32_t tokens[] = {2, 0, 2, 1, 3, 2};

static void embedding_y(const problem *p) {
    OK(k->op->embedding_forward(k, p->y, tokens, p->input[0], p->input[1], 6, 3, 2));
}

static void embedding_d(const problem *p, float *const *g) {
    OK(k->op->embedding_backward(k, g[0], g[1], p->dy, tokens, 6, 3, 2));
}

static void test_positions(void **state) {
    (void)state;
    problem rope = {.name = "rope",
                    .shape = {6, 3, 2, 4},
                    .y_count = 48,
                    .forward = rope_y,
                    .backward = rope_d};
    add_input(&rope, buffer(48, -1, 1), 48, false);
    check(&rope);
    problem embedding = {
        .name = "embedding", .y_count = 12, .forward = embedding_y, .backward = embedding_d};
    add_input(&embedding, buffer(8, -1, 1), 8, true);
    add_input(&embedding, buffer(6, -1, 1), 6, true);
    check(&embedding);
}

static void attention_y(const problem *p) {
    const int64_t *s = p->shape;
    OK(k->op->attention_forward(k, p->y, p->kept[0], p->input[0], p->input[1], p->input[2], s[0],
                                s[1], s[2], s[3], s[4]));
}

static void attention_d(const problem *p, float *const *g) {
    const int64_t *s = p->shape;
    p->forward(p);
    OK(k->op->attention_backward(k, g[0], g[1], g[2], p->dy, p->y, p->kept[0], p->input[0],
                                 p->input[1], p->input[2], s[0], s[1], s[2], s[3], s[4]));
}

static void test_attention(void **state) {
    (void)state;
    static const int64_t shapes[][5] = {{1, 4, 1, 1, 3}, {2, 3, 4, 2, 2}, {1, 5, 3, 1, 4}};
    for (int i = 0; i < 3; i++) {
        const int64_t *s = shapes[i], q_count = s[0] * s[1] * s[2] * s[4],
                      kv_count = s[0] * s[1] * s[3] * s[4];
        problem p = {.name = "attention",
                     .y_count = q_count,
                     .forward = attention_y,
                     .backward = attention_d};
        memcpy(p.shape, s, sizeof p.shape);
        p.kept[0] = buffer_nan(s[0] * s[1] * s[2]);
        add_input(&p, buffer(q_count, -1, 1), q_count, false);
        add_input(&p, buffer(kv_count, -1, 1), kv_count, false);
        add_input(&p, buffer(kv_count, -1, 1), kv_count, false);
        check(&p);
    }
}

/* y is the loss; dy is its scale. */
static void cross_entropy_y(const problem *p) {
    double loss = 0.0;
    memcpy(p->kept[0], p->input[0], (size_t)p->count[0] * sizeof(float));
    OK(k->op->cross_entropy(k, &loss, p->kept[0], tokens, p->shape[0], p->shape[1], false, 0.0f));
    p->y[0] = (float)loss;
}

static void cross_entropy_d(const problem *p, float *const *g) {
    double loss = 0.0;
    memcpy(g[0], p->input[0], (size_t)p->count[0] * sizeof(float));
    OK(k->op->cross_entropy(k, &loss, g[0], tokens, p->shape[0], p->shape[1], true, p->dy[0]));
}

static void test_cross_entropy(void **state) {
    (void)state;
    problem p = {.name = "cross_entropy",
                 .shape = {6, 5},
                 .y_count = 1,
                 .forward = cross_entropy_y,
                 .backward = cross_entropy_d,
                 .kept = {buffer_nan(30)}};
    add_input(&p, buffer(30, -2, 2), 30, false);
    check(&p);
}

static int set_up(void **state) {
    (void)state;
    k = open_kernels("ref", DLXI_PRECISION_AUTO, 1);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    dlxi_kernels_close(&k);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_pointwise), cmocka_unit_test(test_known_norms_and_loss),
        cmocka_unit_test(test_known_attention), cmocka_unit_test(test_known_adamw),
        cmocka_unit_test(test_known_by_hand),   cmocka_unit_test(test_linear),
        cmocka_unit_test(test_norms),           cmocka_unit_test(test_pointwise),
        cmocka_unit_test(test_positions),       cmocka_unit_test(test_attention),
        cmocka_unit_test(test_cross_entropy),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
