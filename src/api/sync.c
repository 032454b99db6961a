/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_sync: validate, translate, delegate. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/link_config.h"
#include "base/memory.h"
#include "base/name.h"
#include "base/sized.h"
#include "outer/sync_options.h"
#include "sync/sync.h"
#include "wire/messages.h"

#define IN_RANGE(field, low, high)                                                                 \
    do {                                                                                           \
        double in_range_value_ = (double)config->field;                                            \
        if (!(in_range_value_ >= (low) && in_range_value_ <= (high)))                              \
            DLX_FAIL(error, CONFIG, #field ": %.10g is out of range; allowed: %.10g to %.10g",     \
                     in_range_value_, (double)(low), (double)(high));                              \
    } while (0)

enum {
    /* to the end of `kind`, and the padding behind it */
    TENSOR_BYTES_0_2 =
        (offsetof(dlx_tensor, kind) / _Alignof(dlx_tensor) + 1) * _Alignof(dlx_tensor),
    TENSOR_VALUES_MAX_BITS = SIZE_MAX > UINT32_MAX ? 32 : 28 /* a size_t counts their bytes */
};

static const dlx_sync_config config_default = DLX_SYNC_CONFIG_INIT;

void dlx_sync_config_default(dlx_sync_config *config, size_t size) {
    dlx_sync_config standard = config_default;
    standard.tensor_bytes = 0; /* what the caller's is, only its compiler knows */
    dlxi_sized_default(config, size, &standard, sizeof standard);
}

static dlx_status config_check(const dlx_sync_config *config, dlx_error *error) {
    if (!dlxi_name_valid(config->site))
        DLX_FAIL(error, CONFIG, "site: '%.80s' is not allowed; " DLXI_NAME_RULE,
                 config->site != NULL ? config->site : "");
    IN_RANGE(ranks, 1, DLXI_RANKS_MAX);
    IN_RANGE(rank, 0, config->ranks - 1);
    if (config->ranks > 1 && config->gather == NULL)
        DLX_FAIL(error, ARGUMENT, "gather is NULL, and needed with ranks: %u", config->ranks);
    DLX_TRY(dlxi_sync_options_check(config, false, error));
    IN_RANGE(pace_max, 1, 100);
    if (config->windows > 0) {
        IN_RANGE(windows_per_step, 1, 1000000);
        const dlx_sync_config resolved = dlxi_sync_options_resolve(config);
        const uint32_t steps = dlxi_sync_options_round_steps_max(&resolved),
                       most = (UINT32_MAX - config->windows_ahead) / steps;
        if (config->windows_per_step > most)
            DLX_FAIL(error, CONFIG,
                     "windows_per_step: %u with up to %u inner steps per round is more than a "
                     "lease holds; allowed: up to %u",
                     config->windows_per_step, steps, most);
    }
    if (config->shared_text != NULL && strlen(config->shared_text) > DLXI_TEXT_MAX)
        DLX_FAIL(error, CONFIG, "shared_text is longer than %d bytes", DLXI_TEXT_MAX);
    return DLX_OK;
}

/* *own ← the caller's array, whose elements may be shorter or longer than this library's. */
static dlx_status tensors_read(dlx_tensor **own, const dlx_sync_config *config,
                               const dlx_tensor *tensors, size_t count, dlx_error *error) {
    const size_t bytes = config->tensor_bytes != 0 ? config->tensor_bytes : TENSOR_BYTES_0_2;
    if (bytes < offsetof(dlx_tensor, memory))
        DLX_FAIL(error, ARGUMENT,
                 "tensor_bytes: %zu is out of range; allowed: 0, or sizeof(dlx_tensor), here %zu",
                 bytes, sizeof(dlx_tensor));
    DLX_TRY(DLXI_NEW(own, count, error));
    for (size_t i = 0; i < count; i++) {
        const unsigned char *tensor = (const unsigned char *)tensors + i * bytes;
        dlx_status status = dlxi_sized_copy(&(*own)[i], sizeof(dlx_tensor), tensor, bytes, error);
        if (status == DLX_OK) continue;
        dlxi_error_prefix(error, "tensor %zu: ", i);
        return status;
    }
    return DLX_OK;
}

static dlx_status tensor_check(const dlx_sync_config *config, const dlx_tensor *t,
                               dlx_error *error) {
    if (t->rows < 1 || t->cols < 1 || t->rows > (INT64_C(1) << TENSOR_VALUES_MAX_BITS) / t->cols)
        DLX_FAIL(error, ARGUMENT,
                 "tensor %s: invalid shape %lld × %lld; rows and cols must be at least 1, and "
                 "their product at most 2^%d",
                 t->name, (long long)t->rows, (long long)t->cols, TENSOR_VALUES_MAX_BITS);
    if ((unsigned)t->memory > DLX_MEMORY_CALLER || (unsigned)t->dtype > DLX_F16 ||
        (unsigned)t->kind > DLX_STATISTICS)
        DLX_FAIL(error, ARGUMENT, "tensor %s: memory %d, dtype %d or kind %d is unknown", t->name,
                 (int)t->memory, (int)t->dtype, (int)t->kind);
    if (t->memory == DLX_MEMORY_CALLER && (config->fetch == NULL || config->store == NULL))
        DLX_FAIL(error, ARGUMENT,
                 "tensor %s is in the caller's memory: set fetch and store of the config", t->name);
    bool staged = t->memory == DLX_MEMORY_CALLER || t->dtype != DLX_F32;
    if (staged && config->staging != NULL && config->staging_bytes < sizeof(float))
        DLX_FAIL(error, ARGUMENT,
                 "staging_bytes: %zu is out of range; allowed: %zu or more, for tensor %s",
                 config->staging_bytes, sizeof(float), t->name);
    if (config->overlap == DLX_OVERLAP_ALLREDUCE && t->kind == DLX_STATISTICS)
        DLX_FAIL(error, ARGUMENT, "tensor %s: allreduce has no statistics; leave it out", t->name);
    return DLX_OK;
}

/* One of several ranks may have none. */
static dlx_status tensors_check(const dlx_sync_config *config, const dlx_tensor *tensors,
                                size_t count, dlx_error *error) {
    if (count == 0 && config->ranks == 1)
        DLX_FAIL(error, ARGUMENT, "there are no tensors to synchronise");
    for (size_t i = 0; i < count; i++) {
        const dlx_tensor *t = &tensors[i];
        if (t->name == NULL || t->name[0] == '\0' ||
            (t->memory == DLX_MEMORY_HOST && t->data == NULL))
            DLX_FAIL(error, ARGUMENT, "tensor %zu has no name or no data", i);
        DLX_TRY(tensor_check(config, t, error));
        if (config->ranks > 1 && i > 0 && t->id <= tensors[i - 1].id)
            DLX_FAIL(error, ARGUMENT,
                     "tensor %s: id %u after id %u; if a site has several ranks, ids ascend",
                     t->name, t->id, tensors[i - 1].id);
        for (size_t k = 0; k < i; k++)
            if (strcmp(tensors[k].name, t->name) == 0)
                DLX_FAIL(error, ARGUMENT, "two tensors are named %s", t->name);
    }
    return DLX_OK;
}

static void instability_warn(const dlx_sync_config *resolved) {
    const double limit = 0.99;
    double share = resolved->exchange_steps > 0
                       ? (double)resolved->exchange_steps / resolved->inner_steps
                       : 0.5;
    const dlxi_outer outer = dlxi_sync_options_outer(resolved);
    double c,
        worst = dlxi_method_worst_mode(dlxi_method_of(resolved->overlap), &outer, 4, share, &c);
    if (resolved->log == NULL || resolved->rank != 0 ||
        resolved->overlap == DLX_OVERLAP_ALLREDUCE || worst < limit)
        return;
    char line[256];
    snprintf(line, sizeof line,
             "warning: outer learning rate %g with momentum %g at rate %g and this overlap: a mode "
             "of %.2f (%s) if local training goes a share %.2f of its way in a round; lower them, "
             "or use auto",
             outer.learning_rate, outer.momentum, outer.momentum_rate, worst,
             worst >= 1 ? "grows" : "fades slowly", c);
    resolved->log(resolved->log_context, line);
}

static dlx_status sync_open(dlx_sync **out, const dlx_sync_config *config,
                            const dlx_tensor *tensors, size_t tensor_count,
                            const dlxi_origin *origin, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlx_sync_config options = config_default;
    dlx_tensor *own = NULL;
    dlxi_log_ring *log = NULL;
    dlxi_link *link;
    /* a caller of any size has all before the options */
    DLX_TRY(dlxi_sized_read(&options, sizeof options, offsetof(dlx_sync_config, overlap), config,
                            "DLX_SYNC_CONFIG_INIT", error));
    DLX_TRY(config_check(&options, error));
    if (tensors == NULL) tensor_count = 0;
    DLX_TRY_OUT(tensors_read(&own, &options, tensors, tensor_count, error));
    DLX_TRY_OUT(tensors_check(&options, own, tensor_count, error));
    options = dlxi_sync_options_resolve(&options);
    instability_warn(&options);
    DLX_TRY_OUT(dlxi_log_ring_open(&log, options.log, options.log_context, error));
    options.log = log != NULL ? dlxi_log_ring_add : NULL;
    options.log_context = log;
    DLX_TRY_OUT(dlxi_link_open_site(&link, &options.link, options.site, options.rank, options.ranks,
                                    options.timeout_ms, options.log, options.log_context, error));
    status = dlxi_sync_open(out, &options, link, log, own, tensor_count, origin, error);
    log = NULL;
out:
    dlxi_log_ring_close(&log);
    free(own);
    return status;
}

dlx_status dlx_sync_open(dlx_sync **out, const dlx_sync_config *config, const dlx_tensor *tensors,
                         size_t tensor_count, dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    return sync_open(out, config, tensors, tensor_count, NULL, error);
}

dlx_status dlx_sync_resume(dlx_sync **out, const dlx_sync_config *config, const dlx_tensor *tensors,
                           size_t tensor_count, dlx_restore restore, void *context,
                           dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(restore);
    const dlxi_origin origin = {.restore = restore, .context = context};
    return sync_open(out, config, tensors, tensor_count, &origin, error);
}

dlx_status dlx_sync_resume_as_new(dlx_sync **out, const dlx_sync_config *config,
                                  const dlx_tensor *tensors, size_t tensor_count,
                                  dlx_restore restore, void *context, dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(restore);
    const dlxi_origin origin = {.restore = restore, .context = context, .is_another = true};
    return sync_open(out, config, tensors, tensor_count, &origin, error);
}

bool dlx_sync_is_finished(const dlx_sync *sync) {
    return sync != NULL && dlxi_sync_is_finished(sync);
}

dlx_status dlx_sync_save(dlx_sync *sync, dlx_hold hold, void *context, const dlx_part **parts,
                         size_t *count, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(parts);
    DLXI_NOT_NULL(count);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    return dlxi_sync_save(sync, hold, context, parts, count, error);
}

static dlx_status step_check(const dlx_step *step, dlx_error *error) {
    return dlxi_sized_check(step, offsetof(dlx_step, exchange_steps), sizeof *step, "DLX_STEP_INIT",
                            error);
}

dlx_status dlx_sync_step(dlx_sync *sync, uint64_t tokens, dlx_step *step, dlx_error *error) {
    dlx_step done = {0};
    DLXI_NOT_NULL(sync);
    if (step != NULL) DLX_TRY(step_check(step, error));
    DLX_TRY(dlxi_sync_may_call(sync, error));
    dlx_status status = dlxi_sync_step(sync, tokens, &done, error);
    if (step != NULL) dlxi_sized_write(step, &done, sizeof done);
    return status;
}

dlx_status dlx_sync_wait(dlx_sync *sync, dlx_step *step, dlx_error *error) {
    dlx_step done = {0};
    DLXI_NOT_NULL(sync);
    if (step != NULL) DLX_TRY(step_check(step, error));
    dlx_status status = dlxi_sync_wait(sync, &done, error);
    if (step != NULL) dlxi_sized_write(step, &done, sizeof done);
    return status;
}

bool dlx_sync_is_pending(const dlx_sync *sync) {
    return sync != NULL && dlxi_sync_is_pending(sync);
}

dlx_status dlx_sync_gradients(dlx_sync *sync, float *const *gradients, uint64_t tokens,
                              double *waited_s, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(gradients);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    return dlxi_sync_gradients(sync, gradients, tokens, waited_s, error);
}

dlx_status dlx_sync_windows(dlx_sync *sync, uint64_t *positions, uint32_t count, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(positions);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    return dlxi_sync_windows(sync, positions, count, error);
}

dlx_status dlx_sync_end(dlx_sync *sync, dlx_end *end, dlx_error *error) {
    dlx_end own = DLX_END_INIT;
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(end);
    DLX_TRY(dlxi_sized_check(end, offsetof(dlx_end, saves), sizeof own, "DLX_END_INIT", error));
    DLX_TRY(dlxi_sync_may_call(sync, error));
    DLX_TRY(dlxi_sync_end(sync, &own, error));
    dlxi_sized_write(end, &own, sizeof own);
    return DLX_OK;
}

dlx_status dlx_sync_report(dlx_sync *sync, const char *text, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(text);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    if (strlen(text) > DLXI_TEXT_MAX)
        DLX_FAIL(error, ARGUMENT, "dlx_sync_report: text is longer than %d bytes", DLXI_TEXT_MAX);
    return dlxi_sync_report(sync, text, error);
}

void dlx_sync_pace(dlx_sync *sync, double factor) {
    if (sync != NULL) dlxi_sync_pace(sync, factor);
}

uint64_t dlx_sync_tokens(const dlx_sync *sync) {
    return sync != NULL ? dlxi_sync_tokens(sync) : 0;
}

uint64_t dlx_sync_tokens_target(const dlx_sync *sync) {
    return sync != NULL ? dlxi_sync_tokens_target(sync) : 0;
}

uint64_t dlx_sync_run_id(const dlx_sync *sync) {
    return sync != NULL ? dlxi_sync_run_id(sync) : 0;
}

uint32_t dlx_sync_site_index(const dlx_sync *sync) {
    return sync != NULL ? dlxi_sync_site_index(sync) : 0;
}

uint32_t dlx_sync_site_count(const dlx_sync *sync) {
    return sync != NULL ? dlxi_sync_site_count(sync) : 0;
}

dlx_status dlx_sync_take_anchor(dlx_sync *sync, uint64_t *rounds, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    return dlxi_sync_take_anchor(sync, rounds, error);
}

dlx_status dlx_sync_anchor(dlx_sync *sync, float *const *dst, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(dst);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    return dlxi_sync_anchor(sync, dst, error);
}

dlx_status dlx_sync_anchor_hashes(dlx_sync *sync, uint64_t *dst, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(dst);
    DLX_TRY(dlxi_sync_may_call(sync, error));
    return dlxi_sync_anchor_hashes(sync, dst, error);
}

dlx_status dlx_sync_statistics(dlx_sync *sync, dlx_statistics *statistics, dlx_error *error) {
    dlx_statistics now;
    DLXI_NOT_NULL(sync);
    DLXI_NOT_NULL(statistics);
    DLX_TRY(dlxi_sized_check(statistics, offsetof(dlx_statistics, attempts), sizeof now,
                             "DLX_STATISTICS_INIT", error));
    dlxi_sync_statistics(sync, &now);
    dlxi_sized_write(statistics, &now, sizeof now);
    return DLX_OK;
}

void dlx_sync_interrupt(dlx_sync *sync) {
    if (sync != NULL) dlxi_sync_interrupt(sync);
}

void dlx_sync_fail(dlx_sync *sync, const char *reason) {
    if (sync != NULL) dlxi_sync_fail(sync, reason);
}

dlx_status dlx_sync_failure(dlx_sync *sync, dlx_error *error) {
    DLXI_NOT_NULL(sync);
    return dlxi_sync_failure(sync, error);
}

void dlx_sync_close(dlx_sync **sync) {
    if (sync != NULL) dlxi_sync_close(sync);
}
