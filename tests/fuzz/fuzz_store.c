/* SPDX-License-Identifier: Apache-2.0 */
/* Damages a coordinator's store and opens it as a coordinator does that is started again. It gets
 * the run as it was, or a message that names the file; never another state.
 *
 * An input is a byte that says which store it is, as a run left it or with the journal of a
 * transaction that was not committed, and edits of STORE_EDIT_BYTES: what is done, to which file,
 * where, and with what. */
#include "recorded_run.h"
#include "base/file.h"
#include "store/store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <unistd.h>

enum {
    SITES = 3,
    ROUNDS = 5,          /* that the run has committed; each has its record */
    FILLERS = 12,        /* records of rounds that are not read, so that tables have many pages */
    FILLER_BYTES = 5000, /* of the largest, which is in overflow pages */
    PAGE_BYTES = 4096,   /* SQLite's default */
    SECTOR_BYTES = 512,
    IMAGE_MAX = 1 << 18,
    STORE_EDIT_BYTES = 8,
    STORE_EDITS_MAX = 8
};

typedef struct image {
    uint8_t bytes[IMAGE_MAX];
    size_t count;
} image;

/* As the run left it, and in a transaction. The first has no journal. */
static image clean[2], hot[2];
static dlx_hub *hub;
static char directory[64], path[2][128]; /* the database and its journal */

/* ---- files ----------------------------------------------------------------------------------- */

static void image_read(image *i, const char *name) {
    char *bytes;
    DLXI_ASSERT(dlxi_file_read(&bytes, &i->count, name, IMAGE_MAX, NULL) == DLX_OK);
    memcpy(i->bytes, bytes, i->count);
    free(bytes);
}

/* Into the same file, which is no copy then. */
static void image_write(const image *i, const char *name) {
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    DLXI_ASSERT(fd >= 0 && write(fd, i->bytes, i->count) == (ssize_t)i->count);
    close(fd);
}

static void files_remove(void) {
    for (int i = 0; i < 2; i++) unlink(path[i]);
    rmdir(directory);
    dlx_hub_close(&hub);
}

static void directory_make(void) {
    static const char *const parents[] = {"/dev/shm", "/tmp"}; /* which need not flush to a disk */
    for (int i = 0; i < 2 && directory[0] == '\0'; i++) {
        snprintf(directory, sizeof directory, "%s/dilocox_fuzz_store.XXXXXX", parents[i]);
        if (mkdtemp(directory) == NULL) directory[0] = '\0';
    }
    DLXI_ASSERT(directory[0] != '\0' && dlx_hub_open(&hub, NULL) == DLX_OK);
    snprintf(path[0], sizeof path[0], "%s/coordinator.db", directory);
    snprintf(path[1], sizeof path[1], "%s/coordinator.db-journal", directory);
    atexit(files_remove);
}

/* ---- a store --------------------------------------------------------------------------------- */

/* What the coordinator of a run has saved when so many rounds are committed. */
static void run_save(dlxi_store *store) {
    static recording unused;
    /* all sites train from the second turn on, and have more than the run's rounds to submit */
    static const run_settings settings = {
        .sites = SITES, .ranks = 1, .tensors = 1, .bits = 4, .late = 2};
    dlxi_coordinator_settings own = run_coordinator_settings(&settings);
    run r = {.s = &settings, .out = &unused, .of_coordinator = true};
    own.tokens_target = 10 * (ROUNDS + 1) * SITES;
    DLXI_ASSERT(dlxi_coordinator_open(&r.coordinator, &own, 0, NULL) == DLX_OK);
    for (uint16_t i = 0; i < SITES; i++) {
        r.peers[i] = run_lone_open(&settings, i, 0);
        r.peers[i]->on_send = run_send;
        r.peers[i]->context = &r;
    }
    while (dlxi_coordinator_round(r.coordinator) <= ROUNDS) {
        dlxi_saved saved;
        DLXI_ASSERT(!run_turn(&r, SITES) && r.turns < RUN_TURNS_MAX);
        if (!dlxi_coordinator_is_unsaved(r.coordinator)) continue;
        DLXI_ASSERT(dlxi_coordinator_save(r.coordinator, &saved, NULL) == DLX_OK);
        DLXI_ASSERT(dlxi_store_write(store, saved.state, saved.state_bytes, saved.round,
                                     saved.record, saved.record_bytes, NULL) == DLX_OK);
        dlxi_saved_release(&saved);
    }
    for (uint16_t i = 0; i < SITES; i++) lone_close(r.peers[i]);
    dlxi_coordinator_close(&r.coordinator);
}

static void fillers_write(dlxi_store *store) {
    static uint8_t filler[FILLER_BYTES], *state;
    size_t bytes;
    DLXI_ASSERT(dlxi_store_read(store, &state, &bytes, NULL) == DLX_OK);
    for (uint64_t i = 1; i <= FILLERS; i++) {
        size_t filler_bytes = FILLER_BYTES * i / FILLERS;
        memset(filler, (int)i, filler_bytes);
        DLXI_ASSERT(dlxi_store_write(store, state, bytes, 100 * i, filler, filler_bytes, NULL) ==
                    DLX_OK);
    }
    free(state);
}

/* The files while a transaction has written some of its pages. */
static void transaction_begin(void) {
    sqlite3 *db;
    DLXI_ASSERT(sqlite3_open(path[0], &db) == SQLITE_OK);
    DLXI_ASSERT(sqlite3_exec(db,
                             "PRAGMA cache_size = 2; BEGIN;"
                             "UPDATE state SET bytes = zeroblob(5000);"
                             "UPDATE record SET bytes = zeroblob(length(bytes) + 9)",
                             NULL, NULL, NULL) == SQLITE_OK);
    for (int i = 0; i < 2; i++) image_read(&hot[i], path[i]);
    DLXI_ASSERT(sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL) == SQLITE_OK);
    DLXI_ASSERT(sqlite3_close(db) == SQLITE_OK);
    DLXI_ASSERT(hot[1].count > 2 * PAGE_BYTES && hot[0].count >= clean[0].count);
    DLXI_ASSERT(memcmp(hot[0].bytes, clean[0].bytes, clean[0].count) != 0);
}

static void store_make(void) {
    dlxi_store *store;
    directory_make();
    DLXI_ASSERT(dlxi_store_open(&store, path[0], NULL) == DLX_OK);
    run_save(store);
    fillers_write(store);
    dlxi_store_close(&store);
    image_read(&clean[0], path[0]);
    transaction_begin();
}

/* ---- damage ---------------------------------------------------------------------------------- */

static void number_put(uint8_t *to, uint32_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; i--, value >>= 8) to[i] = (uint8_t)value;
}

static void edit(image *files, const uint8_t *e) {
    image *i = &files[e[1] % 4 == 3]; /* seldom the journal */
    uint8_t *bytes = i->bytes;
    uint32_t a = e[2] | (uint32_t)e[3] << 8 | (uint32_t)e[4] << 16,
             b = e[5] | (uint32_t)e[6] << 8 | (uint32_t)e[7] << 16;
    if (i->count < PAGE_BYTES) return;
    size_t pages = i->count / PAGE_BYTES, at = a % i->count;
    uint8_t *page = bytes + a % pages * PAGE_BYTES, *other = bytes + b % pages * PAGE_BYTES;
    uint8_t saved[PAGE_BYTES];
    switch (e[0] % 12) {
    case 0:
        bytes[at] ^= (uint8_t)(1u << b % 8);
        break;
    case 1:
        bytes[at] = (uint8_t)b;
        break;
    case 2: /* in what describes a page, or the file */
        page[b % 112] = (uint8_t)(b >> 8);
        break;
    case 3:
        number_put(page + b % 112, b >> 8, 2);
        break;
    case 4:
        number_put(bytes + (at < i->count - 4 ? at : 0), b, 4);
        break;
    case 5:
        i->count = at;
        break;
    case 6:
        i->count = at / PAGE_BYTES * PAGE_BYTES;
        break;
    case 7:
        memcpy(saved, page, PAGE_BYTES);
        memcpy(page, other, PAGE_BYTES);
        memcpy(other, saved, PAGE_BYTES);
        break;
    case 8:
        memmove(page, other, PAGE_BYTES);
        break;
    case 9:
        memset(page, (int)(b & 1 ? 0xff : 0), PAGE_BYTES);
        break;
    case 10:
        memset(bytes + at / SECTOR_BYTES * SECTOR_BYTES, (int)(b & 0xff), SECTOR_BYTES);
        break;
    default: /* more of it */
        b %= 2 * PAGE_BYTES;
        if (i->count + b > IMAGE_MAX) break;
        memset(bytes + i->count, (int)(a & 0xff), b);
        i->count += b;
    }
}

/* ---- opening --------------------------------------------------------------------------------- */

/* One line, which says where. */
static void check_message(dlx_status status, const dlx_error *error) {
    DLXI_ASSERT(status == DLX_DATA || status == DLX_STATE || status == DLX_SYSTEM);
    DLXI_ASSERT(strncmp(error->message, path[0], strlen(path[0])) == 0);
    DLXI_ASSERT(strlen(error->message) > strlen(path[0]) + 10);
    for (const char *c = error->message; *c != '\0'; c++)
        DLXI_ASSERT((unsigned char)*c >= ' ' && *c != 127);
}

/* What a coordinator that goes on does first. */
static void write_again(void) {
    dlxi_store *store;
    dlx_error error;
    dlx_status status = dlxi_store_open(&store, path[0], &error);
    DLXI_ASSERT(status == DLX_OK);
    status = dlxi_store_write(store, (const uint8_t *)"state", 5, ROUNDS + 1,
                              (const uint8_t *)"record", 6, &error);
    if (status != DLX_OK) check_message(status, &error);
    dlxi_store_close(&store);
}

/* Whether the run goes on. `may_be_new`: it may be taken for one that was never written. */
static bool open_store(bool may_be_new) {
    dlx_coordinator *c;
    dlx_error error = {.message = ""};
    dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;
    dlx_coordinator_statistics st = DLX_COORDINATOR_STATISTICS_INIT;
    config.link.hub = hub;
    config.sites = SITES;
    config.tokens = 1000;
    dlx_status status = dlx_coordinator_open_stored(&c, &config, path[0], &error);
    if (status != DLX_OK) {
        check_message(status, &error);
        return false;
    }
    bool goes_on = dlx_coordinator_was_restored(c);
    DLXI_ASSERT(goes_on || may_be_new);
    DLXI_ASSERT(dlx_coordinator_statistics_of(c, &st, NULL) == DLX_OK);
    DLXI_ASSERT(!goes_on || st.round == ROUNDS + 1);
    dlx_coordinator_close(&c);
    if (goes_on) write_again();
    return goes_on;
}

static bool run_input(const uint8_t *data, size_t bytes) {
    static image files[2];
    const image *journal = &files[1];
    if (clean[0].count == 0) store_make();
    if (bytes == 0) return false;
    memcpy(files, data[0] % 2 == 0 ? clean : hot, sizeof files);
    for (size_t at = 1, n = 0; n < STORE_EDITS_MAX && bytes - at >= STORE_EDIT_BYTES;
         at += STORE_EDIT_BYTES, n++)
        edit(files, data + at);
    unlink(path[1]);
    image_write(&files[0], path[0]);
    if (files[1].count > 0) image_write(&files[1], path[1]);
    /* a journal may say that there were no pages before the transaction, and has no checksum of
     * that: the sites notice, which know their coordinator */
    bool journal_is_whole =
        journal->count == 0 || (journal->count == hot[1].count &&
                                memcmp(journal->bytes, hot[1].bytes, journal->count) == 0);
    return open_store(files[0].count <= 1 || !journal_is_whole); /* 1: empty for SQLite, too */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    (void)run_input(data, bytes);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    enum { EDITS = 2, SEEDS = 7 };
    size_t bytes = 1 + EDITS * STORE_EDIT_BYTES;
    if (index >= 2 * SEEDS) return 0;
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)dlxi_rng_u64(1, (uint64_t)index, i);
    data[0] = (uint8_t)(index % 2);
    data[1] = (uint8_t)(index / 2);
    data[1 + STORE_EDIT_BYTES] = (uint8_t)(SEEDS + index / 2);
    /* both are read if nothing is wrong with them */
    if (index < 2) DLXI_ASSERT(run_input(data, 1));
    return bytes;
}
