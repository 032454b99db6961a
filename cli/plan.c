/* SPDX-License-Identifier: Apache-2.0 */
/* dilocox plan: what a run will cost on a link, computed. */
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct plan_arguments {
    config_arguments config;
    const char *link;
    double step_s, flops, host_rate, seconds;
    bool shared_cores;
    int sites;
} plan_arguments;

static plan_arguments given;

static const dlxi_option rows[] = {
    DLXI_OPTION_ROW_POINTER(plan_arguments, "config", config.path, "CONFIG",
                            "the run's options; the defaults unless given"),
    DLXI_OPTION_ROW_LIST(plan_arguments, "--set", config.sets, "KEY=VALUE",
                         "one option of the config; may be given often"),
    DLXI_OPTION_ROW_INTEGER(plan_arguments, "--sites", sites, 1, DLXI_SITES_MAX, "2",
                            "how many sites take part", .value_name = "N"),
    DLXI_OPTION_ROW_POINTER(plan_arguments, "--link", link, "RATE,DELAY",
                            "of a site to the others, and one way: 100mbit,20ms (1gbit,30ms unless "
                            "given)"),
    DLXI_OPTION_ROW_REAL(plan_arguments, "--step", step_s, 0, 1e6, "0",
                         "seconds of an inner step, as measured; 0: from --flops",
                         .value_name = "S"),
    DLXI_OPTION_ROW_REAL(plan_arguments, "--flops", flops, 1e6, 1e18, "5e10",
                         "operations per second that a rank reaches in training; 'dilocox bench "
                         "model' measures this machine's",
                         .value_name = "N"),
    DLXI_OPTION_ROW_BOOLEAN(plan_arguments, "--shared-cores", shared_cores, "false",
                            "exchanges compute on the cores that train; without it on others"),
    DLXI_OPTION_ROW_REAL(plan_arguments, "--host-rate", host_rate, 1e3, 1e15, "2.4e8",
                         "bytes per second that one core encrypts and sends while it receives as "
                         "much",
                         .value_name = "N"),
    DLXI_OPTION_ROW_REAL(plan_arguments, "--seconds", seconds, 0, 1e12, "0",
                         "only so much of the run, from its beginning; 0: all of it",
                         .value_name = "S"),
};

/* *out ← a decimal number with one of these units. */
static bool unit_parse(double *out, const char *text, const char *const *units,
                       const double *factors) {
    size_t digits = strspn(text, "0123456789.");
    char number[32], *end;
    if (digits == 0 || digits >= sizeof number) return false;
    memcpy(number, text, digits);
    number[digits] = '\0';
    double value = strtod(number, &end);
    for (int i = 0; *end == '\0' && units[i] != NULL; i++)
        if (strcmp(text + digits, units[i]) == 0) {
            *out = value * factors[i];
            return true;
        }
    return false;
}

static bool link_parse(dlx_plan_options *options, const char *text) {
    static const char *const rates[] = {"bit", "kbit", "mbit", "gbit", NULL};
    static const double rate_factors[] = {1, 1e3, 1e6, 1e9};
    static const char *const delays[] = {"us", "ms", "s", NULL};
    static const double delay_factors[] = {1e-6, 1e-3, 1};
    char rate[48];
    size_t length = strcspn(text, ",");
    double bits;
    if (length >= sizeof rate || text[length] == '\0') return false;
    memcpy(rate, text, length);
    rate[length] = '\0';
    if (!unit_parse(&bits, rate, rates, rate_factors) || bits < 1 || bits > 1e15) return false;
    options->link_bytes_per_s = bits / 8;
    return unit_parse(&options->delay_s, text + length + 1, delays, delay_factors) &&
           options->delay_s <= 60;
}

static void time_format(char text[32], double s) {
    if (s < 0.9995)
        snprintf(text, 32, "%.3g ms", 1e3 * s);
    else
        snprintf(text, 32, s < 1000 ? "%.1f s" : "%.0f s", s);
}

static void method_print(const dlx_plan_method *m, double base) {
    char exchange[32], rank[16] = "whole";
    time_format(exchange, m->exchange_s);
    if (m->rank > 0) snprintf(rank, sizeof rank, "%u", m->rank);
    printf("%-20s %5u %6s %10s  %-6s %10.4f %11.4g %9.4g %12.4g\n", m->name, m->inner_steps, rank,
           exchange, m->hidden ? "yes" : "no", m->efficiency, m->tokens_per_s,
           m->tokens_per_s / base, m->bytes_per_token);
}

static void memory_print(const dlx_plan_result *r) {
    const struct {
        const char *name;
        uint64_t bytes;
    } parts[] = {{"parameters", r->parameter_bytes},
                 {"gradients", r->gradient_bytes},
                 {"optimiser", r->optimizer_bytes},
                 {"outer state", r->outer_bytes},
                 {"exchange", r->exchange_bytes}};
    uint64_t sum = 0;
    char text[32];
    printf("memory of a rank   ");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        sum += parts[i].bytes;
        bytes_format(text, (double)parts[i].bytes);
        printf(" %s %s,", parts[i].name, text);
    }
    bytes_format(text, (double)sum);
    printf(" in all %s\n", text);
}

static void advice_print(const dlx_plan_result *r) {
    const dlx_plan_method *own = &r->methods[DLX_PLAN_METHODS - 2], *advice = own + 1;
    bool waits = strcmp(advice->overlap, own->overlap) != 0;
    printf("\n");
    if (waits) printf("Under %s each exchange is waited for. ", own->overlap);
    if (!waits && advice->rank == own->rank && advice->inner_steps == own->inner_steps &&
        advice->exchange_steps == own->exchange_steps) {
        printf("The config's rank and H fit this link.\n");
        return;
    }
    printf("Advised:");
    if (waits) printf(" --set sync.overlap=%s", advice->overlap);
    printf(" --set sync.compression.rank=%u --set sync.inner_steps=%u", advice->rank,
           advice->inner_steps);
    printf(" --set sync.adaptation=off");
    if (advice->inner_steps > own->inner_steps) printf(" --set sync.inner_steps_max=0");
    if (advice->exchange_steps != own->exchange_steps)
        printf(" --set sync.exchange_steps=%u", advice->exchange_steps);
    printf("\n");
}

static int plan_print(const dlx_config *config, const dlx_plan_options *options) {
    dlx_plan_result r;
    dlx_error error;
    char text[32];
    if (dlx_plan(&r, config, options, &error) != DLX_OK) return fail_with(&error);
    time_format(text, r.step_s);
    printf("model               %.4g M parameters\n", (double)r.parameters * 1e-6);
    printf("inner step          %s%s", text,
           options->step_s > 0 ? "" : ", by operations and --flops");
    if (r.pipeline_idle_share > 0)
        printf("; a stage idles %.1f %% of it", 100 * r.pipeline_idle_share);
    printf("\nwithout exchanges   %.4g tokens/s, %u sites\n", r.tokens_per_s, options->sites);
    memory_print(&r);
    printf("\n%-20s %5s %6s %10s  %-6s %10s %11s %9s %12s\n", "", "H", "rank", "exchange", "hidden",
           "efficiency", "tokens/s", "speed-up", "bytes/token");
    for (int i = 0; i < DLX_PLAN_METHODS; i++)
        method_print(&r.methods[i], r.methods[0].tokens_per_s);
    advice_print(&r);
    return EXIT_DONE;
}

static int run(void) {
    dlx_error error;
    dlx_config *config = NULL;
    dlx_plan_options options = DLX_PLAN_OPTIONS_INIT;
    options.sites = (uint32_t)given.sites;
    options.step_s = given.step_s;
    options.flops_per_s = given.flops;
    options.host_bytes_per_s = given.host_rate;
    options.seconds = given.seconds;
    options.shares_core = given.shared_cores;
    if (given.link != NULL && !link_parse(&options, given.link))
        return fail_use("plan: --link: '%.64s' is not a rate and a delay; allowed: 1bit to "
                        "1000000gbit, a comma, and up to 60s: 100mbit,20ms",
                        given.link);
    if (config_read(&config, given.config.path, NULL, given.config.sets, &error) != DLX_OK)
        return fail_with(&error);
    int exit_code = plan_print(config, &options);
    dlx_config_close(&config);
    return exit_code;
}

const command plan_command = {
    .name = "plan",
    .use = "[CONFIG]",
    .summary = "what a run will cost on a link, computed: time, bytes, memory",
    .details =
        "  For each method: H and rank at the start, the time of an exchange, whether training\n"
        "  hides it, tokens per second over those without an exchange (efficiency) and over\n"
        "  AllReduce in f32 (speed-up), and what all sites send. sync.adaptation and sync.pace\n"
        "  are followed; link's rank and H are those that it ends with. Memory is that of the "
        "rank\n"
        "  that needs most, without activations and sync.history_mib. Nothing is measured.\n",
    .arguments = COMMAND_TABLE(rows),
    .needed = 0,
    .prints = true,
    .values = &given,
    .run = run,
};
