/* SPDX-License-Identifier: Apache-2.0 */
/* The `mpi` link: sites and a coordinator as ranks of one MPI job. Not for runs that must outlive a
 * dead rank: MPI ends the whole job.
 *
 * Frames are messages on the cluster's `wan` communicator. Their tag is the direction: to the
 * coordinator, from it, or data between sites. Several threads of a process call MPI at once (one
 * per endpoint, and the training thread); no two of them probe for the same tag.
 *
 * Sends are synchronous-mode, from an encoded copy: such a send completes when the receiver has
 * matched the message. So the number of sends in flight bounds what a receiver that does not read
 * must hold; standard sends of small frames would complete at once and pile up there.
 *
 * Receiving. Only messages from the coordinator and from connected sites are matched; others stay
 * with MPI, as a frame that arrives before connect() must. A message's length is known, and
 * checked, before memory is allocated for it. A large one moves only while both sides call MPI, so
 * each peer has its own receive under way, and a stalled site does not delay the coordinator's
 * frames. Nothing wakes a thread that waits for MPI: receive() tests, and sleeps for a sixteenth of
 * the time in which nothing happened, 20 µs to 2 ms. */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/panic.h"
#include "cluster/cluster.h"
#include "link/common.h"
#include "link/links.h"

enum { TAG_TO_COORDINATOR = 1, TAG_FROM_COORDINATOR = 2, TAG_DATA = 3 };
enum { CONTROL_FRAMES = 64, DATA_FRAMES = 8, COORDINATOR_RANK = 0, NO_RANK = -1 };
enum { COORDINATOR_PEER = DLXI_SITES_MAX }; /* its index among a site's peers */
enum { FRAME_BYTES_MAX = DLXI_FRAME_HEADER_BYTES + DLXI_FRAME_PAYLOAD_MAX };
static const int64_t CLOSE_NS = 1000000000, SLEEP_MIN_NS = 20000, SLEEP_MAX_NS = 2000000;

typedef struct outgoing {
    MPI_Request request;
    uint8_t *bytes;
} outgoing;

typedef struct incoming {
    MPI_Request request;
    uint8_t *bytes; /* NULL: none under way */
    size_t count_bytes;
} incoming;

typedef struct peer {
    int rank; /* of the job; NO_RANK before connect */
    int send_tag, receive_tag;
    uint32_t capacity, first, count; /* sends in flight, a ring */
    bool refused;                    /* a send got DLX_AGAIN */
    outgoing *ring;                  /* [capacity], from the first send on */
    incoming in;
    char name[DLXI_NAME_BYTES]; /* from listen() */
} peer;

typedef struct mpi_endpoint {
    dlxi_link link; /* first */
    MPI_Comm wan;
    int rank, ranks, site_ranks;
    bool coordinator;
    /* A site's: DLXI_SITES_MAX sites by index, then the coordinator. The coordinator's: job ranks.
     */
    peer *peers;
    uint32_t peer_count, peer_next;
    uint32_t receiving; /* peers with a receive under way */
    uint8_t *current;   /* the frame that the last receive returned */
    size_t current_bytes;
    int64_t stirred_ns; /* when something last happened here */
    _Atomic bool woken;
} mpi_endpoint;

typedef struct mpi_hub {
    dlx_hub hub; /* first */
    dlxi_cluster *cluster;
    int site_ranks;
    atomic_flag site_opened, coordinator_opened;
} mpi_hub;

/* ---- send ------------------------------------------------------------------------------------ */

/* Frees what has been sent; *stirred is set if anything was. */
static dlx_status peer_reap(peer *p, bool *stirred, dlx_error *error) {
    while (p->count != 0) {
        outgoing *oldest = &p->ring[p->first];
        int done = 0;
        DLX_TRY(dlxi_mpi_check(MPI_Test(&oldest->request, &done, MPI_STATUS_IGNORE),
                               "sending a frame", error));
        if (!done) break;
        free(oldest->bytes);
        p->first = (p->first + 1) % p->capacity;
        p->count--;
        *stirred = true;
    }
    return DLX_OK;
}

static peer *peer_find(mpi_endpoint *me, uint32_t to) {
    if (!me->coordinator && to == DLXI_SITE_COORDINATOR) return &me->peers[COORDINATOR_PEER];
    uint32_t count = me->coordinator ? me->peer_count : (uint32_t)DLXI_SITES_MAX;
    return to < count && me->peers[to].rank != NO_RANK ? &me->peers[to] : NULL;
}

static dlx_status link_send(dlxi_link *link, uint32_t to, const dlxi_frame *frame,
                            dlx_error *error) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    peer *p = peer_find(me, to);
    if (p == NULL) DLX_FAIL(error, STATE, "mpi link: send to %u, which is not connected", to);
    if (p->ring == NULL) DLX_TRY(DLXI_NEW(&p->ring, p->capacity, error));
    bool stirred = false;
    if (p->count == p->capacity) DLX_TRY(peer_reap(p, &stirred, error));
    if (p->count == p->capacity) {
        p->refused = true;
        return DLX_AGAIN;
    }
    size_t bytes = (size_t)DLXI_FRAME_HEADER_BYTES + frame->payload_bytes;
    outgoing *next = &p->ring[(p->first + p->count) % p->capacity];
    next->bytes = malloc(bytes);
    if (next->bytes == NULL) DLX_FAIL(error, MEMORY, "out of memory: a frame of %zu bytes", bytes);
    dlxi_frame_encode(next->bytes, frame);
    int code = MPI_Issend(next->bytes, (int)bytes, MPI_BYTE, p->rank, p->send_tag, me->wan,
                          &next->request);
    if (code != MPI_SUCCESS) {
        free(next->bytes);
        return dlxi_mpi_check(code, "sending a frame", error);
    }
    p->count++;
    p->refused = false;
    me->stirred_ns = dlxi_clock_ns();
    dlxi_count_sent(link, bytes);
    return DLX_OK;
}

/* *room: whether a send that was refused may be tried again; true once per refusal. */
static dlx_status room_again(mpi_endpoint *me, bool *room, dlx_error *error) {
    bool stirred = false;
    for (uint32_t i = 0; i < me->peer_count; i++) {
        peer *p = &me->peers[i];
        if (p->count != 0) DLX_TRY(peer_reap(p, &stirred, error));
        if (!p->refused || p->count == p->capacity) continue;
        p->refused = false;
        *room = true;
    }
    if (stirred) me->stirred_ns = dlxi_clock_ns();
    return DLX_OK;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* The state of a receive. */
typedef enum outcome { NOTHING, ARRIVED, DROPPED } outcome;

/* Begins to receive the next message that `rank` sent (MPI_ANY_SOURCE: at the coordinator, whose
 * peers are ranks). *from ← its peer, untouched if there is none. */
static dlx_status receive_begin(mpi_endpoint *me, uint32_t *from, int rank, int tag,
                                outcome *became, dlx_error *error) {
    int found = 0, count_bytes = 0;
    MPI_Message message;
    MPI_Status status;
    int code = MPI_Improbe(rank, tag, me->wan, &found, &message, &status);
    if (code == MPI_SUCCESS && found) code = MPI_Get_count(&status, MPI_BYTE, &count_bytes);
    DLX_TRY(dlxi_mpi_check(code, "looking for a frame", error));
    if (!found) return DLX_OK;
    /* A message longer than a frame is a bug, and stays with MPI: Open MPI 4.1, given less room
     * than a message needs, may write all of it. */
    if (count_bytes < 0 || count_bytes > FRAME_BYTES_MAX) {
        *became = DROPPED;
        return DLX_OK;
    }
    if (rank == MPI_ANY_SOURCE) *from = (uint32_t)status.MPI_SOURCE;
    incoming *in = &me->peers[*from].in;
    in->count_bytes = (size_t)count_bytes;
    in->bytes = malloc(in->count_bytes + 1); /* one is empty */
    if (in->bytes == NULL)
        DLX_FAIL(error, MEMORY, "out of memory: a frame of %d bytes", count_bytes);
    code = MPI_Imrecv(in->bytes, count_bytes, MPI_BYTE, &message, &in->request);
    if (code != MPI_SUCCESS) {
        free(in->bytes);
        in->bytes = NULL;
        return dlxi_mpi_check(code, "receiving a frame", error);
    }
    me->receiving++;
    return DLX_OK;
}

/* ARRIVED: the message is in me->current. */
static dlx_status receive_end(mpi_endpoint *me, incoming *in, outcome *became, dlx_error *error) {
    int done = 0;
    DLX_TRY(dlxi_mpi_check(MPI_Test(&in->request, &done, MPI_STATUS_IGNORE), "receiving a frame",
                           error));
    if (!done) return DLX_OK;
    me->receiving--;
    me->stirred_ns = dlxi_clock_ns();
    me->current = in->bytes;
    me->current_bytes = in->count_bytes;
    in->bytes = NULL;
    *became = ARRIVED;
    return DLX_OK;
}

static dlx_status peer_receive(mpi_endpoint *me, uint32_t from, outcome *became, dlx_error *error) {
    peer *p = &me->peers[from];
    if (p->rank == NO_RANK) return DLX_OK;
    if (p->in.bytes == NULL)
        DLX_TRY(receive_begin(me, &from, p->rank, p->receive_tag, became, error));
    return p->in.bytes != NULL ? receive_end(me, &p->in, became, error) : DLX_OK;
}

/* At a site the coordinator's first, then the sites' in turn. At the coordinator the first that MPI
 * finds, but while a message of one rank is on its way, the other ranks' in turn. */
static dlx_status frame_receive(mpi_endpoint *me, uint32_t *from, outcome *became,
                                dlx_error *error) {
    *became = NOTHING;
    uint32_t in_turn = me->peer_count;
    if (!me->coordinator) {
        in_turn = DLXI_SITES_MAX;
        *from = COORDINATOR_PEER;
        DLX_TRY(peer_receive(me, COORDINATOR_PEER, became, error));
    } else if (me->receiving == 0) {
        DLX_TRY(receive_begin(me, from, MPI_ANY_SOURCE, TAG_TO_COORDINATOR, became, error));
        if (me->receiving == 0) return DLX_OK;
        DLX_TRY(receive_end(me, &me->peers[*from].in, became, error));
    }
    for (uint32_t i = 0; *became == NOTHING && i < in_turn; i++) {
        *from = (me->peer_next + i) % in_turn;
        DLX_TRY(peer_receive(me, *from, became, error));
        if (*became != NOTHING) me->peer_next = *from + 1;
    }
    return DLX_OK;
}

static void current_drop(mpi_endpoint *me) {
    free(me->current);
    me->current = NULL;
}

static void endpoint_rest(const mpi_endpoint *me, int64_t deadline_ns) {
    int64_t now_ns = dlxi_clock_ns(), idle_ns = now_ns - me->stirred_ns;
    int64_t pause_ns = idle_ns / 16;
    if (pause_ns < SLEEP_MIN_NS) pause_ns = SLEEP_MIN_NS;
    if (pause_ns > SLEEP_MAX_NS) pause_ns = SLEEP_MAX_NS;
    if (deadline_ns >= 0 && pause_ns > deadline_ns - now_ns) pause_ns = deadline_ns - now_ns;
    if (idle_ns < SLEEP_MIN_NS)
        sched_yield();
    else if (pause_ns > 0)
        dlxi_mpi_pause(pause_ns);
}

static dlx_status link_receive(dlxi_link *link, int64_t timeout_ms, uint32_t *from,
                               dlxi_frame *frame, dlx_error *error) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    int64_t deadline_ns = dlxi_link_deadline_ns(timeout_ms);
    for (bool last = false;;) {
        current_drop(me);
        bool room = false;
        DLX_TRY(room_again(me, &room, error));
        if (atomic_exchange(&me->woken, false) || room) return DLX_AGAIN;
        outcome became;
        DLX_TRY(frame_receive(me, from, &became, error));
        if (became == ARRIVED &&
            dlxi_frame_decode(frame, me->current, me->current_bytes, NULL) == DLX_OK) {
            dlxi_count_received(link, me->current_bytes);
            if (*from == COORDINATOR_PEER && !me->coordinator) *from = DLXI_SITE_COORDINATOR;
            return DLX_OK;
        }
        if (became != NOTHING) dlxi_count_dropped(link);
        if (last) return DLX_TIMEOUT;
        /* No rest after a dropped frame; but even if all are dropped, the deadline holds. */
        if (became == NOTHING) endpoint_rest(me, deadline_ns);
        last = deadline_ns >= 0 && dlxi_clock_ns() >= deadline_ns;
    }
}

static void link_wake(dlxi_link *link) {
    atomic_store(&((mpi_endpoint *)link)->woken, true);
}

/* ---- peers ----------------------------------------------------------------------------------- */

/* The coordinator may number sites in any order, so "where this side listens" is its rank of the
 * job. */
static dlx_status link_listen(dlxi_link *link, uint32_t own_index, uint32_t index, const char *name,
                              const char *public_key, char endpoint[DLXI_ENDPOINT_BYTES],
                              dlx_error *error) {
    (void)public_key;
    mpi_endpoint *me = (mpi_endpoint *)link;
    endpoint[0] = '\0';
    DLXI_ASSERT(!me->coordinator);
    DLX_TRY(dlxi_link_check_pair(link, own_index, index, error));
    dlxi_text_copy(me->peers[index].name, sizeof me->peers[index].name, name);
    snprintf(endpoint, DLXI_ENDPOINT_BYTES, "mpi:%d", me->rank);
    return DLX_OK;
}

static dlx_status link_connect(dlxi_link *link, uint32_t index, const char *endpoint,
                               dlx_error *error) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    DLXI_ASSERT(!me->coordinator);
    DLX_TRY(dlxi_link_check_index(link, index, error));
    int rank = 0, used = 0;
    if (strlen(endpoint) > 15 || sscanf(endpoint, "mpi:%9d%n", &rank, &used) != 1 ||
        endpoint[used] != '\0')
        DLX_FAIL(error, DATA, "mpi link: '%.32s' is not an endpoint of this link", endpoint);
    if (rank < 0 || rank >= me->ranks || rank == me->rank ||
        rank % me->site_ranks != me->rank % me->site_ranks)
        DLX_FAIL(error, DATA,
                 "mpi link: rank %d of the job is not the counterpart of rank %d (%d ranks, %d per "
                 "site)",
                 rank, me->rank, me->ranks, me->site_ranks);
    peer *p = &me->peers[index];
    if (p->rank != NO_RANK && p->rank != rank)
        DLX_FAIL(error, STATE, "mpi link: site %u is rank %d of the job, and can't become rank %d",
                 index, p->rank, rank);
    p->rank = rank;
    return DLX_OK;
}

/* No security: the coordinator has no proof of any name. */
static const char *link_peer_name(dlxi_link *link, uint32_t index) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    return !me->coordinator && index < DLXI_SITES_MAX ? me->peers[index].name : "";
}

static const char *link_peer_key(dlxi_link *link, uint32_t index) {
    (void)link, (void)index;
    return "";
}

/* ---- open and close -------------------------------------------------------------------------- */

static bool is_all_sent(const mpi_endpoint *me) {
    for (uint32_t i = 0; i < me->peer_count; i++)
        if (me->peers[i].count != 0) return false;
    return true;
}

/* Receives and drops what still arrives, so that two endpoints that close at once don't wait for
 * each other. Open MPI can't cancel a send, nor MPI a receive that has matched its message: after a
 * second, those still in flight keep their buffers until the process ends. */
static void link_close(dlxi_link *link) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    int64_t deadline_ns = dlxi_clock_ns() + CLOSE_NS;
    /* Once more when all is sent: for what arrived before the other side took the last frame. */
    for (bool last = false; !last;) {
        uint32_t from;
        outcome became;
        bool room;
        last = is_all_sent(me) || dlxi_clock_ns() >= deadline_ns;
        current_drop(me);
        if (room_again(me, &room, NULL) != DLX_OK ||
            frame_receive(me, &from, &became, NULL) != DLX_OK)
            break;
        if (became != NOTHING)
            dlxi_count_dropped(link);
        else if (!last)
            endpoint_rest(me, deadline_ns);
    }
    current_drop(me);
    for (uint32_t i = 0; i < me->peer_count; i++)
        if (me->peers[i].count == 0) free(me->peers[i].ring);
    free(me->peers);
    free(me);
}

static const dlxi_link_operations mpi_operations = {
    .name = "mpi",
    .send = link_send,
    .receive = link_receive,
    .wake = link_wake,
    .listen = link_listen,
    .connect = link_connect,
    .peer_name = link_peer_name,
    .peer_key = link_peer_key,
    .close = link_close,
};

static dlx_status endpoint_open(dlxi_link **out, const mpi_hub *hub, bool coordinator,
                                dlx_error *error) {
    mpi_endpoint *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    me->link.op = &mpi_operations;
    me->wan = hub->cluster->wan;
    me->rank = hub->cluster->rank;
    me->ranks = hub->cluster->ranks;
    me->site_ranks = hub->site_ranks;
    me->coordinator = coordinator;
    me->stirred_ns = dlxi_clock_ns();
    me->peer_count = coordinator ? (uint32_t)me->ranks : COORDINATOR_PEER + 1;
    dlx_status status = DLXI_NEW(&me->peers, me->peer_count, error);
    if (status != DLX_OK) {
        free(me);
        return status;
    }
    for (uint32_t i = 0; i < me->peer_count; i++) {
        peer *p = &me->peers[i];
        if (coordinator)
            *p = (peer){.rank = (int)i,
                        .send_tag = TAG_FROM_COORDINATOR,
                        .receive_tag = TAG_TO_COORDINATOR,
                        .capacity = CONTROL_FRAMES};
        else
            *p = (peer){.rank = NO_RANK,
                        .send_tag = TAG_DATA,
                        .receive_tag = TAG_DATA,
                        .capacity = DATA_FRAMES};
    }
    if (!coordinator)
        me->peers[COORDINATOR_PEER] = (peer){.rank = COORDINATOR_RANK,
                                             .send_tag = TAG_TO_COORDINATOR,
                                             .receive_tag = TAG_FROM_COORDINATOR,
                                             .capacity = CONTROL_FRAMES};
    *out = &me->link;
    return DLX_OK;
}

/* A second endpoint of the same kind, even after the first, could receive the first one's frames.
 */
static dlx_status hub_open_site(dlx_hub *hub, dlxi_link **out, const char *site, uint16_t rank,
                                dlx_error *error) {
    mpi_hub *me = (mpi_hub *)hub;
    *out = NULL;
    int own = me->cluster->rank % me->site_ranks;
    if (rank != own)
        DLX_FAIL(error, ARGUMENT, "mpi link: rank %d of the job is rank %d of site '%.63s', not %u",
                 me->cluster->rank, own, site, (unsigned)rank);
    if (atomic_flag_test_and_set(&me->site_opened))
        DLX_FAIL(error, STATE, "mpi link: this rank has opened its site's endpoint already");
    dlx_status status = endpoint_open(out, me, false, error);
    if (status != DLX_OK) atomic_flag_clear(&me->site_opened);
    return status;
}

static dlx_status hub_open_coordinator(dlx_hub *hub, dlxi_link **out, dlx_error *error) {
    mpi_hub *me = (mpi_hub *)hub;
    *out = NULL;
    if (me->cluster->rank != COORDINATOR_RANK)
        DLX_FAIL(error, STATE,
                 "mpi link: the coordinator is at rank %d of the job, and can't be at %d",
                 COORDINATOR_RANK, me->cluster->rank);
    if (atomic_flag_test_and_set(&me->coordinator_opened))
        DLX_FAIL(error, STATE, "mpi link: this job has opened its coordinator already");
    dlx_status status = endpoint_open(out, me, true, error);
    if (status != DLX_OK) atomic_flag_clear(&me->coordinator_opened);
    return status;
}

static void hub_close(dlx_hub *hub) {
    free(hub);
}

dlx_status dlxi_mpi_hub_open(dlx_hub **out, dlxi_cluster *cluster, int site_ranks,
                             dlx_error *error) {
    *out = NULL;
    if (site_ranks < 1 || cluster->ranks % site_ranks != 0 ||
        cluster->ranks / site_ranks > DLXI_SITES_MAX)
        DLX_FAIL(error, ARGUMENT,
                 "mpi link: %d ranks with %d per site; allowed are 1 to %d sites of equal size",
                 cluster->ranks, site_ranks, DLXI_SITES_MAX);
    mpi_hub *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    me->hub = (dlx_hub){
        .open_site = hub_open_site, .open_coordinator = hub_open_coordinator, .close = hub_close};
    me->cluster = cluster;
    me->site_ranks = site_ranks;
    atomic_flag_clear(&me->site_opened);
    atomic_flag_clear(&me->coordinator_opened);
    *out = &me->hub;
    return DLX_OK;
}
