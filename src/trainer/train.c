/* SPDX-License-Identifier: Apache-2.0 */
/* Tier 2: validate, translate, delegate. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/sized.h"
#include "data/tokenize.h"
#include "link/links.h"
#include "train/run.h"
#include "train/tools.h"

struct dlx_config {
    dlxi_config values;
};

dlx_status dlx_config_open(dlx_config **out, dlx_error *error) {
    DLXI_NOT_NULL(out);
    DLX_TRY(DLXI_NEW(out, 1, error));
    dlxi_config_set_defaults(&(*out)->values);
    return DLX_OK;
}

void dlx_config_close(dlx_config **config) {
    if (config == NULL) return;
    free(*config);
    *config = NULL;
}

dlx_status dlx_config_load(dlx_config *config, const char *path, dlx_error *error) {
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(path);
    return dlxi_options_load_file(&config->values, &dlxi_config_table, path, error);
}

dlx_status dlx_config_set(dlx_config *config, const char *assignment, dlx_error *error) {
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(assignment);
    return dlxi_options_set(&config->values, &dlxi_config_table, assignment, error);
}

dlx_status dlx_config_check(const dlx_config *config, dlx_error *error) {
    DLXI_NOT_NULL(config);
    return dlxi_config_check(&config->values, error);
}

dlx_status dlx_config_print(char **text, const dlx_config *config, dlx_error *error) {
    DLXI_NOT_NULL(text);
    return dlxi_options_print_yaml(text, config == NULL ? NULL : &config->values,
                                   &dlxi_config_table, error);
}

dlx_status dlx_config_help(char **text, dlx_error *error) {
    DLXI_NOT_NULL(text);
    return dlxi_options_print_help(text, &dlxi_config_table, error);
}

const char *dlx_config_run_dir(const dlx_config *config) {
    return config != NULL ? config->values.run.dir : NULL;
}

const char *dlx_config_coordinator(const dlx_config *config) {
    return config != NULL ? config->values.wan.coordinator : NULL;
}

bool dlx_config_encrypted(const dlx_config *config) {
    return config != NULL && config->values.wan.security == DLXI_SECURITY_CURVE;
}

uint32_t dlx_config_sites_min(const dlx_config *config) {
    return config != NULL ? config->values.coordinator.sites_min : 0;
}

const char *dlx_config_link(const dlx_config *config) {
    return config != NULL ? dlxi_link_word(config->values.wan.link) : NULL;
}

bool dlx_config_in_process(const dlx_config *config) {
    return config != NULL && dlxi_link_is_of_threads(config->values.wan.link);
}

bool dlx_config_one_job(const dlx_config *config) {
    return config != NULL && dlxi_link_is_of_job(config->values.wan.link);
}

uint32_t dlx_config_ranks(const dlx_config *config) {
    if (config == NULL) return 0;
    return (uint32_t)(config->values.site.stages * config->values.site.replicas);
}

void dlx_config_rank_name(char text[64], const dlx_config *config, uint32_t job_rank) {
    if (text == NULL || config == NULL) return;
    uint32_t rank = job_rank % dlx_config_ranks(config),
             replicas = (uint32_t)config->values.site.replicas;
    snprintf(text, 64, "rank %u (stage %u, replica %u)", rank, rank / replicas, rank % replicas);
}

static const dlx_train_options train_default = DLX_TRAIN_OPTIONS_INIT;
static const dlx_coordinate_options coordinate_default = DLX_COORDINATE_OPTIONS_INIT;

void dlx_train_options_default(dlx_train_options *options, size_t size) {
    dlxi_sized_default(options, size, &train_default, sizeof train_default);
}

void dlx_coordinate_options_default(dlx_coordinate_options *options, size_t size) {
    dlxi_sized_default(options, size, &coordinate_default, sizeof coordinate_default);
}

dlx_status dlx_train(const dlx_config *config, const dlx_train_options *options, dlx_error *error) {
    dlx_train_options own = train_default;
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(options);
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_train_options, coordinator), options,
                            "DLX_TRAIN_OPTIONS_INIT", error));
    if (own.site == NULL) DLX_FAIL(error, ARGUMENT, "site is NULL; name this site");
    if (own.job_sites < 1)
        DLX_FAIL(error, ARGUMENT, "job_sites: 0 is out of range; allowed: 1 or more");
    return dlxi_train(&config->values, &own, error);
}

dlx_status dlx_coordinate(const dlx_config *config, const dlx_coordinate_options *options,
                          dlx_error *error) {
    dlx_coordinate_options own = coordinate_default;
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(options);
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_coordinate_options, coordinator),
                            options, "DLX_COORDINATE_OPTIONS_INIT", error));
    return dlxi_coordinate(&config->values, &own, error);
}

static const dlx_evaluate_options evaluate_default = DLX_EVALUATE_OPTIONS_INIT;
static const dlx_generate_options generate_default = DLX_GENERATE_OPTIONS_INIT;

void dlx_evaluate_options_default(dlx_evaluate_options *options, size_t size) {
    dlxi_sized_default(options, size, &evaluate_default, sizeof evaluate_default);
}

void dlx_generate_options_default(dlx_generate_options *options, size_t size) {
    dlxi_sized_default(options, size, &generate_default, sizeof generate_default);
}

dlx_status dlx_evaluate(double *loss, uint64_t *tokens_used, const char *checkpoint,
                        const char *data, const dlx_evaluate_options *options, dlx_error *error) {
    dlx_evaluate_options own = evaluate_default;
    DLXI_NOT_NULL(loss);
    DLXI_NOT_NULL(tokens_used);
    DLXI_NOT_NULL(checkpoint);
    DLXI_NOT_NULL(data);
    DLXI_NOT_NULL(options);
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_evaluate_options, tokens), options,
                            "DLX_EVALUATE_OPTIONS_INIT", error));
    return dlxi_evaluate(loss, tokens_used, checkpoint, data, &own, error);
}

dlx_status dlx_generate(char **text, size_t *text_bytes, const char *checkpoint,
                        const dlx_generate_options *options, dlx_error *error) {
    dlx_generate_options own = generate_default;
    DLXI_NOT_NULL(text);
    *text = NULL;
    DLXI_NOT_NULL(text_bytes);
    DLXI_NOT_NULL(checkpoint);
    DLXI_NOT_NULL(options);
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_generate_options, prompt), options,
                            "DLX_GENERATE_OPTIONS_INIT", error));
    return dlxi_generate(text, text_bytes, checkpoint, &own, error);
}

dlx_status dlx_tokenize(const char *out_path, const char *in_path, uint32_t validation_every,
                        uint32_t block_bytes, uint64_t *train_tokens, uint64_t *validation_tokens,
                        dlx_error *error) {
    DLXI_NOT_NULL(out_path);
    DLXI_NOT_NULL(in_path);
    dlxi_tokenizer *tokenizer;
    dlxi_tokenize_report report;
    dlxi_tokenize_options options = DLXI_TOKENIZE_OPTIONS_INIT;
    options.validation_every = validation_every;
    if (block_bytes != 0) options.block_bytes = block_bytes;
    DLX_TRY(dlxi_tokenizer_open(&tokenizer, "byte", error));
    dlx_status status = dlxi_tokenize(out_path, in_path, tokenizer, &options, &report, error);
    dlxi_tokenizer_close(&tokenizer);
    if (status != DLX_OK) return status;
    if (train_tokens != NULL) *train_tokens = (uint64_t)report.train_tokens;
    if (validation_tokens != NULL) *validation_tokens = (uint64_t)report.validation_tokens;
    return DLX_OK;
}

dlx_status dlx_inspect(const char *path, dlx_log line, void *context, dlx_error *error) {
    DLXI_NOT_NULL(path);
    DLXI_NOT_NULL(line);
    return dlxi_inspect(path, line, context, error);
}

static const dlx_bench_step_options bench_default = DLX_BENCH_STEP_OPTIONS_INIT;

dlx_status dlx_bench_step(dlx_bench_step_result *result, const dlx_bench_step_options *options,
                          dlx_error *error) {
    dlx_bench_step_options given = bench_default;
    DLXI_NOT_NULL(result);
    DLXI_NOT_NULL(options);
    DLX_TRY(dlxi_sized_read(&given, sizeof given, sizeof given, options,
                            "DLX_BENCH_STEP_OPTIONS_INIT", error));
    if ((unsigned)given.shape >= DLX_BENCH_SHAPES || given.batch > 4096 || given.length == 1 ||
        given.length > 1024 || given.steps < 1 || given.steps > 1000 || given.threads < 1)
        DLX_FAIL(error, ARGUMENT,
                 "shape is one of %d, batch 1 to 4096, length 2 to 1024, steps 1 to 1000, threads "
                 "1 and more",
                 DLX_BENCH_SHAPES);
    return dlxi_bench_step(result, &given, error);
}

dlx_status dlx_bench_model(dlx_bench_model_result *result, uint32_t batch, uint32_t length,
                           uint32_t steps, int threads, bool f32, dlx_error *error) {
    dlx_bench_step_options options = bench_default;
    dlx_bench_step_result step;
    DLXI_NOT_NULL(result);
    options.batch = batch, options.length = length, options.steps = steps;
    options.threads = threads, options.f32 = f32;
    if (batch < 1 || length < 1) DLX_FAIL(error, ARGUMENT, "batch and length are 1 and more");
    DLX_TRY(dlx_bench_step(&step, &options, error));
    const double model_flops = 6.0 * (double)step.parameters * batch * length;
    *result = (dlx_bench_model_result){.backend = step.backend,
                                       .precision = step.precision,
                                       .parameters = step.parameters,
                                       .step_s_median = step.step_s_median,
                                       .step_s_min = step.step_s_min,
                                       .step_s_max = step.step_s_max,
                                       .model_flops_per_s = model_flops / step.step_s_median,
                                       .product_flops_per_s = step.product_flops_per_s,
                                       .share = model_flops / step.step_s_median /
                                                step.product_flops_per_s};
    return DLX_OK;
}

dlx_status dlx_bench_stages(dlx_bench_stages_result *result, const dlx_config *config,
                            uint32_t stages, dlx_error *error) {
    DLXI_NOT_NULL(result);
    DLXI_NOT_NULL(config);
    if (stages < 1 || stages > DLXI_STAGES_MAX)
        DLX_FAIL(error, ARGUMENT, "stages: %u is out of range; allowed: 1 to %d", stages,
                 DLXI_STAGES_MAX);
    return dlxi_bench_stages(result, &config->values, (int)stages, error);
}

static const dlx_plan_options plan_default = DLX_PLAN_OPTIONS_INIT;

void dlx_plan_options_default(dlx_plan_options *options, size_t size) {
    dlxi_sized_default(options, size, &plan_default, sizeof plan_default);
}

dlx_status dlx_plan(dlx_plan_result *result, const dlx_config *config,
                    const dlx_plan_options *options, dlx_error *error) {
    dlx_plan_options own = plan_default;
    DLXI_NOT_NULL(result);
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(options);
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_plan_options, link_bytes_per_s), options,
                            "DLX_PLAN_OPTIONS_INIT", error));
    if (own.sites < 1 || own.sites > DLXI_SITES_MAX)
        DLX_FAIL(error, ARGUMENT, "sites: %u is out of range; allowed: 1 to %d", own.sites,
                 DLXI_SITES_MAX);
    if (!(own.link_bytes_per_s > 0 && own.delay_s >= 0 && own.delay_s <= 60))
        DLX_FAIL(error, ARGUMENT, "link: its rate is above 0, its delay 0 to 60 s");
    if (!(own.step_s > 0 || (own.step_s == 0 && own.flops_per_s > 0)))
        DLX_FAIL(error, ARGUMENT, "a step's time, or a rank's rate of operations, is above 0");
    if (!(own.host_bytes_per_s > 0 && own.seconds >= 0 && own.shares_core <= 1))
        DLX_FAIL(error, ARGUMENT,
                 "host_bytes_per_s is above 0, seconds at least 0, shares_core 0 or 1");
    return dlxi_plan(result, &config->values, &own, error);
}
