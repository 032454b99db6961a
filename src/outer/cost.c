/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/cost.h"

#include <math.h>

/* Of the link's time: headers of TCP and IP, and what TCP leaves unused. As measured at 137, 14 and
 * 3.4 Mbit/s. */
static const double OVERHEAD = 1.1;

/* Of one core of an Intel Xeon with AVX-512, by each thread's CPU time in exchanges beside
 * training, which leaves none of their data in the caches (docs/algorithm.md#cost). Products: by
 * the basis, the new factor, and two expansions, 8 operations of each. Squares: orthonormal
 * columns of both factors, in f64, 4 operations of each. Cubes: Jacobi's sweeps. */
static const double PRODUCTS_PER_S = 35e9;
static const double SQUARES_PER_S = 7.5e9;
static const double CUBES_PER_S = 1e8;
static const double MEMORY_BYTES_PER_S = 1e10;
/* f32 values read or written per parameter: between M and θ, v, e; whole tensors also pass the
 * quantiser several times; by training, submission and application */
enum { PASSES_WHOLE = 25, PASSES_FACTORED = 12, PASSES_TRAINING = 12 };
static const double MESSAGES_S = 0.004; /* frames, control and wake-ups of one exchange */

uint64_t dlxi_cost_tensor_bytes(int64_t rows, int64_t cols, int columns, dlxi_quantiser q) {
    int64_t values = rows * cols;
    if (columns > 0)
        values = columns * (dlxi_factor_stride(rows, q.group) + dlxi_factor_stride(cols, q.group));
    return (uint64_t)((values + q.group - 1) / q.group) * dlxi_quantiser_group_bytes(q);
}

void dlxi_cost_add(dlxi_cost_payload *p, int64_t rows, int64_t cols, int columns, dlxi_quantiser q,
                   bool has_spectrum) {
    const double values = (double)rows * (double)cols, r = columns;
    p->bytes += (double)dlxi_cost_tensor_bytes(rows, cols, columns, q);
    *(columns > 0 ? &p->factored : &p->whole) += values;
    p->products += values * r;
    p->squares += (double)(rows + cols) * r * r;
    if (has_spectrum) p->cubes += r * r * r;
}

void dlxi_cost_divide(dlxi_cost_payload *p, uint32_t fragments) {
    double *const fields[] = {&p->bytes,    &p->whole,   &p->factored,
                              &p->products, &p->squares, &p->cubes};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) *fields[i] /= fragments;
}

double dlxi_cost_sent_bytes(double payload, int sites) {
    return payload * 2 * (sites - 1) / sites;
}

/* A new connection sends 10 packets (RFC 6928), and twice as much after each round trip, until it
 * fills the link or has sent all: what that adds. */
static double beginning_s(double bytes, double bytes_per_s, double delay_s) {
    double window = 14480, sent = 0, took_s = 0;
    while (window < bytes_per_s * 2 * delay_s && sent + window < bytes) {
        sent += window;
        took_s += 2 * delay_s;
        window *= 2;
    }
    return took_s - sent / bytes_per_s;
}

dlxi_cost_exchange dlxi_cost_exchange_of(const dlxi_cost_payload *p, int sites, int ranks,
                                         const dlxi_cost_link *link) {
    const double sent = OVERHEAD * dlxi_cost_sent_bytes(p->bytes, sites);
    const double passes = 4 / MEMORY_BYTES_PER_S / ranks; /* seconds of one pass per value */
    const int connections = (sites > 1 ? sites - 1 : 1) * ranks;
    const int trips = p->factored > 0 ? 2 : 1;
    const double low_rank =
        8 * p->products / PRODUCTS_PER_S + 4 * p->squares / SQUARES_PER_S + p->cubes / CUBES_PER_S;
    return (dlxi_cost_exchange){
        .link_s = sent / link->bytes_per_s,
        .ways_s = (sites > 1 ? 4 + 2 * trips : 4) * link->delay_s,
        .codec_s =
            low_rank / ranks + passes * (PASSES_WHOLE * p->whole + PASSES_FACTORED * p->factored),
        .wire_s = MESSAGES_S + sent / link->host_bytes_per_s / ranks,
        .beginning_s =
            beginning_s(sent / connections, link->bytes_per_s / connections, link->delay_s),
        .submission_s = passes * PASSES_TRAINING * (p->whole + p->factored)};
}

double dlxi_cost_exchange_s(const dlxi_cost_exchange *e, bool shares_core) {
    const int of_core = shares_core ? 2 : 1;
    return e->ways_s + fmax(e->link_s, of_core * e->wire_s) + of_core * e->codec_s;
}

typedef struct walk {
    const dlxi_cost_run *run;
    dlxi_round now;
    double now_s, submitted_s, commit_s;
    double round_s;       /* of the present round's steps */
    double core_s;        /* that the exchange still takes from the training core */
    double longer;        /* by this per second of that the exchange is, if training goes on */
    uint64_t done, begun; /* inner steps, and those before the present round */
    dlxi_cost_result result;
} walk;

static void submit(walk *w) {
    const dlxi_cost_run *run = w->run;
    uint64_t steps = w->done - w->begun;
    w->result.rounds++;
    if (steps > w->result.steps_longest) w->result.steps_longest = steps;
    w->begun = w->done;
    dlxi_cost_round rhythm = run->submit(run->context, (double)(w->done - 1) / (double)run->steps,
                                         w->round_s / (double)steps);
    const dlxi_cost_exchange *e = &rhythm.exchange;
    double alone_s = dlxi_cost_exchange_s(e, false);
    w->round_s = 0;
    w->now_s += e->submission_s;
    w->submitted_s = w->now_s;
    w->commit_s = w->now_s + alone_s + (w->result.rounds == 1 ? e->beginning_s : 0);
    w->core_s = run->shares_core ? e->codec_s + e->wire_s : 0;
    w->longer = w->core_s > 0 ? (dlxi_cost_exchange_s(e, true) - alone_s) / w->core_s : 0;
    w->now.inner_steps_max = (uint32_t)fmax(1, round(rhythm.inner_steps_max));
    dlxi_round_on_submitted(&w->now, (uint32_t)fmax(1, round(rhythm.inner_steps)));
}

/* Two threads that want a core get half of it each. */
static void train(walk *w) {
    const double taken_s = fmin(w->core_s, w->run->step_s), took_s = w->run->step_s + taken_s;
    w->core_s -= taken_s;
    w->commit_s += w->longer * taken_s;
    w->now_s += took_s;
    w->round_s += took_s;
    w->done++;
    dlxi_round_on_step(&w->now);
}

static void wait(walk *w) {
    w->result.waits += !w->now.ending;
    w->result.waited_s += w->commit_s - w->now_s;
    w->now_s = w->commit_s;
    w->core_s = 0;
}

static void apply(walk *w) {
    const dlxi_cost_run *run = w->run;
    if (run->commit != NULL) run->commit(run->context, w->commit_s - w->submitted_s);
    dlxi_round_on_applied(&w->now);
}

dlxi_cost_result dlxi_cost_of(const dlxi_cost_run *run, dlxi_round first) {
    walk w = {.run = run, .now = first};
    for (;;) {
        w.now.ending = w.done >= run->steps;
        bool committed = w.now.outstanding && w.now_s >= w.commit_s;
        dlxi_round_action action = dlxi_round_next(&w.now, committed);
        if (action == DLXI_ROUND_TRAIN && w.now.ending) break;
        if (action == DLXI_ROUND_TRAIN) train(&w);
        if (action == DLXI_ROUND_WAIT) wait(&w);
        bool applies = action == DLXI_ROUND_APPLY || action == DLXI_ROUND_SUBMIT_AND_APPLY;
        if (applies) apply(&w);
        if (applies && run->seconds > 0 && w.now_s >= run->seconds) break;
        if (action == DLXI_ROUND_SUBMIT || action == DLXI_ROUND_SUBMIT_AND_APPLY) submit(&w);
    }
    w.result.seconds = w.now_s;
    w.result.steps = w.done;
    return w.result;
}
