/* SPDX-License-Identifier: Apache-2.0 */
/* A few lines of text, oldest first, between who writes them and who prints them. */
#ifndef DLXI_BASE_LINES_H
#define DLXI_BASE_LINES_H

#include <stdint.h>

#include "base/error.h"
#include "base/limits.h"

enum { DLXI_LINES_MAX = 128, DLXI_LINE_BYTES = DLXI_REASON_MAX + 112 };

typedef struct dlxi_lines {
    uint32_t first, count;
    char line[DLXI_LINES_MAX][DLXI_LINE_BYTES];
} dlxi_lines;

/* If there is no room, the oldest gives way. A line that does not fit is truncated. */
void dlxi_lines_add(dlxi_lines *lines, const char *format, ...) DLXI_PRINTF(2, 3);
/* The oldest, or NULL; valid until it is dropped, or gives way. */
const char *dlxi_lines_peek(const dlxi_lines *lines);
void dlxi_lines_drop(dlxi_lines *lines);

#endif
