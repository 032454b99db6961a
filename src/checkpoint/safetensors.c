/* SPDX-License-Identifier: Apache-2.0 */
/* Reads safetensors files. The header is checked in full at open; afterwards every range is in the
 * file. */
#include "checkpoint/safetensors.h"
#include "base/bits.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/panic.h"
#include "codec/half.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PREFIX_BYTES = 8, HEADER_BYTES_MAX = 100 * 1000 * 1000 };

struct dlxi_safetensors {
    dlxi_file_map map;
    json_t *header; /* owns the names */
    dlxi_file_tensor *tensor;
    size_t count;
    uint64_t bytes;
    char path[256];
};

static const struct {
    char name[12];
    size_t bytes;
} dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
              {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
              {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8}};

size_t dlxi_dtype_bytes(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, name) == 0) return dtypes[i].bytes;
    return 0;
}

#define FAIL_TENSOR(name, ...)                                                                     \
    do {                                                                                           \
        dlxi_error_set(error, DLX_DATA, __VA_ARGS__);                                              \
        dlxi_error_prefix(error, "%s: tensor '%.96s': ", file->path, (name));                      \
        return DLX_DATA;                                                                           \
    } while (0)

static dlx_status shape_parse(const dlxi_safetensors *file, dlxi_file_tensor *tensor,
                              const json_t *shape, dlx_error *error) {
    if (!json_is_array(shape) || json_array_size(shape) > DLXI_SAFETENSORS_DIMS_MAX)
        FAIL_TENSOR(tensor->name, "its shape is not a list of at most %d sizes",
                    DLXI_SAFETENSORS_DIMS_MAX);
    tensor->dims = (int)json_array_size(shape);
    tensor->count = 1;
    for (int i = 0; i < tensor->dims; i++) {
        const json_t *item = json_array_get(shape, (size_t)i);
        json_int_t size = json_integer_value(item);
        if (!json_is_integer(item) || size < 0)
            FAIL_TENSOR(tensor->name, "its shape has an entry that is not a whole number from 0");
        if (size > 0 && tensor->count > INT64_MAX / 16 / size)
            FAIL_TENSOR(tensor->name, "its shape has more elements than any file");
        tensor->shape[i] = size;
        tensor->count *= size;
    }
    return DLX_OK;
}

static dlx_status range_parse(const dlxi_safetensors *file, dlxi_file_tensor *tensor,
                              const json_t *offsets, size_t room, size_t item_bytes,
                              dlx_error *error) {
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t begin = json_integer_value(first), end = json_integer_value(last);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        FAIL_TENSOR(tensor->name, "data_offsets is not a pair of whole numbers");
    if (begin < 0 || end < begin || (uint64_t)end > room)
        FAIL_TENSOR(
            tensor->name,
            "bytes %" JSON_INTEGER_FORMAT " to %" JSON_INTEGER_FORMAT
            " are outside the file's %zu bytes of data; the file may be cut short: copy it again",
            begin, end, room);
    if ((uint64_t)(end - begin) != (uint64_t)tensor->count * item_bytes)
        FAIL_TENSOR(tensor->name,
                    "%" JSON_INTEGER_FORMAT " bytes, but its shape and dtype %s need %" PRIu64,
                    end - begin, tensor->dtype, (uint64_t)tensor->count * item_bytes);
    tensor->begin = (size_t)begin;
    tensor->bytes = (size_t)(end - begin);
    return DLX_OK;
}

static dlx_status tensor_parse(dlxi_safetensors *file, dlxi_file_tensor *tensor, const char *name,
                               const json_t *entry, size_t room, dlx_error *error) {
    tensor->name = name;
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!json_is_object(entry) || dtype == NULL) FAIL_TENSOR(name, "it has no dtype");
    size_t item_bytes = dlxi_dtype_bytes(dtype);
    if (item_bytes == 0) FAIL_TENSOR(name, "unknown dtype '%.20s'", dtype);
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype);
    DLX_TRY(shape_parse(file, tensor, json_object_get(entry, "shape"), error));
    return range_parse(file, tensor, json_object_get(entry, "data_offsets"), room, item_bytes,
                       error);
}

static int by_begin(const void *a, const void *b) {
    const dlxi_file_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* empty ones first */
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const dlxi_file_tensor *)a)->name, ((const dlxi_file_tensor *)b)->name);
}

/* The format allows neither overlaps nor gaps. */
static dlx_status cover_check(dlxi_safetensors *file, size_t room, dlx_error *error) {
    size_t at = 0;
    if (file->count > 1) qsort(file->tensor, file->count, sizeof *file->tensor, by_begin);
    for (size_t i = 0; i < file->count; i++) {
        const dlxi_file_tensor *tensor = &file->tensor[i];
        if (tensor->begin < at)
            FAIL_TENSOR(tensor->name, "its bytes overlap those of '%.96s'", tensor[-1].name);
        if (tensor->begin > at)
            FAIL_TENSOR(tensor->name, "%zu bytes before it belong to no tensor",
                        tensor->begin - at);
        at = tensor->begin + tensor->bytes;
    }
    if (at != room)
        DLX_FAIL(error, DATA, "%s: %zu bytes at its end belong to no tensor; copy the file again",
                 file->path, room - at);
    if (file->count > 1) qsort(file->tensor, file->count, sizeof *file->tensor, by_name);
    return DLX_OK;
}

/* A parser of JSON would only say that the text goes on. */
static dlx_status padding_check(const dlxi_safetensors *file, const uint8_t *header, size_t bytes,
                                dlx_error *error) {
    size_t end = bytes;
    while (end > 0 && header[end - 1] == '\0') end--;
    if (end == bytes) return DLX_OK;
    DLX_FAIL(error, DATA,
             "%s: the last %zu of its header's %zu bytes are NUL padding; the format pads with "
             "spaces: write the file again",
             file->path, bytes - end, bytes);
}

static dlx_status size_check(const dlxi_safetensors *file, dlx_error *error) {
    if (file->bytes < PREFIX_BYTES)
        DLX_FAIL(error, DATA, "%s: %" PRIu64 " bytes are too few for a safetensors file",
                 file->path, file->bytes);
    if (file->bytes > SIZE_MAX / 2)
        DLX_FAIL(error, DATA, "%s: larger than this machine's address space", file->path);
    return DLX_OK;
}

/* *header_bytes ← what the file's first bytes say, at most what the file has. */
static dlx_status prefix_parse(size_t *header_bytes, const dlxi_safetensors *file,
                               const uint8_t prefix[PREFIX_BYTES], dlx_error *error) {
    uint64_t length = dlxi_load64(prefix);
    if (length > HEADER_BYTES_MAX || length > file->bytes - PREFIX_BYTES)
        DLX_FAIL(error, DATA,
                 "%s: a header of %" PRIu64 " bytes does not fit (file %" PRIu64
                 " bytes, headers at most %d); is this a complete safetensors file?",
                 file->path, length, file->bytes, HEADER_BYTES_MAX);
    *header_bytes = (size_t)length;
    return DLX_OK;
}

/* data: behind the header; NULL if it was not read. */
static dlx_status header_parse(dlxi_safetensors *file, const uint8_t *header, size_t header_bytes,
                               const uint8_t *data, dlx_error *error) {
    DLX_TRY(padding_check(file, header, header_bytes, error));
    json_error_t json;
    file->header = json_loadb((const char *)header, header_bytes, JSON_REJECT_DUPLICATES, &json);
    if (file->header == NULL)
        DLX_FAIL(error, DATA, "%s: its header is not JSON: %.120s", file->path, json.text);
    if (!json_is_object(file->header))
        DLX_FAIL(error, DATA, "%s: its header is not a JSON object", file->path);

    size_t start = PREFIX_BYTES + header_bytes, room = (size_t)file->bytes - start;
    DLX_TRY(DLXI_NEW(&file->tensor, json_object_size(file->header), error));
    const char *name;
    json_t *entry;
    json_object_foreach(file->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        dlxi_file_tensor *tensor = &file->tensor[file->count];
        DLX_TRY(tensor_parse(file, tensor, name, entry, room, error));
        tensor->data = data != NULL ? data + tensor->begin : NULL;
        tensor->offset = start + tensor->begin;
        file->count++;
    }
    return cover_check(file, room, error);
}

static dlx_status file_new(dlxi_safetensors **out, uint64_t bytes, const char *path,
                           dlx_error *error) {
    DLX_TRY(DLXI_NEW(out, 1, error));
    (*out)->bytes = bytes;
    dlxi_text_copy((*out)->path, sizeof(*out)->path, path);
    return size_check(*out, error);
}

dlx_status dlxi_safetensors_parse(dlxi_safetensors **out, const uint8_t *data, size_t bytes,
                                  const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_safetensors *file = NULL;
    size_t header_bytes;
    *out = NULL;
    DLX_TRY_OUT(file_new(&file, bytes, path, error));
    DLX_TRY_OUT(prefix_parse(&header_bytes, file, data, error));
    data += PREFIX_BYTES;
    DLX_TRY_OUT(header_parse(file, data, header_bytes, data + header_bytes, error));
    *out = file;
    file = NULL;
out:
    dlxi_safetensors_close(&file);
    return status;
}

dlx_status dlxi_safetensors_open_header(dlxi_safetensors **out, const char *path,
                                        dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_safetensors *file = NULL;
    dlxi_file_reader reader = {.fd = -1};
    uint8_t prefix[PREFIX_BYTES], *header = NULL;
    size_t header_bytes;
    *out = NULL;
    DLX_TRY_OUT(dlxi_file_reader_open(&reader, path, error));
    DLX_TRY_OUT(file_new(&file, reader.bytes, path, error));
    DLX_TRY_OUT(dlxi_file_reader_read(&reader, prefix, 0, PREFIX_BYTES, path, error));
    DLX_TRY_OUT(prefix_parse(&header_bytes, file, prefix, error));
    DLX_TRY_OUT(DLXI_NEW(&header, header_bytes, error));
    DLX_TRY_OUT(dlxi_file_reader_read(&reader, header, PREFIX_BYTES, header_bytes, path, error));
    DLX_TRY_OUT(header_parse(file, header, header_bytes, NULL, error));
    *out = file;
    file = NULL;
out:
    free(header);
    dlxi_safetensors_close(&file);
    dlxi_file_reader_close(&reader);
    return status;
}

dlx_status dlxi_safetensors_open(dlxi_safetensors **out, const char *path, dlx_error *error) {
    dlxi_file_map map = {0};
    *out = NULL;
    DLX_TRY(dlxi_file_map_open(&map, path, error));
    dlx_status status = dlxi_safetensors_parse(out, map.data, map.bytes, path, error);
    if (status != DLX_OK) {
        dlxi_file_map_close(&map);
        return status;
    }
    (*out)->map = map;
    return DLX_OK;
}

void dlxi_safetensors_close(dlxi_safetensors **file) {
    dlxi_safetensors *f = *file;
    if (f == NULL) return;
    free(f->tensor);
    json_decref(f->header);
    dlxi_file_map_close(&f->map);
    free(f);
    *file = NULL;
}

size_t dlxi_safetensors_count(const dlxi_safetensors *file) {
    return file->count;
}

const dlxi_file_tensor *dlxi_safetensors_at(const dlxi_safetensors *file, size_t index) {
    DLXI_ASSERT(index < file->count);
    return &file->tensor[index];
}

const dlxi_file_tensor *dlxi_safetensors_find(const dlxi_safetensors *file, const char *name) {
    dlxi_file_tensor key = {.name = name};
    if (file->count == 0) return NULL;
    return bsearch(&key, file->tensor, file->count, sizeof key, by_name);
}

const char *dlxi_safetensors_path(const dlxi_safetensors *file) {
    return file->path;
}

uint64_t dlxi_safetensors_bytes(const dlxi_safetensors *file) {
    return file->bytes;
}

/* ---- elements -------------------------------------------------------------------------------- */

/* Also of infinities and NaNs. */
static float half_to_float(uint32_t half) {
    if ((half & DLXI_HALF_INFINITY) != DLXI_HALF_INFINITY) return dlxi_half_to_float(half);
    return dlxi_float_of((half & 0x8000u) << 16 | DLXI_FLOAT_INFINITY | (half & 0x3FFu) << 13);
}

dlx_status dlxi_file_tensor_check(const dlxi_file_tensor *tensor, dlx_error *error) {
    static const char *const readable[] = {"F32", "F16", "BF16"};
    for (size_t i = 0; i < sizeof readable / sizeof *readable; i++)
        if (strcmp(tensor->dtype, readable[i]) == 0) return DLX_OK;
    DLX_FAIL(error, DATA,
             "tensor '%.96s' has dtype %s; only F32, F16 and BF16 are read: convert it first",
             tensor->name, tensor->dtype);
}

dlx_status dlxi_file_tensor_read(float *dst, const dlxi_file_tensor *tensor, int64_t first,
                                 int64_t count, dlx_error *error) {
    DLXI_ASSERT(first >= 0 && count >= 0 && first <= tensor->count - count);
    DLX_TRY(dlxi_file_tensor_check(tensor, error));
    bool single = strcmp(tensor->dtype, "F32") == 0, half = strcmp(tensor->dtype, "F16") == 0;
    size_t item_bytes = single ? 4 : 2;
    const uint8_t *from = tensor->data + (size_t)first * item_bytes;
    for (int64_t i = 0; i < count; i++, from += item_bytes) {
        if (single)
            dst[i] = dlxi_float_of(dlxi_load32(from));
        else
            dst[i] = half ? half_to_float(dlxi_load16(from))
                          : dlxi_float_of((uint32_t)dlxi_load16(from) << 16);
    }
    return DLX_OK;
}
