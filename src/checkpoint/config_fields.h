/* SPDX-License-Identifier: Apache-2.0 */
/* What a config.json says of a model besides what is read from it: fields that do not change what
 * the model computes, and fields that must have the value that dilocox computes with. */
#ifndef DLXI_CHECKPOINT_CONFIG_FIELDS_H
#define DLXI_CHECKPOINT_CONFIG_FIELDS_H

#include "checkpoint/json.h"

typedef enum dlxi_model_type {
    DLXI_TYPE_GPT2 = 1,
    DLXI_TYPE_LLAMA = 2,
    DLXI_TYPE_QWEN2 = 4
} dlxi_model_type;

/* DLX_DATA names a field of `json` that asks for a model that dilocox does not have. Unknown fields
 * are named in one line to `log`, which may be NULL. */
dlx_status dlxi_config_fields_check(const json_t *json, dlxi_model_type type, const char *path,
                                    dlx_log log, void *log_context, dlx_error *error);

/* *theta ← the base of the rotary embedding, which may be in three places: unchanged if it is in
 * none. DLX_DATA names a field of them that is not obeyed, or two that differ. */
dlx_status dlxi_config_fields_theta(float *theta, const json_t *json, const char *path,
                                    dlx_error *error);

#endif
