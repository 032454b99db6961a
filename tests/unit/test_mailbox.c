/* SPDX-License-Identifier: Apache-2.0 */
/* What waits in the mailbox is added to, and nothing of it is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "sync/mailbox.h"

/* Every field differs from zero, and so does padding. */
static void fill(dlxi_outcome *o) {
    memset(&o->join, 1, sizeof o->join);
    memset(&o->round, 1, sizeof o->round);
}

/* As an exchange thread that is slow to be heard: commit, then the run's end. */
static void outcomes_add_up(void **state) {
    (void)state;
    dlxi_mailbox m;
    dlx_error error;
    dlxi_outcome taken, joined = {.joined = true}, committed = {.committed = true};
    dlxi_outcome ended = {.ended = true, .attempts = 3};
    fill(&joined), fill(&committed);
    assert_int_equal(dlxi_mailbox_open(&m, &error), DLX_OK);
    dlxi_mailbox_give(&m, &joined);
    dlxi_mailbox_give(&m, &committed);
    dlxi_mailbox_give(&m, &ended);
    assert_true(dlxi_mailbox_take(&m, &taken, 0));
    assert_true(taken.joined && taken.committed && taken.ended);
    assert_int_equal(taken.attempts, 3);
    assert_memory_equal(&taken.join, &joined.join, sizeof joined.join);
    assert_memory_equal(&taken.round, &committed.round, sizeof committed.round);
    assert_false(dlxi_mailbox_take(&m, &taken, 0));
    dlxi_mailbox_close(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(outcomes_add_up)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
