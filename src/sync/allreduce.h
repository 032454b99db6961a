/* SPDX-License-Identifier: Apache-2.0 */
/* The flat quantised AllReduce: a weighted sum over D sites in two one-way trips; a site
 * sends 2·C·(D−1)/D bytes.
 *
 * A flat vector is a list of segments (one per tensor, or per factor of one), each a whole number
 * of groups. All groups are partitioned into D blocks of equal bytes; member b owns block b. Each
 * member sends each owner its block, quantised; the owner adds the dequantised blocks with their
 * weights in the order of the members, quantises the sum and sends it to all. The sum is the same
 * to the bit on every member.
 *
 * Pure: no I/O, no clock, no thread. The caller moves frames: peek, send, advance; and on_frame. */
#ifndef DLXI_SYNC_ALLREDUCE_H
#define DLXI_SYNC_ALLREDUCE_H

#include "codec/codec.h"
#include "wire/frame.h"

typedef struct dlxi_segment {
    uint32_t tensor; /* ascending, unique */
    uint32_t groups; /* ≥ 1 */
} dlxi_segment;

typedef struct dlxi_allreduce dlxi_allreduce;

/* Holds buffers that grow to the largest begin and are kept. */
dlx_status dlxi_allreduce_open(dlxi_allreduce **out, dlx_error *error);
void dlxi_allreduce_close(dlxi_allreduce **allreduce);

typedef struct dlxi_allreduce_begin {
    const dlxi_segment *segments; /* copied */
    size_t segment_count;
    dlxi_quantiser quantiser;
    uint32_t members;            /* D ≥ 1 */
    uint32_t me;                 /* position among the members */
    const float *weights;        /* [D], copied; they sum to 1 */
    const uint16_t *member_site; /* [D], copied: site index of each member, for addressing */
    uint32_t term, attempt;
    uint64_t round;
    uint16_t trip, rank;
} dlxi_allreduce_begin;

/* Starts over: quantises values[Σ groups · group] (not kept). DLX_NUMERIC if a value is not
 * finite. Drops an earlier exchange. */
dlx_status dlxi_allreduce_begin_with(dlxi_allreduce *a, const dlxi_allreduce_begin *settings,
                                     const float *values, dlx_error *error);

/* Instead: takes the result alone, of a round in which this site was not; segments ascend. Frames
 * for it are of kind ENTRY, from the site that is asked. */
dlx_status dlxi_allreduce_follow(dlxi_allreduce *a, const dlxi_segment *segments,
                                 size_t segment_count, dlxi_quantiser quantiser, dlx_error *error);
/* Where it goes on; false: it is complete. */
bool dlxi_allreduce_wants(const dlxi_allreduce *a, uint32_t *tensor, uint32_t *offset_groups);
/* DLX_OK: taken, or repeated (*moved says which); DLX_PEER_LOST: frames before it were lost;
 * DLX_DATA. Nothing changes on refusal. */
dlx_status dlxi_allreduce_on_entry(dlxi_allreduce *a, const dlxi_frame *frame, bool *moved,
                                   dlx_error *error);

/* peek: the next frame for member `to` (≠ me), or false if none is ready. It has groups of one
 * tensor, at most DLXI_FRAME_PAYLOAD_MAX bytes; its payload is valid until the next begin. advance:
 * the link accepted it; true if it is sent for the first time. */
bool dlxi_allreduce_peek(dlxi_allreduce *a, uint32_t to, dlxi_frame *frame);
bool dlxi_allreduce_advance(dlxi_allreduce *a, uint32_t to);

/* Takes a CONTRIBUTION or RESULT frame of this term, round, attempt and trip from member `from`.
 * DLX_OK: taken, or repeated (*moved says which). DLX_PEER_LOST: frames before it were lost; *moved
 * if no later one has arrived. DLX_DATA: it is of a tensor or range that this exchange does not
 * have, from the wrong owner, or not finite. Nothing is taken on refusal. */
dlx_status dlxi_allreduce_on_frame(dlxi_allreduce *a, uint32_t from, const dlxi_frame *frame,
                                   bool *moved, dlx_error *error);

/* How much was sent to a member and received from it, in groups: its contribution, then the result.
 */
void dlxi_allreduce_offsets(const dlxi_allreduce *a, uint32_t with, uint64_t *sent,
                            uint64_t *received);
/* Sends again what follows `offset`, which that member has received up to. Any value is valid. */
void dlxi_allreduce_go_back(dlxi_allreduce *a, uint32_t to, uint64_t offset);

/* What is missing from member `from`: its contribution, which it can send at once, or its result,
 * which needs all contributions. */
typedef enum dlxi_awaited {
    DLXI_AWAITED_NOTHING,
    DLXI_AWAITED_RESULT,
    DLXI_AWAITED_CONTRIBUTION
} dlxi_awaited;
dlxi_awaited dlxi_allreduce_awaits(const dlxi_allreduce *a, uint32_t from);

/* True once every result arrived. Own frames may still be to send, or be asked for again. */
bool dlxi_allreduce_done(const dlxi_allreduce *a);

/* After done. The weighted sum, dequantised: dst[Σ groups · group]; equal to the bit on all
 * members. */
void dlxi_allreduce_result(const dlxi_allreduce *a, float *dst);
/* After done. What this site's message said: dst = dequantise(quantise(values)). */
void dlxi_allreduce_own(const dlxi_allreduce *a, float *dst);
/* After done. dst += scale · (what the second quantisation lost in the block that this site owns);
 * other groups unchanged. */
void dlxi_allreduce_add_residual(const dlxi_allreduce *a, float *dst, float scale);
/* After done. The result's codes, and what they are of. Valid until the next begin. */
const uint8_t *dlxi_allreduce_codes(const dlxi_allreduce *a, const dlxi_segment **segments,
                                    size_t *segment_count, size_t *group_bytes);
/* After done. XXH3 over the result codes: equal on all members. */
uint64_t dlxi_allreduce_hash(const dlxi_allreduce *a);
/* Payload bytes of one site's whole vector (C in 2·C·(D−1)/D). */
size_t dlxi_allreduce_vector_bytes(const dlxi_allreduce *a);

#endif
