/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox bench: what this machine does, measured. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int bench_model(long threads, long steps, bool f32) {
    enum { BATCH = 4, LENGTH = 64 };
    dlx_bench_model_result r;
    dlx_error error;
    printf("GPT-2 124M shape, %d x %d tokens a step, AdamW included, %ld thread%s, %ld timed steps "
           "...\n",
           BATCH, LENGTH, threads, threads == 1 ? "" : "s", steps);
    fflush(stdout);
    if (dlx_bench_model(&r, BATCH, LENGTH, (uint32_t)steps, (int)threads, f32, &error) != DLX_OK)
        return fail_with(&error);
    printf("kernels             %s, %s\n", r.backend, r.precision);
    printf("parameters          %.1f M (with the head, without the position table)\n",
           (double)r.parameters * 1e-6);
    printf("step                %.3f s median, %.3f to %.3f\n", r.step_s_median, r.step_s_min,
           r.step_s_max);
    printf("tokens              %.0f /s\n", BATCH * LENGTH / r.step_s_median);
    printf("model               %.1f GFLOP/s (6 N tokens / median)\n", r.model_flops_per_s * 1e-9);
    printf("product 1024^3      %.1f GFLOP/s (%s, best of 5)\n", r.product_flops_per_s * 1e-9,
           r.precision);
    printf("share               %.1f %%\n", 100 * r.share);
    return EXIT_DONE;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* memcpy, encode and decode in turn, so that all three see the same machine; medians. */
static int bench_codec(long megabytes, long group) {
    enum { RUNS = 9, BITS = 4 };
    size_t count = (size_t)megabytes * (1 << 20) / sizeof(float);
    size_t code_bytes = dlx_codec_bound(count, BITS, (int)group);
    float *values = malloc(count * sizeof *values), *back = malloc(count * sizeof *back);
    void *codes = malloc(code_bytes);
    double seconds[3][RUNS];
    dlx_error error = {.status = DLX_MEMORY, .message = "out of memory; lower --megabytes"};
    dlx_status status = values != NULL && back != NULL && codes != NULL ? DLX_OK : DLX_MEMORY;
    uint32_t state = 1;
    for (size_t i = 0; status == DLX_OK && i < count; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)state * 0x1p-31f;
    }
    for (int run = -1; status == DLX_OK && run < RUNS; run++) { /* one to warm up */
        double at[4];
        at[0] = now_s();
        memcpy(back, values, count * sizeof *values);
        at[1] = now_s();
        status = dlx_codec_encode(codes, values, count, BITS, (int)group, &error);
        at[2] = now_s();
        if (status == DLX_OK)
            status = dlx_codec_decode(back, codes, code_bytes, count, BITS, (int)group, &error);
        at[3] = now_s();
        for (int k = 0; k < 3 && run >= 0; k++) seconds[k][run] = at[k + 1] - at[k];
    }
    if (status == DLX_OK) {
        static const char *const names[] = {"memcpy", "int4 encode", "int4 decode"};
        printf("%ld MiB of f32, groups of %ld, %.2f x smaller, one thread, median of %d\n",
               megabytes, group, (double)(count * sizeof *values) / (double)code_bytes, RUNS);
        for (int k = 0; k < 3; k++) {
            qsort(seconds[k], RUNS, sizeof(double), by_value);
            printf("%-12s %6.2f GB/s of f32\n", names[k],
                   (double)(count * sizeof *values) * 1e-9 / seconds[k][RUNS / 2]);
        }
    }
    free(values);
    free(back);
    free(codes);
    return status == DLX_OK ? EXIT_DONE : fail_with(&error);
}

static int bench_stages(const char *path, long stages, const char **sets) {
    dlx_bench_stages_result r;
    dlx_error error;
    dlx_config *config = load_config(path, NULL, sets);
    if (config == NULL) return EXIT_USE;
    dlx_status status = dlx_bench_stages(&r, config, (uint32_t)stages, &error);
    dlx_config_close(&config);
    if (status != DLX_OK) return fail_with(&error);
    printf("forward and backward of one micro-batch, medians; in brackets, of a block's: measured, "
           "and as site.cut: auto "
           "has it\n");
    printf("block               %9.3f ms\n", 1e3 * r.block_s);
    printf("embedding           %9.3f ms (%.2f, %.2f)\n", 1e3 * r.embedding_s,
           r.embedding_s / r.block_s, r.embedding_share);
    printf("head and loss       %9.3f ms (%.2f, %.2f)\n", 1e3 * r.head_s, r.head_s / r.block_s,
           r.head_share);
    printf("site.cut: auto      %s  (mean stage over slowest: %.2f)\n", r.estimated_partition,
           r.estimated_balance);
    printf("best as measured    %s  (%.2f)\n", r.measured_partition, r.measured_balance);
    return EXIT_DONE;
}

int bench_main(int count, char **arguments) {
    const char *positional[2] = {NULL}, *sets[SETS_MAX + 1] = {NULL}, *stages_text = "2",
               *threads_text = "1", *steps_text = "7", *megabytes_text = "64", *group_text = "64";
    bool f32 = false;
    int exit_code;
    long threads, steps, megabytes, group, stages;
    const option_spec specs[] = {
        {"threads", "N", "model: 1 unless given", &threads_text, NULL, NULL},
        {"steps", "N", "model: timed steps; 7 unless given", &steps_text, NULL, NULL},
        {"f32", NULL, "model: no bf16, even where the CPU has it", NULL, &f32, NULL},
        {"megabytes", "N", "codec: buffer size; 64 unless given", &megabytes_text, NULL, NULL},
        {"group", "N", "codec: values with one scale; 64 unless given", &group_text, NULL, NULL},
        {"stages", "N", "stages: how many; 2 unless given", &stages_text, NULL, NULL},
        {"set", "KEY=VALUE", "stages: one option of the config; may be given often", NULL, NULL,
         sets},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, positional, 1, 2,
                        &exit_code))
        return exit_code;
    const char *what = positional[0];
    if (!parse_number(threads_text, "--threads", 1, 1024, &threads) ||
        !parse_number(steps_text, "--steps", 1, 1000, &steps) ||
        !parse_number(megabytes_text, "--megabytes", 1, 65536, &megabytes) ||
        !parse_number(group_text, "--group", 2, 1024, &group) ||
        !parse_number(stages_text, "--stages", 1, 256, &stages))
        return EXIT_USE;
    if (group % 2 != 0) return fail_use("--group: %ld is odd; allowed: even, 2 to 1024", group);
    if (strcmp(what, "model") == 0) return bench_model(threads, steps, f32);
    if (strcmp(what, "codec") == 0) return bench_codec(megabytes, group);
    if (strcmp(what, "stages") == 0) return bench_stages(positional[1], stages, sets);
    return fail_use("bench: '%s' is none; there are model, codec and stages", what);
}
