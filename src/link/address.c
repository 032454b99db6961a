/* SPDX-License-Identifier: Apache-2.0 */
/* Binding and connecting a UDP socket, which sends nothing, shows which addresses are this
 * machine's, and from which one another is reached. */
#include "link/address.h"

#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Binds (own) or connects a UDP socket. */
static int udp_open(const struct sockaddr *address, socklen_t bytes, bool own) {
    int fd = socket(address->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if ((own ? bind(fd, address, bytes) : connect(fd, address, bytes)) == 0) return fd;
    int system_errno = errno;
    close(fd);
    errno = system_errno;
    return -1;
}

static bool numeric_format(char numeric[DLXI_NUMERIC_BYTES], const struct sockaddr *address,
                           socklen_t bytes) {
    return getnameinfo(address, bytes, numeric, DLXI_NUMERIC_BYTES, NULL, 0, NI_NUMERICHOST) == 0;
}

/* Of a link-local address only this machine knows which interface it is on. */
static bool is_given_to_others(const struct sockaddr *address) {
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)address;
    if (address == NULL) return false;
    return address->sa_family == AF_INET ||
           (address->sa_family == AF_INET6 && !IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr));
}

dlx_status dlxi_address_of_interface(char host[DLXI_HOST_BYTES], const char *what,
                                     dlx_error *error) {
    struct ifaddrs *all = NULL;
    const struct sockaddr *found = NULL;
    char numeric[DLXI_NUMERIC_BYTES] = "";
    bool named = false;
    if (getifaddrs(&all) != 0)
        DLX_FAIL(error, SYSTEM, "%s: cannot list the interfaces of this machine: %s", what,
                 strerror(errno));
    for (const struct ifaddrs *i = all; i != NULL; i = i->ifa_next) {
        if (strcmp(i->ifa_name, host) != 0) continue;
        named = true;
        if (is_given_to_others(i->ifa_addr) &&
            (found == NULL || (found->sa_family == AF_INET6 && i->ifa_addr->sa_family == AF_INET)))
            found = i->ifa_addr;
    }
    bool usable =
        found != NULL && numeric_format(numeric, found,
                                        found->sa_family == AF_INET ? sizeof(struct sockaddr_in)
                                                                    : sizeof(struct sockaddr_in6));
    freeifaddrs(all);
    if (named && !usable)
        DLX_FAIL(error, CONFIG,
                 "%s: the interface '%s' has no address that others can use; 'ip address' lists "
                 "them",
                 what, host);
    if (usable) snprintf(host, DLXI_HOST_BYTES, "%s", numeric);
    return DLX_OK;
}

/* A port that UDP can be connected to; for binding, any free one. */
static dlx_status host_look_up(struct addrinfo **out, const char *host, bool own, const char *what,
                               dlx_error *error) {
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICSERV};
    int failure = getaddrinfo(host, own ? "0" : "9", &hints, out);
    if (failure != 0)
        DLX_FAIL(error, CONFIG, "%s: '%s' %s leads to no address: %s", what, host,
                 own ? "is no interface of this machine, and as a name" : "is a name that",
                 failure == EAI_SYSTEM ? strerror(errno) : gai_strerror(failure));
    return DLX_OK;
}

/* *system_errno ← 0, or why none of host's addresses, of which numeric is one, can be bound to
 * (own) or connected to. */
static dlx_status address_find(char numeric[DLXI_NUMERIC_BYTES], int *system_errno,
                               const char *host, bool own, const char *what, dlx_error *error) {
    struct addrinfo *found = NULL;
    DLX_TRY(host_look_up(&found, host, own, what, error));
    bool usable = false;
    *system_errno = EADDRNOTAVAIL;
    for (const struct addrinfo *a = found; a != NULL && !usable; a = a->ai_next) {
        int fd = udp_open(a->ai_addr, a->ai_addrlen, own);
        if (fd < 0)
            *system_errno = errno;
        else
            close(fd);
        usable = numeric_format(numeric, a->ai_addr, a->ai_addrlen) && fd >= 0;
    }
    freeaddrinfo(found);
    if (usable) *system_errno = 0;
    return DLX_OK;
}

dlx_status dlxi_address_listen(char numeric[DLXI_NUMERIC_BYTES], bool *own, const char *host,
                               const char *what, dlx_error *error) {
    int system_errno;
    DLX_TRY(address_find(numeric, &system_errno, host, true, what, error));
    *own = system_errno == 0;
    return DLX_OK;
}

dlx_status dlxi_address_own(char numeric[DLXI_NUMERIC_BYTES], const char *host, const char *what,
                            dlx_error *error) {
    int system_errno;
    DLX_TRY(address_find(numeric, &system_errno, host, true, what, error));
    if (system_errno != 0)
        DLX_FAIL(error, CONFIG,
                 "%s: '%s' is not an address of this machine (%s); 'ip address' lists them", what,
                 host, strerror(system_errno));
    return DLX_OK;
}

dlx_status dlxi_address_remote(char numeric[DLXI_NUMERIC_BYTES], const char *host, const char *what,
                               dlx_error *error) {
    int system_errno;
    DLX_TRY(address_find(numeric, &system_errno, host, false, what, error));
    if (system_errno != 0)
        DLX_FAIL(error, CONFIG, "%s: '%s' can't be reached from this machine: %s", what, host,
                 strerror(system_errno));
    return DLX_OK;
}

dlx_status dlxi_address_towards(char numeric[DLXI_NUMERIC_BYTES], const char *remote,
                                dlx_error *error) {
    struct addrinfo *found = NULL;
    DLX_TRY(host_look_up(&found, remote, false, "wan.coordinator", error));
    int fd = udp_open(found->ai_addr, found->ai_addrlen, false);
    freeaddrinfo(found);
    struct sockaddr_storage own;
    socklen_t bytes = sizeof own;
    bool known = fd >= 0 && getsockname(fd, (struct sockaddr *)&own, &bytes) == 0;
    int system_errno = errno;
    if (fd >= 0) close(fd);
    errno = system_errno;
    if (!known || !numeric_format(numeric, (struct sockaddr *)&own, bytes))
        DLX_FAIL(error, SYSTEM, "wan.coordinator: no own address leads to '%s': %s; set wan.listen",
                 remote, strerror(errno));
    return DLX_OK;
}
