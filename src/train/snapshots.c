/* SPDX-License-Identifier: Apache-2.0 */
#include "train/snapshots.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"
#include "checkpoint/manifest.h"

#define NUMBERS_NAME "train.numbers"

enum { PARTS_PER_TENSOR = 3 };

static void say_failure(site_run *r, const dlx_error *error) {
    char text[sizeof error->message + 64];
    snprintf(text, sizeof text, "no snapshot of step %llu: %s",
             (unsigned long long)r->snapshots.step, error->message);
    dlxi_run_say(r, text);
}

/* A site of several ranks has none: its ranks would have to write together. */
static bool writes(const site_run *r) {
    return r->config->snapshots.keep > 0 && r->ranks == 1;
}

/* ---- the trainer's parts --------------------------------------------------------------------- */

/* What is counted in integers comes first. */
static void numbers_pack(site_run *r, int64_t at[DLXI_TRAIN_NUMBERS]) {
    const dlx_statistics st = dlxi_run_statistics(r);
    const uint64_t counts[] = {r->steps,           (uint64_t)*dlxi_optimizer_steps(r->optimizer),
                               r->exchange_rounds, r->sites,
                               st.wan_bytes_sent,  st.wan_bytes_received};
    const double reals[] = {r->val_loss_initial_sum,     r->val_tokens_initial, r->exchange_steps,
                            dlxi_clock_s() - r->start_s, r->compute_s,          r->wait_s};
    memcpy(at, counts, sizeof counts);
    memcpy(at + sizeof counts / sizeof *counts, reals, sizeof reals);
}

static bool numbers_unpack(site_run *r, const int64_t at[DLXI_TRAIN_NUMBERS]) {
    double reals[6];
    memcpy(reals, at + 6, sizeof reals);
    for (int i = 0; i < 6; i++)
        if (at[i] < (i < 2 ? 1 : 0) || !(reals[i] >= 0 && reals[i] <= 1e18)) return false;
    if (at[3] < 1 || at[3] > DLXI_SITES_MAX) return false;
    r->steps = (uint64_t)at[0];
    *dlxi_optimizer_steps(r->optimizer) = at[1];
    r->exchange_rounds = (uint64_t)at[2];
    r->sites = (uint32_t)at[3];
    r->sent_before = (uint64_t)at[4];
    r->received_before = (uint64_t)at[5];
    r->val_loss_initial_sum = reals[0];
    r->val_tokens_initial = reals[1];
    r->exchange_steps = reals[2];
    r->trained_s = reals[3];
    r->compute_s = reals[4];
    r->wait_s = reals[5];
    return true;
}

static const char *const suffixes[PARTS_PER_TENSOR] = {"", ".first", ".second"};

/* Parameter, and the optimiser's state of it; NULL: there is none. */
static float *tensor_part(site_run *r, int64_t i, int which) {
    float *first, *second;
    dlxi_optimizer_state(r->optimizer, i, &first, &second);
    return which == 0 ? r->parameters[i].data : which == 1 ? first : second;
}

/* ---- writing --------------------------------------------------------------------------------- */

static json_t *meta_make(site_run *r) {
    const dlx_statistics st = dlxi_run_statistics(r);
    char data[20];
    snprintf(data, sizeof data, "%016llx", (unsigned long long)r->data_hash);
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:s, s:s, s:I}", "run_id", r->run_id, "site", r->options->site,
        "round", (json_int_t)st.rounds, "tokens", (json_int_t)st.committed_tokens, "tokens_target",
        (json_int_t)dlx_sync_tokens_target(r->sync), "overlap", dlxi_config_overlap_name(r->config),
        "data", data, "seed", (json_int_t)r->config->run.seed);
}

static void on_hold(void *run) {
    site_run *r = run;
    if (r->snapshots.writer != NULL) dlxi_snapshot_wait(r->snapshots.writer, r->snapshots.parts);
}

/* `synced`: what dlx_sync_save gave. */
static dlx_status writer_begin(site_run *r, const dlx_part *synced, size_t synced_count,
                               dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    const size_t most = (size_t)r->parameter_count * PARTS_PER_TENSOR + 1 + synced_count;
    const size_t name_bytes = DLXI_TENSOR_NAME_MAX + 8;
    dlx_part *parts = NULL;
    char *names = NULL;
    dlx_status status = DLX_OK;
    size_t n = 0;
    DLX_TRY_OUT(DLXI_NEW(&parts, most, error));
    DLX_TRY_OUT(DLXI_NEW(&names, most * name_bytes, error));
    for (int64_t i = 0; i < r->parameter_count; i++)
        for (int which = 0; which < PARTS_PER_TENSOR; which++) {
            const dlxi_tensor *t = &r->parameters[i].tensor;
            float *data = tensor_part(r, i, which);
            if (data == NULL) continue;
            char *name = names + n * name_bytes;
            snprintf(name, name_bytes, "%s%s", t->name, suffixes[which]);
            parts[n++] = (dlx_part){name, DLX_PART_F32, t->rows, t->cols, data};
        }
    numbers_pack(r, s->numbers);
    parts[n++] = (dlx_part){NUMBERS_NAME, DLX_PART_I64, 1, DLXI_TRAIN_NUMBERS, s->numbers};
    s->own_parts = n;
    for (size_t k = 0; k < synced_count; k++)
        parts[n++] = (dlx_part){synced[k].name, synced[k].kind, synced[k].rows, synced[k].cols,
                                synced[k].data};
    s->parts = n;
    DLX_TRY_OUT(dlxi_snapshot_begin(&s->writer, s->directory, s->step, 0, 1, parts, n, error));
out:
    free(parts);
    free(names);
    return status;
}

/* DLX_AGAIN: an exchange is under way. */
static dlx_status begin(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    const dlx_part *synced;
    size_t count;
    DLX_TRY(dlx_sync_save(r->sync, on_hold, r, &synced, &count, error));
    s->step = r->steps;
    s->last_round = dlxi_run_statistics(r).rounds;
    json_decref(s->meta); /* of one that did not begin */
    if ((s->meta = meta_make(r)) == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for a snapshot's manifest");
    return writer_begin(r, synced, count, error);
}

/* Of one that is complete. `description`: of its file; `seconds`: of work, without the time that it
 * waited for the end of a step. */
static void event_record(site_run *r, const char *description, double seconds) {
    const dlxi_snapshots *s = &r->snapshots;
    json_t *file = json_loads(description, 0, NULL);
    json_int_t bytes = json_integer_value(json_object_get(file, "bytes"));
    json_decref(file);
    dlxi_run_record(r, json_pack("{s:s, s:I, s:I, s:I, s:f}", "event", "snapshot", "step",
                                 (json_int_t)s->step, "round", (json_int_t)s->last_round, "bytes",
                                 bytes, "seconds", seconds));
}

/* Blocks until it is durable. */
static dlx_status complete(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    char *description = NULL;
    dlx_status status = dlxi_snapshot_result(s->writer, &description, error);
    if (status == DLX_OK) {
        const char *one[] = {description};
        const double begun_s = dlxi_clock_s();
        status = dlxi_snapshot_commit(s->directory, s->step, one, 1, s->meta,
                                      (int)r->config->snapshots.keep, error);
        if (status == DLX_OK)
            event_record(r, description,
                         dlxi_snapshot_write_s(s->writer) + dlxi_clock_s() - begun_s);
    }
    free(description);
    dlxi_snapshot_close(&s->writer);
    json_decref(s->meta);
    s->meta = NULL;
    return status;
}

/* Rounds from one to the next; 0: none are written yet. All sites should have snapshots of the same
 * rounds: so multiples, and powers of two if it goes by time, which each site measures: of those of
 * different sites one is a multiple of the other. */
static uint64_t period(const site_run *r, uint64_t rounds) {
    const dlxi_snapshots *s = &r->snapshots;
    const double seconds = 60 * r->config->snapshots.minutes;
    if (r->config->snapshots.rounds > 0) return (uint64_t)r->config->snapshots.rounds;
    if (seconds <= 0 || rounds <= s->first_round) return 0;
    double round_s = (dlxi_clock_s() - s->begun_s) / (double)(rounds - s->first_round);
    uint64_t period = 1;
    while ((double)period * round_s < seconds && period < UINT64_C(1) << 40) period *= 2;
    return period;
}

static bool is_due(site_run *r) {
    const uint64_t rounds = dlxi_run_statistics(r).rounds, every = period(r, rounds);
    return every > 0 && rounds % every == 0 && rounds > r->snapshots.last_round;
}

void dlxi_snapshots_wait(site_run *r) {
    if (r->snapshots.writer != NULL)
        dlxi_snapshot_wait(r->snapshots.writer, r->snapshots.own_parts);
}

void dlxi_snapshots_on_step(site_run *r) {
    dlx_error error;
    dlx_status status = DLX_OK;
    if (!writes(r)) return;
    if (r->snapshots.writer != NULL) {
        if (!dlxi_snapshot_is_written(r->snapshots.writer)) return;
        status = complete(r, &error);
    } else if (is_due(r)) {
        status = begin(r, &error);
        if (status == DLX_AGAIN || status == DLX_STATE) return;
    }
    if (status != DLX_OK) say_failure(r, &error);
}

bool dlxi_snapshots_last(site_run *r) {
    dlxi_snapshots *s = &r->snapshots;
    dlx_error error;
    char text[DLXI_PATH_BYTES + 64];
    /* mpirun kills its ranks a second after it was told to end: enough for weights and summary */
    if (!writes(r) || s->directory[0] == '\0' || r->options->cluster != NULL) return false;
    dlx_status status = s->writer != NULL ? complete(r, &error) : DLX_OK;
    if (status != DLX_OK) say_failure(r, &error);
    status = begin(r, &error);
    if (status == DLX_STATE) return false; /* all tokens were trained */
    if (status == DLX_OK) status = complete(r, &error);
    if (status != DLX_OK) {
        s->step = r->steps;
        say_failure(r, &error);
        return false;
    }
    snprintf(text, sizeof text, "snapshot of step %llu saved in %s; --resume goes on from it",
             (unsigned long long)s->step, s->directory);
    dlxi_run_say(r, text);
    return true;
}

void dlxi_snapshots_close(site_run *r) {
    dlxi_snapshots *s = &r->snapshots;
    dlxi_snapshot_close(&s->writer);
    dlxi_snapshot_close_opened(&s->resumed);
    json_decref(s->meta);
    s->meta = NULL;
}

/* Those of later steps are of what was given up by going on from an earlier one. */
static dlx_status later_put_aside(site_run *r, dlx_error *error) {
    const char *directory = r->snapshots.directory;
    char from[DLXI_PATH_BYTES], to[DLXI_PATH_BYTES], ending[40];
    uint64_t *steps = NULL;
    size_t count = 0;
    dlx_status status = dlxi_snapshot_list(&steps, &count, directory, error);
    if (status == DLX_SYSTEM && error->system_errno == ENOENT) return DLX_OK;
    snprintf(ending, sizeof ending, ".left-%lld", (long long)time(NULL));
    for (size_t i = 0; i < count && status == DLX_OK; i++) {
        if (steps[i] <= r->steps) continue;
        status = dlxi_snapshot_step_path(from, directory, steps[i], "", error);
        if (status == DLX_OK)
            status = dlxi_snapshot_step_path(to, directory, steps[i], ending, error);
        if (status == DLX_OK && rename(from, to) != 0)
            status =
                dlxi_error_set(error, DLX_SYSTEM, "%s: cannot rename: %s", from, strerror(errno));
        if (status == DLX_OK)
            dlxi_run_say(r, "a snapshot of a later step is put aside as *.left-*");
    }
    free(steps);
    return status;
}

dlx_status dlxi_snapshots_begin(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    dlxi_snapshot_close_opened(&s->resumed);
    s->begun_s = dlxi_clock_s();
    s->first_round = s->last_round = dlxi_run_statistics(r).rounds;
    if (!writes(r)) return DLX_OK;
    DLX_TRY(dlxi_path_join(s->directory, r->directory, "snapshots", error));
    dlx_status status = dlxi_snapshot_tidy(s->directory, error);
    if (status != DLX_OK) return error->system_errno == ENOENT ? DLX_OK : status;
    return r->steps > 0 ? later_put_aside(r, error) : DLX_OK;
}

/* ---- going on -------------------------------------------------------------------------------- */

static dlx_status part_read(site_run *r, const char *name, dlx_part_kind kind, int64_t rows,
                            int64_t cols, void *dst, dlx_error *error) {
    dlxi_snapshot *snapshot = r->snapshots.resumed;
    const dlxi_snapshot_part *part = dlxi_snapshot_find(snapshot, name, -1);
    if (part == NULL)
        DLX_FAIL(error, DATA, "%s has no '%.200s': it is of another model or other settings",
                 dlxi_snapshot_path(snapshot), name);
    if (part->kind != kind || part->rows != rows || part->cols != cols)
        DLX_FAIL(error, DATA,
                 "%s: '%.200s' is %s of %lld × %lld, and here %s of %lld × %lld: it is of another "
                 "model or other settings",
                 dlxi_snapshot_path(snapshot), name, dlxi_part_kind_name(part->kind),
                 (long long)part->rows, (long long)part->cols, dlxi_part_kind_name(kind),
                 (long long)rows, (long long)cols);
    return dlxi_snapshot_read(snapshot, dst, part, error);
}

dlx_status dlxi_snapshots_restore(void *run, const dlx_part *part, dlx_error *error) {
    return part_read(run, part->name, part->kind, part->rows, part->cols, part->data, error);
}

/* What decides which windows a site trains on. */
static dlx_status data_check(const site_run *r, dlx_error *error) {
    const json_t *meta = dlxi_snapshot_meta(r->snapshots.resumed);
    const char *path = dlxi_snapshot_path(r->snapshots.resumed);
    const char *data = json_string_value(json_object_get(meta, "data"));
    const char *overlap = json_string_value(json_object_get(meta, "overlap"));
    const char *now = dlxi_config_overlap_name(r->config);
    const json_t *seed = json_object_get(meta, "seed");
    char own[20];
    snprintf(own, sizeof own, "%016llx", (unsigned long long)r->data_hash);
    if (data == NULL || strcmp(data, own) != 0)
        DLX_FAIL(error, CONFIG,
                 "data.train: the run of %s has other tokens (hash %.20s, here %s); a run goes on "
                 "with its own data",
                 path, data != NULL ? data : "none", own);
    if (!json_is_integer(seed) || json_integer_value(seed) != r->config->run.seed)
        DLX_FAIL(error, CONFIG, "run.seed: %lld, and %lld in %s; a run goes on with its own seed",
                 (long long)r->config->run.seed, (long long)json_integer_value(seed), path);
    if (overlap == NULL || strcmp(overlap, now) != 0)
        DLX_FAIL(error, CONFIG,
                 "sync.overlap: '%s', and '%.20s' in %s; a run goes on with its own overlap", now,
                 overlap != NULL ? overlap : "none", path);
    return DLX_OK;
}

dlx_status dlxi_snapshots_resume(site_run *r, dlx_error *error) {
    const char *from = r->options->resume;
    char path[DLXI_PATH_BYTES], name[DLXI_TENSOR_NAME_MAX + 8], text[DLXI_PATH_BYTES + 32];
    int64_t numbers[DLXI_TRAIN_NUMBERS];
    if (r->ranks > 1)
        DLX_FAIL(error, CONFIG,
                 "--resume: a site of several ranks writes no snapshots, and can't go on from one");
    if (from[0] == '\0') {
        DLX_TRY(dlxi_path_join(path, r->directory, "snapshots", error));
        dlx_status status =
            dlxi_snapshot_open_newest(&r->snapshots.resumed, path, dlxi_run_say, r, error);
        if (status == DLX_SYSTEM && error->system_errno == ENOENT)
            DLX_FAIL(error, CONFIG, "--resume: there is no snapshot in '%.200s'", path);
        if (status != DLX_OK) return status;
    } else {
        DLX_TRY(dlxi_snapshot_open(&r->snapshots.resumed, from, error));
    }
    DLX_TRY(data_check(r, error));
    for (int64_t i = 0; i < r->parameter_count; i++)
        for (int which = 0; which < PARTS_PER_TENSOR; which++) {
            const dlxi_tensor *t = &r->parameters[i].tensor;
            float *data = tensor_part(r, i, which);
            if (data == NULL) continue;
            snprintf(name, sizeof name, "%s%s", t->name, suffixes[which]);
            DLX_TRY(part_read(r, name, DLX_PART_F32, t->rows, t->cols, data, error));
        }
    DLX_TRY(part_read(r, NUMBERS_NAME, DLX_PART_I64, 1, DLXI_TRAIN_NUMBERS, numbers, error));
    if (!numbers_unpack(r, numbers))
        DLX_FAIL(error, DATA, "%s: " NUMBERS_NAME ": what it says can't be",
                 dlxi_snapshot_path(r->snapshots.resumed));
    snprintf(text, sizeof text, "goes on from %s", dlxi_snapshot_path(r->snapshots.resumed));
    dlxi_run_say(r, text);
    return DLX_OK;
}
