/* SPDX-License-Identifier: Apache-2.0 */
/* A small world that can be copied: a coordinator and its store, and maybe a second one that takes
 * the run over; a few sites of one rank; and frames in flight, in order for each direction of each
 * pair. An image holds all of it. */
#ifndef DLXI_TESTS_SMALL_WORLD_H
#define DLXI_TESTS_SMALL_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/hash.h"
#include "member/site.h"
#include "member/takeover_internal.h"

#ifdef DLXI_FAULTS
int dlxi_planted_fault;
#endif

enum {
    SITES = 3, /* at most */
    LIVES = 3, /* of the first coordinator, at most */
    /* in the place of a life: */
    SECOND = LIVES,    /* the second coordinator */
    LATE = SECOND + 1, /* copies of frames, beside the connection */
    QUEUES,
    QUEUE = 6,   /* frames of one direction of one pair */
    ROUNDS = 20, /* at most, from 1 */
    STATE_BYTES = 2048,
    RECORD_BYTES = 256,
    FREE_BYTES = 512, /* of the ledger's free ranges */
    STEP_MS = 1000,   /* by which time passes: no longer than what machines take for a pause */
    TIMEOUT_MS = 1000,
    LIMBO_MS = 4000,
    PATIENCE_MS = 20000,
    ORPHAN_MS = 30000,
    JOIN_MS = 100000,
    AGE_MAX_MS = 5000 /* what is older is as good as older still */
};

/* Prints how the state was reached, and ends. */
static void failed(const char *what);

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            failed(#condition);                                                                    \
        }                                                                                          \
    } while (0)

typedef struct queue {
    uint32_t count, frame[QUEUE];
} queue;

/* What a site's exchange has staged, or is to. */
typedef struct held {
    bool is_set;
    uint32_t term, attempt;
    uint64_t coordinator, round, view;
} held;

/* A site but for its machine. */
typedef struct owner {
    bool dead, finished, reported, troubled;
    uint16_t part_count;
    uint64_t applied, submission, base_round, parts;
    uint64_t lineages; /* three bits of each round that it has applied */
    held staged;
    uint64_t lease[3]; /* bits of windows, of submission n at n mod 3 */
} owner;

/* A process that coordinates, or did, and its store. */
typedef struct seat {
    bool down, over;                /* the coordinator is; for good */
    bool taking;                    /* it is not the coordinator yet */
    bool has_succeeded, has_failed; /* at ending the run */
    bool has_given_up;              /* heard no site for long; another life could go on */
    uint8_t life;
    uint32_t stored_term, stored_gone; /* gone: bits of sites */
    uint64_t stored_round;
    uint16_t state_bytes, record_bytes[ROUNDS];
    uint8_t state[STATE_BYTES], record[ROUNDS][RECORD_BYTES];
} seat;

typedef struct small {
    int64_t now_ms;
    uint8_t losses, stops, deaths, lags, troubles, copies, turns, takeovers; /* that may happen */
    uint8_t turned;  /* bits of sites that reach the second coordinator, not the first */
    bool has_second; /* there is, or was, a second one */
    uint8_t lineage; /* of the second one: how often a takeover has begun */
    queue to_site[QUEUES][SITES], to_coordinator[SITES];
    owner owner[SITES];
    seat seat[2];
    uint32_t best;              /* the copy that the takeover is about, as kept; 0: none */
    uint64_t history[ROUNDS];   /* hash of the record, whoever showed it first; 0: nobody yet */
    uint32_t members[ROUNDS];   /* bits of sites */
    uint64_t committed[ROUNDS]; /* tokens, up to this round */
    uint64_t counted;           /* bits of windows */
} small;

typedef struct record_image {
    bool is_set;
    dlxi_record head;
    dlxi_record_member member[SITES];
} record_image;

enum {
    C_HEAD = offsetof(dlxi_coordinator, sites),
    S_HEAD = offsetof(dlxi_site, welcome),
    S_TAIL = offsetof(dlxi_site, entered),
    S_TAIL_BYTES = offsetof(dlxi_site, outbox) - S_TAIL
};

/* Of a coordinator whose outbox is empty. */
typedef struct coordinator_image {
    _Alignas(8) uint8_t head[C_HEAD];
    dlxi_run_site site[SITES];
    dlxi_run_rank rank[SITES];
    bool reported[SITES];
    dlxi_run_peer peer[SITES];
    record_image proposal, record[ROUNDS];
    dlxi_pair pair[SITES][SITES];
    uint64_t blocked[SITES];
    dlxi_trouble trouble;
    size_t ledger_bytes;
    uint8_t ledger[FREE_BYTES];
    uint32_t copy; /* as kept; 0: none */
} coordinator_image;

/* Of a takeover whose outbox is empty. */
typedef struct takeover_image {
    uint64_t life_id, run_id, given_up;
    uint32_t term, count;
    dlxi_heard ranks[SITES];
    dlxi_copy best;
    int64_t now_ms, opened_ms;
} takeover_image;

/* Of a site whose outbox is empty. */
typedef struct site_image {
    _Alignas(8) uint8_t head[S_HEAD];
    dlxi_view view;
    dlxi_commit commit;
    _Alignas(8) uint8_t tail[S_TAIL_BYTES];
    uint32_t standing; /* a frame, or 0 */
    int64_t stood_ms;
    dlxi_copy copy;
    uint32_t copied; /* its data, as kept */
} site_image;

typedef struct image {
    small w;
    coordinator_image c[2];
    takeover_image takeover;
    site_image site[SITES];
} image;

/* The present world; machines of which it consists are never closed. */
static small w;
static dlxi_coordinator *machines[2]; /* the second: NULL until one was needed */
static dlxi_takeover *takeover;
static uint32_t takeover_best; /* of which its coordinator was made, as kept */
static dlxi_site *site[SITES];
static uint16_t sites;
static bool verbose;
static bool
    copies_count; /* a run can be taken over, so what a site can tell is part of the state */

/* Whose turn it is. */
static dlxi_coordinator *coordinator;
static seat *here;
static uint8_t whose;

static void seat_take(uint8_t number) {
    whose = number;
    coordinator = machines[number];
    here = &w.seat[number];
}

/* ---- frames ---------------------------------------------------------------------------------- */

typedef struct kept_frame {
    dlxi_frame frame;
    uint64_t exact, hash; /* hash: of what matters, but the stamp of a ping */
    int64_t stamp;        /* 0: none */
} kept_frame;

static kept_frame *kept; /* from 1 */
static uint32_t kept_count = 1, kept_room;
static uint32_t *kept_index; /* open addressing; 0: free */
static uint32_t kept_index_room;

static uint64_t mix(uint64_t hash, uint64_t value) {
    return dlxi_hash(&value, sizeof value, hash);
}

static void kept_grow(void) {
    kept_room = kept_room == 0 ? 1024 : 2 * kept_room;
    kept_index_room = 4 * kept_room;
    kept = realloc(kept, kept_room * sizeof *kept);
    free(kept_index);
    kept_index = calloc(kept_index_room, sizeof *kept_index);
    CHECK(kept != NULL && kept_index != NULL, "out of memory for frames\n");
    for (uint32_t i = 1; i < kept_count; i++) {
        uint32_t at = (uint32_t)kept[i].exact % kept_index_room;
        while (kept_index[at] != 0) at = (at + 1) % kept_index_room;
        kept_index[at] = i;
    }
}

/* The number under which this frame is kept; equal ones have the same. */
static uint32_t frame_keep(const dlxi_frame *f) {
    if (kept_count + 1 >= kept_room) kept_grow();
    uint64_t head = mix(mix(f->kind, f->coordinator), f->round);
    head = mix(mix(mix(head, f->term), f->attempt), (uint64_t)f->site << 32 | f->trip);
    uint64_t exact = dlxi_hash(f->payload, f->payload_bytes, head);
    uint32_t at = (uint32_t)exact % kept_index_room;
    for (; kept_index[at] != 0; at = (at + 1) % kept_index_room)
        if (kept[kept_index[at]].exact == exact) return kept_index[at];
    kept_frame *k = &kept[kept_count];
    uint8_t *bytes = malloc(f->payload_bytes + (size_t)1);
    CHECK(bytes != NULL, "out of memory for a frame\n");
    if (f->payload_bytes > 0) memcpy(bytes, f->payload, f->payload_bytes);
    *k = (kept_frame){.frame = *f, .exact = exact, .hash = exact};
    k->frame.payload = bytes;
    bool is_reason =
        f->kind == DLXI_FRAME_ABORT || f->kind == DLXI_FRAME_STOP || f->kind == DLXI_FRAME_FAILED;
    if (is_reason) k->hash = dlxi_hash(bytes, 4, head);  /* the text is for people */
    if (f->kind == DLXI_FRAME_COMMIT && !copies_count) { /* the copy is at its end */
        static dlxi_message m;
        CHECK(dlxi_message_decode(&m, f, NULL) == DLX_OK, "a malformed frame\n");
        k->hash = dlxi_hash(bytes, f->payload_bytes - m.as.commit.copy.bytes - 16, head);
    }
    if (f->kind == DLXI_FRAME_PING) {
        enum { STAMP_AT = 16 };
        memcpy(&k->stamp, bytes + STAMP_AT, sizeof k->stamp);
        k->hash = dlxi_hash(bytes + STAMP_AT + 8, f->payload_bytes - STAMP_AT - 8, head);
    }
    kept_index[at] = kept_count;
    return kept_count++;
}

/* The same for a copy of a coordinator's state. 0: there is none. */
static uint32_t copy_keep(const uint8_t *data, uint32_t bytes) {
    if (bytes == 0) return 0;
    return frame_keep(&(dlxi_frame){.payload = data, .payload_bytes = bytes});
}

/* A ping that says the same as the one before it takes its place. A full queue loses the frame. */
static void queue_add(queue *q, uint32_t frame) {
    const kept_frame *k = &kept[frame];
    bool again = q->count > 0 && kept[q->frame[q->count - 1]].hash == k->hash;
    if (again)
        q->frame[q->count - 1] = frame;
    else if (q->count < QUEUE)
        q->frame[q->count++] = frame;
}

static uint32_t queue_take(queue *q) {
    uint32_t frame = q->frame[0];
    q->count--;
    memmove(q->frame, q->frame + 1, q->count * sizeof *q->frame);
    q->frame[q->count] = 0;
    return frame;
}

/* ---- images ---------------------------------------------------------------------------------- */

static void record_store(record_image *to, const dlxi_record *r) {
    *to = (record_image){.is_set = r != NULL};
    if (r == NULL) return;
    to->head = *r;
    memcpy(to->member, r->member, r->members * sizeof *r->member);
}

static dlxi_record *record_load(const record_image *from, dlxi_record *into) {
    if (!from->is_set) {
        free(into);
        return NULL;
    }
    if (into == NULL || into->members != from->head.members) {
        free(into);
        into = dlxi_record_new(from->head.members, 1);
    }
    dlxi_record places = *into;
    *into = from->head;
    into->member = places.member;
    into->exchange_ns = places.exchange_ns;
    into->exchange_bytes = places.exchange_bytes;
    memcpy(into->member, from->member, from->head.members * sizeof *into->member);
    return into;
}

static void coordinator_store(coordinator_image *to, const dlxi_coordinator *c) {
    memcpy(to->head, c, C_HEAD);
    for (uint16_t i = 0; i < sites; i++) {
        to->site[i] = c->sites[i];
        to->rank[i] = c->sites[i].ranks[0];
        to->reported[i] = c->sites[i].report != NULL;
        to->peer[i] = i < c->peer_room ? c->peers[i] : (dlxi_run_peer){.site = DLXI_SITE_NONE};
        to->blocked[i] = c->pairs.blocked[i];
        for (uint16_t k = 0; k < sites; k++) to->pair[i][k] = c->pairs.at[i][k];
    }
    record_store(&to->proposal, c->proposal);
    for (uint64_t r = 1; r < ROUNDS; r++) record_store(&to->record[r], c->records[r]);
    to->trouble = c->trouble;
    to->ledger_bytes = dlxi_ledger_bytes(c->ledger);
    CHECK(to->ledger_bytes <= FREE_BYTES, "many free ranges\n");
    dlxi_writer writer = dlxi_writer_over(to->ledger, FREE_BYTES);
    dlxi_ledger_write(c->ledger, &writer);
    to->copy = copy_keep(c->copy, c->copy_bytes);
}

static void coordinator_load(dlxi_coordinator *c, const coordinator_image *from) {
    void *expected = c->expected, *shared = c->shared_text, *of_sites = c->sites_text;
    memcpy(c, from->head, C_HEAD);
    c->expected = expected;
    c->shared_text = shared;
    c->sites_text = of_sites;
    for (uint16_t i = 0; i < sites; i++) {
        dlxi_run_site *s = &c->sites[i];
        dlxi_run_rank *ranks = s->ranks;
        char *report = s->report;
        *s = from->site[i];
        s->ranks = ranks;
        *ranks = from->rank[i];
        ranks->endpoints = NULL; /* all have them */
        s->report = report;
        if (from->reported[i] && report == NULL) s->report = strdup("r");
        if (!from->reported[i]) free(report), s->report = NULL;
        c->peers[i] = from->peer[i];
        c->pairs.blocked[i] = from->blocked[i];
        for (uint16_t k = 0; k < sites; k++) c->pairs.at[i][k] = from->pair[i][k];
    }
    c->proposal = record_load(&from->proposal, c->proposal);
    for (uint64_t r = 1; r < ROUNDS; r++)
        c->records[r] = record_load(&from->record[r], c->records[r]);
    c->trouble = from->trouble;
    dlxi_reader reader = dlxi_reader_over(from->ledger, from->ledger_bytes);
    (void)dlxi_ledger_read(c->ledger, &reader);
    if (from->copy == 0) {
        free(c->copy);
        c->copy = NULL;
        c->copy_bytes = 0;
        return;
    }
    const dlxi_frame *copy = &kept[from->copy].frame;
    if (c->copy == NULL) c->copy = malloc(DLXI_COPY_MAX);
    CHECK(c->copy != NULL, "out of memory for a copy\n");
    memcpy(c->copy, copy->payload, c->copy_bytes = copy->payload_bytes);
}

/* One without a run yet. */
static dlxi_takeover *takeover_new(const dlxi_coordinator_settings *run) {
    const dlxi_takeover_settings settings = {.run = *run};
    dlxi_takeover *t;
    CHECK(dlxi_takeover_open(&t, &settings, w.now_ms, NULL) == DLX_OK, "takeover\n");
    t->ranks = calloc(t->room = SITES, sizeof *t->ranks);
    CHECK(t->ranks != NULL, "out of memory for a takeover\n");
    return t;
}

/* Its coordinator is what the best copy says. */
static void takeover_best_set(dlxi_takeover *t, uint32_t best) {
    if (best == takeover_best) return;
    takeover_best = best;
    dlxi_coordinator_close(&t->c);
    if (best == 0) return;
    const dlxi_frame *f = &kept[best].frame;
    CHECK(dlxi_coordinator_restore_copy(&t->c, &t->settings.run, f->payload, f->payload_bytes,
                                        w.now_ms, NULL) == DLX_OK,
          "a copy that was good\n");
}

static void takeover_store(takeover_image *to, const dlxi_takeover *t) {
    *to = (takeover_image){.life_id = t->settings.run.life_id,
                           .run_id = t->run_id,
                           .given_up = t->given_up,
                           .term = t->term,
                           .count = t->count,
                           .best = t->best,
                           .now_ms = t->now_ms,
                           .opened_ms = t->opened_ms};
    memcpy(to->ranks, t->ranks, t->count * sizeof *t->ranks);
}

static void takeover_load(dlxi_takeover *t, const takeover_image *from) {
    t->done = false;
    t->result = (dlx_error){0}; /* one that has failed is not kept */
    t->settings.run.life_id = from->life_id;
    t->run_id = from->run_id;
    t->given_up = from->given_up;
    t->term = from->term;
    t->count = from->count;
    t->best = from->best;
    t->now_ms = from->now_ms;
    t->opened_ms = from->opened_ms;
    memcpy(t->ranks, from->ranks, t->count * sizeof *t->ranks);
    takeover_best_set(t, w.best);
}

static void site_store(site_image *to, const dlxi_site *s) {
    memcpy(to->head, s, S_HEAD);
    to->view = s->view;
    to->commit = s->commit;
    memcpy(to->tail, (const uint8_t *)s + S_TAIL, S_TAIL_BYTES);
    to->standing = s->standing == NULL ? 0 : frame_keep(&s->standing->frame);
    to->stood_ms = s->stood_ms;
    to->copy = s->copy;
    to->copied = copy_keep(s->copy.data, s->copy.bytes);
}

static void site_load(dlxi_site *s, const site_image *from) {
    memcpy(s, from->head, S_HEAD);
    s->view = from->view;
    s->commit = from->commit;
    memcpy((uint8_t *)s + S_TAIL, from->tail, S_TAIL_BYTES);
    uint8_t *data = (uint8_t *)(uintptr_t)s->copy.data;
    s->copy = from->copy;
    s->copy.data = data = realloc(data, from->copy.bytes + (size_t)1);
    CHECK(data != NULL, "out of memory for a copy\n");
    if (from->copied != 0) memcpy(data, kept[from->copied].frame.payload, from->copy.bytes);
    free(s->standing);
    s->standing = NULL;
    s->stood_ms = from->stood_ms;
    if (from->standing == 0) return;
    const dlxi_frame *f = &kept[from->standing].frame;
    s->standing = malloc(sizeof *s->standing + f->payload_bytes);
    CHECK(s->standing != NULL, "out of memory for a frame\n");
    *s->standing = (dlxi_outbox_item){.to = DLXI_SITE_COORDINATOR, .frame = *f};
    if (f->payload_bytes > 0) memcpy(s->standing->bytes, f->payload, f->payload_bytes);
    s->standing->frame.payload = s->standing->bytes;
}

static void image_store(image *to) {
    to->w = w;
    for (int k = 0; k < 2; k++)
        if (machines[k] != NULL && !w.seat[k].down) coordinator_store(&to->c[k], machines[k]);
    if (w.seat[1].taking) takeover_store(&to->takeover, takeover);
    for (uint16_t i = 0; i < sites; i++) site_store(&to->site[i], site[i]);
}

static void image_load(const image *from) {
    w = from->w;
    for (int k = 0; k < 2; k++)
        if (machines[k] != NULL && !w.seat[k].down) coordinator_load(machines[k], &from->c[k]);
    if (w.seat[1].taking) takeover_load(takeover, &from->takeover);
    for (uint16_t i = 0; i < sites; i++) site_load(site[i], &from->site[i]);
}

/* ---- what tells states apart ----------------------------------------------------------------- */

static int64_t age_of(int64_t at_ms) {
    int64_t age_ms = w.now_ms - at_ms;
    return age_ms > AGE_MAX_MS ? AGE_MAX_MS : age_ms;
}

static void to_age(int64_t *at_ms) {
    *at_ms = age_of(*at_ms);
}

/* Of a time of which 0 means that there is none. */
static void to_age_or_none(int64_t *at_ms) {
    *at_ms = *at_ms == 0 ? -1 : age_of(*at_ms);
}

static uint64_t frame_hash(uint64_t hash, uint32_t frame) {
    if (frame == 0) return mix(hash, 0);
    int64_t stamp = kept[frame].stamp;
    return mix(mix(hash, kept[frame].hash), stamp == 0 ? 0 : 1 + (uint64_t)age_of(stamp));
}

static uint64_t queue_hash(uint64_t hash, const queue *q) {
    hash = mix(hash, q->count);
    for (uint32_t i = 0; i < q->count; i++) hash = frame_hash(hash, q->frame[i]);
    return hash;
}

static uint64_t lease_hash(uint64_t hash, const dlxi_lease *lease) {
    return dlxi_hash(lease->ranges, lease->range_count * sizeof *lease->ranges,
                     mix(hash, lease->submission));
}

static uint64_t view_hash(uint64_t hash, const dlxi_view *v) {
    for (uint16_t i = 0; i < v->members; i++) {
        hash = mix(hash, (uint64_t)v->member[i].site << 1 | v->member[i].voided);
        hash = mix(hash, v->member[i].tokens);
    }
    return mix(hash, v->members);
}

static uint64_t record_hash(uint64_t hash, const dlxi_record *r) {
    dlxi_view v;
    if (r == NULL) return mix(hash, 0);
    dlxi_record_view(&v, r, 0);
    hash = mix(mix(mix(hash, r->term), r->coordinator), r->attempt);
    return view_hash(mix(hash, r->committed_tokens), &v);
}

static uint64_t run_site_hash(uint64_t hash, const dlxi_run_site *s) {
    static dlxi_run_site p;
    dlxi_run_rank r = s->ranks[0];
    memcpy(&p, s, sizeof p);
    for (int i = 0; i < DLXI_COORDINATOR_LEASES; i++) hash = lease_hash(hash, &s->leases[i]);
    p.ranks = NULL;
    p.report = NULL;
    to_age(&p.away_ms);
    if (p.presence == DLXI_PRESENT) p.away_ms = 0, p.lost_round = 0, p.lost_status = DLX_OK;
    if (!p.member) p.tokens = p.windows_used = p.is_void = 0;
    p.candidate = false;
    to_age(&p.back_ms);
    p.away_total_ms = 0;
    p.away_count = p.left_out_total = 0;
    hash = dlxi_hash(&p.windows, offsetof(dlxi_run_site, leases) - offsetof(dlxi_run_site, windows),
                     hash);
    size_t from = offsetof(dlxi_run_site, tokens), to = offsetof(dlxi_run_site, lost_why);
    hash = dlxi_hash((const char *)&p + from, to - from, hash);
    r.endpoints = NULL;
    to_age(&r.last_seen_ms);
    to_age(&r.answered_ms);
    to_age(&r.moved_ms);
    if (!r.ready) r.round_ready = (dlxi_ready){0};
    if (!r.staged) r.staged_hash = 0;
    return dlxi_hash(&r, sizeof r, mix(hash, s->report != NULL));
}

static uint64_t coordinator_hash(uint64_t hash, const dlxi_coordinator *c) {
    static dlxi_coordinator head; /* only that of it */
    memcpy(&head, c, C_HEAD);
    memset(&head.result, 0, sizeof head.result);
    head.expected = NULL;
    head.shared_text = head.sites_text = NULL;
    head.now_ms = head.waits_told_ms = head.tell_ms = 0;
    to_age(&head.pinged_ms);
    to_age(&head.ticked_ms);
    to_age(&head.closing_ms);
    if (head.phase != DLXI_COORDINATOR_CLOSING) head.closing_ms = 0;
    to_age(&head.begun_ms);
    to_age(&head.opened_ms);
    to_age(&head.resumed_ms);
    to_age_or_none(&head.found_ms);
    to_age_or_none(&head.majority_ms);
    to_age_or_none(&head.waits_since_ms);
    hash = dlxi_hash(&head, C_HEAD, mix(hash, c->result.status));
    for (uint16_t i = 0; i < sites; i++) {
        uint16_t peer_site = c->peers[i].site;
        hash = mix(run_site_hash(hash, &c->sites[i]), peer_site);
        hash = mix(hash, c->pairs.blocked[i]);
        for (uint16_t k = 0; k < sites; k++) {
            dlxi_pair p = c->pairs.at[i][k];
            to_age(&p.blocked_ms);
            to_age_or_none(&p.works_ms);
            hash = mix(mix(hash, p.blocked | (uint64_t)p.faults << 1), (uint64_t)p.blocked_ms);
            hash = mix(mix(hash, (uint64_t)p.works_ms), (uint64_t)p.probation_ms);
        }
    }
    hash = record_hash(hash, c->proposal);
    int64_t since_ms = c->trouble.since_ms;
    to_age_or_none(&since_ms);
    uint32_t attempts = c->trouble.attempts < 4 ? c->trouble.attempts : 4;
    hash = mix(mix(hash, (uint64_t)since_ms), attempts << 8 | c->trouble.differing);
    uint8_t ledger[FREE_BYTES];
    dlxi_writer writer = dlxi_writer_over(ledger, FREE_BYTES);
    dlxi_ledger_write(c->ledger, &writer);
    if (copies_count && c->copy != NULL) hash = dlxi_hash(c->copy, c->copy_bytes, hash);
    return dlxi_hash(ledger, writer.used_bytes, hash);
}

static uint64_t takeover_hash(uint64_t hash, const dlxi_takeover *t) {
    hash = mix(mix(mix(hash, w.best), t->term), (uint64_t)age_of(t->opened_ms));
    for (uint32_t i = 0; i < t->count; i++) {
        dlxi_heard h;
        memcpy(&h, &t->ranks[i], sizeof h);
        to_age(&h.seen_ms);
        to_age(&h.asked_ms);
        hash = dlxi_hash(&h, sizeof h, hash);
    }
    return hash;
}

static uint64_t seat_hash(uint64_t hash, const seat *s, const dlxi_coordinator *c) {
    hash = mix(hash, (uint64_t)s->life << 8 | (uint64_t)(s->down | s->over << 1 | s->taking << 2));
    hash = dlxi_hash(s->state, s->state_bytes, mix(hash, s->stored_round));
    if (s->taking) return takeover_hash(hash, takeover);
    return s->down || c == NULL ? hash : coordinator_hash(hash, c);
}

static uint64_t site_hash(uint64_t hash, const dlxi_site *s) {
    static dlxi_site p; /* only its head and tail */
    memcpy(&p, s, S_HEAD);
    memset(&p.result, 0, sizeof p.result);
    to_age(&p.last_seen_ms);
    to_age(&p.pinged_ms);
    to_age(&p.ticked_ms);
    p.opened_ms = p.tell_ms = 0;
    p.wait_is_told = p.orphan_is_told = false;
    hash = dlxi_hash(&p, S_HEAD, mix(hash, s->result.status));
    if (s->attempt > 0) hash = view_hash(hash, &s->view);
    if (s->following) hash = view_hash(mix(hash, s->commit.term), &s->commit.view);
    memcpy((uint8_t *)&p + S_TAIL, (const uint8_t *)s + S_TAIL, S_TAIL_BYTES);
    to_age_or_none(&p.stamp);
    p.standing = NULL;
    to_age(&p.stood_ms);
    if (s->standing == NULL) p.stood_ms = 0;
    hash = dlxi_hash((const uint8_t *)&p + S_TAIL, S_TAIL_BYTES, hash);
    if (copies_count) {
        hash = mix(mix(hash, s->copy.term), s->copy.round);
        hash = dlxi_hash(s->copy.data, s->copy.bytes, hash);
    }
    return frame_hash(hash, s->standing == NULL ? 0 : frame_keep(&s->standing->frame));
}

static uint64_t world_hash(void) {
    const uint8_t left[] = {w.losses, w.stops,     w.deaths, w.lags,       w.troubles, w.copies,
                            w.turns,  w.takeovers, w.turned, w.has_second, w.lineage};
    uint64_t hash = dlxi_hash(left, sizeof left, 1);
    for (uint16_t i = 0; i < sites; i++) {
        for (int life = 0; life <= LATE; life++) hash = queue_hash(hash, &w.to_site[life][i]);
        hash = queue_hash(hash, &w.to_coordinator[i]);
        hash = mix(hash, w.owner[i].dead);
        if (w.owner[i].dead) continue;
        hash = dlxi_hash(&w.owner[i], sizeof w.owner[i], hash);
        hash = site_hash(hash, site[i]);
    }
    hash = dlxi_hash(w.history, sizeof w.history, mix(hash, w.counted));
    for (int k = 0; k < 2; k++) hash = seat_hash(hash, &w.seat[k], machines[k]);
    return hash;
}

#endif
