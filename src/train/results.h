/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a run: metrics.jsonl, and summary.json of a site and of the run. */
#ifndef DLXI_TRAIN_RESULTS_H
#define DLXI_TRAIN_RESULTS_H

#include "train/config.h"

#include <jansson.h>

enum { DLXI_SUMMARY_VERSION = 1 };

/* mkdir -p */
dlx_status dlxi_directory_make(const char *path, dlx_error *error);

/* DLX_CONFIG if a file that the run reads is one that it would write in this directory, run.dir or
 * a site's, or is among the weights there. */
dlx_status dlxi_outputs_check(const dlxi_config *config, const char *directory, dlx_error *error);

typedef struct dlxi_metrics dlxi_metrics;

/* Replaces the file; or goes on behind its last complete line. */
dlx_status dlxi_metrics_open(dlxi_metrics **out, const char *path, bool goes_on, dlx_error *error);
/* Writes one line; takes ownership of it, also on failure, after which the file ends with the line
 * before. Its numbers must be finite. */
dlx_status dlxi_metrics_write(dlxi_metrics *metrics, json_t *line, dlx_error *error);
void dlxi_metrics_close(dlxi_metrics **metrics);

/* An event for operators, as of now; in this round unless it is 0. Text may be a peer's. NULL: no
 * memory. */
json_t *dlxi_notice_make(const char *text, uint64_t round);

/* A number, or null if it is not finite. */
json_t *dlxi_json_real(double value);

dlx_status dlxi_summary_write(const char *path, const json_t *summary, dlx_error *error);

/* The run's summary from an array of the sites' summaries: sums, means, and values that all sites
 * share; `dropped` goes into it as it is. A new reference. */
json_t *dlxi_summary_merge(const json_t *sites, const json_t *dropped, const json_t *membership,
                           const char *run_id);

#endif
