/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/lines.h"
#include "base/memory.h"
#include "base/panic.h"
#include "sync/transfer.h"

enum {
    GREET_SOON_MS = 250,
    GREET_MS = 1000,
    PAUSE_MS = 1000, /* a longer gap between ticks is this process's own pause, not a silence */
    ANCHOR_FROM = 0  /* the site whose θ starts the run */
};

/* In the `trip` of a GREETING. */
enum {
    GREETING_HEARD = 1,  /* your greetings were received */
    GREETING_ANCHOR = 2, /* my θ is complete */
    GREETING_BUSY = 4    /* I am in a long computation */
};

/* The way to another site. A transfer of the starting anchor counts as that attempt of round 0. */
typedef struct way {
    char endpoint[DLXI_ENDPOINT_BYTES]; /* of the side that listens */
    bool heard, hears, anchored;        /* its greetings; it has ours; its θ is complete */
    bool blocked;                       /* the link had no room */
    int64_t last_seen_ms, greeted_ms;
    uint32_t sent, received; /* data frames of the present attempt */
    uint64_t received_round; /* the attempt that `received` counts */
    uint32_t received_attempt;
    dlxi_transfer gives; /* asked for by the other side */
} way;

struct dlxi_engine {
    char name[DLXI_NAME_BYTES]; /* of this site */
    uint16_t rank;
    int64_t timeout_ms;
    dlxi_site *site;
    dlxi_exchange *exchange;
    dlxi_state *state; /* NULL while the training thread has it */
    bool linking;      /* from connect until joined */
    bool recalled;
    bool begins, commits; /* wait for the state */
    way ways[DLXI_SITES_MAX];
    uint32_t turn;                /* the way that is asked first for data */
    uint16_t listened, connected; /* sites done, in order */
    bool control_blocked;         /* the link had no room */
    uint64_t sent_round;          /* the attempt that way.sent counts */
    uint32_t sent_attempt;
    dlxi_endpoints *listening; /* while listen is asked for */
    dlxi_transfer anchor;      /* asked for here */
    int64_t anchor_moved_ms;
    int64_t now_ms, ticked_ms, told_ms, redialed_ms;
    uint64_t reconnect;         /* bit i: make the connection to site i anew */
    int64_t begun_ms, moved_ms; /* of the attempt: its begin, its last progress */
    uint64_t exchange_bytes;    /* of the attempt */
    dlxi_outcome outcome;
    bool has_news;
    dlxi_lines lines;
    bool in_trouble; /* logged for the present round */
    bool busy;       /* in the middle of a long computation */
    void (*keepalive)(void *context);
    void *keepalive_context;
};

/* ---- open and close -------------------------------------------------------------------------- */

static void busy_keepalive(void *context) {
    dlxi_engine *e = context;
    if (e->keepalive == NULL) return;
    e->busy = true;
    e->keepalive(e->keepalive_context);
    e->busy = false;
}

static dlx_status site_open(dlxi_engine *e, const dlx_sync_config *options, dlx_error *error) {
    dlxi_hello *hello;
    DLX_TRY(DLXI_NEW(&hello, 1, error));
    dlxi_text_copy(hello->site, sizeof hello->site, e->name);
    hello->rank = options->rank;
    hello->ranks = options->ranks;
    hello->tensors_hash = dlxi_state_tensors_hash(e->state);
    hello->anchor_hash = dlxi_state_anchor_hash(e->state);
    hello->windows = options->windows;
    hello->tokens_per_window = options->tokens_per_window;
    hello->data_hash = options->data_hash;
    hello->lease_windows =
        dlxi_sync_options_round_steps_max(&e->state->options) * options->windows_per_step;
    if (options->shared_text != NULL)
        dlxi_text_copy(hello->shared_text, sizeof hello->shared_text, options->shared_text);
    const dlxi_site_settings settings = {
        .timeout_ms = options->timeout_ms,
        .join_ms = options->join_ms,
        .coordinator = options->link.hub == NULL ? options->link.coordinator : NULL};
    dlx_status status = dlxi_site_open(&e->site, hello, &settings, e->now_ms, error);
    free(hello);
    return status;
}

dlx_status dlxi_engine_open(dlxi_engine **out, const dlx_sync_config *options, dlxi_state *state,
                            int64_t now_ms, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_engine *e = NULL;
    *out = NULL;
    DLX_TRY_OUT(DLXI_NEW(&e, 1, error));
    dlxi_text_copy(e->name, sizeof e->name, options->site);
    e->rank = options->rank;
    e->timeout_ms = options->timeout_ms;
    e->state = state;
    e->now_ms = e->ticked_ms = now_ms;
    DLX_TRY_OUT(DLXI_NEW(&e->listening, 1, error));
    DLX_TRY_OUT(dlxi_exchange_open(&e->exchange, state, options->rank, error));
    dlxi_exchange_set_keepalive(e->exchange, busy_keepalive, e);
    DLX_TRY_OUT(site_open(e, options, error));
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

/* The run is over for this rank: the state goes back. */
static void engine_end(dlxi_engine *e) {
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
                                .exchange_ns = e->outcome.exchange_ns,
                                .exchange_bytes = e->outcome.exchange_bytes};
    e->has_news = false;
    return true;
}

bool dlxi_engine_is_over(const dlxi_engine *e) {
    return e->outcome.ended && dlxi_outbox_peek(&e->site->outbox) == NULL;
}

/* ---- trouble --------------------------------------------------------------------------------- */

static bool is_under_way(const dlxi_engine *e) {
    return dlxi_exchange_trip(e->exchange) >= 0;
}

static const char *name_of(const dlxi_engine *e, uint16_t site) {
    return e->site->welcome.members[site].name;
}

/* Drops the attempt and notifies the coordinator. What is staged is promised, and stays. */
static void trouble_report(dlxi_engine *e, const char *why) {
    dlxi_exchange_abort(e->exchange);
    e->begins = false;
    dlxi_site_on_trouble(e->site, why);
}

static void trouble_of_way(dlxi_engine *e, uint16_t from, int64_t silent_ms) {
    char text[DLXI_REASON_MAX + 1];
    snprintf(text, sizeof text,
             "no data from site '%s' to site '%s' (%s) for %lld s: check wan.listen and the "
             "firewall",
             name_of(e, from), e->name, e->ways[from].endpoint,
             (long long)(silent_ms + 500) / 1000);
    trouble_report(e, text);
}

/* A malformed frame or a gap ends the attempt, if one is under way, which starts again from M;
 * other failures end the run. */
static void exchange_result(dlxi_engine *e, dlx_status status, const dlx_error *error) {
    if (status == DLX_OK) return;
    if (status != DLX_DATA && status != DLX_PEER_LOST)
        dlxi_site_fail(e->site, error);
    else if (e->begins || is_under_way(e))
        trouble_report(e, error->message);
}

/* ---- joining --------------------------------------------------------------------------------- */

static bool is_other(const dlxi_engine *e, uint16_t site) {
    return site < e->site->count && site != e->site->index;
}

static bool way_is_silent(const dlxi_engine *e, uint16_t site) {
    return e->now_ms - e->ways[site].last_seen_ms >= e->timeout_ms;
}

/* It carries frames in both directions. */
static bool way_is_linked(const dlxi_engine *e, uint16_t site) {
    const way *v = &e->ways[site];
    return !is_other(e, site) || (v->heard && v->hears && !way_is_silent(e, site));
}

/* Once all pairs of sites are linked, and have the same θ as this one. */
static void join_if_linked(dlxi_engine *e) {
    bool linked = true, anchored = e->anchor.missing == 0;
    for (uint16_t i = 0; i < e->site->count; i++) {
        linked = linked && way_is_linked(e, i);
        anchored = anchored && (!is_other(e, i) || e->ways[i].anchored);
    }
    if (e->linking) dlxi_site_set_linked(e->site, linked);
    if (!e->linking || !e->site->all_linked || !anchored) return;
    const dlxi_welcome *w = &e->site->welcome;
    e->linking = false;
    dlxi_outcome *o = &e->outcome;
    o->joined = true;
    o->site_index = w->site;
    o->site_count = w->sites;
    o->tokens_target = w->tokens_target;
    o->run_id = w->run_id;
    memcpy(o->leases, w->leases, sizeof o->leases);
    e->in_trouble = false;
    state_return(e);
}

/* Asks for the whole of θ: at first, and again if frames of it were lost. */
static void anchor_ask(dlxi_engine *e) {
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
        anchor_ask(e);
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
    e->linking = true;
    e->told_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        way *v = &e->ways[i];
        v->last_seen_ms = e->now_ms;
        v->greeted_ms = e->now_ms - GREET_MS;
        if (v->endpoint[0] == '\0')
            dlxi_text_copy(v->endpoint, sizeof v->endpoint, e->site->peers.endpoint[i]);
    }
    if (w->members[w->site].needs_anchor) anchor_ask(e);
}

/* ---- frames of other sites ------------------------------------------------------------------- */

/* Counts a data frame of the attempt that it names. */
static void frame_count(way *v, const dlxi_frame *frame) {
    if (v->received_round != frame->round || v->received_attempt != frame->attempt) {
        v->received_round = frame->round;
        v->received_attempt = frame->attempt;
        v->received = 0;
    }
    v->received++;
}

/* Whether frames that were sent before this greeting did not arrive. */
static bool frames_were_lost(const way *v, const dlxi_frame *greeting) {
    uint32_t sent = greeting->offset_groups;
    bool same = v->received_round == greeting->round && v->received_attempt == greeting->attempt;
    return sent > (same ? v->received : 0);
}

/* DLX_PEER_LOST: frames of the attempt did not arrive. */
static dlx_status on_greeting(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    way *v = &e->ways[from];
    if (!v->heard) v->greeted_ms = e->now_ms - GREET_MS; /* it waits for an answer */
    v->heard = true;
    v->hears = v->hears || (frame->trip & GREETING_HEARD) != 0;
    v->anchored = v->anchored || (frame->trip & GREETING_ANCHOR) != 0;
    if ((frame->trip & GREETING_BUSY) != 0) e->moved_ms = e->now_ms;
    if (frame->count_groups > v->gives.number) { /* asks for θ, from its beginning */
        v->gives = (dlxi_transfer){.number = frame->count_groups};
        v->sent = 0;
    }
    if (!frames_were_lost(v, frame)) return DLX_OK;
    if (is_under_way(e) && frame->round == e->site->round && frame->attempt == e->site->attempt)
        return DLX_PEER_LOST;
    if (frame->round == 0 && e->linking && from == ANCHOR_FROM &&
        frame->attempt == e->anchor.number && e->anchor.missing > 0)
        anchor_ask(e);
    return DLX_OK;
}

static void on_data(dlxi_engine *e, uint16_t from, const dlxi_frame *frame) {
    dlx_error error;
    dlx_status status = DLX_OK;
    way *v = &e->ways[from];
    if (frame->site != from || frame->rank != e->rank) {
        dlxi_error_set(&error, DLX_DATA,
                       "site '%s' sent as rank %u of site %u, not as rank %u of site %u; check "
                       "wan.listen: each rank needs ports of its own",
                       name_of(e, from), frame->rank, frame->site, e->rank, from);
        dlxi_site_fail(e->site, &error);
        return;
    }
    v->last_seen_ms = e->now_ms;
    switch (frame->kind) {
    case DLXI_FRAME_GREETING:
        status = on_greeting(e, from, frame);
        break;
    case DLXI_FRAME_ANCHOR:
        frame_count(v, frame);
        on_anchor(e, frame);
        break;
    case DLXI_FRAME_CONTRIBUTION:
    case DLXI_FRAME_RESULT:
        frame_count(v, frame);
        e->moved_ms = e->now_ms;
        status = dlxi_exchange_on_frame(e->exchange, frame, &error);
        if (status == DLX_DATA) dlxi_error_prefix(&error, "from site '%s': ", name_of(e, from));
        break;
    default:
        break;
    }
    if (status == DLX_PEER_LOST)
        dlxi_error_set(&error, status,
                       "frames from site '%s' to site '%s' were lost: the connection broke",
                       name_of(e, from), e->name);
    exchange_result(e, status, &error);
}

/* ---- rounds ---------------------------------------------------------------------------------- */

/* Silent connections are made anew, so that no frame of the attempt waits in a dead one. */
static void ways_reset(dlxi_engine *e) {
    e->moved_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        way *v = &e->ways[i];
        if (!DLXI_PLANTED(9)) v->sent = 0;
        v->greeted_ms = e->now_ms - GREET_MS;
        if (is_other(e, i) && e->now_ms - v->last_seen_ms >= e->timeout_ms / 2 + GREET_MS)
            e->reconnect |= UINT64_C(1) << i;
    }
}

static void attempt_begin(dlxi_engine *e) {
    dlx_error error;
    const dlxi_site *s = e->site;
    DLXI_ASSERT(e->state != NULL && s->submitted && s->attempt > 0 && !s->staged);
    e->begun_ms = e->now_ms;
    e->exchange_bytes = dlxi_state_exchange_bytes(e->state, 0);
    e->sent_round = s->round;
    e->sent_attempt = s->attempt;
    ways_reset(e);
    exchange_result(e,
                    dlxi_exchange_begin(e->exchange, e->state, &s->view, s->index, s->term,
                                        s->round, s->attempt, &error),
                    &error);
    e->begins = false;
}

static void round_commit(dlxi_engine *e) {
    const dlxi_site *s = e->site;
    dlxi_outcome *o = &e->outcome;
    DLXI_ASSERT(e->state != NULL && dlxi_exchange_is_staged(e->exchange));
    dlxi_exchange_commit(e->exchange, e->state);
    e->commits = false;
    e->state->tokens = s->commit.committed_tokens;
    o->committed = true;
    o->commit = s->commit;
    o->view_tokens = o->own_tokens = 0;
    for (uint16_t i = 0; i < s->view.members; i++) {
        o->view_tokens += s->view.member[i].tokens;
        if (s->view.member[i].site != s->index) continue;
        o->own_tokens = s->view.member[i].tokens;
        o->member_index = i;
    }
    o->member_count = s->view.members;
    o->weight = dlxi_exchange_weight(e->exchange);
    o->exchange_bytes = e->exchange_bytes;
    int64_t took_ms = e->now_ms - e->begun_ms;
    o->exchange_ns = (uint64_t)(took_ms > 0 ? took_ms : 1) * 1000000; /* 0 is none */
    if (e->in_trouble)
        dlxi_lines_add(&e->lines, "round %llu committed", (unsigned long long)s->round - 1);
    e->in_trouble = false;
    state_return(e);
}

/* Continues the exchange as far as it can without another frame. */
static void exchange_poll(dlxi_engine *e) {
    dlx_error error;
    bool staged = false;
    if (e->state == NULL) return;
    if (e->begins) attempt_begin(e);
    if (e->state != NULL && is_under_way(e))
        exchange_result(e, dlxi_exchange_poll(e->exchange, e->state, &staged, &error), &error);
    if (staged && !e->site->staged)
        dlxi_site_on_staged(e->site, dlxi_exchange_staged_hash(e->exchange));
    if (e->commits && e->state != NULL) round_commit(e);
}

/* Skips this site's own number; reports to the coordinator after the last. */
static void listen_advance(dlxi_engine *e) {
    if (e->listened == e->site->index) e->listened++;
    if (e->listened == e->site->count) dlxi_site_on_listening(e->site, e->listening);
}

static void listen_begin(dlxi_engine *e) {
    *e->listening = (dlxi_endpoints){.sites = e->site->count};
    e->listened = 0;
    listen_advance(e);
}

static void act(dlxi_engine *e, dlxi_site_action action) {
    switch (action) {
    case DLXI_SITE_LISTEN:
        listen_begin(e);
        break;
    case DLXI_SITE_CONNECT:
        ways_begin(e);
        break;
    case DLXI_SITE_BEGIN:
        e->outcome.attempts++;
        dlxi_exchange_abort(e->exchange);
        e->begins = true;
        break;
    case DLXI_SITE_ABORT:
        if (e->site->attempt > 0) { /* else what is staged waits for its commit */
            dlxi_exchange_abort(e->exchange);
            e->begins = false;
        }
        if (e->site->incoming.as.reason.text[0] == '\0') break;
        dlxi_lines_add(&e->lines, "%s", e->site->incoming.as.reason.text);
        e->in_trouble = true;
        break;
    case DLXI_SITE_COMMIT:
        e->commits = true;
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
    DLXI_ASSERT(!e->begins || (s->submitted && s->attempt > 0));
    DLXI_ASSERT(e->turn < DLXI_SITES_MAX);
    DLXI_ASSERT(e->moved_ms <= e->now_ms && e->anchor_moved_ms <= e->now_ms);
    for (uint16_t i = 0; i < s->count; i++) DLXI_ASSERT(e->ways[i].last_seen_ms <= e->now_ms);
}

/* After every event; one in the middle of a computation leaves it to the event that computes. */
static void engine_settle(dlxi_engine *e) {
    if (e->busy) return;
    if (e->site->phase == DLXI_SITE_DONE && !e->outcome.ended) engine_end(e);
    join_if_linked(e);
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
    engine_settle(e);
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
        dlxi_site_on_ready(e->site, &r->ready);
    }
    if (r->report != NULL) dlxi_site_on_report(e->site, r->report);
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
    engine_settle(e);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void linking_judge(dlxi_engine *e) {
    int64_t still_ms = e->now_ms - e->anchor_moved_ms;
    if (e->anchor.missing > 0 && still_ms >= e->timeout_ms) {
        trouble_of_way(e, ANCHOR_FROM, still_ms);
        anchor_ask(e);
    }
    if (e->now_ms - e->told_ms < e->timeout_ms) return;
    e->told_ms = e->now_ms;
    for (uint16_t i = 0; i < e->site->count; i++) {
        if (way_is_linked(e, i)) continue;
        e->reconnect |= UINT64_C(1) << i;
        if (way_is_silent(e, i)) trouble_of_way(e, i, e->now_ms - e->ways[i].last_seen_ms);
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
        if (one != DLXI_AWAITED_NOTHING && way_is_silent(e, i)) one = SILENT;
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
    engine_settle(e);
}

void dlxi_engine_keep_alive(dlxi_engine *e, int64_t now_ms) {
    e->now_ms = now_ms;
    dlxi_site_keep_alive(e->site, now_ms);
}

/* ---- actions --------------------------------------------------------------------------------- */

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

static bool next_connect(dlxi_engine *e, dlxi_engine_action *a) {
    if (e->connected < e->site->count && e->connected == e->site->index) e->connected++;
    if (e->connected < e->site->count) {
        a->kind = DLXI_ENGINE_CONNECT;
        a->peer = e->connected;
        memcpy(a->endpoint, e->site->peers.endpoint[e->connected], sizeof a->endpoint);
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
    bool silent = e->site->term > 0 && e->now_ms - seen_ms >= e->timeout_ms / 2;
    a->peer = DLXI_SITE_COORDINATOR;
    if (silent && !e->busy && !e->outcome.ended && e->redialed_ms != seen_ms) {
        e->redialed_ms = seen_ms; /* once: a new connection tries every second, an old one not */
        a->kind = DLXI_ENGINE_RECONNECT;
        return true;
    }
    if (item == NULL || e->control_blocked) return false;
    a->kind = DLXI_ENGINE_SEND;
    a->frame = item->frame;
    return true;
}

static bool greeting_make(const dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    const way *v = &e->ways[to];
    bool soon = e->linking || is_under_way(e) || e->busy;
    if (e->now_ms - v->greeted_ms < (soon ? GREET_SOON_MS : GREET_MS)) return false;
    bool started = e->sent_attempt > 0;
    int says = (v->heard ? GREETING_HEARD : 0) | (e->anchor.missing == 0 ? GREETING_ANCHOR : 0) |
               (e->busy ? GREETING_BUSY : 0);
    *frame = (dlxi_frame){.kind = DLXI_FRAME_GREETING,
                          .term = e->site->term,
                          .round = started ? e->sent_round : 0,
                          .attempt = started ? e->sent_attempt : v->gives.number,
                          .site = e->site->index,
                          .rank = e->rank,
                          .trip = (uint16_t)says,
                          .offset_groups = v->sent,
                          .count_groups = to == ANCHOR_FROM ? e->anchor.number : 0};
    return true;
}

/* The next piece of θ for a site that starts elsewhere. */
static bool anchor_make(const dlxi_engine *e, uint16_t to, dlxi_frame *frame) {
    const way *v = &e->ways[to];
    if (!e->linking || v->anchored || ANCHOR_FROM != e->site->index ||
        !dlxi_transfer_peek(&v->gives, e->state, frame))
        return false;
    frame->term = e->site->term;
    frame->site = e->site->index;
    frame->rank = e->rank;
    return true;
}

/* One frame for each way in turn, so that none waits for another. */
static bool next_data(dlxi_engine *e, dlxi_engine_action *a) {
    a->kind = DLXI_ENGINE_SEND;
    for (uint16_t n = 0; n < e->site->count; n++) {
        uint16_t to = (uint16_t)((e->turn + n) % e->site->count);
        a->peer = to;
        if (!is_other(e, to) || e->ways[to].blocked) continue;
        if (!greeting_make(e, to, &a->frame) && !anchor_make(e, to, &a->frame) &&
            !dlxi_exchange_peek(e->exchange, to, &a->frame))
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
    way *v = &e->ways[a->peer];
    v->blocked = !sent;
    if (!sent) return;
    switch (a->frame.kind) {
    case DLXI_FRAME_GREETING:
        v->greeted_ms = e->now_ms;
        break;
    case DLXI_FRAME_ANCHOR:
        dlxi_transfer_advance(&v->gives, e->state);
        v->sent++;
        break;
    default:
        dlxi_exchange_advance(e->exchange, (uint16_t)a->peer);
        e->moved_ms = e->now_ms;
        v->sent++;
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
        listen_advance(e);
        break;
    case DLXI_ENGINE_CONNECT:
        e->connected++;
        break;
    default:
        break;
    }
    engine_settle(e);
}
