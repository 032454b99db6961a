/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/pump.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"

enum { TICK_MS = 100, FRAMES_AT_ONCE = 256, SHUTDOWN_MS = 1000 };

static int64_t now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

static dlx_status action_perform(dlxi_pump *p, dlxi_engine_action *a, dlx_error *error) {
    const dlxi_link_operations *op = p->link->op;
    switch (a->kind) {
    case DLXI_ENGINE_SEND:
        return op->send(p->link, a->peer, &a->frame, error);
    case DLXI_ENGINE_LISTEN:
        return op->listen(p->link, a->me, a->peer, a->name, a->public_key, a->endpoint, error);
    case DLXI_ENGINE_CONNECT:
        return op->connect(p->link, a->peer, a->endpoint, error);
    case DLXI_ENGINE_RECONNECT:
        return op->reconnect != NULL ? op->reconnect(p->link, a->peer, error) : DLX_OK;
    case DLXI_ENGINE_LOG:
        if (p->log != NULL) p->log(p->log_context, a->text);
        return DLX_OK;
    }
    return DLX_OK;
}

/* True if anything was done. */
static bool actions_perform(dlxi_pump *p) {
    dlxi_engine_action action;
    dlx_error error;
    bool any = false;
    for (; dlxi_engine_next(p->engine, &action, now_ms()); any = true)
        dlxi_engine_done(p->engine, &action, action_perform(p, &action, &error), &error);
    return any;
}

static void keepalive(void *context) {
    dlxi_pump *p = context;
    dlxi_engine_keep_alive(p->engine, now_ms());
    (void)actions_perform(p);
}

/* Takes what has arrived, before silence is judged; bounded, so that no peer holds this thread. */
static void frames_receive(dlxi_pump *p) {
    int64_t wait_ms = TICK_MS;
    for (int i = 0; i < FRAMES_AT_ONCE; i++) {
        uint32_t peer;
        dlxi_frame frame;
        dlx_error error;
        dlx_status status = p->link->op->receive(p->link, wait_ms, &peer, &frame, &error);
        wait_ms = 0;
        if (status == DLX_OK)
            dlxi_engine_on_frame(p->engine, peer, &frame, now_ms());
        else if (status == DLX_AGAIN)
            dlxi_engine_on_room(p->engine);
        else if (dlx_status_class_of(status) != DLX_CLASS_RETRY) {
            dlxi_engine_on_link_failure(p->engine, &error);
            (void)poll(NULL, 0, TICK_MS); /* until the training thread closes */
        }
        if (status != DLX_OK) return;
    }
}

static void *pump_run(void *context) {
    dlxi_pump *p = context;
    dlxi_outcome outcome;
    int64_t closing_ms = 0; /* since then; 0: not yet */
    dlxi_engine_set_keepalive(p->engine, keepalive, p);
    while (closing_ms == 0 ||
           (!dlxi_engine_is_over(p->engine) && now_ms() - closing_ms < SHUTDOWN_MS)) {
        dlxi_request request;
        if (dlxi_mailbox_take_request(p->mailbox, &request)) {
            dlxi_engine_on_request(p->engine, &request, now_ms());
            if (request.closes) closing_ms = now_ms();
        }
        do dlxi_engine_on_tick(p->engine, now_ms());
        while (actions_perform(p)); /* what was sent may have been all that a trip waited for */
        if (dlxi_engine_outcome(p->engine, &outcome)) dlxi_mailbox_give(p->mailbox, &outcome);
        if (closing_ms == 0 || !dlxi_engine_is_over(p->engine)) frames_receive(p);
    }
    if (dlxi_engine_outcome(p->engine, &outcome)) dlxi_mailbox_give(p->mailbox, &outcome);
    return NULL;
}

dlx_status dlxi_pump_start(dlxi_pump *p, dlx_error *error) {
    int failure = pthread_create(&p->thread, NULL, pump_run, p);
    if (failure != 0) {
        errno = failure;
        DLX_FAIL(error, SYSTEM,
                 "cannot start the exchange thread: %s; allow more threads (ulimit -u, pids.max)",
                 strerror(failure));
    }
    p->started = true;
    return DLX_OK;
}

void dlxi_pump_join(dlxi_pump *p) {
    if (p->started) pthread_join(p->thread, NULL);
    p->started = false;
}
