/* SPDX-License-Identifier: Apache-2.0 */
/* A site goes on from a snapshot: its own, or, if it is new in the run, another site's. Ranks find
 * their tensors by name, so the snapshot may be of another number of ranks. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "checkpoint/manifest.h"
#include "options/options.h"
#include "train/snapshots.h"

#define ERROR_ENDING ".error"

/* ---- which snapshot -------------------------------------------------------------------------- */

static const char *meta_text(const dlxi_snapshot *s, const char *key) {
    const char *text = json_string_value(json_object_get(dlxi_snapshot_meta(s), key));
    return text != NULL ? text : "";
}

static json_int_t meta_integer(const dlxi_snapshot *s, const char *key) {
    return json_integer_value(json_object_get(dlxi_snapshot_meta(s), key));
}

/* path ← the next entry of a list with commas. False: there is none. */
static bool list_next(char path[DLXI_PATH_BYTES], const char **list) {
    if (*list == NULL || **list == '\0') return false;
    size_t length = strcspn(*list, ",");
    snprintf(path, DLXI_PATH_BYTES, "%.*s", (int)length, *list);
    *list += length + ((*list)[length] == ',');
    return true;
}

/* The snapshots of the other sites in the same run.dir that go on: of one machine, or that share
 * it. */
typedef struct directories {
    char (*directory)[DLXI_PATH_BYTES];
    size_t count;
} directories;

static bool has_snapshots(char path[DLXI_PATH_BYTES], const site_run *r, const char *site) {
    char other[DLXI_PATH_BYTES];
    const char *gone = r->options->take_unsent;
    uint64_t *steps = NULL;
    size_t count = 0;
    if (dlxi_folder_misnames(site) != NULL || strcmp(site, r->options->site) == 0 ||
        dlxi_path_join(other, r->config->run.dir, site, NULL) != DLX_OK ||
        dlxi_path_join(path, other, "snapshots", NULL) != DLX_OK ||
        dlxi_snapshot_list(&steps, &count, path, NULL) != DLX_OK)
        return false;
    while (list_next(other, &gone))
        if (dlxi_file_same(other, path)) count = 0;
    free(steps);
    return count > 0;
}

static dlx_status others_find(directories *out, const site_run *r, dlx_error *error) {
    dlx_status status = DLX_OK;
    struct dirent **entry = NULL;
    int count = scandir(r->config->run.dir, &entry, NULL, alphasort);
    *out = (directories){0};
    if (count <= 0) return DLX_OK;
    DLX_TRY_OUT(DLXI_NEW(&out->directory, count, error));
    for (int i = 0; i < count; i++)
        out->count += has_snapshots(out->directory[out->count], r, entry[i]->d_name);
out:
    for (int i = 0; i < count; i++) free(entry[i]);
    free(entry);
    return status;
}

typedef struct search {
    site_run *r;
    const char *directory;
    const char *run_id; /* only of this run, and of this round; NULL: any */
    json_int_t round;
    uint64_t *steps; /* [count], newest first; free with free() */
    size_t count, at;
    bool found_run;
    bool is_silent; /* about what is damaged */
} search;

static dlx_status search_begin(search *s, dlx_error *error) {
    return dlxi_snapshot_list(&s->steps, &s->count, s->directory, error);
}

static bool is_sought(search *s, const dlxi_snapshot *snapshot) {
    if (s->run_id == NULL) return true;
    bool same_run = strcmp(meta_text(snapshot, "run_id"), s->run_id) == 0;
    s->found_run = s->found_run || same_run;
    return same_run && meta_integer(snapshot, "round") == s->round;
}

/* *out ← the next one that is whole, or NULL behind the last. */
static dlx_status search_next(search *s, dlxi_snapshot **out, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    dlx_error why;
    *out = NULL;
    while (s->at < s->count) {
        DLX_TRY(dlxi_snapshot_step_path(path, s->directory, s->steps[s->at++], "", error));
        dlx_status status = dlxi_snapshot_open(out, path, &why);
        bool sought = status == DLX_OK && is_sought(s, *out);
        if (sought) status = dlxi_snapshot_verify(*out, &why);
        if (sought && status == DLX_OK) return DLX_OK;
        dlxi_snapshot_close_opened(out);
        if (status != DLX_OK && !s->is_silent) dlxi_run_say(s->r, why.message);
    }
    return DLX_OK;
}

/* Whether all other sites in run.dir that have snapshots of this run have one of its round. */
static dlx_status is_common(bool *out, site_run *r, const directories *others,
                            const dlxi_snapshot *snapshot, dlx_error *error) {
    *out = true;
    for (size_t i = 0; i < others->count && *out; i++) {
        dlxi_snapshot *same = NULL;
        search s = {.r = r,
                    .directory = others->directory[i],
                    .run_id = meta_text(snapshot, "run_id"),
                    .round = meta_integer(snapshot, "round"),
                    .is_silent = true}; /* they say it themselves; or they live, and remove one */
        dlx_status status = search_begin(&s, error);
        if (status == DLX_OK) status = search_next(&s, &same, error);
        *out = same != NULL || !s.found_run;
        dlxi_snapshot_close_opened(&same);
        free(s.steps);
        if (status != DLX_OK) return status;
    }
    return DLX_OK;
}

/* *out ← of a directory of snapshots the newest one of a round that the others in run.dir have too,
 * or else the newest one. */
static dlx_status newest_open(dlxi_snapshot **out, site_run *r, const char *directory,
                              const directories *others, dlx_error *error) {
    dlxi_snapshot *next = NULL, *newest = NULL;
    bool common = false;
    search s = {.r = r, .directory = directory};
    dlx_status status = search_begin(&s, error);
    while (status == DLX_OK) {
        status = search_next(&s, &next, error);
        if (status != DLX_OK || next == NULL) break;
        status = is_common(&common, r, others, next, error);
        if (common) break;
        if (newest == NULL)
            newest = next;
        else
            dlxi_snapshot_close_opened(&next);
        next = NULL;
    }
    dlxi_snapshot **found = common ? &next : &newest;
    if (status == DLX_OK && *found == NULL)
        status = dlxi_error_set(error, DLX_DATA, "--resume: no snapshot in '%.200s' is whole",
                                directory);
    if (status == DLX_OK) *out = *found, *found = NULL;
    dlxi_snapshot_close_opened(&next);
    dlxi_snapshot_close_opened(&newest);
    free(s.steps);
    return status;
}

/* path ← where `from`, --resume's argument, has snapshots; *single: it is one itself. */
static dlx_status place_find(char path[DLXI_PATH_BYTES], bool *single, const site_run *r,
                             const directories *others, const char *from, dlx_error *error) {
    uint64_t *steps = NULL;
    size_t count = 0;
    *single = false;
    if (from[0] == '\0')
        DLX_TRY(dlxi_path_join(path, r->directory, "snapshots", error));
    else
        dlxi_text_copy(path, DLXI_PATH_BYTES, from);
    dlx_status status = dlxi_snapshot_list(&steps, &count, path, error);
    free(steps);
    if (count > 0) return DLX_OK;
    *single = from[0] != '\0';
    if (*single) return DLX_OK;
    if (status != DLX_OK && error->system_errno != ENOENT) return status;
    if (others->count == 0)
        DLX_FAIL(error, CONFIG, "--resume: there is no snapshot in '%.200s'", path);
    dlxi_text_copy(path, DLXI_PATH_BYTES, others->directory[0]); /* a new site */
    return DLX_OK;
}

static dlx_status choose(site_run *r, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    const char *from = r->options->resume;
    bool single;
    directories others = {0};
    dlx_status status = DLX_OK;
    if (from[0] == '\0') status = others_find(&others, r, error);
    if (status == DLX_OK) status = place_find(path, &single, r, &others, from, error);
    if (status == DLX_OK)
        status = single ? dlxi_snapshot_open(&r->snapshots.resumed, path, error)
                        : newest_open(&r->snapshots.resumed, r, path, &others, error);
    free(others.directory);
    return status;
}

/* The first rank chooses for all. */
static dlx_status choose_together(site_run *r, dlx_error *error) {
    char own[DLXI_PATH_BYTES] = "", *all = NULL;
    dlx_error why;
    dlx_status status = r->rank == 0 ? choose(r, &why) : DLX_OK;
    if (status == DLX_OK && r->rank == 0)
        dlxi_text_copy(own, sizeof own, dlxi_snapshot_path(r->snapshots.resumed));
    DLX_TRY(dlxi_run_together(r, status, &why, error));
    DLX_TRY(DLXI_NEW(&all, (size_t)r->ranks * sizeof own, error));
    status = dlxi_run_gather(r, all, own, sizeof own, error);
    if (status == DLX_OK && r->rank != 0)
        status = dlxi_snapshot_open(&r->snapshots.resumed, all, error);
    free(all);
    return status;
}

/* ---- what sites that do not go on had not sent ----------------------------------------------- */

static dlx_status unsent_open(site_run *r, const char *path, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    dlxi_snapshot **out = &s->unsent[s->unsent_count];
    char text[400];
    search all = {.r = r,
                  .directory = path,
                  .run_id = meta_text(s->resumed, "run_id"),
                  .round = meta_integer(s->resumed, "round")};
    dlx_status status = search_begin(&all, error);
    if (status == DLX_OK && all.count > 0)
        status = search_next(&all, out, error);
    else
        status = dlxi_snapshot_open(out, path, error);
    free(all.steps);
    if (status != DLX_OK) return status;
    if (*out != NULL && is_sought(&all, *out)) {
        s->unsent_count++;
        return DLX_OK;
    }
    snprintf(text, sizeof text,
             "nothing is taken of '%.200s': it has no snapshot of this run after round %lld", path,
             (long long)all.round);
    dlxi_run_say(r, text);
    dlxi_snapshot_close_opened(out);
    return DLX_OK;
}

static dlx_status unsent_open_all(site_run *r, dlx_error *error) {
    const char *list = r->options->take_unsent;
    char path[DLXI_PATH_BYTES];
    size_t count = 1;
    if (list == NULL) return DLX_OK;
    for (const char *c = list; *c != '\0'; c++) count += *c == ',';
    DLX_TRY(DLXI_NEW(&r->snapshots.unsent, count, error));
    while (list_next(path, &list)) DLX_TRY(unsent_open(r, path, error));
    return DLX_OK;
}

/* e ← e + w e' of the sites that do not go on: w is what e' would have counted in the mean. */
static dlx_status unsent_add(site_run *r, const dlx_part *part, const char *name,
                             dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    const size_t values = (size_t)(part->rows * part->cols);
    float *own = part->data, *more = NULL;
    dlx_status status = DLX_OK;
    if (s->unsent_count == 0) return DLX_OK;
    DLX_TRY(DLXI_NEW(&more, values, error));
    for (size_t i = 0; i < s->unsent_count && status == DLX_OK; i++) {
        const double w =
            json_number_value(json_object_get(dlxi_snapshot_meta(s->unsent[i]), "weight"));
        const dlxi_snapshot_part *p = dlxi_snapshot_find(s->unsent[i], name, -1);
        /* an exchange was under way: its M cannot be told from it */
        if (p == NULL || p->kind != DLX_PART_F32 || p->rows != part->rows || p->cols != part->cols)
            continue;
        status = dlxi_snapshot_read(s->unsent[i], more, p, error);
        for (size_t k = 0; k < values; k++) own[k] += (float)w * more[k];
    }
    free(more);
    return status;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* Parts of a rank have the same names on all ranks; those of a tensor one rank has. */
static dlx_status part_read(site_run *r, const char *name, dlx_part_kind kind, int64_t rows,
                            int64_t cols, void *dst, dlx_error *error) {
    dlxi_snapshot *snapshot = r->snapshots.resumed;
    int rank = r->snapshots.same_layout ? r->rank : -1;
    const dlxi_snapshot_part *part = dlxi_snapshot_find(snapshot, name, rank);
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

static bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), of_ending = strlen(ending);
    return length >= of_ending && strcmp(text + length - of_ending, ending) == 0;
}

dlx_status dlxi_snapshots_restore(void *run, const dlx_part *part, dlx_error *error) {
    site_run *r = run;
    char name[DLXI_SNAPSHOT_NAME_MAX + 1];
    size_t stem = strlen(part->name);
    const char *submitted = ".submitted";
    bool is_error = ends_with(part->name, ERROR_ENDING);
    if (is_error && r->snapshots.is_another)
        memset(part->data, 0, (size_t)(part->rows * part->cols) * sizeof(float));
    else
        DLX_TRY(part_read(r, part->name, part->kind, part->rows, part->cols, part->data, error));
    if (is_error) return unsent_add(r, part, part->name, error);
    if (!ends_with(part->name, submitted)) return DLX_OK;
    stem -= strlen(submitted);
    snprintf(name, sizeof name, "%.*s" ERROR_ENDING, (int)stem, part->name);
    return unsent_add(r, part, name, error);
}

/* ---- the trainer's numbers ------------------------------------------------------------------- */

static bool numbers_unpack(site_run *r, const int64_t at[DLXI_TRAIN_NUMBERS]) {
    double reals[6];
    memcpy(reals, at + 6, sizeof reals);
    for (int i = 0; i < 6; i++)
        if (at[i] < (i < 2 ? 1 : 0) || !(reals[i] >= 0 && reals[i] <= 1e18)) return false;
    if (at[3] < 1 || at[3] > DLXI_SITES_MAX) return false;
    r->steps = (uint64_t)at[0];
    *dlxi_optimizer_steps(r->optimizer) = at[1];
    r->sites = (uint32_t)at[3];
    r->trained_s = reals[3];
    if (r->snapshots.is_another) return true; /* the rest is what that site did */
    r->exchange_rounds = (uint64_t)at[2];
    r->val_loss_initial_sum = reals[0];
    r->val_tokens_initial = reals[1];
    r->exchange_steps = reals[2];
    r->compute_s = reals[4];
    r->wait_s = reals[5];
    return true;
}

/* Sent and received are of ranks. Where those are others, they are all the first one's. */
static dlx_status bytes_restore(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    int64_t numbers[DLXI_TRAIN_NUMBERS];
    if (s->is_another) return DLX_OK;
    for (int rank = 0; rank < dlxi_snapshot_ranks(s->resumed); rank++) {
        if (s->same_layout ? rank != r->rank : r->rank != 0) continue;
        const dlxi_snapshot_part *part =
            dlxi_snapshot_find(s->resumed, DLXI_SNAPSHOTS_NUMBERS, rank);
        if (part == NULL || part->bytes != sizeof numbers || part->kind != DLX_PART_I64) continue;
        DLX_TRY(dlxi_snapshot_read(s->resumed, numbers, part, error));
        r->sent_before += (uint64_t)numbers[4];
        r->received_before += (uint64_t)numbers[5];
    }
    return DLX_OK;
}

static dlx_status numbers_restore(site_run *r, dlx_error *error) {
    int64_t numbers[DLXI_TRAIN_NUMBERS];
    DLX_TRY(
        part_read(r, DLXI_SNAPSHOTS_NUMBERS, DLX_PART_I64, 1, DLXI_TRAIN_NUMBERS, numbers, error));
    if (!numbers_unpack(r, numbers))
        DLX_FAIL(error, DATA, "%s: " DLXI_SNAPSHOTS_NUMBERS ": what it says can't be",
                 dlxi_snapshot_path(r->snapshots.resumed));
    return bytes_restore(r, error);
}

/* ---- resume ---------------------------------------------------------------------------------- */

/* Of the model, of the order of windows, or of what the saved state is for. */
static bool must_stay(const char *key) {
    static const char *const keys[] = {"model.", "run.seed", "sync.overlap", "train.optimizer"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strncmp(key, keys[i], strlen(keys[i])) == 0) return true;
    return false;
}

/* Refuses what can't change, and says what has. */
static dlx_status settings_compare(site_run *r, const char *before, const char *now,
                                   dlx_error *error) {
    dlxi_option_difference d;
    char text[1024] = "";
    size_t used = 0;
    while (dlxi_options_canonical_next(&d, &now, before)) {
        if (must_stay(d.key))
            DLX_FAIL(error, CONFIG,
                     "%s: %s, and %s in %.200s; a run goes on with its own model, data order, "
                     "overlap and optimizer",
                     d.key, d.ours, d.theirs, dlxi_snapshot_path(r->snapshots.resumed));
        if (used < sizeof text)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s %s (was %s)",
                                     used > 0 ? ", " : "other settings: ", d.key, d.ours, d.theirs);
    }
    if (used > 0) dlxi_run_say(r, text);
    return DLX_OK;
}

static dlx_status settings_check(site_run *r, dlx_error *error) {
    const char *data = meta_text(r->snapshots.resumed, "data");
    char own[20], *settings;
    snprintf(own, sizeof own, "%016llx", (unsigned long long)r->data_hash);
    if (strcmp(data, own) != 0)
        DLX_FAIL(error, CONFIG,
                 "data.train: the run of %s has other tokens (hash %.20s, here %s); a run goes on "
                 "with its own data",
                 dlxi_snapshot_path(r->snapshots.resumed), data, own);
    DLX_TRY(dlxi_options_print_canonical(&settings, r->config, &dlxi_config_table, error));
    dlx_status status =
        settings_compare(r, meta_text(r->snapshots.resumed, "settings"), settings, error);
    free(settings);
    return status;
}

static void origin_say(site_run *r) {
    const dlxi_snapshots *s = &r->snapshots;
    char text[DLXI_PATH_BYTES + 160];
    snprintf(text, sizeof text, "goes on from %s%s", dlxi_snapshot_path(s->resumed),
             s->is_another ? ", of another site: as a new one" : "");
    dlxi_run_say(r, text);
    for (size_t i = 0; i < s->unsent_count; i++) {
        snprintf(text, sizeof text, "takes what site '%.63s' had not sent",
                 meta_text(s->unsent[i], "site"));
        dlxi_run_say(r, text);
    }
}

dlx_status dlxi_snapshots_resume(site_run *r, dlx_error *error) {
    dlxi_snapshots *s = &r->snapshots;
    char name[DLXI_SNAPSHOTS_NAME_BYTES];
    DLX_TRY(choose_together(r, error));
    DLX_TRY(dlxi_folder_check_unused(r->config->run.dir,
                                     strtoull(meta_text(s->resumed, "run_id"), NULL, 16), error));
    s->is_another = strcmp(meta_text(s->resumed, "site"), r->options->site) != 0;
    s->same_layout = dlxi_snapshot_ranks(s->resumed) == r->ranks &&
                     meta_integer(s->resumed, "stages") == r->config->site.stages &&
                     meta_integer(s->resumed, "replicas") == r->config->site.replicas;
    DLX_TRY(settings_check(r, error));
    DLX_TRY(unsent_open_all(r, error));
    for (int64_t i = 0; i < r->parameter_count; i++)
        for (int which = 0; which < DLXI_SNAPSHOTS_TENSOR_PARTS; which++) {
            const dlxi_tensor *t = &r->parameters[i].tensor;
            float *data = dlxi_snapshots_tensor_part(r, i, which, name);
            if (data != NULL)
                DLX_TRY(part_read(r, name, DLX_PART_F32, t->rows, t->cols, data, error));
        }
    DLX_TRY(numbers_restore(r, error));
    origin_say(r);
    return DLX_OK;
}

void dlxi_snapshots_close_opened(site_run *r) {
    dlxi_snapshots *s = &r->snapshots;
    dlxi_snapshot_close_opened(&s->resumed);
    for (size_t i = 0; i < s->unsent_count; i++) dlxi_snapshot_close_opened(&s->unsent[i]);
    free(s->unsent);
    s->unsent = NULL;
    s->unsent_count = 0;
}
