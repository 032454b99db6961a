/* SPDX-License-Identifier: Apache-2.0 */
/* Scratch memory: grows to the largest request, so it stops growing after the first step. */
#include "kernels/internal.h"

#include "base/memory.h"

#include <stdlib.h>

dlx_status dlxi_scratch_reserve(dlxi_scratch *scratch, size_t count, size_t item_bytes) {
    if (item_bytes != 0 && count > SIZE_MAX / item_bytes) return DLX_MEMORY;
    if (count * item_bytes <= scratch->bytes && scratch->data != NULL) return DLX_OK;
    dlxi_scratch_free(scratch);
    DLX_TRY(dlxi_alloc(&scratch->data, count, item_bytes, "kernel scratch", NULL));
    scratch->bytes = count * item_bytes;
    return DLX_OK;
}

void dlxi_scratch_free(dlxi_scratch *scratch) {
    free(scratch->data);
    *scratch = (dlxi_scratch){0};
}
