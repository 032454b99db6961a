/* SPDX-License-Identifier: Apache-2.0 */
/* What a caller may ask a dlx_sync at any time, since nothing changes by it. */
#include "sync/sync_internal.h"

uint64_t dlxi_sync_tokens(const dlx_sync *s) {
    double share = s->run_share > 0 ? s->run_share : s->last.site_count; /* at first: all equal */
    return s->applied_tokens + (uint64_t)(share * (double)(s->flying_tokens + s->round_tokens));
}

bool dlxi_sync_is_finished(const dlx_sync *s) {
    return s->finished;
}

uint64_t dlxi_sync_tokens_target(const dlx_sync *s) {
    return s->last.tokens_target;
}

uint64_t dlxi_sync_run_id(const dlx_sync *s) {
    return s->last.run_id;
}

uint32_t dlxi_sync_site_index(const dlx_sync *s) {
    return s->last.site_index;
}

uint32_t dlxi_sync_site_count(const dlx_sync *s) {
    return s->last.site_count;
}

bool dlxi_sync_is_pending(const dlx_sync *s) {
    return s->pending;
}

void dlxi_sync_statistics(dlx_sync *s, dlx_statistics *out) {
    pthread_mutex_lock(&s->statistics_mutex);
    *out = s->statistics;
    pthread_mutex_unlock(&s->statistics_mutex);
    dlxi_link_statistics link;
    dlxi_link_statistics_read(s->link, &link);
    out->wan_bytes_sent = link.bytes_sent;
    out->wan_bytes_received = link.bytes_received;
}
