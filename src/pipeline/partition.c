/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/partition.h"
#include "base/panic.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- which stage has which layers ------------------------------------------------------------ */

static dlx_status check_stages(const dlxi_model_config *config, int stages, dlx_error *error) {
    if (stages < 1 || stages > DLXI_STAGES_MAX)
        DLX_FAIL(
            error, CONFIG,
            "site.stages: %d is outside 1 to %d; set how many parts a site cuts the model into",
            stages, DLXI_STAGES_MAX);
    if (stages > config->layers)
        DLX_FAIL(error, CONFIG,
                 "site.stages: %d is more than model.layers (%" PRId64
                 "), and every stage needs a layer; set fewer stages or more layers",
                 stages, config->layers);
    return DLX_OK;
}

static void cut_of_counts(dlxi_partition *out, const int64_t *count, int stages) {
    *out = (dlxi_partition){.stages = stages};
    for (int s = 0; s < stages; s++) out->first_layer[s + 1] = out->first_layer[s] + count[s];
}

/* A layer at a time to the stage that is then the fastest: since a stage only grows slower, no
 * other cut has a faster slowest stage. */
dlx_status dlxi_partition_balanced(dlxi_partition *out, const dlxi_model_config *config,
                                   const dlxi_costs *costs, int stages, dlx_error *error) {
    int64_t count[DLXI_STAGES_MAX];
    double time[DLXI_STAGES_MAX];
    DLX_TRY(check_stages(config, stages, error));
    for (int s = 0; s < stages; s++) {
        count[s] = 1;
        time[s] =
            costs->block + (s == 0 ? costs->embedding : 0) + (s == stages - 1 ? costs->head : 0);
    }
    for (int64_t layer = stages; layer < config->layers; layer++) {
        int fastest = stages - 1;
        for (int s = stages - 2; s >= 0; s--)
            if (time[s] < time[fastest]) fastest = s;
        count[fastest]++;
        time[fastest] += costs->block;
    }
    cut_of_counts(out, count, stages);
    return DLX_OK;
}

dlx_status dlxi_partition_parse(dlxi_partition *out, const dlxi_model_config *config, int stages,
                                const char *text, dlx_error *error) {
    int64_t count[DLXI_STAGES_MAX], layers = 0;
    const char *at = text;
    int s = 0;
    DLX_TRY(check_stages(config, stages, error));
    for (; s < stages; s++) {
        char *end;
        if (*at < '0' || *at > '9') break;
        long long layers_here = strtoll(at, &end, 10);
        if (layers_here < 1 || layers_here > config->layers) break;
        count[s] = layers_here;
        layers += layers_here;
        at = end;
        if (s + 1 < stages && *at++ != ',') break;
    }
    if (s < stages || *at != '\0' || layers != config->layers)
        DLX_FAIL(error, CONFIG,
                 "site.cut: '%.96s' is not the layers of each stage: %d numbers of at least 1 with "
                 "commas between, "
                 "%" PRId64 " in all (model.layers); or auto",
                 text, stages, config->layers);
    cut_of_counts(out, count, stages);
    return DLX_OK;
}

/* ---- which rank owns which tensor ------------------------------------------------------------ */

static int stage_of_layer(const dlxi_partition *cut, int64_t layer) {
    int stage = 0;
    while (layer >= cut->first_layer[stage + 1]) stage++;
    return stage;
}

static bool is_shared_by_ends(const dlxi_tensor *tensor) {
    return tensor->in_embedding && tensor->in_head;
}

/* Of ranks [first, end), the least laden; of equal ones the first. */
static int least_laden(const int64_t *load, int first, int end) {
    int least = first;
    for (int rank = first + 1; rank < end; rank++)
        if (load[rank] < load[least]) least = rank;
    return least;
}

static int choose_owner(const int64_t *load, const dlxi_partition *cut, int replicas,
                        const dlxi_tensor *tensor) {
    int last = cut->stages - 1, stage = tensor->in_embedding ? 0 : last;
    if (tensor->layer >= 0) stage = stage_of_layer(cut, tensor->layer);
    int rank = least_laden(load, stage * replicas, (stage + 1) * replicas);
    if (!is_shared_by_ends(tensor)) return rank;
    int at_end = least_laden(load, last * replicas, (last + 1) * replicas);
    return load[at_end] < load[rank] ? at_end : rank;
}

/* Large tensors first, those of one size in order of id: a model has few sizes, so that a pass over
 * the tensors for each needs no sorted copy. */
void dlxi_owners(int *owner, const dlxi_model_config *config, const dlxi_partition *cut,
                 int replicas) {
    int64_t load[DLXI_RANKS_MAX] = {0}, count = dlxi_model_tensor_count(config);
    DLXI_ASSERT(replicas >= 1 && cut->stages >= 1 && replicas <= DLXI_RANKS_MAX / cut->stages);
    DLXI_ASSERT(cut->first_layer[cut->stages] == config->layers);
    for (int64_t size = INT64_MAX, smaller; size > 0; size = smaller) {
        smaller = 0;
        for (int64_t id = 0; id < count; id++) {
            dlxi_tensor tensor = dlxi_model_tensor(config, id);
            int64_t here = tensor.rows * tensor.cols;
            if (is_shared_by_ends(&tensor)) continue;
            if (here < size && here > smaller) smaller = here;
            if (here != size) continue;
            owner[id] = choose_owner(load, cut, replicas, &tensor);
            load[owner[id]] += size;
        }
    }
    dlxi_tensor table = dlxi_model_tensor(config, 0);
    if (is_shared_by_ends(&table)) owner[0] = choose_owner(load, cut, replicas, &table);
}
