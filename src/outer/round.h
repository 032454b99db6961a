/* SPDX-License-Identifier: Apache-2.0 */
/* The rhythm of one site: after each inner step, train on, wait, apply a committed update, or hand
 * out a pseudo-gradient. Pure: the caller does what it says and reports back. */
#ifndef DLXI_OUTER_ROUND_H
#define DLXI_OUTER_ROUND_H

#include "outer/method.h"

typedef struct dlxi_round {
    dlxi_when when;       /* the method's */
    uint32_t inner_steps; /* H of the present round */
    /* H_max: how far past H to train while the last exchange is under way */
    uint32_t inner_steps_max;
    /* carry: apply exactly this many steps after handing out; 0: as soon as committed */
    uint32_t exchange_steps;
    uint64_t number;      /* of the present round, from 1 */
    uint32_t steps;       /* done in the present round */
    uint32_t steps_since; /* done since the last hand-out */
    bool outstanding;     /* a pseudo-gradient is submitted and its update not yet applied */
    /* the run's tokens are trained: submit the rest, apply it, and stop */
    bool ending;
} dlxi_round;

typedef enum dlxi_round_action {
    DLXI_ROUND_TRAIN,
    DLXI_ROUND_WAIT, /* for the commit */
    DLXI_ROUND_APPLY,
    DLXI_ROUND_SUBMIT,
    DLXI_ROUND_SUBMIT_AND_APPLY /* at a boundary: the pseudo-gradient is taken first */
} dlxi_round_action;

/* What to do now, given whether the outstanding round is committed. Call until it says TRAIN. */
dlxi_round_action dlxi_round_next(const dlxi_round *round, bool committed);

void dlxi_round_on_step(dlxi_round *round);
void dlxi_round_on_applied(dlxi_round *round);
/* The next round has inner_steps ≥ 1. */
void dlxi_round_on_submitted(dlxi_round *round, uint32_t inner_steps);

#endif
