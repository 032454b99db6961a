/* SPDX-License-Identifier: Apache-2.0 */
/* The starting anchor θ over one way, as ANCHOR frames, each of one piece. Pieces come in order; if
 * one is lost, another transfer, with the next number, begins at the first. */
#ifndef DLXI_SYNC_TRANSFER_H
#define DLXI_SYNC_TRANSFER_H

#include "wire/frame.h"
#include "sync/state.h"

/* One side of a transfer. Zeroed: none was asked for. */
typedef struct dlxi_transfer {
    uint32_t number;          /* from 1 */
    dlxi_state_cursor cursor; /* of the next piece */
    uint64_t missing;         /* values; the receiver's */
    uint32_t pieces;          /* sent, or taken */
} dlxi_transfer;

typedef enum dlxi_transfer_result {
    DLXI_TRANSFER_TAKEN,    /* its values are in the state; after the last θ's hashes too */
    DLXI_TRANSFER_REPEATED, /* or of another transfer, or none is under way: nothing is changed */
    DLXI_TRANSFER_GAP,      /* pieces before it were lost: nothing is changed */
    DLXI_TRANSFER_MISFIT    /* not this model's: nothing is changed */
} dlxi_transfer_result;

/* The receiver begins the next transfer of the whole of `state`'s θ. */
void dlxi_transfer_begin(dlxi_transfer *receiver, const dlxi_state *state);
dlxi_transfer_result dlxi_transfer_take(dlxi_transfer *receiver, dlxi_state *state,
                                        const dlxi_frame *frame);
/* The sender's next frame, but for its term, site and rank; false: there is none. Its payload lies
 * in `state`. */
bool dlxi_transfer_peek(const dlxi_transfer *sender, const dlxi_state *state, dlxi_frame *frame);
/* After the link took that frame. */
void dlxi_transfer_advance(dlxi_transfer *sender, const dlxi_state *state);

#endif
