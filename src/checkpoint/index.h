/* SPDX-License-Identifier: Apache-2.0 */
/* model.safetensors.index.json: which file of a sharded set holds which tensor, {"metadata":
 * {"total_size": bytes}, "weight_map": {tensor: file}}. A reader trusts nothing in it: files are
 * plain names in the index's own folder, and their number and the number of tensors are bounded. */
#ifndef DLXI_CHECKPOINT_INDEX_H
#define DLXI_CHECKPOINT_INDEX_H

#include "checkpoint/safetensors.h"

enum {
    DLXI_INDEX_FILES_MAX = 1024,
    DLXI_INDEX_TENSORS_MAX = 1 << 17,
    DLXI_INDEX_BYTES_MAX = 1 << 26
};

typedef struct dlxi_index dlxi_index;

/* On success *out is the caller's, closed with dlxi_index_close. DLX_DATA where the text is no
 * index or asks for too much; `path` is what messages call it. */
dlx_status dlxi_index_parse(dlxi_index **out, const char *text, size_t bytes, const char *path,
                            dlx_error *error);
/* The same from a file; DLX_SYSTEM where it can't be read. Blocks. */
dlx_status dlxi_index_read(dlxi_index **out, const char *path, dlx_error *error);
void dlxi_index_close(dlxi_index **index); /* takes NULL */

/* The distinct files, at least one, and their names; the index's. */
size_t dlxi_index_file_count(const dlxi_index *index);
const char *dlxi_index_file(const dlxi_index *index, size_t i);
const char *dlxi_index_path(const dlxi_index *index);

/* file[dlxi_index_file_count], opened in that order: whether each holds what the index says of it
 * and nothing else. DLX_DATA names the tensor that is missing, in two files, or not listed. */
dlx_status dlxi_index_check(const dlxi_index *index, dlxi_safetensors *const *file,
                            dlx_error *error);

typedef struct dlxi_index_item {
    const char *tensor, *file;
} dlxi_index_item;

/* *out ← the index's text, free with free(). total_bytes: of all tensors. */
dlx_status dlxi_index_text(char **out, const dlxi_index_item *item, size_t count,
                           int64_t total_bytes, dlx_error *error);

#endif
