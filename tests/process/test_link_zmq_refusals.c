/* SPDX-License-Identifier: Apache-2.0 */
/* What the `zmq` link refuses before a frame is sent: addresses, ports, and security none. Every
 * message word by word. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "link_world.h"

static void expect_site_error(const dlxi_link_settings *settings, dlx_status status,
                              const char *message) {
    dlxi_link *link = (dlxi_link *)&error;
    assert_int_equal(dlxi_zmq_site_open(&link, settings, &error), status);
    assert_null(link);
    assert_string_equal(error.message, message);
}

static void expect_coordinator_error(const dlxi_link_settings *settings, dlx_status status,
                                     const char *message) {
    dlxi_link *link = (dlxi_link *)&error;
    char bound[DLXI_ENDPOINT_BYTES];
    assert_int_equal(dlxi_zmq_coordinator_open(&link, settings, bound, &error), status);
    assert_null(link);
    assert_string_equal(error.message, message);
}

static void no_security_is_for_loopback(void **state) {
    (void)state;
    static const char none[] =
        "wan.security: none is allowed on loopback addresses only, not '%s'; use security: curve";
    char message[256];
    static const char *const hosts[][2] = {{"10.0.0.1:4000", "10.0.0.1"},
                                           {"0.0.0.0:0", "0.0.0.0"},
                                           {"[::]:0", "::"},
                                           {"example.org:4000", "example.org"},
                                           {"126.255.255.255:1", "126.255.255.255"},
                                           {"[::ffff:10.0.0.1]:1", "::ffff:10.0.0.1"}};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        dlxi_link_settings settings = settings_of(COORDINATOR, hosts[i][0], false);
        snprintf(message, sizeof message, none, hosts[i][1]);
        expect_coordinator_error(&settings, DLX_CONFIG, message);
    }
    dlxi_link_settings settings = settings_of(DELFT, "10.0.0.1:4000", false);
    snprintf(message, sizeof message, none, "10.0.0.1");
    expect_site_error(&settings, DLX_CONFIG, message);
    settings = settings_of(DELFT, "127.0.0.1:4000", false);
    settings.listen_host = "0.0.0.0";
    snprintf(message, sizeof message, none, "0.0.0.0");
    expect_site_error(&settings, DLX_CONFIG, message);
    /* a peer that claims to listen elsewhere */
    world w;
    build(&w, "127.9.8.7:0", false);
    char at[DLXI_ENDPOINT_BYTES];
    must(w.site[1]->op->listen(w.site[1], 1, 0, "delft", "", at, &error));
    assert_int_equal(w.site[1]->op->connect(w.site[1], 0, "192.168.1.1:5000", &error), DLX_CONFIG);
    snprintf(message, sizeof message, none, "192.168.1.1");
    assert_string_equal(error.message, message);
    raze(&w);
}

static void addresses_are_checked(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    char message[256];
    dlxi_link_settings settings = settings_of(COORDINATOR, w.bound, true);
    snprintf(
        message, sizeof message,
        "wan.coordinator: port %s on 127.0.0.1 is in use; choose another or 0 for any free port",
        w.bound + 10);
    expect_coordinator_error(&settings, DLX_CONFIG, message);
    settings.coordinator = "192.0.2.1:4000"; /* no machine has it: RFC 5737 */
    expect_coordinator_error(
        &settings, DLX_CONFIG,
        "wan.coordinator: '192.0.2.1' is not an address of this machine (Cannot assign requested "
        "address); 'ip address' lists them");
    settings.coordinator = "127.0.0.1";
    expect_coordinator_error(
        &settings, DLX_CONFIG,
        "wan.coordinator: '127.0.0.1' is not an address; write host:port, as 127.0.0.1:4000");
    settings.coordinator = "::1:4000";
    expect_coordinator_error(
        &settings, DLX_CONFIG,
        "wan.coordinator: '::1:4000' is not an address; write IPv6 in brackets, as [::1]:4000");
    settings.coordinator = "127.0.0.1:65536";
    expect_coordinator_error(
        &settings, DLX_CONFIG,
        "wan.coordinator: the port of '127.0.0.1:65536' is not a number from 0 to 65535");
    settings = settings_of(DELFT, "127.0.0.1:0", true);
    expect_site_error(&settings, DLX_CONFIG,
                      "wan.coordinator: port 0 in '127.0.0.1:0' is for the coordinator only; give "
                      "a site the port that the coordinator printed");
    settings = settings_of(DELFT, "127.0.0.1:4000", true);
    settings.name = "../delft";
    expect_site_error(&settings, DLX_CONFIG,
                      "site.name: '../delft' is not allowed; names have 1 to 63 of the characters "
                      "A-Z a-z 0-9 . _ - and "
                      "begin with a letter, digit or _; 'coordinator' is taken");
    raze(&w);
}

static void ports_of_a_range(void **state) {
    (void)state;
    world w;
    open_coordinator(&w, "127.0.0.1:0", true);
    dlxi_link_settings settings = settings_of(DELFT, w.bound, true);
    /* A free port, which site 1's socket of a range that begins one below it gets. */
    dlxi_link *probe = NULL;
    char bound[DLXI_ENDPOINT_BYTES], at[DLXI_ENDPOINT_BYTES];
    dlxi_link_settings other = settings_of(COORDINATOR, "127.0.0.1:0", true);
    must(dlxi_zmq_coordinator_open(&probe, &other, bound, &error));
    int port = atoi(bound + 10);
    settings.listen_port = (uint16_t)(port - 1);
    must(dlxi_zmq_site_open(&w.site[0], &settings, &error));
    char message[256];
    assert_int_equal(w.site[0]->op->listen(w.site[0], 0, 1, "oslo", key_text[OSLO], at, &error),
                     DLX_CONFIG);
    snprintf(message, sizeof message,
             "wan.listen: port %d on 127.0.0.1 is in use; choose another or 0 for any free port",
             port);
    assert_string_equal(error.message, message);
    dlxi_link_close(&probe);
    must(w.site[0]->op->listen(w.site[0], 0, 1, "oslo", key_text[OSLO], at, &error));
    assert_string_equal(at, bound);
    raze(&w);
}
int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_security_is_for_loopback),
        cmocka_unit_test(addresses_are_checked),
        cmocka_unit_test(ports_of_a_range),
    };
    return cmocka_run_group_tests(tests, make_keys, remove_keys);
}
