/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots: written and read to the bit, committed, replaced, removed, and refused when they are
 * damaged. test_snapshot_faults.c stops and fails every system call. */
#include "snapshot_sample.h"
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

enum { WIDE = 200001, RANKS = 3 }; /* the second part takes three pieces, the last one short */

static char root[64], directory[80];

static int set_up(void **unused) {
    (void)unused;
    strcpy(root, "/tmp/dilocox_snapshot_XXXXXX");
    if (mkdtemp(root) == NULL) return -1;
    snprintf(directory, sizeof directory, "%s/snapshots", root); /* begin makes it */
    return 0;
}

static int tear_down(void **unused) {
    (void)unused;
    tree_clear(root, 3);
    return access(root, F_OK) == 0 ? -1 : 0;
}

static void must(dlx_status status, const dlx_error *error) {
    if (status != DLX_OK) fail_msg("%s", error->message);
}

static void expect_words(const dlx_error *error, const char *words) {
    if (strstr(error->message, words) == NULL) fail_msg("'%s' lacks '%s'", error->message, words);
}

static void write_one(uint64_t step, int ranks, int64_t wide, uint64_t seed, int keep) {
    dlx_error error;
    must(sample_write(directory, step, ranks, wide, seed, keep, &error), &error);
}

static const char *path_of(uint64_t step, const char *ending, const char *file) {
    static char path[4][256];
    static int which;
    char *to = path[which++ % 4];
    snprintf(to, sizeof *path, "%s/step-%012llu%s%s%s", directory, (unsigned long long)step, ending,
             file[0] != '\0' ? "/" : "", file);
    return to;
}

static bool exists(uint64_t step, const char *ending) {
    return access(path_of(step, ending, ""), F_OK) == 0;
}

typedef struct said {
    int count;
    char last[700];
} said;

static void on_line(void *context, const char *line) {
    said *lines = context;
    lines->count++;
    snprintf(lines->last, sizeof lines->last, "%s", line);
}

/* Opens the newest one, which must be of this step, after `lines` lines. */
static void expect_newest(uint64_t step, int ranks, int64_t wide, uint64_t seed, int lines,
                          const char *words) {
    dlxi_snapshot *snapshot;
    dlx_error error;
    said heard = {0};
    must(dlxi_snapshot_open_newest(&snapshot, directory, on_line, &heard, &error), &error);
    assert_int_equal(dlxi_snapshot_step(snapshot), step);
    assert_true(sample_is(snapshot, ranks, wide, seed));
    assert_int_equal(heard.count, lines);
    if (words != NULL && strstr(heard.last, words) == NULL)
        fail_msg("'%s' lacks '%s'", heard.last, words);
    dlxi_snapshot_close_opened(&snapshot);
}

/* ---- whole ----------------------------------------------------------------------------------- */

static void test_round_trip(void **unused) {
    (void)unused;
    dlxi_snapshot *snapshot;
    dlx_error error;
    char path[256];
    write_one(12345, RANKS, WIDE, 7, 1);
    assert_int_equal(names_count(directory), 1);
    assert_int_equal(names_count(path_of(12345, "", "")), RANKS + 1);
    snprintf(path, sizeof path, "%s//", path_of(12345, "", ""));
    must(dlxi_snapshot_open(&snapshot, path, &error), &error);
    assert_string_equal(dlxi_snapshot_path(snapshot), path_of(12345, "", ""));
    assert_int_equal(dlxi_snapshot_step(snapshot), 12345);
    assert_true(sample_is(snapshot, RANKS, WIDE, 7));
    assert_false(sample_is(snapshot, RANKS, WIDE, 8));
    must(dlxi_snapshot_verify(snapshot, &error), &error);
    assert_ptr_equal(dlxi_snapshot_find(snapshot, "counters", -1),
                     dlxi_snapshot_find(snapshot, "counters", 0));
    assert_null(dlxi_snapshot_find(snapshot, "counters", RANKS));
    assert_null(dlxi_snapshot_find(snapshot, "countess", -1));
    assert_null(dlxi_snapshot_find(snapshot, "zzz", -1));
    assert_string_equal(json_string_value(json_object_get(dlxi_snapshot_meta(snapshot), "run_id")),
                        "0123");
    for (size_t i = 0; i < dlxi_snapshot_part_count(snapshot); i++) {
        const dlxi_snapshot_part *part = dlxi_snapshot_part_at(snapshot, i);
        assert_int_equal(part->offset % dlxi_part_kind_bytes(part->kind), 0);
    }
    dlxi_snapshot_close_opened(&snapshot);
    dlxi_snapshot_close_opened(&snapshot);
    expect_newest(12345, RANKS, WIDE, 7, 0, NULL);
}

/* No parts, and a part of a rank that no other has; both ranks write at the same time. */
static void test_unequal_ranks(void **unused) {
    (void)unused;
    static int64_t value[] = {-1, INT64_MIN, INT64_MAX};
    const dlx_part part = {"only here", DLX_PART_I64, 1, 3, value};
    dlxi_snapshot_writer *writer[2];
    dlxi_snapshot *snapshot;
    char *description[2];
    int64_t got[3];
    dlx_error error;
    for (int r = 0; r < 2; r++) {
        must(dlxi_snapshot_begin(&writer[r], directory, 0, r, 2, &part, (size_t)r, &error), &error);
    }
    for (int r = 0; r < 2; r++) {
        must(dlxi_snapshot_result(writer[r], &description[r], &error), &error);
        assert_null(strchr(description[r], '\n'));
    }
    must(dlxi_snapshot_commit(directory, 0, (const char *const *)description, 2, NULL, 1, &error),
         &error);
    must(dlxi_snapshot_open_newest(&snapshot, directory, NULL, NULL, &error), &error);
    assert_int_equal(json_object_size(dlxi_snapshot_meta(snapshot)), 0);
    const dlxi_snapshot_part *found = dlxi_snapshot_find(snapshot, "only here", -1);
    assert_non_null(found);
    assert_int_equal(found->rank, 1);
    must(dlxi_snapshot_read(snapshot, got, found, &error), &error);
    assert_memory_equal(got, value, sizeof value);
    dlxi_snapshot_close_opened(&snapshot);
    for (int r = 0; r < 2; r++) {
        dlxi_snapshot_close(&writer[r]);
        free(description[r]);
    }
}

/* Memory that changes once wait has returned is in the file as it was. */
static void test_wait(void **unused) {
    (void)unused;
    enum { PARTS = 16 };
    const size_t bytes = (size_t)4 << 20;
    dlx_part part[PARTS];
    uint8_t *memory = malloc(PARTS * bytes), *got = malloc(bytes);
    dlxi_snapshot_writer *writer;
    dlxi_snapshot *snapshot;
    char name[PARTS][16], *description;
    dlx_error error;
    assert_true(memory != NULL && got != NULL);
    for (int i = 0; i < PARTS; i++) {
        snprintf(name[i], sizeof name[i], "part %d", i);
        part[i] = (dlx_part){name[i], DLX_PART_U8, 1, (int64_t)bytes, memory + (size_t)i * bytes};
        memset(memory + (size_t)i * bytes, i + 1, bytes);
    }
    must(dlxi_snapshot_begin(&writer, directory, 5, 0, 1, part, PARTS, &error), &error);
    memset(name, 'x', sizeof name); /* copied */
    memset(part, 0, sizeof part);
    dlxi_snapshot_wait(writer, 0);
    for (int i = 0; i < PARTS; i++) {
        dlxi_snapshot_wait(writer, (size_t)i + 1);
        memset(memory + (size_t)i * bytes, 0xEE, bytes);
    }
    dlxi_snapshot_wait(writer, SIZE_MAX);
    must(dlxi_snapshot_result(writer, &description, &error), &error);
    assert_true(dlxi_snapshot_is_written(writer));
    must(dlxi_snapshot_commit(directory, 5, (const char *const *)&description, 1, NULL, 1, &error),
         &error);
    dlxi_snapshot_close(&writer);
    must(dlxi_snapshot_open_newest(&snapshot, directory, NULL, NULL, &error), &error);
    for (size_t i = 0; i < PARTS; i++) {
        must(dlxi_snapshot_read(snapshot, got, dlxi_snapshot_part_at(snapshot, i), &error), &error);
        assert_true(got[0] == i + 1 && memcmp(got, got + 1, bytes - 1) == 0);
    }
    dlxi_snapshot_close_opened(&snapshot);
    free(description);
    free(memory);
    free(got);
}

static void test_keep(void **unused) {
    (void)unused;
    for (uint64_t step = 10; step <= 50; step += 10) write_one(step, 2, 5, step, 3);
    assert_int_equal(names_count(directory), 3);
    assert_true(exists(30, "") && exists(40, "") && exists(50, ""));
    /* a run that goes on from an earlier one: later ones are no one's to remove */
    write_one(45, 2, 5, 45, 2);
    assert_int_equal(names_count(directory), 3);
    assert_true(exists(40, "") && exists(45, "") && exists(50, ""));
    write_one(60, 1, 5, 60, 1);
    assert_int_equal(names_count(directory), 1);
    expect_newest(60, 1, 5, 60, 0, NULL);
}

static void test_replace(void **unused) {
    (void)unused;
    write_one(8, RANKS, 5, 1, 2);
    write_one(8, 1, 6, 2, 2);
    assert_int_equal(names_count(directory), 1);
    assert_int_equal(names_count(path_of(8, "", "")), 2);
    expect_newest(8, 1, 6, 2, 0, NULL);
    /* what has the name is no directory */
    tree_clear(path_of(8, "", ""), 0);
    must(dlxi_file_write_text(path_of(8, "", ""), "x", NULL), NULL);
    write_one(8, 2, 5, 3, 2);
    assert_int_equal(names_count(directory), 1);
    expect_newest(8, 2, 5, 3, 0, NULL);
}

/* ---- nothing, or none that is whole ---------------------------------------------------------- */

static void expect_none(dlx_status status, int system_errno, const char *words) {
    dlxi_snapshot *snapshot;
    dlx_error error;
    assert_int_equal(dlxi_snapshot_open_newest(&snapshot, directory, NULL, NULL, &error), status);
    assert_null(snapshot);
    assert_int_equal(error.system_errno, system_errno);
    expect_words(&error, words);
}

static void test_none(void **unused) {
    (void)unused;
    dlx_error error;
    expect_none(DLX_SYSTEM, ENOENT, "/snapshots: can't be listed: No such file");
    must(dlxi_snapshot_tidy(directory, &error), &error);
    assert_int_equal(mkdir(directory, 0777), 0);
    expect_none(DLX_SYSTEM, ENOENT, "/snapshots: has no snapshot");
    assert_int_equal(mkdir(path_of(1, ".part", ""), 0777), 0);
    expect_none(DLX_SYSTEM, ENOENT, "/snapshots: has no snapshot");
    write_one(2, 1, 5, 1, 1);
    assert_int_equal(unlink(path_of(2, "", "manifest.json")), 0);
    expect_none(DLX_DATA, 0, "/snapshots: each of its 1 snapshots is damaged");
}

/* ---- damage ---------------------------------------------------------------------------------- */

static char *file_take(const char *path, size_t *bytes) {
    char *content;
    assert_int_equal(dlxi_file_read(&content, bytes, path, SAMPLE_BYTES_MAX, NULL), DLX_OK);
    return content;
}

static void file_put(const char *path, const char *content, size_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    assert_true(fd >= 0 && write(fd, content, bytes) == (ssize_t)bytes);
    close(fd);
}

static void test_missing_and_torn(void **unused) {
    (void)unused;
    static const struct {
        const char *file;
        long bytes; /* new size; < 0: so many less */
        const char *words;
    } cases[] = {
        {"rank-0001.safetensors", -1, "rank-0001.safetensors: "},
        {"rank-0001.safetensors", 0, "rank-0001.safetensors: 0 bytes are too few"},
        {"rank-0001.safetensors", 9, "rank-0001.safetensors: a header of "},
        {"rank-0000.safetensors", 1 << 20, "rank-0000.safetensors: "},
        {"manifest.json", -1, "manifest.json: is damaged: its checksum does not match"},
        {"manifest.json", -2, "manifest.json:"},
        {"manifest.json", 0, "manifest.json:"},
        {"manifest.json", 4096, "manifest.json:"},
    };
    write_one(1, 2, 5, 1, 2);
    write_one(2, 2, 5, 2, 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t bytes;
        const char *path = path_of(2, "", cases[i].file);
        char *content = file_take(path, &bytes);
        assert_int_equal(truncate(path, cases[i].bytes < 0 ? (off_t)bytes + cases[i].bytes
                                                           : (off_t)cases[i].bytes),
                         0);
        expect_newest(1, 2, 5, 1, 1, cases[i].words);
        assert_int_equal(unlink(path), 0);
        expect_newest(1, 2, 5, 1, 1, "the snapshot of step 2 is not used: ");
        file_put(path, content, bytes);
        expect_newest(2, 2, 5, 2, 0, NULL);
        free(content);
    }
    assert_int_equal(rename(path_of(2, "", ""), path_of(3, "", "")), 0);
    expect_newest(1, 2, 5, 1, 1, "step-000000000003: has the snapshot of step 2; was it renamed?");
    assert_int_equal(
        rename(path_of(3, "", "rank-0000.safetensors"), path_of(3, "", "rank-0001.safetensors")),
        0);
    expect_newest(1, 2, 5, 1, 1, NULL);
}

/* One bit of any byte: the snapshot is refused, or nothing in it has changed (a header's word that
 * nobody reads). */
static void test_flipped_bits(void **unused) {
    (void)unused;
    static const char *const files[] = {"manifest.json", "rank-0000.safetensors",
                                        "rank-0001.safetensors"};
    const char *whole;
    write_one(1, 2, 5, 1, 2);
    write_one(2, 2, 5, 2, 2);
    whole = path_of(2, "", "");
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        size_t bytes, harmless = 0;
        char path[256];
        snprintf(path, sizeof path, "%s/%s", whole, files[f]);
        char *content = file_take(path, &bytes);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        for (size_t at = 0; at < bytes; at++) {
            dlxi_snapshot *snapshot = NULL;
            dlx_error error;
            char changed = (char)(content[at] ^ (1 << (at * 5 % 8)));
            assert_int_equal(pwrite(fd, &changed, 1, (off_t)at), 1);
            dlx_status status = dlxi_snapshot_open(&snapshot, whole, &error);
            if (status == DLX_OK) status = dlxi_snapshot_verify(snapshot, &error);
            assert_true(status == DLX_DATA ||
                        (status == DLX_OK && f > 0 && sample_is(snapshot, 2, 5, 2)));
            harmless += status == DLX_OK;
            if (status == DLX_DATA) expect_words(&error, files[f]);
            dlxi_snapshot_close_opened(&snapshot);
            if (at % 64 == 0 && status == DLX_DATA) expect_newest(1, 2, 5, 1, 1, files[f]);
            assert_int_equal(pwrite(fd, &content[at], 1, (off_t)at), 1);
        }
        assert_true(harmless < 16); /* "format":"pt" */
        close(fd);
        free(content);
    }
    expect_newest(2, 2, 5, 2, 0, NULL);
}

static void test_read_names_the_part(void **unused) {
    (void)unused;
    uint8_t got[64];
    dlxi_snapshot *snapshot;
    dlx_error error;
    write_one(1, 2, 5, 1, 1);
    must(dlxi_snapshot_open(&snapshot, path_of(1, "", ""), &error), &error);
    const dlxi_snapshot_part *part = dlxi_snapshot_find(snapshot, "rows/θ", 1);
    int fd = open(path_of(1, "", "rank-0001.safetensors"), O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "\x55", 1, (off_t)part->offset + 9), 1);
    close(fd);
    assert_int_equal(dlxi_snapshot_read(snapshot, got, part, &error), DLX_DATA);
    expect_words(&error, "/step-000000000001/rank-0001.safetensors: part 'rows/θ' is damaged: its "
                         "checksum does not match; ");
    assert_int_equal(dlxi_snapshot_verify(snapshot, &error), DLX_DATA);
    expect_words(&error, "part 'rows/θ'");
    assert_int_equal(
        dlxi_snapshot_read(snapshot, got, dlxi_snapshot_find(snapshot, "rows/θ", 0), &error),
        DLX_OK);
    assert_int_equal(truncate(path_of(1, "", "rank-0000.safetensors"), 600), 0);
    assert_int_equal(dlxi_snapshot_verify(snapshot, &error), DLX_DATA);
    expect_words(&error, "rank-0000.safetensors: ends after 600 bytes; the file is cut short");
    dlxi_snapshot_close_opened(&snapshot);
}

/* ---- a manifest that was written by another program ------------------------------------------ */

static void expect_refused(const char *before, const char *after, const char *words) {
    static const char good[] =
        "{\"format\": \"dilocox snapshot\", \"version\": 1, \"xxh3\": \"0000000000000000\", "
        "\"step\": 9, \"ranks\": 1, \"meta\": {}, \"files\": [{\"name\": "
        "\"rank-0000.safetensors\", \"bytes\": 100, \"parts\": {\"a\": {\"dtype\": \"F32\", "
        "\"shape\": [2, 3], \"xxh3\": \"0123456789abcdef\"}}}]}";
    char text[1024];
    dlxi_manifest *manifest;
    dlx_error error;
    const char *at = strstr(good, before);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, after, at + strlen(before));
    assert_int_equal(dlxi_manifest_seal(text, strlen(text), &error), DLX_OK);
    dlx_status status = dlxi_manifest_parse(&manifest, text, strlen(text), "x", &error);
    if (words == NULL) {
        must(status, &error);
        assert_int_equal(manifest->part[0].bytes, 24);
        dlxi_manifest_close(&manifest);
        return;
    }
    assert_int_equal(status, DLX_DATA);
    assert_null(manifest);
    expect_words(&error, words);
}

static void test_malformed_manifests(void **unused) {
    (void)unused;
    expect_refused("{", "{\"later\": 1, ", NULL);
    expect_refused("dilocox snap", "dilocox shop", "x: is not the manifest of a snapshot");
    expect_refused("1", "2", "x: version 2 of the format; this program reads 1");
    expect_refused("9", "-9", "x: its step is not a whole number from 0 to 999999999999");
    expect_refused("9", "1000000000000", "x: its step is not a whole number");
    expect_refused("9", "9.5", "x: its step is not a whole number");
    expect_refused("\"ranks\": 1", "\"ranks\": 0", "x: its ranks are not a whole number from 1");
    expect_refused("\"ranks\": 1", "\"ranks\": 1025", "x: its ranks are not a whole number");
    expect_refused("\"ranks\": 1", "\"ranks\": 2", "x: lists 1 files for 2 ranks");
    expect_refused("{}", "[]", "x: its meta is not an object");
    expect_refused("rank-0000", "../0000", "x: file 0 is '../0000.safetensors'; it should be 'r");
    expect_refused("100", "-100", "x: rank-0000.safetensors: its bytes are not a whole number");
    expect_refused("\"parts\"", "\"part\"", "x: file 0 has no parts");
    expect_refused("\"a\"", "\"\"", "part '': its name is too long or has control characters");
    expect_refused("\"a\"", "\"\\u001b\"", "part '?': its name is too long or has control char");
    expect_refused("\"a\"", "\"\\u009b\"", "its name is too long or has control characters");
    expect_refused("F32", "F16", "part 'a': its dtype is not F32, I32, I64 or U8");
    expect_refused("[2, 3]", "[2, 3, 1]", "its shape is not two whole numbers from 0");
    expect_refused("[2, 3]", "[-2, 3]", "its shape is not two whole numbers from 0");
    expect_refused("[2, 3]", "[4611686018427387904, 4]", "its shape has more elements than any");
    expect_refused("0123456789abcdef", "123456789abcdef", "its xxh3 is not 16 hexadecimal digits");
    expect_refused("0123456789abcdef", "0123456789abcdeF", "its xxh3 is not 16 hexadecimal");
    expect_refused("\"xxh3\": \"0000000000000000\", ", "", "x: is damaged: its checksum does not");
}

/* ---- refused --------------------------------------------------------------------------------- */

static void expect_no_begin(uint64_t step, const char *name, const char *words) {
    const dlx_part part = {name, DLX_PART_U8, 0, 0, NULL};
    dlxi_snapshot_writer *writer;
    dlx_error error;
    assert_int_equal(dlxi_snapshot_begin(&writer, directory, step, 0, 1, &part, 1, &error),
                     DLX_ARGUMENT);
    assert_null(writer);
    expect_words(&error, words);
}

static void test_begin_refuses(void **unused) {
    (void)unused;
    char long_name[DLXI_SNAPSHOT_NAME_MAX + 2];
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    expect_no_begin(0, "", "a snapshot's part '': names have 1 to 255 bytes of UTF-8");
    expect_no_begin(0, "a\n", "a snapshot's part 'a?'");
    expect_no_begin(0, "\xff", "names have 1 to 255 bytes");
    expect_no_begin(0, "__metadata__", "names have 1 to 255 bytes");
    expect_no_begin(0, long_name, "names have 1 to 255 bytes");
    expect_no_begin(DLXI_SNAPSHOT_STEP_MAX + 1, "a", "a snapshot of step 1000000000000; allowed");
    assert_true(access(directory, F_OK) != 0);
}

/* The result of a writer of one part, and what is left after its close. */
static void expect_no_result(const char *where, const dlx_part *part, size_t count,
                             dlx_status expected, const char *words) {
    dlxi_snapshot_writer *writer;
    char *description = (char *)part_bytes;
    dlx_error error;
    must(dlxi_snapshot_begin(&writer, where, 1, 0, 1, part, count, &error), &error);
    dlxi_snapshot_wait(writer, count); /* does not wait for ever */
    assert_int_equal(dlxi_snapshot_result(writer, &description, &error), expected);
    assert_true(description == NULL && dlxi_snapshot_is_written(writer));
    expect_words(&error, words);
    dlxi_snapshot_close(&writer);
    dlxi_snapshot_close(&writer);
}

static void test_failed_writes(void **unused) {
    (void)unused;
    static float values[30000];
    static const dlx_part part[] = {{"a", DLX_PART_F32, 300, 100, values},
                                    {"a", DLX_PART_F32, 300, 100, values}};
    char nowhere[128];
    struct rlimit old, small;
    write_one(7, 1, 5, 7, 1);
    expect_no_result(directory, part, 2, DLX_ARGUMENT, "two tensors of a file are called 'a'");
    snprintf(nowhere, sizeof nowhere, "%s/no/such", root);
    expect_no_result(nowhere, part, 1, DLX_SYSTEM,
                     "/no/such: can't be made: No such file or directory; its parent must exist");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){.rlim_cur = 50000, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    /* the signal is blocked in the thread: no handler is needed */
    expect_no_result(directory, part, 1, DLX_SYSTEM,
                     "rank-0000.safetensors: can't be written: it would be larger than the 50000 "
                     "bytes that this process may write (ulimit -f)");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(names_count(directory), 1);
    expect_newest(7, 1, 5, 7, 0, NULL);
}

static dlxi_snapshot_writer *begin_one(uint64_t step, int rank, int ranks, char **description) {
    static uint8_t byte = 3;
    const dlx_part part = {"a", DLX_PART_U8, 1, 1, &byte};
    dlxi_snapshot_writer *writer;
    dlx_error error;
    must(dlxi_snapshot_begin(&writer, directory, step, rank, ranks, &part, 1, &error), &error);
    if (description != NULL) must(dlxi_snapshot_result(writer, description, &error), &error);
    return writer;
}

/* Without a result a file is the writer's; with one it is for commit or discard. */
static void test_close_and_discard(void **unused) {
    (void)unused;
    char *description;
    dlx_error error;
    dlxi_snapshot_writer *a = begin_one(1, 0, 2, &description), *b = begin_one(1, 1, 2, NULL);
    while (!dlxi_snapshot_is_written(b)) sched_yield();
    assert_int_equal(names_count(path_of(1, ".part", "")), 2);
    dlxi_snapshot_close(&b);
    dlxi_snapshot_close(&a);
    assert_int_equal(names_count(path_of(1, ".part", "")), 1);
    must(dlxi_snapshot_discard(directory, 1, &error), &error);
    must(dlxi_snapshot_discard(directory, 1, &error), &error);
    assert_int_equal(names_count(directory), 0);
    free(description);
    b = begin_one(2, 0, 1, NULL);
    dlxi_snapshot_close(&b);
    assert_int_equal(names_count(directory), 0);
}

static void expect_no_commit(const char *const *descriptions, dlx_status expected,
                             const char *words) {
    dlx_error error;
    assert_int_equal(dlxi_snapshot_commit(directory, 4, descriptions, 2, NULL, 1, &error),
                     expected);
    expect_words(&error, words);
    assert_false(exists(4, ".part") || exists(4, ""));
    expect_newest(3, 2, 5, 3, 0, NULL);
}

static void test_commit_refuses(void **unused) {
    (void)unused;
    char *good[2];
    dlxi_snapshot_writer *writer[2];
    write_one(3, 2, 5, 3, 1);
    for (int way = 0; way < 6; way++) {
        for (int r = 0; r < 2; r++) writer[r] = begin_one(4, r, 2, &good[r]);
        const char *const swapped[2] = {good[1], good[0]}, *const torn[2] = {good[0], "{\"name\""},
                          *const empty[2] = {good[0], "{}"};
        if (way == 0) expect_no_commit(swapped, DLX_DATA, "file 0 is 'rank-0001.safetensors'");
        if (way == 1) expect_no_commit(torn, DLX_DATA, "the description of rank 1:1: not JSON");
        if (way == 2) expect_no_commit(empty, DLX_DATA, "manifest.json: file 1 has no parts");
        if (way == 3) {
            assert_int_equal(unlink(path_of(4, ".part", "rank-0001.safetensors")), 0);
            expect_no_commit((const char *const *)good, DLX_DATA,
                             "the snapshot is incomplete; do all ranks of the site share its "
                             "directory? ");
        }
        if (way == 4) {
            assert_int_equal(truncate(path_of(4, ".part", "rank-0001.safetensors"), 10), 0);
            expect_no_commit((const char *const *)good, DLX_DATA, "rank-0001.safetensors: ");
        }
        if (way == 5) {
            tree_clear(path_of(4, ".part", ""), 0);
            expect_no_commit((const char *const *)good, DLX_SYSTEM, ".part: can't be listed: No s");
        }
        for (int r = 0; r < 2; r++) {
            dlxi_snapshot_close(&writer[r]);
            free(good[r]);
        }
    }
    assert_int_equal(names_count(directory), 1);
}

/* ---- leftovers ------------------------------------------------------------------------------- */

static void leave(uint64_t step, const char *ending, const char *file) {
    (void)mkdir(path_of(step, ending, ""), 0777);
    file_put(path_of(step, ending, file), "left", 4);
}

static void test_leftovers(void **unused) {
    (void)unused;
    dlx_error error;
    char *description;
    write_one(1, 2, 5, 1, 1);
    /* of an earlier process, in the way of the next snapshot, with more ranks */
    leave(2, ".part", "rank-0000.safetensors.part-1-0");
    leave(2, ".part", "rank-0000.safetensors");
    leave(2, ".part", "rank-0001.safetensors.part-1-0");
    leave(2, ".part", "rank-0007.safetensors");
    leave(2, ".part", "manifest.json");
    dlxi_snapshot_writer *writer = begin_one(2, 0, 2, &description);
    assert_int_equal(names_count(path_of(2, ".part", "")), 4);
    dlxi_snapshot_close(&writer);
    free(description);
    write_one(2, 2, 5, 2, 2);
    assert_int_equal(names_count(path_of(2, "", "")), 3);
    expect_newest(2, 2, 5, 2, 0, NULL);

    /* in the way of the removal of an older one */
    leave(1, ".part", "x");
    write_one(3, 2, 5, 3, 1);
    assert_int_equal(names_count(directory), 1);

    leave(3, ".part", "rank-0000.safetensors");
    leave(9, ".part", "rank-0000.safetensors");
    leave(3, ".old", "manifest.json"); /* its successor is there */
    file_put(path_of(8, ".part", ""), "a file", 6);
    assert_int_equal(symlink("/", path_of(7, ".part", "")), 0);
    /* not of snapshots */
    assert_int_equal(mkdir(path_of(5, ".part-1", ""), 0777), 0);
    char mine[128];
    snprintf(mine, sizeof mine, "%s/step-9.part", directory);
    file_put(mine, "mine", 4);
    assert_int_equal(names_count(directory), 8);
    must(dlxi_snapshot_tidy(directory, &error), &error);
    assert_int_equal(names_count(directory), 3);
    expect_newest(3, 2, 5, 3, 0, NULL);

    assert_int_equal(rename(path_of(3, "", ""), path_of(3, ".old", "")), 0); /* without one */
    expect_none(DLX_SYSTEM, ENOENT, "has no snapshot");
    must(dlxi_snapshot_tidy(directory, &error), &error);
    expect_newest(3, 2, 5, 3, 0, NULL);
    leave(3, ".part", "d");
    assert_int_equal(mkdir(path_of(3, ".part", "directory"), 0777), 0);
    assert_int_equal(dlxi_snapshot_tidy(directory, &error), DLX_SYSTEM);
    expect_words(&error, ".part/directory: can't be removed: Is a directory");
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip),
        TEST(test_unequal_ranks),
        TEST(test_wait),
        TEST(test_keep),
        TEST(test_replace),
        TEST(test_none),
        TEST(test_missing_and_torn),
        TEST(test_flipped_bits),
        TEST(test_read_names_the_part),
        TEST(test_malformed_manifests),
        TEST(test_begin_refuses),
        TEST(test_failed_writes),
        TEST(test_close_and_discard),
        TEST(test_commit_refuses),
        TEST(test_leftovers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
