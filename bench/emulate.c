/* SPDX-License-Identifier: Apache-2.0 */
/* A site whose inner steps take a given time and no computing: parameters move at random. All that
 * dilocox does is real. So more sites fit on a machine than it has cores, and the exchange has
 * cores to itself. The first form is the coordinator. bench/scaling.py uses it.
 *
 *     emulate SITES HOST:PORT KEY ROSTER STEPS [OPTION=VALUE]...
 *     emulate NAME HOST:PORT KEY ROSTER STEP_MS PARAMETERS [OPTION=VALUE]...
 *
 * KEY `-`: unencrypted. A site prints one line of JSON. Its time counts from the end of the first
 * round's last step to that of the last round but one: the run's last exchange is not hidden. */
#include <dilocox.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { WIDTH = 512, TENSORS_MAX = 4096 };

typedef struct model {
    dlx_tensor tensors[TENSORS_MAX];
    char names[TENSORS_MAX][16];
    size_t count;
} model;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/* Of this program: getrusage's maximum is also that of the process that it was forked from. */
static long peak_kib(void) {
    char line[128];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && kib == 0 && fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %ld", &kib) != 1) kib = 0;
    if (status != NULL) fclose(status);
    return kib;
}

static int fail(const char *what, const dlx_error *error) {
    fprintf(stderr, "emulate: %s: %s\n", what, error->message);
    return 1;
}

/* The value of `option=value`, or NULL if `word` is another option. */
static const char *value_of(const char *word, const char *option) {
    size_t length = strlen(option);
    return strncmp(word, option, length) == 0 && word[length] == '=' ? word + length + 1 : NULL;
}

static uint32_t ms_of(const char *seconds) {
    return (uint32_t)(1e3 * strtod(seconds, NULL));
}

static int no_option(const char *word) {
    fprintf(stderr, "emulate: no option '%s'\n", word);
    return 2;
}

static dlx_link_config link_of(char **words) {
    dlx_link_config link = {.coordinator = words[2], .unencrypted = strcmp(words[3], "-") == 0};
    if (!link.unencrypted) link.key_path = words[3], link.roster_path = words[4];
    return link;
}

/* ---- the coordinator ------------------------------------------------------------------------- */

static int coordinate(int count, char **words) {
    dlx_coordinator *c = NULL;
    dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;
    dlx_error error = {.message = ""};
    const char *store = NULL, *value;
    for (int i = 6; i < count; i++) {
        if ((value = value_of(words[i], "store")) != NULL)
            store = value;
        else if ((value = value_of(words[i], "timeout_s")) != NULL)
            config.timeout_ms = ms_of(value);
        else
            return no_option(words[i]);
    }
    config.sites = (uint32_t)strtoul(words[1], NULL, 10);
    config.link = link_of(words);
    config.tokens = config.sites * strtoull(words[5], NULL, 10);
    config.sites_min = 0;
    dlx_status status = store != NULL ? dlx_coordinator_open_stored(&c, &config, store, &error)
                                      : dlx_coordinator_open(&c, &config, &error);
    if (status != DLX_OK) return fail("coordinator", &error);
    double begin_s = now_s();
    status = dlx_coordinator_run(c, &error);
    printf("{\"cpu_s\":%.3f,\"wall_s\":%.3f,\"peak_bytes\":%ld}\n", cpu_s(), now_s() - begin_s,
           peak_kib() * 1024L);
    dlx_coordinator_close(&c);
    return status == DLX_OK ? 0 : fail("coordinator", &error);
}

/* ---- a site ---------------------------------------------------------------------------------- */

static bool model_make(model *m, size_t parameters) {
    for (size_t left = parameters; left > 0 && m->count < TENSORS_MAX; m->count++) {
        size_t rows = left < (size_t)WIDTH * WIDTH ? (left + WIDTH - 1) / WIDTH : WIDTH;
        float *data = calloc(rows * WIDTH, sizeof *data);
        if (data == NULL) return false;
        snprintf(m->names[m->count], sizeof m->names[0], "w%zu", m->count);
        m->tensors[m->count] = (dlx_tensor){
            .name = m->names[m->count], .data = data, .rows = (int64_t)rows, .cols = WIDTH};
        left -= left < rows * WIDTH ? left : rows * WIDTH;
    }
    return m->count < TENSORS_MAX;
}

static void model_free(model *m) {
    for (size_t i = 0; i < m->count; i++) free(m->tensors[i].data);
}

/* One value of 64 moves in a step: what is exchanged is full of differences, at little cost. */
static void model_move(model *m, uint64_t *state) {
    for (size_t t = 0; t < m->count; t++) {
        float *values = m->tensors[t].data;
        int64_t count = m->tensors[t].rows * m->tensors[t].cols;
        for (int64_t i = 0; i < count; i += 64) {
            *state = *state * 6364136223846793005u + 1442695040888963407u;
            values[i + (int64_t)(*state >> 58)] +=
                1e-3f * ((float)(*state >> 40 & 0xffff) - 32768) / 32768;
        }
    }
}

static bool option_set(dlx_sync_config *config, const char *word) {
    static const char *const overlaps[] = {"allreduce", "none", "delayed", "eager", "carry"};
    static const char *const adaptations[] = {"off", "paper", "link"};
    const char *value;
    if ((value = value_of(word, "overlap")) != NULL)
        for (int i = 0; i < 5; i++)
            if (strcmp(value, overlaps[i]) == 0) return config->overlap = (dlx_overlap)i, true;
    if ((value = value_of(word, "adaptation")) != NULL)
        for (int i = 0; i < 3; i++)
            if (strcmp(value, adaptations[i]) == 0)
                return config->adaptation = (dlx_adaptation)i, true;
    if ((value = value_of(word, "inner_steps")) != NULL)
        return config->inner_steps = (uint32_t)atoi(value), true;
    if ((value = value_of(word, "rank")) != NULL) return config->factor_rank = atoi(value), true;
    if ((value = value_of(word, "bits")) != NULL) return config->bits = atoi(value), true;
    if ((value = value_of(word, "timeout_s")) != NULL)
        return config->timeout_ms = ms_of(value), true;
    return false;
}

static void sleep_until(double at_s) {
    double whole = floor(at_s);
    struct timespec t = {.tv_sec = (time_t)whole, .tv_nsec = (long)(1e9 * (at_s - whole))};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0) {}
}

typedef struct mark {
    double at_s, exchange_s, cpu_s, waited_s;
    uint64_t steps, sent, rounds;
} mark;

static mark mark_take(dlx_sync *sync, uint64_t steps, double waited_s) {
    dlx_statistics statistics = DLX_STATISTICS_INIT;
    dlx_error error;
    if (dlx_sync_statistics(sync, &statistics, &error) != DLX_OK) return (mark){0};
    return (mark){.at_s = now_s(),
                  .exchange_s = statistics.exchange_total_s,
                  .cpu_s = cpu_s(),
                  .waited_s = waited_s,
                  .steps = steps,
                  .sent = statistics.wan_bytes_sent,
                  .rounds = statistics.rounds};
}

static dlx_status train(dlx_sync *sync, model *m, double step_s, uint64_t seed, dlx_error *error) {
    dlx_step step = DLX_STEP_INIT;
    mark first = {0}, last = {0}, next = {0};
    uint64_t steps = 0;
    double waited_s = 0;
    while (!step.finished) {
        double begin_s = now_s();
        model_move(m, &seed);
        sleep_until(begin_s + step_s);
        dlx_status status = dlx_sync_step(sync, 1, &step, error);
        if (status != DLX_OK) return status;
        steps++;
        waited_s += step.waited_s;
        if (!step.submitted && !(step.applied && step.finished)) continue;
        if (first.at_s == 0)
            first = mark_take(sync, steps, waited_s);
        else
            last = next;
        next = mark_take(sync, steps, waited_s);
    }
    if (last.rounds == first.rounds) {
        snprintf(error->message, sizeof error->message, "fewer than 3 rounds");
        return DLX_ARGUMENT;
    }
    double rounds = (double)(last.rounds - first.rounds), seconds = last.at_s - first.at_s;
    dlx_statistics statistics = DLX_STATISTICS_INIT;
    dlx_status status = dlx_sync_statistics(sync, &statistics, error);
    if (status != DLX_OK) return status;
    printf("{\"steps\":%llu,\"rounds\":%g,\"seconds\":%.4f,\"efficiency\":%.5f,\"waited_s\":%.4f,"
           "\"sent_per_round\":%.0f,\"payload\":%llu,\"exchange_s\":%.4f,\"inner_steps\":%u,"
           "\"rank\":%.1f,\"cpu_share\":%.5f}\n",
           (unsigned long long)(last.steps - first.steps), rounds, seconds,
           (double)(last.steps - first.steps) * step_s / seconds, last.waited_s - first.waited_s,
           (double)(last.sent - first.sent) / rounds, (unsigned long long)statistics.round_bytes,
           (last.exchange_s - first.exchange_s) / rounds, statistics.inner_steps,
           statistics.factor_rank_mean, (last.cpu_s - first.cpu_s) / seconds);
    return DLX_OK;
}

static int site(int count, char **words) {
    static model m;
    dlx_sync *sync = NULL;
    dlx_error error = {.message = ""};
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = words[1];
    config.link = link_of(words);
    for (int i = 7; i < count; i++)
        if (!option_set(&config, words[i])) return no_option(words[i]);
    dlx_status status = DLX_MEMORY;
    if (model_make(&m, strtoull(words[6], NULL, 10)))
        status = dlx_sync_open(&sync, &config, m.tensors, m.count, &error);
    uint64_t seed = 1;
    for (const char *c = words[1]; *c != '\0'; c++) seed = seed * 31 + (uint64_t)*c;
    if (status == DLX_OK) status = train(sync, &m, 1e-3 * strtod(words[5], NULL), seed, &error);
    dlx_sync_close(&sync);
    model_free(&m);
    return status == DLX_OK ? 0 : fail(words[1], &error);
}

int main(int count, char **words) {
    bool coordinates = count > 1 && strspn(words[1], "0123456789") == strlen(words[1]);
    if (coordinates && count >= 6) return coordinate(count, words);
    if (!coordinates && count >= 7) return site(count, words);
    fprintf(stderr, "emulate SITES HOST:PORT KEY ROSTER STEPS [OPTION=VALUE]...\n"
                    "emulate NAME HOST:PORT KEY ROSTER STEP_MS PARAMETERS [OPTION=VALUE]...\n");
    return 2;
}
