/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/pipeline.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/flag.h"
#include "base/memory.h"
#include "base/panic.h"
#include "pipeline/neighbours.h"
#include "pipeline/reduce.h"
#include "pipeline/schedule.h"

struct dlxi_pipeline {
    dlxi_model_config config;
    dlxi_pipeline_options options;
    int index, stages; /* of this rank's stage */
    int replica, replicas;
    bool is_first, is_last;
    int64_t micro_batches; /* of a replica, in a step */
    int slots;

    dlxi_stage *stage;
    int *shard_map; /* [tensors of the model] */
    dlxi_parameter *owned;
    int64_t owned_count;
    dlxi_neighbours *neighbours; /* NULL: one stage */
    dlxi_reduce *reduce;         /* NULL: one rank */

    int64_t *positions;         /* [micro_batch]; these three in the end stages only */
    uint32_t *tokens, *targets; /* [micro_batch,T] */

    bool is_last_micro_batch; /* its backward pass completes gradients */
    dlx_status reduce_status; /* of on_gradients */
    dlx_error *reduce_error;
    dlxi_pipeline_times times;
};

/* ---- open and close -------------------------------------------------------------------------- */

static dlx_status options_check(const dlxi_pipeline *p, dlx_error *error) {
    const dlxi_pipeline_options *o = &p->options;
    int64_t N = o->micro_batch * p->config.context, factor = o->micro_batch * p->replicas;
    DLXI_ASSERT(o->partition.stages == p->stages &&
                o->partition.first_layer[p->stages] == p->config.layers);
    DLXI_ASSERT(o->sampler->context == p->config.context);
    if (o->batch < 1 || o->batch % factor != 0)
        DLX_FAIL(error, CONFIG,
                 "train.batch: %" PRId64 " is not a multiple of train.micro_batch (%" PRId64
                 ") times site.replicas (%d); set it to %" PRId64,
                 o->batch, o->micro_batch, p->replicas, (o->batch / factor + 1) * factor);
    if (p->stages > 1 && N > INT_MAX / p->config.width)
        DLX_FAIL(error, CONFIG,
                 "train.micro_batch: %" PRId64 " windows of %" PRId64
                 " tokens times model.width %" PRId64
                 " are more than the %d values of a message between stages; set a smaller one",
                 o->micro_batch, p->config.context, p->config.width, INT_MAX);
    return DLX_OK;
}

static dlx_status stage_open(dlxi_pipeline *p, dlxi_kernels *kernels, dlx_error *error) {
    const dlxi_pipeline_options *o = &p->options;
    dlxi_stage_options stage = {.first_layer = o->partition.first_layer[p->index],
                                .end_layer = o->partition.first_layer[p->index + 1],
                                .has_embedding = p->is_first,
                                .has_head = p->is_last,
                                .batch = o->micro_batch,
                                .length = p->config.context,
                                .slots = p->slots,
                                .training = true,
                                .recompute = o->recompute,
                                .seed = o->seed};
    return dlxi_stage_open(&p->stage, &p->config, &stage, kernels, error);
}

static dlx_status owned_find(dlxi_pipeline *p, dlx_error *error) {
    int64_t count;
    int rank = p->index * p->replicas + p->replica;
    const dlxi_parameter *parameter = dlxi_stage_parameters(p->stage, &count);
    DLX_TRY(DLXI_NEW(&p->shard_map, dlxi_model_tensor_count(&p->config), error));
    DLX_TRY(DLXI_NEW(&p->owned, count, error));
    dlxi_shard_map_fill(p->shard_map, &p->config, &p->options.partition, p->replicas);
    for (int64_t i = 0; i < count; i++)
        if (p->shard_map[parameter[i].tensor.id] == rank) p->owned[p->owned_count++] = parameter[i];
    return DLX_OK;
}

static void on_gradients(void *context, int64_t layer) {
    dlxi_pipeline *p = context;
    if (p->neighbours != NULL) dlxi_neighbours_progress(p->neighbours);
    if (p->reduce_status != DLX_OK) return;
    p->reduce_status = p->is_last_micro_batch ? dlxi_reduce_start(p->reduce, layer, p->reduce_error)
                                              : dlxi_reduce_progress(p->reduce, p->reduce_error);
}

static dlx_status parts_open(dlxi_pipeline *p, dlxi_kernels *kernels, dlx_error *error) {
    const dlxi_pipeline_options *o = &p->options;
    int64_t N = o->micro_batch * p->config.context;
    DLX_TRY(options_check(p, error));
    p->micro_batches = o->batch / o->micro_batch / p->replicas;
    p->slots = dlxi_schedule_slots(p->index, p->stages, p->micro_batches);
    DLX_TRY(stage_open(p, kernels, error));
    DLX_TRY(owned_find(p, error));
    if (p->stages > 1)
        DLX_TRY(
            dlxi_neighbours_open(&p->neighbours, o->grid, N * p->config.width, p->slots, error));
    if (o->grid != NULL) {
        DLX_TRY(dlxi_reduce_open(&p->reduce, o->grid, p->stage, p->shard_map, error));
        dlxi_stage_on_gradients(p->stage, on_gradients, p);
    }
    if (!p->is_first && !p->is_last) return DLX_OK;
    DLX_TRY(DLXI_NEW(&p->positions, o->micro_batch, error));
    DLX_TRY(DLXI_NEW(&p->tokens, N, error));
    return DLXI_NEW(&p->targets, N, error);
}

dlx_status dlxi_pipeline_open(dlxi_pipeline **out, const dlxi_model_config *config,
                              const dlxi_pipeline_options *options, dlxi_kernels *kernels,
                              dlx_error *error) {
    dlxi_pipeline *p = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&p, 1, error));
    *p = (dlxi_pipeline){.config = *config, .options = *options, .stages = 1, .replicas = 1};
    if (options->grid != NULL) {
        p->index = options->grid->stage;
        p->stages = options->grid->stages;
        p->replica = options->grid->replica;
        p->replicas = options->grid->replicas;
    }
    p->is_first = p->index == 0;
    p->is_last = p->index == p->stages - 1;
    dlx_status status = parts_open(p, kernels, error);
    if (status != DLX_OK) {
        dlxi_pipeline_close(&p);
        return status;
    }
    *out = p;
    return DLX_OK;
}

void dlxi_pipeline_close(dlxi_pipeline **pipeline) {
    dlxi_pipeline *p = *pipeline;
    if (p == NULL) return;
    free(p->positions);
    free(p->tokens);
    free(p->targets);
    free(p->owned);
    free(p->shard_map);
    /* memory that MPI may still use after a failure is kept until the process ends */
    bool busy = (p->neighbours != NULL && dlxi_neighbours_is_busy(p->neighbours)) ||
                (p->reduce != NULL && dlxi_reduce_is_busy(p->reduce));
    if (!busy) {
        dlxi_neighbours_close(&p->neighbours);
        dlxi_reduce_close(&p->reduce);
        dlxi_stage_close(&p->stage);
    }
    free(p);
    *pipeline = NULL;
}

dlxi_stage *dlxi_pipeline_stage(dlxi_pipeline *p) {
    return p->stage;
}

dlxi_parameter *dlxi_pipeline_owned(dlxi_pipeline *p, int64_t *count) {
    *count = p->owned_count;
    return p->owned;
}

dlxi_pipeline_times dlxi_pipeline_times_of(const dlxi_pipeline *p) {
    return p->times;
}

/* ---- a step ---------------------------------------------------------------------------------- */

/* Replicas take micro-batches in turn. */
static void windows_read(dlxi_pipeline *p, const uint64_t *positions, int64_t micro_batch) {
    const dlxi_pipeline_options *o = &p->options;
    const uint64_t *from = positions + (micro_batch * p->replicas + p->replica) * o->micro_batch;
    for (int64_t i = 0; i < o->micro_batch; i++) p->positions[i] = (int64_t)from[i];
    dlxi_sampler_batch(p->tokens, p->targets, o->sampler, p->positions, o->micro_batch);
}

static dlx_status interrupt_check(const dlxi_pipeline *p, dlx_error *error) {
    if (p->options.grid != NULL || !dlxi_flag_is_set(p->options.interrupted)) return DLX_OK;
    DLX_FAIL(error, INTERRUPTED, "interrupted");
}

static dlx_status pass_forward(dlxi_pipeline *p, const dlxi_pass *pass, const uint64_t *positions,
                               double *loss_sum, dlx_error *error) {
    const float *input = NULL;
    double loss = 0;
    if (p->is_first || p->is_last) windows_read(p, positions, pass->micro_batch);
    if (!p->is_first) DLX_TRY(dlxi_neighbours_input(&input, p->neighbours, error));
    if (!p->is_last) DLX_TRY(dlxi_neighbours_reserve(p->neighbours, pass->slot, error));
    DLX_TRY(dlxi_stage_forward(p->stage, pass->slot, p->is_first ? p->tokens : NULL, input,
                               p->is_last ? p->targets : NULL, p->is_last ? &loss : NULL, error));
    *loss_sum += loss;
    if (p->is_last) return DLX_OK;
    int64_t floats = p->options.micro_batch * p->config.context * p->config.width;
    return dlxi_neighbours_send_output(p->neighbours, pass->slot,
                                       dlxi_stage_output(p->stage, pass->slot), floats, error);
}

static dlx_status pass_backward(dlxi_pipeline *p, const dlxi_pass *pass, dlx_error *error) {
    const float *d_output = NULL;
    if (!p->is_last) DLX_TRY(dlxi_neighbours_d_output(&d_output, p->neighbours, error));
    DLX_TRY(dlxi_stage_backward(p->stage, pass->slot, d_output, error));
    if (p->is_first) return DLX_OK;
    return dlxi_neighbours_send_d_input(p->neighbours, dlxi_stage_d_input(p->stage), error);
}

static dlx_status passes_run(dlxi_pipeline *p, const uint64_t *positions, double *loss_sum,
                             dlx_error *error) {
    if (p->neighbours != NULL)
        DLX_TRY(dlxi_neighbours_begin(p->neighbours, p->micro_batches, true, error));
    for (int64_t i = 0; i < 2 * p->micro_batches; i++) {
        dlxi_pass pass = dlxi_schedule_pass(p->index, p->stages, p->micro_batches, i);
        p->is_last_micro_batch = pass.micro_batch == p->micro_batches - 1;
        if (pass.backward) {
            DLX_TRY(pass_backward(p, &pass, error));
        } else {
            DLX_TRY(interrupt_check(p, error));
            DLX_TRY(pass_forward(p, &pass, positions, loss_sum, error));
        }
        if (p->reduce_status != DLX_OK) return p->reduce_status;
        if (p->reduce != NULL) DLX_TRY(dlxi_reduce_progress(p->reduce, error));
    }
    if (p->neighbours != NULL) DLX_TRY(dlxi_neighbours_end(p->neighbours, error));
    return p->reduce == NULL ? DLX_OK : dlxi_reduce_finish(p->reduce, &p->times.reduce_s, error);
}

dlx_status dlxi_pipeline_accumulate(dlxi_pipeline *p, const uint64_t *positions, double *loss,
                                    dlx_error *error) {
    double begun_s = dlxi_clock_s(),
           waited_s = p->neighbours == NULL ? 0 : dlxi_neighbours_waited_s(p->neighbours);
    *loss = 0;
    p->reduce_status = DLX_OK;
    p->reduce_error = error;
    dlxi_stage_zero_gradients(p->stage);
    dlx_status status = passes_run(p, positions, loss, error);
    *loss /= (double)(p->micro_batches * p->replicas);
    p->times.step_s += dlxi_clock_s() - begun_s;
    if (p->neighbours != NULL)
        p->times.idle_s += dlxi_neighbours_waited_s(p->neighbours) - waited_s;
    return status;
}

static void idle_count(dlxi_pipeline *p, double since_s) {
    double waited_s = dlxi_clock_s() - since_s;
    p->times.step_s += waited_s;
    p->times.idle_s += waited_s;
}

dlx_status dlxi_pipeline_sum(dlxi_pipeline *p, double *values, int count, dlx_error *error) {
    if (p->options.grid == NULL) return DLX_OK;
    double begun_s = dlxi_clock_s();
    dlx_status status = dlxi_grid_sum(p->options.grid, values, count, error);
    idle_count(p, begun_s);
    return status;
}

dlx_status dlxi_pipeline_barrier(dlxi_pipeline *p, dlx_error *error) {
    if (p->options.grid == NULL) return DLX_OK;
    double begun_s = dlxi_clock_s();
    dlx_status status = dlxi_grid_barrier(p->options.grid, error);
    idle_count(p, begun_s);
    return status;
}

dlx_status dlxi_pipeline_share_parameters(dlxi_pipeline *p, dlx_error *error) {
    if (p->reduce != NULL) DLX_TRY(dlxi_reduce_share(p->reduce, &p->times.share_s, error));
    dlxi_stage_parameters_changed(p->stage);
    return DLX_OK;
}

/* ---- evaluation ------------------------------------------------------------------------------ */

static dlx_status windows_evaluate(dlxi_pipeline *p, dlxi_validation *reader, int64_t windows,
                                   int slot, double sums[2], dlx_error *error) {
    const float *input = NULL;
    double loss = 0;
    int64_t N = windows * p->config.context;
    if (p->is_first || p->is_last) dlxi_validation_next(p->tokens, p->targets, reader, windows);
    if (!p->is_first) DLX_TRY(dlxi_neighbours_input(&input, p->neighbours, error));
    if (!p->is_last) DLX_TRY(dlxi_neighbours_reserve(p->neighbours, slot, error));
    DLX_TRY(dlxi_stage_evaluate(p->stage, slot, p->is_first ? p->tokens : NULL, input,
                                p->is_last ? p->targets : NULL, windows, p->is_last ? &loss : NULL,
                                error));
    if (!p->is_last)
        return dlxi_neighbours_send_output(p->neighbours, slot, dlxi_stage_output(p->stage, slot),
                                           N * p->config.width, error);
    sums[0] += loss;
    sums[1] += (double)N;
    return DLX_OK;
}

static dlx_status validation_evaluate(dlxi_pipeline *p, dlxi_validation *reader, double sums[2],
                                      dlx_error *error) {
    int64_t B = p->options.micro_batch, windows = dlxi_validation_count(reader),
            count = (windows + B - 1) / B;
    if (p->neighbours != NULL) DLX_TRY(dlxi_neighbours_begin(p->neighbours, count, false, error));
    for (int64_t i = 0; i < count; i++) {
        int64_t left = windows - i * B;
        DLX_TRY(interrupt_check(p, error));
        DLX_TRY(windows_evaluate(p, reader, left < B ? left : B, (int)(i % p->slots), sums, error));
    }
    return p->neighbours == NULL ? DLX_OK : dlxi_neighbours_end(p->neighbours, error);
}

dlx_status dlxi_pipeline_evaluate(dlxi_pipeline *p, const dlxi_token_file *validation,
                                  int64_t tokens_max, int64_t index, int64_t stride,
                                  double *loss_sum, double *tokens, dlx_error *error) {
    dlxi_validation reader;
    double sums[2] = {0, 0};
    /* the site has every stride-th window of all, a replica every replicas-th of these */
    DLX_TRY(dlxi_validation_open(&reader, validation, p->config.context, tokens_max,
                                 index + stride * p->replica, stride * p->replicas, error));
    DLX_TRY(validation_evaluate(p, &reader, sums, error));
    if (p->options.grid != NULL) DLX_TRY(dlxi_grid_sum(p->options.grid, sums, 2, error));
    if (!isfinite(sums[0]))
        DLX_FAIL(error, NUMERIC, "the validation loss is not finite; try a lower learning rate");
    *loss_sum = sums[0];
    *tokens = sums[1];
    return DLX_OK;
}
