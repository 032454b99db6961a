/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox: one subcommand a file. */
#include "cli.h"

#include <locale.h>
#include <stdio.h>
#include <string.h>

const command commands[] = {
    {"launch", launch_main, "CONFIG --sites N [--stages S] [--replicas R]",
     "a whole run on this machine: N sites and a coordinator"},
    {"train", train_main, "CONFIG --site NAME --coordinator HOST:PORT",
     "one site of a run; under mpirun, one rank of it"},
    {"coordinator", coordinator_main, "CONFIG --sites N",
     "rendezvous, leases and commits of a run"},
    {"eval", eval_main, "CHECKPOINT --data FILE", "validation loss of saved weights"},
    {"generate", generate_main, "CHECKPOINT --prompt TEXT", "text from saved weights"},
    {"tokenize", tokenize_main, "IN OUT", "a text to token files"},
    {"config", config_main, "[CONFIG] --defaults", "every option, its default and its range"},
    {"keygen", keygen_main, "PATH", "a site's key pair"},
    {"bench", bench_main, "model | codec | stages [CONFIG]", "how fast this machine is at it"},
    {NULL, NULL, NULL, NULL},
};

static void print_help(FILE *to) {
    fprintf(
        to,
        "dilocox trains large neural networks across sites that are joined by slow networks.\n\n");
    for (size_t i = 0; commands[i].run != NULL; i++)
        fprintf(to, "  dilocox %-11s %-44s %s\n", commands[i].name, commands[i].use,
                commands[i].summary);
    fprintf(to, "\n'dilocox SUBCOMMAND --help' says more. Exit codes: 0 done, 1 the run failed, 2 "
                "wrong use or config.\n");
}

int main(int count, char **arguments) {
    setlocale(LC_CTYPE, "");
    if (count < 2) {
        print_help(stderr);
        return EXIT_USE;
    }
    if (strcmp(arguments[1], "--help") == 0 || strcmp(arguments[1], "help") == 0) {
        print_help(stdout);
        return EXIT_DONE;
    }
    if (strcmp(arguments[1], "--version") == 0) {
        printf("dilocox %s\n", dlx_version());
        return EXIT_DONE;
    }
    for (size_t i = 0; commands[i].run != NULL; i++)
        if (strcmp(arguments[1], commands[i].name) == 0)
            return commands[i].run(count - 1, arguments + 1);
    return fail_use("'%s' is no subcommand; 'dilocox --help' lists them", arguments[1]);
}
