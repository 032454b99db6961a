/* SPDX-License-Identifier: Apache-2.0 */
/* A whole run in one process: a coordinator and D sites, or ranks of sites, over a hub, each in a
 * thread of its own, whose inner steps a test scripts. Threads only record; the test's thread
 * asserts. */
#ifndef DLXI_TESTS_IN_PROCESS_H
#define DLXI_TESTS_IN_PROCESS_H

#include "dilocox.h"

#include <pthread.h>
#include <stdatomic.h>

enum { IN_PROCESS_SITES_MAX = 8 };

typedef struct in_process_site in_process_site;

/* Runs in the site's thread after dlx_sync_open and returns what the site ends with. */
typedef dlx_status (*in_process_script)(in_process_site *site);

struct in_process_site {
    /* the test's */
    dlx_sync_config config; /* link and site are filled in */
    const char *name;       /* NULL: "site-<i>"; the ranks of one site have one name */
    const dlx_tensor *tensors;
    size_t tensor_count;
    bool after_previous; /* started when the site before it is over */
    /* bits of MXCSR to set before open, so that the exchange thread inherits them */
    unsigned floating_point_mode;
    in_process_script script; /* NULL: in_process_train */
    dlx_restore restore;      /* not NULL: the site resumes; its context is `context` */
    bool is_new;              /* it resumes as a new one */
    /* changes the parameters; step from 0 */
    void (*inner_step)(in_process_site *site, uint64_t step);
    /* with wait_ms: before each dlx_sync_wait; may be NULL */
    void (*while_pending)(in_process_site *site);
    /* may be NULL */
    void (*after_step)(in_process_site *site, uint64_t step, const dlx_step *done);
    uint64_t tokens_per_step;
    void *context;
    /* the run's */
    size_t index;
    dlx_sync *sync; /* while the script runs */
    uint64_t steps, run_id;
    atomic_uint waits; /* calls of dlx_sync_wait */
    dlx_status status;
    dlx_error error;
    dlx_statistics statistics; /* at the script's end */
    char name_space[32];
    pthread_t thread;
    bool joined;
};

typedef struct in_process {
    dlx_coordinator_config coordinator; /* link, sites, tokens are filled in */
    in_process_site site[IN_PROCESS_SITES_MAX];
    dlx_status (*on_begin)(void *context, dlx_error *error);
    void *begin_context;
    uint64_t run_id;
    uint32_t sites_expected; /* by the coordinator; 0: as many as are run */
    dlx_status status;       /* the coordinator's */
    dlx_error error;
    dlx_hub *hub;
    dlx_coordinator *running;
    pthread_t thread;
} in_process;

/* dlx_gather for the ranks of one site that are threads; its context is a seat. A rank that does
 * not come keeps the others waiting until a deadline. */
typedef struct in_process_table {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    size_t ranks, arrived;
    uint64_t generation;
    unsigned char own[IN_PROCESS_SITES_MAX][1024], all[IN_PROCESS_SITES_MAX * 1024];
} in_process_table;

typedef struct in_process_seat {
    in_process_table *table;
    uint16_t rank;
} in_process_seat;

#define IN_PROCESS_TABLE_INIT(ranks_of_it)                                                         \
    {                                                                                              \
        .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER,                   \
        .ranks = (ranks_of_it)                                                                     \
    }

dlx_status in_process_gather(void *seat, void *all, const void *own, size_t bytes,
                             dlx_error *error);

/* Everything zeroed, every config at its INIT but for adaptation, which is off. Free with free().
 */
in_process *in_process_new(void);

/* Runs sites 0 … count−1 to their end; false where threads or the hub could not be had. */
bool in_process_run(in_process *p, size_t count, uint64_t tokens);

/* What a call ends with, whose first status this is, if it is pending. done may be NULL. */
dlx_status in_process_await(in_process_site *site, dlx_status status, dlx_step *done);

/* The plain script: inner_step, dlx_sync_step, after_step until finished; then a report. */
dlx_status in_process_train(in_process_site *site);

#endif
