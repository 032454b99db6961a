/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/round.h"

static dlxi_round_action apply_or_wait(bool committed) {
    return committed ? DLXI_ROUND_APPLY : DLXI_ROUND_WAIT;
}

dlxi_round_action dlxi_round_next(const dlxi_round *round, bool committed) {
    if (round->outstanding) {
        if (round->when == DLXI_WHEN_WAITED_FOR) return apply_or_wait(committed);
        if (round->when == DLXI_WHEN_COMMITTED) {
            if (round->exchange_steps == 0 && committed) return DLXI_ROUND_APPLY;
            uint32_t due = round->exchange_steps < round->inner_steps ? round->exchange_steps
                                                                      : round->inner_steps;
            if (due != 0 && round->steps_since >= due) return apply_or_wait(committed);
        }
        /* nothing to submit and no more to train: only the flush is left */
        if (round->ending && round->steps == 0) return apply_or_wait(committed);
    }
    bool boundary = round->steps >= round->inner_steps || (round->ending && round->steps > 0);
    if (!boundary) return DLXI_ROUND_TRAIN;
    if (!round->outstanding) return DLXI_ROUND_SUBMIT;
    if (committed)
        return round->when == DLXI_WHEN_BOUNDARY ? DLXI_ROUND_SUBMIT_AND_APPLY : DLXI_ROUND_APPLY;
    return !round->ending && round->steps < round->inner_steps_max ? DLXI_ROUND_TRAIN
                                                                   : DLXI_ROUND_WAIT;
}

void dlxi_round_on_step(dlxi_round *round) {
    round->steps++;
    round->steps_since++;
}

void dlxi_round_on_applied(dlxi_round *round) {
    round->outstanding = false;
}

void dlxi_round_on_submitted(dlxi_round *round, uint32_t inner_steps) {
    round->number++;
    round->steps = 0;
    round->steps_since = 0;
    round->outstanding = true;
    round->inner_steps = inner_steps;
    if (round->inner_steps_max < inner_steps) round->inner_steps_max = inner_steps;
}
