/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors of every dtype and kind, in host memory and behind the caller's fetch and store: the same
 * bits either way, no call at any other time, rounding that enters no pseudo-gradient, and
 * statistics that are averaged. */
#include "in_process.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum {
    SITES = 2,
    ROWS = 24,
    COLS = 40,
    MATRIX = ROWS * COLS,
    BIAS = 33,
    VALUES = MATRIX + BIAS + 5,
    TENSORS = 3,
    H = 3,
    STEPS_MAX = 40,
    STAGING_VALUES = 100 /* many chunks per tensor */
};
static const size_t first_value[TENSORS + 1] = {0, MATRIX, MATRIX + BIAS, VALUES};

/* One site's parameters as its trainer holds them: in `dtype`, wherever the tensors say. */
typedef struct device {
    dlx_dtype dtype;
    bool behind, idle; /* behind fetch and store; no training */
    float f32[VALUES];
    uint16_t narrow[VALUES];
    uint64_t fetched, stored; /* values */
    float seen[STEPS_MAX][VALUES];
    double norm_max;
    int steps, quiet_calls; /* calls in steps that neither submitted nor applied */
    uint64_t calls_before;
    dlx_tensor tensors[TENSORS];
} device;

static uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

static float of_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float of_f16(uint16_t x) {
    int exponent = x >> 10 & 31;
    float magnitude = exponent == 0 ? ldexpf((float)(x & 1023), -24)
                                    : ldexpf((float)(1024 + (x & 1023)), exponent - 25);
    return (x & 0x8000) != 0 ? -magnitude : magnitude;
}

/* By search among the halves, which ascend with their bits. */
static uint16_t f16_of(float x) {
    uint16_t low = 0, high = 0x7C00; /* half(low) ≤ |x| < half(high) */
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (of_f16(middle) <= fabsf(x))
            low = middle;
        else
            high = middle;
    }
    float down = fabsf(x) - of_f16(low), up = of_f16(high) - fabsf(x);
    uint16_t nearest = down < up || (down == up && low % 2 == 0) ? low : high;
    return (uint16_t)(nearest | (x < 0 ? 0x8000 : 0));
}

static float read_value(const device *d, size_t k) {
    if (d->dtype == DLX_F32) return d->f32[k];
    return d->dtype == DLX_BF16 ? of_bf16(d->narrow[k]) : of_f16(d->narrow[k]);
}

static void write_value(device *d, size_t k, float x) {
    d->f32[k] = x;
    if (d->dtype != DLX_F32) d->narrow[k] = d->dtype == DLX_BF16 ? bf16_of(x) : f16_of(x);
}

static dlx_status fetch(void *context, size_t tensor, int64_t first, int64_t count, float *dst,
                        dlx_error *error) {
    device *d = context;
    (void)error;
    if (count < 1 || count > STAGING_VALUES) return DLX_ARGUMENT;
    for (int64_t k = 0; k < count; k++)
        dst[k] = read_value(d, first_value[tensor] + (size_t)(first + k));
    d->fetched += (uint64_t)count;
    return DLX_OK;
}

static dlx_status store(void *context, size_t tensor, int64_t first, int64_t count,
                        const float *src, dlx_error *error) {
    device *d = context;
    (void)error;
    for (int64_t k = 0; k < count; k++) {
        size_t at = first_value[tensor] + (size_t)(first + k);
        write_value(d, at, src[k]);
        if (read_value(d, at) != src[k]) return DLX_NUMERIC; /* was to be rounded already */
    }
    d->stored += (uint64_t)count;
    return DLX_OK;
}

static void inner_step(in_process_site *site, uint64_t step) {
    device *d = site->context;
    d->calls_before = d->fetched + d->stored;
    for (size_t k = 0; k < VALUES && !d->idle; k++) {
        int change = ((int)step * 7 + (int)site->index * 5 + (int)k * 3) % 11 - 4;
        write_value(d, k, read_value(d, k) + 0.0078125f * (float)change);
    }
}

static void after_step(in_process_site *site, uint64_t step, const dlx_step *done) {
    device *d = site->context;
    dlx_statistics statistics = DLX_STATISTICS_INIT;
    (void)dlx_sync_statistics(site->sync, &statistics, NULL);
    if (statistics.update_norm > d->norm_max) d->norm_max = statistics.update_norm;
    if (!done->submitted && !done->applied && d->fetched + d->stored != d->calls_before)
        d->quiet_calls++;
    for (size_t k = 0; k < VALUES && step < STEPS_MAX; k++) d->seen[step][k] = read_value(d, k);
    d->steps = (int)step + 1;
}

static device *devices_run(dlx_overlap overlap, dlx_dtype dtype, bool behind, bool idle,
                           dlx_kind last_kind) {
    in_process *p = in_process_new();
    device *devices = calloc(SITES, sizeof *devices);
    static float staging[SITES][STAGING_VALUES];
    for (size_t i = 0; i < SITES; i++) {
        device *d = &devices[i];
        d->dtype = dtype;
        d->behind = behind;
        d->idle = idle;
        for (size_t k = 0; k < VALUES; k++) write_value(d, k, (float)(k % 17) * 0.125f - 1.0f);
        static const int64_t shapes[TENSORS][2] = {{ROWS, COLS}, {1, BIAS}, {1, 5}};
        static const char *const names[TENSORS] = {"matrix", "bias", "last"};
        for (size_t t = 0; t < TENSORS; t++) {
            void *data = dtype == DLX_F32 ? (void *)(d->f32 + first_value[t])
                                          : (void *)(d->narrow + first_value[t]);
            d->tensors[t] = (dlx_tensor){.name = names[t],
                                         .data = behind ? NULL : data,
                                         .rows = shapes[t][0],
                                         .cols = shapes[t][1],
                                         .memory = behind ? DLX_MEMORY_CALLER : DLX_MEMORY_HOST,
                                         .dtype = dtype,
                                         .kind = t == TENSORS - 1 ? last_kind : DLX_TRAINED};
        }
        in_process_site *site = &p->site[i];
        site->config.overlap = overlap;
        site->config.inner_steps = site->config.inner_steps_max = H;
        site->config.exchange_steps = overlap == DLX_OVERLAP_CARRY ? 2 : 0;
        site->config.factor_rank = 6;
        site->config.group = 16;
        site->config.outer_learning_rate = 0.5;
        site->config.outer_momentum = 0.5;
        site->config.fetch = fetch;
        site->config.store = store;
        site->config.memory_context = d;
        if (behind) {
            site->config.staging = staging[i];
            site->config.staging_bytes = i == 0 ? sizeof staging[i] : 7; /* one value */
        }
        site->tensors = d->tensors;
        site->tensor_count = TENSORS;
        site->inner_step = inner_step;
        site->after_step = after_step;
        site->tokens_per_step = 10 * (i + 1);
        site->context = d;
    }
    assert_true(in_process_run(p, SITES, 30 * H * 4));
    for (size_t i = 0; i < SITES; i++)
        if (p->site[i].status != DLX_OK)
            fail_msg("overlap %d, dtype %d: %s", (int)overlap, (int)dtype,
                     p->site[i].error.message);
    free(p);
    return devices;
}

static void for_each(void (*check)(dlx_overlap overlap, dlx_dtype dtype)) {
    for (int overlap = DLX_OVERLAP_NONE; overlap <= DLX_OVERLAP_CARRY; overlap++)
        for (int dtype = DLX_F32; dtype <= DLX_F16; dtype++)
            check((dlx_overlap)overlap, (dlx_dtype)dtype);
}

static void check_same_bits(dlx_overlap overlap, dlx_dtype dtype) {
    device *host = devices_run(overlap, dtype, false, false, DLX_STATISTICS);
    device *behind = devices_run(overlap, dtype, true, false, DLX_STATISTICS);
    for (size_t i = 0; i < SITES; i++) {
        assert_int_equal(host[i].steps, behind[i].steps);
        assert_memory_equal(host[i].seen, behind[i].seen, sizeof host[i].seen);
        assert_int_equal(host[i].fetched + host[i].stored, 0);
        assert_true(behind[i].fetched > 0 && behind[i].stored > 0);
        assert_int_equal(behind[i].quiet_calls, 0);
    }
    free(host);
    free(behind);
}

static void memory_behind_callbacks_gives_the_same_bits(void **state) {
    (void)state;
    for_each(check_same_bits);
}

/* What 16 bits can't hold of θ is no training. */
static void check_idle(dlx_overlap overlap, dlx_dtype dtype) {
    device *devices = devices_run(overlap, dtype, false, true, DLX_TRAINED);
    for (size_t i = 0; i < SITES; i++)
        if (devices[i].norm_max != 0)
            fail_msg("overlap %d, dtype %d: a norm of %g without training", (int)overlap,
                     (int)dtype, devices[i].norm_max);
    free(devices);
}

static void rounding_is_no_training(void **state) {
    (void)state;
    for_each(check_idle);
}

/* … nor is what remains of it after some training: idle from then on, M is what was unsent. */
static dlx_status trains_then_rests(in_process_site *site) {
    device *d = site->context;
    dlx_step done = DLX_STEP_INIT;
    dlx_status status = DLX_OK;
    double last_norm = 0;
    for (uint64_t step = 0; status == DLX_OK && !done.finished; step++) {
        d->idle = step >= H;
        inner_step(site, step);
        status = dlx_sync_step(site->sync, site->tokens_per_step, &done, &site->error);
        dlx_statistics statistics = DLX_STATISTICS_INIT;
        (void)dlx_sync_statistics(site->sync, &statistics, NULL);
        last_norm = statistics.update_norm;
    }
    d->norm_max = last_norm;
    return status == DLX_OK ? dlx_sync_report(site->sync, "", &site->error) : status;
}

static void rounding_after_training_is_none_either(void **state) {
    (void)state;
    in_process *p = in_process_new();
    device *devices = calloc(SITES, sizeof *devices);
    for (size_t i = 0; i < SITES; i++) {
        device *d = &devices[i];
        d->dtype = DLX_BF16;
        for (size_t k = 0; k < VALUES; k++) write_value(d, k, 1.0f + (float)(k % 7));
        d->tensors[0] = (dlx_tensor){
            .name = "all", .data = d->narrow, .rows = 1, .cols = VALUES, .dtype = DLX_BF16};
        p->site[i].config.overlap = DLX_OVERLAP_NONE;
        p->site[i].config.inner_steps = H;
        p->site[i].config.bits = 32;
        p->site[i].config.outer_learning_rate = 0.01; /* far below what bf16 resolves */
        p->site[i].config.outer_momentum = 0;
        p->site[i].tensors = d->tensors;
        p->site[i].tensor_count = 1;
        p->site[i].script = trains_then_rests;
        p->site[i].tokens_per_step = 10;
        p->site[i].context = d;
    }
    assert_true(in_process_run(p, SITES, 20 * H * 6));
    for (size_t i = 0; i < SITES; i++) {
        if (p->site[i].status != DLX_OK) fail_msg("%s", p->site[i].error.message);
        assert_float_equal(devices[i].norm_max, 0, 0);
    }
    free(devices);
    free(p);
}

/* Statistics: after an outer step both sites have the weighted mean of what each had, to f32. */
static void statistics_are_averaged(void **state) {
    (void)state;
    device *devices = devices_run(DLX_OVERLAP_NONE, DLX_F32, false, false, DLX_STATISTICS);
    double own[SITES][5] = {{0}}, mean[5];
    for (int k = 0; k < 5; k++)
        mean[k] = (double)((float)((MATRIX + BIAS + k) % 17) * 0.125f - 1.0f);
    for (int step = 0; step < 4 * H; step++) {
        for (size_t i = 0; i < SITES; i++)
            for (int k = 0; k < 5; k++) {
                int at = MATRIX + BIAS + k;
                if (step % H == 0) own[i][k] = mean[k];
                own[i][k] += 0.0078125 * ((step * 7 + (int)i * 5 + at * 3) % 11 - 4);
            }
        for (int k = 0; k < 5 && step % H == H - 1; k++) mean[k] = (own[0][k] + 2 * own[1][k]) / 3;
        for (size_t i = 0; i < SITES; i++)
            for (int k = 0; k < 5; k++) {
                double expected = step % H == H - 1 ? mean[k] : own[i][k];
                if (fabs((double)devices[i].seen[step][MATRIX + BIAS + k] - expected) > 1e-6)
                    fail_msg("step %d, site %zu, value %d: %g, not %g", step, i, k,
                             (double)devices[i].seen[step][MATRIX + BIAS + k], expected);
            }
    }
    free(devices);
}

static dlx_status fetch_fails(void *context, size_t tensor, int64_t first, int64_t count,
                              float *dst, dlx_error *error) {
    device *d = context;
    if (d->steps < 5) return fetch(context, tensor, first, count, dst, error);
    if (error != NULL) snprintf(error->message, sizeof error->message, "the device is gone");
    return DLX_SYSTEM;
}

static void a_failing_fetch_ends_the_call_with_its_status(void **state) {
    (void)state;
    in_process *p = in_process_new();
    device *d = calloc(1, sizeof *d);
    d->tensors[0] =
        (dlx_tensor){.name = "all", .rows = 1, .cols = MATRIX, .memory = DLX_MEMORY_CALLER};
    p->site[0].config.fetch = fetch_fails;
    p->site[0].config.store = store;
    p->site[0].config.memory_context = d;
    static float staging[STAGING_VALUES];
    p->site[0].config.staging = staging;
    p->site[0].config.staging_bytes = sizeof staging;
    p->site[0].config.inner_steps = H;
    p->site[0].tensors = d->tensors;
    p->site[0].tensor_count = 1;
    p->site[0].inner_step = inner_step;
    p->site[0].after_step = after_step;
    p->site[0].tokens_per_step = 10;
    p->site[0].context = d;
    assert_true(in_process_run(p, 1, 1000000));
    assert_int_equal(p->site[0].status, DLX_SYSTEM);
    assert_string_equal(p->site[0].error.message, "the device is gone");
    free(d);
    free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_behind_callbacks_gives_the_same_bits),
        cmocka_unit_test(rounding_is_no_training),
        cmocka_unit_test(rounding_after_training_is_none_either),
        cmocka_unit_test(statistics_are_averaged),
        cmocka_unit_test(a_failing_fetch_ends_the_call_with_its_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
