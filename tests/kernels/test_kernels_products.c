/* SPDX-License-Identifier: Apache-2.0 */
/* Products and attention: fast against ref on the same input, over odd shapes, in both precisions,
 * with 1 thread and 3. */
#include "kernel_test.h"

#include <math.h>
#include <string.h>

static const int64_t odd[] = {1, 3, 17, 33, 65};
enum { ODD = sizeof odd / sizeof *odd };

/* The error allowed per Σ|a||b|, which ref computes: rounding two factors to bf16 (8 significant
 * bits) costs at most 2 · 2^-8, and the f32 sum of K products a random walk of half units 2^-24. */
static double unit_of(bool bf16, int64_t K) {
    const double sum = ldexp(4.0 + 2.0 * sqrt((double)K), -24);
    return bf16 ? ldexp(1.01, -7) + sum : sum;
}

static float *absolute(const float *x, int64_t count) {
    float *copy = buffer_copy(x, count);
    for (int64_t i = 0; i < count; i++) copy[i] = fabsf(copy[i]);
    return copy;
}

static bool rounded(const pair *p, int64_t I, int64_t O) {
    return p->bf16 && I >= 32 && O >= 32; /* thinner products stay f32 */
}

static void check_linear(const pair *p, int64_t N, int64_t I, int64_t O, bool with_bias,
                         bool with_dx) {
    case_label("linear N=%d I=%d O=%d bias %d dx %d bf16 %d threads %d", (int)N, (int)I, (int)O,
               with_bias, with_dx, p->bf16, p->k[FAST]->threads);
    float *x = buffer(N * I, -1, 1), *weight = buffer(O * I, -1, 1), *bias = buffer(O, -1, 1);
    float *dy = buffer(N * O, -1, 1), *dweight[2], *dbias[2], *y[2], *dx[2];
    dweight[REF] = buffer(O * I, -1, 1);
    dbias[REF] = buffer(O, -1, 1);
    dweight[FAST] = buffer_copy(dweight[REF], O * I);
    dbias[FAST] = buffer_copy(dbias[REF], O);
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        y[i] = buffer_nan(N * O);
        dx[i] = with_dx ? buffer_nan(N * I) : NULL;
        /* the address may have been another weight's */
        op->weights_changed(p->k[i], NULL);
        OK(op->linear_forward(p->k[i], y[i], x, weight, with_bias ? bias : NULL, N, I, O));
        OK(op->linear_backward(p->k[i], dx[i], dweight[i], with_bias ? dbias[i] : NULL, dy, x,
                               weight, N, I, O));
    }

    dlxi_kernels *ref = p->k[REF];
    float *ax = absolute(x, N * I), *aw = absolute(weight, O * I), *ady = absolute(dy, N * O);
    float *abias = absolute(bias, O);
    float *sy = buffer_nan(N * O), *sdx = buffer_nan(N * I), *sdw = absolute(dweight[REF], O * I),
          *sdb = absolute(dbias[REF], O);
    for (int64_t i = 0; i < O * I; i++) sdw[i] = 1.0f;
    for (int64_t i = 0; i < O; i++) sdb[i] = 1.0f;
    OK(ref->op->linear_forward(ref, sy, ax, aw, abias, N, I, O));
    OK(ref->op->linear_backward(ref, sdx, sdw, sdb, ady, ax, aw, N, I, O));
    const bool bf16 = rounded(p, I, O);
    expect_within("y", y[FAST], y[REF], sy, N * O, unit_of(bf16, I));
    if (with_dx) expect_within("dx", dx[FAST], dx[REF], sdx, N * I, unit_of(bf16, O));
    expect_within("dweight", dweight[FAST], dweight[REF], sdw, O * I, unit_of(bf16, N));
    expect_within("dbias", dbias[FAST], dbias[REF], sdb, O, unit_of(false, N));
    case_end();
}

static void test_linear(void **state) {
    (void)state;
    pair pairs[PAIRS];
    const int count = open_pairs(pairs);
    for (int p = 0; p < count; p++) {
        for (int n = 0; n < ODD; n++)
            for (int i = 0; i < ODD; i++)
                for (int o = 0; o < ODD; o++)
                    check_linear(&pairs[p], odd[n], odd[i], odd[o], (n + i + o) % 2 == 0,
                                 (n + i) % 3 != 0);
        /* large enough for three threads */
        check_linear(&pairs[p], 130, 257, 301, true, true);
        check_linear(&pairs[p], 130, 257, 301, false, true);
        check_linear(&pairs[p], 257, 64, 192, false, true);
    }
    close_pairs(pairs, count);
}

static void check_product(const pair *p, int64_t M, int64_t N, int64_t K, bool ta, bool tb,
                          float alpha, float beta) {
    case_label("product M=%d N=%d K=%d transposed %d %d alpha %g beta %g bf16 %d", (int)M, (int)N,
               (int)K, ta, tb, (double)alpha, (double)beta, p->bf16);
    float *a = buffer(M * K, -1, 1), *b = buffer(K * N, -1, 1), *c[2];
    c[REF] = beta == 0.0f ? buffer_nan(M * N) : buffer(M * N, -1, 1);
    c[FAST] = buffer_copy(c[REF], M * N);
    float *scale = absolute(c[REF], M * N), *aa = absolute(a, M * K), *ab = absolute(b, K * N);
    for (int i = 0; i < 2; i++)
        OK(p->k[i]->op->product(p->k[i], c[i], a, b, ta, tb, M, N, K, alpha, beta));
    dlxi_kernels *ref = p->k[REF];
    OK(ref->op->product(ref, scale, aa, ab, ta, tb, M, N, K, fabsf(alpha), fabsf(beta)));
    expect_within("c", c[FAST], c[REF], scale, M * N, unit_of(rounded(p, M, N), K));
    case_end();
}

static void test_product(void **state) {
    (void)state;
    pair pairs[PAIRS];
    const int count = open_pairs(pairs);
    static const int64_t shapes[][3] = {{1, 1, 1},   {3, 17, 33}, {33, 65, 17},
                                        {65, 33, 3}, {64, 64, 1}, {130, 70, 90}};
    static const float factors[][2] = {{1.0f, 0.0f}, {-2.5f, 0.0f}, {1.0f, 1.0f}, {0.5f, -1.5f}};
    for (int p = 0; p < count; p++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (int t = 0; t < 4; t++)
                for (int f = 0; f < 4; f++)
                    check_product(&pairs[p], shapes[s][0], shapes[s][1], shapes[s][2], t % 2 != 0,
                                  t / 2 != 0, factors[f][0], factors[f][1]);
    close_pairs(pairs, count);
}

/* b = a Z with Z symmetric: a bᵀ is symmetric without being a square. */
static void check_symmetric_product(const pair *p, int64_t M, int64_t K, bool transposed) {
    case_label("symmetric product M=%d K=%d transposed %d threads %d", (int)M, (int)K, transposed,
               p->k[FAST]->threads);
    dlxi_kernels *ref = p->k[REF];
    float *a = buffer(M * K, -1, 1), *b = buffer_nan(M * K), *c[2];
    float *half = buffer(K * K, -1, 1), *z = buffer_nan(K * K);
    OK(ref->op->product(ref, z, half, half, false, true, K, K, K, 1.0f, 0.0f));
    if (transposed) {
        OK(ref->op->product(ref, b, z, a, false, false, K, M, K, 1.0f, 0.0f));
    } else {
        OK(ref->op->product(ref, b, a, z, false, false, M, K, K, 1.0f, 0.0f));
    }
    for (int i = 0; i < 2; i++) {
        c[i] = buffer_nan(M * M);
        OK(p->k[i]->op->symmetric_product(p->k[i], c[i], a, b, transposed, M, K));
    }
    float *scale = buffer_nan(M * M), *aa = absolute(a, M * K), *ab = absolute(b, M * K);
    OK(ref->op->symmetric_product(ref, scale, aa, ab, transposed, M, K));
    expect_within("c", c[FAST], c[REF], scale, M * M, unit_of(false, K));
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < i; j++) assert_true(c[FAST][i * M + j] == c[FAST][j * M + i]);
    case_end();
}

static void test_symmetric_product(void **state) {
    (void)state;
    pair pairs[PAIRS];
    const int count = open_pairs(pairs);
    static const int64_t rows[] = {1, 2, 17, 64, 65, 130, 200, 300};
    for (int p = 0; p < count; p++)
        for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
            for (int t = 0; t < 2; t++) {
                check_symmetric_product(&pairs[p], rows[r], 33, t != 0);
                check_symmetric_product(&pairs[p], rows[r], 1, t != 0);
            }
    close_pairs(pairs, count);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* f32: scores ~ sqrt(D)/3 have an absolute error of about 1e-6, which becomes the relative error of
 * p and of every result. bf16: q, k, v, dout, p and dscore have errors up to 2^-8 each, and a
 * score's error, ~ 2^-8 · sqrt(2 D / 9) / sqrt(D) · |q||k|, is p's relative error: together below
 * 1%, doubled for backward. */
static void check_attention(const pair *p, int64_t B, int64_t T, int64_t heads, int64_t kv_heads,
                            int64_t D) {
    case_label("attention B=%d T=%d heads=%d kv=%d D=%d bf16 %d threads %d", (int)B, (int)T,
               (int)heads, (int)kv_heads, (int)D, p->bf16, p->k[FAST]->threads);
    const int64_t q_count = B * T * heads * D, kv_count = B * T * kv_heads * D;
    float *q = buffer(q_count, -1, 1), *key = buffer(kv_count, -1, 1),
          *value = buffer(kv_count, -1, 1);
    float *dout = buffer(q_count, -1, 1), *out[2], *lse[2], *dq[2], *dkey[2], *dvalue[2];
    for (int i = 0; i < 2; i++) {
        const dlxi_operations *op = p->k[i]->op;
        out[i] = buffer_nan(q_count);
        lse[i] = buffer_nan(B * heads * T);
        dq[i] = buffer_nan(q_count);
        dkey[i] = buffer_nan(kv_count);
        dvalue[i] = buffer_nan(kv_count);
        OK(op->attention_forward(p->k[i], out[i], lse[i], q, key, value, B, T, heads, kv_heads, D));
        OK(op->attention_backward(p->k[i], dq[i], dkey[i], dvalue[i], dout, out[i], lse[i], q, key,
                                  value, B, T, heads, kv_heads, D));
    }
    const double forward = p->bf16 ? 0.01 : 4e-6, backward = p->bf16 ? 0.02 : 1e-5;
    expect_near("out", out[FAST], out[REF], q_count, forward);
    expect_close("out", out[FAST], out[REF], q_count, 4 * forward, 0.0);
    expect_close("lse", lse[FAST], lse[REF], B * heads * T, p->bf16 ? 0.02 : 4e-6, 1e-6);
    /* at T = 1 the probability is 1 and dq, dkey are 0 but for rounding */
    if (T > 1) expect_near("dq", dq[FAST], dq[REF], q_count, backward);
    if (T > 1) expect_near("dkey", dkey[FAST], dkey[REF], kv_count, backward);
    expect_close("dq", dq[FAST], dq[REF], q_count, 8 * backward, 8 * backward);
    expect_close("dkey", dkey[FAST], dkey[REF], kv_count, 8 * backward, 8 * backward);
    expect_near("dvalue", dvalue[FAST], dvalue[REF], kv_count, backward);
    case_end();
}

static void test_attention(void **state) {
    (void)state;
    pair pairs[PAIRS];
    const int count = open_pairs(pairs);
    static const int64_t lengths[] = {1, 3, 17, 33, 65, 130}, widths[] = {1, 6, 17, 32, 65};
    static const int64_t heads[][2] = {{1, 1}, {4, 2}, {6, 2}, {3, 1}};
    for (int p = 0; p < count; p++)
        for (size_t t = 0; t < sizeof lengths / sizeof *lengths; t++)
            for (size_t d = 0; d < sizeof widths / sizeof *widths; d++) {
                const int64_t *h = heads[(t + d) % 4];
                check_attention(&pairs[p], 1 + (int64_t)(t + d) % 3, lengths[t], h[0], h[1],
                                widths[d]);
            }
    close_pairs(pairs, count);
}

/* Later positions do not affect an output. */
static void test_attention_is_causal(void **state) {
    (void)state;
    enum { B = 2, T = 70, HEADS = 2, D = 16, CUT = 37, COUNT = B * T * HEADS * D };
    pair pairs[PAIRS];
    const int count = open_pairs(pairs);
    for (int p = 0; p < count; p++) {
        for (int i = 0; i < 2; i++) {
            dlxi_kernels *k = pairs[p].k[i];
            case_label("causal attention, %s", k->op->name);
            float *q = buffer(COUNT, -1, 1), *key = buffer(COUNT, -1, 1),
                  *value = buffer(COUNT, -1, 1);
            float *before = buffer_nan(COUNT), *after = buffer_nan(COUNT),
                  *lse = buffer_nan(B * HEADS * T);
            OK(k->op->attention_forward(k, before, lse, q, key, value, B, T, HEADS, HEADS, D));
            for (int b = 0; b < B; b++)
                for (int j = CUT * HEADS * D; j < T * HEADS * D; j++)
                    key[b * T * HEADS * D + j] = value[b * T * HEADS * D + j] = 3.0f;
            OK(k->op->attention_forward(k, after, lse, q, key, value, B, T, HEADS, HEADS, D));
            assert_memory_equal(before, after, CUT * HEADS * D * sizeof(float));
            case_end();
        }
    }
    close_pairs(pairs, count);
}

/* ---- converted weights ----------------------------------------------------------------------- */

/* After weights_changed, by address or NULL, a changed weight is used whatever copies are kept. */
static void test_weights_changed(void **state) {
    (void)state;
    enum { N = 40, C = 48 };
    pair pairs[PAIRS];
    const int count = open_pairs(pairs);
    for (int p = 0; p < count; p++) {
        dlxi_kernels *k = pairs[p].k[FAST], *ref = pairs[p].k[REF];
        float *x = buffer(N * C, -1, 1), *weight[2] = {buffer(C * C, -1, 1), buffer(C * C, -1, 1)};
        float *y = buffer_nan(N * C), *expected = buffer_nan(N * C);
        k->op->weights_changed(k, NULL);
        for (int round = 0; round < 6; round++) {
            for (int w = 0; w < 2; w++) {
                case_label("weights_changed round %d weight %d", round, w);
                OK(k->op->linear_forward(k, y, x, weight[w], NULL, N, C, C));
                OK(ref->op->linear_forward(ref, expected, x, weight[w], NULL, N, C, C));
                expect_near("y", y, expected, N * C, pairs[p].bf16 ? 0.01 : 1e-6);
            }
            float *changed = weight[round % 2];
            for (int i = 0; i < C * C; i++) changed[i] = -changed[i] + 0.25f;
            k->op->weights_changed(k, round < 4 ? changed : NULL);
        }
        case_end();
    }
    close_pairs(pairs, count);
}

/* Twice as many shapes as the cache of primitives has entries. */
static void test_many_shapes(void **state) {
    (void)state;
    pair p = {.k = {open_kernels("fast", DLXI_PRECISION_F32, 1),
                    open_kernels("ref", DLXI_PRECISION_F32, 1)}};
    for (int64_t n = 1; n <= 2100; n++)
        check_product(&p, 1, 1 + n % 7, 1 + n / 7, false, false, 1.0f, 0.0f);
    check_product(&p, 1, 2, 1, false, false, 1.0f, 0.0f);
    close_pairs(&p, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_product),
        cmocka_unit_test(test_symmetric_product),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_attention_is_causal),
        cmocka_unit_test(test_weights_changed),
        cmocka_unit_test(test_many_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
