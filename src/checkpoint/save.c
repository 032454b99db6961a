/* SPDX-License-Identifier: Apache-2.0 */
/* Saves a model in one file, or in parts by several ranks.
 *
 * A save that stops at any moment leaves the earlier set, the new one, or none and a clear error,
 * never a mixture. A set of parts is valid once its index exists and model.safetensors does not. So
 * the single file of an earlier set is valid until finish removes it, and before a part replaces
 * one of an earlier set, the index is removed. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "checkpoint/layout.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/panic.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PART_NAME_BYTES = 40 };

/* ---- parts ----------------------------------------------------------------------------------- */

struct dlxi_checkpoint_part {
    dlxi_file_writer *writer;
    bool single;
    char path[DLXI_PATH_BYTES], index_path[DLXI_PATH_BYTES];
};

static void part_name(char dst[PART_NAME_BYTES], int part, int parts) {
    if (parts == 1) {
        snprintf(dst, PART_NAME_BYTES, DLXI_SINGLE_NAME);
    } else {
        snprintf(dst, PART_NAME_BYTES, "model-%05d-of-%05d.safetensors", part + 1, parts);
    }
}

static void rows_write(float *dst, const void *context, int64_t first, int64_t rows) {
    const dlxi_file_entry *e = context;
    int64_t column = 0;
    for (int p = 0; p < e->parts; p++) {
        const float *data = e->part[p]->data;
        int64_t cols = e->part_cols[p];
        if (!e->transposed) {
            for (int64_t r = 0; r < rows; r++)
                memcpy(dst + r * e->cols + column, data + (first + r) * cols,
                       (size_t)cols * sizeof *dst);
        } else {
            for (int64_t c = 0; c < cols; c++)
                for (int64_t r = 0; r < rows; r++)
                    dst[r * e->cols + column + c] = data[c * e->rows + first + r];
        }
        column += cols;
    }
}

/* *source[*count] ← the entries of the given tensors; free with free(). */
static dlx_status sources_list(dlxi_tensor_source **source, size_t *count, dlxi_file_entry *entries,
                               int64_t entry_count, const dlxi_parameter *const *by_id,
                               dlx_error *error) {
    *count = 0;
    DLX_TRY(DLXI_NEW(source, entry_count, error));
    for (int64_t i = 0; i < entry_count; i++) {
        dlxi_file_entry *e = &entries[i];
        int given = 0;
        for (int p = 0; p < e->parts; p++) {
            e->part[p] = by_id[e->id[p]];
            given += e->part[p] != NULL;
        }
        DLXI_ASSERT(given == 0 || given == e->parts);
        if (given == 0) continue;
        (*source)[(*count)++] =
            (dlxi_tensor_source){e->name, "F32", e->rows, e->cols, e->vector, rows_write, e};
    }
    return DLX_OK;
}

static dlx_status part_write(dlxi_checkpoint_part *part, const dlxi_model_config *config,
                             const dlxi_parameter *parameter, int64_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_file_entry *entries = NULL;
    dlxi_tensor_source *source = NULL;
    const dlxi_parameter **by_id = NULL;
    int64_t entry_count, tensor_count = dlxi_model_tensor_count(config);
    size_t source_count;
    DLX_TRY_OUT(DLXI_NEW(&by_id, tensor_count, error));
    for (int64_t i = 0; i < count; i++) {
        int64_t id = parameter[i].tensor.id;
        DLXI_ASSERT(id >= 0 && id < tensor_count && by_id[id] == NULL && parameter[i].data != NULL);
        by_id[id] = &parameter[i];
    }
    DLX_TRY_OUT(dlxi_layout_list(&entries, &entry_count, config, error));
    DLX_TRY_OUT(sources_list(&source, &source_count, entries, entry_count, by_id, error));
    DLX_TRY_OUT(dlxi_safetensors_write(&part->writer, part->path, source, source_count, error));
out:
    free(source);
    free(entries);
    free(by_id);
    return status;
}

dlx_status dlxi_checkpoint_part_begin(dlxi_checkpoint_part **out, const char *directory,
                                      const dlxi_model_config *config,
                                      const dlxi_parameter *parameter, int64_t count, int part,
                                      int parts, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_checkpoint_part *p = NULL;
    char name[PART_NAME_BYTES];
    *out = NULL;
    DLXI_ASSERT(parts >= 1 && parts <= DLXI_INDEX_FILES_MAX && part >= 0 && part < parts &&
                count > 0);
    if (mkdir(directory, 0777) != 0 && errno != EEXIST)
        DLX_FAIL(error, SYSTEM,
                 "cannot make the directory '%s'; its parent must exist and be writable",
                 directory);
    DLX_TRY(DLXI_NEW(&p, 1, error));
    p->single = parts == 1;
    part_name(name, part, parts);
    DLX_TRY_OUT(dlxi_path_join(p->path, directory, name, error));
    DLX_TRY_OUT(dlxi_path_join(p->index_path, directory, DLXI_INDEX_NAME, error));
    DLX_TRY_OUT(part_write(p, config, parameter, count, error));
    *out = p;
    p = NULL;
out:
    dlxi_checkpoint_part_close(&p);
    return status;
}

static dlx_status file_remove(const char *path, dlx_error *error) {
    if (unlink(path) != 0 && errno != ENOENT)
        DLX_FAIL(error, SYSTEM, "%s: cannot remove this file of an earlier save: %s", path,
                 strerror(errno));
    return DLX_OK;
}

dlx_status dlxi_checkpoint_part_commit(dlxi_checkpoint_part *part, dlx_error *error) {
    if (!part->single && access(part->path, F_OK) == 0)
        DLX_TRY(file_remove(part->index_path, error));
    return dlxi_file_writer_commit(part->writer, error);
}

void dlxi_checkpoint_part_close(dlxi_checkpoint_part **part) {
    if (*part == NULL) return;
    dlxi_file_writer_close(&(*part)->writer);
    free(*part);
    *part = NULL;
}

/* ---- finish ---------------------------------------------------------------------------------- */

static bool five_digits(const char *text) {
    for (int i = 0; i < 5; i++)
        if (text[i] < '0' || text[i] > '9') return false;
    return true;
}

/* model-ddddd-of-ddddd.safetensors */
static bool is_part_name(const char *name) {
    static const char before[] = "model-", middle[] = "-of-", after[] = ".safetensors";
    return strncmp(name, before, 6) == 0 && five_digits(name + 6) &&
           strncmp(name + 11, middle, 4) == 0 && five_digits(name + 15) &&
           strcmp(name + 20, after) == 0;
}

static bool is_stale(const char *name, int parts) {
    char own[PART_NAME_BYTES];
    if (strcmp(name, DLXI_INDEX_NAME) == 0) return parts == 1;
    if (strcmp(name, DLXI_SINGLE_NAME) == 0) return parts > 1;
    if (!is_part_name(name)) return false;
    if (parts == 1) return true;
    part_name(own, atoi(name + 6) - 1, parts);
    return strcmp(name, own) != 0 || atoi(name + 6) < 1 || atoi(name + 6) > parts;
}

/* Lists before it removes: readdir is undefined while a directory changes. */
static dlx_status stale_remove(const char *directory, int parts, dlx_error *error) {
    dlx_status status = DLX_OK;
    char path[DLXI_PATH_BYTES];
    struct dirent **name = NULL;
    int count = scandir(directory, &name, NULL, NULL);
    if (count < 0)
        DLX_FAIL(error, SYSTEM, "%s: cannot list this directory: %s", directory, strerror(errno));
    for (int i = 0; i < count; i++) {
        if (!is_stale(name[i]->d_name, parts)) continue;
        DLX_TRY_OUT(dlxi_path_join(path, directory, name[i]->d_name, error));
        DLX_TRY_OUT(file_remove(path, error));
    }
out:
    for (int i = 0; i < count; i++) free(name[i]);
    free(name);
    return status;
}

/* *text ← the index, free with free(). */
static dlx_status index_make(char **text, const dlxi_file_entry *entries, int64_t entry_count,
                             const int *part_of, int parts, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_index_item *item = NULL;
    char(*name)[PART_NAME_BYTES] = NULL;
    int64_t bytes = 0;
    DLX_TRY_OUT(DLXI_NEW(&item, entry_count, error));
    DLX_TRY_OUT(DLXI_NEW(&name, parts, error));
    for (int part = 0; part < parts; part++) part_name(name[part], part, parts);
    for (int64_t i = 0; i < entry_count; i++) {
        const dlxi_file_entry *e = &entries[i];
        int part = part_of[e->id[0]];
        DLXI_ASSERT(part >= 0 && part < parts);
        for (int p = 1; p < e->parts; p++) DLXI_ASSERT(part_of[e->id[p]] == part);
        item[i] = (dlxi_index_item){e->name, name[part]};
        bytes += e->rows * e->cols * (int64_t)sizeof(float);
    }
    DLX_TRY_OUT(dlxi_index_text(text, item, (size_t)entry_count, bytes, error));
out:
    free(name);
    free(item);
    return status;
}

/* Opens the parts as a reader does: fails if the ranks do not share the directory. */
static dlx_status parts_check(const char *text, const char *path, const char *directory,
                              const dlxi_file_entry *entries, int64_t entry_count,
                              const dlxi_model_config *config, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_index *index = NULL;
    dlxi_tensor_set *set = NULL;
    DLX_TRY_OUT(dlxi_index_parse(&index, text, strlen(text), path, error));
    DLX_TRY_OUT(dlxi_set_open_listed(&set, directory, index, error));
    DLX_TRY_OUT(dlxi_layout_check(set, entries, entry_count, config, error));
out:
    if (status == DLX_DATA)
        dlxi_error_prefix(
            error, "the saved weights are incomplete; do all ranks of the site share '%.100s'? ",
            directory);
    dlxi_set_close(&set);
    dlxi_index_close(&index);
    return status;
}

static dlx_status index_finish(const char *directory, const dlxi_model_config *config,
                               const int *part_of, int parts, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_file_entry *entries = NULL;
    int64_t entry_count;
    char *text = NULL, path[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_path_join(path, directory, DLXI_INDEX_NAME, error));
    DLX_TRY_OUT(dlxi_layout_list(&entries, &entry_count, config, error));
    DLX_TRY_OUT(index_make(&text, entries, entry_count, part_of, parts, error));
    DLX_TRY_OUT(parts_check(text, path, directory, entries, entry_count, config, error));
    DLX_TRY_OUT(dlxi_file_write_text(path, text, error));
out:
    free(text);
    free(entries);
    return status;
}

dlx_status dlxi_checkpoint_finish(const char *directory, const dlxi_model_config *config,
                                  const int *part_of, int parts, const char *run_id,
                                  dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    DLXI_ASSERT(parts >= 1 && parts <= DLXI_INDEX_FILES_MAX);
    if (parts > 1) DLX_TRY(index_finish(directory, config, part_of, parts, error));
    DLX_TRY(dlxi_path_join(path, directory, "config.json", error));
    DLX_TRY(dlxi_config_json_write(path, config, run_id, error));
    return stale_remove(directory, parts, error);
}

dlx_status dlxi_checkpoint_save(const char *directory, const dlxi_model_config *config,
                                const dlxi_parameter *parameter, int64_t count, const char *run_id,
                                dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_checkpoint_part *part = NULL;
    DLXI_ASSERT(count == dlxi_model_tensor_count(config));
    DLX_TRY_OUT(
        dlxi_checkpoint_part_begin(&part, directory, config, parameter, count, 0, 1, error));
    DLX_TRY_OUT(dlxi_checkpoint_part_commit(part, error));
    DLX_TRY_OUT(dlxi_checkpoint_finish(directory, config, NULL, 1, run_id, error));
out:
    dlxi_checkpoint_part_close(&part);
    return status;
}
