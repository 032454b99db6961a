/* SPDX-License-Identifier: Apache-2.0 */
/* JSON files as they come from outside. */
#ifndef DLXI_CHECKPOINT_JSON_H
#define DLXI_CHECKPOINT_JSON_H

#include "base/error.h"

#include <jansson.h>

/* text[bytes] of the file `path`, with or without a byte order mark; the caller's reference. NULL,
 * and DLX_DATA in *error, if it is not JSON or repeats a key. */
json_t *dlxi_json_parse(const char *text, size_t bytes, const char *path, dlx_error *error);

enum { DLXI_JSON_SHOWN_BYTES = 97 };
/* For messages: truncated, without control characters. Both return dst. */
const char *dlxi_json_show_name(char dst[DLXI_JSON_SHOWN_BYTES], const char *name);
const char *dlxi_json_show_value(char dst[DLXI_JSON_SHOWN_BYTES], const json_t *value);

#endif
