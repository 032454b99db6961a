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

static void time_of_an_exchange(void **state) {
    (void)state;
    const dlxi_cost_link link = {.bytes_per_s = 1e6, .delay_s = 0.01};
    near(dlxi_cost_sent_bytes(1e6, 4), 1.5e6);
    near(dlxi_cost_exchange_s(1e6, 2, 4, &link), 1.1 * 1.5 + 0.08);
    near(dlxi_cost_exchange_s(0, 1, 2, &link), 0.06);
    near(dlxi_cost_exchange_s(1e6, 2, 1, &link), 0.04);
}

static double level(void *context, double share) {
    return context != NULL && share >= 0.5 ? *(double *)context : 1;
}

static void expect(dlxi_round round, uint64_t steps, double exchange_s, double seconds,
                   double waited_s, uint64_t rounds, uint64_t longest, double *later) {
    const dlxi_cost_run run = {.step_s = 1,
                               .exchange_s = exchange_s,
                               .steps = steps,
                               .pace = level,
                               .pace_context = later};
    dlxi_cost_result r = dlxi_cost_of(&run, round);
    near(r.seconds, seconds);
    near(r.waited_s, waited_s);
    assert_int_equal(r.rounds, rounds);
    assert_int_equal(r.steps_longest, longest);
}

static void rounds_of_a_run(void **state) {
    (void)state;
    dlxi_round waits = {.when = DLXI_WHEN_WAITED_FOR, .inner_steps = 4, .inner_steps_max = 4},
               carries = {.when = DLXI_WHEN_COMMITTED, .inner_steps = 4, .inner_steps_max = 6},
               delays = {.when = DLXI_WHEN_BOUNDARY, .inner_steps = 4, .inner_steps_max = 4},
               repeats = carries;
    repeats.exchange_steps = 1;
    expect(waits, 12, 2, 12 + 3 * 2, 6, 3, 4, NULL);
    expect(carries, 12, 3, 12 + 3, 3, 3, 4, NULL);
    /* submitted after 4, 9 and 12: the second one a step late, the third after 2 of waiting */
    expect(carries, 12, 5, 19, 7, 3, 5, NULL);
    /* the second round stops at 6 steps and waits for 4, the last has 2 steps and waits for 8 */
    expect(carries, 12, 10, 34, 22, 3, 6, NULL);
    expect(delays, 12, 3, 12 + 3, 3, 3, 4, NULL);
    expect(delays, 12, 6, 4 + 6 + 6 + 6, 2 + 2 + 6, 3, 4, NULL);
    expect(repeats, 12, 3, 12 + 2 + 2 + 3, 7, 3, 4, NULL);
    double twice = 2;
    waits.inner_steps = waits.inner_steps_max = 2;
    expect(waits, 12, 1, 12 + 5, 5, 5, 4, &twice); /* 2, 2, 2, 2, 4 */
    expect(waits, 5, 1, 5 + 3, 3, 3, 2, NULL);     /* 2, 2, 1 */
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
        cmocka_unit_test(time_of_an_exchange),
        cmocka_unit_test(rounds_of_a_run),
        cmocka_unit_test(choice_of_rank_and_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
