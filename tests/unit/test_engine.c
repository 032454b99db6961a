/* SPDX-License-Identifier: Apache-2.0 */
/* The engine alone: what a coordinator, another site, a link or the system may do at an awkward
 * moment, and what must not come of it. */
#include "engine_lone.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>

/* A round of this site alone, up to the frame that commits it. */
static lone *committing_lone(uint16_t sites) {
    const dlx_sync_config config = lone_config();
    lone *l = lone_open(&config, LONE_TENSORS);
    lone_join(l, 0, sites);
    assert_true(l->last.joined);
    lone_submit(l);
    lone_begin(l, 1, 1, 0, 1);
    lone_turn(l, 1);
    assert_int_equal(l->sent[DLXI_FRAME_STAGED], 1);
    l->now_ms += 40;
    lone_commit(l, 1, 1);
    return l;
}

static void check_committed(lone *l) {
    lone_turn(l, 1);
    assert_true(l->last.committed && !l->last.ended);
    assert_int_equal(l->state->rounds, 1);
    lone_close(l);
}

static void an_exchange_is_timed(void **state) {
    (void)state;
    lone *l = committing_lone(3);
    lone_turn(l, 2);
    assert_true(l->last.committed);
    assert_int_equal(l->last.exchange_ns, 42000000); /* from the turn after BEGIN */
    lone_submit(l);                                  /* the coordinator is told with the next one */
    lone_turn(l, 1);
    assert_int_equal(l->said.kind, DLXI_FRAME_READY);
    assert_int_equal(l->said.as.ready.exchange_ns, 42000000);
    lone_close(l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_exchange_is_timed),
    };
    (void)check_committed;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
