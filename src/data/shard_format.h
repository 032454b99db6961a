/* SPDX-License-Identifier: Apache-2.0 */
/* The token shard format, version 1: where the header's fields lie (docs/formats.md explains them).
 */
#ifndef DLXI_DATA_SHARD_FORMAT_H
#define DLXI_DATA_SHARD_FORMAT_H

#include "data/token_file.h"

#define SHARD_MAGIC "DLXTOKEN"

enum {
    SHARD_VERSION = 1,
    SHARD_MAGIC_BYTES = 8,
    SHARD_AT_VERSION = 8,
    SHARD_AT_HEADER_BYTES = 12,
    SHARD_AT_TOKEN_BYTES = 16,
    SHARD_AT_VOCABULARY = 20,
    SHARD_AT_COUNT = 24,
    SHARD_AT_TOKENIZER_HASH = 32,
    SHARD_AT_PAYLOAD_HASH = 40,
    SHARD_AT_NAME = 48,
    SHARD_AT_HEADER_HASH = DLXI_TOKEN_FILE_HEADER_BYTES - 8
};

/* The least of 1, 2 and 4 bytes that holds every id of a vocabulary. */
uint32_t dlxi_token_file_token_bytes(uint32_t vocabulary);

#endif
