/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/schedule.h"
#include "base/panic.h"

/* Forward passes before the first backward pass: enough to keep every later stage busy. */
static int64_t warm_up(int stage, int stages, int64_t micro_batches) {
    int64_t below = stages - 1 - stage;
    return below < micro_batches ? below : micro_batches;
}

int dlxi_schedule_slots(int stage, int stages, int64_t micro_batches) {
    DLXI_ASSERT(stage >= 0 && stage < stages && micro_batches >= 1);
    int64_t first = warm_up(stage, stages, micro_batches);
    return (int)(first < micro_batches ? first + 1 : micro_batches);
}

dlxi_pass dlxi_schedule_pass(int stage, int stages, int64_t micro_batches, int64_t index) {
    DLXI_ASSERT(index >= 0 && index < 2 * micro_batches);
    int64_t first = warm_up(stage, stages, micro_batches), in_pairs = index - first;
    dlxi_pass pass = {0};
    if (in_pairs < 0) {
        pass.micro_batch = index;
    } else if (in_pairs < 2 * (micro_batches - first)) {
        pass.backward = in_pairs % 2 == 1;
        pass.micro_batch = in_pairs / 2 + (pass.backward ? 0 : first);
    } else {
        pass.backward = true;
        pass.micro_batch = index - micro_batches;
    }
    /* micro-batches in flight are consecutive, so their slots differ */
    pass.slot = (int)(pass.micro_batch % dlxi_schedule_slots(stage, stages, micro_batches));
    return pass;
}
