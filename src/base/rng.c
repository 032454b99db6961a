/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"

static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

uint64_t dlxi_rng_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    return mix(mix(mix(seed) ^ stream) ^ index);
}

float dlxi_rng_uniform(uint64_t seed, uint64_t stream, uint64_t index) {
    return (float)(dlxi_rng_u64(seed, stream, index) >> 40) * 0x1p-24f;
}

float dlxi_rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    uint64_t low = dlxi_rng_u64(seed, stream, 2 * index),
             high = dlxi_rng_u64(seed, stream, 2 * index + 1);
    int32_t sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (int32_t)(low >> (16 * i) & 0xFFFF) + (int32_t)(high >> (16 * i) & 0xFFFF);
    /* of eight uniforms on 0 … 65535: mean 8 · 32767.5, variance 8 · (65536² − 1) / 12 */
    return ((float)sum - 262140.0f) * (1.0f / 53509.75f);
}
