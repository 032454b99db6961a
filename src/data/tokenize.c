/* SPDX-License-Identifier: Apache-2.0 */
/* `dilocox tokenize`: streams a text through a tokenizer into one token file, or two by blocks. */
#include "data/tokenize.h"
#include "data/token_file.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TRAIN, VALIDATION, FILES };
enum { PIECE_BYTES = 1 << 16, PIECE_TOKENS = 1 << 14 };

typedef struct tokenizing {
    const dlxi_tokenizer *tokenizer;
    const char *in_path;
    int in;
    uint8_t *text; /* [text_room]; the first text_bytes are read and not yet tokenized */
    size_t text_room, text_bytes;
    uint32_t *tokens; /* [PIECE_TOKENS] */
    dlxi_token_file_writer *writer[FILES];
    int64_t count[FILES];
    int64_t read_bytes;
} tokenizing;

/* Appends up to bytes_max bytes to t->text; *end ← whether the file has no more. */
static dlx_status piece_read(tokenizing *t, size_t bytes_max, size_t *got_bytes, bool *end,
                             dlx_error *error) {
    *got_bytes = 0;
    *end = false;
    while (*got_bytes < bytes_max) {
        ssize_t got = read(t->in, t->text + t->text_bytes, bytes_max - *got_bytes);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) DLX_FAIL(error, SYSTEM, "%s: can't be read: %s", t->in_path, strerror(errno));
        if (got == 0) {
            *end = true;
            break;
        }
        *got_bytes += (size_t)got;
        t->text_bytes += (size_t)got;
    }
    bool first = t->read_bytes == 0;
    t->read_bytes += (int64_t)*got_bytes;
    if (first && dlxi_text_has_utf16_mark((const char *)t->text, t->text_bytes))
        DLX_FAIL(error, DATA, "%s: is UTF-16; convert it to UTF-8 first", t->in_path);
    return DLX_OK;
}

/* Tokenizes t->text: all of it if `last`, or else a tail may stay for the next piece. */
static dlx_status piece_encode(tokenizing *t, int which, bool last, dlx_error *error) {
    size_t done = 0;
    while (done < t->text_bytes) {
        size_t tokens_count, consumed_bytes;
        DLX_TRY(t->tokenizer->op->encode(t->tokenizer, t->tokens, PIECE_TOKENS, &tokens_count,
                                         t->text + done, t->text_bytes - done, &consumed_bytes,
                                         last, error));
        if (tokens_count == 0 && consumed_bytes == 0) break;
        DLX_TRY(dlxi_token_file_writer_append(t->writer[which], t->tokens, tokens_count, error));
        t->count[which] += (int64_t)tokens_count;
        done += consumed_bytes;
    }
    t->text_bytes -= done;
    memmove(t->text, t->text + done, t->text_bytes);
    if (t->text_bytes > PIECE_BYTES || (last && t->text_bytes > 0)) {
        DLX_FAIL(error, DATA, "%s: tokenizer '%s' can't encode the text near byte %lld", t->in_path,
                 t->tokenizer->name, (long long)(t->read_bytes - (int64_t)t->text_bytes));
    }
    return DLX_OK;
}

/* Tokenizes one block of text, up to block_bytes, into one file. */
static dlx_status block_encode(tokenizing *t, int which, int64_t block_bytes, bool *end,
                               dlx_error *error) {
    do {
        size_t wanted = block_bytes < PIECE_BYTES ? (size_t)block_bytes : PIECE_BYTES, got;
        DLX_TRY(piece_read(t, wanted, &got, end, error));
        block_bytes -= (int64_t)got;
        DLX_TRY(piece_encode(t, which, *end || block_bytes == 0, error));
    } while (!*end && block_bytes > 0);
    return DLX_OK;
}

static dlx_status options_check(const dlxi_tokenize_options *options, dlx_error *error) {
    if (options->validation_every != 0 &&
        (options->validation_every < 2 || options->validation_every > 1000000)) {
        DLX_FAIL(
            error, CONFIG,
            "--validation-every: %lld is out of range; allowed: 2 to 1000000, or 0 for no split",
            (long long)options->validation_every);
    }
    if (options->validation_every != 0 &&
        (options->block_bytes < 1 || options->block_bytes > 1 << 30)) {
        DLX_FAIL(error, CONFIG, "--block: %lld is out of range; allowed: 1 to %d",
                 (long long)options->block_bytes, 1 << 30);
    }
    return DLX_OK;
}

/* `name`.train.tokens of a directory would be a hidden file in it. */
static dlx_status path_check(const char *what, const char *path, dlx_error *error) {
    size_t bytes = strlen(path);
    if (bytes == 0 || path[bytes - 1] == '/')
        DLX_FAIL(error, CONFIG, "%s: '%.100s' names no file; give a file's name, as data/my", what,
                 path);
    return DLX_OK;
}

/* "-" is standard input. */
static dlx_status text_open(tokenizing *t, dlx_error *error) {
    if (strcmp(t->in_path, "-") == 0) {
        t->in_path = "standard input";
        t->in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0);
    } else {
        t->in = open(t->in_path, O_RDONLY | O_CLOEXEC);
    }
    if (t->in >= 0) return DLX_OK;
    if (errno == ENOENT)
        DLX_FAIL(error, CONFIG, "%s: no such file; name the text to tokenize", t->in_path);
    DLX_FAIL(error, SYSTEM, "%s: can't be opened: %s", t->in_path, strerror(errno));
}

static dlx_status writer_open(tokenizing *t, int which, const char *out_path, const char *suffix,
                              dlx_error *error) {
    char *path = NULL;
    if (asprintf(&path, "%s%s", out_path, suffix) < 0)
        DLX_FAIL(error, MEMORY, "out of memory: can't write %s; free some memory and try again",
                 out_path);
    dlx_status status = DLX_CONFIG;
    if (dlxi_file_is_open_as(t->in, path))
        dlxi_error_set(error, status, "%s: is the text itself, %s; name another file to write",
                       path, t->in_path);
    else
        status = dlxi_token_file_writer_open(&t->writer[which], path, t->tokenizer, error);
    free(path);
    return status;
}

/* Checks that all files have tokens before committing any. */
static dlx_status files_commit(tokenizing *t, const dlxi_tokenize_options *options,
                               dlx_error *error) {
    if (t->read_bytes == 0)
        DLX_FAIL(error, DATA, "%s: is empty; give a text with at least one byte", t->in_path);
    for (int i = 0; i < FILES; i++) {
        if (t->writer[i] == NULL || t->count[i] > 0) continue;
        DLX_FAIL(
            error, DATA,
            "%s: its %lld bytes leave nothing for %s; try less than --validation-every %lld or "
            "--block %lld",
            t->in_path, (long long)t->read_bytes, i == TRAIN ? "training" : "validation",
            (long long)options->validation_every, (long long)options->block_bytes);
    }
    for (int i = 0; i < FILES; i++) {
        if (t->writer[i] != NULL) DLX_TRY(dlxi_token_file_writer_commit(t->writer[i], error));
    }
    return DLX_OK;
}

dlx_status dlxi_tokenize(const char *out_path, const char *in_path, const dlxi_tokenizer *tokenizer,
                         const dlxi_tokenize_options *options, dlxi_tokenize_report *report,
                         dlx_error *error) {
    dlx_status status = DLX_OK;
    tokenizing t = {
        .tokenizer = tokenizer, .in_path = in_path, .in = -1, .text_room = 2 * PIECE_BYTES};
    bool split = options->validation_every != 0, end = false;
    DLX_TRY(options_check(options, error));
    DLX_TRY(path_check("IN", in_path, error));
    DLX_TRY(path_check("OUT", out_path, error));
    DLX_TRY(text_open(&t, error));
    DLX_TRY_OUT(DLXI_NEW(&t.text, t.text_room, error));
    DLX_TRY_OUT(DLXI_NEW(&t.tokens, PIECE_TOKENS, error));
    DLX_TRY_OUT(writer_open(&t, TRAIN, out_path, split ? ".train.tokens" : "", error));
    if (split) DLX_TRY_OUT(writer_open(&t, VALIDATION, out_path, ".validation.tokens", error));
    for (int64_t block = 0; !end; block++) {
        bool validation =
            split && block % options->validation_every == options->validation_every - 1;
        DLX_TRY_OUT(block_encode(&t, validation ? VALIDATION : TRAIN,
                                 split ? options->block_bytes : INT64_MAX, &end, error));
    }
    DLX_TRY_OUT(files_commit(&t, options, error));
    if (report != NULL)
        *report = (dlxi_tokenize_report){t.read_bytes, t.count[TRAIN], t.count[VALIDATION]};
out:
    for (int i = 0; i < FILES; i++) dlxi_token_file_writer_close(&t.writer[i]);
    free(t.tokens);
    free(t.text);
    close(t.in);
    return status;
}
