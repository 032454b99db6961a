/* SPDX-License-Identifier: Apache-2.0 */
/* Adaptation of rank and H: one decision, the same on every site, from what all know. Pure. */
#ifndef DLXI_OUTER_ADAPT_H
#define DLXI_OUTER_ADAPT_H

#include "base/error.h"

enum {
    DLXI_ADAPT_WINDOW = 5 /* c: rounds averaged */,
    DLXI_ADAPT_PROBES = 2 /* s: columns beyond the rank */
};
#define DLXI_ADAPT_SHARE 0.95 /* τ: of the probed energy that the rank must hold */

typedef struct dlxi_adapt_tensor {
    int64_t parameters;                       /* rows · cols */
    int factor_rank_first, factor_rank_limit; /* r_1, and the most that this shape can gain from */
    int factor_rank;                          /* r_t */
    int history[DLXI_ADAPT_WINDOW], history_count;
} dlxi_adapt_tensor;

typedef struct dlxi_adapt {
    dlx_adaptation kind;
    int factor_rank_min, factor_rank_max;
    uint32_t inner_steps_first, inner_steps_min; /* H_1, H_min */
    uint32_t inner_steps;                        /* H of the rounds that begin from now on */
} dlxi_adapt;

/* The columns that a tensor exchanges: its rank, and for `paper` the probes, within its limit. */
int dlxi_adapt_columns(const dlxi_adapt *adapt, const dlxi_adapt_tensor *tensor);

/* paper. The least rank whose singular values hold DLXI_ADAPT_SHARE of the energy of all `count` of
 * them (descending). */
int dlxi_adapt_effective_rank(const double *singular_values, int count);
/* paper. Takes one tensor's effective rank of a committed round: r_t ← mean of the last c, within
 * the bounds. */
void dlxi_adapt_observe(const dlxi_adapt *adapt, dlxi_adapt_tensor *tensor, int effective_rank);
/* What tensors say about H. Whole numbers, so that the sums of a model's parts add up to the
 * model's, however it is cut. */
typedef struct dlxi_adapt_sums {
    uint64_t weighted_ranks; /* Σ parameters · r_t */
    uint64_t parameters;     /* Σ parameters */
} dlxi_adapt_sums;

dlxi_adapt_sums dlxi_adapt_sum(const dlxi_adapt_tensor *tensors, size_t count);
/* paper. H_1 · mean(r_t / r_1, weighted by parameters), within [H_min, H_1]; r_1 is common to all
 * tensors. Without tensors: the present H. */
uint32_t dlxi_adapt_inner_steps(const dlxi_adapt *adapt, dlxi_adapt_sums sums,
                                int factor_rank_first);
/* paper. H ← as above, of these tensors. */
void dlxi_adapt_paper(dlxi_adapt *adapt, const dlxi_adapt_tensor *tensors, size_t count);

/* One member's measurements, as the view carries them. */
typedef struct dlxi_adapt_member {
    uint64_t step_ns, exchange_ns, exchange_bytes;
} dlxi_adapt_member;

/* The largest number of columns for which two factors are smaller than the matrix, up to 1024. */
int dlxi_adapt_rank_limit(int64_t rows, int64_t cols);

/* The largest rank from rank_min to *rank for which an exchange that takes steps_at(context, rank)
 * inner steps is hidden by H ≤ inner_steps_max of them with 10% to spare, or rank_min → *rank;
 * returns the H that it needs. */
double dlxi_adapt_choose(int *rank, int rank_min, double inner_steps_max,
                         double (*steps_at)(void *context, int rank), void *context);

/* link. The largest rank, then the shortest H, for which the slowest member hides the exchange with
 * 10% to spare: exchange · bytes(rank) / bytes measured ≤ 0.9 · H · step. bytes_at(context, rank)
 * is C with every tensor at that rank (within its limit). Without measurements nothing changes. */
void dlxi_adapt_link(dlxi_adapt *adapt, dlxi_adapt_tensor *tensors, size_t count,
                     const dlxi_adapt_member *members, size_t member_count,
                     uint64_t (*bytes_at)(void *context, int rank), void *context);

#endif
