/* SPDX-License-Identifier: Apache-2.0 */
/* The model's tensors as they lie in files. GPT-2's files hold [in, out] matrices and one c_attn
 * for q, k and v; all else lies as in memory. */
#ifndef DLXI_CHECKPOINT_LAYOUT_H
#define DLXI_CHECKPOINT_LAYOUT_H

#include "checkpoint/set.h"
#include "model/model.h"

enum { DLXI_ENTRY_PARTS_MAX = 3 };

/* One tensor of a file: one of the model's, or q, k and v beside each other. */
typedef struct dlxi_file_entry {
    char name[DLXI_TENSOR_NAME_MAX];
    bool vector, transposed;
    int64_t rows, cols; /* in the file */
    int parts;
    /* part_size: its share of cols */
    int64_t id[DLXI_ENTRY_PARTS_MAX], part_size[DLXI_ENTRY_PARTS_MAX];
    const dlxi_parameter *part[DLXI_ENTRY_PARTS_MAX]; /* when saving */
} dlxi_file_entry;

/* *out[*count] ← all of a model, in order of the first id of each; free with free(). */
dlx_status dlxi_layout_list(dlxi_file_entry **out, int64_t *count, const dlxi_model_config *config,
                            dlx_error *error);

/* The entry's tensor in a set, or NULL; path as in dlxi_set_find. */
const dlxi_file_tensor *dlxi_layout_find(const dlxi_tensor_set *set, const dlxi_file_entry *entry,
                                         const char **path);

/* Whether the set is the model's: DLX_DATA names a tensor that is missing, surplus, misshapen, or
 * can't be read. */
dlx_status dlxi_layout_check(const dlxi_tensor_set *set, const dlxi_file_entry *entry,
                             int64_t count, const dlxi_model_config *config, dlx_error *error);

#endif
