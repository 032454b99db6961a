/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots: the whole training state of one site at one inner step, to resume a run from.
 * docs/formats.md has the format:
 *
 *   DIR/step-000000012345/        one snapshot, complete: it has its name only when it is durable
 *       rank-0000.safetensors     the parts of one rank; one file per rank of the site
 *       manifest.json             step, ranks, the caller's meta, sizes, shapes and checksums
 *   DIR/step-000000012400.part/   one that is being written, or was when the process ended
 *   DIR/step-000000012345.old/    one that is being replaced
 *
 * Every rank of a site writes its file, and one of them commits:
 *
 *   begin    every rank       a thread writes the parts from where they are
 *   wait     every rank       before it changes the memory of a part
 *   result   every rank       a description of its file, which the ranks gather
 *   commit   one rank         manifest, names, removal of older ones; if a rank failed, discard
 *   close    every rank
 *
 * A process that ends at any moment leaves the newest snapshot or the one before it complete, once
 * there is one. */
#ifndef DLXI_CHECKPOINT_SNAPSHOT_H
#define DLXI_CHECKPOINT_SNAPSHOT_H

#include "checkpoint/json.h"

enum {
    DLXI_SNAPSHOT_NAME_MAX = 255,      /* bytes of a part's name */
    DLXI_SNAPSHOT_PARTS_MAX = 1 << 19, /* of all ranks */
    DLXI_SNAPSHOT_DIGITS = 12          /* of a step in a directory's name */
};
#define DLXI_SNAPSHOT_STEP_MAX UINT64_C(999999999999)

const char *dlxi_part_kind_name(dlx_part_kind kind); /* "F32" */
size_t dlxi_part_kind_bytes(dlx_part_kind kind);     /* of one element */

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct dlxi_snapshot_writer dlxi_snapshot_writer;

/* Starts a thread that writes parts[count] in this order: rows and cols may be 0; a name is UTF-8
 * without control characters, not "__metadata__", and only once per rank. It makes `directory`,
 * whose parent must exist, and in it the .part directory of `step`, and removes what is left of
 * this rank there. The array and the names are copied; the memory stays as it is until
 * dlxi_snapshot_wait has returned for its part. Failures of the disk are the result's.
 * DLX_ARGUMENT: a name, a step above DLXI_SNAPSHOT_STEP_MAX; DLX_SYSTEM: no thread; DLX_CONFIG: a
 * big-endian machine. Does not block. One writer per directory, step and rank at a time. */
dlx_status dlxi_snapshot_begin(dlxi_snapshot_writer **out, const char *directory, uint64_t step,
                               int rank, int ranks, const dlx_part *parts, size_t count,
                               dlx_error *error);
/* Blocks until the memory of the first `parts` parts is not needed any more: written to the file,
 * or the writer has failed. More than there are: all. */
void dlxi_snapshot_wait(dlxi_snapshot_writer *writer, size_t parts);
/* Whether the result is known: the file is on the disk, or writing it has failed. Does not
 * block. */
bool dlxi_snapshot_is_written(dlxi_snapshot_writer *writer);
/* Blocks until the file is on the disk. *description ← this rank's entry of the manifest, JSON on
 * one line, free with free(); NULL on failure. From then on the file belongs to commit or discard.
 * DLX_SYSTEM: the disk, with the file's path, also if less than a quarter of the file's size would
 * stay free; DLX_MEMORY. */
dlx_status dlxi_snapshot_result(dlxi_snapshot_writer *writer, char **description, dlx_error *error);
/* How long the thread took, once the result is known. */
double dlxi_snapshot_write_s(const dlxi_snapshot_writer *writer);
/* Takes NULL. Before a result: stops the thread after at most 1 MiB more, or one flush to the disk.
 * Unless the result was taken and was DLX_OK, removes this rank's file, and the .part directory if
 * that is empty then. The others' files, and the commit, are not touched. */
void dlxi_snapshot_close(dlxi_snapshot_writer **writer);

/* On one rank, after the result of all: descriptions[ranks], in order of rank. Writes the manifest
 * with `meta`, an object that is borrowed (NULL: empty), checks it and the files as a reader does,
 * all but the checksums, and gives the directory its name, in place of an earlier snapshot of the
 * same step. When that is on the disk, removes the snapshots of smaller steps but the newest
 * keep − 1, keep ≥ 1. If it fails, the earlier snapshots are as they were, and the .part directory
 * is removed; only if a message begins with "the snapshot of step" is the new one complete, and
 * what failed came after. DLX_DATA: a file is missing or another one: perhaps the ranks do not
 * share the directory; DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_commit(const char *directory, uint64_t step,
                                const char *const *descriptions, int ranks, json_t *meta, int keep,
                                dlx_error *error);
/* Instead of commit, if a rank has failed: removes the .part directory. DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_discard(const char *directory, uint64_t step, dlx_error *error);
/* On one rank, at a start, before open_newest and begin: removes what processes that ended have
 * left in the directory, and puts back a snapshot that was moved for one that did not come. No
 * directory is DLX_OK. DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_tidy(const char *directory, dlx_error *error);

/* ---- reading --------------------------------------------------------------------------------- */

/* One thread at a time. */
typedef struct dlxi_snapshot dlxi_snapshot;

typedef struct dlxi_snapshot_part {
    const char *name; /* the snapshot's */
    dlx_part_kind kind;
    int64_t rows, cols;
    int rank;
    uint64_t bytes, offset; /* in the rank's file */
    uint64_t xxh3;
} dlxi_snapshot_part;

/* path: one step-… directory. Checks the manifest, and the names, sizes, dtypes and shapes in all
 * files, but not the checksums. DLX_DATA names the file and part that is missing or malformed;
 * DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_open(dlxi_snapshot **out, const char *path, dlx_error *error);
/* The newest one whose checksums are right, too. One that is damaged is named in a line to `log`,
 * which may be NULL, and the one before is tried. DLX_SYSTEM with system_errno ENOENT if the
 * directory has none or does not exist; DLX_DATA if all of them are damaged; DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_open_newest(dlxi_snapshot **out, const char *directory, dlx_log log,
                                     void *log_context, dlx_error *error);
void dlxi_snapshot_close_opened(dlxi_snapshot **snapshot); /* takes NULL */

const char *dlxi_snapshot_path(const dlxi_snapshot *snapshot);
uint64_t dlxi_snapshot_step(const dlxi_snapshot *snapshot);
int dlxi_snapshot_ranks(const dlxi_snapshot *snapshot);
const json_t *dlxi_snapshot_meta(const dlxi_snapshot *snapshot); /* an object */

/* All parts: rank by rank, in the order in which they were written. */
size_t dlxi_snapshot_part_count(const dlxi_snapshot *snapshot);
const dlxi_snapshot_part *dlxi_snapshot_part_at(const dlxi_snapshot *snapshot, size_t index);
/* NULL if there is none. rank < 0: of the lowest rank that has one of this name. */
const dlxi_snapshot_part *dlxi_snapshot_find(const dlxi_snapshot *snapshot, const char *name,
                                             int rank);

/* dst[rows, cols] ← the part. DLX_DATA names the file and the part if the checksum does not match:
 * dst then has the damaged bytes. DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_read(dlxi_snapshot *snapshot, void *dst, const dlxi_snapshot_part *part,
                              dlx_error *error);
/* Reads all parts and compares their checksums. Statuses as dlxi_snapshot_read. Blocks. */
dlx_status dlxi_snapshot_verify(dlxi_snapshot *snapshot, dlx_error *error);

/* *steps[*count] ← the steps of the directory's snapshots, complete or damaged, newest first; free
 * with free(). DLX_SYSTEM. Blocks. */
dlx_status dlxi_snapshot_list(uint64_t **steps, size_t *count, const char *directory,
                              dlx_error *error);

#endif
