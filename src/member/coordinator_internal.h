/* SPDX-License-Identifier: Apache-2.0 */
/* Inside a coordinator: its sites and their ranks, and who may join. */
#ifndef DLXI_MEMBER_COORDINATOR_INTERNAL_H
#define DLXI_MEMBER_COORDINATOR_INTERNAL_H

#include <stdio.h>

#include "base/lines.h"
#include "member/coordinator.h"
#include "member/lease.h"

enum { DLXI_COORDINATOR_LEASES = 3 /* rounds t, t+1, t+2 */ };

/* One rank of a site: it joins, submits and stages by itself; a round counts for all or for none.
 */
typedef struct dlxi_run_rank {
    bool joined; /* it said hello */
    bool listening, linked, ready, staged, reported, finished;
    uint32_t peer;
    uint64_t tensors_hash, anchor_hash;
    int64_t last_seen_ms;
    int64_t answered_ms; /* when it was last sent a message that it lacked */
    /* where it listens, [sites]; from listening on */
    char (*endpoints)[DLXI_ENDPOINT_BYTES];
    dlxi_ready round_ready;
    uint64_t staged_hash;
} dlxi_run_rank;

typedef struct dlxi_run_site {
    char name[DLXI_NAME_BYTES];
    char key[DLXI_KEY_TEXT_BYTES];
    uint16_t rank_count, joined;
    dlxi_run_rank *ranks; /* [rank_count] */
    uint64_t windows, tokens_per_window, data_hash;
    uint32_t lease_windows;
    uint64_t tokens; /* of the present round, once all its ranks are ready */
    uint32_t windows_used;
    dlxi_lease leases[DLXI_COORDINATOR_LEASES]; /* of round t at t mod DLXI_COORDINATOR_LEASES */
    char *report;                               /* its rank 0's */
    uint64_t dropped_round;                     /* in which it was; 0: it takes part */
    dlx_status dropped_status;
    char dropped_why[DLXI_REASON_MAX + 1];
} dlxi_run_site;

/* The last site of several ranks that was refused: its ranks come one by one, and get the same
 * answer. */
typedef struct dlxi_refused_site {
    char name[DLXI_NAME_BYTES]; /* "": none */
    char text[DLXI_REASON_MAX + 1];
    int64_t until_ms;
    bool answered[DLXI_RANKS_MAX]; /* one that comes again belongs to another try */
} dlxi_refused_site;

/* Which rank a peer is. */
typedef struct dlxi_run_peer {
    uint16_t site, rank; /* site DLXI_SITE_NONE: none of this run */
} dlxi_run_peer;

/* A round that does not commit, or sites that do not reach each other. */
typedef struct dlxi_trouble {
    int64_t since_ms;               /* 0: none */
    bool told;                      /* terminals show it */
    uint32_t attempts;              /* that failed */
    uint32_t differing;             /* of them, because results differed */
    char text[DLXI_REASON_MAX + 1]; /* the last report */
} dlxi_trouble;

/* A cause of trouble, of this round or an earlier one, and when terminals last showed it. */
enum { DLXI_TOLD_MAX = 8 };
typedef struct dlxi_told {
    uint64_t cause;
    int64_t at_ms;
} dlxi_told;

struct dlxi_coordinator {
    dlxi_coordinator_settings settings;
    dlxi_coordinator_phase phase;
    dlx_error result;
    uint32_t term, attempt;
    uint32_t committed_attempt; /* of the last committed round */
    uint64_t round, committed_tokens;
    bool committed_last; /* the last commit finished the run */
    int64_t now_ms, pinged_ms, ticked_ms, closing_ms, begun_ms;
    int64_t opened_ms, tell_ms;        /* tell_ms: when terminals show next who is missing */
    char (*expected)[DLXI_NAME_BYTES]; /* [expected_count]: may join; 0: anybody */
    uint32_t expected_count;
    bool begin_waits;  /* the attempt failed; the next one begins a moment later */
    char *shared_text; /* the run's settings; NULL: not given */
    char *sites_text;  /* as the first site to join gave it; NULL: none has */
    bool welcomed;
    bool begun;     /* all ranks were linked */
    uint16_t count; /* sites, with all of their ranks or some */
    dlxi_run_site sites[DLXI_SITES_MAX];
    uint16_t live; /* sites that take part, once welcomed: all but the dropped */
    /* what follows counts ranks of sites that take part; rank_count: all of them, once welcomed */
    uint32_t rank_count;
    uint32_t listening_count, linked_count, ready_count, staged_count, reported_count,
        finished_count;
    dlxi_run_peer *peers; /* [peer_room], by the link's number */
    uint32_t peer_room;
    dlxi_trouble trouble;
    dlxi_told told[DLXI_TOLD_MAX];
    dlxi_refused_site refused;
    dlxi_ledger *ledger;
    dlxi_outbox outbox;
    dlxi_message incoming;
    dlxi_lines log; /* for the operator */
};

/* "site 'paris'", or "site 'paris' (rank 3)" if it has several. */
typedef struct dlxi_label {
    char text[DLXI_SITE_NAME_MAX + 32];
} dlxi_label;

static inline dlxi_label dlxi_label_for(const char *name, uint16_t rank, uint16_t ranks) {
    dlxi_label l;
    if (ranks > 1)
        snprintf(l.text, sizeof l.text, "site '%s' (rank %u)", name, rank);
    else
        snprintf(l.text, sizeof l.text, "site '%s'", name);
    return l;
}

static inline bool dlxi_run_site_is_dropped(const dlxi_run_site *s) {
    return s->dropped_round > 0;
}

static inline bool dlxi_run_site_is_complete(const dlxi_run_site *s) {
    return s->joined == s->rank_count;
}

/* Whether every pair of sites has exchanged frames, both ways. */
static inline bool dlxi_coordinator_is_linked(const dlxi_coordinator *c) {
    return c->rank_count > 0 && c->linked_count == c->rank_count;
}

/* ---- coordinator.c ---- */

dlxi_label dlxi_label_of(const dlxi_run_site *s, const dlxi_run_rank *p);
/* The message to fill in before one of the puts. */
dlxi_message *dlxi_coordinator_compose(dlxi_coordinator *c, dlxi_frame_kind kind);
/* To one rank, of the given round and attempt. A message that can't be queued ends the run. */
void dlxi_coordinator_put(dlxi_coordinator *c, dlxi_run_rank *p, uint64_t round, uint32_t attempt);
/* To every rank that joined, of the present round and attempt. */
void dlxi_coordinator_put_all(dlxi_coordinator *c);
void dlxi_coordinator_put_reason(dlxi_coordinator *c, uint32_t peer, dlxi_frame_kind kind,
                                 dlx_status status, const char *text);
void dlxi_coordinator_fail_memory(dlxi_coordinator *c);
/* The run goes on without this site if it can, or fails by it. `culprit`, which may be NULL: its
 * rank that need not be told. */
void dlxi_coordinator_lose(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                           dlx_status status, const char *text);
void dlxi_run_site_release(dlxi_run_site *s);
/* After sites were reordered. */
void dlxi_coordinator_index_peers(dlxi_coordinator *c);
/* Asserts that all counts equal a recount. */
void dlxi_coordinator_check(const dlxi_coordinator *c);

/* ---- gather.c: rendezvous ---- */

void dlxi_gather_on_hello(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key,
                          const dlxi_hello *hello, int64_t now_ms);
void dlxi_gather_on_listening(dlxi_coordinator *c, dlxi_run_rank *p,
                              const dlxi_endpoints *endpoints);
/* Whether this rank and its counterparts exchange frames. */
void dlxi_gather_on_linked(dlxi_coordinator *c, dlxi_run_rank *p, bool linked);
/* The site leaves before the run has begun; its other ranks are notified. `culprit` may be NULL. */
void dlxi_gather_leave(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                       dlx_status status, const char *text);
void dlxi_gather_welcome_rank(dlxi_coordinator *c, uint16_t site, uint16_t rank);
void dlxi_gather_peers_of_rank(dlxi_coordinator *c, uint16_t site, uint16_t rank);

/* Until the welcome: says who is missing, and ends a run that has waited for too long. */
void dlxi_gather_on_tick(dlxi_coordinator *c, int64_t now_ms);

/* ---- rounds.c: attempts, commits, the end ---- */

void dlxi_rounds_grant(dlxi_coordinator *c, uint64_t round);
void dlxi_rounds_on_ready(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p, uint64_t round,
                          const dlxi_ready *ready);
void dlxi_rounds_on_staged(dlxi_coordinator *c, dlxi_run_rank *p, const dlxi_frame *frame,
                           uint64_t hash);
void dlxi_rounds_on_abort(dlxi_coordinator *c, const dlxi_frame *frame, const char *why);
void dlxi_rounds_on_report(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const char *text);
void dlxi_rounds_on_finished(dlxi_coordinator *c, dlxi_run_rank *p);
/* Sends again what the rank lacks, as the round and attempt of its frame show. */
void dlxi_rounds_answer(dlxi_coordinator *c, uint16_t site, uint16_t rank, const dlxi_frame *frame,
                        int64_t now_ms);
void dlxi_rounds_on_tick(dlxi_coordinator *c, int64_t now_ms);
/* Whether the run can go on without this site. */
bool dlxi_rounds_can_spare(const dlxi_coordinator *c, const dlxi_run_site *s);
/* The site takes part no more, with any of its ranks; the others go on. */
void dlxi_rounds_drop(dlxi_coordinator *c, dlxi_run_site *s, dlx_status status, const char *why);

/* ---- admit.c: who may join ---- */

/* Returns true and writes the reason if the run has no room for this hello, through no fault of a
 * site that joined. `s`: what has joined of the site of that name, or NULL. */
bool dlxi_coordinator_has_no_room(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                                  const char *proved_name, const dlxi_run_site *s,
                                  const dlxi_hello *hello);
/* Returns true and writes the reason if this rank does not fit its site or the run. */
bool dlxi_coordinator_mismatch(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                               const dlxi_run_site *s, const dlxi_hello *hello);

#endif
