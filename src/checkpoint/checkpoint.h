/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint: a folder with config.json and the weights as Hugging Face's transformers writes and
 * reads them, in one file, model.safetensors, or in several with model.safetensors.index.json.
 * Where a folder has both, the single file counts, as it does for transformers; what is saved here
 * leaves only one of the two. Family gpt2 as GPT2LMHeadModel, llama as LlamaForCausalLM, llama with
 * biases on q, k, v as Qwen2ForCausalLM. */
#ifndef DLXI_CHECKPOINT_CHECKPOINT_H
#define DLXI_CHECKPOINT_CHECKPOINT_H

#include "model/model.h"

/* Writes model.safetensors and config.json into `folder`, which is made where it is missing (its
 * parent must exist), and removes the files of an earlier set in parts. parameter[count]: all
 * tensors of the whole model, each with its data. Each file is replaced whole or not at all.
 * Blocks. */
dlx_status dlxi_checkpoint_save(const char *folder, const dlxi_model_config *config,
                                const dlxi_parameter *parameter, int64_t count, dlx_error *error);

/* The same by several ranks, in three steps with a barrier of theirs between each. Each rank writes
 * the tensors that it gives (whole files' tensors: GPT-2's q, k and v of a layer together) into its
 * part, number `part` (from 0) of `parts` ≤ 1024: model-00001-of-00002.safetensors. Each part has
 * at least one tensor. Names are those of Hugging
 * Face's sharded checkpoints; `parts` = 1 is dlxi_checkpoint_save's single file. begin    makes the folder and writes
 * the part beside its place; on success *out is the caller's commit   puts the part in its place finish   by one rank:
 * checks that all parts are there and whole, then writes the index and config.json and removes the
 * files of an earlier set. DLX_DATA where they are not: the ranks do not share the folder, say A
 * reader at any moment between finds the earlier set, the new one, or an error; never a mixture. An
 * earlier set is whole until the first commit, and until finish where it had another number of
 * parts. All block. */
typedef struct dlxi_checkpoint_part dlxi_checkpoint_part;
dlx_status dlxi_checkpoint_part_begin(dlxi_checkpoint_part **out, const char *folder,
                                      const dlxi_model_config *config,
                                      const dlxi_parameter *parameter, int64_t count, int part,
                                      int parts, dlx_error *error);
dlx_status dlxi_checkpoint_part_commit(dlxi_checkpoint_part *part, dlx_error *error);
/* takes NULL; without commit, nothing remains of it */
void dlxi_checkpoint_part_close(dlxi_checkpoint_part **part);
/* part_of[id] is the part, from 0, of each of the model's tensors; NULL where parts is 1. */
dlx_status dlxi_checkpoint_finish(const char *folder, const dlxi_model_config *config,
                                  const int *part_of, int parts, dlx_error *error);

/* Reads and validates folder/config.json. DLX_DATA where it describes a model that this program
 * does not have. */
dlx_status dlxi_checkpoint_load_config(dlxi_model_config *out, const char *folder,
                                       dlx_error *error);
/* The same from text[bytes]; `path` is what messages call it. */
dlx_status dlxi_checkpoint_parse_config(dlxi_model_config *out, const char *text, size_t bytes,
                                        const char *path, dlx_error *error);

/* Reads folder/model.safetensors, or the set that folder/model.safetensors.index.json lists, into
 * parameter[count].data: a stage's tensors, or all. All files are checked against the index and
 * config first: a missing file, a missing, doubled, surplus or misshapen tensor is DLX_DATA, and no
 * data has changed then. Afterwards call dlxi_stage_parameters_changed. Blocks. */
dlx_status dlxi_checkpoint_load(const char *folder, const dlxi_model_config *config,
                                dlxi_parameter *parameter, int64_t count, dlx_error *error);

#endif
