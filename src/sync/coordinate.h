/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator at work: its state machine, a link, and time. */
#ifndef DLXI_SYNC_COORDINATE_H
#define DLXI_SYNC_COORDINATE_H

#include "link/link.h"
#include "member/coordinator.h"

typedef struct dlxi_coordinate {
    dlxi_coordinator *machine;
    dlxi_link *link;
    _Atomic bool interrupted;
    dlx_log log; /* may be NULL */
    void *log_context;
    const volatile sig_atomic_t *interrupted_too; /* may be NULL: a signal handler's flag */
    /* as in dlx_coordinator_on_drop; NULL: none */
    void (*on_drop)(void *context, const char *site, uint64_t round, const char *why);
    void *drop_context;
    /* as in dlx_coordinator_on_begin; NULL: none, or called already */
    dlx_status (*on_begin)(void *context, dlx_error *error);
    void *begin_context;
} dlxi_coordinate;

/* Runs until the run is over, or interrupted; on_report as in dlx_coordinator_config. */
dlx_status dlxi_coordinate_run(dlxi_coordinate *c,
                               void (*on_report)(void *context, const char *site, const char *text),
                               void *context, dlx_error *error);

#endif
