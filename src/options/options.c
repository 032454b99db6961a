/* SPDX-License-Identifier: Apache-2.0 */
/* Options, one at a time: numbers in fields, finding a key, reading a value, --set, and the table's
 * own consistency. */
#include "options/options_internal.h"
#include "base/panic.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Well-formed UTF-8 without control characters. */
static bool is_plain_utf8(const char *text, size_t text_bytes) {
    uint32_t code;
    for (size_t i = 0, bytes; i < text_bytes; i += bytes) {
        bytes = dlxi_utf8_next(&code, text + i, text_bytes - i);
        if (bytes == 0) return false;
        bool control = code < 0x20 || (code >= 0x7F && code < 0xA0);
        /* YAML would not give them back */
        bool line_break = code == 0x2028 || code == 0x2029 || code == 0xFEFF;
        if (control || line_break) return false;
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

/* ---- numbers --------------------------------------------------------------------------------- */

double dlxi_option_number(const void *values, const dlxi_option *option) {
    const void *field = (const char *)values + option->offset;
    int64_t wide;
    uint32_t whole;
    int narrow;
    switch (option->kind) {
    case DLXI_OPTION_REAL:
        return *(const double *)field;
    case DLXI_OPTION_BOOLEAN:
        return *(const bool *)field ? 1 : 0;
    default: /* an enum is not an int to the compiler */
        if (option->size == sizeof wide) return memcpy(&wide, field, sizeof wide), (double)wide;
        if (option->is_unsigned) return memcpy(&whole, field, sizeof whole), (double)whole;
        return memcpy(&narrow, field, sizeof narrow), (double)narrow;
    }
}

static void number_set(void *values, const dlxi_option *option, double value) {
    void *field = (char *)values + option->offset;
    if (option->kind == DLXI_OPTION_REAL)
        *(double *)field = value;
    else if (option->kind == DLXI_OPTION_BOOLEAN)
        *(bool *)field = value != 0;
    else if (option->size == sizeof(int64_t))
        memcpy(field, &(int64_t){(int64_t)value}, option->size);
    else if (option->is_unsigned)
        memcpy(field, &(uint32_t){(uint32_t)value}, option->size);
    else
        memcpy(field, &(int){(int)value}, option->size);
}

static int choice_value(const dlxi_option *option, int i) {
    return option->values != NULL ? option->values[i] : i;
}

/* NULL if the value is no choice. */
static const char *choice_word(const dlxi_option *option, double value) {
    for (int i = 0; option->words[i] != NULL; i++)
        if (choice_value(option, i) == value) return option->words[i];
    return NULL;
}

static bool is_in_range(const dlxi_option *option, double value) {
    if (option->kind == DLXI_OPTION_CHOICE) return choice_word(option, value) != NULL;
    return (option->allow_auto && value == DLX_AUTO) ||
           (value >= option->min && value <= option->max);
}

static void real_show(char dst[DLXI_OPTION_VALUE_BYTES], double value) {
    snprintf(dst, DLXI_OPTION_VALUE_BYTES, "%.9g", value);
    if (strtod(dst, NULL) != value) snprintf(dst, DLXI_OPTION_VALUE_BYTES, "%.17g", value);
}

void dlxi_option_show_number(char dst[DLXI_OPTION_VALUE_BYTES], const dlxi_option *option,
                             double value) {
    const char *word = option->allow_auto && value == DLX_AUTO ? "auto" : NULL;
    if (option->kind == DLXI_OPTION_BOOLEAN) word = value != 0 ? "true" : "false";
    if (option->kind == DLXI_OPTION_CHOICE) word = choice_word(option, value);
    if (word != NULL)
        snprintf(dst, DLXI_OPTION_VALUE_BYTES, "%s", word);
    else if (option->kind == DLXI_OPTION_INTEGER)
        snprintf(dst, DLXI_OPTION_VALUE_BYTES, "%.0f", value);
    else
        real_show(dst, option->kind == DLXI_OPTION_SECONDS ? value / 1000 : value);
}

/* dst ← the choices in a list: their words, or their values. */
static void choices_show(char dst[DLXI_OPTION_ALLOWED_BYTES], const dlxi_option *option,
                         bool by_value) {
    size_t used = 0;
    dst[0] = '\0';
    for (int i = 0; option->words[i] != NULL && used < DLXI_OPTION_ALLOWED_BYTES; i++) {
        char value[DLXI_OPTION_VALUE_BYTES];
        snprintf(value, sizeof value, "%d", choice_value(option, i));
        used += (size_t)snprintf(dst + used, DLXI_OPTION_ALLOWED_BYTES - used, "%s%s",
                                 used > 0 ? ", " : "", by_value ? value : option->words[i]);
    }
}

void dlxi_option_show_allowed(char dst[DLXI_OPTION_ALLOWED_BYTES], const dlxi_option *option) {
    char min[DLXI_OPTION_VALUE_BYTES], max[DLXI_OPTION_VALUE_BYTES];
    switch (option->kind) {
    case DLXI_OPTION_INTEGER:
    case DLXI_OPTION_REAL:
    case DLXI_OPTION_SECONDS:
        dlxi_option_show_number(min, option, option->min);
        dlxi_option_show_number(max, option, option->max);
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "%s to %s%s", min, max,
                 option->allow_auto ? ", or auto" : "");
        break;
    case DLXI_OPTION_BOOLEAN:
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "true, false");
        break;
    case DLXI_OPTION_CHOICE:
        choices_show(dst, option, false);
        break;
    case DLXI_OPTION_STRING:
        snprintf(dst, DLXI_OPTION_ALLOWED_BYTES, "text of up to %zu bytes", option->size - 1);
        break;
    case DLXI_OPTION_POINTER:
    case DLXI_OPTION_LIST:
        dst[0] = '\0';
        break;
    }
}

static bool has_number(const dlxi_option *option) {
    return option->kind <= DLXI_OPTION_CHOICE;
}

dlx_status dlxi_options_check(const void *values, const dlxi_option_table *table, bool by_key,
                              dlx_error *error) {
    for (size_t i = 0; i < table->count; i++) {
        const dlxi_option *option = &table->options[i];
        if (option->kind == DLXI_OPTION_BOOLEAN || !has_number(option)) continue;
        double value = dlxi_option_number(values, option);
        if (is_in_range(option, value)) continue;
        char allowed[DLXI_OPTION_ALLOWED_BYTES];
        snprintf(allowed, sizeof allowed, "%.10g to %.10g%s", option->min, option->max,
                 option->allow_auto ? ", or DLX_AUTO" : "");
        if (option->kind == DLXI_OPTION_CHOICE) choices_show(allowed, option, true);
        DLX_FAIL(error, CONFIG, "%s: %.10g is out of range; allowed: %s",
                 by_key ? option->key : option->field, value, allowed);
    }
    return DLX_OK;
}

/* ---- finding --------------------------------------------------------------------------------- */

const dlxi_option *dlxi_option_find(const dlxi_option_table *table, const char *key,
                                    size_t key_bytes) {
    for (size_t i = 0; i < table->count; i++) {
        const dlxi_option *option = &table->options[i];
        if (key_bytes > 0 && strlen(option->key) == key_bytes &&
            memcmp(option->key, key, key_bytes) == 0)
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
            row[j] = min_size(replaced, min_size(row[j], row[j - 1]) + 1);
        }
    }
    return row[b_bytes];
}

/* Keeps in best[] the candidate nearest to the key so far. */
static void candidate_offer(const char **best, size_t *best_bytes, size_t *best_distance,
                            const char *key, size_t key_bytes, const char *candidate,
                            size_t candidate_bytes) {
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
    size_t best_bytes = 0, best_distance = min_size(3 + key_bytes / 8, key_bytes);
    for (size_t i = 0; i < table->count && key_bytes < DLXI_OPTION_KEY_BYTES; i++) {
        const char *candidate = table->options[i].key;
        candidate_offer(&best, &best_bytes, &best_distance, key, key_bytes, candidate,
                        strlen(candidate));
        /* its sections */
        for (const char *dot = strchr(candidate, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
            candidate_offer(&best, &best_bytes, &best_distance, key, key_bytes, candidate,
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

static size_t digits_skip(const char *text, size_t at) {
    while (text[at] >= '0' && text[at] <= '9') at++;
    return at;
}

/* Decimal only: strtod alone would also take hexadecimal, nan, inf and leading blanks. False if the
 * text is no number. */
static bool number_parse(double *out, const char *text, size_t text_bytes) {
    char copy[64];
    if (text_bytes >= sizeof copy || memchr(text, '\0', text_bytes) != NULL) return false;
    memcpy(copy, text, text_bytes);
    copy[text_bytes] = '\0';
    size_t at = copy[0] == '+' || copy[0] == '-' ? 1 : 0, digits = 0;
    size_t end = digits_skip(copy, at);
    digits = end - at;
    at = end;
    if (copy[at] == '.') {
        end = digits_skip(copy, at + 1);
        digits += end - at - 1;
        at = end;
    }
    if (digits == 0) return false;
    if (copy[at] == 'e' || copy[at] == 'E') {
        at += copy[at + 1] == '+' || copy[at + 1] == '-' ? 2 : 1;
        end = digits_skip(copy, at);
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

static dlx_status numeric_parse(void *values, const dlxi_option *option, const char *where,
                                const char *shown, const char *allowed, const char *text,
                                size_t text_bytes, dlx_error *error) {
    bool whole = option->kind == DLXI_OPTION_INTEGER;
    double value;
    if (option->allow_auto && is_text(text, text_bytes, "auto")) {
        number_set(values, option, DLX_AUTO);
        return DLX_OK;
    }
    bool number = number_parse(&value, text, text_bytes);
    if (!number ||
        (whole && value > -0x1p53 && value < 0x1p53 && value != (double)(int64_t)value)) {
        DLX_FAIL(error, CONFIG, "%s: %s: '%s' is not a %s; allowed: %s", where, option->key, shown,
                 whole ? "whole number" : "number", allowed);
    }
    if (option->kind == DLXI_OPTION_SECONDS) value *= 1000;
    if (!(value >= option->min && value <= option->max)) {
        DLX_FAIL(error, CONFIG, "%s: %s: %s is out of range; allowed: %s", where, option->key,
                 shown, allowed);
    }
    if (option->kind == DLXI_OPTION_SECONDS) value = floor(value + 0.5);
    number_set(values, option, value);
    return DLX_OK;
}

static dlx_status list_append(const char **list, const dlxi_option *option, const char *where,
                              const char *text, dlx_error *error) {
    size_t used = 0, room = option->size / sizeof *list - 1;
    while (list[used] != NULL) used++;
    if (used == room)
        DLX_FAIL(error, CONFIG, "%s: %s: given more than %zu times", where, option->key, room);
    list[used] = text;
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
    case DLXI_OPTION_SECONDS:
        return numeric_parse(values, option, where, shown, allowed, text, text_bytes, error);
    case DLXI_OPTION_BOOLEAN:
        if (!is_text(text, text_bytes, "true") && !is_text(text, text_bytes, "false")) break;
        *(bool *)field = text[0] == 't';
        return DLX_OK;
    case DLXI_OPTION_CHOICE:
        for (int i = 0; option->words[i] != NULL; i++) {
            if (!is_text(text, text_bytes, option->words[i])) continue;
            number_set(values, option, choice_value(option, i));
            return DLX_OK;
        }
        break;
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
    case DLXI_OPTION_POINTER:
        *(const char **)field = text;
        return DLX_OK;
    case DLXI_OPTION_LIST:
        return list_append(field, option, where, text, error);
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

static void option_assert(const dlxi_option_table *table, const dlxi_option *option) {
    const char *key = option->key;
    DLXI_ASSERT(key != NULL && option->comment != NULL && strchr(option->comment, '\n') == NULL);
    DLXI_ASSERT(strlen(key) < DLXI_OPTION_KEY_BYTES);
    DLXI_ASSERT(strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789_.-") == strlen(key));
    DLXI_ASSERT(key[0] == '\0' || dlxi_option_find(table, key, strlen(key)) == option);
    DLXI_ASSERT(dlxi_option_find_section(table, key, strlen(key)) == NULL);
    int depth = 0;
    for (const char *c = key; *c != '\0'; c++) depth += *c == '.';
    DLXI_ASSERT(depth <= DLXI_OPTION_DEPTH_MAX);
    DLXI_ASSERT(!option->allow_auto || option->min >= 0); /* −1 is DLX_AUTO */
    switch (option->kind) {
    case DLXI_OPTION_INTEGER:
        DLXI_ASSERT(option->size == sizeof(int64_t) || option->size == sizeof(int));
        DLXI_ASSERT(option->size == sizeof(int64_t)
                        ? option->min > -0x1p53 && option->max < 0x1p53
                        : option->min >= INT32_MIN && option->max <= INT32_MAX);
        DLXI_ASSERT(option->min == (double)(int64_t)option->min &&
                    option->max == (double)(int64_t)option->max);
        DLXI_ASSERT(!option->is_unsigned || !(option->allow_auto || option->min < 0));
        break;
    case DLXI_OPTION_REAL:
        DLXI_ASSERT(option->size == sizeof(double));
        break;
    case DLXI_OPTION_SECONDS:
        DLXI_ASSERT(option->size == sizeof(uint32_t) && option->is_unsigned);
        DLXI_ASSERT(option->min >= 0 && option->max <= INT32_MAX);
        break;
    case DLXI_OPTION_BOOLEAN:
        DLXI_ASSERT(option->size == sizeof(bool));
        break;
    case DLXI_OPTION_CHOICE:
        DLXI_ASSERT(option->size == sizeof(int) && option->words != NULL);
        break;
    case DLXI_OPTION_STRING:
        DLXI_ASSERT(option->size >= 2 && option->default_text != NULL);
        break;
    case DLXI_OPTION_POINTER:
    case DLXI_OPTION_LIST:
        DLXI_ASSERT(option->size % sizeof(char *) == 0);
        break;
    }
}

static void default_set(void *values, const dlxi_option *option) {
    dlx_error error = {.message = ""};
    if (!has_number(option)) memset((char *)values + option->offset, 0, option->size);
    if (option->default_text != NULL) {
        (void)dlxi_option_parse(values, option, "default", option->default_text,
                                strlen(option->default_text), &error);
        if (error.message[0] != '\0') fprintf(stderr, "%s\n", error.message);
    } else if (has_number(option)) {
        number_set(values, option, option->default_value);
    }
    DLXI_ASSERT(error.message[0] == '\0');
    DLXI_ASSERT(!has_number(option) || is_in_range(option, dlxi_option_number(values, option)) ||
                option->kind == DLXI_OPTION_BOOLEAN);
}

void dlxi_options_set_defaults(void *values, const dlxi_option_table *table) {
    for (size_t i = 0; i < table->count; i++) {
        option_assert(table, &table->options[i]);
        default_set(values, &table->options[i]);
    }
}
