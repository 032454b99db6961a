/* SPDX-License-Identifier: Apache-2.0 */
/* What is in a snapshot, or in a directory of snapshots, in lines for a person. */
#include "train/tools.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "checkpoint/manifest.h"

typedef struct printer {
    dlx_log line;
    void *context;
} printer;

#define PRINT(to, ...)                                                                             \
    do {                                                                                           \
        char print_text_[1024];                                                                    \
        snprintf(print_text_, sizeof print_text_, __VA_ARGS__);                                    \
        (to)->line((to)->context, print_text_);                                                    \
    } while (0)

static const char *size_format(char text[32], uint64_t bytes) {
    static const char *const units[] = {"kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    int unit = -1;
    for (; value >= 1000 && unit < 3; unit++) value /= 1000;
    if (unit < 0)
        snprintf(text, 32, "%" PRIu64 " B", bytes);
    else
        snprintf(text, 32, "%.1f %s", value, units[unit]);
    return text;
}

static uint64_t bytes_sum(const dlxi_snapshot *snapshot) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < dlxi_snapshot_part_count(snapshot); i++)
        bytes += dlxi_snapshot_part_at(snapshot, i)->bytes;
    return bytes;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* Parts of one kind and shape whose names differ in their numbers only. */
typedef struct group {
    char pattern[DLXI_SNAPSHOT_NAME_MAX + 1];
    const dlxi_snapshot_part *part; /* the first one, as they are in the snapshot */
    size_t count;
} group;

/* dst ← the name with * for each number. */
static void pattern_make(char dst[DLXI_SNAPSHOT_NAME_MAX + 1], const char *name) {
    static const char digits[] = "0123456789";
    while (*name != '\0') {
        size_t number = strspn(name, digits);
        *dst++ = number > 0 ? '*' : *name;
        name += number > 0 ? number : 1;
    }
    *dst = '\0';
}

/* Equal patterns, kinds and shapes together, each in the order of the snapshot. */
static int by_pattern(const void *a, const void *b) {
    const group *x = a, *y = b;
    int order = strcmp(x->pattern, y->pattern);
    if (order != 0) return order;
    if (x->part->kind != y->part->kind) return x->part->kind < y->part->kind ? -1 : 1;
    if (x->part->rows != y->part->rows) return x->part->rows < y->part->rows ? -1 : 1;
    if (x->part->cols != y->part->cols) return x->part->cols < y->part->cols ? -1 : 1;
    return (x->part > y->part) - (x->part < y->part);
}

static int by_place(const void *a, const void *b) {
    const group *x = a, *y = b;
    return (x->part > y->part) - (x->part < y->part);
}

static bool is_same_group(const group *x, const group *y) {
    return strcmp(x->pattern, y->pattern) == 0 && x->part->kind == y->part->kind &&
           x->part->rows == y->part->rows && x->part->cols == y->part->cols;
}

/* *groups[*count], in the order of the snapshot; free with free(). */
static dlx_status parts_group(group **groups, size_t *count, const dlxi_snapshot *snapshot,
                              dlx_error *error) {
    size_t parts = dlxi_snapshot_part_count(snapshot);
    *count = 0;
    DLX_TRY(DLXI_NEW(groups, parts, error));
    group *g = *groups;
    for (size_t i = 0; i < parts; i++) {
        g[i].part = dlxi_snapshot_part_at(snapshot, i);
        g[i].count = 1;
        pattern_make(g[i].pattern, g[i].part->name);
    }
    if (parts > 1) qsort(g, parts, sizeof *g, by_pattern);
    for (size_t i = 0; i < parts; i++) {
        if (*count > 0 && is_same_group(&g[*count - 1], &g[i])) {
            g[*count - 1].count++;
        } else {
            g[(*count)++] = g[i];
        }
    }
    if (*count > 1) qsort(g, *count, sizeof *g, by_place);
    return DLX_OK;
}

static dlx_status parts_print(const printer *to, const dlxi_snapshot *snapshot, dlx_error *error) {
    group *groups;
    size_t count;
    char size[32], each[32];
    DLX_TRY(parts_group(&groups, &count, snapshot, error));
    for (size_t i = 0; i < count; i++) {
        const dlxi_snapshot_part *part = groups[i].part;
        snprintf(each, sizeof each, groups[i].count > 1 ? "%zu of " : "", groups[i].count);
        PRINT(to, "  %-40s %8s%-3s %" PRId64 " x %" PRId64 ", %s",
              groups[i].count > 1 ? groups[i].pattern : part->name, each,
              dlxi_part_kind_name(part->kind), part->rows, part->cols,
              size_format(size, part->bytes * groups[i].count));
    }
    free(groups);
    return DLX_OK;
}

/* ---- one snapshot ---------------------------------------------------------------------------- */

/* What runs write into meta, if it is in this one. */
static const struct {
    const char *key, *name;
} known[] = {{"run_id", "run"}, {"site", "site"}, {"round", "round"}, {"tokens", "tokens"}};
enum { KNOWN = sizeof known / sizeof *known };

/* text ← the value; false: it is no text or whole number. */
static bool meta_format(char text[DLXI_JSON_SHOWN_BYTES], const dlxi_snapshot *snapshot,
                        const char *key) {
    const json_t *value = json_object_get(dlxi_snapshot_meta(snapshot), key);
    if (json_is_string(value))
        dlxi_json_show_name(text, json_string_value(value));
    else if (json_is_integer(value))
        dlxi_json_show_value(text, value);
    else
        return false;
    return true;
}

static dlx_status one_print(const printer *to, const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_snapshot *snapshot = NULL;
    char text[DLXI_JSON_SHOWN_BYTES], size[32];
    DLX_TRY_OUT(dlxi_snapshot_open(&snapshot, path, error));
    size_t parts = dlxi_snapshot_part_count(snapshot);
    PRINT(to, "%-8s %" PRIu64, "step", dlxi_snapshot_step(snapshot));
    for (size_t i = 0; i < KNOWN; i++)
        if (meta_format(text, snapshot, known[i].key)) PRINT(to, "%-8s %s", known[i].name, text);
    PRINT(to, "%-8s %d", "ranks", dlxi_snapshot_ranks(snapshot));
    PRINT(to, "%-8s %zu, %s", "parts", parts, size_format(size, bytes_sum(snapshot)));
    DLX_TRY_OUT(parts_print(to, snapshot, error));
    DLX_TRY_OUT(dlxi_snapshot_verify(snapshot, error));
    PRINT(to, "%-8s whole: all checksums match", "state");
out:
    dlxi_snapshot_close_opened(&snapshot);
    return status;
}

/* ---- a directory of them --------------------------------------------------------------------- */

/* One line about a snapshot with this name. *damaged is set if it is. */
static dlx_status line_print(bool *damaged, const printer *to, const char *directory,
                             const char *name, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_snapshot *snapshot = NULL;
    char path[DLXI_PATH_BYTES], text[DLXI_JSON_SHOWN_BYTES], size[32], round[128] = "";
    DLX_TRY(dlxi_path_join(path, directory, name, error));
    status = dlxi_snapshot_open(&snapshot, path, error);
    if (status == DLX_OK) status = dlxi_snapshot_verify(snapshot, error);
    *damaged = status == DLX_DATA || status == DLX_SYSTEM;
    if (*damaged) {
        PRINT(to, "%s  damaged: %s", name, error->message);
        status = DLX_OK;
    } else if (status == DLX_OK) {
        if (meta_format(text, snapshot, "round")) snprintf(round, sizeof round, "round %s, ", text);
        PRINT(to, "%s  whole: %s%d %s, %s", name, round, dlxi_snapshot_ranks(snapshot),
              dlxi_snapshot_ranks(snapshot) == 1 ? "rank" : "ranks",
              size_format(size, bytes_sum(snapshot)));
    }
    dlxi_snapshot_close_opened(&snapshot);
    return status;
}

static bool is_step(const char *name) {
    uint64_t step;
    return dlxi_snapshot_step_of(&step, name, "");
}

static bool is_unfinished(const char *name) {
    uint64_t step;
    return dlxi_snapshot_step_of(&step, name, DLXI_SNAPSHOT_PART) ||
           dlxi_snapshot_step_of(&step, name, DLXI_SNAPSHOT_OLD);
}

static int is_listed(const struct dirent *entry) {
    return is_step(entry->d_name) || is_unfinished(entry->d_name);
}

static dlx_status list_print(const printer *to, const char *directory, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **name = NULL;
    int damaged = 0, whole = 0, count = scandir(directory, &name, is_listed, alphasort);
    if (count < 0) DLX_FAIL(error, SYSTEM, "%s: can't be listed: %s", directory, strerror(errno));
    if (count == 0)
        DLX_FAIL_OUT(error, CONFIG,
                     "%s: neither a snapshot, for it has no " DLXI_MANIFEST_NAME
                     ", nor a directory of snapshots, for it has no step-*",
                     directory);
    for (int i = count - 1; i >= 0; i--) { /* the newest first */
        bool is_damaged = false;
        if (is_unfinished(name[i]->d_name)) {
            PRINT(to, "%s  unfinished: removed when the run goes on", name[i]->d_name);
            continue;
        }
        DLX_TRY_OUT(line_print(&is_damaged, to, directory, name[i]->d_name, error));
        damaged += is_damaged, whole += !is_damaged;
    }
    if (damaged > 0)
        DLX_FAIL_OUT(error, DATA, "%s: %d of %d snapshots are damaged", directory, damaged,
                     damaged + whole);
out:
    for (int i = 0; i < count; i++) free(name[i]);
    free(name);
    return status;
}

/* ---- which it is ----------------------------------------------------------------------------- */

/* By its name, or by what is in it. */
static bool is_snapshot(const char *path) {
    char bare[DLXI_PATH_BYTES], manifest[DLXI_PATH_BYTES];
    dlxi_text_copy(bare, sizeof bare, path);
    for (size_t end = strlen(bare); end > 1 && bare[end - 1] == '/'; end--) bare[end - 1] = '\0';
    const char *slash = strrchr(bare, '/'), *name = slash != NULL ? slash + 1 : bare;
    if (is_step(name) || is_unfinished(name)) return true;
    return dlxi_path_join(manifest, path, DLXI_MANIFEST_NAME, NULL) == DLX_OK &&
           access(manifest, F_OK) == 0;
}

dlx_status dlxi_inspect(const char *path, dlx_log line, void *context, dlx_error *error) {
    const printer to = {line, context};
    struct stat facts;
    dlx_error own;
    if (error == NULL) error = &own;
    if (path[0] == '\0')
        DLX_FAIL(error, CONFIG,
                 "SNAPSHOT: the path is empty; give a snapshot, step-*, or the "
                 "directory of a site's snapshots");
    if (stat(path, &facts) != 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            DLX_FAIL(error, SYSTEM, "%s: can't be read: %s", path, strerror(errno));
        DLX_FAIL(error, CONFIG,
                 "%s: no such directory; give a snapshot, step-*, or the directory of a site's "
                 "snapshots",
                 path);
    }
    if (!S_ISDIR(facts.st_mode))
        DLX_FAIL(error, CONFIG,
                 "%s: not a directory; give a snapshot, step-*, or the directory of "
                 "a site's snapshots",
                 path);
    return is_snapshot(path) ? one_print(&to, path, error) : list_print(&to, path, error);
}
