/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as people write them: "host:port" and "[ipv6]:port". Looks nothing up. */
#ifndef DLXI_BASE_ADDRESS_H
#define DLXI_BASE_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/limits.h"

enum { DLXI_HOST_BYTES = 112 };

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

/* 127.0.0.0/8, ::1 or "localhost". */
bool dlxi_host_is_loopback(const char *host);
/* 0.0.0.0 or ::, every address of this machine. */
bool dlxi_host_is_any(const char *host);

#endif
