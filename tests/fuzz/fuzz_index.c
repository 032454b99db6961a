/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the reader of a sharded set's index: what it accepts names only plain files, and is
 * checked against two files in memory. */
#include "replay.h"
#include "checkpoint/index.h"
#include "base/panic.h"

#include <string.h>

enum { FILES = 2, FILE_BYTES_MAX = 512 };

static const char *const headers[FILES] = {
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
    "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
    "{\"c\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}",
};

static dlxi_safetensors *open_file(uint8_t bytes[FILE_BYTES_MAX], int which) {
    dlxi_safetensors *file = NULL;
    size_t length = strlen(headers[which]);
    memset(bytes, 0, FILE_BYTES_MAX);
    bytes[0] = (uint8_t)length;
    memcpy(bytes + 8, headers[which], length);
    DLXI_ASSERT(dlxi_safetensors_parse(&file, bytes, 8 + length + 3, "file", NULL) == DLX_OK);
    return file;
}

static void check(const dlxi_index *index) {
    uint8_t bytes[FILES][FILE_BYTES_MAX];
    dlxi_safetensors *file[FILES] = {NULL};
    dlx_error error;
    size_t count = dlxi_index_file_count(index);
    DLXI_ASSERT(count >= 1 && count <= DLXI_INDEX_FILES_MAX);
    for (size_t i = 0; i < count; i++) {
        const char *name = dlxi_index_file(index, i);
        DLXI_ASSERT(strchr(name, '/') == NULL && strlen(name) < 256);
        DLXI_ASSERT(name[0] != '.' && strstr(name, ".safetensors") != NULL);
        for (size_t j = 0; j < i; j++) DLXI_ASSERT(strcmp(name, dlxi_index_file(index, j)) != 0);
    }
    if (count > FILES) return;
    for (size_t i = 0; i < count; i++) file[i] = open_file(bytes[i], (int)i);
    dlx_status status = dlxi_index_check(index, file, &error);
    DLXI_ASSERT(status == DLX_OK ||
                (status == DLX_DATA && strncmp(error.message, "input: ", 7) == 0));
    for (size_t i = 0; i < count; i++) dlxi_safetensors_close(&file[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    dlxi_index *index = NULL;
    dlx_error error;
    dlx_status status = dlxi_index_parse(&index, (const char *)data, bytes, "input", &error);
    DLXI_ASSERT(status == DLX_OK ||
                (status == DLX_DATA && strncmp(error.message, "input", 5) == 0));
    DLXI_ASSERT((status == DLX_OK) == (index != NULL));
    if (index != NULL) check(index);
    dlxi_index_close(&index);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const char *const seeds[] = {
        "{\"metadata\":{\"total_size\":6},\"weight_map\":{\"a\":\"m1.safetensors\",\"b\":\"m1."
        "safetensors\","
        "\"c\":\"m2.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"d/x.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"..x.safetensors\",\"b\":\".x.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"../x.safetensors\",\"\\u001b\":\"\\u0000.safetensors\"}}",
    };
    if ((size_t)index >= sizeof seeds / sizeof *seeds) return 0;
    memcpy(data, seeds[index], strlen(seeds[index]));
    return strlen(seeds[index]);
}
