/* SPDX-License-Identifier: Apache-2.0 */
/* Pairs of sites between which nothing moves. A blocked pair is in no view; it is tried with frames
 * of its own, and free again once it has worked for a while: longer each time that it fails anew
 * within the hour. Pure. */
#ifndef DLXI_MEMBER_PAIRS_H
#define DLXI_MEMBER_PAIRS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

enum { DLXI_PAIR_PROBATION_MS = 10000, DLXI_PAIR_PROBATION_MAX_MS = 600000 };

typedef struct dlxi_pair {
    bool blocked;
    uint8_t faults;       /* malformed frames, since the last round that both were in */
    int64_t blocked_ms;   /* since when; or when it last was */
    int64_t works_ms;     /* since when both say that it works; 0: they don't */
    int64_t probation_ms; /* how long it must have worked to be free; 0: never blocked */
} dlxi_pair;

typedef struct dlxi_pairs {
    dlxi_pair at[DLXI_SITES_MAX][DLXI_SITES_MAX]; /* [smaller][larger] */
    uint64_t blocked[DLXI_SITES_MAX];             /* by site: bits of the others */
} dlxi_pairs;

const dlxi_pair *dlxi_pairs_of(const dlxi_pairs *p, uint16_t a, uint16_t b);
/* Nothing moves between a and b. */
void dlxi_pairs_block(dlxi_pairs *p, uint16_t a, uint16_t b, int64_t now_ms);
/* A frame between them was malformed: true if that is so often that the pair is now blocked. */
bool dlxi_pairs_on_fault(dlxi_pairs *p, uint16_t a, uint16_t b, int64_t now_ms);
/* A round has committed with both. */
void dlxi_pairs_on_commit(dlxi_pairs *p, uint16_t a, uint16_t b);
/* Both of them say whether it works. True: the pair is free again, as of now. */
bool dlxi_pairs_on_word(dlxi_pairs *p, uint16_t a, uint16_t b, bool works, int64_t now_ms);

#endif
