/* SPDX-License-Identifier: Apache-2.0 */
/* Hashing: XXH3, 64 bits. For integrity and equality, not against an adversary. */
#ifndef DLXI_BASE_HASH_H
#define DLXI_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

uint64_t dlxi_hash(const void *data, size_t bytes, uint64_t seed);

/* The same with seed 0, of data that comes in pieces: begin, add each, value. */
typedef struct dlxi_hasher dlxi_hasher;

dlx_status dlxi_hasher_open(dlxi_hasher **out, dlx_error *error);
void dlxi_hasher_begin(dlxi_hasher *hasher);
void dlxi_hasher_add(dlxi_hasher *hasher, const void *data, size_t bytes);
uint64_t dlxi_hasher_value(const dlxi_hasher *hasher);
void dlxi_hasher_close(dlxi_hasher **hasher); /* takes NULL */

#endif
