/* SPDX-License-Identifier: Apache-2.0 */
/* Projections of a matrix on a basis. Site-local: a multiply-add may round once (this file alone is
 * built with contraction), and the order of a sum is the CPU's. Factors are stored by columns
 * (codec.h). */
#include "codec/codec.h"
#include "codec/half.h"

typedef struct shape {
    int64_t rows, cols, p_stride, q_stride;
    int rank;
} shape;

/* BLOCK values of all columns of a factor stay in a second-level cache, and PANEL_ROWS rows of 64
 * values in the first. */
enum { BLOCK = 1024, PANEL_ROWS = 128 };

static inline int64_t min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Of two vectors, as one of twice their lanes: what PROJECT(sums) takes of each quarter, at q. */
#define LOW(q)    (q), (q) + LANES, (q) + 1, (q) + LANES + 1
#define HIGH(q)   LOW((q) + 2)
#define FIRST(q)  (q), (q) + 1, (q) + LANES, (q) + LANES + 1
#define SECOND(q) FIRST((q) + 2)

/* Four times 4 lanes is any 64-bit CPU's; the compiler may have less. */
#define PROJECT(name) plain_##name
#define PROJECT_TARGET
#define LANES        4
#define ROWS         2
#define RANKS        4
#define WIDTH        2
#define QUARTERS(of) of(0)
#include "codec/project_tile.h"

typedef void projection(float *restrict, const float *restrict, const float *restrict,
                        const shape *);

#if defined(__GNUC__) && defined(__x86_64__)
#define PROJECT(name)  avx2_##name
#define PROJECT_TARGET __attribute__((target("avx2,fma")))
#define LANES          8
#define ROWS           3
#define RANKS          4
#define WIDTH          3
#define QUARTERS(of)   of(0), of(4)
#include "codec/project_tile.h"

#define PROJECT(name)  avx512_##name
#define PROJECT_TARGET __attribute__((target("avx512f,avx2,fma")))
#define LANES          16
#define ROWS           4
#define RANKS          4
#define WIDTH          4
#define QUARTERS(of)   of(0), of(4), of(8), of(12)
#include "codec/project_tile.h"

static projection *choose(projection *plain, projection *avx2, projection *avx512) {
    if (__builtin_cpu_supports("avx512f")) return avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2 : plain;
}
#define CHOOSE(name) choose(plain_##name, avx2_##name, avx512_##name)
#else
#define CHOOSE(name) plain_##name
#endif

static shape shape_of(int64_t rows, int64_t cols, int rank, int group) {
    return (shape){rows, cols, dlxi_factor_stride(rows, group), dlxi_factor_stride(cols, group),
                   rank};
}

void dlxi_project_rows(float *p, const float *m, const float *q, int64_t rows, int64_t cols,
                       int rank, int group) {
    const shape s = shape_of(rows, cols, rank, group);
    memset(p, 0, (size_t)s.p_stride * (size_t)rank * sizeof *p);
    CHOOSE(rows)(p, m, q, &s);
}

void dlxi_project_columns(float *q, const float *m, const float *p, int64_t rows, int64_t cols,
                          int rank, int group) {
    const shape s = shape_of(rows, cols, rank, group);
    memset(q, 0, (size_t)s.q_stride * (size_t)rank * sizeof *q);
    CHOOSE(columns)(q, m, p, &s);
}
