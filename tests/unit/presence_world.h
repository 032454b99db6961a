/* SPDX-License-Identifier: Apache-2.0 */
/* A run of three sites that have joined, and what its tests assert. */
#ifndef PRESENCE_WORLD_H
#define PRESENCE_WORLD_H

#include "member_world.h"

enum { SITES = 3, SILENT = 2, FIRST = 1 << 0, SECOND = 1 << 1, THIRD = 1 << 2 };

static uint32_t patience_ms = PATIENCE_MS;

/* Three sites that have all they need to train; `keeps`: they keep results, and can come back. */
static inline world *world_running_to(uint64_t tokens, uint16_t sites_min, bool keeps) {
    world *w = world_open(SITES, tokens, NULL);
    w->settings.sites_min = sites_min;
    w->settings.patience_ms = patience_ms;
    w->keeps = keeps;
    dlxi_coordinator_close(&w->c);
    assert_int_equal(dlxi_coordinator_open(&w->c, &w->settings, w->now_ms, NULL), DLX_OK);
    static const char *const names[SITES] = {"a", "b", "c"};
    for (uint32_t i = 0; i < SITES; i++) join(w, i, names[i]);
    listen_all(w, SITES);
    w->links = true;
    for (uint32_t i = 0; i < SITES; i++) ping(w, i, 1, 0);
    assert_true(dlxi_coordinator_has_begun(w->c));
    return w;
}

static inline world *world_running(uint16_t sites_min, bool keeps) {
    return world_running_to(100000, sites_min, keeps);
}

static inline void ready_all(world *w, uint64_t round) {
    for (uint32_t i = 0; i < SITES; i++) ready(w, i, round, 60);
}

static inline void assert_begun(const world *w, uint32_t peer, uint32_t attempt, uint16_t members) {
    assert_int_equal(w->last[peer]->kind, DLXI_FRAME_BEGIN);
    assert_int_equal(w->attempt[peer], attempt);
    assert_int_equal(w->last[peer]->as.view.members, members);
}

static inline void assert_line(world *w, const char *expected) {
    char line[512], all[4096] = "";
    bool found = false;
    while (dlxi_coordinator_pop_log(w->c, line, sizeof line)) {
        found = found || strcmp(line, expected) == 0;
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "\n%s", line);
    }
    if (!found) fail_msg("'%s' is not in:%s", expected, all);
}

static inline void assert_begins_after(world *w, uint64_t round, int64_t ms) {
    int begun = w->counts[0][DLXI_FRAME_BEGIN];
    wait_pinging(w, SITES, -1, round, ms - 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], begun);
    wait_pinging(w, SITES, -1, round, 1);
    assert_int_equal(w->counts[0][DLXI_FRAME_BEGIN], begun + 1);
}

#endif
