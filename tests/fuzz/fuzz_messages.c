/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a control message, the first byte choosing its kind. What is taken must be within
 * its bounds, and be written and read again as the same bytes. */
#include "replay.h"
#include "../unit/messages_sample.h"
#include "base/panic.h"

#include <stdlib.h>

static void check_lease(const dlxi_lease *lease) {
    DLXI_ASSERT(lease->range_count <= DLXI_LEASE_RANGES_MAX);
    for (uint32_t i = 0; i < lease->range_count; i++)
        DLXI_ASSERT(lease->ranges[i].count > 0 &&
                    lease->ranges[i].first + lease->ranges[i].count > lease->ranges[i].first);
}

static void check_view(const dlxi_view *view) {
    DLXI_ASSERT(view->members >= 1 && view->members <= DLXI_SITES_MAX);
    for (uint16_t i = 0; i < view->members; i++) {
        DLXI_ASSERT(view->member[i].site < DLXI_SITES_MAX);
        DLXI_ASSERT(i == 0 || view->member[i].site > view->member[i - 1].site);
    }
}

static void check(const dlxi_message *m) {
    switch (m->kind) {
    case DLXI_FRAME_HELLO:
        DLXI_ASSERT(strlen(m->as.hello.site) <= DLXI_SITE_NAME_MAX);
        DLXI_ASSERT(strlen(m->as.hello.shared_text) <= DLXI_TEXT_MAX);
        break;
    case DLXI_FRAME_WELCOME:
        DLXI_ASSERT(m->as.welcome.sites <= DLXI_SITES_MAX &&
                    m->as.welcome.site < m->as.welcome.sites);
        check_lease(&m->as.welcome.leases[0]);
        check_lease(&m->as.welcome.leases[1]);
        break;
    case DLXI_FRAME_LISTENING:
    case DLXI_FRAME_PEERS:
        DLXI_ASSERT(m->as.endpoints.sites <= DLXI_SITES_MAX);
        break;
    case DLXI_FRAME_BEGIN:
        check_view(&m->as.view);
        break;
    case DLXI_FRAME_COMMIT:
        check_lease(&m->as.commit.lease);
        check_view(&m->as.commit.view);
        break;
    case DLXI_FRAME_PING:
        DLXI_ASSERT(m->as.ping.part_count <= DLXI_SITES_MAX);
        break;
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static dlxi_message message;
    static uint8_t again[DLXI_FRAME_PAYLOAD_MAX];
    if (bytes < 1) return 0;
    dlxi_frame frame = {.kind = sample_kinds[data[0] % SAMPLE_KINDS],
                        .payload = data + 1,
                        .payload_bytes = (uint32_t)bytes - 1};
    dlx_error error;
    if (dlxi_message_decode(&message, &frame, &error) != DLX_OK) return 0;
    check(&message);
    size_t used_bytes;
    DLXI_ASSERT(dlxi_message_encode(again, sizeof again, &used_bytes, &message, &error) == DLX_OK);
    DLXI_ASSERT(used_bytes == bytes - 1 && memcmp(again, data + 1, used_bytes) == 0);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    if (index >= SAMPLE_KINDS - 1) return 0; /* the last one is empty */
    static dlxi_message message;
    size_t used_bytes;
    sample_message(&message, sample_kinds[index]);
    data[0] = (uint8_t)index;
    if (dlxi_message_encode(data + 1, FUZZ_INPUT_BYTES_MAX - 1, &used_bytes, &message, NULL) !=
        DLX_OK)
        abort();
    return used_bytes + 1;
}
