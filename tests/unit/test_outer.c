/* SPDX-License-Identifier: Apache-2.0 */
/* The outer room: the stability table of the design, the rhythm of a round for every overlap, the
 * outer step, and the decisions of adaptation. */
#include "outer/adapt.h"
#include "outer/round.h"
#include "outer/stability.h"
#include "outer/step.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

/* ---- stability ------------------------------------------------------------------------------- */

static void assert_two_decimals(double value, double expected) {
    if (fabs(value - expected) > 0.00501) fail_msg("%.4f, the table says %.2f", value, expected);
}

static dlxi_outer nesterov(double eta, double mu) {
    return (dlxi_outer){eta, mu, eta * mu};
}

static dlxi_modes modes_of(dlx_overlap overlap, double eta, double mu, double c, int sites,
                           double exchange_share) {
    const dlxi_outer by = nesterov(eta, mu);
    return dlxi_method_of(overlap)->modes(&by, c, sites, exchange_share);
}

/* The table of docs/algorithm.md. `eager` restarts from the common θ, which holds this site's last
 * share already. */
static void the_stability_table(void **state) {
    (void)state;
    static const dlx_overlap overlaps[4] = {DLX_OVERLAP_NONE, DLX_OVERLAP_DELAYED,
                                            DLX_OVERLAP_EAGER, DLX_OVERLAP_CARRY};
    static const struct {
        dlxi_outer by;
        double modes[4][2]; /* at c = 0.02 and c = 1 */
    } table[] = {
        {{1.0, 0.9, 0.2}, {{0.94, 0.70}, {0.94, 1.12}, {0.94, 0.95}, {0.94, 0.50}}},
        {{0.5, 0.9, 0.1}, {{0.96, 0.67}, {0.94, 0.83}, {0.95, 0.72}, {0.95, 0.82}}},
        {{0.7, 0.9, 0.63}, {{0.94, 0.52}, {0.95, 1.28}, {0.95, 1.12}, {0.95, 0.88}}},
        {{0.4, 0.9, 0.36}, {{0.94, 0.73}, {0.95, 1.08}, {0.95, 1.01}, {0.95, 0.90}}},
        {{0.2, 0.9, 0.18}, {{0.95, 0.85}, {0.95, 0.98}, {0.95, 0.96}, {0.95, 0.92}}},
        {{0.7, 0.7, 0.49}, {{0.95, 0.46}, {0.95, 1.19}, {0.95, 1.04}, {0.95, 0.76}}},
        {{0.7, 0.5, 0.35}, {{0.97, 0.39}, {0.97, 1.09}, {0.97, 0.96}, {0.97, 0.62}}},
        {{0.7, 0.3, 0.21}, {{0.98, 0.30}, {0.98, 0.99}, {0.98, 0.86}, {0.98, 0.46}}},
        {{1.0, 0.0, 0.0}, {{0.98, 0.00}, {0.98, 1.00}, {0.98, 0.87}, {0.98, 0.00}}},
    };
    for (size_t row = 0; row < sizeof table / sizeof *table; row++)
        for (size_t i = 0; i < 4; i++)
            for (size_t end = 0; end < 2; end++) {
                double c = end == 0 ? 0.02 : 1.0;
                dlxi_modes modes = dlxi_method_of(overlaps[i])->modes(&table[row].by, c, 4, 1.0);
                assert_two_decimals(modes.mean, table[row].modes[i][end]);
            }
}

static void carry_disagreement_is_c(void **state) {
    (void)state;
    static const double settings[3][2] = {{0.7, 0.9}, {0.2, 0.5}, {1.0, 0.0}};
    for (int k = 0; k < 3; k++)
        for (int i = 1; i <= 10; i++) {
            double c = 0.1 * i;
            double mode =
                modes_of(DLX_OVERLAP_CARRY, settings[k][0], settings[k][1], c, 4, 1.0).disagreement;
            assert_float_equal(mode, c, 1e-12);
        }
    /* overlaps whose rounds start at the anchor have no such mode */
    assert_float_equal(modes_of(DLX_OVERLAP_NONE, 0.7, 0.9, 0.5, 4, 1).disagreement, 0, 0);
    assert_float_equal(modes_of(DLX_OVERLAP_DELAYED, 0.7, 0.9, 0.5, 4, 1).disagreement, 0, 0);
}

enum { SITES = 4 };

typedef struct simulation {
    dlx_overlap overlap;
    dlxi_outer by;
    double c;
    double anchor, velocity, start[SITES], flying[SITES]; /* the optimum is 0 */
} simulation;

static void outer_step(simulation *s, double update) {
    s->velocity = s->by.momentum * s->velocity + update;
    s->anchor -= s->by.learning_rate * update + s->by.momentum_rate * s->velocity;
}

/* One round of the algorithm, line by line, for sites whose local training goes a share c of its
 * way; the exchange takes the whole round. */
static void simulate_round(simulation *s) {
    double delta[SITES], mean = 0, flying = 0;
    for (int i = 0; i < SITES; i++) {
        delta[i] = s->start[i] - (1 - s->c) * s->start[i];
        mean += delta[i] / SITES;
        flying += s->flying[i] / SITES;
    }
    outer_step(s, s->overlap == DLX_OVERLAP_NONE ? mean : flying);
    for (int i = 0; i < SITES; i++) {
        s->start[i] = s->anchor;
        /* g: all of the round's progress */
        if (s->overlap == DLX_OVERLAP_CARRY) s->start[i] -= delta[i];
        /* what the outer step will make of this site's own share of what is in flight */
        if (s->overlap == DLX_OVERLAP_EAGER)
            s->start[i] -= (s->by.learning_rate + s->by.momentum_rate) * delta[i] / SITES;
        s->flying[i] = delta[i];
    }
}

/* The growth per round, in the long run. */
static double growth(dlx_overlap overlap, dlxi_outer by, double c, bool disagree) {
    enum { ROUNDS = 4000, SKIPPED = 200 };
    simulation s = {.overlap = overlap, .by = by, .c = c};
    double logarithm = 0;
    for (int i = 0; i < SITES; i++) s.start[i] = disagree && i % 2 != 0 ? -1 : 1;
    s.anchor = disagree ? 0 : 1;
    for (int round = 0; round < ROUNDS; round++) {
        simulate_round(&s);
        double size = fabs(s.anchor) + fabs(s.velocity) + fabs(s.start[0]) + fabs(s.flying[0]);
        if (size < 1e-100) return 0;
        s.anchor /= size, s.velocity /= size;
        for (int i = 0; i < SITES; i++) s.start[i] /= size, s.flying[i] /= size;
        if (round >= SKIPPED) logarithm += log(size);
    }
    return exp(logarithm / (ROUNDS - SKIPPED));
}

static void modes_match_a_simulation(void **state) {
    (void)state;
    static const dlx_overlap overlaps[4] = {DLX_OVERLAP_NONE, DLX_OVERLAP_DELAYED,
                                            DLX_OVERLAP_EAGER, DLX_OVERLAP_CARRY};
    static const dlxi_outer settings[] = {
        {0.7, 0.9, 0.63}, {0.4, 0.9, 0.36}, {0.7, 0.3, 0.21}, {1, 0.9, 0.2}, {0.5, 0.8, 0.9}};
    for (int kind = 0; kind < 4; kind++)
        for (size_t k = 0; k < sizeof settings / sizeof *settings; k++)
            for (int i = 1; i <= 5; i++) {
                double c = 0.2 * i - 0.1;
                dlxi_modes modes =
                    dlxi_method_of(overlaps[kind])->modes(&settings[k], c, SITES, 1.0);
                double mean = growth(overlaps[kind], settings[k], c, false),
                       apart = growth(overlaps[kind], settings[k], c, true);
                if (fabs(mean - modes.mean) > 2e-3 || fabs(apart - modes.disagreement) > 2e-3)
                    fail_msg("overlap %d, setting %zu, c %.1f: modes %.4f, %.4f, simulated %.4f, "
                             "%.4f",
                             (int)overlaps[kind], k, c, modes.mean, modes.disagreement, mean,
                             apart);
            }
}

static void the_worst_mode_names_its_place(void **state) {
    (void)state;
    double c;
    const dlxi_outer outer = nesterov(0.7, 0.9);
    double worst = dlxi_method_worst_mode(dlxi_method_of(DLX_OVERLAP_DELAYED), &outer, 4, 1, &c);
    assert_two_decimals(worst, 1.28);
    assert_float_equal(c, 1.0, 1e-9);
    static const dlx_overlap overlaps[] = {DLX_OVERLAP_NONE, DLX_OVERLAP_DELAYED, DLX_OVERLAP_EAGER,
                                           DLX_OVERLAP_CARRY};
    /* what `auto` stands for must be stable */
    for (size_t i = 0; i < sizeof overlaps / sizeof *overlaps; i++) {
        const dlxi_method *method = dlxi_method_of(overlaps[i]);
        double larger = dlxi_method_worst_mode(method, &method->outer, 4, 0.5, NULL);
        if (!(larger < 0.99))
            fail_msg("overlap %d: auto has a mode of %g", (int)overlaps[i], larger);
    }
}

/* ---- rhythm ---------------------------------------------------------------------------------- */

static dlxi_round round_of(dlx_overlap overlap, uint32_t inner_steps, uint32_t inner_steps_max,
                           uint32_t exchange_steps) {
    return (dlxi_round){.when = dlxi_method_of(overlap)->when,
                        .inner_steps = inner_steps,
                        .inner_steps_max = inner_steps_max,
                        .exchange_steps = exchange_steps,
                        .number = 1};
}

/* Lets the machine run as the owner would: one letter an event. `commits`: a committed update is
 * there from that inner step on (counted from 1) after the hand-out that it belongs to. s = step,
 * H, A, B = hand out and apply, W = wait (and then the commit comes). */
static void run(char *log, size_t bytes, dlxi_round *round, uint32_t commit_after, uint32_t steps,
                bool end) {
    size_t used = 0;
    uint32_t since = 0;
    bool committed = false;
    for (uint32_t step = 0; used + 8 < bytes;) {
        dlxi_round_action action = dlxi_round_next(round, committed);
        switch (action) {
        case DLXI_ROUND_TRAIN:
            if (round->ending || step == steps) {
                if (!end || round->ending) goto done;
                round->ending = true;
                break;
            }
            dlxi_round_on_step(round);
            step++;
            since++;
            committed = committed || (round->outstanding && since >= commit_after);
            log[used++] = 's';
            break;
        case DLXI_ROUND_WAIT:
            committed = true, log[used++] = 'W';
            break;
        case DLXI_ROUND_APPLY:
            committed = false, dlxi_round_on_applied(round), log[used++] = 'A';
            break;
        case DLXI_ROUND_SUBMIT:
            since = 0, dlxi_round_on_submitted(round, round->inner_steps), log[used++] = 'H';
            break;
        case DLXI_ROUND_SUBMIT_AND_APPLY:
            since = 0, committed = false;
            dlxi_round_on_applied(round);
            dlxi_round_on_submitted(round, round->inner_steps);
            log[used++] = 'B';
            break;
        }
    }
done:
    log[used] = '\0';
}

static void assert_rhythm(dlxi_round round, uint32_t commit_after, uint32_t steps, bool end,
                          const char *expected) {
    char log[256];
    run(log, sizeof log, &round, commit_after, steps, end);
    assert_string_equal(log, expected);
}

enum { LATE = 1000 };

static void rhythm_of_none(void **state) {
    (void)state;
    dlxi_round r = round_of(DLX_OVERLAP_NONE, 3, 3, 0);
    assert_rhythm(r, LATE, 6, false, "sssHWAsssHWA");
    assert_rhythm(r, LATE, 4, true, "sssHWAsHWA"); /* the end hands out what there is */
    assert_rhythm(r, LATE, 3, true, "sssHWA");     /* and nothing where there is nothing */
}

static void rhythm_of_delayed_and_eager(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        dlxi_round r = round_of(i == 0 ? DLX_OVERLAP_DELAYED : DLX_OVERLAP_EAGER, 3, 5, 0);
        /* there early: applied at the boundary all the same */
        assert_rhythm(r, 1, 9, false, "sssHsssBsssB");
        assert_rhythm(r, 4, 10, false, "sssHssssBsss");          /* one step late: train on */
        assert_rhythm(r, LATE, 13, false, "sssHsssssWBsssssWB"); /* up to H_max, then wait */
        assert_rhythm(r, 1, 7, true, "sssHsssBsBWA");            /* the flush */
        assert_rhythm(r, LATE, 5, true, "sssHssWBWA");
        assert_rhythm(r, LATE, 3, true, "sssHWA");
    }
}

static void rhythm_of_carry(void **state) {
    (void)state;
    dlxi_round r = round_of(DLX_OVERLAP_CARRY, 3, 5, 0);
    assert_rhythm(r, 1, 7, false, "sssHsAssHsA"); /* as soon as it is committed */
    assert_rhythm(r, 2, 6, false, "sssHssAsH");
    assert_rhythm(r, 3, 6, false, "sssHsssAH");
    assert_rhythm(r, LATE, 8, false, "sssHsssssWAH");
    assert_rhythm(r, LATE, 4, true, "sssHsWAHWA");
    assert_rhythm(r, LATE, 3, true, "sssHWA");
}

static void carry_repeats_with_exchange_steps(void **state) {
    (void)state;
    dlxi_round r = round_of(DLX_OVERLAP_CARRY, 3, 5, 2);
    char without[256], expected[256] = "";
    /* waiting or not, the same steps */
    for (uint32_t commit_after = 0; commit_after <= 3; commit_after++) {
        dlxi_round copy = r;
        run(without, sizeof without, &copy, commit_after == 3 ? LATE : commit_after, 6, false);
        size_t used = 0;
        for (const char *at = without; *at != '\0'; at++)
            if (*at != 'W') expected[used++] = *at;
        expected[used] = '\0';
        assert_string_equal(expected, "sssHssAsH");
    }
    /* the whole round */
    assert_rhythm(round_of(DLX_OVERLAP_CARRY, 3, 5, 3), LATE, 6, false, "sssHsssWAH");
}

/* Adaptation may shorten H below exchange_steps: the commit still falls on one step, whenever it
 * comes. */
static void carry_repeats_when_rounds_grow_shorter(void **state) {
    (void)state;
    for (uint32_t commit_after = 1; commit_after <= 6; commit_after++) {
        dlxi_round r = round_of(DLX_OVERLAP_CARRY, 2, 8, 4);
        char log[256], without[256];
        run(log, sizeof log, &r, commit_after == 6 ? LATE : commit_after, 6, false);
        size_t used = 0;
        for (const char *at = log; *at != '\0'; at++)
            if (*at != 'W') without[used++] = *at;
        without[used] = '\0';
        assert_string_equal(without, "ssHssAHssAH");
    }
}

static void rounds_are_counted(void **state) {
    (void)state;
    dlxi_round r = round_of(DLX_OVERLAP_CARRY, 2, 3, 0);
    dlxi_round_on_step(&r);
    assert_int_equal(r.steps, 1);
    dlxi_round_on_step(&r);
    dlxi_round_on_submitted(&r, 7);
    assert_int_equal(r.number, 2);
    assert_int_equal(r.steps, 0);
    assert_int_equal(r.inner_steps, 7);
    assert_int_equal(r.inner_steps_max, 7); /* never below H */
    assert_true(r.outstanding);
}

/* ---- outer step ------------------------------------------------------------------------------ */

static void check_outer_step(dlxi_outer by) {
    enum { COUNT = 37 };
    float anchor[COUNT], velocity[COUNT] = {0}, update[COUNT];
    double theta[COUNT], v[COUNT] = {0};
    for (int i = 0; i < COUNT; i++) theta[i] = anchor[i] = (float)(i - 11) * 0.25f;
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < COUNT; i++) update[i] = (float)((i * 7 + round * 3) % 13 - 6) * 0.0625f;
        dlxi_outer_step(anchor, velocity, update, COUNT, &by);
        for (int i = 0; i < COUNT; i++) {
            v[i] = by.momentum * v[i] + (double)update[i];
            theta[i] -= by.learning_rate * (double)update[i] + by.momentum_rate * v[i];
        }
    }
    for (int i = 0; i < COUNT; i++) assert_float_equal(anchor[i], theta[i], 2e-6);
}

static void the_outer_step(void **state) {
    (void)state;
    check_outer_step(nesterov(0.7, 0.9));
    check_outer_step((dlxi_outer){1, 0.9, 0.2});
}

/* ---- adaptation ------------------------------------------------------------------------------ */

static dlxi_adapt adapt_of(dlx_adaptation kind) {
    return (dlxi_adapt){.kind = kind,
                        .factor_rank_min = 4,
                        .factor_rank_max = 32,
                        .inner_steps_first = 40,
                        .inner_steps_min = 5,
                        .inner_steps = 40};
}

/* `energetic` equal singular values and nothing but dust below, seen through `columns` probes. */
static int observe(const dlxi_adapt *adapt, dlxi_adapt_tensor *tensor, int energetic) {
    double values[64];
    int columns = dlxi_adapt_columns(adapt, tensor);
    for (int i = 0; i < columns; i++) values[i] = i < energetic ? 1.0 : 1e-3;
    dlxi_adapt_observe(adapt, tensor, dlxi_adapt_effective_rank(values, columns));
    return tensor->factor_rank;
}

static void the_effective_rank_holds_its_share(void **state) {
    (void)state;
    /* energies 1, 1/4, 1/16, 1/64: 75.3%, 94.1%, 98.8% */
    const double halves[] = {1, 0.5, 0.25, 0.125};
    assert_int_equal(dlxi_adapt_effective_rank(halves, 4), 3);
    const double one[] = {3, 0.1, 0.1};
    assert_int_equal(dlxi_adapt_effective_rank(one, 3), 1);
    const double flat[20] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    assert_int_equal(dlxi_adapt_effective_rank(flat, 20), 19);
    const double nothing[3] = {0, 0, 0};
    assert_in_range(dlxi_adapt_effective_rank(nothing, 3), 1, 3);
}

static void paper_keeps_the_rank_of_a_fixed_spectrum(void **state) {
    (void)state;
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_PAPER);
    /* 13 equal values: 95% of the energy needs all of them */
    dlxi_adapt_tensor tensor = {
        .parameters = 10000, .factor_rank_first = 13, .factor_rank_limit = 100, .factor_rank = 13};
    for (int round = 0; round < 50; round++) assert_int_equal(observe(&adapt, &tensor, 13), 13);
    dlxi_adapt_paper(&adapt, &tensor, 1);
    assert_int_equal(adapt.inner_steps, 40);
}

static void paper_follows_a_growing_spectrum(void **state) {
    (void)state;
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_PAPER);
    dlxi_adapt_tensor tensor = {
        .parameters = 10000, .factor_rank_first = 8, .factor_rank_limit = 100, .factor_rank = 8};
    int before = 8;
    for (int round = 0; round < 120; round++) {
        int rank = observe(&adapt, &tensor, 8 + round / 6);
        assert_in_range(rank, before, before + 2);
        before = rank;
    }
    assert_in_range(before, 20, 27);
    for (int round = 0; round < 200; round++) observe(&adapt, &tensor, 64);
    assert_int_equal(tensor.factor_rank, 32); /* no further than its bound */
    dlxi_adapt_paper(&adapt, &tensor, 1);
    assert_int_equal(adapt.inner_steps, 40); /* H never grows past H_1 */
}

static void paper_follows_a_shrinking_spectrum(void **state) {
    (void)state;
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_PAPER);
    dlxi_adapt_tensor tensor = {
        .parameters = 10000, .factor_rank_first = 24, .factor_rank_limit = 100, .factor_rank = 24};
    int before = 24;
    uint32_t steps_before = 40;
    for (int round = 0; round < 120; round++) {
        int rank = observe(&adapt, &tensor, 24 - round / 6);
        assert_in_range(rank, 0, before);
        before = rank;
        dlxi_adapt_paper(&adapt, &tensor, 1);
        assert_in_range(adapt.inner_steps, 5, steps_before);
        steps_before = adapt.inner_steps;
    }
    assert_int_equal(tensor.factor_rank, 5);
    assert_int_equal(adapt.inner_steps, (uint32_t)(40.0 * 5 / 24 + 0.5));
    for (int round = 0; round < 20; round++) observe(&adapt, &tensor, 1);
    assert_int_equal(tensor.factor_rank, 4); /* no further than its bound */
    adapt.inner_steps_min = 30;
    dlxi_adapt_paper(&adapt, &tensor, 1);
    assert_int_equal(adapt.inner_steps, 30);
}

static void paper_weighs_tensors_by_parameters(void **state) {
    (void)state;
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_PAPER);
    const dlxi_adapt_tensor tensors[2] = {
        {.parameters = 3000, .factor_rank_first = 16, .factor_rank_limit = 99, .factor_rank = 8},
        {.parameters = 1000, .factor_rank_first = 16, .factor_rank_limit = 99, .factor_rank = 16}};
    dlxi_adapt_paper(&adapt, tensors, 2);
    assert_int_equal(adapt.inner_steps, 25); /* 40 · (3·½ + 1·1)/4 */
}

/* H is one number of the whole model, however the tensors are dealt out. */
static void the_sums_of_parts_are_the_wholes(void **state) {
    (void)state;
    enum { COUNT = 12 };
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_PAPER);
    dlxi_adapt_tensor tensors[COUNT];
    double mean = 0, parameters = 0;
    for (int i = 0; i < COUNT; i++) {
        tensors[i] = (dlxi_adapt_tensor){.parameters = 1 + 977 * i * i,
                                         .factor_rank_first = 24,
                                         .factor_rank_limit = 99,
                                         .factor_rank = 3 + (5 * i) % 19};
        mean += (double)tensors[i].parameters * tensors[i].factor_rank / 24;
        parameters += (double)tensors[i].parameters;
    }
    dlxi_adapt_paper(&adapt, tensors, COUNT);
    assert_int_equal(adapt.inner_steps, (uint32_t)(40 * mean / parameters + 0.5));
    for (size_t first = 0; first <= COUNT; first++) {
        dlxi_adapt_sums a = dlxi_adapt_sum(tensors, first),
                        b = dlxi_adapt_sum(tensors + first, COUNT - first);
        dlxi_adapt_sums both = {a.weighted_ranks + b.weighted_ranks, a.parameters + b.parameters};
        assert_int_equal(dlxi_adapt_inner_steps(&adapt, both, 24), adapt.inner_steps);
    }
    adapt.inner_steps = 17;
    /* nothing to go by */
    assert_int_equal(dlxi_adapt_inner_steps(&adapt, (dlxi_adapt_sums){0}, 24), 17);
}

static uint64_t bytes_at(void *context, int rank) {
    return *(const uint64_t *)context * (uint64_t)rank;
}

/* Two members whose inner step takes 10 ms; the slower one sends a megabyte in `exchange_ms`. */
static dlxi_adapt decide(double exchange_ms, int *rank) {
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_LINK);
    dlxi_adapt_tensor tensor = {
        .parameters = 10000, .factor_rank_first = 16, .factor_rank_limit = 100, .factor_rank = 16};
    const dlxi_adapt_member members[2] = {{10000000, 1000, 1000000},
                                          {10000000, (uint64_t)(exchange_ms * 1e6), 1000000}};
    uint64_t bytes_a_rank = 1000000 / 16;
    dlxi_adapt_link(&adapt, &tensor, 1, members, 2, bytes_at, &bytes_a_rank);
    *rank = tensor.factor_rank;
    return adapt;
}

static void link_spends_what_there_is(void **state) {
    (void)state;
    int rank;
    dlxi_adapt adapt = decide(0.001, &rank);
    assert_int_equal(rank, 32);
    assert_int_equal(adapt.inner_steps, 5); /* H_min */
    /* rank 32 takes 2 · 100 ms: hidden with 10% to spare by ceil(200 / 9) = 23 steps */
    adapt = decide(100, &rank);
    assert_int_equal(rank, 32);
    assert_int_equal(adapt.inner_steps, 23);
    /* 40 steps hide 360 ms; at 300 ms for rank 16, a rank takes 18.75 ms: rank 19 (356 ms, 40
     * steps) */
    adapt = decide(300, &rank);
    assert_int_equal(rank, 19);
    assert_int_equal(adapt.inner_steps, 40);
    adapt = decide(1e6, &rank); /* hopeless: the least rank, the longest H */
    assert_int_equal(rank, 4);
    assert_int_equal(adapt.inner_steps, 40);
}

static void link_slower_is_never_more(void **state) {
    (void)state;
    int rank, before = 1000;
    uint32_t steps_before = 0;
    for (double ms = 0.01; ms < 1e5; ms *= 1.3) {
        dlxi_adapt adapt = decide(ms, &rank);
        assert_true(rank <= before);
        /* at the same rank H only grows; a smaller one is taken only where another rank would not
         * fit H_1 */
        if (rank == before)
            assert_true(adapt.inner_steps >= steps_before);
        else if (before <= 32)
            assert_true(ceil(ms * (rank + 1) / 16 / 9) > 40);
        if (rank > 4) assert_true(ms * rank / 16 <= 0.9 * 10 * adapt.inner_steps + 1e-6);
        before = rank;
        steps_before = adapt.inner_steps;
    }
}

static void link_decides_alike_whoever_asks(void **state) {
    (void)state;
    dlxi_adapt_member members[3] = {
        {9000000, 150000000, 700000}, {11000000, 90000000, 700000}, {4000000, 10000000, 700000}};
    static const int orders[3][3] = {{0, 1, 2}, {2, 0, 1}, {1, 2, 0}};
    dlxi_adapt first = {0};
    dlxi_adapt_tensor first_tensor = {0};
    for (int k = 0; k < 3; k++) {
        dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_LINK);
        dlxi_adapt_tensor tensor = {.parameters = 10000,
                                    .factor_rank_first = 16,
                                    .factor_rank_limit = 100,
                                    .factor_rank = 16};
        dlxi_adapt_member shuffled[3];
        for (int i = 0; i < 3; i++) shuffled[i] = members[orders[k][i]];
        uint64_t bytes_a_rank = 43750;
        dlxi_adapt_link(&adapt, &tensor, 1, shuffled, 3, bytes_at, &bytes_a_rank);
        if (k == 0) first = adapt, first_tensor = tensor;
        assert_memory_equal(&adapt, &first, sizeof adapt);
        assert_memory_equal(&tensor, &first_tensor, sizeof tensor);
    }
    /* one that has not measured yet: nothing changes */
    members[1].exchange_ns = 0;
    dlxi_adapt adapt = adapt_of(DLX_ADAPTATION_LINK), before = adapt;
    dlxi_adapt_tensor tensor = {
        .parameters = 10000, .factor_rank_first = 16, .factor_rank_limit = 100, .factor_rank = 16};
    uint64_t bytes_a_rank = 43750;
    dlxi_adapt_link(&adapt, &tensor, 1, members, 3, bytes_at, &bytes_a_rank);
    assert_memory_equal(&adapt, &before, sizeof adapt);
    assert_int_equal(tensor.factor_rank, 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_stability_table),
        cmocka_unit_test(carry_disagreement_is_c),
        cmocka_unit_test(modes_match_a_simulation),
        cmocka_unit_test(the_worst_mode_names_its_place),
        cmocka_unit_test(rhythm_of_none),
        cmocka_unit_test(rhythm_of_delayed_and_eager),
        cmocka_unit_test(rhythm_of_carry),
        cmocka_unit_test(carry_repeats_with_exchange_steps),
        cmocka_unit_test(carry_repeats_when_rounds_grow_shorter),
        cmocka_unit_test(rounds_are_counted),
        cmocka_unit_test(the_outer_step),
        cmocka_unit_test(the_effective_rank_holds_its_share),
        cmocka_unit_test(paper_keeps_the_rank_of_a_fixed_spectrum),
        cmocka_unit_test(paper_follows_a_growing_spectrum),
        cmocka_unit_test(paper_follows_a_shrinking_spectrum),
        cmocka_unit_test(paper_weighs_tensors_by_parameters),
        cmocka_unit_test(link_spends_what_there_is),
        cmocka_unit_test(link_slower_is_never_more),
        cmocka_unit_test(link_decides_alike_whoever_asks),
        cmocka_unit_test(the_sums_of_parts_are_the_wholes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
