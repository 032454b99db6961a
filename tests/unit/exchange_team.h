/* SPDX-License-Identifier: Apache-2.0 */
/* D exchanges over D shards in one thread: a test writes the pseudo-gradients, and moves, holds
 * back and drops frames. */
#ifndef DLXI_TESTS_EXCHANGE_TEAM_H
#define DLXI_TESTS_EXCHANGE_TEAM_H

#include "sync/exchange.h"
#include "sync/local.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum {
    TEAM_MAX = 3,
    TEAM_TENSORS = 3,
    ROWS = 24,
    COLS = 40,
    MATRIX = ROWS * COLS,
    TEAM_PARAMETERS = MATRIX + 30 + 33
};

typedef struct team_frame {
    struct team_frame *next;
    dlxi_frame frame;
    uint8_t payload[];
} team_frame;

typedef struct team {
    uint16_t members;
    dlxi_state *state[TEAM_MAX];
    dlxi_local *local[TEAM_MAX];
    dlxi_exchange *exchange[TEAM_MAX];
    float p[TEAM_MAX][TEAM_PARAMETERS];
    team_frame *queue[TEAM_MAX][TEAM_MAX]; /* [from][to], oldest first */
    dlxi_view view;
    /* frames that stay in their queue: a trip of −1 holds none, a `from` of −1 those of all */
    int hold_trip, hold_from, hold_to;
    dlxi_frame_kind hold_kind;
    bool loses; /* frames may be lost */
} team;

static inline dlx_sync_config team_settings(int bits, int factor_rank) {
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.overlap = DLX_OVERLAP_NONE;
    config.outer_learning_rate = 0.7;
    config.outer_momentum = 0.9;
    config.bits = bits;
    config.group = 16;
    config.keep_unsent = false;
    config.seed = 3;
    config.factor_rank = factor_rank;
    config.factor_rank_min = 1;
    config.factor_rank_max = 8;
    config.adaptation = DLX_ADAPTATION_OFF;
    config.inner_steps = 10;
    return config;
}

/* A matrix with factors, one too small for them, and a bias of that kind. */
static inline team *team_open_with(uint16_t members, const dlx_sync_config *settings,
                                   dlx_kind kind) {
    team *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->members = members;
    t->hold_trip = -1;
    t->view.members = members;
    for (uint16_t i = 0; i < members; i++) {
        const dlx_tensor tensors[TEAM_TENSORS] = {
            {.name = "matrix", .data = t->p[i], .rows = ROWS, .cols = COLS},
            {.name = "small", .data = t->p[i] + MATRIX, .rows = 6, .cols = 5, .plain = true},
            {.name = "bias", .data = t->p[i] + MATRIX + 30, .rows = 1, .cols = 33, .kind = kind},
        };
        for (int k = 0; k < TEAM_PARAMETERS; k++) t->p[i][k] = (float)(k % 17) * 0.125f - 1.0f;
        assert_int_equal(dlxi_state_open(&t->state[i], settings, tensors, TEAM_TENSORS, NULL),
                         DLX_OK);
        assert_int_equal(dlxi_local_open(&t->local[i], settings, tensors, TEAM_TENSORS, NULL),
                         DLX_OK);
        assert_int_equal(dlxi_local_read(t->local[i], t->state[i], NULL), DLX_OK);
        assert_int_equal(dlxi_exchange_open(&t->exchange[i], t->state[i], 0, NULL), DLX_OK);
        t->view.member[i].site = (uint16_t)(2 * i + 1); /* sites are not positions */
        t->view.member[i].tokens = 100 * (i + 1u);
        t->view.member[i].step_ns = 1000;
        t->view.member[i].exchange_ns = 5000;
        t->view.member[i].exchange_bytes = 1000;
    }
    return t;
}

static inline team *team_open(uint16_t members, const dlx_sync_config *settings) {
    return team_open_with(members, settings, DLX_TRAINED);
}

static inline void team_drop_frames(team *t) {
    for (uint16_t i = 0; i < TEAM_MAX; i++)
        for (uint16_t k = 0; k < TEAM_MAX; k++)
            while (t->queue[i][k] != NULL) {
                team_frame *next = t->queue[i][k]->next;
                free(t->queue[i][k]);
                t->queue[i][k] = next;
            }
}

static inline void team_close(team *t) {
    team_drop_frames(t);
    for (uint16_t i = 0; i < t->members; i++) {
        dlxi_exchange_close(&t->exchange[i]);
        dlxi_local_close(&t->local[i]);
        dlxi_state_close(&t->state[i]);
    }
    free(t);
}

static inline double team_weight(const team *t, uint16_t i) {
    double total = 0;
    for (uint16_t k = 0; k < t->members; k++) total += (double)t->view.member[k].tokens;
    return (double)t->view.member[i].tokens / total;
}

static inline void team_begin_one(team *t, uint16_t i, uint64_t round, uint32_t attempt) {
    dlx_error error;
    if (dlxi_exchange_begin(t->exchange[i], t->state[i], &t->view, t->view.member[i].site, 1, round,
                            attempt, &error) != DLX_OK)
        fail_msg("%s", error.message);
}

static inline void team_begin(team *t, uint64_t round, uint32_t attempt) {
    for (uint16_t i = 0; i < t->members; i++) team_begin_one(t, i, round, attempt);
}

static inline bool team_holds(const team *t, uint16_t from, uint16_t to, const dlxi_frame *frame) {
    return frame->trip == t->hold_trip && frame->kind == t->hold_kind &&
           (t->hold_from < 0 || t->hold_from == from) && (t->hold_to < 0 || t->hold_to == to);
}

static inline bool team_take(team *t, uint16_t from, uint16_t to) {
    dlxi_frame frame;
    bool any = false;
    while (dlxi_exchange_peek(t->exchange[from], t->view.member[to].site, &frame)) {
        team_frame *copy = malloc(sizeof *copy + frame.payload_bytes), **end = &t->queue[from][to];
        assert_non_null(copy);
        copy->next = NULL;
        copy->frame = frame;
        memcpy(copy->payload, frame.payload, frame.payload_bytes);
        copy->frame.payload = copy->payload;
        while (*end != NULL) end = &(*end)->next;
        *end = copy;
        (void)dlxi_exchange_advance(t->exchange[from], t->view.member[to].site);
        any = true;
    }
    return any;
}

/* Gives what is not held; a held frame does not stop the later ones of its pair. */
static inline bool team_give(team *t, uint16_t from, uint16_t to) {
    bool any = false;
    for (team_frame **at = &t->queue[from][to]; *at != NULL;) {
        team_frame *f = *at;
        if (team_holds(t, from, to, &f->frame)) {
            at = &f->next;
            continue;
        }
        dlx_error error;
        bool moved;
        dlx_status status = dlxi_exchange_on_frame(t->exchange[to], &f->frame, &moved, &error);
        if (status != DLX_OK && !(status == DLX_PEER_LOST && t->loses))
            fail_msg("%s", error.message);
        *at = f->next;
        free(f);
        any = true;
    }
    return any;
}

/* Moves frames until nothing moves any more. True where all are staged. */
static inline bool team_move(team *t) {
    bool moved, staged;
    do {
        moved = false;
        staged = true;
        for (uint16_t from = 0; from < t->members; from++) {
            for (uint16_t to = 0; to < t->members; to++) {
                if (team_take(t, from, to)) moved = true;
                if (team_give(t, from, to)) moved = true;
            }
        }
        for (uint16_t i = 0; i < t->members; i++) {
            dlx_error error;
            bool one;
            int before = dlxi_exchange_trip(t->exchange[i]);
            if (dlxi_exchange_poll(t->exchange[i], t->state[i], &one, &error) != DLX_OK)
                fail_msg("%s", error.message);
            moved = moved || dlxi_exchange_trip(t->exchange[i]) != before;
            staged = staged && one;
        }
    } while (moved);
    return staged;
}

/* Loses what is queued from one member to another. */
static inline size_t team_lose(team *t, uint16_t from, uint16_t to) {
    size_t count = 0;
    for (; t->queue[from][to] != NULL; count++) {
        team_frame *next = t->queue[from][to]->next;
        free(t->queue[from][to]);
        t->queue[from][to] = next;
    }
    t->loses = true;
    return count;
}

/* As by a greeting: `from` sends again what `to` lacks. */
static inline void team_go_back(team *t, uint16_t from, uint16_t to) {
    dlxi_greeting theirs;
    if (dlxi_exchange_offsets(t->exchange[to], t->view.member[from].site, &theirs))
        dlxi_exchange_go_back(t->exchange[from], t->view.member[to].site, &theirs);
}

static inline void team_commit(team *t) {
    for (uint16_t i = 0; i < t->members; i++) {
        assert_true(dlxi_exchange_staged_hash(t->exchange[i]) ==
                    dlxi_exchange_staged_hash(t->exchange[0]));
        dlxi_exchange_commit(t->exchange[i], t->state[i]);
        assert_true(dlxi_state_anchor_hash(t->state[i]) == dlxi_state_anchor_hash(t->state[0]));
    }
}

/* After p was changed: one whole round without trouble. */
static inline void team_submit(team *t) {
    double norm;
    for (uint16_t i = 0; i < t->members; i++)
        assert_int_equal(dlxi_local_submit(t->local[i], t->state[i], false, false, 0, &norm, NULL),
                         DLX_OK);
}

static inline void team_apply(team *t) {
    for (uint16_t i = 0; i < t->members; i++)
        assert_int_equal(
            dlxi_local_apply(t->local[i], t->state[i], false, t->state[i]->rounds - 1, 0, NULL),
            DLX_OK);
}

static inline void team_round(team *t, uint64_t round) {
    team_submit(t);
    team_begin(t, round, 1);
    assert_true(team_move(t));
    team_commit(t);
    team_apply(t);
}

#endif
