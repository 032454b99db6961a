/* SPDX-License-Identifier: Apache-2.0 */
/* Equal to the bit: sites whose threads round and flush differently end every round with the same
 * anchor. The coordinator compares the hashes in each `ready`, so that a run that ends well has
 * proved it. */
#include "in_process.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { ROWS = 48, COLS = 80, BIAS = 50, VALUES = ROWS * COLS + BIAS, ROUNDS = 6 };

/* MXCSR: nearest; flush-to-zero and denormals-are-zero; upward; toward zero and flushing; downward
 */
static const unsigned modes[5] = {0, 0x8040, 0x4000, 0x6000 | 0x8040, 0x2000};

typedef struct model {
    float p[VALUES];
    unsigned mode_seen;
    dlx_tensor tensors[2];
} model;

static void inner_step(in_process_site *site, uint64_t step) {
    model *m = site->context;
#if defined(__x86_64__)
    m->mode_seen = _mm_getcsr() & 0xE040u; /* what the library leaves this thread in */
#endif
    for (int k = 0; k < VALUES; k++) {
        float size = k % 5 == 0 ? 1e-38f : 1e-2f; /* denormal differences among them */
        m->p[k] +=
            size / 3.0f * (float)((k * 31 + (int)site->index * 17 + (int)step * 7) % 23 - 11);
    }
}

static void run(size_t count, const dlx_sync_config *config) {
    in_process *p = in_process_new();
    model *m = calloc(count, sizeof *m);
    for (size_t i = 0; i < count; i++) {
        m[i].tensors[0] =
            (dlx_tensor){.name = "matrix", .data = m[i].p, .rows = ROWS, .cols = COLS};
        m[i].tensors[1] =
            (dlx_tensor){.name = "bias", .data = m[i].p + ROWS * COLS, .rows = 1, .cols = BIAS};
        in_process_site *site = &p->site[i];
        site->config = *config;
        site->tensors = m[i].tensors;
        site->tensor_count = 2;
        site->floating_point_mode = modes[i];
        site->inner_step = inner_step;
        site->tokens_per_step = 10;
        site->context = &m[i];
    }
    assert_true(in_process_run(p, count, 10 * count * 2 * ROUNDS));
    for (size_t i = 0; i < count; i++) {
        if (p->site[i].status != DLX_OK)
            fail_msg("%zu sites, overlap %d, %d bits: site %zu: %s", count, (int)config->overlap,
                     config->bits, i, p->site[i].error.message);
        assert_true(p->site[i].statistics.rounds >= ROUNDS);
        assert_true(p->site[i].statistics.anchor_hash == p->site[0].statistics.anchor_hash);
        assert_memory_equal(m[i].p, m[0].p, sizeof m[i].p); /* the final anchor itself */
#if defined(__x86_64__)
        /* the modes were in force, and were given back */
        assert_int_equal(m[i].mode_seen, modes[i]);
#endif
    }
    assert_int_equal(p->status, DLX_OK);
    free(m);
    free(p);
}

static void bits_agree(void **state) {
    (void)state;
    static const size_t counts[3] = {2, 3, 5};
    static const int compressions[4][2] = {{4, 6}, {8, 0}, {16, 6}, {32, 0}};
    for (size_t c = 0; c < 3; c++)
        for (int overlap = DLX_OVERLAP_NONE; overlap <= DLX_OVERLAP_CARRY; overlap++) {
            dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
            config.overlap = (dlx_overlap)overlap;
            config.inner_steps = config.inner_steps_max = 2;
            config.bits = compressions[overlap - 1][0];
            config.factor_rank = compressions[overlap - 1][1];
            config.outer_learning_rate = 0.7;
            config.outer_momentum = 0.4;
            config.group = 16;
            run(counts[c], &config);
        }
}

static void bits_agree_while_adapting(void **state) {
    (void)state;
    for (int adaptation = DLX_ADAPTATION_PAPER; adaptation <= DLX_ADAPTATION_LINK; adaptation++) {
        dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
        config.inner_steps = config.inner_steps_max = 2;
        config.factor_rank = 6;
        config.group = 16;
        config.adaptation = (dlx_adaptation)adaptation;
        run(3, &config);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_agree),
        cmocka_unit_test(bits_agree_while_adapting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
