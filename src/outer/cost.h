/* SPDX-License-Identifier: Apache-2.0 */
/* What an exchange costs on a link, and how much of it a method hides, before a run is made. Pure:
 * the rhythm is that of the run itself (round.h), in a time that is only computed. */
#ifndef DLXI_OUTER_COST_H
#define DLXI_OUTER_COST_H

#include "codec/codec.h"
#include "outer/round.h"

typedef struct dlxi_cost_link {
    double bytes_per_s; /* of a site, each way */
    double delay_s;     /* one way, between any two processes */
} dlxi_cost_link;

/* Bytes of one member's contribution of a tensor: `columns` of each factor; 0: all values. */
uint64_t dlxi_cost_tensor_bytes(int64_t rows, int64_t cols, int columns, dlxi_quantiser quantiser);

/* What a member sends of a payload (the whole vector, quantised): its contributions to the others'
 * blocks and the results of its own, 2 (S − 1) / S of it. */
double dlxi_cost_sent_bytes(double payload, int sites);

/* From the last submission to the commit: what is sent at the link's rate; the way of submission,
 * beginning, staged result and commit; for each of `trips` that of contributions and results. */
double dlxi_cost_exchange_s(double payload, int trips, int sites, const dlxi_cost_link *link);

typedef struct dlxi_cost_run {
    double step_s, exchange_s;
    uint64_t steps; /* of a site, in all */
    /* what dlx_sync_pace was given before the last step, with that share of the run's done */
    double (*pace)(void *context, double share);
    void *pace_context;
} dlxi_cost_run;

typedef struct dlxi_cost_result {
    double seconds, waited_s;
    uint64_t rounds, steps_longest; /* of a round */
    uint64_t waits;                 /* for an exchange, before the last step */
} dlxi_cost_result;

/* A run of a method with these H, H_max and exchange_steps. */
dlxi_cost_result dlxi_cost_of(const dlxi_cost_run *run, dlxi_round first);

#endif
