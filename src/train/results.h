/* SPDX-License-Identifier: Apache-2.0 */
/* What a run leaves: metrics.jsonl, a site's summary.json, and the run's. */
#ifndef DLXI_TRAIN_RESULTS_H
#define DLXI_TRAIN_RESULTS_H

#include "base/error.h"

#include <jansson.h>

enum { DLXI_SUMMARY_VERSION = 1, DLXI_PATH_BYTES = 1024 };

/* mkdir -p */
dlx_status dlxi_folder_make(const char *path, dlx_error *error);
/* out ← folder/name, or folder/middle/name. */
dlx_status dlxi_path_join(char out[DLXI_PATH_BYTES], const char *folder, const char *middle,
                          const char *name, dlx_error *error);

typedef struct dlxi_metrics dlxi_metrics;

/* Starts the file anew. */
dlx_status dlxi_metrics_open(dlxi_metrics **out, const char *path, dlx_error *error);
/* One line; takes the object over. Non-finite numbers must not be in it. */
dlx_status dlxi_metrics_write(dlxi_metrics *metrics, json_t *line, dlx_error *error);
void dlxi_metrics_close(dlxi_metrics **metrics);

/* A number, or null where it is not finite. */
json_t *dlxi_json_real(double value);

dlx_status dlxi_summary_write(const char *path, const json_t *summary, dlx_error *error);

/* The run's summary from the sites' (an array of objects as run.c makes them): sums, means, and
 * whether hashes agree. NULL where memory is out. The caller's to release. */
json_t *dlxi_summary_merge(const json_t *sites);

#endif
