/* SPDX-License-Identifier: Apache-2.0 */
/* Guarded buffers, comparison, and the backends that tests compare. */
#include "kernel_test.h"

#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD_BYTES = 128, GUARD_VALUE = 0xA5, BUFFERS_MAX = 64 };

static struct {
    char label[256];
    unsigned char *base[BUFFERS_MAX];
    size_t begin[BUFFERS_MAX], end[BUFFERS_MAX], bytes[BUFFERS_MAX];
    int count;
    uint64_t stream;
} now;

void case_label(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(now.label, sizeof now.label, format, arguments);
    va_end(arguments);
}

static float *reserve(int64_t count) {
    assert_true(now.count < BUFFERS_MAX);
    const int i = now.count++;
    const size_t shift = i % 2 == 0 ? 0 : sizeof(float);
    now.begin[i] = GUARD_BYTES + shift;
    now.end[i] = now.begin[i] + (size_t)count * sizeof(float);
    now.bytes[i] = (now.end[i] + GUARD_BYTES + 63) / 64 * 64;
    now.base[i] = aligned_alloc(64, now.bytes[i]);
    assert_non_null(now.base[i]);
    memset(now.base[i], GUARD_VALUE, now.bytes[i]);
    return (float *)(void *)(now.base[i] + now.begin[i]);
}

float *buffer(int64_t count, double low, double high) {
    float *data = reserve(count);
    const uint64_t stream = now.stream++;
    for (int64_t i = 0; i < count; i++)
        data[i] = (float)(low + (high - low) * (double)dlxi_rng_uniform(7, stream, (uint64_t)i));
    return data;
}

float *buffer_copy(const float *from, int64_t count) {
    float *data = reserve(count);
    memcpy(data, from, (size_t)count * sizeof(float));
    return data;
}

float *buffer_nan(int64_t count) {
    float *data = reserve(count);
    for (int64_t i = 0; i < count; i++) data[i] = NAN;
    return data;
}

uint32_t *buffer_tokens(int64_t count, uint32_t vocabulary) {
    uint32_t *data = (uint32_t *)(void *)reserve(count);
    const uint64_t stream = now.stream++;
    for (int64_t i = 0; i < count; i++)
        data[i] = (uint32_t)(dlxi_rng_u64(7, stream, (uint64_t)i) % vocabulary);
    return data;
}

void case_end(void) {
    for (int i = 0; i < now.count; i++) {
        for (size_t j = 0; j < now.bytes[i]; j++) {
            if (j >= now.begin[i] && j < now.end[i]) continue;
            if (now.base[i][j] != GUARD_VALUE)
                fail_msg("%s: buffer %d: byte %ld outside of it was written", now.label, i,
                         (long)j - (long)(j < now.begin[i] ? now.begin[i] : now.end[i]));
        }
        free(now.base[i]);
    }
    now.count = 0;
}

void expect_close(const char *what, const float *fast, const float *ref, int64_t count,
                  double absolute, double relative) {
    for (int64_t i = 0; i < count; i++) {
        const double allowed = absolute + relative * fabs((double)ref[i]);
        if (!(fabs((double)fast[i] - (double)ref[i]) <= allowed))
            fail_msg("%s: %s[%lld] is %.9g, not %.9g (± %.3g)", now.label, what, (long long)i,
                     (double)fast[i], (double)ref[i], allowed);
    }
}

void expect_within(const char *what, const float *fast, const float *ref, const float *scale,
                   int64_t count, double unit) {
    for (int64_t i = 0; i < count; i++) {
        const double allowed = unit * (double)scale[i];
        if (!(fabs((double)fast[i] - (double)ref[i]) <= allowed))
            fail_msg("%s: %s[%lld] is %.9g, not %.9g (± %.3g)", now.label, what, (long long)i,
                     (double)fast[i], (double)ref[i], allowed);
    }
}

void expect_near(const char *what, const float *fast, const float *ref, int64_t count,
                 double relative) {
    double difference = 0.0, norm = 0.0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)fast[i] - (double)ref[i]) * ((double)fast[i] - (double)ref[i]);
        norm += (double)ref[i] * (double)ref[i];
    }
    if (!(sqrt(difference) <= relative * sqrt(norm)))
        fail_msg("%s: %s differs by %.3g of its norm, more than %.3g", now.label, what,
                 sqrt(difference / norm), relative);
}

dlxi_kernels *open_kernels(const char *backend, dlxi_precision precision, int threads) {
    dlxi_kernels *k = NULL;
    dlx_error error = {0};
    if (dlxi_kernels_open(&k, backend, precision, threads, &error) != DLX_OK)
        fail_msg("%s", error.message);
    return k;
}

int open_pairs(pair *pairs) {
    dlxi_kernels *probe = open_kernels("fast", DLXI_PRECISION_AUTO, 1);
    const bool bf16 = probe->precision == DLXI_PRECISION_BF16;
    dlxi_kernels_close(&probe);
    if (!bf16)
        print_message("bf16 is skipped: this CPU has no AVX-512-BF16, or oneDNN may not use it\n");
    for (int i = 0; i < (bf16 ? PAIRS : PAIRS / 2); i++) {
        pairs[i].bf16 = i >= PAIRS / 2;
        pairs[i].k[FAST] = open_kernels(
            "fast", pairs[i].bf16 ? DLXI_PRECISION_BF16 : DLXI_PRECISION_F32, i % 2 == 0 ? 1 : 3);
        pairs[i].k[REF] = open_kernels("ref", DLXI_PRECISION_AUTO, 1);
    }
    return bf16 ? PAIRS : PAIRS / 2;
}

void close_pairs(pair *pairs, int count) {
    for (int i = 0; i < count; i++) {
        dlxi_kernels_close(&pairs[i].k[FAST]);
        dlxi_kernels_close(&pairs[i].k[REF]);
    }
}
