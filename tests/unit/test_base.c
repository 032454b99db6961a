/* SPDX-License-Identifier: Apache-2.0 */
/* base: which names sites may have, public structs of older and newer callers, text, hashes in
 * pieces, what the process may have, and lines of other threads. */
#include "base/hash.h"
#include "base/lines.h"
#include "base/log_ring.h"
#include "base/name.h"
#include "base/resources.h"
#include "base/sized.h"
#include "base/text.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <cmocka.h>

static void names(void **state) {
    (void)state;
    static const char *const good[] = {
        "a",
        "Z",
        "0",
        "_",
        "a.b-c_D9",
        "_-.",
        "0123456789-0123456789-0123456789-0123456789-0123456789-01234567"};
    static const char *const bad[] = {
        NULL,
        "",
        ".",
        "..",
        ".a",
        "-",
        "-a",
        "a b",
        "a/b",
        "a\n",
        "a\x1b",
        "d\xc3\xa9",
        "0123456789-0123456789-0123456789-0123456789-0123456789-012345678"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) assert_true(dlxi_name_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_false(dlxi_name_valid(bad[i]));
    assert_int_equal(strlen(good[6]), 63);
    assert_int_equal(strlen(bad[12]), 64);
}

typedef struct grown {
    size_t size;
    int needed, optional;
    double last;
} grown;

enum { OLDEST = offsetof(grown, optional) };

static const grown standard = {sizeof(grown), 0, 7, 0.5};

static void sizes(void **state) {
    (void)state;
    dlx_error error;
    grown full = standard;
    struct {
        grown known;
        unsigned char more[8];
    } given = {{0}, {0}};
    given.known = (grown){OLDEST, 3, 4, 1.5};
    assert_int_equal(dlxi_sized_read(&full, sizeof full, OLDEST, &given, "INIT", &error), DLX_OK);
    assert_true(full.size == sizeof full && full.needed == 3);
    assert_true(full.optional == 7 && full.last == 0.5); /* not the caller's: it has none */

    given.known.size = offsetof(grown, last);
    assert_int_equal(dlxi_sized_read(&full, sizeof full, OLDEST, &given, "INIT", &error), DLX_OK);
    assert_true(full.optional == 4 && full.last == 0.5);

    given.known.size = sizeof given;
    assert_int_equal(dlxi_sized_read(&full, sizeof full, OLDEST, &given, "INIT", &error), DLX_OK);
    assert_true(full.size == sizeof full && full.last == 1.5);

    char message[512];
    given.more[7] = 1;
    assert_int_equal(dlxi_sized_read(&full, sizeof full, OLDEST, &given, "INIT", &error),
                     DLX_ARGUMENT);
    snprintf(message, sizeof message,
             "size is %zu, and byte %zu is set, which this library, with a size of %zu, does not "
             "know; use a newer library, or leave new members at their defaults",
             sizeof given, sizeof given - 1, sizeof full);
    assert_string_equal(error.message, message);

    assert_int_equal(dlxi_sized_copy(&full, sizeof full, &given, sizeof given, &error),
                     DLX_ARGUMENT);
    assert_string_equal(error.message, message);
    assert_int_equal(dlxi_sized_copy(&full, sizeof full, &given, OLDEST, &error), DLX_OK);

    given.known.size = OLDEST - 1;
    assert_int_equal(dlxi_sized_read(&full, sizeof full, OLDEST, &given, "INIT", &error),
                     DLX_ARGUMENT);
    snprintf(message, sizeof message, "size is %d; allowed: %d or more, here %zu; begin with INIT",
             OLDEST - 1, OLDEST, sizeof full);
    assert_string_equal(error.message, message);
}

static void written_sizes(void **state) {
    (void)state;
    const grown full = {.needed = 3, .optional = 4, .last = 1.5};
    for (size_t bytes = OLDEST; bytes <= sizeof full + 8; bytes++) {
        struct {
            grown known;
            unsigned char more[16];
        } given;
        memset(&given, 0xA5, sizeof given);
        given.known.size = bytes;
        dlx_error error;
        assert_int_equal(dlxi_sized_check(&given, OLDEST, sizeof full, "INIT", &error), DLX_OK);
        dlxi_sized_write(&given, &full, sizeof full);
        assert_int_equal(given.known.size, bytes);
        const unsigned char *was = (const unsigned char *)&full, *is = (unsigned char *)&given;
        for (size_t i = sizeof(size_t); i < sizeof given; i++)
            assert_int_equal(is[i], i < bytes && i < sizeof full ? was[i] : 0xA5);
    }
}

static void defaults(void **state) {
    (void)state;
    struct {
        grown known;
        unsigned char more[8], beyond;
    } given;
    memset(&given, 0xA5, sizeof given);
    dlxi_sized_default(&given, offsetof(grown, last), &standard, sizeof standard);
    assert_true(given.known.size == offsetof(grown, last) && given.known.optional == 7);
    assert_int_equal(((unsigned char *)&given.known.last)[0], 0xA5); /* not the caller's */

    size_t larger = sizeof(grown) + sizeof given.more;
    dlxi_sized_default(&given, larger, &standard, sizeof standard);
    assert_true(given.known.size == larger && given.known.last == 0.5);
    for (size_t i = 0; i < sizeof given.more; i++) assert_int_equal(given.more[i], 0);
    assert_int_equal(given.beyond, 0xA5);

    dlxi_sized_default(&given, sizeof(size_t) - 1, &standard, sizeof standard);
    assert_int_equal(given.known.size, larger);
    dlxi_sized_default(NULL, larger, &standard, sizeof standard);
}

/* ---- text ------------------------------------------------------------------------------------ */

static void refused_text(const char *text, size_t bytes, const char *message) {
    dlx_error error;
    assert_int_equal(dlxi_text_check(text, bytes, "f", &error), DLX_CONFIG);
    assert_string_equal(error.message, message);
}

static void texts(void **state) {
    (void)state;
    dlx_error error;
    static const char fine[] = "\xEF\xBB\xBF\ta\r\n\xC3\xA9\xF0\x9F\x98\x80\x7F";
    assert_int_equal(dlxi_text_check(fine, sizeof fine - 1, "f", &error), DLX_OK);
    assert_int_equal(dlxi_text_check("", 0, "f", &error), DLX_OK);
    assert_int_equal(dlxi_text_mark_bytes(fine, 3), 3);
    assert_int_equal(dlxi_text_mark_bytes(fine, 2), 0);
    refused_text("a\n\xC3\xA9\xE9 ", 6,
                 "f:2:2: not UTF-8: the byte 0xE9, as Latin-1 has it; save the file as UTF-8");
    /* cut off, too long, a surrogate, above U+10FFFF, a continuation alone */
    static const char *const broken[] = {
        "\xE2\x82",         "\xC0\xAF", "\xE0\x80\xAF",     "\xED\xA0\x80",
        "\xF4\x90\x80\x80", "\x80",     "\xF0\x80\x80\x80", "\xFF"};
    uint32_t code;
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        assert_int_equal(dlxi_utf8_next(&code, broken[i], strlen(broken[i])), 0);
    assert_int_equal(dlxi_utf8_next(&code, "\xF0\x9F\x98\x80", 4), 4);
    assert_int_equal(code, 0x1F600);
    refused_text("a\1", 2, "f:1:2: the control character 0x01 is not allowed; remove it");
    refused_text("ab\0", 3, "f:1:3: the control character 0x00 is not allowed; remove it");
    refused_text("a\0b\0", 4, "f: is UTF-16; save it as UTF-8");
    refused_text("\0a", 2, "f: is UTF-16; save it as UTF-8");
    refused_text("\xFF\xFE\x61\0", 4, "f: is UTF-16; save it as UTF-8");
}

/* ---- resources ------------------------------------------------------------------------------- */

static void descriptors(void **state) {
    (void)state;
    dlx_error error;
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    limit = (struct rlimit){16, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(dlxi_descriptors_need(4, "a test", &error), DLX_OK);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(limit.rlim_cur, 16); /* enough: unchanged */
    assert_int_equal(dlxi_descriptors_need(40, "a test", &error), DLX_OK);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_true(limit.rlim_cur > 16 && limit.rlim_cur <= before.rlim_max);
    assert_int_equal(dlxi_descriptors_need((size_t)1 << 50, "a test", &error), DLX_SYSTEM);
    assert_non_null(strstr(error.message, "a test: this process needs "));
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

static void threads_and_memory(void **state) {
    (void)state;
    dlx_error error;
    assert_int_equal(dlxi_threads_need(0, "a test", &error), DLX_OK);
    assert_int_equal(dlxi_threads_need(20, "a test", &error), DLX_OK);
    assert_true(dlxi_memory_has(1 << 20));
    assert_false(dlxi_memory_has(SIZE_MAX / 2));
}

static void hash_in_pieces(void **state) {
    (void)state;
    uint8_t bytes[1000];
    dlxi_hasher *hasher;
    assert_int_equal(dlxi_hasher_open(&hasher, NULL), DLX_OK);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 31);
    for (size_t piece = 1; piece <= sizeof bytes; piece = piece * 3 + 1) {
        dlxi_hasher_begin(hasher);
        for (size_t at = 0; at < sizeof bytes; at += piece)
            dlxi_hasher_add(hasher, bytes + at,
                            at + piece < sizeof bytes ? piece : sizeof bytes - at);
        assert_true(dlxi_hasher_value(hasher) == dlxi_hash(bytes, sizeof bytes, 0));
    }
    dlxi_hasher_begin(hasher);
    assert_true(dlxi_hasher_value(hasher) == dlxi_hash("", 0, 0));
    dlxi_hasher_close(&hasher);
    dlxi_hasher_close(&hasher);
}

/* ---- lines of other threads ------------------------------------------------------------------ */

typedef struct heard {
    pthread_t thread;
    int count, elsewhere;
    char line[DLXI_LOG_RING_LINES + 8][600];
} heard;

static void hear(void *context, const char *line) {
    heard *h = context;
    h->elsewhere += !pthread_equal(h->thread, pthread_self());
    snprintf(h->line[h->count++], sizeof h->line[0], "%s", line);
}

static void *add_lines(void *ring) {
    char line[16];
    for (int i = 0; i < DLXI_LOG_RING_LINES + 3; i++) {
        snprintf(line, sizeof line, "line %d", i);
        dlxi_log_ring_add(ring, line);
    }
    return NULL;
}

static void lines_of_other_threads_wait(void **state) {
    (void)state;
    static heard h;
    static char endless[1000];
    dlxi_log_ring *ring;
    pthread_t thread;
    h.thread = pthread_self();
    assert_int_equal(dlxi_log_ring_open(&ring, hear, &h, NULL), DLX_OK);
    dlxi_log_ring_deliver(ring);
    dlxi_log_ring_add(ring, "first");
    assert_int_equal(h.count, 0);
    dlxi_log_ring_deliver(ring);
    dlxi_log_ring_deliver(ring);
    assert_int_equal(h.count, 1);

    assert_int_equal(pthread_create(&thread, NULL, add_lines, ring), 0);
    pthread_join(thread, NULL);
    h.count = 0;
    dlxi_log_ring_deliver(ring);
    assert_int_equal(h.count, DLXI_LOG_RING_LINES + 1);
    assert_string_equal(h.line[0], "line 0");
    assert_string_equal(h.line[DLXI_LOG_RING_LINES - 1], "line 63");
    assert_string_equal(h.line[DLXI_LOG_RING_LINES],
                        "3 lines were lost here: more than 64 came between two calls");
    assert_int_equal(h.elsewhere, 0);

    /* between the lines where they are missing; and the ring goes on */
    h.count = 0;
    for (int i = 0; i <= DLXI_LOG_RING_LINES; i++) dlxi_log_ring_add(ring, "again");
    dlxi_log_ring_deliver(ring);
    assert_int_equal(h.count, DLXI_LOG_RING_LINES + 1);
    assert_string_equal(h.line[DLXI_LOG_RING_LINES],
                        "1 line was lost here: more than 64 came between two calls");

    h.count = 0;
    memset(endless, 'x', sizeof endless - 1);
    dlxi_log_ring_add(ring, endless);
    dlxi_log_ring_close(&ring); /* what it has is delivered */
    assert_null(ring);
    assert_int_equal(h.count, 1);
    assert_int_equal(strlen(h.line[0]), DLXI_LINE_BYTES - 1);

    assert_int_equal(dlxi_log_ring_open(&ring, NULL, NULL, NULL), DLX_OK);
    assert_null(ring);
    dlxi_log_ring_add(ring, "nobody listens");
    dlxi_log_ring_deliver(ring);
    dlxi_log_ring_close(&ring);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts),
        cmocka_unit_test(hash_in_pieces),
        cmocka_unit_test(descriptors),
        cmocka_unit_test(threads_and_memory),
        cmocka_unit_test(names),
        cmocka_unit_test(sizes),
        cmocka_unit_test(written_sizes),
        cmocka_unit_test(defaults),
        cmocka_unit_test(lines_of_other_threads_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
