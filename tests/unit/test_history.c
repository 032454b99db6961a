/* SPDX-License-Identifier: Apache-2.0 */
/* The results of past rounds: kept, bounded, read in frames, and followed by a site that was not in
 * them. */
#include "exchange_team.h"

#include "base/rng.h"

/* ---- entries --------------------------------------------------------------------------------- */

/* Trip 0: tensor 5 of `groups` groups and tensor 9 of 3, of 100 bytes each; trip 2: tensor 2. */
enum { GROUP_BYTES = 100, LINEAGE = 77 };

static void keep(dlxi_history *h, uint64_t round, uint32_t groups) {
    dlxi_segment first[2] = {{5, groups}, {9, 3}}, last[1] = {{2, 4}};
    size_t bytes = (groups + 3) * (size_t)GROUP_BYTES;
    uint8_t *codes = malloc(bytes), few[4 * GROUP_BYTES];
    for (size_t i = 0; i < bytes; i++) codes[i] = (uint8_t)dlxi_rng_u64(round, 0, i);
    for (size_t i = 0; i < sizeof few; i++) few[i] = (uint8_t)dlxi_rng_u64(round, 2, i);
    const dlxi_entry_trip trips[DLXI_ENTRY_TRIPS] = {
        {.segments = first, .segment_count = 2, .group_bytes = GROUP_BYTES, .codes = codes},
        {0},
        {.segments = last, .segment_count = 1, .group_bytes = GROUP_BYTES, .codes = few}};
    dlxi_history_keep(h, round, LINEAGE, trips);
    free(codes); /* it has copied them */
}

static void the_oldest_are_dropped(void **state) {
    (void)state;
    enum { BYTES = (10 + 3 + 4) * GROUP_BYTES };
    dlxi_history h = {.bytes_max = 3 * BYTES};
    assert_null(dlxi_history_find(&h, 1, LINEAGE));
    for (uint64_t round = 1; round <= 5; round++) {
        keep(&h, round, 10);
        assert_int_equal(h.bytes, (round < 3 ? round : 3) * BYTES);
    }
    for (uint64_t round = 0; round <= 6; round++) {
        const dlxi_entry *e = dlxi_history_find(&h, round, LINEAGE);
        assert_int_equal(e != NULL, round >= 3 && round <= 5);
        if (e != NULL) assert_int_equal(e->round, round);
    }
    assert_null(dlxi_history_find(&h, 5, LINEAGE + 1)); /* the same round of another history */
    keep(&h, 6, 1000);                                  /* more than all: the newest is kept */
    assert_null(dlxi_history_find(&h, 5, LINEAGE));
    assert_non_null(dlxi_history_find(&h, 6, LINEAGE));
    keep(&h, 7, 10);
    assert_null(dlxi_history_find(&h, 6, LINEAGE));
    assert_int_equal(h.bytes, BYTES);
    dlxi_history_clear(&h);
    assert_int_equal(h.bytes, 0);
    assert_null(dlxi_history_find(&h, 7, LINEAGE));
}

static dlxi_frame fetch_of(uint16_t trip, uint32_t tensor, uint32_t group) {
    return (dlxi_frame){
        .kind = DLXI_FRAME_FETCH, .trip = trip, .tensor = tensor, .offset_groups = group};
}

/* The frames from any place on hold all codes behind it, in order. */
static void an_entry_is_read_in_frames_from_any_place(void **state) {
    (void)state;
    enum { GROUPS = 6000 }; /* of several frames */
    dlxi_history h = {.bytes_max = 1 << 20};
    keep(&h, 8, GROUPS);
    const dlxi_entry *e = dlxi_history_find(&h, 8, LINEAGE);
    static const struct {
        uint16_t trip;
        uint32_t tensor, group;
        size_t at, frames; /* at: groups before it */
    } places[] = {{0, 5, 0, 0, 5},      {0, 5, 1, 1, 5},          {0, 5, GROUPS - 1, GROUPS - 1, 3},
                  {0, 9, 0, GROUPS, 2}, {0, 9, 2, GROUPS + 2, 2}, {2, 2, 3, GROUPS + 3 + 3, 1}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        dlxi_entry_cursor cursor;
        dlxi_frame frame, fetch = fetch_of(places[i].trip, places[i].tensor, places[i].group);
        assert_true(dlxi_entry_seek(e, &cursor, &fetch));
        size_t groups = places[i].at, frames = 0;
        while (dlxi_entry_peek(e, &cursor, &frame)) {
            assert_int_equal(frame.kind, DLXI_FRAME_ENTRY);
            assert_int_equal(frame.round, 8);
            assert_in_range(frame.payload_bytes, GROUP_BYTES, DLXI_FRAME_PAYLOAD_MAX);
            assert_int_equal(frame.payload_bytes, frame.count_groups * GROUP_BYTES);
            assert_int_equal(frame.trip, groups < GROUPS + 3 ? 0 : 2);
            assert_int_equal(frame.tensor, groups < GROUPS ? 5 : groups < GROUPS + 3 ? 9 : 2);
            size_t before = groups < GROUPS ? 0 : groups < GROUPS + 3 ? GROUPS : GROUPS + 3;
            assert_int_equal(frame.offset_groups, groups - before);
            size_t in_trip = frame.trip == 0 ? groups : groups - GROUPS - 3;
            for (size_t k = 0; k < frame.payload_bytes; k++)
                assert_int_equal(frame.payload[k],
                                 (uint8_t)dlxi_rng_u64(8, frame.trip, in_trip * GROUP_BYTES + k));
            groups += frame.count_groups;
            dlxi_entry_advance(&cursor, &frame);
            frames++;
        }
        assert_int_equal(groups, GROUPS + 3 + 4);
        assert_int_equal(frames, places[i].frames);
    }
    static const uint32_t nowhere[][3] = {{0, 5, GROUPS}, {0, 6, 0}, {0, 10, 0}, {0, 9, UINT32_MAX},
                                          {1, 5, 0},      {2, 5, 0}, {3, 5, 0},  {65535, 0, 0}};
    for (size_t i = 0; i < sizeof nowhere / sizeof *nowhere; i++) {
        dlxi_entry_cursor cursor;
        dlxi_frame fetch = fetch_of((uint16_t)nowhere[i][0], nowhere[i][1], nowhere[i][2]);
        assert_false(dlxi_entry_seek(e, &cursor, &fetch));
    }
    dlxi_history_clear(&h);
}

/* ---- following ------------------------------------------------------------------------------- */

static void train(team *t, uint16_t members, uint64_t round) {
    for (uint16_t i = 0; i < members; i++)
        for (int k = 0; k < TEAM_PARAMETERS; k++)
            t->p[i][k] += 0.01f * dlxi_rng_normal(17, round * 10 + i, (uint64_t)k);
}

static void give(team *t, const dlxi_entry *e) {
    dlxi_entry_cursor cursor;
    dlxi_frame fetch, frame;
    bool moved;
    dlx_error error;
    assert_true(dlxi_exchange_wants(t->exchange[2], &fetch));
    assert_true(dlxi_entry_seek(e, &cursor, &fetch));
    while (dlxi_entry_peek(e, &cursor, &frame)) {
        if (dlxi_exchange_on_entry(t->exchange[2], &frame, &moved, &error) != DLX_OK)
            fail_msg("%s", error.message);
        assert_true(moved);
        assert_int_equal(dlxi_exchange_on_entry(t->exchange[2], &frame, &moved, &error), DLX_OK);
        assert_false(moved); /* twice */
        dlxi_entry_advance(&cursor, &frame);
    }
    assert_false(dlxi_exchange_wants(t->exchange[2], &fetch));
}

/* M is what it was; of statistics, what is left of it to the new θ. */
static void assert_kept(const float *before, const float *anchor, const dlxi_state_tensor *tensor) {
    for (int64_t k = 0; k < dlxi_state_tensor_values(tensor); k++) {
        if (tensor->kind == DLX_STATISTICS)
            assert_float_equal(tensor->error[k], before[k] - (anchor[k] - tensor->anchor[k]), 1e-6);
        else
            assert_true(tensor->error[k] == before[k]);
    }
}

/* Sites 0 and 1 commit rounds without site 2, which follows them and then takes part. */
static void follow_rounds(const dlx_sync_config *settings, dlx_kind kind) {
    enum { ROUNDS = 4 };
    static float error[TEAM_TENSORS][MATRIX], anchor[TEAM_TENSORS][MATRIX];
    team *t = team_open_with(3, settings, kind);
    dlxi_history h = {.bytes_max = 1 << 24}, again = {.bytes_max = 1 << 24};
    dlx_error e;
    double norm;
    train(t, 3, 1);
    assert_int_equal(dlxi_local_submit(t->local[2], t->state[2], false, false, 0, &norm, NULL),
                     DLX_OK);
    t->members = t->view.members = 2;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        if (round > 1) train(t, 2, round);
        team_submit(t);
        team_begin(t, round, 1);
        assert_true(team_move(t));
        dlxi_exchange_keep(t->exchange[1], LINEAGE, &h);
        team_commit(t);
        team_apply(t);
        for (size_t k = 0; k < TEAM_TENSORS; k++) {
            size_t bytes = (size_t)dlxi_state_tensor_values(&t->state[2]->tensors[k]) * 4;
            memcpy(error[k], t->state[2]->tensors[k].error, bytes);
            memcpy(anchor[k], t->state[2]->tensors[k].anchor, bytes);
        }
        if (dlxi_exchange_follow(t->exchange[2], t->state[2], &t->view, round, &e) != DLX_OK)
            fail_msg("%s", e.message);
        give(t, dlxi_history_find(&h, round, LINEAGE));
        dlxi_exchange_keep(t->exchange[2], LINEAGE, &again); /* for others */
        dlxi_exchange_commit(t->exchange[2], t->state[2]);
        assert_true(dlxi_exchange_weight(t->exchange[2]) == 0.0f);
        assert_true(dlxi_state_hash(t->state[2], DLXI_STATE_REPLICATED) ==
                    dlxi_state_hash(t->state[0], DLXI_STATE_REPLICATED));
        assert_true(dlxi_state_anchor_hash(t->state[2]) == dlxi_state_anchor_hash(t->state[0]));
        for (size_t k = 0; k < TEAM_TENSORS; k++)
            assert_kept(error[k], anchor[k], &t->state[2]->tensors[k]);
        const dlxi_entry *a = dlxi_history_find(&h, round, LINEAGE),
                         *b = dlxi_history_find(&again, round, LINEAGE);
        for (int trip = 0; trip < DLXI_ENTRY_TRIPS; trip++) {
            size_t groups = 0;
            for (size_t k = 0; k < a->trips[trip].segment_count; k++)
                groups += a->trips[trip].segments[k].groups;
            assert_int_equal(a->trips[trip].segment_count, b->trips[trip].segment_count);
            if (groups > 0)
                assert_memory_equal(a->trips[trip].codes, b->trips[trip].codes,
                                    groups * a->trips[trip].group_bytes);
        }
    }
    t->members = 2;
    train(t, 2, ROUNDS + 1);
    team_submit(t);
    t->members = t->view.members = 3; /* with what it submitted in the first round */
    team_begin(t, ROUNDS + 1, 1);
    assert_true(team_move(t));
    team_commit(t);
    dlxi_history_clear(&h);
    dlxi_history_clear(&again);
    team_close(t);
}

static void who_follows_ends_where_members_do(void **state) {
    (void)state;
    for (int which = 0; which < 16; which++) {
        dlx_sync_config settings = team_settings((which & 1) != 0 ? 32 : 4, 4);
        settings.error_feedback = (which & 2) != 0;
        settings.adaptation = (which & 4) != 0 ? DLX_ADAPTATION_PAPER : DLX_ADAPTATION_LINK;
        follow_rounds(&settings, (which & 8) != 0 ? DLX_STATISTICS : DLX_TRAINED);
    }
}

static void gaps_and_damage_are_refused(void **state) {
    (void)state;
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open_with(3, &settings, DLX_STATISTICS);
    dlxi_history h = {.bytes_max = 1 << 24};
    dlx_error error;
    double norm;
    bool moved;
    train(t, 3, 1);
    assert_int_equal(dlxi_local_submit(t->local[2], t->state[2], false, false, 0, &norm, NULL),
                     DLX_OK);
    t->members = t->view.members = 2;
    team_submit(t);
    team_begin(t, 1, 1);
    assert_true(team_move(t));
    dlxi_exchange_keep(t->exchange[0], LINEAGE, &h);
    team_commit(t);
    assert_int_equal(dlxi_exchange_follow(t->exchange[2], t->state[2], &t->view, 1, &error),
                     DLX_OK);
    const dlxi_entry *e = dlxi_history_find(&h, 1, LINEAGE);
    dlxi_entry_cursor cursor;
    dlxi_frame good, frame, fetch;
    assert_true(dlxi_exchange_wants(t->exchange[2], &fetch));
    assert_int_equal(fetch.kind, DLXI_FRAME_FETCH);
    assert_int_equal(fetch.round, 1);
    assert_true(dlxi_entry_seek(e, &cursor, &fetch));
    assert_true(dlxi_entry_peek(e, &cursor, &good));
    uint8_t *payload = malloc(good.payload_bytes);
    for (int what = 0; what < 10; what++) {
        frame = good;
        memcpy(payload, good.payload, good.payload_bytes);
        frame.payload = payload;
        if (what == 0) frame.tensor = 77;
        if (what == 1) frame.payload_bytes--;
        if (what == 2) frame.count_groups++;
        if (what == 3) frame.count_groups = UINT32_MAX;
        if (what == 4) frame.count_groups = 0, frame.payload_bytes = 0;
        if (what == 5) memset(payload, 0xff, good.payload_bytes); /* scales that are no numbers */
        if (what == 6) frame.offset_groups++, frame.count_groups--;
        if (what == 6) frame.payload_bytes -= good.payload_bytes / good.count_groups;
        if (what == 7) frame.trip = 1;
        if (what == 8) frame.trip = 3;
        if (what == 9) frame.round = 2;
        dlx_status expected = what < 6   ? DLX_DATA
                              : what < 8 ? DLX_PEER_LOST
                                         : DLX_OK; /* of no round that it follows: dropped */
        if (dlxi_exchange_on_entry(t->exchange[2], &frame, &moved, &error) != expected)
            fail_msg("case %d", what);
        assert_false(moved);
    }
    free(payload);
    give(t, e); /* nothing of that has done harm */
    dlxi_exchange_commit(t->exchange[2], t->state[2]);
    assert_true(dlxi_state_hash(t->state[2], DLXI_STATE_REPLICATED) ==
                dlxi_state_hash(t->state[0], DLXI_STATE_REPLICATED));
    assert_int_equal(dlxi_exchange_on_entry(t->exchange[2], &good, &moved, &error), DLX_OK);
    assert_false(moved);
    t->members = 3;
    dlxi_history_clear(&h);
    team_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_oldest_are_dropped),
        cmocka_unit_test(an_entry_is_read_in_frames_from_any_place),
        cmocka_unit_test(who_follows_ends_where_members_do),
        cmocka_unit_test(gaps_and_damage_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
