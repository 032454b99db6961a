/* SPDX-License-Identifier: Apache-2.0 */
/* Which outer step suits which overlap: names, defaults, and the linear model that says whether a
 * setting is stable. */
#ifndef DLXI_OUTER_STABILITY_H
#define DLXI_OUTER_STABILITY_H

#include "base/error.h"

/* The larger magnitude of the recurrence's eigenvalues in a direction in which H local steps go a
 * share c of the way to the optimum (design: pseudo-gradient = c·(p − p*)), for D equal sites.
 *   mean           all sites alike
 *   disagreement   the sites' differences, which sum to zero (0 where every round starts at the anchor)
 * exchange_share: the exchange's time as a share of the round's, (0, 1]; only `carry` depends on
 * it. */
typedef struct dlxi_modes {
    double mean, disagreement;
} dlxi_modes;

dlxi_modes dlxi_stability_modes(dlx_overlap overlap, double learning_rate, double momentum,
                                double c, int sites, double exchange_share);

/* The largest mode over c = 0.02, 0.04, …, 1, and where it is reached. */
double dlxi_stability_worst(dlx_overlap overlap, double learning_rate, double momentum, int sites,
                            double exchange_share, double *worst_c);

/* What `auto` stands for; docs/convergence.md has the measurements. */
void dlxi_outer_defaults(dlx_overlap overlap, double *learning_rate, double *momentum);

#endif
