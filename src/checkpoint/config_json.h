/* SPDX-License-Identifier: Apache-2.0 */
/* config.json in Hugging Face's form. */
#ifndef DLXI_CHECKPOINT_CONFIG_JSON_H
#define DLXI_CHECKPOINT_CONFIG_JSON_H

#include "model/model.h"

/* Replaces `path` whole or not at all. */
dlx_status dlxi_config_json_write(const char *path, const dlxi_model_config *config,
                                  dlx_error *error);
dlx_status dlxi_config_json_read(dlxi_model_config *out, const char *path, dlx_error *error);

#endif
