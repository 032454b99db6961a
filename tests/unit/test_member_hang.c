/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a site whose process speaks while its training hangs. */
#include "presence_world.h"

/* It pings, and submits nothing: after half of the patience the other one goes on, and does not
 * wait again until it submits. */
static void a_site_that_hangs_does_not_end_the_run(void **state) {
    (void)state;
    world *w = world_running(1, true);
    w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
    say(w, SILENT, DLXI_FRAME_FAILED, 1, 0);
    ready(w, 0, 1, 60);
    wait_pinging(w, SILENT, -1, 1, PATIENCE_MS / 4);
    assert_line(w,
                "round 1 has waited 5 s for 'b': here, and not ready; the rest goes on after 10 s");
    assert_begins_after(w, 1, PATIENCE_MS / 4);
    assert_int_equal(w->last[0]->as.view.members, 1);
    stage(w, 0, 1, 1, 5);
    assert_line(w,
                "site 'b' was left out of round 1: it was not ready after 10.0 s; 1 of 3 went on");
    for (uint64_t round = 2; round < 4; round++) {
        ping(w, 1, 1, 0);
        ready(w, 0, round, 60);
        assert_int_equal(w->round[0], round);
        assert_begun(w, 0, 1, 1);
        stage(w, 0, round, 1, 5);
    }
    for (uint64_t round = 1; round < 4; round++) { /* it goes on after all */
        ping(w, 1, round, 0);
        w->now_ms += 300;
    }
    ready_again(w, 1, 4, 1, 60);
    ready(w, 0, 4, 60);
    assert_begun(w, 0, 1, 2);
    assert_int_equal(w->last[0]->as.view.member[1].tokens, 60);
    world_close(w);
}

/* If fewer are ready than a round needs, it waits on, and terminals say for whom. */
static void who_is_waited_for_is_named(void **state) {
    (void)state;
    for (uint16_t least = 0; least <= 2; least += 2) {
        world *w = world_running(least, true);
        ready(w, 1, 1, 60);
        wait_pinging(w, SITES, -1, 1, PATIENCE_MS);
        assert_line(w, "round 1 has waited 5 s for 'a', 'c': here, and not ready");
        wait_pinging(w, SITES, -1, 1, 2 * PATIENCE_MS);
        assert_line(w, "round 1 has waited 40 s for 'a', 'c': here, and not ready");
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
        assert_int_equal(w->counts[1][DLXI_FRAME_BEGIN], 0);
        ready(w, 0, 1, 60);
        ready(w, 2, 1, 60);
        assert_begun(w, 0, 1, SITES);
        world_close(w);
    }
}

/* The third site pings, and stays in round 1. */
static void wait_hanging(world *w, uint64_t round, int64_t ms) {
    for (int64_t end_ms = w->now_ms + ms; w->now_ms < end_ms;) {
        int64_t step_ms = end_ms - w->now_ms > 500 ? 500 : end_ms - w->now_ms;
        ping(w, SILENT, 1, 0);
        wait_pinging(w, SILENT, -1, round, step_ms);
    }
}

/* A site that pings and does not submit keeps its windows for eight rounds. */
static void windows_of_a_site_that_hangs_go_to_others(void **state) {
    (void)state;
    for (int rounds = 7; rounds <= 8; rounds++) {
        world *w = world_running(1, true);
        uint64_t round = 1;
        for (; round <= (uint64_t)rounds; round++) {
            ready(w, 0, round, 60);
            ready(w, 1, round, 60);
            if (round == 1) assert_begins_after(w, 1, TIMEOUT_MS / 2);
            for (uint32_t i = 0; i < SILENT; i++) stage(w, i, round, 1, round);
        }
        wait_hanging(w, round, LIMBO_MS);
        char line[512];
        int told = 0;
        while (dlxi_coordinator_pop_log(w->c, line, sizeof line))
            told += strcmp(line, "site 'c' is here, and has submitted nothing for 0 s and 8 "
                                 "rounds; its windows go to others") == 0;
        assert_int_equal(told, rounds == 8); /* once */
        ready(w, 0, round, 60);
        ready(w, 1, round, 60);
        for (uint32_t i = 0; i < SILENT; i++) stage(w, i, round, 1, round);
        assert_int_equal(w->last[0]->as.commit.lease.ranges[0].first == 12, rounds == 8);
        for (uint64_t k = 1; k <= round + 1; k++) { /* it goes on after all */
            ping(w, SILENT, k, 0);
            w->now_ms += 300;
        }
        round++;
        for (uint64_t submission = 1; submission <= 3; submission++, round++) {
            ready(w, 0, round, 60);
            ready(w, 1, round, 60);
            w->message->as.ready = ready_of(60);
            w->message->as.ready.submission = submission;
            w->message->as.ready.base_round = round;
            say(w, SILENT, DLXI_FRAME_READY, round, 0);
            assert_begun(w, 0, 1, SITES);
            bool voided = rounds == 8 && submission < 3;
            assert_int_equal(w->last[0]->as.view.member[SILENT].voided, voided);
            assert_int_equal(w->last[0]->as.view.member[SILENT].tokens, voided ? 0 : 60);
            for (uint32_t i = 0; i < SITES; i++) stage(w, i, round, 1, round);
        }
        world_close(w);
    }
}

/* A repeated ping is answered with what was begun. */
static void assert_begun_again(world *w, uint32_t peer, uint32_t attempt, uint16_t members) {
    w->now_ms += 300;
    ping(w, peer, 1, attempt - 1);
    assert_begun(w, peer, attempt, members);
}

/* Of a pair that is kept apart one is in the attempt, and hangs: the other one can be instead. */
static void who_is_alone_in_an_attempt_and_hangs_is_left_out(void **state) {
    (void)state;
    world *w = world_running(1, true);
    w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
    say(w, SILENT, DLXI_FRAME_FAILED, 1, 0);
    ready(w, 0, 1, 60);
    ready(w, 1, 1, 60);
    assert_begun(w, 0, 1, 2);
    w->message->as.reason = (dlxi_reason){.status = DLX_TIMEOUT, .about = 0, .text = "no data"};
    say(w, 1, DLXI_FRAME_ABORT, 1, 1);
    assert_begun(w, 0, 2, 1);
    wait_pinging(w, 2, -1, 1, PATIENCE_MS / 2 - 1);
    assert_int_equal(w->counts[1][DLXI_FRAME_BEGIN], 1);
    wait_pinging(w, 2, -1, 1, 1);
    assert_int_equal(w->counts[1][DLXI_FRAME_BEGIN], 2);
    assert_int_equal(w->view[1].members, 1);
    stage(w, 1, 1, 3, 5);
    assert_int_equal(w->last[1]->kind, DLXI_FRAME_COMMIT);
    world_close(w);
}

/* It keeps its own state from its exchange thread: the others have staged, and nobody misses data
 * of it. */
static void a_member_that_hangs_is_left_out_of_the_round(void **state) {
    (void)state;
    enum { EXCHANGE_MS = 500 };
    world *w = world_running(1, true);
    ready_all(w, 1);
    wait_pinging(w, SITES, -1, 1, EXCHANGE_MS);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 1, 5);
    int64_t limit_ms = PATIENCE_MS / 2 + 4 * EXCHANGE_MS;
    wait_pinging(w, SITES, -1, 1, limit_ms - 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_ABORT], 0);
    wait_pinging(w, SITES, -1, 1, 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_ABORT], 1);
    assert_line(w, "site 'c' has not finished the exchange for 12 s after others; trying again");
    for (uint32_t i = 0; i < SILENT; i++) assert_begun_again(w, i, 2, 2);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 2, 5);
    assert_line(w,
                "site 'c' was left out of round 1: it did not finish the exchange; 2 of 3 went on");
    assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_COMMIT);
    for (uint32_t i = 0; i < SILENT; i++) ready(w, i, 2, 60);
    ready_again(w, SILENT, 2, 1, 60); /* it goes on after all */
    for (uint32_t i = 0; i < SITES; i++) assert_begun(w, i, 1, SITES);
    world_close(w);
}

/* The patience of a round that has failed before counts from when the member was left out. */
static void a_member_that_hangs_does_not_use_up_the_patience(void **state) {
    (void)state;
    world *w = world_running(1, true);
    ready_all(w, 1);
    w->message->as.reason =
        (dlxi_reason){.status = DLX_PEER_LOST, .about = 1, .text = "frames were lost"};
    say(w, 0, DLXI_FRAME_ABORT, 1, 1);
    wait_pinging(w, SITES, -1, 1, 3 * PATIENCE_MS / 4);
    for (uint32_t i = 0; i < SITES; i++) assert_begun_again(w, i, 2, SITES);
    for (uint32_t i = 0; i < SILENT; i++) stage(w, i, 1, 2, 5);
    for (int64_t end_ms = w->now_ms + 6 * PATIENCE_MS; w->attempt[0] < 3 && w->now_ms < end_ms;)
        wait_pinging(w, SITES, -1, 1, 100);
    for (uint32_t i = 0; i < SILENT; i++) assert_begun_again(w, i, 3, 2);
    wait_pinging(w, SITES, -1, 1, PATIENCE_MS - 2000);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    wait_pinging(w, SITES, -1, 1, 2000);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    world_close(w);
}

static world *world_to_end(uint16_t sites_min) {
    world *w = world_running_to(SITES * 60, sites_min, true);
    ready_all(w, 1);
    for (uint32_t i = 0; i < SITES; i++) stage(w, i, 1, 1, 5);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
    return w;
}

/* The others have reported; it gets several times as long as they took. */
static void a_site_that_hangs_at_the_end_is_lost(void **state) {
    (void)state;
    for (uint16_t least = 0; least < 2; least++) {
        world *w = world_to_end(least);
        wait_pinging(w, SITES, -1, 2, PATIENCE_MS); /* nobody knows how long it may take */
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
        for (uint32_t i = 0; i < SILENT; i++) report(w, i, 2, "done");
        int64_t limit_ms = PATIENCE_MS + 4 * PATIENCE_MS;
        wait_pinging(w, SITES, -1, 2, limit_ms - 1000);
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
        wait_pinging(w, SITES, -1, 2, 2000);
        if (least == 0) { /* all are needed */
            assert_int_equal(w->counts[SILENT][DLXI_FRAME_STOP], 0);
            world_close(w);
            continue;
        }
        assert_true(w->counts[SILENT][DLXI_FRAME_STOP] > 0);
        report(w, 0, 2, "done"); /* with the part of the lost one */
        for (uint32_t i = 0; i < SILENT; i++)
            assert_int_equal(w->counts[i][DLXI_FRAME_FINISHED], 1);
        world_close(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_site_that_hangs_does_not_end_the_run),
        cmocka_unit_test(who_is_waited_for_is_named),
        cmocka_unit_test(windows_of_a_site_that_hangs_go_to_others),
        cmocka_unit_test(who_is_alone_in_an_attempt_and_hangs_is_left_out),
        cmocka_unit_test(a_member_that_hangs_is_left_out_of_the_round),
        cmocka_unit_test(a_member_that_hangs_does_not_use_up_the_patience),
        cmocka_unit_test(a_site_that_hangs_at_the_end_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
