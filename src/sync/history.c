/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/history.h"

#include <stdlib.h>
#include <string.h>

static void entry_free(dlxi_entry *e) {
    if (e == NULL) return;
    for (int t = 0; t < DLXI_ENTRY_TRIPS; t++) {
        free(e->trips[t].segments);
        free(e->trips[t].codes);
    }
    free(e);
}

static size_t trip_bytes(const dlxi_entry_trip *t) {
    size_t groups = 0;
    for (size_t s = 0; s < t->segment_count; s++) groups += t->segments[s].groups;
    return groups * t->group_bytes;
}

static bool trip_copy(dlxi_entry_trip *to, const dlxi_entry_trip *from) {
    size_t bytes = trip_bytes(from), table_bytes = from->segment_count * sizeof *from->segments;
    *to = (dlxi_entry_trip){.segment_count = from->segment_count, .group_bytes = from->group_bytes};
    if (from->segment_count == 0) return true;
    to->segments = malloc(table_bytes);
    to->codes = malloc(bytes);
    if (to->segments == NULL || to->codes == NULL) return false;
    memcpy(to->segments, from->segments, table_bytes);
    memcpy(to->codes, from->codes, bytes);
    return true;
}

static void oldest_drop(dlxi_history *h) {
    dlxi_entry *e = h->oldest;
    h->oldest = e->next;
    if (h->oldest == NULL) h->newest = NULL;
    h->bytes -= e->bytes;
    entry_free(e);
}

void dlxi_history_keep(dlxi_history *h, uint64_t round, uint32_t lineage,
                       const dlxi_entry_trip trips[DLXI_ENTRY_TRIPS]) {
    dlxi_entry *e = calloc(1, sizeof *e);
    bool whole = e != NULL;
    for (int t = 0; t < DLXI_ENTRY_TRIPS && whole; t++) {
        whole = trip_copy(&e->trips[t], &trips[t]);
        e->bytes += trip_bytes(&trips[t]);
    }
    if (!whole) {
        entry_free(e);
        return;
    }
    e->round = round;
    e->lineage = lineage;
    while (h->oldest != NULL && h->bytes + e->bytes > h->bytes_max) oldest_drop(h);
    if (h->newest != NULL)
        h->newest->next = e;
    else
        h->oldest = e;
    h->newest = e;
    h->bytes += e->bytes;
}

void dlxi_history_clear(dlxi_history *h) {
    while (h->oldest != NULL) oldest_drop(h);
}

const dlxi_entry *dlxi_history_find(const dlxi_history *h, uint64_t round, uint32_t lineage) {
    const dlxi_entry *e = h->oldest;
    while (e != NULL && (e->round != round || e->lineage != lineage)) e = e->next;
    return e;
}

bool dlxi_history_differs(const dlxi_history *h, uint64_t round, uint32_t lineage) {
    const dlxi_entry *e = h->oldest;
    while (e != NULL && e->round != round) e = e->next;
    return e != NULL && e->lineage != lineage;
}

bool dlxi_entry_seek(const dlxi_entry *e, dlxi_entry_cursor *cursor, const dlxi_frame *fetch) {
    *cursor = (dlxi_entry_cursor){.trip = fetch->trip, .group = fetch->offset_groups};
    if (fetch->trip >= DLXI_ENTRY_TRIPS) return false;
    const dlxi_entry_trip *t = &e->trips[fetch->trip];
    while (cursor->segment < t->segment_count &&
           t->segments[cursor->segment].tensor < fetch->tensor)
        cursor->codes += t->segments[cursor->segment++].groups;
    return cursor->segment < t->segment_count &&
           t->segments[cursor->segment].tensor == fetch->tensor &&
           fetch->offset_groups < t->segments[cursor->segment].groups;
}

bool dlxi_entry_peek(const dlxi_entry *e, dlxi_entry_cursor *c, dlxi_frame *frame) {
    while (c->trip < DLXI_ENTRY_TRIPS) {
        const dlxi_entry_trip *t = &e->trips[c->trip];
        if (c->segment == t->segment_count) {
            *c = (dlxi_entry_cursor){.trip = (uint16_t)(c->trip + 1)};
            continue;
        }
        const dlxi_segment *s = &t->segments[c->segment];
        if (c->group == s->groups) {
            c->codes += s->groups;
            c->group = 0;
            c->segment++;
            continue;
        }
        uint32_t most = (uint32_t)(DLXI_FRAME_PAYLOAD_MAX / t->group_bytes);
        uint32_t count = s->groups - c->group < most ? s->groups - c->group : most;
        *frame = (dlxi_frame){.kind = DLXI_FRAME_ENTRY,
                              .round = e->round,
                              .tensor = s->tensor,
                              .trip = c->trip,
                              .offset_groups = c->group,
                              .count_groups = count,
                              .payload_bytes = (uint32_t)(count * t->group_bytes),
                              .payload = t->codes + (c->codes + c->group) * t->group_bytes};
        return true;
    }
    return false;
}

void dlxi_entry_advance(dlxi_entry_cursor *cursor, const dlxi_frame *frame) {
    cursor->group += frame->count_groups;
}
