/* SPDX-License-Identifier: Apache-2.0 */
/* Token files: writing. */
#include "data/token_file_format.h"
#include "base/hash.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct dlxi_token_file_writer {
    dlxi_file_writer *file;
    XXH3_state_t *payload_hash;
    char *path; /* for messages */
    uint64_t count, tokenizer_hash;
    uint32_t token_bytes, vocabulary;
    char tokenizer_name[DLXI_TOKENIZER_NAME_BYTES];
};

static void store(uint8_t *to, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = (uint8_t)(value >> 8 * i);
}

dlx_status dlxi_token_file_writer_open(dlxi_token_file_writer **out, const char *path,
                                       const dlxi_tokenizer *tokenizer, dlx_error *error) {
    static const uint8_t blank[DLXI_TOKEN_FILE_HEADER_BYTES]; /* commit fills it */
    dlx_status status = DLX_OK;
    dlxi_token_file_writer *writer = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&writer, 1, error));
    writer->tokenizer_hash = tokenizer->hash;
    writer->vocabulary = tokenizer->vocabulary;
    writer->token_bytes = dlxi_token_file_token_bytes(tokenizer->vocabulary);
    memcpy(writer->tokenizer_name, tokenizer->name, sizeof writer->tokenizer_name);
    writer->path = strdup(path);
    writer->payload_hash = XXH3_createState();
    if (writer->path == NULL || writer->payload_hash == NULL)
        DLX_FAIL_OUT(error, MEMORY, "out of memory: can't write %s; free some memory and try again",
                     path);
    XXH3_64bits_reset(writer->payload_hash);
    DLX_TRY_OUT(dlxi_file_writer_open(&writer->file, path, error));
    DLX_TRY_OUT(dlxi_file_writer_append(writer->file, blank, sizeof blank, error));
    *out = writer;
    writer = NULL;
out:
    dlxi_token_file_writer_close(&writer);
    return status;
}

dlx_status dlxi_token_file_writer_append(dlxi_token_file_writer *writer, const uint32_t *tokens,
                                         size_t count, dlx_error *error) {
    enum { PIECE_TOKENS = 4096 };
    uint8_t piece[PIECE_TOKENS * 4];
    while (count > 0) {
        size_t some = count < PIECE_TOKENS ? count : PIECE_TOKENS;
        for (size_t i = 0; i < some; i++) {
            if (tokens[i] >= writer->vocabulary) {
                DLX_FAIL(error, ARGUMENT,
                         "%s: token %lu is not in the vocabulary; allowed: 0 to %lu", writer->path,
                         (unsigned long)tokens[i], (unsigned long)writer->vocabulary - 1);
            }
            store(piece + i * writer->token_bytes, tokens[i], writer->token_bytes);
        }
        XXH3_64bits_update(writer->payload_hash, piece, some * writer->token_bytes);
        DLX_TRY(dlxi_file_writer_append(writer->file, piece, some * writer->token_bytes, error));
        writer->count += some;
        tokens += some;
        count -= some;
    }
    return DLX_OK;
}

dlx_status dlxi_token_file_writer_commit(dlxi_token_file_writer *writer, dlx_error *error) {
    uint8_t header[DLXI_TOKEN_FILE_HEADER_BYTES] = {0};
    if (writer->count == 0)
        DLX_FAIL(error, DATA, "%s: would have no tokens; give it more text", writer->path);
    memcpy(header, TOKEN_FILE_MAGIC, MAGIC_BYTES);
    store(header + AT_VERSION, TOKEN_FILE_VERSION, 4);
    store(header + AT_HEADER_BYTES, DLXI_TOKEN_FILE_HEADER_BYTES, 4);
    store(header + AT_TOKEN_BYTES, writer->token_bytes, 4);
    store(header + AT_VOCABULARY, writer->vocabulary, 4);
    store(header + AT_COUNT, writer->count, 8);
    store(header + AT_TOKENIZER_HASH, writer->tokenizer_hash, 8);
    store(header + AT_PAYLOAD_HASH, XXH3_64bits_digest(writer->payload_hash), 8);
    memcpy(header + AT_NAME, writer->tokenizer_name, DLXI_TOKENIZER_NAME_BYTES);
    store(header + AT_HEADER_HASH, dlxi_hash(header, AT_HEADER_HASH, 0), 8);
    DLX_TRY(dlxi_file_writer_replace(writer->file, 0, header, sizeof header, error));
    return dlxi_file_writer_commit(writer->file, error);
}

void dlxi_token_file_writer_close(dlxi_token_file_writer **writer) {
    dlxi_token_file_writer *w = *writer;
    if (w == NULL) return;
    dlxi_file_writer_close(&w->file);
    XXH3_freeState(w->payload_hash);
    free(w->path);
    free(w);
    *writer = NULL;
}
