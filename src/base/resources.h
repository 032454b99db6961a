/* SPDX-License-Identifier: Apache-2.0 */
/* What the system still grants: asked before a library needs it that ends the process without. */
#ifndef DLXI_BASE_RESOURCES_H
#define DLXI_BASE_RESOURCES_H

#include "base/error.h"

/* DLX_SYSTEM unless this many more files and sockets can be opened: says how many the process needs
 * in all, and how many are allowed. If that is enough, raises its soft limit (RLIMIT_NOFILE) within
 * the hard one. `what` needs them. */
dlx_status dlxi_descriptors_need(size_t count, const char *what, dlx_error *error);

/* DLX_SYSTEM unless this many more threads can be started: starts them, and ends them. */
dlx_status dlxi_threads_need(size_t count, const char *what, dlx_error *error);

/* Whether this much more memory can be mapped at once. */
bool dlxi_memory_has(size_t bytes);

/* The process's largest resident size, in bytes, since the last reset. Not getrusage's, which is
 * also that of the program that it was forked from. 0, and no reset, where the system has none. */
uint64_t dlxi_memory_peak(void);
void dlxi_memory_peak_reset(void);

#endif
