/* SPDX-License-Identifier: Apache-2.0 */
/* The model's configuration: defaults, ranges, and the tensors that follow from it. */
#include "model/internal.h"
#include "base/panic.h"
#include "base/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { FAMILIES = 2 };

const char *const dlxi_family_names[] = {
    [DLXI_FAMILY_GPT2] = "gpt2", [DLXI_FAMILY_LLAMA] = "llama", NULL};

/* A family's parts, and the names of its tensors outside the blocks; NULL: it has none. */
static const struct family_row {
    dlxi_family_parts parts;
    bool tied_head; /* by default */
    const char *table, *positions, *block, *final_gain, *final_bias;
} family_table[FAMILIES] = {
    [DLXI_FAMILY_GPT2] = {.parts = {.learned_positions = true, .layer_norm = true, .biases = true},
                          .tied_head = true,
                          .table = "transformer.wte.weight",
                          .positions = "transformer.wpe.weight",
                          .block = "transformer.h",
                          .final_gain = "transformer.ln_f.weight",
                          .final_bias = "transformer.ln_f.bias"},
    [DLXI_FAMILY_LLAMA] = {.parts = {.grouped_query = true, .gated_mlp = true},
                           .table = "model.embed_tokens.weight",
                           .block = "model.layers",
                           .final_gain = "model.norm.weight"},
};

static const struct family_row *family_row(const dlxi_model_config *config) {
    DLXI_ASSERT((int)config->family >= 0 && (int)config->family < FAMILIES);
    return &family_table[config->family];
}

const dlxi_family_parts *dlxi_model_parts(const dlxi_model_config *config) {
    return &family_row(config)->parts;
}

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
    const struct family_row *row = family_row(&config);
    if (!row->parts.grouped_query) config.kv_heads = config.heads;
    if (!row->parts.gated_mlp) config.mlp_width = 4 * config.width;
    config.tied_head = row->tied_head;
    return config;
}

static dlx_status range_check(const char *key, int64_t value, int64_t min, int64_t max,
                              const char *hint, dlx_error *error) {
    if (value >= min && value <= max) return DLX_OK;
    DLX_FAIL(error, CONFIG,
             "model.%s: %" PRId64 " is out of range; allowed: %" PRId64 " to %" PRId64 "; %s", key,
             value, min, max, hint);
}

static dlx_status ranges_check(const dlxi_model_config *c, dlx_error *error) {
    DLX_TRY(range_check("layers", c->layers, 1, DLXI_LAYERS_MAX,
                        "set the number of transformer blocks", error));
    DLX_TRY(range_check("width", c->width, 2, DLXI_WIDTH_MAX,
                        "set the width of the residual stream", error));
    DLX_TRY(
        range_check("heads", c->heads, 1, DLXI_HEADS_MAX, "set the number of query heads", error));
    DLX_TRY(range_check("kv_heads", c->kv_heads, 1, DLXI_HEADS_MAX,
                        "set it to model.heads or to a divisor of it", error));
    DLX_TRY(range_check("mlp_width", c->mlp_width, 1, DLXI_MLP_WIDTH_MAX,
                        "about 4 widths for gpt2, 8/3 for llama", error));
    DLX_TRY(range_check("context", c->context, 1, DLXI_CONTEXT_MAX,
                        "set the longest window in tokens", error));
    return range_check("vocabulary", c->vocabulary, 2, DLXI_VOCABULARY_MAX,
                       "set the tokenizer's vocabulary: 256 for bytes", error);
}

dlx_status dlxi_model_config_validate(const dlxi_model_config *config, dlx_error *error) {
    const dlxi_family_parts *parts = dlxi_model_parts(config);
    DLX_TRY(ranges_check(config, error));
    if (config->width % config->heads != 0) {
        DLX_FAIL(error, CONFIG,
                 "model.width: %" PRId64 " is not a multiple of model.heads (%" PRId64
                 "); set width to %" PRId64 " or change heads",
                 config->width, config->heads, (config->width / config->heads + 1) * config->heads);
    }
    int64_t head_width = config->width / config->heads;
    if (config->heads % config->kv_heads != 0) {
        DLX_FAIL(error, CONFIG,
                 "model.kv_heads: %" PRId64 " does not divide model.heads (%" PRId64
                 "); set it to heads or to a divisor of heads",
                 config->kv_heads, config->heads);
    }
    if (!parts->learned_positions && head_width % 2 != 0) {
        DLX_FAIL(error, CONFIG,
                 "model.width: %" PRId64 " over model.heads (%" PRId64
                 ") gives heads of width %" PRId64
                 "; rotary positions need an even width: change width or heads",
                 config->width, config->heads, head_width);
    }
    if (!parts->grouped_query && config->kv_heads != config->heads) {
        DLX_FAIL(error, CONFIG,
                 "model.kv_heads: %" PRId64
                 " with model.family %s, which has one key head per query head; set it to "
                 "model.heads (%" PRId64 ")",
                 config->kv_heads, dlxi_family_names[config->family], config->heads);
    }
    if (!(config->norm_epsilon > 0.0f && config->norm_epsilon <= (float)DLXI_NORM_EPSILON_MAX)) {
        DLX_FAIL(error, CONFIG,
                 "model.norm_epsilon: %g is out of range; allowed: above 0, to %g; 1e-5 is usual",
                 (double)config->norm_epsilon, DLXI_NORM_EPSILON_MAX);
    }
    if (!parts->learned_positions &&
        !(config->rope_theta >= 1.0f && config->rope_theta <= DLXI_ROPE_THETA_MAX)) {
        DLX_FAIL(error, CONFIG,
                 "model.rope_theta: %g is out of range; allowed: 1 to %g; 10000 is usual",
                 (double)config->rope_theta, (double)DLXI_ROPE_THETA_MAX);
    }
    return DLX_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

/* Sizes by letter: C width, K the keys' width, M MLP width, 1 a vector's rows. A NULL name: the
 * family has no such tensor. */
static const struct role_row {
    const char *name[FAMILIES];
    char rows, cols;
} role_table[DLXI_ROLE_COUNT] = {
    [DLXI_ROLE_NORM1_GAIN] = {{"ln_1.weight", "input_layernorm.weight"}, '1', 'C'},
    [DLXI_ROLE_NORM1_BIAS] = {{"ln_1.bias", NULL}, '1', 'C'},
    [DLXI_ROLE_Q] = {{"attn.c_attn.q.weight", "self_attn.q_proj.weight"}, 'C', 'C'},
    [DLXI_ROLE_K] = {{"attn.c_attn.k.weight", "self_attn.k_proj.weight"}, 'K', 'C'},
    [DLXI_ROLE_V] = {{"attn.c_attn.v.weight", "self_attn.v_proj.weight"}, 'K', 'C'},
    [DLXI_ROLE_Q_BIAS] = {{"attn.c_attn.q.bias", "self_attn.q_proj.bias"}, '1', 'C'},
    [DLXI_ROLE_K_BIAS] = {{"attn.c_attn.k.bias", "self_attn.k_proj.bias"}, '1', 'K'},
    [DLXI_ROLE_V_BIAS] = {{"attn.c_attn.v.bias", "self_attn.v_proj.bias"}, '1', 'K'},
    [DLXI_ROLE_OUT] = {{"attn.c_proj.weight", "self_attn.o_proj.weight"}, 'C', 'C'},
    [DLXI_ROLE_OUT_BIAS] = {{"attn.c_proj.bias", NULL}, '1', 'C'},
    [DLXI_ROLE_NORM2_GAIN] = {{"ln_2.weight", "post_attention_layernorm.weight"}, '1', 'C'},
    [DLXI_ROLE_NORM2_BIAS] = {{"ln_2.bias", NULL}, '1', 'C'},
    [DLXI_ROLE_GATE] = {{NULL, "mlp.gate_proj.weight"}, 'M', 'C'},
    [DLXI_ROLE_UP] = {{"mlp.c_fc.weight", "mlp.up_proj.weight"}, 'M', 'C'},
    [DLXI_ROLE_UP_BIAS] = {{"mlp.c_fc.bias", NULL}, '1', 'M'},
    [DLXI_ROLE_DOWN] = {{"mlp.c_proj.weight", "mlp.down_proj.weight"}, 'C', 'M'},
    [DLXI_ROLE_DOWN_BIAS] = {{"mlp.c_proj.bias", NULL}, '1', 'C'},
};

static const char *role_name(const dlxi_model_config *config, int role) {
    bool optional = role >= DLXI_ROLE_Q_BIAS && role <= DLXI_ROLE_V_BIAS;
    if (optional && !dlxi_model_parts(config)->biases && !config->qkv_bias) return NULL;
    return role_table[role].name[config->family];
}

static int64_t letter_size(const dlxi_model_config *config, char letter) {
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

static int64_t tensors_before_blocks(const dlxi_model_config *config) {
    return family_row(config)->positions != NULL ? 2 : 1;
}

int64_t dlxi_model_tensor_count(const dlxi_model_config *config) {
    int64_t after = (family_row(config)->final_bias != NULL ? 2 : 1) + !config->tied_head;
    return tensors_before_blocks(config) + config->layers * roles_per_layer(config) + after;
}

dlxi_role dlxi_tensor_role(const dlxi_model_config *config, int64_t id) {
    int64_t index = (id - tensors_before_blocks(config)) % roles_per_layer(config);
    int role = 0;
    while (role_name(config, role) == NULL || index-- > 0) role++;
    DLXI_ASSERT(role < DLXI_ROLE_COUNT);
    return (dlxi_role)role;
}

static void block_tensor_fill(dlxi_tensor *tensor, const dlxi_model_config *config, int64_t index) {
    dlxi_role role = dlxi_tensor_role(config, tensor->id);
    tensor->layer = index / roles_per_layer(config);
    snprintf(tensor->name, sizeof tensor->name, "%s.%" PRId64 ".%s", family_row(config)->block,
             tensor->layer, role_name(config, (int)role));
    tensor->rows = letter_size(config, role_table[role].rows);
    tensor->cols = letter_size(config, role_table[role].cols);
    tensor->vector = role_table[role].rows == '1';
    tensor->hidden_matrix = !tensor->vector;
}

dlxi_tensor dlxi_model_tensor(const dlxi_model_config *config, int64_t id) {
    DLXI_ASSERT(id >= 0 && id < dlxi_model_tensor_count(config));
    const struct family_row *row = family_row(config);
    dlxi_tensor tensor = {.id = id, .rows = 1, .cols = config->width, .vector = true, .layer = -1};
    int64_t index = id - tensors_before_blocks(config);
    int64_t after = index - config->layers * roles_per_layer(config);
    const char *name = NULL;
    if (index >= 0 && after < 0) {
        block_tensor_fill(&tensor, config, index);
    } else if (index < 0) {
        name = id == 0 ? row->table : row->positions;
        tensor.rows = id == 0 ? config->vocabulary : config->context;
        tensor.in_embedding = true;
        tensor.in_head = id == 0 && config->tied_head;
        tensor.vector = false;
    } else {
        tensor.in_head = true;
        if (after == 0) {
            name = row->final_gain;
        } else if (after == 1 && row->final_bias != NULL) {
            name = row->final_bias;
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

int64_t dlxi_model_parameter_count(const dlxi_model_config *config) {
    int64_t sum = 0;
    for (int64_t id = 0; id < dlxi_model_tensor_count(config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        bool positions = id == 1 && dlxi_model_parts(config)->learned_positions;
        if (!positions) sum += tensor.rows * tensor.cols;
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
    for (int64_t i = 0; i < count; i++)
        dst[i] = deviation * dlxi_rng_normal(seed, (uint64_t)tensor->id, (uint64_t)i);
}
