/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's process: collects the sites' summaries and writes the run's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "train/folder.h"
#include "train/results.h"
#include "train/run.h"

typedef struct collected {
    const dlx_coordinate_options *options;
    const char *run_dir;
    json_t *sites, *dropped;
    uint64_t run_id;
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

static void on_log(void *context, const char *line) {
    collected *c = context;
    dlx_event event = {
        .size = sizeof event, .kind = DLX_EVENT_MESSAGE, .site = "coordinator", .text = line};
    if (c->options->on_event != NULL) c->options->on_event(c->options->context, &event);
}

static dlx_status on_begin(void *context, dlx_error *error) {
    collected *c = context;
    dlx_status status =
        dlxi_folder_enter(&c->folder, c->run_dir, "the coordinator", c->run_id, on_log, c, error);
    if (status != DLX_OK) dlxi_error_prefix(error, "the coordinator's "); /* sites get it, too */
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
                   .folder = DLXI_FOLDER_NONE};
    dlx_coordinator_config settings = config->coordinator;
    char listen[128], path[DLXI_PATH_BYTES], run_id[DLXI_RUN_ID_BYTES], *shared_text = NULL;
    json_t *merged = NULL;
    DLX_TRY_OUT(dlxi_config_check(config, error));
    DLX_TRY_OUT(dlxi_config_check_coordinator(config, options->coordinator, error));
    DLX_TRY_OUT(dlxi_config_link(&settings.link, listen, config, options->coordinator, options->hub,
                                 0, error));
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
    DLX_TRY_OUT(dlxi_folder_check(config->run.dir, NULL, error));
    DLX_TRY_OUT(dlx_coordinator_open(&coordinator, &settings, error));
    c.run_id = dlx_coordinator_run_id(coordinator);
    dlxi_run_id_show(run_id, c.run_id);
    dlx_coordinator_on_begin(coordinator, on_begin, &c);
    dlx_coordinator_on_drop(coordinator, on_drop, &c);
    if (options->on_listening != NULL)
        options->on_listening(options->context, dlx_coordinator_endpoint(coordinator));
    DLX_TRY_OUT(dlx_coordinator_run(coordinator, error));
    merged = dlxi_summary_merge(c.sites, c.dropped, run_id);
    DLX_TRY_OUT(dlxi_summary_write(path, merged, error));
out:
    dlx_coordinator_close(&coordinator);
    dlxi_folder_leave(&c.folder);
    json_decref(merged);
    json_decref(c.sites);
    json_decref(c.dropped);
    free(shared_text);
    return status;
}
