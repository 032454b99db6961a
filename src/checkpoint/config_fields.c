/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/config_fields.h"

#include <stdio.h>
#include <string.h>

enum {
    GPT2 = DLXI_TYPE_GPT2,
    ROTARY = DLXI_TYPE_LLAMA | DLXI_TYPE_QWEN2,
    ALL = GPT2 | ROTARY,
    UNKNOWN_SHOWN = 8 /* in a warning */
};

/* ---- fields that change the model ------------------------------------------------------------ */

/* allowed: words, each a JSON value, `empty` for [] and {}, or a string without its quotes. A list
 * is allowed if each of its entries is. */
typedef struct field_rule {
    const char *name, *allowed;
    int types;
} field_rule;

static const field_rule rules[] = {
    {"activation_function", "gelu_new gelu_pytorch_tanh relu", GPT2},
    {"scale_attn_weights", "true", GPT2},
    {"scale_attn_by_inverse_layer_idx", "false null", GPT2},
    {"add_cross_attention", "false null", GPT2},
    {"multi_query", "false null", GPT2},
    {"position_embedding_type", "absolute null", GPT2},
    {"position_embedding_type", "rope null", ROTARY},
    {"hidden_act", "silu swish", ROTARY},
    {"hidden_activation", "silu swish null", ROTARY},
    {"attention_bias", "false null", ROTARY},
    {"attention_out_bias", "false null", ROTARY},
    {"mlp_bias", "false null", ROTARY},
    {"lm_head_bias", "false null", ALL},
    {"use_sliding_window", "false null", ROTARY},
    {"layer_types", "full_attention null", ROTARY},
    {"partial_rotary_factor", "1 null", ALL},
    {"rotary_pct", "1 null", ALL},
    {"rope_interleave", "false null", ALL},
    {"rope_interleaved", "false null", ALL},
    {"no_rope_layers", "empty null", ALL},
    {"no_rope_layer_interval", "null", ALL},
    {"alibi", "false null", ALL},
    {"is_encoder_decoder", "false null", ALL},
    {"is_causal", "true null", ALL},
    {"use_bidirectional_attention", "false null", ALL},
    {"quantization_config", "null", ALL},
    {"compression_config", "null", ALL},
    {"pruned_heads", "empty null", ALL},
    {"final_logit_softcapping", "null", ALL},
    {"attn_logit_softcapping", "null", ALL},
    {"logit_scale", "1 null", ALL},
    {"logits_scaling", "1 null", ALL},
    {"embedding_multiplier", "1 null", ALL},
    {"lm_head_multiplier", "1 null", ALL},
    {"residual_multiplier", "1 null", ALL},
    {"attention_multiplier", "null", ALL},
    {"query_pre_attn_scalar", "null", ALL},
    {"scale_emb", "1 null", ALL},
    {"scale_depth", "null", ALL},
    {"clip_qkv", "null", ALL},
    {"qk_norm", "false null", ALL},
    {"use_qk_norm", "false null", ALL},
    {"qk_layernorm", "false null", ALL},
    {"num_experts", "0 null", ALL},
    {"num_local_experts", "0 null", ALL},
};

/* Read by config_json.c, or without effect on what the model computes: on its training, on the
 * drawing of tokens, on how a library computes or reports. */
static const struct {
    const char *name;
    int types;
} passed_over[] = {
    {"model_type", ALL},
    {"dilocox_run_id", ALL},
    {"vocab_size", ALL},
    {"tie_word_embeddings", ALL},
    {"n_layer", GPT2},
    {"n_embd", GPT2},
    {"n_head", GPT2},
    {"n_inner", GPT2},
    {"n_positions", GPT2},
    {"n_ctx", GPT2}, /* n_positions, in old files */
    {"layer_norm_epsilon", GPT2},
    {"num_hidden_layers", ROTARY},
    {"hidden_size", ROTARY},
    {"num_attention_heads", ROTARY},
    {"num_key_value_heads", ROTARY},
    {"intermediate_size", ROTARY},
    {"max_position_embeddings", ROTARY},
    {"rms_norm_eps", ROTARY},
    {"head_dim", ROTARY},
    {"rope_theta", ROTARY},
    {"rope_scaling", ROTARY},
    {"rope_parameters", ROTARY},
    {"sliding_window", ROTARY},
    {"max_window_layers", ROTARY}, /* with use_sliding_window only */
    {"pretraining_tp", ROTARY},    /* the same products in slices */

    {"attn_pdrop", GPT2},
    {"embd_pdrop", GPT2},
    {"resid_pdrop", GPT2},
    {"summary_activation", GPT2},
    {"summary_first_dropout", GPT2},
    {"summary_proj_to_labels", GPT2},
    {"summary_type", GPT2},
    {"summary_use_proj", GPT2},
    {"reorder_and_upcast_attn", GPT2},
    {"attention_dropout", ALL},
    {"hidden_dropout", ALL},
    {"initializer_range", ALL},
    {"gradient_checkpointing", ALL},

    {"_attn_implementation", ALL},
    {"_attn_implementation_autoset", ALL},
    {"_name_or_path", ALL},
    {"architectures", ALL},
    {"attn_implementation", ALL},
    {"bad_words_ids", ALL},
    {"begin_suppress_tokens", ALL},
    {"bos_token_id", ALL},
    {"chunk_size_feed_forward", ALL},
    {"cross_attention_hidden_size", ALL},
    {"decoder_start_token_id", ALL},
    {"diversity_penalty", ALL},
    {"do_sample", ALL},
    {"dtype", ALL},
    {"early_stopping", ALL},
    {"encoder_no_repeat_ngram_size", ALL},
    {"eos_token_id", ALL},
    {"exponential_decay_length_penalty", ALL},
    {"finetuning_task", ALL},
    {"forced_bos_token_id", ALL},
    {"forced_eos_token_id", ALL},
    {"id2label", ALL},
    {"is_decoder", ALL},
    {"label2id", ALL},
    {"length_penalty", ALL},
    {"max_length", ALL},
    {"min_length", ALL},
    {"no_repeat_ngram_size", ALL},
    {"num_beam_groups", ALL},
    {"num_beams", ALL},
    {"num_labels", ALL},
    {"num_return_sequences", ALL},
    {"output_attentions", ALL},
    {"output_hidden_states", ALL},
    {"output_scores", ALL},
    {"pad_token_id", ALL},
    {"prefix", ALL},
    {"problem_type", ALL},
    {"remove_invalid_values", ALL},
    {"repetition_penalty", ALL},
    {"return_dict", ALL},
    {"return_dict_in_generate", ALL},
    {"sep_token_id", ALL},
    {"suppress_tokens", ALL},
    {"task_specific_params", ALL},
    {"temperature", ALL},
    {"tf_legacy_loss", ALL},
    {"tie_encoder_decoder", ALL},
    {"tokenizer_class", ALL},
    {"top_k", ALL},
    {"top_p", ALL},
    {"torch_dtype", ALL},
    {"torchscript", ALL},
    {"transformers_version", ALL},
    {"typical_p", ALL},
    {"unk_token_id", ALL},
    {"use_bfloat16", ALL},
    {"use_cache", ALL},
};

static bool word_is(const char *word, size_t bytes, const char *text) {
    return strlen(text) == bytes && memcmp(word, text, bytes) == 0;
}

static bool word_is_literal(const char *word, size_t bytes) {
    return word_is(word, bytes, "null") || word_is(word, bytes, "true") ||
           word_is(word, bytes, "false") || word_is(word, bytes, "empty") || bytes == 1;
}

static bool word_allows(const char *word, size_t bytes, const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_NULL:
        return word_is(word, bytes, "null");
    case JSON_TRUE:
        return word_is(word, bytes, "true");
    case JSON_FALSE:
        return word_is(word, bytes, "false");
    case JSON_STRING: /* "false" is true to other readers */
        return word_is(word, bytes, json_string_value(value)) && !word_is_literal(word, bytes);
    case JSON_INTEGER:
    case JSON_REAL:
        return bytes == 1 && *word >= '0' && *word <= '9' &&
               json_number_value(value) == (double)(*word - '0');
    case JSON_ARRAY:
        return word_is(word, bytes, "empty") && json_array_size(value) == 0;
    default:
        return word_is(word, bytes, "empty") && json_object_size(value) == 0;
    }
}

static bool is_allowed(const char *allowed, const json_t *value) {
    for (const char *word = allowed; *word != '\0';) {
        size_t bytes = strcspn(word, " ");
        if (word_allows(word, bytes, value)) return true;
        word += bytes + (word[bytes] == ' ');
    }
    if (json_array_size(value) == 0) return false;
    size_t i;
    const json_t *item;
    json_array_foreach(value, i, item) if (json_is_array(item) || json_is_null(item) ||
                                           !is_allowed(allowed, item)) return false;
    return true;
}

/* section: "" or "rope_scaling." */
static dlx_status field_check(const char *section, const char *name, const json_t *value,
                              const char *allowed, const char *path, dlx_error *error) {
    char shown[DLXI_JSON_SHOWN_BYTES], known[DLXI_JSON_SHOWN_BYTES], list[64];
    if (is_allowed(allowed, value)) return DLX_OK;
    size_t used = 0; /* words with commas */
    for (const char *c = allowed; *c != '\0' && used < sizeof list - 2; c++) {
        if (*c == ' ') list[used++] = ',';
        list[used++] = *c;
    }
    list[used] = '\0';
    DLX_FAIL(error, DATA, "%s: field '%s%s' is %s, which is not supported; allowed: %s", path,
             section, dlxi_json_show_name(known, name), dlxi_json_show_value(shown, value), list);
}

static bool is_passed_over(const char *name, dlxi_model_type type) {
    for (size_t i = 0; i < sizeof passed_over / sizeof *passed_over; i++)
        if ((passed_over[i].types & (int)type) != 0 && strcmp(passed_over[i].name, name) == 0)
            return true;
    return false;
}

static const field_rule *rule_find(const char *name, dlxi_model_type type) {
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if ((rules[i].types & (int)type) != 0 && strcmp(rules[i].name, name) == 0) return &rules[i];
    return NULL;
}

/* ---- unknown fields -------------------------------------------------------------------------- */

typedef struct unknown_names {
    char list[UNKNOWN_SHOWN * (DLXI_JSON_SHOWN_BYTES + 4)];
    size_t used, count;
} unknown_names;

static void unknown_add(unknown_names *u, const char *name) {
    char shown[DLXI_JSON_SHOWN_BYTES];
    if (u->count++ >= UNKNOWN_SHOWN) return;
    u->used += (size_t)snprintf(u->list + u->used, sizeof u->list - u->used, "%s'%s'",
                                u->used > 0 ? ", " : "", dlxi_json_show_name(shown, name));
}

static void unknown_warn(const unknown_names *u, const char *path, dlx_log log, void *context) {
    char line[sizeof u->list + 512], more[32] = "";
    if (u->count == 0 || log == NULL) return;
    if (u->count > UNKNOWN_SHOWN)
        snprintf(more, sizeof more, " and %zu more", u->count - UNKNOWN_SHOWN);
    snprintf(line, sizeof line,
             "warning: %.300s: unknown to dilocox and not used: %s%s; if one of them changes what "
             "the model computes, its results here are wrong",
             path, u->list, more);
    log(context, line);
}

dlx_status dlxi_config_fields_check(const json_t *json, dlxi_model_type type, const char *path,
                                    dlx_log log, void *log_context, dlx_error *error) {
    unknown_names unknown = {.used = 0};
    const char *name;
    json_t *value;
    /* an iterator does not change the object */
    json_object_foreach((json_t *)(uintptr_t)json, name, value) {
        const field_rule *rule = rule_find(name, type);
        if (rule != NULL)
            DLX_TRY(field_check("", name, value, rule->allowed, path, error));
        else if (!is_passed_over(name, type))
            unknown_add(&unknown, name);
    }
    unknown_warn(&unknown, path, log, log_context);
    return DLX_OK;
}

/* ---- rotary embedding ------------------------------------------------------------------------ */

/* The base in one of its places. */
typedef struct theta_source {
    const char *name;
    double value;
} theta_source;

static dlx_status theta_take(theta_source *found, const char *name, const json_t *value,
                             const char *path, dlx_error *error) {
    if (value == NULL || json_is_null(value)) return DLX_OK;
    if (!json_is_number(value)) DLX_FAIL(error, DATA, "%s: field '%s' is not a number", path, name);
    double theta = json_number_value(value);
    if (found->name != NULL && found->value != theta)
        DLX_FAIL(error, DATA,
                 "%s: field '%s' is %.9g and '%s' is %.9g; remove the one that is wrong", path,
                 found->name, found->value, name, theta);
    *found = (theta_source){name, theta};
    return DLX_OK;
}

static dlx_status rope_check(theta_source *found, const json_t *json, const char *section,
                             const char *theta_name, const char *path, dlx_error *error) {
    static const struct {
        const char *name, *allowed;
    } members[] = {{"rope_type", "default null"},
                   {"type", "default null"},
                   {"partial_rotary_factor", "1 null"},
                   {"factor", "1 null"}};
    char name_of_section[32], shown[DLXI_JSON_SHOWN_BYTES];
    json_t *rope = json_object_get(json, section), *value;
    const char *name;
    if (rope == NULL || json_is_null(rope)) return DLX_OK;
    if (!json_is_object(rope))
        DLX_FAIL(error, DATA,
                 "%s: field '%s' is %s, which is not supported; allowed: null, an object", path,
                 section, dlxi_json_show_value(shown, rope));
    snprintf(name_of_section, sizeof name_of_section, "%s.", section);
    json_object_foreach(rope, name, value) {
        const char *allowed = "null";
        for (size_t i = 0; i < sizeof members / sizeof *members; i++)
            if (strcmp(members[i].name, name) == 0) allowed = members[i].allowed;
        if (strcmp(name, "rope_theta") == 0)
            DLX_TRY(theta_take(found, theta_name, value, path, error));
        else if (strcmp(name, "original_max_position_embeddings") != 0) /* of other types */
            DLX_TRY(field_check(name_of_section, name, value, allowed, path, error));
    }
    return DLX_OK;
}

dlx_status dlxi_config_fields_theta(float *theta, const json_t *json, const char *path,
                                    dlx_error *error) {
    theta_source found = {.name = NULL};
    DLX_TRY(theta_take(&found, "rope_theta", json_object_get(json, "rope_theta"), path, error));
    DLX_TRY(rope_check(&found, json, "rope_scaling", "rope_scaling.rope_theta", path, error));
    DLX_TRY(rope_check(&found, json, "rope_parameters", "rope_parameters.rope_theta", path, error));
    if (found.name != NULL) *theta = (float)found.value;
    return DLX_OK;
}
