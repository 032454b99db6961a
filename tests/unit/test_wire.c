/* SPDX-License-Identifier: Apache-2.0 */
/* Frames and fields on the wire: golden bytes, what comes back, and what must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/rng.h"
#include "wire/bytes.h"
#include "wire/frame.h"

enum {
    FRAME_BYTES_MAX = DLXI_FRAME_HEADER_BYTES + DLXI_FRAME_PAYLOAD_MAX,
    GOLDEN_BYTES_MAX = 1024
};

static dlx_error error;

/* ---- golden ---------------------------------------------------------------------------------- */

/* Reads the frame of this name from tests/golden/frames.hex; returns its size. */
static size_t read_golden(uint8_t dst[GOLDEN_BYTES_MAX], const char *name) {
    FILE *file = fopen(GOLDEN_FOLDER "/frames.hex", "r");
    assert_non_null(file);
    char line[256];
    bool inside = false;
    size_t bytes = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != ' ') inside = strcmp(line, name) == 0;
        unsigned value;
        for (const char *at = line + 2; inside && line[0] == ' ' && sscanf(at, "%2x", &value) == 1;
             at += 2) {
            assert_true(bytes < GOLDEN_BYTES_MAX);
            dst[bytes++] = (uint8_t)value;
        }
    }
    fclose(file);
    assert_true(bytes >= DLXI_FRAME_HEADER_BYTES);
    return bytes;
}

static uint8_t ramp[300];
static const struct {
    const char *name;
    dlxi_frame frame;
} golden[] = {
    {"ping",
     {.kind = DLXI_FRAME_PING,
      .term = 1,
      .coordinator = 0x8182838485868788,
      .site = DLXI_SITE_COORDINATOR}},
    {"hello",
     {.kind = DLXI_FRAME_HELLO,
      .site = DLXI_SITE_NONE,
      .payload = (const uint8_t *)"delft",
      .payload_bytes = 5}},
    {"contribution",
     {.kind = DLXI_FRAME_CONTRIBUTION,
      .term = 0x01020304,
      .round = 0x1112131415161718,
      .attempt = 0x21222324,
      .site = 0x3132,
      .rank = 0x4142,
      .tensor = 0x51525354,
      .trip = 1,
      .offset_groups = 0x61626364,
      .count_groups = 0x71727374,
      .payload = ramp,
      .payload_bytes = sizeof ramp}},
    {"greeting",
     {.kind = DLXI_FRAME_GREETING,
      .term = UINT32_MAX,
      .round = UINT64_MAX,
      .attempt = UINT32_MAX,
      .site = 63,
      .rank = UINT16_MAX,
      .tensor = UINT32_MAX,
      .trip = UINT16_MAX,
      .offset_groups = UINT32_MAX,
      .count_groups = UINT32_MAX,
      .payload = (const uint8_t *)"\x00\xff",
      .payload_bytes = 2}},
    {"fetch",
     {.kind = DLXI_FRAME_FETCH,
      .term = 3,
      .round = 9,
      .site = 2,
      .rank = 1,
      .tensor = 7,
      .trip = 2,
      .offset_groups = 5}},
    {"entry",
     {.kind = DLXI_FRAME_ENTRY,
      .term = 3,
      .round = 9,
      .site = 4,
      .rank = 1,
      .tensor = 7,
      .trip = 2,
      .offset_groups = 5,
      .count_groups = 1,
      .payload = (const uint8_t *)"codes",
      .payload_bytes = 5}},
};

static void assert_same(const dlxi_frame *a, const dlxi_frame *b) {
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->term, b->term);
    assert_true(a->coordinator == b->coordinator);
    assert_true(a->round == b->round);
    assert_int_equal(a->attempt, b->attempt);
    assert_int_equal(a->site, b->site);
    assert_int_equal(a->rank, b->rank);
    assert_int_equal(a->tensor, b->tensor);
    assert_int_equal(a->trip, b->trip);
    assert_int_equal(a->offset_groups, b->offset_groups);
    assert_int_equal(a->count_groups, b->count_groups);
    assert_int_equal(a->payload_bytes, b->payload_bytes);
    if (a->payload_bytes != 0) assert_memory_equal(a->payload, b->payload, a->payload_bytes);
}

static void frames_are_the_golden_bytes(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof ramp; i++) ramp[i] = (uint8_t)(i * 7 + 3);
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        uint8_t expected[GOLDEN_BYTES_MAX], bytes[GOLDEN_BYTES_MAX];
        size_t expected_bytes = read_golden(expected, golden[i].name);
        assert_int_equal(dlxi_frame_encode(bytes, &golden[i].frame), expected_bytes);
        assert_memory_equal(bytes, expected, expected_bytes);
        dlxi_frame frame;
        assert_int_equal(dlxi_frame_decode(&frame, expected, expected_bytes, &error), DLX_OK);
        assert_same(&frame, &golden[i].frame);
    }
}

/* ---- there and back -------------------------------------------------------------------------- */

static void every_kind_comes_back(void **state) {
    (void)state;
    static const dlxi_frame_kind kinds[] = {
#define KIND(name, number) DLXI_FRAME_##name,
        DLXI_FRAME_KIND_TABLE(KIND)
#undef KIND
    };
    static const uint32_t sizes[] = {0, 1, 7, 1000, DLXI_FRAME_PAYLOAD_MAX};
    uint8_t *payload = malloc(DLXI_FRAME_PAYLOAD_MAX), *bytes = malloc(FRAME_BYTES_MAX);
    assert_true(payload != NULL && bytes != NULL);
    for (size_t i = 0; i < DLXI_FRAME_PAYLOAD_MAX; i++) payload[i] = (uint8_t)dlxi_rng_u64(1, 2, i);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            uint64_t draw = dlxi_rng_u64(3, k, s);
            dlxi_frame sent = {.kind = kinds[k],
                               .term = (uint32_t)draw,
                               .round = draw * 3,
                               .attempt = (uint32_t)(draw >> 8),
                               .site = (uint16_t)(draw >> 16),
                               .rank = (uint16_t)(draw >> 24),
                               .tensor = (uint32_t)(draw >> 32),
                               .trip = (uint16_t)(draw >> 40),
                               .payload_bytes = sizes[s],
                               .payload = payload};
            if (dlxi_frame_is_data(kinds[k])) { /* the two share their bytes */
                sent.offset_groups = (uint32_t)(draw >> 11);
                sent.count_groups = (uint32_t)(draw >> 21);
            } else {
                sent.coordinator = draw * 5;
            }
            size_t count = dlxi_frame_encode(bytes, &sent);
            assert_int_equal(count, DLXI_FRAME_HEADER_BYTES + sizes[s]);
            dlxi_frame got;
            assert_int_equal(dlxi_frame_decode(&got, bytes, count, &error), DLX_OK);
            assert_same(&got, &sent);
        }
    }
    free(payload);
    free(bytes);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void every_flipped_bit_is_refused(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        uint8_t bytes[GOLDEN_BYTES_MAX];
        size_t count = dlxi_frame_encode(bytes, &golden[i].frame);
        dlxi_frame frame;
        for (size_t bit = 0; bit < 8 * count; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (dlxi_frame_decode(&frame, bytes, count, &error) != DLX_DATA)
                fail_msg("frame '%s' with bit %zu flipped was taken", golden[i].name, bit);
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        assert_int_equal(dlxi_frame_decode(&frame, bytes, count, &error), DLX_OK);
    }
}

static void every_cut_is_refused(void **state) {
    (void)state;
    uint8_t bytes[GOLDEN_BYTES_MAX] = {0};
    size_t count = dlxi_frame_encode(bytes, &golden[2].frame);
    dlxi_frame frame;
    for (size_t cut = 0; cut < GOLDEN_BYTES_MAX; cut++)
        if (cut != count) assert_int_equal(dlxi_frame_decode(&frame, bytes, cut, &error), DLX_DATA);
}

/* Makes the checksum right, as a hostile sender would. The formula stands here a second time on
 * purpose. */
static void seal(uint8_t *bytes, size_t count) {
    uint64_t sum = XXH3_64bits(bytes + DLXI_FRAME_HEADER_BYTES, count - DLXI_FRAME_HEADER_BYTES);
    sum = XXH3_64bits_withSeed(bytes, 48, sum);
    for (int i = 0; i < 8; i++) bytes[48 + i] = (uint8_t)(sum >> 8 * i);
}

static void put_u32(uint8_t *bytes, uint32_t value) {
    for (int i = 0; i < 4; i++) bytes[i] = (uint8_t)(value >> 8 * i);
}

static void expect_refusal(uint8_t *bytes, size_t count, const char *message) {
    dlxi_frame frame;
    seal(bytes, count);
    assert_int_equal(dlxi_frame_decode(&frame, bytes, count, &error), DLX_DATA);
    assert_string_equal(error.message, message);
    assert_int_equal(frame.payload_bytes, 0);
    assert_null(frame.payload);
}

static void hostile_headers_are_refused_by_name(void **state) {
    (void)state;
    uint8_t good[DLXI_FRAME_HEADER_BYTES + 5], bytes[sizeof good];
    size_t count = dlxi_frame_encode(good, &golden[1].frame);
    dlxi_frame frame;
    memcpy(bytes, good, count);
    seal(bytes, count);
    assert_memory_equal(bytes, good, count); /* so the seal is right */

    bytes[0] = 'X';
    expect_refusal(bytes, count, "frame begins with 0x31584c58 instead of 0x31584c44");
    memcpy(bytes, good, count);
    bytes[4] = 1;
    expect_refusal(
        bytes, count,
        "frame has format version 1, this program speaks 2; use one version on all sites");
    static const uint8_t unknown[][2] = {{0, 0}, {17, 0}, {63, 0}, {70, 0}, {1, 1}, {255, 255}};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        char message[64];
        memcpy(bytes, good, count);
        memcpy(bytes + 6, unknown[i], 2);
        snprintf(message, sizeof message, "frame has the unknown kind %d",
                 unknown[i][0] + 256 * unknown[i][1]);
        expect_refusal(bytes, count, message);
    }
    memcpy(bytes, good, count);
    bytes[39] = 0x80;
    expect_refusal(bytes, count, "frame has reserved bits set: 0x8000");
    memcpy(bytes, good, count);
    put_u32(bytes + 8, 4);
    expect_refusal(bytes, count, "frame of 61 bytes claims a payload of 4");
    put_u32(bytes + 8, 6);
    expect_refusal(bytes, count, "frame of 61 bytes claims a payload of 6");
    put_u32(bytes + 8, UINT32_MAX);
    expect_refusal(bytes, count,
                   "frame claims a payload of 4294967295 bytes, allowed are 0 to 262088");
    memcpy(bytes, good, count);
    bytes[60] ^= 1;
    assert_int_equal(dlxi_frame_decode(&frame, bytes, count, &error), DLX_DATA);
    assert_string_equal(error.message, "frame of kind 1 fails its checksum: damaged on the way");
    assert_int_equal(dlxi_frame_decode(&frame, bytes, 55, &error), DLX_DATA);
    assert_string_equal(error.message, "frame of 55 bytes is shorter than its header of 56");
}

/* One byte more than allowed, honest in all else. */
static void a_payload_over_the_bound_is_refused(void **state) {
    (void)state;
    size_t count = FRAME_BYTES_MAX + 1;
    uint8_t *bytes = calloc(1, count);
    assert_non_null(bytes);
    memcpy(bytes, "DLX1\x02\x00\x0e\x00", 8);
    put_u32(bytes + 8, DLXI_FRAME_PAYLOAD_MAX + 1);
    expect_refusal(bytes, count, "frame claims a payload of 262089 bytes, allowed are 0 to 262088");
    put_u32(bytes + 8, DLXI_FRAME_PAYLOAD_MAX);
    seal(bytes, count - 1);
    dlxi_frame frame;
    assert_int_equal(dlxi_frame_decode(&frame, bytes, count - 1, &error), DLX_OK);
    free(bytes);
}

/* ---- fields ---------------------------------------------------------------------------------- */

static void fields_are_little_endian_and_come_back(void **state) {
    (void)state;
    uint8_t bytes[64];
    dlxi_writer w = dlxi_writer_over(bytes, sizeof bytes);
    dlxi_write_u8(&w, 0xA1);
    dlxi_write_u16(&w, 0xB2A1);
    dlxi_write_u32(&w, 0xD4C3B2A1);
    dlxi_write_u64(&w, 0x1122334455667788);
    dlxi_write_f64(&w, -1.5);
    dlxi_write_string(&w, "oslo", 4);
    dlxi_write_bytes(&w, "xyz", 3);
    static const uint8_t expected[] = {0xA1, 0xA1, 0xB2, 0xA1, 0xB2, 0xC3, 0xD4, 0x88,
                                       0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0,
                                       0,    0,    0,    0,    0,    0xF8, 0xBF, 4,
                                       0,    'o',  's',  'l',  'o',  'x',  'y',  'z'};
    assert_false(w.failed);
    assert_int_equal(w.used_bytes, sizeof expected);
    assert_memory_equal(bytes, expected, sizeof expected);

    dlxi_reader r = dlxi_reader_over(bytes, w.used_bytes);
    char text[5];
    assert_int_equal(dlxi_read_u8(&r), 0xA1);
    assert_int_equal(dlxi_read_u16(&r), 0xB2A1);
    assert_int_equal(dlxi_read_u32(&r), 0xD4C3B2A1);
    assert_true(dlxi_read_u64(&r) == 0x1122334455667788);
    assert_true(dlxi_read_f64(&r) == -1.5);
    dlxi_read_string(&r, text, 4);
    assert_string_equal(text, "oslo");
    assert_false(dlxi_reader_done(&r));
    assert_int_equal(dlxi_reader_left_bytes(&r), 3);
    assert_memory_equal(dlxi_read_bytes(&r, 3), "xyz", 3);
    assert_true(dlxi_reader_done(&r));
}

static void a_failed_writer_stays_failed(void **state) {
    (void)state;
    uint8_t bytes[8];
    memset(bytes, 0x5A, sizeof bytes);
    dlxi_writer w = dlxi_writer_over(bytes, 7);
    dlxi_write_u32(&w, 1);
    dlxi_write_u32(&w, 2); /* 8 > 7 */
    assert_true(w.failed);
    dlxi_write_u8(&w, 3); /* would fit */
    assert_int_equal(w.used_bytes, 4);
    assert_int_equal(bytes[4], 0x5A);
    w = dlxi_writer_over(bytes, sizeof bytes);
    dlxi_write_string(&w, "oslo", 3);
    assert_true(w.failed);
    assert_int_equal(w.used_bytes, 0);
    w = dlxi_writer_over(NULL, 0);
    dlxi_write_bytes(&w, NULL, 0);
    assert_false(w.failed);
}

static void a_failed_reader_stays_failed(void **state) {
    (void)state;
    static const uint8_t bytes[] = {5, 0, 'o', 's', 'l', 'o'};
    char text[9] = "before";
    dlxi_reader r = dlxi_reader_over(bytes, sizeof bytes);
    dlxi_read_string(&r, text, 8); /* says 5, has 4 */
    assert_true(r.failed);
    assert_string_equal(text, "");
    assert_int_equal(dlxi_read_u8(&r), 0);
    assert_int_equal(dlxi_read_u64(&r), 0);
    assert_null(dlxi_read_bytes(&r, 0));
    assert_int_equal(dlxi_reader_left_bytes(&r), 0);
    assert_false(dlxi_reader_done(&r));
    r = dlxi_reader_over(bytes, sizeof bytes);
    assert_null(dlxi_read_bytes(&r, SIZE_MAX));
    static const uint8_t zero[] = {3, 0, 'a', 0, 'b'}, longer[] = {4, 0, 'o', 's', 'l', 'o'};
    r = dlxi_reader_over(zero, sizeof zero);
    dlxi_read_string(&r, text, 8);
    assert_true(r.failed);
    r = dlxi_reader_over(longer, sizeof longer);
    dlxi_read_string(&r, text, 3);
    assert_true(r.failed);
    assert_string_equal(text, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_are_the_golden_bytes),
        cmocka_unit_test(every_kind_comes_back),
        cmocka_unit_test(every_flipped_bit_is_refused),
        cmocka_unit_test(every_cut_is_refused),
        cmocka_unit_test(hostile_headers_are_refused_by_name),
        cmocka_unit_test(a_payload_over_the_bound_is_refused),
        cmocka_unit_test(fields_are_little_endian_and_come_back),
        cmocka_unit_test(a_failed_writer_stays_failed),
        cmocka_unit_test(a_failed_reader_stays_failed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
