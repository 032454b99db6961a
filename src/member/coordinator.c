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
    for (size_t i = 0; i < DLXI_COORDINATOR_RECORDS; i++) free(c->records[i]);
    free(c->proposal);
    dlxi_outbox_clear(&c->outbox);
    dlxi_ledger_close(&c->ledger);
    free(c->copy);
    dlxi_resume_forget(c);
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
                         .coordinator = c->settings.life_id,
                         .round = round,
                         .attempt = attempt,
                         .site = DLXI_SITE_COORDINATOR,
                         .trip = c->begun || dlxi_gather_is_linked(c)};
    return dlxi_outbox_put(&c->outbox, peer, header, &c->outbox.scratch, NULL);
}

void dlxi_coordinator_put(dlxi_coordinator *c, dlxi_run_rank *p, uint64_t round, uint32_t attempt) {
    if (!p->has_peer) return; /* it will speak, and get what it lacks */
    if (c->outbox.scratch.kind != DLXI_FRAME_PING) p->answered_ms = c->now_ms;
    if (message_put(c, p->peer, round, attempt) != DLX_OK) dlxi_coordinator_fail_memory(c);
}

void dlxi_coordinator_put_all(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            if (c->sites[i].ranks[r].joined && c->sites[i].presence == DLXI_PRESENT)
                dlxi_coordinator_put(c, &c->sites[i].ranks[r], c->round, c->attempt);
}

void dlxi_coordinator_put_reason(dlxi_coordinator *c, uint32_t peer, dlxi_frame_kind kind,
                                 dlx_status status, const char *text) {
    dlxi_reason *reason = &dlxi_coordinator_compose(c, kind)->as.reason;
    *reason = (dlxi_reason){.status = (uint16_t)status, .about = DLXI_SITE_NONE};
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
    if (c->leaves_run) return; /* sites that hear and are not heard wait for who goes on */
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            if (c->sites[i].ranks[r].has_peer)
                dlxi_coordinator_put_reason(c, c->sites[i].ranks[r].peer, DLXI_FRAME_STOP, status,
                                            text);
}

void dlxi_coordinator_leave(dlxi_coordinator *c, const char *format, ...) {
    char text[DLXI_REASON_MAX + 1];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    c->leaves_run = true;
    c->phase = DLXI_COORDINATOR_DONE;
    dlxi_error_set(&c->result, DLX_STATE, "%s", text);
    c->result.round = (int64_t)c->round;
    dlxi_outbox_clear(&c->outbox);
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
            if (p->has_peer) c->peers[p->peer] = (dlxi_run_peer){.site = i, .rank = r};
        }
}

static void on_failed(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *p,
                      const dlxi_reason *reason) {
    bool known = reason->status != DLX_OK && reason->status <= DLX_DIVERGED;
    dlx_status status = known ? (dlx_status)reason->status : DLX_PEER_LOST;
    char text[DLXI_REASON_MAX + sizeof(dlxi_label) + 16]; /* cut where it is sent */
    bool leaves = status == DLX_INTERRUPTED;
    snprintf(text, sizeof text, "%s %s: %s", dlxi_label_of(s, p).text, leaves ? "left" : "failed",
             reason->text);
    if (c->phase == DLXI_COORDINATOR_CLOSING) return; /* it has reported */
    dlxi_presence_lose(c, s, p, status, text);
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
        dlxi_rounds_on_staged(c, s, p, frame, m->as.staged.hash);
        break;
    case DLXI_FRAME_ABORT:
        dlxi_rounds_on_abort(c, s, frame, &m->as.reason);
        break;
    case DLXI_FRAME_FAILED:
        on_failed(c, s, p, &m->as.reason);
        break;
    case DLXI_FRAME_REPORT:
        dlxi_end_on_report(c, s, p, &m->as.report);
        break;
    case DLXI_FRAME_FINISHED:
        dlxi_end_on_finished(c, p);
        break;
    default:
        break; /* PING: it was read; others are not for a coordinator */
    }
}

/* Whether a site listens to another life of the coordinator now, which several of its pings say. */
static bool is_superseded(dlxi_coordinator *c, dlxi_run_rank *p, const dlxi_frame *frame) {
    enum { PINGS = 3 };
    bool other = frame->term > c->term ||
                 (frame->term == c->term && frame->coordinator != c->settings.life_id);
    if (!other) p->superseding = 0;
    if (!other || frame->kind != DLXI_FRAME_PING || ++p->superseding < PINGS) return false;
    dlxi_coordinator_leave(c,
                           "another coordinator has taken over this run (term %u; this one has "
                           "%u); start that one, or take the run over with --takeover",
                           frame->term, c->term);
    return true;
}

/* Whether a site has rounds that the store has not: the run went on elsewhere. One site may be
 * faulty, so this is so only until this life has committed something. */
static bool is_outrun(dlxi_coordinator *c, const dlxi_run_site *s, const dlxi_frame *frame) {
    if (!c->restored || c->committed || frame->round <= c->round) return false;
    dlxi_coordinator_leave(
        c,
        "site '%s' has round %llu, and this coordinator only %llu: the run has gone on under "
        "another one; start that one, or take the run over with --takeover",
        s->name, (unsigned long long)frame->round - 1, (unsigned long long)c->round - 1);
    return true;
}

/* A site that has not heard that this coordinator took the run over. */
static void claim_put(dlxi_coordinator *c, dlxi_run_rank *p) {
    enum { CLAIM_MS = 500 };
    if (!p->has_peer || c->now_ms - p->answered_ms < CLAIM_MS) return;
    dlxi_coordinator_compose(c, DLXI_FRAME_CLAIM)->as.claim =
        (dlxi_claim){.run_id = c->settings.run_id};
    dlxi_coordinator_put(c, p, c->round, c->attempt);
}

/* A site of another run, whose coordinator was at this address. */
static void stranger_tell(dlxi_coordinator *c, const dlxi_ping *ping) {
    if (ping->run_id == 0 || ping->run_id == c->settings.run_id || c->stranger_is_told) return;
    c->stranger_is_told = true;
    dlxi_lines_add(&c->log,
                   "a site of run %016llx is looking for its coordinator here; to go on with that "
                   "run: --takeover",
                   (unsigned long long)ping->run_id);
}

/* What a site had when it was given up. */
static void given_up_tell(dlxi_coordinator *c, const dlxi_run_site *s, uint64_t round) {
    uint64_t bit = UINT64_C(1) << (s - c->sites);
    if ((c->given_up & ~c->given_up_told & bit) == 0) return;
    c->given_up_told |= bit;
    uint64_t lost = round > c->taken_round ? round - c->taken_round : 0;
    dlxi_lines_add(&c->log,
                   "site '%s', which was given up, had applied %llu round%s that this run has not",
                   s->name, (unsigned long long)lost, lost == 1 ? "" : "s");
}

static void on_message(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key,
                       const dlxi_frame *frame) {
    const dlxi_message *m = &c->incoming;
    if (frame->kind == DLXI_FRAME_PING &&
        dlxi_presence_recognise(c, peer, name, frame, &m->as.ping))
        return; /* it speaks again, in this term, when it has heard of it */
    const dlxi_run_peer from = c->peers[peer];
    if (from.site == DLXI_SITE_NONE) {
        if (frame->kind == DLXI_FRAME_PING) {
            stranger_tell(c, &m->as.ping);
            dlxi_return_on_stranger(c, peer, name, frame, &m->as.ping);
        }
        if (frame->kind == DLXI_FRAME_HELLO)
            dlxi_gather_on_hello(c, peer, name, key, &m->as.hello, c->now_ms);
        return;
    }
    dlxi_run_site *s = &c->sites[from.site];
    dlxi_run_rank *p = &s->ranks[from.rank];
    if (s->presence == DLXI_GONE) {
        given_up_tell(c, s, frame->round);
        dlxi_presence_answer_lost(c, s, p);
        return;
    }
    if (!c->begun) p->last_seen_ms = c->now_ms;
    if (c->begun && is_superseded(c, p, frame)) return;
    /* before welcome a rank knows no term */
    bool mine = frame->term == c->term && frame->coordinator == c->settings.life_id;
    bool foreign = dlxi_lineage_of(frame->coordinator) != dlxi_lineage_of(c->settings.life_id);
    if (c->restored && foreign && frame->term < c->term) claim_put(c, p);
    if (!mine && !(frame->term == 0 && !p->listening)) return;
    if (is_outrun(c, s, frame)) return;
    if (frame->kind == DLXI_FRAME_PING) {
        dlxi_presence_on_ping(c, s, p, &m->as.ping);
        dlxi_return_on_ping(c, from.site, from.rank, m->as.ping.sites);
    }
    if (frame->kind == DLXI_FRAME_LISTENING && c->begun)
        dlxi_return_on_listening(c, s, p, &m->as.endpoints);
    dlxi_presence_on_frame(c, s, p);
    dlxi_gather_on_linked(c, p, (frame->trip & DLXI_SITE_LINKED) != 0);
    p->entered = p->entered || (frame->trip & DLXI_SITE_ENTERED) != 0;
    dlxi_rounds_answer(c, from.site, from.rank, frame, c->now_ms);
    if (s->presence == DLXI_PRESENT) frame_dispatch(c, s, p, frame);
}

void dlxi_coordinator_on_frame(dlxi_coordinator *c, uint32_t peer, const char *name,
                               const char *key, const dlxi_frame *frame, int64_t now_ms) {
    if (c->phase == DLXI_COORDINATOR_DONE || peer >= PEERS_MAX) return;
    if (!peers_grow(c, peer)) {
        dlxi_coordinator_fail_memory(c);
        return;
    }
    c->now_ms = now_ms;
    if (dlxi_message_decode(&c->incoming, frame, NULL) == DLX_OK) {
        on_message(c, peer, name, key, frame);
        return;
    }
    const dlxi_run_peer from = c->peers[peer];
    char text[sizeof(dlxi_label) + 32];
    if (from.site == DLXI_SITE_NONE || c->sites[from.site].presence == DLXI_GONE) return;
    dlxi_run_site *s = &c->sites[from.site];
    snprintf(text, sizeof text, "%s sent a malformed message",
             dlxi_label_of(s, &s->ranks[from.rank]).text);
    dlxi_presence_lose(c, s, NULL, DLX_DATA, text);
}

/* ---- time ------------------------------------------------------------------------------------ */

/* Notes of each peer whether a ping for it is in the outbox, which may be long. */
static void waiting_pings_find(dlxi_coordinator *c) {
    for (uint32_t i = 0; i < c->peer_room; i++) c->peers[i].ping_waits = false;
    for (const dlxi_outbox_item *item = c->outbox.first; item != NULL; item = item->next)
        if (item->frame.kind == DLXI_FRAME_PING) c->peers[item->to].ping_waits = true;
}

/* A rank whose last ping still waits gets no other: it would wait with it, and say no more. */
static void pings_put(dlxi_coordinator *c) {
    waiting_pings_find(c);
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        for (uint16_t r = 0; r < s->rank_count && s->presence != DLXI_GONE; r++) {
            dlxi_run_rank *p = &s->ranks[r];
            if (!p->joined || !p->has_peer || c->peers[p->peer].ping_waits) continue;
            dlxi_coordinator_compose(c, DLXI_FRAME_PING)->as.ping =
                (dlxi_ping){.run_id = c->settings.run_id,
                            .incarnation = p->incarnation,
                            .stamp = c->now_ms,
                            .sites = c->pairs.blocked[i],
                            .submission = p->ready ? p->round_ready.submission : 0,
                            .parts = s->parts,
                            .part_count = c->part_count,
                            .saves = c->part_count > 0 && c->saver == i};
            dlxi_coordinator_put(c, p, c->round, c->attempt);
        }
    }
}

void dlxi_coordinator_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    if (c->phase == DLXI_COORDINATOR_DONE) return;
    DLXI_ASSERT(now_ms >= c->ticked_ms);
    c->now_ms = now_ms;
    dlxi_coordinator_check(c);
    dlxi_presence_on_tick(c, now_ms);
    dlxi_gather_on_tick(c, now_ms);
    dlxi_rounds_on_tick(c, now_ms);
    dlxi_end_on_tick(c);
    if (c->phase == DLXI_COORDINATOR_CLOSING && now_ms - c->closing_ms > c->settings.timeout_ms)
        c->phase = DLXI_COORDINATOR_DONE;
    if (c->phase != DLXI_COORDINATOR_DONE && now_ms - c->pinged_ms >= PING_MS) {
        c->pinged_ms = now_ms;
        pings_put(c);
    }
}

/* ---- state ----------------------------------------------------------------------------------- */

bool dlxi_run_site_all(const dlxi_run_site *s, size_t flag_offset) {
    bool all = true;
    for (uint16_t r = 0; r < s->rank_count; r++)
        all = all && *(const bool *)((const char *)&s->ranks[r] + flag_offset);
    return all;
}

dlxi_run_site *dlxi_run_site_next(dlxi_coordinator *c, const dlxi_run_site *after) {
    size_t i = after == NULL ? 0 : (size_t)(after - c->sites) + 1;
    while (i < c->count && c->sites[i].presence != DLXI_PRESENT) i++;
    return i < c->count ? &c->sites[i] : NULL;
}

uint16_t dlxi_coordinator_present(const dlxi_coordinator *c) {
    uint16_t count = 0;
    for (uint16_t i = 0; i < c->count; i++)
        count = (uint16_t)(count + (c->sites[i].presence == DLXI_PRESENT));
    return count;
}

uint16_t dlxi_coordinator_left(const dlxi_coordinator *c) {
    uint16_t count = 0;
    for (uint16_t i = 0; i < c->count; i++)
        count = (uint16_t)(count + (c->sites[i].presence != DLXI_GONE));
    return count;
}

static void site_check(const dlxi_coordinator *c, const dlxi_run_site *s) {
    uint16_t joined = 0;
    for (uint16_t r = 0; r < s->rank_count; r++) {
        const dlxi_run_rank *p = &s->ranks[r];
        joined = (uint16_t)(joined + p->joined);
        DLXI_ASSERT(!p->staged || (p->ready && s->member));
        DLXI_ASSERT(!p->finished || p->reported);
        DLXI_ASSERT(!p->ready || s->presence == DLXI_PRESENT);
    }
    DLXI_ASSERT(joined == s->joined);
    DLXI_ASSERT(!c->welcomed || dlxi_run_site_is_complete(s));
    DLXI_ASSERT(!s->member || (s->presence == DLXI_PRESENT && DLXI_ALL(s, ready)));
    DLXI_ASSERT(s->presence == DLXI_PRESENT || s->lost_round > 0);
}

void dlxi_coordinator_check(const dlxi_coordinator *c) {
    uint16_t members = 0;
    for (uint16_t i = 0; i < c->count; i++) {
        site_check(c, &c->sites[i]);
        members = (uint16_t)(members + c->sites[i].member);
    }
    DLXI_ASSERT(members == (c->proposal == NULL ? 0 : c->proposal->members));
    DLXI_ASSERT(c->proposal == NULL || (c->phase == DLXI_COORDINATOR_RUNNING && c->attempt > 0));
    DLXI_ASSERT(c->proposal == NULL || !c->begin_waits);
    DLXI_ASSERT(!c->welcomed || dlxi_coordinator_left(c) > 0);
    DLXI_ASSERT(c->phase != DLXI_COORDINATOR_GATHERING || c->round == 1 || c->welcomed);
    DLXI_ASSERT(c->phase < DLXI_COORDINATOR_ENDING || c->phase == DLXI_COORDINATOR_DONE ||
                c->committed_last);
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
    if (index >= c->count || c->sites[index].presence == DLXI_PRESENT) return false;
    *round = c->sites[index].lost_round;
    *name = c->sites[index].name;
    *why = c->sites[index].lost_why;
    return true;
}

void dlxi_coordinator_facts_of(const dlxi_coordinator *c, dlxi_coordinator_facts *facts) {
    *facts = c->facts;
}

bool dlxi_coordinator_site_facts(const dlxi_coordinator *c, uint16_t index,
                                 dlxi_site_facts *facts) {
    if (index >= c->count) return false;
    const dlxi_run_site *s = &c->sites[index];
    int64_t now_ms = s->presence == DLXI_AWAY ? c->now_ms - s->away_ms : 0;
    *facts = (dlxi_site_facts){.name = s->name,
                               .rounds = s->counted,
                               .left_out = s->left_out_total,
                               .away = s->away_count,
                               .away_ms = s->away_total_ms + now_ms};
    return true;
}

const char *dlxi_coordinator_report(const dlxi_coordinator *c, uint16_t index, const char **name) {
    if (index >= c->count) return NULL;
    *name = c->sites[index].name;
    return c->sites[index].report;
}
