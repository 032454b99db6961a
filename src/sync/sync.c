/* SPDX-License-Identifier: Apache-2.0 */
/* The training thread's calls: open and close, steps, and what a caller may ask. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "member/lease.h"
#include "sync/sync_internal.h"

static const char left_early[] = "it left before the run's end";

static bool is_interrupted(const dlx_sync *s) {
    return s->interrupted || dlxi_flag_is_set(s->settings.interrupted);
}

/* ---- open and close -------------------------------------------------------------------------- */

static void request(dlx_sync *s, bool *flag) {
    pthread_mutex_lock(&s->mutex);
    *flag = true;
    pthread_mutex_unlock(&s->mutex);
    s->link->op->wake(s->link);
}

/* Whether *flag, a failure, or an interrupt is there. The mutex is held. */
static bool has_news(const dlx_sync *s, const bool *flag) {
    return *flag || s->failure.status != DLX_OK || s->ended || is_interrupted(s);
}

/* Waits for news, or a tick: interrupts come without a signal on the condition. The mutex is held.
 */
static void wait_a_tick(dlx_sync *s, const bool *flag) {
    if (has_news(s, flag)) return;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += DLXI_SYNC_TICK_MS * 1000000L;
    if (until.tv_nsec >= 1000000000L) until.tv_sec++, until.tv_nsec -= 1000000000L;
    pthread_cond_timedwait(&s->changed, &s->mutex, &until);
}

/* Waits until *flag, a failure (returned), or an interrupt. */
static dlx_status wait_for(dlx_sync *s, const bool *flag, double *waited_s, dlx_error *error) {
    double start_s = dlxi_clock_s();
    pthread_mutex_lock(&s->mutex);
    while (!has_news(s, flag)) wait_a_tick(s, flag);
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
    hello->rank = settings->rank;
    hello->ranks = settings->ranks;
    hello->tensors_hash = dlxi_shard_tensors_hash(s->shard);
    hello->anchor_hash = dlxi_shard_anchor_hash(s->shard);
    hello->windows = settings->windows;
    hello->tokens_per_window = settings->tokens_per_window;
    hello->data_hash = settings->data_hash;
    hello->lease_windows = settings->lease_windows;
    if (settings->shared_text != NULL)
        dlxi_text_copy(hello->shared_text, sizeof hello->shared_text, settings->shared_text);
    dlx_status status =
        dlxi_site_open(&s->site, hello, settings->timeout_ms, dlxi_sync_now_ms(), error);
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
    st->factor_rank_mean = s->shard->settings.factor_rank;
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        st->low_rank_tensors += t->low_rank;
        st->plain_tensors += !t->low_rank;
        if (t->low_rank) st->low_rank_parameters += (uint64_t)(t->rows * t->cols);
    }
    if (st->low_rank_tensors == 0) st->factor_rank_mean = 0;
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
    dlxi_exchange_set_rank(s->exchange, settings->rank);
    dlxi_exchange_set_keepalive(s->exchange, dlxi_sync_keepalive, s);
    DLX_TRY_OUT(dlxi_agreement_open(&s->agreement, settings->rank, settings->ranks,
                                    settings->gather, settings->gather_context, error));
    DLX_TRY_OUT(open_site(s, error));
    s->settings.shared_text = NULL; /* borrowed for hello only */
    set_first_statistics(s);
    if (pthread_create(&s->thread, NULL, dlxi_sync_thread, s) != 0)
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

dlx_status dlxi_sync_failure(dlx_sync *s, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    dlx_error failure = s->failure;
    pthread_mutex_unlock(&s->mutex);
    if (failure.status != DLX_OK && error != NULL) *error = failure;
    return failure.status;
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
    dlxi_agreement_close(&s->agreement);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    pthread_mutex_destroy(&s->anchor_mutex);
    free(s);
    *sync = NULL;
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* H of the next round, the same on all ranks: they are at the same step, and none has an exchange
 * under way. */
static dlx_status next_inner_steps(dlx_sync *s, uint32_t *inner_steps, dlx_error *error) {
    const dlxi_adapt *adapt = &s->shard->settings.adapt;
    *inner_steps = adapt->inner_steps;
    if (s->settings.ranks == 1 || adapt->kind == DLX_ADAPTATION_OFF) return DLX_OK;
    dlxi_adapt_sums sums = {0};
    for (size_t i = 0; i < s->shard->count; i++) {
        if (!s->shard->tensors[i].low_rank) continue;
        dlxi_adapt_sums one = dlxi_adapt_sum(&s->shard->tensors[i].adapt, 1);
        sums.weighted_ranks += one.weighted_ranks;
        sums.parameters += one.parameters;
    }
    dlxi_adapt own = *adapt;
    /* a rank without tensors needs no time at all */
    if (s->shard->count == 0) own.inner_steps = own.inner_steps_min;
    return dlxi_agree_on_inner_steps(&s->agreement, inner_steps, &own, sums,
                                     s->shard->settings.factor_rank, error);
}

/* The round's M is in place: the exchange thread's turn. */
static dlx_status submit_to_exchange(dlx_sync *s, double norm, dlx_error *error) {
    uint32_t next;
    DLX_TRY(next_inner_steps(s, &next, error));
    dlxi_ready ready = {
        .tokens = s->round_tokens,
        .windows_used = (uint32_t)s->windows_taken,
        .norm = norm,
        .anchor_hash = s->settings.shard.overlap == DLX_OVERLAP_ALLREDUCE
                           ? 0
                           : dlxi_shard_anchor_hash(s->shard),
        .step_ns = s->round.steps == 0 ? 0 : (uint64_t)(s->round_step_s * 1e9 / s->round.steps)};
    s->flying_tokens = s->round_tokens;
    s->round_tokens = 0;
    s->windows_taken = 0;
    s->round_step_s = 0;
    double inner_steps = fmax(1, round(s->pace * next));
    s->round.inner_steps_max =
        (uint32_t)fmax(inner_steps, round(s->pace * s->settings.inner_steps_max));
    dlxi_round_on_submitted(&s->round, (uint32_t)inner_steps);
    pthread_mutex_lock(&s->mutex);
    s->statistics.update_norm = norm;
    s->statistics.inner_steps = s->round.inner_steps;
    s->ready = ready;
    s->submitted = true;
    s->ready_wanted = true;
    s->committed = false;
    pthread_mutex_unlock(&s->mutex);
    s->link->op->wake(s->link);
    return DLX_OK;
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

/* Where the site stands: committed on all its ranks, or failed on one of them, which fails the call
 * on all. */
static dlx_status check(dlx_sync *s, bool *committed, bool *finished, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    dlx_error failure = s->failure;
    *committed = s->committed;
    bool last = s->commit.finished;
    pthread_mutex_unlock(&s->mutex);
    if (failure.status == DLX_OK && is_interrupted(s))
        dlxi_error_set(&failure, DLX_INTERRUPTED, "interrupted");
    if (s->settings.ranks > 1) {
        dlx_error agreed; /* for a gather that fails without a word */
        dlxi_error_set(&agreed, DLX_SYSTEM, "the ranks of this site can't reach each other");
        dlx_status status = dlxi_agree_on_state(&s->agreement, committed, &failure, &agreed);
        if (status != DLX_OK && failure.status == DLX_OK) {
            failure = agreed;
            failure.status = status;
            leave(s, status, agreed.message);
        }
    }
    *finished = *committed && last;
    if (failure.status != DLX_OK && error != NULL) *error = failure;
    return failure.status;
}

static dlx_status wait_for_commit(dlx_sync *s, double *waited_s, dlx_error *error) {
    if (s->settings.ranks == 1) return wait_for(s, &s->committed, waited_s, error);
    double start_s = dlxi_clock_s();
    dlx_status status = DLX_OK;
    /* in ticks, so that a rank which can't go on never waits long to say so */
    for (bool committed = false, finished; status == DLX_OK && !committed;) {
        pthread_mutex_lock(&s->mutex);
        wait_a_tick(s, &s->committed);
        pthread_mutex_unlock(&s->mutex);
        status = check(s, &committed, &finished, error);
    }
    *waited_s += dlxi_clock_s() - start_s;
    return status;
}

static dlx_status submit(dlx_sync *s, bool with_apply, dlx_step *step, dlx_error *error) {
    double norm;
    step->submitted = true;
    if (!with_apply) {
        dlxi_shard_submit(s->shard, &norm);
    } else {
        if (s->round.overlap == DLX_OVERLAP_EAGER)
            dlxi_shard_submit_eager(s->shard, dlxi_exchange_weight(s->exchange), &norm);
        else
            dlxi_shard_submit_delayed(s->shard, &norm);
        step->applied = true;
        step->exchange_steps = s->round.steps_since;
        settle(s);
    }
    return submit_to_exchange(s, norm, error);
}

static dlx_status proceed(dlx_sync *s, dlx_step *step, dlx_error *error) {
    while (!s->finished) {
        bool committed, finished;
        DLX_TRY(check(s, &committed, &finished, error));
        s->round.ending = dlxi_sync_tokens(s) >= s->tokens_target;
        dlxi_round_action action = dlxi_round_next(&s->round, committed);
        /* whatever was trained since then is past the run's end */
        if (finished) action = DLXI_ROUND_APPLY;
        switch (action) {
        case DLXI_ROUND_TRAIN:
            return DLX_OK;
        case DLXI_ROUND_WAIT:
            DLX_TRY(wait_for_commit(s, &step->waited_s, error));
            break;
        case DLXI_ROUND_APPLY:
            step->exchange_steps = s->round.steps_since;
            dlxi_shard_apply(s->shard, finished);
            step->applied = true;
            settle(s);
            break;
        case DLXI_ROUND_SUBMIT:
            DLX_TRY(submit(s, false, step, error));
            break;
        case DLXI_ROUND_SUBMIT_AND_APPLY:
            DLX_TRY(submit(s, true, step, error));
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
    if (s->finished && s->round.overlap != DLX_OVERLAP_ALLREDUCE)
        DLX_FAIL(error, STATE, "the run is finished");
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

dlx_status dlxi_sync_gradients(dlx_sync *s, float *const *gradients, uint64_t tokens,
                               double *waited_s, dlx_error *error) {
    if (s->round.overlap != DLX_OVERLAP_ALLREDUCE)
        DLX_FAIL(error, STATE,
                 "gradients are exchanged under overlap allreduce only; call dlx_sync_step");
    if (s->finished) DLX_FAIL(error, STATE, "the run is finished");
    double sum = 0, waited = 0;
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        memcpy(t->carried, gradients[i], (size_t)(t->rows * t->cols) * sizeof(float));
        for (int64_t k = 0; k < t->rows * t->cols; k++)
            sum += (double)t->carried[k] * (double)t->carried[k];
    }
    s->round_tokens = tokens;
    DLX_TRY(submit_to_exchange(s, sqrt(sum), error));
    DLX_TRY(wait_for_commit(s, &waited, error));
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        memcpy(gradients[i], t->carried, (size_t)(t->rows * t->cols) * sizeof(float));
    }
    settle(s);
    if (waited_s != NULL) *waited_s = waited;
    return DLX_OK;
}

/* ---- the rest -------------------------------------------------------------------------------- */

dlx_status dlxi_sync_windows(dlx_sync *s, uint64_t *positions, uint32_t count, dlx_error *error) {
    pthread_mutex_lock(&s->mutex);
    const dlxi_lease *lease = &s->leases[s->round.number % DLXI_SYNC_LEASES];
    uint64_t leased = lease->round == s->round.number ? dlxi_lease_windows(lease) : 0;
    bool enough = s->windows_taken <= leased && count <= leased - s->windows_taken;
    for (uint32_t i = 0; enough && i < count; i++)
        positions[i] = dlxi_lease_position(lease, s->windows_taken + i);
    pthread_mutex_unlock(&s->mutex);
    if (!enough)
        DLX_FAIL(error, STATE, "the lease of round %llu has %llu windows left, not %u",
                 (unsigned long long)s->round.number,
                 (unsigned long long)(leased - s->windows_taken), count);
    s->windows_taken += count;
    return DLX_OK;
}

dlx_status dlxi_sync_report(dlx_sync *s, const char *text, dlx_error *error) {
    if (!s->finished) DLX_FAIL(error, STATE, "the run is not finished");
    if (s->reported) DLX_FAIL(error, STATE, "the run has this site's report already");
    if ((s->report_text = strdup(text)) == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for a report");
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
    /* before the first commit: all alike */
    double share = s->run_share > 0 ? s->run_share : s->site_count;
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

/* `allreduce`: the parameters are what all sites have in common; θ stays where the run started
 * until it ends. */
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

void dlxi_sync_anchor_hashes(const dlx_sync *s, uint64_t *dst) {
    /* a lock changes nothing that shows */
    pthread_mutex_t *mutex = (pthread_mutex_t *)(uintptr_t)&s->anchor_mutex;
    pthread_mutex_lock(mutex);
    for (size_t i = 0; i < s->shard->count; i++) {
        const dlxi_shard_tensor *t = &s->shard->tensors[i];
        dst[i] = holds_no_anchor(s)
                     ? dlxi_hash(t->parameter, (size_t)(t->rows * t->cols) * sizeof(float), t->id)
                     : t->anchor_hash;
    }
    pthread_mutex_unlock(mutex);
}

uint64_t dlxi_sync_take_anchor(dlx_sync *s) {
    pthread_mutex_lock(&s->anchor_mutex);
    if (!holds_no_anchor(s)) dlxi_shard_apply(s->shard, true);
    uint64_t rounds = s->anchor_rounds;
    pthread_mutex_unlock(&s->anchor_mutex);
    return rounds;
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
