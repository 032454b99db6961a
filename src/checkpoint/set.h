/* SPDX-License-Identifier: Apache-2.0 */
/* The weights in a folder as one set of tensors, whether one file holds them or several that an
 * index lists. */
#ifndef DLXI_CHECKPOINT_SET_H
#define DLXI_CHECKPOINT_SET_H

#include "checkpoint/index.h"

enum { DLXI_CHECKPOINT_PATH_BYTES = 4096 };

#define DLXI_SINGLE_NAME "model.safetensors"
#define DLXI_INDEX_NAME  "model.safetensors.index.json"

typedef struct dlxi_tensor_set {
    dlxi_safetensors **file;
    size_t file_count;
    char path[256]; /* the single file's or the index's, for messages */
} dlxi_tensor_set;

/* Opens folder/model.safetensors; where there is none, all files that
 * folder/model.safetensors.index.json lists, and checks that they hold what it says. So does
 * transformers. On success *out is the caller's, closed with dlxi_set_close. DLX_SYSTEM, DLX_DATA.
 * Blocks. */
dlx_status dlxi_set_open(dlxi_tensor_set **out, const char *folder, dlx_error *error);
/* The same of an index in memory. */
dlx_status dlxi_set_open_listed(dlxi_tensor_set **out, const char *folder, const dlxi_index *index,
                                dlx_error *error);
void dlxi_set_close(dlxi_tensor_set **set); /* takes NULL */

/* NULL where there is none. path, which may be NULL, ← that of its file. */
const dlxi_file_tensor *dlxi_set_find(const dlxi_tensor_set *set, const char *name,
                                      const char **path);

/* dst[DLXI_CHECKPOINT_PATH_BYTES] ← folder/file. */
dlx_status dlxi_checkpoint_path(char *dst, const char *folder, const char *file, dlx_error *error);

#endif
