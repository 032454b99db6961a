#include "member/coordinator.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/options.h"
#include "member/lease.h"

enum { PING_MS = 250 /* well below the shortest timeout, 1 s */, LEASES = 3 /* rounds t, t+1, t+2 */ };

#define TOKENS_MAX            (UINT64_C(1) << 48) /* of a site's round, so that no sum overflows */
#define TOKENS_PER_WINDOW_MAX (UINT64_C(1) << 24)

typedef struct member {
    uint32_t peer;
    char name[DLXI_SITE_NAME_MAX + 1];
    char key[DLXI_KEY_TEXT_MAX + 1];
    uint64_t tensors_hash, anchor_hash, windows, tokens_per_window, data_hash;
    uint32_t lease_windows;
    bool listening, ready, staged, reported;
    dlxi_endpoints endpoints;
    dlxi_ready round_ready;
    uint64_t staged_hash;
    dlxi_lease leases[LEASES]; /* of round t at t mod LEASES */
    int64_t heard_ms;
    char *report;
} member;

struct dlxi_coordinator {
    dlxi_coordinator_settings settings;
    dlxi_coordinator_phase phase;
    dlx_error result;
    uint32_t term, attempt;
    uint64_t round, committed_tokens;
    int64_t pinged_ms;
    char *shared_text;
    bool shared_text_is_given; /* or the first site's */
    uint16_t count;            /* joined */
    member members[DLXI_SITES_MAX];
    dlxi_ledger *ledger;
    dlxi_outbox outbox;
    dlxi_message incoming;
    char notice[DLXI_REASON_MAX + 64];
};

dlx_status dlxi_coordinator_open(dlxi_coordinator **out, const dlxi_coordinator_settings *settings, int64_t now_ms,
                                 dlx_error *error) {
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

void dlxi_coordinator_close(dlxi_coordinator **coordinator) {
    dlxi_coordinator *c = *coordinator;
    if (c == NULL) return;
    for (uint16_t i = 0; i < c->count; i++) free(c->members[i].report);
    dlxi_outbox_clear(&c->outbox);
    dlxi_ledger_close(&c->ledger);
    free(c->shared_text);
    free(c);
    *coordinator = NULL;
}

/* ---- sending --------------------------------------------------------------------------------------------------- */

static dlxi_message *compose(dlxi_coordinator *c, dlxi_frame_kind kind) {
    dlxi_message *message = &c->outbox.scratch;
    message->kind = kind;
    return message;
}

static dlx_status put(dlxi_coordinator *c, uint32_t peer, const dlxi_message *message) {
    dlxi_frame header = {.term = c->term, .round = c->round, .attempt = c->attempt, .site = DLXI_SITE_COORDINATOR};
    return dlxi_outbox_put(&c->outbox, peer, header, message, NULL);
}

static void put_reason(dlxi_coordinator *c, uint32_t peer, dlxi_frame_kind kind, dlx_status status, const char *text) {
    dlxi_message *message = compose(c, kind);
    message->as.reason.status = (uint16_t)status;
    dlxi_text_copy(message->as.reason.text, sizeof message->as.reason.text, text);
    (void)put(c, peer, message); /* what can't be said is found out by silence */
}

void dlxi_coordinator_fail(dlxi_coordinator *c, dlx_status status, const char *site, const char *format, ...) {
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    char text[DLXI_REASON_MAX + 1];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    c->phase = DLXI_COORDINATOR_DONE;
    dlxi_error_set(&c->result, status, "%s", text);
    c->result.round = (int64_t)c->round;
    dlxi_text_copy(c->result.site, sizeof c->result.site, site == NULL ? "" : site);
    for (uint16_t i = 0; i < c->count; i++) put_reason(c, c->members[i].peer, DLXI_FRAME_STOP, status, text);
}

/* Puts one message to all; a message that can't be queued ends the run. */
static void put_all(dlxi_coordinator *c, const dlxi_message *message) {
    for (uint16_t i = 0; i < c->count; i++)
        if (put(c, c->members[i].peer, message) != DLX_OK)
            dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
}

/* ---- gathering ------------------------------------------------------------------------------------------------- */

static member *find(dlxi_coordinator *c, uint32_t peer) {
    for (uint16_t i = 0; i < c->count; i++)
        if (c->members[i].peer == peer) return &c->members[i];
    return NULL;
}

static bool name_is_valid(const char *name) {
    size_t length = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return length > 0 && name[length] == '\0';
}

/* Why this site can't join, or false. */
static bool refusal(char text[DLXI_REASON_MAX + 1], dlxi_coordinator *c, const char *proved_name,
                    const dlxi_hello *hello) {
    size_t size = DLXI_REASON_MAX + 1;
    const member *first = c->count > 0 ? &c->members[0] : NULL;
    dlxi_option_difference difference;
    if (c->phase != DLXI_COORDINATOR_GATHERING)
        return snprintf(text, size, "the run has begun with %u sites; start a new run", c->count);
    if (!name_is_valid(hello->site))
        return snprintf(text, size, "a site's name is 1 to %d of A-Z a-z 0-9 . _ -; set --site", DLXI_SITE_NAME_MAX);
    if (proved_name[0] != '\0' && strcmp(proved_name, hello->site) != 0)
        return snprintf(text, size, "site '%s' uses the key of '%s'; set --site or wan.key", hello->site, proved_name);
    for (uint16_t i = 0; i < c->count; i++)
        if (strcmp(c->members[i].name, hello->site) == 0)
            return snprintf(text, size, "a site named '%s' is in the run already; give --site another name",
                            hello->site);
    if (hello->tokens_per_window > TOKENS_PER_WINDOW_MAX)
        return snprintf(text, size, "site '%s' has %llu tokens in a window; allowed: up to %llu", hello->site,
                        (unsigned long long)hello->tokens_per_window, (unsigned long long)TOKENS_PER_WINDOW_MAX);
    if (hello->ranks != 1)
        return snprintf(text, size, "site '%s' has %u ranks; a site is one rank for now", hello->site, hello->ranks);
    if (c->shared_text != NULL && !dlxi_options_canonical_equal(&difference, c->shared_text, strlen(c->shared_text),
                                                                hello->shared_text, strlen(hello->shared_text)))
        return snprintf(text, size, "%s: '%s' on site '%s', '%s' in the run; all sites must use the same value",
                        difference.key, difference.theirs, hello->site, difference.ours);
    if (first == NULL) return false;
    if (first->tensors_hash != hello->tensors_hash)
        return snprintf(
            text, size,
            "site '%s' has other tensors (names, shapes) or settings (overlap, inner steps, outer step, compression, "
            "adaptation, seed) than '%s'; all sites must have the same",
            hello->site, first->name);
    if (first->windows != hello->windows || first->data_hash != hello->data_hash ||
        first->tokens_per_window != hello->tokens_per_window)
        return snprintf(text, size,
                        "data.train: site '%s' has %llu windows (hash %016llx), '%s' has %llu (%016llx); all sites "
                        "need the same tokens",
                        hello->site, (unsigned long long)hello->windows, (unsigned long long)hello->data_hash,
                        first->name, (unsigned long long)first->windows, (unsigned long long)first->data_hash);
    return false;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const member *)a)->name, ((const member *)b)->name);
}

static void grant(dlxi_coordinator *c, uint64_t round) {
    for (uint16_t i = 0; i < c->count; i++) {
        member *m = &c->members[i];
        dlxi_ledger_grant(c->ledger, &m->leases[round % LEASES], round, m->windows > 0 ? m->lease_windows : 0);
    }
}

/* Sites are numbered by name, not by arrival, so that a run repeats; a round is granted to all before the next one, so
 * that one step of D sites uses the windows that one site with D times the batch would. */
static void welcome(dlxi_coordinator *c) {
    qsort(c->members, c->count, sizeof *c->members, by_name);
    grant(c, 1);
    grant(c, 2);
    for (uint16_t to = 0; to < c->count; to++) {
        dlxi_welcome *w = &compose(c, DLXI_FRAME_WELCOME)->as.welcome;
        *w = (dlxi_welcome){.site = to, .sites = c->count, .tokens_target = c->settings.tokens_target};
        for (uint16_t i = 0; i < c->count; i++) {
            memcpy(w->members[i].name, c->members[i].name, sizeof w->members[i].name);
            memcpy(w->members[i].public_key, c->members[i].key, sizeof w->members[i].public_key);
            w->members[i].needs_anchor = c->members[i].anchor_hash != c->members[0].anchor_hash;
        }
        w->leases[0] = c->members[to].leases[1 % LEASES];
        w->leases[1] = c->members[to].leases[2 % LEASES];
        if (put(c, c->members[to].peer, &c->outbox.scratch) != DLX_OK)
            dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
    }
}

static void on_hello(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key, const dlxi_hello *hello,
                     int64_t now_ms) {
    char text[DLXI_REASON_MAX + 1];
    if (refusal(text, c, name, hello)) {
        snprintf(c->notice, sizeof c->notice, "refused a site: %s", text);
        put_reason(c, peer, DLXI_FRAME_STOP, DLX_REFUSED, text);
        return;
    }
    if (c->shared_text == NULL && (c->shared_text = strdup(hello->shared_text)) == NULL) {
        dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
        return;
    }
    member *m = &c->members[c->count++];
    *m = (member){.peer = peer,
                  .tensors_hash = hello->tensors_hash,
                  .anchor_hash = hello->anchor_hash,
                  .windows = hello->windows,
                  .tokens_per_window = hello->tokens_per_window,
                  .data_hash = hello->data_hash,
                  .lease_windows = hello->lease_windows,
                  .heard_ms = now_ms};
    memcpy(m->name, hello->site, sizeof m->name);
    dlxi_text_copy(m->key, sizeof m->key, key);
    snprintf(c->notice, sizeof c->notice, "site '%s' is there, %u of %u", m->name, c->count, c->settings.sites);
    if (c->count == c->settings.sites) welcome(c);
}

static void on_listening(dlxi_coordinator *c, member *m, const dlxi_endpoints *endpoints) {
    if (c->phase != DLXI_COORDINATOR_GATHERING || c->count < c->settings.sites || endpoints->sites != c->count) return;
    m->endpoints = *endpoints;
    m->listening = true;
    for (uint16_t i = 0; i < c->count; i++)
        if (!c->members[i].listening) return;
    for (uint16_t to = 0; to < c->count; to++) {
        dlxi_endpoints *e = &compose(c, DLXI_FRAME_PEERS)->as.endpoints;
        e->sites = c->count;
        for (uint16_t i = 0; i < c->count; i++)
            memcpy(e->endpoint[i], c->members[i].endpoints.endpoint[to], sizeof e->endpoint[i]);
        if (put(c, c->members[to].peer, &c->outbox.scratch) != DLX_OK)
            dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
    }
    if (c->phase == DLXI_COORDINATOR_GATHERING) c->phase = DLXI_COORDINATOR_RUNNING;
}

/* ---- rounds ---------------------------------------------------------------------------------------------------- */

static void begin(dlxi_coordinator *c) {
    dlxi_view *view = &compose(c, DLXI_FRAME_BEGIN)->as.view;
    c->attempt++;
    view->members = c->count;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_ready *r = &c->members[i].round_ready;
        c->members[i].staged = false;
        view->member[i].site = i;
        view->member[i].tokens = r->tokens;
        view->member[i].step_ns = r->step_ns;
        view->member[i].exchange_ns = r->exchange_ns;
        view->member[i].exchange_bytes = r->exchange_bytes;
    }
    put_all(c, &c->outbox.scratch);
}

static void on_ready(dlxi_coordinator *c, member *m, uint64_t round, const dlxi_ready *ready) {
    if (c->phase != DLXI_COORDINATOR_RUNNING || round != c->round || m->ready) {
        dlxi_coordinator_fail(c, DLX_DATA, m->name, "site '%s' handed out round %llu while the run is at %llu", m->name,
                              (unsigned long long)round, (unsigned long long)c->round);
        return;
    }
    if (!isfinite(ready->norm)) {
        dlxi_coordinator_fail(c, DLX_NUMERIC, m->name,
                              "the pseudo-gradient of site '%s' is not finite in round %llu; lower "
                              "train.learning_rate or sync.outer_learning_rate",
                              m->name, (unsigned long long)round);
        return;
    }
    if (ready->tokens > TOKENS_MAX) {
        dlxi_coordinator_fail(c, DLX_DATA, m->name, "site '%s' claims %llu tokens in round %llu; allowed: up to %llu",
                              m->name, (unsigned long long)ready->tokens, (unsigned long long)round,
                              (unsigned long long)TOKENS_MAX);
        return;
    }
    m->ready = true;
    m->round_ready = *ready;
    if (m->windows > 0) {
        uint64_t leased = dlxi_lease_windows(&m->leases[round % LEASES]);
        if (m->round_ready.windows_used > leased) m->round_ready.windows_used = (uint32_t)leased;
        uint64_t most = m->round_ready.windows_used * m->tokens_per_window;
        if (m->round_ready.tokens > most) m->round_ready.tokens = most;
    }
    uint64_t tokens = 0;
    for (uint16_t i = 0; i < c->count; i++) {
        if (!c->members[i].ready) return;
        tokens += c->members[i].round_ready.tokens;
        if (c->members[i].round_ready.anchor_hash != c->members[0].round_ready.anchor_hash) {
            dlxi_coordinator_fail(
                c, DLX_DIVERGED, c->members[i].name,
                "site '%s' holds another anchor than '%s' after round %llu; this is a bug or bad memory",
                c->members[i].name, c->members[0].name, (unsigned long long)round - 1);
            return;
        }
    }
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
        member *m = &c->members[i];
        c->committed_tokens += m->round_ready.tokens;
        dlxi_ledger_settle(c->ledger, &m->leases[c->round % LEASES], m->round_ready.windows_used);
        m->ready = m->staged = false;
    }
    bool finished = c->committed_tokens >= c->settings.tokens_target;
    grant(c, c->round + 2);
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_commit *message = &compose(c, DLXI_FRAME_COMMIT)->as.commit;
        message->committed_tokens = c->committed_tokens;
        message->finished = finished;
        message->lease = c->members[i].leases[(c->round + 2) % LEASES];
        if (put(c, c->members[i].peer, &c->outbox.scratch) != DLX_OK)
            dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
    }
    c->round++;
    c->attempt = 0;
    if (finished && c->phase == DLXI_COORDINATOR_RUNNING) c->phase = DLXI_COORDINATOR_ENDING;
}

/* Of the attempt that is under way; between rounds there is none, and what names it is stale or made up. */
static bool is_current(const dlxi_coordinator *c, const dlxi_frame *frame) {
    return c->phase == DLXI_COORDINATOR_RUNNING && c->attempt > 0 && frame->round == c->round &&
           frame->attempt == c->attempt;
}

static void on_staged(dlxi_coordinator *c, member *m, const dlxi_frame *frame, uint64_t hash) {
    if (!is_current(c, frame)) return;
    m->staged = true;
    m->staged_hash = hash;
    bool agree = true;
    for (uint16_t i = 0; i < c->count; i++) {
        if (!c->members[i].staged) return;
        agree = agree && c->members[i].staged_hash == c->members[0].staged_hash;
    }
    if (agree)
        commit(c);
    else
        abort_attempt(c, "the sites received different results");
}

static void on_report(dlxi_coordinator *c, member *m, const char *text) {
    if (c->phase != DLXI_COORDINATOR_ENDING || m->reported) return;
    m->report = strdup(text);
    if (m->report == NULL) {
        dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
        return;
    }
    m->reported = true;
    for (uint16_t i = 0; i < c->count; i++)
        if (!c->members[i].reported) return;
    put_all(c, compose(c, DLXI_FRAME_FINISHED));
    c->phase = DLXI_COORDINATOR_DONE;
}

/* Its place is free for another; the settings of one that is gone bind nobody. */
static void leave(dlxi_coordinator *c, member *m) {
    *m = c->members[--c->count];
    if (c->count > 0 || c->shared_text_is_given) return;
    free(c->shared_text);
    c->shared_text = NULL;
}

static void on_failed(dlxi_coordinator *c, member *m, const dlxi_reason *reason) {
    if (c->phase == DLXI_COORDINATOR_GATHERING && c->count < c->settings.sites) {
        leave(c, m);
        return;
    }
    bool known = reason->status != DLX_OK && reason->status <= DLX_DIVERGED;
    dlxi_coordinator_fail(c, known ? (dlx_status)reason->status : DLX_PEER_LOST, m->name, "site '%s' failed: %s",
                          m->name, reason->text);
}

/* ---- events ---------------------------------------------------------------------------------------------------- */

void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key,
                               const dlxi_frame *frame, int64_t now_ms) {
    member *m = find(c, peer);
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    if (m == NULL && frame->kind != DLXI_FRAME_HELLO) return;
    if (m != NULL) {
        m->heard_ms = now_ms;
        bool has_heard_none = frame->term == 0 && c->phase == DLXI_COORDINATOR_GATHERING;
        if (frame->term != c->term && !has_heard_none) return;
    }
    dlx_error error;
    if (dlxi_message_decode(&c->incoming, frame, &error) != DLX_OK) {
        if (m != NULL) dlxi_coordinator_fail(c, DLX_DATA, m->name, "site '%s' sent a malformed message", m->name);
        return;
    }
    switch (frame->kind) {
    case DLXI_FRAME_HELLO:
        if (m == NULL) on_hello(c, peer, name, key, &c->incoming.as.hello, now_ms);
        break;
    case DLXI_FRAME_LISTENING:
        on_listening(c, m, &c->incoming.as.endpoints);
        break;
    case DLXI_FRAME_READY:
        on_ready(c, m, frame->round, &c->incoming.as.ready);
        break;
    case DLXI_FRAME_STAGED:
        on_staged(c, m, frame, c->incoming.as.staged.hash);
        break;
    case DLXI_FRAME_ABORT:
        if (is_current(c, frame)) abort_attempt(c, c->incoming.as.reason.text);
        break;
    case DLXI_FRAME_FAILED:
        on_failed(c, m, &c->incoming.as.reason);
        break;
    case DLXI_FRAME_REPORT:
        on_report(c, m, c->incoming.as.report.text);
        break;
    default:
        break; /* pings were heard above; the rest is not for a coordinator */
    }
}

void dlxi_coordinator_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    for (uint16_t i = 0; i < c->count;) {
        member *m = &c->members[i];
        if (now_ms - m->heard_ms <= c->settings.timeout_ms) {
            i++;
        } else if (c->phase == DLXI_COORDINATOR_GATHERING && c->count < c->settings.sites) {
            leave(c, m);
        } else {
            dlxi_coordinator_fail(c, DLX_PEER_LOST, m->name, "site '%s' was not heard of for %lld ms", m->name,
                                  (long long)(now_ms - m->heard_ms));
            return;
        }
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

const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t site, const char **name) {
    if (site >= c->count) return NULL;
    *name = c->members[site].name;
    return c->members[site].report;
}
