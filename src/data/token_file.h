/* SPDX-License-Identifier: Apache-2.0 */
/* Token shards: files of token ids, mapped into memory (docs/formats.md has the bytes). Not the
 * shards of parameters that ranks synchronise. */
#ifndef DLXI_DATA_TOKEN_FILE_H
#define DLXI_DATA_TOKEN_FILE_H

#include "base/error.h"
#include "base/file.h"
#include "data/tokenizer.h"

enum { DLXI_TOKEN_FILE_HEADER_BYTES = 128 };

/* Read-only after open: any number of threads may share one. */
typedef struct dlxi_token_file {
    /* count × token_bytes, little-endian, every id checked to be below vocabulary */
    const uint8_t *payload;
    int64_t count;        /* tokens, ≥ 1 */
    uint32_t token_bytes; /* 1, 2 or 4 */
    uint32_t vocabulary;
    uint64_t tokenizer_hash;
    char tokenizer_name[DLXI_TOKENIZER_NAME_BYTES];
    char *key, *path; /* as given to open, for messages */
    dlxi_file_map map;
} dlxi_token_file;

/* Maps a shard and checks all of it: bounds, checksums, ids. Reads the file once. `key` is the
 * option that named the path and begins every message ("data.train"). DLX_DATA where the file is
 * not a whole shard, DLX_CONFIG where it does not exist, DLX_SYSTEM where it can't be read. On
 * success *out is the caller's. */
dlx_status dlxi_token_file_open(dlxi_token_file **out, const char *key, const char *path,
                                dlx_error *error);
void dlxi_token_file_close(dlxi_token_file **shard);

/* The checks of open on bytes in memory: fills *out, which points into data, all but key, path and
 * map. */
dlx_status dlxi_token_file_parse(dlxi_token_file *out, const uint8_t *data, size_t data_bytes,
                                 const char *key, const char *path, dlx_error *error);

/* DLX_CONFIG where the shard's vocabulary is larger than the model's (model.vocabulary); names
 * both. */
dlx_status dlxi_token_file_check_vocabulary(const dlxi_token_file *shard, int64_t model_vocabulary,
                                            dlx_error *error);
/* DLX_CONFIG where two shards were made with different tokenizers; names both. */
dlx_status dlxi_token_file_check_same_tokenizer(const dlxi_token_file *shard,
                                                const dlxi_token_file *other, dlx_error *error);

/* dst[count] ← tokens first … first+count−1, which must lie in the shard (our own bug otherwise).
 */
void dlxi_token_file_read(uint32_t *dst, const dlxi_token_file *shard, int64_t first,
                          int64_t count);

/* Writes a shard under a temporary name; commit puts it in place. The token width is the least that
 * holds the vocabulary. */
typedef struct dlxi_token_file_writer dlxi_token_file_writer;

dlx_status dlxi_token_file_writer_open(dlxi_token_file_writer **out, const char *path,
                                       const dlxi_tokenizer *tokenizer, dlx_error *error);
/* Ids must be below the tokenizer's vocabulary: DLX_ARGUMENT. */
dlx_status dlxi_token_file_writer_append(dlxi_token_file_writer *writer, const uint32_t *tokens,
                                         size_t count, dlx_error *error);
/* DLX_DATA where nothing was appended. After this, whether or not it succeeds, only close is
 * allowed. */
dlx_status dlxi_token_file_writer_commit(dlxi_token_file_writer *writer, dlx_error *error);
/* Without a commit before it, leaves what was at path. */
void dlxi_token_file_writer_close(dlxi_token_file_writer **writer);

#endif
