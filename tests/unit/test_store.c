/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's store: durable, for one process alone, and refused if it is not what it was. */
#include "base/file.h"
#include "base/rng.h"
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

enum { NOBODY = 65534, CONTENT_MAX = 200000 };

static char directory[64], path[100], journal[120], copy[100];

static int syncs; /* calls of SQLite's that wait for the disk */

__attribute__((visibility("default"))) int fdatasync(int fd) {
    syncs++;
    return (int)syscall(SYS_fdatasync, fd);
}

__attribute__((visibility("default"))) int fsync(int fd) {
    syncs++;
    return (int)syscall(SYS_fsync, fd);
}

static int set_up(void **state) {
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/dilocox_store.XXXXXX");
    if (mkdtemp(directory) == NULL) return -1;
    snprintf(path, sizeof path, "%s/coordinator.db", directory);
    snprintf(journal, sizeof journal, "%s-journal", path);
    snprintf(copy, sizeof copy, "%s/copy.db", directory);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    if (getuid() == 0 && seteuid(0) != 0) return -1; /* test_directories ended early */
    chmod(directory, 0700);
    unlink(path);
    unlink(journal);
    unlink(copy);
    return rmdir(directory); /* fails if a file was left behind */
}

static void must(dlx_status status, const dlx_error *error) {
    if (status != DLX_OK) fail_msg("%s: %s", dlx_status_text(status), error->message);
}

static dlxi_store *open_store(const char *name) {
    dlxi_store *s;
    dlx_error error;
    must(dlxi_store_open(&s, name, &error), &error);
    return s;
}

/* A message names the file, and has these words. */
static void expect_words(const dlx_error *error, const char *name, const char *words) {
    if (strstr(error->message, name) == NULL || strstr(error->message, words) == NULL)
        fail_msg("no '%s' and '%s' in: %s", name, words, error->message);
}

static void expect_refusal(const char *name, dlx_status expected, const char *words) {
    dlxi_store *s;
    dlx_error error = {.message = "(none)"};
    dlx_status status = dlxi_store_open(&s, name, &error);
    if (status != expected) fail_msg("%s: %s", dlx_status_text(status), error.message);
    assert_null(s);
    expect_words(&error, name, words);
}

/* The content of state n; a record has fewer bytes and another salt. */
static size_t content(uint8_t *dst, uint64_t n, bool is_record) {
    size_t bytes =
        8 + (size_t)(dlxi_rng_u64(n, is_record, 0) % (is_record ? 600 : CONTENT_MAX - 8));
    for (size_t i = 0; i < bytes; i++)
        dst[i] = (uint8_t)(n * 31 + i * (is_record ? 7 : 3) + i / 251);
    memcpy(dst, &n, sizeof n);
    return bytes;
}

static dlx_status write_content(dlxi_store *s, uint64_t n, dlx_error *error) {
    static uint8_t state[CONTENT_MAX], record[CONTENT_MAX];
    size_t bytes = content(state, n, false), record_bytes = content(record, n, true);
    return dlxi_store_write(s, state, bytes, n, record, record_bytes, error);
}

/* The n of the state, which has all of its content. */
static uint64_t read_content(dlxi_store *s) {
    static uint8_t expected[CONTENT_MAX];
    uint8_t *state;
    size_t bytes;
    uint64_t n;
    dlx_error error;
    must(dlxi_store_read(s, &state, &bytes, &error), &error);
    memcpy(&n, state, sizeof n);
    assert_int_equal(bytes, content(expected, n, false));
    assert_memory_equal(state, expected, bytes);
    free(state);
    return n;
}

static void expect_record(dlxi_store *s, uint64_t n) {
    static uint8_t expected[CONTENT_MAX];
    uint8_t *record;
    size_t bytes;
    dlx_error error;
    must(dlxi_store_record(s, n, &record, &bytes, &error), &error);
    assert_int_equal(bytes, content(expected, n, true));
    assert_memory_equal(record, expected, bytes);
    free(record);
}

static void expect_no_record(dlxi_store *s, uint64_t round) {
    uint8_t *record;
    size_t bytes;
    dlx_error error;
    char words[64];
    snprintf(words, sizeof words, "has no record of round %llu", (unsigned long long)round);
    assert_int_equal(dlxi_store_record(s, round, &record, &bytes, &error), DLX_STATE);
    assert_null(record);
    expect_words(&error, path, words);
}

/* Changes a file behind the store's back. */
static void alter(const char *name, const char *sql) {
    sqlite3 *db;
    assert_int_equal(sqlite3_open(name, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void copy_file(const char *to, const char *from) {
    char *bytes;
    size_t count;
    assert_int_equal(dlxi_file_read(&bytes, &count, from, 64 << 20, NULL), DLX_OK);
    int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, bytes, count), count);
    close(fd);
    free(bytes);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_write_read_reopen(void **unused) {
    (void)unused;
    dlx_error error;
    uint8_t *state;
    size_t bytes;
    struct stat facts;
    char why[256];
    dlxi_store *s = open_store(path);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    assert_true(dlxi_store_is_empty(s) && dlxi_store_is_continuous(s, why));
    assert_int_equal(dlxi_store_read(s, &state, &bytes, &error), DLX_STATE);
    assert_null(state);
    expect_words(&error, path, "has no state yet");
    must(dlxi_store_write(s, (const uint8_t *)"", 0, 0, NULL, 0, &error), &error);
    assert_false(dlxi_store_is_empty(s));
    must(dlxi_store_read(s, &state, &bytes, &error), &error);
    assert_int_equal(bytes, 0);
    free(state);
    expect_no_record(s, 0);
    for (uint64_t n = 1; n <= 3; n++) must(write_content(s, n, &error), &error);
    assert_int_equal(read_content(s), 3);
    dlxi_store_close(&s);
    assert_null(s);
    dlxi_store_close(&s);

    s = open_store(path);
    assert_false(dlxi_store_is_empty(s));
    assert_true(dlxi_store_is_continuous(s, why));
    assert_string_equal(why, "");
    assert_int_equal(read_content(s), 3);
    for (uint64_t n = 1; n <= 3; n++) expect_record(s, n);
    expect_no_record(s, 4);
    /* a round's record is replaced; rounds are any u64 */
    for (uint64_t round = 2; round != 1; round = round == 2 ? UINT64_MAX : 1) {
        uint8_t *record;
        must(dlxi_store_write(s, (const uint8_t *)"s", 1, round, (const uint8_t *)"new", 3, &error),
             &error);
        must(dlxi_store_record(s, round, &record, &bytes, &error), &error);
        assert_int_equal(bytes, 3);
        assert_memory_equal(record, "new", 3);
        free(record);
    }
    expect_record(s, 1);
    dlxi_store_close(&s);
}

static void test_sizes(void **unused) {
    (void)unused;
    dlx_error error;
    uint8_t *large = calloc(1, DLXI_STORE_BYTES_MAX + 1), *state;
    size_t bytes;
    dlxi_store *s = open_store(path);
    must(dlxi_store_write(s, large, DLXI_STORE_BYTES_MAX, 1, large, DLXI_STORE_BYTES_MAX, &error),
         &error);
    assert_int_equal(dlxi_store_write(s, large, DLXI_STORE_BYTES_MAX + 1, 2, large, 1, &error),
                     DLX_ARGUMENT);
    expect_words(&error, path, "8388609 bytes to write; allowed: up to 8388608");
    assert_int_equal(dlxi_store_write(s, large, 1, 2, large, DLXI_STORE_BYTES_MAX + 1, &error),
                     DLX_ARGUMENT);
    must(dlxi_store_read(s, &state, &bytes, &error), &error); /* not a failure of the store */
    assert_int_equal(bytes, DLXI_STORE_BYTES_MAX);
    free(state);
    dlxi_store_close(&s);
    free(large);
}

/* What a second process, which began before the store was opened, gets when it opens it. */
static dlx_status open_elsewhere(int *ask, int *answer, dlx_error *error) {
    assert_int_equal(write(ask[1], "?", 1), 1);
    assert_int_equal(read(answer[0], error, sizeof *error), sizeof *error);
    return error->status;
}

static void test_one_process(void **unused) {
    (void)unused;
    int ask[2], answer[2], ended;
    dlx_error error;
    assert_int_equal(pipe(ask) | pipe(answer), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char mark;
        close(ask[1]);
        while (read(ask[0], &mark, 1) == 1) {
            dlx_error said = {.message = ""};
            dlxi_store *s;
            (void)dlxi_store_open(&s, path, &said);
            dlxi_store_close(&s);
            if (write(answer[1], &said, sizeof said) != sizeof said) break;
        }
        _exit(0);
    }
    dlxi_store *s = open_store(path), *second;
    assert_int_equal(open_elsewhere(ask, answer, &error), DLX_STATE);
    expect_words(&error, path, "another process has it open");
    expect_words(&error, "a coordinator is running already", "database is locked");
    must(write_content(s, 1, &error), &error);
    assert_int_equal(open_elsewhere(ask, answer, &error), DLX_STATE);
    /* the same process neither, and the attempt does not cost the lock */
    assert_int_equal(dlxi_store_open(&second, path, &error), DLX_STATE);
    assert_int_equal(open_elsewhere(ask, answer, &error), DLX_STATE);
    assert_int_equal(read_content(s), 1);
    dlxi_store_close(&s);
    must(open_elsewhere(ask, answer, &error), &error);
    s = open_store(path); /* locked before anything is written */
    assert_int_equal(open_elsewhere(ask, answer, &error), DLX_STATE);
    assert_int_equal(read_content(s), 1);
    must(dlxi_store_release(s, &error), &error); /* unlocks */
    must(open_elsewhere(ask, answer, &error), &error);
    dlxi_store_close(&s);
    close(ask[1]);
    assert_int_equal(waitpid(child, &ended, 0), child);
    close(ask[0]);
    close(answer[0]);
    close(answer[1]);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Writes n + 1, n + 2, …, and each number to fd once it is written; until it is killed. */
static void write_for_ever(uint64_t n, int fd, bool durable) {
    dlxi_store *s;
    if (dlxi_store_open(&s, path, NULL) != DLX_OK) _exit(1);
    if (dlxi_store_set_durable(s, durable, NULL) != DLX_OK) _exit(1);
    while (write_content(s, ++n, NULL) == DLX_OK && write(fd, &n, sizeof n) == sizeof n) {}
    _exit(1);
}

/* Killed some writes in, and then anywhere within a time as long as a write: the old state with its
 * record, or the new one; also where the disk is not waited for. */
static void test_kill(void **unused) {
    (void)unused;
    enum { KILLS = 40 };
    uint64_t n = 0, between = 0, seed = (uint64_t)now_ns();
    dlx_error error;
    dlxi_store *s = open_store(path);
    must(write_content(s, 0, &error), &error);
    for (uint64_t i = 0; i < KILLS; i++) {
        int done[2], ended;
        assert_int_equal(pipe(done), 0);
        dlxi_store_close(&s);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) write_for_ever(n, done[1], i % 2 == 0);
        close(done[1]);
        int64_t write_ns = 0, before_ns = 0;
        uint64_t acknowledged = n, last;
        for (uint64_t left = 2 + dlxi_rng_u64(seed, i, 0) % 3; left > 0; left--) {
            assert_int_equal(read(done[0], &acknowledged, sizeof acknowledged), 8);
            int64_t at_ns = now_ns();
            write_ns = at_ns - before_ns;
            before_ns = at_ns;
        }
        int64_t wait_ns = (int64_t)(dlxi_rng_u64(seed, i, 1) % (uint64_t)write_ns);
        while (now_ns() - before_ns < wait_ns) {}
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &ended, 0), child);
        assert_true(WIFSIGNALED(ended));
        while (read(done[0], &last, sizeof last) == sizeof last) acknowledged = last;
        close(done[0]);
        between += access(journal, F_OK) == 0;
        s = open_store(path);
        n = read_content(s);
        if (n != acknowledged && n != acknowledged + 1)
            fail_msg("state %llu after %llu were written", (unsigned long long)n,
                     (unsigned long long)acknowledged);
        for (uint64_t round = 0; round <= n; round++) expect_record(s, round);
        expect_no_record(s, n + 1);
    }
    assert_true(between > 0); /* a journal was there to be rolled back, or passed over */
    dlxi_store_close(&s);
}

static void test_foreign_files(void **unused) {
    (void)unused;
    dlxi_store *s;
    assert_int_equal(dlxi_file_write_text(path,
                                          "sites:\n  - name: paris, which has more than the "
                                          "bytes of a header, in a file that is a config; "
                                          "the header of a database has 100 bytes",
                                          NULL),
                     DLX_OK);
    expect_refusal(path, DLX_DATA, "not a coordinator's store");
    unlink(path);
    alter(path, "CREATE TABLE mail(subject TEXT)");
    expect_refusal(path, DLX_DATA,
                   "not a coordinator's store, or damaged; move it away, then go on "
                   "from what the sites have with --takeover, or from snapshots with --resume");
    unlink(path);
    s = open_store(path);
    dlxi_store_close(&s);
    alter(path, "PRAGMA user_version = 2");
    expect_refusal(path, DLX_DATA, "has version 2 of the format; this program reads version 1");
    alter(path, "PRAGMA user_version = 1; DROP TABLE record");
    expect_refusal(path, DLX_DATA, "damaged: no such table: record");
    unlink(path);
    close(open(path, O_CREAT | O_CLOEXEC, 0600)); /* a start that ended early */
    s = open_store(path);
    assert_true(dlxi_store_is_empty(s));
    dlxi_store_close(&s);
}

/* Each kind of damage to a store with ten rounds is refused by name. */
static void test_damage(void **unused) {
    (void)unused;
    dlx_error error;
    struct stat facts;
    uint8_t *record;
    size_t bytes;
    dlxi_store *s = open_store(path);
    for (uint64_t n = 0; n < 10; n++) must(write_content(s, n, &error), &error);
    dlxi_store_close(&s);
    assert_int_equal(stat(path, &facts), 0);

    copy_file(copy, path);
    assert_int_equal(truncate(copy, facts.st_size / 2 / 4096 * 4096), 0);
    expect_refusal(copy, DLX_DATA, "damaged");

    copy_file(copy, path); /* the third page is the table of records, which opening does not read */
    int fd = open(copy, O_WRONLY | O_CLOEXEC);
    static const uint8_t zeros[4096];
    assert_int_equal(pwrite(fd, zeros, sizeof zeros, 8192), sizeof zeros);
    close(fd);
    expect_refusal(copy, DLX_DATA, "damaged");

    /* SQLite does not check contents */
    copy_file(copy, path);
    alter(copy, "UPDATE state SET bytes = CAST(substr(bytes, 1, 99) || x'00' || substr(bytes, 101) "
                "AS BLOB)");
    expect_refusal(copy, DLX_DATA, "damaged: the state has a wrong checksum");
    copy_file(copy, path);
    alter(copy, "UPDATE record SET round = 20 WHERE round = 3");
    s = open_store(copy);
    assert_int_equal(dlxi_store_record(s, 20, &record, &bytes, &error), DLX_DATA);
    expect_words(&error, copy, "damaged: the record of a round has a wrong checksum");
    dlxi_store_close(&s);
    copy_file(copy, path);
    alter(copy, "DELETE FROM place");
    expect_refusal(copy, DLX_DATA, "damaged: it has no place");
}

static void test_directories(void **unused) {
    (void)unused;
    dlxi_store *s;
    dlx_error error;
    expect_refusal("/no/such/directory/coordinator.db", DLX_SYSTEM,
                   "can't be created: No such file or directory; its directory must exist");
    expect_refusal(directory, DLX_SYSTEM, "can't be opened");
    s = open_store(path);
    must(write_content(s, 1, &error), &error);
    must(dlxi_store_release(s, &error), &error);
    dlxi_store_close(&s);
    bool is_root = geteuid() == 0;
    if (is_root) assert_int_equal(chown(path, NOBODY, NOBODY), 0);
    assert_int_equal(chmod(directory, 0555), 0);
    if (is_root) assert_int_equal(seteuid(NOBODY), 0); /* root may write everywhere */
    expect_refusal(copy, DLX_SYSTEM, "can't be created: Permission denied");
    s = open_store(path); /* the journal is created by the first write */
    assert_int_equal(write_content(s, 2, &error), DLX_SYSTEM);
    expect_words(&error, path, "make it and its directory writable");
    assert_int_equal(error.system_errno, EACCES);
    assert_int_equal(dlxi_store_adopt(s, &error), DLX_STATE);
    dlxi_store_close(&s);
    assert_int_equal(chmod(path, 0444), 0);
    expect_refusal(path, DLX_SYSTEM, "is read-only");
}

/* A limit of the process stands for a full disk. After it nothing is tried again. */
static void test_disk_full(void **unused) {
    (void)unused;
    struct rlimit old, small;
    dlx_error error;
    uint8_t *state;
    size_t bytes;
    dlxi_store *s = open_store(path);
    must(write_content(s, 1, &error), &error);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){.rlim_cur = 4096, .rlim_max = old.rlim_max};
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    dlx_status status = write_content(s, 2, &error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, DLX_SYSTEM);
    assert_true(error.system_errno == EFBIG || error.system_errno == ENOSPC);
    expect_words(&error, path, "disk");
    assert_int_equal(write_content(s, 2, &error), DLX_STATE);
    expect_words(&error, path, "a call on it failed; close it and open it again");
    assert_int_equal(dlxi_store_read(s, &state, &bytes, &error), DLX_STATE);
    assert_int_equal(dlxi_store_release(s, &error), DLX_STATE);
    dlxi_store_close(&s);
    s = open_store(path);
    assert_int_equal(read_content(s), 1);
    dlxi_store_close(&s);
}

static void test_removed_while_open(void **unused) {
    (void)unused;
    dlx_error error;
    dlxi_store *s = open_store(path);
    must(write_content(s, 1, &error), &error);
    assert_int_equal(rename(path, copy), 0);
    assert_int_equal(write_content(s, 2, &error), DLX_SYSTEM);
    expect_words(&error, path, "was moved, removed or replaced while it was open");
    dlxi_store_close(&s);
    s = open_store(copy);
    assert_int_equal(read_content(s), 1);
    dlxi_store_close(&s);
}

static void expect_place(const char *name, const char *why_not) {
    char why[256];
    dlxi_store *s = open_store(name);
    assert_int_equal(dlxi_store_is_continuous(s, why), why_not == NULL);
    if (why_not != NULL && strstr(why, why_not) == NULL) fail_msg("no '%s' in: %s", why_not, why);
    dlxi_store_close(&s);
}

static void test_continuity(void **unused) {
    (void)unused;
    static const char is_copy[] = "it is a copy: the coordinator wrote to another file";
    dlx_error error;
    char why[256];
    dlxi_store *s = open_store(path);
    must(write_content(s, 1, &error), &error);
    dlxi_store_close(&s);
    expect_place(path, NULL);
    copy_file(copy, path);
    expect_place(copy, is_copy);
    /* neither a write nor a release makes it continuous; adopting it does */
    s = open_store(copy);
    must(write_content(s, 2, &error), &error);
    assert_false(dlxi_store_is_continuous(s, why));
    dlxi_store_close(&s);
    expect_place(copy, is_copy);
    s = open_store(copy);
    must(dlxi_store_release(s, &error), &error);
    dlxi_store_close(&s);
    expect_place(copy, is_copy);
    s = open_store(copy);
    must(dlxi_store_adopt(s, &error), &error);
    assert_true(dlxi_store_is_continuous(s, why));
    assert_int_equal(read_content(s), 2);
    dlxi_store_close(&s);
    expect_place(copy, NULL);

    alter(copy, "UPDATE place SET machine = machine + 1, host = 'tokyo'");
    expect_place(copy, "it was written on host 'tokyo' and this is '");
    alter(copy, "UPDATE place SET machine = machine - 1, device = device + 1");
    expect_place(copy, "it was written on another file system of this machine");
    s = open_store(copy);
    must(dlxi_store_adopt(s, &error), &error);
    dlxi_store_close(&s);
    alter(copy, "UPDATE place SET machine = machine + 1");
    expect_place(copy, "it was written on another machine, whose name is '");
}

/* One file is all of it after a clean stop, and it is continuous anywhere, until it is used. */
static void test_release(void **unused) {
    (void)unused;
    dlx_error error;
    char why[256];
    dlxi_store *s = open_store(path);
    must(write_content(s, 1, &error), &error);
    must(dlxi_store_release(s, &error), &error);
    assert_true(dlxi_store_is_continuous(s, why));
    assert_int_equal(write_content(s, 2, &error), DLX_STATE);
    dlxi_store_close(&s);
    assert_int_not_equal(access(journal, F_OK), 0);
    copy_file(copy, path);
    unlink(path);
    expect_place(copy, NULL); /* opening it is not using it */
    s = open_store(copy);
    assert_true(dlxi_store_is_continuous(s, why));
    must(write_content(s, 2, &error), &error);
    assert_true(dlxi_store_is_continuous(s, why));
    dlxi_store_close(&s);
    expect_place(copy, NULL); /* the first write made this its place … */
    copy_file(path, copy);
    expect_place(path, "it is a copy"); /* … and no other */
    s = open_store(path);
    assert_int_equal(read_content(s), 2);
    for (uint64_t n = 1; n <= 2; n++) expect_record(s, n);
    dlxi_store_close(&s);
    char extra[120];
    snprintf(extra, sizeof extra, "%s-journal", copy);
    unlink(extra);
}

/* Where it isn't, no write waits for the disk, and a release does: for all that was written. */
static void test_durable(void **unused) {
    (void)unused;
    dlx_error error;
    dlxi_store *s = open_store(path);
    syncs = 0;
    must(write_content(s, 1, &error), &error);
    assert_true(syncs > 0);
    must(dlxi_store_set_durable(s, false, &error), &error);
    syncs = 0;
    for (uint64_t n = 2; n < 10; n++) must(write_content(s, n, &error), &error);
    assert_int_equal(syncs, 0);
    must(dlxi_store_set_durable(s, true, &error), &error);
    must(write_content(s, 10, &error), &error);
    assert_true(syncs > 0);
    must(dlxi_store_set_durable(s, false, &error), &error);
    must(write_content(s, 11, &error), &error);
    syncs = 0;
    must(dlxi_store_release(s, &error), &error);
    assert_true(syncs > 0);
    assert_int_equal(dlxi_store_set_durable(s, true, &error), DLX_STATE);
    dlxi_store_close(&s);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_write_read_reopen),
        TEST(test_sizes),
        TEST(test_one_process),
        TEST(test_kill),
        TEST(test_foreign_files),
        TEST(test_damage),
        TEST(test_directories),
        TEST(test_disk_full),
        TEST(test_removed_while_open),
        TEST(test_continuity),
        TEST(test_release),
        TEST(test_durable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
