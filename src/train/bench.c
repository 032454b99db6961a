/* SPDX-License-Identifier: Apache-2.0 */
/* Benchmarks: training steps against what the machine's products and memory allow, and the stages
 * of a pipeline. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/resources.h"
#include "base/rng.h"
#include "model/optimizer.h"
#include "train/tools.h"

/* ---- a training step ------------------------------------------------------------------------- */

enum { STEPS_MIN = 2 };
static const double budget_s = 60.0; /* of a shape's timed steps; then STEPS_MIN are enough */

typedef struct bench_shape {
    const char *name;
    dlxi_family family;
    int64_t layers, width, heads, kv_heads, mlp_width, vocabulary;
    dlxi_optimizer_kind optimizer;
    uint32_t batch, length;
} bench_shape;

/* By dlx_bench_shape. */
static const bench_shape shapes[] = {
    {"quickstart", DLXI_FAMILY_LLAMA, 3, 192, 8, 4, 528, 256, DLXI_OPTIMIZER_MUON, 4, 256},
    {"GPT-2 124M", DLXI_FAMILY_GPT2, 12, 768, 12, 12, 3072, 50304, DLXI_OPTIMIZER_ADAMW, 4, 64},
    {"Llama 100M", DLXI_FAMILY_LLAMA, 12, 768, 12, 4, 2048, 16384, DLXI_OPTIMIZER_MUON, 4, 256},
    {"GPT-2 124M", DLXI_FAMILY_GPT2, 12, 768, 12, 12, 3072, 50304, DLXI_OPTIMIZER_ADAMW, 8, 512},
};
_Static_assert(sizeof shapes / sizeof *shapes == DLX_BENCH_SHAPES, "a row per shape");

typedef struct step_bench {
    bench_shape shape;
    dlxi_model_config model;
    dlxi_kernels *kernels;
    dlxi_stage *stage;
    dlxi_optimizer *optimizer;
    uint32_t *tokens, *targets;
    /* [steps]; rates of products in the precision of the model and of Muon, right after a step:
     * others may use the processor, too, and its speed drifts within seconds */
    double *step_s, *optimizer_s, *product_rate, *f32_rate;
    uint32_t steps;
    double peak_bytes;
} step_bench;

static void step_bench_close(step_bench *b) {
    free(b->tokens);
    free(b->targets);
    free(b->step_s);
    free(b->optimizer_s);
    free(b->product_rate);
    free(b->f32_rate);
    dlxi_optimizer_close(&b->optimizer);
    dlxi_stage_close(&b->stage);
    dlxi_kernels_close(&b->kernels);
}

static dlx_status step_bench_open(step_bench *b, const dlx_bench_step_options *options,
                                  dlx_error *error) {
    bench_shape *shape = &b->shape;
    *shape = shapes[options->shape];
    if (options->batch > 0) shape->batch = options->batch;
    if (options->length > 0) shape->length = options->length;
    const uint32_t count = shape->batch * shape->length;
    b->model = dlxi_model_config_default(shape->family);
    b->model.layers = shape->layers, b->model.width = shape->width, b->model.heads = shape->heads,
    b->model.kv_heads = shape->kv_heads, b->model.mlp_width = shape->mlp_width;
    b->model.context = shape->length > 256 ? shape->length : 256;
    b->model.vocabulary = shape->vocabulary;
    const dlxi_stage_options whole =
        dlxi_stage_options_whole(&b->model, shape->batch, shape->length, 1);
    const dlxi_optimizer_options settings = dlxi_optimizer_options_default(shape->optimizer);
    int64_t tensors;
    DLX_TRY(dlxi_kernels_open(&b->kernels, "fast",
                              options->f32 ? DLXI_PRECISION_F32 : DLXI_PRECISION_AUTO,
                              options->threads, error));
    DLX_TRY(dlxi_stage_open(&b->stage, &b->model, &whole, b->kernels, error));
    dlxi_parameter *parameters = dlxi_stage_parameters(b->stage, &tensors);
    DLX_TRY(dlxi_optimizer_open(&b->optimizer, &settings, parameters, tensors, b->kernels, error));
    DLX_TRY(DLXI_NEW(&b->tokens, count, error));
    DLX_TRY(DLXI_NEW(&b->targets, count, error));
    DLX_TRY(DLXI_NEW(&b->step_s, options->steps, error));
    DLX_TRY(DLXI_NEW(&b->optimizer_s, options->steps, error));
    DLX_TRY(DLXI_NEW(&b->product_rate, options->steps, error));
    DLX_TRY(DLXI_NEW(&b->f32_rate, options->steps, error));
    for (uint32_t i = 0; i < count; i++) {
        b->tokens[i] = (uint32_t)(dlxi_rng_u64(1, 0, i) % (uint64_t)b->model.vocabulary);
        b->targets[i] = (uint32_t)(dlxi_rng_u64(1, 1, i) % (uint64_t)b->model.vocabulary);
    }
    return DLX_OK;
}

static dlx_status step_time(step_bench *b, double *step_s, double *optimizer_s, dlx_error *error) {
    double loss, begun_s = dlxi_clock_s();
    dlxi_stage_zero_gradients(b->stage);
    DLX_TRY(dlxi_stage_forward(b->stage, 0, b->tokens, NULL, b->targets, &loss, error));
    DLX_TRY(dlxi_stage_backward(b->stage, 0, NULL, error));
    double stepped_s = dlxi_clock_s();
    DLX_TRY(dlxi_optimizer_step(b->optimizer, 1e-4f, 1.0f, NULL, error));
    dlxi_stage_parameters_changed(b->stage);
    *step_s = dlxi_clock_s() - begun_s;
    *optimizer_s = dlxi_clock_s() - stepped_s;
    return DLX_OK;
}

static dlx_status timed_step(step_bench *b, dlx_error *error) {
    const int threads = b->kernels->threads;
    const uint32_t i = b->steps;
    DLX_TRY(step_time(b, &b->step_s[i], &b->optimizer_s[i], error));
    DLX_TRY(dlxi_kernels_product_rate(&b->product_rate[i], b->kernels->precision, threads, error));
    DLX_TRY(dlxi_kernels_product_rate(&b->f32_rate[i], DLXI_PRECISION_F32, threads, error));
    b->steps++;
    return DLX_OK;
}

/* Causal attention's products, of T / 2 keys on average: 2 · 2 forward, twice that backward. */
static double flops_of(const step_bench *b, double parameters) {
    const double tokens = (double)(b->shape.batch * b->shape.length);
    const double attention =
        6.0 * (double)b->model.layers * (double)b->shape.length * (double)b->model.width;
    return tokens * (6.0 * parameters + attention);
}

/* Parameters, gradients, optimiser's state and activations, and bf16 copies of the weights. */
static double expected_bytes(step_bench *b, const dlxi_optimizer_cost *cost) {
    int64_t tensors;
    const dlxi_parameter *parameters = dlxi_stage_parameters(b->stage, &tensors);
    double bytes = cost->state_bytes + (double)dlxi_stage_activation_bytes(b->stage);
    for (int64_t i = 0; i < tensors; i++) {
        const bool copied =
            b->kernels->precision == DLXI_PRECISION_BF16 && !parameters[i].tensor.vector;
        bytes += (double)parameters[i].count * (copied ? 10.0 : 8.0);
    }
    return bytes;
}

static dlx_status result_fill(dlx_bench_step_result *r, step_bench *b, dlx_error *error) {
    const dlxi_optimizer_cost cost = dlxi_optimizer_cost_of(b->optimizer);
    const bool bf16 = b->kernels->precision == DLXI_PRECISION_BF16;
    *r = (dlx_bench_step_result){.shape = b->shape.name,
                                 .backend = b->kernels->op->name,
                                 .precision = bf16 ? "bf16" : "f32",
                                 .optimizer =
                                     b->shape.optimizer == DLXI_OPTIMIZER_MUON ? "Muon" : "AdamW",
                                 .batch = b->shape.batch,
                                 .length = b->shape.length,
                                 .steps = b->steps,
                                 .parameters = (uint64_t)dlxi_model_parameter_count(&b->model),
                                 .step_s_median = dlxi_median(b->step_s, (int)b->steps),
                                 .step_s_min = b->step_s[0],
                                 .step_s_max = b->step_s[b->steps - 1],
                                 .optimizer_s = dlxi_median(b->optimizer_s, (int)b->steps),
                                 .optimizer_flops = cost.flops,
                                 .optimizer_bytes = cost.moved_bytes,
                                 .peak_bytes = b->peak_bytes,
                                 .expected_bytes = expected_bytes(b, &cost)};
    r->model_flops = flops_of(b, (double)r->parameters);
    r->product_flops_per_s = dlxi_median(b->product_rate, (int)b->steps);
    const double f32_rate = dlxi_median(b->f32_rate, (int)b->steps);
    DLX_TRY(dlxi_kernels_memory_rate(&r->memory_bytes_per_s, b->kernels, error));
    r->products_floor_s = r->model_flops / r->product_flops_per_s;
    r->optimizer_floor_s = cost.flops / f32_rate + cost.moved_bytes / r->memory_bytes_per_s;
    return DLX_OK;
}

dlx_status dlxi_bench_step(dlx_bench_step_result *result, const dlx_bench_step_options *options,
                           dlx_error *error) {
    dlx_status status = DLX_OK;
    step_bench b = {0};
    double first_s, unused_s;
    dlxi_memory_peak_reset();
    DLX_TRY_OUT(step_bench_open(&b, options, error));
    DLX_TRY_OUT(step_time(&b, &first_s, &unused_s, error));
    b.peak_bytes = (double)dlxi_memory_peak();
    const double begun_s = dlxi_clock_s();
    while (b.steps < options->steps && (b.steps < STEPS_MIN || dlxi_clock_s() - begun_s < budget_s))
        DLX_TRY_OUT(timed_step(&b, error));
    DLX_TRY_OUT(result_fill(result, &b, error));
out:
    step_bench_close(&b);
    return status;
}

/* ---- the stages of a pipeline ---------------------------------------------------------------- */

/* The layers of each stage, as site.cut takes them. */
static void partition_print(char *text, size_t text_bytes, const dlxi_partition *partition) {
    size_t at = 0;
    text[0] = '\0';
    for (int s = 0; s < partition->stages && at < text_bytes; s++)
        at += (size_t)snprintf(
            text + at, text_bytes - at, "%s%lld", s == 0 ? "" : ",",
            (long long)(partition->first_layer[s + 1] - partition->first_layer[s]));
}

/* Mean stage over slowest stage: the busy share of stages that wait for each other. */
static double partition_balance(const dlxi_partition *partition, const dlxi_costs *costs) {
    double sum = 0, slowest = 0;
    for (int s = 0; s < partition->stages; s++) {
        double stage =
            costs->block * (double)(partition->first_layer[s + 1] - partition->first_layer[s]);
        if (s == 0) stage += costs->embedding;
        if (s == partition->stages - 1) stage += costs->head;
        sum += stage;
        slowest = fmax(slowest, stage);
    }
    return sum / partition->stages / slowest;
}

dlx_status dlxi_bench_stages(dlx_bench_stages_result *result, const dlxi_config *config, int stages,
                             dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_kernels *kernels = NULL;
    dlxi_model_config model = dlxi_config_model(config);
    dlxi_costs measured, estimated = dlxi_costs_estimate(&model, model.context);
    dlxi_partition partition;
    DLX_TRY_OUT(dlxi_kernels_open(&kernels, "auto", (dlxi_precision)config->train.precision,
                                  (int)config->site.threads, error));
    DLX_TRY_OUT(dlxi_costs_measure(&measured, &model, dlxi_config_micro_batch(config),
                                   model.context, kernels, error));
    *result = (dlx_bench_stages_result){.block_s = measured.block,
                                        .embedding_s = measured.embedding,
                                        .head_s = measured.head,
                                        .embedding_share = estimated.embedding / estimated.block,
                                        .head_share = estimated.head / estimated.block};
    DLX_TRY_OUT(dlxi_partition_balanced(&partition, &model, &measured, stages, error));
    partition_print(result->measured_partition, sizeof result->measured_partition, &partition);
    result->measured_balance = partition_balance(&partition, &measured);
    DLX_TRY_OUT(dlxi_partition_balanced(&partition, &model, &estimated, stages, error));
    partition_print(result->estimated_partition, sizeof result->estimated_partition, &partition);
    result->estimated_balance = partition_balance(&partition, &measured);
out:
    dlxi_kernels_close(&kernels);
    return status;
}
