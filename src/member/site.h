/* SPDX-License-Identifier: Apache-2.0 */
/* A rank's side of a run, as the coordinator sees it: joining, attempts, commits, the end. A pure
 * state machine: it owns no socket, thread or clock.
 *
 *   JOINING → hello … welcome → LISTENING → listening … peers → RUNNING … finished → DONE
 *   anything → DONE on stop, on the coordinator's silence, or on the site's own failure
 *
 * A coordinator may start later than its sites: JOINING lasts up to join_ms until it answers. Once
 * the run has begun it may fall silent: the site goes on until it needs it, and waits for it, or
 * its successor, up to orphan_ms. A successor has a higher term; whoever has a lower one, or the
 * same and another id, is not listened to. A coordinator of another lineage (dlxi_lineage_of) has
 * to claim the run, and only a site that does not hear its own one obeys it. Each site keeps a copy
 * of what the coordinator needs for that.
 *
 * A round may commit without this site. Then it FOLLOWS: its owner fetches the round's results from
 * a member and applies them, and what this site has submitted stands for the next round.
 *
 * A message that waits for an answer (hello, listening, ready, staged, abort, report) is repeated
 * twice per second until it is answered, so that a connection that breaks loses none for good;
 * while the link takes no message, none is added. */
#ifndef DLXI_MEMBER_SITE_H
#define DLXI_MEMBER_SITE_H

#include "member/outbox.h"

typedef enum dlxi_site_phase {
    DLXI_SITE_JOINING,
    DLXI_SITE_LISTENING,
    DLXI_SITE_RUNNING,
    DLXI_SITE_DONE
} dlxi_site_phase;

/* What the owner must do. One at a time: on_frame and on_tick return it. */
typedef enum dlxi_site_action {
    DLXI_SITE_NOTHING,
    DLXI_SITE_LISTEN,   /* prepare for welcome's members, then on_listening */
    DLXI_SITE_CONNECT,  /* to peers; if it `returns`, then on_entered, and on_returned later */
    DLXI_SITE_REDIRECT, /* one of them may listen elsewhere now */
    DLXI_SITE_TELL_LISTENING, /* on_listening, as then */
    DLXI_SITE_BEGIN,          /* start attempt `attempt` of round `round` with `view` */
    DLXI_SITE_ABORT,  /* drop the attempt, if there is one; `incoming` may have a text to show */
    DLXI_SITE_COMMIT, /* apply it: `commit` */
    DLXI_SITE_FOLLOW, /* fetch the round's results, apply them, then on_followed: `commit` */
    DLXI_SITE_ENDED   /* phase is DONE: all reported, or `result` */
} dlxi_site_action;

typedef struct dlxi_site_settings {
    uint32_t timeout_ms;     /* of a coordinator that has answered */
    uint32_t orphan_ms;      /* after that, once the run has begun */
    uint32_t join_ms;        /* until it answers for the first time */
    const char *coordinator; /* its address, for messages; NULL or "": it has none */
} dlxi_site_settings;

typedef struct dlxi_site {
    dlxi_site_phase phase;
    dlx_error result; /* after DONE; status DLX_OK if the run ended well */
    uint32_t term;    /* of the coordinator that it obeys; lower ones are refused */
    uint64_t coordinator_id;
    uint64_t round;   /* whose exchange is under way or next */
    uint32_t attempt; /* the present one; 0: none */
    uint32_t attempt_term;
    uint64_t attempt_coordinator;
    uint32_t timeout_ms, join_ms, orphan_ms;
    char coordinator[DLXI_ENDPOINT_BYTES + 8]; /* " at ADDRESS", or "" */
    int64_t last_seen_ms, pinged_ms, ticked_ms;
    int64_t opened_ms, tell_ms; /* tell_ms: when the wait for the coordinator is shown next */
    bool wait_is_told, orphan_is_told;
    uint16_t index, count;
    dlxi_welcome welcome;
    dlxi_endpoints peers;
    dlxi_view view;
    dlxi_commit commit;
    bool entered;           /* the run has begun for this rank */
    bool linked;            /* this rank and its counterparts exchange frames */
    bool all_linked;        /* so do those of all pairs of sites, as the coordinator says */
    bool returns;           /* the run had begun when it joined: what was committed is followed */
    bool attempting;        /* the present attempt is not over, as far as this rank knows */
    bool submitted, staged; /* a pseudo-gradient, for the round; the present attempt */
    bool applying;          /* the last commit is not applied yet */
    bool following;         /* the round has committed without this site: `commit` */
    bool reported;
    dlxi_ready ready;   /* as last submitted */
    int64_t stamp;      /* the coordinator's newest */
    uint64_t run_round; /* the run's, as it said last; 0: not yet */
    uint64_t reached;   /* sites, as in dlxi_ping */
    uint64_t left_out_for;
    uint32_t copy_lineage; /* of who gave the copy */
    uint64_t parts;        /* of the work at the end, as in dlxi_ping and dlxi_report */
    uint16_t part_count;
    bool saves;
    dlxi_outbox outbox;
    dlxi_outbox_item *standing; /* repeated until it is answered; NULL: nothing waits */
    int64_t stood_ms;           /* when it was last sent */
    dlxi_message incoming;      /* the last message; after ABORT as.reason */
    dlxi_hello hello;
    dlxi_copy copy; /* the newest; data is this site's */
} dlxi_site;

dlx_status dlxi_site_open(dlxi_site **out, const dlxi_hello *hello,
                          const dlxi_site_settings *settings, int64_t now_ms, dlx_error *error);
void dlxi_site_close(dlxi_site **site);
/* Whether a message of the coordinator has come. */
bool dlxi_site_is_answered(const dlxi_site *s);

/* A control frame from the coordinator. */
dlxi_site_action dlxi_site_on_frame(dlxi_site *s, const dlxi_frame *frame, int64_t now_ms);
/* Pings if it is time; for the middle of a long computation, where nothing is received. */
void dlxi_site_keep_alive(dlxi_site *s, int64_t now_ms);
/* As keep_alive; repeats what waits for an answer; judges the coordinator's silence. */
dlxi_site_action dlxi_site_on_tick(dlxi_site *s, int64_t now_ms);
/* Writes a line for the operator if one is due: no coordinator answers yet, or not any more; or it
 * does, at last. */
bool dlxi_site_tell_wait(dlxi_site *s, char *text, size_t text_bytes);
void dlxi_site_on_listening(dlxi_site *s, const dlxi_endpoints *endpoints);
/* While the rank joins. */
void dlxi_site_set_linked(dlxi_site *s, bool linked);
/* It has all it needs to train: from now on it can do without the coordinator for a while. */
void dlxi_site_on_entered(dlxi_site *s);
void dlxi_site_on_ready(dlxi_site *s, const dlxi_ready *ready);
/* It has followed the run to its present round, and trains from now on. */
void dlxi_site_on_returned(dlxi_site *s);
/* The last COMMIT is done. */
void dlxi_site_on_applied(dlxi_site *s);
/* FOLLOW is: the round's results are applied. What was submitted before is to be submitted again.
 */
void dlxi_site_on_followed(dlxi_site *s);
void dlxi_site_on_staged(dlxi_site *s, uint64_t hash);
/* The present attempt (before the first: a way to another site) makes no progress here. Notifies
 * the coordinator, which aborts the attempt and begins another. status, about: as in dlxi_reason.
 */
void dlxi_site_on_trouble(dlxi_site *s, dlx_status status, uint16_t about, const char *why);
/* parts: as in dlxi_report. Again, once more parts were given to this site. */
void dlxi_site_on_report(dlxi_site *s, uint64_t parts, uint16_t part_count, const char *text);
/* This site fails: notifies the coordinator; phase is DONE. */
void dlxi_site_fail(dlxi_site *s, const dlx_error *why);

#endif
