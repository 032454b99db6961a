/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses: "host:port" and "[ipv6]:port" as people write them, and the numeric addresses behind
 * names. */
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

/* "host:port", with brackets around IPv6. dst always fits an address that dlxi_address_parse gave.
 */
void dlxi_address_format(char dst[DLXI_ENDPOINT_BYTES], const char *host, uint16_t port);

/* 127.0.0.0/8, ::1 or "localhost". Looks nothing up. */
bool dlxi_host_is_loopback(const char *host);

/* The first address of host that this machine has (to bind to); CONFIG if it has none. May block on
 * DNS. */
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
