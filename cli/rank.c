/* SPDX-License-Identifier: Apache-2.0 */
/* A process as one rank of an MPI job: watched by a parent that reports how it ends, and one error
 * for all ranks. */
#include "cli.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* mpirun, and srun --mpi=pmix, set these before MPI starts. */
int launched_rank(void) {
    static const char *const names[] = {"PMIX_RANK", "OMPI_COMM_WORLD_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = getenv(names[i]);
        char *end;
        if (text == NULL) continue;
        long rank = strtol(text, &end, 10);
        if (end != text && *end == '\0' && rank >= 0 && rank < 1 << 20) return (int)rank;
    }
    return -1;
}

static volatile sig_atomic_t watched; /* the child's process id */

static void signal_pass(int number) {
    if (watched > 0) kill((pid_t)watched, number);
}

static void signal_report(const dlx_config *config, const char *site, int number) {
    char name[64];
    uint32_t rank = (uint32_t)launched_rank();
    snprintf(name, sizeof name, "rank %u", rank);
    if (config != NULL) dlx_config_rank_name(name, config, rank);
    char of[96] = "";
    if (site != NULL) snprintf(of, sizeof of, " of site '%s'", site);
    if (site == NULL && config != NULL)
        snprintf(of, sizeof of, " of site-%u", rank / dlx_config_ranks(config) + 1);
    char text[256];
    snprintf(text, sizeof text, "%s%s was ended by signal %d (%s)", name, of, number,
             strsignal(number));
    killed_say(text);
}

void rank_watch(const dlx_config *config, const char *site) {
    interrupts_block(true); /* until each of the two has its handlers */
    pid_t parent = getpid(), child = fork();
    if (child < 0) return; /* unwatched, then */
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(EXIT_FAILED);
        setpgid(0, 0); /* signals to the group reach it once, through its parent */
        return;
    }
    watched = child;
    struct sigaction action = {.sa_handler = signal_pass, .sa_flags = SA_RESTART};
    static const int passed[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++) sigaction(passed[i], &action, NULL);
    interrupts_block(false);
    int status;
    pid_t got;
    do got = waitpid(child, &status, 0);
    while (got < 0 && errno == EINTR);
    watched = 0;
    if (got == child && WIFEXITED(status)) _exit(WEXITSTATUS(status));
    if (got == child && WIFSIGNALED(status)) signal_report(config, site, WTERMSIG(status));
    _exit(EXIT_FAILED);
}

/* The higher the rank, the longer it waits for the others: of several that failed, the first ends
 * the job, and speaks; mpirun's SIGTERM reaches the rest a second later. */
static uint32_t patience_ms(const dlx_cluster *cluster, const dlx_error *error, int job_sites) {
    enum { SOON_MS = 2000, SAVING_MS = 60000, STEP_MS = 2500, STEPS_MAX = 4 };
    uint32_t rank = dlx_cluster_rank(cluster);
    return (job_sites > 1 && is_consequence(error->status) ? SAVING_MS : SOON_MS) +
           STEP_MS * (rank < STEPS_MAX ? rank : STEPS_MAX);
}

int rank_fail(dlx_cluster *cluster, const dlx_config *config, int job_sites, dlx_error *error) {
    int exit_code = exit_code_of(error);
    if (cluster == NULL ||
        dlx_cluster_all_failed(cluster, error, patience_ms(cluster, error, job_sites))) {
        fail_with(error);
        return exit_code;
    }
    char name[64];
    snprintf(name, sizeof name, "rank %u", dlx_cluster_rank(cluster));
    if (config != NULL) dlx_config_rank_name(name, config, dlx_cluster_rank(cluster));
    char of[32] = "";
    if (job_sites > 1 && config != NULL)
        snprintf(of, sizeof of, " of site-%u",
                 dlx_cluster_rank(cluster) / dlx_config_ranks(config) + 1);
    bool ended_by_another = dlx_cluster_rank(cluster) > 0 && is_interrupted();
    if (!ended_by_another) failure_say(error->status, "%s%s: %s", name, of, error->message);
    dlx_cluster_abort(cluster, exit_code);
    return exit_code;
}
