/* SPDX-License-Identifier: Apache-2.0 */
/* A coordinator that takes a run over, and ranks that say anything, with copies of the state that
 * are spoilt. It must not fail an assertion, send no message that is malformed, and if it fails say
 * why; what it took over must go on as well. */
#include "member/takeover.h"
#include "recorded_run.h"

static const run_settings run_of_copies = {
    .sites = 2, .ranks = 2, .tensors = 1, .overlap = DLX_OVERLAP_NONE, .bits = 4, .late = 60};

enum { COPIES = 4, OPERATION_BYTES = 6, EDIT = 3, TAKEOVER_LIFE = 5, RUN = 9 };

static struct {
    dlxi_copy copy;
    uint8_t data[DLXI_COPY_MAX];
} copies[COPIES];
static size_t copy_count;

static bool copy_take(void *context, const dlxi_outbox_item *item) {
    static dlxi_message message;
    (void)context;
    DLXI_ASSERT(dlxi_message_decode(&message, &item->frame, NULL) == DLX_OK);
    const dlxi_copy *copy = &message.as.commit.copy;
    bool first = message.kind == DLXI_FRAME_COMMIT && copy_count < COPIES &&
                 (copy_count == 0 || copies[copy_count - 1].copy.round < copy->round);
    if (!first) return true;
    DLXI_ASSERT(copy->bytes > 0);
    copies[copy_count].copy = *copy;
    memcpy(copies[copy_count].data, copy->data, copy->bytes);
    copies[copy_count].copy.data = copies[copy_count].data;
    copy_count++;
    return true;
}

/* Those of an honest run. */
static void copies_make(void) {
    static recording r;
    int64_t now_ms = 0;
    run_record(&r, &run_of_copies, true);
    dlxi_coordinator_settings settings = run_coordinator_settings(&run_of_copies);
    dlxi_coordinator *c;
    settings.run_id = RUN;
    DLXI_ASSERT(dlxi_coordinator_open(&c, &settings, 0, NULL) == DLX_OK);
    for (size_t i = 0; i < r.count; i++) {
        const record *one = &r.records[i];
        if (one->event == RECORD_TURN)
            dlxi_coordinator_on_tick(c, now_ms += one->frame.attempt);
        else if (one->event == RECORD_FRAME)
            dlxi_coordinator_on_frame(c, one->peer, "", "key", &one->frame, now_ms);
        dlxi_outbox_flush(dlxi_coordinator_outbox(c), copy_take, NULL);
    }
    dlxi_coordinator_close(&c);
    DLXI_ASSERT(copy_count > 1);
}

static bool item_take(void *context, const dlxi_outbox_item *item) {
    static dlxi_message message;
    uint32_t *claimed = context;
    DLXI_ASSERT(dlxi_message_decode(&message, &item->frame, NULL) == DLX_OK);
    if (claimed != NULL && item->frame.term > 0) *claimed = item->frame.term;
    return true;
}

/* What was taken over, with nobody there. */
static void go_on(dlxi_coordinator *c, int64_t now_ms) {
    dlxi_saved saved;
    DLXI_ASSERT(dlxi_coordinator_save(c, &saved, NULL) == DLX_OK);
    dlxi_saved_release(&saved);
    for (int ticks = 0; dlxi_coordinator_phase_of(c) != DLXI_COORDINATOR_DONE; ticks++) {
        DLXI_ASSERT(ticks < 200);
        dlxi_coordinator_on_tick(c, now_ms += 500);
        dlxi_outbox_flush(dlxi_coordinator_outbox(c), item_take, NULL);
    }
}

/* A rank's words: of the run or not, in the term that is claimed or another one. */
static void frame_say(dlxi_takeover *t, const uint8_t *data, size_t *at, size_t bytes,
                      uint32_t claimed, int64_t now_ms) {
    static dlxi_outbox out;
    static uint8_t spoilt[DLXI_COPY_MAX];
    const uint8_t *one = data + *at - OPERATION_BYTES;
    dlxi_copy copy = copies[one[2] % copy_count].copy;
    memcpy(spoilt, copy.data, copy.bytes);
    for (int edits = one[5] & 3; edits > 0 && bytes - *at >= EDIT; edits--, *at += EDIT) {
        size_t place = (size_t)(data[*at] + 256 * data[*at + 1]) % (copy.bytes + 8);
        if (place < copy.bytes)
            spoilt[place] = data[*at + 2];
        else if (place == copy.bytes)
            copy.bytes -= data[*at + 2] < copy.bytes ? data[*at + 2] : 0;
        else if (place == copy.bytes + 1)
            copy.round += data[*at + 2];
        else
            copy.term += data[*at + 2];
    }
    copy.data = spoilt;
    if ((one[5] & 4) != 0) copy.bytes = 0;
    bool promised = (one[5] & 8) != 0, wrong = (one[5] & 16) != 0;
    dlxi_frame header = {.term = promised ? claimed : 1,
                         .coordinator = promised ? TAKEOVER_LIFE : RUN_LIFE,
                         .round = copy.round + 1 + ((one[5] & 32) != 0),
                         .site = one[1] % 4,
                         .rank = one[1] / 4 % 3};
    if (one[0] % 4 == 0) {
        out.scratch.kind = DLXI_FRAME_PING;
        out.scratch.as.ping = (dlxi_ping){.run_id = RUN + wrong};
    } else {
        out.scratch.kind = DLXI_FRAME_POSITION;
        out.scratch.as.position = (dlxi_position){
            .run_id = RUN + wrong, .hears = (one[5] & 64) != 0, .view = one[3], .copy = copy};
    }
    DLXI_ASSERT(dlxi_outbox_put(&out, 0, header, &out.scratch, NULL) == DLX_OK);
    dlxi_takeover_on_frame(t, one[1], (one[5] & 128) != 0 ? "stranger" : "",
                           &dlxi_outbox_peek(&out)->frame, now_ms);
    dlxi_outbox_clear(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char *const without[] = {NULL, "", "b", "a,b", ",", "c", "b,"};
    dlxi_takeover *t;
    dlxi_coordinator *c;
    dlx_error error = {0};
    char line[512];
    int64_t now_ms = 0;
    uint32_t claimed = 0;
    if (copy_count == 0) copies_make();
    if (bytes < 1) return 0;
    dlxi_takeover_settings settings = {.run = run_coordinator_settings(&run_of_copies),
                                       .without = without[data[0] % 7]};
    settings.run.life_id = TAKEOVER_LIFE;
    DLXI_ASSERT(dlxi_takeover_open(&t, &settings, now_ms, NULL) == DLX_OK);
    for (size_t at = 1; bytes - at >= OPERATION_BYTES;) {
        const uint8_t *one = data + at;
        at += OPERATION_BYTES;
        if (one[0] % 4 == 3)
            now_ms += one[3];
        else
            frame_say(t, data, &at, bytes, claimed, now_ms);
        dlxi_takeover_on_tick(t, now_ms);
        while (dlxi_takeover_pop_log(t, line, sizeof line)) DLXI_ASSERT(line[0] != '\0');
        dlxi_outbox_flush(dlxi_takeover_outbox(t), item_take, &claimed);
    }
    bool done = dlxi_takeover_is_done(t);
    dlx_status status = done ? dlxi_takeover_result(t, &c, &error) : DLX_AGAIN;
    DLXI_ASSERT(!done || (status == DLX_OK) == (error.message[0] == '\0'));
    if (status == DLX_OK) go_on(c, now_ms);
    if (status == DLX_OK) dlxi_coordinator_close(&c);
    dlxi_takeover_close(&t);
    return 0;
}

/* All ranks answer with the newest copy, and then promise. */
size_t fuzz_seed(uint8_t *data, int index) {
    enum { RANKS = 4, SEEDS = 3 };
    size_t at = 0;
    if (index >= SEEDS) return 0;
    data[at++] = (uint8_t)(2 * index); /* without */
    for (int turn = 0; turn < 3; turn++) {
        for (uint8_t i = 0; i < RANKS; i++) {
            const uint8_t who = (uint8_t)(i % 2 + i / 2 * 4);
            const uint8_t says[OPERATION_BYTES] = {(uint8_t)(turn > 0),  who, 3, 3, 0,
                                                   turn == 2 ? 4 + 8 : 0};
            memcpy(data + at, says, sizeof says);
            at += sizeof says;
        }
        const uint8_t waits[OPERATION_BYTES] = {3, 0, 0, 200};
        for (int i = 0; i < 4; i++, at += sizeof waits) memcpy(data + at, waits, sizeof waits);
    }
    return at;
}
