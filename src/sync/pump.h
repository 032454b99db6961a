/* SPDX-License-Identifier: Apache-2.0 */
/* The exchange thread: moves frames between a link and the engine, and requests and outcomes
 * between the engine and the training thread. It decides nothing. */
#ifndef DLXI_SYNC_PUMP_H
#define DLXI_SYNC_PUMP_H

#include <pthread.h>

#include "link/link.h"
#include "sync/mailbox.h"

typedef struct dlxi_pump {
    dlxi_engine *engine;
    dlxi_link *link;
    dlxi_mailbox *mailbox;
    dlx_log log; /* may be NULL */
    void *log_context;
    pthread_t thread;
    bool started;
} dlxi_pump;

/* Borrows everything until dlxi_pump_join. The engine and the link are the thread's until then. */
dlx_status dlxi_pump_start(dlxi_pump *pump, dlx_error *error);
/* After a request that closes: waits until the engine's last messages are sent, 1 s at most. Takes
 * a pump that was not started. */
void dlxi_pump_join(dlxi_pump *pump);

#endif
