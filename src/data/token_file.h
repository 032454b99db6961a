/* SPDX-License-Identifier: Apache-2.0 */
/* Token files: a text's token ids, mapped into memory (docs/formats.md has the bytes). */
#ifndef DLXI_DATA_TOKEN_FILE_H
#define DLXI_DATA_TOKEN_FILE_H

#include "base/error.h"
#include "base/file.h"
#include "data/tokenizer.h"

enum { DLXI_TOKEN_FILE_HEADER_BYTES = 128 };

/* Read-only after open; threads may share it. */
typedef struct dlxi_token_file {
    const uint8_t *payload; /* count × token_bytes, little-endian; every id is below vocabulary */
    int64_t count;          /* tokens, ≥ 1 */
    uint32_t token_bytes;   /* 1, 2 or 4 */
    uint32_t vocabulary;
    uint64_t tokenizer_hash;
    char tokenizer_name[DLXI_TOKENIZER_NAME_BYTES];
    char *key, *path; /* as given to open, for messages */
    dlxi_file_map map;
} dlxi_token_file;

/* Maps a file and checks all of it: bounds, checksums, ids. `key` is the option of the path and
 * begins every message ("data.train"). DLX_DATA if the file is invalid, DLX_CONFIG if it does not
 * exist, DLX_SYSTEM if it can't be read. On success *out is the caller's. */
dlx_status dlxi_token_file_open(dlxi_token_file **out, const char *key, const char *path,
                                dlx_error *error);
void dlxi_token_file_close(dlxi_token_file **file);

/* The checks of open on bytes in memory. *out points into data, and lacks key, path and map. */
dlx_status dlxi_token_file_parse(dlxi_token_file *out, const uint8_t *data, size_t data_bytes,
                                 const char *key, const char *path, dlx_error *error);

/* DLX_CONFIG if the file's vocabulary is larger than the model's. */
dlx_status dlxi_token_file_check_vocabulary(const dlxi_token_file *file, int64_t model_vocabulary,
                                            dlx_error *error);
/* DLX_CONFIG if the files are of different tokenizers. */
dlx_status dlxi_token_file_check_same_tokenizer(const dlxi_token_file *file,
                                                const dlxi_token_file *other, dlx_error *error);

/* dst[count] ← tokens first … first+count−1, which must be in the file. */
void dlxi_token_file_read(uint32_t *dst, const dlxi_token_file *file, int64_t first, int64_t count);

/* Writes a file under a temporary name, which commit renames; with the smallest token width that
 * holds the vocabulary. */
typedef struct dlxi_token_file_writer dlxi_token_file_writer;

dlx_status dlxi_token_file_writer_open(dlxi_token_file_writer **out, const char *path,
                                       const dlxi_tokenizer *tokenizer, dlx_error *error);
/* DLX_ARGUMENT if an id is not below the tokenizer's vocabulary. */
dlx_status dlxi_token_file_writer_append(dlxi_token_file_writer *writer, const uint32_t *tokens,
                                         size_t count, dlx_error *error);
/* DLX_DATA if nothing was appended. Afterwards, even on failure, only close is allowed. */
dlx_status dlxi_token_file_writer_commit(dlxi_token_file_writer *writer, dlx_error *error);
/* Without a commit, leaves path unchanged. */
void dlxi_token_file_writer_close(dlxi_token_file_writer **writer);

#endif
