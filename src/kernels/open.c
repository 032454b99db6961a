/* SPDX-License-Identifier: Apache-2.0 */
/* The list of backends, and opening one by name at a precision. */
#include "kernels/internal.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

const char *const dlxi_kernels_backends[] = {"auto", "fast", "ref", NULL};

/* "auto" is the first. */
static const dlxi_operations *const backends[] = {&dlxi_fast_operations, &dlxi_ref_operations};

static const dlxi_operations *backend_find(const char *name) {
    if (strcmp(name, "auto") == 0) return backends[0];
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i]->name, name) == 0) return backends[i];
    return NULL;
}

dlx_status dlxi_kernels_open(dlxi_kernels **out, const char *backend, dlxi_precision precision,
                             int threads, dlx_error *error) {
    *out = NULL;
    const dlxi_operations *op = backend_find(backend);
    if (op == NULL)
        DLX_FAIL(error, CONFIG, "kernels: unknown backend '%s'; choose auto, fast or ref", backend);
    if (threads < 1)
        DLX_FAIL(error, CONFIG, "site.threads: %d is out of range; allowed: 1 or more", threads);
    if (precision == DLXI_PRECISION_BF16 && op->has_bf16 == NULL)
        DLX_FAIL(error, CONFIG,
                 "train.precision: backend %s has no bf16; set train.precision: f32 or auto",
                 op->name);
    const bool bf16 = op->has_bf16 != NULL && op->has_bf16();
    if (precision == DLXI_PRECISION_BF16 && !bf16)
        DLX_FAIL(error, CONFIG,
                 "train.precision: bf16 needs a CPU with AVX-512-BF16; set train.precision: f32 or "
                 "auto");

    dlxi_kernels *k = NULL;
    DLX_TRY(DLXI_NEW(&k, 1, error));
    k->op = op;
    k->precision =
        precision == DLXI_PRECISION_F32 || !bf16 ? DLXI_PRECISION_F32 : DLXI_PRECISION_BF16;
    k->threads = threads;
    dlx_status status = op->open(k, error);
    if (status != DLX_OK) dlxi_kernels_close(&k);
    *out = k;
    return status;
}

void dlxi_kernels_close(dlxi_kernels **kernels) {
    if (*kernels != NULL) (*kernels)->op->close(*kernels);
    free(*kernels);
    *kernels = NULL;
}
