/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: zeroed, 64-byte aligned, sizes checked for overflow. */
#ifndef DLXI_BASE_MEMORY_H
#define DLXI_BASE_MEMORY_H

#include "base/error.h"

/* *out ← count × item_bytes zeroed bytes, aligned to 64; free with free(). A size of 0 gives a
 * valid pointer. On failure *out is NULL and `error` names `what` and the size. Any thread. */
dlx_status dlxi_alloc(void **out, size_t count, size_t item_bytes, const char *what,
                      dlx_error *error);

/* DLXI_NEW(&pointer, count, error): an array of *pointer's type. */
#define DLXI_NEW(pointer, count, error)                                                            \
    dlxi_alloc((void **)(void *)(pointer), (size_t)(count), sizeof **(pointer), #pointer, (error))

#endif
