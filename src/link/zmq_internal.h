/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the `zmq` link: the endpoint, its sockets, and the thread that admits keys. */
#ifndef DLXI_LINK_ZMQ_INTERNAL_H
#define DLXI_LINK_ZMQ_INTERNAL_H

#include <stdatomic.h>

#include <zmq.h>

#include "link/address.h"
#include "link/links.h"
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

/* ---- both endpoints (zmq.c) ------------------------------------------------------------------ */

/* A routing id towards the coordinator: ROUTING_ID_FIRST, then 16 random bytes. Between two sites
 * it is always the same. */
enum { ROUTING_ID_FIRST = 's', ROUTING_ID_BYTES = 17 };
/* A ROUTER tells nothing when one of its peers has come, or has room: try again after this long. */
enum { DLXI_ZMQ_RETRY_NS = 20000000 };

typedef struct dlxi_zmq dlxi_zmq;

/* What receiving does at a site, or at the coordinator. */
typedef struct dlxi_zmq_role {
    /* Whether a send that was refused may be tried again; true once per refusal. */
    bool (*room_again)(dlxi_zmq *me);
    /* DLX_OK: *taken says whether a good frame came; if not, one was dropped and there may be more.
     * DLX_TIMEOUT: no message waits. */
    dlx_status (*receive_now)(dlxi_zmq *me, uint32_t *from, dlxi_frame *frame, bool *taken,
                              dlx_error *error);
    /* Waits until something may have happened, at most until deadline_ns (< 0: for ever). */
    dlx_status (*wait)(dlxi_zmq *me, int64_t deadline_ns, dlx_error *error);
} dlxi_zmq_role;

/* Both endpoints begin with this. */
struct dlxi_zmq {
    dlxi_link link; /* first */
    const dlxi_zmq_role *role;
    bool curve;
    uint32_t timeout_ms; /* wan.timeout_s */
    void *context, *control;
    dlxi_zmq_auth *auth;
    dlxi_key_pair keys;
    dlxi_roster *roster;
    char *roster_path;
    dlxi_log log;
    void *log_context;
    int wake_fd;
    _Atomic bool woken;
    zmq_msg_t current; /* the frame that the last receive returned */
};

void dlxi_zmq_init(dlxi_zmq *me, const dlxi_link_operations *operations, const dlxi_zmq_role *role);
/* Everything but the sockets. `name` is the roster's for this process, `roster_admits` whether its
 * keys may come in. After a failure too, dlxi_zmq_end releases what there is. */
dlx_status dlxi_zmq_begin(dlxi_zmq *me, const dlxi_link_settings *settings, const char *name,
                          bool roster_admits, dlx_error *error);
/* After the role's own sockets are closed; closes control, and gives queued frames time to leave.
 */
void dlxi_zmq_end(dlxi_zmq *me);

void dlxi_zmq_log(const dlxi_zmq *me, const char *format, ...) DLXI_PRINTF(2, 3);
/* wan.security: none */
dlx_status dlxi_zmq_check_loopback(const char *host, dlx_error *error);

/* routing_id: NULL if the socket is no ROUTER. DLX_AGAIN: the queue is full. DLX_PEER_LOST: a
 * ROUTER has no connection with this id. */
dlx_status dlxi_zmq_send_frame(dlxi_zmq *me, void *socket, const void *routing_id,
                               size_t routing_id_bytes, const dlxi_frame *frame, dlx_error *error);
/* Reads the next message into `current`, and its routing id if the socket is a ROUTER (id is not
 * NULL). DLX_TIMEOUT: none waits. *more: parts follow it. */
dlx_status dlxi_zmq_receive_message(dlxi_zmq *me, void *socket, zmq_msg_t *id, bool *more,
                                    dlx_error *error);
/* Reads the frame in `current`; false if it is dropped: `admitted` is false, it is malformed, or
 * parts follow it. */
bool dlxi_zmq_take_frame(dlxi_zmq *me, void *socket, bool more, bool admitted, dlxi_frame *frame);
/* Polls items[count]; the first is set here: what `wake` writes to. */
dlx_status dlxi_zmq_poll(dlxi_zmq *me, zmq_pollitem_t *items, int count, int64_t deadline_ns,
                         dlx_error *error);

/* Operations of both endpoints. */
dlx_status dlxi_zmq_receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from, dlxi_frame *frame,
                            dlx_error *error);
void dlxi_zmq_wake(dlxi_link *link);

/* ---- sockets (zmq_socket.c) ------------------------------------------------------------------ */

typedef struct dlxi_socket_settings {
    const char *numeric; /* the address to bind or connect to */
    bool data;           /* between sites; else control */
    /* to connect, as a DEALER: the key that the other side must prove; "" without security. NULL:
     * to bind, as a ROUTER */
    const char *server_key;
    const char *routing_id; /* to connect */
    size_t routing_id_bytes;
    const char *domain; /* to bind: ZAP domain */
} dlxi_socket_settings;

/* Neither bound nor connected yet. */
dlx_status dlxi_socket_open(void **out, const dlxi_zmq *me, const dlxi_socket_settings *settings,
                            dlx_error *error);
/* Binds to a numeric address; *port is the port in use. EADDRINUSE becomes `what: port N on HOST
 * is in use; …`. */
dlx_status dlxi_socket_bind(void *socket, const char *numeric, uint16_t port, uint16_t *bound_port,
                            const char *what, dlx_error *error);
dlx_status dlxi_socket_connect(void *socket, const char *numeric, uint16_t port, dlx_error *error);
/* Drops what is queued; takes NULL. */
void dlxi_socket_drop(void *socket);
/* Whether ZMQ_POLLOUT (or another event) holds now. */
bool dlxi_socket_ready(void *socket, short event);

/* ---- a site's endpoint (zmq_site.c, zmq_channel.c) ------------------------------------------- */

/* Where a DEALER connects. Numeric, since a name may not be found while the network is away. */
typedef struct dlxi_target {
    char numeric[DLXI_NUMERIC_BYTES];
    uint16_t port;
} dlxi_target;

/* One site's data, seen from another. */
typedef struct dlxi_channel {
    /* NULL before listen (lower index: ROUTER, binds) or connect (higher index: DEALER) */
    void *socket;
    /* this side did, and knows its peer by User-Id; the other side knows it by its CURVE server key
     */
    bool binds;
    bool refused;        /* a send got DLX_AGAIN */
    int64_t retry_at_ns; /* the ROUTER has others, but not this peer; 0: not so */
    char name[DLXI_NAME_BYTES], key_text[DLXI_KEY_TEXT_BYTES];
    char endpoint[DLXI_ENDPOINT_BYTES]; /* where this side listens, or what it connected to */
    dlxi_target target;                 /* the same, if this side connects */
} dlxi_channel;

typedef struct dlxi_zmq_site {
    dlxi_zmq zmq;  /* first */
    void *monitor; /* of control */
    uint32_t monitors_opened;
    bool control_refused;
    char routing_id[ROUTING_ID_BYTES];
    dlxi_target coordinator;
    char coordinator_text[DLXI_ENDPOINT_BYTES];
    char listen_host[DLXI_HOST_BYTES];       /* what the others are given */
    char listen_numeric[DLXI_NUMERIC_BYTES]; /* what channels bind to */
    uint16_t listen_port;
    bool listen_own; /* this machine has listen_host */
    dlxi_channel channels[DLXI_SITES_MAX];
    uint32_t channel_next;
    int64_t handshake_logged_ns;
    int64_t handshake_failing_ns; /* since then; 0: it has not */
    /* A handshake with the coordinator succeeded. Before, control takes no frame: one that waited
     * in it would be out of date, and a process that ends would wait for it to leave. */
    bool met;
} dlxi_zmq_site;

dlx_status dlxi_channel_listen(dlxi_link *link, uint32_t own_index, uint32_t index,
                               const char *name, const char *public_key,
                               char endpoint[DLXI_ENDPOINT_BYTES], dlx_error *error);
dlx_status dlxi_channel_connect(dlxi_link *link, uint32_t index, const char *endpoint,
                                dlx_error *error);
dlx_status dlxi_channel_reconnect(dlxi_zmq_site *me, uint32_t index, dlx_error *error);
dlx_status dlxi_channel_send(dlxi_zmq_site *me, dlxi_channel *channel, const dlxi_frame *frame,
                             dlx_error *error);
/* As role.receive_now. */
dlx_status dlxi_channel_receive(dlxi_zmq_site *me, const dlxi_channel *channel, dlxi_frame *frame,
                                bool *taken, dlx_error *error);

#endif
