/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

json_t *dlxi_json_parse(const char *text, size_t bytes, const char *path, dlx_error *error) {
    static const char mark[] = "\xEF\xBB\xBF";
    size_t mark_bytes = sizeof mark - 1;
    json_error_t problem;
    if (bytes >= mark_bytes && memcmp(text, mark, mark_bytes) == 0)
        text += mark_bytes, bytes -= mark_bytes;
    json_t *json = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &problem);
    if (json == NULL)
        dlxi_error_set(error, DLX_DATA, "%s:%d: not JSON: %.120s", path, problem.line,
                       problem.text);
    return json;
}

const char *dlxi_json_show_name(char dst[DLXI_JSON_SHOWN_BYTES], const char *name) {
    snprintf(dst, DLXI_JSON_SHOWN_BYTES, "%s", name);
    for (char *c = dst; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
    return dst;
}

const char *dlxi_json_show_value(char dst[DLXI_JSON_SHOWN_BYTES], const json_t *value) {
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
    snprintf(dst, DLXI_JSON_SHOWN_BYTES, "%.90s%s", text != NULL ? text : "?",
             text != NULL && strlen(text) > 90 ? ".." : "");
    free(text);
    return dst;
}
