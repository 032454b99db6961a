/* SPDX-License-Identifier: Apache-2.0 */
/* Statuses and errors: how every fallible function reports. */
#ifndef DLXI_BASE_ERROR_H
#define DLXI_BASE_ERROR_H

#include "dilocox.h"

#if defined(__GNUC__) || defined(__clang__)
#define DLXI_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define DLXI_PRINTF(format_index, first)
#endif

/* Fills error (may be NULL) and returns status; with DLX_SYSTEM it records errno. */
dlx_status dlxi_error_set(dlx_error *error, dlx_status status, const char *format, ...)
    DLXI_PRINTF(3, 4);

/* Puts a prefix before the message; error may be NULL. */
void dlxi_error_prefix(dlx_error *error, const char *format, ...) DLXI_PRINTF(2, 3);

/* Copies text, truncated if it does not fit dst_bytes with its terminator. */
void dlxi_text_copy(char *dst, size_t dst_bytes, const char *src);

/* DLX_FAIL(error, DATA, "%s: …", path), DLX_TRY(call): for functions with nothing to release. */
#define DLX_FAIL(error, code, ...)                                                                 \
    return (void)dlxi_error_set((error), DLX_##code, __VA_ARGS__), DLX_##code

/* For public functions, which have an `error`: names the function and the argument. */
#define DLXI_NOT_NULL(pointer)                                                                     \
    do {                                                                                           \
        if ((pointer) == NULL) DLX_FAIL(error, ARGUMENT, "%s: %s is NULL", __func__, #pointer);    \
    } while (0)

#define DLX_TRY(call)                                                                              \
    do {                                                                                           \
        dlx_status dlx_try_status_ = (call);                                                       \
        if (dlx_try_status_ != DLX_OK) return dlx_try_status_;                                     \
    } while (0)

/* For functions with a `dlx_status status` and one `out:` that releases in reverse order. */
#define DLX_TRY_OUT(call)                                                                          \
    do {                                                                                           \
        status = (call);                                                                           \
        if (status != DLX_OK) goto out;                                                            \
    } while (0)

#define DLX_FAIL_OUT(error, code, ...)                                                             \
    do {                                                                                           \
        (void)dlxi_error_set((error), DLX_##code, __VA_ARGS__);                                    \
        status = DLX_##code;                                                                       \
        goto out;                                                                                  \
    } while (0)

#endif
