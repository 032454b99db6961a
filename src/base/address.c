/* SPDX-License-Identifier: Apache-2.0 */
#include "base/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* As in "::1" or "fe80::1%eth0". */
static bool is_ipv6(const char *host, size_t characters) {
    char text[DLXI_HOST_BYTES];
    struct in6_addr v6;
    if (!is_host(host, characters)) return false;
    snprintf(text, sizeof text, "%.*s", (int)characters, host);
    text[strcspn(text, "%")] = '\0';
    return inet_pton(AF_INET6, text, &v6) == 1;
}

static const char *expected(bool listens) {
    return listens ? "host or host:port, as 10.0.0.2:4000" : "host:port, as 127.0.0.1:4000";
}

/* *colon ← where the port begins, or NULL; *host, *characters ← the host, without brackets. */
static dlx_status address_split(const char **host, size_t *characters, const char **colon,
                                const char *text, bool listens, const char *what,
                                dlx_error *error) {
    const char *end = text + strlen(text), *url = strstr(text, "://");
    if (url != NULL)
        DLX_FAIL(error, CONFIG, "%s: '%.60s' is a URL; leave out '%.*s'", what, text,
                 (int)(url + 3 - text < 20 ? url + 3 - text : 20), text);
    *host = text;
    *colon = strrchr(text, ':');
    if (text[0] == '[') {
        const char *bracket = strchr(text, ']');
        *host = text + 1;
        *characters = bracket != NULL ? (size_t)(bracket - *host) : 0;
        if (bracket == NULL || !is_ipv6(*host, *characters) ||
            (bracket[1] != '\0' && bracket[1] != ':'))
            DLX_FAIL(error, CONFIG,
                     "%s: '%.60s' is not an address; brackets hold an IPv6 address, as [::1]:4000",
                     what, text);
        *colon = bracket[1] == ':' ? bracket + 1 : NULL;
    } else {
        *characters = (size_t)((*colon != NULL ? *colon : end) - text);
        if (memchr(text, ':', *characters) != NULL)
            DLX_FAIL(error, CONFIG,
                     "%s: '%.60s' is not an address; write IPv6 in brackets, as [::1]:4000", what,
                     text);
    }
    if ((*colon == NULL && !listens) || !is_host(*host, *characters))
        DLX_FAIL(error, CONFIG, "%s: '%.60s' is not an address; write %s", what, text,
                 expected(listens));
    return DLX_OK;
}

static dlx_status address_parse(dlxi_address *out, const char *text, bool listens, const char *what,
                                dlx_error *error) {
    const char *host, *colon;
    size_t characters;
    *out = (dlxi_address){0};
    DLX_TRY(address_split(&host, &characters, &colon, text, listens, what, error));
    if (colon != NULL) {
        const char *digits = colon + 1;
        size_t digit_count = strlen(digits);
        long port = -1;
        if (digit_count >= 1 && digit_count <= 5 && strspn(digits, "0123456789") == digit_count)
            port = strtol(digits, NULL, 10);
        if (port < 0 || port > UINT16_MAX)
            DLX_FAIL(error, CONFIG, "%s: the port of '%.60s' is not a number from 0 to 65535", what,
                     text);
        out->port = (uint16_t)port;
    }
    memcpy(out->host, host, characters);
    return DLX_OK;
}

dlx_status dlxi_address_parse(dlxi_address *out, const char *text, const char *what,
                              dlx_error *error) {
    return address_parse(out, text, false, what, error);
}

dlx_status dlxi_address_parse_listen(dlxi_address *out, const char *text, const char *what,
                                     dlx_error *error) {
    return address_parse(out, text, true, what, error);
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

bool dlxi_host_is_any(const char *host) {
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, host, &v4) == 1) return v4.s_addr == htonl(INADDR_ANY);
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6);
}
