/* SPDX-License-Identifier: Apache-2.0 */
/* The training thread's part of a round: the caller's parameters p, and start, where local training
 * began. Reads and writes p in chunks.
 *
 * p may be f32, bf16 or f16, in this process's memory or behind the caller's fetch and store. What
 * is rounded on its way back is rounded before start is set, so that a pseudo-gradient counts
 * training and never rounding; θ, v and e stay f32, so that small updates add up. */
#ifndef DLXI_SYNC_LOCAL_H
#define DLXI_SYNC_LOCAL_H

#include "sync/state.h"

typedef struct dlxi_local dlxi_local;

/* `options` are resolved. Copies the descriptions of the tensors; their data stays the caller's,
 * and is not read yet. */
dlx_status dlxi_local_open(dlxi_local **out, const dlx_sync_config *options,
                           const dlx_tensor *tensors, size_t count, dlx_error *error);
void dlxi_local_close(dlxi_local **local);

/* θ, start ← p, and θ's hashes: how a run starts, and how one of gradient means ends. */
dlx_status dlxi_local_read(dlxi_local *local, dlxi_state *state, dlx_error *error);

/* start of a tensor, for a save or a restore; NULL: it is not kept. */
float *dlxi_local_start(const dlxi_local *local, size_t tensor);

/* M ← δ + e, *norm ← ‖M‖, of the tensors whose turn is the next round, or all if `whole`; then p,
 * start ← by method if `applies` (a committed update at the same step), else start ← p. `weight`:
 * this site's in the view just committed. */
dlx_status dlxi_local_submit(dlxi_local *local, dlxi_state *state, bool whole, bool applies,
                             float weight, double *norm, dlx_error *error);

/* p, start ← by method, of the tensors whose turn was in a round after `since`, after a commit.
 * `final`: p, start ← θ, of all, whatever the method. */
dlx_status dlxi_local_apply(dlxi_local *local, dlxi_state *state, bool final, uint64_t since,
                            float weight, dlx_error *error);

#endif
