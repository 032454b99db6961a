/* SPDX-License-Identifier: Apache-2.0 */
/* The partition of the layers into stages, and the shard map of the tensors. Pure, and the same on
 * every rank and site (measured costs aside). */
#ifndef DLXI_PIPELINE_PARTITION_H
#define DLXI_PIPELINE_PARTITION_H

#include "model/model.h"
#include "base/limits.h"

typedef struct dlxi_partition {
    int stages;
    /* stage s has layers first_layer[s] … first_layer[s+1] − 1, at least one */
    int64_t first_layer[DLXI_STAGES_MAX + 1];
} dlxi_partition;

/* Forward and backward times per micro-batch: of one block, the embedding, and the head with its
 * loss. Only their ratios matter to a partition. */
typedef struct dlxi_costs {
    double block, embedding, head;
} dlxi_costs;

/* Nanoseconds per token, from operation counts and constant rates (costs.c), so that all sites
 * choose the same partition. T: tokens per window. */
dlxi_costs dlxi_costs_estimate(const dlxi_model_config *config, int64_t T);

/* Seconds per micro-batch of `batch` windows of T tokens on this machine now: medians over random
 * tokens, with gradients added up. DLX_CONFIG, DLX_MEMORY. */
dlx_status dlxi_costs_measure(dlxi_costs *out, const dlxi_model_config *config, int64_t batch,
                              int64_t T, dlxi_kernels *kernels, dlx_error *error);

/* The same costs if blocks recompute their forward pass (dlxi_stage_options.recompute). */
dlxi_costs dlxi_costs_with_recompute(dlxi_costs costs);

/* The contiguous partition whose slowest stage is fastest; among equals an even one with the longer
 * stages last, where fewer micro-batches are in flight. DLX_CONFIG if there are fewer layers than
 * stages. */
dlx_status dlxi_partition_balanced(dlxi_partition *out, const dlxi_model_config *config,
                                   const dlxi_costs *costs, int stages, dlx_error *error);
/* Parses the layers of each stage, "9,3". DLX_CONFIG names site.cut and the allowed values. */
dlx_status dlxi_partition_parse(dlxi_partition *out, const dlxi_model_config *config, int stages,
                                const char *text, dlx_error *error);

/* The stage that holds a tensor; of the tied table, which both ends hold, the first. */
int dlxi_partition_stage(const dlxi_partition *partition, const dlxi_tensor *tensor);

/* shard_map[id] ← the rank of the site (stage · replicas + replica) that owns tensor id, its
 * optimiser and its outer state, for all dlxi_model_tensor_count(config) tensors. The owner is one
 * of the ranks that hold the tensor. Owned parameters are balanced: the largest tensors first, each
 * to the least loaded rank; the tied table last.
 * stages · replicas ≤ DLXI_RANKS_MAX. */
void dlxi_shard_map_fill(int *shard_map, const dlxi_model_config *config,
                         const dlxi_partition *partition, int replicas);

#endif
