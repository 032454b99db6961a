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
