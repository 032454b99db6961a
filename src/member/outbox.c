/* SPDX-License-Identifier: Apache-2.0 */
#include "member/outbox.h"

#include <stdlib.h>
#include <string.h>

static dlxi_outbox_item *item_new(uint32_t to, const dlxi_frame *frame, const uint8_t *bytes) {
    dlxi_outbox_item *item = malloc(sizeof *item + frame->payload_bytes);
    if (item == NULL) return NULL;
    *item = (dlxi_outbox_item){.to = to, .frame = *frame};
    if (frame->payload_bytes > 0) memcpy(item->bytes, bytes, frame->payload_bytes);
    item->frame.payload = item->bytes;
    return item;
}

static dlx_status item_append(dlxi_outbox *outbox, dlxi_outbox_item *item, dlx_error *error) {
    if (item == NULL) DLX_FAIL(error, MEMORY, "out of memory for a control message");
    if (outbox->last != NULL)
        outbox->last->next = item;
    else
        outbox->first = item;
    outbox->last = item;
    return DLX_OK;
}

dlx_status dlxi_outbox_put(dlxi_outbox *outbox, uint32_t to, dlxi_frame header,
                           const dlxi_message *message, dlx_error *error) {
    size_t used_bytes = 0;
    DLX_TRY(
        dlxi_message_encode(outbox->encoded, sizeof outbox->encoded, &used_bytes, message, error));
    header.kind = message->kind;
    header.payload_bytes = (uint32_t)used_bytes;
    return item_append(outbox, item_new(to, &header, outbox->encoded), error);
}

bool dlxi_outbox_holds(const dlxi_outbox *outbox, uint32_t to, dlxi_frame_kind kind) {
    const dlxi_outbox_item *item = outbox->first;
    while (item != NULL && (item->to != to || item->frame.kind != kind)) item = item->next;
    return item != NULL;
}

const dlxi_outbox_item *dlxi_outbox_newest(const dlxi_outbox *outbox) {
    return outbox->last;
}

dlxi_outbox_item *dlxi_outbox_item_copy(const dlxi_outbox_item *item) {
    return item_new(item->to, &item->frame, item->bytes);
}

dlx_status dlxi_outbox_repeat(dlxi_outbox *outbox, const dlxi_outbox_item *item, dlx_error *error) {
    return item_append(outbox, dlxi_outbox_item_copy(item), error);
}

const dlxi_outbox_item *dlxi_outbox_peek(const dlxi_outbox *outbox) {
    return outbox->first;
}

void dlxi_outbox_drop(dlxi_outbox *outbox) {
    dlxi_outbox_item *item = outbox->first;
    if (item == NULL) return;
    outbox->first = item->next;
    if (outbox->first == NULL) outbox->last = NULL;
    free(item);
}

void dlxi_outbox_flush(dlxi_outbox *outbox,
                       bool (*send)(void *context, const dlxi_outbox_item *item), void *context) {
    enum { BLOCKED_MAX = DLXI_RUN_RANKS_MAX };
    uint32_t blocked[BLOCKED_MAX];
    size_t blocked_count = 0;
    dlxi_outbox_item **link = &outbox->first;
    outbox->last = NULL;
    while (*link != NULL) {
        dlxi_outbox_item *item = *link;
        bool waits = blocked_count == BLOCKED_MAX;
        for (size_t i = 0; i < blocked_count && !waits; i++) waits = blocked[i] == item->to;
        if (!waits && send(context, item)) {
            *link = item->next;
            free(item);
            continue;
        }
        if (!waits) blocked[blocked_count++] = item->to;
        outbox->last = item;
        link = &item->next;
    }
}

void dlxi_outbox_clear(dlxi_outbox *outbox) {
    while (outbox->first != NULL) dlxi_outbox_drop(outbox);
}
