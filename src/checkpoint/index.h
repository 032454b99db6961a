/* SPDX-License-Identifier: Apache-2.0 */
/* model.safetensors.index.json: which file of a sharded set holds which tensor.
 *
 *   {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}
 *
 * It is not trusted: files are plain names in the index's own directory, and the numbers of files
 * and tensors are bounded. */
#ifndef DLXI_CHECKPOINT_INDEX_H
#define DLXI_CHECKPOINT_INDEX_H

#include "checkpoint/safetensors.h"

enum {
    DLXI_INDEX_FILES_MAX = 1024,
    DLXI_INDEX_TENSORS_MAX = 1 << 17,
    DLXI_INDEX_BYTES_MAX = 1 << 26
};

typedef struct dlxi_index dlxi_index;

/* Close with dlxi_index_close. DLX_DATA if the text is not an index or exceeds a limit; messages
 * call it `path`. */
dlx_status dlxi_index_parse(dlxi_index **out, const char *text, size_t bytes, const char *path,
                            dlx_error *error);
/* The same from a file; also DLX_SYSTEM. Blocks. */
dlx_status dlxi_index_read(dlxi_index **out, const char *path, dlx_error *error);
void dlxi_index_close(dlxi_index **index); /* takes NULL */

/* The distinct files, at least one, and their names, which are the index's. */
size_t dlxi_index_file_count(const dlxi_index *index);
const char *dlxi_index_file(const dlxi_index *index, size_t i);
const char *dlxi_index_path(const dlxi_index *index);

/* Checks that each file, in the index's order, has exactly the tensors listed for it. DLX_DATA
 * names the tensor that is missing, in another file, or not listed. */
dlx_status dlxi_index_check(const dlxi_index *index, dlxi_safetensors *const *file,
                            dlx_error *error);

typedef struct dlxi_index_item {
    const char *tensor, *file;
} dlxi_index_item;

/* *out ← the text of an index, free with free(). total_bytes: of all tensors. */
dlx_status dlxi_index_text(char **out, const dlxi_index_item *item, size_t count,
                           int64_t total_bytes, dlx_error *error);

#endif
