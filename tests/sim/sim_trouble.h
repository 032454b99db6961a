/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of a run and what goes wrong in it, from the seed. */
#ifndef SIM_TROUBLE_H
#define SIM_TROUBLE_H

#include "sim_world.h"

static const char *const names[SITES_MAX] = {"a", "b", "c", "d"};

static dlx_sync_config config_of(const world *w, uint16_t i) {
    static const dlx_overlap overlaps[] = {DLX_OVERLAP_NONE, DLX_OVERLAP_CARRY, DLX_OVERLAP_DELAYED,
                                           DLX_OVERLAP_EAGER, DLX_OVERLAP_ALLREDUCE};
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = names[site_of(w, i)];
    config.rank = i % w->ranks;
    config.ranks = w->ranks;
    config.timeout_ms = TIMEOUT_MS;
    config.join_ms = JOIN_MS;
    config.orphan_ms = ORPHAN_MS;
    config.history_mib = 1;
    if (w->t.elastic) {
        config.windows = WINDOWS;
        config.tokens_per_window = WINDOW_TOKENS;
        config.windows_per_step = TOKENS * SITES_MAX / WINDOW_TOKENS;
        config.inner_steps = 1;
        config.inner_steps_max = 1;
    }
    config.overlap = overlaps[choice(0, 5)];
    config.outer_learning_rate = 0.7;
    config.outer_momentum = 0.9;
    config.bits = choice(1, 5) == 0 ? 32 : 4;
    config.group = 16;
    config.error_feedback = choice(2, 4) != 0;
    config.keep_unsent = config.error_feedback && choice(3, 4) != 0;
    config.seed = 3;
    config.factor_rank = 4;
    config.factor_rank_min = 1;
    config.factor_rank_max = 8;
    config.adaptation = choice(4, 2) == 0 ? DLX_ADAPTATION_PAPER : DLX_ADAPTATION_OFF;
    return dlxi_sync_options_resolve(&config);
}

/* Pairs of sites are cut for any time; from the coordinator a site is for less than its timeout. */
static void cuts_of_seed(world *w, trouble *t) {
    uint64_t pairs = draw(w, 3) == 0 ? 1 + draw(w, 2) : 0;
    for (; t->cut_count < pairs; t->cut_count++) {
        cut *c = &t->cuts[t->cut_count];
        c->a = (uint16_t)draw(w, w->sites);
        c->b = (uint16_t)((c->a + 1 + draw(w, w->sites - 1u)) % w->sites);
        c->one_way = draw(w, 2) == 0;
        c->from_ms = (int64_t)draw(w, 4000);
        c->until_ms = c->from_ms + (int64_t)draw(w, FAULTS_END_MS - 4000);
    }
    if (pairs > 0 && draw(w, 2) == 0) t->lose = t->reorder = t->repeat = t->reset = t->pause = 0;
    if (draw(w, 4) > 0) return;
    cut *c = &t->cuts[t->cut_count++];
    *c = (cut){.a = (uint16_t)draw(w, w->sites), .b = COORDINATOR};
    c->from_ms = TIMEOUT_MS + (int64_t)draw(w, 4000);
    c->until_ms = c->from_ms + TIMEOUT_MS / 3;
    t->pause = 0; /* together the two would be silence */
}

/* Sites that are cut off from the coordinator for long, crash, and a coordinator that stops. */
static void elastic_of_seed(world *w, trouble *t) {
    t->elastic = true;
    t->hostile = t->lost = NODES;
    uint64_t crashes = draw(w, 3) == 0 ? 1 + draw(w, w->sites - 1u) : 0;
    for (; t->crash_count < crashes; t->crash_count++)
        t->crashes_of[t->crash_count] =
            (crash){(uint16_t)draw(w, w->sites), 1000 + (int64_t)draw(w, FAULTS_END_MS - 1000)};
    if (t->cut_count < CUTS_MAX && draw(w, 3) == 0) {
        cut *c = &t->cuts[t->cut_count++];
        *c = (cut){.a = (uint16_t)draw(w, w->sites), .b = COORDINATOR, .one_way = draw(w, 2) == 0};
        if (c->one_way && draw(w, 2) == 0) c->b = c->a, c->a = COORDINATOR;
        c->from_ms = TIMEOUT_MS + (int64_t)draw(w, 6000);
        c->until_ms = c->from_ms + (int64_t)draw(w, 10000);
    }
    /* one after the other, so that the run goes from one to the other */
    if (t->cut_count + 2 <= CUTS_MAX && draw(w, 6) == 0) {
        cut *c = &t->cuts[t->cut_count];
        c[0] = (cut){.a = (uint16_t)draw(w, w->sites), .b = COORDINATOR};
        c[0].from_ms = 1000 + (int64_t)draw(w, 3000);
        c[0].until_ms = c[0].from_ms + TIMEOUT_MS + 200 + (int64_t)draw(w, 1500);
        c[1] = (cut){.a = (uint16_t)((c[0].a + 1u) % w->sites), .b = COORDINATOR};
        c[1].from_ms = c[0].until_ms - (int64_t)draw(w, 400);
        c[1].until_ms = c[1].from_ms + 2 * TIMEOUT_MS;
        t->cut_count += 2;
    }
    uint64_t stops = draw(w, 2) == 0 ? 1 + draw(w, STOPS_MAX) : 0;
    for (int64_t at_ms = 500; t->stop_count < stops; t->stop_count++) {
        at_ms += (int64_t)draw(w, 5000);
        t->stops[t->stop_count] = (stop){at_ms, 50 + (int64_t)draw(w, draw(w, 3) == 0 ? 9000 : 500),
                                         (stop_point)draw(w, STOP_POINTS)};
    }
}

/* Half of those that crash come back, some before it is known that they are gone. */
static void returns_of_seed(trouble *t) {
    for (uint16_t k = 0; k < t->crash_count; k++) {
        crash *c = &t->crashes_of[k];
        if (choice(50 + k, 2) != 0) continue;
        c->returns_ms = c->at_ms + TIMEOUT_MS + (int64_t)choice(60 + k, 12000);
        if (t->rounds < 4 * ROUNDS) t->rounds = 4 * ROUNDS;
    }
}

/* For a while, for longer than any grace, or for ever: if the others surely can go on. In half of
 * these seeds no process ends, so that they can. */
static void hang_of_seed(world *w, trouble *t) {
    enum { LONG_MS = PATIENCE_MS / 2 + 10000 };
    t->hangs.peer = NODES;
    if (choice(30, 6) != 0) return;
    if (choice(37, 2) == 0) {
        t->crash_count = t->stop_count = 0;
        t->sites_min = 1;
    }
    bool can_go_on = t->crash_count + t->stop_count == 0 && t->sites_min == 1;
    bool can_leave_out = config_of(w, 0).overlap != DLX_OVERLAP_ALLREDUCE;
    uint64_t kind = choice(31, !can_leave_out ? 1 : can_go_on ? 3 : 2);
    hang *h = &t->hangs;
    h->peer = (uint16_t)choice(32, w->peers);
    h->whole_site = choice(33, 2) == 0;
    h->from_ms = 500 + (int64_t)choice(34, 8000);
    h->until_ms = kind == 2   ? INT64_MAX
                  : kind == 1 ? h->from_ms + LONG_MS
                              : h->from_ms + (int64_t)choice(35, 4 * TIMEOUT_MS);
    h->keeps_state = kind == 2 && choice(38, 2) == 0;
    if (h->keeps_state) {
        t->recall = 40;
        h->earliest_ms = h->from_ms;
        h->from_ms = INT64_MAX;
        h->whole_site = false;
    }
    t->rounds = kind == 2 || choice(36, 2) == 0 ? 10 * ROUNDS : ROUNDS;
}

static trouble trouble_of_seed(world *w) {
    static const uint32_t rates[] = {0, 2, 10, 40};
    static const int64_t delays[] = {10, 10, 200, 600};
    trouble t = {.lose = rates[draw(w, 4)],
                 .reorder = rates[draw(w, 3)],
                 .repeat = rates[draw(w, 4)],
                 .reset = rates[draw(w, 3)],
                 .pause = rates[draw(w, 3)],
                 .recall = rates[draw(w, 4)],
                 .slow = rates[draw(w, 4)],
                 .damage = (uint32_t)(25 << draw(w, 3)),
                 .rounds = ROUNDS,
                 .hangs = {.peer = NODES},
                 .delay_ms_max = delays[draw(w, 4)],
                 .lost = NODES,
                 .hostile = NODES,
                 .flaps = choice(9, 6) == 0 ? (uint16_t)choice(20, w->sites) : (uint16_t)NODES};
    /* a request and its answer must fit between two breaks */
    if (t.flaps != NODES && t.delay_ms_max > FLAP_MS / 4) t.delay_ms_max = FLAP_MS / 4;
    cuts_of_seed(w, &t);
    if (draw(w, 8) == 0) {
        t.lost = (uint16_t)draw(w, w->peers);
        t.lost_at_ms = (int64_t)draw(w, 6000);
        t.crashes = draw(w, 2) == 0;
    } else if (draw(w, 4) == 0) {
        t.hostile = (uint16_t)draw(w, w->peers);
    }
    return t;
}

#endif
