/* SPDX-License-Identifier: Apache-2.0 */
/* The `mpi` link: sites and a coordinator as ranks of one MPI job. Not for runs that must outlive a
 * dead rank: MPI ends the whole job.
 *
 * Frames are messages on the cluster's `wan` communicator; the tag says who speaks to whom: to the
 * coordinator, from it, and data between sites. Several threads of a process speak MPI at once (an
 * endpoint each, the training thread); no two of them ask for the same tag.
 *
 * Sends are synchronous-mode ones from an encoded copy: such a send is done when the receiver has
 * asked for the message. So "in flight" bounds what a receiver that doesn't listen must hold; plain
 * sends of small frames would be done at once and pile up there.
 *
 * Receiving. A message is asked for only from the coordinator and from sites that this one is
 * connected to; others stay where MPI keeps them, as a frame that comes before connect() must. Its
 * length is known, and bounded, before memory is given to it. A large one moves only while both
 * sides call MPI, so each peer has one receive of its own under way, and a stalled site doesn't
 * hold up the coordinator's word. Nothing wakes a thread that waits for MPI: receive() tests, and
 * sleeps for a sixteenth of the time in which nothing happened, 20 µs to 2 ms. */
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
enum { COORDINATOR_PEER = DLXI_SITES_MAX }; /* its place among a site's peers */
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
    char name[DLXI_NAME_BYTES]; /* as listen() was told */
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
    uint8_t *current;   /* what the last receive handed out */
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

/* Frees what has been sent; *stirred where anything was. */
static dlx_status reap(peer *p, bool *stirred, dlx_error *error) {
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

static peer *peer_of(mpi_endpoint *me, uint32_t to) {
    if (!me->coordinator && to == DLXI_SITE_COORDINATOR) return &me->peers[COORDINATOR_PEER];
    uint32_t count = me->coordinator ? me->peer_count : (uint32_t)DLXI_SITES_MAX;
    return to < count && me->peers[to].rank != NO_RANK ? &me->peers[to] : NULL;
}

static dlx_status link_send(dlxi_link *link, uint32_t to, const dlxi_frame *frame,
                            dlx_error *error) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    peer *p = peer_of(me, to);
    if (p == NULL) DLX_FAIL(error, STATE, "mpi link: send to %u, which is not connected", to);
    if (p->ring == NULL) DLX_TRY(DLXI_NEW(&p->ring, p->capacity, error));
    bool stirred = false;
    if (p->count == p->capacity) DLX_TRY(reap(p, &stirred, error));
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

/* Whether a send that was refused may be tried again; said once. */
static dlx_status room_again(mpi_endpoint *me, bool *room, dlx_error *error) {
    bool stirred = false;
    for (uint32_t i = 0; i < me->peer_count; i++) {
        peer *p = &me->peers[i];
        if (p->count != 0) DLX_TRY(reap(p, &stirred, error));
        if (!p->refused || p->count == p->capacity) continue;
        p->refused = false;
        *room = true;
    }
    if (stirred) me->stirred_ns = dlxi_clock_ns();
    return DLX_OK;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* What became of a receive. */
typedef enum outcome { NOTHING, ARRIVED, DROPPED } outcome;

/* Begins to receive the next message that `rank` sent (MPI_ANY_SOURCE: at the coordinator, whose
 * peers are ranks). *from ← its peer, untouched where there is none. */
static dlx_status begin_receive(mpi_endpoint *me, uint32_t *from, int rank, int tag,
                                outcome *became, dlx_error *error) {
    int found = 0, count_bytes = 0;
    MPI_Message message;
    MPI_Status status;
    int code = MPI_Improbe(rank, tag, me->wan, &found, &message, &status);
    if (code == MPI_SUCCESS && found) code = MPI_Get_count(&status, MPI_BYTE, &count_bytes);
    DLX_TRY(dlxi_mpi_check(code, "looking for a frame", error));
    if (!found) return DLX_OK;
    /* What is longer than a frame, and can come of a bug only, is left with MPI for ever: Open MPI
     * 4.1, asked for less than a message's length, may write all of it. */
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
static dlx_status end_receive(mpi_endpoint *me, incoming *in, outcome *became, dlx_error *error) {
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

static dlx_status receive_from(mpi_endpoint *me, uint32_t from, outcome *became, dlx_error *error) {
    peer *p = &me->peers[from];
    if (p->rank == NO_RANK) return DLX_OK;
    if (p->in.bytes == NULL)
        DLX_TRY(begin_receive(me, &from, p->rank, p->receive_tag, became, error));
    return p->in.bytes != NULL ? end_receive(me, &p->in, became, error) : DLX_OK;
}

/* At a site the coordinator goes first, then the sites in turn. At the coordinator whoever was
 * first, but while a message of one rank is on its way, the other ranks in turn. */
static dlx_status receive_now(mpi_endpoint *me, uint32_t *from, outcome *became, dlx_error *error) {
    *became = NOTHING;
    uint32_t in_turn = me->peer_count;
    if (!me->coordinator) {
        in_turn = DLXI_SITES_MAX;
        *from = COORDINATOR_PEER;
        DLX_TRY(receive_from(me, COORDINATOR_PEER, became, error));
    } else if (me->receiving == 0) {
        DLX_TRY(begin_receive(me, from, MPI_ANY_SOURCE, TAG_TO_COORDINATOR, became, error));
        if (me->receiving == 0) return DLX_OK;
        DLX_TRY(end_receive(me, &me->peers[*from].in, became, error));
    }
    for (uint32_t i = 0; *became == NOTHING && i < in_turn; i++) {
        *from = (me->peer_next + i) % in_turn;
        DLX_TRY(receive_from(me, *from, became, error));
        if (*became != NOTHING) me->peer_next = *from + 1;
    }
    return DLX_OK;
}

static void forget_current(mpi_endpoint *me) {
    free(me->current);
    me->current = NULL;
}

static void rest(const mpi_endpoint *me, int64_t deadline_ns) {
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
        forget_current(me);
        bool room = false;
        DLX_TRY(room_again(me, &room, error));
        if (atomic_exchange(&me->woken, false) || room) return DLX_AGAIN;
        outcome became;
        DLX_TRY(receive_now(me, from, &became, error));
        if (became == ARRIVED &&
            dlxi_frame_decode(frame, me->current, me->current_bytes, NULL) == DLX_OK) {
            dlxi_count_received(link, me->current_bytes);
            if (*from == COORDINATOR_PEER && !me->coordinator) *from = DLXI_SITE_COORDINATOR;
            return DLX_OK;
        }
        if (became != NOTHING) dlxi_count_dropped(link);
        if (last) return DLX_TIMEOUT;
        /* A dropped frame is no reason to rest; but frames that are all dropped don't hold the
         * caller for ever. */
        if (became == NOTHING) rest(me, deadline_ns);
        last = deadline_ns >= 0 && dlxi_clock_ns() >= deadline_ns;
    }
}

static void link_wake(dlxi_link *link) {
    atomic_store(&((mpi_endpoint *)link)->woken, true);
}

/* ---- peers ----------------------------------------------------------------------------------- */

/* The coordinator numbers sites as it likes, so "where this side listens" is its rank of the job.
 */
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
        DLX_FAIL(error, DATA, "mpi link: '%.32s' is no endpoint of this link", endpoint);
    if (rank < 0 || rank >= me->ranks || rank == me->rank ||
        rank % me->site_ranks != me->rank % me->site_ranks)
        DLX_FAIL(error, DATA,
                 "mpi link: rank %d of the job is no counterpart of rank %d (%d ranks, %d a site)",
                 rank, me->rank, me->ranks, me->site_ranks);
    peer *p = &me->peers[index];
    if (p->rank != NO_RANK && p->rank != rank)
        DLX_FAIL(error, STATE, "mpi link: site %u is rank %d of the job, and can't become rank %d",
                 index, p->rank, rank);
    p->rank = rank;
    return DLX_OK;
}

/* No security: at the coordinator, whoever speaks is who he says. */
static const char *link_peer_name(dlxi_link *link, uint32_t index) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    return !me->coordinator && index < DLXI_SITES_MAX ? me->peers[index].name : "";
}

static const char *link_peer_key(dlxi_link *link, uint32_t index) {
    (void)link, (void)index;
    return "";
}

/* ---- open and close -------------------------------------------------------------------------- */

static bool all_sent(const mpi_endpoint *me) {
    for (uint32_t i = 0; i < me->peer_count; i++)
        if (me->peers[i].count != 0) return false;
    return true;
}

/* Receives, and forgets, what still comes, so that two endpoints that close at once don't wait for
 * each other. Open MPI can't cancel a send, nor MPI a receive that has found its message: after a
 * second, those still in flight keep their buffers until the process ends. */
static void link_close(dlxi_link *link) {
    mpi_endpoint *me = (mpi_endpoint *)link;
    int64_t deadline_ns = dlxi_clock_ns() + CLOSE_NS;
    /* Once more when all is sent: for what came before the other side took the last frame. */
    for (bool last = false; !last;) {
        uint32_t from;
        outcome became;
        bool room;
        last = all_sent(me) || dlxi_clock_ns() >= deadline_ns;
        forget_current(me);
        if (room_again(me, &room, NULL) != DLX_OK ||
            receive_now(me, &from, &became, NULL) != DLX_OK)
            break;
        if (became != NOTHING)
            dlxi_count_dropped(link);
        else if (!last)
            rest(me, deadline_ns);
    }
    forget_current(me);
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
    .reconnect = dlxi_link_stay_connected,
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

/* A second endpoint of the same kind, even after the first, could be given what was meant for that
 * one. */
static dlx_status open_site(dlx_hub *hub, dlxi_link **out, const char *site, uint16_t rank,
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

static dlx_status open_coordinator(dlx_hub *hub, dlxi_link **out, dlx_error *error) {
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
                 "mpi link: %d ranks with %d a site; allowed are 1 to %d sites of equal size",
                 cluster->ranks, site_ranks, DLXI_SITES_MAX);
    mpi_hub *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    me->hub =
        (dlx_hub){.open_site = open_site, .open_coordinator = open_coordinator, .close = hub_close};
    me->cluster = cluster;
    me->site_ranks = site_ranks;
    atomic_flag_clear(&me->site_opened);
    atomic_flag_clear(&me->coordinator_opened);
    *out = &me->hub;
    return DLX_OK;
}
