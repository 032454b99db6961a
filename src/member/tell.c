/* SPDX-License-Identifier: Apache-2.0 */
/* What terminals show of rounds: who is left out and why, and who is waited for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "member/coordinator_internal.h"

enum { WAIT_TELL_MS = 10000 };

/* ---- left out -------------------------------------------------------------------------------- */

void dlxi_tell_keep_apart(dlxi_coordinator *c, uint16_t a, uint16_t b, const dlxi_reason *reason) {
    enum { SAID_MAX_S = 1000000 };
    const char *duration = strstr(reason->text, " for ");
    size_t bytes = duration != NULL ? (size_t)(duration - reason->text) : strlen(reason->text);
    long long said_s = duration != NULL ? strtoll(duration + strlen(" for "), NULL, 10) : 0;
    bool silent = reason->status == DLX_TIMEOUT && said_s > 0 && said_s < SAID_MAX_S;
    for (int i = 0; i < 2; i++) {
        dlxi_apart *apart = &c->sites[i == 0 ? a : b].apart;
        snprintf(apart->why, sizeof apart->why, "%.*s", (int)bytes, reason->text);
        apart->since_ms = silent ? c->now_ms - said_s * 1000 : 0;
        apart->other = i == 0 ? b : a;
    }
}

/* The first member that the site is in a blocked pair with; or NULL. */
static const dlxi_run_site *apart_from(const dlxi_coordinator *c, const dlxi_run_site *s) {
    for (uint16_t i = 0; i < c->count; i++)
        if (c->sites[i].member && (c->pairs.blocked[s - c->sites] >> i & 1u) != 0)
            return &c->sites[i];
    return NULL;
}

static void apart_show(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                       const dlxi_run_site *s, const dlxi_run_site *other) {
    uint16_t me = (uint16_t)(s - c->sites), from = (uint16_t)(other - c->sites);
    const dlxi_pair *pair = dlxi_pairs_of(&c->pairs, me, from);
    if (pair->works_ms > 0)
        snprintf(text, DLXI_REASON_MAX + 1, "it has reached '%s' again for %lld s, of %lld s",
                 other->name, (long long)(c->now_ms - pair->works_ms) / 1000,
                 (long long)pair->probation_ms / 1000);
    else if (s->apart.why[0] == '\0' || s->apart.other != from)
        snprintf(text, DLXI_REASON_MAX + 1, "it does not reach '%s'", other->name);
    else if (s->apart.since_ms == 0)
        dlxi_text_copy(text, DLXI_REASON_MAX + 1, s->apart.why);
    else
        snprintf(text, DLXI_REASON_MAX + 1, "%.*s for %lld s", DLXI_REASON_MAX - 32, s->apart.why,
                 (long long)(c->now_ms - s->apart.since_ms + 500) / 1000);
}

void dlxi_tell_left_out(dlxi_coordinator *c, const dlxi_run_site *s, uint16_t members) {
    char why[DLXI_REASON_MAX + 1];
    uint64_t lag = dlxi_run_site_lag(c, s);
    const dlxi_run_site *other = apart_from(c, s);
    double waited_s = (double)c->grace_taken_ms / 1000;
    if (other != NULL)
        apart_show(why, c, s, other);
    else if (s->stuck_round == c->round)
        dlxi_text_copy(why, sizeof why, "it did not finish the exchange");
    else if (dlxi_run_site_is_ready(s))
        snprintf(why, sizeof why, "it came too late, after more than %.1f s", waited_s);
    else if (lag > 0 && s->offered == s->counted + 1)
        snprintf(why, sizeof why, "it lacks the results of %llu round%s", (unsigned long long)lag,
                 lag == 1 ? "" : "s");
    else
        snprintf(why, sizeof why, "it was not ready after %.1f s", waited_s);
    dlxi_lines_add(&c->log, "site '%s' was left out of round %llu: %s; %u of %u went on", s->name,
                   (unsigned long long)c->round, why, members, c->count);
}

/* ---- waited for ------------------------------------------------------------------------------ */

/* These sites' names; of those that are away, for how long. */
static void names_show(char *names, size_t bytes, const dlxi_coordinator *c,
                       bool (*shows)(const dlxi_run_site *s)) {
    size_t used = 0;
    names[0] = '\0';
    for (uint16_t i = 0; i < c->count && used + DLXI_NAME_BYTES + 32 < bytes; i++) {
        const dlxi_run_site *s = &c->sites[i];
        if (!shows(s)) continue;
        used +=
            (size_t)snprintf(names + used, bytes - used, "%s'%s'", used > 0 ? ", " : "", s->name);
        if (s->presence == DLXI_AWAY)
            used += (size_t)snprintf(names + used, bytes - used, " (for %lld s)",
                                     (long long)(c->now_ms - s->away_ms) / 1000);
    }
}

static bool is_away(const dlxi_run_site *s) {
    return s->presence == DLXI_AWAY;
}

static bool is_unready(const dlxi_run_site *s) {
    return s->presence == DLXI_PRESENT && !dlxi_run_site_is_ready(s);
}

/* At half of the limit, and each time that it has lasted twice as long. */
void dlxi_tell_minority(dlxi_coordinator *c, int64_t limit_ms) {
    char names[DLXI_REASON_MAX - 160], after[64] = "";
    int64_t waited_ms = c->now_ms - c->minority_ms, told_ms = c->minority_told_ms - c->minority_ms;
    if (c->minority_ms == 0 || waited_ms < limit_ms / 2 || waited_ms < 2 * told_ms) return;
    c->minority_told_ms = c->now_ms;
    names_show(names, sizeof names, c, is_unready);
    if (c->minority_may)
        snprintf(after, sizeof after, "; the rest goes on after %lld s",
                 (long long)limit_ms / 1000);
    dlxi_lines_add(&c->log, "round %llu has waited %lld s for %s: here, and not ready%s",
                   (unsigned long long)c->round, (long long)waited_ms / 1000, names, after);
}

void dlxi_tell_waits(dlxi_coordinator *c, const char *why) {
    char names[DLXI_REASON_MAX - 160];
    if (c->waits_since_ms == 0 || c->now_ms - c->waits_told_ms < WAIT_TELL_MS) return;
    c->waits_told_ms = c->now_ms;
    names_show(names, sizeof names, c, is_away);
    dlxi_lines_add(&c->log, "round %llu can't begin for %lld s: %u of %u sites are here%s%s%s",
                   (unsigned long long)c->round, (long long)(c->now_ms - c->waits_since_ms) / 1000,
                   dlxi_coordinator_present(c), c->count, why,
                   names[0] != '\0' ? ", missing: " : "", names);
}
