/* SPDX-License-Identifier: Apache-2.0 */
/* config.json in Hugging Face's form. */
#ifndef DLXI_CHECKPOINT_CONFIG_JSON_H
#define DLXI_CHECKPOINT_CONFIG_JSON_H

#include "model/model.h"

/* Replaces the file whole or not at all. run_id: of the run that trained the weights, or NULL. */
dlx_status dlxi_config_json_write(const char *path, const dlxi_model_config *config,
                                  const char *run_id, dlx_error *error);

#endif
