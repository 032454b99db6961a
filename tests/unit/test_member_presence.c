/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a coordinator that goes on without a site that is lost, away or late. */
#include "presence_world.h"

#include "base/rng.h"
#include "member/lease.h"

#include <math.h>

static void assert_range(const dlxi_lease *lease, uint64_t first, uint32_t count) {
    assert_int_equal(lease->range_count, 1);
    assert_int_equal(lease->ranges[0].first, first);
    assert_int_equal(lease->ranges[0].count, count);
}

static const char silence[] = "no message from site 'c' for 5500 ms (wan.timeout_s)";

/* ---- lost ------------------------------------------------------------------------------------ */

/* In the middle of an attempt: it is begun again with the rest, and the site's windows are free. */
static void a_silent_site_is_dropped(void **state) {
    (void)state;
    world *w = world_running(1, false);
    ready_all(w, 1);
    for (uint32_t i = 0; i < SITES; i++) assert_begun(w, i, 1, SITES);
    stage(w, 0, 1, 1, 5);
    wait_pinging(w, SITES, SILENT, 1, 5500);
    assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_STOP);
    assert_string_equal(w->last[SILENT]->as.reason.text, silence);
    w->now_ms += 300;
    for (uint32_t i = 0; i < SILENT; i++) {
        assert_int_equal(w->counts[i][DLXI_FRAME_ABORT], 1);
        ping(w, i, 1, 1); /* the answer is what was begun, once more */
        assert_begun(w, i, 2, 2);
        assert_int_equal(w->last[i]->as.view.member[1].site, 1);
    }
    stage(w, 1, 1, 1, 5); /* of the attempt before */
    stage(w, 0, 1, 2, 5);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 0);
    stage(w, 1, 1, 2, 5);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_COMMIT], 0);
    for (uint32_t i = 0; i < SILENT; i++) {
        assert_int_equal(w->last[i]->kind, DLXI_FRAME_COMMIT);
        assert_int_equal(w->last[i]->as.commit.committed_tokens, 120);
    }
    /* its leases were 12 to 17 and 30 to 35 */
    assert_range(&w->last[0]->as.commit.lease, 12, 6);
    assert_range(&w->last[1]->as.commit.lease, 30, 6);
    uint64_t round;
    const char *name, *why;
    assert_false(dlxi_coordinator_dropped(w->c, 0, &round, &name, &why));
    assert_true(dlxi_coordinator_dropped(w->c, SILENT, &round, &name, &why));
    assert_int_equal(round, 1);
    assert_string_equal(name, "c");
    assert_string_equal(why, silence);
    world_close(w);
}

/* Between attempts: the round begins when the others are ready. */
static void a_failed_site_is_dropped_at_once(void **state) {
    (void)state;
    world *w = world_running(1, false);
    ready_all(w, 1);
    for (uint32_t i = 0; i < SITES; i++) stage(w, i, 1, 1, 5);
    ready(w, 1, 2, 60);
    ready(w, 2, 2, 60);
    w->message->as.reason = (dlxi_reason){.status = DLX_NUMERIC, .text = "a loss of nan"};
    say(w, 0, DLXI_FRAME_FAILED, 2, 0);
    assert_int_equal(w->last[0]->kind, DLXI_FRAME_STOP);
    for (uint32_t i = 1; i < SITES; i++) {
        assert_int_equal(w->counts[i][DLXI_FRAME_ABORT], 0); /* there was no attempt */
        assert_begun(w, i, 1, 2);
        assert_int_equal(w->last[i]->as.view.member[0].site, 1);
    }
    for (uint32_t i = 1; i < SITES; i++) stage(w, i, 2, 1, 5);
    assert_int_equal(w->last[1]->kind, DLXI_FRAME_COMMIT);
    assert_int_equal(w->last[1]->as.commit.committed_tokens, 300);
    world_close(w);
}

static void a_site_that_diverged_is_dropped(void **state) {
    (void)state;
    world *w = world_running(1, false);
    ready(w, 0, 1, 60);
    ready(w, 1, 1, 60);
    w->message->as.ready = ready_of(60);
    w->message->as.ready.norm = HUGE_VAL;
    say(w, SILENT, DLXI_FRAME_READY, 1, 0);
    assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_STOP);
    assert_int_equal(w->last[SILENT]->as.reason.status, DLX_NUMERIC);
    for (uint32_t i = 0; i < SILENT; i++) assert_begun(w, i, 1, 2);
    world_close(w);
}

static void a_dropped_site_that_speaks_is_told_again(void **state) {
    (void)state;
    world *w = world_running(1, false);
    ready_all(w, 1);
    wait_pinging(w, SITES, SILENT, 1, 5500);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_STOP], 1);
    w->now_ms += 1000;
    for (int i = 0; i < 3; i++) ping(w, SILENT, 1, 1);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_STOP], 2);
    stage(w, SILENT, 1, 2, 5); /* counts for nothing */
    stage(w, 0, 1, 2, 5);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 0);
    hello_of(w, "c");
    say_as(w, SILENT + 1, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_string_equal(w->last[SILENT + 1]->as.reason.text,
                        "the run has begun with 3 sites; one of them comes back with its "
                        "snapshot (--resume), others need a new run");
    world_close(w);
}

/* Down to the last one, which goes on by itself; the next loss ends the run. */
static void the_run_keeps_its_least_number_of_sites(void **state) {
    (void)state;
    world *w = world_running(2, false);
    ready_all(w, 1);
    w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
    say(w, 1, DLXI_FRAME_FAILED, 1, 1);
    assert_begun(w, 0, 2, 2);
    w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
    say(w, 2, DLXI_FRAME_FAILED, 1, 2);
    dlx_error error;
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_int_equal(dlxi_coordinator_result(w->c, &error), DLX_SYSTEM);
    assert_string_equal(error.message, "site 'c' failed: a full disk");
    world_close(w);

    w = world_running(1, false);
    ready_all(w, 1);
    for (uint32_t i = 1; i < SITES; i++) {
        w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
        say(w, i, DLXI_FRAME_FAILED, 1, i);
    }
    assert_begun(w, 0, 3, 1);
    stage(w, 0, 1, 3, 5);
    assert_int_equal(w->last[0]->as.commit.committed_tokens, 60);
    world_close(w);
}

/* Others may still wait to join, which needs every site. */
static void before_the_others_have_entered_a_loss_ends_the_run(void **state) {
    (void)state;
    for (uint32_t entered = 1; entered < SITES; entered++) {
        world *w = world_open(SITES, 100000, NULL);
        w->settings.sites_min = 1;
        dlxi_coordinator_close(&w->c);
        assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
        for (uint32_t i = 0; i < SITES; i++) join(w, i, (const char *[]){"a", "b", "c"}[i]);
        listen_all(w, SITES);
        for (uint32_t i = 0; i < SITES; i++) {
            w->message->as.ping = (dlxi_ping){.run_id = RUN_ID};
            say_as(w, i, "", DLXI_FRAME_PING,
                   (dlxi_frame){.term = 1,
                                .coordinator = LIFE_ID,
                                .round = 1,
                                .trip = i < entered ? DLXI_SITE_LINKED | DLXI_SITE_ENTERED
                                                    : DLXI_SITE_LINKED});
        }
        assert_true(dlxi_coordinator_has_begun(w->c));
        w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
        say_as(w, SILENT, "", DLXI_FRAME_FAILED,
               (dlxi_frame){.term = 1, .coordinator = LIFE_ID, .round = 1});
        bool ended = dlxi_coordinator_phase_of(w->c) == DLXI_COORDINATOR_DONE;
        assert_int_equal(ended, entered < SITES - 1);
        world_close(w);
    }
}

/* ---- away ------------------------------------------------------------------------------------ */

/* Those of the mask that are members submit, stage and commit; the others' submissions stay one
 * number behind for each round without them. */
static void round_of(world *w, uint32_t mask, uint64_t round, const uint64_t submissions[SITES]) {
    for (uint32_t i = 0; i < SITES; i++)
        if ((mask >> i & 1u) != 0) ready_again(w, i, round, submissions[i], 60);
    for (uint32_t i = 0; i < SITES; i++) {
        if ((mask >> i & 1u) == 0) continue;
        assert_int_equal(w->last[i]->kind, DLXI_FRAME_BEGIN);
        assert_int_equal(w->round[i], round);
    }
    for (uint32_t i = 0; i < SITES; i++)
        if ((mask >> i & 1u) != 0) stage(w, i, round, w->attempt[i], round);
    for (uint32_t i = 0; i < SITES; i++)
        if ((mask >> i & 1u) != 0) assert_int_equal(w->last[i]->kind, DLXI_FRAME_COMMIT);
}

static bool is_away(const world *w, uint16_t site) {
    uint64_t round;
    const char *name, *why;
    return dlxi_coordinator_dropped(w->c, site, &round, &name, &why);
}

/* The others go on; it keeps its windows, follows the rounds that it missed, and what it submits
 * then counts. */
static void a_silent_site_may_come_back(void **state) {
    (void)state;
    world *w = world_running(1, true);
    ready_all(w, 1);
    stage(w, 0, 1, 1, 5);
    wait_pinging(w, SITES, SILENT, 1, 5500);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_STOP], 0);
    assert_true(is_away(w, SILENT) && !is_away(w, 0));
    assert_line(w, "no message from site 'c' for 5500 ms (wan.timeout_s); 2 of 3 sites go on");
    for (uint32_t i = 0; i < SILENT; i++) {
        assert_int_equal(w->counts[i][DLXI_FRAME_ABORT], 1);
        assert_int_equal(w->attempt[i], 2);
    }
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 2, 5);
    assert_int_equal(w->last[0]->as.commit.committed_tokens, 120);
    assert_range(&w->last[0]->as.commit.lease, 36, 6); /* not c's: 12 to 17 and 30 to 35 */
    assert_range(&w->last[1]->as.commit.lease, 42, 6);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_COMMIT], 0);

    w->now_ms += 700;
    ping(w, SILENT, 1, 1);
    assert_false(is_away(w, SILENT));
    assert_line(w, "site 'c' is back after 0.7 s");
    assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_COMMIT);
    assert_int_equal(w->round[SILENT], 1);
    assert_int_equal(w->attempt[SILENT], 2);
    const dlxi_commit *commit = &w->last[SILENT]->as.commit;
    assert_int_equal(commit->term, 1);
    assert_true(commit->coordinator == LIFE_ID);
    assert_int_equal(commit->view.members, 2);
    assert_int_equal(commit->view.member[1].site, 1);
    assert_int_equal(commit->committed_tokens, 120);
    assert_int_equal(commit->lease.submission, 2);
    assert_range(&commit->lease, 30, 6);
    ping(w, SILENT, 2, 0); /* it has caught up */
    ready(w, 0, 2, 60);
    ready(w, 1, 2, 60);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN] - 1, w->counts[1][DLXI_FRAME_BEGIN] - 1);
    assert_int_equal(w->last[0]->kind, DLXI_FRAME_COMMIT); /* it is waited for */
    round_of(w, FIRST | SECOND | THIRD, 2, (uint64_t[]){2, 2, 1});
    assert_int_equal(w->last[0]->as.commit.committed_tokens, 300);
    assert_int_equal(w->last[SILENT]->as.commit.view.members, SITES);
    assert_int_equal(w->last[SILENT]->as.commit.view.member[SILENT].tokens, 60);
    assert_int_equal(w->last[SILENT]->as.commit.lease.submission, 3);
    world_close(w);
}

/* As long as it has not spoken with all of its ranks since, a site is not back. */
static void a_frame_from_before_does_not_bring_a_site_back(void **state) {
    (void)state;
    world *w = world_running(1, true);
    dlxi_coordinator_on_closed(w->c, SILENT, w->now_ms);
    assert_true(is_away(w, SILENT));
    assert_line(w, "site 'c' has no connection; 2 of 3 sites go on");
    ping(w, SILENT, 1, 0); /* of the same moment */
    assert_true(is_away(w, SILENT));
    w->now_ms++;
    ping(w, SILENT, 1, 0);
    assert_false(is_away(w, SILENT));
    dlxi_coordinator_on_closed(w->c, PEERS_MAX, w->now_ms); /* no peer of the run */
    dlxi_coordinator_on_closed(w->c, UINT32_MAX, w->now_ms);
    world_close(w);

    w = world_open(2, 1000, NULL); /* before the run has begun its silence will show */
    join(w, 0, "a");
    dlxi_coordinator_on_closed(w->c, 0, w->now_ms);
    join(w, 1, "b");
    assert_int_equal(w->counts[0][DLXI_FRAME_WELCOME], 1);
    world_close(w);
}

/* Where all sites are needed, nobody is away: the run ends. */
static void all_sites_are_needed_if_the_user_wants_it(void **state) {
    (void)state;
    world *w = world_running(0, true);
    dlxi_coordinator_on_closed(w->c, SILENT, w->now_ms);
    assert_false(is_away(w, SILENT));
    ready(w, 0, 1, 60);
    ready(w, 1, 1, 60);
    wait_pinging(w, SITES, -1, 1, 60000);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0); /* nobody is left out */
    wait_pinging(w, SITES, SILENT, 1, 5500);
    assert_stopped(w, SITES, DLX_PEER_LOST, silence);
    world_close(w);
}

/* A rank that sends, and receives nothing: its stamps grow old. */
static void a_deaf_site_is_away(void **state) {
    (void)state;
    world *w = world_running(1, true);
    int64_t heard_ms = w->now_ms;
    while (w->now_ms < heard_ms + 2 * TIMEOUT_MS + 1000) { /* there and back */
        bool before = w->now_ms <= heard_ms + 2 * TIMEOUT_MS;
        w->message->as.ping = (dlxi_ping){.run_id = RUN_ID, .stamp = heard_ms};
        say(w, SILENT, DLXI_FRAME_PING, 1, 0);
        dlxi_coordinator_on_tick(w->c, w->now_ms);
        assert_int_equal(is_away(w, SILENT), !before);
        ping(w, 0, 1, 0);
        ping(w, 1, 1, 0);
        w->now_ms += 500;
    }
    assert_line(w,
                "site 'c' has received nothing from the coordinator for 10 s; 2 of 3 sites go on");
    ping(w, SILENT, 1, 0);
    assert_false(is_away(w, SILENT));
    world_close(w);
}

/* What was sent to a coordinator that was paused is as old as its pause. */
static void a_paused_coordinator_takes_nobody_for_deaf(void **state) {
    (void)state;
    for (int tick_first = 0; tick_first < 2; tick_first++) {
        world *w = world_running(1, true);
        int64_t heard_ms = w->now_ms;
        w->now_ms += 10 * TIMEOUT_MS;
        if (tick_first) dlxi_coordinator_on_tick(w->c, w->now_ms);
        for (uint32_t i = 0; i < SITES; i++) {
            w->message->as.ping = (dlxi_ping){.run_id = RUN_ID, .stamp = heard_ms};
            say(w, i, DLXI_FRAME_PING, 1, 0);
        }
        dlxi_coordinator_on_tick(w->c, w->now_ms);
        wait_pinging(w, SITES, -1, 1, TIMEOUT_MS);
        for (uint16_t i = 0; i < SITES; i++) assert_int_equal(w->counts[i][DLXI_FRAME_STOP], 0);
        char line[512];
        while (dlxi_coordinator_pop_log(w->c, line, sizeof line))
            assert_null(strstr(line, "receives nothing"));
        world_close(w);
    }
}

/* ---- late ------------------------------------------------------------------------------------ */

static void ready_with_grace(world *w, uint32_t peer, uint64_t round, uint32_t grace_ms) {
    w->message->as.ready = ready_of(60);
    w->message->as.ready.submission = round;
    w->message->as.ready.grace_ms = grace_ms;
    say(w, peer, DLXI_FRAME_READY, round, 0);
}

/* It waits for as long as the least patient can, but not less than half of the timeout. */
static void the_rest_waits_for_a_late_site_as_it_can(void **state) {
    (void)state;
    static const struct {
        uint32_t first, second;
        int64_t expected;
    } cases[] = {{0, 0, TIMEOUT_MS / 2}, {9000, 4000, 4000}, {100, 9000, TIMEOUT_MS / 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world *w = world_running(1, true);
        ready_with_grace(w, 0, 1, cases[i].first);
        wait_pinging(w, SITES, -1, 1, PATIENCE_MS / 2 - 1); /* one of three waits for long */
        assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
        ready_with_grace(w, 1, 1, cases[i].second);
        assert_begins_after(w, 1, cases[i].expected);
        assert_int_equal(w->last[0]->as.view.members, 2);
        assert_int_equal(w->counts[SILENT][DLXI_FRAME_BEGIN], 0);
        world_close(w);
    }
    world *w = world_running(1, false); /* a site that could not follow */
    ready(w, 0, 1, 60);
    ready(w, 1, 1, 60);
    wait_pinging(w, SITES, -1, 1, 60000);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
    world_close(w);
}

/* The round's end reaches it too; what it submits then counts, once, and so does its lease. */
static void a_late_site_is_left_out(void **state) {
    (void)state;
    world *w = world_running(1, true);
    ready(w, 0, 1, 60);
    ready(w, 1, 1, 60);
    assert_begins_after(w, 1, TIMEOUT_MS / 2);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 1, 5);
    assert_line(w,
                "site 'c' was left out of round 1: it was not ready after 2.5 s; 2 of 3 went on");
    assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_COMMIT);
    const dlxi_commit *commit = &w->last[SILENT]->as.commit;
    assert_int_equal(commit->view.members, 2);
    assert_int_equal(commit->view.member[0].site, 0);
    assert_int_equal(commit->view.member[1].site, 1);
    assert_int_equal(commit->lease.submission, 2);
    assert_range(&commit->lease, 30, 6);
    assert_range(&w->last[0]->as.commit.lease, 36, 6);

    ready_again(w, SILENT, 1, 1, 20); /* it has not seen the commit: repeated */
    ready_again(w, SILENT, 2, 1, 20);
    ready_again(w, SILENT, 2, 1, 20);
    ready(w, 0, 2, 60);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 1);
    ready(w, 1, 2, 60);
    assert_begun(w, SILENT, 1, SITES);
    assert_int_equal(w->last[0]->as.view.member[SILENT].tokens, 20);
    for (uint32_t i = 0; i < SITES; i++) stage(w, i, 2, 1, 5);
    assert_int_equal(w->last[0]->as.commit.committed_tokens, 260);
    /* of its 12 to 17 it used two: the rest is free, and the first gets it */
    const dlxi_lease *lease = &w->last[0]->as.commit.lease;
    assert_int_equal(lease->range_count, 2);
    assert_int_equal(lease->ranges[0].first, 14);
    assert_int_equal(lease->ranges[0].count, 4);
    assert_int_equal(w->last[SILENT]->as.commit.lease.submission, 3);
    round_of(w, FIRST | SECOND | THIRD, 3, (uint64_t[]){3, 3, 2});
    for (uint32_t i = 0; i < SITES; i++) {
        assert_int_equal(w->last[i]->as.commit.lease.range_count, 1);
        assert_true(w->last[i]->as.commit.lease.ranges[0].first > 48);
    }
    world_close(w);
}

/* A site that is always late would never take part. */
static void who_was_left_out_twice_is_waited_for_longer(void **state) {
    (void)state;
    world *w = world_running(1, true);
    for (uint64_t round = 1; round <= 4; round++) {
        ping(w, SILENT, round, 0); /* it has caught up */
        ready(w, 0, round, 60);
        ready(w, 1, round, 60);
        assert_begins_after(w, round, (round < 3 ? 1 : 4) * TIMEOUT_MS / 2);
        for (uint32_t i = 0; i < SILENT; i++) stage(w, i, round, 1, round);
        assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_COMMIT);
    }
    ready(w, 0, 5, 60); /* while it is behind it is not waited for */
    ready(w, 1, 5, 60);
    assert_begun(w, 0, 1, 2);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 5, 1, 5);
    ping(w, SILENT, 6, 0);
    round_of(w, FIRST | SECOND | THIRD, 6, (uint64_t[]){6, 6, 1}); /* which is forgotten then */
    ready(w, 0, 7, 60);
    ready(w, 1, 7, 60);
    assert_begins_after(w, 7, TIMEOUT_MS / 2);
    world_close(w);
}

/* Else rounds that are shorter than an answer's pause would run away from it. */
static void who_catches_up_is_answered_at_once(void **state) {
    (void)state;
    world *w = world_running(1, true);
    for (uint64_t round = 1; round <= 3; round++) {
        ready(w, 0, round, 60);
        ready(w, 1, round, 60);
        if (round == 1) assert_begins_after(w, 1, TIMEOUT_MS / 2);
        for (uint32_t i = 0; i < SILENT; i++) stage(w, i, round, 1, round);
    }
    w->now_ms += 300;
    int before = w->counts[SILENT][DLXI_FRAME_COMMIT];
    for (uint64_t round = 1; round <= 3; round++) {
        for (int again = 0; again < 2; again++) ping(w, SILENT, round, 0);
        assert_int_equal(w->counts[SILENT][DLXI_FRAME_COMMIT], ++before);
        assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_COMMIT);
        assert_int_equal(w->round[SILENT], round);
    }
    world_close(w);
}

/* Else one that takes longer for results than the others train would never be in a round again. */
static void who_lacks_the_last_results_alone_is_waited_for(void **state) {
    (void)state;
    world *w = world_running(1, true);
    ready(w, 0, 1, 60);
    ready(w, 1, 1, 60);
    assert_begins_after(w, 1, TIMEOUT_MS / 2);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 1, 1);
    ready_again(w, SILENT, 1, 1, 60); /* it has submitted, too late */
    ready(w, 0, 2, 60);
    ready(w, 1, 2, 60);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 1);
    ready_again(w, SILENT, 2, 1, 60);
    assert_begun(w, SILENT, 1, SITES);
    for (uint32_t i = 0; i < SITES; i++) stage(w, i, 2, 1, 2);
    /* for as long as for a late one */
    ready(w, 0, 3, 60);
    ready(w, 1, 3, 60);
    assert_begins_after(w, 3, TIMEOUT_MS / 2);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 3, 1, 3);
    ready_again(w, SILENT, 3, 2, 60);
    ready(w, 0, 4, 60);
    ready(w, 1, 4, 60);
    wait_pinging(w, SITES, SILENT, 4, TIMEOUT_MS / 2 - 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 3);
    ping(w, SILENT, 3, 0);
    wait_pinging(w, SITES, SILENT, 4, 1);
    assert_begun(w, 0, 1, 2);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 4, 1, 4);
    /* one that lacks more: until it has come nearer */
    ping(w, SILENT, 4, 0);
    ping(w, SILENT, 4, 0);
    ready(w, 0, 5, 60);
    ready(w, 1, 5, 60);
    assert_begins_after(w, 4, 4 * TIMEOUT_MS / 2); /* it lacks one, and was left out twice */
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 5, 1, 5);
    ready(w, 0, 6, 60);
    ready(w, 1, 6, 60);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 6); /* two, and it gets nothing */
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 6, 1, 6);
    ping(w, SILENT, 5, 0);
    ready(w, 0, 7, 60);
    ready(w, 1, 7, 60);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 6); /* two, as at the last begin */
    ping(w, SILENT, 6, 0);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 6); /* one */
    world_close(w);
}

/* They come back one by one: the first does not run away from the others. */
static void who_finds_nobody_waits_for_the_others(void **state) {
    (void)state;
    world *w = world_running(1, true);
    wait_pinging(w, 0, -1, 1, TIMEOUT_MS + 1);
    w->now_ms++;
    ready(w, 0, 1, 60);
    wait_pinging(w, 1, -1, 1, 1000);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
    ready(w, 1, 1, 60);
    wait_pinging(w, 2, -1, 1, 1999);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
    wait_pinging(w, 2, -1, 1, 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 1);
    world_close(w);
}

/* Its sites may hear it though it does not hear them: they wait for its next life. */
static void who_hears_nobody_stops_nobody(void **state) {
    (void)state;
    for (uint64_t tokens = 120; tokens <= 100000; tokens += 100000 - 120) {
        dlx_error error;
        world *w = world_running_to(tokens, 1, true);
        ready_all(w, 1);
        for (uint32_t i = 0; i < SITES; i++) stage(w, i, 1, 1, 1);
        assert_int_equal(w->last[0]->as.commit.finished, tokens == 120);
        wait_pinging(w, 0, -1, 2, TIMEOUT_MS + PATIENCE_MS + 1500);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
        assert_int_equal(dlxi_coordinator_result(w->c, &error), DLX_PEER_LOST);
        assert_non_null(strstr(error.message, "; a coordinator that is started again goes on"));
        for (uint32_t i = 0; i < SITES; i++) assert_int_equal(w->counts[i][DLXI_FRAME_STOP], 0);
        world_close(w);
    }
}

/* Half is no majority: each could go on without the other. */
static void of_two_both_are_needed(void **state) {
    (void)state;
    world *w = world_running(1, true);
    w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
    say(w, SILENT, DLXI_FRAME_FAILED, 1, 0);
    ready(w, 0, 1, 60);
    wait_pinging(w, SILENT, -1, 1, PATIENCE_MS / 2 - 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
    ready(w, 1, 1, 60);
    assert_begun(w, 0, 1, 2);
    world_close(w);
}

/* Whoever is in the next view can fetch the last round from a site that surely has it. */
static void a_view_continues_the_last_one(void **state) {
    (void)state;
    for (int gone = 0; gone < 2; gone++) {
        world *w = world_running(1, true);
        ready(w, 0, 1, 60);
        ready(w, 1, 1, 60);
        assert_begins_after(w, 1, TIMEOUT_MS / 2);
        for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 1, 5);
        w->now_ms += 100;
        for (uint32_t i = 0; i < SILENT; i++) dlxi_coordinator_on_closed(w->c, i, w->now_ms);
        assert_true(is_away(w, 0) && is_away(w, 1));
        ready_again(w, SILENT, 2, 1, 60);
        for (int i = 0; i < 24; i++) { /* within the patience */
            w->now_ms += 500;
            ping(w, SILENT, 2, 0);
            dlxi_coordinator_on_tick(w->c, w->now_ms);
            drain(w);
        }
        assert_int_equal(w->counts[SILENT][DLXI_FRAME_BEGIN], 0);
        assert_line(
            w, "round 2 can't begin for 10 s: 1 of 3 sites are here, and none that was in the last "
               "round is ready, missing: 'a' (for 10 s), 'b' (for 10 s)");
        if (gone) {
            for (uint32_t i = 0; i < SILENT; i++) {
                assert_int_equal(w->counts[SILENT][DLXI_FRAME_BEGIN], 0);
                w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a disk"};
                say(w, i, DLXI_FRAME_FAILED, 2, 0);
            }
        } else {
            ready(w, 1, 2, 60);
        }
        assert_begun(w, SILENT, 1, gone ? 1 : 2);
        world_close(w);
    }
}

/* ---- void ------------------------------------------------------------------------------------ */

/* After limbo_ms its windows are others', and what it had trained on them counts for nothing. */
static void what_was_in_limbo_is_void(void **state) {
    (void)state;
    world *w = world_running(1, true);
    dlxi_coordinator_on_closed(w->c, SILENT, w->now_ms);
    int64_t away_ms = w->now_ms;
    round_of(w, FIRST | SECOND, 1, (uint64_t[]){1, 1, 0});
    assert_range(&w->last[0]->as.commit.lease, 36, 6);
    assert_range(&w->last[1]->as.commit.lease, 42, 6);
    wait_pinging(w, SILENT, -1, 2, away_ms + LIMBO_MS - 1 - w->now_ms);
    round_of(w, FIRST | SECOND, 2, (uint64_t[]){2, 2, 0});
    assert_range(&w->last[0]->as.commit.lease, 48, 6); /* still c's */
    wait_pinging(w, SILENT, -1, 3, 1);
    assert_line(w, "site 'c' has been away for 60 s; its windows go to others");
    wait_pinging(w, SILENT, -1, 3, LIMBO_MS); /* once */
    round_of(w, FIRST | SECOND, 3, (uint64_t[]){3, 3, 0});
    assert_range(&w->last[0]->as.commit.lease, 12, 6);
    assert_range(&w->last[1]->as.commit.lease, 30, 6);

    w->now_ms += 1000;
    for (uint64_t round = 1; round <= 3; round++) { /* it follows */
        ping(w, SILENT, round, 0);
        assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_COMMIT);
        assert_int_equal(w->round[SILENT], round);
        w->now_ms += 300;
    }
    ping(w, SILENT, 4, 0);
    uint64_t tokens = w->last[0]->as.commit.committed_tokens;
    for (uint64_t submission = 1; submission <= 3; submission++) {
        uint64_t round = 3 + submission;
        ready(w, 0, round, 60);
        ready(w, 1, round, 60);
        ready_again(w, SILENT, round, submission, 60);
        const dlxi_view *view = &w->last[0]->as.view;
        assert_int_equal(w->last[0]->kind, DLXI_FRAME_BEGIN);
        assert_int_equal(view->members, SITES);
        assert_false(view->member[0].voided || view->member[1].voided);
        assert_int_equal(view->member[SILENT].voided, submission < 3);
        assert_int_equal(view->member[SILENT].tokens, submission < 3 ? 0 : 60);
        for (uint32_t i = 0; i < SITES; i++) stage(w, i, round, 1, round);
        tokens += submission < 3 ? 120 : 180;
        assert_int_equal(w->last[SILENT]->as.commit.committed_tokens, tokens);
        const dlxi_lease *lease = &w->last[SILENT]->as.commit.lease;
        assert_int_equal(lease->submission, submission + 2);
        assert_int_equal(lease->range_count, 1);
        assert_true(lease->ranges[0].first >= 54); /* nobody else's */
    }
    world_close(w);
}

/* What was submitted too many rounds ago would do more harm than good. */
static void what_is_stale_is_void(void **state) {
    (void)state;
    for (uint64_t rounds = 4; rounds <= 5; rounds++) {
        world *w = world_running(1, true);
        ready(w, SILENT, 1, 60);
        dlxi_coordinator_on_closed(w->c, SILENT, w->now_ms);
        for (uint64_t round = 1; round <= rounds; round++)
            round_of(w, FIRST | SECOND, round, (uint64_t[]){round, round, 0});
        w->now_ms += 300;
        ready_again(w, SILENT, rounds + 1, 1, 60);
        ready(w, 0, rounds + 1, 60);
        ready(w, 1, rounds + 1, 60);
        assert_begun(w, 0, 1, SITES);
        assert_int_equal(w->last[0]->as.view.member[SILENT].voided, rounds > 4);
        assert_int_equal(w->last[0]->as.view.member[SILENT].tokens, rounds > 4 ? 0 : 60);
        world_close(w);
    }
}

/* No window counts for two submissions, whoever is late, away, in limbo or gone. */
static void no_window_counts_twice_whoever_is_missing(void **state) {
    (void)state;
    enum { ROUNDS = 400, POSITIONS = 60000, OWN = 4 };
    patience_ms = INT32_MAX;
    world *w = world_running(1, true);
    patience_ms = PATIENCE_MS;
    uint8_t *counted = calloc(POSITIONS, 1);
    dlxi_lease leases[SITES][OWN];
    uint64_t submissions[SITES] = {1, 1, 1}; /* next */
    uint64_t rounds[SITES] = {1, 1, 1};
    bool speaks[SITES] = {true, true, true};
    int voided = 0;
    memset(leases, 0, sizeof leases);
    for (uint32_t i = 0; i < SITES; i++)
        for (uint64_t k = 1; k <= 2; k++)
            leases[i][k % OWN] = (dlxi_lease){
                .submission = k, .range_count = 1, .ranges = {{(k - 1) * 18 + 6 * i, 6}}};
    for (uint64_t round = 1; round <= ROUNDS;) {
        uint64_t draw = dlxi_rng_u64(5, round, (uint64_t)w->now_ms);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
        uint32_t who = (uint32_t)(draw % SITES);
        if (draw % 7 == 0 && (speaks[(who + 1) % SITES] || speaks[(who + 2) % SITES])) {
            speaks[who] = false;
            dlxi_coordinator_on_closed(w->c, who, w->now_ms);
        } else if (draw % 7 < 3) {
            speaks[who] = true;
        }
        w->now_ms += (int64_t)(draw >> 8) % 41 == 0 ? 2 * LIMBO_MS : 300;
        dlxi_coordinator_on_tick(w->c, w->now_ms); /* the pause is forgiven */
        for (uint32_t i = 0; i < SITES; i++) {
            if (!speaks[i]) continue;
            if (rounds[i] == round)
                ready_again(w, i, round, submissions[i], 10 * (1 + (draw >> 16) % 6));
            else
                ping(w, i, rounds[i], 0);
            if (w->last[i]->kind == DLXI_FRAME_COMMIT && w->round[i] == rounds[i]) rounds[i]++;
        }
        bool commits = false;
        for (uint32_t i = 0; i < SITES; i++)
            if (w->last[i]->kind == DLXI_FRAME_BEGIN && w->round[i] == round && speaks[i])
                stage(w, i, round, w->attempt[i], round);
        for (uint32_t i = 0; i < SITES; i++)
            commits = commits || (w->last[i]->kind == DLXI_FRAME_COMMIT && w->round[i] == round);
        if (!commits) continue;
        const dlxi_commit *commit = NULL;
        for (uint32_t i = 0; i < SITES; i++)
            if (w->last[i]->kind == DLXI_FRAME_COMMIT && w->round[i] == round)
                commit = &w->last[i]->as.commit;
        for (uint16_t m = 0; m < commit->view.members; m++) {
            uint32_t site = commit->view.member[m].site;
            const dlxi_lease *lease = &leases[site][submissions[site] % OWN];
            assert_int_equal(lease->submission, submissions[site]);
            voided += commit->view.member[m].voided;
            for (uint64_t k = 0; k < commit->view.member[m].tokens / TOKENS_PER_WINDOW; k++) {
                uint64_t at = dlxi_lease_position(lease, k);
                assert_in_range(at, 0, POSITIONS - 1);
                assert_int_equal(counted[at], 0);
                counted[at] = 1;
            }
            submissions[site]++;
        }
        for (uint32_t i = 0; i < SITES; i++) {
            if (w->last[i]->kind != DLXI_FRAME_COMMIT || w->round[i] != round) continue;
            const dlxi_lease *lease = &w->last[i]->as.commit.lease;
            leases[i][lease->submission % OWN] = *lease;
            rounds[i] = round + 1;
        }
        round++;
    }
    assert_true(voided > 0);
    free(counted);
    world_close(w);
}

/* ---- another coordinator --------------------------------------------------------------------- */

static void say_of_life(world *w, dlxi_frame_kind kind, uint32_t term, uint64_t life) {
    if (kind == DLXI_FRAME_PING) w->message->as.ping = (dlxi_ping){.run_id = RUN_ID};
    if (kind == DLXI_FRAME_READY) w->message->as.ready = ready_of(60);
    say_as(w, 0, "", kind,
           (dlxi_frame){.term = term,
                        .coordinator = life,
                        .round = 1,
                        .trip = DLXI_SITE_LINKED | DLXI_SITE_ENTERED});
}

/* Pings of a site say whom it listens to; a single frame may be spoilt. */
static void a_coordinator_whose_run_was_taken_over_ends(void **state) {
    (void)state;
    for (uint32_t term = 1; term <= 2; term++) { /* of the same term with another id, or higher */
        world *w = world_running(1, true);
        for (int i = 0; i < 2; i++) say_of_life(w, DLXI_FRAME_PING, term, LIFE_ID + 1);
        for (int i = 0; i < 5; i++) say_of_life(w, DLXI_FRAME_READY, term, LIFE_ID + 1);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
        ping(w, 0, 1, 0); /* it listens to this one after all */
        for (int i = 0; i < 2; i++) say_of_life(w, DLXI_FRAME_PING, term, LIFE_ID + 1);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
        say_of_life(w, DLXI_FRAME_PING, term, LIFE_ID + 1);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
        dlx_error error;
        char expected[128];
        snprintf(
            expected, sizeof expected,
            "another coordinator has taken over this run (term %u; this one has 1); start that "
            "one, or take the run over with --takeover",
            term);
        assert_int_equal(dlxi_coordinator_result(w->c, &error), DLX_STATE);
        assert_string_equal(error.message, expected);
        world_close(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_silent_site_is_dropped),
        cmocka_unit_test(a_failed_site_is_dropped_at_once),
        cmocka_unit_test(a_site_that_diverged_is_dropped),
        cmocka_unit_test(a_dropped_site_that_speaks_is_told_again),
        cmocka_unit_test(the_run_keeps_its_least_number_of_sites),
        cmocka_unit_test(before_the_others_have_entered_a_loss_ends_the_run),
        cmocka_unit_test(a_silent_site_may_come_back),
        cmocka_unit_test(a_frame_from_before_does_not_bring_a_site_back),
        cmocka_unit_test(all_sites_are_needed_if_the_user_wants_it),
        cmocka_unit_test(a_deaf_site_is_away),
        cmocka_unit_test(a_paused_coordinator_takes_nobody_for_deaf),
        cmocka_unit_test(the_rest_waits_for_a_late_site_as_it_can),
        cmocka_unit_test(a_late_site_is_left_out),
        cmocka_unit_test(who_was_left_out_twice_is_waited_for_longer),
        cmocka_unit_test(who_catches_up_is_answered_at_once),
        cmocka_unit_test(who_lacks_the_last_results_alone_is_waited_for),
        cmocka_unit_test(who_finds_nobody_waits_for_the_others),
        cmocka_unit_test(who_hears_nobody_stops_nobody),
        cmocka_unit_test(of_two_both_are_needed),
        cmocka_unit_test(a_view_continues_the_last_one),
        cmocka_unit_test(what_was_in_limbo_is_void),
        cmocka_unit_test(what_is_stale_is_void),
        cmocka_unit_test(no_window_counts_twice_whoever_is_missing),
        cmocka_unit_test(a_coordinator_whose_run_was_taken_over_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
