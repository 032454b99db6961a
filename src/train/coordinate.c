/* SPDX-License-Identifier: Apache-2.0 */
/* The coordinator's process: collects the sites' summaries and writes the run's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "train/results.h"
#include "train/run.h"

typedef struct collected {
    const dlx_coordinate_options *options;
    json_t *sites;
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

static void on_log(void *context, const char *line) {
    collected *c = context;
    dlx_event event = {
        .size = sizeof event, .kind = DLX_EVENT_MESSAGE, .site = "coordinator", .text = line};
    if (c->options->on_event != NULL) c->options->on_event(c->options->context, &event);
}

dlx_status dlxi_coordinate(const dlxi_config *config, const dlx_coordinate_options *options,
                           dlx_error *error) {
    dlx_status status = DLX_OK;
    dlx_coordinator *coordinator = NULL;
    collected c = {.options = options, .sites = json_array()};
    dlx_coordinator_config settings = config->coordinator;
    char listen[128], path[DLXI_PATH_BYTES], *shared_text = NULL;
    json_t *merged = NULL;
    DLX_TRY_OUT(dlxi_config_check(config, error));
    DLX_TRY_OUT(dlxi_config_link(&settings.link, listen, config, options->coordinator, options->hub,
                                 0, error));
    DLX_TRY_OUT(dlxi_options_print_canonical(&shared_text, config, &dlxi_config_table, error));
    settings.sites = options->sites;
    settings.tokens = (uint64_t)config->train.tokens;
    settings.shared_text = shared_text;
    settings.timeout_ms = config->sync.timeout_ms;
    settings.log = on_log;
    settings.log_context = &c;
    settings.on_report = on_report;
    settings.report_context = &c;
    settings.interrupted = options->interrupted;
    DLX_TRY_OUT(dlxi_outputs_check(config, config->run.dir, error));
    DLX_TRY_OUT(dlxi_directory_make(config->run.dir, error));
    DLX_TRY_OUT(dlxi_path_join(path, config->run.dir, "summary.json", error));
    (void)remove(path); /* of an earlier run */
    DLX_TRY_OUT(dlx_coordinator_open(&coordinator, &settings, error));
    if (options->on_listening != NULL)
        options->on_listening(options->context, dlx_coordinator_endpoint(coordinator));
    DLX_TRY_OUT(dlx_coordinator_run(coordinator, error));
    merged = dlxi_summary_merge(c.sites);
    DLX_TRY_OUT(dlxi_summary_write(path, merged, error));
out:
    dlx_coordinator_close(&coordinator);
    json_decref(merged);
    json_decref(c.sites);
    free(shared_text);
    return status;
}
