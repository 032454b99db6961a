/* SPDX-License-Identifier: Apache-2.0 */
#include "base/lines.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/panic.h"

void dlxi_lines_add(dlxi_lines *lines, const char *format, ...) {
    if (lines->count == DLXI_LINES_MAX) dlxi_lines_drop(lines);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(lines->line[(lines->first + lines->count++) % DLXI_LINES_MAX], DLXI_LINE_BYTES,
              format, arguments);
    va_end(arguments);
}

const char *dlxi_lines_peek(const dlxi_lines *lines) {
    return lines->count > 0 ? lines->line[lines->first] : NULL;
}

void dlxi_lines_drop(dlxi_lines *lines) {
    DLXI_ASSERT(lines->count > 0);
    lines->first = (lines->first + 1) % DLXI_LINES_MAX;
    lines->count--;
}
