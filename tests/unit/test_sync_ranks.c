/* SPDX-License-Identifier: Apache-2.0 */
/* Sites of several ranks: whatever the cut of the model, the same anchors; and all ranks of a site
 * apply, hand out and end at the same step. */
#include "in_process.h"

#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { SITES = 2, RANKS_MAX = 3, TENSORS = 5, STEPS_MAX = 4096, LARGE = 300000 };
static const char *const site_names[SITES] = {"delft", "oslo"};

/* rows, cols: matrices with factors, one too small for them, and vectors */
static const int64_t shapes[TENSORS][2] = {{24, 40}, {1, 33}, {30, 20}, {6, 5}, {32, 32}};
static const char *const tensor_names[TENSORS] = {"first", "bias", "second", "small", "third"};

typedef struct shard {
    float *p[TENSORS], *g[TENSORS];
    dlx_tensor tensors[TENSORS];
    size_t count;
    uint64_t hashes[TENSORS]; /* by id, at the end */
    uint64_t positions;       /* a sum over the windows taken */
    uint32_t inner_steps[STEPS_MAX];
    bool applied[STEPS_MAX], submitted[STEPS_MAX];
} shard;

typedef struct ranks {
    in_process *p;
    size_t ranks;
    in_process_table table[SITES];
    in_process_seat seat[SITES][RANKS_MAX];
    shard shard[SITES][RANKS_MAX];
} ranks;

static shard *shard_of(in_process_site *site) {
    return site->context;
}

static size_t site_index(const in_process_site *site) {
    return strcmp(site->config.site, site_names[0]) == 0 ? 0 : 1;
}

/* Rank 0 of several has the even tensors, rank 1 the odd ones, and a third one none. */
static void fill(ranks *w, size_t i, uint16_t r) {
    shard *s = &w->shard[i][r];
    for (uint32_t id = 0; id < TENSORS; id++) {
        if (w->ranks > 1 && id % 2 != r) continue;
        size_t values = (size_t)(shapes[id][0] * shapes[id][1]);
        s->p[s->count] = calloc(values, sizeof(float));
        s->g[s->count] = calloc(values, sizeof(float));
        for (size_t k = 0; k < values; k++)
            s->p[s->count][k] = (float)(k % 13) * 0.125f - (float)id * 0.25f;
        s->tensors[s->count] = (dlx_tensor){.name = tensor_names[id],
                                            .data = s->p[s->count],
                                            .rows = shapes[id][0],
                                            .cols = shapes[id][1],
                                            .id = id};
        s->count++;
    }
}

static ranks *ranks_new(size_t count) {
    ranks *w = calloc(1, sizeof *w);
    if (w == NULL) abort();
    w->p = in_process_new();
    w->ranks = count;
    w->p->sites_expected = SITES;
    for (uint16_t i = 0; i < SITES; i++) {
        w->table[i] = (in_process_table)IN_PROCESS_TABLE_INIT(count);
        for (uint16_t r = 0; r < count; r++) {
            in_process_site *site = &w->p->site[i * count + r];
            fill(w, i, r);
            w->seat[i][r] = (in_process_seat){&w->table[i], r};
            site->name = site_names[i];
            site->tensors = w->shard[i][r].tensors;
            site->tensor_count = w->shard[i][r].count;
            site->tokens_per_step = i == 0 ? 100 : 300;
            site->context = &w->shard[i][r];
            site->config.rank = r;
            site->config.ranks = (uint16_t)count;
            if (count > 1) {
                site->config.gather = in_process_gather;
                site->config.gather_context = &w->seat[i][r];
            }
        }
    }
    return w;
}

static void ranks_free(ranks *w) {
    for (size_t i = 0; i < SITES; i++)
        for (size_t r = 0; r < w->ranks; r++)
            for (size_t t = 0; t < w->shard[i][r].count; t++) {
                free(w->shard[i][r].p[t]);
                free(w->shard[i][r].g[t]);
            }
    free(w->p);
    free(w);
}

static in_process_site *at(ranks *w, size_t i, size_t r) {
    return &w->p->site[i * w->ranks + r];
}

static void assert_ended_well(ranks *w) {
    for (size_t i = 0; i < SITES; i++)
        for (size_t r = 0; r < w->ranks; r++)
            if (at(w, i, r)->status != DLX_OK)
                fail_msg("site %zu, rank %zu: %s", i, r, at(w, i, r)->error.message);
    if (w->p->status != DLX_OK) fail_msg("coordinator: %s", w->p->error.message);
}

/* ---- the same run, however it is cut --------------------------------------------------------- */

/* Of value k: rank 1 plus a little noise, so that `paper` finds that less is enough. */
static float change_of(size_t site, uint64_t step, const dlx_tensor *t, int64_t k) {
    double row = (double)((k / t->cols * 7 + (int64_t)t->id) % 11) - 5,
           col = (double)(k % t->cols % 9) - 4;
    double noise = (double)((k * 31 + (int64_t)step * 17 + (int64_t)site * 5) % 23 - 11);
    return (float)(0.001 * row * col * (1 + 0.1 * (double)(step % 3)) + 0.00002 * noise);
}

static void inner_step(in_process_site *site, uint64_t step) {
    shard *s = shard_of(site);
    uint64_t position = 0;
    if (site->config.windows > 0) {
        if (dlx_sync_windows(site->sync, &position, 1, &site->error) != DLX_OK) abort();
        s->positions += position * (step + 1);
    }
    for (size_t i = 0; i < s->count; i++)
        for (int64_t k = 0; k < s->tensors[i].rows * s->tensors[i].cols; k++)
            s->p[i][k] += change_of(site_index(site), step + position, &s->tensors[i], k) -
                          0.02f * s->p[i][k];
}

static void note(in_process_site *site, uint64_t step, const dlx_step *done) {
    shard *s = shard_of(site);
    if (step >= STEPS_MAX) abort();
    s->inner_steps[step] = done->inner_steps;
    s->applied[step] = done->applied;
    s->submitted[step] = done->submitted;
}

static void take_hashes(in_process_site *site) {
    shard *s = shard_of(site);
    uint64_t hashes[TENSORS];
    (void)dlx_sync_anchor_hashes(site->sync, hashes, NULL);
    for (size_t i = 0; i < s->count; i++) s->hashes[s->tensors[i].id] = hashes[i];
}

static dlx_status train(in_process_site *site) {
    dlx_status status = in_process_train(site);
    take_hashes(site);
    return status;
}

static dlx_status train_baseline(in_process_site *site) {
    shard *s = shard_of(site);
    dlx_step done = DLX_STEP_INIT;
    dlx_status status = DLX_OK;
    for (uint64_t step = 0; status == DLX_OK && !done.finished; step++) {
        for (size_t i = 0; i < s->count; i++)
            for (int64_t k = 0; k < s->tensors[i].rows * s->tensors[i].cols; k++)
                s->g[i][k] = change_of(site_index(site), step, &s->tensors[i], k);
        status = dlx_sync_gradients(site->sync, s->g, site->tokens_per_step, NULL, &site->error);
        for (size_t i = 0; i < s->count; i++)
            for (int64_t k = 0; k < s->tensors[i].rows * s->tensors[i].cols; k++)
                s->p[i][k] -= s->g[i][k];
        if (status == DLX_OK)
            status = dlx_sync_step(site->sync, site->tokens_per_step, &done, &site->error);
        site->steps = step + 1;
    }
    if (status == DLX_OK) status = dlx_sync_report(site->sync, "", &site->error);
    take_hashes(site);
    return status;
}

static ranks *run(size_t count, dlx_overlap overlap, int bits) {
    ranks *w = ranks_new(count);
    for (size_t i = 0; i < SITES * count; i++) {
        in_process_site *site = &w->p->site[i];
        dlx_sync_config *c = &site->config;
        c->overlap = overlap;
        c->inner_steps = c->inner_steps_max = 8;
        c->exchange_steps = overlap == DLX_OVERLAP_CARRY ? 3 : 0;
        /* eager trains past a shortened H while an exchange is late, so its steps would not repeat
         */
        c->adaptation = overlap == DLX_OVERLAP_EAGER ? DLX_ADAPTATION_OFF : DLX_ADAPTATION_PAPER;
        c->factor_rank = 8;
        c->factor_rank_min = 1;
        c->bits = bits;
        c->group = 16;
        if (overlap != DLX_OVERLAP_ALLREDUCE) {
            c->windows = 1000;
            c->tokens_per_window = 1000;
            c->windows_per_step = 1;
        }
        site->inner_step = inner_step;
        site->after_step = note;
        site->script = overlap == DLX_OVERLAP_ALLREDUCE ? train_baseline : train;
    }
    assert_true(in_process_run(w->p, SITES * count, 24000));
    assert_ended_well(w);
    return w;
}

/* bits 32: nothing is lost, so nothing depends on who owns which block. With fewer bits what a
 * block's second quantisation loses goes to its owner's e, and who owns it depends on the cut. */
static void check_cut(dlx_overlap overlap) {
    ranks *whole = run(1, overlap, 32);
    uint64_t steps = at(whole, 0, 0)->steps;
    if (overlap == DLX_OVERLAP_NONE || overlap == DLX_OVERLAP_CARRY) /* or H is not tried */
        assert_true(whole->shard[0][0].inner_steps[steps - 2] < 8 &&
                    whole->shard[0][0].inner_steps[steps - 2] > 1);
    for (size_t count = 2; count <= RANKS_MAX; count++) {
        ranks *cut = run(count, overlap, 32);
        for (size_t i = 0; i < SITES; i++)
            for (size_t r = 0; r < count; r++) {
                const shard *mine = &cut->shard[i][r], *all = &whole->shard[i][0];
                assert_int_equal(at(cut, i, r)->steps, steps);
                assert_memory_equal(mine->inner_steps, all->inner_steps, sizeof all->inner_steps);
                assert_int_equal(mine->positions, all->positions);
                for (size_t t = 0; t < mine->count; t++) {
                    uint32_t id = mine->tensors[t].id;
                    if (mine->hashes[id] != all->hashes[id])
                        fail_msg("overlap %d, %zu ranks: site %zu has another %s", (int)overlap,
                                 count, i, tensor_names[id]);
                }
            }
        ranks_free(cut);
    }
    ranks_free(whole);
}

static void none_is_the_same_however_cut(void **state) {
    (void)state;
    check_cut(DLX_OVERLAP_NONE);
}
static void eager_is_the_same_however_cut(void **state) {
    (void)state;
    check_cut(DLX_OVERLAP_EAGER);
}
static void carry_is_the_same_however_cut(void **state) {
    (void)state;
    check_cut(DLX_OVERLAP_CARRY);
}
static void the_baseline_is_the_same_however_cut(void **state) {
    (void)state;
    check_cut(DLX_OVERLAP_ALLREDUCE);
}

static void four_bits_agree_between_sites(void **state) {
    (void)state;
    ranks *w = run(2, DLX_OVERLAP_CARRY, 4);
    for (size_t r = 0; r < 2; r++) {
        assert_true(w->shard[0][r].hashes[r] != 0);
        assert_memory_equal(w->shard[0][r].hashes, w->shard[1][r].hashes,
                            sizeof w->shard[0][r].hashes);
    }
    assert_int_equal(at(w, 0, 0)->statistics.rounds, at(w, 1, 1)->statistics.rounds);
    ranks_free(w);
}

/* ---- the same step on all ranks -------------------------------------------------------------- */

static void count_a_step(in_process_site *site, uint64_t step) {
    (void)step;
    for (size_t i = 0; i < shard_of(site)->count; i++) shard_of(site)->p[i][0] += 0.001f;
}

/* Rank 1 has one large tensor, whose commit takes much longer than rank 0's; inner steps take
 * nothing. */
static ranks *uneven(dlx_overlap overlap) {
    ranks *w = ranks_new(2);
    for (size_t i = 0; i < SITES; i++) {
        shard *s = &w->shard[i][1];
        free(s->p[0]);
        s->p[0] = calloc(LARGE, sizeof(float));
        s->tensors[0].data = s->p[0];
        s->tensors[0].rows = 1;
        s->tensors[0].cols = LARGE;
        for (size_t r = 0; r < 2; r++) {
            in_process_site *site = at(w, i, r);
            site->config.overlap = overlap;
            site->config.inner_steps = site->config.inner_steps_max = 500;
            site->config.adaptation = DLX_ADAPTATION_OFF;
            site->inner_step = count_a_step;
            site->after_step = note;
        }
    }
    return w;
}

static void all_ranks_apply_at_the_same_step(void **state) {
    (void)state;
    static const dlx_overlap overlaps[] = {DLX_OVERLAP_CARRY, DLX_OVERLAP_DELAYED};
    for (size_t which = 0; which < 2; which++) {
        ranks *w = uneven(overlaps[which]);
        assert_true(in_process_run(w->p, 4, UINT64_C(400) * 500 * 4));
        assert_ended_well(w);
        for (size_t i = 0; i < SITES; i++) {
            const shard *a = &w->shard[i][0], *b = &w->shard[i][1];
            size_t applied = 0;
            assert_int_equal(at(w, i, 0)->steps, at(w, i, 1)->steps);
            for (size_t step = 0; step < STEPS_MAX; step++) {
                if (a->applied[step] != b->applied[step] ||
                    a->submitted[step] != b->submitted[step])
                    fail_msg("site %zu, step %zu: one rank applies or hands out alone", i, step);
                applied += a->applied[step];
            }
            assert_true(applied >= 3);
        }
        ranks_free(w);
    }
}

enum { TROUBLE_STEP = 37 };

static void interrupt_rank_1(in_process_site *site, uint64_t step) {
    count_a_step(site, step);
    if (step == TROUBLE_STEP && site->config.rank == 1 && site_index(site) == 0)
        dlx_sync_interrupt(site->sync);
}

static void fail_rank_1(in_process_site *site, uint64_t step) {
    count_a_step(site, step);
    if (step == TROUBLE_STEP && site->config.rank == 1 && site_index(site) == 0)
        dlx_sync_fail(site->sync, "the disk is full");
}

static void break_rank_1(in_process_site *site, uint64_t step) {
    count_a_step(site, step);
    if (step == TROUBLE_STEP && site->config.rank == 1 && site_index(site) == 0)
        shard_of(site)->p[0][0] = (float)NAN;
}

static void a_rank_in_trouble_takes_its_site_along(void **state) {
    (void)state;
    static const struct {
        void (*inner_step)(in_process_site *site, uint64_t step);
        dlx_status status;
        const char *culprit, *other; /* what rank 1 and rank 0 of its site say */
    } cases[] = {
        {interrupt_rank_1, DLX_INTERRUPTED, "interrupted", "rank 1 of this site: interrupted"},
        {fail_rank_1, DLX_PEER_LOST, "the disk is full", "rank 1 of this site: the disk is full"},
        {break_rank_1, DLX_NUMERIC,
         "the pseudo-gradient of site 'delft' (rank 1) is not finite in round ", NULL},
    };
    for (size_t which = 0; which < sizeof cases / sizeof *cases; which++) {
        ranks *w = uneven(DLX_OVERLAP_CARRY);
        w->p->coordinator.sites_min = 0; /* the other site ends too */
        for (size_t i = 0; i < 4; i++) {
            w->p->site[i].inner_step = cases[which].inner_step;
            w->p->site[i].config.inner_steps = 10;
            w->p->site[i].config.inner_steps_max = 15;
        }
        assert_true(in_process_run(w->p, 4, UINT64_C(1) << 40)); /* would never end */
        assert_int_equal(at(w, 0, 1)->status, cases[which].status);
        assert_non_null(strstr(at(w, 0, 1)->error.message, cases[which].culprit));
        assert_int_equal(at(w, 0, 0)->status, cases[which].status);
        if (cases[which].other != NULL)
            assert_string_equal(at(w, 0, 0)->error.message, cases[which].other);
        assert_true(at(w, 0, 0)->steps > TROUBLE_STEP);
        for (size_t i = 0; i < SITES; i++) {
            assert_int_equal(at(w, i, 0)->steps, at(w, i, 1)->steps);
            assert_int_not_equal(at(w, i, 0)->status, DLX_OK);
            assert_int_not_equal(at(w, i, 1)->status, DLX_OK);
        }
        if (cases[which].other != NULL) assert_int_equal(at(w, 0, 0)->steps, TROUBLE_STEP + 1);
        assert_int_not_equal(w->p->status, DLX_OK);
        ranks_free(w);
    }
}

static dlx_status gather_that_fails(void *seat, void *all, const void *own, size_t bytes,
                                    dlx_error *error) {
    (void)seat, (void)all, (void)own, (void)bytes, (void)error;
    return DLX_SYSTEM;
}

static void ranks_that_cannot_reach_each_other_end(void **state) {
    (void)state;
    ranks *w = uneven(DLX_OVERLAP_CARRY);
    for (size_t i = 0; i < 4; i++) w->p->site[i].config.gather = gather_that_fails;
    assert_true(in_process_run(w->p, 4, 1000000));
    uint64_t steps = 0;
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(w->p->site[i].status, DLX_SYSTEM);
        /* none if another site has failed before this one heard that all joined */
        assert_true(w->p->site[i].steps <= 1);
        steps += w->p->site[i].steps;
        /* its own, or what it heard of the first that said so */
        assert_non_null(
            strstr(w->p->site[i].error.message, "the ranks of this site can't reach each other"));
    }
    assert_true(steps > 0);
    ranks_free(w);
}

static atomic_int still_waiting;

static dlx_status idle(in_process_site *site) {
    (void)site;
    while (still_waiting > 0) sched_yield();
    return DLX_OK;
}

static void *interrupt_it(void *sync) {
    dlx_sync_interrupt(sync);
    return NULL;
}

/* Hands out to sites that never do. Only rank 0 is interrupted. */
static dlx_status wait_in_vain(in_process_site *site) {
    pthread_t thread;
    if (site->config.rank == 0 && pthread_create(&thread, NULL, interrupt_it, site->sync) != 0)
        abort();
    dlx_status status = dlx_sync_step(site->sync, 1, NULL, &site->error);
    if (site->config.rank == 0) pthread_join(thread, NULL);
    still_waiting--;
    return status;
}

static void an_interrupt_of_one_rank_ends_the_wait_of_all(void **state) {
    (void)state;
    ranks *w = uneven(DLX_OVERLAP_NONE);
    still_waiting = 2;
    for (size_t r = 0; r < 2; r++) {
        at(w, 0, r)->config.inner_steps = at(w, 0, r)->config.inner_steps_max = 1;
        at(w, 1, r)->config.inner_steps = at(w, 1, r)->config.inner_steps_max = 1;
        at(w, 0, r)->script = wait_in_vain;
        at(w, 1, r)->script = idle;
    }
    assert_true(in_process_run(w->p, 4, 1000000));
    assert_int_equal(at(w, 0, 0)->status, DLX_INTERRUPTED);
    assert_string_equal(at(w, 0, 0)->error.message, "interrupted");
    assert_int_equal(at(w, 0, 1)->status, DLX_INTERRUPTED);
    assert_string_equal(at(w, 0, 1)->error.message, "rank 0 of this site: interrupted");
    ranks_free(w);
}

/* ---- starting parameters --------------------------------------------------------------------- */

static dlx_status look(in_process_site *site) {
    take_hashes(site);
    return in_process_train(site);
}

/* Only rank 1 of the second site starts elsewhere. */
static void a_rank_starts_where_its_like_does(void **state) {
    (void)state;
    ranks *w = ranks_new(2);
    for (size_t i = 0; i < 4; i++) {
        w->p->site[i].config.overlap = DLX_OVERLAP_NONE;
        w->p->site[i].config.inner_steps = 2;
        w->p->site[i].inner_step = count_a_step;
        w->p->site[i].script = look;
    }
    for (int k = 0; k < 33; k++) w->shard[1][1].p[0][k] = 7;
    assert_true(in_process_run(w->p, 4, 1600));
    assert_ended_well(w);
    for (size_t r = 0; r < 2; r++)
        assert_memory_equal(w->shard[0][r].hashes, w->shard[1][r].hashes,
                            sizeof w->shard[0][r].hashes);
    ranks_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none_is_the_same_however_cut),
        cmocka_unit_test(eager_is_the_same_however_cut),
        cmocka_unit_test(carry_is_the_same_however_cut),
        cmocka_unit_test(the_baseline_is_the_same_however_cut),
        cmocka_unit_test(four_bits_agree_between_sites),
        cmocka_unit_test(all_ranks_apply_at_the_same_step),
        cmocka_unit_test(a_rank_in_trouble_takes_its_site_along),
        cmocka_unit_test(ranks_that_cannot_reach_each_other_end),
        cmocka_unit_test(an_interrupt_of_one_rank_ends_the_wait_of_all),
        cmocka_unit_test(a_rank_starts_where_its_like_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
