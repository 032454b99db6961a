/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox, tier 2: the native trainer. It loads a config, trains a site of a run, coordinates a
 * run, evaluates, generates and measures.
 *
 * Conventions are those of dilocox.h. */
#ifndef DILOCOX_TRAIN_H
#define DILOCOX_TRAIN_H

#include <dilocox.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- config ---------------------------------------------------------------------------------- */

/* The options of a run (`dilocox config --defaults` lists them). One thread at a time changes a
 * config; while none does, any threads may read it. */
typedef struct dlx_config dlx_config;

/* All options at their defaults. Close with dlx_config_close. */
DLX_API dlx_status dlx_config_open(dlx_config **out, dlx_error *error);
/* Takes NULL. */
DLX_API void dlx_config_close(dlx_config **config);
/* Sets the options that a YAML file of at most 1 MiB names, and keeps the others. Blocks on the
 * disk. DLX_CONFIG with file, line, key and the allowed values, or no such file; DLX_SYSTEM. On
 * failure some of the file's options may be set. */
DLX_API dlx_status dlx_config_load(dlx_config *config, const char *path, dlx_error *error);
/* Sets one option: "sync.inner_steps=25". DLX_CONFIG; on failure nothing changes. */
DLX_API dlx_status dlx_config_set(dlx_config *config, const char *assignment, dlx_error *error);
/* Checks options against each other, as dlx_train and dlx_coordinate do. DLX_CONFIG names the
 * option, its value and the allowed values. */
DLX_API dlx_status dlx_config_check(const dlx_config *config, dlx_error *error);
/* *text ← commented YAML that loads back to the same options; free with free(). config may be NULL:
 * the defaults. */
DLX_API dlx_status dlx_config_print(char **text, const dlx_config *config, dlx_error *error);
/* *text ← one line per option: key, default, allowed values, meaning; free with free(). */
DLX_API dlx_status dlx_config_help(char **text, dlx_error *error);

/* Never fail. Texts are the config's, and valid until it changes. */
DLX_API const char *dlx_config_run_dir(const dlx_config *config);     /* run.dir */
DLX_API const char *dlx_config_coordinator(const dlx_config *config); /* wan.coordinator */
DLX_API bool dlx_config_encrypted(const dlx_config *config);          /* wan.security: curve */
DLX_API const char *dlx_config_link(const dlx_config *config);        /* wan.link */
/* Whether the sites that wan.link joins are threads of one process; ranks of one job. */
DLX_API bool dlx_config_in_process(const dlx_config *config);
DLX_API bool dlx_config_one_job(const dlx_config *config);
DLX_API uint32_t dlx_config_ranks(const dlx_config *config);     /* per site: stages × replicas */
DLX_API uint32_t dlx_config_sites_min(const dlx_config *config); /* wan.min_sites */
/* text ← what a rank of a job, of one site or several, is in its site: "rank 3 (stage 1,
 * replica 1)". */
DLX_API void dlx_config_rank_name(char text[64], const dlx_config *config, uint32_t job_rank);

/* ---- sites of several ranks ------------------------------------------------------------------ */

/* The MPI job that this process is a rank of. One thread at a time, unless said. */
typedef struct dlx_cluster dlx_cluster;

/* Starts MPI, once per process; without a launcher, as a job of one rank. Collective over the job:
 * blocks until all ranks call it. Close with dlx_cluster_close. DLX_STATE: MPI is already started.
 * DLX_SYSTEM: the MPI library lacks MPI_THREAD_MULTIPLE, or fails; of the ranks that lack it, one
 * has a message, and MPI ends as the process exits. */
DLX_API dlx_status dlx_cluster_open(dlx_cluster **out, dlx_error *error);
/* Ends MPI. Collective: blocks until all ranks call it. Takes NULL. */
DLX_API void dlx_cluster_close(dlx_cluster **cluster);
/* The process's rank in the job, and the number of ranks. Any thread. */
DLX_API uint32_t dlx_cluster_rank(const dlx_cluster *cluster);
DLX_API uint32_t dlx_cluster_ranks(const dlx_cluster *cluster);
/* For a rank that failed with `error`: blocks until all ranks of the job call it, up to wait_ms.
 * True: all failed; close the cluster and exit. The cause is then in one rank's message, and the
 * others' messages are empty. False: some go on, and the caller calls dlx_cluster_abort. The ranks
 * of a site fail together; in a job of several sites another site may still be saving. */
DLX_API bool dlx_cluster_all_failed(dlx_cluster *cluster, dlx_error *error, uint32_t wait_ms);
/* Ends all processes of the job at once with this exit code. Does not return; needs a cluster. Any
 * thread. */
DLX_API void dlx_cluster_abort(dlx_cluster *cluster, int exit_code);
/* Connects sites and a coordinator that are ranks of one job, as many ranks per site as the config
 * says, by wan.link, or `mpi` if that is a link of processes or threads. The coordinator is a
 * thread of job rank 0. The cluster must outlive the hub; close with dlx_hub_close. Does not
 * block. */
DLX_API dlx_status dlx_cluster_hub(dlx_hub **out, dlx_cluster *cluster, const dlx_config *config,
                                   dlx_error *error);

/* ---- a run ----------------------------------------------------------------------------------- */

typedef enum dlx_event_kind {
    DLX_EVENT_MESSAGE = 0, /* text: a warning or a notice */
    DLX_EVENT_JOINED = 1,  /* all sites have joined: sites */
    DLX_EVENT_STEP = 2,    /* an inner step is done: the fields from step to left_s */
    /* loss of this site's validation windows, at the "start" or "end" (text); step. If it has none,
     * a message says so instead */
    DLX_EVENT_EVALUATED = 3
} dlx_event_kind;

/* Fields that a kind does not use are 0. */
typedef struct dlx_event {
    size_t size; /* the library's: a program reads what is below it */
    dlx_event_kind kind;
    const char *site, *text;        /* valid during the call */
    uint32_t sites;                 /* of the run */
    uint64_t step;                  /* inner steps done by this site */
    uint64_t tokens, tokens_target; /* of the run, as dlx_sync_tokens */
    uint64_t round;                 /* from 1 */
    uint32_t inner_steps, step_in_round;
    double loss;         /* mean per token, in nats */
    double tokens_per_s; /* of this site, over about ten steps */
    double learning_rate;
    double factor_rank_mean;
    uint64_t wan_bytes_sent; /* by this site */
    double utilization;      /* compute time over compute and wait time, so far */
    double left_s;           /* estimated time to the end of the run */
} dlx_event;

/* On the calling thread of dlx_train or dlx_coordinate. It must not call back into the run. */
typedef void (*dlx_on_event)(void *context, const dlx_event *event);

/* Pointers are borrowed during the call. */
typedef struct dlx_train_options {
    size_t size;
    const char *site;        /* its name, as in dlx_sync_config */
    const char *coordinator; /* "host:port"; NULL: the config's */
    dlx_hub *hub;            /* for wan.link mem and mpi; NULL: zmq */
    dlx_cluster *cluster;    /* needed if a site has several ranks, each of which calls dlx_train */
    uint32_t job_sites;      /* sites in the cluster's job, equally many ranks each, in order */
    dlx_on_event on_event;   /* may be NULL; on rank 0 of a site */
    void *context;
    const volatile sig_atomic_t *interrupted; /* may be NULL; set by a signal handler to stop */
    /* not NULL: goes on from a snapshot; "": the newest whole one in RUN_DIR/<site>/snapshots, of a
     * round that the other sites in RUN_DIR have one of, too, and where there is none, one of
     * theirs; else the directory of a snapshot, or of several. Of another site: this one is new */
    const char *resume;
    /* with resume: snapshots of sites that do not go on, separated by commas; what they had not
     * sent is added to what this site has not, by their weights. The same on all sites. NULL: none
     */
    const char *take_unsent;
} dlx_train_options;

#define DLX_TRAIN_OPTIONS_INIT                                                                     \
    { .size = sizeof(dlx_train_options), .job_sites = 1 }

/* As dlx_sync_config_default. */
DLX_API void dlx_train_options_default(dlx_train_options *options, size_t size);

/* Trains one rank of a site, from joining the run to its end; blocks. Rank 0 writes metrics.jsonl
 * and summary.json to RUN_DIR/<site>, and the first site its weights to RUN_DIR/weights. Nothing
 * there changes before all sites have joined; then an earlier run's results move to
 * RUN_DIR/previous-N. DLX_CONFIG while another run uses RUN_DIR. A run that fails or is interrupted
 * leaves the same: a summary that says so, and the last committed weights, the other sites' in
 * RUN_DIR/<site>/weights; and a site of one rank a snapshot in RUN_DIR/<site>/snapshots, where it
 * also puts one from time to time (snapshots.minutes). DLX_CONFIG, DLX_DATA, DLX_SYSTEM: options or
 * files; the statuses of dlx_sync_resume, dlx_sync_step and dlx_sync_report; DLX_INTERRUPTED. If it
 * fails and there is a cluster, call dlx_cluster_all_failed. Several sites may be threads of one
 * process (wan.link mem). */
DLX_API dlx_status dlx_train(const dlx_config *config, const dlx_train_options *options,
                             dlx_error *error);

/* Pointers are borrowed during the call. */
typedef struct dlx_coordinate_options {
    size_t size;
    uint32_t sites;          /* 1 to 64 */
    const char *coordinator; /* "host:port" to listen on; NULL: the config's */
    dlx_hub *hub;            /* as in dlx_train_options */
    void (*on_listening)(void *context, const char *endpoint); /* may be NULL; called once */
    dlx_on_event on_event;                                     /* may be NULL; messages only */
    void *context;
    const volatile sig_atomic_t *interrupted; /* may be NULL; set by a signal handler to stop */
    /* may be NULL; set to stop this coordinator and not the run (dlx_coordinator_release) */
    const volatile sig_atomic_t *released;
    /* the sites end with this process: the run is not kept for another one. So it is with a hub */
    bool unstored;
    /* not NULL: takes a run over from its sites, without those that are named here, with commas; ""
     * names none (dlx_coordinator_open_takeover) */
    const char *takeover_without;
    /* the sites go on from snapshots, not as they are: a RUN_DIR/coordinator.db that is there is
     * kept under another name, and put back if they do not all come */
    bool resumes;
    /* the sites are training loops of their own: of the config, tokens and what concerns this
     * process count, and the sites' settings are compared with each other's only */
    DLX_OPTION_ALIGN bool own_loops;
} dlx_coordinate_options;

#define DLX_COORDINATE_OPTIONS_INIT                                                                \
    { .size = sizeof(dlx_coordinate_options), .sites = 2 }

/* As dlx_sync_config_default. */
DLX_API void dlx_coordinate_options_default(dlx_coordinate_options *options, size_t size);

/* Coordinates a run; blocks until it ends. Writes RUN_DIR/summary.json unless it fails. Earlier
 * results and other runs there: as dlx_train. RUN_DIR/coordinator.db is there while the run is not
 * over: a call that finds it goes on with that run (dlx_coordinator_open_stored), and one that is
 * unstored or has a hub is refused with DLX_CONFIG. DLX_CONFIG, DLX_SYSTEM; the statuses of
 * dlx_coordinator_open_stored and dlx_coordinator_run. */
DLX_API dlx_status dlx_coordinate(const dlx_config *config, const dlx_coordinate_options *options,
                                  dlx_error *error);

/* ---- weights and data ------------------------------------------------------------------------ */

/* Pointers are borrowed during the call. */
typedef struct dlx_evaluate_options {
    size_t size;
    uint64_t tokens;   /* at most, of the file's first; 0: all. Whole windows, at least one */
    int threads;       /* ≥ 1 */
    dlx_log log;       /* warnings about the checkpoint, on the calling thread; may be NULL */
    void *log_context; /* of log */
} dlx_evaluate_options;

#define DLX_EVALUATE_OPTIONS_INIT                                                                  \
    { .size = sizeof(dlx_evaluate_options), .threads = 1 }

/* As dlx_sync_config_default. */
DLX_API void dlx_evaluate_options_default(dlx_evaluate_options *options, size_t size);

/* *loss ← the model's mean loss per token, in nats, over a token file, and *tokens_used ← the
 * tokens that it is a mean of. checkpoint: a directory of weights. Blocks; any thread. DLX_CONFIG,
 * DLX_DATA, DLX_SYSTEM: the files; DLX_NUMERIC: the loss is not finite. */
DLX_API dlx_status dlx_evaluate(double *loss, uint64_t *tokens_used, const char *checkpoint,
                                const char *data, const dlx_evaluate_options *options,
                                dlx_error *error);

/* Pointers are borrowed during the call. */
typedef struct dlx_generate_options {
    size_t size;
    const char *prompt; /* any bytes; NULL: a newline */
    uint32_t tokens;    /* to append */
    double temperature; /* 0: always the most likely token */
    uint32_t top_k;     /* draw from this many tokens; 0: all */
    uint64_t seed;
    int threads;         /* ≥ 1 */
    size_t prompt_bytes; /* of prompt; 0: up to its zero byte, and a newline if that is the first */
    dlx_log log;         /* as in dlx_evaluate_options */
    void *log_context;
} dlx_generate_options;

#define DLX_GENERATE_OPTIONS_INIT                                                                  \
    {                                                                                              \
        .size = sizeof(dlx_generate_options), .tokens = 200, .temperature = 0.8, .top_k = 40,      \
        .seed = 1, .threads = 1                                                                    \
    }

/* As dlx_sync_config_default. */
DLX_API void dlx_generate_options_default(dlx_generate_options *options, size_t size);

/* *text ← the prompt and its continuation, *text_bytes of any value, and a zero byte behind them;
 * free with free(). Tokens that the tokenizer does not have are not drawn. Blocks; any thread.
 * DLX_CONFIG, DLX_DATA, DLX_SYSTEM: the checkpoint; DLX_CONFIG: its vocabulary is smaller than the
 * tokenizer's; DLX_NUMERIC: its values are not finite. */
DLX_API dlx_status dlx_generate(char **text, size_t *text_bytes, const char *checkpoint,
                                const dlx_generate_options *options, dlx_error *error);

/* Converts a text, or standard input ("-"), to a token file. validation_every 0: to out_path. 2 to
 * 1000000: every such block of block_bytes (1 to 2^30; 0: 65536) goes to OUT.validation.tokens, the
 * others to OUT.train.tokens. The counts may be NULL; without a split all tokens count as
 * train_tokens. An existing file is replaced when the new one is complete. Blocks on the disk; any
 * thread. DLX_CONFIG: an argument out of range, no such file, or a file to write that is the text
 * itself or not a regular file; DLX_DATA: a file would be empty; DLX_SYSTEM. */
DLX_API dlx_status dlx_tokenize(const char *out_path, const char *in_path,
                                uint32_t validation_every, uint32_t block_bytes,
                                uint64_t *train_tokens, uint64_t *validation_tokens,
                                dlx_error *error);

/* ---- snapshots ------------------------------------------------------------------------------- */

/* Reads a snapshot, a directory step-…, and compares all its checksums; of a directory of
 * snapshots, each of them. `line` gets what is in it, a line at a time, on the calling thread; the
 * words may change. Blocks on the disk; any thread. DLX_CONFIG: no such directory, or another one;
 * DLX_DATA: damaged, with the file and the part; DLX_SYSTEM. */
DLX_API dlx_status dlx_inspect(const char *path, dlx_log line, void *context, dlx_error *error);

/* ---- benchmarks ------------------------------------------------------------------------------ */

/* Models, with their inner optimiser and their tokens per step. */
typedef enum dlx_bench_shape {
    DLX_BENCH_QUICKSTART, /* examples/quickstart.yaml, Muon, 4 × 256 tokens */
    DLX_BENCH_GPT2,       /* GPT-2's 124M shape, AdamW, 4 × 64 */
    DLX_BENCH_LLAMA,      /* 12 layers, 768 wide, Muon, 4 × 256 */
    DLX_BENCH_GPT2_LONG,  /* GPT-2's again, 8 × 512 */
    DLX_BENCH_SHAPES
} dlx_bench_shape;

typedef struct dlx_bench_step_options {
    size_t size;
    dlx_bench_shape shape;
    uint32_t batch, length; /* 1 to 4096, 2 to 1024; 0: the shape's */
    uint32_t steps; /* 1 to 1000, timed; fewer, two at least, if they take more than a minute */
    int threads;    /* 1 or more */
    bool f32;       /* no bf16 products */
} dlx_bench_step_options;

#define DLX_BENCH_STEP_OPTIONS_INIT                                                                \
    { .size = sizeof(dlx_bench_step_options), .shape = DLX_BENCH_GPT2, .steps = 7, .threads = 1 }

typedef struct dlx_bench_step_result {
    const char *shape, *backend, *precision, *optimizer; /* static */
    uint32_t batch, length, steps;                       /* steps: that were timed */
    uint64_t parameters;                                 /* N: with the head, without positions */
    double step_s_median, step_s_min, step_s_max, optimizer_s; /* the latter a median, too */
    double model_flops; /* 6 · N · tokens, and causal attention's */
    /* The optimiser's products, of which symmetric ones count a half, and what it has to read and
     * write. */
    double optimizer_flops, optimizer_bytes;
    /* 1024³, same threads and precision: the best of five after each step, of which the median */
    double product_flops_per_s;
    double memory_bytes_per_s; /* best of five, y += x */
    /* The shortest that a step could take: model_flops at the products' rate; optimizer_flops at
     * that of f32 and optimizer_bytes at the memory's. */
    double products_floor_s, optimizer_floor_s;
    /* Resident memory of the process at its peak (0 where the system does not say), and parameters,
     * gradients, optimiser's state, activations and bf16 copies together. */
    double peak_bytes, expected_bytes;
} dlx_bench_step_result;

/* Times training steps after an untimed one. Blocks. DLX_ARGUMENT: out of range; DLX_MEMORY. */
DLX_API dlx_status dlx_bench_step(dlx_bench_step_result *result,
                                  const dlx_bench_step_options *options, dlx_error *error);

typedef struct dlx_bench_model_result {
    const char *backend, *precision; /* static */
    uint64_t parameters;             /* N: with the head, without the position table */
    double step_s_median, step_s_min, step_s_max;
    double model_flops_per_s;   /* 6 · N · tokens / median */
    double product_flops_per_s; /* as of dlx_bench_step_result */
    double share;               /* the former over the latter */
} dlx_bench_model_result;

/* dlx_bench_step for GPT-2's shape, as in earlier versions. DLX_ARGUMENT: out of range. */
DLX_API dlx_status dlx_bench_model(dlx_bench_model_result *result, uint32_t batch, uint32_t length,
                                   uint32_t steps, int threads, bool f32, dlx_error *error);

typedef struct dlx_bench_stages_result {
    double block_s, embedding_s, head_s; /* forward and backward of one micro-batch */
    /* estimated, relative to a block: what `site.cut: auto` uses */
    double embedding_share, head_share;
    /* layers of each stage, as site.cut takes them; truncated if there are many */
    char measured_partition[256], estimated_partition[256];
    /* mean stage over slowest stage, by the measured times */
    double measured_balance, estimated_balance;
} dlx_bench_stages_result;

/* Measures the parts of the config's model on this machine, and balances them over `stages` stages
 * (1 to 256). Blocks. DLX_ARGUMENT: out of range; DLX_CONFIG: more stages than layers. */
DLX_API dlx_status dlx_bench_stages(dlx_bench_stages_result *result, const dlx_config *config,
                                    uint32_t stages, dlx_error *error);

/* ---- plan ------------------------------------------------------------------------------------ */

typedef struct dlx_plan_options {
    size_t size;
    uint32_t sites;          /* 1 to 64 */
    double link_bytes_per_s; /* of a site to all others, each way; above 0 */
    double delay_s;          /* one way, 0 to 60 */
    double step_s;           /* of an inner step; 0: from flops_per_s */
    double flops_per_s;      /* that a rank reaches in training; not read if step_s is given */
    double host_bytes_per_s; /* that one core encrypts and sends while it receives as much */
    double seconds;          /* how much of the run, from its beginning; 0: all of it */
    uint64_t shares_core;    /* 1: exchanges compute on the cores that train; 0: on others */
} dlx_plan_options;

/* 1 Gbit/s, 30 ms. */
#define DLX_PLAN_OPTIONS_INIT                                                                      \
    {                                                                                              \
        .size = sizeof(dlx_plan_options), .sites = 2, .link_bytes_per_s = 1.25e8, .delay_s = 0.03, \
        .flops_per_s = 5e10, .host_bytes_per_s = 2.4e8                                             \
    }

/* As dlx_sync_config_default. */
DLX_API void dlx_plan_options_default(dlx_plan_options *options, size_t size);

typedef struct dlx_plan_method {
    const char *name, *overlap;       /* static; sync.overlap's word */
    uint32_t rank, inner_steps;       /* at the start, link's at the end; rank 0: whole matrices */
    uint32_t exchange_steps;          /* the option's */
    double exchange_s;                /* of one exchange */
    double tokens_per_s, efficiency;  /* of all sites; over those without an exchange */
    double waited_share;              /* of the run's time */
    double bytes_per_token;           /* sent by all sites, of the run's tokens */
    uint64_t rounds, inner_steps_max; /* the longest round's */
    bool hidden;                      /* no step waits for an exchange; only the run's end does */
} dlx_plan_method;

/* The two last: the config as it is, and with the advised rank and H. */
enum { DLX_PLAN_METHODS = 7 };

typedef struct dlx_plan_result {
    uint64_t parameters; /* all of the model's */
    double step_s, pipeline_idle_share;
    double tokens_per_s; /* of all sites, without an exchange */
    /* bytes of the rank that needs most, without activations, the history of rounds, and the
     * libraries' own */
    uint64_t parameter_bytes, gradient_bytes, optimizer_bytes, outer_bytes, exchange_bytes;
    dlx_plan_method methods[DLX_PLAN_METHODS];
} dlx_plan_result;

/* What the config's run will cost on a link, computed: nothing is measured. Adaptation link decides
 * as in the run; under paper rank and H fall as in runs of a small model; sync.pace is followed.
 * Advised, with adaptation off, are the largest rank, from rank_min to rank_max, whose exchange the
 * config's H hides with 10% to spare, or rank_min and the H that does; with carry, if the config's
 * overlap waits for each exchange. Of cores that exchanges share with training they also take at
 * most 5%. docs/algorithm.md has the formulas. DLX_ARGUMENT: an option is out of range;
 * DLX_CONFIG. */
DLX_API dlx_status dlx_plan(dlx_plan_result *result, const dlx_config *config,
                            const dlx_plan_options *options, dlx_error *error);

#ifdef __cplusplus
}
#endif

#endif
