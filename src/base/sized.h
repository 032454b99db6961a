/* SPDX-License-Identifier: Apache-2.0 */
/* Structs of the public interface that grow: they know their size in the caller's header, mostly by
 * a first member `size`, and new members go at the end. Members that an older caller lacks have
 * their defaults; those of a newer caller that are unknown here must be zero. */
#ifndef DLXI_BASE_SIZED_H
#define DLXI_BASE_SIZED_H

#include "base/error.h"

/* DLX_ARGUMENT, naming both sizes and `init`, the macro to begin with, if the caller's struct is
 * smaller than min_bytes: the offset of the first member that a caller may lack. own_bytes: its
 * size here. */
dlx_status dlxi_sized_check(const void *given, size_t min_bytes, size_t own_bytes, const char *init,
                            dlx_error *error);

/* dst[dst_bytes], which holds the defaults, ← the members that the caller's src[src_bytes] has.
 * DLX_ARGUMENT, naming both sizes, if src has set what is unknown here. */
dlx_status dlxi_sized_copy(void *dst, size_t dst_bytes, const void *src, size_t src_bytes,
                           dlx_error *error);

/* Both, of a struct that begins with its size; dst's stays dst_bytes. */
dlx_status dlxi_sized_read(void *dst, size_t dst_bytes, size_t min_bytes, const void *src,
                           const char *init, dlx_error *error);

/* What the caller's checked struct dst has room for ← src[src_bytes]; dst keeps its size. */
void dlxi_sized_write(void *dst, const void *src, size_t src_bytes);

/* The caller's struct dst[dst_bytes] ← the defaults src[src_bytes], with its own size, and zeros
 * for what is unknown here. Does nothing if dst is NULL or has no room for a size. */
void dlxi_sized_default(void *dst, size_t dst_bytes, const void *src, size_t src_bytes);

#endif
