/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/adapt.h"

#include <math.h>
#include <string.h>

static int clamp(int value, int low, int high) {
    return value < low ? low : value > high ? high : value;
}

static int bounded_rank(const dlxi_adapt *adapt, const dlxi_adapt_tensor *tensor, int rank) {
    int most = adapt->factor_rank_max < tensor->factor_rank_limit ? adapt->factor_rank_max
                                                                  : tensor->factor_rank_limit;
    return clamp(rank, adapt->factor_rank_min < most ? adapt->factor_rank_min : most, most);
}

int dlxi_adapt_columns(const dlxi_adapt *adapt, const dlxi_adapt_tensor *tensor) {
    int probes = adapt->kind == DLX_ADAPTATION_PAPER ? DLXI_ADAPT_PROBES : 0;
    return clamp(tensor->factor_rank + probes, 1, tensor->factor_rank_limit);
}

int dlxi_adapt_effective_rank(const double *singular_values, int count) {
    double total = 0, held = 0;
    for (int i = 0; i < count; i++) total += singular_values[i] * singular_values[i];
    for (int i = 0; i < count; i++) {
        held += singular_values[i] * singular_values[i];
        if (held >= DLXI_ADAPT_SHARE * total) return i + 1;
    }
    return count;
}

void dlxi_adapt_observe(const dlxi_adapt *adapt, dlxi_adapt_tensor *tensor, int effective_rank) {
    if (tensor->history_count == DLXI_ADAPT_WINDOW) {
        memmove(tensor->history, tensor->history + 1,
                (DLXI_ADAPT_WINDOW - 1) * sizeof *tensor->history);
        tensor->history_count--;
    }
    tensor->history[tensor->history_count++] = effective_rank;
    int sum = 0;
    for (int i = 0; i < tensor->history_count; i++) sum += tensor->history[i];
    tensor->factor_rank = bounded_rank(
        adapt, tensor, (2 * sum + tensor->history_count) / (2 * tensor->history_count));
}

dlxi_adapt_sums dlxi_adapt_sum(const dlxi_adapt_tensor *tensors, size_t count) {
    dlxi_adapt_sums sums = {0};
    for (size_t i = 0; i < count; i++) {
        sums.weighted_ranks += (uint64_t)tensors[i].parameters * (uint64_t)tensors[i].factor_rank;
        sums.parameters += (uint64_t)tensors[i].parameters;
    }
    return sums;
}

uint32_t dlxi_adapt_inner_steps(const dlxi_adapt *adapt, dlxi_adapt_sums sums,
                                int factor_rank_first) {
    if (sums.parameters == 0) return adapt->inner_steps;
    double mean = (double)sums.weighted_ranks / ((double)sums.parameters * factor_rank_first);
    double steps = adapt->inner_steps_first * mean + 0.5;
    if (steps > adapt->inner_steps_first) steps = adapt->inner_steps_first;
    if (steps < adapt->inner_steps_min) steps = adapt->inner_steps_min;
    return (uint32_t)steps;
}

void dlxi_adapt_paper(dlxi_adapt *adapt, const dlxi_adapt_tensor *tensors, size_t count) {
    if (count == 0) return;
    adapt->inner_steps =
        dlxi_adapt_inner_steps(adapt, dlxi_adapt_sum(tensors, count), tensors[0].factor_rank_first);
}

int dlxi_adapt_rank_limit(int64_t rows, int64_t cols) {
    int64_t limit = (rows * cols - 1) / (rows + cols);
    return (int)(limit < 1024 ? limit : 1024);
}

double dlxi_adapt_choose(int *rank, int rank_min, double inner_steps_max,
                         double (*steps_at)(void *context, int rank), void *context) {
    for (;;) {
        double needed = ceil(steps_at(context, *rank) / 0.9);
        if (*rank <= rank_min || needed <= inner_steps_max) return needed;
        --*rank;
    }
}

typedef struct by_bytes {
    double steps_per_byte; /* that the slowest member's exchange takes */
    uint64_t (*bytes_at)(void *context, int rank);
    void *context;
} by_bytes;

static double steps_by_bytes(void *context, int rank) {
    const by_bytes *b = context;
    return b->steps_per_byte * (double)b->bytes_at(b->context, rank);
}

void dlxi_adapt_link(dlxi_adapt *adapt, dlxi_adapt_tensor *tensors, size_t count,
                     const dlxi_adapt_member *members, size_t member_count,
                     uint64_t (*bytes_at)(void *context, int rank), void *context) {
    by_bytes by = {.bytes_at = bytes_at, .context = context};
    for (size_t i = 0; i < member_count; i++) {
        const dlxi_adapt_member *m = &members[i];
        if (m->step_ns == 0 || m->exchange_ns == 0 || m->exchange_bytes == 0) return;
        double needed = (double)m->exchange_ns / (double)m->exchange_bytes / (double)m->step_ns;
        if (needed > by.steps_per_byte) by.steps_per_byte = needed;
    }
    if (member_count == 0) return;
    int rank = adapt->factor_rank_max;
    double steps = dlxi_adapt_choose(&rank, adapt->factor_rank_min, adapt->inner_steps_first,
                                     steps_by_bytes, &by);
    if (steps < adapt->inner_steps_min) steps = adapt->inner_steps_min;
    if (steps > adapt->inner_steps_first) steps = adapt->inner_steps_first;
    adapt->inner_steps = (uint32_t)steps;
    for (size_t i = 0; i < count; i++)
        tensors[i].factor_rank = bounded_rank(adapt, &tensors[i], rank);
}
