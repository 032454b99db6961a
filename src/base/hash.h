/* SPDX-License-Identifier: Apache-2.0 */
/* Hashing: XXH3, 64 bits. For integrity and equality, not against an adversary. */
#ifndef DLXI_BASE_HASH_H
#define DLXI_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t dlxi_hash(const void *data, size_t bytes, uint64_t seed);

#endif
