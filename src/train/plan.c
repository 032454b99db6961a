/* SPDX-License-Identifier: Apache-2.0 */
/* What a run will cost: tensors and memory from the config's model and shard map, the time of an
 * exchange and of rounds from outer/cost.h. */
#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "outer/adapt.h"
#include "outer/cost.h"
#include "outer/sync_options.h"
#include "train/config.h"
#include "train/tools.h"

typedef struct plan {
    const dlxi_config *config;
    const dlx_plan_options *options;
    dlxi_model_config model;
    double step_s;
    uint64_t steps, step_tokens; /* of a site; of all sites, per step */
} plan;

/* ---- an exchange ----------------------------------------------------------------------------- */

static int columns_of(const plan *p, const dlxi_tensor *t, int rank) {
    bool may = p->config->low_rank_tables || t->layer >= 0;
    return may && rank > 0 && rank <= dlxi_adapt_rank_limit(t->rows, t->cols) ? rank : 0;
}

/* *trips ← 2 if some tensor is low rank: its second factor follows the first. */
static double payload_of(const plan *p, int rank, int bits, int *trips) {
    double bytes = 0;
    dlxi_quantiser q = {bits, p->config->sync.group};
    *trips = 1;
    for (int64_t id = 0; id < dlxi_model_tensor_count(&p->model); id++) {
        dlxi_tensor t = dlxi_model_tensor(&p->model, id);
        int columns = columns_of(p, &t, rank);
        if (columns > 0) *trips = 2;
        bytes += (double)dlxi_cost_tensor_bytes(t.rows, t.cols, columns, q);
    }
    return bytes;
}

static double exchange_s(const plan *p, int rank, int bits, double *payload) {
    int trips;
    dlxi_cost_link link = {p->options->link_bytes_per_s, p->options->delay_s};
    *payload = payload_of(p, rank, bits, &trips);
    return dlxi_cost_exchange_s(*payload, trips, (int)p->options->sites, &link);
}

typedef struct at_bits {
    const plan *p;
    int bits;
} at_bits;

static double exchange_steps(void *context, int rank) {
    const at_bits *a = context;
    double payload;
    return exchange_s(a->p, rank, a->bits, &payload) / a->p->step_s;
}

/* ---- a method -------------------------------------------------------------------------------- */

static double pace(void *context, double share) {
    const plan *p = context;
    const dlxi_config *c = p->config;
    const dlxi_schedule schedule = dlxi_config_schedule(c, (uint64_t)c->train.tokens);
    int64_t tokens = (int64_t)(share * c->train.tokens);
    if (c->pace != DLXI_PACE_RATE || tokens < schedule.warmup_tokens) return 1;
    double rate = dlxi_schedule_rate(&schedule, tokens + (int64_t)p->step_tokens);
    return fmin(DLXI_PACE_MAX, (double)schedule.peak / rate);
}

static double no_pace(void *context, double share) {
    (void)context;
    (void)share;
    return 1;
}

static dlx_plan_method method_plan(const plan *p, const char *name, const dlx_sync_config *sync) {
    dlx_sync_config s = dlxi_sync_options_resolve(sync);
    const dlxi_method *method = dlxi_method_of(s.overlap);
    double payload, exchange = exchange_s(p, s.factor_rank, s.bits, &payload);
    dlxi_cost_run run = {.step_s = p->step_s,
                         .exchange_s = exchange,
                         .steps = p->steps,
                         .pace = method->averages_gradients ? no_pace : pace,
                         .pace_context = (void *)(uintptr_t)p};
    dlxi_cost_result cost = dlxi_cost_of(&run, (dlxi_round){.when = method->when,
                                                            .inner_steps = s.inner_steps,
                                                            .inner_steps_max = s.inner_steps_max,
                                                            .exchange_steps = s.exchange_steps,
                                                            .number = 1});
    double tokens = (double)p->steps * (double)p->step_tokens;
    double sent = dlxi_cost_sent_bytes(payload, (int)p->options->sites) * p->options->sites;
    return (dlx_plan_method){.name = name,
                             .rank = (uint32_t)s.factor_rank,
                             .inner_steps = s.inner_steps,
                             .exchange_s = exchange,
                             .tokens_per_s = tokens / cost.seconds,
                             .efficiency = (double)p->steps * p->step_s / cost.seconds,
                             .waited_share = cost.waited_s / cost.seconds,
                             .bytes_per_token = sent * (double)cost.rounds / tokens,
                             .rounds = cost.rounds,
                             .inner_steps_max = cost.steps_longest,
                             .hidden = cost.waited_s <= exchange};
}

static dlx_sync_config plain(const dlx_sync_config *from, dlx_overlap overlap, int bits) {
    dlx_sync_config s = *from;
    s.overlap = overlap;
    s.factor_rank = s.factor_rank_min = s.factor_rank_max = 0;
    s.bits = bits;
    return s;
}

static dlx_sync_config advised(const plan *p) {
    dlx_sync_config s = p->config->sync, r = dlxi_sync_options_resolve(&s);
    at_bits at = {p, r.bits};
    int rank = r.factor_rank_max;
    double needed = dlxi_adapt_choose(&rank, r.factor_rank_min, r.inner_steps, exchange_steps, &at);
    s.factor_rank = rank;
    s.factor_rank_min = s.factor_rank_max = 0;
    if (needed > r.inner_steps) s.inner_steps = (uint32_t)fmin(needed, DLXI_MAX_inner_steps);
    s.inner_steps_max = 0;
    return s;
}

static void methods_plan(dlx_plan_method *out, const plan *p) {
    const dlx_sync_config *own = &p->config->sync;
    dlx_sync_config delayed = *own, advice = advised(p),
                    allreduce = plain(own, DLX_OVERLAP_ALLREDUCE, 32),
                    allreduce16 = plain(own, DLX_OVERLAP_ALLREDUCE, 16),
                    none16 = plain(own, DLX_OVERLAP_NONE, 16),
                    delayed32 = plain(own, DLX_OVERLAP_DELAYED, 32);
    delayed.overlap = DLX_OVERLAP_DELAYED;
    delayed.exchange_steps = 0;
    *out++ = method_plan(p, "allreduce, f32", &allreduce);
    *out++ = method_plan(p, "allreduce, f16", &allreduce16);
    *out++ = method_plan(p, "none, f16", &none16);
    *out++ = method_plan(p, "delayed, f32", &delayed32);
    *out++ = method_plan(p, "delayed, compressed", &delayed);
    *out++ = method_plan(p, "this config", own);
    *out++ = method_plan(p, "advised", &advice);
}

/* ---- a rank's memory ------------------------------------------------------------------------- */

typedef struct holding {
    uint64_t held, owned, moments; /* values */
    double payload;
} holding;

static void tensor_add(holding *h, const plan *p, const dlxi_tensor *t, int rank) {
    const dlxi_config *c = p->config;
    uint64_t values = (uint64_t)(t->rows * t->cols);
    bool muon = c->train.optimizer == DLXI_OPTIMIZER_MUON && t->hidden_matrix;
    h->owned += values;
    h->moments += muon ? values : 2 * values;
    h->payload += (double)dlxi_cost_tensor_bytes(t->rows, t->cols, columns_of(p, t, rank),
                                                 (dlxi_quantiser){c->sync.bits, c->sync.group});
}

/* Values are f32: parameters and gradients of what a rank holds; of what it owns the optimiser's
 * moments, θ, v, e and, where the method has it, start; codes of one's own, the others' and the
 * result. */
static dlx_status memory_plan(dlx_plan_result *result, const plan *p, dlx_error *error) {
    const dlxi_config *c = p->config;
    const dlx_sync_config sync = dlxi_sync_options_resolve(&c->sync);
    const dlxi_method *method = dlxi_method_of(sync.overlap);
    int64_t count = dlxi_model_tensor_count(&p->model);
    int ranks = (int)(c->site.stages * c->site.replicas), *owners = NULL;
    holding *holdings = NULL;
    dlxi_partition partition;
    dlx_status status = DLX_OK;
    DLX_TRY_OUT(dlxi_config_partition(&partition, c, error));
    DLX_TRY_OUT(DLXI_NEW(&owners, count, error));
    DLX_TRY_OUT(DLXI_NEW(&holdings, ranks, error));
    dlxi_shard_map_fill(owners, &p->model, &partition, (int)c->site.replicas);
    for (int64_t id = 0; id < count; id++) {
        dlxi_tensor t = dlxi_model_tensor(&p->model, id);
        int stage = dlxi_partition_stage(&partition, &t);
        result->parameters += (uint64_t)(t.rows * t.cols);
        for (int64_t i = 0; i < c->site.replicas; i++) {
            holdings[stage * c->site.replicas + i].held += (uint64_t)(t.rows * t.cols);
            bool twice = t.in_embedding && t.in_head && c->site.stages > 1; /* a tied table */
            int64_t last = (c->site.stages - 1) * c->site.replicas + i;
            if (twice) holdings[last].held += (uint64_t)(t.rows * t.cols);
        }
        tensor_add(&holdings[owners[id]], p, &t, sync.factor_rank);
    }
    uint64_t most = 0, outer = method->averages_gradients ? 2 : method->keeps_start ? 4 : 3;
    for (int i = 0; i < ranks; i++) {
        const holding *h = &holdings[i];
        uint64_t bytes[] = {4 * h->held, 4 * h->held, 4 * h->moments, 4 * outer * h->owned,
                            (uint64_t)(3 * h->payload)};
        uint64_t sum = bytes[0] + bytes[1] + bytes[2] + bytes[3] + bytes[4];
        if (sum <= most) continue;
        most = sum;
        result->parameter_bytes = bytes[0], result->gradient_bytes = bytes[1];
        result->optimizer_bytes = bytes[2], result->outer_bytes = bytes[3];
        result->exchange_bytes = bytes[4];
    }
out:
    free(owners);
    free(holdings);
    return status;
}

/* ---- all of it ------------------------------------------------------------------------------- */

dlx_status dlxi_plan(dlx_plan_result *result, const dlxi_config *config,
                     const dlx_plan_options *options, dlx_error *error) {
    plan p = {.config = config,
              .options = options,
              .model = dlxi_config_model(config),
              .step_s = options->step_s};
    *result = (dlx_plan_result){0};
    DLX_TRY(dlxi_config_check(config, error));
    double site_tokens = (double)(config->train.batch * config->model.context);
    double parts = (double)config->train.batch /
                   (double)(dlxi_config_micro_batch(config) * config->site.replicas);
    double stages = (double)config->site.stages;
    p.step_tokens = (uint64_t)site_tokens * options->sites;
    p.steps = (uint64_t)ceil(config->train.tokens / (double)p.step_tokens);
    result->pipeline_idle_share = (stages - 1) / (parts + stages - 1);
    if (p.step_s == 0)
        p.step_s = 6 * (double)dlxi_model_parameter_count(&p.model) * site_tokens /
                   (options->flops_per_s * stages * (double)config->site.replicas) /
                   (1 - result->pipeline_idle_share);
    result->step_s = p.step_s;
    result->tokens_per_s = (double)p.step_tokens / p.step_s;
    DLX_TRY(memory_plan(result, &p, error));
    methods_plan(result->methods, &p);
    return DLX_OK;
}
