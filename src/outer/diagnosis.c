/* SPDX-License-Identifier: Apache-2.0 */
#include "outer/diagnosis.h"

#include <math.h>

#include "base/simd.h"

enum { LANES = 16, SUMS = 6 };

static inline void lane_add(float sum[SUMS][LANES], int lane, float m, float own, float mean,
                            float v) {
    sum[0][lane] += m * m;
    sum[1][lane] += (m - own) * (m - own);
    sum[2][lane] += mean * mean;
    sum[3][lane] += v * v;
    sum[4][lane] += m * mean;
    sum[5][lane] += mean * v;
}

DLXI_CLONES static void sums_of(float sum[SUMS][LANES], const float *restrict m,
                                const float *restrict own, const float *restrict mean,
                                const float *restrict v, int64_t count) {
    int64_t whole = count - count % LANES;
    for (int64_t k = 0; k < whole; k += LANES)
        for (int lane = 0; lane < LANES; lane++)
            lane_add(sum, lane, m[k + lane], own[k + lane], mean[k + lane], v[k + lane]);
    for (int64_t k = whole; k < count; k++)
        lane_add(sum, (int)(k - whole), m[k], own[k], mean[k], v[k]);
}

void dlxi_diagnosis_add(dlxi_diagnosis *d, const float *submitted, const float *own,
                        const float *mean, const float *momentum, int64_t count) {
    float sum[SUMS][LANES] = {{0}};
    double *const to[SUMS] = {&d->submitted,         &d->unsent,          &d->mean, &d->momentum,
                              &d->submitted_by_mean, &d->mean_by_momentum};
    sums_of(sum, submitted, own, mean, momentum, count);
    for (int s = 0; s < SUMS; s++)
        for (int lane = 0; lane < LANES; lane++) *to[s] += (double)sum[s][lane];
}

double dlxi_cosine(double product, double square, double other_square) {
    double norms = sqrt(square) * sqrt(other_square);
    return norms > 0 ? product / norms : 0;
}
