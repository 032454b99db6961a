/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_sync as a caller sees it: rounds of every overlap against the formulas of the design, the
 * baseline, one site alone, starting parameters, interrupts and departures. */
#include "in_process.h"

#include "base/clock.h"

#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void assert_ended_well(const in_process *p, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (p->site[i].status != DLX_OK) fail_msg("site %zu: %s", i, p->site[i].error.message);
    if (p->status != DLX_OK) fail_msg("coordinator: %s", p->error.message);
}

/* ---- rounds by hand -------------------------------------------------------------------------- */

/* Two sites with 170 and 230 tokens a step. The estimate of each of them reaches 4750 tokens in the
 * fourth round's last step at the earliest, and the four rounds commit 4800. */
enum {
    VALUES = 6,
    H = 3,
    ROUNDS = 4,
    SITES = 2,
    STEPS = H * ROUNDS,
    EXCHANGE_STEPS = 2,
    TOKENS = 4750
};
static const uint64_t tokens_per_step[SITES] = {170, 230};
static const double eta = 0.7, mu = 0.6;

static double start_value(int k) {
    return 0.5 * k - 1.25;
}

/* The scripted inner step: known numbers, and a share of p, so that a wrong p shows. */
static double step_change(size_t site, uint64_t step, int k, double p) {
    return 0.01 * (double)(((int)step * 7 + (int)site * 5 + k * 3) % 11 - 4) - 0.05 * p;
}

typedef struct trajectory {
    float p[VALUES]; /* the caller's parameters: two tensors of them */
    float seen[64][VALUES];
    uint64_t count;
    dlx_tensor tensors[2];
} trajectory;

static void scripted_step(in_process_site *site, uint64_t step) {
    trajectory *t = site->context;
    for (int k = 0; k < VALUES; k++)
        t->p[k] = (float)((double)t->p[k] + step_change(site->index, step, k, (double)t->p[k]));
}

static void record(in_process_site *site, uint64_t step, const dlx_step *done) {
    trajectory *t = site->context;
    (void)done;
    if (step < 64) memcpy(t->seen[step], t->p, sizeof t->p);
    t->count = step + 1;
}

/* The table of the design, in f64: one site's columns, and what is common. */
typedef struct reference {
    /* out: M, and own, since nothing is lost */
    double p[SITES][VALUES], start[SITES][VALUES], out[SITES][VALUES];
    double theta[VALUES], v[VALUES], update[VALUES];
    double seen[SITES][STEPS][VALUES];
} reference;

static double weight(size_t i) {
    return (double)tokens_per_step[i] / (double)(tokens_per_step[0] + tokens_per_step[1]);
}

static void reference_submit(reference *r) {
    for (size_t i = 0; i < SITES; i++)
        for (int k = 0; k < VALUES; k++) {
            r->out[i][k] = r->start[i][k] - r->p[i][k];
            r->start[i][k] = r->p[i][k];
        }
}

static void reference_outer_step(double *theta, double *v, const double *update) {
    for (int k = 0; k < VALUES; k++) {
        v[k] = mu * v[k] + update[k];
        theta[k] -= eta * (update[k] + mu * v[k]);
    }
}

static void reference_commit(reference *r) {
    for (int k = 0; k < VALUES; k++)
        r->update[k] = weight(0) * r->out[0][k] + weight(1) * r->out[1][k];
    reference_outer_step(r->theta, r->v, r->update);
}

static void reference_take_anchor(reference *r) {
    for (size_t i = 0; i < SITES; i++)
        for (int k = 0; k < VALUES; k++) r->p[i][k] = r->start[i][k] = r->theta[k];
}

/* delayed, eager: δ first, then the commit's lines, then M. */
static void reference_boundary(reference *r, dlx_overlap overlap, bool first) {
    double delta[SITES][VALUES];
    if (first) {
        reference_submit(r);
        return;
    }
    for (size_t i = 0; i < SITES; i++)
        for (int k = 0; k < VALUES; k++) delta[i][k] = r->start[i][k] - r->p[i][k];
    reference_commit(r);
    reference_take_anchor(r);
    for (size_t i = 0; i < SITES; i++) {
        for (int k = 0; k < VALUES && overlap == DLX_OVERLAP_EAGER; k++)
            r->p[i][k] = r->start[i][k] = r->theta[k] - eta * (1 + mu) * weight(i) * delta[i][k];
        memcpy(r->out[i], delta[i], sizeof delta[i]);
    }
}

static void reference_run(reference *r, dlx_overlap overlap) {
    memset(r, 0, sizeof *r);
    for (int k = 0; k < VALUES; k++) r->theta[k] = start_value(k);
    reference_take_anchor(r);
    for (int step = 0; step < STEPS; step++) {
        int round = step / H, in_round = step % H + 1;
        for (size_t i = 0; i < SITES; i++)
            for (int k = 0; k < VALUES; k++)
                r->p[i][k] += step_change(i, (uint64_t)step, k, r->p[i][k]);
        if (overlap == DLX_OVERLAP_CARRY && round > 0 && in_round == EXCHANGE_STEPS) {
            reference_commit(r);
            for (size_t i = 0; i < SITES; i++)
                for (int k = 0; k < VALUES; k++) {
                    r->p[i][k] = r->theta[k] - (r->start[i][k] - r->p[i][k]);
                    r->start[i][k] = r->theta[k];
                }
        }
        if (in_round == H && (overlap == DLX_OVERLAP_DELAYED || overlap == DLX_OVERLAP_EAGER)) {
            reference_boundary(r, overlap, round == 0);
        } else if (in_round == H) {
            reference_submit(r);
            if (overlap == DLX_OVERLAP_NONE) {
                reference_commit(r);
                reference_take_anchor(r);
            }
        }
        for (size_t i = 0; i < SITES; i++) memcpy(r->seen[i][step], r->p[i], sizeof r->p[i]);
    }
    if (overlap != DLX_OVERLAP_NONE) reference_commit(r); /* the flush */
}

static void check_rounds(dlx_overlap overlap) {
    in_process *p = in_process_new();
    trajectory *t = calloc(SITES, sizeof *t);
    reference *r = calloc(1, sizeof *r);
    reference_run(r, overlap);
    for (size_t i = 0; i < SITES; i++) {
        in_process_site *site = &p->site[i];
        for (int k = 0; k < VALUES; k++) t[i].p[k] = (float)start_value(k);
        t[i].tensors[0] = (dlx_tensor){.name = "first", .data = t[i].p, .rows = 2, .cols = 2};
        t[i].tensors[1] = (dlx_tensor){.name = "second", .data = t[i].p + 4, .rows = 1, .cols = 2};
        site->tensors = t[i].tensors;
        site->tensor_count = 2;
        site->config.overlap = overlap;
        site->config.inner_steps = site->config.inner_steps_max = H;
        site->config.exchange_steps = overlap == DLX_OVERLAP_CARRY ? EXCHANGE_STEPS : 0;
        site->config.outer_learning_rate = eta;
        site->config.outer_momentum = mu;
        site->config.factor_rank = 0;
        site->config.bits = 32;
        site->inner_step = scripted_step;
        site->after_step = record;
        site->tokens_per_step = tokens_per_step[i];
        site->context = &t[i];
    }
    assert_true(in_process_run(p, SITES, TOKENS));
    assert_ended_well(p, SITES);
    for (size_t i = 0; i < SITES; i++) {
        assert_int_equal(p->site[i].statistics.rounds, ROUNDS);
        assert_int_equal(p->site[i].statistics.attempts, ROUNDS);
        assert_int_equal(p->site[i].statistics.committed_tokens, 4800);
        assert_true(t[i].count >= STEPS);
        /* the last step's p may be past the end already where the flush follows at once */
        for (int step = 0; step < STEPS - 1; step++)
            for (int k = 0; k < VALUES; k++)
                if (fabs((double)t[i].seen[step][k] - r->seen[i][step][k]) > 2e-6)
                    fail_msg("overlap %d, site %zu, step %d, value %d: %.8f, by hand %.8f",
                             (int)overlap, i, step, k, (double)t[i].seen[step][k],
                             r->seen[i][step][k]);
        for (int k = 0; k < VALUES; k++) assert_float_equal(t[i].p[k], r->theta[k], 2e-6);
        assert_int_equal(p->site[i].statistics.anchor_hash, p->site[0].statistics.anchor_hash);
    }
    free(r);
    free(t);
    free(p);
}

static void rounds_of_none(void **state) {
    (void)state;
    check_rounds(DLX_OVERLAP_NONE);
}
static void rounds_of_delayed(void **state) {
    (void)state;
    check_rounds(DLX_OVERLAP_DELAYED);
}
static void rounds_of_eager(void **state) {
    (void)state;
    check_rounds(DLX_OVERLAP_EAGER);
}
static void rounds_of_carry(void **state) {
    (void)state;
    check_rounds(DLX_OVERLAP_CARRY);
}

/* ---- one site alone -------------------------------------------------------------------------- */

static void one_site_is_plain_training(void **state) {
    (void)state;
    static const dlx_overlap overlaps[] = {DLX_OVERLAP_NONE, DLX_OVERLAP_CARRY};
    for (size_t which = 0; which < 2; which++) {
        enum { PLAIN_STEPS = 40 };
        in_process *p = in_process_new();
        trajectory *t = calloc(1, sizeof *t);
        float plain[VALUES];
        for (int k = 0; k < VALUES; k++) plain[k] = t->p[k] = (float)start_value(k);
        t->tensors[0] = (dlx_tensor){.name = "p", .data = t->p, .rows = 1, .cols = VALUES};
        in_process_site *site = &p->site[0];
        site->tensors = t->tensors;
        site->tensor_count = 1;
        site->config.overlap = overlaps[which];
        site->config.inner_steps = site->config.inner_steps_max = 1;
        site->config.exchange_steps = overlaps[which] == DLX_OVERLAP_CARRY ? 1 : 0;
        site->config.outer_learning_rate = 1;
        site->config.outer_momentum = 0;
        site->config.factor_rank = 0;
        site->config.bits = 32;
        site->inner_step = scripted_step;
        site->after_step = record;
        site->tokens_per_step = 10;
        site->context = t;
        assert_true(in_process_run(p, 1, 10 * PLAIN_STEPS));
        assert_ended_well(p, 1);
        for (uint64_t step = 0; step < PLAIN_STEPS; step++) {
            for (int k = 0; k < VALUES; k++)
                plain[k] = (float)((double)plain[k] + step_change(0, step, k, (double)plain[k]));
            for (int k = 0; k < VALUES; k++) assert_float_equal(t->seen[step][k], plain[k], 1e-6);
        }
        for (int k = 0; k < VALUES; k++) assert_float_equal(t->p[k], plain[k], 1e-6);
        free(t);
        free(p);
    }
}

/* ---- the baseline ---------------------------------------------------------------------------- */

typedef struct gradients {
    float p[VALUES], g[VALUES], mean[8][VALUES];
    dlx_tensor tensors[2];
} gradients;

static double gradient_of(size_t site, int step, int k) {
    return (double)((step * 13 + (int)site * 7 + k * 5) % 17) * 0.125 - 1;
}

static dlx_status baseline(in_process_site *site) {
    gradients *g = site->context;
    dlx_step done = DLX_STEP_INIT;
    float *const all[2] = {g->g, g->g + 4};
    for (int step = 0; !done.finished && step < 8; step++) {
        for (int k = 0; k < VALUES; k++) g->g[k] = (float)gradient_of(site->index, step, k);
        double waited_s = -1;
        dlx_status status =
            dlx_sync_gradients(site->sync, all, site->tokens_per_step, &waited_s, &site->error);
        if (status != DLX_OK) return status;
        if (waited_s < 0) return DLX_STATE;
        memcpy(g->mean[step], g->g, sizeof g->g);
        for (int k = 0; k < VALUES; k++) g->p[k] -= 0.5f * g->g[k];
        status = dlx_sync_step(site->sync, site->tokens_per_step, &done, &site->error);
        if (status != DLX_OK) return status;
    }
    return dlx_sync_report(site->sync, "", &site->error);
}

/* During the run the anchor is what the sites hold: evaluation and saving use it. */
static dlx_status baseline_with_anchor(in_process_site *site) {
    gradients *g = site->context;
    float anchor[VALUES];
    float *const all[2] = {g->g, g->g + 4}, *const anchors[2] = {anchor, anchor + 4};
    for (int k = 0; k < VALUES; k++) g->g[k] = 1;
    dlx_status status = dlx_sync_gradients(site->sync, all, 10, NULL, &site->error);
    if (status != DLX_OK) return status;
    for (int k = 0; k < VALUES; k++) g->p[k] -= 0.5f * g->g[k];
    status = dlx_sync_step(site->sync, 10, NULL, &site->error);
    if (status == DLX_OK) status = dlx_sync_anchor(site->sync, anchors, &site->error);
    memcpy(g->mean[0], anchor, sizeof anchor);
    /* as one does after an interrupt: what was trained stays */
    if (status == DLX_OK) status = dlx_sync_take_anchor(site->sync, NULL, &site->error);
    return status == DLX_OK ? DLX_INTERRUPTED : status;
}

static void set_up_baseline(in_process *p, gradients *g, size_t count, in_process_script script) {
    for (size_t i = 0; i < count; i++) {
        for (int k = 0; k < VALUES; k++) g[i].p[k] = (float)start_value(k);
        g[i].tensors[0] = (dlx_tensor){.name = "first", .data = g[i].p, .rows = 2, .cols = 2};
        g[i].tensors[1] = (dlx_tensor){.name = "second", .data = g[i].p + 4, .rows = 1, .cols = 2};
        p->site[i].tensors = g[i].tensors;
        p->site[i].tensor_count = 2;
        p->site[i].config.overlap = DLX_OVERLAP_ALLREDUCE;
        p->site[i].script = script;
        p->site[i].tokens_per_step = 10 * (i + 1);
        p->site[i].context = &g[i];
    }
}

static void the_baseline_takes_the_weighted_mean(void **state) {
    (void)state;
    for (size_t count = 2; count <= 3; count++) {
        in_process *p = in_process_new();
        gradients *g = calloc(count, sizeof *g);
        set_up_baseline(p, g, count, baseline);
        uint64_t tokens = 10 * count * (count + 1) / 2;
        assert_true(in_process_run(p, count, 5 * tokens));
        assert_ended_well(p, count);
        for (size_t i = 0; i < count; i++) {
            assert_int_equal(p->site[i].statistics.rounds, 5);
            for (int step = 0; step < 5; step++)
                for (int k = 0; k < VALUES; k++) {
                    double mean = 0;
                    for (size_t m = 0; m < count; m++)
                        mean += gradient_of(m, step, k) * 10.0 * (double)(m + 1) / (double)tokens;
                    assert_float_equal(g[i].mean[step][k], mean, 1e-6);
                    assert_true(g[i].mean[step][k] == g[0].mean[step][k]);
                }
            assert_int_equal(p->site[i].statistics.anchor_hash, p->site[0].statistics.anchor_hash);
        }
        free(g);
        free(p);
    }
}

static void the_baselines_anchor_is_what_was_trained(void **state) {
    (void)state;
    in_process *p = in_process_new();
    gradients *g = calloc(1, sizeof *g);
    set_up_baseline(p, g, 1, baseline_with_anchor);
    assert_true(in_process_run(p, 1, 1000));
    assert_int_equal(p->site[0].status, DLX_INTERRUPTED);
    for (int k = 0; k < VALUES; k++) {
        assert_float_equal(g->mean[0][k], (start_value(k) - 0.5), 1e-6);
        assert_float_equal(g->p[k], (start_value(k) - 0.5), 1e-6);
    }
    free(g);
    free(p);
}

/* ---- starting parameters --------------------------------------------------------------------- */

enum { LARGE = 150000 }; /* values: more than one frame holds */

typedef struct large {
    float *p, *first_seen;
    dlx_tensor tensors[2];
} large;

static dlx_status look_and_train(in_process_site *site) {
    large *l = site->context;
    memcpy(l->first_seen, l->p, (LARGE + 3) * sizeof(float));
    return in_process_train(site);
}

static void all_start_where_the_first_does(void **state) {
    (void)state;
    /* by name berlin comes first */
    static const char *const names[3] = {"tokyo", "berlin", "lima"};
    static const dlx_overlap overlaps[3] = {DLX_OVERLAP_CARRY, DLX_OVERLAP_NONE, DLX_OVERLAP_EAGER};
    for (int which = 0; which < 3; which++) {
        in_process *p = in_process_new();
        large l[3];
        for (size_t i = 0; i < 3; i++) {
            l[i].p = calloc(2 * (LARGE + 3), sizeof(float));
            l[i].first_seen = l[i].p + LARGE + 3;
            /* lima starts as berlin does and needs nothing */
            for (int k = 0; k < LARGE + 3; k++) l[i].p[k] = (float)k * (i == 0 ? 0.001f : -0.003f);
            l[i].tensors[0] = (dlx_tensor){.name = "bias", .data = l[i].p, .rows = 1, .cols = 3};
            l[i].tensors[1] =
                (dlx_tensor){.name = "large", .data = l[i].p + 3, .rows = 300, .cols = 500};
            p->site[i].name = names[i];
            p->site[i].tensors = l[i].tensors;
            p->site[i].tensor_count = 2;
            p->site[i].config.overlap = overlaps[which];
            p->site[i].config.inner_steps = 2;
            p->site[i].script = look_and_train;
            p->site[i].tokens_per_step = 1;
            p->site[i].context = &l[i];
        }
        assert_true(in_process_run(p, 3, 6));
        assert_ended_well(p, 3);
        for (size_t i = 0; i < 3; i++)
            for (int k = 0; k < LARGE + 3; k++)
                assert_true(l[i].first_seen[k] == (float)k * -0.003f);
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(p->site[i].statistics.anchor_hash, p->site[0].statistics.anchor_hash);
            free(l[i].p);
        }
        free(p);
    }
}

/* ---- endings --------------------------------------------------------------------------------- */

static float lone_value[IN_PROCESS_SITES_MAX];

/* All sites are needed. */
static void set_up_endings(in_process *p, dlx_tensor *tensors, size_t count) {
    p->coordinator.sites_min = 0;
    for (size_t i = 0; i < count; i++) {
        lone_value[i] = 1;
        tensors[i] = (dlx_tensor){.name = "p", .data = &lone_value[i], .rows = 1, .cols = 1};
        p->site[i].tensors = &tensors[i];
        p->site[i].tensor_count = 1;
        p->site[i].config.overlap = DLX_OVERLAP_NONE;
        p->site[i].config.inner_steps = 1;
        p->site[i].tokens_per_step = 1;
    }
}

static atomic_bool other_may_go_on;

/* Waits until told, then leaves without a word. */
static dlx_status idle_then_leave(in_process_site *site) {
    (void)site;
    while (!other_may_go_on) sched_yield();
    return DLX_OK;
}

static void *interrupt_it(void *sync) {
    dlx_sync_interrupt(sync);
    return NULL;
}

/* Waits for a site that never hands out, is interrupted, and says that it came back. */
static dlx_status wait_and_be_interrupted(in_process_site *site) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, interrupt_it, site->sync) != 0) abort();
    dlx_status status = dlx_sync_step(site->sync, 1, NULL, &site->error);
    pthread_join(thread, NULL);
    dlx_error later;
    /* and stays so */
    if (status == DLX_INTERRUPTED) status = dlx_sync_step(site->sync, 1, NULL, &later);
    other_may_go_on = true;
    return status;
}

static void an_interrupt_ends_a_wait(void **state) {
    (void)state;
    in_process *p = in_process_new();
    dlx_tensor tensors[2];
    set_up_endings(p, tensors, 2);
    other_may_go_on = false;
    p->site[0].script = wait_and_be_interrupted;
    p->site[1].script = idle_then_leave;
    assert_true(in_process_run(p, 2, 100)); /* would never end */
    assert_int_equal(p->site[0].status, DLX_INTERRUPTED);
    assert_string_equal(p->site[0].error.message, "interrupted");
    assert_int_not_equal(p->status, DLX_OK);
    free(p);
}

static dlx_status leave_at_once(in_process_site *site) {
    (void)site;
    return DLX_OK;
}

static dlx_status leave_with_reason(in_process_site *site) {
    dlx_sync_fail(site->sync, "the disk is full");
    return DLX_OK;
}

static dlx_status leave_with_no_reason(in_process_site *site) {
    dlx_sync_fail(site->sync, NULL);
    return DLX_OK;
}

static void who_leaves_is_named(void **state) {
    (void)state;
    static const struct {
        in_process_script script;
        const char *text;
    } cases[] = {
        {leave_at_once, "site 'site-1' failed: it left before the run's end"},
        {leave_with_reason, "site 'site-1' failed: the disk is full"},
        {leave_with_no_reason, "site 'site-1' failed: it left before the run's end"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        in_process *p = in_process_new();
        dlx_tensor tensors[3];
        set_up_endings(p, tensors, 3);
        p->site[1].script = cases[i].script;
        assert_true(in_process_run(p, 3, 100));
        assert_int_equal(p->status, DLX_PEER_LOST);
        assert_string_equal(p->error.message, cases[i].text);
        assert_string_equal(p->error.site, "site-1");
        assert_int_equal(p->site[0].status, DLX_PEER_LOST);
        assert_string_equal(p->site[0].error.message, cases[i].text);
        assert_string_equal(p->site[2].error.message, cases[i].text);
        free(p);
    }
}

static void make_nan(in_process_site *site, uint64_t step) {
    if (step == 2) lone_value[site->index] = (float)NAN;
}

static void parameters_that_are_not_finite_end_the_run(void **state) {
    (void)state;
    in_process *p = in_process_new();
    dlx_tensor tensors[2];
    set_up_endings(p, tensors, 2);
    p->site[1].inner_step = make_nan;
    assert_true(in_process_run(p, 2, 100));
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(p->site[i].status, DLX_NUMERIC);
        assert_non_null(strstr(p->site[i].error.message,
                               "the pseudo-gradient of site 'site-1' is not finite in round 3"));
    }
    free(p);
}

/* The site with another config is refused, and the run goes on without it. */
static void a_site_with_another_config_is_refused(void **state) {
    (void)state;
    in_process *p = in_process_new();
    dlx_tensor tensors[2];
    set_up_endings(p, tensors, 2);
    p->coordinator.shared_text = "sync.bits: 4\ntrain.tokens: 5\n";
    p->site[0].config.shared_text = "sync.bits: 8\ntrain.tokens: 5\n";
    p->site[1].config.shared_text = "sync.bits: 4\ntrain.tokens: 5\n";
    p->sites_expected = 1;
    p->site[1].after_previous = true;
    assert_true(in_process_run(p, 2, 3));
    assert_int_equal(p->site[0].status, DLX_REFUSED);
    assert_string_equal(
        p->site[0].error.message,
        "sync.bits: '8' on site 'site-0', '4' in the run; all sites must use the same value");
    assert_int_equal(p->site[1].status, DLX_OK);
    assert_int_equal(p->status, DLX_OK);
    free(p);
}

/* ---- the length of rounds and runs ----------------------------------------------------------- */

typedef struct lengths {
    float p;
    dlx_tensor tensor;
    uint32_t inner_steps[64]; /* of round r at r */
    uint64_t last_round;
} lengths;

static void do_nothing(in_process_site *site, uint64_t step) {
    (void)site;
    (void)step;
}

static void note_length(in_process_site *site, uint64_t step, const dlx_step *done) {
    lengths *l = site->context;
    (void)step;
    if (done->round < 64) l->inner_steps[done->round] = done->inner_steps;
    l->last_round = done->round;
}

static void set_up_lengths(in_process *p, lengths *l, size_t count) {
    for (size_t i = 0; i < count; i++) {
        l[i] = (lengths){.tensor = {.name = "w", .data = &l[i].p, .rows = 1, .cols = 1}};
        p->site[i].tensors = &l[i].tensor;
        p->site[i].tensor_count = 1;
        p->site[i].context = &l[i];
        p->site[i].inner_step = do_nothing;
        p->site[i].after_step = note_length;
        p->site[i].config.overlap = DLX_OVERLAP_NONE;
        p->site[i].config.inner_steps = 4;
    }
}

/* Five rounds of four steps are the run. A small site's own tokens say how far a large one has
 * come: by the second round it knows. */
static void sites_of_unequal_size_end_together(void **state) {
    (void)state;
    in_process *p = in_process_new();
    lengths l[2];
    set_up_lengths(p, l, 2);
    p->site[0].tokens_per_step = 10;
    p->site[1].tokens_per_step = 1000;
    assert_true(in_process_run(p, 2, 5 * 4 * 1010));
    assert_ended_well(p, 2);
    assert_in_range(p->site[0].statistics.rounds, 5, 6);
    assert_in_range(p->site[0].steps, 17, 24);
    free(p);
}

static void pace_from_the_second_round(in_process_site *site, uint64_t step, const dlx_step *done) {
    note_length(site, step, done);
    if (done->round >= 2) dlx_sync_pace(site->sync, 2.5);
}

static void pace_lengthens_the_rounds_that_follow(void **state) {
    (void)state;
    in_process *p = in_process_new();
    lengths l[2];
    set_up_lengths(p, l, 2);
    for (size_t i = 0; i < 2; i++) {
        p->site[i].config.pace_max = 2; /* and no more than that */
        p->site[i].tokens_per_step = 1;
        p->site[i].after_step = pace_from_the_second_round;
    }
    assert_true(in_process_run(p, 2, 2 * (4 + 4 + 8 + 8)));
    assert_ended_well(p, 2);
    assert_int_equal(l[0].inner_steps[2], 4);
    assert_int_equal(l[0].inner_steps[3], 8);
    assert_int_equal(p->site[0].statistics.rounds, 4);
    assert_int_equal(p->site[0].steps, 24);
    free(p);
}

/* The second site takes ten times as long for a step. */
static void take_time(in_process_site *site, uint64_t step) {
    (void)step;
    for (double end_s = dlxi_clock_s() + (site->index == 0 ? 0.001 : 0.01); dlxi_clock_s() < end_s;)
        sched_yield();
}

/* It is the median of two: the first one does more, up to H_max. */
static void balance_gives_a_fast_site_more_to_do(void **state) {
    (void)state;
    for (int balance = 0; balance < 2; balance++) {
        in_process *p = in_process_new();
        lengths l[2];
        set_up_lengths(p, l, 2);
        for (size_t i = 0; i < 2; i++) {
            p->site[i].config.balance = balance == 1;
            p->site[i].config.overlap = DLX_OVERLAP_CARRY;
            p->site[i].config.exchange_steps = 1;
            p->site[i].config.inner_steps_max = 6;
            p->site[i].tokens_per_step = 1;
            p->site[i].inner_step = take_time;
        }
        assert_true(in_process_run(p, 2, 6 * (4 + 6)));
        assert_ended_well(p, 2);
        assert_int_equal(l[0].inner_steps[5], balance == 1 ? 6 : 4);
        assert_int_equal(l[1].inner_steps[5], 4);
        free(p);
    }
}

typedef struct watched {
    dlx_sync *sync;
    atomic_bool over, asked;
    bool fails, goes_back;
    uint64_t rounds;
} watched;

/* Any thread may ask how a run is. */
static void *watch(void *context) {
    watched *w = context;
    for (bool last = false; !last;) {
        last = w->over;
        dlx_statistics st = DLX_STATISTICS_INIT;
        dlx_error error;
        w->fails = w->fails || dlx_sync_statistics(w->sync, &st, &error) != DLX_OK ||
                   dlx_sync_failure(w->sync, &error) != DLX_OK;
        w->goes_back = w->goes_back || st.rounds < w->rounds;
        w->rounds = st.rounds;
        w->asked = true;
    }
    return NULL;
}

static dlx_status train_watched(in_process_site *site) {
    watched w = {.sync = site->sync};
    pthread_t thread;
    if (pthread_create(&thread, NULL, watch, &w) != 0) abort();
    while (!w.asked) sched_yield();
    dlx_status status = in_process_train(site);
    w.over = true;
    pthread_join(thread, NULL);
    return w.fails || w.goes_back || w.rounds == 0 ? DLX_STATE : status;
}

static void any_thread_may_ask_how_a_run_is(void **state) {
    (void)state;
    in_process *p = in_process_new();
    lengths l[2];
    set_up_lengths(p, l, 2);
    for (size_t i = 0; i < 2; i++) {
        p->site[i].tokens_per_step = 1;
        p->site[i].script = train_watched;
    }
    assert_true(in_process_run(p, 2, 2 * 4 * 8));
    assert_ended_well(p, 2);
    free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sites_of_unequal_size_end_together),
        cmocka_unit_test(pace_lengthens_the_rounds_that_follow),
        cmocka_unit_test(balance_gives_a_fast_site_more_to_do),
        cmocka_unit_test(rounds_of_none),
        cmocka_unit_test(rounds_of_delayed),
        cmocka_unit_test(rounds_of_eager),
        cmocka_unit_test(rounds_of_carry),
        cmocka_unit_test(one_site_is_plain_training),
        cmocka_unit_test(the_baseline_takes_the_weighted_mean),
        cmocka_unit_test(the_baselines_anchor_is_what_was_trained),
        cmocka_unit_test(all_start_where_the_first_does),
        cmocka_unit_test(an_interrupt_ends_a_wait),
        cmocka_unit_test(any_thread_may_ask_how_a_run_is),
        cmocka_unit_test(who_leaves_is_named),
        cmocka_unit_test(parameters_that_are_not_finite_end_the_run),
        cmocka_unit_test(a_site_with_another_config_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
