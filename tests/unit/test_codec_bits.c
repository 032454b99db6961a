/* SPDX-License-Identifier: Apache-2.0 */
/* Replicated arithmetic gives one result on any CPU (the clones against the baseline) and in any
 * mode of the caller's floating-point unit (flush-to-zero, other roundings), with random, tiny and
 * denormal inputs. */
#include "codec/codec.h"
#include "codec/half.h"
#include "base/hash.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <fenv.h>
#include <math.h>
#include <cmocka.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

typedef struct codec {
    dlx_status (*quantise)(uint8_t *, const float *, size_t, dlxi_quantiser);
    void (*dequantise)(float *, const uint8_t *, size_t, dlxi_quantiser);
    void (*dequantise_add)(float *, const uint8_t *, float, size_t, dlxi_quantiser);
    void (*orthonormalise)(float *, int64_t, int, int);
    void (*expand_rows)(float *, const float *, const float *, int64_t, int64_t, int64_t, int64_t,
                        int, int);
    void (*spectrum)(double *, double *, const float *, int64_t, int, int);
    void (*basis_from)(float *, const float *, float *, int64_t, int, int);
} codec;

dlx_status plain_quantise(uint8_t *, const float *, size_t, dlxi_quantiser);
void plain_dequantise(float *, const uint8_t *, size_t, dlxi_quantiser);
void plain_dequantise_add(float *, const uint8_t *, float, size_t, dlxi_quantiser);
void plain_orthonormalise(float *, int64_t, int, int);
void plain_expand_rows(float *, const float *, const float *, int64_t, int64_t, int64_t, int64_t,
                       int, int);
void plain_spectrum(double *, double *, const float *, int64_t, int, int);
void plain_basis_from(float *, const float *, float *, int64_t, int, int);

static const codec cloned = {dlxi_quantise,       dlxi_dequantise,  dlxi_dequantise_add,
                             dlxi_orthonormalise, dlxi_expand_rows, dlxi_spectrum,
                             dlxi_basis_from};
static const codec plain = {plain_quantise,       plain_dequantise,  plain_dequantise_add,
                            plain_orthonormalise, plain_expand_rows, plain_spectrum,
                            plain_basis_from};

enum { COLUMNS = 203, ROWS = 37, RANK = 11, GROUP = 64, STRIDE = 256, COUNT = RANK * STRIDE };

/* Values over 24 binary orders of magnitude, times scale. */
static void fill(float *dst, size_t count, float scale, uint64_t stream) {
    for (size_t i = 0; i < count; i++) {
        int down = (int)(dlxi_rng_u64(3, stream, i) % 24);
        dst[i] = ldexpf(dlxi_rng_normal(5, stream, i), -down) * scale;
    }
}

/* The hash of all replicated results for one input. */
static uint64_t run_all(const codec *c, const float *input, const float *q_input, int bits,
                        int group) {
    static float decoded[COUNT], p[RANK * 64], q[COUNT], basis[COUNT], scratch[COUNT],
        expanded[ROWS * COLUMNS];
    static uint8_t codes[COUNT * 4 + COUNT];
    double values[RANK], gram[RANK * RANK];
    dlxi_quantiser quantiser = {.bits = bits, .group = group};
    size_t groups = COUNT / (size_t)group;
    uint64_t hash = 0;

    memset(codes, 0, sizeof codes);
    if (c->quantise(codes, input, groups, quantiser) != DLX_OK) return 1;
    hash = dlxi_hash(codes, sizeof codes, hash);
    c->dequantise(decoded, codes, groups, quantiser);
    hash = dlxi_hash(decoded, groups * (size_t)group * sizeof *decoded, hash);
    memcpy(decoded, input, sizeof decoded);
    c->dequantise_add(decoded, codes, 0x1.234p-3f, groups, quantiser);
    c->dequantise_add(decoded, codes, 0x1.abcp-130f, groups, quantiser); /* a denormal weight */
    hash = dlxi_hash(decoded, sizeof decoded, hash);

    memcpy(q, q_input, sizeof q);
    c->spectrum(values, gram, q, COLUMNS, RANK, GROUP);
    hash = dlxi_hash(values, sizeof values, hash);
    c->basis_from(basis, q, scratch, COLUMNS, RANK, GROUP);
    hash = dlxi_hash(basis, sizeof basis, hash);
    memcpy(p, input, sizeof p);
    c->orthonormalise(p, ROWS, RANK, GROUP);
    hash = dlxi_hash(p, sizeof p, hash);
    c->expand_rows(expanded, p, q, 0, ROWS, ROWS, COLUMNS, RANK, GROUP);
    for (int64_t i = 0; i < ROWS; i++)
        hash = dlxi_hash(expanded + i * COLUMNS, COLUMNS * sizeof *expanded, hash);
    return hash;
}

static const float scales[] = {1.0f, 1e-3f, 1e-7f, 1e-20f, 1e-30f, 1e-38f, 1e-41f};
enum { SCALES = sizeof scales / sizeof *scales };
static const int bits_of[] = {4, 8, 16, 32}, groups_of[] = {64, 32, 22};

static float inputs[SCALES][2][COUNT];

static uint64_t hash_of(const codec *c, size_t scale, size_t bits, size_t group) {
    return run_all(c, inputs[scale][0], inputs[scale][1], bits_of[bits], groups_of[group]);
}

static void each_case(void (*visit)(size_t scale, size_t bits, size_t group)) {
    for (size_t scale = 0; scale < SCALES; scale++) {
        fill(inputs[scale][0], COUNT, scales[scale], 2 * scale);
        fill(inputs[scale][1], COUNT, scales[scale], 2 * scale + 1);
        for (size_t bits = 0; bits < 4; bits++)
            for (size_t group = 0; group < 3; group++) visit(scale, bits, group);
    }
}

static void compare_clones(size_t scale, size_t bits, size_t group) {
    assert_true(hash_of(&cloned, scale, bits, group) == hash_of(&plain, scale, bits, group));
}

static void clones_agree_with_the_baseline(void **state) {
    (void)state;
    each_case(compare_clones);
}

static void compare_modes(size_t scale, size_t bits, size_t group) {
    uint64_t expected = hash_of(&cloned, scale, bits, group);
#if defined(__x86_64__)
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040u); /* FTZ and DAZ */
    uint64_t flushed = hash_of(&cloned, scale, bits, group);
    unsigned kept = _mm_getcsr() & 0x8040u;
    _mm_setcsr(mode);
    assert_true(flushed == expected);
    assert_int_equal(kept, 0x8040u); /* the caller's modes are restored */
#endif
    const int roundings[] = {
#ifdef FE_UPWARD
        FE_UPWARD,
#endif
#ifdef FE_TOWARDZERO
        FE_TOWARDZERO,
#endif
        FE_TONEAREST};
    for (size_t i = 0; i < sizeof roundings / sizeof *roundings; i++) {
        assert_int_equal(fesetround(roundings[i]), 0);
        uint64_t rounded = hash_of(&cloned, scale, bits, group);
        int kept_rounding = fegetround();
        fesetround(FE_TONEAREST);
        assert_true(rounded == expected);
        assert_int_equal(kept_rounding, roundings[i]);
    }
}

static void the_callers_modes_do_not_matter(void **state) {
    (void)state;
    each_case(compare_modes);
}

/* One fixed case: a change in the order of sums fails here and not in a run. */
static void bits_are_golden(void **state) {
    (void)state;
    fill(inputs[0][0], COUNT, 1.0f, 0);
    fill(inputs[0][1], COUNT, 1.0f, 1);
    uint64_t hash = hash_of(&cloned, 0, 0, 0);
    if (hash != UINT64_C(0xa46ba88f63359892)) fail_msg("hash 0x%016llx", (unsigned long long)hash);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clones_agree_with_the_baseline),
        cmocka_unit_test(the_callers_modes_do_not_matter),
        cmocka_unit_test(bits_are_golden),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
