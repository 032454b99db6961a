/* SPDX-License-Identifier: Apache-2.0 */
/* Weights in several files: saved in parts, loaded whole and by stage, saved over each other,
 * interrupted, and the messages for malformed indices. */
#include "checkpoint/checkpoint.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/rng.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { LAYERS = 3, VARIANTS = 4, PARTS_MAX = 3, PATH_BYTES = 512 };

static char directory[64];
static dlxi_kernels *kernels;

static void for_each_file(void (*visit)(const char *path, void *context), void *context) {
    DIR *open = opendir(directory);
    assert_non_null(open);
    for (struct dirent *d = readdir(open); d != NULL; d = readdir(open)) {
        char path[PATH_BYTES];
        if (d->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", directory, d->d_name);
        visit(path, context);
    }
    closedir(open);
}

static void remove_it(const char *path, void *unused) {
    (void)unused;
    unlink(path);
}

static int set_up(void **unused) {
    (void)unused;
    strcpy(directory, "/tmp/dilocox_parts_XXXXXX");
    if (mkdtemp(directory) == NULL) return -1;
    return dlxi_kernels_open(&kernels, "ref", DLXI_PRECISION_F32, 1, NULL) == DLX_OK ? 0 : -1;
}

static int tear_down(void **unused) {
    (void)unused;
    for_each_file(remove_it, NULL);
    dlxi_kernels_close(&kernels);
    return rmdir(directory);
}

/* gpt2 and llama, tied and untied. */
static dlxi_model_config variant(int which) {
    dlxi_model_config config =
        dlxi_model_config_default(which < 2 ? DLXI_FAMILY_GPT2 : DLXI_FAMILY_LLAMA);
    config.layers = LAYERS;
    config.width = 12;
    config.heads = 2;
    config.kv_heads = which < 2 ? 2 : 1;
    config.mlp_width = 10;
    config.context = 9;
    config.vocabulary = 21;
    config.tied_head = which % 2 == 0;
    config.qkv_bias = which == 3;
    return config;
}

static dlxi_stage *open_stage(const dlxi_model_config *config, uint64_t seed, int64_t first_layer,
                              int64_t end_layer) {
    dlxi_stage *stage = NULL;
    dlxi_stage_options options = dlxi_stage_options_whole(config, 1, 4, seed);
    options.first_layer = first_layer, options.end_layer = end_layer;
    options.has_embedding = first_layer == 0, options.has_head = end_layer == config->layers;
    options.training = false;
    assert_int_equal(dlxi_stage_open(&stage, config, &options, kernels, NULL), DLX_OK);
    return stage;
}

/* All values differ, also biases, and between seeds. */
static dlxi_stage *open_whole(const dlxi_model_config *config, uint64_t seed) {
    int64_t count;
    dlxi_stage *stage = open_stage(config, seed, 0, config->layers);
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < parameter[i].count; j++)
            parameter[i].data[j] += dlxi_rng_normal(seed, 1000 + (uint64_t)i, (uint64_t)j);
    return stage;
}

static uint64_t hash_of(dlxi_stage *stage) {
    int64_t count;
    uint64_t hash = 0;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    for (int64_t i = 0; i < count; i++)
        hash = dlxi_hash(parameter[i].data, (size_t)parameter[i].count * sizeof(float), hash);
    return hash;
}

static dlx_status load(dlxi_stage *stage, dlx_error *error) {
    int64_t count;
    dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    return dlxi_checkpoint_load(directory, dlxi_stage_config(stage), parameter, count, NULL, NULL,
                                error);
}

static void assert_holds(dlxi_stage *expected) {
    dlx_error error = {0};
    dlxi_stage *loaded = open_whole(dlxi_stage_config(expected), 77);
    if (load(loaded, &error) != DLX_OK) fail_msg("%s", error.message);
    assert_true(hash_of(loaded) == hash_of(expected));
    dlxi_stage_close(&loaded);
}

/* ---- saving in parts ------------------------------------------------------------------------- */

static int part_of(const dlxi_model_config *config, const dlxi_tensor *tensor, int parts) {
    if (tensor->layer < 0) return tensor->in_embedding ? 0 : parts - 1;
    return (int)(tensor->layer * parts / config->layers);
}

static dlxi_checkpoint_part *begin(dlxi_stage *stage, int part, int parts) {
    const dlxi_model_config *config = dlxi_stage_config(stage);
    dlxi_parameter own[128];
    dlxi_checkpoint_part *p = NULL;
    dlx_error error = {0};
    int64_t count, held = 0;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    assert_true(count <= 128);
    for (int64_t i = 0; i < count; i++)
        if (part_of(config, &parameter[i].tensor, parts) == part) own[held++] = parameter[i];
    if (dlxi_checkpoint_part_begin(&p, directory, config, own, held, part, parts, &error) != DLX_OK)
        fail_msg("%s", error.message);
    return p;
}

static void write_part(dlxi_stage *stage, int part, int parts) {
    dlxi_checkpoint_part *p = begin(stage, part, parts);
    assert_int_equal(dlxi_checkpoint_part_commit(p, NULL), DLX_OK);
    dlxi_checkpoint_part_close(&p);
}

static dlx_status finish(const dlxi_model_config *config, int parts, dlx_error *error) {
    int part[128];
    for (int64_t id = 0; id < dlxi_model_tensor_count(config); id++) {
        const dlxi_tensor tensor = dlxi_model_tensor(config, id);
        part[id] = part_of(config, &tensor, parts);
    }
    return dlxi_checkpoint_finish(directory, config, part, parts, NULL, error);
}

static void save(dlxi_stage *stage, int parts) {
    dlx_error error = {0};
    for (int part = parts - 1; part >= 0; part--) write_part(stage, part, parts);
    if (finish(dlxi_stage_config(stage), parts, &error) != DLX_OK) fail_msg("%s", error.message);
}

static void save_single(dlxi_stage *stage) {
    int64_t count;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    assert_int_equal(
        dlxi_checkpoint_save(directory, dlxi_stage_config(stage), parameter, count, NULL, NULL),
        DLX_OK);
}

static void count_it(const char *path, void *context) {
    (void)path;
    ++*(int *)context;
}

/* The directory has exactly the files of a set. */
static void assert_files(int parts) {
    char path[PATH_BYTES];
    int found = 0;
    for_each_file(count_it, &found);
    assert_int_equal(found, parts == 1 ? 2 : parts + 2);
    snprintf(path, sizeof path, "%s/config.json", directory);
    assert_int_equal(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/model.safetensors%s", directory,
             parts == 1 ? "" : ".index.json");
    assert_int_equal(access(path, F_OK), 0);
    for (int part = 1; parts > 1 && part <= parts; part++) {
        snprintf(path, sizeof path, "%s/model-%05d-of-%05d.safetensors", directory, part, parts);
        assert_int_equal(access(path, F_OK), 0);
    }
}

static void assert_loads_by_stage(dlxi_stage *whole) {
    static const int64_t first_layer[] = {0, 1, LAYERS};
    int64_t count, all, seen = 0;
    const dlxi_model_config *config = dlxi_stage_config(whole);
    const dlxi_parameter *expected = dlxi_stage_parameters(whole, &all);
    for (int s = 0; s < 2; s++) {
        dlxi_stage *stage = open_stage(config, 5, first_layer[s], first_layer[s + 1]);
        assert_int_equal(load(stage, NULL), DLX_OK);
        const dlxi_parameter *p = dlxi_stage_parameters(stage, &count);
        for (int64_t i = 0; i < count; i++, seen++)
            assert_memory_equal(p[i].data, expected[p[i].tensor.id].data,
                                (size_t)p[i].count * sizeof(float));
        dlxi_stage_close(&stage);
    }
    assert_int_equal(seen, all + config->tied_head);
}

static void test_round_trip(void **unused) {
    (void)unused;
    static const int order[] = {2, 3, 2, 1, 3, 1}; /* each over another */
    for (int v = 0; v < VARIANTS; v++) {
        dlxi_model_config config = variant(v);
        for (int i = 0; i < 6; i++) {
            dlxi_stage *saved = open_whole(&config, (uint64_t)(10 * v + i));
            save(saved, order[i]);
            assert_files(order[i]);
            assert_holds(saved);
            assert_loads_by_stage(saved);
            dlxi_stage_close(&saved);
        }
    }
}

static void test_single_over_parts(void **unused) {
    (void)unused;
    dlxi_model_config config = variant(0);
    dlxi_stage *parts = open_whole(&config, 1), *single = open_whole(&config, 2);
    save(parts, 3);
    save_single(single);
    assert_files(1);
    assert_holds(single);
    dlxi_stage_close(&single);
    dlxi_stage_close(&parts);
}

/* ---- interrupted saves ----------------------------------------------------------------------- */

static void test_begun_only(void **unused) {
    (void)unused;
    dlxi_model_config config = variant(3);
    dlxi_stage *old = open_whole(&config, 1), *new = open_whole(&config, 2);
    for (int earlier = 1; earlier <= PARTS_MAX; earlier++) {
        for (int parts = 1; parts <= PARTS_MAX; parts++) {
            dlxi_checkpoint_part *p[PARTS_MAX];
            save(old, earlier);
            for (int part = 0; part < parts; part++) p[part] = begin(new, part, parts);
            assert_holds(old);
            for (int part = 0; part < parts; part++) dlxi_checkpoint_part_close(&p[part]);
            assert_files(earlier);
            assert_holds(old);
        }
    }
    dlxi_stage_close(&new);
    dlxi_stage_close(&old);
}

/* All parts are committed but not finished: a set of another number of parts is still valid. */
static void test_committed_only(void **unused) {
    (void)unused;
    dlxi_model_config config = variant(2);
    dlxi_stage *old = open_whole(&config, 1), *new = open_whole(&config, 2);
    for (int earlier = 1; earlier <= PARTS_MAX; earlier += 2) {
        save(old, earlier);
        for (int part = 0; part < 2; part++) {
            write_part(new, part, 2);
            assert_holds(old);
        }
        assert_int_equal(finish(&config, 2, NULL), DLX_OK);
        assert_holds(new);
        assert_files(2);
    }
    dlxi_stage_close(&new);
    dlxi_stage_close(&old);
}

/* One of two parts is replaced: no mixture is loaded. */
static void test_half_committed(void **unused) {
    (void)unused;
    dlxi_model_config config = variant(2);
    dlx_error error = {0};
    dlxi_stage *old = open_whole(&config, 1), *new = open_whole(&config, 2),
               *loaded = open_whole(&config, 3);
    uint64_t before = hash_of(loaded);
    save(old, 2);
    write_part(new, 1, 2);
    assert_int_equal(load(loaded, &error), DLX_SYSTEM);
    assert_non_null(strstr(
        error.message, ": has neither model.safetensors nor model.safetensors.index.json; give a "
                       "directory of weights"));
    assert_true(hash_of(loaded) == before);
    write_part(new, 0, 2);
    assert_int_equal(finish(&config, 2, NULL), DLX_OK);
    assert_holds(new);
    dlxi_stage_close(&loaded);
    dlxi_stage_close(&new);
    dlxi_stage_close(&old);
}

/* A part is missing, or has another part's tensors: no index is written. */
static void test_finish_checks(void **unused) {
    (void)unused;
    char path[PATH_BYTES];
    dlx_error error = {0};
    dlxi_model_config config = variant(2);
    dlxi_stage *stage = open_whole(&config, 1);
    for_each_file(remove_it, NULL);
    write_part(stage, 0, 2);
    assert_int_equal(finish(&config, 2, &error), DLX_DATA);
    assert_non_null(
        strstr(error.message, "the saved weights are incomplete; do all ranks of the site share "));
    assert_non_null(strstr(error.message,
                           "file 'model-00002-of-00002.safetensors', which it lists, is missing"));
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    assert_int_not_equal(access(path, F_OK), 0);

    int64_t count;
    dlxi_checkpoint_part *p = NULL;
    const dlxi_parameter *parameter = dlxi_stage_parameters(stage, &count);
    assert_int_equal(
        dlxi_checkpoint_part_begin(&p, directory, &config, parameter, count, 1, 2, NULL), DLX_OK);
    assert_int_equal(dlxi_checkpoint_part_commit(p, NULL), DLX_OK);
    dlxi_checkpoint_part_close(&p);
    assert_int_equal(finish(&config, 2, &error), DLX_DATA);
    assert_non_null(strstr(error.message,
                           "tensor 'model.embed_tokens.weight' is listed in "
                           "model-00001-of-00002.safetensors but is in "
                           "model-00002-of-00002.safetensors; do the files belong together?"));
    assert_int_not_equal(access(path, F_OK), 0);
    dlxi_stage_close(&stage);
}

/* ---- malformed indices ----------------------------------------------------------------------- */

static void write_index(const char *text, size_t bytes) {
    char path[PATH_BYTES];
    dlxi_file_writer *writer = NULL;
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    assert_int_equal(dlxi_file_writer_open(&writer, path, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_append(writer, text, bytes, NULL), DLX_OK);
    assert_int_equal(dlxi_file_writer_commit(writer, NULL), DLX_OK);
    dlxi_file_writer_close(&writer);
}

static void refused(dlxi_stage *stage, const char *message) {
    dlx_error error = {0};
    uint64_t before = hash_of(stage);
    assert_int_equal(load(stage, &error), DLX_DATA);
    if (strstr(error.message, message) == NULL)
        fail_msg("'%s' does not say '%s'", error.message, message);
    assert_true(hash_of(stage) == before);
}

#define FIRST     "model-00001-of-00002.safetensors"
#define SECOND    "model-00002-of-00002.safetensors"
#define HEAD      "\"lm_head.weight\": \"" SECOND "\""
#define MAP       "\"weight_map\": {"
#define NOT_PLAIN "' is not the plain name of a .safetensors file beside it; copy the set again"

static void test_hostile_index(void **unused) {
    (void)unused;
    static const struct {
        const char *find, *replace, *message;
    } cases[] = {
        {HEAD, "\"lm_head.weight\": \"../" SECOND "\"", "'../" SECOND NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \"/etc/" SECOND "\"", "'/etc/" SECOND NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \"a/" SECOND "\"", "'a/" SECOND NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \".safetensors\"", "'.safetensors" NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \"..x.safetensors\"", "'..x.safetensors" NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \"config.json\"", "'config.json" NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \"\"", "'" NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": \"\\u001b[2J.safetensors\"", "'?[2J.safetensors" NOT_PLAIN},
        {HEAD, "\"lm_head.weight\": 2", "weight_map has no file name for tensor 'lm_head.weight'"},
        {HEAD, "\"lm_head.weight\": \"model-00003-of-00002.safetensors\"",
         "model.safetensors.index.json: file 'model-00003-of-00002.safetensors', which it lists, "
         "is missing; copy all files"},
        {HEAD, "\"lm_head.weight\": \"" FIRST "\"",
         "tensor 'lm_head.weight' is listed in " FIRST " but is in " SECOND
         "; do the files belong together?"},
        {HEAD, "\"lm_head\": \"" SECOND "\"",
         "tensor 'lm_head.weight' of " SECOND " is not listed; do the files belong together?"},
        {MAP, MAP "\"more\": \"" FIRST "\",",
         "tensor 'more' is missing from " FIRST "; do the files belong together?"},
        {MAP, MAP "\"lm_head.weight\": \"" FIRST "\",", "not JSON: duplicate object key"},
        {MAP, "\"weights\": {", "no weight_map of tensors to files"},
        {MAP, "\"weight_map\": {}, \"weights\": {", "no weight_map of tensors to files"},
        {MAP, "\"weight_map\": 7, \"weights\": {", "no weight_map of tensors to files"},
        {"{", "", "not JSON: "},
    };
    char path[PATH_BYTES], *text, changed[1 << 16];
    size_t bytes;
    dlxi_model_config config = variant(3);
    dlxi_stage *stage = open_whole(&config, 1);
    save(stage, 2);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    assert_int_equal(dlxi_file_read(&text, &bytes, path, sizeof changed / 2, NULL), DLX_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *at = strstr(text, cases[i].find);
        assert_non_null(at);
        int length = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text,
                              cases[i].replace, at + strlen(cases[i].find));
        write_index(changed, (size_t)length);
        refused(stage, cases[i].message);
    }
    write_index("[]", 2);
    refused(stage, "no weight_map");
    write_index("{\"weight_map\":{\"\xff\":1}}", 21);
    refused(stage, "not JSON: unable to decode byte 0xff");
    size_t at = (size_t)snprintf(changed, sizeof changed,
                                 "{\"weight_map\":{\"a\":\"%0250d.safetensors\"}}", 0);
    write_index(changed, at);
    refused(stage, NOT_PLAIN);
    at = (size_t)snprintf(changed, sizeof changed, "{\"weight_map\":{");
    for (int i = 0; i <= 1024; i++)
        at += (size_t)snprintf(changed + at, sizeof changed - at, "%s\"%d\":\"%d.safetensors\"",
                               i == 0 ? "" : ",", i, i);
    at += (size_t)snprintf(changed + at, sizeof changed - at, "}}");
    write_index(changed, at);
    refused(stage, ": more than 1024 files");
    write_index(text, bytes); /* unchanged, it is valid */
    assert_holds(stage);
    free(text);
    dlxi_stage_close(&stage);
}

/* A valid set of another model. */
static void test_other_model(void **unused) {
    (void)unused;
    dlxi_model_config saved = variant(3), config = saved;
    dlxi_stage *stage = open_whole(&saved, 1);
    save(stage, 2);
    dlxi_stage_close(&stage);
    static const struct {
        int64_t layers, mlp_width;
        bool qkv_bias;
        const char *message;
    } cases[] = {
        {LAYERS + 1, 10, true,
         "/model.safetensors.index.json: tensor 'model.layers.3.input_layernorm.weight' is "
         "missing"},
        {LAYERS, 11, true,
         "/" FIRST ": tensor 'model.layers.0.mlp.gate_proj.weight' has shape [10, 12], the config "
         "needs [11, 12]"},
        {LAYERS, 10, false,
         ": tensor 'model.layers.2.self_attn.k_proj.bias' is not one of the config's"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        config.layers = cases[i].layers, config.mlp_width = cases[i].mlp_width,
        config.qkv_bias = cases[i].qkv_bias;
        stage = open_whole(&config, 2);
        refused(stage, cases[i].message);
        dlxi_stage_close(&stage);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_single_over_parts),
        cmocka_unit_test(test_begun_only),     cmocka_unit_test(test_committed_only),
        cmocka_unit_test(test_half_committed), cmocka_unit_test(test_finish_checks),
        cmocka_unit_test(test_hostile_index),  cmocka_unit_test(test_other_model),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
