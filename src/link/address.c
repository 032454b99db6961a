/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses: parsing, and the numeric address behind a name. Binding and connecting a UDP socket,
 * which sends nothing, shows which addresses are this machine's and from which one another is
 * reached. */
#include "link/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- text ------------------------------------------------------------------------------------ */

static bool is_host_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           strchr("._-:%", c) != NULL;
}

static bool is_host(const char *host, size_t characters) {
    if (characters == 0 || characters >= DLXI_HOST_BYTES) return false;
    for (size_t i = 0; i < characters; i++)
        if (host[i] == '\0' || !is_host_character(host[i])) return false;
    return true;
}

dlx_status dlxi_address_parse(dlxi_address *out, const char *text, const char *what,
                              dlx_error *error) {
    *out = (dlxi_address){0};
    const char *host = text, *colon = NULL;
    size_t characters = 0;
    if (text[0] == '[') {
        const char *bracket = strchr(text, ']');
        host = text + 1;
        if (bracket != NULL && bracket[1] == ':') {
            characters = (size_t)(bracket - host);
            colon = bracket + 1;
        }
    } else {
        colon = strrchr(text, ':');
        if (colon != NULL) characters = (size_t)(colon - text);
        if (characters != 0 && memchr(text, ':', characters) != NULL)
            DLX_FAIL(error, CONFIG,
                     "%s: '%.60s' is not an address; write IPv6 in brackets, as [::1]:4000", what,
                     text);
    }
    if (colon == NULL || !is_host(host, characters))
        DLX_FAIL(error, CONFIG, "%s: '%.60s' is not an address; write host:port, as 127.0.0.1:4000",
                 what, text);
    const char *digits = colon + 1;
    size_t digit_count = strlen(digits);
    long port = -1;
    if (digit_count >= 1 && digit_count <= 5 && strspn(digits, "0123456789") == digit_count)
        port = strtol(digits, NULL, 10);
    if (port < 0 || port > UINT16_MAX)
        DLX_FAIL(error, CONFIG, "%s: the port of '%.60s' is not a number from 0 to 65535", what,
                 text);
    memcpy(out->host, host, characters);
    out->port = (uint16_t)port;
    return DLX_OK;
}

void dlxi_address_format(char dst[DLXI_ENDPOINT_BYTES], const char *host, uint16_t port) {
    bool brackets = strchr(host, ':') != NULL;
    snprintf(dst, DLXI_ENDPOINT_BYTES, "%s%.*s%s:%u", brackets ? "[" : "", DLXI_HOST_BYTES, host,
             brackets ? "]" : "", (unsigned)port);
}

bool dlxi_host_is_loopback(const char *host) {
    struct in_addr v4;
    struct in6_addr v6;
    if (strcmp(host, "localhost") == 0) return true;
    if (inet_pton(AF_INET, host, &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* ---- lookup ---------------------------------------------------------------------------------- */

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

/* A port that UDP can be connected to; for binding, any free one. */
static dlx_status host_look_up(struct addrinfo **out, const char *host, bool own, const char *what,
                               dlx_error *error) {
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICSERV};
    int failure = getaddrinfo(host, own ? "0" : "9", &hints, out);
    if (failure != 0)
        DLX_FAIL(error, CONFIG, "%s: the name '%s' leads to no address: %s", what, host,
                 failure == EAI_SYSTEM ? strerror(errno) : gai_strerror(failure));
    return DLX_OK;
}

static dlx_status address_find(char numeric[DLXI_NUMERIC_BYTES], const char *host, bool own,
                               const char *what, dlx_error *error) {
    struct addrinfo *found = NULL;
    DLX_TRY(host_look_up(&found, host, own, what, error));
    int system_errno = 0;
    bool usable = false;
    for (const struct addrinfo *a = found; a != NULL && !usable; a = a->ai_next) {
        int fd = udp_open(a->ai_addr, a->ai_addrlen, own);
        if (fd < 0)
            system_errno = errno;
        else
            close(fd);
        usable = fd >= 0 && numeric_format(numeric, a->ai_addr, a->ai_addrlen);
    }
    freeaddrinfo(found);
    if (usable) return DLX_OK;
    if (own)
        DLX_FAIL(error, CONFIG,
                 "%s: '%s' is not an address of this machine (%s); 'ip address' lists them", what,
                 host, strerror(system_errno));
    DLX_FAIL(error, CONFIG, "%s: '%s' can't be reached from this machine: %s", what, host,
             strerror(system_errno));
}

dlx_status dlxi_address_own(char numeric[DLXI_NUMERIC_BYTES], const char *host, const char *what,
                            dlx_error *error) {
    return address_find(numeric, host, true, what, error);
}

dlx_status dlxi_address_remote(char numeric[DLXI_NUMERIC_BYTES], const char *host, const char *what,
                               dlx_error *error) {
    return address_find(numeric, host, false, what, error);
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
