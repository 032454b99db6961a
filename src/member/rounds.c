/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds: attempts begin when all ranks are ready, commit when all have staged the same, and are
 * begun again when one makes no progress; then the end of the run. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/hash.h"
#include "base/panic.h"
#include "member/coordinator_internal.h"

enum {
    ANSWER_MS = 250, /* at least, between two messages that a rank lacked */
    TELL_MS = 1000,
    LOSS_PAUSE_MS = 10000,
    RETRY_MS = 250, /* between the begins of attempts, after RETRIES_AT_ONCE */
    RETRIES_AT_ONCE = 3
};

#define TOKENS_MAX (UINT64_C(1) << 48) /* of a site's round, so that no sum overflows */

void dlxi_rounds_grant(dlxi_coordinator *c, uint64_t round) {
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        dlxi_ledger_grant(c->ledger, &s->leases[round % DLXI_COORDINATOR_LEASES], round,
                          s->windows > 0 && !dlxi_run_site_is_dropped(s) ? s->lease_windows : 0);
    }
}

/* ---- begin ----------------------------------------------------------------------------------- */

/* The view of rank r: its own measurements of the exchange, and the step of the site's slowest
 * rank, which all wait for. */
static void view_fill(dlxi_view *view, const dlxi_coordinator *c, uint16_t rank) {
    view->members = 0;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        uint64_t step_ns = 0;
        if (dlxi_run_site_is_dropped(s) && !DLXI_PLANTED(13)) continue;
        for (uint16_t r = 0; r < s->rank_count; r++)
            if (s->ranks[r].round_ready.step_ns > step_ns)
                step_ns = s->ranks[r].round_ready.step_ns;
        uint16_t m = view->members++;
        view->member[m].site = i;
        view->member[m].tokens = s->tokens;
        view->member[m].step_ns = step_ns;
        view->member[m].exchange_ns = s->ranks[rank].round_ready.exchange_ns;
        view->member[m].exchange_bytes = s->ranks[rank].round_ready.exchange_bytes;
    }
}

static void attempt_begin(dlxi_coordinator *c) {
    DLXI_ASSERT(c->phase == DLXI_COORDINATOR_RUNNING && c->ready_count == c->rank_count);
    c->attempt++;
    c->staged_count = 0;
    c->begin_waits = false;
    c->begun_ms = c->now_ms;
    for (uint16_t r = 0; r < c->sites[0].rank_count; r++) {
        view_fill(&dlxi_coordinator_compose(c, DLXI_FRAME_BEGIN)->as.view, c, r);
        for (uint16_t i = 0; i < c->count; i++) {
            if (dlxi_run_site_is_dropped(&c->sites[i])) continue;
            c->sites[i].ranks[r].staged = false;
            dlxi_coordinator_put(c, &c->sites[i].ranks[r], c->round, c->attempt);
        }
    }
}

/* The first site that takes part. */
static const dlxi_run_site *site_first(const dlxi_coordinator *c) {
    const dlxi_run_site *s = c->sites;
    while (dlxi_run_site_is_dropped(s)) s++;
    return s;
}

/* Whether all that submitted have the same anchor, and all ranks of a site the same tokens; ends
 * the run if not. */
static bool round_is_consistent(dlxi_coordinator *c) {
    const dlxi_run_site *reference = site_first(c);
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        if (dlxi_run_site_is_dropped(s)) continue;
        const dlxi_ready *first = &s->ranks[0].round_ready;
        for (uint16_t r = 0; r < s->rank_count; r++) {
            const dlxi_ready *said = &s->ranks[r].round_ready;
            dlxi_label label = dlxi_label_of(s, &s->ranks[r]);
            if (said->anchor_hash != reference->ranks[r].round_ready.anchor_hash) {
                dlxi_coordinator_fail(c, DLX_DIVERGED, s->name,
                                      "%s and '%s' have different anchors after round %llu: a bug "
                                      "or faulty memory",
                                      label.text, reference->name,
                                      (unsigned long long)c->round - 1);
                return false;
            }
            if (said->tokens != first->tokens || said->windows_used != first->windows_used) {
                dlxi_coordinator_fail(
                    c, DLX_DIVERGED, s->name,
                    "%s says that its site trained on %llu tokens of %u windows in round %llu, its "
                    "rank 0 says %llu of %u; all ranks must count the same",
                    label.text, (unsigned long long)said->tokens, said->windows_used,
                    (unsigned long long)c->round, (unsigned long long)first->tokens,
                    first->windows_used);
                return false;
            }
        }
    }
    return true;
}

/* A site's weight: what it trained on, and never more than its lease. */
static uint64_t site_count_tokens(const dlxi_coordinator *c, dlxi_run_site *s) {
    s->tokens = s->ranks[0].round_ready.tokens;
    s->windows_used = s->ranks[0].round_ready.windows_used;
    if (s->windows == 0) return s->tokens;
    uint64_t leased = dlxi_lease_windows(&s->leases[c->round % DLXI_COORDINATOR_LEASES]);
    if (s->windows_used > leased) s->windows_used = (uint32_t)leased;
    uint64_t most = s->windows_used * s->tokens_per_window;
    if (s->tokens > most) s->tokens = most;
    return s->tokens;
}

/* A site that sent a message that is not valid is lost. */
static bool ready_is_valid(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *p,
                           uint64_t round, const dlxi_ready *ready) {
    dlxi_label label = dlxi_label_of(s, p);
    char text[DLXI_REASON_MAX + 1];
    dlx_status status = DLX_DATA;
    if (c->phase != DLXI_COORDINATOR_RUNNING || round != c->round) {
        snprintf(text, sizeof text, "%s submitted round %llu while the run is at %llu", label.text,
                 (unsigned long long)round, (unsigned long long)c->round);
    } else if (!isfinite(ready->norm)) {
        status = DLX_NUMERIC;
        snprintf(text, sizeof text,
                 "the pseudo-gradient of %s is not finite in round %llu; lower "
                 "train.learning_rate or sync.outer_learning_rate",
                 label.text, (unsigned long long)round);
    } else if (ready->tokens > TOKENS_MAX) {
        snprintf(text, sizeof text, "%s claims %llu tokens in round %llu; allowed: up to %llu",
                 label.text, (unsigned long long)ready->tokens, (unsigned long long)round,
                 (unsigned long long)TOKENS_MAX);
    } else {
        return true;
    }
    dlxi_coordinator_lose(c, s, NULL, status, text);
    return false;
}

/* Once all are ready. */
static void round_begin(dlxi_coordinator *c) {
    uint64_t tokens = 0;
    if (c->ready_count < c->rank_count || !round_is_consistent(c)) return;
    for (uint16_t i = 0; i < c->count; i++)
        if (!dlxi_run_site_is_dropped(&c->sites[i])) tokens += site_count_tokens(c, &c->sites[i]);
    c->trouble = (dlxi_trouble){0}; /* of joining, or of a site that was dropped */
    if (tokens == 0)
        dlxi_coordinator_fail(c, DLX_DATA, NULL, "no site trained on any token in round %llu",
                              (unsigned long long)c->round);
    else
        attempt_begin(c);
}

void dlxi_rounds_on_ready(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p, uint64_t round,
                          const dlxi_ready *ready) {
    if (round < c->round || (round == c->round && p->ready)) return; /* repeated */
    if (!ready_is_valid(c, s, p, round, ready)) return;
    p->ready = true;
    p->round_ready = *ready;
    c->ready_count++;
    round_begin(c);
}

/* ---- trouble --------------------------------------------------------------------------------- */

/* Of the attempt that is under way; between attempts and rounds there is none. */
static bool frame_is_current(const dlxi_coordinator *c, const dlxi_frame *frame) {
    return c->phase == DLXI_COORDINATOR_RUNNING && c->attempt > 0 && !c->begin_waits &&
           frame->round == c->round && frame->attempt == c->attempt;
}

/* Reports of one cause may differ in the order of a pair's sites, and in how long it has lasted. */
static uint64_t cause_hash(const char *why, const char *duration) {
    const char *end = duration != NULL ? duration : why + strlen(why);
    uint64_t sum = 0;
    for (size_t bytes; why < end; why += bytes + 1) {
        bytes = strcspn(why, " ");
        sum += dlxi_hash(why, bytes, 0);
    }
    return sum;
}

/* Whether terminals show this report: a cause at first, and again each time that the trouble has
 * lasted twice as long. A loss that is made good at once is shown at most every LOSS_PAUSE_MS. */
static bool cause_is_due(dlxi_coordinator *c, const char *why, int64_t now_ms) {
    const char *duration = strstr(why, " for ");
    const uint64_t cause = cause_hash(why, duration);
    const int64_t since_ms = c->trouble.since_ms;
    dlxi_told *told = c->told; /* of this cause, or the oldest */
    for (dlxi_told *t = c->told; t < c->told + DLXI_TOLD_MAX && told->cause != cause; t++)
        if (t->cause == cause || t->at_ms < told->at_ms) told = t;
    bool known = told->cause == cause, in_this_trouble = told->at_ms >= since_ms, due;
    if (!known)
        due = !in_this_trouble; /* else there are too many to show */
    else if (in_this_trouble)
        due = now_ms - since_ms >= 2 * (told->at_ms - since_ms) + TELL_MS;
    else
        due = duration != NULL || now_ms - told->at_ms >= LOSS_PAUSE_MS;
    if (due) *told = (dlxi_told){cause, now_ms};
    return due;
}

/* Counts the report. True: terminals show it. */
static bool trouble_note(dlxi_coordinator *c, const char *why) {
    dlxi_trouble *t = &c->trouble;
    int64_t now_ms = c->now_ms != 0 ? c->now_ms : 1; /* 0 is none */
    if (t->since_ms == 0) *t = (dlxi_trouble){.since_ms = now_ms};
    t->attempts++;
    dlxi_text_copy(t->text, sizeof t->text, why);
    if (!cause_is_due(c, why, now_ms)) return false;
    t->told = true;
    dlxi_lines_add(&c->log, "%s; trying again", why);
    return true;
}

/* To all; terminals show the text. */
static void abort_put(dlxi_coordinator *c, const char *text) {
    dlxi_reason *reason = &dlxi_coordinator_compose(c, DLXI_FRAME_ABORT)->as.reason;
    *reason = (dlxi_reason){.status = DLX_ABORTED};
    dlxi_text_copy(reason->text, sizeof reason->text, text);
    dlxi_coordinator_put_all(c);
}

static void trouble_put(dlxi_coordinator *c, bool tells) {
    char text[DLXI_REASON_MAX + 1] = "";
    if (tells)
        snprintf(text, sizeof text, "%.*s; trying again", DLXI_REASON_MAX - 16, c->trouble.text);
    abort_put(c, text);
}

static void staged_forget(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) c->sites[i].ranks[r].staged = false;
    c->staged_count = 0;
}

static void attempt_abort(dlxi_coordinator *c, const char *why, bool differing) {
    bool told = trouble_note(c, why);
    if (differing && ++c->trouble.differing >= c->settings.attempts_max) {
        dlxi_coordinator_fail(c, DLX_DIVERGED, NULL, "round %llu failed %u times, last: %s",
                              (unsigned long long)c->round, c->attempt, why);
        return;
    }
    staged_forget(c);
    trouble_put(c, told);
    if (c->phase != DLXI_COORDINATOR_RUNNING) return;
    c->begin_waits = c->trouble.attempts > RETRIES_AT_ONCE;
    if (!c->begin_waits) attempt_begin(c);
}

void dlxi_rounds_on_abort(dlxi_coordinator *c, const dlxi_frame *frame, const char *why) {
    if (frame_is_current(c, frame)) {
        attempt_abort(c, why, false);
    } else if (c->phase == DLXI_COORDINATOR_RUNNING && frame->round == c->round &&
               frame->attempt == 0 && c->attempt == 0) { /* sites that do not reach each other */
        if (trouble_note(c, why)) trouble_put(c, true);
    }
}

/* ---- sites that are lost --------------------------------------------------------------------- */

/* In the first round not before all others are ready: until then some may wait to join, which needs
 * every site. At the end not either: its report is needed. */
bool dlxi_rounds_can_spare(const dlxi_coordinator *c, const dlxi_run_site *s) {
    uint32_t ready = 0;
    for (uint16_t r = 0; r < s->rank_count; r++) ready += s->ranks[r].ready;
    bool begun =
        c->round > 1 || c->attempt > 0 || c->ready_count - ready == c->rank_count - s->rank_count;
    return c->phase == DLXI_COORDINATOR_RUNNING && begun && c->settings.sites_min > 0 &&
           c->live > c->settings.sites_min;
}

static void site_uncount(dlxi_coordinator *c, dlxi_run_site *s) {
    for (uint16_t r = 0; r < s->rank_count; r++) {
        dlxi_run_rank *p = &s->ranks[r];
        c->listening_count -= p->listening;
        c->linked_count -= p->linked;
        c->ready_count -= p->ready;
        c->staged_count -= p->staged;
        p->ready = p->staged = false;
    }
    c->rank_count -= s->rank_count;
    c->live--;
    s->tokens = 0;
    s->windows_used = 0;
}

/* Leases of the present round and the next are out. */
static void leases_return(dlxi_coordinator *c, dlxi_run_site *s) {
    for (uint64_t round = c->round; round < c->round + 2; round++) {
        dlxi_lease *lease = &s->leases[round % DLXI_COORDINATOR_LEASES];
        DLXI_ASSERT(lease->round == round);
        dlxi_ledger_settle(c->ledger, lease, 0);
        lease->range_count = 0;
    }
}

void dlxi_rounds_drop(dlxi_coordinator *c, dlxi_run_site *s, dlx_status status, const char *why) {
    char text[DLXI_REASON_MAX + 1];
    DLXI_ASSERT(dlxi_rounds_can_spare(c, s));
    s->dropped_round = c->round;
    s->dropped_status = status;
    dlxi_text_copy(s->dropped_why, sizeof s->dropped_why, why);
    site_uncount(c, s);
    leases_return(c, s);
    for (uint16_t r = 0; r < s->rank_count; r++)
        dlxi_coordinator_put_reason(c, s->ranks[r].peer, DLXI_FRAME_STOP, status, why);
    snprintf(text, sizeof text, "site '%s' was dropped in round %llu, %u of %u go on: %s", s->name,
             (unsigned long long)c->round, c->live, c->count, why);
    dlxi_lines_add(&c->log, "%s", text);
    staged_forget(c);
    abort_put(c, text);
    c->begin_waits = false;
    if (c->phase == DLXI_COORDINATOR_RUNNING) round_begin(c);
}

/* ---- commit ---------------------------------------------------------------------------------- */

/* The last committed round, to one rank. */
static void commit_put(dlxi_coordinator *c, uint16_t site, uint16_t rank) {
    dlxi_run_site *s = &c->sites[site];
    dlxi_commit *m = &dlxi_coordinator_compose(c, DLXI_FRAME_COMMIT)->as.commit;
    m->committed_tokens = c->committed_tokens;
    m->finished = c->committed_last;
    m->lease = s->leases[(c->round + 1) % DLXI_COORDINATOR_LEASES];
    dlxi_coordinator_put(c, &s->ranks[rank], c->round - 1, c->committed_attempt);
}

static void round_commit(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        if (dlxi_run_site_is_dropped(s)) continue;
        c->committed_tokens += s->tokens;
        dlxi_ledger_settle(c->ledger, &s->leases[c->round % DLXI_COORDINATOR_LEASES],
                           s->windows_used);
        for (uint16_t r = 0; r < s->rank_count; r++) s->ranks[r].ready = s->ranks[r].staged = false;
    }
    c->ready_count = c->staged_count = 0;
    c->committed_last = c->committed_tokens >= c->settings.tokens_target;
    dlxi_rounds_grant(c, c->round + 2);
    if (c->trouble.told)
        dlxi_lines_add(&c->log, "round %llu committed after %u failed attempt%s in %.1f s",
                       (unsigned long long)c->round, c->trouble.attempts,
                       c->trouble.attempts == 1 ? "" : "s",
                       (double)(c->now_ms - c->trouble.since_ms) / 1000);
    c->trouble = (dlxi_trouble){0};
    c->committed_attempt = c->attempt;
    c->round++;
    c->attempt = 0;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++)
            if (!dlxi_run_site_is_dropped(&c->sites[i])) commit_put(c, i, r);
    if (c->committed_last && c->phase == DLXI_COORDINATOR_RUNNING)
        c->phase = DLXI_COORDINATOR_ENDING;
}

/* A site that staged something else than the first one, or NULL. */
static const dlxi_run_site *site_differing(const dlxi_coordinator *c) {
    const dlxi_run_site *first = site_first(c);
    for (const dlxi_run_site *s = first + 1; s < c->sites + c->count; s++)
        for (uint16_t r = 0; r < s->rank_count; r++)
            if (!dlxi_run_site_is_dropped(s) &&
                s->ranks[r].staged_hash != first->ranks[r].staged_hash)
                return s;
    return NULL;
}

void dlxi_rounds_on_staged(dlxi_coordinator *c, dlxi_run_rank *p, const dlxi_frame *frame,
                           uint64_t hash) {
    if (!frame_is_current(c, frame) && !DLXI_PLANTED(2)) return;
    p->staged_hash = hash;
    if (!p->staged) c->staged_count++;
    p->staged = true;
    if (c->staged_count < c->rank_count) return;
    const dlxi_run_site *other = site_differing(c);
    char text[DLXI_REASON_MAX + 1];
    if (other == NULL) {
        round_commit(c);
        return;
    }
    snprintf(text, sizeof text, "sites '%.*s' and '%.*s' received different results",
             DLXI_SITE_NAME_MAX, site_first(c)->name, DLXI_SITE_NAME_MAX, other->name);
    attempt_abort(c, text, true);
}

/* ---- the end --------------------------------------------------------------------------------- */

void dlxi_rounds_on_report(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const char *text) {
    if (c->phase != DLXI_COORDINATOR_ENDING || p->reported) return;
    if (p == &s->ranks[0] && (s->report = strdup(text)) == NULL) {
        dlxi_coordinator_fail_memory(c);
        return;
    }
    p->reported = true;
    if (++c->reported_count < c->rank_count) return;
    (void)dlxi_coordinator_compose(c, DLXI_FRAME_FINISHED);
    dlxi_coordinator_put_all(c);
    if (c->phase != DLXI_COORDINATOR_ENDING) return;
    c->phase = DLXI_COORDINATOR_CLOSING;
    c->closing_ms = c->now_ms;
}

void dlxi_rounds_on_finished(dlxi_coordinator *c, dlxi_run_rank *p) {
    if (c->phase != DLXI_COORDINATOR_CLOSING || p->finished) return;
    p->finished = true;
    if (++c->finished_count == c->rank_count) c->phase = DLXI_COORDINATOR_DONE;
}

/* ---- what a rank lacks ----------------------------------------------------------------------- */

void dlxi_rounds_answer(dlxi_coordinator *c, uint16_t site, uint16_t rank, const dlxi_frame *frame,
                        int64_t now_ms) {
    dlxi_run_rank *p = &c->sites[site].ranks[rank];
    if (!c->welcomed || now_ms - p->answered_ms < ANSWER_MS || DLXI_PLANTED(5)) return;
    if (frame->term == 0) {
        dlxi_gather_welcome_rank(c, site, rank);
    } else if (frame->kind == DLXI_FRAME_LISTENING && c->phase >= DLXI_COORDINATOR_RUNNING) {
        dlxi_gather_peers_of_rank(c, site, rank);
    } else if (c->round > 1 && frame->round + 1 == c->round) {
        commit_put(c, site, rank);
    } else if (c->phase == DLXI_COORDINATOR_RUNNING && frame->round == c->round &&
               !c->begin_waits && frame->attempt < c->attempt) {
        view_fill(&dlxi_coordinator_compose(c, DLXI_FRAME_BEGIN)->as.view, c, rank);
        dlxi_coordinator_put(c, p, c->round, c->attempt);
    } else if (c->phase == DLXI_COORDINATOR_CLOSING && frame->kind == DLXI_FRAME_REPORT) {
        (void)dlxi_coordinator_compose(c, DLXI_FRAME_FINISHED);
        dlxi_coordinator_put(c, p, c->round, c->attempt);
    }
}

void dlxi_rounds_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    const dlxi_trouble *t = &c->trouble;
    char what[32] = "joining";
    if (c->phase != DLXI_COORDINATOR_RUNNING) return;
    if (c->begin_waits && now_ms - c->begun_ms >= RETRY_MS) attempt_begin(c);
    if (t->since_ms == 0 || now_ms - t->since_ms < c->settings.patience_ms) return;
    if (c->attempt > 0) snprintf(what, sizeof what, "round %llu", (unsigned long long)c->round);
    dlxi_coordinator_fail(c, DLX_PEER_LOST, NULL,
                          "gave up on %s after %lld s of trouble (wan.patience_s); last: %s", what,
                          (long long)(now_ms - t->since_ms) / 1000, t->text);
}
