/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a backend by name and resolves what precision the CPU allows. */
#include "kernels/internal.h"

#include "base/memory.h"
#include "kernels/onednn.h"

#include <stdlib.h>
#include <string.h>

typedef struct backend {
    const char *name;
    const dlxi_operations *operations;
    dlx_status (*open)(dlxi_kernels *k, dlx_error *error);
    void (*close)(dlxi_kernels *k);
} backend;

static const backend backends[] = {
    {"fast", &dlxi_fast_operations, dlxi_fast_open, dlxi_fast_close},
    {"ref", &dlxi_ref_operations, dlxi_ref_open, dlxi_ref_close},
};

static const backend *backend_find(const char *name) {
    if (strcmp(name, "auto") == 0) name = "fast";
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i].name, name) == 0) return &backends[i];
    return NULL;
}

dlx_status dlxi_kernels_open(dlxi_kernels **out, const char *backend_name, dlxi_precision precision,
                             int threads, dlx_error *error) {
    *out = NULL;
    const backend *chosen = backend_find(backend_name);
    if (chosen == NULL)
        DLX_FAIL(error, CONFIG, "kernels: no backend '%s'; use auto, fast or ref", backend_name);
    if (threads < 1)
        DLX_FAIL(error, CONFIG, "site.threads: %d is out of range; use 1 or more", threads);
    const bool reference = chosen->operations == &dlxi_ref_operations;
    if (precision == DLXI_PRECISION_BF16 && reference)
        DLX_FAIL(error, CONFIG,
                 "kernels: the backend ref computes in f32 only; set train.precision: f32 or auto");
    if (precision == DLXI_PRECISION_BF16 && !dlxi_onednn_has_bf16())
        DLX_FAIL(error, CONFIG,
                 "train.precision: bf16 needs a CPU with AVX-512-BF16; set train.precision: f32 or "
                 "auto");

    dlxi_kernels *k = NULL;
    DLX_TRY(DLXI_NEW(&k, 1, error));
    k->op = chosen->operations;
    k->precision = precision;
    if (reference)
        k->precision = DLXI_PRECISION_F32;
    else if (precision == DLXI_PRECISION_AUTO)
        k->precision = dlxi_onednn_has_bf16() ? DLXI_PRECISION_BF16 : DLXI_PRECISION_F32;
    k->threads = threads;
    dlx_status status = chosen->open(k, error);
    if (status != DLX_OK) dlxi_kernels_close(&k);
    *out = k;
    return status;
}

void dlxi_kernels_close(dlxi_kernels **kernels) {
    dlxi_kernels *k = *kernels;
    if (k == NULL) return;
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (backends[i].operations == k->op) backends[i].close(k);
    free(k);
    *kernels = NULL;
}
