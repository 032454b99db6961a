/* SPDX-License-Identifier: Apache-2.0 */
/* What of the pipeline is pure: the order of passes, the cut into stages, the owners of tensors. */
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

/* Every micro-batch goes forward once and backward once afterwards, both in order; in a slot that
 * nobody else has meanwhile, of no more than are needed. */
static void check_order(int stage, int stages, int64_t m) {
    int64_t forwards = 0, backwards = 0, in_slot[STAGES_MAX], most = 0;
    int slots = dlxi_schedule_slots(stage, stages, m);
    for (int slot = 0; slot < STAGES_MAX; slot++) in_slot[slot] = -1;
    for (int64_t i = 0; i < 2 * m; i++) {
        dlxi_pass pass = dlxi_schedule_pass(stage, stages, m, i);
        assert_in_range(pass.slot, 0, slots - 1);
        assert_int_equal(pass.micro_batch, pass.backward ? backwards++ : forwards++);
        assert_int_equal(in_slot[pass.slot], pass.backward ? pass.micro_batch : -1);
        in_slot[pass.slot] = pass.backward ? -1 : pass.micro_batch;
        if (forwards - backwards > most) most = forwards - backwards;
    }
    assert_int_equal(forwards, m);
    assert_int_equal(backwards, m);
    assert_int_equal(most, slots);
    assert_true(slots <= stages - stage && slots <= m);
}

static void test_order(void **unused) {
    (void)unused;
    for (int stages = 1; stages <= STAGES_MAX; stages++)
        for (int stage = 0; stage < stages; stage++)
            for (int64_t m = 1; m <= MICRO_BATCHES_MAX; m++) check_order(stage, stages, m);
}

/* When all stages are done, where a forward takes 1 and a backward `backward`, and messages take no
 * time. A pass starts when its stage is free and its input there; a stage that never gets its input
 * is a deadlock. */
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

/* Of (m + S − 1) times a forward and a backward, S − 1 are idle. */
static void test_idle_share(void **unused) {
    (void)unused;
    for (int stages = 1; stages <= STAGES_MAX; stages++)
        for (int64_t m = 1; m <= MICRO_BATCHES_MAX; m++)
            for (int64_t backward = 1; backward <= 3; backward++)
                assert_int_equal(simulate(stages, m, backward), (m + stages - 1) * (1 + backward));
}

/* ---- cut ------------------------------------------------------------------------------------- */

static dlxi_model_config model(int64_t layers) {
    dlxi_model_config config = dlxi_model_config_default(DLXI_FAMILY_GPT2);
    config.layers = layers, config.width = 32, config.mlp_width = 128, config.context = 16;
    return config;
}

static double slowest(const dlxi_partition *cut, const dlxi_costs *costs) {
    double worst = 0;
    for (int s = 0; s < cut->stages; s++) {
        double stage = costs->block * (double)(cut->first_layer[s + 1] - cut->first_layer[s]);
        if (s == 0) stage += costs->embedding;
        if (s == cut->stages - 1) stage += costs->head;
        worst = fmax(worst, stage);
    }
    return worst;
}

/* The best of all cuts: tries every one. */
static double best_of_all(dlxi_partition *cut, int64_t layers, int stage, const dlxi_costs *costs) {
    if (stage == cut->stages)
        return cut->first_layer[stage] == layers ? slowest(cut, costs) : (double)INFINITY;
    double best = (double)INFINITY;
    for (int64_t end = cut->first_layer[stage] + 1; end <= layers; end++) {
        cut->first_layer[stage + 1] = end;
        best = fmin(best, best_of_all(cut, layers, stage + 1, costs));
    }
    return best;
}

static void test_balanced_cut_is_the_best(void **unused) {
    (void)unused;
    static const dlxi_costs costs[] = {
        {1, 0, 0}, {1, 0.1, 5.5}, {1, 3.2, 0.4}, {1, 2, 2}, {0.3, 0, 100}};
    for (size_t c = 0; c < sizeof costs / sizeof *costs; c++) {
        for (int64_t layers = 1; layers <= 12; layers++) {
            dlxi_model_config config = model(layers);
            for (int stages = 1; stages <= 5 && stages <= layers; stages++) {
                dlxi_partition cut, tried = {.stages = stages};
                assert_int_equal(dlxi_partition_balanced(&cut, &config, &costs[c], stages, NULL),
                                 DLX_OK);
                assert_int_equal(cut.stages, stages);
                assert_int_equal(cut.first_layer[0], 0);
                assert_int_equal(cut.first_layer[stages], layers);
                for (int s = 0; s < stages; s++)
                    assert_true(cut.first_layer[s] < cut.first_layer[s + 1]);
                assert_true(fabs(slowest(&cut, &costs[c]) -
                                 best_of_all(&tried, layers, 0, &costs[c])) < 1e-9);
            }
        }
    }
}

static void assert_cut(const dlxi_partition *cut, const char *expected) {
    char text[64] = "";
    for (int s = 0; s < cut->stages; s++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", s == 0 ? "" : ",",
                 (int)(cut->first_layer[s + 1] - cut->first_layer[s]));
    assert_string_equal(text, expected);
}

static void test_equally_fast_cuts(void **unused) {
    (void)unused;
    dlxi_model_config config = model(12);
    dlxi_costs blocks = {.block = 1};
    dlxi_partition cut;
    assert_int_equal(dlxi_partition_balanced(&cut, &config, &blocks, 5, NULL), DLX_OK);
    assert_cut(&cut, "2,2,2,3,3");
    assert_int_equal(dlxi_partition_balanced(&cut, &config, &blocks, 4, NULL), DLX_OK);
    assert_cut(&cut, "3,3,3,3");
}

static void test_parse(void **unused) {
    (void)unused;
    dlxi_model_config config = model(12);
    dlxi_partition cut;
    dlx_error error = {0};
    assert_int_equal(dlxi_partition_parse(&cut, &config, 2, "9,3", &error), DLX_OK);
    assert_cut(&cut, "9,3");
    assert_int_equal(dlxi_partition_parse(&cut, &config, 1, "12", &error), DLX_OK);
    static const char *const wrong[] = {"",      "9",     "9,",    "9,3,",
                                        ",9,3",  "9,4",   "12,0",  "0,12",
                                        "13,-1", "-1,13", "9, 3",  " 9,3 ",
                                        "9;3",   "9.0,3", "9,3x",  "4,4,4",
                                        "9,,3",  "+9,3",  "0x9,3", "18446744073709551625,3",
                                        "9,3 ",  "auto",  "1e1,2", "10000000,\n3"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (dlxi_partition_parse(&cut, &config, 2, wrong[i], &error) != DLX_CONFIG)
            fail_msg("'%s' was taken", wrong[i]);
    assert_int_equal(dlxi_partition_parse(&cut, &config, 2, "6,3,3", &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "site.cut: '6,3,3' is not the layers of each stage: 2 numbers of at least 1 with commas "
        "between, 12 in all (model.layers); or auto");
}

static void test_too_many_stages(void **unused) {
    (void)unused;
    dlxi_model_config config = model(3);
    dlxi_costs costs = {.block = 1};
    dlxi_partition cut;
    dlx_error error = {0};
    assert_int_equal(dlxi_partition_balanced(&cut, &config, &costs, 4, &error), DLX_CONFIG);
    assert_string_equal(
        error.message,
        "site.stages: 4 is more than model.layers (3), and every stage needs a layer; "
        "set fewer stages or more layers");
    assert_int_equal(dlxi_partition_parse(&cut, &config, 4, "1,1,1,0", &error), DLX_CONFIG);
    assert_int_equal(dlxi_partition_balanced(&cut, &config, &costs, 0, &error), DLX_CONFIG);
    config.layers = 1024;
    assert_int_equal(dlxi_partition_balanced(&cut, &config, &costs, DLXI_STAGES_MAX + 1, &error),
                     DLX_CONFIG);
}

/* ---- owners ---------------------------------------------------------------------------------- */

static int64_t size_of(const dlxi_tensor *tensor) {
    return tensor->rows * tensor->cols;
}

static bool stage_has(const dlxi_partition *cut, int stage, const dlxi_tensor *tensor) {
    if (tensor->layer >= 0)
        return tensor->layer >= cut->first_layer[stage] &&
               tensor->layer < cut->first_layer[stage + 1];
    return (tensor->in_embedding && stage == 0) || (tensor->in_head && stage == cut->stages - 1);
}

/* Owners are ranks that hold the tensor; in each stage the largest load is at most the mean and the
 * largest tensor. The table that both ends hold is left out: it comes last, to the emptier of them.
 */
static void check_owners(const dlxi_model_config *config, int stages, int replicas) {
    int64_t count = dlxi_model_tensor_count(config);
    int owner[512], again[512];
    assert_true(count <= 512);
    dlxi_costs costs = {1, 0.2, 2};
    dlxi_partition cut;
    assert_int_equal(dlxi_partition_balanced(&cut, config, &costs, stages, NULL), DLX_OK);
    memset(owner, -1, sizeof owner);
    memset(again, -1, sizeof again);
    dlxi_owners(owner, config, &cut, replicas);
    dlxi_owners(again, config, &cut, replicas);
    assert_memory_equal(owner, again, sizeof owner);
    for (int64_t id = 0; id < count; id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        assert_in_range(owner[id], 0, stages * replicas - 1);
        assert_true(stage_has(&cut, owner[id] / replicas, &tensor));
    }
    int64_t load[64] = {0};
    for (int stage = 0; stage < stages; stage++) {
        int64_t sum = 0, largest_tensor = 0, largest_load = 0;
        for (int64_t id = 0; id < count; id++) {
            dlxi_tensor tensor = dlxi_model_tensor(config, id);
            if (!stage_has(&cut, stage, &tensor) || (tensor.in_embedding && tensor.in_head))
                continue;
            assert_int_equal(owner[id] / replicas, stage);
            load[owner[id]] += size_of(&tensor);
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
            assert_true(load[owner[0]] <= load[rank]);
}

static void test_owners(void **unused) {
    (void)unused;
    for (int f = 0; f < 3; f++) {
        dlxi_model_config config =
            dlxi_model_config_default(f == 0 ? DLXI_FAMILY_LLAMA : DLXI_FAMILY_GPT2);
        config.layers = 12;
        config.tied_head = f == 1;
        for (int stages = 1; stages <= 8; stages++)
            for (int replicas = 1; replicas <= 8; replicas++)
                check_owners(&config, stages, replicas);
    }
}

/* Equal blocks halved: neither of two replicas has more than 51% of the parameters. */
static void test_owners_share_alike(void **unused) {
    (void)unused;
    dlxi_model_config config = dlxi_model_config_default(DLXI_FAMILY_LLAMA);
    dlxi_partition cut = {.stages = 1, .first_layer = {0, config.layers}};
    int owner[64];
    int64_t load[2] = {0};
    assert_true(dlxi_model_tensor_count(&config) <= 64);
    dlxi_owners(owner, &config, &cut, 2);
    for (int64_t id = 0; id < dlxi_model_tensor_count(&config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(&config, id);
        load[owner[id]] += size_of(&tensor);
    }
    int64_t most = load[0] > load[1] ? load[0] : load[1];
    assert_true((double)most <= 0.51 * (double)(load[0] + load[1]));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_idle_share),
        cmocka_unit_test(test_balanced_cut_is_the_best),
        cmocka_unit_test(test_equally_fast_cuts),
        cmocka_unit_test(test_parse),
        cmocka_unit_test(test_too_many_stages),
        cmocka_unit_test(test_owners),
        cmocka_unit_test(test_owners_share_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
