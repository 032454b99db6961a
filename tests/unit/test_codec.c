/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser: error bounds, exact bytes, and what it refuses. */
#include "codec/codec.h"
#include "codec/half.h"
#include "base/memory.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <math.h>
#include <cmocka.h>

enum { VALUES_MAX = 4096 };

static float values[VALUES_MAX], decoded[VALUES_MAX];
static uint8_t codes[VALUES_MAX * 4 + 2 * VALUES_MAX];

/* The value of a half by its definition, in f64. */
static double half_value(uint16_t half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

static void fill(size_t count, double scale, uint64_t stream) {
    for (size_t i = 0; i < count; i++)
        values[i] = (float)((double)dlxi_rng_normal(7, stream, i) * scale);
}

/* Every value is within half a step, and the step is the smallest that f16 allows. */
static void check_steps(size_t groups, dlxi_quantiser q, double levels) {
    size_t group = (size_t)q.group, group_bytes = dlxi_quantiser_group_bytes(q);
    assert_int_equal(dlxi_quantise(codes, values, groups, q), DLX_OK);
    assert_true(dlxi_codes_valid(codes, groups, q));
    dlxi_dequantise(decoded, codes, groups, q);
    for (size_t g = 0; g < groups; g++) {
        double largest = 0.0;
        for (size_t i = 0; i < group; i++)
            largest = fmax(largest, fabs((double)values[g * group + i]));
        uint16_t half = dlxi_load16(codes + (g + 1) * group_bytes - 2);
        double step = half_value(half);
        assert_true(step * levels >= largest * (1.0 - 1e-6));
        if (half > 0)
            assert_true(half_value((uint16_t)(half - 1)) * levels < largest * (1.0 + 1e-6));
        for (size_t i = 0; i < group; i++) {
            double error = fabs((double)decoded[g * group + i] - (double)values[g * group + i]);
            if (error > 0.5 * step * (1.0 + 1e-6))
                fail_msg("value %zu: error %g, step %g", i, error, step);
        }
    }
}

static void error_is_at_most_half_a_step(void **state) {
    (void)state;
    const int groups_of[] = {2, 6, 32, 64, 66, 128, 1024};
    const double scales[] = {1.0, 1e-3, 3e-6, 1e-8, 1e-38, 1e-44, 1e5};
    for (size_t b = 0; b < 2; b++)
        for (size_t n = 0; n < sizeof groups_of / sizeof *groups_of; n++)
            for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
                dlxi_quantiser q = {.bits = b == 0 ? 4 : 8, .group = groups_of[n]};
                size_t groups = VALUES_MAX / (size_t)q.group;
                if (groups > 37) groups = 37; /* not a multiple of the batch */
                fill(groups * (size_t)q.group, scales[s], n);
                if (s == 0) memset(values, 0, (size_t)q.group * sizeof *values);
                check_steps(groups, q, b == 0 ? 7.0 : 127.0);
            }
}

static void halves_round_to_nearest(void **state) {
    (void)state;
    dlxi_quantiser q = {.bits = 16, .group = 64};
    for (int s = 0; s < 12; s++) {
        fill(VALUES_MAX, ldexp(1.0, 4 - 3 * s), (uint64_t)s);
        assert_int_equal(dlxi_quantise(codes, values, VALUES_MAX / 64, q), DLX_OK);
        dlxi_dequantise(decoded, codes, VALUES_MAX / 64, q);
        for (size_t i = 0; i < VALUES_MAX; i++) {
            double x = fabs((double)values[i]);
            double step = ldexp(1.0, (x < 0x1p-14 ? -14 : ilogb(x)) - 10);
            assert_true(fabs((double)decoded[i] - (double)values[i]) <= 0.5 * step);
        }
    }
    const struct {
        float x;
        uint16_t half;
    } ties[] = {{1.0f + 0x1p-11f, 0x3C00}, {1.0f + 0x3p-11f, 0x3C02}, {0x1p-25f, 0x0000},
                {0x3p-25f, 0x0002},        {-0.0f, 0x8000},           {0x1.ffcp15f, 0x7BFF},
                {0x1.ffdp15f, 0x7BFF},     {0x1.ffep-15f, 0x0400}};
    for (size_t i = 0; i < sizeof ties / sizeof *ties; i++) {
        float pair[2] = {ties[i].x, 0.0f};
        assert_int_equal(dlxi_quantise(codes, pair, 1, (dlxi_quantiser){.bits = 16, .group = 2}),
                         DLX_OK);
        assert_int_equal(dlxi_load16(codes), ties[i].half);
    }
}

static void every_half_survives(void **state) {
    (void)state;
    dlxi_quantiser q = {.bits = 16, .group = 2};
    for (uint32_t half = 0; half < 0x10000u; half += 2) {
        if ((half & 0x7FFFu) >= 0x7C00u) continue;
        uint8_t bytes[4], again[4];
        float pair[2];
        dlxi_store16(bytes, (uint16_t)half);
        dlxi_store16(bytes + 2, (uint16_t)(half + 1));
        dlxi_dequantise(pair, bytes, 1, q);
        assert_true((double)pair[0] == half_value((uint16_t)half) &&
                    (double)pair[1] == half_value((uint16_t)(half + 1)));
        assert_int_equal(dlxi_quantise(again, pair, 1, q), DLX_OK);
        assert_memory_equal(bytes, again, 4);
        /* as a scale: an exact one stays */
        if (half < 0x8000u) assert_int_equal(dlxi_half_above(pair[0]), half);
        float above = nextafterf(pair[1], 1e9f);
        if (half < 0x8000u) assert_int_equal(dlxi_half_above(above), half + 2);
    }
}

static void plain_values_pass_unchanged(void **state) {
    (void)state;
    fill(128, 1e-41, 0); /* denormals too */
    values[5] = 3e38f;
    dlxi_quantiser q = {.bits = 32, .group = 64};
    assert_int_equal(dlxi_quantise(codes, values, 2, q), DLX_OK);
    dlxi_dequantise(decoded, codes, 2, q);
    assert_memory_equal(values, decoded, 128 * sizeof *values);
}

static void bytes_are_as_documented(void **state) {
    (void)state;
    /* scale 1.0 = 0x3C00; 0.5 and 2.5 go to even; low nibble first */
    const float group[8] = {7.0f, -7.0f, 0.5f, -1.0f, 2.5f, 3.4f, -6.6f, 0.0f};
    const uint8_t expected4[6] = {0x97, 0xF0, 0x32, 0x09, 0x00, 0x3C};
    dlxi_quantiser q = {.bits = 4, .group = 8};
    assert_int_equal(dlxi_quantiser_group_bytes(q), 6);
    assert_int_equal(dlxi_quantise(codes, group, 1, q), DLX_OK);
    assert_memory_equal(codes, expected4, sizeof expected4);

    const float bytes[2] = {-63.5f, 1.0f}; /* scale 0.5 = 0x3800 */
    const uint8_t expected8[4] = {0x81, 0x02, 0x00, 0x38};
    assert_int_equal(dlxi_quantise(codes, bytes, 1, (dlxi_quantiser){.bits = 8, .group = 2}),
                     DLX_OK);
    assert_memory_equal(codes, expected8, sizeof expected8);

    const float halves[2] = {1.0f, -2.0f};
    const uint8_t expected16[4] = {0x00, 0x3C, 0x00, 0xC0},
                  expected32[8] = {0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0};
    assert_int_equal(dlxi_quantise(codes, halves, 1, (dlxi_quantiser){.bits = 16, .group = 2}),
                     DLX_OK);
    assert_memory_equal(codes, expected16, sizeof expected16);
    assert_int_equal(dlxi_quantise(codes, halves, 1, (dlxi_quantiser){.bits = 32, .group = 2}),
                     DLX_OK);
    assert_memory_equal(codes, expected32, sizeof expected32);
    assert_int_equal(dlxi_quantiser_group_bytes((dlxi_quantiser){.bits = 4, .group = 64}), 34);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    const int bits[] = {4, 8, 16, 32};
    const float largest[] = {65504.0f * 7.0f, 65504.0f * 127.0f, 65504.0f, 3.402823466e38f};
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t b = 0; b < 4; b++)
        for (int group = 64; group <= 128; group *= 2) {
            dlxi_quantiser q = {.bits = bits[b], .group = group};
            for (size_t at = 0; at < 20 * (size_t)group; at += 61) {
                fill(20 * (size_t)group, 1.0, 0);
                values[at] = -largest[b];
                assert_int_equal(dlxi_quantise(codes, values, 20, q), DLX_OK);
                dlxi_dequantise(decoded, codes, 20, q);
                assert_true(decoded[at] == -largest[b]);
                for (size_t i = 0; i < 3; i++) {
                    values[at] = bad[i];
                    assert_int_equal(dlxi_quantise(codes, values, 20, q), DLX_NUMERIC);
                }
                values[at] = largest[b] * 1.001f;
                assert_int_equal(dlxi_quantise(codes, values, 20, q), DLX_NUMERIC);
            }
        }
}

static void received_codes_are_checked(void **state) {
    (void)state;
    const int bits[] = {4, 8, 16, 32};
    for (size_t b = 0; b < 4; b++) {
        dlxi_quantiser q = {.bits = bits[b], .group = 64};
        size_t group_bytes = dlxi_quantiser_group_bytes(q);
        fill(192, 1.0, 0);
        assert_int_equal(dlxi_quantise(codes, values, 3, q), DLX_OK);
        assert_true(dlxi_codes_valid(codes, 3, q));
        codes[3 * group_bytes - 1] = 0xFF; /* high byte of the last scale or value */
        codes[3 * group_bytes - 2] |= 0x80;
        assert_false(dlxi_codes_valid(codes, 3, q));
        assert_true(dlxi_codes_valid(codes, 2, q));
    }
}

static void adding_rounds_twice(void **state) {
    (void)state;
    const int bits[] = {4, 8, 16, 32};
    for (size_t b = 0; b < 4; b++)
        for (int group = 32; group <= 64; group += 32) {
            dlxi_quantiser q = {.bits = bits[b], .group = group};
            size_t count = 20 * (size_t)group;
            fill(count, 1.0, 3);
            assert_int_equal(dlxi_quantise(codes, values, 20, q), DLX_OK);
            dlxi_dequantise(decoded, codes, 20, q);
            float sum[20 * 64];
            for (size_t i = 0; i < count; i++) sum[i] = values[count - 1 - i];
            dlxi_dequantise_add(sum, codes, 0.3f, 20, q);
            for (size_t i = 0; i < count; i++) {
                volatile float product = 0.3f * decoded[i];
                volatile float expected = values[count - 1 - i] + product;
                assert_true(sum[i] == expected);
            }
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_is_at_most_half_a_step),
        cmocka_unit_test(halves_round_to_nearest),
        cmocka_unit_test(every_half_survives),
        cmocka_unit_test(plain_values_pass_unchanged),
        cmocka_unit_test(bytes_are_as_documented),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(received_codes_are_checked),
        cmocka_unit_test(adding_rounds_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
