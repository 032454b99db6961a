/* SPDX-License-Identifier: Apache-2.0 */
/* The member room: a coordinator that waits for sites to join, and gives up. */
#include "member_world.h"

static void expect(world *w, const char *name) {
    assert_int_equal(dlxi_coordinator_expect(w->c, name, NULL), DLX_OK);
}

/* `text` is the newest line. */
static void assert_logged(world *w, const char *text) {
    char line[512] = "", newest[512] = "";
    while (dlxi_coordinator_pop_log(w->c, line, sizeof line)) memcpy(newest, line, sizeof line);
    assert_string_equal(newest, text);
}

static void wait_for_s(world *w, uint32_t joined, int64_t s) {
    wait_pinging(w, joined, -1, 1, 1000 * s);
}

static void assert_gave_up(world *w, const char *text) {
    dlx_error error;
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_DONE);
    assert_int_equal(dlxi_coordinator_result(w->c, &error), DLX_TIMEOUT);
    assert_string_equal(error.message, text);
}

static void who_is_missing_is_named(void **state) {
    (void)state;
    world *w = world_open(3, 1000, NULL);
    static const char *const names[] = {"oslo", "paris", "rome"};
    for (int i = 0; i < 3; i++) expect(w, names[i]);
    wait_for_s(w, 0, 2);
    assert_logged(w, "0 of 3 sites have joined after 2 s; waiting for 'oslo', 'paris', 'rome', up "
                     "to 3600 s (wan.join_s)");
    join(w, 0, "paris");
    assert_logged(w, "site 'paris' connected, 1 of 3");
    wait_for_s(w, 1, 2);
    assert_logged(w, "1 of 3 sites have joined after 4 s; waiting for 'oslo', 'rome', up to 3600 s "
                     "(wan.join_s)");
    wait_for_s(w, 1, DLXI_WAIT_TELL_MS / 1000 - 1);
    assert_logged(w, "");
    wait_for_s(w, 1, 1);
    assert_logged(w, "1 of 3 sites have joined after 64 s; waiting for 'oslo', 'rome', up to 3600 "
                     "s (wan.join_s)");
    wait_for_s(w, 1, JOIN_MS / 1000 - 65);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_GATHERING);
    wait_for_s(w, 1, 1);
    static const char text[] =
        "gave up after 3600 s (wan.join_s): 1 of 3 sites have joined, missing is 'oslo', 'rome'";
    assert_gave_up(w, text);
    assert_int_equal(w->counts[0][DLXI_FRAME_STOP], 1);
    assert_string_equal(w->last[0]->as.reason.text, text);
    world_close(w);
}

/* Two of three may be the missing one; ranks of a site; nobody's names are known. */
static void what_is_known_of_the_missing_is_said(void **state) {
    (void)state;
    world *w = world_open(2, 1000, NULL);
    static const char *const names[] = {"oslo", "paris", "rome"};
    for (int i = 0; i < 3; i++) expect(w, names[i]);
    join(w, 0, "paris");
    wait_for_s(w, 1, 2);
    assert_logged(w, "1 of 2 sites have joined after 2 s; waiting for 1 of 'oslo', 'rome', up to "
                     "3600 s (wan.join_s)");
    world_close(w);

    w = world_open(2, 1000, NULL);
    join(w, 0, "paris");
    wait_for_s(w, 1, 2);
    assert_logged(w, "1 of 2 sites have joined after 2 s; waiting for 1 more, up to 3600 s "
                     "(wan.join_s)");
    world_close(w);

    w = world_open(2, 1000, NULL);
    dlxi_hello *hello = hello_of(w, "paris");
    hello->rank = 1;
    hello->ranks = 3;
    say_as(w, 0, "", DLXI_FRAME_HELLO, (dlxi_frame){.term = 0});
    wait_for_s(w, 1, 2);
    assert_logged(w,
                  "0 of 2 sites have joined after 2 s; waiting for 2 more, and 'paris' (1 of its "
                  "3 ranks have joined), up to 3600 s (wan.join_s)");
    expect(w, "paris");
    expect(w, "oslo");
    wait_for_s(w, 1, 60);
    assert_logged(w, "0 of 2 sites have joined after 62 s; waiting for 'paris' (1 of its 3 ranks "
                     "have joined), 'oslo', up to 3600 s (wan.join_s)");
    world_close(w);
}

/* More and longer names than a line holds. */
static void a_long_list_is_cut(void **state) {
    (void)state;
    world *w = world_open(64, 1000, NULL);
    char name[DLXI_NAME_BYTES], line[512];
    for (int i = 0; i < 64; i++) {
        snprintf(name, sizeof name, "%02d%061d", i, 0);
        expect(w, name);
    }
    wait_for_s(w, 0, 2);
    assert_true(dlxi_coordinator_pop_log(w->c, line, sizeof line));
    assert_non_null(strstr(line, "' and 61 others, up to 3600 s (wan.join_s)"));
    world_close(w);
}

/* Neither is a pause of the coordinator itself a wait, nor is a run's own time. */
static void a_run_that_began_waits_for_nobody(void **state) {
    (void)state;
    world *w = world_open(1, 1000, NULL);
    w->now_ms += 2 * JOIN_MS;
    dlxi_coordinator_on_tick(w->c, w->now_ms);
    join(w, 0, "a");
    listen_all(w, 1);
    wait_for_s(w, 1, 2 * JOIN_MS / 1000);
    assert_int_equal(dlxi_coordinator_phase_of(w->c), DLXI_COORDINATOR_RUNNING);
    world_close(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_is_missing_is_named),
        cmocka_unit_test(what_is_known_of_the_missing_is_said),
        cmocka_unit_test(a_long_list_is_cut),
        cmocka_unit_test(a_run_that_began_waits_for_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
