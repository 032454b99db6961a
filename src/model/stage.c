/* SPDX-License-Identifier: Apache-2.0 */
/* A stage's life: its tensors and all its memory, taken at open; nothing is allocated in a step. */
#include "model/internal.h"
#include "model/limits.h"
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

static dlx_status validate_options(const dlxi_model_config *config,
                                   const dlxi_stage_options *options, dlx_error *error) {
    DLXI_ASSERT(options->first_layer >= 0 && options->first_layer <= options->end_layer);
    DLXI_ASSERT(options->end_layer <= config->layers);
    DLXI_ASSERT(options->slots >= 1 && options->slots <= 4096);
    if (options->batch < 1 || options->batch > DLXI_MICRO_BATCH_MAX)
        DLX_FAIL(error, CONFIG,
                 "train.micro_batch: %" PRId64
                 " is outside 1 to %d; set the windows of a micro-batch",
                 options->batch, DLXI_MICRO_BATCH_MAX);
    if (options->length < 1 || options->length > config->context)
        DLX_FAIL(error, CONFIG,
                 "window of %" PRId64 " tokens: outside 1 to model.context (%" PRId64 ")",
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

static void place_parameter(dlxi_stage *stage, dlxi_parameter *parameter) {
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

static size_t padded(int64_t count) {
    enum { FLOATS_PER_LINE = 16 };
    return ((size_t)count + FLOATS_PER_LINE - 1) / FLOATS_PER_LINE * FLOATS_PER_LINE;
}

static dlx_status open_parameters(dlxi_stage *stage, dlx_error *error) {
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
        place_parameter(stage, parameter);
        stage->floats += padded(parameter->count);
    }
    DLX_TRY(DLXI_NEW(&stage->data, stage->floats, error));
    if (stage->options.training) DLX_TRY(DLXI_NEW(&stage->gradient, stage->floats, error));
    size_t at = 0;
    for (int64_t i = 0; i < stage->parameter_count; i++) {
        dlxi_parameter *parameter = &stage->parameter[i];
        parameter->data = stage->data + at;
        parameter->gradient = stage->gradient == NULL ? NULL : stage->gradient + at;
        at += padded(parameter->count);
        dlxi_model_initialize(parameter->data, config, &parameter->tensor, stage->options.seed);
    }
    stage->bytes += (int64_t)(stage->floats * sizeof(float)) * (stage->options.training ? 2 : 1);
    return DLX_OK;
}

/* ---- activations ----------------------------------------------------------------------------- */

/* Hands out cache lines; with base NULL it only counts. */
typedef struct arena {
    char *base;
    size_t used;
} arena;

static void *take(arena *a, int64_t count, size_t item_bytes) {
    size_t bytes = padded(count) * item_bytes;
    void *at = a->base == NULL ? NULL : a->base + a->used;
    /* too large: the allocation fails */
    a->used = a->used > SIZE_MAX / 2 - bytes ? SIZE_MAX / 2 : a->used + bytes;
    return at;
}

static float *take_floats(arena *a, int64_t count) {
    return take(a, count, sizeof(float));
}

static void lay_out_block(dlxi_block_activations *kept, arena *a, const dlxi_stage *stage) {
    const dlxi_model_config *config = &stage->config;
    int64_t N = stage->options.batch * stage->options.length, C = config->width,
            K = dlxi_kv_width(config);
    bool llama = config->family == DLXI_FAMILY_LLAMA;
    dlxi_block_activations block = {0};
    block.norm1 = take_floats(a, N * C);
    block.rstd1 = take_floats(a, N);
    block.q = take_floats(a, N * C);
    block.key = take_floats(a, N * K);
    block.value = take_floats(a, N * K);
    block.attention = take_floats(a, N * C);
    block.lse = take_floats(a, N * config->heads);
    block.middle = take_floats(a, N * C);
    block.norm2 = take_floats(a, N * C);
    block.rstd2 = take_floats(a, N);
    block.up = take_floats(a, N * config->mlp_width);
    block.hidden = take_floats(a, N * config->mlp_width);
    if (llama) {
        block.gate = take_floats(a, N * config->mlp_width);
    } else {
        block.mean1 = take_floats(a, N);
        block.mean2 = take_floats(a, N);
    }
    if (a->base != NULL) *kept = block;
}

/* shared: one block's memory for all. A stage that does not train uses two residuals in turn. */
static void lay_out_slot(dlxi_stage *stage, arena *a, int slot,
                         const dlxi_block_activations *shared) {
    int64_t N = stage->options.batch * stage->options.length, NC = N * stage->config.width,
            L = stage->layer_count;
    dlxi_slot *s = &stage->slot[slot];
    s->residual = stage->residual + slot * (L + 1);
    s->block = stage->kept + slot * L;
    s->token = take(a, N, sizeof *s->token);
    for (int64_t layer = 0; layer <= L; layer++) {
        bool in_turn = !stage->options.training && layer >= 2;
        float *residual = in_turn ? s->residual[layer - 2] : take_floats(a, NC);
        if (a->base != NULL) s->residual[layer] = residual;
    }
    for (int64_t layer = 0; layer < L; layer++) {
        if (shared == NULL) {
            lay_out_block(&s->block[layer], a, stage);
        } else {
            s->block[layer] = *shared;
        }
    }
    if (stage->options.has_head && stage->options.training) s->d_final = take_floats(a, NC);
}

static void lay_out(dlxi_stage *stage, arena *a) {
    const dlxi_model_config *config = &stage->config;
    int64_t N = stage->options.batch * stage->options.length, C = config->width,
            K = dlxi_kv_width(config);
    int64_t M = config->mlp_width;
    bool share = (stage->options.recompute || !stage->options.training) && stage->layer_count > 0;
    dlxi_block_activations shared = {0};
    if (share) lay_out_block(&shared, a, stage);
    for (int slot = 0; slot < stage->options.slots; slot++)
        lay_out_slot(stage, a, slot, share ? &shared : NULL);
    if (stage->options.has_head) {
        stage->final_norm = take_floats(a, N * C);
        stage->final_mean = take_floats(a, N);
        stage->final_rstd = take_floats(a, N);
        stage->logits = take_floats(a, N * config->vocabulary);
        stage->token = take(a, N, sizeof *stage->token);
        stage->target = take(a, N, sizeof *stage->target);
        stage->next_logits = take_floats(a, config->vocabulary);
    }
    if (!stage->options.training) return;
    stage->d = take_floats(a, N * C);
    stage->d_a = take_floats(a, N * C);
    stage->d_b = take_floats(a, N * C);
    stage->d_q = take_floats(a, N * C);
    stage->d_key = take_floats(a, N * K);
    stage->d_value = take_floats(a, N * K);
    stage->d_hidden = take_floats(a, N * M);
    if (config->family == DLXI_FAMILY_LLAMA) {
        stage->d_gate = take_floats(a, N * M);
        stage->d_up = take_floats(a, N * M);
    }
}

static dlx_status open_activations(dlxi_stage *stage, dlx_error *error) {
    int slots = stage->options.slots;
    DLX_TRY(DLXI_NEW(&stage->slot, slots, error));
    DLX_TRY(DLXI_NEW(&stage->residual, slots * (stage->layer_count + 1), error));
    DLX_TRY(DLXI_NEW(&stage->kept, slots * stage->layer_count, error));
    arena a = {0};
    lay_out(stage, &a);
    DLX_TRY(dlxi_alloc(&stage->arena, a.used, 1, "activations", error));
    stage->bytes += (int64_t)a.used;
    a = (arena){.base = stage->arena};
    lay_out(stage, &a);
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
    DLX_TRY(validate_options(config, options, error));
    DLX_TRY(DLXI_NEW(&stage, 1, error));
    stage->config = *config;
    stage->options = *options;
    stage->kernels = kernels;
    stage->layer_count = options->end_layer - options->first_layer;
    DLX_TRY_OUT(open_parameters(stage, error));
    DLX_TRY_OUT(open_activations(stage, error));
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
    /* the kernels forget copies of weights that are about to go */
    dlxi_stage_parameters_changed(s);
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

int64_t dlxi_stage_bytes(const dlxi_stage *stage) {
    return stage->bytes;
}

void dlxi_stage_on_gradients(dlxi_stage *stage, dlxi_gradients_done done, void *context) {
    stage->done = done;
    stage->done_context = context;
}

void dlxi_stage_gradients_done(const dlxi_stage *stage, int64_t layer) {
    if (stage->done != NULL) stage->done(stage->done_context, layer);
}
