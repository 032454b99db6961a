/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/transfer.h"

enum {
    PIECE_GROUP = 64, /* values per "group" of an ANCHOR frame */
    PIECE_VALUES = DLXI_FRAME_PAYLOAD_MAX / (int)sizeof(float) / PIECE_GROUP * PIECE_GROUP
};

static bool next_piece(const dlxi_state *state, dlxi_state_cursor *cursor,
                       dlxi_state_piece *piece) {
    return dlxi_state_next_piece(state, 1u << DLXI_STATE_ANCHOR, cursor, PIECE_VALUES, piece);
}

void dlxi_transfer_begin(dlxi_transfer *t, const dlxi_state *state) {
    *t = (dlxi_transfer){.number = t->number + 1};
    t->missing = dlxi_state_piece_values(state, 1u << DLXI_STATE_ANCHOR);
}

dlxi_transfer_result dlxi_transfer_take(dlxi_transfer *t, dlxi_state *state,
                                        const dlxi_frame *frame) {
    dlx_error error;
    dlxi_state_piece next = {0};
    dlxi_state_cursor cursor = t->cursor;
    if (frame->attempt != t->number || t->missing == 0 || !next_piece(state, &cursor, &next))
        return DLXI_TRANSFER_REPEATED;
    dlxi_state_piece piece = {.field = DLXI_STATE_ANCHOR,
                              .tensor = frame->tensor,
                              .first = (uint64_t)frame->offset_groups * PIECE_GROUP,
                              .count = frame->payload_bytes / (uint32_t)sizeof(float),
                              .values = frame->payload};
    if (piece.tensor != next.tensor)
        return piece.tensor > next.tensor ? DLXI_TRANSFER_GAP : DLXI_TRANSFER_REPEATED;
    if (piece.first != next.first)
        return piece.first > next.first ? DLXI_TRANSFER_GAP : DLXI_TRANSFER_REPEATED;
    if (piece.count != next.count || frame->payload_bytes % sizeof(float) != 0 ||
        dlxi_state_restore(state, &piece, &error) != DLX_OK)
        return DLXI_TRANSFER_MISFIT;
    t->cursor = cursor;
    t->missing -= piece.count;
    t->pieces++;
    if (t->missing == 0) dlxi_state_rehash(state);
    return DLXI_TRANSFER_TAKEN;
}

bool dlxi_transfer_peek(const dlxi_transfer *t, const dlxi_state *state, dlxi_frame *frame) {
    dlxi_state_piece piece;
    dlxi_state_cursor cursor = t->cursor;
    if (t->number == 0 || !next_piece(state, &cursor, &piece)) return false;
    *frame = (dlxi_frame){.kind = DLXI_FRAME_ANCHOR,
                          .attempt = t->number,
                          .tensor = piece.tensor,
                          .offset_groups = (uint32_t)(piece.first / PIECE_GROUP),
                          .count_groups = (piece.count + PIECE_GROUP - 1) / PIECE_GROUP,
                          .payload_bytes = piece.count * (uint32_t)sizeof(float),
                          .payload = piece.values};
    return true;
}

void dlxi_transfer_advance(dlxi_transfer *t, const dlxi_state *state) {
    dlxi_state_piece piece;
    (void)next_piece(state, &t->cursor, &piece);
    t->pieces++;
}
