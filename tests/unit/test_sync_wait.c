/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that return DLX_AGAIN and go on: a run of them in one thread, step by step; what is allowed
 * while one is pending; lines of other threads; and the same run as with calls that block, to the
 * bit, on ranks that all return at the same point. */
#include "in_process.h"

#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* ---- a run in one thread --------------------------------------------------------------------- */

enum { SITES = 2, VALUES = 4, MANY = 1000000 };

/* Whoever is pending goes on in turn, each for a millisecond. */
typedef struct world {
    dlx_coordinator_config run; /* config and status of the coordinator */
    dlx_status run_status;
    dlx_error run_error;
    unsigned connected; /* sites that the coordinator knows */
    dlx_sync_config config[SITES];
    dlx_hub *hub;
    dlx_coordinator *coordinator;
    dlx_sync *sync[SITES];
    dlx_status status[SITES]; /* of the last call */
    dlx_error error[SITES];
    dlx_step step[SITES];
    float p[SITES][VALUES], g[SITES][VALUES];
    dlx_tensor tensors[SITES];
} world;

static void on_line(void *context, const char *line) {
    *(unsigned *)context += strstr(line, " connected, ") != NULL;
}

static world *world_open(dlx_overlap overlap, uint32_t sites, uint64_t tokens) {
    static const char *const names[SITES] = {"delft", "oslo"};
    world *w = calloc(1, sizeof *w);
    if (w == NULL) abort();
    assert_int_equal(dlx_hub_open(&w->hub, NULL), DLX_OK);
    w->run = (dlx_coordinator_config)DLX_COORDINATOR_CONFIG_INIT;
    w->run.link.hub = w->hub;
    w->run.sites = sites;
    w->run.tokens = tokens;
    w->run.wait_ms = 1;
    w->run.log = on_line;
    w->run.log_context = &w->connected;
    w->run_status = DLX_AGAIN;
    for (size_t i = 0; i < sites; i++) {
        w->config[i] = (dlx_sync_config)DLX_SYNC_CONFIG_INIT;
        w->config[i].link.hub = w->hub;
        w->config[i].site = names[i];
        w->config[i].overlap = overlap;
        w->config[i].inner_steps = w->config[i].inner_steps_max = 1;
        w->config[i].bits = 32; /* nothing stays unsent, in which sites differ */
        w->config[i].wait_ms = 1;
        w->step[i] = (dlx_step)DLX_STEP_INIT;
        w->tensors[i] = (dlx_tensor){.name = "p", .data = w->p[i], .rows = 2, .cols = 2};
    }
    return w;
}

/* Interrupted, a finished site does not wait for the others' reports. */
static void world_close(world *w) {
    for (size_t i = 0; i < SITES; i++) {
        dlx_sync_interrupt(w->sync[i]);
        dlx_sync_close(&w->sync[i]);
    }
    dlx_coordinator_close(&w->coordinator);
    dlx_hub_close(&w->hub);
    free(w);
}

static void open_begin(world *w, size_t i) {
    if (w->coordinator == NULL)
        assert_int_equal(dlx_coordinator_open(&w->coordinator, &w->run, &w->run_error), DLX_OK);
    w->status[i] = dlx_sync_open(&w->sync[i], &w->config[i], &w->tensors[i], 1, &w->error[i]);
    assert_int_equal(w->status[i], DLX_AGAIN);
    assert_non_null(w->sync[i]);
    assert_true(dlx_sync_is_pending(w->sync[i]));
}

static bool pends(const world *w, size_t i) {
    return w->status[i] == DLX_AGAIN && dlx_sync_is_pending(w->sync[i]);
}

static void turn(world *w) {
    if (w->run_status == DLX_AGAIN)
        w->run_status = dlx_coordinator_run(w->coordinator, &w->run_error);
    for (size_t i = 0; i < SITES; i++)
        if (pends(w, i)) w->status[i] = dlx_sync_wait(w->sync[i], &w->step[i], &w->error[i]);
}

/* Until none of them is pending. */
static void go_on(world *w) {
    while (pends(w, 0) || pends(w, 1)) turn(w);
}

static void run_to_the_end(world *w) {
    while (w->run_status == DLX_AGAIN) turn(w);
}

/* Opens `sites` sites at once. */
static void join(world *w, size_t sites) {
    for (size_t i = 0; i < sites; i++) open_begin(w, i);
    go_on(w);
    for (size_t i = 0; i < sites; i++)
        if (w->status[i] != DLX_OK) fail_msg("site %zu: %s", i, w->error[i].message);
}

static void step_begin(world *w, size_t i) {
    for (int k = 0; k < VALUES; k++) w->p[i][k] += (float)i + 1;
    w->status[i] = dlx_sync_step(w->sync[i], 1, &w->step[i], &w->error[i]);
}

/* The array of pointers is the caller's again. */
static void gradients_begin(world *w, size_t i) {
    float *gradients[1] = {w->g[i]};
    double waited_s = -1;
    for (int k = 0; k < VALUES; k++) w->g[i][k] = (float)(i + 1);
    w->status[i] = dlx_sync_gradients(w->sync[i], gradients, 1, &waited_s, &w->error[i]);
    assert_true(w->status[i] != DLX_AGAIN || waited_s > 0);
    gradients[0] = NULL;
}

#define PENDING "a call is pending; go on with dlx_sync_wait"

/* All that would change something is refused with this message; what only asks is not. */
static void assert_refused(dlx_sync *s, const char *message) {
    dlx_error error;
    dlx_step step = DLX_STEP_INIT;
    dlx_end end = DLX_END_INIT;
    dlx_statistics statistics = DLX_STATISTICS_INIT;
    const dlx_part *parts;
    size_t count;
    float values[VALUES], *const dst[1] = {values};
    uint64_t hash, position;
#define IS_REFUSED(call)                                                                           \
    do {                                                                                           \
        error.message[0] = '\0';                                                                   \
        assert_int_equal(call, DLX_STATE);                                                         \
        assert_string_equal(error.message, message);                                               \
    } while (0)
    IS_REFUSED(dlx_sync_step(s, 1, &step, &error));
    IS_REFUSED(dlx_sync_gradients(s, dst, 1, NULL, &error));
    IS_REFUSED(dlx_sync_windows(s, &position, 1, &error));
    IS_REFUSED(dlx_sync_save(s, NULL, NULL, &parts, &count, &error));
    IS_REFUSED(dlx_sync_end(s, &end, &error));
    IS_REFUSED(dlx_sync_report(s, "", &error));
    IS_REFUSED(dlx_sync_take_anchor(s, NULL, &error));
    IS_REFUSED(dlx_sync_anchor(s, dst, &error));
    IS_REFUSED(dlx_sync_anchor_hashes(s, &hash, &error));
#undef IS_REFUSED
    dlx_sync_pace(s, 1);
    (void)dlx_sync_tokens(s);
    assert_int_equal(dlx_sync_statistics(s, &statistics, &error), DLX_OK);
}

static void opening_waits_for_a_site_that_is_late(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_NONE, 2, 4);
    for (int k = 0; k < VALUES; k++) w->p[1][k] = 7; /* the first site's count */
    open_begin(w, 0);
    for (int i = 0; i < 20; i++) turn(w);
    assert_true(pends(w, 0));
    assert_string_equal(w->error[0].message,
                        "the call waits for other sites; go on with dlx_sync_wait");
    assert_refused(w->sync[0], PENDING);
    assert_true(dlx_sync_run_id(w->sync[0]) == 0 && dlx_sync_tokens_target(w->sync[0]) == 0);
    assert_int_equal(dlx_sync_failure(w->sync[0], NULL), DLX_OK);
    assert_int_equal(dlx_sync_wait(w->sync[0], NULL, NULL), DLX_AGAIN);

    open_begin(w, 1);
    go_on(w);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(w->status[i], DLX_OK);
        assert_true(w->p[i][0] == 0);
        assert_true(dlx_sync_run_id(w->sync[i]) != 0);
        assert_int_equal(dlx_sync_tokens_target(w->sync[i]), 4);
        assert_false(dlx_sync_is_pending(w->sync[i]));
        assert_int_equal(dlx_sync_wait(w->sync[i], NULL, &w->error[i]), DLX_STATE);
        assert_string_equal(
            w->error[i].message,
            "no call is pending; dlx_sync_wait goes on with one that has waited for wait_ms");
    }
    world_close(w);
}

static void a_step_adds_up(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_NONE, 2, MANY);
    join(w, 2);
    step_begin(w, 0);
    double waited_s = 0;
    for (int i = 0; i < 10; i++, turn(w)) {
        assert_true(pends(w, 0));
        assert_true(w->step[0].submitted && !w->step[0].applied);
        assert_int_equal(w->step[0].round, 2);
        assert_true(w->step[0].waited_s > waited_s);
        waited_s = w->step[0].waited_s;
        assert_refused(w->sync[0], PENDING);
    }
    step_begin(w, 1);
    go_on(w);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(w->status[i], DLX_OK);
        assert_true(w->step[i].submitted && w->step[i].applied && !w->step[i].finished);
        assert_true(w->p[i][0] > 0 && w->p[i][0] == w->p[0][0]);
    }
    assert_true(w->step[0].waited_s >= waited_s);
    /* the next step's count anew */
    step_begin(w, 0);
    assert_true(w->step[0].submitted && !w->step[0].applied);
    world_close(w);
}

static void gradients_are_replaced_by_a_wait(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_ALLREDUCE, 2, MANY);
    join(w, 2);
    gradients_begin(w, 0);
    assert_true(pends(w, 0));
    assert_refused(w->sync[0], PENDING);
    turn(w);
    assert_true(pends(w, 0) && w->g[0][0] == 1);
    assert_true(w->step[0].waited_s > 0 && !w->step[0].submitted && w->step[0].round == 0);
    gradients_begin(w, 1);
    go_on(w);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(w->status[i], DLX_OK);
        for (int k = 0; k < VALUES; k++) assert_float_equal(w->g[i][k], 1.5, 1e-6);
        step_begin(w, i);
        assert_int_equal(w->status[i], DLX_OK);
    }
    world_close(w);
}

/* ---- the end --------------------------------------------------------------------------------- */

/* Both sites train until the run is finished. */
static void finish(world *w) {
    join(w, 2);
    while (!w->step[0].finished) {
        for (size_t i = 0; i < 2; i++) step_begin(w, i);
        go_on(w);
        for (size_t i = 0; i < 2; i++) assert_int_equal(w->status[i], DLX_OK);
    }
}

/* Asks, waits, and asks again. */
static void ask_for_work(world *w, size_t i, dlx_end *end) {
    *end = (dlx_end)DLX_END_INIT;
    w->status[i] = dlx_sync_end(w->sync[i], end, &w->error[i]);
    if (!pends(w, i)) return;
    assert_refused(w->sync[i], PENDING);
    go_on(w);
    assert_int_equal(w->status[i], DLX_OK);
    w->status[i] = dlx_sync_end(w->sync[i], end, &w->error[i]);
}

static void reports_wait_for_others(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_NONE, 2, 8);
    dlx_end end[SITES];
    finish(w);
    for (size_t i = 0; i < 2; i++) {
        ask_for_work(w, i, &end[i]);
        assert_int_equal(w->status[i], DLX_OK);
    }
    assert_int_equal(end[0].part_count, end[1].part_count);
    assert_true((end[0].parts & end[1].parts) == 0 && end[0].saves && !end[1].saves);
    for (size_t i = 0; i < 2; i++) {
        w->status[i] = dlx_sync_report(w->sync[i], "done", &w->error[i]);
        assert_true(pends(w, i));
        assert_refused(w->sync[i], PENDING);
    }
    go_on(w);
    run_to_the_end(w);
    assert_int_equal(w->status[0], DLX_OK);
    assert_int_equal(w->status[1], DLX_OK);
    assert_int_equal(w->run_status, DLX_OK);
    assert_int_equal(dlx_coordinator_run(w->coordinator, &w->run_error), DLX_STATE);
    assert_string_equal(w->run_error.message, "dlx_coordinator_run has ended; close it");
    world_close(w);
}

/* Its DLX_AGAIN is not one of waiting. */
static void a_report_says_that_there_is_more_to_do(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_NONE, 2, 8);
    dlx_end end[SITES];
    finish(w);
    for (size_t i = 0; i < 2; i++) ask_for_work(w, i, &end[i]);
    w->status[0] = dlx_sync_report(w->sync[0], "done", &w->error[0]);
    assert_true(pends(w, 0));
    dlx_sync_fail(w->sync[1], "the disk is full");
    dlx_sync_close(&w->sync[1]);
    w->status[1] = DLX_OK;
    go_on(w);
    assert_int_equal(w->status[0], DLX_AGAIN);
    assert_string_equal(w->error[0].message,
                        "another site is lost, and its work is this site's now");
    const uint64_t parts = end[0].parts | end[1].parts;
    ask_for_work(w, 0, &end[0]);
    assert_int_equal(w->status[0], DLX_OK);
    assert_true((end[0].parts & parts) == parts || end[0].part_count != end[1].part_count);
    w->status[0] = dlx_sync_report(w->sync[0], "done", &w->error[0]);
    go_on(w);
    run_to_the_end(w);
    assert_int_equal(w->status[0], DLX_OK);
    assert_int_equal(w->run_status, DLX_OK);
    world_close(w);
}

/* ---- what ends a pending call ---------------------------------------------------------------- */

typedef enum kind { OPENS, STEPS, AVERAGES, REPORTS, KINDS } kind;

/* A world in which site 0 waits for site 1 in a call of this kind. */
static world *pending_world(kind which) {
    world *w = world_open(which == AVERAGES ? DLX_OVERLAP_ALLREDUCE : DLX_OVERLAP_NONE, 2, 8);
    w->run.sites_min = 0;     /* all sites are needed */
    w->run.timeout_ms = 3000; /* so long it waits for the last answer of a site that has left */
    switch (which) {
    case OPENS:
        open_begin(w, 0);
        break;
    case STEPS:
        join(w, 2);
        step_begin(w, 0);
        break;
    case AVERAGES:
        join(w, 2);
        gradients_begin(w, 0);
        break;
    default:
        finish(w);
        w->status[0] = dlx_sync_report(w->sync[0], "done", &w->error[0]);
    }
    assert_true(pends(w, 0));
    return w;
}

static void an_interrupt_ends_a_pending_call(void **state) {
    (void)state;
    for (kind which = OPENS; which < KINDS; which++) {
        world *w = pending_world(which);
        uint64_t hash;
        dlx_sync_interrupt(w->sync[0]);
        w->status[0] = dlx_sync_wait(w->sync[0], &w->step[0], &w->error[0]);
        assert_int_equal(w->status[0], DLX_INTERRUPTED);
        assert_string_equal(w->error[0].message, "interrupted");
        assert_false(dlx_sync_is_pending(w->sync[0]));
        if (which == OPENS)
            assert_refused(w->sync[0], "it could not be opened; close it");
        else
            assert_int_equal(dlx_sync_anchor_hashes(w->sync[0], &hash, NULL), DLX_OK);
        assert_int_equal(dlx_sync_wait(w->sync[0], NULL, NULL), DLX_STATE);
        world_close(w);
    }
}

static void a_failure_ends_a_pending_call(void **state) {
    (void)state;
    world *w = pending_world(STEPS);
    dlx_sync_fail(w->sync[0], "the disk is full");
    w->status[0] = dlx_sync_wait(w->sync[0], &w->step[0], &w->error[0]);
    assert_int_equal(w->status[0], DLX_PEER_LOST);
    assert_string_equal(w->error[0].message, "the disk is full");
    world_close(w);

    w = pending_world(STEPS); /* another site's, or the coordinator's */
    dlx_sync_close(&w->sync[1]);
    go_on(w);
    assert_int_equal(w->status[0], DLX_PEER_LOST);
    assert_string_equal(w->error[0].message, "site 'oslo' failed: it left before the run's end");
    world_close(w);

    w = pending_world(OPENS);
    while (w->connected == 0) turn(w); /* one that it does not know waits for another coordinator */
    dlx_coordinator_interrupt(w->coordinator);
    go_on(w);
    run_to_the_end(w);
    assert_int_equal(w->run_status, DLX_INTERRUPTED);
    assert_int_equal(w->status[0], DLX_INTERRUPTED);
    assert_refused(w->sync[0], "it could not be opened; close it");
    world_close(w);
}

static void closing_gives_a_pending_call_up(void **state) {
    (void)state;
    for (kind which = OPENS; which < KINDS; which++) {
        world *w = pending_world(which);
        dlx_sync_close(&w->sync[0]);
        assert_null(w->sync[0]);
        w->status[0] = DLX_OK;
        if (which == REPORTS) { /* which is sent, so that the run ends well */
            w->status[1] = dlx_sync_report(w->sync[1], "done", &w->error[1]);
            go_on(w);
            run_to_the_end(w);
            assert_int_equal(w->status[1], DLX_OK);
            assert_int_equal(w->run_status, DLX_OK);
        } else if (which != OPENS) {
            run_to_the_end(w);
            assert_int_equal(w->run_status, DLX_PEER_LOST);
            assert_string_equal(w->run_error.message,
                                "site 'delft' failed: it left before the run's end");
        }
        world_close(w);
    }
}

static void a_takeover_goes_on(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_NONE, 2, 8);
    char path[64];
    snprintf(path, sizeof path, "/tmp/dilocox-wait-%ld.db", (long)getpid());
    assert_int_equal(
        dlx_coordinator_open_takeover(&w->coordinator, &w->run, path, NULL, &w->run_error), DLX_OK);
    for (int i = 0; i < 5; i++)
        assert_int_equal(dlx_coordinator_run(w->coordinator, &w->run_error), DLX_AGAIN);
    dlx_coordinator_interrupt(w->coordinator);
    assert_int_equal(dlx_coordinator_run(w->coordinator, &w->run_error), DLX_INTERRUPTED);
    assert_string_equal(w->run_error.message, "the takeover was interrupted");
    assert_int_equal(dlx_coordinator_run(w->coordinator, &w->run_error), DLX_STATE);
    world_close(w);
}

/* ---- lines ----------------------------------------------------------------------------------- */

typedef struct listener {
    pthread_t thread; /* that lines must come on */
    int lines, elsewhere;
} listener;

static void listen_to(void *context, const char *line) {
    listener *l = context;
    l->lines += line[0] != '\0';
    l->elsewhere += !pthread_equal(l->thread, pthread_self());
}

/* The exchange thread says that the coordinator, which nobody runs, is silent. */
static void lines_come_on_the_calling_thread(void **state) {
    (void)state;
    world *w = world_open(DLX_OVERLAP_NONE, 2, MANY);
    listener site = {.thread = pthread_self()}, run = {.thread = pthread_self()};
    w->config[0].timeout_ms = 1000;
    w->config[0].log = listen_to;
    w->config[0].log_context = &site;
    w->run.log = listen_to;
    w->run.log_context = &run;
    join(w, 2);
    assert_true(run.lines > 0); /* who has joined */
    step_begin(w, 0);
    for (int before = site.lines; site.lines == before;)
        w->status[0] = dlx_sync_wait(w->sync[0], &w->step[0], &w->error[0]);
    assert_true(pends(w, 0));
    world_close(w);
    assert_int_equal(site.elsewhere + run.elsewhere, 0);
}

/* ---- a loader that takes windows early ------------------------------------------------------- */

static void windows_of(world *w, uint32_t count, uint8_t taken[64]) {
    uint64_t positions[16];
    assert_int_equal(dlx_sync_windows(w->sync[0], positions, count, &w->error[0]), DLX_OK);
    for (uint32_t i = 0; i < count; i++) {
        assert_in_range(positions[i], 0, 63);
        assert_int_equal(taken[positions[i]]++, 0);
    }
}

static void train_rounds(world *w, int rounds) {
    for (int i = 0; i < 2 * rounds; i++) {
        w->status[0] = dlx_sync_step(w->sync[0], 3, &w->step[0], &w->error[0]);
        go_on(w);
        assert_int_equal(w->status[0], DLX_OK);
    }
}

/* Rounds of two windows of three tokens. What was taken early counts when it is trained on, in
 * rounds that take none too. */
static void leases_are_longer_by_windows_ahead(void **state) {
    (void)state;
    uint8_t taken[64] = {0};
    uint64_t position;
    world *w = world_open(DLX_OVERLAP_NONE, 1, 3 * 2 * 8);
    w->config[0].inner_steps = w->config[0].inner_steps_max = 2;
    w->config[0].windows = 1000;
    w->config[0].tokens_per_window = 3;
    w->config[0].windows_per_step = 1;
    w->config[0].windows_ahead = 4;
    join(w, 1);
    for (int times = 0; times < 2; times++) {
        windows_of(w, 6, taken);
        assert_int_equal(dlx_sync_windows(w->sync[0], &position, 1, &w->error[0]), DLX_STATE);
        assert_non_null(strstr(w->error[0].message, "has 0 windows left, not 1"));
        train_rounds(w, 1);
        dlx_statistics now = DLX_STATISTICS_INIT;
        for (int round = 2; round <= 3; round++) {
            train_rounds(w, 1);
            assert_int_equal(dlx_sync_statistics(w->sync[0], &now, NULL), DLX_OK);
            assert_int_equal(now.committed_tokens, (times * 3 + round) * 2 * 3);
        }
    }
    windows_of(w, 4, taken);
    train_rounds(w, 2);
    assert_true(w->step[0].finished);
    for (int i = 0; i < 16; i++) assert_int_equal(taken[i], 1); /* and none left out */
    world_close(w);
}

/* ---- as calls that block --------------------------------------------------------------------- */

enum { RANKS_MAX = 2, TENSORS = 4, STEPS_MAX = 512, LARGE = 200000 };

/* rows, cols: with factors and without */
static const int64_t shapes[TENSORS][2] = {{24, 40}, {1, 33}, {20, 24}, {3, 5}};
static const char *const tensor_names[TENSORS] = {"first", "bias", "second", "small"};

typedef struct shard shard;

struct shard {
    float *p[TENSORS], *g[TENSORS];
    dlx_tensor tensors[TENSORS];
    size_t count;
    dlx_step steps[STEPS_MAX];
    bool trains;               /* it is open */
    atomic_uint pended;        /* how often a call was, since */
    unsigned waits[STEPS_MAX]; /* the same during each step */
    uint64_t hashes[TENSORS];
    shard *awaited; /* held back at its first step until that one has waited; or NULL */
};

typedef struct team {
    in_process *p;
    in_process_table table[SITES];
    in_process_seat seat[SITES][RANKS_MAX];
    shard shard[SITES][RANKS_MAX];
} team;

static int64_t cells_of(const shard *s, size_t i) {
    return s->tensors[i].rows * s->tensors[i].cols;
}

/* Rank 1 of two has the odd tensors. large: one of them is, so that rank 1 commits later. */
static void shard_fill(shard *s, size_t ranks, uint16_t rank, bool large) {
    for (uint32_t id = 0; id < TENSORS; id++) {
        if (ranks > 1 && id % 2 != rank) continue;
        size_t i = s->count++;
        s->tensors[i] = (dlx_tensor){.name = tensor_names[id],
                                     .rows = shapes[id][0],
                                     .cols = id == 1 && large ? LARGE : shapes[id][1],
                                     .id = id};
        s->p[i] = calloc((size_t)cells_of(s, i), sizeof(float));
        s->g[i] = calloc((size_t)cells_of(s, i), sizeof(float));
        s->tensors[i].data = s->p[i];
        for (int64_t k = 0; k < cells_of(s, i); k++)
            s->p[i][k] = (float)(k % 13) * 0.125f - (float)id;
    }
}

static void hold_back(const shard *s, uint64_t step) {
    while (step == 0 && s->awaited != NULL && s->awaited->pended == 0) sched_yield();
}

static void note_pending(in_process_site *site) {
    shard *s = site->context;
    if (s->trains) s->pended++;
}

static dlx_status shard_step(in_process_site *site, uint64_t step, dlx_step *done) {
    shard *s = site->context;
    bool averages = site->config.overlap == DLX_OVERLAP_ALLREDUCE;
    dlx_status status = DLX_OK;
    hold_back(s, step);
    for (size_t i = 0; i < s->count; i++)
        for (int64_t k = 0; k < cells_of(s, i); k++)
            s->g[i][k] =
                0.01f * (float)((k * 31 + (int64_t)(step * 17 + site->tokens_per_step)) % 23 - 11) +
                0.02f * s->p[i][k];
    if (averages)
        status = in_process_await(
            site, dlx_sync_gradients(site->sync, s->g, site->tokens_per_step, NULL, &site->error),
            NULL);
    if (status != DLX_OK) return status;
    for (size_t i = 0; i < s->count; i++)
        for (int64_t k = 0; k < cells_of(s, i); k++) s->p[i][k] -= s->g[i][k];
    status = dlx_sync_step(site->sync, site->tokens_per_step, done, &site->error);
    return in_process_await(site, status, done);
}

static dlx_status shard_train(in_process_site *site) {
    shard *s = site->context;
    dlx_step done = DLX_STEP_INIT;
    dlx_end end = DLX_END_INIT;
    s->trains = true;
    for (uint64_t step = 0; !done.finished; step++) {
        unsigned before = s->pended;
        if (step == STEPS_MAX) abort();
        dlx_status status = shard_step(site, step, &done);
        if (status != DLX_OK) return status;
        s->steps[step] = done;
        s->waits[step] = s->pended - before;
        site->steps = step + 1;
    }
    dlx_status status = dlx_sync_end(site->sync, &end, &site->error);
    if (status == DLX_AGAIN && (status = in_process_await(site, status, NULL)) == DLX_OK)
        status = dlx_sync_end(site->sync, &end, &site->error);
    if (status != DLX_OK) return status;
    status = dlx_sync_anchor_hashes(site->sync, s->hashes, &site->error);
    if (status != DLX_OK) return status;
    return in_process_await(site, dlx_sync_report(site->sync, "", &site->error), NULL);
}

static team *team_run(size_t ranks, dlx_overlap overlap, uint32_t wait_ms, bool large) {
    static const char *const names[SITES] = {"delft", "oslo"};
    team *t = calloc(1, sizeof *t);
    if (t == NULL) abort();
    t->p = in_process_new();
    t->p->sites_expected = SITES;
    t->p->coordinator.wait_ms = wait_ms;
    for (uint16_t i = 0; i < SITES; i++) {
        t->table[i] = (in_process_table)IN_PROCESS_TABLE_INIT(ranks);
        for (uint16_t r = 0; r < ranks; r++) {
            in_process_site *site = &t->p->site[i * ranks + r];
            shard *s = &t->shard[i][r];
            shard_fill(s, ranks, r, large);
            t->seat[i][r] = (in_process_seat){&t->table[i], r};
            if (i == 1 && wait_ms > 0) s->awaited = &t->shard[0][r];
            site->name = names[i];
            site->context = s;
            site->tensors = s->tensors;
            site->tensor_count = s->count;
            site->tokens_per_step = i == 0 ? 100 : 300;
            site->script = shard_train;
            site->while_pending = note_pending;
            site->config.rank = r;
            site->config.ranks = (uint16_t)ranks;
            site->config.gather = ranks > 1 ? in_process_gather : NULL;
            site->config.gather_context = &t->seat[i][r];
            site->config.overlap = overlap;
            site->config.inner_steps = site->config.inner_steps_max = 4;
            site->config.exchange_steps = overlap == DLX_OVERLAP_CARRY ? 2 : 0;
            site->config.factor_rank = 8;
            site->config.wait_ms = wait_ms;
        }
    }
    assert_true(in_process_run(t->p, SITES * ranks, 16000));
    for (size_t i = 0; i < SITES * ranks; i++)
        if (t->p->site[i].status != DLX_OK)
            fail_msg("overlap %d, rank %zu: %s", (int)overlap, i, t->p->site[i].error.message);
    assert_int_equal(t->p->status, DLX_OK);
    return t;
}

static void team_free(team *t) {
    for (size_t i = 0; i < SITES; i++)
        for (size_t r = 0; r < RANKS_MAX; r++)
            for (size_t k = 0; k < t->shard[i][r].count; k++) {
                free(t->shard[i][r].p[k]);
                free(t->shard[i][r].g[k]);
            }
    free(t->p);
    free(t);
}

static void assert_same_steps(const dlx_step *a, const dlx_step *b) {
    assert_int_equal(a->submitted, b->submitted);
    assert_int_equal(a->applied, b->applied);
    assert_int_equal(a->finished, b->finished);
    assert_int_equal(a->exchange_steps, b->exchange_steps);
    assert_int_equal(a->inner_steps, b->inner_steps);
    assert_int_equal(a->step_in_round, b->step_in_round);
    assert_int_equal(a->round, b->round);
}

/* But for times, and bytes at the link. */
static void assert_same_statistics(const dlx_statistics *a, const dlx_statistics *b) {
#define SAME(field) assert_true(a->field == b->field)
    SAME(rounds), SAME(attempts), SAME(committed_tokens), SAME(anchor_hash), SAME(inner_steps);
    SAME(round_bytes), SAME(raw_bytes), SAME(payload_bytes), SAME(factor_rank_mean);
    SAME(update_norm), SAME(outer_learning_rate), SAME(outer_momentum), SAME(outer_momentum_rate);
    SAME(low_rank_tensors), SAME(plain_tensors), SAME(low_rank_parameters), SAME(weight);
#undef SAME
}

static void assert_same_runs(const team *a, const team *b, size_t ranks) {
    for (size_t i = 0; i < SITES; i++)
        for (size_t r = 0; r < ranks; r++) {
            const shard *x = &a->shard[i][r], *y = &b->shard[i][r];
            const in_process_site *m = &a->p->site[i * ranks + r], *n = &b->p->site[i * ranks + r];
            assert_int_equal(m->steps, n->steps);
            for (size_t k = 0; k < x->count; k++)
                assert_memory_equal(x->p[k], y->p[k], (size_t)cells_of(x, k) * sizeof(float));
            assert_memory_equal(x->hashes, y->hashes, sizeof x->hashes);
            for (uint64_t step = 0; step < m->steps; step++)
                assert_same_steps(&x->steps[step], &y->steps[step]);
            assert_same_statistics(&m->statistics, &n->statistics);
        }
}

/* Ranks of a site return DLX_AGAIN at the same points. */
static void assert_same_waits(const team *t, size_t ranks) {
    for (size_t i = 0; i < SITES; i++)
        for (size_t r = 1; r < ranks; r++)
            assert_memory_equal(t->shard[i][r].waits, t->shard[i][0].waits,
                                sizeof t->shard[i][0].waits);
    assert_true(t->shard[0][0].pended > 0);
}

static void check_same(size_t ranks, dlx_overlap overlap, uint32_t wait_ms, bool large) {
    team *blocks = team_run(ranks, overlap, 0, large),
         *waits = team_run(ranks, overlap, wait_ms, large);
    assert_same_runs(blocks, waits, ranks);
    assert_same_waits(waits, ranks);
    team_free(waits);
    team_free(blocks);
}

static void a_run_is_the_same_as_one_that_blocks(void **state) {
    (void)state;
    for (dlx_overlap overlap = DLX_OVERLAP_ALLREDUCE; overlap <= DLX_OVERLAP_CARRY; overlap++)
        for (size_t ranks = 1; ranks <= RANKS_MAX; ranks++) check_same(ranks, overlap, 1, false);
    check_same(2, DLX_OVERLAP_NONE, 150, false); /* two ticks */
    check_same(2, DLX_OVERLAP_NONE, 1, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opening_waits_for_a_site_that_is_late),
        cmocka_unit_test(a_step_adds_up),
        cmocka_unit_test(gradients_are_replaced_by_a_wait),
        cmocka_unit_test(reports_wait_for_others),
        cmocka_unit_test(a_report_says_that_there_is_more_to_do),
        cmocka_unit_test(an_interrupt_ends_a_pending_call),
        cmocka_unit_test(a_failure_ends_a_pending_call),
        cmocka_unit_test(closing_gives_a_pending_call_up),
        cmocka_unit_test(a_takeover_goes_on),
        cmocka_unit_test(lines_come_on_the_calling_thread),
        cmocka_unit_test(leases_are_longer_by_windows_ahead),
        cmocka_unit_test(a_run_is_the_same_as_one_that_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
