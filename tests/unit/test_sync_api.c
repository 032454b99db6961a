/* SPDX-License-Identifier: Apache-2.0 */
/* What callers get wrong, by the messages that they see: dlx_sync_open, dlx_coordinator_open,
 * dlx_codec_*, the calls of a run that is not in the right state, and leases as a training loop
 * uses them. */
#include "in_process.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static float values[4];

static dlx_tensor good_tensor(void) {
    return (dlx_tensor){.name = "p", .data = values, .rows = 2, .cols = 2};
}

static dlx_sync_config good_config(void) {
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = "paris";
    config.inner_steps = 25; /* whatever the defaults are */
    config.factor_rank = 16;
    return config;
}

static void open_fails(const dlx_sync_config *config, const dlx_tensor *tensors, size_t count,
                       dlx_status status, const char *message) {
    dlx_error error;
    dlx_sync *sync = (dlx_sync *)(uintptr_t)1;
    dlx_status got = dlx_sync_open(&sync, config, tensors, count, &error);
    assert_string_equal(error.message, message);
    assert_int_equal(got, status);
    assert_int_equal(error.status, status);
    assert_null(sync);
}

static dlx_status gather_nothing(void *context, void *all, const void *own, size_t bytes,
                                 dlx_error *error) {
    (void)context, (void)all, (void)own, (void)bytes, (void)error;
    return DLX_STATE;
}

static void sync_configs_are_checked(void **state) {
    (void)state;
    dlx_tensor tensor = good_tensor();
#define REFUSED(message, ...)                                                                      \
    do {                                                                                           \
        dlx_sync_config config = good_config();                                                    \
        __VA_ARGS__;                                                                               \
        open_fails(&config, &tensor, 1, DLX_CONFIG, message);                                      \
    } while (0)
#define RULE                                                                                       \
    "' is not allowed; names have 1 to 63 of the characters A-Z a-z 0-9 . _ - and begin with a "   \
    "letter, digit or _"
    REFUSED("site: '" RULE, config.site = NULL);
    REFUSED("site: '" RULE, config.site = "");
    REFUSED("site: '.paris" RULE, config.site = ".paris");
    REFUSED("site: '0123456789012345678901234567890123456789012345678901234567890123" RULE,
            config.site = "0123456789012345678901234567890123456789012345678901234567890123");
    REFUSED("ranks: 0 is out of range; allowed: 1 to 1024", config.ranks = 0);
    REFUSED("ranks: 1025 is out of range; allowed: 1 to 1024", config.ranks = 1025);
    REFUSED("rank: 1 is out of range; allowed: 0 to 0", config.rank = 1);
    REFUSED("rank: 4 is out of range; allowed: 0 to 3", config.ranks = 4, config.rank = 4);
    REFUSED("inner_steps: 0 is out of range; allowed: 1 to 100000", config.inner_steps = 0);
    REFUSED("inner_steps: 100001 is out of range; allowed: 1 to 100000",
            config.inner_steps = 100001);
    REFUSED("inner_steps_min: 26 is out of range; allowed: 1 to inner_steps, 25",
            config.inner_steps_min = 26);
    REFUSED("inner_steps_max: 24 is out of range; allowed: 0, or inner_steps, 25, to 200000",
            config.inner_steps_max = 24);
    REFUSED("exchange_steps: 26 is out of range; allowed: 0 to inner_steps, 25",
            config.exchange_steps = 26);
    REFUSED("outer_learning_rate: 11 is out of range; allowed: 0 to 10, or DLX_AUTO",
            config.outer_learning_rate = 11);
    REFUSED("outer_learning_rate: nan is out of range; allowed: 0 to 10, or DLX_AUTO",
            config.outer_learning_rate = (double)NAN);
    REFUSED("outer_momentum: 1 is out of range; allowed: 0 to 0.999, or DLX_AUTO",
            config.outer_momentum = 1);
    REFUSED("outer_momentum: -0.5 is out of range; allowed: 0 to 0.999, or DLX_AUTO",
            config.outer_momentum = -0.5);
    REFUSED("factor_rank: 1025 is out of range; allowed: 0 to 1024", config.factor_rank = 1025);
    REFUSED("factor_rank: -1 is out of range; allowed: 0 to 1024", config.factor_rank = -1);
    REFUSED("factor_rank_min: 17 is out of range; allowed: 0 to factor_rank, 16",
            config.factor_rank_min = 17);
    REFUSED("factor_rank_max: 15 is out of range; allowed: 0, or factor_rank, 16, to 1024",
            config.factor_rank_max = 15);
    REFUSED("bits: 5 is out of range; allowed: 4, 8, 16, 32", config.bits = 5);
    REFUSED("group: 63 is odd; allowed: even, 2 to 1024", config.group = 63);
    REFUSED("group: 0 is out of range; allowed: 2 to 1024", config.group = 0);
    REFUSED("timeout_ms: 999 is out of range; allowed: 1000 to 86400000", config.timeout_ms = 999);
    REFUSED("pace_max: 0.5 is out of range; allowed: 1 to 100", config.pace_max = 0.5);
    REFUSED("windows_per_step: 0 is out of range; allowed: 1 to 1000000", config.windows = 10);
    REFUSED("overlap: 5 is out of range; allowed: 0, 1, 2, 3, 4", config.overlap = (dlx_overlap)5);
    REFUSED("adaptation: 3 is out of range; allowed: 0, 1, 2",
            config.adaptation = (dlx_adaptation)3);
    /* a lease is counted in 32 bits */
    REFUSED(
        "windows_per_step: 1000000 with up to 400000 inner steps per round is more than a lease "
        "holds; allowed: up to 10737",
        config.windows = 10, config.windows_per_step = 1000000, config.inner_steps = 100000);
    REFUSED("windows_ahead: 1000001 is out of range; allowed: 0 to 1000000",
            config.windows_ahead = 1000001);
    REFUSED("windows_per_step: 10738 with up to 400000 inner steps per round is more than a lease "
            "holds; allowed: up to 10737",
            config.windows = 10, config.windows_per_step = 10738, config.inner_steps = 100000);
    REFUSED("windows_per_step: 10737 with up to 400000 inner steps per round is more than a lease "
            "holds; allowed: up to 10734",
            config.windows = 10, config.windows_per_step = 10737, config.inner_steps = 100000,
            config.windows_ahead = 1000000);
    REFUSED("wait_ms: 86400001 is out of range; allowed: 0 to 86400000", config.wait_ms = 86400001);
#undef REFUSED
    dlx_sync_config config = good_config();
    char *text = malloc(65537);
    memset(text, 'x', 65536);
    text[65536] = '\0';
    config.shared_text = text;
    open_fails(&config, &tensor, 1, DLX_CONFIG, "shared_text is longer than 65535 bytes");
    free(text);
}

static void sync_arguments_are_checked(void **state) {
    (void)state;
    dlx_tensor tensor = good_tensor(), two[2] = {tensor, tensor};
    dlx_sync_config config = good_config();
    dlx_error error;
    dlx_sync *sync;
    assert_int_equal(dlx_sync_open(NULL, &config, &tensor, 1, &error), DLX_ARGUMENT);
    assert_string_equal(error.message, "dlx_sync_open: out is NULL");
    assert_int_equal(dlx_sync_open(&sync, NULL, &tensor, 1, NULL), DLX_ARGUMENT);
    open_fails(&config, NULL, 1, DLX_ARGUMENT, "there are no tensors to synchronise");
    open_fails(&config, &tensor, 0, DLX_ARGUMENT, "there are no tensors to synchronise");
    open_fails(&config, two, 2, DLX_ARGUMENT, "two tensors are named p");
    config.ranks = 2;
    open_fails(&config, &tensor, 1, DLX_ARGUMENT, "gather is NULL, and needed with ranks: 2");
    config.gather = gather_nothing;
    dlx_tensor descending[2] = {good_tensor(), good_tensor()};
    descending[0].id = descending[1].id = 3;
    descending[1].name = "q";
    open_fails(&config, descending, 2, DLX_ARGUMENT,
               "tensor q: id 3 after id 3; if a site has several ranks, ids ascend");
    config.ranks = 1;
    tensor.name = "";
    open_fails(&config, &tensor, 1, DLX_ARGUMENT, "tensor 0 has no name or no data");
    tensor = good_tensor();
    tensor.data = NULL;
    open_fails(&config, &tensor, 1, DLX_ARGUMENT, "tensor 0 has no name or no data");
    tensor = good_tensor();
    tensor.rows = 0;
    open_fails(
        &config, &tensor, 1, DLX_ARGUMENT,
        "tensor p: invalid shape 0 × 2; rows and cols must be at least 1, and their product at "
        "most 2^32");
    tensor.rows = INT64_C(1) << 32;
    tensor.cols = 1;
    open_fails(&config, &tensor, 1, DLX_ARGUMENT, /* allowed */
               "link.coordinator is NULL; give \"host:port\", or a hub for threads of one process");
    tensor.cols = 2;
    open_fails(&config, &tensor, 1, DLX_ARGUMENT,
               "tensor p: invalid shape 4294967296 × 2; rows and cols must be at least 1, and "
               "their product at most 2^32");
    tensor.rows = INT64_MAX;
    open_fails(
        &config, &tensor, 1, DLX_ARGUMENT,
        "tensor p: invalid shape 9223372036854775807 × 2; rows and cols must be at least 1, and "
        "their product at most 2^32");
    tensor = good_tensor();
    tensor.memory = (dlx_memory)1;
    open_fails(&config, &tensor, 1, DLX_ARGUMENT,
               "tensor p is in the caller's memory: "
               "set fetch and store of the config");
    tensor = good_tensor();
    open_fails(&config, &tensor, 1, DLX_ARGUMENT,
               "link.coordinator is NULL; give \"host:port\", or a hub for threads of one process");
    config.link.coordinator = "127.0.0.1:1";
    open_fails(&config, &tensor, 1, DLX_ARGUMENT,
               "link.key_path and link.roster_path are needed; make them with dlx_key_generate");
    config.size = 4;
    char expected[128];
    snprintf(expected, sizeof expected,
             "size is 4; allowed: %zu or more, here %zu; begin with DLX_SYNC_CONFIG_INIT",
             offsetof(dlx_sync_config, overlap), sizeof config);
    open_fails(&config, &tensor, 1, DLX_ARGUMENT, expected);
    dlx_sync_close(NULL);
    sync = NULL;
    dlx_sync_close(&sync);
    assert_int_equal(dlx_sync_step(NULL, 1, NULL, &error), DLX_ARGUMENT);
    assert_string_equal(error.message, "dlx_sync_step: sync is NULL");
    assert_int_equal(dlx_sync_gradients(NULL, NULL, 1, NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_windows(NULL, NULL, 1, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_report(NULL, NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_take_anchor(NULL, NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_anchor(NULL, NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_anchor_hashes(NULL, NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_statistics(NULL, NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_sync_failure(NULL, &error), DLX_ARGUMENT);
    assert_int_equal(dlx_coordinator_run(NULL, &error), DLX_ARGUMENT);
    dlx_sync_pace(NULL, 2);
    dlx_sync_fail(NULL, "reason");
    dlx_sync_interrupt(NULL);
    dlx_coordinator_interrupt(NULL);
    assert_int_equal(dlx_sync_tokens(NULL) + dlx_sync_tokens_target(NULL), 0);
    assert_int_equal(dlx_sync_site_index(NULL) + dlx_sync_site_count(NULL), 0);
    assert_null(dlx_coordinator_endpoint(NULL));
    assert_true(dlx_sync_run_id(NULL) == 0 && dlx_coordinator_run_id(NULL) == 0);
    dlx_coordinator_on_begin(NULL, NULL, NULL);
}

static dlx_status fetch_nothing(void *context, size_t tensor, int64_t first, int64_t count,
                                float *dst, dlx_error *error) {
    (void)context, (void)tensor, (void)first, (void)count, (void)dst, (void)error;
    return DLX_STATE;
}

static dlx_status store_nothing(void *context, size_t tensor, int64_t first, int64_t count,
                                const float *src, dlx_error *error) {
    (void)context, (void)tensor, (void)first, (void)count, (void)src, (void)error;
    return DLX_STATE;
}

/* A chunk has at least one value. */
static void staging_is_checked(void **state) {
    (void)state;
    float staging[1];
    uint16_t narrow[4] = {0};
    dlx_sync_config config = good_config();
    config.staging = staging;
    config.fetch = fetch_nothing;
    config.store = store_nothing;
    dlx_tensor tensors[2] = {good_tensor(), good_tensor()};
    tensors[1].name = "q";
    const char *no_coordinator =
        "link.coordinator is NULL; give \"host:port\", or a hub for threads of one process";
    open_fails(&config, tensors, 2, DLX_ARGUMENT, no_coordinator); /* nothing passes through it */
    for (size_t bytes = 0; bytes <= sizeof staging; bytes++) {
        char expected[128];
        snprintf(expected, sizeof expected,
                 "staging_bytes: %zu is out of range; allowed: 4 or more, for tensor q", bytes);
        const char *message = bytes < sizeof staging ? expected : no_coordinator;
        config.staging_bytes = bytes;
        tensors[1].data = narrow;
        tensors[1].dtype = DLX_BF16;
        open_fails(&config, tensors, 2, DLX_ARGUMENT, message);
        tensors[1].dtype = DLX_F32;
        tensors[1].memory = DLX_MEMORY_CALLER;
        open_fails(&config, tensors, 2, DLX_ARGUMENT, message);
        tensors[1].memory = DLX_MEMORY_HOST;
    }
}

static void nobody_answers(void **state) {
    (void)state;
    dlx_sync_config config = good_config();
    dlx_tensor tensor = good_tensor();
    dlx_hub *hub = NULL;
    assert_int_equal(dlx_hub_open(&hub, NULL), DLX_OK);
    config.link.hub = hub;
    config.join_ms = 1000;
    open_fails(&config, &tensor, 1, DLX_TIMEOUT,
               "no coordinator answered for 1 s (wan.join_s); check wan.coordinator, wan.key and "
               "the roster, and that it runs");
    dlx_hub_close(&hub);
}

static void coordinators_are_checked(void **state) {
    (void)state;
    dlx_hub *hub = NULL;
    assert_int_equal(dlx_hub_open(&hub, NULL), DLX_OK);
#define REFUSED(code, text, ...)                                                                   \
    do {                                                                                           \
        dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;                               \
        dlx_coordinator *coordinator = (dlx_coordinator *)(uintptr_t)1;                            \
        dlx_error error;                                                                           \
        config.link.hub = hub;                                                                     \
        config.tokens = 5;                                                                         \
        __VA_ARGS__;                                                                               \
        assert_int_equal(dlx_coordinator_open(&coordinator, &config, &error), code);               \
        assert_string_equal(error.message, text);                                                  \
        assert_null(coordinator);                                                                  \
    } while (0)
    REFUSED(DLX_CONFIG, "sites: 0 is out of range; allowed: 1 to 64", config.sites = 0);
    REFUSED(DLX_CONFIG, "sites: 65 is out of range; allowed: 1 to 64", config.sites = 65);
    REFUSED(DLX_CONFIG, "wan.min_sites: 3 is out of range; the run has 2 sites",
            config.sites_min = 3);
    REFUSED(DLX_CONFIG, "tokens: 0 is out of range; a run ends when this many are committed",
            config.tokens = 0);
    REFUSED(DLX_CONFIG, "timeout_ms: 10 is out of range; allowed: 1000 to 86400000",
            config.timeout_ms = 10);
    REFUSED(DLX_ARGUMENT,
            "link.coordinator is NULL; give \"host:port\", or a hub for threads of one process",
            config.link.hub = NULL);
    REFUSED(DLX_ARGUMENT, "link.name (wan.link): 'mem' does not join processes; choose zmq",
            config.link = ((dlx_link_config){
                .coordinator = "127.0.0.1:0", .unencrypted = true, .name = "mem"}));
    char expected[128];
    snprintf(expected, sizeof expected,
             "size is 0; allowed: %zu or more, here %zu; begin with DLX_COORDINATOR_CONFIG_INIT",
             offsetof(dlx_coordinator_config, sites), sizeof(dlx_coordinator_config));
    REFUSED(DLX_ARGUMENT, expected, config.size = 0);
#undef REFUSED
    dlx_error error;
    assert_int_equal(dlx_coordinator_open(NULL, NULL, &error), DLX_ARGUMENT);
    assert_string_equal(error.message, "dlx_coordinator_open: out is NULL");
    dlx_coordinator_close(NULL);
    dlx_hub_close(&hub);
    assert_int_equal(dlx_hub_open(NULL, &error), DLX_ARGUMENT);
    assert_string_equal(error.message, "dlx_hub_open: out is NULL");
    dlx_hub_close(NULL);
}

/* ---- structs of older and newer callers ------------------------------------------------------ */

/* What the library fills in ends where the caller's struct does; false if not. */
static bool filled_up_to(const void *given, size_t bytes, size_t given_bytes) {
    const unsigned char *byte = given;
    bool any = false;
    for (size_t i = sizeof(size_t); i < bytes; i++) any = any || byte[i] != 0xA5;
    for (size_t i = bytes; i < given_bytes; i++)
        if (byte[i] != 0xA5) return false;
    return any;
}

/* A caller whose structs have each length in turn. */
static dlx_status train_with_sizes(in_process_site *site) {
    struct {
        dlx_step known;
        unsigned char more[16];
    } step;
    struct {
        dlx_statistics known;
        unsigned char more[16];
    } statistics;
    dlx_error *error = &site->error;
    const size_t step_min = offsetof(dlx_step, exchange_steps),
                 statistics_min = offsetof(dlx_statistics, attempts);
    size_t extra = 0;
    do {
        memset(&step, 0xA5, sizeof step);
        memset(&statistics, 0xA5, sizeof statistics);
        step.known.size = step_min + extra % (sizeof step - step_min + 1);
        statistics.known.size = statistics_min + extra % (sizeof statistics - statistics_min + 1);
        size_t step_bytes = step.known.size, statistics_bytes = statistics.known.size;
        dlx_status status = dlx_sync_step(site->sync, 1, &step.known, error);
        if (status == DLX_OK) status = dlx_sync_statistics(site->sync, &statistics.known, error);
        if (status != DLX_OK) return status;
        if (step.known.size != step_bytes || statistics.known.size != statistics_bytes ||
            !filled_up_to(&step, step_bytes < sizeof step.known ? step_bytes : sizeof step.known,
                          sizeof step) ||
            !filled_up_to(&statistics,
                          statistics_bytes < sizeof statistics.known ? statistics_bytes
                                                                     : sizeof statistics.known,
                          sizeof statistics))
            return DLX_DATA;
        extra++;
    } while (!step.known.finished);
    step.known.size = step_min - 1;
    statistics.known.size = 0;
    dlx_error refused;
    if (dlx_sync_step(site->sync, 1, &step.known, &refused) != DLX_ARGUMENT ||
        strstr(refused.message, "begin with DLX_STEP_INIT") == NULL)
        return DLX_DATA;
    if (dlx_sync_statistics(site->sync, &statistics.known, &refused) != DLX_ARGUMENT ||
        strstr(refused.message, "begin with DLX_STATISTICS_INIT") == NULL)
        return DLX_DATA;
    float *nowhere[1] = {NULL};
    if (dlx_sync_anchor(site->sync, nowhere, &refused) != DLX_ARGUMENT ||
        strcmp(refused.message, "dst[0] is NULL") != 0)
        return DLX_DATA;
    return extra > sizeof statistics ? dlx_sync_report(site->sync, "", error) : DLX_DATA;
}

static void what_is_filled_in_ends_with_the_callers_struct(void **state) {
    (void)state;
    in_process *p = in_process_new();
    float parameters[4] = {0};
    dlx_tensor tensor = {.name = "p", .data = parameters, .rows = 2, .cols = 2};
    p->site[0].tensors = &tensor;
    p->site[0].tensor_count = 1;
    p->site[0].config.inner_steps = 2;
    p->site[0].script = train_with_sizes;
    assert_true(in_process_run(p, 1, 300));
    if (p->site[0].status != DLX_OK) fail_msg("%s", p->site[0].error.message);
    free(p);
}

/* The array of an older header, and of a newer one whose last member is `later`. */
static void tensors_of_any_size_are_read(void **state) {
    (void)state;
    enum { COUNT = 3, OLD = offsetof(dlx_tensor, kind), MIN = offsetof(dlx_tensor, memory) };
    const char *names[COUNT] = {"p", "q", "p"};
    unsigned char old[COUNT * OLD];
    struct {
        dlx_tensor known;
        uint64_t later;
    } grown[COUNT];
    dlx_sync_config config = good_config();
    for (size_t i = 0; i < COUNT; i++) {
        dlx_tensor tensor = good_tensor();
        tensor.name = names[i];
        tensor.kind = (dlx_kind)99; /* refused if it is read */
        memcpy(old + i * OLD, &tensor, OLD);
        tensor.kind = DLX_TRAINED;
        grown[i].known = tensor;
        grown[i].later = 0;
    }
    config.tensor_bytes = OLD;
    open_fails(&config, (const dlx_tensor *)(const void *)old, COUNT, DLX_ARGUMENT,
               "two tensors are named p");
    config.tensor_bytes = sizeof grown[0];
    open_fails(&config, &grown[0].known, COUNT, DLX_ARGUMENT, "two tensors are named p");
    grown[1].later = 1;
    char expected[256];
    snprintf(expected, sizeof expected,
             "tensor 1: size is %zu, and byte %zu is set, which this library, with a size of %zu, "
             "does not know; use a newer library, or leave new members at their defaults",
             sizeof grown[0], sizeof(dlx_tensor), sizeof(dlx_tensor));
    open_fails(&config, &grown[0].known, COUNT, DLX_ARGUMENT, expected);
    dlx_tensor now[COUNT] = {grown[0].known, grown[1].known, grown[2].known};
    config.tensor_bytes = 0; /* version 0.2's */
    open_fails(&config, now, COUNT, DLX_ARGUMENT, "two tensors are named p");
    config.tensor_bytes = MIN - 1;
    snprintf(expected, sizeof expected,
             "tensor_bytes: %d is out of range; allowed: 0, or sizeof(dlx_tensor), here %zu",
             MIN - 1, sizeof(dlx_tensor));
    open_fails(&config, now, COUNT, DLX_ARGUMENT, expected);
}

/* One small tensor, and a round per step. */
static void site_make(in_process_site *site, dlx_tensor *tensor, float parameters[4]) {
    *tensor = (dlx_tensor){.name = "p", .data = parameters, .rows = 2, .cols = 2};
    site->tensors = tensor;
    site->tensor_count = 1;
    site->tokens_per_step = 1;
    site->config.inner_steps = 1;
}

/* Without their last fields, which hold what is refused if it is read. */
static void shorter_structs_run(void **state) {
    (void)state;
    in_process *p = in_process_new();
    float parameters[2][4] = {{0}};
    dlx_tensor tensors[2];
    p->coordinator.size = offsetof(dlx_coordinator_config, timeout_ms);
    p->coordinator.timeout_ms = 1;
    for (size_t i = 0; i < 2; i++) {
        site_make(&p->site[i], &tensors[i], parameters[i]);
    }
    p->site[0].config.size = offsetof(dlx_sync_config, timeout_ms);
    p->site[0].config.timeout_ms = 1;
    p->site[1].config.size = offsetof(dlx_sync_config, exchange_steps);
    p->site[1].config.exchange_steps = 1000000;
    p->site[1].config.factor_rank = -1;
    assert_true(in_process_run(p, 2, 20));
    for (size_t i = 0; i < 2; i++)
        if (p->site[i].status != DLX_OK) fail_msg("site %zu: %s", i, p->site[i].error.message);
    assert_int_equal(p->status, DLX_OK);
    free(p);
}

static void longer_structs_are_read(void **state) {
    (void)state;
    dlx_error error;
    dlx_tensor tensor = good_tensor();
    struct {
        dlx_sync_config known;
        uint64_t later;
    } site = {.known = good_config()};
    site.known.size = sizeof site;
    open_fails(&site.known, &tensor, 0, DLX_ARGUMENT, "there are no tensors to synchronise");
    site.later = 1;
    char expected[256];
    snprintf(expected, sizeof expected,
             "size is %zu, and byte %zu is set, which this library, with a size of %zu, does not "
             "know; use a newer library, or leave new members at their defaults",
             sizeof site, sizeof site.known, sizeof site.known);
    open_fails(&site.known, &tensor, 0, DLX_ARGUMENT, expected);

    struct {
        dlx_coordinator_config known;
        uint64_t later;
    } run = {.known = DLX_COORDINATOR_CONFIG_INIT};
    dlx_coordinator *coordinator;
    run.known.size = sizeof run;
    assert_int_equal(dlx_coordinator_open(&coordinator, &run.known, &error), DLX_CONFIG);
    assert_string_equal(error.message,
                        "tokens: 0 is out of range; a run ends when this many are committed");
    run.later = 1;
    assert_int_equal(dlx_coordinator_open(&coordinator, &run.known, &error), DLX_ARGUMENT);
}

/* Field by field: the padding of a macro's struct is nobody's. */
#define SAME_DEFAULT(kind, field, ...) assert_true(by_function.field == by_macro.field);

static void defaults_are_the_same(void **state) {
    (void)state;
    {
        dlx_sync_config by_function, by_macro = DLX_SYNC_CONFIG_INIT;
        memset(&by_function, 0xA5, sizeof by_function);
        dlx_sync_config_default(&by_function, sizeof by_function);
        DLX_SYNC_OPTION_TABLE(SAME_DEFAULT)
        assert_true(by_function.size == sizeof by_function && by_function.ranks == 1 &&
                    by_function.seed == 1 && by_function.pace_max == 1);
        assert_int_equal(by_macro.tensor_bytes, sizeof(dlx_tensor));
        assert_int_equal(by_function.tensor_bytes, 0); /* the caller may be of another version */
        assert_true(by_function.site == NULL && by_function.link.hub == NULL &&
                    by_function.interrupted == NULL && by_function.windows == 0);
    }
    {
        dlx_coordinator_config by_function, by_macro = DLX_COORDINATOR_CONFIG_INIT;
        memset(&by_function, 0xA5, sizeof by_function);
        dlx_coordinator_config_default(&by_function, sizeof by_function);
        DLX_COORDINATOR_OPTION_TABLE(SAME_DEFAULT)
        assert_true(by_function.size == sizeof by_function && by_function.tokens == 0 &&
                    by_function.shared_text == NULL);
    }
}

/* No option lies in the padding of a struct that ends with the one before. */
static void options_have_eight_bytes_each(void **state) {
    (void)state;
#define AT(kind, field, ...)                                                                       \
    assert_int_equal(offsetof(dlx_sync_config, field), at);                                        \
    at += 8;
    size_t at = offsetof(dlx_sync_config, overlap);
    DLX_SYNC_OPTION_TABLE(AT)
    assert_int_equal(sizeof(dlx_sync_config), at);
#undef AT
}

/* ---- codec ----------------------------------------------------------------------------------- */

static void the_codec_is_checked(void **state) {
    (void)state;
    uint8_t bytes[256];
    float back[70], some[70];
    dlx_error error;
    for (int i = 0; i < 70; i++) some[i] = (float)(i % 13) - 6.0f;
    assert_int_equal(dlx_codec_bound(70, 4, 64), 2 * 34);
    assert_int_equal(dlx_codec_bound(0, 4, 64), 0);
    assert_int_equal(dlx_codec_bound(70, 5, 64), 0);
    assert_int_equal(dlx_codec_bound(70, 4, 3), 0);
    assert_int_equal(dlx_codec_bound(SIZE_MAX, 32, 64), 0);
    assert_int_equal(dlx_codec_encode(NULL, some, 70, 4, 64, &error), DLX_ARGUMENT);
    assert_string_equal(error.message, "dlx_codec_encode: dst is NULL");
    assert_int_equal(dlx_codec_encode(bytes, some, 70, 7, 64, &error), DLX_ARGUMENT);
    assert_string_equal(error.message,
                        "bits 7, group 64: bits is 4, 8, 16 or 32, group is even and 2 to 1024");
    assert_int_equal(dlx_codec_decode(back, bytes, 67, 70, 4, 64, &error), DLX_DATA);
    assert_string_equal(error.message, "67 bytes do not hold 70 values of 4 bits; 68 would");
    some[69] = (float)NAN;
    assert_int_equal(dlx_codec_encode(bytes, some, 70, 4, 64, &error), DLX_NUMERIC);
    assert_string_equal(error.message, "a value is not finite, or too large for 4 bits");
    some[69] = 1;
    assert_int_equal(dlx_codec_encode(bytes, some, 70, 4, 64, &error), DLX_OK);
    assert_int_equal(dlx_codec_decode(back, bytes, 68, 70, 4, 64, &error), DLX_OK);
    for (int i = 0; i < 70; i++) assert_float_equal(back[i], some[i], 6.01 / 7 / 2);
    bytes[33] = 0xff; /* the first scale: a NaN */
    assert_int_equal(dlx_codec_decode(back, bytes, 68, 70, 4, 64, &error), DLX_DATA);
    assert_string_equal(error.message, "a scale or value is not finite");
    assert_int_equal(dlx_codec_encode(bytes, some, 5, 32, 2, &error), DLX_OK);
    assert_int_equal(dlx_codec_decode(back, bytes, 24, 5, 32, 2, &error), DLX_OK);
    assert_memory_equal(back, some, 5 * sizeof(float));
}

/* ---- states of a run, leases ----------------------------------------------------------------- */

enum { WINDOWS_PER_STEP = 4, TOKENS_PER_WINDOW = 3, SITES = 3, SEEN = 4096 };

static atomic_int seen[SEEN]; /* how often a position was trained on */

static dlx_status train_on_leases(in_process_site *site) {
    dlx_step done = DLX_STEP_INIT;
    dlx_error *error = &site->error, ignored;
    float *const gradient[1] = {values};
    if (dlx_sync_gradients(site->sync, gradient, 1, NULL, &ignored) != DLX_STATE) return DLX_DATA;
    if (strcmp(ignored.message,
               "gradients are exchanged under overlap allreduce only; call dlx_sync_step") != 0)
        return DLX_DATA;
    if (dlx_sync_report(site->sync, "", &ignored) != DLX_STATE) return DLX_DATA;
    if (strcmp(ignored.message, "the run is not finished") != 0) return DLX_DATA;
    if (dlx_sync_site_count(site->sync) != SITES || dlx_sync_tokens_target(site->sync) == 0)
        return DLX_DATA;
    uint64_t positions[1024];
    if (dlx_sync_windows(site->sync, positions, 1024, &ignored) != DLX_STATE) return DLX_DATA;
    if (strcmp(ignored.message, "the lease of round 1 has 12 windows left, not 1024") != 0)
        return DLX_DATA;
    while (!done.finished) {
        dlx_status status = dlx_sync_windows(site->sync, positions, WINDOWS_PER_STEP, error);
        if (status != DLX_OK) return status;
        for (int i = 0; i < WINDOWS_PER_STEP; i++)
            if (positions[i] < SEEN) atomic_fetch_add(&seen[positions[i]], 1);
        status = dlx_sync_step(site->sync, WINDOWS_PER_STEP * TOKENS_PER_WINDOW, &done, error);
        if (status != DLX_OK) return status;
    }
    if (dlx_sync_step(site->sync, 1, NULL, &ignored) != DLX_STATE) return DLX_DATA;
    if (strcmp(ignored.message, "the run is finished") != 0) return DLX_DATA;
    if (dlx_sync_tokens(site->sync) < dlx_sync_tokens_target(site->sync)) return DLX_DATA;
    char report[32];
    snprintf(report, sizeof report, "site %u", dlx_sync_site_index(site->sync));
    *error = (dlx_error){0};
    dlx_status status = dlx_sync_report(site->sync, report, error);
    /* an error is filled by a failure alone */
    if (status != DLX_OK || error->status != DLX_OK) return DLX_DATA;
    if (dlx_sync_report(site->sync, report, &ignored) != DLX_STATE) return DLX_DATA;
    return strcmp(ignored.message, "the run has this site's report already") == 0 ? DLX_OK
                                                                                  : DLX_DATA;
}

static char reports[256];

static void on_report(void *context, const char *site, const char *text) {
    (void)context;
    size_t used = strlen(reports);
    snprintf(reports + used, sizeof reports - used, "%s says %s; ", site, text);
}

static void leases_and_reports(void **state) {
    (void)state;
    for (int overlap = DLX_OVERLAP_NONE; overlap <= DLX_OVERLAP_CARRY; overlap++) {
        in_process *p = in_process_new();
        static float parameters[SITES][4];
        dlx_tensor tensors[SITES];
        for (int i = 0; i < SEEN; i++) seen[i] = 0;
        reports[0] = '\0';
        for (size_t i = 0; i < SITES; i++) {
            tensors[i] = (dlx_tensor){.name = "p", .data = parameters[i], .rows = 2, .cols = 2};
            p->site[i].tensors = &tensors[i];
            p->site[i].tensor_count = 1;
            p->site[i].config.overlap = (dlx_overlap)overlap;
            p->site[i].config.inner_steps = 2;
            p->site[i].config.inner_steps_max = 3;
            p->site[i].config.windows = 1000;
            p->site[i].config.windows_per_step = WINDOWS_PER_STEP;
            p->site[i].config.tokens_per_window = TOKENS_PER_WINDOW;
            p->site[i].script = train_on_leases;
        }
        if (overlap == DLX_OVERLAP_NONE)
            for (size_t i = 0; i < SITES; i++)
                p->site[i].config.inner_steps = 3; /* `none` leases H windows, not H_max */
        p->coordinator.on_report = on_report;
        uint64_t target = 10 * SITES * 2 * WINDOWS_PER_STEP * TOKENS_PER_WINDOW;
        assert_true(in_process_run(p, SITES, target));
        for (size_t i = 0; i < SITES; i++)
            if (p->site[i].status != DLX_OK)
                fail_msg("overlap %d, site %zu: %s", overlap, i, p->site[i].error.message);
        assert_int_equal(p->status, DLX_OK);
        uint64_t trained = 0;
        for (int i = 0; i < SEEN; i++) {
            assert_in_range(seen[i], 0, 1);
            trained += (uint64_t)seen[i];
        }
        uint64_t committed = p->site[0].statistics.committed_tokens;
        assert_true(committed >= target);
        assert_true(trained * TOKENS_PER_WINDOW >= committed);
        assert_string_equal(reports,
                            "site-0 says site 0; site-1 says site 1; site-2 says site 2; ");
        free(p);
    }
}

/* ---- the beginning --------------------------------------------------------------------------- */

static dlx_status begin_once(void *times, dlx_error *error) {
    (void)error;
    ++*(int *)times;
    return DLX_OK;
}

static dlx_status begin_never(void *context, dlx_error *error) {
    (void)context;
    error->status = DLX_CONFIG;
    snprintf(error->message, sizeof error->message, "no room for results");
    return DLX_CONFIG;
}

static in_process *run_with(dlx_status (*on_begin)(void *context, dlx_error *error),
                            void *context) {
    static float parameters[2][4];
    static dlx_tensor tensors[2];
    in_process *p = in_process_new();
    for (size_t i = 0; i < 2; i++) {
        site_make(&p->site[i], &tensors[i], parameters[i]);
    }
    p->on_begin = on_begin;
    p->begin_context = context;
    assert_true(in_process_run(p, 2, 20));
    return p;
}

static void a_run_has_an_id_and_a_beginning(void **state) {
    (void)state;
    uint64_t ids[2];
    for (int i = 0; i < 2; i++) {
        int times = 0;
        in_process *p = run_with(begin_once, &times);
        assert_int_equal(p->status, DLX_OK);
        assert_int_equal(times, 1);
        ids[i] = p->run_id;
        for (int k = 0; k < 2; k++) assert_true(p->site[k].run_id == p->run_id);
        free(p);
    }
    assert_true(ids[0] != 0 && ids[1] != 0 && ids[0] != ids[1]);

    in_process *p = run_with(begin_never, NULL);
    assert_int_equal(p->status, DLX_CONFIG);
    assert_string_equal(p->error.message, "no room for results");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(p->site[i].status, DLX_CONFIG);
        assert_string_equal(p->site[i].error.message, "no room for results");
    }
    free(p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sync_configs_are_checked),
        cmocka_unit_test(sync_arguments_are_checked),
        cmocka_unit_test(staging_is_checked),
        cmocka_unit_test(tensors_of_any_size_are_read),
        cmocka_unit_test(what_is_filled_in_ends_with_the_callers_struct),
        cmocka_unit_test(nobody_answers),
        cmocka_unit_test(coordinators_are_checked),
        cmocka_unit_test(shorter_structs_run),
        cmocka_unit_test(longer_structs_are_read),
        cmocka_unit_test(defaults_are_the_same),
        cmocka_unit_test(options_have_eight_bytes_each),
        cmocka_unit_test(the_codec_is_checked),
        cmocka_unit_test(leases_and_reports),
        cmocka_unit_test(a_run_has_an_id_and_a_beginning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
