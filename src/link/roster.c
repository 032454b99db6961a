/* SPDX-License-Identifier: Apache-2.0 */
/* Rosters: the public keys that may join a run, and their names. */
#include "link/roster.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

const char dlxi_coordinator_name[] = "coordinator";

const dlxi_roster_line *dlxi_roster_by_name(const dlxi_roster *roster, const char *name) {
    for (size_t i = 0; i < roster->count; i++)
        if (strcmp(roster->lines[i].name, name) == 0) return &roster->lines[i];
    return NULL;
}

const dlxi_roster_line *dlxi_roster_by_key(const dlxi_roster *roster,
                                           const uint8_t key[DLXI_KEY_BYTES]) {
    for (size_t i = 0; i < roster->count; i++)
        if (memcmp(roster->lines[i].key, key, DLXI_KEY_BYTES) == 0) return &roster->lines[i];
    return NULL;
}

/* ---- parsing --------------------------------------------------------------------------------- */

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next word of the line; its length is 0 at the line's end. */
static size_t word_next(const char **word, const char **at, const char *end) {
    while (*at < end && is_blank(**at)) (*at)++;
    *word = *at;
    while (*at < end && !is_blank(**at)) (*at)++;
    return (size_t)(*at - *word);
}

/* A word for a message: shortened, and without characters that a terminal would act on. */
static const char *word_show(char dst[DLXI_NAME_BYTES], const char *word, size_t characters) {
    size_t kept = characters < DLXI_NAME_BYTES - 1 ? characters : DLXI_NAME_BYTES - 1;
    for (size_t i = 0; i < kept; i++) dst[i] = word[i] >= ' ' && word[i] <= '~' ? word[i] : '?';
    dst[kept] = '\0';
    return dst;
}

static dlx_status name_parse(dlxi_roster_line *dst, const char *word, size_t characters,
                             const char *path, size_t line, dlx_error *error) {
    char text[DLXI_NAME_BYTES] = "";
    uint8_t key[DLXI_KEY_BYTES];
    if (characters < DLXI_NAME_BYTES) memcpy(dst->name, word, characters);
    /* A key is not shown: it may be a pasted secret half. */
    if (!dlxi_name_valid(dst->name) && dlxi_key_decode(key, dst->name))
        DLX_FAIL(error, CONFIG,
                 "wan.roster: %s:%zu: begins with a key; allowed are 'name public-key', in this "
                 "order",
                 path, line);
    if (characters >= DLXI_NAME_BYTES || strlen(dst->name) != characters ||
        !dlxi_name_valid(dst->name))
        DLX_FAIL(error, CONFIG, "wan.roster: %s:%zu: the name '%s' is not allowed; " DLXI_NAME_RULE,
                 path, line, word_show(text, word, characters));
    return DLX_OK;
}

static dlx_status key_parse(dlxi_roster_line *dst, const char *word, size_t characters,
                            const char *path, size_t line, dlx_error *error) {
    if (characters == DLXI_KEY_TEXT_BYTES - 1) memcpy(dst->key_text, word, characters);
    if (characters != DLXI_KEY_TEXT_BYTES - 1 || !dlxi_key_decode(dst->key, dst->key_text))
        DLX_FAIL(error, CONFIG,
                 "wan.roster: %s:%zu: the key of '%s' is malformed (%zu characters); allowed are "
                 "the 40 characters of a public key, as 'dilocox keygen' prints it",
                 path, line, dst->name, characters);
    return DLX_OK;
}

static dlx_status line_parse(dlxi_roster *roster, const char *at, const char *end, const char *path,
                             size_t line, dlx_error *error) {
    const char *name, *key, *rest;
    size_t name_characters = word_next(&name, &at, end);
    if (name_characters == 0 || name[0] == '#') return DLX_OK;
    dlxi_roster_line fresh = {0};
    DLX_TRY(name_parse(&fresh, name, name_characters, path, line, error));
    size_t key_characters = word_next(&key, &at, end);
    DLX_TRY(key_parse(&fresh, key, key_characters, path, line, error));
    size_t rest_characters = word_next(&rest, &at, end);
    if (rest_characters != 0 && rest[0] != '#')
        DLX_FAIL(error, CONFIG,
                 "wan.roster: %s:%zu: something follows the key of '%s'; allowed are 'name "
                 "public-key' and a comment that begins with #",
                 path, line, fresh.name);
    if (roster->count == DLXI_ROSTER_NAMES_MAX)
        DLX_FAIL(error, CONFIG, "wan.roster: %s:%zu: more than %d names; allowed are 1 to %d", path,
                 line, DLXI_ROSTER_NAMES_MAX, DLXI_ROSTER_NAMES_MAX);
    if (dlxi_roster_by_name(roster, fresh.name) != NULL)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: %s:%zu: the name '%s' appears twice; a name has one key", path, line,
                 fresh.name);
    const dlxi_roster_line *owner = dlxi_roster_by_key(roster, fresh.key);
    if (owner != NULL)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: %s:%zu: '%s' has the same key as '%s'; a key has one name, make "
                 "another with 'dilocox keygen'",
                 path, line, fresh.name, owner->name);
    roster->lines[roster->count++] = fresh;
    return DLX_OK;
}

dlx_status dlxi_roster_parse(dlxi_roster *out, const char *text, size_t text_bytes,
                             const char *path, dlx_error *error) {
    out->count = 0;
    if (dlxi_text_is_utf16(text, text_bytes))
        DLX_FAIL(error, CONFIG, "wan.roster: %s: is UTF-16; save it as UTF-8", path);
    const char *end = text + text_bytes;
    size_t line = 0;
    for (const char *at = text + dlxi_text_mark_bytes(text, text_bytes); at < end;) {
        const char *line_end = memchr(at, '\n', (size_t)(end - at));
        if (line_end == NULL) line_end = end;
        DLX_TRY(line_parse(out, at, line_end, path, ++line, error));
        at = line_end < end ? line_end + 1 : end;
    }
    return DLX_OK;
}

dlx_status dlxi_roster_read(dlxi_roster **out, const char *path, dlx_error *error) {
    *out = NULL;
    if (path == NULL || path[0] == '\0')
        DLX_FAIL(error, CONFIG,
                 "wan.roster: no roster is given; set it to a file of lines 'name public-key'");
    char *text = NULL;
    size_t text_bytes = 0;
    dlx_error cause = {0};
    dlx_status status = dlxi_file_read(&text, &text_bytes, path, DLXI_ROSTER_BYTES_MAX, &cause);
    if (status == DLX_SYSTEM && cause.system_errno == ENOENT)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: no such file '%s'; write one with a line 'name public-key' for the "
                 "coordinator and each site",
                 path);
    if (status == DLX_DATA)
        DLX_FAIL(error, CONFIG,
                 "wan.roster: '%s' is larger than %d bytes, the most that a roster may have", path,
                 DLXI_ROSTER_BYTES_MAX);
    if (status != DLX_OK) {
        if (error != NULL) *error = cause;
        dlxi_error_prefix(error, "wan.roster: ");
        return status;
    }
    dlxi_roster *roster = NULL;
    status = DLXI_NEW(&roster, 1, error);
    if (status == DLX_OK) status = dlxi_roster_parse(roster, text, text_bytes, path, error);
    free(text);
    if (status != DLX_OK) {
        free(roster);
        return status;
    }
    *out = roster;
    return DLX_OK;
}
