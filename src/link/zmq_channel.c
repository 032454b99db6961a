/* SPDX-License-Identifier: Apache-2.0 */
/* Channels of the `zmq` link: one site's data, seen from another. Of two sites the lower index
 * binds a ROUTER for this one peer, the higher connects a DEALER. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "link/common.h"
#include "link/zmq_internal.h"

/* every channel's, since its ROUTER has one peer */
static const char routing_id[] = "site";
enum { CHANNEL_ID_BYTES = sizeof routing_id - 1 };

/* The coordinator says which key a peer has; if this site's roster has another, the roster is
 * right. */
static dlx_status key_check(const dlxi_zmq_site *me, const char *name, const char *public_key,
                            uint8_t key[DLXI_KEY_BYTES], dlx_error *error) {
    if (!dlxi_key_decode(key, public_key))
        DLX_FAIL(error, DATA, "the coordinator gave a malformed public key for site '%.63s'", name);
    const dlxi_roster_line *line = dlxi_roster_by_name(me->zmq.roster, name);
    if (line != NULL && memcmp(line->key, key, DLXI_KEY_BYTES) != 0)
        DLX_FAIL(error, REFUSED,
                 "wan.roster: the coordinator gives site '%s' the key %s, but %s has another; make "
                 "the rosters agree",
                 name, public_key, me->zmq.roster_path);
    return DLX_OK;
}

static dlx_status peer_check(const dlxi_link *link, uint32_t own_index, uint32_t index,
                             const char *name, dlx_error *error) {
    DLX_TRY(dlxi_link_check_pair(link, own_index, index, error));
    if (!dlxi_name_valid(name))
        DLX_FAIL(error, DATA, "the coordinator gave site %u a name that is not allowed", index);
    return DLX_OK;
}

static dlx_status socket_open(void **out, dlxi_zmq_site *me, const dlxi_channel *channel,
                              bool binds, const char *numeric, dlx_error *error) {
    char domain[16];
    snprintf(domain, sizeof domain, "site.%u", (unsigned)(channel - me->channels));
    const dlxi_socket_settings settings = {
        .numeric = numeric,
        .data = true,
        .server_key = binds ? NULL : channel->key_text,
        .routing_id = routing_id,
        .routing_id_bytes = CHANNEL_ID_BYTES,
        .domain = domain,
    };
    return dlxi_socket_open(out, &me->zmq, &settings, error);
}

static void channel_close(dlxi_channel *channel) {
    dlxi_socket_drop(channel->socket);
    channel->socket = NULL;
    channel->refused = false;
    channel->endpoint[0] = '\0';
}

static dlx_status channel_bind(dlxi_zmq_site *me, dlxi_channel *channel, uint32_t index,
                               dlx_error *error) {
    const char *numeric = me->listen_numeric;
    uint16_t port = 0;
    if (me->listen_port != 0) {
        if (me->listen_port > UINT16_MAX - index)
            DLX_FAIL(
                error, CONFIG,
                "wan.listen: port %u + %u for site %u is above 65535; choose a lower first port",
                (unsigned)me->listen_port, index, index);
        port = (uint16_t)(me->listen_port + index);
    }
    DLX_TRY(socket_open(&channel->socket, me, channel, true, numeric, error));
    channel->binds = true;
    uint16_t bound_port = 0;
    dlx_status status =
        dlxi_socket_bind(channel->socket, numeric, port, &bound_port, "wan.listen", error);
    if (status == DLX_OK)
        dlxi_address_format(channel->endpoint, me->listen_host, bound_port);
    else
        channel_close(channel);
    return status;
}

dlx_status dlxi_channel_listen(dlxi_link *link, uint32_t own_index, uint32_t index,
                               const char *name, const char *public_key,
                               char endpoint[DLXI_ENDPOINT_BYTES], dlx_error *error) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)link;
    endpoint[0] = '\0';
    DLX_TRY(peer_check(link, own_index, index, name, error));
    uint8_t key[DLXI_KEY_BYTES] = {0};
    if (me->zmq.curve) DLX_TRY(key_check(me, name, public_key, key, error));
    dlxi_channel *channel = &me->channels[index];
    bool same = strcmp(channel->name, name) == 0 &&
                (!me->zmq.curve || strcmp(channel->key_text, public_key) == 0);
    if (!same) channel_close(channel);
    snprintf(channel->name, sizeof channel->name, "%s", name);
    snprintf(channel->key_text, sizeof channel->key_text, "%s", me->zmq.curve ? public_key : "");
    if (own_index > index) return DLX_OK;
    if (me->zmq.curve) dlxi_zmq_auth_admit(me->zmq.auth, index, name, key);
    if (channel->socket == NULL) DLX_TRY(channel_bind(me, channel, index, error));
    snprintf(endpoint, DLXI_ENDPOINT_BYTES, "%s", channel->endpoint);
    return DLX_OK;
}

/* Connects a new DEALER in place of the present one. */
static dlx_status channel_dial(dlxi_zmq_site *me, dlxi_channel *channel, dlx_error *error) {
    const dlxi_target *to = &channel->target;
    void *fresh = NULL;
    DLX_TRY(socket_open(&fresh, me, channel, false, to->numeric, error));
    dlx_status status = dlxi_socket_connect(fresh, to->numeric, to->port, error);
    dlxi_socket_drop(status == DLX_OK ? channel->socket : fresh);
    if (status == DLX_OK) channel->socket = fresh;
    return status;
}

dlx_status dlxi_channel_connect(dlxi_link *link, uint32_t index, const char *endpoint,
                                dlx_error *error) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)link;
    DLX_TRY(dlxi_link_check_index(link, index, error));
    dlxi_channel *channel = &me->channels[index];
    if (channel->name[0] == '\0')
        DLX_FAIL(error, STATE, "zmq link: connect to site %u before listen", index);
    if (endpoint[0] == '\0') {
        if (channel->socket == NULL)
            DLX_FAIL(error, DATA, "site '%s' does not say where it listens", channel->name);
        return DLX_OK;
    }
    if (channel->socket != NULL && strcmp(channel->endpoint, endpoint) == 0) return DLX_OK;
    dlxi_address address;
    dlxi_target target;
    char what[DLXI_NAME_BYTES + 32];
    snprintf(what, sizeof what, "address of site '%s'", channel->name);
    DLX_TRY(dlxi_address_parse(&address, endpoint, what, error));
    if (address.port == 0) DLX_FAIL(error, DATA, "%s: '%s' has port 0", what, endpoint);
    if (!me->zmq.curve) DLX_TRY(dlxi_zmq_check_loopback(address.host, error));
    DLX_TRY(dlxi_address_remote(target.numeric, address.host, what, error));
    target.port = address.port;
    channel_close(channel);
    channel->binds = false;
    channel->target = target;
    DLX_TRY(channel_dial(me, channel, error));
    snprintf(channel->endpoint, sizeof channel->endpoint, "%s", endpoint);
    return DLX_OK;
}

/* What the old connection has queued is lost, both ways: the peer's ROUTER hands over to the new
 * one. */
dlx_status dlxi_channel_reconnect(dlxi_zmq_site *me, uint32_t index, dlx_error *error) {
    dlxi_channel *channel = &me->channels[index];
    return channel->socket == NULL || channel->binds ? DLX_OK : channel_dial(me, channel, error);
}

/* ---- frames ---------------------------------------------------------------------------------- */

/* Asks for room before the frame is encoded, which costs more. A peer without a connection has no
 * room either. */
dlx_status dlxi_channel_send(dlxi_zmq_site *me, dlxi_channel *channel, const dlxi_frame *frame,
                             dlx_error *error) {
    dlx_status status = DLX_AGAIN;
    if (dlxi_socket_ready(channel->socket, ZMQ_POLLOUT)) {
        const char *id = channel->binds ? routing_id : NULL;
        status = dlxi_zmq_send_frame(&me->zmq, channel->socket, id, CHANNEL_ID_BYTES, frame, error);
    }
    channel->retry_at_ns = status == DLX_PEER_LOST ? dlxi_clock_ns() + DLXI_ZMQ_RETRY_NS : 0;
    if (status == DLX_PEER_LOST) status = DLX_AGAIN;
    channel->refused = status == DLX_AGAIN;
    return status;
}

dlx_status dlxi_channel_receive(dlxi_zmq_site *me, const dlxi_channel *channel, dlxi_frame *frame,
                                bool *taken, dlx_error *error) {
    zmq_msg_t id;
    zmq_msg_init(&id);
    bool more, admitted = true;
    dlx_status status = dlxi_zmq_receive_message(&me->zmq, channel->socket,
                                                 channel->binds ? &id : NULL, &more, error);
    if (status == DLX_OK && channel->binds) {
        const char *name =
            me->zmq.curve ? zmq_msg_gets(&me->zmq.current, "User-Id") : channel->name;
        admitted = name != NULL && strcmp(name, channel->name) == 0 &&
                   zmq_msg_size(&id) == CHANNEL_ID_BYTES &&
                   memcmp(zmq_msg_data(&id), routing_id, CHANNEL_ID_BYTES) == 0;
    }
    if (status == DLX_OK)
        *taken = dlxi_zmq_take_frame(&me->zmq, channel->socket, more, admitted, frame);
    zmq_msg_close(&id);
    return status;
}
