#include "sync/sync.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/flag.h"
#include "base/memory.h"
#include "base/panic.h"
#include "member/lease.h"
#include "member/site.h"
#include "outer/round.h"
#include "sync/exchange.h"

enum { TICK_MS = 100, LEASES = 4, FRAMES_AT_ONCE = 256, ANCHOR_GROUP = 64 /* values a "group" of an ANCHOR frame */ };

static const char left_early[] = "it left before the run's end";

struct dlx_sync {
    dlxi_shard *shard;
    dlxi_sync_settings settings;

    /* training thread */
    dlxi_round round;
    double outside_since_s;  /* when the last call returned */
    double round_step_s;     /* time spent outside, i.e. training, in the present round */
    uint64_t round_tokens;   /* trained on in the present round */
    uint64_t flying_tokens;  /* of the round that is handed out and not applied */
    uint64_t applied_tokens; /* committed, as of the last apply */
    double run_share;        /* the run's tokens to one of this site's, as of the last apply */
    uint64_t windows_taken;  /* of the present round's lease */
    double pace;             /* rounds from now on last so many times H */
    bool finished, reported;

    pthread_t thread;
    bool thread_started;
    atomic_bool interrupted;

    /* both, under the mutex */
    pthread_mutex_t anchor_mutex; /* held while θ changes */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool joined;
    bool handed_out; /* M belongs to the exchange thread */
    bool ready_wanted, committed, report_wanted, quit, ended;
    dlxi_ready ready;
    dlxi_commit commit;
    uint64_t view_tokens, own_tokens; /* of the last committed round: all members', and this site's */
    dlx_error failure;                /* status OK while all is well */
    dlxi_lease leases[LEASES];        /* of round n at n mod LEASES */
    uint64_t tokens_target;
    uint32_t site_index, site_count;
    char *report_text;
    dlx_statistics statistics;

    /* exchange thread */
    dlxi_link *link;
    dlxi_site *site;
    dlxi_exchange *exchange;
    bool staged_told;
    int64_t begun_ns;
    uint64_t exchange_ns, exchange_bytes;
    struct {
        size_t tensor;
        int64_t value;
        bool active;
    } anchor_cursor[DLXI_SITES_MAX]; /* θ on its way to a site that starts elsewhere */
    int64_t anchor_values_missing;
};

static int64_t now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

static bool is_interrupted(const dlx_sync *s) {
    return s->interrupted || dlxi_flag_is_set(s->settings.interrupted);
}

/* ---- exchange thread: endings ---------------------------------------------------------------------------------- */

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

/* ---- exchange thread: joining ---------------------------------------------------------------------------------- */

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
            status = s->link->op->listen(s->link, w->site, i, w->members[i].name, w->members[i].public_key,
                                         endpoints->endpoint[i], error);
    if (status == DLX_OK) dlxi_site_on_listening(s->site, endpoints);
    free(endpoints);
    pthread_mutex_lock(&s->mutex);
    s->site_index = w->site;
    s->site_count = w->sites;
    s->tokens_target = w->tokens_target;
    s->leases[1 % LEASES] = w->leases[0];
    s->leases[2 % LEASES] = w->leases[1];
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

/* The next piece of θ for a site that starts elsewhere; false when it has all, or its queue is full. */
static bool send_anchor_piece(dlx_sync *s, uint16_t to) {
    if (!s->anchor_cursor[to].active) return false;
    const dlxi_shard_tensor *t = &s->shard->tensors[s->anchor_cursor[to].tensor];
    int64_t left = t->rows * t->cols - s->anchor_cursor[to].value;
    int64_t most = DLXI_FRAME_PAYLOAD_MAX / (int64_t)sizeof(float) / ANCHOR_GROUP * ANCHOR_GROUP;
    int64_t count = left < most ? left : most;
    dlxi_frame frame = {.kind = DLXI_FRAME_ANCHOR,
                        .term = s->site->term,
                        .site = s->site->index,
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
    int64_t at = (int64_t)frame->offset_groups * ANCHOR_GROUP, count = frame->payload_bytes / sizeof(float);
    const dlxi_shard_tensor *t = frame->tensor < s->shard->count ? &s->shard->tensors[frame->tensor] : NULL;
    if (frame->site != s->site->welcome.anchor_source || t == NULL || frame->payload_bytes % sizeof(float) != 0 ||
        at + count > t->rows * t->cols || count > s->anchor_values_missing)
        DLX_FAIL(error, DATA, "site %u sent starting parameters that do not fit this model", frame->site);
    memcpy(t->anchor + at, frame->payload, frame->payload_bytes);
    s->anchor_values_missing -= count;
    if (s->anchor_values_missing > 0) return DLX_OK;
    dlxi_shard_rehash(s->shard);
    dlxi_shard_apply(s->shard, true); /* the training thread still waits in open */
    on_joined(s);
    return DLX_OK;
}

/* ---- exchange thread: rounds ----------------------------------------------------------------------------------- */

static dlx_status on_begin(dlx_sync *s, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    bool mine = s->handed_out;
    s->statistics.attempts++;
    pthread_mutex_unlock(&s->mutex);
    if (!mine) DLX_FAIL(error, DATA, "the coordinator began a round that this site has not handed out");
    s->begun_ns = dlxi_clock_ns();
    s->staged_told = false;
    s->exchange_bytes = dlxi_shard_exchange_bytes(s->shard, 0);
    return dlxi_exchange_begin(s->exchange, &s->site->view, s->site->index, s->site->term, s->site->round,
                               s->site->attempt, error);
}

static void on_commit(dlx_sync *s) {
    pthread_mutex_lock(&s->anchor_mutex);
    dlxi_exchange_commit(s->exchange);
    pthread_mutex_unlock(&s->anchor_mutex);
    s->exchange_ns = (uint64_t)(dlxi_clock_ns() - s->begun_ns);
    double ranks = 0, parameters = 0;
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        if (!t->low_rank) continue;
        ranks += (double)t->adapt.parameters * t->adapt.rank;
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
    s->leases[s->commit.lease.round % LEASES] = s->commit.lease;
    s->committed = true;
    s->handed_out = false;
    dlx_statistics *st = &s->statistics;
    st->rounds++;
    st->committed_tokens = s->commit.committed_tokens;
    st->round_bytes = s->exchange_bytes;
    st->payload_bytes += s->exchange_bytes;
    st->exchange_s = (double)s->exchange_ns * 1e-9;
    st->exchange_total_s += st->exchange_s;
    st->rank_mean = parameters > 0 ? ranks / parameters : 0;
    st->anchor_hash = dlxi_shard_anchor_hash(s->shard);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

/* A malformed frame ends the attempt, not the run: the next one starts from M, which is untouched. What is staged is
 * promised, and can't be given up. Returns what remains of `status`. */
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

/* ---- exchange thread: the loop --------------------------------------------------------------------------------- */

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
    if (peer == DLXI_SITE_COORDINATOR) return act(s, dlxi_site_on_frame(s->site, frame, now_ms()), error);
    if (frame->site != peer || frame->rank != 0) DLX_FAIL(error, DATA, "site %u speaks for site %u", peer, frame->site);
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

static void on_breath(void *context) {
    dlx_sync *s = context;
    dlxi_site_keep_alive(s->site, now_ms());
    send_control(s);
}

static void *exchange_thread(void *context) {
    dlx_sync *s = context;
    dlx_error error;
    while (take_requests(s)) {
        dlx_status status = DLX_OK;
        if (s->site->phase == DLXI_SITE_RUNNING) status = give_up_attempt(s, poll_exchange(s, &error), &error);
        send_control(s);
        uint32_t peer;
        dlxi_frame frame;
        if (status == DLX_OK) status = s->link->op->receive(s->link, TICK_MS, &peer, &frame, &error);
        /* all that is there, before the coordinator is found silent; but no peer may keep this thread to itself */
        for (int i = 0; status == DLX_OK && i < FRAMES_AT_ONCE; i++) {
            status = on_frame(s, peer, &frame, &error);
            if (status == DLX_OK) status = s->link->op->receive(s->link, 0, &peer, &frame, &error);
        }
        if (status == DLX_OK || dlx_status_class_of(status) == DLX_CLASS_RETRY)
            status = act(s, dlxi_site_on_tick(s->site, now_ms()), &error);
        if (status != DLX_OK && dlx_status_class_of(status) != DLX_CLASS_RETRY && s->site->phase != DLXI_SITE_DONE)
            fail_telling(s, &error);
    }
    send_control(s); /* last words; the link gives them time when it closes */
    return NULL;
}

/* ---- training thread: open and close --------------------------------------------------------------------------- */

static void request(dlx_sync *s, bool *flag) {
    pthread_mutex_lock(&s->mutex);
    *flag = true;
    pthread_mutex_unlock(&s->mutex);
    s->link->op->wake(s->link);
}

/* Waits until *flag, a failure (returned), or an interrupt. */
static dlx_status wait_for(dlx_sync *s, const bool *flag, double *waited_s, dlx_error *error) {
    double start_s = dlxi_clock_s();
    pthread_mutex_lock(&s->mutex);
    while (!*flag && s->failure.status == DLX_OK && !s->ended && !is_interrupted(s)) {
        struct timespec until; /* interrupts come without a signal on the condition */
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += TICK_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) until.tv_sec++, until.tv_nsec -= 1000000000L;
        pthread_cond_timedwait(&s->changed, &s->mutex, &until);
    }
    bool there = *flag;
    dlx_error failure = s->failure;
    pthread_mutex_unlock(&s->mutex);
    if (waited_s != NULL) *waited_s += dlxi_clock_s() - start_s;
    if (there) return DLX_OK;
    if (failure.status != DLX_OK) {
        if (error != NULL) *error = failure;
        return failure.status;
    }
    if (is_interrupted(s)) DLX_FAIL(error, INTERRUPTED, "interrupted");
    DLX_FAIL(error, STATE, "the run is over");
}

static dlx_status open_site(dlx_sync *s, dlx_error *error) {
    const dlxi_sync_settings *settings = &s->settings;
    dlxi_hello *hello;
    DLX_TRY(DLXI_NEW(&hello, 1, error));
    dlxi_text_copy(hello->site, sizeof hello->site, settings->site);
    hello->ranks = 1;
    hello->tensors_hash = dlxi_shard_tensors_hash(s->shard);
    hello->anchor_hash = dlxi_shard_anchor_hash(s->shard);
    hello->windows = settings->windows;
    hello->tokens_per_window = settings->tokens_per_window;
    hello->data_hash = settings->data_hash;
    hello->lease_windows = settings->lease_windows;
    if (settings->shared_text != NULL)
        dlxi_text_copy(hello->shared_text, sizeof hello->shared_text, settings->shared_text);
    dlx_status status = dlxi_site_open(&s->site, hello, settings->timeout_ms, now_ms(), error);
    free(hello);
    return status;
}

static void set_first_statistics(dlx_sync *s) {
    dlx_statistics *st = &s->statistics;
    st->raw_bytes = (uint64_t)dlxi_shard_parameters(s->shard) * sizeof(float);
    st->outer_learning_rate = (double)s->shard->settings.learning_rate;
    st->outer_momentum = (double)s->shard->settings.momentum;
    st->inner_steps = s->round.inner_steps;
    st->anchor_hash = dlxi_shard_anchor_hash(s->shard);
    st->rank_mean = s->shard->settings.rank_columns;
    for (size_t i = 0; i < s->shard->count; i++) {
        if (s->shard->tensors[i].low_rank)
            st->low_rank_tensors++;
        else
            st->plain_tensors++;
    }
    if (st->low_rank_tensors == 0) st->rank_mean = 0;
}

dlx_status dlxi_sync_open(dlx_sync **out, const dlxi_sync_settings *settings, dlxi_link *link,
                          const dlx_tensor *tensors, size_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlx_sync *s = NULL;
    *out = NULL;
    status = DLXI_NEW(&s, 1, error);
    if (status != DLX_OK) {
        dlxi_link_close(&link);
        return status;
    }
    s->link = link;
    s->settings = *settings;
    s->pace = 1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->anchor_mutex, NULL);
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->round = (dlxi_round){.overlap = settings->shard.overlap,
                            .inner_steps = settings->shard.adapt.inner_steps,
                            .inner_steps_max = settings->inner_steps_max,
                            .exchange_steps = settings->exchange_steps,
                            .number = 1};
    DLX_TRY_OUT(dlxi_shard_open(&s->shard, &settings->shard, tensors, count, error));
    DLX_TRY_OUT(dlxi_exchange_open(&s->exchange, s->shard, error));
    dlxi_exchange_set_breath(s->exchange, on_breath, s);
    DLX_TRY_OUT(open_site(s, error));
    s->settings.shared_text = NULL; /* borrowed for hello only */
    set_first_statistics(s);
    if (pthread_create(&s->thread, NULL, exchange_thread, s) != 0)
        DLX_FAIL_OUT(error, SYSTEM, "no thread for the exchange");
    s->thread_started = true;
    DLX_TRY_OUT(wait_for(s, &s->joined, NULL, error));
    s->outside_since_s = dlxi_clock_s();
    *out = s;
    return DLX_OK;
out:
    dlxi_sync_close(&s);
    return status;
}

/* What the others will be told, unless the run has failed already. */
static void leave(dlx_sync *s, dlx_status status, const char *reason) {
    dlx_error why;
    dlxi_error_set(&why, status, "%s", reason);
    pthread_mutex_lock(&s->mutex);
    if (s->failure.status == DLX_OK) s->failure = why;
    pthread_mutex_unlock(&s->mutex);
}

void dlxi_sync_fail(dlx_sync *s, const char *reason) {
    leave(s, DLX_PEER_LOST, reason != NULL ? reason : left_early);
}

void dlxi_sync_close(dlx_sync **sync) {
    dlx_sync *s = *sync;
    if (s == NULL) return;
    if (s->thread_started) {
        if (s->finished && !s->reported)
            (void)dlxi_sync_report(s, "", NULL);
        else if (!s->finished && is_interrupted(s))
            leave(s, DLX_INTERRUPTED, "interrupted");
        else if (!s->finished)
            leave(s, DLX_PEER_LOST, left_early);
        request(s, &s->quit);
        pthread_join(s->thread, NULL);
    }
    free(s->report_text);
    dlxi_site_close(&s->site);
    dlxi_exchange_close(&s->exchange);
    dlxi_shard_close(&s->shard);
    dlxi_link_close(&s->link);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    pthread_mutex_destroy(&s->anchor_mutex);
    free(s);
    *sync = NULL;
}

/* ---- training thread: steps ------------------------------------------------------------------------------------ */

/* The round's M is in place: the exchange thread's turn. */
static void hand_over(dlx_sync *s, double norm) {
    dlxi_ready ready = {.tokens = s->round_tokens,
                        .windows_used = (uint32_t)s->windows_taken,
                        .norm = norm,
                        .anchor_hash =
                            s->settings.shard.overlap == DLX_OVERLAP_ALLREDUCE ? 0 : dlxi_shard_anchor_hash(s->shard),
                        .step_ns = s->round.steps == 0 ? 0 : (uint64_t)(s->round_step_s * 1e9 / s->round.steps)};
    s->flying_tokens = s->round_tokens;
    s->round_tokens = 0;
    s->windows_taken = 0;
    s->round_step_s = 0;
    double inner_steps = fmax(1, round(s->pace * s->shard->settings.adapt.inner_steps));
    s->round.inner_steps_max = (uint32_t)fmax(inner_steps, round(s->pace * s->settings.inner_steps_max));
    dlxi_round_on_handed_out(&s->round, (uint32_t)inner_steps);
    pthread_mutex_lock(&s->mutex);
    s->statistics.update_norm = norm;
    s->statistics.inner_steps = s->round.inner_steps;
    s->ready = ready;
    s->handed_out = true;
    s->ready_wanted = true;
    s->committed = false;
    pthread_mutex_unlock(&s->mutex);
    s->link->op->wake(s->link);
}

/* The committed round takes effect for the training thread. */
static void settle(dlx_sync *s) {
    pthread_mutex_lock(&s->mutex);
    s->applied_tokens = s->commit.committed_tokens;
    if (s->own_tokens > 0) s->run_share = (double)s->view_tokens / (double)s->own_tokens;
    s->finished = s->commit.finished;
    s->committed = false;
    pthread_mutex_unlock(&s->mutex);
    s->flying_tokens = 0;
    dlxi_round_on_applied(&s->round);
}

static dlx_status check(dlx_sync *s, bool *committed, bool *finished, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    dlx_error failure = s->failure;
    *committed = s->committed;
    *finished = s->committed && s->commit.finished;
    pthread_mutex_unlock(&s->mutex);
    if (failure.status != DLX_OK) {
        if (error != NULL) *error = failure;
        return failure.status;
    }
    if (is_interrupted(s)) DLX_FAIL(error, INTERRUPTED, "interrupted");
    return DLX_OK;
}

static void hand_out(dlx_sync *s, bool with_apply, dlx_step *step) {
    double norm;
    step->handed_out = true;
    if (!with_apply) {
        dlxi_shard_hand_out(s->shard, &norm);
    } else {
        if (s->round.overlap == DLX_OVERLAP_EAGER)
            dlxi_shard_hand_out_eager(s->shard, dlxi_exchange_weight(s->exchange), &norm);
        else
            dlxi_shard_hand_out_delayed(s->shard, &norm);
        step->applied = true;
        step->exchange_steps = s->round.steps_since;
        settle(s);
    }
    hand_over(s, norm);
}

static dlx_status proceed(dlx_sync *s, dlx_step *step, dlx_error *error) {
    while (!s->finished) {
        bool committed, finished;
        DLX_TRY(check(s, &committed, &finished, error));
        s->round.ending = dlxi_sync_tokens(s) >= s->tokens_target;
        dlxi_round_action action = dlxi_round_next(&s->round, committed);
        if (finished) action = DLXI_ROUND_APPLY; /* whatever was trained since then is past the run's end */
        switch (action) {
        case DLXI_ROUND_TRAIN:
            return DLX_OK;
        case DLXI_ROUND_WAIT:
            DLX_TRY(wait_for(s, &s->committed, &step->waited_s, error));
            break;
        case DLXI_ROUND_APPLY:
            step->exchange_steps = s->round.steps_since;
            dlxi_shard_apply(s->shard, finished);
            step->applied = true;
            settle(s);
            break;
        case DLXI_ROUND_HAND_OUT:
            hand_out(s, false, step);
            break;
        case DLXI_ROUND_HAND_OUT_AND_APPLY:
            hand_out(s, true, step);
            break;
        }
    }
    return DLX_OK;
}

static void finish_allreduce(dlx_sync *s) {
    for (size_t i = 0; i < s->shard->count; i++) {
        dlxi_shard_tensor *t = &s->shard->tensors[i];
        memcpy(t->anchor, t->parameter, (size_t)(t->rows * t->cols) * sizeof(float));
    }
    dlxi_shard_rehash(s->shard);
    pthread_mutex_lock(&s->mutex);
    s->statistics.anchor_hash = dlxi_shard_anchor_hash(s->shard);
    pthread_mutex_unlock(&s->mutex);
}

dlx_status dlxi_sync_step(dlx_sync *s, uint64_t tokens, dlx_step *step, dlx_error *error) {
    dlx_step unwanted;
    if (step == NULL) step = &unwanted;
    *step = (dlx_step){0};
    if (s->finished && s->round.overlap != DLX_OVERLAP_ALLREDUCE) DLX_FAIL(error, STATE, "the run is finished");
    dlx_status status = DLX_OK;
    if (s->round.overlap == DLX_OVERLAP_ALLREDUCE) {
        if (s->finished) finish_allreduce(s);
    } else {
        s->round_step_s += dlxi_clock_s() - s->outside_since_s;
        s->round_tokens += tokens;
        dlxi_round_on_step(&s->round);
        status = proceed(s, step, error);
    }
    step->finished = s->finished;
    step->round = s->round.number;
    step->inner_steps = s->round.inner_steps;
    step->step_in_round = s->round.steps;
    s->outside_since_s = dlxi_clock_s();
    return status;
}

dlx_status dlxi_sync_gradients(dlx_sync *s, float *const *gradients, uint64_t tokens, double *waited_s,
                               dlx_error *error) {
    if (s->round.overlap != DLX_OVERLAP_ALLREDUCE)
        DLX_FAIL(error, STATE, "gradients are exchanged under overlap allreduce only; call dlx_sync_step");
    if (s->finished) DLX_FAIL(error, STATE, "the run is finished");
    double sum = 0, waited = 0;
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        memcpy(t->carried, gradients[i], (size_t)(t->rows * t->cols) * sizeof(float));
        for (int64_t k = 0; k < t->rows * t->cols; k++) sum += (double)t->carried[k] * (double)t->carried[k];
    }
    s->round_tokens = tokens;
    hand_over(s, sqrt(sum));
    DLX_TRY(wait_for(s, &s->committed, &waited, error));
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        memcpy(gradients[i], t->carried, (size_t)(t->rows * t->cols) * sizeof(float));
    }
    settle(s);
    if (waited_s != NULL) *waited_s = waited;
    return DLX_OK;
}

/* ---- training thread: the rest --------------------------------------------------------------------------------- */

dlx_status dlxi_sync_windows(dlx_sync *s, uint64_t *positions, uint32_t count, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    const dlxi_lease *lease = &s->leases[s->round.number % LEASES];
    uint64_t leased = lease->round == s->round.number ? dlxi_lease_windows(lease) : 0;
    bool enough = s->windows_taken <= leased && count <= leased - s->windows_taken;
    for (uint32_t i = 0; enough && i < count; i++) positions[i] = dlxi_lease_position(lease, s->windows_taken + i);
    pthread_mutex_unlock(&s->mutex);
    if (!enough)
        DLX_FAIL(error, STATE, "the lease of round %llu has %llu windows left, not %u",
                 (unsigned long long)s->round.number, (unsigned long long)(leased - s->windows_taken), count);
    s->windows_taken += count;
    return DLX_OK;
}

dlx_status dlxi_sync_report(dlx_sync *s, const char *text, dlx_error *error) {
    if (!s->finished) DLX_FAIL(error, STATE, "the run is not finished");
    if (s->reported) DLX_FAIL(error, STATE, "the run has this site's report already");
    if ((s->report_text = strdup(text)) == NULL) DLX_FAIL(error, MEMORY, "out of memory for a report");
    s->reported = true;
    request(s, &s->report_wanted);
    bool never = false;
    dlx_error why;
    dlx_status status = wait_for(s, &never, NULL, &why);
    if (status == DLX_STATE) return DLX_OK; /* the run is over, and well */
    if (error != NULL) *error = why;
    return status;
}

void dlxi_sync_pace(dlx_sync *s, double factor) {
    if (isnan(factor)) factor = 1;
    s->pace = factor > s->settings.pace_max ? s->settings.pace_max : factor >= 0.01 ? factor : 0.01;
}

uint64_t dlxi_sync_tokens(const dlx_sync *s) {
    double share = s->run_share > 0 ? s->run_share : s->site_count; /* before the first commit: all alike */
    return s->applied_tokens + (uint64_t)(share * (double)(s->flying_tokens + s->round_tokens));
}

uint64_t dlxi_sync_tokens_target(const dlx_sync *s) {
    return s->tokens_target;
}

uint32_t dlxi_sync_site_index(const dlx_sync *s) {
    return s->site_index;
}

uint32_t dlxi_sync_site_count(const dlx_sync *s) {
    return s->site_count;
}

/* `allreduce`: the parameters are what all sites have in common; θ stays where the run started until it ends. */
static bool holds_no_anchor(const dlx_sync *s) {
    return s->round.overlap == DLX_OVERLAP_ALLREDUCE;
}

void dlxi_sync_anchor(dlx_sync *s, float *const *dst) {
    pthread_mutex_lock(&s->anchor_mutex);
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        const float *anchor = holds_no_anchor(s) ? t->parameter : t->anchor;
        memcpy(dst[i], anchor, (size_t)(t->rows * t->cols) * sizeof(float));
    }
    pthread_mutex_unlock(&s->anchor_mutex);
}

void dlxi_sync_take_anchor(dlx_sync *s) {
    if (holds_no_anchor(s)) return;
    pthread_mutex_lock(&s->anchor_mutex);
    dlxi_shard_apply(s->shard, true);
    pthread_mutex_unlock(&s->anchor_mutex);
}

void dlxi_sync_statistics(dlx_sync *s, dlx_statistics *out) {
    pthread_mutex_lock(&s->mutex);
    *out = s->statistics;
    pthread_mutex_unlock(&s->mutex);
    dlxi_link_statistics link;
    dlxi_link_statistics_read(s->link, &link);
    out->wan_bytes_sent = link.bytes_sent;
    out->wan_bytes_received = link.bytes_received;
}

void dlxi_sync_interrupt(dlx_sync *s) {
    s->interrupted = true;
}
