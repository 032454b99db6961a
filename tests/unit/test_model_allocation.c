/* SPDX-License-Identifier: Apache-2.0 */
/* No training step after the first takes memory. The linker routes our rooms' calls of the
 * allocator through counters (--wrap); libraries are not counted. */
#include "model/optimizer.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { B = 2, T = 32, N = B * T, STEPS = 3 };

static long allocations;

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *old, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

void *__wrap_malloc(size_t bytes) {
    allocations++;
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes) {
    allocations++;
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *old, size_t bytes) {
    allocations++;
    return __real_realloc(old, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    allocations++;
    return __real_aligned_alloc(alignment, bytes);
}

static void one_step(dlxi_stage *stage, dlxi_optimizer *optimizer, uint64_t stream) {
    uint32_t token[N + 1];
    double loss;
    for (uint64_t i = 0; i <= N; i++) token[i] = (uint32_t)(dlxi_rng_u64(8, stream, i) % 256);
    dlxi_stage_zero_gradients(stage);
    assert_int_equal(dlxi_stage_forward(stage, 0, token, NULL, token + 1, &loss, NULL), DLX_OK);
    assert_int_equal(dlxi_stage_backward(stage, 0, NULL, NULL), DLX_OK);
    assert_int_equal(dlxi_optimizer_step(optimizer, 1e-3f, 1.0f, NULL, NULL), DLX_OK);
    dlxi_stage_parameters_changed(stage);
}

static void steps(const char *backend, dlxi_family family, dlxi_optimizer_kind kind) {
    dlxi_kernels *kernels = NULL;
    dlxi_stage *stage = NULL;
    dlxi_optimizer *optimizer = NULL;
    int64_t count;
    dlxi_model_config config = dlxi_model_config_default(family);
    config.layers = 2, config.width = 64, config.mlp_width = 96;
    dlxi_stage_options options = dlxi_stage_options_whole(&config, B, T, 1);
    dlxi_optimizer_options settings = dlxi_optimizer_options_default(kind);
    assert_int_equal(dlxi_kernels_open(&kernels, backend, DLXI_PRECISION_AUTO, 1, NULL), DLX_OK);
    assert_int_equal(dlxi_stage_open(&stage, &config, &options, kernels, NULL), DLX_OK);
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    assert_int_equal(dlxi_optimizer_open(&optimizer, &settings, parameter, count, kernels, NULL),
                     DLX_OK);
    assert_true(allocations > 0);
    one_step(stage, optimizer, 0);
    allocations = 0;
    for (uint64_t step = 1; step <= STEPS; step++) one_step(stage, optimizer, step);
    assert_int_equal(allocations, 0);
    dlxi_optimizer_close(&optimizer);
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

static void test_reference(void **unused) {
    (void)unused;
    steps("ref", DLXI_FAMILY_GPT2, DLXI_OPTIMIZER_ADAMW);
    steps("ref", DLXI_FAMILY_LLAMA, DLXI_OPTIMIZER_MUON);
}

static void test_fast(void **unused) {
    (void)unused;
    steps("fast", DLXI_FAMILY_GPT2, DLXI_OPTIMIZER_MUON);
    steps("fast", DLXI_FAMILY_LLAMA, DLXI_OPTIMIZER_ADAMW);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
