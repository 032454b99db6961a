/* SPDX-License-Identifier: Apache-2.0 */
#include "member/takeover_internal.h"

#include <stdarg.h>
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
    /* A claimed term is so far above the highest that no other coordinator is started as often, and
     * by some more that depends on the life, so that two don't claim the same one. */
    TERMS = 1 << 20,
    TERMS_MORE = 1 << 16
};

#define TERM_MAX (UINT32_MAX / 2) /* what a rank says above that is not true */

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
    t->done = true;
    t->result = *why;
}

/* ---- who is heard ---------------------------------------------------------------------------- */

static bool is_given_up(const dlxi_takeover *t, uint16_t site) {
    return (t->given_up >> site & 1u) != 0;
}

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

/* Which sites are given up; false: it can't be so. */
static bool without_find(const dlxi_takeover *t, const dlxi_coordinator *c, uint64_t *given_up,
                         dlx_error *error) {
    uint16_t left = 0, least = c->settings.sites_min == 0 ? c->count : c->settings.sites_min;
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
            dlxi_error_set(error, DLX_CONFIG, "--without: '%.*s' is no site of this run",
                           (int)(length > DLXI_SITE_NAME_MAX ? DLXI_SITE_NAME_MAX : length), at);
            return false;
        }
        at += length + (at[length] == ',');
    }
    for (uint16_t i = 0; i < c->count; i++)
        if (c->sites[i].presence != DLXI_GONE && (*given_up >> i & 1u) == 0) left++;
    if (*given_up == 0 || (left > 0 && left >= least)) return true;
    dlxi_error_set(error, DLX_CONFIG,
                   "--without leaves %u of %u sites, and the run needs %u (wan.min_sites)", left,
                   c->count, least);
    return false;
}

static dlx_status copy_read(const dlxi_takeover *t, const dlxi_position *from,
                            dlxi_coordinator **out, uint64_t *given_up, dlx_error *error) {
    const dlxi_copy *copy = &from->copy;
    DLX_TRY(dlxi_coordinator_restore_copy(out, &t->settings.run, copy->data, copy->bytes, t->now_ms,
                                          error));
    const dlxi_coordinator *c = *out;
    if (c->term != copy->term || c->round != copy->round + 1 || c->settings.run_id != from->run_id)
        DLX_FAIL(error, DATA, "a site's copy is not what it says");
    return without_find(t, c, given_up, error) ? DLX_OK : DLX_CONFIG;
}

/* Takes the newest copy. One that can't be used is the end: a later round may be in it. */
static void copy_take(dlxi_takeover *t, const dlxi_position *from) {
    dlx_error error;
    dlxi_coordinator *c = NULL;
    uint64_t given_up = 0;
    if (copy_read(t, from, &c, &given_up, &error) != DLX_OK) {
        dlxi_coordinator_close(&c);
        dlxi_error_prefix(&error, "run %016llx: ", (unsigned long long)from->run_id);
        takeover_fail(t, &error);
        return;
    }
    if (t->c == NULL)
        dlxi_lines_add(&t->log, "found run %016llx, of %u sites, at round %llu",
                       (unsigned long long)from->run_id, c->count, (unsigned long long)c->round);
    dlxi_coordinator_close(&t->c);
    t->c = c;
    t->given_up = given_up;
    t->best = from->copy;
    t->best.data = NULL;
}

static void position_take(dlxi_takeover *t, dlxi_heard *h, const dlxi_frame *frame) {
    const dlxi_position *m = &t->incoming.as.position;
    if (t->run_id == 0 && m->copy.round > 0) t->run_id = m->run_id;
    h->answered = true;
    h->hears = m->hears;
    h->term = frame->term;
    h->coordinator = frame->coordinator;
    h->round = frame->round;
    h->view = m->view;
    h->copy = m->copy;
    h->copy.bytes = 0;
    h->copy.data = NULL;
    if (m->copy.bytes > 0 && dlxi_copy_is_newer(&m->copy, &t->best) && !is_given_up(t, h->site))
        copy_take(t, m);
}

/* A rank that says that it is one of a site, under another site's name, is not listened to: names
 * are proved, numbers are not. */
static bool is_of_site(const dlxi_takeover *t, uint16_t site, uint16_t rank, const char *name) {
    if (t->c == NULL) return true;
    return site < t->c->count && rank < t->c->sites[site].rank_count &&
           (name[0] == '\0' || strcmp(name, t->c->sites[site].name) == 0);
}

void dlxi_takeover_on_frame(dlxi_takeover *t, uint32_t peer, const char *name,
                            const dlxi_frame *frame, int64_t now_ms) {
    if (t->done || frame->term == 0 || frame->term > TERM_MAX || frame->site >= DLXI_SITES_MAX ||
        frame->rank >= DLXI_RANKS_MAX || !is_of_site(t, frame->site, frame->rank, name))
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
    h->seen_ms = now_ms;
    if (position) position_take(t, h, frame);
}

/* ---- who is needed --------------------------------------------------------------------------- */

/* It was heard before the sites were known, maybe under another's name. */
static bool is_fresh(const dlxi_takeover *t, const dlxi_heard *h) {
    return h->answered && is_of_site(t, h->site, h->rank, h->name) &&
           t->now_ms - h->seen_ms <= t->settings.run.timeout_ms;
}

static bool is_promised(const dlxi_takeover *t, const dlxi_heard *h) {
    return t->term > 0 && h->term == t->term && h->coordinator == t->settings.run.life_id;
}

/* Bits of the sites that have no part in the run any more. */
static uint64_t gone_find(const dlxi_takeover *t) {
    uint64_t gone = t->given_up;
    for (uint16_t i = 0; i < t->c->count; i++)
        if (t->c->sites[i].presence == DLXI_GONE) gone |= UINT64_C(1) << i;
    return gone;
}

/* Bits of the sites that may know of a later round, or help to make one. */
static uint64_t needed_find(const dlxi_takeover *t) {
    const dlxi_coordinator *c = t->c;
    const dlxi_record *record = dlxi_record_of(c, c->round - 1);
    uint64_t gone = gone_find(t), all = 0, needed = 0;
    for (uint16_t i = 0; i < c->count; i++) all |= UINT64_C(1) << i;
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
    if ((needed & t->given_up) != 0) needed = all; /* those may have made one with anybody */
    return needed & ~gone;
}

/* What is still missing of a site; later ones come first. */
typedef enum missing { NOTHING, PROMISE, ITS_COORDINATOR, RANKS } missing;

static missing site_missing(const dlxi_takeover *t, uint16_t site, uint16_t *fresh) {
    bool promised = true, hears = false;
    *fresh = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const dlxi_heard *h = &t->ranks[i];
        if (h->site != site || !is_fresh(t, h)) continue;
        ++*fresh;
        hears = hears || (h->hears && !is_promised(t, h));
        promised = promised && is_promised(t, h);
    }
    return hears                                   ? ITS_COORDINATOR
           : *fresh < t->c->sites[site].rank_count ? RANKS
           : promised                              ? NOTHING
                                                   : PROMISE;
}

/* The first needed site that lacks as much, or nothing less; count: none. */
static uint16_t missing_find(const dlxi_takeover *t, missing *what, uint16_t *fresh) {
    uint64_t needed = needed_find(t);
    *what = NOTHING;
    uint16_t first = t->c->count, ranks;
    for (uint16_t i = 0; i < t->c->count; i++) {
        missing lacks = (needed >> i & 1u) != 0 ? site_missing(t, i, &ranks) : NOTHING;
        if (lacks <= *what) continue;
        *what = lacks;
        *fresh = ranks;
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
        t->outbox.scratch.kind = DLXI_FRAME_CLAIM;
        t->outbox.scratch.as.claim =
            (dlxi_claim){.run_id = t->run_id, .wants_copy = dlxi_copy_is_newer(&h->copy, &t->best)};
        dlxi_frame header = {.term = is_given_up(t, h->site) ? 0 : t->term,
                             .coordinator = t->settings.run.life_id,
                             .site = DLXI_SITE_COORDINATOR};
        (void)dlxi_outbox_put(&t->outbox, h->peer, header, &t->outbox.scratch, NULL);
    }
}

static void wait_tell(dlxi_takeover *t, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->waits, sizeof t->waits, format, arguments);
    va_end(arguments);
    if (t->now_ms - t->told_ms < TELL_MS) return;
    t->told_ms = t->now_ms;
    dlxi_lines_add(&t->log, "%s", t->waits);
}

/* Whether it waits for a copy: a newer one, which is asked for, or one that nobody here has. */
static bool copy_is_missing(dlxi_takeover *t) {
    bool known = false;
    if (t->count == 0) {
        wait_tell(t, "no site speaks yet");
        return true;
    }
    uint64_t gone = t->c != NULL ? gone_find(t) : 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const dlxi_heard *h = &t->ranks[i];
        if (!is_fresh(t, h) || (gone >> h->site & 1u) != 0) continue;
        if (dlxi_copy_is_newer(&h->copy, &t->best)) {
            wait_tell(t, "asks site %u for its copy of the coordinator's state", h->site);
            return true;
        }
        known = known || h->copy.round > 0;
        if (t->c == NULL || h->round <= t->c->round) continue;
        wait_tell(t,
                  "site '%s' has round %llu, and the newest copy is of round %llu; waits for a "
                  "site that has a newer one",
                  t->c->sites[h->site].name, (unsigned long long)h->round - 1,
                  (unsigned long long)t->best.round);
        return true;
    }
    if (t->c == NULL && !known)
        wait_tell(t, "the sites that speak have no copy of the coordinator's state: no round is "
                     "committed, or the run keeps none");
    return t->c == NULL;
}

static void term_choose(dlxi_takeover *t) {
    uint32_t highest = t->c->term;
    for (uint32_t i = 0; i < t->count; i++) {
        const dlxi_heard *h = &t->ranks[i];
        if (h->answered && !is_promised(t, h) && h->term > highest) highest = h->term;
    }
    if (t->term <= highest)
        t->term = highest + TERMS + (uint32_t)(t->settings.run.life_id % TERMS_MORE);
}

static void missing_tell(dlxi_takeover *t, uint16_t site, missing what, uint16_t fresh) {
    const dlxi_run_site *s = &t->c->sites[site];
    char ranks[32] = "";
    if (fresh > 0)
        snprintf(ranks, sizeof ranks, "%u of %u ranks of ", s->rank_count - fresh, s->rank_count);
    if (what == RANKS)
        wait_tell(t,
                  "waits for %ssite '%s', which may have gone on after round %llu; --without %s "
                  "gives it up, with all that it trained since",
                  ranks, s->name, (unsigned long long)t->c->round - 1, s->name);
    else if (what == ITS_COORDINATOR)
        wait_tell(t,
                  "site '%s' hears its coordinator: the run needs no other one, or wait for %u s",
                  s->name, t->settings.run.timeout_ms / 1000);
    else
        wait_tell(t, "asks site '%s' to obey", s->name);
}

static void takeover_consider(dlxi_takeover *t) {
    missing what;
    uint16_t fresh = 0;
    if (copy_is_missing(t)) return;
    uint16_t site = missing_find(t, &what, &fresh);
    if (what == PROMISE) term_choose(t);
    if (site < t->c->count) {
        missing_tell(t, site, what, fresh);
    } else if (t->term > 0) {
        dlxi_coordinator_succeed(t->c, t->term, t->settings.run.life_id, t->given_up, t->now_ms);
        t->done = true;
    }
}

void dlxi_takeover_on_tick(dlxi_takeover *t, int64_t now_ms) {
    dlx_error why;
    t->now_ms = now_ms;
    if (t->done) return;
    if (now_ms - t->opened_ms > t->settings.run.patience_ms) {
        dlxi_error_set(&why, DLX_TIMEOUT,
                       "gave up the takeover after %u s (wan.patience_s); last: %s",
                       t->settings.run.patience_ms / 1000, t->waits);
        takeover_fail(t, &why);
        return;
    }
    takeover_consider(t);
    if (!t->done) ranks_ask(t);
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

bool dlxi_takeover_has_claimed(const dlxi_takeover *t) {
    return t->term > 0;
}

bool dlxi_takeover_is_done(const dlxi_takeover *t) {
    return t->done;
}

dlx_status dlxi_takeover_result(dlxi_takeover *t, dlxi_coordinator **out, dlx_error *error) {
    DLXI_ASSERT(t->done);
    *out = NULL;
    if (t->result.status != DLX_OK && error != NULL) *error = t->result;
    if (t->result.status != DLX_OK) return t->result.status;
    *out = t->c;
    t->c = NULL;
    return DLX_OK;
}
