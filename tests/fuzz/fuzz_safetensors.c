/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzzes the readers of safetensors and config.json: what opens can be read in full, and nothing is
 * read outside it. */
#include "replay.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "base/panic.h"

#include <string.h>

enum { DATA_BYTES = 64 };

static void read_all(const dlxi_safetensors *file) {
    dlx_error error;
    float values[16];
    for (size_t i = 0; i < dlxi_safetensors_count(file); i++) {
        const dlxi_file_tensor *tensor = dlxi_safetensors_at(file, i);
        DLXI_ASSERT(dlxi_safetensors_find(file, tensor->name) == tensor);
        for (int64_t first = 0; first < tensor->count; first += 16) {
            int64_t count = tensor->count - first < 16 ? tensor->count - first : 16;
            if (dlxi_file_tensor_read(values, tensor, first, count, &error) != DLX_OK) break;
        }
    }
}

static void open_and_read(const uint8_t *data, size_t bytes) {
    dlxi_safetensors *file = NULL;
    dlx_error error;
    dlx_status status = dlxi_safetensors_parse(&file, data, bytes, "input", &error);
    DLXI_ASSERT(status == DLX_OK ||
                (status == DLX_DATA && strncmp(error.message, "input: ", 7) == 0));
    if (file != NULL) read_all(file);
    dlxi_safetensors_close(&file);
}

/* Names from the file do not reach a terminal as they are. */
static void on_warning(void *context, const char *line) {
    (void)context;
    DLXI_ASSERT(strncmp(line, "warning: input: ", 16) == 0);
    for (const char *c = line; *c != '\0'; c++) DLXI_ASSERT((unsigned char)*c >= ' ' && *c != 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    dlxi_model_config config;
    dlx_error error;
    open_and_read(data, bytes);
    if (bytes >= 8 + DATA_BYTES &&
        bytes <= FUZZ_INPUT_BYTES_MAX) { /* again with a length that gets past the first check */
        static uint8_t sealed[FUZZ_INPUT_BYTES_MAX];
        size_t header = bytes - 8 - DATA_BYTES;
        memcpy(sealed, data, bytes);
        for (int i = 0; i < 8; i++) sealed[i] = (uint8_t)((uint64_t)header >> (8 * i));
        open_and_read(sealed, bytes);
    }
    dlx_status status = dlxi_checkpoint_parse_config(&config, (const char *)data, bytes, "input",
                                                     on_warning, NULL, &error);
    DLXI_ASSERT(status == DLX_DATA ||
                (status == DLX_OK && dlxi_model_config_validate(&config, NULL) == DLX_OK));
    return 0;
}

static size_t put_file(uint8_t *data, const char *header) {
    size_t length = strlen(header);
    memset(data, 0, 8);
    data[0] = (uint8_t)length;
    data[1] = (uint8_t)(length >> 8);
    memcpy(data + 8, header, length);
    for (size_t i = 0; i < DATA_BYTES; i++) data[8 + length + i] = (uint8_t)(37 * i);
    return 8 + length + DATA_BYTES;
}

size_t fuzz_seed(uint8_t *data, int index) {
    static const char config[] = "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_"
                                 "size\":16,\"num_attention_heads\":4,"
                                 "\"intermediate_size\":8,\"max_position_embeddings\":32,\"vocab_"
                                 "size\":50,\"rope_theta\":1e4,\"head_dim\":4,\"layer_types\":"
                                 "[\"full_attention\"],\"new\\u001b\":1,\"rope_parameters\":{"
                                 "\"rope_type\":\"default\",\"rope_theta\":1e4}}";
    static const char gpt2[] =
        "{\"model_type\":\"gpt2\",\"n_embd\":16,\"n_head\":2,\"n_layer\":1,\"n_positions\":8,"
        "\"vocab_size\":9,\"activation_function\":\"relu\"}";
    switch (index) {
    case 0:
        return put_file(data, "{\"__metadata__\":{\"format\":\"pt\"},"
                              "\"a\":{\"dtype\":\"F32\",\"shape\":[4,4],\"data_offsets\":[0,64]}}");
    case 1:
        return put_file(data,
                        "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,8],\"data_offsets\":[32,64]},"
                        "\"b\":{\"dtype\":\"F16\",\"shape\":[16],\"data_offsets\":[0,32]},"
                        "\"c\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[32,32]}}");
    case 2:
        memcpy(data, config, sizeof config - 1);
        return sizeof config - 1;
    case 3:
        memcpy(data, gpt2, sizeof gpt2 - 1);
        return sizeof gpt2 - 1;
    default:
        return 0;
    }
}
