/* SPDX-License-Identifier: Apache-2.0 */
/* Places: the machine and the file that a store was left in. A copy has another one. */
#ifndef DLXI_STORE_PLACE_H
#define DLXI_STORE_PLACE_H

#include "base/error.h"

enum { DLXI_HOST_BYTES = 256, DLXI_WHY_BYTES = 256 };

typedef struct dlxi_place {
    uint64_t machine;           /* XXH3 of /etc/machine-id, or else of the host name */
    char host[DLXI_HOST_BYTES]; /* for messages */
    uint64_t device, inode;
} dlxi_place;

/* *out ← this machine, and the file at path. DLX_SYSTEM if the file can't be examined. */
dlx_status dlxi_place_here(dlxi_place *out, const char *path, dlx_error *error);

/* Whether a store that was left at `left` and is now at `here` is the same file. If not, `why` gets
 * one sentence. */
bool dlxi_place_is_same(const dlxi_place *left, const dlxi_place *here, char why[DLXI_WHY_BYTES]);

#endif
