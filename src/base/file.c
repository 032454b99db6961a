/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 16 };

dlx_status dlxi_path_join(char dst[DLXI_PATH_BYTES], const char *directory, const char *name,
                          dlx_error *error) {
    if (directory[0] == '\0')
        DLX_FAIL(error, CONFIG, "a directory's path is empty; for the current one write '.'");
    int length = snprintf(dst, DLXI_PATH_BYTES, "%s/%s", directory, name);
    if (length >= 0 && length < DLXI_PATH_BYTES) return DLX_OK;
    DLX_FAIL(error, CONFIG, "path '%.100s…' is too long; allowed: up to %d bytes", directory,
             DLXI_PATH_BYTES - 1);
}

/* ---- identity -------------------------------------------------------------------------------- */

static bool is_same(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool dlxi_file_same(const char *a, const char *b) {
    struct stat first, second;
    return stat(a, &first) == 0 && stat(b, &second) == 0 && is_same(&first, &second);
}

bool dlxi_file_is_open_as(int fd, const char *path) {
    struct stat open_file, named;
    return fstat(fd, &open_file) == 0 && stat(path, &named) == 0 && is_same(&open_file, &named);
}

dlx_status dlxi_file_put_aside(char aside[DLXI_PATH_BYTES], const char *path, dlx_error *error) {
    enum { NAMES = 1000 };
    for (int i = 1; i <= NAMES; i++) {
        int bytes = i == 1 ? snprintf(aside, DLXI_PATH_BYTES, "%s.replaced", path)
                           : snprintf(aside, DLXI_PATH_BYTES, "%s.replaced-%d", path, i);
        errno = ENAMETOOLONG;
        bool fits = bytes > 0 && bytes < DLXI_PATH_BYTES;
        if (fits && renameat2(AT_FDCWD, path, AT_FDCWD, aside, RENAME_NOREPLACE) == 0)
            return DLX_OK;
        if (errno != EEXIST) break;
    }
    DLX_FAIL(error, SYSTEM, "%.300s: can't be renamed: %s", path, strerror(errno));
}

/* ---- reading --------------------------------------------------------------------------------- */

static dlx_status file_open(int *fd, const char *path, dlx_error *error) {
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd >= 0) return DLX_OK;
    if (errno == ENOENT) DLX_FAIL(error, SYSTEM, "%s: no such file", path);
    DLX_FAIL(error, SYSTEM, "%s: can't be opened: %s", path, strerror(errno));
}

dlx_status dlxi_file_read(char **out, size_t *bytes, const char *path, size_t bytes_max,
                          dlx_error *error) {
    dlx_status status = DLX_OK;
    char *text = NULL;
    size_t used = 0, room = 0;
    int fd = -1;
    *out = NULL;
    *bytes = 0;
    DLX_TRY_OUT(file_open(&fd, path, error));
    for (;;) { /* the size of a pipe is unknown */
        if (room - used < 2) {
            size_t larger = room == 0 ? BUFFER_BYTES : 2 * room;
            char *grown = larger > room ? realloc(text, larger) : NULL;
            if (grown == NULL)
                DLX_FAIL_OUT(error, MEMORY, "out of memory: %s needs %zu bytes", path, larger);
            text = grown;
            room = larger;
        }
        ssize_t got = read(fd, text + used, room - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) DLX_FAIL_OUT(error, SYSTEM, "%s: can't be read: %s", path, strerror(errno));
        if (got == 0) break;
        used += (size_t)got;
        if (used > bytes_max)
            DLX_FAIL_OUT(error, DATA, "%s: too large; allowed: up to %zu bytes", path, bytes_max);
    }
    text[used] = '\0';
    *out = text;
    *bytes = used;
    text = NULL;
out:
    free(text);
    if (fd >= 0) close(fd);
    return status;
}

static dlx_status regular_check(struct stat *facts, int fd, const char *path, dlx_error *error) {
    if (fstat(fd, facts) != 0)
        DLX_FAIL(error, SYSTEM, "%s: can't be read: %s", path, strerror(errno));
    if (S_ISREG(facts->st_mode)) return DLX_OK;
    DLX_FAIL(error, DATA, "%s: not a regular file; give a file, not a directory or pipe", path);
}

dlx_status dlxi_file_map_open(dlxi_file_map *out, const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    int fd = -1;
    struct stat facts;
    *out = (dlxi_file_map){0};
    DLX_TRY_OUT(file_open(&fd, path, error));
    DLX_TRY_OUT(regular_check(&facts, fd, path, error));
    if ((uint64_t)facts.st_size > SIZE_MAX / 2)
        DLX_FAIL_OUT(error, DATA, "%s: larger than this machine's address space", path);
    if (facts.st_size > 0) {
        void *data = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED)
            DLX_FAIL_OUT(error, SYSTEM, "%s: can't be mapped: %s", path, strerror(errno));
        *out = (dlxi_file_map){.data = data, .bytes = (size_t)facts.st_size};
    }
out:
    if (fd >= 0) close(fd);
    return status;
}

void dlxi_file_map_close(dlxi_file_map *map) {
    if (map->data != NULL) munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (dlxi_file_map){0};
}

dlx_status dlxi_file_reader_open(dlxi_file_reader *out, const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_file_reader reader = {.fd = -1};
    struct stat facts;
    *out = reader;
    DLX_TRY_OUT(file_open(&reader.fd, path, error));
    DLX_TRY_OUT(regular_check(&facts, reader.fd, path, error));
    reader.bytes = (uint64_t)facts.st_size;
    *out = reader;
    reader.fd = -1;
out:
    dlxi_file_reader_close(&reader);
    return status;
}

dlx_status dlxi_file_reader_read(const dlxi_file_reader *reader, void *dst, uint64_t offset,
                                 size_t bytes, const char *path, dlx_error *error) {
    char *to = dst;
    while (bytes > 0) {
        ssize_t got = pread(reader->fd, to, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) DLX_FAIL(error, SYSTEM, "%s: can't be read: %s", path, strerror(errno));
        if (got == 0)
            DLX_FAIL(error, DATA, "%s: ends after %llu bytes; the file is cut short: copy it again",
                     path, (unsigned long long)offset);
        to += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return DLX_OK;
}

void dlxi_file_reader_close(dlxi_file_reader *reader) {
    if (reader->fd >= 0) close(reader->fd);
    reader->fd = -1;
}

/* ---- writing --------------------------------------------------------------------------------- */

struct dlxi_file_writer {
    int fd;
    char *path, *temporary; /* temporary is empty if there is nothing to remove */
    uint64_t written;       /* bytes in the file, before those in the buffer */
    size_t buffered;
    char buffer[BUFFER_BYTES];
};

dlx_status dlxi_file_write_fail(const char *path, dlx_error *error) {
    struct rlimit limit;
    if (errno == EFBIG && getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        DLX_FAIL(error, SYSTEM,
                 "%s: can't be written: it would be larger than the %llu bytes that this process "
                 "may write (ulimit -f)",
                 path, (unsigned long long)limit.rlim_cur);
    DLX_FAIL(error, SYSTEM, "%s: can't be written: %s", path, strerror(errno));
}

static dlx_status writer_write_at(const dlxi_file_writer *writer, uint64_t offset, const void *data,
                                  size_t bytes, dlx_error *error) {
    const char *from = data;
    while (bytes > 0) {
        ssize_t put = pwrite(writer->fd, from, bytes, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return dlxi_file_write_fail(writer->path, error);
        from += put;
        offset += (uint64_t)put;
        bytes -= (size_t)put;
    }
    return DLX_OK;
}

static dlx_status writer_flush(dlxi_file_writer *writer, dlx_error *error) {
    DLX_TRY(writer_write_at(writer, writer->written, writer->buffer, writer->buffered, error));
    writer->written += writer->buffered;
    writer->buffered = 0;
    return DLX_OK;
}

/* Not mkostemp: its files are private, and no thread can read the umask safely. */
static dlx_status temporary_create(dlxi_file_writer *writer, size_t name_bytes, dlx_error *error) {
    enum { ATTEMPTS = 100 };
    for (int i = 0; i < ATTEMPTS; i++) {
        snprintf(writer->temporary, name_bytes, "%s.part-%ld-%d", writer->path, (long)getpid(), i);
        writer->fd = open(writer->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (writer->fd >= 0) return DLX_OK;
        if (errno != EEXIST) break;
    }
    writer->temporary[0] = '\0';
    return dlxi_file_write_fail(writer->path, error);
}

/* A rename would put a file in the place of a device or pipe. */
static dlx_status place_check(const char *path, dlx_error *error) {
    struct stat facts;
    if (stat(path, &facts) != 0 || S_ISREG(facts.st_mode)) return DLX_OK;
    DLX_FAIL(error, CONFIG, "%s: is %s; name a file to write, new or to be replaced", path,
             S_ISDIR(facts.st_mode) ? "a directory" : "not a regular file");
}

dlx_status dlxi_file_writer_open(dlxi_file_writer **out, const char *path, dlx_error *error) {
    enum { SUFFIX_BYTES = 40 };
    dlx_status status = DLX_OK;
    dlxi_file_writer *writer = NULL;
    size_t path_bytes = strlen(path);
    *out = NULL;
    DLX_TRY(place_check(path, error));
    DLX_TRY(DLXI_NEW(&writer, 1, error));
    writer->fd = -1;
    DLX_TRY_OUT(DLXI_NEW(&writer->path, path_bytes + 1, error));
    DLX_TRY_OUT(DLXI_NEW(&writer->temporary, path_bytes + SUFFIX_BYTES, error));
    memcpy(writer->path, path, path_bytes);
    DLX_TRY_OUT(temporary_create(writer, path_bytes + SUFFIX_BYTES, error));
    *out = writer;
    writer = NULL;
out:
    dlxi_file_writer_close(&writer);
    return status;
}

dlx_status dlxi_file_writer_append(dlxi_file_writer *writer, const void *data, size_t bytes,
                                   dlx_error *error) {
    if (bytes > BUFFER_BYTES - writer->buffered) DLX_TRY(writer_flush(writer, error));
    if (bytes >= BUFFER_BYTES) {
        DLX_TRY(writer_write_at(writer, writer->written, data, bytes, error));
        writer->written += bytes;
        return DLX_OK;
    }
    if (bytes > 0) memcpy(writer->buffer + writer->buffered, data, bytes);
    writer->buffered += bytes;
    return DLX_OK;
}

dlx_status dlxi_file_writer_extend(dlxi_file_writer *writer, uint64_t bytes, dlx_error *error) {
    DLX_TRY(writer_flush(writer, error));
    if (bytes < writer->written)
        DLX_FAIL(error, ARGUMENT, "%s: extended to less than was appended", writer->path);
    if (ftruncate(writer->fd, (off_t)bytes) != 0) return dlxi_file_write_fail(writer->path, error);
    writer->written = bytes;
    return DLX_OK;
}

dlx_status dlxi_file_writer_replace(dlxi_file_writer *writer, uint64_t offset, const void *data,
                                    size_t bytes, dlx_error *error) {
    DLX_TRY(writer_flush(writer, error));
    if (offset > writer->written || bytes > writer->written - offset)
        DLX_FAIL(error, ARGUMENT, "%s: replacing bytes that were not appended", writer->path);
    DLX_TRY(writer_write_at(writer, offset, data, bytes, error));
    /* A hint: the disk begins with these bytes now, not with all of them at the commit's fsync. */
    (void)sync_file_range(writer->fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    return DLX_OK;
}

dlx_status dlxi_directory_sync(const char *directory, dlx_error *error) {
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) DLX_FAIL(error, SYSTEM, "%s: can't be opened: %s", directory, strerror(errno));
    int failure = fsync(fd) != 0 ? errno : 0;
    close(fd);
    if (failure == 0 || failure == EINVAL || failure == ENOTSUP) return DLX_OK;
    errno = failure;
    return dlxi_file_write_fail(directory, error);
}

/* A rename is on disk only once its directory is. */
static void parent_sync(const char *path) {
    const char *slash = strrchr(path, '/');
    char *directory = slash == NULL   ? strdup(".")
                      : slash == path ? strdup("/")
                                      : strndup(path, (size_t)(slash - path));
    if (directory != NULL) (void)dlxi_directory_sync(directory, NULL);
    free(directory);
}

dlx_status dlxi_file_writer_commit(dlxi_file_writer *writer, dlx_error *error) {
    DLX_TRY(writer_flush(writer, error));
    if (fsync(writer->fd) != 0) return dlxi_file_write_fail(writer->path, error);
    if (rename(writer->temporary, writer->path) != 0)
        DLX_FAIL(error, SYSTEM, "%s: can't be replaced: %s", writer->path, strerror(errno));
    writer->temporary[0] = '\0';
    parent_sync(writer->path);
    return DLX_OK;
}

void dlxi_file_writer_close(dlxi_file_writer **writer) {
    dlxi_file_writer *w = *writer;
    if (w == NULL) return;
    if (w->fd >= 0) close(w->fd);
    if (w->temporary != NULL && w->temporary[0] != '\0') unlink(w->temporary);
    free(w->temporary);
    free(w->path);
    free(w);
    *writer = NULL;
}

dlx_status dlxi_file_write_text(const char *path, const char *text, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_file_writer *writer = NULL;
    DLX_TRY_OUT(dlxi_file_writer_open(&writer, path, error));
    DLX_TRY_OUT(dlxi_file_writer_append(writer, text, strlen(text), error));
    DLX_TRY_OUT(dlxi_file_writer_append(writer, "\n", 1, error));
    DLX_TRY_OUT(dlxi_file_writer_commit(writer, error));
out:
    dlxi_file_writer_close(&writer);
    return status;
}
