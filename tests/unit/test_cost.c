/* SPDX-License-Identifier: Apache-2.0 */
/* Costs of a run, against what is worked out by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "outer/adapt.h"
#include "outer/cost.h"

static void near(double got, double expected) {
    if (fabs(got - expected) > 1e-9) fail_msg("%g instead of %g", got, expected);
}

static void bytes_of_tensors(void **state) {
    (void)state;
    const dlxi_quantiser int4 = {4, 64}, f16 = {16, 64};
    assert_int_equal(dlxi_cost_tensor_bytes(128, 128, 0, int4), 256 * 34);
    assert_int_equal(dlxi_cost_tensor_bytes(1, 65, 0, f16), 2 * 128);
    assert_int_equal(dlxi_cost_tensor_bytes(100, 70, 3, int4), 3 * (2 + 2) * 34);
}

static void sums_over_tensors(void **state) {
    (void)state;
    const dlxi_quantiser int4 = {4, 64};
    dlxi_cost_payload p = {0};
    dlxi_cost_add(&p, 100, 70, 3, int4, true);
    dlxi_cost_add(&p, 100, 70, 2, int4, false);
    dlxi_cost_add(&p, 64, 64, 0, int4, true);
    near(p.bytes, 3 * 4 * 34 + 2 * 4 * 34 + 64 * 34);
    near(p.factored, 14000);
    near(p.whole, 4096);
    near(p.products, 7000 * 5);
    near(p.squares, 170 * (9 + 4));
    near(p.cubes, 27);
}

static void time_of_an_exchange(void **state) {
    (void)state;
    const dlxi_cost_link link = {.bytes_per_s = 1e6, .delay_s = 0.01, .host_bytes_per_s = 1e7},
                         fast = {.bytes_per_s = 1e9, .host_bytes_per_s = 1e6};
    const dlxi_cost_payload whole = {.bytes = 1e6, .whole = 1e6};
    near(dlxi_cost_sent_bytes(1e6, 4), 1.5e6);
    dlxi_cost_exchange e = dlxi_cost_exchange_of(&whole, 4, 1, &link);
    near(e.link_s, 1.1 * 1.5);
    near(e.ways_s, 0.06);
    near(e.codec_s, 0.01); /* 25 passes over 4 MB, at 10 GB/s */
    near(e.wire_s, 0.004 + 0.165);
    near(e.submission_s, 0.0048);
    near(dlxi_cost_exchange_s(&e, false), 1.65 + 0.06 + 0.01);
    near(dlxi_cost_exchange_s(&e, true), 1.65 + 0.06 + 0.02);
    /* a link that is faster than the processor */
    e = dlxi_cost_exchange_of(&whole, 4, 1, &fast);
    near(dlxi_cost_exchange_s(&e, false), 1.654 + 0.01);
    near(dlxi_cost_exchange_s(&e, true), 2 * 1.654 + 0.02);
    /* low rank, by two ranks: 28 GFLOP at 35, 3 at 7.5, a spectrum, and 12 passes over 40 MB */
    const dlxi_cost_payload low = {
        .factored = 1e7, .products = 3.5e9, .squares = 7.5e8, .cubes = 1e6};
    e = dlxi_cost_exchange_of(&low, 2, 2, &link);
    near(e.codec_s, (0.8 + 0.4 + 0.01) / 2 + 0.024);
    near(e.ways_s, 0.08);
    /* 14,480 bytes in 20 ms, then the link is full: 20,000 in that time */
    const dlxi_cost_link far = {.bytes_per_s = 2e6, .delay_s = 0.05, .host_bytes_per_s = 1e9};
    near(dlxi_cost_exchange_of(&whole, 2, 1, &link).beginning_s, 0.02 - 0.01448);
    /* 14,480, 28,960, 57,920 and 115,840 in 0.1 s each, of 200,000 that fill it */
    near(dlxi_cost_exchange_of(&whole, 2, 1, &far).beginning_s, 0.4 - 0.1086);
    near(dlxi_cost_exchange_of(&whole, 3, 8, &far).beginning_s, 0);
    e = dlxi_cost_exchange_of(&low, 1, 1, &link);
    near(e.ways_s, 0.04);
    near(e.link_s, 0);
}

/* ---- a run ----------------------------------------------------------------------------------- */

typedef struct rhythm {
    dlxi_cost_exchange exchange;
    dlxi_round first;
    double later;  /* the pace in the second half; 0: 1 */
    double step_s; /* of the last round's steps */
    double took_s; /* the last exchange */
    bool shares_core;
    double seconds;
} rhythm;

static dlxi_cost_round on_submit(void *context, double share, double step_s) {
    rhythm *r = context;
    double pace = r->later > 0 && share >= 0.5 ? r->later : 1;
    r->step_s = step_s;
    return (dlxi_cost_round){r->exchange, pace * r->first.inner_steps,
                             pace * r->first.inner_steps_max};
}

static void on_commit(void *context, double exchange_s) {
    rhythm *r = context;
    r->took_s = exchange_s;
}

static dlxi_cost_result result_of(rhythm *r, uint64_t steps) {
    const dlxi_cost_run run = {.step_s = 1,
                               .shares_core = r->shares_core,
                               .steps = steps,
                               .seconds = r->seconds,
                               .submit = on_submit,
                               .commit = on_commit,
                               .context = r};
    return dlxi_cost_of(&run, r->first);
}

static void expect(dlxi_round round, uint64_t steps, double exchange_s, double seconds,
                   double waited_s, uint64_t rounds, uint64_t longest, double later) {
    rhythm how = {.exchange = {.link_s = exchange_s}, .first = round, .later = later};
    dlxi_cost_result r = result_of(&how, steps);
    near(r.seconds, seconds);
    near(r.waited_s, waited_s);
    assert_int_equal(r.steps, steps);
    assert_int_equal(r.rounds, rounds);
    assert_int_equal(r.steps_longest, longest);
}

static const dlxi_round
    waits = {.when = DLXI_WHEN_WAITED_FOR, .inner_steps = 4, .inner_steps_max = 4},
    carries = {.when = DLXI_WHEN_COMMITTED, .inner_steps = 4, .inner_steps_max = 6},
    delays = {.when = DLXI_WHEN_BOUNDARY, .inner_steps = 4, .inner_steps_max = 4};

static void rounds_of_a_run(void **state) {
    (void)state;
    dlxi_round repeats = carries, longer = waits;
    repeats.exchange_steps = 1;
    expect(waits, 12, 2, 12 + 3 * 2, 6, 3, 4, 0);
    expect(carries, 12, 3, 12 + 3, 3, 3, 4, 0);
    /* submitted after 4, 9 and 12: the second one a step late, the third after 2 of waiting */
    expect(carries, 12, 5, 19, 7, 3, 5, 0);
    /* the second round stops at 6 steps and waits for 4, the last has 2 steps and waits for 8 */
    expect(carries, 12, 10, 34, 22, 3, 6, 0);
    expect(delays, 12, 3, 12 + 3, 3, 3, 4, 0);
    expect(delays, 12, 6, 4 + 6 + 6 + 6, 2 + 2 + 6, 3, 4, 0);
    expect(repeats, 12, 3, 12 + 2 + 2 + 3, 7, 3, 4, 0);
    longer.inner_steps = longer.inner_steps_max = 2;
    expect(longer, 12, 1, 12 + 5, 5, 5, 4, 2); /* 2, 2, 2, 2, 4 */
    expect(longer, 5, 1, 5 + 3, 3, 3, 2, 0);   /* 2, 2, 1 */
}

/* An exchange of 1 s on the link and 1 s of computing. */
static void computing_on_the_core_that_trains(void **state) {
    (void)state;
    rhythm r = {.exchange = {.link_s = 1, .codec_s = 1}, .first = carries};
    near(result_of(&r, 12).seconds, 12 + 2);
    near(r.step_s, 1);
    /* the first step beside it takes 2 s, in which it computes for 1 s; at the end it is alone */
    r.shares_core = true;
    near(result_of(&r, 8).seconds, 4 + 5 + 2);
    near(r.step_s, 5.0 / 4);
    near(r.took_s, 2);
    r.first.exchange_steps = 1; /* applied after that step, and a second of waiting */
    near(result_of(&r, 8).seconds, 4 + 6 + 2);
    r.first = waits;
    near(result_of(&r, 12).seconds, 12 + 3 * 2);
    near(r.took_s, 2);
    /* sockets under a slow link take from training, but the exchange is no longer */
    r = (rhythm){.exchange = {.link_s = 4, .wire_s = 1}, .first = carries, .shares_core = true};
    near(result_of(&r, 8).seconds, 4 + 5 + 4);
    near(r.took_s, 4);
}

static void submission_takes_training_time(void **state) {
    (void)state;
    rhythm r = {.exchange = {.link_s = 1, .submission_s = 0.5}, .first = carries};
    near(result_of(&r, 12).seconds, 12 + 3 * 0.5 + 1);
}

static void connections_begin_slowly_once(void **state) {
    (void)state;
    rhythm r = {.exchange = {.link_s = 1, .beginning_s = 2}, .first = waits};
    near(result_of(&r, 12).seconds, 12 + 3 * 1 + 2);
}

static void part_of_a_run(void **state) {
    (void)state;
    rhythm r = {.exchange = {.link_s = 2}, .first = waits, .seconds = 7};
    dlxi_cost_result result = result_of(&r, 1000);
    near(result.seconds, 12); /* the second round's, the first is over after 6 */
    assert_int_equal(result.steps, 8);
    assert_int_equal(result.rounds, 2);
}

static double as_many(void *context, int rank) {
    (void)context;
    return rank;
}

static void choice_of_rank_and_steps(void **state) {
    (void)state;
    int rank = 10;
    near(dlxi_adapt_choose(&rank, 2, 9, as_many, NULL), 9); /* 8 / 0.9 */
    assert_int_equal(rank, 8);
    rank = 10;
    near(dlxi_adapt_choose(&rank, 2, 1, as_many, NULL), 3); /* 2 / 0.9 */
    assert_int_equal(rank, 2);
    assert_int_equal(dlxi_adapt_rank_limit(128, 128), 63);
    assert_int_equal(dlxi_adapt_rank_limit(1, 128), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_of_tensors),
        cmocka_unit_test(sums_over_tensors),
        cmocka_unit_test(time_of_an_exchange),
        cmocka_unit_test(rounds_of_a_run),
        cmocka_unit_test(computing_on_the_core_that_trains),
        cmocka_unit_test(submission_takes_training_time),
        cmocka_unit_test(connections_begin_slowly_once),
        cmocka_unit_test(part_of_a_run),
        cmocka_unit_test(choice_of_rank_and_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
