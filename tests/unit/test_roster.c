/* SPDX-License-Identifier: Apache-2.0 */
/* Key files and rosters: what is made, what is read, and every message for what is not. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "link/roster.h"

enum { PATH_BYTES = 128 };
static char directory[] = "/tmp/dilocox-roster-XXXXXX";
static dlx_error error;
static char a[DLXI_KEY_TEXT_BYTES], b[DLXI_KEY_TEXT_BYTES], path_a[PATH_BYTES], path_b[PATH_BYTES];

static void must(dlx_status status) {
    if (status != DLX_OK) fail_msg("%s: %s", dlx_status_text(status), error.message);
}

static int make_keys(void **state) {
    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(path_a, PATH_BYTES, "%s/a.key", directory);
    snprintf(path_b, PATH_BYTES, "%s/b.key", directory);
    must(dlxi_key_generate(path_a, a, &error));
    must(dlxi_key_generate(path_b, b, &error));
    return 0;
}

static int remove_keys(void **state) {
    (void)state;
    unlink(path_a);
    unlink(path_b);
    return rmdir(directory);
}

static void write_file(const char *path, const char *text, mode_t mode) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, mode), 0);
}

/* ---- keys ------------------------------------------------------------------------------------ */

static void a_key_is_made_and_read(void **state) {
    (void)state;
    struct stat about;
    assert_int_equal(stat(path_a, &about), 0);
    assert_int_equal(about.st_mode & 07777, 0600);
    assert_int_equal(strlen(a), 40);
    assert_string_not_equal(a, b);
    char public_text[DLXI_KEY_TEXT_BYTES];
    must(dlxi_key_public(path_a, public_text, &error));
    assert_string_equal(public_text, a);
    dlxi_key_pair keys;
    must(dlxi_key_pair_read(&keys, path_a, false, &error));
    assert_string_equal(keys.public_text, a);
    assert_int_equal(strlen(keys.secret_text), 40);
    dlxi_key_pair_wipe(&keys);
    for (size_t i = 0; i < sizeof keys; i++) assert_int_equal(((const uint8_t *)&keys)[i], 0);
}

static void a_key_is_never_overwritten(void **state) {
    (void)state;
    char text[DLXI_KEY_TEXT_BYTES] = "x", expected[256];
    assert_int_equal(dlxi_key_generate(path_a, text, &error), DLX_CONFIG);
    snprintf(expected, sizeof expected,
             "'%s' exists already and a key is never overwritten; choose another name or remove it",
             path_a);
    assert_string_equal(error.message, expected);
    assert_string_equal(text, "");
    must(dlxi_key_public(path_a, text, &error));
    assert_string_equal(text, a);
}

static void expect_key_error(const char *path, const char *message) {
    dlxi_key_pair keys;
    assert_int_equal(dlxi_key_pair_read(&keys, path, false, &error), DLX_CONFIG);
    assert_string_equal(error.message, message);
    assert_string_equal(keys.secret_text, "");
}

static void keys_that_are_not_used(void **state) {
    (void)state;
    char path[PATH_BYTES], message[512], text[256];
    expect_key_error("no/site.key",
                     "wan.key: no such file 'no/site.key'; run 'dilocox keygen no/site.key' first");
    expect_key_error(
        "", "wan.key: no key file is given; run 'dilocox keygen site.key' and set wan.key to it");
    snprintf(message, sizeof message, "wan.key: '%s' is not used: it is not a regular file",
             directory);
    expect_key_error(directory, message);

    snprintf(path, sizeof path, "%s/c.key", directory);
    static const mode_t open_modes[] = {0644, 0640, 0602, 0610};
    for (size_t i = 0; i < sizeof open_modes / sizeof *open_modes; i++) {
        write_file(path, "", open_modes[i]);
        snprintf(
            message, sizeof message,
            "wan.key: '%s' is open to other users (mode %04o, allowed is 0600); run 'chmod 600 %s'",
            path, (unsigned)open_modes[i], path);
        expect_key_error(path, message);
    }
    if (geteuid() == 0) { /* else it can't be given away */
        write_file(path, "", 0600);
        assert_int_equal(chown(path, 1, (gid_t)-1), 0);
        snprintf(message, sizeof message,
                 "wan.key: '%s' belongs to user 1, and this process is user 0's; allowed is a key "
                 "file of its own user or root: change its owner (chown), or make another key",
                 path);
        expect_key_error(path, message);
        assert_int_equal(chown(path, 0, (gid_t)-1), 0);
    }
    dlxi_key_pair keys, other;
    must(dlxi_key_pair_read(&keys, path_a, false, &error));
    must(dlxi_key_pair_read(&other, path_b, false, &error));
    snprintf(message, sizeof message,
             "wan.key: '%s' is not a key file: it must have the lines 'public: KEY' and 'secret: "
             "KEY' of 40 characters each; make one with 'dilocox keygen'",
             path);
    static const char *const malformed[] = {"",
                                            "public: %s\n",
                                            "secret: %s\n",
                                            "public %s\nsecret %s\n",
                                            "public: %.39s\nsecret: %s\n",
                                            "public: %s\nsecret: %sx\n",
                                            "public: %.39s~\nsecret: %s\n",
                                            "# public: %s\n# secret: %s\n"};
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        snprintf(text, sizeof text, malformed[i], keys.public_text, keys.secret_text);
        write_file(path, text, 0600);
        expect_key_error(path, message);
    }
    snprintf(text, sizeof text, "public: %s\nsecret: %s\n", keys.public_text, other.secret_text);
    write_file(path, text, 0600);
    snprintf(message, sizeof message,
             "wan.key: the public and secret halves in '%s' do not belong together; make a new "
             "pair with 'dilocox keygen'",
             path);
    expect_key_error(path, message);
    snprintf(text, sizeof text, "secret:\t%s\r\n# a comment\npublic: %s", keys.secret_text,
             keys.public_text);
    write_file(path, text, 0600);
    must(dlxi_key_pair_read(&other, path, false, &error));
    assert_string_equal(other.secret_text, keys.secret_text);
    unlink(path);
}

/* What a call leaves on its stack, which is this memory. */
enum { STACK_BYTES = 1 << 20 };
static _Alignas(4096) uint8_t stack[STACK_BYTES];
static char call_path[PATH_BYTES];
static dlxi_key_pair call_keys; /* not on the stack */

static void *call_read(void *unused) {
    (void)unused;
    (void)dlxi_key_pair_read(&call_keys, call_path, false, NULL);
    return NULL;
}

static void *call_generate(void *unused) {
    (void)unused;
    (void)dlxi_key_generate(call_path, call_keys.public_text, NULL);
    return NULL;
}

/* Leaves a key there, as both would without wiping; deeper than what ends a thread reaches. */
static void *call_careless(void *path) {
    (void)path;
    volatile char text[8192];
    for (size_t i = 0; i < DLXI_KEY_TEXT_BYTES; i++) text[i] = call_keys.secret_text[i];
    (void)text[0];
    return NULL;
}

static bool is_left(void *(*call)(void *), const char *secret_text) {
    pthread_t thread;
    pthread_attr_t attributes;
    memset(stack, 0, sizeof stack);
    assert_int_equal(pthread_attr_init(&attributes), 0);
    assert_int_equal(pthread_attr_setstack(&attributes, stack, sizeof stack), 0);
    assert_int_equal(pthread_create(&thread, &attributes, call, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_attr_destroy(&attributes);
    if (secret_text == NULL) { /* of the file that the call made */
        must(dlxi_key_pair_read(&call_keys, call_path, false, &error));
        secret_text = call_keys.secret_text;
    }
    return memmem(stack, sizeof stack, secret_text, DLXI_KEY_TEXT_BYTES - 1) != NULL;
}

static void no_secret_is_left_in_memory(void **state) {
    (void)state;
    char text[256];
    dlxi_key_pair keys;
    must(dlxi_key_pair_read(&keys, path_a, false, &error));
    call_keys = keys;
    assert_true(is_left(call_careless, keys.secret_text));
    snprintf(call_path, sizeof call_path, "%s", path_a);
    assert_false(is_left(call_read, keys.secret_text));
    assert_string_equal(call_keys.secret_text, keys.secret_text);

    snprintf(call_path, sizeof call_path, "%s/d.key", directory);
    static const char *const refused[] = {"secret: %s\n", "secret: %s\npublic: %.39s\n",
                                          "secret: %s\npublic: %s\n"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        snprintf(text, sizeof text, refused[i], keys.secret_text, b);
        write_file(call_path, text, 0600);
        assert_false(is_left(call_read, keys.secret_text));
        assert_string_equal(call_keys.secret_text, "");
    }
    unlink(call_path);
    assert_false(is_left(call_generate, NULL));
    unlink(call_path);
}

/* ---- rosters --------------------------------------------------------------------------------- */

static dlxi_roster roster;

static dlx_status parse(const char *text) {
    return dlxi_roster_parse(&roster, text, strlen(text), "roster.txt", &error);
}

static void a_roster_is_read(void **state) {
    (void)state;
    char text[512];
    snprintf(text, sizeof text,
             "# who may join\n\n  coordinator\t%s\r\n_N.1-x %s # the second\n   # end", a, b);
    must(parse(text));
    assert_int_equal(roster.count, 2);
    uint8_t key[DLXI_KEY_BYTES];
    assert_true(dlxi_key_decode(key, b));
    const dlxi_roster_line *line = dlxi_roster_by_key(&roster, key);
    assert_non_null(line);
    assert_string_equal(line->name, "_N.1-x");
    assert_string_equal(line->key_text, b);
    assert_ptr_equal(dlxi_roster_by_name(&roster, "_N.1-x"), line);
    assert_null(dlxi_roster_by_name(&roster, "_n.1-x"));
    key[31] ^= 1;
    assert_null(dlxi_roster_by_key(&roster, key));
    must(parse(""));
    assert_int_equal(roster.count, 0);
}

static void expect_roster_error(const char *text, const char *message) {
    assert_int_equal(parse(text), DLX_CONFIG);
    assert_string_equal(error.message, message);
}

static void malformed_rosters_are_refused_with_their_line(void **state) {
    (void)state;
    char text[512], message[512];
#define NAMES                                                                                      \
    "names have 1 to 63 of the characters A-Z a-z 0-9 . _ - and begin with a letter, digit or _"
    static const char *const bad_names[][2] = {
        {"a/b", "a/b"}, {"..", ".."}, {"-x", "-x"}, {"d\x1b[2J", "d?[2J"}, {"d\xc3\xa9", "d??"}};
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++) {
        snprintf(text, sizeof text, "# one\n%s %s\n", bad_names[i][0], a);
        snprintf(message, sizeof message,
                 "wan.roster: roster.txt:2: the name '%s' is not allowed; " NAMES, bad_names[i][1]);
        expect_roster_error(text, message);
    }
    snprintf(text, sizeof text, "%064d %s\n", 0, a);
    snprintf(message, sizeof message,
             "wan.roster: roster.txt:1: the name '%063d' is not allowed; " NAMES, 0);
    expect_roster_error(text, message);

    /* the key is not shown */
    snprintf(text, sizeof text, "delft %s\n%s oslo\n", a, b);
    expect_roster_error(text, "wan.roster: roster.txt:2: begins with a key; allowed are 'name "
                              "public-key', in this order");

#define KEY "allowed are the 40 characters of a public key, as 'dilocox keygen' prints it"
    snprintf(text, sizeof text, "delft %.39s\n", a);
    expect_roster_error(
        text, "wan.roster: roster.txt:1: the key of 'delft' is malformed (39 characters); " KEY);
    snprintf(text, sizeof text, "delft %.39s~\n", a);
    expect_roster_error(
        text, "wan.roster: roster.txt:1: the key of 'delft' is malformed (40 characters); " KEY);
    expect_roster_error(
        "delft", "wan.roster: roster.txt:1: the key of 'delft' is malformed (0 characters); " KEY);

    snprintf(text, sizeof text, "delft %s oslo\n", a);
    expect_roster_error(
        text, "wan.roster: roster.txt:1: something follows the key of 'delft'; allowed are 'name "
              "public-key' and a comment that begins with #");
    snprintf(text, sizeof text, "delft %s\ndelft %s\n", a, b);
    expect_roster_error(
        text, "wan.roster: roster.txt:2: the name 'delft' appears twice; a name has one key");
    snprintf(text, sizeof text, "delft %s\n\noslo %s\n", a, a);
    expect_roster_error(
        text,
        "wan.roster: roster.txt:3: 'oslo' has the same key as 'delft'; a key has one name, make "
        "another with 'dilocox keygen'");
    static const char zero[] = "del\0ft";
    assert_int_equal(dlxi_roster_parse(&roster, zero, sizeof zero, "roster.txt", &error),
                     DLX_CONFIG);
}

/* Different keys without the cost of making them: any 32 bytes with the right Z85 text are a key to
 * the roster. */
static void a_roster_has_an_end(void **state) {
    (void)state;
    char *text = malloc(DLXI_ROSTER_BYTES_MAX);
    assert_non_null(text);
    size_t used = 0;
    for (int i = 0; i < DLXI_ROSTER_NAMES_MAX; i++)
        used += (size_t)sprintf(text + used, "site%d %.35s%05d\n", i, a, i);
    must(parse(text));
    assert_int_equal(roster.count, DLXI_ROSTER_NAMES_MAX);
    sprintf(text + used, "more %.35s%05d\n", a, DLXI_ROSTER_NAMES_MAX);
    expect_roster_error(text,
                        "wan.roster: roster.txt:257: more than 256 names; allowed are 1 to 256");
    free(text);
}

static void roster_files(void **state) {
    (void)state;
    dlxi_roster *read = NULL;
    assert_int_equal(dlxi_roster_read(&read, "no/roster.txt", &error), DLX_CONFIG);
    assert_string_equal(error.message,
                        "wan.roster: no such file 'no/roster.txt'; write one with a line 'name "
                        "public-key' for the coordinator and each site");
    assert_null(read);
    assert_int_equal(dlxi_roster_read(&read, NULL, &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "wan.roster: no roster is given; set it to a file of lines 'name public-key'");
    char path[PATH_BYTES], message[512], line[128];
    snprintf(path, sizeof path, "%s/roster.txt", directory);
    char *large = malloc(DLXI_ROSTER_BYTES_MAX + 2);
    assert_non_null(large);
    memset(large, '#', DLXI_ROSTER_BYTES_MAX + 1);
    large[DLXI_ROSTER_BYTES_MAX + 1] = '\0';
    write_file(path, large, 0644);
    assert_int_equal(dlxi_roster_read(&read, path, &error), DLX_CONFIG);
    snprintf(message, sizeof message,
             "wan.roster: '%s' is larger than 65536 bytes, the most that a roster may have", path);
    assert_string_equal(error.message, message);
    free(large);
    snprintf(line, sizeof line, "delft %s\n", a);
    write_file(path, line, 0644);
    must(dlxi_roster_read(&read, path, &error));
    assert_int_equal(read->count, 1);
    free(read);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_is_made_and_read),
        cmocka_unit_test(a_key_is_never_overwritten),
        cmocka_unit_test(keys_that_are_not_used),
        cmocka_unit_test(no_secret_is_left_in_memory),
        cmocka_unit_test(a_roster_is_read),
        cmocka_unit_test(malformed_rosters_are_refused_with_their_line),
        cmocka_unit_test(a_roster_has_an_end),
        cmocka_unit_test(roster_files),
    };
    return cmocka_run_group_tests(tests, make_keys, remove_keys);
}
