/* SPDX-License-Identifier: Apache-2.0 */
/* The links, one row each. A new link is a file of its own, a line in meson.build and a row here.
 */
#ifndef DLXI_LINK_LINKS_H
#define DLXI_LINK_LINKS_H

#include "link/hub.h"

/* ROW(word of wan.link, what its sites are). The list that a row is in decides by which functions,
 * named after its word, the link is opened (declared below):
 *
 *     threads of one process    dlxi_WORD_hub_open; one row, since dlx_hub_open is given no word
 *     processes                 dlxi_WORD_site_open, dlxi_WORD_coordinator_open; the first row is
 *                               the default of dlx_link_config
 *     ranks of one job          dlxi_WORD_hub_open, in link_mpi_lib; the first row also joins a job
 *                               whose wan.link is in another list */
#define DLXI_LINKS_OF_THREADS(ROW)   ROW(mem, "threads of one process")
#define DLXI_LINKS_OF_PROCESSES(ROW) ROW(zmq, "processes")
#define DLXI_LINKS_OF_JOB(ROW)       ROW(mpi, "ranks of one job")

/* all, in the order in which wan.link counts them */
#define DLXI_LINKS(ROW)                                                                            \
    DLXI_LINKS_OF_THREADS(ROW) DLXI_LINKS_OF_PROCESSES(ROW) DLXI_LINKS_OF_JOB(ROW)

#define DLXI_LINK_WORD(word, text) #word,
#define DLXI_LINK_ONE(word, text)  +1

/* `link` is the choice that wan.link is. */
static inline const char *dlxi_link_word(int link) {
    static const char *const words[] = {DLXI_LINKS(DLXI_LINK_WORD)};
    return words[link];
}

static inline bool dlxi_link_is_of_threads(int link) {
    return link < 0 DLXI_LINKS_OF_THREADS(DLXI_LINK_ONE);
}

static inline bool dlxi_link_is_of_job(int link) {
    return link >= 0 DLXI_LINKS_OF_THREADS(DLXI_LINK_ONE) DLXI_LINKS_OF_PROCESSES(DLXI_LINK_ONE);
}

/* ---- what opens them ------------------------------------------------------------------------- */

/* e.g. a refused key; any of the library's threads */
typedef void (*dlxi_log)(void *context, const char *line);

/* Of processes. */
typedef struct dlxi_link_settings {
    const char *coordinator; /* "host:port"; the coordinator may ask for port 0 */
    /* site: address that peers reach it at; "": the local address that reaches the coordinator */
    const char *listen_host;
    /* site: first of a range of D ports (port + peer's index); 0: any free ones. Ranks of one site
     * on one machine need ranges of their own */
    uint16_t listen_port;
    bool curve;           /* false (security: none): loopback addresses only, refused elsewhere */
    const char *key_path; /* own secret key, made by dlxi_key_generate; a site's ranks share it */
    const char *roster_path; /* public keys with names */
    const char *name;        /* site: own name; must be the roster's for its key */
    uint16_t ranks;          /* site: processes that it has; 0 of 1 */
    /* wan.timeout_s. Above 10 s connections and handshakes are given longer; site: a coordinator
     * whose first handshakes fail for this long is lost */
    uint32_t timeout_ms;
    /* coordinator: sends to a peer that has had no connection for this long say so */
    uint32_t unconnected_ms;
    dlxi_log log;
    void *log_context;
} dlxi_link_settings;

struct dlx_cluster;

/* queue_frames bounds each directed pair (≥ 1). Endpoints may be opened by any thread; one
 * coordinator at a time. */
#define DLXI_LINK_DECLARE(word, text)                                                              \
    dlx_status dlxi_##word##_hub_open(dlx_hub **out, uint32_t queue_frames, dlx_error *error);
DLXI_LINKS_OF_THREADS(DLXI_LINK_DECLARE)
#undef DLXI_LINK_DECLARE

/* bound: "host:port" with the port in use. */
#define DLXI_LINK_DECLARE(word, text)                                                              \
    dlx_status dlxi_##word##_site_open(dlxi_link **out, const dlxi_link_settings *settings,        \
                                       dlx_error *error);                                          \
    dlx_status dlxi_##word##_coordinator_open(dlxi_link **out, const dlxi_link_settings *settings, \
                                              char bound[DLXI_ENDPOINT_BYTES], dlx_error *error);
DLXI_LINKS_OF_PROCESSES(DLXI_LINK_DECLARE)
#undef DLXI_LINK_DECLARE

/* Site s has job ranks s · site_ranks … (s + 1) · site_ranks − 1, and rank 0 the coordinator. A
 * process opens at most one site endpoint, and rank 0 the coordinator's; each may be used by its
 * own thread. `cluster` is borrowed and outlives the hub. Not collective. */
#define DLXI_LINK_DECLARE(word, text)                                                              \
    dlx_status dlxi_##word##_hub_open(dlx_hub **out, struct dlx_cluster *cluster, int site_ranks,  \
                                      dlx_error *error);
DLXI_LINKS_OF_JOB(DLXI_LINK_DECLARE)
#undef DLXI_LINK_DECLARE

#endif
