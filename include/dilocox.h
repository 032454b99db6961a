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
 * Conventions
 *
 * Statuses. A function that can fail returns a dlx_status and, if it has an `error` that is not
 * NULL, fills it on failure. Besides the statuses named with it, it may return DLX_ARGUMENT, for a
 * NULL that must not be one, and DLX_MEMORY. Other functions do nothing for such a NULL, and return
 * 0, false or NULL.
 *
 * Ownership. Arguments are borrowed during the call, unless said. On failure nothing is handed
 * over: *out is NULL, and the caller owns what it owned. `*_close(&p)` takes NULL and a NULL p,
 * joins the object's threads, and sets p to NULL; it is the only way to free an object.
 *
 * Threads. Calls on one object come from one thread at a time, but for functions of "any thread",
 * which may run beside any call on the object except its close. Objects are independent of each
 * other. A function blocks only if it says so.
 *
 * Callbacks. They come inside a call of the library, on the calling thread, and may themselves call
 * only functions of any thread on the same object.
 *
 * Waiting. A config's wait_ms bounds how long a call waits for other processes: dlx_sync_wait goes
 * on with it. So a caller looks at its signals in between.
 *
 * Values. A name's ending is its unit: _bytes, _ms, _s (seconds); `tokens`, `windows` and `values`
 * are counts. Arrays are row-major. Texts are UTF-8 and end with a zero byte.
 *
 * The library does not print, exit or install signal handlers. It aborts on a bug of its own only.
 *
 * Binary interface. A program keeps running with newer libraries of the same soname:
 *
 *   - A struct that begins with `size`, the caller's sizeof, grows at its end. Begin with its
 *     DLX_*_INIT macro; from another language zero it and set `size`, or use its *_default
 *     function. Members that are read and that the caller's header lacks have their defaults;
 *     members that the library lacks must be zero, or it returns DLX_ARGUMENT and names both sizes.
 *     Of a struct that is filled in, the library writes what `size` has room for and leaves the
 *     rest.
 *   - dlx_tensor grows too, by dlx_sync_config.tensor_bytes. Other structs stay as they are.
 *   - The number of an enumerator never changes; new ones go behind the last. An enum is 4 bytes.
 */
#ifndef DILOCOX_H
#define DILOCOX_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <dilocox_options.h>

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

/* X(code, class, text), numbered from 0. The class says what to do: retry the call, go on in
 * another view, give up, or mend the caller. */
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
    DLX_CLASS_NONE = 0,
    DLX_CLASS_RETRY = 1,
    DLX_CLASS_VIEW_CHANGED = 2,
    DLX_CLASS_FATAL = 3,
    DLX_CLASS_CALLER = 4
} dlx_status_class;

/* What went wrong, for a person. Owned by the caller; any function may overwrite it. */
typedef struct dlx_error {
    dlx_status status;
    int system_errno;  /* 0 if no system call failed */
    int64_t round;     /* -1 if no round is concerned */
    char site[64];     /* empty if no site is concerned */
    char message[512]; /* one sentence and a hint */
} dlx_error;

/* Static text, for any number; the class of an unknown status is DLX_CLASS_CALLER. Never fail; any
 * thread. */
DLX_API const char *dlx_status_text(dlx_status status);
DLX_API dlx_status_class dlx_status_class_of(dlx_status status);

/* ---- one site's side of a run ---------------------------------------------------------------- */

/* What training does while a round's pseudo-gradients travel (docs/algorithm.md). */
typedef enum dlx_overlap {
    DLX_OVERLAP_ALLREDUCE = 0, /* the baseline: a gradient mean every inner step, no outer step */
    DLX_OVERLAP_NONE = 1,      /* wait for it (DiLoCo) */
    DLX_OVERLAP_DELAYED = 2,   /* apply it a round later (DiLoCoX) */
    DLX_OVERLAP_EAGER = 3,     /* as delayed, with this site's own share at once (2502.12996) */
    DLX_OVERLAP_CARRY = 4      /* apply it on arrival, on top of the progress made meanwhile */
} dlx_overlap;

typedef enum dlx_adaptation {
    DLX_ADAPTATION_OFF = 0,
    DLX_ADAPTATION_PAPER = 1, /* rank follows the update's spectrum, H follows the rank */
    DLX_ADAPTATION_LINK = 2   /* rank and H as the slowest member's link allows */
} dlx_adaptation;

/* Where a tensor's values are: in this process, or behind the config's fetch and store. */
typedef enum dlx_memory { DLX_MEMORY_HOST = 0, DLX_MEMORY_CALLER = 1 } dlx_memory;

/* IEEE binary32, bfloat16, IEEE binary16. */
typedef enum dlx_dtype { DLX_F32 = 0, DLX_BF16 = 1, DLX_F16 = 2 } dlx_dtype;

typedef enum dlx_kind {
    DLX_TRAINED = 0,
    /* as of batch normalisation: p ← the sites' mean, weighted by tokens and sent in f32, at each
     * outer step; no momentum, no residual. Not with overlap allreduce */
    DLX_STATISTICS = 1
} dlx_kind;

/* A named tensor p of rows × cols values. It is read and written inside calls on its dlx_sync
 * only. */
typedef struct dlx_tensor {
    const char *name; /* unique in the array, not empty; copied at open */
    /* [rows, cols] of `dtype`, aligned to its 4 or 2 bytes; must stay until close. Not used if the
     * memory is the caller's */
    void *data;
    int64_t rows, cols; /* at least 1; a vector has rows = 1; rows · cols is at most 2^32 */
    dlx_memory memory;
    bool plain; /* never low rank, whatever its shape: quantised whole */
    /* its place in the whole model if a site has several ranks: ascending in the array, unique over
     * the ranks. With one rank the index in the array is used instead */
    uint32_t id;
    /* of 16 bits: what is written is rounded to nearest even, and rounding is no training: it
     * enters no pseudo-gradient. Anchor, momentum and residual are f32, so small updates add up */
    dlx_dtype dtype;
    dlx_kind kind;
} dlx_tensor;

/* fetch: dst[count] ← values first … first + count − 1 of tensors[tensor], as f32. store: the way
 * back; of 16 bits the values are already rounded to them. At these times and no others, each
 * tensor in order, in ascending chunks of at most staging_bytes:
 *
 *   dlx_sync_open          fetch; then store if the run starts from other parameters
 *   a step that submits    fetch; and store if it applies in the same pass
 *   a step that applies    store; after fetch, unless overlap is none or the run is finished
 *   dlx_sync_take_anchor   store
 *   overlap allreduce      fetch: at open, at the run's end, and for each call about the anchor
 *
 * A call that is pending does it in its dlx_sync_wait.
 *
 * `error` may be NULL; fill it on failure. What is not DLX_OK ends the library's call with that
 * status, after which the dlx_sync can only be closed. */
typedef dlx_status (*dlx_fetch)(void *context, size_t tensor, int64_t first, int64_t count,
                                float *dst, dlx_error *error);
typedef dlx_status (*dlx_store)(void *context, size_t tensor, int64_t first, int64_t count,
                                const float *src, dlx_error *error);

typedef struct dlx_hub dlx_hub;

/* Where the other sites are: a hub in this process, or addresses. */
typedef struct dlx_link_config {
    dlx_hub *hub;     /* must outlive the link. NULL: a link between processes, as follows */
    const char *name; /* of that link; NULL: "zmq" */
    /* "host:port" or "[IPv6]:port"; a coordinator may ask for port 0: any free one */
    const char *coordinator;
    /* a site's: where peers reach it; NULL or "": the address that reaches the coordinator */
    const char *listen_host;
    uint16_t listen_port; /* the first of a range of one port per site; 0: any free ones */
    bool unencrypted;     /* allowed on loopback addresses only */
    /* needed unless unencrypted: this process's key file (dlx_key_generate), which turns its core
     * dumps off, and the public keys that may join, "name key" per line, the coordinator's under
     * `coordinator` */
    const char *key_path, *roster_path;
} dlx_link_config;

/* A line for the operator: no newline, valid during the call. Lines of the library's own threads
 * are kept for the next call on the object that returns a status, or its close; a call that waits
 * delivers them every 0.1 s. At most 64 are kept: of more, one line says how many were lost. Of a
 * site's ranks, rank 0 has all lines, the others those about their connections. */
typedef void (*dlx_log)(void *context, const char *line);

/* all[ranks][bytes] ← own[bytes] of each rank of this site, in order of rank; blocks until all of
 * them call it. Every rank of the site makes the same calls in the same order, inside its
 * dlx_sync_step, dlx_sync_gradients and dlx_sync_end, in dlx_sync_wait for one of them, and in
 * dlx_sync_resume. MPI_Allgather is one. `error` may be NULL; what is not DLX_OK ends the call with
 * it. */
typedef dlx_status (*dlx_gather)(void *context, void *all, const void *own, size_t bytes,
                                 dlx_error *error);

/* ---- one site -------------------------------------------------------------------------------- */

/* Texts and the tensors' array are borrowed during dlx_sync_open; callbacks and their contexts, the
 * flag, the hub and staging must stay until close. */
typedef struct dlx_sync_config {
    size_t size;
    const char *site; /* its name: 1 to 63 of A–Z a–z 0–9 . _ -, not beginning with . or - */
    /* within the site; 0 of 1. Each rank opens the tensors that it alone synchronises, and
     * exchanges them with the ranks of the same number elsewhere; ranks is 1 to 1024 */
    uint16_t rank, ranks;
    /* needed if ranks > 1: all ranks submit, apply, fail and are interrupted at the same step */
    dlx_gather gather;
    void *gather_context;
    dlx_link_config link;
    uint64_t seed; /* of the low-rank bases; equal on all sites */
    /* settings that all sites must share, "key: value\n" per line, at most 65535 bytes; the
     * coordinator refuses a site that differs, naming the key. NULL: none. First what the
     * coordinator gives as well, if it does, then what only sites know, as of their data */
    const char *shared_text;
    /* the largest factor that dlx_sync_pace will be given, 1 to 100; sizes the leases */
    double pace_max;
    /* of the training data, equal on all sites; 0 windows: this run uses no leases */
    uint64_t windows, tokens_per_window;
    uint64_t data_hash; /* whatever identifies the data; equal on all sites */
    /* 1 to 1000000 if there are windows, and times the inner steps of the longest round less than
     * 2^32; sizes the leases */
    uint32_t windows_per_step;
    dlx_log log; /* may be NULL */
    void *log_context;
    /* may be NULL. Not 0: as dlx_sync_interrupt, which another thread calls instead of setting
     * this; also while dlx_sync_open waits */
    const volatile sig_atomic_t *interrupted;
    /* needed if a tensor's memory is the caller's */
    dlx_fetch fetch;
    dlx_store store;
    void *memory_context;
    /* f32 values that chunks of those tensors, and of tensors of 16 bits, pass through: `dst` and
     * `src` of the callbacks are its beginning, so a caller can copy ahead. At least 4 bytes, if
     * such a tensor is there. NULL: the library's own, and staging_bytes is not read */
    float *staging;
    size_t staging_bytes;
    /* sizeof(dlx_tensor); members that it has no room for are zero. DLX_SYNC_CONFIG_INIT sets it;
     * set it after dlx_sync_config_default, which leaves 0: that of version 0.2 */
    size_t tensor_bytes;
    DLX_SYNC_OPTION_TABLE(DLX_OPTION_FIELD)
} dlx_sync_config;

#define DLX_SYNC_CONFIG_INIT                                                                       \
    {                                                                                              \
        .size = sizeof(dlx_sync_config), .ranks = 1, .seed = 1, .pace_max = 1,                     \
        .tensor_bytes = sizeof(dlx_tensor), DLX_SYNC_OPTION_TABLE(DLX_OPTION_DEFAULT)              \
    }

/* *config ← the defaults of DLX_SYNC_CONFIG_INIT, but for tensor_bytes. size: of the caller's
 * struct; nothing behind it is written. Never fails; any thread. */
DLX_API void dlx_sync_config_default(dlx_sync_config *config, size_t size);

typedef struct dlx_sync dlx_sync;

/* Opens a site: joins the run at the coordinator, waits until every site has joined with all its
 * ranks and each pair of sites has exchanged a frame, and takes over the starting parameters of the
 * first site by name if its own differ. All sites give the same tensors in the same order, rank by
 * rank; one of several ranks may have none. If one rank of a site fails to open, the caller ends
 * the others. Starts a thread, the exchange thread.
 *
 * Blocks, up to config->join_ms until the coordinator answers, and then as long as it waits: its
 * dlx_coordinator_config has join_ms for sites that do not come, and patience_ms for those that do
 * not reach each other. config->interrupted ends it. DLX_ARGUMENT, DLX_CONFIG: what is wrong is in
 * the message; DLX_REFUSED: the coordinator's reason; DLX_TIMEOUT: no coordinator answered, a site
 * did not come, or no message came from the coordinator for config->timeout_ms; DLX_PEER_LOST: a
 * site left or does not reach another; DLX_INTERRUPTED; DLX_SYSTEM; DLX_DATA: a malformed message;
 * DLX_STATE: a hub has no room. Parameters may have changed on failure. DLX_AGAIN, with wait_ms:
 * *out is open, and dlx_sync_wait goes on. */
DLX_API dlx_status dlx_sync_open(dlx_sync **out, const dlx_sync_config *config,
                                 const dlx_tensor *tensors, size_t tensor_count, dlx_error *error);

/* ---- stopping and going on ---- */

typedef enum dlx_part_kind { DLX_PART_F32, DLX_PART_I32, DLX_PART_I64, DLX_PART_U8 } dlx_part_kind;

/* A part of what a site needs to go on: data[rows, cols]. */
typedef struct dlx_part {
    const char *name;
    dlx_part_kind kind;
    int64_t rows, cols;
    void *data;
} dlx_part;

/* Returns when the parts of the last dlx_sync_save are needed no more. The library calls it once,
 * before it changes any of them, on the thread and inside the call that would. */
typedef void (*dlx_hold)(void *context);
/* part->data ← the part of that name, kind and shape, as it was saved. What is not DLX_OK ends
 * dlx_sync_resume with that status. */
typedef dlx_status (*dlx_restore)(void *context, const dlx_part *part, dlx_error *error);

/* All that this site needs to go on from where it stands, but for the caller's own (parameters, the
 * inner optimiser's state): *parts[*count], where they are; not copied, their memory stays as it is
 * until `hold` has returned, or, without one, until the next call. In the middle of an inner step
 * they are as before it: a site that goes on takes its windows again. Names: docs/formats.md.
 *
 * DLX_AGAIN: an exchange is under way; call again after a later step. After the run has failed or
 * this site was interrupted it ends the exchange thread first, blocking up to a second or so, and
 * does not return DLX_AGAIN. DLX_STATE: the run is finished. DLX_MEMORY. */
DLX_API dlx_status dlx_sync_save(dlx_sync *sync, dlx_hold hold, void *context,
                                 const dlx_part **parts, size_t *count, dlx_error *error);

/* As dlx_sync_open, for a site that goes on: the caller has put its parameters in place, and
 * `restore` gives the parts of dlx_sync_save, one call each. Sites join as at a start, all from
 * snapshots of the same round; the coordinator takes up the run where it was. Then the call does
 * what the saved site was about to do: a submission that was under way is submitted again, and
 * parameters may change. If the run lives, this site comes back into it: it takes the rounds since
 * from the others, parameters become the anchor, and a round begins. If the run is over by then,
 * dlx_sync_windows and dlx_sync_step fail, and what dlx_sync_save gives goes with the parameters as
 * they are. Also DLX_DATA: what was restored can't be; DLX_STATE: it can't be gone on from. */
DLX_API dlx_status dlx_sync_resume(dlx_sync **out, const dlx_sync_config *config,
                                   const dlx_tensor *tensors, size_t tensor_count,
                                   dlx_restore restore, void *context, dlx_error *error);
/* The same for a site that is new in the run, with the parts of another one: a round begins, the
 * parameters become the anchor (allreduce: stay), and ".error" is given as zeros, if not more. */
DLX_API dlx_status dlx_sync_resume_as_new(dlx_sync **out, const dlx_sync_config *config,
                                          const dlx_tensor *tensors, size_t tensor_count,
                                          dlx_restore restore, void *context, dlx_error *error);
/* As dlx_step's `finished` of the last step; after dlx_sync_resume nothing may be left to train. */
DLX_API bool dlx_sync_is_finished(const dlx_sync *sync);

/* What a step did, and where the site stands after it. */
typedef struct dlx_step {
    size_t size;
    bool submitted; /* a round ended: its pseudo-gradient is on its way */
    bool applied;   /* an outer step changed the parameters */
    bool finished;  /* the run's tokens are committed; the parameters are the final anchor */
    /* if applied: inner steps since the submission of what was applied; else 0 */
    uint32_t exchange_steps;
    uint32_t inner_steps;   /* H of the present round */
    uint32_t step_in_round; /* inner steps done of it */
    uint64_t round;         /* the present one, from 1 */
    double waited_s;        /* time that this call waited for other sites */
} dlx_step;

#define DLX_STEP_INIT                                                                              \
    { .size = sizeof(dlx_step) }

/* Call after every inner step, which trained on `tokens` tokens: the site's, so all its ranks give
 * the same (0 is allowed; at most 2^48 per round; not used with allreduce). Parameters may be
 * replaced. Blocks if the overlap waits, without a deadline of its own (the coordinator's
 * patience_ms is one), and in a site of several ranks until all of them call it. A failure or an
 * interrupt of one rank is returned by all of them in the same step.
 *
 * `step` may be NULL, and is filled in on failure too. Once finished, one more step is DLX_STATE.
 * DLX_NUMERIC: a parameter of some site is not finite; DLX_PEER_LOST: a site left, is silent, or a
 * round did not commit in the coordinator's patience_ms; DLX_TIMEOUT: the coordinator is silent;
 * DLX_DIVERGED; DLX_DATA; DLX_SYSTEM; DLX_INTERRUPTED; a callback's status, or that of another site
 * that failed. After a failure the run is over for this site: the anchor, getters, functions of
 * any thread, and close are what may still be called. */
DLX_API dlx_status dlx_sync_step(dlx_sync *sync, uint64_t tokens, dlx_step *step, dlx_error *error);

/* Goes on with a call that has waited for config->wait_ms and returned DLX_AGAIN; waits for as long
 * again, and returns what that call would: DLX_AGAIN too. Until something else is returned the call
 * is pending: functions on this dlx_sync return DLX_STATE, but for those of any thread, getters and
 * close; dlx_sync_pace does nothing.
 *
 *   dlx_sync_open, _resume   after a failure only close may be called, which is needed then too;
 *                            before all sites have joined, getters return 0
 *   dlx_sync_step            `step` is filled in by the call and by each wait: flags and waited_s
 *                            are those of the call so far
 *   dlx_sync_gradients       the gradients' memory must stay until it is through; waited_s, of the
 *                            call so far, is in `step`
 *   dlx_sync_end             after DLX_OK call it again: it returns at once then
 *   dlx_sync_report          the text may go at once
 *
 * `step` may be NULL; what is not named above is zero in it. All ranks of a site have the same
 * wait_ms. They return DLX_AGAIN at the same point, but each at its own from dlx_sync_open and
 * dlx_sync_report. A call waits in ticks of 0.1 s, or less, and may return early. To end one, call
 * dlx_sync_interrupt and then this. DLX_STATE: no call is pending. */
DLX_API dlx_status dlx_sync_wait(dlx_sync *sync, dlx_step *step, dlx_error *error);
/* Whether a call is pending: DLX_AGAIN of dlx_sync_save, and one of dlx_sync_report, is of another
 * kind. */
DLX_API bool dlx_sync_is_pending(const dlx_sync *sync);

/* Rounds that begin from now on last `factor` times H inner steps: while the inner learning rate is
 * low, sites drift apart slowly and may go on for longer. A factor outside 0.01 … pace_max is the
 * nearer of them, NaN is 1. All sites give the same factor at the same tokens. */
DLX_API void dlx_sync_pace(dlx_sync *sync, double factor);

/* Overlap `allreduce` only, before the inner optimiser's step: replaces gradients[i], f32 of
 * tensors[i]'s shape whatever its dtype, by the mean over all sites, weighted by tokens. Blocks as
 * dlx_sync_step does, until all sites call it. waited_s may be NULL. Statuses as dlx_sync_step, on
 * which gradients are unchanged; DLX_STATE: another overlap, or the run is finished. The
 * dlx_sync_step after the last one says that it is. */
DLX_API dlx_status dlx_sync_gradients(dlx_sync *sync, float *const *gradients, uint64_t tokens,
                                      double *waited_s, dlx_error *error);

/* positions[count] ← the next of this site's lease for the present round, on a global order of
 * training windows without end: dlx_window turns a position into a window. A lease is as long as
 * the longest round, and config->windows_ahead longer, so that as many can be taken before the
 * round that trains on them; what is not taken is leased again. All ranks of a site have the same
 * lease and take the same positions from it. DLX_STATE: the lease has fewer left, or the run has
 * none; nothing is taken. */
DLX_API dlx_status dlx_sync_windows(dlx_sync *sync, uint64_t *positions, uint32_t count,
                                    dlx_error *error);

/* The window, 0 … windows − 1, at a position of the global order: each epoch of `windows` positions
 * has every window once, in an order that depends on seed and epoch; the trainer's, with run.seed.
 * 0 if there are no windows. Never fails; any thread. */
DLX_API uint64_t dlx_window(uint64_t position, uint64_t windows, uint64_t seed);

/* tokens: what schedules should follow: committed ones, and this site's uncommitted ones times what
 * the whole run trains meanwhile (by the last round's weights). tokens_target: the coordinator's.
 * site_index: 0 … site_count − 1, by name, of the sites that took part in the last round that was
 * applied; before, of all. */
DLX_API uint64_t dlx_sync_tokens(const dlx_sync *sync);
DLX_API uint64_t dlx_sync_tokens_target(const dlx_sync *sync);
DLX_API uint32_t dlx_sync_site_index(const dlx_sync *sync);
DLX_API uint32_t dlx_sync_site_count(const dlx_sync *sync);
/* The coordinator's dlx_coordinator_run_id. */
DLX_API uint64_t dlx_sync_run_id(const dlx_sync *sync);

/* The anchor is θ of the last commit that this rank knows; with allreduce it is the parameters. The
 * three functions work after a failure too, and block while the exchange thread is in the middle of
 * a computation. They return a callback's status.
 *
 * take_anchor: parameters ← anchor, dropping the progress since: for saving a run that ended early.
 * *rounds, which may be NULL, ← the rounds committed in it: ranks of a site may learn of the last
 * commit at different times, and call again. */
DLX_API dlx_status dlx_sync_take_anchor(dlx_sync *sync, uint64_t *rounds, dlx_error *error);
/* dst[i] ← the anchor, f32 of tensors[i]'s shape; parameters stay: for evaluation during a run. */
DLX_API dlx_status dlx_sync_anchor(dlx_sync *sync, float *const *dst, dlx_error *error);
/* dst[i] ← a hash of tensors[i]'s anchor and id: the same on all sites, however the model is split
 * among ranks. */
DLX_API dlx_status dlx_sync_anchor_hashes(dlx_sync *sync, uint64_t *dst, dlx_error *error);

/* Of this rank, since it was opened; but for bytes at the link, as of its last call. */
typedef struct dlx_statistics {
    size_t size;
    uint64_t rounds, attempts;                   /* committed; begun: more if one was repeated */
    uint64_t committed_tokens;                   /* of the run */
    uint64_t wan_bytes_sent, wan_bytes_received; /* at the link, framing included */
    uint64_t round_bytes, raw_bytes;     /* C: payload of the last round; of the model in f32 */
    uint64_t payload_bytes;              /* Σ over rounds of C */
    double exchange_s, exchange_total_s; /* last one, from the view's arrival to the commit's end */
    double factor_rank_mean;             /* over the low-rank tensors, by parameters */
    double update_norm;                  /* ‖M‖, or of gradients, as last submitted */
    double outer_learning_rate, outer_momentum; /* in use: DLX_AUTO is resolved */
    uint32_t inner_steps;                       /* H of the present round */
    uint64_t anchor_hash;                       /* the sum of dlx_sync_anchor_hashes */
    uint64_t low_rank_tensors, plain_tensors, low_rank_parameters; /* the last: values */
    double weight, outer_momentum_rate; /* this site's in the last round, 0 to 1; in use */
    /* ‖M‖, ‖Δ‖, ‖v‖ before, ‖e‖, cos(M, Δ), cos(Δ, v) of the last round; 0 if not in it */
    double submitted_norm, mean_norm, momentum_norm, unsent_norm, agreement, persistence;
} dlx_statistics;

#define DLX_STATISTICS_INIT                                                                        \
    { .size = sizeof(dlx_statistics) }

/* Any thread. */
DLX_API dlx_status dlx_sync_statistics(dlx_sync *sync, dlx_statistics *statistics,
                                       dlx_error *error);

/* Makes dlx_sync_step, dlx_sync_gradients and dlx_sync_report return DLX_INTERRUPTED, now and
 * later; one that waits does so within 0.1 s. Any thread; async-signal-safe. */
DLX_API void dlx_sync_interrupt(dlx_sync *sync);

/* What this site is to do once the run is finished, beside other sites: its share of an evaluation,
 * say, and saving the results. */
typedef struct dlx_end {
    size_t size;
    uint64_t parts;      /* bit i: part i is this site's */
    uint32_t part_count; /* into so many the work is cut, 1 to 64 */
    bool saves;          /* this site saves what only one should */
} dlx_end;

#define DLX_END_INIT                                                                               \
    { .size = sizeof(dlx_end) }

/* After `finished`; blocks until the coordinator has said what this site is to do, in a site of
 * several ranks until all of them call it. If a site is lost before its report, its parts pass to
 * another: dlx_sync_report returns DLX_AGAIN there, and the next dlx_sync_end has more parts. With
 * another part_count the work is cut anew, and what was done before is void. DLX_STATE: not
 * finished; statuses as dlx_sync_report. */
DLX_API dlx_status dlx_sync_end(dlx_sync *sync, dlx_end *end, dlx_error *error);

/* Tells the coordinator that this site is through, with a report of at most 65535 bytes, and blocks
 * until all sites are, or the run has failed. Call once, after `finished`, on every rank; the text
 * of rank 0 is the site's. DLX_AGAIN, after dlx_sync_end only: another site is lost, and its parts
 * are this site's; call dlx_sync_end, and report again. DLX_STATE: not finished, or reported
 * before; DLX_TIMEOUT: no message from the coordinator for timeout_ms and orphan_ms; DLX_PEER_LOST;
 * DLX_INTERRUPTED. */
DLX_API dlx_status dlx_sync_report(dlx_sync *sync, const char *text, dlx_error *error);

/* The run has failed here, before this site's report: the next step returns DLX_PEER_LOST with this
 * reason, and close gives it to the coordinator, and so to the other sites, cut to 400 bytes. NULL:
 * it left before the run's end. The first failure counts. Any thread. */
DLX_API void dlx_sync_fail(dlx_sync *sync, const char *reason);
/* DLX_OK while the run goes on, and after it ended well; else what ended it, which the next
 * dlx_sync_step will return. Any thread. */
DLX_API dlx_status dlx_sync_failure(dlx_sync *sync, dlx_error *error);

/* Leaves the run. Unless it is finished, it fails for the other sites with what failed here, or
 * because this site left. A pending call is given up. Blocks:
 *
 *   finished, without a report   unless it failed, first as dlx_sync_report with "": until all
 *                                sites have reported, or no message came from the coordinator for
 *                                timeout_ms, or an interrupt
 *   always                       for the piece of computation that the exchange thread is at, up to
 *                                1 s for its last messages to be sent, and with links between
 *                                processes up to 1 s for them to leave this machine */
DLX_API void dlx_sync_close(dlx_sync **sync);

/* ---- coordinator ----------------------------------------------------------------------------- */

typedef struct dlx_coordinator dlx_coordinator;

/* Texts are borrowed during dlx_coordinator_open; callbacks and their contexts, the flag and the
 * hub must stay until close. */
typedef struct dlx_coordinator_config {
    size_t size;
    dlx_link_config link;
    uint64_t tokens; /* the run ends when this many are committed; 1 or more */
    /* every site's must begin with these lines, at most 65535 bytes; what follows is compared
     * between sites. NULL: all of it is */
    const char *shared_text;
    dlx_log log; /* may be NULL */
    void *log_context;
    /* a site's report, at the run's end: in order of names, of the sites that sent one; may be
     * NULL */
    void (*on_report)(void *context, const char *site, const char *text);
    void *report_context;
    /* may be NULL. Not 0: as dlx_coordinator_interrupt, which another thread calls instead */
    const volatile sig_atomic_t *interrupted;
    DLX_COORDINATOR_OPTION_TABLE(DLX_OPTION_FIELD)
} dlx_coordinator_config;

#define DLX_COORDINATOR_CONFIG_INIT                                                                \
    { .size = sizeof(dlx_coordinator_config), DLX_COORDINATOR_OPTION_TABLE(DLX_OPTION_DEFAULT) }

/* *config ← the defaults of DLX_COORDINATOR_CONFIG_INIT. size: of the caller's struct; nothing
 * behind it is written. Never fails; any thread. */
DLX_API void dlx_coordinator_config_default(dlx_coordinator_config *config, size_t size);

/* Listens, so that sites can connect from now on. DLX_CONFIG, DLX_ARGUMENT, DLX_SYSTEM; DLX_STATE:
 * the hub has a coordinator, or no room. */
DLX_API dlx_status dlx_coordinator_open(dlx_coordinator **out, const dlx_coordinator_config *config,
                                        dlx_error *error);
/* The same with a store: an SQLite file on a local file system, in which the run survives this
 * process. Whatever the sites are told about a committed round is in it before. If the process
 * ends in whatever way but the run's end, the sites go on as far as they can and wait for it (a
 * site's orphan_ms); opened again on the same store, with the same config, it goes on with the run,
 * at the port of before if it asks for port 0.
 *
 * A file that does not exist is created in dlx_coordinator_run, after on_begin. Besides the
 * statuses of dlx_coordinator_open: DLX_STATE: the run in the store is over; another coordinator
 * has the file open; or it is not where its coordinator left it (another machine, a copy), and was
 * not released: its run may have gone on elsewhere. DLX_CONFIG: tokens, sites or settings are not
 * those of the run. DLX_DATA: no store, or damaged. The path is borrowed during the call. Blocks on
 * the disk. */
DLX_API dlx_status dlx_coordinator_open_stored(dlx_coordinator **out,
                                               const dlx_coordinator_config *config,
                                               const char *store_path, dlx_error *error);
/* Goes on with a run whose store is lost, or is on another machine, or was outrun: from what the
 * sites keep. In dlx_coordinator_run it waits until all ranks of the sites that may know of a later
 * round than the newest copy of the coordinator's state have answered, and do not hear their
 * coordinator (for timeout_ms); then they obey this one, and it makes a new store. A file that is
 * there is renamed to PATH.replaced then. `without`: names of sites, with commas, that are not
 * waited for: what they have trained or committed since is given up, and they can't come back; NULL
 * or "": none. The config is the run's, with its sites and tokens. Statuses as
 * dlx_coordinator_open_stored; of dlx_coordinator_run also DLX_TIMEOUT: not all were heard within
 * patience_ms; DLX_CONFIG: other settings than the run's. Texts are borrowed during the call. */
DLX_API dlx_status dlx_coordinator_open_takeover(dlx_coordinator **out,
                                                 const dlx_coordinator_config *config,
                                                 const char *store_path, const char *without,
                                                 dlx_error *error);
/* Whether it goes on with a run that the store had; its id and the sites are known then, and
 * on_begin is called at the beginning of dlx_coordinator_run. With a takeover it is true, and id,
 * sites and statistics are there from on_begin on: until then only the thread that runs it may ask
 * for them. Any thread. */
DLX_API bool dlx_coordinator_was_restored(const dlx_coordinator *coordinator);
/* After dlx_coordinator_run: whether the run that the store has is over, well or not, so that the
 * file can be removed. False if there is none, after a release, if it could not be written, and if
 * another coordinator has taken the run over. */
DLX_API bool dlx_coordinator_is_over(const dlx_coordinator *coordinator);
/* "host:port" in use, "" on a hub; valid until close. Any thread. */
DLX_API const char *dlx_coordinator_endpoint(const dlx_coordinator *coordinator);
/* A random number other than 0 that all sites of the run receive: results that name it are one
 * run's. 0 before a takeover's on_begin. Any thread. */
DLX_API uint64_t dlx_coordinator_run_id(const dlx_coordinator *coordinator);
/* Called once, in dlx_coordinator_run, when all sites have joined and reach each other: before that
 * a run has changed nothing. A status other than DLX_OK, and its error, fail the run. Before
 * dlx_coordinator_run; on_begin may be NULL. */
DLX_API void dlx_coordinator_on_begin(dlx_coordinator *coordinator,
                                      dlx_status (*on_begin)(void *context, dlx_error *error),
                                      void *context);
/* Called for each site that was dropped, when dlx_coordinator_run is about to return: in which
 * round, and why. Before dlx_coordinator_run; on_drop may be NULL. */
DLX_API void dlx_coordinator_on_drop(dlx_coordinator *coordinator,
                                     void (*on_drop)(void *context, const char *site,
                                                     uint64_t round, const char *why),
                                     void *context);
/* What happened since dlx_coordinator_open. */
typedef struct dlx_coordinator_statistics {
    size_t size;
    uint64_t attempts; /* to exchange a round's pseudo-gradients */
    /* that failed: nothing moved between two sites; a frame was malformed; results differed; a
     * site was lost */
    uint64_t stalled, broken, differing, member_lost;
    /* times from a failed attempt or a lost site to the next commit */
    uint64_t recoveries;
    double recovery_s_mean, recovery_s_max;
    uint64_t round; /* the present one, from 1; 0 before a takeover has begun */
} dlx_coordinator_statistics;

#define DLX_COORDINATOR_STATISTICS_INIT                                                            \
    { .size = sizeof(dlx_coordinator_statistics) }

typedef struct dlx_site_statistics {
    size_t size;
    const char *site;  /* its name; valid until close */
    uint64_t rounds;   /* that it took part in */
    uint64_t left_out; /* committed rounds that it did not, while it was part of the run */
    uint64_t away;     /* how often nothing was heard of it, and away_s for how long */
    double away_s;
} dlx_site_statistics;

#define DLX_SITE_STATISTICS_INIT                                                                   \
    { .size = sizeof(dlx_site_statistics) }

/* After dlx_coordinator_run. Sites by name, from 0; DLX_STATE: there is no such site. */
DLX_API dlx_status dlx_coordinator_statistics_of(const dlx_coordinator *coordinator,
                                                 dlx_coordinator_statistics *statistics,
                                                 dlx_error *error);
DLX_API dlx_status dlx_coordinator_site_statistics(const dlx_coordinator *coordinator,
                                                   uint32_t site, dlx_site_statistics *statistics,
                                                   dlx_error *error);
/* Runs the run; call once, or with config->wait_ms again as long as it returns DLX_AGAIN, having
 * waited for that long. Blocks until every site has reported (DLX_OK), the run failed (the first
 * cause, naming the site), an interrupt or a release (DLX_INTERRUPTED), and up to timeout_ms more
 * for the sites' last answers. DLX_TIMEOUT: not all sites joined within join_ms of
 * dlx_coordinator_open. With a store, DLX_STATE: another coordinator has taken the run over; and
 * what else the store returns if it can't be written, after which the sites are sent nothing, and
 * wait. Reports of a run that ended well are in the store until close: if the process ends before,
 * the next one on this store calls on_report again. */
DLX_API dlx_status dlx_coordinator_run(dlx_coordinator *coordinator, dlx_error *error);
/* Ends the run as failed: dlx_coordinator_run tells the sites and returns, within 1.1 s. Any
 * thread; async-signal-safe. */
DLX_API void dlx_coordinator_interrupt(dlx_coordinator *coordinator);
/* Stops this coordinator and not the run: dlx_coordinator_run returns DLX_INTERRUPTED within 0.2 s,
 * sites are told nothing and wait, and the store can be opened again, here or, moved with nothing
 * beside it, on another machine. Without a store, and before the run has begun, it is
 * dlx_coordinator_interrupt. Any thread; async-signal-safe. */
DLX_API void dlx_coordinator_release(dlx_coordinator *coordinator);
/* The same once *flag is not 0. The flag must stay until close; it may be NULL. Before
 * dlx_coordinator_run. */
DLX_API void dlx_coordinator_release_when(dlx_coordinator *coordinator,
                                          const volatile sig_atomic_t *flag);
/* Blocks up to 1 s, with links between processes, for the last messages to leave this machine. */
DLX_API void dlx_coordinator_close(dlx_coordinator **coordinator);

/* ---- mem link, keys -------------------------------------------------------------------------- */

/* For a coordinator and sites, or ranks of sites, that are threads of this process. DLX_SYSTEM. Any
 * thread may open endpoints on it. */
DLX_API dlx_status dlx_hub_open(dlx_hub **out, dlx_error *error);
/* Close every dlx_sync and dlx_coordinator on it before: otherwise the process aborts. */
DLX_API void dlx_hub_close(dlx_hub **hub);

/* Writes a new key pair to `path` (mode 0600; never overwrites) and the public half, 40 characters,
 * to public_text. DLX_CONFIG: the file exists; DLX_SYSTEM. Any thread. The process writes no core
 * dumps afterwards. */
DLX_API dlx_status dlx_key_generate(const char *path, char public_text[41], dlx_error *error);

/* ---- tier 3: the quantiser by itself --------------------------------------------------------- */

/* Bytes that `count` values take: groups of `group` values (even, 2 to 1024) of `bits` bits (4, 8,
 * 16 or 32), the last one padded with zeros. 0 if bits or group are out of range, or the bytes are
 * too many. Never fails; any thread. */
DLX_API size_t dlx_codec_bound(size_t count, int bits, int group);
/* dst[dlx_codec_bound] ← src[count]. DLX_NUMERIC: a value is not finite, or too large for these
 * bits; DLX_ARGUMENT: bits or group. dst is undefined on failure. Any thread. */
DLX_API dlx_status dlx_codec_encode(void *dst, const float *src, size_t count, int bits, int group,
                                    dlx_error *error);
/* dst[count] ← src[src_bytes]. DLX_DATA: src_bytes is not the bound, or a value or scale is not
 * finite; DLX_ARGUMENT: bits or group. dst is unchanged on failure. Any thread. */
DLX_API dlx_status dlx_codec_decode(float *dst, const void *src, size_t src_bytes, size_t count,
                                    int bits, int group, dlx_error *error);

#ifdef __cplusplus
}
#endif

#endif
