/* SPDX-License-Identifier: Apache-2.0 */
#include "train/folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/name.h"
#include "options/options.h"
#include "train/results.h"

#define LOCK_NAME      ".lock"
#define STORE_NAME     "coordinator.db"
#define STORE_JOURNAL  STORE_NAME "-journal"
#define PREVIOUS       "previous-"
#define LOCK_ID_PREFIX "run "

enum { LOCK_TEXT_BYTES = 512, HOLDER_BYTES = 200, PREVIOUS_MAX = 1000000 };

void dlxi_run_id_show(char text[DLXI_RUN_ID_BYTES], uint64_t run_id) {
    snprintf(text, DLXI_RUN_ID_BYTES, "%016llx", (unsigned long long)run_id);
}

/* Of the run as a whole; each site has a directory. */
static bool is_run_result(const char *name) {
    return strcmp(name, "summary.json") == 0 || strcmp(name, "weights") == 0 ||
           strcmp(name, "metrics.jsonl") == 0;
}

const char *dlxi_folder_misnames(const char *site) {
    if (!dlxi_name_valid(site)) return DLXI_NAME_RULE;
    if (is_run_result(site) || strcmp(site, STORE_NAME) == 0 || strcmp(site, STORE_JOURNAL) == 0 ||
        strncmp(site, PREVIOUS, strlen(PREVIOUS)) == 0)
        return "weights, summary.json, metrics.jsonl, " STORE_NAME
               " and previous-… are other files of run.dir";
    return NULL;
}

/* ---- locks ----------------------------------------------------------------------------------- */

/* Of the open file, so that threads of one process exclude each other too, and a lock is exchanged
 * for the other kind in one step. */
static int lock_set(int fd, short type, bool wait) {
    struct flock whole = {.l_type = type, .l_whence = SEEK_SET};
    int got;
    do got = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &whole);
    while (got != 0 && errno == EINTR);
    return got;
}

/* The id of the run that a lock file names, 0 if it names none; and who began it. */
static uint64_t lock_read(int fd, char holder[HOLDER_BYTES]) {
    char text[LOCK_TEXT_BYTES];
    ssize_t got = pread(fd, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    snprintf(holder, HOLDER_BYTES, "another process");
    if (strncmp(text, LOCK_ID_PREFIX, strlen(LOCK_ID_PREFIX)) != 0) return 0;
    const char *id = text + strlen(LOCK_ID_PREFIX);
    const char *end = id + strspn(id, "0123456789abcdef");
    if (end - id != DLXI_RUN_ID_BYTES - 1 || *end != '\n') return 0;
    size_t characters = strcspn(end + 1, "\n");
    if (characters > 0) dlxi_option_show_text(holder, HOLDER_BYTES, end + 1, characters);
    return strtoull(id, NULL, 16);
}

static dlx_status lock_write(int fd, const char *run_dir, const char *who, uint64_t run_id,
                             dlx_error *error) {
    char text[LOCK_TEXT_BYTES], id[DLXI_RUN_ID_BYTES], host[65] = "", since[32] = "";
    time_t now = time(NULL);
    struct tm utc;
    if (gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
    if (gmtime_r(&now, &utc) != NULL)
        (void)strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", &utc);
    dlxi_run_id_show(id, run_id);
    int bytes = snprintf(text, sizeof text,
                         LOCK_ID_PREFIX "%s\n%s (process %ld on host %s, since "
                                        "%s)\n",
                         id, who, (long)getpid(), host, since);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)bytes, 0) != bytes)
        DLX_FAIL(error, SYSTEM, "%s/" LOCK_NAME ": cannot write: %s", run_dir, strerror(errno));
    return DLX_OK;
}

static dlx_status fail_in_use(const char *run_dir, const char *holder, dlx_error *error) {
    DLX_FAIL(error, CONFIG,
             "run.dir: '%.100s' is in use by %s; wait until that run ends, or set another run.dir",
             run_dir, holder);
}

/* ---- checking -------------------------------------------------------------------------------- */

static dlx_status fail_unusable(const char *path, const char *part, const char *why,
                                dlx_error *error) {
    DLX_FAIL(error, CONFIG,
             "run.dir: '%.100s' can't be used: '%.100s': %s; set a directory that can be written",
             path, part, why);
}

/* The nearest directory that exists must take new files. */
static dlx_status writable_check(const char *path, dlx_error *error) {
    char part[DLXI_PATH_BYTES];
    struct stat facts;
    dlxi_text_copy(part, sizeof part, path);
    while (stat(part, &facts) != 0) {
        if (errno != ENOENT) return fail_unusable(path, part, strerror(errno), error);
        if (lstat(part, &facts) == 0) {
            if (!S_ISLNK(facts.st_mode)) continue; /* another process has just made it */
            return fail_unusable(path, part, "a link to a file that does not exist", error);
        }
        size_t length = strlen(part);
        while (length > 0 && part[length - 1] == '/') length--;
        while (length > 0 && part[length - 1] != '/') length--;
        if (length == 0)
            dlxi_text_copy(part, sizeof part, ".");
        else
            part[length] = '\0';
    }
    if (!S_ISDIR(facts.st_mode)) return fail_unusable(path, part, "not a directory", error);
    if (faccessat(AT_FDCWD, part, W_OK | X_OK, AT_EACCESS) != 0)
        return fail_unusable(path, part, strerror(errno), error);
    return DLX_OK;
}

/* Asks for the lock without taking it. */
dlx_status dlxi_folder_check_unused(const char *run_dir, uint64_t run_id, dlx_error *error) {
    char path[DLXI_PATH_BYTES], holder[HOLDER_BYTES];
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    DLX_TRY(dlxi_path_join(path, run_dir, LOCK_NAME, error));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return DLX_OK;
    if (fd < 0) return fail_unusable(run_dir, path, strerror(errno), error);
    bool taken = fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
    uint64_t id = lock_read(fd, holder);
    close(fd);
    return taken && (id == 0 || id != run_id) ? fail_in_use(run_dir, holder, error) : DLX_OK;
}

/* In whatever way it is written. */
static bool is_root(const char *path) {
    struct stat own, root;
    return stat(path, &own) == 0 && stat("/", &root) == 0 && own.st_dev == root.st_dev &&
           own.st_ino == root.st_ino;
}

dlx_status dlxi_folder_check_writable(const char *run_dir, const char *site, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    if (is_root(run_dir))
        DLX_FAIL(error, CONFIG,
                 "run.dir: '%.100s' is the root of the file system; set a directory of the run's "
                 "own",
                 run_dir);
    DLX_TRY(writable_check(run_dir, error));
    if (site != NULL) {
        DLX_TRY(dlxi_path_join(path, run_dir, site, error));
        DLX_TRY(writable_check(path, error));
    }
    return DLX_OK;
}

dlx_status dlxi_folder_check(const char *run_dir, const char *site, dlx_error *error) {
    DLX_TRY(dlxi_folder_check_writable(run_dir, site, error));
    return dlxi_folder_check_unused(run_dir, 0, error);
}

/* ---- the coordinator's store ----------------------------------------------------------------- */

dlx_status dlxi_folder_store(char path[DLXI_PATH_BYTES], bool *found, const char *run_dir,
                             dlx_error *error) {
    struct stat facts;
    DLX_TRY(dlxi_path_join(path, run_dir, STORE_NAME, error));
    *found = lstat(path, &facts) == 0;
    return DLX_OK;
}

void dlxi_folder_store_remove(const char *path) {
    char journal[DLXI_PATH_BYTES + 16];
    snprintf(journal, sizeof journal, "%s-journal", path);
    /* the file first: a journal without it means nothing */
    if (unlink(path) == 0) (void)unlink(journal);
}

/* A journal that is left is of the file that has its name. */
static void journal_rename(const char *from, const char *to) {
    char from_journal[DLXI_PATH_BYTES + 16], to_journal[DLXI_PATH_BYTES + 16];
    snprintf(from_journal, sizeof from_journal, "%s-journal", from);
    snprintf(to_journal, sizeof to_journal, "%s-journal", to);
    (void)rename(from_journal, to_journal);
}

dlx_status dlxi_folder_store_put_aside(char aside[DLXI_PATH_BYTES], const char *path,
                                       dlx_error *error) {
    DLX_TRY(dlxi_file_put_aside(aside, path, error));
    journal_rename(path, aside);
    return DLX_OK;
}

void dlxi_folder_store_put_back(const char *aside, const char *path) {
    if (renameat2(AT_FDCWD, aside, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
        journal_rename(aside, path);
}

/* ---- earlier results ------------------------------------------------------------------------- */

/* Whether an entry of run.dir is a run's: a directory with metrics is a site's. */
static bool is_result(const char *run_dir, const char *name) {
    char path[DLXI_PATH_BYTES];
    if (is_run_result(name)) return true;
    if (dlxi_folder_misnames(name) != NULL) return false;
    int length = snprintf(path, sizeof path, "%s/%s/metrics.jsonl", run_dir, name);
    return length > 0 && length < (int)sizeof path && access(path, F_OK) == 0;
}

static dlx_status previous_make(char path[DLXI_PATH_BYTES], const char *run_dir, dlx_error *error) {
    char name[32];
    for (int i = 1; i <= PREVIOUS_MAX; i++) {
        snprintf(name, sizeof name, PREVIOUS "%d", i);
        DLX_TRY(dlxi_path_join(path, run_dir, name, error));
        if (mkdir(path, 0777) == 0) return DLX_OK;
        if (errno != EEXIST) break;
    }
    DLX_FAIL(error, SYSTEM, "%s: cannot make this directory, for the results of the run before: %s",
             path, strerror(errno));
}

static dlx_status result_move(const char *to, const char *run_dir, const char *name,
                              dlx_error *error) {
    char old[DLXI_PATH_BYTES], new[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_path_join(old, run_dir, name, error));
    DLX_TRY(dlxi_path_join(new, to, name, error));
    if (rename(old, new) != 0)
        DLX_FAIL(error, SYSTEM, "%s: cannot move this result of the run before to '%.100s': %s",
                 old, to, strerror(errno));
    return DLX_OK;
}

/* Lists before it moves: readdir is undefined while a directory changes. */
static dlx_status previous_keep(char to[DLXI_PATH_BYTES], const char *run_dir, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **entry = NULL;
    int count = scandir(run_dir, &entry, NULL, NULL);
    if (count < 0)
        DLX_FAIL(error, SYSTEM, "%s: cannot list this directory: %s", run_dir, strerror(errno));
    for (int i = 0; i < count; i++) {
        if (!is_result(run_dir, entry[i]->d_name)) continue;
        if (to[0] == '\0') DLX_TRY_OUT(previous_make(to, run_dir, error));
        DLX_TRY_OUT(result_move(to, run_dir, entry[i]->d_name, error));
    }
out:
    for (int i = 0; i < count; i++) free(entry[i]);
    free(entry);
    return status;
}

/* ---- entering -------------------------------------------------------------------------------- */

/* Whether this process has the directory for itself, locked, or shares it with its run; or there
 * are no locks on this file system. */
typedef enum folder_hold { FIRST, SHARED, UNLOCKED } folder_hold;

static dlx_status folder_lock(folder_hold *hold, int fd, const char *run_dir, uint64_t run_id,
                              dlx_error *error) {
    char holder[HOLDER_BYTES];
    for (int attempt = 0; attempt < 2; attempt++) {
        *hold = FIRST;
        if (lock_set(fd, F_WRLCK, false) == 0) return DLX_OK;
        *hold = UNLOCKED;
        if (errno != EAGAIN && errno != EACCES) return DLX_OK;
        *hold = SHARED;
        /* the first process of a run has it exclusively for a moment */
        if (attempt == 0 && lock_set(fd, F_RDLCK, true) != 0)
            DLX_FAIL(error, SYSTEM, "%s/" LOCK_NAME ": cannot lock: %s", run_dir, strerror(errno));
        if (lock_read(fd, holder) == run_id) return DLX_OK;
        /* the run that it names may have ended in this moment */
    }
    return fail_in_use(run_dir, holder, error);
}

static dlx_status folder_take(int fd, const char *run_dir, const char *who, uint64_t run_id,
                              dlx_log log, void *log_context, dlx_error *error) {
    char holder[HOLDER_BYTES], previous[DLXI_PATH_BYTES] = "", text[DLXI_PATH_BYTES + 64];
    if (lock_read(fd, holder) == run_id) return DLX_OK; /* a process of this run came and went */
    DLX_TRY(lock_write(fd, run_dir, who, run_id, error));
    DLX_TRY(previous_keep(previous, run_dir, error));
    snprintf(text, sizeof text, "the results of the run before are now in %s", previous);
    if (previous[0] != '\0') log(log_context, text);
    return DLX_OK;
}

dlx_status dlxi_folder_enter(dlxi_folder *out, const char *run_dir, const char *who,
                             uint64_t run_id, dlx_log log, void *log_context, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    folder_hold hold;
    DLX_TRY(dlxi_directory_make(run_dir, error));
    DLX_TRY(dlxi_path_join(path, run_dir, LOCK_NAME, error));
    out->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (out->lock < 0) DLX_FAIL(error, SYSTEM, "%s: cannot write: %s", path, strerror(errno));
    DLX_TRY(folder_lock(&hold, out->lock, run_dir, run_id, error));
    if (hold == UNLOCKED)
        log(log_context, "the file system of run.dir has no locks: start no other run in it");
    if (hold != SHARED)
        DLX_TRY(folder_take(out->lock, run_dir, who, run_id, log, log_context, error));
    if (hold == FIRST && lock_set(out->lock, F_RDLCK, false) != 0)
        DLX_FAIL(error, SYSTEM, "%s: cannot lock: %s", path, strerror(errno));
    return DLX_OK;
}

void dlxi_folder_leave(dlxi_folder *folder) {
    if (folder->lock >= 0) close(folder->lock);
    folder->lock = -1;
}
