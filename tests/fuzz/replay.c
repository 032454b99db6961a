/* SPDX-License-Identifier: Apache-2.0 */
/* The main of a fuzzer without libFuzzer: runs its seeds, their truncations, and mutations drawn
 * from a fixed seed.
 *
 *   fuzz_x                    the test: the same inputs every time
 * fuzz_x --runs N --seed S  other mutations
 *   fuzz_x FILE…              these inputs, as libFuzzer leaves them after a crash
 */
#include "replay.h"
#include "base/rng.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SEEDS_MAX = 16, RUNS_DEFAULT = 4000, EDITS_MAX = 6 };

static uint64_t draw_seed = 1, draw_run, draw_index;

/* 0 … below−1 */
static size_t draw(size_t below) {
    return (size_t)(dlxi_rng_u64(draw_seed, draw_run, draw_index++) % below);
}

/* ---- saying which input it was --------------------------------------------------------------- */

static char place[96];

static void say_place(void) {
    ssize_t ignored = write(STDERR_FILENO, place, strlen(place));
    (void)ignored;
}

static void on_signal(int number) {
    say_place();
    signal(number, SIG_DFL);
    raise(number);
}

#if defined(__SANITIZE_ADDRESS__)
void __sanitizer_set_death_callback(void (*callback)(void));
#define ON_SANITIZER_DEATH(callback) __sanitizer_set_death_callback(callback)
#else
#define ON_SANITIZER_DEATH(callback) ((void)(callback))
#endif

/* In a block of its exact size, so that a sanitizer sees the first byte read beyond it. */
static void run(const uint8_t *data, size_t bytes) {
    uint8_t *exact = malloc(bytes > 0 ? bytes : 1);
    if (exact == NULL) abort();
    if (bytes > 0) memcpy(exact, data, bytes);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
}

/* ---- mutations ------------------------------------------------------------------------------- */

static void overwrite_number(uint8_t *data, size_t bytes) {
    static const uint64_t edges[] = {0,
                                     1,
                                     0x7F,
                                     0x80,
                                     0xFF,
                                     0x7FFF,
                                     0x8000,
                                     0xFFFF,
                                     0x7FFFFFFF,
                                     0x80000000,
                                     0xFFFFFFFF,
                                     INT64_MAX,
                                     UINT64_C(1) << 63,
                                     UINT64_MAX};
    size_t width = (size_t)1 << draw(4);
    uint64_t value = edges[draw(sizeof edges / sizeof *edges)];
    if (bytes < width) return;
    size_t at = draw(bytes - width + 1);
    for (size_t i = 0; i < width; i++) data[at + i] = (uint8_t)(value >> 8 * i);
}

/* Opens a gap of `gap` bytes at `at` and fills it from `from`, where the caller put what belongs
 * there. */
static size_t insert(uint8_t *data, size_t bytes, size_t at, const uint8_t *from, size_t gap) {
    if (bytes + gap > FUZZ_INPUT_BYTES_MAX) return bytes;
    memmove(data + at + gap, data + at, bytes - at);
    memcpy(data + at, from, gap);
    return bytes + gap;
}

/* One edit of data[bytes]; returns the new size. */
static size_t mutate(uint8_t *data, size_t bytes, const uint8_t *other, size_t other_bytes) {
    if (bytes == 0) return insert(data, 0, 0, other, other_bytes);
    size_t at = draw(bytes), length = 1 + draw(bytes - at < 32 ? bytes - at : 32);
    uint8_t piece[32];
    switch (draw(7)) {
    case 0:
        data[at] ^= (uint8_t)(1u << draw(8));
        return bytes;
    case 1:
        data[at] = (uint8_t)draw(256);
        return bytes;
    case 2:
        overwrite_number(data, bytes);
        return bytes;
    case 3:
        memmove(data + at, data + at + length, bytes - at - length);
        return bytes - length;
    case 4:
        return at; /* cut short */
    case 5:        /* a piece of it again, elsewhere */
        memcpy(piece, data + at, length);
        return insert(data, bytes, draw(bytes + 1), piece, length);
    default: /* a piece of another seed */
        if (other_bytes == 0) return bytes;
        length = 1 + draw(other_bytes < 32 ? other_bytes : 32);
        return insert(data, bytes, at, other + draw(other_bytes - length + 1), length);
    }
}

static uint8_t seeds[SEEDS_MAX][FUZZ_INPUT_BYTES_MAX];
static size_t seed_bytes[SEEDS_MAX];

static void run_seeds(size_t *count) {
    for (*count = 0; *count < SEEDS_MAX; ++*count) {
        seed_bytes[*count] = fuzz_seed(seeds[*count], (int)*count);
        if (seed_bytes[*count] == 0) break;
        /* every truncation of a small seed, some of a large one */
        size_t step = seed_bytes[*count] / 512 + 1;
        for (size_t bytes = 0; bytes < seed_bytes[*count]; bytes += step) {
            snprintf(place, sizeof place, "in seed %zu cut to %zu bytes\n", *count, bytes);
            run(seeds[*count], bytes);
        }
        snprintf(place, sizeof place, "in seed %zu\n", *count);
        run(seeds[*count], seed_bytes[*count]);
    }
}

static void run_mutations(size_t count, uint64_t runs) {
    static uint8_t input[FUZZ_INPUT_BYTES_MAX];
    for (draw_run = 0; draw_run < runs; draw_run++) {
        draw_index = 0;
        size_t which = draw(count), bytes = seed_bytes[which];
        memcpy(input, seeds[which], bytes);
        for (size_t edits = 1 + draw(EDITS_MAX); edits > 0; edits--) {
            size_t other = draw(count);
            bytes = mutate(input, bytes, seeds[other], seed_bytes[other]);
        }
        snprintf(place, sizeof place, "in run %llu of --seed %llu\n", (unsigned long long)draw_run,
                 (unsigned long long)draw_seed);
        run(input, bytes);
    }
}

static int run_file(const char *path) {
    static uint8_t input[FUZZ_INPUT_BYTES_MAX];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    size_t bytes = fread(input, 1, sizeof input, file);
    fclose(file);
    snprintf(place, sizeof place, "in the input %.60s\n", path);
    run(input, bytes);
    return 0;
}

int main(int argc, char **argv) {
    uint64_t runs = RUNS_DEFAULT;
    bool files = false;
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    ON_SANITIZER_DEATH(say_place);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--runs") == 0 && i + 1 < argc) {
            runs = strtoull(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--seed") == 0 && i + 1 < argc) {
            draw_seed = strtoull(argv[++i], NULL, 10);
        } else {
            files = true;
            if (run_file(argv[i]) != 0) return 1;
        }
    }
    if (files) return 0;
    size_t count;
    run_seeds(&count);
    if (count == 0) {
        fprintf(stderr, "the fuzzer has no seeds\n");
        return 1;
    }
    run_mutations(count, runs);
    printf("%zu seeds and %llu mutations\n", count, (unsigned long long)runs);
    return 0;
}
