/* SPDX-License-Identifier: Apache-2.0 */
#include "member/takeover_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"
#include "base/name.h"
#include "base/panic.h"

enum {
    ASK_MS = 500,
    TELL_FIRST_MS = 3000,
    TELL_MS = 10000,
    TERMS = 1000 /* above the highest: so many lives another coordinator has before it is as high */
};

dlx_status dlxi_takeover_open(dlxi_takeover **out, const dlxi_takeover_settings *settings,
                              int64_t now_ms, dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlxi_takeover *t = *out;
    t->settings = *settings;
    const char *text = settings->run.shared_text, *without = settings->without;
    t->shared_text = text != NULL ? strdup(text) : NULL;
    t->without = strdup(without != NULL ? without : "");
    if (t->without == NULL || (text != NULL && t->shared_text == NULL)) {
        dlxi_takeover_close(out);
        DLX_FAIL(error, MEMORY, "out of memory for a takeover");
    }
    t->settings.run.shared_text = t->shared_text;
    t->now_ms = t->opened_ms = now_ms;
    t->told_ms = now_ms - TELL_MS + TELL_FIRST_MS;
    dlxi_lines_add(&t->log, "takes the run over: waits for its sites, which wait for their "
                            "coordinator for wan.timeout_s first");
    return DLX_OK;
}

void dlxi_takeover_close(dlxi_takeover **takeover) {
    dlxi_takeover *t = *takeover;
    if (t == NULL) return;
    dlxi_coordinator_close(&t->c);
    dlxi_outbox_clear(&t->outbox);
    free(t->ranks);
    free(t->shared_text);
    free(t->without);
    free(t);
    *takeover = NULL;
}

static void takeover_fail(dlxi_takeover *t, const dlx_error *why) {
    t->phase = DLXI_TAKEOVER_DONE;
    t->result = *why;
}

/* ---- who is heard ---------------------------------------------------------------------------- */

/* NULL: no room. */
static dlxi_heard *heard_find(dlxi_takeover *t, const dlxi_frame *frame) {
    for (uint32_t i = 0; i < t->count; i++)
        if (t->ranks[i].site == frame->site && t->ranks[i].rank == frame->rank) return &t->ranks[i];
    if (t->count == DLXI_RUN_RANKS_MAX) return NULL;
    if (t->count == t->room) {
        uint32_t room = t->room == 0 ? 16 : 2 * t->room;
        dlxi_heard *grown = realloc(t->ranks, room * sizeof *grown);
        if (grown == NULL) return NULL;
        t->ranks = grown;
        t->room = room;
    }
    t->ranks[t->count] =
        (dlxi_heard){.site = frame->site, .rank = frame->rank, .asked_ms = t->now_ms - ASK_MS};
    return &t->ranks[t->count++];
}

static bool is_newer(const dlxi_copy *a, const dlxi_copy *b) {
    return a->term > b->term || (a->term == b->term && a->round > b->round);
}

/* Which sites are given up; false: a name is not one of the run's. */
static bool without_find(const dlxi_takeover *t, const dlxi_coordinator *c, uint64_t *given_up,
                         dlx_error *error) {
    *given_up = 0;
    for (const char *at = t->without; *at != '\0';) {
        size_t length = strcspn(at, ",");
        bool found = false;
        for (uint16_t i = 0; i < c->count; i++) {
            bool same =
                strlen(c->sites[i].name) == length && memcmp(c->sites[i].name, at, length) == 0;
            if (same) *given_up |= UINT64_C(1) << i;
            found = found || same;
        }
        if (!found) {
            dlxi_error_set(error, DLX_CONFIG, "without: '%.*s' is no site of this run",
                           (int)(length > DLXI_SITE_NAME_MAX ? DLXI_SITE_NAME_MAX : length), at);
            return false;
        }
        at += length + (at[length] == ',');
    }
    return true;
}

/* Takes the newest copy. One that can't be used is the end: a later round may be in it. */
static void copy_take(dlxi_takeover *t, const dlxi_copy *copy) {
    dlx_error error;
    dlxi_coordinator *c;
    dlx_status status = dlxi_coordinator_restore_copy(&c, &t->settings.run, copy->data, copy->bytes,
                                                      t->now_ms, &error);
    if (status == DLX_OK && (c->term != copy->term || c->round != copy->round + 1)) {
        dlxi_coordinator_close(&c);
        status = dlxi_error_set(&error, DLX_DATA, "a site's copy is not what it says");
    }
    if (status == DLX_OK && !without_find(t, c, &t->given_up, &error)) {
        dlxi_coordinator_close(&c);
        status = error.status;
    }
    if (status != DLX_OK) {
        takeover_fail(t, &error);
        return;
    }
    dlxi_coordinator_close(&t->c);
    t->c = c;
    t->best = *copy;
    t->best.data = NULL;
}

static void position_take(dlxi_takeover *t, dlxi_heard *h, const dlxi_frame *frame) {
    const dlxi_position *m = &t->incoming.as.position;
    if (t->run_id == 0 && m->copy.round > 0) t->run_id = m->run_id;
    h->answered = true;
    h->hears = m->hears;
    h->incarnation = m->incarnation;
    h->term = frame->term;
    h->coordinator = frame->coordinator;
    h->round = frame->round;
    h->view = m->view;
    h->copy = m->copy;
    h->copy.bytes = 0;
    h->copy.data = NULL;
    if (m->copy.bytes > 0 && is_newer(&m->copy, &t->best)) copy_take(t, &m->copy);
}

/* A rank that says that it is one of a site, under another site's name, is not listened to: names
 * are proved, numbers are not. */
static bool is_of_site(const dlxi_takeover *t, const dlxi_heard *h) {
    return t->c == NULL || h->name[0] == '\0' ||
           (h->site < t->c->count && strcmp(h->name, t->c->sites[h->site].name) == 0);
}

void dlxi_takeover_on_frame(dlxi_takeover *t, uint32_t peer, const char *name,
                            const dlxi_frame *frame, int64_t now_ms) {
    if (t->phase == DLXI_TAKEOVER_DONE || frame->term == 0 || frame->site >= DLXI_SITES_MAX ||
        frame->rank >= DLXI_RANKS_MAX)
        return;
    t->now_ms = now_ms;
    bool ping = frame->kind == DLXI_FRAME_PING, position = frame->kind == DLXI_FRAME_POSITION;
    if ((!ping && !position) || dlxi_message_decode(&t->incoming, frame, NULL) != DLX_OK) return;
    uint64_t run_id = ping ? t->incoming.as.ping.run_id : t->incoming.as.position.run_id;
    if (run_id == 0 || (t->run_id != 0 && run_id != t->run_id)) return;
    dlxi_heard *h = heard_find(t, frame);
    if (h == NULL) return;
    if (h->peer != peer || strcmp(h->name, name) != 0) h->answered = false;
    h->peer = peer;
    dlxi_text_copy(h->name, sizeof h->name, name);
    if (!is_of_site(t, h)) {
        h->answered = false;
        return;
    }
    h->seen_ms = now_ms;
    if (position) position_take(t, h, frame);
}

/* ---- who is needed --------------------------------------------------------------------------- */

static bool is_fresh(const dlxi_takeover *t, const dlxi_heard *h) {
    return h->answered && is_of_site(t, h) && t->now_ms - h->seen_ms <= t->settings.run.timeout_ms;
}

static bool is_promised(const dlxi_takeover *t, const dlxi_heard *h) {
    return t->term > 0 && h->term == t->term && h->coordinator == t->settings.run.life_id;
}

/* Bits of the sites that may know of a later round, or help to make one. */
static uint64_t needed_find(const dlxi_takeover *t) {
    const dlxi_coordinator *c = t->c;
    const dlxi_record *record = dlxi_record_of(c, c->round - 1);
    uint64_t gone = t->given_up, all = 0, needed = 0;
    for (uint16_t i = 0; i < c->count; i++) {
        all |= UINT64_C(1) << i;
        if (c->sites[i].presence == DLXI_GONE) gone |= UINT64_C(1) << i;
    }
    for (uint16_t m = 0; m < record->members; m++) needed |= UINT64_C(1) << record->member[m].site;
    if ((needed & ~gone) == 0) needed = all;
    for (uint64_t before = 0; before != needed;) {
        before = needed;
        for (uint32_t i = 0; i < t->count; i++) {
            const dlxi_heard *h = &t->ranks[i];
            if (is_fresh(t, h) && (needed >> h->site & 1u) != 0 && !DLXI_PLANTED(25))
                needed |= h->view & all;
        }
    }
    return needed & ~gone;
}

/* What is still missing of a site. */
typedef enum missing { NOTHING, RANKS, ITS_COORDINATOR, PROMISE } missing;

static missing site_missing(const dlxi_takeover *t, uint16_t site) {
    uint16_t fresh = 0;
    bool promised = true;
    for (uint32_t i = 0; i < t->count; i++) {
        const dlxi_heard *h = &t->ranks[i];
        if (h->site != site || !is_fresh(t, h)) continue;
        if (h->rank < t->c->sites[site].rank_count) fresh++;
        if (h->hears && !is_promised(t, h)) return ITS_COORDINATOR;
        promised = promised && is_promised(t, h);
    }
    return fresh < t->c->sites[site].rank_count ? RANKS : promised ? NOTHING : PROMISE;
}

/* The first needed site that lacks as much, or nothing less; count: none. */
static uint16_t missing_find(const dlxi_takeover *t, missing *what) {
    uint64_t needed = needed_find(t);
    *what = NOTHING;
    uint16_t first = t->c->count;
    for (uint16_t i = 0; i < t->c->count; i++) {
        missing lacks = (needed >> i & 1u) != 0 ? site_missing(t, i) : NOTHING;
        bool worse = lacks == RANKS || (lacks == ITS_COORDINATOR && *what != RANKS) ||
                     (lacks == PROMISE && *what == NOTHING);
        if (!worse || lacks == *what) continue;
        *what = lacks;
        first = i;
    }
    return DLXI_PLANTED(24) && *what == PROMISE ? t->c->count : first;
}

/* ---- time ------------------------------------------------------------------------------------ */

static void ranks_ask(dlxi_takeover *t) {
    for (uint32_t i = 0; i < t->count; i++) {
        dlxi_heard *h = &t->ranks[i];
        if (t->now_ms - h->asked_ms < ASK_MS ||
            t->now_ms - h->seen_ms >= t->settings.run.timeout_ms)
            continue;
        if (dlxi_outbox_holds(&t->outbox, h->peer, DLXI_FRAME_CLAIM)) continue;
        h->asked_ms = t->now_ms;
        bool may = t->c == NULL || (t->given_up >> h->site & 1u) == 0;
        t->outbox.scratch.kind = DLXI_FRAME_CLAIM;
        t->outbox.scratch.as.claim =
            (dlxi_claim){.run_id = t->run_id, .wants_copy = is_newer(&h->copy, &t->best)};
        dlxi_frame header = {.term = may ? t->term : 0,
                             .coordinator = t->settings.run.life_id,
                             .site = DLXI_SITE_COORDINATOR};
        (void)dlxi_outbox_put(&t->outbox, h->peer, header, &t->outbox.scratch, NULL);
    }
}

static void wait_tell(dlxi_takeover *t, const char *text) {
    if (t->now_ms - t->told_ms < TELL_MS) return;
    t->told_ms = t->now_ms;
    dlxi_lines_add(&t->log, "%s", text);
}

/* A site has a newer copy, which is asked for, or a round without one. */
static bool lacks_copy(const dlxi_takeover *t) {
    for (uint32_t i = 0; i < t->count && t->c != NULL; i++) {
        const dlxi_heard *h = &t->ranks[i];
        bool gone = (t->given_up >> h->site & 1u) != 0 ||
                    (h->site < t->c->count && t->c->sites[h->site].presence == DLXI_GONE);
        if (is_fresh(t, h) && (is_newer(&h->copy, &t->best) || (!gone && h->round > t->c->round)))
            return true;
    }
    return t->c == NULL;
}

static void term_choose(dlxi_takeover *t) {
    uint32_t highest = t->c->term;
    for (uint32_t i = 0; i < t->count; i++)
        if (t->ranks[i].answered && t->ranks[i].term > highest) highest = t->ranks[i].term;
    if (t->term > highest || (t->term == highest && t->term > 0)) return;
    t->term = highest + TERMS;
    t->phase = DLXI_TAKEOVER_CLAIMING;
}

static void takeover_finish(dlxi_takeover *t) {
    dlxi_coordinator_succeed(t->c, t->term, t->settings.run.life_id, t->now_ms);
    for (uint16_t i = 0; i < t->c->count; i++)
        if ((t->given_up >> i & 1u) != 0) dlxi_coordinator_give_up(t->c, i);
    t->phase = DLXI_TAKEOVER_DONE;
}

static void needed_tell(dlxi_takeover *t, uint16_t site, missing what) {
    char text[DLXI_REASON_MAX + 1];
    const dlxi_run_site *s = &t->c->sites[site];
    unsigned long long round = t->c->round - 1;
    if (what == RANKS)
        snprintf(text, sizeof text,
                 "waits for site '%s', which may have gone on after round %llu; --without %s gives "
                 "it up, with all that it trained since",
                 s->name, round, s->name);
    else if (what == ITS_COORDINATOR)
        snprintf(text, sizeof text,
                 "site '%s' hears its coordinator: the run needs no other one, or wait for %u s",
                 s->name, t->settings.run.timeout_ms / 1000);
    else
        snprintf(text, sizeof text, "asks site '%s' to obey", s->name);
    wait_tell(t, text);
}

void dlxi_takeover_on_tick(dlxi_takeover *t, int64_t now_ms) {
    dlx_error why;
    missing what;
    t->now_ms = now_ms;
    if (t->phase == DLXI_TAKEOVER_DONE) return;
    if (now_ms - t->opened_ms > t->settings.run.patience_ms) {
        dlxi_error_set(&why, DLX_TIMEOUT,
                       "gave up the takeover after %u s (wan.patience_s): not all sites that may "
                       "have gone on were heard",
                       t->settings.run.patience_ms / 1000);
        takeover_fail(t, &why);
        return;
    }
    if (lacks_copy(t)) {
        wait_tell(t, t->count == 0 ? "no site speaks yet"
                                   : "the sites that speak have no copy of the coordinator's "
                                     "state: no round is committed, or the run keeps none");
    } else {
        uint16_t site = missing_find(t, &what);
        if (what == PROMISE) term_choose(t);
        if (site == t->c->count && t->term > 0)
            takeover_finish(t);
        else if (site < t->c->count)
            needed_tell(t, site, what);
    }
    if (t->phase != DLXI_TAKEOVER_DONE) ranks_ask(t);
}

/* ---- state ----------------------------------------------------------------------------------- */

bool dlxi_takeover_pop_log(dlxi_takeover *t, char *text, size_t text_bytes) {
    const char *line = dlxi_lines_peek(&t->log);
    if (line == NULL) return false;
    dlxi_text_copy(text, text_bytes, line);
    dlxi_lines_drop(&t->log);
    return true;
}

dlxi_outbox *dlxi_takeover_outbox(dlxi_takeover *t) {
    return &t->outbox;
}

dlxi_takeover_phase dlxi_takeover_phase_of(const dlxi_takeover *t) {
    return t->phase;
}

dlx_status dlxi_takeover_result(dlxi_takeover *t, dlxi_coordinator **out, dlx_error *error) {
    DLXI_ASSERT(t->phase == DLXI_TAKEOVER_DONE);
    *out = NULL;
    if (t->result.status != DLX_OK && error != NULL) *error = t->result;
    if (t->result.status != DLX_OK) return t->result.status;
    *out = t->c;
    t->c = NULL;
    return DLX_OK;
}
