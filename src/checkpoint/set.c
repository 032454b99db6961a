/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/set.h"
#include "base/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static dlx_status set_new(dlxi_tensor_set **out, size_t files, const char *path, dlx_error *error) {
    dlxi_tensor_set *set = NULL;
    DLX_TRY(DLXI_NEW(&set, 1, error));
    *out = set;
    dlxi_text_copy(set->path, sizeof set->path, path);
    DLX_TRY(DLXI_NEW(&set->file, files, error));
    set->file_count = files;
    return DLX_OK;
}

static bool is_missing(dlx_status status, const dlx_error *error) {
    return status == DLX_SYSTEM && error->system_errno == ENOENT;
}

static dlx_status listed_open(dlxi_tensor_set **set, const char *directory, const dlxi_index *index,
                              dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    DLX_TRY(set_new(set, dlxi_index_file_count(index), dlxi_index_path(index), error));
    for (size_t i = 0; i < (*set)->file_count; i++) {
        const char *name = dlxi_index_file(index, i);
        DLX_TRY(dlxi_path_join(path, directory, name, error));
        dlx_status status = dlxi_safetensors_open(&(*set)->file[i], path, error);
        if (is_missing(status, error))
            DLX_FAIL(error, DATA, "%s: file '%.255s', which it lists, is missing; copy all files",
                     (*set)->path, name);
        if (status != DLX_OK) return status;
    }
    return dlxi_index_check(index, (*set)->file, error);
}

dlx_status dlxi_set_open_listed(dlxi_tensor_set **out, const char *directory,
                                const dlxi_index *index, dlx_error *error) {
    dlx_error own;
    *out = NULL;
    dlx_status status = listed_open(out, directory, index, error != NULL ? error : &own);
    if (status != DLX_OK) dlxi_set_close(out);
    return status;
}

static dlx_status directory_open(dlxi_tensor_set **out, const char *directory, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    dlxi_safetensors *single = NULL;
    dlxi_index *index = NULL;
    DLX_TRY(dlxi_path_join(path, directory, DLXI_SINGLE_NAME, error));
    dlx_status status = dlxi_safetensors_open(&single, path, error);
    if (status == DLX_OK) {
        status = set_new(out, 1, path, error);
        if (status == DLX_OK) {
            (*out)->file[0] = single;
        } else {
            dlxi_safetensors_close(&single);
        }
        return status;
    }
    if (!is_missing(status, error)) return status;
    DLX_TRY(dlxi_path_join(path, directory, DLXI_INDEX_NAME, error));
    status = dlxi_index_read(&index, path, error);
    if (is_missing(status, error))
        DLX_FAIL(error, SYSTEM,
                 "%.200s: has neither " DLXI_SINGLE_NAME " nor " DLXI_INDEX_NAME
                 "; give a directory of weights",
                 directory);
    if (status == DLX_OK) status = dlxi_set_open_listed(out, directory, index, error);
    dlxi_index_close(&index);
    return status;
}

dlx_status dlxi_set_open(dlxi_tensor_set **out, const char *directory, dlx_error *error) {
    dlx_error own;
    *out = NULL;
    dlx_status status = directory_open(out, directory, error != NULL ? error : &own);
    if (status != DLX_OK) dlxi_set_close(out);
    return status;
}

void dlxi_set_close(dlxi_tensor_set **set) {
    dlxi_tensor_set *s = *set;
    if (s == NULL) return;
    for (size_t i = 0; i < s->file_count; i++) dlxi_safetensors_close(&s->file[i]);
    free(s->file);
    free(s);
    *set = NULL;
}

const dlxi_file_tensor *dlxi_set_find(const dlxi_tensor_set *set, const char *name,
                                      const char **path) {
    for (size_t i = 0; i < set->file_count; i++) {
        const dlxi_file_tensor *tensor = dlxi_safetensors_find(set->file[i], name);
        if (tensor == NULL) continue;
        if (path != NULL) *path = dlxi_safetensors_path(set->file[i]);
        return tensor;
    }
    return NULL;
}
