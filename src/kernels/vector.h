/* SPDX-License-Identifier: Apache-2.0 */
/* Formulas that the compiler can vectorise inside a loop: no calls, no branches. */
#ifndef DLXI_KERNELS_VECTOR_H
#define DLXI_KERNELS_VECTOR_H

#include "base/bits.h"

#include <math.h>

/* e^x within 2 ulp for x in [-87.3, 88]; 0 below, e^88 above, NaN for NaN. x = n·ln 2 + r with |r|
 * ≤ ln 2 / 2; e^r by the polynomial of Cephes' expf (Moshier, netlib.org/cephes), 2^n by adding n
 * to the exponent. */
static inline float dlxi_exp(float x) {
    const float lowest = -87.3f, highest = 88.0f;
    const float rounder = 12582912.0f; /* 1.5 · 2^23: a sum's low bits hold the rounded integer */
    const float bounded = x > highest ? highest : x;
    float shifted = bounded * 1.44269504088896341f + rounder;
    float n = shifted - rounder;
    float r = bounded - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    float y = dlxi_float_of(dlxi_bits_of(p) + (dlxi_bits_of(shifted) << 23));
    return x < lowest ? 0.0f : y;
}

static inline float dlxi_sigmoid(float x) {
    return 1.0f / (1.0f + dlxi_exp(-x));
}

/* Sums and maxima of a row: element i goes into lane i mod 16, and the lanes are joined in halves.
 * The result is equal on every CPU. */
enum { DLXI_LANES = 16 };

static inline float dlxi_lanes_sum(const float *lanes) {
    float half[DLXI_LANES / 2];
    for (int i = 0; i < 8; i++) half[i] = lanes[i] + lanes[i + 8];
    for (int i = 0; i < 4; i++) half[i] += half[i + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

static inline float dlxi_row_max(const float *row, int64_t count) {
    float lanes[DLXI_LANES];
    int64_t i = 0;
    for (int l = 0; l < DLXI_LANES; l++) lanes[l] = -HUGE_VALF;
    for (; i + DLXI_LANES <= count; i += DLXI_LANES) {
#pragma omp simd
        for (int l = 0; l < DLXI_LANES; l++)
            lanes[l] = row[i + l] > lanes[l] ? row[i + l] : lanes[l];
    }
    for (int l = 0; i < count; i++, l++) lanes[l] = row[i] > lanes[l] ? row[i] : lanes[l];
    float half[DLXI_LANES / 2];
    for (int l = 0; l < 8; l++) half[l] = lanes[l] > lanes[l + 8] ? lanes[l] : lanes[l + 8];
    for (int l = 0; l < 4; l++) half[l] = half[l] > half[l + 4] ? half[l] : half[l + 4];
    const float a = half[0] > half[2] ? half[0] : half[2],
                b = half[1] > half[3] ? half[1] : half[3];
    return a > b ? a : b;
}

/* Rounds to nearest even; NaN stays NaN. */
static inline uint16_t dlxi_bf16(float x) {
    uint32_t bits = dlxi_bits_of(x);
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return (uint16_t)((x != x ? bits | 0x400000u : rounded) >> 16);
}

#endif
