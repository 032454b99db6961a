/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the options engine share: sections, and values as text. */
#ifndef DLXI_OPTIONS_INTERNAL_H
#define DLXI_OPTIONS_INTERNAL_H

#include "options/options.h"

enum {
    DLXI_OPTION_KEY_BYTES = 64,  /* the final 0 included */
    DLXI_OPTION_DEPTH_MAX = 8,   /* sections within sections */
    DLXI_OPTION_SHOWN_BYTES = 96 /* of a user's text in a message */
};

/* The first option below the section `key` ("sync.compression"), NULL if there is no such section.
 */
const dlxi_option *dlxi_option_find_section(const dlxi_option_table *table, const char *key,
                                            size_t key_bytes);

/* Sets "where: unknown key '…'; did you mean '…'?" and returns DLX_CONFIG. */
dlx_status dlxi_option_fail_unknown(const dlxi_option_table *table, const char *where,
                                    const char *key, size_t key_bytes, dlx_error *error);

/* dst ← a number, boolean or choice of the option as a user would write it: a real as the shortest
 * of %.9g and %.17g that reads back as the same double. */
enum { DLXI_OPTION_VALUE_BYTES = 32 };
void dlxi_option_show_number(char dst[DLXI_OPTION_VALUE_BYTES], const dlxi_option *option,
                             double value);

#endif
