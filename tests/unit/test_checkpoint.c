/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints: saved and loaded to the same bits, config.json both ways, and the messages for
 * malformed files. */
#include "checkpoint/checkpoint.h"
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
        if (dlxi_checkpoint_load_config(&read, directory, &error) != DLX_OK)
            fail_msg("%s", error.message);
        assert_int_equal(read.family, config.family);
        assert_int_equal(read.layers, config.layers);
        assert_int_equal(read.width, config.width);
        assert_int_equal(read.heads, config.heads);
        assert_int_equal(read.kv_heads, config.kv_heads);
        assert_int_equal(read.mlp_width, config.mlp_width);
        assert_int_equal(read.context, config.context);
        assert_int_equal(read.vocabulary, config.vocabulary);
        assert_int_equal(read.activation, config.activation);
        assert_int_equal(read.qkv_bias, config.qkv_bias);
        assert_int_equal(read.tied_head, config.tied_head);
        assert_true(read.norm_epsilon == config.norm_epsilon &&
                    read.rope_theta == config.rope_theta);
        if (dlxi_checkpoint_load(directory, &read, b, count, &error) != DLX_OK)
            fail_msg("%s", error.message);
        for (int64_t i = 0; i < count; i++)
            assert_memory_equal(a[i].data, b[i].data, (size_t)a[i].count * sizeof(float));
        dlxi_parameter *p = dlxi_stage_parameters(part, &part_count);
        assert_true(part_count < count);
        assert_int_equal(dlxi_checkpoint_load(directory, &read, p, part_count, NULL), DLX_OK);
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
        assert_int_equal(dlxi_checkpoint_load(directory, &config, parameter, count, &error),
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
    assert_int_equal(dlxi_checkpoint_load(directory, &config, parameter, count, &error), DLX_DATA);
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
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dlxi_safetensors *file = NULL;
        dlx_error error = {0};
        dlx_status status =
            parse(&file, cases[i].header, strlen(cases[i].header), cases[i].data_bytes, &error);
        assert_int_equal(status, DLX_DATA);
        assert_null(file);
        assert_non_null(strstr(error.message, cases[i].message));
    }
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
    assert_int_equal(dlxi_checkpoint_parse_config(&config, text, strlen(text), "c.json", &error),
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
    assert_int_equal(dlxi_checkpoint_parse_config(&config, llama, strlen(llama), "c.json", NULL),
                     DLX_OK);
    assert_true(config.kv_heads == 4 && !config.tied_head && config.norm_epsilon == 1e-6f &&
                !config.qkv_bias);
    /* a part of openai-community/gpt2's */
    static const char gpt2[] =
        "{\"model_type\": \"gpt2\", \"n_ctx\": 1024, \"n_embd\": 768, \"n_head\": 12, "
        "\"n_layer\": 12, \"n_positions\": 1024, \"vocab_size\": 50257}";
    assert_int_equal(dlxi_checkpoint_parse_config(&config, gpt2, strlen(gpt2), "c.json", NULL),
                     DLX_OK);
    assert_int_equal(dlxi_model_parameter_count(&config), 124439808 - 1024 * 768);

    refused("{", "c.json:1: not JSON: string or '}' expected near end of file");
    refused("[]", "c.json: not a JSON object");
    refused("{\"model_type\": \"bloom\"}",
            "c.json: model_type 'bloom' is not one of gpt2, llama, qwen2");
    refused("{\"model_type\": \"llama\"}", "c.json: field 'num_hidden_layers' is missing");
    refused(LLAMA ", \"rope_theta\": \"x\"}", "c.json: field 'rope_theta' is not a number");
    refused(LLAMA ", \"attention_bias\": true}",
            "c.json: field 'attention_bias' is true, which is not supported");
    refused(LLAMA ", \"rope_scaling\": {\"factor\": 8.0}}",
            "c.json: rope_scaling is set, which is not supported");
    refused(LLAMA ", \"head_dim\": 8}",
            "c.json: head_dim 8 is not hidden_size / num_attention_heads");
    refused(LLAMA ", \"num_key_value_heads\": 3}",
            "c.json: model.kv_heads: 3 does not divide model.heads (4); set it to heads or to a "
            "divisor of heads");
    dlx_error error = {0};
    assert_int_equal(dlxi_checkpoint_load_config(&config, "/nowhere", &error), DLX_SYSTEM);
    assert_non_null(strstr(error.message, "/nowhere/config.json"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_other_model),
        cmocka_unit_test(test_failed_save), cmocka_unit_test(test_unreadable_dtype),
        cmocka_unit_test(test_malformed),   cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_config),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
