/* SPDX-License-Identifier: Apache-2.0 */
/* Inside an engine: the ways to other sites, rounds that are followed, and what is to be sent. */
#ifndef DLXI_SYNC_ENGINE_INTERNAL_H
#define DLXI_SYNC_ENGINE_INTERNAL_H

#include "base/lines.h"
#include "sync/engine.h"
#include "sync/transfer.h"

enum {
    GREET_SOON_MS = 250,
    GREET_MS = 1000,
    LARGE_BYTES = 16384, /* of a greeting that shows that a way carries more than small frames */
    PAUSE_MS = 1000,     /* a longer gap between ticks is this process's own pause, not a silence */
    REPAIR_PAUSE_MS = 10000, /* at least, between two lines about lost frames of a way */
    ANCHOR_FROM = 0          /* the site whose θ starts the run */
};

/* In the `trip` of a GREETING. */
enum {
    GREETING_HEARD = 1,  /* your greetings were received */
    GREETING_ANCHOR = 2, /* my θ is complete */
    GREETING_BUSY = 4    /* I am in a long computation */
};

/* The way to another site. */
typedef struct dlxi_way {
    char endpoint[DLXI_ENDPOINT_BYTES]; /* of the side that listens */
    bool connected;                     /* from then on frames are sent */
    bool heard, hears, anchored;        /* its greetings; it has ours; its θ is complete */
    bool blocked;                       /* the link had no room */
    int64_t last_seen_ms, greeted_ms;
    /* of the attempt last begun: requests for lost frames; those that the other side has answered;
     * its newest one that was answered; the most groups that it said to have received */
    uint32_t asks, answered, answers;
    uint64_t arrived;
    int64_t repaired_ms; /* when it was last shown that frames are sent again; 0: never */
    dlxi_transfer gives; /* asked for by the other side */
    int64_t hears_ms, large_ms, redialed_ms; /* it last said so; the last large greeting */
    uint32_t serves;                         /* number of its FETCH that is answered; 0: none */
    uint64_t serves_round;
    uint32_t serves_lineage;
    dlxi_entry_cursor serves_at;
} dlxi_way;

/* The results of a round that is followed, from one site after another. */
typedef struct dlxi_fetch {
    uint32_t number; /* of the FETCH; 0: none was sent */
    uint16_t from;
    bool asked, due;  /* there is one; it is to be sent */
    uint64_t useless; /* sites that have not got it, or were silent */
    uint64_t without; /* sites that said that they have not got it */
    int64_t moved_ms;
} dlxi_fetch;

struct dlxi_engine {
    char name[DLXI_NAME_BYTES]; /* of this site */
    uint16_t rank;
    int64_t timeout_ms;
    dlxi_site *site;
    dlxi_exchange *exchange;
    dlxi_state *state; /* NULL while the training thread has it */
    bool linking;      /* from connect until joined */
    bool recalled;
    bool begins, commits; /* wait for the state */
    dlxi_ready ready;     /* as last submitted */
    bool keeps_history;
    dlxi_history history;
    dlxi_fetch fetch;
    dlxi_way ways[DLXI_SITES_MAX];
    uint32_t turn;                /* the way that is asked first for data */
    uint16_t listened, connected; /* sites done, in order */
    bool control_blocked;         /* the link had no room */
    uint64_t begun_round;         /* the attempt last begun */
    uint32_t begun_attempt, begun_term;
    uint8_t greeting[LARGE_BYTES]; /* the last payload; zeros from DLXI_GREETING_BYTES on */
    dlxi_endpoints *listening;     /* where this rank does, for each site */
    dlxi_transfer anchor;          /* asked for here */
    int64_t anchor_moved_ms;
    int64_t now_ms, ticked_ms, told_ms, redialed_ms;
    uint64_t redirect;          /* bit i: site i listens elsewhere now */
    uint64_t reconnect;         /* bit i: make the connection to site i anew */
    int64_t begun_ms, moved_ms; /* of the attempt: its begin, its last progress */
    uint64_t exchange_bytes;    /* of the attempt */
    dlxi_outcome outcome;
    bool has_news;
    dlxi_lines lines;
    bool in_trouble; /* logged for the present round */
    bool busy;       /* in the middle of a long computation */
    void (*keepalive)(void *context);
    void *keepalive_context;
};

static inline bool is_under_way(const dlxi_engine *e) {
    return dlxi_exchange_trip(e->exchange) >= 0;
}

/* A staged attempt goes on for sites that lack frames of it, but not in a new term, in which they
 * have dropped it. */
static inline bool is_exchanging(const dlxi_engine *e) {
    return is_under_way(e) || (dlxi_exchange_is_staged(e->exchange) && e->site->staged &&
                               e->site->attempt_term == e->site->term);
}

static inline bool is_other(const dlxi_engine *e, uint16_t site) {
    return site < e->site->count && site != e->site->index;
}

static inline void frame_sign(const dlxi_engine *e, dlxi_frame *frame) {
    frame->term = e->site->term;
    frame->site = e->site->index;
    frame->rank = e->rank;
}

/* ---- engine.c ---- */

/* After every event; one in the middle of a computation leaves it to the event that computes. */
void dlxi_engine_settle(dlxi_engine *e);
/* Asks for the whole of θ: at first, and again if frames of it were lost. */
void dlxi_engine_anchor_ask(dlxi_engine *e);
/* What the last COMMIT says, and the state back. */
void dlxi_engine_outcome_of_commit(dlxi_engine *e);
/* Skips this site's own number; reports to the coordinator after the last. */
void dlxi_engine_listen_advance(dlxi_engine *e);

/* ---- engine_ways.c ---- */

bool dlxi_way_is_silent(const dlxi_engine *e, uint16_t site);
/* It carries frames in both directions. */
bool dlxi_way_is_linked(const dlxi_engine *e, uint16_t site);
/* It does now. */
bool dlxi_way_works(const dlxi_engine *e, uint16_t site);
void dlxi_way_on_greeting(dlxi_engine *e, uint16_t from, const dlxi_frame *frame);
/* Frames of the attempt were lost: asks for them, unless a request for them is on its way. */
void dlxi_way_on_gap(dlxi_engine *e, uint16_t from);
/* At the begin of an attempt. */
void dlxi_ways_reset(dlxi_engine *e);
/* Which ways work, for the coordinator; one that does not is made anew from time to time. */
void dlxi_ways_watch(dlxi_engine *e);
bool dlxi_way_greeting_make(dlxi_engine *e, uint16_t to, dlxi_frame *frame);

/* ---- engine_follow.c ---- */

/* Goes on with the round that is followed. */
void dlxi_engine_follow(dlxi_engine *e);
void dlxi_engine_on_fetch(dlxi_engine *e, uint16_t from, const dlxi_frame *frame);
void dlxi_engine_on_entry(dlxi_engine *e, uint16_t from, const dlxi_frame *frame);
/* The next frame of this kind for that site, if there is one. */
bool dlxi_engine_fetch_make(const dlxi_engine *e, uint16_t to, dlxi_frame *frame);
bool dlxi_engine_entry_make(dlxi_engine *e, uint16_t to, dlxi_frame *frame);

#endif
