/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox: synchronise the training of one model across sites that are joined by slow links.
 *
 * Tier 1 of the interface, and tier 3 (the codec by itself). The native trainer is in
 * dilocox_train.h.
 *
 *   dlx_sync          one site of a run: opened over named tensors, stepped after each inner step
 *   dlx_coordinator   the run's rendezvous, leases and commits; one per run, in any process
 *   dlx_hub           joins sites and a coordinator that are threads of a process (the `mem` link)
 *
 * Conventions. Functions return a dlx_status and, where one is given, fill the caller's dlx_error.
 * On failure nothing is handed over: what the caller owned it still owns, and every *out is NULL.
 * `*_close(&p)` takes NULL and half-built objects, joins their threads, and sets p to NULL. The
 * library does not print, exit, or install signal handlers. Sizes are in the unit that ends the
 * name. Arrays are row-major. Calls on one object come from one thread at a time unless said, block
 * only where said, and return DLX_ARGUMENT for a NULL that must not be one.
 *
 * A struct that begins with `size` grows at its end. Begin with its DLX_*_INIT macro, or from
 * another language with its *_default function. Members that the caller's header lacks have their
 * defaults; members that the library lacks must be zero, or it returns DLX_ARGUMENT, naming both
 * sizes. */
#ifndef DILOCOX_H
#define DILOCOX_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define DLX_API __attribute__((visibility("default")))
#else
#define DLX_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- version --------------------------------------------------------------------------------- */

/* Of this header; the functions below return the library's, which may be newer. */
#define DLX_VERSION_MAJOR 0
#define DLX_VERSION_MINOR 2
#define DLX_VERSION_PATCH 0

/* 0.2.0 is 200 and 1.12.3 is 11203: #if DLX_VERSION_NUMBER >= 200 */
#define DLX_VERSION_NUMBER (DLX_VERSION_MAJOR * 10000 + DLX_VERSION_MINOR * 100 + DLX_VERSION_PATCH)

#define DLX_VERSION_QUOTE(major, minor, patch) #major "." #minor "." #patch

#define DLX_VERSION_JOIN(major, minor, patch) DLX_VERSION_QUOTE(major, minor, patch)

/* "0.2.0" */
#define DLX_VERSION_TEXT DLX_VERSION_JOIN(DLX_VERSION_MAJOR, DLX_VERSION_MINOR, DLX_VERSION_PATCH)

/* The version of the library that the program runs with, as DLX_VERSION_TEXT (static) and
 * DLX_VERSION_NUMBER. Never fail; any thread. */
DLX_API const char *dlx_version(void);
DLX_API uint32_t dlx_version_number(void);

/* ---- statuses -------------------------------------------------------------------------------- */

/* X(code, class, text). The class says what to do: retry the call, go on in another view, give up,
 * or mend the caller. */
#define DLX_STATUS_TABLE(X)                                                                        \
    X(OK, DLX_CLASS_NONE, "done")                                                                  \
    X(AGAIN, DLX_CLASS_RETRY, "would block; try again")                                            \
    X(TIMEOUT, DLX_CLASS_RETRY, "deadline passed")                                                 \
    X(ABORTED, DLX_CLASS_VIEW_CHANGED, "the attempt was aborted")                                  \
    X(INTERRUPTED, DLX_CLASS_FATAL, "interrupted")                                                 \
    X(ARGUMENT, DLX_CLASS_CALLER, "argument out of range")                                         \
    X(STATE, DLX_CLASS_CALLER, "call not allowed in this state")                                   \
    X(CONFIG, DLX_CLASS_CALLER, "configuration not usable")                                        \
    X(MEMORY, DLX_CLASS_FATAL, "out of memory")                                                    \
    X(SYSTEM, DLX_CLASS_FATAL, "system call failed")                                               \
    X(DATA, DLX_CLASS_FATAL, "file or message is malformed")                                       \
    X(REFUSED, DLX_CLASS_FATAL, "refused by the coordinator")                                      \
    X(PEER_LOST, DLX_CLASS_FATAL, "a site was lost")                                               \
    X(NUMERIC, DLX_CLASS_FATAL, "a value is not finite")                                           \
    X(DIVERGED, DLX_CLASS_FATAL, "replicas differ")

typedef enum dlx_status {
#define DLX_STATUS_ENUM(code, class, text) DLX_##code,
    DLX_STATUS_TABLE(DLX_STATUS_ENUM)
#undef DLX_STATUS_ENUM
} dlx_status;

typedef enum dlx_status_class {
    DLX_CLASS_NONE,
    DLX_CLASS_RETRY,
    DLX_CLASS_VIEW_CHANGED,
    DLX_CLASS_FATAL,
    DLX_CLASS_CALLER
} dlx_status_class;

/* What went wrong, for a person. Owned by the caller; any function may overwrite it. */
typedef struct dlx_error {
    dlx_status status;
    int system_errno;  /* 0 where no system call failed */
    int64_t round;     /* -1 where no round is concerned */
    char site[64];     /* empty where no site is concerned */
    char message[512]; /* one sentence and a hint */
} dlx_error;

/* Both return static text or a class; never fail; any thread. */
DLX_API const char *dlx_status_text(dlx_status status);
DLX_API dlx_status_class dlx_status_class_of(dlx_status status);

/* ---- one site's side of a run ---------------------------------------------------------------- */

/* What training does while a round's pseudo-gradients travel (docs/algorithm.md). */
typedef enum dlx_overlap {
    DLX_OVERLAP_ALLREDUCE, /* the baseline: a gradient mean every inner step, no outer step */
    DLX_OVERLAP_NONE,      /* wait for it (DiLoCo) */
    DLX_OVERLAP_DELAYED,   /* apply it a round later (DiLoCoX) */
    DLX_OVERLAP_EAGER,     /* as delayed, with this site's own share at once (arXiv 2502.12996) */
    DLX_OVERLAP_CARRY /* apply it as soon as it is there, on top of the progress made meanwhile */
} dlx_overlap;

typedef enum dlx_adaptation {
    DLX_ADAPTATION_OFF,
    DLX_ADAPTATION_PAPER, /* rank follows the update's spectrum, H follows the rank */
    DLX_ADAPTATION_LINK   /* rank and H as the slowest member's link allows */
} dlx_adaptation;

/* Where a tensor's data is: in this process, or behind the config's fetch and store. */
typedef enum dlx_memory { DLX_MEMORY_HOST, DLX_MEMORY_CALLER } dlx_memory;

typedef enum dlx_dtype { DLX_F32, DLX_BF16, DLX_F16 } dlx_dtype;

typedef enum dlx_kind {
    DLX_TRAINED,
    DLX_STATISTICS /* averaged at each outer step, but not trained: no momentum, nothing carried */
} dlx_kind;

/* A named tensor, rows × cols, row-major; a vector has rows = 1. `data` stays the caller's, and is
 * read and written inside calls of dlx_sync only. */
typedef struct dlx_tensor {
    const char *name; /* unique; copied */
    void *data;       /* of `dtype`; not used if memory is the caller's */
    int64_t rows, cols;
    dlx_memory memory;
    bool plain; /* never low rank, whatever its shape: quantised whole */
    /* its place in the whole model, if a site has several ranks: ascending, and unique over the
     * ranks. With one rank it is the place in the array, and this is not read */
    uint32_t id;
    /* of 16 bits: what is written is rounded to nearest, and rounding is no training: it enters no
     * pseudo-gradient. Anchor, momentum and error are kept in f32, so that small updates add up */
    dlx_dtype dtype;
    dlx_kind kind;
} dlx_tensor;

/* dst[count] ← values first … first + count − 1 of tensors[tensor], as f32; and the way back (of 16
 * bits: already rounded to them). Called on the thread that called dlx_sync, inside its call: at
 * open, when a pseudo-gradient is submitted, when an update is applied, and for an anchor that is
 * taken; at no other time. Each tensor in order, in chunks of at most `staging_bytes`. What is not
 * DLX_OK ends that call with it. */
typedef dlx_status (*dlx_fetch)(void *context, size_t tensor, int64_t first, int64_t count,
                                float *dst, dlx_error *error);
typedef dlx_status (*dlx_store)(void *context, size_t tensor, int64_t first, int64_t count,
                                const float *src, dlx_error *error);

typedef struct dlx_hub dlx_hub;

/* Where the other sites are: a hub in this process, or addresses. */
typedef struct dlx_link_config {
    dlx_hub *hub;            /* NULL: a link between processes, as follows */
    const char *name;        /* of that link; NULL: "zmq" */
    const char *coordinator; /* "host:port"; a coordinator may ask for port 0 */
    /* where peers reach this site; NULL or "": the address that reaches the coordinator */
    const char *listen_host;
    uint16_t listen_port; /* first of a range of one port a site; 0: any free ones */
    bool unencrypted;     /* loopback only */
    const char *key_path, *roster_path;
} dlx_link_config;

typedef void (*dlx_log)(void *context, const char *line);

/* all[ranks][bytes] ← own[bytes] of each rank of this site, in order of rank. Every rank of the
 * site makes the same calls in the same order, inside its dlx_sync_step and dlx_sync_gradients.
 * MPI_Allgather is one. */
typedef dlx_status (*dlx_gather)(void *context, void *all, const void *own, size_t bytes,
                                 dlx_error *error);

/* ---- options of the synchroniser ------------------------------------------------------------- */

/* As a value of an AUTO option: chosen for the overlap. */
#define DLX_AUTO (-1.0)

/* X(kind, field, key, default, min, max, sites, comment), one row per option. It gives the field of
 * dlx_sync_config with its default, the check of its range, the comparison of the sites' settings
 * when they join, and the trainer's option `key`. Rows are in the order of memory: add new ones at
 * the end.
 *
 *   kind         C type           values
 *   OVERLAP      dlx_overlap      in a config file, a word
 *   ADAPTATION   dlx_adaptation   in a config file, a word
 *   COUNT        uint32_t
 *   INT          int
 *   BITS         int              4, 8, 16, or 32, in a config file `none`: not quantised
 *   REAL         double
 *   AUTO         double           or DLX_AUTO, in a config file `auto`
 *   FLAG         bool
 *   MS           uint32_t         milliseconds, in a config file seconds
 *
 * sites: SAME if all sites must have the same value, OWN if each has its own. */
/* clang-format off */
#define DLX_SYNC_OPTION_TABLE(X)                                                                   \
    X(OVERLAP, overlap, "sync.overlap", DLX_OVERLAP_CARRY, 0, DLX_OVERLAP_CARRY, SAME,             \
      "what training does while a round's update travels")                                         \
    X(COUNT, inner_steps, "sync.inner_steps", 16, 1, 100000, SAME,                                 \
      "H: inner steps per round")                                                                  \
    X(COUNT, inner_steps_min, "sync.inner_steps_min", 1, 1, 100000, SAME,                          \
      "adaptation's lower bound of H")                                                             \
    X(COUNT, inner_steps_max, "sync.inner_steps_max", 0, 0, 200000, SAME,                          \
      "train on past H to here while an exchange is late, then wait; 0: 1.5 H")                    \
    X(COUNT, exchange_steps, "sync.exchange_steps", 0, 0, 100000, SAME,                            \
      "carry: apply exactly this many steps after submission, so that a run repeats; 0: at once")  \
    X(AUTO, outer_learning_rate, "sync.outer_learning_rate", DLX_AUTO, 0, 10, SAME,                \
      "of the outer Nesterov step")                                                                \
    X(AUTO, outer_momentum, "sync.outer_momentum", DLX_AUTO, 0, 0.999, SAME,                       \
      "of the outer Nesterov step")                                                                \
    X(ADAPTATION, adaptation, "sync.adaptation", DLX_ADAPTATION_PAPER, 0, DLX_ADAPTATION_LINK,     \
      SAME, "of rank and H: off, by spectrum (paper), by link")                                    \
    X(INT, factor_rank, "sync.compression.rank", 64, 0, 1024, SAME,                                \
      "columns of the low-rank factors, if they are smaller than the matrix; 0: none")             \
    X(INT, factor_rank_min, "sync.compression.rank_min", 0, 0, 1024, SAME,                         \
      "adaptation's lower bound; 0: a quarter of rank")                                            \
    X(INT, factor_rank_max, "sync.compression.rank_max", 0, 0, 1024, SAME,                         \
      "adaptation's upper bound; 0: twice rank")                                                   \
    X(BITS, bits, "sync.compression.bits", 4, 4, 32, SAME,                                         \
      "of a value sent")                                                                           \
    X(INT, group, "sync.compression.group", 64, 2, 1024, SAME,                                     \
      "values that share a scale; even")                                                           \
    X(FLAG, error_feedback, "sync.compression.error_feedback", true, false, true, SAME,            \
      "what was not sent is sent later")                                                           \
    X(FLAG, keep_unsent, "sync.compression.keep_unsent", true, false, true, SAME,                  \
      "none, carry: a site trains on from what it has not sent yet, and so does not do it again")  \
    X(MS, timeout_ms, "wan.timeout_s", 10000, 1000, 86400000, OWN,                                 \
      "declare a peer lost after this long without a message")

/* The same for the coordinator; key "": no option of a config file, or one of the table above. */
#define DLX_COORDINATOR_OPTION_TABLE(X)                                                            \
    X(COUNT, sites, "", 2, 1, 64, OWN,                                                             \
      "how many sites take part")                                                                  \
    X(MS, timeout_ms, "", 10000, 1000, 86400000, OWN,                                              \
      "declare a site lost after this long without a message")                                     \
    X(MS, patience_ms, "wan.patience_s", 600000, 1000, 86400000, OWN,                              \
      "a round that began to fail has this long to commit before the run ends")
/* clang-format on */

/* The C types of the kinds. */
#define DLX_TYPE_OVERLAP    dlx_overlap
#define DLX_TYPE_ADAPTATION dlx_adaptation
#define DLX_TYPE_COUNT      uint32_t
#define DLX_TYPE_INT        int
#define DLX_TYPE_BITS       int
#define DLX_TYPE_REAL       double
#define DLX_TYPE_AUTO       double
#define DLX_TYPE_FLAG       bool
#define DLX_TYPE_MS         uint32_t

/* Eight bytes per option: a field that a later version adds never lies in the padding of an older
 * struct. */
#ifdef __cplusplus
#define DLX_OPTION_ALIGN alignas(8)
#else
#define DLX_OPTION_ALIGN _Alignas(8)
#endif
#define DLX_OPTION_FIELD(kind, field, key, standard, min, max, sites, comment)                     \
    DLX_OPTION_ALIGN DLX_TYPE_##kind field;
#define DLX_OPTION_DEFAULT(kind, field, key, standard, min, max, sites, comment)                   \
    .field = (standard),

/* ---- one site -------------------------------------------------------------------------------- */

typedef struct dlx_sync_config {
    size_t size;
    const char *site; /* its name: 1 to 63 of A–Z a–z 0–9 . _ -, not beginning with . or - */
    /* within the site; 0 of 1. Each rank opens the tensors that it alone synchronises, and
     * exchanges them with the ranks of the same number elsewhere; 1 to 1024 */
    uint16_t rank, ranks;
    /* needed if ranks > 1: all ranks submit, apply, fail and are interrupted at the same step */
    dlx_gather gather;
    void *gather_context;
    dlx_link_config link;
    uint64_t seed; /* of the low-rank bases; equal on all sites */
    /* settings that all sites must share, "key: value\n" per line; the coordinator refuses a site
     * that differs, naming the key. NULL: none */
    const char *shared_text;
    /* the largest factor that dlx_sync_pace will be given, 1 to 100; sizes the leases */
    double pace_max;
    uint64_t windows, tokens_per_window; /* of the training data; 0: this run uses no leases */
    uint64_t data_hash;                  /* equal on all sites */
    uint32_t windows_per_step;           /* 1 to 1000000 if there are windows; sizes the leases */
    dlx_log log;
    void *log_context;
    /* may be NULL; as dlx_sync_interrupt, for a signal handler (from another thread call that
     * function instead); must outlive the sync */
    const volatile sig_atomic_t *interrupted;
    /* for tensors of the caller's memory; staging: f32 values for a chunk to pass through, so that
     * a caller can copy ahead; NULL: the library's own */
    dlx_fetch fetch;
    dlx_store store;
    void *memory_context;
    float *staging;
    size_t staging_bytes;
    DLX_SYNC_OPTION_TABLE(DLX_OPTION_FIELD)
} dlx_sync_config;

#define DLX_SYNC_CONFIG_INIT                                                                       \
    {                                                                                              \
        .size = sizeof(dlx_sync_config), .ranks = 1, .seed = 1, .pace_max = 1,                     \
        DLX_SYNC_OPTION_TABLE(DLX_OPTION_DEFAULT)                                                  \
    }

/* *config ← the defaults of DLX_SYNC_CONFIG_INIT. size: of the caller's struct; nothing behind it
 * is written. Never fails; any thread. */
DLX_API void dlx_sync_config_default(dlx_sync_config *config, size_t size);

typedef struct dlx_sync dlx_sync;

/* Opens a site: joins the run at the coordinator, waits (blocks) until every site is there with all
 * its ranks, and takes over the run's starting parameters where they differ from the first site's:
 * `tensors[i].data` may change. All sites give the same tensors in the same order, rank by rank;
 * one of several ranks may have none. Where one rank of a site fails to open, the caller ends the
 * others. Starts one thread. DLX_ARGUMENT, DLX_CONFIG: what is wrong is in error->message;
 * DLX_REFUSED: the coordinator's reason; DLX_PEER_LOST; DLX_TIMEOUT: no coordinator within
 * config->timeout_ms. */
DLX_API dlx_status dlx_sync_open(dlx_sync **out, const dlx_sync_config *config,
                                 const dlx_tensor *tensors, size_t tensor_count, dlx_error *error);

typedef struct dlx_step {
    bool submitted;  /* a round ended: its pseudo-gradient is on its way */
    bool applied;    /* an outer step changed the parameters */
    bool finished;   /* the run's tokens are committed; the parameters are the final anchor */
    double waited_s; /* time spent in this call waiting for others */
    uint64_t round;  /* the present round, from 1 */
    uint32_t inner_steps, step_in_round;
    uint32_t exchange_steps; /* where applied: inner steps since the hand-out of what was applied */
} dlx_step;

/* After every inner step that trained on `tokens` tokens: the site's, so that all its ranks give
 * the same. Parameters may be replaced. Blocks only where the overlap waits, and where a site has
 * several ranks until all of them are here. A failure or an interrupt of one rank is returned by
 * all of them in the same step. `step` may be NULL. One thread at a time. DLX_NUMERIC: a parameter
 * is no longer finite; DLX_PEER_LOST; DLX_DIVERGED; DLX_INTERRUPTED after dlx_sync_interrupt. After
 * a failure only interrupt, anchor, statistics and close may be called. */
DLX_API dlx_status dlx_sync_step(dlx_sync *sync, uint64_t tokens, dlx_step *step, dlx_error *error);

/* Rounds that begin from now on last `factor` times H inner steps, factor 0.01 to pace_max: where
 * the inner learning rate is low, sites drift apart slowly and may go on for longer. All sites give
 * the same factor at the same tokens. */
DLX_API void dlx_sync_pace(dlx_sync *sync, double factor);

/* Overlap `allreduce` only, before the inner optimiser's step: replaces gradients[i], of
 * tensors[i]'s shape, by the mean over all sites, weighted by tokens. Blocks. waited_s may be NULL.
 */
DLX_API dlx_status dlx_sync_gradients(dlx_sync *sync, float *const *gradients, uint64_t tokens,
                                      double *waited_s, dlx_error *error);

/* The next `count` positions of this site's lease on the global order of training windows. All
 * ranks of a site have the same lease and take the same positions from it. DLX_STATE where the
 * lease has fewer left, or the run has none. */
DLX_API dlx_status dlx_sync_windows(dlx_sync *sync, uint64_t *positions, uint32_t count,
                                    dlx_error *error);

/* The window, 0 … windows − 1, at a position of the global order: each epoch of `windows` positions
 * has every window once, in an order that depends on seed and epoch; the trainer's, with run.seed.
 * 0 if there are no windows. Never fails; any thread. */
DLX_API uint64_t dlx_window(uint64_t position, uint64_t windows, uint64_t seed);

/* Tokens that schedules should follow: committed ones, and this site's uncommitted ones times what
 * the whole run trains meanwhile (by the last round's weights). */
DLX_API uint64_t dlx_sync_tokens(const dlx_sync *sync);
DLX_API uint64_t dlx_sync_tokens_target(const dlx_sync *sync);
DLX_API uint32_t dlx_sync_site_index(const dlx_sync *sync);
DLX_API uint32_t dlx_sync_site_count(const dlx_sync *sync);

/* Copies the anchor, θ of the last commit, to the parameters: for saving after an interrupted run.
 * Returns how many rounds are committed in it: ranks of a site may have heard of the last commit at
 * different times, and call again. */
DLX_API dlx_status dlx_sync_take_anchor(dlx_sync *sync, uint64_t *rounds, dlx_error *error);
/* Copies the anchor to dst[i], of tensors[i]'s shape, without touching the parameters: for
 * evaluation during a run. */
DLX_API dlx_status dlx_sync_anchor(dlx_sync *sync, float *const *dst, dlx_error *error);
/* dst[i] ← a hash of tensors[i]'s anchor and id: the same on all sites, however the model is cut
 * into ranks. */
DLX_API dlx_status dlx_sync_anchor_hashes(dlx_sync *sync, uint64_t *dst, dlx_error *error);

typedef struct dlx_statistics {
    uint64_t rounds;   /* committed */
    uint64_t attempts; /* begun; more than rounds where one was repeated */
    uint64_t committed_tokens;
    uint64_t wan_bytes_sent, wan_bytes_received; /* at the link, framing included */
    /* payload of one whole vector in the last exchange: C */
    uint64_t round_bytes;
    uint64_t raw_bytes;     /* the same in f32 without compression */
    uint64_t payload_bytes; /* Σ over rounds of C */
    /* last exchange, from the view's arrival to the commit's end */
    double exchange_s;
    double exchange_total_s;
    double factor_rank_mean;                    /* over the low-rank tensors, by parameters */
    double update_norm;                         /* of the last M handed out */
    double outer_learning_rate, outer_momentum; /* as resolved */
    uint32_t inner_steps;
    uint64_t anchor_hash;
    uint64_t low_rank_tensors, plain_tensors, low_rank_parameters;
} dlx_statistics;

DLX_API void dlx_sync_statistics(dlx_sync *sync, dlx_statistics *out); /* any thread */

/* Makes present and later calls return DLX_INTERRUPTED. Any thread; async-signal-safe. */
DLX_API void dlx_sync_interrupt(dlx_sync *sync);

/* Tells the coordinator that this site is through, with a report of at most 64 KiB of text, and
 * waits until all sites are, or the run has failed. Call once, after `finished`, on every rank; the
 * text of rank 0 is the site's. */
DLX_API dlx_status dlx_sync_report(dlx_sync *sync, const char *text, dlx_error *error);

/* After `finished` without a report: reports an empty one. Before: leaves, and the run fails for
 * the others. `reason` of leaving may be NULL. */
DLX_API void dlx_sync_close(dlx_sync **sync);
DLX_API void dlx_sync_fail(dlx_sync *sync, const char *reason);
/* DLX_OK while the run goes on; else what ended it, which the next dlx_sync_step will return. Any
 * thread. */
DLX_API dlx_status dlx_sync_failure(dlx_sync *sync, dlx_error *error);

/* ---- coordinator ----------------------------------------------------------------------------- */

typedef struct dlx_coordinator dlx_coordinator;

typedef struct dlx_coordinator_config {
    size_t size;
    dlx_link_config link;
    uint64_t tokens;         /* the run ends when this many are committed; 1 or more */
    const char *shared_text; /* compared with every site's; NULL: the first site's is */
    dlx_log log;
    void *log_context;
    /* A site's report; called on the thread in dlx_coordinator_run. May be NULL. */
    void (*on_report)(void *context, const char *site, const char *text);
    void *report_context;
    const volatile sig_atomic_t *interrupted; /* as in dlx_sync_config */
    DLX_COORDINATOR_OPTION_TABLE(DLX_OPTION_FIELD)
} dlx_coordinator_config;

#define DLX_COORDINATOR_CONFIG_INIT                                                                \
    { .size = sizeof(dlx_coordinator_config), DLX_COORDINATOR_OPTION_TABLE(DLX_OPTION_DEFAULT) }

/* As dlx_sync_config_default. */
DLX_API void dlx_coordinator_config_default(dlx_coordinator_config *config, size_t size);

DLX_API dlx_status dlx_coordinator_open(dlx_coordinator **out, const dlx_coordinator_config *config,
                                        dlx_error *error);
/* "host:port" in use; valid until close. */
DLX_API const char *dlx_coordinator_endpoint(const dlx_coordinator *coordinator);
/* Blocks until every site has reported (DLX_OK), the run failed (the first cause, naming the site),
 * or dlx_coordinator_interrupt. */
DLX_API dlx_status dlx_coordinator_run(dlx_coordinator *coordinator, dlx_error *error);
/* any thread; async-signal-safe */
DLX_API void dlx_coordinator_interrupt(dlx_coordinator *coordinator);
DLX_API void dlx_coordinator_close(dlx_coordinator **coordinator);

/* ---- mem link, keys -------------------------------------------------------------------------- */

DLX_API dlx_status dlx_hub_open(dlx_hub **out, dlx_error *error);
DLX_API void dlx_hub_close(dlx_hub **hub); /* after every sync and coordinator on it */

/* Writes a new key pair to `path` (mode 0600; never overwrites) and the public half to public_text.
 */
DLX_API dlx_status dlx_key_generate(const char *path, char public_text[41], dlx_error *error);

/* ---- tier 3: the quantiser by itself --------------------------------------------------------- */

/* Bytes that `count` values take; 0 where bits or group are out of range. The last group is padded
 * with zeros. */
DLX_API size_t dlx_codec_bound(size_t count, int bits, int group);
/* dst has dlx_codec_bound bytes. DLX_NUMERIC where a value is not finite. Any thread. */
DLX_API dlx_status dlx_codec_encode(void *dst, const float *src, size_t count, int bits, int group,
                                    dlx_error *error);
/* src has src_bytes, which must be the bound. DLX_DATA where it is not, or holds what is not
 * finite. */
DLX_API dlx_status dlx_codec_decode(float *dst, const void *src, size_t src_bytes, size_t count,
                                    int bits, int group, dlx_error *error);

#ifdef __cplusplus
}
#endif

#endif
