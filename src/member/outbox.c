/* SPDX-License-Identifier: Apache-2.0 */
#include "member/outbox.h"

#include <stdlib.h>
#include <string.h>

dlx_status dlxi_outbox_put(dlxi_outbox *outbox, uint32_t to, dlxi_frame header,
                           const dlxi_message *message, dlx_error *error) {
    uint8_t *bytes = malloc(DLXI_FRAME_PAYLOAD_MAX);
    size_t used_bytes = 0;
    if (bytes == NULL) DLX_FAIL(error, MEMORY, "out of memory for a control message");
    dlx_status status =
        dlxi_message_encode(bytes, DLXI_FRAME_PAYLOAD_MAX, &used_bytes, message, error);
    dlxi_outbox_item *item = status == DLX_OK ? malloc(sizeof *item + used_bytes) : NULL;
    if (item != NULL) {
        memcpy(item->bytes, bytes, used_bytes);
        item->next = NULL;
        item->to = to;
        item->frame = header;
        item->frame.kind = message->kind;
        item->frame.payload = item->bytes;
        item->frame.payload_bytes = (uint32_t)used_bytes;
        if (outbox->last != NULL)
            outbox->last->next = item;
        else
            outbox->first = item;
        outbox->last = item;
    } else if (status == DLX_OK) {
        status = dlxi_error_set(error, DLX_MEMORY, "out of memory for a control message");
    }
    free(bytes);
    return status;
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
