/* SPDX-License-Identifier: Apache-2.0 */
/* Reduces gradients to the ranks that own their tensors while the backward pass goes on, and sends
 * owners' parameters back. A tensor is held by the replicas of its stage, a tied table by those of
 * both ends. One thread. */
#ifndef DLXI_PIPELINE_REDUCE_H
#define DLXI_PIPELINE_REDUCE_H

#include "cluster/cluster.h"
#include "model/model.h"

typedef struct dlxi_reduce dlxi_reduce;

/* shard_map: as dlxi_shard_map_fill's. `grid` and `stage` are borrowed. Not collective. */
dlx_status dlxi_reduce_open(dlxi_reduce **out, const dlxi_grid *grid, dlxi_stage *stage,
                            const int *shard_map, dlx_error *error);
void dlxi_reduce_close(dlxi_reduce **reduce); /* takes NULL */

/* Starts to reduce the gradients of a layer (numbered as in dlxi_gradients_done), which must not be
 * written any more. Holders call for the same layers in the same order. */
dlx_status dlxi_reduce_start(dlxi_reduce *reduce, int64_t layer, dlx_error *error);
/* Adds received gradients, and lets MPI move messages. */
dlx_status dlxi_reduce_progress(dlxi_reduce *reduce, dlx_error *error);
/* Waits for all reductions; all layers must be started. *waited_s grows. */
dlx_status dlxi_reduce_finish(dlxi_reduce *reduce, double *waited_s, dlx_error *error);
/* Messages are in flight: after a failure MPI may still use the stage's memory. */
bool dlxi_reduce_is_busy(const dlxi_reduce *reduce);

/* Sends owners' parameters to all holders. Blocks, asleep. *waited_s grows. */
dlx_status dlxi_reduce_share(dlxi_reduce *reduce, double *waited_s, dlx_error *error);

#endif
