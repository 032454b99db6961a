/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's process: collects the sites' summaries and writes the run's; and keeps the run
 * in run.dir/coordinator.db while it is not over. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "train/folder.h"
#include "train/results.h"
#include "train/run.h"

enum { EARLY_MAX = 256 };

typedef struct collected {
    const dlx_coordinate_options *options;
    const char *run_dir;
    const dlx_coordinator *coordinator; /* NULL until it is open */
    json_t *sites, *dropped;
    dlxi_metrics *metrics; /* NULL until run.dir is this run's */
    json_t *early;         /* its first notices, until then */
    uint64_t run_id;       /* once it has begun */
    char aside
        [DLXI_PATH_BYTES]; /* where a store is that snapshots come before; "": none was there */
    dlxi_folder folder;
} collected;

static void on_report(void *context, const char *site, const char *text) {
    collected *c = context;
    json_t *summary = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    if (summary == NULL || !json_is_object(summary)) { /* a peer's text may be anything */
        json_decref(summary);
        summary = json_object();
    }
    json_object_set_new(summary, "site", json_string(site));
    json_array_append_new(c->sites, summary);
}

static void on_drop(void *context, const char *site, uint64_t round, const char *why) {
    collected *c = context;
    json_array_append_new(c->dropped, json_pack("{s:s, s:I, s:s}", "site", site, "round",
                                                (json_int_t)round, "why", why));
}

/* A line that can't be written ends nothing: the store says so, if the disk is full. */
static void notice_keep(collected *c, const char *text) {
    dlx_coordinator_statistics st = DLX_COORDINATOR_STATISTICS_INIT;
    if (c->coordinator != NULL) (void)dlx_coordinator_statistics_of(c->coordinator, &st, NULL);
    json_t *line = dlxi_notice_make(text, st.round);
    if (c->metrics != NULL)
        (void)dlxi_metrics_write(c->metrics, line, NULL);
    else if (json_array_size(c->early) < EARLY_MAX)
        json_array_append_new(c->early, line);
    else
        json_decref(line);
}

static void on_log(void *context, const char *line) {
    collected *c = context;
    dlx_event event = {
        .size = sizeof event, .kind = DLX_EVENT_MESSAGE, .site = "coordinator", .text = line};
    if (c->options->on_event != NULL) c->options->on_event(c->options->context, &event);
    notice_keep(c, line);
}

/* Behind those of the coordinator's earlier lives. */
static dlx_status notices_begin(collected *c, dlx_error *error) {
    char path[DLXI_PATH_BYTES];
    size_t i;
    json_t *line;
    DLX_TRY(dlxi_path_join(path, c->run_dir, "metrics.jsonl", error));
    DLX_TRY(dlxi_metrics_open(&c->metrics, path, true, error));
    json_array_foreach(c->early, i, line)
        DLX_TRY(dlxi_metrics_write(c->metrics, json_incref(line), error));
    return DLX_OK;
}

static dlx_status on_begin(void *context, dlx_error *error) {
    collected *c = context;
    c->run_id = dlx_coordinator_run_id(c->coordinator);
    dlx_status status =
        dlxi_folder_enter(&c->folder, c->run_dir, "the coordinator", c->run_id, on_log, c, error);
    if (status == DLX_OK) status = notices_begin(c, error);
    if (status != DLX_OK) dlxi_error_prefix(error, "the coordinator's "); /* sites get it, too */
    return status;
}

static dlx_status store_put_aside(collected *c, const char *store, dlx_error *error) {
    char text[DLXI_PATH_BYTES + 80];
    DLX_TRY(dlxi_folder_check_unused(c->run_dir, 0, error));
    DLX_TRY(dlxi_folder_store_put_aside(c->aside, store, error));
    snprintf(text, sizeof text, "the sites' snapshots count; the store of before is kept as %s",
             c->aside);
    on_log(c, text);
    return DLX_OK;
}

/* Opens the coordinator, with a store unless the sites end with this process, and checks that no
 * other run than its own uses run.dir. */
static dlx_status coordinator_open(dlx_coordinator **out, char store[DLXI_PATH_BYTES],
                                   const dlx_coordinator_config *settings, collected *c,
                                   dlx_error *error) {
    bool found, stored = c->options->hub == NULL && !c->options->unstored;
    DLX_TRY(dlxi_folder_check_writable(c->run_dir, NULL, error));
    DLX_TRY(dlxi_folder_store(store, &found, c->run_dir, error));
    if (c->options->takeover_without != NULL) { /* its sites may be here; it is not known yet */
        if (!stored)
            DLX_FAIL(error, CONFIG, "a takeover needs a store, and sites that are processes");
        return dlx_coordinator_open_takeover(out, settings, store, c->options->takeover_without,
                                             error);
    }
    if (found && stored && c->options->resumes) {
        DLX_TRY(store_put_aside(c, store, error));
        found = false;
    }
    if (!found || !stored) DLX_TRY(dlxi_folder_check_unused(c->run_dir, 0, error));
    if (found && !stored)
        DLX_FAIL(error, CONFIG,
                 "run.dir: '%.100s' has a run that is not over (coordinator.db): go on with it "
                 "with 'dilocox coordinator', or move that file away to begin another run, or set "
                 "another run.dir",
                 c->run_dir);
    if (!stored) {
        store[0] = '\0';
        return dlx_coordinator_open(out, settings, error);
    }
    DLX_TRY(dlx_coordinator_open_stored(out, settings, store, error));
    return dlxi_folder_check_unused(c->run_dir, dlx_coordinator_run_id(*out), error);
}

/* What a run went through: attempts, recoveries, and each site's absences. */
static json_t *membership_of(const dlx_coordinator *coordinator) {
    dlx_coordinator_statistics st = DLX_COORDINATOR_STATISTICS_INIT;
    dlx_site_statistics site = DLX_SITE_STATISTICS_INIT;
    json_t *sites = json_array();
    (void)dlx_coordinator_statistics_of(coordinator, &st, NULL); /* no argument is wrong */
    for (uint32_t i = 0; dlx_coordinator_site_statistics(coordinator, i, &site, NULL) == DLX_OK;
         i++)
        json_array_append_new(sites, json_pack("{s:s, s:I, s:I, s:I, s:f}", "site", site.site,
                                               "rounds", (json_int_t)site.rounds, "left_out",
                                               (json_int_t)site.left_out, "away",
                                               (json_int_t)site.away, "away_s", site.away_s));
    return json_pack("{s:I, s:{s:I, s:I, s:I, s:I}, s:{s:I, s:f, s:f}, s:o}", "attempts",
                     (json_int_t)st.attempts, "failed", "stalled", (json_int_t)st.stalled, "broken",
                     (json_int_t)st.broken, "differing", (json_int_t)st.differing, "member_lost",
                     (json_int_t)st.member_lost, "recoveries", "count", (json_int_t)st.recoveries,
                     "mean_s", st.recovery_s_mean, "max_s", st.recovery_s_max, "sites", sites);
}

/* The last line says why it ended. */
static dlx_status coordinator_run(dlx_coordinator *coordinator, collected *c, dlx_error *error) {
    dlx_error why = {.message = ""};
    dlx_status status = dlx_coordinator_run(coordinator, &why);
    notice_keep(c, status == DLX_OK ? "the run is complete" : why.message);
    if (status != DLX_OK && error != NULL) *error = why;
    return status;
}

dlx_status dlxi_coordinate(const dlxi_config *config, const dlx_coordinate_options *options,
                           dlx_error *error) {
    dlx_status status = DLX_OK;
    dlx_coordinator *coordinator = NULL;
    collected c = {.options = options,
                   .run_dir = config->run.dir,
                   .sites = json_array(),
                   .dropped = json_array(),
                   .early = json_array(),
                   .folder = DLXI_FOLDER_NONE};
    dlx_coordinator_config settings = config->coordinator;
    char listen[128], path[DLXI_PATH_BYTES], store[DLXI_PATH_BYTES] = "", run_id[DLXI_RUN_ID_BYTES],
                                             *shared_text = NULL;
    json_t *merged = NULL, *membership = NULL;
    DLX_TRY_OUT(dlxi_config_check(config, error));
    DLX_TRY_OUT(dlxi_config_check_coordinator(config, options->coordinator, error));
    DLX_TRY_OUT(dlxi_config_link(&settings.link, listen, config, options->coordinator, options->hub,
                                 0, error));
    if (!options->own_loops)
        DLX_TRY_OUT(dlxi_options_print_canonical(&shared_text, config, &dlxi_config_table, error));
    settings.sites = options->sites;
    settings.tokens = (uint64_t)config->train.tokens;
    settings.shared_text = shared_text;
    settings.timeout_ms = config->sync.timeout_ms;
    settings.join_ms = config->sync.join_ms;
    settings.log = on_log;
    settings.log_context = &c;
    settings.on_report = on_report;
    settings.report_context = &c;
    settings.interrupted = options->interrupted;
    DLX_TRY_OUT(dlxi_outputs_check(config, config->run.dir, error));
    DLX_TRY_OUT(dlxi_path_join(path, config->run.dir, "summary.json", error));
    DLX_TRY_OUT(coordinator_open(&coordinator, store, &settings, &c, error));
    c.coordinator = coordinator;
    dlx_coordinator_on_begin(coordinator, on_begin, &c);
    dlx_coordinator_on_drop(coordinator, on_drop, &c);
    dlx_coordinator_release_when(coordinator, options->released);
    if (options->on_listening != NULL)
        options->on_listening(options->context, dlx_coordinator_endpoint(coordinator));
    DLX_TRY_OUT(coordinator_run(coordinator, &c, error));
    dlxi_run_id_show(run_id, dlx_coordinator_run_id(coordinator));
    membership = membership_of(coordinator);
    merged = dlxi_summary_merge(c.sites, c.dropped, membership, run_id);
    DLX_TRY_OUT(dlxi_summary_write(path, merged, error));
out:
    /* after the summary: until then a coordinator that is started again writes it */
    if (dlx_coordinator_is_over(coordinator)) dlxi_folder_store_remove(store);
    dlx_coordinator_close(&coordinator);
    if (c.aside[0] != '\0' && c.run_id == 0) dlxi_folder_store_put_back(c.aside, store);
    dlxi_folder_leave(&c.folder);
    json_decref(merged);
    json_decref(membership);
    json_decref(c.sites);
    json_decref(c.dropped);
    json_decref(c.early);
    dlxi_metrics_close(&c.metrics);
    free(shared_text);
    return status;
}
