/* SPDX-License-Identifier: Apache-2.0 */
/* Frames: the unit of everything that travels between sites and to the coordinator.
 *
 * A frame is a 56-byte header, little-endian, and at most DLXI_FRAME_PAYLOAD_MAX bytes:
 *
 *   0  u32 magic "DLX1"      16 u64 round          36 u16 trip
 *   4  u16 version           24 u32 attempt        38 u16 reserved, 0
 *   6  u16 kind              28 u16 site (sender)  40 u32 offset_groups
 *   8  u32 payload_bytes     30 u16 rank (sender)  44 u32 count_groups
 *  12  u32 term              32 u32 tensor         48 u64 XXH3 of bytes 0..47, seeded with
 *                                                         the payload's XXH3
 *
 * In control frames bytes 40..47 are one u64, the id of the coordinator's life instead.
 *
 * Values for one tensor travel in frames keyed by its id, so that both ends need not divide the
 * model the same way. */
#ifndef DLXI_WIRE_FRAME_H
#define DLXI_WIRE_FRAME_H

#include "base/error.h"
#include "base/limits.h"

enum {
    DLXI_FRAME_HEADER_BYTES = 56,
    DLXI_FRAME_PAYLOAD_MAX = 256 * 1024 - DLXI_FRAME_HEADER_BYTES,
    DLXI_WIRE_VERSION = 2
};

/* X(NAME, number): numbers are part of the format. Control frames between a site and the
 * coordinator come first, data frames between sites start at 64. */
#define DLXI_FRAME_KIND_TABLE(X)                                                                   \
    X(HELLO, 1)                                                                                    \
    X(WELCOME, 2)                                                                                  \
    X(LISTENING, 3)                                                                                \
    X(PEERS, 4)                                                                                    \
    X(READY, 5)                                                                                    \
    X(BEGIN, 6)                                                                                    \
    X(STAGED, 7)                                                                                   \
    X(COMMIT, 8)                                                                                   \
    X(ABORT, 9)                                                                                    \
    X(FAILED, 10)                                                                                  \
    X(STOP, 11)                                                                                    \
    X(REPORT, 12)                                                                                  \
    X(FINISHED, 13)                                                                                \
    X(PING, 14)                                                                                    \
    X(CLAIM, 15)                                                                                   \
    X(POSITION, 16)                                                                                \
    X(CONTRIBUTION, 64)                                                                            \
    X(RESULT, 65)                                                                                  \
    X(ANCHOR, 66)                                                                                  \
    X(GREETING, 67)                                                                                \
    X(FETCH, 68)                                                                                   \
    X(ENTRY, 69)

typedef enum dlxi_frame_kind {
#define DLXI_FRAME_KIND_ENUM(name, number) DLXI_FRAME_##name = number,
    DLXI_FRAME_KIND_TABLE(DLXI_FRAME_KIND_ENUM)
#undef DLXI_FRAME_KIND_ENUM
} dlxi_frame_kind;

typedef struct dlxi_frame {
    dlxi_frame_kind kind;
    uint32_t term;
    uint64_t coordinator; /* control frames: with the term, which coordinator's life this is of */
    uint64_t round;
    uint32_t attempt;
    /* the sender's; DLXI_SITE_COORDINATOR for the coordinator, DLXI_SITE_NONE before welcome */
    uint16_t site, rank;
    uint32_t tensor; /* contribution, result, anchor, fetch, entry: the tensor's id */
    uint16_t trip;   /* contribution, result, fetch, entry: which of the attempt's AllReduces */
    /* the part of the tensor's flat vector that the payload holds */
    uint32_t offset_groups, count_groups;
    uint32_t payload_bytes;
    const uint8_t *payload; /* decode: points into the bytes decoded */
} dlxi_frame;

enum { DLXI_SITE_COORDINATOR = 0xFFFE, DLXI_SITE_NONE = 0xFFFF };

/* Whether such frames travel between sites; others to and from the coordinator. */
static inline bool dlxi_frame_is_data(unsigned kind) {
    return kind >= DLXI_FRAME_CONTRIBUTION;
}

/* Writes header and payload to dst, which has DLXI_FRAME_HEADER_BYTES + payload_bytes. Returns that
 * size. */
size_t dlxi_frame_encode(uint8_t *dst, const dlxi_frame *frame);

/* Checks magic, version, kind, length (which must be `bytes` exactly), reserved bits and checksum
 * before anything else is used. DLX_DATA with the reason otherwise. */
dlx_status dlxi_frame_decode(dlxi_frame *frame, const uint8_t *bytes, size_t count_bytes,
                             dlx_error *error);

#endif
