/* SPDX-License-Identifier: Apache-2.0 */
/* A run: one site's training from joining to the end, and its coordinator. */
#ifndef DLXI_TRAIN_RUN_H
#define DLXI_TRAIN_RUN_H

#include "dilocox_train.h"
#include "train/config.h"

dlx_status dlxi_train(const dlxi_config *config, const dlx_train_options *options,
                      dlx_error *error);
dlx_status dlxi_coordinate(const dlxi_config *config, const dlx_coordinate_options *options,
                           dlx_error *error);

/* The public link settings that a config means for this rank of a site. `listen` is scratch for the
 * host. */
dlx_status dlxi_config_link(dlx_link_config *out, char listen[128], const dlxi_config *config,
                            const char *coordinator, dlx_hub *hub, int rank, dlx_error *error);

#endif
