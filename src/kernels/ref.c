/* SPDX-License-Identifier: Apache-2.0 */
/* The reference that `fast` is compared with: every operation as its formula, one thread, sums in
 * f64. Never optimised. */
#include "kernels/internal.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>

struct dlxi_kernels_state {
    dlxi_scratch row; /* [T] f64: attention probabilities of one query */
};

/* ---- products -------------------------------------------------------------------------------- */

static dlx_status linear_forward(dlxi_kernels *k, float *y, const float *x, const float *weight,
                                 const float *bias, int64_t N, int64_t I, int64_t O) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t o = 0; o < O; o++) {
            double sum = bias != NULL ? (double)bias[o] : 0.0;
            for (int64_t i = 0; i < I; i++) sum += (double)x[n * I + i] * (double)weight[o * I + i];
            y[n * O + o] = (float)sum;
        }
    }
    return DLX_OK;
}

static dlx_status linear_backward(dlxi_kernels *k, float *dx, float *dweight, float *dbias,
                                  const float *dy, const float *x, const float *weight, int64_t N,
                                  int64_t I, int64_t O) {
    (void)k;
    for (int64_t n = 0; dx != NULL && n < N; n++) {
        for (int64_t i = 0; i < I; i++) {
            double sum = 0.0;
            for (int64_t o = 0; o < O; o++)
                sum += (double)dy[n * O + o] * (double)weight[o * I + i];
            dx[n * I + i] = (float)sum;
        }
    }
    for (int64_t o = 0; o < O; o++) {
        for (int64_t i = 0; i < I; i++) {
            double sum = 0.0;
            for (int64_t n = 0; n < N; n++) sum += (double)dy[n * O + o] * (double)x[n * I + i];
            dweight[o * I + i] += (float)sum;
        }
    }
    for (int64_t o = 0; dbias != NULL && o < O; o++) {
        double sum = 0.0;
        for (int64_t n = 0; n < N; n++) sum += (double)dy[n * O + o];
        dbias[o] += (float)sum;
    }
    return DLX_OK;
}

static void weights_changed(dlxi_kernels *k, const float *weight) {
    (void)k;
    (void)weight;
}

static dlx_status product(dlxi_kernels *k, float *c, const float *a, const float *b,
                          bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K,
                          float alpha, float beta) {
    (void)k;
    for (int64_t m = 0; m < M; m++) {
        for (int64_t n = 0; n < N; n++) {
            double sum = 0.0;
            for (int64_t i = 0; i < K; i++) {
                float left = transpose_a ? a[i * M + m] : a[m * K + i];
                float right = transpose_b ? b[n * K + i] : b[i * N + n];
                sum += (double)left * (double)right;
            }
            /* as in BLAS, beta 0 does not read c, which may be uninitialised */
            double before = beta == 0.0f ? 0.0 : (double)beta * (double)c[m * N + n];
            c[m * N + n] = (float)((double)alpha * sum + before);
        }
    }
    return DLX_OK;
}

static dlx_status symmetric_product(dlxi_kernels *k, float *c, const float *a, const float *b,
                                    bool transposed, int64_t M, int64_t K) {
    DLX_TRY(product(k, c, a, b, transposed, !transposed, M, M, K, 1.0f, 0.0f));
    for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < i; j++) c[i * M + j] = c[j * M + i];
    return DLX_OK;
}

/* ---- embedding ------------------------------------------------------------------------------- */

static dlx_status embedding_forward(dlxi_kernels *k, float *y, const uint32_t *token,
                                    const float *table, const float *position, int64_t N, int64_t T,
                                    int64_t C) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t c = 0; c < C; c++) {
            y[n * C + c] = table[token[n] * C + c];
            if (position != NULL) y[n * C + c] += position[n % T * C + c];
        }
    }
    return DLX_OK;
}

static dlx_status embedding_backward(dlxi_kernels *k, float *dtable, float *dposition,
                                     const float *dy, const uint32_t *token, int64_t N, int64_t T,
                                     int64_t C) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t c = 0; c < C; c++) {
            dtable[token[n] * C + c] += dy[n * C + c];
            if (dposition != NULL) dposition[n % T * C + c] += dy[n * C + c];
        }
    }
    return DLX_OK;
}

/* ---- normalisation --------------------------------------------------------------------------- */

static dlx_status layernorm_forward(dlxi_kernels *k, float *y, float *mean, float *rstd,
                                    const float *x, const float *gain, const float *bias, int64_t N,
                                    int64_t C, float epsilon) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * C;
        double sum = 0.0, variance = 0.0;
        for (int64_t c = 0; c < C; c++) sum += (double)row[c];
        double centre = sum / (double)C;
        for (int64_t c = 0; c < C; c++)
            variance += ((double)row[c] - centre) * ((double)row[c] - centre);
        double scale = 1.0 / sqrt(variance / (double)C + (double)epsilon);
        for (int64_t c = 0; c < C; c++)
            y[n * C + c] =
                (float)(((double)row[c] - centre) * scale * (double)gain[c] + (double)bias[c]);
        mean[n] = (float)centre;
        rstd[n] = (float)scale;
    }
    return DLX_OK;
}

/* With h = (x − mean)·rstd and g = dy·gain: dx = rstd · (g − mean_c(g) − h · mean_c(g·h)). */
static dlx_status layernorm_backward(dlxi_kernels *k, float *dx, float *dgain, float *dbias,
                                     const float *dy, const float *x, const float *mean,
                                     const float *rstd, const float *gain, int64_t N, int64_t C) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        double centre = (double)mean[n], scale = (double)rstd[n];
        double mean_g = 0.0, mean_gh = 0.0;
        for (int64_t c = 0; c < C; c++) {
            double g = (double)dy[n * C + c] * (double)gain[c];
            mean_g += g / (double)C;
            mean_gh += g * ((double)x[n * C + c] - centre) * scale / (double)C;
        }
        for (int64_t c = 0; c < C; c++) {
            double h = ((double)x[n * C + c] - centre) * scale;
            double up = (double)dy[n * C + c];
            dx[n * C + c] = (float)(scale * (up * (double)gain[c] - mean_g - h * mean_gh));
            dgain[c] += (float)(up * h);
            dbias[c] += (float)up;
        }
    }
    return DLX_OK;
}

static dlx_status rmsnorm_forward(dlxi_kernels *k, float *y, float *rstd, const float *x,
                                  const float *gain, int64_t N, int64_t C, float epsilon) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        double squares = 0.0;
        for (int64_t c = 0; c < C; c++) squares += (double)x[n * C + c] * (double)x[n * C + c];
        double scale = 1.0 / sqrt(squares / (double)C + (double)epsilon);
        for (int64_t c = 0; c < C; c++)
            y[n * C + c] = (float)((double)x[n * C + c] * scale * (double)gain[c]);
        rstd[n] = (float)scale;
    }
    return DLX_OK;
}

/* With h = x·rstd and g = dy·gain: dx = rstd · (g − h · mean_c(g·h)). */
static dlx_status rmsnorm_backward(dlxi_kernels *k, float *dx, float *dgain, const float *dy,
                                   const float *x, const float *rstd, const float *gain, int64_t N,
                                   int64_t C) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        double scale = (double)rstd[n], mean_gh = 0.0;
        for (int64_t c = 0; c < C; c++)
            mean_gh +=
                (double)dy[n * C + c] * (double)gain[c] * (double)x[n * C + c] * scale / (double)C;
        for (int64_t c = 0; c < C; c++) {
            double h = (double)x[n * C + c] * scale;
            double up = (double)dy[n * C + c];
            dx[n * C + c] = (float)(scale * (up * (double)gain[c] - h * mean_gh));
            dgain[c] += (float)(up * h);
        }
    }
    return DLX_OK;
}

/* ---- pointwise ------------------------------------------------------------------------------- */

/* GELU, tanh form (Hendrycks & Gimpel 2016, section 2): x/2 · (1 + tanh(sqrt(2/π)(x + 0.044715
 * x³))) */
static const double gelu_scale = 0.79788456080286535588, gelu_cubic = 0.044715;

static dlx_status activation_forward(dlxi_kernels *k, float *y, const float *x,
                                     dlxi_activation kind, int64_t count) {
    (void)k;
    for (int64_t i = 0; i < count; i++) {
        double v = (double)x[i];
        if (kind == DLXI_RELU)
            y[i] = v > 0.0 ? x[i] : 0.0f;
        else
            y[i] = (float)(0.5 * v * (1.0 + tanh(gelu_scale * (v + gelu_cubic * v * v * v))));
    }
    return DLX_OK;
}

static dlx_status activation_backward(dlxi_kernels *k, float *dx, const float *dy, const float *x,
                                      dlxi_activation kind, int64_t count) {
    (void)k;
    for (int64_t i = 0; i < count; i++) {
        double v = (double)x[i], slope = v > 0.0 ? 1.0 : 0.0;
        if (kind == DLXI_GELU) {
            double t = tanh(gelu_scale * (v + gelu_cubic * v * v * v));
            slope = 0.5 * (1.0 + t) +
                    0.5 * v * (1.0 - t * t) * gelu_scale * (1.0 + 3.0 * gelu_cubic * v * v);
        }
        dx[i] = (float)((double)dy[i] * slope);
    }
    return DLX_OK;
}

static dlx_status swiglu_forward(dlxi_kernels *k, float *y, const float *gate, const float *up,
                                 int64_t count) {
    (void)k;
    for (int64_t i = 0; i < count; i++) {
        double g = (double)gate[i];
        y[i] = (float)(g / (1.0 + exp(-g)) * (double)up[i]);
    }
    return DLX_OK;
}

static dlx_status swiglu_backward(dlxi_kernels *k, float *dgate, float *dup, const float *dy,
                                  const float *gate, const float *up, int64_t count) {
    (void)k;
    for (int64_t i = 0; i < count; i++) {
        double g = (double)gate[i], u = (double)up[i], d = (double)dy[i],
               sigmoid = 1.0 / (1.0 + exp(-g));
        dgate[i] = (float)(d * u * sigmoid * (1.0 + g * (1.0 - sigmoid)));
        dup[i] = (float)(d * g * sigmoid);
    }
    return DLX_OK;
}

static dlx_status add(dlxi_kernels *k, float *y, const float *x, int64_t count) {
    (void)k;
    for (int64_t i = 0; i < count; i++) y[i] += x[i];
    return DLX_OK;
}

/* Su et al. 2021, equation 34: pair d rotates by position · theta^(−2d/D). */
static dlx_status rope(dlxi_kernels *k, float *x, int64_t N, int64_t T, int64_t heads, int64_t D,
                       float theta, bool inverse) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t d = 0; d < D / 2; d++) {
            double angle = (double)(n % T) * pow((double)theta, -2.0 * (double)d / (double)D);
            double c = cos(angle), s = inverse ? -sin(angle) : sin(angle);
            for (int64_t h = 0; h < heads; h++) {
                float *first = &x[(n * heads + h) * D + d], *second = first + D / 2;
                double a = (double)*first, b = (double)*second;
                *first = (float)(a * c - b * s);
                *second = (float)(a * s + b * c);
            }
        }
    }
    return DLX_OK;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* The offset of head h of token t of window b in [B,T,heads,D]. */
static int64_t at(int64_t b, int64_t t, int64_t h, int64_t T, int64_t heads, int64_t D) {
    return ((b * T + t) * heads + h) * D;
}

static double dot(const float *a, const float *b, int64_t D) {
    double sum = 0.0;
    for (int64_t d = 0; d < D; d++) sum += (double)a[d] * (double)b[d];
    return sum;
}

static dlx_status attention_forward(dlxi_kernels *k, float *out, float *lse, const float *q,
                                    const float *key, const float *value, int64_t B, int64_t T,
                                    int64_t heads, int64_t kv_heads, int64_t D) {
    DLX_TRY(dlxi_scratch_reserve(&k->state->row, (size_t)T, sizeof(double)));
    double *p = k->state->row.data, scale = 1.0 / sqrt((double)D);
    for (int64_t bh = 0; bh < B * heads; bh++) {
        int64_t b = bh / heads, h = bh % heads, g = h / (heads / kv_heads);
        for (int64_t t = 0; t < T; t++) {
            double largest = -HUGE_VAL, total = 0.0;
            for (int64_t s = 0; s <= t; s++) {
                p[s] =
                    scale * dot(q + at(b, t, h, T, heads, D), key + at(b, s, g, T, kv_heads, D), D);
                largest = fmax(largest, p[s]);
            }
            for (int64_t s = 0; s <= t; s++) total += p[s] = exp(p[s] - largest);
            for (int64_t d = 0; d < D; d++) {
                double sum = 0.0;
                for (int64_t s = 0; s <= t; s++)
                    sum += p[s] / total * (double)value[at(b, s, g, T, kv_heads, D) + d];
                out[at(b, t, h, T, heads, D) + d] = (float)sum;
            }
            lse[bh * T + t] = (float)(largest + log(total));
        }
    }
    return DLX_OK;
}

/* With p the probabilities: dvalue_s = Σ_t p_ts dout_t; dscore_ts = p_ts (dout_t·value_s −
 * dout_t·out_t); dq_t = scale Σ_s dscore_ts key_s; dkey_s = scale Σ_t dscore_ts q_t (Dao 2022,
 * section 3.2). */
static dlx_status attention_backward(dlxi_kernels *k, float *dq, float *dkey, float *dvalue,
                                     const float *dout, const float *out, const float *lse,
                                     const float *q, const float *key, const float *value,
                                     int64_t B, int64_t T, int64_t heads, int64_t kv_heads,
                                     int64_t D) {
    (void)k;
    double scale = 1.0 / sqrt((double)D);
    for (int64_t i = 0; i < B * T * heads * D; i++) dq[i] = 0.0f;
    for (int64_t i = 0; i < B * T * kv_heads * D; i++) dkey[i] = dvalue[i] = 0.0f;
    for (int64_t bh = 0; bh < B * heads; bh++) {
        int64_t b = bh / heads, h = bh % heads, g = h / (heads / kv_heads);
        for (int64_t t = 0; t < T; t++) {
            int64_t query = at(b, t, h, T, heads, D);
            double delta = dot(dout + query, out + query, D);
            for (int64_t s = 0; s <= t; s++) {
                int64_t source = at(b, s, g, T, kv_heads, D);
                double p = exp(scale * dot(q + query, key + source, D) - (double)lse[bh * T + t]);
                double dscore = scale * p * (dot(dout + query, value + source, D) - delta);
                for (int64_t d = 0; d < D; d++) {
                    dvalue[source + d] += (float)(p * (double)dout[query + d]);
                    dq[query + d] += (float)(dscore * (double)key[source + d]);
                    dkey[source + d] += (float)(dscore * (double)q[query + d]);
                }
            }
        }
    }
    return DLX_OK;
}

/* ---- loss and optimiser ---------------------------------------------------------------------- */

static dlx_status cross_entropy(dlxi_kernels *k, double *loss_sum, float *logits,
                                const uint32_t *target, int64_t N, int64_t V, bool gradient,
                                float gradient_scale) {
    (void)k;
    for (int64_t n = 0; n < N; n++) {
        float *row = logits + n * V;
        double largest = -HUGE_VAL, total = 0.0;
        for (int64_t v = 0; v < V; v++) largest = fmax(largest, (double)row[v]);
        for (int64_t v = 0; v < V; v++) total += exp((double)row[v] - largest);
        *loss_sum += largest + log(total) - (double)row[target[n]];
        for (int64_t v = 0; gradient && v < V; v++) {
            double probability = exp((double)row[v] - largest) / total,
                   one_hot = v == target[n] ? 1.0 : 0.0;
            row[v] = (float)((double)gradient_scale * (probability - one_hot));
        }
    }
    return DLX_OK;
}

static dlx_status adamw(dlxi_kernels *k, float *parameter, float *m, float *v,
                        const float *gradient, int64_t count, const dlxi_adamw *settings) {
    (void)k;
    const double beta1 = (double)settings->beta1, beta2 = (double)settings->beta2;
    const double correction1 = 1.0 - pow(beta1, (double)settings->step);
    const double correction2 = 1.0 - pow(beta2, (double)settings->step);
    for (int64_t i = 0; i < count; i++) {
        double g = (double)gradient[i] * (double)settings->gradient_scale;
        double first = beta1 * (double)m[i] + (1.0 - beta1) * g;
        double second = beta2 * (double)v[i] + (1.0 - beta2) * g * g;
        double direction =
            first / correction1 / (sqrt(second / correction2) + (double)settings->epsilon);
        double decay = (double)settings->weight_decay * (double)parameter[i];
        parameter[i] =
            (float)((double)parameter[i] - (double)settings->learning_rate * (direction + decay));
        m[i] = (float)first;
        v[i] = (float)second;
    }
    return DLX_OK;
}

static double sum_of_squares(dlxi_kernels *k, const float *x, int64_t count) {
    (void)k;
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static dlx_status backend_open(dlxi_kernels *k, dlx_error *error) {
    return DLXI_NEW(&k->state, 1, error);
}

static void backend_close(dlxi_kernels *k) {
    if (k->state != NULL) dlxi_scratch_free(&k->state->row);
    free(k->state);
    k->state = NULL;
}

const dlxi_operations dlxi_ref_operations = {
    .name = "ref",
    .open = backend_open,
    .close = backend_close,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .weights_changed = weights_changed,
    .product = product,
    .symmetric_product = symmetric_product,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .layernorm_forward = layernorm_forward,
    .layernorm_backward = layernorm_backward,
    .rmsnorm_forward = rmsnorm_forward,
    .rmsnorm_backward = rmsnorm_backward,
    .activation_forward = activation_forward,
    .activation_backward = activation_backward,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .add = add,
    .rope = rope,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .cross_entropy = cross_entropy,
    .adamw = adamw,
    .sum_of_squares = sum_of_squares,
};
