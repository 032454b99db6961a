/* SPDX-License-Identifier: Apache-2.0 */
/* What a dlx_hub is inside: whatever opens endpoints without addresses: `mem` for threads of one
 * process, `mpi` for ranks of one job. */
#ifndef DLXI_LINK_HUB_H
#define DLXI_LINK_HUB_H

#include "link/link.h"

struct dlx_hub {
    dlx_status (*open_site)(dlx_hub *hub, dlxi_link **out, const char *site, uint16_t rank,
                            dlx_error *error);
    dlx_status (*open_coordinator)(dlx_hub *hub, dlxi_link **out, dlx_error *error);
    void (*close)(dlx_hub *hub); /* frees it; after all its endpoints */
};

/* Takes NULL. */
void dlxi_hub_close(dlx_hub **hub);

/* Threads of one process. queue_frames bounds each directed pair (≥ 1). Endpoints may be opened by
 * any thread; one coordinator at a time. */
dlx_status dlxi_mem_hub_open(dlx_hub **out, uint32_t queue_frames, dlx_error *error);

#endif
