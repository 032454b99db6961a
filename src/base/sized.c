/* SPDX-License-Identifier: Apache-2.0 */
#include "base/sized.h"

#include <string.h>

dlx_status dlxi_sized_read(void *dst, size_t dst_bytes, size_t min_bytes, const void *src,
                           const char *init, dlx_error *error) {
    size_t bytes;
    memcpy(&bytes, src, sizeof bytes);
    if (bytes < min_bytes)
        DLX_FAIL(error, ARGUMENT, "size is %zu; allowed: %zu or more, here %zu; begin with %s",
                 bytes, min_bytes, dst_bytes, init);
    for (size_t i = dst_bytes; i < bytes; i++)
        if (((const unsigned char *)src)[i] != 0)
            DLX_FAIL(error, ARGUMENT,
                     "size is %zu, and byte %zu is set, which this library, with a size of %zu, "
                     "does not know; use a newer library, or leave new members at their defaults",
                     bytes, i, dst_bytes);
    memcpy(dst, src, bytes < dst_bytes ? bytes : dst_bytes);
    memcpy(dst, &dst_bytes, sizeof dst_bytes);
    return DLX_OK;
}

void dlxi_sized_default(void *dst, size_t dst_bytes, const void *src, size_t src_bytes) {
    if (dst == NULL || dst_bytes < sizeof dst_bytes) return;
    memset(dst, 0, dst_bytes);
    memcpy(dst, src, dst_bytes < src_bytes ? dst_bytes : src_bytes);
    memcpy(dst, &dst_bytes, sizeof dst_bytes);
}
