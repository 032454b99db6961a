/* SPDX-License-Identifier: Apache-2.0 */
/* The token file format, version 1: offsets of the header's fields (docs/formats.md). */
#ifndef DLXI_DATA_TOKEN_FILE_FORMAT_H
#define DLXI_DATA_TOKEN_FILE_FORMAT_H

#include "data/token_file.h"

#define TOKEN_FILE_MAGIC "DLXTOKEN"

enum {
    TOKEN_FILE_VERSION = 1,
    MAGIC_BYTES = 8,
    AT_VERSION = 8,
    AT_HEADER_BYTES = 12,
    AT_TOKEN_BYTES = 16,
    AT_VOCABULARY = 20,
    AT_COUNT = 24,
    AT_TOKENIZER_HASH = 32,
    AT_PAYLOAD_HASH = 40,
    AT_NAME = 48,
    AT_HEADER_HASH = DLXI_TOKEN_FILE_HEADER_BYTES - 8
};

/* The smallest of 1, 2 and 4 bytes that holds every id of a vocabulary. */
uint32_t dlxi_token_file_token_bytes(uint32_t vocabulary);

#endif
