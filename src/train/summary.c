/* SPDX-License-Identifier: Apache-2.0 */
/* The site's statistics over its ranks, its summary, its weights. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/resources.h"
#include "checkpoint/checkpoint.h"
#include "outer/diagnosis.h"
#include "outer/sync_options.h"
#include "train/site_run.h"

dlx_status dlxi_run_gather(void *run, void *all, const void *own, size_t bytes, dlx_error *error) {
    const site_run *r = run;
    if (r->ranks > 1) return dlxi_grid_gather(r->grid, all, own, bytes, error);
    memcpy(all, own, bytes);
    return DLX_OK;
}

dlx_status dlxi_run_together(site_run *r, dlx_status status, const dlx_error *own,
                             dlx_error *error) {
    const dlx_error *all = r->gathered;
    dlx_error mine = {.status = DLX_OK};
    if (status != DLX_OK) mine = *own;
    mine.status = status;
    DLX_TRY(dlxi_run_gather(r, r->gathered, &mine, sizeof mine, error));
    int first = 0;
    while (first < r->ranks && all[first].status == DLX_OK) first++;
    if (first == r->ranks) return DLX_OK;
    if (error != NULL) *error = all[first];
    status = all[first].status;
    if (r->ranks > 1 && status != DLX_AGAIN && status != DLX_STATE)
        dlxi_error_prefix(error, "rank %d: ", first);
    return status;
}

dlx_status dlxi_run_ask(bool *any, bool *same, site_run *r, bool flag, uint64_t number,
                        dlx_error *error) {
    typedef struct answer {
        uint64_t number, flag;
    } answer;
    const answer *all = r->gathered, own = {.number = number, .flag = flag};
    DLX_TRY(dlxi_run_gather(r, r->gathered, &own, sizeof own, error));
    *any = false;
    *same = true;
    for (int i = 0; i < r->ranks; i++) {
        *any = *any || all[i].flag != 0;
        *same = *same && all[i].number == all[0].number;
    }
    return DLX_OK;
}

/* ---- statistics ------------------------------------------------------------------------------ */

dlx_statistics dlxi_run_statistics(site_run *r) {
    dlx_statistics st = DLX_STATISTICS_INIT;
    (void)dlx_sync_statistics(r->sync, &st, NULL); /* no argument is wrong */
    st.wan_bytes_sent += r->sent_before;
    st.wan_bytes_received += r->received_before;
    return st;
}

static dlxi_rank_report report_make(site_run *r) {
    dlxi_rank_report report = {.statistics = DLX_STATISTICS_INIT,
                               .times = dlxi_pipeline_times_of(r->pipeline)};
    report.peak_rss_bytes = (int64_t)dlxi_memory_peak();
    report.statistics = dlxi_run_statistics(r);
    int64_t count;
    const dlxi_parameter *held = dlxi_stage_parameters(dlxi_pipeline_stage(r->pipeline), &count);
    for (int64_t i = 0; i < count; i++) report.stage_parameters += held[i].count;
    for (int64_t i = 0; i < r->parameter_count; i++)
        report.shard_parameters += r->parameters[i].count;
    return report;
}

/* Norms and cosines of the site's vectors, from those of its ranks' parts. */
static void diagnoses_merge(dlx_statistics *all, const dlxi_rank_report *reports, int ranks) {
    double submitted = 0, mean = 0, momentum = 0, unsent = 0, agreement = 0, persistence = 0;
    for (int i = 0; i < ranks; i++) {
        const dlx_statistics *st = &reports[i].statistics;
        submitted += st->submitted_norm * st->submitted_norm;
        mean += st->mean_norm * st->mean_norm;
        momentum += st->momentum_norm * st->momentum_norm;
        unsent += st->unsent_norm * st->unsent_norm;
        agreement += st->agreement * st->submitted_norm * st->mean_norm;
        persistence += st->persistence * st->mean_norm * st->momentum_norm;
    }
    all->submitted_norm = sqrt(submitted);
    all->mean_norm = sqrt(mean);
    all->momentum_norm = sqrt(momentum);
    all->unsent_norm = sqrt(unsent);
    all->agreement = dlxi_cosine(agreement, submitted, mean);
    all->persistence = dlxi_cosine(persistence, mean, momentum);
}

dlx_status dlxi_run_collect(site_run *r, dlx_error *error) {
    if (r->reports == NULL) DLX_TRY(DLXI_NEW(&r->reports, r->ranks, error));
    dlxi_rank_report own = report_make(r);
    DLX_TRY(dlxi_run_gather(r, r->reports, &own, sizeof own, error));
    dlx_statistics all = r->reports[0].statistics;
    double norm = 0, ranks = 0, low_rank = 0;
    for (int i = 0; i < r->ranks; i++) {
        const dlx_statistics *st = &r->reports[i].statistics;
        norm += st->update_norm * st->update_norm;
        ranks += st->factor_rank_mean * (double)st->low_rank_parameters;
        low_rank += (double)st->low_rank_parameters;
        all.exchange_s = fmax(all.exchange_s, st->exchange_s);
        all.exchange_total_s = fmax(all.exchange_total_s, st->exchange_total_s);
        if (i == 0) continue;
        all.wan_bytes_sent += st->wan_bytes_sent;
        all.wan_bytes_received += st->wan_bytes_received;
        all.round_bytes += st->round_bytes;
        all.raw_bytes += st->raw_bytes;
        all.payload_bytes += st->payload_bytes;
        all.anchor_hash += st->anchor_hash; /* a sum over tensors */
        all.low_rank_tensors += st->low_rank_tensors;
        all.plain_tensors += st->plain_tensors;
    }
    all.low_rank_parameters = (uint64_t)low_rank;
    all.update_norm = sqrt(norm);
    all.factor_rank_mean = low_rank > 0 ? ranks / low_rank : 0;
    diagnoses_merge(&all, r->reports, r->ranks);
    r->statistics = all;
    return DLX_OK;
}

static const char *const diagnosis_keys[DLXI_DIAGNOSES] = {"agreement", "persistence",
                                                           "mean_over_own", "unsent_share"};

void dlxi_run_diagnose(site_run *r, json_t *line) {
    const dlx_statistics *st = &r->statistics;
    if (!(st->submitted_norm > 0)) return; /* the site was not in that round */
    const double values[DLXI_DIAGNOSES] = {st->agreement, st->persistence,
                                           st->mean_norm / st->submitted_norm,
                                           st->unsent_norm / st->submitted_norm};
    for (int i = 0; i < DLXI_DIAGNOSES; i++) {
        json_object_set_new(line, diagnosis_keys[i], dlxi_json_real(values[i]));
        r->diagnosis[i] += values[i];
    }
    r->diagnosed_rounds++;
}

/* ---- the summary ----------------------------------------------------------------------------- */

json_t *dlxi_run_summarize(const site_run *r, const char *outcome) {
    const dlxi_config *c = r->config;
    const dlx_statistics st = r->statistics;
    int64_t peak_rss_bytes = 0;
    for (int i = 0; i < r->ranks; i++)
        if (r->reports[i].peak_rss_bytes > peak_rss_bytes)
            peak_rss_bytes = r->reports[i].peak_rss_bytes;
    const double fragments = dlxi_sync_options_resolve(&c->sync).fragments;
    /* each fragment's rounds, and the last one, which has all */
    const double whole_rounds = ((double)st.rounds + fragments - 1) / fragments;
    double D = r->sites, wall_s = dlxi_clock_s() - r->start_s;
    double step_tokens = (double)(c->train.batch * c->model.context),
           trained = (double)r->steps * step_tokens;
    /* of the committed steps: tokens trained past the run's end are discarded */
    double equivalent =
        (double)st.committed_tokens / (D * step_tokens) * 2 * (double)st.raw_bytes * (D - 1) / D;
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)st.anchor_hash);
    json_t *s = json_pack("{s:i, s:s, s:s, s:s, s:s, s:i, s:i, s:i}", "version",
                          DLXI_SUMMARY_VERSION, "run_id", r->run_id, "site", r->options->site,
                          "status", outcome, "overlap", dlxi_config_overlap_name(c), "sites",
                          (int)D, "stages", (int)c->site.stages, "replicas", (int)c->site.replicas);
    const struct {
        const char *key;
        json_t *value;
    } fields[] = {
        {"parameters", json_integer((json_int_t)(st.raw_bytes / sizeof(float)))},
        {"kernels", json_string(r->kernels->op->name)},
        {"precision", json_string(r->kernels->precision == DLXI_PRECISION_BF16 ? "bf16" : "f32")},
        {"steps", json_integer((json_int_t)r->steps)},
        {"rounds", json_integer((json_int_t)st.rounds)},
        {"attempts", json_integer((json_int_t)st.attempts)},
        {"tokens", json_integer((json_int_t)st.committed_tokens)},
        /* null if the run ended early */
        {"val_loss",
         dlxi_json_real(r->val_loss_sum > 0 ? r->val_loss_sum / r->val_tokens : (double)NAN)},
        {"val_loss_initial", dlxi_json_real(r->val_loss_initial_sum / r->val_tokens_initial)},
        {"val_loss_sum", dlxi_json_real(r->val_loss_sum)},
        {"val_loss_initial_sum", dlxi_json_real(r->val_loss_initial_sum)},
        {"val_tokens", dlxi_json_real(r->val_tokens)},
        {"val_tokens_initial", dlxi_json_real(r->val_tokens_initial)},
        {"wall_s", json_real(wall_s)},
        {"tokens_per_s", dlxi_json_real(trained / (r->compute_s + r->wait_s))},
        {"peak_rss_bytes", json_integer((json_int_t)peak_rss_bytes)},
        {"compute_s", json_real(r->compute_s)},
        {"wait_s", json_real(r->wait_s)},
        {"utilization", dlxi_json_real(r->compute_s / (r->compute_s + r->wait_s))},
        {"wan_bytes_sent", json_integer((json_int_t)st.wan_bytes_sent)},
        {"wan_bytes_received", json_integer((json_int_t)st.wan_bytes_received)},
        {"allreduce_bytes_equivalent", json_integer((json_int_t)equivalent)},
        {"compression_ratio", dlxi_json_real(equivalent / (double)st.wan_bytes_sent)},
        {"codec_ratio",
         dlxi_json_real(whole_rounds * (double)st.raw_bytes / (double)st.payload_bytes)},
        {"outer_learning_rate", json_real(st.outer_learning_rate)},
        {"outer_momentum", json_real(st.outer_momentum)},
        {"outer_momentum_rate", json_real(st.outer_momentum_rate)},
        {"inner_steps", json_integer((json_int_t)st.inner_steps)},
        {"rank_mean", json_real(st.factor_rank_mean)},
        {"exchange_s_mean", dlxi_json_real(st.exchange_total_s / (double)st.rounds)},
        {"exchange_steps_mean", dlxi_json_real(r->exchange_steps / (double)r->exchange_rounds)},
        {"anchor_hash", json_string(hash)},
    };
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++)
        json_object_set_new(s, fields[k].key, fields[k].value);
    for (int i = 0; i < DLXI_DIAGNOSES; i++)
        json_object_set_new(s, diagnosis_keys[i],
                            dlxi_json_real(r->diagnosis[i] / (double)r->diagnosed_rounds));
    return s;
}

json_t *dlxi_run_per_rank(const site_run *r) {
    json_t *list = json_array();
    for (int i = 0; i < r->ranks; i++) {
        const dlxi_rank_report *report = &r->reports[i];
        int stage = i / (int)r->config->site.replicas, replica = i % (int)r->config->site.replicas;
        const dlxi_pipeline_times *t = &report->times;
        json_array_append_new(
            list,
            json_pack("{s:i, s:i, s:i, s:[I,I], s:I, s:I, s:I, s:I, s:I, s:o, s:o, s:f, s:f}",
                      "rank", i, "stage", stage, "replica", replica, "layers",
                      (json_int_t)r->partition.first_layer[stage],
                      (json_int_t)r->partition.first_layer[stage + 1], "stage_parameters",
                      (json_int_t)report->stage_parameters, "shard_parameters",
                      (json_int_t)report->shard_parameters, "peak_rss_bytes",
                      (json_int_t)report->peak_rss_bytes, "wan_bytes_sent",
                      (json_int_t)report->statistics.wan_bytes_sent, "wan_bytes_received",
                      (json_int_t)report->statistics.wan_bytes_received, "idle_share",
                      dlxi_json_real(t->idle_s / t->step_s), "pass_s", dlxi_json_real(t->step_s),
                      "reduce_s", t->reduce_s, "share_s", t->share_s));
    }
    return list;
}

dlx_status dlxi_run_anchor_hashes(json_t **out, site_run *r, dlx_error *error) {
    dlx_status status = DLX_OK;
    uint64_t *own = NULL, *all = NULL, *shard = NULL;
    const dlxi_model_config model = dlxi_config_model(r->config);
    size_t count = (size_t)dlxi_model_tensor_count(&model);
    *out = NULL;
    DLX_TRY_OUT(DLXI_NEW(&own, count, error));
    DLX_TRY_OUT(DLXI_NEW(&shard, r->parameter_count, error));
    DLX_TRY_OUT(DLXI_NEW(&all, count * (size_t)r->ranks, error));
    DLX_TRY_OUT(dlx_sync_anchor_hashes(r->sync, shard, error));
    for (int64_t i = 0; i < r->parameter_count; i++) own[r->parameters[i].tensor.id] = shard[i];
    DLX_TRY_OUT(dlxi_run_gather(r, all, own, count * sizeof *own, error));
    if (r->rank != 0) goto out;
    *out = json_object();
    for (size_t id = 0; id < count; id++) {
        uint64_t hash = 0; /* the owner's; the other ranks have 0 */
        char text[17];
        for (size_t rank = 0; rank < (size_t)r->ranks; rank++) hash |= all[rank * count + id];
        snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
        json_object_set_new(*out, dlxi_model_tensor(&model, (int64_t)id).name, json_string(text));
    }
out:
    free(own);
    free(all);
    free(shard);
    return status;
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Each stage is a part; a tied table is in the first one. */
static dlx_status part_save(site_run *r, const char *path, const dlxi_model_config *model,
                            dlx_error *error) {
    dlx_status status = DLX_OK;
    int stage = r->grid->stage, *parts = NULL;
    int64_t count, held = 0, all = dlxi_model_tensor_count(model);
    const dlxi_parameter *parameter =
        dlxi_stage_parameters(dlxi_pipeline_stage(r->pipeline), &count);
    dlxi_parameter *own = NULL;
    dlxi_checkpoint_part *part = NULL;
    DLX_TRY_OUT(DLXI_NEW(&own, count, error));
    DLX_TRY_OUT(DLXI_NEW(&parts, all, error));
    for (int64_t id = 0; id < all; id++) {
        const dlxi_tensor tensor = dlxi_model_tensor(model, id);
        parts[id] = dlxi_partition_stage(&r->partition, &tensor);
    }
    for (int64_t i = 0; i < count; i++)
        if (parts[parameter[i].tensor.id] == stage) own[held++] = parameter[i];
    bool writes = r->grid->replica == 0;
    if (writes)
        DLX_TRY_OUT(dlxi_checkpoint_part_begin(&part, path, model, own, held, stage,
                                               r->partition.stages, error));
    DLX_TRY_OUT(dlxi_grid_barrier(r->grid, error));
    if (writes) DLX_TRY_OUT(dlxi_checkpoint_part_commit(part, error));
    DLX_TRY_OUT(dlxi_grid_barrier(r->grid, error));
    if (r->rank == 0)
        DLX_TRY_OUT(
            dlxi_checkpoint_finish(path, model, parts, r->partition.stages, r->run_id, error));
    DLX_TRY_OUT(dlxi_grid_barrier(r->grid, error));
out:
    dlxi_checkpoint_part_close(&part);
    free(parts);
    free(own);
    return status;
}

dlx_status dlxi_run_save(site_run *r, const char *directory, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    dlxi_model_config model = dlxi_config_model(r->config);
    DLX_TRY(dlxi_path_join(path, directory, "weights", error));
    if (r->partition.stages > 1) return part_save(r, path, &model, error);
    int64_t count;
    const dlxi_parameter *parameter =
        dlxi_stage_parameters(dlxi_pipeline_stage(r->pipeline), &count);
    if (r->rank == 0)
        DLX_TRY(dlxi_checkpoint_save(path, &model, parameter, count, r->run_id, error));
    return r->ranks > 1 ? dlxi_grid_barrier(r->grid, error) : DLX_OK;
}
