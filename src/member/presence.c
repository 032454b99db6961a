/* SPDX-License-Identifier: Apache-2.0 */
/* Who takes part: sites that fall silent, come back, or are gone for good. */
#include <string.h>

#include "base/fault.h"
#include "base/panic.h"
#include "member/coordinator_internal.h"

enum {
    LOST_ANSWER_MS = 1000,
    /* one that has submitted nothing for so many may hang; what it trains on is stale by then */
    IDLE_ROUNDS = 8,
    PAUSE_MS = 1000 /* a longer gap between ticks is this process's own pause, not a silence */
};

bool dlxi_presence_is_behind(const dlxi_coordinator *c, const dlxi_run_site *s) {
    for (uint16_t r = 0; r < s->rank_count; r++)
        if (s->ranks[r].round > 0 && s->ranks[r].round < c->round) return true;
    return false;
}

uint64_t dlxi_run_site_lag(const dlxi_coordinator *c, const dlxi_run_site *s) {
    uint64_t lag = 0;
    for (uint16_t r = 0; r < s->rank_count; r++)
        if (s->ranks[r].round > 0 && c->round > s->ranks[r].round + lag)
            lag = c->round - s->ranks[r].round;
    return lag;
}

bool dlxi_presence_is_expecting(const dlxi_coordinator *c) {
    bool any = false, needed = false;
    for (uint16_t i = 0; i < c->count; i++) {
        any = any || c->sites[i].presence == DLXI_AWAY;
        needed = needed || (c->sites[i].presence == DLXI_AWAY && !c->sites[i].keeps_history);
    }
    return (needed && c->phase == DLXI_COORDINATOR_RUNNING) ||
           (any && c->found_ms > 0 && c->now_ms - c->found_ms < c->settings.find_ms);
}

static bool others_have_entered(dlxi_coordinator *c, const dlxi_run_site *but) {
    for (const dlxi_run_site *s = NULL; (s = dlxi_run_site_next(c, s)) != NULL;)
        if (s != but && !DLXI_ALL(s, entered)) return false;
    return true;
}

/* Until the others have all they need to train, every site is needed; and if the user wants all. */
static bool can_spare(dlxi_coordinator *c, const dlxi_run_site *s) {
    bool rounds = c->phase == DLXI_COORDINATOR_RUNNING || c->phase == DLXI_COORDINATOR_ENDING;
    return rounds && c->begun && c->settings.sites_min > 0 && others_have_entered(c, s);
}

/* To others. The site keeps what it was told: a rank that has not heard of its lease yet hears of
 * the same windows as the others. What is trained on them is void. */
static void leases_return(dlxi_coordinator *c, dlxi_run_site *s) {
    for (uint64_t n = s->counted + 1; n <= s->counted + 2; n++) {
        const dlxi_lease *lease = &s->leases[n % DLXI_COORDINATOR_LEASES];
        DLXI_ASSERT(lease->submission == n);
        if (n > s->voided) dlxi_ledger_settle(c->ledger, lease, 0);
    }
    s->voided = s->counted + 2;
    c->unsaved = true;
}

/* The site is not present any more. */
static void site_leave(dlxi_coordinator *c, dlxi_run_site *s, dlxi_presence presence,
                       dlx_status status, const char *why) {
    if (s->presence == DLXI_PRESENT && presence == DLXI_AWAY) s->away_count++;
    s->presence = presence;
    s->away_ms = c->now_ms;
    dlxi_rounds_disturb(c);
    s->idle_rounds = 0;
    s->lost_round = c->round;
    s->lost_status = status;
    dlxi_text_copy(s->lost_why, sizeof s->lost_why, why);
    for (uint16_t r = 0; r < s->rank_count; r++) s->ranks[r].ready = s->ranks[r].staged = false;
}

void dlxi_presence_lose(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                        dlx_status status, const char *why) {
    char text[DLXI_REASON_MAX + 1];
    if (!c->welcomed) {
        dlxi_gather_leave(c, s, culprit, status, why);
        return;
    }
    uint16_t left = (uint16_t)(dlxi_coordinator_left(c) - 1);
    if (!can_spare(c, s) || left < c->settings.sites_min || left == 0) {
        dlxi_coordinator_fail(c, status, s->name, "%s", why);
        return;
    }
    site_leave(c, s, DLXI_GONE, status, why);
    leases_return(c, s);
    for (uint16_t r = 0; r < s->rank_count; r++)
        if (s->ranks[r].has_peer)
            dlxi_coordinator_put_reason(c, s->ranks[r].peer, DLXI_FRAME_STOP, status, why);
    snprintf(text, sizeof text, "%s; %u of %u sites go on", why, dlxi_coordinator_present(c),
             c->count);
    dlxi_lines_add(&c->log, "%s", text);
    dlxi_rounds_on_presence(c, s, text);
    dlxi_end_on_presence(c, s);
}

/* Where results are not kept, a site can't come back. */
void dlxi_presence_miss(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                        const char *why) {
    char text[DLXI_REASON_MAX + 1];
    if (!c->welcomed || !can_spare(c, s) || !s->keeps_history) {
        dlxi_presence_lose(c, s, culprit, DLX_PEER_LOST, why);
        return;
    }
    site_leave(c, s, DLXI_AWAY, DLX_PEER_LOST, why);
    for (uint64_t n = s->counted + 1; n <= s->counted + 2 && DLXI_PLANTED(17); n++)
        dlxi_ledger_settle(c->ledger, &s->leases[n % DLXI_COORDINATOR_LEASES], 0); /* at once */
    uint16_t present = dlxi_coordinator_present(c);
    snprintf(text, sizeof text, "%s; %u of %u sites %s", why, present, c->count,
             present >= c->settings.sites_min && present > 0 ? "go on" : "are left, and wait");
    dlxi_lines_add(&c->log, "%s", text);
    dlxi_rounds_on_presence(c, s, text);
    dlxi_end_on_presence(c, s);
}

void dlxi_coordinator_on_closed(dlxi_coordinator *c, uint32_t peer, int64_t now_ms) {
    char text[sizeof(dlxi_label) + 64];
    c->now_ms = now_ms;
    if (peer >= c->peer_room || c->peers[peer].site == DLXI_SITE_NONE) return;
    dlxi_run_site *s = &c->sites[c->peers[peer].site];
    const dlxi_run_rank *p = &s->ranks[c->peers[peer].rank];
    if (s->presence != DLXI_PRESENT || !can_spare(c, s)) return; /* its silence will show */
    snprintf(text, sizeof text, "%s has no connection", dlxi_label_of(s, p).text);
    dlxi_presence_miss(c, s, p, text);
}

void dlxi_presence_answer_lost(dlxi_coordinator *c, const dlxi_run_site *s, dlxi_run_rank *p) {
    if (c->now_ms - p->answered_ms < LOST_ANSWER_MS) return;
    p->answered_ms = c->now_ms;
    dlxi_coordinator_put_reason(c, p->peer, DLXI_FRAME_STOP, s->lost_status, s->lost_why);
}

/* ---- who speaks ------------------------------------------------------------------------------ */

bool dlxi_presence_recognise(dlxi_coordinator *c, uint32_t peer, const char *name,
                             const dlxi_frame *frame, const dlxi_ping *ping) {
    if (!c->begun || c->peers[peer].site != DLXI_SITE_NONE || ping->run_id != c->settings.run_id ||
        frame->site >= c->count || frame->rank >= c->sites[frame->site].rank_count)
        return false;
    dlxi_run_site *s = &c->sites[frame->site];
    dlxi_run_rank *p = &s->ranks[frame->rank];
    if (p->incarnation != ping->incarnation || (name[0] != '\0' && strcmp(name, s->name) != 0))
        return false;
    p->peer = peer;
    p->has_peer = true;
    dlxi_coordinator_index_peers(c);
    c->pinged_ms = INT64_MIN / 2; /* it learns this term */
    return true;
}

void dlxi_presence_on_frame(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p) {
    p->last_seen_ms = c->now_ms;
    if (s->presence != DLXI_AWAY) return;
    for (uint16_t r = 0; r < s->rank_count; r++)
        if (s->ranks[r].deaf || !s->ranks[r].entered || s->ranks[r].last_seen_ms <= s->away_ms)
            return;
    if (c->phase == DLXI_COORDINATOR_CLOSING) { /* the others are leaving */
        s->presence = DLXI_GONE;
        dlxi_text_copy(s->lost_why, sizeof s->lost_why, "the run has ended without this site");
        return;
    }
    if (dlxi_coordinator_present(c) == 0) c->found_ms = c->now_ms != 0 ? c->now_ms : 1;
    s->presence = DLXI_PRESENT;
    if (s->revived)
        dlxi_lines_add(&c->log, "site '%s' is here", s->name);
    else
        dlxi_lines_add(&c->log, "site '%s' is back after %.1f s", s->name,
                       (double)(c->now_ms - s->away_ms) / 1000);
    s->away_total_ms += s->revived ? 0 : c->now_ms - s->away_ms;
    s->revived = false;
    s->back_ms = c->now_ms;
    dlxi_rounds_on_presence(c, s, "");
    dlxi_end_on_presence(c, s);
}

void dlxi_presence_on_ping(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                           const dlxi_ping *ping) {
    uint16_t me = (uint16_t)(s - c->sites);
    int64_t most_ms = 2 * (int64_t)c->settings.timeout_ms; /* there and back */
    int64_t since_ms = s->back_ms > c->resumed_ms ? s->back_ms : c->resumed_ms;
    bool settled = s->presence != DLXI_PRESENT || c->now_ms - since_ms > most_ms;
    if (ping->stamp > 0) {
        p->deaf = c->begun && settled && c->now_ms - ping->stamp > most_ms;
        p->stamp_ms = ping->stamp;
    }
    p->reaches = ping->sites;
    for (uint16_t other = 0; other < c->count; other++) {
        if ((c->pairs.blocked[me] >> other & 1u) == 0) continue;
        bool works = true;
        for (uint16_t r = 0; r < s->rank_count; r++)
            works = works && (s->ranks[r].reaches >> other & 1u) != 0 &&
                    (c->sites[other].ranks[r].reaches >> me & 1u) != 0;
        if (dlxi_pairs_on_word(&c->pairs, me, other, works, c->now_ms))
            dlxi_lines_add(&c->log, "sites '%s' and '%s' reach each other again", s->name,
                           c->sites[other].name);
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

/* The first rank of the site that has been silent for too long, or hears nothing; or NULL. */
static const dlxi_run_rank *silent_rank_find(const dlxi_coordinator *c, const dlxi_run_site *s) {
    for (uint16_t r = 0; r < s->rank_count; r++) {
        const dlxi_run_rank *p = &s->ranks[r];
        bool silent = c->now_ms - p->last_seen_ms > c->settings.timeout_ms;
        if (p->joined && !p->finished && (silent || p->deaf)) return p;
    }
    return NULL;
}

static void pause_forgive(dlxi_coordinator *c, int64_t now_ms) {
    int64_t gap_ms = now_ms - c->ticked_ms;
    c->ticked_ms = now_ms;
    if (gap_ms <= PAUSE_MS) return;
    c->resumed_ms = now_ms;
    c->opened_ms += gap_ms;
    if (c->found_ms > 0) c->found_ms += gap_ms;
    if (c->staged_ms > 0) c->staged_ms += gap_ms;
    if (c->minority_ms > 0) c->minority_ms += gap_ms;
    if (c->waits_since_ms > 0) c->waits_since_ms += gap_ms;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) {
            if (c->sites[i].presence != DLXI_PRESENT) continue;
            c->sites[i].ranks[r].last_seen_ms += gap_ms;
            c->sites[i].ranks[r].deaf = false; /* it heard nothing while nothing was sent */
        }
}

static void silence_judge(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count && c->phase < DLXI_COORDINATOR_CLOSING;) {
        dlxi_run_site *s = &c->sites[i];
        uint16_t count = c->count;
        const dlxi_run_rank *silent = s->presence == DLXI_PRESENT ? silent_rank_find(c, s) : NULL;
        if (silent != NULL) {
            char text[DLXI_REASON_MAX + 1];
            if (silent->deaf)
                snprintf(text, sizeof text,
                         "%s has received nothing from the coordinator for %lld s",
                         dlxi_label_of(s, silent).text,
                         (long long)(c->now_ms - silent->stamp_ms) / 1000);
            else
                snprintf(text, sizeof text, "no message from %s for %lld ms (wan.timeout_s)",
                         dlxi_label_of(s, silent).text,
                         (long long)(c->now_ms - silent->last_seen_ms));
            dlxi_presence_miss(c, s, silent, text);
        }
        i = (uint16_t)(i + (c->count == count)); /* before the welcome a site leaves its place */
    }
}

static void limbo_judge(dlxi_coordinator *c) {
    for (uint16_t i = 0; i < c->count; i++) {
        dlxi_run_site *s = &c->sites[i];
        if (s->presence == DLXI_AWAY && !s->keeps_history &&
            c->now_ms - s->away_ms > c->settings.timeout_ms) {
            char why[sizeof s->lost_why];
            dlxi_text_copy(why, sizeof why, s->lost_why);
            dlxi_presence_lose(c, s, NULL, DLX_PEER_LOST, why);
            return;
        }
        bool idle = s->presence == DLXI_PRESENT && s->idle_rounds >= IDLE_ROUNDS;
        int64_t since_ms = idle ? s->idle_since_ms : s->away_ms;
        bool away = s->presence == DLXI_AWAY && c->now_ms - s->away_ms >= c->settings.limbo_ms;
        if ((!away && !idle) || s->voided >= s->counted + 2) continue;
        uint64_t voided = s->voided;
        leases_return(c, s);
        if (idle && DLXI_PLANTED(27)) s->voided = voided;
        if (idle)
            dlxi_lines_add(&c->log,
                           "site '%s' is here, and has submitted nothing for %lld s and %u rounds; "
                           "its windows go to others",
                           s->name, (long long)(c->now_ms - since_ms) / 1000, s->idle_rounds);
        else
            dlxi_lines_add(&c->log, "site '%s' has been away for %lld s; its windows go to others",
                           s->name, (long long)(c->now_ms - since_ms) / 1000);
    }
}

void dlxi_presence_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    pause_forgive(c, now_ms);
    silence_judge(c);
    if (c->phase == DLXI_COORDINATOR_RUNNING) limbo_judge(c);
}
