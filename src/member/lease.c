/* SPDX-License-Identifier: Apache-2.0 */
#include "member/lease.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/panic.h"

/* Free ranges below the cursor, ascending, disjoint and not adjacent; everything from the cursor on
 * is free. A range that does not fit into the full list is not trained on. */
enum { FREE_MAX = 4096 };

struct dlxi_ledger {
    uint64_t cursor;
    size_t free_count;
    dlxi_range free[FREE_MAX];
};

dlx_status dlxi_ledger_open(dlxi_ledger **out, dlx_error *error) {
    return DLXI_NEW(out, 1, error);
}

void dlxi_ledger_close(dlxi_ledger **ledger) {
    free(*ledger);
    *ledger = NULL;
}

static void free_range_remove(dlxi_ledger *ledger, size_t at) {
    ledger->free_count--;
    memmove(&ledger->free[at], &ledger->free[at + 1],
            (ledger->free_count - at) * sizeof *ledger->free);
}

static void range_release(dlxi_ledger *ledger, uint64_t first, uint32_t count) {
    size_t at = 0;
    while (at < ledger->free_count && ledger->free[at].first < first) at++;
    dlxi_range *before = at > 0 ? &ledger->free[at - 1] : NULL;
    dlxi_range *after = at < ledger->free_count ? &ledger->free[at] : NULL;
    bool joins_before = before != NULL && before->first + before->count == first &&
                        before->count <= UINT32_MAX - count;
    bool joins_after =
        after != NULL && first + count == after->first && after->count <= UINT32_MAX - count;
    if (joins_before) {
        before->count += count;
        if (joins_after && before->count <= UINT32_MAX - after->count) {
            before->count += after->count;
            free_range_remove(ledger, at);
        }
    } else if (joins_after) {
        after->first = first;
        after->count += count;
    } else if (ledger->free_count < FREE_MAX) {
        memmove(&ledger->free[at + 1], &ledger->free[at],
                (ledger->free_count - at) * sizeof *ledger->free);
        ledger->free[at] = (dlxi_range){first, count};
        ledger->free_count++;
    }
}

void dlxi_ledger_grant(dlxi_ledger *ledger, dlxi_lease *lease, uint64_t submission,
                       uint32_t windows) {
    lease->submission = submission;
    lease->range_count = 0;
    dlxi_ledger_extend(ledger, lease, windows);
}

void dlxi_ledger_extend(dlxi_ledger *ledger, dlxi_lease *lease, uint32_t windows) {
    /* the last place is kept for the open end */
    while (windows > 0 && ledger->free_count > 0 &&
           lease->range_count < DLXI_LEASE_RANGES_MAX - 1) {
        dlxi_range *from = &ledger->free[0];
        uint32_t count = from->count < windows ? from->count : windows;
        lease->ranges[lease->range_count++] = (dlxi_range){from->first, count};
        windows -= count;
        from->first += count;
        from->count -= count;
        if (from->count == 0) free_range_remove(ledger, 0);
    }
    if (windows > 0 && lease->range_count < DLXI_LEASE_RANGES_MAX) {
        lease->ranges[lease->range_count++] = (dlxi_range){ledger->cursor, windows};
        ledger->cursor += windows;
    }
}

void dlxi_ledger_settle(dlxi_ledger *ledger, const dlxi_lease *lease, uint32_t used) {
    for (uint32_t i = 0; i < lease->range_count; i++) {
        dlxi_range range = lease->ranges[i];
        uint32_t taken = range.count < used ? range.count : used;
        used -= taken;
        if (taken < range.count) range_release(ledger, range.first + taken, range.count - taken);
    }
}

size_t dlxi_ledger_bytes(const dlxi_ledger *ledger) {
    return 12 + 12 * ledger->free_count;
}

void dlxi_ledger_write(const dlxi_ledger *ledger, dlxi_writer *writer) {
    dlxi_write_u64(writer, ledger->cursor);
    dlxi_write_u32(writer, (uint32_t)ledger->free_count);
    for (size_t i = 0; i < ledger->free_count; i++) {
        dlxi_write_u64(writer, ledger->free[i].first);
        dlxi_write_u32(writer, ledger->free[i].count);
    }
}

bool dlxi_ledger_read(dlxi_ledger *ledger, dlxi_reader *reader) {
    uint64_t end = 0;
    ledger->cursor = dlxi_read_u64(reader);
    bool fits = ledger->cursor <= UINT64_MAX / 8; /* far below what a message may say */
    ledger->free_count = 0;
    for (uint32_t left = dlxi_read_u32(reader); left > 0 && fits; left--) {
        dlxi_range r = {.first = dlxi_read_u64(reader), .count = dlxi_read_u32(reader)};
        fits = ledger->free_count < FREE_MAX && r.count > 0 && r.first >= end &&
               r.first < ledger->cursor && r.count <= ledger->cursor - r.first;
        if (fits) ledger->free[ledger->free_count++] = r;
        end = r.first + r.count;
    }
    return fits;
}

uint64_t dlxi_lease_windows(const dlxi_lease *lease) {
    uint64_t windows = 0;
    for (uint32_t i = 0; i < lease->range_count; i++) windows += lease->ranges[i].count;
    return windows;
}

uint64_t dlxi_lease_position(const dlxi_lease *lease, uint64_t i) {
    for (uint32_t k = 0; k < lease->range_count; k++) {
        if (i < lease->ranges[k].count) return lease->ranges[k].first + i;
        i -= lease->ranges[k].count;
    }
    DLXI_ASSERT(!"position is within the lease");
    return 0;
}
