/* SPDX-License-Identifier: Apache-2.0 */
/* Methods: what a site does with its parameters when a round's pseudo-gradient is submitted and
 * when its update is committed. One row per method: its word, what it keeps, when it applies, its
 * defaults, its linear model, and its arithmetic. Pure. */
#ifndef DLXI_OUTER_METHOD_H
#define DLXI_OUTER_METHOD_H

#include "outer/stability.h"
#include "outer/step.h"

typedef enum dlxi_when {
    DLXI_WHEN_WAITED_FOR, /* before the next inner step */
    DLXI_WHEN_COMMITTED,  /* at the first inner step after the commit */
    DLXI_WHEN_BOUNDARY    /* when the next pseudo-gradient is submitted */
} dlxi_when;

/* A run of elements of one tensor. `start` is NULL if the method does not keep it. */
typedef struct dlxi_chunk {
    float *p, *start;
    const float *anchor;
    float *error; /* e; M from submit to commit */
    int64_t count;
} dlxi_chunk;

typedef struct dlxi_coefficients {
    float kept; /* share of e that local training goes on with: 1 or 0 */
    float own;  /* (η + γ) w: what the outer step makes of one's own pseudo-gradient */
} dlxi_coefficients;

typedef struct dlxi_method {
    const char *name;
    dlxi_when when;
    bool averages_gradients; /* no outer step: the mean of each inner step's gradients */
    bool keeps_start;        /* where local training started, apart from θ */
    bool keeps_unsent; /* may go on from θ − e, so that what waits in e is not done again */
    bool takes_turns;  /* what was trained since a submission outlives another fragment's update */
    dlxi_outer outer;  /* what `auto` stands for */
    double warmup;     /* of its momentum, in rounds (dlxi_sync_options_outer_in) */
    dlxi_modes (*modes)(const dlxi_outer *by, double c, int sites, double exchange_share);
    /* M ← δ + e. start stays: apply follows at once, or start ← p. */
    void (*submit)(const dlxi_chunk *chunk, dlxi_coefficients by);
    /* p, start ← by method, after the commit. NULL: p, start ← θ. */
    void (*apply)(const dlxi_chunk *chunk, dlxi_coefficients by);
} dlxi_method;

/* NULL if there is no such method. */
const dlxi_method *dlxi_method_of(dlx_overlap overlap);
/* The methods' words by number, ended by NULL: the choices of sync.overlap. */
extern const char *const dlxi_method_words[];

/* The largest mode over c = 0.02, 0.04, …, 1, and where it is reached. */
double dlxi_method_worst_mode(const dlxi_method *method, const dlxi_outer *by, int sites,
                              double exchange_share, double *worst_c);

#endif
