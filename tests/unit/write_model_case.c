/* SPDX-License-Identifier: Apache-2.0 */
/* Writes what torch_model.py compares, as checkpoints: a small model's weights (in one file and in
 * two), a batch, its loss and gradients, and the weights after optimiser steps.
 * Use: write_model_case CASE DIRECTORY BACKEND. */
#include "checkpoint/checkpoint.h"
#include "model/optimizer.h"
#include "base/rng.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 3, LENGTH = 11, ROWS = BATCH * LENGTH, STEPS = 3 };

static const struct {
    const char *name;
    dlxi_model_config config;
} cases[] = {
    {"gpt2",
     {.family = DLXI_FAMILY_GPT2,
      .layers = 2,
      .width = 24,
      .heads = 3,
      .kv_heads = 3,
      .mlp_width = 40,
      .context = 16,
      .vocabulary = 37,
      .activation = DLXI_GELU,
      .tied_head = true,
      .norm_epsilon = 1e-5f}},
    {"opt",
     {.family = DLXI_FAMILY_GPT2,
      .layers = 2,
      .width = 20,
      .heads = 2,
      .kv_heads = 2,
      .mlp_width = 12,
      .context = 11,
      .vocabulary = 37,
      .activation = DLXI_RELU,
      .tied_head = false,
      .norm_epsilon = 1e-3f}},
    {"llama",
     {.family = DLXI_FAMILY_LLAMA,
      .layers = 2,
      .width = 24,
      .heads = 6,
      .kv_heads = 2,
      .mlp_width = 40,
      .context = 16,
      .vocabulary = 37,
      .tied_head = false,
      .rope_theta = 100.0f,
      .norm_epsilon = 1e-5f}},
    {"qwen",
     {.family = DLXI_FAMILY_LLAMA,
      .layers = 3,
      .width = 16,
      .heads = 2,
      .kv_heads = 1,
      .mlp_width = 9,
      .context = 16,
      .vocabulary = 37,
      .qkv_bias = true,
      .tied_head = true,
      .rope_theta = 10000.0f,
      .norm_epsilon = 1e-6f}},
};

/* Zero biases and unit gains would hide errors. */
static void perturb(dlxi_parameter *parameter, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < parameter[i].count; j++)
            parameter[i].data[j] += 0.2f * dlxi_rng_normal(77, (uint64_t)i, (uint64_t)j);
}

static dlx_status save(const char *directory, const char *name, const dlxi_model_config *config,
                       const dlxi_parameter *parameter, int64_t count, dlx_error *error) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return dlxi_checkpoint_save(path, config, parameter, count, NULL, error);
}

/* The last layer and the head are the second part. */
static dlx_status save_in_parts(const char *directory, const dlxi_model_config *config,
                                const dlxi_parameter *parameter, int64_t count, dlx_error *error) {
    enum { TENSORS_MAX = 64 };
    char path[512];
    int part_of[TENSORS_MAX];
    dlxi_parameter own[2][TENSORS_MAX];
    int64_t held[2] = {0, 0};
    snprintf(path, sizeof path, "%s/parts", directory);
    if (count > TENSORS_MAX) DLX_FAIL(error, ARGUMENT, "%" PRId64 " tensors are too many", count);
    for (int64_t id = 0; id < count; id++) {
        const dlxi_tensor *tensor = &parameter[id].tensor;
        int part = tensor->layer >= 0 ? tensor->layer == config->layers - 1 : !tensor->in_embedding;
        part_of[id] = part;
        own[part][held[part]++] = parameter[id];
    }
    for (int p = 0; p < 2; p++) {
        dlxi_checkpoint_part *part = NULL;
        DLX_TRY(dlxi_checkpoint_part_begin(&part, path, config, own[p], held[p], p, 2, error));
        dlx_status status = dlxi_checkpoint_part_commit(part, error);
        dlxi_checkpoint_part_close(&part);
        if (status != DLX_OK) return status;
    }
    return dlxi_checkpoint_finish(path, config, part_of, 2, NULL, error);
}

static int write_batch(const char *directory, const uint32_t *token, const uint32_t *target,
                       double loss) {
    char path[512];
    snprintf(path, sizeof path, "%s/batch.json", directory);
    FILE *file = fopen(path, "w");
    if (file == NULL) return 1;
    fprintf(file, "{\"batch\": %d, \"length\": %d, \"steps\": %d, \"loss\": %.17g, \"token\": [",
            BATCH, LENGTH, STEPS, loss);
    for (int n = 0; n < ROWS; n++) fprintf(file, "%s%" PRIu32, n == 0 ? "" : ", ", token[n]);
    fprintf(file, "], \"target\": [");
    for (int n = 0; n < ROWS; n++) fprintf(file, "%s%" PRIu32, n == 0 ? "" : ", ", target[n]);
    fprintf(file, "]}\n");
    return fclose(file);
}

/* Saves the weights after STEPS steps at clip 0.5 and decay 0.1 as `name`. */
static dlx_status write_steps(dlxi_stage *stage, const char *directory, const char *name,
                              dlxi_optimizer_kind kind, dlxi_kernels *kernels,
                              const uint32_t *token, const uint32_t *target, dlx_error *error) {
    dlxi_optimizer *optimizer = NULL;
    int64_t count;
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    dlxi_optimizer_options options = dlxi_optimizer_options_default(kind);
    options.clip_norm = 0.5f;
    options.epsilon = 1e-6f;
    DLX_TRY(dlxi_optimizer_open(&optimizer, &options, parameter, count, kernels, error));
    for (int step = 0; step < STEPS; step++) {
        double loss;
        dlxi_stage_zero_gradients(stage);
        DLX_TRY(dlxi_stage_forward(stage, 0, token, NULL, target, &loss, error));
        DLX_TRY(dlxi_stage_backward(stage, 0, NULL, error));
        DLX_TRY(dlxi_optimizer_step(optimizer, 0.01f, 1.0f, NULL, error));
        dlxi_stage_parameters_changed(stage);
    }
    dlxi_optimizer_close(&optimizer);
    return save(directory, name, dlxi_stage_config(stage), parameter, count, error);
}

static dlx_status write_gradients(dlxi_stage *stage, const char *directory, const uint32_t *token,
                                  const uint32_t *target, dlx_error *error) {
    int64_t count;
    double loss;
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    DLX_TRY(save(directory, "start", dlxi_stage_config(stage), parameter, count, error));
    DLX_TRY(save_in_parts(directory, dlxi_stage_config(stage), parameter, count, error));
    DLX_TRY(dlxi_stage_forward(stage, 0, token, NULL, target, &loss, error));
    DLX_TRY(dlxi_stage_backward(stage, 0, NULL, error));
    if (write_batch(directory, token, target, loss) != 0) return DLX_SYSTEM;
    /* saves the gradients as weights */
    for (int64_t i = 0; i < count; i++) {
        float *data = parameter[i].data;
        parameter[i].data = parameter[i].gradient;
        parameter[i].gradient = data;
    }
    DLX_TRY(save(directory, "gradients", dlxi_stage_config(stage), parameter, count, error));
    for (int64_t i = 0; i < count; i++) {
        float *data = parameter[i].gradient;
        parameter[i].gradient = parameter[i].data;
        parameter[i].data = data;
    }
    return DLX_OK;
}

static dlx_status write_case(const dlxi_model_config *config, const char *directory,
                             const char *backend, dlx_error *error) {
    dlxi_kernels *kernels = NULL;
    uint32_t token[ROWS], target[ROWS];
    for (uint64_t n = 0; n < ROWS; n++) {
        token[n] = (uint32_t)(dlxi_rng_u64(5, 0, n) % (uint64_t)config->vocabulary);
        target[n] = (uint32_t)(dlxi_rng_u64(5, 1, n) % (uint64_t)config->vocabulary);
    }
    DLX_TRY(dlxi_kernels_open(&kernels, backend, DLXI_PRECISION_F32, 1, error));
    dlxi_stage_options options = dlxi_stage_options_whole(config, BATCH, LENGTH, 3);
    static const dlxi_optimizer_kind kinds[] = {DLXI_OPTIMIZER_ADAMW, DLXI_OPTIMIZER_MUON};
    for (int run = 0; run < 2; run++) {
        dlxi_stage *stage = NULL;
        int64_t count;
        DLX_TRY(dlxi_stage_open(&stage, config, &options, kernels, error));
        dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
        perturb(parameter, count);
        dlxi_stage_parameters_changed(stage);
        if (run == 0) DLX_TRY(write_gradients(stage, directory, token, target, error));
        DLX_TRY(write_steps(stage, directory, run == 0 ? "adamw" : "muon", kinds[run], kernels,
                            token, target, error));
        dlxi_stage_close(&stage);
    }
    dlxi_kernels_close(&kernels);
    return DLX_OK;
}

int main(int argc, char **argv) {
    dlx_error error = {0};
    for (size_t i = 0; argc == 4 && i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].name, argv[1]) != 0) continue;
        if (write_case(&cases[i].config, argv[2], argv[3], &error) == DLX_OK) return 0;
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    fprintf(stderr, "use: write_model_case gpt2|opt|llama|qwen DIRECTORY BACKEND\n");
    return 2;
}
