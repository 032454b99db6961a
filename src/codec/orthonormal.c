/* SPDX-License-Identifier: Apache-2.0 */
/* Replicated linear algebra on factors: orthonormal columns, singular values, and the next round's
 * basis. Products are summed in f64 over 16 lanes, element i in lane i mod 16, and the lanes by
 * halves: one order, whatever the CPU's vector width. Factors are stored by columns (codec.h). */
#include "codec/codec.h"
#include "codec/half.h"
#include "base/panic.h"
#include "base/rng.h"

#include <math.h>

enum { LANES = 8, SUM_LANES = 2 * LANES, JACOBI_SWEEPS = 16, TOGETHER = 2 };

/* Vectors of the compiler: one takes as many registers as the CPU needs, and its arithmetic is that
 * of its elements. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi" /* of vectors in calls, but all of these are inlined */
#endif
typedef double doubles __attribute__((vector_size(LANES * sizeof(double))));
typedef float floats __attribute__((vector_size(LANES * sizeof(float))));

static DLXI_ALWAYS_INLINE doubles widen(const float *x) {
    floats values;
    memcpy(&values, x, sizeof values);
    return __builtin_convertvector(values, doubles);
}

/* products[c] ← a · b_c for `count` ≤ TOGETHER columns b_c, `stride` apart. */
static DLXI_ALWAYS_INLINE void multiply(double *products, const float *restrict a,
                                        const float *restrict b, int64_t length, int64_t stride,
                                        int count) {
    doubles sum[TOGETHER][2] = {{{0.0}}};
    int64_t whole = length / SUM_LANES * SUM_LANES;
    for (int64_t i = 0; i < whole; i += SUM_LANES) {
        const doubles low = widen(a + i), high = widen(a + i + LANES);
        for (int c = 0; c < count; c++) {
            sum[c][0] += low * widen(b + c * stride + i);
            sum[c][1] += high * widen(b + c * stride + i + LANES);
        }
    }
    for (int c = 0; c < count; c++) {
        double lanes[SUM_LANES];
        memcpy(lanes, sum[c], sizeof lanes);
        for (int64_t i = whole; i < length; i++)
            lanes[i - whole] += (double)a[i] * (double)b[c * stride + i];
        for (int half = SUM_LANES / 2; half > 0; half /= 2)
            for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
        products[c] = lanes[0];
    }
}

/* products[c] ← a · b_c for `count` columns. */
DLXI_FIXED_ORDER static void dots(double *products, const float *a, const float *b, int64_t length,
                                  int64_t stride, int count) {
    int c = 0;
    for (; c + TOGETHER <= count; c += TOGETHER)
        multiply(products + c, a, b + c * stride, length, stride, TOGETHER);
    for (; c < count; c++) multiply(products + c, a, b + c * stride, length, stride, 1);
}

static double dot(const float *a, const float *b, int64_t length) {
    double product;
    dots(&product, a, b, length, 0, 1);
    return product;
}

/* column ← column − Σ_c shares[c] · b_c, c ascending, in f64 and rounded once. */
DLXI_FIXED_ORDER static void subtract(float *restrict column, const double *shares,
                                      const float *restrict b, int64_t length, int64_t stride,
                                      int count) {
    int64_t i = 0;
    for (; i + SUM_LANES <= length; i += SUM_LANES) {
        doubles low = widen(column + i), high = widen(column + i + LANES);
        for (int c = 0; c < count; c++) {
            low -= shares[c] * widen(b + c * stride + i);
            high -= shares[c] * widen(b + c * stride + i + LANES);
        }
        const floats rounded[2] = {__builtin_convertvector(low, floats),
                                   __builtin_convertvector(high, floats)};
        memcpy(column + i, rounded, sizeof rounded);
    }
    for (; i < length; i++) {
        double value = (double)column[i];
        for (int c = 0; c < count; c++) value -= shares[c] * (double)b[c * stride + i];
        column[i] = (float)value;
    }
}

DLXI_FIXED_ORDER static void divide(float *column, double divisor, int64_t length) {
    for (int64_t i = 0; i < length; i++) column[i] = (float)((double)column[i] / divisor);
}

static void orthonormalise(float *factor, int64_t length, int rank, int64_t stride) {
    enum { SHARES = 64 }; /* columns that are removed with one rounding */
    const double dependent = 1e-6;
    double shares[SHARES];
    for (int k = 0; k < rank; k++) {
        float *column = factor + k * stride;
        double before = sqrt(dot(column, column, length));
        /* the second pass removes what rounding left: Giraud et al. 2005 */
        for (int pass = 0; pass < 2; pass++)
            for (int j = 0; j < k; j += SHARES) {
                const float *earlier = factor + j * stride;
                const int count = k - j < SHARES ? k - j : SHARES;
                dots(shares, column, earlier, length, stride, count);
                subtract(column, shares, earlier, length, stride, count);
            }
        double after = sqrt(dot(column, column, length));
        if (after == 0.0 || after < dependent * before)
            memset(column, 0, (size_t)stride * sizeof *column);
        else
            divide(column, after, length);
        for (int64_t i = length; i < stride; i++) column[i] = 0.0f;
    }
}

void dlxi_orthonormalise(float *factor, int64_t length, int rank, int group) {
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    orthonormalise(factor, length, rank, dlxi_factor_stride(length, group));
    dlxi_arithmetic_leave(&saved);
}

/* ---- spectrum -------------------------------------------------------------------------------- */

/* x ← cosine · x − sine · y;  y ← sine · x + cosine · y. */
DLXI_FIXED_ORDER static void rotate(double *restrict x, double *restrict y, double cosine,
                                    double sine, int count) {
    for (int i = 0; i < count; i++) {
        double old_x = x[i], old_y = y[i];
        x[i] = cosine * old_x - sine * old_y;
        y[i] = sine * old_x + cosine * old_y;
    }
}

/* Zeroes a[p][q] of the symmetric a[rank,rank] (Golub & Van Loan, Matrix Computations, §8.5). An
 * entry below the rounding of its diagonal is left: sweeps after convergence cost nothing. */
static void jacobi_rotate(double *a, int rank, int p, int q) {
    double *row_p = a + (size_t)p * (size_t)rank, *row_q = a + (size_t)q * (size_t)rank;
    double entry = row_p[q], at_p = row_p[p], at_q = row_q[q];
    if (fabs(entry) <= 1e-17 * sqrt(fabs(at_p)) * sqrt(fabs(at_q))) return;
    double theta = (at_q - at_p) / (2.0 * entry);
    double tangent = 1.0 / (fabs(theta) + sqrt(theta * theta + 1.0));
    if (theta < 0.0) tangent = -tangent;
    double cosine = 1.0 / sqrt(tangent * tangent + 1.0), sine = tangent * cosine;
    rotate(row_p, row_q, cosine, sine, rank);
    row_p[p] = at_p - tangent * entry;
    row_q[q] = at_q + tangent * entry;
    row_p[q] = row_q[p] = 0.0;
    for (int i = 0; i < rank; i++) {
        a[(size_t)i * (size_t)rank + (size_t)p] = row_p[i];
        a[(size_t)i * (size_t)rank + (size_t)q] = row_q[i];
    }
}

static void spectrum(double *values, double *gram, const float *q, int64_t cols, int rank,
                     int64_t stride) {
    for (int i = 0; i < rank; i++)
        for (int j = 0; j <= i; j++) {
            double product = dot(q + i * stride, q + j * stride, cols);
            gram[(size_t)i * (size_t)rank + (size_t)j] =
                gram[(size_t)j * (size_t)rank + (size_t)i] = product;
        }
    for (int sweep = 0; sweep < JACOBI_SWEEPS; sweep++)
        for (int i = 0; i < rank - 1; i++)
            for (int j = i + 1; j < rank; j++) jacobi_rotate(gram, rank, i, j);
    for (int k = 0; k < rank; k++) { /* insertion sort, descending */
        double square = gram[(size_t)k * (size_t)rank + (size_t)k];
        double value = square > 0.0 ? sqrt(square) : 0.0;
        int at = k;
        for (; at > 0 && values[at - 1] < value; at--) values[at] = values[at - 1];
        values[at] = value;
    }
}

void dlxi_spectrum(double *values, double *scratch, const float *q, int64_t cols, int rank,
                   int group) {
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    spectrum(values, scratch, q, cols, rank, dlxi_factor_stride(cols, group));
    dlxi_arithmetic_leave(&saved);
}

/* ---- basis ----------------------------------------------------------------------------------- */

void dlxi_basis_fill(float *q, int64_t cols, int first, int rank, int group, uint64_t seed,
                     uint32_t tensor, uint64_t round) {
    int64_t stride = dlxi_factor_stride(cols, group);
    for (int k = first; k < rank; k++) {
        uint64_t stream = dlxi_rng_u64(tensor, round, (uint64_t)k), bits = 0;
        for (int64_t i = 0; i < stride; i++) {
            if (i % 64 == 0) bits = dlxi_rng_u64(seed, stream, (uint64_t)i / 64);
            float sign = (bits >> (i % 64) & 1u) != 0 ? 1.0f : -1.0f;
            q[k * stride + i] = i < cols ? sign : 0.0f;
        }
    }
}

static double norm_at(const float *norms, int k) {
    double norm;
    memcpy(&norm, norms + 2 * k, sizeof norm);
    return norm;
}

/* scratch holds first the squared norms (doubles: 2·rank ≤ rank·stride floats), then the sorted
 * columns; basis meanwhile holds each column's position. */
static void basis_from(float *basis, const float *q, float *scratch, int64_t cols, int rank,
                       int64_t stride) {
    for (int k = 0; k < rank; k++) {
        double norm = dot(q + k * stride, q + k * stride, cols);
        memcpy(scratch + 2 * k, &norm, sizeof norm);
    }
    for (int k = 0; k < rank; k++) {
        int32_t position = 0;
        double norm = norm_at(scratch, k);
        for (int j = 0; j < rank; j++) {
            double other = norm_at(scratch, j);
            position += other > norm || (other == norm && j < k) ? 1 : 0;
        }
        memcpy(basis + k, &position, sizeof position);
    }
    for (int k = 0; k < rank; k++) {
        int32_t position;
        memcpy(&position, basis + k, sizeof position);
        memcpy(scratch + position * stride, q + k * stride, (size_t)stride * sizeof *q);
    }
    memcpy(basis, scratch, (size_t)rank * (size_t)stride * sizeof *basis);
    orthonormalise(basis, cols, rank, stride);
}

void dlxi_basis_from(float *basis, const float *q, float *scratch, int64_t cols, int rank,
                     int group) {
    DLXI_ASSERT(basis != q && scratch != q && scratch != basis);
    dlxi_arithmetic saved;
    dlxi_arithmetic_enter(&saved);
    basis_from(basis, q, scratch, cols, rank, dlxi_factor_stride(cols, group));
    dlxi_arithmetic_leave(&saved);
}
