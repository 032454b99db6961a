/* SPDX-License-Identifier: Apache-2.0 */
/* The name of a site: one rule for callers, rosters, links and the coordinator. */
#ifndef DLXI_BASE_NAME_H
#define DLXI_BASE_NAME_H

#include <stdbool.h>

/* For messages. Names become directories, so they do not begin with '.' or '-'. */
#define DLXI_NAME_RULE                                                                             \
    "names have 1 to 63 of the characters A-Z a-z 0-9 . _ - and begin with a letter, digit or _"

/* `name` may be any text, or NULL. */
bool dlxi_name_valid(const char *name);

#endif
