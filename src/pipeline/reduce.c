#include "pipeline/reduce.h"
#include "base/memory.h"
#include "base/panic.h"

#include <stdlib.h>

/* Neighbouring tensors of one owner and one part, as one message. A tensor that is too long for one has several. */
typedef struct message {
    MPI_Comm holders;
    int root; /* the owner, among the holders */
    bool owned;
    int64_t layer;          /* of the part: see dlxi_gradients_done */
    float *data, *gradient; /* [count]; the padding between tensors travels too */
    int64_t count;
} message;

struct dlxi_reduce {
    message *messages;
    MPI_Request *requests; /* [count] */
    int count, started;    /* messages */
};

enum { FLOATS_MAX = 1 << 28 /* 1 GiB a message, well below MPI's 2³¹ items */ };

/* ---- open and close -------------------------------------------------------------------------------------------- */

static int64_t part_of(const dlxi_tensor *tensor, const dlxi_model_config *config) {
    if (tensor->layer >= 0) return tensor->layer;
    return tensor->in_embedding ? -1 : config->layers;
}

/* False where nobody else holds the tensor. */
static bool describe(message *m, const dlxi_parameter *parameter, const dlxi_model_config *config,
                     const dlxi_place *place, int owner) {
    const dlxi_tensor *tensor = &parameter->tensor;
    int stage = owner / place->replicas, replica = owner % place->replicas;
    bool at_both_ends = tensor->in_embedding && tensor->in_head && place->stages > 1;
    *m = (message){.holders = at_both_ends ? place->ends : place->stage_replicas,
                   .root = at_both_ends && stage > 0 ? place->replicas + replica : replica,
                   .owned = owner == place->rank,
                   .layer = part_of(tensor, config),
                   .data = parameter->data,
                   .gradient = parameter->gradient,
                   .count = parameter->count};
    return at_both_ends || place->replicas > 1;
}

static bool joins(const message *last, const message *next) {
    return last->holders == next->holders && last->root == next->root && last->layer == next->layer &&
           (next->data - last->data) + next->count <= FLOATS_MAX;
}

/* With `messages` NULL it only counts. */
static int lay_out(message *messages, const dlxi_place *place, dlxi_stage *stage, const int *owner) {
    int64_t parameter_count;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &parameter_count);
    const dlxi_model_config *config = dlxi_stage_config(stage);
    message last = {0}, next;
    int count = 0;
    for (int64_t i = 0; i < parameter_count; i++) {
        if (!describe(&next, &parameter[i], config, place, owner[parameter[i].tensor.id])) continue;
        if (count > 0 && joins(&last, &next)) {
            last.count = (next.data - last.data) + next.count;
            if (messages != NULL) messages[count - 1] = last;
            continue;
        }
        for (int64_t left = next.count; left > 0; left -= FLOATS_MAX) {
            last = next;
            last.data += next.count - left;
            last.gradient += next.count - left;
            last.count = left < FLOATS_MAX ? left : FLOATS_MAX;
            if (messages != NULL) messages[count] = last;
            count++;
        }
    }
    return count;
}

dlx_status dlxi_reduce_open(dlxi_reduce **out, const dlxi_place *place, dlxi_stage *stage, const int *owner,
                            dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_reduce *r = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&r, 1, error));
    int count = lay_out(NULL, place, stage, owner);
    DLX_TRY_OUT(DLXI_NEW(&r->messages, count, error));
    DLX_TRY_OUT(DLXI_NEW(&r->requests, count, error));
    lay_out(r->messages, place, stage, owner);
    for (; r->count < count; r->count++) r->requests[r->count] = MPI_REQUEST_NULL;
    *out = r;
    return DLX_OK;
out:
    dlxi_reduce_close(&r);
    return status;
}

void dlxi_reduce_close(dlxi_reduce **reduce) {
    dlxi_reduce *r = *reduce;
    if (r == NULL) return;
    free(r->requests);
    free(r->messages);
    free(r);
    *reduce = NULL;
}

/* ---- gradients to their owners --------------------------------------------------------------------------------- */

dlx_status dlxi_reduce_start(dlxi_reduce *r, int64_t layer, dlx_error *error) {
    for (int i = 0; i < r->count; i++) {
        const message *m = &r->messages[i];
        if (m->layer != layer) continue;
        DLXI_ASSERT(r->requests[i] == MPI_REQUEST_NULL);
        DLX_TRY(dlxi_mpi_check(MPI_Ireduce(m->owned ? MPI_IN_PLACE : m->gradient, m->owned ? m->gradient : NULL,
                                           (int)m->count, MPI_FLOAT, MPI_SUM, m->root, m->holders, &r->requests[i]),
                               "summing gradients up", error));
        r->started++;
    }
    return DLX_OK;
}

void dlxi_reduce_progress(dlxi_reduce *r) {
    int done;
    /* an error comes again when waited for */
    if (r->started > 0) (void)MPI_Testall(r->count, r->requests, &done, MPI_STATUSES_IGNORE);
}

dlx_status dlxi_reduce_finish(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    DLXI_ASSERT(r->started == r->count);
    r->started = 0;
    return dlxi_mpi_wait(r->requests, r->count, waited_s, error);
}

bool dlxi_reduce_is_busy(const dlxi_reduce *r) {
    for (int i = 0; i < r->count; i++)
        if (r->requests[i] != MPI_REQUEST_NULL) return true;
    return false;
}

/* ---- parameters from their owners ------------------------------------------------------------------------------ */

dlx_status dlxi_reduce_share(dlxi_reduce *r, double *waited_s, dlx_error *error) {
    for (int i = 0; i < r->count; i++) {
        const message *m = &r->messages[i];
        DLX_TRY(dlxi_mpi_check(MPI_Ibcast(m->data, (int)m->count, MPI_FLOAT, m->root, m->holders, &r->requests[i]),
                               "sharing parameters", error));
    }
    return dlxi_mpi_wait(r->requests, r->count, waited_s, error);
}
