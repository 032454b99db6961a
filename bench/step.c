/* SPDX-License-Identifier: Apache-2.0 */
/* What dlx_sync_step takes where it submits, and where it applies: one site alone on a hub, overlap
 * carry, in C. bench/torch_overhead.py measures the same calls from Python. */
#include <dilocox.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { INNER_STEPS = 4, EXCHANGE_STEPS = 2 };

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, by_size);
    return count > 0 ? values[count / 2] : 0;
}

static void *coordinate(void *context) {
    dlx_error error;
    (void)dlx_coordinator_run(context, &error); /* ends when the site leaves */
    return NULL;
}

static dlx_status measure(dlx_sync *sync, dlx_tensor *tensors, size_t count, size_t rounds,
                          dlx_error *error) {
    double *submit_s = calloc(rounds + 1, sizeof *submit_s),
           *apply_s = calloc(rounds + 1, sizeof *apply_s);
    size_t submits = 0, applies = 0;
    dlx_status status = submit_s == NULL || apply_s == NULL ? DLX_MEMORY : DLX_OK;
    while (status == DLX_OK && applies < rounds) {
        dlx_step step = DLX_STEP_INIT;
        for (size_t i = 0; i < count; i++) ((float *)tensors[i].data)[0] += 0.001f;
        double begun_s = now_s();
        status = dlx_sync_step(sync, 1, &step, error);
        double took_s = now_s() - begun_s - step.waited_s;
        if (step.submitted && submits < rounds) submit_s[submits++] = took_s;
        if (step.applied) apply_s[applies++] = took_s;
        if (step.submitted) nanosleep(&(struct timespec){.tv_sec = 1}, NULL); /* the exchange */
    }
    if (status == DLX_OK)
        printf("{\"submit_s\": %.6f, \"apply_s\": %.6f}\n", median(submit_s, submits),
               median(apply_s, applies));
    free(submit_s);
    free(apply_s);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "use: step TENSORS ROWS COLS ROUNDS\n"), 2;
    const size_t count = strtoul(argv[1], NULL, 10), rounds = strtoul(argv[4], NULL, 10);
    const int64_t rows = atol(argv[2]), cols = atol(argv[3]);
    dlx_error error = {.message = "out of memory"};
    dlx_hub *hub = NULL;
    dlx_coordinator *coordinator = NULL;
    dlx_sync *sync = NULL;
    pthread_t thread;
    dlx_tensor *tensors = calloc(count + 1, sizeof *tensors);
    char(*names)[24] = calloc(count + 1, sizeof *names);
    if (tensors == NULL || names == NULL) return fprintf(stderr, "%s\n", error.message), 1;
    for (size_t i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "t%zu", i);
        float *data = malloc((size_t)(rows * cols) * sizeof *data);
        if (data == NULL) return fprintf(stderr, "%s\n", error.message), 1;
        for (int64_t k = 0; k < rows * cols; k++) data[k] = (float)(k % 17) / 16;
        tensors[i] = (dlx_tensor){.name = names[i], .data = data, .rows = rows, .cols = cols};
    }
    dlx_status status = dlx_hub_open(&hub, &error);
    dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;
    config.sites = 1;
    config.tokens = UINT64_C(1) << 40;
    config.link.hub = hub;
    if (status == DLX_OK) status = dlx_coordinator_open(&coordinator, &config, &error);
    if (status != DLX_OK) return fprintf(stderr, "%s\n", error.message), 1;
    pthread_create(&thread, NULL, coordinate, coordinator);
    dlx_sync_config options = DLX_SYNC_CONFIG_INIT;
    options.site = "a";
    options.link.hub = hub;
    options.factor_rank = 0;
    options.inner_steps = INNER_STEPS;
    options.exchange_steps = EXCHANGE_STEPS;
    status = dlx_sync_open(&sync, &options, tensors, count, &error);
    if (status == DLX_OK) status = measure(sync, tensors, count, rounds, &error);
    if (status != DLX_OK) fprintf(stderr, "%s\n", error.message);
    dlx_sync_close(&sync);
    pthread_join(thread, NULL);
    dlx_coordinator_close(&coordinator);
    dlx_hub_close(&hub);
    for (size_t i = 0; i < count; i++) free(tensors[i].data);
    free(tensors);
    free(names);
    return status == DLX_OK ? 0 : 1;
}
