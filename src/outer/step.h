/* SPDX-License-Identifier: Apache-2.0 */
/* The outer optimiser: SGD with quasi-hyperbolic momentum (Ma and Yarats, arXiv 1810.06801) on the
 * anchor, in replicated arithmetic. Nesterov's is γ = η μ. */
#ifndef DLXI_OUTER_STEP_H
#define DLXI_OUTER_STEP_H

#include "base/error.h"

typedef struct dlxi_outer {
    double learning_rate, momentum, momentum_rate; /* η, μ, γ */
} dlxi_outer;

/* What a step makes of Δ at once. */
static inline double dlxi_outer_share(const dlxi_outer *by) {
    return by->learning_rate + by->momentum_rate;
}

/* v ← μ v + Δ; θ ← θ − (η Δ + γ v), over count values; one rounding an operation, so equal to the
 * bit everywhere. Call inside dlxi_arithmetic_enter/leave. */
void dlxi_outer_step(float *anchor, float *velocity, const float *update, int64_t count,
                     const dlxi_outer *by);

#endif
