/* SPDX-License-Identifier: Apache-2.0 */
/* Rendezvous: sites join rank by rank, are welcomed together, and learn where the others listen. */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"
#include "member/coordinator_internal.h"

/* A refused site's other ranks come within this time; later ones belong to another try. */
enum { REFUSED_MS = 3000 };

dlxi_run_site *dlxi_run_site_find(dlxi_coordinator *c, const char *name) {
    for (uint16_t i = 0; i < c->count; i++)
        if (strcmp(c->sites[i].name, name) == 0) return &c->sites[i];
    return NULL;
}

static uint16_t complete_sites_count(const dlxi_coordinator *c) {
    uint16_t count = 0;
    for (uint16_t i = 0; i < c->count; i++)
        count = (uint16_t)(count + dlxi_run_site_is_complete(&c->sites[i]));
    return count;
}

static int sites_compare(const void *a, const void *b) {
    return strcmp(((const dlxi_run_site *)a)->name, ((const dlxi_run_site *)b)->name);
}

/* ---- welcome --------------------------------------------------------------------------------- */

void dlxi_gather_welcome_rank(dlxi_coordinator *c, uint16_t site, uint16_t rank) {
    dlxi_run_rank *p = &c->sites[site].ranks[rank];
    dlxi_welcome *w = &dlxi_coordinator_compose(c, DLXI_FRAME_WELCOME)->as.welcome;
    *w = (dlxi_welcome){.site = site,
                        .sites = c->count,
                        .tokens_target = c->settings.tokens_target,
                        .run_id = c->settings.run_id,
                        .counted = c->sites[site].counted};
    for (uint16_t i = 0; i < c->count; i++) {
        memcpy(w->members[i].name, c->sites[i].name, sizeof w->members[i].name);
        memcpy(w->members[i].public_key, c->sites[i].key, sizeof w->members[i].public_key);
        w->members[i].needs_anchor =
            c->sites[i].ranks[rank].anchor_hash != c->sites[0].ranks[rank].anchor_hash;
    }
    for (uint64_t k = 0; k < 2; k++)
        w->leases[k] = c->sites[site].leases[(w->counted + 1 + k) % DLXI_COORDINATOR_LEASES];
    dlxi_coordinator_put(c, p, c->round, c->attempt);
}

/* Sites are numbered by name, not by arrival, so that a run repeats; a round is granted to all
 * before the next one, so that one step of D sites uses the windows that one site with D times the
 * batch would. */
static void sites_welcome(dlxi_coordinator *c) {
    qsort(c->sites, c->count, sizeof *c->sites, sites_compare);
    dlxi_coordinator_index_peers(c);
    if (!dlxi_resume_adopt(c)) return;
    for (uint64_t k = 1; k <= 2; k++)
        for (uint16_t i = 0; i < c->count; i++) {
            dlxi_run_site *s = &c->sites[i];
            const dlxi_lease *lease = &s->leases[(s->counted + k) % DLXI_COORDINATOR_LEASES];
            if (lease->submission != s->counted + k) dlxi_rounds_grant(c, s, s->counted + k);
        }
    c->welcomed = true;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) dlxi_gather_welcome_rank(c, i, r);
}

/* ---- join, leave ----------------------------------------------------------------------------- */

/* Its place is free again; the settings of a site that has left count no more. */
void dlxi_gather_leave(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_run_rank *culprit,
                       dlx_status status, const char *text) {
    for (uint16_t r = 0; r < s->rank_count; r++) {
        const dlxi_run_rank *p = &s->ranks[r];
        if (p->joined && p != culprit)
            dlxi_coordinator_put_reason(c, p->peer, DLXI_FRAME_STOP, status, text);
    }
    dlxi_run_site_release(s);
    *s = c->sites[--c->count];
    c->sites[c->count] = (dlxi_run_site){0};
    dlxi_coordinator_index_peers(c);
    if (c->count > 0) return;
    free(c->sites_text);
    c->sites_text = NULL;
    dlxi_resume_forget(c);
}

/* Whether a rank of this site was refused a short time ago, and this one has no answer yet. */
static bool site_was_refused(dlxi_coordinator *c, const dlxi_hello *hello, int64_t now_ms) {
    dlxi_refused_site *r = &c->refused;
    bool same =
        strcmp(r->name, hello->site) == 0 && now_ms < r->until_ms && hello->rank < DLXI_RANKS_MAX;
    if (!same) return false;
    if (r->answered[hello->rank]) r->name[0] = '\0';
    bool first_time = !r->answered[hello->rank];
    r->answered[hello->rank] = true;
    return first_time;
}

/* The whole site is refused for what one of its ranks said. `s`: what has joined of it, or NULL. */
static void site_refuse(dlxi_coordinator *c, dlxi_run_site *s, const dlxi_hello *hello,
                        const char *text, int64_t now_ms) {
    if (hello->ranks > 1 && hello->rank < DLXI_RANKS_MAX) {
        c->refused = (dlxi_refused_site){.until_ms = now_ms + REFUSED_MS};
        dlxi_text_copy(c->refused.name, sizeof c->refused.name, hello->site);
        dlxi_text_copy(c->refused.text, sizeof c->refused.text, text);
        c->refused.answered[hello->rank] = true;
        for (uint16_t r = 0; s != NULL && r < s->rank_count; r++)
            if (s->ranks[r].joined) c->refused.answered[r] = true;
    }
    if (s != NULL) dlxi_gather_leave(c, s, NULL, DLX_REFUSED, text);
}

/* Returns true and writes the reason if this hello can't join. It is logged once per site. */
static bool hello_is_refused(char text[DLXI_REASON_MAX + 1], dlxi_coordinator *c,
                             const char *proved_name, const dlxi_hello *hello, int64_t now_ms) {
    dlxi_run_site *s = dlxi_run_site_find(c, hello->site);
    bool refused = dlxi_coordinator_has_no_room(text, c, proved_name, s, hello);
    if (c->welcomed && !refused) return false;
    if (!refused && site_was_refused(c, hello, now_ms)) {
        dlxi_text_copy(text, DLXI_REASON_MAX + 1, c->refused.text);
        return true;
    }
    if (!refused && dlxi_coordinator_mismatch(text, c, s, hello)) {
        site_refuse(c, s, hello, text, now_ms);
        refused = true;
    }
    if (refused) dlxi_lines_add(&c->log, "refused a site: %s", text);
    return refused;
}

/* A place for a new site, or NULL without memory. */
static dlxi_run_site *site_enter(dlxi_coordinator *c, const dlxi_hello *hello, const char *key) {
    dlxi_run_rank *ranks;
    if (c->sites_text == NULL && (c->sites_text = strdup(hello->shared_text)) == NULL) return NULL;
    if (DLXI_NEW(&ranks, hello->ranks, NULL) != DLX_OK) return NULL;
    dlxi_run_site *s = &c->sites[c->count++];
    *s = (dlxi_run_site){.rank_count = hello->ranks,
                         .ranks = ranks,
                         .windows = hello->windows,
                         .tokens_per_window = hello->tokens_per_window,
                         .data_hash = hello->data_hash,
                         .lease_windows = hello->lease_windows,
                         .keeps_history = hello->keeps_history};
    memcpy(s->name, hello->site, sizeof s->name);
    dlxi_text_copy(s->key, sizeof s->key, key);
    return s;
}

void dlxi_gather_on_hello(dlxi_coordinator *c, uint32_t peer, const char *name, const char *key,
                          const dlxi_hello *hello, int64_t now_ms) {
    char text[DLXI_REASON_MAX + 1];
    if (hello_is_refused(text, c, name, hello, now_ms)) {
        dlxi_coordinator_put_reason(c, peer, DLXI_FRAME_STOP, DLX_REFUSED, text);
        return;
    }
    dlxi_run_site *s = dlxi_run_site_find(c, hello->site);
    if (c->welcomed) {
        dlxi_return_on_hello(c, s, peer, hello);
        return;
    }
    if (s == NULL) s = site_enter(c, hello, key);
    if (s == NULL) {
        dlxi_coordinator_fail_memory(c);
        return;
    }
    s->ranks[hello->rank] = (dlxi_run_rank){.joined = true,
                                            .has_peer = true,
                                            .peer = peer,
                                            .incarnation = hello->incarnation,
                                            .tensors_hash = hello->tensors_hash,
                                            .anchor_hash = hello->anchor_hash,
                                            .last_seen_ms = now_ms,
                                            .answered_ms = now_ms};
    s->joined++;
    dlxi_coordinator_index_peers(c);
    if (!dlxi_resume_note(c, s, hello)) {
        dlxi_coordinator_fail_memory(c);
        return;
    }
    if (!dlxi_run_site_is_complete(s)) return;
    uint16_t complete = complete_sites_count(c);
    dlxi_lines_add(&c->log, "site '%s' connected, %u of %u", s->name, complete, c->settings.sites);
    c->tell_ms = now_ms + DLXI_WAIT_TELL_FIRST_MS;
    if (complete == c->settings.sites) sites_welcome(c);
}

/* ---- the wait -------------------------------------------------------------------------------- */

typedef struct missing_text {
    char text[DLXI_REASON_MAX - 120];
    size_t used;
    uint32_t named, omitted;
} missing_text;

static void missing_add(missing_text *m, const char *name, const dlxi_run_site *s) {
    char item[DLXI_NAME_BYTES + 48];
    int length = s == NULL ? snprintf(item, sizeof item, "'%s'", name)
                           : snprintf(item, sizeof item, "'%s' (%u of its %u ranks have joined)",
                                      name, s->joined, s->rank_count);
    const size_t reserve = sizeof ", and 4294967295 others";
    if (m->omitted > 0 || m->used + 2 + (size_t)length + reserve > sizeof m->text) {
        m->omitted++;
        return;
    }
    m->used += (size_t)snprintf(m->text + m->used, sizeof m->text - m->used, "%s%s",
                                m->named > 0 ? ", " : "", item);
    m->named++;
}

/* Who has not joined: names, if the coordinator knows who may, or a number; and sites of which some
 * ranks have. */
static missing_text missing_list(dlxi_coordinator *c) {
    missing_text m = {.text = ""};
    for (uint16_t i = 0; i < c->count; i++)
        if (!dlxi_run_site_is_complete(&c->sites[i]))
            missing_add(&m, c->sites[i].name, &c->sites[i]);
    for (uint32_t i = 0; i < c->expected_count; i++)
        if (dlxi_run_site_find(c, c->expected[i]) == NULL) missing_add(&m, c->expected[i], NULL);
    if (m.omitted > 0)
        snprintf(m.text + m.used, sizeof m.text - m.used, " and %u others", m.omitted);
    return m;
}

static void missing_describe(char text[DLXI_REASON_MAX + 1], dlxi_coordinator *c,
                             uint16_t complete) {
    const missing_text m = missing_list(c);
    uint32_t missing = (uint32_t)c->settings.sites - complete;
    if (missing == m.named + m.omitted)
        snprintf(text, DLXI_REASON_MAX + 1, "%s", m.text);
    else if (c->expected_count > 0)
        snprintf(text, DLXI_REASON_MAX + 1, "%u of %s", missing, m.text);
    else
        snprintf(text, DLXI_REASON_MAX + 1, "%u more%s%s", missing, m.named > 0 ? ", and " : "",
                 m.text);
}

void dlxi_gather_on_tick(dlxi_coordinator *c, int64_t now_ms) {
    const int64_t waited_ms = now_ms - c->opened_ms;
    const uint32_t join_s = c->settings.join_ms / 1000;
    bool over = waited_ms >= c->settings.join_ms && !DLXI_PLANTED(11);
    char missing[DLXI_REASON_MAX + 1];
    if (c->welcomed || c->phase != DLXI_COORDINATOR_GATHERING || (!over && now_ms < c->tell_ms))
        return;
    c->tell_ms = now_ms + DLXI_WAIT_TELL_MS;
    uint16_t complete = complete_sites_count(c);
    missing_describe(missing, c, complete);
    if (over)
        dlxi_coordinator_fail(
            c, DLX_TIMEOUT, NULL,
            "gave up after %u s (wan.join_s): %u of %u sites have joined, missing "
            "is %s",
            join_s, complete, c->settings.sites, missing);
    else
        dlxi_lines_add(&c->log,
                       "%u of %u sites have joined after %lld s; waiting for %s, up to %u s "
                       "(wan.join_s)",
                       complete, c->settings.sites, (long long)waited_ms / 1000, missing, join_s);
}

/* ---- where sites listen ---------------------------------------------------------------------- */

/* Rank r of a site gets the endpoints of rank r of the others; "": not known yet. */
void dlxi_gather_peers_of_rank(dlxi_coordinator *c, uint16_t site, uint16_t rank) {
    dlxi_endpoints *e = &dlxi_coordinator_compose(c, DLXI_FRAME_PEERS)->as.endpoints;
    e->sites = c->count;
    for (uint16_t i = 0; i < c->count; i++) {
        const dlxi_run_rank *p = &c->sites[i].ranks[rank];
        if (p->endpoints == NULL)
            e->endpoint[i][0] = '\0';
        else
            memcpy(e->endpoint[i], p->endpoints[site], sizeof e->endpoint[i]);
    }
    dlxi_coordinator_put(c, &c->sites[site].ranks[rank], c->round, c->attempt);
}

/* Where does it listen? */
void dlxi_gather_ask_rank(dlxi_coordinator *c, dlxi_run_rank *p) {
    dlxi_coordinator_compose(c, DLXI_FRAME_PEERS)->as.endpoints.sites = 0;
    dlxi_coordinator_put(c, p, c->round, c->attempt);
}

bool dlxi_gather_endpoints_keep(dlxi_coordinator *c, dlxi_run_rank *p,
                                const dlxi_endpoints *endpoints) {
    if (endpoints->sites != c->count || p->endpoints != NULL) return false;
    if (DLXI_NEW(&p->endpoints, c->count, NULL) != DLX_OK) {
        dlxi_coordinator_fail_memory(c);
        return false;
    }
    memcpy(p->endpoints, endpoints->endpoint, (size_t)c->count * sizeof *p->endpoints);
    p->listening = true;
    return true;
}

void dlxi_gather_on_listening(dlxi_coordinator *c, dlxi_run_rank *p,
                              const dlxi_endpoints *endpoints) {
    if (c->phase != DLXI_COORDINATOR_GATHERING || !c->welcomed ||
        !dlxi_gather_endpoints_keep(c, p, endpoints))
        return;
    for (uint16_t i = 0; i < c->count; i++)
        if (!DLXI_ALL(&c->sites[i], listening)) return;
    c->phase = DLXI_COORDINATOR_RUNNING;
    for (uint16_t i = 0; i < c->count; i++)
        for (uint16_t r = 0; r < c->sites[i].rank_count; r++) dlxi_gather_peers_of_rank(c, i, r);
}

/* ---- whether they reach each other ----------------------------------------------------------- */

bool dlxi_gather_is_linked(const dlxi_coordinator *c) {
    bool linked = c->welcomed;
    for (uint16_t i = 0; i < c->count; i++) linked = linked && DLXI_ALL(&c->sites[i], linked);
    return linked;
}

void dlxi_gather_on_linked(dlxi_coordinator *c, dlxi_run_rank *p, bool linked) {
    if (c->phase != DLXI_COORDINATOR_RUNNING || c->begun || p->linked == linked) return;
    p->linked = linked;
    if (!dlxi_gather_is_linked(c)) return;
    c->trouble = (dlxi_trouble){0};
    c->begun = c->unsaved = true;
    if (c->count > 1) dlxi_lines_add(&c->log, "all sites reach each other");
    c->pinged_ms = INT64_MIN / 2; /* they wait for this */
}
