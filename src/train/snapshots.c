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
#include "options/options.h"

static void say_failure(site_run *r, const dlx_error *error) {
    char text[sizeof error->message + 64];
    snprintf(text, sizeof text, "no snapshot of step %llu: %s",
             (unsigned long long)r->snapshots.step, error->message);
    dlxi_run_say(r, text);
}

static bool writes(const site_run *r) {
    return r->config->snapshots.keep > 0;
}

/* ---- the ranks of a site --------------------------------------------------------------------- */

/* Each rank writes its file, and the first one commits. All of them begin, complete and give up at
 * the same inner step. */

/* *texts[ranks] ← of each rank, in one block; free with free(). */
static dlx_status texts_gather(char ***texts, site_run *r, const char *own, dlx_error *error) {
    const size_t ranks = (size_t)r->ranks, size = strlen(own) + 1, *sizes = r->gathered;
    size_t most = 0;
    dlx_error none;
    DLX_TRY(dlxi_run_gather(r, r->gathered, &size, sizeof size, error));
    for (size_t i = 0; i < ranks; i++) most = sizes[i] > most ? sizes[i] : most;
    char *padded = calloc(1, most);
    *texts = calloc(1, ranks * (sizeof **texts + most));
    dlx_status status = DLX_OK;
    if (padded == NULL || *texts == NULL)
        status = dlxi_error_set(&none, DLX_MEMORY, "out of memory for a snapshot's manifest");
    status = dlxi_run_together(r, status, &none, error);
    if (status == DLX_OK) {
        memcpy(padded, own, size);
        for (size_t i = 0; i < ranks; i++) (*texts)[i] = (char *)(*texts + ranks) + i * most;
        status = dlxi_run_gather(r, (*texts)[0], padded, most, error);
    }
    free(padded);
    return status;
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

float *dlxi_snapshots_tensor_part(site_run *r, int64_t tensor, int which, char *name) {
    static const char *const suffixes[DLXI_SNAPSHOTS_TENSOR_PARTS] = {"", ".first", ".second"};
    float *first, *second;
    dlxi_optimizer_state(r->optimizer, tensor, &first, &second);
    snprintf(name, DLXI_SNAPSHOTS_NAME_BYTES, "%s%s", r->parameters[tensor].tensor.name,
             suffixes[which]);
    return which == 0 ? r->parameters[tensor].data : which == 1 ? first : second;
}

/* ---- writing --------------------------------------------------------------------------------- */

static json_t *meta_make(site_run *r) {
    const dlx_statistics st = dlxi_run_statistics(r);
    char data[20], *settings;
    if (dlxi_options_print_canonical(&settings, r->config, &dlxi_config_table, NULL) != DLX_OK)
        return NULL;
    snprintf(data, sizeof data, "%016llx", (unsigned long long)r->data_hash);
    json_t *meta = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:f, s:s, s:s, s:I, s:I}", "run_id", r->run_id, "site",
        r->options->site, "round", (json_int_t)st.rounds, "tokens", (json_int_t)st.committed_tokens,
        "tokens_target", (json_int_t)dlx_sync_tokens_target(r->sync), "weight", st.weight, "data",
        data, "settings", settings, "stages", (json_int_t)r->config->site.stages, "replicas",
        (json_int_t)r->config->site.replicas);
    free(settings);
    return meta;
}

static void on_hold(void *run) {
    site_run *r = run;
    if (r->snapshots.writer != NULL) dlxi_snapshot_wait(r->snapshots.writer, r->snapshots.parts);
}

/* `synced`: what dlx_sync_save gave. */
static dlx_status writer_begin(site_run *r, const dlx_part *synced, size_t synced_count,
                               dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    const size_t most = (size_t)r->parameter_count * DLXI_SNAPSHOTS_TENSOR_PARTS + 1 + synced_count;
    dlx_part *parts = NULL;
    char *names = NULL;
    dlx_status status = DLX_OK;
    size_t n = 0;
    DLX_TRY_OUT(DLXI_NEW(&parts, most, error));
    DLX_TRY_OUT(DLXI_NEW(&names, most * DLXI_SNAPSHOTS_NAME_BYTES, error));
    for (int64_t i = 0; i < r->parameter_count; i++)
        for (int which = 0; which < DLXI_SNAPSHOTS_TENSOR_PARTS; which++) {
            const dlxi_tensor *t = &r->parameters[i].tensor;
            char *name = names + n * DLXI_SNAPSHOTS_NAME_BYTES;
            float *data = dlxi_snapshots_tensor_part(r, i, which, name);
            if (data == NULL) continue;
            parts[n++] = (dlx_part){name, DLX_PART_F32, t->rows, t->cols, data};
        }
    numbers_pack(r, s->numbers);
    parts[n++] =
        (dlx_part){DLXI_SNAPSHOTS_NUMBERS, DLX_PART_I64, 1, DLXI_TRAIN_NUMBERS, s->numbers};
    s->own_parts = n;
    for (size_t k = 0; k < synced_count; k++)
        parts[n++] = (dlx_part){synced[k].name, synced[k].kind, synced[k].rows, synced[k].cols,
                                synced[k].data};
    s->parts = n;
    DLX_TRY_OUT(
        dlxi_snapshot_begin(&s->writer, s->directory, s->step, r->rank, r->ranks, parts, n, error));
out:
    free(parts);
    free(names);
    return status;
}

static dlx_status own_begin(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    const dlx_part *synced;
    size_t count;
    DLX_TRY(dlx_sync_save(r->sync, on_hold, r, &synced, &count, error));
    json_decref(s->meta); /* of one that did not begin */
    if ((s->meta = meta_make(r)) == NULL)
        DLX_FAIL(error, MEMORY, "out of memory for a snapshot's manifest");
    return writer_begin(r, synced, count, error);
}

/* DLX_AGAIN: an exchange is under way. */
static dlx_status begin(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    s->step = r->steps;
    dlx_error own;
    bool any, same;
    dlx_status status = own_begin(r, &own);
    const uint64_t rounds = dlxi_run_statistics(r).rounds;
    status = dlxi_run_together(r, status, &own, error);
    if (status == DLX_OK) status = dlxi_run_ask(&any, &same, r, false, rounds, error);
    if (status == DLX_OK && !same)
        status = dlxi_error_set(error, DLX_AGAIN, "the site's ranks are in different rounds");
    if (status != DLX_OK)
        dlxi_snapshot_close(&s->writer);
    else
        s->last_round = rounds;
    return status;
}

/* Of one that is complete. `seconds`: of work, without the time that it waited for the end of a
 * step. */
static void event_record(site_run *r, char *const *descriptions, double seconds) {
    const dlxi_snapshots *s = &r->snapshots;
    json_int_t bytes = 0; /* of the files of all ranks */
    for (int i = 0; i < r->ranks; i++) {
        json_t *file = json_loads(descriptions[i], 0, NULL);
        bytes += json_integer_value(json_object_get(file, "bytes"));
        json_decref(file);
    }
    dlxi_run_record(r, json_pack("{s:s, s:I, s:I, s:I, s:f}", "event", "snapshot", "step",
                                 (json_int_t)s->step, "round", (json_int_t)s->last_round, "bytes",
                                 bytes, "seconds", seconds));
}

/* The first rank's part; the others remove what is theirs, which may be on disks of their own. */
static dlx_status own_commit(site_run *r, char *const *descriptions, dlx_status written,
                             dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    if (written != DLX_OK) {
        (void)dlxi_snapshot_discard(s->directory, s->step, NULL);
        return DLX_OK;
    }
    if (r->rank != 0) return DLX_OK;
    const double begun_s = dlxi_clock_s();
    dlx_status status =
        dlxi_snapshot_commit(s->directory, s->step, (const char *const *)descriptions, r->ranks,
                             s->meta, (int)r->config->snapshots.keep, error);
    if (status == DLX_OK)
        event_record(r, descriptions, dlxi_snapshot_write_s(s->writer) + dlxi_clock_s() - begun_s);
    return status;
}

/* Blocks until it is durable. */
static dlx_status complete(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    char *description = NULL, **all = NULL;
    dlx_error own;
    dlx_status status = dlxi_snapshot_result(s->writer, &description, &own);
    status = dlxi_run_together(r, status, &own, error);
    if (status == DLX_OK) status = texts_gather(&all, r, description, error);
    dlx_status committed = own_commit(r, all, status, &own);
    committed = dlxi_run_together(r, committed, &own, status == DLX_OK ? error : NULL);
    if (status == DLX_OK && committed != DLX_OK)
        (void)own_commit(r, NULL, committed, NULL); /* of ranks that do not share the directory */
    free(all);
    free(description);
    dlxi_snapshot_close(&s->writer);
    json_decref(s->meta);
    s->meta = NULL;
    return status == DLX_OK ? committed : status;
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

/* Ranks hear of a commit at different times: the round is one that all of them have, and the first
 * one's time and last snapshot count. */
static bool is_due(site_run *r) {
    typedef struct judgement {
        uint64_t rounds, period, last;
    } judgement;
    const judgement *all = r->gathered;
    judgement own = {.rounds = dlxi_run_statistics(r).rounds, .last = r->snapshots.last_round};
    own.period = period(r, own.rounds);
    if (dlxi_run_gather(r, r->gathered, &own, sizeof own, NULL) != DLX_OK) return false;
    uint64_t rounds = all[0].rounds;
    for (int i = 1; i < r->ranks; i++) rounds = all[i].rounds < rounds ? all[i].rounds : rounds;
    return all[0].period > 0 && rounds % all[0].period == 0 && rounds > all[0].last;
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
        bool is_written = dlxi_snapshot_is_written(r->snapshots.writer), missing, same;
        if (dlxi_run_ask(&missing, &same, r, !is_written, 0, NULL) != DLX_OK || missing) return;
        status = complete(r, &error);
    } else if (is_due(r)) {
        status = begin(r, &error);
        if (status == DLX_AGAIN || status == DLX_STATE) return;
    }
    if (status != DLX_OK) say_failure(r, &error);
}

/* mpirun kills its ranks a second after it told them to end: enough for weights and summary. */
static bool is_told_by_mpirun(const site_run *r) {
    return r->options->cluster != NULL && r->options->interrupted != NULL &&
           *r->options->interrupted != 0;
}

bool dlxi_snapshots_last(site_run *r) {
    dlxi_snapshots *s = &r->snapshots;
    dlx_error error;
    char text[DLXI_PATH_BYTES + 64];
    bool hurries, same;
    if (!writes(r) || s->directory[0] == '\0') return false;
    dlx_status status = dlxi_run_ask(&hurries, &same, r, is_told_by_mpirun(r), 0, &error);
    if (status != DLX_OK || hurries) return false;
    if (s->writer != NULL) status = complete(r, &error);
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
    dlxi_snapshots_close_opened(r);
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
    dlxi_snapshots_close_opened(r);
    s->begun_s = dlxi_clock_s();
    s->first_round = s->last_round = dlxi_run_statistics(r).rounds;
    if (!writes(r)) return DLX_OK;
    DLX_TRY(dlxi_path_join(s->directory, r->directory, "snapshots", error));
    if (r->rank != 0) return DLX_OK;
    dlx_status status = dlxi_snapshot_tidy(s->directory, error);
    if (status != DLX_OK) return error->system_errno == ENOENT ? DLX_OK : status;
    return r->steps > 0 ? later_put_aside(r, error) : DLX_OK;
}
