/* Which stage has which layers, and which rank owns which tensor. Pure, and the same on every rank and site. */
#ifndef DLXI_PIPELINE_CUT_H
#define DLXI_PIPELINE_CUT_H

#include "model/model.h"

enum { DLXI_STAGES_MAX = 256 };

typedef struct dlxi_cut {
    int stages;
    int64_t
        first_layer[DLXI_STAGES_MAX + 1]; /* stage s has layers first_layer[s] … first_layer[s+1] − 1; ≥ 1 of them */
} dlxi_cut;

/* Relative times of a micro-batch's forward and backward: one block, the embedding, and the head with its loss. */
typedef struct dlxi_costs {
    double block, embedding, head;
} dlxi_costs;

/* From operations and from rates measured with `dilocox bench stages` (docs/benchmarks.md), so that all sites cut alike
 * whatever their machines do at the moment. T: tokens in a window. */
dlxi_costs dlxi_costs_estimate(const dlxi_model_config *config, int64_t T);

/* The contiguous cut whose slowest stage is fastest; of equal ones, the one that gives early stages fewer layers.
 * DLX_CONFIG where there are fewer layers than stages. */
dlx_status dlxi_cut_balanced(dlxi_cut *out, const dlxi_model_config *config, const dlxi_costs *costs, int stages,
                             dlx_error *error);
/* From text: layers of each stage, "9,3". DLX_CONFIG names site.cut and what it must be. */
dlx_status dlxi_cut_parse(dlxi_cut *out, const dlxi_model_config *config, int stages, const char *text,
                          dlx_error *error);

/* owner[id] ← the rank of the site (stage · replicas + replica) that holds optimiser and outer state of tensor id, for
 * all dlxi_model_tensor_count(config) of them: one of those that hold the tensor, so that ranks have about equally many
 * parameters to keep. Large tensors first, each to the least laden; the tied table, which both ends hold, last. */
void dlxi_owners(int *owner, const dlxi_model_config *config, const dlxi_cut *cut, int replicas);

#endif
