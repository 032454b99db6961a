/* SPDX-License-Identifier: Apache-2.0 */
/* The lease ledger: what is leased, what comes back, and in which order. */
#include "member/lease.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void the_ledger_leases_again_what_came_back(void **state) {
    (void)state;
    dlxi_ledger *ledger;
    dlxi_lease first, second, third;
    assert_int_equal(dlxi_ledger_open(&ledger, NULL), DLX_OK);
    dlxi_ledger_grant(ledger, &first, 1, 10);
    dlxi_ledger_grant(ledger, &second, 1, 10);
    assert_int_equal(dlxi_lease_position(&second, 0), 10);
    dlxi_ledger_settle(ledger, &second, 7); /* 17, 18, 19 */
    dlxi_ledger_settle(ledger, &first, 4);  /* 4 … 9 */
    dlxi_ledger_grant(ledger, &third, 2, 12);
    static const uint64_t expected[12] = {4, 5, 6, 7, 8, 9, 17, 18, 19, 20, 21, 22};
    assert_int_equal(dlxi_lease_windows(&third), 12);
    assert_int_equal(third.range_count, 3);
    for (uint64_t i = 0; i < 12; i++) assert_int_equal(dlxi_lease_position(&third, i), expected[i]);
    dlxi_ledger_settle(ledger, &third, 0);
    dlxi_ledger_grant(ledger, &first, 3, 3);
    assert_int_equal(dlxi_lease_position(&first, 0), 4);
    dlxi_ledger_close(&ledger);

    /* neighbours grow together again: before, behind, and between */
    assert_int_equal(dlxi_ledger_open(&ledger, NULL), DLX_OK);
    dlxi_ledger_grant(ledger, &first, 1, 10);
    dlxi_ledger_grant(ledger, &second, 1, 10);
    dlxi_ledger_grant(ledger, &third, 1, 10);
    dlxi_ledger_settle(ledger, &first, 0);
    dlxi_ledger_settle(ledger, &third, 0);
    dlxi_ledger_settle(ledger, &second, 0);
    dlxi_ledger_grant(ledger, &first, 2, 30);
    assert_int_equal(first.range_count, 1);
    assert_int_equal(first.ranges[0].first, 0);
    assert_int_equal(first.ranges[0].count, 30);
    dlxi_ledger_close(&ledger);
    assert_null(ledger);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_ledger_leases_again_what_came_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
