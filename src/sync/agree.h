/* SPDX-License-Identifier: Apache-2.0 */
/* What the ranks of one site tell each other, so that all of them hand out, apply and fail at the
 * same step although each has an exchange of its own: a block of bytes a rank, gathered by the
 * caller's own means. Every rank makes the same calls in the same order; a site of one rank makes
 * none. */
#ifndef DLXI_SYNC_AGREE_H
#define DLXI_SYNC_AGREE_H

#include "outer/adapt.h"

typedef struct dlxi_agreement {
    uint16_t rank, ranks;
    dlx_gather gather;
    void *context;
    void *all; /* [ranks] blocks */
} dlxi_agreement;

dlx_status dlxi_agreement_open(dlxi_agreement *a, uint16_t rank, uint16_t ranks, dlx_gather gather,
                               void *context, dlx_error *error);
void dlxi_agreement_close(dlxi_agreement *a); /* takes a zeroed one */

/* *committed ← whether it was true on all ranks. Where any rank comes with a failure (`own`, status
 * OK: none), all ranks return the status of the first that failed, with that rank's own words, or
 * with a sentence that names it. Blocks. */
dlx_status dlxi_agree_on_state(dlxi_agreement *a, bool *committed, const dlx_error *own,
                               dlx_error *error);

/* *inner_steps ← H of the next round, from what each rank's tensors say. paper: of all tensors of
 * the model, whoever holds them; link: the largest that any rank's exchange needs. Blocks. */
dlx_status dlxi_agree_on_inner_steps(dlxi_agreement *a, uint32_t *inner_steps,
                                     const dlxi_adapt *adapt, dlxi_adapt_sums own,
                                     int factor_rank_first, dlx_error *error);

#endif
