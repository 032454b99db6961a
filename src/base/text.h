/* SPDX-License-Identifier: Apache-2.0 */
/* Text from files that editors and exports wrote: UTF-8, or what it is instead, and where. */
#ifndef DLXI_BASE_TEXT_H
#define DLXI_BASE_TEXT_H

#include "base/error.h"

/* *code ← the character that text[0 … bytes) begins with. Returns its bytes, 0 if it is not
 * well-formed UTF-8 (RFC 3629). bytes ≥ 1. */
size_t dlxi_utf8_next(uint32_t *code, const char *text, size_t bytes);

/* The bytes of a byte order mark of UTF-8 at the beginning: 3 or 0. */
size_t dlxi_text_mark_bytes(const char *text, size_t bytes);

/* Whether it begins as UTF-16 does: with its mark, or with an ASCII character of 16 bits. */
bool dlxi_text_has_utf16_mark(const char *text, size_t bytes);
bool dlxi_text_is_utf16(const char *text, size_t bytes);

/* Line and column, from 1, of the byte at `offset`; columns are characters, and a byte that is not
 * UTF-8 is one. */
void dlxi_text_place(size_t *line, size_t *column, const char *text, size_t offset);

/* DLX_CONFIG with "where:line:column: " unless it is UTF-8 whose control characters are tabs and
 * line breaks. `where` names the file. */
dlx_status dlxi_text_check(const char *text, size_t bytes, const char *where, dlx_error *error);

#endif
