/* SPDX-License-Identifier: Apache-2.0 */
/* The model: decoder-only transformers by config, two families from one block, built as a *stage*
 * that a pipeline can hold: some of the layers, with or without the embedding and the head. The
 * whole model is the stage of all layers.
 *
 *   gpt2    learned positions, LayerNorm, GELU or ReLU MLP, biases everywhere (Radford et al. 2019; OPT is the same)
 *   llama   RoPE, RMSNorm, SwiGLU, grouped-query attention, with or without biases on q, k and v (Qwen 2 has them)
 *
 * A training step of one micro-batch: dlxi_stage_zero_gradients, dlxi_stage_forward,
 * dlxi_stage_backward, then dlxi_optimizer_step (optimizer.h). Gradients are of the *mean* loss
 * over the micro-batch and add up over micro-batches; the optimiser's gradient_scale divides by
 * their number.
 *
 * Shapes: B windows of T tokens a micro-batch, N = B·T, C width, V vocabulary. One thread at a time
 * may use a stage and its kernels. All memory is taken at open. */
#ifndef DLXI_MODEL_MODEL_H
#define DLXI_MODEL_MODEL_H

#include "base/error.h"
#include "kernels/kernels.h"

/* ---- configuration --------------------------------------------------------------------------- */

typedef enum dlxi_family { DLXI_FAMILY_GPT2, DLXI_FAMILY_LLAMA } dlxi_family;

typedef struct dlxi_model_config {
    dlxi_family family;
    int64_t layers, width, heads;
    int64_t kv_heads; /* llama: divides heads; gpt2: equal to heads */
    int64_t mlp_width;
    int64_t context; /* the longest window */
    int64_t vocabulary;
    dlxi_activation activation; /* gpt2 only */
    bool qkv_bias;              /* llama only; gpt2 always has biases */
    bool tied_head;             /* the head is the embedding table */
    float rope_theta;           /* llama only */
    float norm_epsilon;
} dlxi_model_config;

/* The family's customary values: the quickstart's sizes, and for gpt2 GELU, tied head, epsilon
 * 1e-5. */
dlxi_model_config dlxi_model_config_default(dlxi_family family);

/* DLX_CONFIG names the key (`model.width`), its value, what is allowed, and what to do. */
dlx_status dlxi_model_config_validate(const dlxi_model_config *config, dlx_error *error);

const char *dlxi_family_name(dlxi_family family);

/* Parameters in the whole model (a tied head counts once). without_positions: leave out gpt2's
 * position table, the N of 6·N·tokens. */
int64_t dlxi_model_parameter_count(const dlxi_model_config *config, bool without_positions);

/* ---- tensors --------------------------------------------------------------------------------- */

enum { DLXI_TENSOR_NAME_MAX = 96 };

/* One tensor of the whole model. Its id is its place in the model's fixed order, whatever the
 * stages. Names are Hugging Face's, with one exception: GPT-2's fused c_attn is three tensors here
 * (`transformer.h.0.attn.c_attn.q.weight`), and every weight is [out, in] row-major, as `linear`
 * wants it; the checkpoint room transposes and fuses. */
typedef struct dlxi_tensor {
    int64_t id;
    char name[DLXI_TENSOR_NAME_MAX];
    int64_t rows, cols; /* a vector has rows 1 */
    bool vector;        /* one-dimensional in files */
    bool hidden_matrix; /* a block's weight matrix: Muon's */
    bool decay;         /* weight decay applies: matrices and tables */
    int64_t layer;      /* −1 outside the blocks */
    bool in_embedding;  /* lives with the embedding */
    bool in_head;       /* lives with the head; the tied table is both */
} dlxi_tensor;

int64_t dlxi_model_tensor_count(const dlxi_model_config *config);
/* id in [0, count). */
dlxi_tensor dlxi_model_tensor(const dlxi_model_config *config, int64_t id);

/* Fills dst[rows·cols] with the starting values of a tensor: normal, std 0.02, the two projections
 * into the residual stream divided by sqrt(2·layers) (Radford et al. 2019); gains 1, biases 0. The
 * same bits on every machine, whatever the stages: they depend on the config, the seed and the
 * tensor's id alone. */
void dlxi_model_initialize(float *dst, const dlxi_model_config *config, const dlxi_tensor *tensor,
                           uint64_t seed);

/* ---- stage ----------------------------------------------------------------------------------- */

typedef struct dlxi_stage dlxi_stage;

/* A tensor of a stage, with its memory. Data and gradients of all lie in one allocation each, in
 * order of id, each tensor 64-byte aligned. A caller may point `data` at other memory of the same
 * shape between steps (to evaluate the anchor), and calls dlxi_stage_parameters_changed then and
 * when it points back. */
typedef struct dlxi_parameter {
    dlxi_tensor tensor;
    float *data;     /* [rows, cols] */
    float *gradient; /* [rows, cols]; NULL in a stage that does not train */
    int64_t count;   /* rows · cols */
} dlxi_parameter;

typedef struct dlxi_stage_options {
    int64_t first_layer, end_layer; /* layers first … end − 1 */
    bool has_embedding, has_head;
    int64_t batch;  /* B: windows in a micro-batch */
    int64_t length; /* T ≤ context */
    int slots;      /* micro-batches that may be alive between their forward and backward; ≥ 1 */
    bool training;  /* false: no gradients and no activations kept; forward only */
    /* keep a block's input only, and run its forward again before its backward: less memory, a
     * third more time */
    bool recompute;
    uint64_t seed; /* of the starting values */
} dlxi_stage_options;

/* All layers, embedding and head, one slot, training. */
dlxi_stage_options dlxi_stage_options_whole(const dlxi_model_config *config, int64_t batch,
                                            int64_t length, uint64_t seed);

/* Validates, takes all memory, draws the starting values. `kernels` is borrowed and must outlive
 * the stage. On success *out is the caller's, closed with dlxi_stage_close; on failure it is NULL.
 * DLX_CONFIG, DLX_MEMORY. A stage that has a tied head without the embedding holds its own copy of
 * the table (same id, same name): the two copies' gradients must be summed before the optimiser
 * steps. */
dlx_status dlxi_stage_open(dlxi_stage **out, const dlxi_model_config *config,
                           const dlxi_stage_options *options, dlxi_kernels *kernels,
                           dlx_error *error);
void dlxi_stage_close(dlxi_stage **stage);

const dlxi_model_config *dlxi_stage_config(const dlxi_stage *stage);
const dlxi_stage_options *dlxi_stage_opened_with(const dlxi_stage *stage);

/* The stage's tensors in order of id; owned by the stage. */
dlxi_parameter *dlxi_stage_parameters(dlxi_stage *stage, int64_t *count);
/* Call after every change of parameters: an optimiser step, an outer step, a load. */
void dlxi_stage_parameters_changed(dlxi_stage *stage);
void dlxi_stage_zero_gradients(dlxi_stage *stage);
/* Bytes taken at open, for `plan`: parameters, gradients, activations. */
int64_t dlxi_stage_bytes(const dlxi_stage *stage);

/* One micro-batch through the stage; keeps in `slot` what its backward needs. token[B,T]: with the
 * embedding, else NULL. input[B,T,C]: without the embedding, else NULL; copied. target[B,T] and
 * loss: with the head, else NULL; *loss is the mean over the micro-batch. In a training stage the
 * head's part of the backward pass is done here too, so that one [B,T,V] array serves all slots.
 * DLX_DATA where a token is not below the vocabulary, DLX_NUMERIC where the loss is not finite. */
dlx_status dlxi_stage_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                              const float *input, const uint32_t *target, double *loss,
                              dlx_error *error);
/* [B,T,C], what the next stage takes; valid until the slot's next forward. Without a head only. */
const float *dlxi_stage_output(const dlxi_stage *stage, int slot);

/* Adds the slot's gradients. d_output[B,T,C]: without the head (what the next stage's d_input
 * says), else NULL. */
dlx_status dlxi_stage_backward(dlxi_stage *stage, int slot, const float *d_output,
                               dlx_error *error);
/* [B,T,C], for the stage before; valid until the next backward. Without an embedding only. */
const float *dlxi_stage_d_input(const dlxi_stage *stage);

/* From now on `done` is called on the way, as soon as a pass has added the last of what it adds to
 * the gradients of a part of the stage: with the model's number of the block, with `layers` for
 * what only the head has (in forward, where its backward is), and with −1 for what lives with the
 * embedding, a tied table included: at the end of backward, or after `layers` in a stage that has
 * the table for its head only. Each pass of a micro-batch adds once to every part that the stage
 * has. Not called where a pass fails. NULL: never. */
typedef void (*dlxi_gradients_done)(void *context, int64_t layer);
void dlxi_stage_on_gradients(dlxi_stage *stage, dlxi_gradients_done done, void *context);

/* Forward only, of windows ≤ B windows; nothing is kept for a backward pass but what
 * dlxi_stage_output says of the slot ([windows,T,C]); other slots keep what they have. Arguments as
 * in dlxi_stage_forward; with the head, *loss_sum ← Σ −log p over the windows' tokens, finite or
 * not. */
dlx_status dlxi_stage_evaluate(dlxi_stage *stage, int slot, const uint32_t *token,
                               const float *input, const uint32_t *target, int64_t windows,
                               double *loss_sum, dlx_error *error);

/* ---- a whole model, forward only ------------------------------------------------------------- */

/* Mean loss of window_count windows of T + 1 tokens each: window[window_count, T+1]. A stage with
 * embedding and head; training or not; slot 0's activations are lost. */
dlx_status dlxi_model_evaluate(dlxi_stage *stage, const uint32_t *window, int64_t window_count,
                               double *mean_loss, dlx_error *error);

/* logits[V] of the token that follows token[0 … count−1]; where count > T the last T are seen.
 * Every call computes the whole window anew. */
dlx_status dlxi_model_logits(dlxi_stage *stage, const uint32_t *token, int64_t count, float *logits,
                             dlx_error *error);

typedef struct dlxi_sampling {
    float temperature; /* 0: the likeliest token */
    int64_t top_k;     /* 0: all */
    uint64_t seed;
} dlxi_sampling;

/* Draws from logits[V] (overwritten). index: how many were drawn before; the same (seed, index)
 * draws the same. */
uint32_t dlxi_sample(float *logits, int64_t vocabulary, const dlxi_sampling *sampling,
                     uint64_t index);

/* Appends new_count tokens to token[prompt_count …]; token has room for prompt_count + new_count,
 * prompt_count ≥ 1. */
dlx_status dlxi_model_generate(dlxi_stage *stage, uint32_t *token, int64_t prompt_count,
                               int64_t new_count, const dlxi_sampling *sampling, dlx_error *error);

#endif
