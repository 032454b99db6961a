/* A checkpoint: a folder with model.safetensors and config.json as Hugging Face's transformers writes and reads them:
 * family gpt2 as GPT2LMHeadModel, llama as LlamaForCausalLM, llama with biases on q, k, v as Qwen2ForCausalLM. */
#ifndef DLXI_CHECKPOINT_CHECKPOINT_H
#define DLXI_CHECKPOINT_CHECKPOINT_H

#include "model/model.h"

/* Writes both files into `folder`, which is made where it is missing (its parent must exist). parameter[count]: all
 * tensors of the whole model in order of id, each with its data. Each file is replaced whole or not at all. Blocks. */
dlx_status dlxi_checkpoint_save(const char *folder, const dlxi_model_config *config, const dlxi_parameter *parameter,
                                int64_t count, dlx_error *error);

/* Reads and validates folder/config.json. DLX_DATA where it describes a model that this program does not have. */
dlx_status dlxi_checkpoint_load_config(dlxi_model_config *out, const char *folder, dlx_error *error);
/* The same from text[bytes]; `path` is what messages call it. */
dlx_status dlxi_checkpoint_parse_config(dlxi_model_config *out, const char *text, size_t bytes, const char *path,
                                        dlx_error *error);

/* Reads folder/model.safetensors into parameter[count].data: a stage's tensors, or all. The whole file is checked
 * against config first: a missing, surplus or misshapen tensor is DLX_DATA, and no data has changed then. Afterwards
 * call dlxi_stage_parameters_changed. Blocks. */
dlx_status dlxi_checkpoint_load(const char *folder, const dlxi_model_config *config, dlxi_parameter *parameter,
                                int64_t count, dlx_error *error);

#endif
