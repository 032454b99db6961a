/* SPDX-License-Identifier: Apache-2.0 */
/* Two sites fit y = Σ w_j x_j by gradient descent, each on its own data, synchronised by dilocox.
 * They are threads; processes would set link.coordinator instead of link.hub. */
#include <dilocox.h>

#include <pthread.h>
#include <stdio.h>

enum { SITES = 2, FEATURES = 8, SAMPLES = 256, STEPS = 400 };

static const float truth[FEATURES] = {0.5f, -1.0f, 2.0f, 0.0f, 1.5f, -0.5f, 0.25f, 3.0f};
static dlx_hub *hub;

typedef struct job {
    const char *name;
    unsigned seed;
    float weights[FEATURES];
    double loss;
    dlx_status status;
    dlx_error error;
} job;

static float uniform(unsigned *state) { /* −1 to 1 */
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

/* One inner step of plain gradient descent; returns the loss before it. */
static double descend(float *weights, float (*x)[FEATURES]) {
    float slope[FEATURES] = {0};
    double loss = 0;
    for (int i = 0; i < SAMPLES; i++) {
        float miss = 0;
        for (int j = 0; j < FEATURES; j++) miss += (weights[j] - truth[j]) * x[i][j];
        for (int j = 0; j < FEATURES; j++) slope[j] += 2 * miss * x[i][j] / SAMPLES;
        loss += (double)(miss * miss) / SAMPLES;
    }
    for (int j = 0; j < FEATURES; j++) weights[j] -= 0.1f * slope[j];
    return loss;
}

static void *site(void *context) {
    job *mine = context;
    float x[SAMPLES][FEATURES];
    for (int i = 0; i < SAMPLES; i++)
        for (int j = 0; j < FEATURES; j++) x[i][j] = uniform(&mine->seed);

    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = mine->name;
    config.link.hub = hub;
    config.inner_steps = 10;
    dlx_tensor tensor = {.name = "weights", .data = mine->weights, .rows = 1, .cols = FEATURES};
    dlx_sync *sync = NULL;
    dlx_step step = DLX_STEP_INIT;
    mine->status = dlx_sync_open(&sync, &config, &tensor, 1, &mine->error);
    while (mine->status == DLX_OK && !step.finished) {
        mine->loss = descend(mine->weights, x);
        mine->status = dlx_sync_step(sync, SAMPLES, &step, &mine->error); /* may change weights */
    }
    dlx_sync_close(&sync);
    return NULL;
}

static void *coordinate(void *context) {
    dlx_error error;
    if (dlx_coordinator_run(context, &error) != DLX_OK)
        fprintf(stderr, "coordinator: %s\n", error.message);
    return NULL;
}

int main(void) {
    dlx_error error;
    dlx_coordinator *coordinator = NULL;
    dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;
    config.sites = SITES;
    config.tokens = (uint64_t)SITES * STEPS * SAMPLES;
    dlx_status status = dlx_hub_open(&hub, &error);
    config.link.hub = hub;
    if (status == DLX_OK) status = dlx_coordinator_open(&coordinator, &config, &error);
    if (status != DLX_OK) return fprintf(stderr, "%s\n", error.message), 1;

    job jobs[SITES] = {{.name = "paris", .seed = 1}, {.name = "tokyo", .seed = 2}};
    pthread_t threads[SITES + 1];
    pthread_create(&threads[SITES], NULL, coordinate, coordinator);
    for (int i = 0; i < SITES; i++) pthread_create(&threads[i], NULL, site, &jobs[i]);
    for (int i = 0; i <= SITES; i++) pthread_join(threads[i], NULL);
    dlx_coordinator_close(&coordinator);
    dlx_hub_close(&hub);
    int failed = 0;
    for (int i = 0; i < SITES; i++) {
        printf("%s: loss %.6f, weight 1 is %.3f (truth %.3f)\n", jobs[i].name, jobs[i].loss,
               (double)jobs[i].weights[1], (double)truth[1]);
        if (jobs[i].status != DLX_OK)
            fprintf(stderr, "%s: %s\n", jobs[i].name, jobs[i].error.message);
        failed |= jobs[i].status != DLX_OK || jobs[i].loss > 1e-3 ||
                  jobs[i].weights[1] != jobs[0].weights[1];
    }
    return failed;
}
