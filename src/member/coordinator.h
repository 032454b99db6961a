/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's side of a run: rendezvous, leases, attempts, commits. A pure state machine: it
 * owns no socket, thread or clock. Feed it messages and time; send what it queues.
 *
 * GATHERING  hello from every rank of every site → welcome → listening from all → peers
 *   RUNNING    ready from all → begin → staged from all → commit (hashes agree, rank by rank) or abort, again
 *   ENDING     the run's tokens are committed; report from all → finished
 *   DONE       all reported, or failed: `status` and `error` say which
 *
 * A site is there when all its ranks are, and takes part with all of them or not at all. What has
 * to be the same on all sites is compared between ranks of the same number. */
#ifndef DLXI_MEMBER_COORDINATOR_H
#define DLXI_MEMBER_COORDINATOR_H

#include "member/outbox.h"

typedef struct dlxi_coordinator_settings {
    uint16_t sites;
    uint64_t tokens_target;
    const char *shared_text; /* copied; NULL: the first site's is the run's */
    uint32_t timeout_ms;
    uint32_t attempts_max; /* of one round */
} dlxi_coordinator_settings;

typedef enum dlxi_coordinator_phase {
    DLXI_COORDINATOR_GATHERING,
    DLXI_COORDINATOR_RUNNING,
    DLXI_COORDINATOR_ENDING,
    DLXI_COORDINATOR_DONE
} dlxi_coordinator_phase;

typedef struct dlxi_coordinator dlxi_coordinator;

dlx_status dlxi_coordinator_open(dlxi_coordinator **out, const dlxi_coordinator_settings *settings,
                                 int64_t now_ms, dlx_error *error);
void dlxi_coordinator_close(dlxi_coordinator **coordinator);

/* A frame from a peer, numbered by the link; `name` and `key` are what it proved to be ("" without
 * security). */
void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name,
                               const char *key, const dlxi_frame *frame, int64_t now_ms);
void dlxi_coordinator_on_tick(dlxi_coordinator *c, int64_t now_ms);
/* The run ends as failed: sites are told why. */
void dlxi_coordinator_fail(dlxi_coordinator *c, dlx_status status, const char *site,
                           const char *format, ...) DLXI_PRINTF(4, 5);

/* True where the last frame gave something to say to whoever watches: who joined, who was refused.
 */
bool dlxi_coordinator_take_notice(dlxi_coordinator *c, char *text, size_t text_bytes);

/* Frames to send, oldest first; `to` is a link's peer number. */
dlxi_outbox *dlxi_coordinator_outbox(dlxi_coordinator *c);
dlxi_coordinator_phase dlxi_coordinator_phase_of(const dlxi_coordinator *c);
/* After DONE. */
dlx_status dlxi_coordinator_result(const dlxi_coordinator *c, dlx_error *error);
/* The report that rank 0 of the site sent, or NULL; and the site's name. */
const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t site, const char **name);

#endif
