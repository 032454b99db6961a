/* SPDX-License-Identifier: Apache-2.0 */
#include "api/link_config.h"

#include <string.h>

typedef struct opener {
    const char *word;
    dlx_status (*site)(dlxi_link **out, const dlxi_link_settings *settings, dlx_error *error);
    dlx_status (*coordinator)(dlxi_link **out, const dlxi_link_settings *settings,
                              char bound[DLXI_ENDPOINT_BYTES], dlx_error *error);
} opener;

#define OPENER(word, text) {#word, dlxi_##word##_site_open, dlxi_##word##_coordinator_open},
static const opener openers[] = {DLXI_LINKS_OF_PROCESSES(OPENER)};

dlx_status dlx_hub_open(dlx_hub **out, dlx_error *error) {
    enum { QUEUE_FRAMES = 64 };
#define HUB_OPEN(word, text) dlxi_##word##_hub_open
    DLXI_NOT_NULL(out);
    return (DLXI_LINKS_OF_THREADS(HUB_OPEN))(out, QUEUE_FRAMES, error);
}

void dlx_hub_close(dlx_hub **hub) {
    dlxi_hub_close(hub);
}

static dlxi_link_settings link_settings(const dlx_link_config *config, const char *site,
                                        dlx_log log, void *log_context) {
    return (dlxi_link_settings){.coordinator = config->coordinator,
                                .listen_host =
                                    config->listen_host == NULL ? "" : config->listen_host,
                                .listen_port = config->listen_port,
                                .curve = !config->unencrypted,
                                .key_path = config->key_path,
                                .roster_path = config->roster_path,
                                .name = site,
                                .log = log,
                                .log_context = log_context};
}

/* *out ← what opens the link; NULL: the hub does. */
static dlx_status opener_find(const opener **out, const dlx_link_config *config, dlx_error *error) {
    *out = NULL;
    if (config->hub != NULL) return DLX_OK;
    if (config->coordinator == NULL)
        DLX_FAIL(
            error, ARGUMENT,
            "link.coordinator is NULL; give \"host:port\", or a hub for threads of one process");
    if (!config->unencrypted && (config->key_path == NULL || config->roster_path == NULL))
        DLX_FAIL(error, ARGUMENT,
                 "link.key_path and link.roster_path are needed; make them with dlx_key_generate");
    for (size_t i = 0; i < sizeof openers / sizeof *openers && *out == NULL; i++)
        if (config->name == NULL || strcmp(config->name, openers[i].word) == 0) *out = &openers[i];
    if (*out == NULL)
        DLX_FAIL(error, ARGUMENT,
                 "link.name (wan.link): '%.60s' does not join processes; choose %s", config->name,
                 openers[0].word);
    return DLX_OK;
}

dlx_status dlxi_link_open_site(dlxi_link **out, const dlx_link_config *config, const char *site,
                               uint16_t rank, uint16_t ranks, uint32_t timeout_ms, dlx_log log,
                               void *log_context, dlx_error *error) {
    const opener *open;
    *out = NULL;
    DLX_TRY(opener_find(&open, config, error));
    if (open == NULL) return config->hub->open_site(config->hub, out, site, rank, error);
    dlxi_link_settings settings = link_settings(config, site, log, log_context);
    settings.ranks = ranks;
    settings.timeout_ms = timeout_ms;
    return open->site(out, &settings, error);
}

dlx_status dlxi_link_open_coordinator(dlxi_link **out, const dlx_link_config *config,
                                      uint32_t timeout_ms, uint32_t unconnected_ms, dlx_log log,
                                      void *log_context, char endpoint[DLXI_ENDPOINT_BYTES],
                                      dlx_error *error) {
    *out = NULL;
    const opener *open;
    endpoint[0] = '\0';
    DLX_TRY(opener_find(&open, config, error));
    if (open == NULL) return config->hub->open_coordinator(config->hub, out, error);
    dlxi_link_settings settings = link_settings(config, "coordinator", log, log_context);
    settings.timeout_ms = timeout_ms;
    settings.unconnected_ms = unconnected_ms;
    return open->coordinator(out, &settings, endpoint, error);
}

dlx_status dlx_key_generate(const char *path, char public_text[41], dlx_error *error) {
    DLXI_NOT_NULL(path);
    DLXI_NOT_NULL(public_text);
    return dlxi_key_generate(path, public_text, error);
}
