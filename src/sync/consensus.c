/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/consensus.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/panic.h"
#include "codec/codec.h"

typedef struct state_block {
    uint32_t status, committed;
    int64_t round;
    char site[sizeof((dlx_error *)0)->site];
    char text[240];
} state_block;

typedef struct adapt_block {
    dlxi_adapt_sums sums;
    uint64_t inner_steps;
} adapt_block;

dlx_status dlxi_consensus_open(dlxi_consensus *a, uint16_t rank, uint16_t ranks, dlx_gather gather,
                               void *context, dlx_error *error) {
    *a = (dlxi_consensus){.rank = rank, .ranks = ranks, .gather = gather, .context = context};
    size_t bytes =
        sizeof(state_block) > sizeof(adapt_block) ? sizeof(state_block) : sizeof(adapt_block);
    return dlxi_alloc(&a->all, ranks, bytes, "what the ranks of a site tell each other", error);
}

void dlxi_consensus_close(dlxi_consensus *a) {
    free(a->all);
    a->all = NULL;
}

dlx_status dlxi_consensus_state(dlxi_consensus *a, bool *committed, const dlx_error *own,
                                dlx_error *error) {
    state_block mine, *all = a->all;
    memset(&mine, 0, sizeof mine); /* padding is sent, too */
    mine.status = own->status;
    mine.committed = *committed;
    if (own->status != DLX_OK) {
        mine.round = own->round;
        dlxi_text_copy(mine.site, sizeof mine.site, own->site);
        dlxi_text_copy(mine.text, sizeof mine.text, own->message);
    }
    dlx_status status = a->gather(a->context, all, &mine, sizeof mine, error);
    if (status != DLX_OK && own->status != DLX_OK) { /* its own counts, sent or not */
        if (error != NULL) *error = *own;
        return own->status;
    }
    DLX_TRY(status);
    for (uint16_t r = 0; r < a->ranks; r++) {
        state_block *b = &all[r];
        *committed = *committed && b->committed != 0;
        if (b->status == DLX_OK) continue;
        b->text[sizeof b->text - 1] = b->site[sizeof b->site - 1] = '\0';
        /* the first one's on all ranks, so that all do the same next */
        status = b->status <= DLX_DIVERGED ? (dlx_status)b->status : DLX_PEER_LOST;
        if (own->status != DLX_OK) {
            if (error != NULL) *error = *own;
            if (error != NULL) error->status = status;
            return status;
        }
        if (status == DLX_TIMEOUT) /* the coordinator is silent for this rank, too */
            dlxi_error_set(error, status, "%s", b->text);
        else
            dlxi_error_set(error, status, "rank %u of this site: %s", r, b->text);
        if (error != NULL) {
            error->round = b->round;
            dlxi_text_copy(error->site, sizeof error->site, b->site);
        }
        return status;
    }
    return DLX_OK;
}

dlx_status dlxi_consensus_first(dlxi_consensus *a, void *value, size_t bytes, dlx_error *error) {
    DLXI_ASSERT(bytes <= sizeof(state_block));
    DLX_TRY(a->gather(a->context, a->all, value, bytes, error));
    memcpy(value, a->all, bytes);
    return DLX_OK;
}

dlx_status dlxi_consensus_inner_steps(dlxi_consensus *a, uint32_t *inner_steps,
                                      const dlxi_adapt *adapt, dlxi_adapt_sums own,
                                      int factor_rank_first, dlx_error *error) {
    adapt_block mine, *all = a->all;
    memset(&mine, 0, sizeof mine);
    mine.sums = own;
    mine.inner_steps = adapt->inner_steps;
    DLX_TRY(a->gather(a->context, all, &mine, sizeof mine, error));
    dlxi_adapt_sums sums = {0};
    uint64_t longest = 0;
    for (uint16_t r = 0; r < a->ranks; r++) {
        sums.weighted_ranks += all[r].sums.weighted_ranks;
        sums.parameters += all[r].sums.parameters;
        if (all[r].inner_steps > longest) longest = all[r].inner_steps;
    }
    *inner_steps = (uint32_t)longest;
    if (adapt->kind != DLX_ADAPTATION_PAPER) return DLX_OK;
    dlxi_arithmetic saved; /* replicated: the same whatever mode the caller's thread is in */
    dlxi_arithmetic_enter(&saved);
    *inner_steps = dlxi_adapt_inner_steps(adapt, sums, factor_rank_first);
    dlxi_arithmetic_leave(&saved);
    return DLX_OK;
}
