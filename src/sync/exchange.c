/* SPDX-License-Identifier: Apache-2.0 */
#include "sync/exchange.h"

#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"
#include "base/panic.h"
#include "outer/step.h"
#include "sync/allreduce.h"

/* A frame that arrived before its trip began. */
typedef struct early {
    struct early *next;
    dlxi_frame frame;
    uint8_t payload[];
} early;

typedef enum phase { IDLE, UNDER_WAY, STAGED, FOLLOWING } phase;

/* The AllReduces of an attempt; STATISTICS runs beside the two others. */
enum { FACTORS, PROJECTIONS, STATISTICS, TRIPS = DLXI_TRIPS };

/* What the exchange keeps per tensor. */
typedef struct part {
    bool carried;         /* it is in this round */
    int columns;          /* of the factors of this attempt */
    float *p_hat;         /* [columns_max, stride(rows)], orthonormal */
    float *q_hat, *q_own; /* [columns_max, stride(cols)]: the sum, and what this message said */
    float *update, *own;  /* in flat and own: P factors, or the same of whole tensors */
} part;

struct dlxi_exchange {
    phase phase;
    int trip; /* FACTORS, PROJECTIONS, or STATISTICS once those two are done */
    uint32_t term, attempt;
    uint64_t round;
    uint16_t members, me, rank;
    bool voided; /* what this site submitted counts for nothing */
    uint16_t member_site[DLXI_SITES_MAX], position[DLXI_SITES_MAX]; /* of sites; NOWHERE */
    float weights[DLXI_SITES_MAX];
    uint64_t tokens; /* of all members in this round */
    dlxi_adapt_member measured[DLXI_SITES_MAX];
    dlxi_allreduce *trips[TRIPS];
    bool active[TRIPS];              /* has values; of PROJECTIONS: and has begun */
    float *flat[TRIPS], *own[TRIPS]; /* values, then the sum; what this site's message said */
    size_t flat_values[TRIPS];       /* at most */
    part *parts;                     /* [tensors] */
    dlxi_segment *segments;          /* [tensors] */
    dlxi_adapt_tensor *adapted;      /* [tensors] */
    size_t count;                    /* of tensors */
    bool has_low_rank;
    float *expanded, *own_expanded; /* [EXPANDED_ROWS widest rows] */
    float *basis_scratch;           /* [columns_max · stride] of the largest */
    double *spectrum;               /* [columns_max + columns_max²] of the largest */
    dlxi_diagnosis diagnosis;       /* of the last commit */
    early *early_first, **early_last;
    size_t early_bytes[DLXI_SITES_MAX], early_bytes_max; /* by sender; of one */
    void (*keepalive)(void *context);
    void *keepalive_context;
};

static const uint16_t NOWHERE = UINT16_MAX;

enum { EXPANDED_ROWS = 32 /* of a tensor at a time */ };

/* ---- layout: each trip's flat vector, tensors ascending -------------------------------------- */

/* Values of tensor t in a trip's flat vector, in a round that has it. */
static size_t tensor_values_in(const dlxi_state *s, const dlxi_state_tensor *t, int trip,
                               int columns) {
    if (t->low_rank && trip != STATISTICS)
        return (size_t)columns * (size_t)dlxi_state_stride(s, trip == FACTORS ? t->rows : t->cols);
    if (trip != (t->kind == DLX_STATISTICS ? STATISTICS : FACTORS)) return 0;
    return (size_t)dlxi_state_stride(s, dlxi_state_tensor_values(t));
}

/* Values of tensor i in this round. */
static size_t values_in(const dlxi_exchange *x, const dlxi_state *s, size_t i, int trip) {
    const part *p = &x->parts[i];
    return p->carried ? tensor_values_in(s, &s->tensors[i], trip, p->columns) : 0;
}

static dlx_status part_open(dlxi_exchange *x, part *p, const dlxi_state *s,
                            const dlxi_state_tensor *t, dlx_error *error) {
    for (int trip = 0; trip < TRIPS; trip++)
        x->flat_values[trip] += tensor_values_in(s, t, trip, t->columns_max);
    if (!t->low_rank) return DLX_OK;
    x->has_low_rank = true;
    size_t columns = (size_t)t->columns_max, stride = (size_t)dlxi_state_stride(s, t->cols);
    DLX_TRY(DLXI_NEW(&p->p_hat, columns * (size_t)dlxi_state_stride(s, t->rows), error));
    DLX_TRY(DLXI_NEW(&p->q_hat, columns * stride, error));
    return DLXI_NEW(&p->q_own, columns * stride, error);
}

static dlx_status scratch_open(dlxi_exchange *x, const dlxi_state *s, dlx_error *error) {
    int64_t widest = 1, basis = 1, columns = 1;
    for (size_t i = 0; i < s->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        int64_t size = t->columns_max * dlxi_state_stride(s, t->cols);
        if (t->cols > widest) widest = t->cols;
        if (t->columns_max > columns) columns = t->columns_max;
        if (size > basis) basis = size;
    }
    DLX_TRY(DLXI_NEW(&x->expanded, EXPANDED_ROWS * widest, error));
    DLX_TRY(DLXI_NEW(&x->own_expanded, EXPANDED_ROWS * widest, error));
    DLX_TRY(DLXI_NEW(&x->basis_scratch, basis, error));
    return DLXI_NEW(&x->spectrum, columns * (columns + 1), error);
}

dlx_status dlxi_exchange_open(dlxi_exchange **out, const dlxi_state *s, uint16_t rank,
                              dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_exchange *x = NULL;
    *out = NULL;
    DLX_TRY_OUT(DLXI_NEW(&x, 1, error));
    x->rank = rank;
    x->early_last = &x->early_first;
    DLX_TRY_OUT(DLXI_NEW(&x->parts, s->count, error));
    DLX_TRY_OUT(DLXI_NEW(&x->segments, s->count, error));
    DLX_TRY_OUT(DLXI_NEW(&x->adapted, s->count, error));
    x->count = s->count;
    for (size_t i = 0; i < x->count; i++)
        DLX_TRY_OUT(part_open(x, &x->parts[i], s, &s->tensors[i], error));
    DLX_TRY_OUT(scratch_open(x, s, error));
    for (int trip = 0; trip < TRIPS; trip++) {
        DLX_TRY_OUT(dlxi_allreduce_open(&x->trips[trip], error));
        DLX_TRY_OUT(DLXI_NEW(&x->flat[trip], x->flat_values[trip], error));
        DLX_TRY_OUT(DLXI_NEW(&x->own[trip], x->flat_values[trip], error));
        /* a site sends no more than this attempt and the next one, of f32 */
        if (x->flat_values[trip] > 0)
            x->early_bytes_max += 8 * x->flat_values[trip] * sizeof(float) + (1 << 20);
    }
    *out = x;
    return DLX_OK;
out:
    dlxi_exchange_close(&x);
    return status;
}

void dlxi_exchange_set_keepalive(dlxi_exchange *x, void (*keepalive)(void *context),
                                 void *context) {
    x->keepalive = keepalive;
    x->keepalive_context = context;
}

static void keepalive_call(const dlxi_exchange *x) {
    if (x->keepalive != NULL) x->keepalive(x->keepalive_context);
}

static void early_drop(dlxi_exchange *x) {
    while (x->early_first != NULL) {
        early *next = x->early_first->next;
        free(x->early_first);
        x->early_first = next;
    }
}

void dlxi_exchange_close(dlxi_exchange **exchange) {
    dlxi_exchange *x = *exchange;
    if (x == NULL) return;
    early_drop(x);
    for (int trip = 0; trip < TRIPS; trip++) {
        dlxi_allreduce_close(&x->trips[trip]);
        free(x->flat[trip]);
        free(x->own[trip]);
    }
    for (size_t i = 0; i < x->count; i++) {
        free(x->parts[i].p_hat);
        free(x->parts[i].q_hat);
        free(x->parts[i].q_own);
    }
    free(x->parts);
    free(x->segments);
    free(x->adapted);
    free(x->expanded);
    free(x->own_expanded);
    free(x->basis_scratch);
    free(x->spectrum);
    free(x);
    *exchange = NULL;
}

/* ---- begin ----------------------------------------------------------------------------------- */

static dlx_status early_replay(dlxi_exchange *x, dlx_error *error);

/* x->segments ← what this trip has; their number is returned. */
static size_t segments_list(const dlxi_exchange *x, const dlxi_state *s, int trip,
                            dlxi_quantiser quantiser) {
    size_t segments = 0;
    for (size_t i = 0; i < x->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        size_t values = values_in(x, s, i, trip);
        if (values > 0)
            x->segments[segments++] =
                (dlxi_segment){t->id, (uint32_t)(values / (size_t)quantiser.group)};
    }
    return segments;
}

static dlxi_quantiser trip_quantiser(const dlxi_state *s, int trip) {
    return trip == STATISTICS ? dlxi_statistics_quantiser(s->quantiser) : s->quantiser;
}

static dlx_status trip_begin(dlxi_exchange *x, const dlxi_state *s, int trip, dlx_error *error) {
    dlxi_quantiser quantiser = trip_quantiser(s, trip);
    size_t segments = segments_list(x, s, trip, quantiser);
    x->active[trip] = segments > 0;
    if (segments == 0) return DLX_OK;
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
    return dlxi_allreduce_begin_with(x->trips[trip], &settings, x->flat[trip], error);
}

static void view_take(dlxi_exchange *x, const dlxi_view *view, uint16_t site) {
    double total = 0;
    x->me = NOWHERE;
    x->tokens = 0;
    x->voided = false;
    x->members = view->members;
    for (uint16_t i = 0; i < DLXI_SITES_MAX; i++) x->position[i] = NOWHERE;
    for (uint16_t i = 0; i < view->members; i++) {
        total += (double)view->member[i].tokens;
        x->tokens += view->member[i].tokens;
        x->member_site[i] = view->member[i].site;
        x->position[view->member[i].site] = i;
        x->measured[i] = (dlxi_adapt_member){view->member[i].step_ns, view->member[i].exchange_ns,
                                             view->member[i].exchange_bytes};
        if (view->member[i].site != site) continue;
        x->me = i;
        x->voided = view->member[i].voided;
    }
    for (uint16_t i = 0; i < view->members; i++)
        x->weights[i] = total > 0 ? (float)((double)view->member[i].tokens / total) : 0.0f;
}

/* Where each tensor's values are in the first trip that has them. The round that reaches the run's
 * tokens is the last, as for the coordinator, and has all tensors. */
static void parts_lay_out(dlxi_exchange *x, const dlxi_state *s) {
    size_t at[TRIPS] = {0};
    bool last = s->tokens + x->tokens >= s->tokens_target;
    for (size_t i = 0; i < x->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        part *p = &x->parts[i];
        int trip = t->kind == DLX_STATISTICS ? STATISTICS : FACTORS;
        p->columns = t->basis_columns;
        p->carried = last || dlxi_state_has_turn(s, t, x->round);
        p->update = x->flat[trip] + at[trip];
        p->own = x->own[trip] + at[trip];
        at[trip] += values_in(x, s, i, trip);
    }
}

/* flat ← what each trip starts from: P factors, and whole tensors. */
static void values_lay_out(dlxi_exchange *x, const dlxi_state *s) {
    parts_lay_out(x, s);
    for (size_t i = 0; i < x->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        part *p = &x->parts[i];
        int trip = t->kind == DLX_STATISTICS ? STATISTICS : FACTORS;
        float *values = p->update;
        size_t room = values_in(x, s, i, trip);
        if (!p->carried) continue;
        if (DLXI_PLANTED(3)) t->error[0] *= 1.5f; /* M, before the commit */
        if (t->low_rank) {
            dlxi_project_rows(values, t->error, t->basis, t->rows, t->cols, p->columns,
                              s->quantiser.group);
        } else {
            size_t count = (size_t)dlxi_state_tensor_values(t);
            memcpy(values, t->error, count * sizeof(float));
            memset(values + count, 0, (room - count) * sizeof(float));
        }
        keepalive_call(x);
    }
}

dlx_status dlxi_exchange_begin(dlxi_exchange *x, const dlxi_state *s, const dlxi_view *view,
                               uint16_t site, uint32_t term, uint64_t round, uint32_t attempt,
                               dlx_error *error) {
    DLXI_ASSERT(s->count == x->count && attempt > 0);
    x->phase = IDLE;
    view_take(x, view, site);
    if (x->me == NOWHERE) DLX_FAIL(error, DATA, "the coordinator's view leaves out site %u", site);
    x->term = term;
    x->round = round;
    x->attempt = attempt;
    values_lay_out(x, s);
    memset(x->active, 0, sizeof x->active);
    DLX_TRY(trip_begin(x, s, FACTORS, error));
    DLX_TRY(trip_begin(x, s, STATISTICS, error));
    x->trip = FACTORS;
    x->phase = UNDER_WAY;
    return early_replay(x, error);
}

void dlxi_exchange_abort(dlxi_exchange *x) {
    x->phase = IDLE;
}

dlx_status dlxi_exchange_follow(dlxi_exchange *x, const dlxi_state *s, const dlxi_view *view,
                                uint64_t round, dlx_error *error) {
    DLXI_ASSERT(s->count == x->count && s->rounds + 1 == round);
    x->phase = IDLE;
    view_take(x, view, DLXI_SITE_NONE);
    x->round = round;
    x->attempt = UINT32_MAX; /* no frame of its attempts is for this site */
    parts_lay_out(x, s);
    for (int trip = 0; trip < TRIPS; trip++) {
        size_t segments = segments_list(x, s, trip, trip_quantiser(s, trip));
        x->active[trip] = segments > 0;
        if (segments > 0)
            DLX_TRY(dlxi_allreduce_follow(x->trips[trip], x->segments, segments,
                                          trip_quantiser(s, trip), error));
    }
    x->phase = FOLLOWING;
    return DLX_OK;
}

bool dlxi_exchange_is_following(const dlxi_exchange *x) {
    return x->phase == FOLLOWING;
}

bool dlxi_exchange_wants(const dlxi_exchange *x, dlxi_frame *fetch) {
    DLXI_ASSERT(x->phase == FOLLOWING);
    *fetch = (dlxi_frame){.kind = DLXI_FRAME_FETCH, .round = x->round};
    for (uint16_t trip = 0; trip < TRIPS; trip++) {
        fetch->trip = trip;
        if (x->active[trip] &&
            dlxi_allreduce_wants(x->trips[trip], &fetch->tensor, &fetch->offset_groups))
            return true;
    }
    return false;
}

dlx_status dlxi_exchange_on_entry(dlxi_exchange *x, const dlxi_frame *frame, bool *moved,
                                  dlx_error *error) {
    dlxi_frame next;
    *moved = false;
    if (x->phase != FOLLOWING || frame->round != x->round || frame->trip >= TRIPS ||
        !dlxi_exchange_wants(x, &next) || frame->trip < next.trip)
        return DLX_OK;
    if (frame->trip > next.trip)
        DLX_FAIL(error, PEER_LOST, "results of trip %u were lost", next.trip);
    return dlxi_allreduce_on_entry(x->trips[frame->trip], frame, moved, error);
}

/* ---- frames ---------------------------------------------------------------------------------- */

int dlxi_exchange_trip(const dlxi_exchange *x) {
    return x->phase == UNDER_WAY ? x->trip : -1;
}

bool dlxi_exchange_is_staged(const dlxi_exchange *x) {
    return x->phase == STAGED;
}

/* Whether an attempt is under way with that site. A staged one goes on for those that lack its
 * frames. */
static bool exchanges_with(const dlxi_exchange *x, uint16_t site) {
    if (x->phase != UNDER_WAY && (x->phase != STAGED || DLXI_PLANTED(26))) return false;
    return x->position[site] != NOWHERE && x->position[site] != x->me;
}

/* The trip whose frame is next for a member: the earlier one's first. */
static dlxi_allreduce *trip_with_frame(dlxi_exchange *x, uint16_t to, dlxi_frame *frame) {
    for (int trip = 0; trip < TRIPS; trip++)
        if (x->active[trip] && dlxi_allreduce_peek(x->trips[trip], to, frame))
            return x->trips[trip];
    return NULL;
}

bool dlxi_exchange_peek(dlxi_exchange *x, uint16_t site, dlxi_frame *frame) {
    return exchanges_with(x, site) && trip_with_frame(x, x->position[site], frame) != NULL;
}

bool dlxi_exchange_advance(dlxi_exchange *x, uint16_t site) {
    dlxi_frame frame;
    DLXI_ASSERT(exchanges_with(x, site));
    return dlxi_allreduce_advance(trip_with_frame(x, x->position[site], &frame), x->position[site]);
}

bool dlxi_exchange_offsets(const dlxi_exchange *x, uint16_t site, dlxi_greeting *greeting) {
    if (!exchanges_with(x, site)) return false;
    for (int trip = 0; trip < TRIPS; trip++) {
        greeting->trips[trip].sent = 0;
        greeting->trips[trip].received = DLXI_NOT_BEGUN;
        if (x->active[trip])
            dlxi_allreduce_offsets(x->trips[trip], x->position[site], &greeting->trips[trip].sent,
                                   &greeting->trips[trip].received);
    }
    return true;
}

void dlxi_exchange_go_back(dlxi_exchange *x, uint16_t site, const dlxi_greeting *theirs) {
    if (!exchanges_with(x, site) || DLXI_PLANTED(9)) return;
    for (int trip = 0; trip < TRIPS; trip++)
        if (x->active[trip])
            dlxi_allreduce_go_back(x->trips[trip], x->position[site], theirs->trips[trip].received);
}

dlxi_awaited dlxi_exchange_awaits(const dlxi_exchange *x, uint16_t site) {
    dlxi_awaited most = DLXI_AWAITED_NOTHING;
    if (x->phase != UNDER_WAY || x->position[site] == NOWHERE) return most;
    for (int trip = 0; trip < TRIPS; trip++) {
        if (!x->active[trip] || (trip != x->trip && trip != STATISTICS)) continue;
        dlxi_awaited one = dlxi_allreduce_awaits(x->trips[trip], x->position[site]);
        if (one > most) most = one;
    }
    return most;
}

/* Before, at, or after what this exchange takes now. */
static int frame_order(const dlxi_exchange *x, const dlxi_frame *frame) {
    if (frame->round != x->round) return frame->round < x->round ? -1 : 1;
    if (frame->term != x->term) return frame->term < x->term ? -1 : 1;
    if (frame->attempt != x->attempt && !DLXI_PLANTED(10))
        return frame->attempt < x->attempt ? -1 : 1;
    if (x->phase != UNDER_WAY) return -1; /* aborted or staged: all of this attempt is past */
    if (frame->trip == STATISTICS) return 0;
    return frame->trip < x->trip ? -1 : frame->trip > x->trip;
}

static dlx_status frame_take(dlxi_exchange *x, const dlxi_frame *frame, bool *moved,
                             dlx_error *error) {
    *moved = false;
    uint16_t from = frame->site < DLXI_SITES_MAX ? x->position[frame->site] : NOWHERE;
    if (from == NOWHERE || from == x->me || !x->active[frame->trip])
        DLX_FAIL(error, DATA, "a frame from site %u, trip %u, which is not in the view",
                 frame->site, frame->trip);
    return dlxi_allreduce_on_frame(x->trips[frame->trip], from, frame, moved, error);
}

static dlx_status early_keep(dlxi_exchange *x, const dlxi_frame *frame, dlx_error *error) {
    size_t bytes = sizeof(early) + frame->payload_bytes;
    if (frame->site >= DLXI_SITES_MAX || bytes > x->early_bytes_max - x->early_bytes[frame->site])
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
    x->early_bytes[frame->site] += bytes;
    return DLX_OK;
}

dlx_status dlxi_exchange_on_frame(dlxi_exchange *x, const dlxi_frame *frame, bool *moved,
                                  dlx_error *error) {
    /* of another attempt: this one's may be on the way behind it */
    *moved = frame->round != x->round || frame->attempt != x->attempt || frame->term != x->term;
    if (frame->term < x->term || frame->trip >= TRIPS) return DLX_OK;
    int order = frame_order(x, frame);
    /* a later round would need this site's part in the one between */
    if (order < 0 || frame->round > x->round + 1) return DLX_OK;
    if (order == 0) return frame_take(x, frame, moved, error);
    *moved = true;
    return early_keep(x, frame, error);
}

/* What was lost between them is noticed by the sender's next greeting. */
static dlx_status early_replay(dlxi_exchange *x, dlx_error *error) {
    dlx_status status = DLX_OK;
    bool moved;
    early **link = &x->early_first;
    while (*link != NULL) {
        early *e = *link;
        int order = frame_order(x, &e->frame);
        if (order > 0) {
            link = &e->next;
            continue;
        }
        if (order == 0 && status == DLX_OK) status = frame_take(x, &e->frame, &moved, error);
        if (status == DLX_PEER_LOST) status = DLX_OK;
        *link = e->next;
        x->early_bytes[e->frame.site] -= sizeof(early) + e->frame.payload_bytes;
        free(e);
    }
    x->early_last = link;
    return status;
}

/* ---- between trips --------------------------------------------------------------------------- */

/* P̂ ← orthonormalised sums. */
static void factors_take(dlxi_exchange *x, const dlxi_state *s) {
    dlxi_arithmetic saved;
    for (size_t i = 0; i < x->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        part *p = &x->parts[i];
        if (!t->low_rank || !p->carried) continue;
        size_t values = values_in(x, s, i, FACTORS);
        memcpy(p->p_hat, p->update, values * sizeof(float));
        dlxi_arithmetic_enter(&saved);
        dlxi_orthonormalise(p->p_hat, t->rows, p->columns, s->quantiser.group);
        dlxi_arithmetic_leave(&saved);
        keepalive_call(x);
    }
}

/* Q ← Mᵀ P̂. */
static dlx_status projections_begin(dlxi_exchange *x, const dlxi_state *s, dlx_error *error) {
    float *at = x->flat[PROJECTIONS];
    factors_take(x, s);
    for (size_t i = 0; i < x->count; i++) {
        const dlxi_state_tensor *t = &s->tensors[i];
        const part *p = &x->parts[i];
        if (!t->low_rank || !p->carried) continue;
        dlxi_project_columns(at, t->error, p->p_hat, t->rows, t->cols, p->columns,
                             s->quantiser.group);
        at += values_in(x, s, i, PROJECTIONS);
        keepalive_call(x);
    }
    DLX_TRY(trip_begin(x, s, PROJECTIONS, error));
    x->trip = PROJECTIONS;
    return early_replay(x, error);
}

/* own ← what this site's message said, less what its second quantisation lost, so that e takes that
 * in. A message of weight 0 said nothing. */
static void trip_collect(dlxi_exchange *x, int trip) {
    if (!x->active[trip]) return;
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

static void projections_take(dlxi_exchange *x, const dlxi_state *s) {
    const float *sum = x->flat[PROJECTIONS], *own = x->own[PROJECTIONS];
    for (size_t i = 0; i < x->count; i++) {
        part *p = &x->parts[i];
        if (!s->tensors[i].low_rank || !p->carried) continue;
        size_t values = values_in(x, s, i, PROJECTIONS);
        memcpy(p->q_hat, sum, values * sizeof(float));
        memcpy(p->q_own, own, values * sizeof(float));
        sum += values;
        own += values;
    }
}

/* A planted fault: a basis moves before the commit. */
static void bases_spoil(const dlxi_state *s) {
    for (size_t i = 0; i < s->count; i++)
        if (s->tensors[i].low_rank) s->tensors[i].basis[0] += 0.25f;
}

static bool trip_done(const dlxi_exchange *x, int trip) {
    return !x->active[trip] || dlxi_allreduce_done(x->trips[trip]);
}

dlx_status dlxi_exchange_poll(dlxi_exchange *x, const dlxi_state *s, bool *staged,
                              dlx_error *error) {
    *staged = x->phase == STAGED;
    if (x->phase != UNDER_WAY) return DLX_OK;
    if (x->trip == FACTORS && trip_done(x, FACTORS)) {
        trip_collect(x, FACTORS);
        if (x->has_low_rank)
            DLX_TRY(projections_begin(x, s, error));
        else
            x->trip = STATISTICS;
    }
    if (x->trip == PROJECTIONS && trip_done(x, PROJECTIONS)) {
        trip_collect(x, PROJECTIONS);
        projections_take(x, s);
        x->trip = STATISTICS;
    }
    if (x->trip == STATISTICS && trip_done(x, STATISTICS)) {
        trip_collect(x, STATISTICS);
        x->phase = STAGED;
        if (DLXI_PLANTED(21)) bases_spoil(s);
    }
    *staged = x->phase == STAGED;
    return DLX_OK;
}

uint64_t dlxi_exchange_staged_hash(const dlxi_exchange *x) {
    static const uint64_t factors[TRIPS] = {1, 3, 5};
    uint64_t hash = 0;
    for (int trip = 0; trip < TRIPS; trip++)
        if (x->active[trip]) hash ^= dlxi_allreduce_hash(x->trips[trip]) * factors[trip];
    return hash;
}

/* ---- commit ---------------------------------------------------------------------------------- */

/* → values[count, cols] of rows `first` …: of a low-rank tensor, expanded into `room`. */
static const float *rows_of(float *room, const part *p, const dlxi_state *s,
                            const dlxi_state_tensor *t, const float *q, const float *whole,
                            int64_t first, int64_t count) {
    if (!t->low_rank) return whole + first * t->cols;
    dlxi_expand_rows(room, p->p_hat, q, first, count, t->rows, t->cols, p->columns,
                     s->quantiser.group);
    return room;
}

/* e ← M − own; the outer step; some rows at a time, since Δ and own stay factored. */
static void tensor_commit(dlxi_exchange *x, const part *p, dlxi_state *s, dlxi_state_tensor *t) {
    bool keeps = s->options.error_feedback && !x->voided;
    const dlxi_outer outer = dlxi_sync_options_outer_in(&s->options, x->round);
    for (int64_t row = 0; row < t->rows; row += EXPANDED_ROWS) {
        int64_t count = t->rows - row < EXPANDED_ROWS ? t->rows - row : EXPANDED_ROWS;
        int64_t at = row * t->cols, values = count * t->cols;
        float *error = t->error + at;
        if (DLXI_PLANTED(22) && x->me == NOWHERE) error[0] -= 0.5f; /* as if it had sent */
        const float *update = rows_of(x->expanded, p, s, t, p->q_hat, p->update, row, count);
        if (x->me != NOWHERE) {
            const float *own = rows_of(x->own_expanded, p, s, t, p->q_own, p->own, row, count);
            dlxi_diagnosis_add(&x->diagnosis, error, own, update, t->velocity + at, values);
            for (int64_t k = 0; k < values; k++) error[k] = keeps ? error[k] - own[k] : 0;
        }
        dlxi_outer_step(t->anchor + at, t->velocity + at, update, values, &outer);
    }
}

/* θ ← the mean of the sites' statistics; nothing of them waits for a later round. Of one that is
 * followed, what this site submitted is the difference to the new θ. */
static void statistics_commit(const dlxi_exchange *x, const part *p, dlxi_state_tensor *t) {
    int64_t values = dlxi_state_tensor_values(t);
    for (int64_t k = 0; k < values; k++) {
        t->anchor[k] = t->anchor[k] - p->update[k];
        t->error[k] = x->me == NOWHERE ? t->error[k] - p->update[k] : 0.0f;
    }
}

/* The next basis: Q̂, orthonormalised; dead columns are drawn at random. */
static void basis_turn(dlxi_exchange *x, const part *p, dlxi_state *s, dlxi_state_tensor *t) {
    int group = s->quantiser.group;
    int64_t stride = dlxi_state_stride(s, t->cols);
    if (s->adapt.kind == DLX_ADAPTATION_PAPER) {
        double *values = x->spectrum;
        dlxi_spectrum(values, values + p->columns, p->q_hat, t->cols, p->columns, group);
        dlxi_adapt_observe(&s->adapt, &t->adapt, dlxi_adapt_effective_rank(values, p->columns));
    }
    dlxi_basis_from(t->basis, p->q_hat, x->basis_scratch, t->cols, p->columns, group);
    for (int k = 0; k < p->columns; k++) {
        const float *column = t->basis + k * stride;
        bool dead = true;
        for (int64_t i = 0; i < t->cols && dead; i++) dead = column[i] == 0.0f;
        if (dead)
            dlxi_basis_fill(t->basis, t->cols, k, k + 1, group, s->options.seed, t->id, x->round);
    }
}

static uint64_t bytes_at(void *state, int factor_rank) {
    return dlxi_state_exchange_bytes(state, factor_rank);
}

/* The decision for the rounds to come, the same on every site. */
static void state_adapt(dlxi_exchange *x, dlxi_state *s) {
    dlxi_adapt *a = &s->adapt;
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
        dlxi_state_tensor *t = &s->tensors[i];
        if (!t->low_rank) continue;
        int columns = dlxi_adapt_columns(a, &t->adapt);
        if (columns > t->basis_columns)
            dlxi_basis_fill(t->basis, t->cols, t->basis_columns, columns, s->quantiser.group,
                            s->options.seed, t->id, x->round);
        t->basis_columns = columns;
    }
}

static void tensors_commit(dlxi_exchange *x, dlxi_state *s) {
    for (size_t i = 0; i < s->count; i++) {
        dlxi_state_tensor *t = &s->tensors[i];
        if (!x->parts[i].carried) continue;
        if (s->method->averages_gradients)
            memcpy(t->error, x->parts[i].update,
                   (size_t)dlxi_state_tensor_values(t) * sizeof(float));
        else if (t->kind == DLX_STATISTICS)
            statistics_commit(x, &x->parts[i], t);
        else
            tensor_commit(x, &x->parts[i], s, t);
        if (t->low_rank) basis_turn(x, &x->parts[i], s, t);
        keepalive_call(x);
    }
}

/* As after the last trip. */
static void results_take(dlxi_exchange *x, const dlxi_state *s) {
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    for (int trip = 0; trip < TRIPS; trip++)
        if (x->active[trip]) dlxi_allreduce_result(x->trips[trip], x->flat[trip]);
    dlxi_arithmetic_leave(&saved);
    factors_take(x, s);
    projections_take(x, s);
}

void dlxi_exchange_keep(const dlxi_exchange *x, uint32_t lineage, dlxi_history *history) {
    dlxi_entry_trip trips[TRIPS] = {0};
    for (int trip = 0; trip < TRIPS; trip++)
        if (x->active[trip])
            trips[trip].codes = (uint8_t *)(uintptr_t)dlxi_allreduce_codes(
                x->trips[trip], (const dlxi_segment **)&trips[trip].segments,
                &trips[trip].segment_count, &trips[trip].group_bytes);
    dlxi_history_keep(history, x->round, lineage, trips);
}

void dlxi_exchange_commit(dlxi_exchange *x, dlxi_state *s) {
    DLXI_ASSERT(x->phase == STAGED || x->phase == FOLLOWING);
    DLXI_ASSERT(s->count == x->count && s->rounds + 1 == x->round);
    dlxi_arithmetic saved;
    if (x->phase == FOLLOWING) results_take(x, s);
    x->diagnosis = (dlxi_diagnosis){0};
    dlxi_arithmetic_enter(&saved);
    tensors_commit(x, s);
    if (!s->method->averages_gradients) dlxi_state_rehash(s);
    state_adapt(x, s);
    s->rounds = x->round;
    dlxi_arithmetic_leave(&saved);
    x->phase = IDLE;
}

uint64_t dlxi_exchange_bytes(const dlxi_exchange *x, const dlxi_state *s) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < x->count; i++)
        if (x->parts[i].carried) bytes += dlxi_state_tensor_bytes(s, &s->tensors[i], 0);
    return bytes;
}

float dlxi_exchange_weight(const dlxi_exchange *x) {
    return x->me == NOWHERE ? 0.0f : x->weights[x->me];
}

const dlxi_diagnosis *dlxi_exchange_diagnosis(const dlxi_exchange *x) {
    return &x->diagnosis;
}
