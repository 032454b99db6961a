/* SPDX-License-Identifier: Apache-2.0 */
/* Structs of the public interface that grow: the first member is their size, as the caller's header
 * has it, and new members go at the end. So a caller of an older or newer header is understood:
 * members it lacks have their defaults, and members unknown here must be zero. */
#ifndef DLXI_BASE_SIZED_H
#define DLXI_BASE_SIZED_H

#include "base/error.h"

/* dst[dst_bytes], which holds the defaults, ← what the caller's struct `src` gives. min_bytes: up to
 * the first member that a caller may lack. DLX_ARGUMENT names both sizes and `init`, the macro to
 * begin with. */
dlx_status dlxi_sized_read(void *dst, size_t dst_bytes, size_t min_bytes, const void *src,
                           const char *init, dlx_error *error);

/* The caller's struct dst of dst_bytes ← the defaults src[src_bytes], with dst_bytes as its size and
 * zeros for what is unknown here. Does nothing if dst is NULL or has no room for a size. */
void dlxi_sized_default(void *dst, size_t dst_bytes, const void *src, size_t src_bytes);

#endif
