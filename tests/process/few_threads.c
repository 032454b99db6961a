/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded: MPI as if built without MPI_THREAD_MULTIPLE. */
#include <mpi.h>

__attribute__((visibility("default"))) int MPI_Init_thread(int *argc, char ***argv, int required,
                                                           int *provided) {
    (void)required;
    return PMPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, provided);
}
