/* SPDX-License-Identifier: Apache-2.0 */
/* A shard: the tensors that this rank synchronises, with their outer state. */
#ifndef DLXI_SYNC_SHARD_H
#define DLXI_SYNC_SHARD_H

#include "codec/codec.h"
#include "outer/adapt.h"

typedef struct dlxi_shard_settings {
    dlx_overlap overlap;
    float learning_rate, momentum; /* of the outer step */
    dlxi_quantiser quantiser;
    bool error_feedback;
    /* none, carry: local training goes on from θ − e, so that it does not do again what waits in e
     */
    bool keep_unsent;
    uint64_t seed;
    int factor_rank; /* 0: no low-rank factors */
    bool ids_given;  /* the tensors say their ids; otherwise they are places in the array */
    dlxi_adapt adapt;
} dlxi_shard_settings;

/* rows × cols values each, unless said. */
typedef struct dlxi_shard_tensor {
    char *name;
    uint32_t id;
    int64_t rows, cols;
    float *parameter; /* p: the caller's */
    /* where local training started; NULL for `none` and `allreduce`, where that is the anchor */
    float *start;
    float *anchor;   /* θ */
    float *velocity; /* v */
    float *carried;  /* M while handed out, then e; `allreduce`: the gradient, then its mean */
    bool low_rank;
    dlxi_adapt_tensor adapt;
    int columns_max; /* most columns that a factor may have */
    int columns;     /* of the factors of the last exchange begun */
    float *basis;    /* [columns_max][stride(cols)]; what the next exchange projects on */
    int basis_columns;
    float *p_hat; /* [columns_max][stride(rows)], orthonormal */
    /* [columns_max][stride(cols)]: the sum, and what this site's message said */
    float *q_hat, *q_own;
    /* not low rank: the same for whole tensors; borrowed from the last exchange */
    const float *update, *own;
    uint64_t anchor_hash;
} dlxi_shard_tensor;

typedef struct dlxi_shard {
    dlxi_shard_settings settings;
    dlxi_shard_tensor *tensors;
    size_t count;
    float *row;           /* [2][widest row], for expanding */
    float *basis_scratch; /* [columns_max · stride] of the largest */
    double *spectrum;     /* [columns_max + columns_max²] of the largest */
} dlxi_shard;

/* Copies the parameters to θ and start. A rank may have no tensors. *out is the caller's; the
 * tensors' data stays the caller's and must outlive it. */
dlx_status dlxi_shard_open(dlxi_shard **out, const dlxi_shard_settings *settings,
                           const dlx_tensor *tensors, size_t count, dlx_error *error);
void dlxi_shard_close(dlxi_shard **shard);

/* Hash of all θ, by tensor id, whatever the order or the cut. */
void dlxi_shard_rehash(dlxi_shard *shard);
uint64_t dlxi_shard_anchor_hash(const dlxi_shard *shard);
/* The tensor of that id, or NULL. */
const dlxi_shard_tensor *dlxi_shard_find(const dlxi_shard *shard, uint32_t id);
/* Of ids, names and shapes, and of the settings that replicas must share. */
uint64_t dlxi_shard_tensors_hash(const dlxi_shard *shard);
int64_t dlxi_shard_parameters(const dlxi_shard *shard);
/* Payload bytes of one site's whole vectors (C), all low-rank tensors at `rank`; 0: at the present
 * ranks. */
uint64_t dlxi_shard_exchange_bytes(const dlxi_shard *shard, int rank);

/* ---- the two events of a round (design: the algorithm); on the training thread, while nothing is handed out  */

/* M ← (start − p) + e; start ← p. *norm ← ‖M‖. */
void dlxi_shard_submit(dlxi_shard *shard, double *norm);

/* p, start ← by overlap, after a commit. `final`: p ← θ whatever the overlap. */
void dlxi_shard_apply(dlxi_shard *shard, bool final);

/* eager: hand out and apply in one pass, since p needs δ_t beside own_{t−1}: p ← θ − η(1+μ) w (δ −
 * own). */
void dlxi_shard_submit_eager(dlxi_shard *shard, float weight, double *norm);

/* delayed: hand out, then p, start ← θ. */
void dlxi_shard_submit_delayed(dlxi_shard *shard, double *norm);

/* What this site's message of the last exchange said of row `row`. */
void dlxi_shard_own_row(const dlxi_shard *shard, const dlxi_shard_tensor *t, float *dst,
                        int64_t row);

#endif
