/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a token file, as they are and with both checksums made valid. A file that opens has
 * only ids of its vocabulary in every window. */
#include "replay.h"
#include "base/hash.h"
#include "base/panic.h"
#include "data/sampler.h"

#include <stdlib.h>
#include <string.h>

static void put(uint8_t *to, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = (uint8_t)(value >> 8 * i);
}

static void seal(uint8_t *data, size_t bytes) {
    if (bytes < DLXI_TOKEN_FILE_HEADER_BYTES) return;
    put(data + 40,
        dlxi_hash(data + DLXI_TOKEN_FILE_HEADER_BYTES, bytes - DLXI_TOKEN_FILE_HEADER_BYTES, 0), 8);
    put(data + 120, dlxi_hash(data, 120, 0), 8);
}

static void read_all(dlxi_token_file *file) {
    enum { CONTEXT = 5 };
    uint32_t tokens[CONTEXT], targets[CONTEXT];
    char key[] = "data.train", path[] = "x.tokens";
    dlxi_sampler sampler;
    dlx_error error;
    file->key = key;
    file->path = path;
    if (dlxi_sampler_open(&sampler, file, CONTEXT, 1, &error) != DLX_OK) {
        DLXI_ASSERT(file->count <= CONTEXT);
        return;
    }
    for (int64_t position = 0; position < sampler.windows; position++) {
        dlxi_sampler_batch(tokens, targets, &sampler, &position, 1);
        for (int i = 0; i < CONTEXT; i++)
            DLXI_ASSERT(tokens[i] < file->vocabulary && targets[i] < file->vocabulary);
    }
}

static void open_and_read(const uint8_t *data, size_t bytes) {
    dlxi_token_file file;
    dlx_error error;
    memset(&file, 0, sizeof file);
    dlx_status status = dlxi_token_file_parse(&file, data, bytes, "data.train", "x.tokens", &error);
    if (status == DLX_OK)
        read_all(&file);
    else
        DLXI_ASSERT(status == DLX_DATA && strncmp(error.message, "data.train: '", 13) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    open_and_read(data, bytes);
    uint8_t *sealed = malloc(bytes > 0 ? bytes : 1);
    if (sealed == NULL) return 0;
    if (bytes > 0) memcpy(sealed, data, bytes);
    seal(sealed, bytes);
    open_and_read(sealed, bytes);
    free(sealed);
    return 0;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const uint32_t widths[] = {1, 2, 4}, vocabularies[] = {200, 60000, 70000};
    enum { TOKENS = 23 };
    if (index >= 3) return 0;
    uint32_t width = widths[index];
    memset(data, 0, DLXI_TOKEN_FILE_HEADER_BYTES);
    memcpy(data, "DLXTOKEN", 8);
    put(data + 8, 1, 4);
    put(data + 12, DLXI_TOKEN_FILE_HEADER_BYTES, 4);
    put(data + 16, width, 4);
    put(data + 20, vocabularies[index], 4);
    put(data + 24, TOKENS, 8);
    memcpy(data + 48, "byte", 4);
    for (uint32_t i = 0; i < TOKENS; i++)
        put(data + DLXI_TOKEN_FILE_HEADER_BYTES + i * width, i * 8, width);
    size_t bytes = DLXI_TOKEN_FILE_HEADER_BYTES + TOKENS * width;
    seal(data, bytes);
    return bytes;
}
