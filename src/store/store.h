/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's durable store: its newest state, and a record per round, in one SQLite file. It
 * does not interpret either. docs/formats.md has the tables. */
#ifndef DLXI_STORE_STORE_H
#define DLXI_STORE_STORE_H

#include "base/error.h"

/* Of a state, and of a record. The largest state has the reports of all sites. */
enum { DLXI_STORE_BYTES_MAX = 8 << 20 };

/* One thread at a time. Calls block while the disk works. While a store is open, its process must
 * not open and close the file by other means: the kernel would drop the lock. A child of fork must
 * not use it. */
typedef struct dlxi_store dlxi_store;

/* Opens the file, or creates it (mode 0600), checks all of it, and locks it until close. DLX_STATE
 * if it is open already, DLX_DATA if it is not a store or is damaged, DLX_SYSTEM if it can't be
 * opened, created or locked. */
dlx_status dlxi_store_open(dlxi_store **out, const char *path, dlx_error *error);

/* Whether no state was ever written. */
bool dlxi_store_is_empty(const dlxi_store *s);

/* Whether the file is where its coordinator left it: on the same machine, device and inode as when
 * it was created or last adopted, or anywhere after a release. If not, `why` gets one sentence for
 * a person. A copy put back over the same inode is not noticed. */
bool dlxi_store_is_continuous(const dlxi_store *s, char why[256]);

/* *state ← the newest one, the caller's, to be freed with free(). DLX_STATE if the store is empty,
 * DLX_DATA if its checksum is wrong. */
dlx_status dlxi_store_read(dlxi_store *s, uint8_t **state, size_t *bytes, dlx_error *error);

/* Replaces the state and, if record is not NULL, adds or replaces the record of this round: one
 * transaction, on the disk when the call returns (see dlxi_store_set_durable). If the store was
 * released, this is its place from now on. DLX_ARGUMENT: larger than DLXI_STORE_BYTES_MAX, and
 * nothing happened. After any other failure (DLX_SYSTEM: disk full, …) the store can only be
 * closed, and the next open finds the old state or the new one: after a failed fsync a second one
 * proves nothing. */
dlx_status dlxi_store_write(dlxi_store *s, const uint8_t *state, size_t bytes, uint64_t round,
                            const uint8_t *record, size_t record_bytes, dlx_error *error);

/* Whether the disk is waited for: at first, and after a release, it is. If not, what is written
 * survives the end of this process, by whatever signal, but after a power cut the file may be older
 * than what was written, or damaged. Failures as those of dlxi_store_write. */
dlx_status dlxi_store_set_durable(dlxi_store *s, bool durable, dlx_error *error);

/* *record ← that of the round, as dlxi_store_read. DLX_STATE if there is none. */
dlx_status dlxi_store_record(dlxi_store *s, uint64_t round, uint8_t **record, size_t *bytes,
                             dlx_error *error);

/* A clean stop: the file may be opened elsewhere, and has no journal beside it. Unlocks it; the
 * store can only be closed then. One that was not continuous stays so. */
dlx_status dlxi_store_release(dlxi_store *s, dlx_error *error);

/* This machine and file are its place from now on. Failures as those of dlxi_store_write. */
dlx_status dlxi_store_adopt(dlxi_store *s, dlx_error *error);

void dlxi_store_close(dlxi_store **s);

#endif
