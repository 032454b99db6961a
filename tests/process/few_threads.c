/* SPDX-License-Identifier: Apache-2.0 */
/* Preloaded, makes MPI one that was built with few threads. */
#include <mpi.h>

__attribute__((visibility("default"))) int MPI_Init_thread(int *argc, char ***argv, int required,
                                                           int *provided) {
    (void)required;
    return PMPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, provided);
}
