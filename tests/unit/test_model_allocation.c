/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: a training step after the first allocates none, and what activations take. The linker
 * routes our rooms' calls of the allocator here (--wrap), but not other libraries'. */
#include "model/internal.h"
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

/* ---- activations ----------------------------------------------------------------------------- */

static int64_t activation_bytes(const dlxi_model_config *config, const dlxi_stage_options *options,
                                dlxi_kernels *kernels) {
    dlxi_stage *stage = NULL;
    assert_int_equal(dlxi_stage_open(&stage, config, options, kernels, NULL), DLX_OK);
    const int64_t bytes = (int64_t)stage->arena_bytes;
    dlxi_stage_close(&stage);
    return bytes;
}

static void test_activations(void **unused) {
    (void)unused;
    enum { LAYERS = 8, C = 64 };
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_AUTO, 1, NULL), DLX_OK);
    for (int v = 0; v < 4; v++) {
        dlxi_model_config config =
            dlxi_model_config_default(v < 2 ? DLXI_FAMILY_GPT2 : DLXI_FAMILY_LLAMA);
        config.layers = LAYERS, config.width = C, config.mlp_width = 96;
        config.tied_head = v % 2 == 1;
        dlxi_stage_options options = dlxi_stage_options_whole(&config, B, T, 1);
        int64_t kept[2], recomputed[2], forward_only[2];
        for (int s = 0; s < 2; s++) {
            options.slots = s + 1, options.training = true, options.recompute = false;
            kept[s] = activation_bytes(&config, &options, kernels);
            options.recompute = true;
            recomputed[s] = activation_bytes(&config, &options, kernels);
            options.training = false;
            forward_only[s] = activation_bytes(&config, &options, kernels);
            assert_true(forward_only[s] < recomputed[s] && recomputed[s] < kept[s]);
        }
        /* a slot more: tokens, nine places of the residual stream, the gradient below the head */
        assert_int_equal(recomputed[1] - recomputed[0], N * 4 + (LAYERS + 2) * N * C * 4);
        assert_true(2 * (recomputed[1] - recomputed[0]) < kept[1] - kept[0]);
        /* without training two of the nine and no gradient */
        assert_int_equal(forward_only[1] - forward_only[0], N * 4 + 2 * N * C * 4);
    }
    dlxi_kernels_close(&kernels);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_fast),
        cmocka_unit_test(test_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
