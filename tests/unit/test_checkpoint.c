/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints: saved and loaded to the same bits, config.json both ways, and the messages for
 * malformed files. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "checkpoint/safetensors.h"
#include "base/file.h"
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char directory[64];

static int make_directory(void **unused) {
    (void)unused;
    strcpy(directory, "/tmp/dilocox_checkpoint_XXXXXX");
    return mkdtemp(directory) == NULL ? -1 : 0;
}

static int remove_directory(void **unused) {
    (void)unused;
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", directory);
    unlink(path);
    return rmdir(directory);
}

static dlxi_model_config small(int which) {
    dlxi_model_config config =
        dlxi_model_config_default(which < 2 ? DLXI_FAMILY_GPT2 : DLXI_FAMILY_LLAMA);
    config.layers = 2;
    config.width = 12;
    config.heads = 2;
    config.kv_heads = which < 2 ? 2 : 1;
    config.mlp_width = 10;
    config.context = 9;
    config.vocabulary = 21;
    config.activation = which == 1 ? DLXI_RELU : DLXI_GELU;
    config.tied_head = which % 2 == 0;
    config.qkv_bias = which == 3;
    config.norm_epsilon = 3e-6f;
    if (which >= 2) config.rope_theta = 500000.0f;
    /* takes several blocks */
    if (which == 0) config.width = 64, config.mlp_width = 8192;
    return config;
}

static void assert_same_model(const dlxi_model_config *a, const dlxi_model_config *b) {
    assert_int_equal(a->family, b->family);
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->heads, b->heads);
    assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->mlp_width, b->mlp_width);
    assert_int_equal(a->context, b->context);
    assert_int_equal(a->vocabulary, b->vocabulary);
    assert_int_equal(a->activation, b->activation);
    assert_int_equal(a->qkv_bias, b->qkv_bias);
    assert_int_equal(a->tied_head, b->tied_head);
    assert_true(a->norm_epsilon == b->norm_epsilon && a->rope_theta == b->rope_theta);
}

static dlxi_stage *stage_open(const dlxi_model_config *config, uint64_t seed, int64_t first_layer,
                              dlxi_kernels *kernels) {
    dlxi_stage *stage = NULL;
    dlxi_stage_options options = dlxi_stage_options_whole(config, 1, 4, seed);
    options.first_layer = first_layer;
    options.has_embedding = first_layer == 0;
    assert_int_equal(dlxi_stage_open(&stage, config, &options, kernels, NULL), DLX_OK);
    return stage;
}

static void test_round_trip(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_F32, 1, NULL), DLX_OK);
    for (int which = 0; which < 4; which++) {
        dlxi_model_config config = small(which), read;
        int64_t count, part_count;
        dlx_error error = {0};
        dlxi_stage *saved = stage_open(&config, 1, 0, kernels),
                   *loaded = stage_open(&config, 2, 0, kernels);
        dlxi_stage *part = stage_open(&config, 2, 1, kernels);
        dlxi_parameter *a = dlxi_stage_parameters(saved, &count),
                       *b = dlxi_stage_parameters(loaded, &count);
        for (int64_t i = 0; i < count; i++) /* biases differ too */
            for (int64_t j = 0; j < a[i].count; j++)
                a[i].data[j] += dlxi_rng_normal(5, (uint64_t)i, (uint64_t)j);
        if (dlxi_checkpoint_save(directory, &config, a, count, NULL, &error) != DLX_OK)
            fail_msg("%s", error.message);
        if (dlxi_checkpoint_load_config(&read, directory, NULL, NULL, &error) != DLX_OK)
            fail_msg("%s", error.message);
        assert_same_model(&read, &config);
        if (dlxi_checkpoint_load(directory, &read, b, count, NULL, NULL, &error) != DLX_OK)
            fail_msg("%s", error.message);
        for (int64_t i = 0; i < count; i++)
            assert_memory_equal(a[i].data, b[i].data, (size_t)a[i].count * sizeof(float));
        dlxi_parameter *p = dlxi_stage_parameters(part, &part_count);
        assert_true(part_count < count);
        assert_int_equal(dlxi_checkpoint_load(directory, &read, p, part_count, NULL, NULL, NULL),
                         DLX_OK);
        for (int64_t i = 0; i < part_count; i++)
            assert_memory_equal(p[i].data, a[p[i].tensor.id].data,
                                (size_t)p[i].count * sizeof(float));
        dlxi_stage_close(&part);
        dlxi_stage_close(&loaded);
        dlxi_stage_close(&saved);
    }
    dlxi_kernels_close(&kernels);
}

/* The last model saved above is a Qwen2 with an untied head. Loading it with other configs fails
 * and changes nothing. */
static void test_other_model(void **unused) {
    (void)unused;
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_F32, 1, NULL), DLX_OK);
    static const struct {
        int64_t layers, mlp_width;
        bool qkv_bias;
        const char *message;
    } cases[] = {
        {3, 10, true,
         "tensor 'model.layers.2.input_layernorm.weight' is missing; does the file belong to this "
         "config.json?"},
        {2, 11, true,
         "tensor 'model.layers.0.mlp.gate_proj.weight' has shape [10, 12], the config needs [11, "
         "12]"},
        {2, 10, false,
         "tensor 'model.layers.0.self_attn.k_proj.bias' is not one of the config's; does the file "
         "belong "
         "to this config.json?"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlxi_model_config config = small(3);
        config.layers = cases[i].layers, config.mlp_width = cases[i].mlp_width,
        config.qkv_bias = cases[i].qkv_bias;
        dlxi_stage *stage = stage_open(&config, 1, 0, kernels);
        int64_t count;
        dlx_error error = {0};
        dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
        float before = parameter[0].data[0];
        assert_int_equal(
            dlxi_checkpoint_load(directory, &config, parameter, count, NULL, NULL, &error),
            DLX_DATA);
        assert_non_null(strstr(error.message, cases[i].message));
        assert_non_null(strstr(error.message, "/model.safetensors: "));
        assert_true(parameter[0].data[0] == before);
        dlxi_stage_close(&stage);
    }
    dlxi_kernels_close(&kernels);
}

/* A dtype that is not supported is refused before any data changes. */
static void test_unreadable_dtype(void **unused) {
    (void)unused;
    char path[128], *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(dlxi_file_read(&text, &bytes, path, 1 << 20, NULL), DLX_OK);
    char *entry = text + 8, *at = NULL; /* the last "F32" of the header */
    while ((entry = memmem(entry, bytes - (size_t)(entry - text), "\"F32\"", 5)) != NULL)
        at = entry++;
    assert_non_null(at);
    memcpy(at, "\"I32\"", 5);
    dlxi_file_writer *writer = NULL;
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, text, bytes, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_commit(writer, NULL), DLX_OK);
    dlxi_file_writer_close(&writer);
    free(text);

    dlxi_model_config config = small(3);
    dlx_error error = {0};
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_F32, 1, NULL), DLX_OK);
    dlxi_stage *stage = stage_open(&config, 1, 0, kernels);
    int64_t count;
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    float before = parameter[0].data[0];
    assert_int_equal(dlxi_checkpoint_load(directory, &config, parameter, count, NULL, NULL, &error),
                     DLX_DATA);
    assert_non_null(
        strstr(error.message,
               "/model.safetensors: tensor 'lm_head.weight' has dtype I32; only F32, F16 and "
               "BF16 are read: convert it first"));
    assert_true(parameter[0].data[0] == before);
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

/* A save that fails keeps the earlier file. */
static void test_failed_save(void **unused) {
    (void)unused;
    char path[128];
    struct stat before, after;
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(stat(path, &before), 0);
    dlxi_file_writer *writer = NULL;
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, "half", 4, NULL), DLX_OK);
    dlxi_file_writer_close(&writer);
    assert_int_equal(stat(path, &after), 0);
    assert_true(before.st_size == after.st_size && before.st_ino == after.st_ino);

    dlxi_model_config config = small(3);
    dlx_error error = {0};
    dlxi_kernels *kernels = NULL;
    assert_int_equal(dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_F32, 1, NULL), DLX_OK);
    dlxi_stage *stage = stage_open(&config, 1, 0, kernels);
    int64_t count;
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    assert_int_equal(
        dlxi_checkpoint_save("/nowhere/at/all", &config, parameter, count, NULL, &error),
        DLX_SYSTEM);
    assert_string_equal(
        error.message,
        "cannot make the directory '/nowhere/at/all'; its parent must exist and be writable");
    dlxi_stage_close(&stage);
    dlxi_kernels_close(&kernels);
}

/* ---- safetensors by hand --------------------------------------------------------------------- */

/* The header's length, the header, and data_bytes bytes. */
static dlx_status parse(dlxi_safetensors **out, const char *header, size_t header_bytes,
                        size_t data_bytes, dlx_error *error) {
    static uint8_t file[4096];
    memset(file, 0, sizeof file);
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)header_bytes >> (8 * i));
    memcpy(file + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) file[8 + header_bytes + i] = (uint8_t)(i + 1);
    return dlxi_safetensors_parse(out, file, 8 + header_bytes + data_bytes, "x", error);
}

static void test_malformed(void **unused) {
    (void)unused;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *message;
    } cases[] = {
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4,
         "x: tensor 'a': bytes 0 to 8 are outside the file's 4 bytes of data; the file may be "
         "cut short: copy it "
         "again"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9,
         "x: 1 bytes at its end belong to no tensor; copy the file again"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
         "x: tensor 'a': 8 bytes, but its shape and dtype F32 need 12"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
         6, "x: tensor 'b': its bytes overlap those of 'a'"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
         3, "x: tensor 'b': 1 bytes before it belong to no tensor"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "x: its header is not JSON: duplicate object key"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
         "x: tensor 'a': its shape has more elements than any file"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
         "x: tensor 'a': its shape has an entry that is not a whole number from 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4,
         "x: tensor 'a': bytes 4 to 0 are outside the file's 4 bytes of data; the file may be "
         "cut short: copy it "
         "again"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
         "x: tensor 'a': data_offsets is not a pair of whole numbers"},
        {"{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
         "x: tensor 'a': unknown dtype 'Q4'"},
        {"{\"a\":7}", 0, "x: tensor 'a': it has no dtype"},
        {"[]", 0, "x: its header is not a JSON object"},
        {"{\"\xff\":1}", 0, "x: its header is not JSON: unable to decode byte 0xff"},
    };
    static const char padded[] =
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}\0\0";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlxi_safetensors *file = NULL;
        dlx_error error = {0};
        dlx_status status =
            parse(&file, cases[i].header, strlen(cases[i].header), cases[i].data_bytes, &error);
        assert_int_equal(status, DLX_DATA);
        assert_null(file);
        assert_non_null(strstr(error.message, cases[i].message));
    }
    dlxi_safetensors *none = NULL;
    dlx_error why = {0};
    assert_int_equal(parse(&none, padded, sizeof padded, 0, &why), DLX_DATA); /* with its own 0 */
    assert_string_equal(why.message, "x: the last 3 of its header's 56 bytes are NUL padding; the "
                                     "format pads with spaces: write the file again");
    static const uint8_t huge[9] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, '{'};
    dlxi_safetensors *file = NULL;
    dlx_error error = {0};
    assert_int_equal(dlxi_safetensors_parse(&file, huge, 9, "x", &error), DLX_DATA);
    assert_string_equal(
        error.message,
        "x: a header of 18446744073709551615 bytes does not fit (file 9 bytes, headers at "
        "most 100000000); is this a complete safetensors file?");
    assert_int_equal(dlxi_safetensors_parse(&file, huge, 7, "x", &error), DLX_DATA);
    assert_string_equal(error.message, "x: 7 bytes are too few for a safetensors file");
}

static void test_dtypes(void **unused) {
    (void)unused;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[16,20]},"
        "\"h\":{\"dtype\":\"F16\",\"shape\":[2,4],\"data_offsets\":[0,16]},"
        "\"i\":{\"dtype\":\"I8\",\"shape\":[],\"data_offsets\":[20,21]}}  ";
    static const uint16_t values[10] = {0x3C00, 0xC000, 0x0001, 0x83FF, 0x7BFF,
                                        0x7C00, 0xFC00, 0x8000, 0x3F80, 0xC2F7};
    uint8_t file[512] = {sizeof header - 1};
    memcpy(file + 8, header, sizeof header - 1);
    for (size_t i = 0; i < 10; i++) {
        file[8 + sizeof header - 1 + 2 * i] = (uint8_t)values[i];
        file[8 + sizeof header - 1 + 2 * i + 1] = (uint8_t)(values[i] >> 8);
    }
    dlxi_safetensors *safetensors = NULL;
    dlx_error error = {0};
    assert_int_equal(
        dlxi_safetensors_parse(&safetensors, file, 8 + sizeof header - 1 + 21, "x", &error),
        DLX_OK);
    assert_int_equal(dlxi_safetensors_count(safetensors), 3);
    float half[8], brain[2];
    const dlxi_file_tensor *h = dlxi_safetensors_find(safetensors, "h");
    assert_int_equal(h->dims, 2);
    assert_int_equal(dlxi_file_tensor_read(half, h, 0, 8, NULL), DLX_OK);
    const float expected[8] = {1.0f,     -2.0f,    0x1p-24f,  -0x1.ff8p-15f,
                               65504.0f, INFINITY, -INFINITY, -0.0f};
    assert_memory_equal(half, expected, sizeof half);
    assert_int_equal(
        dlxi_file_tensor_read(brain, dlxi_safetensors_find(safetensors, "b"), 0, 2, NULL), DLX_OK);
    assert_true(brain[0] == 1.0f && brain[1] == -123.5f);
    assert_int_equal(
        dlxi_file_tensor_read(brain, dlxi_safetensors_find(safetensors, "i"), 0, 1, &error),
        DLX_DATA);
    assert_string_equal(
        error.message,
        "tensor 'i' has dtype I8; only F32, F16 and BF16 are read: convert it first");
    assert_null(dlxi_safetensors_find(safetensors, "__metadata__"));
    dlxi_safetensors_close(&safetensors);
}

/* ---- config.json by hand --------------------------------------------------------------------- */

static void refused(const char *text, const char *message) {
    dlxi_model_config config;
    dlx_error error = {0};
    assert_int_equal(
        dlxi_checkpoint_parse_config(&config, text, strlen(text), "c.json", NULL, NULL, &error),
        DLX_DATA);
    assert_string_equal(error.message, message);
}

#define LLAMA                                                                                      \
    "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 16, "                  \
    "\"num_attention_heads\": 4, "                                                                 \
    "\"intermediate_size\": 8, \"max_position_embeddings\": 32, \"vocab_size\": 50"

static void test_config(void **unused) {
    (void)unused;
    static const char llama[] = LLAMA ", \"new_field\": [1], \"rope_scaling\": null}";
    dlxi_model_config config;
    assert_int_equal(
        dlxi_checkpoint_parse_config(&config, llama, strlen(llama), "c.json", NULL, NULL, NULL),
        DLX_OK);
    assert_true(config.kv_heads == 4 && !config.tied_head && config.norm_epsilon == 1e-6f &&
                !config.qkv_bias);
    /* a part of openai-community/gpt2's */
    static const char gpt2[] =
        "{\"model_type\": \"gpt2\", \"n_ctx\": 1024, \"n_embd\": 768, \"n_head\": 12, "
        "\"n_layer\": 12, \"n_positions\": 1024, \"vocab_size\": 50257}";
    assert_int_equal(
        dlxi_checkpoint_parse_config(&config, gpt2, strlen(gpt2), "c.json", NULL, NULL, NULL),
        DLX_OK);
    assert_int_equal(dlxi_model_parameter_count(&config), 124439808 - 1024 * 768);

    refused("{", "c.json:1: not JSON: string or '}' expected near end of file");
    refused("[]", "c.json: not a JSON object");
    refused("{\"model_type\": \"bloom\"}",
            "c.json: model_type 'bloom' is not one of gpt2, llama, qwen2");
    refused("{\"model_type\": \"llama\"}", "c.json: field 'num_hidden_layers' is missing");
    refused(LLAMA ", \"rope_theta\": \"x\"}", "c.json: field 'rope_theta' is not a number");
    refused(LLAMA ", \"attention_bias\": true}",
            "c.json: field 'attention_bias' is true, which is not supported; allowed: false, null");
    refused(LLAMA ", \"head_dim\": 8}",
            "c.json: head_dim 8 is not hidden_size / num_attention_heads");
    refused(LLAMA ", \"num_key_value_heads\": 3}",
            "c.json: model.kv_heads: 3 does not divide model.heads (4); set it to heads or to a "
            "divisor of heads");
    dlx_error error = {0};
    assert_int_equal(dlxi_checkpoint_load_config(&config, "/nowhere", NULL, NULL, &error),
                     DLX_SYSTEM);
    assert_non_null(strstr(error.message, "/nowhere/config.json"));
}

/* Counts warnings and keeps the last. */
typedef struct warnings {
    int count;
    char last[1024];
} warnings;

static void on_warning(void *context, const char *line) {
    warnings *w = context;
    w->count++;
    snprintf(w->last, sizeof w->last, "%s", line);
}

#define GPT2                                                                                       \
    "{\"model_type\": \"gpt2\", \"n_embd\": 16, \"n_head\": 2, \"n_layer\": 1, "                   \
    "\"n_positions\": 8, \"vocab_size\": 9"

#define QWEN2                                                                                      \
    "{\"model_type\": \"qwen2\", \"num_hidden_layers\": 2, \"hidden_size\": 16, "                  \
    "\"num_attention_heads\": 4, \"intermediate_size\": 8, \"max_position_embeddings\": 32, "      \
    "\"vocab_size\": 50"

/* A field that would change the model is refused by its name. */
static void test_fields_refused(void **unused) {
    (void)unused;
    static const char *const cases[][2] = {
        {LLAMA, "'attention_bias': true"},
        {LLAMA, "'attention_bias': 'false'"},
        {LLAMA, "'mlp_bias': true"},
        {LLAMA, "'hidden_act': 'gelu'"},
        {LLAMA, "'hidden_act': null"},
        {LLAMA, "'hidden_act': ['silu', null]"},
        {LLAMA, "'partial_rotary_factor': 0.5"},
        {LLAMA, "'use_sliding_window': true"},
        {LLAMA, "'sliding_window': 31"},
        {LLAMA, "'layer_types': ['full_attention', 'sliding_attention']"},
        {LLAMA, "'layer_types': ['full_attention', 7]"},
        {LLAMA, "'quantization_config': {}"},
        {LLAMA, "'final_logit_softcapping': 30.0"},
        {LLAMA, "'attn_logit_softcapping': 50"},
        {LLAMA, "'logit_scale': 0.0625"},
        {LLAMA, "'logits_scaling': 8"},
        {LLAMA, "'embedding_multiplier': 12"},
        {LLAMA, "'is_causal': false"},
        {LLAMA, "'head_dim': 8"},
        {LLAMA, "'head_dim': 0"},
        {LLAMA, "'pruned_heads': {'0': [1]}"},
        {LLAMA, "'rope_scaling': 2.0"},
        {LLAMA, "'rope_scaling': {'type': 'linear', 'factor': 2.0}"},
        {LLAMA, "'rope_scaling': {'factor': 8.0}"},
        {LLAMA, "'rope_scaling': {'rope_type': 'default', 'type': 'dynamic'}"},
        {LLAMA, "'rope_scaling': {'rope_type': 'yarn'}"},
        {LLAMA, "'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 5e5}"},
        {LLAMA, "'rope_parameters': {'rope_type': 7}"},
        {LLAMA, "'rope_parameters': {'partial_rotary_factor': 0.25}"},
        {LLAMA, "'rope_parameters': {'full_attention': {'rope_theta': 1e6}}"},
        {LLAMA, "'rope_parameters': {'rope_theta': '5e5'}"},
        {LLAMA, "'rope_theta': 10000, 'rope_parameters': {'rope_theta': 5e5}"},
        {LLAMA, "'rope_scaling': {'rope_theta': 10000}, 'rope_parameters': {'rope_theta': 5e5}"},
        {QWEN2, "'use_sliding_window': true, 'sliding_window': 64"},
        {QWEN2, "'layer_types': ['sliding_attention']"},
        {GPT2, "'activation_function': 'gelu'"},
        {GPT2, "'activation_function': null"},
        {GPT2, "'scale_attn_weights': false"},
        {GPT2, "'scale_attn_weights': null"},
        {GPT2, "'scale_attn_by_inverse_layer_idx': true"},
        {GPT2, "'add_cross_attention': true"},
        {GPT2, "'position_embedding_type': 'relative_key'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024], name[64], *end;
        dlxi_model_config config;
        dlx_error error = {0};
        snprintf(text, sizeof text, "%s, %s}", cases[i][0], cases[i][1]);
        for (char *c = text; *c != '\0'; c++) *c = *c == '\'' ? '"' : *c;
        snprintf(name, sizeof name, "%s", cases[i][1] + 1);
        if ((end = strchr(name, '\'')) != NULL) *end = '\0';
        if (dlxi_checkpoint_parse_config(&config, text, strlen(text), "c.json", NULL, NULL,
                                         &error) != DLX_DATA ||
            strncmp(error.message, "c.json: ", 8) != 0 || strstr(error.message, name) == NULL)
            fail_msg("%s: '%s'", cases[i][1], error.message);
    }
    refused(LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}}",
            "c.json: field 'rope_scaling.type' is \"linear\", which is not supported; allowed: "
            "default, null");
    refused(LLAMA ", \"rope_theta\": 10000, \"rope_parameters\": {\"rope_theta\": 5e5}}",
            "c.json: field 'rope_theta' is 10000 and 'rope_parameters.rope_theta' is 500000; "
            "remove the one that is wrong");
}

/* What other programs write beside, and the places of rope_theta: the model is the same. */
static void test_fields_obeyed(void **unused) {
    (void)unused;
    static const struct {
        const char *base, *fields;
        double theta;
    } cases[] = {
        {LLAMA, "'rope_scaling': null", 1e4},
        {LLAMA, "'rope_scaling': {}", 1e4},
        {LLAMA, "'rope_scaling': {'rope_type': 'default'}", 1e4},
        {LLAMA, "'rope_scaling': {'type': 'default', 'rope_theta': 5e5}", 5e5},
        {LLAMA, "'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e5}", 5e5},
        {LLAMA, "'rope_parameters': {'rope_theta': 500000}, 'rope_theta': 5e5", 5e5},
        {LLAMA, "'rope_parameters': {'partial_rotary_factor': 1.0, 'rope_theta': 3}", 3},
        {LLAMA, "'tie_word_embeddings': null, 'hidden_act': 'swish', 'head_dim': 4", 1e4},
        {LLAMA, "'sliding_window': null, 'layer_types': ['full_attention', 'full_attention']", 1e4},
        {LLAMA, "'sliding_window': 32, 'num_key_value_heads': null", 1e4},
        {LLAMA, "'attention_dropout': 0.1, 'dtype': 'bfloat16', 'torch_dtype': 'float16'", 1e4},
        {LLAMA, "'pretraining_tp': 2, 'eos_token_id': [2, 3], 'use_cache': false", 1e4},
        {LLAMA, "'attention_bias': false, 'mlp_bias': null, 'quantization_config': null", 1e4},
        {QWEN2, "'use_sliding_window': false, 'sliding_window': 8, 'max_window_layers': 1", 1e4},
        {GPT2, "'n_inner': null, 'resid_pdrop': 0.1, 'summary_type': 'cls_index'", 1e4},
        {GPT2, "'scale_attn_weights': true, 'pruned_heads': {}, 'task_specific_params': {}", 1e4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char plain[1024], text[1024];
        dlxi_model_config config, expected;
        dlx_error error = {0};
        warnings w = {0};
        snprintf(plain, sizeof plain, "%s}", cases[i].base);
        assert_int_equal(dlxi_checkpoint_parse_config(&expected, plain, strlen(plain), "c.json",
                                                      NULL, NULL, NULL),
                         DLX_OK);
        expected.rope_theta = (float)cases[i].theta;
        snprintf(text, sizeof text, "\xEF\xBB\xBF%s, %s}", cases[i].base, cases[i].fields);
        for (char *c = text; *c != '\0'; c++) *c = *c == '\'' ? '"' : *c;
        if (dlxi_checkpoint_parse_config(&config, text, strlen(text), "c.json", on_warning, &w,
                                         &error) != DLX_OK)
            fail_msg("%s: '%s'", cases[i].fields, error.message);
        assert_same_model(&config, &expected);
        assert_int_equal(w.count, 0);
    }
}

static void test_fields_unknown(void **unused) {
    (void)unused;
    dlxi_model_config config;
    warnings w = {0};
    static const char two[] = LLAMA ", \"new_field\": [1], \"n_ctx\": 3, \"a\\u001b\": 2}";
    assert_int_equal(
        dlxi_checkpoint_parse_config(&config, two, strlen(two), "c.json", on_warning, &w, NULL),
        DLX_OK);
    assert_int_equal(w.count, 1);
    assert_string_equal(w.last, "warning: c.json: unknown to dilocox and not used: 'new_field', "
                                "'n_ctx', 'a?'; if one of them changes what the model computes, "
                                "its results here are wrong");
    char many[2048] = LLAMA;
    for (int i = 0; i < 20; i++)
        snprintf(many + strlen(many), sizeof many - strlen(many), ", \"field_%d\": %d", i, i);
    strcat(many, "}");
    assert_int_equal(
        dlxi_checkpoint_parse_config(&config, many, strlen(many), "c.json", on_warning, &w, NULL),
        DLX_OK);
    assert_int_equal(w.count, 2);
    assert_non_null(strstr(w.last, "'field_7' and 12 more; if"));
}

/* Both places of rope_theta are written, and a file of our own has no unknown field. */
static void test_fields_written(void **unused) {
    (void)unused;
    char path[128], *text;
    size_t bytes;
    dlxi_model_config config = small(3), read;
    config.rope_theta = 500000.0f;
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_int_equal(dlxi_config_json_write(path, &config, NULL, NULL), DLX_OK);
    assert_int_equal(dlxi_file_read(&text, &bytes, path, 1 << 20, NULL), DLX_OK);
    const char *first = strstr(text, "\"rope_theta\": 500000.0");
    assert_non_null(first);
    assert_non_null(strstr(text, "\"rope_parameters\": {"));
    assert_non_null(strstr(text, "\"rope_type\": \"default\""));
    assert_non_null(strstr(first + 1, "\"rope_theta\": 500000.0"));
    free(text);
    for (int i = 0; i < 4; i++) {
        warnings w = {0};
        config = small(i);
        assert_int_equal(dlxi_config_json_write(path, &config, NULL, NULL), DLX_OK);
        assert_int_equal(dlxi_checkpoint_load_config(&read, directory, on_warning, &w, NULL),
                         DLX_OK);
        assert_int_equal(w.count, 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_other_model),
        cmocka_unit_test(test_failed_save),    cmocka_unit_test(test_unreadable_dtype),
        cmocka_unit_test(test_malformed),      cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_config),         cmocka_unit_test(test_fields_refused),
        cmocka_unit_test(test_fields_obeyed),  cmocka_unit_test(test_fields_unknown),
        cmocka_unit_test(test_fields_written),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
