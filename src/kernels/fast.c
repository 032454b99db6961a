/* SPDX-License-Identifier: Apache-2.0 */
/* The fast backend's table, its state, and how rows are split among threads. */
#include "kernels/fast.h"

#include "base/memory.h"
#include "base/resources.h"

#include <stdlib.h>

int dlxi_ranges(const dlxi_kernels *k, int64_t items, int64_t width) {
    /* below about 10 µs of work another thread costs more than it saves */
    const int64_t elements_min = 16384;
    int64_t ranges = items * width / elements_min;
    if (ranges > items) ranges = items;
    if (ranges > k->threads) ranges = k->threads;
    if (ranges > DLXI_RANGES_MAX) ranges = DLXI_RANGES_MAX;
    return ranges < 1 ? 1 : (int)ranges;
}

/* OpenMP ends the process if it lacks a thread, so that all are asked for, and started, here. */
static dlx_status threads_start(int threads, dlx_error *error) {
    if (threads == 1) return DLX_OK;
    DLX_TRY(dlxi_threads_need((size_t)threads - 1, "site.threads", error));
#ifdef _OPENMP
    int started = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp atomic
        started++;
    }
    if (started < threads)
        DLX_FAIL(error, SYSTEM, "site.threads: OpenMP started %d threads of %d; lower it", started,
                 threads);
#endif
    return DLX_OK;
}

static dlx_status backend_open(dlxi_kernels *k, dlx_error *error) {
    DLX_TRY(threads_start(k->threads, error));
    DLX_TRY(DLXI_NEW(&k->state, 1, error));
    DLX_TRY(dlxi_onednn_open(&k->state->products, k->threads, error));
    DLX_TRY(DLXI_NEW(&k->state->lanes, k->threads, error));
    for (int i = 0; i < k->threads; i++)
        DLX_TRY(dlxi_onednn_open(&k->state->lanes[i].products, 1, error));
    return DLX_OK;
}

static void backend_close(dlxi_kernels *k) {
    struct dlxi_kernels_state *s = k->state;
    if (s == NULL) return;
    for (int i = 0; s->lanes != NULL && i < k->threads; i++) {
        dlxi_onednn_close(&s->lanes[i].products);
        dlxi_scratch_free(&s->lanes[i].memory);
    }
    free(s->lanes);
    dlxi_onednn_close(&s->products);
    for (int64_t i = 0; i < s->converted_count; i++) free(s->converted[i].data);
    free(s->converted);
    dlxi_scratch_free(&s->factor_a);
    dlxi_scratch_free(&s->factor_b);
    dlxi_scratch_free(&s->partial);
    dlxi_scratch_free(&s->rope_table);
    free(s);
    k->state = NULL;
}

const dlxi_operations dlxi_fast_operations = {
    .name = "fast",
    .has_bf16 = dlxi_onednn_has_bf16,
    .open = backend_open,
    .close = backend_close,
    .linear_forward = dlxi_fast_linear_forward,
    .linear_backward = dlxi_fast_linear_backward,
    .weights_changed = dlxi_fast_weights_changed,
    .product = dlxi_fast_product,
    .symmetric_product = dlxi_fast_symmetric_product,
    .embedding_forward = dlxi_fast_embedding_forward,
    .embedding_backward = dlxi_fast_embedding_backward,
    .layernorm_forward = dlxi_fast_layernorm_forward,
    .layernorm_backward = dlxi_fast_layernorm_backward,
    .rmsnorm_forward = dlxi_fast_rmsnorm_forward,
    .rmsnorm_backward = dlxi_fast_rmsnorm_backward,
    .activation_forward = dlxi_fast_activation_forward,
    .activation_backward = dlxi_fast_activation_backward,
    .swiglu_forward = dlxi_fast_swiglu_forward,
    .swiglu_backward = dlxi_fast_swiglu_backward,
    .add = dlxi_fast_add,
    .rope = dlxi_fast_rope,
    .attention_forward = dlxi_fast_attention_forward,
    .attention_backward = dlxi_fast_attention_backward,
    .cross_entropy = dlxi_fast_cross_entropy,
    .adamw = dlxi_fast_adamw,
    .sum_of_squares = dlxi_fast_sum_of_squares,
};
