/* SPDX-License-Identifier: Apache-2.0 */
/* The state of one rank of a site, shared by the files of a run. */
#ifndef DLXI_TRAIN_SITE_RUN_H
#define DLXI_TRAIN_SITE_RUN_H

#include "base/file.h"
#include "checkpoint/snapshot.h"
#include "model/optimizer.h"
#include "pipeline/pipeline.h"
#include "train/folder.h"
#include "train/results.h"
#include "train/run.h"

/* One rank's part of the site's statistics. */
typedef struct dlxi_rank_report {
    dlx_statistics statistics;
    dlxi_pipeline_times times;
    int64_t peak_rss_bytes, stage_parameters, shard_parameters;
} dlxi_rank_report;

enum { DLXI_TRAIN_NUMBERS = 12 };

/* What is saved from time to time, and at the end. */
typedef struct dlxi_snapshots {
    char directory[DLXI_PATH_BYTES];
    dlxi_snapshot_writer *writer; /* NULL: none is being written */
    uint64_t step;                /* of the one that is, or of the last */
    size_t own_parts, parts;      /* of the trainer, which come first; of all */
    json_t *meta;
    int64_t numbers[DLXI_TRAIN_NUMBERS];
    double begun_s;                   /* this process's training, at first_round */
    uint64_t first_round, last_round; /* last: of the last snapshot */
    /* while they are restored */
    dlxi_snapshot *resumed;
    bool is_another, same_layout; /* another site's; of ranks as this site's */
    dlxi_snapshot **unsent;       /* [unsent_count], of sites that do not go on */
    size_t unsent_count;
} dlxi_snapshots;

enum { DLXI_DIAGNOSES = 4 };

typedef struct site_run {
    const dlxi_config *config;
    const dlx_train_options *options;
    char directory[DLXI_PATH_BYTES]; /* the site's: run.dir/NAME */
    dlxi_folder folder;              /* rank 0's hold on run.dir */
    char run_id[DLXI_RUN_ID_BYTES];
    dlxi_grid *grid; /* NULL: the site has one rank */
    int rank, ranks; /* of the site; 0 of 1 */
    void *gathered;  /* [ranks] of what a gather brings, each at most a dlx_error */

    dlxi_token_file *train_file, *validation_file;
    uint64_t data_hash; /* of train_file's tokens */
    dlxi_sampler sampler;
    dlxi_kernels *kernels;
    dlxi_partition partition;
    dlxi_pipeline *pipeline;
    dlxi_optimizer *optimizer;
    /* the owned tensors, [parameter_count] each */
    dlxi_parameter *parameters;
    dlx_tensor *tensors;
    float **gradients;
    int64_t parameter_count;
    dlx_sync *sync;
    /* rank 0's; NULL until it is open */
    dlxi_metrics *metrics;
    dlxi_snapshots snapshots;
    uint64_t *positions;   /* [batch] */
    double failed_since_s; /* when a wait first saw that the run failed; 0: it has not */
    bool fails_together;   /* in a call that fails on all ranks of the site or on none */

    uint64_t steps;
    double trained_s; /* by processes before this one, from join to end */
    double start_s, compute_s, wait_s, step_s_max;
    double recent_s, recent_tokens; /* decaying sums, for the displayed speed */
    uint32_t sites;                 /* at the start */
    double val_loss_sum, val_loss_initial_sum, val_tokens, val_tokens_initial;
    double exchange_steps; /* Σ over exchange_rounds of the steps that an exchange took */
    uint64_t exchange_rounds;
    double diagnosis[DLXI_DIAGNOSES]; /* Σ over diagnosed_rounds */
    uint64_t diagnosed_rounds;
    uint64_t sent_before, received_before;       /* by this site's processes before this one */
    uint64_t wan_bytes_sent, wan_bytes_received; /* by all ranks, as of the present step's end */
    dlxi_rank_report *reports;                   /* [ranks], of the last dlxi_run_collect */
    dlx_statistics statistics;                   /* the site's, of the same */
} site_run;

/* A message to the terminal and to metrics.jsonl. A dlx_log whose context is a site_run. */
void dlxi_run_say(void *run, const char *text);
/* A line of metrics.jsonl; takes ownership of it. If it can't be written, the next step's can't
 * either, and says so. */
void dlxi_run_record(site_run *r, json_t *line);

/* A dlx_gather whose context is a site_run. Collective over the site. */
dlx_status dlxi_run_gather(void *run, void *all, const void *own, size_t bytes, dlx_error *error);
/* The same on all ranks: DLX_OK if `status` is on all, else what the first says on which it is not,
 * `own` with a failure. Collective over the site. */
dlx_status dlxi_run_together(site_run *r, dlx_status status, const dlx_error *own,
                             dlx_error *error);
/* *any ← whether one of the ranks says so; *same ← whether all of them have the same number.
 * Collective over the site. */
dlx_status dlxi_run_ask(bool *any, bool *same, site_run *r, bool flag, uint64_t number,
                        dlx_error *error);

/* This rank's as of now, with what earlier processes sent. */
dlx_statistics dlxi_run_statistics(site_run *r);
/* Fills reports and statistics: sums of bytes, the longest exchange, means by parameters.
 * Collective over the site. */
dlx_status dlxi_run_collect(site_run *r, dlx_error *error);

/* How the last round's messages stand to each other, of the last dlxi_run_collect: into `line`, and
 * into the sums for the summary. */
void dlxi_run_diagnose(site_run *r, json_t *line);

/* Of the last dlxi_run_collect. New references. */
json_t *dlxi_run_summarize(const site_run *r, const char *outcome);
json_t *dlxi_run_per_rank(const site_run *r);
/* *out ← the anchor's hash of each tensor of the model, by name: a new reference on rank 0, else
 * NULL. Collective over the site. */
dlx_status dlxi_run_anchor_hashes(json_t **out, site_run *r, dlx_error *error);

/* Saves the parameters to directory/weights: each stage's first replica writes its part. Collective
 * over the site. */
dlx_status dlxi_run_save(site_run *r, const char *directory, dlx_error *error);

#endif
