/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox coordinator: rendezvous, leases and commits of a run whose sites are processes. */
#include "cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

typedef struct coordinator_arguments {
    config_arguments config;
    const char *tokens, *listen, *key, *roster;
    uint32_t sites;
    bool takeover;
    const char *without;
    bool resume;
    bool for_launcher;
} coordinator_arguments;

static coordinator_arguments given;

static const dlxi_option rows[] = {
    CONFIG_ROWS(coordinator_arguments),
    DLXI_OPTION_ROW_INTEGER(coordinator_arguments, "--sites", sites, 1, DLXI_SITES_MAX, "2",
                            "how many sites take part", .value_name = "N"),
    DLXI_OPTION_ROW_POINTER(coordinator_arguments, "--tokens", tokens, "T",
                            "instead of train.tokens: the run ends after so many; needed if there "
                            "is no CONFIG"),
    DLXI_OPTION_ROW_POINTER(
        coordinator_arguments, "--listen", listen, "HOST:PORT",
        "instead of wan.coordinator; HOST may be an interface's name; port 0: any "
        "free one"),
    DLXI_OPTION_ROW_POINTER(coordinator_arguments, "--key", key, "FILE", "instead of wan.key"),
    DLXI_OPTION_ROW_POINTER(coordinator_arguments, "--roster", roster, "FILE",
                            "instead of wan.roster"),
    DLXI_OPTION_ROW_BOOLEAN(
        coordinator_arguments, "--takeover", takeover, "false",
        "go on with a run whose coordinator.db is lost or was outrun, from what "
        "its sites have"),
    DLXI_OPTION_ROW_POINTER(
        coordinator_arguments, "--without", without, "SITES",
        "with --takeover: do not wait for these sites (names, with commas); what they trained or "
        "committed since is given up, and they can't come back"),
    DLXI_OPTION_ROW_BOOLEAN(
        coordinator_arguments, "--resume", resume, "false",
        "go on from the snapshots of sites that are started with --resume, also if "
        "coordinator.db is there"),
    FOR_LAUNCHER_ROW(coordinator_arguments),
};

static void on_listening(void *context, const char *endpoint) {
    (void)context;
    printf("listening %s\n", endpoint);
    fflush(stdout);
}

static void on_event(void *context, const dlx_event *event) {
    (void)context;
    if (event->kind != DLX_EVENT_MESSAGE) return;
    printf("%s%s\n", given.for_launcher ? "text coordinator " : "", event->text);
    fflush(stdout);
}

/* Sets an option to what the flag has; false, with a message. */
static bool flag_set(dlx_config *config, const char *key, const char *flag, const char *value) {
    char assignment[1200], begin[64]; /* longer than any option may be */
    dlx_error error;
    if (value == NULL) return true;
    snprintf(assignment, sizeof assignment, "%s=%s", key, value);
    if (dlx_config_set(config, assignment, &error) == DLX_OK &&
        dlx_config_check(config, &error) == DLX_OK)
        return true;
    snprintf(begin, sizeof begin, "%s: ", key);
    const char *what = strstr(error.message, begin);
    if (what != NULL)
        fail_use("%s: %s", flag, what + strlen(begin));
    else
        fail_with(&error);
    return false;
}

/* The file's, or without one the defaults, changed by flags. */
static dlx_config *config_make(void) {
    if (given.config.path == NULL && given.tokens == NULL) {
        fail_use("coordinator: give CONFIG, or for training loops of your own --tokens");
        return NULL;
    }
    dlx_config *config = config_load(&given.config);
    if (config == NULL) return NULL;
    if (!flag_set(config, "train.tokens", "--tokens", given.tokens) ||
        !flag_set(config, "wan.key", "--key", given.key) ||
        !flag_set(config, "wan.roster", "--roster", given.roster))
        dlx_config_close(&config);
    return config;
}

static int results_say(const dlx_config *config) {
    if (given.config.path != NULL) return results_print(config);
    printf("the run is complete; its summary is %s/summary.json\n", dlx_config_run_dir(config));
    return EXIT_DONE;
}

static int run(void) {
    if (given.for_launcher) speak_to_launcher();
    dlx_config *config = config_make();
    if (config == NULL) return EXIT_USE;
    if ((given.without != NULL && !given.takeover) || (given.resume && given.takeover)) {
        fail_use(given.resume ? "coordinator: --resume and --takeover exclude each other"
                              : "coordinator: --without goes with --takeover");
        dlx_config_close(&config);
        return EXIT_USE;
    }
    if (given.for_launcher) prctl(PR_SET_PDEATHSIG, SIGTERM); /* launch takes it with it */
    interrupts_catch(false);
    if (dlx_config_one_job(config) || dlx_config_in_process(config)) {
        fail_use("coordinator: wan.link is %s, whose coordinator is part of launch or train "
                 "--sites; set zmq",
                 dlx_config_link(config));
        dlx_config_close(&config);
        return EXIT_USE;
    }
    dlx_error error;
    dlx_coordinate_options options = DLX_COORDINATE_OPTIONS_INIT;
    options.sites = given.sites;
    options.coordinator = given.listen;
    options.on_listening = on_listening;
    options.on_event = on_event;
    options.interrupted = &interrupted;
    if (given.takeover) options.takeover_without = given.without != NULL ? given.without : "";
    options.resumes = given.resume;
    options.own_loops = given.config.path == NULL;
    options.unstored = given.for_launcher; /* launch ends the sites with it */
    if (!given.for_launcher) release_on_sigterm();
    options.released = &released;
    dlx_status status = dlx_coordinate(config, &options, &error);
    if (status != DLX_OK && given.listen != NULL)
        error_name_flag(&error, "wan.coordinator", "--listen");
    if (status != DLX_OK) error_name_flag(&error, "sites", "--sites");
    int exit_code = status == DLX_OK ? EXIT_DONE : fail_with(&error);
    if (status == DLX_OK && !given.for_launcher) results_say(config);
    dlx_config_close(&config);
    return exit_code;
}

const command coordinator_command = {
    .name = "coordinator",
    .use = "[CONFIG] --sites N",
    .summary = "rendezvous, leases and commits of a run",
    .details =
        "  Sites of 'dilocox train' have the same CONFIG. For those of libdilocox and Python, "
        "which\n"
        "  have none, --tokens, --listen, --key, --roster and --run-dir say all that is needed;\n"
        "  --set takes the options of wan, too.\n\n"
        "  The run is kept in RUN_DIR/coordinator.db until it is over. Killed, stopped, or ended\n"
        "  because that file could not be written, the coordinator goes on with the run when\n"
        "  the same command is given again; its sites wait for it up to wan.orphan_s. SIGINT\n"
        "  (Ctrl-C) ends the run for all, SIGTERM stops the coordinator alone. If that file is\n"
        "  lost, --takeover goes on from what the sites have.\n",
    .arguments = COMMAND_TABLE(rows),
    .values = &given,
    .run = run,
};
