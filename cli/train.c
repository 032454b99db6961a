/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox train: one site of a run, or one rank of it, or of a job that holds all sites. dilocox
 * coordinator: its other end. */
#include "cli.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>

typedef struct progress {
    display *display;
    bool for_launcher; /* lines for a program to read: "step SITE …", "text SITE …" */
    double printed_s;
} progress;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void say(progress *p, const char *site, const char *text) {
    if (p->for_launcher) {
        printf("text %s %s\n", site, text);
        fflush(stdout);
    } else {
        display_text(p->display, site, text);
    }
}

static void on_event(void *context, const dlx_event *event) {
    progress *p = context;
    char line[LINE_BYTES];
    switch (event->kind) {
    case DLX_EVENT_MESSAGE:
        say(p, event->site, event->text);
        break;
    case DLX_EVENT_JOINED:
        snprintf(line, sizeof line, "joined: %u sites", event->sites);
        say(p, event->site, line);
        break;
    case DLX_EVENT_EVALUATED:
        snprintf(line, sizeof line, "validation loss at the %s (own part): %.4f", event->text,
                 event->loss);
        say(p, event->site, line);
        break;
    case DLX_EVENT_STEP:
        format_step(line, event);
        if (!p->for_launcher) {
            display_step(p->display, 0, line);
        } else if (now_s() - p->printed_s > 0.1) {
            p->printed_s = now_s();
            printf("step %s %s\n", event->site, line);
            fflush(stdout);
        }
        break;
    }
}

/* A site that launch started ends with it. */
static void begin(bool for_launcher, bool by_launcher) {
    if (for_launcher) prctl(PR_SET_PDEATHSIG, SIGTERM);
    catch_interrupts(by_launcher);
}

/* ---- train ----------------------------------------------------------------------------------- */

typedef struct train_use {
    const char *path, *site, *coordinator, *run_dir, *sets[SETS_MAX + 1];
    long sites; /* of the job; 0: it is one site, or a process alone */
    bool for_launcher;
} train_use;

/* The coordinator of a job that holds all sites: a thread of its first rank. */
typedef struct host {
    const train_use *use;
    const dlx_config *config;
    dlx_hub *hub;
    pthread_t thread;
    bool started;
    dlx_status status;
    dlx_error error;
} host;

static void on_host_event(void *context, const dlx_event *event) {
    const host *h = context;
    if (event->kind != DLX_EVENT_MESSAGE) return;
    printf(h->use->for_launcher ? "text coordinator %s\n" : "%s\n", event->text);
    fflush(stdout);
}

static void *run_host(void *context) {
    host *h = context;
    dlx_coordinate_options options = DLX_COORDINATE_OPTIONS_INIT;
    options.sites = (uint32_t)h->use->sites;
    options.hub = h->hub;
    options.on_event = on_host_event;
    options.context = h;
    options.interrupted = &interrupted;
    h->status = dlx_coordinate(h->config, &options, &h->error);
    return NULL;
}

static dlx_status start_host(host *h, dlx_error *error) {
    h->started = pthread_create(&h->thread, NULL, run_host, h) == 0;
    if (h->started) return DLX_OK;
    error->status = DLX_SYSTEM;
    snprintf(error->message, sizeof error->message, "no thread for the coordinator");
    return DLX_SYSTEM;
}

static dlx_status end_host(host *h, dlx_status status, dlx_error *error) {
    if (!h->started) return status;
    if (status != DLX_OK) interrupt(); /* it may wait for sites that will not come */
    pthread_join(h->thread, NULL);
    if (status != DLX_OK || h->status == DLX_OK) return status;
    *error = h->error;
    return h->status;
}

static dlx_status train(const train_use *use, const dlx_config *config, dlx_cluster *cluster,
                        dlx_error *error) {
    uint32_t ranks = dlx_config_ranks(config),
             rank = cluster != NULL ? dlx_cluster_rank(cluster) : 0;
    uint32_t job_sites = use->sites > 0 ? (uint32_t)use->sites : 1;
    char name[32];
    const char *site = use->site;
    host h = {.use = use, .config = config};
    dlx_status status = DLX_OK;
    if (use->sites == 0 && dlx_config_one_job(config)) {
        error->status = DLX_CONFIG;
        snprintf(error->message, sizeof error->message,
                 "wan.link: %s is for one job that holds all sites: --sites N instead of --site",
                 dlx_config_link(config));
        return DLX_CONFIG;
    }
    if (use->sites > 0) {
        snprintf(name, sizeof name, "site-%u", rank / ranks + 1);
        site = name;
        if (rank == 0 && !dlx_config_one_job(config) && !use->for_launcher)
            printf("sites are ranks of this job: MPI carries what goes between them, not encrypted "
                   "(wan.link: mpi)\n");
    }
    /* where the numbers don't fit, dlx_train says so before it needs the hub */
    bool fits = cluster != NULL && dlx_cluster_ranks(cluster) == job_sites * ranks;
    if (use->sites > 0 && fits) status = dlx_cluster_hub(&h.hub, cluster, config, error);
    if (status == DLX_OK && h.hub != NULL && rank == 0) status = start_host(&h, error);
    progress p = {.display = use->for_launcher ? NULL : display_open(&site, 1, cluster != NULL),
                  .for_launcher = use->for_launcher};
    dlx_train_options options = DLX_TRAIN_OPTIONS_INIT;
    options.site = site;
    options.coordinator = use->coordinator;
    options.hub = h.hub;
    options.cluster = cluster;
    options.job_sites = job_sites;
    options.on_event = on_event;
    options.context = &p;
    options.interrupted = &interrupted;
    if (status == DLX_OK) status = dlx_train(config, &options, error);
    display_close(p.display);
    status = end_host(&h, status, error);
    dlx_hub_close(&h.hub);
    if (status != DLX_OK || use->for_launcher || rank != 0) return status;
    if (use->sites > 0)
        print_results(config);
    else
        printf("results in %s/%s\n", dlx_config_run_dir(config), site);
    return DLX_OK;
}

int train_main(int count, char **arguments) {
    static train_use use;
    const char *sites_text = NULL;
    int exit_code;
    const option_spec specs[] = {
        {"site", "NAME", "this site's name; the roster's for its key", &use.site, NULL, NULL},
        {"coordinator", "HOST:PORT", "instead of wan.coordinator", &use.coordinator, NULL, NULL},
        {"sites", "N", "under mpirun: the job holds N sites and the coordinator (wan.link: mpi)",
         &sites_text, NULL, NULL},
        {"run-dir", "DIR", "instead of run.dir", &use.run_dir, NULL, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, use.sets},
        {"for-launcher", NULL, "print progress for a program to read", NULL, &use.for_launcher,
         NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &use.path, 1, 1,
                        &exit_code))
        return exit_code;
    if (sites_text != NULL && !parse_number(sites_text, "--sites", 1, SITES_MAX, &use.sites))
        return EXIT_USE;
    if (use.site == NULL && use.sites == 0)
        return fail_use("train: --site NAME is needed, or --sites N for a job that holds them all");
    if (use.site != NULL && use.sites > 0)
        return fail_use(
            "train: --site names one site, --sites makes a job of several; give one of them");
    if (use.coordinator != NULL && use.sites > 0)
        return fail_use(
            "train: --sites makes a job with a coordinator of its own; leave --coordinator out");
    bool launched = launched_rank() >= 0;
    begin(use.for_launcher, launched);
    if (launched) watch_rank(use.path, use.sets, use.site);
    dlx_error error;
    dlx_cluster *cluster = NULL;
    dlx_config *config = NULL;
    dlx_status status = launched || use.sites > 0 ? dlx_cluster_open(&cluster, &error) : DLX_OK;
    if (status == DLX_OK) status = read_config(&config, use.path, use.run_dir, use.sets, &error);
    if (status == DLX_OK) status = train(&use, config, cluster, &error);
    exit_code = status == DLX_OK ? EXIT_DONE : fail_rank(cluster, config, use.sites, &error);
    dlx_cluster_close(&cluster);
    dlx_config_close(&config);
    return exit_code;
}

/* ---- coordinator ----------------------------------------------------------------------------- */

static void on_listening(void *context, const char *endpoint) {
    (void)context;
    printf("listening %s\n", endpoint);
    fflush(stdout);
}

static void on_coordinator_event(void *context, const dlx_event *event) {
    const bool *for_launcher = context;
    if (event->kind != DLX_EVENT_MESSAGE) return;
    printf("%s%s\n", *for_launcher ? "text coordinator " : "", event->text);
    fflush(stdout);
}

int coordinator_main(int count, char **arguments) {
    const char *path, *sites_text = "2", *listen = NULL, *run_dir = NULL,
                      *sets[SETS_MAX + 1] = {NULL};
    bool for_launcher = false;
    int exit_code;
    long sites;
    const option_spec specs[] = {
        {"sites", "N", "how many sites take part; 2 unless given", &sites_text, NULL, NULL},
        {"listen", "HOST:PORT", "instead of wan.coordinator; port 0: any free one", &listen, NULL,
         NULL},
        {"run-dir", "DIR", "instead of run.dir", &run_dir, NULL, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, sets},
        {"for-launcher", NULL, "end when the starting process does", NULL, &for_launcher, NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &path, 1, 1,
                        &exit_code))
        return exit_code;
    if (!parse_number(sites_text, "--sites", 1, SITES_MAX, &sites)) return EXIT_USE;
    dlx_config *config = load_config(path, run_dir, sets);
    if (config == NULL) return EXIT_USE;
    begin(for_launcher, false);
    if (dlx_config_one_job(config) || dlx_config_in_process(config)) {
        int code = fail_use("coordinator: wan.link is %s, whose coordinator is part of launch or "
                            "train --sites; set zmq",
                            dlx_config_link(config));
        dlx_config_close(&config);
        return code;
    }
    dlx_error error;
    dlx_coordinate_options options = DLX_COORDINATE_OPTIONS_INIT;
    options.sites = (uint32_t)sites;
    options.coordinator = listen;
    options.on_listening = on_listening;
    options.on_event = on_coordinator_event;
    options.context = &for_launcher;
    options.interrupted = &interrupted;
    dlx_status status = dlx_coordinate(config, &options, &error);
    exit_code = status == DLX_OK ? EXIT_DONE : fail_with(&error);
    if (status == DLX_OK && !for_launcher) print_results(config);
    dlx_config_close(&config);
    return exit_code;
}
