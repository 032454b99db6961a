/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors between the ranks that hold them and the one that owns them: gradients to the owner while
 * the backward pass goes on, parameters from the owner. Ranks that hold a tensor: the replicas of
 * its stage; of a tied table those of both ends. One thread. */
#ifndef DLXI_PIPELINE_REDUCE_H
#define DLXI_PIPELINE_REDUCE_H

#include "cluster/cluster.h"
#include "model/model.h"

typedef struct dlxi_reduce dlxi_reduce;

/* owner[id]: as dlxi_owners gives it. `place` and `stage` are borrowed. Not collective. */
dlx_status dlxi_reduce_open(dlxi_reduce **out, const dlxi_place *place, dlxi_stage *stage,
                            const int *owner, dlx_error *error);
void dlxi_reduce_close(dlxi_reduce **reduce); /* takes NULL */

/* Starts to sum up the gradients of a part of the stage at their owners; `layer` as
 * dlxi_gradients_done has it. They may not be written any more. Holders call for the same parts in
 * the same order. */
dlx_status dlxi_reduce_start(dlxi_reduce *reduce, int64_t layer, dlx_error *error);
/* Adds up what has come meanwhile, and lets MPI move what is on its way. */
dlx_status dlxi_reduce_progress(dlxi_reduce *reduce, dlx_error *error);
/* Waits for all that was started; every part must be. *waited_s grows. */
dlx_status dlxi_reduce_finish(dlxi_reduce *reduce, double *waited_s, dlx_error *error);
/* Something is on its way: after a failure MPI may still read and write the stage's memory. */
bool dlxi_reduce_is_busy(const dlxi_reduce *reduce);

/* Owners' parameters to all who hold them. Blocks, asleep. *waited_s grows. */
dlx_status dlxi_reduce_share(dlxi_reduce *reduce, double *waited_s, dlx_error *error);

#endif
