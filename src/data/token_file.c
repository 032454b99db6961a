/* SPDX-License-Identifier: Apache-2.0 */
/* The token shard format (docs/formats.md), read. */
#include "data/token_file.h"
#include "data/shard_format.h"
#include "base/bits.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static uint32_t load_token(const uint8_t *payload, uint32_t token_bytes, int64_t index) {
    const uint8_t *from = payload + (size_t)index * token_bytes;
    switch (token_bytes) {
    case 1:
        return from[0];
    case 2:
        return dlxi_load16(from);
    default:
        return dlxi_load32(from);
    }
}

uint32_t dlxi_token_file_token_bytes(uint32_t vocabulary) {
    return vocabulary <= 1u << 8 ? 1 : vocabulary <= 1u << 16 ? 2 : 4;
}

/* Hashes the payload and looks for its largest id, a cache-sized piece at a time: the file is read
 * once. */
static dlx_status scan_payload(uint64_t *hash, uint32_t *token_max, const dlxi_token_file *shard,
                               dlx_error *error) {
    enum { PIECE_TOKENS = 1 << 16 };
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL)
        DLX_FAIL(error, MEMORY,
                 "out of memory: a checksum's state; free some memory and try again");
    XXH3_64bits_reset(state);
    *token_max = 0;
    for (int64_t first = 0; first < shard->count; first += PIECE_TOKENS) {
        int64_t count = shard->count - first < PIECE_TOKENS ? shard->count - first : PIECE_TOKENS;
        const uint8_t *piece = shard->payload + (size_t)first * shard->token_bytes;
        XXH3_64bits_update(state, piece, (size_t)count * shard->token_bytes);
        for (int64_t i = 0; i < count; i++) {
            uint32_t token = load_token(piece, shard->token_bytes, i);
            if (token > *token_max) *token_max = token;
        }
    }
    *hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return DLX_OK;
}

/* Where a shard is unusable, making it again is the way out. */
#define REMAKE "; run 'dilocox tokenize' (or 'make data') again"

/* Checks the header's own bytes; nothing of it is used before its checksum holds. */
static dlx_status check_header(const uint8_t *data, size_t data_bytes, const char *key,
                               const char *path, dlx_error *error) {
    size_t magic_bytes = data_bytes < SHARD_MAGIC_BYTES ? data_bytes : SHARD_MAGIC_BYTES;
    if (magic_bytes > 0 && memcmp(data, SHARD_MAGIC, magic_bytes) != 0) {
        DLX_FAIL(
            error, DATA,
            "%s: '%s' is not a token shard; run 'dilocox tokenize' (or 'make data') to make one",
            key, path);
    }
    if (data_bytes < DLXI_TOKEN_FILE_HEADER_BYTES) {
        DLX_FAIL(error, DATA, "%s: '%s' is cut short: it has %zu bytes, its header alone %d" REMAKE,
                 key, path, data_bytes, DLXI_TOKEN_FILE_HEADER_BYTES);
    }
    uint32_t version = dlxi_load32(data + SHARD_AT_VERSION);
    if (version != SHARD_VERSION) {
        DLX_FAIL(
            error, DATA,
            "%s: '%s' has format version %lu, or is damaged; this dilocox reads version %d" REMAKE,
            key, path, (unsigned long)version, SHARD_VERSION);
    }
    if (dlxi_load64(data + SHARD_AT_HEADER_HASH) != dlxi_hash(data, SHARD_AT_HEADER_HASH, 0))
        DLX_FAIL(error, DATA, "%s: '%s' is damaged: its header's checksum does not match" REMAKE,
                 key, path);
    return DLX_OK;
}

dlx_status dlxi_token_file_parse(dlxi_token_file *out, const uint8_t *data, size_t data_bytes,
                                 const char *key, const char *path, dlx_error *error) {
    DLX_TRY(check_header(data, data_bytes, key, path, error));
    uint32_t token_bytes = dlxi_load32(data + SHARD_AT_TOKEN_BYTES),
             vocabulary = dlxi_load32(data + SHARD_AT_VOCABULARY);
    uint64_t count = dlxi_load64(data + SHARD_AT_COUNT);
    bool width_known = token_bytes == 1 || token_bytes == 2 || token_bytes == 4;
    if (!width_known || vocabulary == 0 || token_bytes < dlxi_token_file_token_bytes(vocabulary) ||
        dlxi_load32(data + SHARD_AT_HEADER_BYTES) != DLXI_TOKEN_FILE_HEADER_BYTES ||
        data[SHARD_AT_NAME + DLXI_TOKENIZER_NAME_BYTES - 1] != '\0') {
        DLX_FAIL(error, DATA,
                 "%s: '%s' has an impossible header: %lu bytes a token, vocabulary %lu" REMAKE, key,
                 path, (unsigned long)token_bytes, (unsigned long)vocabulary);
    }
    if (count == 0)
        DLX_FAIL(error, DATA, "%s: '%s' has no tokens; tokenize a text that is not empty", key,
                 path);
    size_t payload_bytes = data_bytes - DLXI_TOKEN_FILE_HEADER_BYTES;
    if (count != payload_bytes / token_bytes || payload_bytes % token_bytes != 0) {
        bool shorter = count > payload_bytes / token_bytes;
        DLX_FAIL(
            error, DATA,
            "%s: '%s' is %s: its header says %llu tokens of %lu bytes, %zu bytes follow" REMAKE,
            key, path, shorter ? "cut short" : "too long", (unsigned long long)count,
            (unsigned long)token_bytes, payload_bytes);
    }
    *out = (dlxi_token_file){.payload = data + DLXI_TOKEN_FILE_HEADER_BYTES,
                             .count = (int64_t)count,
                             .token_bytes = token_bytes,
                             .vocabulary = vocabulary,
                             .tokenizer_hash = dlxi_load64(data + SHARD_AT_TOKENIZER_HASH)};
    memcpy(out->tokenizer_name, data + SHARD_AT_NAME, DLXI_TOKENIZER_NAME_BYTES);
    uint64_t hash = 0;
    uint32_t token_max = 0;
    DLX_TRY(scan_payload(&hash, &token_max, out, error));
    if (hash != dlxi_load64(data + SHARD_AT_PAYLOAD_HASH))
        DLX_FAIL(error, DATA, "%s: '%s' is damaged: its tokens' checksum does not match" REMAKE,
                 key, path);
    if (token_max >= vocabulary) {
        DLX_FAIL(error, DATA, "%s: '%s' holds token %lu, but its vocabulary is %lu" REMAKE, key,
                 path, (unsigned long)token_max, (unsigned long)vocabulary);
    }
    return DLX_OK;
}

static dlx_status copy_text(char **out, const char *text, dlx_error *error) {
    size_t bytes = strlen(text) + 1;
    DLX_TRY(DLXI_NEW(out, bytes, error));
    memcpy(*out, text, bytes);
    return DLX_OK;
}

dlx_status dlxi_token_file_open(dlxi_token_file **out, const char *key, const char *path,
                                dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_token_file *shard = NULL;
    dlxi_file_map map = {0};
    dlx_error cause;
    *out = NULL;
    status = dlxi_file_map_open(&map, path, &cause);
    if (status == DLX_SYSTEM && cause.system_errno == ENOENT) {
        DLX_FAIL(error, CONFIG,
                 "%s: no such file '%s'; run 'dilocox tokenize' (or 'make data') first", key, path);
    }
    if (status != DLX_OK) {
        if (error != NULL) *error = cause;
        dlxi_error_prefix(error, "%s: ", key);
        return status;
    }
    DLX_TRY_OUT(DLXI_NEW(&shard, 1, error));
    DLX_TRY_OUT(dlxi_token_file_parse(shard, map.data, map.bytes, key, path, error));
    shard->map = map;
    map = (dlxi_file_map){0};
    DLX_TRY_OUT(copy_text(&shard->key, key, error));
    DLX_TRY_OUT(copy_text(&shard->path, path, error));
    *out = shard;
    shard = NULL;
out:
    dlxi_token_file_close(&shard);
    dlxi_file_map_close(&map);
    return status;
}

void dlxi_token_file_close(dlxi_token_file **shard) {
    if (*shard == NULL) return;
    free((*shard)->path);
    free((*shard)->key);
    dlxi_file_map_close(&(*shard)->map);
    free(*shard);
    *shard = NULL;
}

dlx_status dlxi_token_file_check_vocabulary(const dlxi_token_file *shard, int64_t model_vocabulary,
                                            dlx_error *error) {
    if ((int64_t)shard->vocabulary <= model_vocabulary) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: '%s' has a vocabulary of %lu, the model one of %lld; set model.vocabulary to %lu "
             "or more",
             shard->key, shard->path, (unsigned long)shard->vocabulary, (long long)model_vocabulary,
             (unsigned long)shard->vocabulary);
}

dlx_status dlxi_token_file_check_same_tokenizer(const dlxi_token_file *shard,
                                                const dlxi_token_file *other, dlx_error *error) {
    if (shard->tokenizer_hash == other->tokenizer_hash) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: '%s' was made with tokenizer '%s' (%016llx), %s: '%s' with '%s' (%016llx); "
             "tokenize both "
             "with one",
             shard->key, shard->path, shard->tokenizer_name,
             (unsigned long long)shard->tokenizer_hash, other->key, other->path,
             other->tokenizer_name, (unsigned long long)other->tokenizer_hash);
}

void dlxi_token_file_read(uint32_t *dst, const dlxi_token_file *shard, int64_t first,
                          int64_t count) {
    DLXI_ASSERT(first >= 0 && count >= 0 && first <= shard->count && count <= shard->count - first);
    for (int64_t i = 0; i < count; i++)
        dst[i] = load_token(shard->payload, shard->token_bytes, first + i);
}
