/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets of the `zmq` link: every one bounded, watched, and, with CURVE, closed to strangers both
 * ways.
 *
 * ZMTP's own heartbeats are off: in libzmq 4.3.4 a heartbeat that times out while a full queue has
 * stopped reading from its connection aborts the *process* (assertion `_input_stopped`, libzmq
 * issue 4767), and a peer that does not receive for some seconds fills such a queue. TCP watches
 * instead: keepalive while nothing travels, the user timeout while something does; both work
 * however much data is queued. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/resources.h"
#include "link/zmq_internal.h"

enum {
    CONTROL_QUEUE_FRAMES = 64,
    /* per direction and side: 2 MiB, which bounds memory, and what waits before a new attempt */
    DATA_QUEUE_FRAMES = 8,
    CLOSE_LINGER_MS = 1000,
    /* CURVE adds 33 bytes to a message; its handshake is smaller than a frame */
    MESSAGE_BYTES_MAX = DLXI_FRAME_HEADER_BYTES + DLXI_FRAME_PAYLOAD_MAX + 256,
    RECONNECT_FIRST_MS = 100,
    RECONNECT_MAX_MS = 400, /* libzmq adds up to RECONNECT_FIRST_MS at random */
    KEEPALIVE_IDLE_S = 10,
    KEEPALIVE_EVERY_S = 5,
    KEEPALIVE_COUNT = 2,
    /* of a socket: its own, one that listens, its connection, that one's successor; and some that
     * libzmq and the files of a run have for a moment */
    SOCKET_DESCRIPTORS = 12
};

/* Up to a wan.timeout_s of 10 s. With a longer one round trips may be longer too: all but
 * DATA_SILENCE_MS grow with it, up to 100 s. */
enum {
    TIMEOUT_USUAL_MS = 10000,
    TIMEOUT_MAX_MS = 100000,
    /* The kernel repeats a SYN after 1 s, then 2, 4 and so on. A new attempt after 1.5 s, and a
     * pause of at most 0.5 s, keep SYNs about 1 s apart for as long as an outage lasts. A round
     * trip must take less. */
    CONNECT_MS = 1500,
    HANDSHAKE_MS = 5000, /* four round trips */
    /* A connection whose other side acknowledges nothing for this long, or accepts no byte of what
     * it has, is ended and made again. TCP alone would wait twice as long after each loss: a
     * network that comes back after a minute would stay unused for another. Data is given longer,
     * since a site that computes may leave it unread, and a site that misses it calls `reconnect`.
     */
    CONTROL_SILENCE_MS = 3500,
    DATA_SILENCE_MS = 60000
};

static int scaled_ms(int usual_ms, uint32_t timeout_ms) {
    if (timeout_ms <= TIMEOUT_USUAL_MS) return usual_ms;
    if (timeout_ms > TIMEOUT_MAX_MS) timeout_ms = TIMEOUT_MAX_MS;
    return (int)((int64_t)usual_ms * timeout_ms / TIMEOUT_USUAL_MS);
}

typedef struct option {
    int name, value;
} option;

static bool options_set(void *socket, const option *options, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (zmq_setsockopt(socket, options[i].name, &options[i].value, sizeof options[i].value) !=
            0)
            return false;
    return true;
}

static bool text_set(void *socket, int name, const char *text) {
    return zmq_setsockopt(socket, name, text, strlen(text)) == 0;
}

static bool bounds_set(void *socket, const dlxi_socket_settings *settings, uint32_t timeout_ms) {
    int queue_frames = settings->data ? DATA_QUEUE_FRAMES : CONTROL_QUEUE_FRAMES;
    int silence_ms = settings->data ? DATA_SILENCE_MS : scaled_ms(CONTROL_SILENCE_MS, timeout_ms);
    const option options[] = {
        {ZMQ_SNDHWM, queue_frames},
        {ZMQ_RCVHWM, queue_frames},
        {ZMQ_LINGER, CLOSE_LINGER_MS},
        {ZMQ_IPV6, strchr(settings->numeric, ':') != NULL},
        {ZMQ_HANDSHAKE_IVL, scaled_ms(HANDSHAKE_MS, timeout_ms)},
        {ZMQ_CONNECT_TIMEOUT, scaled_ms(CONNECT_MS, timeout_ms)},
        {ZMQ_RECONNECT_IVL, RECONNECT_FIRST_MS},
        {ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS},
        {ZMQ_HEARTBEAT_IVL, 0},
        {ZMQ_TCP_MAXRT, silence_ms},
        {ZMQ_TCP_KEEPALIVE, 1},
        {ZMQ_TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S},
        {ZMQ_TCP_KEEPALIVE_INTVL, KEEPALIVE_EVERY_S},
        {ZMQ_TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT},
    };
    int64_t bytes_max = MESSAGE_BYTES_MAX;
    return options_set(socket, options, sizeof options / sizeof *options) &&
           zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &bytes_max, sizeof bytes_max) == 0;
}

static bool curve_set(void *socket, const dlxi_key_pair *keys,
                      const dlxi_socket_settings *settings) {
    const option server = {ZMQ_CURVE_SERVER, 1};
    bool set =
        settings->server_key != NULL
            ? text_set(socket, ZMQ_CURVE_SERVERKEY, settings->server_key) &&
                  text_set(socket, ZMQ_CURVE_PUBLICKEY, keys->public_text)
            : text_set(socket, ZMQ_ZAP_DOMAIN, settings->domain) && options_set(socket, &server, 1);
    return set && text_set(socket, ZMQ_CURVE_SECRETKEY, keys->secret_text);
}

/* Mandatory: sending to a peer without a connection fails instead of dropping. Handover: a peer
 * that connects again replaces its old connection. */
static bool identity_set(void *socket, const dlxi_socket_settings *settings) {
    static const option router[] = {{ZMQ_ROUTER_MANDATORY, 1}, {ZMQ_ROUTER_HANDOVER, 1}};
    if (settings->server_key == NULL) return options_set(socket, router, 2);
    return zmq_setsockopt(socket, ZMQ_ROUTING_ID, settings->routing_id,
                          settings->routing_id_bytes) == 0;
}

dlx_status dlxi_socket_open(void **out, const dlxi_zmq *me, const dlxi_socket_settings *settings,
                            dlx_error *error) {
    *out = NULL;
    DLX_TRY(dlxi_descriptors_need(SOCKET_DESCRIPTORS, "zmq link", error));
    void *socket = zmq_socket(me->context, settings->server_key == NULL ? ZMQ_ROUTER : ZMQ_DEALER);
    if (socket == NULL)
        DLX_FAIL(error, SYSTEM, "cannot create a ZeroMQ socket: %s", zmq_strerror(errno));
    if (!bounds_set(socket, settings, me->timeout_ms) || !identity_set(socket, settings) ||
        (me->curve && !curve_set(socket, &me->keys, settings))) {
        int system_errno = errno;
        zmq_close(socket);
        errno = system_errno;
        DLX_FAIL(error, SYSTEM,
                 "cannot set up a ZeroMQ socket: %s; version 4.3 with CURVE is needed",
                 zmq_strerror(errno));
    }
    *out = socket;
    return DLX_OK;
}

dlx_status dlxi_socket_bind(void *socket, const char *numeric, uint16_t port, uint16_t *bound_port,
                            const char *what, dlx_error *error) {
    char address[DLXI_ENDPOINT_BYTES], endpoint[DLXI_ENDPOINT_BYTES + 8];
    dlxi_address_format(address, numeric, port);
    snprintf(endpoint, sizeof endpoint, "tcp://%s", address);
    if (zmq_bind(socket, endpoint) != 0) {
        if (errno == EADDRINUSE)
            DLX_FAIL(error, CONFIG,
                     "%s: port %u on %s is in use; choose another or 0 for any free port", what,
                     (unsigned)port, numeric);
        if (errno == EACCES)
            DLX_FAIL(error, CONFIG,
                     "%s: port %u on %s is not allowed to this user; choose one above 1023", what,
                     (unsigned)port, numeric);
        DLX_FAIL(error, SYSTEM, "%s: can't listen on %s: %s", what, address, zmq_strerror(errno));
    }
    char bound[256] = "";
    size_t bytes = sizeof bound;
    const char *colon = NULL;
    if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &bytes) == 0) colon = strrchr(bound, ':');
    long number = colon != NULL ? strtol(colon + 1, NULL, 10) : 0;
    if (number <= 0 || number > UINT16_MAX)
        DLX_FAIL(error, SYSTEM, "%s: can't tell the port of %s", what, address);
    *bound_port = (uint16_t)number;
    return DLX_OK;
}

dlx_status dlxi_socket_connect(void *socket, const char *numeric, uint16_t port, dlx_error *error) {
    char address[DLXI_ENDPOINT_BYTES], endpoint[DLXI_ENDPOINT_BYTES + 8];
    dlxi_address_format(address, numeric, port);
    snprintf(endpoint, sizeof endpoint, "tcp://%s", address);
    if (zmq_connect(socket, endpoint) != 0)
        DLX_FAIL(error, SYSTEM, "can't connect to %s: %s", address, zmq_strerror(errno));
    return DLX_OK;
}

void dlxi_socket_drop(void *socket) {
    if (socket == NULL) return;
    int linger_ms = 0;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(socket);
}

bool dlxi_socket_ready(void *socket, short event) {
    int events = 0;
    size_t bytes = sizeof events;
    return zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) == 0 && (events & event) != 0;
}
