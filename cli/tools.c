/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox eval, generate, tokenize, config, keygen. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <math.h>

int eval_main(int count, char **arguments) {
    const char *checkpoint, *data = NULL, *tokens_text = "0", *threads_text = "1";
    int exit_code;
    long threads;
    double tokens, loss;
    uint64_t used;
    const option_spec specs[] = {
        {"data", "FILE", "a token file", &data, NULL, NULL},
        {"tokens", "N", "use at most so many of it; all unless given", &tokens_text, NULL, NULL},
        {"threads", "N", "1 unless given", &threads_text, NULL, NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &checkpoint, 1, 1,
                        &exit_code))
        return exit_code;
    if (data == NULL)
        return fail_use(
            "eval: --data FILE is needed: a token file, as dilocox tokenize makes them");
    if (!parse_real(tokens_text, "--tokens", 0, 1e15, &tokens) ||
        !parse_number(threads_text, "--threads", 1, 1024, &threads))
        return EXIT_USE;
    dlx_error error;
    if (dlx_evaluate(&loss, &used, checkpoint, data, (uint64_t)tokens, (int)threads, &error) !=
        DLX_OK)
        return fail_with(&error);
    printf("loss %.4f nats a token (perplexity %.2f) over %llu tokens\n", loss, exp(loss),
           (unsigned long long)used);
    return EXIT_DONE;
}

int generate_main(int count, char **arguments) {
    const char *checkpoint, *prompt = "", *tokens_text = "200", *temperature_text = "0.8",
                            *top_k_text = "40", *seed_text = "1", *threads_text = "1";
    int exit_code;
    long tokens, top_k, seed, threads;
    double temperature;
    const option_spec specs[] = {
        {"prompt", "TEXT", "what comes first; a new line unless given", &prompt, NULL, NULL},
        {"tokens", "N", "how many to write; 200 unless given", &tokens_text, NULL, NULL},
        {"temperature", "X", "0: always the likeliest; 0.8 unless given", &temperature_text, NULL,
         NULL},
        {"top-k", "N", "draw among so many; 0: all; 40 unless given", &top_k_text, NULL, NULL},
        {"seed", "N", "1 unless given", &seed_text, NULL, NULL},
        {"threads", "N", "1 unless given", &threads_text, NULL, NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &checkpoint, 1, 1,
                        &exit_code))
        return exit_code;
    if (!parse_number(tokens_text, "--tokens", 1, 1000000, &tokens) ||
        !parse_number(top_k_text, "--top-k", 0, 1000000, &top_k) ||
        !parse_number(seed_text, "--seed", 0, INT32_MAX, &seed) ||
        !parse_number(threads_text, "--threads", 1, 1024, &threads) ||
        !parse_real(temperature_text, "--temperature", 0, 100, &temperature))
        return EXIT_USE;
    const dlx_generate_options options = {.size = sizeof options,
                                          .prompt = prompt,
                                          .tokens = (uint32_t)tokens,
                                          .temperature = temperature,
                                          .top_k = (uint32_t)top_k,
                                          .seed = (uint64_t)seed,
                                          .threads = (int)threads};
    dlx_error error;
    char *text;
    if (dlx_generate(&text, checkpoint, &options, &error) != DLX_OK) return fail_with(&error);
    printf("%s\n", text);
    free(text);
    return EXIT_DONE;
}

int tokenize_main(int count, char **arguments) {
    const char *paths[2], *every_text = "0", *block_text = "65536";
    int exit_code;
    long every, block;
    uint64_t train, validation;
    const option_spec specs[] = {
        {"validation-every", "K",
         "OUT.train.tokens and, of every K-th block, OUT.validation.tokens", &every_text, NULL,
         NULL},
        {"block", "BYTES", "of text; 65536 unless given", &block_text, NULL, NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, paths, 2, 2,
                        &exit_code))
        return exit_code;
    if (!parse_number(every_text, "--validation-every", 0, 1000000, &every) ||
        !parse_number(block_text, "--block", 1, 1 << 30, &block))
        return EXIT_USE;
    dlx_error error;
    if (dlx_tokenize(paths[1], paths[0], (uint32_t)every, (uint32_t)block, &train, &validation,
                     &error) != DLX_OK)
        return fail_with(&error);
    if (every == 0)
        printf("%s: %llu tokens\n", paths[1], (unsigned long long)train);
    else
        printf("%s.train.tokens: %llu tokens\n%s.validation.tokens: %llu tokens\n", paths[1],
               (unsigned long long)train, paths[1], (unsigned long long)validation);
    return EXIT_DONE;
}

int config_main(int count, char **arguments) {
    const char *path = NULL, *sets[SETS_MAX + 1] = {NULL};
    bool defaults = false, options = false;
    int exit_code;
    const option_spec specs[] = {
        {"defaults", NULL, "a config file with every option at its default", NULL, &defaults, NULL},
        {"options", NULL, "a line an option: default, range, meaning", NULL, &options, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, sets},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &path, 0, 1,
                        &exit_code))
        return exit_code;
    dlx_error error;
    char *text;
    dlx_status status;
    if (options) {
        status = dlx_config_help(&text, &error);
    } else {
        dlx_config *config = NULL;
        if (defaults && path != NULL) return fail_use("config: --defaults takes no file");
        if (!defaults && (config = load_config(path, NULL, sets)) == NULL) return EXIT_USE;
        status = dlx_config_print(&text, config, &error);
        dlx_config_close(&config);
    }
    if (status != DLX_OK) return fail_with(&error);
    fputs(text, stdout);
    free(text);
    return EXIT_DONE;
}

int keygen_main(int count, char **arguments) {
    const char *path;
    char public_text[41];
    int exit_code;
    if (parse_arguments(count, arguments, NULL, 0, &path, 1, 1, &exit_code)) return exit_code;
    dlx_error error;
    if (dlx_key_generate(path, public_text, &error) != DLX_OK) return fail_with(&error);
    printf("%s\n", public_text);
    fprintf(stderr,
            "%s holds the secret key: it stays on this machine. The line above is the public key: "
            "put 'NAME KEY' on the "
            "roster of every site.\n",
            path);
    return EXIT_DONE;
}
