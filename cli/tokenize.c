/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox tokenize: a text file to token files. */
#include "cli.h"

#include <stdio.h>

typedef struct tokenize_arguments {
    const char *in, *out;
    uint32_t validation_every, block_bytes;
} tokenize_arguments;

static tokenize_arguments given;

static const dlxi_option rows[] = {
    DLXI_OPTION_ROW_POINTER(tokenize_arguments, "in", in, "IN", "a text file; -: standard input"),
    DLXI_OPTION_ROW_POINTER(tokenize_arguments, "out", out, "OUT", "the token file to write"),
    DLXI_OPTION_ROW_INTEGER(tokenize_arguments, "--validation-every", validation_every, 0, 1e6, "0",
                            "write OUT.train.tokens and, of every K-th block, "
                            "OUT.validation.tokens; 0: OUT alone",
                            .value_name = "K"),
    DLXI_OPTION_ROW_INTEGER(tokenize_arguments, "--block", block_bytes, 1, 1 << 30, "65536",
                            "of text", .value_name = "BYTES"),
};

static int run(void) {
    uint64_t train, validation;
    dlx_error error;
    if (dlx_tokenize(given.out, given.in, given.validation_every, given.block_bytes, &train,
                     &validation, &error) != DLX_OK)
        return fail_with(&error);
    if (given.validation_every == 0)
        printf("%s: %llu tokens\n", given.out, (unsigned long long)train);
    else
        printf("%s.train.tokens: %llu tokens\n%s.validation.tokens: %llu tokens\n", given.out,
               (unsigned long long)train, given.out, (unsigned long long)validation);
    return EXIT_DONE;
}

const command tokenize_command = {
    .name = "tokenize",
    .use = "IN OUT",
    .summary = "a text file to token files",
    .arguments = COMMAND_TABLE(rows),
    .needed = 2,
    .values = &given,
    .run = run,
};
