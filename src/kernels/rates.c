/* SPDX-License-Identifier: Apache-2.0 */
/* The speed of a bare product and of memory, which a training step's speed is compared with. */
#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"
#include "kernels/fast.h"

#include <stdlib.h>

enum { SIZE = 1024, RUNS = 5, FLOATS = 1 << 25 };

dlx_status dlxi_kernels_product_rate(double *flops_per_s, dlxi_precision precision, int threads,
                                     dlx_error *error) {
    const int64_t n = SIZE;
    dlx_status status = DLX_OK;
    dlxi_onednn *products = NULL;
    float *values = NULL, *c = NULL;
    uint16_t *halves = NULL;
    bool bf16 = precision == DLXI_PRECISION_BF16;
    double best_s = 1e30;
    DLX_TRY_OUT(dlxi_onednn_open(&products, threads, error));
    DLX_TRY_OUT(DLXI_NEW(&values, 2 * n * n, error));
    DLX_TRY_OUT(DLXI_NEW(&halves, 2 * n * n, error));
    DLX_TRY_OUT(DLXI_NEW(&c, n * n, error));
    for (int64_t i = 0; i < 2 * n * n; i++) values[i] = dlxi_rng_normal(1, 0, (uint64_t)i);
    dlxi_to_bf16(halves, values, 2 * n, n, n, 1.0f);
    const dlxi_product product = {
        .M = n, .N = n, .K = n, .alpha = 1, .transpose_b = true, .bf16 = bf16};
    const void *a = bf16 ? (void *)halves : (void *)values;
    const void *b = bf16 ? (void *)(halves + n * n) : (void *)(values + n * n);
    for (int run = -1; run < RUNS; run++) { /* run −1 builds the primitive and warms up */
        double begun_s = dlxi_clock_s();
        DLX_TRY_OUT(dlxi_onednn_run(products, &product, c, a, b, NULL));
        double s = dlxi_clock_s() - begun_s;
        if (run >= 0 && s < best_s) best_s = s;
    }
    *flops_per_s = 2.0 * (double)n * (double)n * (double)n / best_s;
out:
    dlxi_onednn_close(&products);
    free(values);
    free(halves);
    free(c);
    return status;
}

dlx_status dlxi_kernels_memory_rate(double *bytes_per_s, dlxi_kernels *k, dlx_error *error) {
    dlx_status status = DLX_OK;
    float *x = NULL, *y = NULL;
    double best_s = 1e30;
    DLX_TRY_OUT(DLXI_NEW(&x, FLOATS, error));
    DLX_TRY_OUT(DLXI_NEW(&y, FLOATS, error));
    for (int run = -1; run < RUNS; run++) { /* run −1 touches the pages */
        double begun_s = dlxi_clock_s();
        DLX_TRY_OUT(k->op->add(k, y, x, FLOATS));
        double s = dlxi_clock_s() - begun_s;
        if (run >= 0 && s < best_s) best_s = s;
    }
    *bytes_per_s = 3.0 * sizeof(float) * FLOATS / best_s;
out:
    free(x);
    free(y);
    return status;
}
