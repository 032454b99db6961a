/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/lines.h"
#include "base/memory.h"
#include "base/panic.h"
#include "sync/engine_internal.h"

/* ---- open and close -------------------------------------------------------------------------- */

static void busy_keepalive(void *context) {
    dlxi_engine *e = context;
    if (e->keepalive == NULL) return;
    e->busy = true;
    e->keepalive(e->keepalive_context);
    e->busy = false;
}

static dlx_status site_open(dlxi_engine *e, const dlx_sync_config *options, uint64_t incarnation,
                            dlx_error *error) {
    dlxi_hello *hello;
    DLX_TRY(DLXI_NEW(&hello, 1, error));
    dlxi_text_copy(hello->site, sizeof hello->site, e->name);
    hello->rank = options->rank;
    hello->ranks = options->ranks;
    hello->tensors_hash = dlxi_state_tensors_hash(e->state);
    hello->anchor_hash = dlxi_state_anchor_hash(e->state);
    if (e->state->run_id != 0) {
        hello->resumed_run = e->state->run_id;
        hello->round = e->state->rounds + 1;
        hello->counted = e->state->counted;
        hello->copy = e->state->copy;
        hello->anchor_hash = dlxi_state_hash(e->state, DLXI_STATE_REPLICATED);
    }
    hello->windows = options->windows;
    hello->tokens_per_window = options->tokens_per_window;
    hello->data_hash = options->data_hash;
    hello->incarnation = incarnation;
    hello->keeps_history = e->keeps_history;
    hello->lease_windows =
        dlxi_sync_options_round_steps_max(&e->state->options) * options->windows_per_step +
        options->windows_ahead;
    if (options->shared_text != NULL)
        dlxi_text_copy(hello->shared_text, sizeof hello->shared_text, options->shared_text);
    const dlxi_site_settings settings = {
        .timeout_ms = options->timeout_ms,
        .join_ms = options->join_ms,
        .orphan_ms = options->orphan_ms,
        .coordinator = options->link.hub == NULL ? options->link.coordinator : NULL};
    dlx_status status = dlxi_site_open(&e->site, hello, &settings, e->now_ms, error);
    free(hello);
    return status;
}

static size_t history_bytes(const dlx_sync_config *options, const dlxi_state *state) {
    enum { MIB = 1 << 20, LEAST_BYTES = 64 * MIB };
    if (options->history_mib > 0) return (size_t)options->history_mib * MIB;
    size_t entries = 2 * (size_t)dlxi_state_exchange_bytes(state, 0);
    size_t parameters = (size_t)dlxi_state_parameters(state);
    if (entries < parameters) entries = parameters;
    return entries > LEAST_BYTES ? entries : LEAST_BYTES;
}

dlx_status dlxi_engine_open(dlxi_engine **out, const dlx_sync_config *options, uint64_t incarnation,
                            dlxi_state *state, int64_t now_ms, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_engine *e = NULL;
    *out = NULL;
    DLX_TRY_OUT(DLXI_NEW(&e, 1, error));
    dlxi_text_copy(e->name, sizeof e->name, options->site);
    e->rank = options->rank;
    e->timeout_ms = options->timeout_ms;
    e->state = state;
    e->keeps_history = !state->method->averages_gradients;
    e->history.bytes_max = history_bytes(options, state);
    e->now_ms = e->ticked_ms = now_ms;
    e->ready.submission = state->counted;
    DLX_TRY_OUT(DLXI_NEW(&e->listening, 1, error));
    DLX_TRY_OUT(dlxi_exchange_open(&e->exchange, state, options->rank, error));
    dlxi_exchange_set_keepalive(e->exchange, busy_keepalive, e);
    DLX_TRY_OUT(site_open(e, options, incarnation, error));
    *out = e;
    return DLX_OK;
out:
    dlxi_engine_close(&e);
    return status;
}

void dlxi_engine_close(dlxi_engine **engine) {
    dlxi_engine *e = *engine;
    if (e == NULL) return;
    dlxi_site_close(&e->site);
    dlxi_exchange_close(&e->exchange);
    dlxi_history_clear(&e->history);
    free(e->listening);
    free(e);
    *engine = NULL;
}

void dlxi_engine_set_keepalive(dlxi_engine *e, void (*keepalive)(void *context), void *context) {
    e->keepalive = keepalive;
    e->keepalive_context = context;
}

/* ---- outcomes -------------------------------------------------------------------------------- */

static void state_return(dlxi_engine *e) {
    DLXI_ASSERT(e->outcome.state == NULL);
    e->outcome.state = e->state;
    e->state = NULL;
    e->recalled = false;
    e->has_news = true;
}

static void round_commit(dlxi_engine *e);

/* The run is over for this rank: the state goes back. A round that it knows to be committed counts:
 * others have it. */
static void engine_end(dlxi_engine *e) {
    if (e->commits && e->state != NULL) round_commit(e);
    e->outcome.ended = e->has_news = true;
    e->outcome.failure = e->site->result;
    e->linking = e->begins = e->commits = false;
    e->reconnect = 0;
    dlxi_exchange_abort(e->exchange);
    if (e->state != NULL) state_return(e);
}

bool dlxi_engine_outcome(dlxi_engine *e, dlxi_outcome *outcome) {
    if (!e->has_news) return false;
    *outcome = e->outcome;
    e->outcome = (dlxi_outcome){.ended = e->outcome.ended,
                                .failure = e->outcome.failure,
                                .attempts = e->outcome.attempts,
                                .repairs = e->outcome.repairs,
                                .parts = e->outcome.parts,
                                .part_count = e->outcome.part_count,
                                .saves = e->outcome.saves,
                                .exchange_ns = e->outcome.exchange_ns,
                                .exchange_bytes = e->outcome.exchange_bytes};
    e->has_news = false;
    return true;
}

bool dlxi_engine_is_over(const dlxi_engine *e) {
    return e->outcome.ended && dlxi_outbox_peek(&e->site->outbox) == NULL;
}

/* ---- trouble --------------------------------------------------------------------------------- */

static const char *name_of(const dlxi_engine *e, uint16_t site) {
    return e->site->welcome.members[site].name;
}

/* Drops the attempt and notifies the coordinator. What is staged is promised, and stays. */
static void trouble_report(dlxi_engine *e, dlx_status status, uint16_t about, const char *why) {
    dlxi_exchange_abort(e->exchange);
    e->begins = false;
    dlxi_site_on_trouble(e->site, status, about, why);
}

static void trouble_of_way(dlxi_engine *e, uint16_t from, int64_t silent_ms) {
    char text[DLXI_REASON_MAX + 1];
    snprintf(text, sizeof text,
             "no data from site '%s' to site '%s' (%s) for %lld s: check wan.listen and the "
             "firewall",
             name_of(e, from), e->name, e->ways[from].endpoint,
             (long long)(silent_ms + 500) / 1000);
    trouble_report(e, DLX_TIMEOUT, from, text);
}

/* A malformed frame ends the attempt, if one is under way, which starts again from M; other
 * failures end the run. `about`: the site that the frame is from. */
static void exchange_result(dlxi_engine *e, uint16_t about, dlx_status status,
                            const dlx_error *error) {
    if (status == DLX_OK) return;
    if (status != DLX_DATA)
        dlxi_site_fail(e->site, error);
    else if (e->begins || is_under_way(e))
        trouble_report(e, DLX_DATA, about, error->message);
}

/* ---- joining --------------------------------------------------------------------------------- */

static void joined_note(dlxi_engine *e) {
    const dlxi_welcome *w = &e->site->welcome;
    dlxi_outcome *o = &e->outcome;
    o->joined = true;
    o->site_index = w->site;
    o->site_count = w->sites;
    o->tokens_target = w->tokens_target;
    o->run_id = w->run_id;
    memcpy(o->leases, w->leases, sizeof o->leases);
    e->state->run_id = w->run_id;
    e->in_trouble = false;
    state_return(e);
}

/* Once all pairs of sites are linked, and have the same θ as this one. */
static void join_if_linked(dlxi_engine *e) {
    bool linked = true, anchored = e->anchor.missing == 0;
    for (uint16_t i = 0; i < e->site->count; i++) {
        linked = linked && dlxi_way_is_linked(e, i);
        anchored = anchored && (!is_other(e, i) || e->ways[i].anchored);
    }
    if (e->linking) dlxi_site_set_linked(e->site, linked);
    if (!e->linking || !e->site->all_linked || !anchored) return;
    e->linking = false;
    dlxi_site_on_entered(e->site);
    joined_note(e);
}

/* A site that comes back trains once it has followed the run to its present round. */
static void return_if_caught_up(dlxi_engine *e) {
    dlxi_site *s = e->site;
    bool ready = s->phase == DLXI_SITE_RUNNING && s->returns && s->entered && !s->following;
    if (!ready || e->state == NULL || s->run_round != s->round) return;
    dlxi_site_on_returned(s);
    e->outcome.returns = true;
    if (!DLXI_PLANTED(31)) e->state->counted = e->ready.submission = s->welcome.counted;
    joined_note(e);
}

void dlxi_engine_anchor_ask(dlxi_engine *e) {
    if (DLXI_PLANTED(7) && e->anchor.number > 0) return;
    dlxi_transfer_begin(&e->anchor, e->state);
    e->anchor_moved_ms = e->now_ms;
    e->ways[ANCHOR_FROM].greeted_ms = e->now_ms - GREET_MS;
}

static void on_anchor(dlxi_engine *e, const dlxi_frame *frame) {
    dlx_error error;
    if (!e->linking || frame->site != ANCHOR_FROM) return;
    switch (dlxi_transfer_take(&e->anchor, e->state, frame)) {
    case DLXI_TRANSFER_TAKEN:
        e->anchor_moved_ms = e->now_ms;
        break;
    case DLXI_TRANSFER_GAP:
        dlxi_engine_anchor_ask(e);
        break;
    case DLXI_TRANSFER_MISFIT:
        dlxi_error_set(&error, DLX_DATA,
                       "site '%s' sent starting parameters that do not fit this model",
                       name_of(e, ANCHOR_FROM));
        dlxi_site_fail(e->site, &error);
        break;
    case DLXI_TRANSFER_REPEATED:
        break;
    }
}

static void ways_begin(dlxi_engine *e) {
    const dlxi_welcome *w = &e->site->welcome;
    e->linking = !e->site->returns;
    e->told_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        dlxi_way *v = &e->ways[i];
        v->last_seen_ms = e->now_ms;
        v->greeted_ms = e->now_ms - GREET_MS;
        if (v->endpoint[0] == '\0')
            dlxi_text_copy(v->endpoint, sizeof v->endpoint, e->site->peers.endpoint[i]);
    }
    if (e->site->returns)
        dlxi_site_on_entered(e->site);
    else if (w->members[w->site].needs_anchor)
        dlxi_engine_anchor_ask(e);
}

static void ways_redirect(dlxi_engine *e) {
    for (uint16_t i = 0; i < e->site->count; i++) {
        const char *endpoint = e->site->peers.endpoint[i];
        const bool connects = e->listening->endpoint[i][0] == '\0';
        if (!is_other(e, i) || !connects || endpoint[0] == '\0' ||
            strcmp(endpoint, e->ways[i].endpoint) == 0)
            continue;
        dlxi_text_copy(e->ways[i].endpoint, sizeof e->ways[i].endpoint, endpoint);
        e->redirect |= UINT64_C(1) << i;
    }
}

/* ---- frames of other sites ------------------------------------------------------------------- */

static void on_exchange_frame(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlx_error error;
    bool moved;
    dlx_status status = dlxi_exchange_on_frame(e->exchange, frame, &moved, &error);
    if (moved) e->moved_ms = e->now_ms;
    if (status == DLX_PEER_LOST) {
        dlxi_way_on_gap(e, from);
        return;
    }
    if (status == DLX_DATA) dlxi_error_prefix(&error, "from site '%s': ", name_of(e, from));
    exchange_result(e, from, status, &error);
}

static void on_data(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlx_error error;
    if (frame->site != from || frame->rank != e->rank) {
        dlxi_error_set(&error, DLX_DATA,
                       "site '%s' sent as rank %u of site %u, not as rank %u of site %u; check "
                       "wan.listen: each rank needs ports of its own",
                       name_of(e, from), frame->rank, frame->site, e->rank, from);
        dlxi_site_fail(e->site, &error);
        return;
    }
    e->ways[from].last_seen_ms = e->now_ms;
    switch (frame->kind) {
    case DLXI_FRAME_GREETING:
        dlxi_way_on_greeting(e, from, frame);
        break;
    case DLXI_FRAME_ANCHOR:
        on_anchor(e, frame);
        break;
    case DLXI_FRAME_FETCH:
        dlxi_engine_on_fetch(e, from, frame);
        break;
    case DLXI_FRAME_ENTRY:
        dlxi_engine_on_entry(e, from, frame);
        break;
    case DLXI_FRAME_CONTRIBUTION:
    case DLXI_FRAME_RESULT:
        on_exchange_frame(e, from, frame);
        break;
    default:
        break;
    }
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static void attempt_begin(dlxi_engine *e) {
    dlx_error error;
    const dlxi_site *s = e->site;
    DLXI_ASSERT(e->state != NULL && s->submitted && s->attempt > 0 && !s->staged);
    e->begun_ms = e->now_ms;
    e->state->tokens_target = s->welcome.tokens_target;
    e->begun_round = s->round;
    e->begun_attempt = s->attempt;
    e->begun_term = s->attempt_term;
    dlxi_ways_reset(e);
    exchange_result(e, DLXI_SITE_NONE,
                    dlxi_exchange_begin(e->exchange, e->state, &s->view, s->index, s->attempt_term,
                                        s->round, s->attempt, &error),
                    &error);
    e->exchange_bytes = dlxi_exchange_bytes(e->exchange, e->state);
    e->begins = false;
}

/* From the view, so the same on all ranks of a site. */
static double speed_of(const dlxi_view *view, uint16_t site) {
    uint64_t sorted[DLXI_SITES_MAX], own = 0;
    for (uint16_t i = 0; i < view->members; i++) {
        uint64_t step_ns = view->member[i].step_ns;
        uint16_t at = i;
        for (; at > 0 && sorted[at - 1] > step_ns; at--) sorted[at] = sorted[at - 1];
        sorted[at] = step_ns;
        if (view->member[i].site == site) own = step_ns;
    }
    uint64_t median = sorted[view->members / 2];
    return own == 0 ? 0 : (double)median / (double)own;
}

void dlxi_engine_outcome_of_commit(dlxi_engine *e) {
    const dlxi_commit *m = &e->site->commit;
    dlxi_outcome *o = &e->outcome;
    o->committed = true;
    o->commit = *m;
    o->view_tokens = o->own_tokens = 0;
    for (uint16_t i = 0; i < m->view.members; i++) {
        o->view_tokens += m->view.member[i].tokens;
        if (m->view.member[i].site != e->site->index) continue;
        o->own_tokens = m->view.member[i].tokens;
        o->member_index = i;
    }
    o->member_count = m->view.members;
    o->weight = dlxi_exchange_weight(e->exchange);
    o->diagnosis = *dlxi_exchange_diagnosis(e->exchange);
    o->speed = speed_of(&m->view, e->site->index);
    if (e->in_trouble)
        dlxi_lines_add(&e->lines, "round %llu committed", (unsigned long long)e->state->rounds);
    e->in_trouble = false;
    state_return(e);
}

static void round_commit(dlxi_engine *e) {
    DLXI_ASSERT(e->state != NULL && dlxi_exchange_is_staged(e->exchange));
    dlxi_exchange_commit(e->exchange, e->state);
    e->state->tokens = e->site->commit.committed_tokens;
    e->state->counted = e->ready.submission;
    dlxi_state_set_copy(e->state, &e->site->copy);
    e->commits = false;
    dlxi_site_on_applied(e->site);
    e->outcome.exchange_bytes = e->exchange_bytes;
    int64_t took_ms = e->now_ms - e->begun_ms;
    e->outcome.exchange_ns = (uint64_t)(took_ms > 0 ? took_ms : 1) * 1000000; /* 0 is none */
    dlxi_engine_outcome_of_commit(e);
}

/* Continues the exchange as far as it can without another frame. */
static void exchange_poll(dlxi_engine *e) {
    dlx_error error;
    bool staged = false;
    if (e->state == NULL) return;
    if (e->site->following && !e->commits) {
        dlxi_engine_follow(e);
        return;
    }
    if (e->begins) attempt_begin(e);
    if (e->state != NULL && is_under_way(e))
        exchange_result(e, DLXI_SITE_NONE,
                        dlxi_exchange_poll(e->exchange, e->state, &staged, &error), &error);
    if (staged && !e->site->staged)
        dlxi_site_on_staged(e->site, dlxi_exchange_staged_hash(e->exchange));
    if (e->commits && e->state != NULL) round_commit(e);
}

void dlxi_engine_listen_advance(dlxi_engine *e) {
    if (e->listened == e->site->index) e->listened++;
    if (e->listened == e->site->count) dlxi_site_on_listening(e->site, e->listening);
}

static void listen_begin(dlxi_engine *e) {
    *e->listening = (dlxi_endpoints){.sites = e->site->count};
    e->listened = 0;
    dlxi_engine_listen_advance(e);
}

static void parts_note(dlxi_engine *e) {
    const dlxi_site *s = e->site;
    dlxi_outcome *o = &e->outcome;
    if (o->parts == s->parts && o->part_count == s->part_count && o->saves == s->saves) return;
    o->parts = s->parts;
    o->part_count = s->part_count;
    o->saves = s->saves;
    e->has_news = true;
}

static void act(dlxi_engine *e, dlxi_site_action action) {
    parts_note(e);
    /* a new life of the coordinator knows of no attempt */
    if ((e->begins || is_under_way(e)) && e->site->attempt == 0) {
        dlxi_exchange_abort(e->exchange);
        e->begins = false;
    }
    switch (action) {
    case DLXI_SITE_LISTEN:
        listen_begin(e);
        break;
    case DLXI_SITE_CONNECT:
        ways_begin(e);
        break;
    case DLXI_SITE_REDIRECT:
        ways_redirect(e);
        break;
    case DLXI_SITE_TELL_LISTENING:
        dlxi_site_on_listening(e->site, e->listening);
        break;
    case DLXI_SITE_BEGIN:
        e->outcome.attempts++;
        dlxi_exchange_abort(e->exchange);
        e->begins = true;
        break;
    case DLXI_SITE_ABORT:
        /* what is staged waits for its commit */
        if (!e->site->staged && (e->site->attempt > 0 || dlxi_exchange_is_following(e->exchange))) {
            dlxi_exchange_abort(e->exchange);
            e->begins = false;
        }
        if (e->site->incoming.as.reason.text[0] == '\0') break;
        dlxi_lines_add(&e->lines, "%s", e->site->incoming.as.reason.text);
        e->in_trouble = true;
        break;
    case DLXI_SITE_COMMIT:
        /* at once: training may hang with the state, and others lack the results */
        if (e->keeps_history && e->site->count > 1)
            dlxi_exchange_keep(e->exchange, dlxi_lineage_of(e->site->commit.coordinator),
                               &e->history);
        e->commits = true;
        break;
    case DLXI_SITE_FOLLOW:
        dlxi_exchange_abort(e->exchange);
        e->begins = false;
        break;
    case DLXI_SITE_ENDED:
    case DLXI_SITE_NOTHING:
        break;
    }
}

/* ---- events ---------------------------------------------------------------------------------- */

static void engine_check(const dlxi_engine *e) {
    const dlxi_site *s = e->site;
    DLXI_ASSERT(!e->outcome.ended || (e->state == NULL && !e->linking));
    DLXI_ASSERT(!e->linking || (s->phase == DLXI_SITE_RUNNING && e->state != NULL));
    DLXI_ASSERT(!is_under_way(e) || (s->attempt > 0 && !s->staged && !e->commits));
    DLXI_ASSERT(!dlxi_exchange_is_staged(e->exchange) || s->staged || e->commits ||
                e->outcome.ended);
    DLXI_ASSERT(!dlxi_exchange_is_following(e->exchange) || s->following || e->outcome.ended);
    DLXI_ASSERT(!e->begins || (s->submitted && s->attempt > 0));
    DLXI_ASSERT(e->turn < DLXI_SITES_MAX);
    DLXI_ASSERT(e->moved_ms <= e->now_ms && e->anchor_moved_ms <= e->now_ms);
    for (uint16_t i = 0; i < s->count; i++) DLXI_ASSERT(e->ways[i].last_seen_ms <= e->now_ms);
}

void dlxi_engine_settle(dlxi_engine *e) {
    if (e->busy) return;
    if (e->site->phase == DLXI_SITE_DONE && !e->outcome.ended) engine_end(e);
    join_if_linked(e);
    return_if_caught_up(e);
    engine_check(e);
}

void dlxi_engine_on_frame(dlxi_engine *e, uint32_t peer, const dlxi_frame *frame, int64_t now_ms) {
    DLXI_ASSERT(now_ms >= e->now_ms);
    e->now_ms = now_ms;
    if (e->outcome.ended) return;
    if (peer == DLXI_SITE_COORDINATOR)
        act(e, dlxi_site_on_frame(e->site, frame, now_ms));
    else if (e->site->phase == DLXI_SITE_RUNNING && peer < e->site->count && peer != e->site->index)
        on_data(e, (uint16_t)peer, frame);
    dlxi_engine_settle(e);
}

void dlxi_engine_on_request(dlxi_engine *e, dlxi_request *r, int64_t now_ms) {
    e->now_ms = now_ms;
    if (r->state != NULL) {
        DLXI_ASSERT(e->state == NULL);
        e->state = r->state;
        r->state = NULL;
        if (e->outcome.ended) state_return(e);
    }
    if (r->submits && !e->outcome.ended) {
        r->ready.exchange_ns = e->outcome.exchange_ns;
        r->ready.exchange_bytes = e->outcome.exchange_bytes;
        r->ready.submission = e->ready.submission + 1;
        r->ready.base_round = e->site->round;
        e->ready = r->ready;
        dlxi_site_on_ready(e->site, &e->ready);
    }
    if (r->report != NULL) dlxi_site_on_report(e->site, r->parts, r->part_count, r->report);
    free(r->report);
    r->report = NULL;
    if (r->recalls && e->state != NULL) e->recalled = true;
    if (r->closes && !e->outcome.ended) {
        if (r->why.status != DLX_OK) dlxi_site_fail(e->site, &r->why);
        engine_end(e);
    }
}

void dlxi_engine_on_room(dlxi_engine *e) {
    e->control_blocked = false;
    for (uint16_t i = 0; i < e->site->count; i++) e->ways[i].blocked = false;
}

void dlxi_engine_on_link_failure(dlxi_engine *e, const dlx_error *why) {
    dlxi_site_fail(e->site, why);
    dlxi_engine_settle(e);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void linking_judge(dlxi_engine *e) {
    int64_t still_ms = e->now_ms - e->anchor_moved_ms;
    if (e->anchor.missing > 0 && still_ms >= e->timeout_ms) {
        trouble_of_way(e, ANCHOR_FROM, still_ms);
        dlxi_engine_anchor_ask(e);
    }
    if (e->now_ms - e->told_ms < e->timeout_ms) return;
    e->told_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        if (dlxi_way_is_linked(e, i)) continue;
        e->reconnect |= UINT64_C(1) << i;
        if (dlxi_way_is_silent(e, i)) trouble_of_way(e, i, e->now_ms - e->ways[i].last_seen_ms);
    }
}

/* If nothing of the attempt moves here, on no way: the way that holds it up. One that is silent;
 * else, later, one whose contribution is missing, else one whose result is: who owes it may itself
 * wait for another way that is silent, and report that. */
static void attempt_judge(dlxi_engine *e) {
    enum { SILENT = DLXI_AWAITED_CONTRIBUTION + 1 };
    int64_t still_ms = e->now_ms - e->moved_ms;
    int worst = DLXI_AWAITED_NOTHING;
    uint16_t from = 0;
    for (uint16_t i = 0; i < e->site->count && !DLXI_PLANTED(6); i++) {
        int one = (int)dlxi_exchange_awaits(e->exchange, i);
        if (one != DLXI_AWAITED_NOTHING && dlxi_way_is_silent(e, i)) one = SILENT;
        if (one > worst) worst = one, from = i;
    }
    if (worst == DLXI_AWAITED_NOTHING || still_ms < e->timeout_ms * (worst == SILENT ? 1 : 2))
        return;
    int64_t silent_ms = e->now_ms - e->ways[from].last_seen_ms;
    trouble_of_way(e, from, silent_ms > still_ms ? silent_ms : still_ms);
}

static void put_off(int64_t *at_ms, int64_t by_ms, int64_t now_ms) {
    *at_ms = *at_ms + by_ms < now_ms ? *at_ms + by_ms : now_ms;
}

/* Nothing could arrive while this process itself was paused. */
static void pause_forgive(dlxi_engine *e, int64_t gap_ms) {
    for (uint16_t i = 0; i < e->site->count; i++)
        put_off(&e->ways[i].last_seen_ms, gap_ms, e->now_ms);
    put_off(&e->anchor_moved_ms, gap_ms, e->now_ms);
    e->moved_ms = e->now_ms;
}

void dlxi_engine_on_tick(dlxi_engine *e, int64_t now_ms) {
    DLXI_ASSERT(now_ms >= e->now_ms && now_ms >= e->ticked_ms);
    int64_t gap_ms = now_ms - e->ticked_ms;
    char text[DLXI_REASON_MAX + 1];
    e->now_ms = e->ticked_ms = now_ms;
    if (e->outcome.ended) return;
    if (gap_ms > PAUSE_MS) pause_forgive(e, gap_ms);
    act(e, dlxi_site_on_tick(e->site, now_ms));
    if (dlxi_site_tell_wait(e->site, text, sizeof text)) dlxi_lines_add(&e->lines, "%s", text);
    if (e->site->phase != DLXI_SITE_DONE) exchange_poll(e);
    if (e->linking) linking_judge(e);
    if (is_under_way(e)) attempt_judge(e);
    if (e->recalled && e->state != NULL) state_return(e);
    if (e->site->entered) dlxi_ways_watch(e);
    dlxi_engine_settle(e);
}

void dlxi_engine_keep_alive(dlxi_engine *e, int64_t now_ms) {
    e->now_ms = now_ms;
    dlxi_site_keep_alive(e->site, now_ms);
}

/* ---- actions --------------------------------------------------------------------------------- */
