/* SPDX-License-Identifier: Apache-2.0 */
/* Ways: whether they carry frames, and what is said on them for that. */
#include <string.h>

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

/* ---- lost frames ----------------------------------------------------------------------------- */

void dlxi_way_on_gap(dlxi_engine *e, uint16_t from) {
    dlxi_way *v = &e->ways[from];
    if (v->answered != v->asks) return; /* what came was sent before the request arrived */
    v->asks++;
    v->greeted_ms = e->now_ms - GREET_MS;
}

/* What the other side has received of what was sent, trip by trip. */
static uint64_t groups_arrived(const dlxi_greeting *theirs, const dlxi_greeting *mine) {
    uint64_t sum = 0;
    for (int i = 0; i < DLXI_TRIPS; i++) {
        uint64_t received = theirs->trips[i].received, sent = mine->trips[i].sent;
        if (received != DLXI_NOT_BEGUN) sum += received < sent ? received : sent;
    }
    return sum;
}

/* Whether frames that were sent before this greeting did not arrive. Those of a trip that has not
 * begun here are kept until it does. */
static bool frames_were_lost(const dlxi_greeting *theirs, const dlxi_greeting *mine) {
    bool lost = false;
    for (int i = 0; i < DLXI_TRIPS; i++) lost |= theirs->trips[i].sent > mine->trips[i].received;
    return lost;
}

static void frames_send_again(dlxi_engine *e, uint16_t to, const dlxi_greeting *theirs) {
    dlxi_way *v = &e->ways[to];
    dlxi_exchange_go_back(e->exchange, to, theirs);
    v->answers = theirs->asks;
    v->greeted_ms = e->now_ms - GREET_MS; /* it says so before the first frame */
    e->outcome.repairs++;
    if (v->repaired_ms > 0 && e->now_ms - v->repaired_ms < REPAIR_PAUSE_MS) return;
    v->repaired_ms = e->now_ms;
    dlxi_lines_add(&e->lines, "frames to site '%s' were lost, and are sent again",
                   e->site->welcome.members[to].name);
}

/* Of the attempt that is under way here. */
static void on_offsets(dlxi_engine *e, uint16_t from, const dlxi_greeting *theirs) {
    dlxi_way *v = &e->ways[from];
    dlxi_greeting mine;
    if (!dlxi_exchange_offsets(e->exchange, from, &mine)) return;
    uint64_t arrived = groups_arrived(theirs, &mine);
    if (arrived > v->arrived) {
        v->arrived = arrived;
        e->moved_ms = e->now_ms;
    }
    if (theirs->asks > v->answers) frames_send_again(e, from, theirs);
    if (theirs->answers != v->asks) return;
    v->answered = v->asks;
    if (frames_were_lost(theirs, &mine)) dlxi_way_on_gap(e, from);
}

/* ---- greetings ------------------------------------------------------------------------------- */

static void anchor_check(dlxi_engine *e, uint16_t from, const dlxi_frame *greeting) {
    const dlxi_transfer *t = &e->anchor;
    if (e->linking && from == ANCHOR_FROM && greeting->attempt == t->number && t->missing > 0 &&
        greeting->offset_groups > t->pieces)
        dlxi_engine_anchor_ask(e);
}

void dlxi_way_on_greeting(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlxi_way *v = &e->ways[from];
    dlxi_greeting theirs;
    if (!v->heard) v->greeted_ms = e->now_ms - GREET_MS; /* it waits for an answer */
    v->heard = true;
    if ((frame->trip & GREETING_HEARD) != 0) v->hears = true, v->hears_ms = e->now_ms;
    if (frame->payload_bytes >= LARGE_BYTES) v->large_ms = e->now_ms;
    v->anchored = v->anchored || (frame->trip & GREETING_ANCHOR) != 0;
    if ((frame->trip & GREETING_BUSY) != 0) e->moved_ms = e->now_ms;
    if (frame->count_groups > v->gives.number) { /* asks for θ, from its beginning */
        v->gives = (dlxi_transfer){.number = frame->count_groups};
    }
    if (frame->round == 0) anchor_check(e, from, frame);
    if (is_exchanging(e) && frame->round == e->begun_round && frame->attempt == e->begun_attempt &&
        frame->term == e->begun_term && dlxi_greeting_decode(&theirs, frame))
        on_offsets(e, from, &theirs);
}

void dlxi_ways_reset(dlxi_engine *e) {
    e->moved_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        dlxi_way *v = &e->ways[i];
        v->asks = v->answered = v->answers = 0;
        v->arrived = 0;
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

/* The payload of the next greeting; its bytes are returned. */
static uint32_t payload_make(dlxi_engine *e, uint16_t to) {
    const dlxi_way *v = &e->ways[to];
    bool large = (e->site->left_out_for >> to & 1u) != 0;
    dlxi_greeting mine = {.asks = v->asks, .answers = v->answers};
    if (is_exchanging(e) && dlxi_exchange_offsets(e->exchange, to, &mine)) {
        dlxi_greeting_encode(e->greeting, &mine);
        return DLXI_GREETING_BYTES;
    }
    memset(e->greeting, 0, DLXI_GREETING_BYTES);
    return large ? LARGE_BYTES : 0;
}

bool dlxi_way_greeting_make(dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    const dlxi_way *v = &e->ways[to];
    bool soon = e->linking || is_exchanging(e) || e->busy;
    if (e->now_ms - v->greeted_ms < (soon ? GREET_SOON_MS : GREET_MS)) return false;
    bool started = e->begun_attempt > 0;
    bool hears = v->heard && e->now_ms - v->last_seen_ms < e->timeout_ms;
    int says = (hears ? GREETING_HEARD : 0) | (e->anchor.missing == 0 ? GREETING_ANCHOR : 0) |
               (e->busy ? GREETING_BUSY : 0);
    *frame = (dlxi_frame){.kind = DLXI_FRAME_GREETING,
                          .term = started ? e->begun_term : e->site->term,
                          .round = started ? e->begun_round : 0,
                          .attempt = started ? e->begun_attempt : v->gives.number,
                          .site = e->site->index,
                          .rank = e->rank,
                          .trip = (uint16_t)says,
                          .offset_groups = started ? 0 : v->gives.pieces,
                          .count_groups = to == ANCHOR_FROM ? e->anchor.number : 0,
                          .payload_bytes = payload_make(e, to),
                          .payload = e->greeting};
    return true;
}
