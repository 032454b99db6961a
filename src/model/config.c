/* SPDX-License-Identifier: Apache-2.0 */
/* The model's configuration: customary values, what is allowed, and the fixed list of tensors that
 * follows from it. */
#include "model/internal.h"
#include "base/panic.h"
#include "base/rng.h"
#include "model/limits.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

dlxi_model_config dlxi_model_config_default(dlxi_family family) {
    dlxi_model_config config = {.family = family,
                                .layers = 4,
                                .width = 256,
                                .heads = 8,
                                .kv_heads = 4,
                                .mlp_width = 704,
                                .context = 256,
                                .vocabulary = 256,
                                .activation = DLXI_GELU,
                                .rope_theta = 10000.0f,
                                .norm_epsilon = 1e-5f};
    if (family == DLXI_FAMILY_GPT2) {
        config.kv_heads = config.heads;
        config.mlp_width = 4 * config.width;
        config.tied_head = true;
    }
    return config;
}

const char *dlxi_family_name(dlxi_family family) {
    return family == DLXI_FAMILY_GPT2 ? "gpt2" : "llama";
}

static dlx_status check_range(const char *key, int64_t value, int64_t least, int64_t most,
                              const char *hint, dlx_error *error) {
    if (value >= least && value <= most) return DLX_OK;
    DLX_FAIL(error, CONFIG, "model.%s: %" PRId64 " is outside %" PRId64 " to %" PRId64 "; %s", key,
             value, least, most, hint);
}

static dlx_status validate_ranges(const dlxi_model_config *config, dlx_error *error) {
    DLX_TRY(check_range("layers", config->layers, 1, DLXI_LAYERS_MAX,
                        "set the number of transformer blocks", error));
    DLX_TRY(check_range("width", config->width, DLXI_WIDTH_MIN, DLXI_WIDTH_MAX,
                        "set the size of the residual stream", error));
    DLX_TRY(check_range("heads", config->heads, 1, DLXI_HEADS_MAX, "set the number of query heads",
                        error));
    DLX_TRY(check_range("kv_heads", config->kv_heads, 1, DLXI_HEADS_MAX,
                        "set it to model.heads or to a divisor of it", error));
    DLX_TRY(check_range("mlp_width", config->mlp_width, 1, DLXI_MLP_WIDTH_MAX,
                        "about 4 widths for gpt2, 8/3 for llama", error));
    DLX_TRY(check_range("context", config->context, 1, DLXI_CONTEXT_MAX,
                        "set the longest window in tokens", error));
    return check_range("vocabulary", config->vocabulary, DLXI_VOCABULARY_MIN, DLXI_VOCABULARY_MAX,
                       "set what the tokenizer says: 256 for bytes", error);
}

dlx_status dlxi_model_config_validate(const dlxi_model_config *config, dlx_error *error) {
    DLX_TRY(validate_ranges(config, error));
    if (config->width % config->heads != 0) {
        DLX_FAIL(error, CONFIG,
                 "model.width: %" PRId64 " is not a multiple of model.heads (%" PRId64
                 "); set width to %" PRId64 " or change heads",
                 config->width, config->heads, (config->width / config->heads + 1) * config->heads);
    }
    int64_t head_size = config->width / config->heads;
    if (config->heads % config->kv_heads != 0) {
        DLX_FAIL(error, CONFIG,
                 "model.kv_heads: %" PRId64 " does not divide model.heads (%" PRId64
                 "); set it to heads or to a divisor of heads",
                 config->kv_heads, config->heads);
    }
    if (config->family == DLXI_FAMILY_LLAMA && head_size % 2 != 0) {
        DLX_FAIL(error, CONFIG,
                 "model.width: %" PRId64 " over model.heads (%" PRId64
                 ") gives heads of size %" PRId64
                 "; rotary positions need an even size: change width or heads",
                 config->width, config->heads, head_size);
    }
    if (config->family == DLXI_FAMILY_GPT2 && config->kv_heads != config->heads) {
        DLX_FAIL(error, CONFIG,
                 "model.kv_heads: %" PRId64
                 " with model.family gpt2, which has one key head a query head; set it to "
                 "model.heads (%" PRId64 ") or the family to llama",
                 config->kv_heads, config->heads);
    }
    if (!(config->norm_epsilon > 0.0f && config->norm_epsilon <= (float)DLXI_NORM_EPSILON_MAX)) {
        DLX_FAIL(error, CONFIG, "model.norm_epsilon: %g is outside (0, 0.1]; 1e-5 is customary",
                 (double)config->norm_epsilon);
    }
    if (config->family == DLXI_FAMILY_LLAMA &&
        !(config->rope_theta >= 1.0f && config->rope_theta <= (float)DLXI_ROPE_THETA_MAX)) {
        DLX_FAIL(error, CONFIG, "model.rope_theta: %g is outside 1 to 1e9; 10000 is customary",
                 (double)config->rope_theta);
    }
    return DLX_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* Sizes by letter: C width, K keys' width, M MLP width, 1 a vector's rows. A NULL name: the family
 * has no such tensor. */
static const struct role_row {
    const char *gpt2, *llama;
    char rows, cols;
} role_table[DLXI_ROLE_COUNT] = {
    [DLXI_ROLE_NORM1_GAIN] = {"ln_1.weight", "input_layernorm.weight", '1', 'C'},
    [DLXI_ROLE_NORM1_BIAS] = {"ln_1.bias", NULL, '1', 'C'},
    [DLXI_ROLE_Q] = {"attn.c_attn.q.weight", "self_attn.q_proj.weight", 'C', 'C'},
    [DLXI_ROLE_K] = {"attn.c_attn.k.weight", "self_attn.k_proj.weight", 'K', 'C'},
    [DLXI_ROLE_V] = {"attn.c_attn.v.weight", "self_attn.v_proj.weight", 'K', 'C'},
    [DLXI_ROLE_Q_BIAS] = {"attn.c_attn.q.bias", "self_attn.q_proj.bias", '1', 'C'},
    [DLXI_ROLE_K_BIAS] = {"attn.c_attn.k.bias", "self_attn.k_proj.bias", '1', 'K'},
    [DLXI_ROLE_V_BIAS] = {"attn.c_attn.v.bias", "self_attn.v_proj.bias", '1', 'K'},
    [DLXI_ROLE_OUT] = {"attn.c_proj.weight", "self_attn.o_proj.weight", 'C', 'C'},
    [DLXI_ROLE_OUT_BIAS] = {"attn.c_proj.bias", NULL, '1', 'C'},
    [DLXI_ROLE_NORM2_GAIN] = {"ln_2.weight", "post_attention_layernorm.weight", '1', 'C'},
    [DLXI_ROLE_NORM2_BIAS] = {"ln_2.bias", NULL, '1', 'C'},
    [DLXI_ROLE_GATE] = {NULL, "mlp.gate_proj.weight", 'M', 'C'},
    [DLXI_ROLE_UP] = {"mlp.c_fc.weight", "mlp.up_proj.weight", 'M', 'C'},
    [DLXI_ROLE_UP_BIAS] = {"mlp.c_fc.bias", NULL, '1', 'M'},
    [DLXI_ROLE_DOWN] = {"mlp.c_proj.weight", "mlp.down_proj.weight", 'C', 'M'},
    [DLXI_ROLE_DOWN_BIAS] = {"mlp.c_proj.bias", NULL, '1', 'C'},
};

static const char *role_name(const dlxi_model_config *config, int role) {
    if (config->family == DLXI_FAMILY_GPT2) return role_table[role].gpt2;
    if (role >= DLXI_ROLE_Q_BIAS && role <= DLXI_ROLE_V_BIAS && !config->qkv_bias) return NULL;
    return role_table[role].llama;
}

static int64_t size_of_letter(const dlxi_model_config *config, char letter) {
    switch (letter) {
    case 'C':
        return config->width;
    case 'K':
        return dlxi_kv_width(config);
    case 'M':
        return config->mlp_width;
    default:
        return 1;
    }
}

static int64_t roles_per_layer(const dlxi_model_config *config) {
    int64_t count = 0;
    for (int role = 0; role < DLXI_ROLE_COUNT; role++) count += role_name(config, role) != NULL;
    return count;
}

static int64_t before_blocks(const dlxi_model_config *config) {
    return config->family == DLXI_FAMILY_GPT2 ? 2 : 1;
}

int64_t dlxi_model_tensor_count(const dlxi_model_config *config) {
    int64_t after = (config->family == DLXI_FAMILY_GPT2 ? 2 : 1) + !config->tied_head;
    return before_blocks(config) + config->layers * roles_per_layer(config) + after;
}

dlxi_role dlxi_tensor_role(const dlxi_model_config *config, int64_t id) {
    int64_t place = (id - before_blocks(config)) % roles_per_layer(config);
    int role = 0;
    while (role_name(config, role) == NULL || place-- > 0) role++;
    DLXI_ASSERT(role < DLXI_ROLE_COUNT);
    return (dlxi_role)role;
}

static void block_tensor(dlxi_tensor *tensor, const dlxi_model_config *config, int64_t place) {
    dlxi_role role = dlxi_tensor_role(config, tensor->id);
    tensor->layer = place / roles_per_layer(config);
    const char *prefix = config->family == DLXI_FAMILY_GPT2 ? "transformer.h" : "model.layers";
    snprintf(tensor->name, sizeof tensor->name, "%s.%" PRId64 ".%s", prefix, tensor->layer,
             role_name(config, (int)role));
    tensor->rows = size_of_letter(config, role_table[role].rows);
    tensor->cols = size_of_letter(config, role_table[role].cols);
    tensor->vector = role_table[role].rows == '1';
    tensor->hidden_matrix = !tensor->vector;
}

dlxi_tensor dlxi_model_tensor(const dlxi_model_config *config, int64_t id) {
    DLXI_ASSERT(id >= 0 && id < dlxi_model_tensor_count(config));
    bool gpt2 = config->family == DLXI_FAMILY_GPT2;
    dlxi_tensor tensor = {.id = id, .rows = 1, .cols = config->width, .vector = true, .layer = -1};
    int64_t place = id - before_blocks(config);
    int64_t after = place - config->layers * roles_per_layer(config);
    const char *name = NULL;
    if (place >= 0 && after < 0) {
        block_tensor(&tensor, config, place);
    } else if (id == 0) {
        name = gpt2 ? "transformer.wte.weight" : "model.embed_tokens.weight";
        tensor.rows = config->vocabulary;
        tensor.in_embedding = true;
        tensor.in_head = config->tied_head;
        tensor.vector = false;
    } else if (id == 1 && gpt2) {
        name = "transformer.wpe.weight";
        tensor.rows = config->context;
        tensor.in_embedding = true;
        tensor.vector = false;
    } else {
        tensor.in_head = true;
        if (after == 0) {
            name = gpt2 ? "transformer.ln_f.weight" : "model.norm.weight";
        } else if (after == 1 && gpt2) {
            name = "transformer.ln_f.bias";
        } else {
            name = "lm_head.weight";
            tensor.rows = config->vocabulary;
            tensor.vector = false;
        }
    }
    if (name != NULL) snprintf(tensor.name, sizeof tensor.name, "%s", name);
    tensor.decay = !tensor.vector;
    return tensor;
}

int64_t dlxi_model_parameter_count(const dlxi_model_config *config, bool without_positions) {
    int64_t sum = 0;
    for (int64_t id = 0; id < dlxi_model_tensor_count(config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        if (without_positions && config->family == DLXI_FAMILY_GPT2 && id == 1) continue;
        sum += tensor.rows * tensor.cols;
    }
    return sum;
}

void dlxi_model_initialize(float *dst, const dlxi_model_config *config, const dlxi_tensor *tensor,
                           uint64_t seed) {
    int64_t count = tensor->rows * tensor->cols;
    if (tensor->vector) {
        size_t length = strlen(tensor->name);
        bool bias = length > 5 && strcmp(tensor->name + length - 5, ".bias") == 0;
        for (int64_t i = 0; i < count; i++) dst[i] = bias ? 0.0f : 1.0f;
        return;
    }
    float deviation = 0.02f;
    if (tensor->layer >= 0) {
        dlxi_role role = dlxi_tensor_role(config, tensor->id);
        if (role == DLXI_ROLE_OUT || role == DLXI_ROLE_DOWN)
            deviation /= sqrtf(2.0f * (float)config->layers);
    }
    for (int64_t i = 0; i < count; i++) {
        dst[i] = deviation * dlxi_rng_normal(seed, (uint64_t)tensor->id, (uint64_t)i);
    }
}
