/* SPDX-License-Identifier: Apache-2.0 */
/* What an exchange costs: bytes at the link against 2·C·(D−1)/D a round. */
#include "in_process.h"

#include "wire/frame.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

enum { ROWS = 384, COLS = 512, BIAS = 300, VALUES = ROWS * COLS + BIAS, ROUNDS = 4 };

typedef struct model {
    float *p;
    dlx_tensor tensors[2];
    uint64_t sent_at_the_end; /* when the last step said `finished`, before the report */
} model;

static void inner_step(in_process_site *site, uint64_t step) {
    model *m = site->context;
    for (int k = 0; k < VALUES; k++)
        m->p[k] += 1e-3f * (float)((k * 31 + (int)site->index * 17 + (int)step * 7) % 23 - 11);
}

static void after_step(in_process_site *site, uint64_t step, const dlx_step *done) {
    (void)step;
    if (!done->finished) return;
    dlx_statistics statistics = DLX_STATISTICS_INIT;
    (void)dlx_sync_statistics(site->sync, &statistics, NULL);
    ((model *)site->context)->sent_at_the_end = statistics.wan_bytes_sent;
}

/* Groups of a tensor, C in bytes: counted here by hand from the format. */
static uint64_t vector_bytes(int bits, int rank) {
    uint64_t group_bytes = bits == 4 ? 32 + 2 : bits == 8 ? 64 + 2 : bits == 16 ? 128 : 256;
    uint64_t matrix = rank == 0 ? ROWS * COLS / 64 : (uint64_t)rank * (ROWS + COLS) / 64;
    return (matrix + (BIAS + 63) / 64) * group_bytes;
}

static void check_bytes(size_t count, int bits, int rank) {
    in_process *p = in_process_new();
    model *m = calloc(count, sizeof *m);
    for (size_t i = 0; i < count; i++) {
        m[i].p = calloc(VALUES, sizeof(float));
        m[i].tensors[0] =
            (dlx_tensor){.name = "matrix", .data = m[i].p, .rows = ROWS, .cols = COLS};
        m[i].tensors[1] =
            (dlx_tensor){.name = "bias", .data = m[i].p + ROWS * COLS, .rows = 1, .cols = BIAS};
        in_process_site *site = &p->site[i];
        site->tensors = m[i].tensors;
        site->tensor_count = 2;
        site->config.overlap = DLX_OVERLAP_NONE;
        site->config.inner_steps = 1;
        site->config.bits = bits;
        site->config.factor_rank = rank;
        site->config.timeout_ms = 60000;
        site->inner_step = inner_step;
        site->after_step = after_step;
        site->tokens_per_step = 1;
        site->context = &m[i];
    }
    p->coordinator.timeout_ms = 60000;
    assert_true(in_process_run(p, count, ROUNDS * count));
    double mean = 0, largest = 0, total_sent = 0, total_received = 0;
    for (size_t i = 0; i < count; i++) {
        if (p->site[i].status != DLX_OK) fail_msg("site %zu: %s", i, p->site[i].error.message);
        const dlx_statistics *s = &p->site[i].statistics;
        uint64_t c = vector_bytes(bits, rank);
        assert_int_equal(s->rounds, ROUNDS);
        assert_int_equal(s->round_bytes, c);
        assert_int_equal(s->raw_bytes, VALUES * sizeof(float));
        /* Framing: in each trip a header for every piece of 2 tensors to and from D − 1 members, in
         * pieces of at most 256 KiB; and as much payload as blocks may be uneven by, which are cut
         * so that headers and all are equal: one tensor's headers and a group. Control: ready and
         * staged a round, hello, listening, report, and pings. */
        double trips = rank > 0 ? 2 : 1, others = (double)count - 1;
        double frames = trips * 2 * others * (2 + 1 + ceil((double)c / DLXI_FRAME_PAYLOAD_MAX));
        double framing =
            (frames + trips * others * 4) * DLXI_FRAME_HEADER_BYTES + trips * others * 2 * 256;
        double control = 2 * (DLXI_FRAME_HEADER_BYTES + 60);
        double once = 4096 + 60 * DLXI_FRAME_HEADER_BYTES;
        double expected = 2.0 * (double)c * others / (double)count;
        double sent = (double)s->wan_bytes_sent / ROUNDS;
        if (sent < expected - framing || sent > expected + framing + control + once / ROUNDS)
            fail_msg("%zu sites, %d bits, rank %d: site %zu sent %.0f bytes a round, 2·C·(D−1)/D "
                     "is %.0f",
                     count, bits, rank, i, sent, expected);
        /* the bound means something */
        if (count > 1) assert_true(framing + control + once / ROUNDS < 0.25 * expected);
        /* whoever asks after the last step gets the last round's bytes too: all but report, pings
         */
        assert_true((double)m[i].sent_at_the_end + 2048 > (double)s->wan_bytes_sent);
        mean += (double)s->wan_bytes_sent / (double)count;
        largest = fmax(largest, (double)s->wan_bytes_sent);
        total_sent += (double)s->wan_bytes_sent;
        total_received += (double)s->wan_bytes_received;
        free(m[i].p);
    }
    if (largest > 1.1 * mean)
        fail_msg("%zu sites: the largest sent %.0f, the mean is %.0f", count, largest, mean);
    /* but for control */
    if (count > 1) assert_true(fabs(total_sent - total_received) < 0.02 * total_sent);
    free(m);
    free(p);
}

static void plain_bytes(void **state) {
    (void)state;
    static const size_t counts[] = {2, 3, 5, 8};
    for (size_t i = 0; i < 4; i++) check_bytes(counts[i], 4, 0);
    check_bytes(3, 32, 0);
}

static void low_rank_bytes(void **state) {
    (void)state;
    static const size_t counts[] = {2, 3, 5, 8};
    for (size_t i = 0; i < 4; i++) check_bytes(counts[i], 8, 96);
}

static void one_site_sends_no_data(void **state) {
    (void)state;
    check_bytes(1, 8, 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_bytes),
        cmocka_unit_test(low_rank_bytes),
        cmocka_unit_test(one_site_sends_no_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
