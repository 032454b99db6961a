/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a coordinator that goes on without a site. */
#include "member_world.h"

#include <math.h>

enum { SITES = 3, SILENT = 2 };

/* Three sites whose first round begins once all are ready. */
static world *world_running(uint16_t sites_min) {
    world *w = world_open(SITES, 100000, NULL);
    w->settings.sites_min = sites_min;
    dlxi_coordinator_close(&w->c);
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    static const char *const names[SITES] = {"a", "b", "c"};
    for (uint32_t i = 0; i < SITES; i++) join(w, i, names[i]);
    listen_all(w, SITES);
    return w;
}

static void ready_all(world *w, uint64_t round) {
    for (uint32_t i = 0; i < SITES; i++) ready(w, i, round, 60);
}

static void assert_begun(const world *w, uint32_t peer, uint32_t attempt, uint16_t members) {
    assert_int_equal(w->last[peer]->kind, DLXI_FRAME_BEGIN);
    assert_int_equal(w->attempt[peer], attempt);
    assert_int_equal(w->last[peer]->as.view.members, members);
}

static void assert_range(const dlxi_lease *lease, uint64_t first, uint32_t count) {
    assert_int_equal(lease->range_count, 1);
    assert_int_equal(lease->ranges[0].first, first);
    assert_int_equal(lease->ranges[0].count, count);
}

static const char silence[] = "no message from site 'c' for 5500 ms (wan.timeout_s)";

/* In the middle of an attempt: it is begun again with the rest, and the site's windows are free. */
static void a_silent_site_is_dropped(void **state) {
    (void)state;
    world *w = world_running(1);
    ready_all(w, 1);
    for (uint32_t i = 0; i < SITES; i++) assert_begun(w, i, 1, SITES);
    stage(w, 0, 1, 1, 5);
    wait_pinging(w, SITES, SILENT, 1, 5500);
    assert_int_equal(w->last[SILENT]->kind, DLXI_FRAME_STOP);
    assert_string_equal(w->last[SILENT]->as.reason.text, silence);
    w->now_ms += 300;
    for (uint32_t i = 0; i < SILENT; i++) {
        assert_int_equal(w->counts[i][DLXI_FRAME_ABORT], 1);
        say(w, i, DLXI_FRAME_PING, 1, 1); /* the answer is what was begun, once more */
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
    world *w = world_running(1);
    ready_all(w, 1);
    for (uint32_t i = 0; i < SITES; i++) stage(w, i, 1, 1, 5);
    ready(w, 1, 2, 60);
    ready(w, 2, 2, 60);
    w->message->as.reason = (dlxi_reason){.status = DLX_NUMERIC, .text = "a loss of nan"};
    say(w, 0, DLXI_FRAME_FAILED, 2, 0);
    assert_int_equal(w->last[0]->kind, DLXI_FRAME_STOP);
    for (uint32_t i = 1; i < SITES; i++) {
        assert_int_equal(w->counts[i][DLXI_FRAME_ABORT], 1);
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
    world *w = world_running(1);
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
    world *w = world_running(1);
    ready_all(w, 1);
    wait_pinging(w, SITES, SILENT, 1, 5500);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_STOP], 1);
    w->now_ms += 1000;
    for (int i = 0; i < 3; i++) say(w, SILENT, DLXI_FRAME_PING, 1, 1);
    assert_int_equal(w->counts[SILENT][DLXI_FRAME_STOP], 2);
    stage(w, SILENT, 1, 2, 5); /* counts for nothing */
    stage(w, 0, 1, 2, 5);
    assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 0);
    hello_of(w, "c");
    say_as(w, SILENT + 1, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_string_equal(w->last[SILENT + 1]->as.reason.text,
                        "the run has begun with 3 sites; start a new run");
    world_close(w);
}

/* Down to the last one, which goes on by itself; the next loss ends the run. */
static void the_run_keeps_its_least_number_of_sites(void **state) {
    (void)state;
    world *w = world_running(2);
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

    w = world_running(1);
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
static void before_the_others_are_ready_for_the_first_time_a_loss_ends_the_run(void **state) {
    (void)state;
    for (uint32_t others = 1; others < SITES; others++) {
        world *w = world_running(1);
        for (uint32_t i = 0; i < others; i++) ready(w, i, 1, 60);
        w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
        say(w, SILENT, DLXI_FRAME_FAILED, 1, 0);
        bool ended = dlxi_coordinator_phase_of(w->c) == DLXI_COORDINATOR_DONE;
        assert_int_equal(ended, others < SITES - 1);
        if (!ended) assert_begun(w, 0, 1, 2);
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
        cmocka_unit_test(before_the_others_are_ready_for_the_first_time_a_loss_ends_the_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
