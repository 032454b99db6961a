/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox: one subcommand per file. */
#include "cli.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static const command *const commands[] = {&launch_command, &train_command,    &coordinator_command,
                                          &eval_command,   &generate_command, &tokenize_command,
                                          &config_command, &inspect_command,  &keygen_command,
                                          &plan_command,   &bench_command};
enum { COMMANDS = sizeof commands / sizeof *commands };

static void help_print(FILE *to) {
    fprintf(
        to,
        "dilocox trains large neural networks across sites that are joined by slow networks.\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(to, "  dilocox %-11s %-44s %s\n", commands[i]->name, commands[i]->use,
                commands[i]->summary);
    fprintf(to, "  dilocox %-56s %s\n\n", "--version", "the version of this program");
    fprintf(to, "'dilocox SUBCOMMAND --help' says more. Exit codes: 0 done, 1 the run failed "
                "or output was lost, 2 wrong use or config.\n");
}

/* An option of the program itself; −1: it is none. */
static int help_or_version(const char *word) {
    if (strcmp(word, "--version") == 0)
        printf("dilocox %s\n", dlx_version());
    else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0)
        help_print(stdout);
    else
        return -1;
    return output_end(EXIT_DONE, true, "");
}

static int command_run(const command *c, int count, char **arguments) {
    int exit_code;
    if (arguments_parse(c, count, arguments, &exit_code)) return output_end(exit_code, true, "");
    if (c->prints && !output_is_open()) {
        failure_say(DLX_SYSTEM, "%s: standard output is closed, and the result goes there",
                    c->name);
        return EXIT_FAILED;
    }
    if (!c->prints) signal(SIGPIPE, SIG_IGN); /* a run does not need its output */
    exit_code = c->run();
    return output_end(exit_code, c->prints, "");
}

int main(int count, char **arguments) {
    if (!streams_prepare()) return EXIT_FAILED;
    setlocale(LC_CTYPE, "");
    if (count < 2) {
        help_print(stderr);
        return EXIT_USE;
    }
    int exit_code = help_or_version(arguments[1]);
    if (exit_code >= 0) return exit_code;
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(arguments[1], commands[i]->name) == 0)
            return command_run(commands[i], count - 1, arguments + 1);
    return fail_use("'%s' is no subcommand; 'dilocox --help' lists them", arguments[1]);
}
