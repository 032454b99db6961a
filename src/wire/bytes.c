/* SPDX-License-Identifier: Apache-2.0 */
/* Bounded little-endian reading and writing; see bytes.h. */
#include "wire/bytes.h"

#include <string.h>

dlxi_writer dlxi_writer_over(uint8_t *bytes, size_t capacity_bytes) {
    return (dlxi_writer){.bytes = bytes, .capacity_bytes = capacity_bytes};
}

dlxi_reader dlxi_reader_over(const uint8_t *bytes, size_t count_bytes) {
    return (dlxi_reader){.bytes = bytes, .count_bytes = count_bytes};
}

/* The next `bytes` bytes to write to, or NULL once failed. */
static uint8_t *claim(dlxi_writer *w, size_t bytes) {
    if (w->failed || bytes > w->capacity_bytes - w->used_bytes) {
        w->failed = true;
        return NULL;
    }
    uint8_t *place = w->bytes + w->used_bytes;
    w->used_bytes += bytes;
    return place;
}

static void write_integer(dlxi_writer *w, uint64_t value, size_t bytes) {
    uint8_t *place = claim(w, bytes);
    if (place == NULL) return;
    for (size_t i = 0; i < bytes; i++) place[i] = (uint8_t)(value >> (8 * i));
}

void dlxi_write_u8(dlxi_writer *w, uint8_t value) {
    write_integer(w, value, 1);
}

void dlxi_write_u16(dlxi_writer *w, uint16_t value) {
    write_integer(w, value, 2);
}

void dlxi_write_u32(dlxi_writer *w, uint32_t value) {
    write_integer(w, value, 4);
}

void dlxi_write_u64(dlxi_writer *w, uint64_t value) {
    write_integer(w, value, 8);
}

void dlxi_write_f64(dlxi_writer *w, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    write_integer(w, bits, 8);
}

void dlxi_write_bytes(dlxi_writer *w, const void *src, size_t count_bytes) {
    uint8_t *place = claim(w, count_bytes);
    if (place != NULL && count_bytes != 0) memcpy(place, src, count_bytes);
}

void dlxi_write_string(dlxi_writer *w, const char *text, size_t max_bytes) {
    size_t length_bytes = strlen(text);
    if (length_bytes > max_bytes || length_bytes > UINT16_MAX) {
        w->failed = true;
        return;
    }
    dlxi_write_u16(w, (uint16_t)length_bytes);
    dlxi_write_bytes(w, text, length_bytes);
}

const uint8_t *dlxi_read_bytes(dlxi_reader *r, size_t count_bytes) {
    if (r->failed || count_bytes > r->count_bytes - r->used_bytes) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *place = r->bytes + r->used_bytes;
    r->used_bytes += count_bytes;
    return place;
}

static uint64_t read_integer(dlxi_reader *r, size_t bytes) {
    const uint8_t *place = dlxi_read_bytes(r, bytes);
    if (place == NULL) return 0;
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++) value |= (uint64_t)place[i] << (8 * i);
    return value;
}

uint8_t dlxi_read_u8(dlxi_reader *r) {
    return (uint8_t)read_integer(r, 1);
}

uint16_t dlxi_read_u16(dlxi_reader *r) {
    return (uint16_t)read_integer(r, 2);
}

uint32_t dlxi_read_u32(dlxi_reader *r) {
    return (uint32_t)read_integer(r, 4);
}

uint64_t dlxi_read_u64(dlxi_reader *r) {
    return read_integer(r, 8);
}

double dlxi_read_f64(dlxi_reader *r) {
    uint64_t bits = read_integer(r, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void dlxi_read_string(dlxi_reader *r, char *dst, size_t max_bytes) {
    dst[0] = '\0';
    size_t length_bytes = dlxi_read_u16(r);
    if (length_bytes > max_bytes) r->failed = true;
    const uint8_t *text = dlxi_read_bytes(r, length_bytes);
    if (text == NULL) return;
    if (length_bytes != 0 && memchr(text, 0, length_bytes) != NULL) {
        r->failed = true;
        return;
    }
    if (length_bytes != 0) memcpy(dst, text, length_bytes);
    dst[length_bytes] = '\0';
}

size_t dlxi_reader_left_bytes(const dlxi_reader *r) {
    return r->failed ? 0 : r->count_bytes - r->used_bytes;
}

bool dlxi_reader_done(const dlxi_reader *r) {
    return !r->failed && r->used_bytes == r->count_bytes;
}
