/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers by counter, equal on every machine: no libm, whose last bits differ. */
#ifndef DLXI_BASE_RNG_H
#define DLXI_BASE_RNG_H

#include <stdint.h>

/* splitmix64's finaliser over seed, stream and index in turn (Steele et al. 2014). */
uint64_t dlxi_rng_u64(uint64_t seed, uint64_t stream, uint64_t index);

/* Uniform in [0, 1), 24 bits. */
float dlxi_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);

/* Mean 0, variance 1, within ±sqrt(24): the scaled sum of eight 16-bit uniforms. Close enough to
 * normal for initial weights, and exact in IEEE arithmetic. */
float dlxi_rng_normal(uint64_t seed, uint64_t stream, uint64_t index);

#endif
