/* SPDX-License-Identifier: Apache-2.0 */
/* The results of the last committed rounds, as codes: for sites that were not in them. Pure. */
#ifndef DLXI_SYNC_HISTORY_H
#define DLXI_SYNC_HISTORY_H

#include "sync/allreduce.h"

enum { DLXI_ENTRY_TRIPS = 3 };

typedef struct dlxi_entry_trip {
    dlxi_segment *segments; /* [segment_count], tensors ascending; of an empty trip none */
    size_t segment_count, group_bytes;
    uint8_t *codes; /* [Σ groups · group_bytes] */
} dlxi_entry_trip;

typedef struct dlxi_entry {
    struct dlxi_entry *next; /* a later round */
    uint64_t round;
    uint32_t lineage; /* of the coordinator that committed it (dlxi_lineage_of) */
    size_t bytes;
    dlxi_entry_trip trips[DLXI_ENTRY_TRIPS];
} dlxi_entry;

typedef struct dlxi_history {
    dlxi_entry *oldest, *newest;
    size_t bytes, bytes_max; /* of codes; the newest entry is always kept */
} dlxi_history;

/* Copies. Rounds ascend. Without memory the entry is not kept. */
void dlxi_history_keep(dlxi_history *h, uint64_t round, uint32_t lineage,
                       const dlxi_entry_trip trips[DLXI_ENTRY_TRIPS]);
void dlxi_history_clear(dlxi_history *h);
const dlxi_entry *dlxi_history_find(const dlxi_history *h, uint64_t round, uint32_t lineage);
/* Whether that round is kept, and is of another one. */
bool dlxi_history_differs(const dlxi_history *h, uint64_t round, uint32_t lineage);

/* Where a reader of an entry is. */
typedef struct dlxi_entry_cursor {
    uint16_t trip;
    size_t segment;
    uint32_t group; /* of the segment */
    uint64_t codes; /* groups of the trip before this segment */
} dlxi_entry_cursor;

/* To where a FETCH frame asks for; false: there is no such place. */
bool dlxi_entry_seek(const dlxi_entry *e, dlxi_entry_cursor *cursor, const dlxi_frame *fetch);
/* *frame ← the next part: kind, round, tensor, trip, groups and payload; false at the end. */
bool dlxi_entry_peek(const dlxi_entry *e, dlxi_entry_cursor *cursor, dlxi_frame *frame);
void dlxi_entry_advance(dlxi_entry_cursor *cursor, const dlxi_frame *frame);

#endif
