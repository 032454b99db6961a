/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox launch: the sites and the coordinator of a run as processes of this machine. A site of
 * several ranks is an MPI job of its own, started by mpirun; with wan.link: mpi one job holds them
 * all. Children print lines for this program to read (cli.h). */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ARGUMENTS_MAX = 48,
    SETS_ROOM = SETS_MAX + 3, /* with those of --stages and --replicas */
    GRACE_MS = 1500,
    STOP_MS = 30000,     /* of sites that the coordinator stops: they end their step and save */
    JOB_GRACE_MS = 5000, /* of mpirun, which asks its ranks in turn */
    REASON_BYTES = 2048,
    PIPES = 2
};

typedef struct launch_arguments {
    config_arguments config;
    int sites, stages, replicas;
    bool resume;
} launch_arguments;

static launch_arguments given;

static const dlxi_option rows[] = {
    CONFIG_ROWS(launch_arguments),
    DLXI_OPTION_ROW_INTEGER(launch_arguments, "--sites", sites, 1, DLXI_SITES_MAX, "2",
                            "how many sites", .value_name = "N"),
    DLXI_OPTION_ROW_INTEGER(launch_arguments, "--stages", stages, 0, DLXI_STAGES_MAX, "0",
                            "pipeline stages of a site; 0: site.stages", .value_name = "S"),
    DLXI_OPTION_ROW_INTEGER(launch_arguments, "--replicas", replicas, 0, DLXI_RANKS_MAX, "0",
                            "copies of each stage; 0: site.replicas", .value_name = "R"),
    DLXI_OPTION_ROW_BOOLEAN(launch_arguments, "--resume", resume, "false",
                            "go on from the newest snapshots in RUN_DIR"),
};

typedef enum child_kind { SITE, COORDINATOR, JOB /* of all sites */ } child_kind;

typedef struct child {
    child_kind kind;
    bool by_mpirun;
    char name[SITE_BYTES];
    pid_t pid; /* 0: not running */
    int status;
    int pipes[PIPES]; /* stdout, stderr; −1: closed */
    char buffer[PIPES][1024];
    size_t used[PIPES];
    char reason[REASON_BYTES]; /* its `failed` and `killed` lines */
    char noise[REASON_BYTES];  /* the beginning of its stderr: mpirun's words, or a crash's */
    bool has_cause;            /* it failed by itself, not because of a person or another process */
} child;

typedef struct launch {
    const char *sets[SETS_ROOM];
    char stages[64], replicas[64]; /* two of these */
    const dlx_config *config;
    child children[DLXI_SITES_MAX + 1]; /* the sites, then the coordinator; or one job */
    int count, sites;
    char program[4096]; /* this one, for mpirun */
    char names[DLXI_SITES_MAX][SITE_BYTES];
    display *display;
    launch_files files;
    bool begun; /* all sites have joined */
    char endpoint[256];
    char *unsent; /* of earlier sites, for all sites of this run; NULL: nothing */
    int failed;   /* the first child that did; −1 */
} launch;

/* ---- children -------------------------------------------------------------------------------- */

static void words_append(const char **arguments, int *count, const char *a, const char *b) {
    arguments[(*count)++] = a;
    if (b != NULL) arguments[(*count)++] = b;
}

/* Ranks share this machine: none is bound to a core, and they may outnumber the cores. */
static void mpirun_append(const launch *l, const char **arguments, int *count, const char *ranks) {
    static const char *const words[] = {"mpirun",          "-q",        "--allow-run-as-root",
                                        "--oversubscribe", "--bind-to", "none"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        words_append(arguments, count, words[i], NULL);
    words_append(arguments, count, "-n", ranks);
    words_append(arguments, count, l->program, NULL);
}

/* Removes the variables of the launcher that started this program, if any: they name its rank. */
static void launcher_forget(void) {
    static const char *const prefixes[] = {"PMIX_", "PMI_", "OMPI_"};
    extern char **environ;
    if (launched_rank() < 0) return;
    for (char **at = environ; *at != NULL;) {
        bool theirs = false;
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
            theirs = theirs || strncmp(*at, prefixes[i], strlen(prefixes[i])) == 0;
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(*at, "="), *at);
        if (theirs && unsetenv(name) == 0)
            at = environ; /* it may have moved */
        else
            at++;
    }
}

static bool child_start(launch *l, child *c) {
    const char *arguments[ARGUMENTS_MAX];
    char config[LAUNCH_FILE_BYTES], key[LAUNCH_FILE_BYTES + 16], roster[LAUNCH_FILE_BYTES + 16];
    char path[LAUNCH_FILE_BYTES], sites[16], ranks[16];
    int count = 0;
    snprintf(sites, sizeof sites, "%d", l->sites);
    snprintf(ranks, sizeof ranks, "%u",
             dlx_config_ranks(l->config) * (c->kind == JOB ? (unsigned)l->sites : 1));
    if (c->by_mpirun)
        mpirun_append(l, arguments, &count, ranks);
    else
        words_append(arguments, &count, "dilocox", NULL);
    words_append(arguments, &count, c->kind == COORDINATOR ? "coordinator" : "train", NULL);
    launch_files_config(config, &l->files);
    words_append(arguments, &count, "--for-launcher", NULL);
    /* the file has it; this is for people who list processes */
    words_append(arguments, &count, "--run-dir", dlx_config_run_dir(l->config));
    launch_files_key(path, &l->files, c->name);
    snprintf(key, sizeof key, "wan.key=%s", path);
    launch_files_roster(path, &l->files);
    snprintf(roster, sizeof roster, "wan.roster=%s", path);
    if (c->kind != JOB && dlx_config_encrypted(l->config)) {
        words_append(arguments, &count, "--set", key);
        words_append(arguments, &count, "--set", roster);
    }
    if (c->kind == SITE) {
        words_append(arguments, &count, "--site", c->name);
        words_append(arguments, &count, "--coordinator", l->endpoint);
    } else {
        words_append(arguments, &count, "--sites", sites);
    }
    if (c->kind != COORDINATOR && given.resume) words_append(arguments, &count, "--resume", NULL);
    if (c->kind != COORDINATOR && l->unsent != NULL)
        words_append(arguments, &count, "--take-unsent", l->unsent);
    words_append(arguments, &count, "--", config);
    arguments[count] = NULL;

    int ends[PIPES][2];
    if (pipe2(ends[0], O_CLOEXEC) != 0)
        return failure_say(DLX_SYSTEM, "cannot make a pipe: %s", strerror(errno)), false;
    if (pipe2(ends[1], O_CLOEXEC) != 0) {
        close(ends[0][0]), close(ends[0][1]);
        return failure_say(DLX_SYSTEM, "cannot make a pipe: %s", strerror(errno)), false;
    }
    pid_t launcher = getpid();
    c->pid = fork();
    if (c->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM); /* this program's end is theirs, too */
        if (getppid() != launcher) _exit(EXIT_FAILED);
        /* the terminal's Ctrl-C reaches the launcher alone, which passes it on once */
        setpgid(0, 0);
        interrupts_block(false);
        dup2(ends[0][1], STDOUT_FILENO);
        dup2(ends[1][1], STDERR_FILENO);
        if (c->by_mpirun) {
            execvp("mpirun", (char *const *)(uintptr_t)arguments);
            dprintf(STDOUT_FILENO, "failed %d mpirun: %s; install openmpi-bin\n", DLX_SYSTEM,
                    strerror(errno));
        } else {
            execv("/proc/self/exe", (char *const *)(uintptr_t)arguments);
        }
        _exit(127);
    }
    for (int p = 0; p < PIPES; p++) {
        close(ends[p][1]);
        c->pipes[p] = ends[p][0];
        fcntl(ends[p][0], F_SETFL, O_NONBLOCK);
    }
    if (c->pid > 0) return true;
    c->pid = 0;
    return failure_say(DLX_SYSTEM, "cannot start %s: %s", c->name, strerror(errno)), false;
}

/* "NAME rest": the rest, and NAME's number among the sites, or −1. */
static const char *site_parse(const launch *l, const char *text, int *site, char name[SITE_BYTES]) {
    size_t length = strcspn(text, " ");
    snprintf(name, SITE_BYTES, "%.*s", (int)length, text);
    *site = -1;
    for (int i = 0; i < l->sites; i++)
        if (strcmp(l->names[i], name) == 0) *site = i;
    return text[length] == ' ' ? text + length + 1 : text + length;
}

/* list ← list; text */
static void reason_append(char list[REASON_BYTES], const char *text) {
    size_t length = strlen(list);
    snprintf(list + length, REASON_BYTES - length, "%s%s", length > 0 ? "; " : "", text);
}

/* The launch fails with it; or the coordinator judges whether the run goes on without this site. */
static void on_failed(launch *l, int index) {
    bool spared =
        l->children[index].kind == SITE && l->begun && dlx_config_sites_min(l->config) > 0;
    if (!spared && l->failed < 0) l->failed = index;
}

static void on_line(launch *l, int index, int pipe, const char *line) {
    child *c = &l->children[index];
    char name[SITE_BYTES], *text;
    const char *rest = line + strcspn(line, " ") + (strchr(line, ' ') != NULL);
    int site;
    if (pipe == 1) {
        reason_append(c->noise, line);
    } else if (strncmp(line, "step ", 5) == 0) {
        rest = site_parse(l, rest, &site, name);
        if (site >= 0) display_step(l->display, site, rest);
    } else if (strncmp(line, "text ", 5) == 0) {
        rest = site_parse(l, rest, &site, name);
        display_text(l->display, name, rest);
    } else if (strcmp(line, "begun") == 0) {
        l->begun = true;
        launch_files_remove(&l->files);
    } else if (strncmp(line, "listening ", 10) == 0) {
        snprintf(l->endpoint, sizeof l->endpoint, "%s", rest);
    } else if (strncmp(line, "failed ", 7) == 0) {
        c->has_cause = c->has_cause || !is_consequence((dlx_status)strtol(rest, &text, 10));
        reason_append(c->reason, text + (*text == ' '));
    } else if (strncmp(line, "killed ", 7) == 0) {
        reason_append(c->reason, rest);
        /* mpirun takes seconds to end, and other children may fail because of it before */
        on_failed(l, index);
    }
}

/* Takes what a pipe holds, line by line. */
static void pipe_drain(launch *l, int index, int pipe) {
    child *c = &l->children[index];
    while (c->pipes[pipe] >= 0) {
        char *buffer = c->buffer[pipe];
        ssize_t got = read(c->pipes[pipe], buffer + c->used[pipe],
                           sizeof c->buffer[pipe] - 1 - c->used[pipe]);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            close(c->pipes[pipe]);
            c->pipes[pipe] = -1;
            return;
        }
        /* lines are strings, and a library may write a zero byte */
        for (char *byte = buffer + c->used[pipe]; got-- > 0; c->used[pipe]++, byte++)
            if (*byte == '\0') *byte = '?';
        buffer[c->used[pipe]] = '\0';
        char *line = buffer, *end;
        while ((end = strchr(line, '\n')) != NULL) {
            *end = '\0';
            /* mpirun gives its ranks a terminal */
            if (end > line && end[-1] == '\r') end[-1] = '\0';
            on_line(l, index, pipe, line);
            line = end + 1;
        }
        c->used[pipe] = strlen(line);
        /* none of ours is this long */
        if (c->used[pipe] == sizeof c->buffer[pipe] - 1) c->used[pipe] = 0;
        memmove(buffer, line, c->used[pipe]);
    }
}

static int running_count(const launch *l) {
    int count = 0;
    for (int i = 0; i < l->count; i++) count += l->children[i].pid > 0;
    return count;
}

static void children_signal(const launch *l, int number, bool gently) {
    for (int i = 0; i < l->count; i++) {
        const child *c = &l->children[i];
        /* mpirun passes SIGUSR1 on and lives; on other signals it soon kills its ranks */
        if (c->pid > 0)
            kill(c->pid, c->by_mpirun && number != SIGKILL && gently ? SIGUSR1 : number);
    }
}

static void children_reap(launch *l) {
    for (int i = 0; i < l->count; i++) {
        child *c = &l->children[i];
        int status;
        if (c->pid <= 0 || waitpid(c->pid, &status, WNOHANG) != c->pid) continue;
        c->pid = 0;
        c->status = status;
        for (int p = 0; p < PIPES; p++) pipe_drain(l, i, p);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) on_failed(l, i);
    }
}

static void pipes_poll(launch *l, int timeout_ms) {
    struct pollfd fds[(DLXI_SITES_MAX + 1) * PIPES];
    int owners[(DLXI_SITES_MAX + 1) * PIPES];
    nfds_t count = 0;
    for (int i = 0; i < l->count; i++) {
        for (int p = 0; p < PIPES; p++) {
            if (l->children[i].pipes[p] < 0) continue;
            owners[count] = i * PIPES + p;
            fds[count++] = (struct pollfd){.fd = l->children[i].pipes[p], .events = POLLIN};
        }
    }
    if (poll(fds, count, timeout_ms) > 0)
        for (nfds_t k = 0; k < count; k++)
            if (fds[k].revents != 0) pipe_drain(l, owners[k] / PIPES, owners[k] % PIPES);
    children_reap(l);
}

static void children_wait(launch *l, int wait_ms) {
    for (double deadline_s = now_s() + 1e-3 * wait_ms;
         running_count(l) > 0 && now_s() < deadline_s;)
        pipes_poll(l, 50);
}

/* Ends all that still run; asks them first. */
static void children_end(launch *l, int number, int job_grace_ms) {
    bool jobs = l->children[0].by_mpirun;
    children_signal(l, number, true);
    children_wait(l, jobs ? job_grace_ms : GRACE_MS);
    if (jobs && running_count(l) > 0) {
        children_signal(l, SIGTERM, false);
        children_wait(l, JOB_GRACE_MS);
    }
    children_signal(l, SIGKILL, false);
    while (running_count(l) > 0) pipes_poll(l, 50);
}

/* The coordinator ends the run for all, so that their snapshots are of one round. A second Ctrl-C
 * ends this program, and they with it. */
static void run_stop(launch *l) {
    child *coordinator = &l->children[l->count - 1];
    if (l->begun && coordinator->kind == COORDINATOR && coordinator->pid > 0) {
        kill(coordinator->pid, SIGINT);
        children_wait(l, STOP_MS);
    }
    children_end(l, SIGINT, INT_MAX);
}

/* Why a child ended. */
static void failure_print(const child *c) {
    const char *why = c->reason[0] != '\0' ? c->reason : c->noise;
    if (WIFSIGNALED(c->status) && c->reason[0] == '\0')
        fprintf(stderr, "dilocox: %s was ended by signal %d (%s)%s%s\n", c->name,
                WTERMSIG(c->status), strsignal(WTERMSIG(c->status)), why[0] != '\0' ? ": " : "",
                why);
    else
        fprintf(stderr, "dilocox: %s failed: %s\n", c->name,
                why[0] != '\0' ? why : "it gave no reason");
}

/* The first child that failed; if it failed because a site did, that site, which knows more. */
static const child *culprit_find(const launch *l) {
    const child *first = &l->children[l->failed];
    for (int i = 0; i < l->sites; i++) {
        char prefix[SITE_BYTES + 32];
        int length = snprintf(prefix, sizeof prefix, "site '%s' failed: ", l->names[i]);
        if (strncmp(first->reason, prefix, (size_t)length) == 0 && l->children[i].reason[0] != '\0')
            return &l->children[i];
    }
    return first;
}

/* Not by a signal of this program's. */
static bool has_crashed(const child *c) {
    if (c->by_mpirun || !WIFSIGNALED(c->status)) return false;
    int number = WTERMSIG(c->status);
    return number != SIGINT && number != SIGTERM && number != SIGKILL;
}

static bool children_start(launch *l) {
    child *first = &l->children[0], *last = &l->children[l->count - 1];
    if (first->kind == JOB) return child_start(l, first);
    if (!child_start(l, last)) return false;
    while (l->endpoint[0] == '\0' && last->pid > 0 && !interrupted) pipes_poll(l, 100);
    for (int i = 0; i < l->sites && l->failed < 0 && !interrupted; i++)
        if (!child_start(l, &l->children[i])) return false;
    return true;
}

/* Every child has two pipes here. Raises the soft limit of descriptors if the hard one allows. */
static bool descriptors_have(const launch *l) {
    enum { OWN = 16 };
    struct rlimit limit;
    rlim_t needed = (rlim_t)(PIPES * l->count + OWN);
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= needed) return true;
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = needed;
    if (needed <= limit.rlim_max && setrlimit(RLIMIT_NOFILE, &limit) == 0) return true;
    failure_say(
        DLX_SYSTEM,
        "launch: %d sites need %llu file descriptors here, and %llu are allowed; allow more "
        "(ulimit -n)",
        l->sites, (unsigned long long)needed, (unsigned long long)before);
    return false;
}

static int children_run(launch *l) {
    if (!descriptors_have(l)) return EXIT_FAILED;
    if (!children_start(l)) {
        children_end(l, SIGTERM, JOB_GRACE_MS);
        return EXIT_FAILED;
    }
    while (running_count(l) > 0 && l->failed < 0 && !interrupted) pipes_poll(l, 100);
    if (interrupted && l->failed < 0) {
        if (l->children[0].by_mpirun)
            display_text(
                l->display, "launch",
                "interrupted; ranks end their step and save. Ctrl-C again ends them at once");
        run_stop(l);
        display_close(l->display);
        for (int i = 0; i < l->count; i++)
            if (l->children[i].has_cause || has_crashed(&l->children[i]))
                failure_print(&l->children[i]);
        return interruption_print(l->config, l->begun);
    }
    if (l->failed >= 0) {
        children_wait(l, 500); /* the coordinator notifies the others first */
        children_end(l, SIGTERM, JOB_GRACE_MS);
        display_close(l->display);
        const child *c = culprit_find(l);
        failure_print(c);
        for (int i = 0; i < l->sites && c->kind == SITE; i++) /* a full disk is of several */
            if (l->children[i].has_cause && strstr(l->children[i].reason, c->reason) == NULL)
                failure_print(&l->children[i]);
        bool use = WIFEXITED(c->status) && WEXITSTATUS(c->status) == EXIT_USE;
        return use ? EXIT_USE : EXIT_FAILED;
    }
    display_close(l->display);
    return results_print(l->config);
}

/* What to start: the sites and the coordinator, or the job that holds them all. */
static void children_list(launch *l) {
    bool one_job = dlx_config_one_job(l->config),
         by_mpirun = one_job || dlx_config_ranks(l->config) > 1;
    l->count = one_job ? 1 : l->sites + 1;
    for (int i = 0; i < l->sites; i++) snprintf(l->names[i], sizeof l->names[i], "site-%d", i + 1);
    for (int i = 0; i < l->count; i++) {
        child *c = &l->children[i];
        c->kind = one_job ? JOB : i < l->sites ? SITE : COORDINATOR;
        c->by_mpirun = by_mpirun && c->kind != COORDINATOR;
        const char *name = c->kind == SITE  ? l->names[i]
                           : c->kind == JOB ? "the job"
                                            : "coordinator";
        snprintf(c->name, sizeof c->name, "%s", name);
        c->pipes[0] = c->pipes[1] = -1;
    }
}

/* Sets of the command line, then those that --stages and --replicas stand for. */
static void sets_list(launch *l) {
    int used = 0;
    for (; given.config.sets[used] != NULL; used++) l->sets[used] = given.config.sets[used];
    snprintf(l->stages, sizeof l->stages, "site.stages=%d", given.stages);
    snprintf(l->replicas, sizeof l->replicas, "site.replicas=%d", given.replicas);
    if (given.stages > 0) l->sets[used++] = l->stages;
    if (given.replicas > 0) l->sets[used++] = l->replicas;
}

static int processes_launch(launch *l) {
    const char *names[DLXI_SITES_MAX];
    if (readlink("/proc/self/exe", l->program, sizeof l->program - 1) < 0) {
        failure_say(DLX_SYSTEM, "launch: cannot find this program in /proc: %s", strerror(errno));
        return EXIT_FAILED;
    }
    l->failed = -1;
    children_list(l);
    for (int i = 0; i < l->sites; i++) names[i] = l->names[i];
    l->display = display_open(names, l->sites, false);
    bool keys = dlx_config_encrypted(l->config) && !dlx_config_one_job(l->config);
    l->files.name_count = l->count;
    for (int i = 0; i < l->count; i++) l->files.names[i] = l->children[i].name;
    int exit_code = EXIT_FAILED;
    if (launch_files_make(&l->files, l->config, keys)) exit_code = children_run(l);
    launch_files_remove(&l->files);
    return exit_code;
}

static int run(void) {
    static launch l;
    dlx_error error;
    dlx_config *config = NULL;
    sets_list(&l);
    if (config_read(&config, given.config.path, given.config.run_dir, l.sets, &error) != DLX_OK)
        return fail_with(&error);
    interrupts_catch(false);
    launcher_forget();
    l.config = config;
    l.sites = given.sites;
    int exit_code = EXIT_FAILED;
    if (!given.resume || launch_unsent(&l.unsent, dlx_config_run_dir(config), l.sites))
        exit_code = dlx_config_in_process(config)
                        ? threads_launch(config, l.sites, given.resume ? "" : NULL, l.unsent)
                        : processes_launch(&l);
    free(l.unsent);
    l.unsent = NULL;
    dlx_config_close(&config);
    l.config = NULL;
    return exit_code;
}

const command launch_command = {
    .name = "launch",
    .use = "CONFIG --sites N [--stages S] [--replicas R]",
    .summary = "a whole run on this machine: N sites and a coordinator",
    .arguments = COMMAND_TABLE(rows),
    .needed = 1,
    .values = &given,
    .run = run,
};
