/* dilocox launch: the sites and the coordinator of a run as processes of this machine. Children print lines for this
 * program to read ("step …", "text …", "listening …"); their errors are kept and shown when they fail. */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 2 * SETS_MAX + 32, GRACE_MS = 1500, ERROR_BYTES = 2048, PIPES = 2 };

typedef struct child {
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
    child children[SITES_MAX + 1]; /* the coordinator is the last */
    int sites;
    display *display;
    char endpoint[256];
    int failed; /* the first child that did; −1 */
} launch;

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- keys ------------------------------------------------------------------------------------------------------ */

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
            return fprintf(stderr, "dilocox: %s: can't make this folder: %s\n", part, strerror(errno)), false;
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

/* ---- children -------------------------------------------------------------------------------------------------- */

static void add(const char **arguments, int *count, const char *a, const char *b) {
    arguments[(*count)++] = a;
    if (b != NULL) arguments[(*count)++] = b;
}

static bool start(launch *l, child *c, bool is_coordinator) {
    const char *arguments[ARGUMENTS_MAX];
    char key[700], roster[700], sites[16];
    int count = 0;
    add(arguments, &count, "dilocox", is_coordinator ? "coordinator" : "train");
    add(arguments, &count, l->config_path, NULL);
    add(arguments, &count, "--for-launcher", NULL);
    if (l->run_dir != NULL) add(arguments, &count, "--run-dir", l->run_dir);
    for (int i = 0; l->sets[i] != NULL; i++) add(arguments, &count, "--set", l->sets[i]);
    snprintf(key, sizeof key, "wan.key=%s/keys/%s.key", dlx_config_run_dir(l->config), c->name);
    snprintf(roster, sizeof roster, "wan.roster=%s/keys/roster.txt", dlx_config_run_dir(l->config));
    if (dlx_config_encrypted(l->config)) {
        add(arguments, &count, "--set", key);
        add(arguments, &count, "--set", roster);
    }
    snprintf(sites, sizeof sites, "%d", l->sites);
    if (is_coordinator) {
        add(arguments, &count, "--sites", sites);
    } else {
        add(arguments, &count, "--site", c->name);
        add(arguments, &count, "--coordinator", l->endpoint);
    }
    arguments[count] = NULL;

    int ends[PIPES][2];
    if (pipe2(ends[0], O_CLOEXEC) != 0) return fprintf(stderr, "dilocox: no pipe: %s\n", strerror(errno)), false;
    if (pipe2(ends[1], O_CLOEXEC) != 0) {
        close(ends[0][0]), close(ends[0][1]);
        return fprintf(stderr, "dilocox: no pipe: %s\n", strerror(errno)), false;
    }
    c->pid = fork();
    if (c->pid == 0) {
        setpgid(0, 0); /* the terminal's Ctrl-C reaches the launcher alone, which passes it on once */
        dup2(ends[0][1], STDOUT_FILENO);
        dup2(ends[1][1], STDERR_FILENO);
        execv("/proc/self/exe", (char *const *)(uintptr_t)arguments);
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

static void on_line(launch *l, int index, int pipe, const char *line) {
    child *c = &l->children[index];
    if (pipe == 1) {
        size_t length = strlen(c->error);
        const char *text = strncmp(line, "dilocox: ", 9) == 0 ? line + 9 : line;
        snprintf(c->error + length, sizeof c->error - length, "%s%s", length > 0 ? "; " : "", text);
    } else if (strncmp(line, "step ", 5) == 0 && index < l->sites) {
        display_step(l->display, index, line + 5);
    } else if (strncmp(line, "listening ", 10) == 0) {
        snprintf(l->endpoint, sizeof l->endpoint, "%s", line + 10);
    } else if (strncmp(line, "text ", 5) == 0) {
        display_text(l->display, c->name, line + 5);
    }
}

/* Takes what a pipe holds, line by line. */
static void drain(launch *l, int index, int pipe) {
    child *c = &l->children[index];
    while (c->pipes[pipe] >= 0) {
        char *buffer = c->buffer[pipe];
        ssize_t got = read(c->pipes[pipe], buffer + c->used[pipe], sizeof c->buffer[pipe] - 1 - c->used[pipe]);
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
            on_line(l, index, pipe, line);
            line = end + 1;
        }
        c->used[pipe] = strlen(line);
        if (c->used[pipe] == sizeof c->buffer[pipe] - 1) c->used[pipe] = 0; /* a line that long is none of ours */
        memmove(buffer, line, c->used[pipe]);
    }
}

static int running(const launch *l) {
    int count = 0;
    for (int i = 0; i <= l->sites; i++) count += l->children[i].pid > 0;
    return count;
}

static void signal_all(const launch *l, int number) {
    for (int i = 0; i <= l->sites; i++)
        if (l->children[i].pid > 0) kill(l->children[i].pid, number);
}

static void reap(launch *l) {
    for (int i = 0; i <= l->sites; i++) {
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
    for (int i = 0; i <= l->sites; i++) {
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

/* Ends all that still run: they are asked first. */
static void end_all(launch *l, int number) {
    int64_t deadline_ms = now_ms() + GRACE_MS;
    signal_all(l, number);
    while (running(l) > 0 && now_ms() < deadline_ms) poll_once(l, 50);
    signal_all(l, SIGKILL);
    while (running(l) > 0) poll_once(l, 50);
}

static int report_failure(const launch *l) {
    const child *c = &l->children[l->failed];
    if (WIFSIGNALED(c->status))
        fprintf(stderr, "dilocox: %s was ended by signal %d (%s)\n", c->name, WTERMSIG(c->status),
                strsignal(WTERMSIG(c->status)));
    else
        fprintf(stderr, "dilocox: %s failed: %s\n", c->name, c->error[0] != '\0' ? c->error : "it said nothing");
    bool use = WIFEXITED(c->status) && WEXITSTATUS(c->status) == EXIT_USE;
    return use ? EXIT_USE : EXIT_FAILED;
}

static int run(launch *l) {
    child *coordinator = &l->children[l->sites];
    if (!start(l, coordinator, true)) return EXIT_FAILED;
    while (l->endpoint[0] == '\0' && coordinator->pid > 0 && !interrupted) poll_once(l, 100);
    for (int i = 0; i < l->sites && l->failed < 0 && !interrupted; i++)
        if (!start(l, &l->children[i], false)) {
            end_all(l, SIGTERM);
            return EXIT_FAILED;
        }
    while (running(l) > 0 && l->failed < 0 && !interrupted) poll_once(l, 100);
    if (interrupted && l->failed < 0) {
        end_all(l, SIGINT);
        display_close(l->display);
        fprintf(stderr, "dilocox: interrupted; what there is lies in %s\n", dlx_config_run_dir(l->config));
        return EXIT_FAILED;
    }
    if (l->failed >= 0) {
        /* the coordinator tells the others why before they are asked to go */
        for (int64_t deadline_ms = now_ms() + 500; running(l) > 0 && now_ms() < deadline_ms;) poll_once(l, 50);
        end_all(l, SIGTERM);
        display_close(l->display);
        return report_failure(l);
    }
    display_close(l->display);
    return print_results(l->config);
}

int launch_main(int count, char **arguments) {
    static launch l;
    const char *sites_text = "2", *sets[SETS_MAX + 1] = {NULL}, *names[SITES_MAX];
    int exit_code;
    long sites;
    const option_spec specs[] = {
        {"sites", "N", "how many sites; 2 unless given", &sites_text, NULL, NULL},
        {"run-dir", "DIR", "instead of run.dir", &l.run_dir, NULL, NULL},
        {"set", "KEY=VALUE", "one option of the config; may be given often", NULL, NULL, sets},
    };
    if (parse_arguments(count, arguments, specs, sizeof specs / sizeof *specs, &l.config_path, 1, 1, &exit_code))
        return exit_code;
    if (!parse_number(sites_text, "--sites", 1, SITES_MAX, &sites)) return EXIT_USE;
    dlx_config *config = load_config(l.config_path, l.run_dir, sets);
    if (config == NULL) return EXIT_USE;
    catch_interrupts();
    if (dlx_config_in_process(config)) {
        exit_code = launch_threads(config, (int)sites);
        dlx_config_close(&config);
        return exit_code;
    }
    l.config = config;
    l.sets = sets;
    l.sites = (int)sites;
    l.failed = -1;
    for (int i = 0; i <= l.sites; i++) {
        snprintf(l.children[i].name, sizeof l.children[i].name, i < l.sites ? "site-%d" : "coordinator", i + 1);
        l.children[i].pipes[0] = l.children[i].pipes[1] = -1;
        if (i < l.sites) names[i] = l.children[i].name;
    }
    l.display = display_open(names, l.sites);
    exit_code = dlx_config_encrypted(config) && !make_keys(&l) ? EXIT_FAILED : run(&l);
    dlx_config_close(&config);
    return exit_code;
}
