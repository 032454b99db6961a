/* SPDX-License-Identifier: Apache-2.0 */
/* The model's tensors in files. GPT-2's files have [in, out] matrices and one c_attn for q, k and
 * v; everything else is as in memory. */
#ifndef DLXI_CHECKPOINT_LAYOUT_H
#define DLXI_CHECKPOINT_LAYOUT_H

#include "checkpoint/set.h"
#include "model/model.h"

enum { DLXI_ENTRY_PARTS_MAX = 3 };

/* One tensor of a file: one of the model's, or q, k and v side by side. */
typedef struct dlxi_file_entry {
    char name[DLXI_TENSOR_NAME_MAX];
    bool vector, transposed;
    int64_t rows, cols; /* in the file */
    int parts;
    int64_t id[DLXI_ENTRY_PARTS_MAX], part_cols[DLXI_ENTRY_PARTS_MAX];
    const dlxi_parameter *part[DLXI_ENTRY_PARTS_MAX]; /* for a save */
} dlxi_file_entry;

/* *out[*count] ← all entries of a model, in order of their first id; free with free(). */
dlx_status dlxi_layout_list(dlxi_file_entry **out, int64_t *count, const dlxi_model_config *config,
                            dlx_error *error);

/* The entry's tensor in a set, or NULL; path as in dlxi_set_find. */
const dlxi_file_tensor *dlxi_layout_find(const dlxi_tensor_set *set, const dlxi_file_entry *entry,
                                         const char **path);

/* Checks that the set is the model's. DLX_DATA names a tensor that is missing, surplus, misshapen
 * or of a dtype that is not supported. */
dlx_status dlxi_layout_check(const dlxi_tensor_set *set, const dlxi_file_entry *entry,
                             int64_t count, const dlxi_model_config *config, dlx_error *error);

#endif
