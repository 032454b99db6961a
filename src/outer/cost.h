/* SPDX-License-Identifier: Apache-2.0 */
/* What an exchange costs on a link, and how much of it a method hides, before a run is made. Pure:
 * the rhythm is that of the run itself (round.h), in a time that is only computed. */
#ifndef DLXI_OUTER_COST_H
#define DLXI_OUTER_COST_H

#include "codec/codec.h"
#include "outer/round.h"

typedef struct dlxi_cost_link {
    double bytes_per_s;      /* of a site, each way */
    double delay_s;          /* one way, between any two processes */
    double host_bytes_per_s; /* sent by a core that receives as much at the same time */
} dlxi_cost_link;

/* Bytes of one member's contribution of a tensor: `columns` of each factor; 0: all values. */
uint64_t dlxi_cost_tensor_bytes(int64_t rows, int64_t cols, int columns, dlxi_quantiser quantiser);

/* What an exchange carries and computes, summed over tensors. */
typedef struct dlxi_cost_payload {
    double bytes;           /* of one member's contribution */
    double whole, factored; /* values of the tensors sent whole, and of the low-rank ones */
    double products;        /* Σ rows · cols · columns, of the low-rank ones */
    double squares;         /* Σ (rows + cols) · columns² */
    double cubes;           /* Σ columns³, of those whose spectrum is computed */
} dlxi_cost_payload;

void dlxi_cost_add(dlxi_cost_payload *payload, int64_t rows, int64_t cols, int columns,
                   dlxi_quantiser quantiser, bool has_spectrum);

/* Of one of so many fragments of the model, on average. */
void dlxi_cost_divide(dlxi_cost_payload *payload, uint32_t fragments);

/* What a member sends of a payload (the whole vector, quantised): its contributions to the others'
 * blocks and the results of its own, 2 (S − 1) / S of it. */
double dlxi_cost_sent_bytes(double payload, int sites);

typedef struct dlxi_cost_exchange {
    double link_s;          /* of what is sent, at the link's rate */
    double ways_s;          /* delays, from the last submission to the commit */
    double codec_s, wire_s; /* of a core: projections to the outer step; encryption and sockets */
    double submission_s;    /* of the training thread: submission and application */
    double beginning_s;     /* more of the link's time, for new connections */
} dlxi_cost_exchange;

/* Each of `ranks` per site does its share. Ways: submission, beginning, staged result and commit;
 * contributions and results of each of two trips, or of one if no tensor is low rank. */
dlxi_cost_exchange dlxi_cost_exchange_of(const dlxi_cost_payload *payload, int sites, int ranks,
                                         const dlxi_cost_link *link);

/* From submission to commit. `shares_core`: with training, and the core's time halves. */
double dlxi_cost_exchange_s(const dlxi_cost_exchange *exchange, bool shares_core);

/* What the round that is submitted exchanges, and the rhythm of the next one. */
typedef struct dlxi_cost_round {
    dlxi_cost_exchange exchange;
    double inner_steps, inner_steps_max; /* H and H_max of the next round */
} dlxi_cost_round;

typedef struct dlxi_cost_run {
    double step_s;
    bool shares_core; /* the exchange computes on the core that trains */
    uint64_t steps;   /* of a site, in all */
    double seconds;   /* only so much of the run; 0: all of it */
    /* A round is submitted, with that share of the run's steps done before the last one, and steps
     * that took step_s on average. */
    dlxi_cost_round (*submit)(void *context, double share, double step_s);
    /* Its exchange took so long. May be NULL. */
    void (*commit)(void *context, double exchange_s);
    void *context;
} dlxi_cost_run;

typedef struct dlxi_cost_result {
    double seconds, waited_s;
    uint64_t steps, rounds, steps_longest; /* of a round */
    uint64_t waits;                        /* for an exchange, before the last step */
} dlxi_cost_result;

/* A run of a method with these H, H_max and exchange_steps. */
dlxi_cost_result dlxi_cost_of(const dlxi_cost_run *run, dlxi_round first);

#endif
