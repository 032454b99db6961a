/* SPDX-License-Identifier: Apache-2.0 */
/* The engine alone: what a coordinator, another site, a link or the system may do at an awkward
 * moment, and what must not come of it. */
#include "engine_lone.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

/* A round of this site alone, up to STAGED. */
static lone *staging_lone(uint16_t sites) {
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    lone_join(l, 0, sites);
    assert_true(l->last.joined);
    lone_submit(l);
    lone_begin(l, 1, 1, 0, 1);
    lone_turn(l, 1);
    return l;
}

/* And up to the frame that commits it. */
static lone *committing_lone(uint16_t sites) {
    lone *l = staging_lone(sites);
    assert_int_equal(l->sent[DLXI_FRAME_STAGED], 1);
    l->now_ms += 40;
    lone_commit(l, 1, 1);
    return l;
}

static void check_committed(lone *l) {
    lone_turn(l, 1);
    assert_true(l->last.committed && !l->last.ended);
    assert_int_equal(l->state->rounds, 1);
    lone_close(l);
}

static void an_exchange_is_timed(void **state) {
    (void)state;
    lone *l = committing_lone(3);
    lone_turn(l, 2);
    assert_true(l->last.committed);
    assert_int_equal(l->last.exchange_ns, 42000000); /* from the turn after BEGIN */
    lone_submit(l);                                  /* the coordinator is told with the next one */
    lone_turn(l, 1);
    assert_int_equal(l->said.kind, DLXI_FRAME_READY);
    assert_int_equal(l->said.as.ready.exchange_ns, 42000000);
    lone_close(l);
}

/* Between the COMMIT and the work that it asks for, nothing may take the staged exchange away. */

static void a_late_abort_keeps_a_commit(void **state) {
    (void)state;
    lone *l = committing_lone(3);
    l->speech.as.reason = (dlxi_reason){.status = DLX_ABORTED, .text = "another site"};
    lone_tell(l, DLXI_FRAME_ABORT, 2, 0);
    check_committed(l);
}

/* Its training has the state, and may hang with it: the round is not applied here, and served to a
 * site that was not in it. */
static void a_round_is_served_before_it_is_applied(void **state) {
    (void)state;
    lone *l = staging_lone(3);
    dlxi_request r = {.recalls = true};
    dlxi_engine_on_request(l->engine, &r, l->now_ms);
    lone_turn(l, 1);
    assert_non_null(l->state);
    lone_commit(l, 1, 1);
    lone_hear(l, 1,
              (dlxi_frame){.kind = DLXI_FRAME_FETCH,
                           .term = 1,
                           .round = 1,
                           .attempt = 1,
                           .count_groups = dlxi_lineage_of(LONE_LIFE),
                           .site = 1});
    lone_turn(l, 1);
    assert_false(l->last.committed);
    assert_true(l->sent[DLXI_FRAME_ENTRY] > 0);
    r = (dlxi_request){.state = l->state};
    l->state = NULL;
    dlxi_engine_on_request(l->engine, &r, l->now_ms);
    check_committed(l);
}

static void frames_of_rounds_far_away_keep_a_commit(void **state) {
    (void)state;
    lone *l = committing_lone(3);
    dlxi_frame frame = {.kind = DLXI_FRAME_RESULT, .term = 1, .round = 9, .attempt = 1, .site = 1};
    lone_hear(l, 1, frame);
    assert_int_equal(l->sent[DLXI_FRAME_ABORT], 0); /* there is nothing to give up */
    check_committed(l);
}

static void more_frames_than_a_round_holds_keep_a_commit(void **state) {
    (void)state;
    static uint8_t payload[DLXI_FRAME_PAYLOAD_MAX];
    lone *l = committing_lone(3);
    dlxi_frame frame = {.kind = DLXI_FRAME_RESULT,
                        .term = 1,
                        .round = 2,
                        .attempt = 1,
                        .site = 1,
                        .payload_bytes = sizeof payload,
                        .payload = payload};
    for (int i = 0; i < 100; i++) lone_hear(l, 1, frame);
    check_committed(l);
}

/* ---- joining --------------------------------------------------------------------------------- */

/* As where small frames pass and large ones do not. */
static void a_missing_anchor_is_reported(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    lone_welcome(l, 1, 3, true);
    for (int i = 0; i < 5 * LONE_TIMEOUT_MS / 500; i++) {
        lone_ping(l, 1, 0, 0);
        lone_greet(l, 0);
        lone_greet(l, 2);
        lone_turn(l, 500);
    }
    assert_false(l->last.joined);
    assert_in_range(l->sent[DLXI_FRAME_ABORT], 3, 5);
    lone_close(l);
}

static void the_most_sites_reach_each_other(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    lone_welcome(l, 0, DLXI_SITES_MAX, false);
    lone_turn(l, LONE_TIMEOUT_MS / 2);
    lone_ping(l, 1, 0, 0);
    lone_turn(l, LONE_TIMEOUT_MS / 2);
    lone_turn(l, LONE_TIMEOUT_MS / 4);
    assert_int_equal(l->reconnects, DLXI_SITES_MAX - 1);
    assert_int_equal(l->reconnected, DLXI_SITES_MAX - 1);
    for (uint16_t i = 1; i < DLXI_SITES_MAX; i++) {
        assert_false(l->last.joined);
        lone_greet(l, i);
    }
    lone_turn(l, 1);
    assert_true(l->last.joined);
    lone_submit(l);
    lone_begin(l, 1, 1, 0, DLXI_SITES_MAX);
    lone_turn(l, 1);
    assert_in_range(l->sent[DLXI_FRAME_CONTRIBUTION], 1, 4 * DLXI_SITES_MAX);
    lone_close(l);
}

/* ---- other lives of the coordinator ---------------------------------------------------------- */

/* A new life knows nothing of the attempt that is to begin, or is under way. */
static void an_attempt_ends_with_its_coordinator(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    for (int under_way = 0; under_way < 2; under_way++) {
        lone *l = lone_open(&config, LONE_TENSORS, 0);
        lone_join(l, 0, 3);
        lone_submit(l);
        lone_begin(l, 1, 1, 0, 3);
        if (under_way) lone_turn(l, 1);
        uint32_t contributions = l->sent[DLXI_FRAME_CONTRIBUTION];
        l->term = 2;
        lone_ping(l, 1, 0, 0);
        lone_turn(l, 1);
        assert_int_equal(l->sent[DLXI_FRAME_CONTRIBUTION], contributions);
        assert_int_equal(l->said.kind, DLXI_FRAME_READY);
        lone_begin(l, 1, 1, 0, 1);
        lone_turn(l, 1);
        assert_int_equal(l->sent[DLXI_FRAME_STAGED], 1);
        lone_close(l);
    }
}

/* What is staged may be committed: a new life's word about something else does not drop it. */
static void what_is_staged_waits_for_the_next_coordinator(void **state) {
    (void)state;
    lone *l = staging_lone(3);
    l->term = 2;
    l->speech.as.reason = (dlxi_reason){.status = DLX_ABORTED, .text = "another site"};
    lone_tell(l, DLXI_FRAME_ABORT, 1, 0);
    lone_turn(l, 1);
    lone_commit(l, 1, 1); /* of the life before, said by the next */
    check_committed(l);
}

/* ---- what another site sends ----------------------------------------------------------------- */

static lone *exchanging_lone_of(uint16_t members) {
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    lone_join(l, 0, 3);
    lone_submit(l);
    lone_begin(l, 1, 1, 0, members);
    lone_turn(l, 1);
    assert_int_equal(l->sent[DLXI_FRAME_STAGED], 0);
    return l;
}

static lone *exchanging_lone(void) {
    return exchanging_lone_of(3);
}

/* What was sent to site 1. */
typedef struct sent_to_1 {
    dlxi_greeting newest;                       /* that says something */
    uint32_t greetings, contributions, answers; /* answers: as the last contribution was sent */
} sent_to_1;

static void note_sent(lone *l, uint32_t peer, const dlxi_frame *frame) {
    sent_to_1 *s = l->context;
    if (peer != 1) return;
    if (frame->kind == DLXI_FRAME_GREETING && dlxi_greeting_decode(&s->newest, frame))
        s->greetings++;
    if (frame->kind != DLXI_FRAME_CONTRIBUTION) return;
    s->contributions++;
    s->answers = s->newest.answers;
}

/* Site 1's. `sent`, `received`: of trip 0. */
static void greet_1(lone *l, uint32_t attempt, uint32_t asks, uint32_t answers, uint64_t sent,
                    uint64_t received) {
    uint8_t payload[DLXI_GREETING_BYTES];
    dlxi_greeting g = {.asks = asks, .answers = answers};
    for (int i = 0; i < DLXI_TRIPS; i++) g.trips[i].received = DLXI_NOT_BEGUN;
    g.trips[0].sent = sent;
    g.trips[0].received = received;
    dlxi_greeting_encode(payload, &g);
    lone_hear(l, 1,
              (dlxi_frame){.kind = DLXI_FRAME_GREETING,
                           .term = 1,
                           .round = 1,
                           .attempt = attempt,
                           .site = 1,
                           .trip = 3,
                           .payload = payload,
                           .payload_bytes = sizeof payload});
}

/* One request at a time, again and again, until it is answered; then the next. */
static void what_was_lost_is_asked_for(void **state) {
    (void)state;
    lone *l = exchanging_lone();
    sent_to_1 s = {0};
    l->on_send = note_sent;
    l->context = &s;
    greet_1(l, 2, 0, 0, 5, 0); /* of another attempt */
    lone_turn(l, 1);
    assert_int_equal(s.greetings, 0);
    greet_1(l, 1, 0, 0, 5, 0);
    lone_turn(l, 1); /* not with the next one in turn, which comes after 250 ms */
    assert_int_equal(s.greetings, 1);
    assert_int_equal(s.newest.asks, 1);
    assert_int_equal(s.newest.trips[0].received, 0);
    greet_1(l, 1, 0, 0, 6, 0); /* before it got the request */
    lone_turn(l, 1);
    assert_int_equal(s.greetings, 1);
    lone_turn(l, 250);
    assert_int_equal(s.greetings, 2);
    assert_int_equal(s.newest.asks, 1);
    greet_1(l, 1, 0, 1, 0, 0);
    lone_turn(l, 1);
    assert_int_equal(s.greetings, 2);
    greet_1(l, 1, 0, 1, 5, 0); /* lost again */
    lone_turn(l, 1);
    assert_int_equal(s.newest.asks, 2);
    greet_1(l, 1, 0, UINT32_MAX, UINT64_MAX, 0); /* an answer to nothing */
    lone_turn(l, 1);
    assert_int_equal(s.newest.asks, 2);
    assert_int_equal(l->sent[DLXI_FRAME_ABORT], 0);
    lone_close(l);
}

/* Frames behind a gap ask once. */
static void a_gap_is_asked_for_once(void **state) {
    (void)state;
    static const uint8_t payload[64];
    const dlx_sync_config config = lone_config();
    const size_t group_bytes =
        dlxi_quantiser_group_bytes((dlxi_quantiser){config.bits, config.group});
    lone *l = exchanging_lone_of(2); /* whose blocks have more than one group */
    sent_to_1 s = {0};
    dlxi_frame frame = {.kind = DLXI_FRAME_CONTRIBUTION,
                        .term = 1,
                        .round = 1,
                        .attempt = 1,
                        .site = 1,
                        .offset_groups = 1,
                        .count_groups = 1,
                        .payload = payload,
                        .payload_bytes = (uint32_t)group_bytes};
    l->on_send = note_sent;
    l->context = &s;
    for (int i = 0; i < 3; i++) {
        lone_hear(l, 1, frame);
        lone_turn(l, 1);
        assert_int_equal(s.greetings, 1);
        assert_int_equal(s.newest.asks, 1);
    }
    assert_int_equal(l->sent[DLXI_FRAME_ABORT], 0);
    lone_close(l);
}

/* Once per request; the greeting that answers it comes first. */
static void what_is_asked_for_is_sent_again(void **state) {
    (void)state;
    lone *l = exchanging_lone();
    sent_to_1 s = {0};
    uint32_t of_two = l->sent[DLXI_FRAME_CONTRIBUTION];
    l->on_send = note_sent;
    l->context = &s;
    greet_1(l, 2, 9, 0, 0, 0); /* of another attempt */
    lone_turn(l, 1);
    assert_int_equal(s.contributions, 0);
    for (uint32_t request = 1; request <= 3; request++) {
        for (int again = 0; again < 2; again++) {
            s.contributions = 0;
            greet_1(l, 1, request, 0, 0, 0);
            lone_turn(l, 1);
            if (again)
                assert_int_equal(s.contributions, 0);
            else
                assert_in_range(s.contributions, 1, of_two - 1);
            assert_int_equal(s.answers, request);
        }
    }
    assert_int_equal(l->lines, 1);                   /* within 10 s */
    greet_1(l, 1, UINT32_MAX, 0, 0, UINT64_MAX - 1); /* what was never sent */
    s.contributions = 0;
    lone_turn(l, 1);
    assert_int_equal(s.contributions, 0);
    assert_string_equal(l->line, "frames to site '01' were lost, and are sent again");
    lone_close(l);
}

/* What repeats itself is no progress: requests do not keep an attempt alive. */
static void requests_are_no_progress(void **state) {
    (void)state;
    lone *l = exchanging_lone();
    int64_t begun_ms = l->now_ms;
    for (uint32_t request = 1; l->sent[DLXI_FRAME_ABORT] == 0; request++) {
        lone_ping(l, 1, 1, 1);
        greet_1(l, 1, request, 0, request, 0);
        lone_turn(l, 100);
        assert_in_range(l->now_ms - begun_ms, 0, 2 * LONE_TIMEOUT_MS + 100);
    }
    assert_true(l->now_ms - begun_ms >= LONE_TIMEOUT_MS);
    lone_close(l);
}

/* That another site has received more, as it says, is progress: once. */
static void what_arrives_is_progress(void **state) {
    (void)state;
    lone *l = exchanging_lone();
    int64_t begun_ms = l->now_ms;
    while (l->sent[DLXI_FRAME_ABORT] == 0) {
        lone_ping(l, 1, 1, 1);
        if (l->now_ms - begun_ms >= LONE_TIMEOUT_MS - 200) greet_1(l, 1, 0, 0, 0, 1);
        lone_turn(l, 100);
        assert_in_range(l->now_ms - begun_ms, 0, 2 * LONE_TIMEOUT_MS);
    }
    assert_true(l->now_ms - begun_ms >= 2 * LONE_TIMEOUT_MS - 200);
    lone_close(l);
}

static void a_malformed_frame_ends_the_attempt_and_names_its_sender(void **state) {
    (void)state;
    lone *l = exchanging_lone();
    dlxi_frame frame = {
        .kind = DLXI_FRAME_RESULT, .term = 1, .round = 1, .attempt = 1, .site = 2, .tensor = 99};
    for (int i = 0; i < 5; i++) lone_hear(l, 2, frame);
    lone_turn(l, 1);
    assert_int_equal(l->sent[DLXI_FRAME_ABORT], 1);
    assert_string_equal(l->said.as.reason.text,
                        "from site '02': site 2: tensor 99 is not part of this exchange");
    assert_false(l->last.ended);
    lone_close(l);
}

static void a_site_that_sends_as_another_is_named(void **state) {
    (void)state;
    lone *l = exchanging_lone();
    lone_hear(l, 2, (dlxi_frame){.kind = DLXI_FRAME_GREETING, .term = 1, .site = 1});
    lone_turn(l, 1);
    assert_true(l->last.ended);
    assert_int_equal(l->said.kind, DLXI_FRAME_FAILED);
    assert_string_equal(l->said.as.reason.text,
                        "site '02' sent as rank 0 of site 1, not as rank 0 of site 2; check "
                        "wan.listen: each rank needs ports of its own");
    lone_close(l);
}

/* Whether this site misses contributions or, since it owns nothing, only results. */
static void silent_sites_are_named_within_the_timeout(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    for (uint16_t index = 0; index < 3; index++) {
        lone *l = lone_open(&config, 1, 0); /* too few groups for three owners */
        lone_join(l, index, 3);
        lone_submit(l);
        lone_begin(l, 1, 1, 0, 3);
        lone_turn(l, 1);
        int64_t begun_ms = l->now_ms;
        while (l->sent[DLXI_FRAME_ABORT] == 0) {
            lone_ping(l, 1, 1, 1);
            lone_turn(l, 100);
        }
        assert_in_range(l->now_ms - begun_ms, LONE_TIMEOUT_MS, LONE_TIMEOUT_MS + 100);
        assert_int_equal(strncmp(l->said.as.reason.text, "no data from site '0", 20), 0);
        lone_close(l);
    }
}

static void a_silent_coordinator_is_dialled_once_more(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    for (int i = 0; i < 9; i++) lone_turn(l, LONE_TIMEOUT_MS / 10);
    assert_int_equal(l->reconnects, 0); /* it was never there: the link itself tries again */
    lone_join(l, 0, 3);
    for (uint32_t silences = 1; silences <= 3; silences++) {
        lone_ping(l, 1, 0, 0);
        for (int i = 1; i < 10; i++) {
            lone_greet(l, 1); /* the ways to other sites work */
            lone_greet(l, 2);
            lone_turn(l, LONE_TIMEOUT_MS / 10);
            assert_int_equal(l->reconnects, i < 5 ? silences - 1 : silences);
        }
        assert_int_equal(l->reconnected, DLXI_SITE_COORDINATOR);
    }
    assert_false(l->last.ended);
    lone_close(l);
}

static _Thread_local int allocation_to_fail; /* of this thread; 1: the next; 0: none */
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

static bool allocation_fails(void) {
    return allocation_to_fail > 0 && --allocation_to_fail == 0;
}

void *__wrap_malloc(size_t bytes) {
    return allocation_fails() ? NULL : __real_malloc(bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    return allocation_fails() ? NULL : __real_aligned_alloc(alignment, bytes);
}

/* ---- failures of this rank ------------------------------------------------------------------- */

/* The link breaks while the commit is computed: the round counts, then the rank ends. */
static void a_link_that_breaks_in_a_commit_ends_the_rank_after_it(void **state) {
    (void)state;
    lone *l = committing_lone(3);
    l->link = DLX_SYSTEM;
    l->busy_ms = 300;
    lone_turn(l, 1);
    assert_int_equal(l->refused, DLXI_FRAME_FAILED); /* the last that it tried */
    assert_true(l->last.committed && l->last.ended);
    assert_int_equal(l->state->rounds, 1);
    assert_int_equal(l->last.failure.status, DLX_SYSTEM);
    lone_close(l);
}

static void a_link_that_breaks_in_a_projection_ends_the_rank_after_it(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    lone_join(l, 0, 3);
    lone_submit(l);
    lone_begin(l, 1, 1, 0, 1);
    l->link = DLX_SYSTEM;
    l->busy_ms = 300;
    lone_turn(l, 1);
    assert_true(l->last.ended && !l->last.committed);
    assert_int_equal(l->last.failure.status, DLX_SYSTEM);
    lone_close(l);
}

static void a_rank_without_memory_for_a_message_ends(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS, 0);
    lone_join(l, 0, 3);
    allocation_to_fail = 1;
    lone_submit(l);
    assert_int_equal(allocation_to_fail, 0);
    lone_turn(l, 1);
    assert_true(l->last.ended);
    assert_int_equal(l->last.failure.status, DLX_MEMORY);
    lone_close(l);
}

/* A round of one, with frames that come early. */
static void round_run(lone *l) {
    static const uint8_t payload[64];
    lone_join(l, 0, 3);
    if (l->last.ended) return;
    lone_submit(l);
    lone_hear(l, 1,
              (dlxi_frame){.kind = DLXI_FRAME_RESULT,
                           .term = 1,
                           .round = 1,
                           .attempt = 2,
                           .site = 1,
                           .payload = payload,
                           .payload_bytes = sizeof payload});
    lone_begin(l, 1, 1, 0, 1);
    lone_turn(l, LONE_TIMEOUT_MS / 4);
    if (l->sent[DLXI_FRAME_STAGED] > 0) lone_commit(l, 1, 1);
    lone_turn(l, LONE_TIMEOUT_MS / 4);
}

/* The rank ends for want of memory, or does without; nothing leaks, which a sanitizer sees. */
static void any_allocation_may_fail(void **state) {
    (void)state;
    const dlx_sync_config config = lone_config();
    int opened = 0, ended = 0, n = 0;
    for (bool failed = true; failed;) {
        lone *l;
        allocation_to_fail = ++n;
        dlx_status status = lone_try(&l, &config, LONE_TENSORS, 0);
        if (status == DLX_OK) {
            opened++;
            round_run(l);
            failed = allocation_to_fail == 0;
            allocation_to_fail = 0;
            assert_true(l->last.ended || l->last.committed);
            if (l->last.ended) assert_int_equal(l->last.failure.status, DLX_MEMORY);
            ended += l->last.ended;
            lone_close(l);
        } else {
            assert_int_equal(status, DLX_MEMORY);
        }
    }
    assert_true(opened > ended && ended > 3 && n > opened);
}

/* So does opening both ends of a run, with all that they open in turn. */
static void any_allocation_of_an_open_may_fail(void **state) {
    (void)state;
    static float p[240];
    static const volatile sig_atomic_t interrupted = 1; /* it would wait for the run */
    const dlx_tensor tensor = {.name = "matrix", .data = p, .rows = 12, .cols = 20};
    dlx_status status = DLX_MEMORY;
    dlx_hub *hub;
    assert_int_equal(dlx_hub_open(&hub, NULL), DLX_OK);
    for (int n = 1; status == DLX_MEMORY; n++) {
        dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
        dlx_sync *sync;
        config.link.hub = hub;
        config.site = "a";
        config.interrupted = &interrupted;
        allocation_to_fail = n;
        status = dlx_sync_open(&sync, &config, &tensor, 1, NULL);
        assert_null(sync);
    }
    allocation_to_fail = 0;
    assert_int_equal(status, DLX_INTERRUPTED);
    status = DLX_MEMORY;
    for (int n = 1; status == DLX_MEMORY; n++) {
        dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;
        dlx_coordinator *coordinator;
        config.link.hub = hub;
        config.tokens = 1;
        allocation_to_fail = n;
        status = dlx_coordinator_open(&coordinator, &config, NULL);
        dlx_coordinator_close(&coordinator);
    }
    allocation_to_fail = 0;
    assert_int_equal(status, DLX_OK);
    dlx_hub_close(&hub);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_exchange_is_timed),
        cmocka_unit_test(a_late_abort_keeps_a_commit),
        cmocka_unit_test(a_round_is_served_before_it_is_applied),
        cmocka_unit_test(frames_of_rounds_far_away_keep_a_commit),
        cmocka_unit_test(more_frames_than_a_round_holds_keep_a_commit),
        cmocka_unit_test(a_missing_anchor_is_reported),
        cmocka_unit_test(the_most_sites_reach_each_other),
        cmocka_unit_test(an_attempt_ends_with_its_coordinator),
        cmocka_unit_test(what_is_staged_waits_for_the_next_coordinator),
        cmocka_unit_test(what_was_lost_is_asked_for),
        cmocka_unit_test(a_gap_is_asked_for_once),
        cmocka_unit_test(what_is_asked_for_is_sent_again),
        cmocka_unit_test(requests_are_no_progress),
        cmocka_unit_test(what_arrives_is_progress),
        cmocka_unit_test(a_malformed_frame_ends_the_attempt_and_names_its_sender),
        cmocka_unit_test(a_site_that_sends_as_another_is_named),
        cmocka_unit_test(silent_sites_are_named_within_the_timeout),
        cmocka_unit_test(a_silent_coordinator_is_dialled_once_more),
        cmocka_unit_test(a_link_that_breaks_in_a_commit_ends_the_rank_after_it),
        cmocka_unit_test(a_link_that_breaks_in_a_projection_ends_the_rank_after_it),
        cmocka_unit_test(a_rank_without_memory_for_a_message_ends),
        cmocka_unit_test(any_allocation_may_fail),
        cmocka_unit_test(any_allocation_of_an_open_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
