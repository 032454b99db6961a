/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots while every system call that changes the disk is, one after the other, the process's
 * last one, or fails: the newest snapshot or the one before it is whole, and nothing is left. A
 * directory gets its name after its files are flushed, and others go after that. Waiting for parts
 * waits for nothing else. */
#include "snapshot_sample.h"
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>

enum { RANKS = 2, COLUMNS = 50, KEEP = 2, SNAPSHOTS = 5, FILES_MAX = 64 };
/* the third replaces the second; from the fourth on one is removed */
static const uint64_t steps[SNAPSHOTS] = {10, 20, 20, 30, 40};

static char root[64], directory[80];

static int set_up(void **unused) {
    (void)unused;
    strcpy(root, "/tmp/dilocox_faults_XXXXXX");
    if (mkdtemp(root) == NULL) return -1;
    snprintf(directory, sizeof directory, "%s/snapshots", root);
    return 0;
}

static int tear_down(void **unused) {
    (void)unused;
    tree_clear(root, 3);
    return 0;
}

/* ---- system calls ---------------------------------------------------------------------------- */

typedef enum fault { NONE, DIE_BEFORE, DIE_AFTER, FAIL_ONCE, FAIL_FROM } fault;

/* One thread at a time makes calls. */
static struct {
    fault what;
    int at, calls, failure;
    bool no_exchange; /* a file system that cannot exchange names */
    bool must_fail;   /* what failed was a write, or the flush of a file */
    ino_t dirty[FILES_MAX];
    int dirty_count;
    bool is_unflushed; /* a snapshot got its name, and its directory was not flushed */
} now;

/* Whether the call fails. */
static bool before_call(void) {
    int call = ++now.calls;
    if (now.what == DIE_BEFORE && call == now.at) kill(getpid(), SIGKILL);
    bool fails =
        (now.what == FAIL_ONCE && call == now.at) || (now.what == FAIL_FROM && call >= now.at);
    if (fails) errno = now.failure;
    return fails;
}

static void after_call(void) {
    if (now.what == DIE_AFTER && now.calls == now.at) kill(getpid(), SIGKILL);
}

static void file_mark(int fd, bool dirty) {
    struct stat facts;
    assert_int_equal(fstat(fd, &facts), 0);
    if (S_ISDIR(facts.st_mode)) {
        struct stat own;
        if (stat(directory, &own) == 0 && own.st_ino == facts.st_ino) now.is_unflushed = false;
        return;
    }
    for (int i = 0; i < now.dirty_count; i++)
        if (now.dirty[i] == facts.st_ino) now.dirty[i--] = now.dirty[--now.dirty_count];
    assert_true(now.dirty_count < FILES_MAX);
    if (dirty) now.dirty[now.dirty_count++] = facts.st_ino;
}

static bool is_regular(int fd) {
    struct stat facts;
    return fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
}

/* The write of this number, or the first flush, waits until it is released. */
static struct {
    int write; /* from 1; 0: none */
    bool flush;
    sem_t released;
} hold;

static void hold_here(bool here) {
    while (here && sem_wait(&hold.released) != 0 && errno == EINTR) continue;
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* Whether this gives a snapshot its name. What is in it is on the disk, and before a snapshot loses
 * its name, so is the name of the last one. */
static bool rename_check(const char *from, const char *to) {
    uint64_t step;
    bool names = ends_with(from, ".part") && dlxi_snapshot_step_of(&step, strrchr(to, '/') + 1, "");
    if (names) assert_int_equal(now.dirty_count, 0);
    if (dlxi_snapshot_step_of(&step, strrchr(from, '/') + 1, "") && !ends_with(to, ".old"))
        assert_false(now.is_unflushed);
    return names;
}

#define CALL(type, name, parameters, given, check)                                                 \
    type __real_##name parameters;                                                                 \
    type __wrap_##name parameters;                                                                 \
    type __wrap_##name parameters {                                                                \
        if (before_call()) return -1;                                                              \
        check;                                                                                     \
        type result = __real_##name given;                                                         \
        int was = errno;                                                                           \
        after_call();                                                                              \
        errno = was;                                                                               \
        return result;                                                                             \
    }

CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), (void)0)
CALL(int, unlink, (const char *path), (path), assert_false(now.is_unflushed))
CALL(int, rmdir, (const char *path), (path), (void)0)
CALL(int, ftruncate64, (int fd, off64_t bytes), (fd, bytes), file_mark(fd, true))

int __real_rename(const char *, const char *);
int __wrap_rename(const char *, const char *);
int __wrap_rename(const char *from, const char *to) {
    if (before_call()) return -1;
    bool names = rename_check(from, to);
    int result = __real_rename(from, to), was = errno;
    now.is_unflushed |= names && result == 0;
    after_call();
    errno = was;
    return result;
}

int __real_renameat2(int, const char *, int, const char *, unsigned);
int __wrap_renameat2(int, const char *, int, const char *, unsigned);
int __wrap_renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    if (before_call()) return -1;
    if (now.no_exchange) {
        errno = EINVAL;
        return -1;
    }
    bool names = rename_check(from, to);
    int result = __real_renameat2(from_fd, from, to_fd, to, flags);
    now.is_unflushed |= names && result == 0;
    after_call();
    return result;
}

/* Half of it is written when the process dies after it, or when it fails. */
ssize_t __real_pwrite64(int, const void *, size_t, off64_t);
ssize_t __wrap_pwrite64(int, const void *, size_t, off64_t);
ssize_t __wrap_pwrite64(int fd, const void *data, size_t bytes, off64_t at) {
    bool fails = before_call(), dies = now.what == DIE_AFTER && now.calls == now.at;
    int was = errno;
    hold_here(hold.write > 0 && --hold.write == 0);
    file_mark(fd, true);
    ssize_t result = __real_pwrite64(fd, data, fails || dies ? bytes / 2 : bytes, at);
    after_call();
    if (!fails) return result;
    now.must_fail = true;
    errno = was;
    return -1;
}

/* Without the disk: a process that is killed does not lose what it wrote. */
int __wrap_fsync(int);
int __wrap_fsync(int fd) {
    if (before_call()) {
        now.must_fail |= is_regular(fd);
        return -1;
    }
    hold_here(hold.flush);
    hold.flush = false;
    file_mark(fd, false);
    after_call();
    return 0;
}

/* Only opens that create files. */
int __real_open64(const char *, int, ...);
int __wrap_open64(const char *, int, ...);
int __wrap_open64(const char *path, int flags, ...) {
    if ((flags & O_CREAT) == 0) return __real_open64(path, flags);
    if (before_call()) {
        now.must_fail = true;
        return -1;
    }
    int fd = __real_open64(path, flags, 0666);
    after_call();
    return fd;
}

static void faults_set(fault what, int at, bool no_exchange) {
    memset(&now, 0, sizeof now);
    now.what = what;
    now.at = at;
    now.no_exchange = no_exchange;
    now.failure = at % 2 == 0 ? EIO : ENOSPC;
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* The newest one that opens, as its index among the snapshots that are written; -1: none. */
static int newest_find(void) {
    dlxi_snapshot *snapshot;
    dlx_error error;
    int found = -1;
    if (dlxi_snapshot_open_newest(&snapshot, directory, NULL, NULL, &error) != DLX_OK) {
        if (error.system_errno != ENOENT) fail_msg("%s", error.message);
        return -1;
    }
    for (int i = 0; i < SNAPSHOTS && found < 0; i++)
        if (dlxi_snapshot_step(snapshot) == steps[i] &&
            sample_is(snapshot, RANKS, COLUMNS, (uint64_t)i))
            found = i;
    assert_true(found >= 0);
    dlxi_snapshot_close_opened(&snapshot);
    return found;
}

/* What has the name of a snapshot is one, and nothing else is in the directory. */
static void expect_tidy(int names_max) {
    uint64_t *listed;
    size_t count;
    dlx_error error;
    if (access(directory, F_OK) != 0) return;
    assert_int_equal(dlxi_snapshot_list(&listed, &count, directory, &error), DLX_OK);
    assert_int_equal(names_count(directory), (int)count);
    assert_true((int)count <= names_max);
    for (size_t i = 0; i < count; i++) {
        dlxi_snapshot *snapshot;
        char path[DLXI_PATH_BYTES];
        assert_int_equal(dlxi_snapshot_step_path(path, directory, listed[i], "", &error), DLX_OK);
        if (dlxi_snapshot_open(&snapshot, path, &error) != DLX_OK ||
            dlxi_snapshot_verify(snapshot, &error) != DLX_OK)
            fail_msg("%s", error.message);
        dlxi_snapshot_close_opened(&snapshot);
        assert_int_equal(names_count(path), RANKS + 1);
    }
    free(listed);
}

static dlx_status write_next(int index, dlx_error *error) {
    return sample_write(directory, steps[index], RANKS, COLUMNS, (uint64_t)index, KEEP, error);
}

/* ---- killed ---------------------------------------------------------------------------------- */

/* Writes snapshots until call `at`; false: there are fewer. *committed: how many have been. */
static bool run_until_killed(fault what, int at, bool no_exchange, volatile int *committed) {
    int ended;
    *committed = 0;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        faults_set(what, at, no_exchange);
        for (int i = 0; i < SNAPSHOTS; i++) {
            dlx_error error;
            if (write_next(i, &error) != DLX_OK) _exit(3);
            *committed = i + 1;
        }
        _exit(0);
    }
    assert_int_equal(waitpid(child, &ended, 0), child);
    if (WIFEXITED(ended)) assert_int_equal(WEXITSTATUS(ended), 0);
    return WIFSIGNALED(ended) && WTERMSIG(ended) == SIGKILL;
}

/* After a kill; every second time as by a program that does not tidy. */
static void expect_recovery(int at, bool no_exchange, int committed) {
    dlx_error error;
    int found = no_exchange ? committed - 1 : newest_find();
    assert_true(found == committed - 1 || found == committed);
    if (at % 2 == 0 || no_exchange) {
        assert_int_equal(dlxi_snapshot_tidy(directory, &error), DLX_OK);
        found = newest_find();
        assert_true(found == committed - 1 || found == committed);
        expect_tidy(KEEP + 1); /* the oldest one may not be gone yet */
    }
    faults_set(NONE, 0, no_exchange);
    for (int i = found + 1 < SNAPSHOTS ? found + 1 : SNAPSHOTS - 1; i < SNAPSHOTS; i++) {
        if (write_next(i, &error) != DLX_OK) fail_msg("%s", error.message);
        assert_int_equal(newest_find(), i);
    }
    assert_int_equal(dlxi_snapshot_tidy(directory, &error), DLX_OK);
    expect_tidy(KEEP);
}

static void killed_at_every_call(fault what, bool no_exchange) {
    volatile int *committed =
        mmap(NULL, sizeof *committed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(committed != MAP_FAILED);
    int at = 1;
    for (; run_until_killed(what, at, no_exchange, committed); at++) {
        expect_recovery(at, no_exchange, *committed);
        tree_clear(directory, 2);
    }
    assert_int_equal(*committed, SNAPSHOTS);
    assert_true(at > 100);
    munmap((void *)(uintptr_t)committed, sizeof *committed);
}

static void test_killed_before(void **unused) {
    (void)unused;
    killed_at_every_call(DIE_BEFORE, false);
}

static void test_killed_after(void **unused) {
    (void)unused;
    killed_at_every_call(DIE_AFTER, false);
}

static void test_killed_without_exchange(void **unused) {
    (void)unused;
    killed_at_every_call(DIE_BEFORE, true);
}

/* ---- failing --------------------------------------------------------------------------------- */

/* One snapshot with the fault. Returns whether the call was made. */
static bool write_with_fault(fault what, int at, bool no_exchange, int index) {
    dlx_error error = {0};
    faults_set(what, at, no_exchange);
    dlx_status status = write_next(index, &error);
    bool was_made = now.calls >= at, must_fail = now.must_fail;
    faults_set(NONE, 0, no_exchange);
    int found = newest_find();
    if (status == DLX_OK) {
        assert_false(must_fail);
        assert_int_equal(found, index);
    } else {
        assert_int_equal(status, DLX_SYSTEM);
        assert_true(error.system_errno == (at % 2 == 0 ? EIO : ENOSPC));
        assert_true(strstr(error.message, root) != NULL &&
                    strstr(error.message, strerror(error.system_errno)) != NULL);
        bool is_complete = strncmp(error.message, "the snapshot of step ", 21) == 0;
        assert_int_equal(found, is_complete ? index : index - 1);
    }
    return was_made;
}

static void failing_at_every_call(fault what, bool no_exchange) {
    dlx_error error;
    bool was_made = true;
    for (int at = 1; was_made; at++) {
        was_made = false;
        for (int index = 1; index < SNAPSHOTS; index++) { /* replaces, removes */
            faults_set(NONE, 0, no_exchange);
            for (int i = index < 3 ? 0 : index - 2; i < index; i++)
                if (write_next(i, &error) != DLX_OK) fail_msg("%s", error.message);
            was_made |= write_with_fault(what, at, no_exchange, index);
            assert_int_equal(dlxi_snapshot_tidy(directory, &error), DLX_OK);
            expect_tidy(KEEP + 1);
            tree_clear(directory, 2);
        }
    }
}

static void test_failing_once(void **unused) {
    (void)unused;
    failing_at_every_call(FAIL_ONCE, false);
}

/* A disk that is full from then on; commit's own repair may fail too. */
static void test_failing_from(void **unused) {
    (void)unused;
    failing_at_every_call(FAIL_FROM, false);
}

static void test_failing_without_exchange(void **unused) {
    (void)unused;
    failing_at_every_call(FAIL_ONCE, true);
}

/* ---- held ------------------------------------------------------------------------------------ */

/* wait returns while later parts are not written, and while the file is not flushed; it would hang
 * here if it waited for more. */
static void test_wait_is_short(void **unused) {
    (void)unused;
    dlx_part part[SAMPLE_PARTS];
    dlx_error error;
    sample_make(part, COLUMNS, 1, 0);
    for (int flush = 0; flush < 2; flush++) {
        dlxi_snapshot_writer *writer;
        char *description;
        faults_set(NONE, 0, false);
        assert_int_equal(sem_init(&hold.released, 0, 0), 0);
        hold.write = flush ? 0 : 1 + 2 + 1; /* behind the header and two parts */
        hold.flush = flush;
        assert_int_equal(
            dlxi_snapshot_begin(&writer, directory, 1, 0, 1, part, SAMPLE_PARTS, &error), DLX_OK);
        dlxi_snapshot_wait(writer, flush ? SAMPLE_PARTS : 2);
        assert_false(dlxi_snapshot_is_written(writer));
        sem_post(&hold.released);
        assert_int_equal(dlxi_snapshot_result(writer, &description, &error), DLX_OK);
        dlxi_snapshot_close(&writer);
        sem_destroy(&hold.released);
        free(description);
    }
    sample_free(part);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_killed_before), TEST(test_killed_after), TEST(test_killed_without_exchange),
        TEST(test_failing_once),  TEST(test_failing_from), TEST(test_failing_without_exchange),
        TEST(test_wait_is_short),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
