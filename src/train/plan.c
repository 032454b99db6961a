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

/* A longer run is walked through as if it had so many, and its rounds are counted up. */
enum { STEPS_MAX = 1000000 };

typedef struct plan {
    const dlxi_config *config;
    const dlx_plan_options *options;
    dlxi_model_config model;
    double step_s;
    uint64_t steps, step_tokens; /* of a site; of all sites, per step */
    double longer;               /* the run's steps over these */
} plan;

/* ---- an exchange ----------------------------------------------------------------------------- */

/* Columns of a tensor's factors at this rank, if the run began with the rank `first`. */
static int columns_of(const plan *p, const dlxi_tensor *t, int first, int rank) {
    const int limit = dlxi_adapt_rank_limit(t->rows, t->cols);
    const bool may = p->config->low_rank_tables || !(t->in_embedding || t->in_head);
    return may && first > 0 && first <= limit ? (rank < limit ? rank : limit) : 0;
}

static dlxi_cost_payload payload_of(const plan *p, const dlx_sync_config *sync, int rank) {
    const dlxi_quantiser q = {sync->bits, sync->group};
    const bool spectrum = sync->adaptation == DLX_ADAPTATION_PAPER;
    dlxi_cost_payload payload = {0};
    for (int64_t id = 0; id < dlxi_model_tensor_count(&p->model); id++) {
        dlxi_tensor t = dlxi_model_tensor(&p->model, id);
        int columns =
            columns_of(p, &t, sync->factor_rank, rank + (spectrum ? DLXI_ADAPT_PROBES : 0));
        dlxi_cost_add(&payload, t.rows, t.cols, columns, q, spectrum);
    }
    dlxi_cost_divide(&payload, sync->fragments);
    return payload;
}

static dlxi_cost_exchange exchange_of(const plan *p, const dlxi_cost_payload *payload) {
    const dlx_plan_options *o = p->options;
    const dlxi_cost_link link = {o->link_bytes_per_s, o->delay_s, o->host_bytes_per_s};
    const int ranks = (int)(p->config->site.stages * p->config->site.replicas);
    return dlxi_cost_exchange_of(payload, (int)o->sites, ranks, &link);
}

/* ---- a method -------------------------------------------------------------------------------- */

/* Under `paper` the model's spectrum decides. In the runs of docs/benchmarks.md the rank after n
 * rounds was about this share of the first one, down to rank_min. */
static double paper_share(double rounds) {
    return 0.85 / (1 + rounds / 30);
}

/* A method's run: rank and H as its adaptation changes them. */
typedef struct method_run {
    const plan *p;
    dlx_sync_config sync; /* resolved */
    const dlxi_method *method;
    dlxi_adapt adapt;
    dlxi_adapt_tensor tensor;   /* stands for all: the rank that they have within their limits */
    dlxi_adapt_member measured; /* the submitted round's step, the last committed one's exchange */
    dlxi_cost_payload payload;  /* at payload_rank */
    int payload_rank;
    double rounds;                                    /* committed */
    double bytes;                                     /* of one member's contributions so far */
    uint64_t bytes_at_rank[DLXI_MAX_factor_rank + 1]; /* of one contribution; 0: not known yet */
} method_run;

static double pace_of(const method_run *m, double share) {
    const plan *p = m->p;
    const dlxi_config *c = p->config;
    const dlxi_schedule schedule = dlxi_config_schedule(c, (uint64_t)c->train.tokens);
    int64_t tokens = (int64_t)(share * c->train.tokens);
    if (m->method->averages_gradients || c->pace != DLXI_PACE_RATE ||
        tokens < schedule.warmup_tokens)
        return 1;
    double rate = dlxi_schedule_rate(&schedule, tokens + (int64_t)p->step_tokens);
    if (rate <= 0) return 1;
    return fmin(DLXI_PACE_MAX, (double)schedule.peak / rate);
}

static const dlxi_cost_payload *payload_now(method_run *m) {
    if (m->payload_rank != m->tensor.factor_rank) {
        m->payload_rank = m->tensor.factor_rank;
        m->payload = payload_of(m->p, &m->sync, m->payload_rank);
    }
    return &m->payload;
}

static uint64_t bytes_at(void *context, int rank) {
    method_run *m = context;
    uint64_t *bytes = &m->bytes_at_rank[rank];
    if (*bytes == 0) *bytes = (uint64_t)payload_of(m->p, &m->sync, rank).bytes;
    return *bytes;
}

static dlxi_cost_round on_submit(void *context, double share, double step_s) {
    method_run *m = context;
    const double pace = pace_of(m, share);
    const dlxi_cost_payload *payload = payload_now(m);
    m->bytes += payload->bytes;
    m->measured.step_ns = (uint64_t)(step_s * 1e9);
    return (dlxi_cost_round){.exchange = exchange_of(m->p, payload),
                             .inner_steps = pace * m->adapt.inner_steps,
                             .inner_steps_max = pace * m->sync.inner_steps_max};
}

/* As a site does: it measures from a round's beginning, which the submission and the coordinator's
 * answer precede, and decides by the exchange before. */
static void on_commit(void *context, double exchange_s) {
    method_run *m = context;
    dlxi_adapt *adapt = &m->adapt;
    const uint64_t bytes = (uint64_t)payload_now(m)->bytes;
    if (adapt->kind == DLX_ADAPTATION_LINK)
        dlxi_adapt_link(adapt, &m->tensor, 1, &m->measured, 1, bytes_at, m);
    if (adapt->kind == DLX_ADAPTATION_PAPER) {
        const int rank = (int)(paper_share(m->rounds++) * m->sync.factor_rank + 0.5);
        m->tensor.factor_rank = rank > adapt->factor_rank_min ? rank : adapt->factor_rank_min;
        dlxi_adapt_paper(adapt, &m->tensor, m->payload.factored > 0);
    }
    m->measured.exchange_ns = (uint64_t)(fmax(exchange_s - 2 * m->p->options->delay_s, 1e-3) * 1e9);
    m->measured.exchange_bytes = bytes;
}

static method_run method_run_of(const plan *p, const dlx_sync_config *sync) {
    method_run m = {.p = p, .sync = dlxi_sync_options_resolve(sync), .payload_rank = -1};
    const dlx_sync_config *s = &m.sync;
    m.method = dlxi_method_of(s->overlap);
    m.adapt = (dlxi_adapt){.kind = s->adaptation,
                           .factor_rank_min = s->factor_rank_min,
                           .factor_rank_max = s->factor_rank_max,
                           .inner_steps_first = s->inner_steps,
                           .inner_steps_min = s->inner_steps_min,
                           .inner_steps = s->inner_steps};
    m.tensor = (dlxi_adapt_tensor){.parameters = 1,
                                   .factor_rank_first = s->factor_rank,
                                   .factor_rank_limit = s->factor_rank_max,
                                   .factor_rank = s->factor_rank};
    return m;
}

static dlx_plan_method method_plan(const plan *p, const char *name, const dlx_sync_config *sync) {
    method_run m = method_run_of(p, sync);
    const dlx_sync_config *s = &m.sync;
    dlxi_cost_run run = {.step_s = p->step_s,
                         .shares_core = p->options->shares_core != 0,
                         .steps = p->steps,
                         .seconds = p->options->seconds,
                         .submit = on_submit,
                         .commit = on_commit,
                         .context = &m};
    bool link = s->adaptation == DLX_ADAPTATION_LINK;
    dlxi_cost_result cost = dlxi_cost_of(&run, (dlxi_round){.when = m.method->when,
                                                            .inner_steps = s->inner_steps,
                                                            .inner_steps_max = s->inner_steps_max,
                                                            .exchange_steps = s->exchange_steps,
                                                            .number = 1});
    if (!link) m.tensor.factor_rank = s->factor_rank;
    const dlxi_cost_exchange exchange = exchange_of(p, payload_now(&m));
    const double tokens = (double)cost.steps * (double)p->step_tokens;
    const bool beside = run.shares_core && m.method->when != DLXI_WHEN_WAITED_FOR;
    const int sites = (int)p->options->sites;
    return (dlx_plan_method){.name = name,
                             .overlap = m.method->name,
                             .exchange_steps = s->exchange_steps,
                             .rank = (uint32_t)m.tensor.factor_rank,
                             .inner_steps = link ? m.adapt.inner_steps : s->inner_steps,
                             .exchange_s = dlxi_cost_exchange_s(&exchange, beside),
                             .tokens_per_s = tokens / cost.seconds,
                             .efficiency = (double)cost.steps * p->step_s / cost.seconds,
                             .waited_share = cost.waited_s / cost.seconds,
                             .bytes_per_token =
                                 dlxi_cost_sent_bytes(m.bytes, sites) * sites / tokens,
                             .rounds = (uint64_t)(p->longer * (double)cost.rounds),
                             .inner_steps_max = cost.steps_longest,
                             .hidden = cost.waits == 0};
}

static dlx_sync_config plain(const dlx_sync_config *from, dlx_overlap overlap, int bits) {
    dlx_sync_config s = *from;
    s.overlap = overlap;
    s.factor_rank = s.factor_rank_min = s.factor_rank_max = 0;
    s.bits = bits;
    s.fragments = 1;
    return s;
}

/* Of the time of the core that trains, what an advised exchange may take. */
static const double CORE_SHARE_MAX = 0.05;

typedef struct candidate {
    const plan *p;
    dlx_sync_config sync;
} candidate;

/* Steps that hide an exchange of this rank, and, on a core that trains, keep it to its share;
 * dlxi_adapt_choose adds a tenth. */
static double steps_to_hide(void *context, int rank) {
    candidate *c = context;
    const double step_s = c->p->step_s;
    const bool shares_core = c->p->options->shares_core != 0;
    c->sync.factor_rank = rank;
    const dlxi_cost_payload payload = payload_of(c->p, &c->sync, rank);
    const dlxi_cost_exchange e = exchange_of(c->p, &payload);
    const double steps = dlxi_cost_exchange_s(&e, shares_core) / step_s;
    if (!shares_core || c->sync.exchange_steps > 0) return steps;
    return fmax(steps, 0.9 * (e.codec_s + e.wire_s + e.submission_s) / (CORE_SHARE_MAX * step_s));
}

/* Where the overlap waits for each exchange: carry. Rank and H fit the link, so they stay. */
static dlx_sync_config advised(const plan *p) {
    dlx_sync_config s = p->config->sync;
    if (dlxi_method_of(s.overlap)->when == DLXI_WHEN_WAITED_FOR) s.overlap = DLX_OVERLAP_CARRY;
    s.adaptation = DLX_ADAPTATION_OFF;
    candidate at = {p, dlxi_sync_options_resolve(&s)};
    const dlx_sync_config r = at.sync;
    int rank = r.factor_rank_max;
    double limit = r.exchange_steps > 0 ? fmin(r.exchange_steps, r.inner_steps) : r.inner_steps;
    double needed = dlxi_adapt_choose(&rank, r.factor_rank_min, limit, steps_to_hide, &at);
    s.factor_rank = rank;
    s.factor_rank_min = s.factor_rank_max = 0;
    if (needed <= limit) return s;
    needed = fmin(needed, DLXI_MAX_inner_steps);
    if (s.exchange_steps > 0) s.exchange_steps = (uint32_t)needed;
    if (needed > s.inner_steps) s.inner_steps = (uint32_t)needed;
    if (s.inner_steps_max < s.inner_steps) s.inner_steps_max = 0;
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
    delayed.fragments = 1;
    *out++ = method_plan(p, "allreduce, f32", &allreduce);
    *out++ = method_plan(p, "allreduce, f16", &allreduce16);
    *out++ = method_plan(p, "none, f16", &none16);
    *out++ = method_plan(p, "delayed, f32", &delayed32);
    *out++ = method_plan(p, "delayed", &delayed);
    *out++ = method_plan(p, "this config", own);
    *out++ = method_plan(p, "advised", &advice);
}

/* ---- a rank's memory ------------------------------------------------------------------------- */

typedef struct holding {
    uint64_t held, owned, moments, bases; /* values */
    uint64_t exchange;                    /* bytes */
} holding;

/* Of an exchange: the flat vector and what was said of it, in f32; codes of one's own, the others'
 * and the result; P̂, Q̂ and one's own Q. */
static uint64_t exchange_bytes(const dlxi_tensor *t, int columns, dlxi_quantiser q) {
    const dlxi_quantiser f32 = {32, q.group};
    uint64_t bytes = 2 * dlxi_cost_tensor_bytes(t->rows, t->cols, columns, f32) +
                     3 * dlxi_cost_tensor_bytes(t->rows, t->cols, columns, q);
    return bytes + 4 * (uint64_t)columns * (uint64_t)(t->rows + 2 * t->cols);
}

static void tensor_add(holding *h, const plan *p, const dlxi_tensor *t,
                       const dlx_sync_config *sync) {
    uint64_t values = (uint64_t)(t->rows * t->cols);
    bool muon = p->config->train.optimizer == DLXI_OPTIMIZER_MUON && t->hidden_matrix;
    int columns = columns_of(p, t, sync->factor_rank, sync->factor_rank);
    h->owned += values;
    h->moments += muon ? values : 2 * values;
    h->bases += (uint64_t)columns * (uint64_t)t->cols;
    h->exchange += exchange_bytes(t, columns, (dlxi_quantiser){sync->bits, sync->group});
}

static void holding_put(dlx_plan_result *result, const holding *h, uint64_t outer) {
    uint64_t bytes[] = {4 * h->held, 4 * h->held, 4 * h->moments, 4 * (outer * h->owned + h->bases),
                        h->exchange};
    uint64_t before = result->parameter_bytes + result->gradient_bytes + result->optimizer_bytes +
                      result->outer_bytes + result->exchange_bytes;
    if (bytes[0] + bytes[1] + bytes[2] + bytes[3] + bytes[4] <= before) return;
    result->parameter_bytes = bytes[0];
    result->gradient_bytes = bytes[1];
    result->optimizer_bytes = bytes[2];
    result->outer_bytes = bytes[3];
    result->exchange_bytes = bytes[4];
}

/* Values are f32: parameters and gradients of what a rank holds; of what it owns the optimiser's
 * moments, θ, v, e and, where the method has it, start. */
static dlx_status memory_plan(dlx_plan_result *result, const plan *p, dlx_error *error) {
    const dlxi_config *c = p->config;
    const dlx_sync_config sync = dlxi_sync_options_resolve(&c->sync);
    const dlxi_method *method = dlxi_method_of(sync.overlap);
    int64_t count = dlxi_model_tensor_count(&p->model), replicas = c->site.replicas;
    int64_t last = (c->site.stages - 1) * replicas; /* the first rank of the last stage */
    int *owners = NULL;
    holding *holdings = NULL;
    dlxi_partition partition;
    dlx_status status = DLX_OK;
    DLX_TRY_OUT(dlxi_config_partition(&partition, c, error));
    DLX_TRY_OUT(DLXI_NEW(&owners, count, error));
    DLX_TRY_OUT(DLXI_NEW(&holdings, last + replicas, error));
    dlxi_shard_map_fill(owners, &p->model, &partition, (int)replicas);
    for (int64_t id = 0; id < count; id++) {
        dlxi_tensor t = dlxi_model_tensor(&p->model, id);
        int64_t values = t.rows * t.cols, stage = dlxi_partition_stage(&partition, &t);
        bool twice = t.in_embedding && t.in_head && c->site.stages > 1;
        result->parameters += (uint64_t)values;
        for (int64_t i = 0; i < replicas; i++) {
            holdings[stage * replicas + i].held += (uint64_t)values;
            if (twice) holdings[last + i].held += (uint64_t)values;
        }
        tensor_add(&holdings[owners[id]], p, &t, &sync);
    }
    uint64_t outer = method->averages_gradients ? 2 : method->keeps_start ? 4 : 3;
    for (int64_t i = 0; i < last + replicas; i++) holding_put(result, &holdings[i], outer);
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
    double steps = fmax(1, ceil(config->train.tokens / (double)p.step_tokens));
    p.steps = (uint64_t)fmin(steps, STEPS_MAX);
    p.longer = steps / (double)p.steps;
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
