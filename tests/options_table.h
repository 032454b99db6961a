/* SPDX-License-Identifier: Apache-2.0 */
/* A table of options in the shape of a run's config, for the tests of the options engine. */
#ifndef DLXI_TESTS_OPTIONS_TABLE_H
#define DLXI_TESTS_OPTIONS_TABLE_H

#include "options/options.h"

typedef enum test_overlap { TEST_NONE, TEST_DELAYED, TEST_EAGER, TEST_CARRY } test_overlap;

typedef struct test_config {
    char name[16];
    struct {
        int64_t seed;
        char dir[24];
    } run;
    struct {
        double tokens, learning_rate;
        int64_t batch;
    } train;
    struct {
        test_overlap overlap;
        int64_t inner_steps;
        double outer_momentum;
        struct {
            int64_t rank;
            bool error_feedback;
        } compression;
        int64_t patience;
    } sync;
    struct {
        char key[24];
    } wan;
} test_config;

static const char *const test_overlaps[] = {[TEST_NONE] = "none",
                                            [TEST_DELAYED] = "delayed",
                                            [TEST_EAGER] = "eager",
                                            [TEST_CARRY] = "carry",
                                            NULL};

static const dlxi_option test_options[] = {
    DLXI_OPTION_ROW_STRING(test_config, "name", name, "first run", "what the run is called"),
    DLXI_OPTION_ROW_INTEGER(test_config, "run.seed", run.seed, 0, 1e15, "1",
                            "of weights and data order"),
    DLXI_OPTION_ROW_STRING(test_config, "run.dir", run.dir, "runs/a", "where results go",
                           .site_may_differ = true),
    DLXI_OPTION_ROW_REAL(test_config, "train.tokens", train.tokens, 1, 1e15, "1.0e6",
                         "of the whole run"),
    DLXI_OPTION_ROW_REAL(test_config, "train.learning_rate", train.learning_rate, 1e-9, 10, "2e-3",
                         "of AdamW"),
    DLXI_OPTION_ROW_INTEGER(test_config, "train.batch", train.batch, 1, 4096, "8",
                            "windows a site and inner step"),
    DLXI_OPTION_ROW_CHOICE(test_config, "sync.overlap", sync.overlap, test_overlaps, "carry",
                           "while it travels"),
    DLXI_OPTION_ROW_INTEGER(test_config, "sync.inner_steps", sync.inner_steps, 1, 100000, "25",
                            "a round"),
    DLXI_OPTION_ROW_REAL(test_config, "sync.outer_momentum", sync.outer_momentum, 0, 0.999, "auto",
                         "of Nesterov's step", .allow_auto = true),
    DLXI_OPTION_ROW_INTEGER(test_config, "sync.compression.rank", sync.compression.rank, 1, 4096,
                            "16", "of a factor", .allow_auto = true),
    DLXI_OPTION_ROW_BOOLEAN(test_config, "sync.compression.error_feedback",
                            sync.compression.error_feedback, "true", "keep what was lost"),
    DLXI_OPTION_ROW_INTEGER(test_config, "sync.patience", sync.patience, -5, 5, "-1", "rounds"),
    DLXI_OPTION_ROW_STRING(test_config, "wan.key", wan.key, "", "file of the site's key",
                           .site_may_differ = true),
};

static const dlxi_option_table test_table = {test_options,
                                             sizeof test_options / sizeof *test_options};

#endif
