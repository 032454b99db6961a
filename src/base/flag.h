/* SPDX-License-Identifier: Apache-2.0 */
/* A stop flag that a signal handler or another thread sets, read atomically if the compiler can. */
#ifndef DLXI_BASE_FLAG_H
#define DLXI_BASE_FLAG_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

/* flag may be NULL: false. */
static inline bool dlxi_flag_is_set(const volatile sig_atomic_t *flag) {
#if defined(__GNUC__) || defined(__clang__)
    return flag != NULL && __atomic_load_n(flag, __ATOMIC_RELAXED);
#else
    return flag != NULL && *flag;
#endif
}

#endif
