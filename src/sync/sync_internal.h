/* SPDX-License-Identifier: Apache-2.0 */
/* Inside a dlx_sync: its parts in order (sync.c), and what is saved and restored of them (save.c).
 */
#ifndef DLXI_SYNC_SYNC_INTERNAL_H
#define DLXI_SYNC_SYNC_INTERNAL_H

#include <stdatomic.h>

#include "base/log_ring.h"
#include "outer/round.h"
#include "sync/consensus.h"
#include "sync/pump.h"
#include "sync/sync.h"

enum { DLXI_SYNC_LEASES = 4, DLXI_SYNC_NUMBERS = 48 };

/* What dlx_sync_save gave, until the caller needs it no more. */
typedef struct dlxi_saving {
    dlx_hold hold;
    void *context;
    dlx_part *parts; /* with their names behind them; NULL: nothing is being saved */
    int64_t numbers[DLXI_SYNC_NUMBERS];
    int32_t (*adaptation)[DLXI_STATE_PIECE_NUMBERS]; /* [tensors] */
} dlxi_saving;

/* A call that may wait for others, and so be pending. */
typedef enum dlxi_call {
    DLXI_CALL_OPEN,
    DLXI_CALL_STEP,
    DLXI_CALL_GRADIENTS,
    DLXI_CALL_END,
    DLXI_CALL_REPORT
} dlxi_call;

struct dlx_sync {
    dlx_sync_config options; /* resolved */
    const dlxi_method *method;
    dlxi_local *local;
    dlxi_state *state; /* NULL while the engine has it */
    dlxi_engine *engine;
    dlxi_link *link;
    dlxi_mailbox mailbox;
    dlxi_pump pump;
    dlxi_log_ring *log;       /* behind options.log */
    dlxi_consensus consensus; /* with the other ranks of this site */
    dlxi_call call;           /* the present one, or the last */
    bool pending;             /* it has waited for wait_ms; dlxi_sync_wait goes on with it */
    bool unopened;            /* opening it has failed in dlxi_sync_wait */
    bool resumes, entered;    /* it opens from a snapshot; every site has joined */
    uint64_t ticks_left;      /* of the present call */
    int tick_ms;
    dlx_step step;     /* what the present step has done */
    float **gradients; /* [tensors], the caller's, until their mean is there; NULL: no allreduce */
    dlxi_round round;
    double outside_since_s;  /* when the last call returned */
    double round_step_s;     /* time spent outside, i.e. training, in the present round */
    uint64_t round_tokens;   /* trained on in the present round */
    uint64_t flying_tokens;  /* of the round that is submitted and not applied */
    dlxi_ready flying;       /* as submitted */
    uint64_t applied_tokens; /* committed, as of the last apply */
    uint64_t applied_rounds;
    double run_share;       /* the run's tokens to one of this site's, as of the last apply */
    uint64_t windows_taken; /* of the present round's lease */
    uint64_t windows_done;  /* of them by the last step: what was taken since is taken again */
    double pace;            /* factor of H, for rounds from now on */
    double balance;         /* the same, for this site's speed */
    bool finished, reported;
    bool adapts_anew;                    /* bases, ranks and H are not as they were saved */
    bool unready;                        /* the run was over before what was restored could go on */
    dlx_end end;                         /* what the caller was told */
    dlxi_outcome last;                   /* the newest of each kind so far */
    dlxi_lease leases[DLXI_SYNC_LEASES]; /* of submission n at n mod LEASES */
    dlxi_saving saving;
    atomic_bool interrupted;
    pthread_mutex_t statistics_mutex;
    dlx_statistics statistics;
};

/* ---- sync.c ---- */

/* Whether the run has ended or failed, or this site was interrupted. */
bool dlxi_sync_is_over(dlx_sync *s);
/* It is over, then: the exchange thread ends, and the state is here. */
void dlxi_sync_stop(dlx_sync *s);

/* ---- save.c ---- */

/* Before anything that was given to be saved is changed or released: waits until the caller has it.
 */
void dlxi_saving_end(dlx_sync *s);
/* State, start and position ← as saved. Before the engine is opened. */
dlx_status dlxi_sync_restore(dlx_sync *s, const dlxi_origin *origin, dlx_error *error);
/* Into a run that lives, whose state the engine has given: training begins at its θ. */
dlx_status dlxi_sync_return(dlx_sync *s, dlx_error *error);

#endif
