/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator as a whole: open and close, messages, dispatch of frames, time. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/panic.h"
#include "member/coordinator_internal.h"

enum {
    PING_MS = 250, /* well below the shortest timeout, 1 s */
    DROPPED_ANSWER_MS = 1000,
    PAUSE_MS = 1000, /* a longer gap between ticks is this process's own pause, not a silence */
    PEERS_MAX = 1 << 20
};

dlx_status dlxi_coordinator_open(dlxi_coordinator **out, const dlxi_coordinator_settings *settings,
                                 int64_t now_ms, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_coordinator *c = NULL;
    DLX_TRY_OUT(DLXI_NEW(&c, 1, error));
    c->settings = *settings;
    c->settings.shared_text = NULL;
    c->term = 1;
    c->round = 1;
    c->now_ms = c->pinged_ms = c->ticked_ms = c->opened_ms = now_ms;
    c->tell_ms = now_ms + DLXI_WAIT_TELL_FIRST_MS;
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

void dlxi_run_site_release(dlxi_run_site *s) {
    for (uint16_t r = 0; r < s->rank_count; r++) free(s->ranks[r].endpoints);
    free(s->ranks);
    free(s->report);
}

void dlxi_coordinator_close(dlxi_coordinator **coordinator) {
    dlxi_coordinator *c = *coordinator;
    if (c == NULL) return;
    for (uint16_t i = 0; i < c->count; i++) dlxi_run_site_release(&c->sites[i]);
    dlxi_outbox_clear(&c->outbox);
    dlxi_ledger_close(&c->ledger);
    free(c->peers);
    free(c->shared_text);
    free(c->sites_text);
    free(c->expected);
    free(c);
    *coordinator = NULL;
}

dlx_status dlxi_coordinator_expect(dlxi_coordinator *c, const char *name, dlx_error *error) {
    char(*grown)[DLXI_NAME_BYTES] =
        realloc(c->expected, (c->expected_count + (size_t)1) * sizeof *c->expected);
    if (grown == NULL) DLX_FAIL(error, MEMORY, "out of memory for the names of sites");
    c->expected = grown;
    dlxi_text_copy(grown[c->expected_count++], DLXI_NAME_BYTES, name);
    return DLX_OK;
}

/* ---- messages and log ------------------------------------------------------------------------ */

dlxi_label dlxi_label_of(const dlxi_run_site *s, const dlxi_run_rank *p) {
    return dlxi_label_for(s->name, (uint16_t)(p - s->ranks), s->rank_count);
}

bool dlxi_coordinator_pop_log(dlxi_coordinator *c, char *text, size_t text_bytes) {
    const char *line = dlxi_lines_peek(&c->log);
    if (line == NULL) return false;
    dlxi_text_copy(text, text_bytes, line);
    dlxi_lines_drop(&c->log);
    return true;
}

dlxi_message *dlxi_coordinator_compose(dlxi_coordinator *c, dlxi_frame_kind kind) {
    c->outbox.scratch.kind = kind;
    return &c->outbox.scratch;
}

static dlx_status message_put(dlxi_coordinator *c, uint32_t peer, uint64_t round,
                              uint32_t attempt) {
    dlxi_frame header = {.term = c->term,
                         .round = round,
                         .attempt = attempt,
                         .site = DLXI_SITE_COORDINATOR,
                         .trip = dlxi_coordinator_is_linked(c)};
    return dlxi_outbox_put(&c->outbox, peer, header, &c->outbox.scratch, NULL);
}

void dlxi_coordinator_put(dlxi_coordinator *c, dlxi_run_rank *p, uint64_t round, uint32_t attempt) {
    if (c->outbox.scratch.kind != DLXI_FRAME_PING) p->answered_ms = c->now_ms;
    if (message_put(c, p->peer, round, attempt) != DLX_OK) dlxi_coordinator_fail_memory(c);
}

void dlxi_coordinator_put_all(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            if (c->sites[i].ranks[r].joined && !dlxi_run_site_is_dropped(&c->sites[i]))
                dlxi_coordinator_put(c, &c->sites[i].ranks[r], c->round, c->attempt);
}

void dlxi_coordinator_put_reason(dlxi_coordinator *c, uint32_t peer, dlxi_frame_kind kind,
                                 dlx_status status, const char *text) {
    dlxi_reason *reason = &dlxi_coordinator_compose(c, kind)->as.reason;
    reason->status = (uint16_t)status;
    dlxi_text_copy(reason->text, sizeof reason->text, text);
    /* a peer that does not get it notices the silence */
    (void)message_put(c, peer, c->round, c->attempt);
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
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            if (c->sites[i].ranks[r].joined)
                dlxi_coordinator_put_reason(c, c->sites[i].ranks[r].peer, DLXI_FRAME_STOP, status,
                                            text);
}

void dlxi_coordinator_fail_memory(dlxi_coordinator *c) {
    dlxi_coordinator_fail(c, DLX_MEMORY, NULL, "the coordinator ran out of memory");
}

/* ---- frames ---------------------------------------------------------------------------------- */

static bool peers_grow(dlxi_coordinator *c, uint32_t peer) {
    if (peer < c->peer_room) return true;
    uint32_t room = c->peer_room == 0 ? 64 : c->peer_room;
    while (room <= peer) room *= 2;
    dlxi_run_peer *grown = realloc(c->peers, (size_t)room * sizeof *grown);
    if (grown == NULL) return false;
    for (uint32_t i = c->peer_room; i < room; i++) grown[i].site = DLXI_SITE_NONE;
    c->peers = grown;
    c->peer_room = room;
    return true;
}

void dlxi_coordinator_index_peers(dlxi_coordinator *c) {
    for (uint32_t i = 0; i < c->peer_room; i++) c->peers[i].site = DLXI_SITE_NONE;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) {
            const dlxi_run_rank *p = &c->sites[i].ranks[r];
            if (p->joined) c->peers[p->peer] = (dlxi_run_peer){i, r};
        }
}

void dlxi_coordinator_lose(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                           dlx_status status, const char *text) {
    if (!c->welcomed)
        dlxi_gather_leave(c, s, culprit, status, text);
    else if (dlxi_rounds_can_spare(c, s))
        dlxi_rounds_drop(c, s, status, text);
    else
        dlxi_coordinator_fail(c, status, s->name, "%s", text);
}

static void on_failed(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *p,
                      const dlxi_reason *reason) {
    bool known = reason->status != DLX_OK && reason->status <= DLX_DIVERGED;
    dlx_status status = known ? (dlx_status)reason->status : DLX_PEER_LOST;
    char text[DLXI_REASON_MAX + sizeof(dlxi_label) + 16]; /* cut where it is sent */
    snprintf(text, sizeof text, "%s failed: %s", dlxi_label_of(s, p).text, reason->text);
    if (c->phase == DLXI_COORDINATOR_CLOSING) return; /* it has reported */
    dlxi_coordinator_lose(c, s, p, status, text);
}

/* A dropped site that still speaks has not heard of it. */
static void dropped_answer(dlxi_coordinator *c, const dlxi_run_site *s, dlxi_run_rank *p) {
    if (c->now_ms - p->answered_ms < DROPPED_ANSWER_MS) return;
    p->answered_ms = c->now_ms;
    dlxi_coordinator_put_reason(c, p->peer, DLXI_FRAME_STOP, s->dropped_status, s->dropped_why);
}

static void frame_dispatch(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const dlxi_frame *frame) {
    const dlxi_message *m = &c->incoming;
    switch (frame->kind) {
    case DLXI_FRAME_LISTENING:
        dlxi_gather_on_listening(c, p, &m->as.endpoints);
        break;
    case DLXI_FRAME_READY:
        dlxi_rounds_on_ready(c, s, p, frame->round, &m->as.ready);
        break;
    case DLXI_FRAME_STAGED:
        dlxi_rounds_on_staged(c, p, frame, m->as.staged.hash);
        break;
    case DLXI_FRAME_ABORT:
        dlxi_rounds_on_abort(c, frame, m->as.reason.text);
        break;
    case DLXI_FRAME_FAILED:
        on_failed(c, s, p, &m->as.reason);
        break;
    case DLXI_FRAME_REPORT:
        dlxi_rounds_on_report(c, s, p, m->as.report.text);
        break;
    case DLXI_FRAME_FINISHED:
        dlxi_rounds_on_finished(c, p);
        break;
    default:
        break; /* PING: its header was enough; others are not for a coordinator */
    }
}

void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name,
                               const char *key, const dlxi_frame *frame, int64_t now_ms) {
    if (c->phase == DLXI_COORDINATOR_DONE || peer >= PEERS_MAX) return;
    if (!peers_grow(c, peer)) {
        dlxi_coordinator_fail_memory(c);
        return;
    }
    c->now_ms = now_ms;
    const dlxi_run_peer from = c->peers[peer];
    bool known = from.site != DLXI_SITE_NONE;
    if (!known && frame->kind != DLXI_FRAME_HELLO) return;
    dlxi_run_site *s = known ? &c->sites[from.site] : NULL;
    dlxi_run_rank *p = known ? &s->ranks[from.rank] : NULL;
    if (known && dlxi_run_site_is_dropped(s)) {
        dropped_answer(c, s, p);
        return;
    }
    if (known) {
        p->last_seen_ms = now_ms;
        /* before welcome a rank knows no term */
        if (frame->term != c->term && !(frame->term == 0 && !p->listening)) return;
    }
    if (dlxi_message_decode(&c->incoming, frame, NULL) != DLX_OK) {
        char text[sizeof(dlxi_label) + 32];
        if (!known) return;
        snprintf(text, sizeof text, "%s sent a malformed message", dlxi_label_of(s, p).text);
        dlxi_coordinator_lose(c, s, NULL, DLX_DATA, text);
        return;
    }
    if (!known) {
        dlxi_gather_on_hello(c, peer, name, key, &c->incoming.as.hello, now_ms);
        return;
    }
    dlxi_gather_on_linked(c, p, frame->trip != 0);
    dlxi_rounds_answer(c, from.site, from.rank, frame, now_ms);
    frame_dispatch(c, s, p, frame);
}

/* ---- time ------------------------------------------------------------------------------------ */

/* The first rank of the site that has been silent for too long, or NULL. */
static const dlxi_run_rank *silent_rank_find(const dlxi_coordinator *c, const dlxi_run_site *s,
                                             int64_t now_ms) {
    for (uint16_t r = 0; r < s->rank_count; r++) {
        const dlxi_run_rank *p = &s->ranks[r];
        if (p->joined && !p->finished && now_ms - p->last_seen_ms > c->settings.timeout_ms)
            return p;
    }
    return NULL;
}

static void pause_forgive(dlxi_coordinator *c, int64_t now_ms) {
    int64_t gap_ms = now_ms - c->ticked_ms;
    c->ticked_ms = now_ms;
    if (gap_ms <= PAUSE_MS) return;
    c->opened_ms += gap_ms;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            c->sites[i].ranks[r].last_seen_ms += gap_ms;
}

static void silence_judge(dlxi_coordinator *c, int64_t now_ms) {
    for (uint16_t i = 0; i < c->count && c->phase < DLXI_COORDINATOR_CLOSING;) {
        dlxi_run_site *s = &c->sites[i];
        const dlxi_run_rank *silent =
            dlxi_run_site_is_dropped(s) ? NULL : silent_rank_find(c, s, now_ms);
        if (silent == NULL) {
            i++;
            continue;
        }
        char text[DLXI_REASON_MAX + 1];
        snprintf(text, sizeof text, "no message from %s for %lld ms (wan.timeout_s)",
                 dlxi_label_of(s, silent).text, (long long)(now_ms - silent->last_seen_ms));
        dlxi_coordinator_lose(c, s, silent, DLX_PEER_LOST, text);
    }
}

void dlxi_coordinator_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    DLXI_ASSERT(now_ms >= c->ticked_ms);
    c->now_ms = now_ms;
    dlxi_coordinator_check(c);
    pause_forgive(c, now_ms);
    silence_judge(c, now_ms);
    dlxi_gather_on_tick(c, now_ms);
    dlxi_rounds_on_tick(c, now_ms);
    if (c->phase == DLXI_COORDINATOR_CLOSING && now_ms - c->closing_ms > c->settings.timeout_ms)
        c->phase = DLXI_COORDINATOR_DONE;
    if (c->phase != DLXI_COORDINATOR_DONE && now_ms - c->pinged_ms >= PING_MS) {
        c->pinged_ms = now_ms;
        (void)dlxi_coordinator_compose(c, DLXI_FRAME_PING);
        dlxi_coordinator_put_all(c);
    }
}

/* ---- state ----------------------------------------------------------------------------------- */

void dlxi_coordinator_check(const dlxi_coordinator *c) {
    uint32_t listening = 0, linked = 0, ready = 0, staged = 0, reported = 0, finished = 0;
    uint32_t live = 0, ranks = 0;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        uint16_t joined = 0;
        live += !dlxi_run_site_is_dropped(s);
        ranks += dlxi_run_site_is_dropped(s) ? 0 : s->rank_count;
        for (uint16_t r = 0; r < s->rank_count; r++) {
            const dlxi_run_rank *p = &s->ranks[r];
            joined = (uint16_t)(joined + p->joined);
            if (dlxi_run_site_is_dropped(s)) continue;
            listening += p->listening;
            linked += p->linked;
            ready += p->ready;
            staged += p->staged;
            reported += p->reported;
            finished += p->finished;
            DLXI_ASSERT(!p->staged || p->ready);
            DLXI_ASSERT(!p->finished || p->reported);
        }
        DLXI_ASSERT(joined == s->joined);
        DLXI_ASSERT(!c->welcomed || dlxi_run_site_is_complete(s));
    }
    DLXI_ASSERT(!c->welcomed || (live == c->live && ranks == c->rank_count && live > 0));
    DLXI_ASSERT(listening == c->listening_count && linked == c->linked_count);
    DLXI_ASSERT(ready == c->ready_count);
    DLXI_ASSERT(staged == c->staged_count && reported == c->reported_count);
    DLXI_ASSERT(finished == c->finished_count);
    DLXI_ASSERT(c->phase != DLXI_COORDINATOR_GATHERING || c->round == 1);
    DLXI_ASSERT(c->phase < DLXI_COORDINATOR_ENDING || c->phase == DLXI_COORDINATOR_DONE ||
                c->committed_last);
    /* once all are ready an attempt is under way, and only then */
    DLXI_ASSERT(c->phase != DLXI_COORDINATOR_RUNNING ||
                (c->attempt > 0) == (c->ready_count == c->rank_count));
    DLXI_ASSERT(c->staged_count < c->rank_count || c->rank_count == 0);
}

dlxi_outbox *dlxi_coordinator_outbox(dlxi_coordinator *c) {
    return &c->outbox;
}

dlxi_coordinator_phase dlxi_coordinator_phase_of(const dlxi_coordinator *c) {
    return c->phase;
}

bool dlxi_coordinator_has_begun(const dlxi_coordinator *c) {
    return c->begun;
}

dlx_status dlxi_coordinator_result(const dlxi_coordinator *c, dlx_error *error) {
    if (error != NULL && c->result.status != DLX_OK) *error = c->result;
    return c->result.status;
}

bool dlxi_coordinator_dropped(const dlxi_coordinator *c, uint16_t index, uint64_t *round,
                              const char **name, const char **why) {
    if (index >= c->count || !dlxi_run_site_is_dropped(&c->sites[index])) return false;
    *round = c->sites[index].dropped_round;
    *name = c->sites[index].name;
    *why = c->sites[index].dropped_why;
    return true;
}

const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t index, const char **name) {
    if (index >= c->count) return NULL;
    *name = c->sites[index].name;
    return c->sites[index].report;
}
