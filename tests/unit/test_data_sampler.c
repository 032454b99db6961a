/* SPDX-License-Identifier: Apache-2.0 */
/* The order of training windows: a permutation for every size, equal on every machine, another in
 * each epoch; the tokens of a window; and the parts of a validation file. */
#include "data/sampler.h"

#include <stdlib.h>
#include <string.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

enum { SIZE_MAX_TESTED = 3000 };

static uint64_t permuted(uint64_t index, uint64_t n, uint64_t seed, uint64_t epoch) {
    return dlx_window(epoch * n + index, n, seed);
}

static void expect_permutation(uint64_t n, uint64_t seed, uint64_t epoch) {
    uint8_t *seen = calloc(n, 1);
    assert_non_null(seen);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t to = permuted(i, n, seed, epoch);
        assert_true(to < n);
        assert_int_equal(seen[to]++, 0);
    }
    free(seen);
}

static void test_permutes_every_size(void **state) {
    (void)state;
    for (uint64_t n = 1; n <= SIZE_MAX_TESTED; n++) expect_permutation(n, n * 77, n % 3);
    static const uint64_t around[] = {4095, 4096, 4097, 16383, 16384, 16385, 65537};
    for (size_t i = 0; i < sizeof around / sizeof *around; i++)
        expect_permutation(around[i], 5, UINT64_MAX / around[i] - 1);
}

/* Values from a second implementation, in a language with unbounded integers. A change would change
 * what every resumed run reads next. */
static void test_order_is_fixed(void **state) {
    (void)state;
    static const uint64_t first[] = {2, 3, 1, 7, 5, 6, 9, 4, 0, 8},
                          second[] = {0, 1, 7, 9, 8, 3, 6, 4, 2, 5};
    static const uint64_t many[] = {79200, 268123, 88201, 480629, 623244};
    const uint64_t large = UINT64_C(1) << 40;
    for (uint64_t i = 0; i < 10; i++) {
        assert_int_equal(permuted(i, 10, 1, 0), first[i]);
        assert_int_equal(permuted(i, 10, 1, 1), second[i]);
    }
    for (uint64_t i = 0; i < 5; i++) assert_int_equal(permuted(i, 1000003, 42, 7), many[i]);
    assert_int_equal(permuted(0, large, 3, 2), 91449053994);
    assert_int_equal(permuted(large - 1, large, 3, 2), 537301871141);
    assert_int_equal(permuted(5, INT64_MAX, 9, 1), 4457354963111271976);
    assert_int_equal(dlx_window(3, 0, 1), 0); /* no windows */
}

/* Over E epochs each of n windows comes first about E/n times: chi-squared with n−1 degrees of
 * freedom, whose 99.99% point is below 5 times the degrees for n ≥ 7. */
static void test_every_window_comes_first_equally_often(void **state) {
    (void)state;
    static const uint64_t sizes[] = {7, 16, 17, 100};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t n = sizes[s], epochs = 200 * n;
        double chi_squared = 0.0, count[100] = {0.0};
        for (uint64_t epoch = 0; epoch < epochs; epoch++) count[permuted(0, n, 11, epoch)] += 1.0;
        for (uint64_t i = 0; i < n; i++)
            chi_squared += (count[i] - 200.0) * (count[i] - 200.0) / 200.0;
        assert_true(chi_squared < 5.0 * (double)(n - 1));
    }
}

/* A shuffle has one step of +1 on average, whatever n. */
static void test_order_has_no_runs(void **state) {
    (void)state;
    enum { N = 10000 };
    int steps = 0, fixed = 0, same_in_both = 0;
    for (uint64_t i = 0; i + 1 < N; i++) {
        uint64_t a = permuted(i, N, 1, 0), b = permuted(i + 1, N, 1, 0);
        steps += b == a + 1;
        fixed += a == i;
        same_in_both += a == permuted(i, N, 2, 0);
    }
    assert_true(steps < 8 && fixed < 8 && same_in_both < 8);
}

/* ---- windows --------------------------------------------------------------------------------- */

/* A file whose token i is i mod 251. */
static dlxi_token_file count_up(uint8_t *payload, int64_t count) {
    static char key[] = "data.train", path[] = "x.tokens";
    for (int64_t i = 0; i < count; i++) payload[i] = (uint8_t)(i % 251);
    return (dlxi_token_file){.payload = payload,
                             .count = count,
                             .token_bytes = 1,
                             .vocabulary = 256,
                             .key = key,
                             .path = path};
}

static void test_windows_of_a_shard(void **state) {
    (void)state;
    enum { T = 4 };
    uint8_t payload[64];
    dlxi_sampler sampler;
    dlx_error error;
    static const int64_t counts[] = {5, 8, 9, 12, 13}, windows[] = {1, 1, 2, 2, 3};
    for (size_t i = 0; i < 5; i++) {
        dlxi_token_file file = count_up(payload, counts[i]);
        assert_int_equal(dlxi_sampler_open(&sampler, &file, T, 1, &error), DLX_OK);
        assert_int_equal(sampler.windows, windows[i]);
    }
    dlxi_token_file file = count_up(payload, 4);
    assert_int_equal(dlxi_sampler_open(&sampler, &file, T, 1, &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "data.train: 'x.tokens' has 4 tokens; a context of 4 needs at least 5: use a longer text");
}

static void test_batch(void **state) {
    (void)state;
    enum { T = 5, WINDOWS = 37, COUNT = WINDOWS * T + 3 };
    uint8_t payload[COUNT];
    uint32_t tokens[4 * T], targets[4 * T];
    dlxi_token_file file = count_up(payload, COUNT);
    dlxi_sampler sampler;
    assert_int_equal(dlxi_sampler_open(&sampler, &file, T, 99, NULL), DLX_OK);
    assert_int_equal(sampler.windows, WINDOWS);
    static const int64_t positions[4] = {0, WINDOWS - 1, WINDOWS, 1000 * WINDOWS + 5};
    dlxi_sampler_batch(tokens, targets, &sampler, positions, 4);
    for (int64_t b = 0; b < 4; b++) {
        uint64_t index = (uint64_t)(positions[b] % WINDOWS),
                 epoch = (uint64_t)(positions[b] / WINDOWS);
        int64_t w = (int64_t)permuted(index, WINDOWS, 99, epoch);
        assert_int_equal(dlxi_sampler_window(&sampler, positions[b]), w);
        for (int64_t t = 0; t < T; t++) {
            assert_int_equal(tokens[b * T + t], (w * T + t) % 251);
            assert_int_equal(targets[b * T + t], (w * T + t + 1) % 251);
        }
    }
}

static void test_epochs_cover_all_and_differ(void **state) {
    (void)state;
    enum { T = 2, WINDOWS = 50, EPOCHS = 4 };
    uint8_t payload[WINDOWS * T + 1];
    dlxi_token_file file = count_up(payload, WINDOWS * T + 1);
    dlxi_sampler sampler;
    int64_t order[EPOCHS][WINDOWS];
    assert_int_equal(dlxi_sampler_open(&sampler, &file, T, 3, NULL), DLX_OK);
    for (int64_t e = 0; e < EPOCHS; e++) {
        int seen[WINDOWS] = {0};
        for (int64_t i = 0; i < WINDOWS; i++) {
            order[e][i] = dlxi_sampler_window(&sampler, e * WINDOWS + i);
            assert_in_range(order[e][i], 0, WINDOWS - 1);
            assert_int_equal(seen[order[e][i]]++, 0);
        }
        for (int64_t before = 0; before < e; before++)
            assert_memory_not_equal(order[before], order[e], sizeof order[e]);
    }
    /* any position is safe */
    assert_in_range(dlxi_sampler_window(&sampler, -1), 0, WINDOWS - 1);
    assert_in_range(dlxi_sampler_window(&sampler, INT64_MAX), 0, WINDOWS - 1);
    assert_in_range(dlxi_sampler_window(&sampler, INT64_MIN), 0, WINDOWS - 1);
}

/* ---- validation ------------------------------------------------------------------------------ */

/* Counts the part's windows in seen, read `batch` at a time. */
static int64_t collect(int *seen, dlxi_validation *reader, int64_t batch) {
    enum { T = 3 };
    uint32_t tokens[8 * T], targets[8 * T];
    int64_t total = 0, last = -1;
    for (int64_t n; (n = dlxi_validation_next(tokens, targets, reader, batch)) > 0; total += n) {
        for (int64_t b = 0; b < n; b++) {
            int64_t w = tokens[b * T] / T;
            assert_true(w > last);
            last = w;
            seen[w]++;
            for (int64_t t = 0; t < T; t++) {
                assert_int_equal(tokens[b * T + t], w * T + t);
                assert_int_equal(targets[b * T + t], w * T + t + 1);
            }
        }
    }
    return total;
}

static void test_validation_parts(void **state) {
    (void)state;
    enum { T = 3, WINDOWS = 23, COUNT = WINDOWS * T + 2 };
    uint8_t payload[COUNT];
    dlxi_token_file file = count_up(payload, COUNT);
    static const int64_t limits[] = {0, 1, T * 10, T * 10 + 2, 1000},
                         used[] = {WINDOWS, 1, 10, 10, WINDOWS};
    for (size_t l = 0; l < 5; l++) {
        for (int64_t stride = 1; stride <= 5; stride++) {
            int seen[WINDOWS] = {0};
            for (int64_t index = 0; index < stride; index++) {
                dlxi_validation reader;
                assert_int_equal(
                    dlxi_validation_open(&reader, &file, T, limits[l], index, stride, NULL),
                    DLX_OK);
                int64_t count = dlxi_validation_count(&reader);
                int mine[WINDOWS] = {0};
                assert_int_equal(collect(mine, &reader, 4), count);
                assert_int_equal(collect(mine, &reader, 4), 0);
                assert_int_equal(
                    dlxi_validation_open(&reader, &file, T, limits[l], index, stride, NULL),
                    DLX_OK);
                assert_int_equal(collect(seen, &reader, 7), count);
                for (int64_t w = 0; w < WINDOWS; w++)
                    assert_int_equal(mine[w], w % stride == index && w < used[l]);
            }
            for (int64_t w = 0; w < WINDOWS; w++) assert_int_equal(seen[w], w < used[l]);
        }
    }
    dlxi_validation reader;
    dlx_error error;
    assert_int_equal(dlxi_validation_open(&reader, &file, COUNT, 0, 0, 1, &error), DLX_CONFIG);
    assert_string_equal(error.message, "data.train: 'x.tokens' has 71 tokens; a context of 71 "
                                       "needs at least 72: use a longer text");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permutes_every_size),
        cmocka_unit_test(test_order_is_fixed),
        cmocka_unit_test(test_every_window_comes_first_equally_often),
        cmocka_unit_test(test_order_has_no_runs),
        cmocka_unit_test(test_windows_of_a_shard),
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_epochs_cover_all_and_differ),
        cmocka_unit_test(test_validation_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
