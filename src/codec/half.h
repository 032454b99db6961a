/* SPDX-License-Identifier: Apache-2.0 */
/* IEEE half precision by bit arithmetic: equal on every CPU, and plain enough for the compiler to
 * vectorise. All functions assume the modes of dlxi_arithmetic_enter. */
#ifndef DLXI_CODEC_HALF_H
#define DLXI_CODEC_HALF_H

#include "base/bits.h"
#include "base/simd.h"

#include <stdbool.h>

/* A fixed-order loop: not inlined, so that none of its arithmetic moves out of enter/leave. */
#if defined(__GNUC__) || defined(__clang__)
#define DLXI_FIXED_ORDER   DLXI_CLONES __attribute__((noinline))
#define DLXI_ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define DLXI_FIXED_ORDER
#define DLXI_ALWAYS_INLINE inline
#endif

enum { DLXI_HALF_INFINITY = 0x7C00, DLXI_FLOAT_INFINITY = 0x7F800000 };

/* Branch-free, so that loops vectorise. */
static inline uint32_t dlxi_choose(bool condition, uint32_t yes, uint32_t no) {
    uint32_t mask = 0u - (uint32_t)condition;
    return (yes & mask) | (no & ~mask);
}

/* A half's exponent bias is 15, a float's 127; the mantissas differ by 13 bits. Below 2^-14 halves
 * are multiples of 2^-24. Infinite and NaN halves give finite floats: check before. */
static inline float dlxi_half_to_float(uint32_t half) {
    uint32_t magnitude = half & 0x7FFFu;
    uint32_t normal = (magnitude << 13) + ((127u - 15u) << 23);
    uint32_t tiny = dlxi_bits_of((float)(int32_t)magnitude * 0x1p-24f);
    return dlxi_float_of(dlxi_choose(magnitude < 0x400u, tiny, normal) | (half & 0x8000u) << 16);
}

/* The smallest half ≥ x, for x ≥ 0; ≥ DLXI_HALF_INFINITY if none exists or x is NaN. */
static inline uint32_t dlxi_half_above(float x) {
    uint32_t bits = dlxi_bits_of(x);
    float steps = dlxi_float_of(dlxi_choose(bits < 0x38800000u, bits, 0)) * 0x1p24f;
    int32_t tiny = (int32_t)steps;
    tiny += (int32_t)((float)tiny < steps);
    uint32_t normal = (bits - ((127u - 15u) << 23) + 0x1FFFu) >> 13;
    return dlxi_choose(bits < 0x38800000u, (uint32_t)tiny, normal);
}

/* The half nearest to |x|, ties to even; ≥ DLXI_HALF_INFINITY if |x| is too large or NaN. Below
 * 2^-14, adding 0.5, whose last place is 2^-24, does the rounding. */
static inline uint32_t dlxi_half_magnitude(float x) {
    uint32_t bits = dlxi_bits_of(x) & 0x7FFFFFFFu;
    uint32_t tiny = dlxi_bits_of(dlxi_float_of(bits) + 0.5f) - 0x3F000000u;
    uint32_t normal = (bits - ((127u - 15u) << 23) + 0xFFFu + (bits >> 13 & 1u)) >> 13;
    return dlxi_choose(bits < 0x38800000u, tiny, normal);
}

#endif
