/* SPDX-License-Identifier: Apache-2.0 */
/* Options from a YAML file: libyaml's events, nested maps only. */
#include "options/options_internal.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

enum { FILE_BYTES_MAX = 1 << 20, DEPTH_MAX = DLXI_OPTION_DEPTH_MAX };

typedef struct loader {
    void *values;
    const dlxi_option_table *table;
    const char *name; /* of the file */
    const char *text;
    size_t text_bytes;
    dlx_error *error;
    yaml_parser_t parser;
    yaml_event_t event; /* the last one read; zeroed if there is none */
    /* [table.count, DEPTH_MAX+1]: the line of an option (slot 0) or of its section of depth d (slot
     * d); 0: none yet */
    size_t *first_line;
    char path[DLXI_OPTION_KEY_BYTES];
} loader;

static size_t line_of(const loader *l) {
    return l->event.start_mark.line + 1;
}

/* "quickstart.yaml:12" */
static const char *where(const loader *l, char dst[DLXI_OPTION_SHOWN_BYTES + 24], size_t line) {
    char shown[DLXI_OPTION_SHOWN_BYTES];
    size_t bytes = strlen(l->name);
    /* a long path loses its beginning */
    size_t skipped = bytes < sizeof shown ? 0 : bytes - sizeof shown + 1;
    dlxi_option_show_text(shown, sizeof shown, l->name + skipped, bytes - skipped);
    if (line > 0)
        snprintf(dst, DLXI_OPTION_SHOWN_BYTES + 24, "%s:%zu", shown, line);
    else
        snprintf(dst, DLXI_OPTION_SHOWN_BYTES + 24, "%s", shown);
    return dst;
}

#define WHERE(l, line) where((l), (char[DLXI_OPTION_SHOWN_BYTES + 24]){0}, (line))
#define WHERE_IT_IS(l) WHERE((l), line_of(l))

/* *at ← the line, from 0, without its end; returns its bytes. */
static size_t line_find(const loader *l, size_t line, const char **at) {
    const char *end = l->text + l->text_bytes, *next;
    *at = l->text + dlxi_text_mark_bytes(l->text, l->text_bytes);
    for (; line > 0 && (next = memchr(*at, '\n', (size_t)(end - *at))) != NULL; line--)
        *at = next + 1;
    next = line > 0 ? *at : memchr(*at, '\n', (size_t)(end - *at));
    return (size_t)((next != NULL ? next : end) - *at);
}

/* The first tab in the indentation of these lines, from 0: its line and column, from 1. libyaml
 * reports what the tab leads to. */
static bool tab_find(const loader *l, size_t first_line, size_t last_line, size_t *line,
                     size_t *column) {
    for (size_t i = first_line; i <= last_line; i++) {
        const char *at;
        size_t bytes = line_find(l, i, &at), blanks = 0, tab = 0;
        for (; blanks < bytes && (at[blanks] == ' ' || at[blanks] == '\t'); blanks++)
            if (at[blanks] == '\t' && tab == 0) tab = blanks + 1;
        if (tab == 0) continue;
        *line = i + 1;
        *column = tab;
        return true;
    }
    return false;
}

static dlx_status parser_fail(loader *l) {
    const yaml_parser_t *p = &l->parser;
    size_t last = p->problem_mark.line, first = last, line, column;
    memset(&l->event, 0, sizeof l->event);
    l->event.start_mark.line = last;
    if (p->error == YAML_MEMORY_ERROR)
        DLX_FAIL(l->error, MEMORY, "%s: out of memory", WHERE_IT_IS(l));
    if (p->error == YAML_READER_ERROR && p->problem_offset < l->text_bytes) {
        dlxi_text_place(&line, &column, l->text, p->problem_offset);
        l->event.start_mark.line = line - 1;
    }
    if (p->context != NULL && p->context_mark.line < last) first = p->context_mark.line;
    if (p->error != YAML_READER_ERROR && tab_find(l, first, last, &line, &column))
        DLX_FAIL(l->error, CONFIG, "%s:%zu: a tab; YAML is indented with spaces", WHERE(l, line),
                 column);
    DLX_FAIL(l->error, CONFIG, "%s: not valid YAML: %s; look for a missing colon, quote or indent",
             WHERE_IT_IS(l), p->problem != NULL ? p->problem : "unreadable");
}

/* Reads the next event into l->event, and refuses what a config has no use for. */
static dlx_status event_next(loader *l) {
    yaml_event_delete(&l->event);
    if (!yaml_parser_parse(&l->parser, &l->event)) return parser_fail(l);
    const yaml_char_t *anchor = NULL, *tag = NULL;
    switch (l->event.type) {
    case YAML_SCALAR_EVENT:
        anchor = l->event.data.scalar.anchor, tag = l->event.data.scalar.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = l->event.data.mapping_start.anchor, tag = l->event.data.mapping_start.tag;
        break;
    case YAML_ALIAS_EVENT:
        anchor = l->event.data.alias.anchor;
        break;
    default:
        break;
    }
    if (anchor != NULL)
        DLX_FAIL(l->error, CONFIG, "%s: anchors and aliases (& and *) are not allowed",
                 WHERE_IT_IS(l));
    if (tag != NULL)
        DLX_FAIL(l->error, CONFIG, "%s: tags (!) are not allowed; write the bare value",
                 WHERE_IT_IS(l));
    return DLX_OK;
}

/* Notes that an option or section is in this line; a second time is an error. */
static dlx_status slot_claim(loader *l, const dlxi_option *option, int slot, size_t line) {
    size_t *first =
        &l->first_line[(size_t)(option - l->table->options) * (DEPTH_MAX + 1) + (size_t)slot];
    if (*first != 0) {
        DLX_FAIL(l->error, CONFIG, "%s: %s: given twice, in line %zu too", WHERE(l, line), l->path,
                 *first);
    }
    *first = line;
    return DLX_OK;
}

/* l->path, path_bytes of it a section's, gets the key of the current event behind a dot. */
static dlx_status key_append(loader *l, size_t path_bytes) {
    if (l->event.type != YAML_SCALAR_EVENT) {
        DLX_FAIL(l->error, CONFIG, "%s: a key must be one word, not a %s", WHERE_IT_IS(l),
                 l->event.type == YAML_SEQUENCE_START_EVENT ? "list" : "map");
    }
    const char *key = (const char *)l->event.data.scalar.value;
    size_t key_bytes = l->event.data.scalar.length, dot_bytes = path_bytes > 0 ? 1 : 0;
    if (path_bytes + dot_bytes + key_bytes >= sizeof l->path ||
        memchr(key, '\0', key_bytes) != NULL)
        return dlxi_option_fail_unknown(l->table, WHERE_IT_IS(l), key, key_bytes, l->error);
    if (dot_bytes > 0) l->path[path_bytes] = '.';
    memcpy(l->path + path_bytes + dot_bytes, key, key_bytes + 1);
    return DLX_OK;
}

/* The current event is the value of the option, whose key is in key_line. */
static dlx_status value_read(loader *l, const dlxi_option *option, size_t key_line) {
    if (l->event.type != YAML_SCALAR_EVENT) {
        DLX_FAIL(l->error, CONFIG, "%s: %s: one value is expected, not a %s", WHERE_IT_IS(l),
                 l->path, l->event.type == YAML_SEQUENCE_START_EVENT ? "list" : "map");
    }
    const char *text = (const char *)l->event.data.scalar.value;
    bool plain = l->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    if (plain && (text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0)) {
        char allowed[DLXI_OPTION_ALLOWED_BYTES];
        dlxi_option_show_allowed(allowed, option);
        DLX_FAIL(l->error, CONFIG, "%s: %s: no value; allowed: %s", WHERE(l, key_line), l->path,
                 allowed);
    }
    return dlxi_option_parse(l->values, option, WHERE_IT_IS(l), text, l->event.data.scalar.length,
                             l->error);
}

/* The current event opens a map whose keys are below l->path[0 … path_bytes). Recursion is at most
 * DEPTH_MAX deep: every level's path is a section of the table. */
static dlx_status map_read(loader *l, size_t path_bytes) {
    for (;;) {
        DLX_TRY(event_next(l));
        if (l->event.type == YAML_MAPPING_END_EVENT) return DLX_OK;
        size_t key_line = line_of(l);
        DLX_TRY(key_append(l, path_bytes));
        size_t bytes = strlen(l->path);
        const dlxi_option *option = dlxi_option_find(l->table, l->path, bytes);
        const dlxi_option *below = dlxi_option_find_section(l->table, l->path, bytes);
        if (option == NULL && below == NULL)
            return dlxi_option_fail_unknown(l->table, WHERE_IT_IS(l), l->path, bytes, l->error);
        int depth = 1;
        for (size_t i = 0; i < bytes; i++) depth += l->path[i] == '.';
        DLX_TRY(
            slot_claim(l, option != NULL ? option : below, option != NULL ? 0 : depth, key_line));
        DLX_TRY(event_next(l));
        if (option != NULL) {
            DLX_TRY(value_read(l, option, key_line));
        } else if (l->event.type == YAML_MAPPING_START_EVENT) {
            DLX_TRY(map_read(l, bytes));
        } else if (l->event.type != YAML_SCALAR_EVENT ||
                   l->event.data.scalar.length > 0) { /* all commented out */
            DLX_FAIL(l->error, CONFIG,
                     "%s: %.*s: is a section; its keys, as '%s', go below it, indented",
                     WHERE_IT_IS(l), (int)bytes, l->path, below->key + bytes + 1);
        }
    }
}

static dlx_status stream_read(loader *l) {
    DLX_TRY(event_next(l)); /* the stream's start */
    DLX_TRY(event_next(l));
    if (l->event.type == YAML_STREAM_END_EVENT) return DLX_OK; /* comments only */
    DLX_TRY(event_next(l));
    bool empty = l->event.type == YAML_SCALAR_EVENT && l->event.data.scalar.length == 0;
    if (!empty && l->event.type != YAML_MAPPING_START_EVENT)
        DLX_FAIL(l->error, CONFIG, "%s: a config is a map of sections, as 'run: {seed: 1}'",
                 WHERE_IT_IS(l));
    if (!empty) DLX_TRY(map_read(l, 0));
    DLX_TRY(event_next(l)); /* the document's end */
    DLX_TRY(event_next(l));
    if (l->event.type != YAML_STREAM_END_EVENT)
        DLX_FAIL(l->error, CONFIG, "%s: a second document begins here; a config has one",
                 WHERE_IT_IS(l));
    return DLX_OK;
}

dlx_status dlxi_options_load_text(void *values, const dlxi_option_table *table, const char *name,
                                  const char *text, size_t text_bytes, dlx_error *error) {
    loader l = {.values = values,
                .table = table,
                .name = name,
                .text = text,
                .text_bytes = text_bytes,
                .error = error};
    dlx_status status;
    if (text_bytes > FILE_BYTES_MAX) {
        DLX_FAIL(error, CONFIG, "%s: %zu bytes are too many for a config; allowed: up to %d",
                 WHERE(&l, 0), text_bytes, FILE_BYTES_MAX);
    }
    /* libyaml reads UTF-16 too, if its mark says so */
    if (!dlxi_text_has_utf16_mark(text, text_bytes))
        DLX_TRY(dlxi_text_check(text, text_bytes, WHERE(&l, 0), error));
    DLX_TRY(dlxi_alloc((void **)&l.first_line, table->count, (DEPTH_MAX + 1) * sizeof *l.first_line,
                       "options", error));
    if (!yaml_parser_initialize(&l.parser)) {
        free(l.first_line);
        DLX_FAIL(error, MEMORY,
                 "out of memory: the config's parser; free some memory and try again");
    }
    yaml_parser_set_input_string(&l.parser, (const unsigned char *)text, text_bytes);
    status = stream_read(&l);
    yaml_event_delete(&l.event);
    yaml_parser_delete(&l.parser);
    free(l.first_line);
    return status;
}

dlx_status dlxi_options_load_file(void *values, const dlxi_option_table *table, const char *path,
                                  dlx_error *error) {
    char *text;
    size_t text_bytes;
    dlx_error cause;
    dlx_status status = dlxi_file_read(&text, &text_bytes, path, FILE_BYTES_MAX, &cause);
    if (status == DLX_SYSTEM && cause.system_errno == ENOENT) {
        DLX_FAIL(error, CONFIG,
                 "%s: no such file; 'dilocox config --defaults > %s' writes one with every option",
                 path, path);
    }
    if (status == DLX_DATA)
        DLX_FAIL(error, CONFIG, "%s: too large for a config; allowed: up to %d bytes", path,
                 FILE_BYTES_MAX);
    if (status != DLX_OK) {
        if (error != NULL) *error = cause;
        return status;
    }
    status = dlxi_options_load_text(values, table, path, text, text_bytes, error);
    free(text);
    return status;
}
