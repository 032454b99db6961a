/* SPDX-License-Identifier: Apache-2.0 */
/* The inner optimisers over a stage's tensors: AdamW, and Muon for the hidden matrices with AdamW
 * for the rest; clipping by the global norm; the learning rate's schedule over committed tokens. */
#ifndef DLXI_MODEL_OPTIMIZER_H
#define DLXI_MODEL_OPTIMIZER_H

#include "model/model.h"

typedef enum dlxi_optimizer_kind { DLXI_OPTIMIZER_ADAMW, DLXI_OPTIMIZER_MUON } dlxi_optimizer_kind;

typedef struct dlxi_optimizer_options {
    dlxi_optimizer_kind kind;
    float beta1, beta2, epsilon; /* AdamW */
    float weight_decay;          /* decoupled, on tensors that decay */
    float clip_norm;             /* of all gradients together; 0: never */
    float momentum;              /* Muon */
} dlxi_optimizer_options;

/* 0.9, 0.95, 1e-8, decay 0.1, clip at 1, momentum 0.95. */
dlxi_optimizer_options dlxi_optimizer_options_default(dlxi_optimizer_kind kind);

typedef struct dlxi_optimizer dlxi_optimizer;

/* Takes all state for parameter[count], zeroed. `parameter` and `kernels` are borrowed and must
 * outlive it. On success *out is the caller's, closed with dlxi_optimizer_close; on failure it is
 * NULL. */
dlx_status dlxi_optimizer_open(dlxi_optimizer **out, const dlxi_optimizer_options *options,
                               dlxi_parameter *parameter, int64_t count, dlxi_kernels *kernels,
                               dlx_error *error);
void dlxi_optimizer_close(dlxi_optimizer **optimizer);

/* Clips and steps. The gradient used is gradient_scale · the summed one (gradient_scale: 1 /
 * micro-batches). *norm (may be NULL) ← its global norm before clipping. Afterwards call
 * dlxi_stage_parameters_changed and dlxi_stage_zero_gradients. DLX_NUMERIC where the norm is not
 * finite; nothing has changed then. */
dlx_status dlxi_optimizer_step(dlxi_optimizer *optimizer, float learning_rate, float gradient_scale,
                               double *norm, dlx_error *error);

/* The same in two halves, for a model of several stages: sum Σ g² over all ranks in between. */
double dlxi_optimizer_sum_of_squares(dlxi_optimizer *optimizer);
dlx_status dlxi_optimizer_step_with_norm(dlxi_optimizer *optimizer, float learning_rate,
                                         float gradient_scale, double sum_of_squares, double *norm,
                                         dlx_error *error);

/* For snapshots. State of parameter i: AdamW's m and v; Muon's momentum and NULL. Each [rows,
 * cols]. */
void dlxi_optimizer_state(dlxi_optimizer *optimizer, int64_t i, float **first, float **second);
int64_t dlxi_optimizer_step_count(const dlxi_optimizer *optimizer);
void dlxi_optimizer_set_step_count(dlxi_optimizer *optimizer, int64_t step);

/* dst[rows, cols] ← the nearly orthogonal matrix that Muon steps along, from src (Keller Jordan's
 * Newton–Schulz iteration, 5 steps). scratch: dlxi_muon_scratch_count floats. dst may not be src.
 */
int64_t dlxi_muon_scratch_count(int64_t rows, int64_t cols);
dlx_status dlxi_muon_orthogonalize(dlxi_kernels *kernels, float *dst, const float *src,
                                   int64_t rows, int64_t cols, float *scratch);

/* ---- schedule -------------------------------------------------------------------------------- */

/* Linear from 0 to peak over warmup_tokens, then half a cosine down to peak · final_share at
 * total_tokens, and flat. */
typedef struct dlxi_schedule {
    float peak, final_share;
    int64_t warmup_tokens, total_tokens;
} dlxi_schedule;

/* A function of committed tokens alone; `tokens` counts those before the step, plus the step's own
 * where the first step should not be lost to a rate of 0. */
float dlxi_schedule_rate(const dlxi_schedule *schedule, int64_t tokens);

#endif
