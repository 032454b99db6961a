/* SPDX-License-Identifier: Apache-2.0 */
/* Owners and holders send each other whole messages and add up themselves, in order of rank, so
 * that sums are the same bits in every run. MPI's own non-blocking reductions go in thousands of
 * small rounds, each of which waits for both sides to look: too slow for ranks that compute or
 * sleep meanwhile. */
#include "pipeline/reduce.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>

enum { LANE_REPLICAS, LANE_ENDS, LANES };
enum { TAG_GRADIENTS = 1, TAG_PARAMETERS };
enum {
    FLOATS_MAX = 1 << 20 /* 4 MiB a message */,
    SLOTS_MAX = 6 /* gradients of others that wait to be added */
};

/* Neighbouring tensors of one owner and one part of the stage, or a piece of a large one. */
typedef struct message {
    int lane, owner;        /* among the lane's ranks */
    int64_t layer;          /* of the part: see dlxi_gradients_done */
    float *data, *gradient; /* [count]; the padding between tensors travels too */
    int64_t count;
} message;

typedef struct receive {
    float *gradient; /* += what comes */
    int count, from;
} receive;

/* Ranks that hold the same tensors, and what this one owns of them on its way in: received and
 * added in order. */
typedef struct lane {
    MPI_Comm holders;
    int rank, ranks;
    receive *queue; /* [capacity] */
    int64_t capacity, queued, posted, added;
    float *staging; /* [slots][slot_floats] */
    int64_t slot_floats;
    MPI_Request request[SLOTS_MAX];
    int slots;
} lane;

struct dlxi_reduce {
    message *messages;
    int64_t count, started;
    lane lanes[LANES];
    MPI_Request *requests; /* sends of gradients; or all there is of parameters */
    int64_t requests_max, pending;
};

/* ---- open and close -------------------------------------------------------------------------- */

static void open_lanes(dlxi_reduce *r, const dlxi_place *place) {
    bool at_end = place->stages > 1 && (place->stage == 0 || place->stage == place->stages - 1);
    r->lanes[LANE_REPLICAS] =
        (lane){.holders = place->stage_replicas, .rank = place->replica, .ranks = place->replicas};
    r->lanes[LANE_ENDS] = (lane){.holders = place->ends,
                                 .rank = place->replica + (place->stage > 0 ? place->replicas : 0),
                                 .ranks = at_end ? 2 * place->replicas : 1};
    for (int l = 0; l < LANES; l++)
        for (int slot = 0; slot < SLOTS_MAX; slot++) r->lanes[l].request[slot] = MPI_REQUEST_NULL;
}

static message describe(const dlxi_parameter *parameter, const dlxi_model_config *config,
                        const dlxi_place *place, int owner) {
    const dlxi_tensor *tensor = &parameter->tensor;
    bool at_both_ends = tensor->in_embedding && tensor->in_head && place->stages > 1;
    int replica = owner % place->replicas,
        of_last = owner / place->replicas > 0 ? place->replicas : 0;
    message m = {.lane = at_both_ends ? LANE_ENDS : LANE_REPLICAS,
                 .owner = at_both_ends ? of_last + replica : replica,
                 .layer = tensor->layer,
                 .data = parameter->data,
                 .gradient = parameter->gradient,
                 .count = parameter->count};
    if (tensor->layer < 0) m.layer = tensor->in_embedding ? -1 : config->layers;
    return m;
}

static bool joins(const message *last, const message *next) {
    return last->lane == next->lane && last->owner == next->owner && last->layer == next->layer &&
           (next->data - last->data) + next->count <= FLOATS_MAX;
}

/* Counts the messages; fills r->messages where there are any. */
static int64_t lay_out(dlxi_reduce *r, const dlxi_place *place, dlxi_stage *stage,
                       const int *owner) {
    int64_t parameter_count, count = 0;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &parameter_count);
    const dlxi_model_config *config = dlxi_stage_config(stage);
    message last = {0};
    for (int64_t i = 0; i < parameter_count; i++) {
        message next = describe(&parameter[i], config, place, owner[parameter[i].tensor.id]);
        if (r->lanes[next.lane].ranks == 1) continue;
        if (count > 0 && joins(&last, &next)) {
            last.count = (next.data - last.data) + next.count;
            if (r->messages != NULL) r->messages[count - 1] = last;
            continue;
        }
        for (int64_t at = 0; at < next.count; at += FLOATS_MAX) {
            last = next;
            last.data += at;
            last.gradient += at;
            last.count = next.count - at < FLOATS_MAX ? next.count - at : FLOATS_MAX;
            if (r->messages != NULL) r->messages[count] = last;
            count++;
        }
    }
    return count;
}

static dlx_status open_buffers(dlxi_reduce *r, dlx_error *error) {
    for (int64_t i = 0; i < r->count; i++) {
        lane *l = &r->lanes[r->messages[i].lane];
        bool owned = r->messages[i].owner == l->rank;
        r->requests_max += owned ? l->ranks - 1 : 1;
        if (!owned) continue;
        l->capacity += l->ranks - 1;
        if (r->messages[i].count > l->slot_floats) l->slot_floats = r->messages[i].count;
    }
    DLX_TRY(DLXI_NEW(&r->requests, r->requests_max, error));
    for (lane *l = r->lanes; l < r->lanes + LANES; l++) {
        l->slots = l->capacity < SLOTS_MAX ? (int)l->capacity : SLOTS_MAX;
        DLX_TRY(DLXI_NEW(&l->queue, l->capacity, error));
        DLX_TRY(DLXI_NEW(&l->staging, l->slots * l->slot_floats, error));
    }
    return DLX_OK;
}

dlx_status dlxi_reduce_open(dlxi_reduce **out, const dlxi_place *place, dlxi_stage *stage,
                            const int *owner, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_reduce *r = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&r, 1, error));
    open_lanes(r, place);
    r->count = lay_out(r, place, stage, owner);
    DLX_TRY_OUT(DLXI_NEW(&r->messages, r->count, error));
    lay_out(r, place, stage, owner);
    DLX_TRY_OUT(open_buffers(r, error));
    *out = r;
    return DLX_OK;
out:
    dlxi_reduce_close(&r);
    return status;
}

void dlxi_reduce_close(dlxi_reduce **reduce) {
    dlxi_reduce *r = *reduce;
    if (r == NULL) return;
    for (int l = 0; l < LANES; l++) {
        free(r->lanes[l].staging);
        free(r->lanes[l].queue);
    }
    free(r->requests);
    free(r->messages);
    free(r);
    *reduce = NULL;
}

static bool lane_is_busy(const lane *l) {
    return l->added < l->queued;
}

bool dlxi_reduce_is_busy(const dlxi_reduce *r) {
    return r->pending > 0 || lane_is_busy(&r->lanes[LANE_REPLICAS]) ||
           lane_is_busy(&r->lanes[LANE_ENDS]);
}

/* ---- sending --------------------------------------------------------------------------------- */

static dlx_status send(dlxi_reduce *r, const message *m, const float *from, int to, int tag,
                       dlx_error *error) {
    DLXI_ASSERT(r->pending < r->requests_max);
    return dlxi_mpi_check(MPI_Isend(from, (int)m->count, MPI_FLOAT, to, tag,
                                    r->lanes[m->lane].holders, &r->requests[r->pending++]),
                          "sending to a replica", error);
}

static dlx_status wait_for_requests(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    DLX_TRY(dlxi_mpi_wait(r->requests, (int)r->pending, waited_s, error));
    r->pending = 0;
    return DLX_OK;
}

/* ---- gradients to their owners --------------------------------------------------------------- */

static dlx_status post(lane *l, dlx_error *error) {
    for (; l->posted < l->queued && l->posted < l->added + l->slots; l->posted++) {
        const receive *next = &l->queue[l->posted];
        int64_t slot = l->posted % l->slots;
        int code = MPI_Irecv(l->staging + slot * l->slot_floats, next->count, MPI_FLOAT, next->from,
                             TAG_GRADIENTS, l->holders, &l->request[slot]);
        DLX_TRY(dlxi_mpi_check(code, "receiving gradients", error));
    }
    return DLX_OK;
}

static void add(float *restrict y, const float *restrict x, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] += x[i];
}

/* Adds what has come, in the order of the queue, and posts what has room. */
static dlx_status move(lane *l, dlx_error *error) {
    DLX_TRY(post(l, error));
    while (lane_is_busy(l)) {
        int64_t slot = l->added % l->slots;
        int done;
        int code = MPI_Test(&l->request[slot], &done, MPI_STATUS_IGNORE);
        DLX_TRY(dlxi_mpi_check(code, "receiving gradients", error));
        if (!done) break;
        add(l->queue[l->added].gradient, l->staging + slot * l->slot_floats,
            l->queue[l->added].count);
        l->added++;
        DLX_TRY(post(l, error));
    }
    return DLX_OK;
}

dlx_status dlxi_reduce_start(dlxi_reduce *r, int64_t layer, dlx_error *error) {
    for (int64_t i = 0; i < r->count; i++) {
        const message *m = &r->messages[i];
        lane *l = &r->lanes[m->lane];
        if (m->layer != layer) continue;
        r->started++;
        if (m->owner != l->rank) {
            DLX_TRY(send(r, m, m->gradient, m->owner, TAG_GRADIENTS, error));
            continue;
        }
        for (int rank = 0; rank < l->ranks; rank++)
            if (rank != l->rank)
                l->queue[l->queued++] = (receive){m->gradient, (int)m->count, rank};
    }
    return dlxi_reduce_progress(r, error);
}

dlx_status dlxi_reduce_progress(dlxi_reduce *r, dlx_error *error) {
    DLX_TRY(move(&r->lanes[LANE_REPLICAS], error));
    return move(&r->lanes[LANE_ENDS], error);
}

dlx_status dlxi_reduce_finish(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    DLXI_ASSERT(r->started == r->count);
    double begun_s = dlxi_clock_s();
    int idle = 0;
    for (lane *l = r->lanes; l < r->lanes + LANES; l++) {
        while (lane_is_busy(l)) {
            int64_t added = l->added;
            DLX_TRY(dlxi_reduce_progress(r, error));
            idle = l->added > added ? 0 : idle;
            if (lane_is_busy(l)) dlxi_mpi_idle(&idle);
        }
        l->queued = l->posted = l->added = 0;
    }
    r->started = 0;
    *waited_s += dlxi_clock_s() - begun_s;
    return wait_for_requests(r, waited_s, error);
}

/* ---- parameters from their owners ------------------------------------------------------------ */

static dlx_status receive_parameters(dlxi_reduce *r, const message *m, dlx_error *error) {
    DLXI_ASSERT(r->pending < r->requests_max);
    return dlxi_mpi_check(MPI_Irecv(m->data, (int)m->count, MPI_FLOAT, m->owner, TAG_PARAMETERS,
                                    r->lanes[m->lane].holders, &r->requests[r->pending++]),
                          "receiving parameters", error);
}

dlx_status dlxi_reduce_share(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    for (int64_t i = 0; i < r->count; i++) {
        const message *m = &r->messages[i];
        const lane *l = &r->lanes[m->lane];
        if (m->owner != l->rank) {
            DLX_TRY(receive_parameters(r, m, error));
            continue;
        }
        for (int rank = 0; rank < l->ranks; rank++)
            if (rank != l->rank) DLX_TRY(send(r, m, m->data, rank, TAG_PARAMETERS, error));
    }
    return wait_for_requests(r, waited_s, error);
}
