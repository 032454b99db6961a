/* SPDX-License-Identifier: Apache-2.0 */
/* Waits for MPI that sleep, and MPI's errors as dlx_error. */
#include <errno.h>
#include <sched.h>
#include <time.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#include "base/clock.h"
#include "cluster/cluster.h"

dlx_status dlxi_mpi_check(int code, const char *what, dlx_error *error) {
    if (code == MPI_SUCCESS) return DLX_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
        dlxi_text_copy(text, sizeof text, "unknown error");
    errno = 0; /* MPI's errors are not errno's */
    DLX_FAIL(error, SYSTEM, "MPI: %s: %s (code %d)", what, text, code);
}

void dlxi_mpi_pause(int64_t pause_ns) {
#ifdef __linux__
    /* By default Linux lets this thread's timers run late by 50 µs, more than the shortest pause.
     */
    static _Thread_local bool set;
    if (!set) prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    set = true;
#endif
    struct timespec pause = {.tv_sec = (time_t)(pause_ns / 1000000000),
                             .tv_nsec = (long)(pause_ns % 1000000000)};
    nanosleep(&pause, NULL);
}

/* Each sleep is an eighth longer than the one before: a wait ends at most a ninth late, and the
 * cost of waking, some 40 µs of processor time on a busy virtual machine, stays small beside the
 * work of other ranks on the same core. */
void dlxi_mpi_idle(int *idle) {
    enum { YIELDS = 4, SLEEP_FIRST_NS = 20000, SLEEP_LAST_NS = 500000 };
    if (*idle < YIELDS) {
        ++*idle;
        sched_yield();
        return;
    }
    int64_t pause_ns = SLEEP_FIRST_NS;
    for (int i = YIELDS; i < *idle && pause_ns < SLEEP_LAST_NS; i++) pause_ns += pause_ns / 8;
    if (pause_ns < SLEEP_LAST_NS) ++*idle;
    dlxi_mpi_pause(pause_ns);
}

static _Thread_local bool (*cancel_asked)(void *context);
static _Thread_local void *cancel_context;

void dlxi_mpi_cancel_when(bool (*cancel)(void *context), void *context) {
    cancel_asked = cancel;
    cancel_context = context;
}

dlx_status dlxi_mpi_wait(MPI_Request *requests, int count, double *waited_s, dlx_error *error) {
    int64_t start_ns = dlxi_clock_ns();
    int code = MPI_SUCCESS;
    int idle = 0;
    const int64_t ASK_NS = 500000000;
    int64_t asked_ns = start_ns;
    /* One by one: a test makes progress on all requests, and its code is that of the request. */
    for (int i = 0, done = 0; code == MPI_SUCCESS && i < count; i += done) {
        code = MPI_Test(&requests[i], &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS || done) continue;
        dlxi_mpi_idle(&idle);
        if (cancel_asked != NULL && dlxi_clock_ns() - asked_ns > ASK_NS) {
            asked_ns = dlxi_clock_ns();
            if (cancel_asked(cancel_context))
                DLX_FAIL(error, PEER_LOST,
                         "the run has ended, and other ranks of this site do not go on");
        }
    }
    if (waited_s != NULL) *waited_s += (double)(dlxi_clock_ns() - start_ns) * 1e-9;
    return dlxi_mpi_check(code, "waiting for other ranks", error);
}
