/* SPDX-License-Identifier: Apache-2.0 */
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

dlx_status dlxi_alloc(void **out, size_t count, size_t item_bytes, const char *what,
                      dlx_error *error) {
    enum { ALIGNMENT = 64 };
    *out = NULL;
    if (item_bytes != 0 && count > (SIZE_MAX - ALIGNMENT) / item_bytes)
        DLX_FAIL(error, MEMORY, "out of memory: %s needs %zu items of %zu bytes", what, count,
                 item_bytes);
    size_t bytes = (count * item_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes == 0) bytes = ALIGNMENT;
    void *memory = aligned_alloc(ALIGNMENT, bytes);
    if (memory == NULL)
        DLX_FAIL(error, MEMORY, "out of memory: %s needs %zu bytes; try a smaller model or batch",
                 what, bytes);
    memset(memory, 0, bytes);
    *out = memory;
    return DLX_OK;
}
