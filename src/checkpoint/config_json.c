/* SPDX-License-Identifier: Apache-2.0 */
/* Writes and reads config.json. Fields that ask for unsupported arithmetic are refused by name
 * (config_fields.c). */
#include "checkpoint/config_json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/config_fields.h"
#include "base/file.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 1 << 20 };

/* ---- write ----------------------------------------------------------------------------------- */

/* The shortest decimal that reads back as the same float: 1e-05, not 9.99999975e-06. */
static double shortest(float value) {
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    return strtod(text, NULL);
}

static json_t *gpt2_json(const dlxi_model_config *c) {
    return json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:b, s:f, s:f, s:f, s:s, s:n, s:n}",
        "architectures", "GPT2LMHeadModel", "model_type", "gpt2", "n_layer", (json_int_t)c->layers,
        "n_embd", (json_int_t)c->width, "n_head", (json_int_t)c->heads, "n_inner",
        (json_int_t)c->mlp_width, "n_positions", (json_int_t)c->context, "vocab_size",
        (json_int_t)c->vocabulary, "activation_function",
        c->activation == DLXI_RELU ? "relu" : "gelu_new", "layer_norm_epsilon",
        shortest(c->norm_epsilon), "tie_word_embeddings", (int)c->tied_head, "attn_pdrop", 0.0,
        "embd_pdrop", 0.0, "resid_pdrop", 0.0, "torch_dtype", "float32", "bos_token_id",
        "eos_token_id");
}

/* The base of the rotary embedding for old readers, and for transformers 5. */
static json_t *llama_json(const dlxi_model_config *c) {
    return json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:f, s:{s:s, s:f}, s:b, s:s, "
        "s:n, s:n}",
        "architectures", c->qkv_bias ? "Qwen2ForCausalLM" : "LlamaForCausalLM", "model_type",
        c->qkv_bias ? "qwen2" : "llama", "num_hidden_layers", (json_int_t)c->layers, "hidden_size",
        (json_int_t)c->width, "num_attention_heads", (json_int_t)c->heads, "num_key_value_heads",
        (json_int_t)c->kv_heads, "intermediate_size", (json_int_t)c->mlp_width,
        "max_position_embeddings", (json_int_t)c->context, "vocab_size", (json_int_t)c->vocabulary,
        "hidden_act", "silu", "rms_norm_eps", shortest(c->norm_epsilon), "rope_theta",
        shortest(c->rope_theta), "rope_parameters", "rope_type", "default", "rope_theta",
        shortest(c->rope_theta), "tie_word_embeddings", (int)c->tied_head, "torch_dtype", "float32",
        "bos_token_id", "eos_token_id");
}

dlx_status dlxi_config_json_write(const char *path, const dlxi_model_config *config,
                                  const char *run_id, dlx_error *error) {
    dlx_status status = DLX_OK;
    json_t *json = config->family == DLXI_FAMILY_GPT2 ? gpt2_json(config) : llama_json(config);
    if (json != NULL && run_id != NULL)
        json_object_set_new(json, "dilocox_run_id", json_string(run_id));
    char *text = json == NULL ? NULL : json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    if (text == NULL) DLX_FAIL_OUT(error, MEMORY, "out of memory: %s", path);
    status = dlxi_file_write_text(path, text, error);
out:
    free(text);
    json_decref(json);
    return status;
}

/* ---- read ------------------------------------------------------------------------------------ */

/* A parsed file, its path for messages, and where warnings go. */
typedef struct reader {
    const json_t *json;
    const char *path;
    dlx_log log;
    void *log_context;
    dlx_error *error;
} reader;

/* A missing or null field becomes `otherwise`, unless that is −1. */
static dlx_status size_read(int64_t *out, const reader *r, const char *field, int64_t otherwise) {
    const json_t *item = json_object_get(r->json, field);
    if (item == NULL || json_is_null(item)) {
        if (otherwise < 0) DLX_FAIL(r->error, DATA, "%s: field '%s' is missing", r->path, field);
        *out = otherwise;
        return DLX_OK;
    }
    if (!json_is_integer(item))
        DLX_FAIL(r->error, DATA, "%s: field '%s' is not a whole number", r->path, field);
    *out = json_integer_value(item);
    return DLX_OK;
}

static dlx_status number_read(float *out, const reader *r, const char *field, double otherwise) {
    const json_t *item = json_object_get(r->json, field);
    if (item != NULL && !json_is_number(item))
        DLX_FAIL(r->error, DATA, "%s: field '%s' is not a number", r->path, field);
    *out = (float)(item == NULL ? otherwise : json_number_value(item));
    return DLX_OK;
}

static dlx_status flag_read(bool *out, const reader *r, const char *field, bool otherwise) {
    const json_t *item = json_object_get(r->json, field);
    bool given = item != NULL && !json_is_null(item);
    if (given && !json_is_boolean(item))
        DLX_FAIL(r->error, DATA, "%s: field '%s' is not true or false", r->path, field);
    *out = given ? json_is_true(item) : otherwise;
    return DLX_OK;
}

static const char *text_read(const reader *r, const char *field, const char *otherwise) {
    const char *text = json_string_value(json_object_get(r->json, field));
    return text == NULL ? otherwise : text;
}

static dlx_status gpt2_read(dlxi_model_config *out, const reader *r) {
    *out = dlxi_model_config_default(DLXI_FAMILY_GPT2);
    DLX_TRY(size_read(&out->layers, r, "n_layer", -1));
    DLX_TRY(size_read(&out->width, r, "n_embd", -1));
    DLX_TRY(size_read(&out->heads, r, "n_head", -1));
    out->kv_heads = out->heads;
    int64_t customary = out->width > 0 && out->width <= INT32_MAX ? 4 * out->width : 0;
    DLX_TRY(size_read(&out->mlp_width, r, "n_inner", customary));
    DLX_TRY(size_read(&out->context, r, "n_positions", -1));
    DLX_TRY(size_read(&out->vocabulary, r, "vocab_size", -1));
    DLX_TRY(number_read(&out->norm_epsilon, r, "layer_norm_epsilon", 1e-5));
    DLX_TRY(flag_read(&out->tied_head, r, "tie_word_embeddings", true));
    if (strcmp(text_read(r, "activation_function", ""), "relu") == 0) out->activation = DLXI_RELU;
    return DLX_OK;
}

static dlx_status llama_read(dlxi_model_config *out, const reader *r, bool qwen2) {
    *out = dlxi_model_config_default(DLXI_FAMILY_LLAMA);
    out->qkv_bias = qwen2;
    DLX_TRY(size_read(&out->layers, r, "num_hidden_layers", -1));
    DLX_TRY(size_read(&out->width, r, "hidden_size", -1));
    DLX_TRY(size_read(&out->heads, r, "num_attention_heads", -1));
    DLX_TRY(size_read(&out->kv_heads, r, "num_key_value_heads", out->heads));
    DLX_TRY(size_read(&out->mlp_width, r, "intermediate_size", -1));
    DLX_TRY(size_read(&out->context, r, "max_position_embeddings", -1));
    DLX_TRY(size_read(&out->vocabulary, r, "vocab_size", -1));
    DLX_TRY(number_read(&out->norm_epsilon, r, "rms_norm_eps", 1e-6));
    DLX_TRY(flag_read(&out->tied_head, r, "tie_word_embeddings", false));
    out->rope_theta = 10000.0f;
    DLX_TRY(dlxi_config_fields_theta(&out->rope_theta, r->json, r->path, r->error));
    int64_t window, head_size;
    DLX_TRY(size_read(&window, r, "sliding_window", INT64_MAX));
    if (!qwen2 && window < out->context) /* Qwen2 has use_sliding_window */
        DLX_FAIL(r->error, DATA,
                 "%s: field 'sliding_window' is %" PRId64
                 ", which is not supported; allowed: null, max_position_embeddings (%" PRId64
                 ") and more",
                 r->path, window, out->context);
    DLX_TRY(size_read(&head_size, r, "head_dim", INT64_MAX));
    if (head_size != INT64_MAX && (out->heads < 1 || head_size != out->width / out->heads))
        DLX_FAIL(r->error, DATA,
                 "%s: head_dim %" PRId64 " is not hidden_size / num_attention_heads", r->path,
                 head_size);
    return DLX_OK;
}

static dlx_status config_read(dlxi_model_config *out, const reader *r) {
    static const struct {
        const char *word;
        dlxi_model_type type;
    } types[] = {{"gpt2", DLXI_TYPE_GPT2}, {"llama", DLXI_TYPE_LLAMA}, {"qwen2", DLXI_TYPE_QWEN2}};
    const char *word = text_read(r, "model_type", "");
    char shown[DLXI_JSON_SHOWN_BYTES];
    size_t i = 0, count = sizeof types / sizeof *types;
    while (i < count && strcmp(word, types[i].word) != 0) i++;
    if (i == count)
        DLX_FAIL(r->error, DATA, "%s: model_type '%.40s' is not one of gpt2, llama, qwen2", r->path,
                 dlxi_json_show_name(shown, word));
    DLX_TRY(dlxi_config_fields_check(r->json, types[i].type, r->path, r->log, r->log_context,
                                     r->error));
    if (types[i].type == DLXI_TYPE_GPT2)
        DLX_TRY(gpt2_read(out, r));
    else
        DLX_TRY(llama_read(out, r, types[i].type == DLXI_TYPE_QWEN2));
    if (dlxi_model_config_validate(out, r->error) == DLX_OK) return DLX_OK;
    if (r->error != NULL) r->error->status = DLX_DATA;
    dlxi_error_prefix(r->error, "%s: ", r->path);
    return DLX_DATA;
}

dlx_status dlxi_checkpoint_parse_config(dlxi_model_config *out, const char *text, size_t bytes,
                                        const char *path, dlx_log log, void *log_context,
                                        dlx_error *error) {
    json_t *json = dlxi_json_parse(text, bytes, path, error);
    if (json == NULL) return DLX_DATA;
    dlx_status status = json_is_object(json)
                            ? config_read(out, &(reader){json, path, log, log_context, error})
                            : dlxi_error_set(error, DLX_DATA, "%s: not a JSON object", path);
    json_decref(json);
    return status;
}

dlx_status dlxi_checkpoint_load_config(dlxi_model_config *out, const char *directory, dlx_log log,
                                       void *log_context, dlx_error *error) {
    char path[DLXI_PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    DLX_TRY(dlxi_path_join(path, directory, "config.json", error));
    DLX_TRY(dlxi_file_read(&text, &bytes, path, CONFIG_BYTES_MAX, error));
    dlx_status status =
        dlxi_checkpoint_parse_config(out, text, bytes, path, log, log_context, error);
    free(text);
    return status;
}
