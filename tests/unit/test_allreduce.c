/* SPDX-License-Identifier: Apache-2.0 */
/* The flat quantised AllReduce: against the plain formula, under random deliveries; bytes;
 * conservation; hostile frames. */
#include "test_allreduce_mover.h"

#include <math.h>

static const uint32_t members_of[] = {1, 2, 3, 5, 8};
enum { MEMBER_CASES = sizeof members_of / sizeof *members_of };

static const dlxi_quantiser quantisers[] = {{.bits = 4, .group = 64},
                                            {.bits = 8, .group = 64},
                                            {.bits = 16, .group = 32},
                                            {.bits = 32, .group = 64}};

/* Lists of segments: several frames a block; many small tensors beside large ones; fewer groups
 * than members. */
static const dlxi_segment large[] = {{3, 1}, {7, 2500}, {8, 1}, {12, 1200}},
                          small[] = {{0, 1},  {1, 1},  {2, 3},  {4, 1},
                                     {9, 40}, {10, 1}, {11, 2}, {20, 1}},
                          one[] = {{UINT32_MAX, 1}}, three[] = {{5, 3}};
static const struct {
    const dlxi_segment *segments;
    size_t count;
} layouts[] = {{large, 4}, {small, 8}, {one, 1}, {three, 1}};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static size_t groups_of(const dlxi_segment *segments, size_t count) {
    size_t groups = 0;
    for (size_t s = 0; s < count; s++) groups += segments[s].groups;
    return groups;
}

static float *new_floats(size_t count) {
    float *values = calloc(count, sizeof *values);
    assert_non_null(values);
    return values;
}

static float *random_values(uint32_t members, size_t length) {
    float *values = new_floats(members * length);
    for (size_t i = 0; i < members * length; i++)
        values[i] = dlxi_rng_normal(1, i / length, i % length);
    return values;
}

/* dequantise(quantise(Σ w · dequantise(quantise(x)))) over whole vectors. */
static void plain_formula(float *result, const mover *m, const float *values, size_t groups,
                          dlxi_quantiser q) {
    size_t length = groups * (size_t)q.group;
    uint8_t *codes = malloc(groups * dlxi_quantiser_group_bytes(q));
    float *said = new_floats(length), *sum = new_floats(length);
    assert_non_null(codes);
    for (uint32_t i = 0; i < m->members; i++) {
        assert_int_equal(dlxi_quantise(codes, values + i * length, groups, q), DLX_OK);
        dlxi_dequantise(said, codes, groups, q);
        for (size_t v = 0; v < length; v++) {
            volatile float product = m->weights[i] * said[v];
            sum[v] += product;
        }
    }
    assert_int_equal(dlxi_quantise(codes, sum, groups, q), DLX_OK);
    dlxi_dequantise(result, codes, groups, q);
    free(codes);
    free(said);
    free(sum);
}

static void check_case(uint32_t members, size_t layout, dlxi_quantiser q, uint64_t seed) {
    const dlxi_segment *segments = layouts[layout].segments;
    size_t count = layouts[layout].count, groups = groups_of(segments, count),
           length = groups * (size_t)q.group;
    mover *m = mover_open(members);
    float *values = random_values(members, length), *expected = new_floats(length),
          *result = new_floats(length);
    plain_formula(expected, m, values, groups, q);
    mover_begin(m, segments, count, q, values, length);
    mover_finish(m, seed);
    uint64_t hash = dlxi_allreduce_hash(m->member[0]);
    for (uint32_t i = 0; i < members; i++) {
        dlxi_allreduce_result(m->member[i], result);
        assert_memory_equal(result, expected, length * sizeof *result);
        assert_true(dlxi_allreduce_hash(m->member[i]) == hash);
        assert_int_equal(dlxi_allreduce_vector_bytes(m->member[i]),
                         groups * dlxi_quantiser_group_bytes(q));
    }
    free(values);
    free(expected);
    free(result);
    mover_close(m);
}

static void all_members_get_the_formulas_bits(void **state) {
    (void)state;
    for (size_t d = 0; d < MEMBER_CASES; d++)
        for (size_t layout = 0; layout < LAYOUTS; layout++)
            for (size_t q = 0; q < 4; q++)
                for (uint64_t seed = 0; seed < (layout == 0 ? 2 : 8); seed++)
                    check_case(members_of[d], layout, quantisers[q], seed);
}

/* Bytes of each member with headers, in bytes[], and the most that headers are at one. */
static double count_bytes(const mover *m, double bytes[MEMBERS_MAX]) {
    double headers_max = 0.0;
    for (uint32_t i = 0; i < m->members; i++) {
        double headers = (double)(m->frames[i] * DLXI_FRAME_HEADER_BYTES);
        bytes[i] = (double)m->payload_bytes[i] + headers;
        headers_max = fmax(headers_max, headers);
    }
    return headers_max;
}

/* A site sends 2·C·(D−1)/D, and no site much more than the others, though a fifth of all bytes are
 * in vectors of one group at the end, whose headers are larger than they are. */
static void bytes_are_shared_equally(void **state) {
    (void)state;
    enum { TENSORS = 120, MATRICES = 12 };
    dlxi_segment mixed[TENSORS];
    for (uint32_t s = 0; s < TENSORS; s++) mixed[s] = (dlxi_segment){s, s < MATRICES ? 60 : 1};
    const dlxi_quantiser q = {.bits = 4, .group = 64};
    for (size_t d = 1; d < MEMBER_CASES; d++)
        for (int which = 0; which < 2; which++) {
            uint32_t members = members_of[d];
            const dlxi_segment *segments = which == 0 ? mixed : large;
            size_t count = which == 0 ? TENSORS : 4, groups = groups_of(segments, count),
                   payload = 0;
            mover *m = mover_open(members);
            float *values = random_values(members, groups * 64);
            mover_begin(m, segments, count, q, values, groups * 64);
            mover_finish(m, d);
            double bytes[MEMBERS_MAX], framing = count_bytes(m, bytes), total = 0.0, largest = 0.0;
            size_t vector = dlxi_allreduce_vector_bytes(m->member[0]);
            double share = 2.0 * (double)vector * (members - 1) / members;
            for (uint32_t i = 0; i < members; i++) {
                assert_true(fabs((double)m->payload_bytes[i] - share) <= framing + 34.0 * members);
                payload += m->payload_bytes[i];
                total += bytes[i];
                largest = fmax(largest, bytes[i]);
            }
            assert_int_equal(payload, 2 * vector * (members - 1));
            if (largest > 1.1 * total / members)
                fail_msg("%u members: the largest sends %g, the mean is %g", members, largest,
                         total / members);
            free(values);
            mover_close(m);
        }
}

/* Whether or not the own frames were taken: they may be asked for later. */
static void done_is_having_every_result(void **state) {
    (void)state;
    float values[2 * 64] = {1.0f, 2.0f};
    bool moved;
    mover *m = mover_open(2);
    mover_begin(m, one, 1, quantisers[0], values, 64);
    dlxi_frame frame;
    uint32_t owner = dlxi_allreduce_peek(m->member[0], 1, &frame) ? 1 : 0, other = 1 - owner;
    assert_true(dlxi_allreduce_peek(m->member[other], owner, &frame));
    assert_false(dlxi_allreduce_done(m->member[owner]));
    assert_int_equal(dlxi_allreduce_on_frame(m->member[owner], other, &frame, &moved, NULL),
                     DLX_OK);
    assert_true(dlxi_allreduce_done(m->member[owner]));
    assert_true(dlxi_allreduce_peek(m->member[owner], other, &frame));
    assert_false(dlxi_allreduce_done(m->member[other]));
    assert_int_equal(dlxi_allreduce_on_frame(m->member[other], owner, &frame, &moved, NULL),
                     DLX_OK);
    assert_true(dlxi_allreduce_done(m->member[other]));
    mover_close(m);
}

/* Σ w_i own_i − result = Σ of the owners' residuals, each in its own block only. */
static void nothing_is_lost(void **state) {
    (void)state;
    for (size_t d = 0; d < MEMBER_CASES; d++)
        for (size_t layout = 0; layout < LAYOUTS; layout++) {
            uint32_t members = members_of[d];
            dlxi_quantiser q = quantisers[0];
            size_t count = layouts[layout].count,
                   groups = groups_of(layouts[layout].segments, count);
            size_t length = groups * 64;
            mover *m = mover_open(members);
            float *values = random_values(members, length), *own = new_floats(length),
                  *result = new_floats(length);
            float *residual = new_floats(length);
            double *difference = calloc(length, sizeof *difference), lost = 0.0;
            unsigned char *owners = calloc(length, 1);
            assert_non_null(difference);
            assert_non_null(owners);
            mover_begin(m, layouts[layout].segments, count, q, values, length);
            mover_finish(m, d);
            dlxi_allreduce_result(m->member[0], result);
            for (size_t v = 0; v < length; v++) difference[v] = -(double)result[v];
            for (uint32_t i = 0; i < members; i++) {
                dlxi_allreduce_own(m->member[i], own);
                for (size_t v = 0; v < length; v++)
                    difference[v] += (double)m->weights[i] * (double)own[v];
                size_t touched = 0;
                for (size_t v = 0; v < length; v++) residual[v] = 1000.0f;
                dlxi_allreduce_add_residual(m->member[i], residual, 0.0f);
                for (size_t v = 0; v < length; v++) touched += residual[v] != 1000.0f;
                assert_int_equal(touched, 0);
                memset(residual, 0, length * sizeof *residual);
                dlxi_allreduce_add_residual(m->member[i], residual, -2.0f);
                for (size_t v = 0; v < length; v++) {
                    difference[v] += 0.5 * (double)residual[v];
                    lost += fabs((double)residual[v]);
                    if (residual[v] != 0.0f) owners[v]++;
                }
            }
            for (size_t v = 0; v < length; v++)
                assert_true(fabs(difference[v]) < 1e-6 && owners[v] <= 1);
            assert_true(members == 1 || lost > 0.0);
            free(values);
            free(own);
            free(result);
            free(residual);
            free(difference);
            free(owners);
            mover_close(m);
        }
}

/* An exchange given up half-way leaves nothing behind, whatever shape the next one has. */
static void a_new_begin_forgets(void **state) {
    (void)state;
    const dlxi_quantiser q = quantisers[0];
    mover *m = mover_open(3);
    for (uint64_t seed = 0; seed < 20; seed++)
        for (size_t layout = 0; layout < LAYOUTS; layout++) {
            size_t count = layouts[layout].count,
                   groups = groups_of(layouts[layout].segments, count);
            float *values = random_values(3, groups * 64), *other = random_values(3, groups * 64);
            float *expected = new_floats(groups * 64), *result = new_floats(groups * 64);
            for (size_t v = 0; v < 3 * groups * 64; v++) other[v] = 1.0f - other[v];
            mover_begin(m, layouts[layout].segments, count, q, other, groups * 64);
            for (uint64_t step = 0; step < seed * 20; step++) mover_step(m, seed, step);
            mover_begin(m, layouts[layout].segments, count, q, values, groups * 64);
            mover_finish(m, seed + 100);
            plain_formula(expected, m, values, groups, q);
            dlxi_allreduce_result(m->member[2], result);
            assert_memory_equal(result, expected, groups * 64 * sizeof *result);
            free(values);
            free(other);
            free(expected);
            free(result);
        }
    mover_close(m);
}

static void refused_as(dlx_status status, dlxi_allreduce *a, uint32_t from, const dlxi_frame *frame,
                       const char *reason) {
    dlx_error error = {0};
    bool moved;
    assert_int_equal(dlxi_allreduce_on_frame(a, from, frame, &moved, &error), status);
    if (strstr(error.message, reason) == NULL)
        fail_msg("'%s' does not say '%s'", error.message, reason);
}

static void refused(dlxi_allreduce *a, uint32_t from, const dlxi_frame *frame, const char *reason) {
    refused_as(DLX_DATA, a, from, frame, reason);
}

/* All the ways to be wrong, tried around one frame that is right. */
static void try_hostile(dlxi_allreduce *a, uint32_t from, const dlxi_frame *right,
                        uint32_t groups_in_tensor) {
    dlxi_frame f = *right;
    f.kind = DLXI_FRAME_ANCHOR, refused(a, from, &f, "kind 66"), f = *right;
    f.term++, refused(a, from, &f, "term 6"), f = *right;
    f.round--, refused(a, from, &f, "round 76"), f = *right;
    f.attempt++, refused(a, from, &f, "attempt 3"), f = *right;
    f.trip = 0, refused(a, from, &f, "trip 0"), f = *right;
    f.rank++, refused(a, from, &f, "rank 4"), f = *right;
    f.site++, refused(a, from, &f, "came as from member"), f = *right;
    refused(a, 0, &f, "came as from member 0");
    refused(a, 3, &f, "came as from member 3");
    refused(a, UINT32_MAX, &f, "came as from member");
    f.tensor++, refused(a, from, &f, "not part of this exchange"), f = *right;
    f.offset_groups = UINT32_MAX, refused(a, from, &f, "of a tensor of"), f = *right;
    f.offset_groups = UINT32_MAX - f.count_groups + 1, refused(a, from, &f, "of a tensor of"),
    f = *right;
    f.count_groups = UINT32_MAX, refused(a, from, &f, "of a tensor of"), f = *right;
    f.count_groups = 0, f.payload_bytes = 0, refused(a, from, &f, "of a tensor of"), f = *right;
    f.payload_bytes--, refused(a, from, &f, "bytes for"), f = *right;
    f.payload_bytes += 34, refused(a, from, &f, "bytes for"), f = *right;
    f.count_groups--, refused(a, from, &f, "bytes for"), f = *right;
    f.payload = NULL, refused(a, from, &f, "bytes for"), f = *right;
    f.offset_groups++, f.count_groups--, f.payload_bytes -= 34,
        refused_as(DLX_PEER_LOST, a, from, &f, "were lost"), f = *right;
    f.kind = f.kind == DLXI_FRAME_RESULT ? DLXI_FRAME_CONTRIBUTION : DLXI_FRAME_RESULT;
    refused(a, from, &f, "are not the block of site"), f = *right;
    /* the other end of the tensor */
    f.offset_groups = groups_in_tensor - f.count_groups - f.offset_groups;
    if (f.offset_groups != right->offset_groups) refused(a, from, &f, "are not the block of site");
    f = *right;
    uint8_t *bytes = malloc(f.payload_bytes);
    assert_non_null(bytes);
    memcpy(bytes, f.payload, f.payload_bytes);
    bytes[f.payload_bytes - 1] = 0x7C; /* an infinite scale */
    f.payload = bytes, refused(a, from, &f, "not finite");
    free(bytes);
}

static void hostile_frames_are_refused(void **state) {
    (void)state;
    static const dlxi_segment segments[] = {{10, 6}, {20, 90}, {40, 6}};
    const dlxi_quantiser q = quantisers[0];
    enum { LENGTH = 102 * 64 };
    mover *m = mover_open(3);
    float *values = random_values(3, LENGTH), *expected = new_floats(LENGTH),
          *result = new_floats(LENGTH);
    plain_formula(expected, m, values, 102, q);
    mover_begin(m, segments, 3, q, values, LENGTH);
    size_t tried[2] = {0, 0};
    /* everything into member 0 is preceded by its hostile twins */
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t from = 0; from < 3; from++)
            for (uint32_t to = 0; to < 3; to++) {
                dlxi_frame frame;
                if (!dlxi_allreduce_peek(m->member[from], to, &frame)) continue;
                bool middle = frame.tensor == 20 && to == 0;
                if (middle) try_hostile(m->member[0], from, &frame, 90);
                bool taken;
                assert_int_equal(dlxi_allreduce_on_frame(m->member[to], from, &frame, &taken, NULL),
                                 DLX_OK);
                assert_true(taken);
                if (middle) {
                    assert_int_equal(
                        dlxi_allreduce_on_frame(m->member[0], from, &frame, &taken, NULL), DLX_OK);
                    assert_false(taken);
                    tried[frame.kind == DLXI_FRAME_RESULT]++;
                }
                dlxi_allreduce_advance(m->member[from], to);
                moved = true;
            }
    }
    assert_int_equal(tried[0], 2);
    assert_int_equal(tried[1], 2);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(dlxi_allreduce_done(m->member[i]));
        dlxi_allreduce_result(m->member[i], result);
        assert_memory_equal(result, expected, sizeof *result * LENGTH);
    }
    free(values);
    free(expected);
    free(result);
    mover_close(m);
}

/* Finite contributions whose sum is not: refused as a whole, and the member is as before. */
static void a_sum_that_overflows_is_refused(void **state) {
    (void)state;
    const dlxi_segment segments[] = {{1, 2}};
    mover *m = mover_open(2);
    float values[2 * 128];
    for (size_t v = 0; v < 256; v++) values[v] = 3e38f;
    m->weights[0] = m->weights[1] = 1.0f;
    mover_begin(m, segments, 1, quantisers[3], values, 128);
    dlxi_frame frame;
    dlx_error error;
    assert_true(dlxi_allreduce_peek(m->member[1], 0, &frame));
    for (int again = 0; again < 2; again++) {
        bool moved;
        assert_int_equal(dlxi_allreduce_on_frame(m->member[0], 1, &frame, &moved, &error),
                         DLX_NUMERIC);
        assert_false(moved);
        assert_non_null(strstr(error.message, "tensor 1: the sites' weighted mean is not finite"));
    }
    mover_close(m);
}

/* ---- lost frames ----------------------------------------------------------------------------- */

/* Moves frames in order and loses some; a sender goes back to where the receiver stands. */
static void lossy_exchange(mover *m, uint64_t seed) {
    bool over = false;
    for (uint64_t n = 0; !over; n++) {
        assert_true(n < 100000);
        over = mover_done(m);
        for (uint32_t from = 0; from < m->members; from++)
            for (uint32_t to = 0; to < m->members; to++) {
                dlxi_frame frame;
                dlx_error error;
                bool moved;
                uint64_t sent, received, ignored, draw = dlxi_rng_u64(seed, n, from * 64 + to);
                if (from == to) continue;
                dlxi_allreduce_offsets(m->member[from], to, &sent, &ignored);
                dlxi_allreduce_offsets(m->member[to], from, &ignored, &received);
                assert_true(received <= sent);
                if (received < sent && draw % 8 == 0) {
                    dlxi_allreduce_go_back(m->member[from], to, received);
                    dlxi_allreduce_offsets(m->member[from], to, &sent, &ignored);
                    assert_int_equal(sent, received);
                }
                if (!dlxi_allreduce_peek(m->member[from], to, &frame)) continue;
                (void)dlxi_allreduce_advance(m->member[from], to);
                if (draw % 3 == 1) continue;
                dlx_status status =
                    dlxi_allreduce_on_frame(m->member[to], from, &frame, &moved, &error);
                assert_int_equal(status, received < sent ? DLX_PEER_LOST : DLX_OK);
            }
    }
}

static void lost_frames_are_sent_again(void **state) {
    (void)state;
    for (size_t d = 1; d < MEMBER_CASES; d++)
        for (size_t layout = 0; layout < LAYOUTS; layout++)
            for (uint64_t seed = 0; seed < 5; seed++) {
                const dlxi_segment *segments = layouts[layout].segments;
                size_t count = layouts[layout].count, length = groups_of(segments, count) * 64;
                mover *m = mover_open(members_of[d]);
                float *values = random_values(m->members, length), *expected = new_floats(length),
                      *result = new_floats(length);
                plain_formula(expected, m, values, length / 64, quantisers[0]);
                mover_begin(m, segments, count, quantisers[0], values, length);
                lossy_exchange(m, seed);
                for (uint32_t i = 0; i < m->members; i++) {
                    dlxi_allreduce_result(m->member[i], result);
                    assert_memory_equal(result, expected, length * sizeof *result);
                }
                free(values);
                free(expected);
                free(result);
                mover_close(m);
            }
}

/* What a peer without progress can do as often as it likes is no progress. */
static void progress_is_counted_once(void **state) {
    (void)state;
    static const dlxi_segment segments[] = {{1, 20000}};
    mover *m = mover_open(2);
    float *values = random_values(2, 20000 * 64);
    mover_begin(m, segments, 1, quantisers[3], values, 20000 * 64);
    dlxi_allreduce *a = m->member[0], *b = m->member[1];
    dlxi_frame frame;
    dlx_error error;
    bool moved;
    uint64_t sent, received;
    for (int again = 0; again < 3; again++) {
        dlxi_allreduce_go_back(a, 1, 0);
        for (int i = 0; i < 3; i++) {
            assert_true(dlxi_allreduce_peek(a, 1, &frame));
            assert_int_equal(dlxi_allreduce_advance(a, 1), again == 0);
            if (i == 0) continue; /* the first one is lost each time */
            assert_int_equal(dlxi_allreduce_on_frame(b, 0, &frame, &moved, &error), DLX_PEER_LOST);
            assert_int_equal(moved, again == 0);
        }
    }
    dlxi_allreduce_offsets(b, 0, &sent, &received);
    assert_int_equal(received, 0);
    dlxi_allreduce_offsets(a, 1, &sent, &received);
    dlxi_allreduce_go_back(a, 1, UINT64_MAX); /* nor forward */
    uint64_t after;
    dlxi_allreduce_offsets(a, 1, &after, &received);
    assert_int_equal(after, sent);
    free(values);
    mover_close(m);
}

static void settings_are_checked(void **state) {
    (void)state;
    const dlxi_segment right[] = {{1, 2}, {2, 1}}, repeated[] = {{1, 2}, {1, 1}},
                       empty[] = {{1, 0}, {2, 1}};
    float values[3 * 64] = {0.0f};
    mover *m = mover_open(2);
    dlxi_allreduce *a = m->member[0];
    dlx_error error;
    dlxi_allreduce_begin s = mover_settings(m, 0, right, 2, quantisers[0]);
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_OK);
    s.me = 2;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    s.me = 0, s.members = 0;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    s.members = DLXI_SITES_MAX + 1;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    s.members = 2, s.segments = repeated;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    s.segments = empty;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    s.segments = right, s.segment_count = 0;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    s.segment_count = 2, m->weights[1] = NAN;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_ARGUMENT);
    m->weights[1] = 0.5f, values[100] = INFINITY;
    assert_int_equal(dlxi_allreduce_begin_with(a, &s, values, &error), DLX_NUMERIC);
    assert_non_null(strstr(error.message, "round 77"));
    dlxi_frame frame;
    assert_false(dlxi_allreduce_peek(a, 1, &frame)); /* a failed begin leaves nothing under way */
    assert_false(dlxi_allreduce_done(a));
    frame = (dlxi_frame){.kind = DLXI_FRAME_RESULT};
    refused(a, 1, &frame, "none is under way");
    mover_close(m);
    dlxi_allreduce *nothing = NULL;
    dlxi_allreduce_close(&nothing);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_members_get_the_formulas_bits),
        cmocka_unit_test(bytes_are_shared_equally),
        cmocka_unit_test(nothing_is_lost),
        cmocka_unit_test(a_new_begin_forgets),
        cmocka_unit_test(hostile_frames_are_refused),
        cmocka_unit_test(a_sum_that_overflows_is_refused),
        cmocka_unit_test(lost_frames_are_sent_again),
        cmocka_unit_test(progress_is_counted_once),
        cmocka_unit_test(settings_are_checked),
        cmocka_unit_test(done_is_having_every_result),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
