/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_cluster: validate, translate, delegate. */
#include "dilocox_train.h"

#include <limits.h>
#include <string.h>

#include "cluster/cluster.h"
#include "link/links.h"

dlx_status dlx_cluster_open(dlx_cluster **out, dlx_error *error) {
    DLXI_NOT_NULL(out);
    return dlxi_cluster_open(out, error);
}

void dlx_cluster_close(dlx_cluster **cluster) {
    if (cluster != NULL) dlxi_cluster_close(cluster);
}

uint32_t dlx_cluster_rank(const dlx_cluster *cluster) {
    return cluster != NULL ? (uint32_t)cluster->rank : 0;
}

uint32_t dlx_cluster_ranks(const dlx_cluster *cluster) {
    return cluster != NULL ? (uint32_t)cluster->ranks : 0;
}

bool dlx_cluster_all_failed(dlx_cluster *cluster, dlx_error *error, uint32_t wait_ms) {
    if (cluster == NULL || error == NULL) return false;
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
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(cluster);
    DLXI_NOT_NULL(config);
    const opener *open = &openers[0];
    for (size_t i = 1; i < sizeof openers / sizeof *openers; i++)
        if (strcmp(openers[i].word, dlx_config_link(config)) == 0) open = &openers[i];
    return open->hub(out, cluster, (int)dlx_config_ranks(config), error);
}
