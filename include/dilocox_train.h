/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox, tier 2: the native trainer. Load a config, train a site of a run, evaluate, generate;
 * events come through a callback. Conventions are those of dilocox.h; nothing here prints or exits.
 */
#ifndef DILOCOX_TRAIN_H
#define DILOCOX_TRAIN_H

#include <dilocox.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- config ---------------------------------------------------------------------------------- */

/* All options of a run, with their defaults (`dilocox config --defaults`). One thread at a time. */
typedef struct dlx_config dlx_config;

DLX_API dlx_status dlx_config_open(dlx_config **out, dlx_error *error); /* the defaults */
DLX_API void dlx_config_close(dlx_config **config);
/* What the file names is set, the rest stays. DLX_CONFIG with file, line, key and what is allowed.
 */
DLX_API dlx_status dlx_config_load(dlx_config *config, const char *path, dlx_error *error);
/* "sync.inner_steps=25" */
DLX_API dlx_status dlx_config_set(dlx_config *config, const char *assignment, dlx_error *error);
/* Checks what options mean together. */
DLX_API dlx_status dlx_config_check(const dlx_config *config, dlx_error *error);
/* Commented YAML that loads back; free with free(). */
DLX_API dlx_status dlx_config_print(char **text, const dlx_config *config, dlx_error *error);
/* A line an option; free with free(). */
DLX_API dlx_status dlx_config_help(char **text, dlx_error *error);
DLX_API const char *dlx_config_run_dir(const dlx_config *config); /* valid until the next change */
DLX_API const char *dlx_config_coordinator(const dlx_config *config);
DLX_API bool dlx_config_encrypted(const dlx_config *config);
DLX_API const char *dlx_config_link(const dlx_config *config); /* wan.link */
/* Whether its sites are threads of one process; ranks of one job. */
DLX_API bool dlx_config_in_process(const dlx_config *config);
DLX_API bool dlx_config_one_job(const dlx_config *config);
DLX_API uint32_t dlx_config_ranks(const dlx_config *config); /* of a site: stages × replicas */
/* "rank 3 (stage 1, replica 1)": what a rank of a job is, which may hold several sites. */
DLX_API void dlx_config_place_name(char text[64], const dlx_config *config, uint32_t job_rank);

/* ---- sites of several ranks ------------------------------------------------------------------ */

/* The MPI job that this process is a rank of. */
typedef struct dlx_cluster dlx_cluster;

/* Starts MPI, once a process; a job of one rank where no launcher started it. Collective over the
 * job. DLX_SYSTEM where the MPI at hand lacks MPI_THREAD_MULTIPLE. */
DLX_API dlx_status dlx_cluster_open(dlx_cluster **out, dlx_error *error);
/* Ends MPI. Collective; takes NULL. */
DLX_API void dlx_cluster_close(dlx_cluster **cluster);
DLX_API uint32_t dlx_cluster_rank(const dlx_cluster *cluster);
DLX_API uint32_t dlx_cluster_ranks(const dlx_cluster *cluster);
/* For a rank that failed; waits for the others, up to wait_ms. True: all ranks failed; close the
 * cluster and exit, one of them speaks (error->message is empty on the others). False: the others
 * go on; abort. The ranks of a site end together; where the job holds several sites, another may
 * still be saving. */
DLX_API bool dlx_cluster_agree_on_failure(dlx_cluster *cluster, dlx_error *error, uint32_t wait_ms);
/* Ends all ranks of the job at once with this exit code. Does not return. */
DLX_API void dlx_cluster_abort(dlx_cluster *cluster, int exit_code);
/* Joins sites and coordinator that are ranks of one job, by wan.link, or `mpi` if that is for
 * others; the coordinator is a thread of job rank 0. Close with dlx_hub_close, before the cluster. */
DLX_API dlx_status dlx_cluster_hub(dlx_hub **out, dlx_cluster *cluster, const dlx_config *config,
                                   dlx_error *error);

/* ---- a run ----------------------------------------------------------------------------------- */

typedef enum dlx_event_kind {
    DLX_EVENT_MESSAGE,  /* text: a warning or a notice */
    DLX_EVENT_JOINED,   /* every site is there */
    DLX_EVENT_STEP,     /* an inner step is done */
    DLX_EVENT_EVALUATED /* validation loss: in `loss`; text says of what */
} dlx_event_kind;

typedef struct dlx_event {
    dlx_event_kind kind;
    const char *site, *text;        /* valid during the call */
    uint64_t step;                  /* inner steps done by this site */
    uint64_t tokens, tokens_target; /* of the run, for schedules */
    uint64_t round;
    uint32_t inner_steps, step_in_round;
    double loss;
    double tokens_per_s; /* of this site, over the last seconds */
    double learning_rate;
    double factor_rank_mean;
    uint64_t wan_bytes_sent;
    double utilization; /* so far */
    double left_s;      /* estimate */
} dlx_event;

typedef void (*dlx_on_event)(void *context, const dlx_event *event);

typedef struct dlx_train_options {
    size_t size;
    const char *site;        /* its name */
    const char *coordinator; /* "host:port"; NULL: the config's wan.coordinator */
    /* threads of one process, or ranks of one job, instead; NULL: the config's link */
    dlx_hub *hub;
    /* needed where a site has several ranks: each calls dlx_train. NULL: one rank */
    dlx_cluster *cluster;
    /* how many sites the cluster's job holds, as many ranks each, in order */
    uint32_t job_sites;
    /* may be NULL; called on the caller's thread, messages also on others; of a site's ranks the
     * first has events */
    dlx_on_event on_event;
    void *context;
    const volatile bool *interrupted; /* may be NULL; set it from a signal handler to stop */
} dlx_train_options;

#define DLX_TRAIN_OPTIONS_INIT                                                                     \
    { .size = sizeof(dlx_train_options), .job_sites = 1 }

/* One site of a run, or one rank of it, from joining to the end; blocks. Writes
 * RUN_DIR/<site>/metrics.jsonl and summary.json, and the first site the weights to RUN_DIR/weights
 * (also when interrupted). DLX_INTERRUPTED, and whatever else ended the run. With a cluster, a
 * failed rank goes on with dlx_cluster_agree_on_failure. */
DLX_API dlx_status dlx_train(const dlx_config *config, const dlx_train_options *options,
                             dlx_error *error);

typedef struct dlx_coordinate_options {
    size_t size;
    uint32_t sites;
    const char *coordinator; /* to listen on; NULL: the config's */
    dlx_hub *hub;
    void (*on_listening)(void *context, const char *endpoint); /* may be NULL */
    dlx_on_event on_event;
    void *context;
    const volatile bool *interrupted;
} dlx_coordinate_options;

#define DLX_COORDINATE_OPTIONS_INIT                                                                \
    { .size = sizeof(dlx_coordinate_options), .sites = 2 }

/* The coordinator of a run; blocks until it is over. Writes RUN_DIR/summary.json. */
DLX_API dlx_status dlx_coordinate(const dlx_config *config, const dlx_coordinate_options *options,
                                  dlx_error *error);

/* ---- weights and data ------------------------------------------------------------------------ */

/* Mean loss a token of the checkpoint folder's model over a token shard, at most `tokens` of it (0:
 * all). */
DLX_API dlx_status dlx_evaluate(double *loss, uint64_t *tokens_used, const char *checkpoint,
                                const char *data, uint64_t tokens, int threads, dlx_error *error);

typedef struct dlx_generate_options {
    const char *prompt;
    uint32_t tokens;
    double temperature; /* 0: always the likeliest */
    uint32_t top_k;     /* 0: all */
    uint64_t seed;
    int threads;
} dlx_generate_options;

/* *text ← prompt and continuation, free with free(). */
DLX_API dlx_status dlx_generate(char **text, const char *checkpoint,
                                const dlx_generate_options *options, dlx_error *error);

/* Text to a token shard; validation_every K > 0: to OUT.train.tokens and OUT.validation.tokens,
 * every K-th block of block_bytes to the latter. Counts may be NULL. */
DLX_API dlx_status dlx_tokenize(const char *out_path, const char *in_path,
                                uint32_t validation_every, uint32_t block_bytes,
                                uint64_t *train_tokens, uint64_t *validation_tokens,
                                dlx_error *error);

/* ---- benchmarks ------------------------------------------------------------------------------ */

typedef struct dlx_bench_model_result {
    const char *backend, *precision;
    uint64_t parameters; /* N: with the head, without the position table */
    double step_s_median, step_s_min, step_s_max;
    double model_flops_per_s;   /* 6 · N · tokens / median */
    double product_flops_per_s; /* best of five, 1024³, same threads and precision */
    double share;               /* of the two */
} dlx_bench_model_result;

/* The training step of the GPT-2 124M shape (batch × length tokens, AdamW included), `steps` timed
 * ones after one. */
DLX_API dlx_status dlx_bench_model(dlx_bench_model_result *result, uint32_t batch, uint32_t length,
                                   uint32_t steps, int threads, bool f32, dlx_error *error);

typedef struct dlx_bench_stages_result {
    /* measured: forward and backward of one micro-batch */
    double block_s, embedding_s, head_s;
    /* estimated, of one block's: what `site.cut: auto` uses */
    double block_share, embedding_share, head_share;
    /* layers of each stage, as site.cut takes them */
    char measured_cut[256], estimated_cut[256];
    /* mean stage over slowest stage, by the measured times */
    double measured_balance, estimated_balance;
} dlx_bench_stages_result;

/* What the parts of the config's model cost on this machine, and how `stages` stages would be cut.
 */
DLX_API dlx_status dlx_bench_stages(dlx_bench_stages_result *result, const dlx_config *config,
                                    uint32_t stages, dlx_error *error);

#ifdef __cplusplus
}
#endif

#endif
