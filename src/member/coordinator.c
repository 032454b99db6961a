/* SPDX-License-Identifier: Apache-2.0 */
#include "member/coordinator_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum {
    PING_MS = 250, /* well below the shortest timeout, 1 s */
    REFUSED_MS =
        3000 /* for so long a refused site's ranks still come; later ones are another try */
};

#define TOKENS_MAX (UINT64_C(1) << 48) /* of a site's round, so that no sum overflows */

dlx_status dlxi_coordinator_open(dlxi_coordinator **out, const dlxi_coordinator_settings *settings,
                                 int64_t now_ms, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_coordinator *c = NULL;
    DLX_TRY_OUT(DLXI_NEW(&c, 1, error));
    c->settings = *settings;
    c->settings.shared_text = NULL;
    c->shared_text_is_given = settings->shared_text != NULL;
    c->term = 1;
    c->round = 1;
    c->pinged_ms = now_ms;
    if (settings->shared_text != NULL && (c->shared_text = strdup(settings->shared_text)) == NULL)
        DLX_FAIL_OUT(error, MEMORY, "out of memory for the run's settings");
    DLX_TRY_OUT(dlxi_ledger_open(&c->ledger, error));
    *out = c;
    return DLX_OK;
out:
    *out = NULL;
    dlxi_coordinator_close(&c);
    return status;
}

static void release(dlxi_member *s) {
    for (uint16_t r = 0; r < s->ranks; r++) free(s->participants[r].endpoints);
    free(s->participants);
    free(s->report);
}

void dlxi_coordinator_close(dlxi_coordinator **coordinator) {
    dlxi_coordinator *c = *coordinator;
    if (c == NULL) return;
    for (uint16_t i = 0; i < c->count; i++) release(&c->sites[i]);
    dlxi_outbox_clear(&c->outbox);
    dlxi_ledger_close(&c->ledger);
    free(c->shared_text);
    free(c);
    *coordinator = NULL;
}

/* ---- sending --------------------------------------------------------------------------------- */

static dlxi_message *compose(dlxi_coordinator *c, dlxi_frame_kind kind) {
    dlxi_message *message = &c->outbox.scratch;
    message->kind = kind;
    return message;
}

static dlx_status put(dlxi_coordinator *c, uint32_t peer, const dlxi_message *message) {
    dlxi_frame header = {
        .term = c->term, .round = c->round, .attempt = c->attempt, .site = DLXI_SITE_COORDINATOR};
    return dlxi_outbox_put(&c->outbox, peer, header, message, NULL);
}

static void put_reason(dlxi_coordinator *c, uint32_t peer, dlxi_frame_kind kind, dlx_status status,
                       const char *text) {
    dlxi_message *message = compose(c, kind);
    message->as.reason.status = (uint16_t)status;
    dlxi_text_copy(message->as.reason.text, sizeof message->as.reason.text, text);
    (void)put(c, peer, message); /* what can't be said is found out by silence */
}

static dlxi_label label_of(const dlxi_member *s, const dlxi_participant *p) {
    return dlxi_label_for(s->name, (uint16_t)(p - s->participants), s->ranks);
}

static void put_reason_to_site(dlxi_coordinator *c, const dlxi_member *s,
                               const dlxi_participant *except, dlx_status status,
                               const char *text) {
    for (uint16_t r = 0; r < s->ranks; r++) {
        const dlxi_participant *p = &s->participants[r];
        if (p->there && p != except) put_reason(c, p->peer, DLXI_FRAME_STOP, status, text);
    }
}

void dlxi_coordinator_fail(dlxi_coordinator *c, dlx_status status, const char *name,
                           const char *format, ...) {
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    char text[DLXI_REASON_MAX + 1];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    c->phase = DLXI_COORDINATOR_DONE;
    dlxi_error_set(&c->result, status, "%s", text);
    c->result.round = (int64_t)c->round;
    dlxi_text_copy(c->result.site, sizeof c->result.site, name == NULL ? "" : name);
    for (uint16_t i = 0; i < c->count; i++) put_reason_to_site(c, &c->sites[i], NULL, status, text);
}

/* A message that can't be queued ends the run. */
static void put_or_fail(dlxi_coordinator *c, uint32_t peer, const dlxi_message *message) {
    if (put(c, peer, message) != DLX_OK)
        dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
}

static void put_site(dlxi_coordinator *c, const dlxi_member *s, const dlxi_message *message) {
    for (uint16_t r = 0; r < s->ranks; r++)
        if (s->participants[r].there) put_or_fail(c, s->participants[r].peer, message);
}

static void put_all(dlxi_coordinator *c, const dlxi_message *message) {
    for (uint16_t i = 0; i < c->count; i++) put_site(c, &c->sites[i], message);
}

/* ---- gathering ------------------------------------------------------------------------------- */

static dlxi_participant *find(dlxi_coordinator *c, uint32_t peer, dlxi_member **of) {
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].ranks; r++) {
            dlxi_participant *p = &c->sites[i].participants[r];
            if (!p->there || p->peer != peer) continue;
            *of = &c->sites[i];
            return p;
        }
    return NULL;
}

static dlxi_member *find_name(dlxi_coordinator *c, const char *name) {
    for (uint16_t i = 0; i < c->count; i++)
        if (strcmp(c->sites[i].name, name) == 0) return &c->sites[i];
    return NULL;
}

static uint16_t whole_count(const dlxi_coordinator *c) {
    uint16_t count = 0;
    for (uint16_t i = 0; i < c->count; i++)
        count = (uint16_t)(count + dlxi_member_is_whole(&c->sites[i]));
    return count;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const dlxi_member *)a)->name, ((const dlxi_member *)b)->name);
}

static void grant(dlxi_coordinator *c, uint64_t round) {
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_member *s = &c->sites[i];
        dlxi_ledger_grant(c->ledger, &s->leases[round % DLXI_COORDINATOR_LEASES], round,
                          s->windows > 0 ? s->lease_windows : 0);
    }
}

/* Sites are numbered by name, not by arrival, so that a run repeats; a round is granted to all
 * before the next one, so that one step of D sites uses the windows that one site with D times the
 * batch would. */
static void welcome(dlxi_coordinator *c) {
    qsort(c->sites, c->count, sizeof *c->sites, by_name);
    grant(c, 1);
    grant(c, 2);
    uint16_t ranks = c->sites[0].ranks;
    c->welcomed = true;
    c->participants = (uint32_t)c->count * ranks;
    for (uint16_t to = 0; to < c->count; to++) {
        for (uint16_t r = 0; r < ranks; r++) {
            dlxi_welcome *w = &compose(c, DLXI_FRAME_WELCOME)->as.welcome;
            *w = (dlxi_welcome){
                .site = to, .sites = c->count, .tokens_target = c->settings.tokens_target};
            for (uint16_t i = 0; i < c->count; i++) {
                memcpy(w->members[i].name, c->sites[i].name, sizeof w->members[i].name);
                memcpy(w->members[i].public_key, c->sites[i].key, sizeof w->members[i].public_key);
                w->members[i].needs_anchor = c->sites[i].participants[r].anchor_hash !=
                                             c->sites[0].participants[r].anchor_hash;
            }
            w->leases[0] = c->sites[to].leases[1 % DLXI_COORDINATOR_LEASES];
            w->leases[1] = c->sites[to].leases[2 % DLXI_COORDINATOR_LEASES];
            put_or_fail(c, c->sites[to].participants[r].peer, &c->outbox.scratch);
        }
    }
}

/* Its place is free for another, and its other ranks are told why; the settings of one that is gone
 * bind nobody. */
static void leave(dlxi_coordinator *c, dlxi_member *s, const dlxi_participant *culprit,
                  dlx_status status, const char *text) {
    put_reason_to_site(c, s, culprit, status, text);
    release(s);
    *s = c->sites[--c->count];
    c->sites[c->count] = (dlxi_member){0};
    if (c->count > 0 || c->shared_text_is_given) return;
    free(c->shared_text);
    c->shared_text = NULL;
}

/* Whether a rank of this site was refused a short time ago, and this one not yet told. */
static bool was_refused(dlxi_coordinator *c, const dlxi_hello *hello, int64_t now_ms) {
    dlxi_refused_site *r = &c->refused;
    bool same =
        strcmp(r->name, hello->site) == 0 && now_ms < r->until_ms && hello->rank < DLXI_RANKS_MAX;
    if (!same) return false;
    if (r->told[hello->rank]) r->name[0] = '\0';
    bool first_time = !r->told[hello->rank];
    r->told[hello->rank] = true;
    return first_time;
}

/* The whole site is refused for what one of its ranks said. `s`: what is there of it, or NULL. */
static void refuse_site(dlxi_coordinator *c, dlxi_member *s, const dlxi_hello *hello,
                        const char *text, int64_t now_ms) {
    if (hello->ranks > 1 && hello->rank < DLXI_RANKS_MAX) {
        c->refused = (dlxi_refused_site){.until_ms = now_ms + REFUSED_MS};
        dlxi_text_copy(c->refused.name, sizeof c->refused.name, hello->site);
        dlxi_text_copy(c->refused.text, sizeof c->refused.text, text);
        c->refused.told[hello->rank] = true;
        for (uint16_t r = 0; s != NULL && r < s->ranks; r++)
            if (s->participants[r].there) c->refused.told[r] = true;
    }
    if (s != NULL) leave(c, s, NULL, DLX_REFUSED, text);
}

/* True where whoever says this can't join; `text` says why. Who watches is told once a site. */
static bool refuse(char text[DLXI_REASON_MAX + 1], dlxi_coordinator *c, const char *proved_name,
                   const dlxi_hello *hello, int64_t now_ms) {
    dlxi_member *s = find_name(c, hello->site);
    bool refused = dlxi_coordinator_has_no_place(text, c, proved_name, s, hello);
    if (!refused && was_refused(c, hello, now_ms)) {
        dlxi_text_copy(text, DLXI_REASON_MAX + 1, c->refused.text);
        return true;
    }
    if (!refused && dlxi_coordinator_misfit(text, c, s, hello)) {
        refuse_site(c, s, hello, text, now_ms);
        refused = true;
    }
    if (refused) snprintf(c->notice, sizeof c->notice, "refused a site: %s", text);
    return refused;
}

/* A place for a new site, or NULL without memory. */
static dlxi_member *enter(dlxi_coordinator *c, const dlxi_hello *hello, const char *key) {
    dlxi_participant *participants;
    if (c->shared_text == NULL && (c->shared_text = strdup(hello->shared_text)) == NULL)
        return NULL;
    if (DLXI_NEW(&participants, hello->ranks, NULL) != DLX_OK) return NULL;
    dlxi_member *s = &c->sites[c->count++];
    *s = (dlxi_member){.ranks = hello->ranks,
                       .participants = participants,
                       .windows = hello->windows,
                       .tokens_per_window = hello->tokens_per_window,
                       .data_hash = hello->data_hash,
                       .lease_windows = hello->lease_windows};
    memcpy(s->name, hello->site, sizeof s->name);
    dlxi_text_copy(s->key, sizeof s->key, key);
    return s;
}

static void on_hello(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key,
                     const dlxi_hello *hello, int64_t now_ms) {
    char text[DLXI_REASON_MAX + 1];
    if (refuse(text, c, name, hello, now_ms)) {
        put_reason(c, peer, DLXI_FRAME_STOP, DLX_REFUSED, text);
        return;
    }
    dlxi_member *s = find_name(c, hello->site);
    if (s == NULL) s = enter(c, hello, key);
    if (s == NULL) {
        dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
        return;
    }
    s->participants[hello->rank] = (dlxi_participant){.there = true,
                                                      .peer = peer,
                                                      .tensors_hash = hello->tensors_hash,
                                                      .anchor_hash = hello->anchor_hash,
                                                      .last_seen_ms = now_ms};
    s->there++;
    if (!dlxi_member_is_whole(s)) return;
    uint16_t whole = whole_count(c);
    snprintf(c->notice, sizeof c->notice, "site '%s' is there, %u of %u", s->name, whole,
             c->settings.sites);
    if (whole == c->settings.sites) welcome(c);
}

/* Rank r of every site learns where rank r of the others waits for it. */
static void put_peers(dlxi_coordinator *c) {
    for (uint16_t to = 0; to < c->count; to++) {
        for (uint16_t r = 0; r < c->sites[to].ranks; r++) {
            dlxi_endpoints *e = &compose(c, DLXI_FRAME_PEERS)->as.endpoints;
            e->sites = c->count;
            for (uint16_t i = 0; i < c->count; i++)
                memcpy(e->endpoint[i], c->sites[i].participants[r].endpoints->endpoint[to],
                       sizeof e->endpoint[i]);
            put_or_fail(c, c->sites[to].participants[r].peer, &c->outbox.scratch);
        }
    }
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].ranks; r++) {
            free(c->sites[i].participants[r].endpoints);
            c->sites[i].participants[r].endpoints = NULL;
        }
}

static void on_listening(dlxi_coordinator *c, dlxi_participant *p,
                         const dlxi_endpoints *endpoints) {
    if (c->phase != DLXI_COORDINATOR_GATHERING || !c->welcomed || endpoints->sites != c->count ||
        p->listening)
        return;
    if (DLXI_NEW(&p->endpoints, 1, NULL) != DLX_OK) {
        dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
        return;
    }
    *p->endpoints = *endpoints;
    p->listening = true;
    if (++c->listening_count < c->participants) return;
    put_peers(c);
    if (c->phase == DLXI_COORDINATOR_GATHERING) c->phase = DLXI_COORDINATOR_RUNNING;
}

/* ---- rounds ---------------------------------------------------------------------------------- */

/* The view of rank r: its own measurements of the exchange, and the step of the site's slowest
 * rank, which all wait for. */
static void view_of_rank(dlxi_view *view, const dlxi_coordinator *c, uint16_t rank) {
    view->members = c->count;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_member *s = &c->sites[i];
        uint64_t step_ns = 0;
        for (uint16_t r = 0; r < s->ranks; r++)
            if (s->participants[r].round_ready.step_ns > step_ns)
                step_ns = s->participants[r].round_ready.step_ns;
        view->member[i].site = i;
        view->member[i].tokens = s->tokens;
        view->member[i].step_ns = step_ns;
        view->member[i].exchange_ns = s->participants[rank].round_ready.exchange_ns;
        view->member[i].exchange_bytes = s->participants[rank].round_ready.exchange_bytes;
    }
}

static void begin(dlxi_coordinator *c) {
    c->attempt++;
    c->staged_count = 0;
    for (uint16_t r = 0; r < c->sites[0].ranks; r++) {
        view_of_rank(&compose(c, DLXI_FRAME_BEGIN)->as.view, c, r);
        for (uint16_t i = 0; i < c->count; i++) {
            c->sites[i].participants[r].staged = false;
            put_or_fail(c, c->sites[i].participants[r].peer, &c->outbox.scratch);
        }
    }
}

/* Whether all that handed out hold the same anchor, and all ranks of a site the same tokens; ends
 * the run if not. */
static bool agree_on_round(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_member *s = &c->sites[i];
        const dlxi_ready *first = &s->participants[0].round_ready;
        for (uint16_t r = 0; r < s->ranks; r++) {
            const dlxi_participant *p = &s->participants[r];
            const dlxi_ready *said = &p->round_ready;
            if (said->anchor_hash != c->sites[0].participants[r].round_ready.anchor_hash) {
                dlxi_coordinator_fail(c, DLX_DIVERGED, s->name,
                                      "%s holds another anchor than '%s' after round %llu; this is "
                                      "a bug or bad memory",
                                      label_of(s, p).text, c->sites[0].name,
                                      (unsigned long long)c->round - 1);
                return false;
            }
            if (said->tokens != first->tokens || said->windows_used != first->windows_used) {
                dlxi_coordinator_fail(
                    c, DLX_DIVERGED, s->name,
                    "%s says that its site trained on %llu tokens of %u windows in round %llu, its "
                    "rank 0 says %llu of %u; all ranks must count alike",
                    label_of(s, p).text, (unsigned long long)said->tokens, said->windows_used,
                    (unsigned long long)c->round, (unsigned long long)first->tokens,
                    first->windows_used);
                return false;
            }
        }
    }
    return true;
}

/* A site's weight: what it trained on, and never more than its lease. */
static uint64_t take_tokens(const dlxi_coordinator *c, dlxi_member *s) {
    s->tokens = s->participants[0].round_ready.tokens;
    s->windows_used = s->participants[0].round_ready.windows_used;
    if (s->windows == 0) return s->tokens;
    uint64_t leased = dlxi_lease_windows(&s->leases[c->round % DLXI_COORDINATOR_LEASES]);
    if (s->windows_used > leased) s->windows_used = (uint32_t)leased;
    uint64_t most = s->windows_used * s->tokens_per_window;
    if (s->tokens > most) s->tokens = most;
    return s->tokens;
}

static void on_ready(dlxi_coordinator *c, dlxi_member *s, dlxi_participant *p, uint64_t round,
                     const dlxi_ready *ready) {
    if (c->phase != DLXI_COORDINATOR_RUNNING || round != c->round || p->ready) {
        dlxi_coordinator_fail(
            c, DLX_DATA, s->name, "%s handed out round %llu while the run is at %llu",
            label_of(s, p).text, (unsigned long long)round, (unsigned long long)c->round);
        return;
    }
    if (!isfinite(ready->norm)) {
        dlxi_coordinator_fail(c, DLX_NUMERIC, s->name,
                              "the pseudo-gradient of %s is not finite in round %llu; lower "
                              "train.learning_rate or sync.outer_learning_rate",
                              label_of(s, p).text, (unsigned long long)round);
        return;
    }
    if (ready->tokens > TOKENS_MAX) {
        dlxi_coordinator_fail(c, DLX_DATA, s->name,
                              "%s claims %llu tokens in round %llu; allowed: up to %llu",
                              label_of(s, p).text, (unsigned long long)ready->tokens,
                              (unsigned long long)round, (unsigned long long)TOKENS_MAX);
        return;
    }
    p->ready = true;
    p->round_ready = *ready;
    if (++c->ready_count < c->participants || !agree_on_round(c)) return;
    uint64_t tokens = 0;
    for (uint16_t i = 0; i < c->count; i++) tokens += take_tokens(c, &c->sites[i]);
    if (tokens == 0)
        dlxi_coordinator_fail(c, DLX_DATA, NULL, "no site trained on any token in round %llu",
                              (unsigned long long)round);
    else
        begin(c);
}

static void abort_attempt(dlxi_coordinator *c, const char *why) {
    if (c->attempt >= c->settings.attempts_max) {
        dlxi_coordinator_fail(c, DLX_DIVERGED, NULL, "round %llu failed %u times, last: %s",
                              (unsigned long long)c->round, c->attempt, why);
        return;
    }
    dlxi_message *message = compose(c, DLXI_FRAME_ABORT);
    message->as.reason.status = DLX_ABORTED;
    dlxi_text_copy(message->as.reason.text, sizeof message->as.reason.text, why);
    put_all(c, message);
    begin(c);
}

static void commit(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_member *s = &c->sites[i];
        c->committed_tokens += s->tokens;
        dlxi_ledger_settle(c->ledger, &s->leases[c->round % DLXI_COORDINATOR_LEASES],
                           s->windows_used);
        for (uint16_t r = 0; r < s->ranks; r++)
            s->participants[r].ready = s->participants[r].staged = false;
    }
    c->ready_count = c->staged_count = 0;
    bool finished = c->committed_tokens >= c->settings.tokens_target;
    grant(c, c->round + 2);
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_commit *message = &compose(c, DLXI_FRAME_COMMIT)->as.commit;
        message->committed_tokens = c->committed_tokens;
        message->finished = finished;
        message->lease = c->sites[i].leases[(c->round + 2) % DLXI_COORDINATOR_LEASES];
        put_site(c, &c->sites[i], &c->outbox.scratch);
    }
    c->round++;
    c->attempt = 0;
    if (finished && c->phase == DLXI_COORDINATOR_RUNNING) c->phase = DLXI_COORDINATOR_ENDING;
}

/* Of the attempt that is under way; between rounds there is none, and what names it is stale or
 * made up. */
static bool is_current(const dlxi_coordinator *c, const dlxi_frame *frame) {
    return c->phase == DLXI_COORDINATOR_RUNNING && c->attempt > 0 && frame->round == c->round &&
           frame->attempt == c->attempt;
}

static bool staged_alike(const dlxi_coordinator *c) {
    bool alike = true;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].ranks; r++)
            alike = alike && c->sites[i].participants[r].staged_hash ==
                                 c->sites[0].participants[r].staged_hash;
    return alike;
}

static void on_staged(dlxi_coordinator *c, dlxi_participant *p, const dlxi_frame *frame,
                      uint64_t hash) {
    if (!is_current(c, frame)) return;
    p->staged_hash = hash;
    if (!p->staged) c->staged_count++;
    p->staged = true;
    if (c->staged_count < c->participants) return;
    if (staged_alike(c))
        commit(c);
    else
        abort_attempt(c, "the sites received different results");
}

static void on_report(dlxi_coordinator *c, dlxi_member *s, dlxi_participant *p, const char *text) {
    if (c->phase != DLXI_COORDINATOR_ENDING || p->reported) return;
    if (p == &s->participants[0] && (s->report = strdup(text)) == NULL) {
        dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
        return;
    }
    p->reported = true;
    if (++c->reported_count < c->participants) return;
    put_all(c, compose(c, DLXI_FRAME_FINISHED));
    c->phase = DLXI_COORDINATOR_DONE;
}

static void on_failed(dlxi_coordinator *c, dlxi_member *s, const dlxi_participant *p,
                      const dlxi_reason *reason) {
    bool known = reason->status != DLX_OK && reason->status <= DLX_DIVERGED;
    dlx_status status = known ? (dlx_status)reason->status : DLX_PEER_LOST;
    char text[DLXI_REASON_MAX + sizeof(dlxi_label) + 16]; /* cut where it is sent */
    snprintf(text, sizeof text, "%s failed: %s", label_of(s, p).text, reason->text);
    if (c->welcomed)
        dlxi_coordinator_fail(c, status, s->name, "%s", text);
    else
        leave(c, s, p, status, text);
}

/* ---- events ---------------------------------------------------------------------------------- */

void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name,
                               const char *key, const dlxi_frame *frame, int64_t now_ms) {
    dlxi_member *s = NULL;
    dlxi_participant *p = find(c, peer, &s);
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    if (p == NULL && frame->kind != DLXI_FRAME_HELLO) return;
    if (p != NULL) {
        p->last_seen_ms = now_ms;
        bool has_heard_none = frame->term == 0 && c->phase == DLXI_COORDINATOR_GATHERING;
        if (frame->term != c->term && !has_heard_none) return;
    }
    dlx_error error;
    if (dlxi_message_decode(&c->incoming, frame, &error) != DLX_OK) {
        if (p != NULL)
            dlxi_coordinator_fail(c, DLX_DATA, s->name, "%s sent a malformed message",
                                  label_of(s, p).text);
        return;
    }
    switch (frame->kind) {
    case DLXI_FRAME_HELLO:
        if (p == NULL) on_hello(c, peer, name, key, &c->incoming.as.hello, now_ms);
        break;
    case DLXI_FRAME_LISTENING:
        on_listening(c, p, &c->incoming.as.endpoints);
        break;
    case DLXI_FRAME_READY:
        on_ready(c, s, p, frame->round, &c->incoming.as.ready);
        break;
    case DLXI_FRAME_STAGED:
        on_staged(c, p, frame, c->incoming.as.staged.hash);
        break;
    case DLXI_FRAME_ABORT:
        if (is_current(c, frame)) abort_attempt(c, c->incoming.as.reason.text);
        break;
    case DLXI_FRAME_FAILED:
        on_failed(c, s, p, &c->incoming.as.reason);
        break;
    case DLXI_FRAME_REPORT:
        on_report(c, s, p, c->incoming.as.report.text);
        break;
    default:
        break; /* pings were heard above; the rest is not for a coordinator */
    }
}

/* The first rank of the site that has been silent for too long, or NULL. */
static const dlxi_participant *silent_rank(const dlxi_coordinator *c, const dlxi_member *s,
                                           int64_t now_ms) {
    for (uint16_t r = 0; r < s->ranks; r++) {
        const dlxi_participant *p = &s->participants[r];
        if (p->there && now_ms - p->last_seen_ms > c->settings.timeout_ms) return p;
    }
    return NULL;
}

void dlxi_coordinator_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    for (uint16_t i = 0; i < c->count;) {
        dlxi_member *s = &c->sites[i];
        const dlxi_participant *silent = silent_rank(c, s, now_ms);
        if (silent == NULL) {
            i++;
            continue;
        }
        char text[DLXI_REASON_MAX + 1];
        snprintf(text, sizeof text, "%s was not heard of for %lld ms", label_of(s, silent).text,
                 (long long)(now_ms - silent->last_seen_ms));
        if (c->welcomed) {
            dlxi_coordinator_fail(c, DLX_PEER_LOST, s->name, "%s", text);
            return;
        }
        leave(c, s, silent, DLX_PEER_LOST, text);
    }
    if (now_ms - c->pinged_ms >= PING_MS) {
        c->pinged_ms = now_ms;
        put_all(c, compose(c, DLXI_FRAME_PING));
    }
}

bool dlxi_coordinator_take_notice(dlxi_coordinator *c, char *text, size_t text_bytes) {
    if (c->notice[0] == '\0') return false;
    dlxi_text_copy(text, text_bytes, c->notice);
    c->notice[0] = '\0';
    return true;
}

dlxi_outbox *dlxi_coordinator_outbox(dlxi_coordinator *c) {
    return &c->outbox;
}

dlxi_coordinator_phase dlxi_coordinator_phase_of(const dlxi_coordinator *c) {
    return c->phase;
}

dlx_status dlxi_coordinator_result(const dlxi_coordinator *c, dlx_error *error) {
    if (error != NULL && c->result.status != DLX_OK) *error = c->result;
    return c->result.status;
}

const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t index, const char **name) {
    if (index >= c->count) return NULL;
    *name = c->sites[index].name;
    return c->sites[index].report;
}
