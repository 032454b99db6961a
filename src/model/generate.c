/* SPDX-License-Identifier: Apache-2.0 */
/* Text generation: the next token's logits, and sampling. */
#include "model/internal.h"
#include "base/panic.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

/* The next power of two, at least 16, so that the kernels prepare few shapes. */
static int64_t length_round(int64_t count, int64_t max) {
    int64_t length = 16;
    while (length < count) length *= 2;
    return length < max ? length : max;
}

dlx_status dlxi_model_logits(float **logits, dlxi_stage *stage, const uint32_t *token,
                             int64_t count, dlx_error *error) {
    DLXI_ASSERT(stage->options.has_embedding && stage->options.has_head && count > 0);
    int64_t T = stage->options.length;
    if (count > T) {
        token += count - T;
        count = T;
    }
    /* attention is causal: what follows the last token does not change its logits */
    int64_t length = length_round(count, T);
    uint32_t *padded = stage->token;
    memset(padded, 0, (size_t)length * sizeof *padded);
    memcpy(padded, token, (size_t)count * sizeof *padded);
    DLX_TRY(dlxi_stage_blocks_forward(stage, 0, padded, NULL, (dlxi_shape){1, length}, error));
    DLX_TRY(dlxi_kernel_failed(dlxi_stage_head_forward(stage, 0, count - 1, 1), error));
    *logits = stage->logits;
    return DLX_OK;
}

static uint32_t most_likely(const float *logits, int64_t vocabulary) {
    int64_t best = 0;
    for (int64_t v = 1; v < vocabulary; v++) best = logits[v] > logits[best] ? v : best;
    return (uint32_t)best;
}

/* The top_k-th largest logit by bisection: no second array, no sort. */
static float top_k_threshold(const float *logits, int64_t vocabulary, int64_t top_k) {
    float low = logits[0], high = logits[0];
    for (int64_t v = 1; v < vocabulary; v++) {
        low = fminf(low, logits[v]);
        high = fmaxf(high, logits[v]);
    }
    for (int step = 0; step < 64; step++) { /* at least top_k logits are ≥ low */
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

/* "sample": separates these random numbers from other uses of the seed. */
#define STREAM UINT64_C(0x73616D706C65)

uint32_t dlxi_sample(float *logits, int64_t vocabulary, const dlxi_sampling *sampling,
                     uint64_t index) {
    if (sampling->vocabulary > 0 && sampling->vocabulary < vocabulary)
        vocabulary = sampling->vocabulary;
    uint32_t best = most_likely(logits, vocabulary);
    if (!(sampling->temperature > 0.0f) || !isfinite(logits[best])) return best;
    float threshold = -INFINITY;
    if (sampling->top_k > 0 && sampling->top_k < vocabulary)
        threshold = top_k_threshold(logits, vocabulary, sampling->top_k);
    float max = logits[best];
    double sum = 0.0;
    for (int64_t v = 0; v < vocabulary; v++) {
        logits[v] = logits[v] >= threshold ? expf((logits[v] - max) / sampling->temperature) : 0.0f;
        sum += (double)logits[v];
    }
    double left = (double)dlxi_rng_uniform(sampling->seed, STREAM, index) * sum;
    for (int64_t v = 0; v < vocabulary; v++) {
        left -= (double)logits[v];
        if (left < 0.0 && logits[v] > 0.0f) return (uint32_t)v;
    }
    return best;
}

static bool all_finite(const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i])) return false;
    return true;
}

dlx_status dlxi_model_generate(dlxi_stage *stage, uint32_t *token, int64_t prompt_count,
                               int64_t new_count, const dlxi_sampling *sampling, dlx_error *error) {
    for (int64_t i = 0; i < new_count; i++) {
        float *logits;
        DLX_TRY(dlxi_model_logits(&logits, stage, token, prompt_count + i, error));
        if (!all_finite(logits, stage->config.vocabulary))
            DLX_FAIL(error, NUMERIC, "the scores of the model's tokens are not finite");
        token[prompt_count + i] =
            dlxi_sample(logits, stage->config.vocabulary, sampling, (uint64_t)i);
    }
    return DLX_OK;
}
