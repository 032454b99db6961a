/* SPDX-License-Identifier: Apache-2.0 */
/* A site whose inner steps take a given time and no computing: parameters move at random. All that
 * dilocox does is real. So more sites fit on a machine than it has cores, and the exchange has
 * cores to itself. The first form is the coordinator. bench/scaling.py uses it.
 *
 *     emulate SITES HOST:PORT KEY ROSTER STEPS [OPTION=VALUE]...
 *     emulate NAME HOST:PORT KEY ROSTER STEP_MS PARAMETERS [OPTION=VALUE]...
 *
 * KEY `-`: unencrypted. PARAMETERS: a number, or gpt2. A site prints one line of JSON. Its time
 * counts from the end of the first round's last step to that of the last round but one: the run's
 * last exchange is not hidden. Bytes and exchanges are means over all rounds but the first N of
 * `skip=N`. With `ranks=N` a site is N processes, each with its share of the tensors: bytes and CPU
 * are their sum, an exchange takes as long as that of the slowest rank. */
#include <dilocox.h>

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 512, TENSORS_MAX = 4096, RANKS_MAX = 64, GATHER_BYTES = 1024 };

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

/* ---- ranks ----------------------------------------------------------------------------------- */

/* Memory that the ranks of a site share. */
typedef struct meeting {
    pthread_barrier_t barrier;
    unsigned char slots[RANKS_MAX][GATHER_BYTES];
} meeting;

typedef struct place {
    meeting *meeting;
    unsigned rank, ranks;
} place;

static dlx_status gather(void *context, void *all, const void *own, size_t bytes,
                         dlx_error *error) {
    const place *me = context;
    (void)error;
    for (size_t at = 0; at < bytes; at += GATHER_BYTES) {
        size_t part = bytes - at < GATHER_BYTES ? bytes - at : GATHER_BYTES;
        memcpy(me->meeting->slots[me->rank], (const char *)own + at, part);
        pthread_barrier_wait(&me->meeting->barrier);
        for (size_t r = 0; r < me->ranks; r++)
            memcpy((char *)all + r * bytes + at, me->meeting->slots[r], part);
        pthread_barrier_wait(&me->meeting->barrier);
    }
    return DLX_OK;
}

/* One that fails ends all: the others would wait for it. Returns the exit status of the first that
 * failed. */
static int ranks_wait(const pid_t *children, unsigned count) {
    int result = 0, how;
    for (pid_t ended; (ended = wait(&how)) > 0;) {
        if (result != 0 || (WIFEXITED(how) && WEXITSTATUS(how) == 0)) continue;
        result = WIFEXITED(how) ? WEXITSTATUS(how) : 1;
        for (unsigned i = 0; i < count; i++)
            if (children[i] != ended) kill(children[i], SIGKILL);
    }
    return result;
}

/* Calls `site` in a process per rank. */
static int ranks_run(unsigned ranks, int (*site)(place *, int, char **), int count, char **words) {
    pid_t children[RANKS_MAX], parent = getpid();
    pthread_barrierattr_t shared;
    place me = {.ranks = ranks};
    me.meeting =
        mmap(NULL, sizeof *me.meeting, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (me.meeting == MAP_FAILED || pthread_barrierattr_init(&shared) != 0 ||
        pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED) != 0 ||
        pthread_barrier_init(&me.meeting->barrier, &shared, ranks) != 0)
        return 1;
    for (; me.rank < ranks; me.rank++) {
        children[me.rank] = fork();
        if (children[me.rank] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            return getppid() == parent ? site(&me, count, words) : 1;
        }
        if (children[me.rank] < 0) return 1; /* the others end with this process */
    }
    return ranks_wait(children, ranks);
}

/* ---- a site ---------------------------------------------------------------------------------- */

/* Every tensor belongs to one rank. */
static bool tensor_add(model *m, const place *me, uint32_t id, size_t rows, size_t cols) {
    if (id % me->ranks != me->rank) return true;
    float *data = m->count < TENSORS_MAX ? calloc(rows * cols, sizeof *data) : NULL;
    if (data == NULL) return false;
    snprintf(m->names[m->count], sizeof m->names[0], "w%u", id);
    m->tensors[m->count] = (dlx_tensor){.name = m->names[m->count],
                                        .data = data,
                                        .rows = (int64_t)rows,
                                        .cols = (int64_t)cols,
                                        .id = id};
    m->count++;
    return true;
}

static bool squares_make(model *m, const place *me, size_t parameters) {
    bool made = true;
    uint32_t id = 0;
    for (size_t left = parameters; left > 0 && made; id++) {
        size_t rows = left < (size_t)WIDTH * WIDTH ? (left + WIDTH - 1) / WIDTH : WIDTH;
        made = tensor_add(m, me, id, rows, WIDTH);
        left -= left < rows * WIDTH ? left : rows * WIDTH;
    }
    return made;
}

/* The matrices of GPT-2 with 124 million parameters. */
static bool gpt2_make(model *m, const place *me) {
    enum { LAYERS = 12, OF_LAYER = 6, SIDE = 768 };
    static const size_t layer[OF_LAYER][2] = {{SIDE, SIDE}, {SIDE, SIDE},     {SIDE, SIDE},
                                              {SIDE, SIDE}, {4 * SIDE, SIDE}, {SIDE, 4 * SIDE}};
    bool made = tensor_add(m, me, 0, 50304, SIDE) && tensor_add(m, me, 1, 1024, SIDE);
    for (uint32_t i = 0; i < LAYERS * OF_LAYER && made; i++)
        made = tensor_add(m, me, 2 + i, layer[i % OF_LAYER][0], layer[i % OF_LAYER][1]);
    return made;
}

static bool model_make(model *m, const place *me, const char *parameters) {
    return strcmp(parameters, "gpt2") == 0 ? gpt2_make(m, me)
                                           : squares_make(m, me, strtoull(parameters, NULL, 10));
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
    if ((value = value_of(word, "inner_steps_max")) != NULL)
        return config->inner_steps_max = (uint32_t)atoi(value), true;
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

/* All ranks' bytes and CPU, and the longest of their exchanges. */
typedef struct total {
    double exchange_s, cpu_s, sent, payload;
} total;

static total total_gather(place *me, const total *own) {
    total all[RANKS_MAX], sum = {0};
    if (me->ranks == 1) return *own;
    gather(me, all, own, sizeof *own, NULL);
    for (unsigned r = 0; r < me->ranks; r++) {
        if (all[r].exchange_s > sum.exchange_s) sum.exchange_s = all[r].exchange_s;
        sum.cpu_s += all[r].cpu_s;
        sum.sent += all[r].sent;
        sum.payload += all[r].payload;
    }
    return sum;
}

/* The ends of rounds' last steps: the first, the first whose exchange counts, the last but one, and
 * the last, or the run's end. */
typedef struct course {
    mark first, counts, last, end;
} course;

static dlx_status result_print(dlx_sync *sync, place *me, const course *at, double step_s,
                               dlx_error *error) {
    const mark *first = &at->first, *last = &at->last;
    if (last->rounds == first->rounds || at->end.rounds == at->counts.rounds) {
        snprintf(error->message, sizeof error->message, "too few rounds");
        return DLX_ARGUMENT;
    }
    double rounds = (double)(at->end.rounds - at->counts.rounds);
    double seconds = last->at_s - first->at_s;
    dlx_statistics statistics = DLX_STATISTICS_INIT;
    dlx_status status = dlx_sync_statistics(sync, &statistics, error);
    if (status != DLX_OK) return status;
    const total own = {.exchange_s = at->end.exchange_s - at->counts.exchange_s,
                       .cpu_s = last->cpu_s - first->cpu_s,
                       .sent = (double)(at->end.sent - at->counts.sent),
                       .payload = (double)statistics.round_bytes},
                sum = total_gather(me, &own);
    if (me->rank > 0) return DLX_OK;
    printf("{\"steps\":%llu,\"rounds\":%g,\"seconds\":%.4f,\"efficiency\":%.5f,\"waited_s\":%.4f,"
           "\"sent_per_round\":%.0f,\"payload\":%.0f,\"exchange_s\":%.4f,\"inner_steps\":%u,"
           "\"rank\":%.1f,\"cpu_share\":%.5f,\"cpu_per_round_s\":%.4f}\n",
           (unsigned long long)(last->steps - first->steps), rounds, seconds,
           (double)(last->steps - first->steps) * step_s / seconds,
           last->waited_s - first->waited_s, sum.sent / rounds, sum.payload,
           sum.exchange_s / rounds, statistics.inner_steps, statistics.factor_rank_mean,
           sum.cpu_s / seconds, sum.cpu_s / (double)(last->rounds - first->rounds));
    return DLX_OK;
}

static dlx_status train(dlx_sync *sync, model *m, place *me, double step_s, unsigned skip,
                        uint64_t seed, dlx_error *error) {
    dlx_step step = DLX_STEP_INIT;
    course at = {.first = {0}};
    uint64_t steps = 0;
    unsigned submissions = 0;
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
        at.last = at.end;
        at.end = mark_take(sync, steps, waited_s);
        if (submissions == 0) at.first = at.end;
        if (submissions++ == skip) at.counts = at.end;
    }
    return result_print(sync, me, &at, step_s, error);
}

static int site(place *me, int count, char **words) {
    static model m;
    dlx_sync *sync = NULL;
    dlx_error error = {.message = ""};
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = words[1];
    config.link = link_of(words);
    config.rank = (uint16_t)me->rank;
    config.ranks = (uint16_t)me->ranks;
    config.gather = gather;
    config.gather_context = me;
    unsigned skip = 0;
    const char *value;
    for (int i = 7; i < count; i++) {
        if ((value = value_of(words[i], "skip")) != NULL)
            skip = (unsigned)atoi(value);
        else if (value_of(words[i], "ranks") == NULL && !option_set(&config, words[i]))
            return no_option(words[i]);
    }
    dlx_status status = DLX_MEMORY;
    if (model_make(&m, me, words[6]))
        status = dlx_sync_open(&sync, &config, m.tensors, m.count, &error);
    uint64_t seed = 1 + me->rank;
    for (const char *c = words[1]; *c != '\0'; c++) seed = seed * 31 + (uint64_t)*c;
    if (status == DLX_OK)
        status = train(sync, &m, me, 1e-3 * strtod(words[5], NULL), skip, seed, &error);
    dlx_sync_close(&sync);
    model_free(&m);
    return status == DLX_OK ? 0 : fail(words[1], &error);
}

int main(int count, char **words) {
    bool coordinates = count > 1 && strspn(words[1], "0123456789") == strlen(words[1]);
    if (coordinates && count >= 6) return coordinate(count, words);
    unsigned ranks = 1;
    for (int i = 7; i < count; i++)
        if (value_of(words[i], "ranks") != NULL)
            ranks = (unsigned)atoi(value_of(words[i], "ranks"));
    if (!coordinates && count >= 7 && ranks == 1) return site(&(place){.ranks = 1}, count, words);
    if (!coordinates && count >= 7 && ranks > 1 && ranks <= RANKS_MAX)
        return ranks_run(ranks, site, count, words);
    fprintf(stderr, "emulate SITES HOST:PORT KEY ROSTER STEPS [OPTION=VALUE]...\n"
                    "emulate NAME HOST:PORT KEY ROSTER STEP_MS PARAMETERS [OPTION=VALUE]...\n");
    return 2;
}
