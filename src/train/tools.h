/* SPDX-License-Identifier: Apache-2.0 */
/* Evaluation, generation, snapshots, benchmarks, plans: what needs no run. The arguments are
 * checked. */
#ifndef DLXI_TRAIN_TOOLS_H
#define DLXI_TRAIN_TOOLS_H

#include "dilocox_train.h"
#include "train/config.h"

dlx_status dlxi_evaluate(double *loss, uint64_t *tokens_used, const char *checkpoint,
                         const char *data, const dlx_evaluate_options *options, dlx_error *error);
dlx_status dlxi_generate(char **text, size_t *text_bytes, const char *checkpoint,
                         const dlx_generate_options *options, dlx_error *error);
dlx_status dlxi_inspect(const char *path, dlx_log line, void *context, dlx_error *error);
dlx_status dlxi_bench_step(dlx_bench_step_result *result, const dlx_bench_step_options *options,
                           dlx_error *error);
dlx_status dlxi_bench_stages(dlx_bench_stages_result *result, const dlxi_config *config, int stages,
                             dlx_error *error);
dlx_status dlxi_plan(dlx_plan_result *result, const dlxi_config *config,
                     const dlx_plan_options *options, dlx_error *error);

#endif
