/* SPDX-License-Identifier: Apache-2.0 */
#include "train/config.h"

#include <string.h>

#include "base/address.h"
#include "link/links.h"
#include "outer/sync_options.h"

enum { MICRO_BATCH_AUTO_MAX = 4, PATH_SHOWN_BYTES = 100 };

static const char *const activations[] = {[DLXI_GELU] = "gelu", [DLXI_RELU] = "relu", NULL};
static const char *const optimizers[] = {
    [DLXI_OPTIMIZER_ADAMW] = "adamw", [DLXI_OPTIMIZER_MUON] = "muon", NULL};
static const char *const precisions[] = {[DLXI_PRECISION_AUTO] = "auto",
                                         [DLXI_PRECISION_F32] = "f32",
                                         [DLXI_PRECISION_BF16] = "bf16",
                                         NULL};
static const char *const paces[] = {
    [DLXI_PACE_CONSTANT] = "constant", [DLXI_PACE_RATE] = "rate", NULL};
static const char *const links[] = {DLXI_LINKS(DLXI_LINK_WORD) NULL};
static const char *const securities[] = {
    [DLXI_SECURITY_CURVE] = "curve", [DLXI_SECURITY_NONE] = "none", NULL};

#define INTEGER(key, field, ...) DLXI_OPTION_ROW_INTEGER(dlxi_config, key, field, __VA_ARGS__)
#define REAL(key, field, ...)    DLXI_OPTION_ROW_REAL(dlxi_config, key, field, __VA_ARGS__)
#define BOOLEAN(key, field, ...) DLXI_OPTION_ROW_BOOLEAN(dlxi_config, key, field, __VA_ARGS__)
#define STRING(key, field, ...)  DLXI_OPTION_ROW_STRING(dlxi_config, key, field, __VA_ARGS__)
#define CHOICE(key, field, ...)  DLXI_OPTION_ROW_CHOICE(dlxi_config, key, field, __VA_ARGS__)

#define SYNCHRONISER(kind, field, ...)                                                             \
    DLXI_OPTION_FROM_ROW(dlxi_config, sync.field, kind, field, __VA_ARGS__)

#define COORDINATOR(kind, field, ...)                                                              \
    DLXI_OPTION_FROM_ROW(dlxi_config, coordinator.field, kind, field, __VA_ARGS__)

#define LINK_TEXT(word, text) "; " #word ": " text

static const dlxi_option options[] = {
    STRING("run.name", run.name, "quickstart", "what the run is called"),
    INTEGER("run.seed", run.seed, 0, 1e15, "1", "of starting weights, data order and compression"),
    STRING("run.dir", run.dir, "runs/quickstart",
           "where metrics, summary and weights go; an earlier run's move to previous-N in it",
           .site_may_differ = true),

    CHOICE("model.family", model.family, dlxi_family_names, "llama",
           "gpt2 (also OPT) or llama (also Qwen)"),
    INTEGER("model.layers", model.layers, 1, DLXI_LAYERS_MAX, "4", "blocks"),
    INTEGER("model.width", model.width, 2, DLXI_WIDTH_MAX, "256",
            "of the residual stream; a multiple of heads"),
    INTEGER("model.heads", model.heads, 1, DLXI_HEADS_MAX, "8", "attention heads"),
    INTEGER("model.kv_heads", model.kv_heads, 0, DLXI_HEADS_MAX, "4",
            "key and value heads, a divisor of heads; 0: as many as heads"),
    INTEGER("model.mlp_width", model.mlp_width, 1, DLXI_MLP_WIDTH_MAX, "704",
            "hidden width of a block's MLP"),
    INTEGER("model.context", model.context, 2, DLXI_CONTEXT_MAX, "256", "tokens in a window"),
    INTEGER("model.vocabulary", model.vocabulary, 2, DLXI_VOCABULARY_MAX, "256",
            "at least the data's"),
    CHOICE("model.activation", model.activation, activations, "gelu",
           "gpt2's MLP; llama has SwiGLU"),
    BOOLEAN("model.qkv_bias", model.qkv_bias, "false", "llama: biases on q, k and v, as Qwen has"),
    BOOLEAN("model.tied_head", model.tied_head, "false", "the head is the embedding table"),
    REAL("model.rope_theta", model.rope_theta, 1, (double)DLXI_ROPE_THETA_MAX, "10000",
         "llama: base of the rotary embedding"),
    REAL("model.norm_epsilon", model.norm_epsilon, 1e-12, DLXI_NORM_EPSILON_MAX, "1e-5",
         "added to variances"),

    STRING("data.train", data.train, "data/kjv.train.tokens", "token file",
           .site_may_differ = true),
    STRING("data.validation", data.validation, "data/kjv.validation.tokens", "token file",
           .site_may_differ = true),

    REAL("train.tokens", train.tokens, 1, 1e15, "1.0e6", "of the whole run, all sites"),
    INTEGER("train.batch", train.batch, 1, 1e6, "4", "windows per site and inner step"),
    INTEGER(
        "train.micro_batch", train.micro_batch, 1, DLXI_MICRO_BATCH_MAX, "auto",
        "windows at a time in a replica; auto: up to 4, and enough micro-batches for the stages",
        .allow_auto = true),
    CHOICE("train.optimizer", train.optimizer, optimizers, "muon",
           "muon: for hidden matrices, adamw for the rest"),
    REAL("train.learning_rate", train.learning_rate, 0, 100, "3e-3",
         "of the inner optimiser, at its peak"),
    REAL("train.final_learning_rate", train.final_learning_rate, 0, 1, "0.1",
         "at the end, as a share of the peak"),
    REAL("train.warmup_tokens", train.warmup_tokens, 0, 1e15, "1.0e5", "over which the rate rises"),
    REAL("train.weight_decay", train.weight_decay, 0, 10, "0.1", "decoupled, on matrices"),
    REAL("train.clip_norm", train.clip_norm, 0, 1e9, "1.0",
         "largest norm of all gradients together; 0: any"),
    CHOICE("train.precision", train.precision, precisions, "auto",
           "of products; auto: bf16 if the CPU has it", .site_may_differ = true),
    CHOICE("train.backend", train.backend, dlxi_kernels_backends, "auto", "kernels",
           .site_may_differ = true),
    BOOLEAN("train.recompute", train.recompute, "false",
            "keep the inputs of blocks only and run their forward pass again: less memory, a third "
            "more time"),
    REAL("train.eval_tokens", train.eval_tokens, 1, 1e15, "2.0e5",
         "of the validation shard, all sites together"),

    INTEGER("site.stages", site.stages, 1, DLXI_STAGES_MAX, "1",
            "pipeline stages that the layers are cut into"),
    INTEGER("site.replicas", site.replicas, 1, DLXI_RANKS_MAX, "1",
            "of each stage; batch is divided among them"),
    STRING("site.cut", site.cut, "auto",
           "layers of each stage, as 9,3; auto: so that stages take equally long"),
    INTEGER("site.threads", site.threads, 1, DLXI_THREADS_MAX, "1", "per rank",
            .site_may_differ = true),

    DLX_SYNC_OPTION_TABLE(SYNCHRONISER) DLX_COORDINATOR_OPTION_TABLE(COORDINATOR)
        CHOICE("sync.pace", pace, paces, "rate",
               "rate: H grows as the inner learning rate falls, up to ten times"),
    BOOLEAN("sync.compression.tables", low_rank_tables, "true",
            "embedding and head may be low rank too"),

    INTEGER("snapshots.keep", snapshots.keep, 0, 1000, "2",
            "of each site, to go on from with --resume; 0: none are written",
            .site_may_differ = true),
    REAL("snapshots.minutes", snapshots.minutes, 0, 1e6, "10",
         "from one to the next, up to twice as long; 0: one when the run is stopped",
         .site_may_differ = true),
    INTEGER("snapshots.rounds", snapshots.rounds, 0, 1e9, "0",
            "committed rounds from one to the next; 0: by time alone", .site_may_differ = true),

    CHOICE("wan.link", wan.link, links, "zmq",
           "what the sites of this run are" DLXI_LINKS(LINK_TEXT)),
    STRING("wan.coordinator", wan.coordinator, "127.0.0.1:0",
           "host:port, IPv6 as [::1]:4700; port 0: any free one", .site_may_differ = true),
    STRING("wan.listen", wan.listen, "",
           "host[:port] or interface[:port] that peers reach this site at; empty: the address that "
           "reaches the coordinator",
           .site_may_differ = true),
    CHOICE("wan.security", wan.security, securities, "curve", "none: on loopback only"),
    STRING("wan.key", wan.key, "site.key", "this site's secret key, made by dilocox keygen",
           .site_may_differ = true),
    STRING("wan.roster", wan.roster, "roster.txt", "names and public keys that may join",
           .site_may_differ = true),
};

const dlxi_option_table dlxi_config_table = {options, sizeof options / sizeof *options};

void dlxi_config_set_defaults(dlxi_config *config) {
    *config =
        (dlxi_config){.sync = DLX_SYNC_CONFIG_INIT, .coordinator = DLX_COORDINATOR_CONFIG_INIT};
    dlxi_options_set_defaults(config, &dlxi_config_table);
}

dlxi_schedule dlxi_config_schedule(const dlxi_config *c, uint64_t total_tokens) {
    return (dlxi_schedule){.peak = (float)c->train.learning_rate,
                           .final_share = (float)c->train.final_learning_rate,
                           .warmup_tokens = (int64_t)c->train.warmup_tokens,
                           .total_tokens = (int64_t)total_tokens};
}

dlxi_model_config dlxi_config_model(const dlxi_config *config) {
    dlxi_model_config model = dlxi_model_config_default((dlxi_family)config->model.family);
    model.layers = config->model.layers;
    model.width = config->model.width;
    model.heads = config->model.heads;
    model.kv_heads = config->model.kv_heads == 0 || !dlxi_model_parts(&model)->grouped_query
                         ? model.heads
                         : config->model.kv_heads;
    model.mlp_width = config->model.mlp_width;
    model.context = config->model.context;
    model.vocabulary = config->model.vocabulary;
    model.activation = (dlxi_activation)config->model.activation;
    model.qkv_bias = config->model.qkv_bias;
    model.tied_head = config->model.tied_head;
    model.rope_theta = (float)config->model.rope_theta;
    model.norm_epsilon = (float)config->model.norm_epsilon;
    return model;
}

/* The largest divisor of `windows` up to `max` that makes at least `micro_batches` of them; 0 if
 * there is none. */
static int64_t largest_part(int64_t windows, int64_t max, int64_t micro_batches) {
    for (int64_t part = max < windows ? max : windows; part >= 1; part--)
        if (windows % part == 0 && windows / part >= micro_batches) return part;
    return 0;
}

/* Twice as many micro-batches as stages keep them busy two thirds of the time and more. */
int64_t dlxi_config_micro_batch(const dlxi_config *config) {
    if (config->train.micro_batch != (int64_t)DLX_AUTO) return config->train.micro_batch;
    int64_t windows = config->train.batch / config->site.replicas, stages = config->site.stages;
    int64_t part = largest_part(windows, MICRO_BATCH_AUTO_MAX, stages > 1 ? 2 * stages : 1);
    if (part == 0) part = largest_part(windows, MICRO_BATCH_AUTO_MAX, stages);
    return part != 0 ? part : 1;
}

dlx_status dlxi_config_partition(dlxi_partition *out, const dlxi_config *config, dlx_error *error) {
    dlxi_model_config model = dlxi_config_model(config);
    int stages = (int)config->site.stages;
    if (strcmp(config->site.cut, "auto") != 0)
        return dlxi_partition_parse(out, &model, stages, config->site.cut, error);
    dlxi_costs costs = dlxi_costs_estimate(&model, config->model.context);
    if (config->train.recompute) costs = dlxi_costs_with_recompute(costs);
    return dlxi_partition_balanced(out, &model, &costs, stages, error);
}

const char *dlxi_config_overlap_name(const dlxi_config *config) {
    return dlxi_method_words[config->sync.overlap];
}

static dlx_status site_check(const dlxi_config *config, dlx_error *error) {
    long long batch = config->train.batch, micro_batch = dlxi_config_micro_batch(config);
    long long stages = config->site.stages, replicas = config->site.replicas;
    dlxi_partition cut;
    if (stages > config->model.layers)
        DLX_FAIL(error, CONFIG, "site.stages: %lld is more than model.layers; allowed: 1 to %lld",
                 stages, (long long)config->model.layers);
    if (stages * replicas > DLXI_RANKS_MAX)
        DLX_FAIL(error, CONFIG,
                 "site.replicas: %lld of %lld stages are %lld ranks; allowed: up to %d", replicas,
                 stages, stages * replicas, DLXI_RANKS_MAX);
    if (replicas == 1 && batch % micro_batch != 0)
        DLX_FAIL(error, CONFIG,
                 "train.micro_batch: %lld does not divide train.batch, %lld; set a divisor",
                 micro_batch, batch);
    if (batch % (replicas * micro_batch) != 0)
        DLX_FAIL(error, CONFIG,
                 "train.batch: %lld windows can't be divided among %lld replicas in micro-batches "
                 "of %lld; set a multiple "
                 "of %lld",
                 batch, replicas, micro_batch, replicas * micro_batch);
    if (batch / (replicas * micro_batch) < stages)
        DLX_FAIL(error, CONFIG,
                 "train.micro_batch: %lld of train.batch %lld makes %lld micro-batches in a "
                 "replica, fewer than %lld "
                 "stages; "
                 "set train.batch to %lld or more, or smaller micro-batches",
                 micro_batch, batch, batch / (replicas * micro_batch), stages,
                 replicas * micro_batch * stages);
    return dlxi_config_partition(&cut, config, error);
}

dlx_status dlxi_config_check_coordinator(const dlxi_config *config, const char *coordinator,
                                         dlx_error *error) {
    dlxi_address address;
    const char *text = coordinator != NULL ? coordinator : config->wan.coordinator;
    if (coordinator == NULL && text[0] == '\0') return DLX_OK; /* another will be given */
    return dlxi_address_parse(&address, text, "wan.coordinator", error);
}

/* The form alone; what the names lead to, the link looks up. */
static dlx_status addresses_check(const dlxi_config *config, dlx_error *error) {
    dlxi_address address;
    long long ranks = config->site.stages * config->site.replicas,
              port_max = UINT16_MAX + 1 - DLXI_CONFIG_RANK_PORTS * ranks;
    DLX_TRY(dlxi_config_check_coordinator(config, NULL, error));
    if (config->wan.listen[0] == '\0') return DLX_OK;
    DLX_TRY(dlxi_address_parse_listen(&address, config->wan.listen, "wan.listen", error));
    if (address.port > 0 && address.port > port_max)
        DLX_FAIL(error, CONFIG,
                 "wan.listen: the port of '%s' is out of range; allowed: 0 to %lld (each rank uses "
                 "%d ports)",
                 config->wan.listen, port_max > 0 ? port_max : 0, DLXI_CONFIG_RANK_PORTS);
    return DLX_OK;
}

/* A path that no file can have, or that means another one than its author thinks. */
static dlx_status path_check(const char *key, const char *path, dlx_error *error) {
    char shown[PATH_SHOWN_BYTES];
    dlxi_option_show_text(shown, sizeof shown, path, strlen(path));
    if (path[0] == '\0') DLX_FAIL(error, CONFIG, "%s: the path is empty; set one", key);
    if (path[0] == '~')
        DLX_FAIL(error, CONFIG,
                 "%s: '%s' begins with '~', which only a shell replaces; write the home directory "
                 "out, or ./ before a name that begins so",
                 key, shown);
    return DLX_OK;
}

static dlx_status paths_check(const dlxi_config *config, dlx_error *error) {
    DLX_TRY(path_check("run.dir", config->run.dir, error));
    DLX_TRY(path_check("data.train", config->data.train, error));
    DLX_TRY(path_check("data.validation", config->data.validation, error));
    if (config->wan.security == DLXI_SECURITY_NONE) return DLX_OK;
    DLX_TRY(path_check("wan.key", config->wan.key, error));
    return path_check("wan.roster", config->wan.roster, error);
}

dlx_status dlxi_config_check(const dlxi_config *config, dlx_error *error) {
    dlxi_model_config model = dlxi_config_model(config);
    DLX_TRY(paths_check(config, error));
    DLX_TRY(dlxi_model_config_validate(&model, error));
    DLX_TRY(site_check(config, error));
    DLX_TRY(addresses_check(config, error));
    return dlxi_sync_options_check(&config->sync, true, error);
}
