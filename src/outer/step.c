/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/step.h"

#include "base/simd.h"

/* static: a dispatched function is exported whatever its visibility says */
DLXI_CLONES static void step(float *restrict anchor, float *restrict velocity,
                             const float *restrict update, int64_t count, float learning_rate,
                             float momentum, float momentum_rate) {
    for (int64_t i = 0; i < count; i++) {
        velocity[i] = momentum * velocity[i] + update[i];
        anchor[i] = anchor[i] - (learning_rate * update[i] + momentum_rate * velocity[i]);
    }
}

void dlxi_outer_step(float *restrict anchor, float *restrict velocity, const float *restrict update,
                     int64_t count, const dlxi_outer *by) {
    step(anchor, velocity, update, count, (float)by->learning_rate, (float)by->momentum,
         (float)by->momentum_rate);
}
