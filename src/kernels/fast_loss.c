/* SPDX-License-Identifier: Apache-2.0 */
/* Softmax and cross-entropy over the vocabulary, in place. */
#include "kernels/fast.h"

#include "base/simd.h"
#include "kernels/vector.h"

#include <math.h>

/* Sums blocks in f64 and within a block in f32: a vocabulary is too long for one f32 sum. keep: the
 * exponentials replace the row. */
static inline double exponentials(float *row, int64_t V, float largest, bool keep) {
    enum { BLOCK = 512 };
    double total = 0.0;
    for (int64_t begin = 0; begin < V; begin += BLOCK) {
        const int64_t end = begin + BLOCK < V ? begin + BLOCK : V;
        float sum = 0.0f;
        if (keep) {
#pragma omp simd reduction(+ : sum)
            for (int64_t v = begin; v < end; v++) {
                float e = dlxi_exp(row[v] - largest);
                row[v] = e;
                sum += e;
            }
        } else {
#pragma omp simd reduction(+ : sum)
            for (int64_t v = begin; v < end; v++) sum += dlxi_exp(row[v] - largest);
        }
        total += (double)sum;
    }
    return total;
}

DLXI_CLONES static double cross_entropy_rows(float *logits, const uint32_t *target, int64_t begin,
                                             int64_t end, int64_t V, bool gradient,
                                             float gradient_scale) {
    double loss = 0.0;
    for (int64_t n = begin; n < end; n++) {
        float *row = logits + n * V;
        float largest = -HUGE_VALF;
#pragma omp simd reduction(max : largest)
        for (int64_t v = 0; v < V; v++) largest = row[v] > largest ? row[v] : largest;
        const double chosen = (double)row[target[n]] - (double)largest;
        const double total = exponentials(row, V, largest, gradient);
        loss += log(total) - chosen;
        if (!gradient) continue;
        const float scale = (float)((double)gradient_scale / total);
#pragma omp simd
        for (int64_t v = 0; v < V; v++) row[v] *= scale;
        row[target[n]] -= gradient_scale;
    }
    return loss;
}

dlx_status dlxi_fast_cross_entropy(dlxi_kernels *k, double *loss_sum, float *logits,
                                   const uint32_t *target, int64_t N, int64_t V, bool gradient,
                                   float gradient_scale) {
    double part[DLXI_RANGES_MAX];
    const int ranges = dlxi_ranges(k, N, V);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        part[r] =
            cross_entropy_rows(logits, target, dlxi_range_begin(N, r, ranges),
                               dlxi_range_begin(N, r + 1, ranges), V, gradient, gradient_scale);
    for (int r = 0; r < ranges; r++) *loss_sum += part[r];
    return DLX_OK;
}
