/* SPDX-License-Identifier: Apache-2.0 */
/* Limits of a run, common to all rooms, messages and options. */
#ifndef DLXI_BASE_LIMITS_H
#define DLXI_BASE_LIMITS_H

enum {
    DLXI_SITES_MAX = 64,
    DLXI_RANKS_MAX = 1024,     /* per site */
    DLXI_STAGES_MAX = 256,     /* per site */
    DLXI_THREADS_MAX = 1024,   /* per rank */
    DLXI_RUN_RANKS_MAX = 4096, /* of all sites */
    DLXI_SITE_NAME_MAX = 63,   /* characters; *_BYTES count the terminator too */
    DLXI_NAME_BYTES = DLXI_SITE_NAME_MAX + 1,
    DLXI_KEY_TEXT_MAX = 40, /* a CURVE key in Z85 */
    DLXI_KEY_TEXT_BYTES = DLXI_KEY_TEXT_MAX + 1,
    DLXI_ENDPOINT_MAX = 127,
    DLXI_ENDPOINT_BYTES = DLXI_ENDPOINT_MAX + 1,
    DLXI_REASON_MAX = 400,
    DLXI_TEXT_MAX = 65535, /* reports and shared settings */
    DLXI_LEASE_RANGES_MAX = 64
};

#endif
