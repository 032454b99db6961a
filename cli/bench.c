/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox bench: what this machine does, measured. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bench_arguments {
    const char *benchmark, *path, *sets[SETS_MAX + 1];
    int threads, group;
    uint32_t steps, stages;
    int64_t megabytes;
    bool f32;
} bench_arguments;

static bench_arguments given;

static const dlxi_option rows[] = {
    DLXI_OPTION_ROW_POINTER(bench_arguments, "benchmark", benchmark, "BENCHMARK",
                            "model: training steps; codec: the quantiser; stages: the parts of a "
                            "pipeline"),
    DLXI_OPTION_ROW_POINTER(bench_arguments, "config", path, "CONFIG",
                            "stages: the run's options; the defaults unless given"),
    THREADS_ROW(bench_arguments, "model: of the computation"),
    DLXI_OPTION_ROW_INTEGER(bench_arguments, "--steps", steps, 1, 1000, "7",
                            "model: timed steps of each", .value_name = "N"),
    DLXI_OPTION_ROW_BOOLEAN(bench_arguments, "--f32", f32, "false",
                            "model: no bf16, even if the CPU has it"),
    DLXI_OPTION_ROW_INTEGER(bench_arguments, "--megabytes", megabytes, 1, 65536, "64",
                            "codec: buffer size", .value_name = "N"),
    DLXI_OPTION_ROW_INTEGER(bench_arguments, "--group", group, 2, 1024, "64",
                            "codec: values with one scale; even", .value_name = "N"),
    DLXI_OPTION_ROW_INTEGER(bench_arguments, "--stages", stages, 1, DLXI_STAGES_MAX, "2",
                            "stages: how many", .value_name = "N"),
    DLXI_OPTION_ROW_LIST(bench_arguments, "--set", sets, "KEY=VALUE",
                         "stages: one option of the config; may be given often"),
};

static void model_print(const dlx_bench_step_result *r) {
    const double floor_s = r->products_floor_s + r->optimizer_floor_s;
    const double rate = r->model_flops / r->step_s_median;
    printf("%s, %u x %u tokens per step, %s, %s, %.1f M parameters\n", r->shape, r->batch,
           r->length, r->optimizer, r->precision, 1e-6 * (double)r->parameters);
    printf("  step        %9.2f ms median of %u, %.2f to %.2f; %.0f tokens/s\n",
           1e3 * r->step_s_median, r->steps, 1e3 * r->step_s_min, 1e3 * r->step_s_max,
           r->batch * r->length / r->step_s_median);
    printf("  floor       %9.2f ms: products %.2f at %.1f GFLOP/s, optimiser %.2f at %.1f GB/s; "
           "got / floor %.2f\n",
           1e3 * floor_s, 1e3 * r->products_floor_s, 1e-9 * r->product_flops_per_s,
           1e3 * r->optimizer_floor_s, 1e-9 * r->memory_bytes_per_s, r->step_s_median / floor_s);
    printf(
        "  products    %9.1f GFLOP/s of the whole step, %.1f %% of the rate; step / (products at "
        "60 %% + optimiser's floor) %.2f\n",
        1e-9 * rate, 100 * rate / r->product_flops_per_s,
        r->step_s_median / (r->products_floor_s / 0.6 + r->optimizer_floor_s));
    printf("  optimiser   %9.2f ms, %.1f %% of the step; %.1f GB/s, %.1f GFLOP/s\n",
           1e3 * r->optimizer_s, 100 * r->optimizer_s / r->step_s_median,
           1e-9 * r->optimizer_bytes / r->optimizer_s, 1e-9 * r->optimizer_flops / r->optimizer_s);
    printf("  memory      %9.1f MB at the peak; parameters, gradients, state, activations, copies "
           "%.1f\n",
           1e-6 * r->peak_bytes, 1e-6 * r->expected_bytes);
    fflush(stdout);
}

static int model_bench(void) {
    dlx_bench_step_options options = DLX_BENCH_STEP_OPTIONS_INIT;
    dlx_bench_step_result r;
    dlx_error error;
    options.threads = given.threads, options.steps = given.steps, options.f32 = given.f32;
    printf("%d thread%s, up to %u timed steps of each model ...\n", given.threads,
           given.threads == 1 ? "" : "s", given.steps);
    fflush(stdout);
    for (int shape = 0; shape < DLX_BENCH_SHAPES; shape++) {
        options.shape = (dlx_bench_shape)shape;
        if (dlx_bench_step(&r, &options, &error) != DLX_OK) return fail_with(&error);
        model_print(&r);
    }
    return EXIT_DONE;
}

static int values_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* memcpy, encode and decode in turn, so that all three see the same machine; medians. */
static int codec_bench(void) {
    enum { RUNS = 9, BITS = 4 };
    size_t count = (size_t)given.megabytes * (1 << 20) / sizeof(float);
    size_t code_bytes = dlx_codec_bound(count, BITS, given.group);
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
        status = dlx_codec_encode(codes, values, count, BITS, given.group, &error);
        at[2] = now_s();
        if (status == DLX_OK)
            status = dlx_codec_decode(back, codes, code_bytes, count, BITS, given.group, &error);
        at[3] = now_s();
        for (int k = 0; k < 3 && run >= 0; k++) seconds[k][run] = at[k + 1] - at[k];
    }
    if (status == DLX_OK) {
        static const char *const names[] = {"memcpy", "int4 encode", "int4 decode"};
        printf("%lld MiB of f32, groups of %d, %.2f x smaller, one thread, median of %d\n",
               (long long)given.megabytes, given.group,
               (double)(count * sizeof *values) / (double)code_bytes, RUNS);
        for (int k = 0; k < 3; k++) {
            qsort(seconds[k], RUNS, sizeof(double), values_compare);
            printf("%-12s %6.2f GB/s of f32\n", names[k],
                   (double)(count * sizeof *values) * 1e-9 / seconds[k][RUNS / 2]);
        }
    }
    free(values);
    free(back);
    free(codes);
    return status == DLX_OK ? EXIT_DONE : fail_with(&error);
}

static int stages_bench(void) {
    dlx_bench_stages_result r;
    dlx_error error;
    dlx_config *config = NULL;
    dlx_status status = config_read(&config, given.path, NULL, given.sets, &error);
    if (status == DLX_OK) status = dlx_bench_stages(&r, config, given.stages, &error);
    dlx_config_close(&config);
    if (status != DLX_OK) return fail_with(&error);
    printf("forward and backward of one micro-batch, medians; in brackets, of a block's: measured, "
           "and as site.cut: auto has it\n");
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

static int run(void) {
    if (given.group % 2 != 0)
        return fail_use("bench: --group: %d is odd; allowed: even, 2 to 1024", given.group);
    if (strcmp(given.benchmark, "model") == 0) return model_bench();
    if (strcmp(given.benchmark, "codec") == 0) return codec_bench();
    if (strcmp(given.benchmark, "stages") == 0) return stages_bench();
    return fail_use("bench: unknown benchmark '%s'; choose model, codec or stages",
                    given.benchmark);
}

const command bench_command = {
    .name = "bench",
    .use = "model | codec | stages [CONFIG]",
    .summary = "how fast this machine is at it",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .prints = true,
    .values = &given,
    .run = run,
};
