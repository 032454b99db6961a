/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/sync_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/flag.h"
#include "base/memory.h"
#include "base/panic.h"
#include "member/lease.h"

enum { TICK_MS = 100 };

static const char left_early[] = "it left before the run's end";

static bool is_interrupted(const dlx_sync *s) {
    return s->interrupted || dlxi_flag_is_set(s->options.interrupted);
}

/* ---- requests and outcomes ------------------------------------------------------------------- */

static void ask(dlx_sync *s, const dlxi_request *request) {
    dlxi_mailbox_ask(&s->mailbox, request);
    s->link->op->wake(s->link);
}

static void lease_keep(dlx_sync *s, const dlxi_lease *lease) {
    s->leases[lease->submission % DLXI_SYNC_LEASES] = *lease;
}

static void statistics_of_commit(dlx_sync *s, const dlxi_outcome *o) {
    dlxi_adapt_sums sums = dlxi_state_adapt_sums(s->state);
    pthread_mutex_lock(&s->statistics_mutex);
    dlx_statistics *st = &s->statistics;
    st->rounds = s->state->rounds;
    st->committed_tokens = o->commit.committed_tokens;
    st->round_bytes = o->exchange_bytes;
    st->payload_bytes += o->exchange_bytes;
    st->exchange_s = (double)o->exchange_ns * 1e-9;
    st->exchange_total_s += st->exchange_s;
    st->factor_rank_mean =
        sums.parameters > 0 ? (double)sums.weighted_ranks / (double)sums.parameters : 0;
    st->anchor_hash = dlxi_state_anchor_hash(s->state);
    st->weight = (double)o->weight;
    st->submitted_norm = sqrt(o->diagnosis.submitted);
    st->unsent_norm = sqrt(o->diagnosis.unsent);
    st->mean_norm = sqrt(o->diagnosis.mean);
    st->momentum_norm = sqrt(o->diagnosis.momentum);
    st->agreement =
        dlxi_cosine(o->diagnosis.submitted_by_mean, o->diagnosis.submitted, o->diagnosis.mean);
    st->persistence =
        dlxi_cosine(o->diagnosis.mean_by_momentum, o->diagnosis.mean, o->diagnosis.momentum);
    pthread_mutex_unlock(&s->statistics_mutex);
}

/* Takes the outcome, if one arrives within wait_ms; and lines of other threads, in any case. */
static void outcome_take(dlx_sync *s, int wait_ms) {
    dlxi_outcome o;
    bool any = dlxi_mailbox_take(&s->mailbox, &o, wait_ms);
    dlxi_log_ring_deliver(s->log);
    if (!any) return;
    if (o.state != NULL) {
        DLXI_ASSERT(s->state == NULL);
        s->state = o.state;
    }
    if (o.joined) {
        s->last.joined = true;
        s->last.returns = o.returns;
        bool is_other = s->last.site_count != o.site_count; /* than the last view had */
        if ((s->applied_rounds == 0 && !s->last.committed) || is_other) {
            s->last.site_index = o.site_index;
            s->last.site_count = o.site_count;
            s->run_share = 0;
        }
        s->last.tokens_target = o.tokens_target;
        s->last.run_id = o.run_id;
        lease_keep(s, &o.leases[0]);
        lease_keep(s, &o.leases[1]);
    }
    if (o.committed) {
        DLXI_ASSERT(s->state != NULL && !s->last.committed);
        s->last.committed = true;
        s->last.commit = o.commit;
        s->last.view_tokens = o.view_tokens;
        s->last.own_tokens = o.own_tokens;
        s->last.weight = o.weight;
        s->last.speed = o.speed;
        s->last.member_index = o.member_index;
        s->last.member_count = o.member_count;
        lease_keep(s, &o.commit.lease);
        statistics_of_commit(s, &o);
    }
    s->last.ended = s->last.ended || o.ended;
    s->last.parts = o.parts;
    s->last.part_count = o.part_count;
    s->last.saves = o.saves;
    pthread_mutex_lock(&s->statistics_mutex);
    s->statistics.attempts = o.attempts;
    pthread_mutex_unlock(&s->statistics_mutex);
}

/* It is: why. */
static dlx_status run_over(dlx_sync *s, dlx_error *error) {
    DLX_TRY(dlxi_mailbox_failure(&s->mailbox, error));
    DLX_FAIL(error, INTERRUPTED, "interrupted");
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* A call may wait for wait_ms, in ticks. They are counted, so that the ranks of a site return
 * DLX_AGAIN at the same point, though their clocks differ. */
static void call_go_on(dlx_sync *s) {
    const uint32_t wait_ms = s->options.wait_ms, ticks = (wait_ms + TICK_MS - 1) / TICK_MS;
    s->pending = false;
    s->ticks_left = ticks > 0 ? ticks : UINT64_MAX;
    s->tick_ms = ticks > 0 ? (int)((wait_ms + ticks - 1) / ticks) : TICK_MS;
}

static void call_begin(dlx_sync *s, dlxi_call call) {
    s->call = call;
    s->step = (dlx_step){0};
    call_go_on(s);
}

/* One tick, in which it waits if it has to. False: the call has waited for long enough, and is
 * pending. */
static bool tick(dlx_sync *s, bool waits) {
    if (s->ticks_left == 0) {
        s->pending = true;
        return false;
    }
    s->ticks_left--;
    if (waits) outcome_take(s, s->tick_ms);
    return true;
}

static dlx_status wait_again(dlx_error *error) {
    DLX_FAIL(error, AGAIN, "the call waits for other sites; go on with dlx_sync_wait");
}

/* Waits until *flag, the run's end, or an interrupt. */
static dlx_status wait_for(dlx_sync *s, const bool *flag, dlx_error *error) {
    double start_s = dlxi_clock_s();
    outcome_take(s, 0);
    while (!*flag && !s->last.ended && !is_interrupted(s) && tick(s, true)) {}
    s->step.waited_s += dlxi_clock_s() - start_s;
    if (s->pending) return wait_again(error);
    if (*flag) return DLX_OK;
    DLX_TRY(dlxi_mailbox_failure(&s->mailbox, error));
    if (is_interrupted(s)) DLX_FAIL(error, INTERRUPTED, "interrupted");
    DLX_FAIL(error, STATE, "the run is over");
}

static dlx_status proceed(dlx_sync *s, dlx_error *error);

/* ---- open and close -------------------------------------------------------------------------- */

static void statistics_begin(dlx_sync *s) {
    dlx_statistics *st = &s->statistics;
    st->raw_bytes = (uint64_t)dlxi_state_parameters(s->state) * sizeof(float);
    st->outer_learning_rate = s->options.outer_learning_rate;
    st->outer_momentum = s->options.outer_momentum;
    st->outer_momentum_rate = s->options.outer_momentum_rate;
    st->inner_steps = s->round.inner_steps;
    st->rounds = s->state->rounds;
    st->committed_tokens = s->state->tokens;
    st->anchor_hash = dlxi_state_anchor_hash(s->state);
    for (size_t i = 0; i < s->state->count; i++) {
        const dlxi_state_tensor *t = &s->state->tensors[i];
        st->low_rank_tensors += t->low_rank;
        st->plain_tensors += !t->low_rank;
        if (t->low_rank) st->low_rank_parameters += (uint64_t)dlxi_state_tensor_values(t);
    }
    st->factor_rank_mean = st->low_rank_tensors > 0 ? s->options.factor_rank : 0;
}

/* Hands the state to the exchange thread. */
static dlx_status exchange_start(dlx_sync *s, dlx_error *error) {
    s->pump = (dlxi_pump){.engine = s->engine,
                          .link = s->link,
                          .mailbox = &s->mailbox,
                          .log = s->options.rank == 0 ? s->options.log : NULL,
                          .log_context = s->options.log_context};
    DLX_TRY(dlxi_pump_start(&s->pump, error));
    s->state = NULL;
    return DLX_OK;
}

/* Every site has joined: training begins at what the state has now. */
static dlx_status joined_take(dlx_sync *s, dlx_error *error) {
    if (s->last.returns) return dlxi_sync_return(s, error);
    uint64_t hash = dlxi_state_anchor_hash(s->state);
    if (hash == s->statistics.anchor_hash) return DLX_OK;
    pthread_mutex_lock(&s->statistics_mutex);
    s->statistics.anchor_hash = hash;
    pthread_mutex_unlock(&s->statistics_mutex);
    return dlxi_local_apply(s->local, s->state, true, 0, 0, error);
}

/* The submission of the interrupted run's last step, again. */
static void resubmit(dlx_sync *s) {
    if (!s->round.outstanding || s->last.committed) return;
    dlxi_request request = {.state = s->state, .submits = true, .ready = s->flying};
    s->state = NULL;
    ask(s, &request);
}

/* Waits until every site has joined; a site that resumes does what it was about to do. */
static dlx_status join(dlx_sync *s, dlx_error *error) {
    dlx_status status = DLX_OK;
    if (!s->entered) {
        DLX_TRY(wait_for(s, &s->last.joined, error));
        DLX_TRY(joined_take(s, error));
        s->entered = true;
        if (s->resumes) resubmit(s);
    }
    if (s->resumes && !s->method->averages_gradients) status = proceed(s, error);
    if (status != DLX_OK && !s->pending && dlxi_sync_is_over(s)) {
        s->unready = true; /* it can be saved again */
        status = DLX_OK;
    }
    s->outside_since_s = dlxi_clock_s();
    return status;
}

dlx_status dlxi_sync_open(dlx_sync **out, const dlx_sync_config *options, dlxi_link *link,
                          dlxi_log_ring *log, const dlx_tensor *tensors, size_t count,
                          const dlxi_origin *origin, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlx_sync *s = NULL;
    *out = NULL;
    status = DLXI_NEW(&s, 1, error);
    if (status == DLX_OK) status = dlxi_mailbox_open(&s->mailbox, error);
    if (status != DLX_OK) {
        dlxi_link_close(&link);
        dlxi_log_ring_close(&log);
        free(s);
        return status;
    }
    pthread_mutex_init(&s->statistics_mutex, NULL);
    s->link = link;
    s->log = log;
    s->options = *options;
    s->method = dlxi_method_of(options->overlap);
    s->pace = s->balance = 1;
    s->round = (dlxi_round){.when = s->method->when,
                            .inner_steps = options->inner_steps,
                            .inner_steps_max = options->inner_steps_max,
                            .exchange_steps = options->exchange_steps,
                            .number = 1};
    s->resumes = origin != NULL;
    if (s->method->averages_gradients) DLX_TRY_OUT(DLXI_NEW(&s->gradients, count, error));
    DLX_TRY_OUT(dlxi_state_open(&s->state, options, tensors, count, error));
    DLX_TRY_OUT(dlxi_local_open(&s->local, options, tensors, count, error));
    if (origin == NULL)
        DLX_TRY_OUT(dlxi_local_read(s->local, s->state, error));
    else
        DLX_TRY_OUT(dlxi_sync_restore(s, origin, error));
    DLX_TRY_OUT(dlxi_consensus_open(&s->consensus, options->rank, options->ranks, options->gather,
                                    options->gather_context, error));
    uint64_t incarnation;
    if (getrandom(&incarnation, sizeof incarnation, 0) != sizeof incarnation)
        DLX_FAIL_OUT(error, SYSTEM, "the system has no random numbers for this process's number");
    DLX_TRY_OUT(dlxi_engine_open(&s->engine, options, incarnation, s->state,
                                 dlxi_clock_ns() / 1000000, error));
    s->options.site = s->options.shared_text = NULL; /* the caller's, and read by now */
    statistics_begin(s);
    DLX_TRY_OUT(exchange_start(s, error));
    call_begin(s, DLXI_CALL_OPEN);
    status = join(s, error);
    if (status != DLX_OK && !s->pending) goto out;
    *out = s;
    return status;
out:
    dlxi_sync_close(&s);
    return status;
}

/* The others get this reason, unless the run has failed already. */
static void leave(dlx_sync *s, dlx_status status, const char *reason) {
    dlx_error why;
    dlxi_error_set(&why, status, "%s", reason);
    dlxi_mailbox_fail(&s->mailbox, &why);
}

void dlxi_sync_fail(dlx_sync *s, const char *reason) {
    leave(s, DLX_PEER_LOST, reason != NULL ? reason : left_early);
}

dlx_status dlxi_sync_failure(dlx_sync *s, dlx_error *error) {
    return dlxi_mailbox_failure(&s->mailbox, error);
}

/* The engine ends, and a state that was handed over comes back. */
static void engine_stop(dlx_sync *s) {
    dlxi_request request = {.closes = true};
    (void)dlxi_mailbox_failure(&s->mailbox, &request.why);
    if (s->pump.started) ask(s, &request);
    dlxi_pump_join(&s->pump);
    outcome_take(s, 0);
}

/* The run is over for this site, as far as it got. */
void dlxi_sync_stop(dlx_sync *s) {
    if (!s->finished && is_interrupted(s)) leave(s, DLX_INTERRUPTED, "interrupted");
    engine_stop(s);
}

bool dlxi_sync_is_over(dlx_sync *s) {
    outcome_take(s, 0);
    return s->last.ended || is_interrupted(s) || dlxi_mailbox_failure(&s->mailbox, NULL) != DLX_OK;
}

void dlxi_sync_close(dlx_sync **sync) {
    dlx_sync *s = *sync;
    if (s == NULL) return;
    dlxi_saving_end(s);
    bool failed = dlxi_mailbox_failure(&s->mailbox, NULL) != DLX_OK;
    s->options.wait_ms = 0;
    if (s->pump.started && s->finished && !s->reported && !failed)
        (void)dlxi_sync_report(s, "", NULL);
    else if (!s->finished && !is_interrupted(s))
        leave(s, DLX_PEER_LOST, left_early);
    dlxi_sync_stop(s);
    dlxi_engine_close(&s->engine);
    dlxi_state_close(&s->state);
    dlxi_local_close(&s->local);
    dlxi_link_close(&s->link);
    dlxi_log_ring_close(&s->log);
    dlxi_consensus_close(&s->consensus);
    dlxi_mailbox_close(&s->mailbox);
    pthread_mutex_destroy(&s->statistics_mutex);
    free(s->gradients);
    free(s);
    *sync = NULL;
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* H of the next round, the same on all ranks: they are at the same step, and none has an exchange
 * under way. */
static dlx_status next_inner_steps(dlx_sync *s, uint32_t *inner_steps, dlx_error *error) {
    dlxi_adapt own = s->state->adapt;
    *inner_steps = own.inner_steps;
    if (s->options.ranks == 1 || own.kind == DLX_ADAPTATION_OFF) return DLX_OK;
    if (s->state->count == 0) own.inner_steps = own.inner_steps_min; /* it exchanges nothing */
    return dlxi_consensus_inner_steps(&s->consensus, inner_steps, &own,
                                      dlxi_state_adapt_sums(s->state), s->options.factor_rank,
                                      error);
}

/* How long this site can wait for others at a round's begin without losing time: half of what
 * training has to spare until it must wait itself, and a quarter of a round at most; a tenth of the
 * round if it waits anyway. */
static uint32_t grace_ms(const dlx_sync *s, double step_s) {
    double spare_s = (s->round.inner_steps_max - (double)s->round.inner_steps) * step_s -
                     s->statistics.exchange_s;
    double grace_s = s->method->when == DLXI_WHEN_WAITED_FOR
                         ? 0.1 * s->round.steps * step_s
                         : fmin(0.5 * spare_s, 0.25 * s->round.inner_steps * step_s);
    return (uint32_t)(1000 * fmin(fmax(grace_s, 0), 86400));
}

/* The round's M is in place: the state is the engine's from here to the commit. */
static dlx_status submit_to_engine(dlx_sync *s, double norm, dlx_error *error) {
    uint32_t next;
    DLX_TRY(next_inner_steps(s, &next, error));
    double step_s = s->round.steps == 0 ? 0 : s->round_step_s / s->round.steps;
    dlxi_request request = {.state = s->state, .submits = true};
    request.ready = s->flying = (dlxi_ready){
        .tokens = s->round_tokens,
        .windows_used = (uint32_t)s->windows_taken,
        .norm = norm,
        .anchor_hash = s->method->averages_gradients ? 0 : dlxi_state_anchor_hash(s->state),
        .step_ns = (uint64_t)(step_s * 1e9),
        .grace_ms = grace_ms(s, step_s)};
    s->flying_tokens = s->round_tokens;
    s->round_tokens = 0;
    s->windows_taken = s->windows_done = 0;
    s->round_step_s = 0;
    double most = fmax(1, round(s->pace * s->options.inner_steps_max));
    double inner_steps = fmax(1, round(s->pace * next));
    if (s->options.balance) inner_steps = fmin(fmax(1, round(s->balance * inner_steps)), most);
    s->round.inner_steps_max = (uint32_t)fmax(inner_steps, most);
    dlxi_round_on_submitted(&s->round, (uint32_t)inner_steps);
    pthread_mutex_lock(&s->statistics_mutex);
    s->statistics.update_norm = norm;
    s->statistics.inner_steps = s->round.inner_steps;
    pthread_mutex_unlock(&s->statistics_mutex);
    s->state = NULL;
    ask(s, &request);
    return DLX_OK;
}

/* Towards this site's speed, in steps of at most a quarter; noise of a few per cent is left alone.
 */
static void balance_turn(dlx_sync *s) {
    enum { NOISE_PERCENT = 5 };
    const double step_max = 1.25;
    if (!s->options.balance || s->last.speed <= 0) return;
    double turn = s->last.speed / s->balance;
    if (fabs(turn - 1) * 100 < NOISE_PERCENT) return;
    s->balance *= fmin(fmax(turn, 1 / step_max), step_max);
}

/* The committed round takes effect for the training. */
static void settle(dlx_sync *s) {
    s->applied_tokens = s->last.commit.committed_tokens;
    s->applied_rounds = s->state->rounds;
    if (s->last.own_tokens > 0)
        s->run_share = (double)s->last.view_tokens / (double)s->last.own_tokens;
    s->last.site_count = s->last.member_count;
    s->last.site_index = s->last.member_index < s->last.member_count ? s->last.member_index : 0;
    balance_turn(s);
    s->finished = s->last.commit.finished;
    s->last.committed = false;
    s->flying_tokens = 0;
    dlxi_round_on_applied(&s->round);
}

/* *done ← whether it is on all ranks of this site. `failure`, with a status, is this rank's, and
 * fails the call on all. */
static dlx_status agree(dlx_sync *s, bool *done, dlx_error *failure, dlx_error *error) {
    if (s->options.ranks > 1) {
        dlx_error agreed; /* for a gather that fails without a message */
        dlxi_error_set(&agreed, DLX_SYSTEM, "the ranks of this site can't reach each other");
        dlx_status status = dlxi_consensus_state(&s->consensus, done, failure, &agreed);
        if (status != DLX_OK && failure->status == DLX_OK) {
            *failure = agreed;
            failure->status = status;
            leave(s, status, agreed.message);
        }
    }
    if (failure->status != DLX_OK && error != NULL) *error = *failure;
    return failure->status;
}

/* Where the site stands: committed on all its ranks, or failed on one of them. */
static dlx_status check(dlx_sync *s, bool *committed, bool *finished, dlx_error *error) {
    dlx_error failure = {0};
    outcome_take(s, 0);
    *committed = s->last.committed;
    if (dlxi_mailbox_failure(&s->mailbox, &failure) == DLX_OK && is_interrupted(s))
        dlxi_error_set(&failure, DLX_INTERRUPTED, "interrupted");
    DLX_TRY(agree(s, committed, &failure, error));
    *finished = *committed && s->last.commit.finished;
    return DLX_OK;
}

static dlx_status wait_for_commit(dlx_sync *s, dlx_error *error) {
    if (s->options.ranks == 1) return wait_for(s, &s->last.committed, error);
    double start_s = dlxi_clock_s();
    dlx_status status = DLX_OK;
    /* in ticks, so that a rank that can't go on soon tells the others */
    for (bool committed = false, finished; status == DLX_OK && !committed;) {
        bool waits = !s->last.committed && !s->last.ended && !is_interrupted(s);
        if (!tick(s, waits)) break;
        status = check(s, &committed, &finished, error);
    }
    s->step.waited_s += dlxi_clock_s() - start_s;
    return s->pending ? wait_again(error) : status;
}

/* Whether this submission may be in the run's last round, which has all fragments. Too early costs
 * a pass over the parameters: what of M is not exchanged waits as e does. */
static bool may_be_last(const dlx_sync *s) {
    uint64_t round = (uint64_t)(s->run_share * (double)s->round_tokens);
    if (round < s->last.view_tokens) round = s->last.view_tokens;
    return s->options.fragments == 1 || dlxi_sync_tokens(s) + 2 * round >= s->last.tokens_target;
}

static dlx_status submit(dlx_sync *s, bool applies, dlx_error *error) {
    double norm;
    s->step.submitted = true;
    dlxi_saving_end(s);
    DLX_TRY(dlxi_local_submit(s->local, s->state, may_be_last(s), applies, s->last.weight, &norm,
                              error));
    if (applies) {
        s->step.applied = true;
        s->step.exchange_steps = s->round.steps_since;
        settle(s);
    }
    return submit_to_engine(s, norm, error);
}

static dlx_status apply(dlx_sync *s, bool final, dlx_error *error) {
    s->step.exchange_steps = s->round.steps_since;
    s->step.applied = true;
    dlxi_saving_end(s);
    DLX_TRY(dlxi_local_apply(s->local, s->state, final, s->applied_rounds, s->last.weight, error));
    settle(s);
    return DLX_OK;
}

/* Until the site may train on: the same, whether a call begins or goes on. */
static dlx_status proceed(dlx_sync *s, dlx_error *error) {
    while (!s->finished) {
        bool committed, finished;
        DLX_TRY(check(s, &committed, &finished, error));
        s->round.ending = dlxi_sync_tokens(s) >= s->last.tokens_target;
        dlxi_round_action action = dlxi_round_next(&s->round, committed);
        if (finished) action = DLXI_ROUND_APPLY; /* what was trained since is past the run's end */
        switch (action) {
        case DLXI_ROUND_TRAIN:
            return DLX_OK;
        case DLXI_ROUND_WAIT:
            DLX_TRY(wait_for_commit(s, error));
            break;
        case DLXI_ROUND_APPLY:
            DLX_TRY(apply(s, finished, error));
            break;
        case DLXI_ROUND_SUBMIT:
            DLX_TRY(submit(s, false, error));
            break;
        case DLXI_ROUND_SUBMIT_AND_APPLY:
            DLX_TRY(submit(s, true, error));
            break;
        }
    }
    return DLX_OK;
}

/* What the call has done so far, and where the site stands. */
static void step_show(dlx_sync *s, dlx_step *step) {
    *step = s->step;
    step->finished = s->finished;
    step->round = s->applied_rounds + 1 + s->round.outstanding;
    step->inner_steps = s->round.inner_steps;
    step->step_in_round = s->round.steps;
    s->outside_since_s = dlxi_clock_s();
}

dlx_status dlxi_sync_step(dlx_sync *s, uint64_t tokens, dlx_step *step, dlx_error *error) {
    dlx_status status = DLX_OK;
    if (s->unready) return run_over(s, error);
    call_begin(s, DLXI_CALL_STEP);
    if (!s->method->averages_gradients) {
        if (s->finished) DLX_FAIL(error, STATE, "the run is finished");
        s->round_step_s += dlxi_clock_s() - s->outside_since_s;
        s->round_tokens += tokens;
        s->windows_done = s->windows_taken;
        dlxi_round_on_step(&s->round);
        status = proceed(s, error);
    } else if (s->finished) { /* parameters are what the sites have in common */
        status = dlxi_local_read(s->local, s->state, error);
        pthread_mutex_lock(&s->statistics_mutex);
        s->statistics.anchor_hash = dlxi_state_anchor_hash(s->state);
        pthread_mutex_unlock(&s->statistics_mutex);
    }
    step_show(s, step);
    return status;
}

/* The mean, once it has committed. */
static dlx_status gradients_take(dlx_sync *s, dlx_error *error) {
    dlx_status status = wait_for_commit(s, error);
    if (status == DLX_INTERRUPTED && s->options.ranks == 1) {
        dlxi_sync_stop(s); /* if it has committed meanwhile, the caller's step is to be finished */
        if (s->last.committed) status = DLX_OK;
    }
    if (status != DLX_OK) return status;
    for (size_t i = 0; i < s->state->count; i++) {
        const dlxi_state_tensor *t = &s->state->tensors[i];
        memcpy(s->gradients[i], t->error, (size_t)dlxi_state_tensor_values(t) * sizeof(float));
    }
    settle(s);
    return DLX_OK;
}

dlx_status dlxi_sync_gradients(dlx_sync *s, float *const *gradients, uint64_t tokens,
                               double *waited_s, dlx_error *error) {
    if (!s->method->averages_gradients)
        DLX_FAIL(error, STATE,
                 "gradients are exchanged under overlap allreduce only; call dlx_sync_step");
    if (s->finished) DLX_FAIL(error, STATE, "the run is finished");
    double sum = 0;
    bool committed, finished;
    call_begin(s, DLXI_CALL_GRADIENTS);
    if (s->options.ranks == 1) DLX_TRY(check(s, &committed, &finished, error));
    dlxi_saving_end(s);
    for (size_t i = 0; i < s->state->count; i++) {
        const dlxi_state_tensor *t = &s->state->tensors[i];
        int64_t values = dlxi_state_tensor_values(t);
        if (gradients[i] == NULL) DLX_FAIL(error, ARGUMENT, "gradients[%zu] is NULL", i);
        s->gradients[i] = gradients[i];
        memcpy(t->error, gradients[i], (size_t)values * sizeof(float));
        for (int64_t k = 0; k < values; k++) sum += (double)t->error[k] * (double)t->error[k];
    }
    s->round_tokens = tokens;
    DLX_TRY(submit_to_engine(s, sqrt(sum), error));
    dlx_status status = gradients_take(s, error);
    if (waited_s != NULL && (status == DLX_OK || s->pending)) *waited_s = s->step.waited_s;
    return status;
}

/* ---- windows, reports ------------------------------------------------------------------------ */

dlx_status dlxi_sync_windows(dlx_sync *s, uint64_t *positions, uint32_t count, dlx_error *error) {
    dlxi_log_ring_deliver(s->log);
    if (s->unready) return run_over(s, error);
    const dlxi_lease *lease = &s->leases[s->round.number % DLXI_SYNC_LEASES];
    uint64_t leased = lease->submission == s->round.number ? dlxi_lease_windows(lease) : 0;
    if (s->windows_taken > leased) /* two other batches in one round, by going on from snapshots */
        DLX_FAIL(error, CONFIG,
                 "round %llu has trained on %llu windows, and its lease has %llu: go on with the "
                 "batch and H of its snapshot until it has committed",
                 (unsigned long long)s->round.number, (unsigned long long)s->windows_taken,
                 (unsigned long long)leased);
    if (count > leased - s->windows_taken)
        DLX_FAIL(error, STATE, "the lease of round %llu has %llu windows left, not %u",
                 (unsigned long long)s->round.number,
                 (unsigned long long)(leased - s->windows_taken), count);
    for (uint32_t i = 0; i < count; i++)
        positions[i] = dlxi_lease_position(lease, s->windows_taken + i);
    s->windows_taken += count;
    return DLX_OK;
}

/* Whether this site has more to do than the caller was told. */
static bool end_has_more(const dlx_sync *s) {
    const dlxi_outcome *o = &s->last;
    return o->part_count > 0 && (o->part_count != s->end.part_count ||
                                 (o->parts & ~s->end.parts) != 0 || (o->saves && !s->end.saves));
}

/* Until all ranks know what is this site's to do. */
static dlx_status end_wait(dlx_sync *s, dlx_error *error) {
    for (;;) {
        dlx_error failure = {0};
        outcome_take(s, 0);
        bool known = s->last.part_count > 0, all_know = known;
        if (!known && (s->last.ended || is_interrupted(s))) (void)run_over(s, &failure);
        DLX_TRY(agree(s, &all_know, &failure, error));
        if (all_know) return DLX_OK;
        if (!tick(s, !known)) return wait_again(error);
    }
}

dlx_status dlxi_sync_end(dlx_sync *s, dlx_end *end, dlx_error *error) {
    if (!s->finished) DLX_FAIL(error, STATE, "the run is not finished");
    call_begin(s, DLXI_CALL_END);
    DLX_TRY(end_wait(s, error));
    dlx_end own = {
        .parts = s->last.parts, .part_count = s->last.part_count, .saves = s->last.saves};
    if (s->options.ranks > 1) DLX_TRY(dlxi_consensus_first(&s->consensus, &own, sizeof own, error));
    s->end = own;
    end->parts = own.parts;
    end->part_count = own.part_count;
    end->saves = own.saves;
    return DLX_OK;
}

/* Until the run is over. DLX_AGAIN, and not pending: there is more to do first. */
static dlx_status report_wait(dlx_sync *s, dlx_error *error) {
    const bool asks = s->end.part_count > 0;
    outcome_take(s, 0);
    while (!s->last.ended && !is_interrupted(s) && !(asks && end_has_more(s)))
        if (!tick(s, true)) return wait_again(error);
    if (!s->last.ended && !is_interrupted(s)) {
        s->reported = false;
        DLX_FAIL(error, AGAIN, "another site is lost, and its work is this site's now");
    }
    dlx_error why;
    dlx_status status = dlxi_mailbox_failure(&s->mailbox, &why);
    if (status == DLX_OK && !s->last.ended)
        status = dlxi_error_set(&why, DLX_INTERRUPTED, "interrupted");
    if (status != DLX_OK && error != NULL) *error = why;
    return status;
}

dlx_status dlxi_sync_report(dlx_sync *s, const char *text, dlx_error *error) {
    if (!s->finished) DLX_FAIL(error, STATE, "the run is not finished");
    if (s->reported) DLX_FAIL(error, STATE, "the run has this site's report already");
    dlxi_request request = {.report = strdup(text),
                            .parts = s->end.part_count > 0 ? s->end.parts : UINT64_MAX,
                            .part_count = (uint16_t)s->end.part_count};
    if (request.report == NULL) DLX_FAIL(error, MEMORY, "out of memory for a report");
    call_begin(s, DLXI_CALL_REPORT);
    s->reported = true;
    ask(s, &request);
    return report_wait(s, error);
}

/* ---- a call that is pending ------------------------------------------------------------------ */

dlx_status dlxi_sync_wait(dlx_sync *s, dlx_step *step, dlx_error *error) {
    dlx_status status = DLX_OK;
    if (!s->pending)
        DLX_FAIL(error, STATE,
                 "no call is pending; dlx_sync_wait goes on with one that has waited for wait_ms");
    call_go_on(s);
    switch (s->call) {
    case DLXI_CALL_OPEN:
        status = join(s, error);
        s->unopened = status != DLX_OK && !s->pending;
        break;
    case DLXI_CALL_STEP:
        status = proceed(s, error);
        step_show(s, step);
        break;
    case DLXI_CALL_GRADIENTS:
        status = gradients_take(s, error);
        break;
    case DLXI_CALL_END:
        status = end_wait(s, error);
        break;
    case DLXI_CALL_REPORT:
        status = report_wait(s, error);
        break;
    }
    step->waited_s = s->step.waited_s;
    return status;
}

dlx_status dlxi_sync_may_call(const dlx_sync *s, dlx_error *error) {
    if (s->unopened) DLX_FAIL(error, STATE, "it could not be opened; close it");
    if (s->pending) DLX_FAIL(error, STATE, "a call is pending; go on with dlx_sync_wait");
    return DLX_OK;
}

void dlxi_sync_pace(dlx_sync *s, double factor) {
    if (s->pending || s->unopened) return;
    if (isnan(factor)) factor = 1;
    s->pace = fmin(fmax(factor, 0.01), s->options.pace_max);
}

/* ---- the anchor ------------------------------------------------------------------------------ */

/* Takes the state back for a while if the engine has it; *lent says so, for state_give_back. θ is
 * then what sites have in common, whatever the method. */
static dlx_status state_borrow(dlx_sync *s, bool *lent, dlx_error *error) {
    outcome_take(s, 0);
    bool recalled = s->state == NULL;
    if (recalled) {
        dlxi_request request = {.recalls = true};
        ask(s, &request);
        while (s->state == NULL) outcome_take(s, TICK_MS);
    }
    *lent = recalled && !s->last.committed && !s->last.ended;
    if (s->method->averages_gradients) dlxi_saving_end(s);
    return s->method->averages_gradients ? dlxi_local_read(s->local, s->state, error) : DLX_OK;
}

static void state_give_back(dlx_sync *s, bool lent) {
    if (!lent) return;
    dlxi_request request = {.state = s->state};
    s->state = NULL;
    ask(s, &request);
}

dlx_status dlxi_sync_anchor(dlx_sync *s, float *const *dst, dlx_error *error) {
    bool lent = false;
    dlx_status status = state_borrow(s, &lent, error);
    for (size_t i = 0; status == DLX_OK && i < s->state->count; i++) {
        const dlxi_state_tensor *t = &s->state->tensors[i];
        if (dst[i] != NULL)
            memcpy(dst[i], t->anchor, (size_t)dlxi_state_tensor_values(t) * sizeof(float));
        else
            status = dlxi_error_set(error, DLX_ARGUMENT, "dst[%zu] is NULL", i);
    }
    state_give_back(s, lent);
    return status;
}

dlx_status dlxi_sync_anchor_hashes(dlx_sync *s, uint64_t *dst, dlx_error *error) {
    bool lent = false;
    dlx_status status = state_borrow(s, &lent, error);
    for (size_t i = 0; status == DLX_OK && i < s->state->count; i++)
        dst[i] = s->state->tensors[i].anchor_hash;
    state_give_back(s, lent);
    return status;
}

dlx_status dlxi_sync_take_anchor(dlx_sync *s, uint64_t *rounds, dlx_error *error) {
    bool lent = false;
    dlxi_saving_end(s);
    dlx_status status = state_borrow(s, &lent, error);
    if (status == DLX_OK && !s->method->averages_gradients)
        status = dlxi_local_apply(s->local, s->state, true, 0, 0, error);
    if (rounds != NULL) *rounds = s->state->rounds;
    state_give_back(s, lent);
    return status;
}

void dlxi_sync_interrupt(dlx_sync *s) {
    s->interrupted = true;
}
