/* SPDX-License-Identifier: Apache-2.0 */
/* How far apart two arrays are, for tests. */
#ifndef TEST_DIFFERENCE_H
#define TEST_DIFFERENCE_H

#include <math.h>
#include <stdint.h>

/* ‖a − b‖ / ‖b‖, or ‖a‖ where b is zero. */
static inline double difference(const float *a, const float *b, int64_t count) {
    double apart = 0.0, size = 0.0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)a[i] - (double)b[i];
        apart += d * d;
        size += (double)b[i] * (double)b[i];
    }
    return size == 0.0 ? sqrt(apart) : sqrt(apart / size);
}

#endif
