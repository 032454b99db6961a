/* SPDX-License-Identifier: Apache-2.0 */
/* Moves the frames of D members of one AllReduce between them, in order within a directed pair and
 * otherwise in an order drawn from a seed, some in two parts; counts what each member sends. */
#ifndef DLXI_TEST_ALLREDUCE_MOVER_H
#define DLXI_TEST_ALLREDUCE_MOVER_H

#include "sync/allreduce.h"
#include "base/memory.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MEMBERS_MAX = 8, QUEUE_FRAMES = 256 };

typedef struct queue {
    dlxi_frame frames[QUEUE_FRAMES];
    size_t first, count;
} queue;

typedef struct mover {
    dlxi_allreduce *member[MEMBERS_MAX];
    queue queues[MEMBERS_MAX][MEMBERS_MAX]; /* [from][to] */
    uint32_t members;
    size_t payload_bytes[MEMBERS_MAX], frames[MEMBERS_MAX];
    float weights[MEMBERS_MAX];
    uint16_t sites[MEMBERS_MAX];
} mover;

static inline mover *mover_open(uint32_t members) {
    mover *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->members = members;
    float sum = 0.0f;
    for (uint32_t i = 0; i < members; i++) {
        assert_int_equal(dlxi_allreduce_open(&m->member[i], NULL), DLX_OK);
        m->weights[i] = (float)(i + 1);
        /* an index among sites is not a position among members */
        m->sites[i] = (uint16_t)(3 * i + 2);
        sum += m->weights[i];
    }
    for (uint32_t i = 0; i < members; i++) m->weights[i] /= sum;
    return m;
}

static inline void mover_close(mover *m) {
    for (uint32_t i = 0; i < m->members; i++) dlxi_allreduce_close(&m->member[i]);
    free(m);
}

static inline dlxi_allreduce_begin mover_settings(const mover *m, uint32_t me,
                                                  const dlxi_segment *segments,
                                                  size_t segment_count, dlxi_quantiser quantiser) {
    return (dlxi_allreduce_begin){.segments = segments,
                                  .segment_count = segment_count,
                                  .quantiser = quantiser,
                                  .members = m->members,
                                  .me = me,
                                  .weights = m->weights,
                                  .member_site = m->sites,
                                  .term = 5,
                                  .attempt = 2,
                                  .round = 77,
                                  .trip = 1,
                                  .rank = 3};
}

/* values: [members][stride]. Forgets frames under way and counts. */
static inline void mover_begin(mover *m, const dlxi_segment *segments, size_t segment_count,
                               dlxi_quantiser quantiser, const float *values, size_t stride) {
    memset(m->queues, 0, sizeof m->queues);
    for (uint32_t i = 0; i < m->members; i++) {
        dlxi_allreduce_begin settings = mover_settings(m, i, segments, segment_count, quantiser);
        assert_int_equal(
            dlxi_allreduce_begin_with(m->member[i], &settings, values + i * stride, NULL), DLX_OK);
        m->payload_bytes[i] = m->frames[i] = 0;
    }
}

static inline bool mover_done(const mover *m) {
    bool done = true;
    for (uint32_t i = 0; i < m->members; i++) done &= dlxi_allreduce_done(m->member[i]);
    return done;
}

/* Nothing is left to send, or on its way. */
static inline bool mover_over(const mover *m) {
    bool over = true;
    if (!mover_done(m)) return false;
    for (uint32_t i = 0; i < m->members; i++)
        for (uint32_t j = 0; j < m->members; j++) {
            dlxi_frame frame;
            over &= m->queues[i][j].count == 0 && !dlxi_allreduce_peek(m->member[i], j, &frame);
        }
    return over;
}

/* One random step: takes a frame from a member or gives one to a member, where the drawn pair has
 * one. */
static inline void mover_step(mover *m, uint64_t seed, uint64_t step) {
    uint64_t random = dlxi_rng_u64(seed, 0, step);
    uint32_t from = (uint32_t)(random % m->members), to = (uint32_t)(random / 256 % m->members);
    queue *q = &m->queues[from][to];
    dlxi_frame frame;
    if ((random >> 32 & 1) != 0) {
        if (q->count == QUEUE_FRAMES || !dlxi_allreduce_peek(m->member[from], to, &frame)) return;
        dlxi_allreduce_advance(m->member[from], to);
        q->frames[(q->first + q->count++) % QUEUE_FRAMES] = frame;
        m->payload_bytes[from] += frame.payload_bytes;
        m->frames[from]++;
        return;
    }
    if (q->count == 0) return;
    frame = q->frames[q->first];
    dlxi_frame *rest = &q->frames[q->first];
    uint32_t part = (uint32_t)(random >> 40) % frame.count_groups;
    if ((random >> 33 & 1) != 0 && part > 0) { /* as from a peer that cuts its frames elsewhere */
        uint32_t part_bytes = frame.payload_bytes / frame.count_groups * part;
        frame.count_groups = part;
        frame.payload_bytes = part_bytes;
        rest->offset_groups += part;
        rest->count_groups -= part;
        rest->payload_bytes -= part_bytes;
        rest->payload += part_bytes;
    } else {
        q->first = (q->first + 1) % QUEUE_FRAMES;
        q->count--;
    }
    dlx_error error;
    bool moved;
    dlx_status status = dlxi_allreduce_on_frame(m->member[to], from, &frame, &moved, &error);
    if (status != DLX_OK) fail_msg("%s", error.message);
    assert_true(moved);
}

static inline void mover_finish(mover *m, uint64_t seed) {
    const uint64_t steps_max = 10000000;
    uint64_t step = 0;
    while (!mover_over(m) && step < steps_max) mover_step(m, seed, step++);
    assert_true(mover_over(m));
}

#endif
