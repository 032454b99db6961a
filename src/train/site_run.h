/* SPDX-License-Identifier: Apache-2.0 */
/* One rank of a site at work, as the files of the run share it. */
#ifndef DLXI_TRAIN_SITE_RUN_H
#define DLXI_TRAIN_SITE_RUN_H

#include "model/optimizer.h"
#include "pipeline/pipeline.h"
#include "train/results.h"
#include "train/run.h"

/* What one rank has to tell. */
typedef struct dlxi_rank_report {
    dlx_statistics statistics;
    dlxi_pipeline_times times;
    int64_t peak_rss_bytes, stage_parameters, shard_parameters;
} dlxi_rank_report;

typedef struct site_run {
    const dlxi_config *config;
    const dlx_train_options *options;
    char folder[DLXI_PATH_BYTES];
    dlxi_place *place; /* NULL: the site is this rank alone */
    int rank, ranks;   /* of the site; 0 of 1 */

    dlxi_token_file *train_file, *validation_file;
    dlxi_sampler sampler;
    dlxi_kernels *kernels;
    dlxi_partition cut;
    dlxi_pipeline *pipeline;
    dlxi_optimizer *optimizer;  /* of the owned */
    dlxi_parameter *parameters; /* owned: this rank synchronises them */
    int64_t parameter_count;
    dlx_tensor *tensors;
    float **gradients;
    dlx_sync *sync;
    dlxi_metrics *metrics; /* the first rank's */
    uint64_t *positions;   /* [batch] */
    /* the run is known to have failed, first seen so in a wait; 0: it isn't */
    double lost_since_s;
    bool is_together; /* in a call that fails on all ranks of the site or on none */

    uint64_t steps;
    double start_s, compute_s, wait_s, step_s_max;
    double recent_s, recent_tokens; /* of the speed shown: decaying sums */
    double val_loss_sum, val_loss_initial_sum, val_tokens;
    double exchange_steps; /* Σ over rounds of the steps that an exchange took */
    uint64_t exchange_rounds;
    dlxi_rank_report *reports; /* [ranks], as of the last dlxi_run_collect */
    dlx_statistics statistics; /* the same of the whole site */
} site_run;

/* Takes what every rank has to tell, and puts the site's statistics together: sums of bytes, the
 * longest exchange, means by parameters. Collective over the site. */
dlx_status dlxi_run_collect(site_run *r, dlx_error *error);

/* From what was collected. New references. */
json_t *dlxi_run_summarize(const site_run *r, const char *outcome);
json_t *dlxi_run_per_rank(const site_run *r);
/* One hash a tensor of the model, by name. The first rank's *out is the caller's, the others' are
 * NULL. Collective over the site. */
dlx_status dlxi_run_anchor_hashes(json_t **out, site_run *r, dlx_error *error);

/* The model as it is in memory, into folder/weights: each stage's first replica writes its part.
 * Collective over the site. */
dlx_status dlxi_run_save(site_run *r, const char *folder, dlx_error *error);

#endif
