/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox keygen: a site's key pair. */
#include "cli.h"

#include <stdio.h>

typedef struct keygen_arguments {
    const char *path;
} keygen_arguments;

static keygen_arguments given;

static const dlxi_option rows[] = {
    DLXI_OPTION_ROW_POINTER(keygen_arguments, "path", path, "PATH",
                            "the file to write, never overwritten; it holds the secret key"),
};

static int run(void) {
    char public_text[DLXI_KEY_TEXT_BYTES];
    dlx_error error;
    if (dlx_key_generate(given.path, public_text, &error) != DLX_OK) return fail_with(&error);
    printf("%s\n", public_text);
    char hint[1200];
    snprintf(hint, sizeof hint, "; '%.1000s' is made, and its line 'public:' has the public key",
             given.path);
    int exit_code = output_end(EXIT_DONE, true, hint);
    if (exit_code != EXIT_DONE) return exit_code;
    fprintf(stderr,
            "%s holds the secret key: it stays on this machine. The line above is the public key: "
            "put 'NAME KEY' on the roster of every site.\n",
            given.path);
    return EXIT_DONE;
}

const command keygen_command = {
    .name = "keygen",
    .use = "PATH",
    .summary = "a site's key pair",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .prints = true,
    .values = &given,
    .run = run,
};
