/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator at work: its state machine, a link, its store, and time.
 *
 * With a store, what the machine has unsaved is on the disk before anything is sent; under
 * allreduce, which commits at each inner step, the kernel has it, and after the first write the
 * disk is not waited for. If it can't be written, nothing is sent any more, not even that this
 * coordinator ends: its sites wait for one that is started again. They are told only if the first
 * state can't be written, since they have not begun to train then. */
#ifndef DLXI_SYNC_COORDINATE_H
#define DLXI_SYNC_COORDINATE_H

#include "base/log_ring.h"
#include "link/link.h"
#include "member/takeover.h"
#include "store/store.h"

typedef struct dlxi_coordinate {
    dlxi_coordinator *machine;
    dlxi_takeover *takeover; /* gives the machine; NULL: there is one */
    dlxi_link *link;
    /* the owner's; NULL: none, or to be created when the run begins. With a takeover, of the file
     * that is replaced */
    dlxi_store *store;
    const char *store_path; /* NULL: no store */
    const char *endpoint;   /* with a takeover: where it listens */
    bool has_saved;         /* the term, which the first write raises, is on the disk */
    _Atomic bool interrupted, released;
    dlx_log log; /* may be NULL */
    void *log_context;
    dlxi_log_ring *others;    /* the link's lines, for `log`; NULL if that is */
    uint32_t wait_ms;         /* 0: runs to the end */
    int64_t until_ms;         /* the present call may wait until then */
    int64_t sending_until_ms; /* what tells the sites how the run ended; 0: it has not */
    bool pending;             /* the last call has waited for wait_ms, and the next one goes on */
    const volatile sig_atomic_t *interrupted_too, *released_too; /* may be NULL: a handler's */
    /* as in dlx_coordinator_on_drop; NULL: none */
    void (*on_drop)(void *context, const char *site, uint64_t round, const char *why);
    void *drop_context;
    /* as in dlx_coordinator_on_begin; NULL: none, or called already */
    dlx_status (*on_begin)(void *context, dlx_error *error);
    void *begin_context;
} dlxi_coordinate;

/* Runs until the run is over, or this coordinator is interrupted or released; on_report as in
 * dlx_coordinator_config. DLX_AGAIN, and pending: wait_ms are over; call again. */
dlx_status dlxi_coordinate_run(dlxi_coordinate *c,
                               void (*on_report)(void *context, const char *site, const char *text),
                               void *context, dlx_error *error);

/* What the machine has unsaved → the store; DLX_OK without one. */
dlx_status dlxi_coordinate_save(dlxi_coordinate *c, dlx_error *error);

#endif
