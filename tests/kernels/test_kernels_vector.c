/* SPDX-License-Identifier: Apache-2.0 */
/* The formulas of vector.h and the conversion to bf16. */
#include "kernel_test.h"

#include "base/rng.h"
#include "kernels/fast.h"
#include "kernels/vector.h"

#include <math.h>

/* e^x against libm in f64: 2 ulp are at most 2^-22. */
static void test_exp(void **state) {
    (void)state;
    for (int i = 0; i < 800000; i++) {
        const float x = -87.0f + 175.0f * dlxi_rng_uniform(1, 2, (uint64_t)i);
        const double expected = exp((double)x),
                     error = fabs((double)dlxi_exp(x) - expected) / expected;
        if (!(error <= ldexp(1.0, -22))) fail_msg("exp(%.9g) is off by %.3g", (double)x, error);
    }
    assert_true(dlxi_exp(0.0f) == 1.0f);
    assert_true(dlxi_exp(-88.0f) == 0.0f && dlxi_exp(-HUGE_VALF) == 0.0f);
    assert_true(dlxi_exp(1000.0f) == dlxi_exp(88.0f) && dlxi_exp(88.0f) > 1e38f);
    assert_true(isnan(dlxi_exp(NAN)));
    assert_true(dlxi_sigmoid(-HUGE_VALF) < 1e-37f && dlxi_sigmoid(HUGE_VALF) == 1.0f);
}

static void test_sums(void **state) {
    (void)state;
    float row[50], lanes[DLXI_LANES];
    for (int i = 0; i < 50; i++) row[i] = (float)((i * 37) % 50) - 60.0f;
    for (int count = 1; count <= 50; count++) {
        float largest = row[0];
        for (int i = 1; i < count; i++) largest = fmaxf(largest, row[i]);
        assert_true(dlxi_row_max(row, count) == largest);
    }
    for (int i = 0; i < DLXI_LANES; i++) lanes[i] = (float)(1 << i);
    assert_true(dlxi_lanes_sum(lanes) == 65535.0f);
}

/* The nearer of the two neighbours, or the even one halfway between. */
static uint16_t nearest_bf16(float x) {
    const uint16_t below = (uint16_t)(dlxi_bits_of(x) >> 16), above = (uint16_t)(below + 1);
    const double low = fabs((double)x - (double)dlxi_float_of((uint32_t)below << 16));
    const double high = fabs((double)dlxi_float_of((uint32_t)above << 16) - (double)x);
    if (low == high) return below % 2 == 0 ? below : above;
    return low < high ? below : above;
}

static void test_bf16(void **state) {
    (void)state;
    enum { COUNT = 200003 };
    case_label("bf16");
    float *x = buffer_nan(COUNT);
    uint16_t *y = (uint16_t *)(void *)buffer_nan(COUNT / 2 + 1);
    for (int i = 0; i < COUNT; i++) {
        uint32_t bits = (uint32_t)dlxi_rng_u64(3, 4, (uint64_t)i);
        if (i % 4 == 0) bits = (bits & 0xffff0000u) | 0x8000u; /* halfway */
        const uint32_t exponent = bits >> 23 & 0xffu;
        /* normal, and no overflow */
        if (exponent == 0 || exponent >= 254) bits = bits % 0x800000u | 0x3f800000u;
        x[i] = dlxi_float_of(bits);
    }
    dlxi_to_bf16(y, x, 1, COUNT, COUNT, 1.0f);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(y[i], nearest_bf16(x[i]));
        assert_int_equal(y[i], dlxi_bf16(x[i]));
    }
    const float nan_and_infinities[] = {NAN, HUGE_VALF, -HUGE_VALF};
    dlxi_to_bf16(y, nan_and_infinities, 1, 3, 3, 1.0f);
    assert_true(isnan(dlxi_float_of((uint32_t)y[0] << 16)) &&
                isnan(dlxi_float_of((uint32_t)dlxi_bf16(NAN) << 16)));
    assert_true(y[1] == 0x7f80 && y[2] == 0xff80 && dlxi_bf16(HUGE_VALF) == 0x7f80);
    case_end();
}

/* Rows with a stride and a scale, at widths of every remainder. */
static void test_bf16_rows(void **state) {
    (void)state;
    enum { ROWS = 3, STRIDE = 70 };
    for (int width = 1; width <= 66; width++) {
        case_label("bf16 rows of %d", width);
        float *x = buffer(ROWS * STRIDE, -1, 1);
        uint16_t *y = (uint16_t *)(void *)buffer_nan((ROWS * width + 1) / 2);
        dlxi_to_bf16(y, x, ROWS, width, STRIDE, 0.3f);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < width; c++)
                assert_int_equal(y[r * width + c], dlxi_bf16(0.3f * x[r * STRIDE + c]));
        case_end();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_bf16_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
