/* SPDX-License-Identifier: Apache-2.0 */
/* From the public dlx_link_config to an open link. */
#ifndef DLXI_API_LINK_CONFIG_H
#define DLXI_API_LINK_CONFIG_H

#include "link/links.h"

dlx_status dlxi_link_open_site(dlxi_link **out, const dlx_link_config *config, const char *site,
                               uint16_t rank, uint16_t ranks, uint32_t timeout_ms, dlx_log log,
                               void *log_context, dlx_error *error);
/* endpoint: "host:port" in use, "" for a hub. Sends to a peer that has had no connection for
 * unconnected_ms are DLX_PEER_LOST. */
dlx_status dlxi_link_open_coordinator(dlxi_link **out, const dlx_link_config *config,
                                      uint32_t timeout_ms, uint32_t unconnected_ms, dlx_log log,
                                      void *log_context, char endpoint[DLXI_ENDPOINT_BYTES],
                                      dlx_error *error);

#endif
