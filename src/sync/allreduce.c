/* SPDX-License-Identifier: Apache-2.0 */
/* The flat quantised AllReduce (allreduce.h): the partition into blocks, and one site's side of the
 * two trips.
 *
 * Positions are in groups, over all segments in order. What one member sends another is a stream:
 * its contribution to the other's block, then the result of its own. Offsets in a stream are in
 * groups, too. Frames of a stream arrive in order or not at all, so one that does not begin where
 * the receiver stands is repeated, or follows a gap. The buffers stay as they are until the next
 * begin, so the sender can go back to any offset.
 *
 * Memory is three vectors of codes: own, result, and the other members' contributions to the own
 * block. The weighted sum is not kept, but computed again for the residual. */
#include "sync/allreduce.h"

#include "base/fault.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/panic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TILE_VALUES = 4096 /* of a weighted sum at a time, on the stack */ };

typedef struct peer {
    uint64_t begin, end; /* the block that this member owns */
    /* offsets in the streams to and from it; the largest so far: also sent before it went back, and
     * received after a gap */
    uint64_t sent, sent_max, received, received_max;
    float weight;
    uint16_t site;
} peer;

struct dlxi_allreduce {
    dlxi_segment *segments;
    uint64_t *starts; /* [segment_count + 1]: first group of each segment */
    size_t segment_count, segment_capacity;
    dlxi_quantiser quantiser;
    size_t group_bytes;
    uint32_t members, me, term, attempt;
    uint64_t round;
    uint16_t trip, rank;
    uint64_t summed; /* up to here the own block's result is ready */
    uint8_t *own, *result, *contributions;
    size_t own_capacity, result_capacity, contributions_capacity; /* bytes */
    peer peers[DLXI_SITES_MAX];
};

dlx_status dlxi_allreduce_open(dlxi_allreduce **out, dlx_error *error) {
    return DLXI_NEW(out, 1, error);
}

void dlxi_allreduce_close(dlxi_allreduce **allreduce) {
    dlxi_allreduce *a = *allreduce;
    if (a == NULL) return;
    free(a->segments);
    free(a->starts);
    free(a->own);
    free(a->result);
    free(a->contributions);
    free(a);
    *allreduce = NULL;
}

/* ---- layout ---------------------------------------------------------------------------------- */

static uint64_t total_groups(const dlxi_allreduce *a) {
    return a->starts[a->segment_count];
}

static uint64_t block_groups(const peer *p) {
    return p->end - p->begin;
}

/* Of the streams to and from another member. */
static uint64_t stream_groups(const dlxi_allreduce *a, const peer *p) {
    return block_groups(&a->peers[a->me]) + block_groups(p);
}

/* The segment that holds `position`. */
static size_t segment_at(const dlxi_allreduce *a, uint64_t position) {
    size_t low = 0, high = a->segment_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (a->starts[middle] <= position)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* segment_count if there is no such tensor. */
static size_t segment_find(const dlxi_allreduce *a, uint32_t tensor) {
    size_t low = 0, high = a->segment_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (a->segments[middle].tensor < tensor)
            low = middle + 1;
        else
            high = middle;
    }
    return low < a->segment_count && a->segments[low].tensor == tensor ? low : a->segment_count;
}

/* Blocks are equal in bytes sent, a header per segment included: otherwise the owner of a block of
 * many small tensors would send more than the others. Every member computes the same limits. */
static void blocks_partition(dlxi_allreduce *a) {
    uint64_t cost = total_groups(a) * a->group_bytes + a->segment_count * DLXI_FRAME_HEADER_BYTES;
    uint64_t before = 0; /* cost of the segments before s */
    size_t s = 0;
    for (uint32_t m = 0; m < a->members; m++) {
        a->peers[m].begin = m == 0 ? 0 : a->peers[m - 1].end;
        uint64_t target = cost / a->members * (m + 1) + cost % a->members * (m + 1) / a->members;
        while (s + 1 < a->segment_count) {
            uint64_t next =
                before + a->segments[s].groups * (uint64_t)a->group_bytes + DLXI_FRAME_HEADER_BYTES;
            if (next > target) break;
            before = next;
            s++;
        }
        uint64_t within = target - before;
        within = within > DLXI_FRAME_HEADER_BYTES ? within - DLXI_FRAME_HEADER_BYTES : 0;
        uint64_t groups = (within + a->group_bytes / 2) / a->group_bytes;
        if (groups > a->segments[s].groups) groups = a->segments[s].groups;
        a->peers[m].end = m + 1 == a->members ? total_groups(a) : a->starts[s] + groups;
    }
}

/* ---- begin ----------------------------------------------------------------------------------- */

static dlx_status settings_check(const dlxi_allreduce_begin *b, dlx_error *error) {
    if (b->members < 1 || b->members > DLXI_SITES_MAX || b->me >= b->members)
        DLX_FAIL(error, ARGUMENT, "AllReduce: member %u of %u; 1 to %d members can take part",
                 b->me, b->members, DLXI_SITES_MAX);
    if (b->segment_count < 1)
        DLX_FAIL(error, ARGUMENT, "AllReduce: no segments; leave the exchange out instead");
    for (uint32_t m = 0; m < b->members; m++)
        if (!isfinite(b->weights[m]) || b->weights[m] < 0.0f)
            DLX_FAIL(error, ARGUMENT,
                     "AllReduce: weight %g of member %u; weights are at least 0 and sum to 1",
                     (double)b->weights[m], m);
    for (size_t s = 0; s < b->segment_count; s++)
        if (b->segments[s].groups < 1 ||
            (s > 0 && b->segments[s].tensor <= b->segments[s - 1].tensor))
            DLX_FAIL(
                error, ARGUMENT,
                "AllReduce: segment %zu (tensor %u, %u groups); tensors ascend, each with a group",
                s, b->segments[s].tensor, b->segments[s].groups);
    return DLX_OK;
}

/* Contents are not kept. */
static dlx_status codes_grow(uint8_t **buffer, size_t *capacity, uint64_t groups,
                             size_t group_bytes, dlx_error *error) {
    if (groups > SIZE_MAX / group_bytes)
        DLX_FAIL(error, MEMORY, "out of memory: AllReduce of %llu groups",
                 (unsigned long long)groups);
    size_t bytes = (size_t)groups * group_bytes;
    if (*buffer != NULL && bytes <= *capacity) return DLX_OK;
    free(*buffer);
    *buffer = NULL;
    *capacity = 0;
    DLX_TRY(dlxi_alloc((void **)buffer, bytes, 1, "AllReduce codes", error));
    *capacity = bytes;
    return DLX_OK;
}

static dlx_status segments_copy(dlxi_allreduce *a, const dlxi_allreduce_begin *b,
                                dlx_error *error) {
    if (b->segment_count > a->segment_capacity) {
        free(a->segments);
        free(a->starts);
        a->segments = NULL;
        a->starts = NULL;
        a->segment_capacity = 0;
        DLX_TRY(DLXI_NEW(&a->segments, b->segment_count, error));
        DLX_TRY(DLXI_NEW(&a->starts, b->segment_count + 1, error));
        a->segment_capacity = b->segment_count;
    }
    memcpy(a->segments, b->segments, b->segment_count * sizeof *b->segments);
    a->starts[0] = 0;
    for (size_t s = 0; s < b->segment_count; s++)
        a->starts[s + 1] = a->starts[s] + b->segments[s].groups;
    a->segment_count = b->segment_count;
    return DLX_OK;
}

static dlx_status result_extend(dlxi_allreduce *a, uint64_t end, dlx_error *error);

static dlx_status exchange_set_up(dlxi_allreduce *a, const dlxi_allreduce_begin *b,
                                  dlx_error *error) {
    DLX_TRY(segments_copy(a, b, error));
    a->quantiser = b->quantiser;
    a->group_bytes = dlxi_quantiser_group_bytes(b->quantiser);
    a->members = b->members;
    a->me = b->me;
    a->term = b->term;
    a->attempt = b->attempt;
    a->round = b->round;
    a->trip = b->trip;
    a->rank = b->rank;
    memset(a->peers, 0, sizeof a->peers);
    blocks_partition(a);
    peer *mine = &a->peers[a->me];
    for (uint32_t m = 0; m < a->members; m++) {
        peer *p = &a->peers[m];
        p->weight = b->weights[m];
        p->site = b->member_site[m];
    }
    a->summed = mine->begin;
    DLX_TRY(codes_grow(&a->own, &a->own_capacity, total_groups(a), a->group_bytes, error));
    DLX_TRY(codes_grow(&a->result, &a->result_capacity, total_groups(a), a->group_bytes, error));
    return codes_grow(&a->contributions, &a->contributions_capacity,
                      block_groups(mine) * (a->members - 1), a->group_bytes, error);
}

dlx_status dlxi_allreduce_begin_with(dlxi_allreduce *a, const dlxi_allreduce_begin *settings,
                                     const float *values, dlx_error *error) {
    a->members = 0; /* nothing under way until all of it stands */
    DLX_TRY(settings_check(settings, error));
    dlx_status status = exchange_set_up(a, settings, error);
    if (status == DLX_OK &&
        dlxi_quantise(a->own, values, (size_t)total_groups(a), a->quantiser) != DLX_OK)
        status =
            dlxi_error_set(error, DLX_NUMERIC,
                           "round %llu: a pseudo-gradient is not finite or too large for %d bits; "
                           "lower train.learning_rate, set train.clip_norm, or send more bits",
                           (unsigned long long)a->round, a->quantiser.bits);
    if (status == DLX_OK && a->members == 1) status = result_extend(a, total_groups(a), error);
    if (status != DLX_OK) a->members = 0;
    return status;
}

dlx_status dlxi_allreduce_follow(dlxi_allreduce *a, const dlxi_segment *segments,
                                 size_t segment_count, dlxi_quantiser quantiser, dlx_error *error) {
    const float weight = 1;
    const uint16_t site = 0;
    const dlxi_allreduce_begin alone = {.segments = segments,
                                        .segment_count = segment_count,
                                        .quantiser = quantiser,
                                        .members = 1,
                                        .weights = &weight,
                                        .member_site = &site};
    a->members = 0;
    DLX_TRY(settings_check(&alone, error));
    dlx_status status = exchange_set_up(a, &alone, error);
    if (status != DLX_OK) a->members = 0;
    return status;
}

bool dlxi_allreduce_wants(const dlxi_allreduce *a, uint32_t *tensor, uint32_t *offset_groups) {
    if (a->summed == total_groups(a)) return false;
    size_t segment = segment_at(a, a->summed);
    *tensor = a->segments[segment].tensor;
    *offset_groups = (uint32_t)(a->summed - a->starts[segment]);
    return true;
}

/* ---- the owner's sum ------------------------------------------------------------------------- */

/* Codes of member m for `position` in the own block. */
static uint8_t *contribution_at(const dlxi_allreduce *a, uint32_t m, uint64_t position) {
    const peer *mine = &a->peers[a->me];
    if (m == a->me) return a->own + position * a->group_bytes;
    uint64_t row = m < a->me ? m : m - 1;
    return a->contributions + (row * block_groups(mine) + position - mine->begin) * a->group_bytes;
}

/* dst[count · group] = Σ_m weight_m · dequantised contribution of m, from zero, in the order of the
 * members. */
static void contributions_sum(const dlxi_allreduce *a, float *dst, uint64_t position,
                              size_t count) {
    memset(dst, 0, count * (size_t)a->quantiser.group * sizeof *dst);
    for (uint32_t m = 0; m < a->members; m++)
        dlxi_dequantise_add(dst, contribution_at(a, m, position), a->peers[m].weight, count,
                            a->quantiser);
}

static size_t tile_groups(const dlxi_allreduce *a, uint64_t position, uint64_t end) {
    size_t most = TILE_VALUES / (size_t)a->quantiser.group;
    return end - position < most ? (size_t)(end - position) : most;
}

/* Fills the own result up to `end`, which every member has contributed. On failure a->summed stays.
 */
static dlx_status result_extend(dlxi_allreduce *a, uint64_t end, dlx_error *error) {
    float tile[TILE_VALUES];
    for (uint64_t position = a->summed; position < end;) {
        size_t count = tile_groups(a, position, end);
        contributions_sum(a, tile, position, count);
        if (dlxi_quantise(a->result + position * a->group_bytes, tile, count, a->quantiser) !=
            DLX_OK)
            DLX_FAIL(error, NUMERIC,
                     "round %llu, tensor %u: the sites' weighted mean is not finite or too large "
                     "for %d bits; "
                     "lower train.learning_rate, set train.clip_norm, or send more bits",
                     (unsigned long long)a->round, a->segments[segment_at(a, position)].tensor,
                     a->quantiser.bits);
        position += count;
    }
    a->summed = end;
    return DLX_OK;
}

/* ---- frames out ------------------------------------------------------------------------------ */

/* Groups from `position` on that one frame holds: of one segment, within `end`. */
static uint64_t frame_groups(const dlxi_allreduce *a, size_t segment, uint64_t position,
                             uint64_t end) {
    uint64_t most = DLXI_FRAME_PAYLOAD_MAX / a->group_bytes, limit = a->starts[segment + 1];
    if (limit > end) limit = end;
    return limit - position < most ? limit - position : most;
}

bool dlxi_allreduce_peek(dlxi_allreduce *a, uint32_t to, dlxi_frame *frame) {
    if (to >= a->members || to == a->me) return false;
    const peer *p = &a->peers[to], *mine = &a->peers[a->me];
    bool contributes = p->sent < block_groups(p); /* first: the owner can't begin without */
    if (p->sent == stream_groups(a, p)) return false;
    uint64_t position = contributes ? p->begin + p->sent : mine->begin + p->sent - block_groups(p);
    size_t segment = segment_at(a, position);
    uint64_t count = frame_groups(a, segment, position, contributes ? p->end : mine->end);
    if (!contributes && position + count > a->summed) return false; /* whole frames only */
    *frame = (dlxi_frame){
        .kind = contributes ? DLXI_FRAME_CONTRIBUTION : DLXI_FRAME_RESULT,
        .term = a->term,
        .round = a->round,
        .attempt = a->attempt,
        .site = mine->site,
        .rank = a->rank,
        .tensor = a->segments[segment].tensor,
        .trip = a->trip,
        .offset_groups = (uint32_t)(position - a->starts[segment]),
        .count_groups = (uint32_t)count,
        .payload_bytes = (uint32_t)(count * a->group_bytes),
        .payload = (contributes ? a->own : a->result) + position * a->group_bytes,
    };
    return true;
}

static bool offset_raise(uint64_t *max, uint64_t offset) {
    bool higher = offset > *max;
    if (higher) *max = offset;
    return higher;
}

bool dlxi_allreduce_advance(dlxi_allreduce *a, uint32_t to) {
    dlxi_frame frame;
    bool ready = dlxi_allreduce_peek(a, to, &frame);
    DLXI_ASSERT(ready);
    peer *p = &a->peers[to];
    p->sent += frame.count_groups;
    return offset_raise(&p->sent_max, p->sent);
}

void dlxi_allreduce_offsets(const dlxi_allreduce *a, uint32_t with, uint64_t *sent,
                            uint64_t *received) {
    *sent = a->peers[with].sent;
    *received = a->peers[with].received;
}

void dlxi_allreduce_go_back(dlxi_allreduce *a, uint32_t to, uint64_t offset) {
    if (offset < a->peers[to].sent) a->peers[to].sent = offset;
}

/* ---- frames in ------------------------------------------------------------------------------- */

/* Whether the frame belongs to this exchange and comes from the member that it names. */
static dlx_status origin_check(const dlxi_allreduce *a, uint32_t from, const dlxi_frame *frame,
                               dlx_error *error) {
    if (a->members == 0) DLX_FAIL(error, DATA, "a frame for an AllReduce, but none is under way");
    if (frame->kind != DLXI_FRAME_CONTRIBUTION && frame->kind != DLXI_FRAME_RESULT)
        DLX_FAIL(error, DATA, "a frame of kind %d is not part of an AllReduce", (int)frame->kind);
    if (from >= a->members || from == a->me || frame->site != a->peers[from].site ||
        frame->rank != a->rank)
        DLX_FAIL(error, DATA, "a frame of site %u, rank %u came as from member %u of %u, rank %u",
                 frame->site, frame->rank, from, a->members, a->rank);
    if (frame->term != a->term || frame->round != a->round || frame->attempt != a->attempt ||
        frame->trip != a->trip)
        DLX_FAIL(error, DATA,
                 "site %u: a frame of term %u, round %llu, attempt %u, trip %u; expected %u, %llu, "
                 "%u, %u",
                 frame->site, frame->term, (unsigned long long)frame->round, frame->attempt,
                 frame->trip, a->term, (unsigned long long)a->round, a->attempt, a->trip);
    return DLX_OK;
}

/* *position ← where its groups begin, which this exchange has. */
static dlx_status groups_check(const dlxi_allreduce *a, const dlxi_frame *frame, uint64_t *position,
                               dlx_error *error) {
    size_t segment = segment_find(a, frame->tensor);
    if (segment == a->segment_count)
        DLX_FAIL(error, DATA, "site %u: tensor %u is not part of this exchange", frame->site,
                 frame->tensor);
    uint64_t offset = frame->offset_groups, count = frame->count_groups;
    if (count == 0 || offset + count > a->segments[segment].groups)
        DLX_FAIL(error, DATA, "site %u, tensor %u: %llu groups from %llu on, of a tensor of %u",
                 frame->site, frame->tensor, (unsigned long long)count, (unsigned long long)offset,
                 a->segments[segment].groups);
    if (frame->payload == NULL || frame->payload_bytes != count * a->group_bytes)
        DLX_FAIL(error, DATA, "site %u, tensor %u: %u bytes for %llu groups of %zu", frame->site,
                 frame->tensor, frame->payload_bytes, (unsigned long long)count, a->group_bytes);
    *position = a->starts[segment] + offset;
    return DLX_OK;
}

/* *position ← where its groups begin, within the owner's block. */
static dlx_status range_check(const dlxi_allreduce *a, const dlxi_frame *frame, const peer *owner,
                              uint64_t *position, dlx_error *error) {
    uint64_t offset = frame->offset_groups, count = frame->count_groups;
    DLX_TRY(groups_check(a, frame, position, error));
    if (*position < owner->begin || *position + count > owner->end)
        DLX_FAIL(error, DATA,
                 "site %u, tensor %u: groups %llu to %llu are not the block of site %u",
                 frame->site, frame->tensor, (unsigned long long)offset,
                 (unsigned long long)(offset + count), owner->site);
    return DLX_OK;
}

/* Where the shortest of the other members' contributions ends. */
static uint64_t contributed_end(const dlxi_allreduce *a) {
    const peer *mine = &a->peers[a->me];
    uint64_t min = block_groups(mine);
    for (uint32_t m = 0; m < a->members; m++)
        if (m != a->me && a->peers[m].received < min) min = a->peers[m].received;
    return mine->begin + min;
}

dlx_status dlxi_allreduce_on_frame(dlxi_allreduce *a, uint32_t from, const dlxi_frame *frame,
                                   bool *moved, dlx_error *error) {
    *moved = false;
    DLX_TRY(origin_check(a, from, frame, error));
    peer *p = &a->peers[from], *mine = &a->peers[a->me];
    bool contributes = frame->kind == DLXI_FRAME_CONTRIBUTION;
    uint64_t position, count = frame->count_groups;
    DLX_TRY(range_check(a, frame, contributes ? mine : p, &position, error));
    uint64_t offset =
        contributes ? position - mine->begin : block_groups(mine) + position - p->begin;
    if (offset < p->received) return DLX_OK;
    if (offset > p->received && DLXI_PLANTED(8)) p->received = offset;
    if (offset > p->received) {
        *moved = offset_raise(&p->received_max, offset + count);
        DLX_FAIL(error, PEER_LOST, "site %u, tensor %u: frames before group %u were lost",
                 frame->site, frame->tensor, frame->offset_groups);
    }
    if (!dlxi_codes_valid(frame->payload, (size_t)count, a->quantiser))
        DLX_FAIL(error, DATA, "site %u, tensor %u: a scale or value is not finite", frame->site,
                 frame->tensor);
    uint8_t *dst =
        contributes ? contribution_at(a, from, position) : a->result + position * a->group_bytes;
    memcpy(dst, frame->payload, frame->payload_bytes);
    p->received += count;
    if (contributes) {
        dlx_status status = result_extend(a, contributed_end(a), error);
        if (status != DLX_OK) {
            p->received -= count;
            return status;
        }
    }
    (void)offset_raise(&p->received_max, p->received);
    *moved = true;
    return DLX_OK;
}

dlx_status dlxi_allreduce_on_entry(dlxi_allreduce *a, const dlxi_frame *frame, bool *moved,
                                   dlx_error *error) {
    uint64_t position;
    *moved = false;
    if (a->members != 1) DLX_FAIL(error, DATA, "a result that was not asked for");
    DLX_TRY(groups_check(a, frame, &position, error));
    if (position < a->summed) return DLX_OK;
    if (position > a->summed)
        DLX_FAIL(error, PEER_LOST, "results before tensor %u, group %u, were lost", frame->tensor,
                 frame->offset_groups);
    if (!dlxi_codes_valid(frame->payload, frame->count_groups, a->quantiser))
        DLX_FAIL(error, DATA, "site %u, tensor %u: a scale or value is not finite", frame->site,
                 frame->tensor);
    memcpy(a->result + position * a->group_bytes, frame->payload, frame->payload_bytes);
    a->summed += frame->count_groups;
    *moved = true;
    return DLX_OK;
}

/* ---- after ----------------------------------------------------------------------------------- */

dlxi_awaited dlxi_allreduce_awaits(const dlxi_allreduce *a, uint32_t from) {
    if (from >= a->members || from == a->me) return DLXI_AWAITED_NOTHING;
    const peer *p = &a->peers[from];
    if (p->received < block_groups(&a->peers[a->me])) return DLXI_AWAITED_CONTRIBUTION;
    return p->received < stream_groups(a, p) ? DLXI_AWAITED_RESULT : DLXI_AWAITED_NOTHING;
}

bool dlxi_allreduce_done(const dlxi_allreduce *a) {
    if (a->members == 0) return false;
    bool done = a->summed == a->peers[a->me].end;
    for (uint32_t m = 0; m < a->members; m++)
        done &= m == a->me || a->peers[m].received == stream_groups(a, &a->peers[m]);
    return done;
}

void dlxi_allreduce_result(const dlxi_allreduce *a, float *dst) {
    DLXI_ASSERT(dlxi_allreduce_done(a));
    dlxi_dequantise(dst, a->result, (size_t)total_groups(a), a->quantiser);
}

void dlxi_allreduce_own(const dlxi_allreduce *a, float *dst) {
    DLXI_ASSERT(dlxi_allreduce_done(a));
    dlxi_dequantise(dst, a->own, (size_t)total_groups(a), a->quantiser);
}

void dlxi_allreduce_add_residual(const dlxi_allreduce *a, float *dst, float scale) {
    DLXI_ASSERT(dlxi_allreduce_done(a));
    const peer *mine = &a->peers[a->me];
    size_t group = (size_t)a->quantiser.group;
    float tile[TILE_VALUES];
    for (uint64_t position = mine->begin; position < mine->end;) {
        size_t count = tile_groups(a, position, mine->end);
        contributions_sum(a, tile, position, count);
        dlxi_dequantise_add(tile, a->result + position * a->group_bytes, -1.0f, count,
                            a->quantiser);
        float *into = dst + position * group;
        for (size_t i = 0; i < count * group; i++) into[i] += scale * tile[i];
        position += count;
    }
}

const uint8_t *dlxi_allreduce_codes(const dlxi_allreduce *a, const dlxi_segment **segments,
                                    size_t *segment_count, size_t *group_bytes) {
    DLXI_ASSERT(dlxi_allreduce_done(a));
    *segments = a->segments;
    *segment_count = a->segment_count;
    *group_bytes = a->group_bytes;
    return a->result;
}

uint64_t dlxi_allreduce_hash(const dlxi_allreduce *a) {
    DLXI_ASSERT(dlxi_allreduce_done(a));
    return dlxi_hash(a->result, dlxi_allreduce_vector_bytes(a), 0);
}

size_t dlxi_allreduce_vector_bytes(const dlxi_allreduce *a) {
    return a->members == 0 ? 0 : (size_t)total_groups(a) * a->group_bytes;
}
