/* SPDX-License-Identifier: Apache-2.0 */
/* The monotonic clock, and the middle of what was measured by it. */
#ifndef DLXI_BASE_CLOCK_H
#define DLXI_BASE_CLOCK_H

#include <stdint.h>

int64_t dlxi_clock_ns(void);
double dlxi_clock_s(void);

/* Sorts values[count], count ≥ 1, ascending; the median, of an even count the upper one. */
double dlxi_median(double *values, int count);

#endif
