/* How fast a training step is beside the machine's best product: the GPT-2 124M shape. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"
#include "model/optimizer.h"
#include "train/tools.h"

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static dlx_status timed_step(double *seconds, dlxi_stage *stage, dlxi_optimizer *optimizer, const uint32_t *tokens,
                             const uint32_t *targets, dlx_error *error) {
    double loss, begun_s = dlxi_clock_s();
    dlxi_stage_zero_gradients(stage);
    DLX_TRY(dlxi_stage_forward(stage, 0, tokens, NULL, targets, &loss, error));
    DLX_TRY(dlxi_stage_backward(stage, 0, NULL, error));
    DLX_TRY(dlxi_optimizer_step(optimizer, 1e-4f, 1.0f, NULL, error));
    dlxi_stage_parameters_changed(stage);
    *seconds = dlxi_clock_s() - begun_s;
    return DLX_OK;
}

dlx_status dlxi_bench_model(dlx_bench_model_result *result, uint32_t batch, uint32_t length, uint32_t steps,
                            int threads, bool f32, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_kernels *kernels = NULL;
    dlxi_stage *stage = NULL;
    dlxi_optimizer *optimizer = NULL;
    uint32_t *tokens = NULL, *targets = NULL;
    double *seconds = NULL;
    dlxi_model_config config = dlxi_model_config_default(DLXI_FAMILY_GPT2);
    config.layers = 12, config.width = 768, config.heads = config.kv_heads = 12, config.mlp_width = 3072;
    config.context = 1024, config.vocabulary = 50304;
    dlxi_stage_options options = dlxi_stage_options_whole(&config, batch, length, 1);
    dlxi_optimizer_options adamw = dlxi_optimizer_options_default(DLXI_OPTIMIZER_ADAMW);
    int64_t count;
    DLX_TRY_OUT(dlxi_kernels_open(&kernels, "fast", f32 ? DLXI_PRECISION_F32 : DLXI_PRECISION_AUTO, threads, error));
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
    DLX_TRY_OUT(timed_step(&first_s, stage, optimizer, tokens, targets, error));
    for (uint32_t i = 0; i < steps; i++) DLX_TRY_OUT(timed_step(&seconds[i], stage, optimizer, tokens, targets, error));
    qsort(seconds, steps, sizeof *seconds, by_value);
    *result = (dlx_bench_model_result){.backend = kernels->op->name,
                                       .precision = kernels->precision == DLXI_PRECISION_BF16 ? "bf16" : "f32",
                                       .parameters = (uint64_t)dlxi_model_parameter_count(&config, true),
                                       .step_s_median = seconds[steps / 2],
                                       .step_s_min = seconds[0],
                                       .step_s_max = seconds[steps - 1]};
    result->model_flops_per_s = 6.0 * (double)result->parameters * batch * length / result->step_s_median;
    DLX_TRY_OUT(dlxi_kernels_product_rate(&result->product_flops_per_s, kernels, 1024, 5, error));
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
