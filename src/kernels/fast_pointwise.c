/* SPDX-License-Identifier: Apache-2.0 */
/* Activations, SwiGLU, addition, rotary and token embeddings, AdamW, norm: element by element. */
#include "kernels/fast.h"

#include "base/simd.h"
#include "kernels/vector.h"

#include <math.h>
#include <string.h>

/* ---- activations ----------------------------------------------------------------------------- */

/* (1 + tanh u)/2 = sigmoid(2u), so GELU is x · sigmoid(2 sqrt(2/π) (x + 0.044715 x³)). */
static const float gelu_scale = 1.59576912160573071176f, gelu_cubic = 0.044715f;

DLXI_CLONES static void gelu_forward(float *y, const float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float v = x[i];
        y[i] = v * dlxi_sigmoid(gelu_scale * (v + gelu_cubic * v * v * v));
    }
}

DLXI_CLONES static void relu_forward(float *y, const float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) y[i] = x[i] > 0.0f ? x[i] : 0.0f;
}

DLXI_CLONES static void gelu_backward(float *dx, const float *dy, const float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float v = x[i];
        float s = dlxi_sigmoid(gelu_scale * (v + gelu_cubic * v * v * v));
        dx[i] = dy[i] * (s + v * s * (1.0f - s) * gelu_scale * (1.0f + 3.0f * gelu_cubic * v * v));
    }
}

DLXI_CLONES static void relu_backward(float *dx, const float *dy, const float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) dx[i] = x[i] > 0.0f ? dy[i] : 0.0f;
}

dlx_status dlxi_fast_activation_forward(dlxi_kernels *k, float *y, const float *x,
                                        dlxi_activation kind, int64_t count) {
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++) {
        int64_t begin = dlxi_range_begin(count, r, ranges),
                length = dlxi_range_begin(count, r + 1, ranges) - begin;
        if (kind == DLXI_GELU)
            gelu_forward(y + begin, x + begin, length);
        else
            relu_forward(y + begin, x + begin, length);
    }
    return DLX_OK;
}

dlx_status dlxi_fast_activation_backward(dlxi_kernels *k, float *dx, const float *dy,
                                         const float *x, dlxi_activation kind, int64_t count) {
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++) {
        int64_t begin = dlxi_range_begin(count, r, ranges),
                length = dlxi_range_begin(count, r + 1, ranges) - begin;
        if (kind == DLXI_GELU)
            gelu_backward(dx + begin, dy + begin, x + begin, length);
        else
            relu_backward(dx + begin, dy + begin, x + begin, length);
    }
    return DLX_OK;
}

DLXI_CLONES static void swiglu_forward(float *y, const float *gate, const float *up, int64_t begin,
                                       int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; i++) y[i] = gate[i] * dlxi_sigmoid(gate[i]) * up[i];
}

DLXI_CLONES static void swiglu_backward(float *dgate, float *dup, const float *dy,
                                        const float *gate, const float *up, int64_t begin,
                                        int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float g = gate[i], u = up[i], d = dy[i], s = dlxi_sigmoid(g);
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
        dup[i] = d * g * s;
    }
}

dlx_status dlxi_fast_swiglu_forward(dlxi_kernels *k, float *y, const float *gate, const float *up,
                                    int64_t count) {
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        swiglu_forward(y, gate, up, dlxi_range_begin(count, r, ranges),
                       dlxi_range_begin(count, r + 1, ranges));
    return DLX_OK;
}

dlx_status dlxi_fast_swiglu_backward(dlxi_kernels *k, float *dgate, float *dup, const float *dy,
                                     const float *gate, const float *up, int64_t count) {
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        swiglu_backward(dgate, dup, dy, gate, up, dlxi_range_begin(count, r, ranges),
                        dlxi_range_begin(count, r + 1, ranges));
    return DLX_OK;
}

DLXI_CLONES static void add_range(float *y, const float *x, int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; i++) y[i] += x[i];
}

dlx_status dlxi_fast_add(dlxi_kernels *k, float *y, const float *x, int64_t count) {
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        add_range(y, x, dlxi_range_begin(count, r, ranges), dlxi_range_begin(count, r + 1, ranges));
    return DLX_OK;
}

/* ---- rotary embedding ------------------------------------------------------------------------ */

/* Keeps the table while D and theta stay. */
static dlx_status rope_table_fill(struct dlxi_kernels_state *s, int64_t T, int64_t D, float theta) {
    if (s->rope_positions >= T && s->rope_D == D && s->rope_theta == theta) return DLX_OK;
    s->rope_positions = 0;
    DLX_TRY(dlxi_scratch_reserve(&s->rope_table, (size_t)(T * D), sizeof(float)));
    float *table = s->rope_table.data;
    for (int64_t d = 0; d < D / 2; d++) {
        const double frequency = pow((double)theta, -2.0 * (double)d / (double)D);
        for (int64_t t = 0; t < T; t++) {
            table[t * D + d] = (float)cos((double)t * frequency);
            table[t * D + D / 2 + d] = (float)sin((double)t * frequency);
        }
    }
    s->rope_positions = T;
    s->rope_D = D;
    s->rope_theta = theta;
    return DLX_OK;
}

DLXI_CLONES static void rope_rows(float *x, const float *table, int64_t begin, int64_t end,
                                  int64_t T, int64_t heads, int64_t D, float sign) {
    const int64_t half = D / 2;
    for (int64_t n = begin; n < end; n++) {
        const float *cosine = table + n % T * D, *sine = cosine + half;
        for (int64_t h = 0; h < heads; h++) {
            float *first = x + (n * heads + h) * D, *second = first + half;
#pragma omp simd
            for (int64_t d = 0; d < half; d++) {
                float a = first[d], b = second[d], s = sign * sine[d];
                first[d] = a * cosine[d] - b * s;
                second[d] = a * s + b * cosine[d];
            }
        }
    }
}

dlx_status dlxi_fast_rope(dlxi_kernels *k, float *x, int64_t N, int64_t T, int64_t heads, int64_t D,
                          float theta, bool inverse) {
    DLX_TRY(rope_table_fill(k->state, T, D, theta));
    const float sign = inverse ? -1.0f : 1.0f;
    const int ranges = dlxi_ranges(k, N, heads * D);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        rope_rows(x, k->state->rope_table.data, dlxi_range_begin(N, r, ranges),
                  dlxi_range_begin(N, r + 1, ranges), T, heads, D, sign);
    return DLX_OK;
}

/* ---- token embedding ------------------------------------------------------------------------- */

DLXI_CLONES static void embedding_rows(float *y, const uint32_t *token, const float *table,
                                       const float *position, int64_t begin, int64_t end, int64_t T,
                                       int64_t C) {
    for (int64_t n = begin; n < end; n++) {
        const float *row = table + token[n] * C;
        float *out = y + n * C;
        memcpy(out, row, (size_t)C * sizeof(float));
        if (position == NULL) continue;
        const float *place = position + n % T * C;
#pragma omp simd
        for (int64_t c = 0; c < C; c++) out[c] += place[c];
    }
}

dlx_status dlxi_fast_embedding_forward(dlxi_kernels *k, float *y, const uint32_t *token,
                                       const float *table, const float *position, int64_t N,
                                       int64_t T, int64_t C) {
    const int ranges = dlxi_ranges(k, N, C);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        embedding_rows(y, token, table, position, dlxi_range_begin(N, r, ranges),
                       dlxi_range_begin(N, r + 1, ranges), T, C);
    return DLX_OK;
}

DLXI_CLONES static void embedding_backward_columns(float *dtable, float *dposition, const float *dy,
                                                   const uint32_t *token, int64_t N, int64_t T,
                                                   int64_t C, int64_t begin, int64_t end) {
    for (int64_t n = 0; n < N; n++) {
        const float *up = dy + n * C;
        float *row = dtable + token[n] * C;
#pragma omp simd
        for (int64_t c = begin; c < end; c++) row[c] += up[c];
        if (dposition == NULL) continue;
        float *place = dposition + n % T * C;
#pragma omp simd
        for (int64_t c = begin; c < end; c++) place[c] += up[c];
    }
}

/* Threads split columns, not rows: two rows may be of one token. */
dlx_status dlxi_fast_embedding_backward(dlxi_kernels *k, float *dtable, float *dposition,
                                        const float *dy, const uint32_t *token, int64_t N,
                                        int64_t T, int64_t C) {
    const int ranges = dlxi_ranges(k, C, N);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        embedding_backward_columns(dtable, dposition, dy, token, N, T, C,
                                   dlxi_range_begin(C, r, ranges),
                                   dlxi_range_begin(C, r + 1, ranges));
    return DLX_OK;
}

/* ---- optimiser ------------------------------------------------------------------------------- */

/* The constants of a step: p ← p − (decay · p + rate · m / (sqrt(v) · root + epsilon)). */
typedef struct adamw_step {
    float beta1, beta2, gradient_scale, decay, rate, root, epsilon;
} adamw_step;

DLXI_CLONES static void adamw_range(float *parameter, float *m, float *v, const float *gradient,
                                    int64_t begin, int64_t end, const adamw_step *step) {
    const adamw_step s = *step;
    const float rest1 = 1.0f - s.beta1, rest2 = 1.0f - s.beta2;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float g = gradient[i] * s.gradient_scale;
        float first = s.beta1 * m[i] + rest1 * g;
        float second = s.beta2 * v[i] + rest2 * (g * g);
        float direction = first / (sqrtf(second) * s.root + s.epsilon);
        parameter[i] -= s.decay * parameter[i] + s.rate * direction;
        m[i] = first;
        v[i] = second;
    }
}

dlx_status dlxi_fast_adamw(dlxi_kernels *k, float *parameter, float *m, float *v,
                           const float *gradient, int64_t count, const dlxi_adamw *settings) {
    const double correction1 = 1.0 - pow((double)settings->beta1, (double)settings->step);
    const double correction2 = 1.0 - pow((double)settings->beta2, (double)settings->step);
    const adamw_step step = {.beta1 = settings->beta1,
                             .beta2 = settings->beta2,
                             .gradient_scale = settings->gradient_scale,
                             .decay = settings->learning_rate * settings->weight_decay,
                             .rate = (float)((double)settings->learning_rate / correction1),
                             .root = (float)(1.0 / sqrt(correction2)),
                             .epsilon = settings->epsilon};
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        adamw_range(parameter, m, v, gradient, dlxi_range_begin(count, r, ranges),
                    dlxi_range_begin(count, r + 1, ranges), &step);
    return DLX_OK;
}

DLXI_CLONES static double squares_range(const float *x, int64_t begin, int64_t end) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

double dlxi_fast_sum_of_squares(dlxi_kernels *k, const float *x, int64_t count) {
    double part[DLXI_RANGES_MAX], sum = 0.0;
    const int ranges = dlxi_ranges(k, count, 1);
#pragma omp parallel for num_threads(ranges) if (ranges > 1) schedule(static, 1)
    for (int r = 0; r < ranges; r++)
        part[r] = squares_range(x, dlxi_range_begin(count, r, ranges),
                                dlxi_range_begin(count, r + 1, ranges));
    for (int r = 0; r < ranges; r++) sum += part[r];
    return sum;
}
