/* SPDX-License-Identifier: Apache-2.0 */
/* A rank of a site at work: its stage of the model, the micro-batches that pass through it, and the
 * tensors that it shares with the ranks of other replicas.
 *
 * Every rank holds the parameters and gradients of its stage. One rank *owns* each tensor (cut.h):
 * it alone has the optimiser's and the outer state for it. A step:
 *
 *   accumulate         forward and backward of all micro-batches (schedule.h); each layer's gradients are reduced to
 *                      their owners while the backward pass goes on in the layers below
 * optimiser, dlx_sync_step, on what this rank owns
 *   share_parameters   owners → all who hold the tensor
 *
 * With one rank (place NULL) there is no MPI in any of it. Calls are collective over the site
 * unless said; one thread. */
#ifndef DLXI_PIPELINE_PIPELINE_H
#define DLXI_PIPELINE_PIPELINE_H

#include "cluster/cluster.h"
#include "data/sampler.h"
#include "pipeline/partition.h"

typedef struct dlxi_pipeline dlxi_pipeline;

typedef struct dlxi_pipeline_options {
    dlxi_place *place; /* borrowed; NULL: one rank */
    dlxi_partition cut;
    /* windows a site and step; windows at a time; replicas · micro_batch divides batch */
    int64_t batch, micro_batch;
    bool recompute;
    uint64_t seed;               /* of the starting values */
    const dlxi_sampler *sampler; /* borrowed; of the training windows */
    /* looked at within a step where there is one rank; may be NULL */
    const volatile sig_atomic_t *interrupted;
} dlxi_pipeline_options;

/* Opens the stage too. `kernels` is borrowed. Not collective. On success *out is the caller's. */
dlx_status dlxi_pipeline_open(dlxi_pipeline **out, const dlxi_model_config *config,
                              const dlxi_pipeline_options *options, dlxi_kernels *kernels,
                              dlx_error *error);
void dlxi_pipeline_close(dlxi_pipeline **pipeline); /* takes NULL */

dlxi_stage *dlxi_pipeline_stage(dlxi_pipeline *pipeline);
/* Those that this rank owns, in order of id; `data` and `gradient` point into the stage. The
 * pipeline's. */
dlxi_parameter *dlxi_pipeline_owned(dlxi_pipeline *pipeline, int64_t *count);

/* positions[batch]: the step's windows, the same on every rank. Afterwards gradients of owned
 * tensors are the sums over the site's micro-batches of the gradients of each one's mean loss;
 * others are not meaningful. *loss ← this rank's part of the mean loss over the step's windows: sum
 * it over the ranks (dlxi_pipeline_sum). DLX_INTERRUPTED. */
dlx_status dlxi_pipeline_accumulate(dlxi_pipeline *pipeline, const uint64_t *positions,
                                    double *loss, dlx_error *error);

/* values[count] ← their sums over the site's ranks; the step's last wait for the slowest. */
dlx_status dlxi_pipeline_sum(dlxi_pipeline *pipeline, double *values, int count, dlx_error *error);

/* Waits for all ranks of the site, as a part of the step. */
dlx_status dlxi_pipeline_barrier(dlxi_pipeline *pipeline, dlx_error *error);

/* Owners' data to all who hold the tensor; then the stage knows that its parameters changed. */
dlx_status dlxi_pipeline_share_parameters(dlxi_pipeline *pipeline, dlx_error *error);

/* Loss of a validation shard's windows, forward only. `index` of `stride` parts of the first
 * tokens_max tokens is this site's; its replicas divide it. *loss_sum and *tokens ← the site's
 * sums, on every rank. */
dlx_status dlxi_pipeline_evaluate(dlxi_pipeline *pipeline, const dlxi_token_file *validation,
                                  int64_t tokens_max, int64_t index, int64_t stride,
                                  double *loss_sum, double *tokens, dlx_error *error);

/* Not collective. Of all accumulate, sum and barrier calls: seconds in them, of these waiting for
 * other stages, and of these waiting for gradients to reach their owners; and of all
 * share_parameters calls. */
typedef struct dlxi_pipeline_times {
    double step_s, idle_s, reduce_s, share_s;
} dlxi_pipeline_times;
dlxi_pipeline_times dlxi_pipeline_times_of(const dlxi_pipeline *pipeline);

#endif
