/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox launch: the sites and the coordinator of a run as processes of this machine. A site of
 * several ranks is an MPI job of its own, started by mpirun; with wan.link: mpi one job holds them
 * all. Children print lines for this program to read ("step SITE …", "text SITE …", "listening …");
 * their errors are kept and shown when they fail. */
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
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    ARGUMENTS_MAX = 2 * SETS_MAX + 48,
    GRACE_MS = 1500,
    JOB_GRACE_MS = 5000, /* of mpirun, which asks its ranks in turn */
    ERROR_BYTES = 2048,
    PIPES = 2
};

typedef enum child_kind { SITE, COORDINATOR, JOB /* of all sites */ } child_kind;

typedef struct child {
    child_kind kind;
    bool by_mpirun;
    char name[32];
    pid_t pid; /* 0: not running */
    int status;
    int pipes[PIPES]; /* stdout, stderr; −1: closed */
    char buffer[PIPES][1024];
    size_t used[PIPES];
    char error[ERROR_BYTES]; /* the end of what it said on stderr */
} child;

typedef struct launch {
    const char *config_path, *run_dir;
    const char **sets;
    const dlx_config *config;
    child children[SITES_MAX + 1]; /* the sites, then the coordinator; or one job */
    int count, sites;
    char program[4096]; /* this one, for mpirun */
    char names[SITES_MAX][32];
    display *display;
    char endpoint[256];
    int failed; /* the first child that did; −1 */
} launch;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* Throwaway keys of this run: RUN_DIR/keys/<name>.key and RUN_DIR/keys/roster.txt. */
static bool make_keys(const launch *l) {
    char folder[600], path[700], public_text[41];
    dlx_error error;
    snprintf(folder, sizeof folder, "%s/keys", dlx_config_run_dir(l->config));
    for (size_t i = 1; i <= strlen(folder); i++) {
        if (folder[i] != '/' && folder[i] != '\0') continue;
        char part[600];
        snprintf(part, sizeof part, "%.*s", (int)i, folder);
        if (mkdir(part, i == strlen(folder) ? 0700 : 0777) != 0 && errno != EEXIST)
            return fprintf(stderr, "dilocox: %s: can't make this folder: %s\n", part,
                           strerror(errno)),
                   false;
    }
    snprintf(path, sizeof path, "%s/roster.txt", folder);
    FILE *roster = fopen(path, "w");
    if (roster == NULL) return fprintf(stderr, "dilocox: %s: %s\n", path, strerror(errno)), false;
    bool fine = true;
    for (int i = 0; fine && i <= l->sites; i++) {
        snprintf(path, sizeof path, "%s/%s.key", folder, l->children[i].name);
        unlink(path); /* of an earlier run */
        fine = dlx_key_generate(path, public_text, &error) == DLX_OK;
        if (fine)
            fprintf(roster, "%s %s\n", l->children[i].name, public_text);
        else
            fail_with(&error);
    }
    return fclose(roster) == 0 && fine;
}

/* ---- children -------------------------------------------------------------------------------- */

static void add(const char **arguments, int *count, const char *a, const char *b) {
    arguments[(*count)++] = a;
    if (b != NULL) arguments[(*count)++] = b;
}

/* Ranks share this machine: none is bound to a core, and there may be more of them than cores. */
static void add_mpirun(const launch *l, const char **arguments, int *count, const char *ranks) {
    static const char *const words[] = {"mpirun",          "-q",        "--allow-run-as-root",
                                        "--oversubscribe", "--bind-to", "none"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) add(arguments, count, words[i], NULL);
    add(arguments, count, "-n", ranks);
    add(arguments, count, l->program, NULL);
}

/* What a launcher that started this program says about its rank is not for the sites. */
static void forget_launcher(void) {
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

static bool start(launch *l, child *c) {
    const char *arguments[ARGUMENTS_MAX];
    char key[700], roster[700], sites[16], ranks[16];
    int count = 0;
    snprintf(sites, sizeof sites, "%d", l->sites);
    snprintf(ranks, sizeof ranks, "%u",
             dlx_config_ranks(l->config) * (c->kind == JOB ? (unsigned)l->sites : 1));
    if (c->by_mpirun)
        add_mpirun(l, arguments, &count, ranks);
    else
        add(arguments, &count, "dilocox", NULL);
    add(arguments, &count, c->kind == COORDINATOR ? "coordinator" : "train", NULL);
    add(arguments, &count, l->config_path, "--for-launcher");
    if (l->run_dir != NULL) add(arguments, &count, "--run-dir", l->run_dir);
    for (int i = 0; l->sets[i] != NULL; i++) add(arguments, &count, "--set", l->sets[i]);
    snprintf(key, sizeof key, "wan.key=%s/keys/%s.key", dlx_config_run_dir(l->config), c->name);
    snprintf(roster, sizeof roster, "wan.roster=%s/keys/roster.txt", dlx_config_run_dir(l->config));
    if (c->kind != JOB && dlx_config_encrypted(l->config)) {
        add(arguments, &count, "--set", key);
        add(arguments, &count, "--set", roster);
    }
    if (c->kind == SITE) {
        add(arguments, &count, "--site", c->name);
        add(arguments, &count, "--coordinator", l->endpoint);
    } else {
        add(arguments, &count, "--sites", sites);
    }
    arguments[count] = NULL;

    int ends[PIPES][2];
    if (pipe2(ends[0], O_CLOEXEC) != 0)
        return fprintf(stderr, "dilocox: no pipe: %s\n", strerror(errno)), false;
    if (pipe2(ends[1], O_CLOEXEC) != 0) {
        close(ends[0][0]), close(ends[0][1]);
        return fprintf(stderr, "dilocox: no pipe: %s\n", strerror(errno)), false;
    }
    c->pid = fork();
    if (c->pid == 0) {
        /* the terminal's Ctrl-C reaches the launcher alone, which passes it on once */
        setpgid(0, 0);
        dup2(ends[0][1], STDOUT_FILENO);
        dup2(ends[1][1], STDERR_FILENO);
        if (c->by_mpirun) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            execvp("mpirun", (char *const *)(uintptr_t)arguments);
            static const char missing[] = "dilocox: there is no mpirun; install openmpi-bin\n";
            (void)!write(STDERR_FILENO, missing, sizeof missing - 1);
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
    return fprintf(stderr, "dilocox: can't start %s: %s\n", c->name, strerror(errno)), false;
}

/* "NAME rest": the rest, and NAME's number among the sites, or −1. */
static const char *after_site(const launch *l, const char *text, int *site, char name[32]) {
    size_t length = strcspn(text, " ");
    snprintf(name, 32, "%.*s", (int)(length < 31 ? length : 31), text);
    *site = -1;
    for (int i = 0; i < l->sites; i++)
        if (strcmp(l->names[i], name) == 0) *site = i;
    return text[length] == ' ' ? text + length + 1 : text + length;
}

static void on_line(launch *l, int index, int pipe, const char *line) {
    child *c = &l->children[index];
    char name[32];
    int site;
    if (pipe == 1) {
        size_t length = strlen(c->error);
        bool ours = strncmp(line, "dilocox: ", 9) == 0;
        if (c->by_mpirun && !ours) return; /* mpirun's own words around it */
        snprintf(c->error + length, sizeof c->error - length, "%s%s", length > 0 ? "; " : "",
                 ours ? line + 9 : line);
        /* a rank's parent says so at once; mpirun takes seconds to end, and others may fail for it
         * before */
        if (c->by_mpirun && strstr(line, " was ended by signal ") != NULL && l->failed < 0)
            l->failed = index;
    } else if (strncmp(line, "step ", 5) == 0) {
        const char *rest = after_site(l, line + 5, &site, name);
        if (site >= 0) display_step(l->display, site, rest);
    } else if (strncmp(line, "listening ", 10) == 0) {
        snprintf(l->endpoint, sizeof l->endpoint, "%s", line + 10);
    } else if (strncmp(line, "text ", 5) == 0) {
        const char *rest = after_site(l, line + 5, &site, name);
        display_text(l->display, name, rest);
    }
}

/* Takes what a pipe holds, line by line. */
static void drain(launch *l, int index, int pipe) {
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
        c->used[pipe] += (size_t)got;
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
        /* a line that long is none of ours */
        if (c->used[pipe] == sizeof c->buffer[pipe] - 1) c->used[pipe] = 0;
        memmove(buffer, line, c->used[pipe]);
    }
}

static int running(const launch *l) {
    int count = 0;
    for (int i = 0; i < l->count; i++) count += l->children[i].pid > 0;
    return count;
}

static void signal_all(const launch *l, int number, bool gently) {
    for (int i = 0; i < l->count; i++) {
        const child *c = &l->children[i];
        /* mpirun hands SIGUSR1 on and lives; on other signals it soon kills its ranks */
        if (c->pid > 0)
            kill(c->pid, c->by_mpirun && number != SIGKILL && gently ? SIGUSR1 : number);
    }
}

static void reap(launch *l) {
    for (int i = 0; i < l->count; i++) {
        child *c = &l->children[i];
        int status;
        if (c->pid <= 0 || waitpid(c->pid, &status, WNOHANG) != c->pid) continue;
        c->pid = 0;
        c->status = status;
        for (int p = 0; p < PIPES; p++) drain(l, i, p);
        if (l->failed < 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) l->failed = i;
    }
}

static void poll_once(launch *l, int timeout_ms) {
    struct pollfd fds[(SITES_MAX + 1) * PIPES];
    int owners[(SITES_MAX + 1) * PIPES];
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
            if (fds[k].revents != 0) drain(l, owners[k] / PIPES, owners[k] % PIPES);
    reap(l);
}

static void wait_for_all(launch *l, int wait_ms) {
    for (int64_t deadline_ms = now_ms() + wait_ms; running(l) > 0 && now_ms() < deadline_ms;)
        poll_once(l, 50);
}

/* Ends all that still run: they are asked first. */
static void end_all(launch *l, int number, int job_grace_ms) {
    bool jobs = l->children[0].by_mpirun;
    signal_all(l, number, true);
    wait_for_all(l, jobs ? job_grace_ms : GRACE_MS);
    if (jobs && running(l) > 0) {
        signal_all(l, SIGTERM, false);
        wait_for_all(l, JOB_GRACE_MS);
    }
    signal_all(l, SIGKILL, false);
    while (running(l) > 0) poll_once(l, 50);
}

static int report_failure(const launch *l) {
    const child *c = &l->children[l->failed];
    if (WIFSIGNALED(c->status))
        fprintf(stderr, "dilocox: %s was ended by signal %d (%s)\n", c->name, WTERMSIG(c->status),
                strsignal(WTERMSIG(c->status)));
    else
        fprintf(stderr, "dilocox: %s failed: %s\n", c->name,
                c->error[0] != '\0' ? c->error : "it said nothing");
    bool use = WIFEXITED(c->status) && WEXITSTATUS(c->status) == EXIT_USE;
    return use ? EXIT_USE : EXIT_FAILED;
}

static bool start_all(launch *l) {
    child *first = &l->children[0], *last = &l->children[l->count - 1];
    if (first->kind == JOB) return start(l, first);
    if (!start(l, last)) return false;
    while (l->endpoint[0] == '\0' && last->pid > 0 && !interrupted) poll_once(l, 100);
    for (int i = 0; i < l->sites && l->failed < 0 && !interrupted; i++)
        if (!start(l, &l->children[i])) return false;
    return true;
}

static int run(launch *l) {
    if (!start_all(l)) {
        end_all(l, SIGTERM, JOB_GRACE_MS);
        return EXIT_FAILED;
    }
    while (running(l) > 0 && l->failed < 0 && !interrupted) poll_once(l, 100);
    if (interrupted && l->failed < 0) {
        if (l->children[0].by_mpirun)
            display_text(
                l->display, "launch",
                "interrupted; ranks end their step and save. Ctrl-C again ends them at once");
        end_all(l, SIGINT, INT_MAX);
        display_close(l->display);
        for (int i = 0; i < l->count; i++)
            if (strstr(l->children[i].error, "could not be saved") != NULL)
                fprintf(stderr, "dilocox: %s: %s\n", l->children[i].name, l->children[i].error);
        fprintf(stderr, "dilocox: interrupted; what there is lies in %s\n",
                dlx_config_run_dir(l->config));
        return EXIT_FAILED;
    }
    if (l->failed >= 0) {
        wait_for_all(l, 500); /* the coordinator tells the others why before they are asked to go */
        end_all(l, SIGTERM, JOB_GRACE_MS);
        display_close(l->display);
        return report_failure(l);
    }
    display_close(l->display);
    return print_results(l->config);
}

/* Who is to be started: the sites and the coordinator, or the job that holds them all. */
static void list_children(launch *l) {
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

/* "KEY=text" as one more --set; false where the text is no number. */
static bool set_number(char assignment[64], const char **sets, const char *key, const char *text,
                       const char *name, long most) {
    int used = 0;
    long number;
    if (text == NULL) return true;
    if (!parse_number(text, name, 1, most, &number)) return false;
    while (sets[used] != NULL) used++;
    snprintf(assignment, 64, "%s=%ld", key, number);
    sets[used] = assignment; /* there is room for two more than SETS_MAX */
    sets[used + 1] = NULL;
    return true;
}

int launch_main(int count, char **arguments) {
    static launch l;
    const char *sites_text = "2", *stages_text = NULL, *replicas_text = NULL,
               *sets[SETS_MAX + 3] = {NULL};
    const char *names[SITES_MAX];
    char stages[64], replicas[64];
    int exit_code;
    long sites;
    const option_spec specs[] = {
        {"sites", "N", "how many sites; 2 unless given", &sites_text, NULL, NULL},
        {"stages", "S", "instead of site.stages: pipeline stages of a site", &stages_text, NULL,
         NULL},
        {"replicas", "R", "instead of site.replicas: copies of each stage", &replicas_text, NULL,
         NULL},
        {"run-dir", "DIR", "instead of run.dir", &l.run_dir, NULL, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, sets},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &l.config_path, 1, 1,
                        &exit_code))
        return exit_code;
    if (!parse_number(sites_text, "--sites", 1, SITES_MAX, &sites) ||
        !set_number(stages, sets, "site.stages", stages_text, "--stages", 256) ||
        !set_number(replicas, sets, "site.replicas", replicas_text, "--replicas", 1024))
        return EXIT_USE;
    dlx_config *config = load_config(l.config_path, l.run_dir, sets);
    if (config == NULL) return EXIT_USE;
    catch_interrupts(false);
    forget_launcher();
    if (dlx_config_in_process(config)) {
        exit_code = launch_threads(config, (int)sites);
        dlx_config_close(&config);
        return exit_code;
    }
    ssize_t length = readlink("/proc/self/exe", l.program, sizeof l.program - 1);
    if (length < 0)
        return fail_use("launch: can't find this program in /proc: %s", strerror(errno));
    l.config = config;
    l.sets = sets;
    l.sites = (int)sites;
    l.failed = -1;
    list_children(&l);
    for (int i = 0; i < l.sites; i++) names[i] = l.names[i];
    l.display = display_open(names, l.sites, false);
    bool keys = dlx_config_encrypted(config) && !dlx_config_one_job(config);
    exit_code = keys && !make_keys(&l) ? EXIT_FAILED : run(&l);
    dlx_config_close(&config);
    l.config = NULL;
    l.sets = NULL;
    return exit_code;
}
