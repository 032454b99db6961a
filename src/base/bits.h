/* SPDX-License-Identifier: Apache-2.0 */
/* The bits of an f32, and little-endian integers: plain enough for the compiler to vectorise. */
#ifndef DLXI_BASE_BITS_H
#define DLXI_BASE_BITS_H

#include <stdint.h>
#include <string.h>

static inline uint32_t dlxi_bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float dlxi_float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline uint16_t dlxi_little16(uint16_t x) {
    return (uint16_t)(x >> 8 | x << 8);
}
static inline uint32_t dlxi_little32(uint32_t x) {
    return (uint32_t)dlxi_little16((uint16_t)x) << 16 | dlxi_little16((uint16_t)(x >> 16));
}
#else
static inline uint16_t dlxi_little16(uint16_t x) {
    return x;
}
static inline uint32_t dlxi_little32(uint32_t x) {
    return x;
}
#endif

static inline uint16_t dlxi_load16(const uint8_t *src) {
    uint16_t x;
    memcpy(&x, src, sizeof x);
    return dlxi_little16(x);
}

static inline void dlxi_store16(uint8_t *dst, uint16_t x) {
    x = dlxi_little16(x);
    memcpy(dst, &x, sizeof x);
}

static inline uint32_t dlxi_load32(const uint8_t *src) {
    uint32_t x;
    memcpy(&x, src, sizeof x);
    return dlxi_little32(x);
}

static inline void dlxi_store32(uint8_t *dst, uint32_t x) {
    x = dlxi_little32(x);
    memcpy(dst, &x, sizeof x);
}

static inline uint64_t dlxi_load64(const uint8_t *src) {
    return dlxi_load32(src) | (uint64_t)dlxi_load32(src + 4) << 32;
}

#endif
