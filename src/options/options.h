/* SPDX-License-Identifier: Apache-2.0 */
/* Options: one table of keys drives the config file, --set, the flags of the command line, the
 * printed defaults, the help, and the comparison of two sites' settings. Its rows, written with the
 * macros below, describe a struct of plain fields; nothing here knows what an option means.
 *
 *   kind      field                     text
 *   integer   int64_t, int, uint32_t    12, -3, 1.0e6 (whole after the exponent)
 *   real      double                    0.1, 2e-3; never nan or inf
 *   seconds   uint32_t, milliseconds    0.5, 10
 *   boolean   bool                      true or false
 *   choice    int or enum               one of the words of a list: its place there, or its value
 *   string    char[n]                   up to n-1 bytes of UTF-8 without control characters
 *   pointer   const char *              the text itself, which must outlive the values; NULL: none
 *   list      const char *[n]           the same, appended; up to n-1, then NULL
 *
 * Pointers and lists are for the command line; a config file has none. An integer or real whose row
 * sets `allow_auto` also takes the word `auto`, which is DLX_AUTO: its range begins at 0 or above.
 *
 * Numbers are read and printed with the C library: the calling program leaves LC_NUMERIC at "C".
 * All functions may be called from any thread; texts returned are the caller's, free with free().
 */
#ifndef DLXI_OPTIONS_H
#define DLXI_OPTIONS_H

#include "base/error.h"

typedef enum dlxi_option_kind {
    DLXI_OPTION_INTEGER,
    DLXI_OPTION_REAL,
    DLXI_OPTION_SECONDS,
    DLXI_OPTION_BOOLEAN,
    DLXI_OPTION_CHOICE,
    DLXI_OPTION_STRING,
    DLXI_OPTION_POINTER,
    DLXI_OPTION_LIST
} dlxi_option_kind;

typedef struct dlxi_option {
    const char *key;   /* "sync.inner_steps", or "--sites"; "": a field that has no text */
    const char *field; /* what a C caller calls it */
    dlxi_option_kind kind;
    size_t offset, size; /* of the field in the caller's struct, bytes */
    bool is_unsigned;    /* integer */
    double min, max;     /* of a number in the field, both allowed; integers: whole, below 2^53 */
    const char *const *words; /* choice: ends with NULL */
    const int *values;        /* choice: of the words; NULL: 0, 1, … */
    const char *default_text; /* as a user would write it; NULL: default_value */
    double default_value;
    const char *comment;    /* one line, no final dot */
    const char *value_name; /* flags: N, FILE */
    const char *bare_text;  /* flags: the value where none is given by `=`; NULL: one is needed */
    bool allow_auto;        /* integer and real */
    bool site_may_differ;   /* not in the canonical text */
} dlxi_option;

typedef struct dlxi_option_table {
    const dlxi_option *options;
    size_t count;
} dlxi_option_table;

/* Rows. `field` is a member designator (sync.inner_steps); trailing arguments set further members,
 * as in DLXI_OPTION_ROW_REAL(config, "train.rate", train.rate, 0, 1, "auto", "…",
 *                            .allow_auto = true) */
/* clang-format off */
#define DLXI_OPTION_ROW_INTEGER(type, key_text, designator, low, high, ...)                        \
    {DLXI_OPTION_HEAD_(type, key_text, INTEGER, designator), .min = (low), .max = (high),          \
     .is_unsigned = _Generic(((type *)0)->designator, uint32_t: true, default: false),             \
     DLXI_OPTION_REST_(__VA_ARGS__, .words = NULL)}
#define DLXI_OPTION_ROW_REAL(type, key_text, designator, low, high, ...)                           \
    {DLXI_OPTION_HEAD_(type, key_text, REAL, designator), .min = (low), .max = (high),             \
     DLXI_OPTION_REST_(__VA_ARGS__, .words = NULL)}
#define DLXI_OPTION_ROW_BOOLEAN(type, key_text, designator, ...)                                   \
    {DLXI_OPTION_HEAD_(type, key_text, BOOLEAN, designator),                                       \
     DLXI_OPTION_REST_(__VA_ARGS__, .words = NULL)}
#define DLXI_OPTION_ROW_STRING(type, key_text, designator, ...)                                    \
    {DLXI_OPTION_HEAD_(type, key_text, STRING, designator),                                        \
     DLXI_OPTION_REST_(__VA_ARGS__, .words = NULL)}
#define DLXI_OPTION_ROW_CHOICE(type, key_text, designator, word_list, ...)                         \
    {DLXI_OPTION_HEAD_(type, key_text, CHOICE, designator),                                        \
     DLXI_OPTION_REST_(__VA_ARGS__, .words = (word_list))}
#define DLXI_OPTION_ROW_POINTER(type, key_text, designator, shown, sentence)                       \
    {DLXI_OPTION_HEAD_(type, key_text, POINTER, designator), .value_name = (shown),                \
     .comment = (sentence)}
#define DLXI_OPTION_ROW_LIST(type, key_text, designator, shown, sentence)                          \
    {DLXI_OPTION_HEAD_(type, key_text, LIST, designator), .value_name = (shown),                   \
     .comment = (sentence)}
#define DLXI_OPTION_HEAD_(type, key_text, kind_name, designator)                                   \
    .key = (key_text), .field = #designator, .kind = DLXI_OPTION_##kind_name,                      \
    .offset = offsetof(type, designator), .size = sizeof(((type *)0)->designator)
#define DLXI_OPTION_REST_(standard, sentence, ...)                                                 \
    .default_text = (standard), .comment = (sentence), __VA_ARGS__
/* clang-format on */

/* Every field of the table ← its default. A malformed table (a default out of range, a key twice, a
 * field of the wrong size) is our own bug and ends the process. */
void dlxi_options_set_defaults(void *values, const dlxi_option_table *table);

/* Sets what the file names and leaves the rest. Nested maps make dotted keys; `sync.overlap: carry`
 * at the top is the same as `sync: {overlap: carry}`. DLX_CONFIG with file, line, key and what is
 * allowed; DLX_SYSTEM if the file can't be read. At most 1 MiB. On failure some values may be set
 * already. */
dlx_status dlxi_options_load_file(void *values, const dlxi_option_table *table, const char *path,
                                  dlx_error *error);
/* The same from memory; `name` stands for the file in messages. */
dlx_status dlxi_options_load_text(void *values, const dlxi_option_table *table, const char *name,
                                  const char *text, size_t text_bytes, dlx_error *error);

/* One assignment "sync.overlap=carry", as given to --set. DLX_CONFIG; on failure nothing is set. */
dlx_status dlxi_options_set(void *values, const dlxi_option_table *table, const char *assignment,
                            dlx_error *error);

/* Whether numbers and choices that a C caller filled in are in range. DLX_CONFIG names the first
 * that is not: by its key, or by its field. */
dlx_status dlxi_options_check(const void *values, const dlxi_option_table *table, bool by_key,
                              dlx_error *error);

/* ---- one option ------------------------------------------------------------------------------ */

/* NULL if there is none. */
const dlxi_option *dlxi_option_find(const dlxi_option_table *table, const char *key,
                                    size_t key_bytes);

/* The option's field ← text[text_bytes]. `where` begins the message: "quickstart.yaml:12". */
dlx_status dlxi_option_parse(void *values, const dlxi_option *option, const char *where,
                             const char *text, size_t text_bytes, dlx_error *error);

/* The field of a number, boolean or choice. */
double dlxi_option_number(const void *values, const dlxi_option *option);

/* dst ← what the option takes: "1 to 100000", "true, false"; "" for pointers and lists. */
enum { DLXI_OPTION_ALLOWED_BYTES = 256 };
void dlxi_option_show_allowed(char dst[DLXI_OPTION_ALLOWED_BYTES], const dlxi_option *option);

/* dst ← text fit for a message: unless it is plain UTF-8, bytes that are not printable ASCII become
 * '?'; it is cut to size with "..". */
void dlxi_option_show_text(char *dst, size_t dst_bytes, const char *text, size_t text_bytes);

/* ---- all options as text --------------------------------------------------------------------- */

/* Commented YAML that loads back to the same values: a section's own options, then the sections in
 * it. values NULL: the defaults, in the table's own spelling. */
dlx_status dlxi_options_print_yaml(char **out, const void *values, const dlxi_option_table *table,
                                   dlx_error *error);

/* One line per option, in the same order: key, default, what is allowed, comment. */
dlx_status dlxi_options_print_help(char **out, const dlxi_option_table *table, dlx_error *error);

/* "key: value\n" for every option that all sites must share, in the table's order. Equal values
 * give equal text, unequal ones unequal text: a real is printed with 9 digits, or with 17 if 9 do
 * not give it back. */
dlx_status dlxi_options_print_canonical(char **out, const void *values,
                                        const dlxi_option_table *table, dlx_error *error);

/* The first line in which two canonical texts differ. "(absent)" stands for a key that one of them
 * lacks. Printable, and cut to size. */
typedef struct dlxi_option_difference {
    char key[64];
    char ours[96], theirs[96];
} dlxi_option_difference;

/* True if the texts are equal, or if theirs begins with all lines of ours and may go on; otherwise
 * fills *out. The texts may come from a peer: any bytes will do. */
bool dlxi_options_canonical_equal(dlxi_option_difference *out, const char *ours, size_t ours_bytes,
                                  const char *theirs, size_t theirs_bytes, bool may_go_on);

/* The next key, from *ours on, that both texts have with different values: fills *out, and moves
 * *ours behind it. False: there is none. */
bool dlxi_options_canonical_next(dlxi_option_difference *out, const char **ours,
                                 const char *theirs);

#endif
