/* SPDX-License-Identifier: Apache-2.0 */
/* Causal attention, one kv head of one window at a time.
 *
 * Query heads that share a kv head are adjacent in memory, so their rows form one factor: row
 * t·group + j is query head j of the group at position t. A block of query positions [t0, t1) uses
 * only the keys [0, t1), which skips the causal upper half except for the block's own triangle. Of
 * the [T,T] scores only one block exists at a time (Dao 2022, without the online softmax: a row's
 * scores fit in cache). The packed queries include the scale 1/sqrt(D). */
#include "kernels/fast.h"

#include "base/simd.h"
#include "kernels/vector.h"

#include <math.h>
#include <string.h>

typedef struct attention {
    int64_t B, T, heads, kv_heads, D;
    int64_t group; /* query heads per kv head */
    int64_t block; /* query positions per block */
    bool bf16;
    size_t item_bytes; /* per element of a packed factor */
    float scale;
} attention;

/* A lane's memory. Factors are bf16 or f32; M = block·group rows. */
typedef struct workspace {
    char *q, *key, *value, *dout; /* factors [T·group,D], [T,D], [T,D], [T·group,D] */
    char *p, *dscore;             /* factors [M,T] */
    float *scores, *dp;           /* [M,T] */
    float *rows;                  /* [T·group,D]: a block's output, or a head's dq */
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

/* The next `count` items of the lane's memory, cache-line aligned; only counts if base is NULL. */
static void *workspace_carve(char *base, size_t *offset, int64_t count, size_t item_bytes) {
    void *at = base == NULL ? NULL : base + *offset;
    *offset += ((size_t)count * item_bytes + 63) / 64 * 64;
    return at;
}

static size_t workspace_lay_out(workspace *w, const attention *a, char *base) {
    const int64_t M = a->block * a->group;
    size_t offset = 0;
    w->q = workspace_carve(base, &offset, a->T * a->group * a->D, a->item_bytes);
    w->key = workspace_carve(base, &offset, a->T * a->D, a->item_bytes);
    w->value = workspace_carve(base, &offset, a->T * a->D, a->item_bytes);
    w->dout = workspace_carve(base, &offset, a->T * a->group * a->D, a->item_bytes);
    w->p = workspace_carve(base, &offset, M * a->T, a->item_bytes);
    w->dscore = workspace_carve(base, &offset, M * a->T, a->item_bytes);
    w->scores = workspace_carve(base, &offset, M * a->T, sizeof(float));
    w->dp = workspace_carve(base, &offset, M * a->T, sizeof(float));
    w->rows = workspace_carve(base, &offset, a->T * a->group * a->D, sizeof(float));
    w->dkey = workspace_carve(base, &offset, a->T * a->D, sizeof(float));
    w->dvalue = workspace_carve(base, &offset, a->T * a->D, sizeof(float));
    w->row_scale = workspace_carve(base, &offset, M, sizeof(float));
    return offset;
}

static dlx_status workspace_reserve(workspace *w, dlxi_lane *lane, const attention *a) {
    DLX_TRY(dlxi_scratch_reserve(&lane->memory, workspace_lay_out(w, a, NULL), 1));
    workspace_lay_out(w, a, lane->memory.data);
    return DLX_OK;
}

/* ---- packed factors -------------------------------------------------------------------------- */

DLXI_CLONES static void pack_f32(float *dst, const float *src, int64_t rows, int64_t width,
                                 int64_t stride, float scale) {
    for (int64_t r = 0; r < rows; r++) {
#pragma omp simd
        for (int64_t c = 0; c < width; c++) dst[r * width + c] = scale * src[r * stride + c];
    }
}

/* dst[rows,width] = scale · src, as bf16 or f32; rows of src are `stride` apart. */
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

/* An f32 factor is src itself. */
static void factor_convert(char *dst, const float *src, int64_t count, bool bf16) {
    if (bf16) dlxi_to_bf16((uint16_t *)(void *)dst, src, 1, count, count, 1.0f);
}

/* ---- forward --------------------------------------------------------------------------------- */

/* Rounds a row's visible keys up to whole vectors and fills the rest with −∞, which exp turns into
 * the 0 above the diagonal. */
static inline int64_t row_mask(float *row, int64_t seen, int64_t keys) {
    const int64_t rounded = (seen + 15) / 16 * 16, whole = rounded < keys ? rounded : keys;
    for (int64_t s = seen; s < whole; s++) row[s] = -HUGE_VALF;
    return whole;
}

/* scores[M,keys] → exp(scores − row maximum), 0 above the diagonal; row_scale ← 1/Σ; lse ← log Σ
 * exp(scores). Row m is query head m % group at position first + m / group; lse's heads are T
 * apart. */
DLXI_CLONES static void softmax_rows(float *scores, float *row_scale, float *lse, int64_t M,
                                     int64_t keys, int64_t first, int64_t group, int64_t T) {
    for (int64_t m = 0; m < M; m++) {
        float *row = scores + m * keys;
        const int64_t t = first + m / group, seen = row_mask(row, t + 1, keys);
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

/* Row m of out = row_scale[m] · rows[m,:]; positions are `stride` apart. */
DLXI_CLONES static void unpack_scaled(float *out, const float *rows, const float *row_scale,
                                      int64_t M, int64_t group, int64_t D, int64_t stride) {
    for (int64_t m = 0; m < M; m++) {
        float *to = out + m / group * stride + m % group * D;
        const float *from = rows + m * D, scale = row_scale[m];
#pragma omp simd
        for (int64_t d = 0; d < D; d++) to[d] = scale * from[d];
    }
}

/* The kv head g of window b and its query heads. */
static dlx_status head_forward(dlxi_lane *lane, const attention *a, const workspace *w, float *out,
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
        factor_convert(w->p, w->scores, M * keys, a->bf16);
        const void *p = a->bf16 ? (const void *)w->p : w->scores;
        DLX_TRY(dlxi_onednn_run(lane->products, &mix, w->rows, p, w->value, NULL));
        unpack_scaled(out + q_first + first * q_stride, w->rows, w->row_scale, M, a->group, D,
                      q_stride);
    }
    return DLX_OK;
}

static dlx_status lanes_status(const dlxi_kernels *k) {
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
        lane->status = workspace_reserve(&w, lane, &a);
        const int64_t end = dlxi_range_begin(B * kv_heads, i + 1, lanes);
        for (int64_t h = dlxi_range_begin(B * kv_heads, i, lanes);
             h < end && lane->status == DLX_OK; h++)
            lane->status =
                head_forward(lane, &a, &w, out, lse, q, key, value, h / kv_heads, h % kv_heads);
    }
    return lanes_status(k);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* row_scale[m] = Σ_d dout·out of row m; positions are `stride` apart. */
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
        const int64_t t = first + m / group, seen = row_mask(p, t + 1, keys);
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

/* A block's products from p and dscore: dvalue += pᵀ dout, dkey += dscoreᵀ q, rows = dscore key. */
static dlx_status products_backward(dlxi_lane *lane, const attention *a, const workspace *w,
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

/* The arrays of a backward pass, as in kernels.h. */
typedef struct gradients {
    float *dq, *dkey, *dvalue;
    const float *dout, *out, *lse, *q, *key, *value;
} gradients;

static dlx_status head_backward(dlxi_lane *lane, const attention *a, const workspace *w,
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
        factor_convert(w->p, w->scores, M * keys, a->bf16);
        factor_convert(w->dscore, w->dp, M * keys, a->bf16);
        DLX_TRY(products_backward(lane, a, w, first, M, keys));
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
        lane->status = workspace_reserve(&w, lane, &a);
        const int64_t end = dlxi_range_begin(B * kv_heads, i + 1, lanes);
        for (int64_t h = dlxi_range_begin(B * kv_heads, i, lanes);
             h < end && lane->status == DLX_OK; h++)
            lane->status = head_backward(lane, &a, &w, &x, h / kv_heads, h % kv_heads);
    }
    return lanes_status(k);
}
