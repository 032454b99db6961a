/* SPDX-License-Identifier: Apache-2.0 */
/* A rank's coordinates in its site, the communicators that follow from them, and collective
 * operations of a site's ranks. */
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"
#include "cluster/cluster.h"

static dlx_status ranks_check(const dlxi_cluster *cluster, int sites, int stages, int replicas,
                              dlx_error *error) {
    if (sites < 1 || stages < 1 || replicas < 1 || sites > INT16_MAX || stages > INT16_MAX ||
        replicas > INT16_MAX)
        DLX_FAIL(error, CONFIG,
                 "a site of %d stages × %d replicas, and %d sites per job: each must be 1 to %d",
                 stages, replicas, sites, INT16_MAX);
    int64_t needed = (int64_t)sites * stages * replicas;
    if (needed == cluster->ranks) return DLX_OK;
    char of_sites[32] = "";
    if (sites > 1) snprintf(of_sites, sizeof of_sites, "--sites %d × ", sites);
    DLX_FAIL(error, CONFIG,
             "this job has %d rank%s; %ssite.stages %d × site.replicas %d needs %lld: start it "
             "with mpirun -n %lld, or srun --mpi=pmix -n %lld",
             cluster->ranks, cluster->ranks == 1 ? "" : "s", of_sites, stages, replicas,
             (long long)needed, (long long)needed, (long long)needed);
}

/* *out ← the ranks of `from` that pass the same colour, in order. MPI_UNDEFINED: MPI_COMM_NULL. */
static dlx_status communicator_split(MPI_Comm *out, MPI_Comm from, int colour, dlx_error *error) {
    /* MPI_Comm_split spins while it waits: let all arrive first, asleep. */
    MPI_Request all_here = MPI_REQUEST_NULL;
    DLX_TRY(dlxi_mpi_check(MPI_Ibarrier(from, &all_here), "a barrier", error));
    DLX_TRY(dlxi_mpi_wait(&all_here, 1, NULL, error));
    DLX_TRY(dlxi_mpi_check(MPI_Comm_split(from, colour, 0, out), "a communicator of some ranks",
                           error));
    if (*out == MPI_COMM_NULL) return DLX_OK;
    return dlxi_mpi_check(MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN), "an error handler",
                          error);
}

dlx_status dlxi_grid_open(dlxi_grid **out, dlxi_cluster *cluster, int sites, int stages,
                          int replicas, dlx_error *error) {
    *out = NULL;
    DLX_TRY(ranks_check(cluster, sites, stages, replicas, error));
    dlxi_grid *grid = NULL;
    DLX_TRY(DLXI_NEW(&grid, 1, error));
    int ranks = stages * replicas, rank = cluster->rank % ranks;
    *grid = (dlxi_grid){
        .site = cluster->rank / ranks,
        .sites = sites,
        .rank = rank,
        .ranks = ranks,
        .stage = rank / replicas,
        .stages = stages,
        .replica = rank % replicas,
        .replicas = replicas,
        .all = MPI_COMM_NULL,
        .pipe = MPI_COMM_NULL,
        .stage_replicas = MPI_COMM_NULL,
        .ends = MPI_COMM_NULL,
    };
    bool at_end = stages > 1 && (grid->stage == 0 || grid->stage == stages - 1);
    dlx_status status = communicator_split(&grid->all, cluster->job, grid->site, error);
    if (status == DLX_OK) status = communicator_split(&grid->pipe, grid->all, grid->replica, error);
    if (status == DLX_OK)
        status = communicator_split(&grid->stage_replicas, grid->all, grid->stage, error);
    if (status == DLX_OK)
        status = communicator_split(&grid->ends, grid->all, at_end ? 0 : MPI_UNDEFINED, error);
    if (status == DLX_OK)
        *out = grid;
    else
        dlxi_grid_close(&grid);
    return status;
}

static void communicator_free(MPI_Comm *communicator) {
    if (*communicator != MPI_COMM_NULL) MPI_Comm_free(communicator);
}

void dlxi_grid_close(dlxi_grid **grid) {
    if (grid == NULL || *grid == NULL) return;
    communicator_free(&(*grid)->ends);
    communicator_free(&(*grid)->stage_replicas);
    communicator_free(&(*grid)->pipe);
    communicator_free(&(*grid)->all);
    free(*grid);
    *grid = NULL;
}

/* ---- collective operations ------------------------------------------------------------------- */

dlx_status dlxi_grid_gather(dlxi_grid *grid, void *all, const void *own, size_t bytes,
                            dlx_error *error) {
    if (bytes > INT_MAX)
        DLX_FAIL(error, ARGUMENT, "gathering %zu bytes from each rank; allowed are 0 to %d", bytes,
                 INT_MAX);
    MPI_Request request = MPI_REQUEST_NULL;
    int code =
        MPI_Iallgather(own, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, grid->all, &request);
    DLX_TRY(dlxi_mpi_check(code, "gathering from a site's ranks", error));
    return dlxi_mpi_wait(&request, 1, NULL, error);
}

dlx_status dlxi_grid_sum(dlxi_grid *grid, double *values, int count, dlx_error *error) {
    double *all = NULL; /* [ranks][count] */
    DLX_TRY(DLXI_NEW(&all, (size_t)grid->ranks * (size_t)count, error));
    dlx_status status = dlxi_grid_gather(grid, all, values, (size_t)count * sizeof *values, error);
    for (int i = 0; status == DLX_OK && i < count; i++) {
        double sum = all[i];
        for (int r = 1; r < grid->ranks; r++) sum += all[(size_t)r * (size_t)count + (size_t)i];
        values[i] = sum;
    }
    free(all);
    return status;
}

dlx_status dlxi_grid_barrier(dlxi_grid *grid, dlx_error *error) {
    MPI_Request request = MPI_REQUEST_NULL;
    DLX_TRY(
        dlxi_mpi_check(MPI_Ibarrier(grid->all, &request), "a barrier of a site's ranks", error));
    return dlxi_mpi_wait(&request, 1, NULL, error);
}
