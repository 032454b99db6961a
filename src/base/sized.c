/* SPDX-License-Identifier: Apache-2.0 */
#include "base/sized.h"

#include <string.h>

static size_t size_of(const void *given) {
    size_t bytes;
    memcpy(&bytes, given, sizeof bytes);
    return bytes;
}

dlx_status dlxi_sized_check(const void *given, size_t min_bytes, size_t own_bytes, const char *init,
                            dlx_error *error) {
    if (size_of(given) >= min_bytes) return DLX_OK;
    DLX_FAIL(error, ARGUMENT, "size is %zu; allowed: %zu or more, here %zu; begin with %s",
             size_of(given), min_bytes, own_bytes, init);
}

dlx_status dlxi_sized_copy(void *dst, size_t dst_bytes, const void *src, size_t src_bytes,
                           dlx_error *error) {
    for (size_t i = dst_bytes; i < src_bytes; i++)
        if (((const unsigned char *)src)[i] != 0)
            DLX_FAIL(error, ARGUMENT,
                     "size is %zu, and byte %zu is set, which this library, with a size of %zu, "
                     "does not know; use a newer library, or leave new members at their defaults",
                     src_bytes, i, dst_bytes);
    memcpy(dst, src, src_bytes < dst_bytes ? src_bytes : dst_bytes);
    return DLX_OK;
}

dlx_status dlxi_sized_read(void *dst, size_t dst_bytes, size_t min_bytes, const void *src,
                           const char *init, dlx_error *error) {
    DLX_TRY(dlxi_sized_check(src, min_bytes, dst_bytes, init, error));
    DLX_TRY(dlxi_sized_copy(dst, dst_bytes, src, size_of(src), error));
    memcpy(dst, &dst_bytes, sizeof dst_bytes);
    return DLX_OK;
}

void dlxi_sized_write(void *dst, const void *src, size_t src_bytes) {
    size_t dst_bytes = size_of(dst);
    memcpy(dst, src, src_bytes < dst_bytes ? src_bytes : dst_bytes);
    memcpy(dst, &dst_bytes, sizeof dst_bytes);
}

void dlxi_sized_default(void *dst, size_t dst_bytes, const void *src, size_t src_bytes) {
    if (dst == NULL || dst_bytes < sizeof dst_bytes) return;
    memset(dst, 0, dst_bytes);
    memcpy(dst, src, dst_bytes < src_bytes ? dst_bytes : src_bytes);
    memcpy(dst, &dst_bytes, sizeof dst_bytes);
}
