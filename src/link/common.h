/* SPDX-License-Identifier: Apache-2.0 */
/* Small things that every link does. In a header, since the mpi link is in a library without the
 * others. */
#ifndef DLXI_LINK_COMMON_H
#define DLXI_LINK_COMMON_H

#include <stdatomic.h>

#include "base/clock.h"
#include "link/link.h"

/* Counters are relaxed: one thread writes, and readers want figures, not order. */
static inline void dlxi_count_sent(dlxi_link *link, size_t bytes) {
    atomic_fetch_add_explicit(&link->bytes_sent, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&link->frames_sent, 1, memory_order_relaxed);
}

static inline void dlxi_count_received(dlxi_link *link, size_t bytes) {
    atomic_fetch_add_explicit(&link->bytes_received, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&link->frames_received, 1, memory_order_relaxed);
}

static inline void dlxi_count_dropped(dlxi_link *link) {
    atomic_fetch_add_explicit(&link->frames_dropped, 1, memory_order_relaxed);
}

/* When a wait of timeout_ms ends; -1: never. Some 30 years are for ever. */
static inline int64_t dlxi_link_deadline_ns(int64_t timeout_ms) {
    bool ends = timeout_ms >= 0 && timeout_ms < 1000000000000;
    return ends ? dlxi_clock_ns() + timeout_ms * 1000000 : -1;
}

/* What listen() is given first. */
static inline dlx_status dlxi_link_check_pair(const dlxi_link *link, uint32_t own_index,
                                              uint32_t index, dlx_error *error) {
    if (index >= DLXI_SITES_MAX || own_index >= DLXI_SITES_MAX || index == own_index)
        DLX_FAIL(error, ARGUMENT,
                 "%s link: site %u listens for site %u, allowed are two of 0 to %d", link->op->name,
                 own_index, index, DLXI_SITES_MAX - 1);
    return DLX_OK;
}

/* A site's index as connect() and reconnect() are given it. */
static inline dlx_status dlxi_link_check_index(const dlxi_link *link, uint32_t index,
                                               dlx_error *error) {
    if (index >= DLXI_SITES_MAX)
        DLX_FAIL(error, ARGUMENT, "%s link: connect to site %u, allowed are 0 to %d",
                 link->op->name, index, DLXI_SITES_MAX - 1);
    return DLX_OK;
}

#endif
