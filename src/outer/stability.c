/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/stability.h"

#include <math.h>
#include <string.h>

/* ρ(A) = lim ‖A^n‖^(1/n), by squaring with the norm taken out each time: no eigenvalue is computed,
 * so complex pairs and defective matrices need no care. */
double dlxi_spectral_radius(dlxi_matrix a) {
    enum { SQUARINGS = 30 };
    double log_radius = 0, power = 1;
    for (int i = 0; i < SQUARINGS; i++) {
        double norm = 0;
        for (int r = 0; r < DLXI_MODE_STATES; r++)
            for (int c = 0; c < DLXI_MODE_STATES; c++) norm += a[r][c] * a[r][c];
        norm = sqrt(norm);
        if (norm < 1e-150) return 0;
        log_radius += log(norm) / power;
        dlxi_matrix scaled, square = {{0}};
        for (int r = 0; r < DLXI_MODE_STATES; r++)
            for (int c = 0; c < DLXI_MODE_STATES; c++) scaled[r][c] = a[r][c] / norm;
        for (int r = 0; r < DLXI_MODE_STATES; r++)
            for (int k = 0; k < DLXI_MODE_STATES; k++)
                for (int c = 0; c < DLXI_MODE_STATES; c++)
                    square[r][c] += scaled[r][k] * scaled[k][c];
        memcpy(a, square, sizeof square);
        power *= 2;
    }
    return exp(log_radius);
}
