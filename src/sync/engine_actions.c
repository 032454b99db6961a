/* SPDX-License-Identifier: Apache-2.0 */
/* What an engine wants done: frames to send, connections, lines. */
#include <string.h>

#include "base/fault.h"
#include "base/panic.h"
#include "sync/engine_internal.h"

static bool next_listen(dlxi_engine *e, dlxi_engine_action *a) {
    const dlxi_welcome *w = &e->site->welcome;
    if (e->site->phase != DLXI_SITE_LISTENING || e->listened == w->sites) return false;
    a->kind = DLXI_ENGINE_LISTEN;
    a->me = w->site;
    a->peer = e->listened;
    a->name = w->members[e->listened].name;
    a->public_key = w->members[e->listened].public_key;
    return true;
}

/* Where it listens is said later. */
static bool is_unknown(const dlxi_engine *e, uint16_t peer) {
    return e->site->returns && e->site->peers.endpoint[peer][0] == '\0' &&
           e->listening->endpoint[peer][0] == '\0';
}

static bool next_connect(dlxi_engine *e, dlxi_engine_action *a) {
    while (e->connected < e->site->count &&
           (e->connected == e->site->index || is_unknown(e, e->connected)))
        e->connected++;
    if (e->connected < e->site->count) {
        a->kind = DLXI_ENGINE_CONNECT;
        a->peer = e->connected;
        memcpy(a->endpoint, e->site->peers.endpoint[e->connected], sizeof a->endpoint);
        return true;
    }
    for (uint16_t i = 0; e->redirect != 0; i++) {
        if ((e->redirect >> i & 1u) == 0) continue;
        e->redirect &= ~(UINT64_C(1) << i);
        a->kind = DLXI_ENGINE_CONNECT;
        a->peer = i;
        memcpy(a->endpoint, e->ways[i].endpoint, sizeof a->endpoint);
        return true;
    }
    for (uint16_t i = 0; e->reconnect != 0; i++) {
        if ((e->reconnect >> i & 1u) == 0) continue;
        e->reconnect &= ~(UINT64_C(1) << i);
        a->kind = DLXI_ENGINE_RECONNECT;
        a->peer = i;
        return true;
    }
    return false;
}

static bool next_control(dlxi_engine *e, dlxi_engine_action *a) {
    const dlxi_outbox_item *item = dlxi_outbox_peek(&e->site->outbox);
    int64_t seen_ms = e->site->last_seen_ms;
    int64_t since_ms = seen_ms > e->redialed_ms ? seen_ms : e->redialed_ms;
    bool silent = e->site->term > 0 && e->now_ms - since_ms >= e->timeout_ms / 2;
    a->peer = DLXI_SITE_COORDINATOR;
    if (silent && !e->busy && !e->outcome.ended) {
        e->redialed_ms = e->now_ms; /* a new connection tries every second, a dead one not */
        a->kind = DLXI_ENGINE_RECONNECT;
        return true;
    }
    if (item == NULL || e->control_blocked) return false;
    a->kind = DLXI_ENGINE_SEND;
    a->frame = item->frame;
    return true;
}

/* The next piece of θ for a site that starts elsewhere. */
static bool anchor_make(const dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    const dlxi_way *v = &e->ways[to];
    if (!e->linking || v->anchored || ANCHOR_FROM != e->site->index ||
        !dlxi_transfer_peek(&v->gives, e->state, frame))
        return false;
    frame_sign(e, frame);
    return true;
}

/* One frame for each way in turn, so that none waits for another. */
static bool next_data(dlxi_engine *e, dlxi_engine_action *a) {
    a->kind = DLXI_ENGINE_SEND;
    for (uint16_t n = 0; n < e->site->count; n++) {
        uint16_t to = (uint16_t)((e->turn + n) % e->site->count);
        a->peer = to;
        if (!is_other(e, to) || e->ways[to].blocked || !e->ways[to].connected) continue;
        if (!dlxi_way_greeting_make(e, to, &a->frame) && !anchor_make(e, to, &a->frame) &&
            !(is_exchanging(e) && dlxi_exchange_peek(e->exchange, to, &a->frame)) &&
            !dlxi_engine_fetch_make(e, to, &a->frame) && !dlxi_engine_entry_make(e, to, &a->frame))
            continue;
        e->turn = (to + 1u) % e->site->count;
        return true;
    }
    return false;
}

bool dlxi_engine_next(dlxi_engine *e, dlxi_engine_action *a, int64_t now_ms) {
    DLXI_ASSERT(now_ms >= e->now_ms);
    e->now_ms = now_ms;
    a->kind = DLXI_ENGINE_LOG;
    a->text = dlxi_lines_peek(&e->lines);
    if (a->text != NULL) return true;
    a->endpoint[0] = '\0';
    if (!e->outcome.ended && next_listen(e, a)) return true;
    bool running = !e->outcome.ended && e->site->phase == DLXI_SITE_RUNNING;
    if (running && next_connect(e, a)) return true;
    return next_control(e, a) || (running && next_data(e, a));
}

static void data_done(dlxi_engine *e, const dlxi_engine_action *a, bool sent) {
    dlxi_way *v = &e->ways[a->peer];
    v->blocked = !sent;
    if (!sent) return;
    switch (a->frame.kind) {
    case DLXI_FRAME_GREETING:
        v->greeted_ms = e->now_ms;
        break;
    case DLXI_FRAME_ANCHOR:
        dlxi_transfer_advance(&v->gives, e->state);
        break;
    case DLXI_FRAME_FETCH:
        e->fetch.due = false;
        break;
    case DLXI_FRAME_ENTRY:
        if (a->frame.count_groups == 0)
            v->serves = 0;
        else
            dlxi_entry_advance(&v->serves_at, &a->frame);
        break;
    default:
        if (dlxi_exchange_advance(e->exchange, (uint16_t)a->peer)) e->moved_ms = e->now_ms;
    }
}

void dlxi_engine_done(dlxi_engine *e, const dlxi_engine_action *a, dlx_status status,
                      const dlx_error *error) {
    bool ok = status == DLX_OK, waits = status == DLX_AGAIN || status == DLX_PEER_LOST;
    bool control = a->kind == DLXI_ENGINE_SEND && a->peer == DLXI_SITE_COORDINATOR;
    if (a->kind == DLXI_ENGINE_LOG) {
        dlxi_lines_drop(&e->lines);
        return;
    }
    if (control) {
        if (status == DLX_AGAIN)
            e->control_blocked = true;
        else /* a lost coordinator is noticed by its silence */
            dlxi_outbox_drop(&e->site->outbox);
    }
    if (!ok && !waits) {
        dlxi_engine_on_link_failure(e, error);
        return;
    }
    switch (a->kind) {
    case DLXI_ENGINE_SEND:
        if (!control) data_done(e, a, ok);
        break;
    case DLXI_ENGINE_LISTEN:
        memcpy(e->listening->endpoint[a->peer], a->endpoint, sizeof a->endpoint);
        memcpy(e->ways[a->peer].endpoint, a->endpoint, sizeof a->endpoint);
        e->listened++;
        dlxi_engine_listen_advance(e);
        break;
    case DLXI_ENGINE_CONNECT:
        e->ways[a->peer].connected = true;
        e->connected = (uint16_t)(e->connected + (a->peer == e->connected));
        break;
    default:
        break;
    }
    dlxi_engine_settle(e);
}
