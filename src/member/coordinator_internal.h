/* SPDX-License-Identifier: Apache-2.0 */
/* Inside a coordinator: its sites and their ranks, and who may join. */
#ifndef DLXI_MEMBER_COORDINATOR_INTERNAL_H
#define DLXI_MEMBER_COORDINATOR_INTERNAL_H

#include <stddef.h>
#include <stdio.h>

#include "base/lines.h"
#include "member/coordinator.h"
#include "member/lease.h"
#include "member/pairs.h"

enum {
    DLXI_COORDINATOR_LEASES = 3 /* submissions n, n+1, n+2 */
};

/* Shown by whether it speaks; a site that is away may come back with what it has. */
typedef enum dlxi_presence { DLXI_PRESENT, DLXI_AWAY, DLXI_GONE } dlxi_presence;

/* One rank of a site: it joins, submits and stages by itself; a round counts for all or for none.
 */
typedef struct dlxi_run_rank {
    bool joined;  /* it said hello */
    bool returns; /* another process did, and waits for the other ranks of its site */
    bool listening, linked, entered, ready, staged, reported, finished;
    bool deaf;        /* it does not receive this coordinator */
    int64_t stamp_ms; /* the newest of this coordinator's clock that it returned; 0: none */
    bool has_peer;    /* `peer` is its number at the link */
    uint32_t peer;
    uint64_t incarnation;
    uint64_t round;   /* the one after the last that it has applied, as it said */
    int64_t moved_ms; /* when it first said so */
    uint64_t tensors_hash, anchor_hash;
    uint64_t reaches;    /* sites, as in dlxi_ping */
    uint8_t superseding; /* pings in a row that name another life of the coordinator */
    int64_t last_seen_ms;
    int64_t answered_ms; /* when it was last sent a message that it lacked */
    int64_t peers_ms;    /* when it was last told again where sites listen */
    /* where it listens, [sites]; from listening on */
    char (*endpoints)[DLXI_ENDPOINT_BYTES];
    dlxi_ready round_ready;
    uint64_t staged_hash;
} dlxi_run_rank;

/* Why the last pair that a site is in was blocked. */
typedef struct dlxi_apart {
    char why[DLXI_REASON_MAX + 1]; /* without how long; "": none was */
    int64_t since_ms;              /* nothing has moved; 0: frames were lost */
    uint16_t other;
} dlxi_apart;

typedef struct dlxi_run_site {
    char name[DLXI_NAME_BYTES];
    char key[DLXI_KEY_TEXT_BYTES];
    uint16_t rank_count, joined;
    dlxi_run_rank *ranks; /* [rank_count] */
    uint64_t windows, tokens_per_window, data_hash;
    uint32_t lease_windows;
    bool keeps_history;
    /* submissions: up to which they are counted; up to which they are void, since their windows
     * were given to others */
    uint64_t counted, voided;
    uint64_t windows_early; /* used by counted submissions that have not trained on them */
    uint64_t resumed_run;   /* as it said when it joined; 0: it starts anew */
    dlxi_lease leases[DLXI_COORDINATOR_LEASES]; /* of submission n at n mod this */
    /* of the present submission, once all its ranks are ready */
    uint64_t tokens;
    uint32_t windows_used;
    bool is_void;
    uint64_t offered;                  /* the last submission that it said is ready */
    bool candidate, member;            /* of the attempt to begin; of the present one */
    bool was_member;                   /* of the last committed round */
    uint32_t left_out, left_out_total; /* rounds in a row; in all */
    /* rounds in a row without it while it was present and submitted nothing; since when */
    uint32_t idle_rounds;
    int64_t idle_since_ms;
    uint64_t away_count;
    int64_t away_total_ms; /* before the present time */
    uint64_t stuck_round;  /* whose exchange it did not finish */
    uint64_t lag;          /* rounds that it lacked when the last attempt began */
    uint64_t parts;        /* of the work at the end: bits */
    char *report;          /* its rank 0's */
    dlxi_presence presence;
    bool has_returned;   /* as another process, which listens elsewhere */
    bool catches_up;     /* and has submitted nothing since */
    bool revived;        /* away only since this coordinator was started again */
    int64_t away_ms;     /* since when */
    int64_t back_ms;     /* when it last came back */
    uint64_t lost_round; /* in which it was last lost; 0: never */
    dlx_status lost_status;
    char lost_why[DLXI_REASON_MAX + 1];
    dlxi_apart apart;
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
    bool ping_waits;     /* in the outbox */
} dlxi_run_peer;

/* A round that does not commit, or sites that do not reach each other. */
typedef struct dlxi_trouble {
    int64_t since_ms;               /* 0: none */
    int64_t patient_ms;             /* when a member that hung was left out: patience begins anew */
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

/* A committed round: what members applied, and others need beside its results. */
typedef struct dlxi_record_member {
    uint16_t site;
    bool voided;
    uint64_t tokens, step_ns;
} dlxi_record_member;

typedef struct dlxi_record {
    uint64_t round, committed_tokens;
    uint32_t term, attempt;
    uint64_t coordinator;
    bool finished;
    uint16_t members, ranks;
    dlxi_record_member *member; /* [members] */
    uint64_t *exchange_ns;      /* [ranks, members] */
    uint64_t *exchange_bytes;   /* [ranks, members] */
} dlxi_record;

/* How far a run is, as it is saved. */
typedef enum dlxi_stage {
    DLXI_STAGE_ROUNDS,   /* or tokens are committed, and reports are missing */
    DLXI_STAGE_REPORTED, /* all that are present have; the reports are saved, too */
    DLXI_STAGE_OVER      /* done, or failed */
} dlxi_stage;

struct dlxi_coordinator {
    dlxi_coordinator_settings settings;
    dlxi_coordinator_phase phase;
    dlx_error result;
    uint32_t term, attempt;
    uint64_t round, committed_tokens;
    bool committed_last; /* the last commit finished the run */
    uint16_t part_count; /* of the work at the end; 0: not cut yet */
    uint16_t saver;      /* the site that saves the results */
    int64_t now_ms, pinged_ms, ticked_ms, closing_ms, begun_ms;
    int64_t staged_ms;          /* when a rank last staged the present attempt; 0: none has */
    int64_t ending_ms;          /* when the work at the end was last given out */
    int64_t opened_ms, tell_ms; /* tell_ms: when terminals show next who is missing */
    int64_t found_ms;           /* when a site last came where none was; 0: never */
    int64_t resumed_ms;         /* when this process's last pause ended */
    int64_t majority_ms;        /* since when most are ready; 0: they are not */
    int64_t minority_ms, minority_told_ms; /* since when a few are; last shown; 0: not so */
    bool minority_may;                     /* go on without the rest, in the end */
    int64_t grace_taken_ms;                /* how long the present round has waited for the rest */
    int64_t waits_since_ms, waits_told_ms; /* too few can begin: since; last shown; 0: not so */
    char (*expected)[DLXI_NAME_BYTES];     /* [expected_count]: may join; 0: anybody */
    uint32_t expected_count;
    bool begin_waits;  /* the attempt failed; the next one begins a moment later */
    char *shared_text; /* the run's settings; NULL: not given */
    char *sites_text;  /* as the first site to join gave it; NULL: none has */
    bool welcomed;
    bool begun;    /* all ranks were linked */
    bool restored; /* from what an earlier life saved */
    bool unsaved;  /* what is durable has changed: nothing may be sent before it is written */
    dlxi_stage saved_stage;
    bool leaves_run;                    /* another coordinator has the run, or may go on with it */
    bool committed;                     /* a round, in this life */
    bool stranger_is_told;              /* terminals show that a site of another run speaks */
    bool no_copy_is_told;               /* and that the state is too large for a copy */
    bool is_over;                       /* the owner has the reports */
    char endpoint[DLXI_ENDPOINT_BYTES]; /* the owner's, only saved here */
    uint16_t count;                     /* sites, with all of their ranks or some */
    dlxi_run_site sites[DLXI_SITES_MAX];
    dlxi_run_peer *peers; /* [peer_room], by the link's number */
    uint32_t peer_room;
    dlxi_record *proposal; /* of the attempt that is under way; else NULL */
    dlxi_record *records[DLXI_COORDINATOR_RECORDS]; /* of round t at t mod this */
    dlxi_pairs pairs;
    dlxi_coordinator_facts facts;
    int64_t disturbed_ms; /* since when the present round is; 0: it is not */
    dlxi_trouble trouble;
    dlxi_told told[DLXI_TOLD_MAX];
    dlxi_refused_site refused;
    dlxi_ledger *ledger;
    uint64_t taken_round;             /* at which this life took the run over; 0: it did not */
    uint64_t given_up, given_up_told; /* bits of sites: then; what these gave up has been told */
    uint8_t *copy;                    /* for sites, of the last committed round; NULL: none */
    uint32_t copy_bytes;
    dlxi_copy resumed; /* that a site brought when it joined; data is the coordinator's */
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

static inline bool dlxi_run_site_is_complete(const dlxi_run_site *s) {
    return s->joined == s->rank_count;
}

/* Of that name, or NULL. */
dlxi_run_site *dlxi_run_site_find(dlxi_coordinator *c, const char *name);
/* The sites that are present, in order: for (s = next(c, NULL); s != NULL; s = next(c, s)). */
dlxi_run_site *dlxi_run_site_next(dlxi_coordinator *c, const dlxi_run_site *after);
/* How many are present; are not gone. */
uint16_t dlxi_coordinator_present(const dlxi_coordinator *c);
uint16_t dlxi_coordinator_left(const dlxi_coordinator *c);

/* Whether all ranks of the site have this flag, a member of dlxi_run_rank. */
bool dlxi_run_site_all(const dlxi_run_site *s, size_t flag_offset);
#define DLXI_ALL(s, flag) dlxi_run_site_all(s, offsetof(dlxi_run_rank, flag))

/* It is present, and all of its ranks have submitted. */
static inline bool dlxi_run_site_is_ready(const dlxi_run_site *s) {
    return s->presence == DLXI_PRESENT && DLXI_ALL(s, ready);
}

/* How many rounds' results it lacks. */
uint64_t dlxi_run_site_lag(const dlxi_coordinator *c, const dlxi_run_site *s);

/* ---- coordinator.c ---- */

dlxi_label dlxi_label_of(const dlxi_run_site *s, const dlxi_run_rank *p);
/* The message to fill in before one of the puts. */
dlxi_message *dlxi_coordinator_compose(dlxi_coordinator *c, dlxi_frame_kind kind);
/* To one rank, of the given round and attempt. A message that can't be queued ends the run. */
void dlxi_coordinator_put(dlxi_coordinator *c, dlxi_run_rank *p, uint64_t round, uint32_t attempt);
/* To every rank that joined and whose site is not lost, of the present round and attempt. */
void dlxi_coordinator_put_all(dlxi_coordinator *c);
void dlxi_coordinator_put_reason(dlxi_coordinator *c, uint32_t peer, dlxi_frame_kind kind,
                                 dlx_status status, const char *text);
void dlxi_coordinator_fail_memory(dlxi_coordinator *c);
/* This coordinator ends, and the run may go on under another: no site is told. */
void dlxi_coordinator_leave(dlxi_coordinator *c, const char *format, ...) DLXI_PRINTF(2, 3);
void dlxi_run_site_release(dlxi_run_site *s);
/* After sites were reordered. */
void dlxi_coordinator_index_peers(dlxi_coordinator *c);
/* Asserts what holds between events. */
void dlxi_coordinator_check(const dlxi_coordinator *c);

/* ---- gather.c: rendezvous ---- */

void dlxi_gather_on_hello(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key,
                          const dlxi_hello *hello, int64_t now_ms);
void dlxi_gather_on_listening(dlxi_coordinator *c, dlxi_run_rank *p,
                              const dlxi_endpoints *endpoints);
/* Whether this rank and its counterparts exchange frames. */
void dlxi_gather_on_linked(dlxi_coordinator *c, dlxi_run_rank *p, bool linked);
/* Every pair of sites has exchanged frames, both ways. */
bool dlxi_gather_is_linked(const dlxi_coordinator *c);
/* The site leaves before the run has begun; its other ranks are notified. `culprit` may be NULL. */
void dlxi_gather_leave(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                       dlx_status status, const char *text);
void dlxi_gather_welcome_rank(dlxi_coordinator *c, uint16_t site, uint16_t rank);
/* Where a rank listens, said for the first time: false if it is not, or without memory. */
bool dlxi_gather_endpoints_keep(dlxi_coordinator *c, dlxi_run_rank *p,
                                const dlxi_endpoints *endpoints);
void dlxi_gather_peers_of_rank(dlxi_coordinator *c, uint16_t site, uint16_t rank);
void dlxi_gather_ask_rank(dlxi_coordinator *c, dlxi_run_rank *p);

/* Until the welcome: says who is missing, and ends a run that has waited for too long. */
void dlxi_gather_on_tick(dlxi_coordinator *c, int64_t now_ms);

/* ---- presence.c: who takes part ---- */

/* The run goes on without this site if it can, or fails by it. It does not come back. `culprit`,
 * which may be NULL: its rank that need not be told. */
void dlxi_presence_lose(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                        dlx_status status, const char *text);
/* Nothing is heard of the site, which may come back. */
void dlxi_presence_miss(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                        const char *text);
/* Some rank of it has not got the last committed round's results. */
bool dlxi_presence_is_behind(const dlxi_coordinator *c, const dlxi_run_site *s);
/* When a site comes where none was, the others have some time to come; those that can't make up for
 * a round, until they are given up. */
bool dlxi_presence_is_expecting(const dlxi_coordinator *c);
/* A ping of a peer that is unknown, or known by another number: true if it is this rank now. */
bool dlxi_presence_recognise(dlxi_coordinator *c, uint32_t peer, const char *name,
                             const dlxi_frame *frame, const dlxi_ping *ping);
/* A frame of this term of a site that may have been away. */
void dlxi_presence_on_frame(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p);
void dlxi_presence_on_ping(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const dlxi_ping *ping);
void dlxi_presence_on_tick(dlxi_coordinator *c, int64_t now_ms);
/* A lost site that still speaks has not heard of it. */
void dlxi_presence_answer_lost(dlxi_coordinator *c, const dlxi_run_site *s, dlxi_run_rank *p);

/* ---- tell.c: lines for terminals about who is left out and waited for ---- */

/* The reason of trouble between a and b that keeps them apart, for whoever is left out. */
void dlxi_tell_keep_apart(dlxi_coordinator *c, uint16_t a, uint16_t b, const dlxi_reason *reason);
/* As a round commits without the site. */
void dlxi_tell_left_out(dlxi_coordinator *c, const dlxi_run_site *s, uint16_t members);
/* Who is waited for, if too few are ready for long; `limit_ms`: so long they wait at most. */
void dlxi_tell_minority(dlxi_coordinator *c, int64_t limit_ms);
/* Who is missing while no round can begin, every ten seconds, and why. */
void dlxi_tell_waits(dlxi_coordinator *c, const char *why);

/* ---- rounds.c: attempts, commits, the end ---- */

/* The leases of this site's submission. */
void dlxi_rounds_grant(dlxi_coordinator *c, dlxi_run_site *s, uint64_t submission);
void dlxi_rounds_on_ready(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p, uint64_t round,
                          const dlxi_ready *ready);
void dlxi_rounds_on_staged(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const dlxi_frame *frame, uint64_t hash);
void dlxi_rounds_on_abort(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_frame *frame,
                          const dlxi_reason *reason);
/* Sends again what the rank lacks, as the round and attempt of its frame show. */
void dlxi_rounds_answer(dlxi_coordinator *c, uint16_t site, uint16_t rank, const dlxi_frame *frame,
                        int64_t now_ms);
void dlxi_rounds_on_tick(dlxi_coordinator *c, int64_t now_ms);
/* Who is present has changed: `s` is not, or is again. The attempt that it is a member of is over;
 * terminals show the text. */
void dlxi_rounds_on_presence(dlxi_coordinator *c, dlxi_run_site *s, const char *text);

/* ---- end.c: after the last round ---- */

void dlxi_end_on_report(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                        const dlxi_report *report);
void dlxi_end_on_finished(dlxi_coordinator *c, dlxi_run_rank *p);
/* Who is present has changed: what a lost site was to do passes to another. */
void dlxi_end_on_presence(dlxi_coordinator *c, dlxi_run_site *s);
void dlxi_end_on_tick(dlxi_coordinator *c);

/* An attempt fails, or a site is lost: the time until the next commit counts. */
void dlxi_rounds_disturb(dlxi_coordinator *c);

/* ---- durable.c ---- */

/* After a commit, or a start with a saved state. Without memory, or if it is too large, there is
 * none. */
void dlxi_coordinator_copy_make(dlxi_coordinator *c);
/* Behind the copy, for a site that is behind: the records before the last, back to that of round
 * `from`, as many as there is room for. Returns the bytes of all. */
uint32_t dlxi_coordinator_copy_extend(dlxi_coordinator *c, uint64_t from);

/* A coordinator as it was when that copy was made, whatever the present sites and settings are: of
 * settings only the times count. */
dlx_status dlxi_coordinator_read_copy(dlxi_coordinator **out,
                                      const dlxi_coordinator_settings *settings,
                                      const dlxi_copy *copy, int64_t now_ms, dlx_error *error);

/* ---- resume.c ---- */

/* Why this rank, which goes on with a run or starts one, does not fit the first site; or false. */
bool dlxi_resume_mismatch(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                          const dlxi_run_site *s, const dlxi_hello *hello);
/* What a site that joins brings. False: no memory. */
bool dlxi_resume_note(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_hello *hello);
/* The sites that brought something have left. */
void dlxi_resume_forget(dlxi_coordinator *c);
/* All sites have joined: if they go on with a run, so does the coordinator. False: it can't. */
bool dlxi_resume_adopt(dlxi_coordinator *c);

/* ---- return.c ---- */

/* Why a process that goes on with this run, which lives, can't come back into it; or false. */
bool dlxi_return_is_refused(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                            const char *proved_name, const dlxi_run_site *s,
                            const dlxi_hello *hello);
/* It can. */
void dlxi_return_on_hello(dlxi_coordinator *c, dlxi_run_site *s, uint32_t peer,
                          const dlxi_hello *hello);
/* Not all ranks of the site are there yet. */
bool dlxi_return_is_pending(const dlxi_run_site *s);
void dlxi_return_on_listening(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                              const dlxi_endpoints *endpoints);
void dlxi_return_on_ping(dlxi_coordinator *c, uint16_t site, uint16_t rank, uint64_t reaches);
/* A PING of a peer that is no rank of this run any more. */
void dlxi_return_on_stranger(dlxi_coordinator *c, uint32_t peer, const char *name,
                             const dlxi_frame *frame, const dlxi_ping *ping);

/* ---- record.c ---- */

/* NULL without memory. */
dlxi_record *dlxi_record_new(uint16_t members, uint16_t ranks);
/* Of the last rounds; NULL: it is not kept. */
const dlxi_record *dlxi_record_of(const dlxi_coordinator *c, uint64_t round);
void dlxi_record_keep(dlxi_coordinator *c, dlxi_record *record);
/* The view as ranks of this number received it. */
void dlxi_record_view(dlxi_view *view, const dlxi_record *record, uint16_t rank);

/* ---- admit.c: who may join ---- */

/* Returns true and writes the reason if the run has no room for this hello, through no fault of a
 * site that joined. `s`: what has joined of the site of that name, or NULL. */
bool dlxi_coordinator_has_no_room(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                                  const char *proved_name, const dlxi_run_site *s,
                                  const dlxi_hello *hello);
/* Returns true and writes the reason if this rank does not fit its site or the run. */
bool dlxi_coordinator_mismatch(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                               const dlxi_run_site *s, const dlxi_hello *hello);
/* The run alone. */
bool dlxi_coordinator_mismatch_with_run(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                                        const dlxi_run_site *s, const dlxi_hello *hello);

#endif
