/* SPDX-License-Identifier: Apache-2.0 */
/* Bounded little-endian reading and writing: how every field of a frame or message gets in and out
 * of bytes.
 *
 * A reader or writer fails once and for all: after the first read past the end (write past the
 * capacity, string too long, …) every later call does nothing, reads give 0 or "", and `failed` is
 * true. So a codec reads all its fields and checks once, with dlxi_reader_done or `failed`. */
#ifndef DLXI_WIRE_BYTES_H
#define DLXI_WIRE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct dlxi_writer {
    uint8_t *bytes;
    size_t capacity_bytes, used_bytes;
    bool failed;
} dlxi_writer;

typedef struct dlxi_reader {
    const uint8_t *bytes;
    size_t count_bytes, used_bytes;
    bool failed;
} dlxi_reader;

/* The memory stays the caller's. */
dlxi_writer dlxi_writer_over(uint8_t *bytes, size_t capacity_bytes);
dlxi_reader dlxi_reader_over(const uint8_t *bytes, size_t count_bytes);

void dlxi_write_u8(dlxi_writer *w, uint8_t value);
void dlxi_write_u16(dlxi_writer *w, uint16_t value);
void dlxi_write_u32(dlxi_writer *w, uint32_t value);
void dlxi_write_u64(dlxi_writer *w, uint64_t value);
void dlxi_write_f64(dlxi_writer *w, double value); /* IEEE bits; any value, NaN included */
void dlxi_write_bytes(dlxi_writer *w, const void *src, size_t count_bytes);
/* u16 length, then the characters without the terminator. Fails if the text is longer than
 * max_bytes (the terminator not counted) or than 65,535. */
void dlxi_write_string(dlxi_writer *w, const char *text, size_t max_bytes);

uint8_t dlxi_read_u8(dlxi_reader *r);
uint16_t dlxi_read_u16(dlxi_reader *r);
uint32_t dlxi_read_u32(dlxi_reader *r);
uint64_t dlxi_read_u64(dlxi_reader *r);
double dlxi_read_f64(dlxi_reader *r); /* the caller checks that it is finite and in range */
/* Points into the reader's bytes; NULL on failure. */
const uint8_t *dlxi_read_bytes(dlxi_reader *r, size_t count_bytes);
/* dst has max_bytes + 1. Fails if the text is longer than max_bytes or holds a zero byte; dst is
 * then "". */
void dlxi_read_string(dlxi_reader *r, char *dst, size_t max_bytes);

size_t dlxi_reader_left_bytes(const dlxi_reader *r);
/* Nothing failed and nothing is left over. */
bool dlxi_reader_done(const dlxi_reader *r);

#endif
