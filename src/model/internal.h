/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this room share: a block's tensors by role, and the inside of a stage. */
#ifndef DLXI_MODEL_INTERNAL_H
#define DLXI_MODEL_INTERNAL_H

#include "model/model.h"

/* A block's tensors; q, k and v are adjacent in memory. */
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

/* Of a tensor of a block. */
dlxi_role dlxi_tensor_role(const dlxi_model_config *config, int64_t id);

/* Floats of an array that fills whole cache lines. */
static inline size_t dlxi_floats_padded(int64_t count) {
    enum { FLOATS_PER_LINE = 16 };
    return ((size_t)count + FLOATS_PER_LINE - 1) / FLOATS_PER_LINE * FLOATS_PER_LINE;
}

static inline int64_t dlxi_kv_width(const dlxi_model_config *config) {
    return config->width / config->heads * config->kv_heads;
}

typedef struct dlxi_block {
    dlxi_parameter *role[DLXI_ROLE_COUNT]; /* NULL: the family has none */
} dlxi_block;

/* What a block keeps of a micro-batch for its backward pass. */
typedef struct dlxi_block_activations {
    float *norm1, *mean1, *rstd1; /* [N,C], [N], [N]; means for LayerNorm only */
    float *q, *key, *value;       /* [N,C], [N,K], [N,K] after RoPE; K = kv_heads · head width */
    float *attention, *lse;       /* [N,C], [B,heads,T] */
    float *middle;                /* [N,C]: the residual stream after attention */
    float *norm2, *mean2, *rstd2;
    float *gate, *up; /* [N,M]; gate for SwiGLU only */
    float *hidden;    /* [N,M]: after the activation */
} dlxi_block_activations;

typedef struct dlxi_slot {
    uint32_t *token;               /* [N] */
    float **residual;              /* [layers + 1] of [N,C]: before each block and after the last */
    dlxi_block_activations *block; /* [layers] */
    float *d_final;                /* [N,C]: gradient of the residual stream below the head */
} dlxi_slot;

struct dlxi_stage {
    dlxi_model_config config;
    dlxi_stage_options options;
    dlxi_kernels *kernels;
    int64_t layer_count, parameter_count;

    dlxi_parameter *parameter;
    float *data, *gradient; /* [floats] */
    size_t floats;
    dlxi_parameter *table, *position, *final_gain, *final_bias, *head; /* table may be head */
    dlxi_block *block;

    void *arena; /* of the slots' activations and all arrays below */
    size_t arena_bytes;
    dlxi_slot *slot;
    float **residual;             /* [slots · (layers + 1)] */
    dlxi_block_activations *kept; /* [slots · layers] */
    float *final_norm, *final_mean, *final_rstd, *logits;
    uint32_t *token;                 /* [N] */
    float *d, *d_a, *d_b;            /* [N,C] */
    float *d_q, *d_key, *d_value;    /* [N,C], [N,K], [N,K] */
    float *d_hidden, *d_gate, *d_up; /* [N,M] */

    dlxi_gradients_done done; /* may be NULL */
    void *done_context;
};

/* B windows of T tokens, up to the stage's batch and length. */
typedef struct dlxi_shape {
    int64_t B, T;
} dlxi_shape;

/* Embedding or input, and blocks: fills the slot's activations. */
dlx_status dlxi_stage_blocks_forward(dlxi_stage *stage, int slot, const uint32_t *token,
                                     const float *input, dlxi_shape shape, dlx_error *error);
/* The final norm and the logits of rows [first, first + N) of the slot's last residual. */
dlx_status dlxi_stage_head_forward(dlxi_stage *stage, int slot, int64_t first, int64_t N);
/* d_final ← the gradient of the residual stream, from the logits' gradient in stage->logits. */
dlx_status dlxi_stage_head_backward(dlxi_stage *stage, const dlxi_slot *slot, int64_t N);
/* Fills `kept` again from the block's input x, without the residual after the block. */
dlx_status dlxi_block_recompute(const dlxi_stage *stage, const dlxi_block *block,
                                dlxi_block_activations *kept, const float *x, dlxi_shape shape);
/* Calls the stage's `done`, if set: a part's gradients are complete. */
void dlxi_stage_gradients_done(const dlxi_stage *stage, int64_t layer);

/* Gives a kernel's failed status a message. */
dlx_status dlxi_kernel_failed(dlx_status status, dlx_error *error);

#endif
