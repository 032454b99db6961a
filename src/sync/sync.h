/* SPDX-License-Identifier: Apache-2.0 */
/* One site at work: the training thread's calls on one side, the exchange thread with its link on
 * the other.
 *
 * Who may touch what. The shard's M, θ, v, e, bases belong to the training thread while nothing is
 * handed out, and to the exchange thread from hand-out until it marks the round committed; p and
 * start always belong to the training thread. Everything else that both use is under the mutex.
 * Only the exchange thread uses the link and the two state machines. */
#ifndef DLXI_SYNC_SYNC_H
#define DLXI_SYNC_SYNC_H

#include "link/link.h"
#include "sync/shard.h"

typedef struct dlxi_sync_settings {
    dlxi_shard_settings shard;
    char site[DLXI_NAME_BYTES];
    uint16_t rank, ranks; /* of the site; the shard is this rank's */
    dlx_gather gather;
    void *gather_context;
    const char *shared_text;
    uint32_t inner_steps_max, exchange_steps, timeout_ms;
    uint64_t windows, tokens_per_window, data_hash;
    uint32_t lease_windows;
    double pace_max;
    const volatile sig_atomic_t *interrupted; /* may be NULL */
} dlxi_sync_settings;

/* As the dlx_sync_* of the same name, arguments checked before. Takes the link over, on failure
 * too. */
dlx_status dlxi_sync_open(dlx_sync **out, const dlxi_sync_settings *settings, dlxi_link *link,
                          const dlx_tensor *tensors, size_t count, dlx_error *error);
dlx_status dlxi_sync_step(dlx_sync *s, uint64_t tokens, dlx_step *step, dlx_error *error);
dlx_status dlxi_sync_gradients(dlx_sync *s, float *const *gradients, uint64_t tokens,
                               double *waited_s, dlx_error *error);
dlx_status dlxi_sync_windows(dlx_sync *s, uint64_t *positions, uint32_t count, dlx_error *error);
dlx_status dlxi_sync_report(dlx_sync *s, const char *text, dlx_error *error);
void dlxi_sync_pace(dlx_sync *s, double factor);
uint64_t dlxi_sync_tokens(const dlx_sync *s);
uint64_t dlxi_sync_tokens_target(const dlx_sync *s);
uint32_t dlxi_sync_site_index(const dlx_sync *s);
uint32_t dlxi_sync_site_count(const dlx_sync *s);
uint64_t dlxi_sync_take_anchor(dlx_sync *s);
void dlxi_sync_anchor(dlx_sync *s, float *const *dst);
void dlxi_sync_anchor_hashes(const dlx_sync *s, uint64_t *dst);
void dlxi_sync_statistics(dlx_sync *s, dlx_statistics *out);
void dlxi_sync_interrupt(dlx_sync *s);
void dlxi_sync_fail(dlx_sync *s, const char *reason);
dlx_status dlxi_sync_failure(dlx_sync *s, dlx_error *error);
void dlxi_sync_close(dlx_sync **s);

#endif
