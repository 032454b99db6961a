/* SPDX-License-Identifier: Apache-2.0 */
/* The options engine: every message by its text, the round trip of the printed YAML, and the
 * comparison of two sites. */
#include "../options_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static void load_into(test_config *config, const char *yaml) {
    dlx_error error;
    dlx_status status =
        dlxi_options_load_text(config, &test_table, "x.yaml", yaml, strlen(yaml), &error);
    if (status != DLX_OK) print_error("%s\n", error.message);
    assert_int_equal(status, DLX_OK);
}

static test_config defaults(void) {
    test_config config;
    memset(&config, 0xA5, sizeof config);
    dlxi_options_set_defaults(&config, &test_table);
    return config;
}

static void expect_refused(const char *yaml, size_t yaml_bytes, const char *message) {
    test_config config = defaults();
    dlx_error error;
    assert_int_equal(
        dlxi_options_load_text(&config, &test_table, "quickstart.yaml", yaml, yaml_bytes, &error),
        DLX_CONFIG);
    assert_string_equal(error.message, message);
    assert_int_equal(error.status, DLX_CONFIG);
    assert_int_equal(dlxi_options_load_text(&config, &test_table, "x", yaml, yaml_bytes, NULL),
                     DLX_CONFIG);
}

#define REFUSED(yaml, message) expect_refused((yaml), sizeof(yaml) - 1, "quickstart.yaml:" message)

/* ---- values ---------------------------------------------------------------------------------- */

static void test_defaults_are_set(void **state) {
    (void)state;
    test_config config = defaults();
    assert_string_equal(config.name, "first run");
    assert_int_equal(config.run.seed, 1);
    assert_string_equal(config.run.dir, "runs/a");
    assert_true(config.train.tokens == 1000000.0 && config.train.learning_rate == 0.002);
    assert_int_equal(config.train.batch, 8);
    assert_int_equal(config.sync.overlap, TEST_CARRY);
    assert_true(config.sync.outer_momentum == DLX_AUTO);
    assert_true(config.sync.compression.error_feedback);
    assert_int_equal(config.sync.patience, -1);
    assert_string_equal(config.wan.key, "");
}

static void test_file_sets_what_it_names(void **state) {
    (void)state;
    test_config config = defaults();
    load_into(&config, "# comment\n"
                       "name: \"a: \\\"b\\\"\"\n"
                       "run:\n  seed: 1.0e6\n"
                       "sync:\n  overlap: none\n  outer_momentum: .5\n"
                       "  compression: {rank: auto, error_feedback: false}  # a flow map\n"
                       "  patience: +3\n"
                       "train: {tokens: 25E2, learning_rate: '1e-4'}\n"
                       "wan.key: k\xC3\xA4se\n");
    assert_string_equal(config.name, "a: \"b\"");
    assert_int_equal(config.run.seed, 1000000);
    assert_int_equal(config.sync.overlap, TEST_NONE);
    assert_true(config.sync.outer_momentum == 0.5);
    assert_true(config.sync.compression.rank == (int64_t)DLX_AUTO);
    assert_false(config.sync.compression.error_feedback);
    assert_int_equal(config.sync.patience, 3);
    assert_true(config.train.tokens == 2500.0 && config.train.learning_rate == 1e-4);
    assert_string_equal(config.wan.key, "k\xC3\xA4se");
    assert_string_equal(config.run.dir, "runs/a"); /* not named: stays */
    assert_int_equal(config.sync.inner_steps, 25);
}

static void test_files_without_keys_are_fine(void **state) {
    (void)state;
    test_config config = defaults();
    load_into(&config, "");
    load_into(&config, "# only a comment\n");
    load_into(&config, "---\n...\n");
    load_into(&config, "sync:\n  # overlap: none\nrun: {}\n");
    assert_int_equal(config.sync.overlap, TEST_CARRY);
}

static void test_bounds_are_allowed(void **state) {
    (void)state;
    test_config config = defaults();
    load_into(&config, "sync: {inner_steps: 100000, patience: -5, outer_momentum: 0.999}");
    assert_int_equal(config.sync.inner_steps, 100000);
    load_into(&config, "sync: {inner_steps: 1, patience: 5, outer_momentum: -0}");
    assert_int_equal(config.sync.patience, 5);
    assert_false(signbit(config.sync.outer_momentum)); /* so that 0 and -0 print equally */
}

/* ---- messages -------------------------------------------------------------------------------- */

static void test_values_are_refused(void **state) {
    (void)state;
    REFUSED("# one\n\nsync:\n  inner_steps: 0\n",
            "4: sync.inner_steps: 0 is out of range; allowed: 1 to 100000");
    REFUSED("sync: {inner_steps: 100001}",
            "1: sync.inner_steps: 100001 is out of range; allowed: 1 to 100000");
    REFUSED("sync: {inner_steps: 1e300}",
            "1: sync.inner_steps: 1e300 is out of range; allowed: 1 to 100000");
    REFUSED("sync: {inner_steps: auto}",
            "1: sync.inner_steps: 'auto' is not a whole number; allowed: 1 to 100000");
    REFUSED("train:\n  batch: many\n",
            "2: train.batch: 'many' is not a whole number; allowed: 1 to 4096");
    REFUSED("train:\n  batch: 2.5\n",
            "2: train.batch: '2.5' is not a whole number; allowed: 1 to 4096");
    REFUSED("train: {batch: 0x10}",
            "1: train.batch: '0x10' is not a whole number; allowed: 1 to 4096");
    REFUSED("train: {batch: \"\"}", "1: train.batch: '' is not a whole number; allowed: 1 to 4096");
    REFUSED("train: {batch: ' 8'}",
            "1: train.batch: ' 8' is not a whole number; allowed: 1 to 4096");
    REFUSED("train: {batch:\n}", "1: train.batch: no value; allowed: 1 to 4096");
    REFUSED("train: {batch: ~}", "1: train.batch: no value; allowed: 1 to 4096");
    REFUSED("train: {learning_rate: nan}",
            "1: train.learning_rate: 'nan' is not a number; allowed: 1e-09 to 10");
    REFUSED("train: {learning_rate: 1e}",
            "1: train.learning_rate: '1e' is not a number; allowed: 1e-09 to 10");
    REFUSED("train: {learning_rate: .}",
            "1: train.learning_rate: '.' is not a number; allowed: 1e-09 to 10");
    REFUSED("train: {learning_rate: -1}",
            "1: train.learning_rate: -1 is out of range; allowed: 1e-09 to 10");
    REFUSED("train: {learning_rate: 1e999}",
            "1: train.learning_rate: 1e999 is out of range; allowed: 1e-09 to 10");
    REFUSED("sync: {outer_momentum: 1}",
            "1: sync.outer_momentum: 1 is out of range; allowed: 0 to 0.999, or auto");
    REFUSED("sync: {compression: {error_feedback: yes}}",
            "1: sync.compression.error_feedback: 'yes' is not a choice; allowed: true, false");
    REFUSED("sync: {overlap: cary}",
            "1: sync.overlap: 'cary' is not a choice; allowed: none, delayed, eager, carry");
    REFUSED("name: 0123456789abcdef",
            "1: name: 16 bytes are too many; allowed: text of up to 15 bytes");
    REFUSED(
        "name: \"a\\tb\"",
        "1: name: 'a?b' is not plain text (UTF-8 without control characters); allowed: text of up "
        "to 15 bytes");
    REFUSED("name:", "1: name: no value; allowed: text of up to 15 bytes");
    REFUSED("name: null", "1: name: no value; allowed: text of up to 15 bytes");
}

static void test_keys_are_refused(void **state) {
    (void)state;
    REFUSED("run:\n  seed: 1\nsync:\n  iner_steps: 5\n",
            "4: unknown key 'sync.iner_steps'; did you mean 'sync.inner_steps'?");
    REFUSED("snyc: {inner_steps: 5}", "1: unknown key 'snyc'; did you mean 'sync'?");
    REFUSED("inner_steps: 5", "1: unknown key 'inner_steps'; did you mean 'sync.inner_steps'?");
    REFUSED("train: {rank: 5}",
            "1: unknown key 'train.rank'; did you mean 'sync.compression.rank'?");
    REFUSED("sync: {compresion: {rank: 5}}",
            "1: unknown key 'sync.compresion'; did you mean 'sync.compression'?");
    REFUSED("zebra: 5", "1: unknown key 'zebra'; 'dilocox config --defaults' prints all keys");
    REFUSED("\"a\\eb\\0c\": 5",
            "1: unknown key 'a?b?c'; 'dilocox config --defaults' prints all keys");
    REFUSED("\"\": 5", "1: unknown key ''; 'dilocox config --defaults' prints all keys");
    REFUSED("? [a]\n: 5", "1: a key must be one word, not a list");
    REFUSED("? {a: 1}\n: 5", "1: a key must be one word, not a map");
    REFUSED("name: a\n\nname: b\n", "3: name: given twice, in line 1 too");
    REFUSED("sync:\n  overlap: none\nsync.overlap: carry\n",
            "3: sync.overlap: given twice, in line 2 too");
    REFUSED("run: {seed: 1}\nrun: {dir: a}\n", "2: run: given twice, in line 1 too");
}

static void test_long_keys_are_cut(void **state) {
    (void)state;
    char yaml[512], message[512];
    memset(yaml, 'k', 300);
    memcpy(yaml + 300, ": 1", 4);
    snprintf(message, sizeof message,
             "quickstart.yaml:1: unknown key '%.93s..'; 'dilocox config --defaults' prints all "
             "keys",
             yaml);
    expect_refused(yaml, strlen(yaml), message);
}

static void test_shapes_are_refused(void **state) {
    (void)state;
    REFUSED("sync: 5", "1: sync: is a section; its keys, as 'overlap', go below it, indented");
    REFUSED("sync: [a]", "1: sync: is a section; its keys, as 'overlap', go below it, indented");
    REFUSED("sync: {compression: x}",
            "1: sync.compression: is a section; its keys, as 'rank', go below it, indented");
    REFUSED("sync: {overlap: {a: 1}}", "1: sync.overlap: one value is expected, not a map");
    REFUSED("sync: {overlap: [a]}", "1: sync.overlap: one value is expected, not a list");
    REFUSED("[a]", "1: a config is a map of sections, as 'run: {seed: 1}'");
    REFUSED("text", "1: a config is a map of sections, as 'run: {seed: 1}'");
    REFUSED("name: &a b", "1: anchors and aliases (& and *) are not allowed");
    REFUSED("run: &a {seed: 1}", "1: anchors and aliases (& and *) are not allowed");
    REFUSED("run: *a", "1: anchors and aliases (& and *) are not allowed");
    REFUSED("name: !!str b", "1: tags (!) are not allowed; write the bare value");
    REFUSED("--- !t {name: b}", "1: tags (!) are not allowed; write the bare value");
    REFUSED("name: b\n---\nname: c\n", "2: a second document begins here; a config has one");
    REFUSED(
        "run:\n  seed: 1\n name: b\n",
        "3: not valid YAML: did not find expected key; look for a missing colon, quote or indent");
    REFUSED("name: \"b\n",
            "2: not valid YAML: found unexpected end of stream; look for a missing colon, quote or "
            "indent");
    REFUSED("name: \xFF\n",
            "1:7: not UTF-8: the byte 0xFF, as Latin-1 has it; save the file as UTF-8");
    REFUSED("run:\n\tseed: 1\n", "2:1: a tab; YAML is indented with spaces");
    REFUSED("run:\n  seed: 1\n \t b: 1\n", "3:2: a tab; YAML is indented with spaces");
}

static void test_files_are_refused(void **state) {
    (void)state;
    test_config config = defaults();
    dlx_error error;
    size_t bytes = (1 << 20) + 1;
    assert_int_equal(dlxi_options_load_file(&config, &test_table, "no/such.yaml", &error),
                     DLX_CONFIG);
    assert_string_equal(
        error.message,
        "no/such.yaml: no such file; 'dilocox config --defaults > no/such.yaml' writes one "
        "with every option");
    assert_int_equal(dlxi_options_load_file(&config, &test_table, "/", &error), DLX_SYSTEM);
    assert_string_equal(error.message, "/: can't be read: Is a directory");

    char *large = malloc(bytes);
    assert_non_null(large);
    memset(large, ' ', bytes);
    expect_refused(
        large, bytes,
        "quickstart.yaml: 1048577 bytes are too many for a config; allowed: up to 1048576");
    load_into(&config, ""); /* and one byte less is read: */
    assert_int_equal(dlxi_options_load_text(&config, &test_table, "x", large, bytes - 1, &error),
                     DLX_OK);

    char path[] = "/tmp/options.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, large, bytes), bytes);
    assert_int_equal(dlxi_options_load_file(&config, &test_table, path, &error), DLX_CONFIG);
    assert_non_null(
        strstr(error.message, ": too large for a config; allowed: up to 1048576 bytes"));
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_equal(pwrite(fd, "run:\n  seed: x\n", 15, 0), 15);
    assert_int_equal(dlxi_options_load_file(&config, &test_table, path, &error), DLX_CONFIG);
    char message[256];
    snprintf(message, sizeof message,
             "%s:2: run.seed: 'x' is not a whole number; allowed: 0 to 1000000000000000", path);
    assert_string_equal(error.message, message);
    assert_int_equal(pwrite(fd, "run:\n  seed: 9\n", 15, 0), 15);
    assert_int_equal(dlxi_options_load_file(&config, &test_table, path, &error), DLX_OK);
    assert_int_equal(config.run.seed, 9);
    close(fd);
    unlink(path);
    free(large);
}

static void expect_not_set(const char *assignment, const char *message) {
    test_config config = defaults();
    dlx_error error;
    assert_int_equal(dlxi_options_set(&config, &test_table, assignment, &error), DLX_CONFIG);
    assert_string_equal(error.message, message);
}

static void test_set(void **state) {
    (void)state;
    test_config config = defaults();
    assert_int_equal(dlxi_options_set(&config, &test_table, "sync.compression.rank=32", NULL),
                     DLX_OK);
    assert_int_equal(config.sync.compression.rank, 32);
    assert_int_equal(dlxi_options_set(&config, &test_table, "name=a=b c", NULL), DLX_OK);
    assert_string_equal(config.name, "a=b c");
    assert_int_equal(dlxi_options_set(&config, &test_table, "name=", NULL), DLX_OK);
    assert_string_equal(config.name, "");
    expect_not_set(
        "sync.foo=1",
        "--set sync.foo=1: unknown key 'sync.foo'; 'dilocox config --defaults' prints all keys");
    expect_not_set(
        "sync.overlp=eager",
        "--set sync.overlp=eager: unknown key 'sync.overlp'; did you mean 'sync.overlap'?");
    expect_not_set("sync=1",
                   "--set sync=1: 'sync' is a section; set one of its keys, as 'sync.overlap'");
    expect_not_set(
        "train.batch",
        "--set train.batch: no '=' in it; write --set key=value, as in --set name=first run");
    expect_not_set("train.batch=0",
                   "--set train.batch=0: train.batch: 0 is out of range; allowed: 1 to 4096");
    expect_not_set("name=\xC0\x80",
                   "--set name=??: name: '?\?' is not plain text (UTF-8 without control "
                   "characters); allowed: text of up to 15 bytes");
}

static void test_text_is_utf8(void **state) {
    (void)state;
    static const char *const good[] = {"\xC2\xA0",        "\xDF\xBF",     "\xE0\xA0\x80",
                                       "\xED\x9F\xBF",    "\xEE\x80\x80", "\xF0\x90\x80\x80",
                                       "\xF4\x8F\xBF\xBF"};
    static const char *const bad[] = {"\x80",
                                      "\xC1\xBF",
                                      "\xC2",
                                      "\xC2\x41",
                                      "\xE0\x9F\xBF",
                                      "\xED\xA0\x80",
                                      "\xE1\x80",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF5\x80\x80\x80",
                                      "\xFF",
                                      "\x7F",
                                      "\xC2\x85",
                                      "\x1B",
                                      "\xE2\x80\xA8"};
    char assignment[32];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        test_config config = defaults();
        snprintf(assignment, sizeof assignment, "name=%s", good[i]);
        assert_int_equal(dlxi_options_set(&config, &test_table, assignment, NULL), DLX_OK);
        assert_string_equal(config.name, good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        test_config config = defaults();
        snprintf(assignment, sizeof assignment, "name=%s", bad[i]);
        assert_int_equal(dlxi_options_set(&config, &test_table, assignment, NULL), DLX_CONFIG);
        assert_string_equal(config.name, "first run");
    }
}

/* ---- printing -------------------------------------------------------------------------------- */

static char *canonical_of(const test_config *config) {
    char *text;
    assert_int_equal(dlxi_options_print_canonical(&text, config, &test_table, NULL), DLX_OK);
    return text;
}

static void expect_round_trip(const test_config *config, const char *yaml) {
    test_config back = defaults();
    load_into(&back, yaml);
    char *before = canonical_of(config), *after = canonical_of(&back);
    assert_string_equal(after, before);
    assert_string_equal(back.run.dir, config->run.dir);
    assert_string_equal(back.wan.key, config->wan.key);
    free(before);
    free(after);
}

static void test_yaml_of_defaults(void **state) {
    (void)state;
    char *yaml;
    assert_int_equal(dlxi_options_print_yaml(&yaml, NULL, &test_table, NULL), DLX_OK);
    assert_string_equal(
        yaml,
        "name: \"first run\"                       # what the run is called; text of up to 15 "
        "bytes\n"
        "\n"
        "run:\n"
        "  seed: 1                               # of weights and data order; 0 to "
        "1000000000000000\n"
        "  dir: runs/a                           # where results go; text of up to 23 bytes\n"
        "\n"
        "train:\n"
        "  tokens: 1.0e6                         # of the whole run; 1 to 1e+15\n"
        "  learning_rate: 2e-3                   # of AdamW; 1e-09 to 10\n"
        "  batch: 8                              # windows a site and inner step; 1 to 4096\n"
        "\n"
        "sync:\n"
        "  overlap: carry                        # while it travels; none, delayed, eager, carry\n"
        "  inner_steps: 25                       # a round; 1 to 100000\n"
        "  outer_momentum: auto                  # of Nesterov's step; 0 to 0.999, or auto\n"
        "  patience: -1                          # rounds; -5 to 5\n"
        "  compression:\n"
        "    rank: 16                            # of a factor; 1 to 4096, or auto\n"
        "    error_feedback: true                # keep what was lost; true, false\n"
        "\n"
        "wan:\n"
        "  key: \"\"                               # file of the site's key; text of up to 23 "
        "bytes\n");
    test_config config = defaults(), changed = defaults();
    expect_round_trip(&config, yaml);
    /* a file that names every option brings every one of them back */
    load_into(&changed,
              "name: x\nrun: {seed: 3, dir: b}\ntrain: {tokens: 5, learning_rate: 1, batch: 2}\n"
              "sync: {overlap: none, inner_steps: 2, outer_momentum: 0, compression: {rank: 3, "
              "error_feedback: false}, patience: 0}\nwan: {key: z}\n");
    load_into(&changed, yaml);
    assert_string_equal(changed.wan.key, "");
    char *a = canonical_of(&config), *b = canonical_of(&changed);
    assert_string_equal(a, b);
    free(a);
    free(b);
    free(yaml);
}

static void test_yaml_of_values(void **state) {
    (void)state;
    static const char *const names[] = {
        "",      "null",        "~",   "-",     "- a",      "a: b", "a #b",
        "\"q\"", "back\\slash", "[x]", "{x}",   "*a",       "&a",   "!t",
        "%",     "true",        "1e3", " pad ", "'",        "a,b",  "\xC3\xA9\xE2\x82\xAC",
        "@x",    "?",           "|",   ">",     "a/b-c_d.e"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        test_config config = defaults();
        snprintf(config.name, sizeof config.name, "%s", names[i]);
        config.train.learning_rate = 0.1 + 1e-15 * (double)i; /* needs 17 digits */
        config.sync.outer_momentum = i % 2 == 0 ? DLX_AUTO : 1.0 / 3.0;
        config.sync.compression.rank = (int64_t)DLX_AUTO;
        config.run.seed = 999999999999999;
        char *yaml;
        assert_int_equal(dlxi_options_print_yaml(&yaml, &config, &test_table, NULL), DLX_OK);
        test_config back = defaults();
        load_into(&back, yaml);
        assert_string_equal(back.name, config.name);
        assert_true(back.train.learning_rate == config.train.learning_rate);
        assert_int_equal(back.run.seed, config.run.seed);
        expect_round_trip(&config, yaml);
        free(yaml);
    }
}

static void test_help(void **state) {
    (void)state;
    char *help;
    assert_int_equal(dlxi_options_print_help(&help, &test_table, NULL), DLX_OK);
    size_t lines = 0;
    for (const char *c = help; *c != '\0'; c++) lines += *c == '\n';
    assert_int_equal(lines, test_table.count);
    assert_non_null(strstr(help, "  sync.inner_steps=25                   a round; 1 to 100000\n"));
    assert_non_null(
        strstr(help, "  sync.compression.error_feedback=true  keep what was lost; true, false\n"));
    free(help);
}

/* ---- comparing two sites --------------------------------------------------------------------- */

static void test_canonical_text(void **state) {
    (void)state;
    test_config config = defaults();
    char *text = canonical_of(&config);
    assert_string_equal(
        text,
        "name: first run\nrun.seed: 1\ntrain.tokens: 1000000\ntrain.learning_rate: 0.002\n"
        "train.batch: 8\nsync.overlap: carry\nsync.inner_steps: 25\nsync.outer_momentum: auto\n"
        "sync.compression.rank: 16\nsync.compression.error_feedback: true\nsync.patience: -1\n");
    test_config spelled = defaults();
    load_into(&spelled, "train: {tokens: 1000000.0, learning_rate: 0.0020}\nrun: {dir: "
                        "elsewhere}\nwan: {key: mine}");
    char *same = canonical_of(&spelled);
    assert_string_equal(text, same); /* spelling and a site's own options do not show */
    free(same);
    free(text);
}

static void expect_difference(const char *ours, const char *theirs, const char *key,
                              const char *mine, const char *other) {
    dlxi_option_difference difference;
    assert_false(dlxi_options_canonical_equal(&difference, ours, strlen(ours), theirs,
                                              strlen(theirs), false));
    assert_string_equal(difference.key, key);
    assert_string_equal(difference.ours, mine);
    assert_string_equal(difference.theirs, other);
}

static void test_canonical_comparison(void **state) {
    (void)state;
    dlxi_option_difference difference;
    test_config config = defaults(), other = defaults();
    other.sync.inner_steps = 50;
    other.sync.patience = 2;
    char *ours = canonical_of(&config), *theirs = canonical_of(&other);
    assert_true(
        dlxi_options_canonical_equal(&difference, ours, strlen(ours), ours, strlen(ours), false));
    expect_difference(ours, theirs, "sync.inner_steps", "25", "50");
    free(ours);
    free(theirs);

    assert_true(dlxi_options_canonical_equal(&difference, "", 0, NULL, 0, false));
    assert_true(dlxi_options_canonical_equal(&difference, "a: 1\n", 5, "a: 1\nb: 2\n", 10, true));
    assert_true(dlxi_options_canonical_equal(&difference, "", 0, "b: 2\n", 5, true));
    assert_false(dlxi_options_canonical_equal(&difference, "b: 2\n", 5, "a: 1\nb: 2\n", 10, true));
    assert_false(dlxi_options_canonical_equal(&difference, "a: 1\nb: 2\n", 10, "a: 1\n", 5, true));
    expect_difference("a: 1\nb: 2\n", "a: 1\nb: 2\nc: 3\n", "c", "(absent)", "3");
    expect_difference("a: 1\nb: 2\n", "a: 1\n", "b", "2", "(absent)");
    expect_difference("a: 1\nb: 2\nc: 3\n", "a: 1\nc: 3\n", "b", "2", "(absent)");
    expect_difference("a: 1\nc: 3\n", "a: 1\nb: 2\nc: 3\n", "b", "(absent)", "2");
    expect_difference("a: 1\n", "a: \x1B[31m\n", "a", "1", "?[31m");
    expect_difference("", "no colon", "no colon", "(absent)", "");
    /* a value that begins like another is not equal to it */
    expect_difference("a: 1\n", "a: 12\n", "a", "1", "12");
}

static void test_canonical_differences(void **state) {
    (void)state;
    dlxi_option_difference d;
    const char *ours = "a: 1\nb: 2\nnew: 3\nc: x\033[2J\n", *theirs = "c: y\nb: 2\nold: 4\na: 9";
    assert_true(dlxi_options_canonical_next(&d, &ours, theirs));
    assert_string_equal(d.key, "a");
    assert_string_equal(d.ours, "1");
    assert_string_equal(d.theirs, "9");
    assert_true(dlxi_options_canonical_next(&d, &ours, theirs));
    assert_string_equal(d.key, "c");
    assert_null(strchr(d.ours, '\033'));
    assert_string_equal(d.theirs, "y");
    assert_false(dlxi_options_canonical_next(&d, &ours, theirs));
    ours = theirs;
    assert_false(dlxi_options_canonical_next(&d, &ours, theirs));
    assert_false(dlxi_options_canonical_next(&d, &ours, ""));
}

/* ---- fields of every kind and width ---------------------------------------------------------- */

typedef struct wide {
    int64_t wide;
    int narrow, bits;
    uint32_t count, ms, later_ms;
    double share;
    bool flag;
    const char *file, *more[3];
} wide;

static const char *const bit_words[] = {"4", "8", "none", NULL};
static const int bit_values[] = {4, 8, 32};

/* Sections in pieces: their options are printed together. */
static const dlxi_option wide_options[] = {
    DLXI_OPTION_ROW_INTEGER(wide, "a.wide", wide, 0, 1e15, "auto", "wide", .allow_auto = true),
    DLXI_OPTION_ROW_INTEGER(wide, "b.c.narrow", narrow, -3, 3, NULL, "narrow", .default_value = -2),
    DLXI_OPTION_ROW_CHOICE(wide, "a.bits", bits, bit_words, NULL, "bits", .default_value = 32,
                           .values = bit_values),
    DLXI_OPTION_ROW_INTEGER(wide, "b.count", count, 0, 3e9 - 1e9, NULL, "count",
                            .default_value = 7),
    {.key = "a.timeout_s",
     .field = "ms",
     .kind = DLXI_OPTION_SECONDS,
     .offset = offsetof(wide, ms),
     .size = sizeof(uint32_t),
     .is_unsigned = true,
     .min = 500,
     .max = 86400000,
     .default_value = 10000,
     .comment = "time"},
    DLXI_OPTION_ROW_REAL(wide, "b.c.share", share, 0, 1, NULL, "share", .allow_auto = true,
                         .default_value = DLX_AUTO),
    DLXI_OPTION_ROW_BOOLEAN(wide, "flag", flag, NULL, "flag", .default_value = true),
};
static const dlxi_option_table wide_table = {wide_options,
                                             sizeof wide_options / sizeof *wide_options};

static wide wide_defaults(void) {
    wide values;
    memset(&values, 0xA5, sizeof values);
    dlxi_options_set_defaults(&values, &wide_table);
    return values;
}

static void test_fields_of_every_width(void **state) {
    (void)state;
    wide values = wide_defaults();
    assert_true(values.wide == (int64_t)DLX_AUTO && values.narrow == -2 && values.bits == 32);
    assert_true(values.count == 7 && values.ms == 10000 && values.share == DLX_AUTO && values.flag);
    const char *yaml = "a: {wide: 1e15, bits: 8, timeout_s: 1.001}\nflag: false\n"
                       "b: {c: {narrow: -3, share: 0.25}, count: 2000000000}\n";
    assert_int_equal(dlxi_options_load_text(&values, &wide_table, "x", yaml, strlen(yaml), NULL),
                     DLX_OK);
    assert_true(values.wide == 1000000000000000 && values.narrow == -3 && values.bits == 8);
    assert_true(values.count == 2000000000 && values.ms == 1001 && values.share == 0.25);
    assert_false(values.flag);
    char *text;
    assert_int_equal(dlxi_options_print_canonical(&text, &values, &wide_table, NULL), DLX_OK);
    assert_string_equal(text, "a.wide: 1000000000000000\nb.c.narrow: -3\na.bits: 8\nb.count: "
                              "2000000000\na.timeout_s: 1.001\nb.c.share: 0.25\nflag: false\n");
    free(text);
    assert_int_equal(dlxi_options_print_yaml(&text, NULL, &wide_table, NULL), DLX_OK);
    assert_string_equal(text, "flag: true                              # flag; true, false\n"
                              "\n"
                              "a:\n"
                              "  wide: auto                            # wide; 0 to "
                              "1000000000000000, or auto\n"
                              "  bits: none                            # bits; 4, 8, none\n"
                              "  timeout_s: 10                         # time; 0.5 to 86400\n"
                              "\n"
                              "b:\n"
                              "  count: 7                              # count; 0 to 2000000000\n"
                              "  c:\n"
                              "    narrow: -2                          # narrow; -3 to 3\n"
                              "    share: auto                         # share; 0 to 1, or auto\n");
    wide again = values;
    assert_int_equal(dlxi_options_load_text(&again, &wide_table, "x", text, strlen(text), NULL),
                     DLX_OK);
    free(text);
    wide fresh = wide_defaults();
    assert_true(again.wide == fresh.wide && again.narrow == fresh.narrow &&
                again.bits == fresh.bits && again.count == fresh.count && again.ms == fresh.ms &&
                again.share == fresh.share && again.flag == fresh.flag);
}

static void test_values_of_a_caller(void **state) {
    (void)state;
    dlx_error error;
#define REFUSED_OF(by_key, expected, ...)                                                          \
    do {                                                                                           \
        wide values = wide_defaults();                                                             \
        assert_int_equal(dlxi_options_check(&values, &wide_table, by_key, NULL), DLX_OK);          \
        __VA_ARGS__;                                                                               \
        assert_int_equal(dlxi_options_check(&values, &wide_table, by_key, &error), DLX_CONFIG);    \
        assert_string_equal(error.message, expected);                                              \
    } while (0)
    REFUSED_OF(false, "narrow: -4 is out of range; allowed: -3 to 3", values.narrow = -4);
    REFUSED_OF(true, "b.c.narrow: 4 is out of range; allowed: -3 to 3", values.narrow = 4);
    REFUSED_OF(false, "count: 4294967295 is out of range; allowed: 0 to 2000000000",
               values.count = UINT32_MAX);
    REFUSED_OF(false, "bits: 5 is out of range; allowed: 4, 8, 32", values.bits = 5);
    REFUSED_OF(false, "bits: -1 is out of range; allowed: 4, 8, 32", values.bits = -1);
    REFUSED_OF(false, "bits: 33 is out of range; allowed: 4, 8, 32", values.bits = 33);
    REFUSED_OF(false, "ms: 499 is out of range; allowed: 500 to 86400000", values.ms = 499);
    REFUSED_OF(false, "share: nan is out of range; allowed: 0 to 1, or DLX_AUTO",
               values.share = (double)NAN);
    REFUSED_OF(false, "share: -0.5 is out of range; allowed: 0 to 1, or DLX_AUTO",
               values.share = -0.5);
    REFUSED_OF(false, "wide: -2 is out of range; allowed: 0 to 1e+15, or DLX_AUTO",
               values.wide = -2);
#undef REFUSED_OF
}

static void test_flags(void **state) {
    (void)state;
    static const dlxi_option options[] = {
        DLXI_OPTION_ROW_POINTER(wide, "--file", file, "FILE", "a file"),
        DLXI_OPTION_ROW_LIST(wide, "--more", more, "TEXT", "may be given often"),
    };
    static const dlxi_option_table table = {options, 2};
    wide values;
    dlx_error error;
    memset(&values, 0xA5, sizeof values);
    dlxi_options_set_defaults(&values, &table);
    assert_null(values.file);
    assert_null(values.more[0]);
    static const char text[] = "line\nline";
    assert_int_equal(dlxi_option_parse(&values, &options[0], "", text, sizeof text - 1, NULL),
                     DLX_OK);
    assert_ptr_equal(values.file, text);
    for (int i = 0; i < 2; i++)
        assert_int_equal(dlxi_option_parse(&values, &options[1], "", text + i, 1, NULL), DLX_OK);
    assert_ptr_equal(values.more[1], text + 1);
    assert_null(values.more[2]);
    assert_int_equal(dlxi_option_parse(&values, &options[1], "eval", text, 1, &error), DLX_CONFIG);
    assert_string_equal(error.message, "eval: --more: given more than 2 times");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_are_set),
        cmocka_unit_test(test_file_sets_what_it_names),
        cmocka_unit_test(test_files_without_keys_are_fine),
        cmocka_unit_test(test_bounds_are_allowed),
        cmocka_unit_test(test_values_are_refused),
        cmocka_unit_test(test_keys_are_refused),
        cmocka_unit_test(test_long_keys_are_cut),
        cmocka_unit_test(test_shapes_are_refused),
        cmocka_unit_test(test_files_are_refused),
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_text_is_utf8),
        cmocka_unit_test(test_yaml_of_defaults),
        cmocka_unit_test(test_yaml_of_values),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_canonical_text),
        cmocka_unit_test(test_canonical_comparison),
        cmocka_unit_test(test_canonical_differences),
        cmocka_unit_test(test_fields_of_every_width),
        cmocka_unit_test(test_values_of_a_caller),
        cmocka_unit_test(test_flags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
