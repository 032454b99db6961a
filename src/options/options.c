/* SPDX-License-Identifier: Apache-2.0 */
/* Options, one at a time: the table's own consistency, finding a key, reading a value, --set. */
#include "options/options_internal.h"
#include "base/panic.h"

#include <stdio.h>
#include <string.h>

static size_t least_size(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Well-formed UTF-8 (RFC 3629) without control characters. */
static bool is_plain_utf8(const char *text, size_t text_bytes) {
    const unsigned char *bytes = (const unsigned char *)text;
    for (size_t i = 0; i < text_bytes;) {
        uint32_t code = bytes[i];
        size_t more = code < 0x80                   ? 0
                      : code >= 0xC2 && code < 0xE0 ? 1
                      : code >= 0xE0 && code < 0xF0 ? 2
                                                    : 3;
        if (code >= 0x80 && (code < 0xC2 || code > 0xF4)) return false;
        if (more >= text_bytes - i) return false;
        if (more > 0) code &= 0x3Fu >> more;
        for (size_t j = 1; j <= more; j++) {
            if ((bytes[i + j] & 0xC0) != 0x80) return false;
            code = code << 6 | (bytes[i + j] & 0x3Fu);
        }
        bool too_short = (more == 2 && code < 0x800) || (more == 3 && code < 0x10000);
        bool surrogate = code >= 0xD800 && code < 0xE000;
        bool control = code < 0x20 || (code >= 0x7F && code < 0xA0);
        /* YAML would not give them back */
        bool line_break = code == 0x2028 || code == 0x2029 || code == 0xFEFF;
        if (too_short || surrogate || control || line_break || code > 0x10FFFF) return false;
        i += more + 1;
    }
    return true;
}

void dlxi_option_show_text(char *dst, size_t dst_bytes, const char *text, size_t text_bytes) {
    bool cut = text_bytes > dst_bytes - 1, plain = is_plain_utf8(text, text_bytes);
    size_t kept = cut ? dst_bytes - 3 : text_bytes;
    /* not inside a character */
    while (cut && plain && ((unsigned char)text[kept] & 0xC0) == 0x80) kept--;
    for (size_t i = 0; i < kept; i++) {
        unsigned char byte = (unsigned char)text[i];
        dst[i] = !plain && (byte < 0x20 || byte >= 0x7F) ? '?' : text[i];
    }
    snprintf(dst + kept, dst_bytes - kept, "%s", cut ? ".." : "");
}

void dlxi_option_show_real(char dst[DLXI_OPTION_REAL_BYTES], double value) {
    snprintf(dst, DLXI_OPTION_REAL_BYTES, "%.9g", value);
    if (strtod(dst, NULL) != value) snprintf(dst, DLXI_OPTION_REAL_BYTES, "%.17g", value);
}

void dlxi_option_show_allowed(char dst[DLXI_OPTION_ALLOWED_BYTES], const dlxi_option *option) {
    const char *or_auto = option->allow_auto ? ", or auto" : "";
    size_t used = 0;
    switch (option->kind) {
    case DLXI_OPTION_INTEGER:
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "%.0f to %.0f%s", option->min, option->max,
                 or_auto);
        break;
    case DLXI_OPTION_REAL: {
        char min[DLXI_OPTION_REAL_BYTES], max[DLXI_OPTION_REAL_BYTES];
        dlxi_option_show_real(min, option->min);
        dlxi_option_show_real(max, option->max);
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "%s to %s%s", min, max, or_auto);
        break;
    }
    case DLXI_OPTION_BOOLEAN:
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "true, false");
        break;
    case DLXI_OPTION_STRING:
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "text of up to %zu bytes", option->size - 1);
        break;
    case DLXI_OPTION_CHOICE:
        dst[0] = '\0';
        for (size_t i = 0; option->choices[i] != NULL && used < DLXI_OPTION_ALLOWED_BYTES; i++) {
            used += (size_t)snprintf(dst + used, DLXI_OPTION_ALLOWED_BYTES - used, "%s%s",
                                     i > 0 ? ", " : "", option->choices[i]);
        }
        break;
    }
}

/* ---- finding --------------------------------------------------------------------------------- */

const dlxi_option *dlxi_option_find(const dlxi_option_table *table, const char *key,
                                    size_t key_bytes) {
    for (size_t i = 0; i < table->count; i++) {
        const dlxi_option *option = &table->options[i];
        if (strlen(option->key) == key_bytes && memcmp(option->key, key, key_bytes) == 0)
            return option;
    }
    return NULL;
}

static bool is_below(const dlxi_option *option, const char *section, size_t section_bytes) {
    return strncmp(option->key, section, section_bytes) == 0 &&
           strlen(option->key) > section_bytes && option->key[section_bytes] == '.';
}

const dlxi_option *dlxi_option_find_section(const dlxi_option_table *table, const char *key,
                                            size_t key_bytes) {
    if (memchr(key, '\0', key_bytes) != NULL) return NULL;
    for (size_t i = 0; i < table->count; i++) {
        if (is_below(&table->options[i], key, key_bytes)) return &table->options[i];
    }
    return NULL;
}

/* Edits (insert, delete, replace) from a[a_bytes] to b[b_bytes], both shorter than a key; Wagner &
 * Fischer 1974. */
static size_t edit_distance(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    /* row[j]: from the first i bytes of a to the first j of b */
    size_t row[DLXI_OPTION_KEY_BYTES + 1];
    DLXI_ASSERT(b_bytes <= DLXI_OPTION_KEY_BYTES);
    for (size_t j = 0; j <= b_bytes; j++) row[j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = least_size(replaced, least_size(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_bytes];
}

/* Keeps in best[] the candidate nearest to the key so far. */
static void offer(const char **best, size_t *best_bytes, size_t *best_distance, const char *key,
                  size_t key_bytes, const char *candidate, size_t candidate_bytes) {
    size_t distance = edit_distance(key, key_bytes, candidate, candidate_bytes);
    if (distance >= *best_distance) return;
    *best = candidate;
    *best_bytes = candidate_bytes;
    *best_distance = distance;
}

dlx_status dlxi_option_fail_unknown(const dlxi_option_table *table, const char *where,
                                    const char *key, size_t key_bytes, dlx_error *error) {
    const char *best = NULL;
    /* further is no resemblance */
    size_t best_bytes = 0, best_distance = least_size(3 + key_bytes / 8, key_bytes);
    for (size_t i = 0; i < table->count && key_bytes < DLXI_OPTION_KEY_BYTES; i++) {
        const char *candidate = table->options[i].key;
        offer(&best, &best_bytes, &best_distance, key, key_bytes, candidate, strlen(candidate));
        /* its sections */
        for (const char *dot = strchr(candidate, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
            offer(&best, &best_bytes, &best_distance, key, key_bytes, candidate,
                  (size_t)(dot - candidate));
        }
        const char *last = strrchr(candidate, '.'); /* the right name in the wrong section */
        const char *key_last = memrchr(key, '.', key_bytes);
        key_last = key_last != NULL ? key_last + 1 : key;
        size_t last_bytes = (size_t)(key + key_bytes - key_last);
        if (best_distance > 1 && last != NULL && strlen(last + 1) == last_bytes &&
            memcmp(last + 1, key_last, last_bytes) == 0) {
            best = candidate;
            best_bytes = strlen(candidate);
            best_distance = 1;
        }
    }
    char shown[DLXI_OPTION_SHOWN_BYTES];
    dlxi_option_show_text(shown, sizeof shown, key, key_bytes);
    if (best == NULL) {
        DLX_FAIL(error, CONFIG, "%s: unknown key '%s'; 'dilocox config --defaults' prints all keys",
                 where, shown);
    }
    DLX_FAIL(error, CONFIG, "%s: unknown key '%s'; did you mean '%.*s'?", where, shown,
             (int)best_bytes, best);
}

/* ---- reading a value ------------------------------------------------------------------------- */

static size_t skip_digits(const char *text, size_t at) {
    while (text[at] >= '0' && text[at] <= '9') at++;
    return at;
}

/* Decimal only: strtod alone would also take hexadecimal, nan, inf and leading blanks. False where
 * text is no number. */
static bool parse_number(double *out, const char *text, size_t text_bytes) {
    char copy[64];
    if (text_bytes >= sizeof copy || memchr(text, '\0', text_bytes) != NULL) return false;
    memcpy(copy, text, text_bytes);
    copy[text_bytes] = '\0';
    size_t at = copy[0] == '+' || copy[0] == '-' ? 1 : 0, digits = 0;
    size_t end = skip_digits(copy, at);
    digits = end - at;
    at = end;
    if (copy[at] == '.') {
        end = skip_digits(copy, at + 1);
        digits += end - at - 1;
        at = end;
    }
    if (digits == 0) return false;
    if (copy[at] == 'e' || copy[at] == 'E') {
        at += copy[at + 1] == '+' || copy[at + 1] == '-' ? 2 : 1;
        end = skip_digits(copy, at);
        if (end == at) return false;
        at = end;
    }
    if (at != text_bytes) return false;
    *out = strtod(copy, NULL) + 0.0; /* −0 becomes 0 */
    return true;
}

static bool is_text(const char *text, size_t text_bytes, const char *word) {
    return strlen(word) == text_bytes && memcmp(text, word, text_bytes) == 0;
}

static dlx_status parse_numeric(void *field, const dlxi_option *option, const char *where,
                                const char *shown, const char *allowed, const char *text,
                                size_t text_bytes, dlx_error *error) {
    bool whole = option->kind == DLXI_OPTION_INTEGER;
    double value;
    if (option->allow_auto && is_text(text, text_bytes, "auto")) {
        if (whole)
            *(int64_t *)field = DLXI_OPTION_AUTO_INTEGER;
        else
            *(double *)field = DLXI_OPTION_AUTO;
        return DLX_OK;
    }
    bool number = parse_number(&value, text, text_bytes);
    if (!number ||
        (whole && value > -0x1p53 && value < 0x1p53 && value != (double)(int64_t)value)) {
        DLX_FAIL(error, CONFIG, "%s: %s: '%s' is not a %s; allowed: %s", where, option->key, shown,
                 whole ? "whole number" : "number", allowed);
    }
    if (!(value >= option->min && value <= option->max)) {
        DLX_FAIL(error, CONFIG, "%s: %s: %s is out of range; allowed: %s", where, option->key,
                 shown, allowed);
    }
    if (whole)
        *(int64_t *)field = (int64_t)value;
    else
        *(double *)field = value;
    return DLX_OK;
}

dlx_status dlxi_option_parse(void *values, const dlxi_option *option, const char *where,
                             const char *text, size_t text_bytes, dlx_error *error) {
    void *field = (char *)values + option->offset;
    char shown[DLXI_OPTION_SHOWN_BYTES], allowed[DLXI_OPTION_ALLOWED_BYTES];
    dlxi_option_show_text(shown, sizeof shown, text, text_bytes);
    dlxi_option_show_allowed(allowed, option);
    switch (option->kind) {
    case DLXI_OPTION_INTEGER:
    case DLXI_OPTION_REAL:
        return parse_numeric(field, option, where, shown, allowed, text, text_bytes, error);
    case DLXI_OPTION_BOOLEAN:
        if (!is_text(text, text_bytes, "true") && !is_text(text, text_bytes, "false")) break;
        *(bool *)field = text[0] == 't';
        return DLX_OK;
    case DLXI_OPTION_STRING:
        if (text_bytes >= option->size) {
            DLX_FAIL(error, CONFIG, "%s: %s: %zu bytes are too many; allowed: %s", where,
                     option->key, text_bytes, allowed);
        }
        if (!is_plain_utf8(text, text_bytes)) {
            DLX_FAIL(
                error, CONFIG,
                "%s: %s: '%s' is not plain text (UTF-8 without control characters); allowed: %s",
                where, option->key, shown, allowed);
        }
        memset(field, 0, option->size);
        memcpy(field, text, text_bytes);
        return DLX_OK;
    case DLXI_OPTION_CHOICE:
        for (int i = 0; option->choices[i] != NULL; i++) {
            if (!is_text(text, text_bytes, option->choices[i])) continue;
            /* the field may be an enum, which is not an int to the compiler */
            memcpy(field, &i, sizeof i);
            return DLX_OK;
        }
        break;
    }
    DLX_FAIL(error, CONFIG, "%s: %s: '%s' is not a choice; allowed: %s", where, option->key, shown,
             allowed);
}

dlx_status dlxi_options_set(void *values, const dlxi_option_table *table, const char *assignment,
                            dlx_error *error) {
    char shown[DLXI_OPTION_SHOWN_BYTES], where[DLXI_OPTION_SHOWN_BYTES + 8];
    dlxi_option_show_text(shown, sizeof shown, assignment, strlen(assignment));
    snprintf(where, sizeof where, "--set %s", shown);
    const char *equals = strchr(assignment, '=');
    if (equals == NULL) {
        DLX_FAIL(error, CONFIG, "%s: no '=' in it; write --set key=value, as in --set %s=%s", where,
                 table->options[0].key, table->options[0].default_text);
    }
    size_t key_bytes = (size_t)(equals - assignment);
    const dlxi_option *option = dlxi_option_find(table, assignment, key_bytes);
    if (option != NULL)
        return dlxi_option_parse(values, option, where, equals + 1, strlen(equals + 1), error);
    const dlxi_option *below = dlxi_option_find_section(table, assignment, key_bytes);
    if (below != NULL) {
        DLX_FAIL(error, CONFIG, "%s: '%.*s' is a section; set one of its keys, as '%s'", where,
                 (int)key_bytes, assignment, below->key);
    }
    return dlxi_option_fail_unknown(table, where, assignment, key_bytes, error);
}

/* ---- the table itself ------------------------------------------------------------------------ */

static void assert_option(const dlxi_option *option) {
    DLXI_ASSERT(option->key != NULL && option->default_text != NULL && option->comment != NULL);
    DLXI_ASSERT(strlen(option->key) > 0 && strlen(option->key) < DLXI_OPTION_KEY_BYTES);
    DLXI_ASSERT(strspn(option->key, "abcdefghijklmnopqrstuvwxyz0123456789_.") ==
                strlen(option->key));
    int depth = 0;
    for (const char *c = option->key; *c != '\0'; c++) depth += *c == '.';
    DLXI_ASSERT(depth <= DLXI_OPTION_DEPTH_MAX);
    DLXI_ASSERT(strchr(option->comment, '\n') == NULL);
    switch (option->kind) {
    case DLXI_OPTION_INTEGER:
        DLXI_ASSERT(option->size == sizeof(int64_t) && option->min > -0x1p53 &&
                    option->max < 0x1p53);
        DLXI_ASSERT(option->min == (double)(int64_t)option->min &&
                    option->max == (double)(int64_t)option->max);
        break;
    case DLXI_OPTION_REAL:
        DLXI_ASSERT(option->size == sizeof(double));
        break;
    case DLXI_OPTION_BOOLEAN:
        DLXI_ASSERT(option->size == sizeof(bool));
        break;
    case DLXI_OPTION_STRING:
        DLXI_ASSERT(option->size >= 2);
        break;
    case DLXI_OPTION_CHOICE:
        DLXI_ASSERT(option->size == sizeof(int) && option->choices != NULL);
        break;
    }
}

/* Options of one section stand together: where option i has a section that its neighbour lacks,
 * none before has it. */
static void assert_sections(const dlxi_option_table *table, size_t i) {
    const char *key = table->options[i].key;
    DLXI_ASSERT(dlxi_option_find(table, key, strlen(key)) == &table->options[i]);
    DLXI_ASSERT(dlxi_option_find_section(table, key, strlen(key)) == NULL);
    for (const char *dot = strchr(key, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
        size_t section_bytes = (size_t)(dot - key);
        if (i > 0 && is_below(&table->options[i - 1], key, section_bytes)) continue;
        DLXI_ASSERT(dlxi_option_find_section(table, key, section_bytes) == &table->options[i]);
    }
}

void dlxi_options_set_defaults(void *values, const dlxi_option_table *table) {
    DLXI_ASSERT(table->count > 0);
    for (size_t i = 0; i < table->count; i++) {
        const dlxi_option *option = &table->options[i];
        assert_option(option);
        assert_sections(table, i);
        dlx_error error;
        bool usable = dlxi_option_parse(values, option, "default", option->default_text,
                                        strlen(option->default_text), &error) == DLX_OK;
        if (!usable) fprintf(stderr, "%s\n", error.message);
        DLXI_ASSERT(usable);
    }
}
