/* SPDX-License-Identifier: Apache-2.0 */
/* What a dlx_hub is inside: it opens the endpoints of a link without addresses, between threads of
 * one process or ranks of one job. */
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

#endif
