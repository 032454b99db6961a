/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments, messages, interrupts. */
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

volatile sig_atomic_t interrupted;

void interrupt(void) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_store_n(&interrupted, 1, __ATOMIC_RELAXED);
#else
    interrupted = 1;
#endif
}

bool is_interrupted(void) {
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_load_n(&interrupted, __ATOMIC_RELAXED);
#else
    return interrupted;
#endif
}

/* A launcher that signals every process of a rank, and its parent that passes its own on, are one
 * wish in two signals; and a launcher kills what does not end. */
static bool launcher_signals;

static void on_signal(int number) {
    if (is_interrupted() && !launcher_signals) _exit(128 + number);
    interrupt();
}

void catch_interrupts(bool by_launcher) {
    launcher_signals = by_launcher;
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    /* what mpirun passes on to its ranks without ending them soon after */
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int exit_code_of(const dlx_error *error) {
    return dlx_status_class_of(error->status) == DLX_CLASS_CALLER ? EXIT_USE : EXIT_FAILED;
}

int fail_with(const dlx_error *error) {
    /* no message: another rank of the job has it */
    if (error->message[0] != '\0') fprintf(stderr, "dilocox: %s\n", error->message);
    return exit_code_of(error);
}

int fail_use(const char *format, ...) {
    if (launched_rank() > 0) return EXIT_USE; /* the first of a job's ranks says it for all */
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "dilocox: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    return EXIT_USE;
}

static void print_use(const char *name, const option_spec *specs, size_t count) {
    for (size_t i = 0; commands[i].run != NULL; i++) {
        if (strcmp(commands[i].name, name) != 0) continue;
        printf("dilocox %s %s\n  %s\n\n", name, commands[i].use, commands[i].summary);
        break;
    }
    for (size_t i = 0; i < count; i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", specs[i].name,
                 specs[i].value_name != NULL ? specs[i].value_name : "");
        printf("  %-26s %s\n", left, specs[i].help);
    }
    printf("  %-26s %s\n", "--help", "this");
}

static const option_spec *find_option(const char *name, size_t length, const option_spec *specs,
                                      size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strlen(specs[i].name) == length && strncmp(specs[i].name, name, length) == 0)
            return &specs[i];
    return NULL;
}

static bool give(const option_spec *spec, const char *value) {
    if (spec->many == NULL) {
        *spec->text = value;
        return true;
    }
    int used = 0;
    while (spec->many[used] != NULL) used++;
    if (used == SETS_MAX) return false;
    spec->many[used] = value;
    spec->many[used + 1] = NULL;
    return true;
}

bool parse_arguments(int count, char **arguments, const option_spec *specs, size_t spec_count,
                     const char **positional, int least, int most, int *exit_code) {
    int found = 0;
    *exit_code = EXIT_USE;
    for (int i = 1; i < count; i++) {
        const char *argument = arguments[i];
        if (strcmp(argument, "--help") == 0) {
            print_use(arguments[0], specs, spec_count);
            *exit_code = EXIT_DONE;
            return true;
        }
        if (strncmp(argument, "--", 2) != 0) {
            if (found == most)
                return fail_use("%s: '%s' is one argument too many", arguments[0], argument), true;
            positional[found++] = argument;
            continue;
        }
        size_t length = strcspn(argument + 2, "=");
        const option_spec *spec = find_option(argument + 2, length, specs, spec_count);
        if (spec == NULL)
            return fail_use("%s: no option '%s'; 'dilocox %s --help' lists them", arguments[0],
                            argument, arguments[0]),
                   true;
        if (spec->flag != NULL) {
            *spec->flag = true;
            continue;
        }
        const char *value = argument[2 + length] == '=' ? argument + 3 + length
                            : i + 1 < count             ? arguments[++i]
                                                        : NULL;
        if (value == NULL)
            return fail_use("%s: --%s needs a value, %s", arguments[0], spec->name,
                            spec->value_name),
                   true;
        if (!give(spec, value))
            return fail_use("%s: --%s was given more than %d times", arguments[0], spec->name,
                            SETS_MAX),
                   true;
    }
    if (found < least)
        return fail_use("%s: an argument is missing; 'dilocox %s --help' shows the use",
                        arguments[0], arguments[0]),
               true;
    return false;
}

bool parse_number(const char *text, const char *name, long low, long high, long *out) {
    char *end;
    errno = 0;
    *out = strtol(text, &end, 10);
    if (errno == 0 && end != text && *end == '\0' && *out >= low && *out <= high) return true;
    fail_use("%s: '%s' is out of range; allowed: a whole number from %ld to %ld", name, text, low,
             high);
    return false;
}

bool parse_real(const char *text, const char *name, double low, double high, double *out) {
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    if (errno == 0 && end != text && *end == '\0' && *out >= low && *out <= high) return true;
    fail_use("%s: '%s' is out of range; allowed: %g to %g", name, text, low, high);
    return false;
}

dlx_status read_config(dlx_config **out, const char *path, const char *run_dir, const char **sets,
                       dlx_error *error) {
    dlx_status status = dlx_config_open(out, error);
    if (status == DLX_OK && path != NULL) status = dlx_config_load(*out, path, error);
    if (status == DLX_OK && run_dir != NULL) {
        char assignment[1024];
        snprintf(assignment, sizeof assignment, "run.dir=%s", run_dir);
        status = dlx_config_set(*out, assignment, error);
    }
    for (int i = 0; status == DLX_OK && sets != NULL && sets[i] != NULL; i++)
        status = dlx_config_set(*out, sets[i], error);
    if (status == DLX_OK) status = dlx_config_check(*out, error);
    if (status != DLX_OK) dlx_config_close(out);
    return status;
}

dlx_config *load_config(const char *path, const char *run_dir, const char **sets) {
    dlx_error error;
    dlx_config *config = NULL;
    if (read_config(&config, path, run_dir, sets, &error) != DLX_OK) fail_with(&error);
    return config;
}
