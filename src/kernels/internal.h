/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this room share: the backends' tables, and scratch memory. */
#ifndef DLXI_KERNELS_INTERNAL_H
#define DLXI_KERNELS_INTERNAL_H

#include "kernels/kernels.h"

/* Memory kept between calls; grows to the largest request. Contents are undefined. */
typedef struct dlxi_scratch {
    void *data;
    size_t bytes;
} dlxi_scratch;

/* scratch->data ← at least count items; 64-byte aligned. */
dlx_status dlxi_scratch_reserve(dlxi_scratch *scratch, size_t count, size_t item_bytes);
void dlxi_scratch_free(dlxi_scratch *scratch);

extern const dlxi_operations dlxi_fast_operations, dlxi_ref_operations;

#endif
