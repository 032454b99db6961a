/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox: one subcommand per file. */
#include "cli.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>

static const command *const commands[] = {&launch_command, &train_command,    &coordinator_command,
                                          &eval_command,   &generate_command, &tokenize_command,
                                          &config_command, &keygen_command,   &bench_command};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void help_print(FILE *to) {
    fprintf(
        to,
        "dilocox trains large neural networks across sites that are joined by slow networks.\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(to, "  dilocox %-11s %-44s %s\n", commands[i]->name, commands[i]->use,
                commands[i]->summary);
    fprintf(to, "  dilocox %-56s %s\n\n", "--version", "the version of this program");
    fprintf(to, "'dilocox SUBCOMMAND --help' says more. Exit codes: 0 done, 1 the run failed, 2 "
                "wrong use or config.\n");
}

int main(int count, char **arguments) {
    int exit_code;
    setlocale(LC_CTYPE, "");
    if (count < 2) {
        help_print(stderr);
        return EXIT_USE;
    }
    if (strcmp(arguments[1], "--help") == 0 || strcmp(arguments[1], "help") == 0) {
        help_print(stdout);
        return EXIT_DONE;
    }
    if (strcmp(arguments[1], "--version") == 0) {
        printf("dilocox %s\n", dlx_version());
        return EXIT_DONE;
    }
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(arguments[1], commands[i]->name) == 0)
            return arguments_parse(commands[i], count - 1, arguments + 1, &exit_code)
                       ? exit_code
                       : commands[i]->run();
    return fail_use("'%s' is no subcommand; 'dilocox --help' lists them", arguments[1]);
}
