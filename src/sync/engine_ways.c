/* SPDX-License-Identifier: Apache-2.0 */
/* Ways: whether they carry frames, and what is said on them for that. */
#include "base/fault.h"
#include "base/panic.h"
#include "sync/engine_internal.h"

bool dlxi_way_is_silent(const dlxi_engine *e, uint16_t site) {
    return e->now_ms - e->ways[site].last_seen_ms >= e->timeout_ms;
}

bool dlxi_way_is_linked(const dlxi_engine *e, uint16_t site) {
    const dlxi_way *v = &e->ways[site];
    return !is_other(e, site) || (v->heard && v->hears && !dlxi_way_is_silent(e, site));
}

bool dlxi_way_works(const dlxi_engine *e, uint16_t site) {
    const dlxi_way *v = &e->ways[site];
    return v->heard && e->now_ms - v->last_seen_ms < e->timeout_ms &&
           e->now_ms - v->hears_ms < e->timeout_ms;
}

void dlxi_way_count(dlxi_way *v, const dlxi_frame *frame) {
    if (v->received_round != frame->round || v->received_attempt != frame->attempt ||
        v->received_term != frame->term) {
        v->received_term = frame->term;
        v->received_round = frame->round;
        v->received_attempt = frame->attempt;
        v->received = 0;
    }
    v->received++;
}

/* Whether frames that were sent before this greeting did not arrive. */
static bool frames_were_lost(const dlxi_way *v, const dlxi_frame *greeting) {
    uint32_t sent = greeting->offset_groups;
    bool same = v->received_round == greeting->round && v->received_attempt == greeting->attempt &&
                v->received_term == greeting->term;
    return sent > (same ? v->received : 0);
}

dlx_status dlxi_way_on_greeting(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlxi_way *v = &e->ways[from];
    if (!v->heard) v->greeted_ms = e->now_ms - GREET_MS; /* it waits for an answer */
    v->heard = true;
    if ((frame->trip & GREETING_HEARD) != 0) v->hears = true, v->hears_ms = e->now_ms;
    if (frame->payload_bytes >= LARGE_BYTES) v->large_ms = e->now_ms;
    v->anchored = v->anchored || (frame->trip & GREETING_ANCHOR) != 0;
    if ((frame->trip & GREETING_BUSY) != 0) e->moved_ms = e->now_ms;
    if (frame->count_groups > v->gives.number) { /* asks for θ, from its beginning */
        v->gives = (dlxi_transfer){.number = frame->count_groups};
        v->sent = 0;
    }
    if (!frames_were_lost(v, frame)) return DLX_OK;
    if (is_under_way(e) && frame->round == e->site->round && frame->attempt == e->site->attempt &&
        frame->term == e->site->attempt_term)
        return DLX_PEER_LOST;
    if (frame->round == 0 && e->linking && from == ANCHOR_FROM &&
        frame->attempt == e->anchor.number && e->anchor.missing > 0)
        dlxi_engine_anchor_ask(e);
    return DLX_OK;
}

void dlxi_ways_reset(dlxi_engine *e) {
    e->moved_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        dlxi_way *v = &e->ways[i];
        if (!DLXI_PLANTED(9)) v->sent = 0;
        v->greeted_ms = e->now_ms - GREET_MS;
        if (is_other(e, i) && e->now_ms - v->last_seen_ms >= e->timeout_ms / 2 + GREET_MS)
            e->reconnect |= UINT64_C(1) << i;
    }
}

void dlxi_ways_watch(dlxi_engine *e) {
    uint64_t reached = 0;
    for (uint16_t i = 0; i < e->site->count; i++) {
        dlxi_way *v = &e->ways[i];
        if (!is_other(e, i)) continue;
        bool large =
            (e->site->left_out_for >> i & 1u) == 0 || e->now_ms - v->large_ms < e->timeout_ms;
        if (dlxi_way_works(e, i) && large) reached |= UINT64_C(1) << i;
        if (is_under_way(e) || e->now_ms - v->last_seen_ms < e->timeout_ms ||
            e->now_ms - v->redialed_ms < e->timeout_ms)
            continue;
        v->redialed_ms = e->now_ms;
        e->reconnect |= UINT64_C(1) << i;
    }
    e->site->reached = reached;
}

bool dlxi_way_greeting_make(const dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    const dlxi_way *v = &e->ways[to];
    bool soon = e->linking || is_under_way(e) || e->busy;
    if (e->now_ms - v->greeted_ms < (soon ? GREET_SOON_MS : GREET_MS)) return false;
    bool started = e->sent_attempt > 0;
    bool hears = v->heard && e->now_ms - v->last_seen_ms < e->timeout_ms;
    bool large = (e->site->left_out_for >> to & 1u) != 0;
    int says = (hears ? GREETING_HEARD : 0) | (e->anchor.missing == 0 ? GREETING_ANCHOR : 0) |
               (e->busy ? GREETING_BUSY : 0);
    static const uint8_t padding[LARGE_BYTES];
    *frame = (dlxi_frame){.kind = DLXI_FRAME_GREETING,
                          .term = started ? e->sent_term : e->site->term,
                          .round = started ? e->sent_round : 0,
                          .attempt = started ? e->sent_attempt : v->gives.number,
                          .site = e->site->index,
                          .rank = e->rank,
                          .trip = (uint16_t)says,
                          .offset_groups = v->sent,
                          .count_groups = to == ANCHOR_FROM ? e->anchor.number : 0,
                          .payload_bytes = large ? LARGE_BYTES : 0,
                          .payload = padding};
    return true;
}
