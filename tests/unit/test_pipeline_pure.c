/* SPDX-License-Identifier: Apache-2.0 */
/* The order of passes, the partition into stages, the shard map. */
#include "pipeline/partition.h"
#include "pipeline/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- schedule -------------------------------------------------------------------------------- */

enum { STAGES_MAX = 7, MICRO_BATCHES_MAX = 20 };

/* Each micro-batch has one forward and then one backward pass, both in order, in a slot that is its
 * own from one to the other; no slot is unused. */
static void check_order(int stage, int stages, int64_t m) {
    int64_t forwards = 0, backwards = 0, in_slot[STAGES_MAX], alive_max = 0;
    int slots = dlxi_schedule_slots(stage, stages, m);
    for (int slot = 0; slot < STAGES_MAX; slot++) in_slot[slot] = -1;
    for (int64_t i = 0; i < 2 * m; i++) {
        dlxi_pass pass = dlxi_schedule_pass(stage, stages, m, i);
        assert_in_range(pass.slot, 0, slots - 1);
        assert_int_equal(pass.micro_batch, pass.backward ? backwards++ : forwards++);
        assert_int_equal(in_slot[pass.slot], pass.backward ? pass.micro_batch : -1);
        in_slot[pass.slot] = pass.backward ? -1 : pass.micro_batch;
        if (forwards - backwards > alive_max) alive_max = forwards - backwards;
    }
    assert_int_equal(forwards, m);
    assert_int_equal(backwards, m);
    assert_int_equal(alive_max, slots);
    assert_true(slots <= stages - stage && slots <= m);
}

static void test_order(void **unused) {
    (void)unused;
    for (int stages = 1; stages <= STAGES_MAX; stages++)
        for (int stage = 0; stage < stages; stage++)
            for (int64_t m = 1; m <= MICRO_BATCHES_MAX; m++) check_order(stage, stages, m);
}

/* The time at which all stages are done if a forward pass takes 1, a backward pass `backward`, and
 * a message no time. A pass starts when its stage is free and its input is ready; a stage that
 * never gets its input is a deadlock. */
static int64_t simulate(int stages, int64_t m, int64_t backward) {
    int64_t done[STAGES_MAX][2][MICRO_BATCHES_MAX], next[STAGES_MAX] = {0},
                                                    free_at[STAGES_MAX] = {0}, end = 0;
    memset(done, -1, sizeof done);
    for (bool moved = true; moved;) {
        moved = false;
        for (int s = 0; s < stages; s++) {
            if (next[s] == 2 * m) continue;
            dlxi_pass pass = dlxi_schedule_pass(s, stages, m, next[s]);
            int64_t ready = 0;
            if (!pass.backward && s > 0) ready = done[s - 1][0][pass.micro_batch];
            if (pass.backward && s < stages - 1) ready = done[s + 1][1][pass.micro_batch];
            if (ready < 0) continue;
            free_at[s] = (ready > free_at[s] ? ready : free_at[s]) + (pass.backward ? backward : 1);
            done[s][pass.backward][pass.micro_batch] = free_at[s];
            if (free_at[s] > end) end = free_at[s];
            next[s]++;
            moved = true;
        }
    }
    for (int s = 0; s < stages; s++) assert_int_equal(next[s], 2 * m);
    return end;
}

/* A stage is idle for S − 1 of (m + S − 1) times a forward and a backward pass. */
static void test_idle_share(void **unused) {
    (void)unused;
    for (int stages = 1; stages <= STAGES_MAX; stages++)
        for (int64_t m = 1; m <= MICRO_BATCHES_MAX; m++)
            for (int64_t backward = 1; backward <= 3; backward++)
                assert_int_equal(simulate(stages, m, backward), (m + stages - 1) * (1 + backward));
}

/* ---- partition ------------------------------------------------------------------------------- */

static dlxi_model_config model(int64_t layers) {
    dlxi_model_config config = dlxi_model_config_default(DLXI_FAMILY_GPT2);
    config.layers = layers, config.width = 32, config.mlp_width = 128, config.context = 16;
    return config;
}

static double slowest(const dlxi_partition *partition, const dlxi_costs *costs) {
    double worst = 0;
    for (int s = 0; s < partition->stages; s++) {
        double stage =
            costs->block * (double)(partition->first_layer[s + 1] - partition->first_layer[s]);
        if (s == 0) stage += costs->embedding;
        if (s == partition->stages - 1) stage += costs->head;
        worst = fmax(worst, stage);
    }
    return worst;
}

/* The best of all partitions: tries every one. */
static double best_of_all(dlxi_partition *partition, int64_t layers, int stage,
                          const dlxi_costs *costs) {
    if (stage == partition->stages)
        return partition->first_layer[stage] == layers ? slowest(partition, costs)
                                                       : (double)INFINITY;
    double best = (double)INFINITY;
    for (int64_t end = partition->first_layer[stage] + 1; end <= layers; end++) {
        partition->first_layer[stage + 1] = end;
        best = fmin(best, best_of_all(partition, layers, stage + 1, costs));
    }
    return best;
}

static void test_balanced_partition_is_the_best(void **unused) {
    (void)unused;
    static const dlxi_costs costs[] = {
        {1, 0, 0}, {1, 0.1, 5.5}, {1, 3.2, 0.4}, {1, 2, 2}, {0.3, 0, 100}};
    for (size_t c = 0; c < sizeof costs / sizeof *costs; c++) {
        for (int64_t layers = 1; layers <= 12; layers++) {
            dlxi_model_config config = model(layers);
            for (int stages = 1; stages <= 5 && stages <= layers; stages++) {
                dlxi_partition partition, tried = {.stages = stages};
                assert_int_equal(
                    dlxi_partition_balanced(&partition, &config, &costs[c], stages, NULL), DLX_OK);
                assert_int_equal(partition.stages, stages);
                assert_int_equal(partition.first_layer[0], 0);
                assert_int_equal(partition.first_layer[stages], layers);
                for (int s = 0; s < stages; s++)
                    assert_true(partition.first_layer[s] < partition.first_layer[s + 1]);
                assert_true(fabs(slowest(&partition, &costs[c]) -
                                 best_of_all(&tried, layers, 0, &costs[c])) < 1e-9);
            }
        }
    }
}

static void assert_partition(const dlxi_partition *partition, const char *expected) {
    char text[64] = "";
    for (int s = 0; s < partition->stages; s++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", s == 0 ? "" : ",",
                 (int)(partition->first_layer[s + 1] - partition->first_layer[s]));
    assert_string_equal(text, expected);
}

static void test_equally_fast_partitions(void **unused) {
    (void)unused;
    dlxi_model_config config = model(12);
    dlxi_costs blocks = {.block = 1};
    dlxi_partition partition;
    assert_int_equal(dlxi_partition_balanced(&partition, &config, &blocks, 5, NULL), DLX_OK);
    assert_partition(&partition, "2,2,2,3,3");
    assert_int_equal(dlxi_partition_balanced(&partition, &config, &blocks, 4, NULL), DLX_OK);
    assert_partition(&partition, "3,3,3,3");
}

static void test_parse(void **unused) {
    (void)unused;
    dlxi_model_config config = model(12);
    dlxi_partition partition;
    dlx_error error = {0};
    assert_int_equal(dlxi_partition_parse(&partition, &config, 2, "9,3", &error), DLX_OK);
    assert_partition(&partition, "9,3");
    assert_int_equal(dlxi_partition_parse(&partition, &config, 1, "12", &error), DLX_OK);
    static const char *const wrong[] = {"",      "9",     "9,",    "9,3,",
                                        ",9,3",  "9,4",   "12,0",  "0,12",
                                        "13,-1", "-1,13", "9, 3",  " 9,3 ",
                                        "9;3",   "9.0,3", "9,3x",  "4,4,4",
                                        "9,,3",  "+9,3",  "0x9,3", "18446744073709551625,3",
                                        "9,3 ",  "auto",  "1e1,2", "10000000,\n3"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (dlxi_partition_parse(&partition, &config, 2, wrong[i], &error) != DLX_CONFIG)
            fail_msg("'%s' was taken", wrong[i]);
    assert_int_equal(dlxi_partition_parse(&partition, &config, 2, "6,3,3", &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "site.cut: '6,3,3' must be auto, or the layers of each stage: 2 numbers of at least 1, "
        "separated by commas, with the sum 12 (model.layers)");
}

static void test_too_many_stages(void **unused) {
    (void)unused;
    dlxi_model_config config = model(3);
    dlxi_costs costs = {.block = 1};
    dlxi_partition partition;
    dlx_error error = {0};
    assert_int_equal(dlxi_partition_balanced(&partition, &config, &costs, 4, &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "site.stages: 4 is more than model.layers (3), and every stage needs a layer; "
        "set fewer stages or more layers");
    assert_int_equal(dlxi_partition_parse(&partition, &config, 4, "1,1,1,0", &error), DLX_CONFIG);
    assert_int_equal(dlxi_partition_balanced(&partition, &config, &costs, 0, &error), DLX_CONFIG);
    config.layers = 1024;
    assert_int_equal(
        dlxi_partition_balanced(&partition, &config, &costs, DLXI_STAGES_MAX + 1, &error),
        DLX_CONFIG);
}

/* ---- shard map ------------------------------------------------------------------------------- */

static int64_t size_of(const dlxi_tensor *tensor) {
    return tensor->rows * tensor->cols;
}

static bool stage_has(const dlxi_partition *partition, int stage, const dlxi_tensor *tensor) {
    if (tensor->layer >= 0)
        return tensor->layer >= partition->first_layer[stage] &&
               tensor->layer < partition->first_layer[stage + 1];
    return (tensor->in_embedding && stage == 0) ||
           (tensor->in_head && stage == partition->stages - 1);
}

/* Owners hold their tensors, and a stage's largest load is at most the mean plus the largest
 * tensor: without the table that both ends hold, which comes last, to the least loaded of their
 * ranks. */
static void check_shard_map(const dlxi_model_config *config, int stages, int replicas) {
    int64_t count = dlxi_model_tensor_count(config);
    int shard_map[512], again[512];
    assert_true(count <= 512);
    dlxi_costs costs = {1, 0.2, 2};
    dlxi_partition partition;
    assert_int_equal(dlxi_partition_balanced(&partition, config, &costs, stages, NULL), DLX_OK);
    memset(shard_map, -1, sizeof shard_map);
    memset(again, -1, sizeof again);
    dlxi_shard_map_fill(shard_map, config, &partition, replicas);
    dlxi_shard_map_fill(again, config, &partition, replicas);
    assert_memory_equal(shard_map, again, sizeof shard_map);
    for (int64_t id = 0; id < count; id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        assert_in_range(shard_map[id], 0, stages * replicas - 1);
        assert_true(stage_has(&partition, shard_map[id] / replicas, &tensor));
    }
    int64_t load[64] = {0};
    for (int stage = 0; stage < stages; stage++) {
        int64_t sum = 0, largest_tensor = 0, largest_load = 0;
        for (int64_t id = 0; id < count; id++) {
            dlxi_tensor tensor = dlxi_model_tensor(config, id);
            if (!stage_has(&partition, stage, &tensor) || (tensor.in_embedding && tensor.in_head))
                continue;
            assert_int_equal(shard_map[id] / replicas, stage);
            load[shard_map[id]] += size_of(&tensor);
            sum += size_of(&tensor);
            if (size_of(&tensor) > largest_tensor) largest_tensor = size_of(&tensor);
        }
        for (int r = 0; r < replicas; r++)
            if (load[stage * replicas + r] > largest_load)
                largest_load = load[stage * replicas + r];
        assert_true(largest_load <= sum / replicas + largest_tensor);
    }
    if (!config->tied_head) return;
    for (int rank = 0; rank < stages * replicas; rank++)
        if (rank < replicas || rank >= (stages - 1) * replicas)
            assert_true(load[shard_map[0]] <= load[rank]);
}

static void test_shard_map(void **unused) {
    (void)unused;
    for (int f = 0; f < 3; f++) {
        dlxi_model_config config =
            dlxi_model_config_default(f == 0 ? DLXI_FAMILY_LLAMA : DLXI_FAMILY_GPT2);
        config.layers = 12;
        config.tied_head = f == 1;
        for (int stages = 1; stages <= 8; stages++)
            for (int replicas = 1; replicas <= 8; replicas++)
                check_shard_map(&config, stages, replicas);
    }
}

/* Neither of two replicas owns more than 51% of the parameters. */
static void test_balanced_shard_map(void **unused) {
    (void)unused;
    dlxi_model_config config = dlxi_model_config_default(DLXI_FAMILY_LLAMA);
    dlxi_partition partition = {.stages = 1, .first_layer = {0, config.layers}};
    int shard_map[64];
    int64_t load[2] = {0};
    assert_true(dlxi_model_tensor_count(&config) <= 64);
    dlxi_shard_map_fill(shard_map, &config, &partition, 2);
    for (int64_t id = 0; id < dlxi_model_tensor_count(&config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(&config, id);
        load[shard_map[id]] += size_of(&tensor);
    }
    int64_t largest = load[0] > load[1] ? load[0] : load[1];
    assert_true((double)largest <= 0.51 * (double)(load[0] + load[1]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_idle_share),
        cmocka_unit_test(test_balanced_partition_is_the_best),
        cmocka_unit_test(test_equally_fast_partitions),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_too_many_stages),
        cmocka_unit_test(test_shard_map),
        cmocka_unit_test(test_balanced_shard_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
