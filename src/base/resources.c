/* SPDX-License-Identifier: Apache-2.0 */
#include "base/resources.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "base/memory.h"

/* ---- descriptors ----------------------------------------------------------------------------- */

/* Up to `wanted` of the free descriptors below the limit: most limits are far above both. */
static size_t free_count(rlim_t limit, size_t wanted) {
    size_t count = 0;
    for (rlim_t fd = 0; fd < limit && count < wanted; fd++)
        count += fcntl((int)fd, F_GETFD) < 0 && errno == EBADF;
    return count;
}

dlx_status dlxi_descriptors_need(size_t count, const char *what, dlx_error *error) {
    enum { USUAL = 1024 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return DLX_OK; /* unknown */
    size_t available = free_count(limit.rlim_cur, count);
    if (available >= count) return DLX_OK;
    rlim_t before = limit.rlim_cur, needed = before + (count - available);
    if (needed <= limit.rlim_max) {
        limit.rlim_cur = needed > USUAL ? needed : USUAL;
        if (limit.rlim_cur > limit.rlim_max) limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) == 0) return DLX_OK;
    }
    DLX_FAIL(error, SYSTEM,
             "%s: this process needs %llu file descriptors, and %llu are allowed; allow more "
             "(ulimit -n)",
             what, (unsigned long long)needed, (unsigned long long)before);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void *gate_wait(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Starts up to `count` threads that exist at the same time; *failure ← why it was not all. */
static size_t threads_try(pthread_t *threads, size_t count, int *failure) {
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    sigset_t all, before;
    size_t started = 0;
    *failure = 0;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&gate);
    while (started < count && *failure == 0) {
        *failure = pthread_create(&threads[started], NULL, gate_wait, &gate);
        started += *failure == 0;
    }
    pthread_mutex_unlock(&gate);
    for (size_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

dlx_status dlxi_threads_need(size_t count, const char *what, dlx_error *error) {
    pthread_t *threads;
    int failure;
    DLX_TRY(DLXI_NEW(&threads, count, error));
    size_t started = threads_try(threads, count, &failure);
    free(threads);
    if (started == count) return DLX_OK;
    errno = failure;
    DLX_FAIL(error, SYSTEM,
             "%s: needs %zu more threads, and %zu can be started: %s; allow more processes and "
             "threads (ulimit -u, pids.max), or memory for their stacks (ulimit -v)",
             what, count, started, strerror(failure));
}

/* ---- memory ---------------------------------------------------------------------------------- */

bool dlxi_memory_has(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    munmap(memory, bytes);
    return true;
}

uint64_t dlxi_memory_peak(void) {
    char line[256];
    unsigned long long kib = 0;
    FILE *file = fopen("/proc/self/status", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmHWM: %llu kB", &kib) == 1) break;
    if (file != NULL) fclose(file);
    return 1024 * (uint64_t)kib;
}

void dlxi_memory_peak_reset(void) {
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (file == NULL) return;
    fputs("5", file);
    fclose(file);
}
