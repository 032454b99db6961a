/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox inspect: what is in a snapshot, and whether it is whole. */
#include "cli.h"

#include <stdio.h>
#include <string.h>

typedef struct inspect_arguments {
    const char *path;
} inspect_arguments;

static inspect_arguments given;

static const dlxi_option rows[] = {
    DLXI_OPTION_ROW_POINTER(inspect_arguments, "snapshot", path, "SNAPSHOT",
                            "a snapshot, step-*, or the directory of a site's snapshots"),
};

/* Names in a file may be any text. */
static void on_line(void *unused, const char *line) {
    (void)unused;
    text_print(line, strlen(line), "");
    putchar('\n');
}

static int run(void) {
    dlx_error error;
    if (dlx_inspect(given.path, on_line, NULL, &error) == DLX_OK) return EXIT_DONE;
    fflush(stdout);
    return fail_with(&error);
}

const command inspect_command = {
    .name = "inspect",
    .use = "SNAPSHOT",
    .summary = "what is in a snapshot, and whether it is whole",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .prints = true,
    .values = &given,
    .run = run,
};
