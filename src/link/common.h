/* SPDX-License-Identifier: Apache-2.0 */
/* Counting frames at a link: relaxed, since one thread writes and readers want figures, not order.
 */
#ifndef DLXI_LINK_COUNT_H
#define DLXI_LINK_COUNT_H

#include <stdatomic.h>

#include "link/link.h"

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

#endif
