/* SPDX-License-Identifier: Apache-2.0 */
#include "store/store.h"
#include "store/database.h"
#include "store/place.h"
#include "base/hash.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { STATE_KEY = 1 };

struct dlxi_store {
    dlxi_database d;
    dlxi_place left, here; /* where the file was left, and where it is */
    bool is_released, is_empty, is_relaxed;
};

/* ---- blobs and the place --------------------------------------------------------------------- */

static dlx_status blob_write(dlxi_store *s, int which, uint64_t key, const uint8_t *data,
                             size_t bytes, dlx_error *error) {
    sqlite3_stmt *statement = s->d.statements[which];
    uint64_t hash = dlxi_hash(data, bytes, key);
    bool is_bound = sqlite3_bind_int64(statement, 1, (sqlite3_int64)key) == SQLITE_OK &&
                    sqlite3_bind_blob64(statement, 2, bytes > 0 ? (const void *)data : "", bytes,
                                        SQLITE_STATIC) == SQLITE_OK &&
                    sqlite3_bind_int64(statement, 3, (sqlite3_int64)hash) == SQLITE_OK;
    return dlxi_database_run(&s->d, which, is_bound, error);
}

/* *found is false, without an error, if there is none. */
static dlx_status blob_read(dlxi_store *s, int which, uint64_t key, bool *found, uint8_t **out,
                            size_t *bytes, dlx_error *error) {
    sqlite3_stmt *statement = s->d.statements[which];
    dlx_status status = DLX_OK;
    *found = false;
    *out = NULL;
    *bytes = 0;
    int code = sqlite3_bind_int64(statement, 1, (sqlite3_int64)key);
    if (code == SQLITE_OK) code = sqlite3_step(statement);
    if (code == SQLITE_DONE) goto out;
    if (code != SQLITE_ROW) DLX_TRY_OUT(dlxi_database_fail(&s->d, error));
    const void *data = sqlite3_column_blob(statement, 0); /* NULL if it is empty */
    size_t data_bytes = (size_t)sqlite3_column_bytes(statement, 0);
    uint64_t hash = (uint64_t)sqlite3_column_int64(statement, 1);
    if (data == NULL && data_bytes > 0) DLX_TRY_OUT(dlxi_database_fail(&s->d, error));
    if (data_bytes > DLXI_STORE_BYTES_MAX || dlxi_hash(data, data_bytes, key) != hash)
        DLX_TRY_OUT(dlxi_database_fail_damaged(&s->d,
                                               which == DLXI_READ_STATE
                                                   ? "the state has a wrong checksum"
                                                   : "the record of a round has a wrong checksum",
                                               error));
    DLX_TRY_OUT(DLXI_NEW(out, data_bytes, error));
    if (data != NULL) memcpy(*out, data, data_bytes);
    *bytes = data_bytes;
    *found = true;
out:
    (void)sqlite3_reset(statement); /* repeats the code of the step */
    return status;
}

static dlx_status place_write(dlxi_store *s, const dlxi_place *place, bool is_released,
                              dlx_error *error) {
    sqlite3_stmt *statement = s->d.statements[DLXI_WRITE_PLACE];
    bool is_bound = sqlite3_bind_int64(statement, 1, (sqlite3_int64)place->machine) == SQLITE_OK &&
                    sqlite3_bind_text(statement, 2, place->host, -1, SQLITE_STATIC) == SQLITE_OK &&
                    sqlite3_bind_int64(statement, 3, (sqlite3_int64)place->device) == SQLITE_OK &&
                    sqlite3_bind_int64(statement, 4, (sqlite3_int64)place->inode) == SQLITE_OK &&
                    sqlite3_bind_int(statement, 5, is_released) == SQLITE_OK;
    return dlxi_database_run(&s->d, DLXI_WRITE_PLACE, is_bound, error);
}

static dlx_status place_read(dlxi_store *s, dlx_error *error) {
    sqlite3_stmt *statement = s->d.statements[DLXI_READ_PLACE];
    dlx_status status = DLX_OK;
    int code = sqlite3_step(statement);
    if (code == SQLITE_DONE)
        DLX_TRY_OUT(dlxi_database_fail_damaged(&s->d, "it has no place", error));
    if (code != SQLITE_ROW) DLX_TRY_OUT(dlxi_database_fail(&s->d, error));
    const char *host = (const char *)sqlite3_column_text(statement, 1);
    if (host == NULL) DLX_TRY_OUT(dlxi_database_fail(&s->d, error));
    dlxi_database_show(s->left.host, sizeof s->left.host, host);
    s->left.machine = (uint64_t)sqlite3_column_int64(statement, 0);
    s->left.device = (uint64_t)sqlite3_column_int64(statement, 2);
    s->left.inode = (uint64_t)sqlite3_column_int64(statement, 3);
    s->is_released = sqlite3_column_int(statement, 4) != 0;
out:
    (void)sqlite3_reset(statement);
    return status;
}

/* ---- opening and use ------------------------------------------------------------------------- */

dlx_status dlxi_store_open(dlxi_store **out, const char *path, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_store *s = NULL;
    uint8_t *state = NULL;
    size_t bytes;
    bool is_new, found;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&s, 1, error));
    DLX_TRY_OUT(dlxi_database_open(&s->d, &is_new, path, error));
    DLX_TRY_OUT(dlxi_place_here(&s->here, s->d.absolute, error));
    if (is_new) {
        DLX_TRY_OUT(place_write(s, &s->here, false, error));
        DLX_TRY_OUT(dlxi_database_execute(&s->d, "COMMIT", error));
    }
    DLX_TRY_OUT(place_read(s, error));
    DLX_TRY_OUT(blob_read(s, DLXI_READ_STATE, STATE_KEY, &found, &state, &bytes, error));
    s->is_empty = !found;
    *out = s;
    s = NULL;
out:
    free(state);
    dlxi_store_close(&s);
    return status;
}

void dlxi_store_close(dlxi_store **store) {
    if (*store == NULL) return;
    dlxi_database_close(&(*store)->d);
    free(*store);
    *store = NULL;
}

bool dlxi_store_is_empty(const dlxi_store *s) {
    return s->is_empty;
}

bool dlxi_store_is_continuous(const dlxi_store *s, char why[DLXI_WHY_BYTES]) {
    return dlxi_place_is_same(&s->left, s->is_released ? &s->left : &s->here, why);
}

dlx_status dlxi_store_read(dlxi_store *s, uint8_t **state, size_t *bytes, dlx_error *error) {
    bool found;
    *state = NULL;
    *bytes = 0;
    DLX_TRY(dlxi_database_check(&s->d, error));
    DLX_TRY(blob_read(s, DLXI_READ_STATE, STATE_KEY, &found, state, bytes, error));
    if (!found) DLX_FAIL(error, STATE, "%s: has no state yet", s->d.path);
    return DLX_OK;
}

dlx_status dlxi_store_record(dlxi_store *s, uint64_t round, uint8_t **record, size_t *bytes,
                             dlx_error *error) {
    bool found;
    *record = NULL;
    *bytes = 0;
    DLX_TRY(dlxi_database_check(&s->d, error));
    DLX_TRY(blob_read(s, DLXI_READ_RECORD, round, &found, record, bytes, error));
    if (!found)
        DLX_FAIL(error, STATE, "%s: has no record of round %llu", s->d.path,
                 (unsigned long long)round);
    return DLX_OK;
}

dlx_status dlxi_store_set_durable(dlxi_store *s, bool durable, dlx_error *error) {
    DLX_TRY(dlxi_database_check(&s->d, error));
    if (durable != s->is_relaxed) return DLX_OK;
    DLX_TRY(dlxi_database_execute(
        &s->d, durable ? "PRAGMA synchronous = EXTRA" : "PRAGMA synchronous = OFF", error));
    s->is_relaxed = !durable;
    return DLX_OK;
}

dlx_status dlxi_store_write(dlxi_store *s, const uint8_t *state, size_t bytes, uint64_t round,
                            const uint8_t *record, size_t record_bytes, dlx_error *error) {
    size_t largest = record != NULL && record_bytes > bytes ? record_bytes : bytes;
    if (largest > DLXI_STORE_BYTES_MAX)
        DLX_FAIL(error, ARGUMENT, "%s: %zu bytes to write; allowed: up to %d", s->d.path, largest,
                 DLXI_STORE_BYTES_MAX);
    DLX_TRY(dlxi_database_begin(&s->d, error));
    DLX_TRY(blob_write(s, DLXI_WRITE_STATE, STATE_KEY, state, bytes, error));
    if (record != NULL)
        DLX_TRY(blob_write(s, DLXI_WRITE_RECORD, round, record, record_bytes, error));
    if (s->is_released) DLX_TRY(place_write(s, &s->here, false, error));
    DLX_TRY(dlxi_database_execute(&s->d, "COMMIT", error));
    if (s->is_released) s->left = s->here;
    s->is_released = false;
    s->is_empty = false;
    return DLX_OK;
}

dlx_status dlxi_store_adopt(dlxi_store *s, dlx_error *error) {
    DLX_TRY(dlxi_database_begin(&s->d, error));
    DLX_TRY(place_write(s, &s->here, false, error));
    DLX_TRY(dlxi_database_execute(&s->d, "COMMIT", error));
    s->left = s->here;
    s->is_released = false;
    return DLX_OK;
}

/* Its commit deletes the journal and unlocks, since the locking mode is normal then. A copy that
 * was opened by mistake stays one. */
dlx_status dlxi_store_release(dlxi_store *s, dlx_error *error) {
    char why[DLXI_WHY_BYTES];
    bool is_continuous = dlxi_store_is_continuous(s, why);
    DLX_TRY(dlxi_store_set_durable(s, true, error));
    DLX_TRY(dlxi_database_execute(&s->d, "PRAGMA locking_mode = NORMAL", error));
    DLX_TRY(dlxi_database_begin(&s->d, error));
    DLX_TRY(place_write(s, &s->left, is_continuous, error));
    DLX_TRY(dlxi_database_execute(&s->d, "COMMIT", error));
    s->is_released = is_continuous;
    s->d.is_over = true;
    return DLX_OK;
}
