/* SPDX-License-Identifier: Apache-2.0 */
/* The order of training windows, and the parts of a validation file. */
#include "data/sampler.h"
#include "base/memory.h"
#include "base/panic.h"

/* (tokens − 1) / T: the last target of a window is the first input of the next. */
static dlx_status windows_count(int64_t *windows, const dlxi_token_file *file, int64_t context,
                                dlx_error *error) {
    DLXI_ASSERT(context >= 1);
    *windows = (file->count - 1) / context;
    if (*windows >= 1) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "%s: '%s' has %lld tokens; a context of %lld needs at least %lld: use a longer text",
             file->key, file->path, (long long)file->count, (long long)context,
             (long long)context + 1);
}

/* tokens[T], targets[T] ← window w. */
static void window_read(uint32_t *tokens, uint32_t *targets, const dlxi_token_file *file,
                        int64_t context, int64_t w) {
    dlxi_token_file_read(tokens, file, w * context, context);
    dlxi_token_file_read(targets, file, w * context + 1, context);
}

/* ---- training -------------------------------------------------------------------------------- */

dlx_status dlxi_sampler_open(dlxi_sampler *out, const dlxi_token_file *file, int64_t context,
                             uint64_t seed, dlx_error *error) {
    *out = (dlxi_sampler){.file = file, .context = context, .seed = seed};
    return windows_count(&out->windows, file, context, error);
}

int64_t dlxi_sampler_window(const dlxi_sampler *sampler, int64_t position) {
    return (int64_t)dlx_window((uint64_t)position, (uint64_t)sampler->windows, sampler->seed);
}

void dlxi_sampler_batch(uint32_t *tokens, uint32_t *targets, const dlxi_sampler *sampler,
                        const int64_t *positions, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        int64_t w = dlxi_sampler_window(sampler, positions[i]), at = i * sampler->context;
        window_read(tokens + at, targets + at, sampler->file, sampler->context, w);
    }
}

/* ---- validation ------------------------------------------------------------------------------ */

dlx_status dlxi_validation_open(dlxi_validation *out, const dlxi_token_file *file, int64_t context,
                                int64_t tokens_max, int64_t index, int64_t stride,
                                dlx_error *error) {
    DLXI_ASSERT(tokens_max >= 0 && index >= 0 && index < stride);
    *out = (dlxi_validation){
        .file = file, .context = context, .index = index, .stride = stride, .next = index};
    DLX_TRY(windows_count(&out->windows, file, context, error));
    int64_t wanted = tokens_max / context > 1 ? tokens_max / context : 1;
    if (tokens_max > 0 && wanted < out->windows) out->windows = wanted;
    return DLX_OK;
}

int64_t dlxi_validation_count(const dlxi_validation *reader) {
    if (reader->index >= reader->windows) return 0;
    return (reader->windows - 1 - reader->index) / reader->stride + 1;
}

int64_t dlxi_validation_next(uint32_t *tokens, uint32_t *targets, dlxi_validation *reader,
                             int64_t count_max) {
    int64_t count = 0;
    for (; count < count_max && reader->next < reader->windows;
         count++, reader->next += reader->stride) {
        int64_t at = count * reader->context;
        window_read(tokens + at, targets + at, reader->file, reader->context, reader->next);
    }
    return count;
}
