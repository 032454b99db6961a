/* SPDX-License-Identifier: Apache-2.0 */
/* How a round's messages stand to each other: sums over a rank's tensors, for norms and cosines
 * that say what limits a run (docs/diagnosis.md). Of one site, and not replicated. */
#ifndef DLXI_OUTER_DIAGNOSIS_H
#define DLXI_OUTER_DIAGNOSIS_H

#include <stdint.h>

/* Of M as submitted, what is left of it unsent, Δ, and v before Δ. */
typedef struct dlxi_diagnosis {
    double submitted, unsent, mean, momentum;   /* squares */
    double submitted_by_mean, mean_by_momentum; /* products */
} dlxi_diagnosis;

/* Adds count values; `own` is what this site's message said of `submitted`. Sums are in f32 within
 * a call, so give it some thousand values at a time. */
void dlxi_diagnosis_add(dlxi_diagnosis *diagnosis, const float *submitted, const float *own,
                        const float *mean, const float *momentum, int64_t count);

/* The cosine of two vectors from their product and squares; 0 if one of them is 0. */
double dlxi_cosine(double product, double square, double other_square);

#endif
