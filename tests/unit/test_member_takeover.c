/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a coordinator without the store asks sites, is promised to, and goes on. */
#include "member_world.h"

#include "member/takeover.h"

enum { SITES = THREE, TERM = 1, TERMS = 1 << 20 };

#define OTHER_LIFE UINT64_C(0x0102030405060708) /* of another lineage than LIFE_ID */
#define CLAIMED    (TERM + TERMS + 0x0708)

/* ---- a takeover alone with a test, which speaks for the ranks -------------------------------- */

typedef struct claims {
    dlxi_takeover *t;
    world *w;
    dlxi_claim last[SITES];
    uint32_t term[SITES]; /* of the last CLAIM; 0: it only asks */
    int count[SITES];
    uint64_t view[SITES]; /* what each rank says of itself */
    bool hears[SITES], elsewhere[SITES];
    const char *proved[SITES];
    uint32_t obeys[SITES];
    uint64_t round;
} claims;

static claims claims_open(world *w, const char *without) {
    claims k = {.w = w, .round = w->copy.round + 1};
    dlxi_takeover_settings settings = {.run = w->settings, .without = without};
    settings.run.life_id = OTHER_LIFE;
    settings.run.run_id = 0;
    for (int i = 0; i < SITES; i++) k.proved[i] = "", k.obeys[i] = TERM;
    assert_int_equal(dlxi_takeover_open(&k.t, &settings, w->now_ms, NULL), DLX_OK);
    return k;
}

/* Round 1 has committed, and its coordinator is gone. */
static claims claims_of_one(const char *without) {
    world *w = three_open(100000);
    three_round(w, 1);
    return claims_open(w, without);
}

static void claims_take(claims *k) {
    dlxi_takeover_on_tick(k->t, k->w->now_ms);
    const dlxi_outbox_item *item;
    while ((item = dlxi_outbox_peek(dlxi_takeover_outbox(k->t))) != NULL) {
        assert_in_range(item->to, 0, SITES - 1);
        assert_int_equal(dlxi_message_decode(k->w->message, &item->frame, NULL), DLX_OK);
        assert_int_equal(item->frame.kind, DLXI_FRAME_CLAIM);
        assert_true(item->frame.coordinator == OTHER_LIFE);
        k->last[item->to] = k->w->message->as.claim;
        k->term[item->to] = item->frame.term;
        k->count[item->to]++;
        dlxi_outbox_drop(dlxi_takeover_outbox(k->t));
    }
}

static void claims_say(claims *k, uint32_t site, dlxi_frame_kind kind, uint64_t round) {
    world *w = k->w;
    w->message->kind = kind;
    dlxi_frame header = {.term = k->obeys[site],
                         .coordinator = k->elsewhere[site]       ? OTHER_LIFE + 1
                                        : k->obeys[site] == TERM ? LIFE_ID
                                                                 : OTHER_LIFE,
                         .round = round,
                         .site = (uint16_t)site};
    assert_int_equal(dlxi_outbox_put(&w->outgoing, 0, header, w->message, NULL), DLX_OK);
    dlxi_takeover_on_frame(k->t, site, k->proved[site], &dlxi_outbox_peek(&w->outgoing)->frame,
                           w->now_ms);
    dlxi_outbox_drop(&w->outgoing);
    claims_take(k);
}

static void speaks(claims *k, uint32_t site) {
    k->w->message->as.ping = (dlxi_ping){.run_id = RUN_ID, .incarnation = 50 + site};
    claims_say(k, site, DLXI_FRAME_PING, k->round);
}

static void answers_with(claims *k, uint32_t site, const dlxi_copy *copy) {
    k->w->message->as.position = (dlxi_position){.run_id = RUN_ID,
                                                 .incarnation = 50 + site,
                                                 .hears = k->hears[site],
                                                 .view = k->view[site],
                                                 .copy = *copy};
    claims_say(k, site, DLXI_FRAME_POSITION, k->round);
}

static void answers(claims *k, uint32_t site) {
    answers_with(k, site, &k->w->copy);
}

/* It obeys what it was last sent. */
static void promises(claims *k, uint32_t site) {
    assert_true(k->term[site] > 0);
    k->obeys[site] = k->term[site];
    k->elsewhere[site] = false;
    answers(k, site);
}

static void passes(claims *k, int64_t ms) {
    k->w->now_ms += ms;
    claims_take(k);
}

static bool is_done(const claims *k) {
    return dlxi_takeover_is_done(k->t);
}

/* Its last line; "" if there is none. */
static void assert_said(claims *k, const char *text) {
    char line[512] = "";
    while (dlxi_takeover_pop_log(k->t, line, sizeof line)) continue;
    assert_string_equal(line, text);
}

static void assert_failed(claims *k, dlx_status status, const char *text) {
    dlx_error error;
    dlxi_coordinator *c;
    assert_true(is_done(k));
    assert_int_equal(dlxi_takeover_result(k->t, &c, &error), status);
    assert_null(c);
    assert_string_equal(error.message, text);
}

/* The world's coordinator is the new one. */
static void take(claims *k) {
    dlx_error error;
    world *w = k->w;
    dlxi_coordinator_close(&w->c);
    if (dlxi_takeover_result(k->t, &w->c, &error) != DLX_OK) fail_msg("%s", error.message);
    w->settings.life_id = OTHER_LIFE;
    w->term = CLAIMED;
    memset(w->counts, 0, sizeof w->counts);
}

static void claims_close(claims *k) {
    dlxi_takeover_close(&k->t);
    assert_null(k->t);
    world_close(k->w);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void it_asks_is_promised_to_and_goes_on(void **state) {
    (void)state;
    enum { TERM_AT = 2 + 2 + 8 + 8 + 4, LINEAGE_AT = TERM_AT - 4 };
    world *w = three_open(100000);
    three_round(w, 1);
    three_round(w, 2);
    dlxi_saved before, after;
    uint32_t last_alone = w->copy.bytes;
    w->now_ms += 300;
    ping(w, 2, 1, 0); /* c is behind: it is given all that it needs */
    assert_int_equal(w->round[2], 1);
    assert_int_equal(w->copy.round, 2);
    assert_true(w->copy.bytes > last_alone);
    assert_int_equal(dlxi_coordinator_save(w->c, &before, NULL), DLX_OK);
    claims k = claims_open(w, NULL);
    speaks(&k, 0);
    assert_int_equal(k.count[0], 1);
    assert_int_equal(k.term[0], 0);
    assert_false(k.last[0].wants_copy); /* it does not know of one yet */
    dlxi_copy named = w->copy;
    named.bytes = 0;
    answers_with(&k, 0, &named);
    passes(&k, 600);
    assert_true(k.last[0].wants_copy);
    answers(&k, 0);
    for (uint32_t i = 1; i < SITES; i++) {
        speaks(&k, i);
        answers(&k, i);
    }
    passes(&k, 600);
    for (uint32_t i = 0; i < SITES; i++) {
        assert_int_equal(k.term[i], CLAIMED);
        assert_true(k.last[i].run_id == RUN_ID);
        assert_false(k.last[i].wants_copy);
    }
    for (uint32_t i = 0; i < SITES; i++) {
        assert_false(is_done(&k));
        promises(&k, i);
    }
    assert_true(is_done(&k));
    take(&k);
    assert_true(dlxi_coordinator_is_unsaved(w->c));
    assert_int_equal(dlxi_coordinator_round(w->c), 3);
    assert_true(dlxi_coordinator_run_id(w->c) == RUN_ID);
    assert_int_equal(dlxi_coordinator_save(w->c, &after, NULL), DLX_OK);
    /* the same but for the term and the lineage; the settings are those that it was given */
    assert_int_equal(before.state_bytes, after.state_bytes);
    memcpy(after.state + LINEAGE_AT, before.state + LINEAGE_AT, 8);
    assert_memory_equal(before.state, after.state, after.state_bytes);
    assert_int_equal(before.record_bytes, after.record_bytes);
    assert_memory_equal(before.record, after.record, after.record_bytes);
    dlxi_saved_release(&before);
    dlxi_saved_release(&after);
    assert_int_equal(dlxi_coordinator_save_round(w->c, 1, &after, NULL), DLX_OK);
    assert_int_equal(after.round, 1); /* the copy had it */
    assert_non_null(after.record);
    dlxi_saved_release(&after);
    assert_int_equal(dlxi_coordinator_save_round(w->c, 9, &after, NULL), DLX_OK);
    assert_null(after.record);
    dlxi_saved_release(&after);
    claims_close(&k);
}

/* All are asked; whoever is named here answers. */
static void answer_all(claims *k, uint32_t sites) {
    for (uint32_t i = 0; i < SITES; i++) {
        if ((sites >> i & 1u) == 0) continue;
        speaks(k, i);
        answers(k, i);
    }
}

/* All answer, and are claimed if nothing is missing. */
static void claim_all(claims *k) {
    answer_all(k, 7);
    k->w->now_ms += 600;
    answer_all(k, 7);
}

static void a_site_that_hears_its_coordinator_is_left_alone(void **state) {
    (void)state;
    claims k = claims_of_one(NULL);
    world *w = k.w;
    k.hears[1] = true;
    answer_all(&k, 7);
    w->now_ms += 3000;
    answer_all(&k, 7);
    assert_said(&k, "site 'b' hears its coordinator: the run needs no other one, or wait for 5 s");
    for (uint32_t i = 0; i < SITES; i++) assert_int_equal(k.term[i], 0);
    k.hears[1] = false;
    for (int i = 0; i < 2; i++) {
        w->now_ms += 600;
        answer_all(&k, 7);
    }
    assert_int_equal(k.term[1], CLAIMED);
    claims_close(&k);
}

/* Round 2, of a and b alone. */
static void round_of_two(world *w) {
    for (uint32_t i = 0; i < 2; i++) ready(w, i, 2, 60);
    wait_pinging(w, SITES, -1, 2, PATIENCE_MS / 2);
    for (uint32_t i = 0; i < 2; i++) stage(w, i, 2, 1, 2);
    assert_int_equal(w->copy.round, 2);
}

static void it_waits_for_all_that_may_have_gone_on(void **state) {
    (void)state;
    for (int linked = 0; linked < 2; linked++) {
        world *w = three_open(100000);
        three_round(w, 1);
        round_of_two(w);
        claims k = claims_open(w, NULL);
        if (linked == 1) k.view[1] = 1u << 1 | 1u << 2; /* and b is in an attempt with it */
        answer_all(&k, 1);
        w->now_ms += 3000;
        answer_all(&k, 1);
        assert_said(&k,
                    "waits for site 'b', which may have gone on after round 2; --without b gives "
                    "it up, with all that it trained since");
        answer_all(&k, 3);
        w->now_ms += 600;
        answer_all(&k, 3);
        assert_int_equal(k.term[0], linked == 1 ? 0 : CLAIMED);
        if (linked == 1) answer_all(&k, 4);
        w->now_ms += 600;
        answer_all(&k, linked == 1 ? 7 : 3);
        for (uint32_t i = 0; i < (linked == 1 ? 3u : 2u); i++) promises(&k, i);
        assert_true(is_done(&k));
        claims_close(&k);
    }
}

/* A rank that obeys the first coordinator reaches the new one. */
static void returns(world *w, uint16_t site, uint64_t round) {
    w->now_ms += 1100;
    w->message->as.ping = (dlxi_ping){.run_id = RUN_ID, .incarnation = 50u + site, .stamp = 1};
    say_as(w, site, "", DLXI_FRAME_PING,
           (dlxi_frame){.term = TERM,
                        .coordinator = LIFE_ID,
                        .site = site,
                        .round = round,
                        .trip = DLXI_SITE_LINKED | DLXI_SITE_ENTERED});
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    drain(w);
}

static void a_site_may_be_given_up(void **state) {
    (void)state;
    char line[512];
    claims k = claims_of_one("b");
    world *w = k.w;
    claim_all(&k);
    assert_int_equal(k.term[0], CLAIMED);
    assert_int_equal(k.term[1], 0); /* though it is there */
    promises(&k, 0);
    promises(&k, 2);
    assert_true(is_done(&k));
    take(&k);
    while (dlxi_coordinator_pop_log(w->c, line, sizeof line)) continue;
    for (int i = 0; i < 3; i++) returns(w, 1, 4); /* it is known by the first one */
    assert_true(dlxi_coordinator_pop_log(w->c, line, sizeof line));
    assert_string_equal(line,
                        "site 'b', which was given up, had applied 2 rounds that this run has not");
    assert_false(dlxi_coordinator_pop_log(w->c, line, sizeof line));
    assert_int_equal(w->last[1]->kind, DLXI_FRAME_STOP);
    assert_string_equal(w->last[1]->as.reason.text,
                        "site 'b' was given up when round 2 was the next");
    for (int i = 0; i < 2; i++) returns(w, 0, 1); /* one that has not heard of it */
    assert_int_equal(w->counts[0][DLXI_FRAME_CLAIM], 1);
    assert_int_equal(w->counts[1][DLXI_FRAME_CLAIM], 0);
    claims_close(&k);

    w = three_open(100000);
    three_round(w, 1);
    k = claims_open(w, "b,oslo");
    answer_all(&k, 1);
    assert_failed(&k, DLX_CONFIG, "run 0123456789abcdef: --without: 'oslo' is no site of this run");
    claims_close(&k);
}

/* Which may have made a round with any of them. */
static void all_others_are_needed_then(void **state) {
    (void)state;
    world *w = three_open(100000);
    three_round(w, 1);
    round_of_two(w);
    claims k = claims_open(w, "b");
    answer_all(&k, 1);
    w->now_ms += 3000;
    answer_all(&k, 1);
    assert_said(&k,
                "waits for site 'c', which may have gone on after round 2; --without c gives it "
                "up, with all that it trained since");
    for (int i = 0; i < 2; i++, w->now_ms += 600) answer_all(&k, 5);
    promises(&k, 0);
    assert_false(is_done(&k));
    promises(&k, 2);
    assert_true(is_done(&k));
    claims_close(&k);

    for (int all = 0; all < 2; all++) { /* too many */
        w = three_open(100000);
        three_round(w, 1);
        w->settings.sites_min = all ? 1 : 0;
        k = claims_open(w, all ? "a,c,b" : "b");
        answer_all(&k, 1);
        assert_failed(
            &k, DLX_CONFIG,
            all ? "run 0123456789abcdef: --without leaves 0 of 3 sites, and the run needs 1 "
                  "(wan.min_sites)"
                : "run 0123456789abcdef: --without leaves 2 of 3 sites, and the run needs 3 "
                  "(wan.min_sites)");
        claims_close(&k);
    }
}

static void another_run_or_site_is_not_heard(void **state) {
    (void)state;
    claims k = claims_of_one(NULL);
    world *w = k.w;
    for (int i = 0; i < SITES; i++) k.proved[i] = three_names[i];
    answer_all(&k, 3);
    w->message->as.ping = (dlxi_ping){.run_id = RUN_ID + 1, .incarnation = 52};
    claims_say(&k, 2, DLXI_FRAME_PING, k.round);
    assert_int_equal(k.count[2], 0);
    k.proved[2] = "b"; /* b's key, c's number */
    answer_all(&k, 4);
    w->now_ms += 3000;
    answer_all(&k, 7);
    assert_said(&k,
                "waits for site 'c', which may have gone on after round 1; --without c gives it "
                "up, with all that it trained since");
    k.proved[2] = "c";
    claim_all(&k);
    assert_int_equal(k.term[2], CLAIMED);
    claims_close(&k);
}

static void a_copy_that_cannot_be_used_is_the_end(void **state) {
    (void)state;
    for (int what = 0; what < 4; what++) {
        world *w = three_open(100000);
        three_round(w, 1);
        if (what == 0) w->settings.shared_text = "model.width: 65\nsync.bits: 4\n";
        claims k = claims_open(w, NULL);
        if (what == 1) w->copy.bytes--;
        if (what == 2) w->copy.round++;
        if (what == 3) w->copy_data[sizeof(uint32_t)] ^= 1; /* the version */
        answer_all(&k, 1);
        static const char *const why[] = {
            "run 0123456789abcdef: the settings are not those of the run: start the coordinator "
            "with the config that the "
            "run began with",
            "run 0123456789abcdef: a saved record is malformed",
            "run 0123456789abcdef: a site's copy is not what it says",
            "run 0123456789abcdef: the coordinator's saved state is malformed"};
        assert_failed(&k, what == 0 ? DLX_CONFIG : DLX_DATA, why[what]);
        claims_close(&k);
    }
}

static void the_newest_copy_counts(void **state) {
    (void)state;
    static uint8_t older_data[DLXI_COPY_MAX];
    world *w = three_open(100000);
    three_round(w, 1);
    dlxi_copy older = w->copy;
    memcpy(older_data, w->copy.data, w->copy.bytes);
    older.data = older_data;
    three_round(w, 2);
    claims k = claims_open(w, NULL);
    speaks(&k, 0);
    answers_with(&k, 0, &older);
    speaks(&k, 1);
    dlxi_copy newest = w->copy;
    newest.bytes = 0;
    answers_with(&k, 1, &newest); /* and was not asked for its data */
    w->now_ms += 600;
    for (uint32_t i = 0; i < 2; i++) speaks(&k, i);
    assert_false(k.last[0].wants_copy);
    assert_true(k.last[1].wants_copy);
    answers(&k, 1);
    answers_with(&k, 0, &older);
    answer_all(&k, 4);
    w->now_ms += 600;
    answer_all(&k, 7);
    for (uint32_t i = 0; i < SITES; i++) promises(&k, i);
    take(&k);
    assert_int_equal(dlxi_coordinator_round(w->c), 3);
    claims_close(&k);
}

static void a_round_that_no_copy_has_is_waited_for(void **state) {
    (void)state;
    claims k = claims_of_one(NULL);
    world *w = k.w;
    answer_all(&k, 3);
    k.round++; /* c has applied round 2 */
    answer_all(&k, 4);
    k.round--;
    w->now_ms += 600;
    answer_all(&k, 3);
    k.round++;
    answer_all(&k, 4);
    for (uint32_t i = 0; i < SITES; i++) assert_int_equal(k.term[i], 0);
    assert_false(is_done(&k));
    claims_close(&k);
}

static void a_faster_coordinator_makes_the_term_rise(void **state) {
    (void)state;
    claims k = claims_of_one(NULL);
    world *w = k.w;
    claim_all(&k);
    promises(&k, 0);
    k.obeys[1] = CLAIMED; /* to somebody else, whom it does not hear any more, the same one */
    k.elsewhere[1] = true;
    w->now_ms += 600;
    claim_all(&k);
    for (uint32_t i = 0; i < SITES; i++) assert_int_equal(k.term[i], CLAIMED + TERMS + 0x0708);
    for (uint32_t i = 0; i < SITES; i++) {
        assert_false(is_done(&k));
        promises(&k, i);
    }
    assert_true(is_done(&k));
    claims_close(&k);
}

static void it_gives_up(void **state) {
    (void)state;
    claims k = claims_of_one(NULL);
    passes(&k, 2900);
    assert_said(&k, "takes the run over: waits for its sites, which wait for their coordinator for "
                    "wan.timeout_s first");
    passes(&k, 200);
    assert_said(&k, "no site speaks yet");
    answer_all(&k, 3);
    passes(&k, PATIENCE_MS);
    assert_failed(
        &k, DLX_TIMEOUT,
        "gave up the takeover after 20 s (wan.patience_s); last: waits for site 'c', which "
        "may have gone on after round 1; --without c gives it up, with all that it trained "
        "since");
    claims_close(&k);
}

/* A promise holds as long as the site is heard. */
static void a_promise_that_falls_silent_is_none(void **state) {
    (void)state;
    claims k = claims_of_one(NULL);
    world *w = k.w;
    claim_all(&k);
    promises(&k, 0);
    promises(&k, 1);
    w->now_ms += TIMEOUT_MS + 100;
    promises(&k, 2);
    assert_false(is_done(&k));
    promises(&k, 0);
    promises(&k, 1);
    assert_true(is_done(&k));
    claims_close(&k);
}

/* However long it waited for a promise. */
static void sites_are_away_since_the_takeover(void **state) {
    (void)state;
    char line[512];
    world *w = three_open(100000);
    w->settings.limbo_ms = 3000;
    three_round(w, 1);
    claims k = claims_open(w, NULL);
    for (int i = 0; i < 10; i++, w->now_ms += 600) answer_all(&k, 7);
    for (uint32_t i = 0; i < SITES; i++) promises(&k, i);
    take(&k);
    dlxi_coordinator_on_tick(w->c, w->now_ms += 100);
    assert_true(dlxi_coordinator_pop_log(w->c, line, sizeof line));
    assert_string_equal(
        line, "takes over run 0123456789abcdef at round 2, as term 1050377; waiting for its sites");
    assert_false(dlxi_coordinator_pop_log(w->c, line, sizeof line)); /* no window is given away */
    claims_close(&k);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_asks_is_promised_to_and_goes_on),
        cmocka_unit_test(a_site_that_hears_its_coordinator_is_left_alone),
        cmocka_unit_test(it_waits_for_all_that_may_have_gone_on),
        cmocka_unit_test(a_site_may_be_given_up),
        cmocka_unit_test(all_others_are_needed_then),
        cmocka_unit_test(another_run_or_site_is_not_heard),
        cmocka_unit_test(a_copy_that_cannot_be_used_is_the_end),
        cmocka_unit_test(the_newest_copy_counts),
        cmocka_unit_test(a_round_that_no_copy_has_is_waited_for),
        cmocka_unit_test(a_faster_coordinator_makes_the_term_rise),
        cmocka_unit_test(it_gives_up),
        cmocka_unit_test(a_promise_that_falls_silent_is_none),
        cmocka_unit_test(sites_are_away_since_the_takeover),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
