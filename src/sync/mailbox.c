/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/mailbox.h"

#include <stdlib.h>
#include <time.h>

#include "base/panic.h"

dlx_status dlxi_mailbox_open(dlxi_mailbox *m, dlx_error *error) {
    pthread_condattr_t monotonic;
    *m = (dlxi_mailbox){0};
    bool done = pthread_condattr_init(&monotonic) == 0 &&
                pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0 &&
                pthread_cond_init(&m->changed, &monotonic) == 0 &&
                pthread_mutex_init(&m->mutex, NULL) == 0;
    pthread_condattr_destroy(&monotonic);
    if (!done) DLX_FAIL(error, SYSTEM, "cannot create a mutex and a condition");
    return DLX_OK;
}

void dlxi_mailbox_close(dlxi_mailbox *m) {
    free(m->request.report);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->mutex);
}

void dlxi_mailbox_ask(dlxi_mailbox *m, const dlxi_request *r) {
    pthread_mutex_lock(&m->mutex);
    dlxi_request *all = &m->request;
    DLXI_ASSERT(r->state == NULL || all->state == NULL);
    DLXI_ASSERT(!r->submits || (r->state != NULL && !all->submits));
    if (r->state != NULL) all->state = r->state;
    if (r->submits) all->ready = r->ready;
    if (r->report != NULL) {
        all->report = r->report;
        all->parts = r->parts;
        all->part_count = r->part_count;
    }
    if (r->closes) all->why = r->why;
    all->submits = all->submits || r->submits;
    all->recalls = (all->recalls || r->recalls) && r->state == NULL;
    all->closes = all->closes || r->closes;
    m->has_request = true;
    pthread_mutex_unlock(&m->mutex);
}

bool dlxi_mailbox_take_request(dlxi_mailbox *m, dlxi_request *request) {
    pthread_mutex_lock(&m->mutex);
    bool any = m->has_request;
    if (any) {
        *request = m->request;
        m->request = (dlxi_request){0};
        m->has_request = false;
    }
    pthread_mutex_unlock(&m->mutex);
    return any;
}

/* At most one joined and one committed can wait: the training thread submits in between. */
void dlxi_mailbox_give(dlxi_mailbox *m, const dlxi_outcome *o) {
    pthread_mutex_lock(&m->mutex);
    dlxi_outcome old = m->outcome;
    DLXI_ASSERT(!(m->has_outcome && old.state != NULL && o->state != NULL));
    m->outcome = *o;
    if (m->has_outcome) {
        if (old.state != NULL) m->outcome.state = old.state;
        if (old.joined) {
            m->outcome.joined = true;
            m->outcome.join = old.join;
        }
        if (old.committed) {
            m->outcome.committed = true;
            m->outcome.round = old.round;
        }
    }
    m->has_outcome = true;
    if (o->ended && m->failure.status == DLX_OK) m->failure = o->failure;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->mutex);
}

bool dlxi_mailbox_take(dlxi_mailbox *m, dlxi_outcome *outcome, int wait_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + (int64_t)wait_ms * 1000000;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_mutex_lock(&m->mutex);
    while (!m->has_outcome && wait_ms > 0 &&
           pthread_cond_timedwait(&m->changed, &m->mutex, &until) == 0) {}
    bool any = m->has_outcome;
    if (any) {
        *outcome = m->outcome;
        m->outcome = (dlxi_outcome){0};
        m->has_outcome = false;
    }
    pthread_mutex_unlock(&m->mutex);
    return any;
}

void dlxi_mailbox_fail(dlxi_mailbox *m, const dlx_error *why) {
    pthread_mutex_lock(&m->mutex);
    if (m->failure.status == DLX_OK) m->failure = *why;
    pthread_mutex_unlock(&m->mutex);
}

dlx_status dlxi_mailbox_failure(dlxi_mailbox *m, dlx_error *error) {
    pthread_mutex_lock(&m->mutex);
    dlx_error failure = m->failure;
    pthread_mutex_unlock(&m->mutex);
    if (failure.status != DLX_OK && error != NULL) *error = failure;
    return failure.status;
}
