/* SPDX-License-Identifier: Apache-2.0 */
/* Files: read, mapped, and replaced: a reader sees the old file or the complete new one. */
#ifndef DLXI_BASE_FILE_H
#define DLXI_BASE_FILE_H

#include "base/error.h"

enum { DLXI_PATH_BYTES = 4096 };

/* dst ← directory/name. DLX_CONFIG if it does not fit, or `directory` is empty. */
dlx_status dlxi_path_join(char dst[DLXI_PATH_BYTES], const char *directory, const char *name,
                          dlx_error *error);

/* *out ← the file's bytes and a terminating 0, which *bytes does not count; the caller frees it.
 * DLX_SYSTEM if it can't be read (system_errno is ENOENT if it does not exist), DLX_DATA if it is
 * larger than bytes_max. Blocks. */
dlx_status dlxi_file_read(char **out, size_t *bytes, const char *path, size_t bytes_max,
                          dlx_error *error);

/* Whether both names are of one existing file: by another path, a symbolic or a hard link. */
bool dlxi_file_same(const char *a, const char *b);
/* The same of an open file and a name. */
bool dlxi_file_is_open_as(int fd, const char *path);

/* Fills error from errno, after a write to the file failed; returns DLX_SYSTEM. */
dlx_status dlxi_file_write_fail(const char *path, dlx_error *error);

/* A file mapped for reading; data is NULL for an empty one. Truncating a mapped file ends the
 * process with SIGBUS, so files are replaced (dlxi_file_writer) and never changed in place. */
typedef struct dlxi_file_map {
    const uint8_t *data;
    size_t bytes;
} dlxi_file_map;

/* Statuses as dlxi_file_read. Only regular files. Close takes a zeroed map. */
dlx_status dlxi_file_map_open(dlxi_file_map *out, const char *path, dlx_error *error);
void dlxi_file_map_close(dlxi_file_map *map);

/* An open file, read in pieces. Unlike with a map, a file that shrinks and a disk that fails are
 * errors. */
typedef struct dlxi_file_reader {
    int fd; /* -1: not open */
    uint64_t bytes;
} dlxi_file_reader;

/* Statuses as dlxi_file_read. Only regular files. Close takes one that is not open. */
dlx_status dlxi_file_reader_open(dlxi_file_reader *out, const char *path, dlx_error *error);
/* dst[bytes] ← the file from `offset` on; messages call it `path`. DLX_DATA if it is shorter;
 * DLX_SYSTEM. Blocks. */
dlx_status dlxi_file_reader_read(const dlxi_file_reader *reader, void *dst, uint64_t offset,
                                 size_t bytes, const char *path, dlx_error *error);
void dlxi_file_reader_close(dlxi_file_reader *reader);

/* Writes path.part-…; commit flushes it to disk and renames it to path. What exists at path must be
 * a regular file: DLX_CONFIG. One thread at a time. */
typedef struct dlxi_file_writer dlxi_file_writer;

dlx_status dlxi_file_writer_open(dlxi_file_writer **out, const char *path, dlx_error *error);
dlx_status dlxi_file_writer_append(dlxi_file_writer *writer, const void *data, size_t bytes,
                                   dlx_error *error);
/* Appends zeros until the file has `bytes`, for replace to overwrite; they take no space before. */
dlx_status dlxi_file_writer_extend(dlxi_file_writer *writer, uint64_t bytes, dlx_error *error);
/* Overwrites appended bytes: a header whose checksum is known only at the end. */
dlx_status dlxi_file_writer_replace(dlxi_file_writer *writer, uint64_t offset, const void *data,
                                    size_t bytes, dlx_error *error);
/* After this, whether or not it succeeds, only close is allowed. */
dlx_status dlxi_file_writer_commit(dlxi_file_writer *writer, dlx_error *error);
/* Without a commit, removes the temporary file and leaves path unchanged. */
void dlxi_file_writer_close(dlxi_file_writer **writer);

/* Renames in a directory are on disk after this. DLX_SYSTEM; file systems that cannot sync a
 * directory are taken to do it by themselves. */
dlx_status dlxi_directory_sync(const char *directory, dlx_error *error);

/* Renames it to aside ← path.replaced, or .replaced-2 and so on; overwrites nothing. DLX_SYSTEM. */
dlx_status dlxi_file_put_aside(char aside[DLXI_PATH_BYTES], const char *path, dlx_error *error);

/* Replaces path with the text and a newline. */
dlx_status dlxi_file_write_text(const char *path, const char *text, dlx_error *error);

#endif
