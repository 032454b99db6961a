/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: the coordinator's state machine, fed by hand. */
#include "member_world.h"

#include "member/lease.h"

#include "base/memory.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* Peers 0, 1, … join as "b", "a", "c", so that sites' numbers and peers' differ: site 0 is peer 1.
 */
static const char *const names[] = {"b", "a", "c", "d", "e"};
static uint16_t site_of(uint32_t peer) {
    return peer < 2 ? (uint16_t)(1 - peer) : (uint16_t)peer;
}

static world *run_open(uint16_t sites, uint64_t tokens_target) {
    world *w = world_open(sites, tokens_target, NULL);
    for (uint32_t peer = 0; peer < sites; peer++) join(w, peer, names[peer]);
    listen_all(w, sites);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    return w;
}

/* ---- rendezvous ------------------------------------------------------------------------------ */

static void sites_are_numbered_by_name(void **state) {
    (void)state;
    world *w = world_open(3, 1000, NULL);
    hello_of(w, "b")->anchor_hash = 12; /* starts elsewhere than "a" */
    say_as(w, 0, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    join(w, 1, "a");
    assert_int_equal(w->counts[0][DLXI_FRAME_WELCOME], 0);
    join(w, 2, "c");
    for (uint32_t peer = 0; peer < 3; peer++) {
        assert_int_equal(w->counts[peer][DLXI_FRAME_WELCOME], 1);
        const dlxi_welcome *welcome = &w->last[peer]->as.welcome;
        assert_int_equal(welcome->site, site_of(peer));
        assert_int_equal(welcome->sites, 3);
        assert_int_equal(welcome->tokens_target, 1000);
        assert_true(welcome->run_id == RUN_ID);
        assert_string_equal(welcome->members[0].name, "a");
        assert_string_equal(welcome->members[1].name, "b");
        assert_string_equal(welcome->members[2].name, "c");
        assert_string_equal(welcome->members[1].public_key, "key");
        assert_false(welcome->members[0].needs_anchor);
        assert_true(welcome->members[1].needs_anchor);
        assert_false(welcome->members[2].needs_anchor);
    }
    listen_all(w, 3);
    for (uint32_t to = 0; to < 3; to++) /* each learns where the others wait for it */
        for (uint32_t from = 0; from < 3; from++) {
            char expected[DLXI_ENDPOINT_MAX + 1];
            snprintf(expected, sizeof expected, "peer %u for site %u", from, site_of(to));
            assert_string_equal(w->last[to]->as.endpoints.endpoint[site_of(from)], expected);
        }
    world_close(w);
}

static void refusals_say_why(void **state) {
    (void)state;
#define BAD_NAME                                                                                   \
    "a site's name is not allowed; names have 1 to 63 of the characters A-Z a-z 0-9 . _ - and "    \
    "begin with a letter, digit or _; set --site"
    static const struct {
        const char *name, *proved, *text;
    } cases[] = {
        {"d/e", "", BAD_NAME},
        {"", "", BAD_NAME},
        {"-d", "", BAD_NAME},
        {"c", "mallory", "site 'c' uses the key of 'mallory'; set --site or wan.key"},
        {"a", "",
         "a site named 'a' has joined already; give --site another name, or, if that one ended, "
         "wait "
         "for wan.timeout_s"},
        {"ranks", "", "site 'ranks' has 2 ranks, 'a' has 1; all sites must have the same"},
        {"config", "",
         "sync.bits: '8' on site 'config', '4' on site 'a'; all sites must use the same value"},
        {"fewer", "",
         "sync.bits: '(absent)' on site 'fewer', '4' on site 'a'; all sites must use the same "
         "value"},
        {"tensors", "",
         "site 'tensors' has other tensors (names, shapes) or settings (overlap, inner steps, "
         "outer step, compression, "
         "adaptation, seed) than 'a'; all sites must have the same"},
        {"windows", "",
         "data.train: site 'windows' has 999 windows (hash 000000000000000d), 'a' has 1000 "
         "(000000000000000d); all "
         "sites "
         "need the same tokens"},
        {"data", "",
         "data.train: site 'data' has 1000 windows (hash 000000000000000e), 'a' has 1000 "
         "(000000000000000d); all sites "
         "need the same tokens"},
    };
    world *w = world_open(2, 1000, NULL);
    join(w, 0, "a");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlxi_hello *h = hello_of(w, cases[i].name);
        if (strcmp(cases[i].name, "ranks") == 0) h->ranks = 2;
        if (strcmp(cases[i].name, "tensors") == 0) h->tensors_hash = 8;
        if (strcmp(cases[i].name, "windows") == 0) h->windows = 999;
        if (strcmp(cases[i].name, "data") == 0) h->data_hash = 14;
        if (strcmp(cases[i].name, "config") == 0)
            dlxi_text_copy(h->shared_text, sizeof h->shared_text,
                           "model.width: 64\nsync.bits: 8\n");
        if (strcmp(cases[i].name, "fewer") == 0)
            dlxi_text_copy(h->shared_text, sizeof h->shared_text, "model.width: 64\n");
        say_as(w, 1, cases[i].proved, DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        assert_int_equal(w->last[1]->kind, DLXI_FRAME_STOP);
        assert_int_equal(w->last[1]->as.reason.status, DLX_REFUSED);
        assert_string_equal(w->last[1]->as.reason.text, cases[i].text);
        assert_int_equal(w->counts[1][DLXI_FRAME_STOP], i + 1);
    }
    /* none of them took the place */
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_GATHERING);
    hello_of(w, "c");
    say_as(w, 2, "c", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_int_equal(w->counts[2][DLXI_FRAME_WELCOME], 1);
    listen_all(w, 1);
    world_close(w);
}

static void a_late_joiner_is_refused(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    join(w, 4, "late");
    assert_int_equal(w->last[4]->kind, DLXI_FRAME_STOP);
    assert_string_equal(w->last[4]->as.reason.text,
                        "the run has begun with 2 sites; one of them comes back with its "
                        "snapshot (--resume), others need a new run");
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    world_close(w);
}

static void the_coordinators_own_config_counts_first(void **state) {
    (void)state;
    world *w = world_open(2, 1000, "model.width: 128\nsync.bits: 4\n");
    join(w, 0, "a");
    assert_string_equal(
        w->last[0]->as.reason.text,
        "model.width: '64' on site 'a', '128' in the run; all sites must use the same value");
    world_close(w);
}

/* Lines behind the coordinator's own, which it can't know, are compared between sites. */
static void what_only_sites_know_is_compared_between_them(void **state) {
    (void)state;
    static const struct {
        const char *tail, *text;
    } cases[] = {
        {"data.validation: 6\n",
         "data.validation: '6' on site 'b', '5' on site 'a'; all sites must use the same value"},
        {"",
         "data.validation: '(absent)' on site 'b', '5' on site 'a'; all sites must use the same "
         "value"},
        {"data.validation: 5\nmore: 1\n",
         "more: '1' on site 'b', '(absent)' on site 'a'; all sites must use the same value"},
    };
    char shared[128];
    world *w = world_open(2, 1000, "model.width: 64\nsync.bits: 4\n");
    for (int round = 0; round < 2; round++) { /* of sites that come, of which all leave once */
        dlxi_text_copy(hello_of(w, "a")->shared_text, DLXI_TEXT_MAX,
                       "model.width: 64\nsync.bits: 4\ndata.validation: 5\n");
        say_as(w, 0, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            snprintf(shared, sizeof shared, "model.width: 64\nsync.bits: 4\n%s", cases[i].tail);
            dlxi_text_copy(hello_of(w, "b")->shared_text, DLXI_TEXT_MAX, shared);
            say_as(w, 1, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
            assert_int_equal(w->last[1]->kind, DLXI_FRAME_STOP);
            assert_string_equal(w->last[1]->as.reason.text, cases[i].text);
        }
        if (round == 1) break;
        wait_pinging(w, 0, -1, 1, TIMEOUT_MS + 1); /* a leaves, its data bind no one */
        dlxi_text_copy(hello_of(w, "c")->shared_text, DLXI_TEXT_MAX,
                       "model.width: 64\nsync.bits: 4\ndata.validation: 7\n");
        say_as(w, 2, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        assert_int_equal(w->counts[2][DLXI_FRAME_STOP], 0);
        wait_pinging(w, 0, -1, 1, TIMEOUT_MS + 1);
    }
    world_close(w);
}

/* A site that went silent while the others gather leaves its place, and its config does not bind
 * those who come later. */
static void a_silent_site_leaves_its_place_while_gathering(void **state) {
    (void)state;
    world *w = world_open(2, 1000, NULL);
    dlxi_text_copy(hello_of(w, "gone")->shared_text, DLXI_TEXT_MAX, "sync.bits: 8\n");
    say_as(w, 0, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    wait_pinging(w, 0, -1, 1, TIMEOUT_MS + 1);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_GATHERING);
    join(w, 1, "a");
    join(w, 2, "b");
    assert_int_equal(w->counts[1][DLXI_FRAME_WELCOME], 1);
    assert_int_equal(w->counts[2][DLXI_FRAME_WELCOME], 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_WELCOME], 0);
    world_close(w);
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static void a_round_begins_when_all_are_ready(void **state) {
    (void)state;
    world *w = run_open(3, 1000);
    ready(w, 0, 1, 30);
    ready(w, 1, 1, 50);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
    ready(w, 2, 1, 20);
    for (uint32_t peer = 0; peer < 3; peer++) {
        assert_int_equal(w->counts[peer][DLXI_FRAME_BEGIN], 1);
        assert_int_equal(w->attempt[peer], 1);
        assert_int_equal(w->round[peer], 1);
        const dlxi_view *view = &w->last[peer]->as.view;
        assert_int_equal(view->members, 3);
        assert_int_equal(view->member[0].tokens, 50); /* "a" is peer 1 */
        assert_int_equal(view->member[1].tokens, 30);
        assert_int_equal(view->member[2].tokens, 20);
        assert_int_equal(view->member[2].site, 2);
        assert_int_equal(view->member[2].step_ns, 5);
        assert_int_equal(view->member[2].exchange_ns, 6);
        assert_int_equal(view->member[2].exchange_bytes, 7);
    }
    stage(w, 0, 1, 1, 77);
    stage(w, 1, 1, 1, 77);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 0);
    stage(w, 2, 1, 1, 77);
    for (uint32_t peer = 0; peer < 3; peer++) {
        assert_int_equal(w->counts[peer][DLXI_FRAME_COMMIT], 1);
        assert_int_equal(w->last[peer]->as.commit.committed_tokens, 100);
        assert_false(w->last[peer]->as.commit.finished);
        assert_int_equal(w->last[peer]->as.commit.lease.submission, 3);
    }
    world_close(w);
}

static void staged_hashes_that_differ_are_repeated(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    ready(w, 0, 1, 30);
    ready(w, 1, 1, 30);
    for (uint32_t attempt = 1; attempt <= 2; attempt++) {
        stage(w, 0, 1, attempt, 1);
        stage(w, 1, 1, attempt, 2);
        for (uint32_t peer = 0; peer < 2; peer++) {
            assert_int_equal(w->counts[peer][DLXI_FRAME_ABORT], attempt);
            assert_int_equal(w->counts[peer][DLXI_FRAME_BEGIN], attempt + 1);
            assert_int_equal(w->attempt[peer], attempt + 1);
            assert_int_equal(w->counts[peer][DLXI_FRAME_COMMIT], 0);
        }
        stage(w, 0, 1, attempt, 2); /* of the attempt that is over: no matter */
    }
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 0);
    stage(w, 1, 1, 3, 9);
    stage(w, 0, 1, 3, 9);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 1);
    assert_int_equal(w->last[0]->as.commit.committed_tokens, 60);
    world_close(w);
}

/* Between rounds there is no attempt, and messages that name number 0 are made up. */
static void nothing_counts_between_rounds(void **state) {
    (void)state;
    world *w = run_open(1, 1000);
    w->message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
    say(w, 0, DLXI_FRAME_ABORT, 1, 0);
    ready(w, 0, 1, 30);
    stage(w, 0, 1, 1, 9);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 1);
    stage(w, 0, 2, 0, 9);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 1);
    world_close(w);
}

static void results_that_keep_differing_end_the_run(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    ready(w, 0, 1, 30);
    ready(w, 1, 1, 30);
    for (uint32_t attempt = 1; attempt <= 3; attempt++)
        for (uint32_t peer = 0; peer < 2; peer++) stage(w, peer, 1, attempt, peer);
    assert_stopped(w, 2, DLX_DIVERGED,
                   "round 1 failed 3 times, last: sites 'a' and 'b' received different results");
    world_close(w);
}

/* A frame that is no message ends the run, or before it has begun its sender's part. */
static void malformed_messages_name_their_sender(void **state) {
    (void)state;
    world *w = world_open(2, 1000, NULL);
    const dlxi_frame nonsense = {.kind = DLXI_FRAME_READY, .term = 1, .round = 1};
    dlxi_coordinator_on_frame(w->c, UINT32_MAX, "", "", &nonsense, w->now_ms);
    join(w, 0, "b");
    dlxi_coordinator_on_frame(w->c, 0, "", "", &nonsense, w->now_ms);
    drain(w);
    assert_int_equal(w->last[0]->kind, DLXI_FRAME_STOP);
    assert_string_equal(w->last[0]->as.reason.text, "site 'b' sent a malformed message");
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_GATHERING);
    join(w, 1, "a");
    join(w, 2, "b");
    assert_int_equal(w->last[1]->kind, DLXI_FRAME_WELCOME);
    dlxi_coordinator_on_frame(w->c, 2, "", "", &nonsense, w->now_ms);
    drain(w);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_string_equal(w->last[1]->as.reason.text, "site 'b' sent a malformed message");
    world_close(w);
}

static void abort_as(world *w, uint32_t peer, uint64_t round, uint32_t attempt, const char *why) {
    w->message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
    dlxi_text_copy(w->message->as.reason.text, sizeof w->message->as.reason.text, why);
    say(w, peer, DLXI_FRAME_ABORT, round, attempt);
}

/* Takes the operator's lines. The last one stays in `last_line`. */
static char last_line[512];
static int lines_count(world *w) {
    int count = 0;
    while (dlxi_coordinator_pop_log(w->c, last_line, sizeof last_line)) count++;
    return count;
}

/* Attempts that make no progress are begun again until the patience is over; operators are told at
 * first, and then each time that the trouble has lasted twice as long. */
static void a_round_in_trouble_is_tried_until_the_patience_is_over(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    w->links = true;
    ready(w, 0, 1, 30);
    ready(w, 1, 1, 30);
    (void)lines_count(w);
    int lines = 0, tries = 0;
    for (int second = 0; dlxi_coordinator_phase_of(w->c) != DLXI_COORDINATOR_DONE; second++) {
        char why[64];
        assert_true(second <= PATIENCE_MS / 1000);
        snprintf(why, sizeof why, "no data from a to b for %d s", second);
        uint32_t attempt = w->attempt[1];
        abort_as(w, 1, 1, attempt, why);
        abort_as(w, 1, 1, attempt, why); /* it is known already */
        tries++;
        wait_pinging(w, 2, -1, 1, 1000);
    }
    lines += lines_count(w);
    assert_int_equal(tries, PATIENCE_MS / 1000);
    assert_true(w->counts[0][DLXI_FRAME_BEGIN] >= tries);
    assert_in_range(lines, 4, 6); /* at 0, 1, 3, 7 and 15 s */
    assert_stopped(w, 2, DLX_PEER_LOST,
                   "gave up on round 1 after 20 s of trouble (wan.patience_s); last: no data from "
                   "a to b for 19 s");
    world_close(w);
}

/* A commit forgets the trouble. */
static void a_commit_ends_the_trouble(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    for (uint64_t round = 1; round <= 4; round++) {
        ready(w, 0, round, 30);
        ready(w, 1, round, 30);
        abort_as(w, 0, round, 1, "a frame out of order");
        assert_int_equal(w->attempt[1], 2);
        for (uint32_t peer = 0; peer < 2; peer++) stage(w, peer, round, 2, 8);
        assert_int_equal(w->last[1]->kind, DLXI_FRAME_COMMIT);
        wait_pinging(w, 2, -1, round + 1, PATIENCE_MS / 2);
    }
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    world_close(w);
}

static void fail_once(world *w, uint64_t round, const char *why) {
    for (uint32_t peer = 0; peer < 2; peer++) ready(w, peer, round, 30);
    abort_as(w, 0, round, 1, why);
    for (uint32_t peer = 0; peer < 2; peer++) stage(w, peer, round, 2, 8);
    assert_int_equal(w->last[1]->kind, DLXI_FRAME_COMMIT);
}

/* A connection that breaks all the time does not fill the terminals; but what lasts is told at
 * once, for each pair, whichever of its sites reports it. */
static void losses_made_good_are_told_now_and_then(void **state) {
    (void)state;
    world *w = run_open(2, 100000);
    (void)lines_count(w);
    for (uint64_t round = 1; round <= 40; round++) {
        fail_once(w, round, round % 2 == 0 ? "frames from a to b lost" : "frames from b to a lost");
        assert_int_equal(lines_count(w), round % 10 == 1 ? 2 : 0);
        w->now_ms += 1000;
    }
    for (uint64_t round = 41; round <= 43; round++) {
        char expected[64];
        snprintf(expected, sizeof expected, "round %d committed after 1 failed attempt in 0.0 s",
                 (int)round);
        fail_once(w, round,
                  round == 42 ? "no data from b to a for 3 s" : "no data from a to b for 3 s");
        assert_int_equal(lines_count(w), 2);
        assert_string_equal(last_line, expected);
        w->now_ms += 10;
    }
    world_close(w);
}

/* Whatever a rank lacks it gets again: as its pings show, and at most four times a second. */
static void what_was_lost_is_sent_again(void **state) {
    (void)state;
    world *w = world_open(2, 1000, NULL);
    for (uint32_t peer = 0; peer < 2; peer++) join(w, peer, names[peer]);
    w->now_ms += 1000;
    for (int i = 0; i < 3; i++) {
        hello_of(w, "b");
        say_as(w, 0, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    }
    assert_int_equal(w->counts[0][DLXI_FRAME_WELCOME], 2);
    listen_all(w, 2);
    assert_int_equal(w->counts[1][DLXI_FRAME_PEERS], 1);
    w->now_ms += 1000;
    listen_all(w, 2);
    assert_int_equal(w->counts[1][DLXI_FRAME_PEERS], 2);
    ready(w, 0, 1, 30);
    ready(w, 1, 1, 30);
    ready(w, 1, 1, 30); /* repeated before it saw the view */
    assert_int_equal(w->counts[1][DLXI_FRAME_BEGIN], 1);
    w->now_ms += 1000;
    ping(w, 1, 1, 0);
    assert_int_equal(w->counts[1][DLXI_FRAME_BEGIN], 2);
    assert_int_equal(w->last[1]->as.view.member[1].tokens, 30);
    ping(w, 1, 1, 1);
    stage(w, 0, 1, 1, 8);
    stage(w, 1, 1, 1, 8);
    w->now_ms += 1000;
    ping(w, 1, 1, 1);
    assert_int_equal(w->counts[1][DLXI_FRAME_COMMIT], 2);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 1);
    assert_int_equal(w->round[1], 1);
    assert_int_equal(w->attempt[1], 1);
    assert_int_equal(w->last[1]->as.commit.committed_tokens, 60);
    assert_int_equal(w->last[1]->as.commit.lease.submission, 3);
    world_close(w);
}

/* Sites that do not reach each other at first: all terminals say so, and the run ends if it lasts.
 */
static void sites_that_never_meet_end_the_run(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    for (int i = 0; i < 2; i++) abort_as(w, 1, 1, 0, "no data from a to b for 5 s");
    assert_string_equal(w->last[0]->as.reason.text, "no data from a to b for 5 s; trying again");
    assert_int_equal(w->counts[0][DLXI_FRAME_ABORT], 1);
    for (int i = 0; i < PATIENCE_MS / TIMEOUT_MS; i++) {
        abort_as(w, 1, 1, 0, "no data from a to b for 9 s");
        wait_pinging(w, 2, -1, 1, TIMEOUT_MS);
    }
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_stopped(w, 2, DLX_PEER_LOST,
                   "gave up on joining after 20 s of trouble (wan.patience_s); last: no data from "
                   "a to b for 9 s");
    world_close(w);
}

/* Sites may train once all pairs have exchanged frames, and then the first round may take long. */
static void sites_that_meet_have_joined(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    abort_as(w, 1, 1, 0, "no data from a to b for 5 s");
    (void)lines_count(w);
    w->links = true;
    ping(w, 0, 1, 0);
    ping(w, 0, 1, 0);
    assert_int_equal(lines_count(w), 0);
    assert_false(w->linked[0] || w->linked[1]);
    ping(w, 1, 1, 0);
    assert_int_equal(lines_count(w), 1);
    assert_string_equal(last_line, "all sites reach each other");
    dlxi_coordinator_on_tick(w->c, w->now_ms); /* told at once: they wait for it */
    drain(w);
    assert_true(w->linked[0] && w->linked[1]);
    wait_pinging(w, 2, -1, 1, 3 * PATIENCE_MS);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    w->links = false; /* broken again before the first round: the run has begun nevertheless */
    wait_pinging(w, 2, -1, 1, 3 * PATIENCE_MS);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    assert_true(w->linked[0] && w->linked[1]);
    world_close(w);
}

static void a_site_in_another_round_ends_the_run(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    ready(w, 0, 2, 30);
    assert_stopped(w, 2, DLX_DATA, "site 'b' submitted number 2 for round 2 while the run is at 1");
    world_close(w);
    w = run_open(2, 1000);
    ready_again(w, 0, 1, 2, 30); /* or skips one */
    assert_stopped(w, 2, DLX_DATA, "site 'b' submitted number 2 for round 1 while the run is at 1");
    world_close(w);
}

static void a_norm_that_is_not_finite_ends_the_run(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    w->message->as.ready = ready_of(30);
    w->message->as.ready.norm = (double)NAN;
    say(w, 1, DLXI_FRAME_READY, 1, 0);
    assert_stopped(
        w, 2, DLX_NUMERIC,
        "the pseudo-gradient of site 'a' is not finite in round 1; lower train.learning_rate or "
        "sync.outer_learning_rate");
    world_close(w);
}

static void another_anchor_ends_the_run(void **state) {
    (void)state;
    world *w = run_open(3, 1000);
    ready(w, 0, 1, 30);
    ready(w, 1, 1, 30);
    w->message->as.ready = ready_of(30);
    w->message->as.ready.anchor_hash = 98;
    say(w, 2, DLXI_FRAME_READY, 1, 0);
    assert_stopped(w, 3, DLX_DIVERGED,
                   "site 'c' and 'a' have different anchors after round 0: a bug or faulty memory");
    dlx_error error;
    dlxi_coordinator_result(w->c, &error);
    assert_string_equal(error.site, "c");
    world_close(w);
}

static void silence_is_a_lost_site(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    wait_pinging(w, 2, 1, 1, TIMEOUT_MS);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    wait_pinging(w, 2, 1, 1, 1);
    assert_stopped(w, 2, DLX_PEER_LOST, "no message from site 'a' for 5001 ms (wan.timeout_s)");
    world_close(w);
}

/* Time that the coordinator's own process did not run is nobody's silence. */
static void a_pause_of_the_coordinator_loses_nobody(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    w->now_ms += 100 * TIMEOUT_MS;
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    wait_pinging(w, 2, -1, 1, TIMEOUT_MS);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    world_close(w);
}

static void a_failed_site_is_passed_on(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    w->message->as.reason =
        (dlxi_reason){.status = DLX_MEMORY, .text = "out of memory for 7 bytes"};
    say(w, 1, DLXI_FRAME_FAILED, 1, 0);
    assert_stopped(w, 2, DLX_MEMORY, "site 'a' failed: out of memory for 7 bytes");
    world_close(w);
}

/* A failure is no success, whatever status it claims. */
static void a_failure_without_a_status_is_one(void **state) {
    (void)state;
    static const uint16_t claims[] = {DLX_OK, DLX_DIVERGED + 1, 65535};
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++) {
        world *w = run_open(2, 1000);
        w->message->as.reason = (dlxi_reason){.status = claims[i], .text = "who knows"};
        say(w, 1, DLXI_FRAME_FAILED, 1, 0);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
        dlx_error error;
        assert_int_not_equal(dlxi_coordinator_result(w->c, &error), DLX_OK);
        assert_string_equal(error.message, "site 'a' failed: who knows");
        world_close(w);
    }
}

static void strangers_and_old_terms_are_not_heard(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    w->message->as.ready = ready_of(30);
    say(w, 5, DLXI_FRAME_READY, 1, 0); /* never joined */
    w->message->as.reason = (dlxi_reason){.status = DLX_DATA, .text = "ha"};
    say_as(w, 0, "", DLXI_FRAME_FAILED, (dlxi_frame){.term = 0, .round = 1});
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    world_close(w);
}

static void a_round_without_tokens_ends_the_run(void **state) {
    (void)state;
    world *w = run_open(2, 1000);
    ready(w, 0, 1, 0);
    ready(w, 1, 1, 0);
    assert_stopped(w, 2, DLX_DATA, "no site trained on any token in round 1");
    world_close(w);
}

static void the_target_ends_the_run(void **state) {
    (void)state;
    world *w = run_open(2, 100);
    for (uint64_t round = 1; round <= 2; round++) {
        ready(w, 0, round, 20);
        ready(w, 1, round, 30);
        stage(w, 0, round, 1, round);
        stage(w, 1, round, 1, round);
        assert_int_equal(w->last[0]->as.commit.finished, round == 2);
    }
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
    report(w, 0, 3, "from b");
    assert_int_equal(w->counts[0][DLXI_FRAME_FINISHED], 0);
    report(w, 1, 3, "from a");
    for (uint32_t peer = 0; peer < 2; peer++)
        assert_int_equal(w->counts[peer][DLXI_FRAME_FINISHED], 1);
    /* a site whose FINISHED was lost can ask again until all have answered */
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_CLOSING);
    say(w, 0, DLXI_FRAME_FINISHED, 3, 0);
    w->now_ms += 1000;
    report(w, 1, 3, "from a");
    assert_int_equal(w->counts[1][DLXI_FRAME_FINISHED], 2);
    say(w, 1, DLXI_FRAME_FINISHED, 3, 0);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_int_equal(dlxi_coordinator_result(w->c, NULL), DLX_OK);
    const char *name = NULL;
    assert_string_equal(dlxi_coordinator_report(w->c, 0, &name), "from a");
    assert_string_equal(name, "a");
    assert_string_equal(dlxi_coordinator_report(w->c, 1, &name), "from b");
    assert_null(dlxi_coordinator_report(w->c, 2, &name));
    world_close(w);
}

static void weight_is_clamped_to_the_lease(void **state) {
    (void)state;
    world *w = run_open(2, 10000);
    ready(w, 0, 1, 30);
    w->message->as.ready = ready_of(10000); /* 1000 windows of a lease of 6 */
    say(w, 1, DLXI_FRAME_READY, 1, 0);
    assert_int_equal(w->last[0]->as.view.member[0].tokens, 6 * TOKENS_PER_WINDOW);
    world_close(w);

    w = run_open(2, 10000);
    ready(w, 0, 1, 30);
    w->message->as.ready = ready_of(60);
    w->message->as.ready.windows_used = 2; /* 60 tokens of two windows */
    say(w, 1, DLXI_FRAME_READY, 1, 0);
    assert_int_equal(w->last[0]->as.view.member[0].tokens, 2 * TOKENS_PER_WINDOW);
    world_close(w);
}

/* Windows that were used in an earlier round than the one that trains on them count there; never
 * more than were used, nor than the lease has. */
static void windows_taken_early_count_once(void **state) {
    (void)state;
    static const struct {
        uint32_t used;
        uint64_t trained, counted; /* tokens */
    } rounds[] = {{5, 30, 30}, {0, 10, 10}, {0, 30, 10},  {6, 10, 10},  {6, 10, 10},
                  {6, 0, 0},   {6, 90, 60}, {0, 200, 60}, {0, 200, 60}, {0, 200, 40}};
    world *w = run_open(2, 10000);
    for (uint32_t i = 0; i < sizeof rounds / sizeof *rounds; i++) {
        ready(w, 0, i + 1, 30);
        w->message->as.ready = ready_of(rounds[i].trained);
        w->message->as.ready.submission = w->message->as.ready.base_round = i + 1;
        w->message->as.ready.windows_used = rounds[i].used;
        say(w, 1, DLXI_FRAME_READY, i + 1, 0);
        assert_int_equal(w->last[0]->as.view.member[0].tokens, rounds[i].counted);
        for (uint32_t peer = 0; peer < 2; peer++) stage(w, peer, i + 1, 1, 7);
    }
    world_close(w);
}

/* ---- leases ---------------------------------------------------------------------------------- */

enum { POSITIONS = 100000 };

static void take_lease(uint8_t *held, const dlxi_lease *lease) {
    for (uint64_t i = 0; i < dlxi_lease_windows(lease); i++) {
        uint64_t position = dlxi_lease_position(lease, i);
        assert_in_range(position, 0, POSITIONS - 1);
        assert_int_equal(held[position], 0); /* neither leased elsewhere nor trained on */
        held[position] = 1;
    }
}

static void no_window_counts_twice(void **state) {
    (void)state;
    enum { SITES = 3, ROUNDS = 200 };
    world *w = run_open(SITES, 1000000);
    uint8_t *held = calloc(POSITIONS, 1); /* 1: leased or trained on */
    dlxi_lease leases[SITES][4];
    uint64_t used = 0;
    memset(leases, 0, sizeof leases);
    world_close(w);
    /* again, since welcomes carry the first two rounds' leases and are overwritten by peers */
    w = world_open(SITES, 1000000, NULL);
    for (uint32_t peer = 0; peer < SITES; peer++) join(w, peer, names[peer]);
    for (uint32_t peer = 0; peer < SITES; peer++)
        for (int k = 0; k < 2; k++) {
            leases[peer][k + 1] = w->last[peer]->as.welcome.leases[k];
            assert_int_equal(leases[peer][k + 1].submission, k + 1);
            assert_int_equal(dlxi_lease_windows(&leases[peer][k + 1]), 6);
            take_lease(held, &leases[peer][k + 1]);
        }
    listen_all(w, SITES);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        uint32_t windows[SITES];
        for (uint32_t peer = 0; peer < SITES; peer++) {
            windows[peer] = (uint32_t)(1 + dlxi_rng_u64(3, round, peer) % 6);
            ready(w, peer, round, windows[peer] * TOKENS_PER_WINDOW);
        }
        for (uint32_t peer = 0; peer < SITES; peer++) stage(w, peer, round, 1, round);
        /* what was left of the round's leases is free again */
        for (uint32_t peer = 0; peer < SITES; peer++) {
            const dlxi_lease *old = &leases[peer][round % 4];
            assert_int_equal(old->submission, round);
            for (uint64_t i = windows[peer]; i < dlxi_lease_windows(old); i++)
                held[dlxi_lease_position(old, i)] = 0;
            used += windows[peer];
        }
        for (uint32_t peer = 0; peer < SITES; peer++) {
            dlxi_lease *fresh = &leases[peer][(round + 2) % 4];
            *fresh = w->last[peer]->as.commit.lease;
            assert_int_equal(fresh->submission, round + 2);
            assert_int_equal(dlxi_lease_windows(fresh), 6);
            take_lease(held, fresh);
        }
    }
    /* all that came back was leased again: no holes below the highest, but for what is out in
     * leases */
    uint64_t last = 0, taken = 0;
    for (uint64_t i = 0; i < POSITIONS; i++)
        if (held[i] != 0) last = i, taken++;
    assert_int_equal(taken, used + 2 * SITES * 6);
    assert_true(last + 1 - taken <= SITES * 6);
    free(held);
    world_close(w);
}

static void a_site_without_data_gets_no_lease(void **state) {
    (void)state;
    world *w = world_open(1, 100, NULL);
    hello_of(w, "a")->windows = 0;
    say_as(w, 0, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_int_equal(dlxi_lease_windows(&w->last[0]->as.welcome.leases[0]), 0);
    listen_all(w, 1);
    w->message->as.ready = ready_of(12345);
    say(w, 0, DLXI_FRAME_READY, 1, 0);
    assert_int_equal(w->last[0]->as.view.member[0].tokens, 12345); /* nothing to clamp to */
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sites_are_numbered_by_name),
        cmocka_unit_test(refusals_say_why),
        cmocka_unit_test(a_late_joiner_is_refused),
        cmocka_unit_test(the_coordinators_own_config_counts_first),
        cmocka_unit_test(what_only_sites_know_is_compared_between_them),
        cmocka_unit_test(a_silent_site_leaves_its_place_while_gathering),
        cmocka_unit_test(a_round_begins_when_all_are_ready),
        cmocka_unit_test(staged_hashes_that_differ_are_repeated),
        cmocka_unit_test(nothing_counts_between_rounds),
        cmocka_unit_test(results_that_keep_differing_end_the_run),
        cmocka_unit_test(malformed_messages_name_their_sender),
        cmocka_unit_test(a_round_in_trouble_is_tried_until_the_patience_is_over),
        cmocka_unit_test(a_commit_ends_the_trouble),
        cmocka_unit_test(what_was_lost_is_sent_again),
        cmocka_unit_test(sites_that_never_meet_end_the_run),
        cmocka_unit_test(sites_that_meet_have_joined),
        cmocka_unit_test(losses_made_good_are_told_now_and_then),
        cmocka_unit_test(a_site_in_another_round_ends_the_run),
        cmocka_unit_test(a_norm_that_is_not_finite_ends_the_run),
        cmocka_unit_test(another_anchor_ends_the_run),
        cmocka_unit_test(silence_is_a_lost_site),
        cmocka_unit_test(a_pause_of_the_coordinator_loses_nobody),
        cmocka_unit_test(a_failed_site_is_passed_on),
        cmocka_unit_test(a_failure_without_a_status_is_one),
        cmocka_unit_test(strangers_and_old_terms_are_not_heard),
        cmocka_unit_test(a_round_without_tokens_ends_the_run),
        cmocka_unit_test(the_target_ends_the_run),
        cmocka_unit_test(weight_is_clamped_to_the_lease),
        cmocka_unit_test(windows_taken_early_count_once),
        cmocka_unit_test(no_window_counts_twice),
        cmocka_unit_test(a_site_without_data_gets_no_lease),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
