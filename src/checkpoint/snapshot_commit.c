/* SPDX-License-Identifier: Apache-2.0 */
/* Names in the directory of snapshots: committed, replaced and removed, one rank at a time.
 *
 * A directory has the name step-… only while it is complete and on the disk. So a snapshot that is
 * removed loses that name first, and a replaced one in the same call that names the new one, if the
 * file system can exchange two names; if not, it is .old between two calls, and tidy puts it
 * back. */
#include "checkpoint/manifest.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/panic.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- directories ----------------------------------------------------------------------------- */

static bool is_dots(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static void names_free(struct dirent **name, int count) {
    for (int i = 0; i < count; i++) free(name[i]);
    free(name);
}

/* name[*count] ← all names; readdir is undefined while a directory changes. */
static dlx_status names_list(struct dirent ***name, int *count, const char *directory,
                             dlx_error *error) {
    *count = scandir(directory, name, NULL, NULL);
    if (*count >= 0) return DLX_OK;
    *name = NULL;
    DLX_FAIL(error, SYSTEM, "%s: can't be listed: %s", directory, strerror(errno));
}

static dlx_status remove_fail(const char *path, dlx_error *error) {
    DLX_FAIL(error, SYSTEM, "%s: can't be removed: %s", path, strerror(errno));
}

/* Removes a directory and its files, or what else has this name; nothing is DLX_OK. */
static dlx_status tree_remove(const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **name = NULL;
    char file[DLXI_PATH_BYTES];
    struct stat facts;
    int count = 0;
    if (lstat(path, &facts) != 0) return errno == ENOENT ? DLX_OK : remove_fail(path, error);
    if (!S_ISDIR(facts.st_mode))
        return unlink(path) == 0 || errno == ENOENT ? DLX_OK : remove_fail(path, error);
    DLX_TRY(names_list(&name, &count, path, error));
    for (int i = 0; i < count; i++) {
        if (is_dots(name[i]->d_name)) continue;
        DLX_TRY_OUT(dlxi_path_join(file, path, name[i]->d_name, error));
        if (unlink(file) != 0 && errno != ENOENT) {
            status = remove_fail(file, error);
            goto out;
        }
    }
    if (rmdir(path) != 0 && errno != ENOENT) status = remove_fail(path, error);
out:
    names_free(name, count);
    return status;
}

static int newest_first(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

dlx_status dlxi_snapshot_list(uint64_t **steps, size_t *count, const char *directory,
                              dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **name = NULL;
    int names = 0;
    *steps = NULL;
    *count = 0;
    DLX_TRY(names_list(&name, &names, directory, error));
    DLX_TRY_OUT(DLXI_NEW(steps, names, error));
    for (int i = 0; i < names; i++)
        *count += dlxi_snapshot_step_of(*steps + *count, name[i]->d_name, "");
    if (*count > 1) qsort(*steps, *count, sizeof **steps, newest_first);
out:
    names_free(name, names);
    return status;
}

/* ---- commit ---------------------------------------------------------------------------------- */

typedef struct commit_paths {
    char part[DLXI_PATH_BYTES], whole[DLXI_PATH_BYTES], old[DLXI_PATH_BYTES];
} commit_paths;

static dlx_status paths_make(commit_paths *paths, const char *directory, uint64_t step,
                             dlx_error *error) {
    DLX_TRY(dlxi_snapshot_step_path(paths->part, directory, step, DLXI_SNAPSHOT_PART, error));
    DLX_TRY(dlxi_snapshot_step_path(paths->whole, directory, step, "", error));
    return dlxi_snapshot_step_path(paths->old, directory, step, DLXI_SNAPSHOT_OLD, error);
}

static bool is_expected(const char *name, int ranks) {
    char own[DLXI_SNAPSHOT_FILE_BYTES];
    long rank = strncmp(name, "rank-", 5) == 0 ? strtol(name + 5, NULL, 10) : -1;
    if (rank < 0 || rank >= ranks) return is_dots(name);
    dlxi_snapshot_file_name(own, (int)rank);
    return strcmp(name, own) == 0;
}

/* Removes what is not of this snapshot: a run with more ranks may have ended here before. */
static dlx_status strangers_remove(const char *part, int ranks, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **name = NULL;
    char path[DLXI_PATH_BYTES];
    int count = 0;
    DLX_TRY(names_list(&name, &count, part, error));
    for (int i = 0; i < count; i++) {
        if (is_expected(name[i]->d_name, ranks)) continue;
        DLX_TRY_OUT(dlxi_path_join(path, part, name[i]->d_name, error));
        DLX_TRY_OUT(tree_remove(path, error));
    }
out:
    names_free(name, count);
    return status;
}

/* Writes the manifest, and reads it and the files' headers. */
static dlx_status manifest_write(const char *part, uint64_t step, const char *const *descriptions,
                                 int ranks, json_t *meta, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_snapshot *written = NULL;
    dlxi_file_writer *writer = NULL;
    char path[DLXI_PATH_BYTES], *text = NULL;
    DLX_TRY_OUT(dlxi_manifest_text(&text, step, descriptions, ranks, meta, error));
    DLX_TRY_OUT(dlxi_path_join(path, part, DLXI_MANIFEST_NAME, error));
    DLX_TRY_OUT(dlxi_file_writer_open(&writer, path, error));
    DLX_TRY_OUT(dlxi_file_writer_append(writer, text, strlen(text), error));
    DLX_TRY_OUT(dlxi_file_writer_commit(writer, error));
    DLX_TRY_OUT(dlxi_snapshot_open(&written, part, error));
    DLX_TRY_OUT(dlxi_directory_sync(part, error));
out:
    if (status == DLX_DATA)
        dlxi_error_prefix(error, "the snapshot is incomplete; do all ranks of the site share its "
                                 "directory? ");
    dlxi_snapshot_close_opened(&written);
    dlxi_file_writer_close(&writer);
    free(text);
    return status;
}

static dlx_status rename_fail(const char *path, dlx_error *error) {
    DLX_FAIL(error, SYSTEM, "%s: can't be replaced: %s", path, strerror(errno));
}

/* Where names can't be exchanged. */
static dlx_status place_by_moving(const commit_paths *paths, dlx_error *error) {
    DLX_TRY(tree_remove(paths->old, error));
    if (rename(paths->whole, paths->old) != 0) return rename_fail(paths->whole, error);
    if (rename(paths->part, paths->whole) == 0) return DLX_OK;
    dlx_status status = rename_fail(paths->whole, error);
    (void)rename(paths->old, paths->whole);
    return status;
}

/* Gives the new directory its name. What had it before is .part or .old then. */
static dlx_status place(const commit_paths *paths, dlx_error *error) {
    if (rename(paths->part, paths->whole) == 0) return DLX_OK;
    if (errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR)
        return rename_fail(paths->whole, error);
    if (renameat2(AT_FDCWD, paths->part, AT_FDCWD, paths->whole, RENAME_EXCHANGE) == 0)
        return DLX_OK;
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
        return rename_fail(paths->whole, error);
    return place_by_moving(paths, error);
}

/* And of the parent, where begin may have made the directory. */
static dlx_status both_sync(const char *directory, dlx_error *error) {
    char parent[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_path_join(parent, directory, "..", error));
    DLX_TRY(dlxi_directory_sync(directory, error));
    return dlxi_directory_sync(parent, error);
}

static dlx_status snapshot_remove(const char *directory, uint64_t step, dlx_error *error) {
    commit_paths paths;
    DLX_TRY(paths_make(&paths, directory, step, error));
    DLX_TRY(tree_remove(paths.part, error)); /* left by an earlier process */
    if (rename(paths.whole, paths.part) != 0) return remove_fail(paths.whole, error);
    return tree_remove(paths.part, error);
}

static dlx_status older_remove(const char *directory, uint64_t step, int keep, dlx_error *error) {
    dlx_status status = DLX_OK;
    uint64_t *steps = NULL;
    size_t count, kept = 1;
    DLX_TRY_OUT(dlxi_snapshot_list(&steps, &count, directory, error));
    for (size_t i = 0; i < count; i++)
        if (steps[i] < step && kept++ >= (size_t)keep)
            DLX_TRY_OUT(snapshot_remove(directory, steps[i], error));
out:
    free(steps);
    return status;
}

static dlx_status after_place(const char *directory, uint64_t step, const commit_paths *paths,
                              int keep, dlx_error *error) {
    DLX_TRY(both_sync(directory, error));
    DLX_TRY(tree_remove(paths->part, error));
    DLX_TRY(tree_remove(paths->old, error));
    return older_remove(directory, step, keep, error);
}

dlx_status dlxi_snapshot_commit(const char *directory, uint64_t step,
                                const char *const *descriptions, int ranks, json_t *meta, int keep,
                                dlx_error *error) {
    commit_paths paths;
    DLXI_ASSERT(ranks >= 1 && ranks <= DLXI_RANKS_MAX && keep >= 1);
    DLX_TRY(paths_make(&paths, directory, step, error));
    dlx_status status = strangers_remove(paths.part, ranks, error);
    if (status == DLX_OK)
        status = manifest_write(paths.part, step, descriptions, ranks, meta, error);
    if (status == DLX_OK) status = place(&paths, error);
    if (status != DLX_OK) {
        (void)tree_remove(paths.part, NULL);
        return status;
    }
    status = after_place(directory, step, &paths, keep, error);
    if (status != DLX_OK)
        dlxi_error_prefix(error, "the snapshot of step %llu is complete, but ",
                          (unsigned long long)step);
    return status;
}

dlx_status dlxi_snapshot_discard(const char *directory, uint64_t step, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_snapshot_step_path(path, directory, step, DLXI_SNAPSHOT_PART, error));
    return tree_remove(path, error);
}

/* ---- tidy ------------------------------------------------------------------------------------ */

/* A replaced snapshot: its successor has the name, or it gets it back. */
static dlx_status old_tidy(const char *directory, uint64_t step, dlx_error *error) {
    commit_paths paths;
    struct stat facts;
    DLX_TRY(paths_make(&paths, directory, step, error));
    if (lstat(paths.whole, &facts) == 0) return tree_remove(paths.old, error);
    if (rename(paths.old, paths.whole) != 0) return rename_fail(paths.whole, error);
    return dlxi_directory_sync(directory, error);
}

dlx_status dlxi_snapshot_tidy(const char *directory, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **name = NULL;
    struct stat facts;
    int count = 0;
    uint64_t step;
    if (stat(directory, &facts) != 0 && errno == ENOENT) return DLX_OK;
    DLX_TRY(names_list(&name, &count, directory, error));
    for (int i = 0; i < count; i++) {
        if (dlxi_snapshot_step_of(&step, name[i]->d_name, DLXI_SNAPSHOT_PART))
            DLX_TRY_OUT(dlxi_snapshot_discard(directory, step, error));
        if (dlxi_snapshot_step_of(&step, name[i]->d_name, DLXI_SNAPSHOT_OLD))
            DLX_TRY_OUT(old_tidy(directory, step, error));
    }
out:
    names_free(name, count);
    return status;
}
