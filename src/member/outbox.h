/* SPDX-License-Identifier: Apache-2.0 */
/* What a state machine wants sent: a short queue of encoded control messages, drained by the owner
 * of the link. */
#ifndef DLXI_MEMBER_OUTBOX_H
#define DLXI_MEMBER_OUTBOX_H

#include "wire/messages.h"

/* When a wait at the start of a run is shown: at first, and then again and again. */
enum { DLXI_WAIT_TELL_FIRST_MS = 2000, DLXI_WAIT_TELL_MS = 60000 };

/* The first half of the id of a coordinator's life says from which it descends: lives that go on
 * with the same store have it in common, and one that has taken the run over has another. */
static inline uint32_t dlxi_lineage_of(uint64_t coordinator_id) {
    return (uint32_t)(coordinator_id >> 32);
}

typedef struct dlxi_outbox_item {
    struct dlxi_outbox_item *next;
    uint32_t to;
    dlxi_frame frame; /* its payload is `bytes` */
    uint8_t bytes[];
} dlxi_outbox_item;

typedef struct dlxi_outbox {
    dlxi_outbox_item *first, *last;
    dlxi_message scratch; /* for building a message: large, so kept here */
    uint8_t encoded[DLXI_FRAME_PAYLOAD_MAX];
} dlxi_outbox;

/* Encodes `message` behind `header` (kind, payload are filled in). On failure nothing is queued. */
dlx_status dlxi_outbox_put(dlxi_outbox *outbox, uint32_t to, dlxi_frame header,
                           const dlxi_message *message, dlx_error *error);
/* Whether an item of this kind for `to` waits. */
bool dlxi_outbox_holds(const dlxi_outbox *outbox, uint32_t to, dlxi_frame_kind kind);
/* The newest item, or NULL. */
const dlxi_outbox_item *dlxi_outbox_newest(const dlxi_outbox *outbox);
/* Queues the same message once more. */
dlx_status dlxi_outbox_repeat(dlxi_outbox *outbox, const dlxi_outbox_item *item, dlx_error *error);
/* A copy for dlxi_outbox_repeat, free with free(); NULL without memory. */
dlxi_outbox_item *dlxi_outbox_item_copy(const dlxi_outbox_item *item);

/* The oldest item, or NULL. drop removes it. */
const dlxi_outbox_item *dlxi_outbox_peek(const dlxi_outbox *outbox);
void dlxi_outbox_drop(dlxi_outbox *outbox);
/* Gives every item to `send`, oldest first; what it takes (true) is dropped. A peer that has not
 * taken one gets no more this time: its messages keep their order, and no other peer waits for it.
 */
void dlxi_outbox_flush(dlxi_outbox *outbox,
                       bool (*send)(void *context, const dlxi_outbox_item *item), void *context);
void dlxi_outbox_clear(dlxi_outbox *outbox);

#endif
