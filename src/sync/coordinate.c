/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/coordinate.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/flag.h"

enum { TICK_MS = 100, SHUTDOWN_MS = 1000, FRAMES_AT_ONCE = 1024, LOST_AT_ONCE = 64 };

_Static_assert(DLXI_STORE_BYTES_MAX > (DLXI_SITES_MAX + 2) * (DLXI_TEXT_MAX + 16384),
               "a state with all reports fits");

static int64_t now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

/* Whether this call has waited for long enough, and is pending. */
static bool wait_is_over(dlxi_coordinate *c) {
    c->pending = now_ms() >= c->until_ms;
    return c->pending;
}

/* ms, or what is left of this call. */
static int64_t wait_at_most(const dlxi_coordinate *c, int64_t ms) {
    int64_t left_ms = c->until_ms - now_ms();
    if (left_ms < 0) left_ms = 0;
    return left_ms < ms ? left_ms : ms;
}

static dlx_status wait_again(dlx_error *error) {
    DLX_FAIL(error, AGAIN, "the run goes on; call dlx_coordinator_run again");
}

/* ---- the store ------------------------------------------------------------------------------- */

static dlx_status saved_write(dlxi_coordinate *c, dlxi_saved *saved, dlx_error *error) {
    bool durable = !c->has_saved || dlxi_coordinator_waits_for_disk(c->machine);
    c->has_saved = true;
    dlx_status status = dlxi_store_set_durable(c->store, durable, error);
    if (status == DLX_OK)
        status = dlxi_store_write(c->store, saved->state, saved->state_bytes, saved->round,
                                  saved->record, saved->record_bytes, error);
    dlxi_saved_release(saved);
    return status;
}

dlx_status dlxi_coordinate_save(dlxi_coordinate *c, dlx_error *error) {
    dlxi_saved saved;
    if (c->store_path == NULL || !dlxi_coordinator_is_unsaved(c->machine)) return DLX_OK;
    if (c->store == NULL && dlxi_coordinator_phase_of(c->machine) == DLXI_COORDINATOR_DONE)
        return DLX_OK; /* it failed before it had changed anything */
    if (c->store == NULL) DLX_TRY(dlxi_store_open(&c->store, c->store_path, error));
    DLX_TRY(dlxi_coordinator_save(c->machine, &saved, error));
    return saved_write(c, &saved, error);
}

/* Before the first state is durable no site trains: they are told, and end. */
static bool may_tell(const dlxi_coordinate *c) {
    return c->store_path != NULL && (c->store == NULL || dlxi_store_is_empty(c->store));
}

/* This coordinator stops, and the run does not. */
static dlx_status release(dlxi_coordinate *c, dlx_error *error) {
    DLX_TRY(dlxi_coordinate_save(c, error));
    DLX_TRY(dlxi_store_release(c->store, error));
    DLX_FAIL(error, INTERRUPTED,
             "the coordinator stopped at round %llu, and its sites wait for it (wan.orphan_s); go "
             "on with the same command, here or where '%.200s' is moved to",
             (unsigned long long)dlxi_coordinator_round(c->machine), c->store_path);
}

/* ---- what arrives ---------------------------------------------------------------------------- */

static bool interrupt_is_asked(const dlxi_coordinate *c) {
    return c->interrupted || dlxi_flag_is_set(c->interrupted_too);
}

static bool release_is_asked(const dlxi_coordinate *c) {
    return c->released || dlxi_flag_is_set(c->released_too);
}

/* By the machine that is there: a takeover, until it is done. */
static void frame_take(dlxi_coordinate *c, uint32_t peer, const dlxi_frame *frame) {
    const char *name = c->link->op->peer_name(c->link, peer);
    if (c->takeover != NULL)
        dlxi_takeover_on_frame(c->takeover, peer, name, frame, now_ms());
    else
        dlxi_coordinator_on_frame(c->machine, peer, name, c->link->op->peer_key(c->link, peer),
                                  frame, now_ms());
}

/* Waits for a frame and takes all that have arrived, before silence is judged. */
static dlx_status frames_receive(dlxi_coordinate *c, dlx_error *error) {
    uint32_t peer;
    dlxi_frame frame;
    int64_t wait_ms = wait_at_most(c, TICK_MS);
    for (int i = 0; i < FRAMES_AT_ONCE; i++) {
        dlx_status status = c->link->op->receive(c->link, wait_ms, &peer, &frame, error);
        if (status != DLX_OK)
            return dlx_status_class_of(status) == DLX_CLASS_RETRY ? DLX_OK : status;
        frame_take(c, peer, &frame);
        wait_ms = 0;
    }
    return DLX_OK;
}

static void log_flush(dlxi_coordinate *c) {
    char line[512];
    dlxi_log_ring_deliver(c->others);
    while (c->takeover != NULL ? dlxi_takeover_pop_log(c->takeover, line, sizeof line)
                               : dlxi_coordinator_pop_log(c->machine, line, sizeof line))
        if (c->log != NULL) c->log(c->log_context, line);
}

/* ---- taking over ----------------------------------------------------------------------------- */

/* To a peer that does not take it, it is sent again. */
static bool claim_send(void *context, const dlxi_outbox_item *item) {
    dlxi_coordinate *c = context;
    return c->link->op->send(c->link, item->to, &item->frame, NULL) != DLX_AGAIN;
}

static void begin_announce(dlxi_coordinate *c) {
    if (c->on_begin == NULL || !dlxi_coordinator_has_begun(c->machine)) return;
    dlx_error why = {.message = ""};
    dlx_status status = c->on_begin(c->begin_context, &why);
    c->on_begin = NULL;
    if (status != DLX_OK) dlxi_coordinator_fail(c->machine, status, NULL, "%s", why.message);
}

/* The file of another history stays beside the new one; none is overwritten. */
static dlx_status store_replace(dlxi_coordinate *c, dlx_error *error) {
    char aside[DLXI_PATH_BYTES];
    bool keep = c->store != NULL && !dlxi_store_is_empty(c->store);
    dlxi_store_close(&c->store);
    return keep ? dlxi_file_put_aside(aside, c->store_path, error) : DLX_OK;
}

/* The records that the copy has, for sites that are behind: of the last rounds, without a gap. */
static dlx_status records_save(dlxi_coordinate *c, dlx_error *error) {
    dlxi_saved saved;
    DLX_TRY(dlxi_coordinate_save(c, error));
    for (uint64_t round = dlxi_coordinator_round(c->machine) - 1; --round > 0;) {
        DLX_TRY(dlxi_coordinator_save_round(c->machine, round, &saved, error));
        bool last = saved.record == NULL;
        DLX_TRY(saved_write(c, &saved, error));
        if (last) break;
    }
    return DLX_OK;
}

static dlx_status takeover_wait(dlxi_coordinate *c, dlx_error *error) {
    while (!dlxi_takeover_is_done(c->takeover)) {
        log_flush(c);
        dlxi_outbox_flush(dlxi_takeover_outbox(c->takeover), claim_send, c);
        DLX_TRY(frames_receive(c, error));
        dlxi_takeover_on_tick(c->takeover, now_ms());
        if (interrupt_is_asked(c) || release_is_asked(c))
            DLX_FAIL(error, INTERRUPTED, "the takeover was interrupted");
        if (!dlxi_takeover_is_done(c->takeover) && wait_is_over(c)) return wait_again(error);
    }
    log_flush(c);
    return dlxi_takeover_result(c->takeover, &c->machine, error);
}

/* The state is on the disk before anything is sent as the run's coordinator. If this fails, no site
 * is told. */
static dlx_status takeover_begin(dlxi_coordinate *c, dlx_error *error) {
    dlxi_coordinator_set_endpoint(c->machine, c->endpoint);
    begin_announce(c);
    if (dlxi_coordinator_phase_of(c->machine) == DLXI_COORDINATOR_DONE)
        return dlxi_coordinator_result(c->machine, error);
    DLX_TRY(store_replace(c, error));
    return records_save(c, error);
}

static dlx_status takeover_run(dlxi_coordinate *c, dlx_error *error) {
    dlx_status status = takeover_wait(c, error);
    if (c->pending) return status;
    bool claimed = dlxi_takeover_has_claimed(c->takeover);
    dlxi_takeover_close(&c->takeover);
    if (status == DLX_OK) status = takeover_begin(c, error);
    if (status != DLX_OK && claimed)
        dlxi_error_prefix(error, "start --takeover again, since sites wait for it now: ");
    return status;
}

/* ---- the machine ----------------------------------------------------------------------------- */

typedef struct sending {
    dlxi_coordinate *c;
    uint32_t lost[LOST_AT_ONCE]; /* peers */
    int lost_count;
} sending;

/* Messages for a lost peer are dropped. */
static bool item_send(void *context, const dlxi_outbox_item *item) {
    sending *s = context;
    dlx_status status = s->c->link->op->send(s->c->link, item->to, &item->frame, NULL);
    bool known = s->lost_count > 0 && s->lost[s->lost_count - 1] == item->to;
    if (status == DLX_PEER_LOST && !known && s->lost_count < LOST_AT_ONCE)
        s->lost[s->lost_count++] = item->to;
    return status != DLX_AGAIN;
}

static dlx_status machine_flush(sending *s, dlx_error *error) {
    dlxi_coordinate *c = s->c;
    s->lost_count = 0;
    log_flush(c);
    DLX_TRY(dlxi_coordinate_save(c, error));
    dlxi_outbox_flush(dlxi_coordinator_outbox(c->machine), item_send, s);
    return DLX_OK;
}

/* After all that has arrived: a peer may have said why it leaves. */
static void lost_take(const sending *s) {
    for (int i = 0; i < s->lost_count; i++)
        dlxi_coordinator_on_closed(s->c->machine, s->lost[i], now_ms());
}

/* Before there is a store nothing could go on. */
static bool is_interrupted(const dlxi_coordinate *c) {
    return interrupt_is_asked(c) || (release_is_asked(c) && c->store == NULL);
}

static bool is_released(const dlxi_coordinate *c) {
    return release_is_asked(c) && c->store != NULL &&
           dlxi_coordinator_phase_of(c->machine) != DLXI_COORDINATOR_DONE;
}

static void first_save_fail(dlxi_coordinate *c, dlx_status status, const dlx_error *why) {
    dlxi_outbox_clear(dlxi_coordinator_outbox(c->machine));
    dlxi_store_close(&c->store);
    c->store_path = NULL;
    dlxi_coordinator_fail(c->machine, status, NULL, "the coordinator's store: %s", why->message);
}

/* What tells the sites how the run ended. */
static dlx_status last_send(sending *s, dlx_error *error) {
    dlxi_coordinate *c = s->c;
    dlxi_outbox *outbox = dlxi_coordinator_outbox(c->machine);
    if (c->sending_until_ms == 0) c->sending_until_ms = now_ms() + SHUTDOWN_MS;
    for (;;) {
        uint32_t peer;
        dlxi_frame frame;
        DLX_TRY(machine_flush(s, error));
        if (dlxi_outbox_peek(outbox) == NULL || now_ms() >= c->sending_until_ms) return DLX_OK;
        if (wait_is_over(c)) return wait_again(error);
        (void)c->link->op->receive(c->link, wait_at_most(c, 10), &peer, &frame, NULL);
    }
}

dlx_status dlxi_coordinate_run(dlxi_coordinate *c,
                               void (*on_report)(void *context, const char *site, const char *text),
                               void *context, dlx_error *error) {
    sending s = {.c = c};
    c->pending = false;
    c->until_ms = c->wait_ms == 0 ? INT64_MAX : now_ms() + c->wait_ms;
    if (c->takeover != NULL) DLX_TRY(takeover_run(c, error));
    while (dlxi_coordinator_phase_of(c->machine) != DLXI_COORDINATOR_DONE) {
        dlx_status status = machine_flush(&s, error);
        if (status != DLX_OK && !may_tell(c)) return status;
        if (status != DLX_OK) {
            first_save_fail(c, status, error);
            break;
        }
        status = frames_receive(c, error);
        lost_take(&s);
        if (is_interrupted(c))
            dlxi_coordinator_fail(c->machine, DLX_INTERRUPTED, NULL,
                                  "the coordinator was interrupted");
        else if (status != DLX_OK)
            dlxi_coordinator_fail(c->machine, status, NULL, "the coordinator's link failed");
        else
            begin_announce(c);
        dlxi_coordinator_on_tick(c->machine, now_ms());
        if (is_released(c)) return release(c, error);
        if (wait_is_over(c)) return wait_again(error);
    }
    DLX_TRY(last_send(&s, error));
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
