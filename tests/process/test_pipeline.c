/* SPDX-License-Identifier: Apache-2.0 */
/* A site of several ranks against the whole model: gradients, losses, parameters, evaluation.
 *
 * mpirun -n STAGES·REPLICAS test_pipeline STAGES REPLICAS
 *
 * Every rank also trains the whole model, without a pipeline and MPI, and compares. 1 1 uses no MPI
 * at all. */
#include "base/hash.h"
#include "base/memory.h"
#include "base/rng.h"
#include "pipeline/pipeline.h"

#include "mpi_job.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    T = 16,
    V = 61,
    MICRO_BATCH = 2,
    STEPS = 4,
    SHARD_TOKENS = 37 * T + 1,
    TENSORS_MAX = 128,
    RANKS_MAX = 8
};

static dlxi_grid *grid; /* NULL: one rank */

/* ---- scenarios ------------------------------------------------------------------------------- */

typedef struct scenario {
    const char *name;
    dlxi_family family;
    bool tied_head;
    const char *backend;
    bool recompute;
    int64_t micro_batches; /* of a replica */
    int64_t vocabulary;    /* 0: V */
} scenario;

static const scenario scenarios[] = {
    {"llama, ref", DLXI_FAMILY_LLAMA, false, "ref", false, 4},
    {"llama, fast, recompute", DLXI_FAMILY_LLAMA, false, "fast", true, 4},
    {"gpt2, tied, fast", DLXI_FAMILY_GPT2, true, "fast", false, 4},
    {"gpt2, tied, ref, recompute", DLXI_FAMILY_GPT2, true, "ref", true, 5},
    {"llama, tied, fast, one micro-batch", DLXI_FAMILY_LLAMA, true, "fast", false, 1},
    {"gpt2, tied, table of several messages", DLXI_FAMILY_GPT2, true, "fast", false, 2, 20000},
    {"gpt2, fast, three micro-batches", DLXI_FAMILY_GPT2, false, "fast", false, 3},
};

static dlxi_model_config model_of(const scenario *sc) {
    dlxi_model_config config = dlxi_model_config_default(sc->family);
    config.layers = 5;
    /* ref is slow, most of all under sanitizers, and has one path for all sizes */
    bool narrow = strcmp(sc->backend, "ref") == 0;
    config.width = narrow ? 32 : 64;
    config.heads = 4;
    config.kv_heads = sc->family == DLXI_FAMILY_GPT2 ? 4 : 2;
    config.mlp_width = narrow ? 40 : 80;
    config.context = T;
    config.vocabulary = sc->vocabulary > 0 ? sc->vocabulary : V;
    config.tied_head = sc->tied_head;
    return config;
}

/* Random, but not without structure: three tokens of four are the previous one plus 1. */
static dlxi_token_file shard_make(uint8_t *payload, uint64_t stream) {
    static char key[] = "data.train", path[] = "made.tokens";
    for (int i = 0; i < SHARD_TOKENS; i++) {
        uint64_t draw = dlxi_rng_u64(3, stream, (uint64_t)i);
        payload[i] =
            (uint8_t)(i > 0 && draw % 4 > 0 ? (payload[i - 1] + 1) % V : (int)(draw / 4 % V));
    }
    return (dlxi_token_file){.payload = payload,
                             .count = SHARD_TOKENS,
                             .token_bytes = 1,
                             .vocabulary = V,
                             .key = key,
                             .path = path};
}

/* One model as a pipeline, and whole. */
typedef struct world {
    const scenario *scenario;
    dlxi_model_config config;
    int stages, replicas, ranks;
    dlxi_token_file train, validation;
    dlxi_sampler sampler;
    dlxi_kernels *kernels, *whole_kernels;
    dlxi_pipeline *pipeline;
    dlxi_stage *whole;
    volatile sig_atomic_t interrupted;
    uint8_t train_tokens[SHARD_TOKENS], validation_tokens[SHARD_TOKENS];
} world;

static int64_t batch_of(const world *w) {
    return w->scenario->micro_batches * w->replicas * MICRO_BATCH;
}

static void world_open(world *w, const scenario *sc, int stages, int replicas) {
    *w = (world){.scenario = sc, .config = model_of(sc), .stages = stages, .replicas = replicas};
    w->ranks = stages * replicas;
    w->train = shard_make(w->train_tokens, 0);
    w->validation = shard_make(w->validation_tokens, 1);
    MUST(dlxi_sampler_open(&w->sampler, &w->train, T, 5, &error));
    MUST(dlxi_kernels_open(&w->kernels, sc->backend, DLXI_PRECISION_F32, 1, &error));
    MUST(dlxi_kernels_open(&w->whole_kernels, sc->backend, DLXI_PRECISION_F32, 1, &error));
    dlxi_pipeline_options options = {.grid = grid,
                                     .batch = batch_of(w),
                                     .micro_batch = MICRO_BATCH,
                                     .recompute = sc->recompute,
                                     .seed = 7,
                                     .sampler = &w->sampler,
                                     .interrupted = &w->interrupted};
    dlxi_costs costs = dlxi_costs_estimate(&w->config, T);
    MUST(dlxi_partition_balanced(&options.partition, &w->config, &costs, stages, &error));
    MUST(dlxi_pipeline_open(&w->pipeline, &w->config, &options, w->kernels, &error));
    dlxi_stage_options whole = dlxi_stage_options_whole(&w->config, MICRO_BATCH, T, 7);
    MUST(dlxi_stage_open(&w->whole, &w->config, &whole, w->whole_kernels, &error));
    int index = grid == NULL ? 0 : grid->stage;
    const dlxi_stage_options *opened = dlxi_stage_opened_with(dlxi_pipeline_stage(w->pipeline));
    int slots = opened->slots;
    CHECK(opened->recompute == sc->recompute && opened->training, "the stage has other options");
    CHECK(slots <= stages - index, "%d micro-batches in flight in stage %d of %d", slots, index,
          stages);
}

static void world_close(world *w) {
    dlxi_pipeline_close(&w->pipeline);
    dlxi_stage_close(&w->whole);
    dlxi_kernels_close(&w->kernels);
    dlxi_kernels_close(&w->whole_kernels);
}

/* ---- comparisons ----------------------------------------------------------------------------- */

static const dlxi_parameter *of_whole(world *w, const dlxi_parameter *parameter) {
    int64_t count;
    return &dlxi_stage_parameters(w->whole, &count)[parameter->tensor.id];
}

/* ‖a − b‖; b NULL: ‖a‖ */
static double distance(const float *a, const float *b, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)a[i] - (b == NULL ? 0 : (double)b[i]);
        sum += d * d;
    }
    return sqrt(sum);
}

/* ‖a − b‖ / max(‖b‖, 1% of `all`): the gradient of a key's bias is only rounding. */
static double difference(const float *a, const float *b, int64_t count, double all) {
    return distance(a, b, count) / fmax(distance(b, NULL, count), 0.01 * all);
}

static double whole_gradient_norm(world *w) {
    int64_t count;
    const dlxi_parameter *parameter = dlxi_stage_parameters(w->whole, &count);
    double squares = 0;
    for (int64_t i = 0; i < count; i++)
        squares += pow(distance(parameter[i].gradient, NULL, parameter[i].count), 2);
    return sqrt(squares);
}

static void check_owned(world *w, int step) {
    int64_t count;
    const dlxi_parameter *owned = dlxi_pipeline_owned(w->pipeline, &count);
    double norm = whole_gradient_norm(w);
    for (int64_t i = 0; i < count; i++) {
        const dlxi_parameter *whole = of_whole(w, &owned[i]);
        CHECK(i == 0 || owned[i - 1].tensor.id < owned[i].tensor.id,
              "owned tensors are not in order");
        double apart = difference(owned[i].gradient, whole->gradient, owned[i].count, norm);
        CHECK(apart < 1e-5, "%s: step %d: gradient of %s is apart by %g", w->scenario->name, step,
              owned[i].tensor.name, apart);
    }
}

static void gather(void *all, const void *own, size_t bytes) {
    if (grid == NULL)
        memcpy(all, own, bytes);
    else
        MUST(dlxi_grid_gather(grid, all, own, bytes, &error));
}

/* Each tensor has one owner, and the same bits on all its holders, close to the whole model's. */
static void check_parameters(world *w, int step) {
    typedef struct holding {
        uint64_t hash;
        bool held, owned;
    } holding;
    holding own[TENSORS_MAX] = {0}, all[RANKS_MAX][TENSORS_MAX];
    int64_t count, owned_count, tensor_count = dlxi_model_tensor_count(&w->config);
    const dlxi_parameter *parameter =
        dlxi_stage_parameters(dlxi_pipeline_stage(w->pipeline), &count);
    const dlxi_parameter *owned = dlxi_pipeline_owned(w->pipeline, &owned_count);
    CHECK(tensor_count <= TENSORS_MAX && w->ranks <= RANKS_MAX,
          "too many tensors or ranks for this test");
    for (int64_t i = 0; i < count; i++) {
        size_t bytes = (size_t)parameter[i].count * sizeof(float);
        own[parameter[i].tensor.id] =
            (holding){.hash = dlxi_hash(parameter[i].data, bytes, 0), .held = true};
        double apart =
            difference(parameter[i].data, of_whole(w, &parameter[i])->data, parameter[i].count, 1);
        CHECK(apart < 1e-5, "%s: step %d: %s is apart by %g", w->scenario->name, step,
              parameter[i].tensor.name, apart);
    }
    for (int64_t i = 0; i < owned_count; i++) own[owned[i].tensor.id].owned = true;
    gather(all, own, sizeof own);
    for (int64_t id = 0; id < tensor_count; id++) {
        int owners = 0;
        for (int rank = 0; rank < w->ranks; rank++) owners += all[rank][id].owned;
        CHECK(owners == 1, "tensor %" PRId64 " has %d owners", id, owners);
        for (int rank = 0; rank < w->ranks; rank++)
            CHECK(!own[id].held || !all[rank][id].held || own[id].hash == all[rank][id].hash,
                  "%s: step %d: tensor %" PRId64 " differs from rank %d's", w->scenario->name, step,
                  id, rank);
    }
}

/* ---- steps ----------------------------------------------------------------------------------- */

static double whole_accumulate(world *w, const uint64_t *positions) {
    uint32_t tokens[MICRO_BATCH * T], targets[MICRO_BATCH * T];
    int64_t micro_batches = batch_of(w) / MICRO_BATCH, part[MICRO_BATCH];
    double sum = 0, loss = 0;
    dlxi_stage_zero_gradients(w->whole);
    for (int64_t m = 0; m < micro_batches; m++) {
        for (int i = 0; i < MICRO_BATCH; i++) part[i] = (int64_t)positions[m * MICRO_BATCH + i];
        dlxi_sampler_batch(tokens, targets, &w->sampler, part, MICRO_BATCH);
        MUST(dlxi_stage_forward(w->whole, 0, tokens, NULL, targets, &loss, &error));
        MUST(dlxi_stage_backward(w->whole, 0, NULL, &error));
        sum += loss;
    }
    return sum / (double)micro_batches;
}

static void descend(dlxi_parameter *parameter, int64_t count, int64_t micro_batches) {
    const float rate = 0.1f / (float)micro_batches;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < parameter[i].count; j++)
            parameter[i].data[j] -= rate * parameter[i].gradient[j];
}

static void step_take(world *w, int step) {
    int64_t batch = batch_of(w), count;
    uint64_t positions[64];
    double loss, whole_loss;
    CHECK(batch <= 64, "too large a batch for this test");
    for (int64_t i = 0; i < batch; i++) positions[i] = (uint64_t)(step * batch + i);
    MUST(dlxi_pipeline_accumulate(w->pipeline, positions, &loss, &error));
    if (grid != NULL) {
        CHECK(grid->stage == grid->stages - 1 || loss == 0, "a stage without a head has a loss");
        MUST(dlxi_grid_sum(grid, &loss, 1, &error));
    }
    whole_loss = whole_accumulate(w, positions);
    CHECK(fabs(loss - whole_loss) < 1e-5 * whole_loss, "%s: step %d: loss %.9g, whole %.9g",
          w->scenario->name, step, loss, whole_loss);
    check_owned(w, step);
    dlxi_parameter *owned = dlxi_pipeline_owned(w->pipeline, &count);
    descend(owned, count, batch / MICRO_BATCH);
    MUST(dlxi_pipeline_share_parameters(w->pipeline, &error));
    dlxi_parameter *whole = dlxi_stage_parameters(w->whole, &count);
    descend(whole, count, batch / MICRO_BATCH);
    dlxi_stage_parameters_changed(w->whole);
    check_parameters(w, step);
}

/* ---- evaluation ------------------------------------------------------------------------------ */

static void check_evaluation(world *w, int64_t tokens_max, int64_t index, int64_t stride) {
    dlxi_validation reader;
    uint32_t tokens[T], targets[T];
    double sum, tokens_seen, expected = 0, expected_tokens = 0, loss;
    MUST(dlxi_pipeline_evaluate(w->pipeline, &w->validation, tokens_max, index, stride, &sum,
                                &tokens_seen, &error));
    MUST(dlxi_validation_open(&reader, &w->validation, T, tokens_max, index, stride, &error));
    while (dlxi_validation_next(tokens, targets, &reader, 1) == 1) {
        MUST(dlxi_stage_evaluate(w->whole, 0, tokens, NULL, targets, 1, &loss, &error));
        expected += loss;
        expected_tokens += T;
    }
    CHECK(tokens_seen == expected_tokens, "%g tokens evaluated, not %g", tokens_seen,
          expected_tokens);
    CHECK(fabs(sum - expected) <= 1e-5 * expected,
          "%s: evaluation of part %" PRId64 " of %" PRId64 ": %.9g, not %.9g", w->scenario->name,
          index, stride, sum, expected);
}

static void evaluate(world *w) {
    check_evaluation(w, 0, 0, 1);
    check_evaluation(w, 7 * T, 0, 2);
    check_evaluation(w, 7 * T, 1, 2);
    check_evaluation(w, 3 * T, 2, 3); /* some replicas have nothing */
    check_evaluation(w, T, 1, 2);     /* all have nothing */
}

/* ---- one rank -------------------------------------------------------------------------------- */

static void check_interrupt(world *w) {
    uint64_t positions[64] = {0};
    double loss, tokens;
    w->interrupted = 1;
    CHECK(dlxi_pipeline_accumulate(w->pipeline, positions, &loss, &error) == DLX_INTERRUPTED,
          "not interrupted");
    CHECK(dlxi_pipeline_evaluate(w->pipeline, &w->validation, 0, 0, 1, &loss, &tokens, &error) ==
              DLX_INTERRUPTED,
          "evaluation is not interrupted");
    w->interrupted = 0;
}

static void check_refusals(world *w) {
    dlxi_pipeline *refused;
    dlxi_pipeline_options options = {
        .micro_batch = MICRO_BATCH, .batch = 5, .seed = 1, .sampler = &w->sampler};
    options.partition = (dlxi_partition){.stages = 1, .first_layer = {0, w->config.layers}};
    CHECK(dlxi_pipeline_open(&refused, &w->config, &options, w->kernels, &error) == DLX_CONFIG,
          "took a batch of 5");
    CHECK(refused == NULL, "a refused pipeline is not NULL");
    const char *expected =
        "train.batch: 5 is not a multiple of train.micro_batch (2) times site.replicas (1); set it "
        "to 6";
    CHECK(strcmp(error.message, expected) == 0, "%s", error.message);
}

/* ---- main ------------------------------------------------------------------------------------ */

static void run_scenario(const scenario *sc, int stages, int replicas) {
    static world w; /* large */
    world_open(&w, sc, stages, replicas);
    evaluate(&w);
    for (int step = 0; step < STEPS; step++) step_take(&w, step);
    evaluate(&w);
    dlxi_pipeline_times times = dlxi_pipeline_times_of(w.pipeline);
    CHECK(times.step_s > 0 && times.idle_s >= 0 && times.reduce_s >= 0 && times.share_s >= 0 &&
              times.idle_s + times.reduce_s < times.step_s,
          "times: %g %g %g %g", times.step_s, times.idle_s, times.reduce_s, times.share_s);
    if (grid == NULL) {
        check_interrupt(&w);
        check_refusals(&w);
    }
    world_close(&w);
    if (grid == NULL || grid->rank == 0) printf("ok %s\n", sc->name);
}

int main(int argc, char **argv) {
    int stages = argc == 3 ? atoi(argv[1]) : 0, replicas = argc == 3 ? atoi(argv[2]) : 0;
    if (stages < 1 || replicas < 1) {
        fprintf(stderr, "test_pipeline STAGES REPLICAS\n");
        return 2;
    }
    if (stages * replicas > 1) {
        MUST(dlxi_cluster_open(&cluster, &error));
        MUST(dlxi_grid_open(&grid, cluster, 1, stages, replicas, &error));
    }
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        run_scenario(&scenarios[i], stages, replicas);
    dlxi_grid_close(&grid);
    dlxi_cluster_close(&cluster);
    return 0;
}
