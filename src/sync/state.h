/* SPDX-License-Identifier: Apache-2.0 */
/* Outer state: what replicas share and a site must not lose, for the tensors that one rank
 * synchronises (its shard). One value with one owner: the training thread, or from submit to commit
 * the engine. Its owner alone has the pointer, and may read and write all of it.
 *
 * One list of fields (state.c) drives allocation, release, hashing, and the pieces in which a state
 * is written and restored: to a site that starts elsewhere, to a file, to another process. */
#ifndef DLXI_SYNC_STATE_H
#define DLXI_SYNC_STATE_H

#include "codec/codec.h"
#include "outer/adapt.h"
#include "outer/sync_options.h"
#include "wire/messages.h"

/* Values are [rows, cols], row-major, unless said. */
typedef struct dlxi_state_tensor {
    char *name;
    uint32_t id;
    int64_t rows, cols;
    dlx_kind kind;
    bool low_rank;
    int columns_max; /* of a factor */
    float *anchor;   /* θ */
    float *velocity; /* v; trained tensors under an outer step */
    float *error;    /* e; from submit to commit M = δ + e. allreduce: the gradient, its mean */
    float *basis;    /* low rank: [columns_max, stride(cols)], what the next exchange projects on */
    int basis_columns;
    dlxi_adapt_tensor adapt;
    uint64_t anchor_hash;
    uint32_t fragment; /* its turn: rounds that leave this, divided by their number */
} dlxi_state_tensor;

typedef struct dlxi_state {
    dlx_sync_config options; /* resolved; its pointers are not to be used */
    dlxi_quantiser quantiser;
    const dlxi_method *method;
    dlxi_state_tensor *tensors; /* [count], ids ascending */
    size_t count;
    uint64_t rounds; /* committed */
    uint64_t tokens; /* committed, of the run */
    dlxi_adapt adapt;
    uint64_t tokens_target; /* of the run; 0: not known yet */
    uint64_t run_id;        /* 0: it has not joined a run */
    uint64_t counted;       /* this site's submissions in committed rounds */
    dlxi_copy copy; /* of the coordinator, after the last round; without data: none is known */
} dlxi_state;

/* θ is zero until it is set; everything else is as a run starts. *out is the caller's. A rank may
 * have no tensors; of `tensors` only names, shapes, ids and kinds are used. */
dlx_status dlxi_state_open(dlxi_state **out, const dlx_sync_config *options,
                           const dlx_tensor *tensors, size_t count, dlx_error *error);
void dlxi_state_close(dlxi_state **state);

/* `copy` is copied if it is of the last round; else, and without memory, there is none. */
void dlxi_state_set_copy(dlxi_state *state, const dlxi_copy *copy);

/* Statistics are sent as f32: they are few, and their mean should be exact. */
static inline dlxi_quantiser dlxi_statistics_quantiser(dlxi_quantiser q) {
    return (dlxi_quantiser){32, q.group};
}

/* Whether it is the tensor's turn in that round. With fragments, a round but the last one has only
 * some of the tensors, each once in so many rounds (docs/algorithm.md). */
static inline bool dlxi_state_has_turn(const dlxi_state *s, const dlxi_state_tensor *t,
                                       uint64_t round) {
    return round % s->options.fragments == t->fragment;
}

int64_t dlxi_state_tensor_values(const dlxi_state_tensor *tensor);
int64_t dlxi_state_parameters(const dlxi_state *state);
/* The tensor of that id, or NULL. */
dlxi_state_tensor *dlxi_state_find(const dlxi_state *state, uint32_t id);
/* Of ids, names and shapes, and of the settings that replicas must share. */
uint64_t dlxi_state_tensors_hash(const dlxi_state *state);
/* Sets every anchor_hash after θ was written. */
void dlxi_state_rehash(dlxi_state *state);
/* Of all θ: a sum over tensors, so that it does not depend on the shard map. */
uint64_t dlxi_state_anchor_hash(const dlxi_state *state);

/* Values of a factor whose vectors have `length` elements, per column. */
int64_t dlxi_state_stride(const dlxi_state *state, int64_t length);
/* Payload bytes of one site's whole vectors (C), all low-rank tensors at `factor_rank`; 0: at the
 * present ranks. */
uint64_t dlxi_state_exchange_bytes(const dlxi_state *state, int factor_rank);
/* The same of one tensor. */
uint64_t dlxi_state_tensor_bytes(const dlxi_state *state, const dlxi_state_tensor *tensor,
                                 int factor_rank);
/* Σ over the low-rank tensors, for H and the mean rank. */
dlxi_adapt_sums dlxi_state_adapt_sums(const dlxi_state *state);

/* ---- pieces ---------------------------------------------------------------------------------- */

typedef enum dlxi_state_field {
    DLXI_STATE_ANCHOR,
    DLXI_STATE_VELOCITY,
    DLXI_STATE_ERROR,
    DLXI_STATE_BASIS,
    DLXI_STATE_ADAPTATION, /* ranks with their history */
    DLXI_STATE_RUN,        /* rounds, tokens, H; belongs to no tensor */
    DLXI_STATE_FIELDS
} dlxi_state_field;

enum {
    /* equal on all sites after a commit */
    DLXI_STATE_REPLICATED = 1 << DLXI_STATE_ANCHOR | 1 << DLXI_STATE_VELOCITY |
                            1 << DLXI_STATE_BASIS | 1 << DLXI_STATE_ADAPTATION |
                            1 << DLXI_STATE_RUN,
    DLXI_STATE_ALL = DLXI_STATE_REPLICATED | 1 << DLXI_STATE_ERROR,
    DLXI_STATE_PIECE_NUMBERS = 8
};

/* A run of one field's values, of 4 bytes each: f32, or i32 in ADAPTATION and RUN. */
typedef struct dlxi_state_piece {
    dlxi_state_field field;
    uint32_t tensor; /* its id; 0 in RUN */
    uint64_t first;
    uint32_t count;
    const void *values;                        /* in the state, or in `numbers` */
    int32_t numbers[DLXI_STATE_PIECE_NUMBERS]; /* of ADAPTATION and RUN */
} dlxi_state_piece;

typedef struct dlxi_state_cursor {
    size_t tensor; /* count: past the tensors */
    int field;
    uint64_t first;
} dlxi_state_cursor;

/* The next piece of the fields in `mask` (bits 1 << field), at most count_max values; false after
 * the last. Begin with a zeroed cursor. `piece` must stay in place while its values are used. */
bool dlxi_state_next_piece(const dlxi_state *state, uint32_t mask, dlxi_state_cursor *cursor,
                           uint32_t count_max, dlxi_state_piece *piece);
/* Σ of the pieces' counts. */
uint64_t dlxi_state_piece_values(const dlxi_state *state, uint32_t mask);
/* Puts a piece in its place, in any order. DLX_DATA: it does not fit this state; then nothing is
 * changed. θ's hashes follow with dlxi_state_rehash. */
dlx_status dlxi_state_restore(dlxi_state *state, const dlxi_state_piece *piece, dlx_error *error);
/* Of the fields in `mask`; but for RUN, hashes of shards add up to the model's. */
uint64_t dlxi_state_hash(const dlxi_state *state, uint32_t mask);

#endif
