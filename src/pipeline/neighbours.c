/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/neighbours.h"
#include "base/memory.h"
#include "base/panic.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { TAG_FORWARD = 1, TAG_BACKWARD };

/* Receives of one direction: the awaited one and the next. */
typedef struct inbox {
    float *buffer[2]; /* NULL: no neighbour in this direction */
    MPI_Request request[2];
    int from, tag;
    int64_t taken, count; /* micro-batches in this step */
} inbox;

struct dlxi_neighbours {
    MPI_Comm pipe;
    int stage, slots;
    int64_t floats;
    float *memory;
    inbox forward, backward;
    float *d_input[2];
    MPI_Request d_input_sent[2];
    int64_t d_inputs;         /* sent in this step */
    MPI_Request *output_sent; /* [slots] */
    double waited_s;
};

/* ---- open and close -------------------------------------------------------------------------- */

static void inbox_open(inbox *in, float **memory, int64_t floats, int from, int tag) {
    in->from = from;
    in->tag = tag;
    for (int i = 0; i < 2; i++, *memory += floats) in->buffer[i] = *memory;
}

dlx_status dlxi_neighbours_open(dlxi_neighbours **out, const dlxi_grid *grid, int64_t floats,
                                int slots, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_neighbours *x = NULL;
    *out = NULL;
    DLXI_ASSERT(grid->stages > 1 && floats >= 1 && floats <= INT_MAX && slots >= 1);
    DLX_TRY(DLXI_NEW(&x, 1, error));
    bool first = grid->stage == 0, last = grid->stage == grid->stages - 1;
    *x = (dlxi_neighbours){.pipe = grid->pipe, .stage = grid->stage, .floats = floats};
    for (int i = 0; i < 2; i++)
        x->forward.request[i] = x->backward.request[i] = x->d_input_sent[i] = MPI_REQUEST_NULL;
    DLX_TRY_OUT(DLXI_NEW(&x->output_sent, slots, error));
    for (; x->slots < slots; x->slots++) x->output_sent[x->slots] = MPI_REQUEST_NULL;
    DLX_TRY_OUT(DLXI_NEW(&x->memory, floats * 2 * ((first ? 0 : 2) + (last ? 0 : 1)), error));
    float *memory = x->memory;
    if (!first) {
        inbox_open(&x->forward, &memory, floats, grid->stage - 1, TAG_FORWARD);
        for (int i = 0; i < 2; i++, memory += floats) x->d_input[i] = memory;
    }
    if (!last) inbox_open(&x->backward, &memory, floats, grid->stage + 1, TAG_BACKWARD);
    *out = x;
    return DLX_OK;
out:
    dlxi_neighbours_close(&x);
    return status;
}

void dlxi_neighbours_close(dlxi_neighbours **neighbours) {
    dlxi_neighbours *x = *neighbours;
    if (x == NULL) return;
    free(x->output_sent);
    free(x->memory);
    free(x);
    *neighbours = NULL;
}

bool dlxi_neighbours_is_busy(const dlxi_neighbours *x) {
    bool busy = false;
    for (int i = 0; i < 2; i++)
        busy = busy || x->forward.request[i] != MPI_REQUEST_NULL ||
               x->backward.request[i] != MPI_REQUEST_NULL || x->d_input_sent[i] != MPI_REQUEST_NULL;
    for (int slot = 0; slot < x->slots; slot++)
        busy = busy || x->output_sent[slot] != MPI_REQUEST_NULL;
    return busy;
}

/* ---- a step ---------------------------------------------------------------------------------- */

static dlx_status inbox_post(dlxi_neighbours *x, inbox *in, int64_t micro_batch, dlx_error *error) {
    if (micro_batch >= in->count) return DLX_OK;
    return dlxi_mpi_check(MPI_Irecv(in->buffer[micro_batch % 2], (int)x->floats, MPI_FLOAT,
                                    in->from, in->tag, x->pipe, &in->request[micro_batch % 2]),
                          "receiving from a neighbouring stage", error);
}

static dlx_status inbox_begin(dlxi_neighbours *x, inbox *in, int64_t count, dlx_error *error) {
    in->taken = 0;
    in->count = in->buffer[0] == NULL ? 0 : count;
    return inbox_post(x, in, 0, error);
}

dlx_status dlxi_neighbours_begin(dlxi_neighbours *x, int64_t count, bool backward,
                                 dlx_error *error) {
    x->d_inputs = 0;
    DLX_TRY(inbox_begin(x, &x->forward, count, error));
    return inbox_begin(x, &x->backward, backward ? count : 0, error);
}

dlx_status dlxi_neighbours_end(dlxi_neighbours *x, dlx_error *error) {
    DLXI_ASSERT(x->forward.taken == x->forward.count && x->backward.taken == x->backward.count);
    DLX_TRY(dlxi_mpi_wait(x->output_sent, x->slots, &x->waited_s, error));
    return dlxi_mpi_wait(x->d_input_sent, 2, &x->waited_s, error);
}

/* The previous micro-batch's buffer is free now: the next one is received into it. */
static dlx_status inbox_take(const float **out, dlxi_neighbours *x, inbox *in, dlx_error *error) {
    int64_t micro_batch = in->taken++;
    DLXI_ASSERT(micro_batch < in->count);
    DLX_TRY(inbox_post(x, in, micro_batch + 1, error));
    DLX_TRY(dlxi_mpi_wait(&in->request[micro_batch % 2], 1, &x->waited_s, error));
    *out = in->buffer[micro_batch % 2];
    return DLX_OK;
}

dlx_status dlxi_neighbours_input(const float **input, dlxi_neighbours *x, dlx_error *error) {
    return inbox_take(input, x, &x->forward, error);
}

dlx_status dlxi_neighbours_d_output(const float **d_output, dlxi_neighbours *x, dlx_error *error) {
    return inbox_take(d_output, x, &x->backward, error);
}

static dlx_status floats_send(MPI_Request *request, dlxi_neighbours *x, const float *data,
                              int64_t floats, int to, int tag, dlx_error *error) {
    return dlxi_mpi_check(MPI_Isend(data, (int)floats, MPI_FLOAT, to, tag, x->pipe, request),
                          "sending to a neighbouring stage", error);
}

dlx_status dlxi_neighbours_reserve(dlxi_neighbours *x, int slot, dlx_error *error) {
    return dlxi_mpi_wait(&x->output_sent[slot], 1, &x->waited_s, error);
}

dlx_status dlxi_neighbours_send_output(dlxi_neighbours *x, int slot, const float *output,
                                       int64_t floats, dlx_error *error) {
    DLXI_ASSERT(floats <= x->floats && x->output_sent[slot] == MPI_REQUEST_NULL);
    return floats_send(&x->output_sent[slot], x, output, floats, x->stage + 1, TAG_FORWARD, error);
}

dlx_status dlxi_neighbours_send_d_input(dlxi_neighbours *x, const float *d_input,
                                        dlx_error *error) {
    int64_t i = x->d_inputs++ % 2;
    DLX_TRY(dlxi_mpi_wait(&x->d_input_sent[i], 1, &x->waited_s, error));
    memcpy(x->d_input[i], d_input, (size_t)x->floats * sizeof *d_input);
    return floats_send(&x->d_input_sent[i], x, x->d_input[i], x->floats, x->stage - 1, TAG_BACKWARD,
                       error);
}

void dlxi_neighbours_progress(dlxi_neighbours *x) {
    int done;
    /* an error is reported again by the wait */
    (void)MPI_Testall(x->slots, x->output_sent, &done, MPI_STATUSES_IGNORE);
}

double dlxi_neighbours_waited_s(const dlxi_neighbours *x) {
    return x->waited_s;
}
