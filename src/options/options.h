/* SPDX-License-Identifier: Apache-2.0 */
/* Options: one table of keys drives the config file, --set, the printed defaults, the help, and the
 * comparison of two sites' settings. The table's author writes rows with the macros below over a
 * struct of plain fields; nothing here knows what an option means.
 *
 *   kind      field        text
 *   integer   int64_t      12, -3, 1.0e6 (whole after the exponent)
 *   real      double       0.1, 2e-3; never nan or inf
 *   boolean   bool         true or false
 *   string    char[n]      up to n-1 bytes of UTF-8 without control characters
 *   choice    int or enum  one of the words in a list ended by NULL; the field holds its index
 *
 * A number whose row sets `allow_auto` also takes the word `auto`, kept as DLXI_OPTION_AUTO (a NaN:
 * test it with dlxi_option_is_auto) or DLXI_OPTION_AUTO_INTEGER.
 *
 * Numbers are read and printed with the C library: the calling program leaves LC_NUMERIC at "C".
 * All functions may be called from any thread; texts handed out are the caller's, free with free().
 */
#ifndef DLXI_OPTIONS_H
#define DLXI_OPTIONS_H

#include "base/error.h"

#include <math.h>

#define DLXI_OPTION_AUTO          ((double)NAN)
#define DLXI_OPTION_AUTO_INTEGER  INT64_MIN
#define dlxi_option_is_auto(real) isnan(real)

typedef enum dlxi_option_kind {
    DLXI_OPTION_INTEGER,
    DLXI_OPTION_REAL,
    DLXI_OPTION_BOOLEAN,
    DLXI_OPTION_STRING,
    DLXI_OPTION_CHOICE
} dlxi_option_kind;

typedef struct dlxi_option {
    const char *key; /* "sync.inner_steps"; options of one section stand together in the table */
    dlxi_option_kind kind;
    size_t offset, size; /* of the field in the caller's struct, bytes */
    /* integer and real: both allowed; whole and below 2^53 for integers */
    double min, max;
    const char *const *choices; /* choice: ended by NULL */
    const char *default_text;   /* as a user would write it */
    const char *comment;        /* one line, no final dot */
    bool allow_auto;            /* integer and real */
    bool site_may_differ;       /* not in the canonical text */
} dlxi_option;

typedef struct dlxi_option_table {
    const dlxi_option *options;
    size_t count;
} dlxi_option_table;

/* Rows. `field` is a member designator (sync.inner_steps); trailing arguments set further members,
 * as in DLXI_OPTION_ROW_REAL(config, "sync.outer_momentum", sync.outer_momentum, 0, 0.999, "auto",
 * "…",
 *                        .allow_auto = true)
 */
/* clang-format off */
#define DLXI_OPTION_ROW_INTEGER(type, key_text, field, least, most, ...)                                               \
    {DLXI_OPTION_HEAD_(type, key_text, INTEGER, field), .min = (least), .max = (most),                                 \
     DLXI_OPTION_REST_(__VA_ARGS__, .choices = NULL)}
#define DLXI_OPTION_ROW_REAL(type, key_text, field, least, most, ...)                                                  \
    {DLXI_OPTION_HEAD_(type, key_text, REAL, field), .min = (least), .max = (most),                                    \
     DLXI_OPTION_REST_(__VA_ARGS__, .choices = NULL)}
#define DLXI_OPTION_ROW_BOOLEAN(type, key_text, field, ...)                                                            \
    {DLXI_OPTION_HEAD_(type, key_text, BOOLEAN, field), DLXI_OPTION_REST_(__VA_ARGS__, .choices = NULL)}
#define DLXI_OPTION_ROW_STRING(type, key_text, field, ...)                                                             \
    {DLXI_OPTION_HEAD_(type, key_text, STRING, field), DLXI_OPTION_REST_(__VA_ARGS__, .choices = NULL)}
#define DLXI_OPTION_ROW_CHOICE(type, key_text, field, words, ...)                                                      \
    {DLXI_OPTION_HEAD_(type, key_text, CHOICE, field), DLXI_OPTION_REST_(__VA_ARGS__, .choices = (words))}
#define DLXI_OPTION_HEAD_(type, key_text, kind_name, field)                                                            \
    .key = (key_text), .kind = DLXI_OPTION_##kind_name, .offset = offsetof(type, field),                               \
    .size = sizeof(((type *)0)->field)
#define DLXI_OPTION_REST_(standard, sentence, ...) .default_text = (standard), .comment = (sentence), __VA_ARGS__
/* clang-format on */

/* Every field of the table ← its default. A malformed table (a default out of range, a key twice, a
 * section torn apart, a field of the wrong size) is our own bug and ends the process. */
void dlxi_options_set_defaults(void *values, const dlxi_option_table *table);

/* Sets what the file names and leaves the rest. Nested maps make dotted keys; `sync.overlap: carry`
 * at the top is the same as `sync: {overlap: carry}`. DLX_CONFIG with file, line, key and what is
 * allowed; DLX_SYSTEM where the file can't be read. At most 1 MiB. On failure some of the file's
 * values may be set already. */
dlx_status dlxi_options_load_file(void *values, const dlxi_option_table *table, const char *path,
                                  dlx_error *error);
/* The same from memory; `name` stands for the file in messages. */
dlx_status dlxi_options_load_text(void *values, const dlxi_option_table *table, const char *name,
                                  const char *text, size_t text_bytes, dlx_error *error);

/* One assignment "sync.overlap=carry", as given to --set. DLX_CONFIG; on failure nothing is set. */
dlx_status dlxi_options_set(void *values, const dlxi_option_table *table, const char *assignment,
                            dlx_error *error);

/* Commented YAML that loads back to the same values. values NULL: the defaults, in the table's own
 * spelling. */
dlx_status dlxi_options_print_yaml(char **out, const void *values, const dlxi_option_table *table,
                                   dlx_error *error);

/* A line an option: key, default, what is allowed, comment. */
dlx_status dlxi_options_print_help(char **out, const dlxi_option_table *table, dlx_error *error);

/* "key: value\n" for every option that all sites must share, in the table's order. Equal values
 * give equal text, unequal ones unequal text: a real is printed with 9 digits, or with 17 where 9
 * do not give it back. */
dlx_status dlxi_options_print_canonical(char **out, const void *values,
                                        const dlxi_option_table *table, dlx_error *error);

/* The first line in which two canonical texts differ. "(absent)" stands for a key that one of them
 * lacks. Printable, and cut to size. */
typedef struct dlxi_option_difference {
    char key[64];
    char ours[96], theirs[96];
} dlxi_option_difference;

/* True where the texts are equal; otherwise fills *out. The texts may come from a peer: any bytes
 * will do. */
bool dlxi_options_canonical_equal(dlxi_option_difference *out, const char *ours, size_t ours_bytes,
                                  const char *theirs, size_t theirs_bytes);

#endif
