/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a frame; once as they are and once with the checksum made right, as a hostile sender
 * would. What is taken must be bounded and encode to the same bytes again. */
#include "replay.h"
#include "base/hash.h"
#include "base/panic.h"
#include "wire/frame.h"

#include <string.h>

static void decode_and_encode(const uint8_t *data, size_t bytes) {
    static uint8_t again[DLXI_FRAME_HEADER_BYTES + DLXI_FRAME_PAYLOAD_MAX];
    dlxi_frame frame;
    dlx_error error = {0};
    if (dlxi_frame_decode(&frame, data, bytes, &error) != DLX_OK) {
        DLXI_ASSERT(error.status == DLX_DATA && error.message[0] != '\0' && frame.payload == NULL);
        return;
    }
    DLXI_ASSERT(frame.payload_bytes <= DLXI_FRAME_PAYLOAD_MAX);
    DLXI_ASSERT(frame.payload == data + DLXI_FRAME_HEADER_BYTES &&
                frame.payload_bytes == bytes - DLXI_FRAME_HEADER_BYTES);
    DLXI_ASSERT(dlxi_frame_encode(again, &frame) == bytes && memcmp(again, data, bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static uint8_t sealed[FUZZ_INPUT_BYTES_MAX];
    enum { SUM = 48 };
    decode_and_encode(data, bytes);
    if (bytes < DLXI_FRAME_HEADER_BYTES || bytes > sizeof sealed) return 0;
    memcpy(sealed, data, bytes);
    uint64_t sum = dlxi_hash(data + DLXI_FRAME_HEADER_BYTES, bytes - DLXI_FRAME_HEADER_BYTES, 0);
    sum = dlxi_hash(sealed, SUM, sum);
    for (int i = 0; i < 8; i++) sealed[SUM + i] = (uint8_t)(sum >> 8 * i);
    decode_and_encode(sealed, bytes);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const dlxi_frame frames[] = {
        {.kind = DLXI_FRAME_PING, .site = DLXI_SITE_COORDINATOR},
        {.kind = DLXI_FRAME_HELLO, .payload = (const uint8_t *)"delft", .payload_bytes = 5},
        {.kind = DLXI_FRAME_RESULT,
         .round = 1,
         .tensor = 2,
         .trip = 1,
         .offset_groups = 3,
         .count_groups = 4,
         .payload = (const uint8_t *)"0123456789abcdef0123456789abcdef",
         .payload_bytes = 32},
    };
    if ((size_t)index >= sizeof frames / sizeof *frames) return 0;
    return dlxi_frame_encode(data, &frames[index]);
}
