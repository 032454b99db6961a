/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox train: one site of a run, or one rank of it, or of a job that holds all sites. */
#include "cli.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

typedef struct train_arguments {
    config_arguments config;
    const char *site, *coordinator, *resume, *take_unsent;
    int sites; /* of the job; 0: it is one site, or a process alone */
    bool for_launcher;
} train_arguments;

static train_arguments given;

static const dlxi_option rows[] = {
    CONFIG_ROWS(train_arguments),
    DLXI_OPTION_ROW_POINTER(train_arguments, "--site", site, "NAME",
                            "this site's name; the roster's for its key"),
    DLXI_OPTION_ROW_POINTER(train_arguments, "--coordinator", coordinator, "HOST:PORT",
                            "instead of wan.coordinator"),
    DLXI_OPTION_ROW_INTEGER(train_arguments, "--sites", sites, 0, DLXI_SITES_MAX, "0",
                            "under mpirun: the job holds N sites and the coordinator (wan.link: "
                            "mpi); 0: it is one site",
                            .value_name = "N"),
    {DLXI_OPTION_HEAD_(train_arguments, "--resume", POINTER, resume), .value_name = "[=DIR]",
     .bare_text = "",
     .comment = "go on from the newest snapshot in RUN_DIR/NAME/snapshots, or from this one; of "
                "another site: as a new site"},
    DLXI_OPTION_ROW_POINTER(train_arguments, "--take-unsent", take_unsent, "DIR,…",
                            "with --resume: add what sites that do not go on had not sent, by "
                            "their snapshots; the same at all sites"),
    FOR_LAUNCHER_ROW(train_arguments),
};

typedef struct progress {
    display *display; /* NULL: for the launcher */
    double printed_s;
} progress;

static void text_say(progress *p, const char *site, const char *text) {
    if (given.for_launcher) {
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
        text_say(p, event->site, event->text);
        break;
    case DLX_EVENT_JOINED:
        if (given.for_launcher) printf("begun\n");
        snprintf(line, sizeof line, "joined: %u sites", event->sites);
        text_say(p, event->site, line);
        break;
    case DLX_EVENT_EVALUATED:
        snprintf(line, sizeof line, "validation loss at the %s (own part): %.4f", event->text,
                 event->loss);
        text_say(p, event->site, line);
        break;
    case DLX_EVENT_STEP:
        step_format(line, event);
        if (!given.for_launcher) {
            display_step(p->display, 0, line);
        } else if (now_s() - p->printed_s > 0.1) {
            p->printed_s = now_s();
            printf("step %s %s\n", event->site, line);
            fflush(stdout);
        }
        break;
    }
}

/* The coordinator of a job that holds all sites: a thread of its first rank. */
typedef struct host {
    const dlx_config *config;
    dlx_hub *hub;
    pthread_t thread;
    bool started;
    dlx_status status;
    dlx_error error;
} host;

static void on_host_event(void *context, const dlx_event *event) {
    (void)context;
    if (event->kind != DLX_EVENT_MESSAGE) return;
    printf(given.for_launcher ? "text coordinator %s\n" : "%s\n", event->text);
    fflush(stdout);
}

static void *host_run(void *context) {
    host *h = context;
    dlx_coordinate_options options = DLX_COORDINATE_OPTIONS_INIT;
    options.sites = (uint32_t)given.sites;
    options.hub = h->hub;
    options.on_event = on_host_event;
    options.interrupted = &interrupted;
    h->status = dlx_coordinate(h->config, &options, &h->error);
    return NULL;
}

static dlx_status host_start(host *h, dlx_error *error) {
    int failure = pthread_create(&h->thread, NULL, host_run, h);
    h->started = failure == 0;
    if (h->started) return DLX_OK;
    error->status = DLX_SYSTEM;
    snprintf(error->message, sizeof error->message,
             "cannot start the coordinator's thread: %s; allow more threads (ulimit -u, pids.max)",
             strerror(failure));
    return DLX_SYSTEM;
}

static dlx_status host_end(host *h, dlx_status status, dlx_error *error) {
    if (!h->started) return status;
    if (status != DLX_OK) interrupt(); /* it may wait for sites that will not join */
    pthread_join(h->thread, NULL);
    if (status != DLX_OK || h->status == DLX_OK) return status;
    *error = h->error;
    return h->status;
}

static dlx_status site_train(const dlx_config *config, dlx_cluster *cluster, dlx_error *error) {
    uint32_t ranks = dlx_config_ranks(config),
             rank = cluster != NULL ? dlx_cluster_rank(cluster) : 0;
    uint32_t job_sites = given.sites > 0 ? (uint32_t)given.sites : 1;
    char name[SITE_BYTES];
    const char *site = given.site;
    host h = {.config = config};
    dlx_status status = DLX_OK;
    if (given.sites == 0 && dlx_config_one_job(config)) {
        error->status = DLX_CONFIG;
        snprintf(error->message, sizeof error->message,
                 "wan.link: %s is for one job that holds all sites: --sites N instead of --site",
                 dlx_config_link(config));
        return DLX_CONFIG;
    }
    if (given.sites > 0) {
        snprintf(name, sizeof name, "site-%u", rank / ranks + 1);
        site = name;
        if (rank == 0 && !dlx_config_one_job(config) && !given.for_launcher)
            printf(
                "sites are ranks of this job: MPI carries their messages, unencrypted (wan.link: "
                "mpi)\n");
    }
    /* if the numbers don't fit, dlx_train says so before it needs the hub */
    bool fits = cluster != NULL && dlx_cluster_ranks(cluster) == job_sites * ranks;
    if (given.sites > 0 && fits) status = dlx_cluster_hub(&h.hub, cluster, config, error);
    if (status == DLX_OK && h.hub != NULL && rank == 0) status = host_start(&h, error);
    progress p = {.display = given.for_launcher ? NULL : display_open(&site, 1, cluster != NULL)};
    dlx_train_options options = DLX_TRAIN_OPTIONS_INIT;
    options.site = site;
    options.coordinator = given.coordinator;
    options.hub = h.hub;
    options.cluster = cluster;
    options.job_sites = job_sites;
    options.on_event = on_event;
    options.context = &p;
    options.interrupted = &interrupted;
    options.resume = given.resume;
    options.take_unsent = given.take_unsent;
    if (status == DLX_OK) status = dlx_train(config, &options, error);
    display_close(p.display);
    status = host_end(&h, status, error);
    dlx_hub_close(&h.hub);
    if (status != DLX_OK || given.for_launcher || rank != 0) return status;
    if (given.sites > 0)
        results_print(config);
    else
        printf("results in %s/%s\n", dlx_config_run_dir(config), site);
    return DLX_OK;
}

static int run(void) {
    if (given.for_launcher) speak_to_launcher();
    if (given.site == NULL && given.sites == 0)
        return fail_use("train: --site NAME is needed, or --sites N for a job that holds them all");
    if (given.site != NULL && given.sites > 0)
        return fail_use(
            "train: --site names one site, --sites makes a job of several; give one of them");
    if (given.coordinator != NULL && given.sites > 0)
        return fail_use(
            "train: --sites makes a job with a coordinator of its own; leave --coordinator out");
    if (given.take_unsent != NULL && given.resume == NULL)
        return fail_use("train: --take-unsent goes with --resume");
    bool launched = launched_rank() >= 0;
    if (given.for_launcher) prctl(PR_SET_PDEATHSIG, SIGTERM); /* launch takes its sites with it */
    dlx_error error, cluster_error;
    dlx_cluster *cluster = NULL;
    dlx_config *config = NULL;
    /* once: it may be a pipe, or change */
    dlx_status status =
        config_read(&config, given.config.path, given.config.run_dir, given.config.sets, &error);
    if (launched) rank_watch(config, given.site);
    interrupts_catch(launched);
    if ((launched || given.sites > 0) && dlx_cluster_open(&cluster, &cluster_error) != DLX_OK) {
        status = cluster_error.status;
        error = cluster_error;
    }
    if (status == DLX_OK) status = site_train(config, cluster, &error);
    if (status != DLX_OK && given.coordinator != NULL && !given.for_launcher)
        error_name_flag(&error, "wan.coordinator", "--coordinator");
    int exit_code = status == DLX_OK ? EXIT_DONE : rank_fail(cluster, config, given.sites, &error);
    dlx_cluster_close(&cluster);
    dlx_config_close(&config);
    return exit_code;
}

const command train_command = {
    .name = "train",
    .use = "CONFIG --site NAME --coordinator HOST:PORT",
    .summary = "one site of a run; under mpirun, one rank of it",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .values = &given,
    .run = run,
};
