/* SPDX-License-Identifier: Apache-2.0 */
/* The MPI job that this process is a rank of: its start and end, the rank's coordinates in its
 * site, and waits that sleep. Beside this room, only link/mpi.c and the pipeline call MPI. */
#ifndef DLXI_CLUSTER_CLUSTER_H
#define DLXI_CLUSTER_CLUSTER_H

#include <mpi.h>

#include "base/error.h"

struct dlx_cluster {
    MPI_Comm job;      /* all ranks of the job; errors return */
    MPI_Comm wan;      /* the same ranks: the mpi link's */
    MPI_Comm failures; /* the same ranks: what each failed of */
    int rank, ranks;
};
typedef struct dlx_cluster dlxi_cluster; /* opaque in the public interface */

/* Starts MPI with MPI_THREAD_MULTIPLE. DLX_SYSTEM if this MPI lacks it; one rank has the message,
 * which names what it has, and on the others it is empty. Without a launcher the job has one rank.
 * Once per process. Collective over the job. */
dlx_status dlxi_cluster_open(dlxi_cluster **out, dlx_error *error);
/* Ends MPI. Collective; takes NULL. */
void dlxi_cluster_close(dlxi_cluster **cluster);
/* Ends all ranks of the job at once, with this exit code. Does not return. */
void dlxi_cluster_abort(dlxi_cluster *cluster, int exit_code);

/* For a rank that failed. Waits up to wait_ms for the others to fail as well. True: all did, and
 * the job can end in order (dlxi_cluster_close); one rank, with a cause of its own if any has one,
 * keeps its message, and on all others it is empty. False: the others go on, and the caller ends
 * them (dlxi_cluster_abort). */
bool dlxi_cluster_all_failed(dlxi_cluster *cluster, dlx_error *error, int wait_ms);

/* ---- a rank's coordinates -------------------------------------------------------------------- */

/* Ranks of a site: rank = stage · replicas + replica. Of a job with several sites: site · ranks +
 * rank. */
typedef struct dlxi_grid {
    int site, sites; /* of the job */
    int rank, ranks; /* of the site */
    int stage, stages, replica, replicas;
    MPI_Comm all;            /* the site's ranks, in order */
    MPI_Comm pipe;           /* this replica's stages, in order */
    MPI_Comm stage_replicas; /* this stage's replicas, in order */
    /* first stage's replicas, then the last's; MPI_COMM_NULL on other ranks, and if there is one
     * stage */
    MPI_Comm ends;
} dlxi_grid;

/* Collective over the job. DLX_CONFIG, on all ranks, if the job's ranks are not sites × stages ×
 * replicas. On success *out is the caller's. */
dlx_status dlxi_grid_open(dlxi_grid **out, dlxi_cluster *cluster, int sites, int stages,
                          int replicas, dlx_error *error);
/* Collective over the site; takes NULL. */
void dlxi_grid_close(dlxi_grid **grid);

/* all[ranks][bytes] ← own[bytes] of each rank of the site, in order. Collective; blocks, asleep. */
dlx_status dlxi_grid_gather(dlxi_grid *grid, void *all, const void *own, size_t bytes,
                            dlx_error *error);
/* values[count] ← their sums over the site's ranks, added in order of rank: the same bits on every
 * rank. Collective. */
dlx_status dlxi_grid_sum(dlxi_grid *grid, double *values, int count, dlx_error *error);
dlx_status dlxi_grid_barrier(dlxi_grid *grid, dlx_error *error);

/* ---- for callers of MPI ---------------------------------------------------------------------- */

/* DLX_OK, or DLX_SYSTEM with MPI's message. */
dlx_status dlxi_mpi_check(int code, const char *what, dlx_error *error);
/* Tests until all are done and sleeps in between: Open MPI's own waits spin, and ranks may share a
 * core. The time it took is added to *waited_s (may be NULL). Null requests count as done. */
dlx_status dlxi_mpi_wait(MPI_Request *requests, int count, double *waited_s, dlx_error *error);
/* Cancellation: all waits of the calling thread ask twice a second, and if the answer is true they
 * end with DLX_PEER_LOST, for ranks that will not arrive. NULL: never. */
void dlxi_mpi_cancel_when(bool (*cancel)(void *context), void *context);
/* Between two tests: yields at first, then sleeps longer and longer, up to 0.5 ms. `idle` counts,
 * from 0. */
void dlxi_mpi_idle(int *idle);
/* Sleeps, to the microsecond if the system can. */
void dlxi_mpi_pause(int64_t pause_ns);

#endif
