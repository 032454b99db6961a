/* SPDX-License-Identifier: Apache-2.0 */
/* Causal attention, one kv head of one window at a time.
 *
 * The query heads that share a kv head are neighbours in memory, so that their rows stack into one
 * factor: row t·group + j is query head j of the group at position t. A block of query positions
 * [t0, t1) meets only the keys [0, t1): the causal upper half is skipped but for the block's own
 * triangle. Scores of one block are all that exists of the [T,T] matrix (Dao 2022, without the
 * online softmax: a row's scores fit in cache). The scale 1/sqrt(D) is in the packed queries. */
#include "kernels/fast.h"

#include "base/simd.h"
#include "kernels/vector.h"

#include <math.h>
#include <string.h>

typedef struct attention {
    int64_t B, T, heads, kv_heads, D;
    int64_t group; /* query heads a kv head */
    int64_t block; /* query positions a block */
    bool bf16;
    size_t item_bytes; /* of a packed factor's elements */
    float scale;
} attention;

/* A lane's memory. Factors are bf16 or f32; M = block·group rows. */
typedef struct workspace {
    char *q, *key, *value, *dout; /* factors [T·group,D], [T,D], [T,D], [T·group,D] */
    char *p, *dscore;             /* factors [M,T] */
    float *scores, *dp;           /* [M,T] */
    float *rows;                  /* [T·group,D]: output or dq of the block or the head */
    float *dkey, *dvalue;         /* [T,D] */
    float *row_scale;             /* [M]: 1/Σ exp forward, Σ_d dout·out backward */
} workspace;

static attention attention_of(const dlxi_kernels *k, int64_t B, int64_t T, int64_t heads,
                              int64_t kv_heads, int64_t D) {
    /* 256 KB of f32: half of a small second-level cache */
    const int64_t score_elements_max = 65536;
    const int64_t group = heads / kv_heads;
    int64_t block = 64;
    while (block > 16 && block * group * T > score_elements_max) block /= 2;
    const bool bf16 = k->precision == DLXI_PRECISION_BF16;
    return (attention){.B = B,
                       .T = T,
                       .heads = heads,
                       .kv_heads = kv_heads,
                       .D = D,
                       .group = group,
                       .block = block < T ? block : T,
                       .bf16 = bf16,
                       .item_bytes = bf16 ? sizeof(uint16_t) : sizeof(float),
                       .scale = (float)(1.0 / sqrt((double)D))};
}

/* The next `count` items of the lane's memory, on a cache line of their own; counts only while base
 * is NULL. */
static void *carve(char *base, size_t *offset, int64_t count, size_t item_bytes) {
    void *at = base == NULL ? NULL : base + *offset;
    *offset += ((size_t)count * item_bytes + 63) / 64 * 64;
    return at;
}

static size_t lay_out(workspace *w, const attention *a, char *base) {
    const int64_t M = a->block * a->group;
    size_t offset = 0;
    w->q = carve(base, &offset, a->T * a->group * a->D, a->item_bytes);
    w->key = carve(base, &offset, a->T * a->D, a->item_bytes);
    w->value = carve(base, &offset, a->T * a->D, a->item_bytes);
    w->dout = carve(base, &offset, a->T * a->group * a->D, a->item_bytes);
    w->p = carve(base, &offset, M * a->T, a->item_bytes);
    w->dscore = carve(base, &offset, M * a->T, a->item_bytes);
    w->scores = carve(base, &offset, M * a->T, sizeof(float));
    w->dp = carve(base, &offset, M * a->T, sizeof(float));
    w->rows = carve(base, &offset, a->T * a->group * a->D, sizeof(float));
    w->dkey = carve(base, &offset, a->T * a->D, sizeof(float));
    w->dvalue = carve(base, &offset, a->T * a->D, sizeof(float));
    w->row_scale = carve(base, &offset, M, sizeof(float));
    return offset;
}

static dlx_status workspace_of(workspace *w, dlxi_lane *lane, const attention *a) {
    DLX_TRY(dlxi_scratch_reserve(&lane->memory, lay_out(w, a, NULL), 1));
    lay_out(w, a, lane->memory.data);
    return DLX_OK;
}

/* ---- between [B,T,heads,D] and packed factors ------------------------------------------------ */

DLXI_CLONES static void pack_f32(float *dst, const float *src, int64_t rows, int64_t width,
                                 int64_t stride, float scale) {
    for (int64_t r = 0; r < rows; r++) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) dst[r * width + c] = scale * src[r * stride + c];
    }
}

/* dst[rows,width] = scale · src, whose rows are `stride` apart; as bf16 or f32. */
static void pack(void *dst, const float *src, int64_t rows, int64_t width, int64_t stride,
                 float scale, bool bf16) {
    if (bf16)
        dlxi_to_bf16(dst, src, rows, width, stride, scale);
    else
        pack_f32(dst, src, rows, width, stride, scale);
}

DLXI_CLONES static void unpack(float *dst, const float *src, int64_t rows, int64_t width,
                               int64_t stride, float scale) {
    for (int64_t r = 0; r < rows; r++) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) dst[r * stride + c] = scale * src[r * width + c];
    }
}

/* dst[rows,width] factor = src; nothing to do where the factor is f32 and is src itself. */
static void to_factor(char *dst, const float *src, int64_t count, bool bf16) {
    if (bf16) dlxi_to_bf16((uint16_t *)(void *)dst, src, 1, count, count, 1.0f);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* A row's visible keys are rounded up to whole vectors, where exp turns −∞ into the 0 that is due
 * above the diagonal. */
static inline int64_t hide_above_diagonal(float *row, int64_t seen, int64_t keys) {
    const int64_t rounded = (seen + 15) / 16 * 16, whole = rounded < keys ? rounded : keys;
    for (int64_t s = seen; s < whole; s++) row[s] = -HUGE_VALF;
    return whole;
}

/* scores[M,keys] → exp(scores − row's largest), 0 above the diagonal; row_scale ← 1/Σ; lse ← log Σ
 * exp(scores). Row m is query head m % group at position first + m / group; lse's heads are T
 * apart. */
DLXI_CLONES static void softmax_rows(float *scores, float *row_scale, float *lse, int64_t M,
                                     int64_t keys, int64_t first, int64_t group, int64_t T) {
    for (int64_t m = 0; m < M; m++) {
        float *row = scores + m * keys;
        const int64_t t = first + m / group, seen = hide_above_diagonal(row, t + 1, keys);
        const float largest = dlxi_row_max(row, seen);
        float lanes[DLXI_LANES] = {0};
        int64_t s = 0;
        for (; s + DLXI_LANES <= seen; s += DLXI_LANES) {
#pragma omp simd
            for (int l = 0; l < DLXI_LANES; l++)
                lanes[l] += row[s + l] = dlxi_exp(row[s + l] - largest);
        }
        for (int l = 0; s < seen; s++, l++) lanes[l] += row[s] = dlxi_exp(row[s] - largest);
        const float sum = dlxi_lanes_sum(lanes);
        memset(row + seen, 0, (size_t)(keys - seen) * sizeof(float));
        row_scale[m] = 1.0f / sum;
        lse[m % group * T + t] = largest + logf(sum);
    }
}

/* out's row m = row_scale[m] · rows[m,:]; positions are `stride` apart. */
DLXI_CLONES static void unpack_scaled(float *out, const float *rows, const float *row_scale,
                                      int64_t M, int64_t group, int64_t D, int64_t stride) {
    for (int64_t m = 0; m < M; m++) {
        float *to = out + m / group * stride + m % group * D;
        const float *from = rows + m * D, scale = row_scale[m];
#pragma omp simd
        for (int64_t d = 0; d < D; d++) to[d] = scale * from[d];
    }
}

/* One kv head g of window b, with the query heads that read it. */
static dlx_status forward_head(dlxi_lane *lane, const attention *a, const workspace *w, float *out,
                               float *lse, const float *q, const float *key, const float *value,
                               int64_t b, int64_t g) {
    const int64_t T = a->T, D = a->D, q_stride = a->heads * D, kv_stride = a->kv_heads * D;
    const int64_t q_first = b * T * q_stride + g * a->group * D,
                  kv_first = b * T * kv_stride + g * D;
    pack(w->q, q + q_first, T, a->group * D, q_stride, a->scale, a->bf16);
    pack(w->key, key + kv_first, T, D, kv_stride, 1.0f, a->bf16);
    pack(w->value, value + kv_first, T, D, kv_stride, 1.0f, a->bf16);
    for (int64_t first = 0; first < T; first += a->block) {
        const int64_t keys = first + a->block < T ? first + a->block : T,
                      M = (keys - first) * a->group;
        const dlxi_product scores = {
            .M = M, .N = keys, .K = D, .alpha = 1.0f, .transpose_b = true, .bf16 = a->bf16};
        const dlxi_product mix = {.M = M, .N = D, .K = keys, .alpha = 1.0f, .bf16 = a->bf16};
        const char *block_q = w->q + (size_t)(first * a->group * D) * a->item_bytes;
        DLX_TRY(dlxi_onednn_run(lane->products, &scores, w->scores, block_q, w->key, NULL));
        softmax_rows(w->scores, w->row_scale, lse + (b * a->heads + g * a->group) * T, M, keys,
                     first, a->group, T);
        to_factor(w->p, w->scores, M * keys, a->bf16);
        const void *p = a->bf16 ? (const void *)w->p : w->scores;
        DLX_TRY(dlxi_onednn_run(lane->products, &mix, w->rows, p, w->value, NULL));
        unpack_scaled(out + q_first + first * q_stride, w->rows, w->row_scale, M, a->group, D,
                      q_stride);
    }
    return DLX_OK;
}

static dlx_status joined(const dlxi_kernels *k) {
    for (int i = 0; i < k->threads; i++) DLX_TRY(k->state->lanes[i].status);
    return DLX_OK;
}

dlx_status dlxi_fast_attention_forward(dlxi_kernels *k, float *out, float *lse, const float *q,
                                       const float *key, const float *value, int64_t B, int64_t T,
                                       int64_t heads, int64_t kv_heads, int64_t D) {
    const attention a = attention_of(k, B, T, heads, kv_heads, D);
    const int lanes = k->threads;
#pragma omp parallel for num_threads(lanes) if (lanes > 1) schedule(static, 1)
    for (int i = 0; i < lanes; i++) {
        dlxi_lane *lane = &k->state->lanes[i];
        workspace w;
        lane->status = workspace_of(&w, lane, &a);
        const int64_t end = dlxi_range_begin(B * kv_heads, i + 1, lanes);
        for (int64_t h = dlxi_range_begin(B * kv_heads, i, lanes);
             h < end && lane->status == DLX_OK; h++)
            lane->status =
                forward_head(lane, &a, &w, out, lse, q, key, value, h / kv_heads, h % kv_heads);
    }
    return joined(k);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* row_scale[m] = Σ_d dout·out of row m, whose positions are `stride` apart */
DLXI_CLONES static void row_products(float *row_scale, const float *dout, const float *out,
                                     int64_t M, int64_t group, int64_t D, int64_t stride) {
    for (int64_t m = 0; m < M; m++) {
        const int64_t at = m / group * stride + m % group * D;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < D; d++) sum += dout[at + d] * out[at + d];
        row_scale[m] = sum;
    }
}

/* scores → p = exp(scores − lse); dp → dscore = p (dp − Σ dout·out); both 0 above the diagonal. */
DLXI_CLONES static void softmax_backward_rows(float *scores, float *dp, const float *row_scale,
                                              const float *lse, int64_t M, int64_t keys,
                                              int64_t first, int64_t group, int64_t T) {
    for (int64_t m = 0; m < M; m++) {
        float *p = scores + m * keys, *d = dp + m * keys;
        const int64_t t = first + m / group, seen = hide_above_diagonal(p, t + 1, keys);
        const float log_sum = lse[m % group * T + t], delta = row_scale[m];
#pragma omp simd
        for (int64_t s = 0; s < seen; s++) {
            p[s] = dlxi_exp(p[s] - log_sum);
            d[s] = p[s] * (d[s] - delta);
        }
        memset(p + seen, 0, (size_t)(keys - seen) * sizeof(float));
        memset(d + seen, 0, (size_t)(keys - seen) * sizeof(float));
    }
}

/* The products of one block once p and dscore are there: dvalue += pᵀ dout, dkey += dscoreᵀ q, rows
 * = dscore key. */
static dlx_status backward_products(dlxi_lane *lane, const attention *a, const workspace *w,
                                    int64_t first, int64_t M, int64_t keys) {
    const int64_t D = a->D, row = first * a->group * D;
    const size_t block = (size_t)row * a->item_bytes;
    const void *p = a->bf16 ? (const void *)w->p : w->scores,
               *dscore = a->bf16 ? (const void *)w->dscore : w->dp;
    const dlxi_product to_keys = {.M = keys,
                                  .N = D,
                                  .K = M,
                                  .alpha = 1.0f,
                                  .beta = 1.0f,
                                  .transpose_a = true,
                                  .bf16 = a->bf16};
    const dlxi_product to_queries = {.M = M, .N = D, .K = keys, .alpha = 1.0f, .bf16 = a->bf16};
    DLX_TRY(dlxi_onednn_run(lane->products, &to_keys, w->dvalue, p, w->dout + block, NULL));
    DLX_TRY(dlxi_onednn_run(lane->products, &to_keys, w->dkey, dscore, w->q + block, NULL));
    return dlxi_onednn_run(lane->products, &to_queries, w->rows + row, dscore, w->key, NULL);
}

/* The arrays that one backward pass reads and writes, as in kernels.h. */
typedef struct gradients {
    float *dq, *dkey, *dvalue;
    const float *dout, *out, *lse, *q, *key, *value;
} gradients;

static dlx_status backward_head(dlxi_lane *lane, const attention *a, const workspace *w,
                                const gradients *x, int64_t b, int64_t g) {
    const int64_t T = a->T, D = a->D, q_stride = a->heads * D, kv_stride = a->kv_heads * D,
                  width = a->group * D;
    const int64_t q_first = b * T * q_stride + g * width, kv_first = b * T * kv_stride + g * D;
    pack(w->q, x->q + q_first, T, width, q_stride, a->scale, a->bf16);
    pack(w->dout, x->dout + q_first, T, width, q_stride, 1.0f, a->bf16);
    pack(w->key, x->key + kv_first, T, D, kv_stride, 1.0f, a->bf16);
    pack(w->value, x->value + kv_first, T, D, kv_stride, 1.0f, a->bf16);
    memset(w->dkey, 0, (size_t)(T * D) * sizeof(float));
    memset(w->dvalue, 0, (size_t)(T * D) * sizeof(float));
    for (int64_t first = 0; first < T; first += a->block) {
        const int64_t keys = first + a->block < T ? first + a->block : T,
                      M = (keys - first) * a->group;
        const int64_t from = q_first + first * q_stride;
        const size_t block = (size_t)(first * width) * a->item_bytes;
        const dlxi_product to_scores = {
            .M = M, .N = keys, .K = D, .alpha = 1.0f, .transpose_b = true, .bf16 = a->bf16};
        DLX_TRY(dlxi_onednn_run(lane->products, &to_scores, w->scores, w->q + block, w->key, NULL));
        DLX_TRY(
            dlxi_onednn_run(lane->products, &to_scores, w->dp, w->dout + block, w->value, NULL));
        row_products(w->row_scale, x->dout + from, x->out + from, M, a->group, D, q_stride);
        softmax_backward_rows(w->scores, w->dp, w->row_scale,
                              x->lse + (b * a->heads + g * a->group) * T, M, keys, first, a->group,
                              T);
        to_factor(w->p, w->scores, M * keys, a->bf16);
        to_factor(w->dscore, w->dp, M * keys, a->bf16);
        DLX_TRY(backward_products(lane, a, w, first, M, keys));
    }
    unpack(x->dq + q_first, w->rows, T, width, q_stride, a->scale);
    unpack(x->dkey + kv_first, w->dkey, T, D, kv_stride, 1.0f);
    unpack(x->dvalue + kv_first, w->dvalue, T, D, kv_stride, 1.0f);
    return DLX_OK;
}

dlx_status dlxi_fast_attention_backward(dlxi_kernels *k, float *dq, float *dkey, float *dvalue,
                                        const float *dout, const float *out, const float *lse,
                                        const float *q, const float *key, const float *value,
                                        int64_t B, int64_t T, int64_t heads, int64_t kv_heads,
                                        int64_t D) {
    const attention a = attention_of(k, B, T, heads, kv_heads, D);
    const gradients x = {dq, dkey, dvalue, dout, out, lse, q, key, value};
    const int lanes = k->threads;
#pragma omp parallel for num_threads(lanes) if (lanes > 1) schedule(static, 1)
    for (int i = 0; i < lanes; i++) {
        dlxi_lane *lane = &k->state->lanes[i];
        workspace w;
        lane->status = workspace_of(&w, lane, &a);
        const int64_t end = dlxi_range_begin(B * kv_heads, i + 1, lanes);
        for (int64_t h = dlxi_range_begin(B * kv_heads, i, lanes);
             h < end && lane->status == DLX_OK; h++)
            lane->status = backward_head(lane, &a, &w, &x, h / kv_heads, h % kv_heads);
    }
    return joined(k);
}
