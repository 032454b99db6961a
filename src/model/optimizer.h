/* SPDX-License-Identifier: Apache-2.0 */
/* The inner optimisers over a stage's tensors: AdamW, or Muon for the hidden matrices and AdamW for
 * the rest, with clipping by the global norm; and the learning-rate schedule. */
#ifndef DLXI_MODEL_OPTIMIZER_H
#define DLXI_MODEL_OPTIMIZER_H

#include "model/model.h"

typedef enum dlxi_optimizer_kind { DLXI_OPTIMIZER_ADAMW, DLXI_OPTIMIZER_MUON } dlxi_optimizer_kind;

typedef struct dlxi_optimizer_options {
    dlxi_optimizer_kind kind;
    float beta1, beta2, epsilon; /* AdamW */
    float weight_decay;          /* decoupled, on matrices and tables */
    float clip_norm;             /* of all gradients together; 0: no clipping */
    float momentum;              /* Muon */
} dlxi_optimizer_options;

dlxi_optimizer_options dlxi_optimizer_options_default(dlxi_optimizer_kind kind);

typedef struct dlxi_optimizer dlxi_optimizer;

/* Allocates zeroed state for parameter[count]; `parameter` and `kernels` are borrowed and must
 * outlive it. On success *out is the caller's; on failure it is NULL. */
dlx_status dlxi_optimizer_open(dlxi_optimizer **out, const dlxi_optimizer_options *options,
                               dlxi_parameter *parameter, int64_t count, dlxi_kernels *kernels,
                               dlx_error *error);
void dlxi_optimizer_close(dlxi_optimizer **optimizer);

/* Clips and steps with gradient_scale · the summed gradients (gradient_scale: 1 / micro-batches);
 * *norm, which may be NULL, ← their global norm before clipping. Afterwards call
 * dlxi_stage_parameters_changed and dlxi_stage_zero_gradients. DLX_NUMERIC, with nothing changed,
 * if the norm is not finite. */
dlx_status dlxi_optimizer_step(dlxi_optimizer *optimizer, float learning_rate, float gradient_scale,
                               double *norm, dlx_error *error);

/* The same in two parts, for a model of several stages: sum Σ g² over all ranks in between. */
double dlxi_optimizer_sum_of_squares(dlxi_optimizer *optimizer);
dlx_status dlxi_optimizer_step_with_norm(dlxi_optimizer *optimizer, float learning_rate,
                                         float gradient_scale, double sum_of_squares, double *norm,
                                         dlx_error *error);

/* The state of tensor i, of its shape, and how many steps were taken: to save and restore.
 * *second ← NULL if it has one array. */
void dlxi_optimizer_state(dlxi_optimizer *optimizer, int64_t i, float **first, float **second);
int64_t *dlxi_optimizer_steps(dlxi_optimizer *optimizer);

/* dst[rows, cols] ← src with its singular values driven towards 1: the direction of Muon's step.
 * scratch: dlxi_muon_scratch_count floats, the first of which may be src; dst may not be. */
int64_t dlxi_muon_scratch_count(int64_t rows, int64_t cols);
double dlxi_muon_flops(int64_t rows, int64_t cols); /* as in dlxi_optimizer_cost */
dlx_status dlxi_muon_orthogonalize(dlxi_kernels *kernels, float *dst, const float *src,
                                   int64_t rows, int64_t cols, float *scratch);

/* The cost of a step: the state's bytes; what it reads and writes at least; multiply-adds × 2 of
 * Muon's products, of which symmetric ones count a half. */
typedef struct dlxi_optimizer_cost {
    double state_bytes, moved_bytes, flops;
} dlxi_optimizer_cost;

dlxi_optimizer_cost dlxi_optimizer_cost_of(const dlxi_optimizer *optimizer);

/* ---- schedule -------------------------------------------------------------------------------- */

/* Linear from 0 to peak over warmup_tokens, then half a cosine down to peak · final_share at
 * total_tokens, then constant. */
typedef struct dlxi_schedule {
    float peak, final_share;
    int64_t warmup_tokens, total_tokens;
} dlxi_schedule;

/* The rate after `tokens` committed tokens; count a step's own for a first rate above 0. */
float dlxi_schedule_rate(const dlxi_schedule *schedule, int64_t tokens);

#endif
