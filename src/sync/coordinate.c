/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/coordinate.h"

#include "base/clock.h"
#include "base/flag.h"

enum { TICK_MS = 100, SHUTDOWN_MS = 1000, FRAMES_AT_ONCE = 1024 };

static int64_t now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

/* Messages for a lost peer are dropped. */
static bool item_send(void *context, const dlxi_outbox_item *item) {
    dlxi_coordinate *c = context;
    return c->link->op->send(c->link, item->to, &item->frame, NULL) != DLX_AGAIN;
}

static void machine_flush(dlxi_coordinate *c) {
    char line[512];
    while (dlxi_coordinator_pop_log(c->machine, line, sizeof line))
        if (c->log != NULL) c->log(c->log_context, line);
    dlxi_outbox_flush(dlxi_coordinator_outbox(c->machine), item_send, c);
}

/* Waits for a frame and takes all that have arrived, before silence is judged. */
static dlx_status frames_receive(dlxi_coordinate *c, dlx_error *error) {
    uint32_t peer;
    dlxi_frame frame;
    int64_t wait_ms = TICK_MS;
    for (int i = 0; i < FRAMES_AT_ONCE; i++) {
        dlx_status status = c->link->op->receive(c->link, wait_ms, &peer, &frame, error);
        if (status != DLX_OK)
            return dlx_status_class_of(status) == DLX_CLASS_RETRY ? DLX_OK : status;
        dlxi_coordinator_on_frame(c->machine, peer, c->link->op->peer_name(c->link, peer),
                                  c->link->op->peer_key(c->link, peer), &frame, now_ms());
        wait_ms = 0;
    }
    return DLX_OK;
}

static void begin_announce(dlxi_coordinate *c) {
    if (c->on_begin == NULL || !dlxi_coordinator_has_begun(c->machine)) return;
    dlx_error why = {.message = ""};
    dlx_status status = c->on_begin(c->begin_context, &why);
    c->on_begin = NULL;
    if (status != DLX_OK) dlxi_coordinator_fail(c->machine, status, NULL, "%s", why.message);
}

dlx_status dlxi_coordinate_run(dlxi_coordinate *c,
                               void (*on_report)(void *context, const char *site, const char *text),
                               void *context, dlx_error *error) {
    while (dlxi_coordinator_phase_of(c->machine) != DLXI_COORDINATOR_DONE) {
        machine_flush(c);
        dlx_status status = frames_receive(c, error);
        if (c->interrupted || dlxi_flag_is_set(c->interrupted_too))
            dlxi_coordinator_fail(c->machine, DLX_INTERRUPTED, NULL,
                                  "the coordinator was interrupted");
        else if (status != DLX_OK)
            dlxi_coordinator_fail(c->machine, status, NULL, "the coordinator's link failed");
        else
            begin_announce(c);
        dlxi_coordinator_on_tick(c->machine, now_ms());
    }
    int64_t deadline_ms = now_ms() + SHUTDOWN_MS;
    for (machine_flush(c);
         dlxi_outbox_peek(dlxi_coordinator_outbox(c->machine)) != NULL && now_ms() < deadline_ms;
         machine_flush(c)) {
        uint32_t peer;
        dlxi_frame frame;
        (void)c->link->op->receive(c->link, 10, &peer, &frame, NULL);
    }
    const char *name, *text;
    uint64_t round;
    for (uint16_t i = 0; c->on_drop != NULL && i < DLXI_SITES_MAX; i++)
        if (dlxi_coordinator_dropped(c->machine, i, &round, &name, &text))
            c->on_drop(c->drop_context, name, round, text);
    for (uint16_t i = 0; on_report != NULL && i < DLXI_SITES_MAX; i++)
        if ((text = dlxi_coordinator_report(c->machine, i, &name)) != NULL)
            on_report(context, name, text);
    return dlxi_coordinator_result(c->machine, error);
}
