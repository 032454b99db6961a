/* SPDX-License-Identifier: Apache-2.0 */
/* The version that this library was built as. */
#include <dilocox.h>

const char *dlx_version(void) {
    return DLX_VERSION_TEXT;
}

uint32_t dlx_version_number(void) {
    return DLX_VERSION_NUMBER;
}
