/* SPDX-License-Identifier: Apache-2.0 */
/* The exchange of a round as a pure object: what it computes, and that nothing changes before a
 * commit. */
#include "exchange_team.h"

#include "base/rng.h"

#include <math.h>
#include <stdio.h>

static float noise(uint64_t stream, uint64_t index) {
    return dlxi_rng_normal(17, stream, index);
}

/* Local training: some structure of low rank, and noise. */
static void train(team *t, uint64_t round) {
    for (uint16_t i = 0; i < t->members; i++)
        for (int k = 0; k < TEAM_PARAMETERS; k++)
            t->p[i][k] += 0.01f * noise(round * 10 + i, (uint64_t)k);
}

/* ---- what it computes ------------------------------------------------------------------------ */

/* matrix ← −Σ of `rank` outer products: the pseudo-gradient is that sum. */
static void subtract_outer_products(float *p, uint64_t stream, int rank) {
    for (int r = 0; r < rank; r++)
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < COLS; j++)
                p[i * COLS + j] -= noise(stream, (uint64_t)(1000 * r + i)) *
                                   noise(stream, (uint64_t)(1000 * r + 500 + j));
}

static void a_rank_that_suffices_gives_the_mean(void **state) {
    (void)state;
    for (uint16_t members = 2; members <= 3; members++)
        for (int rank = 2 * members; rank <= 2 * members + 3; rank += 3) {
            dlx_sync_config settings = team_settings(32, rank);
            team *t = team_open(members, &settings);
            static float start[TEAM_MAX][TEAM_PARAMETERS];
            memcpy(start, t->p, sizeof start);
            train(t, 1);
            for (uint16_t i = 0; i < members; i++)
                memcpy(t->p[i], start[i], MATRIX * sizeof(float));
            for (uint16_t i = 0; i < members; i++) subtract_outer_products(t->p[i], 100u + i, 2);
            static double mean[TEAM_PARAMETERS];
            memset(mean, 0, sizeof mean);
            for (uint16_t i = 0; i < members; i++)
                for (int k = 0; k < TEAM_PARAMETERS; k++)
                    mean[k] += team_weight(t, i) * ((double)start[i][k] - (double)t->p[i][k]);
            team_round(t, 1);
            double largest = 0, off = 0;
            for (int k = 0; k < MATRIX; k++) { /* v is Δ after the first round */
                largest = fmax(largest, fabs(mean[k]));
                off = fmax(off, fabs((double)t->state[0]->tensors[0].velocity[k] - mean[k]));
            }
            assert_true(t->state[0]->tensors[0].low_rank && !t->state[0]->tensors[1].low_rank);
            if (off > 1e-5 * largest)
                fail_msg("%d members, rank %d: off by %g of %g", members, rank, off, largest);
            for (int k = 0; k < 30; k++)
                assert_float_equal(t->state[0]->tensors[1].velocity[k], mean[MATRIX + k], 1e-7);
            for (int k = 0; k < 33; k++)
                assert_float_equal(t->state[0]->tensors[2].velocity[k], mean[MATRIX + 30 + k],
                                   1e-7);
            team_close(t);
        }
}

/* Sites whose replicas would differ, or whose frames would not fit, must not get past the
 * rendezvous: it compares this. */
static void settings_are_part_of_the_tensors_hash(void **state) {
    (void)state;
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open(1, &settings);
    uint64_t plain = dlxi_state_tensors_hash(t->state[0]);
    team_close(t);
    for (int which = 0; which < 2; which++) {
        dlx_sync_config other = settings;
        other.seed += (uint64_t)which;
        t = team_open(1, &other);
        assert_int_equal(dlxi_state_tensors_hash(t->state[0]) == plain, which == 0);
        team_close(t);
    }
}

/* ---- nothing changes before a commit --------------------------------------------------------- */

typedef struct image {
    uint8_t *bytes;
    size_t count;
} image;

static void append(image *m, const void *from, size_t bytes) {
    m->bytes = realloc(m->bytes, m->count + bytes);
    assert_non_null(m->bytes);
    memcpy(m->bytes + m->count, from, bytes);
    m->count += bytes;
}

/* θ, v, M or e, the bases, and what decides the next exchange. */
static image image_of(const team *t) {
    image m = {0};
    for (uint16_t i = 0; i < t->members; i++)
        for (size_t k = 0; k < TEAM_TENSORS; k++) {
            const dlxi_state_tensor *tensor = &t->state[i]->tensors[k];
            size_t bytes = (size_t)(tensor->rows * tensor->cols) * sizeof(float);
            append(&m, tensor->anchor, bytes);
            append(&m, tensor->velocity, bytes);
            append(&m, tensor->error, bytes);
            append(&m, &tensor->anchor_hash, sizeof tensor->anchor_hash);
            append(&m, &tensor->basis_columns, sizeof tensor->basis_columns);
            append(&m, &tensor->adapt, sizeof tensor->adapt);
            if (!tensor->low_rank) continue;
            size_t stride = (size_t)dlxi_factor_stride(COLS, 16);
            append(&m, tensor->basis, (size_t)tensor->basis_columns * stride * sizeof(float));
        }
    return m;
}

static void assert_same(const image *a, const image *b) {
    assert_int_equal(a->count, b->count);
    assert_true(memcmp(a->bytes, b->bytes, a->count) == 0);
}

/* Each disturbance aborts an attempt with frames of one one-way trip under way; the last one after
 * staging. */
static const struct {
    int trip;
    dlxi_frame_kind kind;
} disturbances[] = {{0, DLXI_FRAME_CONTRIBUTION},
                    {0, DLXI_FRAME_RESULT},
                    {1, DLXI_FRAME_CONTRIBUTION},
                    {1, DLXI_FRAME_RESULT},
                    {-1, DLXI_FRAME_PING}};

static void disturb(team *t, uint64_t round, size_t which, uint32_t attempt) {
    team_begin(t, round, attempt);
    t->hold_trip = disturbances[which].trip;
    t->hold_kind = disturbances[which].kind;
    t->hold_from = t->hold_to = -1;
    bool staged = team_move(t);
    assert_int_equal(staged, disturbances[which].trip < 0);
    for (uint16_t i = 0; i < t->members; i++)
        assert_int_equal(dlxi_exchange_trip(t->exchange[i]), disturbances[which].trip);
    bool under_way = false;
    for (uint16_t from = 0; from < t->members; from++)
        for (uint16_t to = 0; to < t->members; to++)
            under_way = under_way || t->queue[from][to] != NULL;
    assert_int_equal(under_way, disturbances[which].trip >= 0);
    for (uint16_t i = 0; i < t->members; i++) dlxi_exchange_abort(t->exchange[i]);
    t->hold_trip = -1;
}

static void an_aborted_attempt_leaves_no_trace(void **state) {
    (void)state;
    static const int kinds[][2] = {
        {4, DLX_ADAPTATION_OFF}, {4, DLX_ADAPTATION_PAPER}, {32, DLX_ADAPTATION_OFF}};
    for (size_t kind = 0; kind < 3; kind++)
        for (uint16_t members = 2; members <= 3; members++) {
            dlx_sync_config settings = team_settings(kinds[kind][0], 4);
            settings.adaptation = (dlx_adaptation)kinds[kind][1];
            team *calm = team_open(members, &settings), *tried = team_open(members, &settings);
            for (uint64_t round = 1; round <= 4; round++) {
                train(calm, round);
                train(tried, round);
                team_round(calm, round);
                team_submit(tried);
                image before = image_of(tried);
                uint32_t attempt = 1;
                for (size_t which = 0; which < sizeof disturbances / sizeof *disturbances;
                     which++) {
                    disturb(tried, round, which, attempt++);
                    image after = image_of(tried);
                    assert_same(&before, &after);
                    free(after.bytes);
                }
                team_begin(tried, round, attempt); /* with stale frames still on their way */
                assert_true(team_move(tried));
                team_commit(tried);
                team_apply(tried);
                image repeated = image_of(tried), undisturbed = image_of(calm);
                assert_same(&repeated, &undisturbed);
                assert_memory_equal(tried->p, calm->p, sizeof calm->p);
                free(before.bytes);
                free(repeated.bytes);
                free(undisturbed.bytes);
            }
            team_close(calm);
            team_close(tried);
        }
}

/* ---- early and stale frames ------------------------------------------------------------------ */

/* Runs the same round in a calm team; the hash that all must end with. */
static uint64_t calm_hash(uint16_t members, uint64_t rounds) {
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open(members, &settings);
    for (uint64_t round = 1; round <= rounds; round++) {
        train(t, round);
        team_round(t, round);
    }
    uint64_t hash = dlxi_state_anchor_hash(t->state[0]);
    team_close(t);
    return hash;
}

/* Member 1 lacks a result of the first trip, while member 2 has all and goes on to the second. */
static void the_next_trip_may_come_early(void **state) {
    (void)state;
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open(3, &settings);
    train(t, 1);
    team_submit(t);
    team_begin(t, 1, 1);
    t->hold_trip = 0;
    t->hold_kind = DLXI_FRAME_RESULT;
    t->hold_from = 0;
    t->hold_to = 1;
    assert_false(team_move(t));
    assert_int_equal(dlxi_exchange_trip(t->exchange[2]), 1);
    assert_int_equal(dlxi_exchange_trip(t->exchange[1]), 0);
    assert_null(t->queue[2][1]); /* given, and nobody asks for it again */
    t->hold_trip = -1;
    assert_true(team_move(t));
    team_commit(t);
    assert_true(dlxi_state_anchor_hash(t->state[1]) == calm_hash(3, 1));
    team_close(t);
}

static void the_next_attempt_may_come_early(void **state) {
    (void)state;
    for (uint16_t members = 2; members <= 3; members++) {
        dlx_sync_config settings = team_settings(4, 4);
        team *t = team_open(members, &settings);
        train(t, 1);
        team_submit(t);
        team_begin_one(t, 0, 1, 1); /* the others have not even heard of the first round */
        assert_false(team_move(t));
        assert_null(t->queue[0][1]);
        for (uint16_t i = 1; i < members; i++) team_begin_one(t, i, 1, 1);
        t->hold_trip = 0;
        t->hold_kind = DLXI_FRAME_RESULT;
        t->hold_from = t->hold_to = -1;
        assert_false(team_move(t));
        /* attempt 1 is aborted at 0, which begins the next while the others are still in the first
         */
        dlxi_exchange_abort(t->exchange[0]);
        team_begin_one(t, 0, 1, 2);
        t->hold_trip = -1;
        assert_false(team_move(t));
        for (uint16_t i = 1; i < members; i++) team_begin_one(t, i, 1, 2);
        assert_true(team_move(t));
        team_commit(t);
        team_apply(t);
        assert_true(dlxi_state_anchor_hash(t->state[1]) == calm_hash(members, 1));
        team_close(t);
    }
}

static void the_next_round_may_come_early(void **state) {
    (void)state;
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open(2, &settings);
    train(t, 1);
    team_round(t, 1);
    train(t, 2);
    team_submit(t);
    team_begin_one(t, 0, 2, 1);
    assert_false(team_move(t)); /* member 1 has not begun */
    assert_null(t->queue[0][1]);
    team_begin_one(t, 1, 2, 1);
    assert_true(team_move(t));
    team_commit(t);
    assert_true(dlxi_state_anchor_hash(t->state[1]) == calm_hash(2, 2));
    team_close(t);
}

static dlxi_frame frame_of(const team *t, uint16_t from, uint64_t round, uint32_t attempt,
                           const uint8_t *payload, uint32_t bytes) {
    return (dlxi_frame){.kind = DLXI_FRAME_CONTRIBUTION,
                        .term = 1,
                        .round = round,
                        .attempt = attempt,
                        .site = t->view.member[from].site,
                        .tensor = 0,
                        .payload = payload,
                        .payload_bytes = bytes};
}

static void a_flood_is_bounded(void **state) {
    (void)state;
    static const uint8_t payload[60000];
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open(3, &settings);
    train(t, 1);
    team_submit(t);
    team_begin(t, 1, 1);
    dlx_error error;
    bool moved;
    /* of rounds that nobody can be in: not kept at all */
    for (int i = 0; i < 1000; i++) {
        dlxi_frame frame = frame_of(t, 0, 3 + (uint64_t)i, 1, payload, sizeof payload);
        assert_int_equal(dlxi_exchange_on_frame(t->exchange[1], &frame, &moved, &error), DLX_OK);
    }
    size_t kept = 0;
    dlx_status status = DLX_OK;
    for (int i = 0; i < 1000 && status == DLX_OK; i++) {
        dlxi_frame frame = frame_of(t, 0, 1, 2, payload, sizeof payload);
        status = dlxi_exchange_on_frame(t->exchange[1], &frame, &moved, &error);
        if (status == DLX_OK) kept += sizeof payload;
    }
    assert_int_equal(status, DLX_DATA);
    assert_string_equal(error.message, "site 1 sends more than this round holds");
    assert_in_range(kept, 1 << 19, 3 << 20);
    /* nor is another site refused for it */
    dlxi_frame frame = frame_of(t, 2, 1, 2, payload, sizeof payload);
    assert_int_equal(dlxi_exchange_on_frame(t->exchange[1], &frame, &moved, &error), DLX_OK);
    /* the attempt under way is not harmed, and the flood is gone with the attempt that it claimed
     * to be of */
    assert_true(team_move(t));
    for (uint16_t i = 0; i < 3; i++) dlxi_exchange_abort(t->exchange[i]);
    dlx_status replayed = dlxi_exchange_begin(t->exchange[1], t->state[1], &t->view,
                                              t->view.member[1].site, 1, 1, 2, &error);
    assert_int_equal(replayed, DLX_DATA);
    team_begin(t, 1, 3);
    assert_true(team_move(t));
    team_commit(t);
    assert_true(dlxi_state_anchor_hash(t->state[1]) == calm_hash(3, 1));
    team_close(t);
}

static void strangers_and_lower_terms(void **state) {
    (void)state;
    static const uint8_t payload[64];
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open(2, &settings);
    train(t, 1);
    team_submit(t);
    team_begin(t, 1, 1);
    dlx_error error;
    bool moved;
    dlxi_frame frame = frame_of(t, 0, 1, 1, payload, sizeof payload);
    frame.site = 2;
    assert_int_equal(dlxi_exchange_on_frame(t->exchange[1], &frame, &moved, &error), DLX_DATA);
    assert_string_equal(error.message, "a frame from site 2, trip 0, which is not in the view");
    frame = frame_of(t, 0, 1, 1, payload, sizeof payload);
    frame.term = 0;
    /* not heard */
    assert_int_equal(dlxi_exchange_on_frame(t->exchange[1], &frame, &moved, &error), DLX_OK);
    dlxi_view without = t->view;
    without.members = 1;
    assert_int_equal(dlxi_exchange_begin(t->exchange[1], t->state[1], &without,
                                         t->view.member[1].site, 1, 1, 2, &error),
                     DLX_DATA);
    assert_string_equal(error.message, "the coordinator's view leaves out site 3");
    team_close(t);
}

/* ---- lost frames ----------------------------------------------------------------------------- */

static team *submitted_team(uint16_t members, dlx_kind kind) {
    dlx_sync_config settings = team_settings(4, 4);
    team *t = team_open_with(members, &settings, kind);
    train(t, 1);
    team_submit(t);
    team_begin(t, 1, 1);
    return t;
}

static void check_repaired(team *t) {
    assert_true(team_move(t));
    team_commit(t);
    team *calm = submitted_team(t->members, t->state[0]->tensors[2].kind);
    assert_true(team_move(calm));
    team_commit(calm);
    for (uint16_t i = 0; i < t->members; i++)
        assert_true(dlxi_state_hash(t->state[i], DLXI_STATE_ALL) ==
                    dlxi_state_hash(calm->state[i], DLXI_STATE_ALL));
    team_close(calm);
    team_close(t);
}

/* The last frames of a trip that a sender has left behind, and with them the first of the next,
 * which came before their turn. */
static void a_loss_across_trips_is_repaired(void **state) {
    (void)state;
    for (int next = 0; next < 2; next++) {
        team *t = submitted_team(3, DLX_TRAINED);
        t->hold_trip = 0;
        t->hold_kind = DLXI_FRAME_RESULT;
        t->hold_from = 0;
        t->hold_to = 1;
        assert_false(team_move(t));
        assert_int_equal(dlxi_exchange_trip(t->exchange[0]), 1);
        assert_int_equal(dlxi_exchange_trip(t->exchange[1]), 0);
        assert_in_range(team_lose(t, 0, 1), 1, 10);
        t->hold_trip = -1;
        assert_false(team_move(t));
        team_go_back(t, 0, 1);
        assert_true(team_take(t, 0, 1));
        if (next == 0) { /* lost again */
            team_lose(t, 0, 1);
            team_go_back(t, 0, 1);
        }
        check_repaired(t);
    }
}

/* A member that has staged serves one that has not; after the commit, or an abort, nobody. */
static void a_staged_member_sends_again(void **state) {
    (void)state;
    for (int trip = 0; trip < 2; trip++) {
        team *t = submitted_team(2, trip == 0 ? DLX_STATISTICS : DLX_TRAINED);
        dlxi_greeting offsets;
        dlxi_frame frame;
        t->hold_trip = trip == 0 ? 2 : 1;
        t->hold_kind = DLXI_FRAME_RESULT;
        t->hold_from = -1;
        t->hold_to = 1;
        assert_false(team_move(t));
        assert_true(dlxi_exchange_is_staged(t->exchange[0]));
        assert_false(dlxi_exchange_is_staged(t->exchange[1]));
        assert_in_range(team_lose(t, 0, 1), 1, 10);
        t->hold_trip = -1;
        assert_false(team_move(t));
        uint64_t staged = dlxi_exchange_staged_hash(t->exchange[0]);
        team_go_back(t, 0, 1);
        assert_true(dlxi_exchange_is_staged(t->exchange[0]));
        assert_true(dlxi_exchange_staged_hash(t->exchange[0]) == staged);
        assert_true(team_move(t));
        assert_true(dlxi_exchange_offsets(t->exchange[0], t->view.member[1].site, &offsets));
        assert_false(dlxi_exchange_offsets(t->exchange[0], t->view.member[0].site, &offsets));
        memset(&offsets, 0, sizeof offsets);
        team_commit(t);
        dlxi_exchange_go_back(t->exchange[0], t->view.member[1].site, &offsets);
        assert_false(dlxi_exchange_peek(t->exchange[0], t->view.member[1].site, &frame));
        assert_false(dlxi_exchange_offsets(t->exchange[0], t->view.member[1].site, &offsets));
        team_close(t);
    }
}

/* Any frames, on any way, again and again. */
static void random_losses_are_repaired(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        team *t = submitted_team(2 + seed % 2, seed % 4 < 2 ? DLX_TRAINED : DLX_STATISTICS);
        uint64_t draws = 0;
        bool staged = false;
        t->loses = true;
        while (!staged) {
            staged = true;
            for (uint16_t n = 0; n < t->members * t->members; n++) {
                uint16_t from = n / t->members, to = n % t->members;
                uint64_t draw = dlxi_rng_u64(seed, 1, draws++);
                if (draw % 5 == 0) team_go_back(t, from, to);
                team_take(t, from, to);
                if (draw / 5 % 3 == 0) team_lose(t, from, to);
                if (draw / 15 % 3 == 0) team_give(t, from, to);
            }
            for (uint16_t i = 0; i < t->members; i++) {
                bool one;
                assert_int_equal(dlxi_exchange_poll(t->exchange[i], t->state[i], &one, NULL),
                                 DLX_OK);
                staged = staged && one;
            }
            assert_true(draws < 100000);
        }
        check_repaired(t);
    }
}

static void what_is_not_finite_is_not_sent(void **state) {
    (void)state;
    for (int where = 0; where < 2; where++) {
        dlx_sync_config settings = team_settings(4, 4);
        team *t = team_open(2, &settings);
        t->p[0][where == 0 ? 5 : MATRIX + 3] = (float)INFINITY;
        team_submit(t);
        dlx_error error;
        assert_int_equal(dlxi_exchange_begin(t->exchange[0], t->state[0], &t->view,
                                             t->view.member[0].site, 1, 1, 1, &error),
                         DLX_NUMERIC);
        assert_non_null(strstr(error.message, "round 1: a pseudo-gradient is not finite"));
        team_close(t);
    }
}

/* ---- error feedback -------------------------------------------------------------------------- */

static double norm_of(const double *x) {
    double sum = 0;
    for (int k = 0; k < TEAM_PARAMETERS; k++) sum += x[k] * x[k];
    return sqrt(sum);
}

/* Tensors lie behind each other in p, and so they do here. */
static float at(const dlxi_state *s, int k, int what) {
    size_t which = k < MATRIX ? 0 : k < MATRIX + 30 ? 1 : 2;
    const dlxi_state_tensor *t = &s->tensors[which];
    const float *values = what == 0 ? t->velocity : what == 1 ? t->error : t->anchor;
    return values[k - (which == 0 ? 0 : which == 1 ? MATRIX : MATRIX + 30)];
}

static void error_feedback_conserves(void **state) {
    (void)state;
    enum { ROUNDS = 30 };
    for (int variant = 0; variant < 4; variant++) {
        dlx_sync_config settings = team_settings(4, 4);
        settings.outer_momentum = 0; /* v is Δ */
        settings.adaptation = variant % 2 == 0 ? DLX_ADAPTATION_OFF : DLX_ADAPTATION_PAPER;
        settings.keep_unsent = variant >= 2;
        team *t = team_open(3, &settings);
        static double updates[TEAM_PARAMETERS], means[TEAM_PARAMETERS], off[TEAM_PARAMETERS],
            left[TEAM_PARAMETERS];
        static float start[TEAM_MAX][TEAM_PARAMETERS];
        memset(updates, 0, sizeof updates);
        memset(means, 0, sizeof means);
        memset(left, 0, sizeof left);
        for (uint64_t round = 1; round <= ROUNDS; round++) {
            memcpy(start, t->p, sizeof start);
            train(t, round);
            for (uint16_t i = 0; i < 3; i++)
                for (int k = 0; k < TEAM_PARAMETERS; k++)
                    means[k] += team_weight(t, i) * ((double)start[i][k] - (double)t->p[i][k]);
            team_round(t, round);
            for (int k = 0; k < TEAM_PARAMETERS; k++) updates[k] += (double)at(t->state[0], k, 0);
        }
        for (int k = 0; k < TEAM_PARAMETERS; k++) {
            for (uint16_t i = 0; i < 3; i++)
                left[k] += team_weight(t, i) * (double)at(t->state[i], k, 1);
            off[k] = updates[k] + left[k] - means[k];
        }
        if (norm_of(off) > 1e-4 * norm_of(means))
            fail_msg("Σ Δ + Σ w e is off by %g of %g", norm_of(off), norm_of(means));
        assert_true(norm_of(left) > 1e-2 * norm_of(means)); /* the sum would not do without e */
        team_close(t);
    }
}

/* Local training goes on from θ − e where the setting says so, and from θ where not; progress made
 * meanwhile stays. */
static void what_is_unsent_is_kept(void **state) {
    (void)state;
    for (int kept = 0; kept < 2; kept++)
        for (int carried = 0; carried < 2; carried++) {
            dlx_sync_config settings = team_settings(4, 4);
            settings.overlap = carried == 1 ? DLX_OVERLAP_CARRY : DLX_OVERLAP_NONE;
            settings.keep_unsent = kept == 1;
            team *t = team_open(2, &settings);
            static float before[TEAM_PARAMETERS], progress[TEAM_PARAMETERS];
            for (uint64_t round = 1; round <= 3; round++) {
                train(t, round);
                team_submit(t);
                memcpy(before, t->p[0], sizeof before);
                if (carried == 1) train(t, 100 + round);
                for (int k = 0; k < TEAM_PARAMETERS; k++) progress[k] = before[k] - t->p[0][k];
                team_begin(t, round, 1);
                assert_true(team_move(t));
                team_commit(t);
                team_apply(t);
                double errors = 0;
                for (int k = 0; k < TEAM_PARAMETERS; k++) {
                    double e = (double)at(t->state[0], k, 1), theta = (double)at(t->state[0], k, 2);
                    assert_float_equal(t->p[0][k], (float)(theta - kept * e - (double)progress[k]),
                                       1e-6);
                    errors += e * e;
                }
                assert_true(errors > 0.01); /* there is something to keep */
                /* and the next M is the progress since, and e: nothing twice */
                static float next[TEAM_PARAMETERS], error[TEAM_PARAMETERS];
                memcpy(next, t->p[0], sizeof next);
                for (int k = 0; k < TEAM_PARAMETERS; k++) error[k] = at(t->state[0], k, 1);
                if (round < 3) continue;
                train(t, 50);
                team_submit(t);
                for (int k = 0; k < TEAM_PARAMETERS; k++) {
                    float expected = (next[k] - t->p[0][k]) + progress[k] + error[k];
                    assert_float_equal(at(t->state[0], k, 1), expected, 1e-6);
                }
            }
            team_close(t);
        }
}

/* ‖e‖ of the worst site after each round, for sites that pull apart for ever: δ_i = −(c_i + noise),
 * Σ w_i c_i = 0. Feedback against Δ (e ← M − Δ) is simulated by overwriting e after each commit. */
static void pull_apart(double *norms, int rounds, bool against_update, bool smooth) {
    dlx_sync_config settings = team_settings(4, 4);
    settings.outer_momentum = 0;
    team *t = team_open(3, &settings);
    static float messages[TEAM_MAX][TEAM_PARAMETERS];
    for (int round = 1; round <= rounds; round++) {
        for (int k = 0; k < TEAM_PARAMETERS; k++) {
            double balance = 0;
            for (uint16_t i = 0; i < 3; i++) {
                double apart = 0.01 * (double)noise(500u + i, (uint64_t)k);
                if (i == 2) apart = -balance / team_weight(t, 2);
                balance += team_weight(t, i) * apart;
                double common = 0.002 * (double)noise(smooth ? 7 : 1000u + (uint64_t)round * 4 + i,
                                                      (uint64_t)k);
                t->p[i][k] -= (float)(apart + common);
            }
        }
        team_submit(t);
        for (uint16_t i = 0; i < 3; i++)
            for (int k = 0; k < TEAM_PARAMETERS; k++) messages[i][k] = at(t->state[i], k, 1);
        team_begin(t, (uint64_t)round, 1);
        assert_true(team_move(t));
        team_commit(t);
        team_apply(t);
        norms[round - 1] = 0;
        for (uint16_t i = 0; i < 3; i++) {
            double sum = 0;
            for (int k = 0; k < TEAM_PARAMETERS; k++) {
                size_t which = k < MATRIX ? 0 : k < MATRIX + 30 ? 1 : 2;
                dlxi_state_tensor *tensor = &t->state[i]->tensors[which];
                int within = k - (which == 0 ? 0 : which == 1 ? MATRIX : MATRIX + 30);
                if (against_update)
                    tensor->error[within] = messages[i][k] - tensor->velocity[within];
                sum += (double)tensor->error[within] * (double)tensor->error[within];
            }
            norms[round - 1] = fmax(norms[round - 1], sqrt(sum));
        }
    }
    team_close(t);
}

static void local_feedback_stays_bounded(void **state) {
    (void)state;
    enum { ROUNDS = 400 };
    static double local[ROUNDS], against[ROUNDS];
    for (int smooth = 0; smooth < 2; smooth++) {
        pull_apart(local, ROUNDS, false, smooth);
        pull_apart(against, ROUNDS, true, smooth);
        double early = 0, late = 0;
        for (int r = 100; r < 200; r++) early = fmax(early, local[r]);
        for (int r = 300; r < 400; r++) late = fmax(late, local[r]);
        if (late > 1.25 * early) fail_msg("‖e‖ grew from %g to %g", early, late);
        /* by each round's share */
        assert_true(against[399] > 1.9 * against[199] && against[199] > 1.9 * against[99]);
        assert_true(against[399] > 20 * late);
    }
}

/* ---- its diagnosis --------------------------------------------------------------------------- */

/* Σ a b over a trained tensor's values. */
static double product_of(const float *a, const float *b, const dlxi_state_tensor *t) {
    double sum = 0;
    for (int64_t k = 0; k < dlxi_state_tensor_values(t); k++) sum += (double)a[k] * (double)b[k];
    return sum;
}

/* From what the round leaves: Δ is v less the momentum of v before, e is what M keeps. */
static void a_diagnosis_is_of_the_round(void **state) {
    (void)state;
    dlx_sync_config settings = team_settings(4, 3);
    team *t = team_open(2, &settings);
    train(t, 1);
    team_round(t, 1);
    train(t, 2);
    team_submit(t);
    static float m[TEAM_TENSORS][MATRIX], v[TEAM_TENSORS][MATRIX], mean[TEAM_TENSORS][MATRIX];
    dlxi_state_tensor *tensors = t->state[1]->tensors;
    for (int i = 0; i < TEAM_TENSORS; i++) {
        size_t bytes = (size_t)dlxi_state_tensor_values(&tensors[i]) * sizeof(float);
        memcpy(m[i], tensors[i].error, bytes);
        memcpy(v[i], tensors[i].velocity, bytes);
    }
    team_begin(t, 2, 1);
    assert_true(team_move(t));
    team_commit(t);
    dlxi_diagnosis sum = {0};
    for (int i = 0; i < TEAM_TENSORS; i++) {
        const dlxi_state_tensor *at = &tensors[i];
        for (int64_t k = 0; k < dlxi_state_tensor_values(at); k++)
            mean[i][k] = at->velocity[k] - (float)settings.outer_momentum * v[i][k];
        sum.submitted += product_of(m[i], m[i], at);
        sum.unsent += product_of(at->error, at->error, at);
        sum.mean += product_of(mean[i], mean[i], at);
        sum.momentum += product_of(v[i], v[i], at);
        sum.submitted_by_mean += product_of(m[i], mean[i], at);
        sum.mean_by_momentum += product_of(mean[i], v[i], at);
    }
    const dlxi_diagnosis *got = dlxi_exchange_diagnosis(t->exchange[1]);
    const double off[] = {got->submitted / sum.submitted - 1,
                          got->unsent / sum.unsent - 1,
                          got->mean / sum.mean - 1,
                          got->momentum / sum.momentum - 1,
                          (got->submitted_by_mean - sum.submitted_by_mean) / sum.submitted,
                          (got->mean_by_momentum - sum.mean_by_momentum) / sum.mean};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++)
        if (!(fabs(off[i]) < 1e-5)) fail_msg("sum %zu is off by %g", i, off[i]);
    team_close(t);
}

/* ---- fragments ------------------------------------------------------------------------------- */

/* Which tensors θ moved in since `before`, bit by bit. */
static unsigned moved_tensors(const team *t, float (*before)[TEAM_PARAMETERS]) {
    unsigned moved = 0;
    int first = 0;
    for (size_t i = 0; i < t->state[0]->count; i++) {
        int values = (int)dlxi_state_tensor_values(&t->state[0]->tensors[i]);
        if (memcmp(t->state[0]->tensors[i].anchor, before[0] + first,
                   (size_t)values * sizeof(float)) != 0)
            moved |= 1u << i;
        first += values;
    }
    return moved;
}

/* Of two fragments the matrix is one, and the two small tensors are the other. Each round has one,
 * whose δ is all that was trained since its last turn; the last round has both. */
static void fragments_take_turns(void **state) {
    (void)state;
    enum { ROUNDS = 5 };
    dlx_sync_config settings = team_settings(32, 0);
    settings.overlap = DLX_OVERLAP_CARRY;
    settings.keep_unsent = true;
    settings.outer_learning_rate = 1;
    settings.outer_momentum = 0; /* θ is the mean of the sites' own ways */
    settings.fragments = 2;
    team *t = team_open(2, &settings);
    static float before[1][TEAM_PARAMETERS];
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        for (uint16_t i = 0; i < 2; i++) t->state[i]->tokens_target = round < ROUNDS ? 1000 : 300;
        for (int k = 0; k < TEAM_PARAMETERS; k++) before[0][k] = at(t->state[0], k, 2);
        train(t, round);
        double norm;
        for (uint16_t i = 0; i < 2; i++)
            assert_int_equal(
                dlxi_local_submit(t->local[i], t->state[i], round == ROUNDS, false, 0, &norm, NULL),
                DLX_OK);
        train(t, 100 + round); /* while it travels */
        team_begin(t, round, 1);
        assert_true(dlxi_exchange_bytes(t->exchange[0], t->state[0]) ==
                    4 * (round == ROUNDS  ? 960 + 80
                         : round % 2 == 0 ? 960
                                          : 80));
        assert_true(team_move(t));
        team_commit(t);
        assert_int_equal(moved_tensors(t, before), round == ROUNDS ? 7 : round % 2 == 0 ? 1 : 6);
        team_apply(t);
    }
    /* all that was trained before the last submission is in θ: weights 1/3 and 2/3, no residual */
    for (int k = 0; k < TEAM_PARAMETERS; k++) {
        double way = (double)((float)(k % 17) * 0.125f - 1.0f);
        for (uint64_t round = 1; round <= ROUNDS; round++)
            for (uint64_t i = 0; i < 2; i++) {
                double w = i == 0 ? 1.0 / 3 : 2.0 / 3;
                way += w * (double)(0.01f * noise(round * 10 + i, (uint64_t)k));
                if (round < ROUNDS)
                    way += w * (double)(0.01f * noise((100 + round) * 10 + i, (uint64_t)k));
            }
        assert_float_equal(at(t->state[0], k, 2), way, 1e-5);
    }
    team_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_that_suffices_gives_the_mean),
        cmocka_unit_test(settings_are_part_of_the_tensors_hash),
        cmocka_unit_test(an_aborted_attempt_leaves_no_trace),
        cmocka_unit_test(the_next_trip_may_come_early),
        cmocka_unit_test(the_next_attempt_may_come_early),
        cmocka_unit_test(the_next_round_may_come_early),
        cmocka_unit_test(a_flood_is_bounded),
        cmocka_unit_test(strangers_and_lower_terms),
        cmocka_unit_test(a_loss_across_trips_is_repaired),
        cmocka_unit_test(a_staged_member_sends_again),
        cmocka_unit_test(random_losses_are_repaired),
        cmocka_unit_test(what_is_not_finite_is_not_sent),
        cmocka_unit_test(error_feedback_conserves),
        cmocka_unit_test(what_is_unsent_is_kept),
        cmocka_unit_test(local_feedback_stays_bounded),
        cmocka_unit_test(a_diagnosis_is_of_the_round),
        cmocka_unit_test(fragments_take_turns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
