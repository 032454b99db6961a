/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands share. The command line uses the two public headers, and for its flags the
 * options engine with the limits of a run. */
#ifndef DILOCOX_CLI_H
#define DILOCOX_CLI_H

#include <dilocox_train.h>

#include "base/limits.h"
#include "options/options.h"

enum {
    EXIT_DONE = 0,
    EXIT_FAILED = 1,
    EXIT_USE = 2,
    LINE_BYTES = 256,
    SITE_BYTES = 32, /* of "site-64", "coordinator" */
    SETS_MAX = 128
};

/* ---- subcommands ----------------------------------------------------------------------------- */

/* One subcommand, in a file of its own. */
typedef struct command {
    const char *name, *use, *summary;
    const char *details; /* lines of help, indented by two; NULL: none */
    /* Keys that begin with "--" are flags; the others are positional, in order, and their first
     * `needed` must be given. */
    dlxi_option_table arguments;
    int needed;
    bool prints;      /* it fails if standard output does; a run goes on without it */
    void *values;     /* what the table sets */
    int (*run)(void); /* returns the exit code */
} command;

extern const command launch_command, train_command, coordinator_command, eval_command,
    generate_command, tokenize_command, config_command, inspect_command, keygen_command,
    plan_command, bench_command;

#define COMMAND_TABLE(rows)                                                                        \
    { (rows), sizeof(rows) / sizeof *(rows) }

#define CHECKPOINT_ROW(type)                                                                       \
    DLXI_OPTION_ROW_POINTER(type, "checkpoint", checkpoint, "CHECKPOINT",                          \
                            "a directory of weights: RUN_DIR/weights after a run")
#define THREADS_ROW(type, text)                                                                    \
    DLXI_OPTION_ROW_INTEGER(type, "--threads", threads, 1, DLXI_THREADS_MAX, "1", text,            \
                            .value_name = "N")
#define FOR_LAUNCHER_ROW(type)                                                                     \
    DLXI_OPTION_ROW_BOOLEAN(type, "--for-launcher", for_launcher, "false",                         \
                            "print progress and errors for dilocox launch to read")

/* Sets the command's values from arguments[1 … count). Prints help or an error; true: the program
 * ends with *exit_code. */
bool arguments_parse(const command *c, int count, char **arguments, int *exit_code);

/* What a subcommand with a run's config takes, as its member `config`. */
typedef struct config_arguments {
    const char *path, *run_dir, *sets[SETS_MAX + 1];
} config_arguments;

#define CONFIG_ROWS(type)                                                                          \
    DLXI_OPTION_ROW_POINTER(type, "config", config.path, "CONFIG",                                 \
                            "the run's options, YAML; 'dilocox config --defaults' writes them"),   \
        DLXI_OPTION_ROW_POINTER(type, "--run-dir", config.run_dir, "DIR",                          \
                                "instead of run.dir; an earlier run's results in it move to "      \
                                "DIR/previous-N"),                                                 \
        DLXI_OPTION_ROW_LIST(type, "--set", config.sets, "KEY=VALUE",                              \
                             "one option of the config; may be given often")

/* Defaults, then the file and run.dir (may be NULL), then sets, which end with NULL. On failure
 * *out is NULL. */
dlx_status config_read(dlx_config **out, const char *path, const char *run_dir,
                       const char *const *sets, dlx_error *error);
/* The same; prints what is wrong, NULL then. */
dlx_config *config_load(const config_arguments *from);

/* ---- standard streams ------------------------------------------------------------------------ */

/* At the start of the program: 0, 1 and 2 are open, though they may fail. */
bool streams_prepare(void);
/* Whether standard output can be written at all: not closed, not opened for reading. */
bool output_is_open(void);
/* At the end of the program: writes what waits, and returns its exit code. If output was lost,
 * says so; if it was `needed`, with `hint`, and the exit code is 1, or 141 if its reader closed
 * it. */
int output_end(int exit_code, bool needed, const char *hint);

/* ---- messages -------------------------------------------------------------------------------- */

/* Errors go to stderr as "dilocox: …". A child of `dilocox launch` prints on stdout instead, one
 * line each, for launch to read:
 *
 *   listening ENDPOINT    the coordinator's address
 *   begun                 all sites have joined: the results are the run's from now on
 *   step SITE TEXT        progress: replaces the site's line
 *   text SITE TEXT        stays on the terminal
 *   killed TEXT           a rank was ended by a signal
 *   failed STATUS TEXT    why this process ends: a dlx_status, and its message */
void speak_to_launcher(void);

/* The exit code that the error's class means. */
int exit_code_of(const dlx_error *error);
/* Both return the exit code. */
int fail_with(const dlx_error *error);
int fail_use(const char *format, ...);
void failure_say(dlx_status status, const char *format, ...);
void killed_say(const char *text);
/* A dlx_log, without a context. */
void warning_say(void *unused, const char *line);
/* A message that begins with this key begins with the flag that the value was given by instead. */
void error_name_flag(dlx_error *error, const char *key, const char *flag);
/* Whether what ends a run is the doing of a person or of another process. */
bool is_consequence(dlx_status status);

/* ---- ranks of an MPI job --------------------------------------------------------------------- */

/* This process's rank as its launcher says, before MPI starts; −1: no launcher. */
int launched_rank(void);
/* Continues in a child, and stays behind as its parent, which reports the signal that ended a rank
 * and passes on signals. Only the child returns. `config` and `site` may be NULL. */
void rank_watch(const dlx_config *config, const char *site);
/* As fail_with, for a rank: if all failed, one of them prints its error; if the others go on, this
 * one prints which rank it is and ends the job. `cluster` and `config` may be NULL. */
int rank_fail(dlx_cluster *cluster, const dlx_config *config, int job_sites, dlx_error *error);

/* ---- interrupts ------------------------------------------------------------------------------ */

/* Set by the first SIGINT, SIGTERM or SIGUSR1. Unless a launcher sends them (by_launcher), the
 * second ends the process at once. */
extern volatile sig_atomic_t interrupted;
void interrupt(void); /* sets it, from any thread or a handler */
bool is_interrupted(void);
void interrupts_catch(bool by_launcher);
/* From now on the first SIGTERM sets `released` instead: it ends this process and not the run. */
extern volatile sig_atomic_t released;
void release_on_sigterm(void);
/* In this thread and those that it starts; a child process inherits it. */
void interrupts_block(bool block);

/* ---- progress -------------------------------------------------------------------------------- */

/* "step 120/480  loss 2.310  41.2k tokens/s  round 5  rank 16.0  H 25  sent 1.2 MB  busy 97%  left
 * 1:05" */
void step_format(char line[LINE_BYTES], const dlx_event *event);
void bytes_format(char text[32], double bytes);
double now_s(void); /* of a clock that only runs forward */

/* One line per site, redrawn on a terminal; on a pipe, or if `plain`, a line per site every few
 * seconds. Any thread. */
typedef struct display display;
display *display_open(const char *const *names, int count, bool plain);
/* `line` replaces the site's line; text is printed above and stays. */
void display_step(display *d, int site, const char *line);
void display_text(display *d, const char *site, const char *text);
void display_close(display *d);

/* Prints text[bytes] of a model, which may be any bytes; `indent` follows each line's end. What a
 * terminal would not show as it is becomes '?': control characters but line ends, and what is not
 * UTF-8. A tab becomes a space. */
void text_print(const char *text, size_t bytes, const char *indent);

/* What launch gives its children to read. They are done with it once the run has begun. */
enum { LAUNCH_FILE_BYTES = 300 };
typedef struct launch_files {
    const char *names[DLXI_SITES_MAX + 1]; /* of the keys */
    int name_count;
    char directory[256]; /* "": none */
} launch_files;

/* Says what is wrong; remove in any case. */
bool launch_files_make(launch_files *f, const dlx_config *config, bool keys);
void launch_files_remove(launch_files *f);
void launch_files_config(char path[LAUNCH_FILE_BYTES], const launch_files *f);
void launch_files_roster(char path[LAUNCH_FILE_BYTES], const launch_files *f);
void launch_files_key(char path[LAUNCH_FILE_BYTES], const launch_files *f, const char *name);

/* The end of a run: RUN_DIR/summary.json in words, and a sample of what the model writes. */
int results_print(const dlx_config *config);
/* The end of an interrupted one. */
int interruption_print(const dlx_config *config, bool begun);

/* launch with wan.link: mem: sites are threads of this process. */
/* resume: NULL, or what dlx_train_options has for all sites; the same with take_unsent. */
int threads_launch(const dlx_config *config, int sites, const char *resume,
                   const char *take_unsent);

/* ---- launch_resume.c ---- */

/* *out ← for dlx_train_options.take_unsent: the snapshots in run_dir of sites that launch does not
 * start now, NULL for none; free with free(). False, with a message: no memory. */
bool launch_unsent(char **out, const char *run_dir, int sites);

#endif
