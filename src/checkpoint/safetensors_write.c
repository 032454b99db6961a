/* SPDX-License-Identifier: Apache-2.0 */
/* Writes safetensors files: the header, then the tensors in order, a few rows at a time. */
#include "checkpoint/safetensors.h"
#include "base/memory.h"
#include "codec/half.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, BLOCK_FLOATS = 1 << 18 };

/* A new reference, or NULL if memory ran out. */
static json_t *entry_json(const dlxi_tensor_source *source, json_int_t begin, json_int_t end) {
    json_t *shape = source->vector
                        ? json_pack("[I]", (json_int_t)source->cols)
                        : json_pack("[I,I]", (json_int_t)source->rows, (json_int_t)source->cols);
    return json_pack("{s:s, s:o, s:[I,I]}", "dtype", "F32", "shape", shape, "data_offsets", begin,
                     end);
}

/* The header without padding, free with free(); NULL if memory ran out. */
static char *header_text(const dlxi_tensor_source *source, size_t count) {
    char *text = NULL;
    json_int_t at = 0;
    /* transformers needs the format */
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (size_t i = 0; i < count; i++) {
        json_int_t end = at + (json_int_t)sizeof(float) * source[i].rows * source[i].cols;
        if (json_object_set_new(header, source[i].name, entry_json(&source[i], at, end)) != 0)
            goto out;
        at = end;
    }
    text = json_dumps(header, JSON_COMPACT);
out:
    json_decref(header);
    return text;
}

static dlx_status header_write(dlxi_file_writer *writer, const char *text, dlx_error *error) {
    size_t length = strlen(text), total = (8 + length + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    uint8_t prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)(total - 8) >> (8 * i));
    DLX_TRY(dlxi_file_writer_append(writer, prefix, sizeof prefix, error));
    DLX_TRY(dlxi_file_writer_append(writer, text, length, error));
    char spaces[ALIGNMENT];
    memset(spaces, ' ', sizeof spaces);
    return dlxi_file_writer_append(writer, spaces, total - 8 - length, error);
}

static dlx_status tensor_write(dlxi_file_writer *writer, float *block,
                               const dlxi_tensor_source *source, dlx_error *error) {
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
    int64_t widest = BLOCK_FLOATS;
    *out = NULL;
    for (size_t i = 0; i < count; i++) widest = source[i].cols > widest ? source[i].cols : widest;
    char *text = header_text(source, count);
    if (text == NULL) DLX_FAIL(error, MEMORY, "out of memory: the header of %s", path);
    DLX_TRY_OUT(DLXI_NEW(&block, widest, error));
    DLX_TRY_OUT(dlxi_file_writer_open(&writer, path, error));
    DLX_TRY_OUT(header_write(writer, text, error));
    for (size_t i = 0; i < count; i++) DLX_TRY_OUT(tensor_write(writer, block, &source[i], error));
    *out = writer;
    writer = NULL;
out:
    dlxi_file_writer_close(&writer);
    free(block);
    free(text);
    return status;
}
