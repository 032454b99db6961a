/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's side of a run: rendezvous, leases, attempts, commits. A pure state machine: it
 * owns no socket, thread or clock. Feed it messages and time; send what it queues.
 *
 *   GATHERING  hello from every rank of every site, within join_ms → welcome → listening from all
 *              → peers
 *   RUNNING    ready from all → begin → staged from all → commit (hashes agree, rank by rank), or
 *              abort and begin again
 *   ENDING     the run's tokens are committed; report from all → finished
 *   CLOSING    waits until all have answered finished, for timeout_ms at most
 *   DONE       all reported, or failed: dlxi_coordinator_result says which
 *
 * A site that fails or falls silent while rounds run is dropped, if sites_min others are left: the
 * attempt is aborted, and they begin another without it. Its windows are free again. It is told so,
 * and cannot come back.
 *
 * A site takes part with all of its ranks or not at all. What has to be the same on all sites is
 * compared between ranks of the same number. A rank whose frames show that it lacks a message gets
 * it again, at most four times per second; ranks repeat what waits for an answer. */
#ifndef DLXI_MEMBER_COORDINATOR_H
#define DLXI_MEMBER_COORDINATOR_H

#include "member/outbox.h"

typedef struct dlxi_coordinator_settings {
    uint16_t sites;
    uint16_t sites_min; /* the run goes on with as many; 0: with all of them only */
    uint64_t tokens_target;
    uint64_t run_id;         /* which the sites receive */
    const char *shared_text; /* copied; each site's begins with it, what follows is compared between
                                sites. NULL: none */
    uint32_t timeout_ms;
    uint32_t join_ms;      /* from open until all ranks of all sites have said hello */
    uint32_t patience_ms;  /* from a round's first failed attempt to its commit */
    uint32_t attempts_max; /* of one round whose results differ between sites */
} dlxi_coordinator_settings;

typedef enum dlxi_coordinator_phase {
    DLXI_COORDINATOR_GATHERING,
    DLXI_COORDINATOR_RUNNING,
    DLXI_COORDINATOR_ENDING,
    DLXI_COORDINATOR_CLOSING,
    DLXI_COORDINATOR_DONE
} dlxi_coordinator_phase;

typedef struct dlxi_coordinator dlxi_coordinator;

dlx_status dlxi_coordinator_open(dlxi_coordinator **out, const dlxi_coordinator_settings *settings,
                                 int64_t now_ms, dlx_error *error);
void dlxi_coordinator_close(dlxi_coordinator **coordinator);

/* A site that may join: lines about the wait name those that have not. */
dlx_status dlxi_coordinator_expect(dlxi_coordinator *c, const char *name, dlx_error *error);

/* A frame from a peer, numbered by the link; `name` and `key` are what it proved to be ("" without
 * security). */
void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name,
                               const char *key, const dlxi_frame *frame, int64_t now_ms);
void dlxi_coordinator_on_tick(dlxi_coordinator *c, int64_t now_ms);
/* The run ends as failed: sites are notified with the reason. */
void dlxi_coordinator_fail(dlxi_coordinator *c, dlx_status status, const char *site,
                           const char *format, ...) DLXI_PRINTF(4, 5);

/* Takes the oldest line for the operator: sites joined or refused, and failures. */
bool dlxi_coordinator_pop_log(dlxi_coordinator *c, char *text, size_t text_bytes);

/* Frames to send, oldest first; `to` is a link's peer number. */
dlxi_outbox *dlxi_coordinator_outbox(dlxi_coordinator *c);
dlxi_coordinator_phase dlxi_coordinator_phase_of(const dlxi_coordinator *c);
/* All sites have joined and reach each other; it stays true from then on. */
bool dlxi_coordinator_has_begun(const dlxi_coordinator *c);
/* After DONE. */
dlx_status dlxi_coordinator_result(const dlxi_coordinator *c, dlx_error *error);
/* Whether the site was dropped; if so, in which round and why. */
bool dlxi_coordinator_dropped(const dlxi_coordinator *c, uint16_t site, uint64_t *round,
                              const char **name, const char **why);
/* The report that rank 0 of the site sent, or NULL; and the site's name. */
const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t site, const char **name);

#endif
