/* The model's tensors as they lie in a file. GPT-2's files hold [in, out] matrices and one c_attn for q, k and v; all
 * else lies as in memory. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "checkpoint/safetensors.h"
#include "base/memory.h"
#include "base/panic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PARTS_MAX = 3, PATH_BYTES = 4096 };

/* One tensor of a file: one of the model's, or q, k and v beside each other. */
typedef struct entry {
    char name[DLXI_TENSOR_NAME_MAX];
    bool vector, transposed;
    int64_t rows, cols; /* in the file */
    int parts;
    int64_t id[PARTS_MAX], part_size[PARTS_MAX]; /* part_size: its share of cols */
    const dlxi_parameter *part[PARTS_MAX];       /* when saving */
} entry;

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static bool gpt2_transposes(const char *name) {
    return ends_with(name, ".c_attn.q.weight") || ends_with(name, ".c_attn.k.weight") ||
           ends_with(name, ".c_attn.v.weight") || ends_with(name, ".c_proj.weight") || ends_with(name, ".c_fc.weight");
}

/* Where `name` is `….c_attn.q.weight`, cuts the part's letter out: `….c_attn.weight`. Returns the letter or 0. */
static char cut_part(char *name) {
    char *at = strstr(name, ".c_attn.");
    if (at == NULL) return 0;
    at += strlen(".c_attn.");
    char letter = *at;
    memmove(at, at + 2, strlen(at + 2) + 1);
    return letter;
}

static void add_part(entry *e, const dlxi_tensor *tensor) {
    DLXI_ASSERT(e->parts < PARTS_MAX);
    int64_t share = e->transposed ? tensor->rows : tensor->cols;
    e->id[e->parts] = tensor->id;
    e->part_size[e->parts] = share;
    e->rows = e->transposed ? tensor->cols : tensor->rows;
    e->cols += share;
    e->parts++;
}

static int64_t entry_count_max(const dlxi_model_config *config) {
    return dlxi_model_tensor_count(config);
}

/* Fills entries[entry_count_max]; returns how many. */
static int64_t list_entries(entry *entries, const dlxi_model_config *config) {
    int64_t count = 0;
    for (int64_t id = 0; id < dlxi_model_tensor_count(config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        bool gpt2 = config->family == DLXI_FAMILY_GPT2;
        entry fresh = {.vector = tensor.vector, .transposed = gpt2 && gpt2_transposes(tensor.name)};
        memcpy(fresh.name, tensor.name, sizeof fresh.name);
        char letter = gpt2 ? cut_part(fresh.name) : 0;
        entry *e = NULL;
        for (int64_t i = count - 1; (letter == 'k' || letter == 'v') && i >= 0 && e == NULL; i--)
            if (strcmp(entries[i].name, fresh.name) == 0) e = &entries[i];
        if (e == NULL) {
            e = &entries[count++];
            *e = fresh;
        }
        add_part(e, &tensor);
    }
    return count;
}

/* ---- save ------------------------------------------------------------------------------------------------------ */

static void write_rows(float *dst, const void *context, int64_t first, int64_t rows) {
    const entry *e = context;
    int64_t column = 0;
    for (int p = 0; p < e->parts; p++) {
        const float *data = e->part[p]->data;
        int64_t size = e->part_size[p];
        if (!e->transposed) {
            for (int64_t r = 0; r < rows; r++)
                memcpy(dst + r * e->cols + column, data + (first + r) * size, (size_t)size * sizeof *dst);
        } else {
            for (int64_t c = 0; c < size; c++)
                for (int64_t r = 0; r < rows; r++) dst[r * e->cols + column + c] = data[c * e->rows + first + r];
        }
        column += size;
    }
}

static dlx_status path_in(char path[PATH_BYTES], const char *folder, const char *file, dlx_error *error) {
    int length = snprintf(path, PATH_BYTES, "%s/%s", folder, file);
    if (length < 0 || length >= PATH_BYTES)
        DLX_FAIL(error, ARGUMENT, "path of checkpoint '%.100s…' is too long", folder);
    return DLX_OK;
}

static dlx_status save_tensors(const char *path, entry *entries, int64_t count, const dlxi_parameter *parameter,
                               dlx_error *error) {
    dlxi_tensor_source *source = NULL;
    DLX_TRY(DLXI_NEW(&source, count, error));
    for (int64_t i = 0; i < count; i++) {
        entry *e = &entries[i];
        for (int p = 0; p < e->parts; p++) e->part[p] = &parameter[e->id[p]];
        source[i] = (dlxi_tensor_source){e->name, e->rows, e->cols, e->vector, write_rows, e};
    }
    dlx_status status = dlxi_safetensors_write(path, source, (size_t)count, error);
    free(source);
    return status;
}

dlx_status dlxi_checkpoint_save(const char *folder, const dlxi_model_config *config, const dlxi_parameter *parameter,
                                int64_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    entry *entries = NULL;
    char path[PATH_BYTES];
    DLXI_ASSERT(count == dlxi_model_tensor_count(config));
    for (int64_t i = 0; i < count; i++) DLXI_ASSERT(parameter[i].tensor.id == i && parameter[i].data != NULL);
    if (mkdir(folder, 0777) != 0 && errno != EEXIST)
        DLX_FAIL(error, SYSTEM, "cannot make the checkpoint folder '%s'; its parent must exist and be writable",
                 folder);
    DLX_TRY_OUT(DLXI_NEW(&entries, entry_count_max(config), error));
    int64_t entry_count = list_entries(entries, config);
    DLX_TRY_OUT(path_in(path, folder, "model.safetensors", error));
    DLX_TRY_OUT(save_tensors(path, entries, entry_count, parameter, error));
    DLX_TRY_OUT(path_in(path, folder, "config.json", error));
    DLX_TRY_OUT(dlxi_config_json_write(path, config, error));
out:
    free(entries);
    return status;
}

/* ---- load ------------------------------------------------------------------------------------------------------ */

/* GPT-2's own files leave out the prefix. */
static const dlxi_file_tensor *find_entry(const dlxi_safetensors *file, const char *name) {
    static const char prefix[] = "transformer.";
    const dlxi_file_tensor *tensor = dlxi_safetensors_find(file, name);
    if (tensor == NULL && strncmp(name, prefix, strlen(prefix)) == 0)
        tensor = dlxi_safetensors_find(file, name + strlen(prefix));
    return tensor;
}

static dlx_status check_entry(const dlxi_safetensors *file, const entry *e, dlx_error *error) {
    const dlxi_file_tensor *tensor = find_entry(file, e->name);
    const char *path = dlxi_safetensors_path(file);
    if (tensor == NULL)
        DLX_FAIL(error, DATA, "%s: tensor '%s' is missing; does the file belong to this config.json?", path, e->name);
    bool fits = e->vector ? tensor->dims == 1 && tensor->shape[0] == e->cols
                          : tensor->dims == 2 && tensor->shape[0] == e->rows && tensor->shape[1] == e->cols;
    if (fits) {
        dlx_status status = dlxi_file_tensor_check(tensor, error);
        if (status != DLX_OK) dlxi_error_prefix(error, "%s: ", path);
        return status;
    }
    char shape[24 * DLXI_SAFETENSORS_DIMS_MAX] = "", want[64];
    size_t at = 0;
    for (int i = 0; i < tensor->dims; i++)
        at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%" PRId64, i == 0 ? "" : ", ", tensor->shape[i]);
    if (e->vector) {
        snprintf(want, sizeof want, "%" PRId64, e->cols);
    } else {
        snprintf(want, sizeof want, "%" PRId64 ", %" PRId64, e->rows, e->cols);
    }
    DLX_FAIL(error, DATA, "%s: tensor '%s' has shape [%s], the config needs [%s]", path, e->name, shape, want);
}

/* Buffers that files carry beside weights, and a tied head's second copy. */
static bool may_be_surplus(const dlxi_model_config *config, const char *name) {
    if (strcmp(name, "lm_head.weight") == 0) return config->tied_head;
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq");
}

static dlx_status check_file(const dlxi_safetensors *file, const entry *entries, int64_t entry_count,
                             const dlxi_model_config *config, dlx_error *error) {
    size_t surplus = dlxi_safetensors_count(file);
    for (int64_t i = 0; i < entry_count; i++) DLX_TRY(check_entry(file, &entries[i], error));
    if (surplus == (size_t)entry_count) return DLX_OK;
    for (size_t i = 0; i < dlxi_safetensors_count(file); i++) {
        const dlxi_file_tensor *tensor = dlxi_safetensors_at(file, i);
        bool known = may_be_surplus(config, tensor->name);
        for (int64_t j = 0; j < entry_count && !known; j++) known = find_entry(file, entries[j].name) == tensor;
        if (!known)
            DLX_FAIL(error, DATA,
                     "%s: tensor '%.96s' is not one of the config's; does the file belong to this "
                     "config.json?",
                     dlxi_safetensors_path(file), tensor->name);
    }
    return DLX_OK;
}

/* dst[size, rows] ← columns [column, column + size) of the file's tensor, transposed back; a few file rows at a time.
 */
static dlx_status read_transposed(float *dst, const dlxi_file_tensor *tensor, const entry *e, int64_t column,
                                  int64_t size, dlx_error *error) {
    enum { BLOCK_ROWS = 16 };
    float *block = NULL;
    dlx_status status = DLX_OK;
    DLX_TRY(DLXI_NEW(&block, BLOCK_ROWS * e->cols, error));
    for (int64_t first = 0; first < e->rows; first += BLOCK_ROWS) {
        int64_t rows = e->rows - first < BLOCK_ROWS ? e->rows - first : BLOCK_ROWS;
        DLX_TRY_OUT(dlxi_file_tensor_read(block, tensor, first * e->cols, rows * e->cols, error));
        for (int64_t c = 0; c < size; c++)
            for (int64_t r = 0; r < rows; r++) dst[c * e->rows + first + r] = block[r * e->cols + column + c];
    }
out:
    free(block);
    return status;
}

static dlx_status read_parameter(const dlxi_safetensors *file, const entry *entries, int64_t entry_count,
                                 dlxi_parameter *parameter, dlx_error *error) {
    for (int64_t i = 0;; i++) {
        DLXI_ASSERT(i < entry_count); /* every tensor of the model is in an entry */
        const entry *e = &entries[i];
        int64_t column = 0;
        for (int p = 0; p < e->parts; column += e->part_size[p++]) {
            if (e->id[p] != parameter->tensor.id) continue;
            const dlxi_file_tensor *tensor = find_entry(file, e->name);
            if (e->transposed) return read_transposed(parameter->data, tensor, e, column, e->part_size[p], error);
            return dlxi_file_tensor_read(parameter->data, tensor, column, parameter->count, error);
        }
    }
}

dlx_status dlxi_checkpoint_load(const char *folder, const dlxi_model_config *config, dlxi_parameter *parameter,
                                int64_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_safetensors *file = NULL;
    entry *entries = NULL;
    char path[PATH_BYTES];
    DLX_TRY(path_in(path, folder, "model.safetensors", error));
    DLX_TRY(dlxi_safetensors_open(&file, path, error));
    DLX_TRY_OUT(DLXI_NEW(&entries, entry_count_max(config), error));
    int64_t entry_count = list_entries(entries, config);
    DLX_TRY_OUT(check_file(file, entries, entry_count, config, error));
    for (int64_t i = 0; i < count; i++) DLX_TRY_OUT(read_parameter(file, entries, entry_count, &parameter[i], error));
out:
    free(entries);
    dlxi_safetensors_close(&file);
    return status;
}

dlx_status dlxi_checkpoint_load_config(dlxi_model_config *out, const char *folder, dlx_error *error) {
    char path[PATH_BYTES];
    DLX_TRY(path_in(path, folder, "config.json", error));
    return dlxi_config_json_read(out, path, error);
}
