/* SPDX-License-Identifier: Apache-2.0 */
#include "base/name.h"

#include <string.h>

#include "base/limits.h"

_Static_assert(DLXI_SITE_NAME_MAX == 63, "as DLXI_NAME_RULE says");

bool dlxi_name_valid(const char *name) {
    if (name == NULL || name[0] == '\0' || name[0] == '.' || name[0] == '-') return false;
    size_t length =
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return name[length] == '\0' && length <= DLXI_SITE_NAME_MAX;
}
