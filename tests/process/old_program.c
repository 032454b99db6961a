/* SPDX-License-Identifier: Apache-2.0 */
/* A program that was compiled with an older header, whose structs end one field earlier: it runs
 * one site, and finds nothing written behind them. Prints their sizes. */
#include <dilocox.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { H = 4, STEPS = 10 * H };

static void *coordinate(void *context) {
    dlx_error error;
    return dlx_coordinator_run(context, &error) == DLX_OK ? context : NULL;
}

static int fail(const char *what) {
    return fprintf(stderr, "%s\n", what), 1;
}

int main(void) {
    struct {
        dlx_step done;
        unsigned char beyond[64];
    } step = {.done = DLX_STEP_INIT};
    struct {
        dlx_statistics now;
        unsigned char beyond[64];
    } statistics = {.now = DLX_STATISTICS_INIT};
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    dlx_coordinator_config run = DLX_COORDINATOR_CONFIG_INIT;
    float w[6] = {0}, b[2] = {0};
    const dlx_tensor tensors[2] = {{.name = "w", .data = w, .rows = 2, .cols = 3},
                                   {.name = "b", .data = b, .rows = 1, .cols = 2}};
    dlx_error error;
    dlx_hub *hub = NULL;
    dlx_coordinator *coordinator = NULL;
    dlx_sync *sync = NULL;
    pthread_t thread;
    void *ended_well;
    printf("%zu %zu %zu %zu\n", sizeof config, sizeof *tensors, sizeof step.done,
           sizeof statistics.now);
    memset(step.beyond, 0xA5, sizeof step.beyond);
    memset(statistics.beyond, 0xA5, sizeof statistics.beyond);

    if (dlx_hub_open(&hub, &error) != DLX_OK) return fail(error.message);
    run.link.hub = config.link.hub = hub;
    run.sites = 1;
    run.tokens = STEPS;
    config.site = "paris";
    config.inner_steps = H;
    if (dlx_coordinator_open(&coordinator, &run, &error) != DLX_OK) return fail(error.message);
    if (pthread_create(&thread, NULL, coordinate, coordinator) != 0) return fail("no thread");
    if (dlx_sync_open(&sync, &config, tensors, 2, &error) != DLX_OK) return fail(error.message);
    while (!step.done.finished) {
        w[0] += 1;
        b[1] -= 1;
        if (dlx_sync_step(sync, 1, &step.done, &error) != DLX_OK) return fail(error.message);
    }
    if (dlx_sync_statistics(sync, &statistics.now, &error) != DLX_OK) return fail(error.message);
    dlx_sync_close(&sync);
    pthread_join(thread, &ended_well);
    dlx_coordinator_close(&coordinator);
    dlx_hub_close(&hub);
    if (ended_well == NULL) return fail("the run failed");
    if (statistics.now.committed_tokens != STEPS || statistics.now.plain_tensors != 2 ||
        !(w[0] > 0) || !(b[1] < 0))
        return fail("it did not train");
    for (int i = 0; i < 64; i++)
        if (step.beyond[i] != 0xA5 || statistics.beyond[i] != 0xA5)
            return fail("the library wrote behind a struct");
    return 0;
}
