/* What a dlx_hub is inside: whatever opens endpoints without addresses: `mem` for threads of one process, `mpi` for
 * ranks of one job. */
#ifndef DLXI_LINK_HUB_H
#define DLXI_LINK_HUB_H

#include "link/link.h"

struct dlx_hub {
    dlx_status (*open_site)(dlx_hub *hub, dlxi_link **out, const char *site, uint16_t rank, dlx_error *error);
    dlx_status (*open_coordinator)(dlx_hub *hub, dlxi_link **out, dlx_error *error);
    void (*close)(dlx_hub *hub); /* frees it */
};

#endif
