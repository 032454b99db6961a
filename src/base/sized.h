/* SPDX-License-Identifier: Apache-2.0 */
/* Structs of the public interface that grow: their first member is their size in the caller's
 * header, and new members go at the end. Members that an older caller lacks have their defaults;
 * those of a newer caller that are unknown here must be zero. */
#ifndef DLXI_BASE_SIZED_H
#define DLXI_BASE_SIZED_H

#include "base/error.h"

/* dst[dst_bytes], which holds the defaults, ← what the caller's struct `src` gives. min_bytes: the
 * offset of the first member that a caller may lack. DLX_ARGUMENT names both sizes, and `init`, the
 * macro to begin with. */
dlx_status dlxi_sized_read(void *dst, size_t dst_bytes, size_t min_bytes, const void *src,
                           const char *init, dlx_error *error);

/* The caller's struct dst[dst_bytes] ← the defaults src[src_bytes], with its own size, and zeros
 * for what is unknown here. Does nothing if dst is NULL or has no room for a size. */
void dlxi_sized_default(void *dst, size_t dst_bytes, const void *src, size_t src_bytes);

#endif
