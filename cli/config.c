/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox config: every option of a run, as a file or as a list. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct shown_arguments {
    config_arguments config;
    bool defaults, options;
} shown_arguments;

static shown_arguments given;

static const dlxi_option rows[] = {
    CONFIG_ROWS(shown_arguments),
    DLXI_OPTION_ROW_BOOLEAN(shown_arguments, "--defaults", defaults, "false",
                            "a config file with every option at its default"),
    DLXI_OPTION_ROW_BOOLEAN(shown_arguments, "--options", options, "false",
                            "one line per option: default, meaning, range"),
};

/* Of the waits in a run only these are options; the others follow. */
static const char derived[] =
    "\n"
    "What follows from wan.timeout_s (T):\n"
    "  a site without a connection to the coordinator is away after 1 s, a silent one after T, "
    "one\n"
    "  that receives nothing after 2 T; it may come back\n"
    "  an attempt in which nothing moves is aborted after T, or 2 T if the way still carries "
    "pings\n"
    "  sites that are ready wait T / 2 for the others, or half of what they have to spare, if that "
    "is\n  longer\n"
    "  a silent connection is made anew after T / 2\n"
    "What doesn't:\n"
    "  a pair of sites that failed is tried in a round again after 10 s of working, after a "
    "second\n"
    "  failure within the hour after 20 s, and so on up to 600 s\n"
    "  a site that is away keeps its windows for 600 s\n"
    "  a coordinator that is started again waits 3 s for its sites before it begins a round\n";

static int run(void) {
    dlx_error error;
    char *text;
    dlx_status status;
    if (given.options) {
        status = dlx_config_help(&text, &error);
    } else {
        dlx_config *config = NULL;
        if (given.defaults && given.config.path != NULL)
            return fail_use("config: --defaults takes no file");
        if (!given.defaults && (config = config_load(&given.config)) == NULL) return EXIT_USE;
        status = dlx_config_print(&text, config, &error);
        dlx_config_close(&config);
    }
    if (status != DLX_OK) return fail_with(&error);
    fputs(text, stdout);
    if (given.options) fputs(derived, stdout);
    free(text);
    return EXIT_DONE;
}

const command config_command = {
    .name = "config",
    .use = "[CONFIG] --defaults",
    .summary = "every option, its default and its range",
    .arguments = COMMAND_TABLE(rows),
    .needed = 0,
    .prints = true,
    .values = &given,
    .run = run,
};
