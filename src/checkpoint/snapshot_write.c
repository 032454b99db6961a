/* SPDX-License-Identifier: Apache-2.0 */
/* Writes one rank's file of a snapshot, on a thread of its own.
 *
 * Until the thread has ended, `written`, `done` and `cancelled` are read and written under the
 * lock; everything else is the thread's from begin on, and what it leaves (status, error,
 * description, write_s) the caller's once `done` is set. */
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "base/bits.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/panic.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { PIECE_BYTES = 1 << 20 }; /* hashed and written while it is in a cache */

struct dlxi_snapshot_writer {
    char parent[DLXI_PATH_BYTES], directory[DLXI_PATH_BYTES], path[DLXI_PATH_BYTES];
    int rank;
    dlx_part *part; /* [count]; their names are in `names` */
    size_t count;
    char *names;
    uint64_t *xxh3, *offset; /* [count] */
    bool is_in_place;        /* the file has its name in `directory` */
    bool is_taken;           /* by the caller: it is the commit's */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    size_t written; /* parts */
    bool done, cancelled;

    dlx_status status;
    dlx_error error;
    char *description;
    double write_s;
};

/* ---- the thread ------------------------------------------------------------------------------ */

static bool is_cancelled(dlxi_snapshot_writer *w) {
    pthread_mutex_lock(&w->lock);
    bool cancelled = w->cancelled;
    pthread_mutex_unlock(&w->lock);
    return cancelled;
}

static dlx_status directory_make(const char *path, dlx_error *error) {
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return DLX_OK;
    DLX_FAIL(error, SYSTEM, "%s: can't be made: %s; its parent must exist and be writable", path,
             strerror(errno));
}

/* Removes what earlier processes have left of this rank: its file, or a temporary one. */
static dlx_status leftovers_remove(const dlxi_snapshot_writer *w, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **name = NULL;
    char own[DLXI_SNAPSHOT_FILE_BYTES], path[DLXI_PATH_BYTES];
    dlxi_snapshot_file_name(own, w->rank);
    int count = scandir(w->directory, &name, NULL, NULL);
    if (count < 0)
        DLX_FAIL(error, SYSTEM, "%s: can't be listed: %s", w->directory, strerror(errno));
    for (int i = 0; i < count; i++) {
        if (strncmp(name[i]->d_name, own, strlen(own)) != 0) continue;
        DLX_TRY_OUT(dlxi_path_join(path, w->directory, name[i]->d_name, error));
        if (unlink(path) != 0 && errno != ENOENT)
            DLX_FAIL_OUT(error, SYSTEM, "%s: can't be removed: %s", path, strerror(errno));
    }
out:
    for (int i = 0; i < count; i++) free(name[i]);
    free(name);
    return status;
}

static dlx_status part_write(dlxi_snapshot_writer *w, size_t index, dlxi_file_writer *file,
                             dlxi_hasher *hasher, dlx_error *error) {
    const dlx_part *part = &w->part[index];
    const uint8_t *data = part->data;
    size_t bytes = (size_t)(part->rows * part->cols) * dlxi_part_kind_bytes(part->kind);
    dlxi_hasher_begin(hasher);
    for (size_t at = 0, piece; at < bytes; at += piece) {
        piece = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        if (is_cancelled(w))
            DLX_FAIL(error, INTERRUPTED, "%s: closed before it was complete", w->path);
        dlxi_hasher_add(hasher, data + at, piece);
        DLX_TRY(dlxi_file_writer_replace(file, w->offset[index] + at, data + at, piece, error));
    }
    w->xxh3[index] = dlxi_hasher_value(hasher);
    return DLX_OK;
}

/* A write that fills the disk would end the run, whose other files are there, too: lines of
 * metrics.jsonl, the coordinator's store, and the weights, of about a sixth of these bytes. */
static dlx_status space_check(const dlxi_snapshot_writer *w, uint64_t bytes, dlx_error *error) {
    struct statvfs facts;
    if (statvfs(w->directory, &facts) != 0 || facts.f_blocks == 0) return DLX_OK; /* unknown */
    const uint64_t unit = facts.f_frsize, needed = bytes + bytes / 4;
    if (facts.f_bavail >= needed / unit + 1) return DLX_OK;
    errno = ENOSPC;
    DLX_FAIL(error, SYSTEM,
             "%s: can't be written: %llu bytes have to be free, a fifth of them for other files "
             "of the run, and %llu are; free some space on its disk",
             w->path, (unsigned long long)needed, (unsigned long long)(facts.f_bavail * unit));
}

static dlx_status header_write(dlxi_snapshot_writer *w, uint64_t *file_bytes,
                               dlxi_file_writer *file, dlx_error *error) {
    dlxi_tensor_source *source = NULL;
    DLX_TRY(DLXI_NEW(&source, w->count, error));
    for (size_t i = 0; i < w->count; i++)
        source[i] = (dlxi_tensor_source){.name = w->part[i].name,
                                         .dtype = dlxi_part_kind_name(w->part[i].kind),
                                         .rows = w->part[i].rows,
                                         .cols = w->part[i].cols};
    dlx_status status =
        dlxi_safetensors_write_header(file, w->offset, file_bytes, source, w->count, error);
    free(source);
    if (status == DLX_OK) status = space_check(w, *file_bytes, error);
    return status == DLX_OK ? dlxi_file_writer_extend(file, *file_bytes, error) : status;
}

static dlx_status file_write(dlxi_snapshot_writer *w, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_file_writer *file = NULL;
    dlxi_hasher *hasher = NULL;
    uint64_t file_bytes = 0;
    DLX_TRY_OUT(directory_make(w->parent, error));
    DLX_TRY_OUT(directory_make(w->directory, error));
    DLX_TRY_OUT(leftovers_remove(w, error));
    DLX_TRY_OUT(dlxi_hasher_open(&hasher, error));
    DLX_TRY_OUT(dlxi_file_writer_open(&file, w->path, error));
    DLX_TRY_OUT(header_write(w, &file_bytes, file, error));
    for (size_t i = 0; i < w->count; i++) {
        DLX_TRY_OUT(part_write(w, i, file, hasher, error));
        pthread_mutex_lock(&w->lock);
        w->written = i + 1;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->lock);
    }
    DLX_TRY_OUT(dlxi_file_writer_commit(file, error));
    w->is_in_place = true;
    DLX_TRY_OUT(dlxi_manifest_describe(&w->description, w->rank, file_bytes, w->part, w->xxh3,
                                       w->count, error));
out:
    dlxi_file_writer_close(&file);
    dlxi_hasher_close(&hasher);
    return status;
}

static void *writer_run(void *argument) {
    dlxi_snapshot_writer *w = argument;
    const double begun_s = dlxi_clock_s();
    w->status = file_write(w, &w->error);
    w->write_s = dlxi_clock_s() - begun_s;
    pthread_mutex_lock(&w->lock);
    w->done = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- the caller's side ----------------------------------------------------------------------- */

static dlx_status parts_check(const dlx_part *parts, size_t count, dlx_error *error) {
    char text[DLXI_JSON_SHOWN_BYTES];
    if (count > DLXI_SNAPSHOT_PARTS_MAX)
        DLX_FAIL(error, ARGUMENT, "a snapshot of %zu parts; allowed: up to %d", count,
                 DLXI_SNAPSHOT_PARTS_MAX);
    for (size_t i = 0; i < count; i++) {
        const dlx_part *part = &parts[i];
        if (!dlxi_part_name_is_allowed(part->name))
            DLX_FAIL(error, ARGUMENT,
                     "a snapshot's part '%s': names have 1 to %d bytes of UTF-8 without control "
                     "characters",
                     dlxi_json_show_name(text, part->name), DLXI_SNAPSHOT_NAME_MAX);
        DLXI_ASSERT(part->rows >= 0 && part->cols >= 0 &&
                    (part->cols == 0 || part->rows <= INT64_MAX / 16 / part->cols) &&
                    (part->data != NULL || part->rows == 0 || part->cols == 0));
    }
    return DLX_OK;
}

static dlx_status parts_copy(dlxi_snapshot_writer *w, const dlx_part *parts, size_t count,
                             dlx_error *error) {
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += strlen(parts[i].name) + 1;
    DLX_TRY(DLXI_NEW(&w->part, count, error));
    DLX_TRY(DLXI_NEW(&w->names, bytes, error));
    DLX_TRY(DLXI_NEW(&w->xxh3, count, error));
    DLX_TRY(DLXI_NEW(&w->offset, count, error));
    w->count = count;
    for (size_t i = 0, at = 0; i < count; i++) {
        size_t length = strlen(parts[i].name) + 1;
        w->part[i] = parts[i];
        w->part[i].name = memcpy(w->names + at, parts[i].name, length);
        at += length;
    }
    return DLX_OK;
}

static void writer_free(dlxi_snapshot_writer *w) {
    if (w == NULL) return;
    free(w->description);
    free(w->offset);
    free(w->xxh3);
    free(w->names);
    free(w->part);
    free(w);
}

/* Signals are for the program's own threads. */
static dlx_status thread_start(dlxi_snapshot_writer *w, dlx_error *error) {
    sigset_t all, before;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&w->thread, NULL, writer_run, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure == 0) return DLX_OK;
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    errno = failure;
    DLX_FAIL(error, SYSTEM, "%s: can't start a thread that writes it: %s", w->path,
             strerror(failure));
}

/* Files are little-endian, and what is in memory is written as it is. */
static dlx_status machine_check(dlx_error *error) {
    static const uint16_t one = 1;
    if (dlxi_load16((const uint8_t *)&one) == 1) return DLX_OK;
    DLX_FAIL(error, CONFIG, "snapshots need a little-endian machine");
}

dlx_status dlxi_snapshot_begin(dlxi_snapshot_writer **out, const char *directory, uint64_t step,
                               int rank, int ranks, const dlx_part *parts, size_t count,
                               dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_snapshot_writer *w = NULL;
    char name[DLXI_SNAPSHOT_FILE_BYTES];
    *out = NULL;
    DLXI_ASSERT(ranks >= 1 && ranks <= DLXI_RANKS_MAX && rank >= 0 && rank < ranks);
    DLX_TRY(machine_check(error));
    DLX_TRY(parts_check(parts, count, error));
    if (step > DLXI_SNAPSHOT_STEP_MAX)
        DLX_FAIL(error, ARGUMENT, "a snapshot of step %llu; allowed: up to %llu",
                 (unsigned long long)step, (unsigned long long)DLXI_SNAPSHOT_STEP_MAX);
    DLX_TRY(DLXI_NEW(&w, 1, error));
    w->rank = rank;
    dlxi_snapshot_file_name(name, rank);
    DLX_TRY_OUT(dlxi_snapshot_step_path(w->directory, directory, step, DLXI_SNAPSHOT_PART, error));
    DLX_TRY_OUT(dlxi_path_join(w->path, w->directory, name, error));
    dlxi_text_copy(w->parent, sizeof w->parent, directory);
    DLX_TRY_OUT(parts_copy(w, parts, count, error));
    DLX_TRY_OUT(thread_start(w, error));
    *out = w;
    w = NULL;
out:
    writer_free(w);
    return status;
}

void dlxi_snapshot_wait(dlxi_snapshot_writer *writer, size_t parts) {
    if (parts > writer->count) parts = writer->count;
    pthread_mutex_lock(&writer->lock);
    while (writer->written < parts && !writer->done)
        pthread_cond_wait(&writer->changed, &writer->lock);
    pthread_mutex_unlock(&writer->lock);
}

bool dlxi_snapshot_is_written(dlxi_snapshot_writer *writer) {
    pthread_mutex_lock(&writer->lock);
    bool done = writer->done;
    pthread_mutex_unlock(&writer->lock);
    return done;
}

dlx_status dlxi_snapshot_result(dlxi_snapshot_writer *writer, char **description,
                                dlx_error *error) {
    *description = NULL;
    pthread_mutex_lock(&writer->lock);
    while (!writer->done) pthread_cond_wait(&writer->changed, &writer->lock);
    pthread_mutex_unlock(&writer->lock);
    if (writer->status != DLX_OK) {
        if (error != NULL) *error = writer->error;
        return writer->status;
    }
    *description = strdup(writer->description);
    if (*description == NULL) DLX_FAIL(error, MEMORY, "out of memory: %s", writer->path);
    writer->is_taken = true;
    return DLX_OK;
}

double dlxi_snapshot_write_s(const dlxi_snapshot_writer *writer) {
    return writer->write_s;
}

void dlxi_snapshot_close(dlxi_snapshot_writer **writer) {
    dlxi_snapshot_writer *w = *writer;
    if (w == NULL) return;
    pthread_mutex_lock(&w->lock);
    w->cancelled = true;
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    if (!w->is_taken) {
        if (w->is_in_place) unlink(w->path);
        rmdir(w->directory); /* fails if other ranks have files in it */
    }
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    writer_free(w);
    *writer = NULL;
}
