/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's endpoint of the `zmq` link: one ROUTER, and numbered peers.
 *
 * A peer is known by its routing id, 16 random bytes per process, so that a connection that broke
 * and came back keeps its number; each of its frames must also have the roster name that the first
 * one had. That name was proved in the handshake and is not the peer's to choose. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/resources.h"
#include "link/zmq_internal.h"

/* Processes that a coordinator can number in its life: every rank of a run, and as many that were
 * refused or started again. */
enum { NUMBERED_MAX = 8192, SLOTS = 2 * NUMBERED_MAX };

/* One process. The ranks of a site share its name and key. */
typedef struct numbered {
    uint8_t routing_id[ROUTING_ID_BYTES];
    char name[DLXI_NAME_BYTES], key_text[DLXI_KEY_TEXT_BYTES];
    int64_t unreachable_since_ns; /* 0: reachable when last tried */
} numbered;

typedef struct zmq_coordinator {
    dlxi_zmq zmq;       /* first */
    numbered *numbered; /* [NUMBERED_MAX], used [numbered_count] */
    uint32_t numbered_count;
    /* number + 1 of the peer whose routing id leads here, 0: free; a collision takes the next */
    uint16_t slots[SLOTS];
    bool full_logged, few_logged;
    uint32_t unconnected_ms;
    int64_t retry_at_ns; /* 0: no send was refused */
} zmq_coordinator;

/* ---- send ------------------------------------------------------------------------------------ */

static dlx_status coordinator_send(dlxi_link *link, uint32_t to, const dlxi_frame *frame,
                                   dlx_error *error) {
    zmq_coordinator *me = (zmq_coordinator *)link;
    if (to >= me->numbered_count)
        DLX_FAIL(error, STATE, "zmq link: send to peer %u, which never spoke", to);
    numbered *peer = &me->numbered[to];
    dlx_status status = dlxi_zmq_send_frame(&me->zmq, me->zmq.control, peer->routing_id,
                                            sizeof peer->routing_id, frame, error);
    if (status == DLX_OK) peer->unreachable_since_ns = 0;
    if (status != DLX_AGAIN && status != DLX_PEER_LOST) return status;
    int64_t now_ns = dlxi_clock_ns();
    if (status == DLX_PEER_LOST) {
        if (peer->unreachable_since_ns == 0) peer->unreachable_since_ns = now_ns;
        if (now_ns - peer->unreachable_since_ns >= (int64_t)me->unconnected_ms * 1000000)
            DLX_FAIL(error, PEER_LOST, "site '%s' has had no connection for %u ms", peer->name,
                     me->unconnected_ms);
    }
    if (me->retry_at_ns == 0) me->retry_at_ns = now_ns + DLXI_ZMQ_RETRY_NS;
    return DLX_AGAIN;
}

static bool coordinator_room_again(dlxi_zmq *zmq) {
    zmq_coordinator *me = (zmq_coordinator *)zmq;
    if (me->retry_at_ns == 0 || dlxi_clock_ns() < me->retry_at_ns) return false;
    me->retry_at_ns = 0;
    return true;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* The slot of this routing id, or the free one that it would get. Routing ids are random: some of
 * their bytes are the hash. */
static uint16_t *slot_find(zmq_coordinator *me, const uint8_t routing_id[ROUTING_ID_BYTES]) {
    uint32_t at;
    memcpy(&at, routing_id + 1, sizeof at);
    for (at %= SLOTS; me->slots[at] != 0; at = (at + 1) % SLOTS)
        if (memcmp(me->numbered[me->slots[at] - 1].routing_id, routing_id, ROUTING_ID_BYTES) == 0)
            break;
    return &me->slots[at];
}

/* Connections are libzmq's to accept, which ignores those that it has no descriptor for. */
static void room_keep(zmq_coordinator *me) {
    enum { CONNECTIONS = 16 };
    dlx_error error;
    if (me->few_logged ||
        dlxi_descriptors_need(CONNECTIONS, "to admit more sites", &error) == DLX_OK)
        return;
    dlxi_zmq_log(&me->zmq, "%s", error.message);
    me->few_logged = true;
}

/* Gives a new peer its number. False if there are too many, or it is not on the roster. */
static bool peer_add(zmq_coordinator *me, uint16_t *slot,
                     const uint8_t routing_id[ROUTING_ID_BYTES], const char *name) {
    const dlxi_roster_line *line = me->zmq.curve ? dlxi_roster_by_name(me->zmq.roster, name) : NULL;
    if (me->zmq.curve && line == NULL) return false;
    if (me->numbered_count == NUMBERED_MAX) {
        if (!me->full_logged)
            dlxi_zmq_log(&me->zmq,
                         "no more than %d processes can join one coordinator; start it again",
                         NUMBERED_MAX);
        me->full_logged = true;
        return false;
    }
    numbered *fresh = &me->numbered[me->numbered_count++];
    memcpy(fresh->routing_id, routing_id, ROUTING_ID_BYTES);
    snprintf(fresh->name, sizeof fresh->name, "%s", name);
    snprintf(fresh->key_text, sizeof fresh->key_text, "%s", line != NULL ? line->key_text : "");
    *slot = (uint16_t)me->numbered_count;
    room_keep(me);
    return true;
}

/* The peer's number, given at its first frame; UINT32_MAX if its frame is not accepted. After a
 * handover, a ROUTER gives what is left of the old connection a routing id of its own making, which
 * is not one of ours. */
static uint32_t peer_number(zmq_coordinator *me, zmq_msg_t *id) {
    const uint8_t *routing_id = zmq_msg_data(id);
    const char *name = me->zmq.curve ? zmq_msg_gets(&me->zmq.current, "User-Id") : "";
    if (name == NULL || zmq_msg_size(id) != ROUTING_ID_BYTES || routing_id[0] != ROUTING_ID_FIRST)
        return UINT32_MAX;
    uint16_t *slot = slot_find(me, routing_id);
    if (*slot == 0 && !peer_add(me, slot, routing_id, name)) return UINT32_MAX;
    numbered *peer = &me->numbered[*slot - 1];
    /* another site with this one's routing id */
    if (strcmp(peer->name, name) != 0) return UINT32_MAX;
    peer->unreachable_since_ns = 0;
    return *slot - 1u;
}

static dlx_status coordinator_receive_now(dlxi_zmq *zmq, uint32_t *from, dlxi_frame *frame,
                                          bool *taken, dlx_error *error) {
    zmq_msg_t id;
    zmq_msg_init(&id);
    bool more;
    dlx_status status = dlxi_zmq_receive_message(zmq, zmq->control, &id, &more, error);
    if (status == DLX_OK) {
        *from = peer_number((zmq_coordinator *)zmq, &id);
        *taken = dlxi_zmq_take_frame(zmq, zmq->control, more, *from != UINT32_MAX, frame);
    }
    zmq_msg_close(&id);
    return status;
}

static dlx_status coordinator_wait(dlxi_zmq *zmq, int64_t deadline_ns, dlx_error *error) {
    const zmq_coordinator *me = (const zmq_coordinator *)zmq;
    zmq_pollitem_t items[2] = {[1] = {.socket = zmq->control, .events = ZMQ_POLLIN}};
    if (me->retry_at_ns != 0 && (deadline_ns < 0 || me->retry_at_ns < deadline_ns))
        deadline_ns = me->retry_at_ns;
    return dlxi_zmq_poll(zmq, items, 2, deadline_ns, error);
}

/* ---- operations ------------------------------------------------------------------------------ */

static const char *coordinator_peer_name(dlxi_link *link, uint32_t peer) {
    const zmq_coordinator *me = (const zmq_coordinator *)link;
    return peer < me->numbered_count ? me->numbered[peer].name : "";
}

static const char *coordinator_peer_key(dlxi_link *link, uint32_t peer) {
    const zmq_coordinator *me = (const zmq_coordinator *)link;
    return peer < me->numbered_count ? me->numbered[peer].key_text : "";
}

static const char *coordinator_may_join(dlxi_link *link, uint32_t i) {
    const zmq_coordinator *me = (const zmq_coordinator *)link;
    const dlxi_roster *roster = me->zmq.roster;
    for (size_t k = 0; me->zmq.curve && k < roster->count; k++)
        if (strcmp(roster->lines[k].name, dlxi_coordinator_name) != 0 && i-- == 0)
            return roster->lines[k].name;
    return NULL;
}

static void coordinator_close(dlxi_link *link) {
    zmq_coordinator *me = (zmq_coordinator *)link;
    dlxi_zmq_end(&me->zmq);
    free(me->numbered);
    free(me);
}

static const dlxi_link_operations operations = {
    .name = "zmq",
    .send = coordinator_send,
    .receive = dlxi_zmq_receive,
    .wake = dlxi_zmq_wake,
    .peer_name = coordinator_peer_name,
    .peer_key = coordinator_peer_key,
    .may_join = coordinator_may_join,
    .close = coordinator_close,
};

static const dlxi_zmq_role role = {coordinator_room_again, coordinator_receive_now,
                                   coordinator_wait};

static dlx_status coordinator_open(zmq_coordinator *me, const dlxi_link_settings *settings,
                                   char bound[DLXI_ENDPOINT_BYTES], dlx_error *error) {
    dlxi_address address;
    char numeric[DLXI_NUMERIC_BYTES];
    const char *text = settings->coordinator != NULL ? settings->coordinator : "";
    DLX_TRY(dlxi_address_parse(&address, text, "wan.coordinator", error));
    DLX_TRY(dlxi_address_of_interface(address.host, "wan.coordinator", error));
    if (!settings->curve) DLX_TRY(dlxi_zmq_check_loopback(address.host, error));
    DLX_TRY(dlxi_address_own(numeric, address.host, "wan.coordinator", error));
    DLX_TRY(dlxi_zmq_begin(&me->zmq, settings, dlxi_coordinator_name, true, error));
    const dlxi_socket_settings control = {.numeric = numeric, .domain = dlxi_coordinator_name};
    DLX_TRY(dlxi_socket_open(&me->zmq.control, &me->zmq, &control, error));
    uint16_t port = 0;
    DLX_TRY(
        dlxi_socket_bind(me->zmq.control, numeric, address.port, &port, "wan.coordinator", error));
    dlxi_address_format(bound, address.host, port);
    return DLX_OK;
}

dlx_status dlxi_zmq_coordinator_open(dlxi_link **out, const dlxi_link_settings *settings,
                                     char bound[DLXI_ENDPOINT_BYTES], dlx_error *error) {
    *out = NULL;
    bound[0] = '\0';
    zmq_coordinator *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    dlxi_zmq_init(&me->zmq, &operations, &role);
    me->unconnected_ms = settings->unconnected_ms;
    dlx_status status = DLXI_NEW(&me->numbered, NUMBERED_MAX, error);
    if (status == DLX_OK) status = coordinator_open(me, settings, bound, error);
    if (status == DLX_OK)
        *out = &me->zmq.link;
    else
        coordinator_close(&me->zmq.link);
    return status;
}
