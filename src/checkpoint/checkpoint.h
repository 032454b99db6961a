/* SPDX-License-Identifier: Apache-2.0 */
/* A checkpoint: a directory with config.json and the weights as Hugging Face's transformers writes
 * and reads them, in one file, model.safetensors, or in parts with model.safetensors.index.json. If
 * a directory has both, the single file counts, as in transformers; a save leaves only one of them.
 * Family gpt2 is GPT2LMHeadModel, llama is LlamaForCausalLM, and llama with biases on q, k and v is
 * Qwen2ForCausalLM. */
#ifndef DLXI_CHECKPOINT_CHECKPOINT_H
#define DLXI_CHECKPOINT_CHECKPOINT_H

#include "model/model.h"

/* Writes model.safetensors and config.json into `directory`, which is made if it is missing (its
 * parent must exist), and removes the parts of an earlier save. parameter[count]: all tensors of
 * the model, with data. run_id goes to config.json as dilocox_run_id; NULL: none. Each file is
 * replaced whole or not at all. Blocks. */
dlx_status dlxi_checkpoint_save(const char *directory, const dlxi_model_config *config,
                                const dlxi_parameter *parameter, int64_t count, const char *run_id,
                                dlx_error *error);

/* The same by several ranks, in three steps with a barrier between each:
 *
 *   begin   every rank makes the directory and writes its part to a temporary file
 *   commit  every rank renames its part
 *   finish  one rank checks all parts, writes the index and config.json, and removes the files of
 *           an earlier save
 *
 * Part `part` (from 0) of `parts` ≤ 1024 is model-00001-of-00002.safetensors; 1 of 1 is the single
 * file. It has parameter[count], at least one tensor; GPT-2's q, k and v of a layer are in the same
 * part. A reader at any moment finds the earlier save, the new one, or an error, never a mixture:
 * the earlier save remains until the first commit or, if it has another number of parts, until
 * finish. All three block. */
typedef struct dlxi_checkpoint_part dlxi_checkpoint_part;
dlx_status dlxi_checkpoint_part_begin(dlxi_checkpoint_part **out, const char *directory,
                                      const dlxi_model_config *config,
                                      const dlxi_parameter *parameter, int64_t count, int part,
                                      int parts, dlx_error *error);
dlx_status dlxi_checkpoint_part_commit(dlxi_checkpoint_part *part, dlx_error *error);
/* Takes NULL. Removes the temporary file if it was not committed. */
void dlxi_checkpoint_part_close(dlxi_checkpoint_part **part);
/* part_of[id]: the part of each of the model's tensors; NULL if parts is 1. DLX_DATA if a part is
 * missing or incomplete: perhaps the ranks do not share the directory. */
dlx_status dlxi_checkpoint_finish(const char *directory, const dlxi_model_config *config,
                                  const int *part_of, int parts, const char *run_id,
                                  dlx_error *error);

/* Reads and validates directory/config.json. A line to `log`, which may be NULL, names fields that
 * are unknown. DLX_SYSTEM; DLX_DATA: malformed or not supported. */
dlx_status dlxi_checkpoint_load_config(dlxi_model_config *out, const char *directory, dlx_log log,
                                       void *log_context, dlx_error *error);
/* The same from text[bytes]; messages call it `path`. */
dlx_status dlxi_checkpoint_parse_config(dlxi_model_config *out, const char *text, size_t bytes,
                                        const char *path, dlx_log log, void *log_context,
                                        dlx_error *error);

/* Reads the weights of `directory` into parameter[count].data: a stage's tensors, or all. All files
 * are checked against the index and config first: after DLX_DATA for a missing file, or a missing,
 * surplus or misshapen tensor, no data has changed. A line to `log`, which may be NULL, says that
 * the head of a file is not used because config.json ties it to a table that differs. Then call
 * dlxi_stage_parameters_changed. Blocks. */
dlx_status dlxi_checkpoint_load(const char *directory, const dlxi_model_config *config,
                                dlxi_parameter *parameter, int64_t count, dlx_log log,
                                void *log_context, dlx_error *error);

#endif
