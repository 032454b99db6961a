/* SPDX-License-Identifier: Apache-2.0 */
/* The list of tokenizers, and the byte-level one: token i is byte i. */
#include "data/tokenizer.h"
#include "base/hash.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTE_VOCABULARY = 256 };

static dlx_status byte_encode(const dlxi_tokenizer *tokenizer, uint32_t *tokens, size_t tokens_max,
                              size_t *tokens_count, const uint8_t *text, size_t text_bytes,
                              size_t *consumed_bytes, bool last, dlx_error *error) {
    (void)tokenizer, (void)last, (void)error;
    size_t count = text_bytes < tokens_max ? text_bytes : tokens_max;
    for (size_t i = 0; i < count; i++) tokens[i] = text[i];
    *tokens_count = count;
    *consumed_bytes = count;
    return DLX_OK;
}

static dlx_status byte_decode(const dlxi_tokenizer *tokenizer, const uint8_t **text,
                              size_t *text_bytes, uint32_t token, dlx_error *error) {
    static const uint8_t bytes[BYTE_VOCABULARY] = {
#define FOUR(n)    (n), (n) + 1, (n) + 2, (n) + 3
#define SIXTEEN(n) FOUR(n), FOUR((n) + 4), FOUR((n) + 8), FOUR((n) + 12)
#define QUARTER(n) SIXTEEN(n), SIXTEEN((n) + 16), SIXTEEN((n) + 32), SIXTEEN((n) + 48)
        QUARTER(0), QUARTER(64), QUARTER(128), QUARTER(192)
#undef QUARTER
#undef SIXTEEN
#undef FOUR
    };
    if (token >= tokenizer->vocabulary) {
        DLX_FAIL(error, DATA,
                 "token %lu is not in the vocabulary of tokenizer '%s'; allowed: 0 to %lu",
                 (unsigned long)token, tokenizer->name, (unsigned long)tokenizer->vocabulary - 1);
    }
    *text = &bytes[token];
    *text_bytes = 1;
    return DLX_OK;
}

static void byte_close(dlxi_tokenizer *tokenizer) {
    free(tokenizer);
}

static const dlxi_tokenizer_operations byte_operations = {byte_encode, byte_decode, byte_close};

static dlx_status byte_open(dlxi_tokenizer **out, dlx_error *error) {
    static const char identity[] = "dilocox tokenizer byte, version 1";
    DLX_TRY(DLXI_NEW(out, 1, error));
    **out = (dlxi_tokenizer){.op = &byte_operations,
                             .name = "byte",
                             .vocabulary = BYTE_VOCABULARY,
                             .hash = dlxi_hash(identity, sizeof identity - 1, 0)};
    return DLX_OK;
}

dlx_status dlxi_tokenizer_open(dlxi_tokenizer **out, const char *name, dlx_error *error) {
    *out = NULL;
    if (strcmp(name, "byte") == 0) return byte_open(out, error);
    DLX_FAIL(error, CONFIG, "unknown tokenizer '%.40s'; allowed: byte", name);
}

void dlxi_tokenizer_close(dlxi_tokenizer **tokenizer) {
    if (*tokenizer != NULL) (*tokenizer)->op->close(*tokenizer);
    *tokenizer = NULL;
}
