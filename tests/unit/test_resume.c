/* SPDX-License-Identifier: Apache-2.0 */
/* A run that is stopped wherever it is, and goes on from what its sites have saved, ends as the one
 * that was not stopped, to the bit. */
#include "in_process.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum {
    ROWS = 24,
    COLS = 20,
    VALUES = ROWS * COLS,
    BIAS = 40,
    BATCH = 2,
    WINDOW = 8,
    SITES_MAX = 3
};
enum { H = 6, SAVED_MAX = 16, TOKENS_OF_STEP = BATCH * WINDOW, STEPS = 60 };

typedef struct saved {
    char name[64];
    dlx_part_kind kind;
    int64_t rows, cols;
    void *data;
} saved;

/* A site that trains towards a target of its own, with momentum and noise from its windows. */
typedef struct toy {
    float weight[VALUES], bias[BIAS], momentum[VALUES + BIAS];
    dlx_tensor tensors[2];
    uint64_t steps, stop_at; /* 0: it stops nobody */
    bool gradients, interrupts_itself;
    in_process *run;
    saved saved[SAVED_MAX];
    size_t saved_count;
    bool holds;
    bool is_new; /* and begins with what another one saved */
} toy;

static size_t kind_bytes(dlx_part_kind kind) {
    return kind == DLX_PART_I64 ? 8 : kind == DLX_PART_U8 ? 1 : 4;
}

static void saved_clear(toy *t) {
    for (size_t i = 0; i < t->saved_count; i++) free(t->saved[i].data);
    t->saved_count = 0;
}

static void on_hold(void *context) {
    ((toy *)context)->holds = true;
}

static dlx_status save(in_process_site *site) {
    toy *t = site->context;
    const dlx_part *parts;
    size_t count;
    t->holds = false;
    dlx_status status = dlx_sync_save(site->sync, on_hold, t, &parts, &count, &site->error);
    if (status != DLX_OK) return status;
    if (count > SAVED_MAX || t->holds) abort();
    saved_clear(t);
    for (t->saved_count = 0; t->saved_count < count; t->saved_count++) {
        const dlx_part *p = &parts[t->saved_count];
        saved *to = &t->saved[t->saved_count];
        size_t bytes = (size_t)(p->rows * p->cols) * kind_bytes(p->kind);
        snprintf(to->name, sizeof to->name, "%s", p->name);
        to->kind = p->kind;
        to->rows = p->rows;
        to->cols = p->cols;
        if ((to->data = malloc(bytes)) == NULL) abort();
        memcpy(to->data, p->data, bytes);
    }
    return DLX_OK;
}

static dlx_status on_restore(void *context, const dlx_part *part, dlx_error *error) {
    toy *t = context;
    const char *ending = strrchr(part->name, '.');
    if (t->is_new && ending != NULL && strcmp(ending, ".error") == 0) {
        memset(part->data, 0, (size_t)(part->rows * part->cols) * sizeof(float));
        return DLX_OK;
    }
    for (size_t i = 0; i < t->saved_count; i++) {
        const saved *from = &t->saved[i];
        if (strcmp(from->name, part->name) != 0) continue;
        if (from->kind != part->kind || from->rows != part->rows || from->cols != part->cols) break;
        memcpy(part->data, from->data, (size_t)(part->rows * part->cols) * kind_bytes(part->kind));
        return DLX_OK;
    }
    if (error != NULL) snprintf(error->message, sizeof error->message, "no '%s'", part->name);
    return DLX_DATA;
}

static float noise_of(uint64_t position, uint64_t k) {
    uint64_t x = (position + 1) * 0x9e3779b97f4a7c15u + k * 0xbf58476d1ce4e5b9u;
    return (float)((x >> 40) & 0xffff) / 65536.0f - 0.5f;
}

/* gradient[k] ← of the k-th value; the site's windows are `positions`. */
static void gradients_make(const in_process_site *site, float *gradient,
                           const uint64_t *positions) {
    const toy *t = site->context;
    for (int k = 0; k < VALUES + BIAS; k++) {
        float p = k < VALUES ? t->weight[k] : t->bias[k - VALUES], target = 0;
        if (k % 7 != (int)site->index) target = (float)(k % 5) - 2;
        gradient[k] = p - target;
        for (int i = 0; i < BATCH; i++) gradient[k] += noise_of(positions[i], (uint64_t)k);
    }
}

static void step_take(toy *t, const float *gradient) {
    for (int k = 0; k < VALUES + BIAS; k++) {
        float *p = k < VALUES ? &t->weight[k] : &t->bias[k - VALUES];
        t->momentum[k] = 0.8f * t->momentum[k] + gradient[k];
        *p -= 0.02f * t->momentum[k];
    }
    t->steps++;
}

static dlx_status toy_step(in_process_site *site, dlx_step *done) {
    toy *t = site->context;
    float gradient[VALUES + BIAS], *both[] = {gradient, gradient + VALUES};
    uint64_t positions[BATCH];
    dlx_status status = dlx_sync_windows(site->sync, positions, BATCH, &site->error);
    if (status != DLX_OK) return status;
    gradients_make(site, gradient, positions);
    if (t->stop_at == t->steps + 1) {
        t->stop_at = 0;
        if (t->interrupts_itself)
            dlx_sync_interrupt(site->sync);
        else
            dlx_coordinator_interrupt(t->run->running);
    }
    if (t->gradients)
        status = in_process_await(
            site, dlx_sync_gradients(site->sync, both, TOKENS_OF_STEP, NULL, &site->error), NULL);
    if (status != DLX_OK) return status;
    step_take(t, gradient);
    status = dlx_sync_step(site->sync, TOKENS_OF_STEP, done, &site->error);
    return in_process_await(site, status, done);
}

/* A new one begins at the anchor. */
static bool begins_right(const toy *t) {
    if (!t->is_new || t->gradients) return true;
    for (size_t i = 0; i < t->saved_count; i++)
        if (strcmp(t->saved[i].name, "w.anchor") == 0)
            return memcmp(t->saved[i].data, t->weight, sizeof t->weight) == 0;
    return false;
}

static dlx_status toy_train(in_process_site *site) {
    dlx_step done = DLX_STEP_INIT;
    if (!begins_right(site->context)) abort();
    dlx_error why;
    dlx_status status = DLX_OK;
    while (status == DLX_OK && !dlx_sync_is_finished(site->sync)) status = toy_step(site, &done);
    if (status == DLX_OK)
        return in_process_await(site, dlx_sync_report(site->sync, "", &site->error), NULL);
    why = site->error;
    status = save(site);
    if (status != DLX_OK) return status;
    site->error = why;
    return why.status;
}

static void toy_begin(toy *t, uint64_t seed) {
    memset(t, 0, sizeof *t);
    for (int k = 0; k < VALUES; k++) t->weight[k] = noise_of(seed, (uint64_t)k);
    t->tensors[0] = (dlx_tensor){.name = "w", .data = t->weight, .rows = ROWS, .cols = COLS};
    t->tensors[1] =
        (dlx_tensor){.name = "b", .data = t->bias, .rows = 1, .cols = BIAS, .plain = true};
}

typedef struct trial {
    dlx_overlap overlap;
    uint32_t sites;
    int bits;
    uint32_t goal;    /* tokens, of so many sites' steps; 0: of those that are there */
    uint32_t wait_ms; /* 0: calls block */
} trial;

/* One start of all sites, anew or as saved, until the run ends or is stopped. */
static dlx_status run(const trial *how, toy *toys, bool resumes) {
    in_process *p = in_process_new();
    p->coordinator.join_ms = 20000;
    p->coordinator.wait_ms = how->wait_ms;
    for (uint32_t i = 0; i < how->sites; i++) {
        in_process_site *site = &p->site[i];
        toy *t = &toys[i];
        t->run = p;
        t->gradients = how->overlap == DLX_OVERLAP_ALLREDUCE;
        site->context = t;
        site->tensors = t->tensors;
        site->tensor_count = 2;
        site->script = toy_train;
        site->restore = resumes ? on_restore : NULL;
        site->is_new = t->is_new;
        site->config.overlap = how->overlap;
        /* how far a site trains past H depends on time */
        site->config.inner_steps = site->config.inner_steps_max = H;
        site->config.inner_steps_min = H;
        site->config.exchange_steps = how->overlap == DLX_OVERLAP_CARRY ? 3 : 0;
        site->config.adaptation = DLX_ADAPTATION_PAPER;
        site->config.factor_rank = 4;
        site->config.bits = how->bits;
        site->config.wait_ms = how->wait_ms;
        site->config.windows = 1000;
        site->config.tokens_per_window = WINDOW;
        site->config.windows_per_step = BATCH;
    }
    assert_true(in_process_run(p, how->sites,
                               (uint64_t)(how->goal > 0 ? how->goal : how->sites) * STEPS *
                                   TOKENS_OF_STEP));
    for (uint32_t i = 0; i < how->sites; i++) toys[i].is_new = false;
    dlx_status status = p->status;
    for (uint32_t i = 0; i < how->sites; i++) {
        const in_process_site *site = &p->site[i];
        bool fits =
            site->status == DLX_OK ? status == DLX_OK : status != DLX_OK && toys[i].saved_count > 0;
        if (!fits)
            fail_msg("site %u: %s; the coordinator: %s", i, site->error.message, p->error.message);
    }
    free(p);
    return status;
}

/* The last anchor: what is trained while it travels depends on time. */
static void assert_same(const toy *a, const toy *b, uint32_t sites) {
    for (uint32_t i = 0; i < sites; i++) {
        assert_int_equal(a[i].steps, b[i].steps);
        assert_memory_equal(a[i].weight, b[i].weight, sizeof a->weight);
        assert_memory_equal(a[i].bias, b[i].bias, sizeof a->bias);
        assert_memory_equal(a[i].momentum, b[i].momentum, sizeof a->momentum);
    }
}

/* How often it was stopped. */
static int stopped_run(const trial *how, toy *toys, uint64_t every, uint64_t first) {
    int stops = 0;
    bool resumes = false;
    for (;;) {
        toy *stopper = &toys[(uint32_t)stops % how->sites];
        for (uint32_t i = 0; i < how->sites; i++) toys[i].stop_at = 0;
        stopper->stop_at = stopper->steps + (resumes ? every : first);
        stopper->interrupts_itself = how->sites == 1;
        if (run(how, toys, resumes) == DLX_OK) return stops;
        resumes = true;
        stops++;
        assert_true(stops < STEPS);
    }
}

static void a_stopped_run_ends_as_another(void **state) {
    (void)state;
    static const trial trials[] = {
        {DLX_OVERLAP_NONE, 1, 4, 0},       {DLX_OVERLAP_DELAYED, 1, 4, 0},
        {DLX_OVERLAP_EAGER, 1, 32, 0},     {DLX_OVERLAP_CARRY, 1, 4, 0},
        {DLX_OVERLAP_ALLREDUCE, 1, 32, 0}, {DLX_OVERLAP_NONE, 2, 4, 0},
        {DLX_OVERLAP_DELAYED, 2, 4, 0},    {DLX_OVERLAP_EAGER, 3, 8, 0},
        {DLX_OVERLAP_CARRY, 2, 4, 0},      {DLX_OVERLAP_CARRY, 3, 4, 0},
        {DLX_OVERLAP_ALLREDUCE, 3, 16, 0},
    };
    for (size_t i = 0; i < sizeof trials / sizeof *trials; i++) {
        static toy whole[SITES_MAX], parts[SITES_MAX];
        const trial *how = &trials[i];
        for (uint32_t k = 0; k < how->sites; k++) toy_begin(&whole[k], 7);
        assert_int_equal(run(how, whole, false), DLX_OK);
        for (uint64_t first = 1; first <= H; first++) {
            trial waits = *how;
            waits.wait_ms = first % 2;
            for (uint32_t k = 0; k < how->sites; k++) toy_begin(&parts[k], 7);
            int stops = stopped_run(&waits, parts, H + 1, first);
            assert_true(stops >= 4);
            assert_same(whole, parts, how->sites);
            for (uint32_t k = 0; k < how->sites; k++) saved_clear(&parts[k]);
        }
    }
}

/* What a site has saved, for a new one. */
static void saved_copy(toy *to, const toy *from) {
    *to = *from;
    to->tensors[0].data = to->weight;
    to->tensors[1].data = to->bias;
    to->is_new = true;
    for (size_t i = 0; i < from->saved_count; i++) {
        size_t bytes =
            (size_t)(from->saved[i].rows * from->saved[i].cols) * kind_bytes(from->saved[i].kind);
        if ((to->saved[i].data = malloc(bytes)) == NULL) abort();
        memcpy(to->saved[i].data, from->saved[i].data, bytes);
    }
}

static void a_run_goes_on_with_other_sites(void **state) {
    (void)state;
    static const dlx_overlap overlaps[] = {DLX_OVERLAP_NONE, DLX_OVERLAP_DELAYED, DLX_OVERLAP_EAGER,
                                           DLX_OVERLAP_CARRY, DLX_OVERLAP_ALLREDUCE};
    for (size_t o = 0; o < sizeof overlaps / sizeof *overlaps; o++)
        for (uint64_t first = H + 2; first <= 2 * H + 2; first++) {
            static toy toys[SITES_MAX];
            trial how = {overlaps[o], 2, 8, SITES_MAX, first % 2};
            for (uint32_t k = 0; k < 2; k++) toy_begin(&toys[k], 7);
            toys[0].stop_at = first;
            assert_int_not_equal(run(&how, toys, false), DLX_OK);
            saved_copy(&toys[2], &toys[first % 2]);
            how.sites = 3;
            toys[1].stop_at = toys[1].steps + H + 3;
            assert_int_not_equal(run(&how, toys, true), DLX_OK);
            how.sites = 1; /* site 0 alone, and then with another new one */
            toys[0].stop_at = toys[0].steps + H + 4;
            assert_int_not_equal(run(&how, toys, true), DLX_OK);
            saved_clear(&toys[1]);
            saved_copy(&toys[1], &toys[0]);
            how.sites = 2;
            assert_int_equal(run(&how, toys, true), DLX_OK);
            assert_memory_equal(toys[0].weight, toys[1].weight, sizeof toys->weight);
            assert_memory_equal(toys[0].bias, toys[1].bias, sizeof toys->bias);
            for (uint32_t k = 0; k < SITES_MAX; k++) saved_clear(&toys[k]);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stopped_run_ends_as_another),
        cmocka_unit_test(a_run_goes_on_with_other_sites),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
