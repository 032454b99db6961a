/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/partition.h"
#include "base/panic.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- layers to stages ------------------------------------------------------------------------ */

static dlx_status stages_check(const dlxi_model_config *config, int stages, dlx_error *error) {
    if (stages < 1 || stages > DLXI_STAGES_MAX)
        DLX_FAIL(error, CONFIG,
                 "site.stages: %d is outside 1 to %d; set how many stages partition the model",
                 stages, DLXI_STAGES_MAX);
    if (stages > config->layers)
        DLX_FAIL(error, CONFIG,
                 "site.stages: %d is more than model.layers (%" PRId64
                 "), and every stage needs a layer; set fewer stages or more layers",
                 stages, config->layers);
    return DLX_OK;
}

static void partition_of_counts(dlxi_partition *out, const int64_t *count, int stages) {
    *out = (dlxi_partition){.stages = stages};
    for (int s = 0; s < stages; s++) out->first_layer[s + 1] = out->first_layer[s] + count[s];
}

/* Gives layers one by one to the stage that is fastest so far. A stage only grows slower, so no
 * other partition has a faster slowest stage. */
dlx_status dlxi_partition_balanced(dlxi_partition *out, const dlxi_model_config *config,
                                   const dlxi_costs *costs, int stages, dlx_error *error) {
    int64_t count[DLXI_STAGES_MAX];
    double time[DLXI_STAGES_MAX];
    DLX_TRY(stages_check(config, stages, error));
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
    partition_of_counts(out, count, stages);
    return DLX_OK;
}

dlx_status dlxi_partition_parse(dlxi_partition *out, const dlxi_model_config *config, int stages,
                                const char *text, dlx_error *error) {
    int64_t count[DLXI_STAGES_MAX], layers = 0;
    const char *at = text;
    int s = 0;
    DLX_TRY(stages_check(config, stages, error));
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
        DLX_FAIL(
            error, CONFIG,
            "site.cut: '%.96s' must be auto, or the layers of each stage: %d numbers of at least "
            "1, separated by commas, with the sum %" PRId64 " (model.layers)",
            text, stages, config->layers);
    partition_of_counts(out, count, stages);
    return DLX_OK;
}

/* ---- tensors to ranks ------------------------------------------------------------------------ */

int dlxi_partition_stage(const dlxi_partition *partition, const dlxi_tensor *tensor) {
    int stage = 0;
    if (tensor->layer < 0) return tensor->in_embedding ? 0 : partition->stages - 1;
    while (tensor->layer >= partition->first_layer[stage + 1]) stage++;
    return stage;
}

static bool is_shared_by_ends(const dlxi_tensor *tensor) {
    return tensor->in_embedding && tensor->in_head;
}

/* Of ranks [first, end), the least loaded; among equals the first. */
static int least_loaded(const int64_t *load, int first, int end) {
    int lightest = first;
    for (int rank = first + 1; rank < end; rank++)
        if (load[rank] < load[lightest]) lightest = rank;
    return lightest;
}

static int owner_choose(const int64_t *load, const dlxi_partition *partition, int replicas,
                        const dlxi_tensor *tensor) {
    int last = partition->stages - 1, stage = dlxi_partition_stage(partition, tensor);
    int rank = least_loaded(load, stage * replicas, (stage + 1) * replicas);
    if (!is_shared_by_ends(tensor)) return rank;
    int at_end = least_loaded(load, last * replicas, (last + 1) * replicas);
    return load[at_end] < load[rank] ? at_end : rank;
}

/* One pass over the tensors per size, from the largest, in order of id: a model has few sizes. */
void dlxi_shard_map_fill(int *shard_map, const dlxi_model_config *config,
                         const dlxi_partition *partition, int replicas) {
    int64_t load[DLXI_RANKS_MAX] = {0}, count = dlxi_model_tensor_count(config);
    DLXI_ASSERT(replicas >= 1 && partition->stages >= 1 &&
                replicas <= DLXI_RANKS_MAX / partition->stages);
    DLXI_ASSERT(partition->first_layer[partition->stages] == config->layers);
    for (int64_t size = INT64_MAX, smaller; size > 0; size = smaller) {
        smaller = 0;
        for (int64_t id = 0; id < count; id++) {
            dlxi_tensor tensor = dlxi_model_tensor(config, id);
            int64_t here = tensor.rows * tensor.cols;
            if (is_shared_by_ends(&tensor)) continue;
            if (here < size && here > smaller) smaller = here;
            if (here != size) continue;
            shard_map[id] = owner_choose(load, partition, replicas, &tensor);
            load[shard_map[id]] += size;
        }
    }
    dlxi_tensor table = dlxi_model_tensor(config, 0);
    if (is_shared_by_ends(&table)) shard_map[0] = owner_choose(load, partition, replicas, &table);
}
