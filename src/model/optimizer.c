/* SPDX-License-Identifier: Apache-2.0 */
/* The inner optimisers: AdamW, or Muon for the hidden matrices and AdamW for the rest. */
#include "model/optimizer.h"
#include "model/internal.h"
#include "base/memory.h"
#include "base/panic.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* Gives Muon's update the root mean square of AdamW's, so that both share a learning rate (Liu et
 * al. 2025, "Muon is scalable for LLM training", section 2.2). */
static const float muon_rms = 0.2f;

/* One tensor's state in the flat allocation. */
typedef struct state {
    float *first;  /* AdamW's m, or Muon's momentum */
    float *second; /* AdamW's v, or NULL */
} state;

struct dlxi_optimizer {
    dlxi_optimizer_options options;
    dlxi_parameter *parameter;
    int64_t count, step;
    dlxi_kernels *kernels;
    state *state;
    float *memory;
    float *update, *scratch; /* Muon's, for the largest hidden matrix */
};

dlxi_optimizer_options dlxi_optimizer_options_default(dlxi_optimizer_kind kind) {
    return (dlxi_optimizer_options){.kind = kind,
                                    .beta1 = 0.9f,
                                    .beta2 = 0.95f,
                                    .epsilon = 1e-8f,
                                    .weight_decay = 0.1f,
                                    .clip_norm = 1.0f,
                                    .momentum = 0.95f};
}

static bool uses_muon(const dlxi_optimizer *optimizer, const dlxi_parameter *parameter) {
    return optimizer->options.kind == DLXI_OPTIMIZER_MUON && parameter->tensor.hidden_matrix;
}

static dlx_status state_open(dlxi_optimizer *optimizer, dlx_error *error) {
    size_t floats = 0;
    int64_t largest = 0, scratch = 0;
    for (int64_t i = 0; i < optimizer->count; i++) {
        const dlxi_parameter *parameter = &optimizer->parameter[i];
        bool muon = uses_muon(optimizer, parameter);
        floats += dlxi_floats_padded(parameter->count) * (muon ? 1 : 2);
        if (!muon) continue;
        int64_t needs = dlxi_muon_scratch_count(parameter->tensor.rows, parameter->tensor.cols);
        scratch = needs > scratch ? needs : scratch;
        largest = parameter->count > largest ? parameter->count : largest;
    }
    DLX_TRY(DLXI_NEW(&optimizer->state, optimizer->count, error));
    DLX_TRY(DLXI_NEW(&optimizer->memory, floats, error));
    DLX_TRY(DLXI_NEW(&optimizer->update, largest, error));
    DLX_TRY(DLXI_NEW(&optimizer->scratch, scratch, error));
    float *at = optimizer->memory;
    for (int64_t i = 0; i < optimizer->count; i++) {
        size_t room = dlxi_floats_padded(optimizer->parameter[i].count);
        bool muon = uses_muon(optimizer, &optimizer->parameter[i]);
        optimizer->state[i] = (state){.first = at, .second = muon ? NULL : at + room};
        at += room * (muon ? 1 : 2);
    }
    return DLX_OK;
}

dlx_status dlxi_optimizer_open(dlxi_optimizer **out, const dlxi_optimizer_options *options,
                               dlxi_parameter *parameter, int64_t count, dlxi_kernels *kernels,
                               dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_optimizer *optimizer = NULL;
    *out = NULL;
    DLXI_ASSERT(options->weight_decay >= 0.0f && options->clip_norm >= 0.0f);
    DLXI_ASSERT(options->beta1 >= 0.0f && options->beta1 < 1.0f && options->beta2 >= 0.0f &&
                options->beta2 < 1.0f && options->momentum >= 0.0f && options->epsilon > 0.0f);
    DLX_TRY(DLXI_NEW(&optimizer, 1, error));
    optimizer->options = *options;
    optimizer->parameter = parameter;
    optimizer->count = count;
    optimizer->kernels = kernels;
    DLX_TRY_OUT(state_open(optimizer, error));
    *out = optimizer;
    return DLX_OK;
out:
    dlxi_optimizer_close(&optimizer);
    return status;
}

void dlxi_optimizer_close(dlxi_optimizer **optimizer) {
    dlxi_optimizer *o = *optimizer;
    if (o == NULL) return;
    free(o->scratch);
    free(o->update);
    free(o->memory);
    free(o->state);
    free(o);
    *optimizer = NULL;
}

void dlxi_optimizer_state(dlxi_optimizer *optimizer, int64_t i, float **first, float **second) {
    *first = optimizer->state[i].first;
    *second = optimizer->state[i].second;
}

int64_t *dlxi_optimizer_steps(dlxi_optimizer *optimizer) {
    return &optimizer->step;
}

double dlxi_optimizer_sum_of_squares(dlxi_optimizer *optimizer) {
    dlxi_kernels *k = optimizer->kernels;
    double sum = 0.0;
    for (int64_t i = 0; i < optimizer->count; i++)
        sum += k->op->sum_of_squares(k, optimizer->parameter[i].gradient,
                                     optimizer->parameter[i].count);
    return sum;
}

/* momentum ← μ · momentum + g; the step is along the orthogonalised g + μ · momentum (Nesterov). */
static dlx_status muon_step(dlxi_optimizer *optimizer, int64_t i, float learning_rate,
                            float gradient_scale) {
    const dlxi_parameter *parameter = &optimizer->parameter[i];
    const dlxi_tensor *tensor = &parameter->tensor;
    float *restrict momentum = optimizer->state[i].first, *restrict data = parameter->data;
    float *restrict update = optimizer->update;
    float *lookahead = optimizer->scratch; /* its first [rows, cols], which orthogonalize reads */
    const float *restrict gradient = parameter->gradient;
    float mu = optimizer->options.momentum;
    for (int64_t j = 0; j < parameter->count; j++) {
        float g = gradient_scale * gradient[j];
        momentum[j] = mu * momentum[j] + g;
        lookahead[j] = g + mu * momentum[j];
    }
    DLX_TRY(dlxi_muon_orthogonalize(optimizer->kernels, update, lookahead, tensor->rows,
                                    tensor->cols, optimizer->scratch));
    int64_t longer = tensor->rows > tensor->cols ? tensor->rows : tensor->cols;
    float step = learning_rate * muon_rms * sqrtf((float)longer);
    float keep = 1.0f - learning_rate * (tensor->decay ? optimizer->options.weight_decay : 0.0f);
    for (int64_t j = 0; j < parameter->count; j++) data[j] = keep * data[j] - step * update[j];
    return DLX_OK;
}

static dlx_status parameters_step(dlxi_optimizer *optimizer, float learning_rate,
                                  float gradient_scale) {
    dlxi_kernels *k = optimizer->kernels;
    const dlxi_optimizer_options *o = &optimizer->options;
    dlxi_adamw settings = {.learning_rate = learning_rate,
                           .beta1 = o->beta1,
                           .beta2 = o->beta2,
                           .epsilon = o->epsilon,
                           .gradient_scale = gradient_scale,
                           .step = optimizer->step};
    for (int64_t i = 0; i < optimizer->count; i++) {
        const dlxi_parameter *parameter = &optimizer->parameter[i];
        if (uses_muon(optimizer, parameter)) {
            DLX_TRY(muon_step(optimizer, i, learning_rate, gradient_scale));
            continue;
        }
        settings.weight_decay = parameter->tensor.decay ? o->weight_decay : 0.0f;
        DLX_TRY(k->op->adamw(k, parameter->data, optimizer->state[i].first,
                             optimizer->state[i].second, parameter->gradient, parameter->count,
                             &settings));
    }
    return DLX_OK;
}

dlx_status dlxi_optimizer_step_with_norm(dlxi_optimizer *optimizer, float learning_rate,
                                         float gradient_scale, double sum_of_squares, double *norm,
                                         dlx_error *error) {
    double total = sqrt(sum_of_squares) * fabs((double)gradient_scale);
    if (norm != NULL) *norm = total;
    if (!isfinite(total))
        DLX_FAIL(error, NUMERIC,
                 "the gradient's norm is not finite at inner step %" PRId64
                 "; try a lower train.learning_rate or a longer warm-up",
                 optimizer->step + 1);
    double limit = (double)optimizer->options.clip_norm;
    if (limit > 0.0 && total > limit) gradient_scale *= (float)(limit / total);
    optimizer->step++;
    return dlxi_kernel_failed(parameters_step(optimizer, learning_rate, gradient_scale), error);
}

dlx_status dlxi_optimizer_step(dlxi_optimizer *optimizer, float learning_rate, float gradient_scale,
                               double *norm, dlx_error *error) {
    return dlxi_optimizer_step_with_norm(optimizer, learning_rate, gradient_scale,
                                         dlxi_optimizer_sum_of_squares(optimizer), norm, error);
}

/* AdamW reads g for its norm, then p, g, m and v, and writes p, m and v; Muon has no v. */
dlxi_optimizer_cost dlxi_optimizer_cost_of(const dlxi_optimizer *optimizer) {
    dlxi_optimizer_cost cost = {0};
    for (int64_t i = 0; i < optimizer->count; i++) {
        const dlxi_parameter *parameter = &optimizer->parameter[i];
        const bool muon = uses_muon(optimizer, parameter);
        const double bytes = (double)parameter->count * sizeof(float);
        cost.state_bytes += muon ? bytes : 2 * bytes;
        cost.moved_bytes += muon ? 6 * bytes : 8 * bytes;
        if (muon) cost.flops += dlxi_muon_flops(parameter->tensor.rows, parameter->tensor.cols);
    }
    return cost;
}

/* ---- schedule -------------------------------------------------------------------------------- */

float dlxi_schedule_rate(const dlxi_schedule *schedule, int64_t tokens) {
    double peak = (double)schedule->peak, floor_rate = peak * (double)schedule->final_share;
    if (tokens < 0) tokens = 0;
    if (tokens < schedule->warmup_tokens)
        return (float)(peak * (double)tokens / (double)schedule->warmup_tokens);
    if (tokens >= schedule->total_tokens) return (float)floor_rate;
    double progress = (double)(tokens - schedule->warmup_tokens) /
                      (double)(schedule->total_tokens - schedule->warmup_tokens);
    const double pi = 3.14159265358979323846;
    return (float)(floor_rate + 0.5 * (peak - floor_rate) * (1.0 + cos(pi * progress)));
}
