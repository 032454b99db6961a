/* SPDX-License-Identifier: Apache-2.0 */
/* Loads the weights of a directory into the tensors of a stage. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/layout.h"
#include "base/memory.h"
#include "base/panic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* dst[cols, rows] ← columns [column, column + cols) of the file's tensor, a few rows at a time. */
static dlx_status transposed_read(float *dst, const dlxi_file_tensor *tensor,
                                  const dlxi_file_entry *e, int64_t column, int64_t cols,
                                  dlx_error *error) {
    enum { BLOCK_ROWS = 16 };
    float *block = NULL;
    dlx_status status = DLX_OK;
    DLX_TRY(DLXI_NEW(&block, BLOCK_ROWS * e->cols, error));
    for (int64_t first = 0; first < e->rows; first += BLOCK_ROWS) {
        int64_t rows = e->rows - first < BLOCK_ROWS ? e->rows - first : BLOCK_ROWS;
        DLX_TRY_OUT(dlxi_file_tensor_read(block, tensor, first * e->cols, rows * e->cols, error));
        for (int64_t c = 0; c < cols; c++)
            for (int64_t r = 0; r < rows; r++)
                dst[c * e->rows + first + r] = block[r * e->cols + column + c];
    }
out:
    free(block);
    return status;
}

static dlx_status parameter_read(const dlxi_tensor_set *set, const dlxi_file_entry *entries,
                                 int64_t entry_count, dlxi_parameter *parameter, dlx_error *error) {
    for (int64_t i = 0;; i++) {
        DLXI_ASSERT(i < entry_count); /* every tensor of the model is in an entry */
        const dlxi_file_entry *e = &entries[i];
        int64_t column = 0;
        for (int p = 0; p < e->parts; column += e->part_cols[p++]) {
            if (e->id[p] != parameter->tensor.id) continue;
            const dlxi_file_tensor *tensor = dlxi_layout_find(set, e, NULL);
            if (e->transposed)
                return transposed_read(parameter->data, tensor, e, column, e->part_cols[p], error);
            return dlxi_file_tensor_read(parameter->data, tensor, column, parameter->count, error);
        }
    }
}

/* A tied head is the table; a file may have a copy. *differs ← whether that is another one. */
static dlx_status head_compare(bool *differs, const dlxi_tensor_set *set,
                               const dlxi_file_entry *table, dlx_error *error) {
    enum { BLOCK = 4096 };
    float own[BLOCK], other[BLOCK];
    const dlxi_file_tensor *head = dlxi_set_find(set, "lm_head.weight", NULL),
                           *tensor = dlxi_layout_find(set, table, NULL);
    *differs = head != NULL &&
               (head->count != tensor->count || head->dims != tensor->dims ||
                head->shape[0] != tensor->shape[0] || dlxi_file_tensor_check(head, NULL) != DLX_OK);
    if (head == NULL || *differs) return DLX_OK;
    for (int64_t first = 0; first < head->count && !*differs; first += BLOCK) {
        int64_t count = head->count - first < BLOCK ? head->count - first : BLOCK;
        DLX_TRY(dlxi_file_tensor_read(own, tensor, first, count, error));
        DLX_TRY(dlxi_file_tensor_read(other, head, first, count, error));
        *differs = memcmp(own, other, (size_t)count * sizeof *own) != 0;
    }
    return DLX_OK;
}

static dlx_status head_warn(const dlxi_tensor_set *set, const dlxi_file_entry *table, dlx_log log,
                            void *log_context, dlx_error *error) {
    char line[512];
    bool differs;
    DLX_TRY(head_compare(&differs, set, table, error));
    if (!differs || log == NULL) return DLX_OK;
    snprintf(line, sizeof line,
             "warning: %.300s: tensor 'lm_head.weight' is not used: config.json says "
             "tie_word_embeddings, but it differs from '%s'; set that to false to use both",
             set->path, table->name);
    log(log_context, line);
    return DLX_OK;
}

dlx_status dlxi_checkpoint_load(const char *directory, const dlxi_model_config *config,
                                dlxi_parameter *parameter, int64_t count, dlx_log log,
                                void *log_context, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_tensor_set *set = NULL;
    dlxi_file_entry *entries = NULL;
    int64_t entry_count;
    DLX_TRY(dlxi_set_open(&set, directory, error));
    DLX_TRY_OUT(dlxi_layout_list(&entries, &entry_count, config, error));
    DLX_TRY_OUT(dlxi_layout_check(set, entries, entry_count, config, error));
    if (config->tied_head) /* the first tensor is the table */
        DLX_TRY_OUT(head_warn(set, &entries[0], log, log_context, error));
    for (int64_t i = 0; i < count; i++)
        DLX_TRY_OUT(parameter_read(set, entries, entry_count, &parameter[i], error));
out:
    free(entries);
    dlxi_set_close(&set);
    return status;
}
