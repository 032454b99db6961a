/* SPDX-License-Identifier: Apache-2.0 */
/* From a text to token files: `dilocox tokenize`. */
#ifndef DLXI_DATA_TOKENIZE_H
#define DLXI_DATA_TOKENIZE_H

#include "data/tokenizer.h"

typedef struct dlxi_tokenize_options {
    int64_t validation_every; /* 0: one file. K (2 … 1000000): every K-th block is validation */
    int64_t block_bytes;      /* of text, 1 … 2^30; used only with a split */
} dlxi_tokenize_options;

#define DLXI_TOKENIZE_OPTIONS_INIT                                                                 \
    { .validation_every = 0, .block_bytes = 65536 }

typedef struct dlxi_tokenize_report {
    int64_t text_bytes, train_tokens, validation_tokens; /* train_tokens: all without a split */
} dlxi_tokenize_report;

/* Without a split: in_path → out_path. With one: blocks K−1, 2K−1, … (from 0) →
 * out_path.validation.tokens, the others → out_path.train.tokens, each block tokenized alone. On
 * failure no file is left, except that the train file may be if renaming the validation file fails.
 * report may be NULL. in_path "-" is standard input. DLX_CONFIG for options out of range, a missing
 * file, or an output that is the text itself or no regular file, DLX_DATA for a text that leaves a
 * file empty, DLX_SYSTEM. Blocks. */
dlx_status dlxi_tokenize(const char *out_path, const char *in_path, const dlxi_tokenizer *tokenizer,
                         const dlxi_tokenize_options *options, dlxi_tokenize_report *report,
                         dlx_error *error);

#endif
