/* SPDX-License-Identifier: Apache-2.0 */
/* A micro-batch's forward pass through a stage. */
#include "model/internal.h"
#include "base/panic.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

dlx_status dlxi_kernel_failed(dlx_status status, dlx_error *error) {
    if (status == DLX_OK) return DLX_OK;
    const char *hint =
        status == DLX_MEMORY ? "try a smaller train.micro_batch" : "try train.precision: f32";
    return dlxi_error_set(error, status, "a kernel of the training step failed: %s; %s",
                          dlx_status_text(status), hint);
}

static const float *parameter_data(const dlxi_parameter *parameter) {
    return parameter == NULL ? NULL : parameter->data;
}

/* LayerNorm if there is a bias, or RMSNorm. */
static dlx_status norm_forward(const dlxi_stage *stage, float *y, float *mean, float *rstd,
                               const float *x, const dlxi_parameter *gain,
                               const dlxi_parameter *bias, int64_t N) {
    dlxi_kernels *k = stage->kernels;
    int64_t C = stage->config.width;
    float epsilon = stage->config.norm_epsilon;
    if (bias != NULL)
        return k->op->layernorm_forward(k, y, mean, rstd, x, gain->data, bias->data, N, C, epsilon);
    return k->op->rmsnorm_forward(k, y, rstd, x, gain->data, N, C, epsilon);
}

static dlx_status linear_forward(const dlxi_stage *stage, float *y, const float *x,
                                 const dlxi_parameter *weight, const dlxi_parameter *bias,
                                 int64_t N) {
    dlxi_kernels *k = stage->kernels;
    return k->op->linear_forward(k, y, x, weight->data, parameter_data(bias), N,
                                 weight->tensor.cols, weight->tensor.rows);
}

/* middle = x + out(attention(norm1(x))) */
static dlx_status attention_forward(const dlxi_stage *stage, const dlxi_block *block,
                                    dlxi_block_activations *kept, const float *x,
                                    dlxi_shape shape) {
    const dlxi_model_config *config = &stage->config;
    dlxi_kernels *k = stage->kernels;
    dlxi_parameter *const *role = block->role;
    int64_t N = shape.B * shape.T, T = shape.T, D = config->width / config->heads;
    DLX_TRY(norm_forward(stage, kept->norm1, kept->mean1, kept->rstd1, x,
                         role[DLXI_ROLE_NORM1_GAIN], role[DLXI_ROLE_NORM1_BIAS], N));
    DLX_TRY(
        linear_forward(stage, kept->q, kept->norm1, role[DLXI_ROLE_Q], role[DLXI_ROLE_Q_BIAS], N));
    DLX_TRY(linear_forward(stage, kept->key, kept->norm1, role[DLXI_ROLE_K], role[DLXI_ROLE_K_BIAS],
                           N));
    DLX_TRY(linear_forward(stage, kept->value, kept->norm1, role[DLXI_ROLE_V],
                           role[DLXI_ROLE_V_BIAS], N));
    if (!dlxi_model_parts(config)->learned_positions) {
        DLX_TRY(k->op->rope(k, kept->q, N, T, config->heads, D, config->rope_theta, false));
        DLX_TRY(k->op->rope(k, kept->key, N, T, config->kv_heads, D, config->rope_theta, false));
    }
    DLX_TRY(k->op->attention_forward(k, kept->attention, kept->lse, kept->q, kept->key, kept->value,
                                     shape.B, T, config->heads, config->kv_heads, D));
    DLX_TRY(linear_forward(stage, kept->middle, kept->attention, role[DLXI_ROLE_OUT],
                           role[DLXI_ROLE_OUT_BIAS], N));
    return k->op->add(k, kept->middle, x, N * config->width);
}

/* hidden = activation(up(norm2(middle))) */
static dlx_status hidden_forward(const dlxi_stage *stage, const dlxi_block *block,
                                 dlxi_block_activations *kept, int64_t N) {
    const dlxi_model_config *config = &stage->config;
    dlxi_kernels *k = stage->kernels;
    dlxi_parameter *const *role = block->role;
    int64_t NM = N * config->mlp_width;
    DLX_TRY(norm_forward(stage, kept->norm2, kept->mean2, kept->rstd2, kept->middle,
                         role[DLXI_ROLE_NORM2_GAIN], role[DLXI_ROLE_NORM2_BIAS], N));
    DLX_TRY(linear_forward(stage, kept->up, kept->norm2, role[DLXI_ROLE_UP],
                           role[DLXI_ROLE_UP_BIAS], N));
    if (role[DLXI_ROLE_GATE] != NULL) {
        DLX_TRY(linear_forward(stage, kept->gate, kept->norm2, role[DLXI_ROLE_GATE], NULL, N));
        return k->op->swiglu_forward(k, kept->hidden, kept->gate, kept->up, NM);
    }
    return k->op->activation_forward(k, kept->hidden, kept->up, config->activation, NM);
}

/* y = middle + down(hidden) */
static dlx_status mlp_forward(const dlxi_stage *stage, const dlxi_block *block,
                              dlxi_block_activations *kept, float *y, int64_t N) {
    dlxi_kernels *k = stage->kernels;
    dlxi_parameter *const *role = block->role;
    DLX_TRY(hidden_forward(stage, block, kept, N));
    DLX_TRY(
        linear_forward(stage, y, kept->hidden, role[DLXI_ROLE_DOWN], role[DLXI_ROLE_DOWN_BIAS], N));
    return k->op->add(k, y, kept->middle, N * stage->config.width);
}

dlx_status dlxi_block_recompute(const dlxi_stage *stage, const dlxi_block *block,
                                dlxi_block_activations *kept, const float *x, dlxi_shape shape) {
    DLX_TRY(attention_forward(stage, block, kept, x, shape));
    return hidden_forward(stage, block, kept, shape.B * shape.T);
}

static dlx_status tokens_check(const dlxi_stage *stage, const uint32_t *token, int64_t N,
                               const char *what, dlx_error *error) {
    int64_t vocabulary = stage->config.vocabulary;
    for (int64_t n = 0; n < N; n++) {
        if ((int64_t)token[n] >= vocabulary)
            DLX_FAIL(error, DATA,
                     "%s %" PRIu32 " is out of range; allowed: 0 to %" PRId64
                     "; set model.vocabulary to the tokenizer's",
                     what, token[n], vocabulary - 1);
    }
    return DLX_OK;
}

static dlx_status blocks_forward(dlxi_stage *stage, dlxi_slot *slot, dlxi_shape shape) {
    dlxi_kernels *k = stage->kernels;
    int64_t N = shape.B * shape.T, C = stage->config.width;
    if (stage->options.has_embedding) {
        DLX_TRY(k->op->embedding_forward(k, slot->residual[0], slot->token, stage->table->data,
                                         parameter_data(stage->position), N, shape.T, C));
    }
    for (int64_t layer = 0; layer < stage->layer_count; layer++) {
        const dlxi_block *block = &stage->block[layer];
        dlxi_block_activations *kept = &slot->block[layer];
        DLX_TRY(attention_forward(stage, block, kept, slot->residual[layer], shape));
        DLX_TRY(mlp_forward(stage, block, kept, slot->residual[layer + 1], N));
    }
    return DLX_OK;
}

dlx_status dlxi_stage_blocks_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                                     const float *input, dlxi_shape shape, dlx_error *error) {
    DLXI_ASSERT(slot >= 0 && slot < stage->options.slots);
    DLXI_ASSERT(stage->options.has_embedding ? token != NULL : input != NULL);
    DLXI_ASSERT(shape.B <= stage->options.batch && shape.T <= stage->options.length);
    dlxi_slot *s = &stage->slot[slot];
    size_t N = (size_t)(shape.B * shape.T);
    if (stage->options.has_embedding) {
        DLX_TRY(tokens_check(stage, token, (int64_t)N, "token", error));
        memcpy(s->token, token, N * sizeof *token);
    } else {
        memcpy(s->residual[0], input, N * (size_t)stage->config.width * sizeof *input);
    }
    return dlxi_kernel_failed(blocks_forward(stage, s, shape), error);
}

dlx_status dlxi_stage_head_forward(dlxi_stage *stage, int slot, int64_t first, int64_t N) {
    const float *x = stage->slot[slot].residual[stage->layer_count] + first * stage->config.width;
    DLX_TRY(norm_forward(stage, stage->final_norm, stage->final_mean, stage->final_rstd, x,
                         stage->final_gain, stage->final_bias, N));
    return linear_forward(stage, stage->logits, stage->final_norm, stage->head, NULL, N);
}

/* Embedding or input, blocks, and with the head the logits and loss_sum ← Σ −log p. gradient: the
 * mean loss's gradient overwrites the logits. */
static dlx_status loss_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                               const float *input, const uint32_t *target, int64_t windows,
                               bool gradient, double *loss_sum, dlx_error *error) {
    dlxi_kernels *k = stage->kernels;
    dlxi_shape shape = {windows, stage->options.length};
    int64_t N = shape.B * shape.T;
    bool head = stage->options.has_head;
    DLXI_ASSERT(head == (target != NULL) && head == (loss_sum != NULL));
    if (head) DLX_TRY(tokens_check(stage, target, N, "target token", error));
    DLX_TRY(dlxi_stage_blocks_forward(stage, slot, token, input, shape, error));
    if (!head) return DLX_OK;
    DLX_TRY(dlxi_kernel_failed(dlxi_stage_head_forward(stage, slot, 0, N), error));
    *loss_sum = 0.0;
    return dlxi_kernel_failed(k->op->cross_entropy(k, loss_sum, stage->logits, target, N,
                                                   stage->config.vocabulary, gradient,
                                                   1.0f / (float)N),
                              error);
}

dlx_status dlxi_stage_evaluate(dlxi_stage *stage, int slot, const uint32_t *token,
                               const float *input, const uint32_t *target, int64_t windows,
                               double *loss_sum, dlx_error *error) {
    DLXI_ASSERT(windows >= 1);
    return loss_forward(stage, slot, token, input, target, windows, false, loss_sum, error);
}

dlx_status dlxi_stage_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                              const float *input, const uint32_t *target, double *loss,
                              dlx_error *error) {
    const dlxi_stage_options *options = &stage->options;
    int64_t N = options->batch * options->length;
    DLX_TRY(loss_forward(stage, slot, token, input, target, options->batch, options->training, loss,
                         error));
    if (!options->has_head) return DLX_OK;
    *loss /= (double)N;
    if (!isfinite(*loss))
        DLX_FAIL(
            error, NUMERIC,
            "the training loss is not finite; try a lower train.learning_rate or a longer warm-up");
    if (!options->training) return DLX_OK;
    DLX_TRY(dlxi_kernel_failed(dlxi_stage_head_backward(stage, &stage->slot[slot], N), error));
    dlxi_stage_gradients_done(stage, stage->config.layers);
    if (!options->has_embedding && stage->config.tied_head) dlxi_stage_gradients_done(stage, -1);
    return DLX_OK;
}

const float *dlxi_stage_output(const dlxi_stage *stage, int slot) {
    DLXI_ASSERT(!stage->options.has_head);
    return stage->slot[slot].residual[stage->layer_count];
}
