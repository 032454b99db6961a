/* SPDX-License-Identifier: Apache-2.0 */
/* What a dlx_sync has to have to go on in another process, as named parts: one list drives saving
 * and restoring. Parts are where their values are; numbers of the site's own position are packed
 * into one of them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/panic.h"
#include "sync/sync_internal.h"

enum {
    FORMAT = 1,
    SUFFIX_BYTES = 12,
    PARTS_OF_TENSOR = DLXI_STATE_ADAPTATION + 2 /* the state's fields, and start */
};

#define NUMBERS_NAME "sync.numbers"
#define COPY_NAME    "sync.coordinator"

static const uint64_t count_max = UINT64_C(1) << 60;

/* ---- numbers --------------------------------------------------------------------------------- */

/* Values to or from an array, one after another. */
typedef struct packer {
    int64_t *at;
    bool reads;
    bool fits; /* what was read is in range */
} packer;

static void number_u64(packer *n, uint64_t *value, uint64_t max) {
    if (n->reads)
        *value = (uint64_t)*n->at;
    else
        *n->at = (int64_t)*value;
    n->at++;
    n->fits = n->fits && *value <= max;
}

#define DEFINE_NUMBER(name, type)                                                                  \
    static void number_##name(packer *n, type *value, uint64_t max) {                              \
        uint64_t wide = *value;                                                                    \
        number_u64(n, &wide, max);                                                                 \
        if (n->reads) *value = (type)wide;                                                         \
    }
DEFINE_NUMBER(u32, uint32_t)
DEFINE_NUMBER(u16, uint16_t)

static void number_bool(packer *n, bool *value) {
    uint64_t wide = *value;
    number_u64(n, &wide, 1);
    if (n->reads) *value = wide == 1;
}

/* Its bits. */
static void number_real(packer *n, double *value, double min, double max) {
    memcpy(n->reads ? (void *)value : n->at, n->reads ? n->at : (const void *)value, sizeof *value);
    n->at++;
    n->fits = n->fits && *value >= min && *value <= max;
}

static void number_float(packer *n, float *value, double min, double max) {
    double wide = (double)*value;
    number_real(n, &wide, min, max);
    if (n->reads) *value = (float)wide;
}

static void state_numbers(packer *n, dlxi_state *s) {
    number_u64(n, &s->run_id, UINT64_MAX);
    number_u64(n, &s->rounds, count_max);
    number_u64(n, &s->tokens, count_max);
    number_u64(n, &s->counted, s->rounds);
    number_u32(n, &s->adapt.inner_steps, UINT32_MAX);
    number_u32(n, &s->copy.term, UINT32_MAX);
    number_u64(n, &s->copy.round, s->rounds);
    number_u32(n, &s->copy.bytes, DLXI_COPY_MAX);
}

static void round_numbers(packer *n, dlxi_round *r) {
    number_u32(n, &r->inner_steps, UINT32_MAX);
    number_u32(n, &r->inner_steps_max, UINT32_MAX);
    number_u64(n, &r->number, count_max);
    number_u32(n, &r->steps, UINT32_MAX);
    number_u32(n, &r->steps_since, UINT32_MAX);
    number_bool(n, &r->outstanding);
    n->fits = n->fits && r->inner_steps >= 1 && r->number >= 1;
}

static void flying_numbers(packer *n, dlxi_ready *r) {
    number_u64(n, &r->tokens, count_max);
    number_u32(n, &r->windows_used, UINT32_MAX);
    number_u64(n, &r->anchor_hash, UINT64_MAX);
    number_real(n, &r->norm, 0, HUGE_VAL);
    number_u64(n, &r->step_ns, UINT64_MAX);
    number_u32(n, &r->grace_ms, UINT32_MAX);
}

/* The last commit, which may not be applied yet. */
static void commit_numbers(packer *n, dlxi_outcome *o) {
    number_bool(n, &o->committed);
    number_u64(n, &o->commit.committed_tokens, count_max);
    number_bool(n, &o->commit.finished);
    number_u16(n, &o->site_index, DLXI_SITES_MAX - 1);
    number_u16(n, &o->site_count, DLXI_SITES_MAX);
    number_u16(n, &o->member_index, DLXI_SITES_MAX);
    number_u16(n, &o->member_count, DLXI_SITES_MAX);
    number_u64(n, &o->view_tokens, count_max);
    number_u64(n, &o->own_tokens, count_max);
    number_float(n, &o->weight, 0, 1);
    number_real(n, &o->speed, 0, HUGE_VAL);
}

/* The options that H and the bases' shapes are of. Where they are others now, adaptation begins
 * anew; *other ← whether it does. */
static void adaptation_numbers(packer *n, dlxi_state *s, bool *other) {
    const dlx_sync_config *options = &s->options;
    const uint64_t now[] = {options->adaptation, (uint64_t)options->factor_rank,
                            (uint64_t)options->factor_rank_min, (uint64_t)options->factor_rank_max,
                            options->inner_steps};
    *other = false;
    for (size_t i = 0; i < sizeof now / sizeof *now; i++) {
        uint64_t value = now[i];
        number_u64(n, &value, UINT32_MAX);
        *other = *other || value != now[i];
    }
    if (*other) s->adapt.inner_steps = s->adapt.inner_steps_first;
    n->fits =
        n->fits && s->adapt.inner_steps >= 1 && s->adapt.inner_steps <= s->adapt.inner_steps_first;
}

/* False: what was read can't be. */
static bool numbers_all(dlx_sync *s, int64_t at[DLXI_SYNC_NUMBERS], bool reads) {
    packer n = {.at = at, .reads = reads, .fits = true};
    uint64_t format = FORMAT;
    number_u64(&n, &format, FORMAT);
    state_numbers(&n, s->state);
    round_numbers(&n, &s->round);
    flying_numbers(&n, &s->flying);
    commit_numbers(&n, &s->last);
    number_u64(&n, &s->flying_tokens, count_max);
    number_u64(&n, &s->round_tokens, count_max);
    number_u64(&n, &s->applied_tokens, count_max);
    number_u64(&n, &s->applied_rounds, s->state->rounds);
    number_u64(&n, &s->windows_done, UINT32_MAX);
    number_real(&n, &s->run_share, 0, (double)count_max);
    number_real(&n, &s->pace, 0.01, 100);
    number_real(&n, &s->balance, 0, HUGE_VAL);
    adaptation_numbers(&n, s->state, &s->adapts_anew);
    DLXI_ASSERT(n.at <= at + DLXI_SYNC_NUMBERS);
    bool flies = s->round.outstanding && !s->last.committed;
    return n.fits && format == FORMAT && s->state->run_id != 0 && s->balance > 0 &&
           s->round.number == s->state->counted + 1 + flies &&
           (s->round.outstanding || !s->last.committed);
}

/* ---- the list -------------------------------------------------------------------------------- */

/* A field of a tensor as the list has it; rows 0: it has none. */
static dlx_part part_of(const dlx_sync *s, size_t tensor, int field, int32_t *adaptation) {
    const dlxi_state_tensor *t = &s->state->tensors[tensor];
    dlx_part part = {.kind = DLX_PART_F32, .rows = t->rows, .cols = t->cols};
    switch (field) {
    case DLXI_STATE_ANCHOR:
        part.data = t->anchor;
        break;
    case DLXI_STATE_VELOCITY:
        part.data = t->velocity;
        break;
    case DLXI_STATE_ERROR:
        part.data = t->error;
        break;
    case DLXI_STATE_BASIS:
        part.data = t->basis;
        part.rows = t->basis_columns;
        part.cols = dlxi_state_stride(s->state, t->cols);
        break;
    case DLXI_STATE_ADAPTATION:
        part = (dlx_part){.kind = DLX_PART_I32, .rows = 1, .cols = DLXI_STATE_PIECE_NUMBERS};
        part.data = t->low_rank ? adaptation : NULL;
        break;
    default:
        part.data = dlxi_local_start(s->local, tensor);
    }
    if (part.data == NULL) part.rows = 0;
    return part;
}

/* The error's place has M while an exchange is under way. */
static bool is_flying(const dlx_sync *s) {
    return s->round.outstanding && !s->last.committed;
}

static const char *suffix_of(const dlx_sync *s, int field) {
    static const char *const suffixes[PARTS_OF_TENSOR] = {"anchor", "velocity",   "error",
                                                          "basis",  "adaptation", "start"};
    return field == DLXI_STATE_ERROR && is_flying(s) ? "submitted" : suffixes[field];
}

static size_t names_bytes(const dlxi_state *state) {
    size_t bytes = 0;
    for (size_t i = 0; i < state->count; i++)
        bytes += PARTS_OF_TENSOR * (strlen(state->tensors[i].name) + 1 + SUFFIX_BYTES);
    return bytes;
}

/* Of the state: an adaptation packed, the others where they are. */
static void adaptation_pack(const dlxi_state *state, size_t tensor, int32_t *numbers) {
    dlxi_state_cursor cursor = {.tensor = tensor, .field = DLXI_STATE_ADAPTATION};
    dlxi_state_piece piece;
    if (!state->tensors[tensor].low_rank ||
        !dlxi_state_next_piece(state, 1u << DLXI_STATE_ADAPTATION, &cursor, UINT32_MAX, &piece))
        return;
    memcpy(numbers, piece.values, piece.count * sizeof *numbers);
}

/* ---- saving ---------------------------------------------------------------------------------- */

static dlx_status saving_begin(dlx_sync *s, size_t *count, dlx_error *error) {
    dlxi_saving *g = &s->saving;
    const size_t tensors = s->state->count, most = tensors * PARTS_OF_TENSOR + 2;
    size_t n = 0;
    DLX_TRY(DLXI_NEW(&g->adaptation, tensors + 1, error));
    g->parts = calloc(1, most * sizeof *g->parts + names_bytes(s->state));
    if (g->parts == NULL) DLX_FAIL(error, MEMORY, "out of memory for a snapshot's list");
    char *name = (char *)(g->parts + most);
    for (size_t i = 0; i < tensors; i++) {
        adaptation_pack(s->state, i, g->adaptation[i]);
        for (int field = 0; field < PARTS_OF_TENSOR; field++) {
            dlx_part part = part_of(s, i, field, g->adaptation[i]);
            if (part.rows == 0) continue;
            part.name = name;
            name += 1 + snprintf(name, strlen(s->state->tensors[i].name) + 1 + SUFFIX_BYTES,
                                 "%s.%s", s->state->tensors[i].name, suffix_of(s, field));
            g->parts[n++] = part;
        }
    }
    (void)numbers_all(s, g->numbers, false);
    g->parts[n++] = (dlx_part){.name = NUMBERS_NAME,
                               .kind = DLX_PART_I64,
                               .rows = 1,
                               .cols = DLXI_SYNC_NUMBERS,
                               .data = g->numbers};
    if (s->state->copy.bytes > 0)
        g->parts[n++] = (dlx_part){.name = COPY_NAME,
                                   .kind = DLX_PART_U8,
                                   .rows = 1,
                                   .cols = s->state->copy.bytes,
                                   .data = (uint8_t *)(uintptr_t)s->state->copy.data};
    *count = n;
    return DLX_OK;
}

void dlxi_saving_end(dlx_sync *s) {
    dlxi_saving *g = &s->saving;
    if (g->parts != NULL && g->hold != NULL) g->hold(g->context);
    free(g->parts);
    free(g->adaptation);
    *g = (dlxi_saving){0};
}

dlx_status dlxi_sync_save(dlx_sync *s, dlx_hold hold, void *context, const dlx_part **parts,
                          size_t *count, dlx_error *error) {
    dlxi_saving_end(s);
    if (s->finished) DLX_FAIL(error, STATE, "the run is finished");
    if (dlxi_sync_is_over(s)) dlxi_sync_stop(s);
    if (s->state == NULL) DLX_FAIL(error, AGAIN, "an exchange is under way");
    if (s->last.committed && s->last.commit.finished) DLX_FAIL(error, STATE, "the run is finished");
    s->saving.hold = hold;
    s->saving.context = context;
    dlx_status status = saving_begin(s, count, error);
    if (status != DLX_OK) {
        s->saving.hold = NULL;
        dlxi_saving_end(s);
        return status;
    }
    *parts = s->saving.parts;
    return DLX_OK;
}

/* ---- restoring ------------------------------------------------------------------------------- */

static dlx_status part_restore(dlx_part part, const char *tensor, const char *suffix,
                               const dlxi_origin *from, dlx_error *error) {
    char name[256];
    if (snprintf(name, sizeof name, "%s.%s", tensor, suffix) >= (int)sizeof name)
        DLX_FAIL(error, ARGUMENT, "tensor %.80s…: its name is too long to be restored", tensor);
    part.name = name;
    return from->restore(from->context, &part, error);
}

static dlx_status adaptation_restore(dlxi_state *state, dlxi_state_tensor *t,
                                     const int32_t *numbers, dlx_error *error) {
    dlxi_state_piece piece = {.field = DLXI_STATE_ADAPTATION,
                              .tensor = t->id,
                              .count = 3 + DLXI_ADAPT_WINDOW,
                              .values = numbers};
    dlx_status status = dlxi_state_restore(state, &piece, error);
    if (status != DLX_OK) dlxi_error_prefix(error, "tensor %s, adaptation: ", t->name);
    return status;
}

/* Ranks first: a basis has as many rows. */
static dlx_status tensor_restore(dlx_sync *s, size_t tensor, const dlxi_origin *from,
                                 dlx_error *error) {
    int32_t numbers[DLXI_STATE_PIECE_NUMBERS];
    dlxi_state_tensor *t = &s->state->tensors[tensor];
    if (t->low_rank && !s->adapts_anew) {
        DLX_TRY(part_restore(part_of(s, tensor, DLXI_STATE_ADAPTATION, numbers), t->name,
                             suffix_of(s, DLXI_STATE_ADAPTATION), from, error));
        DLX_TRY(adaptation_restore(s->state, t, numbers, error));
    }
    for (int field = 0; field < PARTS_OF_TENSOR; field++) {
        dlx_part part = part_of(s, tensor, field, NULL);
        bool begins = s->adapts_anew && field == DLXI_STATE_BASIS;
        if (part.rows > 0 && !begins)
            DLX_TRY(part_restore(part, t->name, suffix_of(s, field), from, error));
    }
    return DLX_OK;
}

static dlx_status copy_restore(dlxi_state *state, const dlxi_origin *from, dlx_error *error) {
    dlxi_copy *copy = &state->copy;
    uint8_t *data;
    if (copy->bytes == 0) return DLX_OK;
    if ((data = malloc(copy->bytes)) == NULL) {
        copy->bytes = 0;
        DLX_FAIL(error, MEMORY, "out of memory for the coordinator's state");
    }
    copy->data = data;
    const dlx_part part = {
        .name = COPY_NAME, .kind = DLX_PART_U8, .rows = 1, .cols = copy->bytes, .data = data};
    return from->restore(from->context, &part, error);
}

/* A gradient mean that was not committed is computed again, from the same windows. */
static void step_rewind(dlx_sync *s) {
    if (!s->method->averages_gradients) return;
    s->round.number = s->state->counted + 1;
    s->round.outstanding = false;
    s->flying_tokens = s->windows_done = 0;
}

/* The round is as long as the next one would be. */
static void round_measure(dlx_sync *s) {
    s->round.inner_steps = s->state->adapt.inner_steps;
    s->round.inner_steps_max = s->options.inner_steps_max;
}

/* Where the site was in its round. */
static void position_forget(dlx_sync *s, uint64_t counted) {
    s->state->counted = counted;
    s->round.number = counted + 1;
    round_measure(s);
    s->round.steps = s->round.steps_since = 0;
    s->round.outstanding = false;
    s->last.committed = false;
    s->flying = (dlxi_ready){0};
    s->flying_tokens = s->round_tokens = s->windows_done = s->windows_taken = 0;
    s->applied_tokens = s->state->tokens;
    s->applied_rounds = s->state->rounds;
    s->run_share = 0;
    s->pace = s->balance = 1;
}

static dlx_status numbers_restore(dlx_sync *s, const dlxi_origin *from, dlx_error *error) {
    int64_t numbers[DLXI_SYNC_NUMBERS] = {0};
    const dlx_part part = {.name = NUMBERS_NAME,
                           .kind = DLX_PART_I64,
                           .rows = 1,
                           .cols = DLXI_SYNC_NUMBERS,
                           .data = numbers};
    DLX_TRY(from->restore(from->context, &part, error));
    bool fits = numbers_all(s, numbers, true);
    s->state->copy.data = NULL;
    if (!fits) {
        s->state->copy.bytes = 0;
        DLX_FAIL(error, DATA,
                 NUMBERS_NAME ": it does not fit the options of sync; go on with those of the run");
    }
    if (s->adapts_anew) round_measure(s);
    if (from->is_another) {
        position_forget(s, 0);
        s->last = (dlxi_outcome){0};
    }
    return DLX_OK;
}

dlx_status dlxi_sync_restore(dlx_sync *s, const dlxi_origin *from, dlx_error *error) {
    DLX_TRY(numbers_restore(s, from, error));
    DLX_TRY(copy_restore(s->state, from, error));
    for (size_t i = 0; i < s->state->count; i++) DLX_TRY(tensor_restore(s, i, from, error));
    if (s->last.committed && (s->last.commit.finished || s->method->averages_gradients))
        DLX_FAIL(error, STATE, "the snapshot was taken as a round was applied; take another one");
    dlxi_state_rehash(s->state);
    /* of this rank's tensors, which may have been another's */
    if (!s->method->averages_gradients) s->flying.anchor_hash = dlxi_state_anchor_hash(s->state);
    step_rewind(s);
    s->windows_taken = s->windows_done;
    if (!from->is_another || s->method->averages_gradients) return DLX_OK;
    return dlxi_local_apply(s->local, s->state, true, 0, 0, error);
}

/* e stays; M, of a round that is over, does not, and with it e of the fragments that were not in
 * that round. */
dlx_status dlxi_sync_return(dlx_sync *s, dlx_error *error) {
    for (size_t i = 0; i < s->state->count && is_flying(s); i++) {
        dlxi_state_tensor *t = &s->state->tensors[i];
        memset(t->error, 0, (size_t)dlxi_state_tensor_values(t) * sizeof *t->error);
    }
    position_forget(s, s->state->counted);
    pthread_mutex_lock(&s->statistics_mutex);
    s->statistics.rounds = s->state->rounds;
    s->statistics.committed_tokens = s->state->tokens;
    s->statistics.anchor_hash = dlxi_state_anchor_hash(s->state);
    pthread_mutex_unlock(&s->statistics_mutex);
    return dlxi_local_apply(s->local, s->state, true, 0, 0, error);
}
