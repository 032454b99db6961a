/* SPDX-License-Identifier: Apache-2.0 */
/* Options as text: commented YAML, help, and the canonical form in which two sites compare theirs.
 */
#include "options/options_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VALUE_BYTES = 8192, COMMENT_COLUMN = 40 };

typedef void print_option(FILE *out, const void *values, const dlxi_option_table *table, size_t i);

/* *out ← what `print` writes for every option in turn. */
static dlx_status print_all(char **out, const void *values, const dlxi_option_table *table,
                            print_option *print, dlx_error *error) {
    char *text = NULL;
    size_t text_bytes = 0;
    *out = NULL;
    FILE *stream = open_memstream(&text, &text_bytes);
    if (stream == NULL)
        DLX_FAIL(error, MEMORY,
                 "out of memory: text of the options; free some memory and try again");
    for (size_t i = 0; i < table->count; i++) print(stream, values, table, i);
    bool failed = ferror(stream) != 0;
    if (fclose(stream) != 0 || failed) {
        free(text);
        DLX_FAIL(error, MEMORY,
                 "out of memory: text of the options; free some memory and try again");
    }
    *out = text;
    return DLX_OK;
}

/* The bare value; strings without quotes. */
static void print_value(FILE *out, const void *values, const dlxi_option *option) {
    const void *field = (const char *)values + option->offset;
    char real[DLXI_OPTION_REAL_BYTES];
    int choice;
    switch (option->kind) {
    case DLXI_OPTION_INTEGER:
        if (*(const int64_t *)field == DLXI_OPTION_AUTO_INTEGER)
            fputs("auto", out);
        else
            fprintf(out, "%lld", (long long)*(const int64_t *)field);
        break;
    case DLXI_OPTION_REAL:
        if (dlxi_option_is_auto(*(const double *)field)) {
            fputs("auto", out);
        } else {
            dlxi_option_show_real(real, *(const double *)field);
            fputs(real, out);
        }
        break;
    case DLXI_OPTION_BOOLEAN:
        fputs(*(const bool *)field ? "true" : "false", out);
        break;
    case DLXI_OPTION_STRING:
        fwrite(field, 1, strnlen((const char *)field, option->size), out);
        break;
    case DLXI_OPTION_CHOICE:
        memcpy(&choice, field, sizeof choice);
        fputs(option->choices[choice], out);
        break;
    }
}

/* Text as a YAML scalar: bare where it can't be taken for anything else, in double quotes
 * otherwise. Returns its width. */
static int print_yaml_string(FILE *out, const char *text, size_t text_bytes) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-";
    bool bare =
        text_bytes > 0 && text[0] != '-' && !(text_bytes == 4 && memcmp(text, "null", 4) == 0);
    for (size_t i = 0; i < text_bytes && bare; i++)
        bare = memchr(safe, text[i], sizeof safe - 1) != NULL;
    if (bare) return (int)fwrite(text, 1, text_bytes, out);
    int width = 2;
    fputc('"', out);
    for (size_t i = 0; i < text_bytes; i++) {
        if (text[i] == '"' || text[i] == '\\') width++, fputc('\\', out);
        width++, fputc(text[i], out);
    }
    fputc('"', out);
    return width;
}

/* ---- YAML ------------------------------------------------------------------------------------ */

static size_t common_section_bytes(const char *a, const char *b) {
    size_t common = 0;
    for (size_t i = 0; a[i] != '\0' && a[i] == b[i]; i++) {
        if (a[i] == '.') common = i + 1;
    }
    return common;
}

/* Opens the sections that option i is in and its neighbour is not; returns how deep it stands. */
static int print_sections(FILE *out, const dlxi_option_table *table, size_t i) {
    const char *key = table->options[i].key;
    size_t shared = i > 0 ? common_section_bytes(table->options[i - 1].key, key) : 0;
    int depth = 0;
    if (i > 0 && shared == 0) fputc('\n', out);
    size_t begin = 0;
    for (const char *dot = strchr(key, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
        size_t end = (size_t)(dot - key);
        if (end >= shared)
            fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)(end - begin), key + begin);
        begin = end + 1;
        depth++;
    }
    return depth;
}

static void print_yaml_option(FILE *out, const void *values, const dlxi_option_table *table,
                              size_t i) {
    const dlxi_option *option = &table->options[i];
    int depth = print_sections(out, table, i);
    const char *last = strrchr(option->key, '.');
    int width = fprintf(out, "%*s%s: ", 2 * depth, "", last != NULL ? last + 1 : option->key);
    if (option->kind == DLXI_OPTION_STRING) {
        const char *text =
            values != NULL ? (const char *)values + option->offset : option->default_text;
        width += print_yaml_string(out, text, strnlen(text, option->size));
    } else if (values == NULL) {
        width += fprintf(out, "%s", option->default_text);
    } else {
        long before = ftell(out);
        print_value(out, values, option);
        width += (int)(ftell(out) - before);
    }
    char allowed[DLXI_OPTION_ALLOWED_BYTES];
    dlxi_option_show_allowed(allowed, option);
    fprintf(out, "%*s# %s; %s\n", width < COMMENT_COLUMN - 1 ? COMMENT_COLUMN - width : 2, "",
            option->comment, allowed);
}

dlx_status dlxi_options_print_yaml(char **out, const void *values, const dlxi_option_table *table,
                                   dlx_error *error) {
    return print_all(out, values, table, print_yaml_option, error);
}

/* ---- help ------------------------------------------------------------------------------------ */

static void print_help_option(FILE *out, const void *values, const dlxi_option_table *table,
                              size_t i) {
    (void)values;
    const dlxi_option *option = &table->options[i];
    char allowed[DLXI_OPTION_ALLOWED_BYTES];
    dlxi_option_show_allowed(allowed, option);
    int width = fprintf(out, "  %s=%s", option->key, option->default_text);
    fprintf(out, "%*s%s; %s\n", width < COMMENT_COLUMN - 1 ? COMMENT_COLUMN - width : 2, "",
            option->comment, allowed);
}

dlx_status dlxi_options_print_help(char **out, const dlxi_option_table *table, dlx_error *error) {
    return print_all(out, NULL, table, print_help_option, error);
}

/* ---- canonical text -------------------------------------------------------------------------- */

static void print_canonical_option(FILE *out, const void *values, const dlxi_option_table *table,
                                   size_t i) {
    const dlxi_option *option = &table->options[i];
    if (option->site_may_differ) return;
    fprintf(out, "%s: ", option->key);
    print_value(out, values, option);
    fputc('\n', out);
}

dlx_status dlxi_options_print_canonical(char **out, const void *values,
                                        const dlxi_option_table *table, dlx_error *error) {
    return print_all(out, values, table, print_canonical_option, error);
}

typedef struct line {
    const char *key, *value;
    size_t key_bytes, value_bytes, bytes; /* bytes: of the whole line with its end */
} line;

/* The line that begins at text[0]; all zero at the end. A line without ": " is all key. */
static line cut_line(const char *text, size_t text_bytes) {
    line cut = {.key = text, .value = text};
    if (text == NULL || text_bytes == 0) return cut;
    const char *end = memchr(text, '\n', text_bytes);
    size_t bytes = end != NULL ? (size_t)(end - text) : text_bytes;
    const char *colon = memmem(text, bytes, ": ", 2);
    cut.bytes = end != NULL ? bytes + 1 : bytes;
    cut.key_bytes = colon != NULL ? (size_t)(colon - text) : bytes;
    cut.value = colon != NULL ? colon + 2 : text + bytes;
    cut.value_bytes = (size_t)(text + bytes - cut.value);
    return cut;
}

static bool has_key(const char *text, size_t text_bytes, const line *wanted) {
    while (text_bytes > 0) {
        line at = cut_line(text, text_bytes);
        if (at.key_bytes == wanted->key_bytes && memcmp(at.key, wanted->key, at.key_bytes) == 0)
            return true;
        text += at.bytes;
        text_bytes -= at.bytes;
    }
    return false;
}

bool dlxi_options_canonical_equal(dlxi_option_difference *out, const char *ours, size_t ours_bytes,
                                  const char *theirs, size_t theirs_bytes) {
    static const char absent[] = "(absent)";
    for (;;) {
        line mine = cut_line(ours, ours_bytes), other = cut_line(theirs, theirs_bytes);
        if (mine.bytes == 0 && other.bytes == 0) return true;
        if (mine.bytes == other.bytes && memcmp(ours, theirs, mine.bytes) == 0) {
            ours += mine.bytes, ours_bytes -= mine.bytes;
            theirs += other.bytes, theirs_bytes -= other.bytes;
            continue;
        }
        bool same_key = mine.bytes > 0 && other.bytes > 0 && mine.key_bytes == other.key_bytes &&
                        memcmp(mine.key, other.key, mine.key_bytes) == 0;
        /* different keys: the side whose key the other lacks is named; where both have both, the
         * order differs */
        bool name_mine = same_key || other.bytes == 0 ||
                         (mine.bytes > 0 && !has_key(theirs, theirs_bytes, &mine));
        const line *named = name_mine ? &mine : &other;
        dlxi_option_show_text(out->key, sizeof out->key, named->key, named->key_bytes);
        if (same_key || name_mine)
            dlxi_option_show_text(out->ours, sizeof out->ours, mine.value, mine.value_bytes);
        else
            snprintf(out->ours, sizeof out->ours, "%s", absent);
        if (same_key || !name_mine)
            dlxi_option_show_text(out->theirs, sizeof out->theirs, other.value, other.value_bytes);
        else
            snprintf(out->theirs, sizeof out->theirs, "%s", absent);
        return false;
    }
}
