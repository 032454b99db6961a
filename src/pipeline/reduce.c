/* SPDX-License-Identifier: Apache-2.0 */
/* Holders send their gradients to the owner, which adds them in order of rank: the same bits in
 * every run. MPI's non-blocking reductions take thousands of small rounds that progress only inside
 * MPI calls: too slow between ranks that compute or sleep meanwhile. */
#include "pipeline/reduce.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>

enum { GROUP_REPLICAS, GROUP_ENDS, GROUPS };
enum { TAG_GRADIENTS = 1, TAG_PARAMETERS };
enum { FLOATS_MAX = 1 << 20 }; /* per message: 4 MiB */
enum { SLOTS_MAX = 6 };        /* received gradients that wait to be added */

/* Adjacent tensors of one owner and layer, or a piece of a large one. */
typedef struct message {
    int group, owner;       /* among the group's ranks */
    int64_t layer;          /* numbered as in dlxi_gradients_done */
    float *data, *gradient; /* [count], with the padding between tensors */
    int64_t count;
} message;

typedef struct receive {
    float *gradient; /* += the received one */
    int count, from;
} receive;

/* Ranks that hold the same tensors. The queue has the gradients that this rank reduces, which are
 * received and added in order. */
typedef struct group {
    MPI_Comm holders;
    int rank, ranks;
    receive *queue; /* [capacity] */
    int64_t capacity, queued, posted, added;
    float *staging; /* [slots][slot_floats] */
    int64_t slot_floats;
    MPI_Request request[SLOTS_MAX];
    int slots;
} group;

struct dlxi_reduce {
    message *messages;
    int64_t count, started;
    group groups[GROUPS];
    MPI_Request *requests; /* of gradients, sends; of parameters, all */
    int64_t requests_max, pending;
};

/* ---- open and close -------------------------------------------------------------------------- */

static void groups_open(dlxi_reduce *r, const dlxi_grid *grid) {
    bool at_end = grid->stages > 1 && (grid->stage == 0 || grid->stage == grid->stages - 1);
    r->groups[GROUP_REPLICAS] =
        (group){.holders = grid->stage_replicas, .rank = grid->replica, .ranks = grid->replicas};
    r->groups[GROUP_ENDS] = (group){.holders = grid->ends,
                                    .rank = grid->replica + (grid->stage > 0 ? grid->replicas : 0),
                                    .ranks = at_end ? 2 * grid->replicas : 1};
    for (int g = 0; g < GROUPS; g++)
        for (int slot = 0; slot < SLOTS_MAX; slot++) r->groups[g].request[slot] = MPI_REQUEST_NULL;
}

static message message_describe(const dlxi_parameter *parameter, const dlxi_model_config *config,
                                const dlxi_grid *grid, int owner) {
    const dlxi_tensor *tensor = &parameter->tensor;
    bool at_both_ends = tensor->in_embedding && tensor->in_head && grid->stages > 1;
    int replica = owner % grid->replicas, of_last = owner / grid->replicas > 0 ? grid->replicas : 0;
    message m = {.group = at_both_ends ? GROUP_ENDS : GROUP_REPLICAS,
                 .owner = at_both_ends ? of_last + replica : replica,
                 .layer = tensor->layer,
                 .data = parameter->data,
                 .gradient = parameter->gradient,
                 .count = parameter->count};
    if (tensor->layer < 0) m.layer = tensor->in_embedding ? -1 : config->layers;
    return m;
}

static bool message_joins(const message *last, const message *next) {
    return last->group == next->group && last->owner == next->owner && last->layer == next->layer &&
           (next->data - last->data) + next->count <= FLOATS_MAX;
}

/* Returns the number of messages, and fills r->messages unless it is NULL. */
static int64_t messages_list(dlxi_reduce *r, const dlxi_grid *grid, dlxi_stage *stage,
                             const int *shard_map) {
    int64_t parameter_count, count = 0;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &parameter_count);
    const dlxi_model_config *config = dlxi_stage_config(stage);
    message last = {0};
    for (int64_t i = 0; i < parameter_count; i++) {
        message next =
            message_describe(&parameter[i], config, grid, shard_map[parameter[i].tensor.id]);
        if (r->groups[next.group].ranks == 1) continue;
        if (count > 0 && message_joins(&last, &next)) {
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

static dlx_status buffers_open(dlxi_reduce *r, dlx_error *error) {
    for (int64_t i = 0; i < r->count; i++) {
        group *g = &r->groups[r->messages[i].group];
        bool owned = r->messages[i].owner == g->rank;
        r->requests_max += owned ? g->ranks - 1 : 1;
        if (!owned) continue;
        g->capacity += g->ranks - 1;
        if (r->messages[i].count > g->slot_floats) g->slot_floats = r->messages[i].count;
    }
    DLX_TRY(DLXI_NEW(&r->requests, r->requests_max, error));
    for (group *g = r->groups; g < r->groups + GROUPS; g++) {
        g->slots = g->capacity < SLOTS_MAX ? (int)g->capacity : SLOTS_MAX;
        DLX_TRY(DLXI_NEW(&g->queue, g->capacity, error));
        DLX_TRY(DLXI_NEW(&g->staging, g->slots * g->slot_floats, error));
    }
    return DLX_OK;
}

dlx_status dlxi_reduce_open(dlxi_reduce **out, const dlxi_grid *grid, dlxi_stage *stage,
                            const int *shard_map, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_reduce *r = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&r, 1, error));
    groups_open(r, grid);
    r->count = messages_list(r, grid, stage, shard_map);
    DLX_TRY_OUT(DLXI_NEW(&r->messages, r->count, error));
    messages_list(r, grid, stage, shard_map);
    DLX_TRY_OUT(buffers_open(r, error));
    *out = r;
    return DLX_OK;
out:
    dlxi_reduce_close(&r);
    return status;
}

void dlxi_reduce_close(dlxi_reduce **reduce) {
    dlxi_reduce *r = *reduce;
    if (r == NULL) return;
    for (int g = 0; g < GROUPS; g++) {
        free(r->groups[g].staging);
        free(r->groups[g].queue);
    }
    free(r->requests);
    free(r->messages);
    free(r);
    *reduce = NULL;
}

static bool group_is_busy(const group *g) {
    return g->added < g->queued;
}

bool dlxi_reduce_is_busy(const dlxi_reduce *r) {
    return r->pending > 0 || group_is_busy(&r->groups[GROUP_REPLICAS]) ||
           group_is_busy(&r->groups[GROUP_ENDS]);
}

/* ---- sending --------------------------------------------------------------------------------- */

static dlx_status message_send(dlxi_reduce *r, const message *m, const float *from, int to, int tag,
                               dlx_error *error) {
    DLXI_ASSERT(r->pending < r->requests_max);
    return dlxi_mpi_check(MPI_Isend(from, (int)m->count, MPI_FLOAT, to, tag,
                                    r->groups[m->group].holders, &r->requests[r->pending++]),
                          "sending to a replica", error);
}

static dlx_status requests_wait(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    DLX_TRY(dlxi_mpi_wait(r->requests, (int)r->pending, waited_s, error));
    r->pending = 0;
    return DLX_OK;
}

/* ---- gradients to owners --------------------------------------------------------------------- */

static dlx_status group_post(group *g, dlx_error *error) {
    for (; g->posted < g->queued && g->posted < g->added + g->slots; g->posted++) {
        const receive *next = &g->queue[g->posted];
        int64_t slot = g->posted % g->slots;
        int code = MPI_Irecv(g->staging + slot * g->slot_floats, next->count, MPI_FLOAT, next->from,
                             TAG_GRADIENTS, g->holders, &g->request[slot]);
        DLX_TRY(dlxi_mpi_check(code, "receiving gradients", error));
    }
    return DLX_OK;
}

static void gradients_add(float *restrict y, const float *restrict x, int64_t count) {
    for (int64_t i = 0; i < count; i++) y[i] += x[i];
}

/* Adds received gradients in the order of the queue, and posts receives into freed slots. */
static dlx_status group_progress(group *g, dlx_error *error) {
    DLX_TRY(group_post(g, error));
    while (group_is_busy(g)) {
        int64_t slot = g->added % g->slots;
        int done;
        int code = MPI_Test(&g->request[slot], &done, MPI_STATUS_IGNORE);
        DLX_TRY(dlxi_mpi_check(code, "receiving gradients", error));
        if (!done) break;
        gradients_add(g->queue[g->added].gradient, g->staging + slot * g->slot_floats,
                      g->queue[g->added].count);
        g->added++;
        DLX_TRY(group_post(g, error));
    }
    return DLX_OK;
}

dlx_status dlxi_reduce_start(dlxi_reduce *r, int64_t layer, dlx_error *error) {
    for (int64_t i = 0; i < r->count; i++) {
        const message *m = &r->messages[i];
        group *g = &r->groups[m->group];
        if (m->layer != layer) continue;
        r->started++;
        if (m->owner != g->rank) {
            DLX_TRY(message_send(r, m, m->gradient, m->owner, TAG_GRADIENTS, error));
            continue;
        }
        for (int rank = 0; rank < g->ranks; rank++)
            if (rank != g->rank)
                g->queue[g->queued++] = (receive){m->gradient, (int)m->count, rank};
    }
    return dlxi_reduce_progress(r, error);
}

dlx_status dlxi_reduce_progress(dlxi_reduce *r, dlx_error *error) {
    DLX_TRY(group_progress(&r->groups[GROUP_REPLICAS], error));
    return group_progress(&r->groups[GROUP_ENDS], error);
}

dlx_status dlxi_reduce_finish(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    DLXI_ASSERT(r->started == r->count);
    double begun_s = dlxi_clock_s();
    int idle = 0;
    for (group *g = r->groups; g < r->groups + GROUPS; g++) {
        while (group_is_busy(g)) {
            int64_t added = g->added;
            DLX_TRY(dlxi_reduce_progress(r, error));
            idle = g->added > added ? 0 : idle;
            if (group_is_busy(g)) dlxi_mpi_idle(&idle);
        }
        g->queued = g->posted = g->added = 0;
    }
    r->started = 0;
    *waited_s += dlxi_clock_s() - begun_s;
    return requests_wait(r, waited_s, error);
}

/* ---- parameters from owners ------------------------------------------------------------------ */

static dlx_status message_receive(dlxi_reduce *r, const message *m, dlx_error *error) {
    DLXI_ASSERT(r->pending < r->requests_max);
    return dlxi_mpi_check(MPI_Irecv(m->data, (int)m->count, MPI_FLOAT, m->owner, TAG_PARAMETERS,
                                    r->groups[m->group].holders, &r->requests[r->pending++]),
                          "receiving parameters", error);
}

dlx_status dlxi_reduce_share(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    for (int64_t i = 0; i < r->count; i++) {
        const message *m = &r->messages[i];
        const group *g = &r->groups[m->group];
        if (m->owner != g->rank) {
            DLX_TRY(message_receive(r, m, error));
            continue;
        }
        for (int rank = 0; rank < g->ranks; rank++)
            if (rank != g->rank) DLX_TRY(message_send(r, m, m->data, rank, TAG_PARAMETERS, error));
    }
    return requests_wait(r, waited_s, error);
}
