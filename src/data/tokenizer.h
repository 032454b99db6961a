/* SPDX-License-Identifier: Apache-2.0 */
/* Tokenizers: text to token ids and back, a piece at a time. `byte` (a token a byte, vocabulary
 * 256) is built in. */
#ifndef DLXI_DATA_TOKENIZER_H
#define DLXI_DATA_TOKENIZER_H

#include "base/error.h"

enum { DLXI_TOKENIZER_NAME_BYTES = 32 }; /* the final 0 included */

typedef struct dlxi_tokenizer dlxi_tokenizer;

typedef struct dlxi_tokenizer_operations {
    /* Encodes the beginning of text[text_bytes] into at most tokens_max tokens; says in
     * *tokens_count and *consumed_bytes how far it came. `last`: no text follows these bytes;
     * otherwise a tail that could still grow into a longer token stays unconsumed, and the caller
     * puts it before the next piece. Makes progress whenever tokens_max ≥ 1 and `last` is true. */
    dlx_status (*encode)(const dlxi_tokenizer *tokenizer, uint32_t *tokens, size_t tokens_max,
                         size_t *tokens_count, const uint8_t *text, size_t text_bytes,
                         size_t *consumed_bytes, bool last, dlx_error *error);
    /* The bytes of one token: *text points into the tokenizer, valid until it is closed. DLX_DATA
     * where token is not in the vocabulary. */
    dlx_status (*decode)(const dlxi_tokenizer *tokenizer, const uint8_t **text, size_t *text_bytes,
                         uint32_t token, dlx_error *error);
    void (*close)(dlxi_tokenizer *tokenizer);
} dlxi_tokenizer_operations;

/* Read-only after open: any number of threads may share one. */
struct dlxi_tokenizer {
    const dlxi_tokenizer_operations *op;
    char name[DLXI_TOKENIZER_NAME_BYTES];
    uint32_t vocabulary; /* ids are 0 … vocabulary−1 */
    uint64_t hash;       /* of everything that decides which ids a text gets; kept in shards */
};

/* On success *out is the caller's. DLX_CONFIG where no tokenizer has that name; the message lists
 * them. */
dlx_status dlxi_tokenizer_open(dlxi_tokenizer **out, const char *name, dlx_error *error);
void dlxi_tokenizer_close(dlxi_tokenizer **tokenizer);

#endif
