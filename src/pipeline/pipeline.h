/* SPDX-License-Identifier: Apache-2.0 */
/* One rank's stage at work: its micro-batches, and the tensors that several ranks hold.
 *
 * A rank holds the parameters and gradients of its stage. Each tensor has one owner (the shard map,
 * partition.h), which alone has its optimiser and outer state. A step:
 *
 *   accumulate        forward and backward of all micro-batches (schedule.h); each layer's
 *                     gradients are reduced to their owners while lower layers go backward
 *   optimiser, dlx_sync_step, on owned tensors
 *   share_parameters  owners → holders
 *
 * One rank (grid NULL) calls no MPI. Calls are collective over the site unless said; one thread.
 */
#ifndef DLXI_PIPELINE_PIPELINE_H
#define DLXI_PIPELINE_PIPELINE_H

#include "cluster/cluster.h"
#include "data/sampler.h"
#include "pipeline/partition.h"

typedef struct dlxi_pipeline dlxi_pipeline;

typedef struct dlxi_pipeline_options {
    dlxi_grid *grid; /* borrowed; NULL: one rank */
    dlxi_partition partition;
    /* windows per site and step, and per pass; replicas · micro_batch divides batch */
    int64_t batch, micro_batch;
    bool recompute;
    uint64_t seed;               /* of the starting values */
    const dlxi_sampler *sampler; /* borrowed; of the training windows */
    /* if there is one rank: ends a step early; may be NULL */
    const volatile sig_atomic_t *interrupted;
} dlxi_pipeline_options;

/* Opens the stage too. `kernels` is borrowed. Not collective. */
dlx_status dlxi_pipeline_open(dlxi_pipeline **out, const dlxi_model_config *config,
                              const dlxi_pipeline_options *options, dlxi_kernels *kernels,
                              dlx_error *error);
void dlxi_pipeline_close(dlxi_pipeline **pipeline); /* takes NULL */

dlxi_stage *dlxi_pipeline_stage(dlxi_pipeline *pipeline);
/* The tensors that this rank owns, in order of id; `data` and `gradient` point into the stage. The
 * array is the pipeline's. */
dlxi_parameter *dlxi_pipeline_owned(dlxi_pipeline *pipeline, int64_t *count);

/* positions[batch]: the step's windows, the same on every rank. The gradients of owned tensors
 * become sums over the site's micro-batches, of the gradient of each one's mean loss; other
 * gradients are undefined. *loss ← this rank's part of the mean loss over the step's windows, to be
 * summed over the ranks. DLX_INTERRUPTED. */
dlx_status dlxi_pipeline_accumulate(dlxi_pipeline *pipeline, const uint64_t *positions,
                                    double *loss, dlx_error *error);

/* values[count] ← their sums over the site's ranks. */
dlx_status dlxi_pipeline_sum(dlxi_pipeline *pipeline, double *values, int count, dlx_error *error);

/* Waits for all ranks of the site; counts as idle time of the step. */
dlx_status dlxi_pipeline_barrier(dlxi_pipeline *pipeline, dlx_error *error);

/* Sends owners' data to all holders, and notifies the stage that its parameters changed. */
dlx_status dlxi_pipeline_share_parameters(dlxi_pipeline *pipeline, dlx_error *error);

/* The loss of part `index` of `stride` of the first tokens_max tokens of a validation file,
 * divided among the replicas. *loss_sum and *tokens ← the site's sums, on every rank. */
dlx_status dlxi_pipeline_evaluate(dlxi_pipeline *pipeline, const dlxi_token_file *validation,
                                  int64_t tokens_max, int64_t index, int64_t stride,
                                  double *loss_sum, double *tokens, dlx_error *error);

typedef struct dlxi_pipeline_times {
    double step_s;   /* in accumulate, sum and barrier */
    double idle_s;   /* of these, waiting for other ranks */
    double reduce_s; /* of these, waiting for gradients to reach their owners */
    double share_s;  /* in share_parameters */
} dlxi_pipeline_times;
/* Not collective. */
dlxi_pipeline_times dlxi_pipeline_times_of(const dlxi_pipeline *pipeline);

#endif
