/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/index.h"
#include "base/file.h"
#include "base/memory.h"
#include "checkpoint/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_NAME_BYTES_MAX = 255 };

typedef struct listed {
    const char *tensor;
    size_t file;
} listed;

struct dlxi_index {
    json_t *root; /* owns the names */
    listed *item; /* sorted by tensor */
    size_t count;
    const char *file[DLXI_INDEX_FILES_MAX];
    size_t file_count;
    char path[256];
};

static bool name_is_plain(const char *name) {
    static const char ending[] = ".safetensors";
    size_t length = strlen(name), end = sizeof ending - 1;
    if (length <= end || length > FILE_NAME_BYTES_MAX || name[0] == '.') return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '/' || (unsigned char)name[i] < 0x20 || name[i] == 0x7f) return false;
    return strcmp(name + length - end, ending) == 0;
}

/* `seen` maps file names to numbers. */
static dlx_status file_add(size_t *number, dlxi_index *index, json_t *seen, const char *name,
                           dlx_error *error) {
    char text[DLXI_JSON_SHOWN_BYTES];
    const json_t *known = json_object_get(seen, name);
    if (known != NULL) {
        *number = (size_t)json_integer_value(known);
        return DLX_OK;
    }
    if (!name_is_plain(name))
        DLX_FAIL(error, DATA,
                 "%s: '%s' is not the plain name of a .safetensors file beside it; copy the set "
                 "again",
                 index->path, dlxi_json_show_name(text, name));
    if (index->file_count == DLXI_INDEX_FILES_MAX)
        DLX_FAIL(error, DATA, "%s: more than %d files", index->path, DLXI_INDEX_FILES_MAX);
    if (json_object_set_new(seen, name, json_integer((json_int_t)index->file_count)) != 0)
        DLX_FAIL(error, MEMORY, "out of memory: %s", index->path);
    *number = index->file_count;
    index->file[index->file_count++] = name;
    return DLX_OK;
}

static int by_tensor(const void *a, const void *b) {
    return strcmp(((const listed *)a)->tensor, ((const listed *)b)->tensor);
}

static dlx_status map_read(dlxi_index *index, json_t *map, json_t *seen, dlx_error *error) {
    char text[DLXI_JSON_SHOWN_BYTES];
    const char *tensor;
    json_t *file;
    json_object_foreach(map, tensor, file) {
        listed *item = &index->item[index->count];
        if (!json_is_string(file))
            DLX_FAIL(error, DATA, "%s: weight_map has no file name for tensor '%s'", index->path,
                     dlxi_json_show_name(text, tensor));
        DLX_TRY(file_add(&item->file, index, seen, json_string_value(file), error));
        item->tensor = tensor;
        index->count++;
    }
    qsort(index->item, index->count, sizeof *index->item, by_tensor);
    return DLX_OK;
}

static dlx_status index_parse(dlxi_index *index, const char *text, size_t bytes, dlx_error *error) {
    index->root = dlxi_json_parse(text, bytes, index->path, error);
    if (index->root == NULL) return DLX_DATA;
    json_t *map = json_object_get(index->root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0)
        DLX_FAIL(error, DATA, "%s: no weight_map of tensors to files", index->path);
    if (json_object_size(map) > DLXI_INDEX_TENSORS_MAX)
        DLX_FAIL(error, DATA, "%s: lists %zu tensors; allowed: up to %d", index->path,
                 json_object_size(map), DLXI_INDEX_TENSORS_MAX);
    DLX_TRY(DLXI_NEW(&index->item, json_object_size(map), error));
    json_t *seen = json_object();
    if (seen == NULL) DLX_FAIL(error, MEMORY, "out of memory: %s", index->path);
    dlx_status status = map_read(index, map, seen, error);
    json_decref(seen);
    return status;
}

dlx_status dlxi_index_parse(dlxi_index **out, const char *text, size_t bytes, const char *path,
                            dlx_error *error) {
    dlxi_index *index = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&index, 1, error));
    snprintf(index->path, sizeof index->path, "%s", path);
    dlx_status status = index_parse(index, text, bytes, error);
    if (status != DLX_OK) {
        dlxi_index_close(&index);
        return status;
    }
    *out = index;
    return DLX_OK;
}

dlx_status dlxi_index_read(dlxi_index **out, const char *path, dlx_error *error) {
    char *text = NULL;
    size_t bytes = 0;
    *out = NULL;
    DLX_TRY(dlxi_file_read(&text, &bytes, path, DLXI_INDEX_BYTES_MAX, error));
    dlx_status status = dlxi_index_parse(out, text, bytes, path, error);
    free(text);
    return status;
}

void dlxi_index_close(dlxi_index **index) {
    dlxi_index *i = *index;
    if (i == NULL) return;
    free(i->item);
    json_decref(i->root);
    free(i);
    *index = NULL;
}

size_t dlxi_index_file_count(const dlxi_index *index) {
    return index->file_count;
}

const char *dlxi_index_file(const dlxi_index *index, size_t i) {
    return index->file[i];
}

const char *dlxi_index_path(const dlxi_index *index) {
    return index->path;
}

/* ---- check ----------------------------------------------------------------------------------- */

/* Every tensor of the file is listed in it. */
static dlx_status file_check(const dlxi_index *index, size_t number, const dlxi_safetensors *file,
                             dlx_error *error) {
    char text[DLXI_JSON_SHOWN_BYTES];
    for (size_t i = 0; i < dlxi_safetensors_count(file); i++) {
        listed key = {.tensor = dlxi_safetensors_at(file, i)->name};
        const listed *item = bsearch(&key, index->item, index->count, sizeof key, by_tensor);
        if (item == NULL)
            DLX_FAIL(error, DATA,
                     "%s: tensor '%s' of %s is not listed; do the files belong together?",
                     index->path, dlxi_json_show_name(text, key.tensor), index->file[number]);
        if (item->file != number)
            DLX_FAIL(error, DATA,
                     "%s: tensor '%s' is listed in %s but is in %s; do the files belong together?",
                     index->path, dlxi_json_show_name(text, key.tensor), index->file[item->file],
                     index->file[number]);
    }
    return DLX_OK;
}

dlx_status dlxi_index_check(const dlxi_index *index, dlxi_safetensors *const *file,
                            dlx_error *error) {
    char text[DLXI_JSON_SHOWN_BYTES];
    for (size_t i = 0; i < index->file_count; i++) DLX_TRY(file_check(index, i, file[i], error));
    for (size_t i = 0; i < index->count; i++) {
        const listed *item = &index->item[i];
        if (dlxi_safetensors_find(file[item->file], item->tensor) == NULL)
            DLX_FAIL(error, DATA,
                     "%s: tensor '%s' is missing from %s; do the files belong together?",
                     index->path, dlxi_json_show_name(text, item->tensor), index->file[item->file]);
    }
    return DLX_OK;
}

/* ---- write ----------------------------------------------------------------------------------- */

dlx_status dlxi_index_text(char **out, const dlxi_index_item *item, size_t count,
                           int64_t total_bytes, dlx_error *error) {
    *out = NULL;
    json_t *map = json_object();
    for (size_t i = 0; i < count; i++)
        json_object_set_new(map, item[i].tensor, json_string(item[i].file));
    bool complete = json_object_size(map) == count;
    json_t *root = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total_bytes,
                             "weight_map", map);
    if (root != NULL && complete) *out = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(root);
    if (*out == NULL) DLX_FAIL(error, MEMORY, "out of memory: the index of %zu tensors", count);
    return DLX_OK;
}
