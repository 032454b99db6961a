/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_window: the order of training windows, for the trainer's sampler and for loops of others. */
#include "dilocox.h"

#include "base/panic.h"
#include "base/rng.h"

/* Where a permutation of 0 … n−1 keyed by (seed, epoch) maps index < n: a Feistel network on the
 * next even number of bits, repeated until the result is below n (Black & Rogaway 2002, "Ciphers
 * with arbitrary finite domains"). Integers only: equal on every machine. */
static uint64_t permute(uint64_t index, uint64_t n, uint64_t seed, uint64_t epoch) {
    enum { ROUNDS = 8 };
    static const uint64_t stream = 0x77696E646F7773; /* "windows": not another use of the seed */
    DLXI_ASSERT(n >= 1 && index < n);
    unsigned half_bits = 1;
    while (half_bits < 32 && (n - 1) >> 2 * half_bits != 0) half_bits++;
    uint64_t mask = (UINT64_C(1) << half_bits) - 1, key = dlxi_rng_u64(seed, stream, epoch);
    /* The network permutes 0 … 4^half_bits − 1, fewer than 4n. Following its cycle to the next
     * point below n permutes 0 … n−1, in less than 4 steps on average. */
    do {
        uint64_t left = index >> half_bits, right = index & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            uint64_t swapped = left ^ (dlxi_rng_u64(key, round, right) & mask);
            left = right;
            right = swapped;
        }
        index = left << half_bits | right;
    } while (index >= n);
    return index;
}

uint64_t dlx_window(uint64_t position, uint64_t windows, uint64_t seed) {
    return windows == 0 ? 0 : permute(position % windows, windows, seed, position / windows);
}
