/* SPDX-License-Identifier: Apache-2.0 */
#include "store/database.h"
#include "store/store.h"
#include "base/memory.h"
#include "base/panic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define APPLICATION_ID "1145854019" /* the bytes DLXC */
#define FORMAT_VERSION "1"
/* An older copy would not help: the sites refuse a coordinator that is behind them. */
#define NEXT_STEP                                                                                  \
    "move it away, then go on from what the sites have with --takeover, or from snapshots with "   \
    "--resume"

/* Hashes, devices and inodes are the bits of a u64 in SQLite's signed integers. */
static const char schema[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE state(id INTEGER PRIMARY KEY CHECK (id = 1), bytes BLOB NOT NULL,"
    " hash INTEGER NOT NULL) STRICT;"
    "CREATE TABLE record(round INTEGER PRIMARY KEY, bytes BLOB NOT NULL,"
    " hash INTEGER NOT NULL) STRICT;"
    "CREATE TABLE place(id INTEGER PRIMARY KEY CHECK (id = 1), machine INTEGER NOT NULL,"
    " host TEXT NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL,"
    " released INTEGER NOT NULL) STRICT;"
    "PRAGMA application_id = " APPLICATION_ID ";"
    "PRAGMA user_version = " FORMAT_VERSION ";";

static const char *const statement_sql[DLXI_STATEMENTS] = {
    [DLXI_READ_STATE] = "SELECT bytes, hash FROM state WHERE id = ?1",
    [DLXI_READ_RECORD] = "SELECT bytes, hash FROM record WHERE round = ?1",
    [DLXI_READ_PLACE] = "SELECT machine, host, device, inode, released FROM place WHERE id = 1",
    [DLXI_WRITE_STATE] = "REPLACE INTO state(id, bytes, hash) VALUES (?1, ?2, ?3)",
    [DLXI_WRITE_RECORD] = "REPLACE INTO record(round, bytes, hash) VALUES (?1, ?2, ?3)",
    [DLXI_WRITE_PLACE] = "REPLACE INTO place VALUES (1, ?1, ?2, ?3, ?4, ?5)",
};

/* ---- calls ----------------------------------------------------------------------------------- */

void dlxi_database_show(char *dst, size_t size, const char *text) {
    dlxi_text_copy(dst, size, text);
    for (char *c = dst; *c != '\0'; c++)
        if (*c < ' ' || *c > '~') *c = '?';
}

dlx_status dlxi_database_fail_damaged(const dlxi_database *d, const char *what, dlx_error *error) {
    DLX_FAIL(error, DATA, "%s: damaged: %s; " NEXT_STEP, d->path, what);
}

dlx_status dlxi_database_fail(dlxi_database *d, dlx_error *error) {
    int code = sqlite3_errcode(d->db) & 0xff;
    char what[128];
    dlxi_database_show(what, sizeof what, sqlite3_errmsg(d->db));
    d->is_over = true;
    errno = sqlite3_system_errno(d->db);
    switch (code) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        DLX_FAIL(error, STATE,
                 "%s: another process has it open (%s): a coordinator is running already; stop "
                 "that one first, or use another file",
                 d->path, what);
    case SQLITE_NOMEM:
        DLX_FAIL(error, MEMORY, "out of memory: %s: %s", d->path, what);
    case SQLITE_FULL:
        errno = ENOSPC;
        DLX_FAIL(error, SYSTEM, "%s: can't be written: %s; free some space on its disk", d->path,
                 what);
    case SQLITE_READONLY:
        if (errno == 0) errno = EACCES;
        DLX_FAIL(error, SYSTEM, "%s: can't be written: %s; make it and its directory writable",
                 d->path, what);
    case SQLITE_CANTOPEN: /* the file, or the journal beside it */
        DLX_FAIL(error, SYSTEM, "%s: can't be opened: %s (%s); make it and its directory writable",
                 d->path, what, strerror(errno));
    case SQLITE_NOTADB:
        DLX_FAIL(error, DATA, "%s: not a coordinator's store, or damaged: %s; " NEXT_STEP, d->path,
                 what);
    case SQLITE_ERROR: /* a table is missing */
    case SQLITE_CORRUPT:
    case SQLITE_TOOBIG:
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
        return dlxi_database_fail_damaged(d, what, error);
    default:
        DLX_FAIL(error, SYSTEM, "%s: the disk or file system failed: %s (%s)", d->path, what,
                 errno != 0 ? strerror(errno) : sqlite3_errstr(sqlite3_extended_errcode(d->db)));
    }
}

dlx_status dlxi_database_execute(dlxi_database *d, const char *sql, dlx_error *error) {
    return sqlite3_exec(d->db, sql, NULL, NULL, NULL) == SQLITE_OK ? DLX_OK
                                                                   : dlxi_database_fail(d, error);
}

/* dst ← the first column of the first row, as text. */
static dlx_status query(dlxi_database *d, char dst[128], const char *sql, dlx_error *error) {
    sqlite3_stmt *statement = NULL;
    dlx_status status = DLX_OK;
    dst[0] = '\0';
    if (sqlite3_prepare_v2(d->db, sql, -1, &statement, NULL) != SQLITE_OK ||
        sqlite3_step(statement) != SQLITE_ROW)
        status = dlxi_database_fail(d, error);
    else if (sqlite3_column_text(statement, 0) != NULL)
        dlxi_text_copy(dst, 128, (const char *)sqlite3_column_text(statement, 0));
    (void)sqlite3_finalize(statement); /* repeats the code of a step that failed */
    return status;
}

dlx_status dlxi_database_run(dlxi_database *d, int which, bool is_bound, dlx_error *error) {
    sqlite3_stmt *statement = d->statements[which];
    dlx_status status = DLX_OK;
    if (!is_bound || sqlite3_step(statement) != SQLITE_DONE) status = dlxi_database_fail(d, error);
    (void)sqlite3_reset(statement); /* repeats the code of the step */
    (void)sqlite3_clear_bindings(statement);
    return status;
}

dlx_status dlxi_database_check(const dlxi_database *d, dlx_error *error) {
    if (!d->is_over) return DLX_OK;
    DLX_FAIL(error, STATE, "%s: released, or a call on it failed; close it and open it again",
             d->path);
}

dlx_status dlxi_database_begin(dlxi_database *d, dlx_error *error) {
    int has_moved = 0;
    DLX_TRY(dlxi_database_check(d, error));
    if (sqlite3_file_control(d->db, "main", SQLITE_FCNTL_HAS_MOVED, &has_moved) != SQLITE_OK)
        return dlxi_database_fail(d, error);
    if (!has_moved) return dlxi_database_execute(d, "BEGIN IMMEDIATE", error);
    d->is_over = true;
    errno = ENOENT;
    DLX_FAIL(error, SYSTEM, "%s: was moved, removed or replaced while it was open", d->path);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* A file that exists is not opened here: closing it would drop a lock that this process has. */
static dlx_status file_create(char **absolute, const char *path, dlx_error *error) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
    else if (errno != EEXIST)
        DLX_FAIL(error, SYSTEM,
                 "%s: can't be created: %s; its directory must exist and be writable", path,
                 strerror(errno));
    *absolute = realpath(path, NULL);
    if (*absolute != NULL) return DLX_OK;
    DLX_FAIL(error, SYSTEM, "%s: can't be opened: %s", path, strerror(errno));
}

/* A transaction under this locking mode keeps its lock. The journal stays until close, too: a
 * commit overwrites its header. */
static dlx_status database_lock(dlxi_database *d, dlx_error *error) {
    char synchronous[128];
    if (sqlite3_open_v2(d->absolute, &d->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) !=
        SQLITE_OK)
        return dlxi_database_fail(d, error);
    sqlite3_limit(d->db, SQLITE_LIMIT_LENGTH, DLXI_STORE_BYTES_MAX + 4096);
    DLX_TRY(dlxi_database_execute(d,
                                  "PRAGMA trusted_schema = OFF; PRAGMA locking_mode = EXCLUSIVE;"
                                  "PRAGMA synchronous = EXTRA; BEGIN EXCLUSIVE; COMMIT",
                                  error));
    DLX_TRY(query(d, synchronous, "PRAGMA synchronous", error));
    DLXI_ASSERT(strcmp(synchronous, "3") == 0);
    if (sqlite3_db_readonly(d->db, "main") == 0) return DLX_OK;
    errno = EACCES;
    DLX_FAIL(error, SYSTEM, "%s: is read-only; make it and its directory writable", d->path);
}

/* Nothing is written before this holds. */
static dlx_status format_check(dlxi_database *d, dlx_error *error) {
    char text[128];
    DLX_TRY(query(d, text, "PRAGMA application_id", error));
    if (strcmp(text, APPLICATION_ID) != 0)
        DLX_FAIL(error, DATA, "%s: not a coordinator's store, or damaged; " NEXT_STEP, d->path);
    DLX_TRY(query(d, text, "PRAGMA user_version", error));
    if (strcmp(text, FORMAT_VERSION) != 0)
        DLX_FAIL(error, DATA, "%s: has version %.20s of the format; this program reads version %s",
                 d->path, text, FORMAT_VERSION);
    DLX_TRY(query(d, text, "PRAGMA quick_check(1)", error));
    if (strcmp(text, "ok") != 0) {
        const char *heading = strchr(text, '\n'); /* "*** in database main ***" */
        char what[128];
        dlxi_database_show(what, sizeof what, heading != NULL ? heading + 1 : text);
        return dlxi_database_fail_damaged(d, what, error);
    }
    DLX_TRY(query(d, text, "PRAGMA journal_mode = DELETE", error));
    if (strcmp(text, "delete") != 0)
        DLX_FAIL(error, SYSTEM, "%s: its journal mode stays '%.20s'", d->path, text);
    return DLX_OK;
}

static dlx_status statements_prepare(dlxi_database *d, dlx_error *error) {
    for (int i = 0; i < DLXI_STATEMENTS; i++)
        if (sqlite3_prepare_v3(d->db, statement_sql[i], -1, SQLITE_PREPARE_PERSISTENT,
                               &d->statements[i], NULL) != SQLITE_OK)
            return dlxi_database_fail(d, error);
    return DLX_OK;
}

dlx_status dlxi_database_open(dlxi_database *d, bool *is_new, const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    static const char is_used[] = /* 0 for a new file; SQLite's lock may have added a page */
        "SELECT count(*) + (SELECT application_id FROM pragma_application_id) FROM sqlite_schema";
    char used[128];
    *d = (dlxi_database){0};
    DLX_TRY(file_create(&d->absolute, path, error));
    DLX_TRY_OUT(DLXI_NEW(&d->path, strlen(path) + 1, error));
    memcpy(d->path, path, strlen(path));
    DLX_TRY_OUT(database_lock(d, error));
    DLX_TRY_OUT(query(d, used, is_used, error));
    *is_new = strcmp(used, "0") == 0;
    if (*is_new)
        DLX_TRY_OUT(dlxi_database_execute(d, schema, error));
    else
        DLX_TRY_OUT(format_check(d, error));
    DLX_TRY_OUT(statements_prepare(d, error));
out:
    if (status != DLX_OK) dlxi_database_close(d);
    return status;
}

void dlxi_database_close(dlxi_database *d) {
    for (int i = 0; i < DLXI_STATEMENTS; i++) (void)sqlite3_finalize(d->statements[i]);
    int code = sqlite3_close(d->db); /* rolls back */
    DLXI_ASSERT(code == SQLITE_OK);
    free(d->path);
    free(d->absolute);
    *d = (dlxi_database){0};
}
