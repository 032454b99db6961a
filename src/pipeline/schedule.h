/* SPDX-License-Identifier: Apache-2.0 */
/* 1F1B: the order in which a stage runs the forward and backward passes of a step's micro-batches
 * (Narayanan et al. 2019, "PipeDream"; its flush variant, Narayanan et al. 2021). Pure. */
#ifndef DLXI_PIPELINE_SCHEDULE_H
#define DLXI_PIPELINE_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct dlxi_pass {
    bool backward;
    int64_t micro_batch; /* 0 … micro_batches − 1 */
    int slot;            /* of its activations */
} dlxi_pass;

/* Micro-batches in flight at once in a stage, at most stages − stage: it needs as many slots. */
int dlxi_schedule_slots(int stage, int stages, int64_t micro_batches);
/* The index-th of 2 · micro_batches passes. */
dlxi_pass dlxi_schedule_pass(int stage, int stages, int64_t micro_batches, int64_t index);

#endif
