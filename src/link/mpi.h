/* SPDX-License-Identifier: Apache-2.0 */
/* The `mpi` link: sites and coordinator as ranks of one MPI job. The coordinator lives in job rank
 * 0. Not for runs that must outlive a dead rank: MPI ends the whole job. In a static library of its
 * own, since libdilocox knows no MPI. */
#ifndef DLXI_LINK_MPI_H
#define DLXI_LINK_MPI_H

#include "cluster/cluster.h"
#include "link/hub.h"

/* Site s has job ranks s · site_ranks … (s + 1) · site_ranks − 1. A process opens at most one site
 * endpoint, and rank 0 the coordinator's; each may be used by its own thread. `cluster` is borrowed
 * and outlives the hub. Not collective. */
dlx_status dlxi_mpi_hub_open(dlx_hub **out, dlxi_cluster *cluster, int site_ranks,
                             dlx_error *error);

#endif
