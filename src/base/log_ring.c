/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log_ring.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/lines.h"
#include "base/memory.h"

typedef struct entry {
    uint64_t lost_before; /* lines, since the entry before */
    char line[DLXI_LINE_BYTES];
} entry;

struct dlxi_log_ring {
    dlx_log log;
    void *context;
    pthread_mutex_t mutex; /* guards what follows; not held while `log` runs */
    uint32_t first, count;
    uint64_t lost; /* since the last entry */
    entry entries[DLXI_LOG_RING_LINES];
    atomic_bool has_news; /* so that a step without news takes no lock */
};

dlx_status dlxi_log_ring_open(dlxi_log_ring **out, dlx_log log, void *context, dlx_error *error) {
    dlxi_log_ring *r;
    *out = NULL;
    if (log == NULL) return DLX_OK;
    DLX_TRY(DLXI_NEW(&r, 1, error));
    r->log = log;
    r->context = context;
    if (pthread_mutex_init(&r->mutex, NULL) != 0) {
        free(r);
        DLX_FAIL(error, SYSTEM, "cannot create a mutex");
    }
    *out = r;
    return DLX_OK;
}

void dlxi_log_ring_close(dlxi_log_ring **ring) {
    dlxi_log_ring *r = *ring;
    if (r == NULL) return;
    dlxi_log_ring_deliver(r);
    pthread_mutex_destroy(&r->mutex);
    free(r);
    *ring = NULL;
}

void dlxi_log_ring_add(void *ring, const char *line) {
    dlxi_log_ring *r = ring;
    if (r == NULL) return;
    pthread_mutex_lock(&r->mutex);
    if (r->count == DLXI_LOG_RING_LINES) {
        r->lost++;
    } else {
        entry *e = &r->entries[(r->first + r->count++) % DLXI_LOG_RING_LINES];
        e->lost_before = r->lost;
        r->lost = 0;
        dlxi_text_copy(e->line, sizeof e->line, line);
    }
    r->has_news = true;
    pthread_mutex_unlock(&r->mutex);
}

/* False: there is nothing. *lost ← how many lines are missing before `line`, which is "" if none
 * follows. */
static bool entry_take(dlxi_log_ring *r, uint64_t *lost, char line[DLXI_LINE_BYTES]) {
    line[0] = '\0';
    pthread_mutex_lock(&r->mutex);
    bool any = r->count > 0 || r->lost > 0;
    if (r->count > 0) {
        const entry *e = &r->entries[r->first];
        *lost = e->lost_before;
        dlxi_text_copy(line, DLXI_LINE_BYTES, e->line);
        r->first = (r->first + 1) % DLXI_LOG_RING_LINES;
        r->count--;
    } else {
        *lost = r->lost;
        r->lost = 0;
    }
    r->has_news = r->count > 0 || r->lost > 0;
    pthread_mutex_unlock(&r->mutex);
    return any;
}

void dlxi_log_ring_deliver(dlxi_log_ring *r) {
    uint64_t lost;
    char line[DLXI_LINE_BYTES], note[96];
    if (r == NULL) return;
    /* bounded: other threads add meanwhile */
    for (int i = 0; i <= DLXI_LOG_RING_LINES && r->has_news; i++) {
        if (!entry_take(r, &lost, line)) return;
        if (lost > 0) {
            snprintf(note, sizeof note,
                     "%llu line%s lost here: more than %d came between two calls",
                     (unsigned long long)lost, lost == 1 ? " was" : "s were", DLXI_LOG_RING_LINES);
            r->log(r->context, note);
        }
        if (line[0] != '\0') r->log(r->context, line);
    }
}
