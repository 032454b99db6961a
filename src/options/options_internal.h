/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the options engine share: finding, reading and showing one option. */
#ifndef DLXI_OPTIONS_INTERNAL_H
#define DLXI_OPTIONS_INTERNAL_H

#include "options/options.h"

enum {
    DLXI_OPTION_KEY_BYTES = 64,   /* the final 0 included */
    DLXI_OPTION_DEPTH_MAX = 8,    /* sections within sections */
    DLXI_OPTION_SHOWN_BYTES = 96, /* of a user's text in a message */
    DLXI_OPTION_ALLOWED_BYTES = 256
};

const dlxi_option *dlxi_option_find(const dlxi_option_table *table, const char *key,
                                    size_t key_bytes);

/* The first option below the section `key` ("sync.compression"), NULL where there is no such
 * section. */
const dlxi_option *dlxi_option_find_section(const dlxi_option_table *table, const char *key,
                                            size_t key_bytes);

/* The option's field ← text[text_bytes]. `where` begins the message: "quickstart.yaml:12". */
dlx_status dlxi_option_parse(void *values, const dlxi_option *option, const char *where,
                             const char *text, size_t text_bytes, dlx_error *error);

/* Sets "where: unknown key '…'; did you mean '…'?" and returns DLX_CONFIG. */
dlx_status dlxi_option_fail_unknown(const dlxi_option_table *table, const char *where,
                                    const char *key, size_t key_bytes, dlx_error *error);

/* dst ← what the option takes: "1 to 100000", "true, false". */
void dlxi_option_show_allowed(char dst[DLXI_OPTION_ALLOWED_BYTES], const dlxi_option *option);

/* dst ← text fit for a message: where it is not plain UTF-8, bytes that are not printable ASCII
 * become '?'; it is cut to size with "..". */
void dlxi_option_show_text(char *dst, size_t dst_bytes, const char *text, size_t text_bytes);

/* dst ← the shortest of %.9g and %.17g that reads back as the same double. */
enum { DLXI_OPTION_REAL_BYTES = 32 };
void dlxi_option_show_real(char dst[DLXI_OPTION_REAL_BYTES], double value);

#endif
