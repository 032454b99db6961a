/* SPDX-License-Identifier: Apache-2.0 */
/* Start of the MPI job, and its end: in order, or at once. */
#include "cluster/cluster.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"

/* ---- open ------------------------------------------------------------------------------------ */

static const char *thread_level_name(int level) {
    if (level == MPI_THREAD_SINGLE) return "MPI_THREAD_SINGLE";
    if (level == MPI_THREAD_FUNNELED) return "MPI_THREAD_FUNNELED";
    if (level == MPI_THREAD_SERIALIZED) return "MPI_THREAD_SERIALIZED";
    return "an unknown thread level";
}

/* "Open MPI v4.1.4", without the details after it. */
static void library_name(char text[MPI_MAX_LIBRARY_VERSION_STRING]) {
    int length = 0;
    if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) dlxi_text_copy(text, 16, "unknown");
    text[strcspn(text, ",\n")] = '\0';
}

/* Fails on all ranks if one has too few threads; the lowest such rank has the message. */
static dlx_status threads_check(int level, dlx_error *error) {
    int rank = 0;
    DLX_TRY(dlxi_mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "rank", error));
    int own = level < MPI_THREAD_MULTIPLE ? rank : INT32_MAX, speaker = INT32_MAX;
    int code = MPI_Allreduce(&own, &speaker, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    DLX_TRY(dlxi_mpi_check(code, "comparing thread levels", error));
    if (speaker == INT32_MAX) return DLX_OK;
    errno = 0;
    if (speaker != rank) DLX_FAIL(error, SYSTEM, "%s", "");
    char library[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    library_name(library);
    DLX_FAIL(error, SYSTEM,
             "this MPI (%.100s) gives %s, dilocox needs MPI_THREAD_MULTIPLE; install an Open MPI "
             "built with threads",
             library, thread_level_name(level));
}

static dlx_status communicator_duplicate(MPI_Comm *out, dlx_error *error) {
    DLX_TRY(
        dlxi_mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, out), "a communicator of all ranks", error));
    return dlxi_mpi_check(MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN), "an error handler",
                          error);
}

static dlx_status communicators_open(dlxi_cluster *cluster, dlx_error *error) {
    cluster->job = cluster->wan = cluster->failures = MPI_COMM_NULL;
    DLX_TRY(communicator_duplicate(&cluster->job, error));
    DLX_TRY(communicator_duplicate(&cluster->wan, error));
    DLX_TRY(communicator_duplicate(&cluster->failures, error));
    DLX_TRY(dlxi_mpi_check(MPI_Comm_rank(cluster->job, &cluster->rank), "rank", error));
    return dlxi_mpi_check(MPI_Comm_size(cluster->job, &cluster->ranks), "number of ranks", error);
}

/* At exit: it waits for all ranks, and by then the one that has the message has shown it. If others
 * left before, the launcher would end the job, and the message be lost. */
static void finalize(void) {
    MPI_Finalize();
}

dlx_status dlxi_cluster_open(dlxi_cluster **out, dlx_error *error) {
    *out = NULL;
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (initialized)
        DLX_FAIL(error, STATE,
                 "MPI: it has been started in this process already, and starts only once");
    dlxi_cluster *cluster = NULL;
    DLX_TRY(DLXI_NEW(&cluster, 1, error));
    int level = MPI_THREAD_SINGLE;
    dlx_status status = dlxi_mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &level),
                                       "starting it", error);
    if (status != DLX_OK) {
        free(cluster);
        return status;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    status = threads_check(level, error);
    if (status == DLX_OK) status = communicators_open(cluster, error);
    if (status == DLX_OK)
        *out = cluster;
    else {
        free(cluster);
        if (atexit(finalize) != 0) MPI_Finalize();
    }
    return status;
}

/* ---- end ------------------------------------------------------------------------------------- */

void dlxi_cluster_close(dlxi_cluster **cluster) {
    if (cluster == NULL || *cluster == NULL) return;
    /* MPI_Finalize waits for the others too, but spinning */
    MPI_Request all_here = MPI_REQUEST_NULL;
    if (MPI_Ibarrier((*cluster)->job, &all_here) == MPI_SUCCESS)
        (void)dlxi_mpi_wait(&all_here, 1, NULL, NULL);
    MPI_Comm_free(&(*cluster)->failures);
    MPI_Comm_free(&(*cluster)->wan);
    MPI_Comm_free(&(*cluster)->job);
    MPI_Finalize();
    free(*cluster);
    *cluster = NULL;
}

void dlxi_cluster_abort(dlxi_cluster *cluster, int exit_code) {
    MPI_Abort(cluster->job, exit_code);
    _exit(exit_code);
}

/* ---- failing together ------------------------------------------------------------------------ */

/* Whether a failure may be the consequence of another rank's. */
static bool is_consequence(dlx_status status) {
    return status == DLX_INTERRUPTED || status == DLX_PEER_LOST || status == DLX_ABORTED;
}

/* The lowest rank that has a cause of its own, or else the lowest. */
static int speaker_find(const int *statuses, int ranks) {
    for (int i = 0; i < ranks; i++)
        if (!is_consequence((dlx_status)statuses[i])) return i;
    return 0;
}

bool dlxi_cluster_all_failed(dlxi_cluster *cluster, dlx_error *error, int wait_ms) {
    if (cluster->ranks == 1) return true;
    struct {
        int own, all[];
    } *statuses = malloc(sizeof *statuses + (size_t)cluster->ranks * sizeof statuses->all[0]);
    if (statuses == NULL) return false;
    statuses->own = (int)error->status;
    int64_t deadline_ns = dlxi_clock_ns() + (int64_t)wait_ms * 1000000;
    MPI_Request request = MPI_REQUEST_NULL;
    int done = 0, idle = 0;
    int code = MPI_Iallgather(&statuses->own, 1, MPI_INT, statuses->all, 1, MPI_INT,
                              cluster->failures, &request);
    for (;;) {
        if (code == MPI_SUCCESS) code = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS || done || dlxi_clock_ns() >= deadline_ns) break;
        dlxi_mpi_idle(&idle);
    }
    /* Not freed if MPI may still write to it; the process is about to end. */
    if (code != MPI_SUCCESS || !done) return false;
    if (speaker_find(statuses->all, cluster->ranks) != cluster->rank) error->message[0] = '\0';
    free(statuses);
    return true;
}
