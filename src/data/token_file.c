/* SPDX-License-Identifier: Apache-2.0 */
/* Token files: reading and checking. */
#include "data/token_file.h"
#include "data/token_file_format.h"
#include "base/bits.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/panic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static uint32_t token_load(const uint8_t *payload, uint32_t token_bytes, int64_t index) {
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

/* The payload's hash and largest id, in one pass of cache-sized pieces. */
static dlx_status payload_scan(uint64_t *hash, uint32_t *token_max, const dlxi_token_file *file,
                               dlx_error *error) {
    enum { PIECE_TOKENS = 1 << 16 };
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL)
        DLX_FAIL(error, MEMORY,
                 "out of memory: a checksum's state; free some memory and try again");
    XXH3_64bits_reset(state);
    *token_max = 0;
    for (int64_t first = 0; first < file->count; first += PIECE_TOKENS) {
        int64_t count = file->count - first < PIECE_TOKENS ? file->count - first : PIECE_TOKENS;
        const uint8_t *piece = file->payload + (size_t)first * file->token_bytes;
        XXH3_64bits_update(state, piece, (size_t)count * file->token_bytes);
        for (int64_t i = 0; i < count; i++) {
            uint32_t token = token_load(piece, file->token_bytes, i);
            if (token > *token_max) *token_max = token;
        }
    }
    *hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return DLX_OK;
}

#define REMAKE "; run 'dilocox tokenize' (or 'make data') again"

/* No field is used before the header's checksum holds. */
static dlx_status header_check(const uint8_t *data, size_t data_bytes, const char *key,
                               const char *path, dlx_error *error) {
    size_t magic_bytes = data_bytes < MAGIC_BYTES ? data_bytes : MAGIC_BYTES;
    if (magic_bytes > 0 && memcmp(data, TOKEN_FILE_MAGIC, magic_bytes) != 0) {
        DLX_FAIL(
            error, DATA,
            "%s: '%s' is not a token file; run 'dilocox tokenize' (or 'make data') to make one",
            key, path);
    }
    if (data_bytes < DLXI_TOKEN_FILE_HEADER_BYTES) {
        DLX_FAIL(error, DATA, "%s: '%s' is cut short: it has %zu bytes, its header alone %d" REMAKE,
                 key, path, data_bytes, DLXI_TOKEN_FILE_HEADER_BYTES);
    }
    uint32_t version = dlxi_load32(data + AT_VERSION);
    if (version != TOKEN_FILE_VERSION) {
        DLX_FAIL(
            error, DATA,
            "%s: '%s' has format version %lu, or is damaged; this dilocox reads version %d" REMAKE,
            key, path, (unsigned long)version, TOKEN_FILE_VERSION);
    }
    if (dlxi_load64(data + AT_HEADER_HASH) != dlxi_hash(data, AT_HEADER_HASH, 0))
        DLX_FAIL(error, DATA, "%s: '%s' is damaged: its header's checksum does not match" REMAKE,
                 key, path);
    return DLX_OK;
}

dlx_status dlxi_token_file_parse(dlxi_token_file *out, const uint8_t *data, size_t data_bytes,
                                 const char *key, const char *path, dlx_error *error) {
    DLX_TRY(header_check(data, data_bytes, key, path, error));
    uint32_t token_bytes = dlxi_load32(data + AT_TOKEN_BYTES),
             vocabulary = dlxi_load32(data + AT_VOCABULARY);
    uint64_t count = dlxi_load64(data + AT_COUNT);
    bool width_known = token_bytes == 1 || token_bytes == 2 || token_bytes == 4;
    if (!width_known || vocabulary == 0 || token_bytes < dlxi_token_file_token_bytes(vocabulary) ||
        dlxi_load32(data + AT_HEADER_BYTES) != DLXI_TOKEN_FILE_HEADER_BYTES ||
        data[AT_NAME + DLXI_TOKENIZER_NAME_BYTES - 1] != '\0') {
        DLX_FAIL(error, DATA,
                 "%s: '%s' has an invalid header: %lu bytes per token, vocabulary %lu" REMAKE, key,
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
                             .tokenizer_hash = dlxi_load64(data + AT_TOKENIZER_HASH)};
    memcpy(out->tokenizer_name, data + AT_NAME, DLXI_TOKENIZER_NAME_BYTES);
    uint64_t hash = 0;
    uint32_t token_max = 0;
    DLX_TRY(payload_scan(&hash, &token_max, out, error));
    if (hash != dlxi_load64(data + AT_PAYLOAD_HASH))
        DLX_FAIL(error, DATA, "%s: '%s' is damaged: its tokens' checksum does not match" REMAKE,
                 key, path);
    if (token_max >= vocabulary) {
        DLX_FAIL(error, DATA, "%s: '%s' has token %lu, but its vocabulary is %lu" REMAKE, key, path,
                 (unsigned long)token_max, (unsigned long)vocabulary);
    }
    return DLX_OK;
}

static dlx_status text_copy(char **out, const char *text, dlx_error *error) {
    size_t bytes = strlen(text) + 1;
    DLX_TRY(DLXI_NEW(out, bytes, error));
    memcpy(*out, text, bytes);
    return DLX_OK;
}

dlx_status dlxi_token_file_open(dlxi_token_file **out, const char *key, const char *path,
                                dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_token_file *file = NULL;
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
    DLX_TRY_OUT(DLXI_NEW(&file, 1, error));
    DLX_TRY_OUT(dlxi_token_file_parse(file, map.data, map.bytes, key, path, error));
    file->map = map;
    map = (dlxi_file_map){0};
    DLX_TRY_OUT(text_copy(&file->key, key, error));
    DLX_TRY_OUT(text_copy(&file->path, path, error));
    *out = file;
    file = NULL;
out:
    dlxi_token_file_close(&file);
    dlxi_file_map_close(&map);
    return status;
}

void dlxi_token_file_close(dlxi_token_file **file) {
    if (*file == NULL) return;
    free((*file)->path);
    free((*file)->key);
    dlxi_file_map_close(&(*file)->map);
    free(*file);
    *file = NULL;
}

dlx_status dlxi_token_file_check_vocabulary(const dlxi_token_file *file, int64_t model_vocabulary,
                                            dlx_error *error) {
    if ((int64_t)file->vocabulary <= model_vocabulary) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: '%s' has a vocabulary of %lu, the model one of %lld; set model.vocabulary to %lu "
             "or more",
             file->key, file->path, (unsigned long)file->vocabulary, (long long)model_vocabulary,
             (unsigned long)file->vocabulary);
}

dlx_status dlxi_token_file_check_same_tokenizer(const dlxi_token_file *file,
                                                const dlxi_token_file *other, dlx_error *error) {
    if (file->tokenizer_hash == other->tokenizer_hash) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: '%s' was made with tokenizer '%s' (%016llx), %s: '%s' with '%s' (%016llx); "
             "tokenize both with the same",
             file->key, file->path, file->tokenizer_name, (unsigned long long)file->tokenizer_hash,
             other->key, other->path, other->tokenizer_name,
             (unsigned long long)other->tokenizer_hash);
}

void dlxi_token_file_read(uint32_t *dst, const dlxi_token_file *file, int64_t first,
                          int64_t count) {
    DLXI_ASSERT(first >= 0 && count >= 0 && first <= file->count && count <= file->count - first);
    for (int64_t i = 0; i < count; i++)
        dst[i] = token_load(file->payload, file->token_bytes, first + i);
}
