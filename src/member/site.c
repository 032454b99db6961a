/* SPDX-License-Identifier: Apache-2.0 */
#include "member/site.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { PING_MS = 250 }; /* well below the shortest timeout, 1 s */

static void put(dlxi_site *s, const dlxi_message *message) {
    dlxi_frame header = {
        .term = s->term, .round = s->round, .attempt = s->attempt, .rank = s->hello.rank};
    header.site = s->phase == DLXI_SITE_JOINING ? DLXI_SITE_NONE : s->index;
    dlx_error error;
    if (dlxi_outbox_put(&s->outbox, DLXI_SITE_COORDINATOR, header, message, &error) != DLX_OK &&
        s->phase != DLXI_SITE_DONE) {
        s->phase = DLXI_SITE_DONE;
        s->result = error;
    }
}

static void put_hello(dlxi_site *s) {
    s->outbox.scratch.kind = DLXI_FRAME_HELLO;
    s->outbox.scratch.as.hello = s->hello;
    put(s, &s->outbox.scratch);
}

dlx_status dlxi_site_open(dlxi_site **out, const dlxi_hello *hello, uint32_t timeout_ms,
                          int64_t now_ms, dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlxi_site *s = *out;
    s->hello = *hello;
    s->timeout_ms = timeout_ms;
    s->last_seen_ms = s->pinged_ms = now_ms;
    s->round = 1;
    put_hello(s);
    return DLX_OK;
}

void dlxi_site_close(dlxi_site **site) {
    if (*site == NULL) return;
    dlxi_outbox_clear(&(*site)->outbox);
    free(*site);
    *site = NULL;
}

static dlxi_site_action end(dlxi_site *s, dlx_status status, const char *format, const char *text) {
    if (s->phase == DLXI_SITE_DONE) return DLXI_SITE_NOTHING;
    s->phase = DLXI_SITE_DONE;
    if (status != DLX_OK) {
        dlxi_error_set(&s->result, status, format, text);
        s->result.round = (int64_t)s->round;
    }
    return DLXI_SITE_ENDED;
}

static dlxi_site_action on_commit(dlxi_site *s) {
    if (!s->staged)
        return end(s, DLX_DATA, "%s",
                   "the coordinator committed a round that this site has not staged");
    s->commit = s->incoming.as.commit;
    s->round++;
    s->attempt = 0;
    s->staged = false;
    return DLXI_SITE_COMMIT;
}

/* A frame of the phase, round and attempt that the site is in; what is stale was filtered out
 * before. */
static dlxi_site_action dispatch(dlxi_site *s, const dlxi_frame *frame) {
    bool current = frame->round == s->round && frame->attempt == s->attempt && s->attempt != 0;
    switch (frame->kind) {
    case DLXI_FRAME_WELCOME:
        if (s->phase != DLXI_SITE_JOINING) return DLXI_SITE_NOTHING;
        s->welcome = s->incoming.as.welcome;
        s->index = s->welcome.site;
        s->count = s->welcome.sites;
        s->phase = DLXI_SITE_LISTENING;
        return DLXI_SITE_LISTEN;
    case DLXI_FRAME_PEERS:
        if (s->phase != DLXI_SITE_LISTENING || s->incoming.as.endpoints.sites != s->count)
            return DLXI_SITE_NOTHING;
        s->peers = s->incoming.as.endpoints;
        s->phase = DLXI_SITE_RUNNING;
        return DLXI_SITE_CONNECT;
    case DLXI_FRAME_BEGIN:
        if (s->phase != DLXI_SITE_RUNNING || frame->round != s->round ||
            frame->attempt <= s->attempt)
            return DLXI_SITE_NOTHING;
        s->view = s->incoming.as.view;
        s->attempt = frame->attempt;
        s->staged = false;
        return DLXI_SITE_BEGIN;
    case DLXI_FRAME_ABORT:
        if (!current) return DLXI_SITE_NOTHING;
        s->staged = false;
        return DLXI_SITE_ABORT;
    case DLXI_FRAME_COMMIT:
        return current ? on_commit(s) : DLXI_SITE_NOTHING;
    case DLXI_FRAME_STOP: {
        dlx_status status =
            s->incoming.as.reason.status <= DLX_DIVERGED ? s->incoming.as.reason.status : DLX_DATA;
        return end(s, status == DLX_OK ? DLX_PEER_LOST : status, "%s", s->incoming.as.reason.text);
    }
    case DLXI_FRAME_FINISHED:
        return end(s, DLX_OK, "%s", "");
    default:
        return DLXI_SITE_NOTHING;
    }
}

dlxi_site_action dlxi_site_on_frame(dlxi_site *s, const dlxi_frame *frame, int64_t now_ms) {
    if (s->phase == DLXI_SITE_DONE || frame->term < s->term) return DLXI_SITE_NOTHING;
    if (dlxi_message_decode(&s->incoming, frame, NULL) != DLX_OK)
        return end(s, DLX_DATA, "%s",
                   "the coordinator sent a malformed message; check that all run the same version");
    s->term = frame->term;
    s->last_seen_ms = now_ms;
    return dispatch(s, frame);
}

void dlxi_site_keep_alive(dlxi_site *s, int64_t now_ms) {
    if (s->phase == DLXI_SITE_DONE || now_ms - s->pinged_ms < PING_MS) return;
    s->pinged_ms = now_ms;
    s->outbox.scratch.kind = DLXI_FRAME_PING;
    put(s, &s->outbox.scratch);
}

dlxi_site_action dlxi_site_on_tick(dlxi_site *s, int64_t now_ms) {
    if (s->phase == DLXI_SITE_DONE) return DLXI_SITE_NOTHING;
    if (now_ms - s->last_seen_ms > s->timeout_ms)
        return end(s, DLX_TIMEOUT, "%s",
                   s->phase == DLXI_SITE_JOINING && s->term == 0
                       ? "no coordinator answers; check wan.coordinator, wan.key and the roster, "
                         "and that it runs"
                       : "the coordinator has fallen silent");
    dlxi_site_keep_alive(s, now_ms);
    return s->phase == DLXI_SITE_DONE ? DLXI_SITE_ENDED : DLXI_SITE_NOTHING;
}

void dlxi_site_on_listening(dlxi_site *s, const dlxi_endpoints *endpoints) {
    s->outbox.scratch.kind = DLXI_FRAME_LISTENING;
    s->outbox.scratch.as.endpoints = *endpoints;
    put(s, &s->outbox.scratch);
}

void dlxi_site_on_ready(dlxi_site *s, const dlxi_ready *ready) {
    s->outbox.scratch.kind = DLXI_FRAME_READY;
    s->outbox.scratch.as.ready = *ready;
    put(s, &s->outbox.scratch);
}

void dlxi_site_on_staged(dlxi_site *s, uint64_t hash) {
    s->staged = true;
    s->outbox.scratch.kind = DLXI_FRAME_STAGED;
    s->outbox.scratch.as.staged.hash = hash;
    put(s, &s->outbox.scratch);
}

static void put_reason(dlxi_site *s, dlxi_frame_kind kind, dlx_status status, const char *text) {
    dlxi_reason *reason = &s->outbox.scratch.as.reason;
    s->outbox.scratch.kind = kind;
    reason->status = (uint16_t)status;
    dlxi_text_copy(reason->text, sizeof reason->text, text);
    put(s, &s->outbox.scratch);
}

void dlxi_site_on_attempt_failed(dlxi_site *s, const char *why) {
    s->staged = false;
    put_reason(s, DLXI_FRAME_ABORT, DLX_ABORTED, why);
}

void dlxi_site_on_report(dlxi_site *s, const char *text) {
    s->outbox.scratch.kind = DLXI_FRAME_REPORT;
    dlxi_text_copy(s->outbox.scratch.as.report.text, sizeof s->outbox.scratch.as.report.text, text);
    put(s, &s->outbox.scratch);
}

void dlxi_site_fail(dlxi_site *s, const dlx_error *why) {
    if (s->phase == DLXI_SITE_DONE) return;
    put_reason(s, DLXI_FRAME_FAILED, why->status, why->message);
    s->phase = DLXI_SITE_DONE;
    s->result = *why;
}
