/* SPDX-License-Identifier: Apache-2.0 */
/* The linear model that says whether an outer step suits a method: its recurrence in one direction.
 */
#ifndef DLXI_OUTER_STABILITY_H
#define DLXI_OUTER_STABILITY_H

#include "base/error.h"

/* The larger magnitude of the recurrence's eigenvalues in a direction in which H local steps go a
 * share c of the way to the optimum (pseudo-gradient = c·(p − p*)), for D equal sites.
 *   mean           all sites equal
 *   disagreement   the sites' differences, which sum to zero (0 if every round starts at θ)
 * exchange_share: the exchange's time as a share of the round's, (0, 1]. */
typedef struct dlxi_modes {
    double mean, disagreement;
} dlxi_modes;

enum { DLXI_MODE_STATES = 4 };
typedef double dlxi_matrix[DLXI_MODE_STATES][DLXI_MODE_STATES];

/* The largest magnitude of a's eigenvalues; a is overwritten. */
double dlxi_spectral_radius(dlxi_matrix a);

#endif
