/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: zeroed, 64-byte aligned, sizes checked for overflow. */
#ifndef DLXI_BASE_MEMORY_H
#define DLXI_BASE_MEMORY_H

#include "base/error.h"

/* *out ← count × item_bytes zeroed bytes, to be freed with free(); not NULL for a size of 0. On
 * failure *out is NULL and the error names `what` and the size. */
dlx_status dlxi_alloc(void **out, size_t count, size_t item_bytes, const char *what,
                      dlx_error *error);

/* DLXI_NEW(&pointer, count, error): an array of *pointer's type. */
#define DLXI_NEW(pointer, count, error)                                                            \
    dlxi_alloc((void **)(void *)(pointer), (size_t)(count), sizeof **(pointer), #pointer, (error))

#endif
