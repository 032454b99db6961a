/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses: "host:port" and "[ipv6]:port" as people write them, and the numeric addresses behind
 * names and interfaces. */
#ifndef DLXI_LINK_ADDRESS_H
#define DLXI_LINK_ADDRESS_H

#include "link/link.h"

enum { DLXI_HOST_BYTES = 112, DLXI_NUMERIC_BYTES = 64 };

typedef struct dlxi_address {
    char host[DLXI_HOST_BYTES]; /* without brackets */
    uint16_t port;
} dlxi_address;

/* `what` begins the message: the option's key. */
dlx_status dlxi_address_parse(dlxi_address *out, const char *text, const char *what,
                              dlx_error *error);
/* The same with a port that may be left out: 0. */
dlx_status dlxi_address_parse_listen(dlxi_address *out, const char *text, const char *what,
                                     dlx_error *error);

/* "host:port", with brackets around IPv6. dst always fits an address that dlxi_address_parse gave.
 */
void dlxi_address_format(char dst[DLXI_ENDPOINT_BYTES], const char *host, uint16_t port);

/* 127.0.0.0/8, ::1 or "localhost". Looks nothing up. */
bool dlxi_host_is_loopback(const char *host);
/* 0.0.0.0 or ::, every address of this machine. */
bool dlxi_host_is_any(const char *host);

/* If host names an interface of this machine, host ← its address, IPv4 before IPv6. CONFIG if it
 * has none that other machines can be given. */
dlx_status dlxi_address_of_interface(char host[DLXI_HOST_BYTES], const char *what,
                                     dlx_error *error);

/* The first address of host that this machine has (to bind to), and *own; or the first at all,
 * which another machine has. May block on DNS. CONFIG if the name leads to none. */
dlx_status dlxi_address_listen(char numeric[DLXI_NUMERIC_BYTES], bool *own, const char *host,
                               const char *what, dlx_error *error);
/* The first address of host that this machine has; CONFIG if it has none. */
dlx_status dlxi_address_own(char numeric[DLXI_NUMERIC_BYTES], const char *host, const char *what,
                            dlx_error *error);
/* The first address of host that this machine has a route to (to connect to); CONFIG if there is
 * none. */
dlx_status dlxi_address_remote(char numeric[DLXI_NUMERIC_BYTES], const char *host, const char *what,
                               dlx_error *error);
/* The address of this machine from which `remote`, a numeric address, is reached. */
dlx_status dlxi_address_towards(char numeric[DLXI_NUMERIC_BYTES], const char *remote,
                                dlx_error *error);

#endif
