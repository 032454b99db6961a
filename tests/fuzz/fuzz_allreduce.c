/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes one member of an AllReduce with frames from the others: what it refuses changes nothing,
 * what it accepts is finite, comes once and is no more than a block, and a finished exchange is
 * finite.
 *
 * Input: 4 bytes (members, me, bits, layout), then frames of 20 bytes and a payload each:
 *   0 u8 kind, 0 contribution or 1 result   1 u8 from   2 u16 payload bytes   4 u32 tensor
 *   8 u32 offset_groups   12 u32 count_groups
 *   16 u32, which is added to term, round, attempt, trip, site and rank
 */
#include "replay.h"

#include "sync/allreduce.h"
#include "base/hash.h"
#include "base/panic.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

enum {
    SETTINGS_BYTES = 4,
    RECORD_BYTES = 20,
    MEMBERS_MAX = 8,
    GROUPS_MAX = 16,
    GROUP = 2,
    VALUES_MAX = GROUPS_MAX * GROUP
};

static const dlxi_segment first[] = {{3, 5}, {4, 1}, {70000, 10}}, second[] = {{0, 1}},
                          third[] = {{1, 1}, {2, 1}, {9, 7}};
static const struct {
    const dlxi_segment *segments;
    size_t count;
} layouts[] = {{first, 3}, {second, 1}, {third, 3}};

static uint32_t get(const uint8_t *src, int bytes) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint32_t)src[i] << (8 * i);
    return value;
}

static void put(uint8_t *dst, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++) dst[i] = (uint8_t)(value >> (8 * i));
}

static dlxi_quantiser quantiser_of(const uint8_t *settings) {
    static const int bits[] = {4, 8, 16, 32};
    return (dlxi_quantiser){.bits = bits[settings[2] % 4], .group = GROUP};
}

/* Every bit pattern of the four setting bytes means something. */
static dlxi_allreduce *open_member(const uint8_t *settings, uint32_t me) {
    static const uint16_t sites[MEMBERS_MAX] = {1, 2, 3, 5, 8, 13, 21, 34};
    uint32_t members = settings[0] % MEMBERS_MAX + 1u;
    float weights[MEMBERS_MAX], values[VALUES_MAX];
    for (uint32_t m = 0; m < members; m++) weights[m] = 1.0f / (float)members;
    for (uint64_t i = 0; i < VALUES_MAX; i++) values[i] = dlxi_rng_normal(1, me, i);
    size_t layout = settings[3] % (sizeof layouts / sizeof *layouts);
    dlxi_allreduce_begin begin = {.segments = layouts[layout].segments,
                                  .segment_count = layouts[layout].count,
                                  .quantiser = quantiser_of(settings),
                                  .members = members,
                                  .me = me,
                                  .weights = weights,
                                  .member_site = sites,
                                  .term = 1,
                                  .round = 1,
                                  .attempt = 1,
                                  .trip = 1,
                                  .rank = 1};
    dlxi_allreduce *a = NULL;
    DLXI_ASSERT(dlxi_allreduce_open(&a, NULL) == DLX_OK);
    DLXI_ASSERT(dlxi_allreduce_begin_with(a, &begin, values, NULL) == DLX_OK);
    return a;
}

/* A hash of all that can be seen from outside. */
static uint64_t observe(dlxi_allreduce *a, uint32_t members) {
    uint64_t hash = dlxi_allreduce_done(a);
    for (uint32_t to = 0; to < members; to++) {
        dlxi_frame frame;
        uint32_t seen[5] = {to, 0, 0, 0, 0};
        if (dlxi_allreduce_peek(a, to, &frame)) {
            seen[1] = (uint32_t)frame.kind, seen[2] = frame.tensor;
            seen[3] = frame.offset_groups, seen[4] = frame.count_groups;
            hash = dlxi_hash(frame.payload, frame.payload_bytes, hash);
        }
        hash = dlxi_hash(seen, sizeof seen, hash);
    }
    return hash;
}

static void check_finished(dlxi_allreduce *a) {
    float values[VALUES_MAX] = {0.0f};
    dlxi_allreduce_result(a, values);
    for (size_t i = 0; i < VALUES_MAX; i++) DLXI_ASSERT(isfinite(values[i]));
    dlxi_allreduce_own(a, values);
    dlxi_allreduce_add_residual(a, values, 1.0f);
    (void)dlxi_allreduce_hash(a);
}

static const dlxi_frame *read_record(dlxi_frame *frame, const uint8_t *record) {
    static const uint16_t sites[MEMBERS_MAX] = {1, 2, 3, 5, 8, 13, 21, 34};
    uint32_t other = get(record + 16, 4);
    *frame = (dlxi_frame){.kind = record[0] == 0   ? DLXI_FRAME_CONTRIBUTION
                                  : record[0] == 1 ? DLXI_FRAME_RESULT
                                                   : DLXI_FRAME_ANCHOR,
                          .term = 1 + (other & 3),
                          .round = 1 + (other >> 2 & 3),
                          .attempt = 1 + (other >> 4 & 3),
                          .trip = (uint16_t)(1 + (other >> 6 & 3)),
                          .site = (uint16_t)(sites[record[1] % MEMBERS_MAX] + (other >> 8 & 3)),
                          .rank = (uint16_t)(1 + (other >> 10 & 3)),
                          .tensor = get(record + 4, 4),
                          .offset_groups = get(record + 8, 4),
                          .count_groups = get(record + 12, 4),
                          .payload_bytes = get(record + 2, 2),
                          .payload = record + RECORD_BYTES};
    return frame;
}

static void take_frames(dlxi_allreduce *a, uint32_t members, uint32_t to_take) {
    dlxi_frame frame;
    for (uint32_t to = 0; to < members; to++)
        for (uint32_t i = 0; i < to_take && dlxi_allreduce_peek(a, to, &frame); i++)
            dlxi_allreduce_advance(a, to);
}

/* blocks[m] ← groups that member m owns, as seen in what is sent to it; the rest is the member's
 * own. */
static void measure_blocks(uint64_t blocks[MEMBERS_MAX], const uint8_t *settings, uint32_t members,
                           uint32_t me) {
    dlxi_allreduce *a = open_member(settings, me);
    size_t layout = settings[3] % (sizeof layouts / sizeof *layouts);
    dlxi_frame frame;
    blocks[me] = 0;
    for (size_t s = 0; s < layouts[layout].count; s++)
        blocks[me] += layouts[layout].segments[s].groups;
    for (uint32_t to = 0; to < members; to++) {
        if (to == me) continue;
        blocks[to] = 0;
        for (; dlxi_allreduce_peek(a, to, &frame) && frame.kind == DLXI_FRAME_CONTRIBUTION;
             dlxi_allreduce_advance(a, to))
            blocks[to] += frame.count_groups;
        blocks[me] -= blocks[to];
    }
    dlxi_allreduce_close(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes < SETTINGS_BYTES) return 0;
    uint32_t members = data[0] % MEMBERS_MAX + 1u, me = data[1] % members;
    uint64_t blocks[MEMBERS_MAX], accepted[2][MEMBERS_MAX] = {{0}};
    measure_blocks(blocks, data, members, me);
    dlxi_allreduce *a = open_member(data, me);
    for (size_t at = SETTINGS_BYTES; bytes - at >= RECORD_BYTES;) {
        dlxi_frame frame;
        dlx_error error;
        read_record(&frame, data + at);
        /* a frame's length is the link's to check */
        if (frame.payload_bytes > bytes - at - RECORD_BYTES) break;
        uint64_t before = observe(a, members);
        bool moved = true;
        dlx_status status = dlxi_allreduce_on_frame(a, data[at + 1], &frame, &moved, &error);
        DLXI_ASSERT(status == DLX_OK || status == DLX_DATA || status == DLX_NUMERIC ||
                    status == DLX_PEER_LOST);
        if (status != DLX_OK)
            DLXI_ASSERT(observe(a, members) == before && error.message[0] != '\0');
        if (!moved) DLXI_ASSERT(observe(a, members) == before);
        if (status == DLX_OK && moved) {
            uint32_t from = data[at + 1];
            bool result = frame.kind == DLXI_FRAME_RESULT;
            accepted[result][from] += frame.count_groups;
            DLXI_ASSERT(accepted[result][from] <= blocks[result ? from : me]);
            DLXI_ASSERT(dlxi_codes_valid(frame.payload, frame.count_groups, quantiser_of(data)));
            DLXI_ASSERT(dlxi_allreduce_on_frame(a, from, &frame, &moved, &error) == DLX_OK &&
                        !moved);
        }
        take_frames(a, members, 1);
        if (status == DLX_PEER_LOST) /* as if the other side had lost frames, too */
            dlxi_allreduce_go_back(a, data[at + 1], frame.offset_groups);
        at += RECORD_BYTES + frame.payload_bytes;
    }
    take_frames(a, members, UINT32_MAX);
    if (dlxi_allreduce_done(a)) check_finished(a);
    dlxi_allreduce_close(&a);
    return 0;
}

/* ---- seeds: what one member receives in a whole exchange ------------------------------------- */

static size_t record(uint8_t *dst, uint32_t from, const dlxi_frame *frame) {
    dst[0] = frame->kind == DLXI_FRAME_RESULT;
    dst[1] = (uint8_t)from;
    put(dst + 2, frame->payload_bytes, 2);
    put(dst + 4, frame->tensor, 4);
    put(dst + 8, frame->offset_groups, 4);
    put(dst + 12, frame->count_groups, 4);
    put(dst + 16, 0, 4);
    memcpy(dst + RECORD_BYTES, frame->payload, frame->payload_bytes);
    return RECORD_BYTES + frame->payload_bytes;
}

/* Before the frame that is right, three that nearly are: one group too long, not finite, and far
 * away. */
static size_t record_with_twins(uint8_t *dst, uint32_t from, const dlxi_frame *frame) {
    enum { PAYLOAD_MAX = GROUPS_MAX * GROUP * 4 };
    uint8_t payload[2 * PAYLOAD_MAX] = {0};
    uint32_t group_bytes = frame->payload_bytes / frame->count_groups;
    dlxi_frame twin = *frame;
    memcpy(payload, frame->payload, frame->payload_bytes);
    twin.payload = payload;
    twin.count_groups++;
    twin.payload_bytes += group_bytes;
    size_t bytes = record(dst, from, &twin);
    twin = *frame;
    twin.payload = payload;
    payload[frame->payload_bytes - 1] = 0x7F;
    payload[frame->payload_bytes - 2] |= 0x80;
    bytes += record(dst + bytes, from, &twin);
    twin = *frame;
    twin.offset_groups -= 8;
    bytes += record(dst + bytes, from, &twin);
    return bytes + record(dst + bytes, from, frame);
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const uint8_t seeds[][SETTINGS_BYTES] = {{1, 0, 0, 0}, {2, 1, 0, 0}, {2, 2, 3, 2},
                                                    {4, 0, 2, 1}, {7, 3, 1, 0}, {7, 7, 0, 2},
                                                    {0, 0, 0, 1}};
    if (index >= (int)(sizeof seeds / sizeof *seeds)) return 0;
    memcpy(data, seeds[index], SETTINGS_BYTES);
    uint32_t members = data[0] + 1u, me = data[1];
    size_t bytes = SETTINGS_BYTES;
    dlxi_allreduce *all[MEMBERS_MAX] = {NULL};
    for (uint32_t m = 0; m < members; m++) all[m] = open_member(data, m);
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t pair = 0; pair < members * members; pair++) {
            uint32_t from = pair / members, to = pair % members;
            dlxi_frame frame;
            if (!dlxi_allreduce_peek(all[from], to, &frame)) continue;
            if (to == me) bytes += record_with_twins(data + bytes, from, &frame);
            bool taken;
            DLXI_ASSERT(dlxi_allreduce_on_frame(all[to], from, &frame, &taken, NULL) == DLX_OK);
            dlxi_allreduce_advance(all[from], to);
            moved = true;
        }
    }
    for (uint32_t m = 0; m < members; m++) {
        DLXI_ASSERT(dlxi_allreduce_done(all[m]));
        dlxi_allreduce_close(&all[m]);
    }
    return bytes;
}
