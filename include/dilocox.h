/* dilocox: synchronise the training of one model across sites that are joined by slow links.
 *
 * Tier 1 of the interface, and tier 3 (the codec by itself). The native trainer is in dilocox_train.h.
 *
 *   dlx_sync      one site's side of a run: opened over named tensors, stepped after every inner step
 *   dlx_coordinator   the run's rendezvous, leases and commits; one a run, in any process
 *   dlx_hub       joins sites and a coordinator that are threads of one process (the `mem` link)
 *
 * Conventions. Functions return a dlx_status and, where one is given, fill the caller's dlx_error. On failure nothing
 * is handed over: what the caller owned it still owns, and every *out is NULL. `*_close(&p)` takes NULL and half-built
 * objects, joins their threads, and sets p to NULL. The library does not print, exit, or install signal handlers.
 * Sizes are in the unit that ends the name. Arrays are row-major. A struct that begins with `size` may grow: set it
 * with its DLX_*_INIT macro, and older callers stay valid.
 */
#ifndef DILOCOX_H
#define DILOCOX_H

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

/* ---- statuses ---------------------------------------------------------------------------------------------------- */

/* X(code, class, text). The class says what to do: retry the call, go on in another view, give up, or mend the caller. */
#define DLX_STATUS_TABLE(X)                                                                                            \
    X(OK, DLX_CLASS_NONE, "done")                                                                                      \
    X(AGAIN, DLX_CLASS_RETRY, "would block; try again")                                                                \
    X(TIMEOUT, DLX_CLASS_RETRY, "deadline passed")                                                                     \
    X(ABORTED, DLX_CLASS_VIEW_CHANGED, "the attempt was aborted")                                                      \
    X(INTERRUPTED, DLX_CLASS_FATAL, "interrupted")                                                                     \
    X(ARGUMENT, DLX_CLASS_CALLER, "argument out of range")                                                             \
    X(STATE, DLX_CLASS_CALLER, "call not allowed in this state")                                                       \
    X(CONFIG, DLX_CLASS_CALLER, "configuration not usable")                                                            \
    X(MEMORY, DLX_CLASS_FATAL, "out of memory")                                                                        \
    X(SYSTEM, DLX_CLASS_FATAL, "system call failed")                                                                   \
    X(DATA, DLX_CLASS_FATAL, "file or message is malformed")                                                           \
    X(REFUSED, DLX_CLASS_FATAL, "refused by the coordinator")                                                          \
    X(PEER_LOST, DLX_CLASS_FATAL, "a site was lost")                                                                   \
    X(NUMERIC, DLX_CLASS_FATAL, "a value is not finite")                                                               \
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

#ifdef __cplusplus
}
#endif

#endif
