/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: pairs of sites between which nothing moves are kept apart, and tried again. */
#include "member_world.h"

enum { SITES = 4, ALL = 15, WORKS_MS = 10000 };

static world *world_running(uint16_t sites_min) {
    world *w = world_open(SITES, 100000, NULL);
    w->settings.sites_min = sites_min;
    w->keeps = true;
    dlxi_coordinator_close(&w->c);
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    static const char *const names[SITES] = {"a", "b", "c", "d"};
    for (uint32_t i = 0; i < SITES; i++) join(w, i, names[i]);
    listen_all(w, SITES);
    w->links = true;
    for (uint32_t i = 0; i < SITES; i++) ping(w, i, 1, 0);
    return w;
}

static void abort_about(world *w, uint32_t peer, dlx_status status, uint16_t about) {
    w->message->as.reason = (dlxi_reason){.status = (uint16_t)status, .about = about, .text = "t"};
    say(w, peer, DLXI_FRAME_ABORT, w->round[peer], w->attempt[peer]);
    w->now_ms += 300; /* later attempts of a round begin after a moment */
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    drain(w);
}

static void ready_all(world *w, uint64_t round, const uint64_t submissions[SITES]) {
    for (uint32_t i = 0; i < SITES; i++) ready_again(w, i, round, submissions[i], 60);
}

/* Who is in the attempt that is under way, of which `one` is a member. */
static uint32_t members_of(const world *w, uint32_t one) {
    uint32_t mask = 0;
    const dlxi_view *view = &w->view[one];
    assert_true(w->attempt[one] > 0 && w->view_round[one] == dlxi_coordinator_round(w->c));
    for (uint16_t i = 0; i < view->members; i++) mask |= 1u << view->member[i].site;
    return mask;
}

static void stage_all(world *w, uint64_t round, uint32_t mask, uint32_t one) {
    uint32_t attempt = w->attempt[one];
    for (uint32_t i = 0; i < SITES; i++)
        if ((mask >> i & 1u) != 0) stage(w, i, round, attempt, round);
    for (uint32_t i = 0; i < SITES; i++) assert_int_equal(w->last[i]->kind, DLXI_FRAME_COMMIT);
}

/* Pings of `peers`, each saying which sites it exchanges frames with, for so long. */
static void wait_reaching(world *w, uint64_t round, const uint64_t reach[SITES], int64_t ms) {
    for (int64_t end_ms = w->now_ms + ms;;) {
        for (uint32_t i = 0; i < SITES; i++) {
            w->message->as.ping =
                (dlxi_ping){.run_id = RUN_ID, .stamp = w->now_ms, .sites = reach[i]};
            say(w, i, DLXI_FRAME_PING, round, 0);
        }
        dlxi_coordinator_on_tick(w->c, w->now_ms);
        drain(w);
        if (w->now_ms == end_ms) return;
        w->now_ms = end_ms - w->now_ms > 500 ? w->now_ms + 500 : end_ms;
    }
}

static void of_a_blocked_pair_one_is_left_out(void **state) {
    (void)state;
    world *w = world_running(1); /* all else equal: the later one */
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_about(w, 0, DLX_TIMEOUT, 1);
    assert_int_equal(members_of(w, 0), 1 | 4 | 8);
    assert_int_equal(w->last[1]->kind, DLXI_FRAME_PING);
    assert_true(w->last[1]->as.ping.sites == 1); /* it is to try the way to "a" */
    stage_all(w, 1, 1 | 4 | 8, 0);
    /* once out, it stays out, though the other has less to give: they don't take turns */
    for (uint32_t i = 0; i < SITES; i++) ready_again(w, i, 2, i == 1 ? 1 : 2, i == 0 ? 10 : 60);
    assert_int_equal(members_of(w, 0), 1 | 4 | 8);
    world_close(w);

    w = world_running(1); /* who has less to give */
    for (uint32_t i = 0; i < SITES; i++) ready(w, i, 1, i == 0 ? 10 : 60);
    abort_about(w, 0, DLX_TIMEOUT, 1);
    assert_int_equal(members_of(w, 1), 2 | 4 | 8);
    world_close(w);

    w = world_running(1); /* who is in most of them */
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_about(w, 1, DLX_TIMEOUT, 0);
    assert_int_equal(members_of(w, 0), 1 | 4 | 8);
    abort_about(w, 2, DLX_TIMEOUT, 0);
    assert_int_equal(members_of(w, 1), 2 | 4 | 8);
    stage_all(w, 1, 2 | 4 | 8, 1);
    world_close(w);
}

static void what_is_no_pair_blocks_nobody(void **state) {
    (void)state;
    static const uint16_t about[] = {0, SITES, DLXI_SITE_NONE};
    for (size_t i = 0; i < 4; i++) {
        world *w = world_running(i < 3 ? 1 : 0); /* nor where all are needed */
        ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
        abort_about(w, 0, DLX_TIMEOUT, i < 3 ? about[i] : 1);
        assert_int_equal(w->attempt[0], 2);
        assert_int_equal(members_of(w, 0), ALL);
        world_close(w);
    }
    world *w = world_running(1);
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_about(w, 0, DLX_ABORTED, 1);
    assert_int_equal(members_of(w, 0), ALL);
    world_close(w);
}

/* Free after both have said for 10 s that frames pass; 20 s if it fails again. */
static void a_pair_that_works_again_is_free(void **state) {
    (void)state;
    static const uint64_t both[SITES] = {2, 1}, one[SITES] = {2, 0};
    world *w = world_running(1);
    uint64_t submissions[SITES] = {1, 1, 1, 1};
    uint64_t round = 1;
    for (int64_t ms = WORKS_MS; ms <= 2 * WORKS_MS; ms += WORKS_MS) {
        ready_all(w, round, submissions);
        assert_int_equal(members_of(w, 0), ALL);
        abort_about(w, 0, DLX_TIMEOUT, 1);
        assert_int_equal(members_of(w, 0), 1 | 4 | 8);
        stage_all(w, round++, 1 | 4 | 8, 0);
        submissions[0]++, submissions[2]++, submissions[3]++;
        wait_reaching(w, round, one, 2 * ms); /* one of them does not say so */
        wait_reaching(w, round, both, ms - 500);
        wait_reaching(w, round, one, 500); /* it fails in between */
        w->now_ms += 100;
        wait_reaching(w, round, both, ms - 100);
        ready_all(w, round, submissions);
        assert_int_equal(members_of(w, 0), 1 | 4 | 8);
        stage_all(w, round++, 1 | 4 | 8, 0);
        submissions[0]++, submissions[2]++, submissions[3]++;
        w->now_ms += 100;
        wait_reaching(w, round, both, 0);
        char line[512] = "";
        bool told = false;
        while (dlxi_coordinator_pop_log(w->c, line, sizeof line))
            told = told || strcmp(line, "sites 'a' and 'b' reach each other again") == 0 ||
                   strcmp(line, "sites 'b' and 'a' reach each other again") == 0;
        assert_true(told);
        ready_all(w, round, submissions);
        assert_int_equal(members_of(w, 0), ALL);
        stage_all(w, round++, ALL, 0);
        for (int i = 0; i < SITES; i++) submissions[i]++;
    }
    world_close(w);
}

/* A malformed frame costs an attempt; a pair that keeps sending them is kept apart. */
static void a_pair_that_keeps_sending_malformed_frames_is_blocked(void **state) {
    (void)state;
    world *w = world_running(1);
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_about(w, 0, DLX_DATA, 1);
    abort_about(w, 1, DLX_DATA, 0);
    abort_about(w, 0, DLX_DATA, 2); /* another pair */
    assert_int_equal(members_of(w, 0), ALL);
    stage_all(w, 1, ALL, 0);
    ready_all(w, 2, (uint64_t[]){2, 2, 2, 2}); /* a commit of both forgets them */
    abort_about(w, 0, DLX_DATA, 1);
    abort_about(w, 1, DLX_DATA, 0);
    assert_int_equal(members_of(w, 0), ALL);
    abort_about(w, 0, DLX_DATA, 1);
    assert_int_equal(members_of(w, 0), 1 | 4 | 8);
    world_close(w);
}

static void abort_saying(world *w, uint32_t peer, dlx_status status, uint16_t about,
                         const char *text) {
    w->message->as.reason = (dlxi_reason){.status = (uint16_t)status, .about = about};
    dlxi_text_copy(w->message->as.reason.text, sizeof w->message->as.reason.text, text);
    say(w, peer, DLXI_FRAME_ABORT, w->round[peer], w->attempt[peer]);
    w->now_ms += 300;
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    drain(w);
}

static void assert_left_out(world *w, const char *why) {
    char line[512], expected[512];
    bool told = false;
    snprintf(expected, sizeof expected, "site 'b' was left out of round %llu: %s; 3 of 4 went on",
             (unsigned long long)w->round[0], why);
    while (dlxi_coordinator_pop_log(w->c, line, sizeof line))
        told = told || strcmp(line, expected) == 0;
    if (!told) fail_msg("no line '%s'", expected);
}

/* With the pair, the address that was tried, and for how long nothing has moved. */
static void who_is_left_out_is_told_with_its_pair(void **state) {
    (void)state;
    static const uint64_t both[SITES] = {2, 1};
    static const char nothing[] =
        "no data from site 'b' to site 'a' (10.1.2.3:4993) for 12 s: check "
        "wan.listen and the firewall";
    world *w = world_running(1);
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_saying(w, 0, DLX_TIMEOUT, 1, nothing);
    w->now_ms += 3000;
    stage_all(w, 1, 1 | 4 | 8, 0);
    assert_left_out(w, "no data from site 'b' to site 'a' (10.1.2.3:4993) for 15 s");
    world_close(w);

    w = world_running(1);
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_saying(w, 0, DLX_TIMEOUT, 1, nothing);
    stage_all(w, 1, 1 | 4 | 8, 0);
    wait_reaching(w, 2, both, 4000);
    for (uint32_t i = 0; i < SITES; i++) ready_again(w, i, 2, i == 1 ? 1 : 2, 60);
    stage_all(w, 2, 1 | 4 | 8, 0);
    char line[512];
    int lines = 0;
    while (dlxi_coordinator_pop_log(w->c, line, sizeof line))
        lines += strstr(line, "was left out") != NULL;
    assert_int_equal(lines, 1); /* of several rounds in a row the first */
    world_close(w);

    w = world_running(1); /* frames that are malformed again and again have no duration */
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    for (int i = 0; i < 3; i++)
        abort_saying(w, 0, DLX_DATA, 1, "a frame from site 'b' is malformed");
    stage_all(w, 1, 1 | 4 | 8, 0);
    assert_left_out(w, "a frame from site 'b' is malformed");
    world_close(w);

    /* a peer's text may be anything */
    static const char *const odd[] = {"", " for ", "x for -3 s", "x for 99999999999999999999 s"};
    static const char *const shown[] = {"it does not reach 'a'", "it does not reach 'a'", "x", "x"};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        w = world_running(1);
        ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
        abort_saying(w, 0, DLX_TIMEOUT, 1, odd[i]);
        stage_all(w, 1, 1 | 4 | 8, 0);
        assert_left_out(w, shown[i]);
        world_close(w);
    }

    w = world_running(1); /* it works again before the round commits */
    ready_all(w, 1, (uint64_t[]){1, 1, 1, 1});
    abort_saying(w, 0, DLX_TIMEOUT, 1, nothing);
    wait_reaching(w, 1, both, 4000);
    stage_all(w, 1, 1 | 4 | 8, 0);
    assert_left_out(w, "it has reached 'a' again for 4 s, of 10 s");
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_a_blocked_pair_one_is_left_out),
        cmocka_unit_test(what_is_no_pair_blocks_nobody),
        cmocka_unit_test(a_pair_that_works_again_is_free),
        cmocka_unit_test(a_pair_that_keeps_sending_malformed_frames_is_blocked),
        cmocka_unit_test(who_is_left_out_is_told_with_its_pair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
