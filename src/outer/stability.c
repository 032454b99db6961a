/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/stability.h"

#include <math.h>
#include <string.h>

enum { STATES = 4 };
typedef double matrix[STATES][STATES];

/* ρ(A) = lim ‖A^n‖^(1/n), by squaring with the norm taken out each time: no eigenvalue is ever
 * computed, so that complex pairs and defective matrices need no care. */
static double spectral_radius(matrix a) {
    enum { SQUARINGS = 30 };
    double log_radius = 0, power = 1;
    for (int i = 0; i < SQUARINGS; i++) {
        double norm = 0;
        for (int r = 0; r < STATES; r++)
            for (int c = 0; c < STATES; c++) norm += a[r][c] * a[r][c];
        norm = sqrt(norm);
        if (norm < 1e-150) return 0;
        log_radius += log(norm) / power;
        matrix scaled, square = {{0}};
        for (int r = 0; r < STATES; r++)
            for (int c = 0; c < STATES; c++) scaled[r][c] = a[r][c] / norm;
        for (int r = 0; r < STATES; r++)
            for (int k = 0; k < STATES; k++)
                for (int c = 0; c < STATES; c++) square[r][c] += scaled[r][k] * scaled[k][c];
        memcpy(a, square, sizeof square);
        power *= 2;
    }
    return exp(log_radius);
}

/* State: anchor θ, velocity v, pseudo-gradient in flight d, local start s; the optimum is 0. */
enum { ANCHOR, VELOCITY, FLYING, START };

/* θ' = θ − η(d + μ v'), v' = μ v + d: the outer step on what was in flight. */
static void outer_rows(matrix a, double eta, double mu) {
    a[ANCHOR][ANCHOR] = 1;
    a[ANCHOR][FLYING] = -eta * (1 + mu);
    a[ANCHOR][VELOCITY] = -eta * mu * mu;
    a[VELOCITY][VELOCITY] = mu;
    a[VELOCITY][FLYING] = 1;
}

dlxi_modes dlxi_stability_modes(dlx_overlap overlap, double eta, double mu, double c, int sites,
                                double exchange_share) {
    matrix a = {{0}};
    dlxi_modes modes = {0, 0};
    switch (overlap) {
    case DLX_OVERLAP_ALLREDUCE:
    case DLX_OVERLAP_NONE: /* d = c θ at once */
        a[ANCHOR][ANCHOR] = 1 - eta * (1 + mu) * c;
        a[ANCHOR][VELOCITY] = -eta * mu * mu;
        a[VELOCITY][ANCHOR] = c;
        a[VELOCITY][VELOCITY] = mu;
        break;
    case DLX_OVERLAP_DELAYED: /* d' = c θ, measured before the step */
        outer_rows(a, eta, mu);
        a[FLYING][ANCHOR] = c;
        break;
    case DLX_OVERLAP_EAGER: { /* d' = c s; s' = θ' − η(1+μ)/D · (c s − d) */
        double own = eta * (1 + mu) / sites;
        outer_rows(a, eta, mu);
        a[FLYING][START] = c;
        memcpy(a[START], a[ANCHOR], sizeof a[START]);
        a[START][START] -= own * c;
        a[START][FLYING] += own;
        /* differences: θ = v = 0, s' = −own · (c s − d), d' = c s */
        matrix b = {{0}};
        b[FLYING][START] = c;
        b[START][START] = -own * c;
        b[START][FLYING] = own;
        modes.disagreement = spectral_radius(b);
        break;
    }
    case DLX_OVERLAP_CARRY: {
        /* During the exchange s goes a share `early` of its way, g = early · s; then p = θ' − g
         * goes a share `late`. */
        double early = 1 - pow(1 - c, exchange_share), late = 1 - pow(1 - c, 1 - exchange_share);
        outer_rows(a, eta, mu);
        for (int i = 0; i < STATES; i++) {
            double carried = a[ANCHOR][i] - (i == START ? early : 0);
            a[START][i] = (1 - late) * carried;
            a[FLYING][i] = a[ANCHOR][i] - a[START][i];
        }
        modes.disagreement = (1 - late) * early;
        break;
    }
    }
    modes.mean = spectral_radius(a);
    return modes;
}

double dlxi_stability_worst(dlx_overlap overlap, double eta, double mu, int sites,
                            double exchange_share, double *worst_c) {
    double worst = -1;
    for (int i = 1; i <= 50; i++) {
        dlxi_modes modes = dlxi_stability_modes(overlap, eta, mu, 0.02 * i, sites, exchange_share);
        double larger = fmax(modes.mean, modes.disagreement);
        if (larger > worst) {
            worst = larger;
            if (worst_c != NULL) *worst_c = 0.02 * i;
        }
    }
    return worst;
}

void dlxi_outer_defaults(dlx_overlap overlap, double *learning_rate, double *momentum) {
    switch (overlap) {
    case DLX_OVERLAP_ALLREDUCE:
    case DLX_OVERLAP_NONE:
        *learning_rate = 0.7, *momentum = 0.7;
        break;
    case DLX_OVERLAP_DELAYED:
        *learning_rate = 0.7, *momentum = 0.0;
        break;
    case DLX_OVERLAP_EAGER:
        *learning_rate = 0.7, *momentum = 0.3;
        break;
    case DLX_OVERLAP_CARRY:
        *learning_rate = 0.7, *momentum = 0.7;
        break;
    }
}
