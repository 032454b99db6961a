/* SPDX-License-Identifier: Apache-2.0 */
/* The quantiser: groups of values to codes and back, in 4, 8, 16 or 32 bits. Each loop is written
 * once for any group and width, and specialised for groups of 64 in 4 bits, the format of nearly
 * all bytes between sites. The compiler vectorises all of them. */
#include "codec/codec.h"
#include "codec/half.h"
#include "base/panic.h"

enum { GROUP_MAX = 1024, BATCH = 16 /* groups whose scales are computed together */ };

static void quantiser_check(dlxi_quantiser q) {
    DLXI_ASSERT(q.bits == 4 || q.bits == 8 || q.bits == 16 || q.bits == 32);
    DLXI_ASSERT(q.group >= 2 && q.group <= GROUP_MAX && q.group % 2 == 0);
}

static size_t bytes_of_group(int bits, size_t group) {
    size_t scale_bytes = bits <= 8 ? 2 : 0;
    return group * (size_t)bits / 8 + scale_bytes;
}

size_t dlxi_quantiser_group_bytes(dlxi_quantiser q) {
    quantiser_check(q);
    return bytes_of_group(q.bits, (size_t)q.group);
}

/* ---- encode ---------------------------------------------------------------------------------- */

/* The bits of max|x|: magnitudes order as integers, NaN above infinity, and integers vectorise. */
static DLXI_ALWAYS_INLINE uint32_t largest_magnitude(const float *src, size_t group) {
    int32_t largest = 0;
    for (size_t i = 0; i < group; i++) {
        int32_t magnitude = (int32_t)(dlxi_bits_of(src[i]) & 0x7FFFFFFFu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return (uint32_t)largest;
}

/* The nearest integer, ties to even, in the low bits, two's complement: the sum's last place is 1.
 * For |x| < 2^22. */
static DLXI_ALWAYS_INLINE uint32_t rounded(float x) {
    return dlxi_bits_of(x + 0x1.8p23f);
}

static DLXI_ALWAYS_INLINE void group_encode(uint8_t *restrict dst, const float *restrict src,
                                            float inverse, size_t group, int bits) {
    if (bits == 8) {
        for (size_t i = 0; i < group; i++) dst[i] = (uint8_t)rounded(src[i] * inverse);
        return;
    }
    uint8_t codes[GROUP_MAX];
    for (size_t i = 0; i < group; i++) codes[i] = (uint8_t)(rounded(src[i] * inverse) & 15u);
    for (size_t j = 0; j < group / 2; j++) dst[j] = (uint8_t)(codes[2 * j] | codes[2 * j + 1] << 4);
}

/* Returns false if a group can't be encoded. */
static DLXI_ALWAYS_INLINE bool encode(uint8_t *restrict dst, const float *restrict src,
                                      size_t groups, size_t group, int bits) {
    const float levels = bits == 4 ? 7.0f : 127.0f;
    const size_t group_bytes = bytes_of_group(bits, group);
    uint32_t refused = 0;
    for (size_t first = 0; first < groups; first += BATCH) {
        size_t count = groups - first < BATCH ? groups - first : BATCH;
        uint32_t largest[BATCH] = {0}, scale[BATCH];
        float inverse[BATCH];
        for (size_t g = 0; g < count; g++)
            largest[g] = largest_magnitude(src + (first + g) * group, group);
        for (size_t g = 0; g < BATCH; g++) {
            uint32_t half = dlxi_half_above(dlxi_float_of(largest[g]) / levels);
            half |= (uint32_t)(half == 0) & (uint32_t)(largest[g] != 0); /* quotient rounded to 0 */
            refused |= (uint32_t)(half >= DLXI_HALF_INFINITY);
            inverse[g] = dlxi_float_of(
                dlxi_choose(half == 0, 0, dlxi_bits_of(1.0f / dlxi_half_to_float(half))));
            scale[g] = half;
        }
        for (size_t g = 0; g < count; g++) {
            uint8_t *codes = dst + (first + g) * group_bytes;
            group_encode(codes, src + (first + g) * group, inverse[g], group, bits);
            dlxi_store16(codes + group_bytes - 2, (uint16_t)scale[g]);
        }
    }
    return refused == 0;
}

DLXI_FIXED_ORDER static bool encode4_64(uint8_t *restrict dst, const float *restrict src,
                                        size_t groups) {
    return encode(dst, src, groups, 64, 4);
}

DLXI_FIXED_ORDER static bool encode4(uint8_t *restrict dst, const float *restrict src,
                                     size_t groups, size_t group) {
    return encode(dst, src, groups, group, 4);
}

DLXI_FIXED_ORDER static bool encode8(uint8_t *restrict dst, const float *restrict src,
                                     size_t groups, size_t group) {
    return encode(dst, src, groups, group, 8);
}

DLXI_FIXED_ORDER static bool encode16(uint8_t *restrict dst, const float *restrict src,
                                      size_t count) {
    uint32_t refused = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = dlxi_half_magnitude(src[i]);
        refused |= (uint32_t)(magnitude >= DLXI_HALF_INFINITY);
        dlxi_store16(dst + 2 * i, (uint16_t)(magnitude | (dlxi_bits_of(src[i]) >> 16 & 0x8000u)));
    }
    return refused == 0;
}

DLXI_FIXED_ORDER static bool encode32(uint8_t *restrict dst, const float *restrict src,
                                      size_t count) {
    uint32_t refused = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = dlxi_bits_of(src[i]);
        refused |= (uint32_t)((bits & 0x7FFFFFFFu) >= DLXI_FLOAT_INFINITY);
        dlxi_store32(dst + 4 * i, bits);
    }
    return refused == 0;
}

dlx_status dlxi_quantise(uint8_t *dst, const float *src, size_t groups, dlxi_quantiser q) {
    quantiser_check(q);
    size_t group = (size_t)q.group;
    bool finite;
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    if (q.bits == 4 && group == 64)
        finite = encode4_64(dst, src, groups);
    else if (q.bits == 4)
        finite = encode4(dst, src, groups, group);
    else if (q.bits == 8)
        finite = encode8(dst, src, groups, group);
    else if (q.bits == 16)
        finite = encode16(dst, src, groups * group);
    else
        finite = encode32(dst, src, groups * group);
    dlxi_arithmetic_leave(&saved);
    return finite ? DLX_OK : DLX_NUMERIC;
}

/* ---- decode ---------------------------------------------------------------------------------- */

/* code · scale is exact in f32 (8 bits by 11): adding rounds after the weight and after the sum. */
static DLXI_ALWAYS_INLINE void put(float *dst, float value, float weight, bool add) {
    *dst = add ? *dst + weight * value : value;
}

static DLXI_ALWAYS_INLINE void decode(float *restrict dst, const uint8_t *restrict src,
                                      size_t groups, size_t group, int bits, float weight,
                                      bool add) {
    const size_t group_bytes = bytes_of_group(bits, group);
    for (size_t g = 0; g < groups; g++, dst += group, src += group_bytes) {
        float scale = dlxi_half_to_float(dlxi_load16(src + group_bytes - 2));
        if (bits == 8) {
            for (size_t i = 0; i < group; i++)
                put(dst + i, (float)(int8_t)src[i] * scale, weight, add);
            continue;
        }
        for (size_t j = 0; j < group / 2; j++) { /* the shifts sign-extend a nibble */
            uint32_t pair = src[j];
            put(dst + 2 * j, (float)((int32_t)(pair << 28) >> 28) * scale, weight, add);
            put(dst + 2 * j + 1, (float)((int32_t)(pair << 24) >> 28) * scale, weight, add);
        }
    }
}

DLXI_FIXED_ORDER static void decode4_64(float *restrict dst, const uint8_t *restrict src,
                                        size_t groups) {
    decode(dst, src, groups, 64, 4, 0.0f, false);
}

DLXI_FIXED_ORDER static void decode4_64_add(float *restrict dst, const uint8_t *restrict src,
                                            size_t groups, float weight) {
    decode(dst, src, groups, 64, 4, weight, true);
}

DLXI_FIXED_ORDER static void decode_any(float *restrict dst, const uint8_t *restrict src,
                                        size_t groups, size_t group, int bits, float weight,
                                        bool add) {
    if (bits == 4 && add)
        decode(dst, src, groups, group, 4, weight, true);
    else if (bits == 4)
        decode(dst, src, groups, group, 4, weight, false);
    else if (add)
        decode(dst, src, groups, group, 8, weight, true);
    else
        decode(dst, src, groups, group, 8, weight, false);
}

DLXI_FIXED_ORDER static void decode16(float *restrict dst, const uint8_t *restrict src,
                                      size_t count, float weight, bool add) {
    if (add)
        for (size_t i = 0; i < count; i++)
            put(dst + i, dlxi_half_to_float(dlxi_load16(src + 2 * i)), weight, true);
    else
        for (size_t i = 0; i < count; i++)
            put(dst + i, dlxi_half_to_float(dlxi_load16(src + 2 * i)), weight, false);
}

DLXI_FIXED_ORDER static void decode32(float *restrict dst, const uint8_t *restrict src,
                                      size_t count, float weight, bool add) {
    if (add)
        for (size_t i = 0; i < count; i++)
            put(dst + i, dlxi_float_of(dlxi_load32(src + 4 * i)), weight, true);
    else
        for (size_t i = 0; i < count; i++)
            put(dst + i, dlxi_float_of(dlxi_load32(src + 4 * i)), weight, false);
}

static void decode_with(float *dst, const uint8_t *src, size_t groups, dlxi_quantiser q,
                        float weight, bool add) {
    quantiser_check(q);
    size_t group = (size_t)q.group;
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    if (q.bits == 4 && group == 64 && add)
        decode4_64_add(dst, src, groups, weight);
    else if (q.bits == 4 && group == 64)
        decode4_64(dst, src, groups);
    else if (q.bits <= 8)
        decode_any(dst, src, groups, group, q.bits, weight, add);
    else if (q.bits == 16)
        decode16(dst, src, groups * group, weight, add);
    else
        decode32(dst, src, groups * group, weight, add);
    dlxi_arithmetic_leave(&saved);
}

void dlxi_dequantise(float *dst, const uint8_t *src, size_t groups, dlxi_quantiser q) {
    decode_with(dst, src, groups, q, 0.0f, false);
}

void dlxi_dequantise_add(float *dst, const uint8_t *src, float weight, size_t groups,
                         dlxi_quantiser q) {
    decode_with(dst, src, groups, q, weight, true);
}

static DLXI_ALWAYS_INLINE bool halves_finite_every(const uint8_t *src, size_t count,
                                                   size_t step_bytes) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = dlxi_load16(src + i * step_bytes) & 0x7FFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < DLXI_HALF_INFINITY;
}

DLXI_CLONES static bool halves_finite(const uint8_t *src, size_t count) {
    return halves_finite_every(src, count, 2);
}

DLXI_CLONES static bool floats_finite(const uint8_t *src, size_t count) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = dlxi_load32(src + 4 * i) & 0x7FFFFFFFu;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < DLXI_FLOAT_INFINITY;
}

bool dlxi_codes_valid(const uint8_t *src, size_t groups, dlxi_quantiser q) {
    size_t group_bytes = dlxi_quantiser_group_bytes(q), count = groups * (size_t)q.group;
    if (groups == 0) return true;
    if (q.bits == 32) return floats_finite(src, count);
    if (q.bits == 16) return halves_finite(src, count);
    return halves_finite_every(src + group_bytes - 2, groups, group_bytes);
}
