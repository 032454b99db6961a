/* SPDX-License-Identifier: Apache-2.0 */
/* A gradient's backward pass through a stage. stage->d is the gradient of the residual stream, d_a
 * and d_b are the branches'. */
#include "model/internal.h"
#include "base/panic.h"

#include <string.h>

static float *parameter_gradient(const dlxi_parameter *parameter) {
    return parameter == NULL ? NULL : parameter->gradient;
}

static dlx_status linear_backward(const dlxi_stage *stage, float *dx, const float *dy,
                                  const float *x, const dlxi_parameter *weight,
                                  const dlxi_parameter *bias, int64_t N) {
    dlxi_kernels *k = stage->kernels;
    return k->op->linear_backward(k, dx, weight->gradient, parameter_gradient(bias), dy, x,
                                  weight->data, N, weight->tensor.cols, weight->tensor.rows);
}

static dlx_status norm_backward(const dlxi_stage *stage, float *dx, const float *dy, const float *x,
                                const float *mean, const float *rstd, const dlxi_parameter *gain,
                                const dlxi_parameter *bias, int64_t N) {
    dlxi_kernels *k = stage->kernels;
    int64_t C = stage->config.width;
    if (bias != NULL)
        return k->op->layernorm_backward(k, dx, gain->gradient, bias->gradient, dy, x, mean, rstd,
                                         gain->data, N, C);
    return k->op->rmsnorm_backward(k, dx, gain->gradient, dy, x, rstd, gain->data, N, C);
}

dlx_status dlxi_stage_head_backward(dlxi_stage *stage, const dlxi_slot *slot, int64_t N) {
    DLX_TRY(
        linear_backward(stage, stage->d_a, stage->logits, stage->final_norm, stage->head, NULL, N));
    return norm_backward(stage, slot->d_final, stage->d_a, slot->residual[stage->layer_count],
                         stage->final_mean, stage->final_rstd, stage->final_gain, stage->final_bias,
                         N);
}

static dlx_status mlp_backward(dlxi_stage *stage, const dlxi_block *block,
                               const dlxi_block_activations *kept, int64_t N) {
    const dlxi_model_config *config = &stage->config;
    dlxi_kernels *k = stage->kernels;
    dlxi_parameter *const *role = block->role;
    int64_t NC = N * config->width, NM = N * config->mlp_width;
    DLX_TRY(linear_backward(stage, stage->d_hidden, stage->d, kept->hidden, role[DLXI_ROLE_DOWN],
                            role[DLXI_ROLE_DOWN_BIAS], N));
    if (role[DLXI_ROLE_GATE] != NULL) {
        DLX_TRY(k->op->swiglu_backward(k, stage->d_gate, stage->d_up, stage->d_hidden, kept->gate,
                                       kept->up, NM));
        DLX_TRY(linear_backward(stage, stage->d_a, stage->d_up, kept->norm2, role[DLXI_ROLE_UP],
                                NULL, N));
        DLX_TRY(linear_backward(stage, stage->d_b, stage->d_gate, kept->norm2, role[DLXI_ROLE_GATE],
                                NULL, N));
        DLX_TRY(k->op->add(k, stage->d_a, stage->d_b, NC));
    } else {
        DLX_TRY(k->op->activation_backward(k, stage->d_hidden, stage->d_hidden, kept->up,
                                           config->activation, NM));
        DLX_TRY(linear_backward(stage, stage->d_a, stage->d_hidden, kept->norm2, role[DLXI_ROLE_UP],
                                role[DLXI_ROLE_UP_BIAS], N));
    }
    DLX_TRY(norm_backward(stage, stage->d_b, stage->d_a, kept->middle, kept->mean2, kept->rstd2,
                          role[DLXI_ROLE_NORM2_GAIN], role[DLXI_ROLE_NORM2_BIAS], N));
    return k->op->add(k, stage->d, stage->d_b, NC);
}

static dlx_status attention_backward(dlxi_stage *stage, const dlxi_block *block,
                                     const dlxi_block_activations *kept, const float *x,
                                     dlxi_shape shape) {
    const dlxi_model_config *config = &stage->config;
    dlxi_kernels *k = stage->kernels;
    dlxi_parameter *const *role = block->role;
    int64_t N = shape.B * shape.T, T = shape.T, NC = N * config->width,
            D = config->width / config->heads;
    DLX_TRY(linear_backward(stage, stage->d_a, stage->d, kept->attention, role[DLXI_ROLE_OUT],
                            role[DLXI_ROLE_OUT_BIAS], N));
    DLX_TRY(k->op->attention_backward(k, stage->d_q, stage->d_key, stage->d_value, stage->d_a,
                                      kept->attention, kept->lse, kept->q, kept->key, kept->value,
                                      shape.B, T, config->heads, config->kv_heads, D));
    if (!dlxi_model_parts(config)->learned_positions) {
        DLX_TRY(k->op->rope(k, stage->d_q, N, T, config->heads, D, config->rope_theta, true));
        DLX_TRY(k->op->rope(k, stage->d_key, N, T, config->kv_heads, D, config->rope_theta, true));
    }
    DLX_TRY(linear_backward(stage, stage->d_a, stage->d_q, kept->norm1, role[DLXI_ROLE_Q],
                            role[DLXI_ROLE_Q_BIAS], N));
    DLX_TRY(linear_backward(stage, stage->d_b, stage->d_key, kept->norm1, role[DLXI_ROLE_K],
                            role[DLXI_ROLE_K_BIAS], N));
    DLX_TRY(k->op->add(k, stage->d_a, stage->d_b, NC));
    DLX_TRY(linear_backward(stage, stage->d_b, stage->d_value, kept->norm1, role[DLXI_ROLE_V],
                            role[DLXI_ROLE_V_BIAS], N));
    DLX_TRY(k->op->add(k, stage->d_a, stage->d_b, NC));
    DLX_TRY(norm_backward(stage, stage->d_b, stage->d_a, x, kept->mean1, kept->rstd1,
                          role[DLXI_ROLE_NORM1_GAIN], role[DLXI_ROLE_NORM1_BIAS], N));
    return k->op->add(k, stage->d, stage->d_b, NC);
}

static dlx_status blocks_backward(dlxi_stage *stage, const dlxi_slot *slot, dlxi_shape shape) {
    dlxi_kernels *k = stage->kernels;
    for (int64_t layer = stage->layer_count - 1; layer >= 0; layer--) {
        const dlxi_block *block = &stage->block[layer];
        dlxi_block_activations *kept = &slot->block[layer];
        if (stage->options.recompute)
            DLX_TRY(dlxi_block_recompute(stage, block, kept, slot->residual[layer], shape));
        DLX_TRY(mlp_backward(stage, block, kept, shape.B * shape.T));
        DLX_TRY(attention_backward(stage, block, kept, slot->residual[layer], shape));
        dlxi_stage_gradients_done(stage, stage->options.first_layer + layer);
    }
    if (!stage->options.has_embedding) return DLX_OK;
    DLX_TRY(k->op->embedding_backward(k, stage->table->gradient,
                                      parameter_gradient(stage->position), stage->d, slot->token,
                                      shape.B * shape.T, shape.T, stage->config.width));
    dlxi_stage_gradients_done(stage, -1);
    return DLX_OK;
}

dlx_status dlxi_stage_backward(dlxi_stage *stage, int slot, const float *d_output,
                               dlx_error *error) {
    DLXI_ASSERT(stage->options.training && slot >= 0 && slot < stage->options.slots);
    DLXI_ASSERT(stage->options.has_head == (d_output == NULL));
    dlxi_shape shape = {stage->options.batch, stage->options.length};
    const dlxi_slot *s = &stage->slot[slot];
    const float *d = stage->options.has_head ? s->d_final : d_output;
    memcpy(stage->d, d, (size_t)(shape.B * shape.T * stage->config.width) * sizeof *d);
    return dlxi_kernel_failed(blocks_backward(stage, s, shape), error);
}

const float *dlxi_stage_d_input(const dlxi_stage *stage) {
    DLXI_ASSERT(!stage->options.has_embedding);
    return stage->d;
}
