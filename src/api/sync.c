/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_sync: validate, translate, delegate. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/link_config.h"
#include "base/hash.h"
#include "outer/method.h"
#include "sync/sync.h"
#include "wire/messages.h"

#define IN_RANGE(field, low, high)                                                                 \
    do {                                                                                           \
        double in_range_value_ = (double)config->field;                                            \
        if (!(in_range_value_ >= (low) && in_range_value_ <= (high)))                              \
            DLX_FAIL(error, CONFIG, #field ": %.10g is out of range; allowed: %.10g to %.10g",     \
                     in_range_value_, (double)(low), (double)(high));                              \
    } while (0)

/* Inner steps that a round may have. `none` never trains past H. */
static uint32_t steps_at_most(const dlx_sync_config *config) {
    if (config->overlap == DLX_OVERLAP_ALLREDUCE) return 1;
    if (config->overlap == DLX_OVERLAP_NONE) return config->inner_steps;
    return config->inner_steps_max != 0 ? config->inner_steps_max
                                        : config->inner_steps + config->inner_steps / 2;
}

/* … where it is paced. */
static uint32_t longest_round(const dlx_sync_config *config) {
    return (uint32_t)ceil(steps_at_most(config) * config->pace_max);
}

static dlx_status check_config(const dlx_sync_config *config, dlx_error *error) {
    if (config->size != sizeof *config)
        DLX_FAIL(error, ARGUMENT, "size is %zu, not %zu; begin with DLX_SYNC_CONFIG_INIT",
                 config->size, sizeof *config);
    if (config->site == NULL || config->site[0] == '\0' || strlen(config->site) >= DLXI_NAME_BYTES)
        DLX_FAIL(error, CONFIG, "site: a name of 1 to %d characters is needed",
                 DLXI_NAME_BYTES - 1);
    IN_RANGE(ranks, 1, DLXI_RANKS_MAX);
    IN_RANGE(rank, 0, config->ranks - 1);
    if (config->ranks > 1 && config->gather == NULL)
        DLX_FAIL(error, ARGUMENT, "gather is NULL, and needed with ranks: %u", config->ranks);
    IN_RANGE(overlap, DLX_OVERLAP_ALLREDUCE, DLX_OVERLAP_CARRY);
    IN_RANGE(adaptation, DLX_ADAPTATION_OFF, DLX_ADAPTATION_LINK);
    IN_RANGE(inner_steps, 1, 100000);
    IN_RANGE(inner_steps_min, 1, config->inner_steps);
    if (config->inner_steps_max != 0) IN_RANGE(inner_steps_max, config->inner_steps, 200000);
    IN_RANGE(pace_max, 1, 100);
    IN_RANGE(exchange_steps, 0, config->inner_steps);
    if (config->outer_learning_rate != DLX_AUTO) IN_RANGE(outer_learning_rate, 0, 10);
    if (config->outer_momentum != DLX_AUTO) IN_RANGE(outer_momentum, 0, 0.999);
    IN_RANGE(factor_rank, 0, 1024);
    if (config->factor_rank_min != 0) IN_RANGE(factor_rank_min, 1, config->factor_rank);
    if (config->factor_rank_max != 0) IN_RANGE(factor_rank_max, config->factor_rank, 1024);
    IN_RANGE(group, 2, 1024);
    if (config->group % 2 != 0)
        DLX_FAIL(error, CONFIG, "group: %d is odd; allowed: even, 2 to 1024", config->group);
    if (config->bits != 4 && config->bits != 8 && config->bits != 16 && config->bits != 32)
        DLX_FAIL(error, CONFIG, "bits: %d is out of range; allowed: 4, 8, 16, 32", config->bits);
    IN_RANGE(timeout_ms, 1000, 86400000);
    if (config->windows > 0) {
        IN_RANGE(windows_per_step, 1, 1000000);
        uint32_t longest = longest_round(config);
        if (config->windows_per_step > UINT32_MAX / longest)
            DLX_FAIL(error, CONFIG,
                     "windows_per_step: %u with up to %u inner steps a round is more than a lease "
                     "holds; allowed: up to %u",
                     config->windows_per_step, longest, UINT32_MAX / longest);
    }
    if (config->shared_text != NULL && strlen(config->shared_text) > 65535)
        DLX_FAIL(error, CONFIG, "shared_text is longer than 65535 bytes");
    return DLX_OK;
}

/* One of several ranks may have none. */
static dlx_status check_tensors(const dlx_sync_config *config, const dlx_tensor *tensors,
                                size_t count, dlx_error *error) {
    const uint16_t ranks = config->ranks;
    if (tensors == NULL || count == 0) {
        if (ranks > 1 && count == 0) return DLX_OK;
        DLX_FAIL(error, ARGUMENT, "there are no tensors to synchronise");
    }
    for (size_t i = 0; i < count; i++) {
        const dlx_tensor *t = &tensors[i];
        if (t->name == NULL || t->name[0] == '\0' ||
            (t->memory == DLX_MEMORY_HOST && t->data == NULL))
            DLX_FAIL(error, ARGUMENT, "tensor %zu has no name or no data", i);
        if (t->rows < 1 || t->cols < 1 || t->rows > INT64_MAX / 8 / t->cols ||
            t->rows * t->cols > (INT64_C(1) << 32))
            DLX_FAIL(error, ARGUMENT,
                     "tensor %s: %lld × %lld is no shape; rows and cols are 1 and more", t->name,
                     (long long)t->rows, (long long)t->cols);
        if (t->memory > DLX_MEMORY_CALLER || t->dtype > DLX_F16 || t->kind > DLX_STATISTICS)
            DLX_FAIL(error, ARGUMENT, "tensor %s: memory %d, dtype %d or kind %d is unknown",
                     t->name, (int)t->memory, (int)t->dtype, (int)t->kind);
        if (t->memory == DLX_MEMORY_CALLER && (config->fetch == NULL || config->store == NULL))
            DLX_FAIL(error, ARGUMENT,
                     "tensor %s is in the caller's memory: set fetch and store of the config",
                     t->name);
        if (config->overlap == DLX_OVERLAP_ALLREDUCE && t->kind == DLX_STATISTICS)
            DLX_FAIL(error, ARGUMENT, "tensor %s: allreduce has no statistics; leave it out",
                     t->name);
        if (ranks > 1 && i > 0 && t->id <= tensors[i - 1].id)
            DLX_FAIL(error, ARGUMENT,
                     "tensor %s: id %u after id %u; where a site has several ranks, ids ascend",
                     t->name, t->id, tensors[i - 1].id);
        for (size_t k = 0; k < i; k++)
            if (strcmp(tensors[k].name, t->name) == 0)
                DLX_FAIL(error, ARGUMENT, "two tensors are named %s", t->name);
    }
    return DLX_OK;
}

static void warn_if_unstable(const dlx_sync_config *config, double learning_rate, double momentum) {
    const double limit = 0.99;
    double share =
        config->exchange_steps > 0 ? (double)config->exchange_steps / config->inner_steps : 0.5;
    double c, worst = dlxi_method_worst_mode(dlxi_method_of(config->overlap), learning_rate,
                                             momentum, 4, share, &c);
    if (config->log == NULL || config->rank != 0 || config->overlap == DLX_OVERLAP_ALLREDUCE ||
        worst < limit)
        return;
    char line[256];
    snprintf(line, sizeof line,
             "warning: outer learning rate %g with momentum %g and this overlap: a mode of %.2f "
             "(%s) where local training "
             "goes a share %.2f of its way in a round; lower either, or use auto",
             learning_rate, momentum, worst, worst >= 1 ? "grows" : "fades slowly", c);
    config->log(config->log_context, line);
}

static int or_default(int value, int otherwise) {
    return value != 0 ? value : otherwise;
}

static uint64_t settings_hash(const dlxi_state_settings *s) {
    uint32_t outer_step[2];
    memcpy(&outer_step[0], &s->learning_rate, sizeof s->learning_rate);
    memcpy(&outer_step[1], &s->momentum, sizeof s->momentum);
    const uint64_t settings[] = {s->overlap,
                                 outer_step[0],
                                 outer_step[1],
                                 (uint64_t)s->quantiser.bits,
                                 (uint64_t)s->quantiser.group,
                                 s->seed,
                                 (uint64_t)s->factor_rank,
                                 s->adapt.kind,
                                 (uint64_t)s->adapt.factor_rank_min,
                                 (uint64_t)s->adapt.factor_rank_max,
                                 s->adapt.inner_steps_first,
                                 s->adapt.inner_steps_min};
    return dlxi_hash(settings, sizeof settings, 0);
}

static dlxi_state_settings state_settings(const dlx_sync_config *config, double learning_rate,
                                          double momentum) {
    bool gradients = config->overlap == DLX_OVERLAP_ALLREDUCE;
    dlxi_arithmetic
        /* the outer step's numbers are replicated: round them alike whatever mode the caller is in
         */
        saved;
    /* volatile: rounded here, not earlier or later */
    const volatile double exact[2] = {learning_rate, momentum};
    dlxi_arithmetic_enter(&saved);
    const volatile float replicated[2] = {(float)exact[0], (float)exact[1]};
    dlxi_arithmetic_leave(&saved);
    dlxi_state_settings settings = {
        .overlap = config->overlap,
        .learning_rate = replicated[0],
        .momentum = replicated[1],
        .quantiser = {gradients ? 32 : config->bits, config->group},
        .error_feedback = config->error_feedback,
        .keep_unsent = config->keep_unsent && config->error_feedback,
        .seed = config->seed,
        .ids_given = config->ranks > 1,
        .factor_rank = gradients ? 0 : config->factor_rank,
        .adapt = {.kind = gradients ? DLX_ADAPTATION_OFF : config->adaptation,
                  .factor_rank_min =
                      or_default(config->factor_rank_min, (config->factor_rank + 3) / 4),
                  .factor_rank_max = or_default(config->factor_rank_max, 2 * config->factor_rank),
                  .inner_steps_first = gradients ? 1 : config->inner_steps,
                  .inner_steps_min = gradients ? 1 : config->inner_steps_min,
                  .inner_steps = gradients ? 1 : config->inner_steps},
    };
    settings.same_hash = settings_hash(&settings);
    return settings;
}

dlx_status dlx_sync_open(dlx_sync **out, const dlx_sync_config *config, const dlx_tensor *tensors,
                         size_t tensor_count, dlx_error *error) {
    if (out == NULL || config == NULL)
        DLX_FAIL(error, ARGUMENT, "dlx_sync_open: an argument is NULL");
    *out = NULL;
    DLX_TRY(check_config(config, error));
    DLX_TRY(check_tensors(config, tensors, tensor_count, error));
    double learning_rate, momentum;
    const dlxi_method *method = dlxi_method_of(config->overlap);
    learning_rate = method->learning_rate, momentum = method->momentum;
    if (config->outer_learning_rate != DLX_AUTO) learning_rate = config->outer_learning_rate;
    if (config->outer_momentum != DLX_AUTO) momentum = config->outer_momentum;
    warn_if_unstable(config, learning_rate, momentum);

    uint32_t most = steps_at_most(config);
    dlxi_sync_settings settings = {.state = state_settings(config, learning_rate, momentum),
                                   .rank = config->rank,
                                   .ranks = config->ranks,
                                   .gather = config->gather,
                                   .gather_context = config->gather_context,
                                   .shared_text = config->shared_text,
                                   .inner_steps_max = most,
                                   .exchange_steps = config->exchange_steps,
                                   .timeout_ms = config->timeout_ms,
                                   .windows = config->windows,
                                   .tokens_per_window = config->tokens_per_window,
                                   .data_hash = config->data_hash,
                                   .lease_windows =
                                       longest_round(config) * config->windows_per_step,
                                   .pace_max = config->pace_max,
                                   .interrupted = config->interrupted,
                                   .log = config->log,
                                   .log_context = config->log_context,
                                   .memory = {.fetch = config->fetch,
                                              .store = config->store,
                                              .context = config->memory_context,
                                              .staging = config->staging,
                                              .staging_bytes = config->staging_bytes}};
    snprintf(settings.site, sizeof settings.site, "%s", config->site);
    dlxi_link *link;
    DLX_TRY(dlxi_link_open_site(&link, &config->link, config->site, config->rank, config->log,
                                config->log_context, error));
    return dlxi_sync_open(out, &settings, link, tensors, tensor_count, error);
}

dlx_status dlx_sync_step(dlx_sync *sync, uint64_t tokens, dlx_step *step, dlx_error *error) {
    if (sync == NULL) DLX_FAIL(error, ARGUMENT, "dlx_sync_step: sync is NULL");
    return dlxi_sync_step(sync, tokens, step, error);
}

dlx_status dlx_sync_gradients(dlx_sync *sync, float *const *gradients, uint64_t tokens,
                              double *waited_s, dlx_error *error) {
    if (sync == NULL || gradients == NULL)
        DLX_FAIL(error, ARGUMENT, "dlx_sync_gradients: an argument is NULL");
    return dlxi_sync_gradients(sync, gradients, tokens, waited_s, error);
}

dlx_status dlx_sync_windows(dlx_sync *sync, uint64_t *positions, uint32_t count, dlx_error *error) {
    if (sync == NULL || positions == NULL)
        DLX_FAIL(error, ARGUMENT, "dlx_sync_windows: an argument is NULL");
    return dlxi_sync_windows(sync, positions, count, error);
}

dlx_status dlx_sync_report(dlx_sync *sync, const char *text, dlx_error *error) {
    if (sync == NULL || text == NULL || strlen(text) > 65535)
        DLX_FAIL(error, ARGUMENT,
                 "dlx_sync_report: an argument is NULL, or the text longer than 65535 bytes");
    return dlxi_sync_report(sync, text, error);
}

void dlx_sync_pace(dlx_sync *sync, double factor) {
    dlxi_sync_pace(sync, factor);
}

uint64_t dlx_sync_tokens(const dlx_sync *sync) {
    return dlxi_sync_tokens(sync);
}

uint64_t dlx_sync_tokens_target(const dlx_sync *sync) {
    return dlxi_sync_tokens_target(sync);
}

uint32_t dlx_sync_site_index(const dlx_sync *sync) {
    return dlxi_sync_site_index(sync);
}

uint32_t dlx_sync_site_count(const dlx_sync *sync) {
    return dlxi_sync_site_count(sync);
}

dlx_status dlx_sync_take_anchor(dlx_sync *sync, uint64_t *rounds, dlx_error *error) {
    if (sync == NULL) DLX_FAIL(error, ARGUMENT, "dlx_sync_take_anchor: sync is NULL");
    return dlxi_sync_take_anchor(sync, rounds, error);
}

dlx_status dlx_sync_anchor(dlx_sync *sync, float *const *dst, dlx_error *error) {
    if (sync == NULL || dst == NULL)
        DLX_FAIL(error, ARGUMENT, "dlx_sync_anchor: an argument is NULL");
    return dlxi_sync_anchor(sync, dst, error);
}

dlx_status dlx_sync_anchor_hashes(dlx_sync *sync, uint64_t *dst, dlx_error *error) {
    if (sync == NULL || dst == NULL)
        DLX_FAIL(error, ARGUMENT, "dlx_sync_anchor_hashes: an argument is NULL");
    return dlxi_sync_anchor_hashes(sync, dst, error);
}

void dlx_sync_statistics(dlx_sync *sync, dlx_statistics *out) {
    dlxi_sync_statistics(sync, out);
}

void dlx_sync_interrupt(dlx_sync *sync) {
    dlxi_sync_interrupt(sync);
}

void dlx_sync_fail(dlx_sync *sync, const char *reason) {
    dlxi_sync_fail(sync, reason);
}

dlx_status dlx_sync_failure(dlx_sync *sync, dlx_error *error) {
    if (sync == NULL) DLX_FAIL(error, ARGUMENT, "dlx_sync_failure: sync is NULL");
    return dlxi_sync_failure(sync, error);
}

void dlx_sync_close(dlx_sync **sync) {
    if (sync != NULL) dlxi_sync_close(sync);
}
