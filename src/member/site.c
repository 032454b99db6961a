/* SPDX-License-Identifier: Apache-2.0 */
#include "member/site.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"
#include "base/panic.h"
#include "wire/bytes.h"

enum {
    PING_MS = 250, /* well below the shortest timeout, 1 s */
    REPEAT_MS = 500,
    PAUSE_MS = 1000 /* a longer gap between ticks is this process's own pause, not a silence */
};

static void site_put(dlxi_site *s, dlxi_frame_kind kind) {
    dlxi_frame header = {.term = s->term,
                         .coordinator = s->coordinator_id,
                         .round = s->round,
                         .attempt = s->attempting && s->attempt_term == s->term ? s->attempt : 0,
                         .rank = s->hello.rank,
                         .trip = (uint16_t)(s->linked | (s->entered ? DLXI_SITE_ENTERED : 0))};
    header.site = s->phase == DLXI_SITE_JOINING ? DLXI_SITE_NONE : s->index;
    s->outbox.scratch.kind = kind;
    dlx_error error;
    if (dlxi_outbox_put(&s->outbox, DLXI_SITE_COORDINATOR, header, &s->outbox.scratch, &error) !=
            DLX_OK &&
        s->phase != DLXI_SITE_DONE) {
        s->phase = DLXI_SITE_DONE;
        s->result = error;
    }
}

/* The link has not taken all messages: more would wait with them, and say no more. */
static bool is_held_up(const dlxi_site *s) {
    return dlxi_outbox_peek(&s->outbox) != NULL;
}

static void ping_put(dlxi_site *s, int64_t stamp) {
    s->outbox.scratch.as.ping = (dlxi_ping){.run_id = s->welcome.run_id,
                                            .incarnation = s->hello.incarnation,
                                            .stamp = stamp,
                                            .sites = s->reached};
    site_put(s, DLXI_FRAME_PING);
}

static void standing_drop(dlxi_site *s) {
    free(s->standing);
    s->standing = NULL;
}

/* Sends it now, and again until standing_drop. Without memory for the copy it is sent once. */
static void site_put_standing(dlxi_site *s, dlxi_frame_kind kind) {
    site_put(s, kind);
    standing_drop(s);
    if (s->phase == DLXI_SITE_DONE) return;
    s->standing = dlxi_outbox_item_copy(dlxi_outbox_newest(&s->outbox));
    s->stood_ms = s->ticked_ms;
}

dlx_status dlxi_site_open(dlxi_site **out, const dlxi_hello *hello,
                          const dlxi_site_settings *settings, int64_t now_ms, dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlxi_site *s = *out;
    s->hello = *hello;
    s->timeout_ms = settings->timeout_ms;
    s->join_ms = settings->join_ms;
    s->orphan_ms = settings->orphan_ms;
    if (settings->coordinator != NULL && settings->coordinator[0] != '\0')
        snprintf(s->coordinator, sizeof s->coordinator, " at %.*s", DLXI_ENDPOINT_MAX,
                 settings->coordinator);
    s->last_seen_ms = s->pinged_ms = s->ticked_ms = s->opened_ms = now_ms;
    s->tell_ms = now_ms + DLXI_WAIT_TELL_FIRST_MS;
    s->round = hello->resumed_run != 0 ? hello->round : 1;
    s->outbox.scratch.as.hello = s->hello;
    s->hello.copy = (dlxi_copy){0}; /* the caller's */
    site_put_standing(s, DLXI_FRAME_HELLO);
    return DLX_OK;
}

void dlxi_site_close(dlxi_site **site) {
    if (*site == NULL) return;
    standing_drop(*site);
    dlxi_outbox_clear(&(*site)->outbox);
    free((uint8_t *)(uintptr_t)(*site)->copy.data);
    free(*site);
    *site = NULL;
}

bool dlxi_site_is_answered(const dlxi_site *s) {
    return s->term > 0;
}

static dlxi_site_action site_end(dlxi_site *s, dlx_status status, const char *text) {
    if (s->phase == DLXI_SITE_DONE) return DLXI_SITE_NOTHING;
    s->phase = DLXI_SITE_DONE;
    standing_drop(s);
    if (status != DLX_OK) {
        dlxi_error_set(&s->result, status, "%s", text);
        s->result.round = (int64_t)s->round;
    }
    return DLXI_SITE_ENDED;
}

/* ---- frames ---------------------------------------------------------------------------------- */

static dlxi_site_action on_welcome(dlxi_site *s) {
    if (s->phase != DLXI_SITE_JOINING) return DLXI_SITE_NOTHING;
    standing_drop(s);
    s->welcome = s->incoming.as.welcome;
    s->index = s->welcome.site;
    s->count = s->welcome.sites;
    s->returns = s->all_linked && s->hello.resumed_run != 0;
    s->phase = DLXI_SITE_LISTENING;
    return DLXI_SITE_LISTEN;
}

static dlxi_site_action on_peers(dlxi_site *s) {
    bool again = s->phase == DLXI_SITE_RUNNING;
    if (again && s->incoming.as.endpoints.sites == 0) return DLXI_SITE_TELL_LISTENING;
    if ((s->phase != DLXI_SITE_LISTENING && !again) || s->incoming.as.endpoints.sites != s->count)
        return DLXI_SITE_NOTHING;
    if (again) {
        s->peers = s->incoming.as.endpoints;
        return DLXI_SITE_REDIRECT;
    }
    standing_drop(s);
    s->peers = s->incoming.as.endpoints;
    s->phase = DLXI_SITE_RUNNING;
    return DLXI_SITE_CONNECT;
}

static dlxi_site_action on_begin(dlxi_site *s, const dlxi_frame *frame) {
    bool newer =
        frame->attempt > 0 && (frame->term != s->attempt_term || frame->attempt > s->attempt);
    if (s->phase != DLXI_SITE_RUNNING || frame->round != s->round || !newer || s->following)
        return DLXI_SITE_NOTHING;
    if (!s->submitted)
        return site_end(s, DLX_DATA,
                        "the coordinator began a round that this site has not submitted");
    const dlxi_view *view = &s->incoming.as.view;
    if (view->member[view->members - 1].site >= s->count)
        return site_end(s, DLX_DATA, "the coordinator's view has a site that the run has not");
    standing_drop(s);
    s->view = *view;
    s->attempt = frame->attempt;
    s->attempt_term = frame->term;
    s->attempt_coordinator = frame->coordinator;
    s->attempting = true;
    s->staged = false;
    return DLXI_SITE_BEGIN;
}

static dlxi_site_action on_abort(dlxi_site *s, const dlxi_frame *frame) {
    bool mine = frame->attempt == (s->attempt_term == s->term ? s->attempt : 0);
    if (s->phase != DLXI_SITE_RUNNING || frame->round != s->round || !mine || s->following)
        return DLXI_SITE_NOTHING;
    if (frame->attempt == 0) return DLXI_SITE_ABORT; /* a text to show */
    standing_drop(s);                                /* STAGED, or this site's own ABORT */
    s->attempting = false;
    s->staged = false;
    return DLXI_SITE_ABORT;
}

static bool is_member(const dlxi_view *view, uint16_t site) {
    for (uint16_t i = 0; i < view->members; i++)
        if (view->member[i].site == site) return true;
    return false;
}

static void attempt_forget(dlxi_site *s) {
    s->attempt = 0;
    s->attempting = s->staged = false;
}

/* Bytes of the first part of a copy, with its length; of what is malformed all. */
static size_t part_bytes(const uint8_t *data, size_t bytes) {
    dlxi_reader reader = dlxi_reader_over(data, bytes);
    size_t count = dlxi_read_u32(&reader);
    return dlxi_read_bytes(&reader, count) != NULL ? sizeof(uint32_t) + count : bytes;
}

/* How many parts there are, or the first `most` of them; *bytes ← theirs. */
static uint64_t parts_count(const dlxi_copy *copy, uint64_t most, size_t *bytes) {
    uint64_t count = 0;
    for (*bytes = 0; *bytes < copy->bytes && count < most; count++)
        *bytes += part_bytes(copy->data + *bytes, copy->bytes - *bytes);
    return count;
}

/* Records before those of `copy`, of which the kept copy has some: as many as there is room for. A
 * copy is the state, and records from that of its round on backwards. */
static size_t older_find(const dlxi_site *s, const dlxi_copy *copy, const uint8_t **older) {
    enum { KEPT_BYTES = 8192 };
    const dlxi_copy *kept = &s->copy;
    size_t bytes, at;
    uint64_t records = parts_count(copy, UINT64_MAX, &bytes) - 1;
    uint64_t last = copy->round > records ? copy->round - records : 0; /* the first that it lacks */
    if (kept->bytes == 0 || s->copy_lineage != dlxi_lineage_of(s->coordinator_id) ||
        kept->round < last)
        return 0;
    (void)parts_count(kept, 1 + kept->round - last, &at);
    *older = kept->data + at;
    for (bytes = 0; at + bytes < kept->bytes;) {
        size_t more = part_bytes(kept->data + at + bytes, kept->bytes - at - bytes);
        if (copy->bytes + bytes + more > KEPT_BYTES) break;
        bytes += more;
    }
    return bytes;
}

/* Of the round that is about to be applied, or a later one: so whoever has applied a round has a
 * copy of it. False: no memory. */
static bool copy_keep(dlxi_site *s, const dlxi_copy *copy) {
    const uint8_t *older = NULL;
    if (copy->bytes == 0 || (s->copy.bytes > 0 && !dlxi_copy_is_newer(copy, &s->copy))) return true;
    size_t older_bytes = older_find(s, copy, &older);
    uint8_t *kept = malloc(copy->bytes + older_bytes);
    if (kept == NULL) return false;
    memcpy(kept, copy->data, copy->bytes);
    if (older_bytes > 0) memcpy(kept + copy->bytes, older, older_bytes);
    free((uint8_t *)(uintptr_t)s->copy.data);
    s->copy = *copy;
    s->copy.bytes += (uint32_t)older_bytes;
    s->copy.data = kept;
    s->copy_lineage = dlxi_lineage_of(s->coordinator_id);
    return true;
}

static dlxi_site_action on_commit(dlxi_site *s, const dlxi_frame *frame) {
    dlxi_commit *m = &s->incoming.as.commit;
    bool other = frame->round != s->round && !(DLXI_PLANTED(1) && s->staged);
    if (other || !s->entered || s->following || s->applying || !copy_keep(s, &m->copy))
        return DLXI_SITE_NOTHING; /* it comes again */
    m->copy = (dlxi_copy){0};
    if (m->view.member[m->view.members - 1].site >= s->count)
        return site_end(s, DLX_DATA, "the coordinator's view has a site that the run has not");
    if (!is_member(&m->view, s->index) || s->returns) {
        if (s->attempt > 0) standing_drop(s);
        attempt_forget(s);
        s->commit = *m;
        s->following = true;
        return DLXI_SITE_FOLLOW;
    }
    bool same = s->attempt > 0 && s->attempt == frame->attempt && s->attempt_term == m->term &&
                s->attempt_coordinator == m->coordinator;
    if (!s->staged || (!same && !DLXI_PLANTED(1)))
        return site_end(s, DLX_DATA,
                        "the coordinator committed a round that this site has not staged");
    standing_drop(s);
    s->commit = *m;
    s->round++;
    attempt_forget(s);
    s->submitted = false;
    s->applying = true;
    return DLXI_SITE_COMMIT;
}

/* The coordinator may have forgotten the submission: it was started again, or lost this site for a
 * while. */
static void ready_repeat(dlxi_site *s) {
    bool attempts = s->attempting && s->attempt_term == s->term;
    if (!s->submitted || s->following || attempts || s->standing != NULL) return;
    s->outbox.scratch.as.ready = s->ready;
    site_put_standing(s, DLXI_FRAME_READY);
}

static dlxi_site_action on_ping(dlxi_site *s, const dlxi_frame *frame) {
    const dlxi_ping *m = &s->incoming.as.ping;
    if (m->stamp > s->stamp) s->stamp = m->stamp;
    s->left_out_for = m->sites;
    s->run_round = frame->round;
    s->parts = m->parts;
    s->part_count = m->part_count;
    s->saves = m->saves;
    bool lacks = frame->round == s->round && s->submitted && !s->following &&
                 m->submission < s->ready.submission;
    if (lacks && s->attempt > 0 && dlxi_outbox_peek(&s->outbox) == NULL) {
        s->outbox.scratch.as.ready = s->ready; /* it has lost this site in the attempt */
        site_put(s, DLXI_FRAME_READY);
    } else if (lacks) {
        ready_repeat(s);
    }
    return DLXI_SITE_NOTHING;
}

/* A frame of another life of the coordinator than before: what it knew of attempts is gone. What is
 * staged may be a round that it has committed: it stays until this is known. */
static void term_take(dlxi_site *s, const dlxi_frame *frame) {
    s->term = frame->term;
    s->coordinator_id = frame->coordinator;
    s->stamp = 0;
    if (s->attempt > 0) standing_drop(s);
    if (s->standing != NULL && s->standing->frame.term > 0) {
        s->standing->frame.term = s->term;
        s->standing->frame.coordinator = s->coordinator_id;
    }
    if (!s->staged || DLXI_PLANTED(19)) attempt_forget(s);
    ready_repeat(s);
}

static bool is_orphan(const dlxi_site *s) {
    return s->entered && s->ticked_ms - s->last_seen_ms > s->timeout_ms;
}

static void position_put(dlxi_site *s, bool with_copy) {
    dlxi_position *m = &s->outbox.scratch.as.position;
    *m = (dlxi_position){.run_id = s->welcome.run_id,
                         .incarnation = s->hello.incarnation,
                         .hears = !is_orphan(s),
                         .copy = s->copy};
    if (!s->hello.keeps_history) m->copy = (dlxi_copy){0}; /* it can't be taken over */
    for (uint16_t i = 0; i < s->view.members && s->attempt > 0; i++)
        m->view |= UINT64_C(1) << s->view.member[i].site;
    if (!with_copy) m->copy.bytes = 0;
    site_put(s, DLXI_FRAME_POSITION);
}

/* A round that is followed may be one of which the new coordinator does not know. If it does, it
 * says so again. */
static dlxi_site_action on_claim(dlxi_site *s, const dlxi_frame *frame) {
    const dlxi_claim claim = s->incoming.as.claim;
    bool mine = claim.run_id == s->welcome.run_id;
    dlxi_site_action action = DLXI_SITE_NOTHING;
    if (!s->entered || is_held_up(s) || (!mine && claim.run_id != 0)) return DLXI_SITE_NOTHING;
    if (mine && frame->term > s->term && is_orphan(s)) {
        term_take(s, frame);
        if (s->following) {
            s->following = false;
            s->incoming.as.reason = (dlxi_reason){.about = DLXI_SITE_NONE};
            action = DLXI_SITE_ABORT;
        }
    }
    if (frame->term == s->term && frame->coordinator == s->coordinator_id)
        s->last_seen_ms = s->ticked_ms;
    position_put(s, claim.wants_copy);
    return action;
}

static dlxi_site_action on_stop(dlxi_site *s) {
    dlx_status status = s->incoming.as.reason.status <= DLX_DIVERGED
                            ? (dlx_status)s->incoming.as.reason.status
                            : DLX_DATA;
    return site_end(s, status == DLX_OK ? DLX_PEER_LOST : status, s->incoming.as.reason.text);
}

/* The coordinator waits for the answer: a site whose FINISHED was lost can report again. */
static dlxi_site_action on_finished(dlxi_site *s) {
    if (!s->reported)
        return site_end(s, DLX_DATA, "the coordinator ended the run before this site's report");
    site_put(s, DLXI_FRAME_FINISHED);
    return site_end(s, DLX_OK, "");
}

/* Whether it is of the coordinator that this rank obeys, or of a later life of that one. One of
 * another lineage may claim the run, or say that this site has no part in it any more. */
static bool is_obeyed(const dlxi_site *s, const dlxi_frame *frame) {
    bool higher = frame->term > s->term;
    if (DLXI_PLANTED(15)) return true;
    if (frame->term < s->term || (!higher && frame->coordinator != s->coordinator_id)) return false;
    bool foreign =
        s->term > 0 && dlxi_lineage_of(frame->coordinator) != dlxi_lineage_of(s->coordinator_id);
    return !foreign || (frame->kind == DLXI_FRAME_STOP && is_orphan(s));
}

dlxi_site_action dlxi_site_on_frame(dlxi_site *s, const dlxi_frame *frame, int64_t now_ms) {
    bool claim = frame->kind == DLXI_FRAME_CLAIM;
    if (s->phase == DLXI_SITE_DONE || (!claim && !is_obeyed(s, frame))) return DLXI_SITE_NOTHING;
    if (dlxi_message_decode(&s->incoming, frame, NULL) != DLX_OK)
        return claim ? DLXI_SITE_NOTHING
                     : site_end(s, DLX_DATA,
                                "the coordinator sent a malformed message; check that all run the "
                                "same version");
    if (claim) return on_claim(s, frame);
    if (frame->term > s->term) term_take(s, frame);
    s->last_seen_ms = now_ms;
    s->all_linked = s->all_linked || frame->trip != 0;
    switch (frame->kind) {
    case DLXI_FRAME_WELCOME:
        return on_welcome(s);
    case DLXI_FRAME_PEERS:
        return on_peers(s);
    case DLXI_FRAME_BEGIN:
        return on_begin(s, frame);
    case DLXI_FRAME_ABORT:
        return on_abort(s, frame);
    case DLXI_FRAME_COMMIT:
        return on_commit(s, frame);
    case DLXI_FRAME_PING:
        return on_ping(s, frame);
    case DLXI_FRAME_STOP:
        return on_stop(s);
    case DLXI_FRAME_FINISHED:
        return on_finished(s);
    default:
        return DLXI_SITE_NOTHING;
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

static void ping_if_due(dlxi_site *s, int64_t now_ms, int64_t stamp) {
    if (s->phase == DLXI_SITE_DONE || now_ms - s->pinged_ms < PING_MS || is_held_up(s)) return;
    s->pinged_ms = now_ms;
    ping_put(s, stamp);
}

void dlxi_site_keep_alive(dlxi_site *s, int64_t now_ms) {
    ping_if_due(s, now_ms, 0);
}

static dlxi_site_action silence_end(dlxi_site *s, int64_t silent_ms) {
    char text[DLXI_REASON_MAX + 1];
    if (dlxi_site_is_answered(s))
        snprintf(text, sizeof text, "no message from the coordinator%s for %lld ms (%s)",
                 s->coordinator, (long long)silent_ms,
                 s->entered ? "wan.timeout_s and wan.orphan_s" : "wan.timeout_s");
    else
        snprintf(text, sizeof text,
                 "no coordinator%s answered for %u s (wan.join_s); check wan.coordinator, wan.key "
                 "and the roster, and that it runs",
                 s->coordinator, s->join_ms / 1000);
    return site_end(s, DLX_TIMEOUT, text);
}

dlxi_site_action dlxi_site_on_tick(dlxi_site *s, int64_t now_ms) {
    if (s->phase == DLXI_SITE_DONE) return DLXI_SITE_NOTHING;
    DLXI_ASSERT(now_ms >= s->ticked_ms);
    if (now_ms - s->ticked_ms > PAUSE_MS) {
        s->last_seen_ms += now_ms - s->ticked_ms;
        s->opened_ms += now_ms - s->ticked_ms;
        s->stamp = 0; /* until it has received something again */
    }
    s->ticked_ms = now_ms;
    bool answered = dlxi_site_is_answered(s) || DLXI_PLANTED(12);
    int64_t most_ms = answered ? s->timeout_ms : s->join_ms;
    if (s->entered) most_ms += s->orphan_ms;
    if (now_ms - s->last_seen_ms > most_ms) return silence_end(s, now_ms - s->last_seen_ms);
    if (s->standing != NULL && now_ms - s->stood_ms >= REPEAT_MS && !is_held_up(s) &&
        !DLXI_PLANTED(4)) {
        s->stood_ms = now_ms;
        (void)dlxi_outbox_repeat(&s->outbox, s->standing, NULL); /* or at the next time */
    }
    ping_if_due(s, now_ms, s->stamp);
    return s->phase == DLXI_SITE_DONE ? DLXI_SITE_ENDED : DLXI_SITE_NOTHING;
}

/* At once, and when it is over. */
static bool orphan_tell(dlxi_site *s, char *text, size_t text_bytes) {
    bool orphan = is_orphan(s);
    if (orphan == s->orphan_is_told) return false;
    s->orphan_is_told = orphan;
    if (orphan)
        snprintf(text, text_bytes,
                 "no message from the coordinator%s for %u s; training on, then waiting for it, up "
                 "to %u s (wan.orphan_s)",
                 s->coordinator, s->timeout_ms / 1000, s->orphan_ms / 1000);
    else
        snprintf(text, text_bytes, "the coordinator%s is back", s->coordinator);
    return true;
}

bool dlxi_site_tell_wait(dlxi_site *s, char *text, size_t text_bytes) {
    bool answered = dlxi_site_is_answered(s), told = s->wait_is_told;
    if (s->entered) return orphan_tell(s, text, text_bytes);
    if (s->phase != DLXI_SITE_JOINING || (answered ? !told : s->ticked_ms < s->tell_ms))
        return false;
    s->wait_is_told = !answered;
    s->tell_ms = s->ticked_ms + DLXI_WAIT_TELL_MS;
    if (answered)
        snprintf(text, text_bytes, "the coordinator%s answers; waiting for every site",
                 s->coordinator);
    else
        snprintf(
            text, text_bytes, "no coordinator%s yet after %lld s; waiting up to %u s (wan.join_s)",
            s->coordinator, (long long)(s->ticked_ms - s->opened_ms) / 1000, s->join_ms / 1000);
    return true;
}

/* ---- what the site did ----------------------------------------------------------------------- */

void dlxi_site_on_listening(dlxi_site *s, const dlxi_endpoints *endpoints) {
    DLXI_ASSERT(s->phase == DLXI_SITE_LISTENING || s->phase == DLXI_SITE_RUNNING);
    s->outbox.scratch.as.endpoints = *endpoints;
    if (s->phase == DLXI_SITE_LISTENING)
        site_put_standing(s, DLXI_FRAME_LISTENING);
    else /* it is asked again if this is lost */
        site_put(s, DLXI_FRAME_LISTENING);
}

void dlxi_site_set_linked(dlxi_site *s, bool linked) {
    if (s->phase == DLXI_SITE_DONE || s->linked == linked) return;
    DLXI_ASSERT(s->phase == DLXI_SITE_RUNNING);
    s->linked = linked;
    ping_put(s, s->stamp);
}

void dlxi_site_on_entered(dlxi_site *s) {
    s->entered = true;
    ping_put(s, s->stamp);
}

void dlxi_site_on_returned(dlxi_site *s) {
    DLXI_ASSERT(s->returns && s->entered && !s->following);
    s->returns = false;
}

void dlxi_site_on_ready(dlxi_site *s, const dlxi_ready *ready) {
    if (s->phase == DLXI_SITE_DONE) return;
    DLXI_ASSERT(s->phase == DLXI_SITE_RUNNING && s->attempt == 0);
    s->submitted = true;
    s->ready = *ready;
    standing_drop(s);
    ready_repeat(s);
}

void dlxi_site_on_applied(dlxi_site *s) {
    DLXI_ASSERT(s->applying);
    s->applying = false;
}

void dlxi_site_on_followed(dlxi_site *s) {
    DLXI_ASSERT(s->following && s->attempt == 0);
    s->following = false;
    if (s->commit.finished) { /* no round is left for it */
        s->submitted = false;
        standing_drop(s);
    }
    s->round++;
    if (s->returns) ping_put(s, s->stamp); /* for the next one */
}

void dlxi_site_on_staged(dlxi_site *s, uint64_t hash) {
    if (s->phase == DLXI_SITE_DONE) return;
    DLXI_ASSERT(s->submitted && s->attempt > 0 && s->attempt_term == s->term && !s->staged);
    s->staged = true;
    s->outbox.scratch.as.staged.hash = hash;
    site_put_standing(s, DLXI_FRAME_STAGED);
}

static void reason_fill(dlxi_site *s, dlx_status status, uint16_t about, const char *text) {
    dlxi_reason *reason = &s->outbox.scratch.as.reason;
    reason->status = (uint16_t)status;
    reason->about = about;
    dlxi_text_copy(reason->text, sizeof reason->text, text);
}

void dlxi_site_on_trouble(dlxi_site *s, dlx_status status, uint16_t about, const char *why) {
    if (s->phase == DLXI_SITE_DONE) return;
    DLXI_ASSERT(!s->staged); /* what is staged is promised */
    reason_fill(s, status, about, why);
    if (s->attempt > 0)
        site_put_standing(s, DLXI_FRAME_ABORT);
    else
        site_put(s, DLXI_FRAME_ABORT);
}

void dlxi_site_on_report(dlxi_site *s, uint64_t parts, uint16_t part_count, const char *text) {
    if (s->phase == DLXI_SITE_DONE) return;
    s->reported = true;
    s->outbox.scratch.as.report.parts = parts;
    s->outbox.scratch.as.report.part_count = part_count;
    dlxi_text_copy(s->outbox.scratch.as.report.text, sizeof s->outbox.scratch.as.report.text, text);
    site_put_standing(s, DLXI_FRAME_REPORT);
}

void dlxi_site_fail(dlxi_site *s, const dlx_error *why) {
    if (s->phase == DLXI_SITE_DONE) return;
    if (!dlxi_site_is_answered(s) && is_held_up(s)) { /* nobody knows this site yet */
        dlxi_outbox_clear(&s->outbox);
    } else {
        reason_fill(s, why->status, DLXI_SITE_NONE, why->message);
        site_put(s, DLXI_FRAME_FAILED);
    }
    s->phase = DLXI_SITE_DONE;
    s->result = *why;
    standing_drop(s);
}
