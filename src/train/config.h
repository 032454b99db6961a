/* SPDX-License-Identifier: Apache-2.0 */
/* A run's options: the one table that drives the config file, --set, printed defaults, help, and
 * the comparison of sites. */
#ifndef DLXI_TRAIN_CONFIG_H
#define DLXI_TRAIN_CONFIG_H

#include "options/options.h"
#include "model/optimizer.h"
#include "pipeline/partition.h"

enum {
    DLXI_CONFIG_PATH_BYTES = 512,
    DLXI_CONFIG_RANK_PORTS = DLXI_SITES_MAX /* of a wan.listen with a port: one per site */
};

enum { DLXI_PACE_CONSTANT, DLXI_PACE_RATE };
enum { DLXI_PACE_MAX = 10 /* of `rate` */ };
enum { DLXI_SECURITY_CURVE, DLXI_SECURITY_NONE };

typedef struct dlxi_config {
    struct {
        char name[64], dir[DLXI_CONFIG_PATH_BYTES];
        int64_t seed;
    } run;
    struct {
        int family, activation; /* choices, in the order of the model's enums */
        int64_t layers, width, heads, kv_heads, mlp_width, context, vocabulary;
        bool qkv_bias, tied_head;
        double rope_theta, norm_epsilon;
    } model;
    struct {
        char train[DLXI_CONFIG_PATH_BYTES], validation[DLXI_CONFIG_PATH_BYTES];
    } data;
    struct {
        double tokens, warmup_tokens, eval_tokens;
        int64_t batch, micro_batch;
        int optimizer, precision, backend;
        double learning_rate, final_learning_rate, weight_decay, clip_norm;
        bool recompute;
    } train;
    struct {
        int64_t stages, replicas, threads;
        char cut[DLXI_CONFIG_PATH_BYTES];
    } site;
    /* as generated from their tables; what is no option of these structs is the run's to fill in */
    dlx_sync_config sync;
    dlx_coordinator_config coordinator;
    struct {
        int64_t keep, rounds;
        double minutes;
    } snapshots;
    int pace;             /* sync.pace */
    bool low_rank_tables; /* sync.compression.tables */
    struct {
        int link, security;
        char coordinator[DLXI_ENDPOINT_BYTES], listen[DLXI_ENDPOINT_BYTES],
            key[DLXI_CONFIG_PATH_BYTES], roster[DLXI_CONFIG_PATH_BYTES];
    } wan;
} dlxi_config;

extern const dlxi_option_table dlxi_config_table;

void dlxi_config_set_defaults(dlxi_config *config);

/* What options mean together: the model's shape, batches, the ranks of a site, addresses. */
dlx_status dlxi_config_check(const dlxi_config *config, dlx_error *error);
/* The address that stands for wan.coordinator, if there is one (not NULL). */
dlx_status dlxi_config_check_coordinator(const dlxi_config *config, const char *coordinator,
                                         dlx_error *error);

dlxi_schedule dlxi_config_schedule(const dlxi_config *config, uint64_t total_tokens);
dlxi_model_config dlxi_config_model(const dlxi_config *config);
/* train.micro_batch, or what `auto` means */
int64_t dlxi_config_micro_batch(const dlxi_config *config);
dlx_status dlxi_config_partition(dlxi_partition *out, const dlxi_config *config, dlx_error *error);
const char *dlxi_config_overlap_name(const dlxi_config *config);

#endif
