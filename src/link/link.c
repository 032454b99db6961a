/* SPDX-License-Identifier: Apache-2.0 */
/* What all links share: statistics and closing. */
#include "link/hub.h"

#include <stdatomic.h>

void dlxi_link_statistics_read(const dlxi_link *link, dlxi_link_statistics *out) {
    *out = (dlxi_link_statistics){
        .bytes_sent = atomic_load_explicit(&link->bytes_sent, memory_order_relaxed),
        .bytes_received = atomic_load_explicit(&link->bytes_received, memory_order_relaxed),
        .frames_sent = atomic_load_explicit(&link->frames_sent, memory_order_relaxed),
        .frames_received = atomic_load_explicit(&link->frames_received, memory_order_relaxed),
        .frames_dropped = atomic_load_explicit(&link->frames_dropped, memory_order_relaxed),
    };
}

void dlxi_link_close(dlxi_link **link) {
    if (link == NULL || *link == NULL) return;
    (*link)->op->close(*link);
    *link = NULL;
}

void dlxi_hub_close(dlx_hub **hub) {
    if (hub == NULL || *hub == NULL) return;
    (*hub)->close(*hub);
    *hub = NULL;
}
