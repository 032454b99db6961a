/* SPDX-License-Identifier: Apache-2.0 */
/* Whole runs under virtual time: the production coordinator and engines, over links that lose,
 * delay, reorder and repeat frames, break, and are cut, in both directions or one; processes that
 * pause, or compute for long; training that hangs while its process speaks; ranks that crash, or
 * whose link fails; a rank that sends damaged copies of its frames. All from a seed. Whatever
 * happens, replicas stay equal, a run in which nobody is lost or hostile ends with the bits of a
 * run without trouble, and any other ends for everybody: well for all but a site that was dropped,
 * if the run can spare one; a failure by a hostile rank names its site.
 *
 *   sim_run [--seed S] [--runs N] [--verbose]     seeds S … S + N − 1
 *   sim_run --fault F …                           with planted fault F (a build with
 *                                                 -DDLXI_FAULTS) */
#include "sim_checks.h"
#include "sim_return.h"
#include "sim_trouble.h"

/* ---- training -------------------------------------------------------------------------------- */

/* As the first peer of this rank that came to this round. */
static void check_same(const world *w, uint64_t seen[][RANKS_MAX], uint16_t i, uint64_t hash) {
    const dlxi_state *s = w->peer[i].state;
    CHECK(s->rounds < ROUNDS_MAX, "a run without end");
    uint64_t *first = &seen[s->rounds][i % w->ranks];
    if (*first == 0) *first = hash;
    CHECK(*first == hash, "peer %u differs after round %llu", i, (unsigned long long)s->rounds);
}

static void check_replicas(world *w, uint16_t i) {
    const dlxi_state *s = w->peer[i].state;
    /* a wrong θ to start from shows when it is submitted, and gradients need none */
    if (w->t.hostile != NODES && (s->rounds == 0 || s->method->averages_gradients)) return;
    check_same(w, w->replicated, i, dlxi_state_hash(s, DLXI_STATE_REPLICATED));
}

/* allreduce: gradients take the place of a pseudo-gradient. */
static void gradients_make(peer *p, uint16_t i) {
    for (size_t k = 0; k < p->state->count; k++) {
        dlxi_state_tensor *t = &p->state->tensors[k];
        for (int64_t n = 0; n < dlxi_state_tensor_values(t); n++)
            t->error[n] = dlxi_rng_normal(17 + seed, p->round * 10 + i, (uint64_t)n);
    }
}

static void gradients_take(world *w, uint16_t i) {
    const peer *p = &w->peer[i];
    check_same(w, w->means, i, dlxi_state_hash(p->state, 1 << DLXI_STATE_ERROR));
}

/* Of what has to stay as it was submitted: all but statistics. */
static uint64_t m_hash_of(const dlxi_state *s) {
    uint64_t hash = 0;
    for (size_t k = 0; k < s->count; k++) {
        const dlxi_state_tensor *t = &s->tensors[k];
        size_t bytes = (size_t)dlxi_state_tensor_values(t) * sizeof(float);
        if (t->kind == DLX_TRAINED) hash = dlxi_hash(t->error, bytes, hash);
    }
    return hash;
}

static void train_and_submit(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    dlxi_request r = {.state = p->state, .submits = true};
    uint32_t tokens = TOKENS * (site_of(w, i) + 1u);
    r.ready =
        (dlxi_ready){.tokens = tokens, .windows_used = tokens / WINDOW_TOKENS, .step_ns = 1000};
    p->submission++;
    p->submitted_ms = w->now_ms;
    const dlxi_lease *lease = &p->leases[p->submission % 4];
    CHECK(lease->submission == p->submission &&
              (!w->t.elastic || dlxi_lease_windows(lease) >= r.ready.windows_used),
          "peer %u has no lease for its submission %llu", i, (unsigned long long)p->submission);
    if (p->state->method->averages_gradients) {
        gradients_make(p, i);
    } else {
        for (int k = 0; k < PARAMETERS; k++)
            p->p[k] += 0.01f * dlxi_rng_normal(17 + seed, p->round * 10 + i, (uint64_t)k);
        CHECK(dlxi_local_submit(p->local, p->state, false, false, 0, &r.ready.norm, NULL) == DLX_OK,
              "submit");
        r.ready.anchor_hash = dlxi_state_anchor_hash(p->state);
    }
    p->lent = p->state;
    p->m_hash = m_hash_of(p->state);
    p->state = NULL;
    p->submitted = true;
    dlxi_engine_on_request(p->engine, &r, w->now_ms);
}

/* Training starts once every pair of sites has exchanged frames, this peer's or not. */
static void check_met(const world *w) {
    for (uint16_t a = 0; a < w->peers; a++)
        for (uint16_t b = 0; b < w->peers; b++)
            CHECK(site_of(w, a) == site_of(w, b) || a % w->ranks != b % w->ranks || w->met[a][b],
                  "a peer has joined, and %u not yet received a frame of %u", b, a);
}

/* A round has one record; no window is counted twice. */
static void record_note(world *w, uint16_t i, const dlxi_commit *m) {
    const peer *p = &w->peer[i];
    uint64_t round = p->state->rounds, own = 0;
    uint32_t members = 0;
    CHECK(round < ROUNDS_MAX, "a run without end");
    uint64_t hash = dlxi_hash(&m->coordinator, sizeof m->coordinator, m->term);
    hash = dlxi_hash(&m->committed_tokens, sizeof m->committed_tokens, hash);
    for (uint16_t k = 0; k < m->view.members; k++) {
        uint64_t one[2] = {m->view.member[k].site, m->view.member[k].tokens};
        hash = dlxi_hash(one, sizeof one, hash);
        if (one[0] == site_of(w, i)) own = one[1];
        members |= 1u << one[0];
    }
    w->members[round] = members;
    bool hung = w->t.hangs.peer != NODES && site_of(w, i) == site_of(w, w->t.hangs.peer);
    if (hung && p->submitted_ms >= w->t.hangs.until_ms && round < w->hung_until_round)
        w->hung_until_round = round;
    check_continues(w, round);
    check_tokens(w, round, m);
    if (w->records[round] == 0) w->records[round] = hash;
    CHECK(w->records[round] == hash, "two records of round %llu", (unsigned long long)round);
    if (own == 0 || i % w->ranks > 0 || !w->t.elastic) return;
    const dlxi_lease *lease = &p->leases[p->submission % 4];
    for (uint64_t k = 0; k < own / WINDOW_TOKENS; k++) {
        uint64_t position = dlxi_lease_position(lease, k);
        CHECK(position < POSITIONS_MAX && w->counted[position]++ == 0,
              "window %llu is counted twice", (unsigned long long)position);
    }
}

static void lease_keep(peer *p, const dlxi_lease *lease) {
    p->leases[lease->submission % 4] = *lease;
}

static void peer_save_now(world *w, uint16_t i);

/* It never gives back what it has asked for amid an exchange. */
static void hang_with_state(world *w, uint16_t i) {
    hang *h = &w->t.hangs;
    if (!h->keeps_state || h->peer != i || h->from_ms != INT64_MAX || w->now_ms < h->earliest_ms)
        return;
    h->from_ms = w->now_ms;
    if (verbose) printf("%6lld ms: peer %u hangs\n", (long long)w->now_ms, i);
}

static void outcome_take(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    dlxi_outcome o;
    if (!dlxi_engine_outcome(p->engine, &o)) return;
    if (o.state != NULL) {
        CHECK(p->state == NULL, "peer %u got a state while it had one", i);
        p->state = o.state;
        if (o.joined || p->round > 0) check_replicas(w, i);
        CHECK(p->state->rounds >= p->applied, "peer %u goes back", i);
        p->applied = p->state->rounds;
    }
    if (o.joined) {
        CHECK(p->round == 0 && p->state != NULL, "peer %u joined twice", i);
        check_met(w);
        CHECK(dlxi_local_apply(p->local, p->state, true, 0, 0, NULL) == DLX_OK, "start");
        CHECK(o.returns == (p->life > 0), "peer %u joins", i);
        w->returned += o.returns;
        p->round = p->state->rounds + 1;
        p->submission = p->state->counted;
        if (o.returns) w->said[i] = p->submission;
        lease_keep(p, &o.leases[0]);
        lease_keep(p, &o.leases[1]);
        bool all = true;
        for (uint16_t k = 0; k < w->peers; k++) all = all && w->peer[k].round > 0;
        if (all) w->entered_ms = w->now_ms;
        p->train_at_ms = w->now_ms + (int64_t)draw(w, 300);
        peer_save_now(w, i);
    }
    if (o.committed) {
        bool plain = w->t.sites_min == 0;
        CHECK(p->submitted && (plain ? p->state->rounds == p->round : p->state->rounds >= p->round),
              "peer %u committed round %llu in %llu", i, (unsigned long long)p->state->rounds,
              (unsigned long long)p->round);
        CHECK(o.exchange_ns > 0 || !plain, "an exchange took no time");
        w->followed += p->state->rounds - p->round + (o.own_tokens == 0);
        record_note(w, i, &o.commit);
        check_weight(w, i, &o);
        lease_keep(p, &o.commit.lease);
        p->lent = NULL;
        if (p->state->method->averages_gradients)
            gradients_take(w, i);
        else
            CHECK(dlxi_local_apply(p->local, p->state, false, 0, o.weight, NULL) == DLX_OK,
                  "apply");
        p->submitted = false;
        p->round = p->state->rounds + 1;
        p->return_at_ms = -1;
        if (o.commit.finished) {
            p->finished = true;
        } else {
            p->train_at_ms = w->now_ms + (int64_t)draw(w, 300);
            peer_save_now(w, i);
        }
    } else if (o.state != NULL && p->submitted && !o.ended) { /* a loan */
        CHECK(p->state->rounds + 1 >= p->round, "a loan of round %llu in %llu",
              (unsigned long long)p->state->rounds, (unsigned long long)p->round);
        p->return_at_ms = w->now_ms + (int64_t)draw(w, 300);
        hang_with_state(w, i);
    }
    if (p->finished && !o.ended && o.part_count > 0 &&
        (!p->reported || (o.parts & ~p->parts) != 0 || o.part_count != p->part_count)) {
        dlxi_request r = {.report = strdup("done"), .parts = o.parts, .part_count = o.part_count};
        p->reported = true;
        p->parts = o.parts;
        p->part_count = o.part_count;
        dlxi_engine_on_request(p->engine, &r, w->now_ms);
    }
    if (o.ended) {
        p->ended = true;
        p->lent = NULL;
        p->failure = o.failure;
        CHECK(p->state != NULL, "peer %u ended without its state", i);
    }
    p->attempts = o.attempts;
    p->repairs = o.repairs;
}

/* ---- the pumps ------------------------------------------------------------------------------- */

static bool actions_perform(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    dlxi_engine_action a;
    const dlx_error broken = {.status = DLX_SYSTEM, .message = "the link broke"};
    bool any = false;
    for (; dlxi_engine_next(p->engine, &a, w->now_ms); any = true) {
        dlx_status status = DLX_OK;
        uint16_t to = a.peer == DLXI_SITE_COORDINATOR
                          ? (uint16_t)COORDINATOR
                          : (uint16_t)(a.peer * w->ranks + i % w->ranks);
        if (a.kind == DLXI_ENGINE_SEND) status = link_send(w, i, to, &a.frame);
        if (a.kind == DLXI_ENGINE_LISTEN) snprintf(a.endpoint, sizeof a.endpoint, "%u", i);
        if (a.kind == DLXI_ENGINE_RECONNECT) link_reset(w, i, to);
        if (a.kind == DLXI_ENGINE_LOG) {
            w->lines++;
            if (verbose) printf("%6lld ms: peer %u: %s\n", (long long)w->now_ms, i, a.text);
        }
        if (status == DLX_AGAIN) p->room = true;
        dlxi_engine_done(p->engine, &a, status, &broken);
    }
    return any;
}

typedef struct keepalive_of {
    world *w;
    uint16_t peer;
} keepalive_of;
static keepalive_of keepalives[PEERS_MAX];

static void keepalive(void *context) {
    keepalive_of *k = context;
    if (chance(k->w, k->w->t.slow)) k->w->now_ms += (int64_t)draw(k->w, 400);
    dlxi_engine_keep_alive(k->w->peer[k->peer].engine, k->w->now_ms);
    (void)actions_perform(k->w, k->peer);
}

static void pump(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    if (p->room) dlxi_engine_on_room(p->engine);
    p->room = false;
    do dlxi_engine_on_tick(p->engine, w->now_ms);
    while (actions_perform(w, i));
    if (!hangs(w, i)) outcome_take(w, i);
    bool followed = !hangs(w, i) && p->lent != NULL && p->lent->rounds >= p->round;
    CHECK(!followed || p->lent->method->averages_gradients || m_hash_of(p->lent) == p->m_hash,
          "peer %u lost what it submitted", i);
    if (chance(w, w->t.recall) && p->submitted && p->state == NULL && !hangs(w, i)) {
        dlxi_request r = {.recalls = true};
        dlxi_engine_on_request(p->engine, &r, w->now_ms);
    }
    p->pump_at_ms = w->now_ms + 20 + (int64_t)draw(w, 80);
    if (w->now_ms < p->paused_ms + TIMEOUT_MS || !chance(w, w->t.pause)) return;
    p->pump_at_ms += (int64_t)draw(w, TIMEOUT_MS / 2); /* twice in a row that would be silence */
    p->paused_ms = p->pump_at_ms;
}

static bool coordinator_send(void *context, const dlxi_outbox_item *item) {
    world *w = context;
    const uint16_t to = (uint16_t)(item->to % NODES);
    if (w->sends_half && draw(w, 2) == 0) return false;
    check_saved(w, &item->frame);
    if (item->to / NODES != w->peer[to].life) return true; /* to a process that has ended */
    return link_send(w, COORDINATOR, to, &item->frame) != DLX_AGAIN;
}

static dlxi_coordinator_settings settings_of(world *w) {
    uint64_t tokens = 0;
    for (uint16_t i = 0; i < w->sites; i++) tokens += TOKENS * (i + 1u);
    return (dlxi_coordinator_settings){.sites = w->sites,
                                       .sites_min = w->t.sites_min,
                                       .tokens_target = w->t.rounds * tokens,
                                       .run_id = 7,
                                       .life_id = dlxi_rng_u64(seed, 5, w->lives++) | 1,
                                       .timeout_ms = TIMEOUT_MS,
                                       .join_ms = JOIN_MS,
                                       .patience_ms = w->t.hostile != NODES ? PATIENCE_HOSTILE_MS
                                                                            : PATIENCE_MS,
                                       .limbo_ms = LIMBO_MS,
                                       .find_ms = 3000,
                                       .attempts_max = 5};
}

static void store_write(world *w) {
    dlxi_saved saved;
    CHECK(dlxi_coordinator_save(w->coordinator, &saved, NULL) == DLX_OK, "save");
    free(w->store);
    w->store = saved.state;
    w->store_bytes = saved.state_bytes;
    w->stored_term = (uint32_t)w->lives;
    w->stored_round = dlxi_coordinator_round(w->coordinator);
    check_windows(w);
    if (saved.record == NULL) return;
    CHECK(saved.round < ROUNDS_MAX, "a run without end");
    free(w->stored_records[saved.round]);
    w->stored_records[saved.round] = saved.record;
    w->stored_bytes[saved.round] = saved.record_bytes;
}

/* From what is in the store. */
static void coordinator_start(world *w) {
    dlxi_coordinator_settings run = settings_of(w);
    CHECK(dlxi_coordinator_restore(&w->coordinator, &run, w->store, w->store_bytes, w->now_ms,
                                   NULL) == DLX_OK,
          "restore");
    for (uint64_t round = 1; round < dlxi_coordinator_round(w->coordinator); round++)
        CHECK(dlxi_coordinator_restore_record(w->coordinator, w->stored_records[round],
                                              w->stored_bytes[round], NULL) == DLX_OK,
              "a record");
    for (uint16_t i = 0; i < w->peers; i++)
        CHECK(w->peer[i].applied < dlxi_coordinator_round(w->coordinator), "peer %u is further", i);
    if (verbose) printf("%6lld ms: the coordinator starts again\n", (long long)w->now_ms);
}

static bool stops_now(const world *w, stop_point point) {
    const stop *s = &w->t.stops[w->stopped];
    return w->stopped < w->t.stop_count && w->now_ms >= s->at_ms && s->point == point &&
           w->store != NULL;
}

static void coordinator_stop(world *w) {
    int64_t down_ms = w->t.stops[w->stopped++].down_ms;
    if (verbose) printf("%6lld ms: the coordinator stops\n", (long long)w->now_ms);
    dlxi_coordinator_close(&w->coordinator);
    w->coordinator_at_ms = w->now_ms + down_ms;
    /* its last words may come after its next life's first ones */
    uint64_t late = dlxi_rng_u64(seed, 6, w->stopped);
    if (late % 2 == 0) packets_delay(w, COORDINATOR, down_ms + (int64_t)(late / 2 % LATE_MS));
}

static void lines_take(world *w) {
    char line[512];
    while (dlxi_coordinator_pop_log(w->coordinator, line, sizeof line)) {
        line_note(w, line);
        if (verbose) printf("%6lld ms: coordinator: %s\n", (long long)w->now_ms, line);
    }
}

static void coordinator_pump(world *w) {
    if (w->coordinator == NULL) coordinator_start(w);
    dlxi_coordinator_on_tick(w->coordinator, w->now_ms);
    lines_take(w);
    check_attempts_broken(w);
    bool done = dlxi_coordinator_phase_of(w->coordinator) == DLXI_COORDINATOR_DONE;
    bool unsaved = dlxi_coordinator_is_unsaved(w->coordinator);
    if (!done && unsaved && stops_now(w, STOP_UNSAVED)) {
        coordinator_stop(w);
        return;
    }
    if (DLXI_PLANTED(14))
        dlxi_outbox_flush(dlxi_coordinator_outbox(w->coordinator), coordinator_send, w);
    if (!done && unsaved && DLXI_PLANTED(14) && stops_now(w, STOP_UNSENT)) {
        coordinator_stop(w);
        return;
    }
    if (w->t.elastic && unsaved) store_write(w);
    if (!done && unsaved && stops_now(w, STOP_UNSENT)) {
        coordinator_stop(w);
        return;
    }
    w->sends_half = !done && stops_now(w, STOP_HALF_SENT);
    dlxi_outbox_flush(dlxi_coordinator_outbox(w->coordinator), coordinator_send, w);
    check_bounds(w);
    if (w->sends_half) {
        w->sends_half = false;
        coordinator_stop(w);
        return;
    }
    if (done && w->over_ms < 0) w->over_ms = w->now_ms;
    w->coordinator_at_ms = w->now_ms + 20 + (int64_t)draw(w, 80);
}

static void deliver(world *w) {
    packet *p = w->in_flight;
    w->in_flight = p->next;
    w->queued[p->from][p->to] -= !p->late;
    bool lost = is_cut(w, p->from, p->to);
    w->met[p->from][p->to] = w->met[p->from][p->to] || !lost;
    if (p->to == COORDINATOR && !lost && w->coordinator == NULL) {
        if (verbose) printf("%6lld ms: nobody takes a frame\n", (long long)w->now_ms);
    } else if (p->to == COORDINATOR && !lost) {
        const uint32_t number = p->from + NODES * p->life; /* each process has its own */
        dlxi_coordinator_on_frame(w->coordinator, number, "", "", &p->frame, w->now_ms);
        if (draw(w, 2) == 0) coordinator_pump(w);
    } else if (p->to != COORDINATOR && !lost && !has_crashed(w, p->to) &&
               (p->from != COORDINATOR || p->life == w->peer[p->to].life)) {
        uint32_t from =
            p->from == COORDINATOR ? (uint32_t)DLXI_SITE_COORDINATOR : site_of(w, p->from);
        dlxi_engine_on_frame(w->peer[p->to].engine, from, &p->frame, w->now_ms);
        if (draw(w, 2) == 0 && w->peer[p->to].pump_at_ms - w->now_ms < 100) pump(w, p->to);
    }
    free(p);
}

/* ---- a run ----------------------------------------------------------------------------------- */

static int64_t start_choose(const world *w, uint16_t node) {
    return (int64_t)choice(10 + node, (uint64_t)w->t.start_ms_max + 1);
}

/* *state, and what a peer has beside it, if it is given. */
static void state_open(world *w, uint16_t i, dlxi_state **state, dlxi_local **local) {
    peer *p = &w->peer[i];
    const dlx_sync_config config = config_of(w, i);
    const dlx_tensor tensors[TENSORS] = {
        {.name = "matrix", .data = p->p, .rows = ROWS, .cols = COLS},
        {.name = "small",
         .data = p->p + ROWS * COLS,
         .rows = 6,
         .cols = 5,
         .id = 1,
         .kind = config.overlap == DLX_OVERLAP_ALLREDUCE ? DLX_TRAINED : DLX_STATISTICS},
        {.name = "bias", .data = p->p + ROWS * COLS + 30, .rows = 1, .cols = 33, .id = 2}};
    size_t count = i % w->ranks > 0 ? choice(5, TENSORS + 1) : TENSORS;
    CHECK(dlxi_state_open(state, &config, tensors, count, NULL) == DLX_OK, "open");
    if (local != NULL)
        CHECK(dlxi_local_open(local, &config, tensors, count, NULL) == DLX_OK, "open");
}

static void peer_save_now(world *w, uint16_t i) {
    dlxi_state *fresh;
    if (w->t.crash_count == 0) return;
    state_open(w, i, &fresh, NULL);
    peer_save(&w->peer[i], fresh);
}

/* from: what an earlier process of this peer has saved; NULL: there was none. */
static void peer_open(world *w, uint16_t i, const dlxi_state *from) {
    peer *p = &w->peer[i];
    const dlx_sync_config config = config_of(w, i);
    bool elsewhere = w->t.starts_elsewhere && site_of(w, i) == w->sites - 1;
    for (int k = 0; k < PARAMETERS; k++)
        p->p[k] = (float)(k % 17) * 0.125f - 1.0f + (elsewhere ? 3.0f : 0.0f);
    int64_t start_ms = from != NULL ? w->now_ms : start_choose(w, i);
    p->pump_at_ms = start_ms + (int64_t)draw(w, 100);
    p->train_at_ms = p->return_at_ms = -1;
    state_open(w, i, &p->state, &p->local);
    CHECK(dlxi_local_read(p->local, p->state, NULL) == DLX_OK, "open");
    if (from != NULL) state_copy(p->state, from);
    p->applied = p->state->rounds;
    CHECK(dlxi_engine_open(&p->engine, &config, 100 + i + 1000 * p->life, p->state, start_ms,
                           NULL) == DLX_OK,
          "open");
    p->state = NULL;
    keepalives[i] = (keepalive_of){w, i};
    dlxi_engine_set_keepalive(p->engine, keepalive, &keepalives[i]);
}

static void world_open(world *w, bool calm) {
    *w = (world){.over_ms = -1};
    w->sites = (uint16_t)(2 + draw(w, SITES_MAX - 1));
    w->ranks = (uint16_t)(1 + draw(w, RANKS_MAX));
    w->peers = (uint16_t)(w->sites * w->ranks);
    w->t = trouble_of_seed(w);
    if (calm)
        w->t = (trouble){.delay_ms_max = 10,
                         .lost = NODES,
                         .hostile = NODES,
                         .flaps = NODES,
                         .rounds = ROUNDS,
                         .hangs = {.peer = NODES}};
    w->t.starts_elsewhere = choice(6, 4) == 0;
    if (!calm && choice(7, 8) == 0) w->t.start_ms_max = LATE_START_MS;
    w->entered_ms = -1;
    w->hung_until_round = UINT64_MAX;
    if (!calm && choice(8, 2) == 0) {
        elastic_of_seed(w, &w->t);
        w->t.sites_min = (uint16_t)(1 + draw(w, 4) / 3);
        hang_of_seed(w, &w->t);
        returns_of_seed(&w->t);
    }
    const hang *h = &w->t.hangs;
    if (verbose && h->peer != NODES)
        printf("%s %u hangs%s from %lld to %lld ms\n", h->whole_site ? "the site of peer" : "peer",
               h->peer, h->keeps_state ? " with its state" : "", (long long)h->from_ms,
               (long long)h->until_ms);
    dlxi_coordinator_settings run = settings_of(w);
    w->start_ms = w->coordinator_at_ms = start_choose(w, COORDINATOR);
    CHECK(dlxi_coordinator_open(&w->coordinator, &run, w->start_ms, NULL) == DLX_OK, "open");
    for (uint16_t i = 0; i < w->sites; i++)
        CHECK(dlxi_coordinator_expect(w->coordinator, names[i], NULL) == DLX_OK, "expect");
    for (uint16_t i = 0; i < w->peers; i++) peer_open(w, i, NULL);
}

/* A site without anything saved stays away. */
static void site_return(world *w, crash *c) {
    uint64_t round = saved_round(w, c->site, choice(70 + c->site, SAVED));
    c->is_over = round != UINT64_MAX;
    if (!c->is_over) {
        c->returns_ms = 0;
        return;
    }
    if (verbose)
        printf("%6lld ms: site %u comes back with round %llu\n", (long long)w->now_ms, c->site,
               (unsigned long long)round);
    for (uint16_t r = 0; r < w->ranks; r++) {
        uint16_t i = (uint16_t)(c->site * w->ranks + r);
        peer_forget(w, i);
        peer_open(w, i, saved_of(&w->peer[i], round));
    }
}

static void world_close(world *w) {
    while (w->in_flight != NULL) {
        packet *next = w->in_flight->next;
        free(w->in_flight);
        w->in_flight = next;
    }
    for (uint16_t i = 0; i < w->peers; i++) {
        peer_close(w, i);
        for (int k = 0; k < SAVED; k++) dlxi_state_close(&w->peer[i].saved[k]);
    }
    dlxi_coordinator_close(&w->coordinator);
    free(w->store);
    for (int i = 0; i < ROUNDS_MAX; i++) free(w->stored_records[i]);
}

/* The next thing that is due happens. */
static void step(world *w) {
    int64_t at_ms = w->coordinator_at_ms;
    uint16_t who = COORDINATOR;
    flap(w);
    for (crash *c; (c = return_due(w)) != NULL;) site_return(w, c);
    for (uint16_t i = 0; i < w->peers; i++) {
        const peer *p = &w->peer[i];
        if (!has_crashed(w, i) && p->pump_at_ms < at_ms) at_ms = p->pump_at_ms, who = i;
    }
    if (w->in_flight != NULL && w->in_flight->at_ms <= at_ms) {
        w->now_ms = w->in_flight->at_ms > w->now_ms ? w->in_flight->at_ms : w->now_ms;
        deliver(w);
        return;
    }
    w->now_ms = at_ms > w->now_ms ? at_ms : w->now_ms;
    if (who == COORDINATOR) {
        coordinator_pump(w);
        return;
    }
    peer *p = &w->peer[who];
    if (who == w->t.lost && w->t.crashes && w->now_ms >= w->t.lost_at_ms) {
        p->lost = true;
        return;
    }
    bool acts = !p->ended && !hangs(w, who);
    if (p->return_at_ms >= 0 && w->now_ms >= p->return_at_ms && p->state != NULL && acts) {
        dlxi_request r = {.state = p->state};
        p->state = NULL;
        p->return_at_ms = -1;
        dlxi_engine_on_request(p->engine, &r, w->now_ms);
    }
    if (p->train_at_ms >= 0 && w->now_ms >= p->train_at_ms && acts) {
        p->train_at_ms = -1;
        train_and_submit(w, who);
    }
    pump(w, who);
    if (chance(w, w->t.reset)) link_reset(w, who, (uint16_t)draw(w, NODES));
}

static bool all_over(const world *w) {
    bool over = w->over_ms >= 0;
    for (uint16_t i = 0; i < w->peers; i++)
        over = over && (w->peer[i].ended || has_crashed(w, i) || hangs_for_ever(w, i));
    return over;
}

static bool is_one_lost(const world *w) {
    return w->t.lost != NODES && w->peer[w->t.lost].lost;
}

static void check_time(const world *w) {
    CHECK(w->now_ms < (w->t.elastic ? ELASTIC_END_MS : RUN_END_MS),
          "the run does not end; round %llu of peer 0", (unsigned long long)w->peer[0].round);
    if (w->coordinator == NULL) return;
    bool waits = dlxi_coordinator_phase_of(w->coordinator) == DLXI_COORDINATOR_GATHERING;
    CHECK(!waits || w->now_ms <= w->start_ms + JOIN_MS + TIMEOUT_MS,
          "the coordinator waits for ever");
    int64_t lost_at_ms = w->start_ms > w->t.lost_at_ms ? w->start_ms : w->t.lost_at_ms;
    CHECK(!is_one_lost(w) || w->t.elastic ||
              w->now_ms < lost_at_ms + JOIN_MS + CRASH_END_MS + TIMEOUT_MS + ORPHAN_MS,
          "the run does not end after a rank was lost");
}

static bool is_dropped(const world *w, uint16_t site) {
    const char *name = "", *why;
    uint64_t round;
    /* the coordinator numbers sites by name, as this file does */
    if (!dlxi_coordinator_dropped(w->coordinator, site, &round, &name, &why)) return false;
    CHECK(strcmp(name, names[site]) == 0 && why[0] != '\0' && round > 0, "site %s", name);
    check_reason(w, name, why);
    return true;
}

static uint64_t check_dropped(const world *w, bool plain) {
    uint64_t count = 0;
    for (uint16_t site = 0; site < w->sites; site++) {
        if (!is_dropped(w, site)) continue;
        count++;
        if (w->t.elastic) continue;
        CHECK(!plain, "site %s was dropped for nothing", names[site]);
        CHECK(w->t.hostile != NODES || site == site_of(w, w->t.lost), "the wrong site was dropped");
    }
    CHECK(count == 0 || w->t.elastic || w->sites - count >= w->t.sites_min,
          "too many were dropped");
    return count;
}

/* No other site was in the last round, of which a round needs a member. */
static bool hangs_with_last_round(const world *w) {
    uint32_t members = 0;
    if (w->t.hangs.peer == NODES || w->t.hangs.until_ms != INT64_MAX) return false;
    for (uint16_t i = 0; i < w->sites; i++)
        members |= (uint32_t)w->coordinator->sites[i].was_member << i;
    return members == 1u << site_of(w, w->t.hangs.peer);
}

/* The run may fail if a site was lost before all had entered; if nobody is left; or if all that
 * were in the last round are, or hang. */
static bool may_fail(const world *w) {
    uint16_t crashed = 0;
    if (hangs_with_last_round(w)) return true;
    for (uint16_t i = 0; i < w->peers; i++) crashed = (uint16_t)(crashed + had_crashed(w, i));
    if (config_of(w, 0).overlap == DLX_OVERLAP_ALLREDUCE) return true; /* nobody comes back */
    if (w->stopped > 0 && w->peer[0].finished) return true; /* they had left when it came back */
    return w->entered_ms < 0 || w->over_ms < w->entered_ms + 2 * TIMEOUT_MS || crashed > 0;
}

/* All of the work at the end was done by sites that are still there. */
static void check_parts(const world *w) {
    const char *name;
    uint64_t done = 0;
    uint16_t count = 0;
    for (uint16_t i = 0; i < w->peers; i += w->ranks) {
        const peer *p = &w->peer[i];
        const bool before = !p->reported && p->part_count_before > 0;
        if ((!p->reported && !before) ||
            dlxi_coordinator_report(w->coordinator, site_of(w, i), &name) == NULL)
            continue;
        /* the same for all: else it was not taken */
        count = before ? p->part_count_before : p->part_count;
        done |= before ? p->parts_before : p->parts;
    }
    CHECK(count == 0 || done == UINT64_MAX >> (64 - count), "parts %llx of %u are done",
          (unsigned long long)done, count);
}

static void check_elastic_peer(const world *w, uint16_t i, bool failed) {
    const peer *p = &w->peer[i];
    if (has_crashed(w, i) || hangs_for_ever(w, i)) return;
    if (p->life > 0 && p->round == 0) return; /* it could not come back */
    check_reason(w, names[site_of(w, i)], p->failure.message);
    if (failed || is_dropped(w, site_of(w, i))) {
        CHECK(p->failure.status != DLX_OK || p->finished, "peer %u ended well", i);
        return;
    }
    CHECK(p->finished, "peer %u did not finish: %s", i, p->failure.message);
}

static void check_peer(const world *w, uint16_t i, bool failed) {
    const peer *p = &w->peer[i];
    if (w->t.elastic) {
        check_elastic_peer(w, i, failed);
        return;
    }
    if (p->lost) {
        CHECK(w->t.crashes || p->finished || p->failure.status == DLX_SYSTEM, "peer %u: %s", i,
              p->failure.message);
        return;
    }
    if (is_dropped(w, site_of(w, i))) {
        CHECK(p->failure.status != DLX_OK, "peer %u was dropped, and ended well", i);
        return;
    }
    bool done = failed || (p->finished && w->t.hostile != NODES);
    CHECK(done || p->failure.status == DLX_OK, "peer %u: %s", i, p->failure.message);
    CHECK(!failed || p->failure.status != DLX_OK || p->finished, "peer %u ended well", i);
    CHECK(failed || p->finished, "peer %u did not finish", i);
    if (is_one_lost(w) || w->t.hostile != NODES) return;
    CHECK(p->finished && p->state->rounds == ROUNDS, "peer %u ended in round %llu", i,
          (unsigned long long)p->state->rounds);
}

/* The hash of all that replicas and sites hold at the end of a run in which nobody is lost or
 * hostile, else 0. */
static uint64_t simulate(bool calm, world *totals) {
    static world w;
    world_open(&w, calm);
    while (!all_over(&w)) {
        step(&w);
        check_time(&w);
    }
    bool hostile = w.t.hostile != NODES, plain = !hostile && !is_one_lost(&w) && !w.t.elastic;
    dlx_error error = {0};
    bool failed = dlxi_coordinator_result(w.coordinator, &error) != DLX_OK;
    CHECK(!plain || !failed, "the coordinator: %s", error.message);
    CHECK(!w.t.elastic || !failed || may_fail(&w), "the coordinator: %s", error.message);
    if (!failed && !hostile) check_parts(&w);
    if (hostile && failed) check_blamed(&w, &error);
    if (plain) check_named(&w);
    if (w.t.elastic) check_left_out(&w);
    if (plain) check_attempts(&w);
    totals->dropped += check_dropped(&w, plain);
    uint64_t hash = 0;
    for (uint16_t i = 0; i < w.peers; i++) {
        const peer *p = &w.peer[i];
        check_peer(&w, i, failed);
        if (plain)
            hash = dlxi_hash(p->p, sizeof p->p, hash + dlxi_state_hash(p->state, DLXI_STATE_ALL));
        totals->attempts += p->attempts;
        totals->repairs += p->repairs;
    }
    totals->frames += w.frames;
    totals->lines += w.lines;
    totals->damaged += w.damaged;
    totals->followed += w.followed;
    totals->lives += w.lives - 1;
    totals->returned += w.returned;
    world_close(&w);
    return hash;
}

int main(int argc, char **argv) {
    uint64_t first = 1, runs = 100;
    for (int i = 1; i < argc; i++) {
        bool last = i + 1 == argc;
        if (strcmp(argv[i], "--verbose") == 0) verbose = true;
        if (strcmp(argv[i], "--seed") == 0 && !last) first = strtoull(argv[++i], NULL, 10);
        if (strcmp(argv[i], "--runs") == 0 && !last) runs = strtoull(argv[++i], NULL, 10);
#ifdef DLXI_FAULTS
        if (strcmp(argv[i], "--fault") == 0 && !last)
            dlxi_planted_fault = (int)strtol(argv[++i], NULL, 10);
#endif
    }
    static world calm, tried;
    uint64_t others = 0;
    for (seed = first; seed < first + runs; seed++) {
        uint64_t expected = simulate(true, &calm), got = simulate(false, &tried);
        others += got == 0;
        CHECK(got == 0 || got == expected, "trouble changed the result");
    }
    printf("%llu runs, %llu with a rank that is lost or hostile, or without some sites; %llu sites "
           "missing at the end, %llu rounds followed, %llu ranks came back, %llu coordinators "
           "started again: "
           "%llu frames, %llu damaged, %llu attempts, %llu times lost frames were sent again, %llu "
           "lines logged; without trouble %llu frames, %llu attempts\n",
           (unsigned long long)runs, (unsigned long long)others, (unsigned long long)tried.dropped,
           (unsigned long long)tried.followed, (unsigned long long)tried.returned,
           (unsigned long long)tried.lives, (unsigned long long)tried.frames,
           (unsigned long long)tried.damaged, (unsigned long long)tried.attempts,
           (unsigned long long)tried.repairs, (unsigned long long)tried.lines,
           (unsigned long long)calm.frames, (unsigned long long)calm.attempts);
    CHECK(runs < 100 || (tried.repairs > runs && calm.repairs == 0 && tried.lines > calm.lines &&
                         others > 0 && tried.damaged > 0 && tried.dropped > 0 &&
                         tried.followed > 0 && tried.lives > 0 && tried.returned > 0),
          "there was no trouble");
    return 0;
}
