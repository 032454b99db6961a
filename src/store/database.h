/* SPDX-License-Identifier: Apache-2.0 */
/* The SQLite database of a store: opening, locking, statements, and what its failures mean. */
#ifndef DLXI_STORE_DATABASE_H
#define DLXI_STORE_DATABASE_H

#include "base/error.h"

#include <sqlite3.h>

/* Reads select; writes replace. The parameters are those of statement_sql in database.c. */
enum {
    DLXI_READ_STATE,
    DLXI_READ_RECORD,
    DLXI_READ_PLACE,
    DLXI_WRITE_STATE,
    DLXI_WRITE_RECORD,
    DLXI_WRITE_PLACE,
    DLXI_STATEMENTS
};

typedef struct dlxi_database {
    sqlite3 *db;
    sqlite3_stmt *statements[DLXI_STATEMENTS];
    char *path, *absolute; /* as given, for messages; and without links */
    bool is_over;          /* released, or a call failed: only close is allowed */
} dlxi_database;

/* Opens, creates and locks as dlxi_store_open says. A new one is inside its first transaction,
 * which the caller commits. On failure there is nothing to close. */
dlx_status dlxi_database_open(dlxi_database *d, bool *is_new, const char *path, dlx_error *error);
void dlxi_database_close(dlxi_database *d);

/* dst[size] ← a text that may be from a damaged file, for a message: printable ASCII, in one line.
 */
void dlxi_database_show(char *dst, size_t size, const char *text);

/* DLX_DATA: what is wrong with the file, and what to do. */
dlx_status dlxi_database_fail_damaged(const dlxi_database *d, const char *what, dlx_error *error);

/* Fills error from the database's last call, which failed. Never DLX_OK; the database is over. */
dlx_status dlxi_database_fail(dlxi_database *d, dlx_error *error);

/* DLX_STATE if it is over. */
dlx_status dlxi_database_check(const dlxi_database *d, dlx_error *error);

/* SQL without rows or parameters. */
dlx_status dlxi_database_execute(dlxi_database *d, const char *sql, dlx_error *error);

/* A statement that writes; is_bound says whether all its parameters could be bound. */
dlx_status dlxi_database_run(dlxi_database *d, int which, bool is_bound, dlx_error *error);

/* Begins a transaction. DLX_SYSTEM if the file is no longer at its path: nobody would find what is
 * written. */
dlx_status dlxi_database_begin(dlxi_database *d, dlx_error *error);

#endif
