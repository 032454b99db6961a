/* SPDX-License-Identifier: Apache-2.0 */
/* Which windows of a token shard are trained on, in which order. Window w of context T covers
 * tokens w·T … w·T+T: inputs are the first T of them, targets the last T. Who may use which
 * positions (leases) is decided elsewhere. */
#ifndef DLXI_DATA_SAMPLER_H
#define DLXI_DATA_SAMPLER_H

#include "data/token_file.h"

/* A permutation of 0 … n−1 keyed by (seed, epoch): where `index` < n goes. No table: a Feistel
 * network on the next even number of bits, walked until it lands below n (Black & Rogaway 2002,
 * "Ciphers with arbitrary finite domains"). n ≥ 1. Integers only, so the same on every machine. */
uint64_t dlxi_permute(uint64_t index, uint64_t n, uint64_t seed, uint64_t epoch);

/* Borrows the shard. Plain data, read-only after open, nothing to close: any number of threads may
 * share one. */
typedef struct dlxi_sampler {
    const dlxi_token_file *shard;
    int64_t context; /* T */
    int64_t windows; /* (tokens − 1) / T, ≥ 1 */
    uint64_t seed;
} dlxi_sampler;

/* DLX_CONFIG where the shard has fewer than context + 1 tokens; names both. */
dlx_status dlxi_sampler_open(dlxi_sampler *out, const dlxi_token_file *shard, int64_t context,
                             uint64_t seed, dlx_error *error);

/* The window at a position of the run: position p is index p mod n of epoch p / n, n = windows. Any
 * p gives a window of the shard; a negative one is meaningless but harmless. */
int64_t dlxi_sampler_window(const dlxi_sampler *sampler, int64_t position);

/* tokens[count,T], targets[count,T] ← the windows at positions[count]. */
void dlxi_sampler_batch(uint32_t *tokens, uint32_t *targets, const dlxi_sampler *sampler,
                        const int64_t *positions, int64_t count);

/* The first `windows` windows of a shard in order, or of them those that are `index` modulo
 * `stride`: the part that site `index` of `stride` sites evaluates. Borrows the shard. One thread
 * at a time. */
typedef struct dlxi_validation {
    const dlxi_token_file *shard;
    int64_t context; /* T */
    int64_t windows; /* of all parts together, ≥ 1 */
    int64_t index, stride;
    int64_t next; /* the window that comes next */
} dlxi_validation;

/* tokens_max: at most so many tokens (rounded down to windows, but at least one) of the shard are
 * used by all parts together; 0: all. DLX_CONFIG where the shard has fewer than context + 1 tokens.
 * 0 ≤ index < stride. */
dlx_status dlxi_validation_open(dlxi_validation *out, const dlxi_token_file *shard, int64_t context,
                                int64_t tokens_max, int64_t index, int64_t stride,
                                dlx_error *error);
/* How many windows this part has: 0 where there are fewer windows than parts. */
int64_t dlxi_validation_count(const dlxi_validation *reader);
/* tokens[n,T], targets[n,T] ← the next n ≤ count_max windows; returns n, 0 at the end. */
int64_t dlxi_validation_next(uint32_t *tokens, uint32_t *targets, dlxi_validation *reader,
                             int64_t count_max);
/* Back to the first window. */
void dlxi_validation_rewind(dlxi_validation *reader);

#endif
