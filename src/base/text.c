/* SPDX-License-Identifier: Apache-2.0 */
#include "base/text.h"

#include <string.h>

size_t dlxi_utf8_next(uint32_t *code, const char *text, size_t bytes) {
    const unsigned char *at = (const unsigned char *)text;
    uint32_t c = at[0];
    size_t more = c < 0x80 ? 0 : c >= 0xC2 && c < 0xE0 ? 1 : c >= 0xE0 && c < 0xF0 ? 2 : 3;
    if (c >= 0x80 && (c < 0xC2 || c > 0xF4)) return 0;
    if (more >= bytes) return 0;
    if (more > 0) c &= 0x3Fu >> more;
    for (size_t i = 1; i <= more; i++) {
        if ((at[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (at[i] & 0x3Fu);
    }
    bool too_short = (more == 2 && c < 0x800) || (more == 3 && c < 0x10000);
    bool surrogate = c >= 0xD800 && c < 0xE000;
    if (too_short || surrogate || c > 0x10FFFF) return 0;
    *code = c;
    return more + 1;
}

size_t dlxi_text_mark_bytes(const char *text, size_t bytes) {
    return bytes >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
}

bool dlxi_text_has_utf16_mark(const char *text, size_t bytes) {
    return bytes >= 2 && (memcmp(text, "\xFF\xFE", 2) == 0 || memcmp(text, "\xFE\xFF", 2) == 0);
}

bool dlxi_text_is_utf16(const char *text, size_t bytes) {
    if (dlxi_text_has_utf16_mark(text, bytes)) return true;
    return bytes >= 2 && (text[0] == '\0') != (text[1] == '\0');
}

void dlxi_text_place(size_t *line, size_t *column, const char *text, size_t offset) {
    *line = *column = 1;
    for (size_t i = 0; i < offset;) {
        uint32_t code;
        size_t bytes = dlxi_utf8_next(&code, text + i, offset - i);
        if (text[i] == '\n')
            ++*line, *column = 1;
        else if (!(i == 0 && dlxi_text_mark_bytes(text, offset) > 0))
            ++*column;
        i += bytes > 0 ? bytes : 1;
    }
}

dlx_status dlxi_text_check(const char *text, size_t bytes, const char *where, dlx_error *error) {
    size_t line, column, length;
    uint32_t code = 0;
    for (size_t i = 0; i < bytes; i += length) {
        length = dlxi_utf8_next(&code, text + i, bytes - i);
        bool control = code < 0x20 && code != '\t' && code != '\n' && code != '\r';
        if (length > 0 && !control) continue;
        if (dlxi_text_is_utf16(text, bytes))
            DLX_FAIL(error, CONFIG, "%s: is UTF-16; save it as UTF-8", where);
        dlxi_text_place(&line, &column, text, i);
        if (length == 0)
            DLX_FAIL(error, CONFIG,
                     "%s:%zu:%zu: not UTF-8: the byte 0x%02X, as Latin-1 has it; save the file as "
                     "UTF-8",
                     where, line, column, (unsigned)(unsigned char)text[i]);
        DLX_FAIL(error, CONFIG,
                 "%s:%zu:%zu: the control character 0x%02X is not allowed; remove it", where, line,
                 column, (unsigned)code);
    }
    return DLX_OK;
}
