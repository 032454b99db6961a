/* SPDX-License-Identifier: Apache-2.0 */
#include "train/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "link/links.h"
#include "options/options.h"
#include "train/snapshots.h"

enum { LOST_BYTES = 360 };

/* Rank 0 reports for the site. */
static void event_send(const site_run *r, dlx_event *event) {
    event->size = sizeof *event;
    event->site = r->options->site;
    if (r->rank == 0 && r->options->on_event != NULL)
        r->options->on_event(r->options->context, event);
}

static dlx_status line_write(site_run *r, json_t *line, dlx_error *error) {
    if (r->metrics != NULL) return dlxi_metrics_write(r->metrics, line, error);
    json_decref(line);
    return DLX_OK;
}

/* If the line can't be written, the next step's can't either, and says so. */
void dlxi_run_say(void *run, const char *text) {
    dlx_event event = {.kind = DLX_EVENT_MESSAGE, .text = text};
    event_send(run, &event);
    (void)line_write(run, dlxi_notice_make(text, 0), NULL);
}

void dlxi_run_record(site_run *r, json_t *line) {
    (void)line_write(r, line, NULL);
}

/* ---- opening --------------------------------------------------------------------------------- */

static uint64_t data_hash(const dlxi_token_file *file) {
    return dlxi_hash(file->payload, (size_t)file->count * file->token_bytes, 0);
}

static dlx_status data_open(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    DLX_TRY(dlxi_token_file_open(&r->train_file, "data.train", c->data.train, error));
    DLX_TRY(
        dlxi_token_file_open(&r->validation_file, "data.validation", c->data.validation, error));
    DLX_TRY(dlxi_token_file_check_vocabulary(r->train_file, c->model.vocabulary, error));
    DLX_TRY(dlxi_token_file_check_vocabulary(r->validation_file, c->model.vocabulary, error));
    DLX_TRY(dlxi_token_file_check_same_tokenizer(r->validation_file, r->train_file, error));
    r->data_hash = data_hash(r->train_file);
    return dlxi_sampler_open(&r->sampler, r->train_file, c->model.context, (uint64_t)c->run.seed,
                             error);
}

static dlx_status place_open(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    dlxi_cluster *cluster = r->options->cluster;
    long long stages = c->site.stages, replicas = c->site.replicas;
    r->ranks = 1;
    if (cluster == NULL && stages * replicas == 1) return DLX_OK;
    if (cluster == NULL)
        DLX_FAIL(error, CONFIG,
                 "site.stages %lld × site.replicas %lld: start a site of %lld ranks with MPI: "
                 "mpirun -n %lld dilocox train …",
                 stages, replicas, stages * replicas, stages * replicas);
    DLX_TRY(dlxi_grid_open(&r->grid, cluster, (int)r->options->job_sites, (int)stages,
                           (int)replicas, error));
    r->rank = r->grid->rank;
    r->ranks = r->grid->ranks;
    return DLX_OK;
}

static dlx_status model_open(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    dlxi_model_config model = dlxi_config_model(c);
    dlxi_optimizer_options optimizer =
        dlxi_optimizer_options_default((dlxi_optimizer_kind)c->train.optimizer);
    optimizer.weight_decay = (float)c->train.weight_decay;
    optimizer.clip_norm = (float)c->train.clip_norm;
    DLX_TRY(dlxi_config_partition(&r->partition, c, error));
    dlxi_pipeline_options pipeline = {.grid = r->ranks > 1 ? r->grid : NULL,
                                      .partition = r->partition,
                                      .batch = c->train.batch,
                                      .micro_batch = dlxi_config_micro_batch(c),
                                      .recompute = c->train.recompute,
                                      .seed = (uint64_t)c->run.seed,
                                      .sampler = &r->sampler,
                                      .interrupted = r->options->interrupted};
    DLX_TRY(dlxi_kernels_open(&r->kernels, dlxi_kernels_backends[c->train.backend],
                              (dlxi_precision)c->train.precision, (int)c->site.threads, error));
    DLX_TRY(dlxi_pipeline_open(&r->pipeline, &model, &pipeline, r->kernels, error));
    r->parameters = dlxi_pipeline_owned(r->pipeline, &r->parameter_count);
    DLX_TRY(dlxi_optimizer_open(&r->optimizer, &optimizer, r->parameters, r->parameter_count,
                                r->kernels, error));
    DLX_TRY(DLXI_NEW(&r->tensors, r->parameter_count, error));
    DLX_TRY(DLXI_NEW(&r->gradients, r->parameter_count, error));
    for (int64_t i = 0; i < r->parameter_count; i++) {
        const dlxi_parameter *p = &r->parameters[i];
        bool table = p->tensor.in_embedding || p->tensor.in_head;
        r->tensors[i] = (dlx_tensor){.name = p->tensor.name,
                                     .data = p->data,
                                     .rows = p->tensor.rows,
                                     .cols = p->tensor.cols,
                                     .plain = table && !c->low_rank_tables,
                                     .id = (uint32_t)p->tensor.id};
        r->gradients[i] = p->gradient;
    }
    return DLXI_NEW(&r->positions, c->train.batch, error);
}

dlx_status dlxi_config_link(dlx_link_config *out, char listen[128], const dlxi_config *config,
                            const char *coordinator, dlx_hub *hub, int rank, dlx_error *error) {
    *out = (dlx_link_config){.hub = hub,
                             .name = dlxi_link_word(config->wan.link),
                             .coordinator =
                                 coordinator != NULL ? coordinator : config->wan.coordinator,
                             .listen_host = listen,
                             .unencrypted = config->wan.security == DLXI_SECURITY_NONE,
                             .key_path = config->wan.key,
                             .roster_path = config->wan.roster};
    dlxi_address address = {.host = ""};
    listen[0] = '\0';
    if (config->wan.listen[0] == '\0') return DLX_OK;
    DLX_TRY(dlxi_address_parse_listen(&address, config->wan.listen, "wan.listen", error));
    snprintf(listen, 128, "%s", address.host);
    if (address.port != 0)
        out->listen_port = (uint16_t)(address.port + DLXI_CONFIG_RANK_PORTS * rank);
    return DLX_OK;
}

/* Once the run has failed, every rank of the site returns from its step within this time, or
 * hangs. */
static bool site_hangs(void *context) {
    enum { PATIENCE_S = 10 };
    site_run *r = context;
    if (dlx_sync_failure(r->sync, NULL) == DLX_OK) return false;
    double now_s = dlxi_clock_s();
    if (r->failed_since_s <= 0) r->failed_since_s = now_s;
    return now_s - r->failed_since_s > PATIENCE_S + r->step_s_max;
}

/* *text ← the settings that all sites must share, as the coordinator has them too, and behind them
 * the data, which only sites have; free with free(). That data.train is equal is for its hash. */
static dlx_status shared_text_make(char **text, const site_run *r, dlx_error *error) {
    const dlxi_token_file *data = r->train_file, *validation = r->validation_file;
    char *settings, tokenizer[DLXI_TOKENIZER_NAME_BYTES];
    dlxi_text_copy(tokenizer, sizeof tokenizer, data->tokenizer_name);
    for (char *c = tokenizer; *c != '\0'; c++) *c = *c == '\n' ? '?' : *c; /* a text of lines */
    *text = NULL;
    DLX_TRY(dlxi_options_print_canonical(&settings, r->config, &dlxi_config_table, error));
    int length = asprintf(text,
                          "%sdata tokenizer: %s (hash %016llx)\n"
                          "data.validation: %lld tokens (hash %016llx)\n",
                          settings, tokenizer, (unsigned long long)data->tokenizer_hash,
                          (long long)validation->count, (unsigned long long)data_hash(validation));
    free(settings);
    if (length >= 0) return DLX_OK;
    *text = NULL;
    DLX_FAIL(error, MEMORY, "out of memory for the run's settings");
}

static dlx_status sync_open(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    dlx_sync_config sync = c->sync;
    char listen[128], *shared_text;
    DLX_TRY(dlxi_config_link(&sync.link, listen, c, r->options->coordinator, r->options->hub,
                             r->rank, error));
    DLX_TRY(shared_text_make(&shared_text, r, error));
    sync.site = r->options->site;
    sync.rank = (uint16_t)r->rank;
    sync.ranks = (uint16_t)r->ranks;
    sync.gather = dlxi_run_gather;
    sync.gather_context = r;
    sync.shared_text = shared_text;
    sync.seed = (uint64_t)c->run.seed;
    /* a gradient mean has no rounds, and with short leases its windows are those of one site with
     * the whole batch */
    if (c->pace == DLXI_PACE_RATE && sync.overlap != DLX_OVERLAP_ALLREDUCE)
        sync.pace_max = DLXI_PACE_MAX;
    sync.windows = (uint64_t)r->sampler.windows;
    sync.tokens_per_window = (uint64_t)c->model.context;
    sync.data_hash = r->data_hash;
    sync.windows_per_step = (uint32_t)c->train.batch;
    sync.log = dlxi_run_say;
    sync.log_context = r;
    sync.interrupted = r->options->interrupted;
    const size_t count = (size_t)r->parameter_count;
    dlx_status status =
        r->snapshots.resumed == NULL
            ? dlx_sync_open(&r->sync, &sync, r->tensors, count, error)
            : (r->snapshots.is_another ? dlx_sync_resume_as_new : dlx_sync_resume)(
                  &r->sync, &sync, r->tensors, count, dlxi_snapshots_restore, r, error);
    free(shared_text);
    if (status != DLX_OK) return status;
    if (r->ranks > 1) dlxi_mpi_cancel_when(site_hangs, r);
    DLX_TRY(dlxi_pipeline_share_parameters(r->pipeline, error));
    return dlxi_run_collect(r, error);
}

/* What can be known of the results' directory before the run has begun, when nothing changes. */
static dlx_status results_check(site_run *r, dlx_error *error) {
    const char *site = r->options->site, *reason = dlxi_folder_misnames(site);
    char shown[80];
    dlxi_option_show_text(shown, sizeof shown, site, strlen(site));
    if (reason != NULL) DLX_FAIL(error, CONFIG, "site: '%s' is not allowed; %s", shown, reason);
    DLX_TRY(dlxi_path_join(r->directory, r->config->run.dir, site, error));
    bool resumes = r->options->resume != NULL; /* perhaps a run that lives there */
    /* only the first rank writes there for sure */
    if (r->rank != 0)
        return resumes ? DLX_OK : dlxi_folder_check_unused(r->config->run.dir, 0, error);
    DLX_TRY(dlxi_outputs_check(r->config, r->config->run.dir, error));
    DLX_TRY(dlxi_outputs_check(r->config, r->directory, error));
    return resumes ? dlxi_folder_check_writable(r->config->run.dir, site, error)
                   : dlxi_folder_check(r->config->run.dir, site, error);
}

static dlx_status results_open(site_run *r, dlx_error *error) {
    char path[DLXI_PATH_BYTES], who[DLXI_NAME_BYTES + 16];
    snprintf(who, sizeof who, "site '%s'", r->options->site);
    DLX_TRY(dlxi_folder_enter(&r->folder, r->config->run.dir, who, dlx_sync_run_id(r->sync),
                              dlxi_run_say, r, error));
    DLX_TRY(dlxi_directory_make(r->directory, error));
    DLX_TRY(dlxi_path_join(path, r->directory, "metrics.jsonl", error));
    DLX_TRY(dlxi_metrics_open(&r->metrics, path, r->snapshots.resumed != NULL, error));
    return dlxi_metrics_write(r->metrics,
                              json_pack("{s:s, s:s, s:s, s:i}", "event", "run", "run_id", r->run_id,
                                        "site", r->options->site, "sites",
                                        (int)dlx_sync_site_count(r->sync)),
                              error);
}

/* All ranks of the site fail with the first one, which opens the results. */
static dlx_status results_begin(site_run *r, dlx_error *error) {
    bool failed, same;
    dlxi_run_id_show(r->run_id, dlx_sync_run_id(r->sync));
    dlx_status status = r->rank == 0 ? results_open(r, error) : DLX_OK;
    dlx_status asked =
        dlxi_run_ask(&failed, &same, r, status != DLX_OK, 0, status == DLX_OK ? error : NULL);
    if (status != DLX_OK || asked != DLX_OK) return status != DLX_OK ? status : asked;
    if (failed) DLX_FAIL(error, PEER_LOST, "rank 0 of this site can't open the results");
    return DLX_OK;
}

static void run_close(site_run *r) {
    dlxi_mpi_cancel_when(NULL, NULL);
    dlx_sync_close(&r->sync);
    dlxi_snapshots_close(r);
    dlxi_metrics_close(&r->metrics);
    dlxi_folder_leave(&r->folder);
    free(r->gathered);
    free(r->reports);
    free(r->tensors);
    free(r->gradients);
    free(r->positions);
    dlxi_optimizer_close(&r->optimizer);
    dlxi_pipeline_close(&r->pipeline);
    dlxi_kernels_close(&r->kernels);
    dlxi_token_file_close(&r->train_file);
    dlxi_token_file_close(&r->validation_file);
}

/* ---- evaluation ------------------------------------------------------------------------------ */

/* With fewer validation windows than sites, some have none. */
static void evaluation_show(const site_run *r, const char *of, double loss) {
    dlx_event event = {.kind = DLX_EVENT_EVALUATED, .text = of, .loss = loss, .step = r->steps};
    char text[192];
    if (r->val_tokens > 0) {
        event_send(r, &event);
        return;
    }
    snprintf(
        text, sizeof text,
        "validation loss at the %s: this site has none of the windows, as there are fewer than "
        "sites (%u); raise train.eval_tokens or use more data",
        of, dlx_sync_site_count(r->sync));
    event.kind = DLX_EVENT_MESSAGE, event.text = text, event.loss = 0, event.step = 0;
    event_send(r, &event);
}

/* The loss of these of `count` parts of the validation windows, summed over tokens, is added to
 * *loss_sum, and the tokens to r->val_tokens. */
static dlx_status parts_evaluate(site_run *r, const char *of, uint64_t parts, uint32_t count,
                                 double *loss_sum, dlx_error *error) {
    for (uint32_t part = 0; part < count; part++) {
        double sum, tokens;
        if ((parts >> part & 1u) == 0) continue;
        DLX_TRY(dlxi_pipeline_evaluate(r->pipeline, r->validation_file,
                                       (int64_t)r->config->train.eval_tokens, part, count, &sum,
                                       &tokens, error));
        *loss_sum += sum;
        r->val_tokens += tokens;
    }
    double loss = r->val_tokens > 0 ? *loss_sum / r->val_tokens : (double)NAN;
    evaluation_show(r, of, loss);
    return line_write(r,
                      json_pack("{s:s, s:s, s:I, s:o, s:f}", "event", "evaluation", "of", of,
                                "step", (json_int_t)r->steps, "loss", dlxi_json_real(loss),
                                "tokens", r->val_tokens),
                      error);
}

/* ---- steps ----------------------------------------------------------------------------------- */

static dlx_status step_record(site_run *r, const dlx_step *step, double loss, double norm,
                              float rate, dlx_error *error) {
    json_t *line = json_pack(
        "{s:s, s:f, s:I, s:o, s:o, s:f, s:I, s:I, s:I, s:I}", "event", "step", "time_s",
        dlxi_clock_s() - r->start_s, "step", (json_int_t)r->steps, "loss", dlxi_json_real(loss),
        "gradient_norm", dlxi_json_real(norm), "learning_rate", (double)rate, "tokens",
        (json_int_t)dlx_sync_tokens(r->sync), "round", (json_int_t)step->round, "wan_bytes_sent",
        (json_int_t)r->wan_bytes_sent, "wan_bytes_received", (json_int_t)r->wan_bytes_received);
    DLX_TRY(line_write(r, line, error));
    if (!step->applied && !step->submitted) return DLX_OK;
    DLX_TRY(dlxi_run_collect(r, error));
    const dlx_statistics *st = &r->statistics;
    r->wan_bytes_sent = st->wan_bytes_sent;
    r->wan_bytes_received = st->wan_bytes_received;
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)st->anchor_hash);
    line = json_pack(
        "{s:s, s:f, s:I, s:b, s:b, s:f, s:I, s:I, s:f, s:f, s:I, s:I, s:f, s:s}", "event", "round",
        "time_s", dlxi_clock_s() - r->start_s, "step", (json_int_t)r->steps, "submitted",
        step->submitted, "applied", step->applied, "waited_s", step->waited_s, "committed_rounds",
        (json_int_t)st->rounds, "committed_tokens", (json_int_t)st->committed_tokens, "rank_mean",
        st->factor_rank_mean, "update_norm", st->update_norm, "inner_steps",
        (json_int_t)step->inner_steps, "wan_bytes_sent", (json_int_t)st->wan_bytes_sent,
        "exchange_s", st->exchange_s, "anchor_hash", hash);
    if (step->applied && line != NULL) dlxi_run_diagnose(r, line);
    return line_write(r, line, error);
}

static void step_show(site_run *r, const dlx_step *step, double loss, float rate, double step_s) {
    const double memory = 0.9; /* averages the speed over about ten steps */
    double tokens = (double)(r->config->train.batch * r->config->model.context);
    r->recent_s = memory * r->recent_s + step_s;
    r->recent_tokens = memory * r->recent_tokens + tokens;
    double speed = r->recent_tokens / fmax(r->recent_s, 1e-9);
    uint64_t done = dlx_sync_tokens(r->sync), target = dlx_sync_tokens_target(r->sync);
    dlx_event event = {.kind = DLX_EVENT_STEP,
                       .step = r->steps,
                       .tokens = done,
                       .tokens_target = target,
                       .round = step->round,
                       .inner_steps = step->inner_steps,
                       .step_in_round = step->step_in_round,
                       .loss = loss,
                       .tokens_per_s = speed,
                       .learning_rate = (double)rate,
                       .factor_rank_mean = r->statistics.factor_rank_mean,
                       .wan_bytes_sent = r->wan_bytes_sent,
                       .utilization = r->compute_s / fmax(r->compute_s + r->wait_s, 1e-9),
                       .left_s = done >= target ? 0
                                                : (double)(target - done) /
                                                      (speed * dlx_sync_site_count(r->sync))};
    event_send(r, &event);
}

static dlx_status step_train(site_run *r, dlx_step *step, dlx_error *error) {
    const dlxi_config *c = r->config;
    const uint64_t tokens = (uint64_t)(c->train.batch * c->model.context);
    const dlxi_schedule schedule = dlxi_config_schedule(c, dlx_sync_tokens_target(r->sync));
    float scale = (float)dlxi_config_micro_batch(c) / (float)c->train.batch;
    double loss, norm, begun_s = dlxi_clock_s(), sync_s = 0;
    int64_t step_tokens = (int64_t)(tokens * dlx_sync_site_count(r->sync));
    float rate = dlxi_schedule_rate(&schedule, (int64_t)dlx_sync_tokens(r->sync) + step_tokens);
    if (c->pace == DLXI_PACE_RATE && dlx_sync_tokens(r->sync) >= (uint64_t)c->train.warmup_tokens)
        dlx_sync_pace(r->sync, (double)schedule.peak / (double)rate);
    /* parameters do not change before the optimiser's step, and windows are taken again */
    r->fails_together = r->ranks == 1;
    DLX_TRY(dlx_sync_windows(r->sync, r->positions, (uint32_t)c->train.batch, error));
    DLX_TRY(dlxi_pipeline_accumulate(r->pipeline, r->positions, &loss, error));
    r->fails_together = false;
    if (c->sync.overlap == DLX_OVERLAP_ALLREDUCE) {
        double before_s = dlxi_clock_s();
        r->fails_together = true;
        DLX_TRY(dlx_sync_gradients(r->sync, r->gradients, tokens, NULL, error));
        r->fails_together = false;
        sync_s = dlxi_clock_s() - before_s;
    }
    const dlx_statistics own = dlxi_run_statistics(r);
    double sums[] = {dlxi_optimizer_sum_of_squares(r->optimizer), loss, (double)own.wan_bytes_sent,
                     (double)own.wan_bytes_received};
    DLX_TRY(dlxi_pipeline_sum(r->pipeline, sums, sizeof sums / sizeof *sums, error));
    loss = sums[1];
    r->wan_bytes_sent = (uint64_t)sums[2];
    r->wan_bytes_received = (uint64_t)sums[3];
    dlxi_snapshots_wait(r);
    dlx_status status =
        dlxi_optimizer_step_with_norm(r->optimizer, rate, scale, sums[0], &norm, error);
    if (status != DLX_OK) {
        dlxi_error_prefix(error, "step %llu, loss %g: ", (unsigned long long)r->steps + 1, loss);
        return status;
    }
    r->steps++;
    /* ranks' waits for each other are not the site's wait for other sites */
    DLX_TRY(dlxi_pipeline_barrier(r->pipeline, error));
    double before_s = dlxi_clock_s();
    r->fails_together = true;
    DLX_TRY(dlx_sync_step(r->sync, tokens, step, error));
    r->fails_together = false;
    sync_s += dlxi_clock_s() - before_s;
    DLX_TRY(dlxi_pipeline_share_parameters(r->pipeline, error));
    double now_s = dlxi_clock_s();
    r->step_s_max = fmax(r->step_s_max, now_s - begun_s);
    r->wait_s += sync_s;
    r->compute_s += now_s - begun_s - sync_s;
    r->exchange_steps += step->applied ? step->exchange_steps : 0;
    r->exchange_rounds += step->applied;
    DLX_TRY(step_record(r, step, loss, norm, rate, error));
    step_show(r, step, loss, rate, now_s - begun_s);
    if (!step->finished) dlxi_snapshots_on_step(r);
    return DLX_OK;
}

/* ---- the end --------------------------------------------------------------------------------- */

static dlx_status weights_save(site_run *r, const char *directory, dlx_error *error) {
    DLX_TRY(dlxi_run_save(r, directory, error));
    char text[DLXI_PATH_BYTES + 32];
    snprintf(text, sizeof text, "weights saved in %s/weights", directory);
    dlxi_run_say(r, text);
    return DLX_OK;
}

/* Rank 0 writes summary.json. *text, free with free(), ← its part of fixed size, for the
 * coordinator. */
static dlx_status summary_write(site_run *r, const char *outcome, char **text, dlx_error *error) {
    json_t *hashes;
    char path[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_run_collect(r, error));
    DLX_TRY(dlxi_run_anchor_hashes(&hashes, r, error));
    if (r->rank != 0) return DLX_OK;
    dlx_status status = DLX_OK;
    json_t *summary = dlxi_run_summarize(r, outcome);
    *text = json_dumps(summary, JSON_COMPACT);
    json_object_set_new(summary, "per_rank", dlxi_run_per_rank(r));
    json_object_set_new(summary, "anchor_hashes", hashes);
    if (*text == NULL) status = dlxi_error_set(error, DLX_MEMORY, "out of memory for the summary");
    if (status == DLX_OK) status = dlxi_path_join(path, r->directory, "summary.json", error);
    if (status == DLX_OK) status = dlxi_summary_write(path, summary, error);
    json_decref(summary);
    return status;
}

static dlx_status report_send(site_run *r, dlx_error *error) {
    char *text = NULL;
    dlx_status status = summary_write(r, "done", &text, error);
    if (status == DLX_OK) status = dlx_sync_report(r->sync, text != NULL ? text : "", error);
    free(text);
    return status;
}

/* p ← θ of the same round on all ranks, which receive a commit at different times. */
static dlx_status anchor_take_common(site_run *r, dlx_error *error) {
    enum { TRIES = 20, PAUSE_NS = 100000000 };
    dlx_status status = DLX_OK;
    bool same = false, any;
    for (int i = 0; i < TRIES && !same && status == DLX_OK; i++) {
        if (i > 0) dlxi_mpi_pause(PAUSE_NS);
        uint64_t rounds = 0; /* of this rank's θ */
        status = dlx_sync_take_anchor(r->sync, &rounds, error);
        if (status == DLX_OK) status = dlxi_run_ask(&any, &same, r, false, rounds, error);
    }
    if (status == DLX_OK && !same)
        DLX_FAIL(error, DIVERGED, "the site's ranks ended in different rounds");
    return status;
}

/* Of a run that ends early: the anchor of the last commit and a summary. Every site saves the
 * anchor, as the first may be lost; a site of several ranks only if all of them get here. */
static dlx_status partial_results_save(site_run *r, dlx_status why, char lost[LOST_BYTES],
                                       dlx_error *error) {
    char *text = NULL;
    const char *directory = r->directory;
    if (r->sync == NULL || r->steps == 0 || (r->ranks > 1 && !r->fails_together)) return DLX_OK;
    if (r->ranks == 1 && r->metrics == NULL) return DLX_OK; /* the directory may be another run's */
    if (why != DLX_NUMERIC && why != DLX_DIVERGED) {
        if (r->fails_together) (void)dlxi_snapshots_last(r);
        if (dlx_sync_site_index(r->sync) == 0) directory = r->config->run.dir;
        snprintf(lost, LOST_BYTES, "the last anchor is not saved in %.300s/weights", directory);
        DLX_TRY(anchor_take_common(r, error));
        DLX_TRY(dlxi_pipeline_share_parameters(r->pipeline, error));
        DLX_TRY(weights_save(r, directory, error));
    }
    snprintf(lost, LOST_BYTES, "%.300s/summary.json is not written", r->directory);
    dlx_status status =
        summary_write(r, why == DLX_INTERRUPTED ? "interrupted" : "failed", &text, error);
    free(text);
    if (status != DLX_OK) return status;
    /* a rank that exits before others have saved ends them */
    return dlxi_pipeline_barrier(r->pipeline, error);
}

/* Appends to `error` what could not be saved, and why unless that is said already. */
static void lost_append(dlx_error *error, const char *lost, const dlx_error *not_saved) {
    size_t length = strlen(error->message);
    bool same = not_saved->system_errno != 0 &&
                strstr(error->message, strerror(not_saved->system_errno)) != NULL;
    snprintf(error->message + length, sizeof error->message - length, "; %s%s%s", lost,
             same ? "" : ": ", same ? "" : not_saved->message);
    error->status = not_saved->status; /* which nobody asked for */
}

/* Saves the partial results. */
static void run_end_early(site_run *r, dlx_status why, dlx_error *error) {
    dlx_error not_saved;
    char lost[LOST_BYTES];
    if (r->failed_since_s > 0 && site_hangs(r)) { /* saving is collective */
        dlx_error cause;
        if (dlx_sync_failure(r->sync, &cause) != DLX_OK)
            snprintf(error->message, sizeof error->message, "%.300s; other ranks of this site hang",
                     cause.message);
        return;
    }
    dlxi_mpi_cancel_when(NULL, NULL); /* saving may take longer */
    if (partial_results_save(r, why, lost, &not_saved) != DLX_OK)
        lost_append(error, lost, &not_saved);
}

/* This site's part of the work after the last round; and that of sites that are lost meanwhile. */
static dlx_status end_run(site_run *r, dlx_error *error) {
    dlx_end done = {.size = sizeof done}, now = DLX_END_INIT;
    for (;;) {
        DLX_TRY(dlx_sync_end(r->sync, &now, error));
        if (now.part_count != done.part_count) { /* cut anew */
            done.parts = 0;
            r->val_loss_sum = r->val_tokens = 0;
        }
        DLX_TRY(parts_evaluate(r, "end", now.parts & ~done.parts, now.part_count, &r->val_loss_sum,
                               error));
        if (now.saves && !done.saves) DLX_TRY(weights_save(r, r->config->run.dir, error));
        done = now;
        dlx_status status = report_send(r, error);
        if (status != DLX_AGAIN) return status;
    }
}

static void joining_announce(site_run *r) {
    char text[256];
    const char *coordinator = r->options->coordinator;
    snprintf(text, sizeof text, "joining at %s, waiting for every site",
             coordinator != NULL ? coordinator : r->config->wan.coordinator);
    dlxi_run_say(r, text);
}

static dlx_status site_train(site_run *r, dlx_error *error) {
    dlx_step step = DLX_STEP_INIT;
    dlx_error *room;
    DLX_TRY(place_open(r, error));
    DLX_TRY(DLXI_NEW(&room, r->ranks, error));
    r->gathered = room;
    DLX_TRY(results_check(r, error));
    DLX_TRY(data_open(r, error));
    DLX_TRY(model_open(r, error));
    if (r->options->resume != NULL) DLX_TRY(dlxi_snapshots_resume(r, error));
    if (r->options->hub == NULL) joining_announce(r);
    DLX_TRY(sync_open(r, error));
    DLX_TRY(results_begin(r, error));
    dlx_event joined = {.kind = DLX_EVENT_JOINED, .sites = dlx_sync_site_count(r->sync)};
    event_send(r, &joined);
    r->start_s = dlxi_clock_s() - r->trained_s;
    bool resumes = r->snapshots.resumed != NULL;
    DLX_TRY(dlxi_snapshots_begin(r, error));
    if (!resumes) {
        r->sites = dlx_sync_site_count(r->sync);
        DLX_TRY(parts_evaluate(r, "start", UINT64_C(1) << dlx_sync_site_index(r->sync),
                               dlx_sync_site_count(r->sync), &r->val_loss_initial_sum, error));
        r->val_tokens_initial = r->val_tokens;
    }
    step.finished = dlx_sync_is_finished(r->sync);
    while (!step.finished) DLX_TRY(step_train(r, &step, error));
    return end_run(r, error);
}

dlx_status dlxi_train(const dlxi_config *config, const dlx_train_options *options,
                      dlx_error *error) {
    site_run *r;
    dlx_error own;
    if (error == NULL) error = &own;
    DLX_TRY(dlxi_config_check(config, error));
    DLX_TRY(dlxi_config_check_coordinator(config, options->coordinator, error));
    DLX_TRY(DLXI_NEW(&r, 1, error));
    r->config = config;
    r->options = options;
    r->folder = (dlxi_folder)DLXI_FOLDER_NONE;
    dlx_status status = site_train(r, error);
    if (status != DLX_OK) {
        if (r->sync != NULL && status != DLX_INTERRUPTED) dlx_sync_fail(r->sync, error->message);
        run_end_early(r, status, error);
        status = error->status;
        (void)line_write(r, dlxi_notice_make(error->message, 0), NULL);
    }
    /* collective; a failed rank is about to end MPI */
    if (status == DLX_OK) dlxi_grid_close(&r->grid);
    run_close(r);
    free(r);
    return status;
}
