/* SPDX-License-Identifier: Apache-2.0 */
/* Many ranks that only speak with the coordinator: each is the production state machine of a rank
 * (member/site.h) behind a control socket of the `zmq` link. They exchange nothing with each other:
 * all say that they reach each other, submit at once, and stage the same hash. So what a commit
 * takes is the coordinator's work, and this program's. bench/scaling.py uses it.
 *
 *     control SITES RANKS HOST:PORT KEYS ROSTER PID
 *
 * KEYS has site-1.key, site-2.key and so on; `-`: unencrypted. PID is the coordinator's process.
 * Prints one line of JSON: *joining* lasts from the first connection until all ranks have entered;
 * then they *rest* for a while, without a submission; *commits* are those after the first. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "link/zmq_internal.h"
#include "member/site.h"

enum {
    TICK_MS = 50,
    REST_MS = 4000,
    EVENTS_MAX = 256,
    TIMEOUT_MS = 10000,
    JOIN_MS = 600000,
    SPARE_SOCKETS = 8
};

typedef struct client {
    dlxi_zmq zmq; /* of its own: keys, control socket, counters */
    dlxi_site *site;
    uint64_t submissions;
} client;

/* A moment, and what was used until then. */
typedef struct mark {
    double at_s, coordinator_s, own_s;
    uint64_t received, sent, round;
} mark;

typedef struct crowd {
    client *clients; /* [count], of which the first `open` are at work */
    uint32_t count, open, sites, ranks, entered, ended;
    void *context;
    int epoll_fd;
    clockid_t coordinator_clock;
    bool submits;
    mark opened, rested, submitted, first, last;
    uint32_t copy_bytes; /* of the coordinator's state, in the last COMMIT but one */
} crowd;

/* ---- measuring ------------------------------------------------------------------------------- */

static double seconds_of(clockid_t clock) {
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int64_t now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

static mark mark_take(const crowd *w, uint64_t round) {
    mark m = {.at_s = seconds_of(CLOCK_MONOTONIC),
              .coordinator_s = seconds_of(w->coordinator_clock),
              .own_s = seconds_of(CLOCK_PROCESS_CPUTIME_ID),
              .round = round};
    for (uint32_t i = 0; i < w->open; i++) {
        m.received += w->clients[i].zmq.link.bytes_received;
        m.sent += w->clients[i].zmq.link.bytes_sent;
    }
    return m;
}

static void marks_print(const crowd *w) {
    double commits = (double)(w->last.round - w->first.round);
    double rest_s = w->submitted.at_s - w->rested.at_s;
    double frames = commits * w->count;
    printf("{\"clients\":%u,\"joining_s\":%.3f,\"joining_cpu_s\":%.3f,\"rest_share\":%.5f,"
           "\"commits\":%g,\"seconds\":%.4f,\"coordinator_cpu_s\":%.4f,\"own_cpu_s\":%.4f,"
           "\"received\":%.0f,\"sent\":%.0f,\"copy_bytes\":%u}\n",
           w->count, w->rested.at_s - w->opened.at_s,
           w->rested.coordinator_s - w->opened.coordinator_s,
           (w->submitted.coordinator_s - w->rested.coordinator_s) / rest_s, commits,
           w->last.at_s - w->first.at_s, w->last.coordinator_s - w->first.coordinator_s,
           w->last.own_s - w->first.own_s, (double)(w->last.received - w->first.received) / frames,
           (double)(w->last.sent - w->first.sent) / frames, w->copy_bytes);
}

/* ---- what a rank does ------------------------------------------------------------------------ */

static void submit(client *c) {
    c->submissions++;
    const dlxi_ready ready = {.submission = c->submissions,
                              .base_round = c->site->round,
                              .tokens = 1,
                              .windows_used = 1,
                              .anchor_hash = c->site->round,
                              .norm = 1,
                              .step_ns = 1000000,
                              .exchange_ns = 1000000,
                              .exchange_bytes = 1000000};
    dlxi_site_on_ready(c->site, &ready);
}

/* Where it would listen: as long as real ones, since the coordinator keeps and sends them. */
static void listen_say(client *c) {
    dlxi_endpoints endpoints = {.sites = c->site->count};
    for (uint16_t i = 0; i < endpoints.sites; i++)
        if (i > c->site->index)
            snprintf(endpoints.endpoint[i], sizeof endpoints.endpoint[i], "127.0.0.1:%u",
                     20000u + i);
    dlxi_site_on_listening(c->site, &endpoints);
}

static void commit_take(crowd *w, client *c) {
    const dlxi_site *s = c->site;
    bool finished = s->commit.finished;
    dlxi_site_on_applied(c->site);
    if (w->first.at_s == 0) w->first = mark_take(w, s->round);
    if (finished && w->last.at_s == 0) w->last = mark_take(w, s->round);
    w->copy_bytes = s->copy.bytes;
    if (finished)
        dlxi_site_on_report(c->site, UINT64_MAX, 0, "report");
    else
        submit(c);
}

static dlx_status act(crowd *w, client *c, dlxi_site_action action, dlx_error *error) {
    switch (action) {
    case DLXI_SITE_LISTEN:
    case DLXI_SITE_TELL_LISTENING:
        listen_say(c);
        break;
    case DLXI_SITE_CONNECT:
        dlxi_site_set_linked(c->site, true);
        break;
    case DLXI_SITE_BEGIN:
        dlxi_site_on_staged(c->site, c->site->round);
        break;
    case DLXI_SITE_COMMIT:
        commit_take(w, c);
        break;
    case DLXI_SITE_ENDED:
        w->ended++;
        break;
    case DLXI_SITE_ABORT:
    case DLXI_SITE_FOLLOW:
        DLX_FAIL(error, ABORTED, "an attempt of round %llu failed, or was made without this site",
                 (unsigned long long)c->site->round);
    case DLXI_SITE_REDIRECT:
    case DLXI_SITE_NOTHING:
        break;
    }
    if (!c->site->entered && c->site->all_linked && c->site->phase == DLXI_SITE_RUNNING) {
        dlxi_site_on_entered(c->site);
        if (++w->entered == w->count) w->rested = mark_take(w, 0);
    }
    if (c->site->phase == DLXI_SITE_DONE && c->site->result.status != DLX_OK) {
        *error = c->site->result;
        return error->status;
    }
    return DLX_OK;
}

/* ---- frames ---------------------------------------------------------------------------------- */

static dlx_status frames_take(crowd *w, client *c, bool *moved, dlx_error *error) {
    for (;;) {
        dlxi_frame frame;
        bool more;
        dlx_status status = dlxi_zmq_receive_message(&c->zmq, c->zmq.control, NULL, &more, error);
        if (status == DLX_TIMEOUT) return DLX_OK;
        if (status != DLX_OK) return status;
        *moved = true;
        if (dlxi_zmq_take_frame(&c->zmq, c->zmq.control, more, true, &frame))
            DLX_TRY(act(w, c, dlxi_site_on_frame(c->site, &frame, now_ms()), error));
    }
}

static dlx_status outbox_send(client *c, bool *moved, dlx_error *error) {
    const dlxi_outbox_item *item;
    while ((item = dlxi_outbox_peek(&c->site->outbox)) != NULL) {
        dlx_status status =
            dlxi_zmq_send_frame(&c->zmq, c->zmq.control, NULL, 0, &item->frame, error);
        if (status == DLX_AGAIN) return DLX_OK;
        if (status != DLX_OK) return status;
        *moved = true;
        dlxi_outbox_drop(&c->site->outbox);
    }
    return DLX_OK;
}

/* Until nothing waits: a send may take in what a socket's descriptor had announced. */
static dlx_status serve(crowd *w, client *c, dlx_error *error) {
    for (bool moved = true; moved;) {
        moved = false;
        DLX_TRY(frames_take(w, c, &moved, error));
        DLX_TRY(outbox_send(c, &moved, error));
    }
    return DLX_OK;
}

static dlx_status tick_all(crowd *w, dlx_error *error) {
    bool submits = !w->submits && w->rested.at_s > 0 &&
                   seconds_of(CLOCK_MONOTONIC) - w->rested.at_s >= 1e-3 * REST_MS;
    if (submits) w->submitted = mark_take(w, 0);
    w->submits = w->submits || submits;
    for (uint32_t i = 0; i < w->open; i++) {
        client *c = &w->clients[i];
        DLX_TRY(act(w, c, dlxi_site_on_tick(c->site, now_ms()), error));
        if (submits) submit(c);
        DLX_TRY(serve(w, c, error));
    }
    return DLX_OK;
}

/* ---- opening --------------------------------------------------------------------------------- */

static dlx_status hello_say(const crowd *w, client *c, const char *name, uint16_t rank,
                            dlx_error *error) {
    const dlxi_site_settings settings = {.timeout_ms = TIMEOUT_MS, .join_ms = JOIN_MS};
    dlxi_hello *hello;
    DLX_TRY(DLXI_NEW(&hello, 1, error));
    *hello = (dlxi_hello){.rank = rank,
                          .ranks = (uint16_t)w->ranks,
                          .tensors_hash = 1,
                          .anchor_hash = 1,
                          .windows = UINT64_C(1) << 32,
                          .tokens_per_window = 1,
                          .data_hash = 1,
                          .lease_windows = 1,
                          .incarnation = (uint64_t)(c - w->clients) + 1,
                          .keeps_history = true,
                          .shared_text = "model.width: 64\n"};
    dlxi_text_copy(hello->site, sizeof hello->site, name);
    dlx_status status = dlxi_site_open(&c->site, hello, &settings, now_ms(), error);
    free(hello);
    return status;
}

static dlx_status socket_dial(const crowd *w, client *c, const dlxi_address *address,
                              const char *server_key, dlx_error *error) {
    char routing_id[ROUTING_ID_BYTES] = {ROUTING_ID_FIRST};
    int fd = -1;
    size_t fd_bytes = sizeof fd;
    if (getrandom(routing_id + 1, ROUTING_ID_BYTES - 1, 0) != ROUTING_ID_BYTES - 1)
        DLX_FAIL(error, SYSTEM, "no random numbers");
    const dlxi_socket_settings settings = {.numeric = address->host,
                                           .server_key = server_key,
                                           .routing_id = routing_id,
                                           .routing_id_bytes = ROUTING_ID_BYTES};
    DLX_TRY(dlxi_socket_open(&c->zmq.control, &c->zmq, &settings, error));
    DLX_TRY(dlxi_socket_connect(c->zmq.control, address->host, address->port, error));
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)(c - w->clients)};
    if (zmq_getsockopt(c->zmq.control, ZMQ_FD, &fd, &fd_bytes) != 0 ||
        epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        DLX_FAIL(error, SYSTEM, "cannot watch a socket: %s", strerror(errno));
    return DLX_OK;
}

/* All ranks of a site: they share its key. */
static dlx_status site_open(crowd *w, uint32_t site, const dlxi_address *address, const char *keys,
                            const dlxi_roster *roster, dlx_error *error) {
    char name[DLXI_NAME_BYTES], path[4096];
    dlxi_key_pair pair = {.public_text = ""};
    const char *server_key = "";
    snprintf(name, sizeof name, "site-%u", site + 1);
    snprintf(path, sizeof path, "%s/%s.key", keys, name);
    if (roster != NULL) {
        DLX_TRY(dlxi_key_pair_read(&pair, path, true, error));
        server_key = dlxi_roster_by_name(roster, dlxi_coordinator_name)->key_text;
    }
    for (uint16_t rank = 0; rank < w->ranks; rank++) {
        client *c = &w->clients[site * w->ranks + rank];
        dlxi_zmq_init(&c->zmq, NULL, NULL);
        c->zmq.context = w->context;
        c->zmq.curve = roster != NULL;
        c->zmq.keys = pair;
        DLX_TRY(hello_say(w, c, name, rank, error));
        DLX_TRY(socket_dial(w, c, address, server_key, error));
        w->open++;
    }
    return DLX_OK;
}

static dlx_status crowd_open(crowd *w, char **words, dlx_error *error) {
    dlxi_address address;
    dlxi_roster *roster = NULL;
    w->sites = (uint32_t)strtoul(words[1], NULL, 10);
    w->ranks = (uint32_t)strtoul(words[2], NULL, 10);
    w->count = w->sites * w->ranks;
    DLX_TRY(dlxi_address_parse(&address, words[3], "HOST:PORT", error));
    if (strcmp(words[4], "-") != 0) DLX_TRY(dlxi_roster_read(&roster, words[5], error));
    if (clock_getcpuclockid((pid_t)strtol(words[6], NULL, 10), &w->coordinator_clock) != 0)
        DLX_FAIL(error, ARGUMENT, "no process %s", words[6]);
    DLX_TRY(DLXI_NEW(&w->clients, w->count, error));
    w->context = zmq_ctx_new();
    w->epoll_fd = epoll_create1(0);
    if (w->context == NULL || w->epoll_fd < 0 ||
        zmq_ctx_set(w->context, ZMQ_MAX_SOCKETS, (int)w->count + SPARE_SOCKETS) != 0)
        DLX_FAIL(error, SYSTEM, "cannot start: %s", zmq_strerror(errno));
    w->opened = mark_take(w, 0);
    dlx_status status = DLX_OK;
    for (uint32_t site = 0; site < w->sites && status == DLX_OK; site++) {
        status = site_open(w, site, &address, words[4], roster, error);
        if (status == DLX_OK) status = tick_all(w, error); /* thousands take a while to open */
    }
    free(roster);
    return status;
}

/* ---- running --------------------------------------------------------------------------------- */

static dlx_status crowd_run(crowd *w, dlx_error *error) {
    struct epoll_event events[EVENTS_MAX];
    for (int64_t ticked_ms = 0; w->ended < w->count;) {
        int count = epoll_wait(w->epoll_fd, events, EVENTS_MAX, TICK_MS);
        if (count < 0 && errno != EINTR)
            DLX_FAIL(error, SYSTEM, "cannot wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) DLX_TRY(serve(w, &w->clients[events[i].data.u32], error));
        if (now_ms() - ticked_ms < TICK_MS) continue;
        ticked_ms = now_ms();
        DLX_TRY(tick_all(w, error));
    }
    return DLX_OK;
}

static void crowd_close(crowd *w) {
    for (uint32_t i = 0; i < w->count && w->clients != NULL; i++) {
        client *c = &w->clients[i];
        zmq_msg_close(&c->zmq.current);
        if (c->zmq.control != NULL) zmq_close(c->zmq.control);
        dlxi_site_close(&c->site);
    }
    if (w->context != NULL) zmq_ctx_term(w->context);
    if (w->epoll_fd >= 0) close(w->epoll_fd);
    free(w->clients);
}

int main(int count, char **words) {
    crowd w = {.epoll_fd = -1};
    dlx_error error = {.message = ""};
    if (count != 7) {
        fprintf(stderr, "control SITES RANKS HOST:PORT KEYS ROSTER PID\n");
        return 2;
    }
    dlx_status status = crowd_open(&w, words, &error);
    if (status == DLX_OK) status = crowd_run(&w, &error);
    if (status == DLX_OK)
        marks_print(&w);
    else
        fprintf(stderr, "control: %s\n", error.message);
    crowd_close(&w);
    return status == DLX_OK ? 0 : 1;
}
