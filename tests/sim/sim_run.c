/* SPDX-License-Identifier: Apache-2.0 */
/* Whole runs under virtual time: the production coordinator and engines, over links that lose,
 * delay, reorder and repeat frames, break, and are cut; processes that pause; sites that crash. All
 * from a seed. Whatever happens, replicas stay equal, a run without a crash ends with the bits of a
 * run without trouble, and one with a crash ends for everybody.
 *
 *   sim_run [--seed S] [--runs N] [--verbose]     seeds S … S + N − 1
 *   sim_run --fault F …                           with planted fault F (a build with
 *                                                 -DDLXI_FAULTS) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/hash.h"
#include "base/rng.h"
#include "member/coordinator.h"
#include "sync/engine.h"
#include "sync/local.h"

#ifdef DLXI_FAULTS
int dlxi_planted_fault;
#endif

enum {
    SITES_MAX = 3,
    RANKS_MAX = 2,
    PEERS_MAX = SITES_MAX * RANKS_MAX,
    COORDINATOR = PEERS_MAX, /* a node's number */
    NODES = PEERS_MAX + 1,
    ROWS = 24,
    COLS = 40,
    PARAMETERS = ROWS * COLS + 30 + 33,
    TENSORS = 3,
    ROUNDS = 3,
    TOKENS = 100, /* of site 0 and round; site i: i + 1 times as many */
    TIMEOUT_MS = 3000,
    PATIENCE_MS = 120000,
    FAULTS_END_MS = 20000,         /* from then on everything works */
    RUN_END_MS = 60000,            /* by then the run is over */
    CRASH_END_MS = 3 * TIMEOUT_MS, /* after a crash */
    DATA_FRAMES = 8,
    CONTROL_FRAMES = 64
};

static uint64_t seed;
static bool verbose;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "seed %llu: %s does not hold: ", (unsigned long long)seed,             \
                    #condition);                                                                   \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, "\n");                                                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* ---- the world ------------------------------------------------------------------------------- */

typedef struct packet {
    struct packet *next; /* by time of arrival */
    int64_t at_ms;
    uint16_t from, to; /* nodes */
    dlxi_frame frame;
    uint8_t payload[];
} packet;

/* One rank of a site: its training, and its engine. */
typedef struct peer {
    dlxi_engine *engine;
    dlxi_local *local;
    dlxi_state *state; /* NULL while the engine has it */
    float p[PARAMETERS];
    uint64_t round; /* being trained */
    uint64_t attempts;
    bool submitted, crashed, ended, finished, paused;
    dlx_error failure;
    int64_t pump_at_ms, train_at_ms, return_at_ms; /* −1: not due */
    bool room;                                     /* for a frame that was not taken */
} peer;

/* What goes wrong in this run; chances are per thousand. */
typedef struct trouble {
    uint32_t lose, reorder, repeat, reset, pause, recall;
    int64_t delay_ms_max;
    uint16_t cut_a, cut_b; /* sites; equal: none */
    int64_t cut_from_ms, cut_until_ms;
    uint16_t crash; /* a peer, or NODES */
    int64_t crash_at_ms;
    bool starts_elsewhere; /* the last site */
} trouble;

typedef struct world {
    uint16_t sites, ranks, peers;
    trouble t;
    peer peer[PEERS_MAX];
    dlxi_coordinator *coordinator;
    int64_t now_ms, coordinator_at_ms, over_ms; /* over_ms: the coordinator's; −1: not yet */
    packet *in_flight;
    uint32_t queued[NODES][NODES];
    bool met[NODES][NODES]; /* a frame arrived */
    uint64_t draws;
    uint64_t replicated[ROUNDS + 2][RANKS_MAX]; /* hash after each round; 0: not seen yet */
    uint64_t frames, attempts, lines;
    bool named; /* the pair that was cut */
} world;

static uint64_t draw(world *w, uint64_t below) {
    return dlxi_rng_u64(seed, 1, w->draws++) % below;
}

static bool chance(world *w, uint32_t per_thousand) {
    return w->now_ms < FAULTS_END_MS && per_thousand > 0 && draw(w, 1000) < per_thousand;
}

static uint16_t site_of(const world *w, uint16_t node) {
    return node / w->ranks;
}

/* ---- links ----------------------------------------------------------------------------------- */

static bool is_cut(const world *w, uint16_t from, uint16_t to) {
    if (from == COORDINATOR || to == COORDINATOR || w->t.cut_a == w->t.cut_b) return false;
    uint16_t a = site_of(w, from), b = site_of(w, to);
    bool pair = (a == w->t.cut_a && b == w->t.cut_b) || (a == w->t.cut_b && b == w->t.cut_a);
    return pair && w->now_ms >= w->t.cut_from_ms && w->now_ms < w->t.cut_until_ms;
}

/* Behind every packet of the same way, unless it is reordered. */
static void packet_post(world *w, uint16_t from, uint16_t to, const dlxi_frame *frame) {
    packet *p = malloc(sizeof *p + frame->payload_bytes);
    CHECK(p != NULL, "out of memory");
    *p = (packet){.from = from, .to = to, .frame = *frame};
    if (frame->payload_bytes > 0) memcpy(p->payload, frame->payload, frame->payload_bytes);
    p->frame.payload = p->payload;
    p->at_ms = w->now_ms + 1 + (int64_t)draw(w, (uint64_t)w->t.delay_ms_max);
    bool ordered = !chance(w, w->t.reorder);
    packet **link = &w->in_flight;
    for (packet *q = w->in_flight; ordered && q != NULL; q = q->next)
        if (q->from == from && q->to == to && q->at_ms > p->at_ms) p->at_ms = q->at_ms;
    while (*link != NULL && (*link)->at_ms <= p->at_ms) link = &(*link)->next;
    p->next = *link;
    *link = p;
    w->queued[from][to]++;
    w->frames++;
}

static dlx_status link_send(world *w, uint16_t from, uint16_t to, const dlxi_frame *frame) {
    bool control = from == COORDINATOR || to == COORDINATOR;
    if (w->queued[from][to] >= (uint32_t)(control ? CONTROL_FRAMES : DATA_FRAMES)) return DLX_AGAIN;
    if (is_cut(w, from, to)) return draw(w, 2) == 0 ? DLX_AGAIN : DLX_OK; /* swallowed */
    if (chance(w, w->t.lose)) return DLX_OK;
    packet_post(w, from, to, frame);
    if (chance(w, w->t.repeat)) packet_post(w, from, to, frame);
    return DLX_OK;
}

/* A connection breaks: what is under way on it is lost. */
static void link_reset(world *w, uint16_t a, uint16_t b) {
    for (packet **link = &w->in_flight; *link != NULL;) {
        packet *p = *link;
        bool on_it = (p->from == a && p->to == b) || (p->from == b && p->to == a);
        if (!on_it) {
            link = &p->next;
            continue;
        }
        *link = p->next;
        w->queued[p->from][p->to]--;
        free(p);
    }
}

/* ---- training -------------------------------------------------------------------------------- */

static void check_replicas(world *w, uint16_t i) {
    const dlxi_state *s = w->peer[i].state;
    uint64_t *seen = &w->replicated[s->rounds][i % w->ranks];
    uint64_t hash = dlxi_state_hash(s, DLXI_STATE_REPLICATED);
    if (*seen == 0) *seen = hash;
    CHECK(*seen == hash, "peer %u differs after round %llu", i, (unsigned long long)s->rounds);
}

static void train_and_submit(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    for (int k = 0; k < PARAMETERS; k++)
        p->p[k] += 0.01f * dlxi_rng_normal(17 + seed, p->round * 10 + i, (uint64_t)k);
    dlxi_request r = {.state = p->state, .submits = true};
    r.ready = (dlxi_ready){.tokens = TOKENS * (site_of(w, i) + 1u), .step_ns = 1000};
    CHECK(dlxi_local_submit(p->local, p->state, false, 0, &r.ready.norm, NULL) == DLX_OK, "submit");
    r.ready.anchor_hash = dlxi_state_anchor_hash(p->state);
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

static void outcome_take(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    dlxi_outcome o;
    if (!dlxi_engine_outcome(p->engine, &o)) return;
    if (o.state != NULL) {
        CHECK(p->state == NULL, "peer %u got a state while it had one", i);
        p->state = o.state;
        if (o.joined || p->round > 0) check_replicas(w, i);
    }
    if (o.joined) {
        CHECK(p->round == 0 && p->state != NULL, "peer %u joined twice", i);
        check_met(w);
        CHECK(dlxi_local_apply(p->local, p->state, true, 0, NULL) == DLX_OK, "start");
        p->round = 1;
        p->train_at_ms = w->now_ms + (int64_t)draw(w, 300);
    }
    if (o.committed) {
        CHECK(p->submitted && p->state->rounds == p->round, "peer %u committed round %llu in %llu",
              i, (unsigned long long)p->state->rounds, (unsigned long long)p->round);
        CHECK(dlxi_local_apply(p->local, p->state, false, o.weight, NULL) == DLX_OK, "apply");
        p->submitted = false;
        p->round++;
        p->return_at_ms = -1;
        if (o.commit.finished) {
            dlxi_request r = {.report = strdup("done")};
            p->finished = true;
            dlxi_engine_on_request(p->engine, &r, w->now_ms);
        } else {
            p->train_at_ms = w->now_ms + (int64_t)draw(w, 300);
        }
    } else if (o.state != NULL && p->submitted && !o.ended) { /* a loan */
        CHECK(p->state->rounds + 1 == p->round, "a loan of round %llu in %llu",
              (unsigned long long)p->state->rounds, (unsigned long long)p->round);
        p->return_at_ms = w->now_ms + (int64_t)draw(w, 300);
    }
    if (o.ended) {
        p->ended = true;
        p->failure = o.failure;
        CHECK(p->state != NULL, "peer %u ended without its state", i);
    }
    p->attempts = o.attempts;
}

/* A pair that was cut for long, while a round could not do without it, is named on the
 * coordinator's terminal. */
static void line_note(world *w, const char *line) {
    char pair[2][64];
    for (int i = 0; i < 2; i++)
        snprintf(pair[i], sizeof pair[i], "no data from site '%c' to site '%c' (",
                 'a' + (i == 0 ? w->t.cut_a : w->t.cut_b),
                 'a' + (i == 0 ? w->t.cut_b : w->t.cut_a));
    w->named = w->named || strstr(line, pair[0]) != NULL || strstr(line, pair[1]) != NULL;
    w->lines++;
}

static void check_named(const world *w) {
    const trouble *t = &w->t;
    bool long_cut = t->cut_a != t->cut_b && t->cut_until_ms - t->cut_from_ms > 3 * TIMEOUT_MS;
    bool missed = w->over_ms < 0 || w->over_ms > t->cut_until_ms;
    CHECK(!long_cut || !missed || t->crash != NODES || w->named, "nobody named sites %u and %u",
          t->cut_a, t->cut_b);
}

/* ---- the pumps ------------------------------------------------------------------------------- */

static bool actions_perform(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    dlxi_engine_action a;
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
        dlxi_engine_done(p->engine, &a, status, NULL);
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
    dlxi_engine_keep_alive(k->w->peer[k->peer].engine, k->w->now_ms);
    (void)actions_perform(k->w, k->peer);
}

static void pump(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    if (p->room) dlxi_engine_on_room(p->engine);
    p->room = false;
    do dlxi_engine_on_tick(p->engine, w->now_ms);
    while (actions_perform(w, i));
    outcome_take(w, i);
    if (chance(w, w->t.recall) && p->submitted && p->state == NULL) {
        dlxi_request r = {.recalls = true};
        dlxi_engine_on_request(p->engine, &r, w->now_ms);
    }
    p->pump_at_ms = w->now_ms + 20 + (int64_t)draw(w, 80);
    p->paused = !p->paused && chance(w, w->t.pause); /* never twice: that would be silence */
    if (p->paused) p->pump_at_ms += (int64_t)draw(w, TIMEOUT_MS / 2);
}

static bool coordinator_send(void *context, const dlxi_outbox_item *item) {
    world *w = context;
    return link_send(w, COORDINATOR, (uint16_t)item->to, &item->frame) != DLX_AGAIN;
}

static void coordinator_pump(world *w) {
    char line[512];
    dlxi_coordinator_on_tick(w->coordinator, w->now_ms);
    while (dlxi_coordinator_pop_log(w->coordinator, line, sizeof line)) {
        line_note(w, line);
        if (verbose) printf("%6lld ms: coordinator: %s\n", (long long)w->now_ms, line);
    }
    dlxi_outbox_flush(dlxi_coordinator_outbox(w->coordinator), coordinator_send, w);
    bool done = dlxi_coordinator_phase_of(w->coordinator) == DLXI_COORDINATOR_DONE;
    if (done && w->over_ms < 0) w->over_ms = w->now_ms;
    w->coordinator_at_ms = w->now_ms + 20 + (int64_t)draw(w, 80);
}

static void deliver(world *w) {
    packet *p = w->in_flight;
    w->in_flight = p->next;
    w->queued[p->from][p->to]--;
    bool lost = is_cut(w, p->from, p->to);
    w->met[p->from][p->to] = w->met[p->from][p->to] || !lost;
    if (p->to == COORDINATOR && !lost) {
        dlxi_coordinator_on_frame(w->coordinator, p->from, "", "", &p->frame, w->now_ms);
        if (draw(w, 2) == 0) coordinator_pump(w);
    } else if (p->to != COORDINATOR && !lost && !w->peer[p->to].crashed) {
        uint32_t from =
            p->from == COORDINATOR ? (uint32_t)DLXI_SITE_COORDINATOR : site_of(w, p->from);
        dlxi_engine_on_frame(w->peer[p->to].engine, from, &p->frame, w->now_ms);
        if (draw(w, 2) == 0 && w->peer[p->to].pump_at_ms - w->now_ms < 100) pump(w, p->to);
    }
    free(p);
}

/* ---- a run ----------------------------------------------------------------------------------- */

static dlx_sync_config config_of(const world *w, uint16_t i) {
    static const dlx_overlap overlaps[] = {DLX_OVERLAP_NONE, DLX_OVERLAP_CARRY,
                                           DLX_OVERLAP_DELAYED};
    static const char *const names[SITES_MAX] = {"a", "b", "c"};
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = names[site_of(w, i)];
    config.rank = i % w->ranks;
    config.ranks = w->ranks;
    config.timeout_ms = TIMEOUT_MS;
    config.overlap = overlaps[seed % 3];
    config.outer_learning_rate = 0.7;
    config.outer_momentum = 0.9;
    config.bits = seed % 5 == 0 ? 32 : 4;
    config.group = 16;
    config.keep_unsent = seed % 7 != 0;
    config.seed = 3;
    config.factor_rank = 4;
    config.factor_rank_min = 1;
    config.factor_rank_max = 8;
    config.adaptation = seed % 2 == 0 ? DLX_ADAPTATION_PAPER : DLX_ADAPTATION_OFF;
    return dlxi_sync_options_resolve(&config);
}

static void peer_open(world *w, uint16_t i) {
    peer *p = &w->peer[i];
    const dlx_tensor tensors[TENSORS] = {
        {.name = "matrix", .data = p->p, .rows = ROWS, .cols = COLS},
        {.name = "small",
         .data = p->p + ROWS * COLS,
         .rows = 6,
         .cols = 5,
         .id = 1,
         .kind = DLX_STATISTICS},
        {.name = "bias", .data = p->p + ROWS * COLS + 30, .rows = 1, .cols = 33, .id = 2}};
    const dlx_sync_config config = config_of(w, i);
    bool elsewhere = w->t.starts_elsewhere && site_of(w, i) == w->sites - 1;
    for (int k = 0; k < PARAMETERS; k++)
        p->p[k] = (float)(k % 17) * 0.125f - 1.0f + (elsewhere ? 3.0f : 0.0f);
    p->pump_at_ms = (int64_t)draw(w, 100);
    p->train_at_ms = p->return_at_ms = -1;
    CHECK(dlxi_state_open(&p->state, &config, tensors, TENSORS, NULL) == DLX_OK &&
              dlxi_local_open(&p->local, &config, tensors, TENSORS, NULL) == DLX_OK &&
              dlxi_local_read(p->local, p->state, NULL) == DLX_OK &&
              dlxi_engine_open(&p->engine, &config, p->state, 0, NULL) == DLX_OK,
          "open");
    p->state = NULL;
    keepalives[i] = (keepalive_of){w, i};
    dlxi_engine_set_keepalive(p->engine, keepalive, &keepalives[i]);
}

static trouble trouble_of_seed(world *w) {
    static const uint32_t rates[] = {0, 2, 10, 40};
    static const int64_t delays[] = {10, 10, 200, 600};
    trouble t = {.lose = rates[draw(w, 4)],
                 .reorder = rates[draw(w, 3)],
                 .repeat = rates[draw(w, 3)],
                 .reset = rates[draw(w, 3)],
                 .pause = rates[draw(w, 3)],
                 .recall = rates[draw(w, 4)],
                 .delay_ms_max = delays[draw(w, 4)],
                 .crash = NODES};
    if (draw(w, 3) == 0) {
        t.cut_a = (uint16_t)draw(w, w->sites);
        t.cut_b = (uint16_t)((t.cut_a + 1) % w->sites);
        t.cut_from_ms = (int64_t)draw(w, 4000);
        t.cut_until_ms = t.cut_from_ms + (int64_t)draw(w, FAULTS_END_MS - 4000);
    }
    if (draw(w, 8) == 0) {
        t.crash = (uint16_t)draw(w, w->peers);
        t.crash_at_ms = (int64_t)draw(w, 6000);
    }
    return t;
}

static void world_open(world *w, bool calm) {
    *w = (world){.over_ms = -1};
    w->sites = (uint16_t)(2 + draw(w, SITES_MAX - 1));
    w->ranks = (uint16_t)(1 + draw(w, RANKS_MAX));
    w->peers = (uint16_t)(w->sites * w->ranks);
    w->t = trouble_of_seed(w);
    w->t.starts_elsewhere = seed % 4 == 0;
    if (calm)
        w->t = (trouble){
            .delay_ms_max = 10, .crash = NODES, .starts_elsewhere = w->t.starts_elsewhere};
    uint64_t tokens = 0;
    for (uint16_t i = 0; i < w->sites; i++) tokens += TOKENS * (i + 1u);
    dlxi_coordinator_settings run = {.sites = w->sites,
                                     .tokens_target = ROUNDS * tokens,
                                     .timeout_ms = TIMEOUT_MS,
                                     .patience_ms = PATIENCE_MS,
                                     .attempts_max = 5};
    CHECK(dlxi_coordinator_open(&w->coordinator, &run, 0, NULL) == DLX_OK, "open");
    for (uint16_t i = 0; i < w->peers; i++) peer_open(w, i);
}

static void world_close(world *w) {
    while (w->in_flight != NULL) {
        packet *next = w->in_flight->next;
        free(w->in_flight);
        w->in_flight = next;
    }
    for (uint16_t i = 0; i < w->peers; i++) {
        dlxi_request r = {.closes = true, .state = NULL};
        dlxi_outcome o;
        peer *p = &w->peer[i];
        dlxi_engine_on_request(p->engine, &r, w->now_ms);
        if (dlxi_engine_outcome(p->engine, &o) && o.state != NULL) p->state = o.state;
        dlxi_engine_close(&p->engine);
        dlxi_local_close(&p->local);
        dlxi_state_close(&p->state);
    }
    dlxi_coordinator_close(&w->coordinator);
}

/* The next thing that is due happens. */
static void step(world *w) {
    int64_t at_ms = w->coordinator_at_ms;
    uint16_t who = COORDINATOR;
    for (uint16_t i = 0; i < w->peers; i++) {
        const peer *p = &w->peer[i];
        if (!p->crashed && p->pump_at_ms < at_ms) at_ms = p->pump_at_ms, who = i;
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
    if (who == w->t.crash && w->now_ms >= w->t.crash_at_ms) {
        p->crashed = true;
        return;
    }
    if (p->return_at_ms >= 0 && w->now_ms >= p->return_at_ms && p->state != NULL && !p->ended) {
        dlxi_request r = {.state = p->state};
        p->state = NULL;
        p->return_at_ms = -1;
        dlxi_engine_on_request(p->engine, &r, w->now_ms);
    }
    if (p->train_at_ms >= 0 && w->now_ms >= p->train_at_ms && !p->ended) {
        p->train_at_ms = -1;
        train_and_submit(w, who);
    }
    pump(w, who);
    if (chance(w, w->t.reset)) link_reset(w, who, (uint16_t)draw(w, NODES));
}

static bool all_over(const world *w) {
    bool over = w->over_ms >= 0;
    for (uint16_t i = 0; i < w->peers; i++) over = over && (w->peer[i].ended || w->peer[i].crashed);
    return over;
}

/* The hash of all that replicas and sites hold at the end of a run without a crash, else 0. */
static uint64_t simulate(bool calm, world *totals) {
    world w;
    world_open(&w, calm);
    bool crashes = w.t.crash != NODES;
    while (!all_over(&w)) {
        step(&w);
        CHECK(w.now_ms < RUN_END_MS, "the run does not end; round %llu of peer 0",
              (unsigned long long)w.peer[0].round);
        bool gathers = dlxi_coordinator_phase_of(w.coordinator) == DLXI_COORDINATOR_GATHERING;
        if (crashes && gathers && w.peer[w.t.crash].crashed && w.now_ms > CRASH_END_MS)
            break; /* it crashed before it joined: the others wait for another */
        CHECK(!crashes || !w.peer[w.t.crash].crashed ||
                  w.now_ms < w.t.crash_at_ms + CRASH_END_MS + TIMEOUT_MS,
              "the run does not end after a crash");
    }
    bool crashed = crashes && w.peer[w.t.crash].crashed;
    dlx_error error = {0};
    dlx_status result = dlxi_coordinator_result(w.coordinator, &error);
    bool failed = result != DLX_OK;
    CHECK(crashed || !failed, "the coordinator: %s", error.message);
    check_named(&w);
    uint64_t hash = 0;
    for (uint16_t i = 0; i < w.peers; i++) {
        peer *p = &w.peer[i];
        if (p->crashed) continue;
        CHECK(failed || p->failure.status == DLX_OK, "peer %u: %s", i, p->failure.message);
        CHECK(!failed || p->failure.status != DLX_OK || p->finished, "peer %u ended well", i);
        if (crashed) continue;
        CHECK(p->finished && p->state->rounds == ROUNDS, "peer %u ended in round %llu", i,
              (unsigned long long)p->state->rounds);
        hash = dlxi_hash(p->p, sizeof p->p, hash + dlxi_state_hash(p->state, DLXI_STATE_ALL));
    }
    totals->frames += w.frames;
    for (uint16_t i = 0; i < w.peers; i++) totals->attempts += w.peer[i].attempts;
    totals->lines += w.lines;
    world_close(&w);
    return crashed ? 0 : hash;
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
    world calm = {0}, tried = {0};
    uint64_t crashes = 0;
    for (seed = first; seed < first + runs; seed++) {
        uint64_t expected = simulate(true, &calm), got = simulate(false, &tried);
        crashes += got == 0;
        CHECK(got == 0 || got == expected, "trouble changed the result");
    }
    printf("%llu runs, %llu with a crash: %llu frames, %llu attempts, %llu lines logged; "
           "without trouble %llu frames, %llu attempts\n",
           (unsigned long long)runs, (unsigned long long)crashes, (unsigned long long)tried.frames,
           (unsigned long long)tried.attempts, (unsigned long long)tried.lines,
           (unsigned long long)calm.frames, (unsigned long long)calm.attempts);
    CHECK(runs < 100 || (tried.attempts > calm.attempts && tried.lines > calm.lines && crashes > 0),
          "there was no trouble");
    return 0;
}
