/* SPDX-License-Identifier: Apache-2.0 */
/* The outer optimiser: Nesterov SGD on the anchor, in replicated arithmetic. */
#ifndef DLXI_OUTER_STEP_H
#define DLXI_OUTER_STEP_H

#include "base/error.h"

/* v ← μ v + Δ; θ ← θ − η (Δ + μ v), over count values; one rounding an operation, so equal to the
 * bit everywhere. Call inside dlxi_arithmetic_enter/leave. */
void dlxi_outer_step(float *anchor, float *velocity, const float *update, int64_t count,
                     float learning_rate, float momentum);

#endif
