/* SPDX-License-Identifier: Apache-2.0 */
/* The training thread's side of a run: what dlx_sync does behind its arguments' checks. It owns the
 * parameters (local.h) and, between commit and submit, the state (state.h); a pump (pump.h) runs
 * the engine meanwhile. */
#ifndef DLXI_SYNC_SYNC_H
#define DLXI_SYNC_SYNC_H

#include "base/log_ring.h"
#include "link/link.h"
#include "sync/local.h"

/* What a site goes on from. */
typedef struct dlxi_origin {
    dlx_restore restore;
    void *context;
    bool is_another; /* site's: this one is new */
} dlxi_origin;

/* As the dlx_sync_* of the same name: arguments are checked and options resolved, and structs are
 * this library's. open is resume if there is an origin. Takes over the link and the log, on failure
 * too; options->log adds to that one, which may be NULL. */
dlx_status dlxi_sync_open(dlx_sync **out, const dlx_sync_config *options, dlxi_link *link,
                          dlxi_log_ring *log, const dlx_tensor *tensors, size_t count,
                          const dlxi_origin *origin, dlx_error *error);
/* DLX_STATE if a call is pending, which all others but dlxi_sync_wait must await, or it could not
 * be opened. */
dlx_status dlxi_sync_may_call(const dlx_sync *s, dlx_error *error);
/* `step` is zeroed. */
dlx_status dlxi_sync_wait(dlx_sync *s, dlx_step *step, dlx_error *error);
bool dlxi_sync_is_pending(const dlx_sync *s);
dlx_status dlxi_sync_save(dlx_sync *s, dlx_hold hold, void *context, const dlx_part **parts,
                          size_t *count, dlx_error *error);
bool dlxi_sync_is_finished(const dlx_sync *s);
/* `step` is zeroed. */
dlx_status dlxi_sync_step(dlx_sync *s, uint64_t tokens, dlx_step *step, dlx_error *error);
dlx_status dlxi_sync_gradients(dlx_sync *s, float *const *gradients, uint64_t tokens,
                               double *waited_s, dlx_error *error);
dlx_status dlxi_sync_windows(dlx_sync *s, uint64_t *positions, uint32_t count, dlx_error *error);
dlx_status dlxi_sync_end(dlx_sync *s, dlx_end *end, dlx_error *error);
dlx_status dlxi_sync_report(dlx_sync *s, const char *text, dlx_error *error);
void dlxi_sync_pace(dlx_sync *s, double factor);
uint64_t dlxi_sync_tokens(const dlx_sync *s);
uint64_t dlxi_sync_tokens_target(const dlx_sync *s);
uint64_t dlxi_sync_run_id(const dlx_sync *s);
uint32_t dlxi_sync_site_index(const dlx_sync *s);
uint32_t dlxi_sync_site_count(const dlx_sync *s);
dlx_status dlxi_sync_take_anchor(dlx_sync *s, uint64_t *rounds, dlx_error *error);
dlx_status dlxi_sync_anchor(dlx_sync *s, float *const *dst, dlx_error *error);
dlx_status dlxi_sync_anchor_hashes(dlx_sync *s, uint64_t *dst, dlx_error *error);
void dlxi_sync_statistics(dlx_sync *s, dlx_statistics *out);
void dlxi_sync_interrupt(dlx_sync *s);
void dlxi_sync_fail(dlx_sync *s, const char *reason);
dlx_status dlxi_sync_failure(dlx_sync *s, dlx_error *error);
void dlxi_sync_close(dlx_sync **s);

#endif
