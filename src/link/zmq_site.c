/* SPDX-License-Identifier: Apache-2.0 */
/* A site's endpoint of the `zmq` link: a DEALER to the coordinator, a channel to each other site
 * (zmq_channel.c), and a monitor that tells whether the coordinator admits this site. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/memory.h"
#include "link/common.h"
#include "link/zmq_internal.h"

/* ---- control --------------------------------------------------------------------------------- */

static void monitor_close(void *control, void *monitor) {
    if (monitor == NULL) return;
    zmq_socket_monitor(control, NULL, 0);
    zmq_close(monitor);
}

/* Each has its own name, since libzmq frees that of a closed one some time later. */
static dlx_status monitor_open(void **out, dlxi_zmq_site *me, void *control, dlx_error *error) {
    char place[64];
    snprintf(place, sizeof place, "inproc://coordinator.monitor.%u", me->monitors_opened++);
    int events = ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                 ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
    int linger_ms = 0;
    if (zmq_socket_monitor(control, place, events) == 0)
        *out = zmq_socket(me->zmq.context, ZMQ_PAIR);
    if (*out == NULL || zmq_setsockopt(*out, ZMQ_LINGER, &linger_ms, sizeof linger_ms) != 0 ||
        zmq_connect(*out, place) != 0)
        DLX_FAIL(error, SYSTEM, "zmq link: no monitor: %s", zmq_strerror(errno));
    return DLX_OK;
}

/* Connects a new DEALER in place of the present one, if there is one. The routing id stays, and
 * with it this site's number at the coordinator. */
static dlx_status control_dial(dlxi_zmq_site *me, dlx_error *error) {
    const dlxi_target *to = &me->coordinator;
    const dlxi_roster_line *line =
        me->zmq.curve ? dlxi_roster_by_name(me->zmq.roster, dlxi_coordinator_name) : NULL;
    const dlxi_socket_settings settings = {
        .numeric = to->numeric,
        .server_key = line != NULL ? line->key_text : "",
        .routing_id = me->routing_id,
        .routing_id_bytes = ROUTING_ID_BYTES,
    };
    void *control = NULL, *monitor = NULL;
    DLX_TRY(dlxi_socket_open(&control, &me->zmq, &settings, error));
    dlx_status status = monitor_open(&monitor, me, control, error);
    if (status == DLX_OK) status = dlxi_socket_connect(control, to->numeric, to->port, error);
    bool done = status == DLX_OK;
    monitor_close(done ? me->zmq.control : control, done ? me->monitor : monitor);
    dlxi_socket_drop(done ? me->zmq.control : control);
    if (done) {
        me->zmq.control = control;
        me->monitor = monitor;
    }
    return status;
}

static dlx_status site_reconnect(dlxi_link *link, uint32_t peer, dlx_error *error) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)link;
    if (peer == DLXI_SITE_COORDINATOR) return control_dial(me, error);
    DLX_TRY(dlxi_link_check_index(link, peer, error));
    return dlxi_channel_reconnect(me, peer, error);
}

/* ---- send ------------------------------------------------------------------------------------ */

static dlx_status site_send(dlxi_link *link, uint32_t to, const dlxi_frame *frame,
                            dlx_error *error) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)link;
    if (to == DLXI_SITE_COORDINATOR) {
        me->control_refused = !me->met;
        if (!me->met) return DLX_AGAIN;
        dlx_status status = dlxi_zmq_send_frame(&me->zmq, me->zmq.control, NULL, 0, frame, error);
        me->control_refused = status == DLX_AGAIN;
        return status;
    }
    if (to >= DLXI_SITES_MAX || me->channels[to].socket == NULL)
        DLX_FAIL(error, STATE, "zmq link: send to %u, which is not connected", to);
    return dlxi_channel_send(me, &me->channels[to], frame, error);
}

static bool is_early(const dlxi_channel *channel) {
    return channel->retry_at_ns != 0 && dlxi_clock_ns() < channel->retry_at_ns;
}

static bool site_room_again(dlxi_zmq *zmq) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)zmq;
    bool room = false;
    if (me->control_refused && me->met && dlxi_socket_ready(zmq->control, ZMQ_POLLOUT)) {
        me->control_refused = false;
        room = true;
    }
    for (size_t i = 0; i < DLXI_SITES_MAX; i++) {
        dlxi_channel *channel = &me->channels[i];
        if (!channel->refused || channel->socket == NULL || is_early(channel) ||
            !dlxi_socket_ready(channel->socket, ZMQ_POLLOUT))
            continue;
        channel->refused = false;
        room = true;
    }
    return room;
}

/* ---- receive --------------------------------------------------------------------------------- */

/* Control first, then one frame of each other site in turn. */
static dlx_status site_receive_now(dlxi_zmq *zmq, uint32_t *from, dlxi_frame *frame, bool *taken,
                                   dlx_error *error) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)zmq;
    bool more;
    *from = DLXI_SITE_COORDINATOR;
    dlx_status status = dlxi_zmq_receive_message(zmq, zmq->control, NULL, &more, error);
    if (status == DLX_OK) *taken = dlxi_zmq_take_frame(zmq, zmq->control, more, true, frame);
    for (uint32_t i = 0; status == DLX_TIMEOUT && i < DLXI_SITES_MAX; i++) {
        uint32_t index = (me->channel_next + i) % DLXI_SITES_MAX;
        if (me->channels[index].socket == NULL) continue;
        status = dlxi_channel_receive(me, &me->channels[index], frame, taken, error);
        if (status != DLX_OK) continue;
        *from = index;
        me->channel_next = (index + 1) % DLXI_SITES_MAX;
    }
    return status;
}

/* The event's number, or 0. */
static uint16_t event_read(void *monitor) {
    uint16_t event = 0;
    char part[64];
    int more = zmq_recv(monitor, part, sizeof part, ZMQ_DONTWAIT) >= (int)sizeof event;
    if (more) memcpy(&event, part, sizeof event);
    for (size_t bytes = sizeof more; more != 0;) { /* the peer's address follows */
        if (zmq_recv(monitor, part, sizeof part, ZMQ_DONTWAIT) < 0 ||
            zmq_getsockopt(monitor, ZMQ_RCVMORE, &more, &bytes) != 0)
            more = 0;
    }
    return event;
}

static const char *handshake_doubt(const dlxi_zmq_site *me) {
    return me->zmq.curve ? "its key may not be the one on this site's roster"
                         : "it may want security: curve";
}

/* The other side ended a handshake. REFUSED if it has done nothing else for timeout_ms: what runs
 * there is no coordinator of this run. */
static dlx_status on_handshake_failed(dlxi_zmq_site *me, dlx_error *error) {
    static const int64_t log_pause_ns = 10000000000;
    int64_t now_ns = dlxi_clock_ns();
    if (me->handshake_failing_ns == 0) me->handshake_failing_ns = now_ns;
    int64_t failing_ms = (now_ns - me->handshake_failing_ns) / 1000000;
    if (!me->met && failing_ms >= me->zmq.timeout_ms)
        DLX_FAIL(error, REFUSED,
                 "the coordinator at %s ended every handshake for %lld ms (wan.timeout_s); %s",
                 me->coordinator_text, (long long)failing_ms, handshake_doubt(me));
    if (me->handshake_logged_ns == 0 || now_ns - me->handshake_logged_ns >= log_pause_ns) {
        me->handshake_logged_ns = now_ns;
        dlxi_zmq_log(&me->zmq, "the coordinator at %s ended the handshake; %s",
                     me->coordinator_text, handshake_doubt(me));
    }
    return DLX_OK;
}

/* Reads one event. REFUSED if the coordinator does not admit this site's key. */
static dlx_status monitor_read(dlxi_zmq_site *me, dlx_error *error) {
    uint16_t event = event_read(me->monitor);
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) me->met = true;
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        DLX_FAIL(error, REFUSED,
                 "wan.key: the coordinator at %s does not admit the key %s; add the line 'NAME %s' "
                 "to the coordinator's roster and start it again",
                 me->coordinator_text, me->zmq.keys.public_text, me->zmq.keys.public_text);
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL ||
        event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
        return on_handshake_failed(me, error);
    return DLX_OK;
}

static dlx_status site_wait(dlxi_zmq *zmq, int64_t deadline_ns, dlx_error *error) {
    enum { CONTROL = 1, MONITOR, FIXED };
    dlxi_zmq_site *me = (dlxi_zmq_site *)zmq;
    zmq_pollitem_t items[FIXED + DLXI_SITES_MAX] = {
        [CONTROL] = {.socket = zmq->control, .events = ZMQ_POLLIN},
        [MONITOR] = {.socket = me->monitor, .events = ZMQ_POLLIN},
    };
    if (me->control_refused && me->met) items[CONTROL].events |= ZMQ_POLLOUT;
    int count = FIXED;
    for (size_t i = 0; i < DLXI_SITES_MAX; i++) {
        const dlxi_channel *channel = &me->channels[i];
        if (channel->socket == NULL) continue;
        items[count] = (zmq_pollitem_t){.socket = channel->socket, .events = ZMQ_POLLIN};
        if (channel->refused && !is_early(channel))
            items[count].events |= ZMQ_POLLOUT;
        else if (channel->refused && (deadline_ns < 0 || channel->retry_at_ns < deadline_ns))
            deadline_ns = channel->retry_at_ns;
        count++;
    }
    DLX_TRY(dlxi_zmq_poll(zmq, items, count, deadline_ns, error));
    return items[MONITOR].revents != 0 ? monitor_read(me, error) : DLX_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

static const char *site_peer_name(dlxi_link *link, uint32_t peer) {
    return peer < DLXI_SITES_MAX ? ((dlxi_zmq_site *)link)->channels[peer].name : "";
}

static const char *site_peer_key(dlxi_link *link, uint32_t peer) {
    return peer < DLXI_SITES_MAX ? ((dlxi_zmq_site *)link)->channels[peer].key_text : "";
}

static void site_close(dlxi_link *link) {
    dlxi_zmq_site *me = (dlxi_zmq_site *)link;
    monitor_close(me->zmq.control, me->monitor);
    for (size_t i = 0; i < DLXI_SITES_MAX; i++)
        if (me->channels[i].socket != NULL) zmq_close(me->channels[i].socket);
    dlxi_zmq_end(&me->zmq);
    free(me);
}

static const dlxi_link_operations operations = {
    .name = "zmq",
    .send = site_send,
    .receive = dlxi_zmq_receive,
    .wake = dlxi_zmq_wake,
    .listen = dlxi_channel_listen,
    .connect = dlxi_channel_connect,
    .reconnect = site_reconnect,
    .peer_name = site_peer_name,
    .peer_key = site_peer_key,
    .close = site_close,
};

static const dlxi_zmq_role role = {site_room_again, site_receive_now, site_wait};

/* A routing id that only this process and the coordinator know. Its first byte is not 0, which is
 * ZeroMQ's own. */
static dlx_status routing_id_choose(char id[ROUTING_ID_BYTES], dlx_error *error) {
    id[0] = ROUTING_ID_FIRST;
    if (getrandom(id + 1, ROUTING_ID_BYTES - 1, 0) != ROUTING_ID_BYTES - 1)
        DLX_FAIL(error, SYSTEM, "zmq link: no routing id: %s", strerror(errno));
    return DLX_OK;
}

/* What others are given, and what channels bind to: the same, or every address, if they are given
 * one that a router forwards. */
static dlx_status listen_host_set(dlxi_zmq_site *me, const dlxi_link_settings *settings,
                                  const char *coordinator_numeric, dlx_error *error) {
    static const char what[] = "wan.listen";
    const char *given = settings->listen_host != NULL ? settings->listen_host : "";
    char *host = me->listen_host, *numeric = me->listen_numeric;
    dlxi_address checked = {.host = ""};
    bool bare = strchr(given, ':') != NULL && given[0] != '['; /* IPv6 */
    char text[DLXI_HOST_BYTES + 8];
    me->listen_port = settings->listen_port;
    if (given[0] == '\0') {
        DLX_TRY(dlxi_address_towards(numeric, coordinator_numeric, error));
        snprintf(host, sizeof me->listen_host, "%s", numeric);
        me->listen_own = true;
        return settings->curve ? DLX_OK : dlxi_zmq_check_loopback(host, error);
    }
    snprintf(text, sizeof text, "%s%.*s%s", bare ? "[" : "", DLXI_HOST_BYTES, given,
             bare ? "]" : "");
    DLX_TRY(dlxi_address_parse_listen(&checked, text, what, error));
    DLX_TRY(dlxi_address_of_interface(checked.host, what, error));
    memcpy(host, checked.host, sizeof me->listen_host);
    if (!settings->curve) DLX_TRY(dlxi_zmq_check_loopback(host, error));
    if (dlxi_host_is_any(host)) {
        DLX_TRY(dlxi_address_towards(numeric, coordinator_numeric, error));
        snprintf(host, sizeof me->listen_host, "%s", numeric);
        me->listen_own = true;
    } else {
        DLX_TRY(dlxi_address_listen(numeric, &me->listen_own, host, what, error));
        if (me->listen_own) return DLX_OK;
        if (!settings->curve) return dlxi_address_own(numeric, host, what, error);
    }
    bool ipv6 = strchr(numeric, ':') != NULL;
    snprintf(numeric, DLXI_NUMERIC_BYTES, "%s", ipv6 ? "::" : "0.0.0.0");
    return DLX_OK;
}

static dlx_status site_open(dlxi_zmq_site *me, const dlxi_link_settings *settings,
                            dlx_error *error) {
    dlxi_address coordinator;
    char *numeric = me->coordinator.numeric;
    const char *text = settings->coordinator != NULL ? settings->coordinator : "";
    DLX_TRY(dlxi_address_parse(&coordinator, text, "wan.coordinator", error));
    if (coordinator.port == 0)
        DLX_FAIL(error, CONFIG,
                 "wan.coordinator: port 0 in '%s' is for the coordinator only; give a site the "
                 "port that the coordinator printed",
                 text);
    if (!settings->curve) DLX_TRY(dlxi_zmq_check_loopback(coordinator.host, error));
    snprintf(me->coordinator_text, sizeof me->coordinator_text, "%s", text);
    DLX_TRY(dlxi_address_remote(numeric, coordinator.host, "wan.coordinator", error));
    me->coordinator.port = coordinator.port;
    DLX_TRY(listen_host_set(me, settings, numeric, error));
    DLX_TRY(routing_id_choose(me->routing_id, error));
    const char *name = settings->name != NULL ? settings->name : "";
    if (!dlxi_name_valid(name) || strcmp(name, dlxi_coordinator_name) == 0)
        DLX_FAIL(error, CONFIG,
                 "site.name: '%.80s' is not allowed; " DLXI_NAME_RULE "; 'coordinator' is taken",
                 name);
    DLX_TRY(dlxi_zmq_begin(&me->zmq, settings, name, false, error));
    if (!me->listen_own)
        dlxi_zmq_log(&me->zmq,
                     "wan.listen: '%s' is not an address of this machine; other sites will connect "
                     "to it, which works if a router forwards it to this machine",
                     me->listen_host);
    return control_dial(me, error);
}

dlx_status dlxi_zmq_site_open(dlxi_link **out, const dlxi_link_settings *settings,
                              dlx_error *error) {
    *out = NULL;
    dlxi_zmq_site *me = NULL;
    DLX_TRY(DLXI_NEW(&me, 1, error));
    dlxi_zmq_init(&me->zmq, &operations, &role);
    dlx_status status = site_open(me, settings, error);
    if (status == DLX_OK)
        *out = &me->zmq.link;
    else
        site_close(&me->zmq.link);
    return status;
}
