/* SPDX-License-Identifier: Apache-2.0 */
/* The `zmq` link: processes on one machine or many, over TCP, encrypted and authenticated by CURVE.
 * Here is what a site's endpoint (zmq_site.c) and the coordinator's (zmq_coordinator.c) share:
 * identity, frames to and from a socket, waiting, closing.
 *
 * Sockets. The side that binds has a ROUTER: the coordinator one for all sites, a site one for each
 * site of a higher index. The side that connects has a DEALER. So control never waits behind data.
 * A ROUTER hands over: a peer whose connection broke unseen and that comes again takes its own
 * place, which a PAIR or DEALER can't do. All sockets belong to the owner thread. libzmq's own
 * thread does input, output and encryption; one more thread admits keys (zmq_auth.c). `wake` writes
 * to an eventfd, and may be called from a signal handler. */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/resources.h"
#include "link/common.h"
#include "link/zmq_internal.h"

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
static dlx_status routing_id_send(void *socket, const void *routing_id, size_t routing_id_bytes,
                                  dlx_error *error) {
    int sent;
    do sent = zmq_send(socket, routing_id, routing_id_bytes, ZMQ_DONTWAIT | ZMQ_SNDMORE);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0) return DLX_OK;
    return errno == EHOSTUNREACH ? DLX_PEER_LOST : send_failure(error);
}

/* The frame is encoded first, so that nothing can fail between its routing id and it. */
dlx_status dlxi_zmq_send_frame(dlxi_zmq *me, void *socket, const void *routing_id,
                               size_t routing_id_bytes, const dlxi_frame *frame, dlx_error *error) {
    zmq_msg_t message;
    size_t bytes = (size_t)DLXI_FRAME_HEADER_BYTES + frame->payload_bytes;
    if (zmq_msg_init_size(&message, bytes) != 0)
        DLX_FAIL(error, MEMORY, "out of memory: a frame of %zu bytes", bytes);
    dlxi_frame_encode(zmq_msg_data(&message), frame);
    dlx_status status = DLX_OK;
    if (routing_id != NULL) status = routing_id_send(socket, routing_id, routing_id_bytes, error);
    if (status == DLX_OK && zmq_msg_send(&message, socket, ZMQ_DONTWAIT) < 0)
        status = send_failure(error);
    if (status != DLX_OK) {
        zmq_msg_close(&message);
        return status;
    }
    dlxi_count_sent(&me->link, bytes);
    return DLX_OK;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* DLX_TIMEOUT: none waits. `more`: parts of the same message follow. */
static dlx_status part_receive(zmq_msg_t *part, void *socket, bool *more, dlx_error *error) {
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

/* Frames have one part. The rest of a longer message is read and dropped. */
static void parts_skip(void *socket) {
    for (bool more = true; more;) {
        zmq_msg_t part;
        zmq_msg_init(&part);
        if (part_receive(&part, socket, &more, NULL) != DLX_OK) more = false;
        zmq_msg_close(&part);
    }
}

dlx_status dlxi_zmq_receive_message(dlxi_zmq *me, void *socket, zmq_msg_t *id, bool *more,
                                    dlx_error *error) {
    zmq_msg_close(&me->current);
    zmq_msg_init(&me->current);
    *more = true;
    if (id != NULL) DLX_TRY(part_receive(id, socket, more, error));
    return *more ? part_receive(&me->current, socket, more, error) : DLX_OK;
}

bool dlxi_zmq_take_frame(dlxi_zmq *me, void *socket, bool more, bool admitted, dlxi_frame *frame) {
    size_t bytes = zmq_msg_size(&me->current);
    if (more) parts_skip(socket);
    if (more || !admitted ||
        dlxi_frame_decode(frame, zmq_msg_data(&me->current), bytes, NULL) != DLX_OK) {
        dlxi_count_dropped(&me->link);
        return false;
    }
    dlxi_count_received(&me->link, bytes);
    return true;
}

dlx_status dlxi_zmq_poll(dlxi_zmq *me, zmq_pollitem_t *items, int count, int64_t deadline_ns,
                         dlx_error *error) {
    items[0] = (zmq_pollitem_t){.fd = me->wake_fd, .events = ZMQ_POLLIN};
    long wait_ms = -1;
    if (deadline_ns >= 0) {
        int64_t left_ns = deadline_ns - dlxi_clock_ns();
        wait_ms = left_ns > 0 ? (long)((left_ns + 999999) / 1000000) : 0;
    }
    if (zmq_poll(items, count, wait_ms) < 0) {
        if (errno == EINTR) return DLX_OK;
        DLX_FAIL(error, SYSTEM, "zmq link: poll failed: %s", zmq_strerror(errno));
    }
    uint64_t times;
    /* if another receive has emptied it, all the better */
    if (items[0].revents != 0 && read(me->wake_fd, &times, sizeof times) < 0) times = 0;
    return DLX_OK;
}

dlx_status dlxi_zmq_receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from, dlxi_frame *frame,
                            dlx_error *error) {
    dlxi_zmq *me = (dlxi_zmq *)link;
    int64_t deadline_ns = dlxi_link_deadline_ns(timeout_ms);
    for (bool last = false;;) {
        if (atomic_exchange(&me->woken, false)) return DLX_AGAIN;
        if (me->role->room_again(me)) return DLX_AGAIN;
        bool taken = false;
        dlx_status status = me->role->receive_now(me, from, frame, &taken, error);
        if (status == DLX_OK && taken) return DLX_OK;
        if (status != DLX_OK && status != DLX_TIMEOUT) return status;
        if (last) return DLX_TIMEOUT;
        /* No wait after a dropped frame; but even if all are dropped, the deadline holds. */
        if (status == DLX_TIMEOUT) DLX_TRY(me->role->wait(me, deadline_ns, error));
        last = deadline_ns >= 0 && dlxi_clock_ns() >= deadline_ns;
    }
}

void dlxi_zmq_wake(dlxi_link *link) {
    dlxi_zmq *me = (dlxi_zmq *)link;
    int system_errno = errno;
    atomic_store(&me->woken, true);
    uint64_t once = 1;
    while (write(me->wake_fd, &once, sizeof once) < 0 && errno == EINTR) {}
    errno = system_errno;
}

/* ---- open and close -------------------------------------------------------------------------- */

/* The key and the roster must agree on this process's name. */
static dlx_status identity_check(const dlxi_zmq *me, const dlxi_link_settings *settings,
                                 const char *name, dlx_error *error) {
    uint8_t key[DLXI_KEY_BYTES];
    if (!dlxi_key_decode(key, me->keys.public_text))
        DLX_FAIL(error, CONFIG, "wan.key: '%s' is malformed", settings->key_path);
    const dlxi_roster_line *coordinator = dlxi_roster_by_name(me->roster, dlxi_coordinator_name);
    const dlxi_roster_line *own_name = dlxi_roster_by_name(me->roster, name);
    const dlxi_roster_line *own_key = dlxi_roster_by_key(me->roster, key);
    if (coordinator == NULL)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: '%s' has no line for the coordinator; add 'coordinator PUBLIC-KEY'",
                 me->roster_path);
    if (own_name != NULL && strcmp(own_name->key_text, me->keys.secret_text) == 0)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: '%s' gives '%s' the secret half of '%s', which was to stay on this "
                 "machine; make another key with 'dilocox keygen', and put its public half there",
                 me->roster_path, name, settings->key_path);
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

void dlxi_zmq_init(dlxi_zmq *me, const dlxi_link_operations *operations,
                   const dlxi_zmq_role *role) {
    zmq_msg_init(&me->current);
    me->link.op = operations;
    me->role = role;
    me->wake_fd = -1;
}

/* libzmq ends the process if it lacks a descriptor or thread. */
static dlx_status library_prepare(const dlxi_zmq *me, dlx_error *error) {
    enum {
        LIBRARY_THREADS = 2, /* it starts them with the first socket */
        /* its own, those of control and its successor while it reconnects, one per name that is
         * looked up, and the files that a run writes */
        DESCRIPTORS = 32,
        BYTES = 32 << 20
    };
    DLX_TRY(dlxi_descriptors_need(DESCRIPTORS, "zmq link", error));
    if (!dlxi_memory_has(BYTES))
        DLX_FAIL(error, MEMORY, "out of memory: the zmq link needs %d MiB", BYTES >> 20);
    return dlxi_threads_need(LIBRARY_THREADS + (me->curve ? 1 : 0), "zmq link", error);
}

dlx_status dlxi_zmq_begin(dlxi_zmq *me, const dlxi_link_settings *settings, const char *name,
                          bool roster_admits, dlx_error *error) {
    me->curve = settings->curve;
    me->timeout_ms = settings->timeout_ms;
    me->log = settings->log;
    me->log_context = settings->log_context;
    me->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (me->wake_fd < 0)
        DLX_FAIL(error, SYSTEM, "zmq link: cannot create an eventfd: %s", strerror(errno));
    if (me->curve) {
        DLX_TRY(dlxi_key_pair_read(&me->keys, settings->key_path, settings->ranks > 1, error));
        DLX_TRY(dlxi_roster_read(&me->roster, settings->roster_path, error));
        me->roster_path = strdup(settings->roster_path);
        if (me->roster_path == NULL) DLX_FAIL(error, MEMORY, "out of memory: the roster's path");
        DLX_TRY(identity_check(me, settings, name, error));
    }
    DLX_TRY(library_prepare(me, error));
    me->context = zmq_ctx_new();
    if (me->context == NULL)
        DLX_FAIL(error, SYSTEM, "zmq link: ZeroMQ can't start: %s", zmq_strerror(errno));
    if (!me->curve) return DLX_OK;
    return dlxi_zmq_auth_open(&me->auth, me->context, roster_admits ? me->roster : NULL,
                              me->roster_path, me->log, me->log_context, error);
}

void dlxi_zmq_end(dlxi_zmq *me) {
    zmq_msg_close(&me->current);
    if (me->control != NULL) zmq_close(me->control);
    if (me->context != NULL) {
        /* ends the thread that admits keys; closed sockets still empty their queues */
        zmq_ctx_shutdown(me->context);
        dlxi_zmq_auth_close(&me->auth);
        while (zmq_ctx_term(me->context) != 0 && errno == EINTR) {}
    }
    if (me->wake_fd >= 0) close(me->wake_fd);
    dlxi_key_pair_wipe(&me->keys);
    free(me->roster);
    free(me->roster_path);
}
