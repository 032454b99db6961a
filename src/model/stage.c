/* SPDX-License-Identifier: Apache-2.0 */
/* A stage's tensors and memory, allocated at open: a step allocates nothing. */
#include "model/internal.h"
#include "base/memory.h"
#include "base/panic.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

dlxi_stage_options dlxi_stage_options_whole(const dlxi_model_config *config, int64_t batch,
                                            int64_t length, uint64_t seed) {
    return (dlxi_stage_options){.first_layer = 0,
                                .end_layer = config->layers,
                                .has_embedding = true,
                                .has_head = true,
                                .batch = batch,
                                .length = length,
                                .slots = 1,
                                .training = true,
                                .seed = seed};
}

static dlx_status options_validate(const dlxi_model_config *config,
                                   const dlxi_stage_options *options, dlx_error *error) {
    DLXI_ASSERT(options->first_layer >= 0 && options->first_layer <= options->end_layer);
    DLXI_ASSERT(options->end_layer <= config->layers);
    DLXI_ASSERT(options->slots >= 1 && options->slots <= 4096);
    if (options->batch < 1 || options->batch > DLXI_MICRO_BATCH_MAX)
        DLX_FAIL(error, CONFIG,
                 "train.micro_batch: %" PRId64 " is out of range; allowed: 1 to %d windows",
                 options->batch, DLXI_MICRO_BATCH_MAX);
    if (options->length < 1 || options->length > config->context)
        DLX_FAIL(error, CONFIG,
                 "window length %" PRId64 " is out of range; allowed: 1 to model.context (%" PRId64
                 ")",
                 options->length, config->context);
    return DLX_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static bool stage_has(const dlxi_stage_options *options, const dlxi_tensor *tensor) {
    if (tensor->layer >= 0)
        return tensor->layer >= options->first_layer && tensor->layer < options->end_layer;
    return (tensor->in_embedding && options->has_embedding) ||
           (tensor->in_head && options->has_head);
}

static void parameter_place(dlxi_stage *stage, dlxi_parameter *parameter) {
    const dlxi_tensor *tensor = &parameter->tensor;
    if (tensor->layer >= 0) {
        dlxi_block *block = &stage->block[tensor->layer - stage->options.first_layer];
        block->role[dlxi_tensor_role(&stage->config, tensor->id)] = parameter;
    } else if (tensor->in_embedding && tensor->id == 0) {
        stage->table = parameter;
        if (tensor->in_head) stage->head = parameter;
    } else if (tensor->in_embedding) {
        stage->position = parameter;
    } else if (!tensor->vector) {
        stage->head = parameter;
    } else if (stage->final_gain == NULL) {
        stage->final_gain = parameter;
    } else {
        stage->final_bias = parameter;
    }
}

static dlx_status parameters_open(dlxi_stage *stage, dlx_error *error) {
    const dlxi_model_config *config = &stage->config;
    int64_t all = dlxi_model_tensor_count(config);
    DLX_TRY(DLXI_NEW(&stage->parameter, all, error));
    DLX_TRY(DLXI_NEW(&stage->block, stage->layer_count, error));
    for (int64_t id = 0; id < all; id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        if (!stage_has(&stage->options, &tensor)) continue;
        dlxi_parameter *parameter = &stage->parameter[stage->parameter_count++];
        parameter->tensor = tensor;
        parameter->count = tensor.rows * tensor.cols;
        parameter_place(stage, parameter);
        stage->floats += dlxi_floats_padded(parameter->count);
    }
    DLX_TRY(DLXI_NEW(&stage->data, stage->floats, error));
    if (stage->options.training) DLX_TRY(DLXI_NEW(&stage->gradient, stage->floats, error));
    size_t at = 0;
    for (int64_t i = 0; i < stage->parameter_count; i++) {
        dlxi_parameter *parameter = &stage->parameter[i];
        parameter->data = stage->data + at;
        parameter->gradient = stage->gradient == NULL ? NULL : stage->gradient + at;
        at += dlxi_floats_padded(parameter->count);
        dlxi_model_initialize(parameter->data, config, &parameter->tensor, stage->options.seed);
    }
    return DLX_OK;
}

/* ---- activations ----------------------------------------------------------------------------- */

/* Allocates whole cache lines; only counts if base is NULL. */
typedef struct arena {
    char *base;
    size_t used;
} arena;

static void *arena_take(arena *a, int64_t count, size_t item_bytes) {
    size_t bytes = dlxi_floats_padded(count) * item_bytes;
    void *at = a->base == NULL ? NULL : a->base + a->used;
    /* saturates: too large an allocation fails */
    a->used = a->used > SIZE_MAX / 2 - bytes ? SIZE_MAX / 2 : a->used + bytes;
    return at;
}

static float *arena_floats(arena *a, int64_t count) {
    return arena_take(a, count, sizeof(float));
}

static void block_lay_out(dlxi_block_activations *kept, arena *a, const dlxi_stage *stage) {
    const dlxi_model_config *config = &stage->config;
    int64_t N = stage->options.batch * stage->options.length, C = config->width,
            K = dlxi_kv_width(config);
    const dlxi_family_parts *parts = dlxi_model_parts(config);
    dlxi_block_activations block = {0};
    block.norm1 = arena_floats(a, N * C);
    block.rstd1 = arena_floats(a, N);
    block.q = arena_floats(a, N * C);
    block.key = arena_floats(a, N * K);
    block.value = arena_floats(a, N * K);
    block.attention = arena_floats(a, N * C);
    block.lse = arena_floats(a, N * config->heads);
    block.middle = arena_floats(a, N * C);
    block.norm2 = arena_floats(a, N * C);
    block.rstd2 = arena_floats(a, N);
    block.up = arena_floats(a, N * config->mlp_width);
    block.hidden = arena_floats(a, N * config->mlp_width);
    if (parts->gated_mlp) block.gate = arena_floats(a, N * config->mlp_width);
    if (parts->layer_norm) {
        block.mean1 = arena_floats(a, N);
        block.mean2 = arena_floats(a, N);
    }
    if (a->base != NULL) *kept = block;
}

/* shared: one memory for all blocks, or NULL. Without training, layers alternate between two
 * residuals. */
static void slot_lay_out(dlxi_stage *stage, arena *a, int slot,
                         const dlxi_block_activations *shared) {
    int64_t N = stage->options.batch * stage->options.length, NC = N * stage->config.width,
            L = stage->layer_count;
    dlxi_slot *s = &stage->slot[slot];
    s->residual = stage->residual + slot * (L + 1);
    s->block = stage->kept + slot * L;
    s->token = arena_take(a, N, sizeof *s->token);
    for (int64_t layer = 0; layer <= L; layer++) {
        bool alternate = !stage->options.training && layer >= 2;
        float *residual = alternate ? s->residual[layer - 2] : arena_floats(a, NC);
        if (a->base != NULL) s->residual[layer] = residual;
    }
    for (int64_t layer = 0; layer < L; layer++) {
        if (shared == NULL)
            block_lay_out(&s->block[layer], a, stage);
        else
            s->block[layer] = *shared;
    }
    if (stage->options.has_head && stage->options.training) s->d_final = arena_floats(a, NC);
}

static void stage_lay_out(dlxi_stage *stage, arena *a) {
    const dlxi_model_config *config = &stage->config;
    int64_t N = stage->options.batch * stage->options.length, C = config->width,
            K = dlxi_kv_width(config), M = config->mlp_width;
    bool share = (stage->options.recompute || !stage->options.training) && stage->layer_count > 0;
    dlxi_block_activations shared = {0};
    if (share) block_lay_out(&shared, a, stage);
    for (int slot = 0; slot < stage->options.slots; slot++)
        slot_lay_out(stage, a, slot, share ? &shared : NULL);
    if (stage->options.has_head) {
        stage->final_norm = arena_floats(a, N * C);
        stage->final_mean = arena_floats(a, N);
        stage->final_rstd = arena_floats(a, N);
        stage->logits = arena_floats(a, N * config->vocabulary);
        stage->token = arena_take(a, N, sizeof *stage->token);
    }
    if (!stage->options.training) return;
    stage->d = arena_floats(a, N * C);
    stage->d_a = arena_floats(a, N * C);
    stage->d_b = arena_floats(a, N * C);
    stage->d_q = arena_floats(a, N * C);
    stage->d_key = arena_floats(a, N * K);
    stage->d_value = arena_floats(a, N * K);
    stage->d_hidden = arena_floats(a, N * M);
    if (dlxi_model_parts(config)->gated_mlp) {
        stage->d_gate = arena_floats(a, N * M);
        stage->d_up = arena_floats(a, N * M);
    }
}

static dlx_status activations_open(dlxi_stage *stage, dlx_error *error) {
    int slots = stage->options.slots;
    DLX_TRY(DLXI_NEW(&stage->slot, slots, error));
    DLX_TRY(DLXI_NEW(&stage->residual, slots * (stage->layer_count + 1), error));
    DLX_TRY(DLXI_NEW(&stage->kept, slots * stage->layer_count, error));
    arena a = {0};
    stage_lay_out(stage, &a);
    stage->arena_bytes = a.used;
    DLX_TRY(dlxi_alloc(&stage->arena, a.used, 1, "activations", error));
    a = (arena){.base = stage->arena};
    stage_lay_out(stage, &a);
    return DLX_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

dlx_status dlxi_stage_open(dlxi_stage **out, const dlxi_model_config *config,
                           const dlxi_stage_options *options, dlxi_kernels *kernels,
                           dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_stage *stage = NULL;
    *out = NULL;
    DLX_TRY(dlxi_model_config_validate(config, error));
    DLX_TRY(options_validate(config, options, error));
    DLX_TRY(DLXI_NEW(&stage, 1, error));
    stage->config = *config;
    stage->options = *options;
    stage->kernels = kernels;
    stage->layer_count = options->end_layer - options->first_layer;
    DLX_TRY_OUT(parameters_open(stage, error));
    DLX_TRY_OUT(activations_open(stage, error));
    dlxi_stage_parameters_changed(stage);
    *out = stage;
    return DLX_OK;
out:
    dlxi_stage_close(&stage);
    return status;
}

void dlxi_stage_close(dlxi_stage **stage) {
    dlxi_stage *s = *stage;
    if (s == NULL) return;
    dlxi_stage_parameters_changed(s); /* drops the kernels' copies of the weights */
    free(s->arena);
    free(s->kept);
    free(s->residual);
    free(s->slot);
    free(s->gradient);
    free(s->data);
    free(s->block);
    free(s->parameter);
    free(s);
    *stage = NULL;
}

size_t dlxi_stage_activation_bytes(const dlxi_stage *stage) {
    return stage->arena_bytes;
}

const dlxi_model_config *dlxi_stage_config(const dlxi_stage *stage) {
    return &stage->config;
}

const dlxi_stage_options *dlxi_stage_opened_with(const dlxi_stage *stage) {
    return &stage->options;
}

dlxi_parameter *dlxi_stage_parameters(dlxi_stage *stage, int64_t *count) {
    *count = stage->parameter_count;
    return stage->parameter;
}

void dlxi_stage_parameters_changed(dlxi_stage *stage) {
    stage->kernels->op->weights_changed(stage->kernels, NULL);
}

void dlxi_stage_zero_gradients(dlxi_stage *stage) {
    DLXI_ASSERT(stage->options.training);
    memset(stage->gradient, 0, stage->floats * sizeof(float));
}

void dlxi_stage_on_gradients(dlxi_stage *stage, dlxi_gradients_done done, void *context) {
    stage->done = done;
    stage->done_context = context;
}

void dlxi_stage_gradients_done(const dlxi_stage *stage, int64_t layer) {
    if (stage->done != NULL) stage->done(stage->done_context, layer);
}
