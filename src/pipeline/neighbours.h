/* SPDX-License-Identifier: Apache-2.0 */
/* Activations and their gradients between neighbouring stages, without blocking: a stage receives
 * one micro-batch ahead into two buffers per direction, and sends while it computes. One thread;
 * calls are not collective.
 *
 *   input     [N,C]  from the previous stage
 *   output    [N,C]  to the next stage, sent from the slot's own memory
 *   d_output  [N,C]  from the next stage
 *   d_input   [N,C]  to the previous stage, copied
 */
#ifndef DLXI_PIPELINE_NEIGHBOURS_H
#define DLXI_PIPELINE_NEIGHBOURS_H

#include "cluster/cluster.h"

typedef struct dlxi_neighbours dlxi_neighbours;

/* floats: N·C of a full micro-batch, 1 to INT_MAX. slots: of the stage. `grid` is borrowed and
 * has more than one stage. */
dlx_status dlxi_neighbours_open(dlxi_neighbours **out, const dlxi_grid *grid, int64_t floats,
                                int slots, dlx_error *error);
void dlxi_neighbours_close(dlxi_neighbours **neighbours); /* takes NULL */
/* Messages are in flight: after a failure MPI may still use this memory and the stage's. */
bool dlxi_neighbours_is_busy(const dlxi_neighbours *neighbours);

/* A step of `count` micro-batches, in order from 0: forward, and backward if `backward`. */
dlx_status dlxi_neighbours_begin(dlxi_neighbours *neighbours, int64_t count, bool backward,
                                 dlx_error *error);
/* Waits until everything is sent. */
dlx_status dlxi_neighbours_end(dlxi_neighbours *neighbours, dlx_error *error);

/* The next micro-batch's input; valid until the next call. Not for the first stage. */
dlx_status dlxi_neighbours_input(const float **input, dlxi_neighbours *neighbours,
                                 dlx_error *error);
/* The same for its gradient. Not for the last stage. */
dlx_status dlxi_neighbours_d_output(const float **d_output, dlxi_neighbours *neighbours,
                                    dlx_error *error);

/* Before a forward pass writes to the slot: waits until its last output is sent. Not for the last
 * stage. */
dlx_status dlxi_neighbours_reserve(dlxi_neighbours *neighbours, int slot, dlx_error *error);
/* output[floats] is the slot's and must not change until it is reserved again; floats ≤ open's. */
dlx_status dlxi_neighbours_send_output(dlxi_neighbours *neighbours, int slot, const float *output,
                                       int64_t floats, dlx_error *error);
/* Copies d_input. Not for the first stage. */
dlx_status dlxi_neighbours_send_d_input(dlxi_neighbours *neighbours, const float *d_input,
                                        dlx_error *error);

/* Lets MPI move messages, which it does inside its calls only. */
void dlxi_neighbours_progress(dlxi_neighbours *neighbours);

/* Seconds spent waiting for a neighbour, over all calls. */
double dlxi_neighbours_waited_s(const dlxi_neighbours *neighbours);

#endif
