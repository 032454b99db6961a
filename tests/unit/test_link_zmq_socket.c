/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets of the `zmq` link: what round trips of seconds need. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "link/zmq_internal.h"

static void expect_option_ms(void *socket, int name, int expected) {
    int got = 0;
    size_t bytes = sizeof got;
    assert_int_equal(zmq_getsockopt(socket, name, &got, &bytes), 0);
    assert_int_equal(got, expected);
}

/* wan.timeout_s from 10 s on, up to 100 s. */
static void times_grow_with_the_timeout(void **state) {
    (void)state;
    static const struct {
        uint32_t timeout_ms;
        int connect_ms, handshake_ms, silence_ms;
    } cases[] = {{1000, 1500, 5000, 3500},
                 {10000, 1500, 5000, 3500},
                 {60000, 9000, 30000, 21000},
                 {86400000, 15000, 50000, 35000}};
    void *context = zmq_ctx_new();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const dlxi_zmq endpoint = {.context = context, .timeout_ms = cases[i].timeout_ms};
        for (int data = 0; data <= 1; data++) {
            const dlxi_socket_settings settings = {
                .numeric = "127.0.0.1", .data = data != 0, .domain = "test"};
            void *socket;
            assert_int_equal(dlxi_socket_open(&socket, &endpoint, &settings, NULL), DLX_OK);
            expect_option_ms(socket, ZMQ_CONNECT_TIMEOUT, cases[i].connect_ms);
            expect_option_ms(socket, ZMQ_HANDSHAKE_IVL, cases[i].handshake_ms);
            expect_option_ms(socket, ZMQ_TCP_MAXRT, data != 0 ? 60000 : cases[i].silence_ms);
            dlxi_socket_drop(socket);
        }
    }
    zmq_ctx_term(context);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(times_grow_with_the_timeout)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
