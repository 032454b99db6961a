/* SPDX-License-Identifier: Apache-2.0 */
/* Files: read with a limit, mapped, and replaced completely or not at all. */
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static char directory[] = "/tmp/dilocox_file.XXXXXX";
static char path[64];

static int set_up(void **state) {
    (void)state;
    if (mkdtemp(directory) == NULL) return -1;
    snprintf(path, sizeof path, "%s/x", directory);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    unlink(path);
    return rmdir(directory); /* fails if a file was left behind */
}

static size_t count_files(void) {
    size_t count = 0;
    DIR *stream = opendir(directory);
    assert_non_null(stream);
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;) count += entry->d_name[0] != '.';
    closedir(stream);
    return count;
}

static void write_file(const char *text) {
    dlxi_file_writer *writer;
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, text, strlen(text), NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_commit(writer, NULL), DLX_OK);
    dlxi_file_writer_close(&writer);
    assert_null(writer);
}

static void expect_content(const char *text) {
    char *content;
    size_t bytes;
    assert_int_equal(dlxi_file_read(&content, &bytes, path, 1 << 20, NULL), DLX_OK);
    assert_int_equal(bytes, strlen(text));
    assert_string_equal(content, text);
    free(content);
}

static void test_read(void **state) {
    (void)state;
    char *content;
    size_t bytes;
    dlx_error error;
    write_file("twelve bytes");
    expect_content("twelve bytes");
    assert_int_equal(dlxi_file_read(&content, &bytes, path, 12, &error), DLX_OK);
    free(content);
    assert_int_equal(dlxi_file_read(&content, &bytes, path, 11, &error), DLX_DATA);
    assert_null(content);
    assert_non_null(strstr(error.message, "/x: too large; allowed: up to 11 bytes"));
    unlink(path);
    assert_int_equal(dlxi_file_read(&content, &bytes, path, 12, &error), DLX_SYSTEM);
    assert_int_equal(error.system_errno, ENOENT);
    assert_non_null(strstr(error.message, "/x: no such file"));
}

static void test_read_larger_than_buffers(void **state) {
    (void)state;
    enum { BYTES = 300001 };
    static uint8_t text[BYTES];
    dlxi_file_writer *writer;
    for (size_t i = 0; i < BYTES; i++) text[i] = (uint8_t)(i * 7 + i / 251);
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    for (size_t at = 0, piece = 1; at < BYTES; at += piece, piece = piece * 3 + 1) {
        if (piece > BYTES - at) piece = BYTES - at;
        assert_int_equal(dlxi_file_writer_append(writer, text + at, piece, NULL), DLX_OK);
    }
    assert_int_equal(dlxi_file_writer_commit(writer, NULL), DLX_OK);
    dlxi_file_writer_close(&writer);
    char *content;
    size_t bytes;
    assert_int_equal(dlxi_file_read(&content, &bytes, path, BYTES, NULL), DLX_OK);
    assert_int_equal(bytes, BYTES);
    assert_memory_equal(content, text, BYTES);
    assert_int_equal(content[BYTES], 0);
    free(content);
    dlxi_file_map map;
    assert_int_equal(dlxi_file_map_open(&map, path, NULL), DLX_OK);
    assert_int_equal(map.bytes, BYTES);
    assert_memory_equal(map.data, text, BYTES);
    dlxi_file_map_close(&map);
    assert_null(map.data);
    dlxi_file_map_close(&map);
}

static void test_map_refuses(void **state) {
    (void)state;
    dlxi_file_map map;
    dlx_error error;
    assert_int_equal(dlxi_file_map_open(&map, directory, &error), DLX_DATA);
    assert_non_null(
        strstr(error.message, ": not a regular file; give a file, not a directory or pipe"));
    unlink(path);
    assert_int_equal(dlxi_file_map_open(&map, path, &error), DLX_SYSTEM);
    assert_int_equal(error.system_errno, ENOENT);
    write_file("");
    assert_int_equal(dlxi_file_map_open(&map, path, &error), DLX_OK);
    assert_true(map.data == NULL && map.bytes == 0);
}

static void test_replaced_at_commit_only(void **state) {
    (void)state;
    dlxi_file_writer *writer, *second;
    write_file("old");
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, "..w", 3, NULL), DLX_OK);
    /* two writers of one path do not meet */
    assert_int_equal(dlxi_file_writer_open(&second, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(second, "second", 6, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_replace(writer, 0, "ne", 2, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, "er", 2, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_replace(writer, 4, "xx", 2, NULL), DLX_ARGUMENT);
    assert_int_equal(dlxi_file_writer_replace(writer, 6, "", 0, NULL), DLX_ARGUMENT);
    expect_content("old");
    assert_int_equal(dlxi_file_writer_commit(writer, NULL), DLX_OK);
    expect_content("newer");
    dlxi_file_writer_close(&writer);
    dlxi_file_writer_close(&second); /* never committed */
    dlxi_file_writer_close(&second);
    expect_content("newer");
    assert_int_equal(count_files(), 1);
}

static void test_writer_refuses(void **state) {
    (void)state;
    dlxi_file_writer *writer;
    dlx_error error;
    assert_int_equal(dlxi_file_writer_open(&writer, "/no/such/directory/x", &error), DLX_SYSTEM);
    assert_null(writer);
    assert_string_equal(error.message,
                        "/no/such/directory/x: can't be written: No such file or directory");
    assert_int_equal(dlxi_file_writer_open(&writer, directory, &error), DLX_CONFIG);
    assert_non_null(strstr(error.message, ": is a directory; name a file to write"));
    assert_int_equal(dlxi_file_writer_open(&writer, "/dev/null", &error), DLX_CONFIG);
    assert_string_equal(error.message, "/dev/null: is not a regular file; name a file to write, "
                                       "new or to be replaced");
    assert_null(writer);
}

static void test_same(void **state) {
    (void)state;
    dlx_error error;
    char one[300], hard[300], symbolic[300], other[300];
    snprintf(one, sizeof one, "%s/one", directory);
    snprintf(hard, sizeof hard, "%s/hard", directory);
    snprintf(symbolic, sizeof symbolic, "%s/symbolic", directory);
    snprintf(other, sizeof other, "%s/other", directory);
    assert_int_equal(dlxi_file_write_text(one, "x", &error), DLX_OK);
    assert_int_equal(dlxi_file_write_text(other, "x", &error), DLX_OK);
    assert_int_equal(link(one, hard), 0);
    assert_int_equal(symlink("hard", symbolic), 0);
    assert_true(dlxi_file_same(one, one) && dlxi_file_same(one, hard) &&
                dlxi_file_same(symbolic, one));
    assert_false(dlxi_file_same(one, other) || dlxi_file_same(one, "/no/such") ||
                 dlxi_file_same("/no/such", "/no/such"));
    int fd = open(one, O_RDONLY | O_CLOEXEC);
    assert_true(dlxi_file_is_open_as(fd, symbolic) && dlxi_file_is_open_as(fd, hard));
    assert_false(dlxi_file_is_open_as(fd, other) || dlxi_file_is_open_as(-1, one));
    close(fd);
    assert_int_equal(unlink(symbolic) | unlink(hard) | unlink(other) | unlink(one), 0);
}

static void test_reader(void **state) {
    (void)state;
    dlxi_file_reader reader;
    dlx_error error;
    char got[4] = "";
    write_file("twelve bytes");
    assert_int_equal(dlxi_file_reader_open(&reader, path, &error), DLX_OK);
    assert_int_equal(reader.bytes, 12);
    assert_int_equal(dlxi_file_reader_read(&reader, got, 8, 4, path, &error), DLX_OK);
    assert_memory_equal(got, "ytes", 4);
    assert_int_equal(dlxi_file_reader_read(&reader, got, 10, 4, path, &error), DLX_DATA);
    assert_non_null(strstr(error.message, "/x: ends after 12 bytes; the file is cut short"));
    dlxi_file_reader_close(&reader);
    dlxi_file_reader_close(&reader);
    assert_int_equal(dlxi_file_reader_open(&reader, directory, &error), DLX_DATA);
    assert_int_equal(reader.fd, -1);
    assert_int_equal(dlxi_file_reader_open(&reader, "/no/such", &error), DLX_SYSTEM);
    assert_int_equal(error.system_errno, ENOENT);
}

static void test_extended(void **state) {
    (void)state;
    dlxi_file_writer *writer;
    char *content;
    size_t bytes;
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, "head", 4, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_extend(writer, 3, NULL), DLX_ARGUMENT);
    assert_int_equal(dlxi_file_writer_extend(writer, 8, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_replace(writer, 6, "il", 2, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_replace(writer, 7, "xx", 2, NULL), DLX_ARGUMENT);
    assert_int_equal(dlxi_file_writer_append(writer, "!", 1, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_commit(writer, NULL), DLX_OK);
    dlxi_file_writer_close(&writer);
    assert_int_equal(dlxi_file_read(&content, &bytes, path, 100, NULL), DLX_OK);
    assert_int_equal(bytes, 9);
    assert_memory_equal(content, "head\0\0il!", 9);
    free(content);
}

static void test_directory_sync(void **state) {
    (void)state;
    dlx_error error;
    assert_int_equal(dlxi_directory_sync(directory, &error), DLX_OK);
    assert_int_equal(dlxi_directory_sync("/proc", &error), DLX_OK); /* can't sync */
    assert_int_equal(dlxi_directory_sync("/no/such", &error), DLX_SYSTEM);
    assert_int_equal(error.system_errno, ENOENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),           cmocka_unit_test(test_read_larger_than_buffers),
        cmocka_unit_test(test_map_refuses),    cmocka_unit_test(test_replaced_at_commit_only),
        cmocka_unit_test(test_writer_refuses), cmocka_unit_test(test_same),
        cmocka_unit_test(test_reader),         cmocka_unit_test(test_extended),
        cmocka_unit_test(test_directory_sync),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
