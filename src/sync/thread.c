/* SPDX-License-Identifier: Apache-2.0 */
/* The exchange thread: joins, moves frames, and brings rounds to their commit while training goes
 * on. */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "sync/sync_internal.h"

enum { FRAMES_AT_ONCE = 256, ANCHOR_GROUP = 64 /* values a "group" of an ANCHOR frame */ };

/* ---- endings --------------------------------------------------------------------------------- */

static void fail(dlx_sync *s, const dlx_error *why) {
    pthread_mutex_lock(&s->mutex);
    if (s->failure.status == DLX_OK) s->failure = *why;
    s->ended = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static void fail_telling(dlx_sync *s, const dlx_error *why) {
    dlxi_site_fail(s->site, why);
    fail(s, why);
}

static void on_ended(dlx_sync *s) {
    if (s->site->result.status != DLX_OK) {
        fail(s, &s->site->result);
        return;
    }
    pthread_mutex_lock(&s->mutex);
    s->ended = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- joining --------------------------------------------------------------------------------- */

static void on_joined(dlx_sync *s) {
    pthread_mutex_lock(&s->mutex);
    s->joined = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static dlx_status on_listen(dlx_sync *s, dlx_error *error) {
    const dlxi_welcome *w = &s->site->welcome;
    dlxi_endpoints *endpoints;
    DLX_TRY(DLXI_NEW(&endpoints, 1, error));
    dlx_status status = DLX_OK;
    endpoints->sites = w->sites;
    for (uint16_t i = 0; i < w->sites && status == DLX_OK; i++)
        if (i != w->site)
            status = s->link->op->listen(s->link, w->site, i, w->members[i].name,
                                         w->members[i].public_key, endpoints->endpoint[i], error);
    if (status == DLX_OK) dlxi_site_on_listening(s->site, endpoints);
    free(endpoints);
    pthread_mutex_lock(&s->mutex);
    s->site_index = w->site;
    s->site_count = w->sites;
    s->tokens_target = w->tokens_target;
    s->leases[1 % DLXI_SYNC_LEASES] = w->leases[0];
    s->leases[2 % DLXI_SYNC_LEASES] = w->leases[1];
    pthread_mutex_unlock(&s->mutex);
    return status;
}

static dlx_status on_connect(dlx_sync *s, dlx_error *error) {
    const dlxi_welcome *w = &s->site->welcome;
    for (uint16_t i = 0; i < w->sites; i++) {
        if (i == w->site) continue;
        DLX_TRY(s->link->op->connect(s->link, i, s->site->peers.endpoint[i], error));
        s->anchor_cursor[i].active = w->site == w->anchor_source && w->members[i].needs_anchor;
    }
    if (w->members[w->site].needs_anchor)
        s->anchor_values_missing = dlxi_shard_parameters(s->shard);
    else
        on_joined(s);
    return DLX_OK;
}

/* The next piece of θ for a site that starts elsewhere; false when it has all, or its queue is
 * full. */
static bool send_anchor_piece(dlx_sync *s, uint16_t to) {
    if (!s->anchor_cursor[to].active) return false;
    const dlxi_shard_tensor *t = &s->shard->tensors[s->anchor_cursor[to].tensor];
    int64_t left = t->rows * t->cols - s->anchor_cursor[to].value;
    int64_t most = DLXI_FRAME_PAYLOAD_MAX / (int64_t)sizeof(float) / ANCHOR_GROUP * ANCHOR_GROUP;
    int64_t count = left < most ? left : most;
    dlxi_frame frame = {.kind = DLXI_FRAME_ANCHOR,
                        .term = s->site->term,
                        .site = s->site->index,
                        .rank = s->settings.rank,
                        .tensor = t->id,
                        .offset_groups = (uint32_t)(s->anchor_cursor[to].value / ANCHOR_GROUP),
                        .count_groups = (uint32_t)((count + ANCHOR_GROUP - 1) / ANCHOR_GROUP),
                        .payload_bytes = (uint32_t)count * (uint32_t)sizeof(float),
                        .payload = (const uint8_t *)(t->anchor + s->anchor_cursor[to].value)};
    if (s->link->op->send(s->link, to, &frame, NULL) != DLX_OK) return false;
    s->anchor_cursor[to].value += count;
    if (count == left) {
        s->anchor_cursor[to].value = 0;
        s->anchor_cursor[to].active = ++s->anchor_cursor[to].tensor < s->shard->count;
    }
    return true;
}

static dlx_status on_anchor_frame(dlx_sync *s, const dlxi_frame *frame, dlx_error *error) {
    if (s->anchor_values_missing == 0) return DLX_OK;
    int64_t at = (int64_t)frame->offset_groups * ANCHOR_GROUP,
            count = frame->payload_bytes / sizeof(float);
    const dlxi_shard_tensor *t = dlxi_shard_find(s->shard, frame->tensor);
    if (frame->site != s->site->welcome.anchor_source || t == NULL ||
        frame->payload_bytes % sizeof(float) != 0 || at + count > t->rows * t->cols ||
        count > s->anchor_values_missing)
        DLX_FAIL(error, DATA, "site %u sent starting parameters that do not fit this model",
                 frame->site);
    memcpy(t->anchor + at, frame->payload, frame->payload_bytes);
    s->anchor_values_missing -= count;
    if (s->anchor_values_missing > 0) return DLX_OK;
    dlxi_shard_rehash(s->shard);
    dlxi_shard_apply(s->shard, true); /* the training thread still waits in open */
    on_joined(s);
    return DLX_OK;
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static dlx_status on_begin(dlx_sync *s, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    bool mine = s->submitted;
    s->statistics.attempts++;
    pthread_mutex_unlock(&s->mutex);
    if (!mine)
        DLX_FAIL(error, DATA, "the coordinator began a round that this site has not handed out");
    s->begun_ns = dlxi_clock_ns();
    s->staged_told = false;
    s->exchange_bytes = dlxi_shard_exchange_bytes(s->shard, 0);
    return dlxi_exchange_begin(s->exchange, &s->site->view, s->site->index, s->site->term,
                               s->site->round, s->site->attempt, error);
}

static void on_commit(dlx_sync *s) {
    pthread_mutex_lock(&s->anchor_mutex);
    dlxi_exchange_commit(s->exchange);
    s->anchor_rounds++;
    pthread_mutex_unlock(&s->anchor_mutex);
    s->exchange_ns = (uint64_t)(dlxi_clock_ns() - s->begun_ns);
    double ranks = 0, parameters = 0;
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        if (!t->low_rank) continue;
        ranks += (double)t->adapt.parameters * t->adapt.factor_rank;
        parameters += (double)t->adapt.parameters;
    }
    pthread_mutex_lock(&s->mutex);
    s->commit = s->site->commit;
    s->view_tokens = s->own_tokens = 0;
    for (uint16_t i = 0; i < s->site->view.members; i++) {
        uint64_t tokens = s->site->view.member[i].tokens;
        s->view_tokens += tokens;
        if (s->site->view.member[i].site == s->site->index) s->own_tokens = tokens;
    }
    s->leases[s->commit.lease.round % DLXI_SYNC_LEASES] = s->commit.lease;
    s->committed = true;
    s->submitted = false;
    dlx_statistics *st = &s->statistics;
    st->rounds++;
    st->committed_tokens = s->commit.committed_tokens;
    st->round_bytes = s->exchange_bytes;
    st->payload_bytes += s->exchange_bytes;
    st->exchange_s = (double)s->exchange_ns * 1e-9;
    st->exchange_total_s += st->exchange_s;
    st->factor_rank_mean = parameters > 0 ? ranks / parameters : 0;
    st->anchor_hash = dlxi_shard_anchor_hash(s->shard);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

/* A malformed frame ends the attempt, not the run: the next one starts from M, which is untouched.
 * What is staged is promised, and can't be given up. Returns what remains of `status`. */
static dlx_status give_up_attempt(dlx_sync *s, dlx_status status, const dlx_error *error) {
    if (status != DLX_DATA || dlxi_exchange_trip(s->exchange) < 0) return status;
    dlxi_exchange_abort(s->exchange);
    dlxi_site_on_attempt_failed(s->site, error->message);
    return DLX_OK;
}

static dlx_status act(dlx_sync *s, dlxi_site_action action, dlx_error *error) {
    switch (action) {
    case DLXI_SITE_LISTEN:
        return on_listen(s, error);
    case DLXI_SITE_CONNECT:
        return on_connect(s, error);
    case DLXI_SITE_BEGIN:
        return give_up_attempt(s, on_begin(s, error), error);
    case DLXI_SITE_ABORT:
        dlxi_exchange_abort(s->exchange);
        return DLX_OK;
    case DLXI_SITE_COMMIT:
        on_commit(s);
        return DLX_OK;
    case DLXI_SITE_ENDED:
        on_ended(s);
        return DLX_OK;
    case DLXI_SITE_NOTHING:
        break;
    }
    return DLX_OK;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static bool send_control(dlx_sync *s) {
    const dlxi_outbox_item *item;
    while ((item = dlxi_outbox_peek(&s->site->outbox)) != NULL) {
        dlx_status status = s->link->op->send(s->link, DLXI_SITE_COORDINATOR, &item->frame, NULL);
        if (status == DLX_AGAIN) return false;
        dlxi_outbox_drop(&s->site->outbox); /* a lost coordinator shows in its silence */
    }
    return true;
}

/* One frame to each peer in turn, until none has room or there is nothing left. */
static void send_data(dlx_sync *s) {
    dlxi_frame frame;
    bool moved;
    do {
        moved = false;
        for (uint16_t to = 0; to < s->site->count; to++) {
            if (send_anchor_piece(s, to)) moved = true;
            if (!dlxi_exchange_peek(s->exchange, to, &frame)) continue;
            if (s->link->op->send(s->link, to, &frame, NULL) != DLX_OK) continue;
            dlxi_exchange_advance(s->exchange, to);
            moved = true;
        }
    } while (moved);
}

static dlx_status poll_exchange(dlx_sync *s, dlx_error *error) {
    int before, after;
    do { /* a new trip has frames to send */
        before = dlxi_exchange_trip(s->exchange);
        bool staged;
        send_data(s);
        DLX_TRY(dlxi_exchange_poll(s->exchange, &staged, error));
        after = dlxi_exchange_trip(s->exchange);
        if (staged && !s->staged_told) {
            s->staged_told = true;
            dlxi_site_on_staged(s->site, dlxi_exchange_staged_hash(s->exchange));
        }
    } while (after >= 0 && after != before);
    return DLX_OK;
}

/* What the training thread asked for. False: it wants this thread to end. */
static bool take_requests(dlx_sync *s) {
    pthread_mutex_lock(&s->mutex);
    bool ready = s->ready_wanted, report = s->report_wanted, quit = s->quit, ended = s->ended;
    dlxi_ready message = s->ready;
    dlx_error failure = s->failure;
    s->ready_wanted = s->report_wanted = false;
    pthread_mutex_unlock(&s->mutex);
    if (ready) {
        message.exchange_ns = s->exchange_ns;
        message.exchange_bytes = s->exchange_bytes;
        dlxi_site_on_ready(s->site, &message);
    }
    if (report) dlxi_site_on_report(s->site, s->report_text);
    if (quit && !ended && failure.status != DLX_OK) dlxi_site_fail(s->site, &failure);
    return !quit;
}

static dlx_status on_frame(dlx_sync *s, uint32_t peer, const dlxi_frame *frame, dlx_error *error) {
    if (peer == DLXI_SITE_COORDINATOR)
        return act(s, dlxi_site_on_frame(s->site, frame, dlxi_sync_now_ms()), error);
    if (frame->site != peer) DLX_FAIL(error, DATA, "site %u speaks for site %u", peer, frame->site);
    if (frame->rank != s->settings.rank)
        DLX_FAIL(error, DATA,
                 "rank %u of site %u speaks to rank %u; check wan.listen: each rank needs ports of "
                 "its own",
                 frame->rank, peer, s->settings.rank);
    switch (frame->kind) {
    case DLXI_FRAME_ANCHOR:
        return on_anchor_frame(s, frame, error);
    case DLXI_FRAME_CONTRIBUTION:
    case DLXI_FRAME_RESULT:
        return give_up_attempt(s, dlxi_exchange_on_frame(s->exchange, frame, error), error);
    default:
        return DLX_OK;
    }
}

void dlxi_sync_keepalive(void *context) {
    dlx_sync *s = context;
    dlxi_site_keep_alive(s->site, dlxi_sync_now_ms());
    send_control(s);
}

void *dlxi_sync_thread(void *context) {
    dlx_sync *s = context;
    dlx_error error;
    while (take_requests(s)) {
        dlx_status status = DLX_OK;
        if (s->site->phase == DLXI_SITE_RUNNING)
            status = give_up_attempt(s, poll_exchange(s, &error), &error);
        send_control(s);
        uint32_t peer;
        dlxi_frame frame;
        if (status == DLX_OK)
            status = s->link->op->receive(s->link, DLXI_SYNC_TICK_MS, &peer, &frame, &error);
        /* all that is there, before the coordinator is found silent; but no peer may keep this
         * thread to itself */
        for (int i = 0; status == DLX_OK && i < FRAMES_AT_ONCE; i++) {
            status = on_frame(s, peer, &frame, &error);
            if (status == DLX_OK) status = s->link->op->receive(s->link, 0, &peer, &frame, &error);
        }
        if (status == DLX_OK || dlx_status_class_of(status) == DLX_CLASS_RETRY)
            status = act(s, dlxi_site_on_tick(s->site, dlxi_sync_now_ms()), &error);
        if (status != DLX_OK && dlx_status_class_of(status) != DLX_CLASS_RETRY &&
            s->site->phase != DLXI_SITE_DONE)
            fail_telling(s, &error);
    }
    send_control(s); /* last words; the link gives them time when it closes */
    return NULL;
}
