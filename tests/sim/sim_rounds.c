/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds under every order of events: the production coordinator, sites and exchanges, moved one
 * frame at a time in an order drawn from a seed, while attempts fail at random. Whatever happens, a
 * run must end with the bits of a run without trouble. Sites of several ranks have an exchange a
 * rank, and a round counts for all of them or none.
 *
 *   sim_rounds                     the test: the same seeds every time
 * sim_rounds --seed S [--runs N] others; the seed of a failure is printed */
#include "../unit/exchange_team.h"

#include "base/hash.h"
#include "base/rng.h"
#include "member/coordinator.h"
#include "member/site.h"

#include <stdio.h>

enum {
    SITES = 3,
    RANKS_MAX = 3,
    PEERS_MAX = SITES * RANKS_MAX,
    ROUNDS = 3,
    TOKENS_A_ROUND = 600,
    STEPS_MAX = 2000000,
    ATTEMPTS_MAX = 100000
};

/* Peer i · ranks + r of the coordinator is rank r of site i: member i of team r, whose data is its
 * own. */
typedef struct world {
    uint16_t ranks, peers;
    team *team[RANKS_MAX];
    dlxi_coordinator *coordinator;
    dlxi_site *site[PEERS_MAX];
    team_frame *to_coordinator[PEERS_MAX], *from_coordinator[PEERS_MAX];
    bool staged_told[PEERS_MAX];
    uint64_t seed, step, failures;
    uint32_t failing; /* one in so many events */
} world;

static uint64_t draw(world *w, uint64_t below) {
    return dlxi_rng_u64(w->seed, 1, w->step++) % below;
}

static void push(team_frame **queue, const dlxi_frame *frame) {
    team_frame *copy = malloc(sizeof *copy + frame->payload_bytes);
    assert_non_null(copy);
    copy->next = NULL;
    copy->frame = *frame;
    if (frame->payload_bytes > 0) memcpy(copy->payload, frame->payload, frame->payload_bytes);
    copy->frame.payload = copy->payload;
    while (*queue != NULL) queue = &(*queue)->next;
    *queue = copy;
}

static team_frame *pop(team_frame **queue) {
    team_frame *first = *queue;
    if (first != NULL) *queue = first->next;
    return first;
}

static team *team_of(world *w, uint16_t peer) {
    return w->team[peer % w->ranks];
}

static dlxi_exchange *exchange_of(world *w, uint16_t peer) {
    return team_of(w, peer)->exchange[peer / w->ranks];
}

static dlxi_shard *shard_of(world *w, uint16_t peer) {
    return team_of(w, peer)->shard[peer / w->ranks];
}

static void train(world *w, uint16_t peer, uint64_t round) {
    float *p = team_of(w, peer)->p[peer / w->ranks];
    for (int k = 0; k < TEAM_PARAMETERS; k++)
        p[k] += 0.01f * dlxi_rng_normal(17, round * 10 + peer, (uint64_t)k);
}

static void submit(world *w, uint16_t i) {
    dlxi_ready ready = {.tokens = team_of(w, i)->view.member[i / w->ranks].tokens,
                        .anchor_hash = dlxi_shard_anchor_hash(shard_of(w, i)),
                        .step_ns = 1000,
                        .exchange_ns = 1000,
                        .exchange_bytes = 1000};
    train(w, i, w->site[i]->round);
    dlxi_shard_submit(shard_of(w, i), &ready.norm);
    dlxi_site_on_ready(w->site[i], &ready);
}

static void act(world *w, uint16_t i, dlxi_site_action action) {
    dlxi_site *s = w->site[i];
    dlx_error error;
    dlxi_endpoints endpoints = {.sites = SITES};
    switch (action) {
    case DLXI_SITE_LISTEN:
        dlxi_site_on_listening(s, &endpoints);
        break;
    case DLXI_SITE_CONNECT:
        submit(w, i);
        break;
    case DLXI_SITE_BEGIN:
        w->staged_told[i] = false;
        if (dlxi_exchange_begin(exchange_of(w, i), &s->view, s->index, s->term, s->round,
                                s->attempt, &error) != DLX_OK)
            fail_msg("seed %llu: begin: %s", (unsigned long long)w->seed, error.message);
        break;
    case DLXI_SITE_ABORT:
        dlxi_exchange_abort(exchange_of(w, i));
        break;
    case DLXI_SITE_COMMIT:
        dlxi_exchange_commit(exchange_of(w, i));
        dlxi_shard_apply(shard_of(w, i), false);
        if (!s->commit.finished)
            submit(w, i);
        else
            dlxi_site_on_report(s, "");
        break;
    case DLXI_SITE_ENDED:
        if (s->result.status != DLX_OK)
            fail_msg("seed %llu: peer %u: %s", (unsigned long long)w->seed, i, s->result.message);
        break;
    case DLXI_SITE_NOTHING:
        break;
    }
}

/* A site at work: sends one frame that it has for somebody, goes on to the next trip, or gives the
 * attempt up. */
static void work(world *w, uint16_t i) {
    dlxi_exchange *x = exchange_of(w, i);
    dlxi_frame frame;
    bool staged;
    uint16_t to = (uint16_t)draw(w, SITES);
    if (w->failing > 0 && dlxi_exchange_trip(x) >= 0 && draw(w, w->failing) == 0) {
        dlxi_exchange_abort(x);
        dlxi_site_on_attempt_failed(w->site[i], "by the dice");
        w->failures++;
        return;
    }
    if (dlxi_exchange_peek(x, to, &frame)) {
        assert_int_equal(frame.rank, i % w->ranks);
        push(&team_of(w, i)->queue[i / w->ranks][to], &frame);
        dlxi_exchange_advance(x, to);
    }
    assert_int_equal(dlxi_exchange_poll(x, &staged, NULL), DLX_OK);
    if (staged && !w->staged_told[i]) {
        w->staged_told[i] = true;
        dlxi_site_on_staged(w->site[i], dlxi_exchange_staged_hash(x));
    }
}

static void deliver_data(world *w, uint16_t from, uint16_t to) {
    team_frame *f = pop(&team_of(w, to)->queue[from][to / w->ranks]);
    dlx_error error;
    if (f == NULL) return;
    if (dlxi_exchange_on_frame(exchange_of(w, to), &f->frame, &error) != DLX_OK)
        fail_msg("seed %llu: %s", (unsigned long long)w->seed, error.message);
    free(f);
}

static void deliver_control(world *w, uint16_t i) {
    const dlxi_outbox_item *item;
    while ((item = dlxi_outbox_peek(&w->site[i]->outbox)) != NULL) {
        push(&w->to_coordinator[i], &item->frame);
        dlxi_outbox_drop(&w->site[i]->outbox);
    }
    while ((item = dlxi_outbox_peek(dlxi_coordinator_outbox(w->coordinator))) != NULL) {
        push(&w->from_coordinator[item->to], &item->frame);
        dlxi_outbox_drop(dlxi_coordinator_outbox(w->coordinator));
    }
    bool upward = draw(w, 2) == 0;
    team_frame *f = pop(upward ? &w->to_coordinator[i] : &w->from_coordinator[i]);
    if (f == NULL) return;
    if (upward)
        dlxi_coordinator_on_frame(w->coordinator, i, "", "", &f->frame, 0);
    else
        act(w, i, dlxi_site_on_frame(w->site[i], &f->frame, 0));
    free(f);
}

static void world_open(world *w, uint64_t seed, uint16_t ranks, uint32_t failing) {
    *w = (world){
        .seed = seed, .failing = failing, .ranks = ranks, .peers = (uint16_t)(SITES * ranks)};
    dlxi_shard_settings settings = team_settings(4, 4);
    settings.adapt.kind = seed % 2 == 0 ? DLX_ADAPTATION_PAPER : DLX_ADAPTATION_OFF;
    for (uint16_t r = 0; r < ranks; r++) {
        w->team[r] = team_open(SITES, &settings);
        for (uint16_t i = 0; i < SITES; i++) dlxi_exchange_set_rank(w->team[r]->exchange[i], r);
    }
    dlxi_coordinator_settings run = {.sites = SITES,
                                     .tokens_target = ROUNDS * TOKENS_A_ROUND,
                                     .timeout_ms = 1000,
                                     .attempts_max = ATTEMPTS_MAX};
    assert_int_equal(dlxi_coordinator_open(&w->coordinator, &run, 0, NULL), DLX_OK);
    dlxi_hello *hello = calloc(1, sizeof *hello);
    assert_non_null(hello);
    for (uint16_t i = 0; i < w->peers; i++) {
        *hello = (dlxi_hello){.site = {(char)('a' + i / ranks)},
                              .rank = (uint16_t)(i % ranks),
                              .ranks = ranks,
                              .tensors_hash = i % ranks};
        assert_int_equal(dlxi_site_open(&w->site[i], hello, 1000, 0, NULL), DLX_OK);
    }
    free(hello);
}

static void world_close(world *w) {
    for (uint16_t i = 0; i < w->peers; i++) {
        team_frame *f;
        while ((f = pop(&w->to_coordinator[i])) != NULL) free(f);
        while ((f = pop(&w->from_coordinator[i])) != NULL) free(f);
        dlxi_site_close(&w->site[i]);
    }
    dlxi_coordinator_close(&w->coordinator);
    for (uint16_t r = 0; r < w->ranks; r++) team_close(w->team[r]);
}

static bool all_ended(const world *w) {
    bool ended = true;
    for (uint16_t i = 0; i < w->peers; i++) ended = ended && w->site[i]->phase == DLXI_SITE_DONE;
    return ended;
}

/* The hash of θ, v and e of all ranks of all sites at the end. */
static uint64_t simulate(uint64_t seed, uint16_t ranks, uint32_t failing, uint64_t *failures) {
    world w;
    world_open(&w, seed, ranks, failing);
    while (!all_ended(&w) && w.step < STEPS_MAX) {
        uint16_t i = (uint16_t)draw(&w, w.peers);
        switch (draw(&w, 3)) {
        case 0:
            work(&w, i);
            break;
        case 1:
            deliver_control(&w, i);
            break;
        default:
            deliver_data(&w, (uint16_t)draw(&w, SITES), i);
        }
    }
    if (!all_ended(&w)) fail_msg("seed %llu: the run does not end", (unsigned long long)seed);
    assert_int_equal(dlxi_coordinator_result(w.coordinator, NULL), DLX_OK);
    uint64_t hash = 0;
    for (uint16_t i = 0; i < w.peers; i++) {
        assert_int_equal(w.site[i]->round, ROUNDS + 1);
        assert_true(dlxi_shard_anchor_hash(shard_of(&w, i)) ==
                    dlxi_shard_anchor_hash(shard_of(&w, i % ranks)));
        for (size_t k = 0; k < TEAM_TENSORS; k++) {
            const dlxi_shard_tensor *t = &shard_of(&w, i)->tensors[k];
            size_t bytes = (size_t)(t->rows * t->cols) * sizeof(float);
            hash = dlxi_hash(t->anchor, bytes,
                             dlxi_hash(t->velocity, bytes, dlxi_hash(t->carried, bytes, hash)));
        }
    }
    *failures += w.failures;
    world_close(&w);
    return hash;
}

static uint64_t first_seed = 1, runs = 60;

static void check(uint16_t ranks) {
    static const uint32_t failing[3] = {400, 150, 80};
    uint64_t failures = 0, none = 0, seeds = runs;
    for (uint64_t seed = first_seed; seed < first_seed + seeds; seed++) {
        uint64_t calm = simulate(seed, ranks, 0, &none);
        uint64_t tried = simulate(seed, ranks, failing[seed % 3] * ranks, &failures);
        if (calm != tried)
            fail_msg("seed %llu, %u ranks: trouble changed the result", (unsigned long long)seed,
                     ranks);
    }
    assert_int_equal(none, 0);
    assert_true(failures > seeds); /* there was trouble */
    printf("%u ranks: %llu runs, %llu attempts given up\n", ranks, (unsigned long long)seeds,
           (unsigned long long)failures);
}

static void trouble_changes_no_bit(void **state) {
    (void)state;
    check(1);
}
static void trouble_changes_no_bit_of_two_ranks(void **state) {
    (void)state;
    check(2);
}
static void trouble_changes_no_bit_of_three_ranks(void **state) {
    (void)state;
    check(3);
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seed") == 0) first_seed = strtoull(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--runs") == 0) runs = strtoull(argv[i + 1], NULL, 10);
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(trouble_changes_no_bit),
                                       cmocka_unit_test(trouble_changes_no_bit_of_two_ranks),
                                       cmocka_unit_test(trouble_changes_no_bit_of_three_ranks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
