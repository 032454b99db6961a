/* SPDX-License-Identifier: Apache-2.0 */
/* A run: one rank of a site from joining to the end, and the coordinator's process. */
#ifndef DLXI_TRAIN_RUN_H
#define DLXI_TRAIN_RUN_H

#include "dilocox_train.h"
#include "train/config.h"

/* As dlx_train and dlx_coordinate; arguments are checked. */
dlx_status dlxi_train(const dlxi_config *config, const dlx_train_options *options,
                      dlx_error *error);
dlx_status dlxi_coordinate(const dlxi_config *config, const dlx_coordinate_options *options,
                           dlx_error *error);

/* The link settings of a rank of a site. *out points into `config`, `coordinator` (NULL: the
 * config's) and `listen`, which receives the host. DLX_CONFIG: wan.listen. */
dlx_status dlxi_config_link(dlx_link_config *out, char listen[128], const dlxi_config *config,
                            const char *coordinator, dlx_hub *hub, int rank, dlx_error *error);

#endif
