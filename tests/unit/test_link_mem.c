/* SPDX-License-Identifier: Apache-2.0 */
/* The `mem` link: order, bounds, waking, loss, and the count of bytes, within one thread and
 * between several. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "link/links.h"

enum { QUEUE_FRAMES = 4, DEADLINE_MS = 20000 };

/* A hub with a coordinator and two sites that know each other as peers 0 and 1. */
typedef struct world {
    dlx_hub *hub;
    dlxi_link *coordinator, *site[2];
} world;

static dlx_error error;

static void must(dlx_status status) {
    if (status != DLX_OK) fail_msg("%s: %s", dlx_status_text(status), error.message);
}

static void join(dlxi_link *a, uint32_t a_index, dlxi_link *b, uint32_t b_index) {
    char at_a[DLXI_ENDPOINT_BYTES], at_b[DLXI_ENDPOINT_BYTES];
    must(a->op->listen(a, a_index, b_index, "b", "", at_a, &error));
    must(b->op->listen(b, b_index, a_index, "a", "", at_b, &error));
    must(a->op->connect(a, b_index, at_b, &error));
    must(b->op->connect(b, a_index, at_a, &error));
}

static void build(world *w) {
    *w = (world){0};
    must(dlxi_mem_hub_open(&w->hub, QUEUE_FRAMES, &error));
    must(w->hub->open_coordinator(w->hub, &w->coordinator, &error));
    must(w->hub->open_site(w->hub, &w->site[0], "delft", 0, &error));
    must(w->hub->open_site(w->hub, &w->site[1], "oslo", 0, &error));
    join(w->site[0], 0, w->site[1], 1);
}

static void raze(world *w) {
    dlxi_link_close(&w->site[0]);
    dlxi_link_close(&w->site[1]);
    dlxi_link_close(&w->coordinator);
    assert_null(w->coordinator);
    dlxi_hub_close(&w->hub);
    assert_null(w->hub);
}

static dlx_status send(dlxi_link *link, uint32_t to, dlxi_frame_kind kind, uint64_t round) {
    static const uint8_t payload[5] = "hello";
    dlxi_frame frame = {
        .kind = kind, .round = round, .payload = payload, .payload_bytes = sizeof payload};
    return link->op->send(link, to, &frame, &error);
}

static dlx_status receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from, dlxi_frame *frame) {
    return link->op->receive(link, timeout_ms, from, frame, &error);
}

static void frames_arrive_in_order_with_their_fields(void **state) {
    (void)state;
    world w;
    build(&w);
    uint8_t payload[300];
    for (size_t i = 0; i < sizeof payload; i++) payload[i] = (uint8_t)(i * 7);
    for (uint32_t i = 0; i < 3; i++) {
        dlxi_frame frame = {.kind = DLXI_FRAME_CONTRIBUTION,
                            .term = 9,
                            .round = i,
                            .attempt = 2,
                            .site = 0,
                            .rank = 1,
                            .tensor = 40 + i,
                            .trip = 1,
                            .offset_groups = 3,
                            .count_groups = 8,
                            .payload = payload,
                            .payload_bytes = 100 * i};
        must(w.site[0]->op->send(w.site[0], 1, &frame, &error));
    }
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t from = 99;
        dlxi_frame got;
        must(receive(w.site[1], 0, &from, &got));
        assert_int_equal(from, 0);
        assert_int_equal(got.round, i);
        assert_int_equal(got.tensor, 40 + i);
        assert_int_equal(got.term, 9);
        assert_int_equal(got.rank, 1);
        assert_int_equal(got.payload_bytes, 100 * i);
        assert_memory_equal(got.payload, payload, 100 * i);
    }
    dlxi_link_statistics sent, received;
    dlxi_link_statistics_read(w.site[0], &sent);
    dlxi_link_statistics_read(w.site[1], &received);
    assert_int_equal(sent.bytes_sent, 3 * 56 + 300);
    assert_int_equal(sent.frames_sent, 3);
    assert_int_equal(received.bytes_received, sent.bytes_sent);
    assert_int_equal(received.frames_received, 3);
    assert_int_equal(received.frames_dropped, 0);
    raze(&w);
}

static void a_full_queue_refuses_until_there_is_room(void **state) {
    (void)state;
    world w;
    build(&w);
    uint32_t from;
    dlxi_frame got;
    for (uint64_t i = 0; i < QUEUE_FRAMES; i++) must(send(w.site[0], 1, DLXI_FRAME_RESULT, i));
    assert_int_equal(receive(w.site[0], 0, &from, &got), DLX_TIMEOUT);
    assert_int_equal(send(w.site[0], 1, DLXI_FRAME_RESULT, 99), DLX_AGAIN);
    assert_int_equal(receive(w.site[0], 0, &from, &got), DLX_TIMEOUT); /* no room yet */
    /* another queue has room */
    must(send(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_PING, 0));
    must(receive(w.site[1], 0, &from, &got));
    assert_int_equal(got.round, 0);
    assert_int_equal(receive(w.site[0], 0, &from, &got), DLX_AGAIN);
    assert_int_equal(receive(w.site[0], 0, &from, &got), DLX_TIMEOUT); /* once per refusal */
    must(send(w.site[0], 1, DLXI_FRAME_RESULT, QUEUE_FRAMES));
    for (uint64_t i = 1; i <= QUEUE_FRAMES; i++) {
        must(receive(w.site[1], 0, &from, &got));
        assert_int_equal(got.round, i);
    }
    raze(&w);
}

static void control_comes_before_data(void **state) {
    (void)state;
    world w;
    build(&w);
    uint32_t from;
    dlxi_frame got;
    must(send(w.site[1], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0));
    must(receive(w.coordinator, 0, &from, &got));
    assert_int_equal(from, 0); /* numbered by first frame, not by opening */
    assert_string_equal(w.coordinator->op->peer_name(w.coordinator, from), "oslo");
    must(send(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0));
    must(receive(w.coordinator, 0, &from, &got));
    assert_int_equal(from, 1);
    assert_string_equal(w.coordinator->op->peer_name(w.coordinator, from), "delft");

    must(send(w.site[1], 0, DLXI_FRAME_CONTRIBUTION, 1));
    must(send(w.coordinator, 1, DLXI_FRAME_ABORT, 2));
    must(receive(w.site[0], 0, &from, &got));
    assert_int_equal(from, DLXI_SITE_COORDINATOR);
    assert_int_equal(got.kind, DLXI_FRAME_ABORT);
    must(receive(w.site[0], 0, &from, &got));
    assert_int_equal(from, 1);
    raze(&w);
}

/* However many frames one has sent, and also at the coordinator. */
static void peers_take_turns(void **state) {
    (void)state;
    world w;
    build(&w);
    dlxi_link *third = NULL;
    must(w.hub->open_site(w.hub, &third, "rome", 0, &error));
    char at[2][DLXI_ENDPOINT_BYTES];
    must(third->op->listen(third, 2, 0, "a", "", at[0], &error));
    must(w.site[0]->op->listen(w.site[0], 0, 2, "c", "", at[1], &error));
    must(third->op->connect(third, 0, at[1], &error));
    must(w.site[0]->op->connect(w.site[0], 2, at[0], &error));
    for (uint64_t i = 0; i < 3; i++) must(send(w.site[1], 0, DLXI_FRAME_RESULT, i));
    for (uint64_t i = 0; i < 2; i++) must(send(third, 0, DLXI_FRAME_RESULT, i));
    must(send(w.site[1], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0));
    must(send(w.site[1], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 1));
    must(send(third, DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0));
    static const struct {
        uint32_t from;
        uint64_t round;
    } at_site[] = {{1, 0}, {2, 0}, {1, 1}, {2, 1}, {1, 2}},
      at_coordinator[] = {{0, 0}, {1, 0}, {0, 1}};
    uint32_t from;
    dlxi_frame got;
    for (size_t i = 0; i < 5; i++) {
        must(receive(w.site[0], 0, &from, &got));
        assert_int_equal(from, at_site[i].from);
        assert_int_equal(got.round, at_site[i].round);
    }
    for (size_t i = 0; i < 3; i++) {
        must(receive(w.coordinator, 0, &from, &got));
        assert_int_equal(from, at_coordinator[i].from);
        assert_int_equal(got.round, at_coordinator[i].round);
    }
    dlxi_link_close(&third);
    raze(&w);
}

/* Frames of an endpoint that site 1 is no longer stay unread until it is again. */
static void a_site_may_become_another_endpoint(void **state) {
    (void)state;
    world w;
    build(&w);
    dlxi_link *second = NULL;
    must(w.hub->open_site(w.hub, &second, "oslo", 0, &error));
    char at_first[DLXI_ENDPOINT_BYTES], at_second[DLXI_ENDPOINT_BYTES], at_0[DLXI_ENDPOINT_BYTES];
    must(w.site[1]->op->listen(w.site[1], 1, 0, "delft", "", at_first, &error));
    must(second->op->listen(second, 1, 0, "delft", "", at_second, &error));
    must(w.site[0]->op->listen(w.site[0], 0, 1, "oslo", "", at_0, &error));
    must(second->op->connect(second, 0, at_0, &error));
    uint32_t from;
    dlxi_frame got;
    for (uint64_t i = 0; i < 2; i++) must(send(w.site[1], 0, DLXI_FRAME_RESULT, i));
    must(send(second, 0, DLXI_FRAME_RESULT, 10));
    must(receive(w.site[0], 0, &from, &got));
    assert_int_equal(got.round, 0);
    must(w.site[0]->op->connect(w.site[0], 1, at_second, &error));
    must(receive(w.site[0], 0, &from, &got));
    assert_int_equal(from, 1);
    assert_int_equal(got.round, 10);
    assert_int_equal(receive(w.site[0], 0, &from, &got), DLX_TIMEOUT);
    must(send(w.site[0], 1, DLXI_FRAME_RESULT, 11));
    must(receive(second, 0, &from, &got));
    assert_int_equal(got.round, 11);
    must(w.site[0]->op->connect(w.site[0], 1, at_first, &error));
    must(receive(w.site[0], 0, &from, &got));
    assert_int_equal(got.round, 1);
    dlxi_link_close(&second);
    raze(&w);
}

static void frames_wait_until_their_sender_is_known(void **state) {
    (void)state;
    world w;
    build(&w);
    dlxi_link *late = NULL;
    must(w.hub->open_site(w.hub, &late, "rome", 0, &error));
    char at_late[DLXI_ENDPOINT_BYTES], at_0[DLXI_ENDPOINT_BYTES];
    uint32_t from;
    dlxi_frame got;
    must(late->op->listen(late, 2, 0, "delft", "", at_late, &error));
    must(w.site[0]->op->listen(w.site[0], 0, 2, "rome", "", at_0, &error));
    must(w.site[0]->op->connect(w.site[0], 2, at_late, &error));
    must(send(w.site[0], 2, DLXI_FRAME_GREETING, 5));
    assert_int_equal(receive(late, 0, &from, &got), DLX_TIMEOUT);
    must(late->op->connect(late, 0, at_0, &error));
    must(receive(late, 0, &from, &got));
    assert_int_equal(from, 0);
    assert_int_equal(got.round, 5);
    dlxi_link_close(&late);
    raze(&w);
}

static void a_closed_peer_is_lost_but_what_it_sent_arrives(void **state) {
    (void)state;
    world w;
    build(&w);
    uint32_t from;
    dlxi_frame got;
    must(send(w.site[1], 0, DLXI_FRAME_RESULT, 3));
    for (uint64_t i = 0; i < QUEUE_FRAMES; i++) must(send(w.site[0], 1, DLXI_FRAME_RESULT, i));
    assert_int_equal(send(w.site[0], 1, DLXI_FRAME_RESULT, 9), DLX_AGAIN);
    dlxi_link_close(&w.site[1]);
    assert_int_equal(receive(w.site[0], 0, &from, &got), DLX_AGAIN); /* try again: */
    assert_int_equal(send(w.site[0], 1, DLXI_FRAME_RESULT, 9), DLX_PEER_LOST);
    must(receive(w.site[0], 0, &from, &got));
    assert_int_equal(got.round, 3);
    dlxi_link_close(&w.coordinator);
    assert_int_equal(send(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_PING, 0), DLX_PEER_LOST);
    raze(&w);
}

static void a_site_may_open_before_the_coordinator(void **state) {
    (void)state;
    dlx_hub *hub = NULL;
    dlxi_link *site = NULL, *coordinator = NULL, *second = NULL;
    uint32_t from;
    dlxi_frame got;
    must(dlxi_mem_hub_open(&hub, 1, &error));
    must(hub->open_site(hub, &site, "delft", 0, &error));
    assert_int_equal(send(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0), DLX_AGAIN);
    must(hub->open_coordinator(hub, &coordinator, &error));
    assert_int_equal(receive(site, 0, &from, &got), DLX_AGAIN);
    must(send(site, DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0));
    must(receive(coordinator, 0, &from, &got));
    assert_int_equal(hub->open_coordinator(hub, &second, &error), DLX_STATE);
    assert_string_equal(error.message, "hub: it has a coordinator already");
    assert_null(second);
    dlxi_link_close(&site);
    dlxi_link_close(&coordinator);
    dlxi_hub_close(&hub);
}

/* Each rank of a site is an endpoint of its own, of one name; a run has many more than sites. */
static void the_coordinator_numbers_many_ranks(void **state) {
    (void)state;
    enum { ENDPOINTS = 300 };
    dlx_hub *hub = NULL;
    dlxi_link *coordinator = NULL, *rank[ENDPOINTS];
    uint32_t from;
    dlxi_frame got;
    must(dlxi_mem_hub_open(&hub, 1, &error));
    must(hub->open_coordinator(hub, &coordinator, &error));
    for (uint16_t r = 0; r < ENDPOINTS; r++) {
        must(hub->open_site(hub, &rank[r], "delft", r, &error));
        must(send(rank[r], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, r));
        must(receive(coordinator, 0, &from, &got));
        assert_int_equal(from, r);
        assert_string_equal(coordinator->op->peer_name(coordinator, r), "delft");
    }
    for (uint32_t r = 0; r < ENDPOINTS; r++) {
        must(send(coordinator, r, DLXI_FRAME_BEGIN, 1000 + r));
        must(receive(rank[r], 0, &from, &got));
        assert_int_equal(got.round, 1000 + r);
    }
    for (uint16_t r = 0; r < ENDPOINTS; r++) dlxi_link_close(&rank[r]);
    dlxi_link_close(&coordinator);
    dlxi_hub_close(&hub);
}

static void ranks_talk_to_their_counterparts(void **state) {
    (void)state;
    world w;
    build(&w);
    dlxi_link *rank_1[2];
    must(w.hub->open_site(w.hub, &rank_1[0], "delft", 1, &error));
    must(w.hub->open_site(w.hub, &rank_1[1], "oslo", 1, &error));
    join(rank_1[0], 0, rank_1[1], 1);
    uint32_t from;
    dlxi_frame got;
    must(send(w.site[0], 1, DLXI_FRAME_RESULT, 7));
    must(send(rank_1[0], 1, DLXI_FRAME_RESULT, 8));
    must(receive(rank_1[1], 0, &from, &got));
    assert_int_equal(from, 0);
    assert_int_equal(got.round, 8);
    must(receive(w.site[1], 0, &from, &got));
    assert_int_equal(from, 0);
    assert_int_equal(got.round, 7);
    assert_int_equal(receive(rank_1[1], 0, &from, &got), DLX_TIMEOUT);
    dlxi_link_close(&rank_1[0]);
    dlxi_link_close(&rank_1[1]);
    raze(&w);
}

static void wrong_use_is_refused(void **state) {
    (void)state;
    world w;
    build(&w);
    char endpoint[DLXI_ENDPOINT_BYTES];
    dlx_hub *hub = NULL;
    assert_int_equal(dlxi_mem_hub_open(&hub, 0, &error), DLX_ARGUMENT);
    assert_string_equal(error.message, "hub: queue of 0 frames, allowed are 1 to 65536");
    assert_int_equal(send(w.site[0], 5, DLXI_FRAME_RESULT, 0), DLX_STATE);
    assert_int_equal(send(w.site[0], UINT32_MAX, DLXI_FRAME_RESULT, 0), DLX_STATE);
    assert_int_equal(w.site[0]->op->listen(w.site[0], 0, 64, "x", "", endpoint, &error),
                     DLX_ARGUMENT);
    assert_int_equal(w.site[0]->op->connect(w.site[0], 64, "mem:1", &error), DLX_ARGUMENT);
    static const char *const hostile[] = {"",
                                          "mem:",
                                          "mem:1x",
                                          "tcp://127.0.0.1:1",
                                          "mem:99999",
                                          "mem:-1",
                                          "mem:11111111111111111111"};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++)
        assert_int_equal(w.site[0]->op->connect(w.site[0], 1, hostile[i], &error), DLX_DATA);
    raze(&w);
}

/* ---- several threads ------------------------------------------------------------------------- */

static void *wake_it(void *argument) {
    dlxi_link *link = argument;
    link->op->wake(link);
    return NULL;
}

static void wake_ends_a_receive(void **state) {
    (void)state;
    world w;
    build(&w);
    uint32_t from;
    dlxi_frame got;
    pthread_t thread;
    for (int i = 0; i < 50; i++) { /* before, during or after the wait begins */
        assert_int_equal(pthread_create(&thread, NULL, wake_it, w.site[0]), 0);
        assert_int_equal(receive(w.site[0], DEADLINE_MS, &from, &got), DLX_AGAIN);
        pthread_join(thread, NULL);
    }
    assert_int_equal(pthread_create(&thread, NULL, wake_it, w.site[0]), 0);
    assert_int_equal(receive(w.site[0], -1, &from, &got), DLX_AGAIN);
    pthread_join(thread, NULL);
    raze(&w);
}

enum { EXCHANGED = 2000 };

typedef struct partner {
    dlxi_link *link;
    uint32_t other;
    uint64_t sent, received;
    const char *failure;
} partner;

/* Sends and receives EXCHANGED frames, both as fast as the queues allow. */
static void *exchange(void *argument) {
    partner *p = argument;
    dlx_error failure;
    uint8_t payload[64];
    bool full = false;
    while (p->sent < EXCHANGED || p->received < EXCHANGED) {
        if (p->sent < EXCHANGED && !full) {
            memset(payload, (int)(p->sent & 0xFF), sizeof payload);
            dlxi_frame frame = {.kind = DLXI_FRAME_RESULT,
                                .round = p->sent,
                                .payload = payload,
                                .payload_bytes = (uint32_t)(p->sent % sizeof payload)};
            dlx_status status = p->link->op->send(p->link, p->other, &frame, &failure);
            if (status == DLX_OK)
                p->sent++;
            else if (status == DLX_AGAIN)
                full = true;
            else
                return p->failure = "send failed", NULL;
            if (!full) continue;
        }
        uint32_t from;
        dlxi_frame got;
        dlx_status status = p->link->op->receive(p->link, DEADLINE_MS, &from, &got, &failure);
        if (status == DLX_AGAIN) {
            full = false;
        } else if (status != DLX_OK) {
            return p->failure = "no frame arrived within the deadline", NULL;
        } else {
            if (got.round != p->received || got.payload_bytes != got.round % sizeof payload ||
                (got.payload_bytes != 0 && got.payload[0] != (got.round & 0xFF)))
                return p->failure = "frames out of order or changed", NULL;
            p->received++;
        }
    }
    return NULL;
}

static void two_threads_exchange_under_backpressure(void **state) {
    (void)state;
    world w;
    build(&w);
    partner partners[2] = {{.link = w.site[0], .other = 1}, {.link = w.site[1], .other = 0}};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, exchange, &partners[1]), 0);
    exchange(&partners[0]);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++)
        if (partners[i].failure != NULL) fail_msg("site %d: %s", i, partners[i].failure);
    raze(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_arrive_in_order_with_their_fields),
        cmocka_unit_test(a_full_queue_refuses_until_there_is_room),
        cmocka_unit_test(control_comes_before_data),
        cmocka_unit_test(peers_take_turns),
        cmocka_unit_test(a_site_may_become_another_endpoint),
        cmocka_unit_test(frames_wait_until_their_sender_is_known),
        cmocka_unit_test(a_closed_peer_is_lost_but_what_it_sent_arrives),
        cmocka_unit_test(a_site_may_open_before_the_coordinator),
        cmocka_unit_test(the_coordinator_numbers_many_ranks),
        cmocka_unit_test(ranks_talk_to_their_counterparts),
        cmocka_unit_test(wrong_use_is_refused),
        cmocka_unit_test(wake_ends_a_receive),
        cmocka_unit_test(two_threads_exchange_under_backpressure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
