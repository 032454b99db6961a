/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a run goes on from what its sites have saved, with what its coordinator knew. */
#include "member_world.h"

enum { ROUNDS = 3, LEASE = 6 };

static uint8_t saved_bytes[DLXI_COPY_MAX];
static dlxi_copy saved; /* as a site has it after ROUNDS rounds */

/* A run of a, b and c that has ended; its sites have its copy. */
static void run_before(void) {
    world *w = three_open(100000);
    for (uint64_t round = 1; round <= ROUNDS; round++) three_round(w, round);
    saved = w->copy;
    memcpy(saved_bytes, w->copy.data, w->copy.bytes);
    saved.data = saved_bytes;
    world_close(w);
}

static world *world_of_later(uint16_t sites) {
    run_before();
    world *w = world_open(sites, 100000, world_text);
    w->settings.sites_min = 1;
    w->settings.run_id = 77; /* it is the saved one */
    w->keeps = true;
    dlxi_coordinator_close(&w->c);
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    return w;
}

static dlxi_hello *resuming_hello(world *w, const char *name, uint64_t counted) {
    dlxi_hello *h = hello_of(w, name);
    h->resumed_run = RUN_ID;
    h->round = ROUNDS + 1;
    h->counted = counted;
    h->copy = saved;
    return h;
}

static void hello_say(world *w, uint32_t peer) {
    say_as(w, peer, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
}

static void assert_refused(world *w, uint32_t peer, const char *text) {
    assert_int_equal(w->last[peer]->kind, DLXI_FRAME_STOP);
    assert_int_equal(w->last[peer]->as.reason.status, DLX_REFUSED);
    assert_string_equal(w->last[peer]->as.reason.text, text);
}

static void assert_failed(world *w, dlx_status status, const char *text) {
    dlx_error error;
    assert_int_equal(dlxi_coordinator_result(w->c, &error), status);
    assert_string_equal(error.message, text);
}

static void a_run_goes_on(void **state) {
    (void)state;
    world *w = world_of_later(THREE);
    for (uint32_t i = 0; i < THREE; i++) {
        if (i == THREE - 1) w->term = 2; /* from the welcome on */
        (void)resuming_hello(w, three_names[i], ROUNDS);
        hello_say(w, i);
    }
    for (uint32_t i = 0; i < THREE; i++) {
        const dlxi_welcome *m = &w->last[i]->as.welcome;
        assert_int_equal(w->last[i]->kind, DLXI_FRAME_WELCOME);
        assert_int_equal(w->round[i], ROUNDS + 1);
        assert_true(m->run_id == RUN_ID);
        assert_int_equal(m->counted, ROUNDS);
        for (uint64_t k = 0; k < 2; k++) {
            assert_int_equal(m->leases[k].submission, ROUNDS + 1 + k);
            /* each used its six of every round, in order */
            assert_int_equal(m->leases[k].range_count, 1);
            assert_int_equal(m->leases[k].ranges[0].first,
                             (ROUNDS + k) * THREE * LEASE + i * LEASE);
        }
    }
    listen_all(w, THREE);
    w->links = true;
    for (uint32_t i = 0; i < THREE; i++) ping(w, i, ROUNDS + 1, 0);
    three_round(w, ROUNDS + 1);
    assert_int_equal(w->last[0]->as.commit.committed_tokens, (ROUNDS + 1) * THREE * 60);
    world_close(w);
}

/* What c was to train on is free again; the site that is new gets it first. */
static void another_site_takes_the_place_of_one(void **state) {
    (void)state;
    static const char *const names[] = {"a", "b", "d"};
    world *w = world_of_later(THREE);
    for (uint32_t i = 0; i < THREE; i++) {
        if (i == THREE - 1) w->term = 2;
        (void)resuming_hello(w, names[i], i < 2 ? ROUNDS : 0);
        hello_say(w, i);
    }
    const dlxi_welcome *m = &w->last[2]->as.welcome;
    assert_int_equal(m->counted, 0);
    for (uint64_t k = 0; k < 2; k++) {
        assert_int_equal(m->leases[k].submission, 1 + k);
        assert_int_equal(m->leases[k].ranges[0].first, (ROUNDS + k) * THREE * LEASE + 2 * LEASE);
    }
    world_close(w);
}

static void before_the_first_round_it_begins(void **state) {
    (void)state;
    world *w = world_of_later(1);
    dlxi_hello *h = resuming_hello(w, "a", 0);
    h->round = 1;
    h->copy = (dlxi_copy){0};
    hello_say(w, 0);
    assert_int_equal(w->last[0]->kind, DLXI_FRAME_WELCOME);
    assert_true(w->last[0]->as.welcome.run_id == RUN_ID);
    assert_int_equal(w->last[0]->as.welcome.leases[0].submission, 1);
    world_close(w);
}

static void who_does_not_fit_is_refused(void **state) {
    (void)state;
    world *w = world_of_later(2);
    (void)resuming_hello(w, "a", ROUNDS);
    hello_say(w, 0);
    join(w, 1, "b");
    assert_refused(
        w, 1,
        "site 'b' starts a new run, 'a' goes on with run 0123456789abcdef; start all with "
        "--resume, or none");
    resuming_hello(w, "b", ROUNDS)->resumed_run = 3;
    hello_say(w, 1);
    assert_refused(
        w, 1,
        "site 'b' goes on with run 0000000000000003, 'a' with run 0123456789abcdef; give "
        "all of them snapshots of one run (--resume=DIR)");
    resuming_hello(w, "b", ROUNDS)->round = ROUNDS + 2;
    hello_say(w, 1);
    assert_refused(
        w, 1,
        "the snapshot of site 'b' is of round 4, that of 'a' of round 3; give one of the "
        "same round with --resume=DIR");
    resuming_hello(w, "b", ROUNDS)->anchor_hash = 12;
    hello_say(w, 1);
    assert_refused(
        w, 1,
        "the snapshots of sites 'b' and 'a' have different anchors after round 3: a bug or "
        "faulty memory; take an earlier one");
    (void)resuming_hello(w, "b", ROUNDS + 1);
    hello_say(w, 1);
    assert_refused(w, 1, "site 'b' says that it resumes at round 4, after 4 of its own");
    world_close(w);
    w = world_open(2, 1000, NULL);
    join(w, 0, "a");
    (void)resuming_hello(w, "b", ROUNDS);
    hello_say(w, 1);
    assert_refused(
        w, 1,
        "site 'a' starts a new run, 'b' goes on with run 0123456789abcdef; start all with "
        "--resume, or none");
    world_close(w);
}

static void what_cannot_go_on_says_why(void **state) {
    (void)state;
    world *w = world_of_later(1);
    resuming_hello(w, "a", ROUNDS)->copy = (dlxi_copy){0};
    hello_say(w, 0);
    assert_failed(w, DLX_STATE,
                  "no snapshot of a site has the coordinator's state after round 3: give the sites "
                  "earlier ones with --resume=DIR");
    world_close(w);

    w = world_of_later(1);
    (void)resuming_hello(w, "a", ROUNDS - 1);
    hello_say(w, 0);
    assert_failed(
        w, DLX_STATE,
        "the snapshot of site 'a' has 2 of its rounds, the run counts 3; give a snapshot of "
        "another site, or an earlier one of all sites, with --resume=DIR");
    world_close(w);

    w = world_of_later(1);
    w->settings.tokens_target = ROUNDS * THREE * 60;
    dlxi_coordinator_close(&w->c);
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    (void)resuming_hello(w, "a", ROUNDS);
    hello_say(w, 0);
    assert_failed(w, DLX_STATE, "the run has all of its 540 tokens; raise train.tokens to go on");
    world_close(w);
}

/* The copy of a site that has left is not that of those that come later. */
static void what_was_brought_leaves_with_its_site(void **state) {
    (void)state;
    world *w = world_of_later(2);
    (void)resuming_hello(w, "a", ROUNDS);
    hello_say(w, 0);
    w->message->as.reason = (dlxi_reason){.status = DLX_INTERRUPTED, .text = "interrupted"};
    say_as(w, 0, "", DLXI_FRAME_FAILED, (dlxi_frame){.term = 0});
    for (uint32_t i = 0; i < 2; i++) {
        resuming_hello(w, three_names[i], ROUNDS)->copy = (dlxi_copy){0};
        hello_say(w, i);
    }
    assert_failed(w, DLX_STATE,
                  "no snapshot of a site has the coordinator's state after round 3: give the sites "
                  "earlier ones with --resume=DIR");
    world_close(w);
}

/* c was away, and its windows were given to others; the run stops before it has others. */
static void who_has_no_windows_gets_some(void **state) {
    (void)state;
    world *before = three_open(100000);
    three_round(before, 1);
    wait_pinging(before, THREE, 2, 2, TIMEOUT_MS + LIMBO_MS + 1000);
    for (uint32_t i = 0; i < 2; i++) ready(before, i, 2, 60);
    for (uint32_t i = 0; i < 2; i++) stage(before, i, 2, 1, 2);
    assert_int_equal(before->copy.round, 2);
    world *w = world_of_later(THREE);
    for (uint32_t i = 0; i < THREE; i++) {
        if (i == THREE - 1) w->term = 2;
        dlxi_hello *h = resuming_hello(w, three_names[i], i < 2 ? 2 : 1);
        h->round = 3;
        h->copy = before->copy;
        hello_say(w, i);
    }
    for (uint32_t i = 0; i < THREE; i++)
        for (int k = 0; k < 2; k++) {
            const dlxi_lease *lease = &w->last[i]->as.welcome.leases[k];
            assert_int_equal(lease->submission, (i < 2 ? 3 : 2) + k);
            assert_true(lease->range_count > 0);
        }
    world_close(before);
    world_close(w);
}

/* Of any bytes in its copy a site is told, and nothing else happens. */
static void a_damaged_copy_is_refused(void **state) {
    (void)state;
    for (uint32_t at = 0; at < 400; at++) {
        dlx_error error;
        world *w = world_of_later(1);
        saved_bytes[at % saved.bytes] ^= (uint8_t)(1 + at % 255);
        (void)resuming_hello(w, "a", ROUNDS);
        w->message->kind = DLXI_FRAME_HELLO;
        assert_int_equal(
            dlxi_outbox_put(&w->outgoing, 0, (dlxi_frame){.term = 0}, w->message, NULL), DLX_OK);
        const dlxi_outbox_item *item = dlxi_outbox_peek(&w->outgoing);
        dlxi_coordinator_on_frame(w->c, 0, "", "key", &item->frame, w->now_ms);
        dlx_status status = dlxi_coordinator_result(w->c, &error);
        assert_true(status == DLX_OK || error.message[0] != '\0');
        dlxi_coordinator_on_tick(w->c, w->now_ms + 1000);
        dlxi_outbox_clear(dlxi_coordinator_outbox(w->c));
        dlxi_outbox_clear(&w->outgoing);
        world_close(w);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_goes_on),
        cmocka_unit_test(another_site_takes_the_place_of_one),
        cmocka_unit_test(before_the_first_round_it_begins),
        cmocka_unit_test(who_does_not_fit_is_refused),
        cmocka_unit_test(what_cannot_go_on_says_why),
        cmocka_unit_test(what_was_brought_leaves_with_its_site),
        cmocka_unit_test(who_has_no_windows_gets_some),
        cmocka_unit_test(a_damaged_copy_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
