/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/state.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/panic.h"
#include "outer/cost.h"

int64_t dlxi_state_tensor_values(const dlxi_state_tensor *t) {
    return t->rows * t->cols;
}

int64_t dlxi_state_stride(const dlxi_state *s, int64_t length) {
    return dlxi_factor_stride(length, s->quantiser.group);
}

/* ---- the list of fields ---------------------------------------------------------------------- */

/* Values of a field in memory: of a basis all columns that it may ever have. */
static int64_t field_capacity(const dlxi_state *s, const dlxi_state_tensor *t, int field) {
    switch (field) {
    case DLXI_STATE_ANCHOR:
    case DLXI_STATE_ERROR:
        return dlxi_state_tensor_values(t);
    case DLXI_STATE_VELOCITY:
        return s->method->averages_gradients || t->kind == DLX_STATISTICS
                   ? 0
                   : dlxi_state_tensor_values(t);
    case DLXI_STATE_BASIS:
        return t->low_rank ? t->columns_max * dlxi_state_stride(s, t->cols) : 0;
    case DLXI_STATE_ADAPTATION:
        return t->low_rank ? 3 + DLXI_ADAPT_WINDOW : 0;
    default:
        return 0;
    }
}

/* Where a field's values are kept; ADAPTATION and RUN are packed instead. */
static float **field_place(dlxi_state_tensor *t, int field) {
    float **const places[] = {&t->anchor, &t->velocity, &t->error, &t->basis};
    return places[field];
}

/* Values in use. */
static int64_t field_values(const dlxi_state *s, const dlxi_state_tensor *t, int field) {
    if (field == DLXI_STATE_BASIS && t->low_rank)
        return t->basis_columns * dlxi_state_stride(s, t->cols);
    return field_capacity(s, t, field);
}

static void adaptation_pack(const dlxi_state_tensor *t, int32_t numbers[DLXI_STATE_PIECE_NUMBERS]) {
    numbers[0] = t->basis_columns;
    numbers[1] = t->adapt.factor_rank;
    numbers[2] = t->adapt.history_count;
    for (int i = 0; i < DLXI_ADAPT_WINDOW; i++) numbers[3 + i] = t->adapt.history[i];
}

static bool adaptation_unpack(dlxi_state_tensor *t, const int32_t *numbers) {
    bool fits = numbers[0] >= 1 && numbers[0] <= t->columns_max && numbers[1] >= 1 &&
                numbers[1] <= t->adapt.factor_rank_limit && numbers[2] >= 0 &&
                numbers[2] <= DLXI_ADAPT_WINDOW;
    for (int i = 0; i < DLXI_ADAPT_WINDOW; i++)
        fits = fits && numbers[3 + i] >= 0 && numbers[3 + i] <= t->adapt.factor_rank_limit;
    if (!fits) return false;
    t->basis_columns = numbers[0];
    t->adapt.factor_rank = numbers[1];
    t->adapt.history_count = numbers[2];
    for (int i = 0; i < DLXI_ADAPT_WINDOW; i++) t->adapt.history[i] = numbers[3 + i];
    return true;
}

enum { RUN_NUMBERS = 5 };

static void run_pack(const dlxi_state *s, int32_t numbers[DLXI_STATE_PIECE_NUMBERS]) {
    memcpy(&numbers[0], &s->rounds, sizeof s->rounds);
    memcpy(&numbers[2], &s->tokens, sizeof s->tokens);
    numbers[4] = (int32_t)s->adapt.inner_steps;
}

static bool run_unpack(dlxi_state *s, const int32_t *numbers) {
    if (numbers[4] < 1 || (uint32_t)numbers[4] > s->adapt.inner_steps_first) return false;
    memcpy(&s->rounds, &numbers[0], sizeof s->rounds);
    memcpy(&s->tokens, &numbers[2], sizeof s->tokens);
    s->adapt.inner_steps = (uint32_t)numbers[4];
    return true;
}

/* ---- open and close -------------------------------------------------------------------------- */

static void tensor_plan_factors(const dlxi_state *s, dlxi_state_tensor *t) {
    const dlxi_adapt *adapt = &s->adapt;
    int limit = dlxi_adapt_rank_limit(t->rows, t->cols), first = s->options.factor_rank;
    t->adapt = (dlxi_adapt_tensor){.parameters = t->rows * t->cols,
                                   .factor_rank_first = first,
                                   .factor_rank = first,
                                   .factor_rank_limit = limit};
    int most = adapt->kind == DLX_ADAPTATION_OFF ? first : adapt->factor_rank_max;
    if (adapt->kind == DLX_ADAPTATION_PAPER) most += DLXI_ADAPT_PROBES;
    t->columns_max = most < limit ? most : limit;
    t->basis_columns = dlxi_adapt_columns(adapt, &t->adapt);
}

static dlx_status tensor_open(const dlxi_state *s, dlxi_state_tensor *t, const dlx_tensor *from,
                              uint32_t id, dlx_error *error) {
    int rank = s->options.factor_rank;
    *t = (dlxi_state_tensor){.id = id, .rows = from->rows, .cols = from->cols, .kind = from->kind};
    if ((t->name = strdup(from->name)) == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for the name of a tensor");
    t->low_rank = !s->method->averages_gradients && !from->plain && t->kind == DLX_TRAINED &&
                  rank > 0 && rank <= dlxi_adapt_rank_limit(t->rows, t->cols);
    if (t->low_rank) tensor_plan_factors(s, t);
    for (int field = 0; field < DLXI_STATE_ADAPTATION; field++) {
        int64_t values = field_capacity(s, t, field);
        if (values > 0) DLX_TRY(DLXI_NEW(field_place(t, field), values, error));
    }
    if (t->low_rank)
        dlxi_basis_fill(t->basis, t->cols, 0, t->basis_columns, s->quantiser.group, s->options.seed,
                        t->id, 0);
    return DLX_OK;
}

/* Neighbours, of about as many values in each fragment. */
static void fragments_assign(dlxi_state *s) {
    const int64_t all = dlxi_state_parameters(s);
    int64_t before = 0;
    for (size_t i = 0; i < s->count; i++) {
        const int64_t values = dlxi_state_tensor_values(&s->tensors[i]);
        const double middle = (double)before + 0.5 * (double)values;
        s->tensors[i].fragment = (uint32_t)(middle / (double)all * s->options.fragments);
        before += values;
    }
}

dlx_status dlxi_state_open(dlxi_state **out, const dlx_sync_config *options,
                           const dlx_tensor *tensors, size_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_state *s = NULL;
    *out = NULL;
    DLX_TRY_OUT(DLXI_NEW(&s, 1, error));
    s->options = dlxi_sync_options_resolve(options);
    s->method = dlxi_method_of(s->options.overlap);
    s->quantiser = (dlxi_quantiser){s->options.bits, s->options.group};
    s->adapt = (dlxi_adapt){.kind = s->options.adaptation,
                            .factor_rank_min = s->options.factor_rank_min,
                            .factor_rank_max = s->options.factor_rank_max,
                            .inner_steps_first = s->options.inner_steps,
                            .inner_steps_min = s->options.inner_steps_min,
                            .inner_steps = s->options.inner_steps};
    DLX_TRY_OUT(DLXI_NEW(&s->tensors, count, error));
    for (size_t i = 0; i < count; i++) {
        s->count = i + 1;
        DLX_TRY_OUT(tensor_open(s, &s->tensors[i], &tensors[i],
                                s->options.ranks > 1 ? tensors[i].id : (uint32_t)i, error));
    }
    fragments_assign(s);
    *out = s;
    return DLX_OK;
out:
    dlxi_state_close(&s);
    return status;
}

void dlxi_state_close(dlxi_state **state) {
    dlxi_state *s = *state;
    if (s == NULL) return;
    for (size_t i = 0; i < s->count; i++) {
        for (int field = 0; field < DLXI_STATE_ADAPTATION; field++)
            free(*field_place(&s->tensors[i], field));
        free(s->tensors[i].name);
    }
    free(s->tensors);
    free((uint8_t *)(uintptr_t)s->copy.data);
    free(s);
    *state = NULL;
}

void dlxi_state_set_copy(dlxi_state *s, const dlxi_copy *copy) {
    uint8_t *data = NULL;
    bool fits = copy->bytes > 0 && copy->round == s->rounds;
    if (fits && (data = malloc(copy->bytes)) != NULL) memcpy(data, copy->data, copy->bytes);
    free((uint8_t *)(uintptr_t)s->copy.data);
    s->copy = data != NULL ? *copy : (dlxi_copy){0};
    s->copy.data = data;
}

/* ---- hashes and sizes ------------------------------------------------------------------------ */

void dlxi_state_rehash(dlxi_state *s) {
    for (size_t i = 0; i < s->count; i++) {
        dlxi_state_tensor *t = &s->tensors[i];
        size_t bytes = (size_t)dlxi_state_tensor_values(t) * sizeof(float);
        t->anchor_hash = dlxi_hash(t->anchor, bytes, t->id);
    }
}

uint64_t dlxi_state_anchor_hash(const dlxi_state *s) {
    uint64_t sum = 0;
    for (size_t i = 0; i < s->count; i++) sum += s->tensors[i].anchor_hash;
    return sum;
}

dlxi_state_tensor *dlxi_state_find(const dlxi_state *s, uint32_t id) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->tensors[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < s->count && s->tensors[low].id == id ? &s->tensors[low] : NULL;
}

uint64_t dlxi_state_tensors_hash(const dlxi_state *s) {
    uint64_t sum = dlxi_sync_options_hash(&s->options);
    for (size_t i = 0; i < s->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        uint64_t shape[5] = {t->id, (uint64_t)t->rows, (uint64_t)t->cols, t->low_rank, t->kind};
        sum += dlxi_hash(t->name, strlen(t->name), dlxi_hash(shape, sizeof shape, 0));
    }
    return sum;
}

int64_t dlxi_state_parameters(const dlxi_state *s) {
    int64_t sum = 0;
    for (size_t i = 0; i < s->count; i++) sum += dlxi_state_tensor_values(&s->tensors[i]);
    return sum;
}

uint64_t dlxi_state_tensor_bytes(const dlxi_state *s, const dlxi_state_tensor *t, int factor_rank) {
    const dlxi_quantiser q = s->quantiser;
    dlxi_quantiser by = t->kind == DLX_STATISTICS ? dlxi_statistics_quantiser(q) : q;
    dlxi_adapt_tensor at = t->adapt;
    if (factor_rank > 0) at.factor_rank = factor_rank;
    int columns = t->low_rank ? dlxi_adapt_columns(&s->adapt, &at) : 0;
    return dlxi_cost_tensor_bytes(t->rows, t->cols, columns, by);
}

uint64_t dlxi_state_exchange_bytes(const dlxi_state *s, int factor_rank) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < s->count; i++)
        bytes += dlxi_state_tensor_bytes(s, &s->tensors[i], factor_rank);
    return bytes;
}

dlxi_adapt_sums dlxi_state_adapt_sums(const dlxi_state *s) {
    dlxi_adapt_sums sums = {0};
    for (size_t i = 0; i < s->count; i++) {
        if (!s->tensors[i].low_rank) continue;
        dlxi_adapt_sums one = dlxi_adapt_sum(&s->tensors[i].adapt, 1);
        sums.weighted_ranks += one.weighted_ranks;
        sums.parameters += one.parameters;
    }
    return sums;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

static bool piece_fill(const dlxi_state *s, dlxi_state_cursor *cursor, uint32_t count_max,
                       dlxi_state_piece *piece) {
    dlxi_state_tensor *t = cursor->tensor < s->count ? &s->tensors[cursor->tensor] : NULL;
    uint64_t values = t != NULL ? (uint64_t)field_values(s, t, cursor->field) : RUN_NUMBERS;
    if (cursor->first >= values) return false;
    uint64_t left = values - cursor->first;
    *piece = (dlxi_state_piece){.field = (dlxi_state_field)cursor->field,
                                .tensor = t != NULL ? t->id : 0,
                                .first = cursor->first,
                                .count = left < count_max ? (uint32_t)left : count_max,
                                .values = piece->numbers};
    if (t == NULL)
        run_pack(s, piece->numbers);
    else if (cursor->field == DLXI_STATE_ADAPTATION)
        adaptation_pack(t, piece->numbers);
    else
        piece->values = *field_place(t, cursor->field) + cursor->first;
    cursor->first += piece->count;
    return true;
}

bool dlxi_state_next_piece(const dlxi_state *s, uint32_t mask, dlxi_state_cursor *cursor,
                           uint32_t count_max, dlxi_state_piece *piece) {
    DLXI_ASSERT(count_max >= DLXI_STATE_PIECE_NUMBERS);
    while (cursor->tensor <= s->count && cursor->field < DLXI_STATE_FIELDS) {
        bool run = cursor->field == DLXI_STATE_RUN;
        if ((mask >> cursor->field & 1u) != 0 && run == (cursor->tensor == s->count) &&
            piece_fill(s, cursor, count_max, piece))
            return true;
        cursor->first = 0;
        if (++cursor->field < DLXI_STATE_FIELDS) continue;
        cursor->field = 0;
        cursor->tensor++;
    }
    return false;
}

uint64_t dlxi_state_piece_values(const dlxi_state *s, uint32_t mask) {
    uint64_t sum = (mask >> DLXI_STATE_RUN & 1u) != 0 ? RUN_NUMBERS : 0;
    for (size_t i = 0; i < s->count; i++)
        for (int field = 0; field <= DLXI_STATE_ADAPTATION; field++)
            if ((mask >> field & 1u) != 0) sum += (uint64_t)field_values(s, &s->tensors[i], field);
    return sum;
}

dlx_status dlxi_state_restore(dlxi_state *s, const dlxi_state_piece *piece, dlx_error *error) {
    int field = piece->field;
    dlxi_state_tensor *t = field == DLXI_STATE_RUN ? NULL : dlxi_state_find(s, piece->tensor);
    bool known = field == DLXI_STATE_RUN || (field < DLXI_STATE_RUN && t != NULL);
    uint64_t values = known && t != NULL ? (uint64_t)field_capacity(s, t, field) : RUN_NUMBERS;
    bool whole = field < DLXI_STATE_ADAPTATION || (piece->first == 0 && piece->count == values);
    bool fits = known && whole && piece->count > 0 && piece->first <= values &&
                piece->count <= values - piece->first;
    if (fits && t == NULL)
        fits = run_unpack(s, piece->values);
    else if (fits && field == DLXI_STATE_ADAPTATION)
        fits = adaptation_unpack(t, piece->values);
    else if (fits)
        memcpy(*field_place(t, field) + piece->first, piece->values, piece->count * sizeof(float));
    if (!fits)
        DLX_FAIL(error, DATA, "field %d of tensor %u: %u values from %llu on do not fit this model",
                 field, piece->tensor, piece->count, (unsigned long long)piece->first);
    return DLX_OK;
}

uint64_t dlxi_state_hash(const dlxi_state *s, uint32_t mask) {
    uint64_t sum = 0;
    dlxi_state_cursor cursor = {0};
    dlxi_state_piece piece;
    while (dlxi_state_next_piece(s, mask, &cursor, UINT32_MAX, &piece))
        sum += dlxi_hash(piece.values, (size_t)piece.count * sizeof(float),
                         (uint64_t)piece.field << 32 | piece.tensor);
    return sum;
}
