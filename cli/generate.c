/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox generate: text from saved weights, as it is unless a terminal shows it. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct generate_arguments {
    const char *checkpoint, *prompt;
    uint32_t tokens, top_k;
    double temperature;
    int64_t seed;
    int threads;
} generate_arguments;

static generate_arguments given;

static const dlxi_option rows[] = {
    CHECKPOINT_ROW(generate_arguments),
    DLXI_OPTION_ROW_POINTER(generate_arguments, "--prompt", prompt, "TEXT",
                            "what comes first; a new line unless given"),
    DLXI_OPTION_ROW_INTEGER(generate_arguments, "--tokens", tokens, 1, 1e6, "200",
                            "how many to write", .value_name = "N"),
    DLXI_OPTION_ROW_REAL(generate_arguments, "--temperature", temperature, 0, 100, "0.8",
                         "0: always the likeliest", .value_name = "X"),
    DLXI_OPTION_ROW_INTEGER(generate_arguments, "--top-k", top_k, 0, 1e6, "40",
                            "draw among this many; 0: all", .value_name = "N"),
    DLXI_OPTION_ROW_INTEGER(generate_arguments, "--seed", seed, 0, 1e15, "1", "of the draw",
                            .value_name = "N"),
    THREADS_ROW(generate_arguments, "of the computation"),
};

static int run(void) {
    const dlx_generate_options options = {
        .size = sizeof options,
        .prompt = given.prompt,
        .tokens = given.tokens,
        .temperature = given.temperature,
        .top_k = given.top_k,
        .seed = (uint64_t)given.seed,
        .threads = given.threads,
        .log = warning_say,
    };
    dlx_error error;
    char *text;
    size_t bytes;
    if (dlx_generate(&text, &bytes, given.checkpoint, &options, &error) != DLX_OK)
        return fail_with(&error);
    if (isatty(STDOUT_FILENO) == 1)
        text_print(text, bytes, "");
    else
        fwrite(text, 1, bytes, stdout);
    putchar('\n');
    free(text);
    return EXIT_DONE;
}

const command generate_command = {
    .name = "generate",
    .use = "CHECKPOINT --prompt TEXT",
    .summary = "text from saved weights",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .prints = true,
    .values = &given,
    .run = run,
};
