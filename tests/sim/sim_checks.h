/* SPDX-License-Identifier: Apache-2.0 */
/* What holds in every simulated run, whatever goes wrong. */
#ifndef DLXI_TESTS_SIM_CHECKS_H
#define DLXI_TESTS_SIM_CHECKS_H

#include "sim_world.h"
#include "windows.h"

/* ---- one history ----------------------------------------------------------------------------- */

/* A round has a member of the one before, which holds it for sure; unless those have crashed. */
static void check_continues(const world *w, uint64_t round) {
    uint32_t before = w->members[round - 1];
    if (round < 2 || before == 0 || w->t.hostile != NODES) return;
    for (uint16_t i = 0; i < w->peers; i++)
        if (had_crashed(w, i) || (w->peer[i].ended && !w->peer[i].finished))
            before &= ~(1u << site_of(w, i));
    CHECK(before == 0 || (w->members[round - 1] & w->members[round]) != 0,
          "round %llu has no member of the one before", (unsigned long long)round);
}

/* If one site's training hangs, and nothing else is wrong, no other one is left out three times in
 * a row; nor is that one, once it is in rounds again. */
static void check_left_out(const world *w) {
    const trouble *t = &w->t;
    uint32_t out[SITES_MAX] = {0};
    if (t->hangs.peer == NODES || t->cut_count + t->crash_count + t->stop_count > 0 ||
        t->lose + t->reorder + t->repeat + t->reset + t->pause + t->slow + t->recall > 0 ||
        t->start_ms_max > 0 || t->delay_ms_max > 200 || t->flaps != NODES)
        return;
    for (uint64_t round = 1; round < ROUNDS_MAX && w->members[round] != 0; round++)
        for (uint16_t site = 0; site < w->sites; site++) {
            bool is_in = (w->members[round] >> site & 1u) != 0;
            bool hung = site == site_of(w, t->hangs.peer) && w->hung_until_round > round;
            out[site] = is_in || hung ? 0 : out[site] + 1;
            CHECK(out[site] < 3, "site %u is left out of rounds up to %llu", site,
                  (unsigned long long)round);
        }
}

/* What is committed is what members had: what they trained on, or nothing that is void. */
static void check_tokens(world *w, uint64_t round, const dlxi_commit *m) {
    uint64_t sum = w->tokens[round - 1];
    w->tokens[round] = m->committed_tokens;
    if (w->t.hostile != NODES) return;
    for (uint16_t k = 0; k < m->view.members; k++) {
        uint64_t trained = TOKENS * (m->view.member[k].site + 1u);
        bool voided = m->view.member[k].voided;
        CHECK(m->view.member[k].tokens == (voided ? 0 : trained), "site %u counts for %llu tokens",
              m->view.member[k].site, (unsigned long long)m->view.member[k].tokens);
        sum += m->view.member[k].tokens;
    }
    CHECK(sum == m->committed_tokens, "round %llu: %llu tokens are committed, of %llu",
          (unsigned long long)round, (unsigned long long)m->committed_tokens,
          (unsigned long long)sum);
}

static void check_weight(const world *w, uint16_t i, const dlxi_outcome *o) {
    if (o->round.view_tokens == 0 || w->t.hostile != NODES) return;
    double share = (double)o->round.own_tokens / (double)o->round.view_tokens,
           weight = (double)o->round.weight;
    CHECK(weight > share - 1e-6 && weight < share + 1e-6, "peer %u weighs %g, not %g", i, weight,
          share);
}

/* The coordinator sends nothing that rests on what its store has not. */
static void check_saved(const world *w, const dlxi_frame *frame) {
    if (!w->t.elastic) return;
    CHECK(frame->trip == 0 || w->store != NULL, "the run begins before it is saved");
    if (w->store == NULL) return;
    CHECK(frame->term <= w->stored_term && frame->round <= w->stored_round,
          "term %u, round %llu before they are saved", frame->term,
          (unsigned long long)frame->round);
    CHECK(frame->kind != DLXI_FRAME_COMMIT || w->stored_records[frame->round] != NULL,
          "round %llu counts before it is saved", (unsigned long long)frame->round);
}

/* Each window is in one place; those that are lost stay lost. */
static void check_windows(world *w) {
    if (!w->t.elastic || w->t.hostile != NODES) return;
    int64_t unused = windows_unused(w->coordinator, WINDOW_TOKENS);
    CHECK(unused >= w->unused, "%lld windows are in two places", (long long)(w->unused - unused));
    w->unused = unused;
}

/* What waits for peers that take nothing does not pile up. */
static void check_bounds(world *w) {
    enum { WAITING_MAX = 32 };
    uint64_t waiting[NODES] = {0};
    const dlxi_outbox_item *item = dlxi_outbox_peek(dlxi_coordinator_outbox(w->coordinator));
    for (; item != NULL; item = item->next) {
        uint64_t count = ++waiting[item->to % NODES];
        if (count > w->waits_most) w->waits_most = count;
    }
    CHECK(w->waits_most <= WAITING_MAX, "%llu frames wait for one peer",
          (unsigned long long)w->waits_most);
}

/* Among honest sites nobody is given up for what it said, and no replica differs. */
static void check_reason(const world *w, const char *name, const char *why) {
    if (w->t.hostile != NODES) return;
    static const char *const ours[] = {"submitted number", "malformed", "not staged",
                                       "not submitted",    "different", "ended the run before"};
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        CHECK(strstr(why, ours[i]) == NULL, "site %s: %s", name, why);
}

/* ---- who is named ---------------------------------------------------------------------------- */

static void line_note(world *w, const char *line) {
    for (uint16_t i = 0; i < w->t.cut_count; i++) {
        cut *c = &w->t.cuts[i];
        char there[64], back[64];
        snprintf(there, sizeof there, "no data from site '%c' to site '%c' (", 'a' + c->a,
                 'a' + c->b);
        snprintf(back, sizeof back, "no data from site '%c' to site '%c' (", 'a' + c->b,
                 'a' + c->a);
        bool named = strstr(line, there) != NULL || (!c->one_way && strstr(line, back) != NULL);
        c->named = c->named || named;
    }
    w->lines++;
}

/* A pair that was cut for long, while a round could not do without it, is named on the
 * coordinator's terminal, unless other trouble ends attempts before. */
static void check_named(const world *w) {
    const trouble *t = &w->t;
    const cut *c = &t->cuts[0];
    bool is_alone = t->cut_count > 0 && c->b != COORDINATOR &&
                    (t->cut_count == 1 || t->cuts[1].b == COORDINATOR) &&
                    t->lose + t->reorder + t->repeat + t->reset + t->pause == 0 &&
                    t->start_ms_max == 0;
    bool is_long = c->until_ms - c->from_ms > 3 * TIMEOUT_MS;
    bool missed = w->over_ms < 0 || w->over_ms > c->until_ms;
    CHECK(!is_alone || !is_long || !missed || c->named, "nobody named sites %u and %u", c->a, c->b);
}

/* Frames that are lost, late or repeated, and connections that break, cost no attempt. */
static void check_attempts(const world *w) {
    if (w->t.cut_count > 0 || w->t.pause > 0) return;
    for (uint16_t i = 0; i < w->peers; i++)
        CHECK(w->peer[i].attempts == ROUNDS, "peer %u was in %llu attempts", i,
              (unsigned long long)w->peer[i].attempts);
}

/* Among honest sites no frame is malformed, and the results of an attempt are those of its members.
 */
static void check_attempts_broken(const world *w) {
    dlxi_coordinator_facts facts;
    if (w->t.hostile != NODES) return;
    dlxi_coordinator_facts_of(w->coordinator, &facts);
    CHECK(facts.broken == 0, "%llu attempts had malformed frames",
          (unsigned long long)facts.broken);
    CHECK(facts.differing == 0, "the results of %llu attempts differed",
          (unsigned long long)facts.differing);
}

/* A failure is the hostile site's, and the coordinator says so, or a peer whose last message to it
 * was lost. */
static void check_blamed(const world *w, const dlx_error *error) {
    uint16_t site = site_of(w, w->t.hostile);
    char name[8], number[16];
    snprintf(name, sizeof name, "'%c'", 'a' + site);
    snprintf(number, sizeof number, "site %u", site);
    bool named = strstr(error->message, name) != NULL || strstr(error->message, number) != NULL;
    for (uint16_t i = 0; i < w->peers; i++)
        named = named || strstr(w->peer[i].failure.message, name) != NULL;
    CHECK(named, "nobody named site %u: %s", site, error->message);
}

#endif
