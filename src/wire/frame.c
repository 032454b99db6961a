/* SPDX-License-Identifier: Apache-2.0 */
/* Frames to bytes and back; the layout is in frame.h. */
#include "wire/frame.h"

#include <string.h>

#include "base/hash.h"
#include "base/panic.h"
#include "wire/bytes.h"

enum { CHECKSUM_OFFSET_BYTES = 48 };
static const uint32_t MAGIC = 0x31584C44; /* "DLX1" */

/* XXH3 of the payload seeds that of the header, so that no copy of the two in one piece is needed.
 */
static uint64_t checksum(const uint8_t *header, const uint8_t *payload, size_t payload_bytes) {
    return dlxi_hash(header, CHECKSUM_OFFSET_BYTES, dlxi_hash(payload, payload_bytes, 0));
}

static bool kind_known(uint16_t number) {
    switch (number) {
#define CASE(name, number) case number:
        DLXI_FRAME_KIND_TABLE(CASE)
#undef CASE
        return true;
    default:
        return false;
    }
}

size_t dlxi_frame_encode(uint8_t *dst, const dlxi_frame *frame) {
    DLXI_ASSERT(frame->payload_bytes <= DLXI_FRAME_PAYLOAD_MAX);
    uint8_t *payload = dst + DLXI_FRAME_HEADER_BYTES;
    if (frame->payload_bytes != 0) memcpy(payload, frame->payload, frame->payload_bytes);

    dlxi_writer w = dlxi_writer_over(dst, DLXI_FRAME_HEADER_BYTES);
    dlxi_write_u32(&w, MAGIC);
    dlxi_write_u16(&w, DLXI_WIRE_VERSION);
    dlxi_write_u16(&w, (uint16_t)frame->kind);
    dlxi_write_u32(&w, frame->payload_bytes);
    dlxi_write_u32(&w, frame->term);
    dlxi_write_u64(&w, frame->round);
    dlxi_write_u32(&w, frame->attempt);
    dlxi_write_u16(&w, frame->site);
    dlxi_write_u16(&w, frame->rank);
    dlxi_write_u32(&w, frame->tensor);
    dlxi_write_u16(&w, frame->trip);
    dlxi_write_u16(&w, 0);
    if (!dlxi_frame_is_data(frame->kind)) {
        dlxi_write_u64(&w, frame->coordinator);
    } else {
        dlxi_write_u32(&w, frame->offset_groups);
        dlxi_write_u32(&w, frame->count_groups);
    }
    dlxi_write_u64(&w, checksum(dst, payload, frame->payload_bytes));
    DLXI_ASSERT(!w.failed && w.used_bytes == DLXI_FRAME_HEADER_BYTES);
    return DLXI_FRAME_HEADER_BYTES + frame->payload_bytes;
}

dlx_status dlxi_frame_decode(dlxi_frame *frame, const uint8_t *bytes, size_t count_bytes,
                             dlx_error *error) {
    *frame = (dlxi_frame){0};
    if (count_bytes < DLXI_FRAME_HEADER_BYTES)
        DLX_FAIL(error, DATA, "frame of %zu bytes is shorter than its header of %d", count_bytes,
                 DLXI_FRAME_HEADER_BYTES);
    dlxi_reader r = dlxi_reader_over(bytes, DLXI_FRAME_HEADER_BYTES);
    uint32_t magic = dlxi_read_u32(&r);
    if (magic != MAGIC)
        DLX_FAIL(error, DATA, "frame begins with 0x%08x instead of 0x%08x", magic, MAGIC);
    uint16_t version = dlxi_read_u16(&r);
    if (version != DLXI_WIRE_VERSION)
        DLX_FAIL(
            error, DATA,
            "frame has format version %u, this program speaks %d; use one version on all sites",
            (unsigned)version, DLXI_WIRE_VERSION);
    uint16_t kind = dlxi_read_u16(&r);
    if (!kind_known(kind)) DLX_FAIL(error, DATA, "frame has the unknown kind %u", (unsigned)kind);
    uint32_t payload_bytes = dlxi_read_u32(&r);
    if (payload_bytes > DLXI_FRAME_PAYLOAD_MAX)
        DLX_FAIL(error, DATA, "frame claims a payload of %u bytes, allowed are 0 to %d",
                 payload_bytes, DLXI_FRAME_PAYLOAD_MAX);
    if (count_bytes - DLXI_FRAME_HEADER_BYTES != payload_bytes)
        DLX_FAIL(error, DATA, "frame of %zu bytes claims a payload of %u", count_bytes,
                 payload_bytes);

    dlxi_frame read = {.kind = (dlxi_frame_kind)kind, .payload_bytes = payload_bytes};
    read.term = dlxi_read_u32(&r);
    read.round = dlxi_read_u64(&r);
    read.attempt = dlxi_read_u32(&r);
    read.site = dlxi_read_u16(&r);
    read.rank = dlxi_read_u16(&r);
    read.tensor = dlxi_read_u32(&r);
    read.trip = dlxi_read_u16(&r);
    uint16_t reserved = dlxi_read_u16(&r);
    if (!dlxi_frame_is_data(kind)) {
        read.coordinator = dlxi_read_u64(&r);
    } else {
        read.offset_groups = dlxi_read_u32(&r);
        read.count_groups = dlxi_read_u32(&r);
    }
    uint64_t claimed = dlxi_read_u64(&r);
    if (reserved != 0)
        DLX_FAIL(error, DATA, "frame has reserved bits set: 0x%04x", (unsigned)reserved);
    read.payload = bytes + DLXI_FRAME_HEADER_BYTES;
    if (checksum(bytes, read.payload, payload_bytes) != claimed)
        DLX_FAIL(error, DATA, "frame of kind %u fails its checksum: damaged on the way",
                 (unsigned)kind);
    *frame = read;
    return DLX_OK;
}
