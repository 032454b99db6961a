/* Fuzzes the readers of safetensors and config.json. With libFuzzer: build with -fsanitize=fuzzer and
 * -DDLXI_LIBFUZZER. Without: replays files given as arguments, or else COUNT mutations of the seeds below, from a fixed
 * seed, so that a finding can be found again: fuzz_safetensors [-n COUNT] [FILE…]. */
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "base/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    dlxi_safetensors *file = NULL;
    dlxi_model_config config;
    dlx_error error;
    float values[16];
    if (dlxi_safetensors_parse(&file, data, bytes, "input", &error) == DLX_OK) {
        for (size_t i = 0; i < dlxi_safetensors_count(file); i++) {
            const dlxi_file_tensor *tensor = dlxi_safetensors_at(file, i);
            if (dlxi_safetensors_find(file, tensor->name) != tensor) abort();
            for (int64_t first = 0; first < tensor->count; first += 16) {
                int64_t count = tensor->count - first < 16 ? tensor->count - first : 16;
                if (dlxi_file_tensor_read(values, tensor, first, count, &error) != DLX_OK) break;
            }
        }
        dlxi_safetensors_close(&file);
    }
    (void)dlxi_checkpoint_parse_config(&config, (const char *)data, bytes, "input", &error);
    return 0;
}

#ifndef DLXI_LIBFUZZER

enum { INPUT_BYTES_MAX = 1024 };

/* Headers; their length and 64 bytes of data are put around them. The last is a config.json. */
static const char *const seeds[] = {
    "{}",
    "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[4,4],\"data_offsets\":[0,64]}}",
    "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,8],\"data_offsets\":[32,64]},"
    "\"b\":{\"dtype\":\"F16\",\"shape\":[16],\"data_offsets\":[0,32]},"
    "\"c\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[32,32]}}",
    "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":16,\"num_attention_heads\":4,"
    "\"intermediate_size\":8,\"max_position_embeddings\":32,\"vocab_size\":50,\"rope_theta\":1e4,\"head_dim\":4}",
};
enum { SEEDS = sizeof seeds / sizeof *seeds };

static size_t draw_seed(uint8_t *input, size_t which) {
    size_t length = strlen(seeds[which]);
    if (which == SEEDS - 1) {
        memcpy(input, seeds[which], length);
        return length;
    }
    memset(input, 0, 8);
    input[0] = (uint8_t)length;
    input[1] = (uint8_t)(length >> 8);
    memcpy(input + 8, seeds[which], length);
    for (size_t i = 0; i < 64; i++) input[8 + length + i] = (uint8_t)(37 * i);
    return 8 + length + 64;
}

/* One of: flip a bit, set a byte, a digit for a digit, cut the end, double a stretch. */
static size_t mutate(uint8_t *input, size_t bytes, uint64_t random) {
    if (bytes == 0) return 0;
    size_t at = (size_t)(random >> 8) % bytes, length = (size_t)(random >> 40) % 16;
    switch (random % 5) {
    case 0: input[at] ^= (uint8_t)(1u << (random >> 32 & 7)); break;
    case 1: input[at] = (uint8_t)(random >> 32); break;
    case 2:
        while (at < bytes && (input[at] < '0' || input[at] > '9')) at++;
        if (at < bytes) input[at] = (uint8_t)("0123456789-.e"[random >> 32 & 7]);
        break;
    case 3: return random >> 32 & 3 ? bytes : at;
    default:
        if (at + length > bytes || bytes + length > INPUT_BYTES_MAX) break;
        memmove(input + at + length, input + at, bytes - at);
        return bytes + length;
    }
    return bytes;
}

static int run_mutations(long count) {
    uint8_t input[INPUT_BYTES_MAX];
    for (long i = 0; i < count; i++) {
        size_t bytes = draw_seed(input, (size_t)i % SEEDS);
        uint64_t mutations = dlxi_rng_u64(1, (uint64_t)i, 0) % 4;
        for (uint64_t m = 1; m <= mutations; m++) bytes = mutate(input, bytes, dlxi_rng_u64(1, (uint64_t)i, m));
        uint8_t *exact = malloc(bytes == 0 ? 1 : bytes); /* so that a sanitizer sees a read past the end */
        if (exact == NULL) return 1;
        memcpy(exact, input, bytes);
        LLVMFuzzerTestOneInput(exact, bytes);
        free(exact);
    }
    printf("%ld inputs\n", count);
    return 0;
}

static int run_file(const char *path) {
    static uint8_t input[1 << 20];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    size_t bytes = fread(input, 1, sizeof input, file);
    fclose(file);
    LLVMFuzzerTestOneInput(input, bytes);
    return 0;
}

int main(int argc, char **argv) {
    long count = 100000;
    int first = 1;
    if (argc > 2 && strcmp(argv[1], "-n") == 0) {
        count = strtol(argv[2], NULL, 10);
        first = 3;
    }
    for (int i = first; i < argc; i++)
        if (run_file(argv[i]) != 0) return 1;
    return first < argc ? 0 : run_mutations(count);
}

#endif
