/* SPDX-License-Identifier: Apache-2.0 */
/* Options as text: commented YAML, help, and the canonical form in which two sites compare theirs.
 */
#include "options/options_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMMENT_COLUMN = 40 };

typedef void table_printer(FILE *out, const void *values, const dlxi_option_table *table);

/* *out ← what `print` writes. */
static dlx_status text_print(char **out, const void *values, const dlxi_option_table *table,
                             table_printer *print, dlx_error *error) {
    char *text = NULL;
    size_t text_bytes = 0;
    *out = NULL;
    FILE *stream = open_memstream(&text, &text_bytes);
    bool failed = stream == NULL;
    if (!failed) {
        print(stream, values, table);
        failed = ferror(stream) != 0;
        failed = fclose(stream) != 0 || failed;
    }
    if (failed) {
        free(text);
        DLX_FAIL(error, MEMORY,
                 "out of memory: text of the options; free some memory and try again");
    }
    *out = text;
    return DLX_OK;
}

/* What a string holds, or its default if values is NULL. */
static const char *string_of(const void *values, const dlxi_option *option) {
    return values != NULL ? (const char *)values + option->offset : option->default_text;
}

/* The bare value, strings without quotes; values NULL: the default. */
static int value_print(FILE *out, const void *values, const dlxi_option *option) {
    char number[DLXI_OPTION_VALUE_BYTES];
    if (option->kind == DLXI_OPTION_STRING || (values == NULL && option->default_text != NULL))
        return fprintf(out, "%s", string_of(values, option));
    dlxi_option_show_number(number, option,
                            values != NULL ? dlxi_option_number(values, option)
                                           : option->default_value);
    return fprintf(out, "%s", number);
}

/* Text as a YAML scalar: bare if it can't be taken for anything else, in double quotes
 * otherwise. Returns its width. */
static int yaml_string_print(FILE *out, const char *text, size_t text_bytes) {
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

/* ---- YAML and help --------------------------------------------------------------------------- */

typedef void option_printer(FILE *out, const void *values, const dlxi_option *option, int depth);

/* Pads from `width` to the column of comments. */
static void comment_print(FILE *out, int width, const char *mark, const dlxi_option *option) {
    char allowed[DLXI_OPTION_ALLOWED_BYTES];
    dlxi_option_show_allowed(allowed, option);
    fprintf(out, "%*s%s%s; %s\n", width < COMMENT_COLUMN - 1 ? COMMENT_COLUMN - width : 2, "", mark,
            option->comment, allowed);
}

static void yaml_option_print(FILE *out, const void *values, const dlxi_option *option, int depth) {
    const char *last = strrchr(option->key, '.');
    int width = fprintf(out, "%*s%s: ", 2 * depth, "", last != NULL ? last + 1 : option->key);
    if (option->kind == DLXI_OPTION_STRING) {
        const char *text = string_of(values, option);
        width += yaml_string_print(out, text, strnlen(text, option->size));
    } else {
        width += value_print(out, values, option);
    }
    comment_print(out, width, "# ", option);
}

static void help_option_print(FILE *out, const void *values, const dlxi_option *option, int depth) {
    (void)depth;
    int width = fprintf(out, "  %s=", option->key);
    comment_print(out, width + value_print(out, values, option), "", option);
}

/* The options whose key begins with `section` ("sync."), its own first, then those of the sections
 * in it; `headings` names these. */
static void section_print(FILE *out, const void *values, const dlxi_option_table *table,
                          const char *section, size_t section_bytes, option_printer *print,
                          bool headings) {
    int depth = 0;
    for (size_t i = 0; i < section_bytes; i++) depth += section[i] == '.';
    for (size_t i = 0; i < table->count; i++) {
        const dlxi_option *option = &table->options[i];
        if (option->key[0] != '\0' && strncmp(option->key, section, section_bytes) == 0 &&
            strchr(option->key + section_bytes, '.') == NULL)
            print(out, values, option, depth);
    }
    for (size_t i = 0; i < table->count; i++) {
        const char *key = table->options[i].key;
        const char *dot =
            strncmp(key, section, section_bytes) == 0 ? strchr(key + section_bytes, '.') : NULL;
        if (dot == NULL ||
            dlxi_option_find_section(table, key, (size_t)(dot - key)) != &table->options[i])
            continue;
        if (headings && depth == 0 && ftell(out) > 0) fputc('\n', out);
        if (headings)
            fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)(dot - key - (ptrdiff_t)section_bytes),
                    key + section_bytes);
        section_print(out, values, table, key, (size_t)(dot - key) + 1, print, headings);
    }
}

static void yaml_print(FILE *out, const void *values, const dlxi_option_table *table) {
    section_print(out, values, table, "", 0, yaml_option_print, true);
}

dlx_status dlxi_options_print_yaml(char **out, const void *values, const dlxi_option_table *table,
                                   dlx_error *error) {
    return text_print(out, values, table, yaml_print, error);
}

static void help_print(FILE *out, const void *values, const dlxi_option_table *table) {
    section_print(out, values, table, "", 0, help_option_print, false);
}

dlx_status dlxi_options_print_help(char **out, const dlxi_option_table *table, dlx_error *error) {
    return text_print(out, NULL, table, help_print, error);
}

/* ---- canonical text -------------------------------------------------------------------------- */

static void canonical_print(FILE *out, const void *values, const dlxi_option_table *table) {
    for (size_t i = 0; i < table->count; i++) {
        if (table->options[i].site_may_differ || table->options[i].key[0] == '\0') continue;
        fprintf(out, "%s: ", table->options[i].key);
        value_print(out, values, &table->options[i]);
        fputc('\n', out);
    }
}

dlx_status dlxi_options_print_canonical(char **out, const void *values,
                                        const dlxi_option_table *table, dlx_error *error) {
    return text_print(out, values, table, canonical_print, error);
}

typedef struct line {
    const char *key, *value;
    size_t key_bytes, value_bytes, bytes; /* bytes: of the whole line with its end */
} line;

/* The line that begins at text[0]; all zero at the end. A line without ": " is all key. */
static line line_cut(const char *text, size_t text_bytes) {
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

/* The line with this one's key; all zero if there is none. */
static line line_find(const char *text, size_t text_bytes, const line *wanted) {
    while (text_bytes > 0) {
        line at = line_cut(text, text_bytes);
        if (at.key_bytes == wanted->key_bytes && memcmp(at.key, wanted->key, at.key_bytes) == 0)
            return at;
        text += at.bytes;
        text_bytes -= at.bytes;
    }
    return (line){0};
}

bool dlxi_options_canonical_next(dlxi_option_difference *out, const char **ours,
                                 const char *theirs) {
    for (;;) {
        const line mine = line_cut(*ours, strlen(*ours));
        if (mine.bytes == 0) return false;
        *ours += mine.bytes;
        const line other = line_find(theirs, strlen(theirs), &mine);
        if (other.bytes == 0 || (other.value_bytes == mine.value_bytes &&
                                 memcmp(other.value, mine.value, mine.value_bytes) == 0))
            continue;
        dlxi_option_show_text(out->key, sizeof out->key, mine.key, mine.key_bytes);
        dlxi_option_show_text(out->ours, sizeof out->ours, mine.value, mine.value_bytes);
        dlxi_option_show_text(out->theirs, sizeof out->theirs, other.value, other.value_bytes);
        return true;
    }
}

bool dlxi_options_canonical_equal(dlxi_option_difference *out, const char *ours, size_t ours_bytes,
                                  const char *theirs, size_t theirs_bytes, bool may_go_on) {
    static const char absent[] = "(absent)";
    for (;;) {
        line mine = line_cut(ours, ours_bytes), other = line_cut(theirs, theirs_bytes);
        if (mine.bytes == 0 && (other.bytes == 0 || may_go_on)) return true;
        if (mine.bytes == other.bytes && memcmp(ours, theirs, mine.bytes) == 0) {
            ours += mine.bytes, ours_bytes -= mine.bytes;
            theirs += other.bytes, theirs_bytes -= other.bytes;
            continue;
        }
        bool same_key = mine.bytes > 0 && other.bytes > 0 && mine.key_bytes == other.key_bytes &&
                        memcmp(mine.key, other.key, mine.key_bytes) == 0;
        /* different keys: the side whose key the other lacks is named; if both have both, the
         * order differs */
        bool name_mine = same_key || other.bytes == 0 ||
                         (mine.bytes > 0 && line_find(theirs, theirs_bytes, &mine).bytes == 0);
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
