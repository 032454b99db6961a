/* SPDX-License-Identifier: Apache-2.0 */
/* What a coordinator, or one engine, receives in a whole run, and edits that spoil it: the fuzzers
 * of both replay an honest run in which a few things are changed, dropped, copied or put in.
 *
 * An input is the number of the run and edits of EDIT_BYTES, each the seed of what it does; 0:
 * nothing. */
#ifndef DLXI_TESTS_RECORDED_RUN_H
#define DLXI_TESTS_RECORDED_RUN_H

#include "replay.h"
#include "../unit/engine_lone.h"
#include "../unit/messages_sample.h"
#include "base/rng.h"
#include "member/coordinator.h"

enum {
    RUN_SITES_MAX = 3,
    RUN_PEERS_MAX = 2 * RUN_SITES_MAX,
    RUN_ROUNDS = 2,
    RUN_SUBMISSIONS_MAX = 8, /* of a site, where rounds begin without another */
    RUN_LIFE = 77,
    RUN_TURN_MS = 50,
    RUN_TURNS_MAX = 400,
    RECORDS_MAX = 4096,
    EDIT_BYTES = 4,
    RUN_PAYLOAD_MAX = 1 << 18
};

typedef enum record_event {
    RECORD_TURN,  /* time passes: `frame.attempt` ms */
    RECORD_FRAME, /* from `peer`; of an engine's: its coordinator's */
    RECORD_DATA,  /* an engine's: from site `peer` */
    RECORD_SUBMIT,
    RECORD_RECALL,
    RECORD_REPORT,
    RECORD_LINK,    /* from now on the link answers in the way `peer`, modulo 4 */
    RECORD_FAILURE, /* the link itself fails */
    RECORD_EVENTS
} record_event;

typedef struct record {
    record_event event;
    uint32_t peer;
    dlxi_frame frame;
} record;

typedef struct run_settings {
    uint16_t sites, ranks;
    size_t tensors;
    dlx_overlap overlap;
    dlx_adaptation adaptation;
    int bits;
    bool elsewhere;      /* other sites' θ is not the first's */
    uint16_t me;         /* of an engine: its site */
    uint32_t lose, fail; /* one of so many frames is lost; in that turn a link fails; 0: none */
    int64_t busy_ms;     /* as in lone */
    uint32_t late;       /* the last site begins to train in that turn: rounds begin without it */
} run_settings;

typedef struct recording {
    record records[RECORDS_MAX];
    size_t count;
    uint8_t payload[RUN_PAYLOAD_MAX];
    size_t payload_bytes;
} recording;

static inline void record_add(recording *r, record one) {
    DLXI_ASSERT(r->count < RECORDS_MAX &&
                r->payload_bytes + one.frame.payload_bytes <= RUN_PAYLOAD_MAX);
    uint8_t *payload = r->payload + r->payload_bytes;
    if (one.frame.payload_bytes > 0) memcpy(payload, one.frame.payload, one.frame.payload_bytes);
    one.frame.payload = payload;
    r->payload_bytes += one.frame.payload_bytes;
    r->records[r->count++] = one;
}

/* ---- a run ----------------------------------------------------------------------------------- */

static inline lone *run_lone_open(const run_settings *s, uint16_t site, uint16_t rank) {
    static const char *const names[RUN_SITES_MAX] = {"a", "b", "c"};
    dlx_sync_config config = lone_config();
    config.site = names[site];
    config.rank = rank;
    config.ranks = s->ranks;
    config.overlap = s->overlap;
    config.bits = s->bits;
    config.adaptation = s->adaptation;
    config.shared_text = "model.width: 64\nsync.bits: 4\n";
    config.windows = 1000;
    config.tokens_per_window = 5;
    config.windows_per_step = 2;
    config = dlxi_sync_options_resolve(&config);
    return lone_open(&config, s->tensors, s->elsewhere && site > 0 ? 1.0f : 0.0f);
}

/* The training of a round. */
static inline void run_train(lone *l, uint64_t round) {
    for (size_t i = 0; i < l->state->count; i++)
        for (int64_t k = 0; k < dlxi_state_tensor_values(&l->state->tensors[i]); k++)
            l->state->tensors[i].error[k] += 0.01f * (float)((k * 7 + (int64_t)round) % 11 - 5);
}

typedef struct run {
    const run_settings *s;
    recording *out;
    bool of_coordinator;
    dlxi_coordinator *coordinator;
    lone *peers[RUN_PEERS_MAX];
    uint64_t rounds[RUN_PEERS_MAX]; /* submitted */
    int64_t now_ms;
    uint32_t sent, turns;
} run;

static inline bool run_is_me(const run *r, uint16_t i) {
    return !r->of_coordinator && i == r->s->me * r->s->ranks;
}

static inline bool run_loses(run *r) {
    return r->s->lose > 0 && dlxi_rng_u64(1, 1, r->sent++) % r->s->lose == 0;
}

static inline void run_send(lone *l, uint32_t peer, const dlxi_frame *frame) {
    run *r = l->context;
    uint16_t from = 0;
    if (run_loses(r)) return;
    while (r->peers[from] != l) from++;
    if (peer == DLXI_SITE_COORDINATOR) {
        if (r->of_coordinator) record_add(r->out, (record){RECORD_FRAME, from, *frame});
        dlxi_coordinator_on_frame(r->coordinator, from, "", "", frame, r->now_ms);
        return;
    }
    uint16_t to = (uint16_t)(peer * r->s->ranks + from % r->s->ranks), site = from / r->s->ranks;
    if (run_is_me(r, to)) record_add(r->out, (record){RECORD_DATA, site, *frame});
    dlxi_engine_on_frame(r->peers[to]->engine, site, frame, r->now_ms);
}

static inline bool run_deliver(void *context, const dlxi_outbox_item *item) {
    run *r = context;
    uint16_t to = (uint16_t)item->to;
    if (run_loses(r)) return true;
    if (run_is_me(r, to)) record_add(r->out, (record){RECORD_FRAME, 0, item->frame});
    dlxi_engine_on_frame(r->peers[to]->engine, DLXI_SITE_COORDINATOR, &item->frame, r->now_ms);
    return true;
}

/* What the training thread does next. */
static inline void run_go_on(run *r, uint16_t i) {
    lone *l = r->peers[i];
    bool late = i / r->s->ranks == r->s->sites - 1 && r->turns < r->s->late;
    uint64_t most = r->s->late > 0 ? RUN_SUBMISSIONS_MAX : RUN_ROUNDS;
    if (!l->last.joined || l->state == NULL || l->last.ended || late) return;
    bool finished = l->last.committed && l->last.round.commit.finished;
    l->last.committed = false;
    if (finished) {
        dlxi_request q = {.report = strdup("done"), .parts = UINT64_MAX};
        r->rounds[i] = most;
        if (run_is_me(r, i)) record_add(r->out, (record){.event = RECORD_REPORT});
        dlxi_engine_on_request(l->engine, &q, r->now_ms);
    } else if (r->rounds[i] < most) {
        if (run_is_me(r, i)) record_add(r->out, (record){.event = RECORD_SUBMIT});
        run_train(l, ++r->rounds[i]);
        lone_submit(l);
    }
}

static inline bool run_turn(run *r, uint16_t peers) {
    const record turn = {.event = RECORD_TURN, .frame = {.attempt = RUN_TURN_MS}};
    bool over = dlxi_coordinator_phase_of(r->coordinator) == DLXI_COORDINATOR_DONE;
    r->now_ms += RUN_TURN_MS;
    if (++r->turns == r->s->fail) {
        const dlx_error broken = {.status = DLX_SYSTEM, .message = "the link broke"};
        dlxi_engine_on_link_failure(r->peers[peers - 1]->engine, &broken);
    }
    if (r->of_coordinator) record_add(r->out, turn);
    dlxi_coordinator_on_tick(r->coordinator, r->now_ms);
    dlxi_outbox_flush(dlxi_coordinator_outbox(r->coordinator), run_deliver, r);
    for (uint16_t i = 0; i < peers; i++) {
        if (run_is_me(r, i)) record_add(r->out, turn);
        lone_turn(r->peers[i], RUN_TURN_MS);
        run_go_on(r, i);
        over = over && r->peers[i]->last.ended;
    }
    return over;
}

static inline dlxi_coordinator_settings run_coordinator_settings(const run_settings *s) {
    return (dlxi_coordinator_settings){.sites = s->sites,
                                       .sites_min = s->late > 0,
                                       .life_id = RUN_LIFE,
                                       .limbo_ms = 2 * LONE_TIMEOUT_MS,
                                       .find_ms = 3000,
                                       .tokens_target = RUN_ROUNDS * 10u * s->sites,
                                       .timeout_ms = LONE_TIMEOUT_MS,
                                       .join_ms = 8 * LONE_TIMEOUT_MS,
                                       .patience_ms = 4 * LONE_TIMEOUT_MS,
                                       .attempts_max = 3};
}

static inline dlxi_coordinator *run_coordinator_open(const run_settings *s) {
    dlxi_coordinator *c;
    const dlxi_coordinator_settings settings = run_coordinator_settings(s);
    DLXI_ASSERT(dlxi_coordinator_open(&c, &settings, 0, NULL) == DLX_OK);
    return c;
}

/* A whole run, in an empty recording. */
static inline void run_record(recording *out, const run_settings *s, bool of_coordinator) {
    run r = {.s = s, .out = out, .of_coordinator = of_coordinator};
    uint16_t peers = (uint16_t)(s->sites * s->ranks);
    r.coordinator = run_coordinator_open(s);
    for (uint16_t i = 0; i < peers; i++) {
        r.peers[i] = run_lone_open(s, i / s->ranks, i % s->ranks);
        r.peers[i]->on_send = run_send;
        r.peers[i]->context = &r;
    }
    while (!run_turn(&r, peers)) DLXI_ASSERT(r.turns < RUN_TURNS_MAX);
    dlx_error error;
    bool failed = dlxi_coordinator_result(r.coordinator, &error) != DLX_OK;
    if (failed && s->fail == 0) fprintf(stderr, "%s\n", error.message);
    DLXI_ASSERT(failed == (s->fail > 0));
    for (uint16_t i = 0; i < peers; i++) lone_close(r.peers[i]);
    dlxi_coordinator_close(&r.coordinator);
}

/* ---- edits ----------------------------------------------------------------------------------- */

typedef struct draws {
    uint64_t seed, count;
} draws;

static inline uint64_t edit_draw(draws *d, uint64_t below) {
    return dlxi_rng_u64(d->seed, 1, d->count++) % below;
}

/* Nearly what it was, at an edge, or small. */
static inline uint64_t number_edit(draws *d, uint64_t old) {
    const uint64_t others[] = {old + 1,    old - 1,    old + 2,    0,
                               UINT16_MAX, UINT32_MAX, UINT64_MAX, edit_draw(d, 256)};
    return others[edit_draw(d, 8)];
}

static inline void field_edit(record *r, draws *d) {
    dlxi_frame *f = &r->frame;
    uint64_t which = edit_draw(d, 12), kind = edit_draw(d, 20);
    if (which == 0) f->kind = (dlxi_frame_kind)(kind < 14 ? kind + 1 : kind + 50);
    if (which == 1) f->term = (uint32_t)number_edit(d, f->term);
    if (which == 2) f->round = number_edit(d, f->round);
    if (which == 3) f->attempt = (uint32_t)number_edit(d, f->attempt);
    if (which == 4) f->site = (uint16_t)number_edit(d, f->site);
    if (which == 5) f->rank = (uint16_t)number_edit(d, f->rank);
    if (which == 6) f->trip = (uint16_t)number_edit(d, f->trip);
    if (which == 7) f->tensor = (uint32_t)number_edit(d, f->tensor);
    if (which == 8) f->offset_groups = (uint32_t)number_edit(d, f->offset_groups);
    if (which == 9) f->count_groups = (uint32_t)number_edit(d, f->count_groups);
    if (which == 10) r->peer = (uint32_t)number_edit(d, r->peer);
    if (which == 11) f->coordinator = number_edit(d, f->coordinator);
}

static inline void record_insert(recording *r, size_t at, record one) {
    if (r->count == RECORDS_MAX) return;
    memmove(&r->records[at + 1], &r->records[at], (r->count - at) * sizeof *r->records);
    r->records[at] = one;
    r->count++;
}

/* A well-formed message of that kind, with the header of the record before it. */
static inline void message_insert(recording *r, size_t at, uint64_t kind) {
    static dlxi_message message;
    record one = r->records[at];
    size_t bytes, room = RUN_PAYLOAD_MAX - r->payload_bytes;
    sample_message(&message, sample_kinds[kind % SAMPLE_KINDS]);
    if (dlxi_message_encode(r->payload + r->payload_bytes, room, &bytes, &message, NULL) != DLX_OK)
        return;
    one.event = RECORD_FRAME;
    one.frame.kind = message.kind;
    one.frame.payload = r->payload + r->payload_bytes;
    one.frame.payload_bytes = (uint32_t)bytes;
    r->payload_bytes += bytes;
    record_insert(r, at + 1, one);
}

static inline void run_edit(recording *r, uint32_t seed) {
    draws d = {.seed = seed};
    size_t at = edit_draw(&d, r->count);
    record *one = &r->records[at], other = {.frame = {.attempt = (uint32_t)edit_draw(&d, 4096)}};
    uint8_t *payload = (uint8_t *)(uintptr_t)one->frame.payload;
    switch (edit_draw(&d, 8)) {
    case 0: /* one less */
        if (r->count == 1) break;
        memmove(one, one + 1, (r->count - at - 1) * sizeof *one);
        r->count--;
        break;
    case 1: /* once more, or later */
        record_insert(r, edit_draw(&d, r->count + 1), *one);
        break;
    case 2: /* another event before it */
        other.event = (record_event)edit_draw(&d, RECORD_EVENTS);
        other.peer = (uint32_t)edit_draw(&d, 4);
        record_insert(r, at, other);
        break;
    case 3:
        message_insert(r, at, edit_draw(&d, SAMPLE_KINDS));
        break;
    case 4:
        if (one->frame.payload_bytes > 0)
            payload[edit_draw(&d, one->frame.payload_bytes)] ^= (uint8_t)(1u << edit_draw(&d, 8));
        break;
    case 5:
        one->frame.payload_bytes = (uint32_t)edit_draw(&d, one->frame.payload_bytes + 1u);
        break;
    default:
        field_edit(one, &d);
    }
}

/* The run that the input is about, spoilt. `runs` are recorded when they are first asked for. */
static inline const recording *run_spoilt(const uint8_t *data, size_t bytes,
                                          const run_settings *runs, size_t run_count,
                                          bool of_coordinator, const run_settings **settings) {
    enum { RUNS_MAX = 10 };
    static recording honest[RUNS_MAX], spoilt;
    size_t which = data[0] % run_count;
    DLXI_ASSERT(run_count <= RUNS_MAX);
    *settings = &runs[which];
    if (honest[which].count == 0) run_record(&honest[which], &runs[which], of_coordinator);
    spoilt.count = spoilt.payload_bytes = 0;
    for (size_t i = 0; i < honest[which].count; i++) record_add(&spoilt, honest[which].records[i]);
    for (size_t at = 1; bytes - at >= EDIT_BYTES; at += EDIT_BYTES) {
        uint32_t seed;
        memcpy(&seed, data + at, EDIT_BYTES);
        if (seed != 0) run_edit(&spoilt, seed);
    }
    return &spoilt;
}

/* A frame is given in a block of its exact size, which is gone afterwards. */
static inline dlxi_frame *frame_copy(const dlxi_frame *frame) {
    dlxi_frame *copy = malloc(sizeof *copy + frame->payload_bytes);
    DLXI_ASSERT(copy != NULL);
    *copy = *frame;
    if (frame->payload_bytes > 0) memcpy(copy + 1, frame->payload, frame->payload_bytes);
    copy->payload = (const uint8_t *)(copy + 1);
    return copy;
}

/* A run with room for edits. */
static inline size_t run_seed(uint8_t *data, int index, size_t run_count) {
    enum { EDITS = 4 };
    if (index >= (int)run_count) return 0;
    memset(data, 0, 1 + EDITS * EDIT_BYTES);
    data[0] = (uint8_t)index;
    return 1 + EDITS * EDIT_BYTES;
}

#endif
