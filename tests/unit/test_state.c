/* SPDX-License-Identifier: Apache-2.0 */
/* Outer state as a value: written in pieces of any size and restored in any order it is the same to
 * the bit, and a run goes on from it as if nothing had happened. */
#include "exchange_team.h"

#include "base/rng.h"

#include <stdio.h>

enum { PIECES_MAX = 4096, ROUNDS = 3 };

typedef struct kept {
    dlxi_state_piece piece;
    uint8_t values[]; /* 4 bytes each */
} kept;

static kept *pieces[PIECES_MAX];
static size_t piece_count;

static void pieces_free(void) {
    while (piece_count > 0) free(pieces[--piece_count]);
}

/* Copies of all pieces of the fields in `mask`. */
static void write_pieces(const dlxi_state *s, uint32_t mask, uint32_t count_max) {
    dlxi_state_cursor cursor = {0};
    dlxi_state_piece piece;
    uint64_t values = 0;
    pieces_free();
    while (dlxi_state_next_piece(s, mask, &cursor, count_max, &piece)) {
        assert_in_range(piece.count, 1, count_max);
        assert_true(piece_count < PIECES_MAX);
        kept *k = malloc(sizeof *k + (size_t)piece.count * 4);
        assert_non_null(k);
        k->piece = piece;
        memcpy(k->values, piece.values, (size_t)piece.count * 4);
        k->piece.values = k->values;
        pieces[piece_count++] = k;
        values += piece.count;
    }
    assert_true(values == dlxi_state_piece_values(s, mask));
}

static void shuffle(uint64_t seed) {
    for (size_t i = piece_count; i > 1; i--) {
        size_t k = (size_t)(dlxi_rng_u64(seed, 1, i) % i);
        kept *other = pieces[k];
        pieces[k] = pieces[i - 1];
        pieces[i - 1] = other;
    }
}

static void train(team *t, uint64_t round) {
    for (uint16_t i = 0; i < t->members; i++)
        for (int k = 0; k < TEAM_PARAMETERS; k++)
            t->p[i][k] += 0.01f * dlxi_rng_normal(17, round * 10 + i, (uint64_t)k);
}

static team *team_after_rounds(dlx_adaptation adaptation) {
    dlx_sync_config settings = team_settings(4, 4);
    settings.adaptation = adaptation;
    team *t = team_open(2, &settings);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        train(t, round);
        team_round(t, round);
    }
    return t;
}

static void restored_state_is_the_same_to_the_bit(void **state) {
    (void)state;
    static const uint32_t sizes[] = {8, 100, 1u << 20};
    for (int adaptation = DLX_ADAPTATION_OFF; adaptation <= DLX_ADAPTATION_PAPER; adaptation++)
        for (size_t size = 0; size < 3; size++) {
            team *t = team_after_rounds((dlx_adaptation)adaptation);
            dlx_sync_config settings = team_settings(4, 4);
            settings.adaptation = (dlx_adaptation)adaptation;
            team *fresh = team_open(2, &settings);
            for (uint16_t i = 0; i < 2; i++) {
                write_pieces(t->state[i], DLXI_STATE_ALL, sizes[size]);
                shuffle(size);
                for (size_t k = 0; k < piece_count; k++)
                    assert_int_equal(dlxi_state_restore(fresh->state[i], &pieces[k]->piece, NULL),
                                     DLX_OK);
                dlxi_state_rehash(fresh->state[i]);
                assert_true(dlxi_state_hash(fresh->state[i], DLXI_STATE_ALL) ==
                            dlxi_state_hash(t->state[i], DLXI_STATE_ALL));
                assert_true(dlxi_state_anchor_hash(fresh->state[i]) ==
                            dlxi_state_anchor_hash(t->state[i]));
                assert_int_equal(fresh->state[i]->rounds, ROUNDS);
            }
            /* and it goes on the same */
            memcpy(fresh->p, t->p, sizeof t->p);
            train(t, ROUNDS + 1);
            train(fresh, ROUNDS + 1);
            team_round(t, ROUNDS + 1);
            team_round(fresh, ROUNDS + 1);
            assert_memory_equal(fresh->p, t->p, sizeof t->p);
            for (uint16_t i = 0; i < 2; i++)
                assert_true(dlxi_state_hash(fresh->state[i], DLXI_STATE_ALL) ==
                            dlxi_state_hash(t->state[i], DLXI_STATE_ALL));
            team_close(fresh);
            team_close(t);
        }
    pieces_free();
}

/* What is replicated is equal on both sites; e is each one's own. */
static void replicated_fields_are_equal(void **state) {
    (void)state;
    team *t = team_after_rounds(DLX_ADAPTATION_PAPER);
    assert_true(dlxi_state_hash(t->state[0], DLXI_STATE_REPLICATED) ==
                dlxi_state_hash(t->state[1], DLXI_STATE_REPLICATED));
    assert_true(dlxi_state_hash(t->state[0], 1u << DLXI_STATE_ERROR) !=
                dlxi_state_hash(t->state[1], 1u << DLXI_STATE_ERROR));
    team_close(t);
}

/* Every field counts: one bit of any of them changes the hash. */
static void every_field_is_hashed(void **state) {
    (void)state;
    team *t = team_after_rounds(DLX_ADAPTATION_PAPER);
    uint64_t before = dlxi_state_hash(t->state[0], DLXI_STATE_ALL);
    for (int field = 0; field < DLXI_STATE_FIELDS; field++) {
        write_pieces(t->state[0], 1u << field, 1u << 20);
        assert_true(piece_count > 0);
        kept *k = pieces[0];
        uint8_t old = k->values[0];
        k->values[0] ^= 1;
        assert_int_equal(dlxi_state_restore(t->state[0], &k->piece, NULL), DLX_OK);
        assert_true(dlxi_state_hash(t->state[0], DLXI_STATE_ALL) != before);
        k->values[0] = old;
        assert_int_equal(dlxi_state_restore(t->state[0], &k->piece, NULL), DLX_OK);
        assert_true(dlxi_state_hash(t->state[0], DLXI_STATE_ALL) == before);
    }
    pieces_free();
    team_close(t);
}

static void pieces_that_do_not_fit_change_nothing(void **state) {
    (void)state;
    team *t = team_after_rounds(DLX_ADAPTATION_PAPER);
    dlxi_state *s = t->state[0];
    uint64_t before = dlxi_state_hash(s, DLXI_STATE_ALL);
    static float zeros[MATRIX + 1];
    static const int32_t ranks[8] = {1 << 20, 1, 0, 0, 0, 0, 0, 0}, steps[5] = {0, 0, 0, 0, 0};
    const dlxi_state_piece bad[] = {
        {.field = DLXI_STATE_ANCHOR, .tensor = 9, .count = 1, .values = zeros},
        {.field = DLXI_STATE_ANCHOR, .tensor = 0, .count = 0, .values = zeros},
        {.field = DLXI_STATE_ANCHOR, .tensor = 0, .count = MATRIX + 1, .values = zeros},
        {.field = DLXI_STATE_ANCHOR, .tensor = 0, .first = MATRIX, .count = 1, .values = zeros},
        {.field = DLXI_STATE_ANCHOR, .tensor = 0, .first = UINT64_MAX, .count = 2, .values = zeros},
        {.field = DLXI_STATE_BASIS, .tensor = 1, .count = 1, .values = zeros}, /* it has none */
        {.field = DLXI_STATE_ADAPTATION, .tensor = 0, .count = 8, .values = ranks},
        {.field = DLXI_STATE_ADAPTATION, .tensor = 0, .first = 1, .count = 7, .values = ranks},
        {.field = DLXI_STATE_RUN, .count = 5, .values = steps},
        {.field = DLXI_STATE_RUN, .count = 4, .values = steps},
        {.field = DLXI_STATE_FIELDS, .tensor = 0, .count = 1, .values = zeros},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (dlxi_state_restore(s, &bad[i], NULL) != DLX_DATA) fail_msg("piece %zu was taken", i);
        assert_true(dlxi_state_hash(s, DLXI_STATE_ALL) == before);
    }
    team_close(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(restored_state_is_the_same_to_the_bit),
        cmocka_unit_test(replicated_fields_are_equal),
        cmocka_unit_test(every_field_is_hashed),
        cmocka_unit_test(pieces_that_do_not_fit_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
