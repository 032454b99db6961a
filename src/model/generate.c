/* SPDX-License-Identifier: Apache-2.0 */
/* The whole model, forward only: evaluation, the next token's logits, sampling, generation. */
#include "model/internal.h"
#include "base/panic.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

dlx_status dlxi_model_evaluate(dlxi_stage *stage, const uint32_t *window, int64_t window_count,
                               double *mean_loss, dlx_error *error) {
    DLXI_ASSERT(stage->options.has_embedding && stage->options.has_head && window_count > 0);
    int64_t T = stage->options.length, B = stage->options.batch;
    double sum = 0.0, part;
    uint32_t *token = stage->token, *target = stage->target;
    for (int64_t first = 0; first < window_count; first += B) {
        int64_t rows = window_count - first < B ? window_count - first : B;
        for (int64_t b = 0; b < rows; b++) {
            const uint32_t *from = window + (first + b) * (T + 1);
            memcpy(token + b * T, from, (size_t)T * sizeof *from);
            memcpy(target + b * T, from + 1, (size_t)T * sizeof *from);
        }
        DLX_TRY(dlxi_stage_evaluate(stage, 0, token, NULL, target, rows, &part, error));
        sum += part;
    }
    *mean_loss = sum / ((double)window_count * (double)T);
    if (!isfinite(*mean_loss))
        DLX_FAIL(error, NUMERIC, "the validation loss is not finite; try a lower learning rate");
    return DLX_OK;
}

/* Few distinct lengths, so that the kernels prepare few shapes: the next power of two, at least 16.
 */
static int64_t rounded_length(int64_t count, int64_t most) {
    int64_t length = 16;
    while (length < count) length *= 2;
    return length < most ? length : most;
}

dlx_status dlxi_model_logits(dlxi_stage *stage, const uint32_t *token, int64_t count, float *logits,
                             dlx_error *error) {
    DLXI_ASSERT(stage->options.has_embedding && stage->options.has_head && count > 0);
    int64_t T = stage->options.length;
    if (count > T) {
        token += count - T;
        count = T;
    }
    /* what follows the last token can't change its logits: attention is causal */
    int64_t length = rounded_length(count, T);
    uint32_t *padded = stage->token;
    memset(padded, 0, (size_t)length * sizeof *padded);
    memcpy(padded, token, (size_t)count * sizeof *padded);
    DLX_TRY(dlxi_stage_blocks_forward(stage, 0, padded, NULL, (dlxi_shape){1, length}, error));
    DLX_TRY(dlxi_kernel_failed(dlxi_stage_head_forward(stage, 0, count - 1, 1), error));
    memcpy(logits, stage->logits, (size_t)stage->config.vocabulary * sizeof *logits);
    return DLX_OK;
}

static uint32_t likeliest(const float *logits, int64_t vocabulary) {
    int64_t best = 0;
    for (int64_t v = 1; v < vocabulary; v++) best = logits[v] > logits[best] ? v : best;
    return (uint32_t)best;
}

/* The top_k-th largest of logits, by narrowing a threshold: no second array, no sort. */
static float top_k_threshold(const float *logits, int64_t vocabulary, int64_t top_k) {
    float low = logits[0], high = logits[0];
    for (int64_t v = 1; v < vocabulary; v++) {
        low = fminf(low, logits[v]);
        high = fmaxf(high, logits[v]);
    }
    for (int step = 0; step < 64; step++) { /* at least top_k are ≥ low */
        float middle = low + 0.5f * (high - low);
        int64_t above = 0;
        for (int64_t v = 0; v < vocabulary; v++) above += logits[v] >= middle;
        if (above >= top_k) {
            low = middle;
        } else {
            high = middle;
        }
        if (above == top_k) break;
    }
    return low;
}

uint32_t dlxi_sample(float *logits, int64_t vocabulary, const dlxi_sampling *sampling,
                     uint64_t index) {
    uint32_t best = likeliest(logits, vocabulary);
    if (!(sampling->temperature > 0.0f) || !isfinite(logits[best])) return best;
    float threshold = -INFINITY;
    if (sampling->top_k > 0 && sampling->top_k < vocabulary)
        threshold = top_k_threshold(logits, vocabulary, sampling->top_k);
    float most = logits[best];
    double sum = 0.0;
    for (int64_t v = 0; v < vocabulary; v++) {
        logits[v] =
            logits[v] >= threshold ? expf((logits[v] - most) / sampling->temperature) : 0.0f;
        sum += (double)logits[v];
    }
    double left = (double)dlxi_rng_uniform(sampling->seed, 0x73616D706C65u, index) * sum;
    for (int64_t v = 0; v < vocabulary; v++) {
        left -= (double)logits[v];
        if (left < 0.0 && logits[v] > 0.0f) return (uint32_t)v;
    }
    return best;
}

dlx_status dlxi_model_generate(dlxi_stage *stage, uint32_t *token, int64_t prompt_count,
                               int64_t new_count, const dlxi_sampling *sampling, dlx_error *error) {
    for (int64_t i = 0; i < new_count; i++) {
        float *logits = stage->next_logits;
        DLX_TRY(dlxi_model_logits(stage, token, prompt_count + i, logits, error));
        token[prompt_count + i] =
            dlxi_sample(logits, stage->config.vocabulary, sampling, (uint64_t)i);
    }
    return DLX_OK;
}
