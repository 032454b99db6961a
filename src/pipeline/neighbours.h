/* SPDX-License-Identifier: Apache-2.0 */
/* Activations and their gradients between neighbouring stages, without blocking: a stage receives
 * one micro-batch ahead into two buffers each way, and what it sends travels while it computes. One
 * thread; calls are not collective.
 *
 *   input     [N,C], from the stage before        output    to the stage after: memory of the stage's own slot
 *   d_output  [N,C], from the stage after         d_input   to the stage before: copied
 */
#ifndef DLXI_PIPELINE_NEIGHBOURS_H
#define DLXI_PIPELINE_NEIGHBOURS_H

#include "cluster/cluster.h"

typedef struct dlxi_neighbours dlxi_neighbours;

/* floats: N·C of a whole micro-batch, at most INT_MAX (our own bug otherwise). slots: of the stage.
 * `place` is borrowed and has more than one stage. */
dlx_status dlxi_neighbours_open(dlxi_neighbours **out, const dlxi_place *place, int64_t floats,
                                int slots, dlx_error *error);
void dlxi_neighbours_close(dlxi_neighbours **neighbours); /* takes NULL */
/* Something is on its way: after a failure MPI may still read and write this memory and the
 * stage's. */
bool dlxi_neighbours_is_busy(const dlxi_neighbours *neighbours);

/* A step of `count` micro-batches, forward and perhaps backward, each way in order from 0. */
dlx_status dlxi_neighbours_begin(dlxi_neighbours *neighbours, int64_t count, bool backward,
                                 dlx_error *error);
/* All that was sent has left. */
dlx_status dlxi_neighbours_end(dlxi_neighbours *neighbours, dlx_error *error);

/* The next micro-batch's; valid until the call after. Not for the first stage. */
dlx_status dlxi_neighbours_input(const float **input, dlxi_neighbours *neighbours,
                                 dlx_error *error);
/* The same of the gradient. Not for the last stage. */
dlx_status dlxi_neighbours_d_output(const float **d_output, dlxi_neighbours *neighbours,
                                    dlx_error *error);

/* Before a forward pass writes into the slot: waits until its last output has left. Not for the
 * last stage. */
dlx_status dlxi_neighbours_reserve(dlxi_neighbours *neighbours, int slot, dlx_error *error);
/* output[floats] is the slot's, unchanged until it is reserved again; floats ≤ those of open. */
dlx_status dlxi_neighbours_send_output(dlxi_neighbours *neighbours, int slot, const float *output,
                                       int64_t floats, dlx_error *error);
/* Copies d_input. Not for the first stage. */
dlx_status dlxi_neighbours_send_d_input(dlxi_neighbours *neighbours, const float *d_input,
                                        dlx_error *error);

/* Lets MPI move what is on its way, which it does inside its calls only. */
void dlxi_neighbours_progress(dlxi_neighbours *neighbours);

/* Of all calls: seconds spent waiting for a neighbour. */
double dlxi_neighbours_waited_s(const dlxi_neighbours *neighbours);

#endif
