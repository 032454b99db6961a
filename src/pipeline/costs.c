/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of a model cost: predicted from operations, and measured. */
#include "pipeline/partition.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/rng.h"

#include <stdlib.h>

dlxi_costs dlxi_costs_with_recompute(dlxi_costs costs) {
    costs.block *= 4.0 / 3.0; /* a backward pass costs two forward passes */
    return costs;
}

/* ---- predicted ------------------------------------------------------------------------------- */

/* Billions per second, forward and backward, on one core with AVX-512-BF16 and bf16 products.
 * Rounded from timings of the single operations at N = 64 to 2048 and C = 256 to 768. Attention,
 * loss and embedding were then fitted so that the head's and the embedding's share of a block are
 * near dlxi_costs_measure's for GPT-2 124M at T = 64 and 512, the quickstart at T = 256 and two
 * llamas between: attention's is not the rate of its kernel alone. */
static const struct rates {
    double linear;                        /* floating-point operations in products with weights */
    double attention;                     /* the same, 12·T²·C per window, though causal */
    double layernorm, rmsnorm;            /* elements */
    double gelu, swiglu, add, rope, loss; /* elements; for the loss, logits */
    double embedding;
} rates = {.linear = 250,
           .attention = 200,
           .layernorm = 2.1,
           .rmsnorm = 2.9,
           .gelu = 1.05,
           .swiglu = 1.4,
           .add = 10,
           .rope = 5,
           .loss = 1.7,
           .embedding = 0.7};

static double norm_cost(const dlxi_model_config *config) {
    return (double)config->width /
           (dlxi_model_parts(config)->layer_norm ? rates.layernorm : rates.rmsnorm);
}

/* Parameters in a block's matrices. */
static double block_matrices(const dlxi_model_config *config) {
    double sum = 0;
    for (int64_t id = 0; id < dlxi_model_tensor_count(config); id++) {
        dlxi_tensor tensor = dlxi_model_tensor(config, id);
        if (tensor.layer == 0 && tensor.hidden_matrix)
            sum += (double)tensor.rows * (double)tensor.cols;
    }
    return sum;
}

/* A product with a weight of P parameters takes 2·P operations forward and 4·P backward. */
dlxi_costs dlxi_costs_estimate(const dlxi_model_config *config, int64_t T) {
    const dlxi_family_parts *parts = dlxi_model_parts(config);
    double C = (double)config->width, M = (double)config->mlp_width, V = (double)config->vocabulary;
    double K = C * (double)config->kv_heads / (double)config->heads;
    dlxi_costs costs = {0};
    costs.block = 6 * block_matrices(config) / rates.linear + 12 * (double)T * C / rates.attention;
    costs.block += 2 * norm_cost(config) + (parts->gated_mlp ? 7 : 6) * C / rates.add;
    costs.block += (parts->gated_mlp ? M / rates.swiglu : M / rates.gelu) +
                   (parts->learned_positions ? 0 : (C + K) / rates.rope);
    costs.head = 6 * V * C / rates.linear + V / rates.loss + norm_cost(config);
    costs.embedding = C / rates.embedding;
    return costs;
}

/* ---- measured -------------------------------------------------------------------------------- */

/* Blocks are timed four at a time: fewer weights would fit a cache that a stage's do not. */
enum { BLOCKS_MAX = 4, ROUNDS_UNTIMED = 2, ROUNDS_MIN = 7, ROUNDS_MAX = 101 };
#define ROUNDS_S_MAX 1.0 /* unless ROUNDS_MIN take longer */

/* One part of a model alone, and its inputs. */
typedef struct part {
    dlxi_stage *stage;
    uint32_t *tokens, *targets; /* [B,T] */
    float *input;               /* [B,T,C]; also d_output */
    double seconds[ROUNDS_MAX];
} part;

static dlx_status part_open(part *p, const dlxi_model_config *config,
                            const dlxi_stage_options *options, dlxi_kernels *kernels,
                            dlx_error *error) {
    int64_t N = options->batch * options->length;
    DLX_TRY(dlxi_stage_open(&p->stage, config, options, kernels, error));
    DLX_TRY(DLXI_NEW(&p->tokens, N, error));
    DLX_TRY(DLXI_NEW(&p->targets, N, error));
    DLX_TRY(DLXI_NEW(&p->input, N * config->width, error));
    for (int64_t n = 0; n < N; n++) {
        p->tokens[n] = (uint32_t)(dlxi_rng_u64(1, 0, (uint64_t)n) % (uint64_t)config->vocabulary);
        p->targets[n] = (uint32_t)(dlxi_rng_u64(1, 1, (uint64_t)n) % (uint64_t)config->vocabulary);
    }
    for (int64_t i = 0; i < N * config->width; i++)
        p->input[i] = dlxi_rng_normal(1, 2, (uint64_t)i);
    return DLX_OK;
}

static void part_close(part *p) {
    dlxi_stage_close(&p->stage);
    free(p->tokens);
    free(p->targets);
    free(p->input);
}

static dlx_status part_run(part *p, double *seconds, dlx_error *error) {
    const dlxi_stage_options *o = dlxi_stage_opened_with(p->stage);
    double loss, begun_s = dlxi_clock_s();
    DLX_TRY(dlxi_stage_forward(p->stage, 0, o->has_embedding ? p->tokens : NULL,
                               o->has_embedding ? NULL : p->input, o->has_head ? p->targets : NULL,
                               o->has_head ? &loss : NULL, error));
    DLX_TRY(dlxi_stage_backward(p->stage, 0, o->has_head ? NULL : p->input, error));
    *seconds = dlxi_clock_s() - begun_s;
    return DLX_OK;
}

/* In turn, so that other work on the machine disturbs all parts equally. */
static dlx_status parts_time(dlxi_costs *out, part parts[3], dlx_error *error) {
    int rounds = 0;
    for (int i = 0; i < 3 * ROUNDS_UNTIMED; i++)
        DLX_TRY(part_run(&parts[i % 3], &parts[i % 3].seconds[0], error));
    double begun_s = dlxi_clock_s();
    for (; rounds < ROUNDS_MIN || (rounds < ROUNDS_MAX && dlxi_clock_s() - begun_s < ROUNDS_S_MAX);
         rounds++)
        for (int i = 0; i < 3; i++) DLX_TRY(part_run(&parts[i], &parts[i].seconds[rounds], error));
    *out = (dlxi_costs){.block = dlxi_median(parts[0].seconds, rounds),
                        .embedding = dlxi_median(parts[1].seconds, rounds),
                        .head = dlxi_median(parts[2].seconds, rounds)};
    return DLX_OK;
}

dlx_status dlxi_costs_measure(dlxi_costs *out, const dlxi_model_config *config, int64_t batch,
                              int64_t T, dlxi_kernels *kernels, dlx_error *error) {
    dlx_status status = DLX_OK;
    dlxi_stage_options options = {
        .batch = batch, .length = T, .slots = 1, .training = true, .seed = 1};
    dlxi_stage_options block = options, embedding = options, head = options;
    part parts[3] = {0};
    DLX_TRY(dlxi_model_config_validate(config, error));
    block.end_layer = config->layers < BLOCKS_MAX ? config->layers : BLOCKS_MAX;
    embedding.has_embedding = true;
    head.first_layer = head.end_layer = config->layers;
    head.has_head = true;
    DLX_TRY_OUT(part_open(&parts[0], config, &block, kernels, error));
    DLX_TRY_OUT(part_open(&parts[1], config, &embedding, kernels, error));
    DLX_TRY_OUT(part_open(&parts[2], config, &head, kernels, error));
    DLX_TRY_OUT(parts_time(out, parts, error));
    out->block /= (double)block.end_layer;
out:
    for (int i = 0; i < 3; i++) part_close(&parts[i]);
    return status;
}
