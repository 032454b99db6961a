/* SPDX-License-Identifier: Apache-2.0 */
/* The `zmq` link: processes on one machine or many, over TCP, encrypted and authenticated by CURVE.
 *
 * Sockets. Who binds has a ROUTER: the coordinator one for all sites, a site one for each site of a
 * higher index. Who connects has a DEALER. So control never waits behind data. A ROUTER hands over:
 * a peer whose connection broke unseen and who comes again takes its own place, which a PAIR or
 * DEALER doesn't know how to do. All sockets belong to the owner thread. libzmq's own thread does
 * input, output and encryption; one more thread admits keys (zmq_auth.c). `wake` writes to an
 * eventfd, and may be called from a signal handler.
 *
 * Who speaks. A peer of the coordinator is known by its routing id, 16 random bytes a process, so
 * that a connection that broke and came back keeps its number; each of its frames must also carry
 * the roster name that the first one did. That name was proved in the handshake and is not the
 * peer's to choose. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "link/count.h"
#include "link/zmq_internal.h"

static const int64_t MS_NS = 1000000;
/* How long the coordinator takes a broken connection for one that will come back. */
static const int64_t UNREACHABLE_NS = 5000000000;
/* A ROUTER doesn't tell which peer has room again: try after this long. */
static const int64_t RETRY_NS = 20000000;

void dlxi_zmq_log(const dlxi_zmq *me, const char *format, ...) {
    if (me->log == NULL) return;
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    me->log(me->log_context, line);
}

dlx_status dlxi_zmq_check_loopback(const char *host, dlx_error *error) {
    if (!dlxi_host_is_loopback(host))
        DLX_FAIL(error, CONFIG,
                 "wan.security: none is allowed on loopback addresses only, not '%s'; use "
                 "security: curve",
                 host);
    return DLX_OK;
}

/* ---- send ------------------------------------------------------------------------------------ */

/* What a send that failed with errno means. */
static dlx_status send_failure(dlx_error *error) {
    if (errno == EAGAIN || errno == EINTR) return DLX_AGAIN;
    DLX_FAIL(error, SYSTEM, "zmq link: send failed: %s", zmq_strerror(errno));
}

/* Puts the routing id before a message of a ROUTER. DLX_AGAIN: the peer's queue is full; DLX_OK: it
 * has room for the message that follows. DLX_PEER_LOST: it has no connection. */
static dlx_status send_routing_id(void *socket, const void *routing_id, size_t routing_id_bytes,
                                  dlx_error *error) {
    int sent;
    do sent = zmq_send(socket, routing_id, routing_id_bytes, ZMQ_DONTWAIT | ZMQ_SNDMORE);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0) return DLX_OK;
    return errno == EHOSTUNREACH ? DLX_PEER_LOST : send_failure(error);
}

/* routing_id: NULL where the socket is no ROUTER. The frame is made first, so that nothing can fail
 * between its id and it. */
static dlx_status send_frame(dlxi_zmq *me, void *socket, const void *routing_id,
                             size_t routing_id_bytes, const dlxi_frame *frame, dlx_error *error) {
    zmq_msg_t message;
    size_t bytes = (size_t)DLXI_FRAME_HEADER_BYTES + frame->payload_bytes;
    if (zmq_msg_init_size(&message, bytes) != 0)
        DLX_FAIL(error, MEMORY, "out of memory: a frame of %zu bytes", bytes);
    dlxi_frame_encode(zmq_msg_data(&message), frame);
    dlx_status status = DLX_OK;
    if (routing_id != NULL) status = send_routing_id(socket, routing_id, routing_id_bytes, error);
    if (status == DLX_OK && zmq_msg_send(&message, socket, ZMQ_DONTWAIT) < 0)
        status = send_failure(error);
    if (status != DLX_OK) {
        zmq_msg_close(&message);
        return status;
    }
    dlxi_count_sent(&me->link, bytes);
    return DLX_OK;
}

static dlx_status send_to_coordinator(dlxi_zmq *me, const dlxi_frame *frame, dlx_error *error) {
    dlx_status status = send_frame(me, me->control, NULL, 0, frame, error);
    me->control_refused = status == DLX_AGAIN;
    return status;
}

/* Asks for room before the frame is encoded, which costs more. A peer that is not there yet has no
 * room either. */
static dlx_status send_to_site(dlxi_zmq *me, dlxi_channel *channel, const dlxi_frame *frame,
                               dlx_error *error) {
    dlx_status status = DLX_AGAIN;
    if (dlxi_socket_ready(channel->socket, ZMQ_POLLOUT)) {
        const char *routing_id = channel->binds ? dlxi_data_routing_id : NULL;
        status = send_frame(me, channel->socket, routing_id, DATA_ROUTING_ID_BYTES, frame, error);
    }
    if (status == DLX_PEER_LOST) status = DLX_AGAIN;
    channel->refused = status == DLX_AGAIN;
    return status;
}

static dlx_status send_from_coordinator(dlxi_zmq *me, uint32_t to, const dlxi_frame *frame,
                                        dlx_error *error) {
    if (to >= me->numbered_count)
        DLX_FAIL(error, STATE, "zmq link: send to peer %u, which never spoke", to);
    dlxi_numbered *peer = &me->numbered[to];
    dlx_status status =
        send_frame(me, me->control, peer->routing_id, sizeof peer->routing_id, frame, error);
    if (status == DLX_OK) peer->unreachable_since_ns = 0;
    if (status != DLX_AGAIN && status != DLX_PEER_LOST) return status;
    int64_t now_ns = dlxi_clock_ns();
    if (status == DLX_PEER_LOST) {
        if (peer->unreachable_since_ns == 0) peer->unreachable_since_ns = now_ns;
        if (now_ns - peer->unreachable_since_ns >= UNREACHABLE_NS)
            DLX_FAIL(error, PEER_LOST, "site '%s' has had no connection for %lld s", peer->name,
                     (long long)(UNREACHABLE_NS / 1000000000));
    }
    if (me->retry_at_ns == 0) me->retry_at_ns = now_ns + RETRY_NS;
    return DLX_AGAIN;
}

static dlx_status link_send(dlxi_link *link, uint32_t to, const dlxi_frame *frame,
                            dlx_error *error) {
    dlxi_zmq *me = (dlxi_zmq *)link;
    if (me->coordinator) return send_from_coordinator(me, to, frame, error);
    if (to == DLXI_SITE_COORDINATOR) return send_to_coordinator(me, frame, error);
    if (to >= DLXI_SITES_MAX || me->channels[to].socket == NULL)
        DLX_FAIL(error, STATE, "zmq link: send to %u, which is not connected", to);
    return send_to_site(me, &me->channels[to], frame, error);
}

/* ---- receive --------------------------------------------------------------------------------- */

/* DLX_TIMEOUT: nothing is there. `more`: parts of the same message follow. */
static dlx_status receive_part(zmq_msg_t *part, void *socket, bool *more, dlx_error *error) {
    int got;
    do got = zmq_msg_recv(part, socket, ZMQ_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got >= 0) {
        *more = zmq_msg_more(part) != 0;
        return DLX_OK;
    }
    if (errno == EAGAIN) return DLX_TIMEOUT;
    DLX_FAIL(error, SYSTEM, "zmq link: receive failed: %s", zmq_strerror(errno));
}

/* Frames have one part. What has more is read to its end and gone. */
static void skip_parts(void *socket) {
    for (bool more = true; more;) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (receive_part(&part, socket, &more, NULL) != DLX_OK) more = false;
        zmq_msg_close(&part);
    }
}

static void release_current(dlxi_zmq *me) {
    zmq_msg_close(&me->current);
    zmq_msg_init(&me->current);
}

/* Reads the next message into `current`, and its routing id where the socket is a ROUTER (id is not
 * NULL). */
static dlx_status receive_message(dlxi_zmq *me, void *socket, zmq_msg_t *id, bool *more,
                                  dlx_error *error) {
    release_current(me);
    *more = true;
    if (id != NULL) DLX_TRY(receive_part(id, socket, more, error));
    return *more ? receive_part(&me->current, socket, more, error) : DLX_OK;
}

/* Reads the frame in `current`; false where it is dropped: `welcome` is false, it is malformed, or
 * parts follow it. */
static bool take_current(dlxi_zmq *me, void *socket, bool more, bool welcome, dlxi_frame *frame) {
    size_t bytes = zmq_msg_size(&me->current);
    if (more) skip_parts(socket);
    if (more || !welcome ||
        dlxi_frame_decode(frame, zmq_msg_data(&me->current), bytes, NULL) != DLX_OK) {
        dlxi_count_dropped(&me->link);
        return false;
    }
    dlxi_count_received(&me->link, bytes);
    return true;
}

static bool grow_numbered(dlxi_zmq *me) {
    uint32_t room = me->numbered_room == 0 ? 16 : 2 * me->numbered_room;
    dlxi_numbered *grown = realloc(me->numbered, room * sizeof *grown);
    if (grown == NULL) return false;
    me->numbered = grown;
    me->numbered_room = room;
    return true;
}

/* The peer's number, given at its first frame; UINT32_MAX where its frame is not taken. A ROUTER
 * gives what is left of a connection that was handed over a routing id of its own making, which is
 * not one of ours. */
static uint32_t number_of(dlxi_zmq *me, zmq_msg_t *id) {
    const uint8_t *routing_id = zmq_msg_data(id);
    const char *name = me->curve ? zmq_msg_gets(&me->current, "User-Id") : "";
    if (name == NULL || zmq_msg_size(id) != ROUTING_ID_BYTES || routing_id[0] != ROUTING_ID_FIRST)
        return UINT32_MAX;
    for (uint32_t i = 0; i < me->numbered_count; i++) {
        dlxi_numbered *known = &me->numbered[i];
        if (memcmp(known->routing_id, routing_id, ROUTING_ID_BYTES) != 0) continue;
        /* another site with this one's routing id */
        if (strcmp(known->name, name) != 0) return UINT32_MAX;
        known->unreachable_since_ns = 0;
        return i;
    }
    const dlxi_roster_line *line = me->curve ? dlxi_roster_by_name(me->roster, name) : NULL;
    if (me->curve && line == NULL) return UINT32_MAX;
    if (me->numbered_count == NUMBERED_MAX) {
        if (!me->numbered_full_logged)
            dlxi_zmq_log(me, "no more than %d processes can join one coordinator; start it again",
                         NUMBERED_MAX);
        me->numbered_full_logged = true;
        return UINT32_MAX;
    }
    if (me->numbered_count == me->numbered_room && !grow_numbered(me)) return UINT32_MAX;
    dlxi_numbered *fresh = &me->numbered[me->numbered_count];
    *fresh = (dlxi_numbered){0};
    memcpy(fresh->routing_id, routing_id, ROUTING_ID_BYTES);
    snprintf(fresh->name, sizeof fresh->name, "%s", name);
    snprintf(fresh->key_text, sizeof fresh->key_text, "%s", line != NULL ? line->key_text : "");
    return me->numbered_count++;
}

/* DLX_OK: *taken says whether a good frame came; if not, one was dropped and there may be more.
 * DLX_TIMEOUT: none. */
static dlx_status receive_at_coordinator(dlxi_zmq *me, uint32_t *from, dlxi_frame *frame,
                                         bool *taken, dlx_error *error) {
    zmq_msg_t id;
    zmq_msg_init(&id);
    bool more;
    dlx_status status = receive_message(me, me->control, &id, &more, error);
    if (status == DLX_OK) {
        *from = number_of(me, &id);
        *taken = take_current(me, me->control, more, *from != UINT32_MAX, frame);
    }
    zmq_msg_close(&id);
    return status;
}

static dlx_status receive_from_coordinator(dlxi_zmq *me, dlxi_frame *frame, bool *taken,
                                           dlx_error *error) {
    bool more;
    DLX_TRY(receive_message(me, me->control, NULL, &more, error));
    *taken = take_current(me, me->control, more, true, frame);
    return DLX_OK;
}

static dlx_status receive_from_site(dlxi_zmq *me, const dlxi_channel *channel, dlxi_frame *frame,
                                    bool *taken, dlx_error *error) {
    zmq_msg_t id;
    zmq_msg_init(&id);
    bool more, welcome = true;
    dlx_status status =
        receive_message(me, channel->socket, channel->binds ? &id : NULL, &more, error);
    if (status == DLX_OK && channel->binds) {
        const char *name = me->curve ? zmq_msg_gets(&me->current, "User-Id") : channel->name;
        welcome = name != NULL && strcmp(name, channel->name) == 0 &&
                  zmq_msg_size(&id) == DATA_ROUTING_ID_BYTES &&
                  memcmp(zmq_msg_data(&id), dlxi_data_routing_id, DATA_ROUTING_ID_BYTES) == 0;
    }
    if (status == DLX_OK) *taken = take_current(me, channel->socket, more, welcome, frame);
    zmq_msg_close(&id);
    return status;
}

/* Control first, then one frame of each other site in turn. Statuses as receive_at_coordinator. */
static dlx_status receive_now(dlxi_zmq *me, uint32_t *from, dlxi_frame *frame, bool *taken,
                              dlx_error *error) {
    *taken = false;
    if (me->coordinator) return receive_at_coordinator(me, from, frame, taken, error);
    *from = DLXI_SITE_COORDINATOR;
    dlx_status status = receive_from_coordinator(me, frame, taken, error);
    for (uint32_t i = 0; status == DLX_TIMEOUT && i < DLXI_SITES_MAX; i++) {
        uint32_t index = (me->channel_next + i) % DLXI_SITES_MAX;
        if (me->channels[index].socket == NULL) continue;
        status = receive_from_site(me, &me->channels[index], frame, taken, error);
        if (status != DLX_OK) continue;
        *from = index;
        me->channel_next = (index + 1) % DLXI_SITES_MAX;
    }
    return status;
}

/* Whether a send that was refused may be tried again; said once. */
static bool room_again(dlxi_zmq *me) {
    bool room = false;
    if (me->retry_at_ns != 0 && dlxi_clock_ns() >= me->retry_at_ns) {
        me->retry_at_ns = 0;
        room = true;
    }
    if (me->control_refused && dlxi_socket_ready(me->control, ZMQ_POLLOUT)) {
        me->control_refused = false;
        room = true;
    }
    for (size_t i = 0; i < DLXI_SITES_MAX; i++) {
        dlxi_channel *channel = &me->channels[i];
        if (!channel->refused || channel->socket == NULL ||
            !dlxi_socket_ready(channel->socket, ZMQ_POLLOUT))
            continue;
        channel->refused = false;
        room = true;
    }
    return room;
}

/* Waits until something may have happened, at most until deadline_ns (< 0: for ever). */
static dlx_status wait_event(dlxi_zmq *me, int64_t deadline_ns, dlx_error *error) {
    enum { CONTROL, WAKE, MONITOR, FIXED };
    zmq_pollitem_t items[FIXED + DLXI_SITES_MAX] = {
        [CONTROL] = {.socket = me->control, .events = ZMQ_POLLIN},
        [WAKE] = {.fd = me->wake_fd, .events = ZMQ_POLLIN},
    };
    if (me->control_refused) items[CONTROL].events |= ZMQ_POLLOUT;
    int count = MONITOR;
    if (me->monitor != NULL)
        items[count++] = (zmq_pollitem_t){.socket = me->monitor, .events = ZMQ_POLLIN};
    for (size_t i = 0; i < DLXI_SITES_MAX; i++) {
        const dlxi_channel *channel = &me->channels[i];
        if (channel->socket == NULL) continue;
        items[count] = (zmq_pollitem_t){.socket = channel->socket, .events = ZMQ_POLLIN};
        if (channel->refused) items[count].events |= ZMQ_POLLOUT;
        count++;
    }
    if (me->retry_at_ns != 0 && (deadline_ns < 0 || me->retry_at_ns < deadline_ns))
        deadline_ns = me->retry_at_ns;
    long wait_ms = -1;
    if (deadline_ns >= 0) {
        int64_t left_ns = deadline_ns - dlxi_clock_ns();
        wait_ms = left_ns > 0 ? (long)((left_ns + MS_NS - 1) / MS_NS) : 0;
    }
    if (zmq_poll(items, count, wait_ms) < 0) {
        if (errno == EINTR) return DLX_OK;
        DLX_FAIL(error, SYSTEM, "zmq link: poll failed: %s", zmq_strerror(errno));
    }
    if (items[WAKE].revents != 0) {
        uint64_t times;
        /* someone drained it: no matter */
        if (read(me->wake_fd, &times, sizeof times) < 0) times = 0;
    }
    if (me->monitor != NULL && items[MONITOR].revents != 0) return dlxi_zmq_monitor_read(me, error);
    return DLX_OK;
}

static dlx_status link_receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from,
                               dlxi_frame *frame, dlx_error *error) {
    dlxi_zmq *me = (dlxi_zmq *)link;
    /* a wait longer than some 30 years is for ever */
    int64_t deadline_ns = -1;
    if (timeout_ms >= 0 && timeout_ms < 1000000000000)
        deadline_ns = dlxi_clock_ns() + timeout_ms * MS_NS;
    for (bool last = false;;) {
        if (atomic_exchange(&me->woken, false)) return DLX_AGAIN;
        if (room_again(me)) return DLX_AGAIN;
        bool taken = false;
        dlx_status status = receive_now(me, from, frame, &taken, error);
        if (status == DLX_OK && taken) return DLX_OK;
        if (status != DLX_OK && status != DLX_TIMEOUT) return status;
        if (last) return DLX_TIMEOUT;
        /* A dropped frame is no reason to wait; but frames that are all dropped don't hold the
         * caller for ever. */
        if (status == DLX_TIMEOUT) DLX_TRY(wait_event(me, deadline_ns, error));
        last = deadline_ns >= 0 && dlxi_clock_ns() >= deadline_ns;
    }
}

static void link_wake(dlxi_link *link) {
    dlxi_zmq *me = (dlxi_zmq *)link;
    int system_errno = errno;
    atomic_store(&me->woken, true);
    uint64_t once = 1;
    while (write(me->wake_fd, &once, sizeof once) < 0 && errno == EINTR) {}
    errno = system_errno;
}

static const char *link_peer_name(dlxi_link *link, uint32_t peer) {
    const dlxi_zmq *me = (const dlxi_zmq *)link;
    if (me->coordinator) return peer < me->numbered_count ? me->numbered[peer].name : "";
    return peer < DLXI_SITES_MAX ? me->channels[peer].name : "";
}

static const char *link_peer_key(dlxi_link *link, uint32_t peer) {
    const dlxi_zmq *me = (const dlxi_zmq *)link;
    if (me->coordinator) return peer < me->numbered_count ? me->numbered[peer].key_text : "";
    return peer < DLXI_SITES_MAX ? me->channels[peer].key_text : "";
}

/* ---- open and close -------------------------------------------------------------------------- */

static void link_close(dlxi_link *link) {
    dlxi_zmq *me = (dlxi_zmq *)link;
    zmq_msg_close(&me->current);
    if (me->monitor != NULL) {
        zmq_socket_monitor(me->control, NULL, 0);
        zmq_close(me->monitor);
    }
    for (size_t i = 0; i < DLXI_SITES_MAX; i++)
        if (me->channels[i].socket != NULL) zmq_close(me->channels[i].socket);
    if (me->control != NULL) zmq_close(me->control);
    if (me->context != NULL) {
        /* ends the thread that admits keys; closed sockets still empty their queues */
        zmq_ctx_shutdown(me->context);
        dlxi_zmq_auth_close(&me->auth);
        while (zmq_ctx_term(me->context) != 0 && errno == EINTR) {}
    }
    if (me->wake_fd >= 0) close(me->wake_fd);
    dlxi_key_pair_wipe(&me->keys);
    free(me->numbered);
    free(me->roster);
    free(me->roster_path);
    free(me);
}

static const dlxi_link_operations zmq_operations = {
    .name = "zmq",
    .send = link_send,
    .receive = link_receive,
    .wake = link_wake,
    .listen = dlxi_zmq_listen,
    .connect = dlxi_zmq_connect,
    .peer_name = link_peer_name,
    .peer_key = link_peer_key,
    .close = link_close,
};

/* The key and the roster must say the same about who this process is. */
static dlx_status check_identity(const dlxi_zmq *me, const dlxi_zmq_settings *settings,
                                 dlx_error *error) {
    uint8_t key[DLXI_KEY_BYTES];
    if (!dlxi_key_decode(key, me->keys.public_text))
        DLX_FAIL(error, CONFIG, "wan.key: '%s' is malformed", settings->key_path);
    const char *name = me->coordinator ? dlxi_coordinator_name : settings->name;
    const dlxi_roster_line *coordinator = dlxi_roster_by_name(me->roster, dlxi_coordinator_name);
    const dlxi_roster_line *own_name = dlxi_roster_by_name(me->roster, name);
    const dlxi_roster_line *own_key = dlxi_roster_by_key(me->roster, key);
    if (coordinator == NULL)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: '%s' has no line for the coordinator; add 'coordinator PUBLIC-KEY'",
                 me->roster_path);
    if (own_name != NULL && own_name != own_key)
        DLX_FAIL(error, CONFIG,
                 "wan.key: '%s' is not the key that '%s' gives '%s'; its public half is %s",
                 settings->key_path, me->roster_path, name, me->keys.public_text);
    if (own_key != NULL && own_key != own_name)
        DLX_FAIL(
            error, CONFIG,
            "wan.key: '%s' is the key that '%s' gives '%s', not '%s'; use that name or another key",
            settings->key_path, me->roster_path, own_key->name, name);
    return DLX_OK;
}

static dlx_status read_identity(dlxi_zmq *me, const dlxi_zmq_settings *settings, dlx_error *error) {
    const char *name = settings->name != NULL ? settings->name : "";
    if (!me->coordinator && (!dlxi_name_valid(name) || strcmp(name, dlxi_coordinator_name) == 0))
        DLX_FAIL(error, CONFIG,
                 "site.name: '%.80s' is not allowed; " DLXI_NAME_RULE "; 'coordinator' is taken",
                 name);
    if (!me->curve) return DLX_OK;
    DLX_TRY(dlxi_key_pair_read(&me->keys, settings->key_path, error));
    DLX_TRY(dlxi_roster_read(&me->roster, settings->roster_path, error));
    me->roster_path = strdup(settings->roster_path);
    if (me->roster_path == NULL) DLX_FAIL(error, MEMORY, "out of memory: the roster's path");
    return check_identity(me, settings, error);
}

/* All but the sockets. */
static dlx_status prepare(dlxi_zmq *me, const dlxi_zmq_settings *settings, dlx_error *error) {
    me->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (me->wake_fd < 0)
        DLX_FAIL(error, SYSTEM, "zmq link: no eventfd to be had: %s", strerror(errno));
    DLX_TRY(read_identity(me, settings, error));
    me->context = zmq_ctx_new();
    if (me->context == NULL)
        DLX_FAIL(error, SYSTEM, "zmq link: ZeroMQ can't start: %s", zmq_strerror(errno));
    if (!me->curve) return DLX_OK;
    return dlxi_zmq_auth_open(&me->auth, me->context, me->coordinator ? me->roster : NULL,
                              me->roster_path, me->log, me->log_context, error);
}

static dlx_status open_control(dlxi_zmq *me, int type, bool ipv6, const char *server_key,
                               dlx_error *error) {
    const dlxi_socket_settings settings = {
        .context = me->context,
        .type = type,
        .queue_frames = CONTROL_QUEUE_FRAMES,
        .silence_ms = CONTROL_SILENCE_MS,
        .keys = me->curve ? &me->keys : NULL,
        .server_key = server_key,
        .domain = dlxi_coordinator_name,
        .ipv6 = ipv6,
    };
    return dlxi_socket_open(&me->control, &settings, error);
}

/* A routing id that only this process and the coordinator know. Its first byte is not 0, which is
 * ZeroMQ's own. */
static dlx_status set_routing_id(void *socket, dlx_error *error) {
    uint8_t id[ROUTING_ID_BYTES] = {ROUTING_ID_FIRST};
    if (getrandom(id + 1, sizeof id - 1, 0) != (ssize_t)(sizeof id - 1) ||
        zmq_setsockopt(socket, ZMQ_ROUTING_ID, id, sizeof id) != 0)
        DLX_FAIL(error, SYSTEM, "zmq link: no routing id: %s", zmq_strerror(errno));
    return DLX_OK;
}

static dlx_status open_monitor(dlxi_zmq *me, dlx_error *error) {
    static const char place[] = "inproc://coordinator.monitor";
    int events = ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL;
    int linger_ms = 0;
    if (zmq_socket_monitor(me->control, place, events) == 0)
        me->monitor = zmq_socket(me->context, ZMQ_PAIR);
    if (me->monitor == NULL ||
        zmq_setsockopt(me->monitor, ZMQ_LINGER, &linger_ms, sizeof linger_ms) != 0 ||
        zmq_connect(me->monitor, place) != 0)
        DLX_FAIL(error, SYSTEM, "zmq link: no monitor: %s", zmq_strerror(errno));
    return DLX_OK;
}

static dlx_status set_listen_host(dlxi_zmq *me, const dlxi_zmq_settings *settings,
                                  const char *coordinator_numeric, dlx_error *error) {
    const char *host = settings->listen_host != NULL ? settings->listen_host : "";
    char numeric[DLXI_NUMERIC_BYTES] = "";
    if (host[0] == '\0') {
        DLX_TRY(dlxi_address_towards(numeric, coordinator_numeric, error));
        host = numeric;
    }
    char text[DLXI_ENDPOINT_BYTES + 8];
    dlxi_address checked;
    bool brackets = strchr(host, ':') != NULL;
    snprintf(text, sizeof text, "%s%.*s%s:0", brackets ? "[" : "", DLXI_HOST_BYTES, host,
             brackets ? "]" : "");
    dlx_error cause;
    if (dlxi_address_parse(&checked, text, "wan.listen", &cause) != DLX_OK)
        DLX_FAIL(error, CONFIG,
                 "wan.listen: '%.60s' is not an address or name of at most %d characters", host,
                 DLXI_HOST_BYTES - 1);
    if (!me->curve) DLX_TRY(dlxi_zmq_check_loopback(checked.host, error));
    memcpy(me->listen_host, checked.host, sizeof me->listen_host);
    me->listen_port = settings->listen_port;
    return DLX_OK;
}

static dlx_status site_open(dlxi_zmq *me, const dlxi_zmq_settings *settings, dlx_error *error) {
    dlxi_address coordinator;
    char numeric[DLXI_NUMERIC_BYTES];
    const char *text = settings->coordinator != NULL ? settings->coordinator : "";
    DLX_TRY(dlxi_address_parse(&coordinator, text, "wan.coordinator", error));
    if (coordinator.port == 0)
        DLX_FAIL(error, CONFIG,
                 "wan.coordinator: port 0 in '%s' is for the coordinator only; give a site the "
                 "port that the "
                 "coordinator printed",
                 text);
    if (!me->curve) DLX_TRY(dlxi_zmq_check_loopback(coordinator.host, error));
    snprintf(me->coordinator_text, sizeof me->coordinator_text, "%s", text);
    DLX_TRY(dlxi_address_remote(numeric, coordinator.host, "wan.coordinator", error));
    DLX_TRY(set_listen_host(me, settings, numeric, error));
    DLX_TRY(prepare(me, settings, error));
    const char *server_key = NULL;
    if (me->curve) server_key = dlxi_roster_by_name(me->roster, dlxi_coordinator_name)->key_text;
    DLX_TRY(open_control(me, ZMQ_DEALER, strchr(numeric, ':') != NULL, server_key, error));
    DLX_TRY(set_routing_id(me->control, error));
    DLX_TRY(open_monitor(me, error));
    return dlxi_socket_connect(me->control, numeric, coordinator.port, error);
}

static dlx_status coordinator_open(dlxi_zmq *me, const dlxi_zmq_settings *settings,
                                   char bound[DLXI_ENDPOINT_BYTES], dlx_error *error) {
    dlxi_address address;
    char numeric[DLXI_NUMERIC_BYTES];
    const char *text = settings->coordinator != NULL ? settings->coordinator : "";
    DLX_TRY(dlxi_address_parse(&address, text, "wan.coordinator", error));
    if (!me->curve) DLX_TRY(dlxi_zmq_check_loopback(address.host, error));
    DLX_TRY(dlxi_address_own(numeric, address.host, "wan.coordinator", error));
    DLX_TRY(prepare(me, settings, error));
    DLX_TRY(open_control(me, ZMQ_ROUTER, strchr(numeric, ':') != NULL, NULL, error));
    uint16_t port = 0;
    DLX_TRY(dlxi_socket_bind(me->control, numeric, address.port, &port, "wan.coordinator", error));
    dlxi_address_format(bound, address.host, port);
    return DLX_OK;
}

static dlx_status endpoint_open(dlxi_link **out, bool coordinator,
                                const dlxi_zmq_settings *settings, char *bound, dlx_error *error) {
    *out = NULL;
    dlxi_zmq *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    zmq_msg_init(&me->current);
    me->link.op = &zmq_operations;
    me->wake_fd = -1;
    me->coordinator = coordinator;
    me->curve = settings->curve;
    me->log = settings->log;
    me->log_context = settings->log_context;
    dlx_status status =
        coordinator ? coordinator_open(me, settings, bound, error) : site_open(me, settings, error);
    if (status == DLX_OK)
        *out = &me->link;
    else
        link_close(&me->link);
    return status;
}

dlx_status dlxi_zmq_site_open(dlxi_link **out, const dlxi_zmq_settings *settings,
                              dlx_error *error) {
    return endpoint_open(out, false, settings, NULL, error);
}

dlx_status dlxi_zmq_coordinator_open(dlxi_link **out, const dlxi_zmq_settings *settings,
                                     char bound[DLXI_ENDPOINT_BYTES], dlx_error *error) {
    bound[0] = '\0';
    return endpoint_open(out, true, settings, bound, error);
}
