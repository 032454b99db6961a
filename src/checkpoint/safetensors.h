/* SPDX-License-Identifier: Apache-2.0 */
/* Safetensors files, read and written by hand: 8 bytes of header length (little-endian), a JSON
 * header that gives every tensor its dtype, shape and byte range, and the bytes, without gaps.
 * Every number from a file is bounded before use. https://huggingface.co/docs/safetensors describes
 * the format. */
#ifndef DLXI_CHECKPOINT_SAFETENSORS_H
#define DLXI_CHECKPOINT_SAFETENSORS_H

#include "base/file.h"

enum { DLXI_SAFETENSORS_DIMS_MAX = 8 };

typedef struct dlxi_file_tensor {
    const char *name;
    char dtype[12]; /* as in the file: "F32", "BF16", … */
    int dims;
    int64_t shape[DLXI_SAFETENSORS_DIMS_MAX];
    int64_t count;       /* elements */
    const uint8_t *data; /* in the file, in any alignment */
    size_t begin, bytes;
} dlxi_file_tensor;

typedef struct dlxi_safetensors dlxi_safetensors;

/* Maps and checks a file. On success *out is the caller's, closed with dlxi_safetensors_close.
 * DLX_SYSTEM where it can't be read; DLX_DATA where it is malformed: the message names the file,
 * the tensor and what is wrong. Blocks. */
dlx_status dlxi_safetensors_open(dlxi_safetensors **out, const char *path, dlx_error *error);
/* The same over data[bytes] in memory, which is borrowed; `path` is what messages call it. */
dlx_status dlxi_safetensors_parse(dlxi_safetensors **out, const uint8_t *data, size_t bytes,
                                  const char *path, dlx_error *error);
void dlxi_safetensors_close(dlxi_safetensors **file);

/* Tensors in order of name; all memory is the file's. find gives NULL where there is none. */
size_t dlxi_safetensors_count(const dlxi_safetensors *file);
const dlxi_file_tensor *dlxi_safetensors_at(const dlxi_safetensors *file, size_t index);
const dlxi_file_tensor *dlxi_safetensors_find(const dlxi_safetensors *file, const char *name);
const char *dlxi_safetensors_path(const dlxi_safetensors *file);

/* Whether dlxi_file_tensor_read takes the tensor's dtype: F32, F16 or BF16. DLX_DATA where not. */
dlx_status dlxi_file_tensor_check(const dlxi_file_tensor *tensor, dlx_error *error);

/* dst[count] ← elements first … first + count − 1 as f32. DLX_DATA as dlxi_file_tensor_check. */
dlx_status dlxi_file_tensor_read(float *dst, const dlxi_file_tensor *tensor, int64_t first,
                                 int64_t count, dlx_error *error);

/* One tensor to write: F32, one- or two-dimensional. `write` hands rows [first, first + rows) to
 * dst. */
typedef struct dlxi_tensor_source {
    const char *name;
    int64_t rows, cols;
    bool vector; /* shape [cols] */
    void (*write)(float *dst, const void *context, int64_t first, int64_t rows);
    const void *context;
} dlxi_tensor_source;

/* Writes a temporary file beside `path`. On success *out is the caller's: dlxi_file_writer_commit
 * puts the file in its place whole, dlxi_file_writer_close without it leaves nothing. Blocks. */
dlx_status dlxi_safetensors_write(dlxi_file_writer **out, const char *path,
                                  const dlxi_tensor_source *source, size_t count, dlx_error *error);

#endif
