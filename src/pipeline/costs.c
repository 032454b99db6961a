/* What the parts of a model cost: predicted from operations, and measured. */
#include "pipeline/cut.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"

#include <stdlib.h>

dlxi_costs dlxi_costs_with_recompute(dlxi_costs costs) {
    costs.block *= 4.0 / 3.0; /* a backward pass is two forwards */
    return costs;
}

/* ---- predicted ------------------------------------------------------------------------------------------------- */

dlxi_costs dlxi_costs_estimate(const dlxi_model_config *config, int64_t T) {
    (void)T;
    return (dlxi_costs){.block = 6.0 * (double)config->width, .head = 1};
}

/* ---- measured -------------------------------------------------------------------------------------------------- */

enum { RUNS_WARM_UP = 2, RUNS = 9 };

/* One part of a model by itself, with what passes through it. */
typedef struct part {
    dlxi_stage *stage;
    uint32_t *tokens, *targets; /* [B,T] */
    float *input;               /* [B,T,C]; the gradient from above too */
} part;

static dlx_status open_part(part *p, const dlxi_model_config *config, const dlxi_stage_options *options,
                            dlxi_kernels *kernels, dlx_error *error) {
    int64_t N = options->batch * options->length;
    DLX_TRY(dlxi_stage_open(&p->stage, config, options, kernels, error));
    DLX_TRY(DLXI_NEW(&p->tokens, N, error));
    DLX_TRY(DLXI_NEW(&p->targets, N, error));
    DLX_TRY(DLXI_NEW(&p->input, N * config->width, error));
    for (int64_t n = 0; n < N; n++) {
        p->tokens[n] = (uint32_t)(dlxi_rng_u64(1, 0, (uint64_t)n) % (uint64_t)config->vocabulary);
        p->targets[n] = (uint32_t)(dlxi_rng_u64(1, 1, (uint64_t)n) % (uint64_t)config->vocabulary);
    }
    for (int64_t i = 0; i < N * config->width; i++) p->input[i] = dlxi_rng_normal(1, 2, (uint64_t)i);
    return DLX_OK;
}

static void close_part(part *p) {
    dlxi_stage_close(&p->stage);
    free(p->tokens);
    free(p->targets);
    free(p->input);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static dlx_status run_part(double *seconds, part *p, dlx_error *error) {
    const dlxi_stage_options *o = dlxi_stage_opened_with(p->stage);
    double loss, begun_s = dlxi_clock_s();
    DLX_TRY(dlxi_stage_forward(p->stage, 0, o->has_embedding ? p->tokens : NULL, o->has_embedding ? NULL : p->input,
                               o->has_head ? p->targets : NULL, o->has_head ? &loss : NULL, error));
    DLX_TRY(dlxi_stage_backward(p->stage, 0, o->has_head ? NULL : p->input, error));
    *seconds = dlxi_clock_s() - begun_s;
    return DLX_OK;
}

static dlx_status time_part(double *median_s, const dlxi_model_config *config, const dlxi_stage_options *options,
                            dlxi_kernels *kernels, dlx_error *error) {
    dlx_status status = DLX_OK;
    double seconds[RUNS] = {0}, unused;
    part p = {0};
    DLX_TRY_OUT(open_part(&p, config, options, kernels, error));
    for (int i = 0; i < RUNS_WARM_UP; i++) DLX_TRY_OUT(run_part(&unused, &p, error));
    for (int i = 0; i < RUNS; i++) DLX_TRY_OUT(run_part(&seconds[i], &p, error));
    qsort(seconds, RUNS, sizeof *seconds, by_value);
    *median_s = seconds[RUNS / 2];
out:
    close_part(&p);
    return status;
}

dlx_status dlxi_costs_measure(dlxi_costs *out, const dlxi_model_config *config, int64_t batch, int64_t T,
                              dlxi_kernels *kernels, dlx_error *error) {
    dlxi_stage_options options = {.batch = batch, .length = T, .slots = 1, .training = true, .seed = 1};
    dlxi_stage_options block = options, embedding = options, head = options;
    DLX_TRY(dlxi_model_config_validate(config, error));
    block.end_layer = 1;
    embedding.has_embedding = true;
    head.first_layer = head.end_layer = config->layers;
    head.has_head = true;
    DLX_TRY(time_part(&out->block, config, &block, kernels, error));
    DLX_TRY(time_part(&out->embedding, config, &embedding, kernels, error));
    return time_part(&out->head, config, &head, kernels, error);
}
