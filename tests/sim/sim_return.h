/* SPDX-License-Identifier: Apache-2.0 */
/* A site whose processes have crashed comes back: others of the same ranks begin with what these
 * had saved, of one round. */
#ifndef DLXI_TESTS_SIM_RETURN_H
#define DLXI_TESTS_SIM_RETURN_H

#include "sim_world.h"

/* *to ← the same state; it was opened alike. */
static void state_copy(dlxi_state *to, const dlxi_state *from) {
    dlxi_state_cursor cursor = {0};
    dlxi_state_piece piece;
    while (dlxi_state_next_piece(from, DLXI_STATE_ALL, &cursor, UINT32_MAX, &piece))
        CHECK(dlxi_state_restore(to, &piece, NULL) == DLX_OK, "a copy");
    to->run_id = from->run_id;
    to->counted = from->counted;
    dlxi_state_rehash(to);
}

/* Between a commit and the next submission. `fresh` was opened alike, and is the peer's now. */
static void peer_save(peer *p, dlxi_state *fresh) {
    dlxi_state **place = &p->saved[p->state->rounds % SAVED];
    dlxi_state_close(place);
    state_copy(fresh, p->state);
    *place = fresh;
}

static dlxi_state *saved_of(const peer *p, uint64_t round) {
    dlxi_state *s = p->saved[round % SAVED];
    return s != NULL && s->rounds == round ? s : NULL;
}

/* A round that all ranks of the site have saved, the newest or an older one; or UINT64_MAX. */
static uint64_t saved_round(const world *w, uint16_t site, uint64_t older) {
    const peer *first = &w->peer[site * w->ranks];
    uint64_t found = UINT64_MAX, newest = 0;
    for (int k = 0; k < SAVED; k++)
        if (first->saved[k] != NULL && first->saved[k]->rounds > newest)
            newest = first->saved[k]->rounds;
    for (uint64_t round = newest; newest - round < SAVED; round--) {
        bool all = true;
        for (uint16_t r = 0; r < w->ranks; r++) all = all && saved_of(first + r, round) != NULL;
        if (all) found = round;
        if ((all && older-- == 0) || round == 0) break;
    }
    return found;
}

/* The crash from which this site comes back now, or NULL. */
static crash *return_due(world *w) {
    for (uint16_t k = 0; k < w->t.crash_count; k++) {
        crash *c = &w->t.crashes_of[k];
        if (c->returns_ms > 0 && !c->is_over && w->now_ms >= c->returns_ms) return c;
    }
    return NULL;
}

static void peer_close(world *w, uint16_t i) {
    dlxi_request r = {.closes = true, .state = NULL};
    dlxi_outcome o;
    peer *p = &w->peer[i];
    dlxi_engine_on_request(p->engine, &r, w->now_ms);
    if (dlxi_engine_outcome(p->engine, &o) && o.state != NULL) p->state = o.state;
    dlxi_engine_close(&p->engine);
    dlxi_local_close(&p->local);
    dlxi_state_close(&p->state);
}

/* What the new process has of the old one's: what it saved. */
static void peer_forget(world *w, uint16_t i) {
    peer *p = &w->peer[i], kept = *p;
    peer_close(w, i);
    memset(p, 0, sizeof *p);
    memcpy(p->saved, kept.saved, sizeof p->saved);
    p->life = kept.life + 1;
    if (kept.reported) {
        p->parts_before = kept.parts;
        p->part_count_before = kept.part_count;
    }
    w->shown[i] = w->said[i] = 0;
    w->term[i] = 0;
}

#endif
