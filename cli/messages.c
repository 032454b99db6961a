/* SPDX-License-Identifier: Apache-2.0 */
/* Interrupts, and errors: for a person, or for `dilocox launch`. */
#include "cli.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

volatile sig_atomic_t interrupted, released;

static void flag_set(volatile sig_atomic_t *flag) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#else
    *flag = 1;
#endif
}

void interrupt(void) {
    flag_set(&interrupted);
}

bool is_interrupted(void) {
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_load_n(&interrupted, __ATOMIC_RELAXED);
#else
    return interrupted;
#endif
}

/* A launcher may signal a rank and its parent, which passes the signal on: the second one is no
 * second request. And a launcher kills what does not end. */
static bool launcher_signals;

/* Errors and progress are for dilocox launch. If that is killed, each of its threads sends a signal
 * as it ends: those that come together are one request. */
static bool to_launcher;

/* A coordinator's process can end without its run. */
static bool sigterm_releases;

void release_on_sigterm(void) {
    sigterm_releases = true;
}

static void on_signal(int number) {
    enum { TOGETHER_S = 1 };
    static double first_s;
    static bool any;
    if (!any && !is_interrupted())
        first_s = now_s();
    else if (!launcher_signals && !(to_launcher && now_s() - first_s < TOGETHER_S))
        _exit(128 + number);
    any = true;
    if (number == SIGTERM && sigterm_releases)
        flag_set(&released);
    else
        interrupt();
}

static const int caught[] = {SIGINT, SIGTERM,
                             /* mpirun passes it on to its ranks without ending them soon after */
                             SIGUSR1};

void interrupts_block(bool block) {
    sigset_t signals;
    sigemptyset(&signals);
    for (size_t i = 0; i < sizeof caught / sizeof *caught; i++) sigaddset(&signals, caught[i]);
    pthread_sigmask(block ? SIG_BLOCK : SIG_UNBLOCK, &signals, NULL);
}

static void *signals_take(void *unused) {
    interrupts_block(false);
    for (;;) pause();
    return unused;
}

/* Handlers run on a thread of their own: on some virtual machines a thread that one interrupts
 * loses its vector registers, and training crashes. */
void interrupts_catch(bool by_launcher) {
    pthread_t thread;
    launcher_signals = by_launcher;
    struct sigaction action = {.sa_handler = on_signal};
    for (size_t i = 0; i < sizeof caught / sizeof *caught; i++) sigaction(caught[i], &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    interrupts_block(true);
    if (pthread_create(&thread, NULL, signals_take, NULL) == 0)
        pthread_detach(thread);
    else
        interrupts_block(false);
}

/* ---- messages -------------------------------------------------------------------------------- */

void speak_to_launcher(void) {
    to_launcher = true;
}

static void failure_vsay(dlx_status status, const char *format, va_list arguments) {
    char text[1024];
    vsnprintf(text, sizeof text, format, arguments);
    if (to_launcher)
        printf("failed %d %s\n", (int)status, text);
    else
        fprintf(stderr, "dilocox: %s\n", text);
    fflush(NULL);
}

void failure_say(dlx_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    failure_vsay(status, format, arguments);
    va_end(arguments);
}

void killed_say(const char *text) {
    if (to_launcher)
        printf("killed %s\n", text);
    else
        fprintf(stderr, "dilocox: %s\n", text);
    fflush(NULL);
}

void warning_say(void *unused, const char *line) {
    (void)unused;
    fprintf(stderr, "dilocox: %s\n", line);
    fflush(NULL);
}

int exit_code_of(const dlx_error *error) {
    return dlx_status_class_of(error->status) == DLX_CLASS_CALLER ? EXIT_USE : EXIT_FAILED;
}

int fail_with(const dlx_error *error) {
    /* no message: another rank of the job has it */
    if (error->message[0] != '\0') failure_say(error->status, "%s", error->message);
    return exit_code_of(error);
}

int fail_use(const char *format, ...) {
    if (launched_rank() > 0) return EXIT_USE; /* the first of a job's ranks prints it */
    va_list arguments;
    va_start(arguments, format);
    failure_vsay(DLX_ARGUMENT, format, arguments);
    va_end(arguments);
    return EXIT_USE;
}

void error_name_flag(dlx_error *error, const char *key, const char *flag) {
    char text[sizeof error->message];
    size_t length = strlen(key);
    if (strncmp(error->message, key, length) != 0 || error->message[length] != ':') return;
    snprintf(text, sizeof text, "%s%.*s", flag, (int)(sizeof text - 64), error->message + length);
    memcpy(error->message, text, sizeof text);
}

bool is_consequence(dlx_status status) {
    return status == DLX_INTERRUPTED || status == DLX_PEER_LOST || status == DLX_TIMEOUT;
}
