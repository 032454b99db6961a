/* SPDX-License-Identifier: Apache-2.0 */
/* The weights in a directory as one set of tensors, in one file or several that an index lists. */
#ifndef DLXI_CHECKPOINT_SET_H
#define DLXI_CHECKPOINT_SET_H

#include "checkpoint/index.h"

#define DLXI_SINGLE_NAME "model.safetensors"
#define DLXI_INDEX_NAME  "model.safetensors.index.json"

typedef struct dlxi_tensor_set {
    dlxi_safetensors **file;
    size_t file_count;
    char path[256]; /* the single file's or the index's, for messages */
} dlxi_tensor_set;

/* Opens model.safetensors or, if there is none, all files that model.safetensors.index.json lists,
 * as transformers does, and checks them against it. Close with dlxi_set_close. DLX_SYSTEM,
 * DLX_DATA. Blocks. */
dlx_status dlxi_set_open(dlxi_tensor_set **out, const char *directory, dlx_error *error);
/* The same for an index in memory. */
dlx_status dlxi_set_open_listed(dlxi_tensor_set **out, const char *directory,
                                const dlxi_index *index, dlx_error *error);
void dlxi_set_close(dlxi_tensor_set **set); /* takes NULL */

/* NULL if there is none. *path ← its file's; may be NULL. */
const dlxi_file_tensor *dlxi_set_find(const dlxi_tensor_set *set, const char *name,
                                      const char **path);

#endif
