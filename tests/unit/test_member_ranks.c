/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator and sites of several ranks: they gather, are refused, commit, and end together.
 */
#include "member_world.h"

#include "member/lease.h"

/* 2 sites × 3 ranks: peer r of the first is rank r of "a", peer 3 + r rank r of "b". */
enum { RANKS = 3, BOTH = 2 * RANKS };

static dlxi_hello *hello_of_rank(world *w, const char *name, uint16_t rank, uint16_t ranks) {
    dlxi_hello *h = hello_of(w, name);
    h->rank = rank;
    h->ranks = ranks;
    h->tensors_hash = 100 + rank;
    h->anchor_hash = 200 + rank;
    return h;
}

static void join_rank(world *w, uint32_t peer, const char *name, uint16_t rank, uint16_t ranks) {
    hello_of_rank(w, name, rank, ranks);
    say_as(w, peer, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
}

static void listen_as(world *w, uint32_t peer) {
    dlxi_endpoints *e = &w->message->as.endpoints;
    *e = (dlxi_endpoints){.sites = 2};
    for (uint16_t i = 0; i < 2; i++)
        snprintf(e->endpoint[i], sizeof e->endpoint[i], "peer %u for site %u", peer, i);
    say(w, peer, DLXI_FRAME_LISTENING, 1, 0);
}

static void assert_same_lease(const dlxi_lease *a, const dlxi_lease *b) {
    assert_int_equal(a->submission, b->submission);
    assert_int_equal(dlxi_lease_windows(a), dlxi_lease_windows(b));
    for (uint64_t i = 0; i < dlxi_lease_windows(a); i++)
        assert_int_equal(dlxi_lease_position(a, i), dlxi_lease_position(b, i));
}

static world *ranks_open(uint64_t tokens_target) {
    world *w = world_open(2, tokens_target, NULL);
    for (uint32_t peer = 0; peer < BOTH; peer++)
        join_rank(w, peer, peer < RANKS ? "a" : "b", (uint16_t)(peer % RANKS), RANKS);
    for (uint32_t peer = 0; peer < BOTH; peer++) listen_as(w, peer);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    return w;
}

static void ready_all(world *w, uint64_t round) {
    for (uint32_t peer = 0; peer < BOTH; peer++) ready(w, peer, round, peer < RANKS ? 50 : 30);
}

static void sites_gather_rank_by_rank(void **state) {
    (void)state;
    static const uint32_t orders[][BOTH] = {
        {0, 1, 2, 3, 4, 5}, {5, 0, 4, 1, 3, 2}, {2, 5, 1, 4, 0, 3}};
    for (size_t order = 0; order < 3; order++) {
        world *w = world_open(2, 1000, NULL);
        for (int i = 0; i < BOTH; i++) {
            uint32_t peer = orders[order][i];
            hello_of_rank(w, peer < RANKS ? "a" : "b", (uint16_t)(peer % RANKS), RANKS);
            /* rank 1 of "b" starts elsewhere */
            if (peer == 4) w->message->as.hello.anchor_hash = 7;
            assert_int_equal(w->counts[0][DLXI_FRAME_WELCOME], 0);
            say_as(w, peer, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        }
        for (uint32_t peer = 0; peer < BOTH; peer++) {
            const dlxi_welcome *welcome = &w->last[peer]->as.welcome;
            assert_int_equal(w->counts[peer][DLXI_FRAME_WELCOME], 1);
            assert_int_equal(welcome->site, peer / RANKS);
            assert_int_equal(welcome->sites, 2);
            assert_false(welcome->members[0].needs_anchor);
            assert_int_equal(welcome->members[1].needs_anchor, peer % RANKS == 1);
            /* all ranks of a site have its lease */
            for (int k = 0; k < 2; k++)
                assert_same_lease(&welcome->leases[k],
                                  &w->last[peer / RANKS * RANKS]->as.welcome.leases[k]);
            assert_int_equal(dlxi_lease_windows(&welcome->leases[0]), 6);
            assert_int_equal(welcome->leases[0].ranges[0].first, peer / RANKS * 6);
        }
        for (uint32_t peer = 0; peer < BOTH; peer++) {
            assert_int_equal(w->counts[0][DLXI_FRAME_PEERS], 0);
            listen_as(w, peer);
        }
        for (uint32_t to = 0; to < BOTH; to++) /* rank r hears where the ranks r wait for it */
            for (uint16_t site = 0; site < 2; site++) {
                char expected[DLXI_ENDPOINT_MAX + 1];
                snprintf(expected, sizeof expected, "peer %u for site %u",
                         site * RANKS + to % RANKS, to / RANKS);
                assert_string_equal(w->last[to]->as.endpoints.endpoint[site], expected);
            }
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
        world_close(w);
    }
}

/* "a" is there with both its ranks, and "b" with its rank 0; then comes what does not fit. All of
 * "b" is refused, once each, and its place is free. */
static void a_site_is_refused_with_all_its_ranks(void **state) {
    (void)state;
    static const struct {
        const char *what, *text;
        uint16_t rank, ranks;
    } cases[] = {
        {"", "site 'b' has a rank 0 already; start each once, or give --site another name", 0, 2},
        {"",
         "site 'b' has 3 ranks by its rank 1 and 2 by another; start all ranks of a site together",
         1, 3},
        {"", "site 'b' has a rank 2; of 2 ranks, allowed: 0 to 1", 2, 2},
        {"", "site 'b' has 0 ranks; allowed: 1 to 1024", 0, 0},
        {"", "site 'b' has 1025 ranks; allowed: 1 to 1024", 1024, 1025},
        {"text", "site.stages: '2' on site 'b', '1' on site 'a'; all sites must use the same value",
         1, 2},
        {"tensors",
         "site 'b' (rank 1) has other tensors (names, shapes) or settings (overlap, inner steps, "
         "outer step, "
         "compression, adaptation, seed) than 'a'; all sites must have the same",
         1, 2},
        {"windows",
         "data.train: site 'b' (rank 1) has 999 windows (hash 000000000000000d), 'a' has 1000 "
         "(000000000000000d); "
         "all sites need the same tokens",
         1, 2},
        {"lease",
         "site 'b' (rank 1) asks for 7 windows per round, another rank for 6; all ranks must ask "
         "for the same",
         1, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        world *w = world_open(2, 1000, NULL);
        char notice[512];
        for (uint16_t r = 0; r < 3; r++) {
            hello_of_rank(w, r < 2 ? "a" : "b", r % 2, 2);
            dlxi_text_copy(w->message->as.hello.shared_text, DLXI_TEXT_MAX, "site.stages: 1\n");
            say_as(w, r, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        }
        while (dlxi_coordinator_pop_log(w->c, notice, sizeof notice)) {}
        dlxi_hello *h = hello_of_rank(w, "b", cases[i].rank, cases[i].ranks);
        bool other_text = strcmp(cases[i].what, "text") == 0;
        dlxi_text_copy(h->shared_text, DLXI_TEXT_MAX,
                       other_text ? "site.stages: 2\n" : "site.stages: 1\n");
        if (strcmp(cases[i].what, "tensors") == 0) h->tensors_hash = 1;
        if (strcmp(cases[i].what, "windows") == 0) h->windows = 999;
        if (strcmp(cases[i].what, "lease") == 0) h->lease_windows = 7;
        say_as(w, 3, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        for (uint32_t peer = 2; peer < 4; peer++) {
            assert_int_equal(w->counts[peer][DLXI_FRAME_STOP], 1);
            assert_int_equal(w->last[peer]->as.reason.status, DLX_REFUSED);
            assert_string_equal(w->last[peer]->as.reason.text, cases[i].text);
        }
        assert_int_equal(w->counts[0][DLXI_FRAME_STOP] + w->counts[1][DLXI_FRAME_STOP], 0);
        assert_true(dlxi_coordinator_pop_log(w->c, notice, sizeof notice));
        assert_non_null(strstr(notice, cases[i].text));
        for (uint16_t r = 0; r < 2; r++) {
            hello_of_rank(w, "c", r, 2);
            dlxi_text_copy(w->message->as.hello.shared_text, DLXI_TEXT_MAX, "site.stages: 1\n");
            say_as(w, 4u + r, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
        }
        assert_int_equal(w->counts[5][DLXI_FRAME_WELCOME], 1);
        world_close(w);
    }
}

/* The other ranks of a refused site come later: they are told the same, and take no place. Who
 * comes again is of another try. */
static void late_ranks_of_a_refused_site_are_told(void **state) {
    (void)state;
    static const char text[] = "site 'b' has 3 ranks, 'a' has 2; all sites must have the same";
    world *w = world_open(2, 1000, NULL);
    char notice[512];
    for (uint16_t r = 0; r < 2; r++) join_rank(w, r, "a", r, 2);
    while (dlxi_coordinator_pop_log(w->c, notice, sizeof notice)) {}
    join_rank(w, 2, "b", 0, 3);
    assert_string_equal(w->last[2]->as.reason.text, text);
    assert_true(dlxi_coordinator_pop_log(w->c, notice, sizeof notice));
    join_rank(w, 3, "b", 2, 3);
    assert_int_equal(w->last[3]->kind, DLXI_FRAME_STOP);
    assert_string_equal(w->last[3]->as.reason.text, text);
    assert_false(dlxi_coordinator_pop_log(w->c, notice, sizeof notice)); /* said once */
    /* rank 0 had been told, rank 1 had not */
    for (uint16_t r = 0; r < 2; r++) join_rank(w, 4u + r, "b", r, 2);
    assert_int_equal(w->counts[4][DLXI_FRAME_WELCOME], 1);
    assert_int_equal(w->counts[5][DLXI_FRAME_WELCOME], 1);
    world_close(w);

    w = world_open(2, 1000, NULL); /* and it is forgotten after the timeout */
    for (uint16_t r = 0; r < 2; r++) join_rank(w, r, "a", r, 2);
    join_rank(w, 2, "b", 0, 3);
    w->now_ms += TIMEOUT_MS;
    for (uint16_t r = 0; r < 2; r++) join_rank(w, 4u + r, "b", 1 - r, 2);
    assert_int_equal(w->counts[5][DLXI_FRAME_WELCOME], 1);
    world_close(w);
}

/* What a stranger says in its name does a site no harm, nor what comes too late. */
static void refusals_that_touch_no_site(void **state) {
    (void)state;
    world *w = world_open(2, 1000, NULL);
    join_rank(w, 0, "a", 0, 2);
    hello_of_rank(w, "a", 0, 2);
    say_as(w, 1, "mallory", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_string_equal(w->last[1]->as.reason.text,
                        "site 'a' uses the key of 'mallory'; set --site or wan.key");
    join_rank(w, 2, "a", 1, 2);
    join_rank(w, 3, "a", 1, 2);
    assert_string_equal(w->last[3]->as.reason.text,
                        "a site named 'a' has joined already; give --site another name, or, if "
                        "that one ended, wait "
                        "for wan.timeout_s");
    join_rank(w, 4, "b", 0, 2);
    join_rank(w, 5, "c", 0, 2);
    assert_string_equal(
        w->last[5]->as.reason.text,
        "2 sites are joining, as many as the run has; start the coordinator with more");
    assert_int_equal(w->counts[0][DLXI_FRAME_STOP] + w->counts[2][DLXI_FRAME_STOP] +
                         w->counts[4][DLXI_FRAME_STOP],
                     0);
    join_rank(w, 6, "b", 1, 2);
    assert_int_equal(w->counts[0][DLXI_FRAME_WELCOME], 1);
    world_close(w);
}

static void a_run_holds_so_many_ranks(void **state) {
    (void)state;
    world *w = world_open(5, 1000, NULL);
    join_rank(w, 0, "a", 0, 820);
    assert_string_equal(w->last[0]->as.reason.text,
                        "site 'a' has 820 ranks; allowed with 5 sites: 1 to 819");
    join_rank(w, 1, "b", 818, 819);
    assert_int_equal(w->counts[1][DLXI_FRAME_STOP], 0);
    world_close(w);
}

static void ranks_may_have_other_settings_than_their_site(void **state) {
    (void)state;
    world *w = world_open(1, 1000, NULL);
    join_rank(w, 0, "a", 0, 2);
    dlxi_text_copy(hello_of_rank(w, "a", 1, 2)->shared_text, DLXI_TEXT_MAX,
                   "model.width: 65\nsync.bits: 4\n");
    say_as(w, 1, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_string_equal(w->last[0]->as.reason.text,
                        "model.width: '65' on rank 1 of site 'a', '64' on another; all ranks must "
                        "use the same value");
    world_close(w);
}

static void a_round_commits_with_all_ranks_or_not(void **state) {
    (void)state;
    world *w = ranks_open(1000);
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], 0);
        w->message->as.ready = ready_of(peer < RANKS ? 50 : 30);
        w->message->as.ready.anchor_hash = 300 + peer % RANKS;
        w->message->as.ready.step_ns = 10 + peer;
        w->message->as.ready.exchange_ns = 20 + peer;
        w->message->as.ready.exchange_bytes = 30 + peer;
        say(w, peer, DLXI_FRAME_READY, 1, 0);
    }
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        const dlxi_view *view = &w->last[peer]->as.view;
        assert_int_equal(w->counts[peer][DLXI_FRAME_BEGIN], 1);
        assert_int_equal(view->members, 2);
        for (uint32_t i = 0; i < 2; i++) {
            assert_int_equal(view->member[i].tokens, i == 0 ? 50 : 30);
            assert_int_equal(view->member[i].step_ns, 10 + i * RANKS + 2); /* the slowest rank's */
            assert_int_equal(view->member[i].exchange_ns, 20 + i * RANKS + peer % RANKS);
            assert_int_equal(view->member[i].exchange_bytes, 30 + i * RANKS + peer % RANKS);
        }
    }
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        assert_int_equal(w->counts[0][DLXI_FRAME_COMMIT], 0);
        /* ranks have results of their own */
        stage(w, peer, 1, 1, 400 + peer % RANKS);
        if (peer == 2) stage(w, peer, 1, 1, 400 + peer % RANKS); /* twice counts once */
    }
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        assert_int_equal(w->counts[peer][DLXI_FRAME_COMMIT], 1);
        assert_int_equal(w->last[peer]->as.commit.committed_tokens, 80);
        assert_same_lease(&w->last[peer]->as.commit.lease,
                          &w->last[peer / RANKS * RANKS]->as.commit.lease);
    }
    world_close(w);
}

static void one_rank_that_differs_aborts_the_attempt(void **state) {
    (void)state;
    world *w = ranks_open(1000);
    ready_all(w, 1);
    for (uint32_t peer = 0; peer < BOTH; peer++) stage(w, peer, 1, 1, peer == 4 ? 9 : 8);
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        assert_int_equal(w->counts[peer][DLXI_FRAME_ABORT], 1);
        assert_int_equal(w->counts[peer][DLXI_FRAME_BEGIN], 2);
        assert_int_equal(w->counts[peer][DLXI_FRAME_COMMIT], 0);
    }
    for (uint32_t peer = 0; peer < BOTH; peer++) stage(w, peer, 1, 2, 8);
    assert_int_equal(w->counts[5][DLXI_FRAME_COMMIT], 1);
    /* and one rank that gives up takes all back */
    ready_all(w, 2);
    for (uint32_t peer = 0; peer < BOTH - 1; peer++) stage(w, peer, 2, 1, 8);
    w->message->as.reason = (dlxi_reason){.status = DLX_ABORTED};
    say(w, 5, DLXI_FRAME_ABORT, 2, 1);
    for (uint32_t peer = 0; peer < BOTH; peer++) assert_int_equal(w->attempt[peer], 2);
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        assert_int_equal(w->counts[5][DLXI_FRAME_COMMIT], 1);
        stage(w, peer, 2, 2, 8);
    }
    assert_int_equal(w->counts[5][DLXI_FRAME_COMMIT], 2);
    world_close(w);
}

static void a_rank_that_ends_the_run_is_named(void **state) {
    (void)state;
    world *w = ranks_open(1000);
    wait_pinging(w, BOTH, 4, 1, TIMEOUT_MS + 1);
    assert_stopped(w, BOTH, DLX_PEER_LOST,
                   "no message from site 'b' (rank 1) for 5001 ms (wan.timeout_s)");
    world_close(w);

    w = ranks_open(1000);
    w->message->as.reason =
        (dlxi_reason){.status = DLX_MEMORY, .text = "out of memory for 7 bytes"};
    say(w, 2, DLXI_FRAME_FAILED, 1, 0);
    assert_stopped(w, BOTH, DLX_MEMORY, "site 'a' (rank 2) failed: out of memory for 7 bytes");
    world_close(w);

    w = ranks_open(1000);
    for (uint32_t peer = 0; peer < BOTH; peer++) {
        w->message->as.ready = ready_of(30);
        if (peer == 5) w->message->as.ready.anchor_hash = 98;
        say(w, peer, DLXI_FRAME_READY, 1, 0);
    }
    assert_stopped(
        w, BOTH, DLX_DIVERGED,
        "site 'b' (rank 2) and 'a' have different anchors after round 0: a bug or faulty "
        "memory");
    world_close(w);

    w = ranks_open(1000);
    for (uint32_t peer = 0; peer < BOTH; peer++) ready(w, peer, 1, peer == 1 ? 40 : 30);
    assert_stopped(w, BOTH, DLX_DIVERGED,
                   "site 'a' (rank 1) says that its site trained on 40 tokens of 4 windows in "
                   "round 1, its rank 0 says "
                   "30 of 3; all ranks must count the same");
    world_close(w);
}

/* While the others gather, a rank that goes takes its site out, and the others of it are told. */
static void a_rank_that_goes_while_gathering_takes_its_site_out(void **state) {
    (void)state;
    for (int silent = 0; silent < 2; silent++) {
        world *w = world_open(2, 1000, NULL);
        for (uint16_t r = 0; r < 3; r++) join_rank(w, r, "a", r, 3);
        if (silent == 1) {
            wait_pinging(w, 3, 1, 1, TIMEOUT_MS + 1);
        } else {
            w->message->as.reason = (dlxi_reason){.status = DLX_MEMORY, .text = "no more"};
            say_as(w, 1, "", DLXI_FRAME_FAILED, (dlxi_frame){.term = 0});
        }
        static const char *const texts[] = {
            "site 'a' (rank 1) failed: no more",
            "no message from site 'a' (rank 1) for 5001 ms (wan.timeout_s)"};
        assert_int_equal(w->counts[1][DLXI_FRAME_STOP], 0);
        for (uint32_t peer = 0; peer < 3; peer += 2) {
            assert_int_equal(w->counts[peer][DLXI_FRAME_STOP], 1);
            assert_string_equal(w->last[peer]->as.reason.text, texts[silent]);
        }
        assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_GATHERING);
        join(w, 3, "c"); /* with as many ranks as it likes */
        join(w, 4, "d");
        assert_int_equal(w->counts[4][DLXI_FRAME_WELCOME], 1);
        world_close(w);
    }
}

static void the_report_of_rank_0_is_the_sites(void **state) {
    (void)state;
    world *w = ranks_open(80);
    ready_all(w, 1);
    for (uint32_t peer = 0; peer < BOTH; peer++) stage(w, peer, 1, 1, 8);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
    for (uint32_t peer = BOTH; peer-- > 0;) {
        assert_int_equal(w->counts[5][DLXI_FRAME_FINISHED], 0);
        char text[32];
        snprintf(text, sizeof text, "from peer %u", peer);
        report(w, peer, 2, text);
    }
    for (uint32_t peer = 0; peer < BOTH; peer++)
        assert_int_equal(w->counts[peer][DLXI_FRAME_FINISHED], 1);
    assert_int_equal(dlxi_coordinator_result(w->c, NULL), DLX_OK);
    const char *name = NULL;
    assert_string_equal(dlxi_coordinator_report(w->c, 0, &name), "from peer 0");
    assert_string_equal(dlxi_coordinator_report(w->c, 1, &name), "from peer 3");
    assert_string_equal(name, "b");
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sites_gather_rank_by_rank),
        cmocka_unit_test(a_site_is_refused_with_all_its_ranks),
        cmocka_unit_test(late_ranks_of_a_refused_site_are_told),
        cmocka_unit_test(refusals_that_touch_no_site),
        cmocka_unit_test(a_run_holds_so_many_ranks),
        cmocka_unit_test(ranks_may_have_other_settings_than_their_site),
        cmocka_unit_test(a_round_commits_with_all_ranks_or_not),
        cmocka_unit_test(one_rank_that_differs_aborts_the_attempt),
        cmocka_unit_test(a_rank_that_ends_the_run_is_named),
        cmocka_unit_test(a_rank_that_goes_while_gathering_takes_its_site_out),
        cmocka_unit_test(the_report_of_rank_0_is_the_sites),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
