/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox launch with wan.link: mem: the sites and the coordinator are threads of this process. */
#include "cli.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

typedef struct shared {
    const dlx_config *config;
    dlx_hub *hub;
    display *display;
    int sites;
    const char *resume, *take_unsent;
    volatile sig_atomic_t coordinator_over;
    atomic_int failed;
    atomic_bool begun;
    bool interrupted; /* why the first one ended; it sets this, read after all are joined */
} shared;

typedef struct worker {
    shared *shared;
    int index; /* the coordinator's is `sites` */
    char name[SITE_BYTES];
    pthread_t thread;
    dlx_status status;
    dlx_error error;
    int failed_as; /* its place among those that failed, from 1; 0: it did not */
} worker;

static void on_event(void *context, const dlx_event *event) {
    worker *w = context;
    char line[LINE_BYTES];
    if (event->kind == DLX_EVENT_JOINED) w->shared->begun = true;
    if (event->kind == DLX_EVENT_STEP) {
        step_format(line, event);
        display_step(w->shared->display, w->index, line);
    } else if (event->kind == DLX_EVENT_MESSAGE) {
        display_text(w->shared->display, w->name, event->text);
    }
}

static void *worker_run(void *context) {
    worker *w = context;
    if (w->index == w->shared->sites) {
        dlx_coordinate_options options = DLX_COORDINATE_OPTIONS_INIT;
        options.sites = (uint32_t)w->shared->sites;
        options.hub = w->shared->hub;
        options.on_event = on_event;
        options.context = w;
        options.interrupted = &interrupted;
        w->status = dlx_coordinate(w->shared->config, &options, &w->error);
        w->shared->coordinator_over = 1;
    } else {
        dlx_train_options options = DLX_TRAIN_OPTIONS_INIT;
        options.site = w->name;
        options.hub = w->shared->hub;
        options.on_event = on_event;
        options.context = w;
        /* Ctrl-C is the coordinator's, which ends the run for all sites at the same round */
        options.interrupted = &w->shared->coordinator_over;
        options.resume = w->shared->resume;
        options.take_unsent = w->shared->take_unsent;
        w->status = dlx_train(w->shared->config, &options, &w->error);
    }
    if (w->status != DLX_OK) {
        bool asked = is_interrupted();
        w->failed_as = atomic_fetch_add(&w->shared->failed, 1) + 1;
        if (w->failed_as == 1) w->shared->interrupted = asked;
        interrupt(); /* the others end with it */
    }
    return NULL;
}

int threads_launch(const dlx_config *config, int sites, const char *resume,
                   const char *take_unsent) {
    static worker workers[DLXI_SITES_MAX + 1];
    const char *names[DLXI_SITES_MAX];
    dlx_error error;
    shared all = {.config = config, .sites = sites, .resume = resume, .take_unsent = take_unsent};
    if (dlx_config_ranks(config) > 1)
        return fail_use("wan.link: %s has sites of one rank; set site.stages and site.replicas to "
                        "1, or another link",
                        dlx_config_link(config));
    if (dlx_hub_open(&all.hub, &error) != DLX_OK) return fail_with(&error);
    for (int i = 0; i <= sites; i++) {
        workers[i] = (worker){.shared = &all, .index = i};
        snprintf(workers[i].name, sizeof workers[i].name, i < sites ? "site-%d" : "coordinator",
                 i + 1);
        if (i < sites) names[i] = workers[i].name;
    }
    all.display = display_open(names, sites, false);
    int started = 0, failure = 0;
    while (started <= sites && (failure = pthread_create(&workers[started].thread, NULL, worker_run,
                                                         &workers[started])) == 0)
        started++;
    if (started <= sites) {
        all.coordinator_over = 1;
        interrupt();
    }
    for (int i = 0; i < started; i++) pthread_join(workers[i].thread, NULL);
    display_close(all.display);
    dlx_hub_close(&all.hub);
    if (started <= sites) {
        failure_say(DLX_SYSTEM,
                    "launch: cannot start the thread of %s: %s; allow more threads (ulimit -u, "
                    "pids.max)",
                    workers[started].name, strerror(failure));
        return EXIT_FAILED;
    }
    const worker *first = NULL; /* the others failed since it did */
    for (int i = 0; i <= sites; i++)
        if (workers[i].failed_as > 0 && (first == NULL || workers[i].failed_as < first->failed_as))
            first = &workers[i];
    if (first == NULL) return results_print(config);
    if (all.interrupted) {
        for (int i = 0; i <= sites; i++)
            if (workers[i].failed_as > 0 && !is_consequence(workers[i].status))
                fprintf(stderr, "dilocox: %s: %s\n", workers[i].name, workers[i].error.message);
        return interruption_print(config, all.begun);
    }
    dlx_error named = {.status = first->status};
    snprintf(named.message, sizeof named.message, "%s failed: %.400s", first->name,
             first->error.message);
    return fail_with(&named);
}
