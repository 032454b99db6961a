/* SPDX-License-Identifier: Apache-2.0 */
/* Lines on their way to a dlx_log that comes on one thread only: other threads add them, and the
 * thread that owns the object delivers them inside its calls. Nobody waits for the callback. */
#ifndef DLXI_BASE_LOG_RING_H
#define DLXI_BASE_LOG_RING_H

#include "base/error.h"

enum { DLXI_LOG_RING_LINES = 64 };

typedef struct dlxi_log_ring dlxi_log_ring;

/* *out ← NULL if log is NULL: all functions take that, and do nothing. */
dlx_status dlxi_log_ring_open(dlxi_log_ring **out, dlx_log log, void *context, dlx_error *error);
/* Delivers what it has. No other thread adds to it any more. */
void dlxi_log_ring_close(dlxi_log_ring **ring);

/* A dlx_log whose context is the ring. Any thread. A line that does not fit is truncated; one that
 * has no room is lost and counted. */
void dlxi_log_ring_add(void *ring, const char *line);

/* The owner's thread: the lines so far, oldest first; in place of lost ones, how many they were. */
void dlxi_log_ring_deliver(dlxi_log_ring *ring);

#endif
