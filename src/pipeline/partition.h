/* SPDX-License-Identifier: Apache-2.0 */
/* Which stage has which layers, and which rank owns which tensor. Pure, and the same on every rank
 * and site (measured costs aside). */
#ifndef DLXI_PIPELINE_PARTITION_H
#define DLXI_PIPELINE_PARTITION_H

#include "model/model.h"
#include "base/limits.h"

typedef struct dlxi_partition {
    int stages;
    int64_t
        /* stage s has layers first_layer[s] … first_layer[s+1] − 1; ≥ 1 of them */
        first_layer[DLXI_STAGES_MAX + 1];
} dlxi_partition;

/* Times of a micro-batch's forward and backward, relative to each other: one block, the embedding,
 * and the head with its loss. */
typedef struct dlxi_costs {
    double block, embedding, head;
} dlxi_costs;

/* From operations and from constant rates (costs.c says where they come from), so that all sites
 * cut alike whatever their machines do at the moment. T: tokens in a window. */
dlxi_costs dlxi_costs_estimate(const dlxi_model_config *config, int64_t T);

/* Seconds a micro-batch of `batch` windows of T tokens, on these kernels and this machine at this
 * moment: the medians of a few passes over random tokens, gradients added up as between two
 * optimiser steps. DLX_CONFIG, DLX_MEMORY. */
dlx_status dlxi_costs_measure(dlxi_costs *out, const dlxi_model_config *config, int64_t batch,
                              int64_t T, dlxi_kernels *kernels, dlx_error *error);

/* The same costs where blocks run their forward again before their backward
 * (dlxi_stage_options.recompute). */
dlxi_costs dlxi_costs_with_recompute(dlxi_costs costs);

/* The contiguous cut whose slowest stage is fastest; of equal ones an even one, with the longer
 * stages late, where fewer micro-batches are alive. DLX_CONFIG where there are fewer layers than
 * stages. */
dlx_status dlxi_partition_balanced(dlxi_partition *out, const dlxi_model_config *config,
                                   const dlxi_costs *costs, int stages, dlx_error *error);
/* From text: layers of each stage, "9,3". DLX_CONFIG names site.cut and what it must be. */
dlx_status dlxi_partition_parse(dlxi_partition *out, const dlxi_model_config *config, int stages,
                                const char *text, dlx_error *error);

/* owner[id] ← the rank of the site (stage · replicas + replica) that holds optimiser and outer
 * state of tensor id, for all dlxi_model_tensor_count(config) of them: one of those that hold the
 * tensor, so that ranks have about equally many parameters to keep. Large tensors first, each to
 * the least laden; the tied table, which both ends hold, last. stages · replicas ≤ DLXI_RANKS_MAX.
 */
void dlxi_owners(int *owner, const dlxi_model_config *config, const dlxi_partition *cut,
                 int replicas);

#endif
