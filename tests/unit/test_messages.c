/* SPDX-License-Identifier: Apache-2.0 */
/* Control messages: what is written is read again, what is cut or out of range is refused, and the
 * bytes stay as they are. */
#include "messages_sample.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

typedef struct buffers {
    dlxi_message written, read;
    uint8_t bytes[DLXI_FRAME_PAYLOAD_MAX];
    size_t used_bytes;
} buffers;

static int set_up(void **state) {
    *state = calloc(1, sizeof(buffers));
    return *state == NULL;
}

static int tear_down(void **state) {
    free(*state);
    return 0;
}

/* NULL: it has none. */
static dlxi_copy *copy_of(dlxi_message *m) {
    return m->kind == DLXI_FRAME_COMMIT     ? &m->as.commit.copy
           : m->kind == DLXI_FRAME_POSITION ? &m->as.position.copy
                                            : NULL;
}

static dlx_status read_back(buffers *b, size_t bytes) {
    uint8_t *exact = malloc(bytes + 1); /* so that a sanitizer sees a read beyond the end */
    assert_non_null(exact);
    memcpy(exact, b->bytes, bytes);
    dlxi_frame frame = {
        .kind = b->written.kind, .payload = exact, .payload_bytes = (uint32_t)bytes};
    dlx_error error;
    dlx_status status = dlxi_message_decode(&b->read, &frame, &error);
    dlxi_copy *read = copy_of(&b->read), *written = copy_of(&b->written);
    if (status == DLX_OK && read != NULL) { /* data points into the payload */
        assert_int_equal(read->bytes, written->bytes);
        if (read->bytes > 0) assert_memory_equal(read->data, written->data, read->bytes);
        read->data = written->data;
    }
    free(exact);
    return status;
}

static void encode(buffers *b) {
    dlx_error error;
    if (dlxi_message_encode(b->bytes, sizeof b->bytes, &b->used_bytes, &b->written, &error) !=
        DLX_OK)
        fail_msg("%s", error.message);
}

static void what_is_written_is_read(void **state) {
    buffers *b = *state;
    for (size_t i = 0; i < SAMPLE_KINDS; i++) {
        sample_message(&b->written, sample_kinds[i]);
        encode(b);
        memset(&b->read, 0, sizeof b->read);
        assert_int_equal(read_back(b, b->used_bytes), DLX_OK);
        assert_memory_equal(&b->read, &b->written, sizeof b->read);
    }
}

static void the_longest_texts_fit(void **state) {
    buffers *b = *state;
    sample_message(&b->written, DLXI_FRAME_HELLO);
    memset(b->written.as.hello.shared_text, 'x', DLXI_TEXT_MAX);
    memset(b->written.as.hello.site, 'n', DLXI_SITE_NAME_MAX);
    encode(b);
    memset(&b->read, 0, sizeof b->read);
    assert_int_equal(read_back(b, b->used_bytes), DLX_OK);
    assert_memory_equal(&b->read, &b->written, sizeof b->read);
    sample_message(&b->written, DLXI_FRAME_LISTENING);
    b->written.as.endpoints.sites = DLXI_SITES_MAX;
    for (int i = 0; i < DLXI_SITES_MAX; i++)
        memset(b->written.as.endpoints.endpoint[i], 'e', DLXI_ENDPOINT_MAX);
    encode(b);
    assert_int_equal(read_back(b, b->used_bytes), DLX_OK);
}

static void what_is_cut_or_longer_is_refused(void **state) {
    buffers *b = *state;
    for (size_t i = 0; i < SAMPLE_KINDS; i++) {
        sample_message(&b->written, sample_kinds[i]);
        encode(b);
        for (size_t bytes = 0; bytes < b->used_bytes; bytes++)
            assert_int_equal(read_back(b, bytes), DLX_DATA);
        assert_int_equal(read_back(b, b->used_bytes + 1), DLX_DATA);
        size_t used_bytes; /* nor does it fit into less */
        for (size_t bytes = 0; bytes < b->used_bytes; bytes++)
            assert_int_equal(dlxi_message_encode(b->bytes, bytes, &used_bytes, &b->written, NULL),
                             DLX_ARGUMENT);
    }
}

/* Overwrites `width` bytes of a good message of that kind at `at` and expects a refusal. */
static void refused(buffers *b, dlxi_frame_kind kind, size_t at, uint64_t value, size_t width) {
    sample_message(&b->written, kind);
    encode(b);
    for (size_t i = 0; i < width; i++) b->bytes[at + i] = (uint8_t)(value >> 8 * i);
    if (read_back(b, b->used_bytes) != DLX_DATA)
        fail_msg("kind %d with %llu at %zu was taken", (int)kind, (unsigned long long)value, at);
}

static void what_is_out_of_range_is_refused(void **state) {
    buffers *b = *state;
    refused(b, DLXI_FRAME_HELLO, 0, 64, 2);  /* a name too long */
    refused(b, DLXI_FRAME_HELLO, 4, 0, 1);   /* a name with a zero byte */
    refused(b, DLXI_FRAME_WELCOME, 0, 2, 2); /* site 2 of 2 */
    refused(b, DLXI_FRAME_WELCOME, 2, 65, 2);
    refused(b, DLXI_FRAME_WELCOME, 2, 0, 2);
    refused(b, DLXI_FRAME_WELCOME, 12 + 7 + 2, 2, 1); /* a bool of 2 */
    refused(b, DLXI_FRAME_PEERS, 0, 65, 2);
    refused(b, DLXI_FRAME_BEGIN, 0, 0, 2); /* nobody */
    refused(b, DLXI_FRAME_BEGIN, 0, 65, 2);
    refused(b, DLXI_FRAME_BEGIN, 2 + 35, 64, 2); /* site 64 */
    refused(b, DLXI_FRAME_BEGIN, 2 + 35, 0, 2);  /* site 0 twice */
    refused(b, DLXI_FRAME_BEGIN, 2 + 34, 2, 1);  /* voided */
    refused(b, DLXI_FRAME_HELLO, 63, 2, 1);      /* keeps_history */
    refused(b, DLXI_FRAME_PING, 48, 65, 2);      /* parts */
    refused(b, DLXI_FRAME_PING, 50, 2, 1);       /* saves */
    enum { FINISHED = 20, LEASE = FINISHED + 1, RANGES = LEASE + 8, VIEW = RANGES + 2 + 2 * 12 };
    refused(b, DLXI_FRAME_COMMIT, FINISHED, 2, 1);
    refused(b, DLXI_FRAME_COMMIT, RANGES, 65, 2);
    refused(b, DLXI_FRAME_COMMIT, RANGES + 2 + 8, 0, 4);               /* an empty range */
    refused(b, DLXI_FRAME_COMMIT, RANGES + 2, (uint64_t)INT64_MAX, 8); /* that would wrap */
    refused(b, DLXI_FRAME_COMMIT, VIEW, 0, 2);                         /* nobody */
    refused(b, DLXI_FRAME_COMMIT, VIEW + 2 + 35, 0, 2);                /* site 0 twice */
    refused(b, DLXI_FRAME_COMMIT, VIEW + 2 + 2 * 35 + 12, DLXI_COPY_MAX + 1, 4);
    refused(b, DLXI_FRAME_POSITION, 16, 2, 1); /* hears */
    refused(b, DLXI_FRAME_POSITION, 16 + 1 + 8 + 12, DLXI_COPY_MAX + 1, 4);
    refused(b, DLXI_FRAME_CLAIM, 8, 2, 1); /* wants_copy */
    refused(b, DLXI_FRAME_ABORT, 4, DLXI_REASON_MAX + 1, 2);
    sample_message(&b->written, DLXI_FRAME_PING);
    encode(b);
    b->written.kind = DLXI_FRAME_CONTRIBUTION; /* no control message */
    assert_int_equal(read_back(b, 0), DLX_DATA);
}

static void a_refusal_names_kind_and_site(void **state) {
    buffers *b = *state;
    dlx_error error;
    dlxi_frame frame = {.kind = DLXI_FRAME_READY, .site = 3};
    assert_int_equal(dlxi_message_decode(&b->read, &frame, &error), DLX_DATA);
    assert_string_equal(error.message, "malformed message of kind 5 from site 3");
}

static void golden(buffers *b, dlxi_frame_kind kind, const uint8_t *expected, size_t bytes) {
    sample_message(&b->written, kind);
    encode(b);
    assert_int_equal(b->used_bytes, bytes);
    assert_memory_equal(b->bytes, expected, bytes);
}

/* The format is a promise: bytes written down once. */
static void golden_bytes(void **state) {
    buffers *b = *state;
    static const uint8_t staged[] = {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01};
    golden(b, DLXI_FRAME_STAGED, staged, sizeof staged);
    /* term, id, tokens, finished */
    static const uint8_t commit[] = {
        2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1,
        /* the lease: submission, ranges */
        7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, /* 5 … 10 */
        0, 0, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff,
        /* the view: members; site, tokens, step, exchange, voided */
        2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0,
        0, 0, 0, 0, 0, 1, 63, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0,
        0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0,
        /* the copy: term, round, bytes */
        5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7, 8, 9};
    golden(b, DLXI_FRAME_COMMIT, commit, sizeof commit);
    static const uint8_t ready[] = {8, 0, 0, 0, 0, 0, 0,    0,    9, 0, 0, 0, 0, 0, 0, 0, 1, 0,
                                    0, 0, 0, 0, 0, 0, 2,    0,    0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
                                    0, 0, 0, 0, 0, 0, 0xe0, 0xbf, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0,
                                    0, 0, 0, 0, 0, 0, 6,    0,    0, 0, 0, 0, 0, 0, 7, 0, 0, 0};
    golden(b, DLXI_FRAME_READY, ready, sizeof ready);
    static const uint8_t ping[] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, 7, 0, 0, 0, 0, 0,
                                   0, 0, 5, 0, 0, 0, 0, 0, 0, 0x80, 6, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0,
                                   0, 0, 0, 0, 0,
                                   /* parts, their number, saves */
                                   9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1};
    golden(b, DLXI_FRAME_PING, ping, sizeof ping);
    static const uint8_t claim[] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, 1};
    golden(b, DLXI_FRAME_CLAIM, claim, sizeof claim);
    static const uint8_t position[] = {0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,
                                       /* incarnation, hears, view, copy */
                                       7, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0x80, 5, 0,
                                       0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7, 8, 9};
    golden(b, DLXI_FRAME_POSITION, position, sizeof position);
    static const uint8_t abort_reason[] = {13, 0, 5, 0, 7, 0, 'b', 'e', 'c', 'a', 'u', 's', 'e'};
    golden(b, DLXI_FRAME_ABORT, abort_reason, sizeof abort_reason);
}

static void a_greeting_has_one_length(void **state) {
    (void)state;
    static const dlxi_greeting written = {
        .asks = 0x01020304,
        .answers = 5,
        .trips = {{6, 7}, {0x0102030405060708, DLXI_NOT_BEGUN}, {0, 8}}};
    static const uint8_t expected[DLXI_GREETING_BYTES] = {
        4,    3,    2, 1, 5, 0, 0, 0, 6, 0, 0, 0, 0, 0,    0,    0,    7,    0,    0,
        0,    0,    0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0,    0,    0,    0,    0};
    uint8_t bytes[DLXI_GREETING_BYTES];
    dlxi_greeting_encode(bytes, &written);
    assert_memory_equal(bytes, expected, sizeof expected);
    for (uint32_t count = 0; count <= sizeof bytes; count++) {
        uint8_t *exact = malloc(count + 1u); /* so that a sanitizer sees a read beyond the end */
        assert_non_null(exact);
        memcpy(exact, bytes, count);
        dlxi_frame frame = {.kind = DLXI_FRAME_GREETING, .payload = exact, .payload_bytes = count};
        dlxi_greeting read;
        memset(&read, 0, sizeof read);
        assert_int_equal(dlxi_greeting_decode(&read, &frame), count == sizeof bytes);
        if (count == sizeof bytes) assert_memory_equal(&read, &written, sizeof read);
        free(exact);
    }
    static uint8_t large[16384];
    dlxi_frame frame = {
        .kind = DLXI_FRAME_GREETING, .payload = large, .payload_bytes = sizeof large};
    dlxi_greeting read;
    assert_false(dlxi_greeting_decode(&read, &frame));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(the_longest_texts_fit),
        cmocka_unit_test(what_is_cut_or_longer_is_refused),
        cmocka_unit_test(what_is_out_of_range_is_refused),
        cmocka_unit_test(a_refusal_names_kind_and_site),
        cmocka_unit_test(golden_bytes),
        cmocka_unit_test(a_greeting_has_one_length),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
