/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots for tests: parts of every kind whose bytes follow from a number, and a directory. */
#ifndef DLXI_TESTS_SNAPSHOT_SAMPLE_H
#define DLXI_TESTS_SNAPSHOT_SAMPLE_H

#include "checkpoint/manifest.h"
#include "base/rng.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { SAMPLE_PARTS = 6, SAMPLE_BYTES_MAX = 1 << 22 };

/* Odd sizes, so that what follows would be unaligned in the order of writing; `wide` columns of
 * the second part. */
static inline void sample_parts(dlx_part part[SAMPLE_PARTS], int64_t wide) {
    static const dlx_part all[SAMPLE_PARTS] = {
        {"bytes/one", DLX_PART_U8, 1, 13, NULL}, {"layers.0/q", DLX_PART_F32, 3, 5, NULL},
        {"rows/θ", DLX_PART_I32, 7, 1, NULL},    {"counters", DLX_PART_I64, 2, 3, NULL},
        {"nothing", DLX_PART_F32, 0, 4, NULL},   {"a \"name\" \\", DLX_PART_U8, 3, 3, NULL},
    };
    memcpy(part, all, sizeof all);
    part[1].cols = wide;
}

static inline size_t part_bytes(const dlx_part *part) {
    return (size_t)(part->rows * part->cols) * dlxi_part_kind_bytes(part->kind);
}

/* dst ← the bytes of part `index` of a rank in snapshot `seed`. */
static inline void sample_fill(uint8_t *dst, size_t bytes, uint64_t seed, int rank, size_t index) {
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = dlxi_rng_u64(seed, (uint64_t)rank * SAMPLE_PARTS + index, i);
        memcpy(dst + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

/* The same, with memory of its own: free with sample_free. */
static inline void sample_make(dlx_part part[SAMPLE_PARTS], int64_t wide, uint64_t seed, int rank) {
    sample_parts(part, wide);
    for (size_t i = 0; i < SAMPLE_PARTS; i++) {
        uint8_t *data = malloc(part_bytes(&part[i]) + 1);
        assert_non_null(data);
        sample_fill(data, part_bytes(&part[i]), seed, rank, i);
        part[i].data = data;
    }
}

static inline void sample_free(dlx_part part[SAMPLE_PARTS]) {
    for (size_t i = 0; i < SAMPLE_PARTS; i++) free((void *)(uintptr_t)part[i].data);
}

/* Writes and commits the snapshot of a step by all ranks, one after the other, so that a run
 * repeats; the first failure is returned. */
static inline dlx_status sample_write(const char *directory, uint64_t step, int ranks, int64_t wide,
                                      uint64_t seed, int keep, dlx_error *error) {
    enum { RANKS_MAX = 4 };
    dlxi_snapshot_writer *writer[RANKS_MAX] = {NULL};
    dlx_part part[RANKS_MAX][SAMPLE_PARTS];
    char *description[RANKS_MAX] = {NULL};
    dlx_status status = DLX_OK;
    assert_true(ranks <= RANKS_MAX);
    for (int r = 0; r < ranks; r++) sample_make(part[r], wide, seed, r);
    for (int r = 0; r < ranks && status == DLX_OK; r++) {
        status = dlxi_snapshot_begin(&writer[r], directory, step, r, ranks, part[r], SAMPLE_PARTS,
                                     error);
        if (status == DLX_OK) status = dlxi_snapshot_result(writer[r], &description[r], error);
    }
    if (status == DLX_OK) {
        json_t *meta = json_pack("{s:I, s:s}", "seed", (json_int_t)seed, "run_id", "0123");
        status = dlxi_snapshot_commit(directory, step, (const char *const *)description, ranks,
                                      meta, keep, error);
        json_decref(meta);
    }
    for (int r = 0; r < ranks; r++) {
        dlxi_snapshot_close(&writer[r]);
        free(description[r]);
        sample_free(part[r]);
    }
    return status;
}

/* All parts, their order, and meta are those of the sample, to the bit. */
static inline bool sample_is(dlxi_snapshot *snapshot, int ranks, int64_t wide, uint64_t seed) {
    static uint8_t expected[SAMPLE_BYTES_MAX], got[SAMPLE_BYTES_MAX];
    dlx_part part[SAMPLE_PARTS];
    bool equal = dlxi_snapshot_ranks(snapshot) == ranks &&
                 dlxi_snapshot_part_count(snapshot) == (size_t)ranks * SAMPLE_PARTS &&
                 json_integer_value(json_object_get(dlxi_snapshot_meta(snapshot), "seed")) ==
                     (json_int_t)seed;
    sample_parts(part, wide);
    for (int r = 0; r < ranks && equal; r++)
        for (size_t i = 0; i < SAMPLE_PARTS && equal; i++) {
            const dlxi_snapshot_part *in =
                dlxi_snapshot_part_at(snapshot, (size_t)r * SAMPLE_PARTS + i);
            size_t bytes = part_bytes(&part[i]);
            assert_true(bytes <= SAMPLE_BYTES_MAX);
            equal = strcmp(in->name, part[i].name) == 0 && in->kind == part[i].kind &&
                    in->rows == part[i].rows && in->cols == part[i].cols && in->rank == r &&
                    in->bytes == bytes && dlxi_snapshot_find(snapshot, in->name, r) == in &&
                    dlxi_snapshot_read(snapshot, got, in, NULL) == DLX_OK;
            sample_fill(expected, bytes, seed, r, i);
            equal = equal && memcmp(got, expected, bytes) == 0;
        }
    return equal;
}

/* Names in a directory but . and .. */
static inline int names_count(const char *directory) {
    int count = 0;
    DIR *stream = opendir(directory);
    if (stream == NULL) return -1;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(stream);
    return count;
}

/* Removes a directory of directories of files. */
static inline void tree_clear(const char *path, int depth) {
    DIR *stream = opendir(path);
    if (stream == NULL) return;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        char name[DLXI_PATH_BYTES];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        assert_int_equal(dlxi_path_join(name, path, entry->d_name, NULL), DLX_OK);
        if (unlink(name) != 0 && depth > 0) tree_clear(name, depth - 1);
    }
    closedir(stream);
    rmdir(path);
}

#endif
