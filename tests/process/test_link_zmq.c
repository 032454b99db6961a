/* SPDX-License-Identifier: Apache-2.0 */
/* The `zmq` link over loopback: endpoints with contexts of their own, as in processes of their own,
 * and raw ZeroMQ sockets for peers that break the rules. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <zmq.h>

#include "base/clock.h"
#include "link_world.h"
#include "tcp_relay.h"

static dlx_status send(dlxi_link *link, uint32_t to, dlxi_frame_kind kind, uint64_t round) {
    dlxi_frame frame = {
        .kind = kind, .round = round, .payload = (const uint8_t *)"hello", .payload_bytes = 5};
    return link->op->send(link, to, &frame, &error);
}

/* The next frame. */
static void expect_frame(dlxi_link *link, uint32_t *from, dlxi_frame *frame) {
    dlx_status status;
    do status = link->op->receive(link, DEADLINE_MS, from, frame, &error);
    while (status == DLX_AGAIN);
    must(status);
}

static void expect_nothing(dlxi_link *link) {
    uint32_t from;
    dlxi_frame frame;
    assert_int_equal(link->op->receive(link, 0, &from, &frame, &error), DLX_TIMEOUT);
}

/* Sends, and waits for room if there is none. */
static void send_surely(dlxi_link *link, uint32_t to, dlxi_frame_kind kind, uint64_t round) {
    dlx_status status;
    while ((status = send(link, to, kind, round)) == DLX_AGAIN) {
        uint32_t from;
        dlxi_frame frame;
        status = link->op->receive(link, DEADLINE_MS, &from, &frame, &error);
        if (status != DLX_AGAIN)
            fail_msg("no room within the deadline, but %s", dlx_status_text(status));
    }
    must(status);
}

/* ---- frames ---------------------------------------------------------------------------------- */

enum { EXCHANGED = 1000, EXCHANGED_BYTES = 64 * 1024 };

typedef struct partner {
    dlxi_link *link;
    uint32_t other;
    uint32_t payload_bytes;
    uint64_t sent, received, refused;
    char failure[256];
} partner;

/* Sends and receives EXCHANGED frames, both as fast as the link takes them. */
static void *exchange(void *argument) {
    partner *p = argument;
    dlx_error failure = {0};
    uint8_t *payload = malloc(p->payload_bytes);
    bool full = false;
    while (payload != NULL && p->failure[0] == '\0' &&
           (p->sent < EXCHANGED || p->received < EXCHANGED)) {
        if (p->sent < EXCHANGED && !full) {
            memset(payload, (int)(p->sent & 0xFF), p->payload_bytes);
            dlxi_frame frame = {.kind = DLXI_FRAME_RESULT,
                                .round = p->sent,
                                .payload = payload,
                                .payload_bytes = p->payload_bytes - (uint32_t)p->sent % 64};
            dlx_status status = p->link->op->send(p->link, p->other, &frame, &failure);
            if (status == DLX_OK)
                p->sent++;
            else if (status != DLX_AGAIN)
                snprintf(p->failure, sizeof p->failure, "send: %.200s", failure.message);
            full = status == DLX_AGAIN;
            p->refused += full;
            if (!full) continue;
        }
        uint32_t from;
        dlxi_frame got;
        dlx_status status = p->link->op->receive(p->link, DEADLINE_MS, &from, &got, &failure);
        if (status == DLX_AGAIN) {
            full = false;
            continue;
        }
        bool good = status == DLX_OK && from == p->other && got.round == p->received &&
                    got.payload_bytes == p->payload_bytes - (uint32_t)got.round % 64 &&
                    got.payload[0] == (got.round & 0xFF) &&
                    got.payload[got.payload_bytes - 1] == got.payload[0];
        if (!good) snprintf(p->failure, sizeof p->failure, "receive: %s", dlx_status_text(status));
        p->received++;
    }
    free(payload);
    return NULL;
}

static double exchange_seconds(const char *at, bool curve, uint64_t *refused) {
    world w;
    build(&w, at, curve);
    partner partners[2] = {{.link = w.site[0], .other = 1, .payload_bytes = EXCHANGED_BYTES},
                           {.link = w.site[1], .other = 0, .payload_bytes = EXCHANGED_BYTES}};
    pthread_t thread;
    double from_s = dlxi_clock_s();
    assert_int_equal(pthread_create(&thread, NULL, exchange, &partners[1]), 0);
    exchange(&partners[0]);
    pthread_join(thread, NULL);
    double seconds = dlxi_clock_s() - from_s;
    for (int i = 0; i < 2; i++)
        if (partners[i].failure[0] != '\0')
            fail_msg("site %d after %d: %s", i, (int)partners[i].received, partners[i].failure);
    *refused = partners[0].refused + partners[1].refused;
    dlxi_link_statistics statistics[2];
    for (int i = 0; i < 2; i++) dlxi_link_statistics_read(w.site[i], &statistics[i]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(statistics[i].frames_received, EXCHANGED);
        assert_int_equal(statistics[i].bytes_received, statistics[1 - i].bytes_sent);
        assert_int_equal(statistics[i].frames_dropped, 0);
    }
    raze(&w);
    return seconds;
}

static void a_thousand_frames_both_ways(void **state) {
    (void)state;
    for (int curve = 1; curve >= 0; curve--) {
        uint64_t refused = 0;
        double seconds = exchange_seconds("127.0.0.1:0", curve != 0, &refused);
        assert_true(refused > 0); /* there was backpressure */
        print_message(
            "security %s: %.0f MB/s each way at once, %d frames of 64 KiB, %d sends refused\n",
            curve ? "curve" : "none", EXCHANGED * (EXCHANGED_BYTES * 1e-6) / seconds, EXCHANGED,
            (int)refused);
    }
}

/* The ranks of a site are processes that share its name and key; each has its own number and
 * channels. */
static void ranks_of_one_site_share_its_key(void **state) {
    (void)state;
    enum { RANKS = 20 };
    world w;
    build(&w, "127.0.0.1:0", true);
    dlxi_link *rank[RANKS] = {w.site[0]}, *other = NULL;
    dlxi_link_settings delft = settings_of(DELFT, w.bound, true),
                       oslo = settings_of(OSLO, w.bound, true);
    uint32_t from;
    dlxi_frame got;
    for (uint32_t r = 0; r < RANKS; r++) {
        if (r > 0) must(dlxi_zmq_site_open(&rank[r], &delft, &error));
        send_surely(rank[r], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, r);
        expect_frame(w.coordinator, &from, &got);
        assert_int_equal(from, r);
        assert_int_equal(got.round, r);
        assert_string_equal(w.coordinator->op->peer_name(w.coordinator, r), "delft");
    }
    for (uint32_t r = 0; r < RANKS; r++) {
        must(send(w.coordinator, r, DLXI_FRAME_BEGIN, 1000 + r));
        expect_frame(rank[r], &from, &got);
        assert_int_equal(from, DLXI_SITE_COORDINATOR);
        assert_int_equal(got.round, 1000 + r);
    }
    must(dlxi_zmq_site_open(&other, &oslo, &error));
    join(rank[1], 0, DELFT, other, 1, OSLO, true);
    dlxi_link *const to[2] = {w.site[1], other};
    for (uint32_t r = 0; r < 2; r++) send_surely(rank[r], 1, DLXI_FRAME_RESULT, 50 + r);
    for (uint32_t r = 2; r-- > 0;) {
        expect_frame(to[r], &from, &got);
        assert_int_equal(from, 0);
        assert_int_equal(got.round, 50 + r);
        expect_nothing(to[r]);
    }
    dlxi_link_close(&other);
    for (uint32_t r = 1; r < RANKS; r++) dlxi_link_close(&rank[r]);
    raze(&w);
}

static void names_numbers_and_replies(void **state) {
    (void)state;
    world w;
    build(&w, "127.0.0.1:0", true);
    uint32_t from;
    dlxi_frame got;
    send_surely(w.site[1], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 1);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(from, 0); /* by first frame */
    assert_string_equal(w.coordinator->op->peer_name(w.coordinator, 0), "oslo");
    assert_string_equal(w.coordinator->op->peer_key(w.coordinator, 0), key_text[OSLO]);
    send_surely(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 2);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(from, 1);
    assert_string_equal(w.coordinator->op->peer_name(w.coordinator, 1), "delft");
    assert_string_equal(w.coordinator->op->peer_name(w.coordinator, 2), "");
    must(send(w.coordinator, 1, DLXI_FRAME_WELCOME, 7));
    expect_frame(w.site[0], &from, &got);
    assert_int_equal(from, DLXI_SITE_COORDINATOR);
    assert_int_equal(got.kind, DLXI_FRAME_WELCOME);
    assert_int_equal(got.round, 7);
    expect_nothing(w.site[1]);
    assert_int_equal(send(w.coordinator, 2, DLXI_FRAME_WELCOME, 7), DLX_STATE);
    assert_int_equal(send(w.site[0], 3, DLXI_FRAME_RESULT, 7), DLX_STATE);
    raze(&w);
}

static void memory_stays_bounded(void **state) {
    (void)state;
    world w;
    build(&w, "127.0.0.1:0", true);
    uint8_t *payload = calloc(1, DLXI_FRAME_PAYLOAD_MAX);
    assert_non_null(payload);
    dlxi_frame frame = {
        .kind = DLXI_FRAME_RESULT, .payload = payload, .payload_bytes = DLXI_FRAME_PAYLOAD_MAX};
    uint32_t from;
    dlxi_frame got;
    /* No one receives: what is accepted is in two queues of 8 frames, an engine on each side, and
     * the kernel's buffers. */
    long kernel_bytes = 0, low, middle, high;
    const char *const limits[] = {"/proc/sys/net/ipv4/tcp_wmem", "/proc/sys/net/ipv4/tcp_rmem"};
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(limits[i], "r");
        assert_non_null(file);
        assert_int_equal(fscanf(file, "%ld %ld %ld", &low, &middle, &high), 3);
        fclose(file);
        kernel_bytes += high;
    }
    uint64_t most = 8 + 8 + 4 + (uint64_t)kernel_bytes / DLXI_FRAME_PAYLOAD_MAX;
    for (frame.round = 0; frame.round <= most;) {
        dlx_status status = w.site[0]->op->send(w.site[0], 1, &frame, &error);
        if (status == DLX_OK)
            frame.round++;
        else if (w.site[0]->op->receive(w.site[0], 200, &from, &got, &error) == DLX_TIMEOUT)
            break;
    }
    if (frame.round > most)
        fail_msg("%d frames were queued, %d are the bound", (int)frame.round, (int)most);
    /* Control is not behind them. */
    send_surely(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_PING, 0);
    expect_frame(w.coordinator, &from, &got);
    /* None is lost. */
    for (uint64_t i = 0; i < frame.round; i++) {
        expect_frame(w.site[1], &from, &got);
        assert_int_equal(got.round, i);
    }
    free(payload);
    raze(&w);
}

static void *wake_it(void *argument) {
    dlxi_link *link = argument;
    link->op->wake(link);
    return NULL;
}

static void wake_ends_a_receive(void **state) {
    (void)state;
    world w;
    build(&w, "127.0.0.1:0", true);
    uint32_t from;
    dlxi_frame got;
    dlxi_link *woken[] = {w.site[0], w.coordinator};
    for (int i = 0; i < 40; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, wake_it, woken[i % 2]), 0);
        dlx_status status =
            woken[i % 2]->op->receive(woken[i % 2], i < 20 ? -1 : DEADLINE_MS, &from, &got, &error);
        assert_int_equal(status, DLX_AGAIN);
        pthread_join(thread, NULL);
    }
    raze(&w);
}

static void close_lets_queued_frames_leave(void **state) {
    (void)state;
    world w;
    build(&w, "127.0.0.1:0", true);
    for (uint64_t i = 0; i < 20; i++)
        send_surely(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_REPORT, i);
    dlxi_link_close(&w.site[0]);
    uint32_t from;
    dlxi_frame got;
    for (uint64_t i = 0; i < 20; i++) {
        expect_frame(w.coordinator, &from, &got);
        assert_int_equal(got.round, i);
    }
    raze(&w);
}

/* Sends to a site that has left until the coordinator's endpoint reports it lost. */
static void a_site_that_left_is_lost(void **state) {
    (void)state;
    world w;
    build(&w, "127.0.0.1:0", true);
    uint32_t from;
    dlxi_frame got;
    send_surely(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0);
    expect_frame(w.coordinator, &from, &got);
    dlxi_link_close(&w.site[0]);
    dlx_status status;
    double from_s = dlxi_clock_s();
    while ((status = send(w.coordinator, from, DLXI_FRAME_PING, 0)) == DLX_OK ||
           status == DLX_AGAIN) {
        uint32_t other;
        w.coordinator->op->receive(w.coordinator, 50, &other, &got, &error);
        if (dlxi_clock_s() - from_s > DEADLINE_MS / 1000.0)
            fail_msg("not lost within the deadline");
    }
    assert_int_equal(status, DLX_PEER_LOST);
    assert_string_equal(error.message, "site 'delft' has had no connection for 1000 ms");
    raze(&w);
}

/* One direction between two endpoints. */
typedef struct stream {
    dlxi_link *from;
    uint32_t to; /* at from */
    dlxi_link *at;
    uint32_t sender; /* at `at` */
    uint64_t sent, received;
} stream;

/* Sends until a frame that was sent since this call began has arrived. Frames arrive in order;
 * those lost in a cut are missing. */
static void send_until_received(stream *s) {
    double from_s = dlxi_clock_s();
    uint64_t before = s->sent;
    while (dlxi_clock_s() - from_s < DEADLINE_MS / 1000.0) {
        uint32_t sender;
        dlxi_frame got;
        dlx_status status = send(s->from, s->to, DLXI_FRAME_GREETING, s->sent + 1);
        if (status == DLX_OK)
            s->sent++;
        else
            assert_int_equal(status, DLX_AGAIN);
        /* what receives learns of room */
        if (status == DLX_AGAIN) (void)s->from->op->receive(s->from, 0, &sender, &got, &error);
        if (s->at->op->receive(s->at, 20, &sender, &got, &error) != DLX_OK || sender != s->sender)
            continue;
        assert_true(got.round > s->received);
        s->received = got.round;
        if (s->received > before) return;
    }
    fail_msg("no frame arrived within the deadline: %d sent, %d received, to %u", (int)s->sent,
             (int)s->received, s->to);
}

/* delft reaches the coordinator, and oslo delft, through a relay. */
typedef struct relayed {
    world w;
    tcp_relay to_coordinator, to_site;
    stream streams[4]; /* both ways through each relay */
} relayed;

static void relayed_build(relayed *r) {
    world *w = &r->w;
    open_coordinator(w, "127.0.0.1:0", true);
    assert_int_equal(tcp_relay_open(&r->to_coordinator, (uint16_t)atoi(w->bound + 10)), 0);
    for (int i = 0; i < 2; i++) {
        char at[DLXI_ENDPOINT_BYTES];
        snprintf(at, sizeof at, "127.0.0.1:%d", r->to_coordinator.port);
        dlxi_link_settings settings = settings_of(DELFT + i, i == 0 ? at : w->bound, true);
        must(dlxi_zmq_site_open(&w->site[i], &settings, &error));
    }
    char at[DLXI_ENDPOINT_BYTES], none[DLXI_ENDPOINT_BYTES];
    must(w->site[0]->op->listen(w->site[0], 0, 1, "oslo", key_text[OSLO], at, &error));
    must(w->site[1]->op->listen(w->site[1], 1, 0, "delft", key_text[DELFT], none, &error));
    assert_int_equal(tcp_relay_open(&r->to_site, (uint16_t)atoi(at + 10)), 0);
    snprintf(at, sizeof at, "127.0.0.1:%d", r->to_site.port);
    must(w->site[0]->op->connect(w->site[0], 1, none, &error));
    must(w->site[1]->op->connect(w->site[1], 0, at, &error));
    stream streams[] = {{w->site[0], DLXI_SITE_COORDINATOR, w->coordinator, 0, 0, 0},
                        {w->coordinator, 0, w->site[0], DLXI_SITE_COORDINATOR, 0, 0},
                        {w->site[1], 0, w->site[0], 1, 0, 0},
                        {w->site[0], 1, w->site[1], 0, 0, 0}};
    memcpy(r->streams, streams, sizeof streams);
}

/* Frames pass both ways through the relays' connection number `connections`; the coordinator's
 * number for delft is still 0. */
static void relayed_check(relayed *r, int connections) {
    for (size_t i = 0; i < 4; i++) send_until_received(&r->streams[i]);
    assert_int_equal(r->to_coordinator.connections, connections);
    assert_int_equal(r->to_site.connections, connections);
}

static void relayed_raze(relayed *r) {
    raze(&r->w);
    tcp_relay_close(&r->to_coordinator);
    tcp_relay_close(&r->to_site);
}

static void a_cut_connection_is_made_again(void **state) {
    (void)state;
    relayed r;
    relayed_build(&r);
    for (int cut = 0; cut < 3; cut++) {
        relayed_check(&r, cut + 1);
        tcp_relay_cut(&r.to_coordinator);
        tcp_relay_cut(&r.to_site);
    }
    relayed_raze(&r);
}

/* As after an outage: TCP takes the connection for alive, and would wait for minutes. */
static void a_silent_connection_is_made_anew(void **state) {
    (void)state;
    relayed r;
    relayed_build(&r);
    dlxi_link *const *site = r.w.site;
    for (int silence = 0; silence < 3; silence++) {
        relayed_check(&r, silence + 1);
        tcp_relay_silence(&r.to_coordinator);
        tcp_relay_silence(&r.to_site);
        for (uint64_t i = 0; i < 40; i++) { /* more than any queue has room for */
            (void)send(site[0], 1, DLXI_FRAME_GREETING, 0);
            (void)send(site[1], 0, DLXI_FRAME_GREETING, 0);
        }
        must(site[0]->op->reconnect(site[0], DLXI_SITE_COORDINATOR, &error));
        must(site[1]->op->reconnect(site[1], 0, &error));
        must(site[0]->op->reconnect(site[0], 1, &error)); /* it listens: nothing to do */
    }
    relayed_check(&r, 4);
    /* one that works is replaced too, and quick repetition does no harm */
    for (int i = 0; i < 200; i++) {
        must(site[0]->op->reconnect(site[0], DLXI_SITE_COORDINATOR, &error));
        must(site[1]->op->reconnect(site[1], 0, &error));
    }
    for (size_t i = 0; i < 4; i++) send_until_received(&r.streams[i]);
    assert_int_equal(site[0]->op->reconnect(site[0], DLXI_SITES_MAX, &error), DLX_ARGUMENT);
    relayed_raze(&r);
}

static void ipv6_and_names(void **state) {
    (void)state;
    uint64_t refused;
    dlxi_link_settings settings = settings_of(COORDINATOR, "[::1]:0", true);
    dlxi_link *probe = NULL;
    char bound[DLXI_ENDPOINT_BYTES];
    if (dlxi_zmq_coordinator_open(&probe, &settings, bound, &error) == DLX_OK) {
        assert_memory_equal(bound, "[::1]:", 6);
        dlxi_link_close(&probe);
        exchange_seconds("[::1]:0", true, &refused);
    } else {
        print_message("skipped in part: %s\n", error.message);
    }
    exchange_seconds("localhost:0", false, &refused);
}

/* ---- admission ------------------------------------------------------------------------------- */

static void an_unknown_key_gets_nothing(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    dlxi_link_settings settings = settings_of(STRANGER, w.bound, true);
    must(dlxi_zmq_site_open(&w.site[0], &settings, &error));
    /* what is not connected takes nothing */
    assert_int_equal(send(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 66), DLX_AGAIN);
    uint32_t from;
    dlxi_frame got;
    assert_int_equal(w.site[0]->op->receive(w.site[0], DEADLINE_MS, &from, &got, &error),
                     DLX_REFUSED);
    char expected[1024];
    snprintf(expected, sizeof expected,
             "wan.key: the coordinator at %s does not admit the key %s; add the line 'NAME %s' to "
             "the coordinator's roster and start it again",
             w.bound, key_text[STRANGER], key_text[STRANGER]);
    assert_string_equal(error.message, expected);
    snprintf(expected, sizeof expected,
             "refused a connection from 127.0.0.1: its key %s is not a site's on the roster %s; to "
             "admit it, add the line 'NAME %s' there and start again\n",
             key_text[STRANGER], roster_path, key_text[STRANGER]);
    journal_expect(&coordinator_log, expected);
    /* again: logged once in 10 s */
    dlxi_link_close(&w.site[0]);
    must(dlxi_zmq_site_open(&w.site[0], &settings, &error));
    assert_int_equal(w.site[0]->op->receive(w.site[0], DEADLINE_MS, &from, &got, &error),
                     DLX_REFUSED);
    assert_int_equal(coordinator_log.lines, 1);
    /* the coordinator's own key is no site's */
    dlxi_link *impostor = NULL;
    settings = settings_of(COORDINATOR, w.bound, true);
    settings.name = "delft";
    assert_int_equal(dlxi_zmq_site_open(&impostor, &settings, &error), DLX_CONFIG);
    /* and a known one gets through, alone */
    settings = settings_of(DELFT, w.bound, true);
    must(dlxi_zmq_site_open(&w.site[1], &settings, &error));
    send_surely(w.site[1], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 1);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(got.round, 1);
    expect_nothing(w.coordinator);
    raze(&w);
}

static void a_false_coordinator_gets_nothing(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    char path[PATH_BYTES + 16], line[128];
    snprintf(path, sizeof path, "%s/false.txt", directory);
    snprintf(line, sizeof line, "coordinator %s\n", key_text[ROME]);
    write_file(path, line);
    dlxi_link_settings settings = settings_of(DELFT, w.bound, true);
    settings.roster_path = path;
    must(dlxi_zmq_site_open(&w.site[0], &settings, &error));
    /* what is not connected takes nothing */
    assert_int_equal(send(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 66), DLX_AGAIN);
    uint32_t from;
    dlxi_frame got;
    double from_s = dlxi_clock_s();
    while (site_log.lines == 0 && dlxi_clock_s() - from_s < DEADLINE_MS / 1000.0)
        assert_int_equal(w.site[0]->op->receive(w.site[0], 50, &from, &got, &error), DLX_TIMEOUT);
    journal_expect(&site_log,
                   "ended the handshake; its key may not be the one on this site's roster\n");
    dlx_status status;
    do status = w.site[0]->op->receive(w.site[0], DEADLINE_MS, &from, &got, &error);
    while (status == DLX_AGAIN);
    assert_int_equal(status, DLX_REFUSED);
    assert_non_null(strstr(error.message, "ended every handshake for 1"));
    assert_non_null(strstr(error.message, "ms (wan.timeout_s); its key may not be the one on this "
                                          "site's roster"));
    settings = settings_of(OSLO, w.bound, true);
    must(dlxi_zmq_site_open(&w.site[1], &settings, &error));
    send_surely(w.site[1], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 1);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(got.round, 1);
    expect_nothing(w.coordinator);
    unlink(path);
    raze(&w);
}

static void no_key_has_another_name(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    dlxi_link_settings settings = settings_of(ROME, w.bound, true);
    settings.name = "delft";
    /* its own roster has another key for that name */
    assert_int_equal(dlxi_zmq_site_open(&w.site[0], &settings, &error), DLX_CONFIG);
    char expected[1024];
    snprintf(expected, sizeof expected,
             "wan.key: '%s' is not the key that '%s' gives 'delft'; its public half is %s",
             key_path[ROME], roster_path, key_text[ROME]);
    assert_string_equal(error.message, expected);
    settings.roster_path = coordinator_roster_path;
    must(dlxi_zmq_site_open(&w.site[0], &settings, &error));
    send_surely(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 0);
    uint32_t from;
    dlxi_frame got;
    expect_frame(w.coordinator, &from, &got);
    assert_string_equal(w.coordinator->op->peer_name(w.coordinator, from), "rome");
    assert_string_equal(w.coordinator->op->peer_key(w.coordinator, from), key_text[ROME]);
    raze(&w);
}

/* ---- raw sockets, which break the rules ------------------------------------------------------ */

typedef struct raw {
    void *context, *socket;
} raw;

/* A socket of `type` with who's key, connected to `at`, whose key is server's. */
static raw raw_open(int type, int who, const char *at, int server, const char *routing_id) {
    FILE *file = fopen(key_path[who], "r");
    assert_non_null(file);
    char line[128], secret[DLXI_KEY_TEXT_BYTES] = "", endpoint[DLXI_ENDPOINT_BYTES + 8];
    while (fgets(line, sizeof line, file) != NULL) sscanf(line, "secret: %40s", secret);
    fclose(file);
    raw r = {.context = zmq_ctx_new()};
    r.socket = zmq_socket(r.context, type);
    int linger_ms = 0, wait_ms = DEADLINE_MS;
    zmq_setsockopt(r.socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_setsockopt(r.socket, ZMQ_SNDTIMEO, &wait_ms, sizeof wait_ms);
    assert_int_equal(zmq_setsockopt(r.socket, ZMQ_CURVE_SERVERKEY, key_text[server], 41), 0);
    assert_int_equal(zmq_setsockopt(r.socket, ZMQ_CURVE_PUBLICKEY, key_text[who], 41), 0);
    assert_int_equal(zmq_setsockopt(r.socket, ZMQ_CURVE_SECRETKEY, secret, 41), 0);
    if (routing_id != NULL)
        zmq_setsockopt(r.socket, ZMQ_ROUTING_ID, routing_id, strlen(routing_id));
    snprintf(endpoint, sizeof endpoint, "tcp://%s", at);
    assert_int_equal(zmq_connect(r.socket, endpoint), 0);
    return r;
}

static void raw_close(raw *r) {
    zmq_close(r->socket);
    zmq_ctx_term(r->context);
}

static void raw_send(raw *r, uint64_t round) {
    uint8_t bytes[DLXI_FRAME_HEADER_BYTES];
    dlxi_frame frame = {.kind = DLXI_FRAME_HELLO, .round = round};
    size_t count_bytes = dlxi_frame_encode(bytes, &frame);
    assert_int_equal(zmq_send(r->socket, bytes, count_bytes, 0), (int)count_bytes);
}

/* of the form that sites have */
static const char own_id[] = "s0123456789abcdef", other_id[] = "sfedcba9876543210";

static void a_routing_id_is_not_enough(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    uint32_t from;
    dlxi_frame got;
    raw honest = raw_open(ZMQ_DEALER, DELFT, w.bound, COORDINATOR, own_id);
    raw_send(&honest, 1);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(from, 0);
    raw thief = raw_open(ZMQ_DEALER, ROME, w.bound, COORDINATOR, own_id);
    raw_send(&thief, 2);
    double from_s = dlxi_clock_s();
    dlxi_link_statistics statistics = {0};
    while (statistics.frames_dropped == 0 && dlxi_clock_s() - from_s < DEADLINE_MS / 1000.0) {
        assert_int_equal(w.coordinator->op->receive(w.coordinator, 50, &from, &got, &error),
                         DLX_TIMEOUT);
        dlxi_link_statistics_read(w.coordinator, &statistics);
    }
    assert_int_equal(statistics.frames_dropped, 1);
    raw_close(&thief);
    raw_close(&honest);
    /* with the same id and key it is the same peer again */
    raw again = raw_open(ZMQ_DEALER, DELFT, w.bound, COORDINATOR, own_id);
    raw_send(&again, 3);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(from, 0);
    assert_int_equal(got.round, 3);
    must(send(w.coordinator, 0, DLXI_FRAME_WELCOME, 4));
    char bytes[128];
    assert_int_equal(zmq_recv(again.socket, bytes, sizeof bytes, 0), DLXI_FRAME_HEADER_BYTES + 5);
    raw_close(&again);
    raze(&w);
}

static void routing_ids_that_begin_alike_have_numbers_of_their_own(void **state) {
    (void)state;
    static const char *const ids[] = {"s0123aaaaaaaaaaaa", "s0123bbbbbbbbbbbb",
                                      "s0123cccccccccccc"};
    enum { PEERS = sizeof ids / sizeof *ids };
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    raw peers[PEERS];
    uint32_t from;
    dlxi_frame got;
    for (uint32_t i = 0; i < PEERS; i++)
        peers[i] = raw_open(ZMQ_DEALER, DELFT, w.bound, COORDINATOR, ids[i]);
    for (uint32_t k = 0; k < 2 * PEERS; k++) {
        raw_send(&peers[k % PEERS], k);
        expect_frame(w.coordinator, &from, &got);
        assert_int_equal(from, k % PEERS);
        assert_int_equal(got.round, k);
    }
    for (uint32_t i = 0; i < PEERS; i++) raw_close(&peers[i]);
    raze(&w);
}

static void malformed_messages_are_dropped(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    uint32_t from;
    dlxi_frame got;
    raw r = raw_open(ZMQ_DEALER, DELFT, w.bound, COORDINATOR, own_id);
    assert_int_equal(zmq_send(r.socket, "", 0, 0), 0);
    assert_int_equal(zmq_send(r.socket, "garbage", 7, 0), 7);
    for (int i = 0; i < 9; i++)
        assert_int_equal(zmq_send(r.socket, "parts", 5, i < 8 ? ZMQ_SNDMORE : 0), 5);
    uint8_t bytes[DLXI_FRAME_HEADER_BYTES];
    dlxi_frame frame = {.kind = DLXI_FRAME_HELLO};
    dlxi_frame_encode(bytes, &frame);
    /* good but for its tail */
    assert_int_equal(zmq_send(r.socket, bytes, sizeof bytes, ZMQ_SNDMORE), sizeof bytes);
    assert_int_equal(zmq_send(r.socket, "tail", 4, 0), 4);
    raw_send(&r, 5);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(got.round, 5);
    dlxi_link_statistics statistics;
    dlxi_link_statistics_read(w.coordinator, &statistics);
    assert_int_equal(statistics.frames_dropped, 4);
    assert_int_equal(statistics.frames_received, 1);
    /* larger than any frame: the connection ends, unread */
    size_t large_bytes = 1u << 20;
    uint8_t *large = calloc(1, large_bytes);
    assert_non_null(large);
    assert_int_equal(zmq_send(r.socket, large, large_bytes, 0), (int)large_bytes);
    free(large);
    raw second = raw_open(ZMQ_DEALER, OSLO, w.bound, COORDINATOR, other_id);
    raw_send(&second, 6);
    expect_frame(w.coordinator, &from, &got);
    assert_int_equal(got.round, 6);
    raw_close(&second);
    raw_close(&r);
    raze(&w);
}

/* A site of the same run is still a stranger on the socket of another pair. */
static void data_sockets_admit_their_peer_only(void **state) {
    (void)state;
    world w;
    build(&w, "127.0.0.1:0", true);
    char at[DLXI_ENDPOINT_BYTES], expected[512];
    /* returns where it listens once more */
    must(w.site[0]->op->listen(w.site[0], 0, 1, "oslo", key_text[OSLO], at, &error));
    raw r = raw_open(ZMQ_DEALER, ROME, at, DELFT, "site");
    raw_send(&r, 66);
    snprintf(expected, sizeof expected,
             "refused a connection from 127.0.0.1: its key %s is not that of site 'oslo'\n",
             key_text[ROME]);
    journal_expect(&site_log, expected);
    send_surely(w.site[1], 0, DLXI_FRAME_GREETING, 1);
    uint32_t from;
    dlxi_frame got;
    expect_frame(w.site[0], &from, &got);
    assert_int_equal(from, 1);
    assert_int_equal(got.round, 1);
    expect_nothing(w.site[0]);
    raw_close(&r);
    raze(&w);
}

/* Its key may come in, and its routing id is not that of a site: it makes room, and none for the
 * site. Frames of others are not held up by that. */
static void a_peer_that_is_not_there_holds_up_nothing(void **state) {
    (void)state;
    enum { TRIES = 1000 };
    world w;
    build(&w, "127.0.0.1:0", true);
    char at[DLXI_ENDPOINT_BYTES];
    must(w.site[0]->op->listen(w.site[0], 0, 1, "oslo", key_text[OSLO], at, &error));
    uint32_t from;
    dlxi_frame got;
    send_surely(w.site[0], DLXI_SITE_COORDINATOR, DLXI_FRAME_HELLO, 1);
    expect_frame(w.coordinator, &from, &got);
    dlxi_link_close(&w.site[1]);
    raw r = raw_open(ZMQ_DEALER, OSLO, at, DELFT, "others");
    raw_send(&r, 2);
    dlxi_link_statistics statistics = {0};
    double from_s = dlxi_clock_s();
    while (statistics.frames_dropped == 0 && dlxi_clock_s() - from_s < DEADLINE_MS / 1000.0) {
        (void)w.site[0]->op->receive(w.site[0], 50, &from, &got, &error);
        dlxi_link_statistics_read(w.site[0], &statistics);
    }
    assert_int_equal(statistics.frames_dropped, 1);

    dlx_status status = DLX_AGAIN;
    must(send(w.coordinator, 0, DLXI_FRAME_WELCOME, 3));
    for (int i = 0; status == DLX_AGAIN && i < TRIES; i++) {
        assert_int_equal(send(w.site[0], 1, DLXI_FRAME_GREETING, 4), DLX_AGAIN);
        status = w.site[0]->op->receive(w.site[0], DEADLINE_MS, &from, &got, &error);
    }
    must(status);
    assert_int_equal(from, DLXI_SITE_COORDINATOR);
    assert_int_equal(got.round, 3);
    raw_close(&r);
    raze(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thousand_frames_both_ways),
        cmocka_unit_test(names_numbers_and_replies),
        cmocka_unit_test(memory_stays_bounded),
        cmocka_unit_test(wake_ends_a_receive),
        cmocka_unit_test(close_lets_queued_frames_leave),
        cmocka_unit_test(a_site_that_left_is_lost),
        cmocka_unit_test(a_cut_connection_is_made_again),
        cmocka_unit_test(a_silent_connection_is_made_anew),
        cmocka_unit_test(ipv6_and_names),
        cmocka_unit_test(an_unknown_key_gets_nothing),
        cmocka_unit_test(a_false_coordinator_gets_nothing),
        cmocka_unit_test(no_key_has_another_name),
        cmocka_unit_test(a_routing_id_is_not_enough),
        cmocka_unit_test(routing_ids_that_begin_alike_have_numbers_of_their_own),
        cmocka_unit_test(malformed_messages_are_dropped),
        cmocka_unit_test(data_sockets_admit_their_peer_only),
        cmocka_unit_test(a_peer_that_is_not_there_holds_up_nothing),
        cmocka_unit_test(ranks_of_one_site_share_its_key),
    };
    return cmocka_run_group_tests(tests, make_keys, remove_keys);
}
