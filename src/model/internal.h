/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the model room share: a block's tensors by role, and a stage's insides. */
#ifndef DLXI_MODEL_INTERNAL_H
#define DLXI_MODEL_INTERNAL_H

#include "model/model.h"

/* A block's tensors. q, k and v follow each other, so that they lie side by side in memory. gpt2's
 * c_fc is UP. */
typedef enum dlxi_role {
    DLXI_ROLE_NORM1_GAIN,
    DLXI_ROLE_NORM1_BIAS,
    DLXI_ROLE_Q,
    DLXI_ROLE_K,
    DLXI_ROLE_V,
    DLXI_ROLE_Q_BIAS,
    DLXI_ROLE_K_BIAS,
    DLXI_ROLE_V_BIAS,
    DLXI_ROLE_OUT,
    DLXI_ROLE_OUT_BIAS,
    DLXI_ROLE_NORM2_GAIN,
    DLXI_ROLE_NORM2_BIAS,
    DLXI_ROLE_GATE,
    DLXI_ROLE_UP,
    DLXI_ROLE_UP_BIAS,
    DLXI_ROLE_DOWN,
    DLXI_ROLE_DOWN_BIAS,
    DLXI_ROLE_COUNT
} dlxi_role;

/* A block's role of a tensor whose layer is not −1. */
dlxi_role dlxi_tensor_role(const dlxi_model_config *config, int64_t id);

static inline int64_t dlxi_kv_width(const dlxi_model_config *config) {
    return config->width / config->heads * config->kv_heads;
}

/* A block's parameters; NULL where the family has none. */
typedef struct dlxi_block {
    dlxi_parameter *role[DLXI_ROLE_COUNT];
} dlxi_block;

/* What one block keeps of one micro-batch for its backward pass. */
typedef struct dlxi_block_activations {
    float *norm1, *mean1, *rstd1; /* [N,C], [N], [N]; means are LayerNorm's only */
    float *q, *key, *value;       /* [N,C], [N,K], [N,K] after RoPE; K = kv_heads · head size */
    float *attention, *lse;       /* [N,C], [B,heads,T] */
    float *middle;                /* [N,C]: the residual stream after attention */
    float *norm2, *mean2, *rstd2;
    float *gate, *up; /* [N,M]; gate is SwiGLU's only */
    float *hidden;    /* [N,M]: the MLP's, after its activation */
} dlxi_block_activations;

typedef struct dlxi_slot {
    uint32_t *token; /* [N] */
    /* [layers + 1] of [N,C]: the residual stream before each block, and after the last */
    float **residual;
    dlxi_block_activations *block; /* [layers] */
    float *d_final;                /* [N,C]: the gradient below the head */
} dlxi_slot;

struct dlxi_stage {
    dlxi_model_config config;
    dlxi_stage_options options;
    dlxi_kernels *kernels;
    int64_t layer_count, parameter_count, bytes;

    dlxi_parameter *parameter;
    float *data, *gradient; /* one allocation each; floats apiece in `floats` */
    size_t floats;
    /* table and head may be the same */
    dlxi_parameter *table, *position, *final_gain, *final_bias, *head;
    dlxi_block *block;

    void *arena; /* everything below points into it, and the slots' activations */
    dlxi_slot *slot;
    float **residual;             /* [slots · (layers + 1)] */
    dlxi_block_activations *kept; /* [slots · layers] */
    float *final_norm, *final_mean, *final_rstd, *logits;
    uint32_t *token, *target;        /* [N]: windows on their way into evaluation */
    float *next_logits;              /* [V] */
    float *d, *d_a, *d_b;            /* [N,C] */
    float *d_q, *d_key, *d_value;    /* [N,C], [N,K], [N,K] */
    float *d_hidden, *d_gate, *d_up; /* [N,M] */

    dlxi_gradients_done done; /* may be NULL */
    void *done_context;
};

/* The micro-batch's shape: B windows of T tokens, at most what the stage was opened with. */
typedef struct dlxi_shape {
    int64_t B, T;
} dlxi_shape;

/* Embedding (or input) and blocks: fills the slot's activations. */
dlx_status dlxi_stage_blocks_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                                     const float *input, dlxi_shape shape, dlx_error *error);
/* The final norm of rows [first, first + N) of the slot's last residual into stage->final_norm, and
 * their logits. */
dlx_status dlxi_stage_head_forward(dlxi_stage *stage, int slot, int64_t first, int64_t N);
/* Fills `kept` again from the block's input x, as its forward pass did; the residual after the
 * block is not written. */
dlx_status dlxi_block_recompute(const dlxi_stage *stage, const dlxi_block *block,
                                dlxi_block_activations *kept, const float *x, dlxi_shape shape);
/* Tells the stage's listener, if it has one, that a part's gradients are complete. */
void dlxi_stage_gradients_done(const dlxi_stage *stage, int64_t layer);

/* What a failed kernel means to a person. */
dlx_status dlxi_kernel_failed(dlx_status status, dlx_error *error);

#endif
