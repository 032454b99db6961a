/* SPDX-License-Identifier: Apache-2.0 */
/* A relay of one TCP connection at a time to a port on 127.0.0.1, which can be cut or silenced:
 * what a bad network does. */
#ifndef DLXI_TESTS_TCP_RELAY_H
#define DLXI_TESTS_TCP_RELAY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

enum { TCP_RELAY_SILENCED_MAX = 16 };

typedef struct tcp_relay {
    uint16_t port;        /* where it listens, on 127.0.0.1 */
    uint16_t target_port; /* where it leads */
    int listener, stop_fd[2];
    _Atomic int connections; /* relayed so far */
    int silenced[2 * TCP_RELAY_SILENCED_MAX], silenced_count;
    pthread_t thread;
} tcp_relay;

/* 0, or -1 where the system gives no socket or thread. */
int tcp_relay_open(tcp_relay *relay, uint16_t target_port);
/* Ends the present connection on both sides; the next one is relayed again. */
void tcp_relay_cut(tcp_relay *relay);
/* From now on the present connection carries nothing, and neither side learns of it before
 * tcp_relay_close; the next one is relayed again. */
void tcp_relay_silence(tcp_relay *relay);
void tcp_relay_close(tcp_relay *relay);

#endif
