/* dilocox train: one site of a run. dilocox coordinator: its other end. */
#include "cli.h"

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>

typedef struct progress {
    display *display;
    bool for_launcher; /* lines for a program to read: "step …", "text …" */
    double printed_s;
} progress;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void say(progress *p, const char *site, const char *text) {
    if (p->for_launcher) {
        printf("text %s\n", text);
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
        snprintf(line, sizeof line, "joined: %llu sites", (unsigned long long)event->step);
        say(p, event->site, line);
        break;
    case DLX_EVENT_EVALUATED:
        snprintf(line, sizeof line, "validation loss at the %s (own part): %.4f", event->text, event->loss);
        say(p, event->site, line);
        break;
    case DLX_EVENT_STEP:
        format_step(line, event);
        if (!p->for_launcher) {
            display_step(p->display, 0, line);
        } else if (now_s() - p->printed_s > 0.1) {
            p->printed_s = now_s();
            printf("step %s\n", line);
            fflush(stdout);
        }
        break;
    }
}

/* A site that launch started ends with it. */
static void begin(bool for_launcher) {
    if (for_launcher) prctl(PR_SET_PDEATHSIG, SIGTERM);
    catch_interrupts();
}

int train_main(int count, char **arguments) {
    const char *path, *site = NULL, *coordinator = NULL, *run_dir = NULL, *sets[SETS_MAX + 1] = {NULL};
    bool for_launcher = false;
    int exit_code;
    const option_spec specs[] = {
        {"site", "NAME", "this site's name; the roster's for its key", &site, NULL, NULL},
        {"coordinator", "HOST:PORT", "instead of wan.coordinator", &coordinator, NULL, NULL},
        {"run-dir", "DIR", "instead of run.dir", &run_dir, NULL, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, sets},
        {"for-launcher", NULL, "print progress for a program to read", NULL, &for_launcher, NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &path, 1, 1, &exit_code))
        return exit_code;
    if (site == NULL) return fail_use("train: --site NAME is needed");
    dlx_config *config = load_config(path, run_dir, sets);
    if (config == NULL) return EXIT_USE;
    begin(for_launcher);
    dlx_error error;
    progress p = {.display = for_launcher ? NULL : display_open(&site, 1), .for_launcher = for_launcher};
    dlx_train_options options = DLX_TRAIN_OPTIONS_INIT;
    options.site = site;
    options.coordinator = coordinator;
    options.on_event = on_event;
    options.context = &p;
    options.interrupted = &interrupted;
    dlx_status status = dlx_train(config, &options, &error);
    display_close(p.display);
    exit_code = status == DLX_OK ? EXIT_DONE : fail_with(&error);
    if (status == DLX_OK && !for_launcher) printf("results in %s/%s\n", dlx_config_run_dir(config), site);
    dlx_config_close(&config);
    return exit_code;
}

static void on_listening(void *context, const char *endpoint) {
    (void)context;
    printf("listening %s\n", endpoint);
    fflush(stdout);
}

static void on_coordinator_event(void *context, const dlx_event *event) {
    const bool *for_launcher = context;
    if (event->kind != DLX_EVENT_MESSAGE) return;
    printf("%s%s\n", *for_launcher ? "text " : "", event->text);
    fflush(stdout);
}

int coordinator_main(int count, char **arguments) {
    const char *path, *sites_text = "2", *listen = NULL, *run_dir = NULL, *sets[SETS_MAX + 1] = {NULL};
    bool for_launcher = false;
    int exit_code;
    long sites;
    const option_spec specs[] = {
        {"sites", "N", "how many sites take part; 2 unless given", &sites_text, NULL, NULL},
        {"listen", "HOST:PORT", "instead of wan.coordinator; port 0: any free one", &listen, NULL, NULL},
        {"run-dir", "DIR", "instead of run.dir", &run_dir, NULL, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, sets},
        {"for-launcher", NULL, "end when the starting process does", NULL, &for_launcher, NULL},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &path, 1, 1, &exit_code))
        return exit_code;
    if (!parse_number(sites_text, "--sites", 1, SITES_MAX, &sites)) return EXIT_USE;
    dlx_config *config = load_config(path, run_dir, sets);
    if (config == NULL) return EXIT_USE;
    begin(for_launcher);
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
