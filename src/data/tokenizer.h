/* SPDX-License-Identifier: Apache-2.0 */
/* Tokenizers: text to token ids and back, piece by piece. Built in: `byte`, one token per byte. */
#ifndef DLXI_DATA_TOKENIZER_H
#define DLXI_DATA_TOKENIZER_H

#include "base/error.h"

enum { DLXI_TOKENIZER_NAME_BYTES = 32 }; /* with the terminator */

typedef struct dlxi_tokenizer dlxi_tokenizer;

typedef struct dlxi_tokenizer_operations {
    /* Encodes the first *consumed_bytes of text[text_bytes] into *tokens_count ≤ tokens_max tokens.
     * last: no text follows; otherwise a tail that may be part of a longer token stays unconsumed,
     * and the caller puts it before the next piece. Makes progress if tokens_max ≥ 1 and last. */
    dlx_status (*encode)(const dlxi_tokenizer *tokenizer, uint32_t *tokens, size_t tokens_max,
                         size_t *tokens_count, const uint8_t *text, size_t text_bytes,
                         size_t *consumed_bytes, bool last, dlx_error *error);
    /* A token's bytes; *text is the tokenizer's. DLX_DATA if the token is not in the vocabulary. */
    dlx_status (*decode)(const dlxi_tokenizer *tokenizer, const uint8_t **text, size_t *text_bytes,
                         uint32_t token, dlx_error *error);
    void (*close)(dlxi_tokenizer *tokenizer);
} dlxi_tokenizer_operations;

/* Read-only after open; threads may share it. */
struct dlxi_tokenizer {
    const dlxi_tokenizer_operations *op;
    char name[DLXI_TOKENIZER_NAME_BYTES];
    uint32_t vocabulary; /* ids are 0 … vocabulary−1 */
    uint64_t hash;       /* of all that decides which ids a text gets; stored in token files */
};

/* On success *out is the caller's. DLX_CONFIG if no tokenizer has that name. */
dlx_status dlxi_tokenizer_open(dlxi_tokenizer **out, const char *name, dlx_error *error);
void dlxi_tokenizer_close(dlxi_tokenizer **tokenizer);

#endif
