/* SPDX-License-Identifier: Apache-2.0 */
/* Writes safetensors files: the header, then the tensors in order, a few rows at a time. */
#include "checkpoint/safetensors.h"
#include "base/memory.h"
#include "base/panic.h"
#include "codec/half.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, ITEM_BYTES_MAX = 8, BLOCK_FLOATS = 1 << 18 };

/* Relative to the first tensor's bytes; offset[count] has them in order of alignment. */
static uint64_t offsets_assign(uint64_t *offset, const dlxi_tensor_source *source, size_t count) {
    uint64_t at = 0;
    for (size_t item_bytes = ITEM_BYTES_MAX; item_bytes > 0; item_bytes /= 2)
        for (size_t i = 0; i < count; i++) {
            if (dlxi_dtype_bytes(source[i].dtype) != item_bytes) continue;
            offset[i] = at;
            at += item_bytes * (uint64_t)source[i].rows * (uint64_t)source[i].cols;
        }
    return at;
}

/* A new reference, or NULL if memory ran out. */
static json_t *entry_json(const dlxi_tensor_source *source, json_int_t begin, json_int_t end) {
    json_t *shape = source->vector
                        ? json_pack("[I]", (json_int_t)source->cols)
                        : json_pack("[I,I]", (json_int_t)source->rows, (json_int_t)source->cols);
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", source->dtype, "shape", shape, "data_offsets",
                     begin, end);
}

/* The header without padding, free with free(); NULL if memory ran out. */
static char *header_text(const uint64_t *offset, const dlxi_tensor_source *source, size_t count) {
    char *text = NULL;
    /* transformers needs the format */
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (size_t i = 0; i < count; i++) {
        json_int_t begin = (json_int_t)offset[i],
                   bytes = (json_int_t)dlxi_dtype_bytes(source[i].dtype) * source[i].rows *
                           source[i].cols;
        if (json_object_set_new(header, source[i].name,
                                entry_json(&source[i], begin, begin + bytes)) != 0)
            goto out;
    }
    text = json_dumps(header, JSON_COMPACT);
out:
    json_decref(header);
    return text;
}

static int name_compare(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static dlx_status names_check(const dlxi_tensor_source *source, size_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    const char **name = NULL;
    DLX_TRY(DLXI_NEW(&name, count, error));
    for (size_t i = 0; i < count; i++) name[i] = source[i].name;
    if (count > 1) qsort(name, count, sizeof *name, name_compare);
    for (size_t i = 1; i < count && status == DLX_OK; i++)
        if (strcmp(name[i - 1], name[i]) == 0)
            status =
                dlxi_error_set(error, DLX_ARGUMENT,
                               "two tensors of a file are called '%.96s'; rename one", name[i]);
    free(name);
    return status;
}

/* *total ← bytes of the header with its length and padding. */
static dlx_status text_write(dlxi_file_writer *writer, uint64_t *total, const char *text,
                             dlx_error *error) {
    size_t length = strlen(text), padded = (8 + length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    uint8_t prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)(padded - 8) >> (8 * i));
    DLX_TRY(dlxi_file_writer_append(writer, prefix, sizeof prefix, error));
    DLX_TRY(dlxi_file_writer_append(writer, text, length, error));
    char spaces[ALIGNMENT];
    memset(spaces, ' ', sizeof spaces);
    *total = padded;
    return dlxi_file_writer_append(writer, spaces, padded - 8 - length, error);
}

dlx_status dlxi_safetensors_write_header(dlxi_file_writer *writer, uint64_t *offset,
                                         uint64_t *file_bytes, const dlxi_tensor_source *source,
                                         size_t count, dlx_error *error) {
    uint64_t header_bytes = 0, bytes = offsets_assign(offset, source, count);
    DLX_TRY(names_check(source, count, error));
    char *text = header_text(offset, source, count);
    if (text == NULL) DLX_FAIL(error, MEMORY, "out of memory: the header of %zu tensors", count);
    dlx_status status = text_write(writer, &header_bytes, text, error);
    free(text);
    for (size_t i = 0; i < count; i++) offset[i] += header_bytes;
    *file_bytes = header_bytes + bytes;
    return status;
}

static dlx_status tensor_write(dlxi_file_writer *writer, float *block,
                               const dlxi_tensor_source *source, dlx_error *error) {
    DLXI_ASSERT(strcmp(source->dtype, "F32") == 0);
    int64_t rows_at_once = BLOCK_FLOATS / source->cols > 1 ? BLOCK_FLOATS / source->cols : 1;
    for (int64_t first = 0; first < source->rows; first += rows_at_once) {
        int64_t rows = source->rows - first < rows_at_once ? source->rows - first : rows_at_once;
        source->write(block, source->context, first, rows);
        for (int64_t i = 0; i < rows * source->cols; i++)
            dlxi_store32((uint8_t *)&block[i], dlxi_bits_of(block[i]));
        DLX_TRY(dlxi_file_writer_append(writer, block,
                                        (size_t)(rows * source->cols) * sizeof *block, error));
    }
    return DLX_OK;
}

dlx_status dlxi_safetensors_write(dlxi_file_writer **out, const char *path,
                                  const dlxi_tensor_source *source, size_t count,
                                  dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_file_writer *writer = NULL;
    float *block = NULL;
    uint64_t *offset = NULL, file_bytes;
    int64_t widest = BLOCK_FLOATS;
    *out = NULL;
    for (size_t i = 0; i < count; i++) widest = source[i].cols > widest ? source[i].cols : widest;
    DLX_TRY_OUT(DLXI_NEW(&block, widest, error));
    DLX_TRY_OUT(DLXI_NEW(&offset, count, error));
    DLX_TRY_OUT(dlxi_file_writer_open(&writer, path, error));
    DLX_TRY_OUT(dlxi_safetensors_write_header(writer, offset, &file_bytes, source, count, error));
    /* elements of one size are in the given order */
    for (size_t i = 0; i < count; i++) DLX_TRY_OUT(tensor_write(writer, block, &source[i], error));
    *out = writer;
    writer = NULL;
out:
    dlxi_file_writer_close(&writer);
    free(offset);
    free(block);
    return status;
}
