/* SPDX-License-Identifier: Apache-2.0 */
/* dlx_coordinator: validate, translate, delegate. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "api/link_config.h"
#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/sized.h"
#include "outer/sync_options.h"
#include "sync/coordinate.h"

enum {
    FIND_MS = 3000,
    ATTEMPTS_MAX = 5,
    UNCONNECTED_MS = 1000 /* a site without a connection for so long is away */
};

struct dlx_coordinator {
    dlxi_coordinate at_work;
    dlx_coordinator_config config;
    char endpoint[DLXI_ENDPOINT_BYTES];
    char *store_path;
    bool restored, has_run, ended_well;
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
    if (config->sites_min > config->sites)
        DLX_FAIL(error, CONFIG, "wan.min_sites: %u is out of range; the run has %u site%s",
                 config->sites_min, config->sites, config->sites == 1 ? "" : "s");
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

static dlx_status id_draw(uint64_t *id, dlx_error *error) {
    do
        if (getrandom(id, sizeof *id, 0) != sizeof *id)
            DLX_FAIL(error, SYSTEM, "the system has no random numbers for the id of a run");
    while (*id == 0);
    return DLX_OK;
}

/* ---- the store ------------------------------------------------------------------------------- */

/* For sites that are behind, in whatever order. */
static dlx_status records_restore(dlx_coordinator *c, dlx_error *error) {
    uint64_t round = dlxi_coordinator_round(c->at_work.machine);
    for (int i = 0; i < DLXI_COORDINATOR_RECORDS && --round > 0; i++) {
        uint8_t *record;
        size_t bytes;
        dlx_status status = dlxi_store_record(c->at_work.store, round, &record, &bytes, error);
        if (status == DLX_STATE && i > 0) return DLX_OK; /* it took the run over then */
        DLX_TRY(status);
        status = dlxi_coordinator_restore_record(c->at_work.machine, record, bytes, error);
        free(record);
        DLX_TRY(status);
    }
    return DLX_OK;
}

/* The machine, as another life left it in the store. */
static dlx_status machine_restore(dlx_coordinator *c, const dlxi_coordinator_settings *settings,
                                  dlx_error *error) {
    char why[256];
    uint8_t *state;
    size_t bytes;
    dlxi_store *store = c->at_work.store;
    if (!dlxi_store_is_continuous(store, why))
        DLX_FAIL(
            error, STATE,
            "%.200s: %s; its run may have gone on elsewhere: start the coordinator where it "
            "was last; or, if that is lost, go on from what the sites have with --takeover; or "
            "move this file away to begin another run",
            c->store_path, why);
    DLX_TRY(dlxi_store_read(store, &state, &bytes, error));
    dlx_status status = dlxi_coordinator_restore(&c->at_work.machine, settings, state, bytes,
                                                 dlxi_clock_ns() / 1000000, error);
    free(state);
    if (status == DLX_STATE)
        DLX_FAIL(error, STATE, "%.300s: its run is over; remove this file to begin another run",
                 c->store_path);
    if (status == DLX_DATA) dlxi_error_prefix(error, "%.200s: ", c->store_path);
    DLX_TRY(status);
    c->restored = true;
    return records_restore(c, error);
}

/* A new store is made when the run has begun: a start that fails changes nothing. */
static dlx_status machine_open(dlx_coordinator *c, const dlxi_coordinator_settings *settings,
                               const char *takeover_without, dlx_error *error) {
    dlxi_coordinate *at_work = &c->at_work;
    struct stat facts;
    at_work->store_path = c->store_path;
    at_work->endpoint = c->endpoint;
    if (c->store_path != NULL && (stat(c->store_path, &facts) == 0 || errno != ENOENT))
        DLX_TRY(dlxi_store_open(&at_work->store, c->store_path, error));
    if (takeover_without != NULL) {
        const dlxi_takeover_settings own = {.run = *settings, .without = takeover_without};
        c->restored = true;
        return dlxi_takeover_open(&at_work->takeover, &own, dlxi_clock_ns() / 1000000, error);
    }
    if (at_work->store != NULL && !dlxi_store_is_empty(at_work->store))
        return machine_restore(c, settings, error);
    return dlxi_coordinator_open(&at_work->machine, settings, dlxi_clock_ns() / 1000000, error);
}

/* The sites of a run that goes on know its port. */
static dlx_status address_choose(char text[DLXI_ENDPOINT_BYTES], const dlx_coordinator *c,
                                 dlx_error *error) {
    dlxi_address asked, before;
    const dlx_link_config *link = &c->config.link;
    text[0] = '\0';
    if (c->at_work.machine == NULL) return DLX_OK;
    const char *known = dlxi_coordinator_endpoint(c->at_work.machine);
    if (!c->restored || link->hub != NULL || link->coordinator == NULL || known[0] == '\0')
        return DLX_OK;
    DLX_TRY(dlxi_address_parse(&asked, link->coordinator, "wan.coordinator", error));
    if (asked.port != 0) return DLX_OK;
    DLX_TRY(dlxi_address_parse(&before, known, c->store_path, error));
    dlxi_address_format(text, asked.host, before.port);
    return DLX_OK;
}

static dlx_status link_open(dlx_coordinator *c, dlx_error *error) {
    const dlx_coordinator_config *own = &c->config;
    char address[DLXI_ENDPOINT_BYTES];
    uint32_t unconnected_ms = own->timeout_ms < UNCONNECTED_MS ? own->timeout_ms : UNCONNECTED_MS;
    DLX_TRY(address_choose(address, c, error));
    dlx_link_config link = own->link;
    if (address[0] != '\0') link.coordinator = address;
    DLX_TRY(dlxi_log_ring_open(&c->at_work.others, own->log, own->log_context, error));
    dlx_log log = own->log != NULL ? dlxi_log_ring_add : NULL;
    DLX_TRY(dlxi_link_open_coordinator(&c->at_work.link, &link, own->timeout_ms, unconnected_ms,
                                       log, c->at_work.others, c->endpoint, error));
    dlxi_log_ring_deliver(c->at_work.others);
    if (c->at_work.machine == NULL) return DLX_OK;
    dlxi_coordinator_set_endpoint(c->at_work.machine, c->endpoint);
    return sites_expect(c, error);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* takeover_without: NULL: it does not take a run over. */
static dlx_status coordinator_open(dlx_coordinator **out, const dlx_coordinator_config *config,
                                   const char *store_path, const char *takeover_without,
                                   dlx_error *error) {
    dlx_coordinator_config own = config_default;
    DLX_TRY(dlxi_sized_read(&own, sizeof own, offsetof(dlx_coordinator_config, sites), config,
                            "DLX_COORDINATOR_CONFIG_INIT", error));
    DLX_TRY(config_check(&own, error));
    dlx_status status = DLX_OK;
    dlx_coordinator *c = NULL;
    DLX_TRY_OUT(DLXI_NEW(&c, 1, error));
    c->config = own;
    if (store_path != NULL && (c->store_path = strdup(store_path)) == NULL)
        DLX_FAIL_OUT(error, MEMORY, "out of memory for the path of a store");
    c->at_work.log = own.log;
    c->at_work.log_context = own.log_context;
    c->at_work.wait_ms = own.wait_ms;
    c->at_work.interrupted_too = own.interrupted;
    dlxi_coordinator_settings settings = {.sites = (uint16_t)own.sites,
                                          .tokens_target = own.tokens,
                                          .shared_text = own.shared_text,
                                          .timeout_ms = own.timeout_ms,
                                          .join_ms = own.join_ms,
                                          .patience_ms = own.patience_ms,
                                          .limbo_ms = own.limbo_ms,
                                          .find_ms = FIND_MS,
                                          .sites_min = (uint16_t)own.sites_min,
                                          .attempts_max = ATTEMPTS_MAX};
    DLX_TRY_OUT(id_draw(&settings.run_id, error));
    DLX_TRY_OUT(id_draw(&settings.life_id, error));
    DLX_TRY_OUT(machine_open(c, &settings, takeover_without, error));
    DLX_TRY_OUT(link_open(c, error));
    *out = c;
    return DLX_OK;
out:
    dlx_coordinator_close(&c);
    return status;
}

dlx_status dlx_coordinator_open(dlx_coordinator **out, const dlx_coordinator_config *config,
                                dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    return coordinator_open(out, config, NULL, NULL, error);
}

dlx_status dlx_coordinator_open_stored(dlx_coordinator **out, const dlx_coordinator_config *config,
                                       const char *store_path, dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(store_path);
    return coordinator_open(out, config, store_path, NULL, error);
}

dlx_status dlx_coordinator_open_takeover(dlx_coordinator **out,
                                         const dlx_coordinator_config *config,
                                         const char *store_path, const char *without,
                                         dlx_error *error) {
    DLXI_NOT_NULL(out);
    *out = NULL;
    DLXI_NOT_NULL(config);
    DLXI_NOT_NULL(store_path);
    return coordinator_open(out, config, store_path, without != NULL ? without : "", error);
}

bool dlx_coordinator_was_restored(const dlx_coordinator *c) {
    return c != NULL && c->restored;
}

bool dlx_coordinator_is_over(const dlx_coordinator *c) {
    return c != NULL && c->at_work.store != NULL && c->at_work.machine != NULL &&
           (c->ended_well || dlxi_coordinator_is_over(c->at_work.machine));
}

const char *dlx_coordinator_endpoint(const dlx_coordinator *c) {
    return c != NULL ? c->endpoint : NULL;
}

uint64_t dlx_coordinator_run_id(const dlx_coordinator *c) {
    return c != NULL && c->at_work.machine != NULL ? dlxi_coordinator_run_id(c->at_work.machine)
                                                   : 0;
}

void dlx_coordinator_on_drop(dlx_coordinator *c,
                             void (*on_drop)(void *context, const char *site, uint64_t round,
                                             const char *why),
                             void *context) {
    if (c == NULL) return;
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

dlx_status dlx_coordinator_statistics_of(const dlx_coordinator *c,
                                         dlx_coordinator_statistics *statistics, dlx_error *error) {
    dlx_coordinator_statistics own = DLX_COORDINATOR_STATISTICS_INIT;
    dlxi_coordinator_facts facts = {0};
    DLXI_NOT_NULL(c);
    DLXI_NOT_NULL(statistics);
    DLX_TRY(dlxi_sized_check(statistics, offsetof(dlx_coordinator_statistics, recovery_s_max),
                             sizeof own, "DLX_COORDINATOR_STATISTICS_INIT", error));
    if (c->at_work.machine != NULL) dlxi_coordinator_facts_of(c->at_work.machine, &facts);
    own.attempts = facts.attempts;
    own.stalled = facts.stalled;
    own.broken = facts.broken;
    own.differing = facts.differing;
    own.member_lost = facts.member_lost;
    own.recoveries = facts.recoveries;
    if (facts.recoveries > 0)
        own.recovery_s_mean = 1e-3 * (double)facts.recovery_ms_sum / (double)facts.recoveries;
    own.recovery_s_max = 1e-3 * (double)facts.recovery_ms_max;
    if (c->at_work.machine != NULL) own.round = dlxi_coordinator_round(c->at_work.machine);
    dlxi_sized_write(statistics, &own, sizeof own);
    return DLX_OK;
}

dlx_status dlx_coordinator_site_statistics(const dlx_coordinator *c, uint32_t site,
                                           dlx_site_statistics *statistics, dlx_error *error) {
    dlx_site_statistics own = DLX_SITE_STATISTICS_INIT;
    dlxi_site_facts facts;
    DLXI_NOT_NULL(c);
    DLXI_NOT_NULL(statistics);
    DLX_TRY(dlxi_sized_check(statistics, offsetof(dlx_site_statistics, away_s), sizeof own,
                             "DLX_SITE_STATISTICS_INIT", error));
    if (site >= DLXI_SITES_MAX || c->at_work.machine == NULL ||
        !dlxi_coordinator_site_facts(c->at_work.machine, (uint16_t)site, &facts))
        DLX_FAIL(error, STATE, "site: %u is out of range; the run has fewer", site);
    own.site = facts.name;
    own.rounds = facts.rounds;
    own.left_out = facts.left_out;
    own.away = facts.away;
    own.away_s = 1e-3 * (double)facts.away_ms;
    dlxi_sized_write(statistics, &own, sizeof own);
    return DLX_OK;
}

dlx_status dlx_coordinator_run(dlx_coordinator *coordinator, dlx_error *error) {
    DLXI_NOT_NULL(coordinator);
    const dlx_coordinator_config *config = &coordinator->config;
    if (coordinator->has_run) DLX_FAIL(error, STATE, "dlx_coordinator_run has ended; close it");
    dlx_status status = dlxi_coordinate_run(&coordinator->at_work, config->on_report,
                                            config->report_context, error);
    coordinator->has_run = !coordinator->at_work.pending;
    coordinator->ended_well = status == DLX_OK;
    return status;
}

void dlx_coordinator_interrupt(dlx_coordinator *c) {
    if (c != NULL) c->at_work.interrupted = true;
}

void dlx_coordinator_release(dlx_coordinator *c) {
    if (c != NULL) c->at_work.released = true;
}

void dlx_coordinator_release_when(dlx_coordinator *c, const volatile sig_atomic_t *flag) {
    if (c != NULL) c->at_work.released_too = flag;
}

void dlx_coordinator_close(dlx_coordinator **coordinator) {
    if (coordinator == NULL || *coordinator == NULL) return;
    dlx_coordinator *c = *coordinator;
    if (c->ended_well) dlxi_coordinator_set_over(c->at_work.machine);
    /* if it fails, a coordinator that is started again finds the reports, and ends */
    if (c->ended_well) (void)dlxi_coordinate_save(&c->at_work, NULL);
    dlxi_link_close(&c->at_work.link);
    dlxi_log_ring_close(&c->at_work.others);
    dlxi_takeover_close(&c->at_work.takeover);
    dlxi_coordinator_close(&c->at_work.machine);
    dlxi_store_close(&c->at_work.store);
    free(c->store_path);
    free(c);
    *coordinator = NULL;
}
