/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_coordinator: validate, translate, delegate. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "api/link_config.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/sized.h"
#include "outer/sync_options.h"
#include "sync/coordinate.h"

enum { ATTEMPTS_MAX = 5 };

struct dlx_coordinator {
    dlxi_coordinate at_work;
    dlx_coordinator_config config;
    char endpoint[DLXI_ENDPOINT_BYTES];
    uint64_t run_id;
};

static const dlx_coordinator_config config_default = DLX_COORDINATOR_CONFIG_INIT;

#define ROW(kind, field, ...)                                                                      \
    DLXI_OPTION_FROM_ROW(dlx_coordinator_config, field, kind, field, __VA_ARGS__)
#define MAX(kind, field, key, standard, low, high, ...) MAX_##field = (high),
static const dlxi_option rows[] = {DLX_COORDINATOR_OPTION_TABLE(ROW)};
enum { DLX_COORDINATOR_OPTION_TABLE(MAX) };
_Static_assert((int)MAX_sites == (int)DLXI_SITES_MAX, "one limit");
_Static_assert((int)MAX_timeout_ms == (int)DLXI_MAX_timeout_ms, "one limit");
_Static_assert((int)MAX_join_ms == (int)DLXI_MAX_join_ms, "one limit");

void dlx_coordinator_config_default(dlx_coordinator_config *config, size_t size) {
    dlxi_sized_default(config, size, &config_default, sizeof config_default);
}

static dlx_status config_check(const dlx_coordinator_config *config, dlx_error *error) {
    const dlxi_option_table table = {rows, sizeof rows / sizeof *rows};
    DLX_TRY(dlxi_options_check(config, &table, false, error));
    if (config->tokens == 0)
        DLX_FAIL(error, CONFIG,
                 "tokens: 0 is out of range; a run ends when this many are committed");
    if (config->shared_text != NULL && strlen(config->shared_text) > DLXI_TEXT_MAX)
        DLX_FAIL(error, CONFIG, "shared_text is longer than %d bytes", DLXI_TEXT_MAX);
    return DLX_OK;
}

/* As many as the run has sites, at least, if the link knows who may join. */
static dlx_status sites_expect(dlx_coordinator *c, dlx_error *error) {
    dlxi_link *link = c->at_work.link;
    const char *name;
    uint32_t count = 0;
    if (link->op->may_join == NULL || c->config.link.unencrypted) return DLX_OK;
    for (; (name = link->op->may_join(link, count)) != NULL; count++)
        DLX_TRY(dlxi_coordinator_expect(c->at_work.machine, name, error));
    if (count < c->config.sites)
        DLX_FAIL(error, CONFIG,
                 "sites: %u is out of range; '%s' (wan.roster) names %u site%s; add the others' "
                 "keys, or start fewer sites",
                 c->config.sites, c->config.link.roster_path, count, count == 1 ? "" : "s");
    return DLX_OK;
}

static dlx_status run_id_draw(uint64_t *id, dlx_error *error) {
    do
        if (getrandom(id, sizeof *id, 0) != sizeof *id)
            DLX_FAIL(error, SYSTEM, "the system has no random numbers for a run's id");
    while (*id == 0);
    return DLX_OK;
}

dlx_status dlx_coordinator_open(dlx_coordinator **out, const dlx_coordinator_config *config,
                                dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    dlx_coordinator_config own = config_default;
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_coordinator_config, sites), config,
                            "DLX_COORDINATOR_CONFIG_INIT", error));
    DLX_TRY(config_check(&own, error));
    dlx_status status = DLX_OK;
    dlx_coordinator *c = NULL;
    DLX_TRY_OUT(DLXI_NEW(&c, 1, error));
    c->config = own;
    DLX_TRY_OUT(run_id_draw(&c->run_id, error));
    c->at_work.log = own.log;
    c->at_work.log_context = own.log_context;
    c->at_work.interrupted_too = own.interrupted;
    dlxi_coordinator_settings settings = {.sites = (uint16_t)own.sites,
                                          .tokens_target = own.tokens,
                                          .run_id = c->run_id,
                                          .shared_text = own.shared_text,
                                          .timeout_ms = own.timeout_ms,
                                          .join_ms = own.join_ms,
                                          .patience_ms = own.patience_ms,
                                          .sites_min = (uint16_t)own.sites_min,
                                          .attempts_max = ATTEMPTS_MAX};
    DLX_TRY_OUT(
        dlxi_coordinator_open(&c->at_work.machine, &settings, dlxi_clock_ns() / 1000000, error));
    DLX_TRY_OUT(dlxi_link_open_coordinator(&c->at_work.link, &own.link, own.timeout_ms, own.log,
                                           own.log_context, c->endpoint, error));
    DLX_TRY_OUT(sites_expect(c, error));
    *out = c;
    return DLX_OK;
out:
    dlx_coordinator_close(&c);
    return status;
}

const char *dlx_coordinator_endpoint(const dlx_coordinator *c) {
    return c != NULL ? c->endpoint : NULL;
}

uint64_t dlx_coordinator_run_id(const dlx_coordinator *c) {
    return c != NULL ? c->run_id : 0;
}

void dlx_coordinator_on_drop(dlx_coordinator *c,
                             void (*on_drop)(void *context, const char *site, uint64_t round,
                                             const char *why),
                             void *context) {
    c->at_work.on_drop = on_drop;
    c->at_work.drop_context = context;
}

void dlx_coordinator_on_begin(dlx_coordinator *c,
                              dlx_status (*on_begin)(void *context, dlx_error *error),
                              void *context) {
    if (c == NULL) return;
    c->at_work.on_begin = on_begin;
    c->at_work.begin_context = context;
}

dlx_status dlx_coordinator_run(dlx_coordinator *coordinator, dlx_error *error) {
    DLXI_NOT_NULL(coordinator);
    const dlx_coordinator_config *config = &coordinator->config;
    return dlxi_coordinate_run(&coordinator->at_work, config->on_report, config->report_context,
                               error);
}

void dlx_coordinator_interrupt(dlx_coordinator *c) {
    if (c != NULL) c->at_work.interrupted = true;
}

void dlx_coordinator_close(dlx_coordinator **coordinator) {
    if (coordinator == NULL || *coordinator == NULL) return;
    dlxi_link_close(&(*coordinator)->at_work.link);
    dlxi_coordinator_close(&(*coordinator)->at_work.machine);
    free(*coordinator);
    *coordinator = NULL;
}
