/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/local.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "codec/half.h"

enum { STAGING_VALUES = 1 << 16 };

typedef struct local_tensor {
    void *data; /* NULL: behind fetch and store */
    dlx_dtype dtype;
    int64_t count;
    float *start; /* NULL: not kept */
} local_tensor;

struct dlxi_local {
    const dlxi_method *method;
    bool keep_unsent;
    float outer_share; /* η + γ */
    dlx_fetch fetch;
    dlx_store store;
    void *memory_context;
    float *staging, *own_staging;
    size_t staging_values;
    local_tensor *tensors;
    size_t count;
};

/* ---- 16 bits --------------------------------------------------------------------------------- */

static float bf16_to_f32(uint16_t x) {
    return dlxi_float_of((uint32_t)x << 16);
}

/* To nearest, ties to even; a NaN stays one. */
static uint16_t bf16_from_f32(float x) {
    uint32_t bits = dlxi_bits_of(x);
    if ((bits & 0x7FFFFFFFu) > DLXI_FLOAT_INFINITY) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

static float value_widen(uint16_t x, dlx_dtype dtype) {
    if (dtype == DLX_BF16) return bf16_to_f32(x);
    return (x & DLXI_HALF_INFINITY) == DLXI_HALF_INFINITY ? NAN : dlxi_half_to_float(x);
}

static uint16_t value_narrow(float x, dlx_dtype dtype) {
    if (dtype == DLX_BF16) return bf16_from_f32(x);
    uint32_t magnitude = dlxi_half_magnitude(x), sign = dlxi_bits_of(x) >> 16 & 0x8000u;
    return (uint16_t)(sign | (magnitude < DLXI_HALF_INFINITY ? magnitude : DLXI_HALF_INFINITY));
}

static void values_widen(float *dst, const uint16_t *src, dlx_dtype dtype, int64_t count) {
    for (int64_t k = 0; k < count; k++) dst[k] = value_widen(src[k], dtype);
}

static void values_narrow(uint16_t *dst, const float *src, dlx_dtype dtype, int64_t count) {
    for (int64_t k = 0; k < count; k++) dst[k] = value_narrow(src[k], dtype);
}

/* ---- open and close -------------------------------------------------------------------------- */

static bool is_narrow(const local_tensor *t) {
    return t->dtype != DLX_F32;
}

static dlx_status tensor_open(const dlxi_local *l, local_tensor *t, const dlx_tensor *from,
                              dlx_error *error) {
    t->data = from->memory == DLX_MEMORY_HOST ? from->data : NULL;
    t->dtype = from->dtype;
    t->count = from->rows * from->cols;
    bool keeps = !l->method->averages_gradients && from->kind == DLX_TRAINED &&
                 (l->method->keeps_start || is_narrow(t));
    return keeps ? DLXI_NEW(&t->start, t->count, error) : DLX_OK;
}

dlx_status dlxi_local_open(dlxi_local **out, const dlx_sync_config *options,
                           const dlx_tensor *tensors, size_t count, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_local *l = NULL;
    *out = NULL;
    DLX_TRY_OUT(DLXI_NEW(&l, 1, error));
    l->method = dlxi_method_of(options->overlap);
    l->keep_unsent = options->keep_unsent && l->method->keeps_unsent;
    const dlxi_outer outer = dlxi_sync_options_outer(options);
    l->outer_share = (float)dlxi_outer_share(&outer);
    l->fetch = options->fetch;
    l->store = options->store;
    l->memory_context = options->memory_context;
    l->staging = options->staging;
    DLX_TRY_OUT(DLXI_NEW(&l->tensors, count, error));
    bool staged = false;
    for (size_t i = 0; i < count; i++) {
        l->count = i + 1;
        DLX_TRY_OUT(tensor_open(l, &l->tensors[i], &tensors[i], error));
        staged = staged || l->tensors[i].data == NULL || is_narrow(&l->tensors[i]);
    }
    l->staging_values =
        l->staging != NULL ? options->staging_bytes / sizeof(float) : STAGING_VALUES;
    if (staged && l->staging == NULL) {
        DLX_TRY_OUT(DLXI_NEW(&l->own_staging, l->staging_values, error));
        l->staging = l->own_staging;
    }
    *out = l;
    return DLX_OK;
out:
    dlxi_local_close(&l);
    return status;
}

void dlxi_local_close(dlxi_local **local) {
    dlxi_local *l = *local;
    if (l == NULL) return;
    for (size_t i = 0; i < l->count; i++) free(l->tensors[i].start);
    free(l->tensors);
    free(l->own_staging);
    free(l);
    *local = NULL;
}

float *dlxi_local_start(const dlxi_local *l, size_t tensor) {
    return l->tensors[tensor].start;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* p itself, if it is f32 in this process's memory; else NULL. */
static float *tensor_in_place(const local_tensor *t) {
    return t->data != NULL && !is_narrow(t) ? t->data : NULL;
}

static dlx_status chunk_fetch(const dlxi_local *l, size_t i, int64_t first, int64_t count,
                              float *dst, dlx_error *error) {
    const local_tensor *t = &l->tensors[i];
    if (t->data == NULL) return l->fetch(l->memory_context, i, first, count, dst, error);
    values_widen(dst, (const uint16_t *)t->data + first, t->dtype, count);
    return DLX_OK;
}

/* What 16 bits can't hold is taken out of p, and of start with it, so that start − p stays what it
 * was. */
static void chunk_round(dlxi_chunk *c, dlx_dtype dtype) {
    for (int64_t k = 0; k < c->count; k++) {
        float p = c->p[k], held = value_widen(value_narrow(p, dtype), dtype);
        if (c->start != NULL) c->start[k] = c->start[k] == p ? held : c->start[k] + (held - p);
        c->p[k] = held;
    }
}

static dlx_status chunk_store(const dlxi_local *l, size_t i, int64_t first, dlxi_chunk *c,
                              dlx_error *error) {
    const local_tensor *t = &l->tensors[i];
    if (is_narrow(t)) chunk_round(c, t->dtype);
    if (t->data == NULL) return l->store(l->memory_context, i, first, c->count, c->p, error);
    values_narrow((uint16_t *)t->data + first, c->p, t->dtype, c->count);
    return DLX_OK;
}

/* One pass over p: each chunk is fetched if `reads`, given to `work`, and stored if `writes`. */
typedef struct pass {
    bool reads, writes;
    void (*work)(struct pass *pass, const dlxi_local *l, const dlxi_state_tensor *t,
                 dlxi_chunk *chunk);
    bool applies, final;
    uint64_t since, until; /* what has its turn in a round after `since`, up to `until` */
    dlxi_coefficients by;
    double sum; /* of squares */
} pass;

static bool pass_has(const pass *how, const dlxi_state *s, const dlxi_state_tensor *t) {
    if (s->options.fragments == 1 || how->until - how->since >= s->options.fragments) return true;
    for (uint64_t round = how->since + 1; round <= how->until; round++)
        if (dlxi_state_has_turn(s, t, round)) return true;
    return false;
}

static dlx_status pass_run(pass *how, dlxi_local *l, dlxi_state *s, dlx_error *error) {
    for (size_t i = 0; i < l->count; i++) {
        dlxi_state_tensor *t = &s->tensors[i];
        float *in_place = tensor_in_place(&l->tensors[i]);
        if (!pass_has(how, s, t)) continue;
        int64_t values = l->tensors[i].count;
        int64_t most = in_place != NULL ? values : (int64_t)l->staging_values;
        for (int64_t first = 0; first < values; first += most) {
            float *start = l->tensors[i].start;
            dlxi_chunk chunk = {.p = in_place != NULL ? in_place : l->staging,
                                .start = start != NULL ? start + first : NULL,
                                .anchor = t->anchor + first,
                                .error = t->error + first,
                                .count = values - first < most ? values - first : most};
            if (in_place == NULL && how->reads)
                DLX_TRY(chunk_fetch(l, i, first, chunk.count, chunk.p, error));
            how->work(how, l, t, &chunk);
            if (in_place == NULL && how->writes) DLX_TRY(chunk_store(l, i, first, &chunk, error));
        }
    }
    return DLX_OK;
}

/* ---- the events of a round ------------------------------------------------------------------- */

static void chunk_restart(dlxi_chunk *c, const float *from) {
    if (c->start != NULL) memcpy(c->start, from, (size_t)c->count * sizeof *from);
}

static void chunk_apply(pass *how, const dlxi_local *l, const dlxi_state_tensor *t, dlxi_chunk *c) {
    if (!how->final && t->kind == DLX_TRAINED && l->method->apply != NULL) {
        l->method->apply(c, how->by);
        return;
    }
    memcpy(c->p, c->anchor, (size_t)c->count * sizeof *c->p);
    chunk_restart(c, c->anchor);
}

static void chunk_submit(pass *how, const dlxi_local *l, const dlxi_state_tensor *t,
                         dlxi_chunk *c) {
    if (t->kind == DLX_TRAINED)
        l->method->submit(c, how->by);
    else /* statistics: no residual */
        for (int64_t k = 0; k < c->count; k++) c->error[k] = c->anchor[k] - c->p[k];
    for (int64_t k = 0; k < c->count; k++) how->sum += (double)c->error[k] * (double)c->error[k];
    if (how->applies)
        chunk_apply(how, l, t, c);
    else
        chunk_restart(c, c->p);
}

static dlxi_coefficients coefficients(const dlxi_local *l, float weight) {
    return (dlxi_coefficients){.kept = l->keep_unsent ? 1.0f : 0.0f,
                               .own = l->outer_share * weight};
}

dlx_status dlxi_local_submit(dlxi_local *l, dlxi_state *s, bool whole, bool applies, float weight,
                             double *norm, dlx_error *error) {
    pass how = {.reads = true,
                .writes = applies,
                .work = chunk_submit,
                .applies = applies,
                .since = whole ? 0 : s->rounds,
                .until = whole ? UINT64_MAX : s->rounds + 1,
                .by = coefficients(l, weight)};
    DLX_TRY(pass_run(&how, l, s, error));
    *norm = sqrt(how.sum);
    return DLX_OK;
}

dlx_status dlxi_local_apply(dlxi_local *l, dlxi_state *s, bool final, uint64_t since, float weight,
                            dlx_error *error) {
    pass how = {.reads = !final && l->method->when != DLXI_WHEN_WAITED_FOR,
                .writes = true,
                .work = chunk_apply,
                .final = final,
                .since = final ? 0 : since,
                .until = final ? UINT64_MAX : s->rounds,
                .by = coefficients(l, weight)};
    return pass_run(&how, l, s, error);
}

static void chunk_read(pass *how, const dlxi_local *l, const dlxi_state_tensor *t, dlxi_chunk *c) {
    (void)how, (void)l, (void)t;
    memcpy((float *)(uintptr_t)c->anchor, c->p, (size_t)c->count * sizeof *c->p);
    chunk_restart(c, c->p);
}

dlx_status dlxi_local_read(dlxi_local *l, dlxi_state *s, dlx_error *error) {
    pass how = {.reads = true, .work = chunk_read, .until = UINT64_MAX};
    DLX_TRY(pass_run(&how, l, s, error));
    dlxi_state_rehash(s);
    return DLX_OK;
}
