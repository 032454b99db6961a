/* SPDX-License-Identifier: Apache-2.0 */
/* One engine alone with a test, which is its coordinator, the other sites, its link, its training
 * thread and the time. */
#ifndef DLXI_TESTS_ENGINE_LONE_H
#define DLXI_TESTS_ENGINE_LONE_H

#include "base/panic.h"
#include "outer/sync_options.h"
#include "sync/engine.h"

#include <stdlib.h>
#include <string.h>

enum {
    LONE_TENSORS = 3,
    LONE_TIMEOUT_MS = 3000,
    LONE_KINDS = 128,
    LONE_LIFE = 77,         /* of the coordinator */
    LONE_ACTIONS_MAX = 5000 /* in a row: more never end */
};

typedef struct lone lone;
struct lone {
    dlxi_engine *engine;
    dlxi_state *state; /* NULL while the engine has it */
    uint32_t term;     /* of the coordinator; each has another life */
    int64_t now_ms;
    dlx_status link;                                                  /* what a send returns */
    void (*on_send)(lone *l, uint32_t peer, const dlxi_frame *frame); /* if taken; may be NULL */
    void *context;
    int64_t busy_ms;           /* time that passes between two tensors of a computation */
    uint32_t sent[LONE_KINDS]; /* frames that the link took, by kind */
    dlxi_frame_kind refused;   /* the last frame that it did not take; 0: none */
    uint32_t lines, reconnects, reconnected; /* reconnected: the last of them, a site */
    char line[DLXI_REASON_MAX + 1];          /* the last */
    dlxi_outcome last;                       /* flags are kept */
    dlxi_view view;                          /* of the last BEGIN */
    dlxi_message speech;                     /* what the coordinator says next */
    uint8_t encoded[DLXI_FRAME_PAYLOAD_MAX];
    dlxi_message said; /* the last one to the coordinator */
};

static inline void lone_actions(lone *l) {
    dlxi_engine_action a;
    static const dlx_error broken = {.status = DLX_SYSTEM, .message = "the link broke"};
    for (int n = 0; dlxi_engine_next(l->engine, &a, l->now_ms); n++) {
        dlx_status status = a.kind == DLXI_ENGINE_SEND ? l->link : DLX_OK;
        DLXI_ASSERT(n < LONE_ACTIONS_MAX);
        switch (a.kind) {
        case DLXI_ENGINE_SEND:
            DLXI_ASSERT((int)a.frame.kind < LONE_KINDS);
            if (a.peer == DLXI_SITE_COORDINATOR)
                DLXI_ASSERT(dlxi_message_decode(&l->said, &a.frame, NULL) == DLX_OK);
            if (status == DLX_OK && l->on_send != NULL) l->on_send(l, a.peer, &a.frame);
            if (status == DLX_OK)
                l->sent[a.frame.kind]++;
            else
                l->refused = a.frame.kind;
            break;
        case DLXI_ENGINE_RECONNECT:
            l->reconnects++;
            l->reconnected = a.peer;
            break;
        case DLXI_ENGINE_LOG:
            l->lines++;
            dlxi_text_copy(l->line, sizeof l->line, a.text);
            break;
        default:
            break;
        }
        dlxi_engine_done(l->engine, &a, status, &broken);
    }
}

static inline void lone_keepalive(void *context) {
    lone *l = context;
    l->now_ms += l->busy_ms;
    dlxi_engine_keep_alive(l->engine, l->now_ms);
    lone_actions(l);
}

static inline void lone_outcome_take(lone *l) {
    dlxi_outcome o;
    if (!dlxi_engine_outcome(l->engine, &o)) return;
    DLXI_ASSERT(o.state == NULL || l->state == NULL);
    DLXI_ASSERT(!o.committed || o.state != NULL);
    if (o.state != NULL) l->state = o.state;
    DLXI_ASSERT(!o.ended || l->state != NULL);
    o.joined |= l->last.joined;
    o.committed |= l->last.committed;
    l->last = o;
}

static inline void lone_close(lone *l) {
    dlxi_request r = {.closes = true};
    if (l->engine != NULL) dlxi_engine_on_request(l->engine, &r, l->now_ms);
    if (l->engine != NULL) lone_outcome_take(l);
    DLXI_ASSERT(l->engine == NULL || l->last.ended);
    dlxi_engine_close(&l->engine);
    dlxi_state_close(&l->state);
    free(l);
}

/* With the first `tensors` of three; all of θ is `start`. */
static inline dlx_status lone_try(lone **out, const dlx_sync_config *config, size_t tensors,
                                  float start) {
    static const dlx_tensor all[LONE_TENSORS] = {
        {.name = "matrix", .rows = 12, .cols = 20},
        {.name = "bias", .rows = 1, .cols = 33, .id = 1},
        {.name = "steps", .rows = 1, .cols = 5, .id = 2, .kind = DLX_STATISTICS}};
    dlx_status status = DLX_OK;
    lone *l = calloc(1, sizeof *l);
    DLXI_ASSERT(l != NULL);
    l->term = 1;
    DLX_TRY_OUT(dlxi_state_open(&l->state, config, all, tensors, NULL));
    for (size_t i = 0; i < tensors; i++)
        for (int64_t k = 0; k < dlxi_state_tensor_values(&l->state->tensors[i]); k++)
            l->state->tensors[i].anchor[k] = start;
    dlxi_state_rehash(l->state);
    DLX_TRY_OUT(dlxi_engine_open(&l->engine, config, 1, l->state, 0, NULL));
    dlxi_engine_set_keepalive(l->engine, lone_keepalive, l);
    l->state = NULL;
    *out = l;
    return DLX_OK;
out:
    lone_close(l);
    return status;
}

static inline lone *lone_open(const dlx_sync_config *config, size_t tensors, float start) {
    lone *l;
    DLXI_ASSERT(lone_try(&l, config, tensors, start) == DLX_OK);
    return l;
}

static inline dlx_sync_config lone_config(void) {
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = "a";
    config.ranks = 1;
    config.timeout_ms = config.join_ms = LONE_TIMEOUT_MS;
    config.overlap = DLX_OVERLAP_NONE;
    config.group = 16;
    config.factor_rank = 2;
    config.factor_rank_min = 1;
    config.factor_rank_max = 4;
    return dlxi_sync_options_resolve(&config);
}

/* One turn of a pump, `ms` later. */
static inline void lone_turn(lone *l, int64_t ms) {
    l->now_ms += ms;
    dlxi_engine_on_tick(l->engine, l->now_ms);
    lone_actions(l);
    dlxi_engine_on_tick(l->engine, l->now_ms);
    lone_actions(l);
    lone_outcome_take(l);
}

static inline void lone_hear(lone *l, uint32_t peer, dlxi_frame frame) {
    dlxi_engine_on_frame(l->engine, peer, &frame, l->now_ms);
}

/* The coordinator says l->speech. */
static inline void lone_tell(lone *l, dlxi_frame_kind kind, uint64_t round, uint32_t attempt) {
    size_t bytes;
    l->speech.kind = kind;
    DLXI_ASSERT(dlxi_message_encode(l->encoded, sizeof l->encoded, &bytes, &l->speech, NULL) ==
                DLX_OK);
    lone_hear(l, DLXI_SITE_COORDINATOR,
              (dlxi_frame){.kind = kind,
                           .term = l->term,
                           .coordinator = LONE_LIFE + l->term - 1,
                           .round = round,
                           .attempt = attempt,
                           .site = DLXI_SITE_COORDINATOR,
                           .trip = 1 /* all ways are linked */,
                           .payload = l->encoded,
                           .payload_bytes = (uint32_t)bytes});
}

/* `submission`: the last that it has of this rank, for the round. */
static inline void lone_ping(lone *l, uint64_t round, uint32_t attempt, uint64_t submission) {
    l->speech.as.ping = (dlxi_ping){.stamp = 1, .submission = submission};
    lone_tell(l, DLXI_FRAME_PING, round, attempt);
}

static inline void lone_greet(lone *l, uint16_t from) {
    lone_hear(l, from,
              (dlxi_frame){.kind = DLXI_FRAME_GREETING, .term = 1, .site = from, .trip = 3});
}

/* `elsewhere`: its θ is not the run's. */
static inline void lone_welcome(lone *l, uint16_t index, uint16_t sites, bool elsewhere) {
    dlxi_welcome *w = &l->speech.as.welcome;
    *w = (dlxi_welcome){.site = index, .sites = sites, .tokens_target = 1000};
    for (uint16_t i = 0; i < sites; i++) {
        w->members[i].name[0] = (char)('0' + i / 10);
        w->members[i].name[1] = (char)('0' + i % 10);
    }
    w->members[index].needs_anchor = elsewhere;
    lone_tell(l, DLXI_FRAME_WELCOME, 1, 0);
    lone_turn(l, 1);
    l->speech.as.endpoints = (dlxi_endpoints){.sites = sites};
    lone_tell(l, DLXI_FRAME_PEERS, 1, 0);
    lone_turn(l, 1);
}

static inline void lone_join(lone *l, uint16_t index, uint16_t sites) {
    lone_welcome(l, index, sites, false);
    for (uint16_t i = 0; i < sites; i++)
        if (i != index) lone_greet(l, i);
    lone_turn(l, 1);
}

static inline void lone_submit(lone *l) {
    dlxi_request r = {.state = l->state, .submits = true};
    r.ready = (dlxi_ready){.tokens = 10, .windows_used = 2, .norm = 1, .step_ns = 1000};
    if (!l->state->method->averages_gradients)
        r.ready.anchor_hash = dlxi_state_anchor_hash(l->state);
    l->state = NULL;
    dlxi_engine_on_request(l->engine, &r, l->now_ms);
}

static inline void lone_begin(lone *l, uint64_t round, uint32_t attempt, uint16_t first,
                              uint16_t members) {
    dlxi_view *v = &l->view;
    *v = (dlxi_view){.members = members};
    for (uint16_t i = 0; i < members; i++) {
        v->member[i].site = (uint16_t)(first + i);
        v->member[i].tokens = 10;
    }
    l->speech.as.view = *v;
    lone_tell(l, DLXI_FRAME_BEGIN, round, attempt);
}

static inline void lone_commit(lone *l, uint64_t round, uint32_t attempt) {
    l->speech.as.commit = (dlxi_commit){
        .term = 1, .coordinator = LONE_LIFE, .committed_tokens = 10 * round, .view = l->view};
    lone_tell(l, DLXI_FRAME_COMMIT, round, attempt);
}

#endif
