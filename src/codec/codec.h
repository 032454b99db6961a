/* SPDX-License-Identifier: Apache-2.0 */
/* The codec: quantiser, low-rank factors, and the arithmetic that is equal to the bit on replicas.
 *
 * Replicated results (dequantise, sums, orthonormalise, expansion, spectrum) are one fixed order of
 * IEEE additions, multiplications, divisions and square roots, inside dlxi_arithmetic_enter/leave.
 * Site-local results (projections, the quantiser's input) may differ between sites: all use what
 * was sent. */
#ifndef DLXI_CODEC_H
#define DLXI_CODEC_H

#include "base/error.h"

/* ---- floating-point environment -------------------------------------------------------------- */

typedef struct dlxi_arithmetic {
    unsigned char saved[64];
} dlxi_arithmetic;

/* Saves this thread's rounding and denormal modes and sets round-to-nearest with denormals kept. */
void dlxi_arithmetic_enter(dlxi_arithmetic *saved);
void dlxi_arithmetic_leave(const dlxi_arithmetic *saved);

/* ---- quantiser ------------------------------------------------------------------------------- */

/* Symmetric, little-endian, in groups of consecutive values:
 *    4 bits   group/2 bytes of codes −7 … 7 (two's complement, low nibble first), then an f16 scale
 *    8 bits   group bytes of codes −127 … 127, then the scale
 *   16 bits   IEEE halves
 *   32 bits   the values
 * The scale is max|x| / 7 (or / 127) rounded *up* to f16: no code is clipped, and the error is at
 * most half a step. */
typedef struct dlxi_quantiser {
    int bits;  /* 4, 8, 16 or 32 */
    int group; /* even, 2 … 1024 */
} dlxi_quantiser;

size_t dlxi_quantiser_group_bytes(dlxi_quantiser q);
/* dst has groups × group_bytes. DLX_NUMERIC, with dst undefined, if a value is not finite or is too
 * large for the format. */
dlx_status dlxi_quantise(uint8_t *dst, const float *src, size_t groups, dlxi_quantiser q);
void dlxi_dequantise(float *dst, const uint8_t *src, size_t groups, dlxi_quantiser q);
/* dst += weight · dequantised: one rounding after the product, one after the sum. */
void dlxi_dequantise_add(float *dst, const uint8_t *src, float weight, size_t groups,
                         dlxi_quantiser q);
/* Whether every scale and value of received bytes is finite. */
bool dlxi_codes_valid(const uint8_t *src, size_t groups, dlxi_quantiser q);

/* ---- low rank -------------------------------------------------------------------------------- */

/* A factor is stored by columns: `rank` vectors of `length` values, each padded with zeros to
 * `stride` values (a multiple of the quantiser's group), so that a group never mixes ranks. P:
 * length = rows; Q: length = cols. */
static inline int64_t dlxi_factor_stride(int64_t length, int group) {
    return (length + group - 1) / group * group;
}

/* Site-local. P = M[rows,cols] · Q, and Q = Mᵀ · P. Padding is written as zeros. */
void dlxi_project_rows(float *p, const float *m, const float *q, int64_t rows, int64_t cols,
                       int rank, int group);
void dlxi_project_columns(float *q, const float *m, const float *p, int64_t rows, int64_t cols,
                          int rank, int group);

/* Replicated. Makes the columns orthonormal in order (Gram–Schmidt by blocks of 64 columns, twice;
 * products summed in f64 over 16 fixed lanes). A dependent column (its norm is 0, or projection
 * leaves less than 1e-6 of it) becomes zero. */
void dlxi_orthonormalise(float *factor, int64_t length, int rank, int group);

/* Replicated. dst[count,cols] = rows `first` … of P · Qᵀ: Σ_k p[k][row] · q[k][0..cols), k
 * ascending, from zero. Some tens of rows at a time are faster than one. */
void dlxi_expand_rows(float *dst, const float *p, const float *q, int64_t first, int64_t count,
                      int64_t rows, int64_t cols, int rank, int group);

/* Replicated. values[rank] ← the singular values of Q, which are those of P·Qᵀ for orthonormal P,
 * descending: cyclic Jacobi on QᵀQ in f64, a fixed number of sweeps. scratch: rank · rank. */
void dlxi_spectrum(double *values, double *scratch, const float *q, int64_t cols, int rank,
                   int group);

/* Replicated. Fills columns first … rank − 1 of a basis with random signs: ±1, column k by (seed,
 * tensor, round, k). */
void dlxi_basis_fill(float *q, int64_t cols, int first, int rank, int group, uint64_t seed,
                     uint32_t tensor, uint64_t round);
/* Replicated. The next basis: the columns of q by norm, largest first (ties: lower index first),
 * orthonormalised. scratch: rank · stride. */
void dlxi_basis_from(float *basis, const float *q, float *scratch, int64_t cols, int rank,
                     int group);

#endif
