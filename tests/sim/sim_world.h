/* SPDX-License-Identifier: Apache-2.0 */
/* What the simulator simulates: nodes, virtual time, and links that lose, delay, reorder, repeat
 * and damage frames, break, and are cut. */
#ifndef DLXI_TESTS_SIM_WORLD_H
#define DLXI_TESTS_SIM_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/hash.h"
#include "base/rng.h"
#include "member/coordinator.h"
#include "member/lease.h"
#include "sync/engine.h"
#include "sync/local.h"
#include "wire/bytes.h"

#ifdef DLXI_FAULTS
int dlxi_planted_fault;
#endif

enum {
    SITES_MAX = 4,
    RANKS_MAX = 2,
    PEERS_MAX = SITES_MAX * RANKS_MAX,
    COORDINATOR = PEERS_MAX, /* a node's number */
    NODES = PEERS_MAX + 1,
    CUTS_MAX = 4,
    CRASHES_MAX = 3,
    SAVED = 4,     /* rounds, by each peer */
    STOPS_MAX = 3, /* of the coordinator */
    ROWS = 24,
    COLS = 40,
    PARAMETERS = ROWS * COLS + 30 + 33,
    TENSORS = 3,
    ROUNDS = 3, /* if nobody is hostile */
    ROUNDS_MAX = 512,
    TOKENS = 100, /* of site 0 and round; site i: i + 1 times as many */
    WINDOW_TOKENS = 50,
    WINDOWS = 64, /* of an epoch */
    POSITIONS_MAX = 16384,
    TIMEOUT_MS = 3000,
    PATIENCE_MS = 120000, /* … with a hostile rank: */
    PATIENCE_HOSTILE_MS = 25000,
    FAULTS_END_MS = 20000,   /* from then on everything works */
    FLAP_MS = 800,           /* between two resets of a connection that flaps */
    RUN_END_MS = 60000,      /* by then the run is over */
    ELASTIC_END_MS = 520000, /* … if it may go on without some sites */
    ORPHAN_MS = 30000,
    LIMBO_MS = 8000,
    CRASH_END_MS = 3 * TIMEOUT_MS, /* after a crash */
    JOIN_MS = 20000,
    LATE_START_MS = 8000, /* at most; longer than TIMEOUT_MS */
    DATA_FRAMES = 8,
    CONTROL_FRAMES = 64,
    LATE_MS = 3000 /* a repeated frame comes so much later at most */
};

static uint64_t seed;
static bool verbose;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "seed %llu: %s does not hold: ", (unsigned long long)seed,             \
                    #condition);                                                                   \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, "\n");                                                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* ---- the world ------------------------------------------------------------------------------- */

typedef struct packet {
    struct packet *next; /* by time of arrival */
    int64_t at_ms;
    uint16_t from, to; /* nodes */
    bool late;         /* beside the connection: nothing waits for it */
    uint32_t life;     /* of the peer, to or from the coordinator */
    dlxi_frame frame;
    uint8_t payload[];
} packet;

/* One rank of a site: its training, and its engine. */
typedef struct peer {
    dlxi_engine *engine;
    dlxi_local *local;
    dlxi_state *state; /* NULL while the engine has it */
    float p[PARAMETERS];
    uint64_t round; /* being trained, or submitted */
    uint64_t submission;
    dlxi_lease leases[4]; /* of submission n at n mod 4 */
    dlxi_state *lent;     /* the state, while the engine has it */
    uint64_t m_hash;      /* of M, as it was submitted */
    uint64_t applied;     /* rounds */
    uint64_t attempts, repairs;
    bool submitted, ended, finished, reported;
    int64_t submitted_ms;
    uint64_t parts; /* that were reported, of part_count */
    uint16_t part_count;
    uint64_t parts_before; /* reported by an earlier process, of part_count_before */
    uint16_t part_count_before;
    bool lost; /* it crashed, or its link failed */
    dlx_error failure;
    int64_t pump_at_ms, train_at_ms, return_at_ms; /* −1: not due */
    int64_t paused_ms;                             /* when the last pause ended */
    bool room;                                     /* for a frame that was not taken */
    uint32_t life;                                 /* how often the process was started again */
    dlxi_state *saved[SAVED];                      /* after round n at n mod this, or NULL */
} peer;

typedef struct crash {
    uint16_t site;
    int64_t at_ms, returns_ms; /* 0: it does not come back */
    bool is_over;              /* it has */
} crash;

/* The coordinator stops: before it saves, before it sends, or in the middle of that. */
typedef enum stop_point { STOP_UNSAVED, STOP_UNSENT, STOP_HALF_SENT, STOP_POINTS } stop_point;
typedef struct stop {
    int64_t at_ms, down_ms;
    stop_point point;
} stop;

/* The training thread of a rank, or of all ranks of its site, does nothing, and its engine goes on.
 */
typedef struct hang {
    uint16_t peer; /* NODES: none */
    bool whole_site;
    bool keeps_state; /* from when it has recalled it, at the earliest: */
    int64_t earliest_ms;
    int64_t from_ms, until_ms; /* from_ms INT64_MAX: not yet; until_ms INT64_MAX: for ever */
} hang;

/* Nothing goes from site a to site b (COORDINATOR: the coordinator), nor back unless one_way. */
typedef struct cut {
    uint16_t a, b;
    bool one_way, named; /* named: on the coordinator's terminal */
    int64_t from_ms, until_ms;
} cut;

/* What goes wrong in this run; chances are per thousand. */
typedef struct trouble {
    uint32_t lose, reorder, repeat, reset, pause, recall, slow, damage;
    int64_t delay_ms_max;
    cut cuts[CUTS_MAX];
    uint16_t cut_count;
    uint16_t lost, hostile; /* peers, or NODES */
    uint16_t flaps;         /* the connections of this site to the next one do, or NODES */
    uint16_t sites_min;
    bool elastic; /* the run goes on without sites that are missing, if there are sites_min */
    crash crashes_of[CRASHES_MAX];
    stop stops[STOPS_MAX];
    uint16_t crash_count, stop_count;
    hang hangs;
    uint64_t rounds; /* of all sites, until the run's tokens are committed */
    int64_t lost_at_ms;
    bool crashes;          /* the lost one; or its link fails */
    int64_t start_ms_max;  /* processes start at any time until then */
    bool starts_elsewhere; /* the last site */
} trouble;

typedef struct world {
    uint16_t sites, ranks, peers;
    trouble t;
    peer peer[PEERS_MAX];
    dlxi_coordinator *coordinator;
    int64_t now_ms, coordinator_at_ms, over_ms; /* over_ms: the coordinator's; −1: not yet */
    int64_t start_ms;                           /* the coordinator's */
    packet *in_flight;
    uint32_t queued[NODES][NODES];
    bool met[NODES][NODES]; /* a frame arrived */
    uint64_t draws;
    uint64_t replicated[ROUNDS_MAX][RANKS_MAX]; /* hash after each round; 0: not seen yet */
    uint64_t means[ROUNDS_MAX][RANKS_MAX];      /* allreduce: of the gradients */
    uint64_t frames, attempts, repairs, lines, damaged, dropped, followed, returned, lives;
    int64_t flapped_ms; /* the last time */
    /* elastic runs */
    uint64_t records[ROUNDS_MAX];   /* hash of each committed round */
    uint32_t members[ROUNDS_MAX];   /* bits of its sites */
    uint32_t term[NODES];           /* the highest that a peer has shown */
    uint8_t counted[POSITIONS_MAX]; /* windows */
    uint8_t *store, *stored_records[ROUNDS_MAX];
    size_t store_bytes, stored_bytes[ROUNDS_MAX];
    uint32_t stored_term;
    uint64_t stored_round;
    uint64_t tokens[ROUNDS_MAX];        /* committed, up to this round */
    uint64_t shown[NODES], said[NODES]; /* by a peer: its round; its submission */
    int64_t unused;                     /* windows that nobody trains on any more */
    uint64_t waits_most;                /* frames for one peer that waited at the coordinator */
    uint64_t hung_until_round;          /* in which the site that hung is a member again */
    int64_t entered_ms;                 /* when the last peer did; −1: not yet */
    uint16_t stopped;                   /* how often the coordinator has */
    bool sends_half;
} world;

static uint64_t draw(world *w, uint64_t below) {
    return dlxi_rng_u64(seed, 1, w->draws++) % below;
}

static bool chance(world *w, uint32_t per_thousand) {
    return w->now_ms < FAULTS_END_MS && per_thousand > 0 && draw(w, 1000) < per_thousand;
}

static uint16_t site_of(const world *w, uint16_t node) {
    return node == COORDINATOR ? node : node / w->ranks;
}

static bool has_crashed(const world *w, uint16_t i) {
    for (uint16_t k = 0; k < w->t.crash_count; k++)
        if (w->t.crashes_of[k].site == site_of(w, i) && w->now_ms >= w->t.crashes_of[k].at_ms &&
            !w->t.crashes_of[k].is_over)
            return true;
    return w->peer[i].lost && w->t.crashes;
}

/* Now or before. */
static bool had_crashed(const world *w, uint16_t i) {
    return has_crashed(w, i) || w->peer[i].life > 0;
}

static bool hangs(const world *w, uint16_t i) {
    const hang *h = &w->t.hangs;
    bool is_it = h->whole_site ? site_of(w, i) == site_of(w, h->peer) : i == h->peer;
    return h->peer != NODES && is_it && w->now_ms >= h->from_ms && w->now_ms < h->until_ms;
}

static bool hangs_for_ever(const world *w, uint16_t i) {
    return hangs(w, i) && w->t.hangs.until_ms == INT64_MAX;
}

/* A choice that a run with and one without trouble share. */
static uint64_t choice(uint64_t number, uint64_t below) {
    return dlxi_rng_u64(seed, 2, number) % below;
}

/* ---- links ----------------------------------------------------------------------------------- */

static bool is_cut(const world *w, uint16_t from, uint16_t to) {
    uint16_t a = site_of(w, from), b = site_of(w, to);
    for (uint16_t i = 0; i < w->t.cut_count; i++) {
        const cut *c = &w->t.cuts[i];
        bool pair = (a == c->a && b == c->b) || (!c->one_way && a == c->b && b == c->a);
        if (pair && w->now_ms >= c->from_ms && w->now_ms < c->until_ms) return true;
    }
    return false;
}

static void packet_insert(world *w, packet *p) {
    packet **link = &w->in_flight;
    while (*link != NULL && (*link)->at_ms <= p->at_ms) link = &(*link)->next;
    p->next = *link;
    *link = p;
}

/* What this node has sent on connections that are closed takes longer. */
static void packets_delay(world *w, uint16_t from, int64_t more_ms) {
    packet *delayed = NULL, **last = &delayed;
    for (packet **link = &w->in_flight; *link != NULL;) {
        packet *p = *link;
        if (p->from != from) {
            link = &p->next;
            continue;
        }
        *link = p->next;
        w->queued[p->from][p->to] -= !p->late;
        p->next = NULL;
        p->late = true;
        *last = p;
        last = &p->next;
    }
    while (delayed != NULL) {
        packet *p = delayed;
        delayed = p->next;
        p->at_ms += more_ms;
        packet_insert(w, p);
    }
}

/* Behind every packet of the same way, unless it is reordered or `late`. */
static void packet_post(world *w, uint16_t from, uint16_t to, const dlxi_frame *frame, bool late) {
    packet *p = malloc(sizeof *p + frame->payload_bytes);
    CHECK(p != NULL, "out of memory");
    *p = (packet){.from = from, .to = to, .late = late, .frame = *frame};
    p->life = w->peer[from == COORDINATOR ? to : from].life;
    if (frame->payload_bytes > 0) memcpy(p->payload, frame->payload, frame->payload_bytes);
    p->frame.payload = p->payload;
    p->at_ms = w->now_ms + 1 + (int64_t)draw(w, (uint64_t)(late ? LATE_MS : w->t.delay_ms_max));
    bool ordered = !late && !chance(w, w->t.reorder);
    for (packet *q = w->in_flight; ordered && q != NULL; q = q->next)
        if (q->from == from && q->to == to && !q->late && q->at_ms > p->at_ms) p->at_ms = q->at_ms;
    packet_insert(w, p);
    w->queued[from][to] += !late;
    w->frames++;
}

/* A number that is nearly `old`, or at an edge. */
static uint64_t number_damage(world *w, uint64_t old) {
    const uint64_t others[] = {old + 1, old - 1, 0, 1, 2, 3, UINT16_MAX, UINT32_MAX, UINT64_MAX};
    return others[draw(w, sizeof others / sizeof *others)];
}

/* One field of the header. */
static void header_damage(world *w, dlxi_frame *f) {
    static const dlxi_frame_kind kinds[] = {
        DLXI_FRAME_LISTENING, DLXI_FRAME_READY,   DLXI_FRAME_STAGED,       DLXI_FRAME_ABORT,
        DLXI_FRAME_REPORT,    DLXI_FRAME_FAILED,  DLXI_FRAME_CONTRIBUTION, DLXI_FRAME_RESULT,
        DLXI_FRAME_ANCHOR,    DLXI_FRAME_GREETING};
    uint64_t which = draw(w, 10);
    if ((which == 4 || which == 5) && draw(w, 8) > 0) return; /* seldom: it ends the run */
    if (which == 0) f->kind = kinds[draw(w, sizeof kinds / sizeof *kinds)];
    if (which == 1) f->term = (uint32_t)number_damage(w, f->term);
    if (which == 2) f->round = number_damage(w, f->round);
    if (which == 3) f->attempt = (uint32_t)number_damage(w, f->attempt);
    if (which == 4) f->site = (uint16_t)number_damage(w, f->site);
    if (which == 5) f->rank = (uint16_t)number_damage(w, f->rank);
    if (which == 6) f->tensor = (uint32_t)number_damage(w, f->tensor);
    if (which == 7) f->trip = (uint16_t)number_damage(w, f->trip);
    if (which == 8) f->offset_groups = (uint32_t)number_damage(w, f->offset_groups);
    if (which == 9) f->count_groups = (uint32_t)number_damage(w, f->count_groups);
}

/* A copy of the frame that is wrong in one place. */
static void packet_post_damaged(world *w, uint16_t from, uint16_t to, const dlxi_frame *frame) {
    static uint8_t payload[DLXI_FRAME_PAYLOAD_MAX];
    dlxi_frame f = *frame;
    if (f.payload_bytes > 0) memcpy(payload, f.payload, f.payload_bytes);
    f.payload = payload;
    switch (draw(w, 4)) {
    case 0:
        f.payload_bytes = (uint32_t)draw(w, f.payload_bytes + 1u);
        break;
    case 1:
        if (f.payload_bytes > 0) payload[draw(w, f.payload_bytes)] ^= (uint8_t)(1 << draw(w, 8));
        break;
    default:
        header_damage(w, &f);
    }
    w->damaged++;
    packet_post(w, from, to, &f, false);
}

/* What a peer says of itself never goes back. */
static void check_forward(world *w, uint16_t from, const dlxi_frame *frame) {
    CHECK(frame->round >= w->shown[from], "peer %u: its round falls to %llu", from,
          (unsigned long long)frame->round);
    w->shown[from] = frame->round;
    if (frame->kind != DLXI_FRAME_READY) return;
    dlxi_reader reader = dlxi_reader_over(frame->payload, frame->payload_bytes);
    uint64_t submission = dlxi_read_u64(&reader);
    CHECK(submission >= w->said[from] && submission <= w->said[from] + 1,
          "peer %u submits number %llu after %llu", from, (unsigned long long)submission,
          (unsigned long long)w->said[from]);
    w->said[from] = submission;
}

static dlx_status link_send(world *w, uint16_t from, uint16_t to, const dlxi_frame *frame) {
    bool control = from == COORDINATOR || to == COORDINATOR;
    if (from == w->t.lost && !w->t.crashes && w->now_ms >= w->t.lost_at_ms) {
        w->peer[from].lost = true;
        return DLX_SYSTEM;
    }
    bool attempts = frame->kind == DLXI_FRAME_CONTRIBUTION || frame->kind == DLXI_FRAME_RESULT;
    if (to == COORDINATOR) {
        CHECK(frame->term >= w->term[from] || frame->term == 0, "peer %u: the term falls", from);
        if (frame->term > w->term[from]) w->term[from] = frame->term;
        check_forward(w, from, frame);
    }
    CHECK(!attempts || frame->term >= w->term[from],
          "peer %u takes part in an attempt of term %u, after term %u", from, frame->term,
          w->term[from]);
    if (w->queued[from][to] >= (uint32_t)(control ? CONTROL_FRAMES : DATA_FRAMES)) return DLX_AGAIN;
    if (to == COORDINATOR && w->now_ms < w->start_ms) return DLX_AGAIN;
    if (is_cut(w, from, to)) return draw(w, 2) == 0 ? DLX_AGAIN : DLX_OK; /* swallowed */
    if (chance(w, w->t.lose)) return DLX_OK;
    if (from == w->t.hostile && frame->kind != DLXI_FRAME_HELLO && chance(w, w->t.damage))
        packet_post_damaged(w, from, to, frame);
    packet_post(w, from, to, frame, false);
    if (chance(w, w->t.repeat)) packet_post(w, from, to, frame, true);
    return DLX_OK;
}

/* A connection breaks: what is under way on it is lost. */
static void link_reset(world *w, uint16_t a, uint16_t b) {
    for (packet **link = &w->in_flight; *link != NULL;) {
        packet *p = *link;
        bool on_it = (p->from == a && p->to == b) || (p->from == b && p->to == a);
        if (!on_it) {
            link = &p->next;
            continue;
        }
        *link = p->next;
        w->queued[p->from][p->to] -= !p->late;
        free(p);
    }
}

/* Those between two sites break again and again. */
static void flap(world *w) {
    uint16_t a = w->t.flaps, b = (uint16_t)((a + 1u) % w->sites);
    bool due = a != NODES && w->now_ms < FAULTS_END_MS && w->now_ms >= w->flapped_ms + FLAP_MS;
    if (!due) return;
    w->flapped_ms = w->now_ms;
    for (uint16_t r = 0; r < w->ranks; r++)
        link_reset(w, (uint16_t)(a * w->ranks + r), (uint16_t)(b * w->ranks + r));
}

#endif
