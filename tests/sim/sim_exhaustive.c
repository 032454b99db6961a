/* SPDX-License-Identifier: Apache-2.0 */
/* That a run has at most one history, for all that can happen in small ones: the production
 * coordinator and sites, whose exchange is a choice of when to stage, and every order in which
 * frames arrive, are lost, time passes, sites stage, submit, follow, complain and die, and the
 * coordinator stops between any two of its steps and starts again from its store, while frames of
 * its earlier lives are still in flight. Depth first; a state is entered once. From some states,
 * and wherever the search ends, everything works from then on, and the run has to end.
 *
 *   sim_exhaustive --small           seconds
 *   sim_exhaustive                   minutes
 *   sim_exhaustive --fault F …       with planted fault F (a build with -DDLXI_FAULTS) */
#include <signal.h>
#include <time.h>

#include "small_events.h"

enum { DEPTH_MAX = 200, CHOICES_MAX = 96, END_STEPS = 80 };

typedef enum choice_kind {
    DELIVER, /* to the site, from the coordinator's life `which` */
    LOSE,    /* … */
    COPY,    /* …: it arrives once more, whenever */
    HEAR,    /* from the site to the coordinator, which stops as `which` says */
    UNHEARD, /* … lost */
    STAGE,
    SUBMIT,
    FOLLOW,
    COMPLAIN,
    DIE,  /* which: says so */
    PASS, /* time; the coordinator stops as `which` says */
    STOP,
    START,
    TURN, /* the site reaches the other coordinator from now on */
    TAKE  /* the second coordinator begins to take the run over */
} choice_kind;

static const char *const kind_names[] = {"deliver", "lose",   "copy",   "hear",     "unheard",
                                         "stage",   "submit", "follow", "complain", "die",
                                         "time",    "stop",   "start",  "turn",     "take over"};

typedef struct choice {
    uint8_t kind, site, which;
} choice;

typedef struct choices {
    choice at[CHOICES_MAX];
    uint32_t count, next;
} choices;

typedef struct level {
    image from;
    choices c;
} level;

/* What may go wrong in a run, and how much of it is searched. */
typedef struct bounds {
    uint16_t sites;
    uint8_t rounds; /* that all together would need */
    uint8_t losses, stops, deaths, lags, troubles, copies, turns, takeovers;
    bool prompt; /* a ping that changes nothing arrives at once */
    uint64_t states_max;
} bounds;

static level *levels;
static uint32_t depth, deepest;
static const bounds *now;
static uint64_t states, transitions, ends, ends_well, cut_off, total_states, total_transitions;
static uint64_t *visited; /* open addressing; 0: free */
static uint64_t visited_room;
static bool ending; /* everything works from now on */

/* ---- failures -------------------------------------------------------------------------------- */

static void choice_print(FILE *to, const small *in, choice c) {
    static const char *const kinds[] = {
#define KIND_NAME(name, number) [number] = #name,
        DLXI_FRAME_KIND_TABLE(KIND_NAME)};
#undef KIND_NAME
    fprintf(to, "  %s", kind_names[c.kind]);
    if (c.kind < PASS || c.kind == TURN) fprintf(to, " %c", 'a' + c.site);
    if (c.kind >= PASS && c.kind <= START && c.site > 0) fprintf(to, " of the second coordinator");
    if (c.which > 0) fprintf(to, " (%u)", c.which);
    if (c.kind <= UNHEARD) {
        const queue *q =
            c.kind <= COPY ? &in->to_site[c.which][c.site] : &in->to_coordinator[c.site];
        const dlxi_frame *f = &kept[q->frame[0]].frame;
        fprintf(to, ": %s, term %u, round %llu, attempt %u", kinds[f->kind], f->term,
                (unsigned long long)f->round, f->attempt);
    }
    fprintf(to, "\n");
}

static void path_print(void) {
    fprintf(stderr, "%u sites, after %llu states and %llu transitions; the path:\n", sites,
            (unsigned long long)(total_states + states),
            (unsigned long long)(total_transitions + transitions));
    for (uint32_t i = 0; i <= depth && levels != NULL; i++)
        if (levels[i].c.next > 0)
            choice_print(stderr, &levels[i].from.w, levels[i].c.at[levels[i].c.next - 1]);
    if (ending) fprintf(stderr, "  … and then everything works\n");
}

static void failed(const char *what) {
    fprintf(stderr, "%s does not hold\n", what);
    path_print();
    exit(1);
}

/* An assertion of a machine. */
static void on_abort(int number) {
    (void)number;
    path_print();
    _Exit(1);
}

/* ---- choices --------------------------------------------------------------------------------- */

static void choice_add(choices *l, choice_kind kind, uint16_t of, uint32_t which) {
    CHECK(l->count < CHOICES_MAX, "many choices\n");
    l->at[l->count++] = (choice){(uint8_t)kind, (uint8_t)of, (uint8_t)which};
}

static bool listens(uint8_t number) {
    return !w.seat[number].down || w.seat[number].taking;
}

/* The second one, once it was the coordinator. */
static bool can_start(uint8_t number) {
    const seat *s = &w.seat[number];
    return s->down && !s->over && !s->taking && s->state_bytes > 0;
}

/* Frames in flight and sites that could go on. Returns how many: late frames don't count. */
static uint32_t progress_list(choices *l) {
    uint32_t others = l->count;
    for (uint16_t i = 0; i < sites; i++) {
        for (uint8_t life = 0; life <= LATE; life++) {
            if (w.to_site[life][i].count == 0) continue;
            choice_add(l, DELIVER, i, life);
            others += life == LATE;
        }
        if (w.to_coordinator[i].count > 0 && listens(w.turned >> i & 1u))
            choice_add(l, HEAR, i, STOP_NOT);
        if (can_stage(i)) choice_add(l, STAGE, i, 0);
        if (can_submit(i)) choice_add(l, SUBMIT, i, 0);
        if (can_follow(i)) choice_add(l, FOLLOW, i, 0);
    }
    for (uint8_t k = 0; k < 2; k++)
        if (can_start(k)) choice_add(l, START, k, 0);
    return l->count - others;
}

static void trouble_list(choices *l) {
    for (uint16_t i = 0; i < sites; i++) {
        for (uint8_t life = 0; life <= LATE && w.losses > 0; life++)
            if (w.to_site[life][i].count > 0) choice_add(l, LOSE, i, life);
        for (uint8_t life = 0; life < LATE && w.copies > 0; life++)
            if (w.to_site[life][i].count > 0) choice_add(l, COPY, i, life);
        if (w.turns > 0 && w.has_second && is_active(i)) choice_add(l, TURN, i, 0);
        if (w.to_coordinator[i].count > 0 && w.losses > 0) choice_add(l, UNHEARD, i, 0);
        if (can_complain(i) && w.troubles > 0) {
            choice_add(l, COMPLAIN, i, 0);
            choice_add(l, COMPLAIN, i, 1);
        }
        if (!is_active(i) || w.deaths == 0) continue;
        choice_add(l, DIE, i, 0);
        choice_add(l, DIE, i, 1);
    }
    for (uint8_t k = 0; k < 2; k++)
        if (listens(k) && w.stops > 0) choice_add(l, STOP, k, 0);
    if (w.takeovers > 0 && w.seat[1].down && !w.seat[1].taking) choice_add(l, TAKE, 1, 0);
}

static bool is_over(void) {
    for (uint16_t i = 0; i < sites; i++)
        if (is_active(i)) return false;
    return w.seat[0].over && !listens(1);
}

static bool is_ping(const small *in, choice c) {
    if (c.kind != DELIVER && c.kind != HEAR) return false;
    const queue *q =
        c.kind == DELIVER ? &in->to_site[c.which][c.site] : &in->to_coordinator[c.site];
    return kept[q->frame[0]].frame.kind == DLXI_FRAME_PING;
}

/* A ping that was answered by nothing, and that showed no new term. */
static bool is_idle(const image *before, choice c) {
    const dlxi_site *s = (const dlxi_site *)(const void *)before->site[c.site].head;
    if (!is_ping(&before->w, c)) return false;
    uint8_t by = before->w.turned >> c.site & 1u;
    if (c.kind == HEAR) return last_sent[by] == 0 && !last_unsaved[by] && !before->w.seat[1].taking;
    return before->w.to_coordinator[c.site].count == w.to_coordinator[c.site].count &&
           s->term == site[c.site]->term;
}

static void choices_list(choices *l) {
    l->count = l->next = 0;
    bool far = false;
    for (int k = 0; k < 2; k++) far = far || (!w.seat[k].down && machines[k]->round >= ROUNDS - 1);
    if (is_over() || far) return;
    uint32_t could = progress_list(l);
    for (uint32_t i = 0, pings = 0; i < l->count && now->prompt; i++) {
        choice c = l->at[i];
        if (!is_ping(&w, c)) continue;
        l->at[i] = l->at[pings];
        l->at[pings++] = c;
    }
    trouble_list(l);
    if (could == 0 || w.lags > 0) choice_add(l, PASS, 0, STOP_NOT);
}

/* A coordinator could have stopped in the middle of what it just did. */
static void stops_list(choices *l, choice done, const small *before) {
    if (before->stops == 0 || done.which != STOP_NOT || (done.kind != HEAR && done.kind != PASS))
        return;
    for (uint8_t k = 0; k < 2; k++) {
        bool did = done.kind == PASS || (before->turned >> done.site & 1u) == k;
        if (!did || before->seat[k].down) continue;
        uint16_t of = done.kind == PASS ? k : done.site;
        if (last_unsaved[k]) choice_add(l, (choice_kind)done.kind, of, STOP_UNSAVED);
        for (uint32_t sent = 0; sent < last_sent[k]; sent++)
            if (done.kind == HEAR || last_unsaved[k])
                choice_add(l, (choice_kind)done.kind, of, STOP_SENT + sent);
    }
}

static void choice_make(choice c) {
    if (ending && verbose) choice_print(stdout, &w, c);
    choices others;
    switch (c.kind) {
    case DELIVER:
        site_receive(c.site, queue_take(&w.to_site[c.which][c.site]));
        break;
    case LOSE:
        w.losses--;
        (void)queue_take(&w.to_site[c.which][c.site]);
        break;
    case COPY:
        w.copies--;
        queue_add(&w.to_site[LATE][c.site], w.to_site[c.which][c.site].frame[0]);
        break;
    case HEAR:
        seat_take(w.turned >> c.site & 1u);
        coordinator_receive(c.site, queue_take(&w.to_coordinator[c.site]), c.which);
        break;
    case UNHEARD:
        w.losses--;
        (void)queue_take(&w.to_coordinator[c.site]);
        break;
    case STAGE:
        site_stage(c.site);
        break;
    case SUBMIT:
        site_submit(c.site);
        break;
    case FOLLOW:
        site_follow(c.site);
        break;
    case COMPLAIN:
        site_complain(c.site, c.which != 0);
        break;
    case DIE:
        site_die(c.site, c.which != 0);
        break;
    case PASS:
        others.count = 0;
        if (!ending && progress_list(&others) > 0) w.lags--;
        time_pass(c.site, c.which);
        break;
    case STOP:
        seat_take(c.site);
        if (here->taking)
            w.stops--, takeover_stop();
        else
            coordinator_stop();
        break;
    case START:
        seat_take(c.site);
        coordinator_start();
        break;
    case TURN:
        w.turns--;
        w.turned ^= (uint8_t)(1u << c.site);
        break;
    case TAKE:
        seat_take(1);
        takeover_start();
        break;
    default:
        break;
    }
}

/* ---- the end --------------------------------------------------------------------------------- */

static uint64_t committed_at_the_end(void) {
    uint64_t last = copies_count ? 0 : w.seat[0].stored_round - 1;
    for (uint16_t i = 0; i < sites; i++)
        if (w.owner[i].applied > last) last = w.owner[i].applied;
    return w.committed[last];
}

/* All sites reach the coordinator that can go on; one that gave up the takeover, or was
 * stopped, is started again. */
static void second_help(void) {
    bool active = false, known = w.seat[1].state_bytes > 0;
    for (uint16_t i = 0; i < sites; i++) {
        active = active || is_active(i);
        known = known || site[i]->copy.bytes > 0; /* else there is nothing to take over */
    }
    if (!w.has_second) return;
    w.turned = known ? (uint8_t)((1u << sites) - 1) : 0;
    seat_take(1);
    if (!known || !active || here->taking || here->state_bytes > 0) return;
    w.takeovers++;
    takeover_start();
}

/* Somebody has died, or it took so long that the run ended for somebody. */
static bool is_lost(void) {
    bool lost = w.deaths < now->deaths || w.seat[0].has_failed || w.seat[1].has_failed;
    for (uint16_t i = 0; i < sites; i++)
        lost = lost || (site[i]->phase == DLXI_SITE_DONE && site[i]->result.status != DLX_OK);
    return lost;
}

/* Whatever can go on does; then time passes; until the run has ended, which it does, and well if no
 * site has died. */
static void end_judge(void) {
    choices l;
    bool lost = is_lost();
    ending = true;
    for (int step = 0; step < END_STEPS && !is_over(); step++) {
        second_help();
        for (;;) {
            l.count = 0;
            if (progress_list(&l) == 0) break;
            choice_make(l.at[0]);
        }
        if (!is_over()) choice_make((choice){.kind = PASS});
    }
    ends++;
    bool well = w.seat[0].has_succeeded || w.seat[1].has_succeeded;
    CHECK(is_over(), "the run does not end; round %llu of %c\n", (unsigned long long)site[0]->round,
          'a');
    bool committed = committed_at_the_end() >= target_tokens;
    CHECK(!well || committed, "the run ended well, and has not its tokens\n");
    bool given_up = w.seat[0].has_given_up || w.seat[1].has_given_up; /* nobody starts it again */
    CHECK(lost || given_up || committed, "no site died, and the run ended without its tokens\n");
    ends_well += well;
    ending = false;
}

/* ---- the search ------------------------------------------------------------------------------ */

static bool visit(uint64_t hash) {
    uint64_t at = hash & (visited_room - 1);
    if (hash == 0) hash = 1;
    for (; visited[at] != 0; at = (at + 1) & (visited_room - 1))
        if (visited[at] == hash) return false;
    visited[at] = hash;
    return true;
}

static void begin(void) {
    static dlxi_hello hello[SITES];
    const dlxi_site_settings settings = {
        .timeout_ms = TIMEOUT_MS, .orphan_ms = ORPHAN_MS, .join_ms = JOIN_MS};
    choices l;
    w = (small){.now_ms = STEP_MS, .seat = {{0}, {.down = true}}};
    seat_take(0);
    copies_count = now->takeovers > 0;
    sites = now->sites;
    target_tokens = 0;
    for (uint16_t i = 0; i < sites; i++) target_tokens += now->rounds * tokens_of(i);
    dlxi_coordinator_settings run = settings_of(0);
    CHECK(dlxi_coordinator_open(&machines[0], &run, w.now_ms, NULL) == DLX_OK, "open\n");
    seat_take(0);
    for (uint16_t i = 0; i < sites; i++) {
        hello[i] = (dlxi_hello){.site = {(char)('a' + i)},
                                .ranks = 1,
                                .windows = 1000,
                                .tokens_per_window = 1,
                                .lease_windows = (uint32_t)tokens_of(i) + 1,
                                .incarnation = 10u + i,
                                .keeps_history = true};
        CHECK(dlxi_site_open(&site[i], &hello[i], &settings, w.now_ms, NULL) == DLX_OK, "open\n");
        site_flush(i);
    }
    ending = true;
    for (bool entered = false; !entered; choice_make((choice){.kind = PASS})) {
        for (;;) {
            l.count = 0;
            (void)progress_list(&l);
            uint32_t k = 0;
            while (k < l.count && l.at[k].kind == SUBMIT) k++;
            if (k == l.count) break;
            choice_make(l.at[k]);
        }
        entered = coordinator->begun && coordinator->sites[0].ranks[0].entered;
        for (uint16_t i = 0; i < sites; i++)
            entered = entered && site[i]->entered && coordinator->sites[i].ranks[0].entered;
        CHECK(w.now_ms < 60000, "they do not join\n");
    }
    ending = false;
    for (uint16_t i = 0; i < sites; i++) { /* pings */
        w.to_coordinator[i] = w.to_site[0][i] = (queue){0};
    }
    w.losses = now->losses;
    w.stops = now->stops;
    w.deaths = now->deaths;
    w.lags = now->lags;
    w.troubles = now->troubles;
    w.copies = now->copies;
    w.turns = now->turns;
    w.takeovers = now->takeovers;
}

static void end(void) {
    coordinator_load(machines[0], &levels[0].from.c[0]);
    for (int k = 0; k < 2; k++) dlxi_coordinator_close(&machines[k]);
    takeover_best = 0;
    dlxi_takeover_close(&takeover);
    for (uint16_t i = 0; i < sites; i++) dlxi_site_close(&site[i]);
}

/* One state in `often` is seen to its end. */
static void search(const bounds *b, uint64_t often) {
    struct timespec from, to;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    now = b;
    states = transitions = ends = ends_well = cut_off = 0;
    depth = deepest = 0;
    memset(visited, 0, visited_room * sizeof *visited);
    begin();
    image_store(&levels[0].from);
    choices_list(&levels[0].c);
    (void)visit(world_hash());
    states = 1;
    for (;;) {
        level *l = &levels[depth];
        if (l->c.next == l->c.count || states >= b->states_max) {
            if (depth == 0) break;
            depth--;
            continue;
        }
        choice c = l->c.at[l->c.next++];
        image_load(&l->from);
        choice_make(c);
        transitions++;
        stops_list(&l->c, c, &l->from.w);
        if (b->prompt && is_idle(&l->from, c)) l->c.count = l->c.next;
        uint64_t hash = world_hash();
        if (!visit(hash)) continue;
        states++;
        level *below = l + 1;
        image_store(&below->from);
        choices_list(&below->c);
        bool is_end = below->c.count == 0 || depth + 2 == DEPTH_MAX;
        cut_off += below->c.count > 0 && is_end;
        if (is_end || hash % often == 0) end_judge();
        if (is_end) continue;
        depth++;
        if (depth > deepest) deepest = depth;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    printf(
        "%u sites, %u rounds; at most %u lost, %u stops, %u deaths, %u delays, %u complaints, %u "
        "copies, %u takeovers, %u turns%s: "
        "%llu states%s, %llu transitions, depth %u, %llu seen to their end, %llu of them well, "
        "%llu cut off, %.1f s\n",
        b->sites, b->rounds, b->losses, b->stops, b->deaths, b->lags, b->troubles, b->copies,
        b->takeovers, b->turns, b->prompt ? "; prompt pings" : "", (unsigned long long)states,
        states >= b->states_max ? " (not all)" : "", (unsigned long long)transitions, deepest,
        (unsigned long long)ends, (unsigned long long)ends_well, (unsigned long long)cut_off,
        (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) * 1e-9);
    fflush(stdout);
    total_states += states;
    total_transitions += transitions;
    depth = 0;
    end();
}

/* sites, rounds; losses, stops, deaths, delays, complaints, copies, turns, takeovers; prompt pings;
 * states */
static const bounds small_bounds[] = {
    {2, 2, 0, 0, 0, 0, 0, 1, 0, 0, false, UINT64_MAX},
    {2, 2, 0, 0, 0, 0, 1, 0, 0, 0, false, UINT64_MAX},
    {2, 2, 0, 1, 0, 0, 0, 0, 0, 0, false, UINT64_MAX},
    {2, 2, 1, 0, 0, 0, 0, 0, 0, 0, false, UINT64_MAX},
    {2, 2, 0, 0, 0, 1, 0, 0, 0, 0, false, UINT64_MAX},
    {2, 2, 0, 1, 0, 0, 1, 0, 0, 0, false, UINT64_MAX},
    {3, 1, 1, 0, 0, 0, 0, 0, 0, 0, false, UINT64_MAX},
    {3, 1, 0, 0, 1, 0, 0, 0, 0, 0, false, UINT64_MAX},
    {3, 1, 0, 0, 0, 0, 1, 0, 0, 0, false, UINT64_MAX},
    {2, 1, 0, 1, 0, 1, 0, 0, 0, 0, true, UINT64_MAX},
    {2, 1, 0, 1, 0, 0, 0, 1, 0, 0, true, UINT64_MAX},
    {2, 1, 0, 0, 0, 1, 0, 0, 1, 1, true, UINT64_MAX},
    {3, 1, 0, 0, 0, 0, 0, 0, 1, 1, true, UINT64_MAX},
    {2, 1, 0, 0, 0, 0, 0, 0, 3, 1, true, 400000},
};
static const bounds large_bounds[] = {
    {2, 1, 1, 0, 0, 0, 0, 0, 2, 1, true, UINT64_MAX},
    {2, 1, 0, 1, 0, 0, 0, 0, 2, 1, true, 3000000},
    {2, 1, 1, 1, 0, 0, 0, 0, 1, 1, true, UINT64_MAX},
    {2, 2, 0, 1, 0, 0, 0, 0, 2, 1, true, 3000000},
    {2, 1, 1, 0, 0, 1, 0, 0, 1, 1, true, 3000000},
    {2, 1, 0, 0, 1, 0, 0, 0, 2, 1, true, 3000000},
    {2, 2, 0, 0, 0, 0, 1, 1, 2, 1, true, 3000000},
    {3, 1, 0, 1, 0, 0, 0, 0, 1, 1, true, 3000000},
    {3, 2, 0, 0, 0, 0, 0, 0, 2, 1, true, 3000000},
    {2, 1, 0, 1, 0, 0, 0, 0, 1, 2, true, 3000000},
    {2, 1, 0, 2, 0, 0, 0, 0, 1, 2, true, 3000000},
    {3, 2, 1, 0, 0, 0, 0, 0, 0, 0, true, UINT64_MAX},
    {3, 1, 0, 1, 0, 0, 0, 0, 0, 0, true, UINT64_MAX},
    {2, 2, 2, 1, 0, 0, 0, 0, 0, 0, false, UINT64_MAX},
    {2, 2, 1, 2, 0, 0, 0, 0, 0, 0, false, UINT64_MAX},
    {2, 2, 0, 2, 1, 0, 1, 0, 0, 0, true, UINT64_MAX},
    {3, 2, 0, 0, 1, 0, 1, 0, 0, 0, true, 3000000},
    {2, 1, 0, 1, 1, 2, 1, 0, 0, 0, true, 3000000},
    {2, 2, 1, 1, 1, 0, 1, 1, 0, 0, true, 3000000},
    {2, 2, 0, 1, 0, 1, 0, 0, 0, 0, false, 3000000},
    {3, 1, 0, 0, 1, 1, 0, 0, 0, 0, true, 3000000},
    {3, 2, 0, 1, 0, 0, 1, 0, 0, 0, true, 3000000},
};

int main(int argc, char **argv) {
    static bounds own = {.sites = 2, .rounds = 2, .states_max = UINT64_MAX};
    const bounds *all = large_bounds;
    size_t count = sizeof large_bounds / sizeof *large_bounds;
    uint64_t often = 64;
    int bits = 25;
    for (int i = 1; i < argc; i++) {
        bool last = i + 1 == argc;
        uint64_t number = last ? 0 : strtoull(argv[i + 1], NULL, 10);
        if (strcmp(argv[i], "--verbose") == 0) verbose = true;
        if (strcmp(argv[i], "--small") == 0)
            all = small_bounds, count = sizeof small_bounds / sizeof *small_bounds, bits = 20;
        if (strcmp(argv[i], "--often") == 0 && !last) often = number;
        if (strcmp(argv[i], "--bits") == 0 && !last) bits = (int)number;
        if (strcmp(argv[i], "--bounds") == 0 && i + 11 < argc) {
            uint8_t n[11];
            for (int k = 0; k < 11; k++) n[k] = (uint8_t)strtoul(argv[i + 1 + k], NULL, 10);
            own = (bounds){n[0], n[1], n[2], n[3], n[4],       n[5],
                           n[6], n[7], n[8], n[9], n[10] != 0, own.states_max};
            all = &own;
            count = 1;
        }
        if (strcmp(argv[i], "--states") == 0 && !last) own.states_max = number;
#ifdef DLXI_FAULTS
        if (strcmp(argv[i], "--fault") == 0 && !last) dlxi_planted_fault = (int)number;
#endif
    }
    visited_room = UINT64_C(1) << bits;
    visited = malloc(visited_room * sizeof *visited);
    levels = calloc(DEPTH_MAX, sizeof *levels);
    CHECK(visited != NULL && levels != NULL, "out of memory\n");
    signal(SIGABRT, on_abort);
    for (size_t i = 0; i < count; i++) search(&all[i], often);
    free(visited);
    free(levels);
    return 0;
}
