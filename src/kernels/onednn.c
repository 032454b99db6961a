/* SPDX-License-Identifier: Apache-2.0 */
/* oneDNN 2.x behind one interface: matmul primitives, cached by shape. */
#include "kernels/onednn.h"

#include "base/memory.h"
#include "base/resources.h"
#include "kernels/internal.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if DNNL_VERSION_MAJOR != 2
#error "onednn.c is written for oneDNN 2.x, whose C API has matmul descriptors"
#endif

/* Shapes vary with the batch and, in generation, with every token: a full cache is cleared. Twice
 * as many slots keep probing short. */
enum { ENTRIES_MAX = 1024, SLOTS = 2048, CODE_BYTES = 16 << 20 };

enum { SOURCE, WEIGHTS, BIAS, DESTINATION, SCRATCHPAD, ARGUMENTS };

typedef struct entry {
    dlxi_product key;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[ARGUMENTS]; /* pointers are set at each call */
    size_t scratchpad_bytes;
} entry;

struct dlxi_onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int threads;
    int count;
    entry *slots[SLOTS];
    dlxi_scratch scratchpad;
};

static dlx_status status_translate(dnnl_status_t status) {
    if (status == dnnl_success) return DLX_OK;
    return status == dnnl_out_of_memory ? DLX_MEMORY : DLX_SYSTEM;
}

#define DNNL_TRY(call) DLX_TRY(status_translate(call))

bool dlxi_onednn_has_bf16(void) {
    unsigned isa = (unsigned)dnnl_get_effective_cpu_isa(),
             wanted = (unsigned)dnnl_cpu_isa_avx512_core_bf16;
    return (isa & wanted) == wanted;
}

/* oneDNN uses OpenMP's pool, whose size is a property of the calling thread. */
static void threads_cap(const dlxi_onednn *o) {
#ifdef _OPENMP
    omp_set_num_threads(o->threads);
#else
    (void)o;
#endif
}

static void entry_free(entry *e) {
    if (e == NULL) return;
    for (int i = 0; i < ARGUMENTS; i++)
        if (e->memory[i] != NULL) dnnl_memory_destroy(e->memory[i]);
    if (e->primitive != NULL) dnnl_primitive_destroy(e->primitive);
    free(e);
}

static void entries_clear(dlxi_onednn *o) {
    for (int i = 0; i < SLOTS; i++) {
        entry_free(o->slots[i]);
        o->slots[i] = NULL;
    }
    o->count = 0;
}

dlx_status dlxi_onednn_open(dlxi_onednn **out, int threads, dlx_error *error) {
    dlxi_onednn *o = NULL;
    *out = NULL;
    DLX_TRY(DLXI_NEW(&o, 1, error));
    o->threads = threads;
    dnnl_status_t status = dnnl_engine_create(&o->engine, dnnl_cpu, 0);
    if (status == dnnl_success)
        status = dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags);
    if (status != dnnl_success) {
        dlxi_onednn_close(&o);
        DLX_FAIL(error, SYSTEM,
                 "kernels: oneDNN has no CPU engine (status %d); use the backend ref", (int)status);
    }
    *out = o;
    return DLX_OK;
}

void dlxi_onednn_close(dlxi_onednn **pointer) {
    dlxi_onednn *o = *pointer;
    if (o == NULL) return;
    entries_clear(o);
    if (o->stream != NULL) dnnl_stream_destroy(o->stream);
    if (o->engine != NULL) dnnl_engine_destroy(o->engine);
    dlxi_scratch_free(&o->scratchpad);
    free(o);
    *pointer = NULL;
}

/* ---- cache ----------------------------------------------------------------------------------- */

static bool product_equal(const dlxi_product *a, const dlxi_product *b) {
    return a->M == b->M && a->N == b->N && a->K == b->K && a->a_stride == b->a_stride &&
           a->b_stride == b->b_stride && a->c_stride == b->c_stride && a->alpha == b->alpha &&
           a->beta == b->beta && a->transpose_a == b->transpose_a &&
           a->transpose_b == b->transpose_b && a->bf16 == b->bf16 && a->bias == b->bias;
}

/* The slot of p, or the free one for it. */
static entry **slot_find(dlxi_onednn *o, const dlxi_product *p) {
    uint64_t hash = (uint64_t)p->M;
    hash = hash * UINT64_C(0x9E3779B97F4A7C15) + (uint64_t)p->N;
    hash = hash * UINT64_C(0x9E3779B97F4A7C15) + (uint64_t)p->K;
    hash = hash * 2 + (p->transpose_a ? 1 : 0);
    hash = hash * 2 + (p->transpose_b ? 1 : 0);
    hash *= UINT64_C(0x9E3779B97F4A7C15);
    size_t i = (size_t)(hash >> 32) % SLOTS;
    while (o->slots[i] != NULL && !product_equal(&o->slots[i]->key, p)) i = (i + 1) % SLOTS;
    return &o->slots[i];
}

/* Rank 2, row-major [rows,columns] or its transpose; stride 0: dense. */
static dnnl_status_t memory_describe(dnnl_memory_desc_t *out, dnnl_data_type_t type, int64_t rows,
                                     int64_t columns, bool transposed, int64_t stride) {
    if (stride == 0) stride = transposed ? rows : columns;
    const dnnl_dims_t dims = {rows, columns};
    const dnnl_dims_t strides = {transposed ? 1 : stride, transposed ? stride : 1};
    return dnnl_memory_desc_init_by_strides(out, 2, dims, type, strides);
}

static dnnl_status_t attributes_set(dnnl_primitive_attr_t attributes, dnnl_post_ops_t post,
                                    const dlxi_product *p) {
    dnnl_status_t status =
        dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    if (status == dnnl_success && p->alpha != 1.0f)
        status = dnnl_primitive_attr_set_output_scales(attributes, 1, 0, &p->alpha);
    if (status == dnnl_success && p->beta != 0.0f) status = dnnl_post_ops_append_sum(post, p->beta);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(attributes, post);
    return status;
}

/* Creates the primitive and its memory objects. */
static dnnl_status_t entry_build(dlxi_onednn *o, entry *e, dnnl_primitive_attr_t attributes,
                                 const dnnl_memory_desc_t *shape) {
    const dlxi_product *p = &e->key;
    dnnl_matmul_desc_t description;
    dnnl_primitive_desc_t descriptor = NULL;
    dnnl_status_t status =
        dnnl_matmul_desc_init(&description, &shape[SOURCE], &shape[WEIGHTS],
                              p->bias ? &shape[BIAS] : NULL, &shape[DESTINATION]);
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(&descriptor, &description, attributes, o->engine, NULL);
    if (status != dnnl_success) return status;

    const dnnl_memory_desc_t *scratchpad =
        dnnl_primitive_desc_query_md(descriptor, dnnl_query_scratchpad_md, 0);
    e->scratchpad_bytes = dnnl_memory_desc_get_size(scratchpad);
    status = dnnl_primitive_create(&e->primitive, descriptor);
    for (int i = 0; i < ARGUMENTS && status == dnnl_success; i++) {
        if (i == BIAS && !p->bias) continue;
        const dnnl_memory_desc_t *memory = i == SCRATCHPAD ? scratchpad : &shape[i];
        status = dnnl_memory_create(&e->memory[i], memory, o->engine, DNNL_MEMORY_NONE);
    }
    dnnl_primitive_desc_destroy(descriptor);
    return status;
}

static dnnl_status_t entry_create(dlxi_onednn *o, entry *e) {
    const dlxi_product *p = &e->key;
    const dnnl_data_type_t type = p->bf16 ? dnnl_bf16 : dnnl_f32;
    dnnl_memory_desc_t shape[ARGUMENTS];
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_status_t status =
        memory_describe(&shape[SOURCE], type, p->M, p->K, p->transpose_a, p->a_stride);
    if (status == dnnl_success)
        status = memory_describe(&shape[WEIGHTS], type, p->K, p->N, p->transpose_b, p->b_stride);
    if (status == dnnl_success) status = memory_describe(&shape[BIAS], dnnl_f32, 1, p->N, false, 0);
    if (status == dnnl_success)
        status = memory_describe(&shape[DESTINATION], dnnl_f32, p->M, p->N, false, p->c_stride);
    if (status == dnnl_success) status = dnnl_primitive_attr_create(&attributes);
    if (status == dnnl_success) status = dnnl_post_ops_create(&post);
    if (status == dnnl_success) status = attributes_set(attributes, post, p);
    if (status == dnnl_success) status = entry_build(o, e, attributes, shape);
    if (post != NULL) dnnl_post_ops_destroy(post);
    if (attributes != NULL) dnnl_primitive_attr_destroy(attributes);
    return status;
}

static dlx_status entry_find(dlxi_onednn *o, const dlxi_product *p, entry **out) {
    entry **slot = slot_find(o, p);
    if (*slot == NULL) {
        if (o->count == ENTRIES_MAX) {
            entries_clear(o);
            slot = slot_find(o, p);
        }
        entry *e = NULL;
        /* oneDNN writes its code to memory that it does not check for */
        if (!dlxi_memory_has(CODE_BYTES)) return DLX_MEMORY;
        DLX_TRY(DLXI_NEW(&e, 1, NULL));
        e->key = *p;
        dlx_status status = status_translate(entry_create(o, e));
        if (status != DLX_OK) {
            entry_free(e);
            return status;
        }
        *slot = e;
        o->count++;
    }
    *out = *slot;
    return DLX_OK;
}

/* oneDNN's handles are not const; it only reads the sources. */
static void *writable(const void *data) {
    void *pointer;
    memcpy(&pointer, &data, sizeof pointer);
    return pointer;
}

dlx_status dlxi_onednn_run(dlxi_onednn *o, const dlxi_product *product, float *c, const void *a,
                           const void *b, const float *bias) {
    static const int names[ARGUMENTS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS,
                                         DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    entry *e = NULL;
    threads_cap(o);
    DLX_TRY(entry_find(o, product, &e));
    DLX_TRY(dlxi_scratch_reserve(&o->scratchpad, e->scratchpad_bytes, 1));

    void *data[ARGUMENTS] = {writable(a), writable(b), writable(bias), c, o->scratchpad.data};
    dnnl_exec_arg_t arguments[ARGUMENTS];
    int count = 0;
    for (int i = 0; i < ARGUMENTS; i++) {
        if (e->memory[i] == NULL) continue;
        DNNL_TRY(dnnl_memory_set_data_handle(e->memory[i], data[i]));
        arguments[count++] = (dnnl_exec_arg_t){names[i], e->memory[i]};
    }
    return status_translate(dnnl_primitive_execute(e->primitive, o->stream, count, arguments));
}
