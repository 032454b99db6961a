/* SPDX-License-Identifier: Apache-2.0 */
/* Inside a dlx_sync: what its two threads share. sync.c is the training thread's, thread.c the
 * exchange thread's. */
#ifndef DLXI_SYNC_SYNC_INTERNAL_H
#define DLXI_SYNC_SYNC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "base/flag.h"
#include "member/site.h"
#include "outer/round.h"
#include "sync/agree.h"
#include "sync/exchange.h"
#include "sync/sync.h"

enum { DLXI_SYNC_TICK_MS = 100, DLXI_SYNC_LEASES = 4 };

struct dlx_sync {
    dlxi_shard *shard;
    dlxi_sync_settings settings;

    /* training thread */
    dlxi_round round;
    double outside_since_s;  /* when the last call returned */
    double round_step_s;     /* time spent outside, i.e. training, in the present round */
    uint64_t round_tokens;   /* trained on in the present round */
    uint64_t flying_tokens;  /* of the round that is handed out and not applied */
    uint64_t applied_tokens; /* committed, as of the last apply */
    double run_share;        /* the run's tokens to one of this site's, as of the last apply */
    uint64_t windows_taken;  /* of the present round's lease */
    double pace;             /* rounds from now on last so many times H */
    bool finished, reported;
    dlxi_agreement agreement; /* with the other ranks of this site */

    pthread_t thread;
    bool thread_started;
    atomic_bool interrupted;

    /* both, under the mutex */
    pthread_mutex_t anchor_mutex; /* held while θ changes */
    uint64_t anchor_rounds;       /* committed in θ; under that mutex */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool joined;
    bool submitted; /* M belongs to the exchange thread */
    bool ready_wanted, committed, report_wanted, quit, ended;
    dlxi_ready ready;
    dlxi_commit commit;
    /* of the last committed round: all members', and this site's */
    uint64_t view_tokens, own_tokens;
    dlx_error failure;                   /* status OK while all is well */
    dlxi_lease leases[DLXI_SYNC_LEASES]; /* of round n at n mod DLXI_SYNC_LEASES */
    uint64_t tokens_target;
    uint32_t site_index, site_count;
    char *report_text;
    dlx_statistics statistics;

    /* exchange thread */
    dlxi_link *link;
    dlxi_site *site;
    dlxi_exchange *exchange;
    bool staged_told;
    int64_t begun_ns;
    uint64_t exchange_ns, exchange_bytes;
    struct {
        size_t tensor;
        int64_t value;
        bool active;
    } anchor_cursor[DLXI_SITES_MAX]; /* θ on its way to a site that starts elsewhere */
    int64_t anchor_values_missing;
};

static inline int64_t dlxi_sync_now_ms(void) {
    return dlxi_clock_ns() / 1000000;
}

/* The exchange thread, from open to close; its argument is the dlx_sync. */
void *dlxi_sync_thread(void *sync);
/* On that thread, in the middle of a long computation: says that this site is alive. */
void dlxi_sync_keepalive(void *sync);

#endif
