/* SPDX-License-Identifier: Apache-2.0 */
/* A coordinator, and ranks that spoil a run. It must not fail an assertion, send no message that is
 * malformed, and if it fails say why. */
#include "recorded_run.h"

static const run_settings runs[] = {
    {.sites = 1, .ranks = 1, .tensors = 1, .overlap = DLX_OVERLAP_NONE, .bits = 4},
    {.sites = 2,
     .ranks = 1,
     .tensors = 3,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 4,
     .elsewhere = true},
    {.sites = 2,
     .ranks = 2,
     .tensors = 1,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 4,
     .elsewhere = true},
    {.sites = 3, .ranks = 1, .tensors = 0, .overlap = DLX_OVERLAP_NONE, .bits = 4},
    {.sites = 2, .ranks = 1, .tensors = 3, .overlap = DLX_OVERLAP_NONE, .bits = 4, .lose = 7},
    {.sites = 2,
     .ranks = 2,
     .tensors = 2,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 4,
     .lose = 11,
     .fail = 25},
    {.sites = 3, .ranks = 1, .tensors = 3, .overlap = DLX_OVERLAP_NONE, .bits = 4, .late = 120},
    {.sites = 2,
     .ranks = 2,
     .tensors = 1,
     .overlap = DLX_OVERLAP_NONE,
     .bits = 4,
     .lose = 13,
     .late = 60},
};
enum { RUNS = sizeof runs / sizeof *runs };

/* One peer's messages wait. */
static bool item_take(void *context, const dlxi_outbox_item *item) {
    static dlxi_message message;
    const uint32_t *blocked = context;
    DLXI_ASSERT(dlxi_message_decode(&message, &item->frame, NULL) == DLX_OK);
    return item->to != *blocked;
}

static void turn(dlxi_coordinator *c, int64_t now_ms, uint32_t blocked) {
    char line[512];
    dlxi_coordinator_on_tick(c, now_ms);
    while (dlxi_coordinator_pop_log(c, line, sizeof line)) DLXI_ASSERT(line[0] != '\0');
    dlxi_outbox_flush(dlxi_coordinator_outbox(c), item_take, &blocked);
}

static void check_end(const dlxi_coordinator *c) {
    dlx_error error = {0};
    const char *name;
    if (dlxi_coordinator_phase_of(c) != DLXI_COORDINATOR_DONE) return;
    dlx_status status = dlxi_coordinator_result(c, &error);
    DLXI_ASSERT((status == DLX_OK) == (error.message[0] == '\0'));
    bool reported = false; /* whoever is present at the end */
    for (uint16_t i = 0; i < RUN_SITES_MAX; i++)
        reported = reported || dlxi_coordinator_report(c, i, &name) != NULL;
    DLXI_ASSERT(status != DLX_OK || reported);
}

/* The coordinator's next life, from what this one saved. */
static void live_on(dlxi_coordinator **c, const run_settings *s, uint32_t term, int64_t now_ms) {
    dlxi_saved saved;
    dlxi_coordinator_settings settings = run_coordinator_settings(s);
    DLXI_ASSERT(dlxi_coordinator_save(*c, &saved, NULL) == DLX_OK);
    dlxi_coordinator_close(c);
    settings.life_id = RUN_LIFE + term;
    DLXI_ASSERT(dlxi_coordinator_restore(c, &settings, saved.state, saved.state_bytes, now_ms,
                                         NULL) == DLX_OK);
    if (saved.record != NULL)
        DLXI_ASSERT(dlxi_coordinator_restore_record(*c, saved.record, saved.record_bytes, NULL) ==
                    DLX_OK);
    dlxi_saved_release(&saved);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const run_settings *s;
    if (bytes < 1) return 0;
    const recording *r = run_spoilt(data, bytes, runs, RUNS, true, &s);
    dlxi_coordinator *c = run_coordinator_open(s);
    int64_t now_ms = 0;
    uint32_t blocked = UINT32_MAX, lives = 0;
    for (size_t i = 0; i < r->count; i++) {
        const record *one = &r->records[i];
        if (one->event == RECORD_TURN) {
            turn(c, now_ms += one->frame.attempt % (2 * LONE_TIMEOUT_MS), blocked);
        } else if (one->event == RECORD_LINK) {
            blocked = one->peer;
        } else if (one->event == RECORD_FAILURE) {
            dlxi_coordinator_on_closed(c, one->peer, now_ms);
        } else if (one->event == RECORD_RECALL) {
            bool lives_on = dlxi_coordinator_has_begun(c) &&
                            dlxi_coordinator_phase_of(c) != DLXI_COORDINATOR_DONE;
            if (lives_on) live_on(&c, s, ++lives, now_ms);
        } else {
            dlxi_frame *copy = frame_copy(&one->frame);
            if (copy->term == 1 && copy->coordinator == RUN_LIFE) { /* ranks have heard of it */
                copy->term += lives;
                copy->coordinator += lives;
            }
            dlxi_coordinator_on_frame(c, one->peer, "", "key", copy, now_ms);
            free(copy);
        }
    }
    turn(c, now_ms, UINT32_MAX);
    check_end(c);
    dlxi_coordinator_close(&c);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    return run_seed(data, index, RUNS);
}
