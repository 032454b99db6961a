/* SPDX-License-Identifier: Apache-2.0 */
/* Benchmarks: a training step of the GPT-2 124M shape against the machine's matrix products, and
 * the stages of a pipeline. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"
#include "model/optimizer.h"
#include "train/tools.h"

static dlx_status step_time(double *seconds, dlxi_stage *stage, dlxi_optimizer *optimizer,
                            const uint32_t *tokens, const uint32_t *targets, dlx_error *error) {
    double loss, begun_s = dlxi_clock_s();
    dlxi_stage_zero_gradients(stage);
    DLX_TRY(dlxi_stage_forward(stage, 0, tokens, NULL, targets, &loss, error));
    DLX_TRY(dlxi_stage_backward(stage, 0, NULL, error));
    DLX_TRY(dlxi_optimizer_step(optimizer, 1e-4f, 1.0f, NULL, error));
    dlxi_stage_parameters_changed(stage);
    *seconds = dlxi_clock_s() - begun_s;
    return DLX_OK;
}

dlx_status dlxi_bench_model(dlx_bench_model_result *result, uint32_t batch, uint32_t length,
                            uint32_t steps, int threads, bool f32, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_kernels *kernels = NULL;
    dlxi_stage *stage = NULL;
    dlxi_optimizer *optimizer = NULL;
    uint32_t *tokens = NULL, *targets = NULL;
    double *seconds = NULL;
    dlxi_model_config config = dlxi_model_config_default(DLXI_FAMILY_GPT2);
    config.layers = 12, config.width = 768, config.heads = config.kv_heads = 12,
    config.mlp_width = 3072;
    config.context = 1024, config.vocabulary = 50304;
    dlxi_stage_options options = dlxi_stage_options_whole(&config, batch, length, 1);
    dlxi_optimizer_options adamw = dlxi_optimizer_options_default(DLXI_OPTIMIZER_ADAMW);
    int64_t count;
    DLX_TRY_OUT(dlxi_kernels_open(&kernels, "fast", f32 ? DLXI_PRECISION_F32 : DLXI_PRECISION_AUTO,
                                  threads, error));
    DLX_TRY_OUT(dlxi_stage_open(&stage, &config, &options, kernels, error));
    dlxi_parameter *parameters = dlxi_stage_parameters(stage, &count);
    DLX_TRY_OUT(dlxi_optimizer_open(&optimizer, &adamw, parameters, count, kernels, error));
    DLX_TRY_OUT(DLXI_NEW(&tokens, batch * length, error));
    DLX_TRY_OUT(DLXI_NEW(&targets, batch * length, error));
    DLX_TRY_OUT(DLXI_NEW(&seconds, steps, error));
    for (uint32_t i = 0; i < batch * length; i++) {
        tokens[i] = (uint32_t)(dlxi_rng_u64(1, 0, i) % (uint64_t)config.vocabulary);
        targets[i] = (uint32_t)(dlxi_rng_u64(1, 1, i) % (uint64_t)config.vocabulary);
    }
    double first_s;
    DLX_TRY_OUT(step_time(&first_s, stage, optimizer, tokens, targets, error));
    for (uint32_t i = 0; i < steps; i++)
        DLX_TRY_OUT(step_time(&seconds[i], stage, optimizer, tokens, targets, error));
    double median_s = dlxi_seconds_median(seconds, (int)steps);
    *result = (dlx_bench_model_result){
        .backend = kernels->op->name,
        .precision = kernels->precision == DLXI_PRECISION_BF16 ? "bf16" : "f32",
        .parameters = (uint64_t)dlxi_model_parameter_count(&config),
        .step_s_median = median_s,
        .step_s_min = seconds[0],
        .step_s_max = seconds[steps - 1]};
    result->model_flops_per_s =
        6.0 * (double)result->parameters * batch * length / result->step_s_median;
    DLX_TRY_OUT(dlxi_kernels_product_rate(&result->product_flops_per_s, kernels, error));
    result->share = result->model_flops_per_s / result->product_flops_per_s;
out:
    free(tokens);
    free(targets);
    free(seconds);
    dlxi_optimizer_close(&optimizer);
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
    return status;
}

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
