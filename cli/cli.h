/* SPDX-License-Identifier: Apache-2.0 */
/* What the subcommands share. The command line uses the two public headers only. */
#ifndef DILOCOX_CLI_H
#define DILOCOX_CLI_H

#include <dilocox_train.h>

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USE = 2, LINE_BYTES = 256, SITES_MAX = 64 };

typedef struct command {
    const char *name;
    /* arguments[0] is the subcommand's name; returns the exit code */
    int (*run)(int count, char **arguments);
    const char *use, *summary;
} command;

extern const command commands[];

int launch_main(int count, char **arguments);
int train_main(int count, char **arguments);
int coordinator_main(int count, char **arguments);
int eval_main(int count, char **arguments);
int generate_main(int count, char **arguments);
int tokenize_main(int count, char **arguments);
int config_main(int count, char **arguments);
int keygen_main(int count, char **arguments);
int bench_main(int count, char **arguments);

/* ---- arguments ------------------------------------------------------------------------------- */

/* One option of a subcommand: --name VALUE, or --name where flag is set. Given values land in the
 * pointers. */
typedef struct option_spec {
    const char *name, *value_name, *help;
    const char **text;
    bool *flag;
    const char **many; /* --set: up to SETS_MAX, ended by NULL */
} option_spec;

enum { SETS_MAX = 128 };

/* Sorts `arguments` into options and at most `most` positional ones. Prints help or an error
 * itself: true where the subcommand is to return *exit_code. */
bool parse_arguments(int count, char **arguments, const option_spec *specs, size_t spec_count,
                     const char **positional, int least, int most, int *exit_code);
/* A whole number in [low, high]; says what is wrong. */
bool parse_number(const char *text, const char *name, long low, long high, long *out);
bool parse_real(const char *text, const char *name, double low, double high, double *out);

/* Defaults, then the file (may be NULL), then --run-dir, then --set. On failure *out is NULL. */
dlx_status read_config(dlx_config **out, const char *path, const char *run_dir, const char **sets,
                       dlx_error *error);
/* The same; prints what is wrong, NULL then. */
dlx_config *load_config(const char *path, const char *run_dir, const char **sets);

/* ---- messages -------------------------------------------------------------------------------- */

/* The exit code that the error's class means. */
int exit_code_of(const dlx_error *error);
/* "dilocox: …" on stderr. Returns the exit code. */
int fail_with(const dlx_error *error);
int fail_use(const char *format, ...);

/* ---- ranks of an MPI job --------------------------------------------------------------------- */

/* This process's rank as its launcher says, before MPI starts; −1: no launcher. */
int launched_rank(void);
/* Goes on in a child, and stays behind as its parent: who tells by which signal a rank ended, and
 * passes on signals. Only the child returns. `site` may be NULL. */
void watch_rank(const char *path, const char **sets, const char *site);
/* As fail_with, for a rank: where all failed, one of them speaks; where the others go on, says who
 * this is and ends the job. `cluster` and `config` may be NULL. */
int fail_rank(dlx_cluster *cluster, const dlx_config *config, long job_sites, dlx_error *error);

/* ---- interrupts ------------------------------------------------------------------------------ */

/* Set by the first SIGINT, SIGTERM or SIGUSR1. Where no launcher sends them (by_launcher), the
 * second ends the process at once. */
extern volatile sig_atomic_t interrupted;
void interrupt(void); /* sets it, from any thread or a handler */
bool is_interrupted(void);
void catch_interrupts(bool by_launcher);

/* ---- progress -------------------------------------------------------------------------------- */

/* "step 120/480  loss 2.310  41.2k tokens/s  round 5  H 25  rank 16.0  sent 1.2 MB  busy 97%  left
 * 1:05" */
void format_step(char line[LINE_BYTES], const dlx_event *event);
void format_bytes(char text[32], double bytes);

/* One line a site, redrawn on a terminal; on a pipe, or if `plain`, a line a site every few
 * seconds. Any thread. */
typedef struct display display;
display *display_open(const char *const *names, int count, bool plain);
/* `key` and `line` of step events replace the site's line; other text is printed above and stays.
 */
void display_step(display *d, int site, const char *line);
void display_text(display *d, const char *site, const char *text);
void display_close(display *d);

/* The end of a run: RUN_DIR/summary.json in words, and a sample of what the model writes. */
int print_results(const dlx_config *config);

/* launch with wan.link: mem: sites are threads of this process. */
int launch_threads(const dlx_config *config, int sites);

#endif
