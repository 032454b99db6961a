/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers: a counter-based generator, the same on every machine. No libm, whose last bits
 * differ between CPUs. */
#ifndef DLXI_BASE_RNG_H
#define DLXI_BASE_RNG_H

#include <stdint.h>

/* 64 well-mixed bits of (seed, stream, index): splitmix64's finaliser, applied to each in turn
 * (Steele et al. 2014). */
uint64_t dlxi_rng_u64(uint64_t seed, uint64_t stream, uint64_t index);

/* Uniform in [0, 1), 24 bits. */
float dlxi_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);

/* Mean 0, variance 1, bounded by ±sqrt(24): the sum of eight 16-bit uniforms, scaled. Near enough
 * to normal for initial weights, and exact in IEEE arithmetic, so that every site draws the same
 * bits. */
float dlxi_rng_normal(uint64_t seed, uint64_t stream, uint64_t index);

#endif
