/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the `zmq` link: the endpoint, its sockets, and the thread that admits keys. */
#ifndef DLXI_LINK_ZMQ_INTERNAL_H
#define DLXI_LINK_ZMQ_INTERNAL_H

#include <stdatomic.h>

#include <zmq.h>

#include "link/address.h"
#include "link/roster.h"

/* ---- admitting keys (zmq_auth.c) ------------------------------------------------------------- */

/* Answers libzmq's question, for each connection to a socket that binds, whether its key may come
 * in (ZAP, RFC 27). */
typedef struct dlxi_zmq_auth dlxi_zmq_auth;

/* Before the context's first bind. `roster` (of the coordinator; NULL at a site) and `roster_path`
 * outlive it. */
dlx_status dlxi_zmq_auth_open(dlxi_zmq_auth **out, void *context, const dlxi_roster *roster,
                              const char *roster_path, dlxi_log log, void *log_context,
                              dlx_error *error);
/* From now on, site `index`'s socket admits this key only. Owner thread. */
void dlxi_zmq_auth_admit(dlxi_zmq_auth *auth, uint32_t index, const char *name,
                         const uint8_t key[DLXI_KEY_BYTES]);
/* After zmq_ctx_shutdown, which ends its thread. */
void dlxi_zmq_auth_close(dlxi_zmq_auth **auth);

/* ---- sockets (zmq_socket.c) ------------------------------------------------------------------ */

enum {
    CONTROL_QUEUE_FRAMES = 64,
    /* A direction and side: 2 MiB, so that memory and what waits before a new attempt are bounded.
     */
    DATA_QUEUE_FRAMES = 8,
    /* A connection whose other side acknowledges nothing for so long, or takes no byte of what it
     * has, is ended and made again. Data is given longer, since a site that computes may leave it
     * lying. */
    CONTROL_SILENCE_MS = 20000,
    DATA_SILENCE_MS = 60000,
    CLOSE_LINGER_MS = 1000
};

typedef struct dlxi_socket_settings {
    void *context;
    int type, queue_frames, silence_ms;
    const dlxi_key_pair *keys; /* NULL: no security */
    /* to connect: the key that the other side must prove; NULL: this side binds */
    const char *server_key;
    const char *domain; /* to bind: ZAP domain */
    bool ipv6;
} dlxi_socket_settings;

dlx_status dlxi_socket_open(void **out, const dlxi_socket_settings *settings, dlx_error *error);
/* Binds to a numeric address; *port is the port in use. EADDRINUSE is told as `what: port N on HOST
 * is in use; …`. */
dlx_status dlxi_socket_bind(void *socket, const char *numeric, uint16_t port, uint16_t *bound_port,
                            const char *what, dlx_error *error);
dlx_status dlxi_socket_connect(void *socket, const char *numeric, uint16_t port, dlx_error *error);
/* Whether ZMQ_POLLOUT (or another event) holds now. */
bool dlxi_socket_ready(void *socket, short event);

/* ---- the endpoint (zmq.c, zmq_site.c) -------------------------------------------------------- */

/* A routing id towards the coordinator: ROUTING_ID_FIRST, then 16 random bytes. Between two sites
 * it is always the same. */
enum { ROUTING_ID_FIRST = 's', ROUTING_ID_BYTES = 17, DATA_ROUTING_ID_BYTES = 4 };
/* Processes that a coordinator tells apart in its life: every rank of a run, and as many that were
 * refused or came again. */
enum { NUMBERED_MAX = 8192 };
extern const char dlxi_data_routing_id[]; /* "site" */

/* One site's data, seen from another site. */
typedef struct dlxi_channel {
    /* NULL before listen (lower index: ROUTER, binds) or connect (higher index: DEALER) */
    void *socket;
    /* this side did, and knows its peer by User-Id; the other side knows it by its CURVE server key
     */
    bool binds;
    bool refused; /* a send got DLX_AGAIN */
    char name[DLXI_NAME_BYTES], key_text[DLXI_KEY_TEXT_BYTES];
    char endpoint[DLXI_ENDPOINT_BYTES]; /* where this side listens, or what it connected to */
} dlxi_channel;

/* A peer of the coordinator: one process. The ranks of a site share its name and key. */
typedef struct dlxi_numbered {
    uint8_t routing_id[ROUTING_ID_BYTES];
    char name[DLXI_NAME_BYTES], key_text[DLXI_KEY_TEXT_BYTES];
    int64_t unreachable_since_ns; /* 0: reachable when last tried */
} dlxi_numbered;

typedef struct dlxi_zmq {
    dlxi_link link; /* first */
    bool coordinator, curve;
    void *context, *control, *monitor;
    dlxi_zmq_auth *auth;
    dlxi_key_pair keys;
    dlxi_roster *roster;
    char *roster_path;
    dlxi_log log;
    void *log_context;
    int wake_fd;
    _Atomic bool woken;
    zmq_msg_t current; /* what the last receive handed out */
    /* a site's */
    bool control_refused;
    char coordinator_text[DLXI_ENDPOINT_BYTES];
    char listen_host[DLXI_HOST_BYTES]; /* what the others are told */
    uint16_t listen_port;
    dlxi_channel channels[DLXI_SITES_MAX];
    uint32_t channel_next;
    int64_t handshake_logged_ns;
    /* the coordinator's */
    dlxi_numbered *numbered; /* [numbered_count], room for numbered_room */
    uint32_t numbered_count, numbered_room;
    bool numbered_full_logged;
    int64_t retry_at_ns; /* 0: no send was refused */
} dlxi_zmq;

void dlxi_zmq_log(const dlxi_zmq *me, const char *format, ...) DLXI_PRINTF(2, 3);

/* wan.security: none */
dlx_status dlxi_zmq_check_loopback(const char *host, dlx_error *error);

/* zmq_site.c */
dlx_status dlxi_zmq_listen(dlxi_link *link, uint32_t own_index, uint32_t index, const char *name,
                           const char *public_key, char endpoint[DLXI_ENDPOINT_BYTES],
                           dlx_error *error);
dlx_status dlxi_zmq_connect(dlxi_link *link, uint32_t index, const char *endpoint,
                            dlx_error *error);
/* Reads one event of the control socket's monitor. REFUSED where the coordinator does not admit
 * this site's key. */
dlx_status dlxi_zmq_monitor_read(dlxi_zmq *me, dlx_error *error);

#endif
