/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *dlx_status_text(dlx_status status) {
    static const char *const texts[] = {
#define TEXT(code, class, text) text,
        DLX_STATUS_TABLE(TEXT)
#undef TEXT
    };
    return (size_t)status < sizeof texts / sizeof *texts ? texts[status] : "unknown status";
}

dlx_status_class dlx_status_class_of(dlx_status status) {
    static const dlx_status_class classes[] = {
#define CLASS(code, class, text) class,
        DLX_STATUS_TABLE(CLASS)
#undef CLASS
    };
    return (size_t)status < sizeof classes / sizeof *classes ? classes[status] : DLX_CLASS_CALLER;
}

dlx_status dlxi_error_set(dlx_error *error, dlx_status status, const char *format, ...) {
    if (error != NULL) {
        int system_errno = errno;
        *error = (dlx_error){.status = status, .round = -1};
        if (status == DLX_SYSTEM) error->system_errno = system_errno;
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

void dlxi_error_prefix(dlx_error *error, const char *format, ...) {
    if (error == NULL) return;
    char old[sizeof error->message];
    memcpy(old, error->message, sizeof old);
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    if (used < 0 || (size_t)used >= sizeof error->message) return;
    snprintf(error->message + used, sizeof error->message - (size_t)used, "%s", old);
}

void dlxi_text_copy(char *dst, size_t dst_bytes, const char *src) {
    size_t length = strnlen(src, dst_bytes - 1);
    memcpy(dst, src, length);
    dst[length] = '\0';
}
