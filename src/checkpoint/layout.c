/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/layout.h"
#include "base/memory.h"
#include "base/panic.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static bool gpt2_transposes(const char *name) {
    return ends_with(name, ".c_attn.q.weight") || ends_with(name, ".c_attn.k.weight") ||
           ends_with(name, ".c_attn.v.weight") || ends_with(name, ".c_proj.weight") ||
           ends_with(name, ".c_fc.weight");
}

/* `….c_attn.q.weight` → `….c_attn.weight`. Returns the letter, or 0 for other names. */
static char name_strip(char *name) {
    char *at = strstr(name, ".c_attn.");
    if (at == NULL) return 0;
    at += strlen(".c_attn.");
    char letter = *at;
    memmove(at, at + 2, strlen(at + 2) + 1);
    return letter;
}

static void part_add(dlxi_file_entry *e, const dlxi_tensor *tensor) {
    DLXI_ASSERT(e->parts < DLXI_ENTRY_PARTS_MAX);
    int64_t cols = e->transposed ? tensor->rows : tensor->cols;
    e->id[e->parts] = tensor->id;
    e->part_cols[e->parts] = cols;
    e->rows = e->transposed ? tensor->cols : tensor->rows;
    e->cols += cols;
    e->parts++;
}

/* Fills entries, at most one per tensor, and returns their number. */
static int64_t entries_list(dlxi_file_entry *entries, const dlxi_model_config *config) {
    int64_t count = 0;
    for (int64_t id = 0; id < dlxi_model_tensor_count(config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        bool gpt2 = config->family == DLXI_FAMILY_GPT2;
        dlxi_file_entry fresh = {.vector = tensor.vector,
                                 .transposed = gpt2 && gpt2_transposes(tensor.name)};
        memcpy(fresh.name, tensor.name, sizeof fresh.name);
        char letter = gpt2 ? name_strip(fresh.name) : 0;
        dlxi_file_entry *e = NULL;
        for (int64_t i = count - 1; (letter == 'k' || letter == 'v') && i >= 0 && e == NULL; i--)
            if (strcmp(entries[i].name, fresh.name) == 0) e = &entries[i];
        if (e == NULL) {
            e = &entries[count++];
            *e = fresh;
        }
        part_add(e, &tensor);
    }
    return count;
}

dlx_status dlxi_layout_list(dlxi_file_entry **out, int64_t *count, const dlxi_model_config *config,
                            dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, dlxi_model_tensor_count(config), error));
    *count = entries_list(*out, config);
    return DLX_OK;
}

/* ---- check ----------------------------------------------------------------------------------- */

/* GPT-2's original files omit the prefix. */
const dlxi_file_tensor *dlxi_layout_find(const dlxi_tensor_set *set, const dlxi_file_entry *entry,
                                         const char **path) {
    static const char prefix[] = "transformer.";
    const dlxi_file_tensor *tensor = dlxi_set_find(set, entry->name, path);
    if (tensor == NULL && strncmp(entry->name, prefix, strlen(prefix)) == 0)
        tensor = dlxi_set_find(set, entry->name + strlen(prefix), path);
    return tensor;
}

static dlx_status entry_check(const dlxi_tensor_set *set, const dlxi_file_entry *e,
                              dlx_error *error) {
    const char *path = set->path;
    const dlxi_file_tensor *tensor = dlxi_layout_find(set, e, &path);
    if (tensor == NULL)
        DLX_FAIL(error, DATA,
                 "%s: tensor '%s' is missing; does the file belong to this config.json?", path,
                 e->name);
    bool fits =
        e->vector ? tensor->dims == 1 && tensor->shape[0] == e->cols
                  : tensor->dims == 2 && tensor->shape[0] == e->rows && tensor->shape[1] == e->cols;
    if (fits) {
        dlx_status status = dlxi_file_tensor_check(tensor, error);
        if (status != DLX_OK) dlxi_error_prefix(error, "%s: ", path);
        return status;
    }
    char shape[24 * DLXI_SAFETENSORS_DIMS_MAX] = "", want[64];
    size_t at = 0;
    for (int i = 0; i < tensor->dims; i++)
        at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%" PRId64, i == 0 ? "" : ", ",
                               tensor->shape[i]);
    if (e->vector) {
        snprintf(want, sizeof want, "%" PRId64, e->cols);
    } else {
        snprintf(want, sizeof want, "%" PRId64 ", %" PRId64, e->rows, e->cols);
    }
    DLX_FAIL(error, DATA, "%s: tensor '%s' has shape [%s], the config needs [%s]", path, e->name,
             shape, want);
}

/* Buffers that files have besides weights, and a tied head's second copy. */
static bool may_be_surplus(const dlxi_model_config *config, const char *name) {
    if (strcmp(name, "lm_head.weight") == 0) return config->tied_head;
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq");
}

dlx_status dlxi_layout_check(const dlxi_tensor_set *set, const dlxi_file_entry *entry,
                             int64_t count, const dlxi_model_config *config, dlx_error *error) {
    size_t tensors = 0;
    for (int64_t i = 0; i < count; i++) DLX_TRY(entry_check(set, &entry[i], error));
    for (size_t f = 0; f < set->file_count; f++) tensors += dlxi_safetensors_count(set->file[f]);
    if (tensors == (size_t)count) return DLX_OK;
    for (size_t f = 0; f < set->file_count; f++) {
        for (size_t i = 0; i < dlxi_safetensors_count(set->file[f]); i++) {
            const dlxi_file_tensor *tensor = dlxi_safetensors_at(set->file[f], i);
            bool known = may_be_surplus(config, tensor->name);
            for (int64_t j = 0; j < count && !known; j++)
                known = dlxi_layout_find(set, &entry[j], NULL) == tensor;
            if (!known)
                DLX_FAIL(
                    error, DATA,
                    "%s: tensor '%.96s' is not one of the config's; does the file belong to this "
                    "config.json?",
                    dlxi_safetensors_path(set->file[f]), tensor->name);
        }
    }
    return DLX_OK;
}
