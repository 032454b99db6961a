/* SPDX-License-Identifier: Apache-2.0 */
/* Stages against the whole model: scheduled as in a pipeline, with recomputed blocks, with a
 * listener for finished gradients, and forward only. */
#include "model/model.h"
#include "base/rng.h"
#include "difference.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    B = 2,
    T = 8,
    N = B * T,
    C = 16,
    V = 31,
    LAYERS = 5,
    MICRO_BATCHES = 5,
    STAGES_MAX = 4,
    SEED = 4
};

/* gpt2 and llama, each with a tied and an untied head. */
enum { VARIANTS = 4 };

static dlxi_model_config variant(int index) {
    dlxi_family family = index < 2 ? DLXI_FAMILY_GPT2 : DLXI_FAMILY_LLAMA;
    dlxi_model_config config = dlxi_model_config_default(family);
    config.layers = LAYERS;
    config.width = C;
    config.heads = 4;
    config.kv_heads = family == DLXI_FAMILY_GPT2 ? 4 : 2;
    config.mlp_width = 20;
    config.context = 12;
    config.vocabulary = V;
    config.tied_head = index % 2 == 1;
    config.qkv_bias = index == 3;
    return config;
}

static uint32_t token[MICRO_BATCHES * N], target[MICRO_BATCHES * N];

static int draw_tokens(void **unused) {
    (void)unused;
    for (uint64_t i = 0; i < MICRO_BATCHES * N; i++) {
        token[i] = (uint32_t)(dlxi_rng_u64(9, 0, i) % V);
        target[i] = (uint32_t)(dlxi_rng_u64(9, 1, i) % V);
    }
    return 0;
}

static dlxi_kernels *open_kernels(const char *backend) {
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, backend, DLXI_PRECISION_AUTO, 1, NULL), DLX_OK);
    return kernels;
}

/* Perturbs every value, in all stages alike: zero biases and unit gains would hide errors. */
static dlxi_stage *open_stage(const dlxi_model_config *config, const dlxi_stage_options *options,
                              dlxi_kernels *kernels) {
    dlxi_stage *stage = NULL;
    dlx_error error = {0};
    int64_t count;
    if (dlxi_stage_open(&stage, config, options, kernels, &error) != DLX_OK)
        fail_msg("%s", error.message);
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < parameter[i].count; j++)
            parameter[i].data[j] +=
                0.1f * dlxi_rng_normal(7, (uint64_t)parameter[i].tensor.id, (uint64_t)j);
    dlxi_stage_parameters_changed(stage);
    return stage;
}

/* The part of the model with layers [first, end). */
static dlxi_stage_options part(const dlxi_model_config *config, int64_t first, int64_t end) {
    dlxi_stage_options options = dlxi_stage_options_whole(config, B, T, SEED);
    options.first_layer = first, options.end_layer = end;
    options.has_embedding = first == 0, options.has_head = end == config->layers;
    return options;
}

static void assert_same_gradients(dlxi_stage *a, dlxi_stage *b) {
    int64_t count, other;
    const dlxi_parameter *x = dlxi_stage_parameters(a, &count),
                         *y = dlxi_stage_parameters(b, &other);
    assert_int_equal(count, other);
    for (int64_t i = 0; i < count; i++) {
        assert_memory_equal(x[i].gradient, y[i].gradient, (size_t)x[i].count * sizeof(float));
    }
}

/* ---- a pipeline in one process --------------------------------------------------------------- */

typedef struct line {
    dlxi_stage *stage[STAGES_MAX];
    int stages;
    int forward[STAGES_MAX], backward[STAGES_MAX]; /* micro-batches that have passed */
    float output[STAGES_MAX][MICRO_BATCHES][N * C], d_input[STAGES_MAX][MICRO_BATCHES][N * C];
    double loss[MICRO_BATCHES];
} line;

static int slots_of(const line *l, int s) {
    int slots = l->stages - s;
    return slots < MICRO_BATCHES ? slots : MICRO_BATCHES;
}

static void pass_forward(line *l, int s) {
    int m = l->forward[s]++, slot = m % slots_of(l, s);
    bool first = s == 0, last = s == l->stages - 1;
    assert_int_equal(dlxi_stage_forward(l->stage[s], slot, first ? token + m * N : NULL,
                                        first ? NULL : l->output[s - 1][m],
                                        last ? target + m * N : NULL, last ? &l->loss[m] : NULL,
                                        NULL),
                     DLX_OK);
    if (!last)
        memcpy(l->output[s][m], dlxi_stage_output(l->stage[s], slot), sizeof l->output[s][m]);
}

static void pass_backward(line *l, int s) {
    int m = l->backward[s]++, slot = m % slots_of(l, s);
    const float *d_output = s == l->stages - 1 ? NULL : l->d_input[s + 1][m];
    assert_int_equal(dlxi_stage_backward(l->stage[s], slot, d_output, NULL), DLX_OK);
    if (s > 0) memcpy(l->d_input[s][m], dlxi_stage_d_input(l->stage[s]), sizeof l->d_input[s][m]);
}

/* Runs a stage's next pass if its input is available: forward until the slots are full, then
 * backward and forward in turn. Returns whether it ran one. */
static bool pass(line *l, int s) {
    bool full = l->forward[s] - l->backward[s] == slots_of(l, s) || l->forward[s] == MICRO_BATCHES;
    if (full) {
        if (l->backward[s] == MICRO_BATCHES) return false;
        if (s < l->stages - 1 && l->backward[s + 1] <= l->backward[s]) return false;
        pass_backward(l, s);
    } else {
        if (s > 0 && l->forward[s - 1] <= l->forward[s]) return false;
        pass_forward(l, s);
    }
    return true;
}

static void run_line(line *l) {
    bool moved = true;
    while (moved) {
        moved = false;
        for (int s = 0; s < l->stages; s++) moved |= pass(l, s);
    }
    for (int s = 0; s < l->stages; s++) assert_int_equal(l->backward[s], MICRO_BATCHES);
}

/* first[stages + 1]: each stage's first layer, then the model's layers. */
static line *open_line(const dlxi_model_config *config, const int64_t *first, int stages,
                       bool recompute, dlxi_kernels *kernels) {
    line *l = calloc(1, sizeof *l);
    assert_non_null(l);
    l->stages = stages;
    for (int s = 0; s < stages; s++) {
        dlxi_stage_options options = part(config, first[s], first[s + 1]);
        options.slots = slots_of(l, s);
        options.recompute = recompute;
        l->stage[s] = open_stage(config, &options, kernels);
    }
    return l;
}

static void close_line(line *l) {
    for (int s = 0; s < l->stages; s++) dlxi_stage_close(&l->stage[s]);
    free(l);
}

/* Gradients of the line against the whole model's: equal to the bit, except that a tied table's two
 * copies are summed. */
static void compare_line(line *l, dlxi_stage *whole) {
    int64_t count, seen = 0;
    const dlxi_parameter *expected = dlxi_stage_parameters(whole, &count);
    const bool tied = dlxi_stage_config(whole)->tied_head;
    float *sum = calloc((size_t)(V * C), sizeof *sum);
    assert_non_null(sum);
    for (int s = 0; s < l->stages; s++) {
        int64_t part_count;
        const dlxi_parameter *p = dlxi_stage_parameters(l->stage[s], &part_count);
        for (int64_t i = 0; i < part_count; i++) {
            /* the whole model's index is the id */
            const dlxi_parameter *same = &expected[p[i].tensor.id];
            assert_string_equal(p[i].tensor.name, same->tensor.name);
            seen++;
            if (tied && p[i].tensor.id == 0) {
                for (int64_t x = 0; x < p[i].count; x++) sum[x] += p[i].gradient[x];
            } else {
                assert_memory_equal(p[i].gradient, same->gradient,
                                    (size_t)p[i].count * sizeof(float));
            }
        }
    }
    assert_int_equal(seen, count + (tied && l->stages > 1));
    if (tied) assert_true(difference(sum, expected[0].gradient, expected[0].count) < 1e-6);
    free(sum);
}

static void models_partitioned(const char *backend, bool recompute) {
    static const int64_t first[][STAGES_MAX + 1] = {
        {0, LAYERS}, {0, 3, LAYERS}, {0, 2, 3, LAYERS}, {0, 1, 2, 4, LAYERS}};
    dlxi_kernels *kernels = open_kernels(backend);
    for (int v = 0; v < VARIANTS; v++) {
        dlxi_model_config config = variant(v);
        dlxi_stage_options options = part(&config, 0, LAYERS);
        dlxi_stage *whole = open_stage(&config, &options, kernels);
        double loss[MICRO_BATCHES];
        for (int m = 0; m < MICRO_BATCHES; m++) {
            assert_int_equal(
                dlxi_stage_forward(whole, 0, token + m * N, NULL, target + m * N, &loss[m], NULL),
                DLX_OK);
            assert_int_equal(dlxi_stage_backward(whole, 0, NULL, NULL), DLX_OK);
        }
        for (int stages = 1; stages <= STAGES_MAX; stages++) {
            line *l = open_line(&config, first[stages - 1], stages, recompute, kernels);
            run_line(l);
            assert_memory_equal(l->loss, loss, sizeof loss);
            compare_line(l, whole);
            close_line(l);
        }
        dlxi_stage_close(&whole);
    }
    dlxi_kernels_close(&kernels);
}

static void test_partition(void **unused) {
    (void)unused;
    models_partitioned("ref", false);
    models_partitioned("fast", false);
}

static void test_partition_and_recompute(void **unused) {
    (void)unused;
    models_partitioned("ref", true);
    models_partitioned("fast", true);
}

/* ---- recomputation --------------------------------------------------------------------------- */

/* All micro-batches in flight at once, and backward in the opposite order. */
static void all_in_flight(dlxi_stage *stage) {
    double loss;
    for (int m = 0; m < MICRO_BATCHES; m++)
        assert_int_equal(
            dlxi_stage_forward(stage, m, token + m * N, NULL, target + m * N, &loss, NULL), DLX_OK);
    for (int m = MICRO_BATCHES - 1; m >= 0; m--)
        assert_int_equal(dlxi_stage_backward(stage, m, NULL, NULL), DLX_OK);
}

static void test_recompute(void **unused) {
    (void)unused;
    static const char *backends[] = {"ref", "fast"};
    for (int run = 0; run < 2 * VARIANTS; run++) {
        dlxi_kernels *kernels = open_kernels(backends[run % 2]);
        dlxi_model_config config = variant(run / 2);
        dlxi_stage_options options = part(&config, 0, LAYERS);
        options.slots = MICRO_BATCHES;
        dlxi_stage *keeps = open_stage(&config, &options, kernels);
        options.recompute = true;
        dlxi_stage *recomputes = open_stage(&config, &options, kernels);
        all_in_flight(keeps);
        all_in_flight(recomputes);
        assert_same_gradients(recomputes, keeps);
        dlxi_stage_close(&recomputes);
        dlxi_stage_close(&keeps);
        dlxi_kernels_close(&kernels);
    }
}

/* ---- finished gradients ---------------------------------------------------------------------- */

/* Copies a part's gradients when they are complete. */
typedef struct listener {
    dlxi_stage *stage;
    float *copy[128];
    int64_t layers[LAYERS + 2];
    int calls;
} listener;

static int64_t part_of(const dlxi_tensor *tensor) {
    return tensor->layer >= 0 ? tensor->layer : tensor->in_embedding ? -1 : LAYERS;
}

static void on_done(void *context, int64_t layer) {
    listener *l = context;
    int64_t count;
    const dlxi_parameter *parameter = dlxi_stage_parameters(l->stage, &count);
    assert_true(l->calls < LAYERS + 2);
    l->layers[l->calls++] = layer;
    for (int64_t i = 0; i < count; i++) {
        if (part_of(&parameter[i].tensor) != layer) continue;
        assert_null(l->copy[i]);
        l->copy[i] = malloc((size_t)parameter[i].count * sizeof(float));
        assert_non_null(l->copy[i]);
        memcpy(l->copy[i], parameter[i].gradient, (size_t)parameter[i].count * sizeof(float));
    }
}

/* One micro-batch: every part is reported once, in the header's order, with its final gradients. */
static void listen(dlxi_stage *stage, int m, const float *input, const float *d_output) {
    const dlxi_stage_options *options = dlxi_stage_opened_with(stage);
    const bool tied = dlxi_stage_config(stage)->tied_head;
    listener l = {.stage = stage};
    int64_t count, expected[LAYERS + 2];
    int calls = 0;
    double loss;
    if (options->has_head) expected[calls++] = LAYERS;
    if (options->has_head && tied && !options->has_embedding) expected[calls++] = -1;
    const int after_forward = calls;
    for (int64_t layer = options->end_layer - 1; layer >= options->first_layer; layer--)
        expected[calls++] = layer;
    if (options->has_embedding) expected[calls++] = -1;

    dlxi_stage_on_gradients(stage, on_done, &l);
    assert_int_equal(dlxi_stage_forward(stage, 0, options->has_embedding ? token + m * N : NULL,
                                        input, options->has_head ? target + m * N : NULL,
                                        options->has_head ? &loss : NULL, NULL),
                     DLX_OK);
    assert_int_equal(l.calls, after_forward);
    assert_int_equal(dlxi_stage_backward(stage, 0, d_output, NULL), DLX_OK);
    dlxi_stage_on_gradients(stage, NULL, NULL);
    assert_int_equal(l.calls, calls);
    assert_memory_equal(l.layers, expected, (size_t)calls * sizeof *expected);
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    for (int64_t i = 0; i < count; i++) {
        assert_non_null(l.copy[i]);
        assert_memory_equal(l.copy[i], parameter[i].gradient,
                            (size_t)parameter[i].count * sizeof(float));
        free(l.copy[i]);
    }
}

static void test_on_gradients(void **unused) {
    (void)unused;
    static const int64_t parts[][2] = {{0, LAYERS}, {0, 2}, {2, 4}, {4, LAYERS}};
    static float input[N * C], d_output[N * C];
    for (uint64_t i = 0; i < N * C; i++) {
        input[i] = dlxi_rng_normal(3, 0, i);
        d_output[i] = dlxi_rng_normal(3, 1, i);
    }
    dlxi_kernels *kernels = open_kernels("ref");
    for (int v = 0; v < VARIANTS; v++) {
        dlxi_model_config config = variant(v);
        for (int p = 0; p < 4; p++) {
            dlxi_stage_options options = part(&config, parts[p][0], parts[p][1]);
            options.recompute = v >= 2;
            dlxi_stage *stage = open_stage(&config, &options, kernels);
            for (int m = 0; m < 2; m++) /* the second adds to the first's */
                listen(stage, m, options.has_embedding ? NULL : input,
                       options.has_head ? NULL : d_output);
            dlxi_stage_close(&stage);
        }
    }
    dlxi_kernels_close(&kernels);
}

/* ---- forward only ---------------------------------------------------------------------------- */

static void test_evaluate_partition(void **unused) {
    (void)unused;
    static const int64_t first[] = {0, 2, 3, LAYERS};
    dlxi_kernels *kernels = open_kernels("ref");
    for (int run = 0; run < 2 * VARIANTS; run++) {
        dlxi_model_config config = variant(run / 2);
        dlxi_stage_options options = part(&config, 0, LAYERS);
        dlxi_stage *whole = open_stage(&config, &options, kernels), *stage[3];
        for (int s = 0; s < 3; s++) {
            options = part(&config, first[s], first[s + 1]);
            options.training = run % 2 == 0;
            options.slots = 2;
            stage[s] = open_stage(&config, &options, kernels);
        }
        options = part(&config, 0, LAYERS);
        options.batch = 1;
        dlxi_stage *one = open_stage(&config, &options, kernels);
        double loss, sum, partition_sum, expected = 0.0;
        for (int64_t windows = 1; windows <= B; windows++) {
            assert_int_equal(
                dlxi_stage_evaluate(whole, 0, token, NULL, target, windows, &sum, NULL), DLX_OK);
            assert_int_equal(
                dlxi_stage_evaluate(stage[0], 1, token, NULL, NULL, windows, NULL, NULL), DLX_OK);
            const float *x = dlxi_stage_output(stage[0], 1);
            assert_int_equal(dlxi_stage_evaluate(stage[1], 0, NULL, x, NULL, windows, NULL, NULL),
                             DLX_OK);
            x = dlxi_stage_output(stage[1], 0);
            assert_int_equal(
                dlxi_stage_evaluate(stage[2], 1, NULL, x, target, windows, &partition_sum, NULL),
                DLX_OK);
            assert_true(partition_sum == sum);
            const uint32_t *last = token + (windows - 1) * T,
                           *last_target = target + (windows - 1) * T;
            assert_int_equal(dlxi_stage_forward(one, 0, last, NULL, last_target, &loss, NULL),
                             DLX_OK);
            expected += loss * T;
            assert_true(fabs(sum - expected) < 1e-4);
        }
        assert_int_equal(dlxi_stage_forward(whole, 0, token, NULL, target, &loss, NULL), DLX_OK);
        assert_true(fabs(sum / N - loss) < 1e-12);
        for (int s = 0; s < 3; s++) dlxi_stage_close(&stage[s]);
        dlxi_stage_close(&one);
        dlxi_stage_close(&whole);
    }
    dlxi_kernels_close(&kernels);
}

/* A slot waiting for its backward pass is not changed by an evaluation in another, which adds no
 * gradients. */
static void test_evaluate_between(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = open_kernels("ref");
    for (int run = 0; run < 2 * VARIANTS; run++) {
        dlxi_model_config config = variant(run / 2);
        dlxi_stage_options options = part(&config, 0, LAYERS);
        options.slots = 2;
        options.recompute = run % 2 == 1;
        dlxi_stage *undisturbed = open_stage(&config, &options, kernels);
        dlxi_stage *disturbed = open_stage(&config, &options, kernels);
        double loss, sum;
        for (int s = 0; s < 2; s++) {
            dlxi_stage *stage = s == 0 ? undisturbed : disturbed;
            assert_int_equal(dlxi_stage_forward(stage, 0, token, NULL, target, &loss, NULL),
                             DLX_OK);
            if (s == 1)
                assert_int_equal(
                    dlxi_stage_evaluate(stage, 1, token + N, NULL, target + N, B, &sum, NULL),
                    DLX_OK);
            assert_int_equal(dlxi_stage_backward(stage, 0, NULL, NULL), DLX_OK);
        }
        assert_same_gradients(disturbed, undisturbed);
        dlxi_stage_close(&disturbed);
        dlxi_stage_close(&undisturbed);
    }
    dlxi_kernels_close(&kernels);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_partition),          cmocka_unit_test(test_partition_and_recompute),
        cmocka_unit_test(test_recompute),          cmocka_unit_test(test_on_gradients),
        cmocka_unit_test(test_evaluate_partition), cmocka_unit_test(test_evaluate_between),
    };
    return cmocka_run_group_tests(tests, draw_tokens, NULL);
}
