/* SPDX-License-Identifier: Apache-2.0 */
/* Links: how frames move between sites and the coordinator. One vtable, which each link of the
 * table in links.h fills.
 *
 * An endpoint has one owner thread, which sends and receives; only `wake` may be called from
 * another. Frames from one peer arrive in the order sent and unchanged, or not at all: a frame that
 * fails its checksum is dropped and counted.
 *
 * If a site has several ranks, each has its own endpoint, and talks to the rank of the same number
 * in the other sites: below, "site i" is that rank of it. The coordinator receives from all ranks.
 *
 * A site's endpoint is connected to the coordinator from the start. The coordinator gives it its
 * index and its peers (welcome); it calls `listen`, sends the coordinator where it listens, and
 * calls `connect` with where the others do. The coordinator's endpoint numbers its peers in the
 * order of their first frames. */
#ifndef DLXI_LINK_H
#define DLXI_LINK_H

#include "wire/frame.h"

typedef struct dlxi_link dlxi_link;

/* On a site's endpoint: peers 0..D−1 are the same rank of the sites by index, DLXI_SITE_COORDINATOR
 * is the coordinator. What is marked "Site" is for a site's endpoint only. */
typedef struct dlxi_link_operations {
    const char *name;
    /* Copies and queues one frame; never blocks. DLX_AGAIN: this peer's queue is full, or (zmq, at
     * a site) the coordinator was never connected yet; receive() will return DLX_AGAIN when there
     * may be room. DLX_PEER_LOST: this peer has left, or the coordinator's endpoint has had no
     * connection to it for timeout_ms (zmq; until then, and from a site, DLX_AGAIN). A peer that
     * connects again can be sent to again. */
    dlx_status (*send)(dlxi_link *link, uint32_t peer, const dlxi_frame *frame, dlx_error *error);
    /* Waits up to timeout_ms (0: not at all; < 0: for ever). DLX_OK: *frame and *peer are set; the
     * payload is valid until the next call on the link. DLX_AGAIN: woken, or room for a send that
     * was refused. DLX_TIMEOUT. DLX_REFUSED (zmq, at a site): the coordinator does not admit this
     * site's key, and no frame will ever come. Fair: a site receives the coordinator's frames
     * first, then one of each other site in turn, and the coordinator one of each peer in turn
     * (mpi: in MPI's order). */
    dlx_status (*receive)(dlxi_link *link, int64_t timeout_ms, uint32_t *peer, dlxi_frame *frame,
                          dlx_error *error);
    /* Makes the receive under way, or the next one, return DLX_AGAIN. Any thread; zmq and mpi: also
     * a signal handler. */
    void (*wake)(dlxi_link *link);
    /* Site: prepares to receive from `peer`, which has this roster name and must prove that it owns
     * public_key (Z85 text; "" if the link has no security). Called for every other site. Writes
     * where this side listens, for the coordinator to pass on, or "" if it will connect instead. */
    dlx_status (*listen)(dlxi_link *link, uint32_t me, uint32_t peer, const char *name,
                         const char *public_key, char endpoint[DLXI_ENDPOINT_BYTES],
                         dlx_error *error);
    /* Site: `endpoint` is what the peer's listen(…, me, …) wrote; called for every other site, ""
     * included. */
    dlx_status (*connect)(dlxi_link *link, uint32_t peer, const char *endpoint, dlx_error *error);
    /* Site: makes the connection to `peer` (or to the coordinator) anew, if this side is the one
     * that connects; what was queued for it, or from it, may be lost, on a connection that works
     * too. Frames arrive again as soon as the network allows. NULL: without connections (mem, mpi).
     */
    dlx_status (*reconnect)(dlxi_link *link, uint32_t peer, dlx_error *error);
    /* The roster name that this peer proved to own (mem: the name it opened with); "" if the link
     * has no security. */
    const char *(*peer_name)(dlxi_link *link, uint32_t peer);
    /* The public key that it proved to own (Z85 text), or "". */
    const char *(*peer_key)(dlxi_link *link, uint32_t peer);
    /* Coordinator: the i-th name that may join; NULL: no more, or anybody may. May be NULL. */
    const char *(*may_join)(dlxi_link *link, uint32_t i);
    void (*close)(dlxi_link *link); /* gives queued frames up to 1 s to leave */
} dlxi_link_operations;

typedef struct dlxi_link_statistics {
    uint64_t bytes_sent, bytes_received; /* headers included */
    uint64_t frames_sent, frames_received, frames_dropped;
} dlxi_link_statistics;

/* Every implementation's struct begins with this. Statistics are written by the owner thread, read
 * by any. */
struct dlxi_link {
    const dlxi_link_operations *op;
    _Atomic uint64_t bytes_sent, bytes_received, frames_sent, frames_received, frames_dropped;
};

void dlxi_link_statistics_read(const dlxi_link *link, dlxi_link_statistics *out);
void dlxi_link_close(dlxi_link **link); /* takes NULL */

/* ---- keys and rosters ------------------------------------------------------------------------ */

/* Writes a new CURVE key pair to path (mode 0600; refuses to overwrite) and its public half to
 * public_text. */
dlx_status dlxi_key_generate(const char *path, char public_text[DLXI_KEY_TEXT_BYTES],
                             dlx_error *error);
/* The public half of a key file, which must be complete and closed to other users. */
dlx_status dlxi_key_public(const char *path, char public_text[DLXI_KEY_TEXT_BYTES],
                           dlx_error *error);

#endif
