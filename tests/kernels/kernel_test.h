/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel tests share: guarded buffers, random numbers, comparison. */
#ifndef KERNEL_TEST_H
#define KERNEL_TEST_H

#include "kernels/kernels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Names the current case; every failure prints it. */
void case_label(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* `count` floats between guard bytes, uniform in [low, high); every other buffer is aligned to 4
 * bytes only. case_end checks and frees all. */
float *buffer(int64_t count, double low, double high);
float *buffer_copy(const float *from, int64_t count);
float *buffer_nan(int64_t count); /* an output that must be overwritten */
uint32_t *buffer_tokens(int64_t count, uint32_t vocabulary);
void case_end(void);

/* |fast − ref| ≤ absolute + relative · |ref|, element by element; NaN is never close. */
void expect_close(const char *what, const float *fast, const float *ref, int64_t count,
                  double absolute, double relative);
/* |fast − ref| ≤ unit · scale, element by element. */
void expect_within(const char *what, const float *fast, const float *ref, const float *scale,
                   int64_t count, double unit);
/* ‖fast − ref‖ ≤ relative · ‖ref‖ */
void expect_near(const char *what, const float *fast, const float *ref, int64_t count,
                 double relative);

/* Opens a backend or fails the test. */
dlxi_kernels *open_kernels(const char *backend, dlxi_precision precision, int threads);

/* `fast` and `ref`, in f32 and bf16, with 1 thread and 3; without bf16 if the CPU lacks it. */
typedef struct pair {
    dlxi_kernels *k[2]; /* fast, ref */
    bool bf16;
} pair;
enum { FAST, REF };
enum { PAIRS = 4 };
int open_pairs(pair *pairs);
void close_pairs(pair *pairs, int count);

#define OK(call) assert_int_equal(call, DLX_OK)

#endif
