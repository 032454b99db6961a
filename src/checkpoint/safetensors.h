/* SPDX-License-Identifier: Apache-2.0 */
/* Safetensors files: 8 bytes of header length (little-endian), a JSON header with the dtype, shape
 * and byte range of every tensor, and the bytes, without gaps. Every number from a file is bounded
 * before use. https://huggingface.co/docs/safetensors describes the format. */
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
    const uint8_t *data; /* in the file, unaligned; NULL if only the header was read */
    size_t begin, bytes;
    uint64_t offset; /* of its bytes, from the beginning of the file */
} dlxi_file_tensor;

typedef struct dlxi_safetensors dlxi_safetensors;

/* Maps and checks a file. Close with dlxi_safetensors_close. DLX_SYSTEM; DLX_DATA: malformed; the
 * message names the file, the tensor and the cause. Blocks. */
dlx_status dlxi_safetensors_open(dlxi_safetensors **out, const char *path, dlx_error *error);
/* The same of borrowed data[bytes]; messages call it `path`. */
dlx_status dlxi_safetensors_parse(dlxi_safetensors **out, const uint8_t *data, size_t bytes,
                                  const char *path, dlx_error *error);
/* The same for a file that is not mapped: reads and checks its header, against its size too. */
dlx_status dlxi_safetensors_open_header(dlxi_safetensors **out, const char *path, dlx_error *error);
void dlxi_safetensors_close(dlxi_safetensors **file);

/* Tensors are sorted by name; all memory is the file's. find returns NULL if there is none. */
size_t dlxi_safetensors_count(const dlxi_safetensors *file);
const dlxi_file_tensor *dlxi_safetensors_at(const dlxi_safetensors *file, size_t index);
const dlxi_file_tensor *dlxi_safetensors_find(const dlxi_safetensors *file, const char *name);
const char *dlxi_safetensors_path(const dlxi_safetensors *file);
uint64_t dlxi_safetensors_bytes(const dlxi_safetensors *file); /* of the whole file */

/* DLX_DATA unless the tensor's dtype is F32, F16 or BF16. */
dlx_status dlxi_file_tensor_check(const dlxi_file_tensor *tensor, dlx_error *error);

/* dst[count] ← elements [first, first + count) as f32. DLX_DATA as dlxi_file_tensor_check. */
dlx_status dlxi_file_tensor_read(float *dst, const dlxi_file_tensor *tensor, int64_t first,
                                 int64_t count, dlx_error *error);

/* Bytes of an element of this dtype; 0 if it is unknown. */
size_t dlxi_dtype_bytes(const char *dtype);

/* One tensor to write. */
typedef struct dlxi_tensor_source {
    const char *name, *dtype;
    int64_t rows, cols;
    bool vector; /* its shape is [cols] */
    /* for dlxi_safetensors_write: dst[rows, cols] ← its rows [first, first + rows) */
    void (*write)(float *dst, const void *context, int64_t first, int64_t rows);
    const void *context;
} dlxi_tensor_source;

/* Writes a temporary file of F32 tensors: dlxi_file_writer_commit renames it to `path`. *out is the
 * caller's. Blocks. */
dlx_status dlxi_safetensors_write(dlxi_file_writer **out, const char *path,
                                  const dlxi_tensor_source *source, size_t count, dlx_error *error);

/* Appends the header of a file with these tensors, of any dtype; `write` is not used. offset[count]
 * ← where in the file the caller has to put their bytes, *file_bytes ← its size with them. Larger
 * elements come first, so that all are aligned. DLX_ARGUMENT if two have the same name. Blocks. */
dlx_status dlxi_safetensors_write_header(dlxi_file_writer *writer, uint64_t *offset,
                                         uint64_t *file_bytes, const dlxi_tensor_source *source,
                                         size_t count, dlx_error *error);

#endif
