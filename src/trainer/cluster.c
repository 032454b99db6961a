/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_cluster: validate, translate, delegate. */
#include "dilocox_train.h"

#include <limits.h>
#include <string.h>

#include "cluster/cluster.h"
#include "link/links.h"

dlx_status dlx_cluster_open(dlx_cluster **out, dlx_error *error) {
    if (out == NULL) DLX_FAIL(error, ARGUMENT, "dlx_cluster_open: out is NULL");
    return dlxi_cluster_open(out, error);
}

void dlx_cluster_close(dlx_cluster **cluster) {
    if (cluster != NULL) dlxi_cluster_close(cluster);
}

uint32_t dlx_cluster_rank(const dlx_cluster *cluster) {
    return (uint32_t)cluster->rank;
}

uint32_t dlx_cluster_ranks(const dlx_cluster *cluster) {
    return (uint32_t)cluster->ranks;
}

bool dlx_cluster_all_failed(dlx_cluster *cluster, dlx_error *error, uint32_t wait_ms) {
    return dlxi_cluster_all_failed(cluster, error, wait_ms > INT_MAX ? INT_MAX : (int)wait_ms);
}

void dlx_cluster_abort(dlx_cluster *cluster, int exit_code) {
    dlxi_cluster_abort(cluster, exit_code);
}

typedef struct opener {
    const char *word;
    dlx_status (*hub)(dlx_hub **out, struct dlx_cluster *cluster, int site_ranks, dlx_error *error);
} opener;

#define OPENER(word, text) {#word, dlxi_##word##_hub_open},
static const opener openers[] = {DLXI_LINKS_OF_JOB(OPENER)};

dlx_status dlx_cluster_hub(dlx_hub **out, dlx_cluster *cluster, const dlx_config *config,
                           dlx_error *error) {
    if (out == NULL || cluster == NULL || config == NULL)
        DLX_FAIL(error, ARGUMENT, "dlx_cluster_hub: an argument is NULL");
    const opener *open = &openers[0];
    for (size_t i = 1; i < sizeof openers / sizeof *openers; i++)
        if (strcmp(openers[i].word, dlx_config_link(config)) == 0) open = &openers[i];
    return open->hub(out, cluster, (int)dlx_config_ranks(config), error);
}
