#include "sync/coordinate.h"

#include "base/clock.h"

enum { TICK_MS = 100, LAST_WORDS_MS = 1000 };

static int64_t now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

/* Sends what can be sent; a peer that is gone loses what was for it. */
static void flush(dlxi_coordinate *c) {
    dlxi_outbox *outbox = dlxi_coordinator_outbox(c->machine);
    const dlxi_outbox_item *item;
    while ((item = dlxi_outbox_peek(outbox)) != NULL) {
        if (c->link->op->send(c->link, item->to, &item->frame, NULL) == DLX_AGAIN) return;
        dlxi_outbox_drop(outbox);
    }
}

dlx_status dlxi_coordinate_run(dlxi_coordinate *c, void (*on_report)(void *context, const char *site, const char *text),
                               void *context, dlx_error *error) {
    while (dlxi_coordinator_phase_of(c->machine) != DLXI_COORDINATOR_DONE) {
        flush(c);
        uint32_t peer;
        dlxi_frame frame;
        dlx_status status = c->link->op->receive(c->link, TICK_MS, &peer, &frame, error);
        if (c->interrupted || (c->interrupted_too != NULL && *c->interrupted_too))
            dlxi_coordinator_fail(c->machine, DLX_INTERRUPTED, NULL, "the coordinator was interrupted");
        else if (status == DLX_OK)
            dlxi_coordinator_on_frame(c->machine, peer, c->link->op->peer_name(c->link, peer),
                                      c->link->op->peer_key(c->link, peer), &frame, now_ms());
        else if (dlx_status_class_of(status) != DLX_CLASS_RETRY)
            dlxi_coordinator_fail(c->machine, status, NULL, "the coordinator's link failed");
        dlxi_coordinator_on_tick(c->machine, now_ms());
        char notice[512];
        if (dlxi_coordinator_take_notice(c->machine, notice, sizeof notice) && c->log != NULL)
            c->log(c->log_context, notice);
    }
    int64_t deadline_ms = now_ms() + LAST_WORDS_MS;
    for (flush(c); dlxi_outbox_peek(dlxi_coordinator_outbox(c->machine)) != NULL && now_ms() < deadline_ms; flush(c)) {
        uint32_t peer;
        dlxi_frame frame;
        (void)c->link->op->receive(c->link, 10, &peer, &frame, NULL);
    }
    const char *name, *text;
    for (uint16_t i = 0; on_report != NULL && i < DLXI_SITES_MAX; i++)
        if ((text = dlxi_coordinator_report(c->machine, i, &name)) != NULL) on_report(context, name, text);
    return dlxi_coordinator_result(c->machine, error);
}
