/* SPDX-License-Identifier: Apache-2.0 */
#include "member/pairs.h"

#include "base/fault.h"

enum { FAULTS_MAX = 3, MEMORY_MS = 3600000 };

static dlxi_pair *pair_of(dlxi_pairs *p, uint16_t a, uint16_t b) {
    return a < b ? &p->at[a][b] : &p->at[b][a];
}

const dlxi_pair *dlxi_pairs_of(const dlxi_pairs *p, uint16_t a, uint16_t b) {
    return a < b ? &p->at[a][b] : &p->at[b][a];
}

static void bits_set(dlxi_pairs *p, uint16_t a, uint16_t b, bool blocked) {
    uint64_t of_a = UINT64_C(1) << a, of_b = UINT64_C(1) << b;
    p->blocked[a] = blocked ? p->blocked[a] | of_b : p->blocked[a] & ~of_b;
    p->blocked[b] = blocked ? p->blocked[b] | of_a : p->blocked[b] & ~of_a;
}

void dlxi_pairs_block(dlxi_pairs *p, uint16_t a, uint16_t b, int64_t now_ms) {
    dlxi_pair *pair = pair_of(p, a, b);
    if (!pair->blocked) {
        bool again = pair->probation_ms > 0 && now_ms - pair->blocked_ms < MEMORY_MS;
        int64_t longer_ms = 2 * pair->probation_ms;
        if (longer_ms > DLXI_PAIR_PROBATION_MAX_MS) longer_ms = DLXI_PAIR_PROBATION_MAX_MS;
        pair->probation_ms = again ? longer_ms : DLXI_PAIR_PROBATION_MS;
    }
    pair->blocked = true;
    pair->blocked_ms = now_ms;
    pair->works_ms = 0;
    pair->faults = 0;
    bits_set(p, a, b, true);
}

bool dlxi_pairs_on_fault(dlxi_pairs *p, uint16_t a, uint16_t b, int64_t now_ms) {
    dlxi_pair *pair = pair_of(p, a, b);
    if (++pair->faults < FAULTS_MAX) return false;
    dlxi_pairs_block(p, a, b, now_ms);
    return true;
}

void dlxi_pairs_on_commit(dlxi_pairs *p, uint16_t a, uint16_t b) {
    pair_of(p, a, b)->faults = 0;
}

bool dlxi_pairs_on_word(dlxi_pairs *p, uint16_t a, uint16_t b, bool works, int64_t now_ms) {
    dlxi_pair *pair = pair_of(p, a, b);
    if (!pair->blocked || DLXI_PLANTED(16)) return false;
    if (!works) {
        pair->works_ms = 0;
        return false;
    }
    if (pair->works_ms == 0) pair->works_ms = now_ms != 0 ? now_ms : 1;
    if (now_ms - pair->works_ms < pair->probation_ms) return false;
    pair->blocked = false;
    pair->blocked_ms = now_ms;
    bits_set(p, a, b, false);
    return true;
}
