/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/shard.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"

/* The most columns for which two factors are smaller than the matrix. */
static int factor_rank_limit(int64_t rows, int64_t cols) {
    int64_t limit = (rows * cols - 1) / (rows + cols);
    return (int)(limit < 1024 ? limit : 1024);
}

static int64_t stride_rows(const dlxi_shard *s, const dlxi_shard_tensor *t) {
    return dlxi_factor_stride(t->rows, s->settings.quantiser.group);
}

static int64_t stride_cols(const dlxi_shard *s, const dlxi_shard_tensor *t) {
    return dlxi_factor_stride(t->cols, s->settings.quantiser.group);
}

static dlx_status open_factors(dlxi_shard *s, dlxi_shard_tensor *t, dlx_error *error) {
    const dlxi_adapt *adapt = &s->settings.adapt;
    int limit = factor_rank_limit(t->rows, t->cols);
    t->adapt = (dlxi_adapt_tensor){.parameters = t->rows * t->cols,
                                   .factor_rank_first = s->settings.factor_rank,
                                   .factor_rank = s->settings.factor_rank,
                                   .factor_rank_limit = limit};
    int most = adapt->kind == DLX_ADAPTATION_OFF ? s->settings.factor_rank : adapt->factor_rank_max;
    if (adapt->kind == DLX_ADAPTATION_PAPER) most += DLXI_ADAPT_PROBES;
    t->columns_max = most < limit ? most : limit;
    size_t columns = (size_t)t->columns_max;
    DLX_TRY(DLXI_NEW(&t->basis, columns * (size_t)stride_cols(s, t), error));
    DLX_TRY(DLXI_NEW(&t->p_hat, columns * (size_t)stride_rows(s, t), error));
    DLX_TRY(DLXI_NEW(&t->q_hat, columns * (size_t)stride_cols(s, t), error));
    DLX_TRY(DLXI_NEW(&t->q_own, columns * (size_t)stride_cols(s, t), error));
    t->basis_columns = dlxi_adapt_columns(adapt, &t->adapt);
    dlxi_basis_fill(t->basis, t->cols, 0, t->basis_columns, s->settings.quantiser.group,
                    s->settings.seed, t->id, 0);
    return DLX_OK;
}

static dlx_status open_tensor(dlxi_shard *s, dlxi_shard_tensor *t, const dlx_tensor *from,
                              uint32_t id, dlx_error *error) {
    size_t count = (size_t)(from->rows * from->cols);
    bool gradients = s->settings.overlap == DLX_OVERLAP_ALLREDUCE;
    *t = (dlxi_shard_tensor){
        .id = id, .rows = from->rows, .cols = from->cols, .parameter = from->data};
    if ((t->name = strdup(from->name)) == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for the name of a tensor");
    DLX_TRY(DLXI_NEW(&t->anchor, count, error));
    DLX_TRY(DLXI_NEW(&t->carried, count, error));
    if (!gradients) DLX_TRY(DLXI_NEW(&t->velocity, count, error));
    if (!gradients && s->settings.overlap != DLX_OVERLAP_NONE) {
        DLX_TRY(DLXI_NEW(&t->start, count, error));
        memcpy(t->start, t->parameter, count * sizeof(float));
    }
    memcpy(t->anchor, t->parameter, count * sizeof(float));
    t->low_rank = !gradients && !from->plain && s->settings.factor_rank > 0 &&
                  s->settings.factor_rank <= factor_rank_limit(t->rows, t->cols);
    return t->low_rank ? open_factors(s, t, error) : DLX_OK;
}

dlx_status dlxi_shard_open(dlxi_shard **out, const dlxi_shard_settings *settings,
                           const dlx_tensor *tensors, size_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_shard *s = NULL;
    DLX_TRY_OUT(DLXI_NEW(&s, 1, error));
    s->settings = *settings;
    DLX_TRY_OUT(DLXI_NEW(&s->tensors, count, error));
    int64_t widest = 1, scratch = 1;
    int columns = 1;
    for (size_t i = 0; i < count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        s->count = i + 1;
        DLX_TRY_OUT(open_tensor(s, t, &tensors[i],
                                settings->ids_given ? tensors[i].id : (uint32_t)i, error));
        if (t->cols > widest) widest = t->cols;
        if (t->columns_max > columns) columns = t->columns_max;
        if (t->columns_max * stride_cols(s, t) > scratch)
            scratch = t->columns_max * stride_cols(s, t);
    }
    DLX_TRY_OUT(DLXI_NEW(&s->row, 2 * (size_t)widest, error));
    DLX_TRY_OUT(DLXI_NEW(&s->basis_scratch, scratch, error));
    DLX_TRY_OUT(DLXI_NEW(&s->spectrum, (size_t)columns * ((size_t)columns + 1), error));
    dlxi_shard_rehash(s);
    *out = s;
    return DLX_OK;
out:
    *out = NULL;
    dlxi_shard_close(&s);
    return status;
}

void dlxi_shard_close(dlxi_shard **shard) {
    dlxi_shard *s = *shard;
    if (s == NULL) return;
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        float *owned[] = {t->start, t->anchor, t->velocity, t->carried,
                          t->basis, t->p_hat,  t->q_hat,    t->q_own};
        for (size_t k = 0; k < sizeof owned / sizeof *owned; k++) free(owned[k]);
        free(t->name);
    }
    free(s->tensors);
    free(s->row);
    free(s->basis_scratch);
    free(s->spectrum);
    free(s);
    *shard = NULL;
}

void dlxi_shard_rehash(dlxi_shard *s) {
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        t->anchor_hash = dlxi_hash(t->anchor, (size_t)(t->rows * t->cols) * sizeof(float), t->id);
    }
}

uint64_t dlxi_shard_anchor_hash(const dlxi_shard *s) {
    uint64_t sum = 0; /* a sum, so that shards may be put together in any order */
    for (size_t i = 0; i < s->count; i++) sum += s->tensors[i].anchor_hash;
    return sum;
}

const dlxi_shard_tensor *dlxi_shard_find(const dlxi_shard *s, uint32_t id) {
    size_t low = 0, high = s->count; /* ids ascend */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (s->tensors[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < s->count && s->tensors[low].id == id ? &s->tensors[low] : NULL;
}

static uint64_t settings_hash(const dlxi_shard_settings *s) {
    uint32_t outer_step[2];
    memcpy(&outer_step[0], &s->learning_rate, sizeof s->learning_rate);
    memcpy(&outer_step[1], &s->momentum, sizeof s->momentum);
    const uint64_t settings[] = {s->overlap,
                                 outer_step[0],
                                 outer_step[1],
                                 (uint64_t)s->quantiser.bits,
                                 (uint64_t)s->quantiser.group,
                                 s->seed,
                                 (uint64_t)s->factor_rank,
                                 s->adapt.kind,
                                 (uint64_t)s->adapt.factor_rank_min,
                                 (uint64_t)s->adapt.factor_rank_max,
                                 s->adapt.inner_steps_first,
                                 s->adapt.inner_steps_min};
    return dlxi_hash(settings, sizeof settings, 0);
}

uint64_t dlxi_shard_tensors_hash(const dlxi_shard *s) {
    uint64_t sum = settings_hash(&s->settings);
    for (size_t i = 0; i < s->count; i++) {
        const dlxi_shard_tensor *t = &s->tensors[i];
        uint64_t shape[4] = {t->id, (uint64_t)t->rows, (uint64_t)t->cols, t->low_rank};
        sum += dlxi_hash(t->name, strlen(t->name), dlxi_hash(shape, sizeof shape, 0));
    }
    return sum;
}

int64_t dlxi_shard_parameters(const dlxi_shard *s) {
    int64_t sum = 0;
    for (size_t i = 0; i < s->count; i++) sum += s->tensors[i].rows * s->tensors[i].cols;
    return sum;
}

uint64_t dlxi_shard_exchange_bytes(const dlxi_shard *s, int rank) {
    uint64_t groups = 0;
    int64_t group = s->settings.quantiser.group;
    for (size_t i = 0; i < s->count; i++) {
        const dlxi_shard_tensor *t = &s->tensors[i];
        if (t->low_rank) {
            dlxi_adapt_tensor at = t->adapt;
            if (rank > 0) at.factor_rank = rank;
            groups += (uint64_t)(dlxi_adapt_columns(&s->settings.adapt, &at) *
                                 (stride_rows(s, t) + stride_cols(s, t)) / group);
        } else {
            groups += (uint64_t)((t->rows * t->cols + group - 1) / group);
        }
    }
    return groups * dlxi_quantiser_group_bytes(s->settings.quantiser);
}

/* ---- the two events -------------------------------------------------------------------------- */

void dlxi_shard_own_row(const dlxi_shard *s, const dlxi_shard_tensor *t, float *dst, int64_t row) {
    if (t->low_rank)
        dlxi_expand_row(dst, t->p_hat, t->q_own, row, t->rows, t->cols, t->columns,
                        s->settings.quantiser.group);
    else
        memcpy(dst, t->own + row * t->cols, (size_t)t->cols * sizeof(float));
}

static double norm_of(const dlxi_shard *s) {
    double sum = 0;
    for (size_t i = 0; i < s->count; i++) {
        const dlxi_shard_tensor *t = &s->tensors[i];
        for (int64_t k = 0; k < t->rows * t->cols; k++)
            sum += (double)t->carried[k] * (double)t->carried[k];
    }
    return sqrt(sum);
}

static void accumulate(float *restrict carried, const float *restrict start,
                       const float *restrict parameter, int64_t count) {
    for (int64_t k = 0; k < count; k++) carried[k] = (start[k] - parameter[k]) + carried[k];
}

/* Where local training kept what was unsent, and start is not kept apart from θ, p lacks both. */
static void difference(float *restrict carried, const float *restrict anchor,
                       const float *restrict parameter, int64_t count) {
    for (int64_t k = 0; k < count; k++) carried[k] = anchor[k] - parameter[k];
}

void dlxi_shard_submit(dlxi_shard *s, double *norm) {
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        int64_t count = t->rows * t->cols;
        if (t->start == NULL && s->settings.keep_unsent)
            difference(t->carried, t->anchor, t->parameter, count);
        else
            accumulate(t->carried, t->start != NULL ? t->start : t->anchor, t->parameter, count);
        if (t->start != NULL) memcpy(t->start, t->parameter, (size_t)count * sizeof(float));
    }
    *norm = norm_of(s);
}

void dlxi_shard_submit_delayed(dlxi_shard *s, double *norm) {
    dlxi_shard_submit(s, norm);
    dlxi_shard_apply(s, true);
}

void dlxi_shard_submit_eager(dlxi_shard *s, float weight, double *norm) {
    float scale = s->settings.learning_rate * (1.0f + s->settings.momentum) * weight;
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        for (int64_t row = 0; row < t->rows; row++) {
            int64_t at = row * t->cols;
            dlxi_shard_own_row(s, t, s->row, row);
            for (int64_t k = 0; k < t->cols; k++) {
                float delta = t->start[at + k] - t->parameter[at + k];
                t->carried[at + k] = delta + t->carried[at + k];
                t->parameter[at + k] = t->anchor[at + k] - scale * (delta - s->row[k]);
                t->start[at + k] = t->parameter[at + k];
            }
        }
    }
    *norm = norm_of(s);
}

/* carry: g ← start − p; start ← θ − kept; p ← start − g. `kept`: e, or zero. */
static void carry(float *restrict parameter, float *restrict start, const float *restrict anchor,
                  const float *restrict error, float kept, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        float progress = start[k] - parameter[k];
        start[k] = anchor[k] - kept * error[k];
        parameter[k] = start[k] - progress;
    }
}

/* none: p ← θ − kept */
static void restart(float *restrict parameter, const float *restrict anchor,
                    const float *restrict error, float kept, int64_t count) {
    for (int64_t k = 0; k < count; k++) parameter[k] = anchor[k] - kept * error[k];
}

void dlxi_shard_apply(dlxi_shard *s, bool final) {
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        int64_t count = t->rows * t->cols;
        size_t bytes = (size_t)count * sizeof(float);
        float kept = s->settings.keep_unsent ? 1.0f : 0.0f;
        if (s->settings.overlap == DLX_OVERLAP_CARRY && !final) {
            carry(t->parameter, t->start, t->anchor, t->carried, kept, count);
        } else if (s->settings.overlap == DLX_OVERLAP_NONE && !final) {
            restart(t->parameter, t->anchor, t->carried, kept, count);
        } else {
            memcpy(t->parameter, t->anchor, bytes);
            if (t->start != NULL) memcpy(t->start, t->anchor, bytes);
        }
    }
}
