/* SPDX-License-Identifier: Apache-2.0 */
/* Token files: the format byte by byte, all damage, all messages; and tokenizing text. */
#include "data/token_file.h"
#include "data/tokenize.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static char directory[] = "/tmp/dilocox_token_file.XXXXXX";
static char path[64], text_path[64];
static dlxi_tokenizer *byte_tokenizer;

static int set_up(void **state) {
    (void)state;
    if (mkdtemp(directory) == NULL) return -1;
    snprintf(path, sizeof path, "%s/x.tokens", directory);
    snprintf(text_path, sizeof text_path, "%s/x.txt", directory);
    return dlxi_tokenizer_open(&byte_tokenizer, "byte", NULL) == DLX_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    dlxi_tokenizer_close(&byte_tokenizer);
    unlink(path);
    unlink(text_path);
    return rmdir(directory); /* fails if a file was left behind */
}

static void put_file(const char *where, const void *data, size_t bytes) {
    FILE *file = fopen(where, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void put_little_endian(uint8_t *to, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = (uint8_t)(value >> 8 * i);
}

/* As docs/formats.md says, with every field at the offset printed there. Returns the size. */
static size_t make_file(uint8_t *data, uint32_t token_bytes, uint32_t vocabulary,
                        const uint32_t *tokens, size_t count) {
    memset(data, 0, 128);
    for (size_t i = 0; i < count; i++)
        put_little_endian(data + 128 + i * token_bytes, tokens[i], token_bytes);
    memcpy(data, "DLXTOKEN", 8);
    put_little_endian(data + 8, 1, 4);
    put_little_endian(data + 12, 128, 4);
    put_little_endian(data + 16, token_bytes, 4);
    put_little_endian(data + 20, vocabulary, 4);
    put_little_endian(data + 24, count, 8);
    put_little_endian(data + 32, XXH3_64bits("dilocox tokenizer byte, version 1", 33), 8);
    put_little_endian(data + 40, XXH3_64bits(data + 128, count * token_bytes), 8);
    memcpy(data + 48, "byte", 4);
    put_little_endian(data + 120, XXH3_64bits(data, 120), 8);
    return 128 + count * token_bytes;
}

static void reseal(uint8_t *data) {
    put_little_endian(data + 120, XXH3_64bits(data, 120), 8);
}

/* PATH in `message` stands for the file's path. */
static void expect_refused(const uint8_t *data, size_t bytes, dlx_status status,
                           const char *message) {
    dlxi_token_file *file;
    dlx_error error;
    char expected[512];
    const char *place = strstr(message, "PATH");
    assert_non_null(place);
    snprintf(expected, sizeof expected, "%.*s%s%s", (int)(place - message), message, path,
             place + 4);
    put_file(path, data, bytes);
    assert_int_equal(dlxi_token_file_open(&file, "data.train", path, &error), status);
    assert_null(file);
    assert_string_equal(error.message, expected);
}

#define AGAIN "; run 'dilocox tokenize' (or 'make data') again"

/* ---- format ---------------------------------------------------------------------------------- */

static void test_written_as_documented(void **state) {
    (void)state;
    static const uint32_t tokens[] = {0, 255, 7, 100, 7};
    uint8_t expected[256], found[256];
    size_t bytes = make_file(expected, 1, 256, tokens, 5);
    dlxi_token_file_writer *writer;
    assert_int_equal(dlxi_token_file_writer_open(&writer, path, byte_tokenizer, NULL), DLX_OK);
    assert_int_equal(dlxi_token_file_writer_append(writer, tokens, 2, NULL), DLX_OK);
    assert_int_equal(dlxi_token_file_writer_append(writer, tokens + 2, 3, NULL), DLX_OK);
    assert_int_equal(dlxi_token_file_writer_commit(writer, NULL), DLX_OK);
    dlxi_token_file_writer_close(&writer);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(found, 1, sizeof found, file), bytes);
    fclose(file);
    assert_memory_equal(found, expected, bytes);
}

static void test_every_width_reads_back(void **state) {
    (void)state;
    static const uint32_t vocabularies[] = {1, 2, 256, 257, 65536, 65537, 4000000000};
    static const uint32_t widths[] = {1, 1, 1, 2, 2, 4, 4};
    enum { TOKENS = 70000 }; /* more than one piece of each loop */
    static uint32_t tokens[TOKENS], back[TOKENS];
    for (size_t v = 0; v < sizeof widths / sizeof *widths; v++) {
        dlxi_tokenizer tokenizer = {
            .name = "a test", .vocabulary = vocabularies[v], .hash = 99 + v};
        dlxi_token_file_writer *writer;
        dlxi_token_file *file;
        for (uint32_t i = 0; i < TOKENS; i++) tokens[i] = (i * 2654435761u) % vocabularies[v];
        tokens[TOKENS - 1] = vocabularies[v] - 1;
        assert_int_equal(dlxi_token_file_writer_open(&writer, path, &tokenizer, NULL), DLX_OK);
        assert_int_equal(dlxi_token_file_writer_append(writer, tokens, TOKENS, NULL), DLX_OK);
        assert_int_equal(dlxi_token_file_writer_commit(writer, NULL), DLX_OK);
        dlxi_token_file_writer_close(&writer);
        assert_int_equal(dlxi_token_file_open(&file, "data.train", path, NULL), DLX_OK);
        assert_int_equal(file->token_bytes, widths[v]);
        assert_int_equal(file->vocabulary, vocabularies[v]);
        assert_int_equal(file->count, TOKENS);
        assert_int_equal(file->tokenizer_hash, 99 + v);
        assert_string_equal(file->tokenizer_name, "a test");
        dlxi_token_file_read(back, file, 0, TOKENS);
        assert_memory_equal(back, tokens, sizeof tokens);
        dlxi_token_file_read(back, file, 12345, 3);
        assert_memory_equal(back, tokens + 12345, 3 * sizeof *back);
        dlxi_token_file_read(back, file, TOKENS, 0);
        dlxi_token_file_close(&file);
        assert_null(file);
        dlxi_token_file_close(&file);
    }
}

static void test_writer_refuses(void **state) {
    (void)state;
    dlxi_token_file_writer *writer;
    dlx_error error;
    static const uint32_t tokens[] = {1, 256};
    unlink(path);
    assert_int_equal(dlxi_token_file_writer_open(&writer, path, byte_tokenizer, NULL), DLX_OK);
    assert_int_equal(dlxi_token_file_writer_append(writer, tokens, 2, &error), DLX_ARGUMENT);
    assert_non_null(
        strstr(error.message, "x.tokens: token 256 is not in the vocabulary; allowed: 0 to 255"));
    assert_int_equal(dlxi_token_file_writer_commit(writer, &error), DLX_DATA);
    assert_non_null(strstr(error.message, "x.tokens: would have no tokens; give it more text"));
    dlxi_token_file_writer_close(&writer);
    assert_int_equal(access(path, F_OK), -1);
}

/* ---- damage ---------------------------------------------------------------------------------- */

static void test_every_damaged_byte_is_found(void **state) {
    (void)state;
    static const uint32_t tokens[] = {0, 255, 7, 100, 7, 300, 65535};
    static const uint8_t changes[] = {0x01, 0x80, 0xFF, 0x20};
    uint8_t data[256];
    size_t bytes = make_file(data, 2, 65536, tokens, 7);
    dlxi_token_file file;
    dlx_error error;
    assert_int_equal(dlxi_token_file_parse(&file, data, bytes, "k", "p", &error), DLX_OK);
    for (size_t at = 0; at < bytes; at++) {
        for (size_t c = 0; c < sizeof changes; c++) {
            data[at] ^= changes[c];
            assert_int_equal(dlxi_token_file_parse(&file, data, bytes, "k", "p", &error), DLX_DATA);
            data[at] ^= changes[c];
        }
    }
    assert_int_equal(dlxi_token_file_parse(&file, data, bytes, "k", "p", &error), DLX_OK);
}

static void test_every_truncation_is_found(void **state) {
    (void)state;
    static const uint32_t tokens[] = {5, 6, 7, 8, 9};
    static const uint32_t widths[] = {1, 2, 4};
    uint8_t data[256];
    dlxi_token_file file;
    dlx_error error;
    for (size_t w = 0; w < 3; w++) {
        size_t whole = make_file(data, widths[w], 200, tokens, 5);
        for (size_t bytes = 0; bytes < whole; bytes++) {
            uint8_t *exact = malloc(bytes + 1); /* a sanitizer sees a read beyond the end */
            assert_non_null(exact);
            memcpy(exact + 1, data, bytes);
            assert_int_equal(dlxi_token_file_parse(&file, exact + 1, bytes, "k", "p", &error),
                             DLX_DATA);
            assert_non_null(strstr(error.message, "cut short"));
            free(exact);
        }
        assert_int_equal(dlxi_token_file_parse(&file, data, whole, "k", "p", &error), DLX_OK);
        data[whole] = 0;
        assert_int_equal(dlxi_token_file_parse(&file, data, whole + 1, "k", "p", &error), DLX_DATA);
    }
}

static void test_messages(void **state) {
    (void)state;
    static const uint32_t tokens[] = {5, 6, 7, 8, 9};
    uint8_t data[256];
    dlxi_token_file *file;
    dlx_error error;
    assert_int_equal(dlxi_token_file_open(&file, "data.train", "no/x.tokens", &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "data.train: no such file 'no/x.tokens'; run 'dilocox tokenize' (or 'make data') first");
    assert_int_equal(dlxi_token_file_open(&file, "data.train", "/", &error), DLX_DATA);
    assert_string_equal(error.message,
                        "data.train: /: not a regular file; give a file, not a directory or pipe");

    size_t bytes = make_file(data, 2, 200, tokens, 5);
    expect_refused((const uint8_t *)"once upon a time", 16, DLX_DATA,
                   "data.train: 'PATH' is not a token file; run 'dilocox tokenize' (or 'make "
                   "data') to make one");
    expect_refused(data, 0, DLX_DATA,
                   "data.train: 'PATH' is cut short: it has 0 bytes, its header alone 128" AGAIN);
    expect_refused(data, 127, DLX_DATA,
                   "data.train: 'PATH' is cut short: it has 127 bytes, its header alone 128" AGAIN);
    expect_refused(data, bytes - 1, DLX_DATA,
                   "data.train: 'PATH' is cut short: its header says 5 tokens of 2 bytes, 9 bytes "
                   "follow" AGAIN);
    expect_refused(data, bytes + 2, DLX_DATA,
                   "data.train: 'PATH' is too long: its header says 5 tokens of 2 bytes, 12 bytes "
                   "follow" AGAIN);
    data[130] ^= 1;
    expect_refused(data, bytes, DLX_DATA,
                   "data.train: 'PATH' is damaged: its tokens' checksum does not match" AGAIN);
    data[130] ^= 1;
    data[24] ^= 1;
    expect_refused(data, bytes, DLX_DATA,
                   "data.train: 'PATH' is damaged: its header's checksum does not match" AGAIN);
    data[24] ^= 1;
    data[8] = 2;
    reseal(data);
    expect_refused(data, bytes, DLX_DATA,
                   "data.train: 'PATH' has format version 2, or is damaged; this dilocox reads "
                   "version 1" AGAIN);
}

/* With valid checksums, as from a forger or a buggy writer. */
static void test_invalid_headers(void **state) {
    (void)state;
    static const uint32_t tokens[] = {5, 6, 7, 200, 9};
    uint8_t data[256];
    size_t bytes = make_file(data, 1, 200, tokens, 5);
    expect_refused(data, bytes, DLX_DATA,
                   "data.train: 'PATH' has token 200, but its vocabulary is 200" AGAIN);
    bytes = make_file(data, 3, 200, tokens, 5);
    expect_refused(
        data, bytes, DLX_DATA,
        "data.train: 'PATH' has an invalid header: 3 bytes per token, vocabulary 200" AGAIN);
    bytes = make_file(data, 1, 257, tokens, 5);
    expect_refused(
        data, bytes, DLX_DATA,
        "data.train: 'PATH' has an invalid header: 1 bytes per token, vocabulary 257" AGAIN);
    bytes = make_file(data, 1, 0, tokens, 5);
    expect_refused(
        data, bytes, DLX_DATA,
        "data.train: 'PATH' has an invalid header: 1 bytes per token, vocabulary 0" AGAIN);
    bytes = make_file(data, 1, 201, tokens, 5);
    data[79] = 'x'; /* a name without a terminator */
    reseal(data);
    expect_refused(
        data, bytes, DLX_DATA,
        "data.train: 'PATH' has an invalid header: 1 bytes per token, vocabulary 201" AGAIN);
    make_file(data, 1, 201, tokens, 0);
    expect_refused(data, 128, DLX_DATA,
                   "data.train: 'PATH' has no tokens; tokenize a text that is not empty");
    bytes = make_file(data, 4, 201, tokens, 5);
    /* times 4 this wraps to the right size */
    put_little_endian(data + 24, (UINT64_C(1) << 62) + 5, 8);
    reseal(data);
    expect_refused(data, bytes, DLX_DATA,
                   "data.train: 'PATH' is cut short: its header says 4611686018427387909 tokens of "
                   "4 bytes, 20 bytes "
                   "follow" AGAIN);
}

static void test_checks_against_others(void **state) {
    (void)state;
    static const uint32_t tokens[] = {5, 6, 7};
    uint8_t data[256];
    dlx_error error;
    char key[] = "data.train", other_key[] = "data.validation", name[] = "a.tokens",
         other_name[] = "b.tokens";
    dlxi_token_file file, other;
    size_t bytes = make_file(data, 1, 256, tokens, 3);
    assert_int_equal(dlxi_token_file_parse(&file, data, bytes, key, name, &error), DLX_OK);
    other = file;
    file.key = key, file.path = name, other.key = other_key, other.path = other_name;
    assert_int_equal(dlxi_token_file_check_vocabulary(&file, 256, &error), DLX_OK);
    assert_int_equal(dlxi_token_file_check_vocabulary(&file, 50304, &error), DLX_OK);
    assert_int_equal(dlxi_token_file_check_vocabulary(&file, 255, &error), DLX_CONFIG);
    assert_string_equal(error.message,
                        "data.train: 'a.tokens' has a vocabulary of 256, the model one of 255; set "
                        "model.vocabulary to 256 or more");
    assert_int_equal(dlxi_token_file_check_same_tokenizer(&file, &other, &error), DLX_OK);
    file.tokenizer_hash = 0x12;
    other.tokenizer_hash = 0x34;
    assert_int_equal(dlxi_token_file_check_same_tokenizer(&other, &file, &error), DLX_CONFIG);
    assert_string_equal(error.message,
                        "data.validation: 'b.tokens' was made with tokenizer 'byte' "
                        "(0000000000000034), data.train: "
                        "'a.tokens' with 'byte' (0000000000000012); tokenize both with the same");
}

/* ---- tokenizing ------------------------------------------------------------------------------ */

static void test_byte_tokenizer(void **state) {
    (void)state;
    dlxi_tokenizer *unknown;
    dlx_error error;
    uint32_t tokens[256];
    uint8_t text[256];
    size_t count, consumed, text_bytes;
    const uint8_t *back;
    assert_int_equal(dlxi_tokenizer_open(&unknown, "bpe", &error), DLX_CONFIG);
    assert_null(unknown);
    assert_string_equal(error.message, "unknown tokenizer 'bpe'; allowed: byte");
    assert_int_equal(byte_tokenizer->vocabulary, 256);
    for (size_t i = 0; i < 256; i++) text[i] = (uint8_t)(255 - i);
    assert_int_equal(byte_tokenizer->op->encode(byte_tokenizer, tokens, 100, &count, text, 256,
                                                &consumed, true, &error),
                     DLX_OK);
    assert_true(count == 100 && consumed == 100);
    assert_int_equal(byte_tokenizer->op->encode(byte_tokenizer, tokens + 100, 256, &count,
                                                text + 100, 156, &consumed, false, &error),
                     DLX_OK);
    assert_true(count == 156 && consumed == 156);
    for (size_t i = 0; i < 256; i++) {
        assert_int_equal(tokens[i], 255 - i);
        assert_int_equal(
            byte_tokenizer->op->decode(byte_tokenizer, &back, &text_bytes, tokens[i], &error),
            DLX_OK);
        assert_int_equal(text_bytes, 1);
        assert_int_equal(*back, text[i]);
    }
    assert_int_equal(byte_tokenizer->op->decode(byte_tokenizer, &back, &text_bytes, 256, &error),
                     DLX_DATA);
    assert_string_equal(
        error.message, "token 256 is not in the vocabulary of tokenizer 'byte'; allowed: 0 to 255");
}

static void expect_tokens(const char *file_path, const char *text, size_t bytes) {
    dlxi_token_file *file;
    dlx_error error;
    dlx_status status = dlxi_token_file_open(&file, "data.train", file_path, &error);
    if (status != DLX_OK) print_error("%s\n", error.message);
    assert_int_equal(status, DLX_OK);
    assert_int_equal(file->count, bytes);
    for (size_t i = 0; i < bytes; i++) {
        uint32_t token;
        dlxi_token_file_read(&token, file, (int64_t)i, 1);
        assert_int_equal(token, (uint8_t)text[i]);
    }
    dlxi_token_file_close(&file);
}

static void test_tokenize_whole(void **state) {
    (void)state;
    enum { BYTES = 200003 };
    static char text[BYTES];
    dlxi_tokenize_options options = DLXI_TOKENIZE_OPTIONS_INIT;
    dlxi_tokenize_report report;
    for (size_t i = 0; i < BYTES; i++) text[i] = (char)(i * 31 + i / 1000);
    put_file(text_path, text, BYTES);
    assert_int_equal(dlxi_tokenize(path, text_path, byte_tokenizer, &options, &report, NULL),
                     DLX_OK);
    assert_true(report.text_bytes == BYTES && report.train_tokens == BYTES &&
                report.validation_tokens == 0);
    expect_tokens(path, text, BYTES);
}

static void test_tokenize_split(void **state) {
    (void)state;
    static const char text[] = "aaaabbbbccccddddeeeeffffgg";
    char out[64], train[80], validation[96];
    dlxi_tokenize_options options = {.validation_every = 3, .block_bytes = 4};
    dlxi_tokenize_report report;
    snprintf(out, sizeof out, "%s/y", directory);
    snprintf(train, sizeof train, "%s.train.tokens", out);
    snprintf(validation, sizeof validation, "%s.validation.tokens", out);
    put_file(text_path, text, sizeof text - 1);
    assert_int_equal(dlxi_tokenize(out, text_path, byte_tokenizer, &options, &report, NULL),
                     DLX_OK);
    assert_true(report.text_bytes == 26 && report.train_tokens == 18 &&
                report.validation_tokens == 8);
    expect_tokens(train, "aaaabbbbddddeeeegg", 18);
    expect_tokens(validation, "ccccffff", 8);

    /* the default block; the text ends exactly with a block */
    enum { BLOCK = 65536, BLOCKS = 20 };
    static char large[BLOCK * BLOCKS];
    for (size_t i = 0; i < sizeof large; i++) large[i] = (char)('A' + i / BLOCK);
    put_file(text_path, large, sizeof large);
    options = (dlxi_tokenize_options){.validation_every = 20, .block_bytes = BLOCK};
    assert_int_equal(dlxi_tokenize(out, text_path, byte_tokenizer, &options, &report, NULL),
                     DLX_OK);
    expect_tokens(train, large, (size_t)BLOCK * 19);
    expect_tokens(validation, large + (size_t)BLOCK * 19, BLOCK);
    unlink(train);
    unlink(validation);
}

/* A tokenizer with one token for "qu": pairs are joined across pieces and not across blocks. */
static dlx_status pair_encode(const dlxi_tokenizer *tokenizer, uint32_t *tokens, size_t tokens_max,
                              size_t *tokens_count, const uint8_t *text, size_t text_bytes,
                              size_t *consumed_bytes, bool last, dlx_error *error) {
    (void)tokenizer, (void)error;
    size_t at = 0, count = 0;
    while (at < text_bytes && count < tokens_max) {
        if (text[at] == 'q' && at + 1 == text_bytes && !last) break;
        bool pair = at + 1 < text_bytes && text[at] == 'q' && text[at + 1] == 'u';
        tokens[count++] = pair ? 256 : text[at];
        at += pair ? 2 : 1;
    }
    *tokens_count = count;
    *consumed_bytes = at;
    return DLX_OK;
}

static void test_tokenize_joins_pieces_but_not_blocks(void **state) {
    (void)state;
    enum { BYTES = 65536 * 3 };
    static const dlxi_tokenizer_operations operations = {.encode = pair_encode};
    const dlxi_tokenizer tokenizer = {
        .op = &operations, .name = "pair", .vocabulary = 257, .hash = 1};
    static char text[BYTES];
    char out[64], train[80], validation[96];
    dlxi_tokenize_options options = DLXI_TOKENIZE_OPTIONS_INIT;
    dlxi_tokenize_report report;
    memset(text, '.', BYTES);
    for (size_t i = 1; i < BYTES; i += 2)
        text[i] = 'q', text[i + 1 < BYTES ? i + 1 : i] = i + 1 < BYTES ? 'u' : 'q';
    put_file(text_path, text, BYTES); /* ".ququ…q": a pair lies across every even limit */
    assert_int_equal(dlxi_tokenize(path, text_path, &tokenizer, &options, &report, NULL), DLX_OK);
    assert_int_equal(report.train_tokens, 1 + (BYTES - 2) / 2 + 1);

    options = (dlxi_tokenize_options){.validation_every = 3, .block_bytes = 65536};
    snprintf(out, sizeof out, "%s/y", directory);
    snprintf(train, sizeof train, "%s.train.tokens", out);
    snprintf(validation, sizeof validation, "%s.validation.tokens", out);
    assert_int_equal(dlxi_tokenize(out, text_path, &tokenizer, &options, &report, NULL), DLX_OK);
    assert_int_equal(report.train_tokens, 2 * (1 + 32767 + 1));
    assert_int_equal(report.validation_tokens, 1 + 32767 + 1);
    unlink(train);
    unlink(validation);
}

static void expect_not_tokenized(const char *out, dlxi_tokenize_options options, dlx_status status,
                                 const char *message) {
    dlx_error error;
    assert_int_equal(dlxi_tokenize(out, text_path, byte_tokenizer, &options, NULL, &error), status);
    if (strstr(error.message, message) == NULL) print_error("%s\n", error.message);
    assert_non_null(strstr(error.message, message));
}

static void test_tokenize_refuses(void **state) {
    (void)state;
    char out[64];
    snprintf(out, sizeof out, "%s/y", directory);
    put_file(text_path, "0123456789", 10);
    expect_not_tokenized(
        out, (dlxi_tokenize_options){1, 4}, DLX_CONFIG,
        "--validation-every: 1 is out of range; allowed: 2 to 1000000, or 0 for no split");
    expect_not_tokenized(out, (dlxi_tokenize_options){3, 0}, DLX_CONFIG,
                         "--block: 0 is out of range; allowed: 1 to 1073741824");
    expect_not_tokenized(out, (dlxi_tokenize_options){3, 5}, DLX_DATA,
                         "x.txt: its 10 bytes leave nothing for validation; try less than "
                         "--validation-every 3 or --block 5");
    put_file(text_path, "", 0);
    expect_not_tokenized(out, (dlxi_tokenize_options){0, 0}, DLX_DATA,
                         "x.txt: is empty; give a text with at least one byte");
    expect_not_tokenized("/no/such/y", (dlxi_tokenize_options){0, 0}, DLX_SYSTEM,
                         "/no/such/y: can't be written: No such file or directory");
    unlink(text_path);
    expect_not_tokenized(out, (dlxi_tokenize_options){0, 0}, DLX_CONFIG,
                         "x.txt: no such file; name the text to tokenize");
    /* tear_down sees that no file was left behind */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_as_documented),
        cmocka_unit_test(test_every_width_reads_back),
        cmocka_unit_test(test_writer_refuses),
        cmocka_unit_test(test_every_damaged_byte_is_found),
        cmocka_unit_test(test_every_truncation_is_found),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_invalid_headers),
        cmocka_unit_test(test_checks_against_others),
        cmocka_unit_test(test_byte_tokenizer),
        cmocka_unit_test(test_tokenize_whole),
        cmocka_unit_test(test_tokenize_split),
        cmocka_unit_test(test_tokenize_joins_pieces_but_not_blocks),
        cmocka_unit_test(test_tokenize_refuses),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
