/* SPDX-License-Identifier: Apache-2.0 */
/* No allocation after the first step of a shape; and what opening a backend refuses. */
#include "kernel_test.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

/* The linker routes our code's calls here (--wrap), but not oneDNN's: mallinfo2 sees those. */
static int allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *pointer, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *pointer, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

void *__wrap_malloc(size_t size) {
    allocations++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size) {
    allocations++;
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *pointer, size_t size) {
    allocations++;
    return __real_realloc(pointer, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    allocations++;
    return __real_aligned_alloc(alignment, size);
}

enum {
    B = 3,
    T = 40,
    N = B * T,
    HEADS = 4,
    KV = 2,
    D = 16,
    C = HEADS * D,
    MLP = 96,
    VOCABULARY = 130
};

/* Every operation of the table once. Training and evaluation alternate between two lengths. */
static void step(dlxi_kernels *k, float *const *x, const uint32_t *token, int64_t length) {
    const dlxi_operations *op = k->op;
    const dlxi_adamw settings = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1.0f, 1};
    double loss = 0.0;
    const int64_t n = B * length;
    OK(op->embedding_forward(k, x[0], token, x[1], x[2], n, length, C));
    OK(op->layernorm_forward(k, x[3], x[4], x[5], x[0], x[1], x[2], n, C, 1e-5f));
    OK(op->rmsnorm_forward(k, x[3], x[5], x[0], x[1], n, C, 1e-5f));
    OK(op->linear_forward(k, x[4], x[3], x[6], x[2], n, C, C));
    OK(op->rope(k, x[4], n, length, HEADS, D, 1e4f, false));
    OK(op->attention_forward(k, x[5], x[7], x[4], x[0], x[3], B, length, HEADS, KV, D));
    OK(op->attention_backward(k, x[8], x[9], x[10], x[0], x[5], x[7], x[4], x[0], x[3], B, length,
                              HEADS, KV, D));
    OK(op->linear_forward(k, x[8], x[3], x[11], NULL, n, C, MLP));
    OK(op->swiglu_forward(k, x[9], x[8], x[8], n * MLP));
    OK(op->swiglu_backward(k, x[8], x[10], x[9], x[9], x[9], n * MLP));
    OK(op->activation_forward(k, x[9], x[8], DLXI_GELU, n * MLP));
    OK(op->activation_backward(k, x[9], x[9], x[8], DLXI_GELU, n * MLP));
    OK(op->linear_backward(k, x[4], x[12], x[13], x[9], x[3], x[11], n, C, MLP));
    OK(op->linear_forward(k, x[8], x[3], x[1], NULL, n, C, VOCABULARY));
    OK(op->cross_entropy(k, &loss, x[8], token, n, VOCABULARY, true, 1.0f));
    OK(op->linear_backward(k, x[4], x[12], NULL, x[8], x[3], x[1], n, C, VOCABULARY));
    OK(op->layernorm_backward(k, x[10], x[13], x[14], x[4], x[0], x[5], x[5], x[2], n, C));
    OK(op->rmsnorm_backward(k, x[10], x[13], x[4], x[0], x[5], x[2], n, C));
    OK(op->add(k, x[10], x[4], n * C));
    OK(op->embedding_backward(k, x[12], x[13], x[10], token, n, length, C));
    OK(op->product(k, x[10], x[12], x[12], true, false, C, C, C, 0.5f, 0.5f));
    OK(op->symmetric_product(k, x[10], x[12], x[12], false, C, C));
    OK(op->adamw(k, x[15], x[13], x[14], x[12], C, &settings));
    (void)op->sum_of_squares(k, x[12], C * C);
    op->weights_changed(k, NULL);
}

static void no_allocation(const char *backend, int threads) {
    enum { ARRAYS = 16, FLOATS = 65536 };
    dlxi_kernels *k = open_kernels(backend, DLXI_PRECISION_AUTO, threads);
    float *x[ARRAYS];
    for (int i = 0; i < ARRAYS; i++) x[i] = buffer(FLOATS, 0.01, 0.02);
    uint32_t *token = buffer_tokens(N, VOCABULARY);
    for (int i = 0; i < 2; i++) { /* libraries allocate lazily */
        step(k, x, token, T);
        step(k, x, token, T - 7);
    }

    const int before = allocations;
    const struct mallinfo2 heap = mallinfo2();
    for (int i = 0; i < 5; i++) {
        step(k, x, token, T);
        step(k, x, token, T - 7);
    }
    const struct mallinfo2 later = mallinfo2();
    assert_int_equal(allocations, before);
    if (heap.uordblks != 0)
        assert_int_equal(later.uordblks + later.hblkhd, heap.uordblks + heap.hblkhd);
    case_end();
    dlxi_kernels_close(&k);
}

static void test_no_allocation(void **state) {
    (void)state;
    const int before = allocations;
    no_allocation("fast", 1);
    assert_true(allocations > before);
    no_allocation("fast", 2);
    no_allocation("ref", 1);
}

static void test_open_refuses(void **state) {
    (void)state;
    dlx_error error = {0};
    dlxi_kernels *k = (dlxi_kernels *)&error;
    assert_int_equal(dlxi_kernels_open(&k, "cuda", DLXI_PRECISION_AUTO, 1, &error), DLX_CONFIG);
    assert_null(k);
    assert_string_equal(error.message, "kernels: unknown backend 'cuda'; choose auto, fast or ref");
    assert_int_equal(dlxi_kernels_open(&k, "fast", DLXI_PRECISION_AUTO, 0, &error), DLX_CONFIG);
    assert_string_equal(error.message, "site.threads: 0 is out of range; allowed: 1 or more");
    assert_int_equal(dlxi_kernels_open(&k, "ref", DLXI_PRECISION_BF16, 1, &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "train.precision: backend ref has no bf16; set train.precision: f32 or auto");
    dlxi_kernels_close(&k); /* takes NULL */
}

/* `auto` is bf16 exactly if bf16 opens; otherwise bf16 is refused with a hint. */
static void test_precision(void **state) {
    (void)state;
    dlx_error error = {0};
    dlxi_kernels *k = open_kernels("auto", DLXI_PRECISION_AUTO, 1), *bf16 = NULL;
    assert_string_equal(k->op->name, "fast");
    const dlx_status status = dlxi_kernels_open(&bf16, "fast", DLXI_PRECISION_BF16, 1, &error);
    if (k->precision == DLXI_PRECISION_BF16) {
        assert_int_equal(status, DLX_OK);
        assert_int_equal(bf16->precision, DLXI_PRECISION_BF16);
    } else {
        assert_int_equal(k->precision, DLXI_PRECISION_F32);
        assert_int_equal(status, DLX_CONFIG);
        assert_string_equal(error.message, "train.precision: bf16 needs a CPU with AVX-512-BF16; "
                                           "set train.precision: f32 or auto");
    }
    const char *isa = getenv("DNNL_MAX_CPU_ISA");
    if (isa != NULL && strcmp(isa, "AVX2") == 0) assert_int_equal(k->precision, DLXI_PRECISION_F32);
    dlxi_kernels_close(&k);
    dlxi_kernels_close(&bf16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_allocation),
        cmocka_unit_test(test_open_refuses),
        cmocka_unit_test(test_precision),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
