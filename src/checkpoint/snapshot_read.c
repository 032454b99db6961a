/* SPDX-License-Identifier: Apache-2.0 */
/* Reads snapshots. Files are read and not mapped: a disk that fails is then a damaged snapshot, and
 * not the end of the process. */
#include "checkpoint/manifest.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/panic.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PIECE_BYTES = 1 << 20 };

struct dlxi_snapshot {
    char path[DLXI_PATH_BYTES];
    dlxi_manifest *manifest;
    size_t *by_name; /* [parts], sorted by name and rank */
    dlxi_hasher *hasher;
    uint8_t *piece;          /* [PIECE_BYTES] */
    dlxi_file_reader reader; /* of the file of rank reader_rank, -1 for none */
    int reader_rank;
    char reader_path[DLXI_PATH_BYTES];
};

/* ---- open ------------------------------------------------------------------------------------ */

static int part_compare(const void *a, const void *b, void *parts) {
    const dlxi_snapshot_part *x = (const dlxi_snapshot_part *)parts + *(const size_t *)a,
                             *y = (const dlxi_snapshot_part *)parts + *(const size_t *)b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : x->rank - y->rank;
}

static dlx_status names_sort(dlxi_snapshot *s, dlx_error *error) {
    size_t count = s->manifest->count;
    DLX_TRY(DLXI_NEW(&s->by_name, count, error));
    for (size_t i = 0; i < count; i++) s->by_name[i] = i;
    if (count > 1) qsort_r(s->by_name, count, sizeof *s->by_name, part_compare, s->manifest->part);
    return DLX_OK;
}

static dlx_status manifest_read(dlxi_snapshot *s, dlx_error *error) {
    dlx_status status = DLX_OK;
    char path[DLXI_PATH_BYTES], *text = NULL;
    size_t bytes;
    dlx_error own;
    if (error == NULL) error = &own;
    DLX_TRY_OUT(dlxi_path_join(path, s->path, DLXI_MANIFEST_NAME, error));
    status = dlxi_file_read(&text, &bytes, path, DLXI_MANIFEST_BYTES_MAX, error);
    if (status == DLX_SYSTEM && error->system_errno == ENOENT)
        DLX_FAIL_OUT(error, DATA, "%s: no such file; this is not a snapshot, or not all of it",
                     path);
    if (status == DLX_OK) status = dlxi_manifest_parse(&s->manifest, text, bytes, path, error);
out:
    free(text);
    return status;
}

/* A directory with a step in its name has that snapshot; others may be called anything. */
static dlx_status step_check(const dlxi_snapshot *s, dlx_error *error) {
    const char *slash = strrchr(s->path, '/');
    uint64_t step;
    if (!dlxi_snapshot_step_of(&step, slash != NULL ? slash + 1 : s->path, "")) return DLX_OK;
    if (step == s->manifest->step) return DLX_OK;
    DLX_FAIL(error, DATA, "%s: has the snapshot of step %" PRIu64 "; was it renamed?", s->path,
             s->manifest->step);
}

static dlx_status file_path(char path[DLXI_PATH_BYTES], const dlxi_snapshot *s, int rank,
                            dlx_error *error) {
    return dlxi_path_join(path, s->path, s->manifest->file[rank].name, error);
}

static dlx_status snapshot_open(dlxi_snapshot *s, const char *path, dlx_error *error) {
    char file[DLXI_PATH_BYTES];
    s->reader.fd = -1;
    s->reader_rank = -1;
    dlxi_text_copy(s->path, sizeof s->path, path);
    for (size_t end = strlen(s->path); end > 1 && s->path[end - 1] == '/'; end--)
        s->path[end - 1] = '\0';
    DLX_TRY(manifest_read(s, error));
    DLX_TRY(step_check(s, error));
    for (int rank = 0; rank < s->manifest->ranks; rank++) {
        DLX_TRY(file_path(file, s, rank, error));
        DLX_TRY(dlxi_manifest_check_file(s->manifest, rank, file, error));
    }
    DLX_TRY(names_sort(s, error));
    DLX_TRY(dlxi_hasher_open(&s->hasher, error));
    return DLXI_NEW(&s->piece, PIECE_BYTES, error);
}

dlx_status dlxi_snapshot_open(dlxi_snapshot **out, const char *path, dlx_error *error) {
    *out = NULL;
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlx_status status = snapshot_open(*out, path, error);
    if (status != DLX_OK) dlxi_snapshot_close_opened(out);
    return status;
}

void dlxi_snapshot_close_opened(dlxi_snapshot **snapshot) {
    dlxi_snapshot *s = *snapshot;
    if (s == NULL) return;
    dlxi_file_reader_close(&s->reader);
    free(s->piece);
    dlxi_hasher_close(&s->hasher);
    free(s->by_name);
    dlxi_manifest_close(&s->manifest);
    free(s);
    *snapshot = NULL;
}

/* ---- what is in it --------------------------------------------------------------------------- */

const char *dlxi_snapshot_path(const dlxi_snapshot *snapshot) {
    return snapshot->path;
}

uint64_t dlxi_snapshot_step(const dlxi_snapshot *snapshot) {
    return snapshot->manifest->step;
}

int dlxi_snapshot_ranks(const dlxi_snapshot *snapshot) {
    return snapshot->manifest->ranks;
}

const json_t *dlxi_snapshot_meta(const dlxi_snapshot *snapshot) {
    return snapshot->manifest->meta;
}

size_t dlxi_snapshot_part_count(const dlxi_snapshot *snapshot) {
    return snapshot->manifest->count;
}

const dlxi_snapshot_part *dlxi_snapshot_part_at(const dlxi_snapshot *snapshot, size_t index) {
    DLXI_ASSERT(index < snapshot->manifest->count);
    return &snapshot->manifest->part[index];
}

const dlxi_snapshot_part *dlxi_snapshot_find(const dlxi_snapshot *snapshot, const char *name,
                                             int rank) {
    const dlxi_snapshot_part *part = snapshot->manifest->part;
    size_t first = 0, end = snapshot->manifest->count;
    while (first < end) { /* the first one that is not before (name, rank) */
        size_t middle = first + (end - first) / 2;
        const dlxi_snapshot_part *at = &part[snapshot->by_name[middle]];
        int order = strcmp(at->name, name);
        if (order < 0 || (order == 0 && at->rank < rank))
            first = middle + 1;
        else
            end = middle;
    }
    if (first == snapshot->manifest->count) return NULL;
    const dlxi_snapshot_part *found = &part[snapshot->by_name[first]];
    return strcmp(found->name, name) == 0 && (rank < 0 || found->rank == rank) ? found : NULL;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Opens the file of a rank, unless it is the one that is open. */
static dlx_status file_reach(dlxi_snapshot *s, int rank, dlx_error *error) {
    if (s->reader_rank == rank) return DLX_OK;
    dlxi_file_reader_close(&s->reader);
    s->reader_rank = -1;
    DLX_TRY(file_path(s->reader_path, s, rank, error));
    DLX_TRY(dlxi_file_reader_open(&s->reader, s->reader_path, error));
    s->reader_rank = rank;
    return DLX_OK;
}

/* dst may be NULL: only compares the checksum. */
static dlx_status part_read(dlxi_snapshot *s, uint8_t *dst, const dlxi_snapshot_part *part,
                            dlx_error *error) {
    DLX_TRY(file_reach(s, part->rank, error));
    dlxi_hasher_begin(s->hasher);
    for (uint64_t at = 0, piece; at < part->bytes; at += piece) {
        piece = part->bytes - at < PIECE_BYTES ? part->bytes - at : PIECE_BYTES;
        uint8_t *to = dst != NULL ? dst + at : s->piece;
        DLX_TRY(dlxi_file_reader_read(&s->reader, to, part->offset + at, (size_t)piece,
                                      s->reader_path, error));
        dlxi_hasher_add(s->hasher, to, (size_t)piece);
    }
    if (dlxi_hasher_value(s->hasher) == part->xxh3) return DLX_OK;
    DLX_FAIL(error, DATA,
             "%s: part '%.96s' is damaged: its checksum does not match; copy the file again, or "
             "use another snapshot",
             s->reader_path, part->name);
}

dlx_status dlxi_snapshot_read(dlxi_snapshot *snapshot, void *dst, const dlxi_snapshot_part *part,
                              dlx_error *error) {
    DLXI_ASSERT(dst != NULL || part->bytes == 0);
    return part_read(snapshot, dst, part, error);
}

dlx_status dlxi_snapshot_verify(dlxi_snapshot *snapshot, dlx_error *error) {
    for (size_t i = 0; i < snapshot->manifest->count; i++)
        DLX_TRY(part_read(snapshot, NULL, &snapshot->manifest->part[i], error));
    return DLX_OK;
}

/* ---- the newest ------------------------------------------------------------------------------ */

/* Of the snapshot, and not of this process or its rights. */
static bool is_damage(dlx_status status, const dlx_error *error) {
    return status == DLX_DATA || (status == DLX_SYSTEM && error->system_errno == EIO);
}

static dlx_status step_open(dlxi_snapshot **out, const char *directory, uint64_t step,
                            dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_snapshot_step_path(path, directory, step, "", error));
    DLX_TRY(dlxi_snapshot_open(out, path, error));
    dlx_status status = dlxi_snapshot_verify(*out, error);
    if (status != DLX_OK) dlxi_snapshot_close_opened(out);
    return status;
}

static dlx_status newest_open(dlxi_snapshot **out, const uint64_t *steps, size_t count,
                              const char *directory, dlx_log log, void *log_context,
                              dlx_error *error) {
    char line[sizeof error->message + 64];
    for (size_t i = 0; i < count; i++) {
        dlx_status status = step_open(out, directory, steps[i], error);
        if (!is_damage(status, error)) return status;
        snprintf(line, sizeof line, "the snapshot of step %" PRIu64 " is not used: %s", steps[i],
                 error->message);
        if (log != NULL) log(log_context, line);
    }
    if (count > 0)
        DLX_FAIL(error, DATA, "%s: each of its %zu snapshots is damaged", directory, count);
    errno = ENOENT;
    DLX_FAIL(error, SYSTEM, "%s: has no snapshot", directory);
}

dlx_status dlxi_snapshot_open_newest(dlxi_snapshot **out, const char *directory, dlx_log log,
                                     void *log_context, dlx_error *error) {
    uint64_t *steps = NULL;
    size_t count;
    dlx_error own;
    if (error == NULL) error = &own;
    *out = NULL;
    DLX_TRY(dlxi_snapshot_list(&steps, &count, directory, error));
    dlx_status status = newest_open(out, steps, count, directory, log, log_context, error);
    free(steps);
    return status;
}
