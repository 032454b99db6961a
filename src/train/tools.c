/* SPDX-License-Identifier: Apache-2.0 */
#include "train/tools.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "data/sampler.h"
#include "model/model.h"

/* A checkpoint's model, forward only. */
typedef struct loaded {
    dlxi_model_config config;
    dlxi_kernels *kernels;
    dlxi_stage *stage;
} loaded;

static void model_close(loaded *l) {
    dlxi_stage_close(&l->stage);
    dlxi_kernels_close(&l->kernels);
}

static dlx_status directory_check(const char *checkpoint, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    if (checkpoint[0] == '\0')
        DLX_FAIL(
            error, CONFIG,
            "CHECKPOINT: the path is empty; give a directory of weights: RUN_DIR/weights after "
            "a run");
    DLX_TRY(dlxi_path_join(path, checkpoint, "config.json", error));
    if (access(path, F_OK) == 0 || errno != ENOENT) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: no such file; give a directory of weights: RUN_DIR/weights after a run", path);
}

static dlx_status model_open(loaded *l, const char *checkpoint, int64_t batch, int threads,
                             dlx_log log, void *log_context, dlx_error *error) {
    *l = (loaded){0};
    DLX_TRY(directory_check(checkpoint, error));
    DLX_TRY(dlxi_checkpoint_load_config(&l->config, checkpoint, log, log_context, error));
    DLX_TRY(dlxi_kernels_open(&l->kernels, "auto", DLXI_PRECISION_AUTO, threads, error));
    dlxi_stage_options options = dlxi_stage_options_whole(&l->config, batch, l->config.context, 0);
    options.training = false;
    DLX_TRY(dlxi_stage_open(&l->stage, &l->config, &options, l->kernels, error));
    int64_t count;
    dlxi_parameter *parameters = dlxi_stage_parameters(l->stage, &count);
    DLX_TRY(
        dlxi_checkpoint_load(checkpoint, &l->config, parameters, count, log, log_context, error));
    dlxi_stage_parameters_changed(l->stage);
    return DLX_OK;
}

/* The loss of the reader's windows, summed over tokens, and the number of these. */
static dlx_status windows_evaluate(double *loss_sum, double *tokens, dlxi_stage *stage,
                                   dlxi_validation *reader, dlx_error *error) {
    const int64_t B = dlxi_stage_opened_with(stage)->batch, T = reader->context;
    dlx_status status = DLX_OK;
    uint32_t *inputs = NULL, *targets = NULL;
    double loss;
    *loss_sum = *tokens = 0;
    DLX_TRY_OUT(DLXI_NEW(&inputs, B * T, error));
    DLX_TRY_OUT(DLXI_NEW(&targets, B * T, error));
    for (int64_t n; (n = dlxi_validation_next(inputs, targets, reader, B)) > 0;) {
        DLX_TRY_OUT(dlxi_stage_evaluate(stage, 0, inputs, NULL, targets, n, &loss, error));
        *loss_sum += loss;
        *tokens += (double)(n * T);
    }
    if (!isfinite(*loss_sum)) DLX_FAIL_OUT(error, NUMERIC, "the loss is not finite");
out:
    free(inputs);
    free(targets);
    return status;
}

dlx_status dlxi_evaluate(double *loss, uint64_t *tokens_used, const char *checkpoint,
                         const char *data, const dlx_evaluate_options *options, dlx_error *error) {
    enum { BATCH = 8 };
    dlx_status status = DLX_OK;
    loaded model;
    dlxi_token_file *file = NULL;
    dlxi_validation reader;
    double sum, used;
    DLX_TRY_OUT(model_open(&model, checkpoint, BATCH, options->threads, options->log,
                           options->log_context, error));
    DLX_TRY_OUT(dlxi_token_file_open(&file, "--data", data, error));
    DLX_TRY_OUT(dlxi_token_file_check_vocabulary(file, model.config.vocabulary, error));
    DLX_TRY_OUT(dlxi_validation_open(&reader, file, model.config.context, (int64_t)options->tokens,
                                     0, 1, error));
    DLX_TRY_OUT(windows_evaluate(&sum, &used, model.stage, &reader, error));
    *loss = sum / used;
    *tokens_used = (uint64_t)used;
out:
    dlxi_token_file_close(&file);
    model_close(&model);
    return status;
}

/* *tokens ← the prompt's, with room for `room` more. An empty prompt becomes a newline. */
static dlx_status prompt_encode(uint32_t **tokens, size_t *count, const dlxi_tokenizer *tokenizer,
                                const dlx_generate_options *options, dlx_error *error) {
    const char *prompt = options->prompt != NULL ? options->prompt : "";
    size_t bytes = options->prompt_bytes > 0 && options->prompt != NULL ? options->prompt_bytes
                                                                        : strlen(prompt),
           consumed;
    if (bytes == 0) prompt = "\n", bytes = 1;
    DLX_TRY(DLXI_NEW(tokens, bytes + options->tokens, error));
    return tokenizer->op->encode(tokenizer, *tokens, bytes, count, (const uint8_t *)prompt, bytes,
                                 &consumed, true, error);
}

static dlx_status text_decode(char **text, size_t *text_bytes, const dlxi_tokenizer *tokenizer,
                              const uint32_t *tokens, size_t count, dlx_error *error) {
    size_t used = 0, capacity = 0;
    const uint8_t *piece;
    size_t piece_bytes;
    for (size_t i = 0; i < count; i++) {
        DLX_TRY(tokenizer->op->decode(tokenizer, &piece, &piece_bytes, tokens[i], error));
        capacity += piece_bytes;
    }
    DLX_TRY(DLXI_NEW(text, capacity + 1, error));
    for (size_t i = 0; i < count; i++) {
        (void)tokenizer->op->decode(tokenizer, &piece, &piece_bytes, tokens[i], NULL);
        memcpy(*text + used, piece, piece_bytes);
        used += piece_bytes;
    }
    *text_bytes = used;
    return DLX_OK;
}

dlx_status dlxi_generate(char **text, size_t *text_bytes, const char *checkpoint,
                         const dlx_generate_options *options, dlx_error *error) {
    dlx_status status = DLX_OK;
    loaded model;
    dlxi_tokenizer *tokenizer = NULL;
    uint32_t *tokens = NULL;
    size_t count;
    *text = NULL;
    DLX_TRY_OUT(model_open(&model, checkpoint, 1, options->threads, options->log,
                           options->log_context, error));
    DLX_TRY_OUT(dlxi_tokenizer_open(&tokenizer, "byte", error));
    if (tokenizer->vocabulary > model.config.vocabulary)
        DLX_FAIL_OUT(error, CONFIG, "%s: its vocabulary, %lld, is smaller than the tokenizer's, %u",
                     checkpoint, (long long)model.config.vocabulary, tokenizer->vocabulary);
    DLX_TRY_OUT(prompt_encode(&tokens, &count, tokenizer, options, error));
    dlxi_sampling sampling = {.temperature = (float)options->temperature,
                              .top_k = options->top_k,
                              .vocabulary = tokenizer->vocabulary,
                              .seed = options->seed};
    DLX_TRY_OUT(dlxi_model_generate(model.stage, tokens, (int64_t)count, options->tokens, &sampling,
                                    error));
    DLX_TRY_OUT(text_decode(text, text_bytes, tokenizer, tokens, count + options->tokens, error));
out:
    free(tokens);
    dlxi_tokenizer_close(&tokenizer);
    model_close(&model);
    return status;
}
