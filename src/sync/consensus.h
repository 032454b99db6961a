/* SPDX-License-Identifier: Apache-2.0 */
/* Consensus of the ranks of one site: each has an exchange of its own, but all submit, apply and
 * fail at the same step. Each call is an all-gather, by the caller's function, of one block per
 * rank. Every rank makes the same calls in the same order; a site of one rank makes none. */
#ifndef DLXI_SYNC_CONSENSUS_H
#define DLXI_SYNC_CONSENSUS_H

#include "outer/adapt.h"

typedef struct dlxi_consensus {
    uint16_t rank, ranks;
    dlx_gather gather;
    void *context;
    void *all; /* [ranks] blocks */
} dlxi_consensus;

dlx_status dlxi_consensus_open(dlxi_consensus *a, uint16_t rank, uint16_t ranks, dlx_gather gather,
                               void *context, dlx_error *error);
void dlxi_consensus_close(dlxi_consensus *a); /* takes a zeroed one */

/* *value ← that of rank 0. */
dlx_status dlxi_consensus_first(dlxi_consensus *consensus, void *value, size_t bytes,
                                dlx_error *error);
/* *committed ← whether it was true on all ranks. If any rank reports a failure (`own`; status OK:
 * none), all return the status of the first that did, each with its own message or one that names
 * that rank. Blocks. */
dlx_status dlxi_consensus_state(dlxi_consensus *a, bool *committed, const dlx_error *own,
                                dlx_error *error);

/* *inner_steps ← H of the next round, from what each rank's tensors say. paper: of all tensors of
 * the model, on any rank; link: the largest that any rank's exchange needs. Blocks. */
dlx_status dlxi_consensus_inner_steps(dlxi_consensus *a, uint32_t *inner_steps,
                                      const dlxi_adapt *adapt, dlxi_adapt_sums own,
                                      int factor_rank_first, dlx_error *error);

#endif
