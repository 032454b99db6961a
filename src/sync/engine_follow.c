/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds that committed without this site: their results are fetched; and served to others. */
#include "base/fault.h"
#include "base/panic.h"
#include "sync/engine_internal.h"

/* Members have the round for sure; then others may. 0 of them works: none. */
static bool source_choose(dlxi_engine *e) {
    const dlxi_view *view = &e->site->commit.view;
    uint64_t members = 0;
    for (uint16_t i = 0; i < view->members; i++) members |= UINT64_C(1) << view->member[i].site;
    for (int pass = 0; pass < 2; pass++)
        for (uint16_t n = 1; n <= e->site->count; n++) {
            uint16_t i = (uint16_t)((e->fetch.from + n) % e->site->count);
            bool member = (members >> i & 1u) != 0;
            if (!is_other(e, i) || member != (pass == 0) || !dlxi_way_works(e, i) ||
                (e->fetch.useless >> i & 1u) != 0)
                continue;
            e->fetch.from = i;
            return true;
        }
    return false;
}

/* Asks for what is missing. If nobody is left to ask, all are asked again later. */
static void fetch_send(dlxi_engine *e) {
    dlxi_fetch *f = &e->fetch;
    f->moved_ms = e->now_ms;
    bool same = f->asked && dlxi_way_works(e, f->from) && (f->useless >> f->from & 1u) == 0;
    if (!same && !source_choose(e)) {
        f->useless = 0;
        f->number++; /* answers to the last one come too late */
        f->asked = f->due = false;
        return;
    }
    f->number++;
    f->asked = f->due = true;
}

/* The next place to ask: after a loss the same site again, else another one. */
static void fetch_again(dlxi_engine *e, bool same) {
    if (!same && e->fetch.asked) e->fetch.useless |= UINT64_C(1) << e->fetch.from;
    fetch_send(e);
}

static void fetch_judge(dlxi_engine *e) {
    dlxi_frame missing;
    if (!dlxi_exchange_wants(e->exchange, &missing)) return;
    bool silent = !e->fetch.asked || !dlxi_way_works(e, e->fetch.from);
    if (e->now_ms - e->fetch.moved_ms >= e->timeout_ms / (silent ? 2 : 1))
        fetch_again(e, e->fetch.due);
}

static void follow_begin(dlxi_engine *e) {
    dlx_error error;
    uint16_t from = e->fetch.from;
    uint32_t number = e->fetch.number;
    const dlxi_site *s = e->site;
    e->state->tokens_target = s->welcome.tokens_target;
    dlx_status status =
        dlxi_exchange_follow(e->exchange, e->state, &s->commit.view, s->round, &error);
    if (status != DLX_OK) {
        dlxi_site_fail(e->site, &error);
        return;
    }
    e->fetch = (dlxi_fetch){.from = from, .number = number};
    fetch_send(e);
}

/* M stands for the next round. After the last one there is none. */
static void follow_commit(dlxi_engine *e) {
    bool finished = e->site->commit.finished;
    dlxi_exchange_keep(e->exchange, dlxi_lineage_of(e->site->commit.coordinator), &e->history);
    dlxi_exchange_commit(e->exchange, e->state);
    e->state->tokens = e->site->commit.committed_tokens;
    dlxi_state_set_copy(e->state, &e->site->copy);
    dlxi_site_on_followed(e->site);
    if (e->site->returns && !DLXI_PLANTED(32)) {
        dlx_error error;
        dlxi_error_set(&error, DLX_STATE, "the run has ended before this site came back");
        if (finished) dlxi_site_fail(e->site, &error);
        return;
    }
    if (finished) {
        dlxi_engine_outcome_of_commit(e);
        return;
    }
    e->ready.anchor_hash = dlxi_state_anchor_hash(e->state);
    if (!DLXI_PLANTED(23)) dlxi_site_on_ready(e->site, &e->ready);
}

void dlxi_engine_follow(dlxi_engine *e) {
    dlxi_frame missing;
    if (!dlxi_exchange_is_following(e->exchange)) follow_begin(e);
    if (e->site->phase == DLXI_SITE_DONE) return;
    if (dlxi_exchange_wants(e->exchange, &missing))
        fetch_judge(e);
    else
        follow_commit(e);
}

void dlxi_engine_on_fetch(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlxi_way *v = &e->ways[from];
    const dlxi_entry *entry = dlxi_history_find(&e->history, frame->round, frame->count_groups);
    const dlxi_entry *newest = e->history.newest;
    if (newest == NULL || frame->round > newest->round) return; /* not yet */
    /* that one's coordinator is about to be told that another one has the run */
    if (dlxi_history_differs(&e->history, frame->round, frame->count_groups)) return;
    v->serves = frame->attempt;
    v->serves_round = frame->round;
    v->serves_lineage = frame->count_groups;
    if (entry == NULL || !dlxi_entry_seek(entry, &v->serves_at, frame)) v->serves_round = 0;
}

/* No site that can be asked has the round: this one can't make up for it. */
static bool nobody_has_it(dlxi_engine *e) {
    dlx_error error;
    for (uint16_t i = 0; i < e->site->count; i++)
        if (is_other(e, i) && dlxi_way_works(e, i) && (e->fetch.without >> i & 1u) == 0)
            return false;
    dlxi_error_set(&error, DLX_PEER_LOST,
                   "this site was away for too long: no site has round %llu's results any more "
                   "(sync.history_mib)",
                   (unsigned long long)e->site->round);
    dlxi_site_fail(e->site, &error);
    return true;
}

void dlxi_engine_on_entry(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlxi_fetch *f = &e->fetch;
    bool moved = false;
    dlx_error error;
    if (!dlxi_exchange_is_following(e->exchange) || from != f->from || frame->attempt != f->number)
        return;
    if (frame->count_groups == 0) { /* it does not have it, or not any more */
        f->without |= UINT64_C(1) << from;
        if (nobody_has_it(e)) return;
        fetch_again(e, false);
        return;
    }
    dlx_status status = dlxi_exchange_on_entry(e->exchange, frame, &moved, &error);
    if (moved) f->moved_ms = e->now_ms;
    if (status != DLX_OK) fetch_again(e, status == DLX_PEER_LOST);
}

bool dlxi_engine_fetch_make(const dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    const dlxi_fetch *f = &e->fetch;
    if (!f->due || f->from != to || !dlxi_exchange_is_following(e->exchange) ||
        !dlxi_exchange_wants(e->exchange, frame))
        return false;
    frame->attempt = f->number;
    frame->count_groups = dlxi_lineage_of(e->site->commit.coordinator);
    frame_sign(e, frame);
    return true;
}

bool dlxi_engine_entry_make(dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    dlxi_way *v = &e->ways[to];
    if (v->serves == 0) return false;
    const dlxi_entry *entry = dlxi_history_find(&e->history, v->serves_round, v->serves_lineage);
    *frame = (dlxi_frame){.kind = DLXI_FRAME_ENTRY, .round = v->serves_round};
    if (entry != NULL && !dlxi_entry_peek(entry, &v->serves_at, frame)) {
        v->serves = 0;
        return false;
    }
    frame->attempt = v->serves;
    frame_sign(e, frame);
    return true;
}
