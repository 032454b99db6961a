/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds: attempts begin when sites are ready, commit when all of their members have staged the
 * same, and are begun again when one makes no progress; or without a member that is lost. */
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
    FAULT_PAUSE_MS = 10000,
    RETRY_MS = 250, /* between the begins of attempts, after RETRIES_AT_ONCE */
    RETRIES_AT_ONCE = 3,
    STALE_ROUNDS_MAX = 4, /* what was submitted so many rounds ago does more harm than good */
    PATIENT_FACTOR = 4    /* of the grace, for a site that was left out twice in a row */
};

#define TOKENS_MAX (UINT64_C(1) << 48) /* of a site's round, so that no sum overflows */

void dlxi_rounds_grant(dlxi_coordinator *c, dlxi_run_site *s, uint64_t submission) {
    dlxi_ledger_grant(c->ledger, &s->leases[submission % DLXI_COORDINATOR_LEASES], submission,
                      s->windows > 0 ? s->lease_windows : 0);
}

/* ---- who takes part -------------------------------------------------------------------------- */

/* Whether all that are ready have the same anchor, and all ranks of a site the same tokens; ends
 * the run if not. */
static bool round_is_consistent(dlxi_coordinator *c) {
    const dlxi_run_site *reference = NULL;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        if (!dlxi_run_site_is_ready(s)) continue;
        if (reference == NULL) reference = s;
        const dlxi_ready *first = &s->ranks[0].round_ready;
        for (uint16_t r = 0; r < s->rank_count; r++) {
            const dlxi_ready *said = &s->ranks[r].round_ready;
            dlxi_label label = dlxi_label_of(s, &s->ranks[r]);
            if (said->anchor_hash != reference->ranks[r].round_ready.anchor_hash &&
                !DLXI_HASHES_OFF) {
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

/* Of two sites between which nothing moves, the one to leave out: who is out already, so that the
 * two don't take turns; else who has less to give; else the later one. */
static dlxi_run_site *pair_loser(dlxi_run_site *a, dlxi_run_site *b) {
    uint64_t tokens_a = a->ranks[0].round_ready.tokens, tokens_b = b->ranks[0].round_ready.tokens;
    if (a->left_out != b->left_out) return a->left_out > b->left_out ? a : b;
    if (tokens_a != tokens_b) return tokens_a < tokens_b ? a : b;
    return b;
}

static int blocked_count(const dlxi_coordinator *c, const dlxi_run_site *s) {
    int count = 0;
    for (uint16_t i = 0; i < c->count; i++)
        count += c->sites[i].candidate && (c->pairs.blocked[s - c->sites] >> i & 1u) != 0;
    return count;
}

/* No blocked pair stays inside: whoever is in most of them goes first. */
static void blocked_exclude(dlxi_coordinator *c) {
    for (;;) {
        dlxi_run_site *worst = NULL;
        int most = 0;
        for (uint16_t i = 0; i < c->count; i++) {
            dlxi_run_site *s = &c->sites[i];
            int count = s->candidate ? blocked_count(c, s) : 0;
            if (count == 0 || count < most) continue;
            worst = count > most ? s : pair_loser(worst, s);
            most = count;
        }
        if (worst == NULL) return;
        worst->candidate = false;
    }
}

/* A view needs a member of the last one, which surely holds its round; unless those are all gone.
 */
static bool continues_last_view(const dlxi_coordinator *c) {
    bool any = false, may_return = false;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        any = any || (s->candidate && s->was_member);
        may_return = may_return || (s->was_member && s->presence != DLXI_GONE);
    }
    return any || !may_return || c->round == 1 || DLXI_PLANTED(20);
}

/* Marks the candidates for the next view. False: too few are ready. */
static bool candidates_choose(dlxi_coordinator *c) {
    uint16_t ready = 0, chosen = 0, least = c->settings.sites_min;
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        s->candidate = dlxi_run_site_is_ready(s) && s->stuck_round != c->round;
        ready = (uint16_t)(ready + s->candidate);
    }
    if (least == 0) return ready == c->count;
    blocked_exclude(c);
    for (uint16_t i = 0; i < c->count; i++) chosen = (uint16_t)(chosen + c->sites[i].candidate);
    return chosen >= least && chosen > 0 && continues_last_view(c);
}

/* Whether all ranks of a site have applied a round a short time ago. */
static bool is_moving(const dlxi_coordinator *c, const dlxi_run_site *s) {
    for (uint16_t r = 0; r < s->rank_count; r++)
        if (c->now_ms - s->ranks[r].moved_ms > c->settings.timeout_ms) return false;
    return true;
}

/* It has submitted, or came back, and goes on as soon as it has the results that it lacks: of the
 * last round; or of more, and it gets some, but has not come nearer since the last begin. */
static bool is_fetching(const dlxi_coordinator *c, const dlxi_run_site *s) {
    uint64_t lag = dlxi_run_site_lag(c, s);
    if (s->presence != DLXI_PRESENT || !s->keeps_history || s->was_member || lag == 0 ||
        (s->offered != s->counted + 1 && !s->catches_up) || c->pairs.blocked[s - c->sites] != 0)
        return false;
    return lag == 1 || (is_moving(c, s) && lag >= s->lag);
}

/* How long most may wait for the rest: half of what the least patient can without loss, but not so
 * short that a site is left out by chance. */
static int64_t grace_ms(dlxi_coordinator *c) {
    int64_t least_ms = INT32_MAX, floor_ms = c->settings.timeout_ms / 2;
    bool patient = false;
    for (const dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;) {
        for (uint16_t r = 0; r < s->rank_count && dlxi_run_site_is_ready(s); r++)
            if (s->ranks[r].round_ready.grace_ms < least_ms)
                least_ms = s->ranks[r].round_ready.grace_ms;
        patient = patient || (!dlxi_run_site_is_ready(s) && s->left_out >= 2 &&
                              (is_fetching(c, s) || !dlxi_presence_is_behind(c, s)));
    }
    least_ms = least_ms > floor_ms ? least_ms : floor_ms;
    return patient ? PATIENT_FACTOR * least_ms : least_ms;
}

/* If no more than half of the sites are ready, the rest may be slow: it gets longer than any grace,
 * but the run goes on before its patience is over. */
static int64_t hung_ms(const dlxi_coordinator *c) {
    return c->settings.patience_ms / 2;
}

/* Whether the round may begin with those that are ready. */
static bool round_is_due(dlxi_coordinator *c) {
    uint32_t present = 0, ready = 0;
    bool can_leave_out = c->settings.sites_min > 0, fetching = false;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        /* one that has yet to take over rounds is not waited for, but for the grace if it catches
         * up: else who takes longer for results than others train is never in a round again */
        bool late = s->keeps_history && !s->was_member && dlxi_presence_is_behind(c, s) &&
                    c->settings.sites_min > 0;
        present += s->presence == DLXI_PRESENT && !late;
        fetching = fetching || (late && is_fetching(c, s));
        ready += dlxi_run_site_is_ready(s);
        bool here = s->presence != DLXI_PRESENT || DLXI_ALL(s, entered);
        can_leave_out = can_leave_out && s->keeps_history && here;
    }
    if (dlxi_presence_is_expecting(c)) return false;
    if (ready == present && (ready == 0 || !fetching)) {
        c->minority_ms = 0;
        return ready > 0;
    }
    bool few = ready < present && (!can_leave_out || 2 * ready <= present);
    if (!few || ready == 0) c->minority_ms = 0;
    if (few) {
        c->majority_ms = 0;
        if (ready > 0 && c->minority_ms == 0)
            c->minority_ms = c->minority_told_ms = c->now_ms != 0 ? c->now_ms : 1;
        c->minority_may = can_leave_out && ready >= c->settings.sites_min;
        return ready > 0 && c->minority_may && c->now_ms - c->minority_ms >= hung_ms(c) &&
               !DLXI_PLANTED(28);
    }
    if (c->majority_ms == 0) c->majority_ms = c->now_ms != 0 ? c->now_ms : 1;
    return c->now_ms - c->majority_ms >= grace_ms(c);
}

/* ---- begin ----------------------------------------------------------------------------------- */

/* A site's weight: what it trained on, of windows that it used, and never more than its lease. What
 * is too old, or was trained on windows that others have now, counts for nothing. */
static void site_count_tokens(dlxi_coordinator *c, dlxi_run_site *s) {
    const dlxi_ready *said = &s->ranks[0].round_ready;
    s->tokens = said->tokens;
    s->windows_used = said->windows_used;
    if (s->windows > 0) {
        uint64_t leased =
            dlxi_lease_windows(&s->leases[said->submission % DLXI_COORDINATOR_LEASES]);
        if (s->windows_used > leased) s->windows_used = (uint32_t)leased;
        uint64_t trained = s->windows_early > leased - s->windows_used
                               ? leased
                               : s->windows_used + s->windows_early;
        uint64_t most = trained * s->tokens_per_window;
        if (s->tokens > most) s->tokens = most;
    }
    s->is_void = said->submission <= s->voided || c->round - said->base_round > STALE_ROUNDS_MAX;
    if (s->is_void) s->tokens = 0;
}

static bool proposal_make(dlxi_coordinator *c) {
    uint16_t members = 0, ranks = c->sites[0].rank_count, m = 0;
    for (uint16_t i = 0; i < c->count; i++) members = (uint16_t)(members + c->sites[i].candidate);
    dlxi_record *p = dlxi_record_new(members, ranks);
    if (p == NULL) return false;
    p->round = c->round;
    p->term = c->term;
    p->coordinator = c->settings.life_id;
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        s->member = s->candidate;
        if (!s->member) continue;
        dlxi_record_member *to = &p->member[m];
        *to = (dlxi_record_member){.site = i, .voided = s->is_void, .tokens = s->tokens};
        for (uint16_t r = 0; r < ranks; r++) {
            const dlxi_ready *said = &s->ranks[r].round_ready;
            if (said->step_ns > to->step_ns) to->step_ns = said->step_ns;
            p->exchange_ns[(size_t)r * members + m] = said->exchange_ns;
            p->exchange_bytes[(size_t)r * members + m] = said->exchange_bytes;
            s->ranks[r].staged = false;
        }
        m++;
    }
    c->proposal = p;
    return true;
}

static void begin_put(dlxi_coordinator *c, dlxi_run_rank *p, uint16_t rank) {
    dlxi_record_view(&dlxi_coordinator_compose(c, DLXI_FRAME_BEGIN)->as.view, c->proposal, rank);
    dlxi_coordinator_put(c, p, c->round, c->attempt);
}

static void attempt_begin(dlxi_coordinator *c) {
    DLXI_ASSERT(c->phase == DLXI_COORDINATOR_RUNNING && c->proposal == NULL);
    c->attempt++;
    c->facts.attempts++;
    c->begin_waits = false;
    c->begun_ms = c->now_ms;
    c->staged_ms = 0;
    int64_t since_ms = c->majority_ms > 0 ? c->majority_ms : c->minority_ms;
    c->grace_taken_ms = since_ms > 0 ? c->now_ms - since_ms : 0;
    c->waits_since_ms = c->majority_ms = c->minority_ms = 0;
    for (uint16_t i = 0; i < c->count; i++) c->sites[i].lag = dlxi_run_site_lag(c, &c->sites[i]);
    if (!proposal_make(c)) {
        dlxi_coordinator_fail_memory(c);
        return;
    }
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count && c->sites[i].member; r++)
            begin_put(c, &c->sites[i].ranks[r], r);
}

/* A site that sent a message that is not valid is lost. */
static bool ready_is_valid(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *p,
                           uint64_t round, const dlxi_ready *ready) {
    dlxi_label label = dlxi_label_of(s, p);
    char text[DLXI_REASON_MAX + 1];
    dlx_status status = DLX_DATA;
    if (c->phase != DLXI_COORDINATOR_RUNNING || round != c->round ||
        ready->submission != s->counted + 1 || ready->base_round > round) {
        snprintf(text, sizeof text,
                 "%s submitted number %llu for round %llu while the run is at %llu", label.text,
                 (unsigned long long)ready->submission, (unsigned long long)round,
                 (unsigned long long)c->round);
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
    dlxi_presence_lose(c, s, NULL, status, text);
    return false;
}

/* Begins the round, if it is time. */
static void round_consider(dlxi_coordinator *c) {
    uint64_t tokens = 0;
    bool voids = false;
    if (c->phase != DLXI_COORDINATOR_RUNNING || c->proposal != NULL || c->begin_waits) return;
    if (!round_is_due(c) || !candidates_choose(c) || !round_is_consistent(c)) return;
    for (uint16_t i = 0; i < c->count; i++) {
        if (!c->sites[i].candidate) continue;
        site_count_tokens(c, &c->sites[i]);
        tokens += c->sites[i].tokens;
        voids = voids || c->sites[i].is_void;
    }
    if (c->attempt == 0) c->trouble = (dlxi_trouble){0}; /* of joining */
    if (tokens == 0 && !voids)
        dlxi_coordinator_fail(c, DLX_DATA, NULL, "no site trained on any token in round %llu",
                              (unsigned long long)c->round);
    else
        attempt_begin(c);
}

void dlxi_rounds_on_ready(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p, uint64_t round,
                          const dlxi_ready *ready) {
    if (round == c->round && p->ready) return; /* repeated */
    if (round >= c->round && !ready_is_valid(c, s, p, round, ready)) return;
    if (ready->submission == s->counted + 1) {
        s->offered = ready->submission;
        s->catches_up = false;
    }
    if (round < c->round) return; /* repeated, or too late for its round */
    p->ready = true;
    p->round_ready = *ready;
    round_consider(c);
}

/* ---- trouble --------------------------------------------------------------------------------- */

/* Of the attempt that is under way; between attempts and rounds there is none. */
static bool frame_is_current(const dlxi_coordinator *c, const dlxi_frame *frame) {
    return c->proposal != NULL && frame->round == c->round && frame->attempt == c->attempt;
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
 * lasted twice as long. One that the next attempt makes good is shown at most every
 * FAULT_PAUSE_MS. */
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
        due = duration != NULL || now_ms - told->at_ms >= FAULT_PAUSE_MS;
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
    *reason = (dlxi_reason){.status = DLX_ABORTED, .about = DLXI_SITE_NONE};
    dlxi_text_copy(reason->text, sizeof reason->text, text);
    dlxi_coordinator_put_all(c);
}

static void trouble_put(dlxi_coordinator *c, bool tells) {
    char text[DLXI_REASON_MAX + 1] = "";
    if (tells)
        snprintf(text, sizeof text, "%.*s; trying again", DLXI_REASON_MAX - 16, c->trouble.text);
    abort_put(c, text);
}

static void proposal_drop(dlxi_coordinator *c) {
    free(c->proposal);
    c->proposal = NULL;
    for (uint16_t i = 0; i < c->count; i++) {
        c->sites[i].member = false;
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) c->sites[i].ranks[r].staged = false;
    }
}

void dlxi_rounds_disturb(dlxi_coordinator *c) {
    if (c->disturbed_ms == 0) c->disturbed_ms = c->now_ms != 0 ? c->now_ms : 1;
}

static void attempt_abort(dlxi_coordinator *c, const char *why, bool differing) {
    bool told = trouble_note(c, why);
    dlxi_rounds_disturb(c);
    c->facts.differing += differing;
    if (differing && ++c->trouble.differing >= c->settings.attempts_max) {
        dlxi_coordinator_fail(c, DLX_DIVERGED, NULL, "round %llu failed %u times, last: %s",
                              (unsigned long long)c->round, c->attempt, why);
        return;
    }
    proposal_drop(c);
    trouble_put(c, told);
    c->begin_waits = c->trouble.attempts > RETRIES_AT_ONCE;
    round_consider(c);
}

/* What a pair's trouble means for the views to come. True: it is now in none. */
static bool pair_note(dlxi_coordinator *c, const dlxi_run_site *s, const dlxi_reason *reason) {
    uint16_t me = (uint16_t)(s - c->sites), other = reason->about;
    if (c->settings.sites_min == 0 || !s->keeps_history || other >= c->count || other == me)
        return false;
    bool blocked = reason->status == DLX_TIMEOUT;
    if (blocked)
        dlxi_pairs_block(&c->pairs, me, other, c->now_ms);
    else if (reason->status == DLX_DATA)
        blocked = dlxi_pairs_on_fault(&c->pairs, me, other, c->now_ms);
    if (blocked) dlxi_tell_keep_apart(c, me, other, reason);
    return blocked;
}

void dlxi_rounds_on_abort(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_frame *frame,
                          const dlxi_reason *reason) {
    if (frame_is_current(c, frame) && s->member) {
        bool blocked = pair_note(c, s, reason);
        c->facts.stalled += reason->status == DLX_TIMEOUT;
        c->facts.broken += reason->status != DLX_TIMEOUT;
        attempt_abort(c, reason->text, false);
        if (blocked)
            dlxi_lines_add(&c->log,
                           "sites '%s' and '%s' are not in one round until they reach each other "
                           "again",
                           s->name, c->sites[reason->about].name);
    } else if (c->phase == DLXI_COORDINATOR_RUNNING && frame->round == c->round &&
               frame->attempt == 0 && c->attempt == 0) { /* sites that do not reach each other */
        if (trouble_note(c, reason->text)) trouble_put(c, true);
    }
}

void dlxi_rounds_on_presence(dlxi_coordinator *c, dlxi_run_site *s, const char *text) {
    if (s->member && !DLXI_PLANTED(13)) {
        c->facts.member_lost++;
        proposal_drop(c);
        abort_put(c, text);
        c->begin_waits = false;
    }
    c->majority_ms = 0;
    round_consider(c);
}

/* ---- commit ---------------------------------------------------------------------------------- */

/* A committed round, to one rank. */
static void commit_put(dlxi_coordinator *c, const dlxi_record *record, uint16_t site,
                       uint16_t rank) {
    dlxi_run_site *s = &c->sites[site];
    if (c->copy == NULL) dlxi_coordinator_copy_make(c);
    dlxi_commit *m = &dlxi_coordinator_compose(c, DLXI_FRAME_COMMIT)->as.commit;
    m->term = record->term;
    m->coordinator = record->coordinator;
    m->committed_tokens = record->committed_tokens;
    m->finished = record->finished;
    m->lease = s->leases[(s->counted + 2) % DLXI_COORDINATOR_LEASES];
    dlxi_record_view(&m->view, record, rank);
    m->copy = (dlxi_copy){.term = c->term,
                          .round = c->round - 1,
                          .bytes = dlxi_coordinator_copy_extend(c, record->round),
                          .data = c->copy};
    dlxi_coordinator_put(c, &s->ranks[rank], record->round, record->attempt);
}

static void idle_count(const dlxi_coordinator *c, dlxi_run_site *s) {
    bool idle = s->presence == DLXI_PRESENT && s->offered != s->counted + 1 &&
                !(s->catches_up && is_moving(c, s));
    if (idle && s->idle_rounds == 0) s->idle_since_ms = c->now_ms;
    s->idle_rounds = idle ? s->idle_rounds + 1 : 0;
}

static void site_commit(dlxi_coordinator *c, dlxi_run_site *s) {
    s->was_member = s->member;
    for (uint16_t r = 0; r < s->rank_count; r++) s->ranks[r].ready = s->ranks[r].staged = false;
    if (!s->member) {
        if (s->presence != DLXI_GONE) s->left_out++, s->left_out_total++;
        idle_count(c, s);
        return;
    }
    s->left_out = s->idle_rounds = 0;
    s->member = false;
    s->counted++;
    c->committed_tokens += s->tokens;
    if (s->counted > s->voided) /* else they were given back */
        dlxi_ledger_settle(c->ledger, &s->leases[s->counted % DLXI_COORDINATOR_LEASES],
                           s->windows_used);
    if (s->windows > 0 && s->tokens_per_window > 0 && !s->is_void) {
        s->windows_early += s->windows_used;
        s->windows_early -= (s->tokens + s->tokens_per_window - 1) / s->tokens_per_window;
    }
}

/* The round commits after trouble. */
static void recovery_count(dlxi_coordinator *c) {
    if (c->disturbed_ms == 0) return;
    int64_t took_ms = c->now_ms - c->disturbed_ms;
    c->facts.recoveries++;
    c->facts.recovery_ms_sum += took_ms;
    if (took_ms > c->facts.recovery_ms_max) c->facts.recovery_ms_max = took_ms;
    c->disturbed_ms = 0;
}

static void round_commit(dlxi_coordinator *c) {
    dlxi_record *record = c->proposal;
    recovery_count(c);
    for (dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;)
        if (!s->member && s->left_out == 0) dlxi_tell_left_out(c, s, record->members);
    for (uint16_t a = 0; a < record->members; a++)
        for (uint16_t b = (uint16_t)(a + 1); b < record->members; b++)
            dlxi_pairs_on_commit(&c->pairs, record->member[a].site, record->member[b].site);
    for (uint16_t i = 0; i < c->count; i++) site_commit(c, &c->sites[i]);
    for (uint16_t i = 0; i < c->count; i++)
        if (c->sites[i].was_member) dlxi_rounds_grant(c, &c->sites[i], c->sites[i].counted + 2);
    c->committed_last = c->committed_tokens >= c->settings.tokens_target;
    if (c->trouble.told)
        dlxi_lines_add(&c->log, "round %llu committed after %u failed attempt%s in %.1f s",
                       (unsigned long long)c->round, c->trouble.attempts,
                       c->trouble.attempts == 1 ? "" : "s",
                       (double)(c->now_ms - c->trouble.since_ms) / 1000);
    c->trouble = (dlxi_trouble){0};
    record->attempt = c->attempt;
    record->committed_tokens = c->committed_tokens;
    record->finished = c->committed_last;
    c->proposal = NULL;
    dlxi_record_keep(c, record);
    c->round++;
    c->attempt = 0;
    c->majority_ms = 0;
    c->unsaved = c->committed = true;
    dlxi_coordinator_copy_make(c);
    for (dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;)
        for (uint16_t r = 0; r < s->rank_count; r++)
            if (s->ranks[r].round == 0 || s->ranks[r].round + 1 >= record->round) /* others ask */
                commit_put(c, record, (uint16_t)(s - c->sites), r);
    if (c->committed_last && c->phase == DLXI_COORDINATOR_RUNNING)
        c->phase = DLXI_COORDINATOR_ENDING;
}

/* A member that staged something else than the first one, or NULL. */
static const dlxi_run_site *site_differing(const dlxi_coordinator *c, const dlxi_run_site *first) {
    for (const dlxi_run_site *s = first + 1; s < c->sites + c->count; s++)
        for (uint16_t r = 0; r < s->rank_count && s->member; r++)
            if (s->ranks[r].staged_hash != first->ranks[r].staged_hash) return s;
    return NULL;
}

void dlxi_rounds_on_staged(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const dlxi_frame *frame, uint64_t hash) {
    if ((!frame_is_current(c, frame) && !(DLXI_PLANTED(2) && c->proposal != NULL)) || !s->member)
        return;
    if (!p->staged) c->staged_ms = c->now_ms;
    p->staged_hash = hash;
    p->staged = true;
    for (uint16_t i = 0; i < c->count; i++)
        if (c->sites[i].member && !DLXI_ALL(&c->sites[i], staged)) return;
    const dlxi_run_site *first = &c->sites[c->proposal->member[0].site];
    const dlxi_run_site *other = site_differing(c, first);
    char text[DLXI_REASON_MAX + 1];
    if (other == NULL) {
        round_commit(c);
        return;
    }
    snprintf(text, sizeof text, "sites '%.*s' and '%.*s' received different results",
             DLXI_SITE_NAME_MAX, first->name, DLXI_SITE_NAME_MAX, other->name);
    attempt_abort(c, text, true);
}

/* A member that hangs with its own state, which its training thread has and does not give back,
 * lacks nothing of others, and nobody names it. The others took a while too, of which it gets
 * several. */
static bool is_stuck(const dlxi_run_site *s) {
    return s->member && s->keeps_history && !DLXI_ALL(s, staged);
}

/* Whether another site could be in the round. */
static bool others_are_ready(const dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        if (!s->member && dlxi_run_site_is_ready(s) && s->stuck_round != c->round) return true;
    }
    return false;
}

/* The first one; NULL: nobody waits for such a member, or it is not to be left out. Those that wait
 * have staged; or it is alone in the attempt, and others are ready. */
static const dlxi_run_site *stuck_first(const dlxi_coordinator *c) {
    if (c->proposal == NULL || c->settings.sites_min == 0) return NULL;
    if (c->staged_ms == 0 && (c->proposal->members > 1 || !others_are_ready(c))) return NULL;
    for (uint16_t i = 0; i < c->count; i++)
        if (is_stuck(&c->sites[i])) return &c->sites[i];
    return NULL;
}

static void stuck_judge(dlxi_coordinator *c) {
    enum { SLOWER = 4 };
    char text[DLXI_REASON_MAX + 1];
    const dlxi_run_site *first = stuck_first(c);
    int64_t since_ms = c->staged_ms > 0 ? c->staged_ms : c->begun_ms;
    int64_t waited_ms = c->now_ms - since_ms;
    if (first == NULL || waited_ms < hung_ms(c) + SLOWER * (since_ms - c->begun_ms) ||
        DLXI_PLANTED(29))
        return;
    for (uint16_t i = 0; i < c->count; i++)
        if (is_stuck(&c->sites[i])) c->sites[i].stuck_round = c->round;
    snprintf(text, sizeof text, "site '%s' has not finished the exchange for %lld s after others",
             first->name, (long long)waited_ms / 1000);
    attempt_abort(c, text, false);
    c->trouble.patient_ms = c->now_ms;
}

/* ---- what a rank lacks ----------------------------------------------------------------------- */

/* The next round that it has not applied. */
static void round_answer(dlxi_coordinator *c, uint16_t site, uint16_t rank, uint64_t round) {
    dlxi_run_site *s = &c->sites[site];
    const dlxi_record *record = dlxi_record_of(c, round);
    char text[DLXI_REASON_MAX + 1];
    if (record != NULL) {
        commit_put(c, record, site, rank);
        return;
    }
    snprintf(text, sizeof text,
             "site '%s' was away for too long: it is at round %llu, the run at %llu", s->name,
             (unsigned long long)round, (unsigned long long)c->round);
    dlxi_presence_lose(c, s, NULL, DLX_PEER_LOST, text);
}

void dlxi_rounds_answer(dlxi_coordinator *c, uint16_t site, uint16_t rank, const dlxi_frame *frame,
                        int64_t now_ms) {
    dlxi_run_rank *p = &c->sites[site].ranks[rank];
    /* one that catches up gets the next round at once: it has to be faster than the run */
    bool moved = frame->round > p->round;
    if (moved) p->moved_ms = now_ms;
    p->round = frame->round;
    bool is_member = c->proposal != NULL && c->sites[site].member;
    bool soon = now_ms - p->answered_ms < ANSWER_MS && !moved;
    if (!c->welcomed || soon || DLXI_PLANTED(5)) return;
    if (dlxi_return_is_pending(&c->sites[site]))
        return; /* its other ranks are missing */
    else if (frame->term == 0)
        dlxi_gather_welcome_rank(c, site, rank);
    else if (frame->kind == DLXI_FRAME_LISTENING && c->phase >= DLXI_COORDINATOR_RUNNING)
        dlxi_gather_peers_of_rank(c, site, rank);
    else if (frame->round > 0 && frame->round < c->round)
        round_answer(c, site, rank, frame->round);
    else if (is_member && frame->round == c->round && frame->attempt < c->attempt)
        begin_put(c, p, rank);
    else if (!is_member && frame->round == c->round && frame->attempt > 0) {
        dlxi_reason *over = &dlxi_coordinator_compose(c, DLXI_FRAME_ABORT)->as.reason;
        *over = (dlxi_reason){.status = DLX_ABORTED, .about = DLXI_SITE_NONE};
        dlxi_coordinator_put(c, p, c->round, frame->attempt);
    } else if (c->phase == DLXI_COORDINATOR_CLOSING && frame->kind == DLXI_FRAME_REPORT) {
        (void)dlxi_coordinator_compose(c, DLXI_FRAME_FINISHED);
        dlxi_coordinator_put(c, p, c->round, c->attempt);
    }
}

/* Whether a round can't begin, and since when. */
static void wait_note(dlxi_coordinator *c) {
    bool ready = false, behind = true; /* all that are here, if anybody is */
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *s = &c->sites[i];
        ready = ready || dlxi_run_site_is_ready(s);
        behind = behind && (s->presence != DLXI_PRESENT || dlxi_presence_is_behind(c, s));
    }
    bool waits = c->proposal == NULL && c->begun && (behind || (ready && round_is_due(c)));
    const char *why = "";
    if (!waits)
        c->waits_since_ms = 0;
    else if (c->waits_since_ms == 0)
        c->waits_since_ms = c->waits_told_ms = c->now_ms;
    if (behind && dlxi_coordinator_present(c) > 0)
        why = ", and have not got the last round's results";
    else if (ready && !continues_last_view(c))
        why = ", and none that was in the last round is ready";
    dlxi_tell_waits(c, why);
}

void dlxi_rounds_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    const dlxi_trouble *t = &c->trouble;
    char what[32] = "joining";
    if (c->phase != DLXI_COORDINATOR_RUNNING) return;
    if (now_ms - c->begun_ms >= RETRY_MS) c->begin_waits = false;
    stuck_judge(c);
    round_consider(c);
    if (c->proposal == NULL) dlxi_tell_minority(c, hung_ms(c));
    wait_note(c);
    if (c->waits_since_ms > 0 && now_ms - c->waits_since_ms >= c->settings.patience_ms) {
        c->leaves_run = dlxi_coordinator_present(c) == 0; /* nobody hears that it is over */
        dlxi_coordinator_fail(c, DLX_PEER_LOST, NULL,
                              "gave up on round %llu, which could not begin for %u s "
                              "(wan.patience_s): %u of %u sites are here%s",
                              (unsigned long long)c->round, c->settings.patience_ms / 1000,
                              dlxi_coordinator_present(c), c->count,
                              c->leaves_run ? "; a coordinator that is started again goes on" : "");
        return;
    }
    int64_t since_ms = t->patient_ms > t->since_ms ? t->patient_ms : t->since_ms;
    if (t->since_ms == 0 || now_ms - since_ms < c->settings.patience_ms || stuck_first(c) != NULL)
        return;
    if (c->begun) snprintf(what, sizeof what, "round %llu", (unsigned long long)c->round);
    dlxi_coordinator_fail(c, DLX_PEER_LOST, NULL,
                          "gave up on %s after %lld s of trouble (wan.patience_s); last: %s", what,
                          (long long)(now_ms - t->since_ms) / 1000, t->text);
}
