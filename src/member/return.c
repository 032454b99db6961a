/* SPDX-License-Identifier: Apache-2.0 */
/* A site comes back into a run that lives, as another process that goes on from a snapshot. Its
 * rounds since then are the run's: it follows them as one that was away, trains from the newest
 * one, and its windows are those that were to be its next. */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "member/coordinator_internal.h"

enum { PEERS_MS = 1000 };

/* ---- who may --------------------------------------------------------------------------------- */

static const char ends[] = "to go on from snapshots, end its coordinator and all sites (Ctrl-C), "
                           "and start them again, sites with --resume";

static bool run_refuses(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                        const dlxi_run_site *s, const dlxi_hello *hello) {
    const size_t size = DLXI_REASON_MAX + 1;
    if (s == NULL)
        return snprintf(text, size, "site '%.63s' is new, and the run has begun without it; %s",
                        hello->site, ends);
    if (!c->begun || c->phase != DLXI_COORDINATOR_RUNNING)
        return snprintf(text, size, "the run is %s, and no site can come back now",
                        c->begun ? "at its end" : "about to begin");
    if (!s->keeps_history || !hello->keeps_history)
        return snprintf(text, size, "with allreduce a site can't come back; %s", ends);
    if ((c->given_up >> (s - c->sites) & 1u) != 0)
        return snprintf(text, size, "site '%s' was given up; %s", s->name, ends);
    return false;
}

static bool site_refuses(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                         const dlxi_run_site *s, const dlxi_hello *hello) {
    const size_t size = DLXI_REASON_MAX + 1;
    if (s->presence == DLXI_PRESENT)
        return snprintf(text, size,
                        "site '%s' is in the run; if that process has ended, try again after "
                        "wan.timeout_s (%u s)",
                        s->name, c->settings.timeout_ms / 1000);
    if (hello->ranks != s->rank_count || hello->rank >= s->rank_count)
        return snprintf(text, size, "site '%s' had %u ranks in this run, and has %u now", s->name,
                        s->rank_count, hello->ranks);
    if (hello->round == 0 || hello->round > c->round || hello->counted > s->counted ||
        hello->counted >= hello->round)
        return snprintf(text, size,
                        "the snapshot of site '%s' is of round %llu, and the run only at %llu: "
                        "another history; give an earlier one with --resume=DIR",
                        s->name, (unsigned long long)hello->round - 1,
                        (unsigned long long)c->round - 1);
    if (hello->round < c->round && dlxi_record_of(c, hello->round) == NULL)
        return snprintf(text, size,
                        "site '%s' was away for too long: its snapshot is of round %llu, the run "
                        "at %llu; %s",
                        s->name, (unsigned long long)hello->round - 1,
                        (unsigned long long)c->round - 1, ends);
    return false;
}

bool dlxi_return_is_refused(char text[DLXI_REASON_MAX + 1], const dlxi_coordinator *c,
                            const char *proved_name, const dlxi_run_site *s,
                            const dlxi_hello *hello) {
    if (proved_name[0] != '\0' && strcmp(proved_name, hello->site) != 0)
        return snprintf(text, DLXI_REASON_MAX + 1,
                        "site '%.63s' uses the key of '%s'; set --site or wan.key", hello->site,
                        proved_name);
    return run_refuses(text, c, s, hello) || site_refuses(text, c, s, hello) ||
           dlxi_coordinator_mismatch_with_run(text, c, s, hello);
}

/* ---- coming back ----------------------------------------------------------------------------- */

bool dlxi_return_is_pending(const dlxi_run_site *s) {
    for (uint16_t r = 0; r < s->rank_count; r++)
        if (s->ranks[r].returns) return true;
    return false;
}

/* What it trained since its last counted round is lost with its process. Windows that went to
 * others meanwhile are replaced. */
static void leases_renew(dlxi_coordinator *c, dlxi_run_site *s) {
    for (uint64_t n = s->counted + 1; n <= s->counted + 2; n++)
        if (n <= s->voided && !DLXI_PLANTED(30)) dlxi_rounds_grant(c, s, n);
    s->voided = s->counted < s->voided ? s->counted : s->voided;
    s->offered = s->counted;
}

static void rank_take(dlxi_run_rank *p, uint32_t peer, const dlxi_hello *hello, int64_t now_ms) {
    free(p->endpoints);
    *p = (dlxi_run_rank){.joined = true,
                         .linked = true,
                         .returns = true,
                         .has_peer = true,
                         .peer = peer,
                         .incarnation = hello->incarnation,
                         .round = hello->round,
                         .moved_ms = now_ms,
                         .tensors_hash = hello->tensors_hash,
                         .anchor_hash = hello->anchor_hash,
                         .last_seen_ms = now_ms,
                         .answered_ms = now_ms};
}

void dlxi_return_on_hello(dlxi_coordinator *c, dlxi_run_site *s, uint32_t peer,
                          const dlxi_hello *hello) {
    const uint16_t site = (uint16_t)(s - c->sites);
    rank_take(&s->ranks[hello->rank], peer, hello, c->now_ms);
    s->presence = DLXI_AWAY; /* until it has entered */
    s->lease_windows = hello->lease_windows;
    dlxi_coordinator_index_peers(c);
    if (!DLXI_ALL(s, returns)) return;
    for (uint16_t r = 0; r < s->rank_count; r++) s->ranks[r].returns = false;
    leases_renew(c, s);
    s->has_returned = s->catches_up = true;
    c->unsaved = true;
    dlxi_lines_add(&c->log, "site '%s' comes back from its snapshot of round %llu", s->name,
                   (unsigned long long)hello->round - 1);
    for (uint16_t r = 0; r < s->rank_count; r++) dlxi_gather_welcome_rank(c, site, r);
}

/* Of a site that comes back, or that was asked. */
void dlxi_return_on_listening(dlxi_coordinator *c, dlxi_run_site *s, dlxi_run_rank *p,
                              const dlxi_endpoints *endpoints) {
    const uint16_t site = (uint16_t)(s - c->sites), rank = (uint16_t)(p - s->ranks);
    if (dlxi_return_is_pending(s) || !dlxi_gather_endpoints_keep(c, p, endpoints)) return;
    for (uint16_t i = 0; i < c->count; i++)
        if (i == site || c->sites[i].presence == DLXI_PRESENT)
            dlxi_gather_peers_of_rank(c, i, rank);
}

/* The old process, which was only cut off: two would take each other's connections. */
void dlxi_return_on_stranger(dlxi_coordinator *c, uint32_t peer, const char *name,
                             const dlxi_frame *frame, const dlxi_ping *ping) {
    if (!c->begun || ping->run_id != c->settings.run_id || frame->site >= c->count) return;
    const dlxi_run_site *s = &c->sites[frame->site];
    if (!s->has_returned || frame->rank >= s->rank_count ||
        s->ranks[frame->rank].incarnation == ping->incarnation ||
        (name[0] != '\0' && strcmp(name, s->name) != 0))
        return;
    dlxi_coordinator_put_reason(c, peer, DLXI_FRAME_STOP, DLX_REFUSED,
                                "another process of this site has come back into the run");
}

/* Once a site has come back: a later life of the coordinator than the one in which a rank joined
 * has to ask it where it listens; and one of two sites that don't reach each other may not have
 * heard where the other one listens now. */
void dlxi_return_on_ping(dlxi_coordinator *c, uint16_t site, uint16_t rank, uint64_t reaches) {
    dlxi_run_rank *p = &c->sites[site].ranks[rank];
    bool asks = false, lacks = false;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_site *other = &c->sites[i];
        if (i == site || (!other->has_returned && !c->sites[site].has_returned)) continue;
        asks = asks || p->endpoints == NULL;
        lacks = lacks || ((reaches >> i & 1u) == 0 && other->presence == DLXI_PRESENT);
    }
    if ((!asks && !lacks) || !p->listening || c->now_ms - p->peers_ms < PEERS_MS) return;
    p->peers_ms = c->now_ms;
    if (asks)
        dlxi_gather_ask_rank(c, p);
    else
        dlxi_gather_peers_of_rank(c, site, rank);
}
