/* SPDX-License-Identifier: Apache-2.0 */
/* A subcommand's arguments and its help, from the table of its options; and the config file. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_flag(const dlxi_option *option) {
    return option->key[0] == '-';
}

/* "--sites N   how many sites (1 to 64; 2 unless given)" */
static void row_print(const dlxi_option *option) {
    char left[64], allowed[DLXI_OPTION_ALLOWED_BYTES];
    const char *value = option->value_name != NULL ? option->value_name : "";
    snprintf(left, sizeof left, "%s%s%s", is_flag(option) ? option->key : "",
             is_flag(option) && value[0] != '[' ? " " : "", value);
    printf("  %-26s %s", left, option->comment);
    dlxi_option_show_allowed(allowed, option);
    if (option->default_text != NULL && option->kind != DLXI_OPTION_BOOLEAN)
        printf(" (%s; %s unless given)", allowed, option->default_text);
    printf("\n");
}

static void use_print(const command *c) {
    printf("dilocox %s %s\n  %s\n\n", c->name, c->use, c->summary);
    if (c->details != NULL) printf("%s\n", c->details);
    for (size_t i = 0; i < c->arguments.count; i++) row_print(&c->arguments.options[i]);
    printf("  %-26s %s\n", "--help, -h", "this text");
    printf("  %-26s %s\n", "--", "ends the options: what follows may begin with -");
}

/* The positional argument of that number, or NULL. */
static const dlxi_option *positional_find(const command *c, int number) {
    for (size_t i = 0; i < c->arguments.count; i++)
        if (!is_flag(&c->arguments.options[i]) && number-- == 0) return &c->arguments.options[i];
    return NULL;
}

static bool value_set(const command *c, const dlxi_option *option, const char *value) {
    dlx_error error;
    if (dlxi_option_parse(c->values, option, c->name, value, strlen(value), &error) == DLX_OK)
        return true;
    fail_use("%s", error.message);
    return false;
}

/* Sets the flag arguments[*i], whose value may be the next one: *i moves to it. */
static bool flag_parse(const command *c, char **arguments, int *i) {
    const char *argument = arguments[*i], *value;
    size_t length = strcspn(argument, "=");
    const dlxi_option *option = dlxi_option_find(&c->arguments, argument, length);
    if (option == NULL)
        return fail_use("%s: no option '%s'; 'dilocox %s --help' lists them", c->name, argument,
                        c->name),
               false;
    if (argument[length] == '=')
        value = argument + length + 1;
    else if (option->kind == DLXI_OPTION_BOOLEAN)
        value = "true";
    else if (option->bare_text != NULL)
        value = option->bare_text;
    else
        value = arguments[++*i]; /* the last one is followed by NULL */
    if (value == NULL)
        return fail_use("%s: %s needs a value, %s", c->name, option->key, option->value_name),
               false;
    return value_set(c, option, value);
}

bool arguments_parse(const command *c, int count, char **arguments, int *exit_code) {
    int found = 0;
    bool flags_end = false;
    *exit_code = EXIT_USE;
    dlxi_options_set_defaults(c->values, &c->arguments);
    for (int i = 1; i < count; i++) {
        const char *argument = arguments[i];
        bool flag = !flags_end && argument[0] == '-' && argument[1] != '\0';
        if (flag && (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0)) {
            use_print(c);
            *exit_code = EXIT_DONE;
            return true;
        }
        if (flag && strcmp(argument, "--") == 0) {
            flags_end = true;
        } else if (flag) {
            if (!flag_parse(c, arguments, &i)) return true;
        } else {
            const dlxi_option *option = positional_find(c, found++);
            if (option == NULL)
                return fail_use("%s: '%s' is one argument too many", c->name, argument), true;
            if (!value_set(c, option, argument)) return true;
        }
    }
    if (found < c->needed)
        return fail_use("%s: an argument is missing; 'dilocox %s --help' shows the use", c->name,
                        c->name),
               true;
    return false;
}

/* ---- configs --------------------------------------------------------------------------------- */

static dlx_status out_of_memory(dlx_config **config, dlx_error *error) {
    dlx_config_close(config);
    *error = (dlx_error){.status = DLX_MEMORY, .round = -1, .message = "out of memory"};
    return DLX_MEMORY;
}

dlx_status config_read(dlx_config **out, const char *path, const char *run_dir,
                       const char *const *sets, dlx_error *error) {
    dlx_status status = dlx_config_open(out, error);
    if (status == DLX_OK && path != NULL) status = dlx_config_load(*out, path, error);
    if (status == DLX_OK && run_dir != NULL) {
        static const char key[] = "run.dir=";
        char *assignment = malloc(sizeof key + strlen(run_dir));
        if (assignment == NULL) return out_of_memory(out, error);
        memcpy(assignment, key, sizeof key);
        strcat(assignment, run_dir);
        status = dlx_config_set(*out, assignment, error);
        free(assignment);
    }
    for (int i = 0; status == DLX_OK && sets[i] != NULL; i++)
        status = dlx_config_set(*out, sets[i], error);
    if (status == DLX_OK) status = dlx_config_check(*out, error);
    if (status != DLX_OK) dlx_config_close(out);
    return status;
}

dlx_config *config_load(const config_arguments *from) {
    dlx_error error;
    dlx_config *config = NULL;
    if (config_read(&config, from->path, from->run_dir, from->sets, &error) != DLX_OK)
        fail_with(&error);
    return config;
}
