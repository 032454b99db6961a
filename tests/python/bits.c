/* SPDX-License-Identifier: Apache-2.0 */
/* bits OVERLAP DTYPE TABLE OUT: three sites on a hub train by a table of integers and write down
 * after each step what they have. test_bits.py does the same through the package, and compares. */
#include <dilocox.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SITES = 3, STEPS = 200, ROWS = 24, COLS = 16, MATRIX = ROWS * COLS, VECTOR = 10, MEANS = 6 };
enum { VALUES = MATRIX + VECTOR + MEANS, TENSORS = 3, POLLS_MAX = 60000 };

static dlx_hub *hub;
static dlx_overlap overlap;
static dlx_dtype dtype;
static signed char table[SITES][STEPS][VALUES];

typedef struct site {
    int number;
    char name[16];
    float f32[VALUES];
    uint16_t f16[VALUES]; /* or bfloat16 */
    FILE *out;
    dlx_status status;
    dlx_error error;
} site;

static void start(site *s) {
    for (int k = 0; k < VALUES; k++) {
        s->f32[k] = (float)(k % 17 - 8) / 16;
        s->f16[k] = (uint16_t)((dtype == DLX_BF16 ? 0x3F80 : 0x3C00) + k % 97);
    }
}

static void inner_step(site *s, const signed char *row) {
    for (int k = 0; k < VALUES; k++) {
        s->f32[k] = (float)((double)s->f32[k] + row[k] / 256.0);
        s->f16[k] = (uint16_t)(s->f16[k] ^ (row[k] & 3));
    }
}

/* The exchange that a step began is through: what follows does not depend on timing. */
static void commit_wait(dlx_sync *sync) {
    const dlx_part *parts;
    size_t count;
    const struct timespec pause = {.tv_nsec = 1000000};
    for (int i = 0; i < POLLS_MAX; i++) {
        if (dlx_sync_save(sync, NULL, NULL, &parts, &count, NULL) != DLX_AGAIN) return;
        nanosleep(&pause, NULL);
    }
}

static void put(FILE *out, const void *from, size_t bytes) {
    if (fwrite(from, 1, bytes, out) != bytes) abort();
}

static void record(site *s, dlx_sync *sync, const dlx_step *step) {
    uint64_t hashes[TENSORS] = {0};
    size_t tensors = overlap == DLX_OVERLAP_ALLREDUCE ? TENSORS - 1 : TENSORS;
    dlx_statistics st = DLX_STATISTICS_INIT;
    s->status = dlx_sync_anchor_hashes(sync, hashes, &s->error);
    if (s->status == DLX_OK) s->status = dlx_sync_statistics(sync, &st, &s->error);
    const uint64_t counts[] = {
        step->submitted,     step->applied,       step->finished,   step->inner_steps,
        step->step_in_round, step->round,         st.rounds,        st.committed_tokens,
        st.round_bytes,      st.raw_bytes,        st.payload_bytes, st.inner_steps,
        st.anchor_hash,      st.low_rank_tensors, st.plain_tensors, st.low_rank_parameters};
    const double reals[] = {st.factor_rank_mean, st.update_norm, st.outer_learning_rate,
                            st.outer_momentum,   st.weight,      st.outer_momentum_rate,
                            st.submitted_norm,   st.mean_norm,   st.momentum_norm,
                            st.unsent_norm,      st.agreement,   st.persistence};
    if (dtype == DLX_F32)
        put(s->out, s->f32, sizeof s->f32);
    else
        put(s->out, s->f16, sizeof s->f16);
    put(s->out, hashes, tensors * sizeof *hashes);
    put(s->out, counts, sizeof counts);
    put(s->out, reals, sizeof reals);
}

static dlx_status train(site *s, dlx_sync *sync) {
    float gradients[VALUES];
    float *const pointers[] = {gradients, gradients + MATRIX};
    dlx_step step = DLX_STEP_INIT;
    for (int i = 0; s->status == DLX_OK && !step.finished; i++) {
        const signed char *row = table[s->number][i % STEPS];
        if (overlap == DLX_OVERLAP_ALLREDUCE) {
            for (int k = 0; k < VALUES; k++) gradients[k] = (float)row[k] / 256;
            s->status = dlx_sync_gradients(sync, pointers, 1, NULL, &s->error);
            put(s->out, gradients, (MATRIX + VECTOR) * sizeof *gradients);
        }
        inner_step(s, row);
        if (s->status == DLX_OK) s->status = dlx_sync_step(sync, 1, &step, &s->error);
        if (overlap != DLX_OVERLAP_ALLREDUCE) commit_wait(sync);
        if (s->status == DLX_OK) record(s, sync, &step);
    }
    return s->status;
}

static void *site_run(void *context) {
    site *s = context;
    void *data = dtype == DLX_F32 ? (void *)s->f32 : s->f16;
    const size_t bytes = dtype == DLX_F32 ? sizeof(float) : sizeof(uint16_t);
    const dlx_tensor tensors[TENSORS] = {
        {.name = "matrix", .data = data, .rows = ROWS, .cols = COLS, .dtype = dtype},
        {.name = "vector",
         .data = (char *)data + MATRIX * bytes,
         .rows = 1,
         .cols = VECTOR,
         .dtype = dtype},
        {.name = "means",
         .data = (char *)data + (MATRIX + VECTOR) * bytes,
         .rows = 1,
         .cols = MEANS,
         .dtype = dtype,
         .kind = DLX_STATISTICS}};
    dlx_sync_config config = DLX_SYNC_CONFIG_INIT;
    config.site = s->name;
    config.link.hub = hub;
    config.overlap = overlap;
    config.inner_steps = 4;
    config.exchange_steps = overlap == DLX_OVERLAP_CARRY ? 2 : 0;
    config.factor_rank = 4;
    config.group = 16;
    dlx_sync *sync = NULL;
    start(s);
    s->status = dlx_sync_open(&sync, &config, tensors,
                              overlap == DLX_OVERLAP_ALLREDUCE ? TENSORS - 1 : TENSORS, &s->error);
    if (s->status == DLX_OK) s->status = train(s, sync);
    dlx_sync_close(&sync);
    return NULL;
}

static void *coordinate(void *coordinator) {
    (void)dlx_coordinator_run(coordinator, NULL); /* the sites say what failed */
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 5) return 2;
    overlap = (dlx_overlap)atoi(arguments[1]);
    dtype = (dlx_dtype)atoi(arguments[2]);
    FILE *in = fopen(arguments[3], "rb");
    if (in == NULL || fread(table, 1, sizeof table, in) != sizeof table) return 2;
    fclose(in);
    dlx_coordinator *coordinator = NULL;
    dlx_coordinator_config config = DLX_COORDINATOR_CONFIG_INIT;
    config.sites = SITES;
    config.tokens = (uint64_t)SITES * STEPS;
    if (dlx_hub_open(&hub, NULL) != DLX_OK) return 1;
    config.link.hub = hub;
    if (dlx_coordinator_open(&coordinator, &config, NULL) != DLX_OK) return 1;

    static site sites[SITES];
    pthread_t threads[SITES + 1];
    pthread_create(&threads[SITES], NULL, coordinate, coordinator);
    for (int i = 0; i < SITES; i++) {
        char path[1024];
        sites[i].number = i;
        snprintf(sites[i].name, sizeof sites[i].name, "site-%d", i);
        snprintf(path, sizeof path, "%s.%d", arguments[4], i);
        if ((sites[i].out = fopen(path, "wb")) == NULL) return 2;
        pthread_create(&threads[i], NULL, site_run, &sites[i]);
    }
    for (int i = 0; i <= SITES; i++) pthread_join(threads[i], NULL);
    dlx_coordinator_close(&coordinator);
    dlx_hub_close(&hub);
    int failed = 0;
    for (int i = 0; i < SITES; i++) {
        failed |= sites[i].status != DLX_OK || fclose(sites[i].out) != 0;
        if (sites[i].status != DLX_OK)
            fprintf(stderr, "%s: %s\n", sites[i].name, sites[i].error.message);
    }
    return failed;
}
