/* SPDX-License-Identifier: Apache-2.0 */
/* The model: decoder-only transformers of two families, built as *stages* of a pipeline: some of
 * the layers, with or without the embedding and the head. The whole model is the stage of all
 * layers.
 *
 *   gpt2    learned positions, LayerNorm, GELU or ReLU MLP, biases (Radford et al. 2019; also OPT)
 *   llama   RoPE, RMSNorm, SwiGLU, grouped-query attention; biases on q, k and v if set (Qwen 2)
 *
 * A training step of one micro-batch: dlxi_stage_zero_gradients, dlxi_stage_forward,
 * dlxi_stage_backward, then dlxi_optimizer_step (optimizer.h). Gradients are of the *mean* loss
 * over the micro-batch and add up over micro-batches; the optimiser's gradient_scale divides by
 * their number.
 *
 * Shapes: B windows of T tokens per micro-batch, N = B·T, C width, V vocabulary. One thread at a
 * time may use a stage and its kernels. All memory is allocated at open. */
#ifndef DLXI_MODEL_MODEL_H
#define DLXI_MODEL_MODEL_H

#include "base/error.h"
#include "kernels/kernels.h"

/* ---- configuration --------------------------------------------------------------------------- */

/* To add a family of these parts: here, its rows in config.c, its config.json in checkpoint/. */
typedef enum dlxi_family { DLXI_FAMILY_GPT2, DLXI_FAMILY_LLAMA } dlxi_family;

extern const char *const dlxi_family_names[]; /* by dlxi_family; ends with NULL */

enum {
    DLXI_LAYERS_MAX = 1024,
    DLXI_WIDTH_MAX = 65536,
    DLXI_HEADS_MAX = 1024,
    DLXI_MLP_WIDTH_MAX = 262144,
    DLXI_CONTEXT_MAX = 1048576,
    DLXI_VOCABULARY_MAX = 16777216,
    DLXI_MICRO_BATCH_MAX = 65536 /* windows */
};
#define DLXI_NORM_EPSILON_MAX 0.1
#define DLXI_ROPE_THETA_MAX   1e9f

typedef struct dlxi_model_config {
    dlxi_family family;
    int64_t layers, width, heads;
    int64_t kv_heads; /* divides heads; gpt2: equal to heads */
    int64_t mlp_width;
    int64_t context; /* the longest window */
    int64_t vocabulary;
    dlxi_activation activation; /* gpt2 only */
    bool qkv_bias;              /* llama only; gpt2 always has biases */
    bool tied_head;             /* the head is the embedding table */
    float rope_theta;           /* llama only */
    float norm_epsilon;
} dlxi_model_config;

/* What a family's model is made of. */
typedef struct dlxi_family_parts {
    bool learned_positions; /* or RoPE */
    bool layer_norm;        /* or RMSNorm */
    bool biases;            /* in every linear layer; or qkv_bias decides for q, k and v */
    bool grouped_query;     /* kv_heads may be less than heads */
    bool gated_mlp;         /* SwiGLU, or an activation */
} dlxi_family_parts;

const dlxi_family_parts *dlxi_model_parts(const dlxi_model_config *config);

/* 3 million parameters in the family's usual form. */
dlxi_model_config dlxi_model_config_default(dlxi_family family);

/* DLX_CONFIG if a value is out of range or does not match the others. */
dlx_status dlxi_model_config_validate(const dlxi_model_config *config, dlx_error *error);

/* The N of 6·N·tokens: all parameters but learned positions; a tied head counts once. */
int64_t dlxi_model_parameter_count(const dlxi_model_config *config);

/* ---- tensors --------------------------------------------------------------------------------- */

enum { DLXI_TENSOR_NAME_MAX = 96 };

/* A tensor of the whole model; its id is its index in the model's fixed order, whatever the stages.
 * Names are Hugging Face's, except that GPT-2's fused c_attn is three tensors here
 * (`transformer.h.0.attn.c_attn.q.weight`). Every weight is [out, in] row-major, as the kernels
 * take it; the checkpoint room transposes and fuses. */
typedef struct dlxi_tensor {
    int64_t id;
    char name[DLXI_TENSOR_NAME_MAX];
    int64_t rows, cols; /* a vector has rows 1 */
    bool vector;        /* one-dimensional in files */
    bool hidden_matrix; /* a block's weight matrix: Muon's */
    bool decay;         /* weight decay applies: matrices and tables */
    int64_t layer;      /* −1 outside the blocks */
    bool in_embedding;  /* of the stage with the embedding */
    bool in_head;       /* of the stage with the head; a tied table is of both */
} dlxi_tensor;

int64_t dlxi_model_tensor_count(const dlxi_model_config *config);
/* id in [0, count). */
dlxi_tensor dlxi_model_tensor(const dlxi_model_config *config, int64_t id);

/* dst[rows·cols] ← the tensor's starting values: normal with standard deviation 0.02, divided by
 * sqrt(2·layers) for the two projections into the residual stream (Radford et al. 2019); gains 1,
 * biases 0. Equal bits on every machine, whatever the stages. */
void dlxi_model_initialize(float *dst, const dlxi_model_config *config, const dlxi_tensor *tensor,
                           uint64_t seed);

/* ---- stage ----------------------------------------------------------------------------------- */

typedef struct dlxi_stage dlxi_stage;

/* A tensor of a stage, with its memory: one allocation for all data and one for all gradients, in
 * order of id, each tensor 64-byte aligned. Between steps a caller may point `data` at other memory
 * of the same shape (to evaluate the anchor), and calls dlxi_stage_parameters_changed then and when
 * it points back. */
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
    int slots;      /* micro-batches between their forward and backward at one time; ≥ 1 */
    bool training;  /* false: forward only, without gradients or kept activations */
    bool recompute; /* keep only a block's input and repeat its forward before its backward */
    uint64_t seed;  /* of the starting values */
} dlxi_stage_options;

/* All layers with embedding and head, one slot, training. */
dlxi_stage_options dlxi_stage_options_whole(const dlxi_model_config *config, int64_t batch,
                                            int64_t length, uint64_t seed);

/* Validates, allocates all memory, draws the starting values. `kernels` is borrowed and must
 * outlive the stage. On success *out is the caller's; on failure it is NULL. DLX_CONFIG,
 * DLX_MEMORY. A stage with a tied head but no embedding has its own copy of the table (same id and
 * name): both copies' gradients must be summed before an optimiser step. */
dlx_status dlxi_stage_open(dlxi_stage **out, const dlxi_model_config *config,
                           const dlxi_stage_options *options, dlxi_kernels *kernels,
                           dlx_error *error);
void dlxi_stage_close(dlxi_stage **stage);

const dlxi_model_config *dlxi_stage_config(const dlxi_stage *stage);
const dlxi_stage_options *dlxi_stage_opened_with(const dlxi_stage *stage);

/* What the activations take. */
size_t dlxi_stage_activation_bytes(const dlxi_stage *stage);

/* The stage's tensors in order of id; owned by the stage. */
dlxi_parameter *dlxi_stage_parameters(dlxi_stage *stage, int64_t *count);
/* Call after every change of parameters: an optimiser step, an outer step, a load. */
void dlxi_stage_parameters_changed(dlxi_stage *stage);
void dlxi_stage_zero_gradients(dlxi_stage *stage);

/* Runs one micro-batch and keeps in the slot what its backward needs. With the embedding:
 * token[B,T]; without: input[B,T,C], copied. With the head: target[B,T], and *loss ← the
 * micro-batch's mean. All others are NULL. A training stage also runs the head's backward here, so
 * that one [B,T,V] array serves all slots. DLX_DATA if a token is outside the vocabulary,
 * DLX_NUMERIC if the loss is not finite. */
dlx_status dlxi_stage_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                              const float *input, const uint32_t *target, double *loss,
                              dlx_error *error);
/* [B,T,C], the next stage's input; valid until the slot's next forward. Not with the head. */
const float *dlxi_stage_output(const dlxi_stage *stage, int slot);

/* Adds the slot's gradients. d_output[B,T,C] is the next stage's d_input; NULL with the head. */
dlx_status dlxi_stage_backward(dlxi_stage *stage, int slot, const float *d_output,
                               dlx_error *error);
/* [B,T,C], the previous stage's d_output; valid until the next backward. Not with the embedding. */
const float *dlxi_stage_d_input(const dlxi_stage *stage);

/* Calls `done`, if not NULL, as soon as a micro-batch's pass has added all its gradients of a part:
 * the block's number in the model; `layers` for the head's own tensors (in forward, which runs the
 * head's backward); −1 for the embedding and a tied table, at the end of backward, or right after
 * `layers` in a stage that has the table for its head only. Not called if the pass fails. */
typedef void (*dlxi_gradients_done)(void *context, int64_t layer);
void dlxi_stage_on_gradients(dlxi_stage *stage, dlxi_gradients_done done, void *context);

/* Forward only, for up to B windows; as dlxi_stage_forward, but *loss_sum ← Σ −log p over all
 * tokens, finite or not. Overwrites this slot only, whose output is [windows,T,C]. */
dlx_status dlxi_stage_evaluate(dlxi_stage *stage, int slot, const uint32_t *token,
                               const float *input, const uint32_t *target, int64_t windows,
                               double *loss_sum, dlx_error *error);

/* ---- a whole model, forward only ------------------------------------------------------------- */

/* *logits ← [V], of the token after token[0 … count−1], from the last T of them; the caller may
 * overwrite it, and it is valid until the stage's next call. Recomputes the whole window. */
dlx_status dlxi_model_logits(float **logits, dlxi_stage *stage, const uint32_t *token,
                             int64_t count, dlx_error *error);

typedef struct dlxi_sampling {
    float temperature;  /* 0: the most likely token */
    int64_t top_k;      /* 0: all */
    int64_t vocabulary; /* draw ids below this, which a tokenizer has; 0: all */
    uint64_t seed;
} dlxi_sampling;

/* Draws from logits[vocabulary], or as few as `sampling` says, and overwrites them; equal
 * (seed, index) draw equal tokens. */
uint32_t dlxi_sample(float *logits, int64_t vocabulary, const dlxi_sampling *sampling,
                     uint64_t index);

/* Appends new_count tokens to token[prompt_count + new_count], with prompt_count ≥ 1.
 * DLX_NUMERIC if a logit is not finite. */
dlx_status dlxi_model_generate(dlxi_stage *stage, uint32_t *token, int64_t prompt_count,
                               int64_t new_count, const dlxi_sampling *sampling, dlx_error *error);

#endif
