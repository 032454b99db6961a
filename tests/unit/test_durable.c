/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: what outlives a coordinator's process, and how its run goes on. */
#include "presence_world.h"

#include "base/rng.h"

enum { SAVED_MAX = 1 << 16 };

static dlxi_saved saved_of(world *w) {
    dlxi_saved saved;
    assert_int_equal(dlxi_coordinator_save(w->c, &saved, NULL), DLX_OK);
    assert_false(dlxi_coordinator_is_unsaved(w->c));
    return saved;
}

/* The coordinator's next life: of the same clock, whose links number their peers anew. */
static void world_restore(world *w, const dlxi_saved *saved) {
    dlx_error error;
    dlxi_coordinator_close(&w->c);
    w->now_ms += 1000;
    w->settings.life_id++;
    w->settings.run_id = 0; /* it is the saved one */
    if (dlxi_coordinator_restore(&w->c, &w->settings, saved->state, saved->state_bytes, w->now_ms,
                                 &error) != DLX_OK)
        fail_msg("%s", error.message);
    w->term++;
    if (saved->record != NULL)
        assert_int_equal(
            dlxi_coordinator_restore_record(w->c, saved->record, saved->record_bytes, NULL),
            DLX_OK);
    assert_int_equal(dlxi_coordinator_run_id(w->c), RUN_ID);
    memset(w->counts, 0, sizeof w->counts);
}

/* A ping of rank 0 of a site, which listens to the life before, as a peer of a new number. */
static void ping_as(world *w, uint32_t peer, uint16_t site, const char *proved, uint64_t run_id,
                    uint64_t incarnation, uint64_t round) {
    w->message->as.ping = (dlxi_ping){.run_id = run_id, .incarnation = incarnation, .stamp = 1};
    say_as(w, peer, proved, DLXI_FRAME_PING,
           (dlxi_frame){.term = w->term - 1,
                        .coordinator = w->settings.life_id - 1,
                        .site = site,
                        .round = round,
                        .trip = DLXI_SITE_LINKED | DLXI_SITE_ENTERED});
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    drain(w);
}

/* All are found again, as peers 3, 4, 5 for a, b, c, and speak in the new term. */
static void all_return(world *w, uint64_t round) {
    for (uint16_t i = 0; i < SITES; i++)
        ping_as(w, SITES + i, i, three_names[i], RUN_ID, 50u + i, round);
    w->now_ms += 300;
    for (uint32_t i = 0; i < SITES; i++) ping(w, SITES + i, round, 0);
}

static void what_is_saved_is_restored(void **state) {
    (void)state;
    enum { TERM_AT = 2 + 2 + 8 + 8 + 4 };
    world *w = three_open(100000);
    three_round(w, 1);
    w->message->as.reason = (dlxi_reason){.status = DLX_SYSTEM, .text = "a full disk"};
    say(w, 2, DLXI_FRAME_FAILED, 2, 0);
    assert_true(dlxi_coordinator_is_unsaved(w->c)); /* its windows are free */
    dlxi_saved first = saved_of(w);
    assert_int_equal(first.round, 1);
    world_restore(w, &first);
    assert_true(dlxi_coordinator_is_unsaved(w->c)); /* the term */
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    assert_true(dlxi_coordinator_has_begun(w->c));
    assert_int_equal(dlxi_coordinator_round(w->c), 2);
    dlxi_saved second = saved_of(w);
    assert_int_equal(first.state_bytes, second.state_bytes);
    assert_int_equal(first.record_bytes, second.record_bytes);
    assert_memory_equal(first.record, second.record, first.record_bytes);
    assert_int_equal(first.state[TERM_AT], 1);
    assert_int_equal(second.state[TERM_AT], 2);
    second.state[TERM_AT] = 1;
    assert_memory_equal(first.state, second.state, first.state_bytes);
    dlxi_saved_release(&first);
    dlxi_saved_release(&second);
    world_close(w);
}

static void a_run_goes_on_in_another_life(void **state) {
    (void)state;
    world *w = three_open(100000);
    three_round(w, 1);
    dlxi_saved saved = saved_of(w);
    for (uint32_t i = 0; i < SITES; i++) ready(w, i, 2, 60);
    world_restore(w, &saved);
    dlxi_saved_release(&saved);
    /* strangers: of another run, process, site or name */
    ping_as(w, 3, 0, "a", RUN_ID + 1, 50, 2);
    ping_as(w, 3, 0, "a", RUN_ID, 51, 2);
    ping_as(w, 3, 0, "b", RUN_ID, 50, 2);
    ping_as(w, 3, 7, "a", RUN_ID, 50, 2);
    assert_int_equal(w->counts[3][DLXI_FRAME_PING], 0);
    for (uint16_t i = 0; i < SITES; i++) {
        ping_as(w, SITES + i, i, i == 0 ? "" : three_names[i], RUN_ID, 50u + i, i == 2 ? 1 : 2);
        assert_int_equal(w->counts[SITES + i][DLXI_FRAME_PING], 1); /* it learns the term */
        assert_true(w->last[SITES + i]->as.ping.run_id == RUN_ID);
    }
    w->now_ms += 300;
    /* what the old life would have taken */
    const dlxi_frame old = {.term = 1, .coordinator = LIFE_ID, .round = 2};
    for (uint32_t i = 0; i < SITES; i++) {
        w->message->as.ready = ready_of(60);
        w->message->as.ready.submission = 2;
        say_as(w, SITES + i, "", DLXI_FRAME_READY, old);
    }
    assert_int_equal(w->counts[3][DLXI_FRAME_BEGIN], 0);
    /* a rank that is a round behind gets it, as the old life committed it */
    ping(w, 5, 1, 0);
    assert_int_equal(w->last[5]->kind, DLXI_FRAME_COMMIT);
    assert_int_equal(w->round[5], 1);
    assert_int_equal(w->attempt[5], 1);
    assert_int_equal(w->last[5]->as.commit.term, 1);
    assert_true(w->last[5]->as.commit.coordinator == LIFE_ID);
    assert_int_equal(w->last[5]->as.commit.view.members, SITES);
    assert_int_equal(w->last[5]->as.commit.view.member[2].exchange_bytes, 7);
    assert_int_equal(w->last[5]->as.commit.committed_tokens, 180);
    assert_int_equal(w->last[5]->as.commit.lease.submission, 3);
    dlxi_lease lease = w->last[5]->as.commit.lease;
    assert_int_equal(lease.ranges[0].first, 48);

    for (uint32_t i = 0; i < SITES; i++) ready(w, SITES + i, 2, 60);
    for (uint32_t i = 0; i < SITES; i++) {
        assert_int_equal(w->last[SITES + i]->kind, DLXI_FRAME_BEGIN);
        assert_int_equal(w->attempt[SITES + i], 1);
        assert_int_equal(w->last[SITES + i]->as.view.members, SITES);
    }
    w->message->as.staged.hash = 9;
    say_as(w, 3, "", DLXI_FRAME_STAGED,
           (dlxi_frame){.term = 1, .coordinator = LIFE_ID, .round = 2, .attempt = 1});
    stage(w, 4, 2, 1, 9);
    stage(w, 5, 2, 1, 9);
    assert_int_equal(w->counts[3][DLXI_FRAME_COMMIT], 0);
    stage(w, 3, 2, 1, 9);
    assert_int_equal(w->last[3]->kind, DLXI_FRAME_COMMIT);
    assert_int_equal(w->last[3]->as.commit.term, 2);
    assert_int_equal(w->last[3]->as.commit.committed_tokens, 360);
    assert_int_equal(w->last[3]->as.commit.lease.ranges[0].first, 54); /* where it had stopped */
    world_close(w);
}

/* Where sites keep results, a copy of the state outlives the store, and each round waits for the
 * disk; under allreduce each inner step is a round, and none does. */
static void only_rounds_of_many_steps_wait_for_the_disk(void **state) {
    (void)state;
    for (int keeps = 0; keeps < 2; keeps++) {
        world *w = world_running(1, keeps);
        assert_int_equal(dlxi_coordinator_waits_for_disk(w->c), keeps);
        dlxi_saved saved = saved_of(w);
        world_restore(w, &saved);
        assert_int_equal(dlxi_coordinator_waits_for_disk(w->c), keeps);
        dlxi_saved_release(&saved);
        world_close(w);
    }
}

static void listen_for(world *w, uint32_t peer, uint16_t site, const char *where) {
    dlxi_endpoints *e = &w->message->as.endpoints;
    *e = (dlxi_endpoints){.sites = SITES};
    snprintf(e->endpoint[site], sizeof e->endpoint[site], "%s", where);
    say(w, peer, DLXI_FRAME_LISTENING, 2, 0);
}

/* Only the life in which they joined knew it. */
static void it_asks_where_sites_listen_for_one_that_comes_back(void **state) {
    (void)state;
    enum { A = SITES, B, C, C_AGAIN };
    world *w = three_open(100000);
    three_round(w, 1);
    dlxi_saved saved = saved_of(w);
    world_restore(w, &saved);
    dlxi_saved_release(&saved);
    all_return(w, 2);
    wait_pinging(w, SITES + 2, SITES - 1, 2, TIMEOUT_MS + 1000);
    assert_int_equal(w->counts[A][DLXI_FRAME_PEERS], 0);

    dlxi_hello *h = hello_of(w, "c");
    h->resumed_run = RUN_ID;
    h->round = 2;
    h->counted = 1;
    h->tensors_hash++;
    say_as(w, C_AGAIN, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_int_equal(w->last[C_AGAIN]->kind,
                     DLXI_FRAME_STOP); /* also what its tensors are is kept */
    h->tensors_hash--;
    say_as(w, C_AGAIN, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    assert_int_equal(w->last[C_AGAIN]->kind, DLXI_FRAME_WELCOME);
    listen_for(w, C_AGAIN, 0, "c's");
    const dlxi_endpoints *told = &w->last[C_AGAIN]->as.endpoints;
    assert_int_equal(w->last[C_AGAIN]->kind, DLXI_FRAME_PEERS);
    assert_int_equal(told->sites, SITES);
    for (int i = 0; i < SITES; i++) assert_string_equal(told->endpoint[i], "");

    for (uint32_t i = A; i <= B; i++) {
        w->now_ms += 1000;
        ping(w, i, 2, 0);
        assert_int_equal(w->last[i]->kind, DLXI_FRAME_PEERS);
        assert_int_equal(w->last[i]->as.endpoints.sites, 0); /* a question */
    }
    listen_for(w, B, 2, "b's");
    assert_int_equal(w->last[A]->as.endpoints.sites, SITES);
    assert_string_equal(w->last[A]->as.endpoints.endpoint[2], "c's");
    assert_string_equal(told->endpoint[0], "");
    assert_string_equal(told->endpoint[1], "");
    w->now_ms += 1000;
    ping(w, C_AGAIN, 2, 0); /* it reaches nobody */
    assert_string_equal(w->last[C_AGAIN]->as.endpoints.endpoint[1], "b's");
    world_close(w);
}

/* Those that are found do not begin at once without the others. */
static void sites_have_some_time_to_find_it(void **state) {
    (void)state;
    world *w = three_open(100000);
    dlxi_saved saved = saved_of(w);
    assert_null(saved.record);
    world_restore(w, &saved);
    dlxi_saved_release(&saved);
    ping_as(w, SITES, 0, "a", RUN_ID, 50, 1);
    for (int i = 0; i < 8; i++) {
        w->now_ms += 300;
        ready(w, SITES, 1, 60);
        dlxi_coordinator_on_tick(w->c, w->now_ms);
        drain(w);
        assert_int_equal(w->counts[SITES][DLXI_FRAME_BEGIN], 0);
    }
    w->now_ms += 900;
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    drain(w);
    assert_int_equal(w->counts[SITES][DLXI_FRAME_BEGIN], 1);
    w->now_ms += 300;
    ping(w, SITES, 1, 0); /* it has not got it */
    assert_int_equal(w->last[SITES]->kind, DLXI_FRAME_BEGIN);
    assert_int_equal(w->last[SITES]->as.view.members, 1);
    world_close(w);
}

static void the_end_is_restored_too(void **state) {
    (void)state;
    world *w = three_open(180);
    three_round(w, 1);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
    dlxi_saved saved = saved_of(w);
    world_restore(w, &saved);
    dlxi_saved_release(&saved);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_ENDING);
    all_return(w, 1);
    for (uint32_t i = 0; i < SITES; i++) {
        assert_int_equal(w->last[SITES + i]->kind, DLXI_FRAME_COMMIT);
        assert_true(w->last[SITES + i]->as.commit.finished);
    }
    for (uint32_t i = 0; i < SITES; i++) {
        assert_int_equal(w->counts[SITES][DLXI_FRAME_FINISHED], 0);
        report(w, SITES + i, 2, three_names[i]);
    }
    for (uint32_t i = 0; i < SITES; i++) {
        assert_int_equal(w->counts[SITES + i][DLXI_FRAME_FINISHED], 1);
        say(w, SITES + i, DLXI_FRAME_FINISHED, 2, 0);
    }
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_int_equal(dlxi_coordinator_result(w->c, NULL), DLX_OK);
    const char *name;
    assert_string_equal(dlxi_coordinator_report(w->c, 2, &name), "c");
    world_close(w);
}

static void other_settings_are_refused(void **state) {
    (void)state;
    world *w = three_open(100000);
    dlxi_saved saved = saved_of(w);
    w->settings.shared_text = "model.width: 64\nsync.bits: 8\n";
    dlxi_coordinator *c = w->c;
    dlx_error error;
    assert_int_equal(dlxi_coordinator_restore(&c, &w->settings, saved.state, saved.state_bytes,
                                              w->now_ms, &error),
                     DLX_CONFIG);
    assert_null(c);
    assert_string_equal(error.message,
                        "sync.bits: '8' now, '4' when this run began; start its coordinator again "
                        "with the same settings, or a new run in another run.dir");
    dlxi_saved_release(&saved);
    world_close(w);
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* Whatever was taken is driven: no assertion may fail, and what it sends is well-formed. */
static void drive(world *w, dlxi_coordinator *c) {
    dlxi_coordinator *own = w->c;
    char line[512];
    int64_t now_ms = w->now_ms;
    w->c = c;
    for (int turn = 0; turn < 12; turn++) {
        w->now_ms += turn == 8 ? LIMBO_MS : 400;
        for (uint16_t i = 0; i < SITES; i++) {
            const dlxi_frame header = {.term = w->term + 1,
                                       .coordinator = w->settings.life_id,
                                       .site = i,
                                       .round = turn < 4 ? 1 : dlxi_coordinator_round(c),
                                       .attempt = (uint32_t)turn % 2,
                                       .trip = DLXI_SITE_LINKED | DLXI_SITE_ENTERED};
            w->message->as.ping = (dlxi_ping){.run_id = RUN_ID, .incarnation = 50u + i};
            w->message->kind = DLXI_FRAME_PING;
            static const dlxi_frame_kind kinds[] = {DLXI_FRAME_PING, DLXI_FRAME_READY,
                                                    DLXI_FRAME_STAGED, DLXI_FRAME_FAILED};
            dlxi_frame_kind kind = turn == 11 && i == 2 ? kinds[3] : kinds[turn % 3];
            if (kind == DLXI_FRAME_READY) {
                w->message->as.ready = ready_of(60);
                w->message->as.ready.submission = (uint64_t)turn / 3 + 1;
            }
            if (kind == DLXI_FRAME_STAGED) w->message->as.staged.hash = 1;
            if (kind == DLXI_FRAME_FAILED) w->message->as.reason = (dlxi_reason){.status = 1};
            w->message->kind = kind;
            assert_int_equal(dlxi_outbox_put(&w->outgoing, 0, header, w->message, NULL), DLX_OK);
            dlxi_coordinator_on_frame(c, i, "", "", &dlxi_outbox_peek(&w->outgoing)->frame,
                                      w->now_ms);
            dlxi_outbox_drop(&w->outgoing);
        }
        dlxi_coordinator_on_tick(c, w->now_ms);
        while (dlxi_coordinator_pop_log(c, line, sizeof line)) {}
        for (const dlxi_outbox_item *item;
             (item = dlxi_outbox_peek(dlxi_coordinator_outbox(c))) != NULL;) {
            assert_int_equal(dlxi_message_decode(w->message, &item->frame, NULL), DLX_OK);
            dlxi_outbox_drop(dlxi_coordinator_outbox(c));
        }
        dlxi_saved saved;
        assert_int_equal(dlxi_coordinator_save(c, &saved, NULL), DLX_OK);
        dlxi_saved_release(&saved);
    }
    w->c = own;
    w->now_ms = now_ms;
}

static bool try_restore(world *w, const uint8_t *bytes, size_t count, const dlxi_saved *with) {
    dlxi_coordinator *c;
    uint8_t *exact = malloc(count + 1); /* so that a sanitizer sees a read beyond the end */
    memcpy(exact, bytes, count);
    dlx_status status = dlxi_coordinator_restore(&c, &w->settings, exact, count, w->now_ms, NULL);
    free(exact);
    if (status != DLX_OK) return false;
    (void)dlxi_coordinator_restore_record(c, with->record, with->record_bytes, NULL);
    drive(w, c);
    dlxi_coordinator_close(&c);
    return true;
}

static void damage_is_refused_or_harmless(void **state) {
    (void)state;
    enum { TRIES = 3000 };
    world *w = three_open(100000);
    three_round(w, 1);
    three_round(w, 2);
    dlxi_saved saved = saved_of(w);
    uint8_t *damaged = malloc(saved.state_bytes + 1);
    int taken = 0;
    for (size_t cut = 0; cut < saved.state_bytes; cut++)
        assert_false(try_restore(w, saved.state, cut, &saved));
    memcpy(damaged, saved.state, saved.state_bytes);
    damaged[saved.state_bytes] = 0;
    assert_false(try_restore(w, damaged, saved.state_bytes + 1, &saved));
    assert_true(try_restore(w, damaged, saved.state_bytes, &saved));
    for (uint64_t i = 0; i < TRIES; i++) {
        memcpy(damaged, saved.state, saved.state_bytes);
        for (uint64_t k = 0; k <= dlxi_rng_u64(7, i, 99) % 3; k++) {
            uint8_t *at = damaged + dlxi_rng_u64(7, i, 2 * k) % saved.state_bytes;
            uint64_t draw = dlxi_rng_u64(7, i, 2 * k + 1);
            *at = draw % 3 == 0 ? 0xff : (uint8_t)(draw >> 8);
        }
        taken += try_restore(w, damaged, saved.state_bytes, &saved);
    }
    assert_in_range(taken, TRIES / 20, TRIES - TRIES / 20);
    free(damaged);

    damaged = malloc(saved.record_bytes);
    for (size_t cut = 0; cut < saved.record_bytes; cut++)
        assert_int_equal(dlxi_coordinator_restore_record(w->c, saved.record, cut, NULL), DLX_DATA);
    for (uint64_t i = 0; i < TRIES; i++) {
        dlxi_saved other = saved;
        memcpy(damaged, saved.record, saved.record_bytes);
        damaged[dlxi_rng_u64(8, i, 0) % saved.record_bytes] = (uint8_t)dlxi_rng_u64(8, i, 1);
        other.record = damaged;
        assert_true(try_restore(w, saved.state, saved.state_bytes, &other));
    }
    free(damaged);
    dlxi_saved_release(&saved);
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_asks_where_sites_listen_for_one_that_comes_back),
        cmocka_unit_test(what_is_saved_is_restored),
        cmocka_unit_test(only_rounds_of_many_steps_wait_for_the_disk),
        cmocka_unit_test(a_run_goes_on_in_another_life),
        cmocka_unit_test(sites_have_some_time_to_find_it),
        cmocka_unit_test(the_end_is_restored_too),
        cmocka_unit_test(other_settings_are_refused),
        cmocka_unit_test(damage_is_refused_or_harmless),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
