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
 * Once rounds run, sites_min sites go on. A round begins when all that are present are ready, or,
 * when most are, after the time that those can wait without loss. Whoever is not in it is left out:
 * it keeps what it has submitted, which stands for the next round, and takes over this one's
 * results. A site that falls silent is away, and may come back with what it has; after limbo_ms its
 * windows go to others, and what it trained on them is void. A site that fails is gone: it is told
 * so, and its windows are free at once. An attempt that loses a member is aborted, and begun again
 * without it. Of a pair between which nothing moves, one is left out until the pair has worked for
 * a while.
 *
 * What must outlive this process is saved before anything that rests on it is sent: whenever
 * dlxi_coordinator_is_unsaved, the owner writes what dlxi_coordinator_save gives before it sends
 * from the outbox. A later life is opened with dlxi_coordinator_restore, and has a higher term.
 *
 * A site takes part with all of its ranks or not at all. What has to be the same on all sites is
 * compared between ranks of the same number. A rank whose frames show that it lacks a message gets
 * it again, at most four times per second unless it has moved on; ranks repeat what waits for an
 * answer. */
#ifndef DLXI_MEMBER_COORDINATOR_H
#define DLXI_MEMBER_COORDINATOR_H

#include "member/outbox.h"

typedef struct dlxi_coordinator_settings {
    uint16_t sites;
    uint16_t sites_min; /* a round needs as many; 0: all of them */
    uint64_t tokens_target;
    uint64_t run_id;  /* which the sites receive */
    uint64_t life_id; /* random: of this life of the run's coordinator; see dlxi_lineage_of */
    const char *shared_text; /* copied; each site's begins with it, what follows is compared between
                                sites. NULL: none */
    uint32_t timeout_ms;
    uint32_t join_ms;      /* from open until all ranks of all sites have said hello */
    uint32_t patience_ms;  /* from a round's first failed attempt to its commit */
    uint32_t attempts_max; /* of one round whose results differ between sites */
    uint32_t limbo_ms;     /* a site that is away keeps its windows for so long */
    uint32_t find_ms;      /* when a site comes where none was, the others have so long to come */
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

/* What must be durable before the outbox is sent from: the state as it is now, and the record of
 * the last committed round, if there is one. */
typedef struct dlxi_saved {
    uint8_t *state, *record; /* record NULL: none */
    size_t state_bytes, record_bytes;
    uint64_t round; /* of the record */
} dlxi_saved;

bool dlxi_coordinator_is_unsaved(const dlxi_coordinator *c);
/* The owner frees *out with dlxi_saved_release. From now on it counts as saved. */
dlx_status dlxi_coordinator_save(dlxi_coordinator *c, dlxi_saved *out, dlx_error *error);
/* The same with the record of that round, if there is one: for those before, after a takeover. */
dlx_status dlxi_coordinator_save_round(dlxi_coordinator *c, uint64_t round, dlxi_saved *out,
                                       dlx_error *error);
void dlxi_saved_release(dlxi_saved *saved);
/* Whether a write waits for the disk: not if each inner step is a round (allreduce). */
bool dlxi_coordinator_waits_for_disk(const dlxi_coordinator *c);

/* The run ended well, and the owner has done with the reports all that it wants to: what is saved
 * from now on can't be restored. A run that failed is over by itself, unless another coordinator
 * has taken it over. */
void dlxi_coordinator_set_over(dlxi_coordinator *c);
bool dlxi_coordinator_is_over(const dlxi_coordinator *c);

/* Where the coordinator listens, for its later lives: "" until it is set. It is saved, and not used
 * here. */
void dlxi_coordinator_set_endpoint(dlxi_coordinator *c, const char *endpoint);
const char *dlxi_coordinator_endpoint(const dlxi_coordinator *c);

/* The run goes on where another life of its coordinator saved it; its id and tokens are the saved
 * ones. DLX_DATA: malformed; DLX_CONFIG: other settings than then; DLX_STATE: it is over. */
dlx_status dlxi_coordinator_restore(dlxi_coordinator **out,
                                    const dlxi_coordinator_settings *settings, const uint8_t *state,
                                    size_t bytes, int64_t now_ms, dlx_error *error);
/* The records of the rounds before dlxi_coordinator_round, as many as there are and are kept, for
 * sites that are behind. */
dlx_status dlxi_coordinator_restore_record(dlxi_coordinator *c, const uint8_t *bytes, size_t count,
                                           dlx_error *error);
/* Instead, from what a site keeps, at the same term; with its records. Without
 * dlxi_coordinator_succeed it is there to be looked at. */
dlx_status dlxi_coordinator_restore_copy(dlxi_coordinator **out,
                                         const dlxi_coordinator_settings *settings,
                                         const uint8_t *copy, size_t bytes, int64_t now_ms,
                                         dlx_error *error);
/* It takes the run over, as this life, and goes on without the sites of these bits, which may have
 * gone on by themselves. The rest is away. */
void dlxi_coordinator_succeed(dlxi_coordinator *c, uint32_t term, uint64_t life_id,
                              uint64_t given_up, int64_t now_ms);
enum { DLXI_COORDINATOR_RECORDS = 1024 };
/* The present one. */
uint64_t dlxi_coordinator_round(const dlxi_coordinator *c);
uint64_t dlxi_coordinator_run_id(const dlxi_coordinator *c);

/* A site that may join: lines about the wait name those that have not. */
dlx_status dlxi_coordinator_expect(dlxi_coordinator *c, const char *name, dlx_error *error);

/* A frame from a peer, numbered by the link; `name` and `key` are what it proved to be ("" without
 * security). */
void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name,
                               const char *key, const dlxi_frame *frame, int64_t now_ms);
/* The link has had no connection to this peer for a while. */
void dlxi_coordinator_on_closed(dlxi_coordinator *c, uint32_t peer, int64_t now_ms);
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
/* Whether the site is lost or away; if so, in which round that happened, and why. */
bool dlxi_coordinator_dropped(const dlxi_coordinator *c, uint16_t site, uint64_t *round,
                              const char **name, const char **why);
/* What happened since this life of the coordinator began. */
typedef struct dlxi_coordinator_facts {
    uint64_t attempts; /* begun */
    /* that failed: nothing moved between two sites; a frame was malformed; results differed; a
     * member was lost */
    uint64_t stalled, broken, differing, member_lost;
    /* from a failed attempt or a lost site to the next commit */
    uint64_t recoveries;
    int64_t recovery_ms_sum, recovery_ms_max;
} dlxi_coordinator_facts;

void dlxi_coordinator_facts_of(const dlxi_coordinator *c, dlxi_coordinator_facts *facts);

typedef struct dlxi_site_facts {
    const char *name;
    uint64_t rounds;   /* that it was a member of */
    uint64_t left_out; /* rounds that it was not, while it was part of the run */
    uint64_t away;     /* how often it was */
    int64_t away_ms;   /* in all */
} dlxi_site_facts;

/* False: there is no such site. */
bool dlxi_coordinator_site_facts(const dlxi_coordinator *c, uint16_t site, dlxi_site_facts *facts);

/* The report that rank 0 of the site sent, or NULL; and the site's name. */
const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t site, const char **name);

#endif
