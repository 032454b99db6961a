/* SPDX-License-Identifier: Apache-2.0 */
/* Between the training thread and the exchange thread: one request and one outcome, each swapped
 * whole under one lock. What is in it has no owner until it is taken. */
#ifndef DLXI_SYNC_MAILBOX_H
#define DLXI_SYNC_MAILBOX_H

#include <pthread.h>

#include "sync/engine.h"

typedef struct dlxi_mailbox {
    pthread_mutex_t mutex;
    pthread_cond_t changed; /* an outcome arrived; monotonic clock */
    dlxi_request request;
    dlxi_outcome outcome;
    bool has_request, has_outcome;
    dlx_error failure; /* what ended the run first; status DLX_OK: nothing did */
} dlxi_mailbox;

dlx_status dlxi_mailbox_open(dlxi_mailbox *m, dlx_error *error);
/* Frees a report that was not taken; the caller closes a state that was not. */
void dlxi_mailbox_close(dlxi_mailbox *m);

/* Training thread. Adds to what was not taken yet; everything in `request` is handed over. */
void dlxi_mailbox_ask(dlxi_mailbox *m, const dlxi_request *request);
/* Training thread. False if no outcome arrives within wait_ms (0: does not wait). */
bool dlxi_mailbox_take(dlxi_mailbox *m, dlxi_outcome *outcome, int wait_ms);

/* Any thread. fail: unless the run has failed already. */
void dlxi_mailbox_fail(dlxi_mailbox *m, const dlx_error *why);
dlx_status dlxi_mailbox_failure(dlxi_mailbox *m, dlx_error *error);

/* Exchange thread. */
bool dlxi_mailbox_take_request(dlxi_mailbox *m, dlxi_request *request);
void dlxi_mailbox_give(dlxi_mailbox *m, const dlxi_outcome *outcome);

#endif
