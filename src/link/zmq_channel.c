/* SPDX-License-Identifier: Apache-2.0 */
/* Channels of the `zmq` link: one site's data, seen from another. Of two sites the lower index binds
 * a ROUTER for this one peer, the higher connects a DEALER. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "link/zmq_internal.h"

/* every channel's, since its ROUTER has one peer */
static const char routing_id[] = "site";
enum { CHANNEL_ID_BYTES = sizeof routing_id - 1 };

/* The coordinator says which key a peer has; where this site's roster knows better, it is not
 * believed. */
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

static dlx_status peer_check(uint32_t own_index, uint32_t index, const char *name,
                             dlx_error *error) {
    if (index >= DLXI_SITES_MAX || own_index >= DLXI_SITES_MAX || index == own_index)
        DLX_FAIL(error, ARGUMENT,
                 "zmq link: site %u listens for site %u, allowed are two of 0 to %d", own_index,
                 index, DLXI_SITES_MAX - 1);
    if (!dlxi_name_valid(name))
        DLX_FAIL(error, DATA, "the coordinator gave site %u a name that is not allowed", index);
    return DLX_OK;
}

static dlx_status channel_open(dlxi_zmq_site *me, dlxi_channel *channel, uint32_t index, bool binds,
                               bool ipv6, dlx_error *error) {
    char domain[16];
    snprintf(domain, sizeof domain, "site.%u", index);
    const dlxi_socket_settings settings = {
        .context = me->zmq.context,
        .type = binds ? ZMQ_ROUTER : ZMQ_DEALER,
        .queue_frames = DATA_QUEUE_FRAMES,
        .silence_ms = DATA_SILENCE_MS,
        .keys = me->zmq.curve ? &me->zmq.keys : NULL,
        .server_key = binds || !me->zmq.curve ? NULL : channel->key_text,
        .domain = domain,
        .ipv6 = ipv6,
    };
    DLX_TRY(dlxi_socket_open(&channel->socket, &settings, error));
    channel->binds = binds;
    if (binds || zmq_setsockopt(channel->socket, ZMQ_ROUTING_ID, routing_id, CHANNEL_ID_BYTES) == 0)
        return DLX_OK;
    zmq_close(channel->socket);
    channel->socket = NULL;
    DLX_FAIL(error, SYSTEM, "zmq link: no routing id: %s", zmq_strerror(errno));
}

static void channel_close(dlxi_channel *channel) {
    if (channel->socket == NULL) return;
    int linger_ms = 0;
    zmq_setsockopt(channel->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(channel->socket);
    channel->socket = NULL;
    channel->refused = false;
    channel->endpoint[0] = '\0';
}

/* Where to bind: the address that others are told, or, where that belongs to a router in front,
 * every address. */
static dlx_status channel_bind(dlxi_zmq_site *me, dlxi_channel *channel, uint32_t index,
                               dlx_error *error) {
    char numeric[DLXI_NUMERIC_BYTES];
    dlx_status status = dlxi_address_own(numeric, me->listen_host, "wan.listen", error);
    if (status != DLX_OK) {
        if (!me->zmq.curve) return status;
        bool ipv6 = strchr(me->listen_host, ':') != NULL;
        snprintf(numeric, sizeof numeric, "%s", ipv6 ? "::" : "0.0.0.0");
    }
    uint16_t port = 0;
    if (me->listen_port != 0) {
        if (me->listen_port > UINT16_MAX - index)
            DLX_FAIL(
                error, CONFIG,
                "wan.listen: port %u + %u for site %u is above 65535; choose a lower first port",
                (unsigned)me->listen_port, index, index);
        port = (uint16_t)(me->listen_port + index);
    }
    DLX_TRY(channel_open(me, channel, index, true, strchr(numeric, ':') != NULL, error));
    uint16_t bound_port = 0;
    status = dlxi_socket_bind(channel->socket, numeric, port, &bound_port, "wan.listen", error);
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
    DLX_TRY(peer_check(own_index, index, name, error));
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

dlx_status dlxi_channel_connect(dlxi_link *link, uint32_t index, const char *endpoint,
                                dlx_error *error) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)link;
    if (index >= DLXI_SITES_MAX)
        DLX_FAIL(error, ARGUMENT, "zmq link: connect to site %u, allowed are 0 to %d", index,
                 DLXI_SITES_MAX - 1);
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
    char what[DLXI_NAME_BYTES + 32], numeric[DLXI_NUMERIC_BYTES];
    snprintf(what, sizeof what, "address of site '%s'", channel->name);
    DLX_TRY(dlxi_address_parse(&address, endpoint, what, error));
    if (address.port == 0) DLX_FAIL(error, DATA, "%s: '%s' has port 0", what, endpoint);
    if (!me->zmq.curve) DLX_TRY(dlxi_zmq_check_loopback(address.host, error));
    DLX_TRY(dlxi_address_remote(numeric, address.host, what, error));
    channel_close(channel);
    DLX_TRY(channel_open(me, channel, index, false, strchr(numeric, ':') != NULL, error));
    dlx_status status = dlxi_socket_connect(channel->socket, numeric, address.port, error);
    if (status == DLX_OK)
        snprintf(channel->endpoint, sizeof channel->endpoint, "%s", endpoint);
    else
        channel_close(channel);
    return status;
}

/* ---- frames ---------------------------------------------------------------------------------- */

/* Asks for room before the frame is encoded, which costs more. A peer that is not there yet has no
 * room either. */
dlx_status dlxi_channel_send(dlxi_zmq_site *me, dlxi_channel *channel, const dlxi_frame *frame,
                             dlx_error *error) {
    dlx_status status = DLX_AGAIN;
    if (dlxi_socket_ready(channel->socket, ZMQ_POLLOUT)) {
        const char *id = channel->binds ? routing_id : NULL;
        status = dlxi_zmq_send_frame(&me->zmq, channel->socket, id, CHANNEL_ID_BYTES, frame, error);
    }
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
