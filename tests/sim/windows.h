/* SPDX-License-Identifier: Apache-2.0 */
/* Where the windows below a coordinator's cursor are. */
#ifndef DLXI_TESTS_WINDOWS_H
#define DLXI_TESTS_WINDOWS_H

#include "member/coordinator_internal.h"

enum { LEDGER_BYTES = 12 + 12 * 4096 };

/* Those that are neither free, nor granted, nor counted: trained on, and too old to count. Negative
 * if some are in two places. */
static inline int64_t windows_unused(const dlxi_coordinator *c, uint64_t tokens_per_window) {
    static uint8_t bytes[LEDGER_BYTES];
    dlxi_writer writer = dlxi_writer_over(bytes, sizeof bytes);
    dlxi_ledger_write(c->ledger, &writer);
    dlxi_reader reader = dlxi_reader_over(bytes, writer.used_bytes);
    uint64_t cursor = dlxi_read_u64(&reader);
    uint64_t placed = c->committed_tokens / tokens_per_window;
    for (uint32_t left = dlxi_read_u32(&reader); left > 0; left--) {
        (void)dlxi_read_u64(&reader);
        placed += dlxi_read_u32(&reader);
    }
    for (uint16_t i = 0; i < c->count; i++) { /* those of a void submission were given back */
        const dlxi_run_site *s = &c->sites[i];
        for (uint64_t n = s->counted + 1; n <= s->counted + 2; n++)
            if (n > s->voided)
                placed += dlxi_lease_windows(&s->leases[n % DLXI_COORDINATOR_LEASES]);
    }
    return (int64_t)(cursor - placed);
}

#endif
