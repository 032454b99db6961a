/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox eval: the loss of saved weights over a token file. */
#include "cli.h"

#include <math.h>
#include <stdio.h>

typedef struct eval_arguments {
    const char *checkpoint, *data;
    double tokens;
    int threads;
} eval_arguments;

static eval_arguments given;

static const dlxi_option rows[] = {
    CHECKPOINT_ROW(eval_arguments),
    DLXI_OPTION_ROW_POINTER(eval_arguments, "--data", data, "FILE",
                            "a token file, as dilocox tokenize makes them; needed"),
    DLXI_OPTION_ROW_REAL(eval_arguments, "--tokens", tokens, 0, 1e15, "0",
                         "use at most this many of it; 0: all", .value_name = "N"),
    THREADS_ROW(eval_arguments, "of the computation"),
};

static int run(void) {
    double loss;
    uint64_t used;
    dlx_error error;
    if (given.data == NULL)
        return fail_use(
            "eval: --data FILE is needed: a token file, as dilocox tokenize makes them");
    const dlx_evaluate_options options = {.size = sizeof options,
                                          .tokens = (uint64_t)given.tokens,
                                          .threads = given.threads,
                                          .log = warning_say};
    if (dlx_evaluate(&loss, &used, given.checkpoint, given.data, &options, &error) != DLX_OK)
        return fail_with(&error);
    printf("loss %.4f nats per token (perplexity %.2f) over %llu tokens\n", loss, exp(loss),
           (unsigned long long)used);
    return EXIT_DONE;
}

const command eval_command = {
    .name = "eval",
    .use = "CHECKPOINT --data FILE",
    .summary = "validation loss of saved weights",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .prints = true,
    .values = &given,
    .run = run,
};
