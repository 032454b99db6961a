/* SPDX-License-Identifier: Apache-2.0 */
/* What a snapshot's directory is made of: the names in it, and manifest.json. */
#ifndef DLXI_CHECKPOINT_MANIFEST_H
#define DLXI_CHECKPOINT_MANIFEST_H

#include "checkpoint/safetensors.h"
#include "checkpoint/snapshot.h"

#define DLXI_MANIFEST_NAME "manifest.json"
#define DLXI_SNAPSHOT_PART ".part"
#define DLXI_SNAPSHOT_OLD  ".old"

enum { DLXI_MANIFEST_BYTES_MAX = 1 << 27, DLXI_SNAPSHOT_FILE_BYTES = 40 };

/* dst ← the name of a rank's file. */
void dlxi_snapshot_file_name(char dst[DLXI_SNAPSHOT_FILE_BYTES], int rank);
/* dst ← directory/step-…ending; as dlxi_path_join. */
dlx_status dlxi_snapshot_step_path(char dst[DLXI_PATH_BYTES], const char *directory, uint64_t step,
                                   const char *ending, dlx_error *error);
/* Whether `name` is step-…ending, and of which step. */
bool dlxi_snapshot_step_of(uint64_t *step, const char *name, const char *ending);

bool dlxi_part_name_is_allowed(const char *name);

typedef struct dlxi_manifest_file {
    char name[DLXI_SNAPSHOT_FILE_BYTES];
    uint64_t bytes;
    size_t first, count; /* of the parts */
} dlxi_manifest_file;

typedef struct dlxi_manifest {
    json_t *root; /* owns the names and meta */
    const json_t *meta;
    uint64_t step;
    int ranks;
    dlxi_manifest_file *file; /* [ranks] */
    dlxi_snapshot_part *part; /* [count], rank by rank; without offsets */
    size_t count;
} dlxi_manifest;

/* Close with dlxi_manifest_close. DLX_DATA if the text is not a manifest or exceeds a limit;
 * messages call it `path`. */
dlx_status dlxi_manifest_parse(dlxi_manifest **out, const char *text, size_t bytes,
                               const char *path, dlx_error *error);
void dlxi_manifest_close(dlxi_manifest **manifest); /* takes NULL */

/* Checks one of the files against the manifest, and sets its parts' offsets. DLX_DATA names what
 * differs; messages call the file `path`. */
dlx_status dlxi_manifest_compare(dlxi_manifest *manifest, int rank, const dlxi_safetensors *file,
                                 const char *path, dlx_error *error);
/* The same with the file at `path`; also DLX_SYSTEM. Blocks. */
dlx_status dlxi_manifest_check_file(dlxi_manifest *manifest, int rank, const char *path,
                                    dlx_error *error);

/* *out ← one rank's entry, JSON on one line; free with free(). */
dlx_status dlxi_manifest_describe(char **out, int rank, uint64_t file_bytes, const dlx_part *parts,
                                  const uint64_t *xxh3, size_t count, dlx_error *error);
/* *out ← the bytes of a manifest, sealed; free with free(). DLX_DATA: a description is not JSON.
 * What it says is not checked: parse the text. */
dlx_status dlxi_manifest_text(char **out, uint64_t step, const char *const *descriptions, int ranks,
                              json_t *meta, dlx_error *error);
/* Sets the manifest's checksum of itself: the 16 digits behind the first "xxh3". */
dlx_status dlxi_manifest_seal(char *text, size_t bytes, dlx_error *error);

#endif
