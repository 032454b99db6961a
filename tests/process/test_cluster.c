/* SPDX-License-Identifier: Apache-2.0 */
/* The MPI job: ranks' coordinates and communicators, collective operations, failing together, and
 * an MPI without threads.
 *
 *     mpirun -n 1|4|6 test_cluster
 *     mpirun -n N -x LD_PRELOAD=few_threads.so test_cluster few-threads
 * / */
#include <string.h>

#include "mpi_job.h"

/* ---- coordinates ----------------------------------------------------------------------------- */

typedef struct layout {
    int ranks, sites, stages, replicas;
    /* of each rank of the job: which ranks of the job are in its communicators, in order */
    const char *all[6], *pipe[6], *stage_replicas[6], *ends[6];
} layout;

static const layout layouts[] = {
    {1, 1, 1, 1, .all = {"0"}, .pipe = {"0"}, .stage_replicas = {"0"}, .ends = {""}},
    {4, 1, 2, 2, .all = {"0123", "0123", "0123", "0123"}, .pipe = {"02", "13", "02", "13"},
     .stage_replicas = {"01", "01", "23", "23"}, .ends = {"0123", "0123", "0123", "0123"}},
    {4, 1, 4, 1, .all = {"0123", "0123", "0123", "0123"}, .pipe = {"0123", "0123", "0123", "0123"},
     .stage_replicas = {"0", "1", "2", "3"}, .ends = {"03", "", "", "03"}},
    {4, 1, 1, 4, .all = {"0123", "0123", "0123", "0123"}, .pipe = {"0", "1", "2", "3"},
     .stage_replicas = {"0123", "0123", "0123", "0123"}, .ends = {"", "", "", ""}},
    {4, 2, 2, 1, .all = {"01", "01", "23", "23"}, .pipe = {"01", "01", "23", "23"},
     .stage_replicas = {"0", "1", "2", "3"}, .ends = {"01", "01", "23", "23"}},
    {6, 1, 3, 2, .all = {"012345", "012345", "012345", "012345", "012345", "012345"},
     .pipe = {"024", "135", "024", "135", "024", "135"},
     .stage_replicas = {"01", "01", "23", "23", "45", "45"},
     .ends = {"0145", "0145", "", "", "0145", "0145"}},
};

/* The communicator's ranks of the job, a digit each. */
static void members(char text[8], MPI_Comm communicator) {
    text[0] = '\0';
    if (communicator == MPI_COMM_NULL) return;
    int size = 0;
    CHECK(MPI_Comm_size(communicator, &size) == MPI_SUCCESS && size < 8, "size %d", size);
    char own = (char)('0' + cluster->rank);
    CHECK(MPI_Allgather(&own, 1, MPI_CHAR, text, 1, MPI_CHAR, communicator) == MPI_SUCCESS,
          "no gather");
    text[size] = '\0';
}

#define MEMBERS(field)                                                                             \
    do {                                                                                           \
        char text_[8];                                                                             \
        members(text_, grid->field);                                                               \
        CHECK(strcmp(text_, l->field[cluster->rank]) == 0,                                         \
              "%d x %d x %d: ranks of " #field " are '%s', not '%s'", l->sites, l->stages,         \
              l->replicas, text_, l->field[cluster->rank]);                                        \
    } while (0)

static void a_place_knows_its_neighbours(const layout *l) {
    dlxi_grid *grid = NULL;
    MUST(dlxi_grid_open(&grid, cluster, l->sites, l->stages, l->replicas, &error));
    EQUAL(grid->ranks, l->stages * l->replicas);
    EQUAL(((grid->site * l->stages + grid->stage) * l->replicas + grid->replica), cluster->rank);
    EQUAL(grid->site * grid->ranks + grid->rank, cluster->rank);
    CHECK(grid->stage < l->stages && grid->replica < l->replicas && grid->site < l->sites,
          "out of its bounds");
    MEMBERS(all);
    MEMBERS(pipe);
    MEMBERS(stage_replicas);
    MEMBERS(ends);
    dlxi_grid_close(&grid);
    CHECK(grid == NULL, "not nulled");
}

static void a_wrong_number_of_ranks_is_refused(void) {
    static dlxi_grid any;
    dlxi_grid *grid = &any;
    char expected[256];
    const char *s = cluster->ranks == 1 ? "" : "s";
    snprintf(expected, sizeof expected,
             "this job has %d rank%s; site.stages 3 × site.replicas 3 needs 9: start it with "
             "mpirun -n 9, or srun --mpi=pmix -n 9",
             cluster->ranks, s);
    EQUAL(dlxi_grid_open(&grid, cluster, 1, 3, 3, &error), DLX_CONFIG);
    CHECK(grid == NULL && strcmp(error.message, expected) == 0, "%s", error.message);
    snprintf(expected, sizeof expected,
             "this job has %d rank%s; --sites 2 × site.stages 7 × site.replicas 1 needs 14: start "
             "it with mpirun -n 14, or srun --mpi=pmix -n 14",
             cluster->ranks, s);
    EQUAL(dlxi_grid_open(&grid, cluster, 2, 7, 1, &error), DLX_CONFIG);
    CHECK(strcmp(error.message, expected) == 0, "%s", error.message);
    EQUAL(dlxi_grid_open(&grid, cluster, 0, 1, 1, &error), DLX_CONFIG);
    EQUAL(dlxi_grid_open(&grid, cluster, 1 << 30, 1 << 30, 16, &error), DLX_CONFIG);
}

/* ---- collective operations ------------------------------------------------------------------- */

static void ranks_gather_in_order(dlxi_grid *grid) {
    unsigned char own[3] = {(unsigned char)grid->rank, 77,
                            (unsigned char)(grid->rank * grid->rank)};
    unsigned char all[6 * 3 + 1];
    memset(all, 0xEE, sizeof all);
    MUST(dlxi_grid_gather(grid, all, own, sizeof own, &error));
    for (int r = 0; r < grid->ranks; r++) {
        EQUAL(all[3 * r], r);
        EQUAL(all[3 * r + 1], 77);
        EQUAL(all[3 * r + 2], r * r);
    }
    EQUAL(all[3 * grid->ranks], 0xEE);
}

/* Numbers whose sum depends on the order. */
static void sums_are_the_same_bits_everywhere(dlxi_grid *grid) {
    static const double summands[6] = {1e16, 1.0, -1e16, 0.1, 3e-17, 1.0 / 3};
    double expected = summands[0], backwards = 0;
    for (int r = 1; r < grid->ranks; r++) expected += summands[r];
    for (int r = grid->ranks - 1; r >= 0; r--) backwards += summands[r];
    CHECK(grid->ranks == 1 || expected != backwards, "the order of these numbers does not matter");
    double values[2] = {summands[grid->rank], 1};
    MUST(dlxi_grid_sum(grid, values, 2, &error));
    CHECK(memcmp(&values[0], &expected, sizeof expected) == 0, "sum %a, not %a", values[0],
          expected);
    EQUAL(values[1], grid->ranks);
}

static void a_wait_takes_many_requests_and_none(dlxi_grid *grid) {
    enum { MANY = 5 };
    int sent[MANY], got[MANY];
    MPI_Request requests[2 * MANY + 1];
    int to = (grid->rank + 1) % grid->ranks, from = (grid->rank + grid->ranks - 1) % grid->ranks;
    for (int i = 0; i < MANY; i++) {
        sent[i] = 100 * grid->rank + i;
        MPI_Irecv(&got[i], 1, MPI_INT, from, i, grid->all, &requests[i]);
        MPI_Isend(&sent[i], 1, MPI_INT, to, i, grid->all, &requests[MANY + i]);
    }
    requests[2 * MANY] = MPI_REQUEST_NULL;
    double waited_s = 1;
    MUST(dlxi_mpi_wait(requests, 2 * MANY + 1, &waited_s, &error));
    CHECK(waited_s > 1, "no time has passed");
    for (int i = 0; i < MANY; i++) EQUAL(got[i], 100 * from + i);
    MUST(dlxi_mpi_wait(NULL, 0, NULL, &error));
    EQUAL(dlxi_mpi_check(MPI_Send(sent, 1, MPI_INT, grid->ranks, 0, grid->all), "sending nowhere",
                         &error),
          DLX_SYSTEM);
    CHECK(strstr(error.message, "MPI: sending nowhere: ") != NULL &&
              strstr(error.message, "rank") != NULL,
          "%s", error.message);
}

/* ---- failing together ------------------------------------------------------------------------ */

static void expect_message_on(const dlx_status *statuses, int with_message) {
    error = (dlx_error){.status = statuses[cluster->rank]};
    snprintf(error.message, sizeof error.message, "rank %d failed", cluster->rank);
    CHECK(dlxi_cluster_all_failed(cluster, &error, 60000), "not all failed");
    EQUAL(error.message[0] != '\0', cluster->rank == with_message);
}

static void one_rank_keeps_its_message(void) {
    static const dlx_status one_cause[6] = {DLX_PEER_LOST, DLX_INTERRUPTED, DLX_DATA,
                                            DLX_ABORTED,   DLX_DATA,        DLX_PEER_LOST};
    static const dlx_status no_cause[6] = {DLX_PEER_LOST, DLX_INTERRUPTED, DLX_ABORTED,
                                           DLX_ABORTED,   DLX_PEER_LOST,   DLX_INTERRUPTED};
    expect_message_on(one_cause, cluster->ranks > 2 ? 2 : 0);
    expect_message_on(no_cause, 0);
}

/* The last rank fails alone; the others fail only after it has given up. */
static void a_rank_that_fails_alone_learns_so(dlxi_grid *grid) {
    bool alone = cluster->rank == cluster->ranks - 1;
    error = (dlx_error){.status = DLX_DATA, .message = "alone"};
    if (cluster->ranks > 1 && alone)
        CHECK(!dlxi_cluster_all_failed(cluster, &error, 50), "the others have not failed");
    CHECK(strcmp(error.message, "alone") == 0, "message lost");
    MUST(dlxi_grid_barrier(grid, &error));
    if (cluster->ranks > 1 && !alone) (void)dlxi_cluster_all_failed(cluster, &error, 60000);
}

/* ---- an MPI without threads ------------------------------------------------------------------ */

static int expect_few_threads(void) {
    static const char expected[] =
        "gives MPI_THREAD_FUNNELED, dilocox needs MPI_THREAD_MULTIPLE; install an Open MPI "
        "built with threads";
    dlx_status status = dlxi_cluster_open(&cluster, &error);
    CHECK(status == DLX_SYSTEM && cluster == NULL, "status %d: %s", (int)status, error.message);
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (rank == NULL || strcmp(rank, "0") == 0)
        CHECK(strstr(error.message, expected) != NULL, "%s", error.message);
    else
        CHECK(error.message[0] == '\0', "rank %s says it too: %s", rank, error.message);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "few-threads") == 0) return expect_few_threads();
    MUST(dlxi_cluster_open(&cluster, &error));
    dlxi_cluster *second;
    EQUAL(dlxi_cluster_open(&second, &error), DLX_STATE);
    size_t layouts_tried = 0;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        if (layouts[i].ranks != cluster->ranks) continue;
        a_place_knows_its_neighbours(&layouts[i]);
        layouts_tried++;
    }
    CHECK(layouts_tried != 0, "no layout has %d ranks", cluster->ranks);
    a_wrong_number_of_ranks_is_refused();
    dlxi_grid *grid;
    MUST(dlxi_grid_open(&grid, cluster, 1, cluster->ranks, 1, &error));
    ranks_gather_in_order(grid);
    sums_are_the_same_bits_everywhere(grid);
    a_wait_takes_many_requests_and_none(grid);
    one_rank_keeps_its_message();
    a_rank_that_fails_alone_learns_so(grid);
    dlxi_grid_close(&grid);
    dlxi_cluster_close(&cluster);
    CHECK(cluster == NULL, "not nulled");
    return 0;
}
