#include "train/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/flag.h"
#include "base/hash.h"
#include "base/memory.h"
#include "checkpoint/checkpoint.h"
#include "data/sampler.h"
#include "train/results.h"
#include "train/tools.h"

enum { PACE_MAX = 10 };

/* One site at work; the fields of a kind together. */
typedef struct site_run {
    const dlxi_config *config;
    const dlx_train_options *options;
    char folder[DLXI_PATH_BYTES];

    dlxi_shard *train_shard, *validation_shard;
    dlxi_sampler sampler;
    dlxi_kernels *kernels;
    dlxi_stage *stage;
    dlxi_optimizer *optimizer;
    dlxi_parameter *parameters;
    int64_t parameter_count;
    dlx_tensor *tensors;
    float **gradients;
    dlx_sync *sync;
    dlxi_metrics *metrics;

    uint64_t *positions;        /* [batch] */
    int64_t *micro_positions;   /* [micro_batch] */
    uint32_t *tokens, *targets; /* [micro_batch, T] */

    uint64_t steps;
    double start_s, compute_s, wait_s;
    double recent_s, recent_tokens; /* of the speed shown: decaying sums */
    double val_loss_sum, val_loss_initial_sum, val_tokens;
    double exchange_steps; /* Σ over rounds of the steps that an exchange took */
    uint64_t exchange_rounds;
} site_run;

static bool interrupted(const site_run *r) {
    return dlxi_flag_is_set(r->options->interrupted);
}

static void tell(const site_run *r, dlx_event *event) {
    event->site = r->options->site;
    if (r->options->on_event != NULL) r->options->on_event(r->options->context, event);
}

static void on_log(void *context, const char *line) {
    dlx_event event = {.kind = DLX_EVENT_MESSAGE, .text = line};
    tell(context, &event);
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static dlx_status open_data(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    DLX_TRY(dlxi_shard_open(&r->train_shard, "data.train", c->data.train, error));
    DLX_TRY(dlxi_shard_open(&r->validation_shard, "data.validation", c->data.validation, error));
    DLX_TRY(dlxi_shard_check_vocabulary(r->train_shard, c->model.vocabulary, error));
    DLX_TRY(dlxi_shard_check_vocabulary(r->validation_shard, c->model.vocabulary, error));
    DLX_TRY(dlxi_shard_check_same_tokenizer(r->validation_shard, r->train_shard, error));
    return dlxi_sampler_open(&r->sampler, r->train_shard, c->model.context, (uint64_t)c->run.seed, error);
}

static dlx_status open_model(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    static const char *const backends[] = {"auto", "fast", "ref"};
    dlxi_model_config model = dlxi_config_model(c);
    dlxi_stage_options stage =
        dlxi_stage_options_whole(&model, c->train.micro_batch, c->model.context, (uint64_t)c->run.seed);
    dlxi_optimizer_options optimizer = dlxi_optimizer_options_default((dlxi_optimizer_kind)c->train.optimizer);
    optimizer.weight_decay = (float)c->train.weight_decay;
    optimizer.clip_norm = (float)c->train.clip_norm;
    DLX_TRY(dlxi_kernels_open(&r->kernels, backends[c->train.backend], (dlxi_precision)c->train.precision,
                              (int)c->site.threads, error));
    DLX_TRY(dlxi_stage_open(&r->stage, &model, &stage, r->kernels, error));
    r->parameters = dlxi_stage_parameters(r->stage, &r->parameter_count);
    DLX_TRY(dlxi_optimizer_open(&r->optimizer, &optimizer, r->parameters, r->parameter_count, r->kernels, error));
    DLX_TRY(DLXI_NEW(&r->tensors, r->parameter_count, error));
    DLX_TRY(DLXI_NEW(&r->gradients, r->parameter_count, error));
    for (int64_t i = 0; i < r->parameter_count; i++) {
        const dlxi_parameter *p = &r->parameters[i];
        bool table = p->tensor.in_embedding || p->tensor.in_head;
        r->tensors[i] = (dlx_tensor){.name = p->tensor.name,
                                     .data = p->data,
                                     .rows = p->tensor.rows,
                                     .cols = p->tensor.cols,
                                     .plain = table && !c->sync.compression.tables};
        r->gradients[i] = p->gradient;
    }
    size_t window_tokens = (size_t)(c->train.micro_batch * c->model.context);
    DLX_TRY(DLXI_NEW(&r->positions, c->train.batch, error));
    DLX_TRY(DLXI_NEW(&r->micro_positions, c->train.micro_batch, error));
    DLX_TRY(DLXI_NEW(&r->tokens, window_tokens, error));
    return DLXI_NEW(&r->targets, window_tokens, error);
}

dlx_status dlxi_config_link(dlx_link_config *out, char listen[128], const dlxi_config *config, const char *coordinator,
                            dlx_hub *hub, dlx_error *error) {
    *out = (dlx_link_config){.hub = hub,
                             .coordinator = coordinator != NULL ? coordinator : config->wan.coordinator,
                             .listen_host = listen,
                             .unencrypted = config->wan.security == 1,
                             .key_path = config->wan.key,
                             .roster_path = config->wan.roster};
    snprintf(listen, 128, "%s", config->wan.listen);
    char *colon = strrchr(listen, ':');
    if (colon != NULL && (listen[0] != '[' || colon[-1] == ']')) {
        char *end;
        long port = strtol(colon + 1, &end, 10);
        if (*end != '\0' || port < 0 || port > 65535 - 64)
            DLX_FAIL(error, CONFIG, "wan.listen: '%s' is no host:port; the port is 0 to 65471", config->wan.listen);
        out->listen_port = (uint16_t)port;
        *colon = '\0';
    }
    return DLX_OK;
}

static dlx_status open_sync(site_run *r, dlx_error *error) {
    const dlxi_config *c = r->config;
    dlx_sync_config sync = DLX_SYNC_CONFIG_INIT;
    char listen[128], *shared_text = NULL;
    DLX_TRY(dlxi_config_link(&sync.link, listen, c, r->options->coordinator, r->options->hub, error));
    DLX_TRY(dlxi_options_print_canonical(&shared_text, c, &dlxi_config_table, error));
    sync.site = r->options->site;
    sync.shared_text = shared_text;
    sync.seed = (uint64_t)c->run.seed;
    sync.overlap = (dlx_overlap)c->sync.overlap;
    sync.inner_steps = (uint32_t)c->sync.inner_steps;
    sync.inner_steps_min = (uint32_t)c->sync.inner_steps_min;
    sync.inner_steps_max = (uint32_t)c->sync.inner_steps_max;
    sync.exchange_steps = (uint32_t)c->sync.exchange_steps;
    /* a gradient mean has no rounds; long leases would only part its windows from those of one site with the whole
     * batch */
    if (c->sync.pace == DLXI_PACE_RATE && sync.overlap != DLX_OVERLAP_ALLREDUCE) sync.pace_max = PACE_MAX;
    if (!dlxi_option_is_auto(c->sync.outer_learning_rate)) sync.outer_learning_rate = c->sync.outer_learning_rate;
    if (!dlxi_option_is_auto(c->sync.outer_momentum)) sync.outer_momentum = c->sync.outer_momentum;
    sync.adaptation = (dlx_adaptation)c->sync.adaptation;
    sync.rank_columns = (int)c->sync.compression.rank;
    sync.rank_min = (int)c->sync.compression.rank_min;
    sync.rank_max = (int)c->sync.compression.rank_max;
    sync.bits = dlxi_config_bits(c);
    sync.group = (int)c->sync.compression.group;
    sync.error_feedback = c->sync.compression.error_feedback;
    sync.keep_unsent = c->sync.compression.keep_unsent;
    sync.windows = (uint64_t)r->sampler.windows;
    sync.tokens_per_window = (uint64_t)c->model.context;
    sync.data_hash = dlxi_hash(r->train_shard->payload, (size_t)r->train_shard->count * r->train_shard->token_bytes, 0);
    sync.windows_per_step = (uint32_t)c->train.batch;
    sync.timeout_ms = (uint32_t)(c->wan.timeout_s * 1000);
    sync.log = on_log;
    sync.log_context = r;
    sync.interrupted = r->options->interrupted;
    dlx_status status = dlx_sync_open(&r->sync, &sync, r->tensors, (size_t)r->parameter_count, error);
    free(shared_text);
    if (status == DLX_OK) dlxi_stage_parameters_changed(r->stage);
    return status;
}

static dlx_status open_results(site_run *r, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    DLX_TRY(dlxi_path_join(r->folder, r->config->run.dir, NULL, r->options->site, error));
    DLX_TRY(dlxi_folder_make(r->folder, error));
    DLX_TRY(dlxi_path_join(path, r->folder, NULL, "summary.json", error));
    (void)remove(path); /* an earlier run's says nothing of this one */
    DLX_TRY(dlxi_path_join(path, r->folder, NULL, "metrics.jsonl", error));
    return dlxi_metrics_open(&r->metrics, path, error);
}

static void close_run(site_run *r) {
    dlx_sync_close(&r->sync);
    dlxi_metrics_close(&r->metrics);
    free(r->tensors);
    free(r->gradients);
    free(r->positions);
    free(r->micro_positions);
    free(r->tokens);
    free(r->targets);
    dlxi_optimizer_close(&r->optimizer);
    dlxi_stage_close(&r->stage);
    dlxi_kernels_close(&r->kernels);
    dlxi_shard_close(&r->train_shard);
    dlxi_shard_close(&r->validation_shard);
}

/* ---- evaluation ------------------------------------------------------------------------------------------------ */

/* This site's part of the validation windows: its loss, summed over tokens. */
static dlx_status evaluate(site_run *r, const char *of, double *loss_sum, dlx_error *error) {
    const dlxi_config *c = r->config;
    dlxi_validation reader;
    double tokens;
    DLX_TRY(dlxi_validation_open(&reader, r->validation_shard, c->model.context, (int64_t)c->train.eval_tokens,
                                 dlx_sync_site_index(r->sync), dlx_sync_site_count(r->sync), error));
    DLX_TRY(dlxi_evaluate_part(loss_sum, &tokens, r->stage, &reader, r->options->interrupted, error));
    r->val_tokens = tokens;
    dlx_event event = {.kind = DLX_EVENT_EVALUATED, .text = of, .loss = *loss_sum / tokens, .step = r->steps};
    tell(r, &event);
    return dlxi_metrics_write(r->metrics,
                              json_pack("{s:s, s:s, s:I, s:o, s:f}", "event", "evaluation", "of", of, "step",
                                        (json_int_t)r->steps, "loss", dlxi_json_real(event.loss), "tokens", tokens),
                              error);
}

/* ---- steps ----------------------------------------------------------------------------------------------------- */

/* Forward and backward of one inner step's windows. */
static dlx_status accumulate(site_run *r, double *loss, dlx_error *error) {
    const dlxi_config *c = r->config;
    int64_t B = c->train.micro_batch, micro_batches = c->train.batch / B;
    DLX_TRY(dlx_sync_windows(r->sync, r->positions, (uint32_t)c->train.batch, error));
    dlxi_stage_zero_gradients(r->stage);
    *loss = 0;
    for (int64_t m = 0; m < micro_batches; m++) {
        if (interrupted(r)) DLX_FAIL(error, INTERRUPTED, "interrupted");
        double part;
        for (int64_t i = 0; i < B; i++) r->micro_positions[i] = (int64_t)r->positions[m * B + i];
        dlxi_sampler_batch(r->tokens, r->targets, &r->sampler, r->micro_positions, B);
        DLX_TRY(dlxi_stage_forward(r->stage, 0, r->tokens, NULL, r->targets, &part, error));
        DLX_TRY(dlxi_stage_backward(r->stage, 0, NULL, error));
        *loss += part / (double)micro_batches;
    }
    return DLX_OK;
}

static dlx_status step_metrics(site_run *r, const dlx_step *step, double loss, double norm, float rate,
                               dlx_error *error) {
    dlx_statistics st;
    dlx_sync_statistics(r->sync, &st);
    json_t *line = json_pack("{s:s, s:f, s:I, s:o, s:o, s:f, s:I, s:I}", "event", "step", "time_s",
                             dlxi_clock_s() - r->start_s, "step", (json_int_t)r->steps, "loss", dlxi_json_real(loss),
                             "gradient_norm", dlxi_json_real(norm), "learning_rate", (double)rate, "tokens",
                             (json_int_t)dlx_sync_tokens(r->sync), "round", (json_int_t)step->round);
    DLX_TRY(dlxi_metrics_write(r->metrics, line, error));
    if (!step->applied && !step->handed_out) return DLX_OK;
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)st.anchor_hash);
    line = json_pack("{s:s, s:f, s:I, s:b, s:b, s:f, s:I, s:I, s:f, s:f, s:I, s:I, s:f, s:s}", "event", "round",
                     "time_s", dlxi_clock_s() - r->start_s, "step", (json_int_t)r->steps, "handed_out",
                     step->handed_out, "applied", step->applied, "waited_s", step->waited_s, "committed_rounds",
                     (json_int_t)st.rounds, "committed_tokens", (json_int_t)st.committed_tokens, "rank_mean",
                     st.rank_mean, "update_norm", st.update_norm, "inner_steps", (json_int_t)step->inner_steps,
                     "wan_bytes_sent", (json_int_t)st.wan_bytes_sent, "exchange_s", st.exchange_s, "anchor_hash", hash);
    return dlxi_metrics_write(r->metrics, line, error);
}

static void show_step(site_run *r, const dlx_step *step, double loss, float rate, double step_s) {
    const double memory = 0.9; /* of the shown speed: about the last ten steps */
    double tokens = (double)(r->config->train.batch * r->config->model.context);
    dlx_statistics st;
    dlx_sync_statistics(r->sync, &st);
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
                       .rank_mean = st.rank_mean,
                       .wan_bytes_sent = st.wan_bytes_sent,
                       .utilization = r->compute_s / fmax(r->compute_s + r->wait_s, 1e-9),
                       .left_s = done >= target ? 0 : (double)(target - done) / (speed * dlx_sync_site_count(r->sync))};
    tell(r, &event);
}

static void count_exchange(site_run *r, const dlx_step *step) {
    if (!step->applied) return;
    r->exchange_steps += step->exchange_steps;
    r->exchange_rounds++;
}

static dlx_status train_step(site_run *r, dlx_step *step, dlx_error *error) {
    const dlxi_config *c = r->config;
    const bool gradients = c->sync.overlap == DLX_OVERLAP_ALLREDUCE;
    const uint64_t tokens = (uint64_t)(c->train.batch * c->model.context);
    const dlxi_schedule schedule = {.peak = (float)c->train.learning_rate,
                                    .final_share = (float)c->train.final_learning_rate,
                                    .warmup_tokens = (int64_t)c->train.warmup_tokens,
                                    .total_tokens = (int64_t)dlx_sync_tokens_target(r->sync)};
    float scale = (float)c->train.micro_batch / (float)c->train.batch;
    double loss, norm, begun_s = dlxi_clock_s(), sync_s = 0;
    int64_t step_tokens = (int64_t)(tokens * dlx_sync_site_count(r->sync));
    float rate = dlxi_schedule_rate(&schedule, (int64_t)dlx_sync_tokens(r->sync) + step_tokens);
    if (c->sync.pace == DLXI_PACE_RATE && dlx_sync_tokens(r->sync) >= (uint64_t)c->train.warmup_tokens)
        dlx_sync_pace(r->sync, (double)schedule.peak / (double)rate);
    DLX_TRY(accumulate(r, &loss, error));
    if (gradients) {
        double before_s = dlxi_clock_s();
        DLX_TRY(dlx_sync_gradients(r->sync, r->gradients, tokens, NULL, error));
        sync_s = dlxi_clock_s() - before_s;
    }
    dlx_status status = dlxi_optimizer_step(r->optimizer, rate, scale, &norm, error);
    if (status != DLX_OK) {
        dlxi_error_prefix(error, "step %llu, loss %g: ", (unsigned long long)r->steps + 1, loss);
        return status;
    }
    r->steps++;
    double before_s = dlxi_clock_s();
    DLX_TRY(dlx_sync_step(r->sync, tokens, step, error));
    double now_s = dlxi_clock_s();
    sync_s += now_s - before_s;
    dlxi_stage_parameters_changed(r->stage);
    r->wait_s += sync_s;
    r->compute_s += now_s - begun_s - sync_s;
    count_exchange(r, step);
    show_step(r, step, loss, rate, now_s - begun_s);
    return step_metrics(r, step, loss, norm, rate, error);
}

/* ---- the end --------------------------------------------------------------------------------------------------- */

static json_t *summarize(site_run *r, const char *outcome) {
    const dlxi_config *c = r->config;
    dlx_statistics st = {0};
    struct rusage usage = {0};
    getrusage(RUSAGE_SELF, &usage);
    if (r->sync != NULL) dlx_sync_statistics(r->sync, &st);
    double D = r->sync != NULL ? dlx_sync_site_count(r->sync) : 1, wall_s = dlxi_clock_s() - r->start_s;
    double step_tokens = (double)(c->train.batch * c->model.context), trained = (double)r->steps * step_tokens;
    /* for the steps that count: what was trained past the run's end was thrown away */
    double equivalent = (double)st.committed_tokens / (D * step_tokens) * 2 * (double)st.raw_bytes * (D - 1) / D;
    char hash[17];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)st.anchor_hash);
    json_t *s = json_pack("{s:i, s:s, s:s, s:s, s:i, s:i, s:i}", "version", DLXI_SUMMARY_VERSION, "site",
                          r->options->site, "status", outcome, "overlap", dlxi_config_overlap_name(c), "sites", (int)D,
                          "stages", (int)c->site.stages, "replicas", (int)c->site.replicas);
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
        /* a run that ended early has none of the end */
        {"val_loss", dlxi_json_real(r->val_loss_sum > 0 ? r->val_loss_sum / r->val_tokens : (double)NAN)},
        {"val_loss_initial", dlxi_json_real(r->val_loss_initial_sum / r->val_tokens)},
        {"val_loss_sum", dlxi_json_real(r->val_loss_sum)},
        {"val_loss_initial_sum", dlxi_json_real(r->val_loss_initial_sum)},
        {"val_tokens", dlxi_json_real(r->val_tokens)},
        {"wall_s", json_real(wall_s)},
        {"tokens_per_s", dlxi_json_real(trained / (r->compute_s + r->wait_s))},
        {"peak_rss_bytes", json_integer((json_int_t)usage.ru_maxrss * 1024)},
        {"compute_s", json_real(r->compute_s)},
        {"wait_s", json_real(r->wait_s)},
        {"utilization", dlxi_json_real(r->compute_s / (r->compute_s + r->wait_s))},
        {"wan_bytes_sent", json_integer((json_int_t)st.wan_bytes_sent)},
        {"wan_bytes_received", json_integer((json_int_t)st.wan_bytes_received)},
        {"allreduce_bytes_equivalent", json_integer((json_int_t)equivalent)},
        {"compression_ratio", dlxi_json_real(equivalent / (double)st.wan_bytes_sent)},
        {"codec_ratio", dlxi_json_real((double)st.rounds * (double)st.raw_bytes / (double)st.payload_bytes)},
        {"outer_learning_rate", json_real(st.outer_learning_rate)},
        {"outer_momentum", json_real(st.outer_momentum)},
        {"inner_steps", json_integer((json_int_t)st.inner_steps)},
        {"rank_mean", json_real(st.rank_mean)},
        {"exchange_s_mean", dlxi_json_real(st.exchange_total_s / (double)st.rounds)},
        {"exchange_steps_mean", dlxi_json_real(r->exchange_steps / (double)r->exchange_rounds)},
        {"anchor_hash", json_string(hash)},
    };
    for (size_t k = 0; k < sizeof fields / sizeof *fields; k++) json_object_set_new(s, fields[k].key, fields[k].value);
    return s;
}

static dlx_status save_weights(site_run *r, const char *folder, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    dlxi_model_config model = dlxi_config_model(r->config);
    DLX_TRY(dlxi_path_join(path, folder, NULL, "weights", error));
    DLX_TRY(dlxi_checkpoint_save(path, &model, r->parameters, r->parameter_count, error));
    dlx_event event = {.kind = DLX_EVENT_MESSAGE, .text = path};
    char text[DLXI_PATH_BYTES + 32];
    snprintf(text, sizeof text, "weights saved in %s", path);
    event.text = text;
    tell(r, &event);
    return DLX_OK;
}

static dlx_status report(site_run *r, dlx_error *error) {
    json_t *summary = summarize(r, "done");
    char *text = json_dumps(summary, JSON_COMPACT);
    char path[DLXI_PATH_BYTES];
    dlx_status status = text != NULL ? DLX_OK : dlxi_error_set(error, DLX_MEMORY, "out of memory for the summary");
    if (status == DLX_OK) status = dlxi_path_join(path, r->folder, NULL, "summary.json", error);
    if (status == DLX_OK) status = dlxi_summary_write(path, summary, error);
    if (status == DLX_OK) status = dlx_sync_report(r->sync, text, error);
    free(text);
    json_decref(summary);
    return status;
}

/* A run that ends early leaves what it has: the anchor of the last commit, and a summary that says why. Every site
 * keeps the anchor, since who ended the run need not be the first, and the first may be gone. */
static void save_what_there_is(site_run *r, dlx_status why) {
    char path[DLXI_PATH_BYTES];
    if (r->sync == NULL || r->metrics == NULL || r->steps == 0) return;
    if (why != DLX_NUMERIC && why != DLX_DIVERGED) {
        dlx_sync_take_anchor(r->sync);
        (void)save_weights(r, dlx_sync_site_index(r->sync) == 0 ? r->config->run.dir : r->folder, NULL);
    }
    json_t *summary = summarize(r, why == DLX_INTERRUPTED ? "interrupted" : "failed");
    if (dlxi_path_join(path, r->folder, NULL, "summary.json", NULL) == DLX_OK)
        (void)dlxi_summary_write(path, summary, NULL);
    json_decref(summary);
}

static void tell_joining(const site_run *r) {
    char text[256];
    const char *coordinator = r->options->coordinator;
    snprintf(text, sizeof text, "joining at %s, waiting for every site",
             coordinator != NULL ? coordinator : r->config->wan.coordinator);
    dlx_event event = {.kind = DLX_EVENT_MESSAGE, .text = text};
    tell(r, &event);
}

static dlx_status run_site(site_run *r, dlx_error *error) {
    dlx_step step = {0};
    DLX_TRY(open_results(r, error));
    DLX_TRY(open_data(r, error));
    DLX_TRY(open_model(r, error));
    if (r->options->hub == NULL) tell_joining(r);
    DLX_TRY(open_sync(r, error));
    dlx_event joined = {.kind = DLX_EVENT_JOINED, .step = dlx_sync_site_count(r->sync)};
    tell(r, &joined);
    r->start_s = dlxi_clock_s();
    DLX_TRY(evaluate(r, "start", &r->val_loss_initial_sum, error));
    while (!step.finished) {
        if (interrupted(r)) DLX_FAIL(error, INTERRUPTED, "interrupted");
        DLX_TRY(train_step(r, &step, error));
    }
    DLX_TRY(evaluate(r, "end", &r->val_loss_sum, error));
    if (dlx_sync_site_index(r->sync) == 0) DLX_TRY(save_weights(r, r->config->run.dir, error));
    return report(r, error);
}

dlx_status dlxi_train(const dlxi_config *config, const dlx_train_options *options, dlx_error *error) {
    site_run *r;
    dlx_error own;
    if (error == NULL) error = &own;
    DLX_TRY(dlxi_config_check(config, error));
    DLX_TRY(DLXI_NEW(&r, 1, error));
    r->config = config;
    r->options = options;
    r->start_s = dlxi_clock_s();
    dlx_status status = run_site(r, error);
    if (status != DLX_OK) {
        if (r->sync != NULL && status != DLX_INTERRUPTED) dlx_sync_fail(r->sync, error->message);
        save_what_there_is(r, status);
    }
    close_run(r);
    free(r);
    return status;
}
