/* SPDX-License-Identifier: Apache-2.0 */
/* The numeric addresses behind names and interfaces. */
#ifndef DLXI_LINK_ADDRESS_H
#define DLXI_LINK_ADDRESS_H

#include "base/address.h"
#include "link/link.h"

enum { DLXI_NUMERIC_BYTES = 64 };

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
