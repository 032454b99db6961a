/* SPDX-License-Identifier: Apache-2.0 */
/* A relay of one TCP connection at a time, which can be cut or silenced; see tcp_relay.h. */
#include "tcp_relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int listen_anywhere(uint16_t *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&address, bytes) != 0 || listen(fd, 4) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &bytes) != 0) {
        close(fd);
        return -1;
    }
    *port = ntohs(address.sin_port);
    return fd;
}

static int connect_to(uint16_t port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* False once either side has ended. */
static bool move(int from, int to) {
    char bytes[65536];
    ssize_t got = recv(from, bytes, sizeof bytes, 0);
    for (ssize_t at = 0; at < got;) {
        ssize_t sent = send(to, bytes + at, (size_t)(got - at), MSG_NOSIGNAL);
        if (sent <= 0) return false;
        at += sent;
    }
    return got > 0;
}

static void drop(int pair[2]) {
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0) close(pair[i]);
        pair[i] = -1;
    }
}

static void keep_silent(tcp_relay *relay, int pair[2]) {
    for (int i = 0; i < 2 && pair[i] >= 0; i++) {
        if (relay->silenced_count == 2 * TCP_RELAY_SILENCED_MAX) abort();
        relay->silenced[relay->silenced_count++] = pair[i];
        pair[i] = -1;
    }
}

static void *relay_thread(void *argument) {
    tcp_relay *relay = argument;
    int pair[2] = {-1, -1};
    for (;;) {
        /* poll leaves out what is negative: one connection at a time */
        struct pollfd items[] = {{.fd = relay->stop_fd[0], .events = POLLIN},
                                 {.fd = pair[0] < 0 ? relay->listener : -1, .events = POLLIN},
                                 {.fd = pair[0], .events = POLLIN},
                                 {.fd = pair[1], .events = POLLIN}};
        if (poll(items, 4, -1) < 0) continue;
        char order;
        if (items[0].revents != 0) {
            if (read(relay->stop_fd[0], &order, 1) != 1 || order == 's') break;
            if (order == 'q')
                keep_silent(relay, pair);
            else
                drop(pair);
            continue;
        }
        if (items[1].revents != 0) {
            pair[0] = accept(relay->listener, NULL, NULL);
            pair[1] = pair[0] >= 0 ? connect_to(relay->target_port) : -1;
            if (pair[1] < 0)
                drop(pair);
            else
                atomic_fetch_add(&relay->connections, 1);
            continue;
        }
        if ((items[2].revents != 0 && !move(pair[0], pair[1])) ||
            (items[3].revents != 0 && !move(pair[1], pair[0])))
            drop(pair);
    }
    drop(pair);
    return NULL;
}

int tcp_relay_open(tcp_relay *relay, uint16_t target_port) {
    *relay = (tcp_relay){.target_port = target_port};
    relay->listener = listen_anywhere(&relay->port);
    if (relay->listener < 0) return -1;
    if (pipe(relay->stop_fd) != 0) {
        close(relay->listener);
        return -1;
    }
    if (pthread_create(&relay->thread, NULL, relay_thread, relay) == 0) return 0;
    close(relay->listener);
    close(relay->stop_fd[0]);
    close(relay->stop_fd[1]);
    return -1;
}

static void order(tcp_relay *relay, char what) {
    ssize_t written = write(relay->stop_fd[1], &what, 1);
    (void)written;
}

void tcp_relay_cut(tcp_relay *relay) {
    order(relay, 'c');
}

void tcp_relay_silence(tcp_relay *relay) {
    order(relay, 'q');
}

void tcp_relay_close(tcp_relay *relay) {
    order(relay, 's');
    pthread_join(relay->thread, NULL);
    for (int i = 0; i < relay->silenced_count; i++) close(relay->silenced[i]);
    close(relay->listener);
    close(relay->stop_fd[0]);
    close(relay->stop_fd[1]);
}
