/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/cost.h"

#include <math.h>

/* Of the link's time: headers of TCP and IP, and what TCP leaves unused. As measured at 137, 14 and
 * 3.4 Mbit/s. */
static const double OVERHEAD = 1.1;

uint64_t dlxi_cost_tensor_bytes(int64_t rows, int64_t cols, int columns, dlxi_quantiser q) {
    int64_t values = rows * cols;
    if (columns > 0)
        values = columns * (dlxi_factor_stride(rows, q.group) + dlxi_factor_stride(cols, q.group));
    return (uint64_t)((values + q.group - 1) / q.group) * dlxi_quantiser_group_bytes(q);
}

double dlxi_cost_sent_bytes(double payload, int sites) {
    return payload * 2 * (sites - 1) / sites;
}

double dlxi_cost_exchange_s(double payload, int trips, int sites, const dlxi_cost_link *link) {
    int ways = sites > 1 ? 4 + 2 * trips : 4; /* to the coordinator and back, twice */
    return OVERHEAD * dlxi_cost_sent_bytes(payload, sites) / link->bytes_per_s +
           ways * link->delay_s;
}

typedef struct walk {
    const dlxi_cost_run *run;
    dlxi_round now, first;
    double now_s, commit_s;
    uint64_t done, begun; /* inner steps, and those before the present round */
    dlxi_cost_result result;
} walk;

static void submit(walk *w) {
    uint64_t steps = w->done - w->begun;
    w->result.rounds++;
    if (steps > w->result.steps_longest) w->result.steps_longest = steps;
    w->begun = w->done;
    w->commit_s = w->now_s + w->run->exchange_s;
    double pace = w->run->pace(w->run->pace_context, (double)(w->done - 1) / (double)w->run->steps);
    w->now.inner_steps_max = (uint32_t)fmax(1, round(pace * w->first.inner_steps_max));
    dlxi_round_on_submitted(&w->now, (uint32_t)fmax(1, round(pace * w->first.inner_steps)));
}

static void train(walk *w) {
    w->now_s += w->run->step_s;
    w->done++;
    dlxi_round_on_step(&w->now);
}

static void wait(walk *w) {
    w->result.waits += !w->now.ending;
    w->result.waited_s += w->commit_s - w->now_s;
    w->now_s = w->commit_s;
}

dlxi_cost_result dlxi_cost_of(const dlxi_cost_run *run, dlxi_round first) {
    walk w = {.run = run, .now = first, .first = first};
    for (;;) {
        w.now.ending = w.done >= run->steps;
        bool committed = w.now.outstanding && w.now_s >= w.commit_s;
        dlxi_round_action action = dlxi_round_next(&w.now, committed);
        if (action == DLXI_ROUND_TRAIN && w.now.ending) break;
        if (action == DLXI_ROUND_TRAIN) train(&w);
        if (action == DLXI_ROUND_WAIT) wait(&w);
        if (action == DLXI_ROUND_APPLY || action == DLXI_ROUND_SUBMIT_AND_APPLY)
            dlxi_round_on_applied(&w.now);
        if (action == DLXI_ROUND_SUBMIT || action == DLXI_ROUND_SUBMIT_AND_APPLY) submit(&w);
    }
    w.result.seconds = w.now_s;
    return w.result;
}
