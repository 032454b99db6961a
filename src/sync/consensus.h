/* SPDX-License-Identifier: Apache-2.0 */
/* Consensus of the ranks of one site, so that all of them submit, apply and fail at the same step
 * although each has an exchange of its own: an all-gather of one block per rank, by the caller's
 * means. Every rank makes the same calls in the same order; a site of one rank makes none. */
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

/* *committed ← whether it was true on all ranks. If any rank brings a failure (`own`, status OK:
 * none), all ranks return the status of the first that failed, with their own message or one that
 * names the rank. Blocks. */
dlx_status dlxi_consensus_state(dlxi_consensus *a, bool *committed, const dlx_error *own,
                                dlx_error *error);

/* *inner_steps ← H of the next round, from what each rank's tensors say. paper: of all tensors of
 * the model, whoever holds them; link: the largest that any rank's exchange needs. Blocks. */
dlx_status dlxi_consensus_inner_steps(dlxi_consensus *a, uint32_t *inner_steps,
                                      const dlxi_adapt *adapt, dlxi_adapt_sums own,
                                      int factor_rank_first, dlx_error *error);

#endif
