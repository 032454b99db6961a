/* SPDX-License-Identifier: Apache-2.0 */
/* f32 to bf16: by AVX-512-BF16 if the CPU has it, or by integer arithmetic. */
#include "kernels/fast.h"

#include "kernels/vector.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define NATIVE 1

/* As dlxi_to_bf16, with denormals flushed to zero. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static void
native_rows(uint16_t *dst, const float *src, int64_t rows, int64_t width, int64_t stride,
            float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int64_t r = 0; r < rows; r++) {
        const float *from = src + r * stride;
        uint16_t *to = dst + r * width;
        for (int64_t c = 0; c < width; c += 16) {
            const int64_t left = width - c;
            const __mmask16 mask = (__mmask16)(left >= 16 ? 0xffffu : (1u << left) - 1u);
            const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + c), factor);
            _mm256_mask_storeu_epi16(to + c, mask, (__m256i)_mm512_cvtneps_pbh(x));
        }
    }
}

static bool has_native(void) {
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
#else
#define NATIVE 0
#endif

void dlxi_to_bf16(uint16_t *dst, const float *src, int64_t rows, int64_t width, int64_t stride,
                  float scale) {
#if NATIVE
    if (has_native()) {
        native_rows(dst, src, rows, width, stride, scale);
        return;
    }
#endif
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            dst[r * width + c] = dlxi_bf16(scale * src[r * stride + c]);
}
