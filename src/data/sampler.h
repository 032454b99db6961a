/* SPDX-License-Identifier: Apache-2.0 */
/* The order in which windows of a token file are used (leases say by whom). Window w of context T
 * is tokens w·T … w·T+T: inputs are the first T, targets the last T. */
#ifndef DLXI_DATA_SAMPLER_H
#define DLXI_DATA_SAMPLER_H

#include "data/token_file.h"

/* Borrows the file. Nothing to close; threads may share it. */
typedef struct dlxi_sampler {
    const dlxi_token_file *file;
    int64_t context; /* T */
    int64_t windows; /* (tokens − 1) / T, ≥ 1 */
    uint64_t seed;
} dlxi_sampler;

/* DLX_CONFIG if the file has fewer than context + 1 tokens. */
dlx_status dlxi_sampler_open(dlxi_sampler *out, const dlxi_token_file *file, int64_t context,
                             uint64_t seed, dlx_error *error);

/* The window at a position of the run, by dlx_window; any position gives one of the file. */
int64_t dlxi_sampler_window(const dlxi_sampler *sampler, int64_t position);

/* tokens[count,T], targets[count,T] ← the windows at positions[count]. */
void dlxi_sampler_batch(uint32_t *tokens, uint32_t *targets, const dlxi_sampler *sampler,
                        const int64_t *positions, int64_t count);

/* Part `index` of `stride` of a file's first `windows` windows, in order: those that are index
 * modulo stride. Borrows the file. One thread at a time. */
typedef struct dlxi_validation {
    const dlxi_token_file *file;
    int64_t context; /* T */
    int64_t windows; /* of all parts, ≥ 1 */
    int64_t index, stride;
    int64_t next; /* window */
} dlxi_validation;

/* tokens_max: of all parts, rounded down to windows but at least one; 0: the whole file. DLX_CONFIG
 * if the file has fewer than context + 1 tokens. 0 ≤ index < stride. */
dlx_status dlxi_validation_open(dlxi_validation *out, const dlxi_token_file *file, int64_t context,
                                int64_t tokens_max, int64_t index, int64_t stride,
                                dlx_error *error);
/* The windows of this part; 0 if there are fewer windows than parts. */
int64_t dlxi_validation_count(const dlxi_validation *reader);
/* tokens[n,T], targets[n,T] ← the next n ≤ count_max windows; returns n, 0 at the end. */
int64_t dlxi_validation_next(uint32_t *tokens, uint32_t *targets, dlxi_validation *reader,
                             int64_t count_max);

#endif
