/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_codec: tier 3, the quantiser over flat vectors of any length. */
#include <string.h>

#include "codec/codec.h"
#include "outer/sync_options.h"

enum { GROUP_MAX = DLXI_MAX_group };

static bool is_in_range(int bits, int group) {
    return (bits == 4 || bits == 8 || bits == 16 || bits == 32) && group >= 2 &&
           group <= GROUP_MAX && group % 2 == 0;
}

size_t dlx_codec_bound(size_t count, int bits, int group) {
    if (!is_in_range(bits, group)) return 0;
    size_t whole = count / (size_t)group + (count % (size_t)group != 0);
    size_t bytes = dlxi_quantiser_group_bytes((dlxi_quantiser){bits, group});
    return whole > SIZE_MAX / bytes ? 0 : whole * bytes;
}

static dlx_status range_check(int bits, int group, dlx_error *error) {
    if (!is_in_range(bits, group))
        DLX_FAIL(error, ARGUMENT,
                 "bits %d, group %d: bits is 4, 8, 16 or 32, group is even and 2 to %d", bits,
                 group, GROUP_MAX);
    return DLX_OK;
}

dlx_status dlx_codec_encode(void *dst, const float *src, size_t count, int bits, int group,
                            dlx_error *error) {
    DLXI_NOT_NULL(dst);
    DLXI_NOT_NULL(src);
    DLX_TRY(range_check(bits, group, error));
    dlxi_quantiser q = {bits, group};
    size_t whole = count / (size_t)group, rest = count % (size_t)group;
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    dlx_status status = dlxi_quantise(dst, src, whole, q);
    if (status == DLX_OK && rest > 0) {
        float padded[GROUP_MAX] = {0};
        memcpy(padded, src + count - rest, rest * sizeof(float));
        status =
            dlxi_quantise((uint8_t *)dst + whole * dlxi_quantiser_group_bytes(q), padded, 1, q);
    }
    dlxi_arithmetic_leave(&saved);
    if (status == DLX_NUMERIC)
        DLX_FAIL(error, NUMERIC, "a value is not finite, or too large for %d bits", bits);
    return status;
}

dlx_status dlx_codec_decode(float *dst, const void *src, size_t src_bytes, size_t count, int bits,
                            int group, dlx_error *error) {
    DLXI_NOT_NULL(dst);
    DLXI_NOT_NULL(src);
    DLX_TRY(range_check(bits, group, error));
    dlxi_quantiser q = {bits, group};
    if (src_bytes != dlx_codec_bound(count, bits, group))
        DLX_FAIL(error, DATA, "%zu bytes do not hold %zu values of %d bits; %zu would", src_bytes,
                 count, bits, dlx_codec_bound(count, bits, group));
    size_t whole = count / (size_t)group, rest = count % (size_t)group;
    if (!dlxi_codes_valid(src, whole + (rest > 0), q))
        DLX_FAIL(error, DATA, "a scale or value is not finite");
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    dlxi_dequantise(dst, src, whole, q);
    if (rest > 0) {
        float padded[GROUP_MAX];
        dlxi_dequantise(padded, (const uint8_t *)src + whole * dlxi_quantiser_group_bytes(q), 1, q);
        memcpy(dst + count - rest, padded, rest * sizeof(float));
    }
    dlxi_arithmetic_leave(&saved);
    return DLX_OK;
}
