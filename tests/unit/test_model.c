/* SPDX-License-Identifier: Apache-2.0 */
/* The model: refused configs, the list of tensors, starting values, micro-batches against one
 * batch, and generation. test_model_stages.c has partitioned models, torch_model.py PyTorch's
 * gradients. */
#include "model/model.h"
#include "base/hash.h"
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

enum { B = 2, T = 8, N = B * T, V = 31 };

static dlxi_model_config small(dlxi_family family) {
    dlxi_model_config config = dlxi_model_config_default(family);
    config.layers = 4;
    config.width = 16;
    config.heads = 4;
    config.kv_heads = family == DLXI_FAMILY_GPT2 ? 4 : 2;
    config.mlp_width = 20;
    config.context = 12;
    config.vocabulary = V;
    return config;
}

static void draw_tokens(uint32_t *token, int64_t count, uint64_t stream) {
    for (int64_t i = 0; i < count; i++)
        token[i] = (uint32_t)(dlxi_rng_u64(9, stream, (uint64_t)i) % V);
}

static dlxi_kernels *open_kernels(void) {
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_F32, 1, NULL), DLX_OK);
    return kernels;
}

static dlxi_stage *open_stage(const dlxi_model_config *config, const dlxi_stage_options *options,
                              dlxi_kernels *kernels) {
    dlxi_stage *stage = NULL;
    dlx_error error = {0};
    if (dlxi_stage_open(&stage, config, options, kernels, &error) != DLX_OK)
        fail_msg("%s", error.message);
    return stage;
}

static dlxi_stage *open_whole(const dlxi_model_config *config, int64_t batch,
                              dlxi_kernels *kernels) {
    dlxi_stage_options options = dlxi_stage_options_whole(config, batch, T, 4);
    return open_stage(config, &options, kernels);
}

static const dlxi_parameter *find(dlxi_stage *stage, const char *name) {
    int64_t count;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    for (int64_t i = 0; i < count; i++)
        if (strcmp(parameter[i].tensor.name, name) == 0) return &parameter[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

/* ---- configuration --------------------------------------------------------------------------- */

static void refused(dlxi_model_config config, const char *message) {
    dlx_error error = {0};
    assert_int_equal(dlxi_model_config_validate(&config, &error), DLX_CONFIG);
    assert_string_equal(error.message, message);
}

static void test_validate(void **unused) {
    (void)unused;
    dlxi_model_config c = small(DLXI_FAMILY_LLAMA), good = c;
    assert_int_equal(dlxi_model_config_validate(&good, NULL), DLX_OK);
    c.layers = 0;
    refused(c, "model.layers: 0 is out of range; allowed: 1 to 1024; set the number of transformer "
               "blocks");
    c = good, c.width = 18;
    refused(
        c, "model.width: 18 is not a multiple of model.heads (4); set width to 20 or change heads");
    c = good, c.kv_heads = 3;
    refused(c, "model.kv_heads: 3 does not divide model.heads (4); set it to heads or to a divisor "
               "of heads");
    c = good, c.width = 12;
    refused(c, "model.width: 12 over model.heads (4) gives heads of width 3; rotary positions need "
               "an even width: change width or heads");
    c = good, c.family = DLXI_FAMILY_GPT2;
    refused(c, "model.kv_heads: 2 with model.family gpt2, which has one key head per query head; "
               "set it to model.heads (4)");
    c = good, c.vocabulary = 1;
    refused(c, "model.vocabulary: 1 is out of range; allowed: 2 to 16777216; set the tokenizer's "
               "vocabulary: 256 for bytes");
    c = good, c.norm_epsilon = NAN;
    refused(c, "model.norm_epsilon: nan is out of range; allowed: above 0, to 0.1; 1e-5 is usual");
    c = good, c.rope_theta = 0.0f;
    refused(c, "model.rope_theta: 0 is out of range; allowed: 1 to 1e+09; 10000 is usual");
}

static void test_parameter_counts(void **unused) {
    (void)unused;
    dlxi_model_config gpt2 = dlxi_model_config_default(DLXI_FAMILY_GPT2);
    gpt2.layers = 12, gpt2.width = 768, gpt2.heads = gpt2.kv_heads = 12;
    gpt2.mlp_width = 3072, gpt2.context = 1024, gpt2.vocabulary = 50257;
    /* the published GPT-2 small, without its positions */
    assert_int_equal(dlxi_model_parameter_count(&gpt2), 124439808 - 1024 * 768);

    dlxi_model_config qwen = dlxi_model_config_default(DLXI_FAMILY_LLAMA);
    qwen.layers = 24, qwen.width = 896, qwen.heads = 14, qwen.kv_heads = 2;
    qwen.mlp_width = 4864, qwen.vocabulary = 151936, qwen.qkv_bias = true, qwen.tied_head = true;
    /* the published Qwen2-0.5B */
    assert_int_equal(dlxi_model_parameter_count(&qwen), 494032768);
}

static void test_tensor_list(void **unused) {
    (void)unused;
    for (int f = 0; f < 2; f++) {
        dlxi_model_config config = small(f == 0 ? DLXI_FAMILY_GPT2 : DLXI_FAMILY_LLAMA);
        int64_t hidden = 0, count = dlxi_model_tensor_count(&config);
        for (int64_t id = 0; id < count; id++) {
            dlxi_tensor tensor = dlxi_model_tensor(&config, id);
            assert_int_equal(tensor.id, id);
            assert_int_equal(tensor.decay, !tensor.vector);
            hidden += tensor.hidden_matrix;
            for (int64_t other = 0; other < id; other++)
                assert_string_not_equal(dlxi_model_tensor(&config, other).name, tensor.name);
        }
        assert_int_equal(hidden, config.layers * (f == 0 ? 6 : 7));
        assert_string_equal(dlxi_model_tensor(&config, 3).name,
                            f == 0 ? "transformer.h.0.ln_1.bias"
                                   : "model.layers.0.self_attn.k_proj.weight");
        assert_string_equal(dlxi_model_tensor(&config, count - 1).name,
                            f == 0 ? "transformer.ln_f.bias" : "lm_head.weight");
    }
}

/* ---- stages ---------------------------------------------------------------------------------- */

static void test_starting_values(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = open_kernels();
    dlxi_model_config config = small(DLXI_FAMILY_LLAMA);
    config.width = 64, config.mlp_width = 128;
    dlxi_stage_options options = dlxi_stage_options_whole(&config, B, T, 4);
    dlxi_stage *whole = open_stage(&config, &options, kernels);
    options.first_layer = 2, options.has_embedding = false;
    dlxi_stage *half = open_stage(&config, &options, kernels);
    int64_t count;
    const dlxi_parameter *parameter = dlxi_stage_parameters(half, &count);
    for (int64_t i = 0; i < count; i++) {
        const dlxi_parameter *same = find(whole, parameter[i].tensor.name);
        assert_memory_equal(parameter[i].data, same->data,
                            (size_t)parameter[i].count * sizeof(float));
    }
    /* 0.02, and 0.02 / sqrt(2 · 4) for projections into the residual stream */
    static const struct {
        const char *name;
        double deviation;
    } expected[] = {{"model.layers.3.mlp.up_proj.weight", 0.02},
                    {"model.layers.3.mlp.down_proj.weight", 0.0070711}};
    for (int i = 0; i < 2; i++) {
        const dlxi_parameter *p = find(whole, expected[i].name);
        double squares = kernels->op->sum_of_squares(kernels, p->data, p->count);
        assert_true(fabs(sqrt(squares / (double)p->count) / expected[i].deviation - 1.0) < 0.03);
    }
    assert_true(find(whole, "model.norm.weight")->data[5] == 1.0f);
    /* equal bits on every machine and in every version */
    uint64_t hash = 0;
    parameter = dlxi_stage_parameters(whole, &count);
    for (int64_t i = 0; i < count; i++)
        hash = dlxi_hash(parameter[i].data, (size_t)parameter[i].count * sizeof(float), hash);
    assert_int_equal(hash, UINT64_C(0xda20ee083652eafe));
    dlxi_stage_close(&half);
    dlxi_stage_close(&whole);
    dlxi_kernels_close(&kernels);
}

static void test_micro_batches_make_a_batch(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = open_kernels();
    dlxi_model_config config = small(DLXI_FAMILY_LLAMA);
    uint32_t token[3 * N], target[3 * N];
    draw_tokens(token, 3 * N, 0);
    draw_tokens(target, 3 * N, 1);
    dlxi_stage *large = open_whole(&config, 3 * B, kernels),
               *micro = open_whole(&config, B, kernels);
    double loss, part, mean = 0.0;
    assert_int_equal(dlxi_stage_forward(large, 0, token, NULL, target, &loss, NULL), DLX_OK);
    assert_int_equal(dlxi_stage_backward(large, 0, NULL, NULL), DLX_OK);
    for (int m = 0; m < 3; m++) {
        assert_int_equal(
            dlxi_stage_forward(micro, 0, token + m * N, NULL, target + m * N, &part, NULL), DLX_OK);
        assert_int_equal(dlxi_stage_backward(micro, 0, NULL, NULL), DLX_OK);
        mean += part / 3.0;
    }
    assert_true(fabs(mean - loss) < 1e-6);
    int64_t count;
    dlxi_parameter *a = dlxi_stage_parameters(micro, &count),
                   *b = dlxi_stage_parameters(large, &count);
    for (int64_t i = 0; i < count; i++) {
        for (int64_t j = 0; j < a[i].count; j++) a[i].gradient[j] /= 3.0f;
        assert_true(difference(a[i].gradient, b[i].gradient, a[i].count) < 1e-5);
    }
    dlxi_stage_zero_gradients(micro);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < a[i].count; j++) assert_true(a[i].gradient[j] == 0.0f);
    dlxi_stage_close(&micro);
    dlxi_stage_close(&large);
    dlxi_kernels_close(&kernels);
}

static void test_bad_tokens(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = open_kernels();
    dlxi_model_config config = small(DLXI_FAMILY_GPT2);
    dlxi_stage *stage = open_whole(&config, B, kernels);
    uint32_t token[N] = {0}, target[N] = {0};
    double loss;
    dlx_error error = {0};
    token[N - 1] = V;
    assert_int_equal(dlxi_stage_forward(stage, 0, token, NULL, target, &loss, &error), DLX_DATA);
    assert_string_equal(
        error.message,
        "token 31 is out of range; allowed: 0 to 30; set model.vocabulary to the tokenizer's");
    token[N - 1] = 0, target[0] = UINT32_MAX;
    assert_int_equal(dlxi_stage_forward(stage, 0, token, NULL, target, &loss, &error), DLX_DATA);
    dlxi_stage_options options = dlxi_stage_options_whole(&config, B, 13, 4);
    dlxi_stage *none = stage;
    assert_int_equal(dlxi_stage_open(&none, &config, &options, kernels, &error), DLX_CONFIG);
    assert_null(none);
    assert_string_equal(error.message,
                        "window length 13 is out of range; allowed: 1 to model.context (12)");
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

static void test_not_finite(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = open_kernels();
    dlxi_model_config config = small(DLXI_FAMILY_LLAMA);
    dlxi_stage *stage = open_whole(&config, B, kernels);
    uint32_t token[N] = {0};
    double loss;
    find(stage, "model.norm.weight")->data[3] = NAN;
    assert_int_equal(dlxi_stage_forward(stage, 0, token, NULL, token, &loss, NULL), DLX_NUMERIC);
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

/* ---- generation ------------------------------------------------------------------------------ */

/* −log softmax(logits)[t] of every prefix of a window sums to the window's loss. */
static void test_logits_agree_with_loss(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = open_kernels();
    dlxi_model_config config = small(DLXI_FAMILY_LLAMA);
    dlxi_stage *stage = open_whole(&config, 1, kernels);
    uint32_t window[T + 1];
    draw_tokens(window, T + 1, 3);
    double expected, sum = 0.0;
    float *logits, last[V];
    assert_int_equal(dlxi_stage_evaluate(stage, 0, window, NULL, window + 1, 1, &expected, NULL),
                     DLX_OK);
    for (int t = 0; t < T; t++) {
        assert_int_equal(dlxi_model_logits(&logits, stage, window, t + 1, NULL), DLX_OK);
        double total = 0.0;
        for (int v = 0; v < V; v++) total += exp((double)logits[v]);
        sum += log(total) - (double)logits[window[t + 1]];
    }
    assert_true(fabs(sum - expected) < 1e-5 * T);
    /* the window slides: of T + 1 tokens the last T count */
    assert_int_equal(dlxi_model_logits(&logits, stage, window, T + 1, NULL), DLX_OK);
    memcpy(last, logits, sizeof last);
    assert_int_equal(dlxi_model_logits(&logits, stage, window + 1, T, NULL), DLX_OK);
    assert_memory_equal(logits, last, sizeof last);
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

static void test_generate(void **unused) {
    (void)unused;
    enum { PROMPT = 3, NEW = 12 };
    dlxi_kernels *kernels = open_kernels();
    dlxi_model_config config = small(DLXI_FAMILY_LLAMA);
    dlxi_stage *stage = open_whole(&config, 1, kernels);
    dlxi_sampling sampling = {.temperature = 0.8f, .top_k = 5, .seed = 1};
    uint32_t first[PROMPT + NEW] = {1, 2, 3}, second[PROMPT + NEW] = {1, 2, 3},
                            third[PROMPT + NEW] = {1, 2, 3};
    assert_int_equal(dlxi_model_generate(stage, first, PROMPT, NEW, &sampling, NULL), DLX_OK);
    assert_int_equal(dlxi_model_generate(stage, second, PROMPT, NEW, &sampling, NULL), DLX_OK);
    assert_memory_equal(first, second, sizeof first);
    sampling.seed = 2;
    assert_int_equal(dlxi_model_generate(stage, third, PROMPT, NEW, &sampling, NULL), DLX_OK);
    assert_memory_not_equal(first, third, sizeof first);
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

static void test_sample(void **unused) {
    (void)unused;
    static const float scores[4] = {0.0f, 2.0f, 1.0f, -3.0f};
    dlxi_sampling greedy = {0}, warm = {.temperature = 1.0f, .seed = 7},
                  two = {.temperature = 1.0f, .top_k = 2};
    int drawn[4] = {0};
    float logits[4];
    memcpy(logits, scores, sizeof logits);
    assert_int_equal(dlxi_sample(logits, 4, &greedy, 0), 1);
    for (uint64_t i = 0; i < 20000; i++) {
        memcpy(logits, scores, sizeof logits);
        drawn[dlxi_sample(logits, 4, &warm, i)]++;
        memcpy(logits, scores, sizeof logits);
        uint32_t of_two = dlxi_sample(logits, 4, &two, i);
        assert_true(of_two == 1 || of_two == 2);
    }
    /* the likeliest ones are none of the tokenizer's */
    for (uint64_t i = 0; i < 2000; i++) {
        dlxi_sampling one = {.temperature = 50.0f, .vocabulary = 1, .top_k = 3 * (int64_t)(i % 2)};
        memcpy(logits, scores, sizeof logits);
        assert_int_equal(dlxi_sample(logits, 4, &one, i), 0);
        one.temperature = 0.0f, one.vocabulary = 3;
        logits[3] = 9.0f;
        assert_int_equal(dlxi_sample(logits, 4, &one, i), 1);
        one.vocabulary = 5; /* more than the model has */
        assert_int_equal(dlxi_sample(logits, 4, &one, i), 3);
    }
    double total = 0.0;
    for (int v = 0; v < 4; v++) total += exp((double)scores[v]);
    for (int v = 0; v < 4; v++)
        assert_true(fabs(drawn[v] / 20000.0 - exp((double)scores[v]) / total) < 0.015);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_validate),
        cmocka_unit_test(test_parameter_counts),
        cmocka_unit_test(test_tensor_list),
        cmocka_unit_test(test_starting_values),
        cmocka_unit_test(test_micro_batches_make_a_batch),
        cmocka_unit_test(test_bad_tokens),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_logits_agree_with_loss),
        cmocka_unit_test(test_generate),
        cmocka_unit_test(test_sample),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
