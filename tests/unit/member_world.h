/* SPDX-License-Identifier: Apache-2.0 */
/* A coordinator alone with a test, which speaks for all peers and looks at what each was last sent.
 */
#ifndef DLXI_TESTS_MEMBER_WORLD_H
#define DLXI_TESTS_MEMBER_WORLD_H

#include "member/coordinator.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum {
    PEERS_MAX = 8,
    TOKENS_PER_WINDOW = 10,
    TIMEOUT_MS = 5000,
    PATIENCE_MS = 20000,
    LIMBO_MS = 60000,
    JOIN_MS = 3600000
};

/* A coordinator and what it last sent to each peer. */
typedef struct world {
    dlxi_coordinator_settings settings;
    dlxi_coordinator *c;
    int64_t now_ms;
    dlxi_message *message; /* being written or read */
    dlxi_message *last[PEERS_MAX];
    int counts[PEERS_MAX][32];      /* by kind */
    dlxi_view view[PEERS_MAX];      /* of the last BEGIN */
    uint64_t view_round[PEERS_MAX]; /* and its round */
    uint32_t attempt[PEERS_MAX];
    uint64_t round[PEERS_MAX];
    bool linked[PEERS_MAX]; /* it was told that all are */
    bool links;             /* all peers say that they are linked, and have entered */
    bool keeps;             /* those that join from now on keep results */
    uint32_t term;          /* of the coordinator's frames, and the peers' */
    dlxi_outbox outgoing;   /* encodes what the sites say */
    dlxi_copy copy;         /* of the last COMMIT */
    uint8_t copy_data[DLXI_COPY_MAX];
} world;

#define RUN_ID  UINT64_C(0x0123456789abcdef)
#define LIFE_ID UINT64_C(0xfedcba9876543210) /* of a coordinator */

static const char world_text[] = "model.width: 64\nsync.bits: 4\n"; /* every site's settings */

static inline world *world_open(uint16_t sites, uint64_t tokens_target, const char *shared_text) {
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->now_ms = 1000;
    w->term = 1;
    w->message = calloc(1, sizeof *w->message);
    for (int i = 0; i < PEERS_MAX; i++) w->last[i] = calloc(1, sizeof *w->last[i]);
    w->settings = (dlxi_coordinator_settings){.sites = sites,
                                              .tokens_target = tokens_target,
                                              .run_id = RUN_ID,
                                              .life_id = LIFE_ID,
                                              .shared_text = shared_text,
                                              .timeout_ms = TIMEOUT_MS,
                                              .join_ms = JOIN_MS,
                                              .patience_ms = PATIENCE_MS,
                                              .attempts_max = 3,
                                              .limbo_ms = LIMBO_MS,
                                              .find_ms = 3000};
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    return w;
}

static inline void world_close(world *w) {
    dlxi_coordinator_close(&w->c);
    assert_null(w->c);
    dlxi_outbox_clear(&w->outgoing);
    for (int i = 0; i < PEERS_MAX; i++) free(w->last[i]);
    free(w->message);
    free(w);
}

/* Takes what the coordinator sends. */
static inline void drain(world *w) {
    const dlxi_outbox_item *item;
    while ((item = dlxi_outbox_peek(dlxi_coordinator_outbox(w->c))) != NULL) {
        assert_in_range(item->to, 0, PEERS_MAX - 1);
        assert_int_equal(dlxi_message_decode(w->last[item->to], &item->frame, NULL), DLX_OK);
        w->counts[item->to][item->frame.kind]++;
        if (item->frame.kind == DLXI_FRAME_BEGIN) {
            w->view[item->to] = w->last[item->to]->as.view;
            w->view_round[item->to] = item->frame.round;
        }
        if (item->frame.kind == DLXI_FRAME_COMMIT) {
            w->copy = w->last[item->to]->as.commit.copy;
            if (w->copy.bytes > 0) memcpy(w->copy_data, w->copy.data, w->copy.bytes);
            w->copy.data = w->copy_data;
        }
        w->attempt[item->to] = item->frame.attempt;
        w->round[item->to] = item->frame.round;
        w->linked[item->to] = item->frame.trip != 0;
        assert_int_equal(item->frame.site, DLXI_SITE_COORDINATOR);
        assert_int_equal(item->frame.term, w->term);
        assert_true(item->frame.coordinator == w->settings.life_id);
        dlxi_outbox_drop(dlxi_coordinator_outbox(w->c));
    }
}

/* Says w->message as `peer`. */
static inline void say_as(world *w, uint32_t peer, const char *proved, dlxi_frame_kind kind,
                          dlxi_frame header) {
    w->message->kind = kind;
    assert_int_equal(dlxi_outbox_put(&w->outgoing, 0, header, w->message, NULL), DLX_OK);
    const dlxi_outbox_item *item = dlxi_outbox_peek(&w->outgoing);
    dlxi_coordinator_on_frame(w->c, peer, proved, "key", &item->frame, w->now_ms);
    dlxi_outbox_drop(&w->outgoing);
    drain(w);
}

static inline void say(world *w, uint32_t peer, dlxi_frame_kind kind, uint64_t round,
                       uint32_t attempt) {
    say_as(w, peer, "", kind,
           (dlxi_frame){.term = w->term,
                        .coordinator = w->settings.life_id,
                        .round = round,
                        .attempt = attempt,
                        .trip = w->links ? DLXI_SITE_LINKED | DLXI_SITE_ENTERED : 0});
}

static inline dlxi_hello *hello_of(world *w, const char *name) {
    dlxi_hello *h = &w->message->as.hello;
    *h = (dlxi_hello){.ranks = 1,
                      .tensors_hash = 7,
                      .anchor_hash = 11,
                      .windows = 1000,
                      .tokens_per_window = TOKENS_PER_WINDOW,
                      .data_hash = 13,
                      .lease_windows = 6,
                      .keeps_history = w->keeps};
    dlxi_text_copy(h->site, sizeof h->site, name);
    dlxi_text_copy(h->shared_text, sizeof h->shared_text, world_text);
    return h;
}

static inline void join(world *w, uint32_t peer, const char *name) {
    hello_of(w, name);
    say_as(w, peer, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
}

static inline void listen_all(world *w, uint16_t sites) {
    for (uint32_t peer = 0; peer < sites; peer++) {
        dlxi_endpoints *e = &w->message->as.endpoints;
        *e = (dlxi_endpoints){.sites = sites};
        for (uint16_t i = 0; i < sites; i++)
            snprintf(e->endpoint[i], sizeof e->endpoint[i], "peer %u for site %u", peer, i);
        say(w, peer, DLXI_FRAME_LISTENING, 1, 0);
    }
}

static inline dlxi_ready ready_of(uint64_t tokens) {
    return (dlxi_ready){.submission = 1,
                        .tokens = tokens,
                        .windows_used = (uint32_t)(tokens / TOKENS_PER_WINDOW),
                        .anchor_hash = 99,
                        .norm = 1.0,
                        .step_ns = 5,
                        .exchange_ns = 6,
                        .exchange_bytes = 7};
}

/* Of a site that was left out of rounds: numbers of submissions stay behind those of rounds. */
static inline void ready_again(world *w, uint32_t peer, uint64_t round, uint64_t submission,
                               uint64_t tokens) {
    w->message->as.ready = ready_of(tokens);
    w->message->as.ready.submission = submission;
    w->message->as.ready.base_round = submission; /* of a site that was in every round before */
    say(w, peer, DLXI_FRAME_READY, round, 0);
}

static inline void ready(world *w, uint32_t peer, uint64_t round, uint64_t tokens) {
    ready_again(w, peer, round, round, tokens);
}

/* It has received the coordinator's newest. */
static inline void ping(world *w, uint32_t peer, uint64_t round, uint32_t attempt) {
    w->message->as.ping = (dlxi_ping){.run_id = RUN_ID, .stamp = w->now_ms};
    say(w, peer, DLXI_FRAME_PING, round, attempt);
}

static inline void stage(world *w, uint32_t peer, uint64_t round, uint32_t attempt, uint64_t hash) {
    w->message->as.staged.hash = hash;
    say(w, peer, DLXI_FRAME_STAGED, round, attempt);
}

/* ---- a run of three sites, a, b and c, that keep results ------------------------------------- */

enum { THREE = 3 };
static const char *const three_names[THREE] = {"a", "b", "c"};

/* Incarnations are 50, 51, 52. It has begun, and what is to be saved first is not saved yet. */
static inline world *three_open(uint64_t tokens_target) {
    world *w = world_open(THREE, tokens_target, world_text);
    w->settings.sites_min = 1;
    w->keeps = true;
    dlxi_coordinator_close(&w->c);
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    for (uint32_t i = 0; i < THREE; i++) {
        hello_of(w, three_names[i])->incarnation = 50 + i;
        say_as(w, i, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    }
    listen_all(w, THREE);
    assert_false(dlxi_coordinator_is_unsaved(w->c));
    w->links = true;
    for (uint32_t i = 0; i < THREE; i++) ping(w, i, 1, 0);
    assert_true(dlxi_coordinator_is_unsaved(w->c));
    return w;
}

static inline void three_round(world *w, uint64_t round) {
    for (uint32_t i = 0; i < THREE; i++) ready(w, i, round, 60);
    for (uint32_t i = 0; i < THREE; i++) stage(w, i, round, 1, round);
    for (uint32_t i = 0; i < THREE; i++) assert_int_equal(w->last[i]->kind, DLXI_FRAME_COMMIT);
}

/* ---- the end --------------------------------------------------------------------------------- */

/* It asks for no parts of the work. */
static inline void report(world *w, uint32_t peer, uint64_t round, const char *text) {
    w->message->as.report.parts = UINT64_MAX;
    dlxi_text_copy(w->message->as.report.text, sizeof w->message->as.report.text, text);
    say(w, peer, DLXI_FRAME_REPORT, round, 0);
}

/* Time passes in ticks, while all of `peers` but `silent` ping; `silent` < 0: all do. Peers are in
 * round `round`, with no attempt under way. */
static inline void wait_pinging(world *w, uint32_t peers, int silent, uint64_t round, int64_t ms) {
    for (int64_t end_ms = w->now_ms + ms; w->now_ms < end_ms;) {
        w->now_ms = end_ms - w->now_ms > 500 ? w->now_ms + 500 : end_ms;
        for (uint32_t peer = 0; peer < peers; peer++)
            if ((int)peer != silent) ping(w, peer, round, 0);
        dlxi_coordinator_on_tick(w->c, w->now_ms);
        drain(w);
    }
}

static inline void assert_stopped(world *w, uint16_t sites, dlx_status status, const char *text) {
    dlx_error error;
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_int_equal(dlxi_coordinator_result(w->c, &error), status);
    assert_string_equal(error.message, text);
    for (uint16_t peer = 0; peer < sites; peer++) {
        assert_int_equal(w->last[peer]->kind, DLXI_FRAME_STOP);
        assert_int_equal(w->last[peer]->as.reason.status, status);
        assert_string_equal(w->last[peer]->as.reason.text, text);
    }
}

#endif
