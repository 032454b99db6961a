/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/exchange.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/panic.h"
#include "sync/allreduce.h"
#include "outer/step.h"

/* A frame that came before its trip did. */
typedef struct early {
    struct early *next;
    dlxi_frame frame;
    uint8_t payload[];
} early;

typedef enum phase { IDLE, TRIP_FACTORS, TRIP_PROJECTIONS, STAGED } phase;

struct dlxi_exchange {
    dlxi_shard *shard;
    phase phase;
    uint32_t term, attempt;
    uint64_t round;
    uint16_t members, me, rank;
    uint16_t member_site[DLXI_SITES_MAX];
    float weights[DLXI_SITES_MAX];
    dlxi_adapt_member measured[DLXI_SITES_MAX];
    dlxi_allreduce *trips[2];
    dlxi_segment *segments;     /* [tensors] */
    float *flat[2], *own[2];    /* by trip: values, then the sum; what this site's message said */
    size_t flat_values[2];      /* at most */
    dlxi_adapt_tensor *adapted; /* [tensors] */
    bool has_low_rank;
    early *early_first, **early_last;
    size_t early_bytes, early_bytes_max;
    void (*keepalive)(void *context);
    void *keepalive_context;
};

/* ---- layout: each trip's flat vector, tensors ascending -------------------------------------- */

static int64_t stride_of(const dlxi_exchange *x, int64_t length) {
    return dlxi_factor_stride(length, x->shard->settings.quantiser.group);
}

/* Values of tensor t in a trip's flat vector. */
static size_t values_in(const dlxi_exchange *x, const dlxi_shard_tensor *t, int trip, int columns) {
    if (t->low_rank) return (size_t)columns * (size_t)stride_of(x, trip == 0 ? t->rows : t->cols);
    return trip == 0 ? (size_t)stride_of(x, t->rows * t->cols) : 0;
}

dlx_status dlxi_exchange_open(dlxi_exchange **out, dlxi_shard *shard, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_exchange *x = NULL;
    DLX_TRY_OUT(DLXI_NEW(&x, 1, error));
    x->shard = shard;
    x->early_last = &x->early_first;
    DLX_TRY_OUT(DLXI_NEW(&x->segments, shard->count, error));
    DLX_TRY_OUT(DLXI_NEW(&x->adapted, shard->count, error));
    for (int trip = 0; trip < 2; trip++) {
        size_t values = 0;
        for (size_t i = 0; i < shard->count; i++) {
            values += values_in(x, &shard->tensors[i], trip, shard->tensors[i].columns_max);
            x->has_low_rank = x->has_low_rank || shard->tensors[i].low_rank;
        }
        x->flat_values[trip] = values;
        DLX_TRY_OUT(dlxi_allreduce_open(&x->trips[trip], error));
        DLX_TRY_OUT(DLXI_NEW(&x->flat[trip], values, error));
        DLX_TRY_OUT(DLXI_NEW(&x->own[trip], values, error));
        /* no more than two whole exchanges of f32 can be under way at once */
        x->early_bytes_max += 8 * values * sizeof(float) + (1 << 20);
    }
    *out = x;
    return DLX_OK;
out:
    *out = NULL;
    dlxi_exchange_close(&x);
    return status;
}

void dlxi_exchange_set_rank(dlxi_exchange *x, uint16_t rank) {
    x->rank = rank;
}

void dlxi_exchange_set_keepalive(dlxi_exchange *x, void (*keepalive)(void *context),
                                 void *context) {
    x->keepalive = keepalive;
    x->keepalive_context = context;
}

static void keepalive(const dlxi_exchange *x) {
    if (x->keepalive != NULL) x->keepalive(x->keepalive_context);
}

static void drop_early(dlxi_exchange *x) {
    while (x->early_first != NULL) {
        early *next = x->early_first->next;
        free(x->early_first);
        x->early_first = next;
    }
    x->early_last = &x->early_first;
    x->early_bytes = 0;
}

void dlxi_exchange_close(dlxi_exchange **exchange) {
    dlxi_exchange *x = *exchange;
    if (x == NULL) return;
    drop_early(x);
    for (int trip = 0; trip < 2; trip++) {
        dlxi_allreduce_close(&x->trips[trip]);
        free(x->flat[trip]);
        free(x->own[trip]);
    }
    free(x->segments);
    free(x->adapted);
    free(x);
    *exchange = NULL;
}

static dlx_status replay_early(dlxi_exchange *x, dlx_error *error);

static dlx_status begin_trip(dlxi_exchange *x, int trip, dlx_error *error) {
    dlxi_quantiser quantiser = x->shard->settings.quantiser;
    size_t segments = 0;
    for (size_t i = 0; i < x->shard->count; i++) {
        const dlxi_shard_tensor *t = &x->shard->tensors[i];
        size_t values = values_in(x, t, trip, t->columns);
        if (values > 0)
            x->segments[segments++] =
                (dlxi_segment){t->id, (uint32_t)(values / (size_t)quantiser.group)};
    }
    dlxi_allreduce_begin settings = {.segments = x->segments,
                                     .segment_count = segments,
                                     .quantiser = quantiser,
                                     .members = x->members,
                                     .me = x->me,
                                     .weights = x->weights,
                                     .member_site = x->member_site,
                                     .term = x->term,
                                     .attempt = x->attempt,
                                     .round = x->round,
                                     .trip = (uint16_t)trip,
                                     .rank = x->rank};
    DLX_TRY(dlxi_allreduce_begin_with(x->trips[trip], &settings, x->flat[trip], error));
    x->phase = trip == 0 ? TRIP_FACTORS : TRIP_PROJECTIONS;
    return replay_early(x, error);
}

static dlx_status take_view(dlxi_exchange *x, const dlxi_view *view, uint16_t site,
                            dlx_error *error) {
    double total = 0;
    x->me = UINT16_MAX;
    x->members = view->members;
    for (uint16_t i = 0; i < view->members; i++) {
        total += (double)view->member[i].tokens;
        x->member_site[i] = view->member[i].site;
        x->measured[i] = (dlxi_adapt_member){view->member[i].step_ns, view->member[i].exchange_ns,
                                             view->member[i].exchange_bytes};
        if (view->member[i].site == site) x->me = i;
    }
    if (x->me == UINT16_MAX || total <= 0)
        DLX_FAIL(error, DATA, "the coordinator's view leaves out site %u", site);
    for (uint16_t i = 0; i < view->members; i++)
        x->weights[i] = (float)((double)view->member[i].tokens / total);
    return DLX_OK;
}

dlx_status dlxi_exchange_begin(dlxi_exchange *x, const dlxi_view *view, uint16_t site,
                               uint32_t term, uint64_t round, uint32_t attempt, dlx_error *error) {
    x->phase = IDLE;
    DLX_TRY(take_view(x, view, site, error));
    x->term = term;
    x->round = round;
    x->attempt = attempt;
    if (x->shard->count == 0) {
        x->phase = STAGED;
        return DLX_OK;
    }
    float *at = x->flat[0];
    const float *own = x->own[0];
    for (size_t i = 0; i < x->shard->count; i++) {
        dlxi_shard_tensor *t = &x->shard->tensors[i];
        t->columns = t->basis_columns;
        size_t values = values_in(x, t, 0, t->columns);
        if (t->low_rank) {
            dlxi_project_rows(at, t->carried, t->basis, t->rows, t->cols, t->columns,
                              x->shard->settings.quantiser.group);
        } else {
            size_t count = (size_t)(t->rows * t->cols);
            memcpy(at, t->carried, count * sizeof(float));
            memset(at + count, 0, (values - count) * sizeof(float));
            t->update = at;
            t->own = own;
        }
        at += values;
        own += values;
        keepalive(x);
    }
    return begin_trip(x, 0, error);
}

void dlxi_exchange_abort(dlxi_exchange *x) {
    x->phase = IDLE;
}

/* ---- frames ---------------------------------------------------------------------------------- */

int dlxi_exchange_trip(const dlxi_exchange *x) {
    return x->phase == TRIP_FACTORS ? 0 : x->phase == TRIP_PROJECTIONS ? 1 : -1;
}

static uint16_t position_of(const dlxi_exchange *x, uint16_t site) {
    for (uint16_t i = 0; i < x->members; i++)
        if (x->member_site[i] == site) return i;
    return UINT16_MAX;
}

bool dlxi_exchange_peek(dlxi_exchange *x, uint16_t site, dlxi_frame *frame) {
    int trip = dlxi_exchange_trip(x);
    uint16_t to = position_of(x, site);
    return trip >= 0 && to != UINT16_MAX && to != x->me &&
           dlxi_allreduce_peek(x->trips[trip], to, frame);
}

void dlxi_exchange_advance(dlxi_exchange *x, uint16_t site) {
    dlxi_allreduce_advance(x->trips[dlxi_exchange_trip(x)], position_of(x, site));
}

/* Before, at, or after the trip that the exchange is in. */
static int order_of(const dlxi_exchange *x, const dlxi_frame *frame) {
    if (frame->round != x->round) return frame->round < x->round ? -1 : 1;
    if (frame->attempt != x->attempt) return frame->attempt < x->attempt ? -1 : 1;
    int trip = dlxi_exchange_trip(x);
    if (trip < 0) return -1; /* aborted or staged: all of this attempt is past */
    return frame->trip < trip ? -1 : frame->trip > trip;
}

static dlx_status take(dlxi_exchange *x, const dlxi_frame *frame, dlx_error *error) {
    uint16_t from = position_of(x, frame->site);
    if (from == UINT16_MAX || from == x->me)
        DLX_FAIL(error, DATA, "a frame from site %u, which is not in the view", frame->site);
    return dlxi_allreduce_on_frame(x->trips[frame->trip], from, frame, error);
}

static dlx_status keep_early(dlxi_exchange *x, const dlxi_frame *frame, dlx_error *error) {
    size_t bytes = sizeof(early) + frame->payload_bytes;
    if (bytes > x->early_bytes_max - x->early_bytes)
        DLX_FAIL(error, DATA, "site %u sends more than this round holds", frame->site);
    early *e = malloc(bytes);
    if (e == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for a frame of %u bytes", frame->payload_bytes);
    e->next = NULL;
    e->frame = *frame;
    e->frame.payload = e->payload;
    memcpy(e->payload, frame->payload, frame->payload_bytes);
    *x->early_last = e;
    x->early_last = &e->next;
    x->early_bytes += bytes;
    return DLX_OK;
}

dlx_status dlxi_exchange_on_frame(dlxi_exchange *x, const dlxi_frame *frame, dlx_error *error) {
    if (frame->term < x->term || frame->trip > 1) return DLX_OK;
    int order = order_of(x, frame);
    if (order < 0) return DLX_OK;
    if (frame->round > x->round + 1) /* it would need this site's part in the round between */
        DLX_FAIL(error, DATA, "site %u sends round %llu while this site is in round %llu",
                 frame->site, (unsigned long long)frame->round, (unsigned long long)x->round);
    return order > 0 ? keep_early(x, frame, error) : take(x, frame, error);
}

static dlx_status replay_early(dlxi_exchange *x, dlx_error *error) {
    dlx_status status = DLX_OK;
    early **link = &x->early_first;
    while (*link != NULL) {
        early *e = *link;
        int order = order_of(x, &e->frame);
        if (order > 0) {
            link = &e->next;
            continue;
        }
        if (order == 0 && status == DLX_OK) status = take(x, &e->frame, error);
        *link = e->next;
        x->early_bytes -= sizeof(early) + e->frame.payload_bytes;
        free(e);
    }
    x->early_last = link;
    return status;
}

/* ---- between trips --------------------------------------------------------------------------- */

/* P̂ ← orthonormalised sums; Q ← Mᵀ P̂. */
static dlx_status begin_projections(dlxi_exchange *x, dlx_error *error) {
    int group = x->shard->settings.quantiser.group;
    const float *factors = x->flat[0];
    float *at = x->flat[1];
    dlxi_arithmetic saved;
    for (size_t i = 0; i < x->shard->count; i++) {
        dlxi_shard_tensor *t = &x->shard->tensors[i];
        size_t values = values_in(x, t, 0, t->columns);
        if (t->low_rank) {
            memcpy(t->p_hat, factors, values * sizeof(float));
            dlxi_arithmetic_enter(&saved);
            dlxi_orthonormalise(t->p_hat, t->rows, t->columns, group);
            dlxi_arithmetic_leave(&saved);
            dlxi_project_columns(at, t->carried, t->p_hat, t->rows, t->cols, t->columns, group);
            at += values_in(x, t, 1, t->columns);
        }
        factors += values;
        keepalive(x);
    }
    return begin_trip(x, 1, error);
}

/* own ← what this site's message said, less what its second quantisation lost, so that e takes that
 * in. A message of weight 0 said nothing. */
static void collect(dlxi_exchange *x, int trip) {
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    dlxi_allreduce_result(x->trips[trip], x->flat[trip]);
    dlxi_allreduce_own(x->trips[trip], x->own[trip]);
    if (x->weights[x->me] > 0)
        dlxi_allreduce_add_residual(x->trips[trip], x->own[trip], -1.0f / x->weights[x->me]);
    else
        memset(x->own[trip], 0, x->flat_values[trip] * sizeof(float));
    dlxi_arithmetic_leave(&saved);
}

static void take_projections(dlxi_exchange *x) {
    const float *sum = x->flat[1], *own = x->own[1];
    for (size_t i = 0; i < x->shard->count; i++) {
        dlxi_shard_tensor *t = &x->shard->tensors[i];
        size_t values = values_in(x, t, 1, t->columns);
        if (values == 0) continue;
        memcpy(t->q_hat, sum, values * sizeof(float));
        memcpy(t->q_own, own, values * sizeof(float));
        sum += values;
        own += values;
    }
}

dlx_status dlxi_exchange_poll(dlxi_exchange *x, bool *staged, dlx_error *error) {
    *staged = false;
    if (x->phase == TRIP_FACTORS && dlxi_allreduce_done(x->trips[0])) {
        collect(x, 0);
        if (x->has_low_rank)
            DLX_TRY(begin_projections(x, error));
        else
            x->phase = STAGED;
    }
    if (x->phase == TRIP_PROJECTIONS && dlxi_allreduce_done(x->trips[1])) {
        collect(x, 1);
        take_projections(x);
        x->phase = STAGED;
    }
    *staged = x->phase == STAGED;
    return DLX_OK;
}

uint64_t dlxi_exchange_staged_hash(const dlxi_exchange *x) {
    if (x->shard->count == 0) return 0;
    return dlxi_allreduce_hash(x->trips[0]) ^
           (x->has_low_rank ? dlxi_allreduce_hash(x->trips[1]) * 3 : 0);
}

/* ---- commit ---------------------------------------------------------------------------------- */

/* e ← M − own; the outer step; row by row, since Δ and own stay factored. */
static void commit_tensor(dlxi_shard *s, dlxi_shard_tensor *t) {
    float *expanded = s->row;
    for (int64_t row = 0; row < t->rows; row++) {
        int64_t at = row * t->cols;
        dlxi_shard_own_row(s, t, expanded, row);
        for (int64_t k = 0; k < t->cols; k++)
            t->carried[at + k] =
                s->settings.error_feedback ? t->carried[at + k] - expanded[k] : 0.0f;
        const float *update = t->low_rank ? expanded : t->update + at;
        if (t->low_rank)
            dlxi_expand_row(expanded, t->p_hat, t->q_hat, row, t->rows, t->cols, t->columns,
                            s->settings.quantiser.group);
        dlxi_outer_step(t->anchor + at, t->velocity + at, update, t->cols,
                        s->settings.learning_rate, s->settings.momentum);
    }
}

/* The next basis: the present one turned by what was just learnt; columns that died, and new ones,
 * start from noise. */
static void next_basis(dlxi_exchange *x, dlxi_shard_tensor *t) {
    const dlxi_shard_settings *settings = &x->shard->settings;
    int group = settings->quantiser.group;
    int64_t stride = stride_of(x, t->cols);
    if (settings->adapt.kind == DLX_ADAPTATION_PAPER) {
        double *values = x->shard->spectrum;
        dlxi_spectrum(values, values + t->columns, t->q_hat, t->cols, t->columns, group);
        dlxi_adapt_observe(&settings->adapt, &t->adapt,
                           dlxi_adapt_effective_rank(values, t->columns));
    }
    dlxi_basis_from(t->basis, t->q_hat, x->shard->basis_scratch, t->cols, t->columns, group);
    for (int k = 0; k < t->columns; k++) {
        const float *column = t->basis + k * stride;
        bool dead = true;
        for (int64_t i = 0; i < t->cols && dead; i++) dead = column[i] == 0.0f;
        if (dead)
            dlxi_basis_fill(t->basis, t->cols, k, k + 1, group, settings->seed, t->id, x->round);
    }
}

static uint64_t bytes_at(void *shard, int rank) {
    return dlxi_shard_exchange_bytes(shard, rank);
}

/* The decision for the rounds to come, the same on every site. */
static void adapt(dlxi_exchange *x) {
    dlxi_shard *s = x->shard;
    dlxi_adapt *a = &s->settings.adapt;
    size_t count = 0;
    if (a->kind == DLX_ADAPTATION_OFF) return;
    dlxi_adapt_tensor *low_rank = x->adapted;
    for (size_t i = 0; i < s->count; i++)
        if (s->tensors[i].low_rank) low_rank[count++] = s->tensors[i].adapt;
    if (a->kind == DLX_ADAPTATION_PAPER) dlxi_adapt_paper(a, low_rank, count);
    if (a->kind == DLX_ADAPTATION_LINK)
        dlxi_adapt_link(a, low_rank, count, x->measured, x->members, bytes_at, s);
    count = 0;
    for (size_t i = 0; i < s->count; i++)
        if (s->tensors[i].low_rank) s->tensors[i].adapt = low_rank[count++];
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        if (!t->low_rank) continue;
        int columns = dlxi_adapt_columns(a, &t->adapt);
        if (columns > t->basis_columns)
            dlxi_basis_fill(t->basis, t->cols, t->basis_columns, columns,
                            s->settings.quantiser.group, s->settings.seed, t->id, x->round);
        t->basis_columns = columns;
    }
}

void dlxi_exchange_commit(dlxi_exchange *x) {
    DLXI_ASSERT(x->phase == STAGED);
    dlxi_shard *s = x->shard;
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    for (size_t i = 0; i < s->count; i++) {
        dlxi_shard_tensor *t = &s->tensors[i];
        if (s->settings.overlap == DLX_OVERLAP_ALLREDUCE) {
            memcpy(t->carried, t->update, (size_t)(t->rows * t->cols) * sizeof(float));
            continue;
        }
        commit_tensor(s, t);
        if (t->low_rank) next_basis(x, t);
        keepalive(x);
    }
    if (s->settings.overlap != DLX_OVERLAP_ALLREDUCE) dlxi_shard_rehash(s);
    adapt(x);
    dlxi_arithmetic_leave(&saved);
    x->phase = IDLE;
}

float dlxi_exchange_weight(const dlxi_exchange *x) {
    return x->weights[x->me];
}
